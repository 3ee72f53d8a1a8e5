"""
Plivo's stream messages:
https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference

The carrier says neither that it is connected nor that the stream has stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import AudioFormat
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Digit,
    Event,
    Mark,
    SendDigits,
    StreamError,
    StreamStarted,
    StreamStopped,
)
from wsvoice.providers.fields import (
    DIGITS,
    broken,
    read_counter,
    read_object,
    read_parameters,
    read_text,
    shown,
    squeezed,
)
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.judged_stream import JudgedStream
from wsvoice.providers.plivo.company import ENCODINGS

# Milliseconds: a timestamp beyond is Unix time (2008 and later), not the age of a stream.
_UNIX_TIME_MS = 1_200_000_000_000
_CALLER_HEADER = re.compile("^x-ph-", re.IGNORECASE)


#: Characters of base64 in one message: advised, and allowed.
#: https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-guide
PAYLOAD_ADVICE, PAYLOAD_LIMIT = 16 * 1024, 64 * 1024


class PlivoStream(JsonStream):
    """One end of an audio stream."""

    encodings: ClassVar[Mapping[AudioFormat, str]] = ENCODINGS
    carrier_messages: ClassVar[Mapping[type[Event], str]] = {
        StreamStarted: "start",
        Audio: "media",
        Digit: "dtmf",
        Mark: "playedStream",
        Cleared: "clearedAudio",
    }
    carrier_aliases: ClassVar[Mapping[str, type[Event]]] = {
        # https://github.com/plivo/plivo-streaming-examples
        "incorrectPayload": StreamError,
        # Only older libraries know it: https://github.com/plivo/plivo-stream-sdk-python
        "stop": StreamStopped,
    }
    bot_messages: ClassVar[Mapping[type[Event], str]] = {
        Audio: "playAudio",
        Mark: "checkpoint",
        Clear: "clearAudio",
        # https://docs.plivo.com/docs/voice/audio-streaming/audio-streaming
        SendDigits: "sendDTMF",
    }
    stream_id_keys: ClassVar[tuple[str, ...]] = ("streamId",)
    #: The documents', and one that others have seen.
    call_id_keys: ClassVar[tuple[str, ...]] = ("callId", "callUUID")
    account_id_keys: ClassVar[tuple[str, ...]] = ("accountId",)

    #: The first timestamp that was Unix time.
    _first_timestamp_ms: int | None = None

    def bot_message(self, name: str, event: Event) -> dict[str, Any]:
        if isinstance(event, Audio):
            wire = self.outbound_format
            media = {"contentType": self.encodings[wire], "sampleRate": wire.sample_rate, "payload": ""}
            return {"event": name, "media": media}
        if isinstance(event, SendDigits):
            return {"event": name, "dtmf": event.digits}
        message = {"event": name, "streamId": self.stream_id}
        return {**message, "name": event.name} if isinstance(event, Mark) else message

    def read_event(self, kind: type[Event], name: str, content: dict[str, Any], sequence: int | None) -> Event:
        if kind is Mark:
            return Mark(read_text(content.get("name"), "bad-mark", "name"), sequence)
        if kind is SendDigits:
            digits = content.get("dtmf")
            if not isinstance(digits, str) or not digits or not DIGITS.issuperset(digits):
                raise broken("bad-dtmf", f"dtmf is {shown(digits)}, not a text of keys 0-9 * # A-D")
            return SendDigits(digits)
        if kind is StreamError:
            return StreamError(name)
        return super().read_event(kind, name, content, sequence)

    def read_start_parameters(self, content: dict[str, Any], start: dict[str, Any]) -> dict[str, str]:
        """
        Return the extra headers of a start message.

        They have been seen as ``k=v;k=v``, as ``{X-PH-k: v}`` and as JSON; what is none of these counts for nothing.
        """
        written = content.get("extra_headers")
        try:
            headers = read_object(written) if isinstance(written, str) else written
        except RemoteProtocolError:
            return read_pairs(str(written))
        return {_CALLER_HEADER.sub("", name): value for name, value in read_parameters(headers).items()}

    def find_format(self, name: object, rate: int | None) -> AudioFormat | None:
        # It may be spelt as in the XML, rate included.
        return super().find_format(squeezed(name).partition(";")[0] if isinstance(name, str) else name, rate)

    def read_timestamp(self, media: dict[str, Any]) -> int | None:
        """Return the stream's age: one page calls the timestamp Unix time, a library of Plivo's the age."""
        timestamp = super().read_timestamp(media)
        if timestamp is None or timestamp < _UNIX_TIME_MS:
            return timestamp
        if self._first_timestamp_ms is None:
            self._first_timestamp_ms = timestamp
        return max(0, timestamp - self._first_timestamp_ms)

    def judge(self, event: Event, name: str, content: dict[str, Any]) -> None:
        if name == "media":
            raise broken("bad-media", "a bot's audio is a playAudio message; Plivo plays no media messages")
        super().judge(event, name, content)

    def judge_media(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        # Nothing of it is played, and the bot gets an incorrectPayload: https://github.com/plivo/plivo-streaming-examples
        wire, encoding, rate = self.outbound_format, media.get("contentType"), media.get("sampleRate")
        if encoding != (expected := self.encodings[wire]):
            text = f"media.contentType is {_told(encoding)}; the stream's is {expected}, without rate"
            raise broken("incorrect-payload", text)
        if read_counter(rate) != wire.sample_rate:
            text = f"media.sampleRate is {_told(rate)}; the stream's is {wire.sample_rate}"
            raise broken("incorrect-payload", text)
        if len(payload) % wire.sample_width:
            raise broken("incorrect-payload", f"{len(payload)} bytes of 16-bit audio end in the middle of a sample")
        super().judge_media(content, media, payload)


class PlivoMirror(PlivoStream, JudgedStream):
    """The carrier's end, which looks at what a bot sends."""

    payload_limit: ClassVar[int] = 0
    audio_message: ClassVar[str] = "playAudio"

    def judge_stream_id(self, name: str, content: dict[str, Any]) -> None:
        if name != self.audio_message:
            super().judge_stream_id(name, content)
        elif content.get("streamId") not in (None, self.stream_id):
            # Audio needs none; pipecat's serializer adds it.
            self.found("warn", f"a {name} message has the streamId of another stream")

    def judge_media(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        super().judge_media(content, media, payload)
        if isinstance(media["sampleRate"], str):
            self.found("warn", "media.sampleRate is a text; Plivo documents a number")
        size = len(media["payload"])
        if size > PAYLOAD_LIMIT:
            self.found("fail", f"a playAudio message holds more than {PAYLOAD_LIMIT // 1024} KiB of base64")
        elif size > PAYLOAD_ADVICE:
            self.found("warn", f"a playAudio message holds more than {PAYLOAD_ADVICE // 1024} KiB of base64")


def read_pairs(written: str) -> dict[str, str]:
    """Return extra headers that are no JSON: ``k=v;k=v``, ``k=v,k=v`` or ``{k: v, k: v}``."""
    text, separator = written.strip(), "="
    if text.startswith("{") and text.endswith("}"):
        text, separator = text[1:-1], ":"
    pairs = (part.partition(separator) for part in re.split("[;,]", text))
    return {
        _CALLER_HEADER.sub("", name.strip()): value.strip() for name, found, value in pairs if found and name.strip()
    }


def _told(value: object) -> str:
    if value is None:
        return "missing"
    return shown(value if isinstance(value, dict | list) else str(value))
