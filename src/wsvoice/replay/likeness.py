"""
Whether what was said in one call is heard in another one: by correlation, piece by piece.

The same recording has a correlation of about 0.99 after the telephone's codec, other words in the same voice of 0.2. A
piece that is not found is looked for in halves, so that a short gap in it does not count as something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import correlations

Samples = NDArray[np.int16]

#: The rate at which sounds are compared: the telephone's.
RATE = 8000
#: What is looked for at once, and what is not looked for in halves, in seconds.
PIECE_S, SMALLEST_S = 2.0, 0.4
#: How far before and after the place where a piece is expected it is looked for, in seconds.
_BEFORE_S, _AFTER_S = 2.0, 5.0
#: Decibels that stand for silence.
_SILENT_DB = -100.0


@dataclass(frozen=True, slots=True)
class Likeness:
    """
    How much of what was said was heard again.

    Attributes:
        said_s: How much was said, in seconds.
        unheard_s: How much of it was not heard again.
        correlation: Of the piece that was least like what was heard; 1 if nothing was said.
        louder_db: By how much what was heard again is louder, in decibels.
    """

    said_s: float
    unheard_s: float
    correlation: float
    louder_db: float


def compare_sounds(
    said: Sequence[tuple[float, Samples]], heard: Samples, *, least: float, later_s: float = 0.0
) -> Likeness:
    """
    Look for what was said in what was heard; all samples are at :data:`RATE`.

    Args:
        said: The sounds, and when each began, in seconds from the beginning of `heard`.
        heard: What was heard.
        least: How similar a piece has to be.
        later_s: How much later `heard` is expected to begin to sound.
    """
    search = _Search(heard, least, later_s)
    for at_s, samples in said:
        count = max(1, math.ceil(len(samples) / RATE / PIECE_S))
        for first, piece in _parts(samples, count):
            search.look_for(piece, at_s + first / RATE)
    total_s = sum(len(samples) for _, samples in said) / RATE
    return Likeness(total_s, search.unheard / RATE, search.correlation, search.louder_db)


class _Search:
    """Looks for one piece after the other, each about as much later as the one before it was."""

    def __init__(self, heard: Samples, least: float, later_s: float) -> None:
        self.unheard = 0
        self.correlation = 1.0
        self._heard = heard
        self._least = least
        self._later_s = later_s
        self._energy = [0.0, 0.0]

    @property
    def louder_db(self) -> float:
        """By how much what was found is louder than what was said."""
        said, found = self._energy
        return 10 * math.log10(found / said) if said and found else 0.0 if not said else _SILENT_DB

    def look_for(self, piece: Samples, at_s: float) -> None:
        """Look for a piece that was said at a time; in halves if the whole is not found."""
        expected_s = at_s + self._later_s
        first = max(0, round((expected_s - _BEFORE_S) * RATE))
        part = self._heard[first : round((expected_s + _AFTER_S) * RATE) + len(piece)]
        similarity = correlations(part, piece)
        best = int(np.argmax(similarity)) if len(similarity) else 0
        found = float(similarity[best]) if len(similarity) else 0.0
        if found >= self._least:
            self._later_s = (first + best) / RATE - at_s
            self._energy[0] += _energy(piece)
            self._energy[1] += _energy(part[best : best + len(piece)])
        elif len(piece) < 2 * SMALLEST_S * RATE:
            self.unheard += len(piece)
            self.correlation = min(self.correlation, found)
        else:
            for offset, half in _parts(piece, 2):
                self.look_for(half, at_s + offset / RATE)


def _parts(samples: Samples, count: int) -> list[tuple[int, Samples]]:
    """Return so many equal parts, and where each begins."""
    edges = np.linspace(0, len(samples), count + 1).astype(int).tolist()
    return [(first, samples[first:last]) for first, last in pairwise(edges)]


def _energy(samples: Samples) -> float:
    sound = samples.astype(np.float64)
    return float(np.dot(sound, sound))
