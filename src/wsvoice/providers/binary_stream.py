"""A media stream whose audio is binary messages, the samples alone, and whose events are text."""

from __future__ import annotations

from typing import ClassVar

from wsvoice.providers.base import Side
from wsvoice.providers.events import Audio, Clear, Event, Mark, SendDigits, StreamStarted
from wsvoice.providers.media_stream import Stream


class BinaryStream(Stream):
    """One end of such a stream; a company says how its events are spelt, with :meth:`write` and :meth:`read`."""

    #: How much audio each of the bot's messages has to hold, in milliseconds; 0 for any amount.
    bot_frame_ms: ClassVar[int] = 0

    def send(self, event: Event) -> str | bytes:
        is_bots = isinstance(event, Audio | Mark | Clear | SendDigits)
        if self.side is Side.BOT and not is_bots:
            raise self.no_message(event)
        self.check(event)
        if isinstance(event, Audio):
            return self.write_audio(event.payload)
        text = self.write(event)
        if text is None:
            raise self.no_message(event)
        return text

    def receive(self, message: str | bytes) -> Event:
        if isinstance(message, bytes):
            return self.read_audio(message)
        event = self.read(message)
        if isinstance(event, StreamStarted):
            self.begin(event)
        elif self.side is Side.CARRIER:
            self.judge(event, message)
        return event

    def write_audio(self, payload: bytes) -> bytes:
        """Return the message that carries `payload`; a bot's is filled up with silence where frames are to be whole."""
        if self.side is Side.BOT and self.bot_frame_ms:
            wire = self.outbound_format
            return payload + wire.silence(-len(payload) % wire.bytes_for(self.bot_frame_ms))
        return payload

    def read_audio(self, message: bytes) -> Audio:
        """Read a message of audio; errors as :meth:`whole_samples`."""
        if self.side is Side.CARRIER:
            self.judge_audio(message)
        return Audio(self.whole_samples(message))

    def write(self, event: Event) -> str | None:
        """Return the text of `event`; ``None`` if this end has none."""
        raise NotImplementedError

    def read(self, text: str) -> Event:
        """Read a text of the other end; errors as :meth:`receive`."""
        raise NotImplementedError

    def judge(self, event: Event, text: str) -> None:
        """Look at a bot's text, as a simulated carrier does."""
