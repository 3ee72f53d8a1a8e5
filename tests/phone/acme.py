"""
A small telephone company with a REST API of its own, for what is the same with every provider.

A number points at an application, and an application at a webhook, so that pointing a number takes two changes. The
company goes by Twilio's name, because a provider's name has to be a known one; ``python -m tests.phone.acme`` is
``wsvoice`` with its account in the place of Twilio's.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from wsvoice.errors import ApiError
from wsvoice.providers.account import (
    Account,
    AccountInfo,
    ApiResponse,
    PhoneNumber,
    Restored,
    Saved,
    ServerAddresses,
    Steps,
)
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.twilio.company import TwilioCompany

NUMBER = "+15551234567"
OLD_URL = "https://old.example/voice"
CREDENTIALS = {"TWILIO_ACCOUNT_SID": "AC1", "TWILIO_AUTH_TOKEN": "secret"}
#: Where :class:`AcmeAccount` finds the API.
API_VARIABLE = "ACME_API"


class AcmeAccount(TwilioCompany, Account):
    """The account, as wsvoice uses it."""

    needed: ClassVar[tuple[str, ...]] = ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")
    credentials_place: ClassVar[str] = "on the first page of Acme's console"
    has_numbers: ClassVar[bool] = True

    def _request(self, method: str, path: str, content: dict[str, str] | None = None) -> HttpRequest:
        body = b"" if content is None else json.dumps(content).encode()
        login = (self.credential("TWILIO_ACCOUNT_SID"), self.credential("TWILIO_AUTH_TOKEN"))
        return HttpRequest(method, f"{os.environ[API_VARIABLE]}{path}", body=body, basic_auth=login)

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        if response.status == 404:
            return ApiError("number", f"the account has no {what}")
        return super().refusal(response, what)

    def describe(self) -> Steps[AccountInfo]:
        said = self.read((yield self._request("GET", "/account")), "the account")
        return AccountInfo(said["id"])

    def numbers(self) -> Steps[list[PhoneNumber]]:
        said = self.read((yield self._request("GET", "/numbers")), "the numbers")
        return [self._number(each) for each in said["numbers"]]

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        return self._number(self.read((yield self._request("GET", f"/numbers/{number}")), number))

    def _number(self, said: dict[str, Any]) -> PhoneNumber:
        return PhoneNumber(
            said["number"],
            name=said["name"],
            has_voice=said["voice"],
            points_at=said["url"],
            settings={"application": said["application"]},
            obstacle=f"it belongs to the trunk {said['trunk']}" if said["trunk"] else "",
            hint="take it off the trunk in Acme's console" if said["trunk"] else "",
            warnings=("Acme is slow today",),
        )

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        saved = {"application": number.settings["application"]}
        save(saved)
        content = {"url": addresses.webhook}
        made = self.read((yield self._request("POST", "/applications", content)), "an application")
        save({**saved, "made": made["id"]})
        yield from self._assign(number.number, made["id"])

    def _assign(self, number: str, application: str) -> Steps[None]:
        self.read((yield self._request("PUT", f"/numbers/{number}", {"application": application})), number)

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        numbers = yield from self.numbers()
        made = saved.get("made", "")
        [number] = [each for each in numbers if each.number == NUMBER]
        now, restored = number.settings["application"], "left"
        if now == saved["application"]:
            restored = "unchanged"
        elif made and now == made:
            yield from self._assign(NUMBER, saved["application"])
            restored = "restored"
        if made and (response := (yield self._request("DELETE", f"/applications/{made}"))).status != 404:
            self.read(response, "the end of an application")
        return restored  # type: ignore[return-value]


class ManualAccount(AcmeAccount):
    """One whose API cannot point a number."""

    def how_to_point(self, number: str, addresses: ServerAddresses) -> list[str]:
        return [f"open {number} in Acme's console", f"enter {addresses.webhook}"]


@dataclass
class Company:
    """
    What the company knows, and how it behaves.

    Attributes:
        numbers: By E.164: name, voice, trunk, application.
        applications: Their webhooks, by id.
        requests: Every request, as method and path.
        before: Called with each request before it is carried out; what it returns, a status, is the answer instead.
        on_change: Called before each change.
    """

    url: str = ""
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    applications: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    before: Callable[[str], int | None] = lambda request: None
    on_change: Callable[[str], None] = lambda request: None
    retry_after: str = "0"
    _made: int = 0

    def add(self, number: str, url: str = OLD_URL, *, voice: bool = True, trunk: str = "") -> None:
        application = f"app-{len(self.applications)}"
        self.applications[application] = url
        self.numbers[number] = {"name": "Support", "voice": voice, "trunk": trunk, "application": application}

    def rings_at(self, number: str = NUMBER) -> str:
        return self.applications[self.numbers[number]["application"]]

    @property
    def is_untouched(self) -> bool:
        """Whether the number rings where it did, and nothing that was made for it remains."""
        return self.rings_at() == OLD_URL and len(self.applications) == len(self.numbers)

    def carry_out(self, method: str, path: str, content: dict[str, str]) -> tuple[int, dict[str, Any]]:
        kind, _, name = path.strip("/").partition("/")
        match method, kind:
            case "GET", "account":
                return 200, {"id": "AC1"}
            case "GET", "numbers" if not name:
                return 200, {"numbers": [self._shown(each) for each in self.numbers]}
            case "GET", "numbers" if name in self.numbers:
                return 200, self._shown(name)
            case "PUT", "numbers" if name in self.numbers:
                self.numbers[name]["application"] = content["application"]
                return 200, {}
            case "POST", "applications":
                self._made += 1
                self.applications[f"made-{self._made}"] = content["url"]
                return 201, {"id": f"made-{self._made}"}
            case "DELETE", "applications" if name in self.applications:
                del self.applications[name]
                return 200, {}
        return 404, {}

    def _shown(self, number: str) -> dict[str, Any]:
        return {"number": number, "url": self.rings_at(number), **self.numbers[number]}


class _Handler(BaseHTTPRequestHandler):
    company: ClassVar[Company]

    def answer(self) -> None:
        company, asked = self.company, f"{self.command} {self.path}"
        company.requests.append(asked)
        content = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        status, said = company.before(asked), {}
        # AC1:secret
        if "QUMxOnNlY3JldA==" not in self.headers.get("Authorization", ""):
            status = 401
        if status is None:
            if self.command != "GET":
                company.on_change(asked)
            status, said = company.carry_out(self.command, self.path, content)
        body = json.dumps(said).encode()
        # Nobody may be waiting for it any more.
        with suppress(ConnectionError):
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", company.retry_after)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def company() -> Iterator[Company]:
    """A company with a number, and its API on a port of this machine."""
    acme = Company()
    acme.add(NUMBER)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"company": acme}))
    acme.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield acme
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def take_over(account: type[AcmeAccount] = AcmeAccount, patch: Callable[..., None] = setattr) -> None:
    """Put `account` in the place of Twilio's own, not of what others have from that."""
    import wsvoice.providers.signalwire.account
    import wsvoice.providers.twilio.account

    patch(wsvoice.providers.twilio.account, "TwilioAccount", account)


if __name__ == "__main__":
    take_over()
    from wsvoice.__main__ import main

    main()
