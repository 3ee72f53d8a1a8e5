"""
Exotel's stream messages: https://developer.exotel.com/docs/agentstream/websocket-protocol

The audio is 16-bit little-endian at 8, 16 or 24 kHz. Keys are written in snake case, and have been seen in camel case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import AudioFormat
from wsvoice.providers.base import Level
from wsvoice.providers.events import Event, StreamStopped
from wsvoice.providers.exotel.company import FORMATS
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.judged_stream import JudgedStream

#: A message holds a multiple of it, in bytes. The page names 3200 as the least, too; a later one recommends 640 and
#: less, for quick interruptions, so small messages are not held against a bot.
#: https://developer.exotel.com/docs/agentstream/stream-voicebot-applet#audio-format
PAYLOAD_MULTIPLE = 320


class ExotelStream(JsonStream):
    """One end of a stream of the Voicebot applet."""

    #: Called base64, raw and audio/x-raw, and always the same: the rate alone tells the format.
    encodings: ClassVar[Mapping[AudioFormat, str]] = dict.fromkeys(FORMATS.values(), "audio/x-raw")
    default_format: ClassVar[AudioFormat] = FORMATS[8000]
    #: What Exotel's own bridge takes for an end: https://github.com/exotel/Agent-Stream
    carrier_aliases: ClassVar[Mapping[str, type[Event]]] = {"closed": StreamStopped}
    tracks: ClassVar[tuple[str, ...]] = ("inbound",)
    stream_id_keys: ClassVar[tuple[str, ...]] = ("stream_sid", "streamSid")
    call_id_keys: ClassVar[tuple[str, ...]] = ("call_sid", "callSid")
    account_id_keys: ClassVar[tuple[str, ...]] = ("account_sid", "accountSid")
    sequence_keys: ClassVar[tuple[str, ...]] = ("sequence_number", "sequenceNumber")
    parameters_keys: ClassVar[tuple[str, ...]] = ("custom_parameters", "customParameters")
    format_keys: ClassVar[tuple[str, ...]] = ("media_format", "mediaFormat")
    rate_keys: ClassVar[tuple[str, ...]] = ("sample_rate", "sampleRate")

    def find_format(self, name: object, rate: int | None) -> AudioFormat | None:
        return FORMATS.get(rate or 0)


class ExotelMirror(ExotelStream, JudgedStream):
    """The carrier's end, which looks at what a bot sends."""

    payload_limit: ClassVar[int] = 100_000
    payload_level: ClassVar[Level] = "fail"

    def judge_media(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        super().judge_media(content, media, payload)
        if len(payload) % PAYLOAD_MULTIPLE and not len(payload) & 1:
            self.found("warn", f"a media message is no multiple of {PAYLOAD_MULTIPLE} bytes, which plays with gaps")
