"""What the callers say: mu-law at 8 kHz, a different sound for each, and the same one for the same number."""

from __future__ import annotations

import functools
import wave
from importlib.resources import files

import numpy as np
from load import FRAME, RATE

from wsvoice.audio import PCMU_8K


@functools.lru_cache(maxsize=512)
def noise(number: int, seconds: float) -> bytes:
    """Return sound like speech in its band and level, without a pause."""
    size = int(RATE * seconds) // FRAME * FRAME
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * np.arange(size) / RATE + number)
    return PCMU_8K.encode((_hiss(number, size) * 12000 * swell).astype("<i2").tobytes())


@functools.lru_cache(maxsize=512)
def sentences(number: int, seconds: float) -> bytes:
    """Return a sentence again and again, over a noise by which its caller is known."""
    size = int(RATE * seconds) // FRAME * FRAME
    words, pieces = sentence(), [np.zeros(RATE // 2 + 13 * (number % 50), "<i2")]
    while sum(map(len, pieces)) < size:
        pieces += [words, np.zeros(RATE, "<i2")]
    said = np.concatenate(pieces)[:size] + _hiss(number, size) * 200
    return PCMU_8K.encode(said.clip(-32768, 32767).astype("<i2").tobytes())


@functools.lru_cache(maxsize=512)
def conversation(number: int, seconds: float) -> bytes:
    """Return a sentence, a pause for the answer, and so on; every third answer is interrupted."""
    words, pieces, turn = sentence(), [np.zeros(RATE // 2 + 13 * (number % 50), "<i2")], 0
    while sum(map(len, pieces)) < RATE * seconds:
        turn += 1
        pieces += [words, np.zeros(RATE * (2 if turn % 3 == 0 else 4), "<i2")]
    return PCMU_8K.encode(np.concatenate(pieces)[: int(RATE * seconds)].tobytes())


@functools.cache
def sentence() -> np.ndarray:
    """Return the recorded question that `wsvoice dial` asks, at 8 kHz."""
    with files("wsvoice.dial").joinpath("question.wav").open("rb") as file, wave.open(file) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
        step = recording.getframerate() // RATE
    return np.asarray(samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1), "<i2")


def _hiss(number: int, size: int) -> np.ndarray:
    """Return noise in the band of speech, with a peak of 1."""
    spectrum = np.fft.rfft(np.random.default_rng(number + 1).standard_normal(size))
    freqs = np.fft.rfftfreq(size, 1 / RATE)
    spectrum[(freqs < 200) | (freqs > 3000)] = 0
    samples = np.fft.irfft(spectrum, size)
    return np.asarray(samples / np.abs(samples).max())
