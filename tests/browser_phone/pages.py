"""A phone's server in this process, and pages that speak to it without a browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from wsvoice.browser_phone.server import HOST, Phone, PhoneServer, PhoneSettings, application, listen, uvicorn_config
from wsvoice.config import DialConfig, resolve_dial

TOKEN = "a-token-that-nobody-guesses"
RATE = 16000


@dataclass
class Served:
    """A phone that is served, and where."""

    phone: Phone
    port: int

    @property
    def host(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/{TOKEN}/"

    @asynccontextmanager
    async def page(self) -> AsyncIterator[FakePage]:
        """Connect a page, and take its introduction."""
        address = self.url.replace("http", "ws") + "line"
        async with connect(address, origin=f"http://{self.host}", compression=None, max_queue=None) as socket:  # type: ignore[arg-type]
            page = FakePage(socket)
            await page.until("hello")
            yield page


@dataclass
class FakePage:
    """
    A page's end of its line.

    Attributes:
        heard: What was played.
        told: All messages so far.
    """

    socket: ClientConnection
    heard: bytearray = field(default_factory=bytearray)
    told: list[dict[str, Any]] = field(default_factory=list)

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def dial(self, **settings: Any) -> None:
        await self.say(type="dial", rate=RATE, **settings)

    async def speak(self, pcm: bytes, piece_ms: int = 10) -> None:
        """Send sound at the pace at which a microphone hears it."""
        size = 2 * RATE * piece_ms // 1000
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number, at in enumerate(range(0, len(pcm), size)):
            await asyncio.sleep(max(0.0, began + number * piece_ms / 1000 - loop.time()))
            await self.socket.send(pcm[at : at + size])

    async def until(self, what: str, timeout_s: float = 20.0, **wanted: Any) -> dict[str, Any]:
        """Return the next message of a kind that has what is wanted."""
        async with asyncio.timeout(timeout_s):
            while True:
                received = await self.socket.recv()
                if isinstance(received, bytes):
                    self.heard += received
                    continue
                message: dict[str, Any] = json.loads(received)
                self.told.append(message)
                if message["type"] == what and all(message.get(name) == value for name, value in wanted.items()):
                    return message

    async def listen(self, seconds: float) -> None:
        """Take what comes for a while."""
        try:
            await self.until("nothing that is ever told", seconds)
        except TimeoutError:
            return


@asynccontextmanager
async def served(folder: Path, target: str = "http://127.0.0.1:9/", **settings: Any) -> AsyncIterator[Served]:
    """Serve a phone that calls `target` while the context lasts."""

    def resolve(flags: Mapping[str, Any]) -> DialConfig:
        return resolve_dial({"target": target, **flags}, environ={}, cwd=folder).config

    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    defaults = DialConfig(target=target)
    phone = Phone(PhoneSettings(resolve, defaults, folder=folder, **settings), kept)
    with listen(0) as listening:
        port = listening.getsockname()[1]
        ready = asyncio.Event()
        server = PhoneServer(uvicorn_config(application(phone, TOKEN, port)), phone, ready.set)
        serving = asyncio.create_task(server.serve([listening]))
        try:
            await asyncio.wait_for(ready.wait(), 10)
            yield Served(phone, port)
        finally:
            server.should_exit = True
            await asyncio.wait_for(serving, 20)
