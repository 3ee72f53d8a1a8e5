"""WebSocket messages that are no messages: bad UTF-8, endless fragments, pings whose answers nobody reads."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.raw import RawStream, twilio_start
from tests.process import ServerProcess, server_process

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")


def frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """Return a short masked frame; its mask is zero."""
    return bytes([opcode | (0x80 if final else 0), 0x80 | len(payload)]) + bytes(4) + payload


TEXT, CONTINUATION, PING, CLOSE = 1, 0, 9, 8
PATHS = {"twilio": "/ws/twilio", "websocket": "/ws-client", "websocket-server": "/"}


@pytest.fixture(scope="module", params=PATHS)
def process(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), ECHO, "-t", request.param) as process:
        process.ready["path"] = PATHS[request.param]
        yield process


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


def test_endless_fragments(process: ServerProcess) -> None:
    raw = stream(process)
    before_mb = process.memory_mb()
    raw.send(frame(TEXT, b"a", final=False))
    sent = raw.flood(frame(CONTINUATION, b"", final=False) * 10_000, 100, timeout_s=3)
    raw.close()
    assert sent < 6_000_000
    assert process.memory_mb() - before_mb < 15


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
