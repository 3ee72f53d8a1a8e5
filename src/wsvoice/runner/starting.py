"""
Bots whose calls come at once start one after the other.

Starting a bot takes a few milliseconds of the processor. If 25 took turns at every step, all would be ready when the
last one is. Like this, half of the callers are answered in about half of that time; the last one is answered when it
would have been, or as much later as the processor works for the others' speech by then. On a server that is not busy,
no bot waits for one that waits itself, such as for a service's connection; and none waits for long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from wsvoice.runner.memory import CollectionPause

#: How often it is looked whether the bot that starts has something to do, in seconds; event loops count milliseconds.
LOOK_S = 0.001
#: It waits if the event loop's thread was busy for less than this share of that time.
BUSY_SHARE = 0.5
#: How long others wait for a bot that is always busy, or seems to be because running calls are.
MAX_START_S = 0.05
#: How long a bot waits for others at all.
MAX_WAIT_S = 0.3


class Starts:
    """
    Whose bot may start now, in the order of their calls.

    Args:
        busy_s: For how long the event loop's thread has been busy, in seconds.

    Attributes:
        collection: No garbage is collected meanwhile.
    """

    def __init__(self, busy_s: Callable[[], float] = time.thread_time) -> None:
        self.collection = CollectionPause()
        self._thread_busy_s = busy_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: deque[asyncio.Future[int]] = deque()
        #: Which start is under way; its number is never used again.
        self._number = 0
        self._is_under_way = False
        self._timer: asyncio.TimerHandle | None = None
        self._begun_at = 0.0
        self._looked_at = 0.0
        self._busy_s = 0.0

    async def wait(self) -> Callable[[], None]:
        """Wait until no other bot is busy with its start, or for long; return what says that this one has started."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            # Who waited in a loop that is closed is gone, and so is what would have looked after them.
            self._loop, self._is_under_way, self._timer = loop, False, None
            self._waiting.clear()
        if not self._is_under_way:
            return partial(self._note_started, self._begin())
        turn: asyncio.Future[int] = loop.create_future()
        self._waiting.append(turn)
        try:
            await asyncio.wait({turn}, timeout=MAX_WAIT_S)
        except asyncio.CancelledError:
            if turn.done():
                self._note_started(turn.result())
            turn.cancel()
            raise
        if turn.done():
            return partial(self._note_started, turn.result())
        turn.cancel()
        return _nothing

    def _begin(self) -> int:
        loop = asyncio.get_running_loop()
        self._number += 1
        self._is_under_way = True
        self.collection.begin()
        self._begun_at = self._looked_at = loop.time()
        self._busy_s = self._thread_busy_s()
        self._timer = loop.call_later(LOOK_S, self._look)
        return self._number

    def _look(self) -> None:
        """Let the next one start if this one waits for something, or does not come to an end."""
        loop = asyncio.get_running_loop()
        now, busy_s = loop.time(), self._thread_busy_s()
        was_busy = busy_s - self._busy_s >= BUSY_SHARE * (now - self._looked_at)
        if not was_busy or now - self._begun_at >= MAX_START_S:
            self._go_on()
            return
        self._looked_at, self._busy_s = now, busy_s
        self._timer = loop.call_later(LOOK_S, self._look)

    def _note_started(self, number: int) -> None:
        if number == self._number and self._is_under_way:
            self._go_on()

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            following = self._waiting.popleft()
            # Others have waited long enough, or were cancelled.
            if not following.done():
                following.set_result(self._begin())
                return
        self._is_under_way = False


def _nothing() -> None:
    """Say nothing of a start that was out of turn."""
