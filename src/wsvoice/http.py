"""The only HTTP client: sends a request as it is, and says why there was no response."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from wsvoice.errors import HttpError
from wsvoice.providers.base import HttpRequest

#: How long a server may take to accept the connection.
CONNECT_TIMEOUT_S = 5.0
#: The header in which a server tells a caller on the same machine its public host.
PUBLIC_HOST_HEADER = "x-wsvoice-public-host"
#: The header in which it tells such a caller the providers that it serves, separated by commas.
PROVIDERS_HEADER = "x-wsvoice-providers"
#: The header in which a server that is asked how it is says which one it is, by a name of its process alone.
SERVER_HEADER = "x-wsvoice-server"
#: The most of a response's body that is read, in bytes.
BODY_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """
    A response, whatever its status.

    Attributes:
        status: The status code.
        headers: Header values by lower-case name.
        body: The decoded body, up to the limit.
        elapsed_s: From the connection's start to the end of the body.
        is_cut: Whether the body was longer than the limit.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float
    is_cut: bool = False


#: Returns the addresses at which a URL's host may be reached; empty for any.
LookUp = Callable[[str], Awaitable[Sequence[str]]]


async def send(
    request: HttpRequest, *, timeout_s: float, body_limit: int = BODY_LIMIT, look_up: LookUp | None = None
) -> HttpResponse:
    """
    Send `request` and return the response; redirects are not followed.

    Args:
        timeout_s: For the whole exchange; connecting gets 5 s at most.
        body_limit: The most of the body that is read and unpacked, in bytes.
        look_up: Resolves the host to the addresses that are allowed; any without it.

    Raises:
        HttpError: If there was no response.
    """
    request = request.at(time.time())
    parts = urlsplit(request.url)
    # In a thread, because reading the certificates takes longer than a frame of audio.
    tls = await asyncio.to_thread(tls_context) if parts.scheme == "https" else False
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            addresses = await look_up(request.url) if look_up is not None else ()
            for number, address in enumerate(addresses or ("",), 1):
                try:
                    response, body = await _exchange(request, address, tls, timeout_s, body_limit)
                    break
                except (httpx.ConnectError, httpx.ConnectTimeout):
                    if number >= len(addresses):
                        raise
    except httpx.ConnectTimeout:
        host = parts.netloc.rpartition("@")[2]
        raise HttpError("connect", f"no connection to {host} within {CONNECT_TIMEOUT_S:g} s") from None
    except (httpx.TimeoutException, TimeoutError):
        raise HttpError("timeout", f"{request.url} did not answer within {timeout_s:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError, zlib.error) as error:
        raise _describe(error, request.url) from error
    elapsed_s = time.monotonic() - began
    headers = {name.lower(): value for name, value in response.headers.items()}
    return HttpResponse(response.status_code, headers, body[:body_limit], elapsed_s, len(body) > body_limit)


def load() -> None:
    """Import what httpx imports for its first request, which would be late by it."""
    import anyio  # noqa: F401
    import httpcore  # noqa: F401


async def _exchange(
    request: HttpRequest, address: str, tls: ssl.SSLContext | bool, timeout_s: float, body_limit: int
) -> tuple[httpx.Response, bytes]:
    """Send `request` to `address`, or to any of its host; return the response and its body, one byte over the limit."""
    url, extensions, parts = request.url, {}, urlsplit(request.url)
    # Compression is not asked for; if the body is compressed all the same, the limit is for the unpacked body.
    headers = {"Accept-Encoding": "identity", **request.headers}
    if address:
        user, at, host = parts.netloc.rpartition("@")
        headers = {"Host": host, **headers}
        extensions = {"sni_hostname": parts.hostname or ""}
        port = f":{parts.port}" if parts.port is not None else ""
        url = parts._replace(netloc=f"{user}{at}{f'[{address}]' if ':' in address else address}{port}").geturl()
    client = httpx.AsyncClient(
        verify=tls,
        # A proxy in the environment cannot reach this machine's loopback.
        trust_env=not address and not is_loopback(parts.hostname or ""),
        timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        auth=request.basic_auth,
    )
    content = request.body or None
    stream = client.stream(request.method, url, headers=headers, content=content, extensions=extensions)
    async with client, stream as response:
        return response, await _read_body(response, body_limit)


async def _read_body(response: httpx.Response, limit: int) -> bytes:
    """Return the body, unpacked; no more than one byte beyond `limit` is read or unpacked."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
        raise httpx.DecodingError(f"its body has an encoding that was not asked for ({encoding[:20]})")
    # 32: gzip or zlib, told apart by the first bytes.
    unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoding not in ("", "identity") else None
    body, n_raw = bytearray(), 0
    async for chunk in response.aiter_raw():
        n_raw += len(chunk)
        room = limit + 1 - len(body)
        body += chunk[:room] if unpacker is None else unpacker.decompress(chunk, room)
        if len(body) > limit or n_raw > limit:
            break
    return bytes(body)


def uses_proxy(url: str) -> bool:
    """Return whether a request for `url` goes through a proxy, which then resolves the host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return False
    proxies = getproxies()
    schemes = {"ws": ("ws", "socks", "https", "http"), "wss": ("wss", "socks", "https")}
    return any(proxies.get(scheme) for scheme in schemes.get(parts.scheme, (parts.scheme, "all")))


@cache
def tls_context(*protocols: str) -> ssl.SSLContext:
    """Return how certificates are checked, by those that this machine trusts; `protocols` are offered to the server."""
    context = httpx.create_ssl_context()
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine: ``localhost``, ``127.0.0.1``, ``::1`` …"""
    host = host.strip("[]").rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def failure_kind(error: BaseException) -> str:
    """Return why a connection failed: ``tls``, ``dns``, ``refused`` or ``other``."""
    causes = list(_causes(error))
    if any(isinstance(each, ssl.SSLError) for each in causes):
        return "tls"
    if any(isinstance(each, socket.gaierror) for each in causes):
        return "dns"
    # asyncio joins the errors of several addresses into one text, without their types.
    is_refused = any(isinstance(each, ConnectionRefusedError) or "Connect call failed" in str(each) for each in causes)
    return "refused" if is_refused else "other"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                yield from _causes(each)
        error = error.__cause__ or error.__context__


def _describe(error: Exception, url: str) -> HttpError:
    if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
        return HttpError("url", f"{url[:200]} is not a URL that can be requested")
    host = urlsplit(url).hostname or url
    kind = failure_kind(error)
    reason = (str(error) or type(error).__name__)[:200]
    is_plain = "WRONG_VERSION_NUMBER" in str(error)
    problems = {
        "tls": f"no TLS connection to {host}: {'it speaks plain HTTP; use http://' if is_plain else reason}",
        "dns": f"the host {host} is unknown",
        "refused": f"nothing listens at {url}",
    }
    return HttpError(kind, problems.get(kind, f"{url} gave no response: {reason}"))


def multipart(url: str, fields: Mapping[str, str], file: tuple[str, bytes, str]) -> HttpRequest:
    """Return a POST of a form with `fields` and a `file`: its name, content and media type."""
    form = httpx.Request("POST", url, data=dict(fields), files={"file": file})
    return HttpRequest("POST", url, {"Content-Type": form.headers["content-type"]}, form.read())
