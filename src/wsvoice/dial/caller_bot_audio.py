"""
What a caller that is a bot says and hears: between its pipeline, which has its own pace, and the call, which takes and
gives 20 ms at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.report import TurnReport
from wsvoice.dial.script import Speaker, Step, join_spans, measure_turns
from wsvoice.dial.sound_detection import SoundDetector

#: How much of an utterance is buffered before it begins, so that it does not break off.
BUFFER_MS = 60.0
#: How far the pipeline may be ahead of the call.
LEAD_MS = 160.0


class CallerBotAudio(Speaker):
    """
    The audio of a caller that is a bot. A missing answer is no failure in a free conversation.

    Attributes:
        sample_rate: The rate of what the caller says.
        heard_rate: The rate of what the caller hears.
    """

    hangs_up_when_done = True

    def __init__(self, detector: SoundDetector, *, sample_rate: int, heard_rate: int) -> None:
        super().__init__(detector, no_interruption_reason="the caller is a bot")
        self.sample_rate = sample_rate
        self.heard_rate = heard_rate
        # Finds the caller's turns in its own sound.
        self._own = SoundDetector(sample_rate)
        self._queue = bytearray()
        self._flowing = False
        self._waited_ms = 0.0
        self._digits = ""
        self._hung_up = False
        self._room = asyncio.Event()
        self._room.set()
        self._on_heard: Callable[[bytes], None] = lambda pcm: None

    # The caller's pipeline

    def on_heard(self, take: Callable[[bytes], None]) -> None:
        """Have `take` called with what is heard of the other bot, about 20 ms at a time."""
        self._on_heard = take

    async def say(self, pcm: bytes) -> None:
        """Queue 16-bit samples of what the caller says, and wait until there is room for more."""
        self._queue += pcm
        if self._queued_ms > LEAD_MS:
            self._room.clear()
        await self._room.wait()

    def press(self, digit: str) -> None:
        """Press a key."""
        self._digits += digit

    def fall_silent(self) -> None:
        """Drop what is queued."""
        self._queue.clear()
        self._flowing = False
        self._room.set()

    def hang_up(self, failure: str | None = None) -> None:
        """End the call once what is queued has been said; at once if the caller failed."""
        self._hung_up = True
        if failure is not None:
            self.failure = self.failure or failure
            self.fall_silent()

    # The call

    def hear(self, pcm: bytes) -> None:
        """Pass on what was heard of the other bot."""
        if pcm:
            self._on_heard(pcm)

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        size = 2 * (self.sample_rate * STEP_MS // 1000)
        step = Step(self._take(size), digits=self._digits)
        self.digits_sent += self._digits
        self._digits = ""
        self._own.feed(step.pcm.ljust(size, b"\0"))
        for speaks, _ in self._own.changes(now_ms):
            note = ("caller-speaks", "the caller speaks") if speaks else ("caller-silent", "the caller is silent")
            step.notes.append(note)
        if self._hung_up and not self._queue:
            self.done = True
        return step

    def turns(self) -> list[TurnReport]:
        """Return what the caller said, divided where it paused for 600 ms, and the answers."""
        return measure_turns(join_spans((each.start_ms, each.end_ms) for each in self._own.sounds), self.detector)

    @property
    def _queued_ms(self) -> float:
        return len(self._queue) * 500 / self.sample_rate

    def _take(self, size: int) -> bytes:
        if not self._flowing and self._queue:
            self._waited_ms += STEP_MS
            # A short utterance may never fill the buffer.
            self._flowing = self._queued_ms >= BUFFER_MS or self._waited_ms > BUFFER_MS
        if not self._flowing:
            return b""
        pcm = bytes(self._queue[:size])
        del self._queue[:size]
        if not self._queue:
            self._flowing = False
            self._waited_ms = 0.0
        if self._queued_ms <= LEAD_MS:
            self._room.set()
        return pcm
