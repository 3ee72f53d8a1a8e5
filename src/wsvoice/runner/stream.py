"""
One accepted media WebSocket: what comes in is read, checked and counted here, and nowhere else.

:class:`StreamSocket` is a Starlette ``WebSocket``, so a bot that was written against one works with it, and it is
the place where a provider's messages become events. One task reads for as long as the caller is there, whether
or not anybody listens yet: a hang-up is noticed at once, marks come back during the last words, and nothing the
caller said before the bot was ready is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Side
from wsvoice.providers.events import (
    Audio,
    Clear,
    Event,
    Mark,
    StreamError,
    StreamStopped,
    Unknown,
)
from wsvoice.runner.pacing import Pacer
from wsvoice.runner.turns import TurnTimer

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.providers.base import Provider, Stream

Sink = Callable[[Event], Awaitable[None]]

#: How many messages wait for a bot that is not ready; ten seconds of 20 ms audio. The oldest go first.
INBOX_MESSAGES = 500
#: The ASGI extension by which our own server lets a session drop a connection that no longer moves.
ABORT_EXTENSION = "wsvoice.abort"


class StreamSocket(WebSocket):
    """
    An accepted media WebSocket.

    There are two ways to listen: :meth:`deliver_to` (events; what :class:`~wsvoice.runner.transport.CallTransport`
    uses) and the WebSocket's own :meth:`receive` (messages, for bots that bring their own transport). Malformed
    messages reach neither: each kind is logged once and counted in :attr:`faults`.

    Closing is a request: the session plays out the last audio and closes.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        provider: Provider,
        logger: Logger,
        lead_s: float = 0.1,
        message_limit: int = 64 * 1024,
        unread: Iterable[str | bytes] = (),
    ) -> None:
        super().__init__(scope, receive, send)
        self.client_state = WebSocketState.CONNECTED
        self.application_state = WebSocketState.CONNECTED
        self.logger = logger
        self.stream: Stream = provider.stream(Side.BOT)
        #: Reads what a bot sends by itself, so that the record is right for every kind of bot.
        self._mirror: Stream = provider.stream(Side.CARRIER)
        self.pacer = Pacer(lead_s)
        self.turns = TurnTimer()
        #: How often each kind of bad message came.
        self.faults: Counter[str] = Counter()
        #: The caller's audio that came in.
        self.received_ms = 0.0
        #: The bot's audio that went out.
        self.sent_ms = 0.0
        self._cleared_ms = 0.0
        self.marks_sent = 0
        self.clears_sent = 0
        self.digits = ""
        self.close_code: int | None = None
        #: Why the caller is gone, in words; set together with :attr:`gone`.
        self.gone_because = ""
        self.gone = asyncio.Event()
        self.close_requested = asyncio.Event()
        #: Since when a message has been waiting for the caller to read, on the loop's clock.
        self.send_blocked_since: float | None = None
        self.audio_listener: Callable[[str, bytes, float], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._message_limit = message_limit
        self._unread = deque(unread)
        self._reorderer = None if provider.ordered else _reorderer()
        self._inbox: deque[tuple[str | bytes, Event]] = deque()
        self._inbox_filled = asyncio.Event()
        self._sink: Sink | None = None
        self._waiting_marks: dict[str, asyncio.Future[None]] = {}

    # Reading

    async def next_event(self) -> tuple[str | bytes, Event] | None:
        """Read until the next well-formed message, and return it with its event; ``None`` when nobody is there."""
        while True:
            if self._unread:
                message: Message = {"type": "websocket.receive", "text": self._unread.popleft()}
            else:
                message = await self._receive()
            if message["type"] == "websocket.disconnect":
                self.close_code = message.get("code")
                self.note_gone(_why_disconnected(self.close_code))
                return None
            text = message.get("text")
            raw: str | bytes = text if text is not None else message["bytes"]
            if len(raw) > self._message_limit:
                # Our own server refuses it before it is here; another's may not.
                await self.shut(1009)
                self.note_gone("a message was larger than the limit")
                return None
            try:
                return raw, self.stream.receive(raw)
            except RemoteProtocolError as error:
                self._note_fault(error.kind, error.message)

    async def pump(self) -> None:
        """Read until the caller is gone, and hand on what comes, in order."""
        if self._reorderer is None:
            while (item := await self.next_event()) is not None:
                await self.take(*item)
            return
        raws: dict[int, str | bytes] = {}
        while (item := await self.next_event()) is not None:
            raw, event = item
            raws[id(event)] = raw
            for each in self._reorderer.push(event):
                await self.take(raws.pop(id(each)), each)
        for each in self._reorderer.flush():
            await self.take(raws.pop(id(each)), each)

    async def take(self, raw: str | bytes, event: Event) -> None:
        """Count one event and hand it on."""
        kind = type(event)
        if kind is Audio:
            assert isinstance(event, Audio)
            if event.track != "inbound":
                return  # The bot's own voice, where a document asked for both tracks.
            now = self._loop.time()
            self.received_ms += self.stream.format.duration_ms(len(event.payload))
            pcm = self.stream.format.decode(event.payload)
            self.turns.caller(pcm, now)
            if self.audio_listener is not None:
                self.audio_listener("caller", pcm, now)
        elif isinstance(event, Mark):
            waiting = self._waiting_marks.pop(event.name, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(None)
        elif isinstance(event, StreamStopped):
            self.note_gone("the caller hung up")
        elif isinstance(event, Unknown):
            self._note_fault("unknown-event", f"an event of an unknown kind, {event.name!r}")
        elif isinstance(event, StreamError):
            self._note_fault("provider-error", f"the provider reports {event.code} {event.title} {event.detail}")
        else:
            digit = getattr(event, "digit", None)
            if digit is not None:
                self.digits += digit
                self.logger.info("the caller pressed {}", digit)
        if self._sink is not None:
            await self._sink(event)
            return
        self._inbox.append((raw, event))
        if len(self._inbox) > INBOX_MESSAGES:
            self._drop_oldest()
        self._inbox_filled.set()

    async def deliver_to(self, sink: Sink) -> None:
        """Hand every event to `sink`, those that wait first, until the caller is gone."""
        while self._inbox:
            await sink(self._inbox.popleft()[1])
        self._sink = sink
        try:
            await self.gone.wait()
        finally:
            self._sink = None

    async def receive(self) -> Message:
        """Return the next message as ASGI has it, for a bot that reads by itself."""
        while not self._inbox:
            if self.gone.is_set():
                self.client_state = WebSocketState.DISCONNECTED
                return {"type": "websocket.disconnect", "code": self.close_code or 1000, "reason": ""}
            self._inbox_filled.clear()
            await self._inbox_filled.wait()
        raw, _ = self._inbox.popleft()
        return {"type": "websocket.receive", "text" if isinstance(raw, str) else "bytes": raw}

    # Writing

    async def send_event(self, event: Event) -> None:
        """Send one event; nothing happens once the caller is gone."""
        await self._write(self.stream.send(event), event)

    async def send(self, message: Message) -> None:
        """Send a message as ASGI has it, for a bot that writes by itself; a close is noted as a request."""
        if message["type"] == "websocket.close":
            self.request_close()
            return
        if self.gone.is_set():
            # As Starlette's own does: a bot that sends in a loop must hear that it is over.
            raise WebSocketDisconnect(self.close_code or 1000, self.gone_because)
        text = message.get("text")
        raw: str | bytes = text if text is not None else message["bytes"]
        try:
            event: Event | None = self._mirror.receive(raw)
        except RemoteProtocolError as error:
            self._note_fault(f"bot-{error.kind}", f"the bot sent a message that is not {error.message}")
            event = None
        await self._write(raw, event)

    async def send_message(self, message: Mapping[str, Any]) -> None:
        """Send a message of the bot's own making."""
        await self._write(json.dumps(message), None)

    async def _write(self, raw: str | bytes, event: Event | None) -> None:
        if self.gone.is_set() or self.application_state is not WebSocketState.CONNECTED:
            return
        key = "text" if isinstance(raw, str) else "bytes"
        self.send_blocked_since = self._loop.time()
        try:
            await self._send({"type": "websocket.send", key: raw})
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            self.note_gone(f"the connection broke: {error or type(error).__name__}")
            return
        finally:
            self.send_blocked_since = None
        if isinstance(event, Audio):
            now = self._loop.time()
            wire = self.stream.outbound_format
            duration_ms = wire.duration_ms(len(event.payload))
            self.pacer.sent(now, duration_ms / 1000)
            self.sent_ms += duration_ms
            pcm = wire.decode(event.payload[: len(event.payload) // wire.sample_width * wire.sample_width])
            self.turns.bot(pcm, now)
            if self.audio_listener is not None:
                self.audio_listener("bot", pcm, now)
        elif isinstance(event, Mark):
            self.marks_sent += 1
        elif isinstance(event, Clear):
            now = self._loop.time()
            self.clears_sent += 1
            self._cleared_ms += self.pacer.queued_s(now) * 1000
            self.pacer.cleared(now)
            if self.audio_listener is not None:
                self.audio_listener("clear", b"", now)

    @property
    def playable_ms(self) -> float:
        """How much of the bot's audio was played or will be: all that was sent and not cleared."""
        return self.sent_ms - self._cleared_ms

    @property
    def heard_ms(self) -> float:
        """How much of the bot's audio the caller has heard, by the playback clock."""
        return max(0.0, self.playable_ms - self.pacer.queued_s(self._loop.time()) * 1000)

    # Ending

    def request_close(self) -> None:
        """Ask the session to end the call; it plays out the last audio first."""
        self.close_requested.set()

    async def played_out(self, timeout_s: float) -> bool:
        """Wait until the provider has played everything that was sent; false if it did not say so in time."""
        if self.gone.is_set() or not self.sent_ms:
            return True
        name = f"wsvoice-end-{self.marks_sent}"
        played = self._waiting_marks[name] = self._loop.create_future()
        gone = asyncio.ensure_future(self.gone.wait())
        try:
            async with asyncio.timeout(timeout_s):
                await self.send_event(Mark(name))
                await asyncio.wait({played, gone}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            return False
        finally:
            gone.cancel()
            self._waiting_marks.pop(name, None)
        return True

    async def shut(self, code: int, reason: str = "") -> None:
        """Close the WebSocket; nothing happens if that was done."""
        if self.application_state is not WebSocketState.CONNECTED:
            return
        self.application_state = WebSocketState.DISCONNECTED
        try:
            async with asyncio.timeout(1):
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError, WebSocketDisconnect, TimeoutError):
            self.abort()

    def abort(self) -> None:
        """Drop the connection where the server offers a way to; a caller that does not read cannot be closed."""
        self.application_state = WebSocketState.DISCONNECTED
        extension = self.scope.get("extensions", {}).get(ABORT_EXTENSION)
        if extension is not None:
            extension["abort"]()

    def abandon(self, because: str) -> None:
        """Give up a caller whose connection no longer moves."""
        self.note_gone(because)
        self.abort()

    def note_gone(self, because: str) -> None:
        """Let everybody who listens know that the caller is gone."""
        if self.gone.is_set():
            return
        self.gone_because = because
        self.client_state = WebSocketState.DISCONNECTED
        self.gone.set()
        self._inbox_filled.set()

    def _note_fault(self, kind: str, message: str) -> None:
        self.faults[kind] += 1
        if self.faults[kind] == 1:
            self.logger.warning("ignored a bad message ({}): {}; more of its kind are only counted", kind, message)

    def _drop_oldest(self) -> None:
        for index, (_, event) in enumerate(self._inbox):
            if isinstance(event, Audio):
                del self._inbox[index]
                break
        else:
            self._inbox.popleft()
        self.faults["unread"] += 1
        if self.faults["unread"] == 1:
            self.logger.warning("the bot does not read; the oldest of the caller's audio is being dropped")


def _why_disconnected(code: int | None) -> str:
    if code == 1009:
        return "a message was larger than the limit"
    if code in (1005, 1006):
        return "the connection was lost"
    if code == 1011:
        return "the caller did not answer pings"
    return "the caller hung up"


def _reorderer() -> Any:
    from wsvoice.providers.ordering import Reorderer

    return Reorderer()
