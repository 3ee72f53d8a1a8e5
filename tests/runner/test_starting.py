"""Bots whose calls come at once start one after the other."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator

import pytest

from wsvoice.runner.starting import MAX_START_S, Starts


def always_busy() -> float:
    return time.monotonic()


def never_busy() -> float:
    return 0.0


@pytest.fixture(autouse=True)
def collection() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


class TestStarts:
    def test_one_after_the_other_in_the_order_of_their_calls(self) -> None:
        happened = []

        async def start(number: int, starts: Starts) -> None:
            started = await starts.wait()
            happened.append(f"begin {number}")
            await asyncio.sleep(0)
            happened.append(f"end {number}")
            started()

        async def main() -> None:
            starts = Starts(always_busy)
            await asyncio.gather(*(start(number, starts) for number in range(3)))

        asyncio.run(main())
        assert happened == ["begin 0", "end 0", "begin 1", "end 1", "begin 2", "end 2"]

    def test_none_waits_for_one_that_waits(self) -> None:
        async def main() -> None:
            starts = Starts(never_busy)
            await starts.wait()
            async with asyncio.timeout(5):
                await starts.wait()

        asyncio.run(main())

    def test_none_waits_long_for_one_that_is_always_busy(self) -> None:
        async def main() -> float:
            starts, begun_at = Starts(always_busy), time.monotonic()
            await starts.wait()
            async with asyncio.timeout(5):
                await starts.wait()
            return time.monotonic() - begun_at

        assert asyncio.run(main()) >= MAX_START_S

    @pytest.mark.parametrize("has_its_turn", [False, True], ids=["while it waits", "as its turn comes"])
    def test_one_that_is_cancelled_is_left_out(self, has_its_turn: bool) -> None:
        async def main() -> None:
            starts = Starts(always_busy)
            started = await starts.wait()
            waiting = [asyncio.create_task(starts.wait()) for _ in range(2)]
            await asyncio.sleep(0)
            if has_its_turn:
                started()
                waiting[0].cancel()
            else:
                waiting[0].cancel()
                await asyncio.sleep(0)
                started()
            for _ in range(5):
                await asyncio.sleep(0)
            assert waiting[0].cancelled()
            assert waiting[1].done()

        asyncio.run(main())

    def test_what_has_started_long_ago_ends_no_other_start(self) -> None:
        async def main() -> None:
            starts = Starts(always_busy)
            first = await starts.wait()
            first()
            await starts.wait()
            third = asyncio.create_task(starts.wait())
            await asyncio.sleep(0)
            first()
            await asyncio.sleep(0)
            assert not third.done()

        asyncio.run(main())

    def test_no_garbage_is_collected_meanwhile(self) -> None:
        async def main() -> None:
            starts = Starts(always_busy)
            await starts.wait()
            assert gc.get_threshold()[0] == 0
            starts.collection.end()

        asyncio.run(main())

    def test_none_waits_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Twenty would take a second, if each took the time that it may."""
        monkeypatch.setattr("wsvoice.runner.starting.MAX_START_S", 5)
        monkeypatch.setattr("wsvoice.runner.starting.MAX_WAIT_S", 0.1)

        async def main() -> None:
            starts = Starts(always_busy)
            async with asyncio.timeout(4):
                await asyncio.gather(*(starts.wait() for _ in range(20)))

        asyncio.run(main())

    def test_another_event_loop_begins_anew(self) -> None:
        starts = Starts(always_busy)

        async def main() -> None:
            async with asyncio.timeout(5):
                await starts.wait()

        for _ in range(2):
            asyncio.run(main())
