"""An account's operations over the network: what is repeated, for how long, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from wsvoice.errors import ApiError
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account

LATER = {"Retry-After": "7"}


class BusyApi:
    """
    Answers one request after the other as it is told to, and then with 200.

    Attributes:
        url: Its address.
        script: The status and the headers of each answer to come.
        n_asked: How many requests there were.
    """

    def __init__(self) -> None:
        self.script: list[tuple[int, dict[str, str]]] = []
        self.n_asked = 0
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.n_asked += 1
                status, headers = api.script.pop(0) if api.script else (200, {})
                self.send_response(status)
                for name, value in {**headers, "Content-Length": "2"}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()


@pytest.fixture
def api() -> Iterator[BusyApi]:
    api = BusyApi()
    yield api
    api.server.shutdown()
    api.server.server_close()


def ask(api: BusyApi, n_requests: int = 1) -> tuple[list[float], list[str]]:
    """Ask so many things in one operation; return for how long was waited each time, and what was told."""
    account = load_account("twilio", {"TWILIO_ACCOUNT_SID": "AC1", "TWILIO_AUTH_TOKEN": "x"})
    account.credentials["TWILIO_API_BASE_URL"] = api.url
    waits: list[float] = []
    told: list[str] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    def steps() -> Any:
        for _ in range(n_requests):
            request = next(account.describe())
            account.read((yield request), "a look at the account")

    asyncio.run(carry_out(steps(), sleep=sleep, on_wait=told.append))
    return waits, told


def test_a_request_that_is_put_off_is_repeated_when_the_company_says_so(api: BusyApi) -> None:
    api.script = [(429, LATER), (429, {})]
    waits, told = ask(api)
    assert waits == [7.0, 1.0]
    host = api.url.removeprefix("http://")
    assert told[0] == f"the API at {host} takes no request now; it is repeated in 7 s"
    assert api.n_asked == 3


def test_what_is_too_late_is_not_waited_for_and_told(api: BusyApi) -> None:
    api.script = [(429, {"Retry-After": "300"})]
    with pytest.raises(ApiError) as caught:
        ask(api)
    error = caught.value
    assert (error.kind, error.retry_after_s, error.hint) == (
        "rate-limit",
        300.0,
        "it asks to wait 300 s; repeat it then",
    )
    assert api.n_asked == 1


def test_a_date_is_understood_too(api: BusyApi) -> None:
    api.script = [(429, {"Retry-After": formatdate(time.time() + 1000, usegmt=True)})]
    with pytest.raises(ApiError) as caught:
        ask(api)
    assert caught.value.retry_after_s == pytest.approx(1000, abs=5)


def test_all_the_waiting_of_one_operation_is_bounded(api: BusyApi) -> None:
    api.script = [each for _ in range(5) for each in ((429, {"Retry-After": "12"}), (200, {}))]
    with pytest.raises(ApiError) as caught:
        ask(api, 5)
    assert caught.value.retry_after_s == 12.0
    # Two of them were waited for, 24 s; the third would have been beyond half a minute.
    assert api.n_asked == 5


def test_who_does_not_say_when_is_asked_three_times_more(api: BusyApi) -> None:
    api.script = [(429, {})] * 10
    with pytest.raises(ApiError) as caught:
        ask(api)
    assert (api.n_asked, caught.value.retry_after_s) == (4, None)
    assert caught.value.hint
