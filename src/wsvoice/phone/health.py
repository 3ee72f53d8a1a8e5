"""Who answers at an address: a server of wsvoice's says so to whoever asks it how it is."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

from wsvoice import http
from wsvoice.errors import DialError, HttpError
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.fields import shown

#: What a proxy, or a tunnel's company, answers in place of a server that it does not reach.
_NOT_REACHED = frozenset({502, 503, 504})


def is_wsvoice(answer: http.HttpResponse) -> bool:
    """Whether it was a server of wsvoice's that gave the answer to ``GET /healthz``."""
    return http.SERVER_HEADER in answer.headers


async def is_wsvoice_at(url: str, *, timeout_s: float) -> bool:
    """Whether a server of wsvoice's answers at the host of `url`; false for one that does not answer."""
    try:
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        return is_wsvoice(await http.send(HttpRequest("GET", f"{base}/healthz"), timeout_s=timeout_s))
    except (HttpError, ValueError):
        return False


async def find_problem(url: str, *, timeout_s: float) -> str:
    """Return why no server of wsvoice's answers at `url`, ``https://host[:port]``; empty if one does."""
    try:
        answer = await _ask(url, timeout_s)
    except HttpError as error:
        return error.message
    return "" if is_wsvoice(answer) else _describe(answer)


async def doubt_about(public_url: str, local_url: str, *, timeout_s: float) -> str:
    """
    Return why it cannot be seen from here whether a public address leads to a server; empty if it does.

    Args:
        public_url: The public address.
        local_url: The server's address on this machine.
        timeout_s: How long each may take to answer.

    Raises:
        DialError: If it certainly leads elsewhere.
    """
    try:
        here, there = await _ask(local_url, timeout_s), await _ask(public_url, timeout_s)
    except HttpError as error:
        # A name that only others know, a router that does not let its own network in: it may work for the provider.
        return error.message
    ours, theirs = here.headers.get(http.SERVER_HEADER, ""), there.headers.get(http.SERVER_HEADER, "")
    if ours and ours == theirs:
        return ""
    host = urlsplit(public_url).netloc
    hint = f"let the proxy or tunnel lead to port {urlsplit(local_url).port}"
    if theirs:
        raise DialError(f"{host} leads to another server of wsvoice's than the one at {local_url}", hint=hint)
    target = urlsplit(urljoin(public_url, there.headers.get("location", ""))).netloc
    if 300 <= there.status < 400 and target != host:
        raise DialError(f"{host} redirects to {shown(target)}", hint="use the domain that it redirects to")
    if there.status in _NOT_REACHED or "ngrok-error-code" in there.headers:
        raise DialError(f"{host} does not lead to the server at {local_url}: {_describe(there)}", hint=hint)
    # A proxy may keep the address of the health check to itself, or a header that it does not know.
    return _describe(there)


async def _ask(url: str, timeout_s: float) -> http.HttpResponse:
    return await http.send(HttpRequest("GET", f"{url.rstrip('/')}/healthz"), timeout_s=timeout_s)


def _describe(answer: http.HttpResponse) -> str:
    """Return what an answer that is not ours says about who gave it."""
    # https://ngrok.com/docs/errors/
    if code := answer.headers.get("ngrok-error-code", ""):
        what = f"https://ngrok.com/docs/errors/{code.lower()}" if re.fullmatch(r"ERR_NGROK_\d+", code) else shown(code)
        return f"ngrok answers in its place ({answer.status}, {what})"
    if answer.status >= 500:
        return f"the tunnel or proxy does not reach this server ({answer.status})"
    kind = answer.headers.get("content-type", "").partition(";")[0]
    title = re.search(rb"<title[^>]*>([^<]{1,200})", answer.body, re.IGNORECASE)
    page = f", {shown(title[1].decode('utf-8', 'replace').strip())}" if title else ""
    return f"somebody else answers in its place ({' '.join(filter(None, (str(answer.status), kind)))}{page})"
