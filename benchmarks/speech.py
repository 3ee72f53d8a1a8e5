"""What a bot takes for speech in a caller's audio, found without a call: pipecat's own detection, frame by frame."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator

from load import FRAME, RATE
from loguru import logger

from wsvoice.audio import PCMU_8K

#: pipecat's own rate of the caller's audio, in Hz.
DEFAULT_RATE = 16000

#: When speech began ("start") and ended ("stop"), in milliseconds of the audio that the bot was given.
Events = list[tuple[str, int]]


@functools.lru_cache(maxsize=2048)
def expected_speech(server: str, rate: int, audio: bytes) -> Events:
    """
    Return the events that a server's bot has to note.

    Args:
        server: Whose way to convert the caller's audio is taken.
        rate: The pipeline's rate, 0 for pipecat's own.
        audio: What the caller says, mu-law at 8 kHz.
    """
    logger.disable("pipecat")
    return asyncio.run(_events(_pieces(server, rate or DEFAULT_RATE, audio), rate or DEFAULT_RATE))


async def _pieces(server: str, rate: int, audio: bytes) -> AsyncIterator[bytes]:
    """Yield the audio as the server's bot is given it: a piece for each frame, if anything comes of it."""
    from pipecat.audio.utils import create_stream_resampler, ulaw_to_pcm

    from wsvoice.runner.pipecat.resamplers import SteadyResampler

    # In a call, frames come too soon after each other for pipecat's to forget what it holds; here it must not either.
    theirs, ours = create_stream_resampler(clear_after_secs=None), SteadyResampler(RATE, rate)
    for start in range(0, len(audio) // FRAME * FRAME, FRAME):
        frame = audio[start : start + FRAME]
        if server == "pipecat":
            piece = await ulaw_to_pcm(frame, RATE, rate, theirs)
        else:
            piece = ours.process(PCMU_8K.decode(frame))
        if piece:
            yield piece


async def _events(pieces: AsyncIterator[bytes], rate: int) -> Events:
    """Return the events in audio, as pipecat's VADProcessor tells them and the bot notes them."""
    from pipecat.audio.vad.silero import SileroVADAnalyzer
    from pipecat.audio.vad.vad_analyzer import VADState

    names = {VADState.SPEAKING: "start", VADState.QUIET: "stop"}
    analyzer, events, heard_ms, state = SileroVADAnalyzer(), [], 0.0, VADState.QUIET
    analyzer.set_sample_rate(rate)
    async for piece in pieces:
        heard_ms += len(piece) / 2 / rate * 1000
        new = await analyzer.analyze_audio(piece)
        if new is not state and new in names:
            state = new
            events.append((names[new], round(heard_ms)))
    await analyzer.cleanup()
    return events
