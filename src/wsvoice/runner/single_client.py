"""
A port that serves one client at a time: a new client replaces the previous one.

The port stays open while bots come and go. A client that connects while no bot is ready waits for the next one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as listen_on
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.protocol import State

from wsvoice import http
from wsvoice.runner import requests
from wsvoice.runner.bot_task import INTERNAL_ERROR
from wsvoice.runner.logs import RefusalLog
from wsvoice.runner.protocols import CONNECTION_LIMIT, HEAD_LIMIT, HEAD_TIMEOUT_S, UNREAD_LIMIT
from wsvoice.runner.tapped_connection import ConnectionTrace, TappedConnection

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig

Handler = Callable[[ServerConnection], Awaitable[None]]

NORMAL = 1000
#: How long to wait for a pipeline that lost its client to end, before it gets the next one.
PIPELINE_END_GRACE_S = 0.25
#: How long the bot's event handlers may take before that.
HANDLERS_TIMEOUT_S = 30.0
#: A client that vanished without a close is noticed after the sum of both.
PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
#: How long a client may take to answer a close, while another one waits.
CLOSE_TIMEOUT_S = 1.0


class BoundedConnection(TappedConnection, ServerConnection):
    """
    A connection with the bounds of :class:`~wsvoice.runner.protocols.HttpProtocol`.

    Args:
        others: The server's connections, oldest first.
    """

    def __init__(self, others: dict[BoundedConnection, None], *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._others = others
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the head; if there are too many connections, drop the oldest that still waits for one."""
        super().connection_made(transport)
        self._others[self] = None
        others = [each for each in self._others if not each.transport.is_closing()]
        if len(others) > CONNECTION_LIMIT:
            waiting = (each for each in others if each.protocol.state is State.CONNECTING)
            next(waiting, self).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._others.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the data, unless the head is too large or the peer does not read its answers."""
        if self.protocol.state is State.CONNECTING:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_LIMIT:
                self.transport.abort()
                return
        super().data_received(data)
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.transport.abort()


class SingleClientServer:
    """
    Passes one client after the other to the handler of the current bot.

    Attributes:
        client: The connected client, or ``None``.
        handler: Serves clients; ``None`` while no bot is ready.
        served: How many clients have been served.
        closed: New clients are refused.
        session_id: The bot that serves now.

    Args:
        event_tasks: Returns the running event handlers of the transport that a handler belongs to.
    """

    def __init__(
        self, config: RunConfig, *, event_tasks: Callable[[Handler], Collection[asyncio.Task[Any]]], logger: Logger
    ) -> None:
        self.client: ServerConnection | None = None
        self.handler: Handler | None = None
        self.served = 0
        self.closed = False
        self.port = 0
        self.session_id = ""
        #: Set while nobody is connected.
        self.empty = asyncio.Event()
        self.empty.set()
        self._config = config
        self._event_tasks = event_tasks
        self._logger = logger
        self._refusals = RefusalLog()
        self._servers: list[Server] = []
        self._connections: dict[BoundedConnection, None] = {}
        #: The origins that the bot's params allow; ``None`` until a bot has served.
        self._origins: Sequence[str] | None = None
        self._handler_changed = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._left = asyncio.Event()
        self._left.set()
        #: The client that is being served, its handler, and whether that is done.
        self._serving: ServerConnection | None = None
        self._serving_handler: Handler | None = None
        self._done = asyncio.Event()
        self._done.set()

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Listen on sockets that are bound to one port."""
        self.port = sockets[0].getsockname()[1]
        for each in sockets:
            server = await listen_on(
                self._receive,
                sock=each,
                process_request=self._check,
                open_timeout=HEAD_TIMEOUT_S,
                create_connection=cast(Any, partial(BoundedConnection, self._connections)),
                max_size=self._config.message_limit,
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_TIMEOUT_S,
                close_timeout=CLOSE_TIMEOUT_S,
                compression=None,
                server_header=None,
            )
            self._servers.append(server)

    async def close(self) -> None:
        """Stop listening, and close the remaining connections."""
        for server in self._servers:
            server.close()
        for server in self._servers:
            await server.wait_closed()

    @asynccontextmanager
    async def serve(self, handler: Handler, origins: Sequence[str] | None = None) -> AsyncIterator[None]:
        """
        Serve clients with `handler` while the context lasts; its current client is closed at the end.

        Raises:
            RuntimeError: If another handler serves.
        """
        if self.handler is not None:
            raise RuntimeError(f"the bot already serves clients on port {self.port}")
        self._origins = origins or ()
        await self._set_handler(handler)
        left = self._left = asyncio.Event()
        try:
            yield
        finally:
            left.set()
            if self.handler is handler:
                await self._set_handler(None)
            if self._serving is not None and self._serving_handler is handler:
                await self._serving.close(NORMAL)
                await self._done.wait()

    async def drop(self, *, failed: bool) -> Handler | None:
        """
        Close the client of a bot that has ended, if it is still connected.

        Returns:
            The handler that the bot left behind, which would serve the next client too; normally ``None``.
        """
        handler = self.handler
        await self._set_handler(None)
        if self._serving is not None:
            await self._serving.close(INTERNAL_ERROR if failed else NORMAL)
        return handler

    async def left(self) -> None:
        """Wait until the last handler has stopped serving."""
        await self._left.wait()

    async def _set_handler(self, handler: Handler | None) -> None:
        async with self._handler_changed:
            self.handler = handler
            self._handler_changed.notify_all()

    async def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        if self.closed:
            self._refusals.warning(self._logger, "client refused (503)", "draining")
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "The bot takes no new clients.\n")
        page = " ".join(request.headers.get_all("Origin")).lower() or None
        # Any page in a local browser reaches a loopback port, so such pages must be allowed explicitly.
        foreign = http.is_loopback(self._config.host) and requests.is_foreign_page(page)
        if foreign and self._origins is None:
            await self._until(lambda: self._origins is not None)
        allowed = {each.lower() for each in self._origins or ()}
        if page not in allowed if allowed else foreign:
            reason = f"its origin {(page or '')[:200]!r} is not allowed"
            self._refusals.warning(self._logger, "client refused (403)", reason)
            return connection.respond(HTTPStatus.FORBIDDEN, "The origin is not allowed.\n")
        return None

    async def _receive(self, websocket: ServerConnection) -> None:
        """Replace the previous client, and serve this one."""
        previous, self.client = self.client, websocket
        self.empty.clear()
        try:
            if previous is not None:
                self._logger.info("a new client replaces the previous one")
                await previous.close(NORMAL, "replaced")
            async with self._turn:
                handler = await self._wait_for_handler(websocket)
                if handler is not None:
                    await self._serve_client(websocket, handler)
        finally:
            if self.client is websocket:
                self.client = None
                self.empty.set()

    async def _wait_for_handler(self, websocket: ServerConnection) -> Handler | None:
        """Return the handler as soon as there is one; ``None`` if the client leaves first."""
        served = asyncio.create_task(self._until(lambda: self.handler is not None))
        waits = {served, asyncio.create_task(websocket.wait_closed())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
        return self.handler if websocket.close_code is None else None

    async def _serve_client(self, websocket: ServerConnection, handler: Handler) -> None:
        self.served += 1
        self._serving, self._serving_handler = websocket, handler
        self._done.clear()
        self._logger.info("a client connected")
        trace = self._begin_trace(websocket)
        try:
            await handler(websocket)
        except ConnectionClosed:
            pass
        finally:
            self._serving = self._serving_handler = None
            self._done.set()
            if trace is not None:
                await trace.close()
        self._logger.info("the client left ({})", websocket.close_code)
        await self._wait_for_pipeline_end(handler)

    def _begin_trace(self, websocket: ServerConnection) -> ConnectionTrace | None:
        if self._config.trace is None:
            return None
        logger = self._logger.bind(call=self.session_id)
        return ConnectionTrace(
            self._config, "websocket-server", self.session_id, cast(TappedConnection, websocket), logger=logger
        )

    async def _wait_for_pipeline_end(self, handler: Handler) -> None:
        """Wait for the pipeline that lost its client to end, if it does: its end must not cut off the next client."""
        ended = asyncio.create_task(self._until(lambda: self.handler != handler))
        events = asyncio.gather(*self._event_tasks(handler), return_exceptions=True)
        waits: list[asyncio.Future[Any]] = [ended, events]
        try:
            await asyncio.wait(waits, timeout=HANDLERS_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({ended}, timeout=PIPELINE_END_GRACE_S)
        finally:
            ended.cancel()

    async def _until(self, met: Callable[[], bool]) -> None:
        async with self._handler_changed:
            await self._handler_changed.wait_for(met)
