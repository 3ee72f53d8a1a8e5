"""A caller: says one tone, waits until something comes back, says a second one and hangs up; or goes on for long."""

import array
import asyncio
import math
import sys

from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, OutputAudioRawFrame, StartFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

RATE = 16000
#: How long :func:`caller` goes on before it hangs up.
TALK_S = 10.0
#: How long :func:`brief_caller` does.
BRIEFLY_S = 2.0
#: A sound is over when it has been silent for that long; one that merely breaks off is not.
OVER_S = 0.2


def tone(hz: float, duration_s: float) -> OutputAudioRawFrame:
    samples = (int(8000 * math.sin(2 * math.pi * hz * n / RATE)) for n in range(int(duration_s * RATE)))
    return OutputAudioRawFrame(array.array("h", samples).tobytes(), RATE, 1)


class Ear(FrameProcessor):
    """Notices sound, and the silence after it."""

    def __init__(self) -> None:
        super().__init__()
        self._heard = False
        self._quiet_s = 0.0
        self.over = asyncio.Event()

    def listen_anew(self) -> None:
        """Wait for the end of the next sound, and not of the last one."""
        self._heard = False
        self.over.clear()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            loud = max(array.array("h", frame.audio), default=0) > 1000
            self._heard = self._heard or loud
            self._quiet_s = 0.0 if loud else self._quiet_s + len(frame.audio) / 2 / frame.sample_rate
            if self._heard and self._quiet_s >= OVER_S:
                self.over.set()
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
    await call_back(runner_args, talk_s=TALK_S)


async def brief_caller(runner_args):
    await call_back(runner_args, talk_s=BRIEFLY_S)


async def slow_caller(runner_args):
    await call_back(runner_args, Slow())


async def call_back(runner_args, *others, talk_s=0.0):
    transport = runner_args.transport
    ear = Ear()
    worker = PipelineWorker(Pipeline([*others, transport.input(), ear, transport.output()]))

    @transport.event_handler("on_connected")
    async def on_connected(transport, socket):
        loop = asyncio.get_running_loop()
        end = loop.time() + talk_s
        while loop.time() < end:
            await say(1000)
            await say(600)
        await say(1000)
        await worker.queue_frames([tone(600, 0.4), EndFrame()])

    async def say(hz):
        ear.listen_anew()
        await worker.queue_frame(tone(hz, 0.4))
        await ear.over.wait()

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


async def exits(runner_args):
    """Ends the process, or would."""
    sys.exit("enough")


async def exits_in_a_task(runner_args):
    """Has a task that does so."""
    task = asyncio.create_task(exits(runner_args))
    await asyncio.sleep(60)
    await task
