"""`wsvoice dial --replay`: a good call is placed again, to the same bot and to ones that have a fault each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoke import invoke
from tests.dial.fake_bots import FakeBot
from tests.runner import bots
from tests.runner.conftest import serve  # noqa: F401
from tests.scenarios.menu_bot import ANOTHER, MenuBot, serving
from tests.stalls import undisturbed
from tests.trace.test_run import call as trace_of_call
from wsvoice.trace import read_trace


@dataclass
class GoodCall:
    """A bot that is served, and the trace of a good call to it."""

    bot: MenuBot
    served: FakeBot
    trace: Path

    def replay(self, *options: str, code: int = 0) -> dict[str, Any]:
        """Place the call again; return what is told of it as JSON."""

        def place() -> dict[str, Any]:
            result = invoke("dial", self.served.url, "--replay", str(self.trace), "--json", "-q", *options, code=code)
            report: dict[str, Any] = json.loads(result.stdout)
            assert (report["verdict"] == "passed") == (code == 0) == report["replay"]["same"]
            return report

        return undisturbed(place)


@pytest.fixture(scope="module")
def served(good_call: Path) -> Iterator[GoodCall]:
    bot = MenuBot()
    with serving(bot) as fake:
        yield GoodCall(bot, fake, good_call)


@pytest.fixture
def good(served: GoodCall, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GoodCall]:
    monkeypatch.chdir(tmp_path)
    before = vars(served.bot).copy()
    yield served
    vars(served.bot).update(before)


def differences(report: dict[str, Any]) -> list[str]:
    return [
        f"{each['turn']}: {each['message']}" if each["turn"] else each["message"]
        for each in report["replay"]["differences"]
    ]


def test_the_same_bot_is_as_it_was(good: GoodCall) -> None:
    report = good.replay()
    assert report["failure"] is None
    greeting, words, keys = report["replay"]["turns"]
    assert (greeting["name"], greeting["wait_ms"]) == ("greeting", None)
    assert words["wait_ms"] == pytest.approx(words["recorded_wait_ms"], abs=200)
    assert words["unheard_ms"] == 0
    assert (keys["keys"], keys["recorded_keys"]) == ("12", "12")
    # The keys that came to the bot, and whose call it was.
    arrived = [each["dtmf"]["digit"] for each in good.served.lines[-1].messages if each["event"] == "dtmf"]
    assert arrived == ["1", "2", "#"]
    assert b"From=%2B15551230001" in good.served.webhooks[-1][3]


@pytest.mark.parametrize("options", [(), ("--ignore", "sound")], ids=["all", "waits"])
def test_a_bot_that_is_slower_by_400_ms_is_named(good: GoodCall, options: tuple[str, ...]) -> None:
    good.bot.delay_s += 0.4
    report = good.replay(*options, code=1)
    found, *_ = differences(report)
    was, now = (report["replay"]["turns"][1][name] / 1000 for name in ("recorded_wait_ms", "wait_ms"))
    # What the bot itself waits, a little of which the caller may not see.
    assert now > good.bot.delay_s
    later = f"{now - was:.2f} s later than the recorded {was:.2f} s"
    assert found == f"turn 1: the bot answered after {now:.2f} s, {later}"
    assert report["failure"].startswith(f"not as it was recorded: {found}")


def test_a_table_and_each_difference_are_printed(good: GoodCall) -> None:
    good.bot.loses = 1
    what = "turn 2: the bot pressed 1, and 12 in the recorded call"

    def place() -> None:
        result = invoke("dial", good.served.url, "--replay", str(good.trace), "--ignore", "sound", code=1)
        lines = result.stderr.splitlines()
        assert any(line.split() == ["recorded", "today"] for line in lines)
        assert any(line.startswith("turn 1  ") and line.endswith(" s") for line in lines)
        assert f"different: {what}" in lines
        assert lines[-1] == f"failed: not as it was recorded: {what}"

    undisturbed(place)


def test_what_is_ignored_is_no_difference(good: GoodCall, tmp_path: Path) -> None:
    good.bot.says = ANOTHER
    good.bot.loses = 1
    report = good.replay("--ignore", "sound", "--ignore", "keys", "--trace", "today.call", "--from", "+15551239999")
    assert report["replay"]["turns"][1]["unheard_ms"] is None

    # The new call has a trace of its own, and a caller that was asked for.
    assert report["trace"] == "today.call"
    with read_trace(tmp_path / "today.call") as today, read_trace(good.trace) as recorded:
        assert (today.call.from_number, recorded.call.from_number) == ("+15551239999", "+15551230001")
        first, second = (
            [(each.detail, each.fields) for each in trace.timeline if each.event == "digit"]
            for trace in (today, recorded)
        )
        assert first[0] == ("the caller presses 1", {"who": "caller", "digit": "1"})
        assert first == second
        assert abs(len(today.caller) - len(recorded.caller)) < 8000


def test_a_server_that_is_gone_is_a_difference_too(good: GoodCall) -> None:
    result = invoke("dial", "http://127.0.0.1:9/", "--replay", str(good.trace), "--json", code=1)
    report = json.loads(result.stdout)
    [found] = report["replay"]["differences"]
    assert found["kind"] == "failure"
    assert report["replay"]["turns"] == []


def test_a_servers_trace_of_a_call_works_too(serve: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    server = serve(bots.echo_8k, trace=tmp_path / "traces", verify="off")

    def trace_and_replay() -> None:
        shutil.rmtree(tmp_path / "traces", ignore_errors=True)
        trace_of_call(server, digits="4", ms=200)
        [path] = (tmp_path / "traces").glob("*.call")
        result = invoke("dial", server.url, "--replay", str(path), "--ignore", "sound", "--json", "-q")
        report = json.loads(result.stdout)
        assert report["digits_sent"] == "4"
        assert report["replay"]["same"]
        assert {each["recorded_wait_ms"] for each in report["replay"]["turns"][1:2]} == {0.0}

    undisturbed(trace_and_replay, tries=8)
