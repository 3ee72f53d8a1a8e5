"""Who answers at an address: a server of wsvoice's says so to whoever asks it how it is."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.errors import HttpError
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.fields import shown


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
        answer = await http.send(HttpRequest("GET", f"{url.rstrip('/')}/healthz"), timeout_s=timeout_s)
    except HttpError as error:
        return error.message
    if is_wsvoice(answer):
        return ""
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
