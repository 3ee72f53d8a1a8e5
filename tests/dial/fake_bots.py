"""
Bots on real sockets, in nothing but the wire's own words, so that the caller is not tested against wsvoice's code.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Request, Response, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

FRAME = 160
Behaviour = Callable[["Line"], Awaitable[None]]


@dataclass
class Line:
    """A bot's end of one stream."""

    socket: ServerConnection
    heard: bytearray = field(default_factory=bytearray)
    messages: list[dict[str, Any]] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)

    @property
    def stream_id(self) -> str:
        return str(self.messages[1]["start"]["streamSid"])

    async def receive(self) -> dict[str, Any]:
        text = await self.socket.recv()
        assert isinstance(text, str)
        message: dict[str, Any] = json.loads(text)
        self.messages.append(message)
        self.raw.append(text)
        if message["event"] == "media":
            self.heard += base64.b64decode(message["media"]["payload"])
        return message

    async def receive_until(self, event: str) -> dict[str, Any]:
        while True:
            message = await self.receive()
            if message["event"] == event:
                return message

    async def listen(self) -> None:
        """Take everything until the stream ends."""
        with suppress(ConnectionClosed):
            while True:
                await self.receive()

    async def close(self, code: int = 1000) -> None:
        """
        Close the stream.

        What comes until it is closed is read: behind messages that wait for a reader, the other end's part of the
        closing handshake would wait as well.
        """
        reader = asyncio.create_task(self.listen())
        await self.socket.close(code)
        await reader

    async def send(self, content: dict[str, Any]) -> None:
        await self.socket.send(json.dumps({"streamSid": self.stream_id, **content}))

    async def say(self, ulaw: bytes) -> None:
        await self.send({"event": "media", "media": {"payload": base64.b64encode(ulaw).decode()}})

    async def mark(self, name: str) -> None:
        await self.send({"event": "mark", "mark": {"name": name}})

    async def clear(self) -> None:
        await self.send({"event": "clear"})


@dataclass
class FakeBot:
    """
    A webhook and a stream, and what came to them.

    Attributes:
        url: The webhook's URL.
        stream_url: The stream's URL.
        webhooks: The requests: method, path, headers by lower-case name, body.
        upgrades: The headers of each upgrade, as they came.
        lines: The streams.
        errors: What a behaviour raised.
    """

    url: str = ""
    stream_url: str = ""
    webhooks: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    upgrades: list[list[tuple[str, str]]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def twiml(url: str, *, parameters: str = "", then: str = "") -> str:
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Response><Connect><Stream url="{url}">{parameters}</Stream>'
        f"</Connect>{then}</Response>"
    )


def http_answer(body: str, status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in {"Content_Type": "text/xml", **headers}.items()]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


Webhook = Callable[[FakeBot, int], bytes]


@asynccontextmanager
async def fake_bot(
    behaviour: Behaviour,
    *,
    webhook: Webhook | None = None,
    delay_s: float = 0.0,
    refuse: HTTPStatus | None = None,
    answer: dict[str, str] | None = None,
) -> AsyncIterator[FakeBot]:
    """
    Serve a bot while the context lasts.

    Args:
        behaviour: What it does with a stream that has started.
        webhook: Renders the HTTP response to the n-th request; the TwiML of the stream unless given.
        delay_s: How long the webhook takes.
        refuse: The status that the stream's upgrade is refused with.
        answer: Arguments for :func:`twiml`.
    """
    bot = FakeBot()

    async def stream(socket: ServerConnection) -> None:
        assert socket.request is not None
        bot.upgrades.append(list(socket.request.headers.raw_items()))
        line = Line(socket)
        bot.lines.append(line)
        try:
            with suppress(ConnectionClosed):
                await line.receive_until("start")
                await behaviour(line)
        except Exception as error:
            bot.errors.append(error)
            raise

    def gate(socket: ServerConnection, request: Request) -> Response | None:
        return socket.respond(refuse, "no\n") if refuse else None

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                await answer_request(reader, writer)
        finally:
            writer.close()

    async def answer_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = first.split(" ")
        if path == "/healthz":
            # Where a server of ours would say who it is, which this one is not.
            writer.write(http_answer("no", "404 Not Found"))
            await writer.drain()
            return
        bot.webhooks.append((method, path, headers, body))
        number = len(bot.webhooks)
        await asyncio.sleep(delay_s)
        if webhook is not None:
            writer.write(webhook(bot, number))
        else:
            writer.write(http_answer(twiml(bot.stream_url, **(answer or {}))))
        await writer.drain()

    async with serve(
        stream, "127.0.0.1", 0, process_request=gate, ping_interval=None, close_timeout=1, logger=_quiet()
    ) as sockets:
        bot.stream_url = f"ws://127.0.0.1:{sockets.sockets[0].getsockname()[1]}/stream/token"
        pages = await asyncio.start_server(respond, "127.0.0.1", 0)
        async with pages:
            bot.url = f"http://127.0.0.1:{pages.sockets[0].getsockname()[1]}/"
            yield bot


def _quiet() -> Any:
    import logging

    logger = logging.getLogger("tests.fake_bots")
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    return logger


# Behaviours


async def echo(line: Line) -> None:
    """Say what is heard, frame by frame."""
    while True:
        message = await line.receive()
        if message["event"] == "media":
            await line.say(base64.b64decode(message["media"]["payload"]))


async def silent(line: Line) -> None:
    await line.listen()


async def crash(line: Line) -> None:
    await line.receive_until("media")
    raise RuntimeError("a bug in the bot")


async def drop(line: Line) -> None:
    """Break the connection without closing it."""
    await line.receive_until("media")
    line.socket.transport.abort()


def speaks_first(ulaw: bytes) -> Behaviour:
    """Greet, then answer with the same words whenever the caller has been silent for 100 ms."""

    async def behaviour(line: Line) -> None:
        await line.say(ulaw)
        heard_sound = False
        quiet = 0
        while True:
            message = await line.receive()
            if message["event"] != "media":
                continue
            sound = base64.b64decode(message["media"]["payload"]).strip(b"\xff\x7f") != b""
            quiet = 0 if sound else quiet + 1
            heard_sound = heard_sound or sound
            if heard_sound and quiet == 5:
                heard_sound = False
                await line.say(ulaw)

    return behaviour
