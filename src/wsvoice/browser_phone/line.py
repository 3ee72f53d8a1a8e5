"""
The caller whose voice comes from a page: a jitter buffer, keys, and the end of the call.

Like a script it does no I/O. The page's sound comes in pieces of its own length, when it pleases; the call takes 20 ms
every 20 ms.
"""

from __future__ import annotations

from collections.abc import Callable

from wsvoice.audio import Resampler
from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.report import TurnReport
from wsvoice.dial.script import Speaker, Step, join_spans, measure_turns
from wsvoice.dial.sound_detection import SoundDetector

#: How much more than a step is waited for before sound begins, at least and at most.
LEAST_MARGIN_MS, MOST_MARGIN_MS = 5.0, 60.0
#: By how much the margin grows with each break, and shrinks with each quiet while.
GROWTH_MS, SHRINKAGE_MS = 10.0, 5.0
#: The most that is kept: what a page sends that was held up for longer is too old to be said.
LIMIT_MS = 200.0
#: A break after which the page goes on so soon was jitter; later it is another sound, such as after a mute.
BREAK_STEPS = 10
#: How long is looked at before something is left out because it only makes the call late, in steps.
WINDOW_STEPS = 25
#: How often the waits are looked at, in steps.
LOOK_STEPS = 5
#: How many of the latest turns may still change.
LATEST_TURNS = 2


class JitterBuffer:
    """
    Sound that comes in pieces, and goes on in steps.

    The margin follows the jitter: it grows when the sound breaks off, and shrinks while it does not. Samples are
    counted, not times: a page whose clock is fast has some left out, and one with a slow clock breaks off now and then.

    Attributes:
        breaks: How often the sound broke off because its rest came late.
        left_out_ms: How much was left out because it was too late, or too much.
    """

    def __init__(self, sample_rate: int) -> None:
        self.breaks = 0
        self.left_out_ms = 0.0
        self._rate = sample_rate
        self._step_bytes = self._bytes(STEP_MS)
        self._queue = bytearray()
        self._margin_ms = LEAST_MARGIN_MS
        self._is_flowing = False
        self._dry_steps = BREAK_STEPS
        # The least that was left after a step of this window.
        self._least = 0
        self._steps = 0

    @property
    def queued_ms(self) -> float:
        """How much waits to be said."""
        return len(self._queue) * 500 / self._rate

    def put(self, pcm: bytes) -> None:
        """Take the next piece, of 16-bit samples; beyond :data:`LIMIT_MS` the oldest are dropped."""
        if not self._is_flowing and self._dry_steps < BREAK_STEPS:
            self.breaks += 1
            self._margin_ms = min(MOST_MARGIN_MS, self._margin_ms + GROWTH_MS)
            self._dry_steps = BREAK_STEPS
        self._queue += pcm
        if len(self._queue) > self._bytes(LIMIT_MS):
            self._leave_out(len(self._queue) - self._bytes(STEP_MS + self._margin_ms))

    def take(self) -> bytes:
        """Return the next step's sound; shorter or empty if there is not enough."""
        if not self._is_flowing:
            self._dry_steps += 1
            if len(self._queue) < self._step_bytes + self._bytes(self._margin_ms):
                return b""
            # What came at once after a break would make all that follows late.
            self._leave_out(len(self._queue) - self._step_bytes - self._bytes(self._margin_ms))
            self._is_flowing, self._least, self._steps = True, len(self._queue), 0
        pcm = bytes(self._queue[: self._step_bytes])
        del self._queue[: self._step_bytes]
        if len(pcm) < self._step_bytes:
            self._is_flowing, self._dry_steps = False, 0
            return pcm
        self._least = min(self._least, len(self._queue))
        self._steps += 1
        if self._steps >= WINDOW_STEPS:
            self._keep_up()
        return pcm

    def clear(self) -> None:
        """Drop what waits."""
        self._queue.clear()
        self._is_flowing, self._dry_steps = False, BREAK_STEPS

    def _keep_up(self) -> None:
        """Leave out what has waited for a whole window, and only makes the call late."""
        self._leave_out(self._least - self._bytes(self._margin_ms))
        self._margin_ms = max(LEAST_MARGIN_MS, self._margin_ms - SHRINKAGE_MS)
        self._least, self._steps = len(self._queue), 0

    def _leave_out(self, count: int) -> None:
        if count > 0:
            del self._queue[:count]
            self.left_out_ms += count * 500 / self._rate

    def _bytes(self, ms: float) -> int:
        return 2 * int(self._rate * ms / 1000)


class LiveCaller(Speaker):
    """
    Somebody at a page, who speaks, presses keys and hears the bot.

    A missing answer is no failure: whoever talks hears it.

    Args:
        detector: Hears the bot.
        sample_rate: The rate of what the caller says, in the call.
        page_rate: The rate of the page's sound, both ways.
        on_heard: Takes what is played to the caller, at the page's rate, about 20 ms at a time.
        on_turn: Takes a turn's number and its answer, once it is there, and again if it changes.

    Attributes:
        jitter: What the caller says, on its way into the call.
    """

    hangs_up_when_done = True

    def __init__(
        self,
        detector: SoundDetector,
        *,
        sample_rate: int,
        page_rate: int,
        on_heard: Callable[[bytes], None],
        on_turn: Callable[[int, TurnReport], None],
    ) -> None:
        super().__init__(detector, no_interruption_reason="the caller is a person")
        self.jitter = JitterBuffer(sample_rate)
        self._said = Resampler(page_rate, sample_rate)
        self._heard = Resampler(detector.sample_rate, page_rate)
        self._on_heard = on_heard
        self._on_turn = on_turn
        self._own = SoundDetector(sample_rate)
        self._step_bytes = 2 * (sample_rate * STEP_MS // 1000)
        self._keys = ""
        self._pressed_ms: list[float] = []
        self._told: dict[int, TurnReport] = {}
        self._is_over = False
        self._n_steps = 0

    # The page

    def say(self, pcm: bytes) -> None:
        """Take the next of what the caller says, at the page's rate."""
        self.jitter.put(self._said.process(pcm))

    def press(self, keys: str) -> None:
        """Press keys."""
        self._keys += keys

    def hang_up(self) -> None:
        """End the call."""
        self._is_over = True

    def vanish(self) -> None:
        """Be gone, without a hang-up."""
        self._is_over = self.vanishes = True

    # The call

    def hear(self, pcm: bytes) -> None:
        """Pass on what was played to the caller."""
        if pcm:
            self._on_heard(self._heard.process(pcm))

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        step = Step(self.jitter.take(), digits=self._keys)
        if self._keys:
            self._pressed_ms.append(now_ms)
            self.digits_sent += self._keys
            self._keys = ""
        self._own.feed(step.pcm.ljust(self._step_bytes, b"\0"))
        for speaks, _ in self._own.changes(now_ms):
            note = ("caller-speaks", "the caller speaks") if speaks else ("caller-silent", "the caller is silent")
            step.notes.append(note)
        self._n_steps += 1
        if self._n_steps % LOOK_STEPS == 0:
            self._tell_turns()
        self.done = self._is_over
        return step

    def turns(self) -> list[TurnReport]:
        """Return what the caller said and pressed, divided where it paused for 600 ms, and the answers."""
        return measure_turns(self._spans(), self.detector)

    def _spans(self) -> list[tuple[float, float]]:
        sounds = [(each.start_ms, each.end_ms) for each in self._own.sounds]
        return join_spans(sorted([*sounds, *((at_ms, at_ms) for at_ms in self._pressed_ms)]))

    def _tell_turns(self) -> None:
        spans = self._spans()
        first = max(0, len(spans) - LATEST_TURNS)
        for number, turn in enumerate(measure_turns(spans[first:], self.detector), first + 1):
            if turn.response_ms is not None and self._told.get(number) != turn:
                self._told[number] = turn
                self._on_turn(number, turn)
