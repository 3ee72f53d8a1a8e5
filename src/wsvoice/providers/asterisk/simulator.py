"""The simulator's half of Asterisk: its end of the stream, as a real Asterisk 22.10 behaves."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import ClassVar

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.asterisk.company import AsteriskCompany
from wsvoice.providers.asterisk.stream import FORMATS, FRAME_MS, AsteriskMirror
from wsvoice.providers.base import Hazard, Quirk, Side, Simulator
from wsvoice.providers.events import Cleared, Event, FlowControl, Mark, Status, StreamError, Unknown
from wsvoice.providers.fields import read_object, shown
from wsvoice.providers.hazards import BINARY_HAZARDS
from wsvoice.providers.urls import basic_header

#: At how many frames in its queue Asterisk asks for more, and for a pause:
#: https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#max-message-size-and-flow-control
LEVELS = {"xon_level": 800, "xoff_level": 900}


class _Answer(str):
    """
    A mark that another command than MARK_MEDIA sets: the text that tells when it is reached.

    The bot has not named it, so two that are alike are two.
    """

    __hash__ = object.__hash__


class AsteriskCarrier(AsteriskMirror):
    """The simulated Asterisk's end."""

    def __init__(self, side: Side, company: AsteriskSimulator) -> None:
        super().__init__(side, company)
        self.is_json = company.quirk("control") == "json"
        self.format = self.outbound_format = FORMATS[company.quirk("format")]
        self._is_full = self._is_drain_asked = False

    def write(self, event: Event) -> str | None:
        if isinstance(event, FlowControl):
            self._is_full = event.paused
        elif isinstance(event, Status):
            length = round(event.queued_ms / FRAME_MS)
            state = {"queue_full": self._is_full, "bulk_media": self.is_buffering, "media_paused": False}
            return self.write_text("STATUS", channel_id=self.call_id, queue_length=length, **LEVELS, **state)
        elif isinstance(event, Cleared) and self._is_drain_asked:
            # Asked for before the queue was flushed, it is told all the same; marks are not.
            self._is_drain_asked = False
            return self.write_text("QUEUE_DRAINED")
        elif isinstance(event, Mark) and isinstance(event.name, _Answer):
            self._is_drain_asked &= "QUEUE_DRAINED" not in event.name
            return str(event.name)
        return super().write(event)

    def read(self, text: str) -> Event:
        if self.is_json:
            read_object(text)  # Words are as wrong as any text that is no JSON.
        elif text.startswith("{"):
            self.found("fail", f"Asterisk ignores JSON unless the dial string has f(json): {shown(text)}")
            return Unknown("ignored")
        return super().read(text)

    def read_command(self, name: str, correlation_id: str) -> Event:
        event = super().read_command(name, correlation_id)
        if name == "STOP_MEDIA_BUFFERING":
            return Mark(_Answer(self.write_text("MEDIA_BUFFERING_COMPLETED", correlation_id=correlation_id)))
        if name == "MARK_MEDIA" and not correlation_id:
            return Mark(_Answer(self.write_text("MEDIA_MARK_PROCESSED", correlation_id="")))
        if name == "REPORT_QUEUE_DRAINED":
            self._is_drain_asked = True
            return Mark(_Answer(self.write_text("QUEUE_DRAINED")))
        return event

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        """Return what Asterisk says of a text that is no JSON."""
        return StreamError("Unable to parse JSON command") if error.kind == "not-json" else None


class AsteriskSimulator(AsteriskCompany, Simulator):
    """What ``wsvoice dial -t asterisk`` knows of Asterisk."""

    carrier_type = AsteriskCarrier
    hazards: ClassVar[Sequence[Hazard]] = BINARY_HAZARDS
    #: 1000 frames.
    queue_limit_s: ClassVar[float] = 20.0
    quirks: ClassVar[Mapping[str, Quirk]] = {
        "control": Quirk("json", "how texts are written: with f(json), or without", ("json", "text")),
        "format": Quirk("ulaw", "the audio that the dial string asks for", tuple(FORMATS)),
    }

    def upgrade_headers(self, url: str, *, now: float) -> dict[str, str]:
        """Return the credentials, which Asterisk sends without being asked."""
        password = self.credential("ASTERISK_PASSWORD")
        return basic_header(self.username, password) if password else {}

    def new_secrets(self, seed: bytes) -> tuple[dict[str, str], dict[str, str]]:
        secret = {"ASTERISK_PASSWORD": hashlib.sha256(b"secret" + seed).hexdigest()[:32]}
        return secret, secret

    def new_ids(self, seed: bytes) -> tuple[str, str, str]:
        # A channel's id is when Asterisk made it, and its number; its name ends with where it is in memory.
        began, number = 1_700_000_000 + int.from_bytes(seed[:3], "big"), int.from_bytes(seed[3:5], "big")
        return f"{began}.{number}", f"WebSocket/wsvoice/0x7f{seed[5:10].hex()}", ""
