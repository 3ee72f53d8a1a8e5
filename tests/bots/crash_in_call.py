"""The bot fails while it talks; pipecat keeps its pipeline going, so the bot's own code has to be what fails."""

import asyncio

from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Echo(FrameProcessor):
    def __init__(self, heard_enough: asyncio.Event):
        super().__init__()
        self._heard_enough = heard_enough
        self._heard_s = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._heard_s += len(frame.audio) / 2 / frame.sample_rate
            if self._heard_s > 1.5:
                self._heard_enough.set()
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def look_up_the_order(heard_enough: asyncio.Event):
    await heard_enough.wait()
    raise LookupError("no such order")


async def bot(runner_args):
    transport = runner_args.transport
    heard_enough = asyncio.Event()
    worker = PipelineWorker(Pipeline([transport.input(), Echo(heard_enough), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), look_up_the_order(heard_enough))
