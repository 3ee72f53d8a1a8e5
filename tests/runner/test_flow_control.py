"""
A carrier that pauses the bot's audio, and one that has no marks.

https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#flow-control
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import websockets

from wsvoice.providers.events import Audio, Clear, Mark
from wsvoice.runner import media_socket

Serve = Callable[..., Any]
FRAME = bytes([0x55]) * 160
START = {
    "event": "MEDIA_START",
    "connection_id": "bot",
    "channel": "WebSocket/bot/0x7f00",
    "channel_id": "1795289319.1",
    "format": "ulaw",
    "optimal_frame_size": 160,
    "ptime": 20,
    "channel_variables": {},
}


class Asterisk:
    """Asterisk's end of a stream, by hand."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket

    async def say(self, event: str) -> None:
        await self.socket.send(json.dumps({"event": event, "channel_id": START["channel_id"]}))

    async def next(self) -> str:
        """Return the next message's name; ``audio`` for audio."""
        async with asyncio.timeout(10):
            message = await self.socket.recv()
        return "audio" if isinstance(message, bytes) else str(json.loads(message)["command"])

    async def is_silent(self) -> bool:
        """Whether nothing comes for a while."""
        try:
            async with asyncio.timeout(0.2):
                await self.socket.recv()
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def stream(server: Any) -> AsyncIterator[Asterisk]:
    url = f"{server.ws_url}ws/asterisk"
    async with websockets.connect(url, subprotocols=["media"], compression=None, ping_interval=None) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "media"
        await socket.send(json.dumps(START))
        yield Asterisk(socket)


class Bot:
    """Says what it is told to, through the call's own stream, in another task than the one that reads."""

    def __init__(self) -> None:
        self.socket: Any = None
        self.ready = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, runner_args: Any) -> None:
        self.socket = runner_args.websocket
        self.loop = asyncio.get_running_loop()
        self.ready.set()
        await self.done.wait()

    async def reach(self) -> None:
        """Wait, in the caller's loop, until the bot runs in the server's."""
        deadline = time.monotonic() + 10
        while self.socket is None:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.005)

    def say(self, *events: Any) -> None:
        """Send events, one after the other."""

        async def send() -> None:
            for event in events:
                await self.socket.send_event(event)

        asyncio.run_coroutine_threadsafe(send(), self.loop)

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.done.set)


@pytest.fixture
def bot() -> Bot:
    return Bot()


def paused(server: Any) -> bool:
    (session,) = server.switchboard.sessions
    return not session.socket._flowing.is_set()


async def pause(server: Any, asterisk: Asterisk) -> None:
    await asterisk.say("MEDIA_XOFF")
    deadline = time.monotonic() + 10
    while not paused(server):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_a_pause_is_obeyed_and_nothing_is_lost_or_overtaken(serve: Serve, bot: Bot) -> None:
    server = serve(bot, transport="asterisk")

    async def main() -> None:
        async with stream(server) as asterisk:
            await bot.reach()
            await pause(server, asterisk)
            bot.say(*[Audio(FRAME)] * 5, Mark("last"))
            assert await asterisk.is_silent()
            await asterisk.say("MEDIA_XON")
            assert [await asterisk.next() for _ in range(6)] == ["audio"] * 5 + ["MARK_MEDIA"]
            bot.end()

    asyncio.run(main())


def test_what_waits_is_forgotten_by_an_interruption(serve: Serve, bot: Bot) -> None:
    server = serve(bot, transport="asterisk")

    async def main() -> None:
        async with stream(server) as asterisk:
            await bot.reach()
            await pause(server, asterisk)
            bot.say(Audio(FRAME))
            bot.say(Mark("old"))
            assert await asterisk.is_silent()
            bot.say(Clear())
            assert await asterisk.next() == "FLUSH_MEDIA"
            bot.say(Audio(FRAME), Mark("new"))
            assert await asterisk.is_silent()
            await asterisk.say("MEDIA_XON")
            assert await asterisk.next() == "audio"
            async with asyncio.timeout(10):
                assert json.loads(await asterisk.socket.recv())["correlation_id"] == "new"
            bot.end()

    asyncio.run(main())


def test_a_pause_without_an_end_holds_nobody_up(serve: Serve, bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_socket, "MAX_PAUSE_S", 0.3)
    server = serve(bot, transport="asterisk")

    async def main() -> None:
        async with stream(server) as asterisk:
            await bot.reach()
            await pause(server, asterisk)
            bot.say(Audio(FRAME))
            assert await asterisk.next() == "audio"
            bot.end()

    asyncio.run(main())
    assert len(server.lines("the carrier paused the audio for over 0.3 s")) == 1


def test_the_last_words_are_waited_for_during_a_pause(serve: Serve, bot: Bot) -> None:
    server = serve(bot, transport="asterisk")

    async def main() -> None:
        async with stream(server) as asterisk:
            await bot.reach()
            await pause(server, asterisk)
            bot.say(Audio(FRAME))
            assert await asterisk.is_silent()
            bot.end()
            assert await asterisk.is_silent()
            await asterisk.say("MEDIA_XON")
            assert [await asterisk.next() for _ in range(2)] == ["audio", "MARK_MEDIA"]

    asyncio.run(main())


BANDWIDTH_START = {
    "eventType": "start",
    "metadata": {
        "accountId": "920012",
        "callId": "c-15ac29a2-1331029c-2cb0-4a07-b215-b22865662d85",
        "streamId": "s-1",
        "streamName": "bot",
        "tracks": [{"name": "inbound", "mediaFormat": {"encoding": "audio/PCMU", "sampleRate": 8000}}],
    },
    "streamParams": {},
}


def test_where_a_carrier_has_no_marks_they_come_back_in_order_and_bounded(
    serve: Serve, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_socket, "MAX_ESTIMATES", 5)
    server = serve(bot, transport="bandwidth")
    reached: list[str] = []

    async def main() -> None:
        async with websockets.connect(f"{server.ws_url}ws/bandwidth", compression=None) as socket:
            await socket.send(json.dumps(BANDWIDTH_START))
            await bot.reach()

            async def listen() -> None:
                async def sink(event: Any, _: bytes) -> None:
                    if isinstance(event, Mark):
                        # A handler that takes its time must not change the order.
                        await asyncio.sleep(0.02 if event.name == "0" else 0)
                        reached.append(event.name)

                await bot.socket.deliver_to(sink)

            asyncio.run_coroutine_threadsafe(listen(), bot.loop)
            bot.say(Audio(FRAME * 5), *[Mark(str(number)) for number in range(8)])
            deadline = time.monotonic() + 10
            while len(reached) < 5:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            bot.say(Audio(FRAME * 50), Mark("cleared"), Clear(), Mark("after"))
            while "after" not in reached:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            bot.end()

    asyncio.run(main())
    # After them the server's own comes, before it closes.
    assert [name for name in reached if not name.startswith("wsvoice-end")] == ["0", "1", "2", "3", "4", "after"]
    assert len(server.lines("more than 5 marks wait to be reached")) == 1
