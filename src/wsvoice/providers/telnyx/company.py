"""What all parts of Telnyx know: its settings, its audio, the keys that sign its webhooks, and where its API is."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import AnsweredBy, Stage
from wsvoice.errors import ConfigError
from wsvoice.providers.base import Company, HttpRequest
from wsvoice.providers.call_statuses import read_answered_by
from wsvoice.providers.fields import read_signature, text_or_nothing, write_object
from wsvoice.providers.urls import path_part

API_BASE_URL = "https://api.telnyx.com/v2"
SIGNATURE_HEADER = "telnyx-signature-ed25519"
TIMESTAMP_HEADER = "telnyx-timestamp"
#: The rates at which each encoding is streamed; Telnyx documents 16 kHz for L16, its libraries name more.
#: https://github.com/team-telnyx/telnyx-python/blob/master/src/telnyx/types/stream_bidirectional_sampling_rate.py
SAMPLE_RATES = {
    Encoding.PCMU: (8000,),
    Encoding.PCMA: (8000,),
    Encoding.L16: (16000, 8000, 22050, 24000, 48000),
}
#: What Telnyx can stream and we cannot read.
FOREIGN_CODECS = ("G722", "OPUS", "AMR-WB")
#: How a call ended, by its ``hangup_cause``. https://developers.telnyx.com/api-reference/callbacks/call-hangup
HANGUP_STAGES: Mapping[str, Stage] = {
    "normal_clearing": "completed",
    "time_limit": "completed",
    "user_busy": "busy",
    "call_rejected": "busy",
    "timeout": "no-answer",
    "no_answer": "no-answer",
    "originator_cancel": "canceled",
    "not_found": "failed",
    "unspecified": "failed",
}
#: With which ``hangup_cause`` a simulated call ends.
#: https://developers.telnyx.com/api-reference/callbacks/call-hangup
HANGUP_CAUSES: Mapping[Stage, str] = {
    "completed": "normal_clearing",
    "busy": "user_busy",
    "no-answer": "timeout",
    "failed": "not_found",
    "canceled": "originator_cancel",
}
#: The SIP responses with which the network refuses a call that nobody has declined.
#: https://developers.telnyx.com/docs/voice/sip-trunking/troubleshooting/response-codes
REFUSALS = frozenset({"401", "402", "403", "404", "407", "484", "488", "500", "502", "503", "504"})
_DETECTION_ENDED = ("call.machine.detection.ended", "call.machine.premium.detection.ended")
_GREETING_ENDED = ("call.machine.greeting.ended", "call.machine.premium.greeting.ended")
#: A telephone's own screening of callers has spoken; no machine listens yet.
_SCREENED = "prompt_ended"


class EventMeaning(NamedTuple):
    """What an event of Call Control says of its call; ``None`` where it says nothing."""

    stage: Stage | None = None
    answered_by: AnsweredBy | None = None
    greeting_ended: bool = False


def event_name(written: str) -> str:
    """Return an event's name with dots: users have seen underscores too, though the documents know the dots alone."""
    return written.replace("_", ".")


def error_code(payload: Mapping[str, Any]) -> str:
    """
    Return the code with which Telnyx itself refused a call, such as ``D60``; empty if it did not.

    https://support.telnyx.com/en/articles/4409457-telnyx-sip-response-codes
    """
    error = payload.get("telnyx_error")
    return text_or_nothing(error.get("error_code")) if isinstance(error, dict) else ""


def read_meaning(name: str, payload: Mapping[str, Any]) -> EventMeaning:
    """
    Return what an event says of its call.

    An outbound call rings from ``call.initiated`` on: Call Control has no event of its own for that.

    https://developers.telnyx.com/docs/voice/programmable-voice/voice-api-webhooks
    """
    result = text_or_nothing(payload.get("result"))
    if name == "call.initiated":
        return EventMeaning("ringing")
    if name == "call.answered":
        return EventMeaning("answered")
    if name == "call.hangup":
        return EventMeaning(_ended_stage(payload))
    if name in _DETECTION_ENDED:
        # https://developers.telnyx.com/docs/voice/programmable-voice/answering-machine-detection
        return EventMeaning(answered_by=read_answered_by(result) or "unknown")
    if name in _GREETING_ENDED and result != _SCREENED:
        # Whatever was heard at its end, nothing more is reported: a message can be left now or never.
        return EventMeaning(answered_by="machine", greeting_ended=True)
    return EventMeaning()


def _ended_stage(payload: Mapping[str, Any]) -> Stage:
    cause = text_or_nothing(payload.get("hangup_cause"))
    if cause == "call_rejected" and (
        error_code(payload) or text_or_nothing(payload.get("sip_hangup_cause")) in REFUSALS
    ):
        return "failed"
    return HANGUP_STAGES.get(cause, "failed" if cause else "completed")


class SettingNames(NamedTuple):
    """What an answer calls the settings of a stream."""

    track: str
    codec: str
    mode: str
    outbound_codec: str
    outbound_rate: str


#: https://developers.telnyx.com/docs/voice/programmable-voice/texml-verbs/stream
TEXML_NAMES = SettingNames("track", "codec", "bidirectionalMode", "bidirectionalCodec", "bidirectionalSamplingRate")
#: https://developers.telnyx.com/api-reference/call-commands/answer-call
API_NAMES = SettingNames(
    "stream_track",
    "stream_codec",
    "stream_bidirectional_mode",
    "stream_bidirectional_codec",
    "stream_bidirectional_sampling_rate",
)


class TelnyxCompany(Company):
    """
    Telnyx, with credentials by environment variable name.

    ==========================  =================================================================================
    ``TELNYX_PUBLIC_KEY``       verifies webhooks; base64, from the portal under *Keys & Credentials*
    ``TELNYX_API_KEY``          answers and ends Call Control calls, points numbers and places calls
    ``TELNYX_BASE_URL``         another address of the API, with its version, as in Telnyx's own libraries
    ``TELNYX_CONNECTION_ID``    the application by which calls are placed; that of the calling number by default
    ``TELNYX_PRIVATE_KEY``      not Telnyx's but ours: base64 of the 32-byte seed that test calls are signed with
    ``TELNYX_STREAM_CODEC``     ours: the audio to ask for, both ways: ``PCMU`` (default), ``PCMA`` or ``L16``
    ``TELNYX_L16_BYTE_ORDER``   ours: ``little`` (default) or ``big``; Telnyx does not document it
    ==========================  =================================================================================

    Raises:
        ConfigError: If the codec or the byte order is none of these.
    """

    name: ClassVar[str] = "telnyx"
    title: ClassVar[str] = "Telnyx"
    codes_page: ClassVar[str] = "https://developers.telnyx.com/development/api-fundamentals/api-errors"
    credential_names: ClassVar[tuple[str, ...]] = (
        "TELNYX_PUBLIC_KEY",
        "TELNYX_PRIVATE_KEY",
        "TELNYX_API_KEY",
        "TELNYX_BASE_URL",
        "TELNYX_CONNECTION_ID",
        "TELNYX_STREAM_CODEC",
        "TELNYX_L16_BYTE_ORDER",
    )

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        # RTP is big-endian, but Telnyx's own demo is reported to be little-endian, and most bridges in use are:
        # https://github.com/team-telnyx/realtime-ai-demo
        self.big_endian = self.setting("TELNYX_L16_BYTE_ORDER", "little", ("little", "big")) == "big"
        codec = Encoding(self.setting("TELNYX_STREAM_CODEC", "PCMU", Encoding))
        #: The audio that is asked for, both ways.
        self.format = self.audio_format(codec, SAMPLE_RATES[codec][0])

    def audio_format(self, encoding: Encoding, sample_rate: int) -> AudioFormat:
        """Return a format in the byte order that is set."""
        return AudioFormat(encoding, sample_rate, encoding is Encoding.L16 and self.big_endian)

    def stream_settings(self, names: SettingNames) -> dict[str, Any]:
        """
        Return the settings of a two-way stream of :attr:`format`.

        Everything with a harmful default is written out: without a codec Telnyx sends that of the call's leg, and
        without the mode it takes what we send for MP3 files.
        """
        codec = self.format.encoding.value
        return dict(zip(names, ("inbound_track", codec, "rtp", codec, self.format.sample_rate), strict=True))

    def api_request(
        self,
        method: str,
        *path: str,
        content: Mapping[str, Any] | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> HttpRequest:
        """
        Return a request to the API, signed with the key.

        Args:
            path: The segments of its path, after the version; an id holds colons, which are escaped.
            content: Sent as JSON; ``None`` for no body.

        https://developers.telnyx.com/development/api-fundamentals/authentication
        """
        base = (self.credential("TELNYX_BASE_URL") or API_BASE_URL).rstrip("/")
        url = "/".join((base, *map(path_part, path)))
        headers = {"authorization": f"Bearer {self.credential('TELNYX_API_KEY')}", "accept": "application/json"}
        if content is None:
            return HttpRequest(method, f"{url}?{urlencode(query)}" if query else url, headers)
        headers["content-type"] = "application/json"
        return HttpRequest(method, url, headers, write_object(dict(content)).encode())

    def can_verify(self) -> bool:
        return bool(self.credential("TELNYX_PUBLIC_KEY") or self.credential("TELNYX_PRIVATE_KEY"))

    def private_key(self) -> Ed25519PrivateKey | None:
        """Return the key that signs test calls; ``None`` if it is not known."""
        written = self.credential("TELNYX_PRIVATE_KEY")
        return Ed25519PrivateKey.from_private_bytes(read_key("TELNYX_PRIVATE_KEY", written)) if written else None


def hangup_source(stage: Stage) -> str:
    """Return who ends a simulated outbound call."""
    return "caller" if stage == "canceled" else "callee"


def read_key(name: str, written: str) -> bytes:
    """
    Return the bytes of the key that the credential `name` holds.

    Raises:
        ConfigError: If it is no key.
    """
    key = read_signature(written.strip())
    if len(key) != 32:
        raise ConfigError(
            f"{name} is not a key: it must be the base64 of 32 bytes",
            hint="it has 44 characters, the last of which is =; copy it whole",
        )
    return key


def stable_uuid(what: str, call_id: str) -> str:
    """Return an id that is always the same for the same call."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"telnyx:{what}:{call_id}"))
