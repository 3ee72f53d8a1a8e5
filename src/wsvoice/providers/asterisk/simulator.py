"""
The simulator's half of Asterisk: its end of the stream, as a real Asterisk 22.10 behaves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.asterisk.company import AsteriskCompany
from wsvoice.providers.asterisk.stream import FORMATS, FRAME_MS, TEXT_LIMIT, AsteriskStream, text_size
from wsvoice.providers.base import Hazard, Level, Quirk, Side, Simulator, Stream
from wsvoice.providers.events import Audio, Cleared, Event, FlowControl, Mark, Status, StreamError, Unknown
from wsvoice.providers.fields import read_object, shown
from wsvoice.providers.hazards import BINARY_HAZARDS
from wsvoice.providers.judged_stream import Judge
from wsvoice.providers.urls import basic_header

#: At how many frames in its queue Asterisk asks for more, and for a pause:
#: https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#max-message-size-and-flow-control
LEVELS = {"xon_level": 800, "xoff_level": 900}
#: Commands that are known, and change nothing of what a test call plays:
#: https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#commands
_WITHOUT_EFFECT = ("ANSWER", "START_MEDIA_BUFFERING", "PAUSE_MEDIA", "CONTINUE_MEDIA", "SET_MEDIA_DIRECTION")


class _Answer(str):
    """
    A mark that another command than MARK_MEDIA sets: the text that tells when it is reached.

    The bot has not named it, so two that are alike are two.
    """

    __hash__ = object.__hash__


class AsteriskCarrier(AsteriskStream, Judge):
    """
    The simulated Asterisk's end.

    Args:
        is_json: Whether texts are JSON.
        format_name: What the dial string asks for.
    """

    payload_limit: ClassVar[int] = 65_500
    payload_level: ClassVar[Level] = "fail"
    audio_message: ClassVar[str] = "binary"

    def __init__(self, *, is_json: bool = True, format_name: str = "ulaw") -> None:
        super().__init__(Side.CARRIER, is_json=is_json)
        self.format = self.outbound_format = FORMATS[format_name]
        self._is_buffering = self._is_full = self._is_drain_asked = False

    def write(self, event: Event) -> str | None:
        if isinstance(event, FlowControl):
            self._is_full = event.paused
        elif isinstance(event, Status):
            length = round(event.queued_ms / FRAME_MS)
            state = {"queue_full": self._is_full, "bulk_media": self._is_buffering, "media_paused": False}
            return self.write_text("STATUS", channel_id=self.call_id, queue_length=length, **LEVELS, **state)
        elif isinstance(event, Cleared) and self._is_drain_asked:
            # Asked for before the queue was flushed, it is told all the same; marks are not.
            self._is_drain_asked = False
            return self.write_text("QUEUE_DRAINED")
        elif isinstance(event, Mark) and isinstance(event.name, _Answer):
            self._is_drain_asked &= "QUEUE_DRAINED" not in event.name
            return str(event.name)
        return super().write(event)

    def read_audio(self, message: bytes) -> Audio:
        payload = super().read_audio(message).payload
        frame_bytes = self.outbound_format.bytes_for(FRAME_MS)
        over = 0 if self._is_buffering else len(payload) % frame_bytes
        if over:
            self.found("fail", f"a message is no multiple of {frame_bytes} bytes, and Asterisk drops the rest of it")
        return Audio(payload[: len(payload) - over])

    def read(self, text: str) -> Event:
        if self.is_json:
            read_object(text)  # Words are as wrong as any text that is no JSON.
        event = super().read(text)
        if text_size(text) > TEXT_LIMIT:
            self.found("fail", f"Asterisk ignores a text of more than {TEXT_LIMIT} bytes: {shown(text)}")
        elif text.startswith("{") and not self.is_json:
            self.found("fail", f"Asterisk ignores JSON unless the dial string has f(json): {shown(text)}")
        else:
            return event
        return Unknown("ignored")

    def read_command(self, name: str, correlation_id: str) -> Event:
        if name in ("START_MEDIA_BUFFERING", "STOP_MEDIA_BUFFERING", "FLUSH_MEDIA"):
            self._is_buffering = name == "START_MEDIA_BUFFERING"
        if name == "STOP_MEDIA_BUFFERING":
            return Mark(_Answer(self.write_text("MEDIA_BUFFERING_COMPLETED", correlation_id=correlation_id)))
        if name == "MARK_MEDIA" and not correlation_id:
            return Mark(_Answer(self.write_text("MEDIA_MARK_PROCESSED", correlation_id="")))
        if name == "REPORT_QUEUE_DRAINED":
            self._is_drain_asked = True
            return Mark(_Answer(self.write_text("QUEUE_DRAINED")))
        event = super().read_command(name, correlation_id)
        if isinstance(event, Unknown) and name not in _WITHOUT_EFFECT:
            self.found("warn", f"Asterisk knows no command {shown(name)}, and says nothing to it")
        return event

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        """Return what Asterisk says of a text that is no JSON."""
        return StreamError("Unable to parse JSON command") if error.kind == "not-json" else None


class AsteriskSimulator(AsteriskCompany, Simulator):
    """What ``wsvoice dial -t asterisk`` knows of Asterisk."""

    hazards: ClassVar[Sequence[Hazard]] = BINARY_HAZARDS
    #: 1000 frames.
    queue_limit_s: ClassVar[float] = 20.0
    pauses_at_s: ClassVar[tuple[float, float] | None] = (18.0, 16.0)
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "control": Quirk("json", "how texts are written: with f(json), or without", ("json", "text")),
        "format": Quirk("ulaw", "the audio that the dial string asks for", tuple(FORMATS)),
    }

    def stream(self, quirks: Mapping[str, str] | None = None) -> Stream:
        is_json = self.quirk(quirks, "control") == "json"
        return AsteriskCarrier(is_json=is_json, format_name=self.quirk(quirks, "format"))

    def upgrade_headers(self, url: str, *, now: float, quirks: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the credentials, which Asterisk sends without being asked."""
        password = self.credential("ASTERISK_PASSWORD")
        return basic_header(self.username, password) if password else {}

    def test_credentials(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        secret = {"ASTERISK_PASSWORD": hashlib.sha256(b"secret" + seed).hexdigest()[:32]}
        return secret, secret

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        # A channel's id is when Asterisk made it, and its number; its name ends with where it is in memory.
        began, number = 1_700_000_000 + int.from_bytes(seed[:3], "big"), int.from_bytes(seed[3:5], "big")
        return f"{began}.{number}", f"WebSocket/wsvoice/0x7f{seed[5:10].hex()}", ""
