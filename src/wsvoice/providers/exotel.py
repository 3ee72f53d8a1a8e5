"""
Exotel: the Voicebot applet, its dynamic URL and its media stream.

There is no document language and no signature. A flow's Voicebot applet holds either the stream's own URL, or a
web address that Exotel asks for it.

Applet: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
Stream messages: https://developer.exotel.com/docs/agentstream/websocket-protocol
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from binascii import Error as BinasciiError
from binascii import a2b_base64
from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import (
    Answer,
    CallUpdate,
    Finding,
    HttpRequest,
    Level,
    Quirk,
    Side,
    StreamRequest,
    WebhookRequest,
)
from wsvoice.providers.documents import split_credentials
from wsvoice.providers.events import (
    Audio,
    Clear,
    Connected,
    Digit,
    Event,
    Mark,
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
    read_text,
    shown,
    write_object,
    write_payload,
)
from wsvoice.providers.reports import details, report

DIGITS = frozenset("0123456789*#ABCD")
#: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
FORMATS = {rate: AudioFormat(Encoding.L16, rate) for rate in (8000, 16000, 24000)}
L16_8K = FORMATS[8000]
PARAMETER_COUNT = 3
#: Characters of all custom parameters together, as they stand in the URL.
PARAMETERS_LIMIT = 256
#: Bytes of audio in one message. The page names 3200 as the least, too; a later one recommends 640 and less, for
#: quick interruptions, so small messages are not held against a bot.
#: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#audio-format
PAYLOAD_MULTIPLE, PAYLOAD_MOST = 320, 100_000
#: Bytes of an answer that are read; a URL is never as long.
ANSWER_LIMIT = 64 * 1024

_FIELD_LIMIT = 256
_UNKNOWN_LIMIT = 64
_RATE_NAMES = ("sample-rate", "sample_rate")
_CALL_ID = re.compile(r"[0-9a-z]{30,40}")
_FORM = "application/x-www-form-urlencoded"
#: https://developer.exotel.com/docs/references/webhooks
_ENDED = frozenset({"completed", "failed", "busy", "no-answer", "canceled"})
_TOLD = ("EventType", "Cause", "Reason", "ConversationDuration")
#: https://support.exotel.com/support/solutions/articles/3000132269-working-with-passthru-applet-for-agentstream-beta-
_TOLD_OF_STREAM = ("DisconnectedBy", "Duration", "Error", "Reason")


class Exotel:
    """Exotel, with credentials by environment variable name."""

    name = "exotel"
    title = "Exotel"
    #: None is a signing secret: the first two are what the applet's URL carries instead of a stream token.
    credential_names: tuple[str, ...] = (
        "EXOTEL_STREAM_USER",
        "EXOTEL_STREAM_PASSWORD",
        "EXOTEL_SAMPLE_RATE",
        "EXOTEL_ACCOUNT_SID",
        "EXOTEL_API_KEY",
        "EXOTEL_API_TOKEN",
        "EXOTEL_SUBDOMAIN",
    )
    signs = False
    #: https://developer.exotel.com/docs/agentstream/developer-guide
    frame_ms = 100
    ordered = True
    webhook_method: Literal["GET", "POST"] = "GET"
    webhook_place = "URL of the Voicebot applet"
    #: No page names one; a minute is what no bot should be ahead by.
    queue_limit_s = 60.0
    #: No page says so either way; a bot that waits for marks it has cleared would wait for ever.
    renames_dialled_calls = False
    cleared_marks: Literal["returned", "dropped"] = "dropped"
    quirks: Mapping[str, Quirk] = {
        "counters": Quirk("string", "how counters and rates are written", ("string", "number")),
        "case": Quirk("snake", "how the keys are written", ("snake", "camel")),
        "encoding-label": Quirk("audio/x-raw", "what the start message calls the audio's encoding"),
        "echo-cleared-marks": Quirk("no", "whether marks come back whose audio was cleared", ("no", "yes")),
        "frame-ms": Quirk("100", "how long a piece of the caller's audio is", ("100", "20")),
    }

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self._credentials = {name: value for name in self.credential_names if (value := credentials.get(name))}
        rate = self._credentials.get("EXOTEL_SAMPLE_RATE", "8000")
        if rate not in map(str, FORMATS):
            raise ConfigError(
                f"EXOTEL_SAMPLE_RATE is {shown(rate)}, at which Exotel does not stream",
                hint="set it to 8000, 16000 or 24000",
            )
        self._sample_rate = int(rate)

    # The webhook: what the applet's dynamic URL is asked

    def can_verify(self) -> bool:
        """Exotel signs nothing, so there is never a secret to verify with."""
        return False

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

    def claims(self, message: Mapping[str, Any]) -> bool:
        """Whether a message is Exotel's start: snake case, or camel case with numbers, which Twilio's has not."""
        start = message.get("start")
        if message.get("event") != "start" or not isinstance(start, Mapping):
            return False
        if {"stream_sid", "call_sid", "account_sid"} <= start.keys():
            return True
        # A start of Twilio's dialects names tracks and never says who calls.
        return {"streamSid", "callSid", "accountSid", "from", "to"} <= start.keys() and "tracks" not in start

    def read_webhook(self, request: WebhookRequest) -> Call | CallUpdate | None:
        """
        Read the call that a request for the stream's URL is about, or what a callback reports.

        No page lists the fields that the Voicebot applet sends; they are read as other applets send them.

        Raises:
            RemoteProtocolError: If there is no ``CallSid``, or a field is none that Exotel would send.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
        """
        fields = _read_fields(request)
        call_id = fields.get("callsid", "")
        if not call_id:
            raise broken("no-call", "the request has no CallSid, so it is not of Exotel's")
        if (update := _read_report(call_id, fields)) is not None:
            return update
        account_id = fields.get("accountsid") or fields.get("tenant_id", "")
        from_number = fields.get("callfrom") or fields.get("from", "")
        to_number = fields.get("callto") or fields.get("to", "")
        # They are logged, and may be anybody's.
        for value in (call_id, account_id, from_number, to_number):
            if len(value) > _FIELD_LIMIT or not value.isprintable():
                raise broken("bad-field", f"a field of the request cannot be Exotel's: {shown(value)}")
        return Call(
            provider=self.name,
            call_id=call_id,
            account_id=account_id,
            from_number=from_number,
            to_number=to_number,
            direction="outbound" if fields.get("direction", "").startswith("out") else "inbound",
        )

    def webhook(
        self,
        call: Call,
        url: str,
        *,
        method: str = "POST",
        quirks: Mapping[str, str] | None = None,
        now: float = 0.0,
    ) -> WebhookRequest:
        """Render the request that Exotel would make for the stream's URL of `call`."""
        fields = {
            "CallSid": call.call_id,
            "CallFrom": call.from_number,
            "CallTo": call.to_number,
            "Direction": "outbound-api" if call.direction == "outbound" else "incoming",
            "DialWhomNumber": "",
            "flow_id": "1",
            "tenant_id": call.account_id,
            "From": call.from_number,
            "To": call.to_number,
        }
        encoded = urlencode(fields)
        if method == "GET":
            bare = url.partition("#")[0]
            return WebhookRequest("GET", bare + ("&" if "?" in bare else "?") + encoded)
        return WebhookRequest(method, url, {"content-type": _FORM}, encoded.encode())

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        """Invent the credentials of a test call: there are none, but the bot keeps its sample rate."""
        return {}, {"EXOTEL_SAMPLE_RATE": str(self._sample_rate)}

    def new_call(self, *, from_number: str, to_number: str, parameters: Mapping[str, str], seed: bytes) -> Call:
        """Invent an inbound call and its stream, ids like Exotel's; `seed` is at least 32 random bytes."""
        return Call(
            provider=self.name,
            call_id=seed[:16].hex(),
            stream_id=f"MZ{hashlib.sha256(seed).hexdigest()[:32]}",
            account_id="wsvoice1",
            from_number=from_number,
            to_number=to_number,
            parameters=dict(parameters),
        )

    # The answer

    def answer(self, call: Call, stream_url: str) -> Answer:
        """
        Render the JSON that names the stream's URL, with the sample rate and the user's parameters as its query.

        Raises:
            LocalProtocolError: If Exotel could not use `stream_url` or the parameters.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        url = urlsplit(stream_url)
        if url.scheme not in ("wss", "ws") or not url.netloc:
            raise LocalProtocolError("bad-url", f"a stream's URL starts with wss://, not {shown(stream_url)}")
        parameters = urlencode(call.parameters, quote_via=quote)
        if any(not name or name in _RATE_NAMES for name in call.parameters):
            raise LocalProtocolError("bad-parameter", "a parameter has no name, or the name of the sample rate")
        if len(call.parameters) > PARAMETER_COUNT:
            raise LocalProtocolError(
                "many-parameters", f"there are {len(call.parameters)} parameters; Exotel takes {PARAMETER_COUNT}"
            )
        if len(parameters) > PARAMETERS_LIMIT:
            raise LocalProtocolError(
                "long-parameter",
                f"the parameters have {len(parameters)} characters in the URL; Exotel takes {PARAMETERS_LIMIT}",
            )
        rate = f"sample-rate={self._sample_rate}" if self._sample_rate != L16_8K.sample_rate else ""
        query = "&".join(part for part in (url.query, rate, parameters) if part)
        return Answer(write_object({"url": urlunsplit(url._replace(query=query))}), "application/json")

    def acknowledge(self) -> Answer:
        """
        Render an empty answer, for callbacks; Exotel repeats what is not answered with 200.

        https://developer.exotel.com/docs/references/webhooks
        """
        return Answer("", media_type="text/plain")

    def busy(self, call: Call | None = None) -> Answer:
        """
        Render a failure, at which the flow goes on with its next applet.

        There is no answer that means busy; whatever names no stream starts none.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
        """
        return Answer(write_object({"error": "every place is taken"}), "application/json", status=503)

    def read_answer(
        self, body: bytes, content_type: str, *, base_url: str = "", quirks: Mapping[str, str] | None = None
    ) -> StreamRequest:
        """
        Read the stream's URL from an answer of a dynamic URL, as Exotel would.

        The query stays in the URL that is dialled. Credentials in it become the header as which Exotel sends
        them.

        Raises:
            RemoteProtocolError: If no stream comes of it. Kinds: ``too-large``, ``not-json``, ``not-object``,
                ``bad-answer``, ``bad-url``.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        if len(body) > ANSWER_LIMIT:
            raise broken("too-large", f"the answer has {len(body)} bytes; {ANSWER_LIMIT} are allowed")
        text = body.decode("utf-8", "replace")
        if text.lstrip().startswith("<"):
            raise broken("bad-answer", 'the answer is a document with tags; Exotel reads JSON: {"url": "wss://..."}')
        written = read_object(text).get("url")
        if not isinstance(written, str) or not written:
            raise broken("bad-answer", f"the answer's url is {shown(written)}; it must be the stream's wss:// URL")
        try:
            url = urlsplit(written)
            usable = bool(url.hostname) and (url.port is None or url.port > 0)
        except ValueError:
            usable = False
        if not usable or re.search(r"[\x00-\x20\x7f]", written):
            raise broken("bad-url", f"the stream's url {shown(written)} is not a URL")
        if url.scheme in ("http", "https"):
            raise broken("bad-url", f"the answer names another web address, {shown(written)}; it must be wss://")
        if url.scheme not in ("ws", "wss"):
            raise broken("bad-url", f"the stream's url starts with {shown(url.scheme)}; it must be wss")
        findings: list[Finding] = []
        if url.scheme == "ws":
            findings.append(_w3("warn", "the stream's URL is ws://, which carries the call in the clear; use wss://"))
        address, credentials = split_credentials(urlunsplit(url._replace(fragment="")))
        return StreamRequest(
            url=address,
            parameters=_url_parameters(url.query, findings),
            format=_url_format(url.query, findings),
            headers=credentials,
            findings=findings,
        )

    # Signatures: there are none

    def verify(self, request: WebhookRequest, *, now: float) -> None:
        """Do nothing: Exotel signs nothing, so that nothing of a request can be doubted either."""

    def replay_key(self, request: WebhookRequest) -> tuple[str, str]:
        """Nothing tells one request from another."""
        return "", ""

    def verify_upgrade(self, request: WebhookRequest, *, now: float) -> str:
        """Return that there is no signature; see :meth:`has_credentials`."""
        return "nothing, for Exotel signs no upgrade"

    def sign(self, request: WebhookRequest, *, now: float) -> WebhookRequest:
        """Return `request` as it is."""
        return request

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """
        Return no headers of Exotel's own.

        Credentials in a URL are in :attr:`StreamRequest.headers`.
        """
        return {}

    def has_credentials(self, request: WebhookRequest) -> bool:
        """
        Whether an upgrade carries the user name and password of the applet's ``wss://user:password@host/`` URL.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#configuration-parameters
        """
        user = self._credentials.get("EXOTEL_STREAM_USER", "")
        password = self._credentials.get("EXOTEL_STREAM_PASSWORD", "")
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if not user or not password or scheme.lower() != "basic":
            return False
        try:
            given = a2b_base64(encoded.strip(), strict_mode=True)
        except (BinasciiError, ValueError):
            return False
        return hmac.compare_digest(given, f"{user}:{password}".encode("utf-8", "surrogateescape"))

    # The REST API

    def upgrade_error(self, kind: Literal["timeout", "tls", "refused"]) -> str | None:
        """Exotel has no codes for a stream that did not open."""
        return None

    def hang_up(self, call: Call) -> HttpRequest | None:
        """
        Closing the stream is the hang-up, or leads to the flow's next applet.

        https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
        """
        return None

    # The stream

    def stream(self, side: Side, quirks: Mapping[str, str] | None = None) -> ExotelStream:
        """Return a new stream's end; `quirks` are how the carrier spells its messages."""
        chosen = {name: quirk.default for name, quirk in self.quirks.items()} | dict(quirks or {})
        return ExotelStream(
            side,
            numbers=chosen["counters"] == "number",
            camel=chosen["case"] == "camel",
            encoding_label=chosen["encoding-label"],
        )


class ExotelStream:
    """
    One end of a stream of the Voicebot applet: 16-bit little-endian audio, 8, 16 or 24 kHz.

    Args:
        side: Which end.
        numbers: Whether the carrier writes counters and rates as numbers.
        camel: Whether the carrier writes its keys in camel case.
        encoding_label: What the carrier calls the audio's encoding; no reader may rely on it.

    https://developer.exotel.com/docs/agentstream/websocket-protocol
    """

    def __init__(
        self, side: Side, *, numbers: bool = False, camel: bool = False, encoding_label: str = "audio/x-raw"
    ) -> None:
        self.side = side
        self.format = L16_8K
        self.outbound_format = L16_8K
        self._numbers = numbers
        self._camel = camel
        self._encoding_label = encoding_label
        self._stream_id = ""
        self._call_id = ""
        self._account_id = ""
        self._sequence = 0
        self._chunk = 0
        self._sent_bytes = 0
        # The bot's media message up to its payload: used 50 times a second.
        self._media_head = ""
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though Exotel would dislike it."""
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
            what = type(event).__name__
            raise LocalProtocolError("not-started", f"the stream has not started; {what} cannot be sent yet")
        if isinstance(event, Mark) and not event.name:
            raise LocalProtocolError("bad-mark", "a mark has a name")
        if self.side is Side.CARRIER:
            return self._send_as_carrier(event)
        if isinstance(event, Audio):
            return f'{self._media_head}{write_payload(event.payload)}"}}}}'
        if isinstance(event, Mark):
            return write_object({"event": "mark", "stream_sid": self._stream_id, "mark": {"name": event.name}})
        if isinstance(event, Clear):
            return write_object({"event": "clear", "stream_sid": self._stream_id})
        raise self._no_message(event)

    def _send_as_carrier(self, event: Event) -> str:
        if isinstance(event, Audio):
            return self._send_audio(event)
        if isinstance(event, Connected):
            return write_object({"event": "connected"})
        if isinstance(event, StreamStarted):
            return self._send_start(event)
        if isinstance(event, Digit):
            if event.digit not in DIGITS:
                raise LocalProtocolError("bad-dtmf", f"a key is one of 0-9 * # A-D, not {shown(event.digit)}")
            return self._numbered("dtmf", event.sequence, {"digit": event.digit, "duration": self._number(100)})
        if isinstance(event, Mark):
            return self._numbered("mark", event.sequence, {"name": event.name})
        if isinstance(event, StreamStopped):
            content: dict[str, Any] = {"call_sid": self._call_id, "account_sid": self._account_id}
            if event.reason:
                content["reason"] = event.reason
            return self._numbered("stop", event.sequence, content)
        raise self._no_message(event)

    def _send_audio(self, audio: Audio) -> str:
        if audio.track != "inbound":
            raise LocalProtocolError("bad-track", f"Exotel sends the caller's audio only, not {shown(audio.track)}")
        self._chunk = self._chunk + 1 if audio.chunk is None else audio.chunk
        self._sent_bytes += len(audio.payload)
        timestamp = audio.timestamp_ms
        if timestamp is None:
            timestamp = round(self.format.duration_ms(self._sent_bytes))
        media = {
            "chunk": self._number(self._chunk),
            "timestamp": self._number(timestamp),
            "payload": write_payload(audio.payload),
        }
        return self._numbered("media", audio.sequence, media)

    def _send_start(self, event: StreamStarted) -> str:
        if event.format not in FORMATS.values():
            encoding, rate = event.format.encoding, event.format.sample_rate
            raise LocalProtocolError("bad-format", f"Exotel streams no {encoding} at {rate} Hz")
        if not event.stream_id or not event.call_id:
            raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
        self._begin(event)
        content = {
            "stream_sid": event.stream_id,
            "call_sid": event.call_id,
            "account_sid": event.account_id,
            "from": event.from_number,
            "to": event.to_number,
            "custom_parameters": dict(event.parameters),
            "media_format": {
                "encoding": self._encoding_label,
                "sample_rate": self._number(event.format.sample_rate),
                "bit_rate": self._number(16),
            },
        }
        return self._numbered("start", event.sequence, content)

    def _numbered(self, event: str, sequence: int | None, content: dict[str, Any]) -> str:
        self._sequence = self._sequence + 1 if sequence is None else sequence
        message = {
            "event": event,
            "sequence_number": self._number(self._sequence),
            "stream_sid": self._stream_id,
            event: content,
        }
        return write_object(_in_camel_case(message) if self._camel else message)

    def _number(self, value: int) -> int | str:
        return value if self._numbers else str(value)

    def _begin(self, event: StreamStarted) -> None:
        self.format = self.outbound_format = event.format
        self._stream_id = event.stream_id
        self._call_id = event.call_id
        self._account_id = event.account_id
        self._media_head = f'{{"event":"media","stream_sid":{json.dumps(event.stream_id)},"media":{{"payload":"'

    def _no_message(self, event: Event) -> LocalProtocolError:
        end = "end" if self.side is Side.CARRIER else "bot's end"
        return LocalProtocolError("no-message", f"Exotel's {end} has no message for {type(event).__name__}")

    # Receiving

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one. Kinds: ``binary``, ``not-json``, ``not-object``,
                ``no-event``, ``bad-start``, ``bad-media``, ``bad-base64``, ``bad-dtmf``, ``bad-mark``.
        """
        content = read_object(message)
        name = content.get("event")
        if name == "media":
            return self._read_media(content)
        if not isinstance(name, str) or not name:
            raise broken("no-event", f"the message's event is {shown(name)}")
        if self.side is Side.BOT:
            return self._read_as_bot(name, content)
        if name in ("mark", "clear"):
            self._judge_stream_id(name, content)
            return Mark(_read_mark(content)) if name == "mark" else Clear()
        self._found("warn", f"Exotel knows no message {shown(name)} of a bot's")
        return Unknown(name[:_UNKNOWN_LIMIT])

    def _read_media(self, content: dict[str, Any]) -> Audio:
        media = _inner(content, "media", "bad-media")
        payload = read_payload(media.get("payload"))
        if self.side is Side.CARRIER:
            self._judge_media(content, payload)
            # The half of a sample at the end is nothing that could be played.
            return Audio(payload[: len(payload) & ~1])
        if len(payload) & 1:
            raise broken("bad-media", f"the audio has {len(payload)} bytes, which 16-bit samples have not")
        return Audio(
            payload,
            "inbound",
            read_counter(media.get("chunk")),
            read_counter(media.get("timestamp")),
            _sequence(content),
        )

    def _read_as_bot(self, name: str, content: dict[str, Any]) -> Event:
        if name == "connected":
            return Connected()
        if name == "start":
            started = _read_start(content)
            self._begin(started)
            return started
        if name == "dtmf":
            digit = _inner(content, "dtmf", "bad-dtmf").get("digit")
            if isinstance(digit, int) and not isinstance(digit, bool) and 0 <= digit <= 9:
                digit = str(digit)
            if not isinstance(digit, str) or digit not in DIGITS:
                raise broken("bad-dtmf", f"dtmf.digit is {shown(digit)}, not one of 0-9 * # A-D")
            return Digit(digit, _sequence(content))
        if name == "mark":
            return Mark(_read_mark(content), _sequence(content))
        # `closed` is what Exotel's own bridge takes for an end: https://github.com/exotel/Agent-Stream
        if name in ("stop", "closed"):
            inner = content.get("stop")
            reason = inner.get("reason") if isinstance(inner, dict) else None
            return StreamStopped(reason[:_UNKNOWN_LIMIT] if isinstance(reason, str) else "", _sequence(content))
        return Unknown(name[:_UNKNOWN_LIMIT])

    # Judging what a bot sends

    def _judge_media(self, content: dict[str, Any], payload: bytes) -> None:
        self._judge_stream_id("media", content)
        size = len(payload)
        if payload.startswith(b"RIFF"):
            self._found("fail", "the audio starts with a WAV header, which plays as noise: send the samples alone")
        if size & 1:
            self._found("fail", "a media message ends in the middle of a 16-bit sample")
        elif size % PAYLOAD_MULTIPLE:
            self._found("warn", f"a media message is no multiple of {PAYLOAD_MULTIPLE} bytes, which plays with gaps")
        if not size:
            self._found("warn", "a media message holds no audio")
        elif size > PAYLOAD_MOST:
            self._found("fail", f"a media message holds more than {PAYLOAD_MOST} bytes of audio, which times out")

    def _judge_stream_id(self, name: str, content: dict[str, Any]) -> None:
        stream_id = content.get("stream_sid")
        if stream_id != self._stream_id or not stream_id:
            which = "no stream_sid" if not stream_id else "the stream_sid of another stream"
            self._found("fail", f"a {name} message has {which}")

    def _found(self, level: Level, message: str) -> None:
        self._findings.append(Finding("M1", level, message))


def _read_fields(request: WebhookRequest) -> dict[str, str]:
    """
    Return the fields of a query, a form or a JSON object by their names in lower case, for pages differ on capitals.

    Raises:
        RemoteProtocolError: If what says that it is JSON is no object.
    """
    fields = {name.lower(): value for name, value in request.fields.items()}
    if request.method != "GET" and "json" in request.headers.get("content-type", ""):
        for name, value in read_object(request.body.decode("utf-8", "replace")).items():
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
        stage = stream.get("status", "")
        detail = details({name: stream.get(name.lower()) for name in _TOLD_OF_STREAM}, _TOLD_OF_STREAM)
        return report(call_id, f"stream {stage}".strip(), detail, failed=stage in ("failed", "error"))
    if fields.keys().isdisjoint(("eventtype", "status", "dateupdated")):
        return None
    kind, status = fields.get("eventtype", ""), fields.get("status", "")
    detail = details({name: fields.get(name.lower()) for name in _TOLD}, _TOLD)
    ended = kind == "terminal" or status in _ENDED
    return report(call_id, status or kind or "callback", detail, failed=status == "failed", ended=ended)


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


def _w3(level: Level, message: str) -> Finding:
    return Finding("W3", level, message)


def _url_parameters(query: str, findings: list[Finding]) -> dict[str, str]:
    """Return the custom parameters of a stream's URL."""
    pieces = [piece for piece in query.split("&") if piece and piece.partition("=")[0] not in _RATE_NAMES]
    length = len("&".join(pieces))
    if len(pieces) > PARAMETER_COUNT:
        text = f"the stream's URL has {len(pieces)} custom parameters; Exotel takes {PARAMETER_COUNT}"
        findings.append(_w3("fail", text))
    if length > PARAMETERS_LIMIT:
        text = f"the custom parameters have {length} characters in the stream's URL; Exotel takes {PARAMETERS_LIMIT}"
        findings.append(_w3("fail", text))
    return dict(parse_qsl("&".join(pieces), keep_blank_values=True))


def _url_format(query: str, findings: list[Finding]) -> AudioFormat:
    """Return the audio format that a stream's URL asks for; 8 kHz unless told otherwise."""
    asked = next((value for name, value in parse_qsl(query) if name in _RATE_NAMES), "8000")
    wire = FORMATS.get(read_counter(asked) or 0)
    if wire is None:
        findings.append(_w3("fail", f"the stream's URL asks for a sample rate of {shown(asked)}, which Exotel has not"))
    return wire or L16_8K


def _either(content: Mapping[str, Any], name: str) -> Any:
    """Return a value by its key in snake case, or else in camel case."""
    return content[name] if name in content else content.get(_camel(name))


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(map(str.capitalize, tail))


def _in_camel_case(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with its keys in camel case; those of the user's own parameters stay."""
    return {
        _camel(key): _in_camel_case(value) if isinstance(value, dict) and key != "custom_parameters" else value
        for key, value in message.items()
    }


def _sequence(content: dict[str, Any]) -> int | None:
    return read_counter(_either(content, "sequence_number"))


def _inner(content: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    inner = content.get(name)
    if isinstance(inner, dict):
        return inner
    raise broken(kind, f"{name} is {shown(inner)}, not an object")


def _read_mark(content: dict[str, Any]) -> str:
    return read_text(_inner(content, "mark", "bad-mark").get("name"), "bad-mark", "mark.name")


def _read_start(content: dict[str, Any]) -> StreamStarted:
    start = _inner(content, "start", "bad-start")
    stream_id = _either(start, "stream_sid") or _either(content, "stream_sid")
    account_id = _either(start, "account_sid")
    return StreamStarted(
        stream_id=read_text(stream_id, "bad-start", "start.stream_sid"),
        call_id=read_text(_either(start, "call_sid"), "bad-start", "start.call_sid"),
        account_id=account_id if isinstance(account_id, str) else "",
        from_number=_number_text(start.get("from")),
        to_number=_number_text(start.get("to")),
        format=_read_format(_either(start, "media_format")),
        parameters=read_parameters(_either(start, "custom_parameters")),
        sequence=_sequence(content),
    )


def _number_text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _read_format(media_format: object) -> AudioFormat:
    """Read the rate alone: the encoding is called base64, raw and audio/x-raw, and is always the same."""
    if media_format is None:
        return L16_8K
    if not isinstance(media_format, dict):
        raise broken("bad-start", f"start.media_format is {shown(media_format)}, not an object")
    written = _either(media_format, "sample_rate")
    wire = FORMATS.get(8000 if written is None else read_counter(written) or 0)
    if wire is None:
        raise broken("bad-start", f"the audio's sample rate is {shown(written)}; Exotel streams 8000, 16000 or 24000")
    return wire
