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
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio.formats import peak
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
# Made once: of "<i2" or a Python float numpy makes them each time, which takes about as long as what is done with them.
_PCM, _FLOAT, _LOWEST, _HIGHEST = np.dtype("<i2"), np.dtype(np.float64), np.array(-32768.0), np.array(32767.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Filter(ABC):
    """
    A polyphase filter between rates in the proportion `down` in to `up` out.

    Positions are counted in steps of ``1 / up`` of an input, so the next output is `down` further.

    Attributes:
        reach: Half the filter's length, in steps.
        before: How many inputs ahead of an output's position its inputs begin.
        stride: How many inputs at once a window moves on.
        loudest: Inputs up to this value, of either sign, make no output too large for 16 bits.
    """

    up: int
    down: int
    reach: int
    before: int
    stride: int
    loudest: int

    @abstractmethod
    def apply(self, window: bytes, position: int, count: int) -> Samples:
        """
        Return `count` outputs.

        Args:
            window: PCM; behind its end is silence.
            position: Where the first output lies, behind the `before` first inputs of the window.
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

    def apply(self, window: bytes, position: int, count: int) -> Samples:
        # Blocks begin at an input, so the first one may begin with outputs that are not asked for.
        skip = position // self.down
        width, step = len(self.matrix), 2 * self.block_in
        rows = -(-(skip + count) // self.block_out)
        window = window.ljust(2 * width + (rows - 1) * step, b"\0")
        # BLAS takes neither integers nor rows that overlap.
        blocks = np.ndarray((rows, width), _PCM, window, 0, (step, 2)).astype(_FLOAT)
        product: Samples = blocks.dot(self.matrix)
        return product.ravel()[skip : skip + count]


@dataclass(frozen=True, slots=True, eq=False)
class _PhaseFilter(_Filter):
    """
    A filter for rates without much of a common divisor: their block's matrix would be huge and mostly zero.

    Attributes:
        taps: Of shape ``(up, width)``: for each phase, the factors of the inputs that an output needs.
    """

    taps: Samples

    def apply(self, window: bytes, position: int, count: int) -> Samples:
        positions = position + np.arange(count) * self.down
        starts, width = positions // self.up, self.taps.shape[1]
        window = window.ljust(2 * (int(starts[-1]) + width), b"\0")
        windows: NDArray[np.int16] = np.ndarray((len(window) // 2 - width + 1, width), _PCM, window, 0, (2, 2))
        out: Samples = np.einsum("ij,ij->i", windows[starts], self.taps[positions % self.up])
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
    loudest = int(32767 * _COEFFICIENT_SCALE / np.abs(phases).sum(axis=0).max())

    def factors(inputs: NDArray[np.int64], outputs: NDArray[np.int64]) -> Samples:
        index = (inputs - before) * up - outputs + reach
        return np.where((index >= 0) & (index < len(taps)), taps[np.clip(index, 0, len(taps) - 1)], 0.0)

    # Blocks about a quarter as long as the filter: longer ones multiply more zeros, shorter ones copy more.
    groups = max(1, round(reach / up / down / 2))
    block_in, block_out = groups * down, groups * up
    width = before + ((block_out - 1) * down + reach) // up + 1
    if width * block_out > _MAX_MATRIX:
        inputs, outputs = np.arange(2 * before + 2)[None, :], np.arange(up)[:, None]
        return _PhaseFilter(up, down, reach, before, 1, loudest, factors(inputs, outputs))
    inputs, outputs = np.arange(width)[:, None], np.arange(block_out)[None, :] * down
    return _BlockFilter(up, down, reach, before, down, loudest, block_in, block_out, factors(inputs, outputs))


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
        self._split = b""
        # PCM: what the filter needs ahead of the utterance's input number `_begins`, and then the input from there on.
        # The next output lies at `_position` from there.
        self._window = bytes(2 * self._filter.before) if self._filter else b""
        self._begins = 0
        self._position = 0

    def process(self, pcm: bytes) -> bytes:
        """Take the next chunk and return the output so far; a sample may be split between two chunks."""
        if self._split:
            pcm, self._split = self._split + pcm, b""
        if len(pcm) & 1:
            pcm, self._split = pcm[:-1], pcm[-1:]
        f = self._filter
        if f is None:
            return pcm
        self._window += pcm
        # Outputs are ready whose inputs have all come: those that lie ahead of `ready`.
        ready = (len(self._window) // 2 - f.before) * f.up - f.reach
        return self._emit(f, -((self._position - ready) // f.down))

    def flush(self) -> bytes:
        """
        Return what is held back, and reset.

        With it the utterance's output has ``round(taken * out_rate / in_rate)`` samples.
        """
        rest, f = b"", self._filter
        if f is not None:
            taken = self._begins + len(self._window) // 2 - f.before
            given = (self._begins * f.up + self._position) // f.down
            rest = self._emit(f, round(taken * self._out_rate / self._in_rate) - given)
        self.reset()
        return rest

    def _emit(self, f: _Filter, count: int) -> bytes:
        """Return the next `count` outputs, and let go of the inputs that only they needed."""
        if count <= 0:
            return b""
        window = self._window
        out = f.apply(window, self._position, count)
        np.rint(out, out)
        if peak(window) > f.loudest:
            out.clip(_LOWEST, _HIGHEST, out=out)
        end = self._position + count * f.down
        done = end // (f.up * f.stride) * f.stride
        self._window = window[2 * done :]
        self._begins += done
        self._position = end - done * f.up
        return out.astype(_PCM).tobytes()


def resample(pcm: bytes, in_rate: int, out_rate: int) -> bytes:
    """Change a whole clip's sample rate, with a better filter than for a live stream."""
    resampler = Resampler.offline(in_rate, out_rate)
    # A second at a time, to limit the memory for the filter's windows.
    step = 2 * in_rate
    parts = [resampler.process(pcm[start : start + step]) for start in range(0, len(pcm), step)]
    return b"".join([*parts, resampler.flush()])


def correlations(heard: NDArray[np.int16], pattern: NDArray[np.int16]) -> NDArray[np.float64]:
    """
    Return for each place in `heard` how similar it is to a `pattern`, from -1 to 1: the same but for its loudness.

    Empty if `heard` is shorter than that.
    """
    sought, sound = pattern.astype(np.float64), heard.astype(np.float64)
    count = len(sound) - len(sought) + 1
    if count <= 0:
        return np.zeros(0)
    size = 1 << (len(sound) + len(sought)).bit_length()
    products = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(sought, size)), size)[:count]
    energy = np.concatenate([[0.0], np.cumsum(sound * sound)])
    # In silence the product is only rounding; the quotient must be about 0 as well.
    energy = np.maximum(energy[len(sought) :] - energy[: -len(sought)], 1.0 * len(sought))
    found: NDArray[np.float64] = products / np.sqrt(energy * max(1.0, np.dot(sought, sought)))
    return found


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


def write_wav(target: str | PathLike[str] | BinaryIO, channels: Sequence[bytes], sample_rate: int) -> None:
    """
    Write a 16-bit WAV file, with one PCM object a channel; shorter ones are padded with silence.

    It is written to a path, or into a file that is open.

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
    with wave.open(str(target) if isinstance(target, str | PathLike) else target, "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(frames.tobytes())


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound file: its bytes, and their media type."""

    content: bytes
    media_type: str


def compress(channels: Sequence[NDArray[np.int16]], sample_rate: int, length: int, *, limit: int) -> Sound:
    """
    Return tracks as a sound file that every browser plays: FLAC if it fits, else Ogg Vorbis.

    An hour of a conversation takes 7 to 15 MB as Vorbis, and 6 seconds; Opus takes seven times as long, and FLAC 32 MB.

    Args:
        channels: The samples of each channel.
        sample_rate: Their rate in Hz.
        length: How many samples each has in the file; shorter ones are padded with silence.
        limit: How many bytes it should take at most. What is too long for that at the lowest quality takes more.
    """
    # A conversation takes half of it as FLAC; nothing is gained by trying that with far more.
    if len(channels) * length * 2 < 4 * limit:
        content = _encode(channels, sample_rate, length, "FLAC", "PCM_16", 0.5)
        if len(content) <= limit:
            return Sound(content, "audio/flac")
    for level in (0.5, 0.9, 1.0):
        content = _encode(channels, sample_rate, length, "OGG", "VORBIS", level)
        if len(content) <= limit:
            break
    return Sound(content, "audio/ogg")


def _encode(
    channels: Sequence[NDArray[np.int16]], sample_rate: int, length: int, file_format: str, subtype: str, level: float
) -> bytes:
    # Takes long to import, and most commands do not need it.
    import soundfile

    file = BytesIO()
    shape = {"format": file_format, "subtype": subtype, "compression_level": level}
    with soundfile.SoundFile(file, "w", sample_rate, len(channels), **shape) as target:
        # A piece at a time: libsndfile's Vorbis overflows its stack with a long one.
        for start in range(0, length, sample_rate):
            frames = np.zeros((min(sample_rate, length - start), len(channels)), np.int16)
            for number, each in enumerate(channels):
                samples = each[start : start + len(frames)]
                frames[: len(samples), number] = samples
            target.write(frames)
    return file.getvalue()
