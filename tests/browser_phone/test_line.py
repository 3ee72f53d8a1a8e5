"""The caller at a page, stepped by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.signals import tone
from wsvoice.browser_phone.line import (
    BREAK_STEPS,
    GROWTH_MS,
    LEAST_MARGIN_MS,
    LIMIT_MS,
    MOST_MARGIN_MS,
    WINDOW_STEPS,
    JitterBuffer,
    LiveCaller,
)
from wsvoice.dial.report import TurnReport
from wsvoice.dial.sound_detection import SoundDetector

RATE = 8000
STEP = 320
#: 10 ms.
PIECE = 160


def counting(samples: int) -> bytes:
    """Return samples that are all different, as far as they can be."""
    return (np.arange(samples) % 30_000 + 1).astype("<i2").tobytes()


def test_sound_comes_out_as_it_went_in() -> None:
    buffer = JitterBuffer(RATE)
    said = counting(2 * RATE)
    at = STEP + round(16 * LEAST_MARGIN_MS)
    buffer.put(said[:at])
    heard = b""
    while piece := buffer.take():
        heard += piece
        # In two pieces, and none when there is no more.
        for end in (at + PIECE, at + STEP):
            buffer.put(said[at:end])
            at = min(end, len(said))
    assert heard == said
    assert (buffer.breaks, buffer.left_out_ms) == (0, 0)


def test_it_waits_for_a_step_and_a_margin_and_no_longer() -> None:
    buffer = JitterBuffer(RATE)
    buffer.put(bytes(STEP))
    assert buffer.take() == b""
    buffer.put(bytes(PIECE))
    assert len(buffer.take()) == STEP
    assert buffer.queued_ms == LEAST_MARGIN_MS


def test_what_comes_at_once_after_a_break_makes_nothing_late() -> None:
    buffer = JitterBuffer(RATE)
    buffer.put(bytes(STEP + PIECE))
    while buffer.take():
        pass
    buffer.put(counting(RATE // 10))
    # It is the latest of what came.
    assert buffer.take()[-2:] == counting(RATE // 10)[-2 * (1 + int(RATE * buffer.queued_ms / 1000)) :][:2]
    assert buffer.queued_ms <= LEAST_MARGIN_MS + GROWTH_MS


def test_a_break_widens_the_margin_and_quiet_narrows_it_again() -> None:
    buffer = JitterBuffer(RATE)

    def wait_ms() -> float:
        """How much has to come until something goes out."""
        buffer.clear()
        came_ms = 0.0
        while not buffer.take():
            buffer.put(bytes(PIECE // 2))
            came_ms += 5
        return came_ms

    usual_ms = wait_ms()
    for _ in range(20):
        buffer.put(bytes(10 * PIECE))
        while len(buffer.take()) == STEP:
            pass
        buffer.put(bytes(PIECE))
    assert buffer.breaks == 20
    assert wait_ms() == pytest.approx(20 + MOST_MARGIN_MS, abs=5)
    for _ in range(WINDOW_STEPS * 15):
        buffer.put(bytes(STEP))
        buffer.take()
    assert wait_ms() == usual_ms


def test_a_mute_is_no_break() -> None:
    buffer = JitterBuffer(RATE)
    for _ in range(3):
        buffer.put(bytes(STEP + PIECE))
        for _ in range(BREAK_STEPS + 4):
            buffer.take()
    assert buffer.breaks == 0


def test_what_only_makes_the_call_late_is_left_out() -> None:
    buffer = JitterBuffer(RATE)
    buffer.put(bytes(int(150 / 10) * PIECE))
    for _ in range(2 * WINDOW_STEPS):
        buffer.take()
        buffer.put(bytes(STEP))
    assert buffer.queued_ms <= 20 + 10
    assert buffer.left_out_ms == pytest.approx(150 - buffer.queued_ms, abs=1)


def test_what_a_page_was_held_up_with_is_bounded() -> None:
    buffer = JitterBuffer(RATE)
    for _ in range(1000):
        buffer.put(counting(PIECE))
        assert buffer.queued_ms <= LIMIT_MS
    assert buffer.left_out_ms > 9000


class Call:
    """A caller who is stepped, and what came of it."""

    def __init__(self, page_rate: int = RATE) -> None:
        self.detector = SoundDetector(RATE)
        self.heard = bytearray()
        self.turns: list[tuple[int, TurnReport]] = []
        self.caller = LiveCaller(
            self.detector,
            sample_rate=RATE,
            page_rate=page_rate,
            on_heard=self.heard.extend,
            on_turn=lambda number, turn: self.turns.append((number, turn)),
        )
        self.now_ms = 0.0
        self.said = b""
        self.keys = ""

    def run(self, ms: int, *, caller: bytes = b"", bot: bytes = b"") -> None:
        for at in range(0, ms * 16, STEP):
            self.now_ms += 20
            if caller:
                self.caller.say(caller[at : at + STEP].ljust(STEP, b"\0"))
            heard = bot[at : at + STEP].ljust(STEP, b"\0")
            self.detector.feed(heard)
            self.caller.hear(heard)
            step = self.caller.step(self.now_ms, audible_queued=False)
            self.said += step.pcm
            self.keys += step.digits


def test_waits_are_told_while_the_call_goes_on() -> None:
    call = Call()
    call.run(1000, caller=tone(500, 500, RATE))
    assert call.turns == []
    call.run(1000, bot=tone(300, 400, RATE))
    assert [number for number, _ in call.turns] == [1]
    # The tone is over after half a second, later by the margin of the jitter buffer.
    assert call.turns[0][1].response_ms == pytest.approx(500, abs=45)
    call.caller.press("7")
    call.run(300)
    call.run(400, bot=tone(300, 300, RATE))
    assert (call.keys, call.caller.digits_sent) == ("7", "7")
    assert call.turns[-1][0] == 2
    assert call.turns[-1][1].response_ms == pytest.approx(300, abs=25)
    assert [turn.response_ms for turn in call.caller.turns()] == [turn.response_ms for _, turn in call.turns[-2:]]


def test_what_is_played_comes_at_the_pages_rate() -> None:
    call = Call(48_000)
    call.run(1000, bot=tone(440, 1000, RATE))
    samples = np.frombuffer(bytes(call.heard), "<i2")
    assert len(samples) == pytest.approx(48_000, rel=0.01)
    spectrum = np.abs(np.fft.rfft(samples[4800:43_200]))
    assert np.argmax(spectrum) * 48_000 / 38_400 == pytest.approx(440, abs=2)


@pytest.mark.parametrize("vanishes", [True, False])
def test_it_ends_when_the_user_wants(vanishes: bool) -> None:
    call = Call()
    call.run(100)
    assert not call.caller.done
    (call.caller.vanish if vanishes else call.caller.hang_up)()
    call.run(20)
    assert (call.caller.done, call.caller.vanishes, call.caller.missing(bot_ended=False)) == (True, vanishes, None)
