"""
The media of a simulated call: sends the caller's audio, plays the bot's, and ends the call.

A frame carries the caller's sound of the 20 ms before it is sent, as in a telephone network. Everything runs by one
absolute clock, so a stall is caught up with and does not shift what follows.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from wsvoice.audio import resample, write_wav
from wsvoice.call import Call
from wsvoice.dial.addresses import shortened
from wsvoice.dial.call_control import CallControl
from wsvoice.dial.carrier_stream import CarrierStream
from wsvoice.dial.checks import (
    BARGE_IN_MS,
    CODES_IN_ORDER,
    MAX_LEAD_MS,
    MAX_LOST_MS,
    RESPONSE_WARN_MS,
    describe_close,
)
from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.playback import MAX_MARK_NAMES, MAX_MARKS, Playback
from wsvoice.dial.probe import Probe
from wsvoice.dial.report import CallReport, EndedBy
from wsvoice.dial.script import Speaker
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.stream_opening import stream_start
from wsvoice.dial.transcript import Part, Track, cut_into_parts
from wsvoice.errors import DialError, RemoteProtocolError
from wsvoice.providers.base import Command, StreamRequest, StreamStatus
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Digit,
    Event,
    FlowControl,
    Mark,
    SendDigits,
    Status,
    StreamStopped,
)

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

#: How many marks' names and clears' times are remembered.
REMEMBERED = 10_000
#: How often a provider that reconnects dials a stream again after the bot has closed it.
MAX_RECONNECTS = 3

# How far a call may be beyond its time if its process was held up.
_LATE_MS = 5000.0


class Conversation:
    """
    One call's media, from its first stream to its last.

    Args:
        setup: How the call is placed.
        call: The call.
        request: The stream that was asked for.
        socket: Its connection.
        speaker: Who speaks for the caller.
        open_stream: Opens another WebSocket, for the call's next stream.
        call_control: The call's next documents; ``None`` for a call without a webhook.
    """

    def __init__(
        self,
        setup: CallSetup,
        call: Call,
        request: StreamRequest,
        socket: ClientConnection,
        speaker: Speaker,
        open_stream: Callable[[StreamRequest], Awaitable[ClientConnection]],
        call_control: CallControl | None,
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._provider = setup.provider
        self._behaviour = setup.behaviour
        self._timeline = setup.timeline
        self._clock = setup.clock
        self._timeouts = setup.timeouts
        self._call = call
        self._request = request
        self._speaker = speaker
        self._detector = speaker.detector
        self._open_stream = open_stream
        self._call_control = call_control
        self._trace = setup.trace
        self._probe = Probe(self._provider.hazards, self._timeouts.probe_quiet_s) if self._config.probe else None
        self._is_paused = False
        # What the caller sends, and what the bot sends.
        self._format = request.format
        self._bot_format = request.outbound_format or request.format
        self._frame_steps = self._behaviour.frame_ms // STEP_MS
        # Seeded, so that a call can be repeated.
        self._rng = random.Random(0)
        self._carrier = CarrierStream(setup, socket, self._receive, self._rng)
        self._reconnects = 0
        self._failure: str | None = None
        self._ended_by: EndedBy | None = None
        self._ended_at: float | None = None
        #: Unix time of the caller's hang-up; ``None`` if the bot ended the call.
        self.hung_up_at: float | None = None
        # Between two streams: the next one, once its document is there.
        self._next_stream: asyncio.Task[StreamRequest | None] | None = None
        self._between_streams = False
        self._sent_frames = 0
        self._marks = 0
        # Hashes, because a name may be as long as a message.
        self._mark_names: set[int] = set()
        self._clears = 0
        self._cleared_ms: deque[float] = deque(maxlen=REMEMBERED)
        self._probed_until_ms: float | None = None
        # Both sides of the call, for the recording and the transcriber, and the caller's next frame.
        self._keeps_sound = self._config.record is not None or self._config.transcriber is not None
        self._caller_pcm = bytearray()
        self._bot_pcm = bytearray()
        self._frame = b""

    async def run(self, on_started: Callable[[], Awaitable[None]]) -> None:
        """
        Hold the conversation, and run `on_started` beside it once the stream has started.

        If it is cancelled, it hangs up in good order first.
        """
        told: asyncio.Future[None] | None = None
        try:
            await asyncio.sleep(self._behaviour.start_delay_s)
            await self._start()
            told = asyncio.ensure_future(on_started())
            self._ended_by = await self._run_steps()
            await self._end()
        except asyncio.CancelledError:
            if told is not None and self._ended_by is None:
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

    def parts(self) -> list[Part]:
        """Return what both sides said, turn by turn, if there is a transcriber to give it to."""
        return cut_into_parts(
            self._speaker.boundaries_ms(),
            self._speaker.turns(),
            Track("caller", bytes(self._caller_pcm), self._format.sample_rate),
            Track("bot", bytes(self._bot_pcm), self._bot_format.sample_rate),
            self._detector.sounds,
        )

    def complete(self, report: CallReport) -> CallReport:
        """Return `report` with what is known about the media."""
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

    async def _start(self) -> None:
        """Start the stream; the first one also starts the clock."""
        call = self._call
        await self._carrier.start(stream_start(call, self._request))
        self._carrier.stream.outbound_format = self._bot_format
        if self._timeline.started_at is None:
            now = self._clock.now()
            self._timeline.started_at = now
            self._playback = Playback(self._bot_format.sample_rate, now, limit_s=self._provider.queue_limit_s)
            if self._trace is not None:
                self._trace.begin(call, (self._format.sample_rate, self._bot_format.sample_rate), now)
        ids = f"stream {shortened(call.stream_id)} of call {shortened(call.call_id)}"
        self._timeline.add("started", f"{ids} has started")
        self._send_status("started")

    def _send_status(self, status: StreamStatus, error: str = "") -> None:
        if self._call_control is not None:
            self._call_control.send_status(self._call, self._request, status, error=error)

    async def _reconnect(self) -> bool:
        """Dial a stream again that the bot has closed, if the provider does; false if it does not."""
        if not self._request.reconnects or self._reconnects >= MAX_RECONNECTS:
            return False
        self._reconnects += 1
        self._report_closed()
        title = self._provider.title
        text = f"the bot closed the stream, and {title} dials it again unless the answer forbids it: that is no hang-up"
        self._timeline.add_finding("W4", "warn", text)
        await self._carrier.abort()
        try:
            socket = await self._open_stream(self._request)
        except DialError as error:
            self._timeline.add("note", f"the stream could not be dialled again: {error.message}")
            return False
        self._invent_stream_id()
        self._carrier = CarrierStream(self._setup, socket, self._receive, self._rng)
        await self._start()
        return True

    def _invent_stream_id(self) -> None:
        _, stream_id, _ = self._provider.new_ids(secrets.token_bytes(32))
        self._call = replace(self._call, stream_id=stream_id)

    async def _await_next_stream(self) -> bool:
        """After the bot has closed a stream, ask for the next one if a document says how; false if none does."""
        if not (self._request.action or self._request.rest or self._setup.update) or self._call_control is None:
            return False
        await self._carrier.abort()
        # The close code is certain only now.
        if self._carrier.socket.close_code not in CODES_IN_ORDER:
            return False
        self._play(self._carrier.ended_at or self._clock.now())
        self._report_closed()
        self._check_lost_audio("closed the stream")
        self._playback.clear(self._clock.now())
        update, self._setup.update = self._setup.update, None
        self._ask_for_next_stream(self._call_control, update)
        return True

    async def _stop_stream(self) -> None:
        """End the stream because the bot has updated the call."""
        update, self._setup.update = self._setup.update, None
        if self._call_control is None:
            return
        # What is still queued is lost with the stream.
        self._play(self._clock.now())
        self._playback.clear(self._clock.now())
        await self._carrier.hang_up(StreamStopped(reason="stopped"), self._timeouts.close_s)
        await self._carrier.abort()
        self._report_closed()
        self._ask_for_next_stream(self._call_control, update)

    def _ask_for_next_stream(self, call_control: CallControl, update: Command | None) -> None:
        self._between_streams = True
        self._next_stream = asyncio.create_task(call_control.next_stream(self._call, self._request, update))

    async def _start_next_stream(self, request: StreamRequest | None) -> bool:
        """Start the stream of the next document; false if there is none, or it does not open."""
        if request is None:
            return False
        outbound = request.outbound_format or request.format
        rates = (self._format.sample_rate, self._bot_format.sample_rate)
        if (request.format.sample_rate, outbound.sample_rate) != rates:
            self._timeline.add("note", "the next stream has another sample rate, which a test call cannot follow")
            return False
        self._request = request
        self._invent_stream_id()
        try:
            socket = await self._open_stream(request)
        except DialError as error:
            self._failure = error.message
            self._send_status("failed", error.message)
            return False
        self._format, self._bot_format = request.format, outbound
        self._mark_names.clear()
        self._between_streams = False
        self._carrier = CarrierStream(self._setup, socket, self._receive, self._rng)
        await self._start()
        return True

    # What the bot sends

    def _receive(self, message: str | bytes) -> None:
        stream = self._carrier.stream
        if self._ended_by is not None:
            if self._trace is not None:
                self._trace.message("out", message, is_audio=False)
            return
        try:
            event: Event | None = stream.receive(message)
        except RemoteProtocolError as error:
            event = None
            self._timeline.add_finding("M1", "fail", error.message, kind=error.kind)
            if (reply := stream.error_reply(error)) is not None:
                self._carrier.post(reply)
        if self._trace is not None:
            self._trace.message("out", message, is_audio=isinstance(event, Audio))
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
            self._setup.press(event.digits)
        elif isinstance(event, Status):
            self._carrier.post(Status(self._playback.queued_ms))
        elif isinstance(event, StreamStopped):
            self._timeline.add("hang-up", "the bot hangs up")
            self._setup.hung_up = True

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
        """Ask the bot to pause or to go on, if the provider has flow control."""
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
            self._timeline.add_finding("M4", "warn", "the bot used a mark's name again", kind="repeated")
        elif len(self._mark_names) < REMEMBERED:
            self._mark_names.add(hash(name))
        self._return_marks(self._playback.add_mark(name, now))
        if self._playback.discarded_marks:
            text = f"more than {MAX_MARKS} marks, or {MAX_MARK_NAMES // 1024} KiB of their names, wait to be reached"
            self._timeline.add_finding("M4", "fail", text)

    def _receive_clear(self, now: float) -> None:
        self._clears += 1
        self._cleared_ms.append(self._timeline.now_ms())
        # What has been played by now is not cleared.
        self._return_marks(self._playback.advance(now))
        # Many bots clear whenever the caller speaks, with nothing queued.
        if (queued_ms := self._playback.queued_ms) >= 1:
            self._timeline.add("clear", f"the bot cleared {queued_ms:.0f} ms of queued audio")
        cleared = self._playback.clear(now)
        if self._behaviour.return_cleared_marks:
            self._return_marks(cleared)
        # Only some providers confirm a clear.
        self._carrier.post(Cleared())

    def _return_marks(self, names: list[str]) -> None:
        for name in names:
            self._carrier.post(Mark(name))
            self._timeline.add("mark", f"mark {name[:60]!r} was reached")

    # What the caller sends

    async def _run_steps(self) -> EndedBy:
        """Run the call, 20 ms at a time, until somebody ends it."""
        assert self._timeline.started_at is not None
        duration_ms = None if self._config.duration_s is None else self._config.duration_s * 1000
        limit_ms = self._timeouts.call_s * 1000 if duration_ms is None else duration_ms
        backlog = int(self._timeouts.backlog_s * 1000 / STEP_MS)
        step = 0
        while True:
            step += 1
            await self._clock.sleep_until(self._timeline.started_at + step * STEP_MS / 1000)
            if not await self._goes_on():
                self._ended_at = self._carrier.ended_at
                return "bot"
            if self._setup.hung_up:
                return "bot"
            if self._setup.update is not None and self._next_stream is None:
                await self._stop_stream()
            self._step(step * STEP_MS)
            self._timeline.advance(step * STEP_MS)
            if self._carrier.backlog > backlog:
                self._failure = f"the bot does not read its stream: {self._timeouts.backlog_s:g} s of audio are waiting"
                return "caller"
            if self._speaker.done and (duration_ms is None or self._speaker.hangs_up_when_done):
                return "caller"
            # By the clock too, in case the steps take long.
            if step * STEP_MS >= limit_ms or self._timeline.now_ms() >= limit_ms + _LATE_MS:
                if duration_ms is None:
                    self._failure = (
                        f"the call was not done within {self._timeouts.call_s:g} s, and was hung up;"
                        " --duration sets another time"
                    )
                return "caller"

    async def _goes_on(self) -> bool:
        """Whether there is a stream, or another one will come."""
        if self._next_stream is not None:
            if not self._next_stream.done():
                return True
            request, self._next_stream = self._next_stream.result(), None
            return await self._start_next_stream(request)
        if not self._carrier.is_closed:
            return True
        await self._carrier.drain(min(1.0, self._timeouts.close_s))
        return not self._setup.hung_up and (await self._reconnect() or await self._await_next_stream())

    def _step(self, now_ms: float) -> None:
        self._play(self._clock.now())
        for speaks, at_ms in self._detector.changes(now_ms):
            kind, text = ("bot-speaks", "the bot speaks") if speaks else ("bot-silent", "the bot is silent")
            self._timeline.add(kind, text, at_ms=at_ms)
        pcm = b""
        if not self._is_probing(now_ms):
            did = self._speaker.step(now_ms, audible_queued=self._playback.audible_ms > 0)
            pcm = did.pcm
            for kind, text in did.notes:
                self._timeline.add(kind, text)
                if kind == "caller-speaks" and self._trace is not None and self._playback.audible_ms > 0:
                    self._trace.interrupted()
            self._send_digits(did.digits)
        self._send_audio(pcm, now_ms)

    def _is_probing(self, now_ms: float) -> bool:
        """Whether the probe is still going on."""
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
        if self._keeps_sound:
            self._caller_pcm += pcm
        if self._trace is not None:
            self._trace.hear("in", pcm)
            self._trace.buffered(self._playback.queued_ms, now_ms)
        self._frame += pcm
        if len(self._frame) < self._frame_steps * step_bytes:
            return
        frame, self._frame = self._frame, b""
        if self._next_stream is not None:
            return  # Between two streams nobody listens.
        if self._behaviour.silent or (self._probe is not None and self._probe.is_quiet(now_ms)):
            return
        self._sent_frames += 1
        message = self._carrier.stream.send(Audio(self._format.encode(frame)))
        for each in [message] if self._probe is None else self._probe.media(message, now_ms):
            self._carrier.post_media(each)

    def _send_digits(self, digits: str) -> None:
        for digit in digits:
            self._carrier.post(Digit(digit, at=time.time()))
            self._timeline.add("digit", f"the caller presses {digit}", who="caller", digit=digit)

    def _play(self, now: float) -> None:
        self._return_marks(self._playback.advance(now))
        self._control_flow()
        heard = self._playback.take_heard()
        self._detector.feed(heard)
        self._speaker.hear(heard)
        if self._keeps_sound:
            self._bot_pcm += heard
        if self._trace is not None:
            self._trace.hear("out", heard)

    # The end

    async def _end(self) -> None:
        if self._between_streams:
            # The last stream was closed in good order, and there is no next one.
            if self._ended_by == "caller":
                self._timeline.add("hang-up", "the caller hangs up")
            self._ended_at = self._ended_at or self._clock.now()
            await self._carrier.abort()
        elif self._ended_by == "caller" and self._speaker.vanishes and not self._setup.hung_up:
            await self._vanish()
        elif self._setup.hung_up or self._ended_by == "caller":
            if self._setup.hung_up:
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
        if not self._setup.hung_up:
            self._timeline.add("hang-up", "the caller hangs up")
            self.hung_up_at = time.time()
        close_s = self._timeouts.close_s
        self._ended_at = self._clock.now()
        if not await self._carrier.hang_up(StreamStopped(reason="callended"), close_s):
            text = f"the bot's server did not close the stream within {close_s:g} s of the hang-up"
            self._timeline.add_finding("E1", "fail", text)
        await self._carrier.abort()
        self._report_closed()

    async def _vanish(self) -> None:
        """Break the connection, as a network does that has lost the caller: nothing says that the call is over."""
        self._timeline.add("hang-up", "the caller vanishes: the connection breaks without a hang-up")
        self.hung_up_at = time.time()
        self._ended_at = self._clock.now()
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
            text = f"the bot went on speaking for {sound.end_ms - at_ms:.0f} ms when it was interrupted; {cleared}"
            self._timeline.add_finding("M3", "warn", text)

    def _check_survival(self) -> None:
        probe = self._probe
        if probe is None or not probe.tried:
            return
        if self._probed_until_ms is None:
            if self._ended_by == "bot":
                text = f"the bot ended the call after {probe.tried[-1]}"
                self._timeline.add_finding("S2", "fail", text)
        elif not self._detector.sounds:
            self._timeline.add("note", "the bot never spoke, before the probe either: call it without --probe first")
        elif self._speaker.failure and self._detector.since(self._probed_until_ms) is None:
            text = f"the bot was not heard again after {', '.join(probe.tried)}"
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
            # We close first only where the WebSocket protocol demands it.
            text = f"the bot broke the WebSocket protocol ({sent.code}: {sent.reason or 'no reason'})"
            self._timeline.add_finding("M1", "fail", text)
            self._failure = text
        elif code not in CODES_IN_ORDER:
            self._failure = describe_close(code, reason)
        elif self._request.then:
            self._timeline.add("note", f"a real call goes on with: {'; '.join(self._request.then)}")

    def _report_closed(self) -> None:
        socket = self._carrier.socket
        code = socket.close_code
        words = f"{code} {(socket.close_reason or '')[:200]}".rstrip()
        self._timeline.add("closed", f"the stream is closed ({words})")
        if self._trace is not None:
            self._trace.closed(code, (socket.close_reason or "")[:200])
        in_order = code in CODES_IN_ORDER
        self._send_status("stopped" if in_order else "failed", "" if in_order else f"closed with {words}")
