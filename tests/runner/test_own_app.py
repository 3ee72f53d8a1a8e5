"""The routes in an application of the user's own: with its middleware, routes and lifespan."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request

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


def test_large_messages_are_refused_by_any_server() -> None:
    with running(create_app(bots.echo, RunConfig(transport="twilio"))) as url:

        async def main() -> None:
            async with dialled(announce(url + "/")) as carrier:
                await carrier.socket.send("x" * 70_000)
                assert (await carrier.closed())[0] == 1009

        asyncio.run(main())
