"""The server's half of Exotel: what a flow asks for the stream's URL, and its callbacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, CallUpdate, Server, WebhookRequest
from wsvoice.providers.callbacks import details, report
from wsvoice.providers.exotel.company import STAGES, ExotelCompany
from wsvoice.providers.exotel.stream import ExotelMirror, ExotelStream
from wsvoice.providers.fields import broken, read_object, start_of, write_object
from wsvoice.providers.signing import has_password

_CALL_ID = re.compile(r"[0-9a-z]{30,40}")
#: What the events of a call are called: https://developer.exotel.com/docs/voice-v1/api-reference/status-callback
_EVENTS: Mapping[str, Stage] = {"ringing": "ringing", "answered": "answered"}
_TOLD = ("EventType", "Cause", "Reason", "ConversationDuration")
#: https://support.exotel.com/support/solutions/articles/3000132269-working-with-passthru-applet-for-agentstream-beta-
_TOLD_OF_STREAM = ("DisconnectedBy", "Duration", "Error", "Reason")


class ExotelServer(ExotelCompany, Server):
    """What ``wsvoice run -t exotel`` knows of Exotel. Closing the stream hangs up, or leads to the next applet."""

    stream_type = ExotelStream
    mirror_type = ExotelMirror
    webhook_place: ClassVar[str] = "URL of the Voicebot applet"
    no_busy_message: ClassVar[str] = (
        "its flow asks for a stream's address alone, and goes on with its next applet where it gets none; "
        "have a Greeting applet follow the Voicebot"
    )

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a request has the fields of Exotel's applets or callbacks, with a call id of Exotel's shape."""
        try:
            fields = _read_fields(request)
        except RemoteProtocolError:
            return False
        return _CALL_ID.fullmatch(fields.get("callsid", "")) is not None and (
            not fields.keys().isdisjoint(("callfrom", "callto", "flow_id", "dateupdated", "eventtype"))
            or bool(_read_stream_report(fields))
        )

    def claims(self, message: object) -> bool:
        """Whether a message is Exotel's start: snake case, or camel case with numbers, which Twilio's has not."""
        start = start_of(message)
        if {"stream_sid", "call_sid", "account_sid"} <= start.keys():
            return True
        # A start of Twilio's dialects names tracks and never says who calls.
        return {"streamSid", "callSid", "accountSid", "from", "to"} <= start.keys() and "tracks" not in start

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a request for the stream's URL is about, or what a callback reports.

        No page lists the fields that the Voicebot applet sends; they are read as other applets send them.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
        """
        fields = _read_fields(request)
        call_id = fields.get("callsid", "")
        if not call_id:
            raise broken("no-call", "the request has no CallSid, so it is not of Exotel's")
        if (update := _read_report(call_id, fields)) is not None:
            return update
        account = fields.get("accountsid") or fields.get("tenant_id", "")
        caller, called = fields.get("callfrom") or fields.get("from", ""), fields.get("callto") or fields.get("to", "")
        is_outbound = fields.get("direction", "").startswith("out")
        return self.announced(call_id, account, caller, called, is_outbound=is_outbound)

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the JSON that names the stream's URL.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        return Answer(write_object({"url": self.stream_address(stream_url, call.parameters)}), "application/json")

    def has_credentials(self, request: WebhookRequest) -> bool:
        """
        Whether an upgrade carries the user name and password of the applet's ``wss://user:password@host/`` URL.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        user, password = self.credential("EXOTEL_STREAM_USER"), self.credential("EXOTEL_STREAM_PASSWORD")
        return bool(user and password) and has_password(request.headers.get("authorization", ""), user, password)


def _read_fields(request: WebhookRequest) -> dict[str, str]:
    """
    Return the fields of a query, a form or a JSON object by their names in lower case, for pages differ on capitals.

    Raises:
        RemoteProtocolError: If what says that it is JSON is no object.
    """
    fields = {name.lower(): value for name, value in request.fields.items()}
    if request.is_json:
        for name, value in request.read_json().items():
            if isinstance(value, str | int) and not isinstance(value, bool):
                fields[name.lower()] = str(value)
            elif isinstance(value, dict):
                fields[name.lower()] = write_object(value)
    return fields


def _read_report(call_id: str, fields: Mapping[str, str]) -> CallUpdate | None:
    """
    Read a status callback, or what a Passthru applet says of the stream before it; ``None`` if an applet asks.

    Neither a status nor its date is among the fields of an applet.

    https://developer.exotel.com/docs/voice-v1/api-reference/status-callback
    """
    if stream := _read_stream_report(fields):
        progress = stream.get("status", "")
        detail = details({name: stream.get(name.lower()) for name in _TOLD_OF_STREAM}, _TOLD_OF_STREAM)
        return report(call_id, f"stream {progress}".strip(), detail, failed=progress in ("failed", "error"))
    if fields.keys().isdisjoint(("eventtype", "status", "dateupdated")):
        return None
    kind, status = fields.get("eventtype", ""), fields.get("status", "")
    detail = details({name: fields.get(name.lower()) for name in _TOLD}, _TOLD)
    stage: Stage | None = _EVENTS.get(kind) or STAGES.get(status)
    if kind == "terminal" and stage not in ENDED_STAGES:
        stage = "completed"
    elif stage == "answered" and kind != "answered":
        # A call is in progress from its request on: only the event says that it is answered.
        stage = None
    event = kind if kind in _EVENTS else status or kind or "callback"
    update = report(call_id, event, detail, failed=status == "failed")
    return replace(update, ended=stage in ENDED_STAGES, stage=stage)


def _read_stream_report(fields: Mapping[str, str]) -> dict[str, object]:
    """Return what is said of a stream, by names in lower case: ``Stream[Status]``, or all as JSON in ``Stream``."""
    stream: dict[str, object] = {
        name[7:-1]: value for name, value in fields.items() if name.startswith("stream[") and name.endswith("]")
    }
    if "stream" in fields:
        try:
            stream.update({name.lower(): value for name, value in read_object(fields["stream"]).items()})
        except RemoteProtocolError:
            stream.setdefault("status", "")
    return stream
