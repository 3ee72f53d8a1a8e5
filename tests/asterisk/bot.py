"""
The bot that ``test_calls.py`` calls. The number that was dialled says what it does; it repeats what it hears where
Asterisk does not tell the number.

What it says is in ``sounds/`` of the folder that it runs in, as 8 kHz PCM.
"""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from loguru import logger
from pipecat.frames.frames import (
    EndWorkerFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from wsvoice.audio import PCMU_8K

RATE = 8000
#: A caller at this level, of 32768, is speaking.
LOUD = 500


def sound(name):
    return (Path("sounds") / name).read_bytes()


class Echo(FrameProcessor):
    """Repeats what it hears, and notes the keys."""

    def __init__(self):
        super().__init__()
        self.keys = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputDTMFFrame):
            self.keys += frame.button.value
            logger.info("the bot has got the keys {}", self.keys)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


class Talker(FrameProcessor):
    """Says something long; once the caller presses a key or speaks it says something short instead, and hangs up."""

    def __init__(self):
        super().__init__()
        self.is_interrupted = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            is_loud = np.abs(np.frombuffer(frame.audio, "<i2").astype(int)).mean() > LOUD
        else:
            await self.push_frame(frame, direction)
            is_loud = False
        if isinstance(frame, StartFrame):
            await self.say("long")
        if (is_loud or isinstance(frame, InputDTMFFrame)) and not self.is_interrupted:
            self.is_interrupted = True
            await self.broadcast_interruption()
            await self.say("short")
            await self.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)

    async def say(self, name):
        await self.push_frame(OutputAudioRawFrame(sound(name), RATE, 1))


class LastWord(FrameProcessor):
    """Says one word and hangs up."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(OutputAudioRawFrame(sound("word"), RATE, 1))
            await self.push_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)


async def texts(websocket, event):
    """Return the first of Asterisk's texts that is called `event`."""
    while True:
        message = await websocket.receive()
        content = json.loads(message.get("text") or "{}")
        if content.get("event") == event:
            return content


async def flood(websocket):
    """Write half a minute as fast as it is taken, then ask how much of it still waits."""
    payload = PCMU_8K.encode(sound("flood"))
    times = [time.monotonic()]
    for start in range(0, len(payload), RATE):
        await websocket.send_bytes(payload[start : start + RATE])
        times.append(time.monotonic())
    longest_s = max(after - before for before, after in pairwise(times))
    await websocket.send_text('{"command":"GET_STATUS"}')
    status = await texts(websocket, "STATUS")
    logger.info("all is written; one message waited {:.1f} s; queued: {}", longest_s, status["queue_length"])
    await texts(websocket, "DTMF_END")


async def flush(websocket):
    """Write something long at once; take it back when a key is pressed, and say something short."""
    payload = PCMU_8K.encode(sound("long"))
    for start in range(0, len(payload), 160):
        await websocket.send_bytes(payload[start : start + 160])
    await texts(websocket, "DTMF_END")
    await websocket.send_text('{"command":"FLUSH_MEDIA"}')
    await websocket.send_bytes(PCMU_8K.encode(sound("short")))
    await websocket.send_text('{"command":"MARK_MEDIA","correlation_id":"said"}')
    await texts(websocket, "MEDIA_MARK_PROCESSED")


async def bot(runner_args):
    number = runner_args.call.to_number
    if number in ("203", "204"):
        await (flush if number == "203" else flood)(runner_args.websocket)
        return
    transport = runner_args.transport
    processor = {"201": Talker, "202": Talker, "400": LastWord}.get(number, Echo)()
    worker = PipelineWorker(Pipeline([transport.input(), processor, transport.output()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
