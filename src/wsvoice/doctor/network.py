"""This machine's way to public addresses."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from wsvoice import http
from wsvoice.dial.addresses import AddressPolicy
from wsvoice.providers.base import HttpRequest

#: How long one request may take, in seconds.
REQUEST_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Network:
    """How names become addresses, and how servers there are asked."""

    async def resolve(self, host: str) -> list[str]:
        """
        Return the addresses of `host`, as this machine sees them.

        Raises:
            OSError: If it has none.
        """
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except UnicodeError as error:
            # A label is too long for DNS.
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def policy(self, url: str) -> AddressPolicy:
        """Return which addresses may be dialled because the server at `url`, which is the user's, names them."""
        return AddressPolicy(url)

    async def get(self, url: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> http.HttpResponse:
        """
        Ask for `url`; redirects are not followed.

        Raises:
            HttpError: If there is no response.
        """
        return await self.send(HttpRequest("GET", url), url, timeout_s=timeout_s)

    async def send(
        self, request: HttpRequest, origin: str, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> http.HttpResponse:
        """Send a request to the server at `origin`; errors as :meth:`get`."""
        return await http.send(request, timeout_s=timeout_s, look_up=self.policy(origin).addresses)
