"""
A caller that does again what another one did, at the same times.

Like a :class:`~wsvoice.dial.script.Script` it does no I/O: what was said and pressed is given to it as a whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.report import TurnReport
from wsvoice.dial.script import Speaker, Step, measure_turns
from wsvoice.dial.sound_detection import SoundDetector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RecordedCaller:
    """
    What a caller did, in milliseconds since the stream started.

    Attributes:
        samples: What it said, from the stream's start on.
        keys: When it pressed which key.
        turns: When each of its turns began and ended.
        interrupts: The numbers of those that interrupted the bot, from 0.
        leaves_ms: When it goes, if the bot has not ended the call by then.
    """

    samples: NDArray[np.int16] = field(repr=False)
    keys: Sequence[tuple[float, str]]
    turns: Sequence[tuple[float, float]]
    interrupts: frozenset[int]
    leaves_ms: float


class ReplayScript(Speaker):
    """
    Says and presses what was recorded when it was, whatever the bot does.

    Args:
        recorded: What the caller did, its samples at the rate of the stream.
        detector: Hears the bot.
        sample_rate: The stream's, in samples a second.
    """

    hangs_up_when_done = True

    def __init__(self, recorded: RecordedCaller, detector: SoundDetector, *, sample_rate: int) -> None:
        super().__init__(detector, no_interruption_reason="the caller repeats a recorded call")
        self._recorded = recorded
        self._keys = deque(sorted(recorded.keys))
        self._step_samples = sample_rate * STEP_MS // 1000
        self._now_ms = 0.0

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        step = Step()
        if self.done:
            return step
        self._now_ms = now_ms
        first = round(now_ms / STEP_MS - 1) * self._step_samples
        step.pcm = self._recorded.samples[first : first + self._step_samples].tobytes()
        while self._keys and self._keys[0][0] < now_ms:
            step.digits += self._keys.popleft()[1]
        self.digits_sent += step.digits
        self._note_turns(now_ms, step)
        if now_ms >= self._recorded.leaves_ms:
            self.done = True
        return step

    def _note_turns(self, now_ms: float, step: Step) -> None:
        """Tell of the turns that begin or end in this step; each key has its own event."""
        for number, (start_ms, end_ms) in enumerate(self._recorded.turns):
            if start_ms >= now_ms:
                break
            if start_ms >= now_ms - STEP_MS:
                if number in self._recorded.interrupts:
                    self.interrupted_at_ms = start_ms
                step.notes.append(("caller-speaks", f"the caller begins its turn {number + 1}"))
            if now_ms - STEP_MS < end_ms <= now_ms:
                step.notes.append(("caller-silent", f"the caller has finished its turn {number + 1}"))

    def turns(self) -> list[TurnReport]:
        """Return the turns that the caller has finished, and the bot's answers."""
        finished = sum(end_ms <= self._now_ms for _, end_ms in self._recorded.turns)
        return measure_turns(self._recorded.turns, self.detector)[:finished]

    def missing(self, *, bot_ended: bool) -> str | None:
        """Return why the caller did not come to its last turn; whether the bot answers is not asked here."""
        finished = sum(end_ms <= self._now_ms for _, end_ms in self._recorded.turns)
        if bot_ended and finished < len(self._recorded.turns):
            return f"the bot ended the call before the caller's turn {finished + 1} was over"
        return self.failure
