"""Resamplers with little delay, which replace pipecat's own."""

from __future__ import annotations

import math
import time

from pipecat.audio.resamplers.base_audio_resampler import BaseAudioResampler
from pipecat.transports.base_output import BaseOutputTransport

from wsvoice.audio import Resampler
from wsvoice.runner.pipecat import is_supported


class SteadyResampler:
    """
    A resampler that returns as much audio as it takes, from the first piece on.

    :class:`~wsvoice.audio.Resampler` holds a few milliseconds back, so its first piece is short, and a sender of whole
    frames of 20 ms would have to wait for the next one: a delay of 20 ms instead of five. Here each utterance begins
    with that much silence instead.
    """

    def __init__(self, in_rate: int, out_rate: int) -> None:
        self._resampler = Resampler(in_rate, out_rate)
        #: How many samples of silence at the input's rate precede an utterance.
        self.delay_samples = math.ceil(self._resampler.delay_ms * in_rate / 1000)
        self._begun = False

    def process(self, pcm: bytes) -> bytes:
        """Convert a piece of s16le audio."""
        if not self._begun:
            self._begun = True
            # Drop the first samples, if any, so that every piece has its exact length.
            self._resampler.process(bytes(2 * self.delay_samples))
        return self._resampler.process(pcm)

    def flush(self) -> bytes:
        """Return what is held back; a new utterance follows."""
        if not self._begun:
            return b""
        self._begun = False
        return self._resampler.flush()

    def reset(self) -> None:
        """Drop what is held back; a new utterance follows."""
        self._begun = False
        self._resampler.reset()


class LowLatencyResampler(BaseAudioResampler):
    """
    :class:`wsvoice.audio.Resampler` with pipecat's interface.

    pipecat's own holds back 120 to 160 ms at telephone rates.
    """

    def __init__(self) -> None:
        self._resampler: SteadyResampler | None = None
        self._rates = (0, 0)

    async def resample(self, audio: bytes, in_rate: int, out_rate: int) -> bytes:
        """Convert s16le audio; after a change of rates, what was held back comes first."""
        if in_rate == out_rate:
            return audio
        tail = b""
        if self._resampler is None or self._rates != (in_rate, out_rate):
            tail = await self.flush()
            self._resampler = SteadyResampler(in_rate, out_rate)
            self._rates = (in_rate, out_rate)
        return tail + self._resampler.process(audio)

    async def flush(self) -> bytes:
        return self._resampler.flush() if self._resampler is not None else b""

    async def reset(self) -> None:
        if self._resampler is not None:
            self._resampler.reset()


class UtteranceResampler(LowLatencyResampler):
    """
    A resampler that separates utterances by the pauses between them.

    The few milliseconds that are held back when the bot falls silent must not be sent with its next words.
    """

    #: As in pipecat's own resampler.
    PAUSE_S = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    async def resample(self, audio: bytes, in_rate: int, out_rate: int) -> bytes:
        now = time.monotonic()
        if now - self._last > self.PAUSE_S:
            await self.reset()
        self._last = now
        return await super().resample(audio, in_rate, out_rate)


def use_resampler(output: BaseOutputTransport, kind: type[BaseAudioResampler]) -> None:
    """Make pipecat's media senders use a resampler with little delay."""
    if is_supported("low-latency"):
        for sender in output._media_senders.values():
            sender._resampler = kind()
