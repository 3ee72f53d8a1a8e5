"""The transport of ``-t websocket-server``: pipecat's single-client server, on wsvoice's own port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, cast

import pipecat
import pipecat.transports.websocket.server as pipecat_server
from loguru import logger
from pipecat.frames.frames import CancelWorkerFrame
from pipecat.runner.types import RunnerArguments
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.server import (
    SingleClientWebsocketServerInputTransport,
    SingleClientWebsocketServerOutputTransport,
    SingleClientWebsocketServerParams,
    SingleClientWebsocketServerTransport,
)
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from wsvoice.call import Call
from wsvoice.pipecat_contracts import unusable
from wsvoice.runner.activity import Activity
from wsvoice.runner.pipecat import is_supported
from wsvoice.runner.pipecat.websocket_transport import (
    ActivityOutputTransport,
    FrameReceiver,
    TransportParams,
    pick_params,
    read_frame,
    with_serializer,
)
from wsvoice.runner.single_client import Handler, SingleClientServer

_pipecat_serve: Any = getattr(pipecat_server, "websocket_serve", None)


class ServerInputTransport(SingleClientWebsocketServerInputTransport):
    """The client's messages, as frames."""

    _transport: ServerTransport
    _params: SingleClientWebsocketServerParams

    async def _client_handler(self, websocket: ServerConnection) -> None:
        transport, serializer = self._transport, self._params.serializer
        activity = transport.activity = Activity()
        faults: set[str] = set()

        def note_fault(kind: str, message: str) -> None:
            if kind not in faults:
                faults.add(kind)
                logger.warning("ignored a bad message ({}): {}; more of its kind are ignored too", kind, message)

        receiver = FrameReceiver(self, activity, note_fault, lambda: websocket.close_code is not None)
        self._websocket = websocket
        await self._callbacks.on_client_connected(websocket)
        monitor = None
        if self._params.session_timeout:
            monitor = self.create_task(self._monitor_websocket(websocket, self._params.session_timeout))
        try:
            async for message in websocket:
                if serializer is None:
                    continue
                frame = await read_frame(serializer, message, note_fault)
                if frame is not None:
                    await receiver.push(frame)
        except ConnectionClosed:
            pass
        finally:
            if monitor is not None:
                await self.cancel_task(monitor)
        await self._callbacks.on_client_disconnected(websocket)
        self._websocket = None

    async def _monitor_websocket(self, websocket: ServerConnection, session_timeout: int) -> None:
        # Overrides pipecat's method of this name; it is only called from here.
        while True:
            await self._transport.activity.silence(session_timeout)
            await self._callbacks.on_session_timeout(websocket)
            await self._transport.activity.resumed()


class ServerOutputTransport(ActivityOutputTransport, SingleClientWebsocketServerOutputTransport):
    """The bot's frames, as messages."""

    _transport: ServerTransport


class ServerTransport(SingleClientWebsocketServerTransport):
    """
    The ready-made transport of a bot that serves one client at a time on a port of its own.

    It is pipecat's ``SingleClientWebsocketServerTransport`` (formerly ``WebsocketServerTransport``) with all its params
    and events. A new client replaces the previous one, where pipecat's refuses it; the default serializer is the
    protobuf one; ``session_timeout`` counts seconds without activity, and works for every client.
    """

    def __init__(
        self,
        params: SingleClientWebsocketServerParams,
        host: str = "localhost",
        port: int = 8765,
        input_name: str | None = None,
        output_name: str | None = None,
    ) -> None:
        super().__init__(params, host, port, input_name, output_name)
        self.activity = Activity()

    def input(self) -> ServerInputTransport:
        """Return the input."""
        if self._input is None:
            self._input = ServerInputTransport(
                self, self._host, self._port, self._params, self._callbacks, name=self._input_name
            )
        return cast(ServerInputTransport, self._input)

    def output(self) -> ServerOutputTransport:
        """Return the output."""
        if self._output is None:
            self._output = ServerOutputTransport(self, self._params, name=self._output_name)
        return cast(ServerOutputTransport, self._output)


@dataclass
class ServerArguments(RunnerArguments):
    """
    The argument of a bot that serves one client at a time.

    Attributes:
        host: The host that it listens on.
        port: The port that it listens on.
        transport: The ready-made :class:`ServerTransport` (pipecat's own if that is not supported), built on first use.
    """

    host: str
    port: int
    _transport: SingleClientWebsocketServerTransport | None = field(default=None, init=False, repr=False)

    @property
    def call(self) -> Call:
        """The session as a call without numbers, for bots that also serve the telephone."""
        return Call(provider="websocket-server", call_id=self.session_id or "")

    @property
    def transport(self) -> SingleClientWebsocketServerTransport:
        """The ready-made transport; by default with audio both ways."""
        if self._transport is None:
            return self.use_transport(SingleClientWebsocketServerParams(audio_in_enabled=True, audio_out_enabled=True))
        return self._transport

    def use_transport(self, params: SingleClientWebsocketServerParams) -> SingleClientWebsocketServerTransport:
        """Build the transport with the bot's own params."""
        kind = ServerTransport if is_supported("server-transport") else SingleClientWebsocketServerTransport
        self._transport = kind(with_serializer(params), self.host, self.port)
        return self._transport

    async def make_transport(self, transport_params: TransportParams) -> BaseTransport:
        """Return the transport with the params for ``websocket-server``; called by ``create_transport``."""
        names = ("websocket-server", "websocket")
        return self.use_transport(pick_params(transport_params, names, SingleClientWebsocketServerParams))


def take_over_port(server: SingleClientServer) -> None:
    """
    Let pipecat's server transports serve at `server`, even those that a bot builds itself.

    The port then stays open between runs of the bot, so that a client that comes in between is not lost.

    Raises:
        ConfigError: If this pipecat opens its port differently.
    """
    if not is_supported("server-port"):
        raise unusable(pipecat.__version__, "what -t websocket-server relies on has changed")

    def serve(
        handler: Handler, host: str, port: int, *, origins: Sequence[str] | None = None, **options: Any
    ) -> AbstractAsyncContextManager[Any]:
        if port == server.port:
            return server.serve(handler, origins)
        logger.warning("the bot listens on {}:{}, not on port {}", host, port, server.port)
        own: AbstractAsyncContextManager[Any] = _pipecat_serve(handler, host, port, origins=origins, **options)
        return own

    cast(Any, pipecat_server).websocket_serve = serve


def restore_port() -> None:
    """Undo :func:`take_over_port`."""
    cast(Any, pipecat_server).websocket_serve = _pipecat_serve


def event_tasks(handler: Handler) -> set[asyncio.Task[Any]]:
    """Return the running event handlers of the transport that `handler` belongs to."""
    transport = getattr(_input_of(handler), "_transport", None)
    return {task for _, task in getattr(transport, "_event_tasks", ())}


async def end_pipeline(handler: Handler, reason: str) -> None:
    """End the pipeline that `handler` belongs to."""
    await _input_of(handler).push_frame(CancelWorkerFrame(reason=reason))


def _input_of(handler: Handler) -> Any:
    return cast(Any, handler).__self__


def server_arguments(host: str, port: int, *, body: dict[str, str], session_id: str) -> ServerArguments:
    """Build a bot's arguments."""
    return ServerArguments(host=host, port=port, body=body, session_id=session_id)
