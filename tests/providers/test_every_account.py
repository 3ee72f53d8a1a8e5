"""What the account of every provider must do, whatever its API looks like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from wsvoice.call import Call
from wsvoice.errors import ApiError, ConfigError
from wsvoice.providers import PROVIDERS, load_account, load_simulator
from wsvoice.providers.account import Account, ApiResponse, PlacedCall, Steps
from wsvoice.providers.base import HttpRequest

SEED = bytes(range(32))
#: What would name a list, or something else altogether, as the last part of a path.
NO_IDS = ("", ".", "..")
OPERATIONS: dict[str, Callable[[Account, Call], Steps[Any]]] = {
    "cancel": lambda account, call: account.cancel(PlacedCall(call.call_id, call.call_id, "AC1")),
    "look_up": lambda account, call: account.look_up(call.call_id),
    "hang_up": lambda account, call: account.hang_up(call),
    "transfer": lambda account, call: account.transfer(call, "+15557654321"),
    "send_digits": lambda account, call: account.send_digits(call, "1"),
    "evidence": lambda account, call: account.evidence(call.call_id),
}
#: What has to be asked before the call's own URL is known: a token, and what TeXML calls the account.
BEFORE = {
    "https://api.bandwidth.com/api/v1/oauth2/token": b'{"access_token": "abc"}',
    "https://api.telnyx.com/v2/whoami": b'{"data": {"organization_id": "org"}}',
}


def account_of(name: str) -> Account:
    _, credentials = load_simulator(name).test_credentials(SEED)
    needed = dict.fromkeys(load_account(name, {}).needed, "abc")
    account = load_account(name, {**needed, **credentials})
    account.transfer_url = "https://bot.example.com/transfer"
    return account


def asked_about_a_call(steps: Steps[Any]) -> list[HttpRequest]:
    """Carry out `steps` as far as they get, and return what they asked about a call."""
    asked = []
    try:
        request = next(steps)
        while True:
            before = BEFORE.get(request.url)
            if before is None:
                asked.append(request)
            request = steps.send(ApiResponse(200, {}, before or b"{}"))
    except StopIteration:
        return asked
    except ApiError as error:
        if asked or error.kind not in ("refused", "unsupported", "not-found"):
            raise
        return asked


@pytest.mark.parametrize("control", ["document", "api"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", PROVIDERS)
def test_nothing_is_asked_about_what_is_no_calls_id(name: str, operation: str, control: Any) -> None:
    for call_id in NO_IDS:
        account = account_of(name)
        if name == "telnyx" and operation == "cancel" and not call_id:
            # It looks for a call that has no name yet.
            continue
        call = Call(name, call_id, control=control)
        assert asked_about_a_call(OPERATIONS[operation](account, call)) == []


@pytest.mark.parametrize("name", [name for name in PROVIDERS if load_account(name, {}).has_calls])
def test_the_same_operations_ask_about_a_call_that_has_an_id(name: str) -> None:
    steps = account_of(name).look_up("a/../b?c")
    request = next(steps)
    while request.url in BEFORE:
        request = steps.send(ApiResponse(200, {}, BEFORE[request.url]))
    assert "a%2F..%2Fb%3Fc" in request.url


@pytest.mark.parametrize("name", [name for name in PROVIDERS if load_account(name, {}).has_calls])
def test_an_address_of_the_api_that_is_none_is_told(name: str) -> None:
    account = account_of(name)
    account.check_credentials()
    [variable] = [each for each in account.credential_names if each.endswith("_BASE_URL")]
    for written in ("not a url", "api.example.com", "ftp://api.example.com", "https://", "http://[::1"):
        account.credentials[variable] = written
        with pytest.raises(ConfigError, match=f"{variable} is not a URL: '") as caught:
            account.check_credentials()
        assert "https://" in (caught.value.hint or "")
    account.credentials[variable] = "http://127.0.0.1:8000/v1"
    account.check_credentials()


def test_missing_credentials_are_listed_as_in_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match="needs BANDWIDTH_ACCOUNT_ID, BANDWIDTH_CLIENT_ID and BANDWIDTH_CLIENT_SECRET"
    ):
        load_account("bandwidth", {}).check_credentials()
    with pytest.raises(ConfigError, match=r"needs TELNYX_API_KEY$"):
        load_account("telnyx", {}).check_credentials()
