"""
A process of callers: ``python -m wsvoice.dial.load.worker FD``, with its end of a :class:`Channel` inherited as FD.

It places the calls that it is told to, tells when each is up and when it has ended, and reads what was heard once it is
asked to.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from array import array
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from wsvoice import http
from wsvoice.audio import AudioFormat
from wsvoice.dial.call_control import CallControl
from wsvoice.dial.checks import CODES_IN_ORDER, describe_close
from wsvoice.dial.clock import Clock
from wsvoice.dial.load.channel import Channel
from wsvoice.dial.load.line import Line, frame, upgraded_connection
from wsvoice.dial.load.listening import Recording, listen
from wsvoice.dial.load.orders import Begin, Ended, HangUp, Heard, Job, Pulse, Read, Ready, Up
from wsvoice.dial.load.sound import Speech, own_sound
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.stream_opening import StreamOpener, opening_messages, stream_start, unannounced_stream
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.webhook import Webhook
from wsvoice.errors import DialError, HttpError
from wsvoice.providers import load_simulator
from wsvoice.providers.base import HttpRequest, Progress, StreamRequest
from wsvoice.providers.events import Audio
from wsvoice.providers.media_stream import Stream

#: How often a worker says how busy it is.
PULSE_S = 0.5
#: How many messages are made before others have a turn: less than a millisecond's worth.
MADE_AT_ONCE = 10
#: How long is left between a message that is made and the first that is due.
_EARLY_S = 0.0005


class Player:
    """One call, from its webhook to its end."""

    def __init__(self, job: Job, begin: Begin, channel: Channel) -> None:
        self.ended = Ended(begin.number)
        self.recording: Recording | None = None
        self._job = job
        self._begin = begin
        self._call = begin.call
        self._channel = channel
        config = job.config
        provider = load_simulator(config.transport, config.credentials, config.quirks)
        timeline = Timeline(lambda event: None, Clock())
        behaviour, serves_bot = read_behaviour(provider), job.target.kind == "bot"
        self._setup = CallSetup(config, serves_bot, provider, behaviour, timeline, Clock(), job.timeouts)
        self._line: Line | None = None
        self._hang_up = asyncio.Event()
        self._placing: asyncio.Future[None] | None = None
        self._webhook: Webhook | None = None
        self._call_control: CallControl | None = None

    def hang_up(self, *, by_bot: bool) -> None:
        """Hang up before the time."""
        if by_bot and self._line is not None:
            self._line.stop()
        elif not by_bot:
            self.ended.interrupted = True
            self._hang_up.set()
            if self.ended.up_at is None and self._placing is not None:
                self._placing.cancel()

    async def play(self) -> None:
        """Place the call; how it went is in `ended` and `recording`."""
        self._placing = asyncio.ensure_future(self._place())
        try:
            await self._placing
        except DialError as error:
            self.ended.failure = error.message
        except asyncio.CancelledError:
            if not self.ended.interrupted:
                raise
        finally:
            self.ended.ended_at = self.ended.ended_at or time.monotonic()
            if self._call_control is not None:
                await self._call_control.finish()
        found = self._setup.timeline.findings.first_failure()
        self.ended.failure = self.ended.failure or (found.message if found else None)

    async def _place(self) -> None:
        request = await self._ask()
        setup, stream = self._setup, self._setup.provider.stream()
        started = stream_start(self._call, request)
        opening = b"".join(map(frame, opening_messages(stream, started)))
        stream.outbound_format = request.outbound_format or request.format
        speech = self._speech(request.format)
        media = await _make_messages(stream, speech, request.format, setup.behaviour.frame_ms)
        opener = StreamOpener(setup.provider, self._job.target, self._job.addresses, setup.timeouts)
        try:
            connection, self.ended.connect_ms = await opener.open(request, upgraded_connection())
        except DialError as error:
            if self._call_control is not None:
                self._call_control.send_status(self._call, request, "failed", error=error.message)
            raise
        await self._report("answered")
        line = self._line = Line(stream, setup.provider, setup.behaviour)
        line.take_over(connection)
        up_at = self.ended.up_at = time.monotonic()
        line.write(opening)
        self._channel.send(Up(self._begin.number, up_at))
        if self._call_control is not None:
            self._call_control.send_status(self._call, request, "started")
        streaming = asyncio.ensure_future(self._report("streaming"))
        voice = _Voice(line, media, up_at, setup.behaviour.frame_ms, setup.timeouts.backlog_s)
        await voice.speak(self._hang_up)
        ended_at = self.ended.ended_at = time.monotonic()
        self.recording = Recording(
            self._begin.number,
            started,
            speech,
            setup.behaviour.frame_ms,
            up_at,
            ended_at,
            voice.sent_at,
            voice.late_s,
            line.times,
            line.messages,
        )
        await self._end(line, voice, request)
        await streaming
        await self._report("ended")

    async def _ask(self) -> StreamRequest:
        """Announce the call, and return the stream that the answer asks for."""
        job, setup, call = self._job, self._setup, self._call
        request = unannounced_stream(setup.provider, setup.behaviour, job.target, job.url, call.parameters)
        if request is not None:
            return request
        webhook = self._webhook = Webhook(setup, job.url, job.addresses, asked_for_host=True)
        control = self._call_control = CallControl(setup, webhook)
        answer = await webhook.announce(call)
        request = control.settle(await control.first(call, answer))
        self.ended.webhook_ms = answer.elapsed_ms
        return request

    def _speech(self, wire: AudioFormat) -> Speech:
        config = self._job.config
        return Speech(
            self._begin.number,
            self._job.turns,
            sample_rate=wire.sample_rate,
            duration_s=self._begin.duration_s,
            listen_s=config.listen_s,
            response_s=config.response_timeout_s,
        )

    async def _report(self, stage: Progress) -> None:
        if self._webhook is not None:
            up_at = self.ended.up_at or 0.0
            duration_s = self.ended.ended_at - up_at if stage == "ended" else 0.0
            await self._webhook.report_progress(self._call, stage, duration_s)

    async def _end(self, line: Line, voice: _Voice, request: StreamRequest) -> None:
        close_s = self._job.timeouts.close_s
        by_bot = line.bot_closed
        closed = await line.hang_up(close_s)
        if line.broken:
            self.ended.failure = f"the bot broke the WebSocket protocol: {line.broken}"
        elif by_bot and line.close_code not in CODES_IN_ORDER:
            self.ended.failure = describe_close(line.close_code, line.close_reason)
        elif by_bot and not voice.is_done:
            self.ended.failure = "the bot ended the call before the caller did"
        elif voice.failure:
            self.ended.failure = voice.failure
        elif not closed:
            self.ended.failure = f"the bot's server did not close the stream within {close_s:g} s of the hang-up"
        if self._call_control is not None:
            in_order = not by_bot or line.close_code in CODES_IN_ORDER
            self._call_control.send_status(self._call, request, "stopped" if in_order else "failed")


class _Voice:
    """Sends a call's messages of audio, each when it is due."""

    def __init__(self, line: Line, media: list[bytes], up_at: float, frame_ms: int, backlog_s: float) -> None:
        self.sent_at, self.late_s = array("d"), array("f")
        self.is_done = False
        self.failure = ""
        self._line = line
        self._media = media
        self._up_at = up_at
        self._frame_s = frame_ms / 1000
        self._backlog_s = backlog_s
        self._backlog = int(backlog_s / self._frame_s) * len(media[-1]) if media else 0
        self._loop = asyncio.get_running_loop()
        self._finished = asyncio.Event()

    async def speak(self, hang_up: asyncio.Event) -> None:
        """Return once everything is said, the bot has ended the call, or `hang_up` is set."""
        self._send()
        said, wanted = asyncio.create_task(self._finished.wait()), asyncio.create_task(hang_up.wait())
        ends: list[asyncio.Future[Any]] = [said, wanted, self._line.over]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        said.cancel()
        wanted.cancel()
        self._finished.set()

    def _send(self) -> None:
        """Send what is due; a message carries the sound of the time before it, as in a telephone network."""
        if self._finished.is_set():
            return
        now, media, index = time.monotonic(), self._media, len(self.sent_at)
        while index < len(media) and (due := self._up_at + (index + 1) * self._frame_s) <= now + _EARLY_S:
            self._line.write(media[index])
            self.sent_at.append(now)
            self.late_s.append(now - due)
            media[index] = b""
            index += 1
        if index >= len(media):
            self.is_done = True
            self._finished.set()
        elif index % 50 == 0 and self._line.backlog > self._backlog:
            self.failure = f"the bot does not read its stream: {self._backlog_s:g} s of audio are waiting"
            self._finished.set()
        else:
            self._loop.call_later(self._up_at + (index + 1) * self._frame_s - now, self._send)


async def _make_messages(stream: Stream, speech: Speech, wire: AudioFormat, frame_ms: int) -> list[bytes]:
    """Return what is said as the frames to be sent; other calls go on meanwhile."""
    said, frames = bytearray(), list[bytes]()
    size = 2 * (wire.sample_rate * frame_ms // 1000)
    for second in speech.seconds():
        said += second
        while (begin := len(frames) * size) + size <= len(said):
            frames.append(frame(stream.send(Audio(wire.encode(bytes(said[begin : begin + size]))))))
            if len(frames) % MADE_AT_ONCE == 0:
                await asyncio.sleep(0)
    return frames


async def _warm_up() -> None:
    """Do what takes long the first time, so that no call waits for it."""
    upgraded_connection()
    own_sound(0, 0, 8000)
    with suppress(HttpError):
        # Nobody listens there; the client is made all the same.
        await http.send(HttpRequest("GET", "http://127.0.0.1:1/"), timeout_s=1.0)


class Worker:
    """The process's calls, and what it is told to do with them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._players: dict[int, Player] = {}
        self._recordings: list[Recording] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def work(self) -> None:
        """Do what comes in, until the other end is gone."""
        job: Job = await self._channel.receive()
        self._job = job
        self._provider = load_simulator(job.config.transport, job.config.credentials, job.config.quirks)
        await _warm_up()
        self._channel.send(Ready())
        self._keep(self._pulse())
        orders = asyncio.ensure_future(self._obey())
        ends: list[asyncio.Future[Any]] = [orders, self._failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in (orders, *self._tasks):
            task.cancel()
        if self._failed.done():
            # Ours, and not a bot's: the run has to end with it.
            raise self._failed.result()

    async def _obey(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                order = await self._channel.receive()
                if isinstance(order, Begin):
                    self._keep(self._play(Player(job=self._job, begin=order, channel=self._channel)))
                elif isinstance(order, HangUp):
                    for number, player in self._players.items():
                        if order.number in (None, number):
                            player.hang_up(by_bot=order.by_bot)
                elif isinstance(order, Read):
                    self._keep(self._read(order.window))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._failed.done():
            self._failed.set_result(error)

    async def _play(self, player: Player) -> None:
        number = player.ended.number
        self._players[number] = player
        await player.play()
        del self._players[number]
        if player.recording is not None:
            self._recordings.append(player.recording)
        self._channel.send(player.ended)

    async def _read(self, window: tuple[float, float]) -> None:
        recordings, self._recordings = self._recordings, []
        hearings = {}
        for each in recordings:
            hearings[each.number] = listen(self._provider, each, window)
            await asyncio.sleep(0)
        self._channel.send(Heard(hearings))
        await self._channel.drain()

    async def _pulse(self) -> None:
        cpu_s, at = time.process_time(), time.monotonic()
        while True:
            await asyncio.sleep(PULSE_S)
            cpu_s, before_s, at, before = time.process_time(), cpu_s, time.monotonic(), at
            calls = sum(player.ended.up_at is not None for player in self._players.values())
            self._channel.send(Pulse(calls, (cpu_s - before_s) / (at - before)))


async def main(descriptor: int) -> None:
    """Work for the process at the other end of this socket."""
    channel = await Channel.over(socket.socket(fileno=descriptor))
    with suppress(EOFError, OSError):
        await Worker(channel).work()


if __name__ == "__main__":
    # Messages are kept by the hundred thousand, and to look through them for garbage takes longer than one may be late.
    gc.disable()
    try:
        import uvloop
    except ImportError:
        # There is none for Windows.
        asyncio.run(main(int(sys.argv[1])))
    else:
        uvloop.run(main(int(sys.argv[1])))
