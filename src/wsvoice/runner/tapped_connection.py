"""Connections of ``-t websocket-server`` and ``-t websocket-client`` that tell a trace what is read and written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.connection import Connection

from wsvoice.call import Call
from wsvoice.runner.bot_task import Record
from wsvoice.runner.call_tap import CallTap

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig

#: The code of a connection that broke without a close; https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
ABNORMAL = 1006

#: Is told each message, and whether it came ``in`` or went ``out``.
OnMessage = Callable[[str, str | bytes], None]


class TappedConnection(Connection):
    """
    A connection that can be listened to.

    Attributes:
        on_message: Is told what is read and written; ``None`` where nobody listens.
    """

    on_message: OnMessage | None = None

    async def recv(self, *how: Any, **options: Any) -> Any:
        """Receive the next message."""
        message = await super().recv(*how, **options)
        if self.on_message is not None:
            self.on_message("in", message)
        return message

    async def send(self, message: Any, *how: Any, **options: Any) -> None:
        """Send a message."""
        await super().send(message, *how, **options)
        # A message in fragments, which pipecat does not send, is left out.
        if self.on_message is not None and isinstance(message, str | bytes):
            self.on_message("out", message)


class TappedClient(TappedConnection, ClientConnection):
    """A connection that the bot has opened."""


class _AloneRecord(Record):
    """What happened in one session of a bot without an HTTP server."""

    def _details(self) -> Iterator[str]:
        return iter(())


class ConnectionTrace:
    """
    The trace of one connection, from its opening to its end.

    Args:
        config: Where traces go.
        transport: Which one: what stands in the place of the provider.
        session_id: The bot's session, by which its log is known.
        connection: The open connection.
        logger: Where it is told that the trace cannot be written.
    """

    def __init__(
        self, config: RunConfig, transport: str, session_id: str, connection: TappedConnection, *, logger: Logger
    ) -> None:
        self._connection = connection
        self._began_at = asyncio.get_running_loop().time()
        self._bytes_in = self._bytes_out = 0
        self._tap = CallTap(config, logger=logger)
        direction = "outbound" if transport == "websocket-client" else "inbound"
        call = Call(provider=transport, call_id=session_id, direction=direction)  # type: ignore[arg-type]
        self._tap.begin(call, None, zero=self._began_at)
        connection.on_message = self._note

    def _note(self, direction: str, message: str | bytes) -> None:
        is_in = direction == "in"
        self._bytes_in += len(message) if is_in else 0
        self._bytes_out += 0 if is_in else len(message)
        self._tap.message("in" if is_in else "out", message, is_audio=isinstance(message, bytes))

    async def close(self) -> None:
        """Write the rest, and who closed the connection."""
        connection, self._connection.on_message = self._connection, None
        code = ABNORMAL if connection.close_code is None else connection.close_code
        by_peer = code == ABNORMAL or connection.protocol.close_rcvd_then_sent is True
        record = _AloneRecord(
            duration_s=asyncio.get_running_loop().time() - self._began_at,
            ended_by="caller" if by_peer else "bot",
            reason=f"the {'other end' if by_peer else 'bot'} closed the connection ({code})",
            is_lost=code == ABNORMAL,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
        )
        await self._tap.close(record, code=code)
