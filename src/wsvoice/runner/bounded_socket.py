"""An accepted WebSocket, of a provider or of a plain client: bounded reading, counted faults, its end."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.providers.events import Event

#: The ASGI extension of our own server's WebSockets: ``{"connection": Connection}``.
CONNECTION_EXTENSION = "wsvoice.connection"
#: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
MESSAGE_TOO_BIG = 1009
NO_UTF_8 = 1007
#: How many messages a second are read from one connection in the long run: ten times what a telephone stream has.
MESSAGES_PER_S = 500
#: How many may come at once: what a stalled network delivers, before pings notice the stall.
MESSAGES_AT_ONCE = 3000
#: How long those last.
BURST_S = MESSAGES_AT_ONCE / MESSAGES_PER_S
#: How many messages are read in a row before other calls get their turn.
MESSAGES_A_TURN = 32
#: How long after a failed send the reader may take to find the close that explains it.
CLOSE_GRACE_S = 1.0


class Connection(Protocol):
    """What our own server's WebSockets can do beyond ASGI: pass messages without a task, and end without a close."""

    #: Is offered each message as soon as it is read, unless others wait; false leaves it to ``receive()``.
    listener: Callable[[str | bytes], bool] | None

    def can_send(self) -> bool:
        """Whether :meth:`send_now` sends at once."""

    def send_now(self, content: str | bytes) -> None:
        """Send a message; only if :meth:`can_send`."""

    def abort(self) -> None:
        """Drop a connection whose peer does not read."""

    def hand_over(self) -> tuple[int, bytes]:
        """
        Give the connection away before it is accepted.

        Returns:
            A descriptor of it, which is the caller's, and all that was read from it: the request for the upgrade.

        Raises:
            OSError: If the peer is gone.
        """


class BoundedSocket(WebSocket):
    """
    An accepted WebSocket, which the session closes.

    When the bot closes it, that is only a request (:attr:`close_requested`). :attr:`gone` is set when the other end has
    left.

    Args:
        message_limit: The largest message in bytes. Our own server enforces it too; another one may not.
    """

    #: What the other end is called in the log.
    peer = "caller"
    #: How many messages, and how many bytes of them, wait for a bot that does not read. The oldest are dropped first.
    inbox_messages: int
    inbox_bytes: int

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, logger: Logger, message_limit: int) -> None:
        super().__init__(scope, receive, send)
        self.client_state = WebSocketState.CONNECTED
        self.application_state = WebSocketState.CONNECTED
        self.logger = logger
        #: How often each kind of bad message came.
        self.faults: Counter[str] = Counter()
        #: How much came and was sent, in bytes: of a call's stream the audio as it is coded there, else the messages.
        self.bytes_in = self.bytes_out = 0
        #: How often the bot's audio broke off because it was late; see :class:`~wsvoice.runner.turns.Breaks`.
        self.underruns = 0
        self.close_code: int | None = None
        #: Whether the other end is gone without having hung up: its connection broke, or stalled.
        self.is_lost = False
        #: Why the caller is gone; set together with :attr:`gone`.
        self.gone_reason = ""
        self.gone = asyncio.Event()
        self.close_requested = asyncio.Event()
        #: The close code that the bot asked for.
        self.requested_code = 1000
        #: Since when a message has waited for the caller to read, on the loop's clock.
        self.send_blocked_since: float | None = None
        self._sends_under_way = 0
        extension = scope.get("extensions", {}).get(CONNECTION_EXTENSION, {})
        self._connection: Connection | None = extension.get("connection")
        #: Whether :meth:`_next_message` waits for one.
        self._is_reading = False
        self._loop = asyncio.get_running_loop()
        self._message_limit = message_limit
        self._inbox: deque[tuple[str | bytes, Event | None]] = deque()
        self._inbox_size = 0
        self._inbox_filled = asyncio.Event()
        #: Until when the messages read so far would last at :data:`MESSAGES_PER_S`.
        self._read_until = 0.0
        self._read_in_turn = 0

    async def read_loop(self) -> None:
        """Read until the caller is gone."""
        raise NotImplementedError

    async def _next_message(self) -> str | bytes | None:
        """Read the next message; ``None`` when the other end is gone."""
        self._is_reading = True
        try:
            message: Message = await self._receive()
        finally:
            self._is_reading = False
        if message["type"] == "websocket.disconnect":
            self.close_code = message.get("code")
            closed = "reason" in message
            self.note_gone(self._why_disconnected(closed=closed), lost=self._was_lost(closed=closed))
            return None
        await self._throttle()
        text = message.get("text")
        raw: str | bytes = text if text is not None else message["bytes"]
        if len(raw) > self._message_limit:
            await self.close_connection(MESSAGE_TOO_BIG)
            self.note_gone("a message was larger than the limit")
            return None
        return raw

    def _why_disconnected(self, *, closed: bool) -> str:
        """
        Say why the other end is gone; `closed` is whether a close was received.

        uvicorn reports 1005 for a close without a code, which is what a browser's ``close()`` sends, and for a lost
        connection; only the first has a reason, even if empty.
        """
        reasons = {
            MESSAGE_TOO_BIG: "a message was larger than the limit",
            NO_UTF_8: "a text message was not UTF-8",
            1006: "the connection was lost",
            1011: f"the {self.peer} did not answer pings",
            1012: "the server stopped",
        }
        if not closed:
            reasons[1005] = reasons[1006]
        return reasons.get(self.close_code or 0, f"the {self.peer} hung up")

    def _was_lost(self, *, closed: bool) -> bool:
        """Whether the other end is gone without a close of its own; `closed` as above."""
        return self.close_code in (1006, 1011) or (self.close_code == 1005 and not closed)

    def _lasts_until(self, now: float) -> float:
        """Return until when the messages read so far and one more would last at :data:`MESSAGES_PER_S`."""
        return max(self._read_until, now) + 1 / MESSAGES_PER_S

    async def _throttle(self) -> None:
        """Slow down reading when messages arrive too fast, so the backlog stays with the sender."""
        now = self._loop.time()
        self._read_until = self._lasts_until(now)
        early_s = self._read_until - now - BURST_S
        self._read_in_turn += 1
        if early_s > 0:
            self.faults["too-fast"] += 1
            if self.faults["too-fast"] == 1:
                self.logger.warning(
                    "more than {} messages a second arrive; reading is slowed down to that", MESSAGES_PER_S
                )
            await asyncio.sleep(early_s)
        elif self._read_in_turn >= MESSAGES_A_TURN:
            # Reading messages that already wait never yields to the loop by itself.
            self._read_in_turn = 0
            await asyncio.sleep(0)

    def _enqueue(self, raw: str | bytes, event: Event | None = None) -> None:
        """Keep a message until the bot reads it."""
        self._inbox.append((raw, event))
        self._inbox_size += len(raw)
        while len(self._inbox) > self.inbox_messages or self._inbox_size > self.inbox_bytes:
            index = self._index_to_drop()
            self._inbox_size -= len(self._inbox[index][0])
            del self._inbox[index]
            self.note_unread(f"the {self.peer}'s oldest messages are being dropped")
        self._inbox_filled.set()

    def _index_to_drop(self) -> int:
        """Return which message of a full inbox is dropped first."""
        return 0

    def _dequeue(self) -> tuple[str | bytes, Event | None]:
        raw, event = self._inbox.popleft()
        self._inbox_size -= len(raw)
        return raw, event

    def note_unread(self, consequence: str) -> None:
        """Count a message that a bot that does not read never gets."""
        self.faults["unread"] += 1
        if self.faults["unread"] == 1:
            self.logger.warning("the bot does not read; {}", consequence)

    async def receive(self) -> Message:
        """Return the next message as ASGI has it."""
        while not self._inbox:
            if self.gone.is_set():
                return {"type": "websocket.disconnect", "code": self.close_code or 1000, "reason": ""}
            self._inbox_filled.clear()
            await self._inbox_filled.wait()
        raw, _ = self._dequeue()
        return {"type": "websocket.receive", "text" if isinstance(raw, str) else "bytes": raw}

    def _content(self, message: Message) -> str | bytes:
        """
        Return the text or the bytes of an ASGI message that the bot sends.

        Raises:
            WebSocketDisconnect: If the other end is gone, as Starlette does: a bot that sends in a loop must notice.
        """
        if self.gone.is_set():
            raise WebSocketDisconnect(self.close_code or 1000, self.gone_reason)
        text: str | None = message.get("text")
        return text if text is not None else message["bytes"]

    async def _send_raw(self, raw: str | bytes) -> bool:
        """Send a message; false if the other end is gone."""
        if self.gone.is_set() or self.application_state is not WebSocketState.CONNECTED:
            return False
        if self._can_send_now:
            assert self._connection is not None
            self._connection.send_now(raw)
            return True
        key = "text" if isinstance(raw, str) else "bytes"
        if not self._sends_under_way:
            self.send_blocked_since = self._loop.time()
        self._sends_under_way += 1
        failure: Exception | None = None
        try:
            await self._send({"type": "websocket.send", key: raw})
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            failure = error
        finally:
            self._sends_under_way -= 1
            if not self._sends_under_way:
                self.send_blocked_since = None
        if failure is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_GRACE_S):
                    await self.gone.wait()
            self.note_gone(f"the connection broke: {str(failure) or type(failure).__name__}", lost=True)
            return False
        if self._sends_under_way:
            # A send got through, so the others count as blocked only from now on.
            self.send_blocked_since = self._loop.time()
        return True

    @property
    def _can_send_now(self) -> bool:
        """Whether a message can be sent without a wait, and nothing waits before it."""
        return self._connection is not None and not self._sends_under_way and self._connection.can_send()

    def request_close(self) -> None:
        """Ask the session to end; it closes the WebSocket once the last audio was played."""
        self.close_requested.set()

    async def close_connection(self, code: int, reason: str = "") -> None:
        """Close the WebSocket, unless it is closed already."""
        if self.application_state is not WebSocketState.CONNECTED:
            return
        self.application_state = WebSocketState.DISCONNECTED
        try:
            async with asyncio.timeout(1):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError, WebSocketDisconnect, TimeoutError):
            self.abort()

    def abort(self) -> None:
        """Drop the connection, if the server offers a way to; a caller that does not read cannot be closed in order."""
        self.application_state = WebSocketState.DISCONNECTED
        if self._connection is not None:
            self._connection.abort()

    def abandon(self, reason: str) -> None:
        """Give up a caller whose connection has stalled."""
        self.note_gone(reason, lost=True)
        self.abort()

    def note_gone(self, reason: str, *, lost: bool = False) -> None:
        """Note that the caller is gone; `lost` if it has not hung up."""
        if not self.gone.is_set():
            self.gone_reason, self.is_lost = reason, lost
            self.client_state = WebSocketState.DISCONNECTED
            self.gone.set()
            self._inbox_filled.set()

    def note_fault(self, kind: str, message: str) -> None:
        """Count a bad message, and log the first of its kind."""
        self.faults[kind] += 1
        if self.faults[kind] == 1:
            self.logger.warning("ignored a bad message ({}): {}; more of its kind are only counted", kind, message)
