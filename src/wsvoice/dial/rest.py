"""
A fake of the provider's REST API, so that a bot can answer and hang up a simulated call as it does a real one.

The server that is dialled with its bot gets the address as ``<PROVIDER>_API_BASE_URL`` in its environment, for
example ``TWILIO_API_BASE_URL=http://127.0.0.1:41234``, and under every name that ends in ``_BASE_URL`` among the
provider's credentials. A bot uses it where its client takes an address::

    TwilioFrameSerializer(stream_sid, call_sid=call_sid, account_sid=..., auth_token=...,
                          base_url=os.environ.get("TWILIO_API_BASE_URL"))

What a request means is for the provider's module to say. Only the simulated call is there; anything else is answered
with 404.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self

from wsvoice.dial.journal import Journal
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import AnswersByRequest, Provider, StreamRequest, WebhookRequest

_HEAD_LIMIT = 16 * 1024
_BODY_LIMIT = 64 * 1024
_TIMEOUT_S = 5.0

Content = dict[str, object] | None


class FakeRestApi:
    """
    An HTTP server on a free port of the loopback interface.

    Attributes:
        url: Its base URL, without a slash at the end.
    """

    def __init__(
        self,
        provider: Provider,
        call_id: str,
        on_hang_up: Callable[[], None],
        journal: Journal,
        quirks: Mapping[str, str] | None = None,
    ) -> None:
        self.url = ""
        #: The stream that the call is answered with, or why it cannot be.
        self.answered: asyncio.Future[StreamRequest] = asyncio.get_running_loop().create_future()
        self._provider = provider
        self._call_id = call_id
        self._on_hang_up = on_hang_up
        self._journal = journal
        self._quirks = quirks or {}
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
        self.answered.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                request = await self._read(reader)
                status, content = self._answer(request) if request else (HTTPStatus.BAD_REQUEST, {"status": 400})
                body = b"" if content is None else json.dumps(content).encode()
                head = (
                    f"HTTP/1.1 {status} {status.phrase}\r\n"
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

    def _answer(self, request: WebhookRequest) -> tuple[HTTPStatus, Content]:
        call_id = self._provider.read_hang_up(request)
        if call_id == self._call_id:
            self._on_hang_up()
            return self._done(request)
        if call_id is None and isinstance(self._provider, AnswersByRequest):
            try:
                stream = self._provider.read_answer_request(request, call_id=self._call_id, quirks=self._quirks)
            except RemoteProtocolError as error:
                if not self.answered.done():
                    self.answered.set_exception(error)
                return HTTPStatus.UNPROCESSABLE_ENTITY, {"status": 422, "message": error.message}
            if stream is not None:
                if not self.answered.done():
                    self.answered.set_result(stream)
                return self._done(request)
        what = "another call's hang-up" if call_id else f"{request.method} {request.url[len(self.url) :]}"
        self._journal.tell("note", f"the simulated REST API does not know {what[:200]}")
        return HTTPStatus.NOT_FOUND, {"status": 404, "message": "The requested resource was not found"}

    def _done(self, request: WebhookRequest) -> tuple[HTTPStatus, Content]:
        if request.method == "DELETE":
            return HTTPStatus.NO_CONTENT, None
        return HTTPStatus.OK, {"sid": self._call_id, "status": "completed", "data": {"result": "ok"}}
