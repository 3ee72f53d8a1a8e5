"""The addresses that a test call connects to: public hosts served on this machine, and where a server may send us."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urljoin, urlsplit

from wsvoice.config import without_secrets
from wsvoice.errors import HttpError
from wsvoice.http import uses_proxy

# Longer parts of a URL, and longer ids, are cut for people.
_LONG = 20


@dataclass(frozen=True, slots=True)
class HostOverride:
    """A public host, which URLs name and signatures cover, and where on this machine its requests are sent instead."""

    host: str
    local_url: str

    def apply(self, url: str) -> str:
        """Return where to send a request for `url`: to this machine, without TLS, if it is for the host."""
        parts = urlsplit(url)
        if parts.netloc != self.host:
            return url
        scheme = "ws" if parts.scheme.startswith("ws") else "http"
        return parts._replace(scheme=scheme, netloc=urlsplit(self.local_url).netloc).geturl()


def stream_address(url: str, provider: str) -> str:
    """Return the address for streams on the server at `url`, for a provider that sends no webhook."""
    return urljoin(url, f"ws/{provider}").replace("http", "ws", 1)


def shortened(text: str) -> str:
    """Return a URL or an id for people: ids, tokens and queries are cut."""
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
    Which addresses may be dialled because a server's answer names them, in streams, redirects and callbacks.

    Without it a server on the internet could reach through us what only this machine can reach: an intranet, or the
    cloud's metadata service. The host that the user dialled is always allowed.

    Args:
        origin: The URL that the user dialled, or its local override.
        allow_private: Whether a public server may name private addresses.
        override: A public host that is served on this machine.
    """

    def __init__(self, origin: str, *, allow_private: bool = False, override: HostOverride | None = None) -> None:
        self.override = override
        self._origin = origin
        self._allow_private = allow_private
        self._origin_addresses: Sequence[str] | None = None

    def local(self, url: str) -> str:
        """Return where a request for `url` really goes."""
        return self.override.apply(url) if self.override else url

    async def addresses(self, url: str) -> Sequence[str]:
        """
        Resolve the host of `url`, and return the addresses that may be connected to; empty if a proxy resolves it.

        Connect to these and do not resolve the name again: a second answer could be another one (DNS rebinding).

        Raises:
            HttpError: If no address is allowed, with the reason.
            OSError: If the host is unknown.
        """
        if self._origin_addresses is None:
            self._origin_addresses = await _resolve(self._origin)
        if _host(url) == _host(self._origin):
            return [] if uses_proxy(url) else self._origin_addresses or await _resolve(url, strict=True)
        proxied = uses_proxy(url)
        found = await _resolve(url, strict=not proxied)
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
            return "an address that is never dialled (link-local, metadata or unspecified)"
        if kind == "public" or self._allow_private:
            return None
        if self._origin_addresses and all(_kind_of(each) != "public" for each in self._origin_addresses):
            return None
        return "a private address, and the server that names it is public; --allow-private dials it"


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


async def _resolve(url: str, *, strict: bool = False) -> list[str]:
    """Return the addresses of the host of `url`; an unknown host has none, or raises if `strict`."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(_host(url), None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if not strict:
            return []
        if isinstance(error, OSError):
            raise
        # A label is too long for DNS.
        raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


#: Clouds' metadata services outside the link-local range.
_METADATA = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"))
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


def _kind_of(text: str) -> Literal["public", "private", "closed"]:
    """Classify an address; for an IPv4 address embedded in an IPv6 one, the IPv4 address counts."""
    address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and (address in _TRANSLATED or 1 < int(address) < 2**32):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    if address.is_link_local or address.is_unspecified or address.is_multicast or address in _METADATA:
        return "closed"
    # Some systems take all of 0.0.0.0/8 for this machine.
    if isinstance(address, ipaddress.IPv4Address) and (int(address) < 2**24 or address.is_reserved):
        return "closed"
    return "public" if address.is_global else "private"
