"""Calls that end early: by Ctrl-C, by a signal that would end the process at once, or by an error."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wsvoice.errors import UsageError, WsvoiceError

if TYPE_CHECKING:
    from wsvoice.cli.output import Output


#: What a cancelled job and a closed terminal send.
_ENDING = ("SIGTERM", "SIGHUP")
#: After the end of whoever started this process, the calls that go on are ended so many seconds after the first signal.
CLOSING_S = 2.0


@contextmanager
def placing_calls(output: Output, text: str, show_logs: Callable[[], None]) -> Iterator[None]:
    """
    Show that calls are placed, and say why they ended early.

    Args:
        output: Where that is shown.
        text: What is shown meanwhile.
        show_logs: Prints what bots have logged, after a failure that may be theirs.
    """
    try:
        with output.progress(text):
            yield
    except KeyboardInterrupt:
        # Everything has been cleaned up; another Ctrl-C must not show a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        output.line("interrupted", style="bold")
        raise
    except WsvoiceError as error:
        # If the command is wrong, and not the bot, what its server wrote is in the message.
        if not isinstance(error, UsageError):
            show_logs()
        raise


@contextmanager
def finishing() -> Iterator[None]:
    """Let no further Ctrl-C, SIGTERM or SIGHUP break off what takes a bounded time, and must be done."""
    before = {name: signal.signal(getattr(signal, name), signal.SIG_IGN) for name in _signals("SIGINT", *_ENDING)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a cancelled job, a closed terminal) do what Ctrl-C does, unless they are ignored."""

    def interrupt(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        # Handled by whatever handles Ctrl-C at this moment, such as asyncio.
        signal.raise_signal(signal.SIGINT)

    # A process that nohup started outlives its terminal.
    heeded = [name for name in _signals(*_ENDING) if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN]
    before = {name: signal.signal(getattr(signal, name), interrupt) for name in heeded}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def put_off_reloads() -> None:
    """
    Let a request for a reload, or for an upgrade, do nothing until the server is there that handles it.

    What is ignored stays so: `nohup` says by that that the process outlives its terminal.
    """
    for name in _signals("SIGHUP", "SIGUSR2"):
        number = getattr(signal, name)
        # A handler, because programs that are started inherit what is ignored.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _do_nothing)


def _do_nothing(*_: object) -> None:
    """Handle a signal by doing nothing."""


def stop_at_end_of_input() -> None:
    """
    Have this process stop once whoever started it closes its standard input, or dies by whatever means.

    Then it gets a SIGTERM, and :data:`CLOSING_S` later a second one, which ends the calls that still go on. What it
    prints meanwhile is thrown away, because nobody reads it. Its standard input is empty for everybody else.
    """
    watched = os.dup(0)
    _replace_by_nothing(0)
    threading.Thread(target=_stop_at_end_of, args=(watched,), name="wsvoice-stdin", daemon=True).start()


def _stop_at_end_of(watched: int) -> None:
    while os.read(watched, 4096):
        pass
    # Writing to a pipe that nobody reads would fail.
    _replace_by_nothing(1, 2)
    _stop()
    time.sleep(CLOSING_S)
    _stop()


def _stop() -> None:
    if os.name == "posix":
        # Unlike raise_signal, it also wakes the main thread if that waits for something.
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        # There os.kill would end the process at once.
        signal.raise_signal(signal.SIGTERM)


def _replace_by_nothing(*descriptors: int) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for each in descriptors:
        os.dup2(nothing, each)
    os.close(nothing)


def _signals(*names: str) -> list[str]:
    """Return those of the signals that the system has."""
    return [name for name in names if hasattr(signal, name)]
