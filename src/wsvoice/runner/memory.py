"""
Returns memory to the operating system after a rush of calls.

Python looks for cycles only while it creates objects, and the C library keeps what was freed below memory that is
still used. So a quiet server would hold for days what its busiest minute took.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: How long nobody must have been connected, because trimming blocks the loop for about a tenth of a second.
QUIET_S = 2.0
#: The least time between two trims.
PAUSE_S = 60.0
#: How much the process must have grown since the last trim.
WORTH_BYTES = 8_000_000


class MemoryTrimmer:
    """Releases memory once the server has been quiet for a while; `now` gives the time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._quiet_since: float | None = None
        self._not_before = now()
        self._least = resident_bytes()

    def check(self, *, is_busy: bool) -> None:
        """Release memory if it is time; called a few times a second."""
        if is_busy:
            self._quiet_since = None
            return
        now = self._now()
        if self._quiet_since is None:
            self._quiet_since = now
        if now < max(self._quiet_since + QUIET_S, self._not_before):
            return
        if resident_bytes() > self._least + WORTH_BYTES:
            self._not_before = now + PAUSE_S
            release_memory()
            self._least = resident_bytes()


def release_memory() -> None:
    """Collect garbage, and return it to the operating system where the C library is glibc."""
    gc.collect()
    with suppress(OSError, AttributeError):
        # https://man7.org/linux/man-pages/man3/malloc_trim.3.html
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return how much memory the process holds; 0 where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
