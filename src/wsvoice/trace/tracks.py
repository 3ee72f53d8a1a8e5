"""The audio of one end of a call, put on the call's time axis."""

from __future__ import annotations


class Track:
    """The audio of one end that is not written yet: s16le at `rate` samples a second."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._pcm = bytearray()
        #: The positions in the call of its first sample, and of the one after its last.
        self._first = self._end = 0

    @property
    def ends_s(self) -> float:
        """When it ends, in seconds from the start of the call."""
        return self._end / self.rate

    def put(self, pcm: bytes, at_s: float, *, most_s: float) -> None:
        """Append audio, not before `at_s`; it is dropped if there are `most_s` of audio before it by then."""
        gap = round(at_s * self.rate) - self._end
        if gap > 0:
            self._pcm += bytes(2 * gap)
        elif gap <= -most_s * self.rate:
            return
        self._pcm += pcm
        self._end = self._first + len(self._pcm) // 2

    def cut(self, at_s: float) -> None:
        """Drop the audio after `at_s`."""
        kept = max(0, round(at_s * self.rate) - self._first)
        del self._pcm[2 * kept :]
        self._end = self._first + len(self._pcm) // 2

    def take(self, until_s: float) -> bytes:
        """Remove and return the audio before `until_s`, filled up with silence."""
        count = max(0, round(until_s * self.rate) - self._first)
        pcm = bytes(self._pcm[: 2 * count])
        del self._pcm[: 2 * count]
        self._first += count
        self._end = self._first + len(self._pcm) // 2
        return pcm + bytes(2 * count - len(pcm))
