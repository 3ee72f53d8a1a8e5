"""A caller: says one tone, waits until something comes back, says a second one and hangs up."""

import array
import asyncio
import math

from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, OutputAudioRawFrame, StartFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

RATE = 16000


def tone(hz: float, duration_s: float) -> OutputAudioRawFrame:
    samples = (int(8000 * math.sin(2 * math.pi * hz * n / RATE)) for n in range(int(duration_s * RATE)))
    return OutputAudioRawFrame(array.array("h", samples).tobytes(), RATE, 1)


class Ear(FrameProcessor):
    """Notices sound, and the silence after it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = asyncio.Event()
        self.silent_again = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            loud = max(array.array("h", frame.audio), default=0) > 1000
            if loud:
                self.heard.set()
            elif self.heard.is_set():
                self.silent_again.set()
            return
        await self.push_frame(frame, direction)


class Slow(FrameProcessor):
    """Takes its time to start, and what comes after it waits."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await asyncio.sleep(0.5)
        await self.push_frame(frame, direction)


async def caller(runner_args):
    await call_back(runner_args)


async def slow_caller(runner_args):
    await call_back(runner_args, Slow())


async def call_back(runner_args, *others):
    transport = runner_args.transport
    ear = Ear()
    worker = PipelineWorker(Pipeline([*others, transport.input(), ear, transport.output()]))

    @transport.event_handler("on_connected")
    async def on_connected(transport, socket):
        await worker.queue_frame(tone(1000, 0.4))
        await ear.silent_again.wait()
        # So that the two tones are two sounds.
        await asyncio.sleep(0.3)
        await worker.queue_frames([tone(600, 0.4), EndFrame()])

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


async def fails(runner_args):
    raise RuntimeError("a bug in the caller")


async def stubborn(runner_args):
    """Waits for ever, also when it is told to stop for the first time."""
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()
