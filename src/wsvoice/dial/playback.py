"""
A model of the provider's playback buffer: what is heard of the bot's audio, and when.

Audio and marks are queued, and played by the clock; an empty queue is silence. The model does no I/O: every method is
told the time.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from wsvoice.dial.sound_detection import is_loud

#: Telephones' jitter buffers hide shorter breaks.
MIN_UNDERRUN_MS = 20.0
#: After a longer break another utterance has begun.
MAX_UNDERRUN_MS = 500.0
# A break is a fault only if there was sound right before it, and not after a pause.
_RECENT_MS = 40
# The clock ticks every 20 ms. After a longer step this process was held up, and read the bot's messages too late: a
# break may not be the bot's fault.
_MAX_STEP_S = 0.035
# The length of the queue's pieces; a bot's messages may be as long or as short as it likes.
_PIECE_MS = 100
#: The most marks that wait, and the most characters of their names together.
MAX_MARKS = 10_000
MAX_MARK_NAMES = 1024 * 1024


@dataclass(slots=True)
class _Piece:
    pcm: memoryview
    loud: bool


class Playback:
    """
    The queue between the bot's messages and what the caller hears.

    :meth:`advance` has to be called every 20 ms; after a longer time, underruns are not counted.

    Attributes:
        underruns: How often the queue ran empty in the middle of a sound, with more audio soon after.
        gap_ms: How long these breaks were, together.
        max_gap_ms: The longest time between two pieces of one utterance.
        peak_ms: The most audio that was queued: how far the bot was ahead of real time.
        discarded_ms: Audio thrown away because the queue was full.
        discarded_marks: Marks thrown away because too many were waiting.
        received_samples: Samples that the bot has sent.
    """

    def __init__(self, sample_rate: int, started_at: float, *, limit_s: float) -> None:
        self.underruns = 0
        self.gap_ms = 0.0
        self.max_gap_ms = 0.0
        self.peak_ms = 0.0
        self.discarded_ms = 0.0
        self.discarded_marks = 0
        self.received_samples = 0
        self._rate = sample_rate
        self._started_at = started_at
        self._limit = int(limit_s * sample_rate)
        self._queue: deque[_Piece | str] = deque()
        self._queued = 0
        self._n_marks = 0
        self._mark_names = 0
        self._piece_bytes = 2 * (sample_rate * _PIECE_MS // 1000)
        self._position = 0
        self._heard: list[bytes | memoryview] = []
        self._recent = b""
        self._recent_bytes = 2 * (sample_rate * _RECENT_MS // 1000)
        self._last_arrival: float | None = None
        # Where the queue ran empty, in samples, and whether it cut a sound off.
        self._empty_at = 0
        self._was_cut_off = False
        self._advanced_at = started_at

    @property
    def queued_ms(self) -> float:
        """How much audio is waiting to be played."""
        return self._queued * 1000 / self._rate

    @property
    def audible_ms(self) -> float:
        """How long until the queue's last sound has been played; 0 if there is only silence."""
        samples = self._queued
        for item in reversed(self._queue):
            if isinstance(item, str):
                continue
            if item.loud and (tail := _silent_tail(item.pcm)) < len(item.pcm) // 2:
                return (samples - tail) * 1000 / self._rate
            samples -= len(item.pcm) // 2
        return 0.0

    def add_audio(self, pcm: bytes, now: float) -> list[str]:
        """
        Queue audio that the bot sent at `now`, and return the marks that were reached until then.

        Args:
            pcm: 16-bit samples at the stream's rate.
            now: The clock's time.
        """
        reached = self.advance(now)
        samples = len(pcm) // 2
        if not samples:
            return reached
        self.received_samples += samples
        empty_ms = 0.0 if self._queued else (self._position - self._empty_at) * 1000 / self._rate
        if self._last_arrival is not None and empty_ms < MAX_UNDERRUN_MS:
            self.max_gap_ms = max(self.max_gap_ms, (now - self._last_arrival) * 1000)
            if self._was_cut_off and empty_ms >= MIN_UNDERRUN_MS:
                self.underruns += 1
                self.gap_ms += empty_ms
        self._was_cut_off = False
        self._last_arrival = now

        room = self._limit - self._queued
        if samples > room:
            self.discarded_ms += (samples - room) * 1000 / self._rate
            pcm = pcm[: 2 * room]
        if pcm:
            self._queued += len(pcm) // 2
            self._append(pcm)
            self.peak_ms = max(self.peak_ms, self.queued_ms)
        return reached

    def add_mark(self, name: str, now: float) -> list[str]:
        """Queue a mark, and return the marks that are reached by now, which it may be among."""
        reached = self.advance(now)
        if self._n_marks >= MAX_MARKS or self._mark_names + len(name) > MAX_MARK_NAMES:
            self.discarded_marks += 1
            return reached
        self._queue.append(name)
        self._n_marks += 1
        self._mark_names += len(name)
        return reached + self._take_marks()

    def clear(self, now: float) -> list[str]:
        """Empty the queue, and return the marks that are reached by now, then those that were cleared."""
        reached = self.advance(now)
        reached += [item for item in self._queue if isinstance(item, str)]
        self._queue.clear()
        self._queued = self._n_marks = self._mark_names = 0
        self._empty_at = self._position
        # The bot wanted the break: what comes next is another utterance.
        self._was_cut_off = False
        self._last_arrival = None
        return reached

    def advance(self, now: float) -> list[str]:
        """Play until `now`, and return the marks that were reached, in their order."""
        # The addend keeps rounding errors from ending one sample early.
        target = int((now - self._started_at) * self._rate + 1e-3)
        held_up = now - self._advanced_at > _MAX_STEP_S
        self._advanced_at = now
        marks = self._take_marks()
        while self._position < target and self._queued:
            piece = self._queue[0]
            assert not isinstance(piece, str)
            count = min(target - self._position, len(piece.pcm) // 2)
            played = piece.pcm[: 2 * count]
            self._hear(played)
            self._position += count
            self._queued -= count
            if 2 * count == len(piece.pcm):
                self._queue.popleft()
            else:
                piece.pcm = piece.pcm[2 * count :]
            if not self._queued:
                self._empty_at = self._position
                self._was_cut_off = is_loud(self._recent)
            marks += self._take_marks()
        if self._position < target:
            self._heard.append(bytes(2 * (target - self._position)))
            self._position = target
        if held_up:
            self._was_cut_off = False
            self._last_arrival = None
        return marks

    def take_heard(self) -> bytes:
        """Return the PCM that was played since the last call, silence included."""
        heard = b"".join(self._heard)
        self._heard.clear()
        return heard

    def _hear(self, played: memoryview) -> None:
        self._heard.append(played)
        if len(played) >= self._recent_bytes:
            self._recent = bytes(played[-self._recent_bytes :])
        else:
            self._recent = (self._recent + bytes(played))[-self._recent_bytes :]

    def _append(self, pcm: bytes) -> None:
        last = self._queue[-1] if self._queue else None
        if isinstance(last, _Piece) and len(last.pcm) + len(pcm) <= self._piece_bytes:
            pcm = bytes(last.pcm) + pcm
            self._queue.pop()
        for start in range(0, len(pcm), self._piece_bytes):
            # Copied, so that a piece does not keep a long message in memory.
            piece = pcm[start : start + self._piece_bytes]
            self._queue.append(_Piece(memoryview(piece), is_loud(piece)))

    def _take_marks(self) -> list[str]:
        marks: list[str] = []
        while self._queue and isinstance(mark := self._queue[0], str):
            self._queue.popleft()
            self._n_marks -= 1
            self._mark_names -= len(mark)
            marks.append(mark)
        return marks


def _silent_tail(pcm: memoryview) -> int:
    """Return how many samples at the end of `pcm` are silent."""
    samples = len(pcm) // 2
    step = 80
    for end in range(samples, 0, -step):
        if is_loud(bytes(pcm[2 * max(0, end - step) : 2 * end])):
            return samples - end
    return samples
