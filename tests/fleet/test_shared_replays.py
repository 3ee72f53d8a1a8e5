"""The rules of replays hold over all servers: what ``TestReplayGuard`` says of one, in a real Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fleet.redis_server import RedisServer
from wsvoice.errors import SignatureError
from wsvoice.runner import shared_replays
from wsvoice.runner.auth import REPEAT_AGE_S, REPEAT_LIMIT, REPEAT_WINDOW_S
from wsvoice.runner.shared_memory import RedisMemory
from wsvoice.runner.shared_replays import SharedReplays

CALL = ("twilio", "CA1")


class Fleet:
    """Two servers that remember together, asked in turn; with a clock of the test's."""

    def __init__(self, memories: list[RedisMemory]) -> None:
        self.now = 1_000_000.0
        self._servers = [SharedReplays(each, now=lambda: self.now) for each in memories]
        self._memories = memories
        self._turn = 0

    def next(self) -> SharedReplays:
        self._turn += 1
        return self._servers[self._turn % 2]

    async def admit(self, key: str, token: str | None, *, succeeds: bool = True, call: Any = CALL) -> bool:
        try:
            admitted = await self.next().admit(key, token, call, until=time.monotonic())
        except SignatureError:
            return False
        assert admitted is not None
        async with admitted as succeed:
            if succeeds:
                succeed()
        return True

    async def started(self, call: Any = CALL) -> SharedReplays:
        server = self.next()
        server.stream_started(call)
        await self.settled()
        return server

    async def stream(self, call: Any = CALL) -> None:
        (await self.started(call)).stream_ended(call)
        await self.settled()

    async def settled(self) -> None:
        """Wait until what is done later has been done."""
        for each in self._memories:
            while each._queue:
                await asyncio.sleep(0)
            await each.run("return 1", [])
            await each.run("return 1", [])


@pytest.fixture
def play(redis: RedisServer) -> Callable[[Callable[[Fleet], Coroutine[Any, Any, None]]], None]:
    """Return what plays a scenario with two servers."""

    @asynccontextmanager
    async def fleet() -> AsyncIterator[Fleet]:
        memories = [RedisMemory(redis.url) for _ in range(2)]
        yield Fleet(memories)
        for each in memories:
            await each.close()

    def run(scenario: Callable[[Fleet], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with fleet() as made:
                await scenario(made)

        asyncio.run(main())

    return run


def test_remembered_for_a_day_and_only_after_success(play: Any) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert await fleet.admit("a", "1", succeeds=False)
        assert await fleet.admit("a", "1")
        assert not await fleet.admit("a", "1")
        assert not await fleet.admit("a", "other")
        fleet.now += 24 * 3600 + 1
        assert await fleet.admit("a", "1")

    play(scenario)


def test_the_same_webhook_is_not_answered_twice_at_once(play: Any) -> None:
    async def scenario(fleet: Fleet) -> None:
        admitted = await fleet.next().admit("a", "1", CALL, until=0)
        assert admitted is not None
        async with admitted:
            assert not await fleet.admit("a", "1")
            assert not await fleet.admit("a", "2")
            assert await fleet.admit("b", "1")
        assert await fleet.admit("a", "1")

    play(scenario)


@pytest.mark.parametrize("token", ["2", None])
def test_good_once_more_for_each_stream_that_has_ended(play: Any, token: str | None) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert await fleet.admit("a", token and "1")
        assert not await fleet.admit("a", token)
        server = await fleet.started()
        assert not await fleet.admit("a", token)
        server.stream_ended(CALL)
        await fleet.settled()
        assert await fleet.admit("a", token)
        assert not await fleet.admit("a", token and "3")
        await fleet.stream()
        assert await fleet.admit("a", token and "3")
        for replayed in ("1", "2", "3"):
            if token is not None:
                assert not await fleet.admit("a", replayed)

    play(scenario)


def test_a_call_that_is_over_does_not_come_back_nor_one_that_was_left_long_ago(play: Any) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert await fleet.admit("a", "1")
        await fleet.stream()
        fleet.now += REPEAT_WINDOW_S + 1
        assert not await fleet.admit("a", "2")
        await fleet.stream()
        fleet.next().call_ended(CALL)
        await fleet.settled()
        assert not await fleet.admit("a", "3")

    play(scenario)


def test_a_stream_of_another_call_changes_nothing(play: Any) -> None:
    async def scenario(fleet: Fleet) -> None:
        assert await fleet.admit("a", "1")
        await fleet.stream(("plivo", "CA1"))
        assert not await fleet.admit("a", "2")

    play(scenario)


@pytest.mark.parametrize("token", ["sent", None])
def test_a_captured_webhook_is_of_no_use_after_its_call(play: Any, token: str | None) -> None:
    async def scenario(fleet: Fleet) -> None:
        began, accepted = fleet.now, []
        while (at := fleet.now - began) < 3 * 24 * 3600:
            if await fleet.admit("a", token and f"{at}"):
                accepted.append(at)
                await fleet.stream()
            fleet.now += REPEAT_WINDOW_S - 10
        lasting = [at for at in accepted if at <= REPEAT_AGE_S]
        assert len(lasting) > 1
        assert len(accepted) - len(lasting) == 2
        assert accepted[len(lasting)] > 24 * 3600

    play(scenario)


def test_a_call_comes_back_so_often_and_no_more(play: Any) -> None:
    async def scenario(fleet: Fleet) -> None:
        for number in range(REPEAT_LIMIT + 1):
            assert await fleet.admit("a", str(number))
            await fleet.stream()
        assert not await fleet.admit("a", "x")

    play(scenario)


def test_a_stream_whose_server_has_died_has_ended(
    play: Any, monkeypatch: pytest.MonkeyPatch, redis: RedisServer
) -> None:
    monkeypatch.setattr(shared_replays, "STREAM_LEASE_S", 1)

    async def scenario(fleet: Fleet) -> None:
        assert await fleet.admit("a", "1")
        server = await fleet.started()
        # It still is there: the stream is kept for longer.
        monkeypatch.setattr(shared_replays, "STREAM_LEASE_S", 60)
        server.renew()
        await fleet.settled()
        assert next(ttl_s for key, ttl_s in redis.keys().items() if ":streams:" in key) > 30
        assert not await fleet.admit("a", "2")
        monkeypatch.setattr(shared_replays, "STREAM_LEASE_S", 0)
        server._renewed_at = 0.0
        server.renew()
        await fleet.settled()
        assert await fleet.admit("a", "2")

    play(scenario)
