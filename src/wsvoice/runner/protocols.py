"""
uvicorn's protocols with bounds on what anybody who reaches the port can make the server hold, and for how long.

Neither httptools nor uvicorn limits the size of a request's head, the time it takes, or what a connection queues.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

from loguru import logger
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from wsvoice.runner.bounded_socket import CONNECTION_EXTENSION

try:
    from websockets.speedups import apply_mask
except ImportError:  # pragma: no cover - where the library has no compiled part
    from websockets.utils import apply_mask

#: The largest head of a request, in bytes, and how many header fields it may have. The framing of a body, such as the
#: sizes of chunks, may be as large again.
HEAD_LIMIT, FIELD_LIMIT = 64 * 1024, 128
#: How long a head may take to arrive, from the connection or from the answer to the previous request.
HEAD_TIMEOUT_S = 10.0
#: How many requests may wait on one connection while another is answered.
PIPELINE_LIMIT = 4
#: How many connections other than WebSockets may be open.
CONNECTION_LIMIT = 256
#: How many fragments a WebSocket message may have.
FRAGMENT_LIMIT = 1024
#: How many bytes may wait for a peer that sends pings and does not read the pongs.
UNREAD_LIMIT = 256 * 1024

#: How many messages may wait to be taken before no more is read from a peer.
UNREAD_MESSAGES = 8

# The first byte of a whole message's frame.
_TEXT, _BINARY = 0x81, 0x82
_WHOLE = {_TEXT: "text", _BINARY: "bytes"}
# How long the heads of longer frames are, with the mask.
_HEAD_SIZES = {126: 8, 127: 14}

# How much is parsed at once; a head that begins in the middle may be longer by this.
_STEP = 16 * 1024

_silent = logging.getLogger("wsvoice.silent")
_silent.disabled = True


class HttpProtocol(HttpToolsProtocol):
    """
    uvicorn's HTTP protocol with bounds.

    A connection whose head does not arrive in time is closed. If there are too many connections, the one is dropped
    that has waited longest for its peer: for a head, for the rest of a body, or for its answers to be read. If none
    waits, the new one is dropped.
    """

    _head_timer: asyncio.TimerHandle | None = None
    #: Since when the rest of a body is awaited, and since when answers are unread, on the loop's clock.
    _body_since: float | None = None
    _unread_since: float | None = None
    #: How many bytes of the current head, or of the current body's framing, have arrived.
    _head_bytes = 0
    _body_bytes = 0
    _is_retired = False

    @property
    def is_idle(self) -> bool:
        """Whether every request so far is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waiting_since(self) -> float | None:
        """Since when the connection waits for its peer, on the loop's clock; ``None`` if it does not."""
        head_since = None if self._head_timer is None else self._head_timer.when() - HEAD_TIMEOUT_S
        return min(
            (each for each in (head_since, self._body_since, self._unread_since) if each is not None), default=None
        )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()
        others = [each for each in self.connections if isinstance(each, HttpProtocol)]
        others = [each for each in others if not each.transport.is_closing()]
        if len(others) > CONNECTION_LIMIT:
            waiting = [
                (since, each) for each in others if each is not self and (since := each.waiting_since) is not None
            ]
            given_up = min(waiting, key=lambda each: each[0], default=(0.0, self))[1]
            # At DEBUG, because a flood of connections would flood the log as well.
            logger.debug("a connection was dropped: there are more than {}", CONNECTION_LIMIT)
            given_up.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, a bounded piece at a time."""
        at = 0
        while at < len(data):
            step = min(_STEP, HEAD_LIMIT - self._head_bytes)
            if step <= 0:
                self._reject_head()
                return
            awaited = self._head_timer, self._body_since
            piece = data[at : at + step]
            at += step
            self._body_bytes = 0
            super().data_received(piece)
            if self.transport.is_closing():
                if self._unread_since is not None:
                    # The peer does not read; a close would wait for it.
                    self.transport.abort()
                return
            if self.transport.get_protocol() is not self:
                return
            if awaited == (self._head_timer, self._body_since):
                self._head_bytes += len(piece) - self._body_bytes

    def on_message_begin(self) -> None:
        """Begin with a head."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; uvicorn answers 400 to an exception raised here."""
        if self._body_since is not None:
            raise ValueError("a header field after the body")
        if len(self.headers) >= FIELD_LIMIT:
            raise ValueError("too many header fields")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the request, and wait for its body."""
        self._stop_waiting()
        if len(self.pipeline) >= PIPELINE_LIMIT:
            raise ValueError("too many requests at once")
        self._head_bytes = 0
        self._body_since = self.loop.time()
        super().on_headers_complete()
        if self._is_retired:
            self.retire()

    def retire(self) -> None:
        """Close the connection after the answer to the current request, or to the next one: no other is taken."""
        self._is_retired = True
        for cycle in (self.cycle, *(each for each, _ in self.pipeline)):
            if cycle is not None:
                cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; after the answer it counts like a head that is too large."""
        if self._head_timer is None:
            self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait no longer: it is the server's turn."""
        self._body_since = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head, for whatever is left of the body, or for the last answer to be read."""
        super().on_response_complete()
        if self._head_timer is None and self.is_idle:
            self._await_head()

    def pause_writing(self) -> None:
        """Wait for the peer to read its answers."""
        super().pause_writing()
        self._unread_since = self.loop.time()

    def resume_writing(self) -> None:
        """Go on: the answers are read."""
        super().resume_writing()
        self._unread_since = None

    def shutdown(self) -> None:
        """End with the server, which finishes its own answers but waits for no peer."""
        if self.waiting_since is not None:
            self.transport.abort()
        else:
            super().shutdown()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._body_since = None

    def _give_up_head(self) -> None:
        # Browsers open connections that they may need later, so only a head that has begun is worth a warning.
        level = "WARNING" if self._head_bytes else "DEBUG"
        logger.log(level, "a connection was closed: no whole request head came within {:g} s", HEAD_TIMEOUT_S)
        # A close would wait until the answers are read.
        self.transport.abort()

    def _reject_head(self) -> None:
        what = "head" if self._head_timer is not None else "framing"
        logger.warning("a connection was closed: a request's {} is larger than {} bytes", what, HEAD_LIMIT)
        self._stop_waiting()
        self.transport.write(STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


class StreamProtocol(WebSocketsSansIOProtocol):
    """
    uvicorn's WebSocket protocol, with a short way for messages, and one to drop a connection whose peer does not read.

    Nearly all that a carrier sends are messages of one frame. They go straight to the queue, and messages of ours
    straight to the socket. The websockets library reads all other frames: control frames, fragments, and whatever is
    not allowed (https://www.rfc-editor.org/rfc/rfc6455#section-5.2).
    """

    #: Whether frames are looked at here first: not before the upgrade, and not after one that is not allowed.
    _splits = True
    #: Whether a message of several frames has begun.
    _in_fragments = False
    #: Is offered each message, unless others wait: :class:`~wsvoice.runner.bounded_socket.Connection`.
    listener: Callable[[str | bytes], bool] | None = None
    #: How many more messages are offered before other connections get their turn.
    _offers = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        #: The beginning of a frame, and how long it must be before it is worth a look.
        self._partial = bytearray()
        self._needed = 2
        #: What was read until the upgrade was accepted.
        self._upgrade = bytearray()

    def data_received(self, data: bytes) -> None:
        """Take the data; close the connection if not even the upgrade could be read, because nobody else would."""
        if not self.handshake_complete or not self._splits:
            if not self.handshake_complete:
                self._keep_upgrade(data)
            self._pass_on(data)
            if not self.handshake_initiated and not self.transport.is_closing():
                self.transport.write(b"".join(self.conn.data_to_send()))
                self.transport.close()
            return
        self._offers = UNREAD_MESSAGES
        if self._partial:
            self._partial += data
            if len(self._partial) < self._needed:
                return
            data, self._partial = bytes(self._partial), bytearray()
        at, size = 0, len(data)
        while (end := self._end_of_frame(data, at)) is not None and end <= size:
            self._take_frame(data[at:end])
            if end == size or self.conn.parser_exc is not None or self.transport.is_closing():
                return
            at = end
        if end is None:
            self._splits = False
            self._pass_on(data[at:])
        else:
            self._partial += data[at:]
            self._needed = end - at

    def _end_of_frame(self, data: bytes, at: int) -> int | None:
        """Return where the frame at `at` ends, or how far to read to know it; ``None`` for one that is not allowed."""
        if len(data) < at + 2:
            return at + 2
        first, second = data[at], data[at + 1]
        size, head = second & 127, 2
        if first & 0x70 or not second & 128:
            return None  # A reserved bit, or no mask.
        if size > 125:
            head = 4 if size == 126 else 10
            if len(data) < at + head:
                return at + head
            size = int.from_bytes(data[at + 2 : at + head])
        return at + head + 4 + size if size <= self.config.ws_max_size else None

    def _take_frame(self, frame: bytes) -> None:
        """Queue a whole message; pass any other frame on."""
        if frame[0] in _WHOLE and not self._in_fragments and self.conn.state is State.OPEN:
            at = _HEAD_SIZES.get(frame[1] & 127, 6)
            content = apply_mask(frame[at:], frame[at - 4 : at])
            try:
                message: str | bytes = content.decode() if frame[0] == _TEXT else content
            except UnicodeDecodeError:
                self._pass_on(frame)
                return
            if self.close_sent:
                return  # Nobody waits for it any more.
            if self.listener is not None and self._offers and self.queue.empty():
                self._offers -= 1
                if self.listener(message):
                    return
            event: Any = {"type": "websocket.receive", _WHOLE[frame[0]]: message}
            self.queue.put_nowait(event)
            if not self.read_paused and self.queue.qsize() >= UNREAD_MESSAGES:
                self.read_paused = True
                self.transport.pause_reading()
            return
        if frame[0] & 15 <= 2:
            self._in_fragments = not frame[0] & 128
        self._pass_on(frame)

    def _pass_on(self, data: bytes) -> None:
        super().data_received(data)

    def _keep_upgrade(self, data: bytes) -> None:
        self._upgrade += data
        # Before the answer to its request, a client has nothing to say.
        if len(self._upgrade) > 2 * HEAD_LIMIT:
            self._upgrade.clear()
            self.abort()

    def hand_over(self) -> tuple[int, bytes]:
        """Give the connection away: :meth:`wsvoice.runner.bounded_socket.Connection.hand_over`."""
        if self.transport.is_closing():
            raise ConnectionResetError("the peer is gone")
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        # Our end of the connection is closed, the connection itself stays.
        self.transport.abort()
        upgrade = bytes(self._upgrade)
        self._upgrade.clear()
        return descriptor, upgrade

    def can_send(self) -> bool:
        """Whether a message can be sent, and its peer reads."""
        return (
            self.writable.is_set()
            and self.handshake_complete
            and not (self.disconnected or self.close_sent or self.conn.extensions)
            and self.conn.state is State.OPEN
            and not self.transport.is_closing()
        )

    def send_now(self, content: str | bytes) -> None:
        """Send a message; only if :meth:`can_send`."""
        first, data = (_TEXT, content.encode()) if isinstance(content, str) else (_BINARY, content)
        size = len(data)
        if size < 126:
            head = bytes((first, size))
        elif size < 65536:
            head = bytes((first, 126, size >> 8, size & 255))
        else:
            head = bytes((first, 127)) + size.to_bytes(8)
        self.transport.write(head + data)

    async def send(self, message: Any) -> None:
        """Send; mark a refusal as an answer, which uvicorn does not."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True
        if self.handshake_complete:
            self._upgrade.clear()

    def handle_connect(self, event: Any) -> None:
        """Offer :data:`CONNECTION_EXTENSION` in the connection's scope."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][CONNECTION_EXTENSION] = {"connection": self}

    def abort(self) -> None:
        """Drop the connection."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.listener = None
        super().connection_lost(exc)

    def handle_cont(self, event: Any) -> None:
        """Take a fragment of a message; their number is limited because empty ones cost the peer next to nothing."""
        super().handle_cont(event)
        if len(getattr(self, "frames", ())) > FRAGMENT_LIMIT:
            self.conn.fail(1008, "too many fragments")
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        """Answer a ping, as long as the peer reads the answers."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """Pass a message on; one that is not UTF-8 closes the connection, and the session says why."""
        logger, self.logger = self.logger, _silent
        try:
            super().send_receive_event_to_app()
        finally:
            self.logger = logger

    def keepalive_timeout(self) -> None:
        """Drop a connection that does not answer pings; a close would wait for a peer that is gone."""
        super().keepalive_timeout()
        self.transport.abort()
