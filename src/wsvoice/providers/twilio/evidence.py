"""What Twilio recorded of a call, read: the documents that it asked for, and what its debugger shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from wsvoice.providers.account import Evidence
from wsvoice.providers.callbacks import printable
from wsvoice.providers.fields import read_rfc2822, read_time

#: Characters of an address, and of the company's own words.
TEXT_LIMIT = 200
#: How much earlier and later than the call alerts are looked for, in seconds.
_MARGIN_S = 300
#: The code of a request that was answered with an error.
_BAD_ANSWER = "11217"

#: Tells what a code means, and what mends it; of one that is unknown nothing, and where there is more about it.
Explain = Callable[[str], tuple[str, str]]


def read_event(item: Mapping[str, Any], explain: Explain) -> Evidence:
    """
    Read a request of Twilio's for a document, with its answer.

    https://www.twilio.com/docs/voice/api/call-event-resource
    """
    request, response = _inner(item, "request"), _inner(item, "response")
    method, url = printable(request.get("method"), 10), printable(request.get("url"), TEXT_LIMIT)
    status = printable(response.get("response_code"), 10)
    took = printable(response.get("request_duration"), 10)
    failed = not status.isdigit() or not 200 <= int(status) < 400
    what = f"{method} {url} was answered {status or 'with nothing'}" + (f" in {took} ms" if took else "")
    mend = explain(_BAD_ANSWER)[1] if failed else ""
    return Evidence(what.strip(), printable(response.get("date_created"), 40), failed=failed, hint=mend)


def read_notification(item: Mapping[str, Any], explain: Explain) -> Evidence:
    """
    Read an entry of the call's log.

    https://www.twilio.com/docs/voice/api/call-notification-resource
    """
    when = printable(item.get("message_date") or item.get("date_created"), 40)
    return _read_error(item, "message_text", when, explain, failed=printable(item.get("log"), 2) == "0")


def read_alert(item: Mapping[str, Any], explain: Explain) -> Evidence:
    """Read an entry of the debugger: https://www.twilio.com/docs/usage/monitor-alert"""
    when = printable(item.get("date_generated") or item.get("date_created"), 40)
    return _read_error(item, "alert_text", when, explain, failed=item.get("log_level") == "error")


def _read_error(item: Mapping[str, Any], text_key: str, when: str, explain: Explain, *, failed: bool) -> Evidence:
    code, text = printable(item.get("error_code"), 10), item.get(text_key)
    # The text is mostly a form: Msg=...&httpResponse=502&url=https%3A%2F%2F...
    told = dict(parse_qsl(text)) if isinstance(text, str) and "=" in text else {"Msg": text}
    message, status = printable(told.get("Msg"), TEXT_LIMIT), printable(told.get("httpResponse"), 10)
    url = printable(item.get("request_url") or told.get("url"), TEXT_LIMIT)
    meaning, mend = explain(code)
    words = meaning or message or "an error without words"
    details = [message] if meaning and message else []
    details += [f"answered {status}"] if status else []
    details += [url] if url else []
    what = f"error {code}: {words}" if code else words
    return Evidence(what + (f" ({', '.join(details)})" if details else ""), when, code, failed, mend)


def _inner(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = item.get(name)
    return inner if isinstance(inner, dict) else {}


def in_order(found: Iterable[Evidence]) -> list[Evidence]:
    """Return what was recorded, oldest first; what has no time comes last."""

    def at(each: Evidence) -> float:
        moment = read_rfc2822(each.when) or read_time(each.when)
        return moment if moment is not None else float("inf")

    return sorted(found, key=at)


def time_span(call: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields that ask for the alerts of a call's time; none if the call does not tell it."""
    began = read_rfc2822(call.get("date_created")) or read_rfc2822(call.get("start_time"))
    ended = read_rfc2822(call.get("end_time"))
    span = {}
    if began is not None:
        span["StartDate"] = _write_time(began - _MARGIN_S)
    if ended is not None:
        span["EndDate"] = _write_time(ended + _MARGIN_S)
    return span


def _write_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
