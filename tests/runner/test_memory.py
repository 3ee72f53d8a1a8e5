"""
What a rush of calls leaves behind in the server's memory.

What can be freed is given back: here what bots leave in cycles, which Python looks for only while it makes objects.
What pipecat and the libraries keep after a first call stays; it is no more after the next rush.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.attacks.raw_websocket import RawStream, twilio_start
from tests.process import ServerProcess, server_process
from wsvoice.runner import memory
from wsvoice.runner.memory import CollectionPause, CycleCollector, MemoryTrimmer

#: Each call leaves 1 MB behind that only a look for cycles finds.
BOT = """
import gc

gc.disable()

async def bot(runner_args):
    cycle = [b"x" * 1000 + bytes([number % 256]) for number in range(1000)]
    cycle.append(cycle)
    async for _ in runner_args.websocket.iter_text():
        pass
"""
#: The same for a bot that serves clients on its own port.
OWN_PORT_BOT = """
import gc

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.runner import WorkerRunner

gc.disable()

async def bot(runner_args):
    transport = runner_args.transport

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        cycle = [b"x" * 1000 + bytes([number % 256]) for number in range(60000)]
        cycle.append(cycle)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(PipelineWorker(Pipeline([transport.input(), transport.output()])))
    await runner.run()
"""


def wait_until_most_is_back(process: ServerProcess, before_mb: float, rush_mb: float) -> None:
    assert rush_mb - before_mb > 50
    deadline = time.monotonic() + 20
    while process.memory_mb() > rush_mb - 0.6 * (rush_mb - before_mb):
        assert time.monotonic() < deadline, f"{before_mb:.0f}, {rush_mb:.0f}, {process.memory_mb():.0f} MB"
        time.sleep(0.2)


@contextlib.contextmanager
def probing(url: str) -> Iterator[None]:
    """Ask for the server's health all the time on one connection, as a load balancer does."""
    over = threading.Event()

    def probe() -> None:
        with httpx.Client() as client:
            while not over.wait(0.3):
                assert client.get(url + "healthz", timeout=20).status_code == 200

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("probed", [False, True], ids=["nobody else", "a load balancer's probe"])
def test_memory_is_given_back_after_a_rush(tmp_path: Path, probed: bool) -> None:
    with server_process(tmp_path, BOT, "-t", "twilio") as process, contextlib.ExitStack() as stack:
        if probed:
            stack.enter_context(probing(process.url))
        before_mb = process.memory_mb()
        streams = [RawStream(process.port) for _ in range(100)]
        for number, each in enumerate(streams):
            each.send(twilio_start(f"CA{number:032}", f"MZ{number:032}"))
        deadline = time.monotonic() + 20
        while process.log().count("stream started") < len(streams):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        rush_mb = process.memory_mb()
        for each in streams:
            each.close()
        wait_until_most_is_back(process, before_mb, rush_mb)


def test_also_by_a_bot_on_its_own_port(tmp_path: Path) -> None:
    async def call() -> float:
        async with connect(process.url):
            await asyncio.sleep(1.5)
            return process.memory_mb()

    with server_process(tmp_path, OWN_PORT_BOT, "-t", "websocket-server") as process:
        before_mb = process.memory_mb()
        wait_until_most_is_back(process, before_mb, asyncio.run(call()))


def test_only_when_nobody_is_there_and_not_often(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now, held, given = 0.0, 100_000_000, []
    monkeypatch.setattr(memory, "resident_bytes", lambda: held)
    monkeypatch.setattr(memory, "release_memory", lambda: given.append(now))
    returns = MemoryTrimmer(lambda: now)
    held = 200_000_000
    for now in (1.0, 2.0, 3.0, 4.0):
        returns.check(is_busy=now < 2)
    assert given == [4.0]
    for later in (5.0, 30.0, 63.0):
        now = later
        held += 50_000_000
        returns.check(is_busy=False)
    assert given == [4.0]
    now = 65.0
    returns.check(is_busy=False)
    assert given == [4.0, 65.0]
    # The time before which nothing is given back begins when something was.
    now = 130.0
    returns.check(is_busy=False)
    now, held = 140.0, held + 50_000_000
    returns.check(is_busy=False)
    assert given == [4.0, 65.0, 140.0]
    # Nothing has come since.
    now = 300.0
    returns.check(is_busy=False)
    assert given == [4.0, 65.0, 140.0]


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def searches() -> Iterator[list[int]]:
    """How many objects each search of all of them has freed."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            found.append(info["collected"])

    gc.collect()
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def _begin_calls(count: int) -> list[list[object]]:
    """Return objects as a hundred thousand of them would be left by calls that begin."""
    return [[[] for _ in range(1000)] for _ in range(count)]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python searches old objects bit by bit")
class TestCycles:
    def test_calls_that_begin_are_not_held_up(self, searches: list[int]) -> None:
        with CycleCollector().in_charge():
            kept = _begin_calls(500)
        assert not searches
        # Outside, as many objects are searched several times.
        del kept
        _begin_calls(500)
        assert searches

    def test_what_calls_leave_is_found(self, searches: list[int]) -> None:
        now = 100.0
        cycles = CycleCollector(lambda: now)
        with cycles.in_charge():
            left = [_Cycle() for _ in range(30)]
            gc.collect(1)
            references = [weakref.ref(each) for each in left]
            del left[:]
            cycles.check(running=100, ended=74)
            assert not searches
            assert references[0]() is not None
            cycles.check(running=100, ended=75)
            assert len(searches) == 1
            assert not any(each() for each in references)
            # Not often, however many calls are over at once.
            cycles.check(running=0, ended=1000)
            assert len(searches) == 1
            now = 105.0
            cycles.check(running=0, ended=99)
            assert len(searches) == 1
            cycles.check(running=0, ended=100)
            assert len(searches) == 2

    def test_also_when_memory_grows(self, searches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
        held = 100_000_000
        monkeypatch.setattr(memory, "resident_bytes", lambda: held)
        cycles = CycleCollector()
        with cycles.in_charge():
            held = 189_000_000
            cycles.check(running=1, ended=0)
            assert not searches
            held = 190_000_000
            cycles.check(running=1, ended=0)
            cycles.check(running=1, ended=0)
            assert len(searches) == 1
            # What was given back may not be taken again before the next search.
            held = 100_000_000
            cycles.check(running=1, ended=0)
            held = 190_000_000
            cycles.check(running=1, ended=0)
            assert len(searches) == 2

    def test_a_bot_that_decides_itself_does(self, searches: list[int]) -> None:
        cycles, threshold = CycleCollector(), gc.get_threshold()
        with cycles.in_charge():
            gc.disable()
            try:
                cycles.check(running=0, ended=1000)
            finally:
                gc.enable()
            for its_own in ((500, 5, 5), (50_000,), (0,)):
                gc.set_threshold(*its_own)
                cycles.check(running=0, ended=1000)
            assert not searches
            its_own = gc.get_threshold()
        assert gc.get_threshold() == its_own
        with cycles.in_charge():
            assert gc.get_threshold() == its_own
        gc.set_threshold(*threshold)


class TestPause:
    def test_it_ends_and_the_next_one_is_not_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "UNCOLLECTED_S", 0.05)
        monkeypatch.setattr(memory, "COLLECTED_S", 60)

        async def main() -> None:
            pause, before = CollectionPause(), gc.get_threshold()
            pause.begin()
            assert gc.get_threshold()[0] == 0
            async with asyncio.timeout(5):
                while gc.get_threshold() != before:
                    await asyncio.sleep(0.01)
            # Calls that come all the time must not keep it off.
            pause.begin()
            assert gc.get_threshold() == before

        asyncio.run(main())

    def test_it_ends_when_the_server_stops(self) -> None:
        async def main() -> None:
            pause, before = CollectionPause(), gc.get_threshold()
            pause.begin()
            pause.end()
            assert gc.get_threshold() == before

        asyncio.run(main())

    def test_what_a_bot_sets_meanwhile_stays(self) -> None:
        async def main() -> None:
            pause, before = CollectionPause(), gc.get_threshold()
            pause.begin()
            gc.disable()
            gc.set_threshold(1000, 5, 5)
            pause.end()
            assert not gc.isenabled()
            assert gc.get_threshold() == (1000, 5, 5)
            gc.enable()
            gc.set_threshold(*before)

        asyncio.run(main())

    def test_one_that_a_closed_loop_left_behind_is_ended(self) -> None:
        pause, before = CollectionPause(), gc.get_threshold()

        async def main() -> None:
            pause.begin()

        for _ in range(2):
            asyncio.run(main())
        assert gc.get_threshold()[0] == 0
        pause.end()
        assert gc.get_threshold() == before
