"""
What a stranger begins and does not end, or what is none: heads, bodies, pipelines, open connections; and WebSocket
messages with bad UTF-8, endless fragments, pings whose answers nobody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import logging
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.attacks.raw_http import connection, exchange
from tests.attacks.raw_websocket import RawStream, text_frame, twilio_audio, twilio_start
from tests.process import ServerProcess, server_process
from wsvoice.runner import protocols

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
#: A call's own messages come back, without the time that a pipeline takes.
SENDS_BACK = """
    async def bot(runner_args):
        async for message in runner_args.websocket.iter_text():
            await runner_args.websocket.send_text(message)
    """
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SMALL_FIELDS = b"".join(b"a%d: b\r\n" % number for number in range(8000))
ONE_FIELD = b"x" * 65536
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


PATHS = {"twilio": "/ws/twilio", "websocket": "/ws-client", "websocket-server": "/"}
ALL = pytest.mark.parametrize("process", PATHS, indirect=True)


@pytest.fixture(scope="module", params=["twilio", "websocket-server"])
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), ECHO, "-t", request.param) as process:
        process.ready["path"] = PATHS[request.param]
        yield process


def push(url: str, head: bytes, pieces: Iterator[bytes], *, limit: int, timeout_s: float = 20) -> int:
    """Send a head, then pieces for as long as they are taken; return how many bytes were."""
    deadline, sent = time.monotonic() + timeout_s, 0
    with connection(url) as raw:
        raw.sendall(head)
        raw.setblocking(False)
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                assert time.monotonic() < deadline, f"it stood still after {sent} bytes"
                readable, writable, _ = select.select([raw], [raw], [], 0.5)
                try:
                    if readable and not raw.recv(65536):
                        return sent
                    if writable:
                        count = raw.send(rest)
                        rest, sent = rest[count:], sent + count
                except BlockingIOError:
                    continue
                except OSError:
                    return sent
            if sent >= limit:
                return sent
    return sent


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (GET, SMALL_FIELDS),
        (GET + b"X-Long: ", ONE_FIELD),
        (b"GET /", ONE_FIELD),
        (b"", b"\r\n" * 32768),
        (UPGRADE, SMALL_FIELDS),
        (UPGRADE + b"X-Long: ", ONE_FIELD),
        (CHUNKED + b"0\r\nX-Long: ", ONE_FIELD),
        (CHUNKED + b"0\r\n", SMALL_FIELDS),
        (CHUNKED + b"5;", ONE_FIELD),
        (CHUNKED + b"5;x=", ONE_FIELD),
        (CHUNKED, b"1\r\na\r\n" * 10000),
    ],
    ids=[
        "small fields",
        "one field",
        "the path",
        "empty lines",
        "fields of an upgrade",
        "a field of an upgrade",
        "a field after the body",
        "small fields after the body",
        "a chunk's extension",
        "the value of a chunk's extension",
        "tiny chunks",
    ],
)
def test_an_endless_head(process: ServerProcess, head: bytes, piece: bytes) -> None:
    before_mb, before_s = process.memory_mb(), process.cpu_s()
    # What the kernel holds on the way has been sent too.
    assert push(process.url, head, itertools.repeat(piece), limit=40_000_000) < 10_000_000
    assert process.memory_mb() - before_mb < 20
    assert process.cpu_s() - before_s < 1


@pytest.mark.parametrize("size", [9_000, 60_000])
def test_an_upgrade_that_the_websocket_does_not_take_is_closed(process: ServerProcess, size: int) -> None:
    with connection(process.url, timeout_s=5) as raw:
        raw.sendall(UPGRADE + b"X-Long: " + b"x" * size + b"\r\n\r\n")
        answer = b""
        try:
            while piece := raw.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
    assert b" 101 " not in answer


def test_requests_by_the_thousand_on_one_connection(process: ServerProcess) -> None:
    before_mb = process.memory_mb()
    many = itertools.repeat(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 6000)
    push(process.url, b"", many, limit=8_000_000)
    assert process.memory_mb() - before_mb < 15


class TestTime:
    """How long a connection may wait for a head; the server's own limit is longer."""

    @pytest.fixture
    def url(self, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]) -> str:
        monkeypatch.setattr(protocols, "HEAD_TIMEOUT_S", 0.5)

        async def bot(runner_args: Any) -> None:
            await asyncio.Event().wait()

        return str(serve(bot).url)

    @pytest.mark.parametrize("first", [b"", b"G", GET, GET + b"\r\n"], ids=["nothing", "a byte", "a head", "a request"])
    def test_for_a_head_that_drips(self, url: str, first: bytes) -> None:
        with connection(url) as raw:
            raw.sendall(first)
            begin, answer = time.monotonic(), b""
            # A byte every now and then keeps nothing open.
            raw.settimeout(0.1)
            while time.monotonic() - begin < 5:
                try:
                    piece = raw.recv(65536)
                except TimeoutError:
                    with contextlib.suppress(OSError):
                        raw.sendall(b"a" if first else b"")
                    continue
                except ConnectionResetError:
                    break
                if not piece:
                    break
                answer += piece
            assert time.monotonic() - begin < 4
            assert (b"200 OK" in answer) == (first == GET + b"\r\n")

    def test_for_the_rest_of_a_body_that_was_refused(self, url: str) -> None:
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
        taken = push(url, head, (time.sleep(0.02) or b"x" * 1000 for _ in itertools.count()), limit=2_000_000)
        assert taken < 500_000

    def test_a_request_in_time_is_answered(self, url: str) -> None:
        with connection(url) as raw:
            for _ in range(4):
                for at in range(0, len(GET), 20):
                    raw.sendall(GET[at : at + 20])
                    time.sleep(0.02)
                raw.sendall(b"\r\n")
                # Its head and its body may come one after the other.
                with http.client.HTTPResponse(raw) as answer:
                    answer.begin()
                    assert answer.status == 200
                    answer.read()
                time.sleep(0.1)

    def test_a_call_outlasts_it(self, url: str) -> None:
        async def main() -> None:
            async with connect(url.replace("http", "ws") + "ws") as websocket:
                await asyncio.sleep(1)
                assert websocket.close_code is None

        asyncio.run(main())


@pytest.mark.parametrize(
    "first",
    [GET, POST + b"Content-Length: 60000\r\n\r\n", CHUNKED + b"5\r\na"],
    ids=["a head", "a body", "a chunk"],
)
def test_many_connections_that_begin_and_do_not_end(process: ServerProcess, first: bytes) -> None:
    connections: list[socket.socket] = []
    path = process.ready["path"]
    with contextlib.closing(RawStream(process.port, path)) as stream:
        try:
            before_mb = process.memory_mb()
            for _ in range(400):
                raw = socket.create_connection(("127.0.0.1", process.port), timeout=5)
                raw.sendall(first)
                connections.append(raw)
            # Whoever asks for something gets it,
            for _ in range(3):
                with connection(process.url, timeout_s=5) as raw:
                    raw.sendall(GET + b"Connection: close\r\n\r\n")
                    assert raw.recv(65536).startswith(b"HTTP/1.1 ")
                with contextlib.closing(RawStream(process.port, path)):
                    pass
            assert process.memory_mb() - before_mb < 30
            # for those that came first have made room,
            assert all(select.select([raw], [], [], 2)[0] for raw in connections[:100])
            # but no WebSocket has.
            stream.send(text_frame("", opcode=9))
            assert select.select([stream.socket], [], [], 5)[0]
            assert stream.socket.recv(2) == b"\x8a\x00"
        finally:
            for raw in connections:
                raw.close()
    time.sleep(0.2)


def test_connections_that_read_no_answers_make_room(monkeypatch: pytest.MonkeyPatch, serve: Callable[..., Any]) -> None:
    def connection_made(protocol: protocols.HttpProtocol, transport: asyncio.Transport) -> None:
        begin(protocol, transport)
        if len(connections) < 4:
            # As the transport does once its buffer is full.
            protocol.pause_writing()

    async def bot(runner_args: Any) -> None:
        await asyncio.Event().wait()

    begin, connections = protocols.HttpProtocol.connection_made, list[socket.socket]()
    monkeypatch.setattr(protocols.HttpProtocol, "connection_made", connection_made)
    monkeypatch.setattr(protocols, "CONNECTION_LIMIT", 4)
    url = serve(bot).url
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            raw = stack.enter_context(connection(url))
            raw.sendall(GET + b"\r\n")
            time.sleep(0.2)
            connections.append(raw)
        with connection(url, timeout_s=5) as raw:
            raw.sendall(GET + b"Connection: close\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 ")
        # The one that came first.
        assert connections[0].recv(1) == b""


def test_what_breaks_off_is_no_error_and_what_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    """Neither a head nor a body or a chunk of one keeps a server that stops."""
    body = POST + b"Content-Length: 60000\r\n\r\n"
    with server_process(tmp_path, SENDS_BACK, "-t", "twilio") as process, contextlib.ExitStack() as stack:
        for _ in range(3):
            with connection(process.url) as raw:
                raw.sendall(body + b"abc")
                time.sleep(0.1)
        process.logged("webhook refused (408)")
        for first in [GET, body, CHUNKED + b"5\r\na"] * 10:
            stack.enter_context(connection(process.url)).sendall(first)
        time.sleep(0.5)
        process.signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert "Traceback" not in process.log()
        assert "ERROR" not in process.log()


def test_a_refused_websocket_is_no_error_of_the_servers(
    serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def bot(runner_args: Any) -> None:
        pass

    server = serve(bot, proxy="bot.example.com", credentials={"TWILIO_AUTH_TOKEN": "0"})
    for _ in range(3):
        # Read until the server has closed.
        status, _ = exchange(server.url, UPGRADE.replace(b"/ws", b"/ws/twilio") + b"\r\n")
        assert status in (401, 403)
    time.sleep(0.2)
    # Of uvicorn and the libraries below it, and the server's own.
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not server.lines("ERROR")


def test_others_do_not_wait_meanwhile(tmp_path: Path) -> None:
    """Neither whoever connects nor a call's audio, most of the time; the machine may be busy with something else."""
    attacks = itertools.cycle([GET + b"X-Long: ", CHUNKED + b"0\r\nX-Long: ", CHUNKED + b"5;"])
    over = threading.Event()

    def attack() -> None:
        while not over.is_set():
            push(process.url, next(attacks), itertools.repeat(ONE_FIELD), limit=20_000_000)

    with (
        server_process(tmp_path, SENDS_BACK, "-t", "twilio") as process,
        contextlib.closing(RawStream(process.port)) as call,
    ):
        audio = twilio_audio(bytes(320))
        call.send(twilio_start())
        process.logged("stream started")
        call.send(audio)
        assert select.select([call.socket], [], [], 10)[0]
        call.socket.recv(65536)
        thread = threading.Thread(target=attack)
        thread.start()
        connects, echoes = [], []
        try:
            for _ in range(40):
                begin = time.monotonic()
                with connection(process.url) as raw:
                    raw.sendall(GET + b"Connection: close\r\n\r\n")
                    assert raw.recv(65536).startswith(b"HTTP/1.1 ")
                connects.append(time.monotonic() - begin)
                begin = time.monotonic()
                call.socket.send(audio)
                came = b""
                # A ping may come before it.
                while b'"media"' not in came:
                    assert select.select([call.socket], [], [], 10)[0]
                    came += call.socket.recv(65536)
                echoes.append(time.monotonic() - begin)
                time.sleep(0.02)
        finally:
            over.set()
            thread.join()
    for waits in (sorted(connects), sorted(echoes)):
        assert waits[len(waits) * 9 // 10] < 0.1, waits
        assert waits[-1] < 0.7, waits


# -- WebSocket messages that are no messages --


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """Return a short masked frame; its mask is zero."""
    return bytes([opcode | (0x80 if final else 0), 0x80 | len(payload)]) + bytes(4) + payload


TEXT, CONTINUATION, PING, CLOSE = 1, 0, 9, 8


def stream(process: ServerProcess) -> RawStream:
    raw = RawStream(process.port, process.ready["path"])
    if process.ready["path"] == "/ws/twilio":
        raw.send(twilio_start())
    return raw


def close_code(raw: RawStream) -> int:
    """Read until the server has closed; return the code of its close frame, 0 if there was none."""
    raw.socket.setblocking(True)
    raw.socket.settimeout(10)
    data = b""
    try:
        while piece := raw.socket.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    at = data.rfind(bytes([0x80 | CLOSE]))
    return int(struct.unpack("!H", data[at + 2 : at + 4])[0]) if at >= 0 else 0


@ALL
@pytest.mark.parametrize("split", [False, True])
def test_bad_utf_8(process: ServerProcess, split: bool) -> None:
    before = len(process.log())
    raw = stream(process)
    if split:
        raw.send(frame(TEXT, b'{"event": "\xc3', final=False), frame(CONTINUATION, b'\x28"}'))
    else:
        raw.send(frame(TEXT, b'{"event": "\xff"}'))
    assert close_code(raw) == 1007
    raw.close()
    time.sleep(0.3)
    log = process.log()[before:]
    assert "Traceback" not in log, log
    assert "UnicodeDecodeError" not in log, log
    if process.ready["path"] != "/":
        assert log.count("a text message was not UTF-8") == 1, log


@ALL
def test_endless_fragments(process: ServerProcess) -> None:
    raw = stream(process)
    before_mb = process.memory_mb()
    raw.send(frame(TEXT, b"a", final=False))
    sent = raw.flood(frame(CONTINUATION, b"", final=False) * 10_000, 100, timeout_s=3)
    raw.close()
    assert sent < 6_000_000
    assert process.memory_mb() - before_mb < 15


@ALL
def test_pings_whose_answers_nobody_reads(process: ServerProcess) -> None:
    raw = stream(process)
    before_mb = process.memory_mb()
    sent, pings = 0, frame(PING, b"x" * 125) * 400
    deadline = time.monotonic() + 10
    raw.socket.setblocking(True)
    raw.socket.settimeout(1)
    try:
        for _ in itertools.count():
            raw.socket.sendall(pings)
            sent += len(pings)
            if sent > 40_000_000 or time.monotonic() > deadline:
                break
    except OSError:
        pass
    raw.close()
    assert sent < 30_000_000
    assert process.memory_mb() - before_mb < 15
