"""Calls that a server places, on every provider that places calls: from ``POST /dial`` to the call's end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.phone.exchange import Callee, Exchange, ExchangeServer, level, to_local
from tests.runner import bots
from wsvoice.config import DIAL_KEY
from wsvoice.errors import ApiError
from wsvoice.runner import outbound

KEY = "k" * 32
HOST = "bot.example.com"
OURS, THEIRS = "+15550100001", "+15550100002"
#: The providers whose APIs place calls.
PROVIDERS = ("twilio", "telnyx", "plivo", "vonage", "signalwire", "exotel", "bandwidth")
#: Those that call from any number, and may show another.
ANY_CALLER = ("vonage", "plivo", "bandwidth")
#: Those that do not tell when a machine's greeting ends.
NO_GREETING = ("plivo", "exotel")
#: Those that do not tell who answers, and those that transfer no calls.
NO_DETECTION, NO_TRANSFER = ("exotel",), ("exotel",)
#: Those that cannot be told to end a call.
NO_CANCEL = ("exotel",)


class Bot:
    """An echo bot that keeps its calls."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.bodies: list[Any] = []
        self.started_at: list[float] = []
        self.on_call: Callable[[Any], Any] | None = None

    async def __call__(self, runner_args: Any) -> None:
        self.calls.append(runner_args.call)
        self.bodies.append(runner_args.body)
        self.started_at.append(time.monotonic())
        if self.on_call is not None:
            await self.on_call(runner_args.call)
        await bots.run(runner_args.transport, bots.Echo())


class Caller:
    """A server, its bot, the network around them, and an application that lets the server place calls."""

    def __init__(self, server: Any, bot: Bot, exchange: Exchange) -> None:
        self.server, self.bot, self.exchange = server, bot, exchange
        self._headers = {"Authorization": f"Bearer {KEY}"}

    @property
    def long_ring_s(self) -> float:
        """How long somebody does not answer: for ever, where the company can be told to end the call."""
        return 1.5 if self.exchange.name in NO_CANCEL else 15.0

    def place(self, callee: Callee | None = None, **wanted: Any) -> httpx.Response:
        if callee is not None:
            self.exchange.callees[THEIRS] = callee
        content = {"to": THEIRS, "from": OURS, "ring_timeout_s": 20, **wanted}
        return httpx.post(f"{self.server.url}dial", json=content, headers=self._headers, timeout=10)

    def follow(self, placed: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the events of a call, which is waited for, and its summary."""
        assert placed.status_code == 201, placed.text
        events: list[dict[str, Any]] = []
        until = time.monotonic() + 20
        while time.monotonic() < until:
            url = f"{self.server.url}dial/{placed.json()['id']}?after={len(events)}"
            told = httpx.get(url, headers=self._headers, timeout=30).json()
            events += told["events"]
            if told["ended"]:
                self.exchange.joined()
                return events, told["call"]
        raise AssertionError(f"the call has not ended: {events}")

    def hang_up(self, placed: httpx.Response) -> httpx.Response:
        return self.withdraw(placed.json()["id"])

    def withdraw(self, call_id: str) -> httpx.Response:
        return httpx.delete(f"{self.server.url}dial/{call_id}", headers=self._headers, timeout=20)

    def held(self) -> Any:
        """Wait until the bot talks; return its call."""
        until = time.monotonic() + 10
        while not self.bot.calls:
            assert time.monotonic() < until
            time.sleep(0.01)
        return self.bot.calls[0]

    def stages(self, events: list[dict[str, Any]]) -> list[str]:
        return list(dict.fromkeys(each["stage"] for each in events))


#: What is the same for every provider, tried with one that asks for a document and one that is told the stream.
some_providers = pytest.mark.parametrize("caller", ["twilio", "telnyx"], indirect=True)


@pytest.fixture(params=PROVIDERS)
def caller(request: pytest.FixtureRequest, serve: Any) -> Iterator[Caller]:
    with ExchangeServer(request.param, OURS) as exchange:
        bot = Bot()
        credentials = {**exchange.credentials, DIAL_KEY: KEY}
        server = serve(bot, transport=request.param, credentials=credentials, proxy=HOST)
        port = urlsplit(server.url).port
        assert port is not None
        exchange.route = lambda url: to_local(url, port) if urlsplit(url).netloc == HOST else url
        yield Caller(server, bot, exchange)
        assert exchange.left_up == 0, "a call goes on that nobody talks in"


def test_an_answered_call_is_the_bots(caller: Caller) -> None:
    events, call = caller.follow(caller.place(parameters={"language": "de"}))
    assert caller.stages(events)[0] == "queued"
    assert caller.stages(events)[-2:] == ["answered", "completed"]
    (bots_call,) = caller.bot.calls
    assert (bots_call.direction, bots_call.to_number) == ("outbound", THEIRS)
    assert caller.bot.bodies[0]["language"] == "de"
    assert (call["call_id"], call["stage"]) == (bots_call.call_id, "completed")
    assert call["heard_s"] == pytest.approx(0.3, abs=0.15)
    (heard,) = caller.exchange.heard.values()
    assert level(heard) > 1000
    assert caller.server.switchboard.capacity.active == 0
    assert {status for _, status in caller.exchange.reached} <= {200, 204}


@pytest.mark.parametrize("outcome", ["busy", "no-answer", "failed"])
def test_a_call_that_nobody_answers_costs_no_bot(caller: Caller, outcome: Any) -> None:
    events, call = caller.follow(caller.place(Callee(outcome=outcome)))
    assert call["stage"] == outcome
    assert "answered" not in caller.stages(events)
    assert caller.bot.calls == []
    assert caller.server.switchboard.capacity.reserved == 0


def test_a_ringing_call_is_ended_on_request(caller: Caller) -> None:
    placed = caller.place(Callee(rings_s=caller.long_ring_s))
    answer = caller.hang_up(placed)
    if caller.exchange.name in NO_CANCEL:
        assert (answer.status_code, answer.json()["ended"]) == (202, False)
        assert "rings on" in answer.json()["text"]
    else:
        assert answer.json() == {"ended": True}
    _, call = caller.follow(placed)
    assert call["stage"] in ("canceled", "completed")
    assert caller.bot.calls == []


def test_a_running_call_is_ended_on_request(caller: Caller) -> None:
    placed = caller.place(Callee(stays_s=15))
    caller.held()
    assert caller.hang_up(placed).json() == {"ended": True}
    _, call = caller.follow(placed)
    assert call["stage"] in ("completed", "canceled")
    assert call["duration_s"] is not None
    assert call["duration_s"] < 8


@some_providers
def test_a_call_lasts_no_longer_than_it_may(caller: Caller) -> None:
    placed = caller.place(Callee(stays_s=15), time_limit_s=1)
    if placed.status_code == 502:
        assert placed.json()["kind"] == "unsupported"
        return
    _, call = caller.follow(placed)
    assert call["duration_s"] == pytest.approx(1, abs=2)
    assert "the call has lasted 1 s" in caller.server.ended()[0].reason


def test_a_machine_is_told_to_the_bot(caller: Caller) -> None:
    if caller.exchange.name in NO_DETECTION:
        refused = caller.place(detection="detect")
        assert (refused.status_code, refused.json()["kind"]) == (502, "unsupported")
        return
    _, call = caller.follow(caller.place(Callee(answered_by="machine", stays_s=0.4), detection="detect"))
    assert call["answered_by"] == "machine"
    assert caller.bot.calls[0].answered_by == "machine"
    assert "machine" in [each.answered_by for each in caller.bot.calls[0].updates]
    assert "machine" in [each["answered_by"] for each in call["updates"]]


def test_a_machines_call_is_ended_if_nobody_wants_to_talk_to_one(caller: Caller) -> None:
    if caller.exchange.name in NO_DETECTION:
        pytest.skip("it does not tell who answers")
    _, call = caller.follow(caller.place(Callee(answered_by="machine", stays_s=15), voicemail="hang-up"))
    assert call["answered_by"] == "machine"
    assert call["stage"] in ("completed", "canceled")


def test_a_message_is_left_after_the_greeting(caller: Caller) -> None:
    callee = Callee(answered_by="machine", greeting_s=0.5, stays_s=1.2)
    if caller.exchange.name in NO_GREETING:
        refused = caller.place(callee, voicemail="leave")
        assert (refused.status_code, refused.json()["kind"]) == (502, "unsupported")
        assert refused.json()["hint"]
        return
    began = time.monotonic()
    caller.follow(caller.place(callee, voicemail="leave"))
    assert caller.bot.started_at[0] - began > 0.5


@some_providers
def test_a_human_is_not_kept_waiting_for_a_greeting(caller: Caller) -> None:
    began = time.monotonic()
    caller.follow(caller.place(Callee(answered_by="human", greeting_s=9.0, stays_s=0.4), voicemail="leave"))
    assert caller.bot.started_at[0] - began < 5


def test_a_bot_that_transfers_leaves_the_call_alone(caller: Caller) -> None:
    errors: list[ApiError] = []

    async def transfer(call: Any) -> None:
        try:
            await call.transfer("+15550100009")
        except ApiError as error:
            errors.append(error)

    caller.bot.on_call = transfer
    caller.follow(caller.place())
    if caller.exchange.name in NO_TRANSFER:
        assert [each.kind for each in errors] == ["unsupported"]
        return
    assert errors == []
    (command,) = caller.exchange.commands
    assert (command[1], command[2].lstrip("+")) == ("transfer", "15550100009")
    (record,) = caller.server.ended()
    assert "+15550100009" in record.reason


@some_providers
def test_wrong_credentials_place_nothing(caller: Caller) -> None:
    caller.exchange.api.is_authorised = lambda request: False
    refused = caller.place()
    assert refused.status_code == 502
    assert refused.json()["kind"] == "credentials"
    assert refused.json()["hint"]
    assert caller.server.switchboard.capacity.reserved == 0


def test_a_number_of_nobodys_places_nothing(caller: Caller) -> None:
    if caller.exchange.name in ANY_CALLER:
        pytest.skip("its API takes any number as the caller's")
    refused = caller.place(**{"from": "+15550199999"})
    assert refused.status_code == 502, refused.text
    assert refused.json()["error"]
    assert refused.json()["hint"]
    assert caller.exchange.account.calls == {}


@some_providers
def test_a_call_that_comes_too_early_is_placed_later(caller: Caller) -> None:
    caller.exchange.instead.append((429, {"retry-after": "0"}, b"{}"))
    _, call = caller.follow(caller.place())
    assert call["stage"] == "completed"


@some_providers
def test_a_server_that_is_full_places_no_call(caller: Caller) -> None:
    caller.server.switchboard.capacity.limit = 0
    assert caller.place().status_code == 503
    assert caller.exchange.account.calls == {}


@some_providers
def test_a_ringing_call_ends_when_the_server_stops(caller: Caller) -> None:
    placed = caller.place(Callee(rings_s=caller.long_ring_s))
    dialled = caller.server.switchboard.dialled.by_id(placed.json()["id"])
    caller.server.stop()
    caller.exchange.joined()
    assert dialled.stage == "canceled"
    assert caller.bot.calls == []


# What goes wrong


@some_providers
def test_a_call_whose_placing_is_not_answered_is_ended_when_it_is_heard_of(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was placed all the same, and would ring at a bot that nobody knows of."""
    monkeypatch.setattr(outbound, "PLACE_TIMEOUT_S", 0.3)
    # Whether it has one is asked before.
    slow = caller.exchange.account.on_placed

    def placed(call: Any) -> None:
        slow(call)
        time.sleep(0.6)

    caller.exchange.account.on_placed = placed
    refused = caller.place(Callee(rings_s=1.0, stays_s=5))
    assert (refused.status_code, refused.json()["kind"]) == (502, "uncertain")
    caller.exchange.joined()
    assert [each.stage for each in caller.exchange.account.calls.values()] == ["canceled"]
    assert caller.bot.calls == []


@some_providers
def test_a_call_that_is_withdrawn_while_it_is_placed_is_ended(caller: Caller) -> None:
    caller.exchange.answer_delay_s = 0.5
    with ThreadPoolExecutor() as pool:
        chosen = "chosen-by-the-client-01"
        placing = pool.submit(caller.place, Callee(rings_s=15), id=chosen)
        until = time.monotonic() + 5
        while caller.server.switchboard.dialled.by_id(chosen) is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        ended = httpx.delete(
            f"{caller.server.url}dial/{chosen}", headers={"Authorization": f"Bearer {KEY}"}, timeout=20
        )
        assert ended.json() == {"ended": True}
        assert (placing.result().status_code, placing.result().json()["kind"]) == (409, "withdrawn")
    caller.exchange.joined()
    assert [each.stage for each in caller.exchange.account.calls.values()] == ["canceled"]
    assert caller.place(id=chosen).status_code == 409


@some_providers
def test_a_call_that_is_placed_while_the_server_stops_is_ended(caller: Caller) -> None:
    caller.exchange.answer_delay_s = 0.5
    with ThreadPoolExecutor() as pool:
        placing = pool.submit(caller.place, Callee(rings_s=15))
        until = time.monotonic() + 5
        while not caller.exchange.account.calls:
            assert time.monotonic() < until
            time.sleep(0.01)
        caller.server.stop()
        # It may be gone before it can answer.
        with suppress(httpx.TransportError):
            assert placing.result().status_code in (409, 500)
    caller.exchange.joined()
    assert [each.stage for each in caller.exchange.account.calls.values()] == ["canceled"]


@some_providers
def test_a_call_that_waits_for_its_turn_is_not_placed_once_it_is_withdrawn(caller: Caller) -> None:
    caller.exchange.instead += [(429, {"retry-after": "8"}, b"{}")]
    with ThreadPoolExecutor() as pool:
        chosen = "chosen-by-the-client-02"
        placing = pool.submit(caller.place, id=chosen)
        until = time.monotonic() + 5
        while not caller.exchange.requests:
            assert time.monotonic() < until
            time.sleep(0.01)
        caller.withdraw(chosen)
        assert placing.result().status_code == 409
    assert caller.exchange.account.calls == {}


@some_providers
def test_a_refused_end_is_tried_again_and_said(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "END_RETRY_S", 0.05)
    placed = caller.place(Callee(rings_s=15))
    caller.exchange.instead += [(429, {"retry-after": "0"}, b"{}")] * 6
    assert caller.hang_up(placed).json() == {"ended": True}
    again = caller.place(Callee(rings_s=2))
    caller.exchange.instead += [(400, {}, b"{}")] * 2
    refused = caller.hang_up(again)
    assert (refused.status_code, bool(refused.json()["error"])) == (502, True)
    caller.exchange.instead.clear()
    assert caller.hang_up(again).json() == {"ended": True}


@some_providers
def test_a_long_parameter_need_not_travel(caller: Caller) -> None:
    caller.follow(caller.place(parameters={"story": "x" * 1500}))
    assert caller.bot.bodies[0]["story"] == "x" * 1500


@some_providers
def test_a_transferred_call_is_followed_to_its_end(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time limit holds for whoever the caller talks to by now."""
    monkeypatch.setattr(outbound, "ASK_AFTER_S", 0.2)
    monkeypatch.setattr(outbound, "REPORT_WAIT_S", 0.2)

    async def transfer(call: Any) -> None:
        await call.transfer("+15550100009")

    caller.bot.on_call = transfer
    caller.exchange.transfers_last_s = 10
    events, call = caller.follow(caller.place(time_limit_s=1))
    assert call["ended_by"] == "bot"
    assert 1.0 <= events[-1]["at_s"] < 5


@some_providers
def test_the_greeting_of_a_machine_is_nothing_to_answer(caller: Caller) -> None:
    caller.follow(caller.place(Callee(answered_by="machine", greeting_s=0.6, stays_s=1.0), voicemail="leave"))
    (heard,) = caller.exchange.heard.values()
    assert level(heard) < 100


def test_whoever_signs_nothing_is_believed_at_the_calls_own_address_only(serve: Any) -> None:
    with ExchangeServer("exotel", OURS) as exchange:
        bot = Bot()
        server = serve(bot, transport="exotel", credentials={**exchange.credentials, DIAL_KEY: KEY}, proxy=HOST)
        port = urlsplit(server.url).port
        assert port is not None
        exchange.route = lambda url: to_local(url, port) if urlsplit(url).netloc == HOST else url
        caller = Caller(server, bot, exchange)
        placed = caller.place(Callee(rings_s=0.5))
        report = {"CallSid": placed.json()["call_id"], "Status": "completed", "EventType": "terminal"}
        httpx.post(f"{server.url}exotel/status", data=report, headers={"X-Forwarded-For": "192.0.2.1"}, timeout=10)
        _, call = caller.follow(placed)
        assert len(bot.calls) == 1
        assert call["stage"] == "completed"
