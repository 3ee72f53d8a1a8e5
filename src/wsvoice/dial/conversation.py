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
from wsvoice.dial.call_control import CallControl
from wsvoice.dial.carrier_stream import CarrierStream
from wsvoice.dial.checks import BARGE_IN_MS, MAX_LEAD_MS, MAX_LOST_MS, RESPONSE_WARN_MS
from wsvoice.dial.clock import Clock
from wsvoice.dial.playback import MAX_MARK_NAMES, MAX_MARKS, Playback
from wsvoice.dial.probe import Probe
from wsvoice.dial.report import CallReport, EndedBy
from wsvoice.dial.script import SILENCE_MS, STEP_MS, Speaker
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.target import shortened
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
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
class CallSetup:
    """
    What is held in a conversation.

    Attributes:
        provider: Who streams.
        call: The call.
        request: The stream that was asked for.
        detector: What hears the bot, at the rate of the bot's audio.
        speaker: What the caller says.
        behaviour: What the caller does differently.
        quirks: What the provider's stream does differently.
        probe: What the bot is tried with first, or ``None``.
        open_stream: Opens the WebSocket again, for a provider that dials a stream which the bot has closed.
        new_stream_id: Invents the id that the stream has then.
        call_control: How the call goes on when the bot has closed a stream, where a document says it.
    """

    provider: Simulator
    call: Call
    request: StreamRequest
    detector: SoundDetector
    speaker: Speaker
    behaviour: Behaviour
    quirks: Mapping[str, str]
    probe: Probe | None
    open_stream: Callable[[StreamRequest], Awaitable[ClientConnection]]
    new_stream_id: Callable[[], str]
    call_control: CallControl | None = None


class Conversation:
    """One call's media, from the start of its first stream to the end of its last."""

    def __init__(
        self,
        setup: CallSetup,
        socket: ClientConnection,
        config: DialConfig,
        *,
        timeline: Timeline,
        clock: Clock,
        timeouts: Timeouts,
    ) -> None:
        self._provider = setup.provider
        self._call = setup.call
        self._request = setup.request
        self._detector = setup.detector
        self._speaker = setup.speaker
        self._behaviour = setup.behaviour
        self._quirks = setup.quirks
        self._probe = setup.probe
        self._is_paused = False
        self._open_stream = setup.open_stream
        self._config = config
        self._new_stream_id = setup.new_stream_id
        self._call_control = setup.call_control
        self._timeline = timeline
        self._clock = clock
        self._timeouts = timeouts
        # What the caller sends, and what the bot does.
        self._format = self._request.format
        self._bot_format = self._request.outbound_format or self._request.format
        self._frame_steps = self._behaviour.frame_ms // STEP_MS
        # Seeded, so that a call that went wrong can be repeated.
        self._rng = random.Random(0)
        self._carrier = self._new_carrier_stream(socket)
        self._reconnects = 0
        self._failure: str | None = None
        self._ended_by: EndedBy | None = None
        self._ended_at: float | None = None
        #: Unix time of the caller's hang-up; ``None`` if the bot ended the call.
        self.hung_up_at: float | None = None
        self._hung_up_by_api = False
        # Between two streams: what the call goes on with, once its document is there.
        self._next_stream: asyncio.Task[StreamRequest | None] | None = None
        self._between_streams = False
        self._update: Command | None = None
        self._bot_is_speaking = False
        self._reported_sounds = 0
        self._sent_frames = 0
        self._marks = 0
        # Of a name only its hash: it may be as long as a message.
        self._mark_names: set[int] = set()
        self._clears = 0
        self._cleared_ms: deque[float] = deque(maxlen=REMEMBERED)
        self._probed_until_ms: float | None = None
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
            await self._run_steps()
            await self._end()
        except asyncio.CancelledError:
            if started and self._ended_by is None:
                self._ended_by = "caller"
                await self._hang_up()
            raise
        finally:
            if told is not None:
                await asyncio.wait([told])
            if self._next_stream is not None:
                self._next_stream.cancel()
            await self._carrier.abort()

    @property
    def is_over(self) -> bool:
        """Whether the stream was started and has ended."""
        return self._ended_at is not None

    def hang_up(self) -> None:
        """End the call for the bot, which asked for it through the REST API."""
        self._hung_up_by_api = True

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
        started_at = self._timeline.started_at
        assert started_at is not None
        assert self._ended_at is not None
        sounds = self._detector.sounds
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
            close_code=self._carrier.socket.close_code,
            duration_ms=(self._ended_at - started_at) * 1000,
            failure=self._failure or self._silence() or self._speaker.missing(bot_ended=self._ended_by == "bot"),
        )

    def _silence(self) -> str | None:
        if self._detector.sounds:
            return None
        heard = ""
        if received := self._playback.received_samples:
            heard = f" (it sent {received / self._bot_format.sample_rate:.1f} s of audio that is silent)"
        if self._ended_by == "bot":
            return f"the bot ended the call before it made a sound ({self._carrier.socket.close_code}){heard}"
        return f"the bot never made a sound{heard}"

    # The stream's start

    def _new_carrier_stream(self, socket: ClientConnection) -> CarrierStream:
        return CarrierStream(
            socket,
            self._provider.stream(self._quirks),
            self._receive,
            clock=self._clock,
            reorder=self._behaviour.reorder,
            rng=self._rng,
        )

    async def _start(self) -> bool:
        """Start the stream, and the clock with the first one."""
        call = self._call
        await self._carrier.start(
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
        self._carrier.stream.outbound_format = self._bot_format
        if self._timeline.started_at is None:
            now = self._clock.now()
            self._timeline.started_at = now
            self._playback = Playback(self._bot_format.sample_rate, now, limit_s=self._provider.queue_limit_s)
        self._timeline.add(
            "started", f"stream {shortened(call.stream_id)} of call {shortened(call.call_id)} has started"
        )
        self._send_status("started")
        return True

    def _send_status(self, status: StreamStatus, error: str = "") -> None:
        if self._call_control is not None:
            self._call_control.send_status(self._call, self._request, status, error=error)

    async def _reconnect(self) -> bool:
        """Dial the stream again, which the bot has closed, as a provider does that was not told otherwise."""
        title = self._provider.title
        if not self._request.reconnects or self._reconnects >= MAX_RECONNECTS:
            return False
        self._reconnects += 1
        self._report_closed()
        text = f"{title} dials a stream again that the bot has closed, unless the answer forbids it: no hang-up"
        self._timeline.add_finding("W4", "warn", text)
        await self._carrier.abort()
        try:
            socket = await self._open_stream(self._request)
        except DialError as error:
            self._timeline.add("note", f"the stream could not be dialled again: {error.message}")
            return False
        self._call = replace(self._call, stream_id=self._new_stream_id())
        self._carrier = self._new_carrier_stream(socket)
        await self._start()
        return True

    async def _await_next_stream(self) -> bool:
        """Let go of a stream that the bot has closed if a document says how the call goes on; false if none does."""
        request, update = self._request, self._update
        if self._call_control is None or not (request.action or request.rest or update):
            return False
        await self._carrier.abort()
        # Only now it is known for sure.
        if self._carrier.socket.close_code not in _CODES_IN_ORDER:
            return False
        self._play(self._carrier.ended_at or self._clock.now())
        self._report_closed()
        self._check_lost_audio("closed the stream")
        self._playback.clear(self._clock.now())
        self._between_streams = True
        if update is not None:
            # The bot has given the call another document, and need not wait until its stream is ended for it.
            self._update = None
            self._next_stream = asyncio.create_task(self._call_control.update(self._call, update))
        else:
            self._next_stream = asyncio.create_task(self._call_control.after(self._call, request))
        return True

    async def _stop_stream(self, command: Command) -> None:
        """End the stream because the call goes on with another document."""
        self._update = None
        if self._call_control is None:
            return
        # What was played until now has been heard; the rest is gone with the stream.
        self._play(self._clock.now())
        self._playback.clear(self._clock.now())
        await self._carrier.hang_up(StreamStopped(reason="stopped"), self._timeouts.close_s)
        await self._carrier.abort()
        self._report_closed()
        self._between_streams = True
        self._next_stream = asyncio.create_task(self._call_control.update(self._call, command))

    async def _start_next_stream(self, request: StreamRequest | None) -> bool:
        """Go on with the stream of another document; false if there is none, or it does not open."""
        if request is None:
            return False
        outbound = request.outbound_format or request.format
        rates = (self._format.sample_rate, self._bot_format.sample_rate)
        if (request.format.sample_rate, outbound.sample_rate) != rates:
            self._timeline.add("note", "the call goes on at another sample rate, which a test call cannot")
            return False
        self._request = request
        self._call = replace(self._call, stream_id=self._new_stream_id())
        try:
            socket = await self._open_stream(request)
        except DialError as error:
            self._failure = error.message
            self._send_status("failed", error.message)
            return False
        self._format, self._bot_format = request.format, outbound
        self._mark_names.clear()
        self._between_streams = False
        self._carrier = self._new_carrier_stream(socket)
        return await self._start()

    # What the bot sends

    def _receive(self, message: str | bytes) -> None:
        if self._ended_by is not None:
            return
        stream = self._carrier.stream
        try:
            event: Event | None = stream.receive(message)
        except RemoteProtocolError as error:
            event = None
            self._timeline.add_finding("M1", "fail", error.message, kind=error.kind)
            if isinstance(stream, RepliesToErrors) and (reply := stream.error_reply(error)) is not None:
                self._carrier.post(reply)
        for found in stream.findings():
            self._timeline.add_finding(found.id, found.level, found.message)
        now = self._clock.now()
        if isinstance(event, Audio):
            self._receive_audio(event.payload, now)
        elif isinstance(event, Mark):
            self._receive_mark(event.name, now)
        elif isinstance(event, Clear):
            self._receive_clear(now)
        elif isinstance(event, SendDigits):
            self._timeline.add("digit", f"the bot presses {event.digits[:60]}")

    def _receive_audio(self, payload: bytes, now: float) -> None:
        try:
            pcm = self._bot_format.decode(payload)
        except ValueError as error:
            self._timeline.add_finding("M1", "fail", f"audio that cannot be decoded: {error}", kind="decode")
            return
        discarded_ms = self._playback.discarded_ms
        self._return_marks(self._playback.add_audio(pcm, now))
        self._control_flow()
        if self._playback.discarded_ms > discarded_ms:
            limit = f"{self._provider.queue_limit_s:g} s"
            text = f"more than {limit} of audio were queued; {self._provider.title} throws the rest away"
            self._timeline.add_finding("M2", "fail", text)

    def _control_flow(self) -> None:
        """Ask the bot for a pause, or for more, where the company does."""
        if self._provider.pauses_at_s is None:
            return
        most_s, least_s = self._provider.pauses_at_s
        queued_s = self._playback.queued_ms / 1000
        if queued_s >= most_s if not self._is_paused else queued_s <= least_s:
            self._is_paused = not self._is_paused
            self._carrier.post(FlowControl(self._is_paused))

    def _receive_mark(self, name: str, now: float) -> None:
        self._marks += 1
        if hash(name) in self._mark_names:
            self._timeline.add_finding("M4", "warn", "the bot used the name of a mark again", kind="repeated")
        elif len(self._mark_names) < REMEMBERED:
            self._mark_names.add(hash(name))
        self._return_marks(self._playback.add_mark(name, now))
        if self._playback.discarded_marks:
            text = f"more than {MAX_MARKS} marks, or {MAX_MARK_NAMES // 1024} KiB of their names, wait to be reached"
            self._timeline.add_finding("M4", "fail", text)

    def _receive_clear(self, now: float) -> None:
        self._clears += 1
        self._cleared_ms.append(self._timeline.now_ms())
        # What was played until now leaves the queue first, and is not cleared.
        self._return_marks(self._playback.advance(now))
        # Many bots clear at every word of the caller's, to be on the safe side.
        if (queued_ms := self._playback.queued_ms) >= 1:
            self._timeline.add("clear", f"the bot cleared {queued_ms:.0f} ms of queued audio")
        cleared = self._playback.clear(now)
        if self._behaviour.return_cleared_marks:
            self._return_marks(cleared)
        # Only some providers say that they have cleared.
        self._carrier.post(Cleared())

    def _return_marks(self, names: list[str]) -> None:
        for name in names:
            self._carrier.post(Mark(name))
            self._timeline.add("mark", f"mark {name[:60]!r} was reached")

    # What the caller sends

    async def _run_steps(self) -> None:
        """Keep the call going until it is to be ended, and say who ends it."""
        assert self._timeline.started_at is not None
        duration_ms = None if self._config.duration_s is None else self._config.duration_s * 1000
        limit_ms = self._timeouts.call_s * 1000 if duration_ms is None else duration_ms
        backlog = int(self._timeouts.backlog_s * 1000 / STEP_MS)
        step = 0
        while True:
            step += 1
            await self._clock.sleep_until(self._timeline.started_at + step * STEP_MS / 1000)
            if self._next_stream is not None:
                if self._next_stream.done():
                    request, self._next_stream = self._next_stream.result(), None
                    if not await self._start_next_stream(request):
                        self._ended_by = "bot"
                        self._ended_at = self._carrier.ended_at
                        return
            elif self._carrier.is_closed:
                await self._carrier.drain(min(1.0, self._timeouts.close_s))
                if self._hung_up_by_api or not (await self._reconnect() or await self._await_next_stream()):
                    self._ended_by = "bot"
                    self._ended_at = self._carrier.ended_at
                    return
            if self._hung_up_by_api:
                self._ended_by = "bot"
                return
            if self._update is not None and self._next_stream is None:
                await self._stop_stream(self._update)
            self._step(step * STEP_MS)
            self._timeline.advance(step * STEP_MS)
            if self._carrier.backlog > backlog:
                self._failure = f"the bot does not read its stream: {self._timeouts.backlog_s:g} s of audio wait for it"
                self._ended_by = "caller"
                return
            if self._speaker.done and (duration_ms is None or self._speaker.hangs_up_when_done):
                self._ended_by = "caller"
                return
            # By the clock too: steps that each take long must not stretch the call.
            if step * STEP_MS >= limit_ms or self._timeline.now_ms() >= limit_ms + _LATE_MS:
                self._ended_by = "caller"
                if duration_ms is None:
                    self._failure = (
                        f"the call was not done within {self._timeouts.call_s:g} s, and was hung up;"
                        " --duration sets another time"
                    )
                return

    def _step(self, now_ms: float) -> None:
        self._play(self._clock.now())
        self._report_sounds(now_ms)
        pcm = b""
        if not self._is_probing(now_ms):
            did = self._speaker.step(now_ms, audible_queued=self._playback.audible_ms > 0)
            pcm = did.pcm
            for kind, text in did.notes:
                self._timeline.add(kind, text)
            self._send_digits(did.digits)
        self._send_audio(pcm, now_ms)

    def _is_probing(self, now_ms: float) -> bool:
        """Whether the bot is still being tried with what must not end a call."""
        if self._probe is None or self._probed_until_ms is not None:
            return False
        if self._probe.is_over(now_ms):
            self._probed_until_ms = now_ms
            for hazard in self._probe.tried:
                self._timeline.add("note", f"the call survived {hazard}")
            return False
        return True

    def _send_audio(self, pcm: bytes, now_ms: float) -> None:
        step_bytes = 2 * (self._format.sample_rate * STEP_MS // 1000)
        pcm += bytes(step_bytes - len(pcm))
        if self._config.record is not None:
            self._caller_pcm += pcm
        self._frame += pcm
        if len(self._frame) < self._frame_steps * step_bytes:
            return
        frame, self._frame = self._frame, b""
        if self._next_stream is not None:
            return  # Nobody listens between two streams.
        if self._behaviour.silent or (self._probe is not None and self._probe.is_quiet(now_ms)):
            return
        self._sent_frames += 1
        message = self._carrier.stream.send(Audio(self._format.encode(frame)))
        for each in [message] if self._probe is None else self._probe.media(message, now_ms):
            self._carrier.post_media(each)

    def _send_digits(self, digits: str) -> None:
        for digit in digits:
            self._carrier.post(Digit(digit, at=time.time()))
            self._timeline.add("digit", f"the caller presses {digit}")

    def _play(self, now: float) -> None:
        self._return_marks(self._playback.advance(now))
        self._control_flow()
        heard = self._playback.take_heard()
        self._detector.feed(heard)
        self._speaker.hear(heard)
        if self._config.record is not None:
            self._bot_pcm += heard

    def _report_sounds(self, now_ms: float) -> None:
        sounds = self._detector.sounds
        if len(sounds) > self._reported_sounds and not self._bot_is_speaking:
            self._bot_is_speaking = True
            self._timeline.add("bot-speaks", "the bot speaks", at_ms=sounds[self._reported_sounds].start_ms)
        self._reported_sounds = len(sounds)
        if self._bot_is_speaking and self._detector.silent_ms(now_ms) >= SILENCE_MS:
            self._bot_is_speaking = False
            self._timeline.add("bot-silent", "the bot is silent", at_ms=sounds[-1].end_ms)

    # The end

    async def _end(self) -> None:
        if self._between_streams:
            # The last one was closed in good order, and nothing has come of the next.
            if self._ended_by == "caller":
                self._timeline.add("hang-up", "the caller hangs up")
            self._ended_at = self._ended_at or self._clock.now()
            await self._carrier.abort()
        elif self._hung_up_by_api or self._ended_by == "caller":
            if self._hung_up_by_api:
                self._check_lost_audio("hung up")
            await self._hang_up()
        else:
            assert self._ended_at is not None
            self._play(self._ended_at)
            await self._carrier.abort()
            self._check_lost_audio("closed the call")
            self._check_close()
        self._detector.flush()
        self._check_pace()
        self._check_answers()
        self._check_interruption()
        self._check_survival()

    async def _hang_up(self) -> None:
        if not self._hung_up_by_api:
            self._timeline.add("hang-up", "the caller hangs up")
            self.hung_up_at = time.time()
        close_s = self._timeouts.close_s
        self._ended_at = self._clock.now()
        if not await self._carrier.hang_up(StreamStopped(reason="callended"), close_s):
            text = f"the bot's server did not let go of the call within {close_s:g} s of the hang-up"
            self._timeline.add_finding("E1", "fail", text)
        await self._carrier.abort()
        self._report_closed()

    def _check_pace(self) -> None:
        lead_ms = self._playback.peak_ms
        if lead_ms > MAX_LEAD_MS:
            text = f"the bot sent audio {lead_ms / 1000:.1f} s ahead of real time"
            self._timeline.add_finding("M2", "warn", f"{text}; what is queued plays on unless the bot clears it")
        if underruns := self._playback.underruns:
            times = "once" if underruns == 1 else f"{underruns} times"
            self._timeline.add_finding("M2", "warn", f"the bot's sound broke off {times}: its audio came too late")

    def _check_answers(self) -> None:
        for number, turn in enumerate(self._speaker.turns(), 1):
            if turn.response_ms is not None and turn.response_ms > RESPONSE_WARN_MS:
                seconds = turn.response_ms / 1000
                text = f"the bot took {seconds:.1f} s to answer turn {number}"
                self._timeline.add_finding("S3", "warn", text, kind="slow")

    def _check_interruption(self) -> None:
        at_ms = self._speaker.interrupted_at_ms
        if at_ms is None:
            return
        sound = next((sound for sound in self._detector.sounds if sound.start_ms <= at_ms < sound.end_ms), None)
        if sound is None or sound.end_ms - at_ms <= BARGE_IN_MS:
            return
        cleared_ms = next((cleared - at_ms for cleared in self._cleared_ms if cleared >= at_ms), None)
        if cleared_ms is None or cleared_ms > BARGE_IN_MS:
            cleared = "it cleared nothing" if cleared_ms is None else f"it cleared its audio after {cleared_ms:.0f} ms"
            text = f"the bot spoke on for {sound.end_ms - at_ms:.0f} ms when the caller interrupted it; {cleared}"
            self._timeline.add_finding("M3", "warn", text)

    def _check_survival(self) -> None:
        probe = self._probe
        if probe is None or not probe.tried:
            return
        if self._probed_until_ms is None:
            if self._ended_by == "bot":
                text = f"the bot ended the call after {probe.tried[-1]}"
                self._timeline.add_finding("S2", "fail", text)
        elif self._speaker.failure and self._detector.since(self._probed_until_ms) is None:
            text = f"nothing was heard of the bot any more after {', '.join(probe.tried)}"
            self._timeline.add_finding("S2", "fail", text)

    def _check_lost_audio(self, how: str) -> None:
        lost_ms = self._playback.audible_ms
        if lost_ms > MAX_LOST_MS:
            text = f"the bot {how} with {lost_ms / 1000:.1f} s of its audio unplayed: the caller never hears it"
            self._timeline.add_finding("E2", "fail", text)
            self._failure = self._failure or text

    def _check_close(self) -> None:
        socket = self._carrier.socket
        code, reason = socket.close_code, (socket.close_reason or "")[:200]
        sent = socket.protocol.close_sent
        self._report_closed()
        if sent is not None and not socket.protocol.close_rcvd_then_sent:
            # The only closes of ours before a hang-up are the ones that the WebSocket protocol demands.
            text = f"the bot broke the WebSocket protocol ({sent.code}: {sent.reason or 'no reason'})"
            self._timeline.add_finding("M1", "fail", text)
            self._failure = text
        elif code not in _CODES_IN_ORDER:
            text = _CODES.get(code or 1006, f"the bot closed the call with {code}")
            self._failure = f"{text} ({reason})" if reason else text
        elif self._request.then:
            self._timeline.add("note", f"a real call goes on with: {'; '.join(self._request.then)}")

    def _report_closed(self) -> None:
        socket = self._carrier.socket
        code = socket.close_code
        words = f"{code} {(socket.close_reason or '')[:200]}".rstrip()
        self._timeline.add("closed", f"the stream is closed ({words})")
        in_order = code in _CODES_IN_ORDER
        self._send_status("stopped" if in_order else "failed", "" if in_order else f"closed with {words}")
