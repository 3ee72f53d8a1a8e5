"""
The carrier's end of one media stream: its WebSocket, and the provider's messages on it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from wsvoice.dial.setup import CallSetup
from wsvoice.dial.stream_opening import opening_messages
from wsvoice.errors import LocalProtocolError
from wsvoice.providers.events import Event, StreamStarted

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

Message = str | bytes


class CarrierStream:
    """
    One stream; a call may have several, one after the other.

    Attributes:
        socket: The connection.
        stream: Reads and writes the provider's messages.
        ended_at: When the other end was gone, by the clock, or ``None``.
    """

    def __init__(
        self, setup: CallSetup, socket: ClientConnection, on_message: Callable[[Message], None], rng: random.Random
    ) -> None:
        self.socket = socket
        self.stream = setup.provider.stream()
        self.ended_at: float | None = None
        self._on_message = on_message
        self._trace = setup.trace
        self._clock = setup.clock
        self._reorder = setup.behaviour.reorder
        self._rng = rng
        self._late: Message | None = None
        self._outbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None

    async def start(self, started: StreamStarted) -> None:
        """Start the stream, and begin to read and to send."""
        from websockets.exceptions import ConnectionClosed

        # The reader notices if the bot has closed it already.
        with suppress(ConnectionClosed):
            for message in opening_messages(self.stream, started):
                await self.socket.send(message)
                self._note_sent(message)
        self._reader = asyncio.create_task(self._read())
        self._sender = asyncio.create_task(self._send())

    def post(self, event: Event) -> None:
        """Queue a message; an event for which the provider has no message is left out."""
        with suppress(LocalProtocolError):
            self._outbox.put_nowait(self.stream.send(event))

    def post_media(self, message: Message) -> None:
        """Queue a media message; it may be made to change places with the next one."""
        if self._late is not None:
            late, self._late = self._late, None
            self._outbox.put_nowait(message)
            self._outbox.put_nowait(late)
        elif self._reorder and self._rng.random() < self._reorder:
            self._late = message
        else:
            self._outbox.put_nowait(message)

    @property
    def backlog(self) -> int:
        """How many messages wait for a bot that does not read them."""
        return self._outbox.qsize()

    @property
    def is_closed(self) -> bool:
        """Whether the other end has closed the stream or is gone."""
        assert self._reader is not None
        return self._reader.done() or self.socket.protocol.close_rcvd is not None

    async def drain(self, timeout_s: float) -> None:
        """Read what came before the other end's close, for at most `timeout_s`."""
        assert self._reader is not None
        if self.ended_at is None:
            self.ended_at = self._clock.now()
        await asyncio.wait([self._reader], timeout=timeout_s)
        if self._reader.done():
            self._reader.result()

    async def hang_up(self, stopped: Event, timeout_s: float) -> bool:
        """
        Send what is queued and end the stream; return whether the other end closed it in time.

        Args:
            stopped: The last event; not every provider has a message for it.
            timeout_s: How long the other end may take.
        """
        assert self._sender is not None
        began = self.ended_at = self._clock.now()
        if self._late is not None:
            self._outbox.put_nowait(self._late)
            self._late = None
        self.post(stopped)
        self._outbox.put_nowait(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._sender)
                await self.socket.close(1000)
        return self.socket.protocol.close_rcvd is not None or self._clock.now() - began < 0.9 * timeout_s

    async def abort(self) -> None:
        """Close the connection, whatever the other end does."""
        tasks = [task for task in (self._reader, self._sender) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.socket.transport.abort()
        await self.socket.wait_closed()

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            async for message in self.socket:
                self._on_message(message)
        if self.ended_at is None:
            self.ended_at = self._clock.now()

    async def _send(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            while (message := await self._outbox.get()) is not None:
                await self.socket.send(message)
                self._note_sent(message)

    def _note_sent(self, message: Message) -> None:
        if self._trace is not None:
            self._trace.message("in", message, is_audio=isinstance(message, bytes))
