"""Test sounds, and measures of what became of them. All sound is 16-bit little-endian mono PCM."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# Speech is made at this rate and then cut down to the asked one.
_MASTER_RATE = 48_000

# Formants of six vowels in Hz: a e i o u, and schwa (Peterson and Barney 1952, rounded).
_VOWELS = (
    (730, 1090, 2440, 3500),
    (530, 1840, 2480, 3500),
    (270, 2290, 3010, 3700),
    (570, 840, 2410, 3300),
    (300, 870, 2240, 3300),
    (500, 1500, 2500, 3500),
)
_BANDWIDTHS = (80, 100, 140, 220)


def tone(freq_hz: float, duration_ms: float, sample_rate: int, level_dbfs: float = -12) -> bytes:
    """Return a sine with its peak at `level_dbfs`."""
    n = round(duration_ms * sample_rate / 1000)
    time_s = np.arange(n) / sample_rate
    return _pcm(32768 * 10 ** (level_dbfs / 20) * np.sin(2 * math.pi * freq_hz * time_s))


def speech_like(duration_ms: float, sample_rate: int, seed: int = 1) -> bytes:
    """
    Return syllables of a hoarse voice with hissing sounds and pauses between, at an RMS level of -22 dBFS.

    A seed says the same thing at every sample rate, only with less of the upper band at the lower ones, so
    that what went through a resampler can be held against what was made at the new rate.
    """
    n = round(duration_ms * _MASTER_RATE / 1000)
    rng = np.random.default_rng(seed)
    sound = np.zeros(n)
    position = round(0.03 * _MASTER_RATE)
    while position < n:
        length = round(rng.uniform(0.12, 0.28) * _MASTER_RATE)
        envelope = np.sin(np.linspace(0, math.pi, length)) ** 0.6
        if rng.random() < 0.2:
            syllable = _hiss(rng, length // 2) * envelope[::2][: length // 2]
        else:
            syllable = _vowel(rng, length) * envelope
        syllable *= rng.uniform(0.5, 1.0)
        end = min(n, position + len(syllable))
        sound[position:end] += syllable[: end - position]
        pause_s = rng.uniform(0.15, 0.4) if rng.random() < 0.15 else rng.uniform(0.0, 0.05)
        position += len(syllable) + round(pause_s * _MASTER_RATE)
    sound *= 32768 * 10 ** (-22 / 20) / max(1e-9, float(np.sqrt(np.mean(sound**2))))

    # An ideal low-pass by Fourier transform, with room behind so that the end does not wrap to the start.
    out_n = round(duration_ms * sample_rate / 1000)
    padded_s = math.ceil(duration_ms / 1000) + 1
    spectrum = np.fft.rfft(sound, padded_s * _MASTER_RATE)[: padded_s * sample_rate // 2 + 1]
    spectrum = np.pad(spectrum, (0, padded_s * sample_rate // 2 + 1 - len(spectrum)))
    spectrum[-1] = 0
    return _pcm(np.fft.irfft(spectrum, padded_s * sample_rate)[:out_n] * (sample_rate / _MASTER_RATE))


def _vowel(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    """Return glottal pulses, with a falling pitch and some breath, through four formant resonators."""
    pitch_hz = rng.uniform(95, 170) * np.linspace(1.08, 0.9, length) * (1 + 0.01 * rng.standard_normal())
    cycle = np.cumsum(pitch_hz / _MASTER_RATE)
    source = np.diff(np.floor(cycle), prepend=0.0) + 0.01 * rng.standard_normal(length)
    z = np.exp(-2j * math.pi * np.fft.rfftfreq(2 * length))
    # The vocal folds' pulses fall by 12 dB an octave, the lips give 6 dB back.
    response = (1 - 0.97 * z) / (1 - 0.985 * z) ** 2
    formants = np.array(_VOWELS[rng.integers(len(_VOWELS))]) * rng.uniform(0.93, 1.07)
    for centre_hz, bandwidth_hz in zip(formants, _BANDWIDTHS, strict=True):
        radius = math.exp(-math.pi * bandwidth_hz / _MASTER_RATE)
        angle = 2 * math.pi * centre_hz / _MASTER_RATE
        gain = 1 - 2 * radius * math.cos(angle) + radius**2
        response = response * gain / (1 - 2 * radius * math.cos(angle) * z + radius**2 * z**2)
    return _normalised(np.fft.irfft(np.fft.rfft(source, 2 * length) * response)[:length])


def _hiss(rng: np.random.Generator, length: int) -> NDArray[np.float64]:
    """Return noise around 5 kHz, as in an s."""
    freq_hz = np.fft.rfftfreq(length, 1 / _MASTER_RATE)
    shape = np.exp(-(((freq_hz - 5000) / 2000) ** 2))
    return 0.3 * _normalised(np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * shape, length))


def _normalised(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    return samples / np.sqrt(np.mean(samples**2))


def correlation_delay_ms(reference: bytes, heard: bytes, sample_rate: int) -> tuple[float, float]:
    """
    Return by how much `heard` is later than `reference`, and how alike they are then (1: the same shape).

    The delay is resolved to a fraction of a sample. Two silences are not alike at all: ``(0.0, 0.0)``.
    """
    a, b = _samples(reference), _samples(heard)
    norm = math.sqrt(float(a @ a) * float(b @ b))
    if norm == 0:
        return 0.0, 0.0
    size = 1 << (len(a) + len(b)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(b, size) * np.conj(np.fft.rfft(a, size)), size) / norm
    peak = int(np.argmax(correlation))
    left, top, right = (float(correlation[(peak + step) % size]) for step in (-1, 0, 1))
    # The top of the parabola through the highest value and its neighbours.
    curvature = left - 2 * top + right
    offset = (left - right) / (2 * curvature) if curvature else 0.0
    lag = peak if peak < size // 2 else peak - size
    return (lag + offset) * 1000 / sample_rate, top - (left - right) * offset / 4


def share_heard(reference: bytes, heard: bytes, sample_rate: int, piece_ms: float = 200) -> float:
    """
    Return how much of `reference` is somewhere in `heard`, by pieces that are whole or are not there.

    Where a player waits for sound or leaves some out, all else is still itself, but no longer at one delay.
    """
    a, b = _samples(reference), _samples(heard)
    length = round(piece_ms * sample_rate / 1000)
    size = 1 << (len(b) + length).bit_length()
    spectrum = np.fft.rfft(b, size)
    squares = np.concatenate([[0.0], np.cumsum(b**2)])
    # A piece of near silence is like everything.
    energy = np.maximum(squares[length:] - squares[:-length], length * 100.0)
    pieces = [a[start : start + length] for start in range(0, len(a) - length + 1, length)]
    pieces = [piece for piece in pieces if piece @ piece > length * 10_000.0]
    found = 0
    for piece in pieces:
        product = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)[: len(energy)]
        found += bool(np.max(product / np.sqrt(energy * (piece @ piece))) > 0.98)
    return found / len(pieces)


def snr_db(reference: bytes, heard: bytes) -> float:
    """Return how far the difference is below `reference`, over the length of the shorter; inf if there is none."""
    n = min(len(reference), len(heard))
    a, b = _samples(reference[:n]), _samples(heard[:n])
    noise = float(np.sum((b - a) ** 2))
    return 10 * math.log10(float(np.sum(a**2)) / noise) if noise else math.inf


def _samples(pcm: bytes) -> NDArray[np.float64]:
    return np.frombuffer(pcm, "<i2").astype(np.float64)


def _pcm(samples: NDArray[np.float64]) -> bytes:
    return np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()
