"""Bots for the server's tests; each is what its name says."""

from __future__ import annotations

import asyncio
from typing import Any

from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionWorkerFrame,
    OutputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Echo(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


class Listener(FrameProcessor):
    """Keeps what comes in, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = bytearray()
        self.sample_rate = 0
        self.digits: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self.audio += frame.audio
            self.sample_rate = frame.sample_rate
            return
        if isinstance(frame, InputDTMFFrame):
            self.digits.append(str(frame.button.value))
        await self.push_frame(frame, direction)


async def run(transport: Any, *processors: FrameProcessor, on_worker: Any = None, **params: Any) -> None:
    """Run a pipeline between the two ends of a transport until it ends."""
    worker = PipelineWorker(
        Pipeline([transport.input(), *processors, transport.output()]), params=PipelineParams(**params)
    )
    if on_worker is not None:
        on_worker(worker)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


async def echo(runner_args: Any) -> None:
    await run(runner_args.transport, Echo())


async def echo_8k(runner_args: Any) -> None:
    await run(runner_args.transport, Echo(), audio_in_sample_rate=8000, audio_out_sample_rate=8000)


def says(pcm: bytes, sample_rate: int = 24000, *, then_end: bool = True) -> Any:
    """Return a bot that says `pcm` in one burst, as speech synthesis does, and ends the call."""

    async def bot(runner_args: Any) -> None:
        transport = runner_args.transport
        workers: list[PipelineWorker] = []

        @transport.event_handler("on_client_connected")
        async def on_client_connected(transport: Any, client: Any) -> None:
            frames: list[Frame] = [TTSStartedFrame()]
            step = sample_rate // 5 * 2
            frames += [TTSAudioRawFrame(pcm[at : at + step], sample_rate, 1) for at in range(0, len(pcm), step)]
            frames.append(TTSStoppedFrame())
            if then_end:
                frames.append(EndFrame())
            await workers[0].queue_frames(frames)

        await run(transport, on_worker=workers.append)

    return bot


class InterruptOnDigit(FrameProcessor):
    """Interrupts the bot when a key is pressed."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputDTMFFrame):
            await self.push_frame(InterruptionWorkerFrame(), FrameDirection.UPSTREAM)
        await self.push_frame(frame, direction)


async def never_returns(runner_args: Any) -> None:
    await asyncio.Event().wait()
