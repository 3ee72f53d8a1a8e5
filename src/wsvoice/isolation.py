"""
What a guest must not take along: a bot runs in our process, and the process's signals and its end are not the bot's.

Python lets any code take the handlers of SIGINT and SIGTERM, stop the event loop, or end it by an exit: asyncio hands
a :exc:`SystemExit` or :exc:`KeyboardInterrupt` of any task on to whoever runs the loop. Here the handlers stay, the
loop goes on, and the exit is told to the one whose bot it was.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar, cast

T = TypeVar("T")
SignalHandler = Callable[[int, FrameType | None], Any]

#: The signals that stop a process; whatever else a bot wants to handle is its own affair.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: How often what is left at the end is cancelled, and how long each time may take.
CANCELLATIONS, CANCELLATION_TIMEOUT_S = 3, 0.3
#: How often in a row the loop may fail without having done anything in between.
FAILURES = 10


@dataclass(frozen=True, eq=False, slots=True)
class IsolatedBot:
    """
    A bot at work.

    Attributes:
        name: Its call's id.
        on_exit: Called in the loop when a task of the bot's raised what would have ended the process.
    """

    name: str
    on_exit: Callable[[BaseException], None]


#: The bot that the running task belongs to; inherited by the tasks it creates.
current_bot: ContextVar[IsolatedBot | None] = ContextVar("wsvoice_guest", default=None)


def is_exit(error: BaseException | None) -> bool:
    """Whether `error` would end the process: a BaseException that is neither an Exception nor a cancellation."""
    return error is not None and not isinstance(error, (Exception, asyncio.CancelledError))


def describe_failure(error: BaseException) -> str:
    """Return what a bot did that ended in `error`, as it stands behind its name."""
    if isinstance(error, SystemExit):
        return "called sys.exit()" if error.code is None else f"called sys.exit({error.code!r:.200})"
    text = str(error)[:200]
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


@contextmanager
def protect_signals(handler: SignalHandler | None = None) -> Iterator[None]:
    """
    Keep SIGINT and SIGTERM from being handled by anybody else while the context lasts.

    Whoever tries is not told: what a bot wants of them, to end in time, it is asked for by its call's end.

    Args:
        handler: What handles them; what does now if not given.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread only, and a loop elsewhere refuses them by itself.
        yield
        return
    set_handler = signal.signal
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}

    def set_other(number: int, other: Any) -> Any:
        return signal.getsignal(number) if number in STOP_SIGNALS else set_handler(number, other)

    if handler is not None:
        for number in STOP_SIGNALS:
            set_handler(number, handler)
    cast(Any, signal).signal = set_other
    try:
        yield
    finally:
        cast(Any, signal).signal = set_handler
        for number, previous in before.items():
            set_handler(number, previous)


def run(
    main: Coroutine[Any, Any, T],
    *,
    on_exit: Callable[[BaseException | None], None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """
    Run `main` in a new event loop that no guest can end, and cancel what is left when it is over.

    :func:`asyncio.run` waits without limit for tasks that do not let themselves be cancelled; this does not.

    Args:
        main: What to run.
        on_exit: Called when an exit, or (``None``) a stop of the loop, came from code that is nobody's task.
        loop_factory: Makes the loop.
    """
    loop = loop_factory()
    try:
        _protect(loop, on_exit)
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(_cancel_the_rest())
            loop.run_until_complete(_within(loop.shutdown_asyncgens(), CANCELLATION_TIMEOUT_S))
    finally:
        # Threads that are still at work are not waited for here, but at the end of the process.
        loop.close()


def run_interruptibly(main: Coroutine[Any, Any, T]) -> T:
    """
    Run `main` as :func:`asyncio.run` does, Ctrl-C included, in a loop that no guest's exit can end.

    An exit is told to the guest's own :attr:`IsolatedBot.on_exit`; an exit that belongs to no guest is ignored.
    """
    with asyncio.Runner() as runner:
        _protect(runner.get_loop(), lambda _: None, exits=(SystemExit,))
        return runner.run(main)


def _protect(
    loop: asyncio.AbstractEventLoop,
    on_exit: Callable[[BaseException | None], None],
    exits: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt),
) -> None:
    """Let nobody but the caller end `loop`, or take its signals."""
    add, remove, run_once = loop.add_signal_handler, loop.remove_signal_handler, loop.run_until_complete
    told: list[BaseException] = []

    def add_signal_handler(number: int, callback: Callable[..., Any], *args: Any) -> None:
        # pipecat's runner takes SIGINT by default, and would end its pipeline only.
        if number not in STOP_SIGNALS:
            add(number, callback, *args)

    def remove_signal_handler(number: int) -> bool:
        return number not in STOP_SIGNALS and remove(number)

    def tell_stranger(error: BaseException) -> None:
        if error in told:
            told.remove(error)
        else:
            on_exit(error)

    def run_until_complete(future: Any) -> Any:
        if loop.is_running() or loop.is_closed():
            return run_once(future)
        future = asyncio.ensure_future(future, loop=loop)
        turned = [False]
        failures = 0
        while True:
            turned[0] = False
            mark = loop.call_soon(turned.__setitem__, 0, True)
            try:
                return run_once(future)
            except exits as error:
                if future.done():
                    raise
                # After the task's own callback, which may know whose it was.
                loop.call_soon(tell_stranger, error)
            except RuntimeError:
                failures = 0 if turned[0] else failures + 1
                if future.done() or loop.is_running() or loop.is_closed() or failures >= FAILURES:
                    raise
                on_exit(None)
            finally:
                mark.cancel()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        guest = current_bot.get()
        if guest is not None:
            task.add_done_callback(lambda task: look(task, guest))
        return task

    def look(task: asyncio.Task[Any], guest: IsolatedBot) -> None:
        # Not `exception()`: asyncio would take an ordinary error for one that somebody has handled.
        error: BaseException | None = cast(Any, task)._exception
        if error is not None and is_exit(error):
            if isinstance(error, exits):
                told.append(error)
            # Who else would look at it has nothing to add.
            task.exception()
            guest.on_exit(error)

    own = cast(Any, loop)
    own.add_signal_handler, own.remove_signal_handler = add_signal_handler, remove_signal_handler
    own.run_until_complete = run_until_complete
    loop.set_task_factory(cast(Any, make_task))


async def _cancel_the_rest() -> None:
    """
    Cancel what bots have left behind.

    Several times: a pipecat runner takes a first cancellation as the wish to end in its own time, with tasks that
    are cancelled as well.
    """
    for _ in range(CANCELLATIONS):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        # One that has withstood that often is not going to end.
        tasks = {task for task in left if task.cancelling() < CANCELLATIONS}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCELLATION_TIMEOUT_S)


async def _within(work: Coroutine[Any, Any, None], timeout_s: float) -> None:
    await asyncio.wait({asyncio.ensure_future(work)}, timeout=timeout_s)
