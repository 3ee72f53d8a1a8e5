"""
The bot that is measured: it repeats what it hears, at pipecat's default rates (16 kHz in, 24 kHz out).

It is written for pipecat's development runner and runs unmodified under `wsvoice run`.
"""

import numpy as np
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import create_transport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

# Louder than line noise, which mu-law keeps far below it.
SOUND = 200


class Echo(FrameProcessor):
    """
    Turns the caller's audio into the bot's, from the first sound on.

    What came while the pipeline was being set up stands in a queue for the rest of an endless stream of audio.
    Where it is silence it is not sent, so that a tone later in the call measures the way alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._begun = self._begun or int(np.frombuffer(frame.audio, "<i2").max(initial=0)) > SOUND
            if not self._begun:
                return
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


transport_params = {
    "twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True),
}


async def bot(runner_args):
    transport = await create_transport(runner_args, transport_params)
    worker = PipelineWorker(Pipeline([transport.input(), Echo(), transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    # Only pipecat's runner gets here.
    from pipecat_runner import serve

    serve()
