"""A thread that notices when a tunnel is down, and opens it again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from loguru import logger

from wsvoice.errors import WsvoiceError
from wsvoice.phone.health import find_problem
from wsvoice.phone.tunnels import Tunnel


@dataclass(frozen=True, slots=True)
class Pace:
    """
    How often is looked, and for how long is waited, in seconds.

    Attributes:
        look_s: Between two looks at the program that holds the tunnel open.
        ask_s: Between two requests to the public address; ngrok's free accounts have 20 000 of them a month.
        ask_again_s: Until the next one if one fails.
        misses: How many of them fail in a row before the tunnel is opened again.
        answer_s: How long a new address may take to answer, asked every `await_s`.
        timeout_s: How long one answer may take.
        first_wait_s, longest_wait_s: Before the tunnel is opened again; doubled from one to the other if that fails.
        steady_s: After which time a failure is no longer a repetition of the last one.
        end_s: How long the end of the watch waits for its thread.
    """

    look_s: float = 2.0
    ask_s: float = 60.0
    ask_again_s: float = 5.0
    misses: int = 3
    answer_s: float = 15.0
    await_s: float = 1.0
    timeout_s: float = 5.0
    first_wait_s: float = 1.0
    longest_wait_s: float = 30.0
    steady_s: float = 60.0
    end_s: float = 2.0


class TunnelWatch:
    """
    Watches a tunnel from its start until the context ends, which closes the tunnel.

    It has a thread of its own, so that no bot can hold it up.

    Args:
        tunnel: The open tunnel.
        port: Where the server listens on this machine.
        pace: How often is looked.
    """

    def __init__(self, tunnel: Tunnel, port: int, *, pace: Pace | None = None) -> None:
        self._tunnel = tunnel
        self._local_url = f"http://localhost:{port}"
        self._on_up: Callable[[str], None] = lambda _: None
        self._pace = pace or Pace()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        #: Whether the address has ever answered. If not, this machine may just be unable to reach it.
        self._answered = False
        self._misses = 0
        self._ask_at = 0.0
        self._opened_at = time.monotonic()
        self._wait_s = self._pace.first_wait_s

    def __enter__(self) -> Self:
        """Take charge of the tunnel."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the watch, and close the tunnel."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(self._pace.end_s)
        if self._thread is None or not self._thread.is_alive():
            self._tunnel.close()

    def start(self, on_up: Callable[[str], None]) -> None:
        """
        Begin to watch, now that the server listens.

        Args:
            on_up: Called in the thread with the public host once that answers, or has been waited for in vain; and
                again each time when the tunnel has got another one. What it raises on purpose is logged.
        """
        self._on_up = on_up
        self._thread = threading.Thread(target=self._watch, name="wsvoice-tunnel", daemon=True)
        self._thread.start()

    # In the thread

    def _watch(self) -> None:
        try:
            host = ""
            while not self._over.is_set():
                if not (why := self._wait_until_it_answers()):
                    if self._tunnel.host != host:
                        host = self._tunnel.host
                        self._tell(host)
                    elif self._answered:
                        logger.info("the tunnel is up again: https://{}", host)
                    why = self._wait_for_failure()
                if why:
                    self._reopen(why)
        finally:
            # Otherwise the end of the context closes it; if that could not wait, this does.
            if self._over.is_set():
                self._tunnel.close()

    def _tell(self, host: str) -> None:
        try:
            if not self._over.is_set():
                self._on_up(host)
        except WsvoiceError as error:
            logger.error("{}", _in_one_line(error))

    def _wait_until_it_answers(self) -> str:
        """Wait until a new address answers, or is known not to; return why the tunnel is down, if it is."""
        self._misses, self._answered = 0, False
        self._opened_at = time.monotonic()
        url, deadline = f"https://{self._tunnel.host}", self._opened_at + self._pace.answer_s
        while not self._over.is_set():
            why = ask(url, timeout_s=self._pace.timeout_s)
            if not why:
                self._answered = True
                break
            if failure := self._tunnel.failure():
                return failure
            if time.monotonic() >= deadline:
                logger.warning("{} does not answer yet, as seen from this machine: {}", url, why)
                break
            self._over.wait(self._pace.await_s)
        self._ask_at = time.monotonic() + self._pace.ask_s
        return ""

    def _wait_for_failure(self) -> str:
        """Return why the tunnel is down, once it is; empty if the watch is over."""
        while not self._over.wait(self._pace.look_s):
            if why := self._tunnel.failure() or self._miss():
                return why
        return ""

    def _miss(self) -> str:
        """Return why the public address does not answer, once it has not done so several times in a row."""
        if time.monotonic() < self._ask_at:
            return ""
        url = f"https://{self._tunnel.host}"
        why = ask(url, timeout_s=self._pace.timeout_s)
        if not why and not self._answered:
            logger.info("{} answers now", url)
        if not why:
            self._answered, self._misses = True, 0
        elif self._answered and not ask(self._local_url, timeout_s=self._pace.timeout_s):
            # Not if the server itself is held up, by a bot or by what else this machine does.
            self._misses += 1
        self._ask_at = time.monotonic() + (self._pace.ask_again_s if self._misses else self._pace.ask_s)
        return f"{url} does not answer: {why}" if self._misses >= self._pace.misses else ""

    def _reopen(self, why: str) -> None:
        """Open the tunnel again, as often as it takes."""
        logger.warning("the tunnel is down: {}; it is opened again", why)
        if time.monotonic() - self._opened_at > self._pace.steady_s:
            self._wait_s = self._pace.first_wait_s
        said = ""
        while not self._over.wait(self._wait_s):
            self._wait_s = min(2 * self._wait_s, self._pace.longest_wait_s)
            try:
                self._tunnel.reopen()
                return
            except WsvoiceError as error:
                if error.message != said and not self._over.is_set():
                    logger.warning("the tunnel cannot be opened: {}; it is tried again", _in_one_line(error))
                said = error.message


def ask(url: str, *, timeout_s: float) -> str:
    """Return why the server does not answer at `url`, ``https://host[:port]``; empty if it does."""
    return asyncio.run(find_problem(url, timeout_s=timeout_s))


def _in_one_line(error: WsvoiceError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
