"""
Telnyx: webhooks of TeXML and of Call Control, their answers, and media streaming.

A number is served by a TeXML application, whose webhook is answered with a document, or by a Call Control one, whose
events are acknowledged and answered with requests to the API. The stream is the same.

TeXML webhooks: https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
TeXML: https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
Call Control: https://developers.telnyx.com/api-reference/call-commands/answer-call
Stream messages: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
Signatures: https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import uuid
from base64 import b64encode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit
from xml.etree.ElementTree import Element

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import (
    Answer,
    Callback,
    CallUpdate,
    Command,
    Finding,
    HttpRequest,
    Level,
    NoStream,
    Occasion,
    Progress,
    Quirk,
    Redirect,
    Side,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.documents import (
    BUSY,
    document,
    element,
    in_words,
    read_action,
    read_course,
    read_document,
    read_status_callback,
    read_stream_url,
    write_rest,
)
from wsvoice.providers.events import (
    Audio,
    Clear,
    Connected,
    Digit,
    Event,
    Mark,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.messages import (
    broken,
    read_counter,
    read_object,
    read_parameters,
    read_payload,
    read_signature,
    read_text,
    read_time,
    shown,
    write_object,
    write_payload,
    write_time,
)
from wsvoice.providers.reports import details, read_form_report, report
from wsvoice.providers.twilio import read_call_command

API_BASE_URL = "https://api.telnyx.com/v2"
SIGNATURE_HEADER = "telnyx-signature-ed25519"
TIMESTAMP_HEADER = "telnyx-timestamp"
#: How far a webhook's timestamp may be from our clock, as in Telnyx's own libraries.
#: https://github.com/team-telnyx/telnyx-python/blob/master/src/telnyx/lib/webhook_verification.py
TIMESTAMP_TOLERANCE_S = 300
#: Bytes of an answer that are read. Telnyx names no limit; no call needs a longer document.
DOCUMENT_LIMIT = 64 * 1024
#: How long a piece of the bot's audio may be.
#: https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
MIN_PIECE_MS, MAX_PIECE_MS = 20, 30_000
DIGITS = frozenset("0123456789*#ABCD")
#: The rates at which each encoding is streamed; Telnyx documents 16 kHz for L16, its libraries name more.
#: https://github.com/team-telnyx/telnyx-python/blob/master/src/telnyx/types/stream_bidirectional_sampling_rate.py
SAMPLE_RATES = {
    Encoding.PCMU: (8000,),
    Encoding.PCMA: (8000,),
    Encoding.L16: (16000, 8000, 22050, 24000, 48000),
}

#: What Telnyx can stream and we cannot read.
_FOREIGN_CODECS = ("G722", "OPUS", "AMR-WB")
_AUDIO_SETTINGS = ("TELNYX_STREAM_CODEC", "TELNYX_L16_BYTE_ORDER")
#: Ends of a call in which nothing failed; others are worth a warning.
#: https://developers.telnyx.com/api-reference/callbacks/call-hangup
_CALM_CAUSES = frozenset(
    {"", "normal_clearing", "originator_cancel", "timeout", "time_limit", "user_busy", "no_answer", "call_rejected"}
)
#: What an event of Call Control says of what happened.
_TOLD = ("hangup_cause", "hangup_source", "sip_hangup_cause", "failure_reason", "result", "reason", "direction")
_FIELD_LIMIT = 256
_TEXT_LIMIT = 200
_UNKNOWN_LIMIT = 64
_WORDS_LIMIT = 60
_TIMESTAMP_DIGITS = 12
_COMMAND = re.compile(r".*/calls/([^/]+)/actions/([a-z_]+)")
_CALL = re.compile(r".*/calls/([^/]+)")
_TEXML_CALL = re.compile(r".*/texml/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?")
_FORM = "application/x-www-form-urlencoded"
#: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
_INVALID_MEDIA, _MALFORMED_FRAME = ("100004", "invalid_media"), ("100003", "malformed_frame")


class _Names(NamedTuple):
    """What an answer calls the settings of a stream."""

    codec: str
    mode: str
    outbound_codec: str
    outbound_rate: str
    track: str


_TEXML_NAMES = _Names("codec", "bidirectionalMode", "bidirectionalCodec", "bidirectionalSamplingRate", "track")
_API_NAMES = _Names(
    "stream_codec",
    "stream_bidirectional_mode",
    "stream_bidirectional_codec",
    "stream_bidirectional_sampling_rate",
    "stream_track",
)


class Telnyx:
    """
    Telnyx, with credentials by environment variable name.

    ==========================  =================================================================================
    ``TELNYX_PUBLIC_KEY``       verifies webhooks; base64, from the portal under *Keys & Credentials*
    ``TELNYX_API_KEY``          answers and ends Call Control calls; TeXML needs none
    ``TELNYX_BASE_URL``         another address of the API, with its version, as in Telnyx's own libraries
    ``TELNYX_PRIVATE_KEY``      not Telnyx's but ours: base64 of the 32-byte seed that test calls are signed with
    ``TELNYX_STREAM_CODEC``     ours: the audio to ask for, both ways: ``PCMU`` (default), ``PCMA`` or ``L16``
    ``TELNYX_L16_BYTE_ORDER``   ours: ``little`` (default) or ``big``; Telnyx does not document it
    ==========================  =================================================================================

    Raises:
        ConfigError: If the codec or the byte order is none of these.
    """

    name = "telnyx"
    title = "Telnyx"
    credential_names: tuple[str, ...] = (
        "TELNYX_PUBLIC_KEY",
        "TELNYX_PRIVATE_KEY",
        "TELNYX_API_KEY",
        "TELNYX_BASE_URL",
        "TELNYX_STREAM_CODEC",
        "TELNYX_L16_BYTE_ORDER",
    )
    signs = True
    frame_ms = 20
    #: https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
    ordered = False
    #: Telnyx's own default is GET, whose signature is not documented and cannot cover the query.
    webhook_method: Literal["GET", "POST"] = "POST"
    webhook_place = "voice URL of the TeXML application"
    #: Telnyx names no limit, but a longest message; an hour is more than any bot means to queue.
    queue_limit_s = 3600.0
    #: https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
    renames_dialled_calls = True
    cleared_marks: Literal["returned", "dropped"] = "returned"
    quirks: Mapping[str, Quirk] = {
        "reorder": Quirk("0", "how likely two neighbouring pieces of audio change places, from 0 to 1"),
        "leg-codec": Quirk(
            "PCMU", "the codec of the call's leg, which is streamed where the answer names none", ("PCMU", "PCMA")
        ),
        "webhook": Quirk("texml", "what kind of application the number belongs to", ("texml", "call-control")),
    }

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = {name: value for name in self.credential_names if (value := credentials.get(name))}
        # RTP has the network's order, but what is told of Telnyx's own demo, and most bridges that run, have the other:
        # https://github.com/team-telnyx/realtime-ai-demo
        self._big_endian = self._setting("TELNYX_L16_BYTE_ORDER", "little", ("little", "big")) == "big"
        codec = Encoding(self._setting("TELNYX_STREAM_CODEC", "PCMU", tuple(Encoding)))
        self._format = self._audio_format(codec, SAMPLE_RATES[codec][0])

    def _credential(self, name: str) -> str:
        return self._credentials.get(name, "")

    def _setting(self, name: str, default: str, choices: Sequence[str]) -> str:
        value = self._credential(name) or default
        if value not in choices:
            raise ConfigError(f"{name} is {shown(value)}", hint=f"set it to one of {', '.join(choices)}, or not at all")
        return value

    def _audio_format(self, encoding: Encoding, sample_rate: int) -> AudioFormat:
        return AudioFormat(encoding, sample_rate, encoding is Encoding.L16 and self._big_endian)

    # The webhook

    def can_verify(self) -> bool:
        """Whether the key that webhooks are verified with is known."""
        return bool(self._credential("TELNYX_PUBLIC_KEY") or self._credential("TELNYX_PRIVATE_KEY"))

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a webhook has the fields of TeXML, with a call's id of Telnyx's shape, or is a Call Control event."""
        try:
            data = _read_event(request)
        except RemoteProtocolError:
            return False
        if data is None:
            return bool(re.match(r"v\d+:", request.fields.get("CallSid", ""))) or "CallSidLegacy" in request.fields
        payload = data.get("payload")
        return data.get("record_type") == "event" and isinstance(payload, dict) and "call_control_id" in payload

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is Telnyx's start: snake case, the stream's id outside, the call's inside."""
        start = message.get("start")
        return (
            message.get("event") == "start"
            and "stream_id" in message
            and isinstance(start, Mapping)
            and "call_control_id" in start
        )

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a webhook announces: TeXML's form or query, or Call Control's ``call.initiated``.

        TeXML's callbacks, and all other events of Call Control, report on a call.

        Raises:
            RemoteProtocolError: If there is no call's id, or a field is none that Telnyx would send.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
        https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        """
        data = _read_event(request)
        return self._read_texml(request.fields) if data is None else self._read_call_control(data)

    def _read_texml(self, fields: Mapping[str, str]) -> Call | CallUpdate:
        if not fields.get("CallSid"):
            raise broken("no-call", "the request has no CallSid, so it is not a webhook of Telnyx's")
        # https://developers.telnyx.com/api-reference/callbacks/texml-call-answered
        if (update := read_form_report(fields)) is not None:
            return update
        # No field is documented to tell the direction. Instructions for a call that comes in are fetched while it
        # rings, for one that goes out when it has been answered.
        direction = fields.get("Direction") or ("outbound" if fields.get("CallStatus") == "in-progress" else "inbound")
        return self._checked(
            Call(
                provider=self.name,
                call_id=fields["CallSid"],
                account_id=fields.get("AccountSid", ""),
                from_number=fields.get("From", ""),
                to_number=fields.get("To", ""),
                direction="outbound" if direction.startswith("outbound") else "inbound",
            )
        )

    def _read_call_control(self, data: Mapping[str, Any]) -> Call | CallUpdate:
        kind, payload = data.get("event_type"), data.get("payload")
        if not isinstance(kind, str) or not isinstance(payload, dict):
            raise broken("no-call", "the JSON is not an event of Telnyx's")
        # Users have seen both spellings, though the documents know the dots alone.
        kind = kind.replace("_", ".")
        # A call that goes out is told to stream when it is dialled; there is nothing to answer.
        if kind != "call.initiated" or _text(payload.get("direction")).startswith("out"):
            cause = _text(payload.get("hangup_cause"))
            failed = kind.endswith((".failed", ".error")) or cause not in _CALM_CAUSES
            call_id = payload.get("call_control_id")
            return report(
                call_id if isinstance(call_id, str) else "",
                kind,
                details(payload, _TOLD),
                failed=failed,
                ended=kind == "call.hangup",
            )
        return self._checked(
            Call(
                provider=self.name,
                call_id=read_text(payload.get("call_control_id"), "no-call", "call_control_id"),
                from_number=_text(payload.get("from")),
                to_number=_text(payload.get("to")),
                control="api",
            )
        )

    def _checked(self, call: Call) -> Call:
        # They are logged, repeated in the answer, and may be anybody's where webhooks are not verified.
        for value in (call.call_id, call.account_id, call.from_number, call.to_number):
            if len(value) > _FIELD_LIMIT or not value.isprintable():
                raise broken("bad-field", f"a field of the webhook cannot be Telnyx's: {shown(value)}")
        return call

    def webhook(
        self,
        call: Call,
        url: str,
        *,
        method: str = "POST",
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest:
        """
        Render the webhook that Telnyx would send for `call`, not yet signed.

        Args:
            call: The call.
            url: The application's address.
            method: How TeXML is asked for; an event of Call Control is always posted.
            quirks: ``webhook`` is ``texml`` or ``call-control``.
            now: Unix time in seconds, at which the call began.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-instruction-fetching
        https://developers.telnyx.com/api-reference/callbacks/texml-call-initiated
        """
        if call.control == "api" or (quirks or {}).get("webhook") == "call-control":
            return self._initiated(call, url, now)
        status = "in-progress" if call.direction == "outbound" else "ringing"
        return _request(url, method, self._texml_fields(call, status, now))

    def next_webhook(
        self,
        call: Call,
        callback: Callback,
        occasion: Occasion,
        *,
        answered: bool = True,
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest:
        """
        Render the request for TeXML's next document: the first one's fields, and for an action the ended stream.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/redirect
        """
        status = "in-progress" if answered or call.direction == "outbound" else "ringing"
        fields = self._texml_fields(call, status, now)
        if occasion == "action":
            fields["StreamSid"] = call.stream_id
        return _request(callback.url, callback.method, fields)

    def stream_webhook(
        self, call: Call, callback: Callback, status: StreamStatus, *, name: str = "", error: str = "", now: float = 0.0
    ) -> WebhookRequest:
        """
        Render what a stream's ``statusCallback`` is told, not yet signed.

        https://developers.telnyx.com/api-reference/callbacks/texml-stream
        """
        fields = {
            "AccountSid": call.account_id,
            "CallSid": call.call_id,
            "CallSidLegacy": call.call_id,
            "StreamEvent": f"stream-{status}",
            "StreamName": name,
            "StreamSid": call.stream_id,
            "Timestamp": write_time(now),
            **({"StreamError": error} if error else {}),
        }
        return _request(callback.url, callback.method, fields)

    def _texml_fields(self, call: Call, status: str, now: float) -> dict[str, str]:
        return {
            "AccountSid": call.account_id,
            "ApiVersion": "v2/texml",
            "CallInitiatedAt": write_time(now),
            "CallSessionId": _uuid("session", call.call_id),
            "CallSid": call.call_id,
            # "Legacy call identifier, same as CallSid."
            "CallSidLegacy": call.call_id,
            "CallStatus": status,
            "CallerId": call.from_number,
            "CallerName": call.from_number,
            "CallingPartyType": "pstn",
            "ConnectionId": _connection_id(call),
            "Direction": "outbound" if call.direction == "outbound" else "inbound",
            "From": call.from_number,
            "FromSipUri": f"{call.from_number}@sip.telnyx.com",
            "To": call.to_number,
            "ToSipUri": f"{call.to_number}@sip.telnyx.com",
        }

    def progress_webhook(
        self,
        call: Call,
        url: str,
        progress: Progress,
        *,
        duration_s: float = 0.0,
        method: str = "POST",
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest | None:
        """
        Render the event that Call Control sends when `call` has come that far; ``None`` for TeXML, not yet signed.

        https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
        """
        if call.control != "api" and (quirks or {}).get("webhook") != "call-control":
            return None
        if progress == "ended":
            hangup = {"hangup_cause": "normal_clearing", "hangup_source": "caller", "sip_hangup_cause": "200"}
            return self._event(call, url, "call.hangup", hangup, now)
        kind = {"answered": "call.answered", "streaming": "streaming.started"}[progress]
        return self._event(call, url, kind, {}, now)

    def _initiated(self, call: Call, url: str, now: float) -> WebhookRequest:
        outbound = call.direction == "outbound"
        content = {
            "direction": "outgoing" if outbound else "incoming",
            "state": "bridging" if outbound else "parked",
            "caller_id_name": call.from_number,
            "calling_party_type": "pstn",
            "start_time": write_time(now),
        }
        return self._event(call, url, "call.initiated", content, now)

    def _event(self, call: Call, url: str, kind: str, details: Mapping[str, str], now: float) -> WebhookRequest:
        content = {
            "data": {
                "record_type": "event",
                "event_type": kind,
                # The same when Telnyx repeats the event, so it follows from what the event is about.
                "id": _uuid(kind, call.call_id),
                "occurred_at": write_time(now),
                "payload": {
                    "call_control_id": call.call_id,
                    "connection_id": _connection_id(call),
                    "call_leg_id": _uuid("leg", call.call_id),
                    "call_session_id": _uuid("session", call.call_id),
                    "client_state": None,
                    "from": call.from_number,
                    "to": call.to_number,
                    **details,
                },
            },
            "meta": {"attempt": 1, "delivered_to": url},
        }
        headers = {"user-agent": "telnyx-webhooks", "content-type": "application/json"}
        return WebhookRequest("POST", url, headers, write_object(content).encode())

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """
        Invent the key pair of a test call, one key for each end, and the bot's key to the API.

        Both ends keep the settings of the audio; `seed` is at least 32 random bytes.
        """
        key = hashlib.sha256(b"key" + seed).digest()
        public = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        kept = {name: value for name, value in self._credentials.items() if name in _AUDIO_SETTINGS}
        api_key = f"KEY{hashlib.sha256(b'api' + seed).hexdigest()[:32].upper()}"
        carrier = {"TELNYX_PRIVATE_KEY": b64encode(key).decode(), **kept}
        return carrier, {"TELNYX_PUBLIC_KEY": b64encode(public).decode(), "TELNYX_API_KEY": api_key, **kept}

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent an inbound call and its stream, ids like Telnyx's; `seed` is at least 32 random bytes."""
        digest = hashlib.sha512(seed).digest()
        return Call(
            provider=self.name,
            call_id=f"v3:{urlsafe_b64encode(digest[:40]).rstrip(b'=').decode()}",
            stream_id=str(uuid.UUID(bytes=digest[40:56], version=4)).upper(),
            account_id=str(uuid.UUID(bytes=hashlib.sha256(seed).digest()[:16], version=4)),
            from_number=from_number,
            to_number=to_number,
            parameters=dict(parameters),
        )

    # The answer

    def answer(self, call: Call, stream_url: str) -> Answer:
        """
        Render the TeXML that connects `call` to a two-way stream, or the request that answers it with one.

        Everything with a harmful default is written out: without a codec Telnyx sends that of the call's leg, without
        the mode it takes what we send for MP3 files, and it dials a stream again that was closed.

        Raises:
            LocalProtocolError: If Telnyx could not use `stream_url` or one of the parameters.
            ConfigError: If the call is one of Call Control, and the API's key is not known.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
        https://developers.telnyx.com/api-reference/call-commands/answer-call
        """
        url = urlsplit(stream_url)
        if url.scheme not in ("wss", "ws") or not url.netloc:
            raise LocalProtocolError("bad-url", f"a stream's URL starts with wss://, not {shown(stream_url)}")
        if "" in call.parameters:
            raise LocalProtocolError("bad-parameter", "a custom parameter has no name")
        codec, rate = self._format.encoding.value, self._format.sample_rate
        if call.control == "api":
            settings: dict[str, Any] = {
                "stream_url": stream_url,
                "stream_track": "inbound_track",
                "stream_codec": codec,
                "stream_bidirectional_mode": "rtp",
                "stream_bidirectional_codec": codec,
                "stream_bidirectional_sampling_rate": rate,
            }
            if call.parameters:
                settings["custom_parameters"] = [
                    {"name": name, "value": value} for name, value in call.parameters.items()
                ]
            return replace(self.acknowledge(), requests=(self._command(call, "answer", settings),))
        stream = element(
            "Stream",
            {
                "url": stream_url,
                "track": "inbound_track",
                "codec": codec,
                "bidirectionalMode": "rtp",
                "bidirectionalCodec": codec,
                "bidirectionalSamplingRate": str(rate),
                "enableReconnect": "false",
            },
            *(element("Parameter", {"name": name, "value": value}) for name, value in call.parameters.items()),
        )
        return Answer(document(element("Response", None, element("Connect", None, stream))))

    def acknowledge(self) -> Answer:
        """
        Render an empty answer, for status callbacks and for all events of Call Control.

        https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
        """
        return Answer("", media_type="text/plain")

    def busy(self, call: Call | None = None) -> Answer:
        """
        Render the TeXML that rejects a call with a busy tone, or the request that does.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/reject
        https://developers.telnyx.com/api-reference/call-commands/reject-a-call
        """
        if call is not None and call.control == "api":
            if not self._credential("TELNYX_API_KEY"):
                return self.acknowledge()
            return replace(self.acknowledge(), requests=(self._command(call, "reject", {"cause": "USER_BUSY"}),))
        return Answer(document(element("Response", None, element("Reject", {"reason": "busy"}))))

    def read_answer(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest:
        """
        Read TeXML as Telnyx would, down to its ``<Connect><Stream>``.

        A ``<Start><Stream>`` speaks as well, but the document goes on at once.

        Args:
            body: The document.
            content_type: The answer's ``Content-Type``.
            base_url: Where the document came from, which a relative stream URL starts at.
            quirks: ``leg-codec`` is what is streamed where the document names no codec.

        Raises:
            RemoteProtocolError: If no stream comes of it. Kinds: ``too-large``, ``bad-xml``, ``rejected``,
                ``hung-up``, ``redirected``, ``no-stream``, ``bad-url``, ``unsupported-codec``.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
        """
        findings: list[Finding] = []
        media_type = content_type.partition(";")[0].strip().lower()
        root = _read_response(body)
        if media_type not in ("text/xml", "application/xml"):
            findings.append(Finding("W3", "warn", f"the answer's type is {shown(media_type)}; send application/xml"))
        skipped: list[str] = []
        verbs = list(root)
        for index, verb in enumerate(verbs):
            if verb.tag in ("Connect", "Start") and (stream := verb.find("Stream")) is not None:
                then = [in_words(later) for later in verbs[index + 1 :]]
                findings += _judge_verb(verb, then)
                action = read_action(verb, base_url, findings)
                request = self._read_stream(stream, base_url, skipped, then, findings, quirks or {})
                # What follows a <Start> has run by the time that its stream ends.
                rest = write_rest(verbs[index + 1 :]) if verb.tag == "Connect" else b""
                return replace(request, action=action, rest=rest)
            if verb.tag == "Reject":
                reason = "busy" if verb.get("reason") == "busy" else "rejected"
                if reason == "busy":
                    raise broken("rejected", BUSY)
                raise broken("rejected", f"the bot turned the call away with <Reject> ({reason})")
            if verb.tag == "Hangup":
                raise broken("hung-up", "the bot hung up with <Hangup> before any stream")
            if verb.tag == "Redirect":
                raise broken("redirected", "the answer is a <Redirect>; dial the URL that it names")
            skipped.append(in_words(verb))
        for verb in verbs:
            if verb.tag == "Connect":
                inside = ", ".join(f"<{noun.tag}>" for noun in verb) or "nothing"
                raise broken("no-stream", f"<Connect> holds {inside[:_WORDS_LIMIT]}; it needs a <Stream>")
        seen = ", ".join(f"<{verb.tag}>" for verb in verbs) or "nothing"
        raise broken("no-stream", f"the answer holds {seen[:_WORDS_LIMIT]}, but no <Connect><Stream>")

    def read_document(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | Redirect | NoStream:
        """
        Read what a document does first of what changes a call's course.

        Raises:
            RemoteProtocolError: If Telnyx could not read it. Kinds: ``too-large``, ``bad-xml``, ``bad-url``,
                ``unsupported-codec``.

        https://developers.telnyx.com/docs/voice/programmable-voice/texml-fundamentals
        """
        course = read_course(list(_read_response(body)), base_url, opens_stream=_opens_stream)
        return course or self.read_answer(body, content_type, base_url=base_url, quirks=quirks)

    def _read_stream(
        self,
        stream: Element,
        base_url: str,
        skipped: Sequence[str],
        then: Sequence[str],
        findings: list[Finding],
        quirks: Mapping[str, str],
    ) -> StreamRequest:
        url = read_stream_url(stream.get("url", "").strip(), base_url)
        if url.scheme == "ws":
            findings.append(Finding("W3", "warn", "the stream's URL is ws://; Telnyx refuses all but wss://"))
        parameters = {}
        for parameter in stream.findall("Parameter"):
            if name := parameter.get("name", ""):
                parameters[name] = parameter.get("value", "")
            else:
                findings.append(Finding("W3", "warn", "a <Parameter> has no name"))
        inbound, outbound = self._read_formats(lambda name: stream.get(name, ""), _TEXML_NAMES, quirks, findings)
        reconnects = stream.get("enableReconnect", "true").strip().lower() != "false"
        if reconnects:
            text = (
                'dials the stream again when the bot closes it, so the call does not end: set enableReconnect="false"'
            )
            findings.append(_w4("warn", f"Telnyx {text}"))
        return StreamRequest(
            url=urlunsplit((url.scheme, url.netloc, url.path, url.query, "")),
            parameters=parameters,
            format=inbound,
            skipped=skipped,
            then=then,
            findings=findings,
            outbound_format=outbound,
            reconnects=reconnects,
            name=stream.get("name", ""),
            status_callback=read_status_callback(stream, base_url, findings),
        )

    def read_answer_request(
        self, request: WebhookRequest, *, call_id: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest | None:
        """
        Read the stream that an ``answer`` command of Call Control asks for; ``None`` if it is another request.

        Args:
            request: As the API gets it.
            call_id: The one call that there is to answer; empty for any.
            quirks: ``leg-codec`` is what is streamed where the command names no codec.

        Raises:
            RemoteProtocolError: If no stream comes of it. Kinds: ``not-json``, ``not-object``, ``no-stream``,
                ``bad-url``, ``unsupported-codec``.

        https://developers.telnyx.com/api-reference/call-commands/answer-call
        """
        answered, action = _read_command(request)
        if action != "answer" or (call_id and answered != call_id):
            return None
        content = read_object(request.body.decode("utf-8", "replace"))
        written = content.get("stream_url")
        if not isinstance(written, str) or not written:
            raise broken("no-stream", "the call is answered without a stream_url")
        findings: list[Finding] = []
        url = read_stream_url(written, "")
        if url.scheme == "ws":
            findings.append(Finding("W3", "warn", "the stream's URL is ws://; Telnyx refuses all but wss://"))

        def get(name: str) -> str:
            value = content.get(name)
            return str(value) if isinstance(value, str | int) else ""

        inbound, outbound = self._read_formats(get, _API_NAMES, quirks or {}, findings)
        token = get("stream_auth_token")
        return StreamRequest(
            url=urlunsplit((url.scheme, url.netloc, url.path, url.query, "")),
            parameters=_read_parameters(content.get("custom_parameters")),
            format=inbound,
            headers={"Authorization": f"Bearer {token}"} if token and token.isprintable() else {},
            # The stream's end is not the call's.
            then=["silence, until a request hangs up"],
            findings=findings,
            outbound_format=outbound,
        )

    def _read_formats(
        self, get: Callable[[str], str], names: _Names, quirks: Mapping[str, str], findings: list[Finding]
    ) -> tuple[AudioFormat, AudioFormat]:
        """Return the formats of the caller's and of the bot's audio, and add to `findings` what Telnyx would spoil."""
        track = get(names.track) or "inbound_track"
        if track == "both_tracks":
            findings.append(_w4("warn", f"{names.track} is both_tracks, so the bot hears itself as well"))
        elif track != "inbound_track":
            findings.append(_w4("fail", f"{names.track} is {shown(track)}, so the bot does not hear the caller"))
        mode = get(names.mode)
        if mode != "rtp":
            what = f"{names.mode} is {shown(mode)}" if mode else f"there is no {names.mode}"
            text = f'takes what the bot sends for MP3 files, and plays nothing: set {names.mode} to "rtp"'
            findings.append(_w4("fail", f"{what}: Telnyx {text}"))
        return self._read_inbound(get(names.codec), names, quirks, findings), self._read_outbound(get, names, findings)

    def _read_inbound(
        self, codec: str, names: _Names, quirks: Mapping[str, str], findings: list[Finding]
    ) -> AudioFormat:
        if codec == Encoding.L16:
            return self._audio_format(Encoding.L16, SAMPLE_RATES[Encoding.L16][0])
        if codec in (Encoding.PCMU, Encoding.PCMA):
            return AudioFormat(Encoding(codec))
        if codec in ("", "default"):
            what = f"{names.codec} is default" if codec else f"there is no {names.codec}"
            text = "A-law in most of Europe and in India"
            findings.append(_w4("warn", f'{what}: Telnyx sends the codec of the call\'s leg, {text}; set it to "PCMU"'))
        elif codec in _FOREIGN_CODECS:
            text = "Telnyx turns nothing but PCMU and PCMA into each other, and sends the codec of the call's leg"
            findings.append(_w4("warn", f"{names.codec} is {codec}: {text}"))
        else:
            findings.append(_w4("fail", f"{names.codec} is {shown(codec)}, which Telnyx does not know"))
        return AudioFormat(Encoding(quirks.get("leg-codec") or self.quirks["leg-codec"].default))

    def _read_outbound(self, get: Callable[[str], str], names: _Names, findings: list[Finding]) -> AudioFormat:
        codec, written = get(names.outbound_codec) or "PCMU", get(names.outbound_rate)
        if codec not in tuple(Encoding):
            why = "which a test call cannot play" if codec in _FOREIGN_CODECS else "which Telnyx does not know"
            raise broken("unsupported-codec", f"{names.outbound_codec} is {shown(codec)}, {why}; set it to PCMU")
        encoding = Encoding(codec)
        rates = SAMPLE_RATES[encoding]
        rate = read_counter(written or "8000")
        if rate not in rates:
            allowed = ", ".join(map(str, sorted(rates)))
            text = f"{codec} goes with {allowed}"
            findings.append(_w4("fail", f"{names.outbound_rate} is {shown(written)}, but {text}"))
            return self._audio_format(encoding, rates[0])
        if encoding is Encoding.L16 and not written:
            text = "Telnyx takes the bot's audio for 8000 Hz"
            findings.append(_w4("warn", f"there is no {names.outbound_rate} for L16: {text}"))
        return self._audio_format(encoding, rate)

    # Signatures

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless Telnyx signed this webhook within the last 300 seconds.

        What is signed is the timestamp and the raw body; the URL is not. For a GET, which has no body, nothing is
        documented: a signature of the timestamp alone is accepted, and it cannot vouch for the query. A POST is
        better. A GET that does carry a body is refused, for it may be a POST of Telnyx's that somebody sends again
        with a query of their own.

        Args:
            request: With the body just as it came.
            now: Unix time in seconds.

        Raises:
            SignatureError: If it is not signed, or too old.
            ConfigError: If the public key is not one.

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

    def replay_key(self, request: WebhookRequest) -> tuple[str, str]:
        """
        Return an event's id, which Telnyx's retries repeat; TeXML has none, so its signature, however it is written.

        https://developers.telnyx.com/docs/voice/programmable-voice/receiving-webhooks
        """
        try:
            data = _read_event(request)
        except RemoteProtocolError:
            data = None
        event_id = _text(data.get("id")) if data is not None else ""
        if 0 < len(event_id) <= _FIELD_LIMIT:
            return event_id, event_id
        return read_signature(request.headers.get(SIGNATURE_HEADER, "")).hex(), ""

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """Return in words that there is nothing to verify, for Telnyx does not sign the upgrade."""
        return "no URL, for Telnyx signs no upgrade"

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` with Telnyx's signature and timestamp; as it is where the private key is not known."""
        key = self._private_key()
        if key is None:
            return request
        timestamp = str(int(now))
        signature = b64encode(key.sign(timestamp.encode() + b"|" + request.body)).decode()
        return replace(request, headers={**request.headers, SIGNATURE_HEADER: signature, TIMESTAMP_HEADER: timestamp})

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return no headers: Telnyx documents none for its WebSocket's upgrade."""
        return {}

    def _public_key(self) -> Ed25519PublicKey | None:
        written = self._credential("TELNYX_PUBLIC_KEY")
        if not written:
            private = self._private_key()
            return private.public_key() if private is not None else None
        return Ed25519PublicKey.from_public_bytes(_read_key("TELNYX_PUBLIC_KEY", written))

    def _private_key(self) -> Ed25519PrivateKey | None:
        written = self._credential("TELNYX_PRIVATE_KEY")
        if not written:
            return None
        return Ed25519PrivateKey.from_private_bytes(_read_key("TELNYX_PRIVATE_KEY", written))

    # The REST API

    def has_credentials(self, request: WebhookRequest) -> bool:
        """Telnyx's streams carry no credentials of the user's."""
        return False

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """
        Return the reason that the event ``streaming.failed`` gives.

        https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming
        """
        return "connection_failed"

    def hang_up(self, call: Call) -> HttpRequest | None:
        """
        Return the command that ends a Call Control call, if the API's key is known.

        A TeXML call ends when the stream is closed, because its document says ``enableReconnect="false"`` and nothing
        follows.

        https://developers.telnyx.com/docs/v1/call-control/sending-commands
        """
        if call.control != "api" or not self._credential("TELNYX_API_KEY"):
            return None
        return self._command(call, "hangup", {})

    def is_authorised(self, request: WebhookRequest) -> bool:
        """
        Whether a request to the API carries the key; true if it is not known.

        https://developers.telnyx.com/development/api-fundamentals/authentication
        """
        key = self._credential("TELNYX_API_KEY")
        given = request.headers.get("authorization", "")
        return not key or hmac.compare_digest(given.encode(), f"Bearer {key}".encode())

    def read_command(self, request: WebhookRequest) -> Command | None:
        """
        Read a command of Call Control, or what is asked of a call resource of TeXML.

        Raises:
            RemoteProtocolError: If it lacks what it needs.

        https://developers.telnyx.com/api-reference/call-commands/transfer-call
        https://developers.telnyx.com/api-reference/call-commands/send-dtmf
        https://developers.telnyx.com/api-reference/texml-rest-commands/update-call
        """
        path = urlsplit(request.url).path
        if (match := _TEXML_CALL.fullmatch(path)) and request.method in ("GET", "POST"):
            return read_call_command(request, unquote(match[1]), "Texml")
        if (match := _CALL.fullmatch(path)) and request.method == "GET":
            return Command("look-up", unquote(match[1]))
        call_id, action = _read_command(request)
        if action == "hangup":
            return Command("hang-up", call_id)
        if action == "transfer":
            to = _command_text(request, "to")
            return Command("transfer", call_id, to=to)
        if action == "send_dtmf":
            digits = _command_text(request, "digits")
            if not (DIGITS | frozenset("wW")).issuperset(digits):
                raise broken("bad-command", f"digits is {shown(digits)}, not of 0-9 A-D * # w W")
            return Command("digits", call_id, digits=digits)
        return None

    def command_answer(
        self, command: Command, call: Call, status: Literal["ringing", "in-progress", "completed"]
    ) -> Answer:
        """
        Render the answer of a command, or a call.

        The simulation does not tell the two flavours apart: a call that is looked up has the fields of both.

        https://developers.telnyx.com/api-reference/call-information/retrieve-a-call-status
        """
        content: dict[str, Any] = {"data": {"result": "ok"}}
        if command.kind in ("look-up", "update") or (command.kind == "hang-up" and call.control == "document"):
            content = {
                "data": {
                    "record_type": "call",
                    "call_control_id": call.call_id,
                    "call_leg_id": _uuid("leg", call.call_id),
                    "call_session_id": _uuid("session", call.call_id),
                    "is_alive": status != "completed",
                    "result": "ok",
                },
                "account_sid": call.account_id,
                "direction": call.direction,
                "from": call.from_number,
                "sid": call.call_id,
                "status": status,
                "to": call.to_number,
                "uri": f"/v2/texml/Accounts/{call.account_id}/Calls/{call.call_id}.json",
            }
        return Answer(write_object(content), "application/json")

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """
        Render an error of the API's; what lacks a field is 422 there.

        https://developers.telnyx.com/development/api-fundamentals/api-errors
        """
        code, title = {
            400: ("10015", "Bad Request"),
            401: ("10009", "Authentication failed"),
            404: ("10005", "Resource not found"),
        }[status]
        error = {"code": code, "title": title, "detail": message}
        return Answer(write_object({"errors": [error]}), "application/json", 422 if status == 400 else status)

    def _command(self, call: Call, action: str, content: Mapping[str, Any]) -> HttpRequest:
        """
        Return the request that carries out `action` for `call`.

        Its ``command_id`` is the same each time, so that an event that came twice is answered once.

        Raises:
            ConfigError: If the API's key is not known.
        """
        key = self._credential("TELNYX_API_KEY")
        if not key:
            raise ConfigError(
                "a Call Control call is answered through Telnyx's API, whose key is not known",
                hint="set TELNYX_API_KEY, or use a TeXML application, which needs none",
            )
        base = (self._credential("TELNYX_BASE_URL") or API_BASE_URL).rstrip("/")
        return HttpRequest(
            "POST",
            f"{base}/calls/{quote(call.call_id, safe='')}/actions/{action}",
            {"authorization": f"Bearer {key}", "content-type": "application/json", "accept": "application/json"},
            write_object({**content, "command_id": _uuid(action, call.call_id)}).encode(),
        )

    # The stream

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> TelnyxStream:
        """Return a new stream's end; the quirks of Telnyx's carrier are not in its messages."""
        return TelnyxStream(side, outbound_format=self._format, big_endian=self._big_endian)


class TelnyxStream:
    """
    One end of a media stream.

    The start message says how the caller's audio is encoded, the answer alone how the bot's is: so the latter is told
    to both ends, as :attr:`outbound_format`.

    Args:
        side: Which end.
        outbound_format: The format of the bot's audio.
        big_endian: The byte order of ``L16``, which no message tells.

    https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
    """

    def __init__(self, side: Side, *, outbound_format: AudioFormat = PCMU_8K, big_endian: bool = False) -> None:
        self.side = side
        self.format = PCMU_8K
        self.outbound_format = outbound_format
        self._big_endian = big_endian
        self._stream_id = ""
        self._call_id = ""
        self._account_id = ""
        self._sequence = 0
        self._chunks: dict[str, int] = defaultdict(int)
        self._sent_bytes: dict[str, int] = defaultdict(int)
        # The stream's id as JSON: used 50 times a second.
        self._quoted_id = ""
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though Telnyx would dislike it."""
        found, self._findings = self._findings, []
        return found

    # Sending

    def send(self, event: Event) -> str:
        """
        Render `event` as the message that this end sends.

        Raises:
            LocalProtocolError: If this end has no such message, or the stream has not started.
        """
        if not self._stream_id and not isinstance(event, Connected | StreamStarted):
            raise LocalProtocolError("not-started", f"the stream has not started; {_kind(event)} cannot be sent yet")
        if self.side is Side.CARRIER:
            if isinstance(event, Audio):
                return self._send_audio_as_carrier(event)
            return self._send_as_carrier(event)
        if isinstance(event, Audio):
            return f'{{"event":"media","media":{{"payload":"{write_payload(event.payload)}"}}}}'
        if isinstance(event, Mark):
            _check_mark(event)
            return write_object({"event": "mark", "mark": {"name": event.name}})
        if isinstance(event, Clear):
            return '{"event":"clear"}'
        raise self._no_message(event)

    def _send_audio_as_carrier(self, audio: Audio) -> str:
        track = audio.track
        if track not in ("inbound", "outbound"):
            raise LocalProtocolError("bad-track", f"a track is inbound or outbound, not {shown(track)}")
        chunk = self._chunks[track] = self._chunks[track] + 1 if audio.chunk is None else audio.chunk
        self._sent_bytes[track] += len(audio.payload)
        timestamp = audio.timestamp_ms
        if timestamp is None:
            timestamp = round(self.format.duration_ms(self._sent_bytes[track]))
        return (
            f'{{"event":"media","sequence_number":"{self._next(audio.sequence)}","stream_id":{self._quoted_id},'
            f'"media":{{"track":"{track}","chunk":"{chunk}","timestamp":"{timestamp}",'
            f'"payload":"{write_payload(audio.payload)}"}}}}'
        )

    def _send_as_carrier(self, event: Event) -> str:
        if isinstance(event, Connected):
            return write_object({"event": "connected", "version": event.version})
        if isinstance(event, StreamStarted):
            return self._send_start(event)
        if isinstance(event, Digit):
            if event.digit not in DIGITS:
                raise LocalProtocolError("bad-dtmf", f"a key is one of 0-9 * # A-D, not {shown(event.digit)}")
            occurred = {} if event.at is None else {"occurred_at": write_time(event.at)}
            return self._numbered("dtmf", event.sequence, {"digit": event.digit}, **occurred)
        if isinstance(event, Mark):
            _check_mark(event)
            return self._numbered("mark", event.sequence, {"name": event.name})
        if isinstance(event, StreamError):
            return self._send_error(event)
        if isinstance(event, StreamStopped):
            ids = {"user_id": self._account_id, "call_control_id": self._call_id}
            return self._numbered("stop", event.sequence, ids)
        raise self._no_message(event)

    def _send_error(self, event: StreamError) -> str:
        code = read_counter(event.code)
        if code is None:
            raise LocalProtocolError("bad-error", f"an error's code is a number, not {shown(event.code)}")
        payload = {"code": code, "title": event.title, "detail": event.detail}
        return write_object({"event": "error", "stream_id": self._stream_id, "payload": payload})

    def _send_start(self, event: StreamStarted) -> str:
        wire = event.format
        if wire.sample_rate not in SAMPLE_RATES[wire.encoding]:
            raise LocalProtocolError("bad-format", f"Telnyx streams no {wire.encoding} at {wire.sample_rate} Hz")
        if not event.stream_id or not event.call_id:
            raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
        self._begin(event)
        start = {
            "user_id": event.account_id,
            "call_control_id": event.call_id,
            "call_session_id": _uuid("session", event.call_id),
            "from": event.from_number,
            "to": event.to_number,
            "tags": [],
            "custom_parameters": dict(event.parameters),
            "media_format": {"encoding": wire.encoding.value, "sample_rate": wire.sample_rate, "channels": 1},
        }
        return self._numbered("start", event.sequence, start)

    def _numbered(self, event: str, sequence: int | None, content: dict[str, Any], **more: str) -> str:
        number = str(self._next(sequence))
        ids = {"sequence_number": number, "stream_id": self._stream_id}
        return write_object({"event": event, **ids, **more, event: content})

    def _next(self, sequence: int | None) -> int:
        self._sequence = self._sequence + 1 if sequence is None else sequence
        return self._sequence

    def _begin(self, event: StreamStarted) -> None:
        self.format = event.format
        self._stream_id = event.stream_id
        self._call_id = event.call_id
        self._account_id = event.account_id
        self._quoted_id = json.dumps(event.stream_id)

    def _no_message(self, event: Event) -> LocalProtocolError:
        end = "end" if self.side is Side.CARRIER else "bot's end"
        return LocalProtocolError("no-message", f"Telnyx's {end} has no message for {_kind(event)}")

    # Receiving

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one. Kinds: ``binary``, ``not-json``, ``not-object``, ``no-event``,
                ``bad-start``, ``unsupported-codec``, ``bad-media``, ``bad-base64``, ``bad-dtmf``, ``bad-mark``,
                ``bad-error``.
        """
        content = read_object(message)
        name = content.get("event")
        if name == "media":
            return self._read_media(content)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's event is {shown(name)}")
        return self._read_as_bot(name, content) if self.side is Side.BOT else self._read_as_carrier(name, content)

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        """
        Return what Telnyx tells a bot whose message it could not use.

        https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
        """
        code, title = _INVALID_MEDIA if error.kind in ("bad-media", "bad-base64") else _MALFORMED_FRAME
        return StreamError(code, title, error.message)

    def _read_media(self, content: dict[str, Any]) -> Audio:
        media = content.get("media")
        if not isinstance(media, dict):
            raise broken("bad-media", f"media is {shown(media)}, not an object")
        payload = read_payload(media.get("payload"))
        wire = self.format if self.side is Side.BOT else self.outbound_format
        if len(payload) % wire.sample_width:
            raise broken("bad-media", f"media.payload holds {len(payload)} bytes, which end within a sample")
        if self.side is Side.CARRIER:
            self._judge_media(payload)
            return Audio(payload)
        return Audio(
            payload,
            "outbound" if media.get("track") == "outbound" else "inbound",
            read_counter(media.get("chunk")),
            read_counter(media.get("timestamp")),
            read_counter(content.get("sequence_number")),
        )

    def _read_as_bot(self, name: str, content: dict[str, Any]) -> Event:
        sequence = read_counter(content.get("sequence_number"))
        if name == "connected":
            version = content.get("version")
            return Connected(version if isinstance(version, str) else "1.0.0")
        if name == "start":
            started = self._read_start(content, sequence)
            self._begin(started)
            return started
        if name == "dtmf":
            digit = _inner(content, "dtmf", "bad-dtmf").get("digit")
            if isinstance(digit, int) and not isinstance(digit, bool) and 0 <= digit <= 9:
                digit = str(digit)
            if not isinstance(digit, str) or digit not in DIGITS:
                raise broken("bad-dtmf", f"dtmf.digit is {shown(digit)}, not one of 0-9 * # A-D")
            return Digit(digit, sequence, read_time(content.get("occurred_at")))
        if name == "mark":
            return Mark(self._read_mark(content), sequence)
        if name == "error":
            payload = _inner(content, "payload", "bad-error")
            code = payload.get("code")
            text = str(code) if isinstance(code, int) and read_counter(code) is not None else _text(code)
            return StreamError(text, _text(payload.get("title")), _text(payload.get("detail")))
        if name == "stop":
            return StreamStopped(sequence=sequence)
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_start(self, content: dict[str, Any], sequence: int | None) -> StreamStarted:
        start = _inner(content, "start", "bad-start")
        written = start.get("custom_parameters")
        parameters = read_parameters(_named_values(written) if isinstance(written, list) else written)
        if isinstance(client_state := start.get("client_state"), str) and client_state:
            # What the API's user attached to the call, in base64; a custom parameter of the name goes first.
            parameters.setdefault("client_state", client_state)
        return StreamStarted(
            stream_id=read_text(content.get("stream_id") or start.get("stream_id"), "bad-start", "stream_id"),
            call_id=read_text(start.get("call_control_id"), "bad-start", "start.call_control_id"),
            account_id=_text(start.get("user_id")),
            from_number=_text(start.get("from")),
            to_number=_text(start.get("to")),
            format=self._read_format(start.get("media_format")),
            parameters=parameters,
            sequence=sequence,
        )

    def _read_format(self, media_format: object) -> AudioFormat:
        if media_format is None:
            return PCMU_8K
        if not isinstance(media_format, dict):
            raise broken("bad-start", f"start.media_format is {shown(media_format)}, not an object")
        name, rate_written = media_format.get("encoding"), media_format.get("sample_rate")
        name = "PCMU" if name is None else name
        if name in _FOREIGN_CODECS:
            mend = '<Stream codec="PCMU">, or stream_codec "PCMU" where the API answers'
            raise broken("unsupported-codec", f"the stream's audio is {name}, which cannot be read; answer with {mend}")
        if name not in tuple(Encoding):
            raise broken("bad-start", f"the audio is {shown(name)}, which Telnyx does not stream")
        encoding = Encoding(name)
        rate = read_counter(SAMPLE_RATES[encoding][0] if rate_written is None else rate_written)
        if rate is None or rate not in SAMPLE_RATES[encoding]:
            written = shown(rate_written) if rate is None else rate
            raise broken("bad-start", f"the audio is {name} at {written} Hz, which Telnyx does not stream")
        return AudioFormat(encoding, rate, encoding is Encoding.L16 and self._big_endian)

    def _read_as_carrier(self, name: str, content: dict[str, Any]) -> Event:
        if name == "mark":
            return Mark(self._read_mark(content))
        if name == "clear":
            return Clear()
        self._found("warn", f"Telnyx knows no message {shown(name)} of a bot's")
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_mark(self, content: dict[str, Any]) -> str:
        return read_text(_inner(content, "mark", "bad-mark").get("name"), "bad-mark", "mark.name")

    # Judging what a bot sends

    def _judge_media(self, payload: bytes) -> None:
        duration_ms = self.outbound_format.duration_ms(len(payload))
        if not payload:
            self._found("warn", "a media message has an empty payload")
        elif payload.startswith(b"RIFF"):
            self._found("fail", "the audio starts with a WAV header, which plays as noise: send the samples alone")
        elif duration_ms < MIN_PIECE_MS:
            self._found("warn", f"a media message holds less than {MIN_PIECE_MS} ms of audio, Telnyx's least")
        elif duration_ms > MAX_PIECE_MS:
            self._found("fail", f"a media message holds more than {MAX_PIECE_MS // 1000} s of audio, Telnyx's most")

    def _found(self, level: Level, message: str) -> None:
        self._findings.append(Finding("M1", level, message))


def _request(url: str, method: str, fields: Mapping[str, str]) -> WebhookRequest:
    headers = {"user-agent": "telnyx-webhooks"}
    encoded = urlencode(fields)
    if method == "GET":
        bare, _, fragment = url.partition("#")
        joined = bare + ("&" if "?" in bare else "?") + encoded
        return WebhookRequest("GET", f"{joined}#{fragment}" if fragment else joined, headers)
    return WebhookRequest(method, url, {**headers, "content-type": _FORM}, encoded.encode())


def _read_response(body: bytes) -> Element:
    root = read_document(body, limit=DOCUMENT_LIMIT)
    if root.tag != "Response":
        raise broken("bad-xml", f"the answer's root is {shown(root.tag)}; it must be Response")
    return root


def _opens_stream(verb: Element) -> bool:
    return verb.tag in ("Connect", "Start") and verb.find("Stream") is not None


def _judge_verb(verb: Element, then: Sequence[str]) -> list[Finding]:
    """Find fault with the verb around a stream."""
    found = []
    if len(verb) > 1:
        found.append(Finding("W3", "fail", f"<{verb.tag}> holds {len(verb)} nouns; only one is allowed"))
    if verb.tag == "Start":
        text = "does not wait for the stream: the call ends with the document; use <Connect>"
        found.append(Finding("W3", "warn" if then else "fail", f"<Start> {text}"))
    return found


def _w4(level: Level, message: str) -> Finding:
    return Finding("W4", level, message)


def _read_event(request: WebhookRequest) -> dict[str, Any] | None:
    """
    Return the event that a webhook of Call Control carries; ``None`` if it is one of TeXML.

    Raises:
        RemoteProtocolError: If it is neither.
    """
    if request.method == "GET" or not request.body.lstrip().startswith(b"{"):
        return None
    data = read_object(request.body.decode("utf-8", "replace")).get("data")
    if not isinstance(data, dict):
        raise broken("no-call", f"the JSON's data is {shown(data)}, so it is not an event of Telnyx's")
    return data


def _read_command(request: WebhookRequest) -> tuple[str, str]:
    """Return the call and the action of a Call Control command; two empty strings if it is none."""
    match = _COMMAND.fullmatch(urlsplit(request.url).path)
    if request.method != "POST" or match is None:
        return "", ""
    return unquote(match[1]), match[2]


def _command_text(request: WebhookRequest, name: str) -> str:
    """Return a text that a command of Call Control needs."""
    content = read_object(request.body.decode("utf-8", "replace"))
    return read_text(content.get(name), "bad-command", name)[:_TEXT_LIMIT]


def _read_parameters(value: object) -> dict[str, str]:
    """
    Return custom parameters: an object, or a list of names and values as commands write them.

    Raises:
        RemoteProtocolError: Of kind ``bad-start``.
    """
    if value is None:
        return {}
    if isinstance(value, list):
        value = _named_values(value)
    if not isinstance(value, dict):
        raise broken("bad-start", f"custom_parameters is {shown(value)}, not an object")
    return {name: _parameter(name, content) for name, content in value.items()}


def _named_values(pairs: list[Any]) -> dict[str, Any]:
    """Return parameters that are written as objects of a name and a value."""
    named = [each for each in pairs if isinstance(each, dict) and isinstance(each.get("name"), str)]
    return {each["name"]: each.get("value", "") for each in named}


def _parameter(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        raise broken("bad-start", f"the custom parameter {shown(name)} is {shown(value)}, not a text")
    return json.dumps(value)


def _inner(content: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    inner = content.get(name)
    if isinstance(inner, dict):
        return inner
    raise broken(kind, f"{name} is {shown(inner)}, not an object")


def _text(value: object) -> str:
    """Return a text of no great length; nothing for what is none."""
    return value[:_TEXT_LIMIT] if isinstance(value, str) else ""


def _read_key(name: str, written: str) -> bytes:
    key = read_signature(written.strip())
    if len(key) != 32:
        raise ConfigError(
            f"{name} is not a key: it must be the base64 of 32 bytes",
            hint="it has 44 characters, the last of which is =; copy it whole",
        )
    return key


def _uuid(what: str, call_id: str) -> str:
    """Return an id that is always the same for the same call."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"telnyx:{what}:{call_id}"))


def _connection_id(call: Call) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"telnyx:connection:{call.account_id}").int)[:19]


def _check_mark(mark: Mark) -> None:
    if not mark.name:
        raise LocalProtocolError("bad-mark", "a mark has a name")


def _kind(event: Event) -> str:
    return type(event).__name__
