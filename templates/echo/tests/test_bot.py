"""Calls the bot, as its provider would."""

import pytest

PROVIDERS = ["twilio"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_repeats_the_caller(dial, provider):
    report = dial("bot.py", provider=provider)

    report.assert_passed()
    # What was said first is heard again, while the caller still speaks.
    [turn] = report.turns
    start = 16 * round(turn.caller_start_ms)  # 8000 samples of two bytes a second
    echo_ms = report.assert_heard(report.said[start : start + 16 * 500])
    assert turn.caller_start_ms <= echo_ms < turn.caller_end_ms
