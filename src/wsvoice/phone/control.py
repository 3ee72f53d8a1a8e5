"""
Asks the servers that run on this machine for their calls, at the socket that each of them has.

What can be asked is in :mod:`wsvoice.runner.control`.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsvoice.config import parse_server
from wsvoice.errors import ControlError, RemoteProtocolError, UsageError
from wsvoice.phone.runs import RunningServer, remove_socket
from wsvoice.providers.fields import read_object

#: How long a server may take to answer; one whose event loop is blocked takes longer.
ANSWER_TIMEOUT_S = 5.0
#: The largest answer, in bytes: that of a hundred thousand calls.
ANSWER_LIMIT = 64 * 1024 * 1024


class GoneError(ControlError):
    """A server runs no more, whatever its file says."""


def ask(server: RunningServer, request: Mapping[str, Any], *, timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
    """
    Return a server's answer to one request.

    Raises:
        GoneError: If it runs no more.
        ControlError: If it does not answer, or refuses.
    """
    with _connected(server, request, timeout_s) as answers:
        return next(answers)


@contextmanager
def watching(
    server: RunningServer, every_s: float, *, timeout_s: float = ANSWER_TIMEOUT_S
) -> Iterator[Iterator[dict[str, Any]]]:
    """Ask a server to tell of its calls every so many seconds; the errors are those of :func:`ask`."""
    with _connected(server, {"do": "watch", "every_s": every_s}, timeout_s + every_s) as answers:
        yield answers


@contextmanager
def _connected(
    server: RunningServer, request: Mapping[str, Any], timeout_s: float
) -> Iterator[Iterator[dict[str, Any]]]:
    if not (server.control and hasattr(socket, "AF_UNIX")):
        raise ControlError(f"{_named(server)} tells nobody of its calls", hint="stop it, and start it anew")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        with connection:
            try:
                connection.connect(server.control)
            except (ConnectionRefusedError, FileNotFoundError) as error:
                # It was killed, and another process has its number.
                remove_socket(Path(server.control))
                raise GoneError(f"{_named(server)} runs no more") from error
            connection.sendall(json.dumps(request).encode() + b"\n")
            # The file that it reads from keeps the connection open.
            with closing(_answers(server, connection)) as answers:
                yield answers
    except TimeoutError as error:
        raise ControlError(
            f"{_named(server)} does not answer", hint="its event loop is blocked; its log says where, once it goes on"
        ) from error
    except OSError as error:
        raise ControlError(f"{_named(server)} cannot be asked: {error.strerror or error}") from error


def _answers(server: RunningServer, connection: socket.socket) -> Generator[dict[str, Any], None, None]:
    with connection.makefile("rb") as file:
        while line := file.readline(ANSWER_LIMIT):
            try:
                answer = read_object(line.decode("utf-8", "replace"))
            except RemoteProtocolError as error:
                raise ControlError(f"{_named(server)} answers what nobody understands: {error.message}") from error
            if "error" in answer:
                raise ControlError(f"{_named(server)} refuses: {answer['error']}")
            yield answer
    raise GoneError(f"{_named(server)} has ended")


def _named(server: RunningServer) -> str:
    return f"the server at {server.url}"


def bot_at(port: int, servers: Sequence[RunningServer]) -> tuple[int, str] | None:
    """Return the process of the server that listens on a port, and its bot if it says so; ``None`` if none does."""
    for each in servers:
        if urlsplit(each.url).port != port:
            continue
        try:
            told = ask(each, {"do": "status"}, timeout_s=1.0).get("server")
        except GoneError:
            continue
        except ControlError:
            told = None
        bot = told.get("bot") if isinstance(told, dict) else None
        return each.pid, bot if isinstance(bot, str) else ""
    return None


def find_servers(servers: Sequence[RunningServer], wanted: str | None) -> list[RunningServer]:
    """
    Return the servers that are meant.

    Args:
        servers: Those that run on this machine.
        wanted: A process, a port or an address; ``None`` for all.

    Raises:
        UsageError: If there is none.
    """
    servers = [each for each in servers if each.control]
    if not servers:
        raise UsageError("no server runs on this machine", hint="start one in another terminal with `wsvoice run`")
    if wanted is None:
        return list(servers)
    text = wanted.strip()
    if text.isdecimal():
        found = [each for each in servers if int(text) in (each.pid, urlsplit(each.url).port)]
    else:
        url = parse_server(text, "--server")
        found = [each for each in servers if each.is_at(url)]
    if not found:
        known = ", ".join(f"{each.url} (process {each.pid})" for each in servers)
        raise UsageError(f"no server that you have started on this machine is {text!r}", hint=f"there is {known}")
    return found
