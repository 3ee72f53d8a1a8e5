"""
Who may come in: whoever has the token, by this machine's own name, from the page itself.

A page is no safer than the other pages of its browser let it be. A foreign page can make a browser connect to this
machine, by its name or by one of its own that it points here (DNS rebinding). So the `Host` is looked at, the `Origin`
of each WebSocket, and the token in the address, which no other page knows.

https://owasp.org/www-community/attacks/Cross-Site_WebSocket_Hijacking_(CSWSH)
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: The names by which this machine reaches itself, as a `Host` has them.
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")
#: Of every answer; those of the page of a call differ.
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), display-capture=()",
}


class Gate:
    """
    Lets requests in that may come in, and takes the token out of their paths.

    Args:
        application: What answers them.
        token: The first part of their paths.
        port: Where this process listens.
        sealed: The beginnings of paths that hold a secret of their own in place of the token.
    """

    def __init__(self, application: ASGIApp, token: str, port: int, sealed: Collection[str] = ()) -> None:
        self._application = application
        self._token = token.encode()
        self._hosts = frozenset(f"{name}:{port}" for name in OWN_NAMES)
        self._sealed = tuple(sealed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
            return
        if (why := self._objection(scope)) is not None:
            await _refuse(scope, receive, send, *why)
            return
        if not scope["path"].startswith(self._sealed):
            if "/" not in scope["path"].lstrip("/") and scope["type"] == "http":
                # What the page asks for is beside it.
                await RedirectResponse(f"{scope['path']}/")(scope, receive, _with_headers(send))
                return
            path = "/" + scope["path"].lstrip("/").partition("/")[2]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._application(scope, receive, _with_headers(send))

    def _objection(self, scope: Scope) -> tuple[int, str] | None:
        """Return the status and the reason with which a request is refused, or ``None``."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 421, "This is a page of this machine only, by the address that was printed."
        if scope["type"] == "websocket" and headers.getlist("origin") != [f"http://{hosts[0].lower()}"]:
            return 403, "Only the page itself may connect."
        given = scope["path"].lstrip("/").partition("/")[0]
        if not scope["path"].startswith(self._sealed) and not hmac.compare_digest(given.encode(), self._token):
            return 404, "There is nothing here. Open the whole address that was printed."
        return None


def content_policy(port: int) -> str:
    """Return the policy of the page: its own scripts and style, and a connection to this process alone."""
    # Not every browser counts a WebSocket to the same host and port as 'self'.
    sockets = " ".join(f"ws://{name}:{port}" for name in OWN_NAMES[:2])
    rules = [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "frame-src 'self'",
        f"connect-src 'self' {sockets}",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(rules)


#: Of the page of a call, which has a policy of its own, and here none of the rights of this page.
CALL_PAGE_POLICY = "sandbox allow-scripts; frame-ancestors 'self'"


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    await PlainTextResponse(f"{reason}\n", status)(scope, receive, _with_headers(send))
