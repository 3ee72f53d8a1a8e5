"""
The template of workers: a process that has imported what they need, and is forked for each of them.

``python -m wsvoice.runner.workers.template DESCRIPTOR``, which the front starts. It serves nothing itself, has one
thread, and never imports anything of the project's, so that every worker reads the project's files anew. It ends with
the front. Its messages are tuples: from the front ``("prepare", patches, level, format)``, ``("import", names)`` and
``("fork", number)`` with the worker's end of its channel; to the front ``("prepared",)``, ``("forked", number, pid)``,
``("exited", pid, status)`` and ``("spoilt", name)``, by which library.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wsvoice.runner.workers.channel import Decoder, encode, receive

if TYPE_CHECKING:
    from wsvoice.config import LogFormat

#: Only there libraries are imported before the fork: elsewhere some of them start threads, or do not survive it
#: (https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods).
IMPORTS_BEFORE_FORK = sys.platform == "linux"
#: Libraries whose threads are started anew after a fork where they are needed, or are not needed: OpenBLAS's, and
#: one of onnxruntime's, without which its sessions work.
#: https://github.com/OpenMathLib/OpenBLAS/blob/develop/driver/others/memory.c
_THREADS_SURVIVE = frozenset({"numpy", "scipy", "onnxruntime"})
#: What a worker needs of ours, and with it of pipecat's.
_OWN = (
    "wsvoice.runner.workers.worker",
    "wsvoice.runner.pipecat.call_arguments",
    "wsvoice.runner.pipecat.websocket_transport",
    "wsvoice.runner.pipecat.patches",
)


class Template:
    """The template's loop; `end` is its end of the channel with the front, and blocks."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._decoder = Decoder()
        # Told by Python's own handler when a worker has ended.
        self._wake, wake = socket.socketpair()
        for each in (self._wake, wake):
            each.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._waker = wake
        # Whoever ends all processes of the group, such as Ctrl-C, means the front. Not SIG_IGN, which programs that
        # a bot starts would inherit.
        for name in ("SIGCHLD", "SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            signal.signal(getattr(signal, name), _nothing)

    def run(self) -> socket.socket | None:
        """Serve the front until it is gone; returns a worker's end of its channel in the process of that worker."""
        while True:
            select.select([self._end, self._wake], [], [])
            with suppress(BlockingIOError):
                self._wake.recv(4096)
            self._tell_exits()
            if not select.select([self._end], [], [], 0)[0]:
                continue
            data, descriptors = receive(self._end)
            if not data:
                signal.set_wakeup_fd(-1)
                return None
            self._decoder.add(data, descriptors)
            for message, descriptor in self._decoder.messages():
                if (end := self._carry_out(message, descriptor)) is not None:
                    return end

    def _carry_out(self, message: Any, descriptor: int | None) -> socket.socket | None:
        what, *arguments = message
        if what == "prepare":
            _prepare(*arguments)
            self._tell("prepared")
        elif what == "import":
            if (spoiler := _import(*arguments)) is not None:
                self._tell("spoilt", spoiler)
        elif descriptor is not None:
            return self._fork(arguments[0], descriptor)
        return None

    def _fork(self, number: int, descriptor: int) -> socket.socket | None:
        pid = os.fork()
        if pid:
            os.close(descriptor)
            self._tell("forked", number, pid)
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for each in (self._end, self._wake, self._waker):
            each.close()
        return socket.socket(fileno=descriptor)

    def _tell_exits(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._tell("exited", pid, os.waitstatus_to_exitcode(status))

    def _tell(self, *message: Any) -> None:
        with suppress(OSError):
            self._end.sendall(encode(message))


def _nothing(*_: Any) -> None:
    """Handle a signal by doing nothing."""


def _prepare(patches: frozenset[str], level: str, log_format: LogFormat) -> None:
    from wsvoice.runner.logs import configure_logging

    configure_logging(level, log_format)
    if IMPORTS_BEFORE_FORK:
        for name in _OWN:
            importlib.import_module(name)
        from wsvoice.runner.pipecat.patches import install

        # Before libraries are imported that take what is patched by name.
        install(patches)
        _settle()


def _import(names: Iterable[str]) -> str | None:
    """
    Import libraries that the bot imports; one that cannot be is the worker's business.

    Returns:
        The name of one that has started a thread: threads are not there after a fork, so workers need another template.
    """
    if not IMPORTS_BEFORE_FORK:
        return None
    names = tuple(names)
    for name in names:
        if name.partition(".")[0] in _THREADS_SURVIVE:
            with suppress(Exception):
                importlib.import_module(name)
    before = _threads()
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
        if _threads() > before:
            return name
    _settle()
    return None


def _threads() -> int:
    """Return how many threads this process has, Python's own and others."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - their number is enough


def _settle() -> None:
    """Let workers share the memory of what was imported: no collection is to touch it."""
    gc.collect()
    gc.freeze()


def main() -> int:
    """Be the template; in the forked processes, be a worker."""
    end = socket.socket(fileno=int(sys.argv[1]))
    end.setblocking(True)
    worker_end = Template(end).run()
    if worker_end is None:
        return 0
    from wsvoice.runner.workers.worker import work

    return work(worker_end)


if __name__ == "__main__":
    sys.exit(main())
