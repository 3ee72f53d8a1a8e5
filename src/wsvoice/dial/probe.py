"""``--probe``: sends the bot on purpose what may come from a provider and must not end a call."""

from __future__ import annotations

from collections.abc import Sequence

from wsvoice.providers.base import Hazard

#: The time from one hazard to the next.
INTERVAL_MS = 200.0

Media = list[str | bytes]


class Probe:
    """
    Sends hazards, one after the other, in a stream of media.

    Args:
        hazards: The provider's hazards.
        quiet_s: How long the stream is silent first.

    Attributes:
        tried: What has been sent, in words; if the bot ends the call, it is because of the last one.
    """

    def __init__(self, hazards: Sequence[Hazard], quiet_s: float) -> None:
        self.tried: list[str] = []
        self._quiet_ms = quiet_s * 1000
        self._next_ms = self._quiet_ms + INTERVAL_MS
        self._left = list(hazards)
        self._pair: Media = []

    def is_over(self, now_ms: float) -> bool:
        """Whether all have been sent, and the bot has had time to fail."""
        return not self._left and now_ms >= self._next_ms

    def is_quiet(self, now_ms: float) -> bool:
        """Whether no media are to be sent now."""
        if now_ms > self._quiet_ms:
            return False
        if not self.tried:
            self.tried.append(f"no media for {self._quiet_ms / 1000:g} s after the start")
        return True

    def media(self, message: str | bytes, now_ms: float) -> Media:
        """Return what to send instead of a media message, which may be held until the next one."""
        if not self._left or now_ms < self._next_ms:
            return [message]
        self._pair.append(message)
        if len(self._pair) < 2:
            return []
        words, spoil = self._left.pop(0)
        self._next_ms = now_ms + INTERVAL_MS
        self.tried.append(words)
        pair, self._pair = self._pair, []
        return spoil(*pair)
