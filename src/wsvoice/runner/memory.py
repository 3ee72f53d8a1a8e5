"""
Memory given back to the machine after a rush of calls.

Python looks for cycles only while it makes objects, and the C library keeps what was freed below something that is
still used. So a server that has become quiet would hold for days what its busiest minute took.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

#: How long nobody must have been connected, for it takes about a tenth of a second in which nothing else is done.
QUIET_S = 2.0
#: How often at most.
PAUSE_S = 60.0
#: How much more there must be than after the last time.
WORTH_BYTES = 8_000_000


class MemoryTrimmer:
    """
    Gives memory back once the server has been quiet for a while.

    Args:
        now: The time in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._quiet_since: float | None = None
        self._not_before = now()
        self._least = resident_bytes()

    def look(self, *, is_busy: bool) -> None:
        """Give memory back if it is time; called a few times a second."""
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
    """Free what can be freed, and hand it to the operating system where the C library is glibc."""
    gc.collect()
    with suppress(OSError, AttributeError):
        # https://man7.org/linux/man-pages/man3/malloc_trim.3.html
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return how much memory the process holds; 0 where that cannot be told."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
