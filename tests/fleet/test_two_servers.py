"""A webhook that comes to one server, and its stream to another: on real sockets."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import httpx
import pytest
import websockets

from tests.fleet.redis_server import RedisServer
from tests.fleet.servers import Bot, ask, settings, stream_url, until
from tests.runner.carrier import FORM, dialled
from tests.signals import tone
from wsvoice.config import START_KEY, STREAM_SECRET
from wsvoice.providers.base import CallUpdate
from wsvoice.runner.shared_memory import CHANNEL

CALL = FORM["CallSid"]


async def have_call(url: str, call_sid: str = CALL) -> None:
    async with dialled(url, call_sid) as carrier:
        await carrier.speak(tone(500, 60, 8000))
        await carrier.until("media")
        await carrier.hang_up()


async def is_refused(url: str) -> int:
    with pytest.raises(websockets.InvalidStatus) as caught:
        await websockets.connect(url)
    return caught.value.response.status_code


def test_the_stream_may_come_to_another_server(serve: Any) -> None:
    bot = Bot()
    first, second = serve(bot, **settings()), serve(bot, **settings(parameters={"language": "de"}))
    url = stream_url(ask(first), second)
    asyncio.run(have_call(url))
    (call,) = bot.calls
    assert (call.call_id, call.from_number, call.to_number) == (CALL, FORM["From"], FORM["To"])
    assert (call.account_id, call.direction) == (FORM["AccountSid"], "inbound")
    assert bot.bodies[0]["language"] == "de"
    assert second.ended()[0].heard_s > 0
    assert not first.records


def test_a_server_with_another_secret_takes_no_stream_of_it(serve: Any) -> None:
    first = serve(Bot(), **settings())
    second = serve(Bot(), **settings(credentials={STREAM_SECRET: "fedcba9876543210" * 4}))
    assert asyncio.run(is_refused(stream_url(ask(first), second))) == 403
    assert second.lines("nor by another one with its secret")


def test_a_place_is_kept_for_as_long_as_providers_take_to_dial(serve: Any) -> None:
    """The stream may have gone elsewhere, which nobody tells without Redis."""
    first = serve(Bot(), max_calls=1, **settings())
    now = [0.0]
    first.switchboard.capacity._now = lambda: now[0]
    assert "<Stream" in ask(first, "CA1").text
    assert "<Reject" in ask(first, "CA2").text
    now[0] = 15.1
    assert "<Stream" in ask(first, "CA3").text


def test_a_stream_that_finds_no_place_finds_one_elsewhere(serve: Any, redis: RedisServer) -> None:
    """As a load balancer does that tries again: the token was not used by being turned away."""
    first, second = (serve(Bot(), max_calls=1, **settings(redis=redis.url)) for _ in range(2))

    async def main() -> None:
        busy = stream_url(ask(second, "CA2"), second)
        url = stream_url(ask(first, CALL), first)
        async with dialled(busy, "CA2") as other:
            assert await is_refused(stream_url_at(url, second)) == 503
            assert await is_refused(stream_url_at(url, second)) == 503
            await have_call(url)
            await other.hang_up()

    asyncio.run(main())


def test_a_numbers_call_counts_where_its_stream_is(serve: Any) -> None:
    first, second = (serve(Bot(), max_calls_per_number=1, **settings()) for _ in range(2))

    async def main() -> None:
        async with dialled(stream_url(ask(first), second)) as carrier:
            await carrier.speak(tone(500, 60, 8000))
            await carrier.until("media")
            assert "<Reject" in ask(second, "CA2").text
            await carrier.hang_up()
        await until(lambda: not second.switchboard.numbers.knows(("twilio", CALL)))
        assert "<Stream" in ask(second, "CA3").text

    asyncio.run(main())


def stream_url_at(url: str, server: Any) -> str:
    """Return the same stream's address at another server."""
    return server.ws_url.rstrip("/") + "/ws/" + url.split("/ws/", 1)[1]


class TestWithRedis:
    def test_a_token_is_good_once_at_all_servers(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))
        url = stream_url(ask(first), second)
        asyncio.run(have_call(url))
        assert asyncio.run(is_refused(stream_url_at(url, first))) == 403
        assert first.lines("used before, at another server")

    def test_a_webhook_is_good_once_at_all_servers(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))
        assert ask(first, idempotency="1").status_code == 200
        assert ask(second, idempotency="1").status_code == 403
        assert ask(second, idempotency="2").status_code == 403
        assert second.lines("webhook refused (403)", "replay")

    def test_a_redirect_may_come_to_any_server(self, serve: Any, redis: RedisServer) -> None:
        """Each document of a call sends it to the same address again, with the same fields."""
        servers = [serve(Bot(), **settings(redis=redis.url)) for _ in range(2)]
        for number in range(6):
            asked, streamed = servers[number % 2], servers[number // 2 % 2]
            url = stream_url(ask(asked, idempotency=str(number)), streamed)
            assert ask(servers[number // 3 % 2], idempotency="replayed").status_code == 403
            asyncio.run(have_call(url))
        # What repeats the token as well is a replay, though a stream has ended.
        assert ask(servers[0], idempotency="3").status_code == 403

    def test_a_redirect_that_overtakes_the_end_of_its_stream_waits(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))

        async def main() -> None:
            async with dialled(stream_url(ask(first, idempotency="1"), first)) as carrier:
                await carrier.speak(tone(500, 60, 8000))
                asked = asyncio.create_task(asyncio.to_thread(ask, second, idempotency="2"))
                await asyncio.sleep(0.2)
                assert not asked.done()
                await carrier.hang_up()
                assert "<Stream" in (await asked).text

        asyncio.run(main())

    def test_a_place_is_free_once_the_stream_is_elsewhere(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), max_calls=1, **settings(redis=redis.url)) for _ in range(2))

        async def main() -> None:
            async with dialled(stream_url(ask(first), second)) as carrier:
                await until(lambda: first.switchboard.capacity.reserved == 0, timeout_s=2)
                assert "<Stream" in ask(first, "CA2").text
                assert "<Reject" in ask(second, "CA3").text
                await carrier.hang_up()

        asyncio.run(main())

    def test_a_numbers_call_counts_nowhere_but_where_its_stream_is(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), max_calls_per_number=1, **settings(redis=redis.url)) for _ in range(2))

        async def main() -> None:
            async with dialled(stream_url(ask(first), second)) as carrier:
                await carrier.speak(tone(500, 60, 8000))
                await carrier.until("media")
                await until(lambda: not first.switchboard.numbers.knows(("twilio", CALL)))
                assert "<Reject" in ask(second, "CA2").text
                assert "<Stream" in ask(first, "CA3").text
                # One that hangs up before its stream came frees its number everywhere.
                ask(second, "CA3", path="twilio/status", CallStatus="completed")
                await until(lambda: not first.switchboard.numbers.knows(("twilio", "CA3")))
                assert "<Stream" in ask(first, "CA4").text
                await carrier.hang_up()

        asyncio.run(main())

    def test_a_report_reaches_the_server_that_has_the_stream(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))

        async def main() -> None:
            async with dialled(stream_url(ask(first), second)) as carrier:
                await carrier.speak(tone(500, 60, 8000))
                report = {"CallStatus": "completed", "StreamEvent": "stream-error", "StreamError": "codec"}
                ask(first, path="twilio/status", StreamSid="MZ1", **report)
                (session,) = second.switchboard.sessions
                await until(lambda: session.line.updates)
                await carrier.hang_up()

        asyncio.run(main())
        assert second.ended()[0].updates

    def test_a_forged_message_is_heard_by_nobody(self, serve: Any, redis: RedisServer) -> None:
        import redis as library

        server = serve(Bot(), **settings(redis=redis.url))
        with library.Redis.from_url(redis.url) as client:
            asyncio.run(until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 1))
            for message in (b"\xff", b"", b"a.b", b'["x","update","twilio","",{}]'):
                client.publish(CHANNEL, message)
        ask(server)
        asyncio.run(until(lambda: len(server.lines("none of this fleet's")) == 4))
        assert server.switchboard.capacity.reserved == 1

    def test_a_message_of_another_version_ends_nothing(self, serve: Any, redis: RedisServer) -> None:
        import redis as library

        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))

        async def main() -> None:
            update = asdict(CallUpdate(CALL, "completed"))
            strange = [
                ["x", "update", "twilio", "", {**update, "call_id": 7, "ended": True}],
                ["x", "update", "twilio", "", {**update, "event": None}],
                ["x", "update", "twilio", 5, update],
                ["x", "update", ["twilio"], "", update],
                ["x", "stream", "twilio", "", {"call_id": {}, "account_id": ""}],
                ["x", "stream", "twilio", "", {"call_id": "CA1"}],
                ["x", "stream", "twilio", "", []],
                7,
            ]
            with library.Redis.from_url(redis.url) as client:
                await until(lambda: client.pubsub_numsub(CHANNEL)[0][1] == 2)
                for each in strange:
                    client.publish(CHANNEL, first.switchboard.fleet.seals.seal("message", each))
            # Both hear them all, and have one log.
            await until(lambda: len(first.lines("is of another version of wsvoice")) == 2 * len(strange))
            async with dialled(stream_url(ask(first), second)) as carrier:
                await until(lambda: first.switchboard.capacity.reserved == 0, timeout_s=2)
                await carrier.hang_up()

        asyncio.run(main())

    def test_what_is_stored_are_digests_and_expires(self, serve: Any, redis: RedisServer) -> None:
        first, second = (serve(Bot(), **settings(redis=redis.url)) for _ in range(2))
        asyncio.run(have_call(stream_url(ask(first, idempotency="1"), second)))
        keys = redis.keys()
        assert {key.split(":")[1] for key in keys} >= {"token", "seen", "request", "call"}
        for key, ttl_s in keys.items():
            assert key.startswith("wsvoice:")
            assert CALL not in key
            assert 0 < ttl_s <= 2 * 24 * 3600

    def test_a_clients_token_too(self, serve: Any, redis: RedisServer) -> None:
        more = {"transport": "websocket", "proxy": "bot.example.com", "redis": redis.url}
        keys = {START_KEY: "k", STREAM_SECRET: "0123456789abcdef" * 4}
        first, second = (serve(Bot(), **more, credentials=keys) for _ in range(2))
        headers = {"Authorization": "Bearer k"}
        token = httpx.post(first.url + "start", json={}, headers=headers, timeout=5).json()["token"]

        async def main() -> None:
            async with websockets.connect(f"{second.ws_url}ws-client/{token}"):
                pass
            assert await is_refused(f"{first.ws_url}ws-client/{token}") == 403

        asyncio.run(main())
