"""
A bot for pipecat's development runner, as its documentation has them; it repeats what it hears.

It writes the kind of its transport to stderr.
"""

import sys

from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner


class Echo(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


transport_params = {
    "twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True),
}


async def run_bot(transport: BaseTransport, handle_sigint: bool):
    worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: RunnerArguments):
    transport = await create_transport(runner_args, transport_params)
    print(f"the transport is a {type(transport).__name__}", file=sys.stderr, flush=True)
    await run_bot(transport, runner_args.handle_sigint)


if __name__ == "__main__":
    # At the end of a call pipecat's serializer asks Twilio's REST API to hang up. Its credentials are made up in
    # a test, and nothing of a test may leave the machine.
    from pipecat.serializers.twilio import TwilioFrameSerializer

    async def hang_up_nothing(self):
        pass

    TwilioFrameSerializer._hang_up_call = hang_up_nothing

    from pipecat.runner.run import main

    main()
