"""The audio of one end of a call, put on the call's time axis."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from operator import sub

from wsvoice.audio import AudioFormat

#: How much of one end's audio is kept that is not played yet, in seconds; no provider is known to queue more.
MAX_UNPLAYED_S = 600.0


class Track:
    """
    The audio of one end that is not written yet; it is kept as the stream codes it.

    Args:
        format: The format of the pieces. One before whose time :data:`MAX_UNPLAYED_S` of audio wait is dropped.
    """

    def __init__(self, format: AudioFormat) -> None:
        self.format = format
        self.rate = format.sample_rate
        self._most = MAX_UNPLAYED_S * self.rate
        self._width = format.sample_width
        self._coded = bytearray()
        #: The positions in the call of its first sample, and of the one after its last.
        self._first = self._end = 0

    @property
    def ends_s(self) -> float:
        """When it ends, in seconds from the start of the call."""
        return self._end / self.rate

    def put(self, payload: bytes, at_s: float) -> None:
        """Append a piece, not before `at_s`. Half a sample at its end is left out."""
        self.put_all([at_s], [payload])

    def put_all(self, times: Sequence[float], payloads: Sequence[bytes], *, zero: float = 0.0) -> None:
        """Append pieces with their times as :meth:`put` does; by the clock of these, the call began at `zero`."""
        coded, end, rate, width, most = self._coded, self._end, self.rate, self._width, self._most
        if len(times) > 1 and self._are_joined(times, payloads, zero):
            together = b"".join(payloads)
            coded += together
            self._end = end + len(together) // width
            return
        for at_s, payload in zip(times, payloads, strict=True):
            size = len(payload)
            if width == 2 and size & 1:
                size -= 1
                payload = payload[:size]
            gap = round((at_s - zero) * rate) - end
            if gap > 0 and size:
                coded += self.format.silence(gap * width)
                end += gap
            elif gap <= -most:
                continue
            coded += payload
            end += size // width
        self._end = end

    def _are_joined(self, times: Sequence[float], payloads: Sequence[bytes], zero: float) -> bool:
        """Whether pieces of one size come without a gap, as most do; that is found quickly, for all of them."""
        sizes = set(map(len, payloads))
        if len(sizes) != 1 or (size := sizes.pop()) % self._width:
            return False
        begins, lasts_s = zero + self.ends_s, size / self._width / self.rate
        # None is later than the end of the one before it, and none is so much earlier that it would be dropped.
        late_s: float = max(map(sub, times, count(begins, lasts_s)))
        return late_s <= 0 and begins + lasts_s * len(times) - min(times) < MAX_UNPLAYED_S

    def cut(self, at_s: float) -> None:
        """Drop the audio after `at_s`."""
        kept = max(0, round(at_s * self.rate) - self._first)
        del self._coded[kept * self._width :]
        self._end = self._first + len(self._coded) // self._width

    def take(self, until_s: float) -> bytes:
        """Remove and return the audio before `until_s`, s16le, filled up with silence."""
        count = max(0, round(until_s * self.rate) - self._first)
        pcm = self.format.decode(bytes(self._coded[: count * self._width]))
        del self._coded[: count * self._width]
        self._first += count
        self._end = max(self._first, self._end)
        return pcm + bytes(2 * count - len(pcm))
