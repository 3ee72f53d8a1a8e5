"""A traced call as a test: in a scenario, and by the fixtures; what JUnit says of a bot that has changed."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.scenarios.menu_bot import ANOTHER, MenuBot, serving
from tests.scenarios.test_items import QUIET, failure, properties
from tests.stalls import undisturbed
from wsvoice.scenarios.options import trace_file
from wsvoice.trace import read_trace

pytest_plugins = ["pytester"]

BOTS = {
    "good": MenuBot(),
    "slower": MenuBot(delay_s=0.45),
    "another": MenuBot(says=ANOTHER),
    "early": MenuBot(leaves_early=True),
    "loses": MenuBot(loses=1),
}
#: A bot that is slower says everything later, so that its caller waits for it.
REPLAY = """
target = "{url}"
replay = "good.call"
adaptive = true
"""


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, good_call: Path) -> dict[str, ElementTree.Element]:
    """Place a good call again, to the same bot and to four that have a fault each; return JUnit's cases."""
    folder = tmp_path_factory.mktemp("replays")
    (folder / "good.call").write_bytes(good_call.read_bytes())
    junit = folder / "junit.xml"
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, bot in BOTS.items():
            url = stack.enter_context(serving(bot)).url
            (folder / f"{name}.call.toml").write_text(REPLAY.format(url=url))
        patch.chdir(folder)
        command = [str(folder), f"--rootdir={folder}", f"--junitxml={junit}", f"--basetemp={folder / 'tmp'}", *QUIET]
        # Where the machine stood still, any of them may have been late.
        undisturbed(lambda: pytest.main(command), stall_s=0.15)
    found = {str(case.get("name")): case for case in ElementTree.parse(junit).iter("testcase")}
    assert {name.partition("[")[0] for name in found} == BOTS.keys()
    return {name.partition("[")[0]: case for name, case in found.items()}


def test_the_same_bot_passes_and_its_waits_are_told(cases: dict[str, ElementTree.Element]) -> None:
    case = cases["good"]
    assert not list(case.iter("failure")), failure(case)
    told = properties(case)
    assert told["provider"] == "twilio"
    assert told["ended_by"] == "bot"
    # It listens to silence for 100 ms before it answers; that it is no slower than it was is what the case says.
    assert 50 < float(told["turn 1: wait_ms"]) < 5000
    assert 0 <= float(told["turn 2: wait_ms"]) < 5000


def test_a_bot_that_is_slower_by_400_ms_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    told = failure(cases["slower"])
    assert re.match(r"turn 1: the bot answered after \d\.\d\d s, \d\.\d\d s later than the recorded 0\.\d\d s", told)


def test_a_bot_that_says_another_recording_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    told = failure(cases["another"])
    assert told.startswith("turn 1: the bot said something else: ")
    assert "later" not in told


def test_a_bot_that_ends_early_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    told = failure(cases["early"])
    assert told.startswith("turn 2: the bot ended the call after ")
    assert "before the caller had pressed 12#" in told


def test_a_bot_that_loses_a_digit_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    assert "turn 2: the bot pressed 1, and 12 in the recorded call" in failure(cases["loses"])


def test_a_failure_shows_both_calls(cases: dict[str, ElementTree.Element]) -> None:
    trace = properties(cases["early"])["trace"]
    assert f"good.call {trace}" in failure(cases["early"])
    assert "see the call: wsvoice show " in failure(cases["early"])


def test_no_run_replaces_the_call_that_it_places_again(pytester: pytest.Pytester, good_call: Path) -> None:
    pytester.path.joinpath("good.call").write_bytes(good_call.read_bytes())
    pytester.path.joinpath("good.call.toml").write_text(REPLAY.format(url="http://127.0.0.1:9/"))
    result = pytester.runpytest_inprocess(*QUIET, "--calls-traces=.")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    told = "error: *good.call.toml:3: the trace of a call that fails would replace *good.call, which is placed again"
    result.stdout.fnmatch_lines([told])
    assert pytester.path.joinpath("good.call").read_bytes() == good_call.read_bytes()


@pytest.mark.parametrize("passes", [True, False])
def test_only_a_call_that_fails_replaces_a_trace(pytester: pytest.Pytester, good_call: Path, passes: bool) -> None:
    recorded, earlier = pytester.path / "good.call", pytester.path / "today.call"
    for path in (recorded, earlier):
        path.write_bytes(good_call.read_bytes())
    with serving(MenuBot(leaves_early=not passes)) as served:
        text = f'{REPLAY.format(url=served.url)}ignore = ["waits", "sound"]\n'
        pytester.path.joinpath("today.call.toml").write_text(text)
        result = pytester.runpytest_inprocess(*QUIET, "--calls-traces=.")
    result.assert_outcomes(passed=int(passes), failed=int(not passes))
    assert recorded.read_bytes() == good_call.read_bytes()
    with read_trace(earlier) as trace:
        assert trace.ended["by"] == "bot"
    assert (earlier.read_bytes() == good_call.read_bytes()) == passes
    if not passes:
        result.stdout.fnmatch_lines(["see the call: wsvoice show *good.call *today.call"])


KEEPING_TESTS = """
import pytest

def test_passes(dial):
    dial("{url}", dtmf="1")

def test_fails(dial):
    assert not dial("{url}", dtmf="1").trace

@pytest.mark.parametrize("way", ["good.call", "below/../good.call", "link.call", "good.call/new.call"])
def test_asks_to_replace_it(dial, way):
    dial.replay("good.call", "{url}", trace=way)
"""


def test_tests_keep_what_is_there(pytester: pytest.Pytester, good_call: Path) -> None:
    pytester.mkdir("below")
    pytester.path.joinpath("good.call").write_bytes(good_call.read_bytes())
    pytester.path.joinpath("link.call").symlink_to("good.call")
    pytester.makepyfile(test_keep=KEEPING_TESTS.format(url="http://127.0.0.1:9/"))
    there = [trace_file(pytester.path, f"test_keep::{name}") for name in ("test_passes", "test_fails")]
    for path in there:
        path.write_bytes(good_call.read_bytes())
    result = pytester.runpytest_inprocess(*QUIET, "--calls-traces=.")
    result.assert_outcomes(passed=1, failed=5)
    assert [path.read_bytes() == good_call.read_bytes() for path in there] == [True, False]
    assert pytester.path.joinpath("good.call").read_bytes() == good_call.read_bytes()
    told = "*--trace would replace *good.call, which is placed again"
    result.stdout.fnmatch_lines([told] * 4)


TESTS = """
import asyncio

def test_it_loses_a_key(adial):
    report = asyncio.run(adial.replay("good.call", "{url}", ignore="sound"))
    assert [turn.name for turn in report.comparison.turns] == ["greeting", "turn 1", "turn 2"]
    assert report.heard
    assert len(report.differences) == 1
    report.assert_passed()

def test_the_caller_is_the_recorded_one(dial):
    dial.replay("good.call", "{url}", dtmf="1")
"""


def test_the_fixtures_place_it_again(pytester: pytest.Pytester, good_call: Path) -> None:
    pytester.path.joinpath("good.call").write_bytes(good_call.read_bytes())
    with serving(MenuBot(loses=1)) as served:
        pytester.makepyfile(TESTS.replace("{url}", served.url))
        result = pytester.runpytest_inprocess(*QUIET)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "*AssertionError: the call is not as it was recorded:",
            "*turn 2: the bot pressed 1, and 12 in the recorded call",
            "*--dtmf has no effect beside --replay: the caller does what it did in that call",
        ]
    )


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('replay = "none.call"', 2, "there is no trace *none.call"),
        ('replay = "hostile.call"', 2, "*hostile.call is no trace, or is damaged*"),
        ('replay = "good.call"\nprovider = "telnyx"', 2, "*good.call is the trace of a call of twilio, and telnyx *"),
        ('replay = "good.call"\nsteps = [{hang_up = true}]', 1, "`replay` and `steps` exclude each other*"),
        ("adaptive = true\nsteps = [{hang_up = true}]", 1, "`adaptive` goes with `replay`"),
        ('replay = "good.call"\nmax_slower = "0%"', 3, "*max_slower cannot be '0%'*above 0%*"),
        ('replay = "good.call"\nignore = "sounds"', 3, "*ignore cannot be *'sounds'*"),
    ],
)
def test_a_scenario_that_cannot_be_used(
    pytester: pytest.Pytester, good_call: Path, text: str, line: int, message: str
) -> None:
    pytester.path.joinpath("good.call").write_bytes(good_call.read_bytes())
    pytester.path.joinpath("hostile.call").write_bytes(b"PK\x03\x04 and nothing else")
    pytester.path.joinpath("bad.call.toml").write_text(f'target = "http://127.0.0.1:9/"\n{text}\n')
    result = pytester.runpytest_inprocess(*QUIET)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"error: *bad.call.toml:{line}: {message}"])
