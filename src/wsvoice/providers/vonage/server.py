"""The server's half of Vonage: webhooks verified, read and answered with an NCCO."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, TypeGuard

from wsvoice.call import ENDED_STAGES, AnsweredBy, Call
from wsvoice.errors import LocalProtocolError, SignatureError
from wsvoice.providers.base import FIELD_LIMIT, Answer, BusyMessage, CallUpdate, HttpRequest, Server, WebhookRequest
from wsvoice.providers.callbacks import details, report
from wsvoice.providers.fields import broken, text_or_nothing, with_plus
from wsvoice.providers.signing import is_same
from wsvoice.providers.tokens import read_bearer
from wsvoice.providers.urls import check_stream_url
from wsvoice.providers.vonage.company import ENDED_STATUSES, HEADERS_LIMIT, OWN_FIELDS, STAGES, VonageCompany
from wsvoice.providers.vonage.stream import VonageStream

#: How old a webhook's token may be, in seconds.
WEBHOOK_AGE_S = 300
#: No time that a token tells is later, in seconds.
TIME_LIMIT = 10**12

_TOLD = ("reason", "detail", "disconnected_by", "sub_state", "duration", "dtmf")
#: What machine detection says: https://developer.vonage.com/en/voice/voice-api/webhook-reference#human-machine
_ANSWERED_BY: Mapping[str, AnsweredBy] = {"human": "human", "machine": "machine"}
#: The beep was heard, or is not waited for any longer, so that nothing more is said of it.
#: https://developer.vonage.com/en/voice/voice-api/concepts/advanced-machine-detection
_GREETING_ENDED = frozenset({"beep_start", "beep_timeout"})


class VonageServer(VonageCompany, Server):
    """What ``wsvoice run -t vonage`` knows of Vonage."""

    stream_type = VonageStream
    mirror_type = VonageStream
    known_to_pipecat: ClassVar[bool] = False
    webhook_place: ClassVar[str] = "answer URL and event URL of the application"
    secret_place: ClassVar[str] = "the signature secret in the dashboard's API settings"
    ended_statuses: ClassVar[frozenset[int]] = ENDED_STATUSES

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        # One that cannot be used is told at the start, and not at the end of the first call.
        self.private_key()

    def recognises(self, request: WebhookRequest) -> bool:
        ids = (_text(request.content, name) for name in ("conversation_uuid", "conversation_uuid_from"))
        return any(each.startswith("CON-") for each in ids)

    def claims(self, message: object) -> bool:
        return isinstance(message, Mapping) and message.get("event") == "websocket:connected"

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that an answer webhook announces, or what an event webhook reports.

        No field of the former says who called whom, so the answer URL of a call that we place does:
        ``?direction=outbound``.

        https://developer.vonage.com/en/voice/voice-api/webhook-reference
        """
        fields = request.content
        # Events alone tell the time.
        if "status" in fields or "timestamp" in fields:
            return _read_event(fields)
        if not (call_id := _text(fields, "uuid")):
            raise broken("no-call", "the request has no uuid, so it is not Vonage's answer webhook")
        caller, called = _text(fields, "from") or _text(fields, "from_user"), _text(fields, "to")
        is_outbound = ("direction", "outbound") in request.query
        return self.announced(call_id, "", with_plus(caller), with_plus(called), is_outbound=is_outbound)

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the NCCO that connects `call` to a WebSocket; nothing follows, so the call ends with it.

        Everything that the stream's first event has to say goes into ``headers``.

        https://developer.vonage.com/en/voice/voice-api/ncco-reference#websocket-endpoint
        """
        check_stream_url(stream_url)
        if "" in call.parameters or not OWN_FIELDS.isdisjoint(call.parameters):
            raise LocalProtocolError("bad-parameter", "a parameter has no name, or that of a field of the first event")
        headers = {**self.sent_parameters(call), "call_id": call.call_id}
        # A caller may be called anything, and the webhook has told it already.
        for name in ("from_number", "to_number"):
            if name not in call.parameters and len(json.dumps(headers)) > HEADERS_LIMIT:
                headers.pop(name, None)
        if (size := len(json.dumps(headers))) > HEADERS_LIMIT:
            text = f"the parameters have {size} bytes with the call's own; Vonage takes {HEADERS_LIMIT}"
            raise LocalProtocolError("long-parameter", text)
        audio = {"content-type": self.content_type, "headers": headers}
        ncco = [{"action": "connect", "endpoint": [{"type": "websocket", "uri": stream_url, **audio}]}]
        return Answer(json.dumps(ncco), "application/json")

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        """
        Render the NCCO that says or plays `message`, after which the call ends; without one, the error that leads to
        the application's fallback URL.

        https://developer.vonage.com/en/voice/voice-api/ncco-reference#talk
        https://developer.vonage.com/en/voice/voice-api/ncco-reference#stream
        """
        if message is None:
            return super().busy(call)
        action: dict[str, object] = {"action": "stream", "streamUrl": [message.sound_url]}
        if message.text:
            action = {"action": "talk", "text": message.text}
        return Answer(json.dumps([action]), "application/json")

    def hang_up(self, call: Call, *, now: float = 0.0) -> HttpRequest | None:
        # https://developer.vonage.com/en/api/voice#updateCall
        if self.private_key() is None or not self.credential("VONAGE_APPLICATION_ID"):
            return None
        return self.call_request("PUT", call.call_id, content={"action": "hangup"}).at(now)

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Vonage signed this webhook within the last 300 seconds.

        The token covers the body and not the URL, so it cannot vouch for the query of a GET; a POST is better.

        https://developer.vonage.com/en/getting-started/concepts/webhooks#decoding-signed-webhooks
        """
        claims = read_bearer(request, self.credential("VONAGE_SIGNATURE_SECRET"))
        if claims is None:
            hint = "set it to the account's signature secret, and switch on signed webhooks in the application"
            raise SignatureError("the webhook carries no token that VONAGE_SIGNATURE_SECRET has signed", hint=hint)
        # The secret is the account's, and signs what is sent to all of its applications.
        known = self.credential("VONAGE_APPLICATION_ID")
        application = claims.get("application_id", known)
        if claims.get("iss") != "Vonage" or (known and application != known):
            hint = "VONAGE_APPLICATION_ID has to be the application whose webhooks come here, or not to be set"
            raise SignatureError("the webhook's token is not Vonage's, or for another application", hint=hint)
        issued, expires, covered = claims.get("iat"), claims.get("exp", now), claims.get("payload_hash")
        is_new = _is_time(issued) and abs(now - issued) <= WEBHOOK_AGE_S
        if not is_new or not _is_time(expires) or now > expires:
            hint = "it is sent again, or this machine's clock is wrong"
            raise SignatureError(f"the webhook's token is not of the last {WEBHOOK_AGE_S} s", hint=hint)
        body = hashlib.sha256(request.body).hexdigest() if request.body or covered is not None else ""
        if not is_same(body, str(covered or "").lower()):
            hint = "something between Vonage and wsvoice rewrote it"
            raise SignatureError("the webhook's body is not the one that was signed", hint=hint)

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """Return what the token signs, which has an id of its own; Vonage documents nothing that its retries repeat."""
        return request.headers.get("authorization", "").partition(" ")[2].rpartition(".")[0], ""


def _is_time(value: object) -> TypeGuard[float]:
    """Whether a claim is a Unix time that may be reckoned with, for a stranger's number is of any length."""
    return isinstance(value, int | float) and abs(value) <= TIME_LIMIT


def _text(fields: object, name: str) -> str:
    return text_or_nothing(fields.get(name), FIELD_LIMIT + 1) if isinstance(fields, Mapping) else ""


def _read_event(fields: Mapping[str, object]) -> CallUpdate:
    """
    Read an event webhook of the call, or of its stream, which is a leg of its own and repeats our ``headers``.

    https://developer.vonage.com/en/voice/voice-api/webhook-reference#event-webhook
    https://developer.vonage.com/en/voice/voice-api/concepts/websockets
    """
    call_id = _text(fields.get("headers"), "call_id") or _text(fields, "uuid") or _text(fields, "call_uuid")
    event = _text(fields, "status") or ("error" if "reason" in fields else "event")
    stage, answered_by = STAGES.get(event), _ANSWERED_BY.get(event)
    ended, detail = stage in ENDED_STAGES, details(fields, _TOLD)
    if _text(fields, "to").startswith(("ws://", "wss://")):
        return report(call_id, f"stream {event}", detail, failed=ended and event != "completed")
    update = report(call_id, event, detail, failed=event in ("error", "failed", "rejected"), ended=ended)
    greeting_ended = answered_by == "machine" and _text(fields, "sub_state") in _GREETING_ENDED
    return replace(update, stage=stage, answered_by=answered_by, greeting_ended=greeting_ended)
