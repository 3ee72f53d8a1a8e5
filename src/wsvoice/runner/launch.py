"""
How this process was started: by whom, with which command line, and what was handed over to it.

All of it is taken before anything else happens, because a bot, or what it starts, must neither see nor change it.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsvoice.errors import ServerError, WsvoiceError
from wsvoice.runner.listening import MAX_SOCKETS, adopt, take_activated
from wsvoice.runner.service_manager import ServiceManager

#: How the two processes talk: of another version nothing can be taken over.
VERSION = 1
#: How many bytes a message's length has.
HEAD = 4
#: How long the sockets may take to come; they are sent before the process is started.
RECEIVE_TIMEOUT_S = 10.0
#: Tells a process that takes over from another one the file descriptor by which they talk.
CHANNEL_VARIABLE = "WSVOICE_UPGRADE"


@dataclass(frozen=True, slots=True)
class Launch:
    """
    How this process was started.

    Attributes:
        command: Its command line, by which it can be started again.
        folder: The folder it was started in, by the name that it had: perhaps of a link that each release changes.
        environ: Its environment, but for what was for this process alone.
        sockets: Those that were opened for it: by systemd, or by the process that it takes over from.
        metrics_sockets: Those of the metrics' port.
        manager: Tells systemd how it is.
        channel: Where the process that it takes over from is reached; ``None`` if there is none.
        obstacle: Why no other process can take its place; empty if one can.
    """

    command: tuple[str, ...]
    folder: Path
    environ: Mapping[str, str] = field(repr=False)
    sockets: tuple[socket.socket, ...] = ()
    metrics_sockets: tuple[socket.socket, ...] = ()
    manager: ServiceManager = field(default_factory=ServiceManager)
    channel: socket.socket | None = None
    obstacle: str = ""

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Launch:
        """
        Take what was handed over to this process; it is removed from `environ`.

        Raises:
            ServerError: If it cannot be used.
        """
        channel = _take_channel(environ)
        kept = {name: value for name, value in environ.items() if name not in _FOR_THIS_PROCESS}
        with _reporting_failures(channel):
            sockets, metrics = (take_activated(environ), []) if channel is None else receive_sockets(channel)
        return cls(
            (sys.executable, *sys.orig_argv[1:]),
            _folder(environ.get("PWD", "")),
            kept,
            tuple(sockets),
            tuple(metrics),
            ServiceManager.of(environ),
            channel,
        )

    def reporting_failures(self) -> AbstractContextManager[None]:
        """Tell the process that this one is to take over from why it does not, if it fails within the context."""
        return _reporting_failures(self.channel)


@contextmanager
def _reporting_failures(channel: socket.socket | None) -> Iterator[None]:
    try:
        yield
    except WsvoiceError as error:
        if channel is not None:
            # It may be gone.
            with suppress(OSError):
                channel.sendall(frame({"kind": "failed", "message": error.message, "hint": error.hint or ""}))
        raise


#: systemd's other variables are for every process of the service; its watchdog is for each without WATCHDOG_PID.
_FOR_THIS_PROCESS = frozenset(
    {CHANNEL_VARIABLE, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "WATCHDOG_PID"}
)


def _take_channel(environ: MutableMapping[str, str]) -> socket.socket | None:
    written = environ.pop(CHANNEL_VARIABLE, None)
    if written is None:
        return None
    try:
        descriptor = int(written)
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise ValueError
    except (ValueError, OverflowError, OSError):
        hint = "it is set by a running server for the process that takes over from it; unset it"
        raise ServerError(f"{CHANNEL_VARIABLE} is {written!r:.40}, which is no socket", hint=hint) from None
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def frame(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent from one process to the other: its length, and JSON."""
    content = json.dumps(message, separators=(",", ":")).encode()
    return len(content).to_bytes(HEAD, "big") + content


def send_sockets(
    channel: socket.socket, sockets: Sequence[socket.socket], metrics_sockets: Sequence[socket.socket] = ()
) -> None:
    """Hand listening sockets over to the process at the other end: where calls come in, and the metrics' port."""
    socket.send_fds(channel, [bytes([VERSION, len(sockets)])], [each.fileno() for each in (*sockets, *metrics_sockets)])


def receive_sockets(channel: socket.socket) -> tuple[list[socket.socket], list[socket.socket]]:
    """
    Return the listening sockets that the other process hands over, and those of the metrics' port.

    Raises:
        ServerError: If it is gone, or speaks otherwise.
    """
    channel.settimeout(RECEIVE_TIMEOUT_S)
    try:
        head, descriptors, *_ = socket.recv_fds(channel, 2, 2 * MAX_SOCKETS)
    except OSError as error:
        raise ServerError(f"the server that this one was to take over from is gone: {error}") from error
    if not head:
        raise ServerError("the server that this one was to take over from is gone")
    if head[:1] != bytes([VERSION]) or len(head) < 2:
        raise ServerError(
            "the running server hands its calls over in another way than this version of wsvoice takes them",
            hint="restart it: a stop lets its calls finish",
        )
    found = [adopt(each) for each in descriptors]
    return found[: head[1]], found[head[1] :]


def _folder(named: str) -> Path:
    """Return the current folder, by the name that the shell, or systemd, gave it if that is the same folder."""
    current = Path.cwd()
    try:
        if named and Path(named).is_absolute() and Path(named).samefile(current):
            return Path(named)
    except OSError:
        pass
    return current
