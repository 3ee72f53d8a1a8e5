"""The steps of a scenario's caller, against a bot that sounds when the test says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.signals import tone
from wsvoice.dial.script import Clip, Keys
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.steps import Action, StepScript

HELLO = Clip("hello", tone(400, 200, 8000), 8000)


def run(actions: Sequence[Action], sounds: Sequence[tuple[float, float]], *, until_ms: int = 8000) -> StepScript:
    """Run the steps to their end, or until `until_ms`; the bot sounds in `sounds`, from and to in milliseconds."""
    detector = SoundDetector(8000)
    script = StepScript(actions, detector, sample_rate=8000, listen_s=0.2, response_timeout_s=2.0)
    for now_ms in range(20, until_ms + 20, 20):
        is_sounding = any(start <= now_ms - 20 < end for start, end in sounds)
        detector.feed(tone(600, 20, 8000) if is_sounding else bytes(320))
        script.step(now_ms, audible_queued=False)
        if script.done:
            break
    return script


def test_an_interruption_waits_until_the_bot_has_spoken_for_so_long() -> None:
    actions = [Action("step 1", HELLO, awaits="nothing"), Action("step 2", HELLO, interrupt_after_ms=500)]
    script = run(actions, [(700, 1600), (2500, 2800)])
    first, second = script.times
    assert script.failure is None
    assert first.caller_end_ms < 700
    assert second.start_ms == pytest.approx(1200, abs=61)
    assert script.interrupted_at_ms == pytest.approx(second.start_ms, abs=20)
    assert next(turn.response_ms for turn in script.turns()) == pytest.approx(700 - first.caller_end_ms, abs=21)


def test_an_answer_that_is_too_short_cannot_be_interrupted() -> None:
    actions = [Action("step 1", HELLO, awaits="nothing"), Action("step 2", HELLO, interrupt_after_ms=500)]
    script = run(actions, [(700, 1000)])
    assert script.failure == "step 2: the bot spoke for 300 ms only, so it could not be interrupted"
    assert len(script.turns()) == 1


def test_the_caller_waits_for_a_greeting_and_for_its_end() -> None:
    script = run([Action("greeting"), Action("step 1", HELLO)], [(1000, 1500), (3000, 3200)])
    assert script.times[1].start_ms == pytest.approx(2100, abs=61)
    assert script.times[1].end_ms is not None
    assert (script.done, script.failure) == (True, None)


def test_a_greeting_that_does_not_come_fails() -> None:
    assert run([Action("greeting"), Action("step 1", HELLO)], []).failure == (
        "greeting: the bot did not speak within 2 s"
    )


def test_silence_and_a_wait_last_as_long_as_they_are_to() -> None:
    actions = [Action("step 1", HELLO, awaits="silence", wait_ms=1500), Action("step 2", wait_ms=700)]
    script = run([*actions, Action("step 3", hangs_up=True)], [])
    first, second, third = script.times
    assert first.end_ms == pytest.approx(first.caller_end_ms + 1500, abs=21)
    assert second.end_ms == pytest.approx(second.start_ms + 700, abs=21)
    assert (script.done, script.failure, third.problem) == (True, None, None)


@pytest.mark.parametrize(
    ("awaits", "until_ms", "missing"),
    [
        ("end", 1500, None),
        ("answer", 600, "the bot ended the call in step 1"),
        ("answer", 1500, "the bot ended the call before step 2"),
    ],
)
def test_a_bot_that_ends_the_call_is_expected_or_not(awaits: str, until_ms: int, missing: str | None) -> None:
    actions = [Action("step 1", Keys("12"), awaits=awaits)]  # type: ignore[arg-type]
    actions += [] if awaits == "end" else [Action("step 2", HELLO)]
    script = run(actions, [(900, 1400)], until_ms=until_ms)
    assert script.digits_sent == "12"
    assert script.missing(bot_ended=True) == missing
    assert script.missing(bot_ended=False) is None


def test_a_bot_that_does_not_end_the_call_is_waited_for_no_longer_than_an_answer() -> None:
    script = run([Action("step 1", Keys("1"), awaits="end")], [])
    assert script.done
    assert script.times[0].end_ms == pytest.approx(script.times[0].caller_end_ms + 2000, abs=41)
