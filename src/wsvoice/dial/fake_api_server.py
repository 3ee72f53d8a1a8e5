"""
A local server in place of the provider's REST API, so that a bot can answer a simulated call, hang it up, update it,
transfer it, press keys and look at it.

A served bot finds the address as ``<PROVIDER>_API_BASE_URL`` in its environment, for example
``TWILIO_API_BASE_URL=http://127.0.0.1:41234``, and in those of the provider's variables that end in ``_BASE_URL``::

    TwilioFrameSerializer(stream_sid, call_sid=call_sid, account_sid=..., auth_token=...,
                          base_url=os.environ.get("TWILIO_API_BASE_URL"))

The provider's module reads the requests. There are the simulated calls, and an account with the number that is called:
what a bot does with that, such as placing a call, is answered, and reaches nobody. Anything else is answered with 404,
and wrong credentials with 401.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

import h11

from wsvoice.call import Call
from wsvoice.dial.timeline import Timeline
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, CallStatus, Command, Simulator, StreamRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi

_HEAD_LIMIT = 16 * 1024
_BODY_LIMIT = 64 * 1024
_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _KnownCall:
    """A call, what carries out its commands, the stream that it is answered with through the API, and how it stands."""

    call: Call
    on_command: Callable[[Command], None]
    answered: asyncio.Future[StreamRequest]
    status: CallStatus = "ringing"


class FakeRestApi:
    """
    An HTTP server on a free port of the loopback interface.

    Attributes:
        url: Its base URL, without a slash at the end.

    Args:
        provider: The provider, with the credentials that the bot was given.
        timeline: Where requests that cannot be answered are noted.
    """

    def __init__(self, provider: Simulator, timeline: Timeline) -> None:
        self.url = ""
        self._provider = provider
        self._calls: dict[str, _KnownCall] = {}
        self._timeline = timeline
        self._server: asyncio.Server | None = None
        self._account = self._make_account()

    def _make_account(self) -> FakeAccount | None:
        """Return what the bot's account has beside the calls that go on; nobody is called by it."""
        api = self._provider.fake_api()
        if api is None or api.account_type is None:
            return None
        account = api.account_type(self._provider, secrets.token_bytes(32))
        account.on_placed = lambda placed: self._timeline.add(
            "note", f"the bot places a call to {placed.call.to_number[:40]}: nobody is rung in a test call"
        )
        return account

    async def __aenter__(self) -> Self:
        """Start to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: object) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        for known in self._calls.values():
            known.answered.cancel()

    def add_call(self, call: Call, on_command: Callable[[Command], None]) -> None:
        """Take requests for `call`, which is ringing; `on_command` is called with each command for it."""
        if self._account is not None and call.to_number not in self._account.numbers:
            self._account.add_number(call.to_number)
        self._calls[call.call_id] = _KnownCall(call, on_command, asyncio.get_running_loop().create_future())

    def answer_call(self, call: Call) -> None:
        """Say from now on that `call` is in progress."""
        self._calls[call.call_id].status = "in-progress"

    def answered(self, call: Call) -> asyncio.Future[StreamRequest]:
        """Return the stream that `call` is answered with through the API, or why it cannot be."""
        return self._calls[call.call_id].answered

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_LIMIT)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                request = await self._read(reader, connection)
                answer = self._answer(request) if request else Answer('{"status": 400}', "application/json", 400)
                body = answer.body.encode()
                headers = [("Content-Type", answer.media_type), ("Connection", "close"), *answer.headers.items()]
                headers += [("Content-Length", f"{len(body)}")] if body else []
                reason = HTTPStatus(answer.status).phrase
                for event in (
                    h11.Response(status_code=answer.status, headers=headers, reason=reason),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    writer.write(connection.send(event) or b"")
                await writer.drain()
        except (TimeoutError, OSError):
            # The client went away.
            pass
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, connection: h11.Connection) -> WebhookRequest | None:
        head, body = None, b""
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(_HEAD_LIMIT))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                if len(body) > _BODY_LIMIT or isinstance(event, h11.ConnectionClosed):
                    return None
        except h11.RemoteProtocolError:
            return None
        assert head is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return WebhookRequest(head.method.decode(), self.url + head.target.decode(), headers, body)

    def _answer(self, request: WebhookRequest) -> Answer:
        provider = self._provider
        api = provider.fake_api()
        if api is None:
            self._timeline.add("note", f"{provider.title}'s API is not simulated")
            return Answer('{"status": 404}', "application/json", 404)
        if not api.is_authorised(request):
            self._timeline.add(
                "note", "a request to the simulated REST API had other credentials than the bot was given"
            )
            return api.api_error(401, "Authenticate: these are not the credentials of the test call")
        try:
            if (answered := self._answer_call(api, request)) is not None:
                return answered
            command = api.read_command(request)
        except RemoteProtocolError as error:
            self._timeline.add("note", f"the simulated REST API refuses {self._describe(request)}: {error.message}")
            return api.api_error(400, error.message)
        known = self._calls.get(command.call_id) if command is not None else None
        if known is None and self._account is not None and (answer := self._account.answer(request)) is not None:
            self._timeline.add("note", f"the simulated REST API answers {self._describe(request)}: {answer.status}")
            return answer
        if command is None or known is None:
            what = self._describe(request)
            if command is not None:
                what = "another call's hang-up" if command.kind == "hang-up" else f"another call: {what}"
            self._timeline.add("note", f"the simulated REST API does not know {what[:200]}")
            return api.api_error(404, "The requested resource was not found")
        if command.kind == "hang-up":
            known.status = "completed"
        if command.kind != "look-up":
            known.on_command(command)
        return api.command_answer(command, known.call, known.status)

    def _answer_call(self, api: FakeApi, request: WebhookRequest) -> Answer | None:
        """Take a request that answers the call; ``None`` if it is another kind of request."""
        for call_id, known in self._calls.items():
            try:
                stream = api.read_answer_request(request, call_id=call_id)
            except RemoteProtocolError as error:
                if not known.answered.done():
                    known.answered.set_exception(error)
                raise
            if stream is not None:
                if not known.answered.done():
                    known.answered.set_result(stream)
                return api.command_answer(Command("digits", call_id), known.call, known.status)
        return None

    def _describe(self, request: WebhookRequest) -> str:
        return f"{request.method} {request.url[len(self.url) :]}"[:200]
