"""The formats of audio on the wire, and levels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from enum import StrEnum

with warnings.catch_warnings():
    # Python 3.11 and 3.12 announce the removal of audioop; from 3.13 on audioop-lts provides it.
    warnings.simplefilter("ignore", DeprecationWarning)
    import audioop

#: -45 dBFS: above line noise and comfort noise (about -60), below quiet speech (about -35). Quieter is silence.
AUDIBLE_LEVEL = 32768 * 10 ** (-45 / 20)


class Encoding(StrEnum):
    """How a sample is written on the wire, by its RTP name (https://www.rfc-editor.org/rfc/rfc3551#section-4.5)."""

    PCMU = "PCMU"
    PCMA = "PCMA"
    L16 = "L16"


_SILENCE = {Encoding.PCMU: b"\xff", Encoding.PCMA: b"\xd5", Encoding.L16: b"\x00"}


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """
    The format of a stream's audio; always one channel.

    Attributes:
        encoding: mu-law, A-law or linear 16-bit.
        sample_rate: Samples a second.
        big_endian: The byte order of ``L16``; the other encodings have none.
    """

    encoding: Encoding = Encoding.PCMU
    sample_rate: int = 8000
    big_endian: bool = False

    @property
    def sample_width(self) -> int:
        """Bytes a sample."""
        return 2 if self.encoding is Encoding.L16 else 1

    def bytes_for(self, ms: float) -> int:
        """Return how many bytes `ms` milliseconds take, in whole samples."""
        return round(self.sample_rate * ms / 1000) * self.sample_width

    def duration_ms(self, n_bytes: int) -> float:
        """Return how long `n_bytes` of this format last."""
        return n_bytes * 1000 / (self.sample_rate * self.sample_width)

    def silence(self, n_bytes: int) -> bytes:
        """Return `n_bytes` of silence."""
        return _SILENCE[self.encoding] * n_bytes

    def encode(self, pcm: bytes) -> bytes:
        """Turn PCM of this rate into this format; raise :exc:`ValueError` if it ends in the middle of a sample."""
        if len(pcm) & 1:
            raise ValueError(f"16-bit audio of odd length: {len(pcm)} bytes")
        if self.encoding is Encoding.PCMU:
            return audioop.lin2ulaw(pcm, 2)
        if self.encoding is Encoding.PCMA:
            return audioop.lin2alaw(pcm, 2)
        return audioop.byteswap(pcm, 2) if self.big_endian else bytes(pcm)

    def decode(self, payload: bytes) -> bytes:
        """Turn this format into PCM of this rate; raise :exc:`ValueError` if ``L16`` ends in the middle of a sample."""
        if self.encoding is Encoding.PCMU:
            return audioop.ulaw2lin(payload, 2)
        if self.encoding is Encoding.PCMA:
            return audioop.alaw2lin(payload, 2)
        if len(payload) & 1:
            raise ValueError(f"16-bit audio of odd length: {len(payload)} bytes")
        return audioop.byteswap(payload, 2) if self.big_endian else bytes(payload)


#: What nearly every telephone stream carries: 8 kHz mu-law.
PCMU_8K = AudioFormat()


def rms(pcm: bytes) -> float:
    """Return the root of the mean square, a whole number from 0 to 32768; 0 if there are no samples."""
    return float(audioop.rms(pcm, 2))


def dbfs(level: float) -> float:
    """Return a level above 0, such as :func:`rms` has it, in decibels of the largest there is."""
    return 20 * math.log10(level / 32768)


def peak(pcm: bytes) -> int:
    """Return the largest sample without its sign, from 0 to 32768."""
    return audioop.max(pcm, 2)
