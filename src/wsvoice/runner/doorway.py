"""What every route does at the door: read a bounded body, ask for a token, accept, refuse, close."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from wsvoice import http
from wsvoice.errors import WsvoiceError

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig


#: How long the body of a request may take to come; a provider's is here with its headers.
BODY_TIMEOUT_S = 10.0


async def read_body(request: Request, limit: int) -> bytes | None:
    """
    Return the body, or ``None`` as soon as it is larger than `limit` bytes.

    Raises:
        TimeoutError: If it has not come within :data:`BODY_TIMEOUT_S`.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        return None
    body = bytearray()
    async with asyncio.timeout(BODY_TIMEOUT_S):
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                return None
    return bytes(body)


async def accept(websocket: WebSocket, log: Logger) -> bool:
    """Accept an upgrade; false if nobody is there any more."""
    try:
        await websocket.accept()
    except (OSError, RuntimeError, WebSocketDisconnect):
        log.warning("the caller was gone before the stream was accepted")
        return False
    return True


async def close(websocket: WebSocket, code: int, reason: str = "") -> None:
    """Close a stream that no session has taken; nothing happens if the caller is gone."""
    with suppress(OSError, RuntimeError, WebSocketDisconnect):
        await websocket.close(code, reason)


async def deny(websocket: WebSocket, status: int, reason: str) -> None:
    """Refuse an upgrade with an HTTP status, before it is accepted."""
    response = PlainTextResponse(f"{reason}\n", status)
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(response)
    else:
        await websocket.close()


def is_public(connection: HTTPConnection, config: RunConfig) -> bool:
    """Whether a connection came in by a public address, or may have."""
    if config.public_url is not None:
        return True
    # A tunnel's agent connects from loopback, so the peer's address proves nothing; the name that was
    # dialled and the headers of proxies do.
    forwarded = any(name.startswith("x-forwarded-") for name in connection.headers)
    host = urlsplit(f"//{connection.headers.get('host', '')}").hostname or ""
    peer = connection.client.host if connection.client is not None else "localhost"
    return forwarded or not http.is_loopback(host) or not http.is_loopback(peer)


def needs_token(connection: HTTPConnection, config: RunConfig) -> bool:
    """Whether a WebSocket that comes in as `connection` did must carry a token."""
    return config.stream_auth != "none" and is_public(connection, config)


def stream_base(connection: HTTPConnection, config: RunConfig) -> str:
    """Return ``ws(s)://host`` as the other end sees it: the configured host, else what proxies say, else our own."""
    if config.public_url is not None:
        return config.public_url.replace("http", "ws", 1)
    headers = connection.headers
    host = _first(headers.get("x-forwarded-host")) or headers.get("host", "localhost")
    scheme = _first(headers.get("x-forwarded-proto")) or connection.scope.get("scheme", "http")
    return f"{'wss' if scheme in ('https', 'wss') else 'ws'}://{host}"


def with_hint(error: WsvoiceError) -> str:
    """Return an error on one line, for the log."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def is_foreign_page(connection: HTTPConnection) -> bool:
    """Whether a web page of another machine's dials: the developer's own browser reaches loopback for it."""
    origin = connection.headers.get("origin")
    return origin is not None and not http.is_loopback(urlsplit(origin).hostname or "")


def _first(header: str | None) -> str | None:
    return header.split(",")[0].strip() if header else None
