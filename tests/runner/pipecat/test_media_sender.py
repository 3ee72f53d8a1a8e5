"""Our media sender plays what pipecat's own plays, and tells of it in the same order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from pipecat.audio.mixers.base_audio_mixer import BaseAudioMixer
from pipecat.frames.frames import (
    BotSpeakingFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    DataFrame,
    EndFrame,
    Frame,
    InterruptionFrame,
    OutputAudioRawFrame,
    SpeechOutputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    VolumeFrame,
)
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

from tests.runner import bots
from tests.runner.carrier import announce, dialled, main_frequency
from tests.signals import share_heard, speech_like, tone
from wsvoice.audio import rms
from wsvoice.runner.pipecat import call_transport

Serve = Callable[..., Any]
#: Whether a call's audio goes through pipecat's own sender.
PIPECATS = ContextVar("PIPECATS", default=False)


@dataclass
class Word(DataFrame):
    """Something of the bot's own that keeps its place among the audio."""

    text: str = ""


@dataclass
class Heard:
    """What a call showed: its audio, s16le at 8 kHz, what the bot's pipeline was told, and how often it was cleared."""

    audio: bytes = b""
    told: list[str] = field(default_factory=list)
    behind: list[tuple[str, int]] = field(default_factory=list)
    clears: int = 0


class Witness(FrameProcessor):
    """Notes what comes back from the transport's output."""

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self._told = told

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        kinds = (BotStartedSpeakingFrame, BotStoppedSpeakingFrame, BotSpeakingFrame, InterruptionFrame)
        if direction is FrameDirection.UPSTREAM and isinstance(frame, kinds):
            name = type(frame).__name__
            if not (isinstance(frame, BotSpeakingFrame) and name in self._told[-1:]):
                self._told.append(name)
        await self.push_frame(frame, direction)


class Behind(FrameProcessor):
    """Stands behind the output and notes what was played, and words."""

    def __init__(self, played: list[tuple[str, int]]) -> None:
        super().__init__()
        self._played = played

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, OutputAudioRawFrame):
            self._played.append((type(frame).__name__, len(frame.audio)))
        elif isinstance(frame, Word):
            self._played.append((frame.text, 0))
        await self.push_frame(frame, direction)


class Hum(BaseAudioMixer):
    """Adds a quiet tone without end."""

    async def start(self, sample_rate: int) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def process_frame(self, frame: Any) -> None:
        pass

    async def mix(self, audio: bytes) -> bytes:
        return bytes(audio) if any(audio) else tone(300, len(audio) / 48, 24000, level_dbfs=-30)


def speech(seconds: float, rate: int = 24000, *, seed: int = 1) -> list[Frame]:
    pcm = speech_like(seconds * 1000, rate, seed=seed)
    step = rate * 2 * 3 // 5
    return [TTSAudioRawFrame(pcm[at : at + step], rate, 1) for at in range(0, len(pcm), step)]


def spoken(*frames: Frame) -> list[Frame]:
    return [TTSStartedFrame(), *frames, TTSStoppedFrame()]


def firm(frames: Sequence[Frame]) -> list[Frame]:
    for each in frames:
        each.interruptible = False
    return list(frames)


def call(
    serve: Serve,
    make: Callable[[], list[Frame]],
    *,
    interrupt_after: int = 0,
    behind: bool = False,
    params: dict[str, Any] | None = None,
    rate: int = 24000,
    hang_up_after_s: float = 0.0,
    pipecats: bool = False,
) -> Heard:
    """Have a bot send frames; hang up when it does, or after a while."""
    heard = Heard()

    async def bot(runner_args: Any) -> None:
        PIPECATS.set(pipecats)
        workers: list[Any] = []
        transport = runner_args.transport
        if params:
            transport = runner_args.use_transport(
                FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, **params)
            )

        @transport.event_handler("on_client_connected")
        async def on_client_connected(transport: Any, client: Any) -> None:
            await workers[0].queue_frames(make())

        processors = [bots.InterruptOnDigit(), Witness(heard.told)]
        last = [Behind(heard.behind)] if behind else []
        pipeline = Pipeline([transport.input(), *processors, transport.output(), *last])
        worker = PipelineWorker(pipeline, params=PipelineParams(audio_out_sample_rate=rate))
        workers.append(worker)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()

    server = serve(bot)

    async def main() -> None:
        async with dialled(announce(server.url)) as carrier:
            if interrupt_after:
                await carrier.until("media", interrupt_after)
                await carrier.press("1")
            if hang_up_after_s:
                await asyncio.sleep(hang_up_after_s)
                await carrier.hang_up()
            else:
                assert await carrier.closed() == (1000, "")
            heard.audio = carrier.heard()
            heard.clears = len(carrier.of("clear"))

    asyncio.run(main())
    server.ended()
    return heard


def both(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, make: Callable[[], list[Frame]], **options: Any
) -> tuple[Heard, Heard]:
    """Return what is heard of our sender, and of pipecat's, in two calls at once."""
    supported, used = call_transport.is_supported, set()

    def is_supported(name: str) -> bool:
        if name != "media-sender":
            return supported(name)
        used.add(PIPECATS.get())
        return not PIPECATS.get() and supported(name)

    with monkeypatch.context() as patch, ThreadPoolExecutor() as calls:
        patch.setattr(call_transport, "is_supported", is_supported)
        heard = [calls.submit(call, serve, make, pipecats=each, **options) for each in (False, True)]
        ours, theirs = (each.result() for each in heard)
    # With a mixer or more destinations than one, nobody asks: all calls have pipecat's then.
    assert used in ({False, True}, set())
    return ours, theirs


def assert_alike(ours: Heard, theirs: Heard) -> None:
    assert ours.told == theirs.told
    assert ours.clears == theirs.clears
    assert abs(len(ours.audio) - len(theirs.audio)) <= 4 * 320
    # A busy machine may fill a gap up with silence, here or there.
    assert share_heard(theirs.audio, ours.audio, 8000, piece_ms=100) > 0.8
    assert rms(ours.audio) == pytest.approx(rms(theirs.audio), rel=0.03)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_speech_and_the_end(serve: Serve, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    ours, theirs = both(serve, monkeypatch, lambda: [*spoken(*speech(1.3, rate)), EndFrame()], rate=rate)
    assert_alike(ours, theirs)
    assert ours.told == ["BotStartedSpeakingFrame", "BotSpeakingFrame", "BotStoppedSpeakingFrame"]


def test_audio_of_another_rate_than_the_pipelines(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: [*spoken(*speech(1.0, 16000)), *spoken(*speech(0.5, 48000, seed=2)), EndFrame()]  # noqa: E731
    ours, theirs = both(serve, monkeypatch, make)
    assert ours.told == theirs.told
    # pipecat resamples it twice.
    assert share_heard(theirs.audio, ours.audio, 8000, piece_ms=100) > 0.5
    assert rms(ours.audio) == pytest.approx(rms(theirs.audio), rel=0.05)


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_an_interruption(serve: Serve, monkeypatch: pytest.MonkeyPatch, rate: int) -> None:
    make = lambda: spoken(*speech(6, rate))  # noqa: E731
    ours, theirs = both(serve, monkeypatch, make, interrupt_after=15, hang_up_after_s=0.6, rate=rate)
    assert ours.told == theirs.told
    assert "BotStoppedSpeakingFrame" in ours.told
    assert ours.clears == theirs.clears == 1
    assert len(ours.audio) / 16 == pytest.approx(len(theirs.audio) / 16, abs=250)


def test_speech_that_must_not_be_interrupted_goes_on(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both(serve, monkeypatch, lambda: firm(spoken(*speech(2))), interrupt_after=15, hang_up_after_s=2.5)
    assert ours.clears == theirs.clears == 1
    assert ours.told.count("BotStartedSpeakingFrame") == theirs.told.count("BotStartedSpeakingFrame") == 1
    # Nothing that was not sent yet is lost.
    assert len(ours.audio) / 16 == pytest.approx(2000, abs=60)
    assert share_heard(theirs.audio, ours.audio, 8000, piece_ms=100) > 0.7


def test_the_volume_changes_in_its_place(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: [*spoken(*speech(0.6), VolumeFrame(volume=0.25), *speech(0.6, seed=2)), EndFrame()]  # noqa: E731
    ours, theirs = both(serve, monkeypatch, make)
    assert_alike(ours, theirs)
    half = len(ours.audio) // 4 * 2
    assert rms(ours.audio[half:]) < 0.5 * rms(ours.audio[:half])


def test_a_bot_that_sends_all_the_time_is_silent_where_its_audio_is(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make() -> list[Frame]:
        sounds = [tone(440, 400, 24000), bytes(48 * 900), tone(440, 300, 24000)]
        return [*(SpeechOutputAudioRawFrame(each, 24000, 1) for each in sounds), EndFrame()]

    ours, theirs = both(serve, monkeypatch, make)
    assert_alike(ours, theirs)
    assert ours.told.count("BotStoppedSpeakingFrame") >= 1


@pytest.mark.parametrize("chunks", [1, 4])
def test_a_processor_behind_the_output_gets_every_piece(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    def make() -> list[Frame]:
        return [*spoken(*speech(0.6), Word(text="between"), *speech(0.3, seed=2)), Word(text="after"), EndFrame()]

    ours, theirs = both(serve, monkeypatch, make, behind=True, params={"audio_out_10ms_chunks": chunks})
    assert_alike(ours, theirs)
    assert ours.behind == theirs.behind
    assert [name for name, size in ours.behind if not size] == ["between", "after"]
    assert {size for _, size in ours.behind if size} == {480 * chunks}


@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_pieces_of_every_length(serve: Serve, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    # Sound that is sent all the time goes piece by piece; of speech, what is silent is told by the piece.
    def make() -> list[Frame]:
        sounds = [tone(440, 300, 24000), bytes(48 * 500), speech_like(500, 24000, seed=3)]
        return [*(SpeechOutputAudioRawFrame(each, 24000, 1) for each in sounds), *spoken(*speech(0.4)), EndFrame()]

    assert_alike(*both(serve, monkeypatch, make, params={"audio_out_10ms_chunks": chunks}))


@pytest.mark.parametrize("known", [("elsewhere",), ()], ids=["with another destination", "with none"])
def test_destinations(serve: Serve, monkeypatch: pytest.MonkeyPatch, known: tuple[str, ...]) -> None:
    def make() -> list[Frame]:
        frames: list[Frame] = []
        for name, frequency in (("elsewhere", 660), ("nowhere", 440)):
            frame = TTSAudioRawFrame(tone(frequency, 600, 24000), 24000, 1)
            frame.transport_destination = name
            frames.append(frame)
        return [*frames, EndFrame()]

    ours, theirs = both(serve, monkeypatch, make, params={"audio_out_destinations": list(known)})
    assert ours.told == theirs.told
    for heard in (ours, theirs):
        # A telephone has one line: what is for a destination that the bot named is heard, and nothing else.
        assert len(heard.audio) / 16 == pytest.approx(600 if known else 0, abs=60)
        if known:
            assert main_frequency(heard.audio) == pytest.approx(660, abs=15)


def test_a_mixers_sound_goes_on_around_the_speech(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: spoken(*speech(0.6))  # noqa: E731
    ours, theirs = both(serve, monkeypatch, make, params={"audio_out_mixer": Hum()}, hang_up_after_s=1.5)
    assert ours.told == theirs.told
    assert len(ours.audio) / 16 == pytest.approx(len(theirs.audio) / 16, abs=200)
    assert len(ours.audio) / 16 > 1200


class Counter(BaseObserver):
    """Counts the audio that the output pushes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    async def on_push_frame(self, data: FramePushed) -> None:
        if isinstance(data.frame, TTSAudioRawFrame) and "Output" in data.source.name:
            self.seen += 1


def test_an_observer_that_comes_later_sees_audio_from_then_on(serve: Serve) -> None:
    counter = Counter()

    async def bot(runner_args: Any) -> None:
        transport, workers = runner_args.transport, []

        @transport.event_handler("on_client_connected")
        async def on_client_connected(transport: Any, client: Any) -> None:
            await workers[0].queue_frames(spoken(*speech(0.6)))
            await asyncio.sleep(1)
            workers[0].add_observer(counter)
            await workers[0].queue_frames([*spoken(*speech(0.6)), EndFrame()])

        await bots.run(transport, on_worker=workers.append)

    server = serve(bot)

    async def main() -> None:
        async with dialled(announce(server.url)) as carrier:
            assert await carrier.closed() == (1000, "")

    asyncio.run(main())
    server.ended()
    assert counter.seen == pytest.approx(30, abs=2)


def test_the_end_of_speech_is_noticed_without_a_frame(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsvoice.runner.pipecat.media_sender.BOT_VAD_STOP_FALLBACK_SECS", 0.3)
    heard = call(serve, lambda: speech(0.3), hang_up_after_s=1.2)
    assert heard.told == ["BotStartedSpeakingFrame", "BotSpeakingFrame", "BotStoppedSpeakingFrame"]
