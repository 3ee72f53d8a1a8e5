"""
A telephone menu without words: it answers every key with as many beeps. No API keys, no models.

    wsvoice dial examples/keypad.py --dtmf '3ww#'        a test call: press 3, wait a second, press #
    wsvoice run examples/keypad.py                       serve it to a telephone provider

It speaks first, as most telephone bots do: a rising chime. `#` says goodbye and hangs up, `*` repeats the greeting,
and a key that is pressed while the bot is sounding interrupts it.
"""

import numpy as np
from pipecat.frames.frames import EndWorkerFrame, Frame, InputDTMFFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

# pipecat's default; the transport makes the telephone's rate of it.
SAMPLE_RATE = 24_000


def notes(*freqs_hz: float, note_ms: int, rest_ms: int) -> OutputAudioRawFrame:
    """Return one note after the other, each with a rest behind it, as sound for the caller."""
    rest = np.zeros(SAMPLE_RATE * rest_ms // 1000)
    seconds = np.arange(SAMPLE_RATE * note_ms // 1000) / SAMPLE_RATE
    # A note that starts or stops at full strength clicks.
    swell = np.minimum(1, np.minimum(seconds, seconds[::-1]) / 0.01)
    sound = [part for freq in freqs_hz for part in (0.3 * swell * np.sin(2 * np.pi * freq * seconds), rest)]
    pcm = (32767 * np.concatenate(sound)).astype("<i2").tobytes()
    return OutputAudioRawFrame(pcm, sample_rate=SAMPLE_RATE, num_channels=1)


def greeting() -> OutputAudioRawFrame:
    return notes(523, 659, 784, note_ms=200, rest_ms=0)


def goodbye() -> OutputAudioRawFrame:
    return notes(784, 659, 523, note_ms=200, rest_ms=0)


def beeps(count: int) -> OutputAudioRawFrame:
    return notes(*[880.0] * count, note_ms=100, rest_ms=140)


class Keypad(FrameProcessor):
    """Answers the keys that the caller presses."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputDTMFFrame):
            await self.answer(frame.button.value)
        else:
            await self.push_frame(frame, direction)

    async def answer(self, key: str) -> None:
        # Silences what is being played, and what waits at the provider.
        await self.broadcast_interruption()
        if key == "#":
            await self.push_frame(goodbye())
            # Behind the goodbye, so that it is heard before the call ends.
            await self.push_frame(EndWorkerFrame())
        elif key == "*":
            await self.push_frame(greeting())
        else:
            # Ten for 0, as the dial of an old telephone has it.
            await self.push_frame(beeps(int(key) or 10))


async def bot(runner_args):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), Keypad(), transport.output()]))

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        await worker.queue_frame(greeting())

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
