"""
The media stream of a simulated call: sends the caller's audio, plays the bot's, and ends the call.

Frame `n` carries the caller's sound of the 20 ms before it is sent, as a telephone network's does: what is said
at a time cannot be on the wire earlier. All of it runs by one absolute clock, so that a stall is caught up with
and never shifts what follows.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from wsvoice.audio import resample, write_wav
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.call_control import CallFlow
from wsvoice.dial.carrier_stream import Line
from wsvoice.dial.checks import BARGE_IN_MS, MAX_LEAD_MS, MAX_LOST_MS, RESPONSE_WARN_MS
from wsvoice.dial.clock import Clock
from wsvoice.dial.playback import MAX_MARK_NAMES, MAX_MARKS, Playback
from wsvoice.dial.probe import Hazards
from wsvoice.dial.report import CallReport, EndedBy
from wsvoice.dial.script import SILENCE_MS, STEP_MS, Speaker
from wsvoice.dial.sound_detection import Listener
from wsvoice.dial.target import shortened
from wsvoice.dial.timeline import Journal
from wsvoice.errors import DialError, RemoteProtocolError
from wsvoice.providers.base import Behaviour, Command, RepliesToErrors, Simulator, StreamRequest, StreamStatus
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Digit,
    Event,
    FlowControl,
    Mark,
    SendDigits,
    StreamStarted,
    StreamStopped,
)

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

#: How long a call without a duration of its own may last: one that is not done by then never is.
MAX_CALL_S = 300.0
#: How many names of marks and times of clears are remembered; a bot may send as many as it likes.
REMEMBERED = 10_000
#: How often a provider that does dials the stream again when the bot has closed it.
MAX_RECONNECTS = 3

# So far a call whose process was held up may be beyond its time: what was due is still done.
_LATE_MS = 5000.0

_CODES_IN_ORDER = (1000, 1005)
_CODES = {
    1001: "the server stopped during the call (1001)",
    1006: "the connection broke: the bot's end went away without closing it (1006)",
    1008: "the bot refused the call: it closed it with 1008",
    1009: "the bot took a message for too large: it closed the call with 1009",
    1011: "the bot crashed (it closed the call with 1011)",
    1012: "the server stopped during the call (1012)",
    1013: "the bot's server is overloaded: it closed the call with 1013",
}


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long the conversation waits for the other end.

    Attributes:
        call_s: For a call that has no duration of its own to be done.
        close_s: For the end of the closing handshake.
        backlog_s: How much audio may wait for a bot that does not read it.
    """

    call_s: float = MAX_CALL_S
    close_s: float = 5.0
    backlog_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Dialogue:
    """
    What is held in a conversation.

    Attributes:
        provider: Who streams.
        call: The call.
        request: The stream that was asked for.
        listener: What hears the bot, at the rate of the bot's audio.
        speaker: What the caller says.
        behaviour: What the caller does differently.
        quirks: What the provider's stream does differently.
        hazards: What the bot is tried with first, or ``None``.
        open_line: Opens the WebSocket again, for a provider that dials a stream which the bot has closed.
        new_stream_id: Invents the id that the stream has then.
        flow: How the call goes on when the bot has closed a stream, where a document says it.
    """

    provider: Simulator
    call: Call
    request: StreamRequest
    listener: Listener
    speaker: Speaker
    behaviour: Behaviour
    quirks: Mapping[str, str]
    hazards: Hazards | None
    open_line: Callable[[StreamRequest], Awaitable[ClientConnection]]
    new_stream_id: Callable[[], str]
    flow: CallFlow | None = None


class Conversation:
    """One call's media, from the start of its first stream to the end of its last."""

    def __init__(
        self,
        dialogue: Dialogue,
        socket: ClientConnection,
        config: DialConfig,
        *,
        journal: Journal,
        clock: Clock,
        patience: Patience,
    ) -> None:
        self._provider = dialogue.provider
        self._call = dialogue.call
        self._request = dialogue.request
        self._listener = dialogue.listener
        self._speaker = dialogue.speaker
        self._behaviour = dialogue.behaviour
        self._quirks = dialogue.quirks
        self._hazards = dialogue.hazards
        self._is_paused = False
        self._open_line = dialogue.open_line
        self._config = config
        self._new_stream_id = dialogue.new_stream_id
        self._flow = dialogue.flow
        self._journal = journal
        self._clock = clock
        self._patience = patience
        # What the caller sends, and what the bot does.
        self._format = self._request.format
        self._bot_format = self._request.outbound_format or self._request.format
        self._frame_steps = self._behaviour.frame_ms // STEP_MS
        # Seeded, so that a call that went wrong can be repeated.
        self._chance = random.Random(0)
        self._line = self._new_line(socket)
        self._reconnects = 0
        self._failure: str | None = None
        self._ended_by: EndedBy | None = None
        self._ended_at: float | None = None
        #: Unix time of the caller's hang-up; ``None`` if the bot ended the call.
        self.hung_up_at: float | None = None
        self._hung_up_by_rest = False
        # Between two streams: what the call goes on with, once its document is there.
        self._next: asyncio.Task[StreamRequest | None] | None = None
        self._between_streams = False
        self._update: Command | None = None
        self._talking = False
        self._told_sounds = 0
        self._sent_frames = 0
        self._marks = 0
        # Of a name only its hash: it may be as long as a message.
        self._mark_names: set[int] = set()
        self._clears = 0
        self._cleared_ms: deque[float] = deque(maxlen=REMEMBERED)
        self._tried_until_ms: float | None = None
        # Both sides of the recording, and the caller's frame that is being filled.
        self._caller_pcm = bytearray()
        self._bot_pcm = bytearray()
        self._frame = b""

    async def run(self, *, on_started: Callable[[], Awaitable[None]] | None = None) -> None:
        """
        Hold the conversation.

        A cancellation hangs up in good order before it goes on.

        Args:
            on_started: Awaited once the stream has started, while the conversation goes on.
        """
        started = False
        told: asyncio.Future[None] | None = None
        try:
            await asyncio.sleep(self._behaviour.start_delay_s)
            started = await self._start()
            if on_started is not None:
                told = asyncio.ensure_future(on_started())
            await self._talk()
            await self._end()
        except asyncio.CancelledError:
            if started and self._ended_by is None:
                self._ended_by = "caller"
                await self._hang_up()
            raise
        finally:
            if told is not None:
                await asyncio.wait([told])
            if self._next is not None:
                self._next.cancel()
            await self._line.let_go()

    @property
    def over(self) -> bool:
        """Whether the stream was started and has ended."""
        return self._ended_at is not None

    def hang_up(self) -> None:
        """End the call for the bot, which asked for it through the REST API."""
        self._hung_up_by_rest = True

    def update(self, command: Command) -> None:
        """Go on with another document, which the bot asked for through the REST API."""
        self._update = command

    def record(self) -> str | None:
        """
        Write the recording, if one is wanted, and return its path.

        Raises:
            OSError: If it cannot be written.
        """
        path = self._config.record
        if path is None:
            return None
        rates = (self._format.sample_rate, self._bot_format.sample_rate)
        sides = [
            resample(bytes(pcm), rate, max(rates))
            for pcm, rate in zip((self._caller_pcm, self._bot_pcm), rates, strict=True)
        ]
        write_wav(path, sides, max(rates))
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
            turns=self._speaker.turns(),
            sent_audio_ms=self._sent_frames * self._frame_steps * STEP_MS,
            received_audio_ms=round(received * 1000 / self._bot_format.sample_rate),
            underruns=self._playback.underruns,
            max_gap_ms=self._playback.max_gap_ms,
            marks=self._marks,
            clears=self._clears,
            digits_sent=self._speaker.digits_sent,
            ended_by=self._ended_by,
            close_code=self._line.socket.close_code,
            duration_ms=(self._ended_at - started_at) * 1000,
            failure=self._failure or self._silence() or self._speaker.missing(bot_ended=self._ended_by == "bot"),
        )

    def _silence(self) -> str | None:
        if self._listener.sounds:
            return None
        heard = ""
        if received := self._playback.received_samples:
            heard = f" (it sent {received / self._bot_format.sample_rate:.1f} s of audio that is silent)"
        if self._ended_by == "bot":
            return f"the bot ended the call before it made a sound ({self._line.socket.close_code}){heard}"
        return f"the bot never made a sound{heard}"

    # The stream's start

    def _new_line(self, socket: ClientConnection) -> Line:
        return Line(
            socket,
            self._provider.stream(self._quirks),
            self._take,
            clock=self._clock,
            reorder=self._behaviour.reorder,
            chance=self._chance,
        )

    async def _start(self) -> bool:
        """Start the stream, and the clock with the first one."""
        call = self._call
        await self._line.start(
            StreamStarted(
                stream_id=call.stream_id,
                call_id=call.call_id,
                account_id=call.account_id,
                from_number=call.from_number,
                to_number=call.to_number,
                format=self._format,
                parameters=dict(self._request.parameters),
            )
        )
        self._line.stream.outbound_format = self._bot_format
        if self._journal.started_at is None:
            now = self._clock.now()
            self._journal.started_at = now
            self._playback = Playback(self._bot_format.sample_rate, now, limit_s=self._provider.queue_limit_s)
        self._journal.tell(
            "started", f"stream {shortened(call.stream_id)} of call {shortened(call.call_id)} has started"
        )
        self._tell_status("started")
        return True

    def _tell_status(self, status: StreamStatus, error: str = "") -> None:
        if self._flow is not None:
            self._flow.tell(self._call, self._request, status, error=error)

    async def _reconnect(self) -> bool:
        """Dial the stream again, which the bot has closed, as a provider does that was not told otherwise."""
        title = self._provider.title
        if not self._request.reconnects or self._reconnects >= MAX_RECONNECTS:
            return False
        self._reconnects += 1
        self._tell_closed()
        text = f"{title} dials a stream again that the bot has closed, unless the answer forbids it: no hang-up"
        self._journal.find("W4", "warn", text)
        await self._line.let_go()
        try:
            socket = await self._open_line(self._request)
        except DialError as error:
            self._journal.tell("note", f"the stream could not be dialled again: {error.message}")
            return False
        self._call = replace(self._call, stream_id=self._new_stream_id())
        self._line = self._new_line(socket)
        await self._start()
        return True

    async def _leave_stream(self) -> bool:
        """Let go of a stream that the bot has closed if a document says how the call goes on; false if none does."""
        request, update = self._request, self._update
        if self._flow is None or not (request.action or request.rest or update):
            return False
        await self._line.let_go()
        # Only now it is known for sure.
        if self._line.socket.close_code not in _CODES_IN_ORDER:
            return False
        self._hear(self._line.ended_at or self._clock.now())
        self._tell_closed()
        self._judge_lost_audio("closed the stream")
        self._playback.clear(self._clock.now())
        self._between_streams = True
        if update is not None:
            # The bot has given the call another document, and need not wait until its stream is ended for it.
            self._update = None
            self._next = asyncio.create_task(self._flow.update(self._call, update))
        else:
            self._next = asyncio.create_task(self._flow.after(self._call, request))
        return True

    async def _stop_stream(self, command: Command) -> None:
        """End the stream because the call goes on with another document."""
        self._update = None
        if self._flow is None:
            return
        # What was played until now has been heard; the rest is gone with the stream.
        self._hear(self._clock.now())
        self._playback.clear(self._clock.now())
        await self._line.hang_up(StreamStopped(reason="stopped"), self._patience.close_s)
        await self._line.let_go()
        self._tell_closed()
        self._between_streams = True
        self._next = asyncio.create_task(self._flow.update(self._call, command))

    async def _enter_stream(self, request: StreamRequest | None) -> bool:
        """Go on with the stream of another document; false if there is none, or it does not open."""
        if request is None:
            return False
        outbound = request.outbound_format or request.format
        rates = (self._format.sample_rate, self._bot_format.sample_rate)
        if (request.format.sample_rate, outbound.sample_rate) != rates:
            self._journal.tell("note", "the call goes on at another sample rate, which a test call cannot")
            return False
        self._request = request
        self._call = replace(self._call, stream_id=self._new_stream_id())
        try:
            socket = await self._open_line(request)
        except DialError as error:
            self._failure = error.message
            self._tell_status("failed", error.message)
            return False
        self._format, self._bot_format = request.format, outbound
        self._mark_names.clear()
        self._between_streams = False
        self._line = self._new_line(socket)
        return await self._start()

    # What the bot sends

    def _take(self, message: str | bytes) -> None:
        if self._ended_by is not None:
            return
        stream = self._line.stream
        try:
            event: Event | None = stream.receive(message)
        except RemoteProtocolError as error:
            event = None
            self._journal.find("M1", "fail", error.message, kind=error.kind)
            if isinstance(stream, RepliesToErrors) and (reply := stream.error_reply(error)) is not None:
                self._line.post(reply)
        for found in stream.findings():
            self._journal.find(found.id, found.level, found.message)
        now = self._clock.now()
        if isinstance(event, Audio):
            self._take_audio(event.payload, now)
        elif isinstance(event, Mark):
            self._take_mark(event.name, now)
        elif isinstance(event, Clear):
            self._take_clear(now)
        elif isinstance(event, SendDigits):
            self._journal.tell("digit", f"the bot presses {event.digits[:60]}")

    def _take_audio(self, payload: bytes, now: float) -> None:
        try:
            pcm = self._bot_format.decode(payload)
        except ValueError as error:
            self._journal.find("M1", "fail", f"audio that cannot be decoded: {error}", kind="decode")
            return
        discarded_ms = self._playback.discarded_ms
        self._return_marks(self._playback.add_audio(pcm, now))
        self._control_flow()
        if self._playback.discarded_ms > discarded_ms:
            limit = f"{self._provider.queue_limit_s:g} s"
            text = f"more than {limit} of audio were queued; {self._provider.title} throws the rest away"
            self._journal.find("M2", "fail", text)

    def _control_flow(self) -> None:
        """Ask the bot for a pause, or for more, where the company does."""
        if self._provider.pauses_at_s is None:
            return
        most_s, least_s = self._provider.pauses_at_s
        queued_s = self._playback.queued_ms / 1000
        if queued_s >= most_s if not self._is_paused else queued_s <= least_s:
            self._is_paused = not self._is_paused
            self._line.post(FlowControl(self._is_paused))

    def _take_mark(self, name: str, now: float) -> None:
        self._marks += 1
        if hash(name) in self._mark_names:
            self._journal.find("M4", "warn", "the bot used the name of a mark again", kind="repeated")
        elif len(self._mark_names) < REMEMBERED:
            self._mark_names.add(hash(name))
        self._return_marks(self._playback.add_mark(name, now))
        if self._playback.discarded_marks:
            text = f"more than {MAX_MARKS} marks, or {MAX_MARK_NAMES // 1024} KiB of their names, wait to be reached"
            self._journal.find("M4", "fail", text)

    def _take_clear(self, now: float) -> None:
        self._clears += 1
        self._cleared_ms.append(self._journal.now_ms())
        # What was played until now leaves the queue first, and is not cleared.
        self._return_marks(self._playback.advance(now))
        # Many bots clear at every word of the caller's, to be on the safe side.
        if (queued_ms := self._playback.queued_ms) >= 1:
            self._journal.tell("clear", f"the bot cleared {queued_ms:.0f} ms of queued audio")
        cleared = self._playback.clear(now)
        if self._behaviour.return_cleared_marks:
            self._return_marks(cleared)
        # Only some providers say that they have cleared.
        self._line.post(Cleared())

    def _return_marks(self, names: list[str]) -> None:
        for name in names:
            self._line.post(Mark(name))
            self._journal.tell("mark", f"mark {name[:60]!r} was reached")

    # What the caller sends

    async def _talk(self) -> None:
        """Keep the call going until it is to be ended, and say who ends it."""
        assert self._journal.started_at is not None
        duration_ms = None if self._config.duration_s is None else self._config.duration_s * 1000
        limit_ms = self._patience.call_s * 1000 if duration_ms is None else duration_ms
        backlog = int(self._patience.backlog_s * 1000 / STEP_MS)
        step = 0
        while True:
            step += 1
            await self._clock.sleep_until(self._journal.started_at + step * STEP_MS / 1000)
            if self._next is not None:
                if self._next.done():
                    request, self._next = self._next.result(), None
                    if not await self._enter_stream(request):
                        self._ended_by = "bot"
                        self._ended_at = self._line.ended_at
                        return
            elif self._line.is_closed:
                await self._line.take_the_rest(min(1.0, self._patience.close_s))
                if self._hung_up_by_rest or not (await self._reconnect() or await self._leave_stream()):
                    self._ended_by = "bot"
                    self._ended_at = self._line.ended_at
                    return
            if self._hung_up_by_rest:
                self._ended_by = "bot"
                return
            if self._update is not None and self._next is None:
                await self._stop_stream(self._update)
            self._step(step * STEP_MS)
            self._journal.advance(step * STEP_MS)
            if self._line.backlog > backlog:
                self._failure = f"the bot does not read its stream: {self._patience.backlog_s:g} s of audio wait for it"
                self._ended_by = "caller"
                return
            if self._speaker.done and (duration_ms is None or self._speaker.leaves):
                self._ended_by = "caller"
                return
            # By the clock too: steps that each take long must not stretch the call.
            if step * STEP_MS >= limit_ms or self._journal.now_ms() >= limit_ms + _LATE_MS:
                self._ended_by = "caller"
                if duration_ms is None:
                    self._failure = (
                        f"the call was not done within {self._patience.call_s:g} s, and was hung up;"
                        " --duration sets another time"
                    )
                return

    def _step(self, now_ms: float) -> None:
        self._hear(self._clock.now())
        self._tell_sounds(now_ms)
        pcm = b""
        if not self._is_trying(now_ms):
            did = self._speaker.step(now_ms, audible_queued=self._playback.audible_ms > 0)
            pcm = did.pcm
            for kind, text in did.notes:
                self._journal.tell(kind, text)
            self._press(did.digits)
        self._say(pcm, now_ms)

    def _is_trying(self, now_ms: float) -> bool:
        """Whether the bot is still being tried with what must not end a call."""
        if self._hazards is None or self._tried_until_ms is not None:
            return False
        if self._hazards.over(now_ms):
            self._tried_until_ms = now_ms
            for hazard in self._hazards.said:
                self._journal.tell("note", f"the call survived {hazard}")
            return False
        return True

    def _say(self, pcm: bytes, now_ms: float) -> None:
        step_bytes = 2 * (self._format.sample_rate * STEP_MS // 1000)
        pcm += bytes(step_bytes - len(pcm))
        if self._config.record is not None:
            self._caller_pcm += pcm
        self._frame += pcm
        if len(self._frame) < self._frame_steps * step_bytes:
            return
        frame, self._frame = self._frame, b""
        if self._next is not None:
            return  # Nobody listens between two streams.
        if self._behaviour.silent or (self._hazards is not None and self._hazards.is_quiet(now_ms)):
            return
        self._sent_frames += 1
        message = self._line.stream.send(Audio(self._format.encode(frame)))
        for each in [message] if self._hazards is None else self._hazards.media(message, now_ms):
            self._line.post_media(each)

    def _press(self, digits: str) -> None:
        for digit in digits:
            self._line.post(Digit(digit, at=time.time()))
            self._journal.tell("digit", f"the caller presses {digit}")

    def _hear(self, now: float) -> None:
        self._return_marks(self._playback.advance(now))
        self._control_flow()
        heard = self._playback.take_heard()
        self._listener.feed(heard)
        self._speaker.hear(heard)
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

    async def _end(self) -> None:
        if self._between_streams:
            # The last one was closed in good order, and nothing has come of the next.
            if self._ended_by == "caller":
                self._journal.tell("hang-up", "the caller hangs up")
            self._ended_at = self._ended_at or self._clock.now()
            await self._line.let_go()
        elif self._hung_up_by_rest or self._ended_by == "caller":
            if self._hung_up_by_rest:
                self._judge_lost_audio("hung up")
            await self._hang_up()
        else:
            assert self._ended_at is not None
            self._hear(self._ended_at)
            await self._line.let_go()
            self._judge_lost_audio("closed the call")
            self._judge_close()
        self._listener.flush()
        self._judge_pace()
        self._judge_answers()
        self._judge_interruption()
        self._judge_survival()

    async def _hang_up(self) -> None:
        if not self._hung_up_by_rest:
            self._journal.tell("hang-up", "the caller hangs up")
            self.hung_up_at = time.time()
        patience_s = self._patience.close_s
        self._ended_at = self._clock.now()
        if not await self._line.hang_up(StreamStopped(reason="callended"), patience_s):
            text = f"the bot's server did not let go of the call within {patience_s:g} s of the hang-up"
            self._journal.find("E1", "fail", text)
        await self._line.let_go()
        self._tell_closed()

    def _judge_pace(self) -> None:
        lead_ms = self._playback.peak_ms
        if lead_ms > MAX_LEAD_MS:
            text = f"the bot sent audio {lead_ms / 1000:.1f} s ahead of real time"
            self._journal.find("M2", "warn", f"{text}; what is queued plays on unless the bot clears it")
        if underruns := self._playback.underruns:
            times = "once" if underruns == 1 else f"{underruns} times"
            self._journal.find("M2", "warn", f"the bot's sound broke off {times}: its audio came too late")

    def _judge_answers(self) -> None:
        for number, turn in enumerate(self._speaker.turns(), 1):
            if turn.response_ms is not None and turn.response_ms > RESPONSE_WARN_MS:
                seconds = turn.response_ms / 1000
                text = f"the bot took {seconds:.1f} s to answer turn {number}"
                self._journal.find("S3", "warn", text, kind="slow")

    def _judge_interruption(self) -> None:
        at_ms = self._speaker.interrupted_at_ms
        if at_ms is None:
            return
        sound = next((sound for sound in self._listener.sounds if sound.start_ms <= at_ms < sound.end_ms), None)
        if sound is None or sound.end_ms - at_ms <= BARGE_IN_MS:
            return
        cleared_ms = next((cleared - at_ms for cleared in self._cleared_ms if cleared >= at_ms), None)
        if cleared_ms is None or cleared_ms > BARGE_IN_MS:
            cleared = "it cleared nothing" if cleared_ms is None else f"it cleared its audio after {cleared_ms:.0f} ms"
            text = f"the bot spoke on for {sound.end_ms - at_ms:.0f} ms when the caller interrupted it; {cleared}"
            self._journal.find("M3", "warn", text)

    def _judge_survival(self) -> None:
        hazards = self._hazards
        if hazards is None or not hazards.said:
            return
        if self._tried_until_ms is None:
            if self._ended_by == "bot":
                text = f"the bot ended the call after {hazards.said[-1]}"
                self._journal.find("S2", "fail", text)
        elif self._speaker.failure and self._listener.since(self._tried_until_ms) is None:
            text = f"nothing was heard of the bot any more after {', '.join(hazards.said)}"
            self._journal.find("S2", "fail", text)

    def _judge_lost_audio(self, how: str) -> None:
        lost_ms = self._playback.audible_ms
        if lost_ms > MAX_LOST_MS:
            text = f"the bot {how} with {lost_ms / 1000:.1f} s of its audio unplayed: the caller never hears it"
            self._journal.find("E2", "fail", text)
            self._failure = self._failure or text

    def _judge_close(self) -> None:
        socket = self._line.socket
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
        socket = self._line.socket
        code = socket.close_code
        words = f"{code} {(socket.close_reason or '')[:200]}".rstrip()
        self._journal.tell("closed", f"the stream is closed ({words})")
        in_order = code in _CODES_IN_ORDER
        self._tell_status("stopped" if in_order else "failed", "" if in_order else f"closed with {words}")
