"""``wsvoice dial -n`` and ``--find-knee``: what they take, what is printed where, and the exit code."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.invoke import invoke
from wsvoice.config import DialConfig
from wsvoice.dial.load import run
from wsvoice.dial.load.knee import Knee, Step
from wsvoice.dial.load.report import Client, Failures, Figures, LoadReport
from wsvoice.errors import DialError, UsageError

pytestmark = pytest.mark.usefixtures("clean_process")

FIGURES = Figures(20.0, 30.0, 40.0, 50.0)
REPORT = LoadReport(
    provider="twilio",
    target="bot.py",
    verdict="passed",
    failure=None,
    interrupted=False,
    calls=50,
    passed=50,
    failed=0,
    peak_calls=50,
    duration_s=20.1,
    echo="exact",
    crossed=0,
    setup_ms=FIGURES,
    webhook_ms=FIGURES,
    connect_ms=FIGURES,
    first_audio_ms=FIGURES,
    response_ms=None,
    latency_ms=FIGURES,
    jitter_ms=FIGURES,
    late_share=0.0012,
    late_shares=Figures(0.0, 0.001, 0.004, 0.01),
    max_late_ms=60.0,
    underruns=1,
    failures=(),
    client=Client(FIGURES, (0.4, 0.35), 280),
)


@pytest.fixture
def many(monkeypatch):
    """Replace the callers: they tell `steps` and the bot's `log`, and return `report` or raise `error`."""
    seen = SimpleNamespace(report=REPORT, config=None, steps=[], log=[], error=None)

    async def place_calls(config: DialConfig, watcher: Any) -> LoadReport:
        seen.config = config
        for line in seen.log:
            watcher.on_line(line)
        for step in seen.steps:
            watcher.on_step(step)
        if seen.error is not None:
            raise seen.error
        return seen.report

    monkeypatch.setattr(run, "place_calls", place_calls)
    return seen


def test_many_calls_take_every_option(many):
    invoke(
        *["dial", "bot.py", "-n", "50", "--ramp", "90/m", "--concurrency", "20", "--max-late", "80ms"],
        *["--max-late-share", "2%", "--duration", "30s", "-t", "plivo", "--json"],
    )
    assert many.config == DialConfig(
        target="bot.py",
        transport="plivo",
        calls=50,
        ramp_per_s=1.5,
        concurrency=20,
        max_late_s=0.08,
        max_late_share=0.02,
        duration_s=30.0,
        as_json=True,
    )
    invoke("dial", "bot.py", "--find-knee")
    assert many.config == DialConfig(target="bot.py", find_knee=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-n", "0"], "-n takes a whole number from 1 up, got '0'"),
        (["-n", "many"], "-n takes a whole number from 1 up"),
        (["-n", "5", "--ramp", "fast"], "--ramp takes a rate above zero, got 'fast'"),
        (["-n", "5", "--ramp", "0/s"], "--ramp takes a rate above zero"),
        (["-n", "5", "--ramp", "5/d"], "--ramp takes a rate above zero"),
        (["-n", "5", "--max-late-share", "0%"], "--max-late-share takes a share above 0%"),
        (["-n", "5", "--max-late-share", "120%"], "--max-late-share takes a share above 0%"),
        (["-n", "5", "--concurrency", "6"], "--concurrency 6 is more than there are calls"),
        (["-n", "5", "--record", "a.wav"], "--record is for one call"),
        (["--ramp", "5/s"], "--ramp is for many calls"),
        (["--concurrency", "5"], "--concurrency is for many calls"),
        (["--max-late", "60ms"], "--max-late is for many calls"),
        (["-n", "5", "+15550100"], "-n is for test calls"),
    ],
)
def test_what_cannot_be_is_refused_with_a_hint(arguments, words):
    lines = invoke("dial", *arguments, code=2).stderr.splitlines()
    assert lines[-2].startswith(f"error: {words}"), lines
    assert lines[-1].startswith("hint: ")


def test_a_ramp_of_the_project_does_not_concern_one_call(caller, many, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice.dial]\nramp = "2/s"\n')
    invoke("dial", "bot.py")
    assert caller.config is not None
    invoke("dial", "bot.py", "-n", "5")
    assert many.config.ramp_per_s == 2.0


def test_the_report_is_a_table_with_the_verdict_last(many):
    result = invoke("dial", "bot.py", "-n", "50")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "ms                p50      p90      p99      max",
        "set-up           20.0     30.0     40.0     50.0",
        "webhook          20.0     30.0     40.0     50.0",
        "connect          20.0     30.0     40.0     50.0",
        "first audio      20.0     30.0     40.0     50.0",
        "latency          20.0     30.0     40.0     50.0",
        "jitter           20.0     30.0     40.0     50.0",
        "late, a call    0.00%    0.10%    0.40%    1.00%",
        "late: 0.12% of the bot's audio came later than 60 ms; 1 underrun",
        "audio: the bot repeats its callers, to the byte",
        "callers: 40.0 ms late themselves (p99), 40%, 35% of a core, about 280 calls possible",
        "calls: 50 of 50 calls went well, 50 at once, in 20.1 s",
        "passed",
    ]
    assert invoke("dial", "bot.py", "-n", "50", "-q").stderr == "passed\n"
    result = invoke("dial", "bot.py", "-n", "50", "-q", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout) == REPORT.to_dict()


def test_calls_that_failed_are_listed_and_the_log_is_shown(many):
    failures = (Failures("the webhook failed: 503", 2, (3, 9)), Failures("call 17 heard call 3", 1, (17,)))
    many.report = replace(REPORT, verdict="failed", failure="3 of 50 calls failed", failed=3, failures=failures)
    many.log = [f"line {number}" for number in range(30)]
    lines = invoke("dial", "bot.py", "-n", "50", code=1).stderr.splitlines()
    assert "2 x the webhook failed: 503 (calls 3, 9)" in lines
    assert "1 x call 17 heard call 3 (call 17)" in lines
    assert lines[-1] == "failed: 3 of 50 calls failed"
    assert any("line 29" in line for line in lines)
    assert not any("line 9" in line and "29" not in line for line in lines)


def test_a_late_client_is_this_machines_fault(many):
    many.report = replace(REPORT, verdict="not-measured", failure="this machine cannot play 50 calls at once")
    lines = invoke("dial", "bot.py", "-n", "50", code=2).stderr.splitlines()
    assert lines[-1] == "not measured: this machine cannot play 50 calls at once"


def test_an_interrupted_run_is_reported(many):
    many.report = replace(REPORT, verdict="failed", failure="interrupted before the end", interrupted=True)
    result = invoke("dial", "bot.py", "-n", "50", "--json", code=130)
    assert json.loads(result.stdout)["interrupted"] is True
    assert "calls: interrupted; so far 50 of 50 calls went well, 50 at once, in 20.1 s" in result.stderr


@pytest.mark.parametrize(
    ("knee", "words"),
    [
        (Knee(57, False, "server"), "knee: 57 calls at once"),
        (Knee(80, True, "this machine"), "knee: at least 80 calls at once: this machine cannot play more"),
        (Knee(500, True, "nothing"), "knee: at least 500 calls at once: no more were asked for (-n)"),
        (Knee(0, False, "server"), "knee: 0: not even one call"),
    ],
)
def test_the_knee_is_told_step_by_step(many, knee, words):
    many.steps = [Step(1, "held", "0.00% of the audio late"), Step(5, "broke", "5 of 5 calls failed: 503", again=True)]
    many.report = replace(REPORT, knee=knee)
    lines = invoke("dial", "bot.py", "--find-knee").stderr.splitlines()
    assert lines[:2] == [
        "1 call at once: held (0.00% of the audio late)",
        "5 calls at once, again: broke (5 of 5 calls failed: 503)",
    ]
    assert words in lines


def test_a_bot_that_cannot_be_served_is_one_error_with_its_log(many):
    many.log, many.error = ["its last words"], DialError("the server of bot.py ended with exit code 1")
    lines = invoke("dial", "bot.py", "-n", "5", code=1).stderr.splitlines()
    assert any("its last words" in line for line in lines)
    assert lines[-1] == "error: the server of bot.py ended with exit code 1"
    many.error = UsageError("there is no such bot", hint="look for it")
    assert "its last words" not in invoke("dial", "bot.py", "-n", "5", code=2).stderr
