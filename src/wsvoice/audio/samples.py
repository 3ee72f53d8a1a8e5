"""Samples: sound files, and resampling with a few milliseconds of delay."""

from __future__ import annotations

import math
import shlex
import wave
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsvoice.errors import AudioFileError

Samples = NDArray[np.float64]

# Low-pass filters: up to which fraction of the lower rate's Nyquist frequency the signal is left alone (the stop band
# starts at 1), and how many dB the stop band is below the pass band.
# At 8 kHz: flat to 3.5 kHz, 66 dB down from 4 kHz on (mu-law's own noise is at 38 dB), 4.0 ms to either side.
_LIVE = 0.875, 66.0
# At 8 kHz: flat to 3.8 kHz, below the last bit of 16 from 4 kHz on, 16 ms to either side.
_OFFLINE = 0.95, 100.0

#: The sample rates that can be resampled, in Hz.
MIN_RATE, MAX_RATE = 1000, 192_000
# In entries; 4 MB. A larger one is mostly zero, and it is cheaper to look up every output's factors.
_MAX_MATRIX = 500_000
# A filter is designed at the rates' least common multiple. The long one has 3 million factors at this rate.
_MAX_OFFLINE_MULTIPLE = 100_000_000
# Coefficients are multiples of 2**-24, so that every product and sum is exact in float64 (24 + 16 bits and a
# few for the sum, of 53). Only then is the output the same to the bit in whatever order BLAS adds, and that
# depends on the size of the chunk.
_COEFFICIENT_SCALE = 2.0**24


@dataclass(frozen=True, slots=True, eq=False)
class _Filter(ABC):
    """
    A polyphase filter between rates in the proportion `down` in to `up` out.

    Output ``k`` lies at input ``k * down / up``; the inputs that it is made from begin `before` earlier.
    Outputs are computed from one that is a multiple of `grain` on.

    Attributes:
        reach: Half the filter's length, in steps of ``1 / (up * in_rate)`` seconds.
    """

    up: int
    down: int
    reach: int
    before: int
    grain: int

    @abstractmethod
    def needs(self, count: int) -> int:
        """Return how many inputs `count` outputs are computed from."""

    @abstractmethod
    def apply(self, window: Samples, first: int, count: int) -> Samples:
        """
        Return `count` outputs.

        Args:
            window: The inputs from `before` ahead of the first output on, at least :meth:`needs` of them.
            first: The first output's number, a multiple of `grain`.
        """


@dataclass(frozen=True, slots=True, eq=False)
class _BlockFilter(_Filter):
    """
    A filter laid out so that a block of outputs is one row of a matrix product.

    A block is `block_out` outputs, made from `width` inputs; the next block's inputs start `block_in` later.

    Attributes:
        matrix: Of shape ``(width, block_out)``.
    """

    block_in: int
    block_out: int
    matrix: Samples

    def _rows(self, count: int) -> int:
        return -(-count // self.block_out)

    def needs(self, count: int) -> int:
        return len(self.matrix) + (self._rows(count) - 1) * self.block_in

    def apply(self, window: Samples, first: int, count: int) -> Samples:
        step = window.itemsize
        shape = self._rows(count), len(self.matrix)
        blocks: Samples = np.ndarray(shape, np.float64, window, 0, (self.block_in * step, step))
        # BLAS does not take rows that overlap, and numpy's own product is many times slower than the copy.
        product: Samples = np.dot(blocks.copy(), self.matrix)
        return product.reshape(-1)[:count]


@dataclass(frozen=True, slots=True, eq=False)
class _PhaseFilter(_Filter):
    """
    A filter for rates without much of a common divisor: their block's matrix would be huge and mostly zero.

    Attributes:
        taps: Of shape ``(up, width)``: for each phase, the factors of the inputs that an output needs.
    """

    taps: Samples

    def needs(self, count: int) -> int:
        return count * self.down // self.up + 1 + int(self.taps.shape[1])

    def apply(self, window: Samples, first: int, count: int) -> Samples:
        # `first` may lie between two inputs: its window begins at the one before it.
        position = np.arange(count) * self.down + first * self.down % self.up
        width = self.taps.shape[1]
        starts: Samples = np.ndarray((len(window) - width + 1, width), np.float64, window, 0, window.strides * 2)
        out: Samples = np.einsum("ij,ij->i", starts[position // self.up], self.taps[position % self.up])
        return out


@lru_cache(maxsize=32)
def _filter(in_rate: int, out_rate: int, pass_edge: float, rejection_db: float) -> _Filter:
    """Design a filter; raise :exc:`ValueError` if a rate is out of bounds."""
    for rate in (in_rate, out_rate):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"sample rate {rate} is not between {MIN_RATE} and {MAX_RATE} Hz")
    divisor = math.gcd(in_rate, out_rate)
    up, down = out_rate // divisor, in_rate // divisor
    fine_rate = in_rate * up
    nyquist = min(in_rate, out_rate) / 2

    # Kaiser's formulas for the length and shape of the window.
    transition = (1 - pass_edge) * nyquist
    reach = math.ceil((rejection_db - 7.95) / (14.36 * transition) * fine_rate / 2)
    beta = 0.1102 * (rejection_db - 8.7)
    cutoff = (1 + pass_edge) * nyquist / fine_rate
    taps = np.sinc(cutoff * np.arange(-reach, reach + 1)) * np.kaiser(2 * reach + 1, beta)

    # Column p holds phase p. Each passes DC with a gain of one, so that a constant stays the same constant.
    phases = np.append(taps, np.zeros(-len(taps) % up)).reshape(-1, up)
    phases = np.rint(phases * (_COEFFICIENT_SCALE / phases.sum(axis=0)))
    taps = phases.reshape(-1) / _COEFFICIENT_SCALE

    before = reach // up

    def factors(inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> Samples:
        index = (inputs - before) * up - outputs + reach
        return np.where((index >= 0) & (index < len(taps)), taps[np.clip(index, 0, len(taps) - 1)], 0.0)

    # Blocks about half as long as the filter: longer ones multiply more zeros, shorter ones copy more.
    groups = max(1, round(reach / up / down))
    block_in, block_out = groups * down, groups * up
    width = before + ((block_out - 1) * down + reach) // up + 1
    if width * block_out > _MAX_MATRIX:
        inputs, outputs = np.arange(2 * before + 2)[None, :], np.arange(up)[:, None]
        return _PhaseFilter(up, down, reach, before, 1, factors(inputs, outputs))
    inputs, outputs = np.arange(width)[:, None], np.arange(block_out)[None, :] * down
    return _BlockFilter(up, down, reach, before, up, block_in, block_out, factors(inputs, outputs))


class Resampler:
    """
    Changes the sample rate of a stream of PCM, without shifting it in time.

    Output sample ``k`` belongs to the time ``k / out_rate`` of the input. The linear-phase filter holds back
    :attr:`delay_ms` of sound, which :meth:`flush` returns. The output does not depend on how the input is cut into
    chunks. Values that are too large are clipped.

    Raises:
        ValueError: If a rate is not between :data:`MIN_RATE` and :data:`MAX_RATE`.
    """

    def __init__(self, in_rate: int, out_rate: int) -> None:
        self._in_rate = in_rate
        self._out_rate = out_rate
        self._filter = _filter(in_rate, out_rate, *_LIVE) if in_rate != out_rate else None
        self.reset()

    @classmethod
    def offline(cls, in_rate: int, out_rate: int) -> Resampler:
        """Return one with a better filter, which holds back four times as much."""
        resampler = cls(in_rate, out_rate)
        if in_rate != out_rate and math.lcm(in_rate, out_rate) <= _MAX_OFFLINE_MULTIPLE:
            resampler._filter = _filter(in_rate, out_rate, *_OFFLINE)
            resampler.reset()
        return resampler

    @property
    def delay_ms(self) -> float:
        """How much sound is held back until later input or :meth:`flush`."""
        if self._filter is None:
            return 0.0
        return self._filter.reach * 1000 / (self._filter.up * self._in_rate)

    def reset(self) -> None:
        """Start over with a new utterance."""
        self._taken = 0
        self._given = 0
        self._split = b""
        self._tail: Samples = np.zeros(self._filter.before if self._filter else 0)

    def process(self, pcm: bytes) -> bytes:
        """Take the next chunk and return the output so far; a sample may be split between two chunks."""
        if self._split:
            pcm, self._split = self._split + pcm, b""
        if len(pcm) & 1:
            pcm, self._split = pcm[:-1], pcm[-1:]
        if self._filter is None:
            return pcm
        f = self._filter
        chunk = np.frombuffer(pcm, "<i2")
        self._taken += len(chunk)
        ready = max(self._given, -((f.reach - self._taken * f.up) // f.down))
        return self._emit(chunk, ready)

    def flush(self) -> bytes:
        """
        Return what is held back, and reset.

        With it the utterance's output has ``round(taken * out_rate / in_rate)`` samples.
        """
        total = round(self._taken * self._out_rate / self._in_rate)
        rest = self._emit(np.zeros(0, "<i2"), total) if self._filter is not None else b""
        self.reset()
        return rest

    def _emit(self, chunk: NDArray[np.int16], until: int) -> bytes:
        """Append `chunk` to the input and return the output samples up to number `until`."""
        f = self._filter
        assert f is not None
        count = until - self._given
        tail = self._tail
        have = len(tail) + len(chunk)
        if count <= 0:
            self._tail = np.concatenate((tail, chunk))
            return b""
        # Outputs are computed from a multiple of the grain on; the first `skip` have been returned already.
        skip = self._given % f.grain
        # The window may reach past the input, into what no output needs yet or the silence after the end.
        window = np.zeros(max(have, f.needs(skip + count)))
        window[: len(tail)] = tail
        window[len(tail) : have] = chunk
        out = f.apply(window, self._given - skip, skip + count)[skip:]
        np.rint(out, out=out)
        np.maximum(out, -32768, out=out)
        np.minimum(out, 32767, out=out)
        start = (self._given - skip) * f.down // f.up
        self._given = until
        self._tail = window[(until - until % f.grain) * f.down // f.up - start : have]
        return out.astype("<i2").tobytes()


def resample(pcm: bytes, in_rate: int, out_rate: int) -> bytes:
    """Change a whole clip's sample rate, with a better filter than for a live stream."""
    resampler = Resampler.offline(in_rate, out_rate)
    # A second at a time, to limit the memory for the filter's windows.
    step = 2 * in_rate
    parts = [resampler.process(pcm[start : start + step]) for start in range(0, len(pcm), step)]
    return b"".join([*parts, resampler.flush()])


def read_audio(path: str | PathLike[str]) -> tuple[bytes, int]:
    """
    Return a file's sound as PCM, mixed down to one channel, and its sample rate.

    Reads whatever libsndfile does: WAV with every usual codec, FLAC, Ogg, MP3, AIFF; also WAV files from a pipe, which
    lack the length.

    Raises:
        AudioFileError: If there is no such file, or no sound in it that can be read.
    """
    # Takes long to import, and most commands do not need it.
    import soundfile

    path = Path(path)
    try:
        content = path.read_bytes()
        frames, sample_rate = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
        if not len(frames) and int.from_bytes(content[4:8], "little") < len(content) - 8:
            # A program that writes to a pipe cannot go back to write the length.
            content = content.replace(b"data\0\0\0\0", b"data\xff\xff\xff\xff", 1)
            frames, sample_rate = soundfile.read(BytesIO(content), dtype="float32", always_2d=True)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or type(error).__name__}"
        problem = "does not exist" if isinstance(error, FileNotFoundError) else reason
        raise AudioFileError(f"{path} {problem}", hint="give the path of a sound file") from None
    except soundfile.LibsndfileError as error:
        # Quoted, because the hint is to be pasted into a shell.
        convert = f"convert it: ffmpeg -i {shlex.quote(str(path))} -ar 8000 -ac 1 out.wav"
        raise AudioFileError(f"{path} cannot be read as sound: {error.error_string}", hint=convert) from None
    if not len(frames) or not MIN_RATE <= sample_rate <= MAX_RATE:
        problem = f"claims {sample_rate} samples a second" if len(frames) else "has no sound in it"
        raise AudioFileError(f"{path} {problem}", hint="record or download it again")
    # A file may contain NaN and infinity.
    mixed = np.nan_to_num(frames, nan=0.0, posinf=1.0, neginf=-1.0).mean(axis=1) * 32768
    return np.clip(np.rint(mixed), -32768, 32767).astype("<i2").tobytes(), sample_rate


def write_wav(path: str | PathLike[str], channels: Sequence[bytes], sample_rate: int) -> None:
    """
    Write a 16-bit WAV file, with one PCM object a channel; shorter ones are padded with silence.

    Raises:
        ValueError: If there is no channel, or one ends in the middle of a sample.
        OSError: If the file cannot be written.
    """
    if not channels:
        raise ValueError("a WAV file needs at least one channel")
    frames = np.zeros((max(map(len, channels)) // 2, len(channels)), "<i2")
    for number, pcm in enumerate(channels):
        samples = np.frombuffer(pcm, "<i2")
        frames[: len(samples), number] = samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(frames.tobytes())
