"""The clock of a simulated call."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """A clock that never goes backwards; tests may replace it."""

    def now(self) -> float:
        """Return the time in seconds; only differences mean anything."""

    async def sleep_until(self, when: float) -> None:
        """Return once :meth:`now` is `when` or later; the event loop gets a turn in any case."""


class MonotonicClock:
    """The system's monotonic clock."""

    def now(self) -> float:
        """Return :func:`time.monotonic`."""
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        """Sleep until `when`."""
        await asyncio.sleep(max(0.0, when - time.monotonic()))
