"""The server's half of Telnyx: webhooks verified, read, and answered with TeXML or with requests to the API."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import Answer, BusyMessage, CallUpdate, HttpRequest, Server, WebhookRequest
from wsvoice.providers.callbacks import details, read_form_report, report
from wsvoice.providers.fields import broken, read_signature, read_text, shown, start_of, text_or_nothing
from wsvoice.providers.telnyx.company import (
    API_NAMES,
    SIGNATURE_HEADER,
    TEXML_NAMES,
    TIMESTAMP_HEADER,
    TelnyxCompany,
    error_code,
    event_name,
    read_key,
    read_meaning,
    stable_uuid,
)
from wsvoice.providers.telnyx.stream import TelnyxMirror, TelnyxStream
from wsvoice.providers.urls import check_stream_url
from wsvoice.providers.xml_writer import busy_document, document, element

#: How far a webhook's timestamp may be from our clock, as in Telnyx's own libraries.
#: https://github.com/team-telnyx/telnyx-python/blob/master/src/telnyx/lib/webhook_verification.py
TIMESTAMP_TOLERANCE_S = 300

#: Ends of a call in which nothing failed; others are worth a warning.
#: https://developers.telnyx.com/api-reference/callbacks/call-hangup
_NORMAL_CAUSES = frozenset(
    {"", "normal_clearing", "originator_cancel", "timeout", "time_limit", "user_busy", "no_answer", "call_rejected"}
)
#: What Telnyx repeats of a call that is turned away with a message; it has to be base64.
BUSY_STATE = b64encode(b"wsvoice busy").decode()
#: Who speaks it: https://developers.telnyx.com/docs/voice/programmable-voice/tts
BUSY_VOICE = "AWS.Polly.Joanna"
#: The fields of a Call Control event that say what happened.
_DETAILS = (
    "hangup_cause",
    "hangup_source",
    "sip_hangup_cause",
    "telnyx_error",
    "failure_reason",
    "result",
    "reason",
    "direction",
)
_TIMESTAMP_DIGITS = 12


class TelnyxServer(TelnyxCompany, Server):
    """What ``wsvoice run -t telnyx`` knows of Telnyx."""

    stream_type = TelnyxStream
    mirror_type = TelnyxMirror
    webhook_place: ClassVar[str] = "voice URL of the TeXML application"
    secret_place: ClassVar[str] = "the Public Key on the portal's page Keys & Credentials"
    #: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
    ordered: ClassVar[bool] = False
    #: Seen where a call is routed on after it was answered: https://github.com/dograh-hq/dograh
    renames_dialled_calls: ClassVar[bool] = True

    def recognises(self, request: WebhookRequest) -> bool:
        try:
            data = _read_event(request)
        except RemoteProtocolError:
            return False
        if data is None:
            return bool(re.match(r"v\d+:", request.fields.get("CallSid", ""))) or "CallSidLegacy" in request.fields
        payload = data.get("payload")
        return data.get("record_type") == "event" and isinstance(payload, dict) and "call_control_id" in payload

    def claims(self, message: object) -> bool:
        # Snake case, the stream's id outside, the call's inside.
        return isinstance(message, Mapping) and "stream_id" in message and "call_control_id" in start_of(message)

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces: TeXML's form or query, or Call Control's ``call.initiated``.

        TeXML's callbacks, and all other events of Call Control, report on a call.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
        https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        """
        data = _read_event(request)
        return self._read_texml(request.fields) if data is None else self._read_call_control(data)

    def _read_texml(self, fields: Mapping[str, str]) -> Call | CallUpdate:
        if not fields.get("CallSid"):
            raise broken("no-call", "the request has no CallSid, so it is not a Telnyx webhook")
        # https://developers.telnyx.com/api-reference/callbacks/texml-call-answered
        if (update := read_form_report(fields)) is not None:
            return update
        # No field is documented to tell the direction. Instructions for a call that comes in are fetched while it
        # rings, for one that goes out when it has been answered.
        direction = fields.get("Direction") or ("outbound" if fields.get("CallStatus") == "in-progress" else "inbound")
        caller, called, is_outbound = fields.get("From", ""), fields.get("To", ""), direction.startswith("outbound")
        return self.announced(fields["CallSid"], fields.get("AccountSid", ""), caller, called, is_outbound=is_outbound)

    def _read_call_control(self, data: Mapping[str, Any]) -> Call | CallUpdate:
        kind, payload = data.get("event_type"), data.get("payload")
        if not isinstance(kind, str) or not isinstance(payload, dict):
            raise broken("no-call", "the JSON is not a Telnyx event")
        kind = event_name(kind)
        # A call that goes out is told to stream when it is dialled; there is nothing to answer.
        if kind != "call.initiated" or text_or_nothing(payload.get("direction")).startswith("out"):
            return _read_report(kind, payload)
        call_id = read_text(payload.get("call_control_id"), "no-call", "call_control_id")
        caller, called = text_or_nothing(payload.get("from")), text_or_nothing(payload.get("to"))
        return replace(self.announced(call_id, "", caller, called), control="api")

    def answer(self, call: Call, stream_url: str, status_url: str = "") -> Answer:
        """
        Render the TeXML that connects `call` to a two-way stream, or the request that answers it with one.

        Call Control reports on streams to where it reports on the call, whatever `status_url` says.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
        """
        check_stream_url(stream_url)
        if "" in call.parameters:
            raise LocalProtocolError("bad-parameter", "a custom parameter has no name")
        parameters = [{"name": name, "value": value} for name, value in call.parameters.items()]
        if call.control == "api":
            content = {"stream_url": stream_url, **self.stream_settings(API_NAMES)}
            if parameters:
                content["custom_parameters"] = parameters
            return self._told(call, "answer", content)
        settings = {name: str(value) for name, value in self.stream_settings(TEXML_NAMES).items()}
        # Telnyx dials a stream again that was closed, unless it is told not to.
        attributes = {"url": stream_url, **settings, "enableReconnect": "false"}
        if status_url:
            attributes |= {"statusCallback": status_url, "statusCallbackMethod": "POST"}
        named = (element("Parameter", each) for each in parameters)
        return Answer(document(element("Connect", None, element("Stream", attributes, *named))))

    def busy(self, call: Call | None = None, message: BusyMessage | None = None) -> Answer:
        """
        Render the TeXML that turns `call` away, or the request that does.

        With a `message`, a call of Call Control is answered first: :meth:`go_on_with_busy` does the rest.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/say
        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/play
        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/reject
        https://developers.telnyx.com/api-reference/call-commands/reject-a-call
        """
        if call is None or call.control != "api":
            reject = document(element("Reject", {"reason": "busy"}))
            return Answer(reject if message is None else busy_document(message))
        if not self.credential("TELNYX_API_KEY"):
            return self.acknowledge()
        if message is None:
            return self._told(call, "reject", {"cause": "USER_BUSY"})
        return self._told(call, "answer", {"client_state": BUSY_STATE})

    def go_on_with_busy(self, request: WebhookRequest, message: BusyMessage | None) -> Answer | None:
        """
        Return the request for the next step: to speak once the call is answered, and to hang up once it has spoken.

        Telnyx repeats the ``client_state`` of each command with what it reports afterwards, so nothing is remembered.

        https://developers.telnyx.com/api-reference/call-commands/speak-text
        https://developers.telnyx.com/api-reference/call-commands/play-audio-url
        https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        """
        data = _read_event(request) or {}
        payload = data.get("payload")
        if not isinstance(payload, dict) or payload.get("client_state") != BUSY_STATE:
            return None
        kind, call_id = event_name(text_or_nothing(data.get("event_type"))), payload.get("call_control_id")
        if not isinstance(call_id, str) or not self.credential("TELNYX_API_KEY"):
            return None
        call = Call(self.name, call_id, control="api")
        if kind == "call.answered" and message is not None:
            if message.text:
                spoken = {"payload": message.text, "voice": BUSY_VOICE, "client_state": BUSY_STATE}
                return self._told(call, "speak", spoken)
            return self._told(call, "playback_start", {"audio_url": message.sound_url, "client_state": BUSY_STATE})
        if kind in ("call.answered", "call.speak.ended", "call.playback.ended"):
            return self._told(call, "hangup", {})
        return None

    def _told(self, call: Call, action: str, content: Mapping[str, Any]) -> Answer:
        """Return the acknowledgement of a webhook with which `action` is carried out."""
        return replace(self.acknowledge(), requests=(self._command(call, action, content),))

    def hang_up(self, call: Call, *, now: float = 0.0) -> HttpRequest | None:
        # A TeXML call ends when the stream is closed, because its document says enableReconnect="false" and nothing
        # follows.
        by_request = call.control == "api" and self.credential("TELNYX_API_KEY")
        return self._command(call, "hangup", {}) if by_request else None

    def _command(self, call: Call, action: str, content: Mapping[str, Any]) -> HttpRequest:
        """
        Return the request that carries out `action` for `call`.

        Its ``command_id`` is the same each time, so that an event that came twice is answered once.

        Raises:
            ConfigError: If the API's key is not known.

        https://developers.telnyx.com/docs/v1/call-control/sending-commands
        """
        if not self.credential("TELNYX_API_KEY"):
            raise ConfigError(
                "a Call Control call is answered through Telnyx's API, whose key is not known",
                hint="set TELNYX_API_KEY, or use a TeXML application, which needs none",
            )
        content = {**content, "command_id": stable_uuid(action, call.call_id)}
        return self.api_request("POST", "calls", call.call_id, "actions", action, content=content)

    # Signatures

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Telnyx signed this webhook within the last 300 seconds.

        What is signed is the timestamp and the raw body; the URL is not. For a GET, Telnyx's own default, nothing is
        documented: a signature of the timestamp alone is accepted, and it cannot vouch for the query. A POST is
        better. A GET that does carry a body is refused, for it may be a POST from Telnyx that somebody sends again
        with a query of their own.

        A :exc:`~wsvoice.errors.ConfigError` is raised if the public key is not one.

        https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
        """
        key = self._public_key()
        if key is None:
            raise SignatureError(
                "the webhook's signature cannot be checked without a key",
                hint="set TELNYX_PUBLIC_KEY; the portal has it under Keys & Credentials",
            )
        signature, timestamp = request.headers.get(SIGNATURE_HEADER, ""), request.headers.get(TIMESTAMP_HEADER, "")
        for name, value in ((SIGNATURE_HEADER, signature), (TIMESTAMP_HEADER, timestamp)):
            if not value:
                hint = "it does not come from Telnyx, or a proxy removed the header"
                if request.method == "GET":
                    hint = "set the application's voice_method to post, for Telnyx may not sign a GET"
                raise SignatureError(f"the webhook carries no {name}", hint=hint)
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _TIMESTAMP_DIGITS):
            raise SignatureError(
                f"the webhook's {TIMESTAMP_HEADER} is {shown(timestamp)}, not a number of seconds",
                hint="it does not come from Telnyx",
            )
        if request.method == "GET" and request.body:
            raise SignatureError(
                "the webhook is a GET with a body, which Telnyx does not send",
                hint="it does not come from Telnyx; if a proxy turns its POST into a GET, let it pass the method on",
            )
        age_s = int(now) - int(timestamp)
        if abs(age_s) > TIMESTAMP_TOLERANCE_S:
            when = f"{age_s} s ago" if age_s > 0 else f"{-age_s} s in the future"
            raise SignatureError(
                f"the webhook was signed {when}; {TIMESTAMP_TOLERANCE_S} s are allowed",
                hint="either it is sent again by somebody, or this machine's clock is wrong",
            )
        signed = read_signature(signature)
        if len(signed) != 64:
            raise SignatureError(
                f"the webhook's {SIGNATURE_HEADER} is not the base64 of 64 bytes", hint="it does not come from Telnyx"
            )
        try:
            key.verify(signed, timestamp.encode() + b"|" + request.body)
        except InvalidSignature:
            raise SignatureError(
                f"the webhook's {SIGNATURE_HEADER} does not match",
                hint="TELNYX_PUBLIC_KEY is not that of the account that owns the number, or something on the way "
                "rewrote the body",
            ) from None

    def _public_key(self) -> Ed25519PublicKey | None:
        if written := self.credential("TELNYX_PUBLIC_KEY"):
            return Ed25519PublicKey.from_public_bytes(read_key("TELNYX_PUBLIC_KEY", written))
        private = self.private_key()
        return private.public_key() if private is not None else None

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return an event's id, which Telnyx's retries repeat; TeXML has none, so its signature, however it is written.

        https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
        """
        try:
            data = _read_event(request) or {}
        except RemoteProtocolError:
            data = {}
        event_id = text_or_nothing(data.get("id"))
        if event_id:
            return event_id, event_id
        return read_signature(request.headers.get(SIGNATURE_HEADER, "")).hex(), ""


def _read_report(kind: str, payload: Mapping[str, Any]) -> CallUpdate:
    """Return what an event of that `kind` reports."""
    cause, named = text_or_nothing(payload.get("hangup_cause")), payload.get("call_control_id")
    refusal = error_code(payload)
    failed = kind.endswith((".failed", ".error")) or cause not in _NORMAL_CAUSES or bool(refusal)
    told = details({**payload, "telnyx_error": refusal}, _DETAILS)
    call_id, meaning = named if isinstance(named, str) else "", read_meaning(kind, payload)
    return report(call_id, kind, told, failed=failed, ended=kind == "call.hangup", **meaning._asdict())


def _read_event(request: WebhookRequest) -> dict[str, Any] | None:
    """
    Return the event that a webhook of Call Control carries; ``None`` if it is one of TeXML.

    Raises:
        RemoteProtocolError: If it is neither.
    """
    if request.method == "GET" or not request.body.lstrip().startswith(b"{"):
        return None
    data = request.read_json().get("data")
    if not isinstance(data, dict):
        raise broken("no-call", f"the JSON's data is {shown(data)}, so it is not a Telnyx event")
    return data
