"""
Speech to text by PocketSphinx, which has its model of American English in its package.

It is a small recognizer. Among some dozen sentences it finds the right one most of the time, over the telephone too;
of free speech it gets a word here and there. So it is given the sentences to expect.

https://pocketsphinx.readthedocs.io/en/latest/pocketsphinx.html
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np
from pipecat.frames.frames import Frame, StartFrame, TranscriptionFrame
from pipecat.services.settings import STTSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.utils.time import time_now_iso8601
from pocketsphinx import Decoder

#: Of 16-bit samples: -50 dBFS, as in a quiet room. The model was made of rooms, where it never is wholly silent; with
#: the perfect silence between words on a telephone, and above 4 kHz, it finds one sentence of two only.
NOISE = 100
#: Samples that are decoded at a time, about a millisecond's work; in between, other threads get their turn.
STEP = 1600


def read_phrases(path: Path) -> list[str]:
    """Return the sentences in a file, one a line; lines that start with ``#`` are left out."""
    lines = [line.strip().lower() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def load(phrases: Sequence[str], sample_rate: int) -> Decoder:
    """
    Return a recognizer of `phrases`, or of any words if there are none; it takes a third of a second.

    Raises:
        ValueError: If a phrase has a word that is not in the recognizer's dictionary.
    """
    if not phrases:
        return Decoder(samprate=sample_rate, loglevel="FATAL")
    # Far wider beams than for free speech: the sentence is to be heard to its end, and there are few of them.
    decoder = Decoder(samprate=sample_rate, loglevel="FATAL", lm=None, beam=1e-80, pbeam=1e-80, wbeam=1e-60)
    unknown = sorted({word for phrase in phrases for word in phrase.split() if decoder.lookup_word(word) is None})
    if unknown:
        raise ValueError(f"PocketSphinx does not know the words {', '.join(unknown)}: spell them as they sound")
    # https://www.w3.org/TR/jsgf/
    decoder.add_jsgf_string("phrases", f"#JSGF V1.0; grammar phrases; public <phrase> = {' | '.join(phrases)};")
    decoder.activate_search("phrases")
    return decoder


class PocketSphinxSTTService(SegmentedSTTService):
    """Recognizes each of the caller's utterances when it is over."""

    def __init__(self, *, phrases: Sequence[str] = (), **options) -> None:
        super().__init__(settings=STTSettings(model="en-us", language=None), ttfs_p99_latency=0.5, **options)
        self._phrases = phrases
        self._decoder: Decoder | None = None

    @property
    def wants_wav_segments(self) -> bool:
        return False

    def can_generate_metrics(self) -> bool:
        return True

    async def start(self, frame: StartFrame) -> None:
        # One for each call: a recognizer hears one caller.
        self._decoder = await asyncio.to_thread(load, self._phrases, self.sample_rate)
        await super().start(frame)

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame, None]:
        await self.start_processing_metrics()
        text = await asyncio.to_thread(self._recognize, audio)
        await self.stop_processing_metrics()
        if text:
            yield TranscriptionFrame(text, self._user_id, time_now_iso8601())

    def _recognize(self, audio: bytes) -> str:
        assert self._decoder is not None
        samples = np.frombuffer(audio, "<i2") + np.random.default_rng(0).normal(0, NOISE, len(audio) // 2)
        samples = np.clip(samples, -32768, 32767).astype("<i2")
        self._decoder.start_utt()
        for at in range(0, len(samples), STEP):
            self._decoder.process_raw(samples[at : at + STEP].tobytes())
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""
