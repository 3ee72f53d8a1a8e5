"""What a provider reports of a call: on paths of its own, verified, and told to the bot."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled
from tests.runner.test_session import wait_for
from wsvoice.providers.base import WebhookRequest
from wsvoice.runner.live_call import CallLine, later_stage

GOLDEN = Path(__file__).parents[1] / "golden" / "twilio" / "webhooks"


class Told:
    """A bot that keeps what it is told of its call, and whose handler fails at the first report if it is to."""

    def __init__(self, *, fails: bool = False) -> None:
        self.call: Any = None
        self.updates: list[Any] = []
        self.fails = fails

    async def __call__(self, runner_args: Any) -> None:
        self.call = runner_args.call
        transport = runner_args.transport

        @transport.event_handler("on_call_status")
        async def on_call_status(transport: Any, update: Any) -> None:
            self.updates.append(update)
            if self.fails and len(self.updates) == 1:
                raise SystemExit(3)

        await bots.run(transport, bots.Echo())


def form(name: str) -> dict[str, str]:
    """A golden callback of Twilio's, of the call that these tests are in."""
    content = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    fields: dict[str, str] = content.get("form") or content["fields"]
    return {**fields, "CallSid": FORM["CallSid"], "AccountSid": FORM["AccountSid"]}


@pytest.mark.parametrize("path", ["twilio/status", ""])
def test_the_bot_is_told_who_answered(serve: Any, path: str) -> None:
    async def main() -> None:
        told = Told()
        server = serve(told)
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: told.call is not None)
            answer = httpx.post(f"{server.url}{path}", data=form("machine-detection"), timeout=10)
            assert answer.status_code == 200
            assert "<Stream" not in answer.text
            await wait_for(lambda: told.updates)
            assert [each.event for each in told.call.updates] == [told.updates[0].event]
            await carrier.hang_up()
        (record,) = server.ended()
        assert record.updates == told.updates

    asyncio.run(main())


def test_a_request_for_a_document_is_never_answered_with_one_there(serve: Any) -> None:
    async def main() -> None:
        server = serve(Told())
        answer = httpx.post(f"{server.url}twilio/status", data=FORM, timeout=10)
        assert (answer.status_code, "<Stream" in answer.text) == (200, False)
        assert server.switchboard.capacity.reserved == 0

    asyncio.run(main())


def test_a_handler_that_exits_ends_neither_server_nor_other_calls(serve: Any) -> None:
    async def main() -> None:
        told = Told(fails=True)
        server = serve(told)
        async with dialled(announce(server.url)):
            await wait_for(lambda: told.call is not None)
            httpx.post(f"{server.url}twilio/status", data=form("machine-detection"), timeout=10)
            await wait_for(lambda: told.updates)
            assert httpx.get(f"{server.url}healthz", timeout=10).status_code == 200
        server.ended()

    asyncio.run(main())


def test_an_unsigned_report_is_refused_where_webhooks_are_verified(serve: Any) -> None:
    carrier, secrets = load_provider("twilio").test_credentials(bytes(range(32)))
    server = serve(Told(), credentials=secrets)
    url = f"{server.url}twilio/status"
    assert httpx.post(url, data=form("status-completed"), timeout=10).status_code == 403
    plain = httpx.Request("POST", url, data=form("status-completed"))
    asked = WebhookRequest("POST", url, dict(plain.headers), plain.read())
    signed = load_provider("twilio", carrier).sign(asked, now=time.time())
    assert httpx.post(url, content=signed.body, headers=dict(signed.headers), timeout=10).status_code == 200


@pytest.mark.parametrize("place", ["status", "dialled"])
def test_a_token_of_nobodys_is_not_found(serve: Any, place: str) -> None:
    server = serve(Told())
    answer = httpx.post(f"{server.url}twilio/{place}/0123456789abcdefABCDEF", data=FORM, timeout=10)
    assert answer.status_code == 404
    assert server.switchboard.capacity.reserved == 0


def test_a_stage_never_goes_back() -> None:
    assert later_stage("queued", "ringing") == "ringing"
    assert later_stage("answered", "ringing") == "answered"
    assert later_stage("answered", None) == "answered"
    assert later_stage("answered", "completed") == "completed"
    assert later_stage("busy", "answered") == "busy"
    assert later_stage("canceled", "completed") == "canceled"


@pytest.mark.parametrize("to", ["15551234567", "+1 555", "tel:+15551234567", "sip:", "", "+1555<Dial>", "sip:a b@c"])
def test_only_numbers_and_sip_addresses_are_transferred_to(to: str) -> None:
    async def main() -> None:
        line = CallLine(load_provider("twilio").announced("CA1", "AC1", "", ""), credentials={}, end=lambda: None)
        with pytest.raises(ValueError, match="a call is transferred to"):
            await line.transfer(to)
        assert line.transferred_to == ""

    asyncio.run(main())


@pytest.mark.parametrize("digits", ["", "1 2", "12x", "١"])
def test_only_keys_are_pressed(digits: str) -> None:
    async def main() -> None:
        line = CallLine(load_provider("twilio").announced("CA1", "AC1", "", ""), credentials={}, end=lambda: None)
        with pytest.raises(ValueError, match="digits are of"):
            await line.send_digits(digits)

    asyncio.run(main())


def test_a_bot_hangs_up_after_what_it_has_said(serve: Any) -> None:
    async def main() -> None:
        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                await runner_args.call.hang_up()

            await bots.run(transport, bots.Echo())

        server = serve(bot)
        async with dialled(announce(server.url)) as carrier:
            code, _ = await carrier.closed()
            assert code == 1000
        (record,) = server.ended()
        assert (record.ended_by, record.reason) == ("bot", "the bot ended the call")

    asyncio.run(main())
