"""
What systemd is told of this process: that it is ready, reloads or stops, how many calls there are, that it is alive.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager

from loguru import logger

from wsvoice.call import plural

#: How much longer a stop may take each time it is said, so that systemd does not cut a drain off, and how often.
EXTENSION_S, EXTEND_EVERY_S = 15.0, 5.0
#: How long systemd, if it is busy, may take to read what is said only once.
TAKE_TIMEOUT_S = 0.5
#: A busy manager may be late as often as this before it believes that the process is stuck.
_BEATS = 3


class ServiceManager:
    """
    Tells systemd how this process is; nothing without a socket. It may be used from any thread.

    What is said only once waits for systemd, for :data:`TAKE_TIMEOUT_S` at most; signs of life do not.

    Args:
        address: The Unix socket, ``@`` at its beginning for an abstract one; empty for nobody.
        watchdog_s: Within how many seconds systemd wants to hear that the process is alive; ``None`` if it does not.
        now: Gives the time in seconds.
    """

    def __init__(
        self, address: str = "", watchdog_s: float | None = None, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._beat_s = None if watchdog_s is None else watchdog_s / _BEATS
        self._now = now
        self._beat_at = self._extended_at = float("-inf")
        self._status = ""
        self._is_stopping = False
        self._lock = threading.Lock()

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> ServiceManager:
        """Return the one that the environment names, from which its variables are removed: no child is to speak."""
        address, usec, pid = (environ.pop(name, "") for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"))
        is_watched = usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        # Other kinds of addresses, such as vsock, are for virtual machines.
        return cls(address if address.startswith(("/", "@")) else "", int(usec) / 1e6 if is_watched else None)

    def ready(self) -> None:
        """Say that calls can come."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """Say that the process takes no new calls, and ends."""
        self._is_stopping = True
        self._tell("STOPPING=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that the process reloads while the context lasts."""
        # The clock that systemd compares it with: CLOCK_MONOTONIC, which is this one on Linux.
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            # It may have been asked to stop meanwhile.
            if not self._is_stopping:
                self._tell("READY=1")

    def hand_over(self, pid: int) -> None:
        """Say that another process is the service from now on; nothing is said for this one any more."""
        self._tell(f"MAINPID={pid}")
        self._address = ""

    def tick(self, calls: int) -> None:
        """Say what is due; called often, in the event loop: if that is stuck, systemd hears nothing and restarts."""
        if not self._address:
            return
        now, due = self._now(), []
        status = plural(calls, "call")
        if self._is_stopping:
            status = f"stopping; {status} left"
            if now - self._extended_at >= EXTEND_EVERY_S:
                self._extended_at = now
                due.append(f"EXTEND_TIMEOUT_USEC={int(EXTENSION_S * 1e6)}")
        if status != self._status:
            self._status = status
            due.append(f"STATUS={status}")
        if self._beat_s is not None and now - self._beat_at >= self._beat_s:
            self._beat_at = now
            due.append("WATCHDOG=1")
        if due:
            self._tell(*due, timeout_s=0)

    def _tell(self, *lines: str, timeout_s: float = TAKE_TIMEOUT_S) -> None:
        if not self._address:
            return
        with self._lock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(timeout_s)
            try:
                sender.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                logger.debug("systemd was not told {}: {}", lines[0], error)
