"""When the next piece of the bot's audio may leave."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsvoice.runner.pacing import MAX_CATCH_UP_S, InputLimit, Pacer


class TestPacer:
    def test_leads_and_then_keeps_real_time(self) -> None:
        pacer = Pacer(0.1)
        now, sent = 0.0, []
        for _ in range(100):
            wait = pacer.wait_s(now, 0.02)
            now += wait
            sent.append(now)
            pacer.sent(now, 0.02)
        assert sent[:5] == [0.0] * 5
        steps = [b - a for a, b in itertools.pairwise(sent[5:])]
        assert steps == pytest.approx([0.02] * len(steps))
        # An absolute clock: the hundredth piece is exactly where it belongs.
        assert sent[-1] == pytest.approx(99 * 0.02 - 0.08)

    def test_a_stall_is_made_up_for(self) -> None:
        pacer = Pacer(0.1)
        now = 0.0
        for _ in range(20):
            now += pacer.wait_s(now, 0.02)
            pacer.sent(now, 0.02)
        now += 0.081
        assert pacer.queued_s(now) > 0
        behind = 0
        while pacer.wait_s(now, 0.02) == 0:
            pacer.sent(now, 0.02)
            behind += 1
        assert behind == 4

    @given(st.lists(st.floats(0, 0.2), max_size=50))
    def test_never_more_than_the_lead_waits(self, stalls: list[float]) -> None:
        pacer = Pacer(0.1)
        now = 0.0
        for stall in stalls:
            now += stall
            now += pacer.wait_s(now, 0.02)
            pacer.sent(now, 0.02)
            assert pacer.queued_s(now) <= 0.1 + 1e-9

    def test_cleared(self) -> None:
        pacer = Pacer(0.1)
        pacer.sent(1.0, 5.0)
        pacer.cleared(2.0)
        assert pacer.queued_s(2.0) == 0
        assert pacer.wait_s(2.0, 0.02) == 0


class TestCatchUp:
    """What came late leaves at once, until the provider has played it."""

    def test_what_came_late_leaves_at_once(self) -> None:
        pacer = Pacer(0.1)
        pacer.sent(0.0, 0.02)
        # 200 ms later ten pieces are there.
        for number in range(10):
            pacer.catch_up(0.2, (number + 1) * 0.02)
            assert pacer.has_room(0.2, 0.02), number
            pacer.sent(0.2, 0.02)
        assert pacer.is_behind(0.2)
        # So do those that come every 20 ms from now on.
        for number in range(1, 100):
            assert pacer.has_room(0.2 + number * 0.02, 0.02)
            pacer.sent(0.2 + number * 0.02, 0.02)

    def test_it_ends_with_the_utterance(self) -> None:
        pacer = Pacer(0.1)
        pacer.sent(0.0, 0.02)
        pacer.catch_up(0.5, 0.5)
        pacer.sent(0.5, 0.4)
        assert pacer.has_room(0.5, 0.1)
        pacer.sent(5.0, 0.02)
        assert not pacer.is_behind(5.0)
        pacer.sent(5.0, 0.08)
        assert not pacer.has_room(5.0, 0.02)

    def test_it_is_bounded(self) -> None:
        pacer = Pacer(0.1)
        pacer.catch_up(0.0, 60.0)
        assert pacer.wait_s(0.0, 60.0) == pytest.approx(60.0 - 0.1 - MAX_CATCH_UP_S)

    def test_a_long_piece_never_leaves_at_once(self) -> None:
        pacer = Pacer(0.1)
        assert not pacer.has_room(1000.0, 5.0)
        assert pacer.has_room(1000.0, 0.1)
        assert Pacer(0.0).has_room(1000.0, 0.02)

    def test_how_far_ahead_the_callers_audio_is(self) -> None:
        limit = InputLimit()
        for number in range(50):
            assert limit.admits(number * 0.02, 0.02)
            assert limit.ahead_s(number * 0.02) == pytest.approx(0.02)
        assert limit.admits(1.5, 0.02)
        assert limit.admits(1.5, 0.02)
        assert limit.ahead_s(1.5) == pytest.approx(0.04)
