"""Addresses that companies name and are given: of streams, of webhooks, of callbacks."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlencode, urljoin, urlsplit

from wsvoice.errors import ApiError, LocalProtocolError
from wsvoice.providers.base import Callback, WebhookRequest
from wsvoice.providers.fields import broken, shown, write_object

_UNUSABLE = re.compile(r"[\x00-\x20\x7f]")
_FORM = "application/x-www-form-urlencoded"


def path_part(written: str, safe: str = "") -> str:
    """
    Return an id as one part of the path of an API's URL, escaped.

    Without a check an empty one would name the whole list that it was to be looked up in: ``DELETE /Call//``.

    Args:
        safe: Characters that stay as they are.

    Raises:
        ApiError: If it is empty, or one of those that lead elsewhere: https://www.rfc-editor.org/rfc/rfc3986#section-3.3
    """
    if written in ("", ".", ".."):
        raise ApiError("refused", f"{shown(written)} is no id, and nothing is asked for it", hint="look at the id")
    return quote(written, safe=safe)


def check_stream_url(stream_url: str) -> SplitResult:
    """
    Return the parts of a stream's URL that an answer is to name.

    Raises:
        LocalProtocolError: If it is none.
    """
    url = urlsplit(stream_url)
    if url.scheme not in ("wss", "ws") or not url.netloc:
        raise LocalProtocolError("bad-url", f"a stream's URL starts with wss://, not {shown(stream_url)}")
    return url


def read_stream_url(written: str, base_url: str = "") -> SplitResult:
    """
    Return the parts of the stream's URL that an answer names, which is ``wss://`` or ``ws://``.

    Args:
        written: As it stands in the answer.
        base_url: Where the answer came from, which a relative URL starts at; empty where it must be written in full.

    Raises:
        RemoteProtocolError: Of kind ``bad-url``.
    """
    if not written:
        raise broken("bad-url", "the stream has no url")
    try:
        url = urlsplit(written)
        if not url.scheme:
            if not base_url:
                raise broken("bad-url", f"the stream's url {shown(written)} is relative; write it in full")
            url = urlsplit(urljoin(base_url, written))
            url = url._replace(scheme={"https": "wss", "http": "ws"}.get(url.scheme, url.scheme))
        usable = _is_usable(url)
    except ValueError:
        usable = False
    if not usable or _UNUSABLE.search(written):
        raise broken("bad-url", f"the stream's url {shown(written)} is not a URL")
    if url.scheme not in ("wss", "ws"):
        raise broken("bad-url", f"the stream's url starts with {shown(url.scheme)}; it must be wss")
    return url


def read_callback(written: str | None, method: str | None, base_url: str, what: str) -> Callback | None:
    """
    Return the address that an attribute, a field or a text names; ``None`` if it names none.

    Args:
        written: As it stands in the document.
        method: How it is to be requested; POST unless it says GET.
        base_url: Where the document came from, which a relative URL starts at; may be empty.
        what: What names it, for the error.

    Raises:
        RemoteProtocolError: Of kind ``bad-url``.
    """
    written = (written or "").strip()
    if not written:
        return None
    try:
        url = urljoin(base_url, written)
    except ValueError:
        url = ""
    if not is_web_address(url) or _UNUSABLE.search(written):
        raise broken("bad-url", f"the URL of {what}, {shown(written)}, is no web address")
    return Callback(urlsplit(url).geturl(), "GET" if (method or "").strip().upper() == "GET" else "POST")


def is_web_address(written: str) -> bool:
    """Return whether `written` is a URL that can be requested: ``http://`` or ``https://``, and a host."""
    try:
        url = urlsplit(written)
        return url.scheme in ("http", "https") and _is_usable(url) and not _UNUSABLE.search(written)
    except ValueError:
        return False


def _is_usable(url: SplitResult) -> bool:
    return bool(url.hostname) and (url.port is None or url.port > 0)


def split_credentials(url: str) -> tuple[str, dict[str, str]]:
    """
    Return `url` without the user and password in it, and the header that carries them on the upgrade; none if none.

    WebSocket clients differ about characters that are escaped in a URL, so none is left to decide.

    https://www.rfc-editor.org/rfc/rfc7617#section-2.1
    """
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = userinfo.partition(":")
    return parts._replace(netloc=host).geturl(), basic_header(unquote(user), unquote(password))


def basic_header(user: str, password: str) -> dict[str, str]:
    """Return the header with which a client says who it is: https://www.rfc-editor.org/rfc/rfc7617"""
    encoded = b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode("ascii")
    return {"Authorization": f"Basic {encoded}"}


def json_request(url: str, method: str, fields: Mapping[str, Any]) -> WebhookRequest:
    """Return a webhook that carries `fields`: in the query of a GET, as JSON in the body of a POST."""
    if method == "GET":
        return form_request(url, method, fields)
    return WebhookRequest(method, url, {"content-type": "application/json"}, write_object(dict(fields)).encode())


def form_request(
    url: str,
    method: str,
    fields: Mapping[str, str],
    headers: Mapping[str, str] | None = None,
    *,
    content_type: str = _FORM,
) -> WebhookRequest:
    """Return a webhook that carries `fields`: in the query of a GET, in the body of a POST."""
    encoded, headers = urlencode(fields), dict(headers or {})
    if method != "GET":
        return WebhookRequest(method, url, {**headers, "content-type": content_type}, encoded.encode())
    bare, _, fragment = url.partition("#")
    joined = bare + ("&" if "?" in bare else "?") + encoded
    return WebhookRequest("GET", f"{joined}#{fragment}" if fragment else joined, headers)
