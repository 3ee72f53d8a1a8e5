"""Scenarios in pytest: what is caught, what JUnit says of it, repeats and baselines."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.dial.fake_bots import Line
from tests.scenarios.menu_bot import ANOTHER, SCENARIO, WELCOME, MenuBot, serving, write_sounds
from wsvoice.audio import PCMU_8K
from wsvoice.scenarios.options import trace_file
from wsvoice.trace import read_trace

pytest_plugins = ["pytester"]

QUIET = ("-p", "no:cacheprovider", "-p", "no:xdist", "-q")

#: Understands who speaks, by the loudest samples, and returns what no XML may hold.
EARS = """
import array
def hear(pcm, sample_rate, language):
    return f"<b>{max(array.array('h', pcm))} & \\x07"
"""

BOTS = {
    "good": MenuBot(),
    "slower": MenuBot(delay_s=0.45),
    "another": MenuBot(says=ANOTHER),
    "early": MenuBot(leaves_early=True),
    "loses": MenuBot(loses=1),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ElementTree.Element]:
    """Call a good bot, and four that have a fault each, in one run; return JUnit's cases."""
    folder = tmp_path_factory.mktemp("faults")
    write_sounds(folder)
    junit = folder / "junit.xml"
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, bot in BOTS.items():
            url = stack.enter_context(serving(bot)).url
            (folder / f"{name}.call.toml").write_text(SCENARIO.format(url=url))
        text = (folder / "good.call.toml").read_text()
        (folder / "good.call.toml").write_text(f'transcriber = "ears_of_items:hear"\n{text}')
        (folder / "ears_of_items.py").write_text(EARS)
        patch.syspath_prepend(folder)
        patch.chdir(folder)
        pytest.main([str(folder), f"--rootdir={folder}", f"--junitxml={junit}", f"--basetemp={folder / 'tmp'}", *QUIET])
    found = {str(case.get("name")): case for case in ElementTree.parse(junit).iter("testcase")}
    assert found.keys() == BOTS.keys()
    return found


def properties(case: ElementTree.Element) -> dict[str, str]:
    return {str(each.get("name")): str(each.get("value")) for each in case.iter("property")}


def failure(case: ElementTree.Element) -> str:
    [found] = case.iter("failure")
    return str(found.get("message"))


def test_a_good_bot_passes_and_its_waits_and_sounds_are_told(cases: dict[str, ElementTree.Element]) -> None:
    case = cases["good"]
    assert not list(case.iter("failure")), failure(case)
    told = properties(case)
    assert told["ended_by"] == "bot"
    assert told["calls_passed"] == told["calls"] == "1"
    wait_ms = float(told['step 1 (audio "caller.wav"): wait_ms'])
    assert 100 < wait_ms < 350
    assert told['step 1 (audio "caller.wav"): heard'].startswith("welcome.wav at ")
    caller, bot = told['step 1 (audio "caller.wav"): caller'], told['step 1 (audio "caller.wav"): bot']
    assert re.fullmatch(r"<b>\d+ & +", caller)
    assert re.fullmatch(r"<b>\d+ & +", bot)
    assert told['step 2 (press "12#"): caller'] == "[12#]"
    assert float(told["wait_p50_ms"]) == pytest.approx(wait_ms, abs=1)
    assert Path(told["recording"]).is_file()


def test_a_bot_that_is_slower_by_400_ms_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    assert 'step 1 (audio "caller.wav"): the bot answered after ' in failure(cases["slower"])
    assert "and 350 ms is the limit" in failure(cases["slower"])
    good, slower = (float(properties(cases[name])["wait_p50_ms"]) for name in ("good", "slower"))
    assert slower - good == pytest.approx(400, abs=150)


def test_a_bot_that_says_another_recording_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    message = failure(cases["another"])
    assert message.startswith('step 1 (audio "caller.wav"): welcome.wav was not heard: the most similar sound, at ')
    assert "limit" not in message


def test_a_bot_that_ends_early_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    assert failure(cases["early"]).startswith('the bot ended the call before step 2 (press "12#")')


def test_a_bot_that_loses_a_digit_is_caught(cases: dict[str, ElementTree.Element]) -> None:
    assert failure(cases["loses"]).startswith('step 2 (press "12#"): the bot pressed 1, and 12 was expected')


def test_a_failure_leads_to_its_call(cases: dict[str, ElementTree.Element]) -> None:
    for name in BOTS.keys() - {"good"}:
        told = failure(cases[name])
        trace = properties(cases[name])["trace"]
        assert f"see the call: wsvoice show {trace}" in told
        with read_trace(trace) as found:
            assert found.is_complete
            assert found.report["call_id"] == found.call.call_id
    # There may be hundreds of calls that went well.
    assert "trace" not in properties(cases["good"])
    assert not Path(properties(cases["good"])["recording"]).with_suffix(".call").exists()


def test_traces_of_calls_that_failed_are_kept_in_a_folder(pytester: pytest.Pytester) -> None:
    write_sounds(pytester.path)
    below = pytester.mkdir("menus")
    with serving(MenuBot(leaves_early=True)) as served:
        below.joinpath("early.call.toml").write_text(SCENARIO.format(url=served.url))
        result = pytester.runpytest_inprocess(*QUIET, "--calls-repeat=2", "--calls-traces=kept/traces")
    result.assert_outcomes(failed=1)
    folder = pytester.path / "kept" / "traces"
    kept = [trace_file(folder, "menus/early", number) for number in (1, 2)]
    assert sorted(folder.iterdir()) == kept
    result.stdout.fnmatch_lines([f"call 2: see the call: wsvoice show {kept[1]}"])


def test_traces_of_different_tests_have_different_names(tmp_path: Path) -> None:
    names = ["t::test[+1]", "t::test[-1]", "t::test", "t-test", "menu", "menu-2", "t::" + "ü" * 300, "t::" + "ü" * 301]
    files = [trace_file(tmp_path, name, number) for name in names for number in (None, 1, 2)]
    assert len(set(files)) == len(files)
    assert trace_file(tmp_path, "menu", 2) == tmp_path / "menu-2.call"
    assert trace_file(tmp_path, "tests/menu[twilio]").match("tests-menu-twilio-????????.call")
    for file in files:
        file.touch()


async def talk_until_a_key(line: Line) -> None:
    """Greet at length; a key ends the call."""
    await line.say(PCMU_8K.encode(WELCOME * 10))
    await line.receive_until("dtmf")
    await line.clear()


def test_the_first_step_may_interrupt_the_greeting(pytester: pytest.Pytester) -> None:
    write_sounds(pytester.path)
    with serving(talk_until_a_key) as served:
        pytester.path.joinpath("hasty.call.toml").write_text(
            f"""
            target = "{served.url}"
            greeting = {{ answered_within = "2s", heard = "welcome.wav" }}
            steps = [{{ interrupt = "0.4s", press = "1", ended_by = "bot" }}]
            """
        )
        result = pytester.runpytest_inprocess(*QUIET)
    result.assert_outcomes(passed=1)


def test_a_folder_for_traces_that_cannot_be_made_stops_the_run(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("file").touch()
    pytester.path.joinpath("a.call.toml").write_text('target = "http://localhost:1"\n[[steps]]\nhang_up = true\n')
    result = pytester.runpytest_inprocess(*QUIET, "--calls-traces=file/traces")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["error: no traces can be written to *traces: Not a directory*"])


def test_repeats_have_a_pass_rate_and_a_baseline(pytester: pytest.Pytester) -> None:
    write_sounds(pytester.path)
    one_step = SCENARIO.partition("[[steps]]\npress")[0].replace('"350ms"', '"250ms"')
    bot = MenuBot()
    with serving(bot) as served:
        pytester.path.joinpath("half.call.toml").write_text("pass_rate = 0.5\n" + one_step.format(url=served.url))
        first = pytester.runpytest_inprocess(*QUIET, "--calls-save-baseline=waits.json")
        first.assert_outcomes(passed=1)
        saved = json.loads((pytester.path / "waits.json").read_text())
        [waits] = saved["scenarios"]["half.call.toml::half"].values()
        assert len(waits) == 1
        # As if there had been more calls, so that two slow ones stand out.
        waits *= 60
        (pytester.path / "waits.json").write_text(json.dumps(saved))
        bot.delay_s = 0.4
        second = pytester.runpytest_inprocess(*QUIET, "--calls-repeat=2", "--calls-compare=waits.json")
    second.assert_outcomes(failed=1)
    second.stdout.fnmatch_lines(
        [
            "0 of 2 calls passed, and 1 have to (50%)",
            "call 1: step 1 *the bot answered after*",
            "slower than the baseline by more than 10%: step 1*p50*",
        ]
    )


@pytest.mark.parametrize("arguments", [["--calls-compare=missing.json"], ["--calls-compare=broken.json"]])
def test_a_baseline_that_cannot_be_used_stops_the_run(pytester: pytest.Pytester, arguments: list[str]) -> None:
    pytester.path.joinpath("broken.json").write_text("[]")
    result = pytester.runpytest_inprocess(*QUIET, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "baseline" in result.stderr.str()


def test_nothing_is_loaded_for_other_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert not {"numpy", "pydantic", "tree_sitter", "wsvoice.testing", "wsvoice.scenarios"} & sys.modules.keys()
        """
    )
    pytester.runpytest_subprocess(*QUIET).assert_outcomes(passed=1)


def test_a_scenario_that_cannot_be_used_places_no_call(pytester: pytest.Pytester) -> None:
    write_sounds(pytester.path)
    with serving(MenuBot()) as served:
        for name, line in {"a-good": "welcome.wav", "bad": "nobody.wav"}.items():
            text = SCENARIO.format(url=served.url).replace("welcome.wav", line)
            pytester.path.joinpath(f"{name}.call.toml").write_text(text)
        result = pytester.runpytest_inprocess(*QUIET)
        assert not served.webhooks
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["error: *bad.call.toml:9: nobody.wav does not exist", "hint: *"])
