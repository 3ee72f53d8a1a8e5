"""A real server on a real port, in a thread of its own, for as long as a test needs it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from wsvoice.config import RunConfig
from wsvoice.runner import server as server_module
from wsvoice.runner.server import DrainingServer


@dataclass
class RunningServer:
    """A server that listens; `log` fills while it works."""

    url: str
    log: list[str]
    switchboard: Any
    stop: Callable[[], None]
    records: list[Any] = field(default_factory=list)
    #: What the module's server runs for each call.
    bot: Any = None
    #: What it said once it listened.
    ready: Any = None

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def ended(self, count: int = 1, timeout_s: float = 10) -> list[Any]:
        """Wait until `count` calls have ended; return their records."""
        deadline = time.monotonic() + timeout_s
        while len(self.records) < count:
            assert time.monotonic() < deadline, f"{len(self.records)} of {count} calls have ended"
            time.sleep(0.005)
        return self.records

    def lines(self, *needles: str) -> list[str]:
        """The log lines that hold every needle."""
        return [line for line in self.log if all(needle in line for needle in needles)]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunningServer]]:
    """Return a function that serves a bot: ``serve(bot, transport="twilio", max_calls=1, …)``."""
    with serving(monkeypatch) as start:
        yield start


@pytest.fixture
def unhurried(serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn's own pauses, on ``asyncio`` itself, for the servers of this test."""
    monkeypatch.setattr("uvicorn.server.asyncio", asyncio)


@pytest.fixture(scope="module")
def module_server() -> Iterator[RunningServer]:
    """Every provider on one server for all tests of a module; see :func:`shared`."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as start:

        async def bot(runner_args: Any) -> None:
            await server.bot(runner_args)

        server = start(bot, transport=None)
        yield server


@pytest.fixture
def shared(module_server: RunningServer) -> Iterator[RunningServer]:
    """
    Return the module's server with a clean record; a test gives it its `bot`.

    Starting and stopping a server takes longer than most calls.
    """
    module_server.records.clear()
    module_server.log.clear()
    yield module_server
    deadline = time.monotonic() + 10
    while module_server.switchboard.active_calls:
        assert time.monotonic() < deadline, "a call goes on after its test"
        time.sleep(0.005)


class Pauses:
    """The pauses of one server: once it is told to stop, they are over."""

    def __init__(self) -> None:
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def wait(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        if self._told.is_set():
            await asyncio.sleep(min(seconds, 0.005))
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told.wait()

    def end(self) -> None:
        # The server may have ended by itself.
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._told.set)


class HurriedAsyncio:
    """
    ``asyncio`` as uvicorn's servers know it here.

    uvicorn looks ten times a second whether it is to stop, and then waits for a tenth of a second once more. Hundreds
    of tests would wait for that.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        pauses = getattr(_own, "pauses", None)
        await (pauses.wait(seconds) if pauses else asyncio.sleep(seconds))


#: What each server's thread has for itself.
_own = threading.local()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunningServer]]:
    """Give the function that serves a bot; all servers are stopped in the end."""
    stops: list[Callable[[], None]] = []

    class Recording(DrainingServer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _own.made.update(server=self, switchboard=args[1])

    monkeypatch.setattr(server_module, "DrainingServer", Recording)
    monkeypatch.setattr("uvicorn.server.asyncio", HurriedAsyncio())

    def start(bot: Any, **settings: Any) -> RunningServer:
        config = RunConfig(**{"transport": "twilio", "port": 0, "host": "127.0.0.1", **settings})
        log: list[str] = []
        line = "{level} {extra} {message}\n{exception}"
        sink = logger.add(lambda message: log.append(str(message)), level="DEBUG", format=line)
        ready = threading.Event()
        made: dict[str, Any] = {}

        class Loaded:
            function = staticmethod(bot)
            path = Path(__file__)
            name = "bot.py"

        def on_ready(each: server_module.Ready) -> None:
            made["ready"] = each
            ready.set()

        pauses = Pauses()

        def run() -> None:
            _own.made, _own.pauses = made, pauses
            try:
                server_module.serve(Loaded, config, on_ready=on_ready)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
                made["error"] = error
                ready.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(30), "the server did not start"
        if "error" in made:
            logger.remove(sink)
            raise made["error"]

        def stop() -> None:
            made["server"].should_exit = True
            pauses.end()
            thread.join(20)
            assert not thread.is_alive(), "the server did not stop"

        running = RunningServer(made["ready"].url, log, made["switchboard"], stop)
        running.ready = made["ready"]
        run_session = made["switchboard"].run_session

        async def record(session: Any) -> None:
            running.records.append(await run_session(session))

        made["switchboard"].run_session = record

        def end() -> None:
            if thread.is_alive():
                stop()
            logger.remove(sink)

        stops.append(end)
        return running

    try:
        yield start
    finally:
        for end in stops:
            end()
