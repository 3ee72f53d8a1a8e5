"""
Keeps what a process prints from the terminal while something else is drawn there.

A bot may print, and so may libraries in C and processes that it starts: what is taken from them are the file
descriptors 1 and 2. They lead to a pipe; a thread of its own reads it at once, so that nobody who prints ever waits for
the screen.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO

#: How many lines are kept, and how much of each, in bytes.
KEPT_LINES = 300
LINE_LIMIT = 8192
#: How long the end waits for what was printed last, in seconds.
STOP_TIMEOUT_S = 1.0


class TerminalLog:
    """
    What is printed while it is open: passed on to the terminal, or after :meth:`hold` kept as lines.

    Whatever ends the process in order gives the descriptors back, and shows the lines that were kept.

    Attributes:
        terminal: The terminal, for whoever draws there.
    """

    terminal: IO[str]

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque(maxlen=KEPT_LINES)
        self._rest = b""
        self._holds = False
        #: The descriptors that were taken, with copies of what they were.
        self._taken: dict[int, int] = {}
        self._reading = self._stop = self._wake = -1
        self._drained = threading.Event()
        self._give_back: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="wsvoice-terminal", daemon=True)

    def open(self) -> None:
        """Take stderr, and stdout too if it is a terminal."""
        _flush()
        self._reading, writing = os.pipe()
        self._stop, self._wake = os.pipe()
        for descriptor in (1, 2):
            if descriptor == 2 or os.isatty(descriptor):
                self._taken[descriptor] = os.dup(descriptor)
                os.dup2(writing, descriptor)
        os.close(writing)
        self.terminal = os.fdopen(os.dup(self._taken[2]), "w", encoding="utf-8", errors="replace")
        self._thread.start()
        atexit.register(self.close)

    def hold(self) -> None:
        """Keep what is printed from now on."""
        self._holds = True

    def before_close(self, give_back: Callable[[], None]) -> None:
        """Have whoever draws on the terminal give it back first, however the process ends."""
        self._give_back = give_back

    def size(self) -> tuple[int, int]:
        """Return how many columns and lines the terminal has now."""
        try:
            columns, lines = os.get_terminal_size(self._taken[2])
        except (OSError, KeyError):
            return 80, 24
        return columns or 80, lines or 24

    def lines(self) -> list[str]:
        """Return the lines that were kept, the oldest first."""
        return [each.decode("utf-8", "replace") for each in self._lines.copy()]

    def close(self) -> None:
        """Give the descriptors back, and print the lines that were kept."""
        if not self._taken:
            return
        self._give_back()
        taken, self._taken = self._taken, {}
        atexit.unregister(self.close)
        _flush()
        for descriptor, before in taken.items():
            os.dup2(before, descriptor)
        os.close(self._wake)
        self._drained.wait(STOP_TIMEOUT_S)
        self._holds = False
        for before in taken.values():
            os.close(before)
        _write(2, b"".join(line + b"\n" for line in [*self._lines, *([self._rest] if self._rest else [])]))
        with suppress(OSError):
            self.terminal.close()

    # In the thread

    def _run(self) -> None:
        watched = [self._reading, self._stop]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if self._reading not in ready:
                # Nothing is left of what was printed before the end. Processes that the bot has started may go on.
                watched.remove(self._stop)
                self._drained.set()
            elif data := os.read(self._reading, 65536):
                self._take(data)
            else:
                break
        self._drained.set()
        os.close(self._reading)
        os.close(self._stop)

    def _take(self, data: bytes) -> None:
        if not self._holds:
            # Once they were given back, the descriptor itself leads there.
            _write(self._taken.get(2, 2), data)
            return
        *whole, rest = (self._rest + data).split(b"\n")
        self._lines.extend(line.rstrip(b"\r")[:LINE_LIMIT] for line in whole)
        self._rest = rest[:LINE_LIMIT]


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it, unless the terminal is gone."""
    with suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
