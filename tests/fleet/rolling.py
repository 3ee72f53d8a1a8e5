"""Rolling updates: servers behind HAProxy are replaced while calls go on and new ones come in all the time."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from subprocess import TimeoutExpired
from urllib.parse import urlsplit

import httpx
import websockets

from tests.crowd import Crowd, Outcome
from tests.fleet.haproxy import LoadBalancer, load_balancer
from tests.fleet.ports import free_port
from tests.fleet.servers import AUTH_TOKEN, HOST, SECRET
from tests.process import ServerProcess, server_process
from tests.runner.carrier import Carrier
from wsvoice.config import STREAM_SECRET

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
#: How long a server takes new calls after SIGTERM; HAProxy notices within a fifth of it.
LINGER_S = 1.0
#: How many servers there are, and how many replace them.
SERVERS = 2


@asynccontextmanager
async def through(balancer: LoadBalancer, path: str, call_sid: str) -> AsyncIterator[Carrier]:
    """Connect a call's stream by a load balancer, and start it."""
    async with websockets.connect(
        f"wss://{HOST}{path}",
        host="127.0.0.1",
        port=balancer.port,
        ssl=balancer.context,
        server_hostname="127.0.0.1",
        compression=None,
        ping_interval=None,
    ) as socket:
        carrier = Carrier(socket, call_sid, "MZ" + call_sid[2:])
        await carrier.start()
        yield carrier


class Callers(Crowd):
    """Callers who dial by the load balancer, as Twilio does."""

    #: No two calls have one id, for a webhook that comes again is refused.
    _every_number = itertools.count(1)

    def __init__(self, balancer: LoadBalancer) -> None:
        # What is signed is the public address, whoever is dialled.
        http = httpx.AsyncClient(verify=balancer.context, timeout=10)
        super().__init__(f"https://{HOST}/", auth_token=AUTH_TOKEN, numbers=self._every_number, http=http)
        self._balancer = balancer

    async def post(self, form: dict[str, str], headers: dict[str, str]) -> httpx.Response:
        address = f"https://127.0.0.1:{self._balancer.port}/"
        return await self._http.post(address, data=form, headers={**headers, "Host": HOST})

    def stream(self, call_sid: str, url: str) -> AbstractAsyncContextManager[Carrier]:
        assert url.startswith(f"wss://{HOST}/")
        return through(self._balancer, urlsplit(url).path, call_sid)


class Update:
    """
    Servers behind a load balancer, which are replaced in rounds.

    Args:
        calls: How many calls are in progress when the old servers are asked to stop.
        every_s: How often a new call comes in, in seconds.
        redis: The URL of the Redis by which the servers work together; ``None`` for the secret alone.
    """

    def __init__(self, folder: Path, *, calls: int, every_s: float, redis: str | None = None) -> None:
        self._folder, self._calls, self._every_s = folder, calls, every_s
        self._environ = {"TWILIO_AUTH_TOKEN": AUTH_TOKEN, STREAM_SECRET: SECRET}
        self._redis = redis
        if redis is not None:
            self._environ["WSVOICE_REDIS_URL"] = redis
        self._ports = [free_port() for _ in range(2 * SERVERS)]
        self._round = 0

    async def run(self, rounds: int) -> AsyncIterator[tuple[Outcome, Counter[str]]]:
        """Replace all servers, so many times; yield what became of the calls, and how many each server had."""
        with ExitStack() as running:
            balancer = running.enter_context(load_balancer(self._folder, self._ports))
            old = await self._start(running)
            for _ in range(rounds):
                callers = Callers(balancer)
                async with AsyncExitStack() as stack:
                    stack.push_async_callback(callers.close)
                    new = await self._replace(running, balancer, callers, old)
                yield callers.outcome, Counter({each.log_file.parent.name: _calls_of(each) for each in (*old, *new)})
                old = new

    async def _replace(
        self, running: ExitStack, balancer: LoadBalancer, callers: Callers, old: list[ServerProcess]
    ) -> list[ServerProcess]:
        await asyncio.to_thread(balancer.sees, *self._names(self._round - 1))
        over, begun = asyncio.Event(), [asyncio.Event() for _ in range(self._calls)]
        async with asyncio.TaskGroup() as group:
            for each in begun:
                group.create_task(callers.call(over, begun=each))
            for each in begun:
                await each.wait()
            calling = group.create_task(callers.keep_calling(self._every_s))
            new = await self._start(running)
            await asyncio.to_thread(balancer.sees, *self._names(self._round - 2), *self._names(self._round - 1))
            callers.is_late = True
            for server in old:
                server.signal(signal.SIGTERM)
            # More than the new servers get before the old ones are next, which the load balancer still thinks well of.
            at_once = asyncio.Event()
            at_once.set()
            for _ in range(2 * self._calls):
                group.create_task(callers.call(at_once))
            await asyncio.to_thread(balancer.sees, *self._names(self._round - 1))
            await asyncio.sleep(LINGER_S + 0.4)
            for each in old:
                assert each.process.poll() is None, f"a server did not wait: {callers.outcome}\n{each.log()[-3000:]}"
            calling.cancel()
            over.set()
        for server in old:
            if self._redis is None:
                # Nobody tells it that the streams of calls which it has announced went elsewhere, so it would wait for
                # them for 15 s.
                await asyncio.to_thread(server.logged, "no new calls are taken")
                server.signal(signal.SIGTERM)
            try:
                assert await asyncio.to_thread(server.wait, 10) == 0, server.log()[-2000:]
            except TimeoutExpired:
                raise AssertionError(f"a server did not end: {callers.outcome}\n{server.log()[-3000:]}") from None
        return new

    async def _start(self, running: ExitStack) -> list[ServerProcess]:
        """Start the next servers, all at once."""
        started = await asyncio.gather(*(self._serve(running, number) for number in range(SERVERS)))
        self._round += 1
        return list(started)

    async def _serve(self, running: ExitStack, number: int) -> ServerProcess:
        folder = self._folder / f"round-{self._round}-server-{number + 1}"
        folder.mkdir()
        port = self._ports[self._round % 2 * SERVERS + number]
        linger = ("--drain-linger", f"{LINGER_S}s", "--max-lag", "0")
        server = server_process(folder, ECHO, "-t", "twilio", "-x", HOST, *linger, port=port, **self._environ)
        return await asyncio.to_thread(running.enter_context, server)

    def _names(self, round: int) -> list[str]:
        return [f"bot-{round % 2 * SERVERS + number + 1}" for number in range(SERVERS)]


def _calls_of(server: ServerProcess) -> int:
    return server.log().count("stream started")
