"""One client at a time on a port of its own: ``-t websocket-server``."""

from __future__ import annotations

import asyncio
import io
import signal
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import websockets
from loguru import logger
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.transports.websocket.server import (
    SingleClientWebsocketServerParams,
    SingleClientWebsocketServerTransport,
)

from tests.runner import bots
from tests.runner.peers import RATE, audio_message, next_audio, peer
from tests.runner.test_clients import closed, refused
from tests.runner.test_server import ECHO, run
from tests.runner.test_session import wait_for
from tests.signals import correlation_delay_ms, speech_like, tone
from wsvoice.config import RunConfig
from wsvoice.errors import BotError
from wsvoice.runner.pipecat.patches import install
from wsvoice.runner.standalone import Stop, run_websocket_server

RATES = {"audio_in_sample_rate": RATE, "audio_out_sample_rate": RATE}


@dataclass
class Served:
    """A bot at its port."""

    stop: Stop
    task: asyncio.Task[None]
    url: str = ""
    log: list[str] = field(default_factory=list)

    def lines(self, *needles: str) -> list[str]:
        return [line for line in self.log if all(needle in line for needle in needles)]


@asynccontextmanager
async def served(bot: Any, **settings: Any) -> AsyncIterator[Served]:
    """Serve a bot in this loop; at the end it is asked to stop, and has to."""
    install()
    config = RunConfig(transport="websocket-server", host="127.0.0.1", port=0, **settings)
    ready = asyncio.Event()
    each = Served(Stop(), asyncio.current_task())  # type: ignore[arg-type]

    class Loaded:
        name = "bot.py"
        function = staticmethod(bot)

    def on_ready(what: Any) -> None:
        each.url = what.url
        ready.set()

    sink = logger.add(lambda message: each.log.append(str(message)), level="DEBUG", format="{message}\n{exception}")
    each.task = asyncio.create_task(
        run_websocket_server(Loaded, config, on_ready=on_ready, stop=each.stop)  # type: ignore[arg-type]
    )
    try:
        async with asyncio.timeout(10):
            await ready.wait()
        yield each
        each.stop.ask()
        each.stop.ask()
        async with asyncio.timeout(20):
            await each.task
    finally:
        each.task.cancel()
        with suppress(asyncio.CancelledError, BotError):
            await each.task
        logger.remove(sink)


async def echo(runner_args: Any) -> None:
    """Serve client after client in one pipeline."""
    await bots.run(runner_args.transport, bots.Echo(), **RATES)


def echo_until_the_client_leaves(runs: list[str]) -> Any:
    """Return a bot that is over with its client, as most are."""

    async def bot(runner_args: Any) -> None:
        runs.append(runner_args.session_id)
        transport = runner_args.transport
        workers: list[Any] = []

        @transport.event_handler("on_client_disconnected")
        async def on_client_disconnected(transport: Any, client: Any) -> None:
            # Something slow, as the writing of a report is.
            await asyncio.sleep(0.1)
            await workers[0].cancel()

        await bots.run(transport, bots.Echo(), on_worker=workers.append, **RATES)

    return bot


async def assert_echoes(url: str, clip: bytes | None = None, **options: Any) -> None:
    clip = clip or speech_like(400, RATE)
    async with peer(url, **options) as each:
        await each.say(clip)
        assert correlation_delay_ms(clip, await each.until_heard(len(clip)), RATE)[1] > 0.99


class TestClients:
    def test_one_after_the_other_in_one_pipeline(self) -> None:
        async def main() -> None:
            async with served(echo) as each:
                await assert_echoes(each.url)
                await assert_echoes(each.url, add_wav_header=True)
                assert not each.lines("Traceback")

        asyncio.run(main())

    def test_one_run_of_the_bot_for_each(self) -> None:
        runs: list[str] = []

        async def main() -> None:
            async with served(echo_until_the_client_leaves(runs)) as each:
                for _ in range(2):
                    # The port is open while the bot comes back, and whoever is early waits for it.
                    await assert_echoes(each.url)
                await wait_for(lambda: len(runs) == 3)

        asyncio.run(main())
        assert len(set(runs)) == 3

    def test_a_new_client_replaces_the_old(self) -> None:
        runs: list[str] = []

        async def main() -> None:
            async with (
                served(echo_until_the_client_leaves(runs)) as each,
                websockets.connect(each.url) as old,
            ):
                await old.send(await audio_message(tone(500, 40, RATE)))
                await next_audio(old)
                await assert_echoes(each.url)
                assert await closed(old) == 1000
                assert old.close_reason == "replaced"
                # The bot that lost its client has not taken the new one with it.
                assert each.lines("replaces the previous one")

        asyncio.run(main())
        assert len(runs) >= 2

    def test_a_wav_header_is_put_on(self) -> None:
        clip = tone(500, 200, RATE)

        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            params = SingleClientWebsocketServerParams(
                audio_in_enabled=True, audio_out_enabled=True, add_wav_header=True
            )
            transport = await utils.create_transport(runner_args, {"websocket-server": lambda: params})
            await bots.run(transport, bots.Echo(), **RATES)

        async def main() -> None:
            async with served(bot) as each, websockets.connect(each.url) as socket:
                await socket.send(await audio_message(clip))
                frame = await next_audio(socket)
                with wave.open(io.BytesIO(frame.audio)) as piece:
                    assert (piece.getframerate(), piece.getnchannels()) == (RATE, 1)
                    assert clip.startswith(piece.readframes(piece.getnframes())[:640])

        asyncio.run(main())

    def test_large_and_unreadable_messages(self) -> None:
        async def main() -> None:
            async with served(echo) as each:
                async with websockets.connect(each.url) as socket:
                    for bad in ("text", b"", b"\xff" * 50, b"\x12\x05\x1a"):
                        await socket.send(bad)
                    await socket.send(await audio_message(tone(500, 40, RATE)))
                    await next_audio(socket)
                    await socket.send(bytes(70_000))
                    assert await closed(socket) == 1009
                assert len(each.lines("ignored a bad message")) == 1

        asyncio.run(main())

    def test_origins(self) -> None:
        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            params = SingleClientWebsocketServerParams(
                audio_in_enabled=True, audio_out_enabled=True, allowed_origins=["https://page.example"]
            )
            transport = await utils.create_transport(runner_args, {"websocket-server": lambda: params})
            ready.append(transport)
            await bots.run(transport, bots.Echo(), **RATES)

        ready: list[Any] = []

        async def main() -> None:
            async with served(bot) as each:
                await wait_for(lambda: ready and ready[0]._input is not None and ready[0]._input._server_task)
                assert await refused(each.url, origin="https://evil.example") == 403
                await assert_echoes(each.url, headers={"Origin": "https://page.example"})

        asyncio.run(main())


class TestWhatTheBotSees:
    def test_arguments_and_events(self) -> None:
        happened: list[Any] = []

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            assert transport is runner_args.transport
            happened.append((runner_args, transport))
            workers: list[Any] = []

            @transport.event_handler("on_websocket_ready")
            async def on_websocket_ready(transport: Any) -> None:
                happened.append("ready")

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                happened.append("connected")

            @transport.event_handler("on_client_disconnected")
            async def on_client_disconnected(transport: Any, client: Any) -> None:
                happened.append("disconnected")

            @transport.event_handler("on_session_timeout")
            async def on_session_timeout(transport: Any, client: Any) -> None:
                happened.append("timeout")

            await bots.run(transport, bots.Echo(), on_worker=workers.append, **RATES)

        async def main() -> None:
            async with served(bot, parameters={"tenant": "7"}) as each:
                await assert_echoes(each.url)
                await wait_for(lambda: "disconnected" in happened)

        asyncio.run(main())
        (arguments, transport), *events = happened
        assert events[:3] == ["ready", "connected", "disconnected"]
        assert arguments.body == {"tenant": "7"}
        assert arguments.session_id
        assert not arguments.handle_sigint
        assert isinstance(transport, SingleClientWebsocketServerTransport)
        assert isinstance(transport._params.serializer, ProtobufFrameSerializer)

    def test_params_of_the_plain_transport_do_too(self) -> None:
        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            make = {"websocket": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True)}
            await bots.run(await utils.create_transport(runner_args, make), bots.Echo(), **RATES)

        async def main() -> None:
            async with served(bot) as each:
                await assert_echoes(each.url)

        asyncio.run(main())

    def test_a_transport_built_by_hand(self) -> None:
        async def bot(runner_args: Any) -> None:
            params = SingleClientWebsocketServerParams(
                audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
            )
            transport = SingleClientWebsocketServerTransport(params, port=runner_args.port)
            await bots.run(transport, bots.Echo(), **RATES)

        async def main() -> None:
            async with served(bot) as each, websockets.connect(each.url) as old:
                await old.send(await audio_message(tone(500, 40, RATE)))
                await next_audio(old)
                await assert_echoes(each.url)
                assert await closed(old) == 1000

        asyncio.run(main())

    def test_session_timeout_for_every_client(self) -> None:
        timeouts: list[float] = []

        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            params = SingleClientWebsocketServerParams(audio_in_enabled=True, audio_out_enabled=True, session_timeout=1)
            transport = await utils.create_transport(runner_args, {"websocket-server": lambda: params})

            @transport.event_handler("on_session_timeout")
            async def on_session_timeout(transport: Any, client: Any) -> None:
                timeouts.append(asyncio.get_running_loop().time())
                await client.close()

            await bots.run(transport, bots.Listener(), **RATES)

        async def main() -> None:
            loop = asyncio.get_running_loop()
            async with served(bot) as each:
                async with websockets.connect(each.url) as socket:
                    for _ in range(3):
                        await socket.send(await audio_message(tone(500, 40, RATE)))
                        await asyncio.sleep(0.1)
                    quiet = loop.time()
                    assert await closed(socket) == 1000
                assert timeouts[0] - quiet > 0.8
                async with websockets.connect(each.url) as socket:
                    assert await closed(socket) == 1000
                assert len(timeouts) == 2

        asyncio.run(main())


class TestTheBotsEnd:
    def test_a_crash_with_a_client(self) -> None:
        runs: list[str] = []

        async def bot(runner_args: Any) -> None:
            runs.append(runner_args.session_id)
            if len(runs) > 1:
                await echo(runner_args)
                return
            transport = runner_args.transport
            crash = asyncio.Event()

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                crash.set()

            async def die() -> None:
                await crash.wait()
                raise KeyError("the crash")

            await asyncio.gather(bots.run(transport, bots.Echo(), **RATES), die())

        async def main() -> None:
            async with served(bot) as each:
                async with websockets.connect(each.url) as socket:
                    assert await closed(socket) == 1011
                await assert_echoes(each.url)
                assert each.lines("the bot raised KeyError", "Traceback", "in die")

        asyncio.run(main())

    def test_crashes_at_once(self) -> None:
        async def bot(runner_args: Any) -> None:
            raise KeyError("no key")

        async def main() -> None:
            async with served(bot) as each:
                with pytest.raises(BotError, match=r"bot\.py failed at once, 3 times in a row: KeyError"):
                    await asyncio.wait_for(asyncio.shield(each.task), 10)
                assert len(each.lines("the bot raised KeyError", "Traceback")) == 3
                each.task = asyncio.create_task(asyncio.sleep(0))

        asyncio.run(main())

    def test_returns_at_once(self) -> None:
        async def bot(runner_args: Any) -> None:
            pass

        async def main() -> None:
            async with served(bot) as each:
                with pytest.raises(BotError, match="returned at once") as caught:
                    await asyncio.wait_for(asyncio.shield(each.task), 10)
                assert "runner_args.transport" in (caught.value.hint or "")
                each.task = asyncio.create_task(asyncio.sleep(0))

        asyncio.run(main())


class TestStop:
    def test_the_client_finishes(self) -> None:
        async def main() -> None:
            async with served(echo) as each:
                async with peer(each.url) as client:
                    each.stop.ask()
                    await wait_for(lambda: each.lines("waiting for this one to leave"))
                    assert await refused(each.url) == 503
                    clip = speech_like(400, RATE)
                    await client.say(clip)
                    heard = await client.until_heard(len(clip))
                    assert correlation_delay_ms(clip, heard, RATE)[1] > 0.99
                    assert not each.task.done()
                async with asyncio.timeout(10):
                    await each.task

        asyncio.run(main())

    def test_once_more_ends_it(self) -> None:
        async def main() -> None:
            async with served(echo) as each, websockets.connect(each.url) as socket:
                await socket.send(await audio_message(tone(500, 40, RATE)))
                await next_audio(socket)
                each.stop.ask()
                each.stop.ask()
                assert await closed(socket) in (1000, 1001)
                async with asyncio.timeout(10):
                    await each.task

        asyncio.run(main())

    def test_the_time_for_it_is_limited(self) -> None:
        async def main() -> None:
            async with served(echo, drain_timeout_s=0.2) as each, websockets.connect(each.url) as socket:
                await socket.send(await audio_message(tone(500, 40, RATE)))
                await next_audio(socket)
                each.stop.ask()
                assert await closed(socket) in (1000, 1001)

        asyncio.run(main())


class TestProcess:
    def test_sigterm(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "websocket-server") as (process, ready):
                assert ready["url"].startswith("ws://127.0.0.1:")
                async with websockets.connect(ready["url"]) as socket:
                    await socket.send(await audio_message(tone(500, 40, RATE)))
                    await next_audio(socket)
                    process.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.2)
                    assert process.poll() is None, "the client may finish"
                    await socket.send(await audio_message(tone(500, 40, RATE)))
                    await next_audio(socket)
                assert await asyncio.to_thread(process.wait, 20) == 0
                assert process.stderr is not None
                log = process.stderr.read()
                assert "echo.py serves one client at a time" in log
                assert f"-t websocket-client --url {ready['url']}" in log
                assert "Traceback" not in log
                assert "waiting for this one to leave" in log

        asyncio.run(main())
