"""What plain clients may cost: slow, endless and deep bodies, floods of sessions, senders and readers of all kinds."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pipecat.serializers.protobuf import ProtobufFrameSerializer

from tests.attacks import raw_http
from tests.attacks.http_client import web
from tests.attacks.raw_websocket import RawStream, binary_frame
from tests.attacks.shared_server import Shared
from tests.process import ServerProcess, server_process
from tests.runner import bots
from tests.runner.peers import audio_message
from wsvoice.config import START_KEY
from wsvoice.runner.logs import REFUSAL_LINES

Serve = Callable[..., Any]

#: As the client asks: ``?bot=echo`` uses up what it is told at the speed of speech, as any bot does that answers in
#: audio; ``deaf`` takes nothing from its pipeline for as long as it lasts; ``talker`` says much more than a client
#: that does not read takes.
BOTS = """
    import asyncio
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.frames.frames import InputAudioRawFrame, InputTransportMessageFrame, OutputAudioRawFrame
    from tests.runner import bots

    class Deaf(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, (InputAudioRawFrame, InputTransportMessageFrame)):
                await asyncio.sleep(60)
            await self.push_frame(frame, direction)

    async def echo(transport):
        await bots.run(transport, bots.Echo(), audio_in_sample_rate=16000, audio_out_sample_rate=16000)

    async def deaf(transport):
        await bots.run(transport, Deaf())

    async def talker(transport):
        workers = []

        @transport.event_handler("on_client_connected")
        async def on_client_connected(transport, client):
            for _ in range(60):
                await workers[0].queue_frame(OutputAudioRawFrame(bytes(32000), 16000, 1))

        await bots.run(transport, on_worker=workers.append)

    async def bot(runner_args):
        await globals()[runner_args.websocket.query_params["bot"]](runner_args.transport)
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    clone = str(Path(__file__).parents[2])
    folder = tmp_path_factory.mktemp("server")
    with server_process(folder, BOTS, "-t", "websocket", "--max-calls", "0", PYTHONPATH=clone) as process:
        yield process


@pytest.fixture
def each(process: ServerProcess) -> Shared:
    """Serve the bots."""
    return Shared.now(process)


def start(each: Shared) -> int:
    return web.post(each.process.url + "start", json={}, timeout=20).status_code


class TestBodies:
    def test_a_slow_body_is_not_waited_for(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsvoice.runner.requests.BODY_TIMEOUT_S", 0.5)
        each = serve(bots.echo, transport="websocket")
        with raw_http.connection(each.url) as raw:
            raw.sendall(b"POST /start HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
            started = time.monotonic()
            answer = b""
            raw.settimeout(0.1)
            while time.monotonic() - started < 10:
                try:
                    piece = raw.recv(1000)
                except TimeoutError:
                    # Not silent, only slow.
                    raw.sendall(b"{")
                    continue
                except ConnectionResetError:
                    break
                if not piece:
                    break
                answer += piece
            assert answer.startswith(b"HTTP/1.1 408")
            assert time.monotonic() - started < 10, "the connection is kept"

    @pytest.mark.parametrize(("path", "key"), [("/start", ""), ("/start", "wrong"), ("/", "")])
    @pytest.mark.parametrize("how", ["chunked", "length"])
    def test_an_endless_body_ends_the_connection(self, serve: Serve, how: str, path: str, key: str) -> None:
        """Whether it is the body that is refused, or its sender; a webhook's too."""
        settings: dict[str, Any] = {"proxy": "bot.example", "credentials": {START_KEY: "right"}} if key else {}
        each = serve(bots.echo, transport="websocket" if path == "/start" else "twilio", **settings)
        length = "Transfer-Encoding: chunked" if how == "chunked" else "Content-Length: 1000000000"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n{length}\r\n\r\n"
        piece = b" " * 16384
        if how == "chunked":
            piece = b"4000\r\n" + piece + b"\r\n"
        sent, answer = 0, b""
        with raw_http.connection(each.url) as raw:
            raw.sendall(head.encode())
            try:
                while sent < 64 * 1024 * 1024:
                    sent += raw.send(piece)
                    if not answer and sent > 1024 * 1024:
                        answer = raw.recv(1000)
            except (ConnectionResetError, BrokenPipeError):
                pass
        assert sent < 32 * 1024 * 1024, "it reads on for ever"

    def test_bodies_that_are_no_request(self, serve: Serve) -> None:
        each = serve(bots.echo, transport="websocket")
        for body in (
            b'{"body":' * 8000,
            b"[" * 60_000,
            b'{"body":' + b"[" * 900 + b"]" * 900 + b"}" + b"x",
            b'{"body": ' + b"1" * 60_000 + b"}",
            b'{"transport": ["websocket"]}',
            b'{"transport": {}}',
            b"\xff\xfe{}",
            b'"' + b"\\ud800" * 1000 + b'"',
            b"\x00" * 1000,
        ):
            answer = web.post(each.url + "start", content=body)
            assert answer.status_code == 400, body[:30]
        for body in (b'{"body": "\\ud800"}', b'{"body": NaN}', b'{"body": {"\\u0000": []}}', b'{"body": [[[]]]}'):
            assert web.post(each.url + "start", content=body).status_code == 200, body
        assert not each.lines("Traceback")


class TestFloods:
    def test_what_sessions_are_started_with_does_not_fill_the_memory(self, each: Shared) -> None:
        # Small when sent, large when read.
        body = b'{"body": [' + b"[]," * 20_000 + b"[]]}"
        with httpx.Client(verify=False) as client:
            assert start(each) == 200
            before = each.process.memory_mb()
            url = each.process.url + "start"
            answers = [client.post(url, content=body, timeout=20).status_code for _ in range(165)]
            grown = each.process.memory_mb() - before
        assert set(answers) == {200, 503}
        assert grown < 40, f"{grown:.0f} MB"
        assert answers.count(503) > REFUSAL_LINES
        assert each.log().count("too many sessions wait") == REFUSAL_LINES
        # There is still room for a small one.
        assert start(each) == 200

    def test_sessions_that_nobody_comes_for_do_not_keep_others_out_for_long(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsvoice.runner.clients.PENDING_SESSIONS", 20)
        monkeypatch.setattr("wsvoice.runner.clients.TOKEN_TTL_S", 0.5)
        each = serve(bots.echo, transport="websocket")
        with httpx.Client(verify=False) as client:
            answers = [client.post(each.url + "start", json={}).status_code for _ in range(25)]
            assert answers == [200] * 20 + [503] * 5
            time.sleep(0.6)
            assert client.post(each.url + "start", json={}).status_code == 200

    @pytest.mark.parametrize("size", [0, 4000])
    def test_one_address_leaves_room_for_others(self, serve: Serve, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        """Many small requests, or few large ones, of which nobody comes for the session."""
        monkeypatch.setattr("wsvoice.runner.clients.PENDING_SESSIONS", 40)
        monkeypatch.setattr("wsvoice.runner.clients.PENDING_BYTES", 40_000)
        each = serve(bots.echo, transport="websocket", proxy="bot.example", stream_auth="none")
        with httpx.Client(verify=False) as client:

            def ask(address: str) -> int:
                forwarded = {"X-Forwarded-For": address}
                body = {"body": "x" * size}
                return client.post(each.url + "start", json=body, headers=forwarded).status_code

            answers = [ask("203.0.113.1") for _ in range(60)]
            assert answers == [200] * answers.count(200) + [503] * answers.count(503)
            assert answers.count(200) == (10 if size == 0 else 2)
            assert ask("203.0.113.2") == 200

    def test_strangers_do_not_fill_the_places_by_start(self, serve: Serve) -> None:
        each = serve(bots.echo, transport="websocket", proxy="bot.example", stream_auth="none", max_calls=4)
        with httpx.Client(verify=False) as client:
            for number in range(20):
                forwarded = {"X-Forwarded-For": f"203.0.113.{number}"}
                assert client.post(each.url + "start", json={}, headers=forwarded).status_code == 200
        # They come too, beside those that have asked and never do.
        assert raw_http.upgrade(each.url, "/ws-client", "Host: bot.example") == 101


class TestSenders:
    def test_audio_faster_than_speech(self, each: Shared) -> None:
        second = asyncio.run(audio_message(bytes(32000)))
        raw = RawStream(each.process.port, "/ws-client?bot=echo")
        raw.send(binary_frame(second))
        each.logged("a client connected")
        time.sleep(1)
        before = each.process.memory_mb()
        # As much as two hours, if it is let in.
        raw.flood(binary_frame(second) * 8, 1000, timeout_s=3)
        grown = each.process.memory_mb() - before
        assert start(each) == 200
        each.logged("ahead")
        raw.close()
        log = each.ended()
        assert grown < 60, f"{grown:.0f} MB"
        assert "Traceback" not in log

    @pytest.mark.parametrize("rate", [1, 4_000_000_000])
    def test_audio_of_a_rate_that_there_is_not(self, serve: Serve, rate: int) -> None:
        each = serve(bots.echo, transport="websocket")

        async def message() -> bytes:
            from pipecat.frames.frames import OutputAudioRawFrame

            made = await ProtobufFrameSerializer().serialize(OutputAudioRawFrame(bytes(640), rate, 1))
            assert isinstance(made, bytes)
            return made

        raw = RawStream(httpx.URL(each.url).port or 0, "/ws-client")
        raw.send(binary_frame(asyncio.run(message())))
        deadline = time.monotonic() + 10
        while not each.lines("unreadable"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raw.close()
        each.ended()
        assert not each.lines("Traceback")

    @pytest.mark.parametrize("kind", ["audio", "message"])
    def test_a_bot_that_is_busy(self, each: Shared, kind: str) -> None:
        if kind == "audio":
            frame = binary_frame(asyncio.run(audio_message(bytes(640))))
        else:
            data = json.dumps({"label": "x", "data": "y" * 60_000}).encode()
            field = b"\x0a" + varint(len(data)) + data
            frame = binary_frame(b"\x22" + varint(len(field)) + field)
        raw = RawStream(each.process.port, "/ws-client?bot=deaf")
        raw.send(frame)
        each.logged("a client connected")
        time.sleep(1)
        before = each.process.memory_mb()
        raw.flood(frame * 8, 2000, timeout_s=3)
        grown = each.process.memory_mb() - before
        assert start(each) == 200
        each.logged("the bot does not read")
        raw.close()
        assert grown < 60, f"{grown:.0f} MB"

    def test_nobody_reads(self, each: Shared) -> None:
        before = each.process.memory_mb()
        raws = [RawStream(each.process.port, "/ws-client?bot=talker") for _ in range(3)]
        for raw in raws:
            raw.socket.setsockopt(*RECEIVE_LITTLE)
        each.logged("a client connected", times=3)
        time.sleep(3)
        grown = each.process.memory_mb() - before
        assert start(each) == 200
        for raw in raws:
            raw.close()
        log = each.ended()
        assert grown < 60, f"{grown:.0f} MB"
        assert "Traceback" not in log


def varint(number: int) -> bytes:
    """Return a number as protobuf writes it."""
    made = b""
    while number > 127:
        made += bytes([number & 127 | 128])
        number >>= 7
    return made + bytes([number])


RECEIVE_LITTLE = (1, 8, struct.pack("i", 4096))  # SOL_SOCKET, SO_RCVBUF
