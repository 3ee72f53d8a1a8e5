"""An account at a company whose whole API is three requests, and that company; a real company's fake that listens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from time import time
from typing import Any, ClassVar
from urllib.parse import unquote

from tests.doctor.internet import answering, response
from tests.providers.fake_accounts import Api
from wsvoice.errors import ApiError
from wsvoice.providers.account import Account, AccountInfo, ApiResponse, CallState, Evidence, PhoneNumber, Steps
from wsvoice.providers.base import HttpRequest, WebhookRequest
from wsvoice.providers.twilio.company import TwilioCompany

TOKEN, SID, NUMBER = "0123456789abcdef0123456789abcdef", "AC" + "1" * 32, "+15550100002"
CREDENTIALS = {"TWILIO_ACCOUNT_SID": SID, "TWILIO_AUTH_TOKEN": TOKEN}


class SmallAccount(TwilioCompany, Account):
    """Twilio's account as far as the doctor asks."""

    needed: ClassVar[tuple[str, ...]] = ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True
    credentials_place: ClassVar[str] = "Account Info of the console"
    credential_names: ClassVar[tuple[str, ...]] = (*TwilioCompany.credential_names, "TWILIO_API_BASE_URL")
    codes: ClassVar[dict[str, tuple[str, str]]] = {
        "11200": ("the webhook gave no usable answer", "look at the server's log"),
        "31920": ("the WebSocket's upgrade was not answered with 101", "let the proxy pass upgrades on"),
        "31921": ("the stream's server closed the connection", "look at the server's log"),
    }

    def describe(self) -> Steps[AccountInfo]:
        said = self.read((yield self._get("account")), "the account")
        return AccountInfo(said["sid"], said["name"], said["trial"], tuple(said["limits"]))

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        response = yield self._get(f"numbers/{number}")
        if response.status == 404:
            raise ApiError("number", f"the account has no number {number}", hint=f"it has {NUMBER}")
        return PhoneNumber(number, **self.read(response, "the number"))

    def look_up(self, call_id: str) -> Steps[CallState]:
        response = yield self._get(f"calls/{call_id}")
        if response.status == 404:
            raise ApiError("not-found", f"the account has no call {call_id}", hint="check the id")
        return CallState(call_id, **self.read(response, "the call"))

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        said = self.read((yield self._get(f"calls/{call_id}/evidence")), "what was recorded")
        return [Evidence(**each) for each in said["evidence"]]

    def explain_code(self, code: str) -> tuple[str, str] | None:
        return self.codes.get(code)

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        error = super().refusal(response, what)
        error.hint = error.hint or "copy both from the console again"
        return error

    def _get(self, path: str) -> HttpRequest:
        pair = (self.credential("TWILIO_ACCOUNT_SID"), self.credential("TWILIO_AUTH_TOKEN"))
        return HttpRequest("GET", f"{self.credential('TWILIO_API_BASE_URL')}/{path}", basic_auth=pair)


@dataclass
class SmallCompany:
    """
    The company's side.

    Attributes:
        url: Where its API is.
        ahead_s: By how many seconds its clock is ahead.
        account: What it says of the account.
        numbers: What it says of each number.
        calls, evidence: What it says of each call.
        takes: Whether it takes the credentials.
    """

    url: str = ""
    ahead_s: float = 0.0
    takes: bool = True
    account: dict[str, Any] = field(default_factory=lambda: {"sid": SID, "name": "Test", "trial": False, "limits": []})
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    evidence: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def answer(self, head: str, body: bytes) -> bytes:
        path = unquote(head.split(" ")[1]).strip("/").split("/")
        date = formatdate(time() + self.ahead_s, usegmt=True)
        said: Any = None
        if "authorization: basic" in head.lower() and not self.takes:
            return response("401 Unauthorized", Date=date)
        if path == ["account"]:
            said = self.account
        elif path[0] == "numbers":
            said = self.numbers.get(path[1])
        elif path[0] == "calls" and len(path) == 3:
            said = {"evidence": self.evidence.get(path[1], [])}
        elif path[0] == "calls":
            said = self.calls.get(path[1])
        if said is None:
            return response("404 Not Found", Date=date)
        return response("200 OK", json.dumps(said).encode(), Date=date, Content_Type="application/json")


@contextmanager
def small_company() -> Iterator[SmallCompany]:
    """Yield the company, whose API listens while the context lasts."""
    company = SmallCompany()
    with answering(company.answer) as port:
        company.url = f"http://127.0.0.1:{port}"
        yield company


@contextmanager
def listening_api(api: Api) -> Iterator[str]:
    """Have a company's fake API listen on loopback while the context lasts; yield its address."""

    def answer(head: str, body: bytes) -> bytes:
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        found = api.answer(WebhookRequest(method, f"http://{headers['host']}{path}", headers, body))
        date = formatdate(usegmt=True)
        return response(f"{found.status} X", found.body.encode(), Date=date, Content_Type=found.media_type)

    with answering(answer) as port:
        yield f"http://127.0.0.1:{port}"
