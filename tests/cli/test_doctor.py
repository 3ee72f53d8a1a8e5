"""``wsvoice doctor``: what it prints, and how it exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.invoke import GOOD, invoke
from tests.doctor.company import CREDENTIALS, NUMBER, listening_api
from tests.doctor.internet import free_port
from tests.environment import clean_environ
from tests.providers.fake_accounts import Api
from wsvoice.providers import load_account
from wsvoice.providers.account import OutboundCall
from wsvoice.providers.base import Callback
from wsvoice.providers.fake_account import FakeCall

pytestmark = pytest.mark.usefixtures("clean_process")

CALL = "CA" + "0" * 32


@pytest.fixture
def twilio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    """Twilio's API on loopback, with an account whose credentials are set."""
    api = Api("twilio", CREDENTIALS)

    with listening_api(api) as url:
        monkeypatch.setenv("TWILIO_API_BASE_URL", url)
        monkeypatch.setenv("WSVOICE_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("WSVOICE_PORT", str(free_port()))
        monkeypatch.delenv("VIRTUAL_ENV", raising=False)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        yield api


@pytest.fixture
def wrong_credentials(twilio: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set another token than the account's."""
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "f" * 32)


def place(twilio: Api) -> FakeCall:
    """Place a call, as somebody did whose call had no audio."""
    urls = ("https://bot.example.com/", "", "https://bot.example.com/status", "")
    twilio.account.add_number("+15550100001")
    placed = twilio.run(load_account("twilio", CREDENTIALS).dial(OutboundCall(NUMBER, "+15550100001", *urls)))
    found: FakeCall = twilio.account.calls[placed.call_id]
    return found


def test_nothing_is_wrong(twilio: Api) -> None:
    twilio.account.add_number(NUMBER, VoiceUrl="https://bot.example.com/")
    result = invoke("doctor", "-t", "twilio", "--number", "+1 (555) 010-0002", "--no-call")
    lines = result.stderr.splitlines()
    assert lines[-1] == "nothing is wrong"
    assert result.stdout == ""
    assert "ok       twilio account     Twilio knows the account AC" in result.stderr
    assert "ok       twilio number      calls to +15550100002 go to https://bot.example.com/" in result.stderr
    assert not any(line.startswith(("warn", "fail")) for line in lines)


def test_a_fault_has_its_hint_below_and_ends_with_1(wrong_credentials: None) -> None:
    fault, hint, verdict = invoke("doctor", "-q", "--no-call", code=1).stderr.splitlines()
    assert fault.startswith("fail     twilio account     Twilio refuses ")
    assert fault.endswith(": the credentials are not the account's (20003)")
    assert hint.startswith("                      hint: ")
    assert verdict == "1 of 12 checks failed"


def test_a_warning_does_not_fail(twilio: Api) -> None:
    twilio.account.is_trial = True
    lines = invoke("doctor", "-q", "--no-call").stderr.splitlines()
    assert lines[0].startswith("warn     twilio account     Twilio knows the account AC")
    assert "it is a trial account" in lines[0]
    assert any("limit of the trial account:" in line for line in lines)
    assert lines[-1] == "1 of 12 checks warned"


def test_a_number_that_is_not_the_accounts_names_those_that_are(twilio: Api) -> None:
    twilio.account.add_number("+15550100009")
    result = invoke("doctor", "--number", NUMBER, "--no-call", "-q", code=1)
    assert "fail     twilio number" in result.stderr
    assert "hint: the account has +15550100009" in result.stderr


def test_json(wrong_credentials: None) -> None:
    result = invoke("doctor", "--json", "-q", "--no-call", code=1)
    report = json.loads(result.stdout)
    assert report["verdict"] == "failed"
    [failed] = [each for each in report["checks"] if each["level"] == "fail"]
    assert failed["name"] == "twilio account"
    assert "the credentials are not the account's" in failed["results"][0]["message"]


def test_settings_that_cannot_be_used_do_not_keep_it_from_looking(twilio: Api, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nmax-calls = "many"\n')
    result = invoke("doctor", "--no-call", code=1)
    assert "fail     settings           pyproject.toml [tool.wsvoice] max-calls" in result.stderr
    assert "ok       python" in result.stderr


def test_bad_settings_leave_the_others_as_they_are(twilio: Api, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nmax-calls = "many"\nbogus = 1\n')
    own = "TELNYX_API_KEY=KEY0\nTELNYX_BASE_URL=http://127.0.0.1:9\n"
    (tmp_path / ".env").write_text(f"WSVOICE_VERIFY=perhaps\n{own}")
    report = json.loads(invoke("doctor", "--no-call", "--json", code=1).stdout)
    found = {each["name"]: each for each in report["checks"]}
    assert {"twilio account", "telnyx account"} <= found.keys()
    faults = [each["message"] for each in found["settings"]["results"] if each["level"] == "fail"]
    assert [fault.partition(" takes ")[0].partition(" has ")[0] for fault in faults] == [
        "pyproject.toml [tool.wsvoice]",
        "pyproject.toml [tool.wsvoice] max-calls",
        "WSVOICE_VERIFY in .env",
    ]


@pytest.mark.parametrize("variable", ["TWILIO_FROM_NUMBER", "TWILIO_PHONE_NUMBER"])
def test_the_number_is_that_which_dial_calls_from(twilio: Api, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    twilio.account.add_number(NUMBER, VoiceUrl="https://bot.example.com/")
    monkeypatch.setenv(variable, f"{NUMBER[:5]} {NUMBER[5:]}")
    assert f"calls to {NUMBER} go to https://bot.example.com/" in invoke("doctor", "--no-call").stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("TWILIO_AUTHTOKEN=x\n", "TWILIO_AUTHTOKEN in .env is not read: did you mean TWILIO_AUTH_TOKEN?"),
        ("TELNYX_API_KEY=your-key-here\n", "TELNYX_API_KEY looks like a placeholder"),
        ("no equals sign\n", ".env, line 1, is not read: write NAME=value"),
    ],
)
def test_what_is_odd_in_the_settings(
    twilio: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, said: str
) -> None:
    monkeypatch.delenv("TWILIO_AUTH_TOKEN")
    (tmp_path / ".env").write_text(written)
    result = invoke("doctor", "-t", "exotel", "--no-call", "-q")
    assert f"warn     settings           {said}" in result.stderr


def test_a_providers_setting_that_cannot_be_used(twilio: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TELNYX_API_KEY", "KEY0")
    monkeypatch.setenv("TELNYX_L16_BYTE_ORDER", "middle")
    lines = invoke("doctor", "-q", "--no-call", code=1).stderr.splitlines()
    assert lines[0] == "fail     telnyx account     TELNYX_L16_BYTE_ORDER is 'middle', which is not supported"


def test_a_number_needs_its_provider_where_there_are_several(twilio: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    twilio.account.add_number(NUMBER, VoiceUrl="https://bot.example.com/")
    assert "twilio number" in invoke("doctor", "--number", NUMBER, "--no-call").stderr
    monkeypatch.setenv("EXOTEL_STREAM_USER", "bot")
    lines = invoke("doctor", "-q", "--number", NUMBER, "--no-call", code=1).stderr.splitlines()
    assert f"fail     number             it is not clear whose number {NUMBER} is" in lines


def test_an_example_that_nobody_has_copied(twilio: Api, tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("TWILIO_AUTH_TOKEN=\n")
    result = invoke("doctor", "--no-call", "-q")
    assert "there is no .env, and .env.example says what belongs into it" in result.stderr
    assert "hint: `cp .env.example .env`" in result.stderr


def test_a_bot_is_looked_at_if_it_is_there(twilio: Api, tmp_path: Path) -> None:
    assert " bot " not in invoke("doctor", "--no-call").stderr
    result = invoke("doctor", "missing.py", "--no-call", code=1)
    assert "fail     bot                there is no file missing.py" in result.stderr
    (tmp_path / "bot.py").write_text(GOOD)
    assert "ok       bot                bot.py loads in" in invoke("doctor", "--no-call").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "high"], "--port"),
        (["-t", "twillio"], "-t takes"),
        (["--number", "5551234"], "--number takes a phone number with its country code"),
        (["-x", "bot.example.com", "--tunnel", "ngrok"], "exclude each other"),
        (["--env-file", "nothing.env"], "names a file that does not exist"),
    ],
)
def test_misuse(twilio: Api, arguments: list[str], message: str) -> None:
    assert message in invoke("doctor", *arguments, code=2).stderr


# Calls


def test_a_call_that_went_wrong(twilio: Api) -> None:
    call = place(twilio)
    call_id = call.call.call_id
    twilio.account.add_event(call_id, Callback("https://bot.example.com/"), 200)
    twilio.account.add_error(call_id, 31920, "Stream - WebSocket - Handshake Error")
    twilio.account.end(call)
    lines = invoke("doctor", call_id).stderr.splitlines()
    assert lines[0].startswith(f"Twilio's call {call_id}: completed")
    assert any("POST https://bot.example.com/ was answered 200" in line for line in lines[1:])
    [why] = [line for line in lines if line.startswith("why: ")]
    assert "31920: the stream's address answered, but not with a WebSocket" in why
    assert lines[-1].startswith("hint: look at what `wsvoice run` logged")


def test_a_call_as_json(twilio: Api) -> None:
    call = place(twilio)
    twilio.account.end(call, "busy")
    story = json.loads(invoke("doctor", call.call.call_id, "--json").stdout)
    assert story["state"]["stage"] == "busy"
    assert story["why"][0]["message"].startswith("nobody spoke: the line was busy")


def test_a_call_of_somebody_elses(twilio: Api) -> None:
    result = invoke("doctor", CALL, code=1)
    assert result.stderr.startswith("error: ")
    assert "hint:  " in result.stderr


def test_a_call_of_which_nothing_went_wrong(twilio: Api) -> None:
    call = place(twilio)
    call.duration_s = 30.0
    twilio.account.end(call)
    assert "nothing that was recorded of it went wrong" in invoke("doctor", call.call.call_id).stderr


# Codes


def test_a_code() -> None:
    assert invoke("doctor", "--code", "31920").stderr.splitlines() == [
        "Twilio 31920: the stream's address answered, but not with a WebSocket",
        "hint: look at what `wsvoice run` logged then: 403 is the token or the signature; if it logged nothing, the"
        " proxy or tunnel passes no WebSockets",
        "https://www.twilio.com/docs/api/errors/31920",
    ]


def test_a_code_that_several_know() -> None:
    told = json.loads(invoke("doctor", "--code", "11200", "--json").stdout)
    assert [each["provider"] for each in told["explained"]] == ["twilio", "signalwire"]
    assert told["explained"][0]["page"] == "https://www.twilio.com/docs/api/errors/11200"
    told = json.loads(invoke("doctor", "--code", "11200", "-t", "signalwire", "--json").stdout)
    assert [each["provider"] for each in told["explained"]] == ["signalwire"]


def test_a_code_that_is_not_known() -> None:
    lines = invoke("doctor", "--code", "31919", "-t", "twilio", code=1).stderr.splitlines()
    assert lines[0] == "error: 31919 is no error code of Twilio's that wsvoice knows"
    assert lines[1].startswith("near it: Twilio 31920: the stream's address answered")
    assert lines[-1] == "Twilio: https://www.twilio.com/docs/api/errors/31919"


def test_a_code_of_nobodys_leads_to_every_page() -> None:
    result = invoke("doctor", "--code", "nonsense", code=1)
    titles = {line.partition(": ")[0] for line in result.stderr.splitlines()[1:]}
    assert titles >= {"Twilio", "Telnyx", "Plivo", "SignalWire", "Vonage"}
    assert "near it" not in result.stderr


@pytest.mark.parametrize("name", ["check", "diagnose", "docter"])
def test_other_names_lead_here(name: str) -> None:
    assert "did you mean `wsvoice doctor" in invoke(name, code=2).stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_the_bot_too(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text(
        "import os, pathlib, time\npathlib.Path('pid.new').write_text(str(os.getpid()))\n"
        "os.rename('pid.new', 'pid')\ntime.sleep(60)\nasync def bot(runner_args): ...\n"
    )
    command = [sys.executable, "-m", "wsvoice", "doctor", "--no-call", "--port", str(free_port())]
    with subprocess.Popen(command, cwd=tmp_path, env=clean_environ(), stderr=subprocess.PIPE, text=True) as doctor:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists():
            assert time.monotonic() < deadline, "the bot was not loaded"
            time.sleep(0.02)
        doctor.send_signal(signal.SIGINT)
        _, printed = doctor.communicate(timeout=20)
    assert doctor.returncode == 130
    assert printed.splitlines()[-1] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
