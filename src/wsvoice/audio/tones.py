"""
Keys that are heard as tones (DTMF), for a bot that presses them in its sound and not by its provider.

Each key is two tones at once, which last 40 ms or more with as much of a pause between keys:
https://www.itu.int/rec/T-REC-Q.23 and https://www.itu.int/rec/T-REC-Q.24
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LOW_HZ = (697, 770, 852, 941)
_HIGH_HZ = (1209, 1336, 1477, 1633)
_KEYS = ("123A", "456B", "789C", "*0#D")

_WINDOW_MS, _STEP_MS = 25, 10
#: How much of a window's energy the two tones have; in speech it is far less.
_SHARE = 0.7
#: How many times one of the tones may be louder than the other (Q.24: 8 dB at the most, and a margin).
_TWIST = 8.0
#: The mean square below which a window is silent.
_SILENT = 200.0**2
#: How many windows in a row a key has to be there: Q.24 refuses tones that are shorter than 24 ms.
_STEPS = 2


@dataclass(frozen=True, slots=True)
class Tone:
    """A key that was heard, and when its tones began, in milliseconds."""

    at_ms: float
    key: str


def find_tones(pcm: bytes, sample_rate: int) -> list[Tone]:
    """Return the keys whose tones are in 16-bit little-endian samples."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float64)
    size, step = sample_rate * _WINDOW_MS // 1000, sample_rate * _STEP_MS // 1000
    if len(samples) < size:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::step]
    found: list[Tone] = []
    before, lasted = "", 0
    for number, key in enumerate(_keys(windows, sample_rate)):
        lasted = lasted + 1 if key == before else 1
        before = key
        if key and lasted == _STEPS:
            found.append(Tone((number - _STEPS + 1) * _STEP_MS, key))
    return found


def _keys(windows: NDArray[np.float64], sample_rate: int) -> list[str]:
    """Return the key in each window; empty for none."""
    size = windows.shape[1]
    time_s = np.arange(size) / sample_rate
    waves = np.exp(-2j * np.pi * np.outer(time_s, (*_LOW_HZ, *_HIGH_HZ)))
    # Of a sine with mean square p, the correlation with its own frequency is p / 2 after this scaling.
    power = 2 * np.abs(windows @ waves / size) ** 2
    total = np.mean(windows**2, axis=1)
    low, high = power[:, : len(_LOW_HZ)], power[:, len(_LOW_HZ) :]
    row, column = low.argmax(axis=1), high.argmax(axis=1)
    low_peak, high_peak = low.max(axis=1), high.max(axis=1)
    is_key = (
        (total > _SILENT)
        & (low_peak + high_peak > _SHARE * total)
        & (np.maximum(low_peak, high_peak) < _TWIST * np.minimum(low_peak, high_peak))
    )
    return [_KEYS[r][c] if there else "" for there, r, c in zip(is_key, row, column, strict=True)]
