"""
The bot that is measured under load: it runs unmodified under `wsvoice run` and under pipecat's development runner.

LOAD_WORK=echo repeats what it hears; LOAD_WORK=conversation answers each sentence with three seconds of sound that are
there at once, as from a speech service, and stops when it is interrupted. LOAD_RATE=8000 sets the pipeline's rates,
which are pipecat's own otherwise. LOAD_VAD=1 puts Silero's voice activity detection into the pipeline; when it hears
speech begin and end is written to the file LOAD_EVENTS, in milliseconds of the caller's audio.
"""

import json
import os
from pathlib import Path

import numpy as np
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    TTSAudioRawFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.utils import create_transport
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

WORK = os.environ.get("LOAD_WORK", "echo")
RATE = int(os.environ.get("LOAD_RATE") or 0)
VAD = os.environ.get("LOAD_VAD") == "1" or WORK == "conversation"
EVENTS = os.environ.get("LOAD_EVENTS")
ANSWER_S = 3


class Echo(FrameProcessor):
    """Turns the caller's audio into the bot's."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


class Talker(FrameProcessor):
    """Answers every sentence at once, and is quiet when the caller speaks."""

    def __init__(self) -> None:
        super().__init__()
        self._rate = RATE or 24000
        seconds = np.arange(self._rate * ANSWER_S) / self._rate
        self._answer = (8000 * np.sin(2 * np.pi * 440 * seconds)).astype("<i2").tobytes()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            return
        if direction is FrameDirection.DOWNSTREAM and isinstance(frame, VADUserStartedSpeakingFrame):
            await self.broadcast_interruption()
        await self.push_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM and isinstance(frame, VADUserStoppedSpeakingFrame):
            await self.push_frame(TTSStartedFrame())
            await self.push_frame(TTSAudioRawFrame(self._answer, self._rate, 1))
            await self.push_frame(TTSStoppedFrame())


class Listener(FrameProcessor):
    """Remembers when speech began and ended, on the clock of the caller's audio."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[str, int]] = []
        self._heard_ms = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self._heard_ms += len(frame.audio) / 2 / frame.sample_rate * 1000
        elif direction is FrameDirection.DOWNSTREAM and isinstance(frame, VADUserStartedSpeakingFrame):
            self.events.append(("start", round(self._heard_ms)))
        elif direction is FrameDirection.DOWNSTREAM and isinstance(frame, VADUserStoppedSpeakingFrame):
            self.events.append(("stop", round(self._heard_ms)))
        await self.push_frame(frame, direction)


transport_params = {
    "twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True),
}


async def bot(runner_args):
    # wsvoice brings a transport, also where none of pipecat's functions is changed; its params are the same.
    transport = getattr(runner_args, "transport", None) or await create_transport(runner_args, transport_params)
    listener = Listener()
    processors = [transport.input()]
    if VAD:
        from pipecat.audio.vad.silero import SileroVADAnalyzer
        from pipecat.processors.audio.vad_processor import VADProcessor

        processors += [VADProcessor(vad_analyzer=SileroVADAnalyzer()), listener]
    processors += [Talker() if WORK == "conversation" else Echo(), transport.output()]
    params = PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE) if RATE else PipelineParams()
    worker = PipelineWorker(Pipeline(processors), params=params)

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    if EVENTS and VAD:
        with Path(EVENTS).open("a") as file:
            file.write(json.dumps({"call": runner_args.call_data["call_id"], "events": listener.events}) + "\n")


if __name__ == "__main__":
    # Only pipecat's runner gets here.
    from pipecat_runner import serve

    serve()
