"""How long the caller waited for each answer, judged by sound alone."""

from __future__ import annotations

from wsvoice.audio import AUDIBLE_LEVEL, rms

#: A shorter pause in the bot's audio belongs to the same answer.
PAUSE_S = 0.5


class TurnTimer:
    """
    Measures from the last sound of the caller to the next first sound of the bot.

    It measures energy instead of counting messages, because many bots send silence.
    """

    def __init__(self) -> None:
        #: When each end last made a sound.
        self.caller_sounded_at: float | None = None
        self.bot_sounded_at: float | None = None
        #: Seconds since the stream started until the bot's first sound.
        self.first_sound_at: float | None = None
        #: The caller's wait for each answer, in seconds.
        self.responses_s: list[float] = []

    def caller(self, pcm: bytes, now: float) -> None:
        """Hear a piece of the caller's audio, s16le."""
        if rms(pcm) > AUDIBLE_LEVEL:
            self.caller_sounded_at = now

    def bot(self, pcm: bytes, now: float) -> None:
        """Hear a piece of the bot's audio, s16le, as it is sent."""
        if rms(pcm) <= AUDIBLE_LEVEL:
            return
        if self.first_sound_at is None:
            self.first_sound_at = now
        last, self.bot_sounded_at = self.bot_sounded_at, now
        if last is not None and now - last < PAUSE_S:
            return
        if self.caller_sounded_at is not None and (last is None or self.caller_sounded_at > last):
            self.responses_s.append(now - self.caller_sounded_at)
