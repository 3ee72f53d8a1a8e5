"""
uvicorn's protocols, with bounds: what anybody who reaches the port can make the server hold, and for how long.

Neither httptools nor uvicorn bounds a request's head, in bytes or in time, or what a connection may queue.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from loguru import logger
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from wsvoice.runner.bounded_socket import ABORT_EXTENSION

#: The largest head of a request, in bytes, and how many header fields it may have. What comes with a body and is none
#: of it, such as the sizes of chunks, may be as large again.
HEAD_LIMIT, FIELD_LIMIT = 64 * 1024, 128
#: How long a whole head may take: from the connection, or from the answer to the request before.
HEAD_TIMEOUT_S = 10.0
#: How many requests may wait on one connection while another is answered.
PIPELINE_LIMIT = 4
#: How many connections there may be that are no WebSockets.
CONNECTION_LIMIT = 256
#: In how many pieces a WebSocket message may come.
FRAGMENT_LIMIT = 1024
#: How much may wait for a peer that sends pings and reads no pongs, in bytes.
UNREAD_LIMIT = 256 * 1024

# How much is parsed at once; a head that begins in the middle may be longer by this.
_STEP = 16 * 1024

_silent = logging.getLogger("wsvoice.silent")
_silent.disabled = True


class HttpProtocol(HttpToolsProtocol):
    """
    uvicorn's HTTP protocol, for strangers.

    A connection that has to wait for a head, or to go on with one, is closed in time. If there are too many
    connections, the one goes that has waited longest for its peer: for a head, for the rest of a body, or for its
    answers to be read. The newcomer goes if none waits.
    """

    _head_timer: asyncio.TimerHandle | None = None
    #: Since when the rest of a body is awaited, and since when answers wait to be read, on the loop's clock.
    _body_since: float | None = None
    _unread_since: float | None = None
    #: What came of the present head, or beside the present body.
    _head_bytes = 0
    _body_bytes = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request has come, or every one is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waiting_since(self) -> float | None:
        """Since when the peer has had to do something, on the loop's clock; ``None`` if it has not."""
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
            # Not for everybody to see: a flood would be one of the log as well.
            logger.debug("a connection was dropped: there are more than {}", CONNECTION_LIMIT)
            given_up.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, a bounded piece at a time."""
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
                    # Nobody reads; a close would wait for it.
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
        """Take a header field; uvicorn answers 400 to what is raised here."""
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

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; what comes of it after the answer is as bad as too large a head."""
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
        """End with the server, which waits for its own answers and for no peer."""
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
        # A browser opens connections that it may need later; only one that has begun is worth a line.
        level = "WARNING" if self._head_bytes else "DEBUG"
        logger.log(level, "a connection was closed: no whole request head came within {:g} s", HEAD_TIMEOUT_S)
        # A close would wait for answers to be read.
        self.transport.abort()

    def _reject_head(self) -> None:
        what = "head" if self._head_timer is not None else "framing"
        logger.warning("a connection was closed: a request's {} is larger than {} bytes", what, HEAD_LIMIT)
        self._stop_waiting()
        self.transport.write(STATUS_LINE[431] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with a way to drop a connection whose peer does not read."""

    def data_received(self, data: bytes) -> None:
        """Take what came; where not even the upgrade could be read, nobody would ever close the connection."""
        super().data_received(data)
        if not self.handshake_initiated and not self.transport.is_closing():
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()

    async def send(self, message: Any) -> None:
        """Send; for uvicorn a refusal would be an application's that did not answer."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True

    def handle_connect(self, event: Any) -> None:
        """Offer the way in the connection's scope."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][ABORT_EXTENSION] = {"abort": self.transport.abort}

    def handle_cont(self, event: Any) -> None:
        """Take a piece of a message; empty ones cost the peer next to nothing."""
        super().handle_cont(event)
        if len(getattr(self, "frames", ())) > FRAGMENT_LIMIT:
            self.conn.fail(1008, "too many fragments")
            self.handle_parser_exception()

    def handle_ping(self) -> None:
        """Answer a ping, as long as the answers are read."""
        super().handle_ping()
        if self.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self.transport.abort()

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; one that is no UTF-8 closes the connection, and the session says why."""
        logger, self.logger = self.logger, _silent
        try:
            super().send_receive_event_to_app()
        finally:
            self.logger = logger

    def keepalive_timeout(self) -> None:
        """Drop a connection that does not answer pings; its close would wait for a peer that is not there."""
        super().keepalive_timeout()
        self.transport.abort()
