"""
SignalWire: the compatibility API, which speaks Twilio's dialect with ids, signatures and codecs of its own.

Documents and stream messages: https://developer.signalwire.com/compatibility-api/cxml/voice/stream
Signatures: https://github.com/signalwire/signalwire-python/blob/master/signalwire/request_validator.py
"""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal
from urllib.parse import urlencode
from xml.etree.ElementTree import Element

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, SignatureError
from wsvoice.providers.base import Finding, Side, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.messages import broken, shown, write_object
from wsvoice.providers.twilio import DIGITS, Twilio, TwilioStream, has_uuid, is_uuid, webhook_urls

#: https://developer.signalwire.com/compatibility-api/cxml/voice/stream#supported-codecs
CODECS = {
    "PCMU@8000h": PCMU_8K,
    "L16@16000h": AudioFormat(Encoding.L16, 16000),
    "L16@24000h": AudioFormat(Encoding.L16, 24000),
}

_FORM = "application/x-www-form-urlencoded"
_UNKNOWN_LIMIT = 64
# What a key press lasts in the simulation, in milliseconds.
_DIGIT_MS = 100


class SignalWire(Twilio):
    """SignalWire, with credentials by environment variable name."""

    name = "signalwire"
    title = "SignalWire"
    credential_names: tuple[str, ...] = (
        "SIGNALWIRE_SIGNING_KEY",
        "SIGNALWIRE_PROJECT_ID",
        "SIGNALWIRE_API_TOKEN",
        "SIGNALWIRE_SPACE",
        "SIGNALWIRE_STREAM_CODEC",
        "SIGNALWIRE_STREAM_REALTIME",
    )
    secret_name: ClassVar[str] = "SIGNALWIRE_SIGNING_KEY"
    account_name: ClassVar[str] = "SIGNALWIRE_PROJECT_ID"
    signature_header: ClassVar[str] = "X-SignalWire-Signature"
    stream_attributes: ClassVar[frozenset[str]] = Twilio.stream_attributes | {"codec", "authBearerToken", "realtime"}

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self._codec = self._credential("SIGNALWIRE_STREAM_CODEC") or "PCMU@8000h"
        if self._codec not in CODECS:
            raise ConfigError(
                f"SIGNALWIRE_STREAM_CODEC is {shown(self._codec)}, which SignalWire does not stream",
                hint=f"set it to one of {', '.join(CODECS)}",
            )
        # Unless told, SignalWire buffers what the bot says, and may play it late.
        self._realtime = self._credential("SIGNALWIRE_STREAM_REALTIME") or "true"
        if self._realtime not in ("true", "false"):
            raise ConfigError(
                f"SIGNALWIRE_STREAM_REALTIME is {shown(self._realtime)}", hint="set it to true or false, or not at all"
            )

    def recognises(self, request: WebhookRequest) -> bool:
        """Whether a webhook has Twilio's fields, with ids of SignalWire's shape."""
        fields = request.fields
        return is_uuid(fields.get("CallSid")) and is_uuid(fields.get("AccountSid"))

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is SignalWire's start: Twilio's, but for the shape of its ids."""
        return self._is_start(message) and has_uuid(message)

    def _webhook_fields(self, call: Call, status: str) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml#request-parameters
        return {
            "AccountSid": call.account_id,
            "ApiVersion": "2010-04-01",
            "CallSid": call.call_id,
            "CallStatus": status,
            "Direction": "outbound-api" if call.direction == "outbound" else "inbound",
            "From": call.from_number,
            "To": call.to_number,
        }

    def _request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        encoded = urlencode(fields)
        if method == "GET":
            return WebhookRequest("GET", url + ("&" if "?" in url else "?") + encoded)
        return WebhookRequest(method, url, {"content-type": _FORM}, encoded.encode())

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Invent the key of a test call, which both ends have; the bot keeps its codec."""
        carrier, bot = super().test_credentials(seed)
        return carrier, {**bot, "SIGNALWIRE_STREAM_CODEC": self._codec}

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent an inbound call and its stream, ids like SignalWire's; `seed` is at least 32 random bytes."""
        call = super().new_call(from_number=from_number, to_number=to_number, parameters=parameters, seed=seed)
        stream = hashlib.sha256(seed).digest()[:16]
        ids = [str(uuid.UUID(bytes=each, version=4)) for each in (seed[:16], stream, seed[16:32])]
        return replace(call, call_id=ids[0], stream_id=ids[1], account_id=ids[2])

    # The answer

    def _stream_settings(self) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#attributes
        return {"codec": self._codec, "realtime": self._realtime}

    def _stream_format(self, stream: Element, findings: list[Finding]) -> AudioFormat:
        codec = stream.get("codec", "PCMU@8000h")
        if codec not in CODECS:
            known = ", ".join(CODECS)
            findings.append(Finding("W3", "fail", f"<Stream> asks for the codec {shown(codec)}; known are {known}"))
        return CODECS.get(codec, PCMU_8K)

    def _stream_headers(self, stream: Element) -> dict[str, str]:
        # https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        token = stream.get("authBearerToken", "")
        return {"Authorization": f"Bearer {token}"} if token else {}

    # Signatures

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` with SignalWire's signature; as it is where the key is not known."""
        if not _is_raw(request) or not self.can_verify():
            return super().sign(request, now=now)
        signature = self._sign_raw(next(webhook_urls(request.url)), request.body)
        return replace(request, headers={**request.headers, self.signature_header.lower(): signature})

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """
        Raise :exc:`~wsvoice.errors.SignatureError` unless SignalWire signed this webhook.

        A form is signed as Twilio signs it; JSON as it is, after the URL.

        Args:
            request: With the URL that SignalWire saw, not the one behind the tunnel; with or without its port.
            now: Not used; SignalWire does not sign the time.

        https://github.com/signalwire/signalwire-python/blob/master/signalwire/request_validator.py
        """
        if not _is_raw(request):
            super().verify(request, now=now)
            return
        _, signature = self._key_and_signature(request, "webhook")
        given = signature.encode("utf-8", "surrogatepass")
        urls = webhook_urls(request.url)
        if not any(hmac.compare_digest(self._sign_raw(url, request.body).encode(), given) for url in urls):
            raise SignatureError(
                f"the webhook's {self.signature_header} does not match",
                hint=f"checked against {request.url[:200]} - if SignalWire calls another address, name it with -x",
            )

    def replay_key(self, request: WebhookRequest) -> tuple[str, str | None]:
        """
        Return the signature, whether it is written in base64 or, as that of JSON, in hexadecimal.

        SignalWire sends no idempotency token.
        """
        if not _is_raw(request):
            return super().replay_key(request)[0], None
        return request.headers.get(self.signature_header.lower(), ""), None

    def _sign_raw(self, url: str, body: bytes) -> str:
        key = self._credential(self.secret_name).encode("utf-8", "surrogateescape")
        return hmac.new(key, url.encode("utf-8", "surrogatepass") + body, "sha1").hexdigest()

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """
        Return that there is no signature: SignalWire's upgrade has none, so its absence proves nothing.

        https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        """
        return "nothing, for SignalWire signs no upgrade"

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """
        Return no headers beyond a WebSocket's own; a bearer token is the document's.

        https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
        """
        return {}

    # The REST API

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """SignalWire has no codes for a stream that did not open."""
        return None

    def _api_users(self) -> list[tuple[str, str]]:
        return [(self._credential(self.account_name), self._credential("SIGNALWIRE_API_TOKEN"))]

    def _rest_base(self) -> str:
        # https://developer.signalwire.com/rest/compatibility-api/overview
        space = self._credential("SIGNALWIRE_SPACE").removesuffix(".signalwire.com")
        if not space:
            raise ConfigError("SignalWire's API has an address for each space", hint="set SIGNALWIRE_SPACE")
        return f"https://{space}.signalwire.com/api/laml/2010-04-01"

    def _rest_auth(self, account: str) -> tuple[str, str]:
        token = self._credential("SIGNALWIRE_API_TOKEN")
        if not token:
            raise ConfigError("SignalWire's REST API needs a secret", hint="set SIGNALWIRE_API_TOKEN")
        return self._credential(self.account_name) or account, token

    # The stream

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> SignalWireStream:
        """Return a new stream's end; SignalWire's carrier has no quirks."""
        return SignalWireStream(side)


class SignalWireStream(TwilioStream):
    """
    One end of a SignalWire stream.

    https://developer.signalwire.com/compatibility-api/cxml/voice/stream#websocket-connection
    """

    title: ClassVar[str] = "SignalWire"
    encodings: ClassVar[Mapping[AudioFormat, str]] = {
        wire: "audio/x-mulaw" if wire.encoding is Encoding.PCMU else "audio/x-L16" for wire in CODECS.values()
    }

    def _send_as_carrier(self, event: Event) -> str:
        if isinstance(event, Connected):
            return write_object({"event": "connected", "protocol": "Call", "version": "0.2.0"})
        if isinstance(event, Digit):
            if event.digit not in DIGITS:
                raise LocalProtocolError("bad-dtmf", f"a key is one of 0-9 * # A-D, not {shown(event.digit)}")
            return self._unnumbered("dtmf", {"duration": _DIGIT_MS, "digit": event.digit})
        if isinstance(event, Mark) and event.name:
            return self._unnumbered("mark", {"name": event.name})
        if isinstance(event, Cleared):
            return write_object({"event": "clear", "streamSid": self._stream_id})
        if isinstance(event, StreamStopped):
            return write_object({"event": "stop", "sequenceNumber": str(self._next(event.sequence))})
        return super()._send_as_carrier(event)

    def _send_audio_as_carrier(self, audio: Audio) -> str:
        return super()._send_audio_as_carrier(audio).removesuffix(f',"streamSid":{self._quoted_id}}}') + "}"

    def _send_start(self, event: StreamStarted) -> str:
        message = super()._send_start(event).removesuffix(f',"streamSid":{self._quoted_id}}}') + "}"
        return message if event.parameters else message.replace(',"customParameters":{}', "", 1)

    def _unnumbered(self, event: str, content: dict[str, Any]) -> str:
        return write_object({"event": event, "streamSid": self._stream_id, event: content})

    def _read_media(self, content: dict[str, Any]) -> Audio:
        audio = super()._read_media(content)
        over = len(audio.payload) % self.format.sample_width
        if not over:
            return audio
        if self.side is Side.BOT:
            raise broken("bad-media", f"the audio has {len(audio.payload)} bytes, which 16-bit samples have not")
        self._found("fail", "a media message ends in the middle of a 16-bit sample")
        return replace(audio, payload=audio.payload[:-over])

    def _read_as_bot(self, name: str, content: dict[str, Any]) -> Event:
        return Cleared() if name == "clear" else super()._read_as_bot(name, content)

    def _read_as_carrier(self, name: str, content: dict[str, Any]) -> Event:
        if name in ("mark", "clear"):
            return super()._read_as_carrier(name, content)
        # A bot may press keys, which a test call has no use for.
        if name != "dtmf":
            self._found("warn", f"SignalWire knows no message {shown(name)} of a bot's")
        return Unknown(name[:_UNKNOWN_LIMIT])


def _is_raw(request: WebhookRequest) -> bool:
    return request.method != "GET" and "json" in request.headers.get("content-type", "")
