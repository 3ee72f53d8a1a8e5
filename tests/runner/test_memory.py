"""
What a rush of calls leaves behind in the server's memory.

What can be freed is given back: here what bots leave in cycles, which Python looks for only while it makes objects.
What pipecat and the libraries keep after a first call stays; it is no more after the next rush.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.attacks.raw_websocket import RawStream, twilio_start
from tests.process import ServerProcess, server_process
from wsvoice.runner import memory
from wsvoice.runner.memory import MemoryTrimmer

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
