"""The routes in an application of the user's own: with its middleware, routes and lifespan."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
import websockets
from fastapi import FastAPI, Request

from tests.environment import clean_environ
from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled, main_frequency
from tests.signals import tone
from wsvoice import RunConfig, create_app, create_router


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Run an application as anybody would, with uvicorn's own defaults."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


async def assert_echoes(stream_url: str) -> None:
    async with dialled(stream_url) as carrier:
        await carrier.speak(tone(800, 200, 8000))
        await carrier.until("mark")
        assert main_frequency(carrier.heard()) == pytest.approx(800, abs=15)
        await carrier.hang_up()


def own_app(seen: list[str]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        seen.append("begins")
        yield
        seen.append("ends")

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Any:
        seen.append(request.url.path)
        response = await call_next(request)
        response.headers["X-Own"] = "yes"
        return response

    @app.get("/status")
    async def status() -> dict[str, str]:
        return {"own": "route"}

    return app


@pytest.mark.parametrize("how", ["router", "router with a prefix", "mounted"])
def test_in_an_application_of_ones_own(how: str) -> None:
    seen: list[str] = []
    app = own_app(seen)
    config = RunConfig(transport="twilio")
    prefix = "" if how == "router" else "/voice"
    if how == "mounted":
        app.mount(prefix, create_app(bots.echo, config))
    else:
        app.include_router(create_router(bots.echo, config), prefix=prefix)
    with running(app) as url:
        assert httpx.get(f"{url}/status").json() == {"own": "route"}
        answer = httpx.post(f"{url}{prefix}/twilio", data=FORM)
        assert answer.headers["X-Own"] == "yes"
        for path in ("/", "/twilio"):
            stream_url = announce(f"{url}{prefix}{path}")
            assert f"{prefix}/ws/twilio/" in stream_url
            asyncio.run(assert_echoes(stream_url))
        assert httpx.get(f"{url}{prefix}/healthz").json()["status"] == "ok"
    assert seen[0] == "begins"
    assert seen[-1] == "ends"
    assert f"{prefix}/twilio" in seen


@pytest.mark.parametrize("how", ["router with a prefix", "mounted"])
def test_a_slash_more_is_the_same_webhook(how: str) -> None:
    app = own_app([])
    if how == "mounted":
        app.mount("/voice", create_app(bots.echo, RunConfig(transport="twilio")))
    else:
        app.include_router(create_router(bots.echo, RunConfig(transport="twilio")), prefix="/voice")
    with running(app) as url:
        for path in ("/voice/", "/voice/twilio", "/voice/twilio/"):
            assert "/voice/ws/twilio/" in announce(f"{url}{path}")


@pytest.mark.parametrize("sizes", [[70_000], [9_000] * 8])
def test_what_comes_before_a_start_is_bounded_by_any_server(sizes: list[int]) -> None:
    """Where every provider is served, the first messages tell which one dials; uvicorn would take 16 MiB of each."""
    with running(create_app(bots.echo, RunConfig())) as url:

        async def main() -> None:
            async with websockets.connect(f"{url.replace('http', 'ws', 1)}/ws", compression=None) as socket:
                for size in sizes:
                    await socket.send("x" * size)
                async with asyncio.timeout(5):
                    await socket.wait_closed()
                assert socket.close_code == 1009

        asyncio.run(main())


def test_large_messages_are_refused_by_any_server() -> None:
    with running(create_app(bots.echo, RunConfig(transport="twilio"))) as url:

        async def main() -> None:
            async with dialled(announce(url + "/")) as carrier:
                await carrier.socket.send("x" * 70_000)
                assert (await carrier.closed())[0] == 1009

        asyncio.run(main())


class TestAServerWrittenByHand:
    OLD = "from pipecat.transports.network.fastapi_websocket import FastAPIWebsocketParams"

    @staticmethod
    def python(folder: Path, program: str) -> tuple[int, str]:
        command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, env=clean_environ())
        return result.returncode, result.stdout + result.stderr

    def test_what_it_is_told_before(self, tmp_path: Path) -> None:
        code, told = self.python(tmp_path, f"import wsvoice\n{self.OLD}")
        assert code == 1
        last = told.splitlines()[-1]
        assert last.startswith("ModuleNotFoundError: No module named 'pipecat.transports.network'")
        assert "wsvoice.install()" in last

    def test_nothing_else_changes(self, tmp_path: Path) -> None:
        code, printed = self.python(
            tmp_path,
            """
            import sys
            finders = list(sys.meta_path)
            import wsvoice
            print("cheap", "pipecat" not in sys.modules, sys.meta_path[:-1] == finders)
            try:
                import pipecat.nowhere
            except ModuleNotFoundError as error:
                print("told", error, error.name)
            """,
        )
        assert code == 0, printed
        assert "cheap True True\n" in printed
        assert "told No module named 'pipecat.nowhere' pipecat.nowhere\n" in printed

    def test_installed(self, tmp_path: Path) -> None:
        code, printed = self.python(
            tmp_path,
            f"""
            import sys, wsvoice
            first = wsvoice.install()
            count = len(sys.meta_path)
            print("again", first == wsvoice.install(), count == len(sys.meta_path), "old-modules" in first)
            {self.OLD}
            import pipecat.transports.websocket.fastapi as new
            print("same", FastAPIWebsocketParams is new.FastAPIWebsocketParams)
            """,
        )
        assert code == 0, printed
        assert "again True True True\n" in printed
        assert "same True\n" in printed

    def test_without_old_names(self, tmp_path: Path) -> None:
        code, told = self.python(tmp_path, f"import wsvoice; print(wsvoice.install(['old-modules']))\n{self.OLD}")
        assert code == 1
        assert "('create-transport', " in told
        assert told.splitlines()[-1] == "ModuleNotFoundError: No module named 'pipecat.transports.network'"
