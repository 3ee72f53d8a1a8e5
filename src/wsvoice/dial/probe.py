"""
What may come from a provider and must not end a call: said to the bot on purpose with ``--probe``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

#: How long the stream is silent after its start, as it may be while a provider sets the call up.
QUIET_S = 5.0
#: From one hazard to the next.
INTERVAL_MS = 200.0

# The keys under which the providers count.
_COUNTERS = frozenset({"sequenceNumber", "sequence_number", "chunk", "timestamp"})

Media = list[str | bytes]


class Hazards:
    """
    The hazards, one after the other, in a stream of media.

    Attributes:
        said: Those that the bot has met, in words; the last one is what a bot that goes away went away of.
    """

    def __init__(self, quiet_s: float = QUIET_S) -> None:
        self.said: list[str] = []
        self._quiet_ms = quiet_s * 1000
        self._next_ms = self._quiet_ms + INTERVAL_MS
        self._left = list(_HAZARDS)
        self._pair: Media = []

    def over(self, now_ms: float) -> bool:
        """Whether the bot has met them all, and had time to go away of the last one."""
        return not self._left and now_ms >= self._next_ms

    def is_quiet(self, now_ms: float) -> bool:
        """Whether no media are to be sent."""
        if now_ms > self._quiet_ms:
            return False
        if not self.said:
            self.said.append(f"no media for {self._quiet_ms / 1000:g} s after the start")
        return True

    def media(self, message: str | bytes, now_ms: float) -> Media:
        """Return what is to be sent instead of a media message, in its place or a little later."""
        if not self._left or now_ms < self._next_ms:
            return [message]
        self._pair.append(message)
        if len(self._pair) < 2:
            return []
        words, spoil = self._left.pop(0)
        self._next_ms = now_ms + INTERVAL_MS
        self.said.append(words)
        pair, self._pair = self._pair, []
        return spoil(*pair)


def _renamed(first: str | bytes, second: str | bytes) -> Media:
    content = json.loads(second)
    content["event"] = "wsvoice-probe"
    return [first, json.dumps(content), second]


def _garbled(first: str | bytes, second: str | bytes) -> Media:
    content = json.loads(second)
    content["media"]["payload"] = "%%%"
    return [first, json.dumps(content), second]


def _array(first: str | bytes, second: str | bytes) -> Media:
    return [first, "[1, 2, 3]", second]


def _retyped(first: str | bytes, second: str | bytes) -> Media:
    return [json.dumps(_other_counters(json.loads(each))) for each in (first, second)]


def _swapped(first: str | bytes, second: str | bytes) -> Media:
    return [second, first]


_HAZARDS: tuple[tuple[str, Callable[[str | bytes, str | bytes], Media]], ...] = (
    ("an event that nobody knows", _renamed),
    ("a payload that is not base64", _garbled),
    ("a JSON array", _array),
    ("numbers as texts and texts as numbers", _retyped),
    ("media out of order", _swapped),
)


def _other_counters(content: Any) -> Any:
    """Write counters that are texts as numbers, and those that are numbers as texts."""
    if not isinstance(content, dict):
        return content
    return {key: _other_type(value) if key in _COUNTERS else _other_counters(value) for key, value in content.items()}


def _other_type(value: object) -> object:
    if isinstance(value, str):
        return int(value) if value.isdigit() else value
    return str(value)
