"""When the next piece of the bot's audio may leave."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsvoice.runner.pacing import Pacer


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
