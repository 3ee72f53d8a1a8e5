"""
What callers say: each a sound of its own, or all of them the same turns.

A sound of its own is noise in the band and at the level of speech, which nobody else says. It is made from the
caller's number, a second at a time, so that every process can tell whose it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import resample
from wsvoice.dial.script import Clip
from wsvoice.dial.sound_detection import audible_range

Signal = NDArray[np.float32]

#: The band of a caller's own sound, in Hz, and its root mean square, in steps of 16 bits.
BAND_HZ = (200, 3000)
LEVEL = 3000.0


@lru_cache(maxsize=1024)
def own_sound(number: int, second: int, sample_rate: int) -> bytes:
    """Return a second of the sound of the caller with this `number`, as PCM."""
    random = np.random.default_rng([number, second])
    freqs = np.fft.rfftfreq(sample_rate, 1 / sample_rate)
    inside = (freqs >= BAND_HZ[0]) & (freqs <= BAND_HZ[1])
    spectrum = np.zeros(len(freqs), np.complex128)
    # Two to a bin, real and imaginary. Not by a product of matrices, which numpy would use every core for.
    spectrum[inside] = random.standard_normal(2 * int(inside.sum())).view(np.complex128)
    samples = np.fft.irfft(spectrum, sample_rate)
    # Syllables: three a second.
    swell = 1 + 0.5 * np.sin(2 * np.pi * 3 * np.arange(sample_rate) / sample_rate + number)
    samples *= swell * LEVEL / np.sqrt(np.mean(samples**2))
    return np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()


def signal(pcm: bytes) -> Signal:
    """Return PCM as numbers that can be multiplied."""
    return np.frombuffer(pcm, "<i2").astype(np.float32)


class Speech:
    """
    What one caller says in a call.

    Attributes:
        spans: When each turn begins and ends, in milliseconds since the stream started; none for a sound of its own.

    Args:
        number: The caller's number.
        turns: What it says, over and over; a sound of its own without any.
        sample_rate: Samples a second.
        duration_s: How long the call lasts.
        listen_s: How long the bot may speak first.
        response_s: How long the caller waits after each turn.
    """

    def __init__(
        self,
        number: int,
        turns: Sequence[Clip],
        *,
        sample_rate: int,
        duration_s: float,
        listen_s: float,
        response_s: float,
    ) -> None:
        self.spans: list[tuple[float, float]] = []
        self._number = number
        self._rate = sample_rate
        self._size = round(duration_s * sample_rate)
        self._pcm = self._lay_out(turns, listen_s, response_s) if turns else b""

    def seconds(self) -> Iterator[bytes]:
        """Yield all that is said as PCM, a second at a time."""
        for second in range(-(-self._size // self._rate)):
            count = 2 * min(self._rate, self._size - second * self._rate)
            at = 2 * second * self._rate
            yield self._pcm[at : at + count] or own_sound(self._number, second, self._rate)[:count]

    def _lay_out(self, turns: Sequence[Clip], listen_s: float, response_s: float) -> bytes:
        """Return the turns one after the other, as often as they fit; the first ones may be cut."""
        said = bytearray(2 * self._size)
        at, number = round(listen_s * self._rate), 0
        while at < self._size:
            pcm = _resampled(turns[number % len(turns)], self._rate)
            count, wait = len(pcm) // 2, round(response_s * self._rate)
            if number >= len(turns) and at + count + wait > self._size:
                break
            first, last = audible_range(pcm, self._rate) or (0, count)
            if at + count <= self._size:
                self.spans.append(((at + first) * 1000 / self._rate, (at + last) * 1000 / self._rate))
            room = 2 * (self._size - at)
            said[2 * at : 2 * at + min(len(pcm), room)] = pcm[:room]
            at, number = at + count + wait, number + 1
        return bytes(said)


def length_s(turns: Sequence[Clip], *, listen_s: float, response_s: float) -> float:
    """Return how long it takes to say each of `turns` once, and to wait for the answers."""
    return listen_s + sum(len(turn.pcm) / 2 / turn.sample_rate + response_s for turn in turns)


@lru_cache(maxsize=64)
def _resampled(turn: Clip, sample_rate: int) -> bytes:
    return resample(turn.pcm, turn.sample_rate, sample_rate)
