"""Tests of a bot as a user's type checker sees them; checked, and never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, assert_type

from wsvoice.dial.report import TimelineEvent
from wsvoice.testing import AsyncDial, Dial, Report


async def a_bot(runner_args: object) -> None: ...


def test_a_call(dial: Dial, tmp_path: Path) -> None:
    report = dial("bot.py", provider="twilio", audio=["question.wav", tmp_path / "other.wav"], say="Hello.", dtmf="1#")
    assert_type(report, Report)
    dial(Path("bot.py"), audio=tmp_path / "question.wav", say=["Hello.", "Bye."], voice="en-gb", listen_s=1)
    dial(a_bot, parameters={"language": "en"}, quirks={"reorder": "0.1"}, env={"KEY": "value"}, cwd=tmp_path)
    dial(duration_s=5, response_timeout_s=2.5, from_number="+15550100001", to_number="+15550100002", probe=True)

    report.assert_passed()
    report.assert_answers_within(1000)
    report.assert_silent(0, report.turns[0].caller_start_ms)
    assert_type(report.assert_heard("hello.wav", min_correlation=0.8), float)
    assert_type(report.find(report.heard[:1600]), list[float])
    assert_type(report.passed, bool)
    assert_type(report.verdict, Literal["passed", "failed"])
    assert_type(report.wav, Path | None)
    assert_type(report.sounds, list[tuple[float, float]])
    assert_type(report.response_times_ms, list[float | None])
    assert_type(report.timeline, Sequence[TimelineEvent])


async def test_calls(adial: AsyncDial) -> None:
    assert_type(await adial("bot.py", dtmf="#"), Report)
