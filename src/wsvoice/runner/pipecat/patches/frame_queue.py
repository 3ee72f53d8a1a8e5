"""
The queue before each processor passes a frame on with less work, and without the event loop where it can.

pipecat's is a priority queue of asyncio's, whose heap, counters and conditions nobody needs: there are three kinds of
frames, each of which keeps its order, and one task that takes them. And a frame that arrives wakes that task by way of
the event loop, which looks for other work first. A frame of the caller's audio comes in a callback of the socket, where
no task runs: there its tasks are resumed at once, one processor after the other, in the order in which the event loop
would have done it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary

from pipecat.frames.frames import Frame, StartFrame, SystemFrame
from pipecat.processors import frame_processor
from pipecat.processors.frame_processor import FrameProcessor

#: How many tasks are resumed in a row before the event loop gets its turn.
MAX_IN_A_ROW = 64


class _Relay:
    """Resumes tasks of one event loop, each after the one before has suspended itself."""

    def __init__(self) -> None:
        self._is_running = False
        self._waiting: deque[tuple[Callable[[Any], object], Arrival, Context]] = deque()

    def resume(self, wake_up: Callable[[Any], object], arrival: Arrival, context: Context) -> None:
        """Resume a task at once, or after those that are being resumed; by the loop if a task may be running."""
        if self._is_running:
            self._waiting.append((wake_up, arrival, context))
        elif _here.is_in_a_callback:
            self._run(wake_up, arrival, context)
        else:
            arrival.get_loop().call_soon(wake_up, arrival, context=context)

    def _run(self, wake_up: Callable[[Any], object], arrival: Arrival, context: Context) -> None:
        self._is_running = True
        try:
            context.run(wake_up, arrival)
            for _ in range(MAX_IN_A_ROW):
                if not self._waiting:
                    break
                wake_up, arrival, context = self._waiting.popleft()
                context.run(wake_up, arrival)
        except (SystemExit, KeyboardInterrupt) as error:
            # Of a task these go through the event loop, to whoever runs it.
            asyncio.get_running_loop().call_soon(_throw, error)
        finally:
            self._is_running = False
            while self._waiting:
                wake_up, arrival, context = self._waiting.popleft()
                arrival.get_loop().call_soon(wake_up, arrival, context=context)


class _Here(threading.local):
    """Whether this thread's event loop is in a callback, where no task runs."""

    is_in_a_callback = False


_here = _Here()


def put_in_a_callback(processor: FrameProcessor, frame: Frame) -> None:
    """Queue a frame for a processor, in a callback of the event loop: it is processed at once if nothing waits."""
    _here.is_in_a_callback = True
    try:
        # Without a limit it never waits.
        processor.queue_frame(frame).send(None)
    except StopIteration:
        pass
    finally:
        _here.is_in_a_callback = False


def _throw(error: BaseException) -> None:
    raise error


_relays: WeakKeyDictionary[asyncio.AbstractEventLoop, _Relay] = WeakKeyDictionary()


class Arrival:
    """
    What a task awaits that has nothing to do: like a future of asyncio's, but used again and again.

    A task calls these methods of whatever it awaits that has ``_asyncio_future_blocking``
    (https://docs.python.org/3/library/asyncio-future.html#asyncio.isfuture).
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._asyncio_future_blocking = False
        self._relay = _relays.setdefault(loop, _Relay())
        self._loop = loop
        self._wake_up: Callable[[Any], object] | None = None
        self._context: Context | None = None
        self._cancelled_with: asyncio.CancelledError | None = None

    def __await__(self) -> Generator[Arrival, None, None]:
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop of the task that waits."""
        return self._loop

    def add_done_callback(self, wake_up: Callable[[Any], object], *, context: Context) -> None:
        """Remember the one task that waits."""
        self._wake_up, self._context = wake_up, context

    def cancel(self, msg: Any | None = None) -> bool:
        """Wake the task up with a cancellation."""
        if self._wake_up is None:
            return False
        self._cancelled_with = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        wake_up, self._wake_up = self._wake_up, None
        self._loop.call_soon(wake_up, self, context=self._context)
        return True

    def result(self) -> None:
        """Return what the task gets: nothing, or its cancellation."""
        if self._cancelled_with is not None:
            error, self._cancelled_with = self._cancelled_with, None
            raise error

    def come(self) -> None:
        """Wake the task up, if one waits."""
        if self._wake_up is not None:
            assert self._context is not None
            wake_up, self._wake_up = self._wake_up, None
            self._relay.resume(wake_up, self, self._context)


class FrameQueue:
    """The start of a pipeline comes first, then system frames, then all others. One task takes them."""

    __slots__ = ("_arrival", "_others", "_start", "_system")

    def __init__(self) -> None:
        self._start: deque[Any] = deque()
        self._system: deque[Any] = deque()
        self._others: deque[Any] = deque()
        self._arrival: Arrival | None = None

    async def put(self, item: Any) -> None:
        """Append a frame, with its direction and callback; never waits."""
        frame = item[0]
        if not isinstance(frame, SystemFrame):
            self._others.append(item)
        elif isinstance(frame, StartFrame):
            self._start.append(item)
        else:
            self._system.append(item)
        if self._arrival is not None:
            self._arrival.come()

    async def get(self) -> Any:
        """Return the next frame, with its direction and callback, as soon as there is one."""
        while True:
            if self._system and not self._start:
                return self._system.popleft()
            if self._start:
                return self._start.popleft()
            if self._others:
                return self._others.popleft()
            if self._arrival is None:
                self._arrival = Arrival()
            await self._arrival

    def task_done(self) -> None:
        """Note that a frame was processed, which nobody waits for."""

    def qsize(self) -> int:
        """Return how many frames wait."""
        return len(self._start) + len(self._system) + len(self._others)

    def empty(self) -> bool:
        """Whether no frame waits."""
        return not self.qsize()


def apply() -> None:
    """Give processors made from now on the other queue."""
    changed: Any = frame_processor
    changed.FrameProcessorQueue = FrameQueue
