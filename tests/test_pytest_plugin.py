"""The pytest plugin, in projects of its users', and the report that it hands out."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import threading
import wave
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.environment import clean_process
from tests.process import server_process
from tests.signals import speech_like, tone
from tests.stalls import undisturbed
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.dial.report import CountedFinding, TimelineEvent, TurnReport
from wsvoice.errors import UsageError
from wsvoice.scenarios.options import trace_file
from wsvoice.testing import AsyncDial, CallFactory, Dial, PlacedCall, Report, _CallThread
from wsvoice.trace import read_trace

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[1]
#: Nothing listens here, so a call fails at once.
NOBODY = "http://127.0.0.1:9/"

# -- Projects --

#: Asks an address for a word, and beeps it.
ASKING_BOT = """
import asyncio, os
import numpy as np
from pipecat.frames.frames import EndWorkerFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.runner import WorkerRunner

async def bot(runner_args):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), transport.output()]))

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["WORD_PORT"]))
        print("the word is", (await reader.read()).decode(), "in", os.environ["WORD_COLOUR"])
        writer.close()
        tone = 8000 * np.sin(np.arange(4800) / 16000 * 2 * np.pi * 440)
        await worker.queue_frames([OutputAudioRawFrame(tone.astype("<i2").tobytes(), 16000, 1), EndWorkerFrame()])

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
"""

ASYNC_TESTS = """
import asyncio
import pytest

@pytest.mark.asyncio
async def test_a_fake_in_the_tests_own_loop(adial):
    async def answer(reader, writer):
        writer.write(b"amber")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    # The bot speaks as soon as it can, and leaves; the caller has no time to say anything.
    report = await adial("bot.py", env={"WORD_PORT": port, "WORD_COLOUR": "red"}, listen_s=5)
    server.close()
    assert "the word is amber in red" in report.log
    assert report.ended_by == "bot"
    assert report.sounds

@pytest.mark.asyncio
async def test_a_plain_call_in_a_coroutine(dial):
    assert not dial("http://127.0.0.1:9/").passed
    await asyncio.sleep(0)

def test_no_loop_is_left_behind(dial):
    dial("http://127.0.0.1:9/")
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
"""

FAILING_TESTS = """
import asyncio
import pytest

def test_a_bot_that_leaves(dial):
    report = dial("bot.py", listen_s=0.1)
    report.assert_passed()

def test_a_coroutine_runs_without_a_plugin_for_it(adial):
    report = asyncio.run(adial("http://127.0.0.1:9/"))
    assert not report.passed

def test_a_file_that_is_missing(dial):
    dial("another.py")

def test_a_failure_without_a_call():
    assert False, "nothing to do with it"

@pytest.mark.xfail(strict=True)
def test_expected_to_fail(dial):
    dial("http://127.0.0.1:9/").assert_passed()
"""

#: Says what it knows on stderr, and ends the call without a word.
LEAVING_BOT = """
import sys

async def bot(runner_args):
    print("I would rather not", file=sys.stderr)
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """An empty project whose caller does not wait for a greeting."""
    clean_process(monkeypatch)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    pytester.makepyprojecttoml(
        '[tool.wsvoice.dial]\nlisten = "0.1s"\n[tool.pytest.ini_options]\ntestpaths = ["tests"]\n'
    )
    pytester.mkdir("tests")
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options, timeout=80)


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_docs_pass(project: pytest.Pytester) -> None:
    tests = [block for block in python_blocks(ROOT / "docs" / "testing.md") if "def test_" in block]
    assert len(tests) > 5
    for number, test in enumerate(tests):
        (project.path / "tests" / f"test_{number}.py").write_text(test, "utf-8")
    [bot] = [block for block in python_blocks(ROOT / "README.md") if "InputDTMFFrame" in block]
    (project.path / "bot.py").write_text(bot, "utf-8")
    write_wav(project.path / "tests" / "question.wav", [speech_like(400, 8000)], 8000)

    with server_process(project.mkdir("served"), bot) as server:
        for path in (project.path / "tests").glob("test_*.py"):
            # Two calls are to the file, one of them with what only its own server takes; the others share a server.
            if (test := path.read_text("utf-8")) != tests[0] and "env=" not in test:
                path.write_text(test.replace('"bot.py"', f'"{server.url}"'), "utf-8")
        # What is heard has gaps if the machine stands still; then they are to pass the next time.
        result = undisturbed(
            lambda: run(project, "-W", "ignore::pytest.PytestDeprecationWarning"),
            tries=3,
            is_sure=lambda result: "failed" not in result.parseoutcomes(),
        )

    outcomes = result.parseoutcomes()
    assert set(outcomes) <= {"passed", "warning", "warnings"}, result.stdout.str()
    assert outcomes["passed"] >= len(tests)


def test_with_pytest_asyncio(project: pytest.Pytester) -> None:
    pytest.importorskip("pytest_asyncio")
    (project.path / "bot.py").write_text(ASKING_BOT, "utf-8")
    (project.path / "tests" / "test_async.py").write_text(ASYNC_TESTS, "utf-8")

    run(project, "-W", "ignore::pytest.PytestDeprecationWarning").assert_outcomes(passed=3)


def test_without_it_and_what_is_shown_of_a_failure(project: pytest.Pytester) -> None:
    (project.path / "bot.py").write_text(LEAVING_BOT, "utf-8")
    (project.path / "tests" / "test_failing.py").write_text(FAILING_TESTS, "utf-8")

    result = run(project, "-p", "no:asyncio", "--basetemp", str(project.path / "kept"))

    result.assert_outcomes(failed=3, passed=1, xfailed=1)
    shown = result.stdout.str()
    _, leaves, missing, unrelated, _ = re.split(r"^_+ test_\w+ _+$|^=+ short test summary", shown, flags=re.MULTILINE)
    # The message, at the line of the test and not inside of wsvoice.
    assert "E       AssertionError: the call failed: the bot ended the call before it made a sound" in leaves
    # Once, in its place in the call.
    assert leaves.count("I would rather not") == 1
    assert "testing.py" not in leaves
    # The timeline, the report and the recording.
    assert "call 1: bot.py ---" in leaves
    assert re.search(r"^ +\d\.\d{3}   stream MZ\w+\.\.\. of call CA\w+\.\.\. has started$", leaves, re.MULTILINE)
    [recording] = re.findall(r"^recording: (.*)$", leaves, re.MULTILINE)
    with wave.open(recording) as file:
        assert file.getnchannels() == 2
    assert Path(recording).is_relative_to(project.path / "kept")

    assert "there is no another.py in" in missing
    assert "hint: give its whole path, or its folder as cwd=" in missing
    assert "call 1" not in unrelated


KEPT_TESTS = """
import pytest

@pytest.fixture
def fails_at_last():
    yield
    assert False, "too late"

def test_fails(dial):
    first, second = dial("bot.py"), dial("bot.py", trace="asked.call")
    assert first.passed

def test_fails_after_the_call(dial, fails_at_last):
    dial("bot.py")

def test_passes(dial):
    assert not dial("bot.py").passed

def test_passes_and_keeps_its_trace(dial):
    dial("bot.py", trace="asked too.call")
"""


def test_a_test_that_fails_leads_to_its_calls(project: pytest.Pytester) -> None:
    with server_process(project.mkdir("served"), LEAVING_BOT) as server:
        tests = KEPT_TESTS.replace('"bot.py"', f'"{server.url}"')
        (project.path / "tests" / "test_kept.py").write_text(tests, "utf-8")
        result = run(project, "-p", "no:asyncio", "--basetemp=base", "--junitxml=junit.xml", "--calls-traces=kept")

    result.assert_outcomes(failed=1, passed=3, errors=1)
    folder = project.path / "kept"
    kept = [trace_file(folder, f"tests/test_kept::test_fails{rest}") for rest in ("", "_after_the_call")]
    assert sorted(folder.iterdir()) == sorted(kept)
    asked = [project.path / "asked.call", project.path / "asked too.call"]
    for path in (*kept, *asked):
        with read_trace(path) as trace:
            assert trace.is_complete
    # What the terminal shows, and what is in JUnit's report.
    ways = [
        f"call 1: see the call: wsvoice show {kept[0]}",
        f"call 2: see the call: wsvoice show {asked[0]}",
        f"see the call: wsvoice show {kept[1]}",
    ]
    cases = {str(case.get("name")): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")}
    failed, failed_late = cases["test_fails"], cases["test_fails_after_the_call"]
    told = "\n".join(str(each.text) for case in (failed, failed_late) for each in case if each.text)
    for way in ways:
        assert way in result.stdout.lines
        assert way in told.splitlines()
    properties = {name: [each.get("value") for each in case.iter("property")] for name, case in cases.items()}
    assert properties["test_fails"] == [str(kept[0]), str(asked[0])]
    assert properties["test_passes"] == []


def test_nothing_is_loaded_until_a_fixture_is_used(project: pytest.Pytester) -> None:
    (project.path / "tests" / "test_idle.py").write_text(
        "import sys\n"
        "def test_idle(pytestconfig):\n"
        "    assert pytestconfig.pluginmanager.has_plugin('wsvoice')\n"
        "    heavy = {'wsvoice.testing', 'wsvoice.dial', 'wsvoice.config', 'pipecat', 'numpy', 'websockets'}\n"
        "    assert heavy & set(sys.modules) == set()\n"
        "def test_used(dial):\n"
        "    assert 'wsvoice.testing' in sys.modules\n"
        "    assert 'pipecat' not in sys.modules\n",
        "utf-8",
    )
    run(project, "-p", "no:asyncio").assert_outcomes(passed=2)


def test_the_fixtures_have_a_line_of_help(project: pytest.Pytester) -> None:
    result = run(project, "--fixtures")
    result.stdout.fnmatch_lines(["dial -- *", "    Call a bot: *", "adial -- *", "    Call a bot from a coroutine: *"])


# -- Where a call's files and settings come from --


@pytest.fixture
def factory(tmp_path: Path) -> Callable[..., CallFactory]:
    """Return a function that sets a factory up in a project at ``tmp_path``."""

    def make(*folders: str) -> CallFactory:
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        calls: list[PlacedCall] = []
        return CallFactory(
            folders=[tmp_path / folder for folder in folders] or [tmp_path],
            root=tmp_path,
            new_recording=lambda: tmp_path / f"call-{len(calls) + 1}.wav",
            calls=calls,
        )

    return make


def test_a_call_that_reaches_nobody(factory: Callable[..., CallFactory]) -> None:
    calls = factory()
    report = Dial(calls)(NOBODY, from_number="+15550100009")
    assert (report.passed, report.target, report.provider) == (False, NOBODY, "twilio")
    assert (report.heard, report.said, report.wav, report.sounds, report.log) == (b"", b"", None, [], [])
    assert report.response_times_ms == []
    assert repr(report) == f"<Report of {NOBODY}, twilio: failed: {report.failure}>"
    with pytest.raises(AssertionError, match="the call failed: nothing listens at"):
        report.assert_passed()
    assert [call.report for call in calls.calls] == [report]
    assert calls.calls[0].to_lines()[-1] == f"failed: {report.failure}"


def test_a_coroutine_gets_the_same(factory: Callable[..., CallFactory]) -> None:
    report = asyncio.run(AsyncDial(factory())(NOBODY, provider="telnyx"))
    assert (report.passed, report.provider) == (False, "telnyx")


def test_the_projects_settings_hold_where_an_option_is_left_out(
    factory: Callable[..., CallFactory], tmp_path: Path
) -> None:
    calls = factory("tests/unit", "tests", ".")
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice.dial]\ntransport = "plivo"\n')
    assert Dial(calls)(NOBODY).provider == "plivo"
    assert Dial(calls)(NOBODY, provider="telnyx").provider == "telnyx"
    assert Dial(calls)(NOBODY, env={"WSVOICE_DIAL_TRANSPORT": "exotel"}).provider == "exotel"
    # Another project's are another's.
    assert Dial(calls)(NOBODY, cwd=tmp_path / "tests").provider == "twilio"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"audios": ["a.wav"]}, TypeError, "no option 'audios'; did you mean `audio`"),
        ({"audio": "missing.wav"}, UsageError, "missing.wav does not exist"),
        ({"provider": "twilo"}, UsageError, "twilo"),
        ({"dtmf": "E"}, UsageError, "E"),
        ({"say": ""}, UsageError, "words to say"),
        ({"quirks": {"nonsense": "1"}}, UsageError, "no quirk 'nonsense'"),
        ({"duration_s": 0}, UsageError, "above zero"),
    ],
)
def test_a_wrong_option_is_named(
    factory: Callable[..., CallFactory], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Dial(factory())(NOBODY, **options)  # type: ignore[arg-type]


def test_a_hint_is_shown(factory: Callable[..., CallFactory]) -> None:
    with pytest.raises(UsageError) as caught:
        Dial(factory())(NOBODY, provider="twilo")
    assert caught.value.__notes__ == ["hint: did you mean `twilio`?"]


def test_the_nearest_bot_is_served_where_its_project_is(factory: Callable[..., CallFactory], tmp_path: Path) -> None:
    """Bots that cannot be imported tell where they are, and where they run, before anything is dialled."""
    calls = factory("one/tests", "one", ".")
    # Short, because a failure's text is.
    where = "'in ' + os.path.basename(os.getcwd()) + ' is ' + os.path.relpath(__file__)"
    source = f"import os\nraise SystemExit({where} + os.environ.get('MORE', ''))\n"
    for name in ("one/bot.py", "bot.py", "one/tests/bots/deep.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    (tmp_path / "one" / "pyproject.toml").write_text("")

    async def call(*places: tuple[str, dict[str, object]]) -> list[Report]:
        dial = AsyncDial(calls)
        return await asyncio.gather(*(dial(bot, **options) for bot, options in places))  # type: ignore[arg-type]

    reports = asyncio.run(
        call(("bot.py", {}), ("bots/deep.py", {"env": {"MORE": ", env"}}), ("bot.py:bot", {"cwd": tmp_path}))
    )
    assert "in one is bot.py" in str(reports[0].failure)
    assert "in one is tests/bots/deep.py, env" in str(reports[1].failure)
    assert f"in {tmp_path.name} is bot.py" in str(reports[2].failure)
    assert [report.target for report in reports] == ["bot.py", "bots/deep.py", "bot.py:bot"]


async def a_bot(runner_args: object) -> None:
    """Stand for a bot in a module of the user's."""


def test_a_function_stands_for_its_file(factory: Callable[..., CallFactory]) -> None:
    from wsvoice.testing import _find_bot, _named

    name = _named(a_bot)
    assert name == f"{__file__}:a_bot"
    assert _find_bot(name, [Path.cwd()]) == (name, Path(__file__).parent)

    async def nested(runner_args: object) -> None: ...

    for bot in (nested, lambda runner_args: nested(runner_args)):
        with pytest.raises(UsageError, match="no name in a module"):
            Dial(factory())(bot)


# -- The thread that a call runs in --


@pytest.mark.skipif(sys.platform == "win32", reason="needs a timer's signal")
def test_what_interrupts_a_test_hangs_up_first() -> None:
    begun, hung_up = threading.Event(), threading.Event()

    async def call() -> Report:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()
        raise AssertionError

    def interrupt(*_: object) -> None:
        if begun.is_set():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # Again and again until the call has begun; pytest-timeout's own timer is put back afterwards.
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            _CallThread(call).run()
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert hung_up.is_set()


def test_a_cancelled_coroutine_hangs_up_first() -> None:
    begun, hung_up = threading.Event(), threading.Event()

    async def call() -> Report:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            hung_up.set()
        raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(_CallThread(call).run_async())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert hung_up.is_set()

    asyncio.run(main())


def test_an_error_comes_out_of_the_thread() -> None:
    async def call() -> Report:
        raise UsageError("so it was")

    with pytest.raises(UsageError, match="so it was"):
        _CallThread(call).run()
    with pytest.raises(UsageError, match="so it was"):
        asyncio.run(_CallThread(call).run_async())


# -- The report --

WORDS, OTHER_WORDS = speech_like(700, 8000, seed=3), speech_like(700, 8000, seed=4)
SILENCE = bytes(2 * 8000)  # a second


def telephone(pcm: bytes) -> bytes:
    return PCMU_8K.decode(PCMU_8K.encode(pcm))


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A call of 4 s: the caller speaks at 0.2 s, the bot says the same words at 1 s and, more softly, at 2.7 s."""
    softly = (np.frombuffer(WORDS, "<i2") * 0.4).astype("<i2").tobytes()
    bot = SILENCE + telephone(WORDS) + SILENCE + telephone(softly) + SILENCE[: 2 * 4800]
    caller = SILENCE[: 2 * 1600] + tone(440, 500, 8000)
    write_wav(tmp_path / "call.wav", [caller, bot], 8000)
    return Report(
        provider="twilio",
        target="bot.py",
        verdict="passed",
        turns=[TurnReport(200, 700, 1000, 300), TurnReport(2000, 2100, 2700, 600)],
        duration_ms=4000,
        recording=str(tmp_path / "call.wav"),
        timeline=[TimelineEvent(0, "log", "one"), TimelineEvent(5, "note", "two"), TimelineEvent(9, "log", "three")],
    )


def test_both_sides_are_samples(report: Report) -> None:
    assert (report.sample_rate, len(report.heard), len(report.said)) == (8000, 2 * 32000, 2 * 32000)
    assert report.heard[2 * 8000 : 2 * 8000 + len(WORDS)] == telephone(WORDS)
    assert report.said[2 * 1600 : 2 * 5600] == tone(440, 500, 8000)
    assert report.wav is not None
    assert report.wav.name == "call.wav"


def test_a_recording_at_another_rate_is_brought_to_the_telephones(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "wide.wav"
    write_wav(path, [b"", bytes(2 * 16000) + tone(440, 1000, 16000)], 16000)
    wide = Report(provider="plivo", target="bot.py", recording=str(path))
    assert len(wide.heard) == 2 * 16000
    [(start, end)] = wide.sounds
    assert (start, end) == (pytest.approx(1000, abs=5), pytest.approx(2000, abs=5))
    assert wide.find(tone(440, 1000, 8000)) == [pytest.approx(1000, abs=3)]


def test_sounds_and_log(report: Report) -> None:
    assert report.log == ["one", "three"]
    assert report.response_times_ms == [300, 600]
    assert all(1000 <= start < end <= 1700 or 2700 <= start < end <= 3400 for start, end in report.sounds)
    assert len(report.sounds) >= 2


def test_a_sound_is_found_wherever_and_however_loud_it_was(report: Report, tmp_path: Path) -> None:
    padded = tmp_path / "padded.wav"
    write_wav(padded, [SILENCE + WORDS + SILENCE], 8000)
    found = report.find(WORDS)
    assert len(found) == 2
    # What is silent at its beginning does not count.
    assert 1000 <= found[0] < 1100
    assert found[1] - found[0] == pytest.approx(1700, abs=1)
    assert report.find(padded) == found
    assert report.find(WORDS, min_correlation=0.95) == found
    assert report.assert_heard(padded) == found[0]
    assert report.find(OTHER_WORDS) == []


def test_a_sound_that_was_not_heard(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "menu.wav"
    write_wav(path, [OTHER_WORDS], 8000)
    with pytest.raises(AssertionError, match=r"menu\.wav was not heard: the most similar sound, at \d+ ms") as caught:
        report.assert_heard(path)
    assert "0.6 was asked for; the bot was sounding " in str(caught.value)
    with pytest.raises(AssertionError, match=r"a sound of 5\.0 s was not heard: the call was shorter"):
        report.assert_heard(tone(440, 5000, 8000))
    with pytest.raises(ValueError, match="silent"):
        report.assert_heard(SILENCE)


def test_silence(report: Report) -> None:
    report.assert_silent(0, 990)
    report.assert_silent(1750, 2690)
    report.assert_silent(3450)
    for part in [(0, 1200), (1100, 1200), (2000, 4000)]:
        with pytest.raises(AssertionError, match=f"not silent from {part[0]} to {part[1]} ms; the bot was sounding 10"):
            report.assert_silent(*part)
    with pytest.raises(AssertionError, match="not silent from 0 to 4000 ms"):
        report.assert_silent()


def test_answers(report: Report) -> None:
    report.assert_answers_within(600)
    with pytest.raises(AssertionError, match="within 599 ms: after 300 ms, after 600 ms"):
        report.assert_answers_within(599)
    silent = Report(provider="twilio", target="bot.py", turns=[TurnReport(0, 1), TurnReport(2, 3, 4, 5)])
    with pytest.raises(AssertionError, match="never, after 5 ms"):
        silent.assert_answers_within(1000)
    with pytest.raises(AssertionError, match="no turn to answer"):
        Report(provider="twilio", target="bot.py").assert_answers_within(1000)


@pytest.mark.parametrize(
    "check",
    [
        lambda report: report.assert_answers_within(-1),
        lambda report: report.assert_answers_within(float("nan")),
        lambda report: report.assert_silent(-1),
        lambda report: report.assert_silent(0, -1),
        lambda report: report.assert_silent(200, 100),
        lambda report: report.find(WORDS, min_correlation=-1),
        lambda report: report.assert_heard(WORDS, min_correlation=1.5),
    ],
)
def test_bounds_that_cannot_be_are_refused(report: Report, check: Callable[[Report], object]) -> None:
    with pytest.raises(ValueError, match=r"takes 0 or more|before it begins|at most 1"):
        check(report)


def test_why_a_call_has_failed() -> None:
    log = [TimelineEvent(0, "log", f"line {number}") for number in range(50)]
    found = [CountedFinding("M1", "fail", "a broken message")]
    failed = Report(provider="twilio", target="bot.py", failure="it broke", findings=found, timeline=log)
    with pytest.raises(AssertionError) as caught:
        failed.assert_passed()
    assert str(caught.value) == "the call failed: it broke\nfail M1: a broken message"
    # The last words of a bot that died are the end of its log, which is shown with the call.
    died = Report(provider="twilio", target="bot.py", failure="it died:\nline 49", timeline=log)
    with pytest.raises(AssertionError) as caught:
        died.assert_passed()
    assert str(caught.value) == "the call failed: it died"
    shown = PlacedCall("bot.py", list(log), died).to_lines()
    assert shown[-2:] == ["         | line 49", "failed: it died:"]
    assert sum("line 49" in line for line in shown) == 1
    passed = Report(provider="twilio", target="bot.py", verdict="passed")
    passed.assert_passed()
    assert passed.passed
