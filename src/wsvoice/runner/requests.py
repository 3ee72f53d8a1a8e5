"""What the routes share: where a request comes from, its host, its bounded body; accepting and refusing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Container, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from wsvoice import http
from wsvoice.errors import WsvoiceError

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig


#: How long the body of a request may take to arrive; a provider's comes with its headers.
BODY_TIMEOUT_S = 10.0
#: How many characters of an address are kept.
ADDRESS_LIMIT = 64

#: Headers that proxies, tunnels and content delivery networks add, and neither programs nor browsers do.
_PROXY_HEADER = re.compile(
    "cdn-loop|client-ip|forwarded|front-end-https|true-client-ip|via|wl-proxy-client-ip"
    "|x-(client-ip|cluster-client-ip|originating-ip|remote-addr|remote-ip|rewrite-url|scheme|url-scheme)"
    "|(cf|fastly|fly|ngrok|proxy|tailscale)-.*"
    "|x-(amzn|appengine|arr|azure|envoy|ngrok|original|real|vercel)-.*|x-(forwarded|proxy).*"
)

#: ``host[:port]``, in lower case. Stricter than in a URL, because it is logged and becomes part of addresses.
_HOST_PATTERN = r"(?:[a-z0-9_](?:[a-z0-9._-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
_HOST = re.compile(_HOST_PATTERN)
#: https://www.rfc-editor.org/rfc/rfc6454#section-6.2
_ORIGIN = re.compile(f"https?://({_HOST_PATTERN})")


class BodyError(Exception):
    """A body that is too large or does not arrive: its status and text are for the client, its reason for the log."""

    def __init__(self, status: int, text: str, reason: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason


async def read_body(request: Request, limit: int) -> bytes:
    """
    Return the body of a request.

    Raises:
        BodyError: If it is larger than `limit` bytes, does not arrive within :data:`BODY_TIMEOUT_S`, or the client
            disconnects.
    """
    too_large = BodyError(413, "The body is too large.", f"its body is larger than {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise too_large
    except (ClientDisconnect, TimeoutError) as error:
        reason = f"its body did not arrive within {BODY_TIMEOUT_S:g} s"
        raise BodyError(408, "The body did not arrive.", reason) from error
    return bytes(body)


def close_after(response: Response) -> Response:
    """Close the connection after this response, because the rest of the request was not read."""
    response.headers["Connection"] = "close"
    return response


async def accept(websocket: WebSocket, log: Logger, subprotocols: Iterable[str] = ()) -> bool:
    """Accept an upgrade, with the first of `subprotocols` that it offers; false if the peer is gone."""
    offered = websocket.scope.get("subprotocols", [])
    try:
        await websocket.accept(subprotocol=next((each for each in subprotocols if each in offered), None))
    except (OSError, RuntimeError, WebSocketDisconnect):
        log.warning("the caller was gone before the stream was accepted")
        return False
    return True


async def close(websocket: WebSocket, code: int, reason: str = "") -> None:
    """Close a stream that has no session; nothing happens if the caller is gone."""
    with suppress(OSError, RuntimeError, WebSocketDisconnect):
        await websocket.close(code, reason)


async def deny(websocket: WebSocket, status: int, reason: str) -> None:
    """Refuse an upgrade with an HTTP status, before it is accepted."""
    response = PlainTextResponse(f"{reason}\n", status)
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(response)
    else:
        await websocket.close()


def is_public(connection: HTTPConnection, config: RunConfig, *, allowed_origins: Container[str] = frozenset()) -> bool:
    """Whether a connection came, or may have come, by a public address; `allowed_origins` are trusted pages."""
    return config.public_url is not None or is_from_elsewhere(connection, allowed_origins)


def is_from_elsewhere(connection: HTTPConnection, allowed_origins: Container[str] = frozenset()) -> bool:
    """Whether a connection may come from another machine, a proxy or a foreign web page."""
    # A tunnel's agent and the developer's browser connect from loopback, so the peer's address proves nothing; the
    # requested host, the proxies' headers and the page's origin do.
    peer = connection.client.host if connection.client is not None else "localhost"
    return (
        is_proxied(connection)
        or not http.is_loopback(_name(requested_host(connection)))
        or not http.is_loopback(peer)
        or is_foreign_page(page(connection), allowed_origins)
    )


def is_proxied(connection: HTTPConnection) -> bool:
    """Whether a proxy forwarded the request, as far as can be seen."""
    # nginx speaks HTTP/1.0 to its upstream, and may add no header; programs and browsers no longer speak it.
    if connection.scope.get("http_version") == "1.0":
        return True
    return any(_PROXY_HEADER.fullmatch(name) for name in connection.headers)


def needs_token(
    connection: HTTPConnection, config: RunConfig, *, allowed_origins: Container[str] = frozenset()
) -> bool:
    """Whether a WebSocket that comes this way must carry a token."""
    return config.stream_auth != "none" and is_public(connection, config, allowed_origins=allowed_origins)


def address(request: HTTPConnection, config: RunConfig) -> str:
    """
    Return the address that an unverified request came from, whose share of the places it takes.

    Behind the configured proxy that is the last part of ``X-Forwarded-For``, which the proxy writes; anybody can write
    the parts before it. A peer that bypasses the proxy can write anything, and is bounded by the share of all
    strangers together.
    """
    forwarded = request.headers.getlist("x-forwarded-for")
    if config.public_url is not None and forwarded:
        return forwarded[-1].rpartition(",")[2].strip()[:ADDRESS_LIMIT]
    return request.client.host if request.client is not None else ""


def requested_host(connection: HTTPConnection) -> str | None:
    """Return ``host`` or ``host:port`` of a request's ``Host``; ``None`` if there is none, a bad one, or several."""
    hosts = connection.headers.getlist("host")
    host = hosts[0].strip().lower() if len(hosts) == 1 else ""
    return host if _HOST.fullmatch(host) else None


def has_host(connection: HTTPConnection, config: RunConfig) -> bool:
    """Whether the host name for the answers is known."""
    return config.public_url is not None or requested_host(connection) is not None


def unknown_host(connection: HTTPConnection, config: RunConfig) -> str | None:
    """
    Return the public host that a webhook came by, if the server is not configured for it; else ``None``.

    The stream's address would be a guess: only the configured host is known to have TLS, and providers refuse
    ``ws://``. Empty if a proxy forwarded the request without naming a host. With ``--verify off`` another machine may
    use any name, as in a local network or between containers, if it connects directly.
    """
    host = requested_host(connection)
    if config.public_url is not None:
        return None
    if not is_proxied(connection):
        peer = connection.client.host if connection.client is not None else "localhost"
        if _is_own(_name(host), connection, config) or (config.verify == "off" and not http.is_loopback(peer)):
            return None
    return next((each for each in claimed_hosts(connection) if not http.is_loopback(_name(each))), "")


def stream_base(connection: HTTPConnection, config: RunConfig) -> str:
    """Return ``ws(s)://host`` as the other end sees it: the configured host, else the requested one."""
    return _base(connection, config, requested_host(connection)).replace("http", "ws", 1)


def signed_base(connection: HTTPConnection, config: RunConfig) -> str:
    """
    Return ``http(s)://host`` that a signature must cover: the configured host, else this server's own.

    A sender chooses its ``Host`` and ``X-Forwarded-Host`` freely, and a request that was signed for another server of
    the same account must not be accepted here.
    """
    host = requested_host(connection)
    return _base(connection, config, host if _is_own(_name(host), connection, config) else None)


def is_local_program(connection: HTTPConnection) -> bool:
    """Whether a program on this machine, not a web page, requested a local name."""
    peer = connection.client.host if connection.client is not None else ""
    local = http.is_loopback(peer) and http.is_loopback(_name(requested_host(connection)))
    return local and not is_proxied(connection) and page(connection) is None


def claimed_hosts(connection: HTTPConnection) -> list[str]:
    """
    Return the hosts that a request claims to be for: for messages to the operator, never to be trusted.

    Behind a tunnel that was opened by hand, this is the host that the provider requested.
    """
    forwarded = connection.headers.get("x-forwarded-host", "").split(",")[0].strip().lower()
    hosts = [forwarded if _HOST.fullmatch(forwarded) else None, requested_host(connection)]
    return list(dict.fromkeys(host for host in hosts if host is not None))


def with_hint(error: WsvoiceError) -> str:
    """Return an error on one line, for the log."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


def page(connection: HTTPConnection) -> str | None:
    """Return the origin of the web page that sends the request, in lower case; ``None`` if it is not from a browser."""
    origins = connection.headers.getlist("origin")
    return " ".join(origins).lower() if origins else None


def is_foreign_page(origin: str | None, allowed: Container[str] = frozenset()) -> bool:
    """Whether an origin is a web page that is neither local nor allowed: browsers reach loopback for any page."""
    return origin is not None and origin not in allowed and not is_local_page(origin)


def is_local_page(origin: str) -> bool:
    """Whether an origin is a page that this machine serves, on any port; ``null`` may be anybody's."""
    match = _ORIGIN.fullmatch(origin)
    return match is not None and http.is_loopback(_name(match[1]))


def _base(connection: HTTPConnection, config: RunConfig, host: str | None) -> str:
    if config.public_url is not None:
        return config.public_url
    if host is None:
        host, port = connection.scope.get("server") or ("localhost", None)
        host = f"[{host}]" if ":" in host else host
        host = f"{host}:{port}" if port else host
    secure = connection.scope.get("scheme") in ("https", "wss")
    return f"{'https' if secure else 'http'}://{host}"


def _is_own(name: str, connection: HTTPConnection, config: RunConfig) -> bool:
    """Whether a host name is the listener's own."""
    address = (connection.scope.get("server") or ("", None))[0]
    return http.is_loopback(name) or name in (address.lower(), config.host.lower())


def _name(host: str | None) -> str:
    """Return a host without its port and brackets; empty for none."""
    if host is None:
        return ""
    return host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
