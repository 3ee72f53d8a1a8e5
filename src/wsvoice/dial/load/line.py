"""The carrier's end of one stream, for as little processor time as a socket can have."""

from __future__ import annotations

import asyncio
import re
import struct
import time
from array import array
from binascii import a2b_base64
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from wsvoice.dial.stream_opening import MESSAGE_LIMIT
from wsvoice.errors import LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import Behaviour, Simulator
from wsvoice.providers.binary_stream import BinaryStream
from wsvoice.providers.events import Clear, Cleared, Event, FlowControl, Mark, Status, StreamStopped
from wsvoice.providers.media_stream import Stream

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
# Of JSON streams, only messages of audio have it: what they play is all that has to be known at once.
_PAYLOAD = re.compile(r'"payload"\s*:\s*"([^"]*)"')
_HEAD_LIMIT = 64 * 1024
#: How much is kept of what comes in a call, in bytes: an hour of audio, which no bot sends in less.
KEPT_LIMIT = 64 * 1024 * 1024


def frame(content: str | bytes, opcode: int | None = None) -> bytes:
    """
    Return a WebSocket frame of a client; the mask is zero, so that the content stays what it is.

    https://www.rfc-editor.org/rfc/rfc6455#section-5.3
    """
    if opcode is None:
        opcode = _TEXT if isinstance(content, str) else _BINARY
    data = content.encode() if isinstance(content, str) else content
    size = len(data)
    if size < 126:
        head = struct.pack("!BB", 128 | opcode, 128 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 128 | opcode, 128 | 126, size)
    else:
        head = struct.pack("!BBQ", 128 | opcode, 128 | 127, size)
    return head + bytes(4) + data


def upgraded_connection() -> type[ClientConnection]:
    """Return a type of connection for :meth:`StreamOpener.open` that keeps what comes after the upgrade in `rest`."""
    from websockets.asyncio.client import ClientConnection

    class Upgraded(ClientConnection):
        rest = b""
        _head: bytes | None = b""
        _is_upgraded = False

        def data_received(self, data: bytes) -> None:
            if self._is_upgraded:
                self.rest += data
                return
            if self._head is not None:
                data = self._head + data
                head, end, rest = data.partition(b"\r\n\r\n")
                if not end and len(data) < _HEAD_LIMIT:
                    self._head = data
                    return
                self._head = None
                if end and head.split(b" ", 2)[1:2] == [b"101"]:
                    self._is_upgraded, self.rest, data = True, rest, head + end
            super().data_received(data)

    return Upgraded


class Line(asyncio.Protocol):
    """
    A stream's WebSocket once it is open: what comes is kept as it is, with its time, and read after the call.

    Marks are returned, clears obeyed and pings answered at once.

    Attributes:
        times: When each message came, on the clock of :func:`time.monotonic`.
        messages: What came.
        over: Done once the bot has hung up or closed the stream, or is gone.
        gone: Done once the connection is closed.
        bot_closed: Whether the bot closed the stream, or went away, before the caller did.
        close_code: How the bot closed it; 1006 if it went away.
        broken: How the bot broke the WebSocket protocol; empty if it did not.

    Args:
        stream: The provider's messages.
        provider: The company that is played.
        behaviour: How it behaves.
    """

    def __init__(self, stream: Stream, provider: Simulator, behaviour: Behaviour) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self.times = array("d")
        self.messages: list[str | bytes] = []
        self.over: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self.bot_closed = False
        self.close_code, self.close_reason, self.broken = 1006, "", ""
        self._transport: Any = None
        self._stream = stream
        self._is_binary = isinstance(stream, BinaryStream)
        wire = stream.outbound_format
        self._byte_s = 1 / (wire.sample_rate * wire.sample_width)
        self._pauses_at_s = provider.pauses_at_s
        self._returns_cleared = behaviour.return_cleared_marks
        self._buffer = b""
        self._pieces: list[bytes] = []
        self._opcode = 0
        self._kept = 0
        self._hung_up = False
        # Until when the provider's buffer plays, and the marks in it.
        self._plays_until = 0.0
        self._marks: deque[tuple[float, str]] = deque()
        self._is_paused = False

    def take_over(self, connection: ClientConnection) -> None:
        """Take an open connection out of the hands of the library that opened it."""
        self._transport = connection.transport
        self._transport.set_protocol(self)
        if rest := getattr(connection, "rest", b""):
            self.data_received(rest)

    # What the caller sends

    @property
    def backlog(self) -> int:
        """How many bytes wait for a bot that does not read them."""
        return int(self._transport.get_write_buffer_size())

    def write(self, data: bytes) -> None:
        """Send frames."""
        self._transport.write(data)

    def post(self, event: Event) -> None:
        """Send a message; an event for which the provider has none is left out."""
        with suppress(LocalProtocolError):
            self.write(frame(self._stream.send(event)))

    async def hang_up(self, timeout_s: float) -> bool:
        """End the stream; return whether the other end closed it in time."""
        self._hung_up = True
        if not self._transport.is_closing():
            self.post(StreamStopped(reason="callended"))
            self.write(frame(struct.pack("!H", 1000), _CLOSE))
        done, _ = await asyncio.wait([self.gone], timeout=timeout_s)
        self._transport.abort()
        return bool(done)

    # What the bot sends

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._buffer + data if self._buffer else data
        at, end = 0, len(data)
        while end - at >= 2:
            first, length, body = data[at], data[at + 1], at + 2
            if length == 126 and end >= body + 2:
                (length,), body = struct.unpack_from("!H", data, body), body + 2
            elif length == 127 and end >= body + 8:
                (length,), body = struct.unpack_from("!Q", data, body), body + 8
            elif length in (126, 127):
                break
            elif length > 127:
                return self._break("a masked frame")
            if length > MESSAGE_LIMIT:
                return self._break(f"a message of {length} bytes")
            if end < body + length:
                break
            self._take(first, data[body : body + length], now)
            at = body + length
        self._buffer = data[at:]
        return None

    def _take(self, first: int, content: bytes, now: float) -> None:
        opcode = first & 15
        if first == 128 | _TEXT or first == 128 | _BINARY:
            self._take_message(opcode, content, now)
        elif first & 0x70 or opcode not in (_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG):
            self._break("a frame that was not agreed on")
        elif opcode == _PING:
            self.write(frame(content, _PONG))
        elif opcode == _CLOSE:
            self.close_code = int.from_bytes(content[:2]) if len(content) >= 2 else 1005
            self.close_reason = content[2:].decode("utf-8", "replace")[:200]
            if not self._hung_up:
                self.write(frame(content[:2], _CLOSE))
            self._end()
            self._transport.close()
        elif opcode != _PONG:
            self._opcode = opcode or self._opcode
            self._pieces.append(content)
            if first & 128:
                content, self._pieces = b"".join(self._pieces), []
                self._take_message(self._opcode, content, now)

    def _take_message(self, opcode: int, content: bytes, now: float) -> None:
        if self.over.done():
            return None
        self._kept += len(content)
        if self._kept > KEPT_LIMIT:
            return self._break(f"more than {KEPT_LIMIT // 1024 // 1024} MB of messages")
        self.times.append(now)
        if opcode == _BINARY:
            self.messages.append(content)
            return self._play(len(content), now)
        text = content.decode("utf-8", "replace")
        self.messages.append(text)
        found = None if self._is_binary else _PAYLOAD.search(text)
        if found is None:
            return self._obey(text, now)
        # What is no base64 is found after the call.
        with suppress(ValueError):
            self._play(len(a2b_base64(found[1])), now)
        return None

    def _play(self, n_bytes: int, now: float) -> None:
        self._plays_until = max(self._plays_until, now) + n_bytes * self._byte_s
        if self._pauses_at_s is not None and not self._is_paused and self._plays_until - now >= self._pauses_at_s[0]:
            self._is_paused = True
            self.post(FlowControl(True))
            self._go_on_later()

    def _go_on_later(self) -> None:
        """Let the bot go on once there is room again."""
        assert self._pauses_at_s is not None
        wait_s = self._plays_until - time.monotonic() - self._pauses_at_s[1]
        if wait_s > 0:
            self._loop.call_later(wait_s, self._go_on_later)
        elif not self.over.done():
            self._is_paused = False
            self.post(FlowControl(False))

    def _obey(self, text: str, now: float) -> None:
        """Do at once what a message asks for."""
        try:
            event = self._stream.receive(text)
        except RemoteProtocolError as error:
            if (reply := self._stream.error_reply(error)) is not None:
                self.post(reply)
            return
        if isinstance(event, Mark):
            self._marks.append((self._plays_until, event.name))
            self._loop.call_later(max(0.0, self._plays_until - now), self._return_marks)
        elif isinstance(event, Clear):
            self._plays_until = now
            cleared, self._marks = self._marks, deque()
            for _, name in cleared if self._returns_cleared else ():
                self.post(Mark(name))
            # Only some providers confirm it.
            self.post(Cleared())
        elif isinstance(event, Status):
            self.post(Status(max(0.0, self._plays_until - now) * 1000))
        elif isinstance(event, StreamStopped):
            self.stop()

    def _return_marks(self) -> None:
        # The loop's clock may be a millisecond early.
        now = time.monotonic() + 0.001
        while self._marks and self._marks[0][0] <= now and not self.gone.done():
            self.post(Mark(self._marks.popleft()[1]))

    # The end

    def stop(self) -> None:
        """End the call because the bot has hung up, without closing the stream."""
        if not self._hung_up:
            self.bot_closed, self.close_code = True, 1000
        if not self.over.done():
            self.over.set_result(None)

    def _end(self) -> None:
        if not self.over.done():
            self.bot_closed = not self._hung_up
            self.over.set_result(None)

    def _break(self, what: str) -> None:
        self.broken = what
        self._end()
        self._transport.abort()
