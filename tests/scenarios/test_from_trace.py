"""Scenarios that are made of traces: what they say, and that the same bot passes them."""

from __future__ import annotations

import asyncio
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.cli.invoke import invoke
from tests.page.calls import make_call, wait_s
from tests.scenarios.menu_bot import ANOTHER, MenuBot, serving, write_sounds
from wsvoice.audio import read_audio
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.errors import UsageError
from wsvoice.replay.acts import CallerAct, read_acts
from wsvoice.scenarios.from_trace import write_scenario
from wsvoice.scenarios.loading import read_scenario
from wsvoice.trace import Header, TraceEvent, TraceWriter, read_trace
from wsvoice.trace.sound import Utterance

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "-q")


def test_the_same_bot_passes_and_a_slower_one_does_not(pytester: pytest.Pytester) -> None:
    folder = pytester.path
    write_sounds(folder)
    bot = MenuBot()
    with serving(bot) as served:
        clip = (folder / "caller.wav",)
        config = DialConfig(served.url, audio=clip, dtmf="12#", listen_s=0.1, trace=folder / "good.call")
        report = asyncio.run(dial(config))
        assert report.verdict == "passed", report.failure
        invoke("test", "--from", "good.call")
        table = tomllib.loads((folder / "good.call.toml").read_text())
        said, pressed = table["steps"]
        assert said["audio"] == "good-1.wav"
        assert pressed["press"] == "12#"
        assert pressed["ended_by"] == "bot"
        wait = report.turns[0].response_ms
        assert wait is not None
        assert wait / 1000 < said["answered_within"] < wait / 1000 * 1.5 + 0.35
        pytester.runpytest_inprocess(*QUIET, "good.call.toml").assert_outcomes(passed=1)
        bot.delay_s = 0.6
        slower = pytester.runpytest_inprocess(*QUIET, "good.call.toml")
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(["*step 1 *the bot answered after*is the limit*"])


def test_what_the_caller_said_is_beside_it(tmp_path: Path) -> None:
    trace = make_call(tmp_path / "a.call", 27.0, parameters={"table": 'four "or" five', "secret": "***"})
    file = tmp_path / "booking.call.toml"
    written = write_scenario(trace, file)
    assert written == [file, tmp_path / "booking-1.wav", tmp_path / "booking-2.wav"]
    scenario = read_scenario(file).scenario
    assert (scenario.bot, scenario.providers, scenario.from_number) == ("bot.py", ("twilio",), "+15551230001")
    assert scenario.parameters == {"table": 'four "or" five'}
    assert scenario.greeting is None
    assert scenario.listen == 1.0
    for number, step in enumerate(scenario.steps[:2]):
        # Both sounds fade, so that the pause between them is a little longer.
        assert 0 <= (step.answered_within or 0) - wait_s(number) * 1.5 - 0.2 <= 0.5
        pcm, rate = read_audio(tmp_path / str(step.audio))
        # The same samples, and nothing of the silence around them but a moment.
        found = trace.caller[number * 10 * trace.rate :].tobytes().find(pcm)
        assert found / 2 / rate == pytest.approx(1 - 0.06, abs=0.1)
        assert 1.8 < len(pcm) / 2 / rate <= 2.12


SECOND_TURNS = [
    # While the bot speaks: after how long.
    (Utterance(4.25, 5.0), CallerAct(4.25, 5.0, "", interrupt_s=1.25, wait_s=1.0, silent_s=5.0)),
    # When it was about to finish.
    (Utterance(4.9, 5.4), CallerAct(4.9, 5.4, "", interrupt_s=None, wait_s=pytest.approx(0.6), silent_s=4.6)),
]


@pytest.mark.parametrize(("second", "expected"), SECOND_TURNS)
def test_interruptions_are_told_from_turns(second: Utterance, expected: CallerAct) -> None:
    bot = [Utterance(3.0, 5.0), Utterance(6.0, 7.0)]
    acts = read_acts([Utterance(1.0, 2.0), second], [], bot, 10.0)
    assert acts == [CallerAct(1.0, 2.0, "", None, 1.0, second.start_s - 2.0), expected]


def test_pauses_belong_to_what_is_said_and_to_keys() -> None:
    acts = read_acts(
        [Utterance(1.0, 2.0), Utterance(3.0, 4.0)],
        [(6.0, "1"), (6.2, "2"), (7.4, "#")],
        [Utterance(4.5, 5.0), Utterance(8.0, 9.0)],
        10.0,
    )
    assert [(each.start_s, each.end_s, each.keys) for each in acts] == [(1.0, 4.0, ""), (6.0, 7.4, "12ww#")]
    assert [each.wait_s for each in acts] == pytest.approx([0.5, 0.6])


def test_an_echo_is_an_answer_and_a_bot_that_says_nothing_is_silent() -> None:
    acts = read_acts([Utterance(1.0, 2.0), Utterance(4.0, 5.0)], [], [Utterance(1.04, 2.0)], 8.0)
    assert [(each.wait_s, each.silent_s) for each in acts] == [(0.0, 2.0), (None, 3.0)]


def _write(folder: Path, *, ended_by: str, bot_s: tuple[float, float] | None = None, detail: str = "") -> Path:
    """Write the trace of a call of three seconds, in which the caller says nothing."""
    writer = TraceWriter(folder / "b.call", Header("server", Call("twilio", "CA1\n"), 1.0, 8000, "\ud800\x7f.py"))
    bot = np.zeros(24_000, "<i2")
    if bot_s is not None:
        first, last = (round(each * 8000) for each in bot_s)
        bot[first:last] = np.frombuffer(ANOTHER * 20, "<i2")[: last - first]
    writer.caller(bytes(48_000))
    writer.bot(bot.tobytes())
    if detail:
        writer.event(TraceEvent(2.0, "digit", detail))
    writer.close({"t": 3.0, "samples": 24_000, "by": ended_by}, {})
    return folder / "b.call"


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("name", ["x" * 300, "loop/a"])
def test_what_no_file_can_be_called(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with (
        read_trace(_write(tmp_path, ended_by="caller")) as trace,
        pytest.raises(UsageError, match="cannot be written") as raised,
    ):
        write_scenario(trace, tmp_path / f"{name}.call.toml")
    assert raised.value.hint == "name another scenario: NAME.call.toml"


def test_a_caller_that_only_listens(tmp_path: Path) -> None:
    with read_trace(_write(tmp_path, ended_by="caller", bot_s=(0.4, 1.5))) as trace:
        write_scenario(trace, tmp_path / "b.call.toml")
    scenario = read_scenario(tmp_path / "b.call.toml").scenario
    # A trace may say anything of its bot.
    assert scenario.bot == "?\x7f.py"
    assert scenario.greeting is not None
    assert scenario.greeting.answered_within == pytest.approx(0.8, abs=0.11)
    [step] = scenario.steps
    assert (step.hang_up, step.ended_by) == (True, "caller")


@pytest.mark.parametrize(
    ("arguments", "detail", "message"),
    [
        ((), "", "the caller neither spoke nor pressed a key in this call, and the bot ended it"),
        ((), "the caller presses ***", "which keys the caller pressed was left out of this trace"),
        ((), "a key", "which keys the caller pressed was left out of this trace"),
        (("a.call.toml",), "the caller presses 5", "a.call.toml is there already"),
        (("a.toml",), "", "a.toml is no name of a scenario"),
        (("a.call.toml", "b.call.toml"), "", "--from writes one scenario, and 2 are named"),
        (("nowhere/a.call.toml",), "the caller presses 5", "nowhere/a.call.toml cannot be written: No such file"),
    ],
)
def test_misuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], detail: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.call.toml").touch()
    path = _write(tmp_path, ended_by="bot", detail=detail)
    result = invoke("test", "--from", str(path), *arguments, code=2)
    assert result.stderr.startswith(f"error: {message}")
    assert "\nhint:" in result.stderr


def test_a_key_that_is_pressed_while_the_caller_speaks_interrupts_nobody() -> None:
    caller, bot = [Utterance(0.1, 3.0), Utterance(5.6, 8.0)], [Utterance(0.2, 3.1), Utterance(5.7, 8.1)]
    acts = read_acts(caller, [(2.0, "1"), (2.1, "2")], bot, 8.2)
    assert [(each.keys, each.interrupt_s) for each in acts] == [("", None), ("12", None), ("", None)]
    assert all(each.wait_s is None or each.wait_s >= 0 for each in acts)
