"""A stranger's WebSocket client: it sends as fast as the server takes it, whatever the protocol says."""

from __future__ import annotations

import audioop
import base64
import json
import select
import socket
import struct
import time
from typing import Any


def text_frame(message: str | dict[str, Any], *, opcode: int = 1) -> bytes:
    """Return a masked frame; its mask is zero, so that it can be made quickly."""
    payload = (message if isinstance(message, str) else json.dumps(message)).encode()
    size = len(payload)
    head = bytes([0x80 | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + bytes(4) + payload


def binary_frame(payload: bytes) -> bytes:
    """Return a masked binary frame of fewer than 64 KiB."""
    size = len(payload)
    head = bytes([0x82, 0x80 | size]) if size < 126 else b"\x82\xfe" + struct.pack("!H", size)
    return head + bytes(4) + payload


class RawStream:
    """One WebSocket, without a library between the test and the wire."""

    def __init__(self, port: int, path: str = "/ws/twilio") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            more = self.socket.recv(1)
            assert more, head
            head += more
        assert head.startswith(b"HTTP/1.1 101"), head
        self.socket.setblocking(False)

    def send(self, *frames: bytes) -> None:
        """Send frames, all of them."""
        self.flood(b"".join(frames), 1, timeout_s=20)

    def flood(self, frames: bytes, times: int, *, timeout_s: float) -> int:
        """Send `frames` again and again, at most for a while; return how many bytes were taken."""
        deadline, total = time.monotonic() + timeout_s, 0
        for _ in range(times):
            rest = memoryview(frames)
            while rest:
                wait_s = deadline - time.monotonic()
                if wait_s <= 0:
                    return total
                readable, writable, _ = select.select([self.socket], [self.socket], [], min(wait_s, 0.5))
                if readable and not self._drain():
                    return total
                if writable:
                    try:
                        sent = self.socket.send(rest[: 1 << 16])
                    except OSError:
                        return total
                    rest, total = rest[sent:], total + sent
        return total

    def _drain(self) -> bool:
        try:
            return bool(self.socket.recv(1 << 16))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Drop the connection."""
        self.socket.close()


def twilio_start(call_sid: str = "CA" + "1" * 32, stream_sid: str = "MZ" + "1" * 32) -> bytes:
    """Return the two messages that a stream of Twilio's begins with."""
    ids = {"accountSid": "AC" + "1" * 32, "streamSid": stream_sid, "callSid": call_sid}
    start = {"event": "start", "start": {**ids, "customParameters": {}}, "streamSid": stream_sid}
    return text_frame({"event": "connected", "protocol": "Call", "version": "1.0.0"}) + text_frame(start)


def twilio_audio(pcm: bytes, stream_sid: str = "MZ" + "1" * 32, **more: Any) -> bytes:
    """Return the messages that carry 8 kHz s16le audio, 20 ms each, and in each of them what else is given."""
    mulaw = audioop.lin2ulaw(pcm, 2)
    frames = []
    for at in range(0, len(mulaw), 160):
        payload = base64.b64encode(mulaw[at : at + 160]).decode()
        frames.append(text_frame({"event": "media", "streamSid": stream_sid, "media": {"payload": payload}, **more}))
    return b"".join(frames)
