"""
A fake of the provider's REST API, so that a bot can hang up a simulated call the way it hangs up a real one.

The server that is dialled with its bot gets the address as ``<PROVIDER>_API_BASE_URL`` in its environment, for
example ``TWILIO_API_BASE_URL=http://127.0.0.1:41234``. A bot uses it where its client takes an address::

    TwilioFrameSerializer(stream_sid, call_sid=call_sid, account_sid=..., auth_token=...,
                          base_url=os.environ.get("TWILIO_API_BASE_URL"))

Only hanging up the simulated call works; anything else is answered with 404, as for a call that is not there.
Requests: https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from wsvoice.dial.journal import Journal
from wsvoice.providers.base import WebhookRequest

_HEAD_LIMIT = 16 * 1024
_BODY_LIMIT = 64 * 1024
_TIMEOUT_S = 5.0
# https://www.twilio.com/docs/api/errors/20404
_NOT_FOUND = {"code": 20404, "message": "The requested resource was not found", "status": 404}


@runtime_checkable
class ReadsHangUps(Protocol):
    """A provider whose calls are hung up through its REST API."""

    def read_hang_up(self, request: WebhookRequest) -> str | None:
        """Return the id of the call that a REST request ends; ``None`` if it is another request."""


class FakeRestApi:
    """
    An HTTP server on a free port of the loopback interface.

    Attributes:
        url: Its base URL, without a slash at the end.
    """

    def __init__(self, provider: ReadsHangUps, call_id: str, on_hang_up: Callable[[], None], journal: Journal) -> None:
        self.url = ""
        self._provider = provider
        self._call_id = call_id
        self._on_hang_up = on_hang_up
        self._journal = journal
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=_HEAD_LIMIT)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                request = await self._read(reader)
                status, content = self._answer(request) if request else (400, {"status": 400})
                body = json.dumps(content).encode()
                head = (
                    f"HTTP/1.1 {status} {'OK' if status == 200 else 'Error'}\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (TimeoutError, OSError):
            # The client went away, which is its own affair.
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> WebhookRequest | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        length = headers.get("content-length", "0")
        if len(words) != 3 or not length.isdigit() or int(length) > _BODY_LIMIT:
            return None
        try:
            body = await reader.readexactly(int(length))
        except asyncio.IncompleteReadError:
            return None
        return WebhookRequest(words[0], self.url + words[1], headers, body)

    def _answer(self, request: WebhookRequest) -> tuple[int, dict[str, object]]:
        call_id = self._provider.read_hang_up(request)
        if call_id == self._call_id:
            self._on_hang_up()
            return 200, {"sid": call_id, "status": "completed"}
        what = "another call's hang-up" if call_id else f"{request.method} {request.url[len(self.url) :]}"
        self._journal.tell("note", f"the simulated REST API does not know {what[:200]}")
        return 404, dict(_NOT_FOUND)
