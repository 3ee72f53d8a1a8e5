"""A call that we place and whose id is another one once it is answered, as Telnyx's may be: from both ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.phone.exchange import Callee, Exchange, ExchangeServer, to_local
from tests.phone.test_placed_calls import HOST, KEY, OURS, Bot, Caller
from tests.runner.dialects import Dialect
from wsvoice.call import Stage
from wsvoice.config import DIAL_KEY
from wsvoice.providers.base import StreamRequest
from wsvoice.providers.fake_account import FakeCall


def rename_when_answered(exchange: Exchange) -> list[str]:
    """Let calls get another id when they are answered; return the ids, former ones first."""
    names: list[str] = []
    spoken: list[Dialect] = []
    report, make_dialect = exchange._report, exchange._dialect
    account: Any = exchange.account

    def dialect(call: FakeCall, stream: StreamRequest) -> Dialect:
        spoken.append(make_dialect(call, stream))
        return spoken[-1]

    async def report_renamed(call: FakeCall, stage: Stage) -> None:
        if stage == "answered":
            former, answered = call.call.call_id, exchange._answered(call)
            account.rename(call)
            # The stream is connected by now, and has not started.
            spoken[-1].call_id = call.call.call_id
            names.extend((former, call.call.call_id))
            exchange._ended[call.call.call_id] = exchange._ended[former]
            exchange.__dict__["_answer_events"][call.call.call_id] = answered
        await report(call, stage)

    vars(exchange).update(_report=report_renamed, _dialect=dialect)
    return names


@pytest.fixture
def caller(serve: Any) -> Iterator[Caller]:
    with ExchangeServer("telnyx", OURS) as exchange:
        bot = Bot()
        server = serve(bot, transport="telnyx", credentials={**exchange.credentials, DIAL_KEY: KEY}, proxy=HOST)
        port = urlsplit(server.url).port
        assert port is not None
        exchange.route = lambda url: to_local(url, port) if urlsplit(url).netloc == HOST else url
        yield Caller(server, bot, exchange)


def test_it_is_one_call_all_the_same(caller: Caller) -> None:
    names = rename_when_answered(caller.exchange)
    placed = caller.place()
    events, call = caller.follow(placed)
    former, new = names
    assert placed.json()["call_id"] == former
    assert caller.stages(events)[-2:] == ["answered", "completed"]
    assert [each.call_id for each in caller.bot.calls] == [new]
    assert call["stage"] == "completed"
    assert list(caller.exchange.account.calls) == [new]
    assert caller.server.switchboard.capacity.active == 0
    assert caller.server.switchboard.capacity.reserved == 0


def test_the_bot_ends_it_by_its_new_id(caller: Caller) -> None:
    names = rename_when_answered(caller.exchange)

    async def hang_up(call: Any) -> None:
        await call.hang_up()

    caller.bot.on_call = hang_up
    _, call = caller.follow(caller.place(Callee(stays_s=15)))
    assert call["stage"] == "completed"
    assert call["duration_s"] < 8
    ends = caller.exchange.asked("actions/hangup")
    assert ends
    assert all(names[1].removeprefix("v3:") in each.url for each in ends)
