"""When the next piece of audio may leave: 20 ms steps on an absolute clock, a little ahead of real time."""

from __future__ import annotations


class Pacer:
    """
    A model of the provider's playback buffer, kept between empty and `lead_s` full.

    Audio may be sent ahead of real time until `lead_s` seconds of it wait at the provider; so a stall of ours
    that is shorter than the lead is never heard, and a longer one costs its own length once and not for the
    rest of the call. All times are seconds on any one monotonic clock.
    """

    def __init__(self, lead_s: float) -> None:
        self.lead_s = lead_s
        self._plays_until = 0.0

    def wait_s(self, now: float, duration_s: float) -> float:
        """Return how long a piece of `duration_s` has to wait before it may be sent."""
        return max(0.0, self._plays_until + duration_s - self.lead_s - now)

    def sent(self, now: float, duration_s: float) -> None:
        """Note that a piece was sent."""
        self._plays_until = max(self._plays_until, now) + duration_s

    def cleared(self, now: float) -> None:
        """Note that the provider was told to forget what waits."""
        self._plays_until = min(self._plays_until, now)

    def queued_s(self, now: float) -> float:
        """Return how much audio waits at the provider."""
        return max(0.0, self._plays_until - now)
