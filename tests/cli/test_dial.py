"""``wsvoice dial``: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.invoke import invoke
from wsvoice.config import DialConfig
from wsvoice.dial.report import CallReport, CountedFinding, TimelineEvent, TurnReport
from wsvoice.errors import DialError, UsageError
from wsvoice.providers import PROVIDERS

pytestmark = pytest.mark.usefixtures("clean_process")


def test_dial_takes_every_option(caller, tmp_path):
    invoke(
        *["dial", "http://localhost:9000/", "-t", "twilio", "--audio", "a.wav", "--audio", "b.wav", "--dtmf", "12#"],
        *["--from", "+15550100003", "--to", "+15550100004", "--param", "a=1", "--duration", "1m", "--listen", "0"],
        *["--response-timeout", "2s", "--record", "call.wav", "--force-ws", "--method", "get", "--json"],
        *["--probe", "--quirk", "one=1", "--quirk", "two=2", "--say", "Yes, please.", "--say", "No.", "--voice", "en"],
    )
    assert caller.config == DialConfig(
        target="http://localhost:9000/",
        audio=(Path("a.wav"), Path("b.wav")),
        say=("Yes, please.", "No."),
        voice="en",
        dtmf="12#",
        from_number="+15550100003",
        to_number="+15550100004",
        parameters={"a": "1"},
        duration_s=60.0,
        listen_s=0.0,
        response_timeout_s=2.0,
        record=Path("call.wav"),
        force_ws=True,
        method="GET",
        probe=True,
        quirks={"one": "1", "two": "2"},
        as_json=True,
    )


def test_dial_takes_a_transcriber_from_anywhere(caller, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-abc")
    invoke("dial", "--transcriber", "offline", "--transcriber-model", "tiny.en", "--language", "de")
    given = {"transcriber_model": "tiny.en", "language": "de", "model_key": "sk-abc"}
    assert caller.config == DialConfig(transcriber="offline", **given)
    monkeypatch.setenv("WSVOICE_TRANSCRIBER", "https://user:pass-word@ears.example.com/v1?key=abc")
    shown = invoke("dial", "-v").stderr
    assert caller.config.transcriber == "https://user:pass-word@ears.example.com/v1?key=abc"
    assert "https://ears.example.com/v1 " in shown
    assert "pass-word" not in shown
    assert "a language as two letters" in invoke("dial", "--language", "english", code=2).stderr
    assert "--transcriber is for one call" in invoke("dial", "-n", "2", "--transcriber", "offline", code=2).stderr


def test_dial_keeps_the_log_of_a_caller_that_is_a_bot_short(caller, monkeypatch):
    levels = []
    monkeypatch.setattr("wsvoice.runner.logs.configure_logging", levels.append)
    invoke("dial", "--caller", "caller.py:other")
    assert caller.config == DialConfig(caller="caller.py:other")
    invoke("dial", "--caller", "caller.py:other", "-v")
    assert levels == ["ERROR", "DEBUG"]


def test_dial_lists_a_providers_quirks_and_calls_nobody(caller):
    lines = invoke("dial", "-t", "telnyx", "--quirk", "list").stderr.splitlines()
    assert lines[0] == "Telnyx's quirks:"
    assert re.search(r"^  leg-codec=PCMU\|PCMA +the codec of .* \(default: PCMU\)$", "\n".join(lines), re.M)
    assert invoke("dial", "-t", "twilio", "--quirk", "list").stderr == "Twilio has no quirks\n"
    assert caller.config is None


def test_dial_lists_every_providers_quirks_unless_one_is_chosen(caller, monkeypatch):
    headings = [line for line in invoke("dial", "--quirk", "list").stderr.splitlines() if not line.startswith(" ")]
    assert headings[:2] == ["Twilio has no quirks", "Telnyx's quirks:"]
    assert len(headings) == len(PROVIDERS)
    monkeypatch.setenv("WSVOICE_TRANSPORT", "signalwire")
    assert invoke("dial", "--quirk", "list").stderr == "SignalWire has no quirks\n"
    assert caller.config is None


def test_dial_explains_what_a_probe_found(caller):
    found = (CountedFinding("M3", "warn", "it talked on"),)
    caller.report = CallReport("twilio", "t", verdict="passed", findings=found)
    lines = invoke("dial", "--probe").stderr.splitlines()
    explained = [line for line in lines if line.startswith(("warn M3", "M3 asks that", "   hint: "))]
    assert len(explained) == 3
    assert lines[-1] == "passed"
    assert not any(line.startswith("M3 asks") for line in invoke("dial").stderr.splitlines())


def test_dial_tells_what_happens_and_ends_with_the_verdict(caller):
    caller.events = [
        TimelineEvent(0.0, "webhook", "POST http://localhost:7860/ answered 200 in 3 ms"),
        TimelineEvent(12.34, "caller-speaks", "the caller speaks"),
        TimelineEvent(61234.5, "bot-speaks", "the bot speaks"),
        TimelineEvent(61300.0, "closed", "the stream is closed (1000)"),
    ]
    caller.report = CallReport("twilio", "t", verdict="passed", turns=[TurnReport(0.0, 1520.0, 1580.0, 60.0)])
    result = invoke("dial")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "   0.000 > POST http://localhost:7860/ answered 200 in 3 ms",
        "   0.012 > the caller speaks",
        "  61.234 < the bot speaks",
        "  61.300   the stream is closed (1000)",
        "turn 1: caller 0 to 1520 ms, bot answered after 60 ms",
        "passed",
    ]


def test_a_failed_call_exits_with_1_and_shows_the_end_of_the_bots_log(caller):
    caller.events = [TimelineEvent(0.0, "log", f"line {number}") for number in range(30)]
    caller.report = CallReport(
        "twilio", "t", failure="the bot was silent", findings=[CountedFinding("M1", "warn", "odd", 2)]
    )
    lines = invoke("dial", code=1).stderr.splitlines()
    shown = [line.strip(" |") for line in lines if "| line" in line]
    assert shown == [f"line {number}" for number in range(10, 30)]
    assert lines[-2:] == ["warn M1: odd (2 times)", "failed: the bot was silent"]


def test_the_bots_log_is_not_shown_for_a_call_that_passed_unless_asked_for(caller):
    caller.events = [TimelineEvent(0.0, "log", "a line of the bot's")]
    assert "a line of the bot's" not in invoke("dial").stderr
    assert "           | a line of the bot's\n" in invoke("dial", "-v").stderr


def test_nothing_stands_after_the_verdict_of_a_call_that_passed(caller):
    caller.late = [TimelineEvent(9000, "hang-up", "the bot hangs up late"), TimelineEvent(9001, "log", "a late line")]
    lines = invoke("dial").stderr.splitlines()
    assert lines[-1] == "passed"
    assert "late" not in "".join(lines)
    *lines, verdict = invoke("dial", "-v").stderr.splitlines()
    assert verdict == "passed"
    assert [line for line in lines if line.endswith((" late", "a late line"))] == [
        "   9.000   the bot hangs up late",
        "           | a late line",
    ]
    caller.report = replace(caller.report, verdict="failed", failure="it failed")
    *lines, verdict = invoke("dial", code=1).stderr.splitlines()
    assert verdict == "failed: it failed"
    assert "           | a late line" in lines


def test_the_last_words_of_a_bot_that_died_are_told_once(caller):
    caller.events = [TimelineEvent(0.0, "log", "KeyError: 1")]
    caller.report = CallReport("twilio", "t", failure="the bot ended with exit code 1:\nKeyError: 1")
    lines = invoke("dial", code=1).stderr.splitlines()
    assert lines == ["failed: the bot ended with exit code 1:", "           | KeyError: 1"]


def test_dial_json_is_the_report_and_the_timeline_stays_on_stderr(caller):
    caller.events = [TimelineEvent(1000.0, "bot-speaks", "the bot speaks")]
    result = invoke("dial", "--json")
    assert json.loads(result.stdout) == caller.report.to_dict()
    assert result.stdout.count("\n") == 1
    assert "   1.000 < the bot speaks\n" in result.stderr


def test_quiet_leaves_the_warnings_and_the_verdict_or_the_json(caller, tmp_path):
    caller.events = [TimelineEvent(0.0, "bot-speaks", "the bot speaks"), TimelineEvent(0.0, "log", "x")]
    caller.report = CallReport("twilio", "t", failure="the bot was silent")
    result = invoke("dial", "-q", code=1)
    assert (result.stdout, result.stderr) == ("", "failed: the bot was silent\n")
    result = invoke("dial", "-q", "--json", code=1)
    assert json.loads(result.stdout)["verdict"] == "failed"
    assert result.stderr == ""
    (tmp_path / ".env").write_text("WSVOICE_DIAL_LISTN=2\n")
    warning = "warning: WSVOICE_DIAL_LISTN in .env is not read: did you mean WSVOICE_DIAL_LISTEN?\n"
    assert invoke("dial", "-q", code=1).stderr == warning + "failed: the bot was silent\n"


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no such audio", hint="name a WAV file"), 2), (DialError("no route"), 1)]
)
def test_a_call_that_could_not_be_placed(caller, error, code):
    async def place() -> None:
        raise error

    caller.place = place
    result = invoke("dial", code=code)
    assert result.stderr.startswith(f"error: {error.message}\n")


def test_ctrl_c_hangs_up_and_exits_with_130(caller):
    hung_up = []

    async def place() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            hung_up.append(True)
            raise

    caller.place = place
    result = invoke("dial", code=130)
    assert hung_up == [True]
    assert "Traceback" not in result.stderr


def test_what_a_bot_writes_cannot_steer_the_terminal(caller):
    caller.events = [TimelineEvent(0.0, "bot-speaks", "\x1b[2J[red]\x9b1m\rdone\nmore")]
    line = invoke("dial").stderr.splitlines()[0]
    assert line == r"   0.000 < \x1b[2J[red]\x9b1m\x0ddone more"


def test_long_lines_are_not_wrapped(caller, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    caller.events = [TimelineEvent(0.0, "note", "word " * 60)]
    assert invoke("dial").stderr.splitlines()[0].count("word") == 60


def test_colours_can_be_asked_for_and_kept_out(caller, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in invoke("dial").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in invoke("dial").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in invoke("dial").stderr


def test_a_bot_that_is_served_reads_the_env_file_that_was_named(caller, tmp_path):
    (tmp_path / "test.env").write_text("A=1\n")
    seen = []

    async def place() -> None:
        seen.append(os.environ.get("WSVOICE_ENV_FILE"))

    caller.place = place
    invoke("dial", "bot.py", "--env-file", "test.env")
    assert seen == [str(tmp_path / "test.env")]
