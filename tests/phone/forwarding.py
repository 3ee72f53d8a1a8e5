"""What the far end of a tunnel does: it takes requests at a TLS address, and hands them to a port of this machine."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

_PAGE = "HTTP/1.1 {}\r\n{}Content-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}"


def page(status: str, body: str, *, kind: str = "text/html", error_code: str = "") -> bytes:
    """Return a page of the tunnel's own, as ngrok's edge serves it with its error codes."""
    code = f"Ngrok-Error-Code: {error_code}\r\n" if error_code else ""
    return _PAGE.format(status, code, kind, len(body.encode()), body).encode()


#: https://ngrok.com/docs/errors/err_ngrok_3200, https://ngrok.com/docs/errors/err_ngrok_6024,
#: https://ngrok.com/docs/errors/err_ngrok_8012
OFFLINE = page("404 Not Found", "<title>ngrok - offline</title>", error_code="ERR_NGROK_3200")
WARNING_PAGE = page("200 OK", "<title>You are about to visit</title>", error_code="ERR_NGROK_6024")
NO_UPSTREAM = page("502 Bad Gateway", "<title>ngrok</title>", error_code="ERR_NGROK_8012")


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy bytes until the end of either side."""
    with suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError, ssl.SSLError):
        writer.close()


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, other: tuple[asyncio.StreamReader, asyncio.StreamWriter]
) -> None:
    """Copy in both directions until both have ended."""
    await asyncio.gather(pump(reader, other[1]), pump(other[0], writer))


def forwarder(port: int, in_place: Callable[[], bytes | None]) -> Callable[..., Coroutine[Any, Any, None]]:
    """
    Return what serves the connections of a tunnel to `port`, one request each, or one WebSocket.

    Args:
        port: Where requests go, at ``localhost``; the headers that ngrok adds are added:
            https://ngrok.com/docs/http/#headers
        in_place: Returns what is answered instead of the server; ``None`` for nothing.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, ssl.SSLError, asyncio.IncompleteReadError):
            writer.close()
            return
        answer = in_place()
        upstream = None
        if answer is None:
            with suppress(OSError):
                upstream = await asyncio.open_connection("localhost", port)
        if upstream is None:
            writer.write(answer or NO_UPSTREAM)
            writer.close()
            return
        first, *fields = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        names = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in fields}
        if "upgrade" not in names:
            fields = [line for line in fields if not line.lower().startswith("connection:")] + ["Connection: close"]
        fields += [f"X-Forwarded-For: {writer.get_extra_info('peername')[0]}", "X-Forwarded-Proto: https"]
        fields += [f"X-Forwarded-Host: {names.get('host', '')}"]
        upstream[1].write("\r\n".join([first, *fields, "", ""]).encode("latin-1"))
        await join(reader, writer, upstream)

    return serve


class PublicAddress:
    """A TLS port on loopback whose requests are forwarded, served in a thread of its own until it is closed."""

    def __init__(
        self,
        certificate: Path,
        forward_to: int,
        *,
        port: int = 0,
        in_place: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        self.port = port
        self._certificate = certificate
        self._serve = forwarder(forward_to, in_place)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self._certificate)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Close the port, and cut what is still forwarded."""

        async def end() -> None:
            self._server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
