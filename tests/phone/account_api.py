"""A company's REST API of the tests' own, and an account that speaks it: any company's, for what is common to all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from tests.phone.json_server import JsonServer, Reply
from wsvoice.call import Call
from wsvoice.errors import ApiError
from wsvoice.providers import PROVIDERS, load_company
from wsvoice.providers.account import Account, AccountInfo, Steps
from wsvoice.providers.base import HttpRequest


class AccountApi(JsonServer):
    """
    Knows calls, and whether the account is one for trials.

    Attributes:
        calls: Each call's id, and whether it goes on.
        limits: What a trial account cannot do; ``None`` for an account of the usual kind.
        failure: A status for every request; 0 for none.
    """

    def __init__(self, **calls: bool) -> None:
        super().__init__()
        self.calls = calls
        self.limits: list[str] | None = None
        self.failure = 0

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Reply:
        if self.failure:
            return self.failure, {}
        if path == "/account":
            return 200, {"trial": self.limits is not None, "limits": self.limits or []}
        call_id = path.rpartition("/")[2]
        if call_id not in self.calls:
            return 404, {}
        goes_on, self.calls[call_id] = self.calls[call_id], False
        return (200, {}) if goes_on else (422, {})


class OwnAccount(Account):
    """What the accounts of all companies have in common, with the API above."""

    has_calls: ClassVar[bool] = True
    credentials_place: ClassVar[str] = "the console's first page"
    address: ClassVar[str]

    def describe(self) -> Steps[AccountInfo]:
        """Return the account."""
        content = self.read((yield HttpRequest("GET", f"{self.address}account")), "the account")
        return AccountInfo("AC1", is_trial=content["trial"], limits=content["limits"])

    def hang_up(self, call: Call) -> Steps[bool]:
        """End a call."""
        response = yield HttpRequest("DELETE", f"{self.address}calls/{call.call_id}")
        if response.status == 404:
            raise ApiError("not-found", f"{self.title} knows no call {call.call_id}")
        if response.status == 422:
            raise ApiError("ended", "the call is over")
        self.read(response, "to hang up")
        return True


def use_own_accounts(monkeypatch: pytest.MonkeyPatch, address: str, *, without: str = "asterisk") -> None:
    """Let every provider's account but one's be of this API; each needs the first of the provider's credentials."""

    def load(name: str, credentials: Mapping[str, str] | None = None) -> Account:
        if name == without:
            raise ModuleNotFoundError("no module", name=f"wsvoice.providers.{name}.account")
        company = type(load_company(name))
        attributes = {"address": address, "needed": company.credential_names[:1]}
        return type(f"{PROVIDERS[name]}Account", (company, OwnAccount), attributes)(credentials or {})

    monkeypatch.setattr("wsvoice.phone.accounts.load_account", load)
