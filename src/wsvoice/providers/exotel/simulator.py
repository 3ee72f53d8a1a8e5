"""The simulator's half of Exotel: asking for the stream's URL, and the caller's end of the stream."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlunsplit

from wsvoice.audio import AudioFormat
from wsvoice.call import ENDED_STAGES, Call
from wsvoice.providers.base import (
    ECHOED_MARKS,
    Callback,
    Document,
    Hazard,
    Quirk,
    Side,
    Simulator,
    StatusReport,
    StreamRequest,
    WebhookRequest,
)
from wsvoice.providers.events import Audio, Connected, Digit, Event, StreamStarted, StreamStopped
from wsvoice.providers.exotel.company import FORMATS, PARAMETER_COUNT, PARAMETERS_LIMIT, RATE_NAMES, ExotelCompany
from wsvoice.providers.exotel.fake_api import ExotelApi
from wsvoice.providers.exotel.stream import ExotelMirror
from wsvoice.providers.fields import broken, read_counter, read_object, shown, write_time
from wsvoice.providers.hazards import JSON_HAZARDS
from wsvoice.providers.urls import form_request, json_request, read_stream_url, split_credentials
from wsvoice.providers.xml_answer import Reading

#: Bytes of an answer that are read; a URL is never as long.
ANSWER_LIMIT = 64 * 1024
#: The account of simulated calls.
ACCOUNT_ID = "wsvoice1"


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
    fake_api_type = ExotelApi
    hazards: ClassVar[Sequence[Hazard]] = JSON_HAZARDS
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "counters": Quirk("string", "how counters and rates are written", ("string", "number")),
        "case": Quirk("snake", "how the keys are written", ("snake", "camel")),
        "encoding-label": Quirk("audio/x-raw", "what the start message calls the audio's encoding"),
        **ECHOED_MARKS,
        "callback-format": Quirk("multipart", "how status callbacks are written", ("multipart", "form", "json")),
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

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        """
        Render a status callback, in the format that the quirk ``callback-format`` says.

        Who was called is the *from* of a call to a bot, for no other number is called. Machines are not detected.

        https://developer.exotel.com/docs/voice-v1/api-reference/status-callback
        """
        if report.answered_by is not None or report.greeting_ended or report.stage == "queued":
            return None
        at_time = _write_time(now)
        fields = {"CallSid": call.call_id, "EventType": report.stage, "DateUpdated": at_time, "Status": "in-progress"}
        fields |= {"From": call.to_number, "To": call.from_number}
        if report.stage in ENDED_STAGES:
            fields |= {
                "EventType": "terminal",
                "Status": report.stage,
                "ConversationDuration": str(math.ceil(report.duration_s)),
                "DateCreated": _write_time(now - report.duration_s),
                "Direction": "outbound-api",
                "EndTime": at_time,
                "PhoneNumberSid": call.from_number,
                "RecordingUrl": "",
                "StartTime": _write_time(now - report.duration_s),
            }
        form = self.quirk("callback-format")
        if form == "json":
            return json_request(at.url, at.method, fields)
        return _multipart_request(at.url, fields) if form == "multipart" else form_request(at.url, at.method, fields)

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        secret = hashlib.sha256(b"api" + seed).hexdigest()
        api = {"EXOTEL_API_KEY": secret[:48], "EXOTEL_API_TOKEN": secret[16:], "EXOTEL_ACCOUNT_SID": ACCOUNT_ID}
        return {}, {**api, "EXOTEL_SAMPLE_RATE": str(self.sample_rate)}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        return seed[:16].hex(), f"MZ{hashlib.sha256(seed).hexdigest()[:32]}", ACCOUNT_ID

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
        return self.read_stream(written)

    def read_stream(self, written: str) -> StreamRequest:
        """Read a stream's URL, of an answer or of a request for a call."""
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


def _write_time(at: float) -> str:
    """Return a time as Exotel writes it, to the second."""
    return write_time(at)[:19].replace("T", " ")


def _multipart_request(url: str, fields: Mapping[str, str]) -> WebhookRequest:
    """Return a form as Exotel sends it unless it is asked for JSON: https://www.rfc-editor.org/rfc/rfc7578"""
    boundary = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:24]
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    body = "".join([*parts, f"--{boundary}--\r\n"]).encode("utf-8", "surrogatepass")
    return WebhookRequest("POST", url, {"content-type": f"multipart/form-data; boundary={boundary}"}, body)


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
