"""The sockets that the server listens on: bound here, or handed over by whoever started this process."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence

from wsvoice.errors import PortInUseError, ServerError

#: The first file descriptor that systemd hands over: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
FIRST_DESCRIPTOR = 3
_ACTIVATION = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
#: More than any unit file has.
MAX_SOCKETS = 64


def take_activated(environ: MutableMapping[str, str], *, first: int = FIRST_DESCRIPTOR) -> list[socket.socket]:
    """
    Return the listening sockets that systemd, or whoever speaks its protocol, has opened for this process.

    Nothing that this process starts inherits them, or takes the variables for its own.

    Args:
        environ: The process's environment, from which ``LISTEN_PID`` and those like it are removed.
        first: The first file descriptor.

    Raises:
        ServerError: If one of them is no socket that calls can come in by.
    """
    pid, count, names = (environ.get(name, "").strip() for name in _ACTIVATION[:3])
    for name in _ACTIVATION:
        environ.pop(name, None)
    # A process that systemd started may have started this one, with the same environment.
    if pid != str(os.getpid()) or not count:
        return []
    if not count.isdecimal() or int(count) > MAX_SOCKETS:
        raise ServerError(
            f"LISTEN_FDS is {count!r:.40}, which is no number of sockets",
            hint="it is set by systemd for a service that has a socket unit",
        )
    named = dict(enumerate(names.split(":")))
    return [adopt(first + n, named.get(n, "")) for n in range(int(count))]


def adopt(descriptor: int, name: str = "") -> socket.socket:
    """
    Return the listening TCP socket of a file descriptor that was handed over; no child inherits it.

    Raises:
        ServerError: If it is none.
    """
    shown = f"file descriptor {descriptor}" + (f" ({name})" if name else "")
    try:
        is_socket = stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise ServerError(
            f"{shown} was to be handed over, and is not open", hint="look at who sets LISTEN_FDS"
        ) from error
    if not is_socket:
        raise ServerError(
            f"{shown}, which was handed over, is no socket",
            hint="its unit needs a ListenStream=, as in ListenStream=7860",
        )
    os.set_inheritable(descriptor, False)
    found = socket.socket(fileno=descriptor)
    if found.family not in (socket.AF_INET, socket.AF_INET6):
        what, hint = (
            "a Unix socket" if found.family == socket.AF_UNIX else "no TCP socket",
            "a port, as in ListenStream=7860",
        )
    elif found.type != socket.SOCK_STREAM:
        what, hint = "a socket for datagrams", "ListenStream= in place of ListenDatagram="
    elif not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        what, hint = "not listening", "Accept=no: one process takes all calls"
    else:
        return found
    found.detach()
    raise ServerError(f"{shown}, which was handed over, is {what}", hint=f"its socket unit needs {hint}")


def address_of(sockets: Sequence[socket.socket]) -> tuple[str, int]:
    """Return the host and the port of the first of some listening sockets."""
    host, port, *_ = sockets[0].getsockname()
    return str(host), int(port)


def listen(host: str, port: int, *, option: str = "--") -> list[socket.socket]:
    """
    Return sockets bound to every address of `host`, all on one port; hints name the options ``{option}port``.

    Raises:
        PortInUseError: If the port is taken.
        ServerError: If the host is unknown, or the port cannot be listened on for another reason.
    """
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: it decides a free port, and not every machine has IPv6.
        for family, _, _, _, address in sorted(addresses, key=lambda each: each[0] != socket.AF_INET):
            bound_port = sockets[0].getsockname()[1] if sockets else port
            try:
                # It listens at once: a second server on the same port must fail here, and not later.
                sockets.append(socket.create_server((address[0], bound_port, *address[2:]), family=family, backlog=128))
            except OSError:
                if not sockets or family != socket.AF_INET6:
                    raise
    except socket.gaierror as error:
        raise ServerError(
            f"the host {host!r} is unknown: {error.strerror}",
            hint=f"use {option}host localhost or {option}host 0.0.0.0",
        ) from error
    except OSError as error:
        for each in sockets:
            each.close()
        problem = f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno else error}"
        if error.errno == errno.EADDRINUSE:
            other = f"{option}port {port + 1 if 0 < port < 65535 else 7861}"
            raise PortInUseError(problem, port=port, instead=other) from error
        raise ServerError(problem, hint=_listen_hint(error, port, option)) from error
    return sockets


def _listen_hint(error: OSError, port: int, option: str) -> str | None:
    if error.errno == errno.EADDRNOTAVAIL:
        hosts = f"{option}host localhost, or {option}host 0.0.0.0 for all of its addresses"
        return f"it is not an address of this machine; use {hosts}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not listen on that port; try {option}port {7860 if option == '--' else 9090}"
    return None


def url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
