"""
A call's media WebSocket: the only place where a provider's messages are read, checked and counted.

:class:`MediaSocket` is a Starlette ``WebSocket``, so bots written for one work with it. One task reads for as long as
the caller is there, whether or not the bot listens yet: a hang-up is noticed at once, marks are handled while the last
audio plays, and nothing the caller said before the bot was ready is lost.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocketState

from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.callbacks import printable
from wsvoice.providers.events import (
    Audio,
    Clear,
    Event,
    FlowControl,
    Mark,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.reordering import Reorderer
from wsvoice.runner.bounded_socket import BURST_S, BoundedSocket
from wsvoice.runner.pacing import MAX_AHEAD_S, InputLimit, Pacer
from wsvoice.runner.turns import Breaks, TurnTimer

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.providers.base import CallUpdate, Server
    from wsvoice.providers.media_stream import Stream
    from wsvoice.runner.call_tap import CallTap

#: What events are passed to; audio with what it is decoded to, s16le at the stream's rate.
Sink = Callable[[Event, bytes], Awaitable[None]]

#: How many of the caller's keys are kept, and how many are logged one by one; the bot gets all of them.
MAX_DIGITS = 256
LOGGED_DIGITS = 32
#: How long the carrier may pause the bot's audio, in seconds. Asterisk's pauses, of 100 frames in its queue, take two;
#: pipecat gives a bot up that has not sent for ten.
MAX_PAUSE_S = 8.0
#: How much further ahead a piece of the caller's audio is than the one before if it was held up, in seconds.
BURST_GROWTH_S = 0.01
#: How many marks wait to be reached at a carrier that has none.
MAX_ESTIMATES = 1000
#: How many characters of a mark's name are shown.
MARK_SHOWN = 60
#: Characters of each part of an error that the carrier reports.
REPORT_LIMIT = 100
#: The faults of a start message that make the stream unusable.
START_FAULTS = frozenset({"bad-start", "unsupported-codec"})


class AtOnce(Protocol):
    """Takes the caller's audio where it arrives, without a task."""

    def takes_audio(self) -> bool:
        """Whether :meth:`take_audio` can be called now."""

    def take_audio(self, pcm: bytes) -> None:
        """Take a piece of audio, s16le at the stream's rate."""


class MediaSocket(BoundedSocket):
    """
    An accepted media WebSocket.

    There are two ways to listen: :meth:`deliver_to` (events, for a call's ready-made transport) and the WebSocket's own
    :meth:`receive` (messages, for bots with a transport of their own). Malformed messages reach neither; each kind is
    logged once and counted in :attr:`faults`.

    Closing is a request: the session waits until the last audio was played, and closes.
    """

    # Ten seconds of 20 ms audio.
    inbox_messages = 500
    inbox_bytes = 1024 * 1024

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        provider: Server,
        logger: Logger,
        lead_s: float = 0.1,
        message_limit: int = 64 * 1024,
        unread: Iterable[str | bytes] = (),
    ) -> None:
        super().__init__(scope, receive, send, logger=logger, message_limit=message_limit)
        self.stream: Stream = provider.stream()
        #: How long the carrier's pieces of audio are.
        self.carrier_frame_ms = provider.frame_ms
        #: Reads the messages that a bot writes itself, so that the record is right for every kind of bot.
        self._mirror: Stream = provider.mirror()
        self.pacer = Pacer(lead_s)
        self.turns = TurnTimer()
        self._breaks = Breaks()
        self._input_limit = InputLimit()
        #: How far ahead of real time the caller's audio is. It grows while audio comes at once that was held up.
        self._ahead_s = 0.0
        #: How much of the caller's audio was received.
        self.received_ms = 0.0
        #: How much of the bot's audio was sent.
        self.sent_ms = 0.0
        self._cleared_ms = 0.0
        self.marks_sent = 0
        self.digits = ""
        self.digit_count = 0
        #: Why the stream's start is unusable; empty if it is not.
        self.unusable = ""
        #: Is told what is read and written; ``None`` where nothing is kept of the call.
        self.tap: CallTap | None = None
        #: Called with what the provider reports of the call beside its stream.
        self.update_listener: Callable[[CallUpdate], Coroutine[Any, Any, None]] | None = None
        #: Called with how many seconds are left before a call that has lasted too long is ended.
        self.ending_listener: Callable[[float], Coroutine[Any, Any, None]] | None = None
        #: Called once the bot can hear and speak, if it uses the call's ready-made transport.
        self.on_bot_started: Callable[[], None] | None = None
        self._unread = deque(unread)
        #: The message that started the stream.
        self._start: str | bytes | None = None
        self._reorderer = None if provider.ordered else Reorderer()
        self._sink: Sink | None = None
        self._at_once: AtOnce | None = None
        #: A message that was read where it arrived, and whose event has to wait for the reader.
        self._early: tuple[str | bytes, Event] | None = None
        #: What failed where a message arrived.
        self._failure: Exception | None = None
        self._waiting_marks: dict[str, asyncio.Future[None]] = {}
        self._has_marks = provider.has_marks
        #: Marks of a carrier that has none, and when each should be reached.
        self._estimated: deque[tuple[float, Mark]] = deque()
        self._estimator: asyncio.Task[None] | None = None
        #: How much audio may wait at the carrier. Its own word comes too late for a bot that writes much at once.
        self._queue_limit_s = provider.pauses_at_s[0] if provider.pauses_at_s else math.inf
        #: Cleared while the carrier has paused the audio.
        self._flowing = asyncio.Event()
        self._flowing.set()
        #: How often the carrier's queue was cleared, and what is set at the next time.
        self._clears = 0
        self._cleared = asyncio.Event()
        #: Audio and marks leave in their order.
        self._in_order = asyncio.Lock()

    # Reading

    async def next_event(self, *, starting: bool = False) -> tuple[str | bytes, Event] | None:
        """
        Return the next well-formed message and its event; ``None`` when the caller is gone.

        While the stream is `starting`, also ``None`` for an unusable start; :attr:`unusable` then says why.
        """
        while True:
            raw = self._unread.popleft() if self._unread else await self._next_message()
            if raw is None:
                return None
            if self._failure is not None:
                raise self._failure
            try:
                event = self._early[1] if self._early and self._early[0] is raw else self.stream.receive(raw)
                if self.tap is not None:
                    self.tap.message("in", raw, is_audio=type(event) is Audio)
            except RemoteProtocolError as error:
                if self.tap is not None:
                    self.tap.message("in", raw, is_audio=False)
                self.note_fault(error.kind, error.message)
                if starting and error.kind in START_FAULTS:
                    self.unusable = f"the start message cannot be used: {error.message}"
                    return None
                continue
            self._early = None
            if type(event) is not StreamStarted:
                return raw, event
            if self._start is None:
                self._begin(raw, event)
                return raw, event
            # The first one determines the call and the audio format.
            self.stream.receive(self._start)
            self.note_fault("second-start", "the stream has started already")

    def _begin(self, raw: str | bytes, started: StreamStarted) -> None:
        """Remember the start, and tell the mirror."""
        self._start = raw
        self._mirror.send(started)
        self._mirror.outbound_format = self.stream.outbound_format

    async def read_loop(self) -> None:
        """Read until the caller is gone, and pass events on in order."""
        if self._reorderer is None:
            while not self.gone.is_set() and (item := await self.next_event()) is not None:
                await self.take(*item)
            return
        while not self.gone.is_set() and (item := await self.next_event()) is not None:
            raw, event = item
            for each, its_raw in self._reorderer.push(event, raw):
                await self.take(its_raw, each)
        for each, its_raw in self._reorderer.flush():
            await self.take(its_raw, each)

    async def take(self, raw: str | bytes, event: Event) -> None:
        """Count one event and pass it on."""
        pcm = b""
        if type(event) is Audio:
            admitted = self._admitted(event, self._loop.time())
            if admitted is None:
                return
            pcm = admitted
        elif isinstance(event, Mark):
            if self.tap is not None:
                self.tap.event("mark", f"mark {event.name[:MARK_SHOWN]!r} was reached")
            self._mark_reached(event)
        elif isinstance(event, StreamStopped):
            self.note_gone("the caller hung up")
        elif isinstance(event, Unknown):
            self.note_fault("unknown-event", f"an event of an unknown kind, {event.name!r}")
        elif isinstance(event, FlowControl):
            if event.paused:
                self._flowing.clear()
            else:
                self._flowing.set()
        elif isinstance(event, StreamError):
            told = " ".join(printable(each, REPORT_LIMIT) for each in (event.code, event.title, event.detail))
            self.note_fault("provider-error", f"the provider reports {told}")
        else:
            digit = getattr(event, "digit", None)
            if digit is not None:
                self._note_digit(digit)
        if self._sink is not None:
            await self._sink(event, pcm)
            return
        self._enqueue(raw, event)

    def _admitted(self, audio: Audio, now: float, raw: str | bytes | None = None) -> bytes | None:
        """
        Count a piece of the caller's audio, and return it as s16le; ``None`` if it is not to be heard.

        Args:
            audio: The piece.
            now: When it came.
            raw: Its message, unless the tap was told.
        """
        wire = self.stream.format
        duration_ms = wire.duration_ms(len(audio.payload))
        # The other track is the bot's own voice, if a document requested both.
        is_inbound = audio.track == "inbound"
        if not is_inbound or not self._input_limit.admits(now, duration_ms / 1000):
            if self.tap is not None and raw is not None:
                self.tap.message("in", raw, is_audio=True)
            if is_inbound:
                self.note_fault("ahead", f"the audio is more than {MAX_AHEAD_S:g} s ahead of real time")
            return None
        self.received_ms += duration_ms
        self.bytes_in += len(audio.payload)
        ahead_s = self._input_limit.ahead_s(now)
        if ahead_s > self._ahead_s + BURST_GROWTH_S:
            self.pacer.catch_up(now, ahead_s)
        self._ahead_s = ahead_s
        pcm = wire.decode(audio.payload)
        self.turns.caller(pcm, now)
        if self.tap is not None:
            self.tap.hear("in", now, raw, audio.payload, self.turns.caller_sounded_at)
        return pcm

    def _take_at_once(self, raw: str | bytes) -> bool:
        """Take a message of audio where it arrives; false leaves it to the reader."""
        at_once, now = self._at_once, self._loop.time()
        until = self._lasts_until(now)
        if (
            at_once is None
            or not self._is_reading
            or self.gone.is_set()
            or until - now > BURST_S
            or len(raw) > self._message_limit
            or not at_once.takes_audio()
        ):
            return False
        try:
            event = self.stream.receive(raw)
            if type(event) is not Audio:
                self._early = raw, event
                return False
            self._read_until = until
            pcm = self._admitted(event, now, raw)
            if pcm is not None:
                at_once.take_audio(pcm)
        except RemoteProtocolError as error:
            if self.tap is not None:
                self.tap.message("in", raw, is_audio=False)
            self.note_fault(error.kind, error.message)
        except Exception as error:  # noqa: BLE001 The reader raises it, where the call can end of it.
            self._failure = error
            return False
        return True

    def _note_digit(self, digit: str) -> None:
        self.digit_count += 1
        if len(self.digits) < MAX_DIGITS:
            self.digits += digit
        if self.tap is not None:
            self.tap.event("digit", f"the caller presses {digit}", who="caller", digit=digit)
        if self.digit_count <= LOGGED_DIGITS:
            self.logger.info("the caller pressed {}", digit)
        elif self.digit_count == LOGGED_DIGITS + 1:
            self.logger.info("the caller presses more keys; from now on they are only counted")

    async def deliver_to(self, sink: Sink, at_once: AtOnce | None = None) -> None:
        """Pass every event to `sink` until the caller is gone, beginning with those in the inbox; audio `at_once`."""
        while self._inbox:
            _, event = self._dequeue()
            assert event is not None
            await sink(event, self.stream.format.decode(event.payload) if isinstance(event, Audio) else b"")
        self._sink = sink
        if at_once is not None and self._reorderer is None and self._connection is not None:
            self._at_once, self._connection.listener = at_once, self._take_at_once
        try:
            await self.gone.wait()
        finally:
            self._sink = self._at_once = None
            if self._connection is not None:
                self._connection.listener = None

    def forget_audio(self) -> None:
        """Drop the audio that waits for the bot."""
        kept = [(raw, event) for raw, event in self._inbox if not isinstance(event, Audio)]
        self._inbox.clear()
        self._inbox.extend(kept)
        self._inbox_size = sum(len(raw) for raw, _ in kept)

    def _index_to_drop(self) -> int:
        """Return the oldest audio's place in the inbox; that of the oldest message if there is none."""
        return next((index for index, (_, event) in enumerate(self._inbox) if isinstance(event, Audio)), 0)

    # Writing

    async def send_event(self, event: Event) -> None:
        """
        Send one event; nothing happens once the caller is gone.

        If the carrier has no marks, one is returned when all audio before it should have been played.
        """
        if isinstance(event, Mark) and not self._has_marks:
            self._estimate(event)
            return
        await self._write(self.stream.send(event), event)

    def _estimate(self, mark: Mark) -> None:
        """Return `mark` when all audio before it should have been played."""
        if len(self._estimated) >= MAX_ESTIMATES:
            self.note_fault("marks", f"more than {MAX_ESTIMATES} marks wait to be reached")
            return
        self.marks_sent += 1
        now = self._loop.time()
        self._estimated.append((now + self.pacer.queued_s(now), mark))
        if self._estimator is None or self._estimator.done():
            self._estimator = asyncio.create_task(self._return_estimated())
            self._estimator.add_done_callback(self._note_failure)

    async def _return_estimated(self) -> None:
        while self._estimated:
            item = self._estimated[0]
            with suppress(TimeoutError):
                async with asyncio.timeout_at(item[0]):
                    await self.gone.wait()
            if self.gone.is_set():
                return
            if not self._estimated or self._estimated[0] is not item:
                continue  # It was cleared.
            self._estimated.popleft()
            if self._sink is not None:
                await self.take("", item[1])
            else:
                # A bot that reads messages by itself has no use for one that was never sent.
                self._mark_reached(item[1])

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.logger.opt(exception=error).error("the bot failed at a mark")

    def _mark_reached(self, mark: Mark) -> None:
        waiting = self._waiting_marks.pop(mark.name, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    @property
    def _has_room(self) -> bool:
        return self._flowing.is_set() and self.pacer.queued_s(self._loop.time()) <= self._queue_limit_s

    async def _wait_for_room(self, clears: int) -> None:
        """
        Wait until the carrier has room for audio, or has cleared what it had; `clears` is how often it had before.

        A pause lasts as long as the carrier plays a few seconds of its queue. One that never ends, since the message
        that ends it was lost or withheld, does not hold up the call.
        """
        pause_ends = self._loop.time() + MAX_PAUSE_S
        while not (self._has_room or self.gone.is_set()) and self._clears == clears:
            now = self._loop.time()
            over_s = self.pacer.queued_s(now) - self._queue_limit_s
            if over_s <= 0 and now >= pause_ends:
                self.note_fault("paused", f"the carrier paused the audio for over {MAX_PAUSE_S:g} s; it is sent again")
                self._flowing.set()
                return
            pause_ends = max(pause_ends, now + over_s + MAX_PAUSE_S if over_s > 0 else 0)
            waits = [asyncio.ensure_future(each.wait()) for each in (self._cleared, self.gone)]
            if over_s <= 0:
                waits.append(asyncio.ensure_future(self._flowing.wait()))
            try:
                timeout_s = over_s if over_s > 0 else pause_ends - now
                await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()

    def has_room(self, duration_s: float) -> bool:
        """Whether this much audio can be sent now, in order, without a wait."""
        now = self._loop.time()
        return (
            not self._in_order.locked()
            and self._flowing.is_set()
            and self.pacer.has_room(now, duration_s)
            and (self._queue_limit_s == math.inf or self.pacer.queued_s(now) + duration_s <= self._queue_limit_s)
            and self._can_send_now
            and not self.gone.is_set()
            and self.application_state is WebSocketState.CONNECTED
        )

    async def send_audio(self, pcm: bytes) -> None:
        """Send a piece of audio, s16le at the rate of what the stream takes."""
        audio = Audio(self.stream.outbound_format.encode(pcm))
        await self._write(self.stream.send(audio), audio, pcm)

    def send_audio_now(self, pcm: bytes) -> None:
        """Send a piece of audio, s16le at the rate of what the stream takes; only if there is room for it."""
        assert self._connection is not None
        audio = Audio(self.stream.outbound_format.encode(pcm))
        raw = self.stream.send(audio)
        self._connection.send_now(raw)
        self._note_sent(raw, audio.payload, pcm)

    async def send(self, message: Message) -> None:
        """Send a message as ASGI has it, for a bot that writes its own; a close is only a request."""
        if message["type"] == "websocket.close":
            self.request_close()
            return
        raw = self._content(message)
        try:
            event: Event | None = self._mirror.receive(raw)
        except RemoteProtocolError as error:
            self.note_fault(f"bot-{error.kind}", f"the provider cannot use the bot's message: {error.message}")
            event = None
        for finding in self._mirror.findings():
            if finding.level == "fail":
                self.note_fault(f"bot-{finding.id}", f"the provider would not take {finding.message}")
        await self._write(raw, event)

    async def send_message(self, message: Mapping[str, Any]) -> None:
        """Send a message that the bot made."""
        await self._write(json.dumps(message), None)

    async def _write(self, raw: str | bytes, event: Event | None, pcm: bytes | None = None) -> None:
        if not isinstance(event, Audio | Mark):
            await self._write_now(raw, event)
            return
        clears = self._clears
        async with self._in_order:
            if not self._has_room:
                await self._wait_for_room(clears)
            # What waited, and was cleared meanwhile, is not to be heard any more.
            if self._clears == clears:
                await self._write_now(raw, event, pcm)

    async def _write_now(self, raw: str | bytes, event: Event | None, pcm: bytes | None = None) -> None:
        if not await self._send_raw(raw):
            return
        if isinstance(event, Audio):
            self._note_sent(raw, event.payload, pcm)
            return
        if self.tap is not None:
            self.tap.message("out", raw, is_audio=False)
        if isinstance(event, Mark):
            self.marks_sent += 1
            if self.tap is not None:
                self.tap.event("mark-sent", f"mark {event.name[:MARK_SHOWN]!r} was sent")
        elif isinstance(event, Clear):
            now = self._loop.time()
            self._clears += 1
            self._cleared.set()
            self._cleared = asyncio.Event()
            self._estimated.clear()
            queued_s = self.pacer.queued_s(now)
            self._cleared_ms += queued_s * 1000
            self.pacer.cleared(now)
            self._breaks.cleared()
            if self.tap is not None:
                self.tap.clear(now, queued_s)

    def _note_sent(self, raw: str | bytes, payload: bytes, pcm: bytes | None) -> None:
        """Count a piece of the bot's audio, whose PCM is known or not, and its message."""
        now = self._loop.time()
        wire = self.stream.outbound_format
        duration_ms = wire.duration_ms(len(payload))
        empty_s = self.pacer.sent(now, duration_ms / 1000)
        self.sent_ms += duration_ms
        self.bytes_out += len(payload)
        if pcm is None:
            pcm = wire.decode(payload[: len(payload) // wire.sample_width * wire.sample_width])
        answers = self.turns.bot(pcm, now)
        if self._breaks.sent(pcm, empty_s, wire.sample_rate):
            self.underruns += 1
        if self.tap is not None:
            self.tap.hear("out", now, raw, payload, self.turns.bot_sounded_at, self.pacer.plays_until)
            if answers:
                self.tap.wait(self.turns.responses_s[-1], now)

    @property
    def playable_ms(self) -> float:
        """How much of the bot's audio was or will be played: what was sent and not cleared."""
        return self.sent_ms - self._cleared_ms

    @property
    def heard_ms(self) -> float:
        """How much of the bot's audio the caller has heard, according to the playback clock."""
        return max(0.0, self.playable_ms - self.pacer.queued_s(self._loop.time()) * 1000)

    # Ending

    async def played_out(self, timeout_s: float) -> bool:
        """Wait until the provider has played all that was sent; false if it does not confirm that in time."""
        if self.gone.is_set() or not (self.sent_ms or self._in_order.locked()):
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
