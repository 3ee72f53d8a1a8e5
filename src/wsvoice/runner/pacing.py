"""
Audio and the clock: when the bot's next piece may be sent, and how much of the caller's is accepted.

The bot's audio is sent in steps of 20 ms on an absolute clock, slightly ahead of real time.
"""

from __future__ import annotations

#: How far the caller's audio may be ahead of real time, in seconds. A stalled network delivers at once what was said
#: meanwhile, and pings notice the stall after 15 s, so no honest caller is further ahead.
MAX_AHEAD_S = 20.0


#: The step of telephony, in seconds.
FRAME_S = 0.02
#: How much audio may be sent ahead to make up for what came late, in seconds.
MAX_CATCH_UP_S = 1.0
#: How long a bot may take to answer what came late, in seconds; then it is an answer like any other.
ANSWER_S = 0.5


class Pacer:
    """
    A model of the provider's playback buffer, kept between empty and `lead_s` full.

    Audio may be sent ahead of real time until `lead_s` seconds of it wait at the provider. So a stall of this process
    that is shorter than the lead is never heard. A longer one delays what is heard; :meth:`catch_up` keeps it from
    delaying what is sent for the rest of the utterance. All times are seconds on one monotonic clock.
    """

    def __init__(self, lead_s: float) -> None:
        self.lead_s = lead_s
        #: When the provider will have played what was sent; earlier than now if its buffer is empty.
        self.plays_until = 0.0
        #: How much further audio may be sent ahead until the buffer is empty.
        self._extra_s = 0.0
        self._answers_until = 0.0

    def catch_up(self, now: float, late_s: float) -> None:
        """Note that the caller's audio came `late_s` late at once: answers to it leave as soon as they are there."""
        self._extra_s = max(self._extra_s, min(late_s, MAX_CATCH_UP_S))
        self._answers_until = now + ANSWER_S

    def is_behind(self, now: float) -> bool:
        """Whether more waits at the provider than should, because it came late."""
        return self._extra_s > 0 and self.plays_until - now > self.lead_s

    @property
    def _reach_s(self) -> float:
        """How far ahead of real time audio may be sent now."""
        return self.lead_s + self._extra_s

    def wait_s(self, now: float, duration_s: float) -> float:
        """Return how long a piece of `duration_s` has to wait before it may be sent."""
        return max(0.0, self.plays_until + duration_s - self._reach_s - now)

    def has_room(self, now: float, duration_s: float) -> bool:
        """Whether `duration_s` of audio may be sent at once; one frame may if the buffer is empty."""
        ahead_s = self.plays_until - now
        if ahead_s > 0:
            return ahead_s + duration_s <= self._reach_s
        return duration_s <= max(self._reach_s, FRAME_S)

    def sent(self, now: float, duration_s: float) -> float:
        """Note that a piece was sent; return for how long the buffer had been empty until then, 0 if it was not."""
        empty_s = now - self.plays_until
        if empty_s <= 0:
            self.plays_until += duration_s
            return 0.0
        if now > self._answers_until:
            self._extra_s = 0.0
        self.plays_until = now + duration_s
        return empty_s

    def cleared(self, now: float) -> None:
        """Note that the provider was told to clear its buffer."""
        self.plays_until = min(self.plays_until, now)

    def queued_s(self, now: float) -> float:
        """Return how much audio waits at the provider."""
        return max(0.0, self.plays_until - now)


class InputLimit:
    """
    Limits incoming audio to real time, plus what a stalled network delivers at once.

    All times are seconds on one monotonic clock.
    """

    def __init__(self, ahead_s: float = MAX_AHEAD_S) -> None:
        self._ahead_s = ahead_s
        self._lasts_until = 0.0

    def admits(self, now: float, duration_s: float) -> bool:
        """Count a piece of `duration_s`; false, and it is not counted, if it is too far ahead of the clock."""
        until = max(self._lasts_until, now) + duration_s
        if until > now + self._ahead_s:
            return False
        self._lasts_until = until
        return True

    def ahead_s(self, now: float) -> float:
        """Return how far ahead of the clock the audio is that was counted."""
        return self._lasts_until - now
