"""The transport of ``-t websocket-client``: a bot that connects to a server."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from loguru import logger
from pipecat.frames.frames import (
    CancelWorkerFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
    StartFrame,
)
from pipecat.runner.types import RunnerArguments
from pipecat.transports.websocket.client import (
    WebsocketClientCallbacks,
    WebsocketClientInputTransport,
    WebsocketClientOutputTransport,
    WebsocketClientParams,
    WebsocketClientSession,
    WebsocketClientTransport,
)
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from wsvoice.call import Call
from wsvoice.config import without_secrets
from wsvoice.errors import ConnectError
from wsvoice.runner.activity import Activity
from wsvoice.runner.diagnosis import one_line
from wsvoice.runner.pipecat import is_supported
from wsvoice.runner.pipecat.call_arguments import ReadyTransport
from wsvoice.runner.pipecat.call_transport import has_handler
from wsvoice.runner.pipecat.websocket_transport import (
    ActivityOutputTransport,
    FrameReceiver,
    with_serializer,
)
from wsvoice.runner.tapped_connection import TappedClient

if is_supported("dial-transport"):
    from pipecat.utils.shared import acquires

#: How long the server may take to answer the handshake.
CONNECT_TIMEOUT_S = 10.0


#: Close codes by which a server reports an error, and what they mean; https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
CLOSED_FOR_ERROR = {
    1002: "it reports a violation of the WebSocket protocol",
    1003: "it does not accept data of this kind",
    1007: "it reports malformed data",
    1008: "it refuses this client; its log may say more",
    1009: "a message was larger than it accepts",
    1011: "it failed; its log may say more",
}


@dataclass
class Outcome:
    """
    Whether the server could be reached, and closed normally.

    The runner needs it because a pipeline only logs its errors.

    Attributes:
        error: Why it could not be reached, or did not close normally.
        failed: It could not be reached.
        closed: Both ends of the transport have disconnected.
        on_open: Is told of the connection, once it is open; ``None`` for nobody.
    """

    error: ConnectError | None = None
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    on_open: Callable[[TappedClient], None] | None = None


class OutboundSession(WebsocketClientSession):
    """pipecat's connection, which reports its error."""

    outcome: Outcome

    async def disconnect(self) -> None:
        """Close the connection, once both ends of the transport have disconnected."""
        await super().disconnect()
        if not self.is_connected:
            self.outcome.closed.set()

    if is_supported("dial-transport"):

        @acquires("connection")
        async def connect(self) -> None:
            """
            Connect, once for both ends of the transport.

            Raises:
                ConnectError: If the server does not answer, or refuses the bot.
            """
            try:
                self._websocket = cast(
                    Any,
                    await connect(
                        self._uri,
                        open_timeout=CONNECT_TIMEOUT_S,
                        additional_headers=self._params.additional_headers,
                        create_connection=TappedClient,
                    ),
                )
            except (OSError, TimeoutError, WebSocketException) as error:
                self.outcome.error = connect_error(self._uri, error)
                self.outcome.failed.set()
                raise self.outcome.error from error
            if self.outcome.on_open is not None:
                self.outcome.on_open(cast(Any, self._websocket))
            self._client_task = self.task_manager.create_task(
                self._client_task_handler(), f"{self._transport_name}::client"
            )
            await self._callbacks.on_connected(cast(Any, self._websocket))


class OutboundInputTransport(WebsocketClientInputTransport):
    """The server's messages, as frames."""

    def __init__(self, transport: OutboundTransport, session: OutboundSession, params: WebsocketClientParams) -> None:
        super().__init__(transport, session, params)
        self._receiver = FrameReceiver(self, params.serializer, Activity(), lambda: not session.is_connected)
        self._started = asyncio.Event()

    async def start(self, frame: StartFrame) -> None:
        """Begin to read the messages that have come since the connection was opened."""
        await super().start(frame)
        self._started.set()

    async def on_message(self, websocket: Any, message: Any) -> None:
        """Handle one message; an unreadable one is left out."""
        # The connection opens before the pipeline has started; the first messages wait until then.
        await self._started.wait()
        await self._receiver.take(message)


class OutboundOutputTransport(ActivityOutputTransport, WebsocketClientOutputTransport):
    """The bot's frames, as messages."""

    _transport: OutboundTransport

    async def send_message(self, frame: OutputTransportMessageFrame | OutputTransportMessageUrgentFrame) -> None:
        """Send a message other than audio."""
        self._transport.activity.note()
        await super().send_message(frame)


class OutboundTransport(WebsocketClientTransport):
    """
    The ready-made transport of a bot that connects to a server.

    It is pipecat's ``WebsocketClientTransport`` with all its params and events. If the bot has no handler for
    ``on_disconnected``, its pipeline ends when the server closes.
    """

    def __init__(self, uri: str, params: WebsocketClientParams, outcome: Outcome) -> None:
        super().__init__(uri, params)
        self.activity = Activity()
        callbacks = WebsocketClientCallbacks(
            on_connected=self._on_connected, on_disconnected=self._on_disconnected, on_message=self._on_message
        )
        session = OutboundSession(uri, params, callbacks, self.name)
        session.outcome = outcome
        self._session = session

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open."""
        return self._session.is_connected

    def input(self) -> WebsocketClientInputTransport:
        if self._input is None:
            self._input = OutboundInputTransport(self, cast(OutboundSession, self._session), self._params)
        return self._input

    def output(self) -> WebsocketClientOutputTransport:
        if self._output is None:
            self._output = OutboundOutputTransport(self, self._session, self._params)
        return self._output

    async def _on_connected(self, websocket: Any) -> None:
        logger.info("connected")
        await super()._on_connected(websocket)

    async def _on_disconnected(self, websocket: Any) -> None:
        code, reason = getattr(websocket, "close_code", None), getattr(websocket, "close_reason", None)
        logger.info("the server closed the connection ({})", code)
        if code in CLOSED_FOR_ERROR:
            # `failed` is not set: the bot may finish its work after the conversation.
            where = without_secrets(self._session._uri)
            why = f": {one_line(reason)}" if reason else ""
            error = ConnectError(f"{where} closed the connection with {code}{why}", hint=CLOSED_FOR_ERROR[code])
            cast(OutboundSession, self._session).outcome.error = error
        await super()._on_disconnected(websocket)
        if not has_handler(self, "on_disconnected"):
            await self.end("the server closed the connection")

    async def end(self, reason: str) -> None:
        """End the pipeline."""
        await self.input().push_frame(CancelWorkerFrame(reason=reason))


@dataclass
class OutboundArguments(ReadyTransport[WebsocketClientParams, WebsocketClientTransport], RunnerArguments):
    """
    The argument of a bot that connects to a server.

    Attributes:
        uri: The server's address.
        headers: Sent in the handshake.
        transport: The ready-made :class:`OutboundTransport` (pipecat's own if that is not supported),
            built on first use.
        outcome: Whether the server could be reached.
    """

    params_kind = WebsocketClientParams
    params_names = ("websocket-client", "websocket")
    # By default pipecat's params add a WAV header to every piece, which most servers would play as sound.
    default_params = ReadyTransport.default_params | {"add_wav_header": False}

    uri: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    outcome: Outcome = field(default_factory=Outcome, init=False, repr=False)

    @property
    def call(self) -> Call:
        """The session as a call without numbers, for bots that also serve the telephone."""
        return Call(provider="websocket-client", call_id=self.session_id or "", direction="outbound")

    def _make_transport(self, params: WebsocketClientParams) -> WebsocketClientTransport:
        # Headers of the command line take precedence.
        headers = {**(params.additional_headers or {}), **self.headers}
        update: dict[str, Any] = {"additional_headers": headers or None}
        if "audio_out_end_silence_secs" not in params.model_fields_set:
            # pipecat ends with two seconds of silence in one message, which is larger than servers accept.
            update["audio_out_end_silence_secs"] = 0
        params = with_serializer(params.model_copy(update=update))
        if is_supported("dial-transport"):
            return OutboundTransport(self.uri, params, self.outcome)
        transport = WebsocketClientTransport(self.uri, params)
        _wait_for_start(transport.input())
        return transport

    async def silence(self, timeout_s: float) -> None:
        """Wait until neither end has been active for `timeout_s`; for ever if the transport is not ours."""
        if isinstance(self._transport, OutboundTransport):
            await self._transport.activity.silence(timeout_s)
        else:
            await asyncio.Event().wait()

    async def end_pipeline(self, reason: str) -> bool:
        """End the pipeline; false if there is none, or its transport is not ours."""
        if not isinstance(self._transport, OutboundTransport) or not self._transport.is_connected:
            return False
        await self._transport.end(reason)
        return True


def _wait_for_start(receiver: Any) -> None:
    """Make pipecat's own input read no message before it has started, because that would end its reader."""
    started = asyncio.Event()
    start, on_message = receiver.start, receiver.on_message

    async def start_and_tell(frame: StartFrame) -> None:
        await start(frame)
        started.set()

    async def take(websocket: Any, message: Any) -> None:
        await started.wait()
        await on_message(websocket, message)

    receiver.start, receiver.on_message = start_and_tell, take


def connect_error(uri: str, error: Exception) -> ConnectError:
    """Return the error for a server that could not be reached, with a hint."""
    where = without_secrets(uri)
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        hint = {
            401: "it may want credentials: --header 'Authorization: Bearer …'",
            403: "it may want credentials: --header 'Authorization: Bearer …'",
            404: "check the path of --url",
            503: "it may be full or about to stop; try again later",
        }.get(status, "check --url; the server's log may say more")
        return ConnectError(f"{where} refused the handshake with HTTP {status}", hint=hint)
    if isinstance(error, TimeoutError):
        return ConnectError(
            f"{where} did not answer within {CONNECT_TIMEOUT_S:g} s", hint="check --url, and the network"
        )
    if isinstance(error, socket.gaierror):
        return ConnectError(f"the host of {where} is unknown: {error.strerror}", hint="check --url")
    if isinstance(error, ssl.SSLError):
        return ConnectError(
            f"{where} has no trusted TLS certificate: {error.reason or error}",
            hint="check the scheme: ws:// is without TLS",
        )
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else error
        return ConnectError(f"{where} cannot be reached: {reason}", hint="start the server first, or check --url")
    return ConnectError(f"{where} is not a WebSocket server: {error}", hint="check --url")
