"""The carrier's end of a test call, which looks at what a bot sends."""

from __future__ import annotations

from typing import Any, ClassVar

from wsvoice.providers.base import Company, Finding, Level, Side
from wsvoice.providers.binary_stream import BinaryStream
from wsvoice.providers.events import Event, SendDigits, Unknown
from wsvoice.providers.fields import shown
from wsvoice.providers.json_stream import JsonStream
from wsvoice.providers.media_stream import Stream


class Judge(Stream):
    """A carrier's end that notes what the company would dislike about a bot's messages."""

    #: How much audio a message may hold, in bytes, and how bad more is; 0 for no limit.
    payload_limit: ClassVar[int] = 32 * 1024
    payload_level: ClassVar[Level] = "warn"
    #: What a message of audio is called.
    audio_message: ClassVar[str] = "media"

    def __init__(self, side: Side, company: Company) -> None:
        super().__init__(side, company)
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        found, self._findings = self._findings, []
        return found

    def found(self, level: Level, message: str) -> None:
        """Note what the company would dislike."""
        self._findings.append(Finding("M1", level, message))

    def judge_audio(self, payload: bytes) -> None:
        name = self.audio_message
        if not payload:
            self.found("warn", f"a {name} message has an empty payload")
        elif payload.startswith(b"RIFF"):
            self.found("fail", "the audio starts with a WAV header, which plays as noise: send the samples alone")
        if len(payload) % self.outbound_format.sample_width:
            self.found("fail", f"a {name} message ends in the middle of a 16-bit sample")
        if 0 < self.payload_limit < len(payload):
            limit = f"{self.payload_limit} bytes" if self.payload_limit % 1024 else f"{self.payload_limit // 1024} KiB"
            self.found(self.payload_level, f"a {name} message holds more than {limit} of audio")


class JudgedBinaryStream(Judge, BinaryStream):
    """The same of binary audio beside texts."""

    audio_message: ClassVar[str] = "binary"

    def judge(self, event: Event, text: str) -> None:
        if isinstance(event, Unknown):
            self.found("warn", f"{self.company.title} knows no message {shown(event.name)} of a bot's")

    def judge_audio(self, payload: bytes) -> None:
        super().judge_audio(payload)
        due = self.outbound_format.bytes_for(self.bot_frame_ms)
        if due and len(payload) != due:
            what = f"a {self.audio_message} message has {len(payload)} bytes"
            self.found("warn", f"{what}; {self.company.title} takes {self.bot_frame_ms} ms at once, {due} bytes")


class JudgedStream(Judge, JsonStream):
    """The same of JSON messages."""

    #: What the company's debugger says of an unknown message.
    unknown_error: ClassVar[str] = ""

    def judge(self, event: Event, name: str, content: dict[str, Any]) -> None:
        if isinstance(event, Unknown):
            self.found("warn", f"{self.company.title} knows no message {shown(name)} of a bot's{self.unknown_error}")
        elif not isinstance(event, SendDigits):
            self.judge_stream_id(name, content)

    def judge_stream_id(self, name: str, content: dict[str, Any]) -> None:
        """Look for the stream's id in a message of the bot's."""
        if not self.needs_stream_id:
            return
        key = self.stream_id_keys[0]
        stream_id = content.get(key)
        if stream_id != self.stream_id or not stream_id:
            which = f"no {key}" if not stream_id else f"the {key} of another stream"
            self.found("fail", f"a {name} message has {which}")

    def judge_media(self, content: dict[str, Any], media: dict[str, Any], payload: bytes) -> None:
        self.judge_stream_id(self.audio_message, content)
        self.judge_audio(payload)
