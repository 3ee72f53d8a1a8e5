"""
The media stream of a simulated call: sends the caller's audio, plays the bot's, and ends the call.

Frame `n` carries the caller's sound of the 20 ms before it is sent, as a telephone network's does: what is said
at a time cannot be on the wire earlier. All of it runs by one absolute clock, so that a stall is caught up with
and never shifts what follows.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsvoice.audio import write_wav
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.clock import Clock
from wsvoice.dial.journal import Journal
from wsvoice.dial.listener import Listener
from wsvoice.dial.playback import Playback
from wsvoice.dial.report import CallReport, EndedBy
from wsvoice.dial.script import SILENCE_MS, STEP_MS, Script, Turn
from wsvoice.errors import LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import Provider, Side, StreamRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamStarted,
    StreamStopped,
)

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

#: A bot that is further ahead of real time has audio in the provider's buffer that it can only throw away.
MAX_LEAD_MS = 5000.0
#: Less audible audio than this may be lost at the end without anybody's missing it.
MAX_LOST_MS = 100.0

_CODES_IN_ORDER = (1000, 1001, 1005)
_CODES = {
    1006: "the connection broke: the bot's end went away without closing it (1006)",
    1008: "the bot refused the call: it closed it with 1008",
    1009: "the bot took a message for too large: it closed the call with 1009",
    1011: "the bot crashed: it closed the call with 1011",
    1012: "the bot's server restarted in the call: it closed it with 1012",
    1013: "the bot's server is overloaded: it closed the call with 1013",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long the conversation waits for the other end.

    Attributes:
        close_s: For the end of the closing handshake.
        backlog_s: How much audio may wait for a bot that does not read it.
    """

    close_s: float = 5.0
    backlog_s: float = 10.0


class Conversation:
    """One media stream, from its start to its end."""

    def __init__(
        self,
        socket: ClientConnection,
        provider: Provider,
        call: Call,
        request: StreamRequest,
        turns: list[Turn],
        config: DialConfig,
        *,
        journal: Journal,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._socket = socket
        self._stream = provider.stream(Side.CARRIER)
        self._title = provider.title
        self._frame_steps = provider.frame_ms // STEP_MS
        self._call = call
        self._request = request
        self._turns = turns
        self._config = config
        self._journal = journal
        self._clock = clock
        self._patience = patience
        self._format = request.format
        self._listener = Listener(self._format.sample_rate)
        self._script = Script(
            turns,
            self._listener,
            sample_rate=self._format.sample_rate,
            listen_s=config.listen_s,
            response_timeout_s=config.response_timeout_s,
        )
        self._outbox: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self._failure: str | None = None
        self._ended_by: EndedBy | None = None
        self._ended_at: float | None = None
        self._hung_up_by_rest = False
        self._talking = False
        self._told_sounds = 0
        self._sent_frames = 0
        self._marks = 0
        self._mark_names: set[str] = set()
        self._clears = 0
        # Both sides of the recording, and the caller's frame that is being filled.
        self._caller_pcm = bytearray()
        self._bot_pcm = bytearray()
        self._frame = b""

    async def run(self) -> None:
        """
        Hold the conversation.

        A cancellation hangs up in good order before it goes on.
        """
        reader = sender = None
        try:
            await self._start()
            reader = asyncio.create_task(self._read())
            sender = asyncio.create_task(self._send_all())
            await self._talk(reader)
            await self._end(sender)
        except asyncio.CancelledError:
            if sender is not None and self._ended_by is None:
                self._ended_by = "caller"
                await self._hang_up(sender)
            raise
        finally:
            tasks = [task for task in (reader, sender) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._let_go()

    @property
    def over(self) -> bool:
        """Whether the stream was started and has ended."""
        return self._ended_at is not None

    def hang_up(self) -> None:
        """End the call for the bot, which asked for it through the REST API."""
        self._hung_up_by_rest = True

    def record(self) -> str | None:
        """
        Write the recording, if one is wanted, and return its path.

        Raises:
            OSError: If it cannot be written.
        """
        path = self._config.record
        if path is None:
            return None
        write_wav(path, [bytes(self._caller_pcm), bytes(self._bot_pcm)], self._format.sample_rate)
        return str(path)

    def complete(self, report: CallReport) -> CallReport:
        """Return `report` with what is known of the stream."""
        started_at = self._journal.started_at
        assert started_at is not None
        assert self._ended_at is not None
        sounds = self._listener.sounds
        received = self._playback.received_samples
        return replace(
            report,
            stream_id=self._call.stream_id,
            first_audio_ms=sounds[0].start_ms if sounds else None,
            turns=self._script.turns(),
            sent_audio_ms=self._sent_frames * self._frame_steps * STEP_MS,
            received_audio_ms=round(received * 1000 / self._format.sample_rate),
            underruns=self._playback.underruns,
            max_gap_ms=self._playback.max_gap_ms,
            marks=self._marks,
            clears=self._clears,
            digits_sent=self._script.digits_sent,
            ended_by=self._ended_by,
            close_code=self._socket.close_code,
            duration_ms=(self._ended_at - started_at) * 1000,
            failure=self._failure or self._silence() or self._missing_answer(),
        )

    # What the bot did not do

    def _silence(self) -> str | None:
        if self._listener.sounds:
            return None
        heard = ""
        if received := self._playback.received_samples:
            heard = f" (it sent {received / self._format.sample_rate:.1f} s of audio that is silent)"
        if self._ended_by == "bot":
            return f"the bot ended the call before it made a sound ({self._socket.close_code}){heard}"
        return f"the bot never made a sound{heard}"

    def _missing_answer(self) -> str | None:
        if self._script.failure:
            return self._script.failure
        number = self._script.unanswered()
        if number is not None:
            who = "the bot ended the call" if self._ended_by == "bot" else "the call was over"
            return f"{who} before the bot answered turn {number}"
        number = self._script.unfinished()
        if number is not None and self._ended_by == "bot":
            return f"the bot ended the call before the caller's turn {number} was over"
        return None

    # The stream's start

    async def _start(self) -> None:
        call = self._call
        started = StreamStarted(
            stream_id=call.stream_id,
            call_id=call.call_id,
            account_id=call.account_id,
            from_number=call.from_number,
            to_number=call.to_number,
            format=self._format,
            parameters=dict(self._request.parameters),
        )
        from websockets.exceptions import ConnectionClosed

        # A bot that has closed already is noticed by the reader.
        with suppress(ConnectionClosed):
            with suppress(LocalProtocolError):
                await self._socket.send(self._stream.send(Connected()))
            await self._socket.send(self._stream.send(started))
        now = self._clock.now()
        self._journal.started_at = now
        self._playback = Playback(self._format.sample_rate, now)
        self._journal.tell("started", f"stream {call.stream_id} of call {call.call_id} has started")

    # What the bot sends

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            async for message in self._socket:
                if self._ended_by is None:
                    self._take(message)
        if self._ended_at is None:
            self._ended_at = self._clock.now()

    def _take(self, message: str | bytes) -> None:
        try:
            event: Event | None = self._stream.receive(message)
        except RemoteProtocolError as error:
            event = None
            self._journal.find("M1", "fail", error.message, kind=error.kind)
        for found in self._stream.findings():
            self._journal.find(found.id, found.level, found.message)
        now = self._clock.now()
        if isinstance(event, Audio):
            self._take_audio(event.payload, now)
        elif isinstance(event, Mark):
            self._take_mark(event.name, now)
        elif isinstance(event, Clear):
            self._take_clear(now)

    def _take_audio(self, payload: bytes, now: float) -> None:
        try:
            pcm = self._format.decode(payload)
        except ValueError as error:
            self._journal.find("M1", "fail", f"audio that cannot be decoded: {error}", kind="decode")
            return
        discarded_ms = self._playback.discarded_ms
        self._return_marks(self._playback.add_audio(pcm, now))
        if self._playback.discarded_ms > discarded_ms:
            text = f"more than ten minutes of audio were queued; {self._title} throws the rest away (error 31931)"
            self._journal.find("M2", "fail", text)

    def _take_mark(self, name: str, now: float) -> None:
        self._marks += 1
        if name in self._mark_names:
            self._journal.find("M4", "warn", "the bot used the name of a mark again", kind="repeated")
        self._mark_names.add(name)
        self._return_marks(self._playback.add_mark(name, now))

    def _take_clear(self, now: float) -> None:
        self._clears += 1
        # What was played until now leaves the queue first, and is not cleared.
        self._return_marks(self._playback.advance(now))
        self._journal.tell("clear", f"the bot cleared {self._playback.queued_ms:.0f} ms of queued audio")
        self._return_marks(self._playback.clear(now))
        # Only some providers say that they have cleared.
        with suppress(LocalProtocolError):
            self._post(Cleared())

    def _return_marks(self, names: list[str]) -> None:
        for name in names:
            self._post(Mark(name))
            self._journal.tell("mark", f"mark {name[:60]!r} was reached")

    # What the caller sends

    def _post(self, event: Event) -> None:
        self._outbox.put_nowait(self._stream.send(event))

    async def _send_all(self) -> None:
        from websockets.exceptions import ConnectionClosed

        with suppress(ConnectionClosed):
            while (message := await self._outbox.get()) is not None:
                await self._socket.send(message)

    async def _talk(self, reader: asyncio.Task[None]) -> None:
        """Keep the call going until it is to be ended, and say who ends it."""
        assert self._journal.started_at is not None
        limit_ms = None if self._config.duration_s is None else self._config.duration_s * 1000
        backlog = int(self._patience.backlog_s * 1000 / STEP_MS)
        step = 0
        while True:
            step += 1
            await self._clock.sleep_until(self._journal.started_at + step * STEP_MS / 1000)
            if reader.done() or self._socket.protocol.close_rcvd is not None:
                await self._take_the_rest(reader)
                self._ended_by = "bot"
                return
            if self._hung_up_by_rest:
                self._ended_by = "bot"
                return
            self._step(step * STEP_MS)
            if self._outbox.qsize() > backlog:
                self._failure = f"the bot does not read its stream: {self._patience.backlog_s:g} s of audio wait for it"
                self._ended_by = "caller"
                return
            if self._script.done if limit_ms is None else step * STEP_MS >= limit_ms:
                self._ended_by = "caller"
                return

    async def _take_the_rest(self, reader: asyncio.Task[None]) -> None:
        """Take what came before the bot's close; a server that does not end the connection after it is not awaited."""
        if self._ended_at is None:
            self._ended_at = self._clock.now()
        await asyncio.wait([reader], timeout=min(1.0, self._patience.close_s))
        if reader.done():
            reader.result()

    def _step(self, now_ms: float) -> None:
        self._hear(self._clock.now())
        self._tell_sounds(now_ms)
        did = self._script.step(now_ms, audible_queued=self._playback.audible_ms > 0)
        step_bytes = 2 * (self._format.sample_rate * STEP_MS // 1000)
        pcm = did.pcm + bytes(step_bytes - len(did.pcm))
        if self._config.record is not None:
            self._caller_pcm += pcm
        self._frame += pcm
        if len(self._frame) >= self._frame_steps * step_bytes:
            self._post(Audio(self._format.encode(self._frame)))
            self._frame = b""
            self._sent_frames += 1
        for kind, text in did.notes:
            self._journal.tell(kind, text)
        for digit in did.digits:
            self._post(Digit(digit))
            self._journal.tell("digit", f"the caller presses {digit}")

    def _hear(self, now: float) -> None:
        self._return_marks(self._playback.advance(now))
        heard = self._playback.take_heard()
        self._listener.feed(heard)
        if self._config.record is not None:
            self._bot_pcm += heard

    def _tell_sounds(self, now_ms: float) -> None:
        sounds = self._listener.sounds
        if len(sounds) > self._told_sounds and not self._talking:
            self._talking = True
            self._journal.tell("bot-speaks", "the bot speaks", at_ms=sounds[self._told_sounds].start_ms)
        self._told_sounds = len(sounds)
        if self._talking and self._listener.silent_ms(now_ms) >= SILENCE_MS:
            self._talking = False
            self._journal.tell("bot-silent", "the bot is silent", at_ms=sounds[-1].end_ms)

    # The end

    async def _end(self, sender: asyncio.Task[None]) -> None:
        if self._hung_up_by_rest or self._ended_by == "caller":
            if self._hung_up_by_rest:
                self._judge_lost_audio("hung up")
            await self._hang_up(sender)
        else:
            assert self._ended_at is not None
            self._hear(self._ended_at)
            await self._let_go()
            self._judge_lost_audio("closed the call")
            self._judge_close()
        self._listener.flush()
        lead_ms = self._playback.peak_ms
        if lead_ms > MAX_LEAD_MS:
            text = f"the bot sent audio {lead_ms / 1000:.1f} s ahead of real time"
            self._journal.find("M2", "warn", f"{text}; what is queued plays on unless the bot clears it")
        if underruns := self._playback.underruns:
            times = "once" if underruns == 1 else f"{underruns} times"
            self._journal.find("M2", "warn", f"the bot's sound broke off {times}: its audio came too late")

    async def _hang_up(self, sender: asyncio.Task[None]) -> None:
        who = "the bot hangs up through the REST API" if self._hung_up_by_rest else "the caller hangs up"
        self._journal.tell("hang-up", who)
        began = self._ended_at = self._clock.now()
        # Not every provider says that the call is over before it closes the socket.
        with suppress(LocalProtocolError):
            self._post(StreamStopped(reason="callended"))
        self._outbox.put_nowait(None)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.close_s):
                await asyncio.shield(sender)
                await self._socket.close(1000)
        protocol = self._socket.protocol
        if protocol.close_rcvd is None and self._clock.now() - began >= 0.9 * self._patience.close_s:
            text = f"the bot's server did not let go of the call within {self._patience.close_s:g} s of the hang-up"
            self._journal.find("E1", "fail", text)
        await self._let_go()
        self._tell_closed()

    async def _let_go(self) -> None:
        """Close the connection, whatever the other end does about it."""
        self._socket.transport.abort()
        await self._socket.wait_closed()

    def _judge_lost_audio(self, how: str) -> None:
        lost_ms = self._playback.audible_ms
        if lost_ms > MAX_LOST_MS:
            text = f"the bot {how} with {lost_ms / 1000:.1f} s of its audio unplayed: the caller never hears it"
            self._journal.find("E2", "fail", text)
            self._failure = self._failure or text

    def _judge_close(self) -> None:
        socket = self._socket
        code, reason = socket.close_code, (socket.close_reason or "")[:200]
        sent = socket.protocol.close_sent
        self._tell_closed()
        if sent is not None and not socket.protocol.close_rcvd_then_sent:
            # The only closes of ours before a hang-up are the ones that the WebSocket protocol demands.
            text = f"the bot broke the WebSocket protocol ({sent.code}: {sent.reason or 'no reason'})"
            self._journal.find("M1", "fail", text)
            self._failure = text
        elif code not in _CODES_IN_ORDER:
            text = _CODES.get(code or 1006, f"the bot closed the call with {code}")
            self._failure = f"{text} ({reason})" if reason else text
        elif self._request.then:
            self._journal.tell("note", f"a real call goes on with: {'; '.join(self._request.then)}")

    def _tell_closed(self) -> None:
        code, reason = self._socket.close_code, (self._socket.close_reason or "")[:200]
        words = f"{code} {reason}".rstrip()
        self._journal.tell("closed", f"the stream is closed ({words})")
