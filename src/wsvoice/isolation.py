"""
Keeps a bot, which runs in our process, from taking the process's signals and from ending it.

Python lets any code replace the handlers of SIGINT and SIGTERM, stop the event loop, or end it by an exit: asyncio
passes a :exc:`SystemExit` or :exc:`KeyboardInterrupt` of any task on to the caller of the loop. Here the handlers stay,
the loop goes on, and the bot's own session learns of the exit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar, cast

T = TypeVar("T")
SignalHandler = Callable[[int, FrameType | None], Any]

#: The signals that stop a process; a bot may handle all others.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: How often remaining tasks are cancelled at the end, and how long each time may take.
CANCELLATIONS, CANCELLATION_TIMEOUT_S = 3, 0.3
#: How often in a row the loop may fail without making progress.
FAILURES = 10


@dataclass(frozen=True, eq=False, slots=True)
class IsolatedBot:
    """
    A running bot.

    Attributes:
        name: Its call's id.
        on_exit: Called in the loop when a task of the bot raised something that would have ended the process.
    """

    name: str
    on_exit: Callable[[BaseException], None]


#: The bot that the current task belongs to; inherited by the tasks that it creates.
current_bot: ContextVar[IsolatedBot | None] = ContextVar("wsvoice_bot", default=None)


def is_exit(error: BaseException | None) -> bool:
    """Whether `error` would end the process: neither an :exc:`Exception` nor a cancellation."""
    return error is not None and not isinstance(error, (Exception, asyncio.CancelledError))


def describe_failure(error: BaseException) -> str:
    """Return what a bot that failed with `error` did, such as ``raised ValueError: ...``."""
    if isinstance(error, SystemExit):
        return "called sys.exit()" if error.code is None else f"called sys.exit({error.code!r:.200})"
    text = str(error)[:200]
    return f"raised {type(error).__name__}" + (f": {text}" if text else "")


@contextmanager
def protect_signals(
    handler: SignalHandler | None = None, signals: Collection[signal.Signals] = STOP_SIGNALS
) -> Iterator[None]:
    """
    Keep other code from handling SIGINT and SIGTERM, or other `signals`, while the context lasts.

    Attempts are ignored silently: a bot that wants to end in time is asked to by the end of its call.

    Args:
        handler: Handles them; by default the current handler.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals only in the main thread, and loops in other threads refuse them.
        yield
        return
    set_handler = signal.signal
    before = {number: signal.getsignal(number) for number in signals}

    def set_other(number: int, other: Any) -> Any:
        return signal.getsignal(number) if number in signals else set_handler(number, other)

    if handler is not None:
        for number in signals:
            set_handler(number, handler)
    cast(Any, signal).signal = set_other
    _protected.append((set_handler, frozenset(signals)))
    try:
        yield
    finally:
        _protected.pop()
        cast(Any, signal).signal = set_handler
        for number, previous in before.items():
            set_handler(number, previous)


#: Which signals are protected, and how handlers were set before that; the outermost protection first.
_protected: list[tuple[Callable[[int, Any], Any], frozenset[signal.Signals]]] = []


def _give_signals_back() -> None:
    """
    Let a process that the bot has forked be ended, as :mod:`multiprocessing` does: what our handlers do is not for it.

    Ctrl-C goes to all processes of the terminal, and there asks for an end in time: it stays without effect.
    """
    if _protected:
        set_handler, _ = _protected[0]
        cast(Any, signal).signal = set_handler
        for number in frozenset[signal.Signals]().union(*(signals for _, signals in _protected)):
            set_handler(number, (lambda *_: None) if number == signal.SIGINT else signal.SIG_DFL)
        _protected.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_give_signals_back)


def run(
    main: Coroutine[Any, Any, T],
    *,
    on_exit: Callable[[BaseException | None], None],
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
) -> T:
    """
    Run `main` in a new event loop that no bot can end, and cancel the remaining tasks when it is done.

    Unlike :func:`asyncio.run`, it does not wait without limit for tasks that resist their cancellation.

    Args:
        main: What to run.
        on_exit: Called when an exit, or (``None``) a stop of the loop, came from outside any bot's task.
        loop_factory: Creates the loop.
    """
    loop = loop_factory()
    try:
        _protect(loop, on_exit)
        try:
            return loop.run_until_complete(main)
        finally:
            loop.run_until_complete(_cancel_remaining())
            closing = loop.create_task(loop.shutdown_asyncgens())
            loop.run_until_complete(asyncio.wait({closing}, timeout=CANCELLATION_TIMEOUT_S))
    finally:
        # Running threads are not awaited here, but at the end of the process.
        loop.close()


def run_interruptibly(main: Coroutine[Any, Any, T]) -> T:
    """
    Run `main` as :func:`asyncio.run` does, including Ctrl-C, in a loop that no bot's exit can end.

    An exit is reported to its bot's :attr:`IsolatedBot.on_exit`; one that belongs to no bot is ignored.
    """
    with asyncio.Runner() as runner:
        _protect(runner.get_loop(), lambda _: None, exits=(SystemExit,))
        return runner.run(main)


def _protect(
    loop: asyncio.AbstractEventLoop,
    on_exit: Callable[[BaseException | None], None],
    exits: tuple[type[BaseException], ...] = (SystemExit, KeyboardInterrupt),
) -> None:
    """Keep everybody but the caller from ending `loop` or taking its signals."""
    add, remove, run_once = loop.add_signal_handler, loop.remove_signal_handler, loop.run_until_complete
    reported: list[BaseException] = []

    def add_signal_handler(number: int, callback: Callable[..., Any], *args: Any) -> None:
        # pipecat's runner handles SIGINT by default, and would only end its pipeline.
        if number not in STOP_SIGNALS:
            add(number, callback, *args)

    def remove_signal_handler(number: int) -> bool:
        return number not in STOP_SIGNALS and remove(number)

    def report_unknown(error: BaseException) -> None:
        if error in reported:
            reported.remove(error)
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
                # After the task's own callback, which may know the bot.
                loop.call_soon(report_unknown, error)
            except RuntimeError:
                failures = 0 if turned[0] else failures + 1
                if future.done() or loop.is_running() or loop.is_closed() or failures >= FAILURES:
                    raise
                on_exit(None)
            finally:
                mark.cancel()

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        bot = current_bot.get()
        if bot is not None:
            task.add_done_callback(lambda task: check(task, bot))
        return task

    def check(task: asyncio.Task[Any], bot: IsolatedBot) -> None:
        # Not `exception()`, which would mark an ordinary error as handled.
        error: BaseException | None = cast(Any, task)._exception
        if error is not None and is_exit(error):
            if isinstance(error, exits):
                reported.append(error)
            # Mark it as handled.
            task.exception()
            bot.on_exit(error)

    own = cast(Any, loop)
    own.add_signal_handler, own.remove_signal_handler = add_signal_handler, remove_signal_handler
    own.run_until_complete = run_until_complete
    loop.set_task_factory(cast(Any, make_task))


async def _cancel_remaining() -> None:
    """
    Cancel the tasks that bots left behind.

    Several times, because a pipecat runner takes the first cancellation as a request to end in its own time.
    """
    for _ in range(CANCELLATIONS):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        # A task that resisted that often will not end.
        tasks = {task for task in left if task.cancelling() < CANCELLATIONS}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CANCELLATION_TIMEOUT_S)
