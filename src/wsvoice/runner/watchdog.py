"""
A thread that watches the event loop, and that a bot cannot block.

It reports what blocks the loop while every call is silent, and it ends a process that does not end by itself.
"""

from __future__ import annotations

import asyncio
import atexit
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from loguru import logger

from wsvoice import isolation
from wsvoice.runner.diagnosis import NOT_THE_BOTS

#: How often the loop sends a heartbeat, and how often the thread checks for it.
HEARTBEAT_S = 0.1
#: A shorter block is not reported, and so often shorter blocks than :data:`BLOCKED_S` are.
LATE_S, LATE_EVERY_S = 0.15, 10.0
#: A longer block is a warning, and a cause of what goes wrong in a call.
BLOCKED_S = 1.0
#: When a block that continues is reported; its end is reported as well.
STILL_BLOCKED_S = 5.0
#: A loop that has been blocked for this long does not handle a second signal.
STUCK_S = 0.5
#: How long the last lines may take to be written before the process ends, and how long they usually take.
FLUSH_TIMEOUT_S, FLUSH_USUALLY_S = 1.0, 0.1
#: How long after the drain, or after a second signal, the process is killed.
FORCE_TIMEOUT_S = 2.0
#: The exit codes of a process that did not end by itself.
FORCED, INTERRUPTED = 1, 130


class Watchdog:
    """
    Watches an event loop while it runs, and the process until it has ended.

    Attributes:
        signals: The requests to stop that the process received.

    Args:
        folder: The folder of the bot's source, whose lines are reported rather than a library's.
        calls: Returns the ids of the running calls.
        on_blocked: Called with the report of a block; from the thread while it lasts.
        on_heartbeat: Called in the event loop with how late it is, in seconds.
        is_awaited: Whether something goes on for which the process is not killed yet; it has limits of its own.
        on_kill: Called in the thread right before the process is killed.
    """

    def __init__(
        self,
        *,
        folder: Path | None,
        calls: Callable[[], Collection[str]],
        on_blocked: Callable[[str], None] = lambda text: None,
        on_heartbeat: Callable[[float], None] = lambda late_s: None,
        is_awaited: Callable[[], bool] = lambda: False,
        on_kill: Callable[[], None] = lambda: None,
    ) -> None:
        self.signals: list[int] = []
        self._is_ending = False
        self._folder = None if folder is None else str(folder.resolve())
        self._calls = calls
        self._on_blocked = on_blocked
        self._on_heartbeat = on_heartbeat
        self._is_awaited = is_awaited
        self._on_kill = on_kill
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id = 0
        self._heartbeat = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        #: Where the loop was seen during the current block, and in which call.
        self._locations: Counter[str] = Counter()
        self._call = ""
        self._reported = False
        #: When a short block was last reported, and how many were not since then.
        self._late_at = -math.inf
        self._late_count = 0
        self._over = threading.Event()
        self._exit_at: float | None = None
        self._exit_code = 1

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the running event loop while the context lasts."""
        self._loop, self._thread_id = asyncio.get_running_loop(), threading.get_ident()
        self._tick()
        threading.Thread(target=self._watch, name="wsvoice-watchdog", daemon=True).start()
        try:
            yield
        finally:
            self._note_heartbeat()
            if self._timer is not None:
                self._timer.cancel()
            self._loop = None
            if self._is_ending:
                # Threads that a bot left behind must not keep the process alive.
                self.exit_within(FORCE_TIMEOUT_S, self._forced_exit_code)
            self._over.set()

    @property
    def is_stuck(self) -> bool:
        """Whether the loop is blocked."""
        return self._loop is not None and self.blocked_s() > STUCK_S

    def note_signal(self, number: int, drain_timeout_s: float) -> bool:
        """Note a request to stop, and see that the process ends in time; true for the first one, which is to drain."""
        self.signals.append(number)
        self._is_ending = True
        timeout_s = FORCE_TIMEOUT_S
        if len(self.signals) == 1:
            timeout_s += drain_timeout_s
        elif len(self.signals) > 2 or self.is_stuck:
            timeout_s = 0
        self.exit_within(timeout_s, self._forced_exit_code)
        return len(self.signals) == 1

    def note_successor(self, drain_timeout_s: float) -> None:
        """Note that another process takes the calls from now on, and see that this one ends in time."""
        self._is_ending = True
        self.exit_within(drain_timeout_s + FORCE_TIMEOUT_S, 0)

    @property
    def was_interrupted(self) -> bool:
        """Whether Ctrl-C has ended the drain, instead of only beginning it: then the process exits with 130."""
        return len(self.signals) > 1 and signal.SIGINT in self.signals

    @property
    def _forced_exit_code(self) -> int:
        return INTERRUPTED if self.was_interrupted else FORCED

    def exit_within(self, timeout_s: float, exit_code: int) -> None:
        """End the process after `timeout_s` unless it has ended; an earlier deadline stays."""
        at = time.monotonic() + timeout_s
        if self._exit_at is None or at < self._exit_at:
            self._exit_at, self._exit_code = at, exit_code

    # In the event loop

    def _tick(self) -> None:
        self._note_heartbeat()
        if self._loop is not None:
            self._timer = self._loop.call_later(HEARTBEAT_S, self._tick)

    def _note_heartbeat(self) -> None:
        blocked_s = self.blocked_s()
        if blocked_s > BLOCKED_S:
            self._report(blocked_s)
        elif blocked_s > LATE_S:
            self._report_late(blocked_s)
        self._on_heartbeat(max(0.0, blocked_s))
        self._heartbeat = time.monotonic()
        self._locations.clear()
        self._call, self._reported = "", False

    # In the thread

    def _watch(self) -> None:
        while not self._over.is_set() or self._exit_at is not None:
            if self._exit_at is not None and self._is_awaited():
                # The end of the process gets its time after that.
                self._exit_at = max(self._exit_at, time.monotonic() + FORCE_TIMEOUT_S)
            rest_s = HEARTBEAT_S if self._exit_at is None else min(HEARTBEAT_S, self._rest_s(self._exit_at))
            if rest_s <= 0:
                self._exit()
            elif self._over.is_set():
                time.sleep(rest_s)
            else:
                self._over.wait(rest_s)
            self._check()

    def _rest_s(self, exit_at: float) -> float:
        # A loop that runs may still end normally; a blocked one may hold the lock that logging needs.
        return exit_at - (FLUSH_TIMEOUT_S if self.is_stuck else FLUSH_USUALLY_S) - time.monotonic()

    def _check(self) -> None:
        loop, blocked_s = self._loop, self.blocked_s()
        if loop is None or blocked_s < LATE_S / 3:
            return
        frame = sys._current_frames().get(self._thread_id)
        if (place := self._find_location(frame)) is not None:
            self._locations[place] += 1
            self._call = self._call or _call_of(loop)
        if blocked_s > STILL_BLOCKED_S and not self._reported:
            self._reported = True
            self._report(blocked_s, ", and still is")

    def _exit(self) -> None:
        words = threading.Thread(target=self._log_and_flush, daemon=True)
        words.start()
        words.join(FLUSH_TIMEOUT_S)
        os._exit(self._exit_code)

    def _log_and_flush(self) -> None:
        blocked_s = self.blocked_s()
        if self._loop is not None and blocked_s > BLOCKED_S and not self._reported:
            self._report(blocked_s, ", and still is")
        calls = len(self._calls())
        left = f", and so {'is 1 call' if calls == 1 else f'are {calls} calls'}" if calls else ""
        logger.error("the process did not stop in time; it is killed{}", left)
        self._on_kill()
        # This closes the log's sinks and a tunnel's agent.
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()

    # Reports

    def blocked_s(self) -> float:
        """Return for how many seconds the event loop has been blocked; from any thread. Below 0 while it is not."""
        if self._loop is None:
            return 0.0
        return time.monotonic() - self._heartbeat - HEARTBEAT_S

    def _report(self, blocked_s: float, more: str = "") -> None:
        calls = list(self._calls())
        call = self._call or (calls[0] if len(calls) == 1 else "-")
        text = f"the event loop was blocked for {blocked_s:.1f} s{self._place()}{more}"
        self._on_blocked(text)
        logger.bind(call=call).warning("{}", text)

    def _report_late(self, late_s: float) -> None:
        """Report a block that a caller hears as a gap at most, now and then."""
        now = time.monotonic()
        if not self._calls():
            return
        if now - self._late_at < LATE_EVERY_S:
            self._late_count += 1
            return
        more = f" (and {self._late_count} times before that)" if self._late_count else ""
        self._late_at, self._late_count = now, 0
        logger.info("the event loop was late by {:.2f} s{}{}", late_s, self._place(), more)

    def _place(self) -> str:
        """Say where the loop was seen most often during the current block; nothing if it was not seen."""
        return "".join(f" at {place}" for place, _ in self._locations.most_common(1))

    def _find_location(self, frame: FrameType | None) -> str | None:
        """Return the line at which the loop's thread is: the bot's, or else a library's."""
        other: FrameType | None = None
        # Frames below the one that runs the loop are not of interest.
        while frame is not None and (file := frame.f_code.co_filename) != isolation.__file__:
            if self._is_bot_code(file):
                return _location(frame)
            if other is None and not _is_loop(file):
                other = frame
            frame = frame.f_back
        return None if other is None else _location(other)

    def _is_bot_code(self, file: str) -> bool:
        if self._folder is None or not file.startswith(self._folder):
            return False
        return not file.startswith(NOT_THE_BOTS) and "site-packages" not in file


def _is_loop(file: str) -> bool:
    path = Path(file)
    return path.name == "selectors.py" or path.parent.name == "asyncio"


def _location(frame: FrameType) -> str:
    name = frame.f_code.co_qualname.replace(".<locals>", "")
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {name}"


def _call_of(loop: asyncio.AbstractEventLoop) -> str:
    """Return the id of the call whose task is running; empty if that is not known."""
    task = asyncio.current_task(loop)
    context = getattr(task, "get_context", None)
    running = None if context is None else context().get(isolation.current_bot)
    return "" if running is None else str(running.name)
