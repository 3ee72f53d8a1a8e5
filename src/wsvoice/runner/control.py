"""
A socket at which a server tells its owner of its calls, and ends one.

It is a Unix socket beside the server's run file (:mod:`wsvoice.phone.runs`). Requests and answers are lines of JSON:

===============================  ====================================================================================
``{"do": "calls"}``              ``{"server": {…}, "calls": [{…}, …]}``: :class:`~wsvoice.runner.figures.Snapshot`
``{"do": "status"}``             ``{"server": {…}}``: :class:`~wsvoice.runner.figures.ServerFigures`
``{"do": "watch", "every_s": 1}``  what ``calls`` answers, again and again until the client leaves
``{"do": "end", "id": "CA12"}``  ``{"ended": true}``; or false, and ``found``: the ids of the calls that may be meant
===============================  ====================================================================================

Whatever else is asked is answered with ``{"error": "…"}``. A client that does not read gets nothing more until it does,
and is dropped after a while; a client that asks for nothing is too.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsvoice.config import make_private
from wsvoice.errors import RemoteProtocolError
from wsvoice.phone.runs import SOCKET_FOLDER, remove_socket
from wsvoice.providers.fields import read_object
from wsvoice.runner.figures import Snapshot, as_object, matching_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: The longest path of a socket, in bytes, without the zero at its end: 107 on Linux, and 103 on macOS and the BSDs.
#: https://man7.org/linux/man-pages/man7/unix.7.html
PATH_LIMIT = 103
#: The largest request, in bytes.
REQUEST_LIMIT = 4096
#: How many clients there may be at once.
CLIENT_LIMIT = 16
#: How long a client may ask for nothing, or not read its answers, in seconds.
IDLE_TIMEOUT_S = 60.0
#: How often a client that watches is told, in seconds: at least, at most and by default.
WATCH_EVERY_S = (0.2, 60.0, 0.5)
#: For how long one snapshot does for everybody who asks, in seconds.
SNAPSHOT_TTL_S = 0.1
#: How many calls are written in a row before running calls get their turn; they take less than a millisecond.
CALLS_A_TURN = 50


class ControlSocket:
    """
    The socket, and who asks there.

    Args:
        folder: The state's.
        look: Returns the server and its calls as they stand.
        end: Asks the call with this id to end, and returns whether there is one; the second argument says why.

    Attributes:
        path: The socket's; ``None`` while it is not open.
    """

    def __init__(self, folder: Path, look: Callable[[], Snapshot], end: Callable[[str, str], bool]) -> None:
        self.path: Path | None = None
        self._folder = folder
        self._look = look
        self._end = end
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._last: tuple[float, bytes] = (0.0, b"")

    async def open(self) -> None:
        """
        Listen.

        Raises:
            OSError: If that is not possible: on a system without such sockets, or where nothing can be written.
        """
        if not hasattr(socket, "AF_UNIX"):
            raise OSError("this system has no Unix sockets for Python")
        path = _socket_path(self._folder)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.setblocking(False)
            # A server with the same number that was killed; this process has it now.
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            # Nobody can connect before it listens.
            path.chmod(0o600)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=REQUEST_LIMIT)
        except BaseException:
            listener.close()
            remove_socket(path)
            raise
        self.path = path

    async def close(self) -> None:
        """Drop every client, and remove the socket."""
        if self._server is not None:
            self._server.close()
        for each in tuple(self._clients):
            each.transport.abort()
        if self.path is not None:
            remove_socket(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it leaves."""
        if not _is_own(writer.get_extra_info("socket")) or len(self._clients) >= CLIENT_LIMIT:
            writer.transport.abort()
            return
        self._clients.add(writer)
        try:
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    line = await reader.readline()
                if not line:
                    return
                async for answer in self._answers(line, reader, writer):
                    writer.write(answer + b"\n")
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    await writer.drain()
        except ValueError:
            # The line is longer than the limit.
            writer.write(_line({"error": f"a request of more than {REQUEST_LIMIT} bytes"}) + b"\n")
        except (OSError, TimeoutError):
            writer.transport.abort()
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answers(
        self, line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[bytes]:
        """Yield what is answered to one request."""
        try:
            asked = read_object(line.decode("utf-8", "replace"))
        except RemoteProtocolError as error:
            yield _line({"error": error.message})
            return
        match asked.get("do"):
            case "calls":
                yield await self._snapshot()
            case "status":
                yield _line({"server": as_object(self._look().server)})
            case "end":
                yield _line(self._end_call(asked.get("id")))
            case "watch":
                async for each in self._watch(_interval_s(asked.get("every_s")), reader, writer):
                    yield each
            case other:
                yield _line({"error": f"do is one of calls, status, watch, end; not {str(other)[:40]!r}"})

    async def _watch(
        self, every_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[bytes]:
        """Yield a snapshot every so often to a client that reads, until it leaves."""
        loop = asyncio.get_running_loop()
        read_at = loop.time()
        while not reader.at_eof() and not writer.is_closing():
            if not writer.transport.get_write_buffer_size():
                read_at = loop.time()
                yield await self._snapshot()
            elif loop.time() - read_at > IDLE_TIMEOUT_S:
                raise TimeoutError
            await asyncio.sleep(every_s)

    def _end_call(self, given: Any) -> dict[str, Any]:
        if not isinstance(given, str) or not given:
            return {"error": "id is a call's id"}
        found = matching_ids((each.id for each in self._look().calls), given)
        ended = len(found) == 1 and self._end(found[0], "`wsvoice calls end` asked for it")
        return {"ended": ended, "id": found[0]} if ended else {"ended": False, "found": found if len(found) > 1 else []}

    async def _snapshot(self) -> bytes:
        """Return the server and its calls as a line; the same one to all who ask at nearly the same time."""
        now = asyncio.get_running_loop().time()
        made_at, line = self._last
        if line and now - made_at < SNAPSHOT_TTL_S:
            return line
        snapshot = self._look()
        calls: list[bytes] = []
        for each in snapshot.calls:
            calls.append(_line(as_object(each)))
            if len(calls) % CALLS_A_TURN == 0:
                await asyncio.sleep(0)
        line = b'{"server":' + _line(as_object(snapshot.server)) + b',"calls":[' + b",".join(calls) + b"]}"
        self._last = now, line
        return line


def _line(content: dict[str, Any]) -> bytes:
    # JSON on one line, in ASCII: no caller's name can end it.
    return json.dumps(content, separators=(",", ":")).encode()


def _interval_s(given: Any) -> float:
    least, most, default = WATCH_EVERY_S
    if not isinstance(given, int | float) or isinstance(given, bool) or given != given:  # Not a number.
        return default
    return float(min(max(given, least), most))


def _socket_path(folder: Path) -> Path:
    """
    Return where the socket of this process is to be: beside its run file, or in a folder of its own in case.

    Raises:
        OSError: If no folder has a path that is short enough.
    """
    name = f"{os.getpid()}.sock"
    path = make_private(folder / "runs") / name
    if len(os.fsencode(path)) <= PATH_LIMIT:
        return path
    for place in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(place)) <= PATH_LIMIT - len(SOCKET_FOLDER) - len(name) - 12:
            # Only its owner may enter what it makes.
            return Path(tempfile.mkdtemp(prefix=SOCKET_FOLDER, dir=place), name)
    raise OSError(f"{path} is too long for a socket")


def _is_own(connection: Any) -> bool:
    """Return whether the process at the other end is this user's or root's, where the system tells whose it is."""
    # https://man7.org/linux/man-pages/man7/unix.7.html: struct ucred {pid, uid, gid}
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    with suppress(OSError):
        _, uid, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("iII")))
        # Root may do everything else too; nobody but root can be a service's user that is there only while it runs.
        return uid in (0, os.geteuid())
    return False
