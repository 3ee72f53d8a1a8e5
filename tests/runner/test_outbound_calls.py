"""Calls that we dialled ourselves: their streams may wait for the answer, and Telnyx may rename them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.providers.companies import load_provider
from tests.runner.dialects import ANNOUNCED, Bandwidth, Dialect, Exotel, Plivo, SignalWire, Telnyx, Twilio, on_line
from tests.runner.test_provider_messages import Ear
from tests.runner.test_session import wait_for
from tests.runner.test_switchboard import ask, read_document
from wsvoice.providers import PROVIDERS
from wsvoice.providers.base import WebhookRequest
from wsvoice.runner import session

Serve = Callable[..., Any]


class DialledTwilio(Twilio):
    def form(self) -> dict[str, str]:
        return {**super().form(), "Direction": "outbound-api", "CallStatus": "in-progress"}


class DialledTelnyx(Telnyx):
    def form(self) -> dict[str, str]:
        return {**super().form(), "Direction": "outbound", "CallStatus": "in-progress"}


class DialledPlivo(Plivo):
    def form(self) -> dict[str, str]:
        return {**super().form(), "Direction": "outbound"}


class DialledSignalWire(SignalWire):
    def form(self) -> dict[str, str]:
        return {**super().form(), "Direction": "outbound-api"}


class DialledExotel(Exotel):
    def form(self) -> dict[str, str]:
        return {**super().form(), "Direction": "outbound-api"}


class DialledBandwidth(Bandwidth):
    def form(self) -> dict[str, str]:
        return {**super().form(), "eventType": "answer", "direction": "outbound"}


#: Those whose streams keep their calls' ids, though we dialled them.
DIALLED = (DialledTwilio, DialledPlivo, DialledSignalWire, DialledExotel, DialledBandwidth)


def ask_signed(serve: Serve, bot: Any, dialect: Dialect, **settings: Any) -> tuple[Any, str]:
    """Serve a bot that verifies, and send its webhook as the company does; return the server and the stream's URL."""
    carrier, secrets = load_provider(dialect.name).test_credentials(bytes(range(32)))
    server = serve(bot, transport=dialect.name, credentials=secrets, **settings)
    form = {"content-type": "application/x-www-form-urlencoded"}
    plain = WebhookRequest("POST", server.url, form, urlencode(dialect.form()).encode())
    request = load_provider(dialect.name, carrier).sign(plain, now=time.time())
    answer = httpx.post(request.url, content=request.body, headers=request.headers, timeout=10)
    return server, read_document(answer, dialect)[0]


@pytest.mark.parametrize("make", [DialledTwilio, DialledTelnyx, Twilio, Telnyx])
def test_the_start_is_waited_for_while_it_rings(
    serve: Serve, make: type[Dialect], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever rings us has no reason to keep us waiting."""
    monkeypatch.setattr(session, "RING_TIMEOUT_S", 10.0)
    dialect = make()
    ear = Ear()
    server, url = ask_signed(serve, ear, dialect, handshake_timeout_s=0.3)

    async def main() -> tuple[int | None, str | None]:
        async with on_line(url, dialect, start=False) as line:
            await line.send(*dialect.connected())
            await asyncio.sleep(0.8)
            if make in (Twilio, Telnyx):
                return await line.closed()
            await line.send(dialect.start())
            await wait_for(lambda: ear.call is not None)
            await line.send(dialect.stop())
            return await line.closed()

    code, _ = asyncio.run(main())
    (record,) = server.ended()
    if make in (Twilio, Telnyx):
        assert (code, record.reason) == (1008, "the caller sent no start message within 0.3 s")
    else:
        assert record.reason == "the caller hung up"
        assert ear.call.direction == "outbound"


def test_a_dialled_call_that_never_starts_is_let_go(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RING_TIMEOUT_S", 0.2)
    dialect = DialledTelnyx()
    server, url = ask_signed(serve, Ear(), dialect, handshake_timeout_s=0.3)

    async def main() -> None:
        async with on_line(url, dialect, start=False) as line:
            assert (await line.closed())[0] == 1008

    asyncio.run(main())
    assert server.ended()[0].reason == "the caller sent no start message within 0.5 s"


@pytest.mark.parametrize("make", [DialledTwilio, DialledTelnyx])
def test_who_only_says_that_we_dialled_is_not_waited_for(serve: Serve, make: type[Dialect]) -> None:
    """A webhook that nobody signed keeps a place no longer by what it says."""
    dialect = make()
    server = serve(Ear(), transport=dialect.name, handshake_timeout_s=0.3)
    url, _ = read_document(ask(server.url, dialect, "POST"), dialect)

    async def main() -> None:
        async with on_line(url, dialect, start=False) as line:
            assert (await line.closed())[0] == 1008

    asyncio.run(main())
    assert server.ended()[0].reason == "the caller sent no start message within 0.3 s"


def test_a_call_that_is_renamed_when_it_is_answered(serve: Serve) -> None:
    """The token says which call it is; the provider's API knows it by the stream's id from now on."""
    dialect = DialledTelnyx()
    ear = Ear()
    server, url = ask_signed(serve, ear, dialect)
    dialect.call_id = "v3:renamed-behind-its-post-answer-POP"

    async def main() -> None:
        async with on_line(url, dialect) as line:
            await wait_for(lambda: ear.call is not None)
            await line.send(dialect.stop())
            await line.closed()

    asyncio.run(main())
    (record,) = server.ended()
    for call in (ear.call, record.call):
        assert (call.call_id, call.direction) == (dialect.call_id, "outbound")
    assert server.lines("WARNING", "another id", dialect.call_id)


@pytest.mark.parametrize("make", [*ANNOUNCED, *DIALLED], ids=lambda each: each.__name__)
def test_a_stream_must_be_of_its_own_call(serve: Serve, make: type[Dialect]) -> None:
    dialect = make()
    ear = Ear()
    server = serve(ear, transport=dialect.name)
    answer = ask(server.url, dialect, "GET" if dialect.name == "exotel" else "POST")
    assert server.switchboard.announced.popitem()[1].direction == ("outbound" if make in DIALLED else "inbound")
    url, _ = read_document(answer, dialect)
    dialect.call_id = "another"

    async def main() -> None:
        async with on_line(url, dialect) as line:
            assert (await line.closed())[0] == 1008

    asyncio.run(main())
    assert ear.call is None


def test_only_telnyx_renames_calls() -> None:
    assert [name for name in PROVIDERS if load_provider(name).renames_dialled_calls] == ["telnyx"]
