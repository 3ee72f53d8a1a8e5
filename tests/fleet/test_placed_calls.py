"""Calls that one server places, whose webhooks, reports and streams come to others."""

from __future__ import annotations

import itertools
import random
import signal
import string
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.fleet.redis_server import RedisServer
from tests.fleet.servers import HOST, SECRET, Bot
from tests.phone.exchange import Callee, ExchangeServer, to_local
from wsvoice.config import DIAL_KEY, STREAM_SECRET
from wsvoice.runner import outbound
from wsvoice.runner.server import DrainingServer
from wsvoice.runner.watchdog import Watchdog

KEY = "k" * 32
OURS, THEIRS = "+15550100001", "+15550100002"


class Office:
    """Three servers behind one name: one places calls, one answers webhooks, one has the streams."""

    def __init__(self, exchange: Any, servers: list[Any], bot: Bot) -> None:
        self.exchange, self.bot = exchange, bot
        self.placing, self.answering, self.streaming = servers
        self.reported_to: Callable[[], Any] = lambda: self.placing
        exchange.route = self.route

    def route(self, url: str) -> str:
        parts = urlsplit(url)
        if parts.netloc != HOST:
            return url
        server = self.answering
        if parts.path.startswith("/ws/"):
            server = self.streaming
        elif "/status" in parts.path:
            server = self.reported_to()
        return to_local(url, urlsplit(server.url).port)

    def place(self, callee: Callee | None = None, **wanted: Any) -> httpx.Response:
        self.exchange.callees[THEIRS] = callee or Callee()
        content = {"to": THEIRS, "from": OURS, "ring_timeout_s": 20, **wanted}
        return self._send("POST", "dial", json=content)

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.request(method, f"{self.placing.url}{path}", headers=headers, timeout=30, **more)

    def hang_up(self, placed: httpx.Response) -> httpx.Response:
        return self._send("DELETE", f"dial/{placed.json()['id']}")

    def follow(self, placed: httpx.Response, timeout_s: float = 15) -> tuple[list[str], dict[str, Any]]:
        """Return the stages of a call, which is waited for, and its summary."""
        assert placed.status_code == 201, placed.text
        stages: list[str] = []
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            told = self._send("GET", f"dial/{placed.json()['id']}?after={len(stages)}").json()
            stages += [each["stage"] for each in told["events"]]
            if told["ended"]:
                self.exchange.joined()
                return stages, told["call"]
        raise AssertionError(f"the call has not ended: {stages}")

    def talks(self) -> Any:
        until = time.monotonic() + 10
        while not self.bot.calls:
            assert time.monotonic() < until
            time.sleep(0.01)
        return self.bot.calls[0]


@pytest.fixture(params=["twilio", "telnyx", "plivo"])
def office(request: pytest.FixtureRequest, serve: Any) -> Iterator[Office]:
    """Without Redis."""
    yield from open_office(request.param, serve)


@pytest.fixture(params=["twilio", "telnyx"])
def office_with_redis(request: pytest.FixtureRequest, serve: Any, redis: RedisServer) -> Iterator[Office]:
    yield from open_office(request.param, serve, redis=redis.url)


def open_office(name: str, serve: Any, **more: Any) -> Iterator[Office]:
    with ExchangeServer(name, OURS) as exchange:
        bot = Bot()
        credentials = {**exchange.credentials, DIAL_KEY: KEY, STREAM_SECRET: SECRET}
        servers = [serve(bot, transport=name, credentials=credentials, proxy=HOST, **more) for _ in range(3)]
        yield Office(exchange, servers, bot)
        assert exchange.left_up == 0, "a call goes on that nobody talks in"


def test_the_call_is_the_bots_wherever_its_stream_comes(office: Office) -> None:
    placed = office.place(parameters={"language": "de", "name": "Zoë " * 50})
    stages, call = office.follow(placed)
    assert stages[-1] == "completed"
    (bots_call,) = office.bot.calls
    assert (bots_call.direction, bots_call.to_number, bots_call.from_number) == ("outbound", THEIRS, OURS)
    assert (office.bot.bodies[0]["language"], office.bot.bodies[0]["name"]) == ("de", "Zoë " * 50)
    assert bots_call.call_id == call["call_id"]
    assert office.streaming.ended()[0].heard_s > 0.1
    assert office.placing.switchboard.capacity.reserved == 0
    assert {status for _, status in office.exchange.reached} <= {200, 204}


def test_it_is_hung_up_where_it_was_placed(office: Office) -> None:
    placed = office.place(Callee(stays_s=30))
    office.talks()
    assert office.hang_up(placed).status_code == 200
    assert office.follow(placed)[0][-1] in ("completed", "canceled")


def test_the_server_that_has_placed_it_may_go(
    processes: list[DrainingServer], office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was answered elsewhere does not ring any more, whatever the server has heard of it."""
    # It would end the process of the tests.
    monkeypatch.setattr(Watchdog, "exit_within", lambda *_: None)
    office.reported_to = lambda: office.answering
    office.place(Callee(stays_s=1.0))
    office.talks()
    processes[0].handle_exit(signal.SIGTERM, None)
    (record,) = office.streaming.ended()
    office.exchange.joined()
    assert record.ended_by == "caller", record
    assert record.duration_s > 0.9
    assert not office.placing.lines("may still be up")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[DrainingServer]:
    """The servers of a test, in the order in which they started."""
    servers: list[DrainingServer] = []
    startup = DrainingServer.startup

    async def note(server: DrainingServer, sockets: Any) -> None:
        servers.append(server)
        await startup(server, sockets)

    monkeypatch.setattr(DrainingServer, "startup", note)
    return servers


def test_parameters_that_do_not_fit_into_an_address_are_refused(office: Office) -> None:
    noise = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=1900))
    answer = office.place(parameters={"noise": noise})
    assert answer.status_code == 400
    assert str(outbound.URL_LIMIT) in answer.json()["error"]
    assert "id" in answer.json()["hint"]
    assert office.placing.switchboard.capacity.reserved == 0


def test_a_time_limit_holds_where_its_stream_is(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that has placed it may be gone by then, and some companies cannot be told."""
    office.reported_to = lambda: office.answering
    monkeypatch.setattr(outbound, "ASK_AFTER_S", 60.0)
    office.place(Callee(stays_s=30), time_limit_s=1)
    office.talks()
    # It hears of the call again when that is over.
    office.reported_to = lambda: office.placing
    (record,) = office.streaming.ended(timeout_s=8)
    assert record.heard_s < 4
    office.exchange.joined()


class TestWithRedis:
    def test_reports_are_passed_on(self, office_with_redis: Office) -> None:
        office, turns = office_with_redis, itertools.count()
        servers = (office.answering, office.streaming)
        office.reported_to = lambda: servers[next(turns) % 2]
        begin = time.monotonic()
        stages, _ = office.follow(office.place(Callee(rings_s=0.3)))
        assert "answered" in stages
        assert stages[-1] == "completed"
        # Without being asked how it stands.
        assert time.monotonic() - begin < outbound.ASK_AFTER_S / 2
        assert office.placing.switchboard.capacity.reserved == 0

    def test_a_machine_is_hung_up_on_wherever_it_is_reported(self, office_with_redis: Office) -> None:
        office = office_with_redis
        office.reported_to = lambda: office.answering
        placed = office.place(Callee(answered_by="machine", greeting_s=5, stays_s=20), voicemail="hang-up")
        _, call = office.follow(placed)
        assert call["answered_by"] == "machine"

    def test_a_message_is_left_after_the_greeting(self, office_with_redis: Office) -> None:
        office = office_with_redis
        office.reported_to = lambda: office.answering
        placed = office.place(Callee(answered_by="machine", greeting_s=0.5, stays_s=2), voicemail="leave")
        _, call = office.follow(placed)
        assert call["answered_by"] == "machine"
        assert len(office.bot.calls) == 1
