"""What is different between two calls, told of calls that never were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.signals import speech_like
from wsvoice.replay.comparison import Comparison, KnownCall, Limits, Span, compare_calls
from wsvoice.replay.likeness import compare_sounds
from wsvoice.trace.sound import Utterance

LIMITS = Limits(0.25, 0.6)
SPANS = [Span("greeting", 0.0, 0.0), Span("turn 1", 2.0, 3.0), Span("turn 2", 7.0, 8.0, "12#")]
FIRST, SECOND, OTHER = (np.frombuffer(speech_like(2000, 8000, seed=seed), "<i2") for seed in (1, 2, 3))


def call(
    first_wait_s: float = 0.5, second_wait_s: float = 0.8, *, said: np.ndarray = FIRST, **known: object
) -> KnownCall:
    """Return a call in which the bot answers both turns with two seconds of sound."""
    bot = np.zeros(12 * 8000, "<i2")
    sounds = []
    for at_s, sound in ((3.0 + first_wait_s, said), (8.0 + second_wait_s, SECOND)):
        bot[round(at_s * 8000) :][: len(sound)] = sound
        sounds.append(Utterance(at_s, at_s + len(sound) / 8000))
    fields: dict[str, object] = {"spans": SPANS, "duration_s": 12.0, "ended_by": "caller", "findings": (), **known}
    return KnownCall(bot=bot, rate=8000, sounds=sounds, **fields)  # type: ignore[arg-type]


def compared(recorded: KnownCall, today: KnownCall, limits: Limits = LIMITS) -> Comparison:
    return compare_calls(recorded, today, limits, path="good.call", adaptive=False)


def told(recorded: KnownCall, today: KnownCall, limits: Limits = LIMITS) -> list[str]:
    return [str(each) for each in compared(recorded, today, limits).differences]


def test_the_same_call_has_no_differences() -> None:
    comparison = compared(call(), call())
    assert comparison.same
    assert [each.unheard_ms for each in comparison.turns] == [None, 0.0, 0.0]
    assert comparison.to_lines() == [
        "        recorded   today",
        "turn 1    0.50 s  0.50 s  +0.00 s",
        "turn 2    0.80 s  0.80 s  +0.00 s",
    ]


def test_an_answer_may_come_a_little_later() -> None:
    assert told(call(), call(first_wait_s=0.74)) == []
    assert told(call(), call(second_wait_s=1.2)) == [
        "turn 2: the bot answered after 1.20 s, 0.40 s later than the recorded 0.80 s"
    ]
    assert told(call(), call(second_wait_s=1.2), Limits(0.6, 0.6)) == []
    # A faster bot is no worse.
    assert told(call(), call(0.1, 0.1)) == []


def test_no_answer_and_a_new_one() -> None:
    silent = replace(call(), sounds=call().sounds[1:])
    assert told(call(), silent) == ["turn 1: the bot did not answer; in the recorded call it did after 0.50 s"]
    assert told(silent, call()) == ["turn 1: the bot answered after 0.50 s, and said nothing in the recorded call"]


def test_who_speaks_first() -> None:
    greeted = replace(call(), sounds=[Utterance(0.4, 1.0), *call().sounds])
    limits = replace(LIMITS, ignored=frozenset({"sound"}))
    assert told(greeted, call(), limits) == [
        "greeting: the bot did not speak first; in the recorded call it did after 0.40 s"
    ]
    assert told(call(), greeted, limits) == [
        "greeting: the bot spoke first, after 0.40 s; in the recorded call it waited for the caller"
    ]


def test_another_sound_and_another_loudness() -> None:
    [other] = told(call(), call(said=OTHER))
    assert other.startswith("turn 1: the bot said something else: 2.00 s of the recorded 2.00 s were not heard")
    half = np.concatenate([FIRST[:8000], OTHER[8000:]])
    [other] = told(call(), call(said=half))
    assert other.startswith("turn 1: the bot said something else: 1.00 s of the recorded 2.00 s were not heard")
    quieter = (FIRST.astype(int) // 3).astype("<i2")
    assert told(call(), call(said=quieter)) == ["turn 1: the bot was 10 dB quieter than in the recorded call"]
    assert told(call(), call(said=OTHER), Limits(0.25, 0.6, frozenset({"sound"}))) == []


def test_more_is_said() -> None:
    longer = np.concatenate([FIRST, FIRST[:12_000]])
    assert told(call(), call(said=longer)) == ["turn 1: the bot spoke for 3.5 s, and for 2.0 s in the recorded call"]


def test_a_gap_is_nothing_else() -> None:
    broken = np.concatenate([FIRST[:7000], np.zeros(800, "<i2"), FIRST[7000:]])
    assert told(call(), call(said=broken)) == []


def test_keys_that_the_bot_presses() -> None:
    recorded, today = (call(bot_keys=[(8.9, "1"), (9.1, keys)]) for keys in ("2", "3"))
    assert told(recorded, today) == ["turn 2: the bot pressed 13, and 12 in the recorded call"]
    # One that was left out of the trace is not compared, and one alone may have been heard by mistake.
    assert told(call(bot_keys=None), today) == []
    [cut] = told(recorded, call(bot_keys=[(9.1, "3" * 500)]))
    assert cut == f"turn 2: the bot pressed {'3' * 60}… (500 keys), and 12 in the recorded call"
    assert told(call(), call(bot_keys=[(4.0, "5")])) == []


def test_who_ends_the_call() -> None:
    assert told(call(), call(ended_by="bot")) == [
        "the bot ended the call, after 12.00 s; in the recorded call the caller did, after 12.00 s"
    ]
    assert told(call(ended_by=""), call(ended_by="bot")) == []
    assert told(call(transferred_to="+1555"), call()) == [
        "the bot transferred the call to nobody, and to +1555 in the recorded call"
    ]


def test_a_call_that_is_over_before_its_end() -> None:
    early = call(spans=SPANS[:2], duration_s=6.0, ended_by="bot", failure="the bot has ended the call")
    comparison = compared(call(), early)
    assert [str(each) for each in comparison.differences] == [
        "turn 2: the bot ended the call after 6.00 s, before the caller had pressed 12#"
    ]
    assert comparison.to_lines()[2].split() == ["turn", "2", "0.80", "s", "not", "reached"]


def test_new_findings_and_failures() -> None:
    found = call(findings=[("warn", "M3", "it went on"), ("warn", "M2", "its audio came too late")])
    assert told(call(), found) == ["warn M3 is new: it went on"]
    assert compared(call(), found).notes == ("warn M2 is new: its audio came too late",)
    assert told(found, found) == []
    # A server's trace has none.
    assert told(call(findings=None), found) == []
    assert told(call(), call(failure="it crashed")) == ["the call failed: it crashed"]
    assert told(call(failure="it crashed"), call(failure="it crashed")) == []


def test_a_call_that_was_cut_off_says_nothing_of_its_last_answer() -> None:
    cut = replace(call(ended_by="", is_cut_off=True), sounds=call().sounds[:1])
    assert told(cut, call()) == []


@pytest.mark.parametrize("later_s", [0.0, 1.5])
def test_sounds_are_found_where_they_are(later_s: float) -> None:
    heard = np.zeros(8 * 8000, "<i2")
    heard[round((1 + later_s) * 8000) :][: len(FIRST)] = FIRST
    assert compare_sounds([(1.0, FIRST)], heard, least=0.6).unheard_s == 0
    assert compare_sounds([(1.0, OTHER)], heard, least=0.6).unheard_s == pytest.approx(2.0)
    assert compare_sounds([(1.0, FIRST)], heard[:100], least=0.6).unheard_s == pytest.approx(2.0)
