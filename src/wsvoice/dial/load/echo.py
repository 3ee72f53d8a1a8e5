"""Whether what a caller heard is what it said, and how late each piece of it came."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import AUDIBLE_LEVEL
from wsvoice.dial.load.sound import Signal, own_sound, signal

#: The length of the pieces that are compared, and how far back a piece is looked for.
PIECE_MS = 100
SEARCH_S = 5.0
#: How alike two pieces are if one is the other's echo, even resampled and coded; others of this length are below 0.2.
ALIKE = 0.5
#: How many pieces are looked for everywhere although none was found before: a bot that does not echo has no more.
_ATTEMPTS = 12
#: How much two clocks' samples may drift between two pieces.
_DRIFT = 2


@dataclass(slots=True)
class Match:
    """
    Which pieces of what was heard are the caller's own, in samples.

    Attributes:
        own: Each piece's begin, and how much later it was heard than said.
        strange: The begins of audible pieces that the caller has not said.
        size: The length of a piece.
    """

    size: int
    own: list[tuple[int, int]] = field(default_factory=list)
    strange: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        """The share of the audible pieces that are the caller's own."""
        return len(self.own) / max(1, len(self.own) + len(self.strange))


def match(said: Signal, heard: Signal, said_until: NDArray[np.int64], sample_rate: int) -> Match:
    """
    Find the pieces of what was heard in what was said.

    Args:
        said: What the caller said, at `sample_rate`.
        heard: What it heard.
        said_until: For each heard sample, how much had been said when it came.
        sample_rate: Samples a second.
    """
    size, reach = sample_rate * PIECE_MS // 1000, int(SEARCH_S * sample_rate)
    found = Match(size)
    lag, attempts = 0, _ATTEMPTS
    energy = np.concatenate([[0.0], np.cumsum(said.astype(np.float64) ** 2)])
    for begin in range(0, len(heard) - size + 1, size):
        piece = heard[begin : begin + size]
        loudness = float(np.sqrt(np.dot(piece, piece)))
        if loudness < AUDIBLE_LEVEL * size**0.5:
            continue
        until = int(said_until[begin + size - 1])
        at = begin - lag
        low, high = max(0, at - _DRIFT), min(until, at + size + _DRIFT)
        place = _best(piece, loudness, said, energy, low, high)
        if place is None and (attempts := attempts - 1) >= 0:
            place = _best(piece, loudness, said, energy, max(0, until - reach), until)
        if place is None:
            found.strange.append(begin)
            continue
        lag, attempts = begin - place, _ATTEMPTS
        found.own.append((begin, lag))
    return found


def find_owner(piece: Signal, heard_at: float, callers: dict[int, float], sample_rate: int, *, but: int) -> int | None:
    """
    Return the number of the caller, other than `but`, whose own sound `piece` is; ``None`` if it is nobody's.

    Args:
        piece: What was heard.
        heard_at: When its last sample came, on the callers' clock.
        callers: When each caller began to speak, by number.
        sample_rate: Samples a second.
        but: The number of the caller who heard it.
    """
    loudness = float(np.sqrt(np.dot(piece, piece)))
    for number, began_at in callers.items():
        until_s = heard_at - began_at
        if number == but or until_s <= 0:
            continue
        seconds = range(max(0, int(until_s - SEARCH_S)), int(until_s) + 1)
        said = signal(b"".join(own_sound(number, second, sample_rate) for second in seconds))
        energy = np.concatenate([[0.0], np.cumsum(said.astype(np.float64) ** 2)])
        if _best(piece, loudness, said, energy, 0, len(said)) is not None:
            return number
    return None


def _best(piece: Signal, loudness: float, said: Signal, energy: NDArray[np.float64], low: int, high: int) -> int | None:
    """Return where between `low` and `high` of what was said `piece` is; ``None`` if it is not there."""
    size = len(piece)
    if high - low < size:
        return None
    window = said[low:high]
    places = len(window) - size + 1
    if places <= 2 * _DRIFT + 1:
        products = np.correlate(window, piece, "valid")
    else:
        length = 1 << (len(window) - 1).bit_length()
        spectrum = np.fft.rfft(window, length) * np.conj(np.fft.rfft(piece, length))
        products = np.fft.irfft(spectrum, length)[:places].astype(np.float32)
    norms = np.sqrt(np.maximum(energy[low + size : high + 1] - energy[low : high + 1 - size], 1.0)) * loudness
    likeness = products / norms
    best = int(np.argmax(likeness))
    return low + best if likeness[best] >= ALIKE else None
