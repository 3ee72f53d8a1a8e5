"""The server's half of Bandwidth: webhooks whose password is checked, read, and answered with BXML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from wsvoice.call import Call
from wsvoice.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.bandwidth.company import (
    ENDS,
    GREETING_TAG,
    RESULTS,
    STREAM_NAME,
    BandwidthCompany,
    parameter_fault,
)
from wsvoice.providers.bandwidth.stream import BandwidthMirror, BandwidthStream
from wsvoice.providers.base import Answer, BusyMessage, CallUpdate, Server, WebhookRequest
from wsvoice.providers.callbacks import details, report
from wsvoice.providers.fields import broken, read_text, text_or_nothing
from wsvoice.providers.signing import has_password
from wsvoice.providers.urls import check_stream_url
from wsvoice.providers.xml_writer import busy_document, document, element

#: What asks for a document with which a call begins, or goes on from another's: https://dev.bandwidth.com/docs/voice/webhooks
_ASKING = frozenset({"initiate", "answer", "redirect"})
#: Ends that are in order, of calls and of streams: https://dev.bandwidth.com/docs/voice/webhooks/mediaStreamStopped
_IN_ORDER = ENDS.keys() | {"closed"}
_TOLD = ("cause", "reason", "errorMessage", "errorId")
_CALL_ID = re.compile("c-[0-9a-f-]{30,60}")
_TEXT_LIMIT = 1000


class BandwidthServer(BandwidthCompany, Server):
    """What ``wsvoice run -t bandwidth`` knows of Bandwidth. Closing the stream ends the document, and so the call."""

    stream_type = BandwidthStream
    mirror_type = BandwidthMirror
    webhook_place: ClassVar[str] = "call initiated callback URL of the voice application"
    secret_place: ClassVar[str] = "a password that you choose for the voice application's callback URLs"
    #: https://github.com/Bandwidth/api-docs/blob/main/site/docs/numbers/webhooks.mdx#authentication
    challenge: ClassVar[str] = 'Basic realm="wsvoice"'
    known_to_pipecat: ClassVar[bool] = False

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a request has Bandwidth's fields, or nothing at all: that one waits to be asked for its password."""
        if request.method == "POST" and not request.body and "authorization" not in request.headers:
            return True
        try:
            fields = _read_fields(request)
        except RemoteProtocolError:
            return False
        call_id = fields.get("callId")
        return isinstance(call_id, str) and _CALL_ID.fullmatch(call_id) is not None and "eventType" in fields

    def claims(self, message: object) -> bool:
        if not isinstance(message, Mapping) or message.get("eventType") != "start":
            return False
        metadata = message.get("metadata")
        return isinstance(metadata, Mapping) and {"streamId", "callId"} <= metadata.keys()

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        fields = _read_fields(request)
        call_id = read_text(fields.get("callId"), "no-call", "callId")
        kind = text_or_nothing(fields.get("eventType"))
        if kind not in _ASKING:
            cause, is_over = text_or_nothing(fields.get("cause")), kind == "disconnect"
            failed = kind == "mediaStreamRejected"
            failed |= (is_over or kind == "mediaStreamStopped") and cause not in _IN_ORDER
            update = report(call_id, kind or "callback", details(fields, _TOLD), failed=failed, ended=is_over)
            if kind == "machineDetectionComplete":
                return _with_detection(update, fields)
            return replace(update, stage=ENDS.get(cause, "failed")) if is_over else update
        account, caller, called = (text_or_nothing(fields.get(n), _TEXT_LIMIT) for n in ("accountId", "from", "to"))
        return self.announced(call_id, account, caller, called, is_outbound=fields.get("direction") == "outbound")

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the BXML that opens a two-way stream, and waits for its end: else the call would end at once.

        The numbers and the direction go along, for the start message names none of them.

        https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/
        https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/stopStream/
        """
        check_stream_url(stream_url)
        parameters = self.sent_parameters(call)
        if fault := parameter_fault(parameters):
            raise LocalProtocolError("long-parameter", fault)
        named = (element("StreamParam", {"name": name, "value": value}) for name, value in parameters.items())
        settings = {"name": STREAM_NAME, "mode": "bidirectional", "tracks": "inbound", "destination": stream_url}
        if status_url:
            # The voice application's own password goes with its own callbacks only.
            settings |= {"streamEventUrl": status_url, "streamEventMethod": "POST", **self.webhook_password()}
        stop = element("StopStream", {"name": STREAM_NAME, "wait": "true"})
        return Answer(document(element("StartStream", settings, *named), stop))

    def acknowledge(self) -> Answer:
        return Answer(document())

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        """
        Render the BXML that hangs up; it has no word for busy.

        https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/speakSentence
        https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/playAudio
        """
        if message is not None:
            return Answer(busy_document(message, say="SpeakSentence", play="PlayAudio"))
        return Answer(document(element("Hangup")))

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        user, password = self.credential("BANDWIDTH_WEBHOOK_USERNAME"), self.credential("BANDWIDTH_WEBHOOK_PASSWORD")
        if not password:
            raise SignatureError("no webhook's password is known", hint="set BANDWIDTH_WEBHOOK_PASSWORD")
        written = request.headers.get("authorization", "")
        if not has_password(written, user, password):
            what = "the webhook's user name or password is wrong" if written else "the webhook carries no password"
            raise SignatureError(what, hint="enter the same ones as the credentials of Bandwidth's voice application")

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """Return all that was sent, for it holds the time."""
        return request.body.decode("latin-1") or request.url.partition("?")[2], None


def _with_detection(update: CallUpdate, fields: Mapping[str, Any]) -> CallUpdate:
    """
    Return a report with what machine detection has found out.

    https://dev.bandwidth.com/docs/voice/webhooks/machineDetectionComplete
    """
    result = fields.get("machineDetectionResult")
    value = text_or_nothing(result.get("value")) if isinstance(result, Mapping) else ""
    answered_by = RESULTS.get(value)
    ended = value == "tone-detected" or (answered_by == "machine" and fields.get("tag") == GREETING_TAG)
    detail = details({"result": value}, ("result",))
    return replace(update, detail=detail, answered_by=answered_by, greeting_ended=ended)


def _read_fields(request: WebhookRequest) -> Mapping[str, Any]:
    """
    Return what a webhook tells: in the query of a GET, in the JSON of a POST.

    Raises:
        RemoteProtocolError: If there is none.
    """
    if request.method == "GET":
        return dict(request.query)
    if not request.is_json:
        raise broken("no-call", "the request is no JSON, so it is not a webhook of Bandwidth's")
    return request.read_json()
