"""
uvicorn's protocols, with bounds: what anybody who reaches the port can make the server hold, and for how long.

Neither httptools nor uvicorn bounds a request's head, in bytes or in time, or what a connection may queue.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from loguru import logger
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from wsvoice.runner.accepted import ABORT_EXTENSION

#: The largest head of a request, in bytes, and how many header fields it may have.
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
    connections, the one goes that has waited longest for its head, or the newcomer if none waits.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first head."""
        super().connection_made(transport)
        self._await_head()
        others = [each for each in self.connections if isinstance(each, HttpProtocol)]
        others = [each for each in others if not each.transport.is_closing()]
        if len(others) > CONNECTION_LIMIT:
            waiting = [each for each in others if each is not self and each._head_timer is not None]
            given_up = min(waiting, key=lambda each: cast(Any, each._head_timer).when(), default=self)
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
            head, step = self._head_timer, _STEP
            if head is not None:
                step = min(step, HEAD_LIMIT - self._head_bytes)
                if step <= 0:
                    self._refuse_head()
                    return
            piece = data[at : at + step]
            at += step
            super().data_received(piece)
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            if head is not None and self._head_timer is head:
                self._head_bytes += len(piece)

    def on_message_begin(self) -> None:
        """Begin with a head."""
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field; uvicorn answers 400 to what is raised here."""
        if len(self.headers) >= FIELD_LIMIT:
            raise ValueError("too many header fields")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take the request."""
        self._stop_waiting()
        if len(self.pipeline) >= PIPELINE_LIMIT:
            raise ValueError("too many requests at once")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        super().on_response_complete()
        if self._head_timer is None and not self.pipeline and not self.transport.is_closing():
            self._await_head()

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up_head)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up_head(self) -> None:
        # A browser opens connections that it may need later; only one that has begun is worth a line.
        level = "WARNING" if self._head_bytes else "DEBUG"
        logger.log(level, "a connection was closed: no whole request head came within {:g} s", HEAD_TIMEOUT_S)
        self.transport.close()

    def _refuse_head(self) -> None:
        logger.warning("a connection was closed: a request's head is larger than {} bytes", HEAD_LIMIT)
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
