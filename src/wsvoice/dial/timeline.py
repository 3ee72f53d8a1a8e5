"""
A call's events as they happen, and its findings.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable

from wsvoice.dial.clock import Clock
from wsvoice.dial.report import Findings, TimelineEvent
from wsvoice.providers.base import Level

#: How late an event may be added: a pause is known only after a while.
LATEST_MS = 800.0
#: How many events of a kind are passed on, because the other end may cause any number; logs are not limited.
EVENTS_TOLD = 1000


class Timeline:
    """
    A call's timeline and findings.

    Once the stream has started, events are passed on a moment later, in the order of their times: :meth:`advance` has
    to be called as time passes, and :meth:`flush` at the end.

    Args:
        on_event: Takes each event, in the order of their times.
        clock: The clock of the call's media.
        on_happening: Takes each event at once, in the order in which they became known.

    Attributes:
        findings: The findings so far.
        started_at: The clock's time at which the stream started; ``None`` before that.
    """

    def __init__(
        self,
        on_event: Callable[[TimelineEvent], None],
        clock: Clock,
        on_happening: Callable[[TimelineEvent], None] = lambda event: None,
    ) -> None:
        self.findings = Findings()
        self.started_at: float | None = None
        self._on_event = on_event
        self._on_happening = on_happening
        self._clock = clock
        self._held: list[tuple[float, int, TimelineEvent]] = []
        self._n_told = 0
        self._is_over = False
        self._kinds: Counter[str] = Counter()

    def now_ms(self) -> float:
        """Return the milliseconds since the stream started; 0 before that."""
        return 0.0 if self.started_at is None else (self._clock.now() - self.started_at) * 1000

    def add(self, kind: str, text: str, *, at_ms: float | None = None, **fields: str) -> None:
        """Add an event that happened now, or `at_ms`; `fields` are :attr:`TimelineEvent.fields`."""
        self._kinds[kind] += 1
        if kind not in ("log", "caller-log") and self._kinds[kind] > EVENTS_TOLD:
            if self._kinds[kind] > EVENTS_TOLD + 1:
                return
            text = f"{text}; no more events of this kind are shown"
        event = TimelineEvent(self.now_ms() if at_ms is None else at_ms, kind, text, fields)
        self._on_happening(event)
        if self.started_at is None or self._is_over:
            self._on_event(event)
            return
        # Numbered, to keep the order of events with the same time.
        self._n_told += 1
        heapq.heappush(self._held, (event.at_ms, self._n_told, event))

    def advance(self, now_ms: float) -> None:
        """Pass on the events that nothing can precede any more, at `now_ms` since the stream started."""
        while self._held and self._held[0][0] <= now_ms - LATEST_MS:
            self._on_event(heapq.heappop(self._held)[2])

    def flush(self) -> None:
        """Pass on all that is left; later events are passed on at once."""
        self._is_over = True
        self.advance(math.inf)

    def add_finding(self, id: str, level: Level, message: str, *, kind: str | None = None) -> None:
        """Count a finding; the first of its kind is an event too."""
        if self.findings.add(id, level, message, kind=kind):
            self.add("finding", f"{level} {id}: {message}")
