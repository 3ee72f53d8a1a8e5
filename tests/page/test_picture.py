"""The picture of a call in a terminal."""

from __future__ import annotations

from pathlib import Path

from tests.page.calls import make_call, wait_s
from wsvoice.page import draw_picture


def test_two_bars_of_levels_with_turns_and_waits(tmp_path: Path) -> None:
    lines = [line.text for line in draw_picture([make_call(tmp_path / "a.call", 25)], 108)]
    title, caller, bot, turns, events, axis, *rest = lines
    assert title == "+15551230001 → +15551230002 · twilio  0:25.0  passed"
    assert [len(each) for each in (caller, bot, turns, events)] == [108] * 4
    # Four columns a second.
    assert caller.startswith("caller      ")
    assert caller[8 + 4 : 8 + 11].strip()
    assert not caller[8 + 13 : 8 + 43].strip()
    assert not bot[8 : 8 + 13].strip()
    assert bot[8 + 14 : 8 + 28].strip()
    assert turns[8 + 57] == "━"
    assert "1100" not in turns[: 8 + 50]
    assert [sign for sign in events if sign in "◆#!×▲"] == ["◆", "◆", "#", "!"]
    assert axis.split() == ["0:00", "0:05", "0:10", "0:15", "0:20"]
    assert rest == ["turn 1: 0:01.0 answered after 400 ms", "turn 2: 0:11.0 answered after 1100 ms"]


def test_a_wait_is_said_where_there_is_room(tmp_path: Path) -> None:
    [turns] = [
        line.text for line in draw_picture([make_call(tmp_path / "a.call", 5)], 200) if line.text.startswith("turns")
    ]
    assert "╌400 ms╌" in turns


def test_the_longest_waits_of_many_turns_are_listed(tmp_path: Path) -> None:
    lines = [line.text for line in draw_picture([make_call(tmp_path / "a.call", 600, wire=False)], 100)]
    listed = [line for line in lines if line.startswith("turn ")]
    assert "60 turns, of which these have the longest waits:" in lines
    assert len(listed) == 20
    assert {line.rpartition(" after ")[2] for line in listed} == {"1300 ms", "1200 ms", "1100 ms", "1000 ms"}
    assert f"waits: {round(sorted(wait_s(n) for n in range(60))[30] * 1000)} ms at the median, 1300 ms at most" in lines


def test_two_calls_have_one_axis(tmp_path: Path) -> None:
    traces = [make_call(tmp_path / "a.call", 12), make_call(tmp_path / "b.call", 24)]
    lines = [line.text for line in draw_picture(traces, 80)]
    assert [line[:2] for line in lines if "twilio" in line] == ["A ", "B "]
    callers = [line for line in lines if line.startswith("caller")]
    # The first half of the axis is the same, and after it the shorter call is silent.
    assert callers[0][8:40] == callers[1][8:40]
    assert not callers[0][40:].strip()
    assert callers[1][40:].strip()
    assert "B turn 2: 0:11.0 answered after 1100 ms" in lines


def test_a_narrow_terminal_gets_a_picture_too(tmp_path: Path) -> None:
    assert len(draw_picture([make_call(tmp_path / "a.call", 5)], 10)) > 5
