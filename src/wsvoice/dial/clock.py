"""The clock of a simulated call."""

from __future__ import annotations

import asyncio
import time

#: One step of the script and of the call.
STEP_MS = 20


class Clock:
    """The system's clock, which never goes backwards; tests may bring another one."""

    def now(self) -> float:
        """Return the time in seconds; only differences mean anything."""
        return time.monotonic()

    async def sleep_until(self, when: float) -> None:
        """Return once :meth:`now` is `when` or later; the event loop gets a turn in any case."""
        await asyncio.sleep(max(0.0, when - time.monotonic()))
