"""Everything that pipecat documents of a transport for telephone calls, on real sockets and in real pipelines."""

from __future__ import annotations

import asyncio
import audioop
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pytest
from loguru import logger
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.audio.filters.base_audio_filter import BaseAudioFilter
from pipecat.audio.mixers.base_audio_mixer import BaseAudioMixer
from pipecat.audio.turn.base_turn_analyzer import BaseTurnAnalyzer, BaseTurnParams, EndOfTurnState
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    InputTransportStartAudioStreamingFrame,
    InterruptionFrame,
    InterruptionWorkerFrame,
    OutputAudioRawFrame,
    OutputDTMFFrame,
    OutputDTMFUrgentFrame,
    OutputTransportMessageFrame,
    OutputTransportMessageUrgentFrame,
    SpeechControlParamsFrame,
    StartFrame,
    TTSAudioRawFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import create_transport as imported_too_early
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies

from tests.runner import bots
from tests.runner.carrier import Carrier, announce, dialled, main_frequency
from tests.runner.test_session import wait_for
from tests.signals import tone
from wsvoice.audio import read_audio, resample
from wsvoice.runner.pipecat.call_arguments import create_transport
from wsvoice.runner.pipecat.call_transport import CallTransport
from wsvoice.runner.pipecat.patches import install
from wsvoice.runner.pipecat.patches.notices import notices

Serve = Callable[..., Any]

install()

TURNS = (
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
    UserStartedSpeakingFrame,
    UserStoppedSpeakingFrame,
    InterruptionFrame,
)


def question() -> bytes:
    """A spoken sentence at 8 kHz, with half a second of silence behind it."""
    with as_file(files("wsvoice.dial") / "question.wav") as path:
        pcm, rate = read_audio(path)
    return resample(pcm, rate, 8000) + bytes(8000)


class Recorder(FrameProcessor):
    """Keeps what passes, and hands everything on but the caller's audio."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM:
            self.frames.append(frame)
            if isinstance(frame, InputAudioRawFrame):
                return
        await self.push_frame(frame, direction)

    def of(self, *kinds: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kinds)]

    def heard(self) -> bytes:
        return b"".join(frame.audio for frame in self.of(InputAudioRawFrame))

    def turns(self) -> list[str]:
        """What the pipeline was told of the caller's speech, in order."""
        return [type(frame).__name__ for frame in self.of(*TURNS)]


class OnACall:
    """A bot whose transport is made by ``create_transport`` with given params, and a way to reach into it."""

    def __init__(self, *processors: FrameProcessor, pipeline: dict[str, Any] | None = None, **params: Any) -> None:
        self.recorder = Recorder()
        self.transport: Any = None
        self.events: list[tuple[str, bool, bool]] = []
        self._processors = processors
        self._params = {"audio_in_enabled": True, "audio_out_enabled": True, **params}
        self._pipeline = pipeline or {}
        self._workers: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Set on the params as they are, for values that the model would not take.
        self.afterwards: dict[str, Any] = {}

    def params(self) -> FastAPIWebsocketParams:
        params = FastAPIWebsocketParams(**self._params)
        for name, value in self.afterwards.items():
            object.__setattr__(params, name, value)
        return params

    async def __call__(self, runner_args: Any) -> None:
        self._loop = asyncio.get_running_loop()
        transport = self.transport = await create_transport(runner_args, {"twilio": self.params})

        def note(name: str) -> Any:
            async def handler(given: Any, client: Any) -> None:
                self.events.append((name, given is transport, client is runner_args.websocket))
                if name == "on_client_disconnected":
                    await self._workers[0].cancel()

            return handler

        for name in ("on_client_connected", "on_client_disconnected", "on_session_timeout"):
            transport.add_event_handler(name, note(name))
        await bots.run(transport, *self._processors, self.recorder, on_worker=self._workers.append, **self._pipeline)

    async def queue(self, *frames: Frame) -> None:
        """Send frames into the pipeline, from the test's thread."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(self._workers[0].queue_frames(list(frames)), self._loop)
        await asyncio.wrap_future(future)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]

    @asynccontextmanager
    async def called(self, serve: Serve, **settings: Any) -> AsyncIterator[Carrier]:
        """Ring the bot, and wait until its pipeline runs."""
        server = serve(self, **settings)
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: "on_client_connected" in self.names() and self.recorder.of(StartFrame))
            yield carrier
            if carrier.socket.close_code is None:
                await carrier.hang_up()
        server.ended()


def run(coroutine: Any) -> None:
    asyncio.run(coroutine)


class TestInput:
    def test_audio_comes_as_frames(self, serve: Serve) -> None:
        bot = OnACall()

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(tone(600, 400, 8000), paced=False)
                await wait_for(lambda: len(bot.recorder.of(InputAudioRawFrame)) == 20)

        run(main())
        frames = bot.recorder.of(InputAudioRawFrame)
        assert {(frame.sample_rate, frame.num_channels, len(frame.audio)) for frame in frames} == {(16000, 1, 640)}
        assert main_frequency(bot.recorder.heard(), 16000) == pytest.approx(600, abs=15)

    @pytest.mark.parametrize("rate", [8000, 24000])
    def test_audio_in_sample_rate(self, serve: Serve, rate: int) -> None:
        bot = OnACall(audio_in_sample_rate=rate)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(tone(600, 400, 8000), paced=False)
                await wait_for(lambda: len(bot.recorder.of(InputAudioRawFrame)) == 20)

        run(main())
        assert {frame.sample_rate for frame in bot.recorder.of(InputAudioRawFrame)} == {rate}
        assert len(bot.recorder.heard()) == 2 * rate * 400 // 1000
        assert main_frequency(bot.recorder.heard(), rate) == pytest.approx(600, abs=15)

    def test_two_audio_in_channels_have_the_caller_on_both(self, serve: Serve) -> None:
        bot = OnACall(audio_in_channels=2, audio_in_sample_rate=8000)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(tone(600, 200, 8000), paced=False)
                await wait_for(lambda: len(bot.recorder.of(InputAudioRawFrame)) == 10)

        run(main())
        assert {frame.num_channels for frame in bot.recorder.of(InputAudioRawFrame)} == {2}
        channels = np.frombuffer(bot.recorder.heard(), "<i2").reshape(-1, 2)
        assert len(channels) == 1600
        assert (channels[:, 0] == channels[:, 1]).all()
        assert main_frequency(channels[:, 0].tobytes()) == pytest.approx(600, abs=15)

    def test_no_audio_in_enabled_no_audio_but_digits(self, serve: Serve) -> None:
        bot = OnACall(audio_in_enabled=False)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(tone(600, 200, 8000), paced=False)
                await carrier.press("5")
                await wait_for(lambda: bot.recorder.of(InputDTMFFrame))

        run(main())
        assert bot.recorder.of(InputAudioRawFrame) == []

    def test_audio_in_filter(self, serve: Serve) -> None:
        class Halve(BaseAudioFilter):
            rates: list[int] = []  # noqa: RUF012 - one filter in one test

            async def start(self, sample_rate: int) -> None:
                self.rates.append(sample_rate)

            async def stop(self) -> None:
                self.rates.append(0)

            async def process_frame(self, frame: Frame) -> None:
                pass

            async def filter(self, audio: bytes) -> bytes:
                return audioop.mul(audio, 2, 0.5)

        bot = OnACall(audio_in_filter=Halve(), audio_in_sample_rate=8000)
        said = tone(600, 200, 8000)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(said, paced=False)
                await wait_for(lambda: len(bot.recorder.of(InputAudioRawFrame)) == 10)

        run(main())
        assert audioop.rms(bot.recorder.heard(), 2) == pytest.approx(audioop.rms(said, 2) / 2, rel=0.02)
        assert Halve.rates == [8000, 0]

    @pytest.mark.parametrize("way", ["params", "method"])
    def test_no_audio_in_stream_on_start(self, serve: Serve, way: str) -> None:
        bot = OnACall(audio_in_sample_rate=8000, audio_in_stream_on_start=way != "params")
        if way == "method":
            make = bot.__call__

            async def late(runner_args: Any) -> None:
                original = CallTransport.input

                def input_of(transport: CallTransport) -> Any:
                    each = original(transport)
                    each.enable_audio_in_stream_on_start(False)
                    return each

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(CallTransport, "input", input_of)
                    await make(runner_args)

            served: Any = late
        else:
            served = bot

        async def main() -> None:
            server = serve(served)
            async with dialled(announce(server.url)) as carrier:
                await wait_for(lambda: bot.recorder.of(StartFrame))
                await carrier.speak(tone(600, 200, 8000), paced=False)
                # A digit comes behind the audio, so what precedes it has been dealt with.
                await carrier.press("1")
                await wait_for(lambda: bot.recorder.of(InputDTMFFrame))
                assert bot.recorder.of(InputAudioRawFrame) == []
                await bot.queue(InputTransportStartAudioStreamingFrame())
                await wait_for(lambda: bot.transport._input._streaming)
                await carrier.speak(tone(900, 200, 8000), paced=False)
                await wait_for(lambda: len(bot.recorder.of(InputAudioRawFrame)) == 10)
                await carrier.hang_up()

        run(main())
        assert main_frequency(bot.recorder.heard()) == pytest.approx(900, abs=15)


class TestVoiceDetection:
    """``vad_analyzer`` in the transport's params, which older documentation has in every bot."""

    def test_speech_is_told_and_interrupts(self, serve: Serve) -> None:
        bot = OnACall(vad_analyzer=SileroVADAnalyzer())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputAudioRawFrame(tone(440, 20_000, 24000), 24000, 1))
                await carrier.until("media", 3)
                await carrier.speak(question(), paced=False)
                await carrier.until("clear")
                await wait_for(lambda: bot.recorder.of(UserStoppedSpeakingFrame))

        run(main())
        assert bot.recorder.turns() == [
            "VADUserStartedSpeakingFrame",
            "UserStartedSpeakingFrame",
            "InterruptionFrame",
            "VADUserStoppedSpeakingFrame",
            "UserStoppedSpeakingFrame",
        ]
        # The audio went by too, and services were told how the detection is set.
        assert len(bot.recorder.heard()) > 2 * 16000 * 2
        assert [frame.vad_params.start_secs for frame in bot.recorder.of(SpeechControlParamsFrame)] == [0.2]

    def test_without_passthrough_it_still_listens(self, serve: Serve) -> None:
        bot = OnACall(vad_analyzer=SileroVADAnalyzer(), audio_in_passthrough=False)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: bot.recorder.of(UserStoppedSpeakingFrame))

        run(main())
        assert bot.recorder.of(InputAudioRawFrame) == []
        assert bot.recorder.turns().count("UserStartedSpeakingFrame") == 1

    def test_without_passthrough_and_detection_there_is_nothing(self, serve: Serve) -> None:
        bot = OnACall(audio_in_passthrough=False)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(tone(600, 200, 8000), paced=False)
                await carrier.press("1")
                await wait_for(lambda: bot.recorder.of(InputDTMFFrame))

        run(main())
        assert bot.recorder.of(InputAudioRawFrame) == []

    def test_no_interruptions_allowed(self, serve: Serve) -> None:
        bot = OnACall(vad_analyzer=SileroVADAnalyzer(), pipeline={"allow_interruptions": False})

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: bot.recorder.of(UserStoppedSpeakingFrame))
                assert carrier.of("clear") == []

        run(main())
        assert "UserStartedSpeakingFrame" in bot.recorder.turns()
        assert "InterruptionFrame" not in bot.recorder.turns()

    def test_an_aggregator_decides_about_turns_once(self, serve: Serve) -> None:
        strategies = UserTurnStrategies(
            start=[VADUserTurnStartStrategy()],
            stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.01, wait_for_transcript=False)],
        )
        pair = LLMContextAggregatorPair(
            LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=strategies)
        )
        bot = OnACall(pair.user(), vad_analyzer=SileroVADAnalyzer())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: bot.recorder.of(UserStoppedSpeakingFrame))

        run(main())
        turns = bot.recorder.turns()
        assert {name: turns.count(name) for name in turns} == {
            "VADUserStartedSpeakingFrame": 1,
            "UserStartedSpeakingFrame": 1,
            "InterruptionFrame": 1,
            "VADUserStoppedSpeakingFrame": 1,
            "UserStoppedSpeakingFrame": 1,
        }

    def test_detection_in_the_pipeline_too_is_not_doubled(self, serve: Serve) -> None:
        bot = OnACall(VADProcessor(vad_analyzer=SileroVADAnalyzer()), vad_analyzer=SileroVADAnalyzer())
        server: list[Any] = []

        def serve_and_keep(*args: Any, **settings: Any) -> Any:
            server.append(serve(*args, **settings))
            return server[0]

        async def main() -> None:
            async with bot.called(serve_and_keep) as carrier:
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: bot.recorder.of(VADUserStoppedSpeakingFrame))

        run(main())
        assert bot.recorder.turns() == ["VADUserStartedSpeakingFrame", "VADUserStoppedSpeakingFrame"]
        assert len(server[0].lines("the transport's is not used")) == 1

    def test_turn_analyzer_holds_a_turn_open(self, serve: Serve) -> None:
        class SecondTime(BaseTurnAnalyzer):
            """Says that a turn is over only when it is asked for the second time."""

            asked = 0
            heard = 0

            @property
            def speech_triggered(self) -> bool:
                return False

            @property
            def params(self) -> BaseTurnParams:
                return BaseTurnParams()

            def append_audio(self, buffer: bytes, is_speech: bool) -> EndOfTurnState:
                self.heard += is_speech
                return EndOfTurnState.INCOMPLETE

            async def analyze_end_of_turn(self) -> Any:
                self.asked += 1
                return (EndOfTurnState.COMPLETE if self.asked == 2 else EndOfTurnState.INCOMPLETE), None

            def clear(self) -> None:
                pass

        turn = SecondTime()
        bot = OnACall(vad_analyzer=SileroVADAnalyzer(), turn_analyzer=turn)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: turn.asked == 1)
                await carrier.speak(question(), paced=False)
                await wait_for(lambda: bot.recorder.of(UserStoppedSpeakingFrame))

        run(main())
        assert bot.recorder.turns() == [
            "VADUserStartedSpeakingFrame",
            "UserStartedSpeakingFrame",
            "InterruptionFrame",
            "VADUserStoppedSpeakingFrame",
            "VADUserStartedSpeakingFrame",
            "VADUserStoppedSpeakingFrame",
            "UserStoppedSpeakingFrame",
        ]
        assert turn.heard > 50

    def test_a_detector_of_ones_own_and_many_calls(self, serve: Serve) -> None:
        """Calls have their own analyzers, and each tells of its own caller."""

        class Loud(VADAnalyzer):
            def num_frames_required(self) -> int:
                return 160

            def voice_confidence(self, buffer: bytes) -> float:
                return 1.0 if audioop.rms(buffer, 2) > 1000 else 0.0

        recorders: dict[str, Recorder] = {}

        async def bot(runner_args: Any) -> None:
            params = FastAPIWebsocketParams(
                audio_in_enabled=True, vad_analyzer=Loud(params=VADParams(min_volume=0.0, start_secs=0.1))
            )
            recorder = recorders[runner_args.call.call_id] = Recorder()
            transport = await create_transport(runner_args, {"twilio": lambda: params})
            await bots.run(transport, recorder)

        server = serve(bot)

        async def call(number: int) -> None:
            sid = f"CA{number:032d}"
            async with dialled(announce(server.url, sid), sid) as carrier:
                await carrier.speak(bytes(3200) + (tone(500, 500, 8000) if number % 2 else bytes(8000)), paced=False)
                await carrier.press("1")
                await wait_for(lambda: sid in recorders and recorders[sid].of(InputDTMFFrame))
                if number % 2:
                    await wait_for(lambda: recorders[sid].of(UserStartedSpeakingFrame))
                await carrier.hang_up()

        async def main() -> None:
            await asyncio.gather(*(call(number) for number in range(4)))

        run(main())
        spoke = [bool(recorders[f"CA{number:032d}"].of(UserStartedSpeakingFrame)) for number in range(4)]
        assert spoke == [False, True, False, True]


class TestSessionTimeout:
    """``session_timeout`` is the length of a silence, and not of the call."""

    def timed(self, timeout_s: float = 0.4, **params: Any) -> OnACall:
        bot = OnACall(session_timeout=1, **params)
        bot.afterwards = {"session_timeout": timeout_s}
        return bot

    def test_every_silence_is_told_of_once(self, serve: Serve) -> None:
        # Longer than a busy machine stands still.
        bot = self.timed(1.5)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                begin = time.monotonic()
                # Both longer than the timeout: a caller who speaks, and a bot.
                await carrier.speak(tone(600, 2000, 8000))
                await bot.queue(TTSAudioRawFrame(tone(440, 2000, 24000), 24000, 1))
                await wait_for(lambda: bot.names().count("on_session_timeout") == 1)
                # The silence is what comes after them.
                assert time.monotonic() - begin > 5.2
                # Silence goes on, and noise of the line is no activity …
                await carrier.speak(bytes(8000), paced=True)
                await asyncio.sleep(0.5)
                assert bot.names().count("on_session_timeout") == 1
                # … but a digit is, and then there is another silence.
                await carrier.press("1")
                await wait_for(lambda: bot.names().count("on_session_timeout") == 2)

        run(main())
        assert {event for event in bot.events if event[0] == "on_session_timeout"} == {
            ("on_session_timeout", True, True)
        }

    def test_nobody_ever_says_anything(self, serve: Serve) -> None:
        bot = OnACall(session_timeout=1)

        async def main() -> None:
            async with bot.called(serve):
                begin = time.monotonic()
                await wait_for(lambda: "on_session_timeout" in bot.names())
                assert 0.7 < time.monotonic() - begin < 8

        run(main())

    def test_with_voice_detection_only_speech_counts(self, serve: Serve) -> None:
        bot = self.timed(vad_analyzer=SileroVADAnalyzer())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                # A tone is loud, but nobody speaks.
                speaking = asyncio.create_task(carrier.speak(tone(600, 8000, 8000)))
                await wait_for(lambda: "on_session_timeout" in bot.names())
                assert not speaking.done()
                speaking.cancel()

        run(main())

    def test_a_mixers_background_is_no_activity(self, serve: Serve) -> None:
        bot = self.timed(audio_out_mixer=Hum())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await wait_for(lambda: "on_session_timeout" in bot.names())
                assert len(carrier.of("media")) > 10

        run(main())


class Hum(BaseAudioMixer):
    """Adds a tone of 300 Hz."""

    def __init__(self) -> None:
        self.rate = 0
        self.position = 0

    async def start(self, sample_rate: int) -> None:
        self.rate = sample_rate

    async def stop(self) -> None:
        pass

    async def process_frame(self, frame: Frame) -> None:
        pass

    async def mix(self, audio: bytes) -> bytes:
        samples = np.frombuffer(audio, "<i2").astype(float)
        at = (self.position + np.arange(len(samples))) / self.rate
        self.position += len(samples)
        return (samples + 4000 * np.sin(2 * np.pi * 300 * at)).clip(-32768, 32767).astype("<i2").tobytes()


def level(pcm: bytes, frequency_hz: float, sample_rate: int = 8000) -> float:
    """The amplitude of one frequency in a clip."""
    samples = np.frombuffer(pcm, "<i2").astype(float) * np.hanning(len(pcm) // 2)
    wave = np.exp(-2j * np.pi * frequency_hz * np.arange(len(samples)) / sample_rate)
    return float(abs(samples @ wave)) * 4 / len(samples)


class TestOutput:
    @pytest.mark.parametrize("params", [{}, {"add_wav_header": True}, {"audio_out_sample_rate": 8000}])
    def test_audio_is_heard(self, serve: Serve, params: dict[str, Any]) -> None:
        bot = OnACall(**params)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputAudioRawFrame(tone(440, 200, 24000), 24000, 1))
                await carrier.until("mark")
                heard = carrier.heard()
                assert main_frequency(heard) == pytest.approx(440, abs=15)
                # No header, which would sound like a click, and no rest of one.
                assert len(heard) / 16 == pytest.approx(200, abs=45)
                assert abs(np.frombuffer(heard[:40], "<i2")).max() < 6000

        run(main())
        expected = params.get("audio_out_sample_rate", 24000)
        assert bot.transport._output.sample_rate == expected

    @pytest.mark.parametrize("chunks", [1, 2, 4, 10])
    def test_audio_out_10ms_chunks(self, serve: Serve, chunks: int) -> None:
        """However long the pieces are that the pipeline hands over, 20 ms go into each message."""
        bot = OnACall(audio_out_10ms_chunks=chunks)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputAudioRawFrame(tone(440, 200, 24000), 24000, 1))
                await carrier.until("mark")
                assert all(len(message["media"]["payload"]) == 216 for message in carrier.of("media"))
                assert main_frequency(carrier.heard()) == pytest.approx(440, abs=15)

        run(main())
        assert bot.transport._output.audio_chunk_size == chunks * 480

    @pytest.mark.parametrize("channels", [1, 2])
    def test_frames_of_two_channels_are_mixed_down(self, serve: Serve, channels: int) -> None:
        bot = OnACall(audio_out_channels=channels)
        left, right = (np.frombuffer(tone(freq, 400, 24000), "<i2") for freq in (500, 1100))
        both = np.stack([left, right], axis=1).tobytes()

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputAudioRawFrame(both, 24000, 2))
                await carrier.until("mark")
                heard = carrier.heard()
                assert len(heard) / 16 == pytest.approx(400, abs=45)
                peak = 32768 * 10 ** (-12 / 20)
                assert level(heard[1600:-1600], 500) == pytest.approx(peak / 2, rel=0.1)
                assert level(heard[1600:-1600], 1100) == pytest.approx(peak / 2, rel=0.1)

        run(main())

    def test_no_audio_out_enabled_nothing_is_sent(self, serve: Serve) -> None:
        bot = OnACall(audio_out_enabled=False, audio_out_mixer=Hum())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(
                    OutputAudioRawFrame(tone(440, 200, 24000), 24000, 1),
                    OutputDTMFUrgentFrame(button=KeypadEntry.FIVE),
                    EndFrame(),
                )
                await carrier.closed()
                assert carrier.messages == []

        run(main())

    def test_audio_out_mixer_after_an_interruption_too(self, serve: Serve) -> None:
        bot = OnACall(audio_out_mixer=Hum())

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await carrier.until("media", 15)
                assert main_frequency(carrier.heard()) == pytest.approx(300, abs=15)
                await bot.queue(OutputAudioRawFrame(tone(1200, 5000, 24000), 24000, 1))
                await wait_for(lambda: level(carrier.heard()[-3200:], 1200) > 5000)
                assert level(carrier.heard()[-3200:], 300) > 2000
                await bot.queue(InterruptionWorkerFrame())
                await carrier.until("clear")
                carrier.messages.clear()
                await carrier.until("media", 20)
                assert level(carrier.heard(), 300) == pytest.approx(4000, rel=0.1)
                assert level(carrier.heard(), 1200) < 200
                # It runs as fast as the line, and no faster.
                begin, count = time.monotonic(), len(carrier.of("media"))
                await carrier.until("media", count + 20)
                assert time.monotonic() - begin > 0.25

        run(main())

    def test_messages_go_out_as_they_are(self, serve: Serve) -> None:
        bot = OnACall()
        own = {"event": "mark", "streamSid": "x", "mark": {"name": "own"}}

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputTransportMessageFrame(message=own))
                await carrier.until("mark", 1)
                await bot.queue(OutputTransportMessageUrgentFrame(message={**own, "mark": {"name": "urgent"}}))
                await carrier.until("mark", 2)
                assert [message["mark"]["name"] for message in carrier.of("mark")] == ["own", "urgent"]

        run(main())

    @pytest.mark.parametrize("kind", [OutputDTMFFrame, OutputDTMFUrgentFrame])
    def test_digits_are_tones(self, serve: Serve, kind: Any) -> None:
        """https://www.itu.int/rec/T-REC-Q.23"""
        bot = OnACall()

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(kind(button=KeypadEntry.FIVE))
                await carrier.until("mark")
                heard = carrier.heard()
                # The second half of a key's recording is a pause.
                sounding = heard[: 8000 * 2 // 10]
                for frequency in (697, 852, 941, 1209, 1477):
                    assert level(sounding, frequency) < level(sounding, 770) / 3
                    assert level(sounding, frequency) < level(sounding, 1336) / 3

        run(main())

    def test_a_serializer_of_ones_own_makes_room(self, serve: Serve) -> None:
        """As with pipecat's create_transport, the call's serializer takes its place."""
        mine = TwilioFrameSerializer(stream_sid="MZx", params=TwilioFrameSerializer.InputParams(auto_hang_up=False))
        bot = OnACall(serializer=mine)

        async def main() -> None:
            async with bot.called(serve) as carrier:
                await bot.queue(OutputAudioRawFrame(tone(440, 100, 24000), 24000, 1))
                await carrier.until("mark")
                assert {message["streamSid"] for message in carrier.of("media")} == {carrier.stream_sid}

        run(main())
        assert bot.transport._params.serializer is not mine


class TestEvents:
    def test_connected_and_disconnected(self, serve: Serve) -> None:
        bot = OnACall()

        async def main() -> None:
            async with bot.called(serve):
                pass

        run(main())
        assert bot.events == [("on_client_connected", True, True), ("on_client_disconnected", True, True)]


class TestOldParams:
    @pytest.fixture
    def warnings(self) -> Any:
        notices.forget()
        lines: list[str] = []
        sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
        yield lines
        logger.remove(sink)

    @pytest.mark.parametrize(
        ("given", "now", "warning"),
        [
            ({"vad_enabled": True}, {"audio_in_enabled": True}, "is now audio_in_enabled="),
            ({"vad_enabled": False, "audio_in_enabled": True}, {"audio_in_enabled": True}, "is now audio_in_enabled="),
            ({"vad_audio_passthrough": True}, {"audio_in_passthrough": True}, "is now audio_in_passthrough="),
            ({"vad_audio_passthrough": False}, {"audio_in_passthrough": True}, "is now audio_in_passthrough="),
            ({"camera_in_enabled": True}, {"video_in_enabled": True}, "is now video_in_enabled="),
            ({"camera_out_enabled": True}, {"video_out_enabled": True}, "is now video_out_enabled="),
            ({"camera_out_is_live": True}, {"video_out_is_live": True}, "is now video_out_is_live="),
            ({"camera_out_width": 320}, {"video_out_width": 320}, "is now video_out_width="),
            ({"camera_out_height": 240}, {"video_out_height": 240}, "is now video_out_height="),
            ({"camera_out_framerate": 5}, {"video_out_framerate": 5}, "is now video_out_framerate="),
            ({"camera_out_color_format": "RGBA"}, {"video_out_color_format": "RGBA"}, "video_out_color_format="),
            ({"camera_out_bitrate": 9}, {"video_out_bitrate": 9}, "is now video_out_bitrate="),
            ({"camera_out_width": 1, "video_out_width": 2}, {"video_out_width": 2}, "is now video_out_width="),
            ({"audio_in_enable": True}, {"audio_in_enabled": False}, "did you mean `audio_in_enabled`?"),
            ({"surely_not_there": 1}, {}, "pipecat has no such field"),
        ],
    )
    def test_each_is_taken_with_one_warning(
        self, warnings: list[str], given: dict[str, Any], now: dict[str, Any], warning: str
    ) -> None:
        for _ in range(3):
            params = FastAPIWebsocketParams(**given)
        assert {name: getattr(params, name) for name in now} == now
        assert len(warnings) == 1
        assert warning in warnings[0]

    def test_documented_params_are_taken_without_a_word(self, warnings: list[str]) -> None:
        FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, session_timeout=3, add_wav_header=True)
        PipelineParams(audio_in_sample_rate=8000, allow_interruptions=True)
        assert warnings == []

    def test_vad_analyzer_stays_with_copies(self, warnings: list[str]) -> None:
        analyzer = SileroVADAnalyzer()
        params: Any = FastAPIWebsocketParams(vad_analyzer=analyzer)
        assert params.vad_analyzer is analyzer
        assert params.model_copy(update={"add_wav_header": False}).vad_analyzer is analyzer
        assert len(warnings) == 1
        assert "LLMUserAggregatorParams" in warnings[0]

    def test_what_is_no_analyzer_is_refused(self) -> None:
        with pytest.raises(ValueError, match="vad_analyzer takes a VADAnalyzer, got str"):
            FastAPIWebsocketParams(vad_analyzer="silero")

    def test_pipeline_params(self, warnings: list[str]) -> None:
        params = PipelineParams(allow_interruptions=False, interruption_strategies=[], start_metadata={"a": 1})
        assert params.start_metadata == {"a": 1, "allow_interruptions": False}
        assert len(warnings) == 2


def test_the_early_import_is_not_the_one_that_bots_get() -> None:
    """This module took pipecat's own name before the patches; a bot is imported after them."""
    import pipecat.runner.utils

    assert pipecat.runner.utils.create_transport is create_transport
    assert callable(imported_too_early)
