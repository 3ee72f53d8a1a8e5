"""
What a webhook reports of a call that is known, told apart from one that asks for a document.

Twilio's callbacks are here, for SignalWire and TeXML repeat their fields. What they say is logged, and where webhooks
are not verified it may be anybody's: it is bounded, and printable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wsvoice.call import AnsweredBy, Stage
from wsvoice.providers.base import FIELD_LIMIT, CallUpdate
from wsvoice.providers.call_statuses import ENDED_STATUSES, STAGES, read_answered_by, read_greeting_end
from wsvoice.providers.fields import broken, shown

#: Characters of an event's name, of one field's value, and of all that is told of a report.
EVENT_LIMIT, VALUE_LIMIT, DETAIL_LIMIT = 64, 100, 300

#: What a request for a document says of its call. https://www.twilio.com/docs/voice/twiml#request-parameters
_ASKING = frozenset({"queued", "ringing", "in-progress"})
_TOLD = (
    "ErrorCode",
    "ErrorMessage",
    "StreamError",
    "SipResponseCode",
    "SipResultCode",
    "HangupCause",
    "HangupSource",
    "AnsweredBy",
    "CallDuration",
)


def printable(value: object, limit: int) -> str:
    """Return a stranger's text or number as it may be logged: on one line, and no longer than `limit`."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value)[:limit]
    return text if text.isprintable() else ascii(text)[1:-1][:limit]


def details(fields: Mapping[str, object], names: Iterable[str]) -> str:
    """Return those fields of a report that say something, as ``name=value, name=value``."""
    told = [f"{name}={value}" for name in names if (value := printable(fields.get(name), VALUE_LIMIT))]
    return ", ".join(told)[:DETAIL_LIMIT]


def report(
    call_id: str,
    event: str,
    detail: str = "",
    *,
    failed: bool = False,
    ended: bool = False,
    stage: Stage | None = None,
    answered_by: AnsweredBy | None = None,
    greeting_ended: bool = False,
) -> CallUpdate:
    """
    Return the report of `event`.

    Raises:
        RemoteProtocolError: Of kind ``bad-field``, if no call has such an id.
    """
    if len(call_id) > FIELD_LIMIT or not call_id.isprintable():
        raise broken("bad-field", f"no call has the id {shown(call_id)}")
    event = printable(event, EVENT_LIMIT)
    return CallUpdate(call_id, event, detail, failed, ended, stage, answered_by, greeting_ended)


def read_form_report(fields: Mapping[str, str]) -> CallUpdate | None:
    """
    Read a callback in Twilio's form; ``None`` if it asks for a document.

    A request for a document says that its call is queued, ringing or in progress, and nothing of a callback's own.
    ``AnsweredBy`` beside that is no callback's: it comes so after machine detection that the call waited for. Neither
    is ``ErrorCode``, which a fallback URL is told.

    Raises:
        RemoteProtocolError: Of kind ``bad-field``, if no call has such an id.

    https://www.twilio.com/docs/voice/api/call-resource#statuscallback
    https://www.twilio.com/docs/voice/answering-machine-detection#async-amd
    https://www.twilio.com/docs/voice/api/recording#recordingstatuscallback
    https://www.twilio.com/docs/voice/twiml/stream#statuscallback
    https://www.twilio.com/docs/voice/twiml/connect#action
    """
    call_id, status, word = fields.get("CallSid", ""), fields.get("CallStatus", ""), fields.get("AnsweredBy", "")
    erred = fields.get("ErrorCode", "") not in ("", "0")
    detail, stage, answered_by = details(fields, _TOLD), STAGES.get(status), read_answered_by(word)
    if event := fields.get("StreamEvent", ""):
        failed = event in ("stream-error", "stream-failed") or bool(fields.get("StreamError"))
        return report(call_id, event, detail, failed=failed)
    if status in ENDED_STATUSES:
        failed = erred or status == "failed"
        return report(call_id, status, detail, failed=failed, ended=True, stage=stage, answered_by=answered_by)
    if not fields.keys().isdisjoint(("RecordingSid", "RecordingStatus")):
        recording = fields.get("RecordingStatus", "")
        return report(call_id, f"recording {recording}".strip(), detail, failed=recording in ("failed", "absent"))
    if source := fields.get("CallbackSource", ""):
        return report(call_id, status or source, detail, failed=erred, stage=stage, answered_by=answered_by)
    if "StreamSid" in fields:
        # What follows the stream is asked for, and nothing does: another <Connect> would begin the call anew.
        return report(call_id, "connect ended", detail, failed=erred)
    if not status:
        event = "machine detection" if word else "callback"
        ended = read_greeting_end(word)
        return report(call_id, event, detail, failed=erred, answered_by=answered_by, greeting_ended=ended)
    return None if status in _ASKING else report(call_id, status, detail, failed=erred, stage=stage)
