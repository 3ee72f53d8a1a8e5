"""
What happens in a call, told as it happens and kept for the report.
"""

from __future__ import annotations

from collections.abc import Callable

from wsvoice.dial.clock import Clock
from wsvoice.dial.report import Findings, Level, TimelineEvent


class Journal:
    """
    The call's timeline and findings.

    Attributes:
        findings: What the provider would have disliked so far.
        started_at: The clock's time at which the stream started; ``None`` before that.
    """

    def __init__(self, on_event: Callable[[TimelineEvent], None], clock: Clock) -> None:
        self.findings = Findings()
        self.started_at: float | None = None
        self._on_event = on_event
        self._clock = clock

    def now_ms(self) -> float:
        """Return the milliseconds since the stream started; 0 before that."""
        return 0.0 if self.started_at is None else (self._clock.now() - self.started_at) * 1000

    def tell(self, kind: str, text: str, *, at_ms: float | None = None) -> None:
        """Tell what happened, now or `at_ms`."""
        self._on_event(TimelineEvent(self.now_ms() if at_ms is None else at_ms, kind, text))

    def find(self, id: str, level: Level, message: str, *, kind: str | None = None) -> None:
        """Count a finding, and tell of the first one of its kind."""
        if self.findings.add(id, level, message, kind=kind):
            self.tell("finding", f"{level} {id}: {message}")
