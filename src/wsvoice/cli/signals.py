"""Calls that end early: by Ctrl-C, by a signal that would end the process at once, or by an error."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from wsvoice.errors import UsageError, WsvoiceError

if TYPE_CHECKING:
    from wsvoice.cli.output import Output


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
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP (a cancelled job, a closed terminal) do what Ctrl-C does, unless they are ignored."""

    def interrupt(*_: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        # Handled by whatever handles Ctrl-C at this moment, such as asyncio.
        signal.raise_signal(signal.SIGINT)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # A process that nohup started outlives its terminal.
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
