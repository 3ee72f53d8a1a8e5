"""Requests that a stranger begins and does not end, or ends too late: heads, bodies, pipelines, open connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.attacks.heads import connection
from tests.process import ServerProcess, server_process
from wsvoice.runner import protocols

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SMALL_FIELDS = b"".join(b"a%d: b\r\n" % number for number in range(8000))
ONE_FIELD = b"x" * 65536


@pytest.fixture(scope="module", params=["twilio", "websocket-server"])
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), ECHO, "-t", request.param) as process:
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
    ],
    ids=["small fields", "one field", "the path", "empty lines", "fields of an upgrade", "a field of an upgrade"],
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
                assert b"200 OK" in raw.recv(65536)
                time.sleep(0.1)

    def test_a_call_outlasts_it(self, url: str) -> None:
        async def main() -> None:
            async with connect(url.replace("http", "ws") + "ws") as websocket:
                await asyncio.sleep(1)
                assert websocket.close_code is None

        asyncio.run(main())


def test_many_connections_without_a_request(process: ServerProcess) -> None:
    connections: list[socket.socket] = []
    try:
        before_mb = process.memory_mb()
        for _ in range(400):
            raw = socket.create_connection(("127.0.0.1", process.port), timeout=5)
            raw.sendall(GET)
            connections.append(raw)
        time.sleep(0.5)
        assert process.memory_mb() - before_mb < 30
        # Those that came first have made room, and whoever asks for something gets it.
        gone = [raw for raw in connections if select.select([raw], [], [], 0)[0]]
        assert 130 <= len(gone) <= 150
        with connection(process.url, timeout_s=5) as raw:
            raw.sendall(GET + b"Connection: close\r\n\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 ")
    finally:
        for raw in connections:
            raw.close()
    time.sleep(0.2)


def test_others_do_not_wait_meanwhile(process: ServerProcess) -> None:
    over = threading.Event()

    def attack() -> None:
        while not over.is_set():
            push(process.url, GET + b"X-Long: ", itertools.repeat(ONE_FIELD), limit=2_000_000)

    thread = threading.Thread(target=attack)
    thread.start()
    waits = []
    try:
        for _ in range(20):
            begin = time.monotonic()
            with connection(process.url) as raw:
                raw.sendall(GET + b"Connection: close\r\n\r\n")
                assert raw.recv(65536).startswith(b"HTTP/1.1 ")
            waits.append(time.monotonic() - begin)
            time.sleep(0.02)
    finally:
        over.set()
        thread.join()
    assert sorted(waits)[len(waits) // 2] < 0.1, waits
