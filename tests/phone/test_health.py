"""Whether a public address leads to a server: who answers there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.phone.json_server import JsonServer, Reply
from wsvoice.errors import DialError
from wsvoice.phone.health import doubt_about


class Answering(JsonServer):
    """Answers every request alike; who answers in the server's place is for the test."""

    def __init__(self, status: int = 200, **headers: str) -> None:
        super().__init__()
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Reply | None:
        assert (method, path) == ("GET", "/healthz")
        return self.status, {"status": "ok"}


@pytest.fixture
def server() -> Iterator[Answering]:
    with Answering(x_wsvoice_server="this one") as server:
        yield server


def test_an_address_leads_to_the_server_that_has_the_same_name_there(server: Answering) -> None:
    with Answering(x_wsvoice_server="this one") as proxy:
        assert asyncio.run(doubt_about(proxy.url, server.url, timeout_s=5)) == ""
        assert asyncio.run(doubt_about(proxy.url.rstrip("/"), server.url, timeout_s=5)) == ""


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (200, {"x_wsvoice_server": "another"}, "HOST leads to another server of wsvoice's than the one at "),
        (503, {"x_wsvoice_server": "another"}, "HOST leads to another server of wsvoice's than the one at "),
        (
            404,
            {"ngrok_error_code": "ERR_NGROK_3200"},
            "HOST does not lead to the server at ",
        ),
        (502, {}, "HOST does not lead to the server at "),
        (504, {}, "HOST does not lead to the server at "),
        (301, {"location": "https://www.example.com/x"}, "HOST redirects to 'www.example.com'"),
    ],
)
def test_an_address_that_leads_elsewhere_is_refused(
    server: Answering, status: int, headers: dict[str, str], message: str
) -> None:
    with Answering(status, **headers) as proxy:
        with pytest.raises(DialError) as caught:
            asyncio.run(doubt_about(proxy.url, server.url, timeout_s=5))
        assert caught.value.message.startswith(message.replace("HOST", proxy.url.split("/")[2]))
        assert caught.value.hint


@pytest.mark.parametrize(("status", "headers"), [(200, {}), (403, {}), (404, {}), (301, {"location": "/healthz/"})])
def test_a_proxy_that_keeps_the_health_check_to_itself_may_lead_here(
    server: Answering, status: int, headers: dict[str, str]
) -> None:
    with Answering(status, **headers) as proxy:
        doubt = asyncio.run(doubt_about(proxy.url, server.url, timeout_s=5))
    assert doubt == f"somebody else answers in its place ({status} application/json)"


def test_an_address_that_does_not_answer_here_may_answer_elsewhere(server: Answering) -> None:
    with Answering() as gone:
        url = gone.url
    assert asyncio.run(doubt_about(url, server.url, timeout_s=5)).startswith("nothing listens at ")
    assert asyncio.run(doubt_about("https://bot.example.invalid", server.url, timeout_s=5)).endswith(" is unknown")
