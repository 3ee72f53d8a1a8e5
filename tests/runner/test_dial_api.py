"""``/dial``: who may let a server place calls, and what it takes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from wsvoice.config import DIAL_KEY
from wsvoice.errors import UsageError
from wsvoice.runner.dial_api import read_dial_request

CALL = {"to": "+15550100002", "from": "+15550100001"}


async def bot(runner_args: Any) -> None:
    raise AssertionError("nobody calls")


def post(server: Any, content: Any = CALL, key: str | None = "k1", **headers: str) -> httpx.Response:
    if key is not None:
        headers["Authorization"] = f"Bearer {key}".strip()
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return httpx.post(f"{server.url}dial", content=body, headers=headers, timeout=10)


def test_without_a_key_there_is_no_such_address(serve: Any) -> None:
    server = serve(bot)
    answer = post(server, key=None)
    assert answer.status_code == 404
    assert DIAL_KEY in answer.json()["hint"]
    assert post(server, key="").status_code == 404


@pytest.mark.parametrize("key", [None, "k", "k11", "K1", "k1 k1"])
def test_another_key_is_refused(serve: Any, key: str | None) -> None:
    server = serve(bot, credentials={DIAL_KEY: "k1"})
    for answer in (
        post(server, key=key),
        httpx.get(f"{server.url}dial/x", headers={"Authorization": f"Basic {key}"}, timeout=10),
        httpx.delete(f"{server.url}dial/x", timeout=10),
    ):
        assert answer.status_code == 401
        assert answer.json()["hint"]


def test_the_servers_own_key_is_for_programs_on_this_machine(serve: Any) -> None:
    server = serve(bot)
    server.switchboard.dial_api.own_key = "own"
    assert post(server, key="own").status_code == 400
    assert post(server, key="own", Host="bot.example.com").status_code == 404
    assert post(server, key="own", **{"X-Forwarded-For": "192.0.2.1"}).status_code == 404
    assert post(server, key="own", Origin="https://evil.example").status_code == 404


def test_a_call_that_was_never_placed_is_not_found(serve: Any) -> None:
    server = serve(bot, credentials={DIAL_KEY: "k1"})
    key = {"Authorization": "Bearer k1"}
    assert httpx.get(f"{server.url}dial/x", headers=key, timeout=10).status_code == 404
    assert httpx.delete(f"{server.url}dial/x", headers=key, timeout=10).status_code == 404


def test_a_server_without_a_public_address_says_so(serve: Any) -> None:
    answer = post(serve(bot, credentials={DIAL_KEY: "k1"}))
    assert answer.status_code == 400
    assert "public address" in answer.json()["error"]
    assert "--tunnel" in answer.json()["hint"]


def test_missing_credentials_are_named(serve: Any) -> None:
    server = serve(bot, credentials={DIAL_KEY: "k1"}, proxy="bot.example.com", verify="off")
    answer = post(server)
    assert answer.status_code == 400
    assert "TWILIO_ACCOUNT_SID" in answer.json()["error"]
    assert server.switchboard.capacity.reserved == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "JSON"),
        ([], "JSON object"),
        ({**CALL, "too": "+1"}, "too"),
        ({"to": "+15550100002"}, "from"),
        ({**CALL, "to": "15550100002"}, "to is no telephone number"),
        ({**CALL, "to": "+0123"}, "to is no telephone number"),
        ({**CALL, "ring_timeout_s": 0}, "ring_timeout_s"),
        ({**CALL, "ring_timeout_s": True}, "ring_timeout_s"),
        ({**CALL, "ring_timeout_s": "60"}, "ring_timeout_s"),
        ({**CALL, "time_limit_s": 1e9}, "time_limit_s"),
        ({**CALL, "detection": "yes"}, "detection"),
        ({**CALL, "voicemail": "beep"}, "voicemail"),
        ({**CALL, "parameters": {"a": 1}}, "parameters"),
        ({**CALL, "parameters": {"a": "b" * 3000}}, "parameters"),
        ({**CALL, "provider": "telnyx"}, "telnyx"),
        ({**CALL, "voicemail": "leave", "detection": "detect"}, "voicemail 'leave'"),
        ({**CALL, "voicemail": "hang-up", "detection": "off"}, "voicemail 'hang-up'"),
        ({**CALL, "id": "short"}, "id is"),
        (b"[" * 60_000, "JSON"),
    ],
)
def test_what_is_no_call_is_refused_in_words(serve: Any, content: Any, said: str) -> None:
    server = serve(bot, credentials={DIAL_KEY: "k1"}, proxy="bot.example.com", verify="off")
    answer = post(server, content)
    assert answer.status_code == 400
    assert said in answer.json()["error"]


def test_what_needs_detection_gets_it() -> None:
    assert read_dial_request(CALL).needed_detection == "off"
    assert read_dial_request({**CALL, "voicemail": "hang-up"}).needed_detection == "detect"
    assert read_dial_request({**CALL, "voicemail": "leave"}).needed_detection == "greeting-end"
    assert read_dial_request({**CALL, "detection": "detect"}).needed_detection == "detect"
    assert read_dial_request({**CALL, "voicemail": None, "detection": None}).needed_detection == "off"
    with pytest.raises(UsageError):
        read_dial_request(None)
