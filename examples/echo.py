"""
The smallest bot: it repeats what it hears, at once. No keys, no models.

    wsvoice dial examples/echo.py        a test call, no phone needed
    wsvoice run examples/echo.py         serve it to a telephone provider
"""

from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Echo(FrameProcessor):
    """Turns the caller's audio into the bot's."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def bot(runner_args):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
