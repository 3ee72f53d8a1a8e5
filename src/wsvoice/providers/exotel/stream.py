"""
Exotel's stream messages: https://developer.exotel.com/docs/agentstream/websocket-protocol

The audio is 16-bit little-endian at 8, 16 or 24 kHz. Keys are written in snake case, and have been seen in camel case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.audio import AudioFormat
from wsvoice.providers.events import Event, StreamStopped
from wsvoice.providers.exotel.company import FORMATS
from wsvoice.providers.json_stream import JsonStream


class ExotelStream(JsonStream):
    """One end of a stream of the Voicebot applet."""

    title: ClassVar[str] = "Exotel"
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
