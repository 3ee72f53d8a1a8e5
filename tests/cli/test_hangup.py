"""``wsvoice hangup``: whose call is ended, what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.invoke import invoke
from tests.phone.account_api import AccountApi, use_own_accounts
from wsvoice.providers import load_account

CALL_ID = "CA5ef8732a3c49700934481addd5ce1659"
UUID = "936da01f-9abd-4d9d-80c7-02af85c822a8"

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture(autouse=True)
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AccountApi]:
    with AccountApi(**{CALL_ID: True, UUID: True}) as api:
        use_own_accounts(monkeypatch, api.url)
        yield api


@pytest.fixture(autouse=True)
def credentials(clean_process: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "secret")


def test_a_call_is_ended_and_a_second_time_that_is_said(api: AccountApi) -> None:
    result = invoke("hangup", f" {CALL_ID} ")
    assert (result.stdout, result.stderr) == ("", f"{CALL_ID} is hung up\n")
    assert api.calls[CALL_ID] is False
    assert invoke("hangup", CALL_ID).stderr == f"{CALL_ID} had ended already\n"
    assert api.asked == [f"DELETE /calls/{CALL_ID}"] * 2


def test_json_is_one_object() -> None:
    shown = [json.loads(invoke("hangup", CALL_ID, "--json").stdout) for _ in range(2)]
    assert shown[0] == {"call_id": CALL_ID, "provider": "twilio", "hung_up": True}
    assert shown[1] == {"call_id": CALL_ID, "provider": "twilio", "hung_up": False}


def test_an_id_that_may_be_anybodys_needs_a_provider_or_one_with_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, hint = invoke("hangup", UUID, code=2).stderr.splitlines()
    assert error == f"error: it is not clear whose call '{UUID}' is: it may be plivo, signalwire, vonage"
    assert hint == "hint:  name the provider, as in `-t twilio`"
    (tmp_path / "pass.env").write_text("PLIVO_AUTH_TOKEN=abc\n")
    assert invoke("hangup", UUID, "--env-file", "pass.env", "--json").stdout.count('"plivo"') == 1
    monkeypatch.setenv("VONAGE_SIGNATURE_SECRET", "abc")
    assert json.loads(invoke("hangup", UUID, "-t", "vonage", "--json").stdout)["provider"] == "vonage"
    monkeypatch.setenv("PLIVO_AUTH_TOKEN", "abc")
    assert "not clear" in invoke("hangup", UUID, code=2).stderr


def test_a_call_that_nobody_knows_is_told(api: AccountApi) -> None:
    other = "CA" + 32 * "0"
    assert invoke("hangup", other, code=1).stderr.splitlines() == [
        f"error: Twilio knows no call {other}",
        "hint:  look at the id, and whether the call is Twilio's and of this account",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ([], 2, "missing argument 'CALL_ID'"),
        ([" ", "-t", "twilio"], 2, "'' is no call's id"),
        (["..", "-t", "plivo"], 2, "'..' is no call's id"),
        (["CA1"], 2, "it is not clear whose call 'CA1' is: no provider's ids look like it"),
        ([CALL_ID, "-t", "pigeon"], 2, "-t takes twilio, "),
        ([CALL_ID, "-t", "websocket"], 2, "-t takes twilio, "),
        ([CALL_ID, "-t", "plivo"], 2, "Plivo's API needs PLIVO_AUTH_TOKEN"),
        ([CALL_ID, "-t", "asterisk"], 2, "wsvoice cannot place or end Asterisk's calls"),
        ([CALL_ID, CALL_ID], 2, "got unexpected extra argument"),
    ],
)
def test_what_cannot_be_is_misuse(api: AccountApi, arguments: list[str], code: int, error: str) -> None:
    assert invoke("hangup", *arguments, code=code).stderr.startswith(f"error: {error}")
    assert api.asked == []


def test_what_the_company_refuses_is_one_line(api: AccountApi) -> None:
    api.failure = 403
    assert invoke("hangup", CALL_ID, code=1).stderr == "error: Twilio does not take the credentials (403)\n"
    api.close()
    assert invoke("hangup", CALL_ID, code=1).stderr.startswith("error: the API at 127.0.0.1:")


def test_who_has_no_account_is_told_what_ends_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsvoice.phone.accounts.load_account", load_account)
    error, hint = invoke("hangup", "1700000000.42", "-t", "asterisk", code=1).stderr.splitlines()
    assert error == "error: wsvoice does not end call 1700000000.42 through Asterisk"
    assert "channel request hangup" in hint
