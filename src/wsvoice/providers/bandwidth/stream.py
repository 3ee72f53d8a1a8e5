"""
Bandwidth's stream messages: https://dev.bandwidth.com/docs/voice/programmable-voice/bxml/startStream/

The caller's audio stands at the top of its message, the bot's inside of ``media``, with its format. There are no marks
and no keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.providers.bandwidth.company import BandwidthCompany
from wsvoice.providers.base import Side
from wsvoice.providers.events import Audio, Clear, Event, StreamStarted, StreamStopped
from wsvoice.providers.fields import broken, read_inner, shown
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.judged_stream import JudgedStream


class BandwidthStream(JsonStream):
    """One end of a two-way stream; no message tells how the bot's audio is encoded before the audio itself."""

    company: BandwidthCompany
    name_key: ClassVar[str] = "eventType"
    encodings: ClassVar[Mapping[AudioFormat, str]] = {PCMU_8K: "audio/PCMU"}
    carrier_messages: ClassVar[Mapping[type[Event], str]] = {
        StreamStarted: "start",
        Audio: "media",
        StreamStopped: "stop",
    }
    bot_messages: ClassVar[Mapping[type[Event], str]] = {Audio: "playAudio", Clear: "clear"}
    needs_stream_id: ClassVar[bool] = False
    stream_id_keys: ClassVar[tuple[str, ...]] = ("streamId",)
    call_id_keys: ClassVar[tuple[str, ...]] = ("callId",)
    account_id_keys: ClassVar[tuple[str, ...]] = ("accountId",)
    parameters_keys: ClassVar[tuple[str, ...]] = ("streamParams",)

    def __init__(self, side: Side, company: BandwidthCompany) -> None:
        super().__init__(side, company)
        self.outbound_format = company.outbound_format

    def begin(self, event: StreamStarted) -> None:
        super().begin(event)
        self.outbound_format = self.company.outbound_format

    def bot_message(self, name: str, event: Event) -> dict[str, Any]:
        media = {"contentType": content_type(self.company.outbound_format), "payload": ""}
        return {self.name_key: name, "media": media} if isinstance(event, Audio) else {self.name_key: name}

    def read_start(self, content: dict[str, Any], sequence: int | None) -> StreamStarted:
        metadata = read_inner(content, "metadata", "bad-start")
        tracks = metadata.get("tracks")
        # A library of Bandwidth's own knows tracks that are names alone, which say nothing of a format.
        described = [each for each in tracks if isinstance(each, dict)] if isinstance(tracks, list) else []
        media_format = described[0].get("mediaFormat") if described else None
        start = {**metadata, "mediaFormat": media_format, "streamParams": content.get("streamParams")}
        return super().read_start({"start": start}, sequence)

    def find_format(self, name: object, rate: int | None) -> AudioFormat | None:
        is_pcmu = isinstance(name, str) and name.lower() == "audio/pcmu"
        return PCMU_8K if is_pcmu and rate == PCMU_8K.sample_rate else None

    def read_media(self, name: str, content: dict[str, Any]) -> Audio:
        if self.side is Side.BOT:
            return super().read_media(name, {**content, "media": content})
        told = read_inner(content, "media", "bad-media").get("contentType")
        expected = content_type(self.company.outbound_format)
        if not isinstance(told, str) or told.replace(" ", "").lower() != expected:
            text = f"media.contentType is {shown(told)}, and this call's is {shown(expected)}"
            raise broken("other-format", f"{text}: both ends read BANDWIDTH_OUTBOUND_CODEC")
        return super().read_media(name, content)


class BandwidthMirror(BandwidthStream, JudgedStream):
    """The carrier's end, which looks at what a bot sends."""

    audio_message: ClassVar[str] = "playAudio"


def content_type(wire: AudioFormat) -> str:
    """Return what a bot's message calls its audio."""
    if wire.encoding is Encoding.PCMU:
        return "audio/pcmu"
    return f"audio/pcm;rate={wire.sample_rate};channels=1;bit-depth=16;endian=little;encoding=signed"
