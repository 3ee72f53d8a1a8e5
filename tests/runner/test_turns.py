"""How long the caller waits for an answer."""

from __future__ import annotations

import pytest

from tests.signals import tone
from wsvoice.runner.turns import TurnTimer


class TestTurnTimer:
    def test_measures_from_sound_to_sound(self) -> None:
        loud, quiet = tone(500, 20, 8000), bytes(320)
        timer = TurnTimer()
        for step in range(50):
            timer.caller(loud if step < 25 else quiet, step * 0.02)
            if step == 30:
                timer.bot(quiet, step * 0.02)  # Silence is no answer.
            if step >= 40:
                timer.bot(loud, step * 0.02)
        assert timer.first_sound_at == pytest.approx(0.8)
        assert timer.responses_s == pytest.approx([0.8 - 24 * 0.02])
