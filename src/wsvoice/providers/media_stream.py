"""What every media stream has, whatever its messages look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from wsvoice.audio import PCMU_8K, AudioFormat
from wsvoice.errors import LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import Company, Finding, Side
from wsvoice.providers.events import Connected, Digit, Event, Mark, SendDigits, StreamError, StreamStarted
from wsvoice.providers.fields import DIGITS, broken, shown

#: Characters of an unknown message's name.
NAME_LIMIT = 64


class Stream:
    """
    One end of one media stream, which keeps what the protocol makes both ends keep (ids, counters), and does no I/O.

    Attributes:
        format: The format of the carrier's audio; final once the stream has started.
        outbound_format: The format of the bot's audio; the same, but where a company can be told otherwise.

    Args:
        side: Which end.
        company: Whose stream it is.
    """

    #: The formats that the company streams, and what it calls them.
    encodings: ClassVar[Mapping[AudioFormat, str]] = {PCMU_8K: "audio/x-mulaw"}
    default_format: ClassVar[AudioFormat] = PCMU_8K

    def __init__(self, side: Side, company: Company) -> None:
        self.side = side
        self.company = company
        self.format = self.outbound_format = self.default_format
        self.stream_id = self.call_id = self.account_id = ""

    def send(self, event: Event) -> str | bytes:
        """
        Render `event` as the message that this end sends.

        Raises:
            LocalProtocolError: If this end has no such message, or the stream has not started.
        """
        raise NotImplementedError

    def receive(self, message: str | bytes) -> Event:
        """
        Read one message of the other end.

        Raises:
            RemoteProtocolError: If it is not one; whatever the message, nothing else is raised.
        """
        raise NotImplementedError

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
                    "bad-format", f"{self.company.title} streams no {wire.encoding} at {wire.sample_rate} Hz"
                )
            if not event.stream_id or not event.call_id:
                raise LocalProtocolError("bad-start", "a stream starts with a stream id and a call id")
            self.begin(event)

    def no_message(self, event: Event) -> LocalProtocolError:
        """Return what is said of an event for which this end has no message."""
        end = "end" if self.side is Side.CARRIER else "bot's end"
        what = f"{self.company.title}'s {end} has no message for {type(event).__name__}"
        return LocalProtocolError("no-message", what)

    def begin(self, event: StreamStarted) -> None:
        """Keep what the start of the stream settles."""
        self.format = self.outbound_format = event.format
        self.stream_id, self.call_id, self.account_id = event.stream_id, event.call_id, event.account_id

    def whole_samples(self, payload: bytes) -> bytes:
        """
        Return audio of the other end's; the half of a sample at the end of a bot's is nothing that could be played.

        Raises:
            RemoteProtocolError: Of kind ``bad-media``, if the carrier's ends in the middle of a sample.
        """
        wire = self.format if self.side is Side.BOT else self.outbound_format
        over = len(payload) % wire.sample_width
        if not over:
            return payload
        if self.side is Side.BOT:
            raise broken("bad-media", f"the audio has {len(payload)} bytes, which end in the middle of a sample")
        return payload[: len(payload) - over]

    # What a simulated carrier thinks of a bot's messages

    def judge_audio(self, payload: bytes) -> None:
        """Look at the audio of a bot's message."""

    def findings(self) -> list[Finding]:
        """Return, and forget, what the bot sent since the last call though the company would dislike it."""
        return []

    def error_reply(self, error: RemoteProtocolError) -> StreamError | None:
        """Return what the carrier tells the bot after :meth:`receive` raised `error`; ``None`` if nothing."""
        return None
