"""
What every media stream has, whatever its messages look like.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.base import Finding, Side
from wsvoice.providers.events import Connected, Digit, Event, Mark, SendDigits, StreamStarted
from wsvoice.providers.fields import DIGITS, shown

#: Characters of an unknown message's name.
NAME_LIMIT = 64


class MediaStream:
    """One end of a media stream: what it is told at its start, and what it may send."""

    title: ClassVar[str]
    #: The formats that the company streams, and what it calls them.
    encodings: ClassVar[Mapping[AudioFormat, str]] = {PCMU_8K: "audio/x-mulaw"}
    default_format: ClassVar[AudioFormat] = PCMU_8K

    def __init__(self, side: Side) -> None:
        self.side = side
        self.format = self.outbound_format = self.default_format
        self.stream_id = self.call_id = self.account_id = ""

    def check(self, event: Event) -> None:
        """
        Make sure that `event` can be sent now, and begin the stream with its start.

        Raises:
            LocalProtocolError: If it cannot.
        """
        if not self.stream_id and not isinstance(event, Connected | StreamStarted):
            what = type(event).__name__
            raise LocalProtocolError("not-started", f"the stream has not started; {what} cannot be sent yet")
        if isinstance(event, Mark) and not event.name:
            raise LocalProtocolError("bad-mark", "a mark has a name")
        if isinstance(event, Digit | SendDigits):
            keys = event.digit if isinstance(event, Digit) else event.digits
            if not keys or not DIGITS.issuperset(keys) or (isinstance(event, Digit) and len(keys) > 1):
                raise LocalProtocolError("bad-dtmf", f"keys are of 0-9 * # A-D, not {shown(keys)}")
        if isinstance(event, StreamStarted):
            wire = event.format
            if wire not in self.encodings:
                raise LocalProtocolError(
                    "bad-format", f"{self.title} streams no {wire.encoding} at {wire.sample_rate} Hz"
                )
            if not event.stream_id or not event.call_id:
                raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
            self.begin(event)

    def no_message(self, event: Event) -> LocalProtocolError:
        """Return what is said of an event for which this end has no message."""
        end = "end" if self.side is Side.CARRIER else "bot's end"
        return LocalProtocolError("no-message", f"{self.title}'s {end} has no message for {type(event).__name__}")

    def begin(self, event: StreamStarted) -> None:
        """Keep what the start of the stream settles."""
        self.format = self.outbound_format = event.format
        self.stream_id, self.call_id, self.account_id = event.stream_id, event.call_id, event.account_id

    # What a simulated carrier thinks of a bot's messages

    def judge_audio(self, payload: bytes) -> None:
        """Look at the audio of a bot's message."""

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though the company would dislike it."""
        return []
