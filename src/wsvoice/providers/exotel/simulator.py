"""The simulator's half of Exotel: asking for the stream's URL, and the caller's end of the stream."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlunsplit

from wsvoice.audio import AudioFormat
from wsvoice.call import Call
from wsvoice.providers.base import (
    ECHOED_MARKS,
    Document,
    Hazard,
    Quirk,
    Side,
    Simulator,
    StreamRequest,
    WebhookRequest,
)
from wsvoice.providers.events import Audio, Connected, Digit, Event, StreamStarted, StreamStopped
from wsvoice.providers.exotel.company import FORMATS, PARAMETER_COUNT, PARAMETERS_LIMIT, RATE_NAMES, ExotelCompany
from wsvoice.providers.exotel.stream import ExotelMirror
from wsvoice.providers.fields import broken, read_counter, read_object, shown
from wsvoice.providers.hazards import JSON_HAZARDS
from wsvoice.providers.urls import form_request, read_stream_url, split_credentials
from wsvoice.providers.xml_answer import Reading

#: Bytes of an answer that are read; a URL is never as long.
ANSWER_LIMIT = 64 * 1024


class ExotelCarrier(ExotelMirror):
    """The simulated carrier's end."""

    def __init__(self, side: Side, company: ExotelSimulator) -> None:
        super().__init__(side, company)
        self._number = int if company.quirk("counters") == "number" else str
        self._camel = company.quirk("case") == "camel"
        # No reader may rely on it.
        self._encoding_label = company.quirk("encoding-label")

    def connected_content(self, event: Connected) -> dict[str, str]:
        return {}

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        number = self._number(self.next_sequence(event))
        message = {"event": name, "sequence_number": number, "stream_sid": self.stream_id, name: content}
        return in_camel_case(message) if self._camel else message

    def carrier_content(self, event: Event) -> Any:
        if isinstance(event, Digit):
            return {"digit": event.digit, "duration": self._number(100)}
        if isinstance(event, StreamStopped):
            reason = {"reason": event.reason} if event.reason else {}
            return {"call_sid": self.call_id, "account_sid": self.account_id, **reason}
        return super().carrier_content(event)

    def start_content(self, event: StreamStarted) -> dict[str, Any]:
        return {
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

    def media_content(self, audio: Audio) -> dict[str, Any]:
        content = super().media_content(audio)
        return {
            "chunk": self._number(content["chunk"]),
            "timestamp": self._number(content["timestamp"]),
            "payload": content["payload"],
        }


class ExotelSimulator(ExotelCompany, Simulator):
    """What ``wsvoice dial -t exotel`` knows of Exotel."""

    carrier_type = ExotelCarrier
    hazards: ClassVar[Sequence[Hazard]] = JSON_HAZARDS
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "counters": Quirk("string", "how counters and rates are written", ("string", "number")),
        "case": Quirk("snake", "how the keys are written", ("snake", "camel")),
        "encoding-label": Quirk("audio/x-raw", "what the start message calls the audio's encoding"),
        **ECHOED_MARKS,
        "frame-ms": Quirk(
            "100", "how long a piece of the caller's audio is", ("100", "20"), most=1000.0, sets="frame_ms"
        ),
    }

    def webhook(self, call: Call, url: str, *, method: str = "POST", now: float = 0.0) -> WebhookRequest:
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
        return form_request(url.partition("#")[0], method, fields)

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        return {}, {"EXOTEL_SAMPLE_RATE": str(self.sample_rate)}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        return seed[:16].hex(), f"MZ{hashlib.sha256(seed).hexdigest()[:32]}", "wsvoice1"

    def read_answer(self, body: bytes, content_type: str, *, base_url: str = "", first: bool = True) -> Document:
        """
        Read the stream's URL from an answer of a dynamic URL.

        The query stays in the URL that is dialled. Credentials in it become the header as which Exotel sends
        them.

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
        if written.startswith(("http://", "https://")):
            raise broken("bad-url", f"the answer names another web address, {shown(written)}; it must be wss://")
        url = read_stream_url(written)
        reading = Reading()
        if url.scheme == "ws":
            reading.found("warn", "the stream's URL is ws://, which carries the call in the clear; use wss://")
        address, credentials = split_credentials(urlunsplit(url._replace(fragment="")))
        return StreamRequest(
            url=address,
            parameters=_url_parameters(url.query, reading),
            format=_url_format(url.query, reading),
            headers=credentials,
            findings=reading.findings,
        )


def _url_parameters(query: str, reading: Reading) -> dict[str, str]:
    """Return the custom parameters of a stream's URL."""
    pieces = [piece for piece in query.split("&") if piece and piece.partition("=")[0] not in RATE_NAMES]
    length = len("&".join(pieces))
    if len(pieces) > PARAMETER_COUNT:
        text = f"the stream's URL has {len(pieces)} custom parameters; Exotel takes {PARAMETER_COUNT}"
        reading.found("fail", text)
    if length > PARAMETERS_LIMIT:
        text = f"the custom parameters have {length} characters in the stream's URL; Exotel takes {PARAMETERS_LIMIT}"
        reading.found("fail", text)
    return dict(parse_qsl("&".join(pieces), keep_blank_values=True))


def _url_format(query: str, reading: Reading) -> AudioFormat:
    """Return the audio format that a stream's URL asks for; 8 kHz unless told otherwise."""
    asked = next((value for name, value in parse_qsl(query) if name in RATE_NAMES), "8000")
    wire = FORMATS.get(read_counter(asked) or 0)
    if wire is None:
        reading.found("fail", f"the stream's URL asks for a sample rate of {shown(asked)}, which Exotel has not")
    return wire or FORMATS[8000]


def in_camel_case(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its keys in camel case; those of custom parameters are the user's."""
    return {
        _camel(key): in_camel_case(value) if isinstance(value, dict) and key != "custom_parameters" else value
        for key, value in message.items()
    }


def _camel(name: str) -> str:
    head, *tail = name.split("_")
    return head + "".join(part.title() for part in tail)
