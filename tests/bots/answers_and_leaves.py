"""Answers with a tone, and is gone once it has been played: the server ends the call."""

import array
import math

from pipecat.frames.frames import EndFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.runner import WorkerRunner

SAMPLES = array.array("h", (int(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(4000)))


async def bot(runner_args):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), transport.output()]))

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        await worker.queue_frames([OutputAudioRawFrame(SAMPLES.tobytes(), 8000, 1), EndFrame()])

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
