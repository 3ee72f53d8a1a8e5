"""
When all objects are searched for cycles, and when memory returns to the operating system.

Python searches all objects when there are a quarter more of them, which is while calls begin, and every call stands
still meanwhile. A hundred calls take a tenth of a second, nothing is found, and the next calls bring the next search.
But Python searches only while it creates objects, and the C library keeps what was freed below memory that is still
used. So a quiet server would hold for days what its busiest minute took.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

#: How long nobody must have been connected, because trimming blocks the loop for about a tenth of a second.
QUIET_S = 2.0
#: The least time between two trims.
PAUSE_S = 60.0
#: How much the process must have grown since the last trim.
WORTH_BYTES = 8_000_000
#: After how many calls at least their cycles are searched for while others run, and how many more for each of those.
ENDED_CALLS, ENDED_PER_CALL = 25, 0.5
#: The least time between two such searches, because each holds up the calls for up to a tenth of a second.
SEARCH_PAUSE_S = 5.0
#: How much the process may grow between two searches: by this factor, and so many bytes.
GROWTH, GROWTH_BYTES = 1.25, 64_000_000
#: How long no garbage is collected from a bot's start on, and at least how long it is collected after that.
UNCOLLECTED_S = COLLECTED_S = 0.25
#: More searches of young objects than there are between two of all.
_NEVER = 2**30
#: Python's thresholds, before a bot may have set its own.
_USUAL = gc.get_threshold()


class CycleCollector:
    """
    Searches all objects for cycles when calls have ended, or when memory has grown, and not while calls begin.

    Short searches of new objects stay Python's business. So does all of it from Python 3.14 on, which searches old
    objects bit by bit; where the process's memory is not known; and for a bot that switches the search off or sets
    thresholds of its own.

    Args:
        now: Gives the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._searched_at_ended = 0
        self._searched_at_bytes = resident_bytes()
        self._not_before = 0.0
        self._threshold = (*_USUAL[:2], _NEVER)

    @contextmanager
    def in_charge(self) -> Generator[None, None, None]:
        """Keep Python from searching all objects while the context lasts."""
        if sys.version_info < (3, 14) and resident_bytes() and gc.get_threshold() == _USUAL:
            gc.set_threshold(*self._threshold)
        try:
            yield
        finally:
            if gc.get_threshold() == self._threshold:
                gc.set_threshold(*_USUAL)

    def check(self, *, running: int, ended: int) -> None:
        """Search if it is time; called a few times a second with the numbers of calls since the start."""
        if not gc.isenabled() or gc.get_threshold() != self._threshold:
            return
        held, now = resident_bytes(), self._now()
        self._searched_at_bytes = min(self._searched_at_bytes, held)
        grown = held > self._searched_at_bytes * GROWTH + GROWTH_BYTES
        many = ended - self._searched_at_ended >= ENDED_CALLS + ENDED_PER_CALL * running
        if grown or (many and now >= self._not_before):
            gc.collect()
            self._searched_at_ended, self._searched_at_bytes = ended, resident_bytes()
            self._not_before = now + SEARCH_PAUSE_S


class CollectionPause:
    """
    Keeps Python from collecting garbage for a moment, while bots start.

    Nearly all objects are new then and will stay, so a collection would look at all of them and free none.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        #: What ends the pause, and when the next one may begin.
        self._end: asyncio.TimerHandle | None = None
        self._collects_until = 0.0
        #: The thresholds before it.
        self._threshold = _USUAL

    def begin(self) -> None:
        """Collect nothing for :data:`UNCOLLECTED_S`, in the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # What would have ended the pause went with another loop.
            self.end()
            self._loop, self._collects_until = loop, 0.0
        threshold = gc.get_threshold()
        if threshold[0] and loop.time() >= self._collects_until:
            self._threshold = threshold
            gc.set_threshold(0, *threshold[1:])
            self._end = loop.call_later(UNCOLLECTED_S, self.end)
            self._collects_until = loop.time() + UNCOLLECTED_S + COLLECTED_S

    def end(self) -> None:
        """Collect garbage again, if that is paused and nobody has set thresholds meanwhile."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
            if gc.get_threshold() == (0, *self._threshold[1:]):
                gc.set_threshold(*self._threshold)


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
