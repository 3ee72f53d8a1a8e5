"""What the records of Telnyx's API say: errors, applications, how calls stand, and what was noted of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from wsvoice.call import ENDED_STAGES, AnsweredBy, Stage
from wsvoice.providers.account import CallState, Evidence
from wsvoice.providers.call_statuses import STAGES, read_answered_by
from wsvoice.providers.callbacks import details, printable
from wsvoice.providers.fields import read_counter, read_time, shown, text_or_nothing
from wsvoice.providers.telnyx.codes import explain
from wsvoice.providers.telnyx.company import REFUSALS, error_code, event_name, read_meaning

#: Types of connections, as ``record_type`` says.
TEXML, CALL_CONTROL = "texml_application", "call_control_application"
KINDS = {TEXML: "TeXML application", CALL_CONTROL: "Call Control application"}
#: Characters of an error's detail, and of a name, that are told.
_DETAIL_LIMIT, NAME_LIMIT = 160, 60
#: Characters of a URL: https://developers.telnyx.com/development/api-fundamentals/api-errors
URL_LIMIT = 2000
#: The code of a refused call, which the API tells in the detail of an error.
_REFUSAL = re.compile(r"\b(D\d{1,2}|PE\d|TM1|TV1)\b")
#: The fields of an event that say what happened.
_EVENT_FIELDS = ("hangup_cause", "hangup_source", "sip_hangup_cause", "failure_reason", "result", "digit", "stream_url")
_SEARCH_DEPTH = 5


class Application(NamedTuple):
    """What a number's calls go to."""

    application_id: str
    record_type: str
    name: str
    url: str
    profile_id: str

    def __str__(self) -> str:
        return f"{KINDS.get(self.record_type, 'connection')} {shown(self.name)}"


def data_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object that an answer holds under ``data``; empty if it holds none."""
    return dict(_inner(content, "data"))


def text_of(record: Mapping[str, Any], name: str) -> str:
    """Return an id or a word of a record, which some ids are written as numbers."""
    value = record.get(name)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else text_or_nothing(value, URL_LIMIT)


def read_error(content: Mapping[str, Any]) -> tuple[str, str, str]:
    """
    Return code, title and detail of an answer's first error; empty texts where it tells none.

    The code is that of a refused call where there is one: it stands beside the errors, or at the end of the detail.
    """
    errors = content.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    code, title, detail = (printable(first.get(name), _DETAIL_LIMIT) for name in ("code", "title", "detail"))
    refused = _REFUSAL.search(error_code(content)) or _REFUSAL.search(text_or_nothing(first.get("detail"), 1000))
    return refused[0] if refused else code, title.rstrip("."), detail.rstrip(".")


def read_application(record: Mapping[str, Any]) -> Application:
    """Return an application, or another connection, whose fields have different names."""
    profile = (_inner(record, "outbound") or record).get("outbound_voice_profile_id")
    return Application(
        text_of(record, "id"),
        text_of(record, "record_type"),
        next(
            (
                name
                for key in ("friendly_name", "application_name", "connection_name")
                if (name := text_of(record, key))
            ),
            "",
        ),
        text_of(record, "voice_url") or text_of(record, "webhook_event_url"),
        text_or_nothing(profile),
    )


def latest_running(calls: list[Any]) -> str:
    """Return the id of the latest of TeXML's calls that is not over; empty if none is left."""
    running = [
        each
        for each in calls
        if isinstance(each, dict) and STAGES.get(text_of(each, "status"), "queued") not in ENDED_STAGES
    ]
    latest = max(running, key=lambda each: read_time(each.get("date_created")) or 0.0, default={})
    return text_of(latest, "sid")


def _payload(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that tell what happened, wherever the metadata of a call's event hold them."""
    found: dict[str, Any] = {}

    def search(value: object, depth: int) -> None:
        if not isinstance(value, dict) or depth > _SEARCH_DEPTH:
            return
        for name, inner in value.items():
            if isinstance(inner, dict):
                search(inner, depth + 1)
                if name == "telnyx_error":
                    found.setdefault(name, inner)
            elif isinstance(name, str):
                found.setdefault(name, inner)

    search(event.get("metadata"), 0)
    return found


def _reports(events: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and fields of those events that report on a call; the others are commands that it was given."""
    for event in events:
        if event.get("type") != "command":
            yield event_name(text_of(event, "name")), _payload(event)


def tell_stage(events: list[dict[str, Any]]) -> bool:
    """Whether a call's events tell how far it is."""
    return any(read_meaning(name, payload).stage is not None for name, payload in _reports(events))


def read_state(call_id: str, data: Mapping[str, Any], events: list[dict[str, Any]]) -> CallState:
    """Return how a call stands by what the API says of it and by its events."""
    stage: Stage = "queued" if data.get("is_alive") or not data.get("end_time") else "completed"
    answered_by: AnsweredBy | None = None
    cause = price = caller = called = ""
    for name, payload in _reports(events):
        caller, called = caller or text_of(payload, "from"), called or text_of(payload, "to")
        meaning = read_meaning(name, payload)
        stage, answered_by = meaning.stage or stage, meaning.answered_by or answered_by
        if name == "call.hangup":
            cause = details({**payload, "telnyx_error": error_code(payload)}, (*_EVENT_FIELDS[:3], "telnyx_error"))
        if name == "call.cost" and (cost := text_of(payload, "total_cost")):
            price = f"{cost} {text_of(payload, 'currency') or 'USD'}"
    duration_s = read_counter(data.get("call_duration"))
    return CallState(
        call_id, stage, answered_by, None if duration_s is None else float(duration_s), price, cause, caller, called
    )


def read_texml_state(call_id: str, resource: Mapping[str, Any]) -> CallState:
    """Return how a TeXML call stands: https://developers.telnyx.com/api-reference/texml-rest-commands/fetch-a-call"""
    price, unit = text_of(resource, "price"), text_of(resource, "price_unit")
    duration_s = read_counter(resource.get("duration"))
    return CallState(
        call_id,
        STAGES.get(text_of(resource, "status"), "queued"),
        read_answered_by(text_of(resource, "answered_by")),
        None if duration_s is None else float(duration_s),
        f"{price} {unit}".strip() if price else "",
        from_number=text_of(resource, "from"),
        to_number=text_of(resource, "to"),
    )


def read_event(event: Mapping[str, Any]) -> Evidence:
    """Return one event of a call, or one command that it was given."""
    name, payload = event_name(text_of(event, "name")), _payload(event)
    cause, sip_cause = text_of(payload, "hangup_cause"), text_of(payload, "sip_hangup_cause")
    code = error_code(payload) or text_of(payload, "failure_reason") or cause
    told = details(payload, _EVENT_FIELDS)
    what = f"command {name}" if event.get("type") == "command" else name
    refused = bool(error_code(payload)) or sip_cause in REFUSALS or cause in ("not_found", "unspecified")
    failed = name.endswith((".failed", ".error")) or (name == "call.hangup" and refused)
    known = explain(code) if failed else None
    return Evidence(
        f"{printable(what, NAME_LIMIT)}{f' ({told})' if told else ''}",
        text_of(event, "event_timestamp"),
        code if failed else "",
        failed,
        known.mend if known else "",
    )


def read_failed_attempts(delivery: Mapping[str, Any]) -> list[Evidence]:
    """Return the attempts of a webhook that did not reach a server, or that it refused."""
    attempts, kind = delivery.get("attempts"), event_name(text_of(_inner(delivery, "webhook"), "event_type"))
    found = []
    for attempt in attempts if isinstance(attempts, list) else ():
        if not isinstance(attempt, dict) or attempt.get("status") != "failed":
            continue
        http, errors = _inner(attempt, "http"), attempt.get("errors")
        status = read_counter(_inner(http, "response").get("status"))
        url = printable(_inner(http, "request").get("url"), 2 * NAME_LIMIT) or "the server"
        came = f"was answered with {status}" if status else "got no answer"
        code = printable(errors[0], NAME_LIMIT) if isinstance(errors, list) and errors else ""
        what = f"the webhook {printable(kind, NAME_LIMIT)} to {url} {came}"
        found.append(Evidence(what, text_of(attempt, "started_at"), code, True, _mend_webhook(status)))
    return found


def _inner(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return the object that a record holds under `name`; empty if it holds none."""
    inner = record.get(name)
    return inner if isinstance(inner, dict) else {}


def _mend_webhook(status: int | None) -> str:
    if not status:
        return "check that the tunnel and wsvoice run are up, and that the address is the public one"
    if status in (401, 403):
        return "check TELNYX_PUBLIC_KEY, and this machine's clock: Telnyx's signatures are valid for 300 s"
    if status == 404:
        return "point the number at the address that wsvoice run prints"
    return "the log of wsvoice run says why it failed" if status >= 500 else "point the number at wsvoice run itself"
