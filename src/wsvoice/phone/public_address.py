"""Whether a public address leads to a server on this machine, before a call is placed that needs it."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from wsvoice import http
from wsvoice.errors import DialError, HttpError
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.fields import shown

#: How long the public address may take to answer.
TIMEOUT_S = 5.0

#: What a proxy, or a tunnel's company, answers in place of a server that it does not reach.
_NOT_REACHED = frozenset({502, 503, 504})


async def doubt_about(public_url: str, local_url: str) -> str:
    """
    Return why it cannot be seen from here whether a public address leads to a server; empty if it does.

    Args:
        public_url: The public address.
        local_url: The server's address on this machine, with a slash at its end.

    Raises:
        DialError: If it certainly leads elsewhere.
    """
    try:
        here = await _ask(local_url)
        there = await _ask(public_url)
    except HttpError as error:
        # A name that only others know, a router that does not let its own network in: it may work for the provider.
        return error.message
    ours, theirs = here.headers.get(http.SERVER_HEADER, ""), there.headers.get(http.SERVER_HEADER, "")
    if ours and ours == theirs:
        return ""
    host = urlsplit(public_url).netloc
    hint = f"let the proxy or tunnel lead to port {urlsplit(local_url).port}"
    if theirs:
        raise DialError(f"{host} leads to another server of wsvoice's than the bot's at {local_url}", hint=hint)
    # https://ngrok.com/docs/errors/
    if code := there.headers.get("ngrok-error-code", ""):
        hint = "https://ngrok.com/docs/errors/ says what that means"
        raise DialError(f"{host} does not lead to the bot: ngrok answers {there.status}, {shown(code)}", hint=hint)
    if there.status in _NOT_REACHED:
        raise DialError(f"the proxy or tunnel at {host} answers {there.status}: it does not reach the bot", hint=hint)
    target = urlsplit(urljoin(public_url, there.headers.get("location", ""))).netloc
    if 300 <= there.status < 400 and target != host:
        raise DialError(f"{host} redirects to {shown(target)}", hint="use the domain that it redirects to")
    # A proxy may keep the address of the health check to itself, and a header that it does not know.
    return f"it answers {there.status} without saying which server it is"


async def _ask(url: str) -> http.HttpResponse:
    return await http.send(HttpRequest("GET", f"{url.rstrip('/')}/healthz"), timeout_s=TIMEOUT_S)
