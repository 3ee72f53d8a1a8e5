"""
Answers a sound of its caller with a tone, as late as a bot that thinks: never twice the same.

ANSWER_DELAY_MS (400) after it has heard 100 ms of silence, give or take ANSWER_SPREAD_MS (50, a standard deviation).
"""

import asyncio
import os
import random

import numpy as np
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import create_transport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

RATE = 8000
DELAY_S = float(os.environ.get("ANSWER_DELAY_MS", "400")) / 1000
SPREAD_S = float(os.environ.get("ANSWER_SPREAD_MS", "50")) / 1000
# Louder than line noise, which mu-law keeps far below it.
SOUND = 500
SILENCE_S = 0.1
TONE = (8000 * np.sin(2 * np.pi * 440 * np.arange(RATE * 2 // 5) / RATE)).astype("<i2").tobytes()
#: 20 ms of it.
FRAME = RATE // 50 * 2


class Answer(FrameProcessor):
    """Says the tone each time that its caller has finished."""

    def __init__(self) -> None:
        super().__init__()
        self._has_heard, self._quiet_s = False, 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, InputAudioRawFrame):
            await self.push_frame(frame, direction)
            return
        samples = np.frombuffer(frame.audio, "<i2")
        if samples.max(initial=0) > SOUND:
            self._has_heard, self._quiet_s = True, 0.0
            return
        self._quiet_s += len(samples) / frame.sample_rate
        if self._has_heard and self._quiet_s >= SILENCE_S - 0.001:
            self._has_heard = False
            self.create_task(self._say())

    async def _say(self) -> None:
        await asyncio.sleep(max(0.0, random.gauss(DELAY_S, SPREAD_S)))
        for at in range(0, len(TONE), FRAME):
            await self.push_frame(OutputAudioRawFrame(TONE[at : at + FRAME], RATE, 1))


transport_params = {
    "twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True),
}


async def bot(runner_args):
    transport = await create_transport(runner_args, transport_params)
    params = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)
    worker = PipelineWorker(Pipeline([transport.input(), Answer(), transport.output()]), params=params)

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
