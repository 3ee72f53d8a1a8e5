"""``wsvoice dial +1...``: what is asked for, what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoke import invoke
from tests.environment import clean_environ
from tests.phone.account_api import AccountApi, use_own_accounts
from tests.phone.dial_server import CALL_ID, KEY, DialServer, conversation
from wsvoice.config import settings
from wsvoice.errors import HttpError
from wsvoice.runner import dial_api

ROOT = Path(__file__).parents[2]
TO, FROM = "+15550100002", "+15550100001"
CALL = ("dial", TO, "--from", FROM)

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which servers say that they run."""
    folder = tmp_path / "state"
    monkeypatch.setenv("WSVOICE_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def server(state: Path) -> Iterator[DialServer]:
    """A server that runs on this machine, with a conversation for whoever asks for a call."""
    with DialServer() as server:
        server.on_order = conversation
        say_it_runs(state, server)
        yield server


def say_it_runs(state: Path, server: DialServer, **changed: Any) -> None:
    runs = state / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    content = {"version": 1, "pid": os.getpid(), "url": server.url, "public_url": "https://bot.example.com"}
    content |= {"providers": ["twilio"], "key": KEY, **changed}
    (runs / f"{len(list(runs.iterdir()))}.json").write_text(json.dumps(content))


def lines_of(*arguments: str, code: int = 0) -> list[str]:
    result = invoke(*arguments, code=code)
    assert result.stdout == ""
    return result.stderr.splitlines()


# A server that runs already


def test_a_call_is_told_as_it_goes_and_ends_with_what_became_of_it(server: DialServer) -> None:
    assert lines_of(*CALL) == [
        "   0.100   queued",
        "   0.200   ringing",
        "   0.300   answered by a human",
        "   0.400   the call has ended",
        "bot: 3 answers, after 0.9 s (median), 1.4 s at most",
        "audio: 30.5 s heard, 12.2 s sent",
        "recording: calls/CA5e.wav",
        "completed: 34.2 s, ended by the other side, cost 0.0130 USD",
    ]
    [order] = server.orders
    assert order == {
        "to": TO,
        "from": FROM,
        "provider": "twilio",
        "parameters": {},
        "ring_timeout_s": 60,
        "time_limit_s": None,
        "detection": None,
        "voicemail": "bot",
    }


def test_every_option_reaches_the_server(server: DialServer) -> None:
    options = ["-t", "twilio", "--param", "language=en", "--timeout", "29.5s", "--time-limit", "5m"]
    invoke("dial", "+1 (555) 010-0002", "--from", "+1.555.010.0001", *options, "--voicemail", "leave")
    assert server.orders[0] == {
        "to": TO,
        "from": FROM,
        "provider": "twilio",
        "parameters": {"language": "en"},
        "ring_timeout_s": 30,
        "time_limit_s": 300,
        "detection": None,
        "voicemail": "leave",
    }


def test_who_answers_is_found_out_as_the_server_sees_fit_or_as_asked(server: DialServer) -> None:
    invoke(*CALL, "--voicemail", "hang-up")
    invoke(*CALL, "--voicemail", "hang-up", "--detect", "greeting-end")
    invoke(*CALL, "--detect", "detect")
    assert [order["detection"] for order in server.orders] == [None, "greeting-end", "detect"]


def test_settings_of_a_real_call_may_stand_anywhere(server: DialServer, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice.dial]\nvoicemail = "hang-up"\nlisten = 2\n')
    (tmp_path / ".env").write_text(f"WSVOICE_DIAL_TIMEOUT=20\nTWILIO_FROM_NUMBER={FROM}\n")
    monkeypatch.setenv("WSVOICE_DIAL_TARGET", TO)
    lines = lines_of("dial", "-v")
    assert server.orders[0]["ring_timeout_s"] == 20
    assert server.orders[0]["voicemail"] == "hang-up"
    assert server.orders[0]["from"] == FROM
    assert any(re.match(r"  timeout +=.* \(\.env WSVOICE_DIAL_TIMEOUT\)", line) for line in lines)
    assert not any(line.startswith("  listen") for line in lines)


@pytest.mark.parametrize("name", ["TWILIO_FROM_NUMBER", "TWILIO_PHONE_NUMBER"])
def test_the_number_that_calls_may_be_the_providers_own_setting(
    server: DialServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "+1 555 010 0007")
    invoke("dial", TO)
    assert server.orders[0]["from"] == "+15550100007"


@pytest.mark.parametrize(
    ("stage", "cause", "verdict"),
    [
        ("busy", "", "failed: busy"),
        ("no-answer", "Ring Timeout Reached", "failed: no answer"),
        ("failed", "21217 no such number", "failed: the call failed (21217 no such number)"),
        ("canceled", "hung up by request", "failed: the call was canceled (hung up by request)"),
    ],
)
def test_a_call_that_nobody_takes_has_failed(server: DialServer, stage: str, cause: str, verdict: str) -> None:
    def end(server: DialServer) -> None:
        server.tell("ringing")
        server.end(stage, cause=cause, duration_s=0.0)

    server.on_order = end
    assert lines_of(*CALL, code=1)[-1] == verdict


def test_a_machine_that_nobody_wants_to_talk_to_has_failed_the_call(server: DialServer) -> None:
    def answer(server: DialServer) -> None:
        server.tell("ringing", "Ring")
        server.tell("answered", "Answer")
        server.tell("answered", "MachineDetection", answered_by="machine")
        server.end("completed", "Hangup", cause="Normal Hangup (4000)", duration_s=2.0, price="0.00000")

    server.on_order = answer
    assert lines_of(*CALL, "--voicemail", "hang-up", code=1) == [
        "   0.100   queued",
        "   0.200   ringing",
        "   0.300   answered",
        "   0.400   a machine answered",
        "   0.500   the call has ended",
        "call: 2.0 s",
        "failed: a machine answered",
    ]
    # Whoever lets the bot talk to it has got what was asked for.
    assert lines_of(*CALL, "--detect", "detect")[-1] == "completed: 2.0 s"


def test_a_bot_that_failed_in_the_call_has_failed_it(server: DialServer) -> None:
    server.on_order = lambda server: server.end("completed", ended_by="error", duration_s=3.0)
    assert lines_of(*CALL, code=1)[-2:] == ["call: 3.0 s, ended by an error", "failed: the bot crashed"]


def test_json_is_one_object_with_stable_names(server: DialServer) -> None:
    result = invoke(*CALL, "--json")
    assert result.stdout.count("\n") == 1
    report = json.loads(result.stdout)
    names = "verdict failure id call_id provider to from stage answered_by duration_s price ended_by cause response_s"
    assert list(report) == [*names.split(), "heard_s", "sent_s", "recording", "events", "causes"]
    assert (report["verdict"], report["failure"], report["call_id"]) == ("completed", None, CALL_ID)
    assert report["events"][2] == {
        "at_s": 0.3,
        "stage": "answered",
        "answered_by": "human",
        "text": "answered by a human",
    }
    assert "   0.200   ringing\n" in result.stderr


def test_the_docs_name_every_field_of_the_report(server: DialServer) -> None:
    page = (ROOT / "docs" / "calling-out.md").read_text("utf-8")
    rows = page.split("## The report")[1].split("|---|---|\n")[1].split("\n\n")[0].splitlines()
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(json.loads(invoke(*CALL, "--json").stdout))


def test_quiet_leaves_the_verdict_or_the_json(server: DialServer) -> None:
    assert lines_of(*CALL, "-q") == ["completed: 34.2 s, ended by the other side, cost 0.0130 USD"]
    result = invoke(*CALL, "-q", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)["verdict"] == "completed"


def test_what_a_server_tells_cannot_steer_the_terminal(server: DialServer) -> None:
    server.on_order = lambda server: (
        server.tell("queued", "\x1b[2Jdone\nmore"),
        server.end("busy", price="\x9b1m5 USD"),
    )[0]
    lines = lines_of(*CALL, code=1)
    assert lines[1] == r"   0.200   \x1b[2Jdone more"
    assert lines[-2] == r"call: cost \x9b1m5 USD"


def test_what_the_server_refuses_is_one_line_and_a_hint(server: DialServer) -> None:
    server.refusal = 502, {"error": "Twilio does not let a trial account call +15550100002", "hint": "verify it"}
    assert lines_of(*CALL, code=1) == [
        "error: Twilio does not let a trial account call +15550100002",
        "hint:  verify it",
    ]
    server.refusal = 400, {"error": "no time limit is that long"}
    assert lines_of(*CALL, code=2) == ["error: no time limit is that long"]
    assert invoke(*CALL, "--json", code=2).stdout == ""


def test_which_server_is_told_by_its_address_or_port(server: DialServer, state: Path) -> None:
    with DialServer("another key") as other:
        other.on_order = conversation
        say_it_runs(state, other, key="another key", public_url=None, providers=["telnyx", "plivo"])
        port = other.url.split(":")[-1].strip("/")
        lines = lines_of(*CALL, "--server", port, code=0)
        assert lines[-1].startswith("completed")
        assert (len(other.orders), len(server.orders)) == (1, 0)
        # It serves several, and chooses itself unless it is told.
        assert "provider" not in other.orders[0]
        invoke(*CALL, "-t", "telnyx")
        assert other.orders[1]["provider"] == "telnyx"
        assert lines_of(*CALL, code=2)[0] == "error: 2 servers run on this machine"


def test_a_server_elsewhere_is_reached_with_its_key(server: DialServer, state: Path, monkeypatch: Any) -> None:
    for file in (state / "runs").iterdir():
        file.unlink()
    address = server.url.removeprefix("http://").strip("/")
    assert "WSVOICE_DIAL_KEY" in lines_of(*CALL, "--server", address, code=2)[1]
    monkeypatch.setenv("WSVOICE_DIAL_KEY", "wrong")
    assert "does not take the key" in lines_of(*CALL, "--server", address, code=2)[0]
    monkeypatch.setenv("WSVOICE_DIAL_KEY", KEY)
    assert lines_of(*CALL, "--server", address)[-1].startswith("completed")


def test_a_key_that_goes_over_a_network_in_plain_text_gets_a_warning(server: DialServer, monkeypatch: Any) -> None:
    asked: list[str] = []

    async def refuse(request: Any, **_: Any) -> Any:
        asked.append(request.url)
        raise HttpError("refused", "nothing listens there")

    monkeypatch.setattr("wsvoice.http.send", refuse)
    monkeypatch.setenv("WSVOICE_DIAL_KEY", "theirs")
    warning = "warning: the key is sent to bot.internal:7860 without encryption: whoever sees it can place calls"
    assert lines_of(*CALL, "--server", "http://bot.internal:7860", code=1)[0] == warning
    assert not lines_of(*CALL, "--server", "other.example.com", code=1)[0].startswith("warning")
    assert asked == ["http://bot.internal:7860/dial", "https://other.example.com/dial"]


def test_a_server_that_is_gone_is_told(server: DialServer) -> None:
    server.close()
    error, hint = lines_of(*CALL, code=1)
    assert error.startswith("error: the server that was to place the call cannot be reached: nothing listens at ")
    assert hint.startswith("hint:  start it with `wsvoice run`")


def test_a_server_that_dies_in_the_call_is_told_with_what_ends_the_call(server: DialServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("wsvoice.phone.dialling.PAUSE_S", 0.02)
    server.on_order = lambda server: server.faults.extend([None] * 10)
    lines = lines_of(*CALL, code=1)
    assert lines[0].startswith("error: the server is gone in the middle of the call: ")
    assert lines[1] == f"hint:  `wsvoice hangup {CALL_ID} -t twilio` ends the call, if it goes on"


# What is refused before anything is asked for


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([TO], f"a call to {TO} has to come from a number of yours", "--from +15551234567`, or set TWILIO_FROM_NUMBER"),
        ([TO, "--from", "5550100001"], "--from takes a phone number with its country code", "`+5550100001`"),
        (["5550100002"], "TARGET takes a phone number with its country code", ""),
        (["00441632960123"], "TARGET takes a phone number with its country code", "`+441632960123`"),
        (["+1 555"], "TARGET takes a phone number with its country code", ""),
        ([TO, "--say", "Hello"], "--say is for test calls, not for calls to phone numbers", "leave it out"),
        ([TO, "--audio", "a.wav"], "--audio is for test calls", "leave it out"),
        ([TO, "--quirk", "a=1"], "--quirk is for test calls", "leave it out"),
        ([TO, "-n", "5"], "-n is for test calls", "leave it out"),
        ([TO, "--to", "+15550100009"], "--to is for test calls", "leave it out"),
        ([TO, "--voicemail", "leave", "--detect", "detect"], "--voicemail leave has to know", "leave out --detect"),
        ([TO, "--voicemail", "hang-up", "--detect", "off"], "--voicemail hang-up has to know", "leave out --detect"),
        ([TO, "--voicemail", "beep"], "--voicemail takes bot, leave or hang-up", ""),
        (["+15551234567"], "a call to +15551234567 has to come", "--from +15557654321`, or set TWILIO_FROM_NUMBER"),
        ([TO, "--timeout", "0"], "--timeout takes a duration from 1s to 10m, got '0'", "`90`"),
        ([TO, "--timeout", "601"], "--timeout takes a duration from 1s to 10m, got '601'", ""),
        ([TO, "--timeout", "never"], "--timeout takes a duration, got 'never'", ""),
        ([TO, "--time-limit", "0.5"], "--time-limit takes a duration from 1s to 24h, got '0.5'", ""),
        ([TO, "--time-limit", "25h"], "--time-limit takes a duration from 1s to 24h, got '25h'", ""),
        ([TO, "--server", "ftp://x"], "--server takes a server's address or port", ""),
        ([TO, "-x", "bot.example.com", "--tunnel", "ngrok"], "-x and --tunnel exclude each other", ""),
        ([TO, "-x", "bot.example.com"], "--proxy is the public address of a bot", "add `--bot bot.py`"),
        ([TO, "-t", "telnyx"], "the server at http://127.0.0.1", "start one that does"),
        ([TO, "--bot", "bot.py", "--server", "7860"], "--bot serves a bot of its own", ""),
        (["bot.py", "--bot", "other.py"], "--bot is for calls to phone numbers", "wsvoice dial +15551234567"),
        (["--voicemail", "leave"], "--voicemail is for calls to phone numbers", ""),
        (["bot.py", "--tunnel", "ngrok"], "--tunnel is for calls to phone numbers", ""),
        (["bot.py", "--timeout", "3"], "--timeout is for calls to phone numbers", ""),
    ],
)
def test_what_cannot_be_is_misuse(server: DialServer, arguments: list[str], error: str, hint: str) -> None:
    lines = lines_of("dial", *arguments, code=2)
    assert lines[0].startswith(f"error: {error}")
    assert hint in lines[-1]
    assert len(lines) <= 2
    assert server.asked == []


def test_without_a_server_there_are_two_ways(state: Path) -> None:
    assert lines_of(*CALL, code=2) == [
        "error: no server runs on this machine that could place the call",
        "hint:  start one in another terminal with `wsvoice run`, or have a bot served for this call: `--bot bot.py`",
    ]
    assert not state.exists()


def test_what_a_server_takes_may_be_asked_for(server: DialServer) -> None:
    assert (settings.MAX_RING_S, settings.MAX_DURATION_S) == (dial_api.MAX_RING_S, dial_api.MAX_DURATION_S)
    invoke(*CALL, "--timeout", "10m", "--time-limit", "24h")
    invoke(*CALL, "--timeout", "1", "--time-limit", "1")
    asked = [(order["ring_timeout_s"], order["time_limit_s"]) for order in server.orders]
    assert asked == [(600, 86400), (1, 1)]


# Interruptions, in a process of their own


def interrupted(server: DialServer, state: Path, number: signal.Signals, wait: Any, *, again: bool = False) -> str:
    """Send a signal to a call once `wait` returns; return what it has printed."""
    with subprocess.Popen(
        [sys.executable, "-m", "wsvoice", *CALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=state.parent,
        env=clean_environ(WSVOICE_STATE_DIR=str(state)),
    ) as process:
        assert process.stderr is not None
        try:
            shown = wait(process.stderr)
            process.send_signal(number)
            if again:
                assert server.hung_up.wait(10)
                process.send_signal(number)
            output, rest = process.communicate(timeout=20)
        finally:
            process.kill()
    text = shown + rest
    assert (process.returncode, output) == (130, ""), text
    assert "Traceback" not in text
    assert text.splitlines()[-1] == "interrupted"
    return text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_call_is_hung_up(server: DialServer, state: Path, number: signal.Signals) -> None:
    server.on_order = lambda server: server.tell("ringing")
    text = interrupted(server, state, number, lambda lines: "".join(lines.readline() for _ in range(2)))
    assert server.hung_up.is_set()
    assert text.splitlines() == [
        "   0.100   queued",
        "   0.200   ringing",
        "hanging up",
        "   0.300   the call was canceled",
        "interrupted",
    ]


def while_placing(server: DialServer) -> Any:
    """Return what waits until the call is being placed, which it is until it is hung up."""
    is_asked = threading.Event()
    server.on_order = lambda server: (is_asked.set(), server.hung_up.wait(10))[0]

    def wait(_: object) -> str:
        assert is_asked.wait(10)
        return ""

    return wait


def test_a_call_is_withdrawn_that_is_just_being_placed(server: DialServer, state: Path) -> None:
    text = interrupted(server, state, signal.SIGINT, while_placing(server))
    assert server.hung_up.is_set()
    assert text.splitlines() == ["hanging up", "the call was withdrawn", "interrupted"]


@pytest.mark.parametrize(
    ("reply", "lines"),
    [
        (
            (202, {"ended": False, "text": "rings on for up to 60 s: Exotel's API cannot end it"}),
            ["warning: the call rings on for up to 60 s: Exotel's API cannot end it"],
        ),
        (
            (502, {"error": "Twilio cannot be reached", "hint": "look at its console", "kind": "unreachable"}),
            ["error: the call could not be hung up: Twilio cannot be reached", "hint:  look at its console"],
        ),
        (
            (500, b"<html>"),
            [
                "error: the call could not be hung up: the server at URL answers 500",
                f"hint:  it goes from {FROM} to {TO}",
            ],
        ),
    ],
)
def test_what_came_of_hanging_up_is_told_in_true_words(
    server: DialServer, state: Path, reply: Any, lines: list[str]
) -> None:
    server.hang_up_reply = reply
    text = interrupted(server, state, signal.SIGINT, while_placing(server)).replace(server.url, "URL")
    assert text.splitlines() == ["hanging up", *lines, "interrupted"]


def test_a_call_that_may_have_been_placed_when_it_was_withdrawn_is_told(server: DialServer, state: Path) -> None:
    wait = while_placing(server)
    content = {"error": "the call may have been placed: no answer", "hint": "look there", "kind": "uncertain"}
    server.when_withdrawn = 502, content
    text = interrupted(server, state, signal.SIGINT, wait)
    expected = ["hanging up", "error: the call may have been placed: no answer", "hint:  look there", "interrupted"]
    assert text.splitlines() == expected


def test_a_running_server_tells_the_limits_of_its_account(server: DialServer) -> None:
    server.limits = ["it calls verified numbers only"]
    assert lines_of(*CALL)[:2] == ["note: Twilio's trial account: it calls verified numbers only", "   0.100   queued"]
    assert not any("trial" in line for line in lines_of(*CALL, "-q"))


def test_a_second_ctrl_c_does_not_keep_it_from_hanging_up(server: DialServer, state: Path) -> None:
    may_answer = threading.Event()
    server.on_order = lambda server: server.tell("ringing")

    def hang_up(server: DialServer) -> None:
        # Not before the second signal was sent.
        assert may_answer.wait(10)
        server.end("canceled")

    server.on_hang_up = hang_up

    def wait(lines: Any) -> str:
        threading.Timer(0.4, may_answer.set).start()
        return "".join(lines.readline() for _ in range(2))

    text = interrupted(server, state, signal.SIGINT, wait, again=True)
    assert "   0.300   the call was canceled\n" in text


# A bot that is served for the call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AccountApi]:
    """A company's API, with the call of the server below."""
    with AccountApi(**{CALL_ID: True}) as api:
        use_own_accounts(monkeypatch, api.url)
        yield api


@pytest.fixture
def bot(api: AccountApi, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the server that is started, with a conversation."""
    monkeypatch.setattr("wsvoice.dial.served_bot.PROGRAM", (sys.executable, "-m", "tests.phone.dial_server"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PLAYED", "conversation")
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "secret")
    return monkeypatch


BOT_CALL = (*CALL, "--bot", "bot.py")


def test_a_bot_is_served_for_the_call(bot: Any) -> None:
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", "-v")
    assert lines[-1] == "completed: 34.2 s, ended by the other side, cost 0.0130 USD"
    # Behind a domain it listens where the settings say.
    expected = "['bot.py', '-t', 'twilio', '--proxy', 'bot.example.com', '--json', '--quiet', '--until-eof']"
    assert f"           | the bot logs {expected}" in lines


def test_a_tunnel_leads_to_any_port(bot: Any) -> None:
    lines = lines_of(*BOT_CALL, "-t", "twilio", "--tunnel", "ngrok", "-v")
    listening = "'--host', '127.0.0.1', '--port', '0', '--json', '--quiet', '--until-eof']"
    assert any(line.endswith(f"'--tunnel', 'ngrok', {listening}") for line in lines)
    reserved = lines_of(*BOT_CALL, "--tunnel", "ngrok", "--tunnel-domain", "bot.ngrok.app", "-v")
    assert any(line.endswith(f"'ngrok', '--tunnel-domain', 'bot.ngrok.app', {listening}") for line in reserved)
    command = lines_of(*BOT_CALL, "--tunnel", "tailscale funnel {port}", "-v")
    assert any("'tailscale funnel {port}'" in line for line in command)


def test_the_public_address_may_be_the_projects(bot: Any, tmp_path: Path) -> None:
    assert "bot logs" not in "".join(lines_of(*BOT_CALL, code=2))
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nproxy = "bot.example.com"\n')
    lines = lines_of(*BOT_CALL, "-v")
    # The server reads it itself.
    assert "           | the bot logs ['bot.py', '-t', 'twilio', '--json', '--quiet', '--until-eof']" in lines
    bot.setenv("WSVOICE_TUNNEL", "ngrok")
    assert any("'--tunnel', 'ngrok', '--host'" in line for line in lines_of(*BOT_CALL, "-v"))


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "error"),
    [
        ([], {}, 2, "a real call needs a public address, where the provider reaches the bot"),
        (["-t", "plivo", "-x", "a.io"], {}, 2, "Plivo's API needs PLIVO_AUTH_TOKEN"),
        (["-x", "a.io"], {"PLIVO_AUTH_TOKEN": "x"}, 2, "it is not clear which provider is meant"),
        (["-t", "asterisk", "-x", "a.io"], {}, 2, "wsvoice cannot place or end Asterisk's calls"),
    ],
)
def test_what_a_served_bot_lacks_is_told_before_it_starts(
    bot: Any, api: AccountApi, arguments: list[str], variables: dict[str, str], code: int, error: str
) -> None:
    for name, value in variables.items():
        bot.setenv(name, value)
    assert lines_of(*BOT_CALL, *arguments, code=code)[0].startswith(f"error: {error}")
    assert api.asked == []


def test_a_trial_accounts_limits_are_told_before_the_bot_is_served(bot: Any, api: AccountApi) -> None:
    api.limits = ["it calls verified numbers only"]
    note = "note: Twilio's trial account: it calls verified numbers only"
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", "-v")
    logs = [number for number, line in enumerate(lines) if "the bot logs" in line]
    assert lines.index(note) < min(logs)
    assert lines.count(note) == 1


def test_wrong_credentials_are_told_before_the_bot_is_served(bot: Any, api: AccountApi) -> None:
    api.failure = 401
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", "-v", code=1)
    assert "error: Twilio does not take the credentials (401)" in lines
    assert not any("the bot logs" in line or "queued" in line for line in lines)


def test_a_bot_that_cannot_be_served_is_told_with_its_last_words(bot: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys\nsys.exit('ImportError: no module named x')")
    bot.setattr("wsvoice.dial.served_bot.PROGRAM", (sys.executable, str(program)))
    assert lines_of(*BOT_CALL, "-x", "bot.example.com", code=1) == [
        "The last lines of the bot's log:",
        "           | ImportError: no module named x",
        "error: the server of bot.py ended with exit code 1",
    ]


UNCERTAIN = (
    "warning: nobody knows whether the call was placed; the bot is served for up to 70 s, to end it if it was",
    "   0.100   queued",
)


def test_a_bot_is_served_until_a_call_is_ended_that_may_have_been_placed(bot: Any) -> None:
    bot.setenv("PLAYED", "uncertain")
    ended = ["   0.200   the call was canceled", "failed: the call was canceled (no answer in time)"]
    assert lines_of(*BOT_CALL, "-x", "bot.example.com", code=1) == [*UNCERTAIN, *ended]


def test_a_bot_is_served_until_a_call_would_have_been_heard_of(bot: Any) -> None:
    bot.setenv("PLAYED", "never placed")
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", code=1)
    assert lines == [*UNCERTAIN, "error: the call may have been placed: no answer", "hint:  wait"]


def test_an_address_that_leads_elsewhere_is_refused_before_a_call_is_placed(bot: Any) -> None:
    with DialServer() as other:
        other.headers = {"X-Wsvoice-Server": "another one"}
        bot.setenv("PUBLIC_URL", other.url)
        error, hint = lines_of(*BOT_CALL, "-x", "bot.example.com", code=1)
        host = other.url.split("/")[2]
        assert error.startswith(f"error: {host} leads to another server of wsvoice's than the one at http://")
        assert re.fullmatch(r"hint:  let the proxy or tunnel lead to port [0-9]+", hint)


def test_an_address_that_cannot_be_seen_from_here_gets_a_warning(bot: Any) -> None:
    with DialServer() as other:
        url = other.url.rstrip("/")
    bot.setenv("PUBLIC_URL", url)
    doubt = f"it cannot be seen from here whether {url} leads to the bot: nothing listens at {url}/healthz"
    assert lines_of(*BOT_CALL, "-x", "bot.example.com")[:2] == [f"warning: {doubt}", "   0.100   queued"]


@pytest.mark.parametrize(
    ("code", "variables", "expected"),
    [
        (
            2,
            {"BANDWIDTH_WEBHOOK_PASSWORD": ""},
            [
                "error: on a public address Bandwidth's webhooks are checked, and BANDWIDTH_WEBHOOK_PASSWORD is not",
                "hint:  it is a password that you choose",
            ],
        ),
        (
            1,
            {"BANDWIDTH_WEBHOOK_PASSWORD": "x", "WSVOICE_PORT": "PORT"},
            [
                "error: cannot listen on localhost:PORT: ",
                "hint:  `wsvoice calls` shows it; stop it, or try WSVOICE_PORT=",
            ],
        ),
    ],
)
def test_why_a_server_does_not_start_is_told_in_its_own_words(
    server: DialServer, monkeypatch: Any, code: int, variables: dict[str, str], expected: list[str]
) -> None:
    port = server.url.split(":")[-1].strip("/")
    names = ("ACCOUNT_ID", "CLIENT_ID", "CLIENT_SECRET", "VOICE_APPLICATION_ID")
    environ = {
        **{f"BANDWIDTH_{name}": "x" for name in names},
        "BANDWIDTH_API_BASE_URL": "http://127.0.0.1:9",
        **variables,
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value.replace("PORT", port))
    echo = str(ROOT / "examples" / "echo.py")
    lines = lines_of(*CALL, "-t", "bandwidth", "--bot", echo, "-x", "bot.example.com", code=code)
    assert len(lines) == 2
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start.replace("PORT:", f"{port}:"))
        assert "--verify" not in line
        assert "--port" not in line


def test_a_bot_that_dies_in_the_call_has_its_call_ended_by_the_api(bot: Any, api: AccountApi) -> None:
    bot.setenv("PLAYED", "death")
    bot.setattr("wsvoice.phone.dialling.PAUSE_S", 0.02)
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", code=1)
    assert lines[:2] == ["   0.100   queued", "   0.200   ringing"]
    assert lines[-2:] == [
        "error: the server of bot.py ended with exit code 3",
        "hint:  the call was hung up by Twilio's API",
    ]
    assert f"DELETE /calls/{CALL_ID}" in api.asked
    assert api.calls == {CALL_ID: False}


def test_a_bot_that_failed_in_the_call_is_named(bot: Any, tmp_path: Path) -> None:
    bot.setenv("PLAYED", "crash")
    lines = lines_of(*BOT_CALL, "-x", "bot.example.com", code=1)
    assert lines[-1] == "failed: the bot crashed: KeyError: 'x' (bot.py:7)"
    report = json.loads(invoke(*BOT_CALL, "-x", "bot.example.com", "--json", code=1).stdout)
    assert report["causes"] == ["KeyError: 'x' (bot.py:7)"]


def test_an_interrupted_call_is_told_in_json_too(server: DialServer) -> None:
    def interrupt(server: DialServer) -> None:
        server.tell("answered")
        threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()

    server.on_order = interrupt
    server.on_hang_up = lambda server: server.end("completed", duration_s=1.5, ended_by="server")
    result = invoke(*CALL, "--json", code=130)
    report = json.loads(result.stdout)
    assert (report["verdict"], report["failure"], report["stage"]) == ("failed", "interrupted", "completed")
    assert result.stderr.splitlines()[-2:] == ["call: 1.5 s, ended by the server", "interrupted"]
