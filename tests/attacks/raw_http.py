"""A stranger's own client: what it sends is what a test says, byte for byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def connection(url: str, *, timeout_s: float = 10) -> Iterator[socket.socket]:
    """Connect to a server's port."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=timeout_s) as raw:
        yield raw


def request(
    url: str,
    line: str,
    *headers: str,
    body: bytes = b"",
    timeout_s: float = 10,
) -> tuple[int, bytes]:
    """
    Send one request head as it is, and a body; return the status and everything that came.

    Args:
        url: Whose port.
        line: The request line, such as ``POST /start HTTP/1.1``.
        headers: Whole lines; ``Connection: close`` is added.
        body: Sent after the head, with its length if there is any.

    Returns:
        The status, 0 if the connection was closed without an answer; and the bytes of the answer.
    """
    lines = [line, *headers, "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return exchange(url, "\r\n".join([*lines, "", ""]).encode("latin-1") + body, timeout_s=timeout_s)


def upgrade(url: str, path: str, *headers: str, timeout_s: float = 10) -> int:
    """Ask for a WebSocket with these headers; return the status of the answer."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    lines = [f"GET {path} HTTP/1.1", *headers, "Connection: Upgrade", "Upgrade: websocket"]
    head = "\r\n".join([*lines, "Sec-WebSocket-Version: 13", key, "", ""]).encode("latin-1")
    return exchange(url, head, timeout_s=timeout_s, head_only=True)[0]


def exchange(url: str, data: bytes, *, timeout_s: float = 10, head_only: bool = False) -> tuple[int, bytes]:
    """Send `data`; return the answer's status and bytes, as :func:`request` does."""
    answer = b""
    with connection(url, timeout_s=timeout_s) as raw:
        try:
            raw.sendall(data)
            while piece := raw.recv(65536):
                answer += piece
                if head_only and b"\r\n\r\n" in answer:
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass
    first = answer.split(b"\r\n", 1)[0].split(b" ")
    return (int(first[1]) if len(first) > 1 and first[1].isdigit() else 0), answer
