"""A bot that dials out: ``-t websocket-client``."""

from __future__ import annotations

import asyncio
import io
import signal
import socket
import subprocess
import sys
import time
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import EndFrame
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.websocket.client import WebsocketClientParams, WebsocketClientTransport
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.environment import clean_environ
from tests.runner import bots
from tests.runner.peers import RATE, audio_message, next_audio
from tests.runner.test_server import ECHO
from tests.runner.test_session import wait_for
from tests.signals import correlation_delay_ms, speech_like, tone
from wsvoice.config import RunConfig, resolve_run
from wsvoice.errors import BotError, ConfigError, ConnectError
from wsvoice.runner import standalone
from wsvoice.runner.pipecat.patches import install
from wsvoice.runner.standalone import Stop, run_websocket_client

RATES = {"audio_in_sample_rate": RATE, "audio_out_sample_rate": RATE}

Handler = Callable[[ServerConnection], Any]


@asynccontextmanager
async def server(handler: Handler, **options: Any) -> AsyncIterator[str]:
    """Serve `handler`; yield the address."""
    async with serve(handler, "127.0.0.1", 0, **options) as listening:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/talk"


async def dial(bot: Any, url: str, stop: Stop | None = None, **settings: Any) -> None:
    """Run a bot as the command does."""
    install()

    class Loaded:
        name = "bot.py"
        function = staticmethod(bot)

    config = RunConfig(transport="websocket-client", url=url, **settings)
    async with asyncio.timeout(20):
        await run_websocket_client(Loaded, config, on_ready=lambda _: None, stop=stop or Stop())  # type: ignore[arg-type]


async def echo(runner_args: Any) -> None:
    await bots.run(runner_args.transport, bots.Echo(), **RATES)


def with_params(**params: Any) -> Any:
    async def bot(runner_args: Any) -> None:
        from pipecat.runner import utils

        make = {
            "websocket-client": lambda: WebsocketClientParams(audio_in_enabled=True, audio_out_enabled=True, **params)
        }
        await bots.run(await utils.create_transport(runner_args, make), bots.Echo(), **RATES)

    return bot


class TestSound:
    @pytest.mark.parametrize("wav", [False, True])
    def test_both_ways(self, wav: bool) -> None:
        clip = speech_like(600, RATE)
        heard = bytearray()
        headers: list[Any] = []

        async def talk(connection: ServerConnection) -> None:
            headers.append(connection.request.headers if connection.request else None)
            for at in range(0, len(clip), 1280):
                piece = clip[at : at + 1280]
                if wav:
                    file = io.BytesIO()
                    with wave.open(file, "wb") as out:
                        out.setnchannels(1)
                        out.setsampwidth(2)
                        out.setframerate(RATE)
                        out.writeframes(piece)
                    piece = file.getvalue()
                await connection.send(await audio_message(piece))
            while len(heard) < len(clip):
                audio = (await next_audio(connection)).audio
                if wav:
                    assert audio.startswith(b"RIFF")
                    with wave.open(io.BytesIO(audio)) as received:
                        audio = received.readframes(received.getnframes())
                heard.extend(audio)

        async def main() -> None:
            async with server(talk) as url:
                await dial(with_params(add_wav_header=wav), url, headers={"X-Tenant": "7"})

        asyncio.run(main())
        assert correlation_delay_ms(clip, bytes(heard), RATE)[1] > 0.99
        assert headers[0]["X-Tenant"] == "7"

    def test_messages_that_nobody_can_read(self) -> None:
        heard: list[Any] = []

        async def talk(connection: ServerConnection) -> None:
            for bad in ("text", b"", b"\xff" * 50):
                await connection.send(bad)
            await connection.send(await audio_message(tone(500, 40, RATE)))
            heard.append(await next_audio(connection))

        async def main() -> None:
            async with server(talk) as url:
                await dial(echo, url)

        asyncio.run(main())
        assert heard


class TestWhatTheBotSees:
    def test_arguments_and_events(self) -> None:
        happened: list[Any] = []

        async def talk(connection: ServerConnection) -> None:
            await connection.wait_closed()
            happened.append(connection.close_code)

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            assert transport is runner_args.transport
            assert not transport.is_connected
            workers: list[Any] = []

            @transport.event_handler("on_connected")
            async def on_connected(transport: Any, websocket: Any) -> None:
                happened.append(("connected", transport.is_connected))
                await workers[0].queue_frame(EndFrame())

            await bots.run(transport, on_worker=workers.append)
            happened.append((runner_args, transport))

        async def main() -> str:
            async with server(talk) as url:
                await dial(bot, url, parameters={"tenant": "7"})
                await wait_for(lambda: 1000 in happened)
                return url

        url = asyncio.run(main())
        assert happened[0] == ("connected", True)
        arguments, transport = next(each for each in happened[1:] if each != 1000)
        assert (arguments.uri, arguments.body) == (url, {"tenant": "7"})
        assert not arguments.handle_sigint
        assert isinstance(transport, WebsocketClientTransport)
        assert isinstance(transport._params.serializer, ProtobufFrameSerializer)
        assert not transport._params.add_wav_header
        assert not transport.is_connected

    def test_the_server_leaves(self) -> None:
        happened: list[str] = []

        async def talk(connection: ServerConnection) -> None:
            await connection.recv()

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            workers: list[Any] = []

            @transport.event_handler("on_connected")
            async def on_connected(transport: Any, websocket: Any) -> None:
                await websocket.send(b"go away")

            @transport.event_handler("on_disconnected")
            async def on_disconnected(transport: Any, websocket: Any) -> None:
                happened.append("disconnected")
                await workers[0].cancel()

            await bots.run(transport, on_worker=workers.append)
            happened.append("returned")

        async def main() -> None:
            async with server(talk) as url:
                await dial(bot, url)

        asyncio.run(main())
        assert happened == ["disconnected", "returned"]

    @pytest.mark.parametrize(
        ("code", "reason", "words"),
        [(1009, "", "with 1009$"), (1011, "no\nkey", "with 1011: no key$"), (1000, "", ""), (1001, "", "")],
    )
    def test_the_server_leaves_for_an_error(self, code: int, reason: str, words: str) -> None:
        happened: list[str] = []

        async def bot(runner_args: Any) -> None:
            await bots.run(runner_args.transport)
            # What a bot does after a conversation.
            await asyncio.sleep(0.3)
            happened.append("returned")

        async def main() -> None:
            async with server(lambda connection: connection.close(code, reason)) as url:
                await dial(bot, url)

        if words:
            with pytest.raises(ConnectError, match=f"closed the connection {words}") as caught:
                asyncio.run(main())
            assert (caught.value.exit_code, bool(caught.value.hint)) == (1, True)
        else:
            asyncio.run(main())
        assert happened == ["returned"]

    def test_headers_of_the_command_line_go_before_the_bots(self) -> None:
        seen: list[Any] = []

        async def talk(connection: ServerConnection) -> None:
            assert connection.request is not None
            seen.append((connection.request.headers["A"], connection.request.headers["B"]))

        async def main() -> None:
            async with server(talk) as url:
                await dial(with_params(additional_headers={"A": "bot", "B": "bot"}), url, headers={"A": "line"})

        asyncio.run(main())
        assert seen == [("line", "bot")]


class TestWhenItFails:
    def test_nobody_listens(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"ws://user:secret@127.0.0.1:{unused.getsockname()[1]}/?key=secret"
            with pytest.raises(ConnectError, match="cannot be reached") as caught:
                asyncio.run(dial(echo, url))
        assert "secret" not in caught.value.message
        assert "start the server" in (caught.value.hint or "")

    @pytest.mark.parametrize(("status", "hint"), [(401, "--header"), (404, "path"), (503, "later"), (500, "log")])
    def test_the_handshake_is_refused(self, status: int, hint: str) -> None:
        async def main() -> None:
            async def talk(connection: ServerConnection) -> None: ...

            async with server(talk, process_request=lambda c, _: c.respond(status, "no\n")) as url:
                await dial(echo, url)

        with pytest.raises(ConnectError, match=f"refused the handshake with HTTP {status}") as caught:
            asyncio.run(main())
        assert hint in (caught.value.hint or "")

    def test_no_websocket_server(self) -> None:
        async def main() -> None:
            async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"220 mail.example ESMTP\r\n")
                writer.close()

            async with await asyncio.start_server(greet, "127.0.0.1", 0) as listening:
                await dial(echo, f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}")

        with pytest.raises(ConnectError, match="is not a WebSocket server"):
            asyncio.run(main())

    def test_the_bot_raises(self) -> None:
        async def bot(runner_args: Any) -> None:
            raise KeyError("the crash")

        with pytest.raises(BotError, match=r"bot\.py raised KeyError"):
            asyncio.run(dial(bot, "ws://127.0.0.1:9"))


class TestStop:
    def test_what_runs_may_finish(self) -> None:
        stop = Stop()

        async def talk(connection: ServerConnection) -> None:
            await connection.send(await audio_message(tone(500, 40, RATE)))
            await next_audio(connection)
            stop.ask()
            await asyncio.sleep(0.1)
            await connection.send(await audio_message(tone(500, 40, RATE)))
            await next_audio(connection)

        async def main() -> None:
            async with server(talk) as url:
                await dial(echo, url, stop)

        asyncio.run(main())

    def test_when_both_ends_wait_for_each_other_it_is_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(standalone, "SILENCE_S", 0.6)
        stop = Stop()
        spoke_until = ended = 0.0

        async def talk(connection: ServerConnection) -> None:
            nonlocal spoke_until, ended
            stop.ask()

            async def listen() -> None:
                async for _ in connection:
                    pass

            listening = asyncio.create_task(listen())
            # As long as somebody speaks it goes on; silence is sent all the time.
            for number in range(10_000):
                if number < 60:
                    spoke_until = time.monotonic()
                pcm = tone(500, 20, RATE) if number < 60 else bytes(640)
                try:
                    await connection.send(await audio_message(pcm))
                except ConnectionClosed:
                    ended = time.monotonic()
                    await listening
                    return
                await asyncio.sleep(0.02)

        async def main() -> None:
            async with server(talk) as url:
                await dial(echo, url, stop)
                await wait_for(lambda: ended)

        asyncio.run(main())
        assert 0.5 < ended - spoke_until < 5

    def test_once_more_ends_it(self) -> None:
        stop = Stop()
        codes: list[Any] = []

        async def talk(connection: ServerConnection) -> None:
            stop.ask()
            stop.ask()
            await connection.wait_closed()
            codes.append(connection.close_code)

        async def main() -> None:
            async with server(talk) as url:
                await dial(echo, url, stop)
                await wait_for(lambda: codes)

        asyncio.run(main())
        assert codes == [1000]


class TestCommand:
    @staticmethod
    async def start(folder: Path, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "wsvoice", "run", ECHO, "-t", "websocket-client", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=clean_environ(),
        )

    @staticmethod
    async def end(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
        async with asyncio.timeout(40):
            out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    def test_exit_codes(self, tmp_path: Path) -> None:
        async def main() -> None:
            async def talk(connection: ServerConnection) -> None:
                assert connection.request is not None
                assert connection.request.headers["Authorization"] == "Bearer abc"
                await connection.send(await audio_message(tone(500, 40, RATE)))
                await next_audio(connection)
                if connection.request.path == "/stay":
                    stays.send_signal(signal.SIGINT)
                    await asyncio.sleep(0.1)
                    stays.send_signal(signal.SIGINT)
                    await connection.wait_closed()

            header = ("--header", "Authorization: Bearer abc")
            async with server(talk) as url, server(talk) as other:
                held = await self.start(tmp_path, "--url", url, *header)
                stays = await self.start(tmp_path, "--url", other.replace("/talk", "/stay"), *header)
                failed = await self.start(tmp_path, "--url", "ws://127.0.0.1:1/")
                ends = await asyncio.gather(self.end(held), self.end(stays), self.end(failed))
            (code, _, err), (interrupted, _, _), (failure, out, why) = ends
            assert code == 0, err
            assert "echo.py dials ws://127.0.0.1" in err
            assert "Traceback" not in err
            assert interrupted == 130
            assert failure == 1
            assert "error: ws://127.0.0.1:1/ cannot be reached: Connection refused" in why
            assert "hint:" in why
            assert out == ""

        asyncio.run(main())


class TestSettings:
    @staticmethod
    def resolve(tmp_path: Path, environ: dict[str, str] | None = None, **flags: Any) -> RunConfig:
        return resolve_run(flags, environ=environ or {}, cwd=tmp_path).config

    def test_given(self, tmp_path: Path) -> None:
        config = self.resolve(
            tmp_path,
            transport="websocket-client",
            url="wss://bots.example:8443/stream?x=1",
            header=["Authorization: Bearer a:b, c", "X-Empty:"],
        )
        assert config.url == "wss://bots.example:8443/stream?x=1"
        assert config.headers == {"Authorization": "Bearer a:b, c", "X-Empty": ""}
        assert "Bearer" not in repr(config)

    def test_secrets_are_not_shown(self, tmp_path: Path) -> None:
        flags = {"transport": "websocket-client", "url": "ws://u:p@h/x?key=1", "header": ["A: secret"]}
        values = resolve_run(flags, environ={}, cwd=tmp_path).values
        assert values["url"] == "ws://h/x"
        assert values["header"] == ("A: ***",)

    def test_the_servers_own_port(self, tmp_path: Path) -> None:
        assert self.resolve(tmp_path, transport="websocket-server").port == 8765
        assert self.resolve(tmp_path, transport="websocket-server", port="9000").port == 9000
        assert self.resolve(tmp_path, transport="websocket").port == 7860

    @pytest.mark.parametrize(
        ("flags", "message", "hint"),
        [
            ({"transport": "websocket-client"}, "needs the address", "--url"),
            ({"url": "ws://h"}, "--url is for a bot that dials out", "-t websocket-client"),
            ({"transport": "twilio", "header": ["A: b"]}, "--header is for a bot", "-t websocket-client"),
            ({"transport": "websocket-client", "url": "https://h/x"}, "ws:// or wss://", "--url wss://h/x"),
            ({"transport": "websocket-client", "url": "ws://"}, "names no host", None),
            ({"transport": "websocket-client", "url": "ws://h:x/"}, "names no host", None),
            ({"transport": "websocket-client", "url": "ws://h", "header": ["secret"]}, "no colon", "--header"),
            ({"transport": "websocket-client", "url": "ws://h", "header": ["a b: c"]}, "no header's name", "--header"),
            ({"transport": "websocket-client", "url": "ws://h", "port": "1"}, "--port has no meaning", "leave"),
            ({"transport": "websocket-server", "proxy": "h.example"}, "-x has no meaning", "leave"),
            ({"transport": "websocket", "record": "x"}, "--record has no meaning", "leave"),
            ({"transport": "websockets"}, "-t takes", "did you mean"),
        ],
    )
    def test_misuse(self, tmp_path: Path, flags: dict[str, Any], message: str, hint: str | None) -> None:
        with pytest.raises(ConfigError) as caught:
            self.resolve(tmp_path, **flags)
        assert message in caught.value.message
        assert "secret" not in caught.value.message
        assert (hint or "") in (caught.value.hint or "")

    def test_what_the_environment_says_for_another_transport_is_left_alone(self, tmp_path: Path) -> None:
        config = self.resolve(tmp_path, {"WSVOICE_URL": "ws://h", "WSVOICE_PROXY": "h"}, transport="websocket-server")
        assert (config.url, config.proxy) == (None, None)


def test_two_bots_talk_to_each_other(serve: Any) -> None:
    """One serves plain clients, the other dials it."""
    heard = bots.Listener()

    async def listener(runner_args: Any) -> None:
        await bots.run(runner_args.transport, heard, **RATES)

    async def talker(runner_args: Any) -> None:
        workers: list[Any] = []
        transport = runner_args.transport

        @transport.event_handler("on_connected")
        async def on_connected(transport: Any, websocket: Any) -> None:
            from pipecat.frames.frames import OutputAudioRawFrame

            await workers[0].queue_frames([OutputAudioRawFrame(clip, RATE, 1), EndFrame()])

        await bots.run(transport, on_worker=workers.append, **RATES)

    clip = speech_like(600, RATE)
    listening = serve(listener, transport="websocket")
    asyncio.run(dial(talker, listening.ws_url + "ws-client"))
    assert listening.ended()[0].ended_by == "caller"
    assert correlation_delay_ms(clip, bytes(heard.audio), RATE)[1] > 0.99
