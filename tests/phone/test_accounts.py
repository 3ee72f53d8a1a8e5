"""Whose account a call goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.phone.account_api import AccountApi, use_own_accounts
from wsvoice.errors import ApiError, ConfigError, UsageError
from wsvoice.phone.accounts import account_for_calls, account_of_call, hang_up, limits_of, looks_like_a_call
from wsvoice.providers import PROVIDERS, load_simulator

TWILIO = {"TWILIO_AUTH_TOKEN": "secret"}
PLIVO = {"PLIVO_AUTH_TOKEN": "secret"}
CALL_ID = "CA5ef8732a3c49700934481addd5ce1659"
UUID = "936da01f-9abd-4d9d-80c7-02af85c822a8"


@pytest.fixture(autouse=True)
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AccountApi]:
    with AccountApi(**{CALL_ID: True}) as api:
        use_own_accounts(monkeypatch, api.url)
        yield api


def test_the_account_that_is_named_or_the_only_one_with_credentials() -> None:
    assert account_for_calls("plivo", {**TWILIO, **PLIVO}).name == "plivo"
    assert account_for_calls(None, TWILIO).name == "twilio"


def test_whose_account_is_not_clear_is_told() -> None:
    with pytest.raises(UsageError, match="credentials of twilio and plivo are set"):
        account_for_calls(None, {**TWILIO, **PLIVO})
    with pytest.raises(UsageError, match="no credentials of any are set") as caught:
        account_for_calls(None, {})
    assert caught.value.hint == "name it, as in `-t twilio`"


def test_missing_credentials_are_told() -> None:
    with pytest.raises(ConfigError, match="Plivo's API needs PLIVO_AUTH_TOKEN"):
        account_for_calls("plivo", TWILIO)


def test_who_places_no_calls_by_an_api_is_told() -> None:
    with pytest.raises(UsageError, match="wsvoice cannot place or end Asterisk's calls"):
        account_for_calls("asterisk", {"ASTERISK_PASSWORD": "x"})


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "asterisk"])
def test_a_calls_id_tells_whose_it_is(provider: str) -> None:
    simulator = load_simulator(provider)
    call_id = simulator.new_ids(b"0123456789abcdef" * 4)[0]
    assert looks_like_a_call(call_id)
    # Of those who share a shape, the one whose credentials are set.
    name = simulator.credential_names[0]
    assert account_of_call(call_id, None, {name: "secret"}).name == provider


def test_an_id_of_one_provider_needs_no_t_even_if_another_has_credentials() -> None:
    assert account_of_call(CALL_ID, None, {**TWILIO, **PLIVO}).name == "twilio"
    with pytest.raises(ConfigError, match="Twilio's API needs TWILIO_AUTH_TOKEN"):
        account_of_call(CALL_ID, None, PLIVO)
    assert account_of_call("whatever", "plivo", PLIVO).name == "plivo"


@pytest.mark.parametrize(
    ("call_id", "told"),
    [
        (UUID, "it may be plivo, signalwire, vonage"),
        ("CA5ef", "no provider's ids look like it"),
    ],
)
def test_an_id_that_is_nobodys_or_somebody_elses_too_is_told(call_id: str, told: str) -> None:
    assert not looks_like_a_call("CA5ef")
    with pytest.raises(UsageError, match=told):
        account_of_call(call_id, None, TWILIO)


@pytest.mark.parametrize("call_id", ["", " ", ".", ".."])
def test_what_is_no_id_at_all_is_misuse_even_of_a_named_provider(call_id: str) -> None:
    with pytest.raises(UsageError, match="is no call's id"):
        account_of_call(call_id, "twilio", TWILIO)


def test_a_call_is_hung_up_once(api: AccountApi) -> None:
    account = account_for_calls("twilio", TWILIO)
    assert asyncio.run(hang_up(account, CALL_ID)) is True
    assert asyncio.run(hang_up(account, CALL_ID)) is False
    with pytest.raises(ApiError, match="Twilio knows no call CA1"):
        asyncio.run(hang_up(account, "CA1"))


def test_a_trial_accounts_limits(api: AccountApi) -> None:
    account = account_for_calls("twilio", TWILIO)
    assert asyncio.run(limits_of(account)) == []
    api.limits = ["it calls verified numbers only"]
    assert asyncio.run(limits_of(account)) == ["it calls verified numbers only"]
    api.limits = []
    assert asyncio.run(limits_of(account)) == ["it has limits, which the company's console tells"]
    api.failure = 500
    assert asyncio.run(limits_of(account)) == []
    api.failure = 401
    with pytest.raises(ApiError, match="Twilio does not take the credentials"):
        asyncio.run(limits_of(account))
