"""``wsvoice doctor``: what it prints, and how it exits."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.cli.invoke import GOOD, invoke
from tests.doctor.company import CREDENTIALS, NUMBER, SmallAccount, SmallCompany, small_company

pytestmark = pytest.mark.usefixtures("clean_process")

CALL = "CA" + "0" * 32


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SmallCompany]:
    """Replace Twilio's account by that of a small company, whose credentials are set."""
    with small_company() as each:

        class TwilioAccount(SmallAccount):
            usual_url = each.url

        module = ModuleType("wsvoice.providers.twilio.account")
        module.TwilioAccount = TwilioAccount  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WSVOICE_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.delenv("VIRTUAL_ENV", raising=False)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setenv("WSVOICE_PORT", str(port))
        yield each


def test_nothing_is_wrong(company: SmallCompany) -> None:
    company.numbers[NUMBER] = {"points_at": "https://bot.example.com/"}
    result = invoke("doctor", "-t", "twilio", "--number", "+1 (555) 010-0002", "--no-call")
    lines = result.stderr.splitlines()
    assert lines[-1] == "nothing is wrong"
    assert result.stdout == ""
    assert "ok       twilio account     Twilio knows the account AC" in result.stderr
    assert "ok       twilio number      calls to +15550100002 go to https://bot.example.com/" in result.stderr
    assert not any(line.startswith(("warn", "fail")) for line in lines)


def test_a_fault_has_its_hint_below_and_ends_with_1(company: SmallCompany) -> None:
    company.takes = False
    result = invoke("doctor", "-q", "--no-call", code=1)
    assert result.stderr.splitlines() == [
        "fail     twilio account     Twilio does not take the credentials (401)",
        "                      hint: copy both from the console again",
        "1 of 12 checks failed",
    ]


def test_a_warning_does_not_fail(company: SmallCompany) -> None:
    company.account["trial"] = True
    result = invoke("doctor", "-q", "--no-call")
    assert "warn     twilio account" in result.stderr
    assert result.stderr.splitlines()[-1] == "1 of 12 checks warned"


def test_json(company: SmallCompany) -> None:
    company.takes = False
    result = invoke("doctor", "--json", "-q", "--no-call", code=1)
    report = json.loads(result.stdout)
    assert report["verdict"] == "failed"
    [failed] = [each for each in report["checks"] if each["level"] == "fail"]
    assert failed["name"] == "twilio account"
    assert failed["results"][0]["hint"] == "copy both from the console again"


def test_settings_that_cannot_be_used_do_not_keep_it_from_looking(company: SmallCompany, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\nmax-calls = "many"\n')
    result = invoke("doctor", "--no-call", code=1)
    assert "fail     settings           pyproject.toml [tool.wsvoice] max-calls" in result.stderr
    assert "ok       python" in result.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("TWILIO_AUTHTOKEN=x\n", "TWILIO_AUTHTOKEN in .env is not read: did you mean TWILIO_AUTH_TOKEN?"),
        ("TELNYX_API_KEY=your-key-here\n", "TELNYX_API_KEY looks like a placeholder"),
        ("no equals sign\n", ".env, line 1, is not read: write NAME=value"),
    ],
)
def test_what_is_odd_in_the_settings(
    company: SmallCompany, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, said: str
) -> None:
    monkeypatch.delenv("TWILIO_AUTH_TOKEN")
    (tmp_path / ".env").write_text(written)
    result = invoke("doctor", "-t", "exotel", "--no-call", "-q")
    assert f"warn     settings           {said}" in result.stderr


def test_an_example_that_nobody_has_copied(company: SmallCompany, tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("TWILIO_AUTH_TOKEN=\n")
    result = invoke("doctor", "--no-call", "-q")
    assert "there is no .env, and .env.example says what belongs into it" in result.stderr
    assert "hint: `cp .env.example .env`" in result.stderr


def test_a_bot_is_looked_at_if_it_is_there(company: SmallCompany, tmp_path: Path) -> None:
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
def test_misuse(company: SmallCompany, arguments: list[str], message: str) -> None:
    assert message in invoke("doctor", *arguments, code=2).stderr


# Calls


def test_a_call_that_went_wrong(company: SmallCompany) -> None:
    company.calls[CALL] = {"stage": "completed", "duration_s": 3.0, "price": "0.0085 USD", "to_number": NUMBER}
    company.evidence[CALL] = [
        {"what": "POST https://bot.example.com/ was answered 200", "when": "2026-11-22T10:02:10Z"},
        {"what": "the stream was never opened", "when": "2026-11-22T10:02:11Z", "code": "31920", "failed": True},
    ]
    assert invoke("doctor", CALL).stderr.splitlines() == [
        f"Twilio's call {CALL}: completed, 3 s long, from somebody to {NUMBER}, 0.0085 USD",
        "  10:02:10  POST https://bot.example.com/ was answered 200",
        "  10:02:11  the stream was never opened (the WebSocket's upgrade was not answered with 101)",
        "why: 10:02:11: Twilio 31920: the stream was never opened (the WebSocket's upgrade was not answered with 101)",
        "hint: let the proxy pass upgrades on",
    ]


def test_a_call_as_json(company: SmallCompany) -> None:
    company.calls[CALL] = {"stage": "busy"}
    story = json.loads(invoke("doctor", CALL, "--json").stdout)
    assert story["state"]["stage"] == "busy"
    assert story["why"] == [{"message": "nobody spoke: the line was busy", "hint": "try again later"}]


def test_a_call_of_somebody_elses(company: SmallCompany) -> None:
    result = invoke("doctor", CALL, code=1)
    assert f"error: the account has no call {CALL}" in result.stderr
    assert "hint:  check the id" in result.stderr


def test_a_call_of_which_nothing_went_wrong(company: SmallCompany) -> None:
    company.calls[CALL] = {"stage": "completed", "duration_s": 30.0}
    assert "nothing that was recorded of it went wrong" in invoke("doctor", CALL).stderr


# Codes


def test_a_code(company: SmallCompany) -> None:
    assert invoke("doctor", "--code", "31920").stderr.splitlines() == [
        "Twilio 31920: the WebSocket's upgrade was not answered with 101",
        "hint: let the proxy pass upgrades on",
        "https://www.twilio.com/docs/api/errors/31920",
    ]


def test_a_code_as_json(company: SmallCompany) -> None:
    told = json.loads(invoke("doctor", "--code", "31920", "-t", "twilio", "--json").stdout)
    assert [each["provider"] for each in told["explained"]] == ["twilio"]
    assert told["explained"][0]["page"] == "https://www.twilio.com/docs/api/errors/31920"


def test_a_code_that_is_not_known(company: SmallCompany) -> None:
    result = invoke("doctor", "--code", "31919", "-t", "twilio", code=1)
    assert result.stderr.splitlines() == [
        "error: 31919 is no error code of Twilio's that wsvoice knows",
        "near it: Twilio 31920: the WebSocket's upgrade was not answered with 101",
        "near it: Twilio 31921: the stream's server closed the connection",
        "Twilio: https://www.twilio.com/docs/api/errors/31919",
    ]


def test_a_code_of_nobodys_leads_to_every_page(company: SmallCompany) -> None:
    result = invoke("doctor", "--code", "nonsense", code=1)
    titles = {line.partition(": ")[0] for line in result.stderr.splitlines()[1:]}
    assert titles >= {"Twilio", "Telnyx", "Plivo", "SignalWire", "Vonage"}


def test_a_word_that_is_no_code(company: SmallCompany) -> None:
    result = invoke("doctor", "--code", "sip:oops", "-t", "twilio", code=1)
    assert "near it" not in result.stderr


@pytest.mark.parametrize("name", ["check", "diagnose", "docter"])
def test_other_names_lead_here(name: str) -> None:
    assert "did you mean `wsvoice doctor" in invoke(name, code=2).stderr
