"""A telephone bot that repeats the caller."""

import wsvoice
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Echo(FrameProcessor):
    """Turns what the caller says into what the bot says."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def bot(runner_args: wsvoice.CallArguments) -> None:
    """Handle one call, from the first ring to the hang-up."""
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]))
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
