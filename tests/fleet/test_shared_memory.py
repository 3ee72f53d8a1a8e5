"""What servers remember together in a real Redis, and what becomes of calls while that is away."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.ports import free_port
from tests.fleet.redis_server import RedisServer, redis_server
from tests.fleet.servers import Bot, ask, settings, stream_url, until
from tests.fleet.test_two_servers import have_call, is_refused, stream_url_at
from tests.process import server_process
from tests.runner.carrier import dialled
from tests.signals import tone
from wsvoice.config import STREAM_SECRET, RunConfig
from wsvoice.errors import ConfigError, ServerError
from wsvoice.runner import shared_memory
from wsvoice.runner.preflight import check_settings
from wsvoice.runner.shared_memory import RedisMemory, connect

SECRET = "0123456789abcdef" * 4
#: The longest that a webhook may wait for a Redis that does not answer.
MOST_S = 0.2


def remember(url: str, work: Any) -> Any:
    async def main() -> Any:
        memory = RedisMemory(url)
        try:
            return await work(memory)
        finally:
            await memory.close()

    return asyncio.run(main())


def test_a_name_is_taken_once_until_it_is_given_back_or_expires(redis: RedisServer) -> None:
    async def work(memory: RedisMemory) -> None:
        assert await memory.take("a", 60) is True
        assert await memory.take("a", 60) is False
        assert await memory.take("b", 60) is True
        await memory.give_back("a")
        assert await memory.take("a", 0.02) is True
        await asyncio.sleep(0.05)
        assert await memory.take("a", 60) is True

    remember(redis.url, work)


def test_a_number_is_added_to_and_forgotten(redis: RedisServer) -> None:
    async def work(memory: RedisMemory) -> None:
        assert await memory.add("minutes", 1.5, 60) == 1.5
        assert await memory.add("minutes", 2, 600) == 3.5
        assert 0 < redis.keys()["wsvoice:minutes"] <= 60

    remember(redis.url, work)


def test_what_is_done_later_is_done_in_order(redis: RedisServer) -> None:
    async def work(memory: RedisMemory) -> None:
        for number in range(200):
            memory.later("redis.call('SET', KEYS[1], ARGV[1])", ["last"], number)
        await until(lambda: not memory._queue)
        assert await memory.run("return redis.call('GET', KEYS[1])", ["last"]) == "199"

    remember(redis.url, work)


def test_many_at_once_share_the_connections(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # How fast they are is not what is tested.
    monkeypatch.setattr(shared_memory, "TIMEOUT_S", 10.0)

    async def work(memory: RedisMemory) -> None:
        taken = await asyncio.gather(*(memory.take(f"t{number % 100}", 60) for number in range(300)))
        assert taken.count(True) == 100
        assert taken.count(False) == 200

    remember(redis.url, work)


def test_one_that_is_not_there_is_told_at_start(tmp_path: Path) -> None:
    url = f"redis://:hidden@127.0.0.1:{free_port()}"
    with pytest.raises(ServerError, match="does not answer") as caught:
        connect(url)
    assert caught.value.exit_code == 1
    assert "--redis" in str(caught.value.hint)
    assert "hidden" not in caught.value.message


def test_a_wrong_password_is_told_at_start(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        with pytest.raises(ServerError) as caught:
            connect(server.url)
        assert "redis://:PASSWORD@" in str(caught.value.hint)
        assert connect(server.url.replace("//", "//:right@")) is not None


def test_one_that_takes_no_writes_is_told_at_start(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "1", "--maxmemory-policy", "noeviction") as server:
        with pytest.raises(ServerError, match=r"does not remember: .*maxmemory") as caught:
            connect(server.url)
        assert "no replica" in str(caught.value.hint)


@pytest.mark.parametrize("lacks", ["-set", "-eval", "resetchannels"])
def test_what_its_user_may_not_do_is_told_at_start(redis: RedisServer, lacks: str) -> None:
    import redis as library

    with library.Redis.from_url(redis.url) as client:
        client.execute_command("ACL", "SETUSER", "bot", "reset", "on", ">secret", "~*", "&*", "+@all", lacks)
        try:
            with pytest.raises(ServerError, match="does not remember"):
                connect(redis.url.replace("//", "//bot:secret@"))
        finally:
            client.execute_command("ACL", "DELUSER", "bot")


def test_one_at_a_socket_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"

    async def work(memory: RedisMemory) -> None:
        assert await memory.take("a", 60) is True
        assert await memory.take("a", 60) is False

    with redis_server(tmp_path, "--unixsocket", str(path)):
        assert connect(f"unix://{path}") is not None
        remember(f"unix://{path}", work)


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("socket_timeout=abc", "'socket_timeout'"),
        ("foo=bar", "got an unexpected keyword argument 'foo'"),
        ("protocol=9", "protocol must be"),
    ],
)
def test_options_in_the_url_that_are_none(query: str, why: str) -> None:
    url = f"redis://:hidden@127.0.0.1:{free_port()}?{query}"
    with pytest.raises(ConfigError, match="is not understood: ") as caught:
        connect(url)
    assert why in caught.value.message
    assert "hidden" not in caught.value.message
    # `wsvoice run --check` says so too, which asks nobody.
    with pytest.raises(ConfigError, match="is not understood"):
        check_settings(RunConfig(redis=url, credentials={STREAM_SECRET: SECRET}))


def test_the_command_ends_with_1(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    bot = "async def bot(runner_args):\n    pass\n"
    with (
        pytest.raises(AssertionError, match="does not answer"),
        server_process(tmp_path, bot, "--redis", url, **{STREAM_SECRET: SECRET}),
    ):
        pass


@pytest.fixture
def often_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away is asked often whether it is back."""
    monkeypatch.setattr(shared_memory, "RETRY_S", 0.1)


@pytest.mark.usefixtures("often_asked")
class TestAway:
    def test_calls_go_on_and_each_server_remembers_by_itself(self, serve: Any, own_redis: RedisServer) -> None:
        bot = Bot()
        first, second = (serve(bot, **settings(redis=own_redis.url)) for _ in range(2))

        async def main() -> None:
            async with dialled(stream_url(ask(first, "CA1"), first), "CA1") as carrier:
                own_redis.stop()
                url = stream_url(ask(first, "CA2", idempotency="1"), second)
                await have_call(url, "CA2")
                assert await is_refused(url) == 403
                assert ask(first, "CA2", idempotency="1").status_code == 403
                # What is weaker now, and what the log says of it.
                assert ask(second, "CA2", idempotency="1").status_code == 200
                await carrier.speak(tone(500, 60, 8000))
                await carrier.until("media")
                own_redis.start()
                await until(lambda: len(first.lines("Redis is back")) == 2)
                await have_call(url := stream_url(ask(first, "CA3"), second), "CA3")
                assert await is_refused(stream_url_at(url, first)) == 403
                await carrier.hang_up()

        asyncio.run(main())
        # Servers of one process have one log; each says it once.
        assert len(first.lines("Redis does not answer", "may be used once at each")) == 2
        assert len(first.lines("Redis is back")) == 2

    def test_an_error_with_a_message_does_not_end_the_listening(self, redis: RedisServer) -> None:
        heard: list[str] = []

        def hear(message: str) -> None:
            heard.append(message)
            if message == "odd":
                raise AttributeError("odd")

        async def work(memory: RedisMemory) -> None:
            memory.on_message = hear
            memory.start()
            for message in ("odd", "even"):

                async def arrives(message: str = message) -> None:
                    while message not in heard:
                        memory.publish(message)
                        await asyncio.sleep(0.05)

                await asyncio.wait_for(arrives(), 5)

        remember(redis.url, work)

    def test_one_that_is_full_is_told_once(self, serve: Any, own_redis: RedisServer) -> None:
        import redis as library

        server = serve(Bot(), **settings(redis=own_redis.url))
        with library.Redis.from_url(own_redis.url) as client:
            client.config_set("maxmemory", "1")
            # Meanwhile it is asked a few times whether it is there, and answers.
            for number in range(5):
                ask(server, f"CA{number}")
                time.sleep(0.15)
            assert server.lines("Redis does not answer", "maxmemory")
            assert not server.lines("Redis is back")
            client.config_set("maxmemory", "0")
            asyncio.run(until(lambda: server.lines("Redis is back")))
        assert len(server.lines("Redis does not answer")) == len(server.lines("Redis is back")) == 1

    def test_one_that_hangs_holds_up_no_webhook(
        self, serve: Any, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(Bot(), **settings(redis=own_redis.url))
        ask(server, "CA0")
        own_redis.freeze()
        waits = []
        for number in range(1, 6):
            begin = time.monotonic()
            assert "<Stream" in ask(server, f"CA{number}").text
            waits.append(time.monotonic() - begin)
        # The slack is the tests' own.
        assert waits[0] < MOST_S + 0.1
        assert max(waits[1:]) < MOST_S / 2
        own_redis.thaw()
        asyncio.run(until(lambda: server.lines("Redis is back")))
        assert len(server.lines("Redis does not answer", "no answer within 0.1 s")) == 1

    def test_messages_are_heard_again_afterwards(self, serve: Any, own_redis: RedisServer) -> None:
        first, second = (serve(Bot(), max_calls=1, **settings(redis=own_redis.url)) for _ in range(2))
        own_redis.stop()
        ask(first, "CA1")
        own_redis.start()
        asyncio.run(until(lambda: len(first.lines("Redis is back")) == 2))

        async def main() -> None:
            # It may be back before the first server listens to it again.
            for number in range(2, 100):
                first.switchboard.capacity.forget(("twilio", f"CA{number - 1}"))
                await have_call(stream_url(ask(first, f"CA{number}"), second), f"CA{number}")
                with suppress(TimeoutError):
                    await until(lambda: not first.switchboard.capacity.reserved, timeout_s=0.2)
                    return
            raise AssertionError("the first server hears nothing")

        asyncio.run(main())
