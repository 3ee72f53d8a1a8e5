"""
A telephone menu: it speaks, takes keys, and hangs up.

    1   the opening hours        *   the menu again
    2   the address              #   goodbye

A key or the caller's voice interrupts what is being said. A caller who does nothing is asked twice, then hung up on.
"""

import asyncio
import os
import wave
from pathlib import Path

import wsvoice
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADParams
from pipecat.frames.frames import (
    EndWorkerFrame,
    Frame,
    InputDTMFFrame,
    OutputAudioRawFrame,
    StartFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

RATE = 8000  # the telephone's, and the prompts'
WAIT_S = float(os.environ.get("IVR_WAIT_S", "5"))  # for a key, once the menu has been spoken
REMINDERS = 2  # before the bot gives up

MENU = ("menu", "more")
ANSWERS = {"1": ("hours",), "2": ("address",), "*": ()}


def load_prompts() -> dict[str, bytes]:
    """Return the samples of every prompt by its name."""
    prompts = {}
    for path in (Path(__file__).parent / "prompts").glob("*.wav"):
        with wave.open(str(path)) as file:
            if file.getparams()[:3] != (1, 2, RATE):
                raise ValueError(f"{path.name} is not mono with 16 bits at {RATE} Hz")
            prompts[path.stem] = file.readframes(file.getnframes())
    return prompts


PROMPTS = load_prompts()
PAUSE = bytes(2 * RATE // 4)  # a quarter of a second between two prompts


class Menu(FrameProcessor):
    """The menu of one call: what the caller does goes in, what the bot says comes out."""

    def __init__(self) -> None:
        super().__init__()
        self._reminders = 0
        self._over = False
        self._timer: asyncio.Task[None] | None = None

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if self._over:
            return
        if isinstance(frame, StartFrame):
            await self._say("welcome", *MENU)
        elif isinstance(frame, InputDTMFFrame):
            await self._interrupt()
            await self._press(frame.button.value)
        elif isinstance(frame, VADUserStartedSpeakingFrame):
            await self._interrupt()
        elif isinstance(frame, VADUserStoppedSpeakingFrame):
            await self._say("keys", *MENU)

    async def cleanup(self) -> None:
        await super().cleanup()
        await self._stop_timer()

    async def _press(self, key: str) -> None:
        if key == "#":
            await self._hang_up()
        else:
            await self._say(*ANSWERS.get(key, ("wrong",)), *MENU)

    async def _interrupt(self) -> None:
        """Stop what is being said, for the caller has done something."""
        self._reminders = 0
        await self._stop_timer()
        await self.broadcast_interruption()

    async def _say(self, *names: str) -> None:
        """Speak prompts one after the other, and remind the caller if nothing follows."""
        await self._stop_timer()
        spoken_s = await self._play(*names)
        self._timer = self.create_task(self._remind(spoken_s + WAIT_S))

    async def _play(self, *names: str) -> float:
        """Send prompts to the caller, and return how long they are in seconds."""
        audio = PAUSE.join(PROMPTS[name] for name in names)
        await self.push_frame(OutputAudioRawFrame(audio, RATE, num_channels=1))
        return len(audio) / (2 * RATE)

    async def _remind(self, wait_s: float) -> None:
        while self._reminders < REMINDERS:
            await asyncio.sleep(wait_s)
            self._reminders += 1
            wait_s = WAIT_S + await self._play("waiting", *MENU)
        await asyncio.sleep(wait_s)
        await self._hang_up()

    async def _hang_up(self) -> None:
        self._over = True
        await self._play("goodbye")
        # Behind the goodbye, which is heard to its end before the call is over.
        await self.push_frame(EndWorkerFrame())

    async def _stop_timer(self) -> None:
        if self._timer is not None:
            timer, self._timer = self._timer, None
            await self.cancel_task(timer)


async def bot(runner_args: wsvoice.CallArguments) -> None:
    """Handle one call, from the first ring to the hang-up."""
    transport = runner_args.transport
    # A cough is no speech, and a breath between two words is no end of it.
    vad = VADProcessor(vad_analyzer=SileroVADAnalyzer(params=VADParams(start_secs=0.2, stop_secs=0.6)))
    worker = PipelineWorker(
        Pipeline([transport.input(), vad, Menu(), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
    )
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
