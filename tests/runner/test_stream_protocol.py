"""Our WebSocket protocol reads and writes what uvicorn's does, however the bytes arrive."""

from __future__ import annotations

import asyncio
import itertools
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from wsvoice.runner.protocols import UNREAD_MESSAGES, StreamProtocol

LIMIT = 4096
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Wire:
    """What a protocol writes to."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.aborted = False
        self.paused = 0

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused += 1

    def resume_reading(self) -> None:
        self.paused -= 1

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        pass


def frame(first: int, content: bytes, *, mask: bytes | None = b"\x12\x34\x56\x78", size_bytes: int = 0) -> bytes:
    size = len(content)
    flag = 128 if mask is not None else 0
    if size_bytes == 8 or size > 65535:
        head = bytes((first, flag | 127)) + struct.pack("!Q", size)
    elif size_bytes == 2 or size > 125:
        head = bytes((first, flag | 126)) + struct.pack("!H", size)
    else:
        head = bytes((first, flag | size))
    if mask is None:
        return head + content
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(content))


TEXT, BINARY, CLOSE, PING, PONG, MORE, LAST = 0x81, 0x82, 0x88, 0x89, 0x8A, 0x00, 0x80
GOOD = [
    [frame(TEXT, b'{"event":"media"}')],
    [frame(TEXT, "größer – 日本".encode())],
    [frame(TEXT, b"")],
    [frame(TEXT, b"a" * 300)],
    [frame(TEXT, b"a" * 40, size_bytes=2)],
    [frame(TEXT, b"a" * 40, size_bytes=8)],
    [frame(TEXT, b"b" * LIMIT)],
    [frame(BINARY, bytes(range(256)) * 3)],
    [frame(BINARY, b"")],
    [frame(PING, b"are you there")],
    [frame(PONG, b"unasked")],
    [frame(0x01, b"in "), frame(MORE, b"three "), frame(PING, b""), frame(LAST, b"pieces")],
    [frame(0x02, b""), frame(LAST, b"\x00\x01")],
    [frame(0x01, "é".encode()[:1]), frame(LAST, "é".encode()[1:])],
]
BAD = [
    [frame(TEXT, b"no mask", mask=None)],
    [frame(TEXT, b"\xff\xfe")],
    [frame(0x01, b"\xff"), frame(LAST, b"\xfe")],
    [frame(TEXT, b"c" * (LIMIT + 1))],
    [frame(BINARY, b"d" * 70_000)],
    [frame(0xC1, b"a reserved bit")],
    [frame(0x83, b"a reserved opcode")],
    [frame(0x8B, b"a reserved control frame")],
    [frame(LAST, b"the end of nothing")],
    [frame(0x01, b"begun "), frame(TEXT, b"and begun again")],
    [frame(0x09, b"a ping in pieces")],
    [frame(PING, b"e" * 126)],
    [frame(CLOSE, b"")],
    [frame(CLOSE, struct.pack("!H", 1000) + b"bye")],
    [frame(CLOSE, b"\x03")],
    [frame(CLOSE, struct.pack("!H", 1005))],
    [frame(CLOSE, struct.pack("!H", 1000) + b"\xff")],
]


def protocol_of(kind: type[WebSocketsSansIOProtocol]) -> tuple[Any, Wire]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    config = Config(app, ws_max_size=LIMIT, ws_per_message_deflate=False, log_config=None, ws_ping_interval=None)
    config.load()
    protocol, wire = kind(config, ServerState(), {}), Wire()
    protocol.connection_made(wire)  # type: ignore[arg-type]
    return protocol, wire


async def told(kind: type[WebSocketsSansIOProtocol], pieces: list[bytes]) -> tuple[list[Any], bytes, bool]:
    """Return what the application is given of these pieces, what is written, and whether the connection is closed."""
    protocol, wire = protocol_of(kind)
    protocol.data_received(UPGRADE)
    await protocol.receive()
    await protocol.send({"type": "websocket.accept"})
    messages = []
    for piece in pieces:
        if wire.closed:
            break
        protocol.data_received(piece)
        while not protocol.queue.empty():
            messages.append(await protocol.receive())
    for task in protocol.tasks:
        task.cancel()
    return messages, wire.written, wire.closed


def split(data: bytes, choose: random.Random) -> list[bytes]:
    """Cut bytes as a network may: all at once, each by itself, or anywhere."""
    style = choose.choice(["whole", "bytes", "anywhere"])
    if style == "whole":
        return [data]
    if style == "bytes" and len(data) < 3000:
        return [data[index : index + 1] for index in range(len(data))]
    cuts = sorted({0, len(data), *(choose.randrange(len(data) + 1) for _ in range(6))})
    return [data[first:last] for first, last in itertools.pairwise(cuts)]


@pytest.mark.parametrize("seed", range(150))
def test_the_same_messages_and_answers_as_uvicorns_own(seed: int) -> None:
    choose = random.Random(seed)
    frames = [each for some in choose.choices(GOOD, k=choose.randrange(1, 7)) for each in some]
    if choose.random() < 0.7:
        frames += choose.choice(BAD)
        frames += [each for some in choose.choices(GOOD, k=choose.randrange(3)) for each in some]
    pieces = split(b"".join(frames), choose)

    async def both() -> tuple[Any, Any]:
        # uvicorn loses the messages that arrive together with a frame that is not allowed.
        return await told(StreamProtocol, pieces), await told(WebSocketsSansIOProtocol, frames)

    ours, theirs = asyncio.run(both())
    assert ours == theirs


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_uvicorn_refuses_is_refused(bad: list[bytes]) -> None:
    async def both() -> tuple[Any, Any]:
        return await told(StreamProtocol, bad), await told(WebSocketsSansIOProtocol, bad)

    ours, theirs = asyncio.run(both())
    assert ours == theirs
    assert ours[2]


@pytest.mark.parametrize("content", ["", "a" * 125, "a" * 126, "é" * 300, b"", b"\x00" * 640, "a" * 70_000])
def test_the_same_is_written(content: str | bytes) -> None:
    async def written(send: Callable[[Any], Any] | None) -> bytes:
        protocol, wire = protocol_of(StreamProtocol)
        protocol.data_received(UPGRADE)
        await protocol.send({"type": "websocket.accept"})
        head = len(wire.written)
        if send is not None:
            send(protocol)
        else:
            await protocol.send({"type": "websocket.send", "text" if isinstance(content, str) else "bytes": content})
        for task in protocol.tasks:
            task.cancel()
        return wire.written[head:]

    assert asyncio.run(written(lambda protocol: protocol.send_now(content))) == asyncio.run(written(None))


def test_nothing_is_sent_at_once_that_has_to_wait_or_comes_too_late() -> None:
    async def main() -> None:
        protocol, wire = protocol_of(StreamProtocol)
        assert not protocol.can_send()  # Before the upgrade.
        protocol.data_received(UPGRADE)
        await protocol.send({"type": "websocket.accept"})
        size = len(wire.written)
        protocol.pause_writing()
        assert not protocol.can_send()  # Into a full buffer.
        protocol.resume_writing()
        assert protocol.can_send()
        protocol.send_now("now")
        assert len(wire.written) == size + 5
        await protocol.send({"type": "websocket.close", "code": 1000})
        assert not protocol.can_send()  # After the close.
        for task in protocol.tasks:
            task.cancel()
        protocol.close_timer.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_each_message_is_offered_once_and_in_order(seed: int) -> None:
    """What the listener leaves, and what comes behind that, waits for ``receive()``."""
    choose = random.Random(seed)
    texts = [f"message {number}" for number in range(20)]
    pieces = split(b"".join(frame(TEXT, text.encode()) for text in texts), choose)

    async def main() -> None:
        protocol, _ = protocol_of(StreamProtocol)
        protocol.data_received(UPGRADE)
        await protocol.receive()
        await protocol.send({"type": "websocket.accept"})
        got: list[str] = []

        def listen(message: Any) -> bool:
            assert protocol.queue.empty()
            if choose.random() < 0.3:
                return False
            got.append(message)
            return True

        protocol.listener = listen
        for piece in pieces:
            protocol.data_received(piece)
            while not protocol.queue.empty():
                got.append((await protocol.receive())["text"])
        assert got == texts
        for task in protocol.tasks:
            task.cancel()

    asyncio.run(main())


def test_other_connections_get_their_turn() -> None:
    async def main() -> None:
        protocol, wire = protocol_of(StreamProtocol)
        protocol.data_received(UPGRADE)
        await protocol.receive()
        await protocol.send({"type": "websocket.accept"})
        heard: list[Any] = []
        protocol.listener = lambda message: heard.append(message) or True
        protocol.data_received(frame(TEXT, b"x") * 1000)
        assert len(heard) == UNREAD_MESSAGES
        assert wire.paused == 1
        protocol.connection_lost(None)
        assert protocol.listener is None
        for task in protocol.tasks:
            task.cancel()

    asyncio.run(main())


def test_a_peer_is_not_read_while_its_messages_wait() -> None:
    async def main() -> None:
        protocol, wire = protocol_of(StreamProtocol)
        protocol.data_received(UPGRADE)
        await protocol.receive()
        await protocol.send({"type": "websocket.accept"})
        protocol.data_received(GOOD[0][0] * (UNREAD_MESSAGES - 1))
        assert wire.paused == 0
        protocol.data_received(GOOD[0][0])
        assert wire.paused == 1
        for _ in range(UNREAD_MESSAGES):
            await protocol.receive()
        assert wire.paused == 0
        for task in protocol.tasks:
            task.cancel()

    asyncio.run(main())
