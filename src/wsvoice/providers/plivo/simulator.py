"""The simulator's half of Plivo: webhooks made and signed, Plivo XML carried out."""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b32encode
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal
from xml.etree.ElementTree import Element

from wsvoice.audio import AudioFormat
from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import ConfigError
from wsvoice.providers.base import (
    Callback,
    Occasion,
    Progress,
    Quirk,
    Side,
    StatusReport,
    StreamStatus,
    WebhookRequest,
)
from wsvoice.providers.events import Audio, Cleared, Digit, Event, Mark, StreamStarted
from wsvoice.providers.fields import broken, read_counter, shown, squeezed, without_plus, write_time
from wsvoice.providers.plivo.company import (
    CONTENT_TYPES,
    HEADERS,
    STAGES,
    TOKEN_NAMES,
    URL_LIMIT,
    PlivoCompany,
    Version,
    signed_text,
)
from wsvoice.providers.plivo.fake_account import stable_uuid
from wsvoice.providers.plivo.fake_api import PlivoApi
from wsvoice.providers.plivo.hangup_causes import HANGUP_CAUSES, USUAL_CAUSES
from wsvoice.providers.plivo.stream import PlivoMirror, read_pairs
from wsvoice.providers.signing import Fields, SignedUrl, hmac_base64
from wsvoice.providers.urls import form_request, read_stream_url
from wsvoice.providers.xml_answer import Reading, XmlSimulator

#: Bytes of the ``extraHeaders`` attribute: https://docs.plivo.com/docs/voice/xml/audiostream
EXTRA_HEADERS_LIMIT = 512
# What the XML reference says; the streaming guide says mu-law.
_UNSAID_CONTENT_TYPE = "audio/x-l16;rate=8000"
#: The standard causes that go with the stages in which a call ends, and who ends it then.
#: https://docs.plivo.com/docs/voice/troubleshooting/hangup-causes
_ENDS: Mapping[Stage, tuple[str, str]] = {
    "completed": ("NORMAL_CLEARING", "Caller"),
    "busy": ("USER_BUSY", "Callee"),
    "no-answer": ("NO_ANSWER", "Plivo"),
    "failed": ("NORMAL_TEMPORARY_FAILURE", "Carrier"),
    "canceled": ("ORIGINATOR_CANCEL", "API Request"),
}
_PLAIN = re.compile(r"[A-Za-z0-9+_.-]+")
_ALPHANUMERIC = re.compile(r"[A-Za-z0-9]+")


class PlivoCarrier(PlivoMirror):
    """The simulated carrier's end."""

    def __init__(self, side: Side, company: PlivoSimulator) -> None:
        super().__init__(side, company)
        self._number = str if company.quirk("counters") == "string" else int
        self._extra_headers_as = company.quirk("extra-headers")
        self._extra_headers = ""
        base = company.quirk("timestamp-base")
        if (timestamp_base_ms := read_counter(base)) is None:
            raise ConfigError(f"the quirk timestamp-base is {shown(base)}, not a number of milliseconds")
        self._timestamp_base_ms = timestamp_base_ms

    def begin(self, event: StreamStarted) -> None:
        super().begin(event)
        self._extra_headers = _write_extra_headers(event.parameters, self._extra_headers_as)

    def envelope(self, name: str, event: Event, content: Any) -> dict[str, Any]:
        message = {"event": name, "sequenceNumber": self._number(self.next_sequence(event))}
        if not isinstance(event, StreamStarted):
            message["streamId"] = self.stream_id
        if isinstance(event, Mark | Cleared):
            return {**message, **content}
        more = {"extra_headers": self._extra_headers} if isinstance(event, StreamStarted | Audio) else {}
        return {**message, name: content, **more}

    def carrier_content(self, event: Event) -> Any:
        if isinstance(event, Digit):
            return {"track": "inbound", "digit": event.digit, "timestamp": str(self.sent_ms("inbound"))}
        return super().carrier_content(event)

    def start_content(self, event: StreamStarted) -> dict[str, Any]:
        return {
            "callId": event.call_id,
            "streamId": event.stream_id,
            "accountId": event.account_id,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": self.encodings[event.format], "sampleRate": event.format.sample_rate},
        }

    def media_content(self, audio: Audio) -> dict[str, Any]:
        content = super().media_content(audio)
        return {**content, "chunk": self._number(content["chunk"])}

    def sent_ms(self, track: str) -> int:
        return self._timestamp_base_ms + super().sent_ms(track)


class PlivoSimulator(PlivoCompany, XmlSimulator):
    """What ``wsvoice dial -t plivo`` knows of Plivo."""

    carrier_type = PlivoCarrier
    fake_api_type = PlivoApi
    #: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
    queue_limit_s: ClassVar[float] = 60.0
    #: https://plivo.com/docs/voice/xml/the-stream-element/checkpoint-event
    cleared_marks: ClassVar[Literal["returned", "dropped"]] = "dropped"
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "start-delay": Quirk(
            "0", "seconds between the socket's opening and the start message", most=3600.0, sets="start_delay_s"
        ),
        "silent": Quirk("no", "send no audio after the start message", ("no", "yes"), sets="silent"),
        "ws-signature-form": Quirk(
            "https", "scheme of the URL that the upgrade is signed for", ("https", "wss", "http")
        ),
        "counters": Quirk("number", "how sequence and chunk numbers are written", ("number", "string")),
        "extra-headers": Quirk("pairs", "how extra headers are written", ("pairs", "braces", "json")),
        "timestamp-base": Quirk("0", "Unix time in ms that timestamps count from; 0 counts from the stream's start"),
    }
    kept_settings: ClassVar[tuple[str, ...]] = ("PLIVO_STREAM_CONTENT_TYPE",)
    #: https://www.plivo.com/docs/voice/concepts/callbacks
    document_limit: ClassVar[int] = 100 * 1024
    stream_element: ClassVar[str] = "<Stream>"
    stream_parents: ClassVar[tuple[str, ...]] = ()
    status_callback: ClassVar[str] = "statusCallbackUrl"
    messages: ClassVar[frozenset[str]] = frozenset({"Speak", "Play"})
    #: https://docs.plivo.com/docs/voice/xml/audiostream
    stream_attributes: ClassVar[frozenset[str]] = frozenset(
        {
            "bidirectional",
            "audioTrack",
            "streamTimeout",
            "statusCallbackUrl",
            "statusCallbackMethod",
            "contentType",
            "extraHeaders",
            "keepCallAlive",
            "noiseCancellation",
            "noiseCancellationLevel",
        }
    )

    # The webhooks: https://www.plivo.com/docs/voice/concepts/callbacks

    def webhook_fields(self, call: Call, occasion: Occasion | None, status: str, now: float) -> dict[str, str]:
        # https://www.plivo.com/docs/voice/xml/redirect
        fields = {
            **_identity(call),
            "ALegUUID": call.call_id,
            "BillRate": "0.0085",
            "CallStatus": status,
            "CallerName": without_plus(call.from_number),
            "Event": "Redirect" if occasion else "StartApp",
            "SessionStart": write_time(now).replace("T", " ").removesuffix("Z"),
        }
        if call.direction == "outbound":
            fields["ALegRequestUUID"] = fields["RequestUUID"] = stable_uuid(call.call_id)
        return fields

    def request(self, url: str, method: str, fields: Mapping[str, str], now: float) -> WebhookRequest:
        return form_request(url, method, fields, {"accept": "*/*"})

    def stream_fields(self, call: Call, status: StreamStatus, name: str, error: str, now: float) -> dict[str, Any]:
        # https://docs.plivo.com/docs/voice/xml/audiostream
        return {
            **_identity(call),
            "Event": {"started": "StartStream", "stopped": "StopStream", "failed": "DroppedStream"}[status],
            "StreamID": call.stream_id,
            **({"StatusReason": error} if error else {}),
            "Timestamp": write_time(now),
        }

    def progress_webhook(
        self, call: Call, at: Callback, progress: Progress, *, duration_s: float = 0.0, now: float = 0.0
    ) -> WebhookRequest | None:
        # An application's hang-up URL is its answer URL unless it has another.
        if progress != "ended":
            return None
        return self.request(at.url, at.method, _hangup_fields(call, "completed", duration_s), now)

    def status_webhook(
        self, call: Call, at: Callback, report: StatusReport, *, now: float = 0.0
    ) -> WebhookRequest | None:
        """
        Render what is sent to the ring URL, the hang-up URL, or the one for machine detection.

        That a call is answered is told by the request for its document, and the end of a greeting not at all. Only a
        machine is told apart: whatever else answers is no machine.

        https://docs.plivo.com/docs/voice/api/call/make-a-call
        https://docs.plivo.com/docs/voice/api/call/machine-detection
        """
        request_id = stable_uuid(call.call_id)
        if report.answered_by is not None:
            fields = {
                **_identity(call),
                "ALegRequestUUID": request_id,
                "ALegUUID": call.call_id,
                "CallStatus": "in-progress",
                "Event": "MachineDetection",
                "IfMachine": "continue",
                "Machine": "true" if report.answered_by == "machine" else "false",
            }
        elif report.greeting_ended:
            return None
        elif report.stage == "ringing":
            fields = {**_identity(call), "CallStatus": "ringing", "Event": "Ring"}
        elif report.stage in ENDED_STAGES:
            fields = _hangup_fields(call, report.stage, report.duration_s)
        else:
            return None
        return self.request(at.url, at.method, {**fields, "RequestUUID": request_id}, now)

    def signature_headers(self, request: WebhookRequest, now: float) -> dict[str, str]:
        """
        Return Plivo's signatures, versions 3 and 2.

        The nonces follow from the request and `now`. The headers of the main account are there if its token is.
        """
        content = (request.method.encode(), request.url.encode("utf-8", "surrogatepass"), request.body)
        return {
            **self._signature_headers(3, _nonce(3, now, *content), request.method, request.url, request.form),
            **self._signature_headers(2, _nonce(2, now, *content), request.method, request.url),
        }

    def upgrade_headers(self, url: str, *, now: float) -> dict[str, str]:
        if not self.can_verify():
            return {}
        signed = str(SignedUrl.parse(url)._replace(scheme=self.quirk("ws-signature-form")))
        nonce = _nonce(3, now, b"GET", signed.encode("utf-8", "surrogatepass"))
        return self._signature_headers(3, nonce, "GET", signed)

    def _signature_headers(
        self, version: Version, nonce: str, method: str, url: str, fields: Fields = ()
    ) -> dict[str, str]:
        names, text = HEADERS[version], signed_text(version, nonce, method, url, fields)
        tokens = zip((names.own, names.main), map(self.credential, TOKEN_NAMES), strict=True)
        signatures = {header: hmac_base64(token, text, "sha256") for header, token in tokens if token}
        return {**signatures, names.nonce: nonce}

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        token = {"PLIVO_AUTH_TOKEN": hashlib.sha256(b"token" + seed).hexdigest()[:40]}
        return token, {**token, "PLIVO_AUTH_ID": _account_id(seed)}

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        call_id, stream_id, _ = super().new_ids(seed)
        return call_id, stream_id, _account_id(seed)

    # XML: https://www.plivo.com/docs/voice/xml/request

    def read_url(self, stream: Element, reading: Reading) -> str:
        written = (stream.text or "").strip()
        if not written:
            where = " in its url attribute, which is Twilio's way" if stream.get("url") else ""
            raise broken("bad-url", f"<Stream> holds no URL{where}; write it between the tags")
        if len(written) > URL_LIMIT:
            raise broken("bad-url", f"the stream's URL has {len(written)} characters; {URL_LIMIT} are allowed")
        if read_stream_url(written).scheme == "ws":
            reading.found("warn", "the stream's URL is ws://; Plivo documents wss:// alone")
        return written

    def read_parameters(self, stream: Element, reading: Reading) -> dict[str, str]:
        written = stream.get("extraHeaders", "")
        parameters = read_pairs(written)
        if len(written.encode("utf-8", "surrogatepass")) > EXTRA_HEADERS_LIMIT:
            reading.found("fail", f"extraHeaders is longer than {EXTRA_HEADERS_LIMIT} bytes")
        if not all(_ALPHANUMERIC.fullmatch(text) for pair in parameters.items() for text in pair):
            reading.found("warn", "extraHeaders takes letters and digits alone")
        if len(parameters) > 1:
            reading.found(
                "warn", "Plivo's reference separates extraHeaders by commas, its guide by semicolons: send one pair"
            )
        return parameters

    def read_formats(self, stream: Element, reading: Reading) -> tuple[AudioFormat, AudioFormat | None]:
        written = stream.get("contentType")
        if written is None:
            text = "<Stream> has no contentType: Plivo's reference then means 16-bit audio, its guide mu-law"
            reading.found("warn", text, "W5")
            return CONTENT_TYPES[_UNSAID_CONTENT_TYPE], None
        known = CONTENT_TYPES.get(squeezed(written))
        if known is None:
            raise broken("bad-format", f"contentType is {shown(written)}; it is one of {', '.join(CONTENT_TYPES)}")
        return known, None

    def judge_stream(self, stream: Element, verb: Element, later: Sequence[Element], reading: Reading) -> None:
        if not _is_true(stream, "bidirectional"):
            text = '<Stream> only listens without bidirectional="true": the caller never hears the bot'
            reading.found("fail", text, "W5")
        elif stream.get("audioTrack", "inbound") != "inbound":
            reading.found("fail", "a two-way <Stream> takes no audioTrack but inbound", "W5")
        if not _is_true(stream, "keepCallAlive"):
            what = "what follows it runs while it streams" if later else "the call ends, for nothing follows it"
            reading.found("warn" if later else "fail", f'<Stream> has no keepCallAlive="true": {what}', "W5")
        if any(each.tag == "Stream" for each in later):
            reading.found("warn", "a call takes one <Stream>; the answer holds another")
        timeout = stream.get("streamTimeout")
        if timeout is not None and not read_counter(timeout):
            reading.found("warn", f"streamTimeout is {shown(timeout)}, not a number of seconds")


def _hangup_fields(call: Call, stage: Stage, duration_s: float) -> dict[str, str]:
    """Return what is told of a call's end: https://www.plivo.com/docs/voice/concepts/callbacks"""
    seconds, code, (cause, source) = math.ceil(duration_s), USUAL_CAUSES[stage], _ENDS[stage]
    return {
        **_identity(call),
        "BillDuration": str(-(-seconds // 60) * 60),
        "CallStatus": next(name for name, meant in STAGES.items() if meant == stage),
        "Duration": str(seconds),
        "Event": "Hangup",
        "HangupCause": cause,
        "HangupCauseCode": code,
        "HangupCauseName": HANGUP_CAUSES[code].name,
        "HangupSource": source,
    }


def _identity(call: Call) -> dict[str, str]:
    return {
        "AuthID": call.account_id,
        "CallUUID": call.call_id,
        "Direction": call.direction,
        "From": without_plus(call.from_number),
        "ParentAuthID": call.account_id,
        "To": without_plus(call.to_number),
    }


def _account_id(seed: bytes) -> str:
    """Return an id of a main account's shape."""
    return f"MA{b32encode(hashlib.sha256(b'account' + seed).digest()).decode('ascii')[:18]}"


def _nonce(version: int, now: float, *content: bytes) -> str:
    """Return 20 digits, as Plivo's nonces have, that follow from the arguments."""
    digest = hashlib.sha256(f"{version} {now!r}".encode())
    for part in content:
        digest.update(b"\x00" + part)
    return f"{int.from_bytes(digest.digest()) % 10**20:020}"


def _is_true(stream: Element, attribute: str) -> bool:
    return stream.get(attribute, "").strip().lower() == "true"


def _write_extra_headers(parameters: Mapping[str, str], how: str) -> str:
    """Return parameters as ``pairs``, in ``braces`` or as ``json``, which alone has a way to write all values."""
    plain = all(_PLAIN.fullmatch(text) for pair in parameters.items() for text in pair)
    if parameters and plain and how == "pairs":
        return ";".join(f"{name}={value}" for name, value in parameters.items())
    if parameters and plain and how == "braces":
        return "{" + ", ".join(f"X-PH-{name}: {value}" for name, value in parameters.items()) + "}"
    return json.dumps(dict(parameters))
