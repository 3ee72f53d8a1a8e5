"""
Where in a call's audio there is sound.

A sample is audible if it reaches :data:`~wsvoice.audio.AUDIBLE_LEVEL` and the 20 ms before or after it do on average
(RMS). So the edges of a sound do not depend on where the stream is cut into pieces. Audible samples less than
:data:`HANGOVER_MS` apart are one sound, because there are pauses within words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import AUDIBLE_LEVEL

#: Pauses shorter than this are part of a sound.
HANGOVER_MS = 200.0
#: Silence after which a speaker counts as finished.
SILENCE_MS = 600.0

_WINDOW_MS = 20


@dataclass(slots=True)
class Sound:
    """A sound, in milliseconds since the stream started; `end_ms` grows while it lasts."""

    start_ms: float
    end_ms: float


class SoundDetector:
    """
    Finds the sounds in a stream of PCM.

    A sample is judged with the 20 ms that follow it, so :attr:`sounds` is that much behind.

    Attributes:
        sounds: What was heard so far.
        sample_rate: The rate of what it is fed, in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sounds: list[Sound] = []
        self.sample_rate = sample_rate
        self._window = sample_rate * _WINDOW_MS // 1000
        # One window of judged samples, then those that are not judged yet.
        self._pending = np.zeros(self._window)
        self._judged = 0
        self._told = 0
        self._is_speaking = False

    def feed(self, pcm: bytes) -> None:
        """Take the next `pcm`."""
        self._pending = np.concatenate([self._pending, np.frombuffer(pcm, "<i2")])
        count = len(self._pending) - 2 * self._window
        if count > 0:
            self._judge(count)

    def flush(self) -> None:
        """Judge the rest, as if silence followed."""
        self.feed(bytes(2 * self._window))

    def since(self, at_ms: float) -> Sound | None:
        """Return the first sound that ends after `at_ms`, or ``None``."""
        # From the end, where it is likely to be.
        found = None
        for sound in reversed(self.sounds):
            if sound.end_ms <= at_ms:
                break
            found = sound
        return found

    def silent_ms(self, now_ms: float) -> float:
        """Return how long it has been silent at `now_ms`; since the start if there was no sound."""
        return now_ms - (self.sounds[-1].end_ms if self.sounds else 0.0)

    def changes(self, now_ms: float) -> list[tuple[bool, float]]:
        """Return, once, whether the speaker has begun to speak or has finished by `now_ms`, and when."""
        found = []
        if len(self.sounds) > self._told and not self._is_speaking:
            self._is_speaking = True
            found.append((True, self.sounds[self._told].start_ms))
        self._told = len(self.sounds)
        if self._is_speaking and self.silent_ms(now_ms) >= SILENCE_MS:
            self._is_speaking = False
            found.append((False, self.sounds[-1].end_ms))
        return found

    def _judge(self, count: int) -> None:
        samples, window = self._pending, self._window
        audible = _audible(samples, window)[window : window + count]
        positions = np.flatnonzero(audible) + self._judged
        self._pending = samples[count:]
        self._judged += count
        if not len(positions):
            return
        to_ms = 1000 / self.sample_rate
        breaks = np.flatnonzero(np.diff(positions) * to_ms >= HANGOVER_MS)
        starts = positions[np.concatenate([[0], breaks + 1])] * to_ms
        ends = (positions[np.concatenate([breaks, [-1]])] + 1) * to_ms
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if self.sounds and start - self.sounds[-1].end_ms < HANGOVER_MS:
                self.sounds[-1].end_ms = end
            else:
                self.sounds.append(Sound(start, end))


def _audible(samples: NDArray[np.float64], window: int) -> NDArray[np.bool_]:
    """Return for each sample whether it is audible; what is outside the array counts as silence."""
    energy = np.concatenate([[0.0], np.cumsum(samples * samples)])
    index = np.arange(len(samples))
    needed = window * AUDIBLE_LEVEL * AUDIBLE_LEVEL
    after = energy[np.minimum(index + window, len(samples))] - energy[index]
    before = energy[index + 1] - energy[np.maximum(index + 1 - window, 0)]
    audible: NDArray[np.bool_] = (np.abs(samples) >= AUDIBLE_LEVEL) & ((after >= needed) | (before >= needed))
    return audible


def audible_range(pcm: bytes, sample_rate: int) -> tuple[int, int] | None:
    """Return the first audible sample's index, and the one after the last; ``None`` if there is none."""
    positions = np.flatnonzero(_audible(np.frombuffer(pcm, "<i2").astype(np.float64), sample_rate * _WINDOW_MS // 1000))
    return (int(positions[0]), int(positions[-1]) + 1) if len(positions) else None


def is_loud(pcm: bytes) -> bool:
    """Return whether any sample reaches the audible level."""
    samples = np.frombuffer(pcm, "<i2")
    return bool(len(samples)) and max(int(samples.max()), -int(samples.min())) >= AUDIBLE_LEVEL
