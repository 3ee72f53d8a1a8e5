"""The provider's buffer, with a clock that is a number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.signals import tone
from wsvoice.dial.playback import MAX_MARK_NAMES, MAX_MARKS, Playback

RATE = 8000
LOUD = tone(440, 20, RATE)
SILENT = bytes(320)


def play(playback: Playback, from_s: float, to_s: float) -> list[str]:
    """Let the time pass in the steps of the caller's clock; return the marks that were reached."""
    marks: list[str] = []
    steps = round((to_s - from_s) / 0.02)
    for step in range(1, steps + 1):
        marks += playback.advance(from_s + step * 0.02)
    return marks


def test_what_is_sent_is_heard_from_the_moment_it_arrives_on() -> None:
    playback = Playback(RATE, 10.0, limit_s=600.0)
    play(playback, 10.0, 10.1)
    playback.add_audio(LOUD * 5, 10.105)
    play(playback, 10.1, 10.4)
    assert playback.take_heard() == bytes(2 * 840) + LOUD * 5 + bytes(2 * (3200 - 840 - 800))
    assert playback.take_heard() == b""


def test_what_comes_early_is_played_in_order_and_in_time() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 10, 0.0)
    playback.add_audio(SILENT + LOUD, 0.01)
    assert playback.queued_ms == pytest.approx(240 - 10)
    play(playback, 0.0, 0.3)
    assert playback.take_heard() == LOUD * 10 + SILENT + LOUD + bytes(2 * 480)
    assert playback.queued_ms == 0
    assert playback.received_samples == 12 * 160


def test_a_mark_comes_back_when_what_is_before_it_has_been_played() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 5, 0.0)
    assert playback.add_mark("first", 0.0) == []
    playback.add_audio(LOUD * 5, 0.0)
    assert playback.add_mark("second", 0.0) == []
    assert play(playback, 0.0, 0.08) == []
    assert playback.advance(0.0999) == []
    assert playback.advance(0.1) == ["first"]
    assert play(playback, 0.1, 0.2) == ["second"]


def test_a_mark_on_an_empty_queue_comes_back_at_once() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    assert playback.add_mark("now", 0.5) == ["now"]
    playback.add_audio(LOUD, 1.0)
    # The audio has been played by then, though nobody looked in between.
    assert playback.add_mark("later", 1.5) == ["later"]


def test_marks_come_back_in_their_order() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD, 0.0)
    for name in "abc":
        playback.add_mark(name, 0.0)
    assert playback.advance(0.02) == ["a", "b", "c"]


def test_a_clear_empties_the_queue_and_gives_the_pending_marks_back() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 5, 0.0)
    playback.add_mark("played", 0.0)
    playback.add_audio(LOUD * 50, 0.0)
    playback.add_mark("cleared", 0.0)
    assert playback.clear(0.12) == ["played", "cleared"]
    assert playback.queued_ms == 0
    assert playback.audible_ms == 0
    play(playback, 0.12, 0.2)
    assert playback.take_heard() == LOUD * 6 + bytes(2 * 640)


def test_a_clear_is_no_underrun() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 5, 0.0)
    play(playback, 0.0, 0.04)
    playback.clear(0.04)
    play(playback, 0.04, 0.1)
    playback.add_audio(LOUD, 0.1)
    assert playback.underruns == 0


@pytest.mark.parametrize(("break_s", "underruns"), [(0.01, 0), (0.04, 1), (0.3, 1), (0.8, 0)])
def test_a_break_in_the_middle_of_a_sound_is_an_underrun(break_s: float, underruns: int) -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 5, 0.0)
    play(playback, 0.0, 0.1)
    play(playback, 0.1, 0.1 + break_s)
    playback.add_audio(LOUD * 5, 0.1 + break_s)
    assert playback.underruns == underruns
    if break_s < 0.5:
        assert playback.max_gap_ms == pytest.approx(100 + break_s * 1000)
    else:
        assert playback.max_gap_ms == 0


def test_a_pause_after_silence_is_no_underrun() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 5 + SILENT * 2, 0.0)
    play(playback, 0.0, 0.24)
    playback.add_audio(LOUD * 5, 0.24)
    assert playback.underruns == 0


def test_a_break_while_the_caller_itself_was_held_up_is_not_counted() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    playback.add_audio(LOUD * 2, 0.0)
    play(playback, 0.0, 0.02)
    # Nothing ran for 100 ms, so the bot's message may have been there all the time.
    playback.add_audio(LOUD * 5, 0.12)
    assert playback.underruns == 0
    assert playback.max_gap_ms == 0


def test_a_bot_in_step_with_the_clock_has_no_underruns() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    for n in range(1, 100):
        playback.advance(n * 0.02)
        playback.add_audio(LOUD, n * 0.02 + 0.002 + 0.003 * (n % 3))
    assert playback.underruns == 0
    assert playback.max_gap_ms < 30
    assert playback.peak_ms < 45


def test_audio_beyond_the_limit_is_thrown_away() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    minute = bytes(2 * RATE * 60)
    for _ in range(10):
        playback.add_audio(minute, 0.0)
    assert playback.discarded_ms == 0
    playback.add_audio(LOUD, 0.0)
    assert playback.discarded_ms == pytest.approx(20)
    assert playback.queued_ms == 600_000
    assert playback.peak_ms == 600_000
    playback.advance(0.01)
    playback.add_audio(LOUD, 0.01)
    assert playback.discarded_ms == pytest.approx(30)


def test_audible_audio_is_counted_up_to_its_last_sound() -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    assert playback.audible_ms == 0
    playback.add_audio(SILENT * 10, 0.0)
    assert playback.audible_ms == 0
    playback.add_audio(LOUD * 5 + SILENT * 5, 0.0)
    playback.add_mark("end", 0.0)
    playback.add_audio(SILENT * 5, 0.0)
    assert playback.audible_ms == pytest.approx(300, abs=10)
    play(playback, 0.0, 0.28)
    assert playback.audible_ms == pytest.approx(20, abs=10)
    playback.advance(0.3)
    assert playback.audible_ms == 0


@given(
    pieces=st.lists(
        st.tuples(st.floats(0, 0.05), st.binary(min_size=1, max_size=200), st.booleans()), min_size=1, max_size=30
    )
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_and_nothing_is_played_twice(pieces: list[tuple[float, bytes, bool]]) -> None:
    playback = Playback(RATE, 0.0, limit_s=600.0)
    now, sent, names, back = 0.0, b"", [], []
    for number, (wait_s, half, marked) in enumerate(pieces):
        now += wait_s
        # No sample is zero, so that what was sent can be told from silence.
        pcm = bytes(byte | 1 for byte in half for _ in (0, 1))
        sent += pcm
        back += playback.add_audio(pcm, now)
        if marked:
            names.append(str(number))
            back += playback.add_mark(str(number), now)
    back += playback.advance(now + 10)
    heard = playback.take_heard()
    assert len(heard) == 2 * int((now + 10) * RATE + 1e-3)
    samples = [heard[at : at + 2] for at in range(0, len(heard), 2)]
    assert b"".join(sample for sample in samples if sample != b"\0\0") == sent
    assert back == names


def test_samples_one_by_one_and_hours_at_once_are_kept_in_pieces_of_one_size() -> None:
    playback = Playback(RATE, 0.0, limit_s=10.0)
    for sample in range(0, len(LOUD), 2):
        playback.add_audio(LOUD[sample : sample + 2], 0.0)
    playback.add_audio(LOUD * 1000, 0.0)
    assert playback.queued_ms == 10_000
    assert len(playback._queue) < 110
    assert playback.discarded_ms == 1020 * 20 - 10_000 - 19 * 20
    play(playback, 0.0, 1.0)
    assert playback.take_heard() == LOUD * 50


def test_marks_have_a_limit() -> None:
    playback = Playback(RATE, 0.0, limit_s=10.0)
    playback.add_audio(LOUD * 5, 0.0)
    for number in range(MAX_MARKS + 7):
        playback.add_mark(str(number), 0.0)
    assert playback.discarded_marks == 7
    assert len(play(playback, 0.0, 0.2)) == MAX_MARKS
    assert playback.add_mark("again", 0.3) == ["again"]
    playback.add_audio(LOUD * 5, 0.3)
    playback.add_mark("n" * MAX_MARK_NAMES, 0.3)
    playback.add_mark("n", 0.3)
    assert playback.discarded_marks == 8
    assert len(playback.clear(0.31)) == 1
