"""
Places on a server with workers: how many calls there are at once, when a place is free again, and whether one leaks.

``CALLS=200 CAP=50 TOTAL=1000 pytest -n 0 -s --timeout 1200 tests/workers/test_capacity.py`` has 200 callers at once
at a cap of 50, then 1,000 calls, and prints what it found.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import httpx
import pytest
import websockets

from tests.crowd import Busy, Crowd
from tests.process import ServerProcess
from tests.runner.carrier import Carrier
from tests.signals import tone
from tests.workers.processes import bot_of, descriptors, kill, look_at, serving_workers, wait_until, workers_process

CALLS, CAP, TOTAL = (int(os.environ.get(name, default)) for name, default in (("CALLS", 24), ("CAP", 6), ("TOTAL", 30)))
#: Whoever is not served, told busy or cut off within so many seconds hangs.
HANGS_S = 60
#: A place is free again within so many seconds.
FREE_S = 1.0
#: So often a worker is killed while all these calls come and go.
KILLS = max(1, TOTAL // 200)

_PIECE = tone(500, 100, 8000)
_TOKEN = "wsvoice_test_auth_token_0000001"
# No call of a server has the id of another one.
_numbers = itertools.count(1)

End = Literal["served", "vanished", "busy", "lost", "hung"]


@dataclass
class Line:
    """
    What callers have noticed.

    Attributes:
        ends: How calls have ended.
        refused: Why streams were not accepted although their webhooks had been; nobody is to be.
        talking: How many calls are connected, by their own count.
        most: How many were, at most.
        let_in_at: When a webhook was last answered with a stream, by the monotonic clock.
        waits_s: How long each waited for its answer: the first sound, or that the server is busy.
    """

    ends: Counter[End] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    talking: int = 0
    most: int = 0
    let_in_at: float = 0.0
    waits_s: dict[End, list[float]] = field(default_factory=lambda: {"served": [], "busy": []})

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Count a connected call while the context lasts."""
        self.talking += 1
        self.most = max(self.most, self.talking)
        try:
            yield
        finally:
            self.talking -= 1


class Callers:
    """Callers whose webhooks are signed; they say something, hear it, and stay until they are told to go."""

    def __init__(self, url: str) -> None:
        self.line = Line()
        self.crowd = Crowd(url, auth_token=_TOKEN)

    async def call(self, over: asyncio.Event, *, vanishes: bool = False, insists: bool = False) -> End:
        """
        Call, and return how that ended.

        Args:
            over: Set when it is to end.
            vanishes: Its connection is then cut, without a word to the server.
            insists: It calls again and again until the server is not busy.
        """
        try:
            async with asyncio.timeout(HANGS_S):
                end = await self._call(over, vanishes=vanishes)
                while insists and end == "busy":
                    await asyncio.sleep(0.02)
                    end = await self._call(over, vanishes=vanishes)
        except (TimeoutError, httpx.TimeoutException):
            end = "hung"
        except websockets.InvalidStatus as error:
            end = "lost"
            self.line.refused.append(f"{error.response.status_code} {(error.response.body or b'').decode()}")
        except (OSError, websockets.WebSocketException, httpx.TransportError):
            end = "lost"
        self.line.ends[end] += 1
        return end

    async def _call(self, over: asyncio.Event, *, vanishes: bool) -> End:
        call_sid, began = f"CA{next(_numbers):032d}", time.monotonic()
        try:
            url = await self.crowd.ask(call_sid)
        except Busy:
            self.line.waits_s["busy"].append(time.monotonic() - began)
            return "busy"
        self.line.let_in_at = time.monotonic()
        async with self.crowd.stream(call_sid, url) as carrier:
            with self.line.connected():
                if not await _talks(carrier):
                    return "lost"
                self.line.waits_s["served"].append(time.monotonic() - began)
                if not await _stays(carrier, over):
                    return "lost"
            if vanishes:
                carrier.socket.transport.abort()
                return "vanished"
            await carrier.hang_up()
        return "served"

    async def close(self) -> None:
        await self.crowd.close()


async def _talks(carrier: Carrier) -> bool:
    """Speak until the bot's first sound; false if the call was cut before it."""
    while not carrier.of("media"):
        if carrier.socket.close_code is not None:
            return False
        await carrier.speak(_PIECE)
    return True


async def _stays(carrier: Carrier, over: asyncio.Event) -> bool:
    """Stay until it is over; false if the call was cut before that."""
    cut, told = asyncio.create_task(carrier.socket.wait_closed()), asyncio.create_task(over.wait())
    try:
        await asyncio.wait([cut, told], return_when=asyncio.FIRST_COMPLETED)
        return told.done()
    finally:
        cut.cancel()
        told.cancel()


class Watch:
    """Asks the server again and again how many calls there are."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.seen: list[int] = []
        self._is_over = False

    async def __aenter__(self) -> Watch:
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await self._task

    async def _look(self) -> None:
        while not self._is_over:
            self.seen.append((await asyncio.to_thread(look_at, self._server)).server.calls)
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("capacity")
    arguments = ["--workers", "2", "--max-calls", str(CAP), "--log-level", "INFO"]
    with workers_process(folder, bot_of(), *arguments, TWILIO_AUTH_TOKEN=_TOKEN) as server:
        yield server


def test_as_many_calls_as_there_are_places_and_the_others_are_told_busy(server: ServerProcess) -> None:
    async def main() -> None:
        callers, over = Callers(server.url), asyncio.Event()
        line = callers.line
        async with asyncio.TaskGroup() as group, Watch(server) as watch:
            for _ in range(CALLS):
                group.create_task(callers.call(over))
            while len(line.waits_s["served"]) + line.ends.total() < CALLS:
                await asyncio.sleep(0.01)
            found, at = look_at(server), time.monotonic()
            by_worker = [each.calls for each in found.server.workers]
            assert (line.talking, line.ends["busy"], found.server.calls) == (CAP, CALLS - CAP, CAP), line
            await asyncio.sleep(1.0)
            assert line.talking == CAP
            over.set()
        print(
            f"{CALLS} callers at a cap of {CAP}: {dict(line.ends)}; at most {line.most} at once by their own count, and"
            f" {max(watch.seen)} by the server's, looked at {len(watch.seen)} times; {by_worker} on the workers; busy"
            f" after {max(line.waits_s['busy']):.2f} s at most, served after {max(line.waits_s['served']):.2f} s at"
            f" most; stood full for {time.monotonic() - at:.1f} s"
        )
        assert line.ends == {"served": CAP, "busy": CALLS - CAP}, line
        assert not line.refused
        assert line.most == max(watch.seen) == CAP
        assert max(by_worker) - min(by_worker) <= 1
        await callers.close()
        wait_until(lambda: look_at(server).server.calls == 0, "no call is left")

    asyncio.run(main())


@pytest.mark.parametrize("how", ["hangs up", "vanishes", "loses its worker"])
def test_a_place_is_free_within_a_second_of_a_calls_end(server: ServerProcess, how: str) -> None:
    wait_until(lambda: len(serving_workers(server)) == 2, "both workers take calls")

    async def main() -> None:
        callers, over = Callers(server.url), asyncio.Event()
        line, took_s = callers.line, []
        async with asyncio.TaskGroup() as group:
            ends = [asyncio.Event() for _ in range(CAP)]
            for each in ends:
                group.create_task(callers.call(each, vanishes=how == "vanishes"))
            while line.talking < CAP:
                await asyncio.sleep(0.01)
            for number in range(1 if how == "loses its worker" else min(CAP, 5)):
                waiting = group.create_task(callers.call(over, insists=True))
                await asyncio.sleep(0.1)
                assert line.ends["busy"] == 0
                busy, began = len(line.waits_s["busy"]), time.monotonic()
                assert busy
                if how == "loses its worker":
                    kill(serving_workers(server)[1].pid)
                else:
                    ends[number].set()
                while line.let_in_at < began:
                    assert not waiting.done()
                    await asyncio.sleep(0.005)
                took_s.append(line.let_in_at - began)
            for each in (*ends, over):
                each.set()
        print(f"a caller {how}: the place is free after {', '.join(f'{each:.3f}' for each in took_s)} s; {line.ends}")
        assert max(took_s) < FREE_S
        assert line.most <= CAP
        assert not line.refused
        assert line.ends["hung"] == 0
        await callers.close()

    asyncio.run(main())


def test_no_place_leaks_when_callers_vanish_and_workers_are_killed(server: ServerProcess) -> None:
    wait_until(lambda: len(serving_workers(server)) == 2 and not look_at(server).server.calls, "both workers idle")
    open_before = descriptors(server.process.pid)

    async def main() -> None:
        callers, orders, dice = Callers(server.url), iter(range(TOTAL)), random.Random(1)
        line, killed = callers.line, 0

        async def keep_calling() -> None:
            for number in orders:
                over = asyncio.Event()
                asyncio.get_running_loop().call_later(dice.uniform(0.2, 1.0), over.set)
                await callers.call(over, vanishes=number % 3 == 0, insists=True)

        began = time.monotonic()
        async with asyncio.TaskGroup() as group, Watch(server) as watch:
            # More than there are places, so that all of them are always wanted.
            calling = [group.create_task(keep_calling()) for _ in range(CAP + 2)]
            while not all(each.done() for each in calling):
                if killed < KILLS and line.ends.total() >= TOTAL * (killed + 1) // (KILLS + 1):
                    workers = await asyncio.to_thread(serving_workers, server)
                    if len(workers) == 2 and workers[1 + killed % 2].calls:
                        kill(workers[1 + killed % 2].pid)
                        killed += 1
                await asyncio.sleep(0.02)
        print(
            f"{TOTAL} calls in {time.monotonic() - began:.0f} s: {dict(line.ends)}; {killed} workers killed; at most"
            f" {line.most} at once by the callers' count; {max(watch.seen)} bots, with those that finish"
        )
        assert killed == KILLS
        assert line.ends.total() == TOTAL
        assert line.ends["vanished"] >= TOTAL // 4
        assert line.ends["lost"] <= KILLS * (CAP // 2 + 2)
        assert line.ends["hung"] == 0
        assert line.most <= CAP
        # As many bots again may finish their work.
        assert max(watch.seen) <= 2 * CAP
        await callers.close()

    asyncio.run(main())
    took_s = wait_until(lambda: not look_at(server).server.calls, "no call is left")
    wait_until(lambda: descriptors(server.process.pid) <= open_before, "no descriptor is left open")
    print(f"no call is left {took_s:.2f} s after the last; {descriptors(server.process.pid)} descriptors, as before")
    wait_until(lambda: len(serving_workers(server)) == 2, "both workers take calls")
    test_as_many_calls_as_there_are_places_and_the_others_are_told_busy(server)
