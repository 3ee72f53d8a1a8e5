"""
What a test call is placed to: a webhook, a stream, or a bot that is to be served first; and where else a server may
send the caller.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urljoin, urlsplit

from wsvoice.config import without_secrets
from wsvoice.errors import BotNotFoundError, HttpError, UsageError
from wsvoice.http import uses_proxy

#: Where ``wsvoice run`` listens unless it is told otherwise.
DEFAULT_TARGET = "http://localhost:7860/"

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}(/.*)?")
# Longer parts of a URL, and longer ids, are not for people.
_LONG = 20
_PHONE_NUMBER = re.compile(r"\+[\d ().-]+")


@dataclass(frozen=True, slots=True)
class Target:
    """
    What is dialled.

    Attributes:
        kind: ``webhook`` and ``stream`` have a URL, ``bot`` has what ``wsvoice run`` takes.
        value: The URL, or the bot.
    """

    kind: Literal["webhook", "stream", "bot"]
    value: str


@dataclass(frozen=True, slots=True)
class HostOverride:
    """
    A host that stands for a server on this machine, as a tunnel's does.

    Attributes:
        host: The host that URLs name and signatures cover.
        local_url: Where its requests go.
    """

    host: str
    local_url: str

    def apply(self, url: str) -> str:
        """Return where a request for `url` goes: to this machine, without TLS, if it is for the host."""
        parts = urlsplit(url)
        if parts.netloc != self.host:
            return url
        scheme = "ws" if parts.scheme.startswith("ws") else "http"
        return parts._replace(scheme=scheme, netloc=urlsplit(self.local_url).netloc).geturl()


def stream_address(url: str, provider: str) -> str:
    """Return where the server at `url` takes the streams of a provider that sends no webhook first."""
    return urljoin(url, f"ws/{provider}").replace("http", "ws", 1)


def shortened(text: str) -> str:
    """Return a URL or an id for people, who have no use for the whole of an id, a token or a query."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text if len(text) <= _LONG else f"{text[:10]}..."
    address, mark, query = rest.partition("?")
    host, *path = address.split("/")
    path = [part if len(part) <= _LONG else f"{part[:10]}..." for part in path]
    query = query if len(query) <= _LONG else f"{query[:10]}..."
    return ("/".join([f"{scheme}://{host[:100]}", *path]) + mark + query)[:200]


class AddressPolicy:
    """
    Where the caller lets a server send it, by the URLs in what the server answers: streams, redirects, callbacks.

    A server on the internet could otherwise use the machine that dials it to reach what only that machine reaches: the
    cloud's metadata service, an intranet. Nothing is checked of the host that the user dialled.

    Args:
        origin: The URL that the user dialled, or that stands for it on this machine.
        allow_private: Private addresses may be dialled, whoever names them.
    """

    def __init__(self, origin: str, *, allow_private: bool = False) -> None:
        self._origin = origin
        self._allow_private = allow_private
        self._origin_addresses: Sequence[str] | None = None

    async def addresses(self, url: str) -> Sequence[str]:
        """
        Look the host of `url` up, and return the addresses that may be connected to; empty if a proxy looks it up.

        To connect to these, and not to look the name up again, is what keeps a name server from answering otherwise
        the second time.

        Raises:
            HttpError: If there is none, with the reason.
            OSError: If the host is unknown.
        """
        if self._origin_addresses is None:
            self._origin_addresses = await _look_up(self._origin)
        if _host(url) == _host(self._origin):
            return [] if uses_proxy(url) else self._origin_addresses or await _look_up(url, strict=True)
        proxied = uses_proxy(url)
        found = await _look_up(url, strict=not proxied)
        reasons = {address: self._objection(address) for address in found}
        allowed = [address for address, reason in reasons.items() if reason is None]
        if found and not allowed:
            host = _host(url)
            address, reason = next(iter(reasons.items()))
            named = address if address == host else f"{host[:200]} ({address})"
            raise HttpError("address", f"{without_secrets(url)[:200]} is not dialled: {named} is {reason}")
        return [] if proxied else allowed

    def _objection(self, address: str) -> str | None:
        kind = _kind_of(address)
        if kind == "closed":
            return "an address that no call goes to (link-local, metadata or unspecified)"
        if kind == "public" or self._allow_private:
            return None
        if self._origin_addresses and all(_kind_of(each) != "public" for each in self._origin_addresses):
            return None
        return "a private address, and the server that names it is a public one; --allow-private dials it"


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


async def _look_up(url: str, *, strict: bool = False) -> list[str]:
    """Return the addresses of the host of `url`; none for an unknown one, or, if `strict`, what the system raises."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(_host(url), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if not strict:
            return []
        if isinstance(error, OSError):
            raise
        # A label that is too long for a name server.
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


#: Metadata services of clouds that are not at a link-local address.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def _kind_of(text: str) -> Literal["public", "private", "closed"]:
    """Tell what kind of address `text` is; an IPv4 address inside of an IPv6 one is what counts."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and (address in _TRANSLATED or 1 < int(address) < 2**32):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    if address.is_link_local or address.is_unspecified or address.is_multicast or address in _METADATA:
        return "closed"
    # All of 0.0.0.0/8 is this machine to some systems.
    if isinstance(address, ipaddress.IPv4Address) and (int(address) < 2**24 or address.is_reserved):
        return "closed"
    return "public" if address.is_global else "private"


def parse_target(text: str) -> Target:
    """
    Tell what `text` names.

    Raises:
        UsageError: If it is nothing that can be dialled.
    """
    text = text.strip() or DEFAULT_TARGET
    if _PHONE_NUMBER.fullmatch(text):
        raise UsageError(
            f"real calls, as to {text}, cannot be placed yet",
            hint="dial a webhook's URL, a stream's URL or a bot file; or ring the bot's number from a phone",
        )
    if re.fullmatch(r":?\d{2,5}", text):
        raise UsageError(f"{text} is a port, without a host", hint=f"dial `localhost:{text.removeprefix(':')}`")
    if _HOST_AND_PORT.fullmatch(text):
        text = f"http://{text}"
    if "://" not in text:
        return _bot(text)

    scheme = text.partition("://")[0].lower()
    if scheme not in ("http", "https", "ws", "wss"):
        raise UsageError(
            f"{scheme}:// cannot be dialled", hint="a webhook is http:// or https://, a stream ws:// or wss://"
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{text} is not a URL: {error}", hint=f"write it like {DEFAULT_TARGET}") from None
    if not host:
        raise UsageError(f"{text} has no host", hint=f"write it like {DEFAULT_TARGET}")
    # A request for no path is one for "/", and that is the URL that the other side checks a signature with.
    url = parts._replace(scheme=scheme, path=parts.path or "/", fragment="").geturl()
    return Target("webhook" if scheme.startswith("http") else "stream", url)


def _bot(text: str) -> Target:
    path = Path(re.sub(r"\.py:\w+$", ".py", text))
    if path.suffix == ".py" and not path.is_file():
        raise BotNotFoundError(f"{path} does not exist", hint="give the path of a bot file, or a URL to dial")
    return Target("bot", text)
