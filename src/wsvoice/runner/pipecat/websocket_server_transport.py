"""The transport of ``-t websocket-server``: pipecat's single-client server, on wsvoice's own port."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import pipecat
import pipecat.transports.websocket.server as pipecat_server
from loguru import logger
from pipecat.frames.frames import CancelWorkerFrame
from pipecat.runner.types import RunnerArguments
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
from wsvoice.runner.pipecat.call_arguments import ReadyTransport
from wsvoice.runner.pipecat.websocket_transport import (
    ActivityOutputTransport,
    FrameReceiver,
    with_serializer,
)
from wsvoice.runner.single_client import Handler, SingleClientServer

_pipecat_serve: Any = getattr(pipecat_server, "websocket_serve", None)


class ServerInputTransport(SingleClientWebsocketServerInputTransport):
    """The client's messages, as frames."""

    _transport: ServerTransport
    _params: SingleClientWebsocketServerParams

    async def _client_handler(self, websocket: ServerConnection) -> None:
        activity = self._transport.activity = Activity()
        receiver = FrameReceiver(self, self._params.serializer, activity, lambda: websocket.close_code is not None)
        self._websocket = websocket
        await self._callbacks.on_client_connected(websocket)
        monitor = None
        if self._params.session_timeout:
            report = partial(self._callbacks.on_session_timeout, websocket)
            monitor = self.create_task(activity.report_silences(self._params.session_timeout, report))
        try:
            async for message in websocket:
                await receiver.take(message)
        except ConnectionClosed:
            pass
        finally:
            if monitor is not None:
                await self.cancel_task(monitor)
        await self._callbacks.on_client_disconnected(websocket)
        self._websocket = None


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

    def __init__(self, params: SingleClientWebsocketServerParams, host: str, port: int) -> None:
        super().__init__(params, host, port)
        self.activity = Activity()

    def input(self) -> SingleClientWebsocketServerInputTransport:
        if self._input is None:
            self._input = ServerInputTransport(self, self._host, self._port, self._params, self._callbacks)
        return self._input

    def output(self) -> SingleClientWebsocketServerOutputTransport:
        if self._output is None:
            self._output = ServerOutputTransport(self, self._params)
        return self._output


@dataclass
class ServerArguments(
    ReadyTransport[SingleClientWebsocketServerParams, SingleClientWebsocketServerTransport], RunnerArguments
):
    """
    The argument of a bot that serves one client at a time.

    Attributes:
        host: The host that it listens on.
        port: The port that it listens on.
        transport: The ready-made :class:`ServerTransport` (pipecat's own if that is not supported), built on first use.
    """

    params_kind = SingleClientWebsocketServerParams
    params_names = ("websocket-server", "websocket")

    host: str
    port: int

    @property
    def call(self) -> Call:
        """The session as a call without numbers, for bots that also serve the telephone."""
        return Call(provider="websocket-server", call_id=self.session_id or "")

    def _make_transport(self, params: SingleClientWebsocketServerParams) -> SingleClientWebsocketServerTransport:
        kind = ServerTransport if is_supported("server-transport") else SingleClientWebsocketServerTransport
        return kind(with_serializer(params), self.host, self.port)


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
    transport = getattr(cast(Any, handler).__self__, "_transport", None)
    return {task for _, task in getattr(transport, "_event_tasks", ())}


async def end_pipeline(handler: Handler, reason: str) -> None:
    """End the pipeline that `handler` belongs to."""
    await cast(Any, handler).__self__.push_frame(CancelWorkerFrame(reason=reason))
