"""
Plain WebSocket clients: browsers, apps and programs that talk to the bot without a telephone company.

=============================  ======================================================================
``POST /start``                a session with a body for the bot: where to connect, and a one-time token
``WS /ws-client/<token>``      a client with such a token; also ``?token=`` or ``Authorization: Bearer``
``WS /ws-client``              a client without a token; only on localhost, or with ``--stream-auth none``
``WS /ws``, ``/ws/<token>``    an eval harness (``pipecat eval``)
=============================  ======================================================================

Requests and answers are those of pipecat's client libraries:
https://docs.pipecat.ai/api-reference/client/js/transports/websocket
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from wsvoice.call import Call, first_cause
from wsvoice.config import START_KEY
from wsvoice.errors import TokenError
from wsvoice.runner import requests
from wsvoice.runner.bot_task import POLICY_VIOLATION, BotSession, Record, RunningSession
from wsvoice.runner.bounded_socket import BoundedSocket
from wsvoice.runner.call_tap import CallTap
from wsvoice.runner.capacity import TOKEN_TTL_S
from wsvoice.runner.figures import CallFigures
from wsvoice.runner.limits import FULL, StreamMeter

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig
    from wsvoice.runner.auth import TokenClaims
    from wsvoice.runner.switchboard import Switchboard

#: Takes the place of the provider in a client's token.
TRANSPORT = "websocket"
#: How many sessions, and how many bytes of their bodies, wait for their clients.
PENDING_SESSIONS = 1000
PENDING_BYTES = 8 * 1024 * 1024
#: The header of ``POST /start``'s answer with the session's id in the log.
SESSION_HEADER = "X-Session-Id"
#: How long to wait for the first message of an eval harness, which comes at once. Browsers are never one.
EVAL_WAIT_S = 0.2

MakeArguments = Callable[["ClientSession"], Awaitable[Any]]


class ClientSocket(BoundedSocket):
    """
    An accepted WebSocket of a plain client.

    One task reads for as long as the client is there, whether or not the bot does: a client's leaving is noticed at
    once, and what it sent before the bot was ready is kept.
    """

    peer = "client"
    inbox_messages = 1000
    inbox_bytes = 4 * 1024 * 1024

    def __init__(self, websocket: WebSocket, *, logger: Logger, message_limit: int) -> None:
        super().__init__(websocket.scope, websocket.receive, websocket.send, logger=logger, message_limit=message_limit)
        self.received = 0
        self.sent = 0
        #: Is told what is read and written; ``None`` where nothing is kept of the session.
        self.tap: CallTap | None = None

    async def first_message(self, timeout_s: float) -> str | bytes | None:
        """Return the first message and keep it for the bot; ``None`` if none came in time."""
        try:
            async with asyncio.timeout(timeout_s):
                raw = await self._next_message()
        except TimeoutError:
            return None
        if raw is not None:
            self._receive_raw(raw)
        return raw

    async def read_loop(self) -> None:
        """Read until the client is gone."""
        while not self.gone.is_set() and (raw := await self._next_message()) is not None:
            self._receive_raw(raw)

    def _receive_raw(self, raw: str | bytes) -> None:
        self.received += 1
        self.bytes_in += len(raw)
        if self.tap is not None:
            self.tap.message("in", raw, is_audio=isinstance(raw, bytes))
        self._enqueue(raw)

    async def send(self, message: Message) -> None:
        """Send a message as ASGI has it; a close is only a request."""
        if message["type"] == "websocket.close":
            self.requested_code = message.get("code") or 1000
            self.request_close()
        elif await self._send_raw(raw := self._content(message)):
            self.sent += 1
            self.bytes_out += len(raw)
            if self.tap is not None:
                self.tap.message("out", raw, is_audio=isinstance(raw, bytes))


@dataclass(kw_only=True)
class ClientRecord(Record):
    """
    What happened in one client's session.

    Attributes:
        session_id: From ``POST /start``, or made for the connection.
        received: Messages from the client.
        sent: Messages to the client.
    """

    peer = "client"

    session_id: str
    received: int = 0
    sent: int = 0

    @property
    def provider(self) -> str:
        """The transport."""
        return TRANSPORT

    def _details(self) -> Iterator[str]:
        if self.ended_by != "error" and (cause := first_cause(self.causes)) is not None:
            yield f"in the bot: {cause}"
        yield f"{self.received} messages in, {self.sent} out"


class ClientSession(BotSession):
    """
    The bot running for one client.

    Attributes:
        body: What the bot gets as ``runner_args.body``.
        is_eval: The client is an eval harness.
    """

    socket: ClientSocket
    record: ClientRecord

    def __init__(
        self,
        switchboard: Switchboard,
        socket: ClientSocket,
        make_arguments: MakeArguments,
        *,
        session_id: str,
        body: Any,
        is_eval: bool,
        on_closed: Callable[[], None],
    ) -> None:
        config, logger = switchboard.config, socket.logger
        super().__init__(socket, switchboard.the_bot, config, session_id=session_id, on_closed=on_closed, logger=logger)
        self.body = body
        self.is_eval = is_eval
        self.record = ClientRecord(session_id=session_id)
        self._arguments_for = make_arguments

    async def run(self) -> ClientRecord:
        """Run the session to its end, and return what happened."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        tap = self.socket.tap
        if tap is not None:
            tap.begin(Call(provider=TRANSPORT, call_id=self.session_id), None, zero=self.began_at)
        self.logger.info("pipecat's eval tool connected" if self.is_eval else "a client connected")
        await self.run_bot()
        self.record.received, self.record.sent = self.socket.received, self.socket.sent
        self.log_end(loop.time() - started)
        if tap is not None:
            self.socket.tap = None
            await tap.close(self.record, code=self.socket.close_code or self.close_code)
        return self.record

    def figures(self) -> CallFigures:
        """Return how it stands; may be called from any thread."""
        return CallFigures(
            id=self.session_id,
            kind="client",
            provider=TRANSPORT,
            started_at=self.record.started_at,
            age_s=self._loop.time() - self.began_at,
            bytes_in=self.socket.bytes_in,
            bytes_out=self.socket.bytes_out,
            underruns=self.socket.underruns,
            pid=os.getpid(),
        )

    async def _make_arguments(self) -> Any:
        return await self._arguments_for(self)


@dataclass(frozen=True, slots=True)
class _PendingSession:
    """A requested session whose client has not come yet; with the requester's address if it is a stranger's."""

    body: bytes
    until: float
    stranger: str | None

    def export(self, session_id: str) -> tuple[str, str, float, str | None]:
        """Return it as JSON has it, for :meth:`Clients.note_pending`."""
        return session_id, self.body.decode("latin-1"), self.until, self.stranger


class Clients:
    """
    Connects plain clients to the bot, many at a time, with the switchboard's tokens and places.

    Attributes:
        on_pending: Called with each session that waits for its client: what :meth:`note_pending` has to be given
            elsewhere.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        from wsvoice.runner.pipecat.websocket_transport import allowed_origins

        self.on_pending: Callable[..., None] = lambda *session: None
        self._switchboard = switchboard
        self._tokens = switchboard.auth.tokens
        self._capacity = switchboard.capacity
        self._refusals = switchboard.refusals
        #: The pending sessions, oldest first.
        self._started: OrderedDict[str, _PendingSession] = OrderedDict()
        #: The only pages that may connect; empty for no such limit.
        self._origins = frozenset(origin.lower() for origin in allowed_origins())

    @property
    def _config(self) -> RunConfig:
        # A tunnel may get another address.
        return self._switchboard.config

    def routes(self) -> list[BaseRoute]:
        """Return the routes for clients."""

        def websockets(path: str, *, evals_only: bool) -> list[BaseRoute]:
            async def connect(websocket: WebSocket) -> None:
                await self.connect(websocket, websocket.path_params.get("token"), evals_only=evals_only)

            return [WebSocketRoute(path, connect), WebSocketRoute(f"{path}/{{token}}", connect)]

        async def guide(_: Request) -> Response:
            refusal = "This is a voice bot for WebSocket clients: connect to /ws-client\n"
            return requests.close_after(PlainTextResponse(refusal, 404))

        return [
            # Webhooks, real or simulated, come by POST.
            Route("/", guide, methods=["GET", "POST"]),
            Route("/start", self.start, methods=["POST", "OPTIONS"]),
            *websockets("/ws-client", evals_only=False),
            *websockets("/ws", evals_only=True),
        ]

    # POST /start

    async def start(self, request: Request) -> Response:
        """
        Announce a session: ``{"transport": "websocket", "body": {…}}`` gives ``{wsUrl, token}``.

        pipecat's JavaScript client refuses any other key, so the session's id is in a header.
        """
        page = requests.page(request)
        # https://fetch.spec.whatwg.org/#http-cors-protocol
        allowed = page is not None and self._allows(page)
        if request.method == "OPTIONS":
            response: Response = Response(status_code=200 if allowed else 403)
        else:
            response = await self._start(request)
        response.headers["Vary"] = "Origin"
        if allowed:
            response.headers["Access-Control-Allow-Origin"] = request.headers["origin"]
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = "POST"
                response.headers["Access-Control-Allow-Headers"] = request.headers.get(
                    "access-control-request-headers", "content-type"
                )
                response.headers["Access-Control-Max-Age"] = "600"
            else:
                response.headers["Access-Control-Expose-Headers"] = SESSION_HEADER
        return response

    def _allows(self, page: str) -> bool:
        """Whether a web page may read the answer of ``/start``."""
        if self._origins:
            return page in self._origins
        own = self._config.public_url
        return (own is not None and page == own.lower()) or requests.is_local_page(page)

    def _refuse_start(self, status: int, detail: str, reason: str) -> Response:
        self._refusals.warning(logger.bind(call="-"), f"start refused ({status})", reason)
        return _failure(status, detail)

    async def _start(self, request: Request) -> Response:
        if not requests.has_host(request, self._config):
            return self._refuse_start(400, "The request must name one host.", "it names no host, or a bad one")
        if (refusal := self._start_refusal(request)) is not None:
            return self._refuse_start(403, refusal, refusal)
        try:
            body = await requests.read_body(request, self._config.message_limit)
        except requests.BodyError as error:
            return self._refuse_start(error.status, str(error), error.reason)
        try:
            asked = json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            return _failure(400, "The body is not a JSON object.")
        if asked.get("transport", TRANSPORT) != TRANSPORT:
            return _failure(400, f"This server is for the transport {TRANSPORT!r} only.")
        call = Call(provider=TRANSPORT, call_id=str(uuid.uuid4()))
        # Without a key, a client that comes by a public address is unverified.
        is_open = self._config.stream_auth == "none" and requests.is_public(
            request, self._config, allowed_origins=self._origins
        )
        stranger = requests.address(request, self._config) if is_open else None
        if not self._has_room(len(body), stranger):
            reason = "too many sessions wait for their clients"
            self._switchboard.note_refused("start", "max_calls", TRANSPORT)
            return self._refuse_start(503, "Too many sessions wait for their clients.", reason)
        closed = self._switchboard.why_closed()
        if closed is None and not self._capacity.reserve(call, stranger=stranger):
            closed = FULL
        if closed is not None:
            self._switchboard.note_refused("start", closed.reason, TRANSPORT)
            return self._refuse_start(503, "Every place is taken.", closed.text)
        pending = self._started[call.call_id] = _PendingSession(body, time.monotonic() + TOKEN_TTL_S, stranger)
        self.on_pending(*pending.export(call.call_id))
        prefix = request.scope["path"].removesuffix("/start")
        logger.bind(call=call.call_id).info("a client was given a token")
        return JSONResponse(
            {
                "wsUrl": f"{requests.stream_base(request, self._config)}{prefix}/ws-client",
                "token": self._tokens.issue(call),
            },
            headers={SESSION_HEADER: call.call_id},
        )

    def _start_refusal(self, request: Request) -> str | None:
        """Return why this request may not start a session, or ``None``."""
        if not requests.needs_token(request, self._config, allowed_origins=self._origins):
            return None
        key = self._config.credentials.get(START_KEY)
        page = requests.page(request)
        if not key and requests.is_foreign_page(page, self._origins):
            return f"/start is closed to pages of {page:.100} until PIPECAT_ALLOWED_ORIGINS names them on the server."
        if not key:
            return f"/start is closed on a public address until {START_KEY} is set on the server."
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode()):
            return None
        return f"/start needs the header `Authorization: Bearer <{START_KEY}>`."

    def _has_room(self, size: int, stranger: str | None) -> bool:
        """Whether one more session can wait for its client; a stranger's address gets a quarter of the room."""
        now = time.monotonic()
        while self._started and next(iter(self._started.values())).until < now:
            self._started.popitem(last=False)
        kept = [(len(each.body), each.stranger) for each in self._started.values()]
        if len(kept) >= PENDING_SESSIONS or sum(each for each, _ in kept) + size > PENDING_BYTES:
            return False
        own = [each for each, whose in kept if whose == stranger]
        return stranger is None or (len(own) < PENDING_SESSIONS // 4 and sum(own) + size <= PENDING_BYTES // 4)

    # The WebSocket

    async def connect(self, websocket: WebSocket, token: str | None, *, evals_only: bool = False) -> None:
        """Check and accept a client, and run the bot for it."""
        log = logger.bind(call="-")
        origin = requests.page(websocket) or ""
        if self._origins and origin not in self._origins:
            self._refusals.warning(log, "client refused (403)", f"its origin {origin[:200]!r} is not allowed")
            await requests.deny(websocket, 403, "The origin is not allowed.")
            return
        try:
            claims = await self._admit(websocket, token)
        except TokenError as error:
            self._refusals.warning(log, "client refused (403)", requests.with_hint(error))
            await requests.deny(websocket, 403, "The token is missing or wrong.")
            return
        announced = claims.call if claims is not None else None
        session_id = announced.call_id if announced is not None else str(uuid.uuid4())
        log = logger.bind(call=session_id)
        place = await self._switchboard.take_place(
            websocket, announced, log, "client", provider=TRANSPORT, claims=claims
        )
        if place is None:
            return
        meter = StreamMeter(place, self._switchboard.minutes, self._switchboard.numbers)
        closing = ExitStack()
        closing.callback(place.close)
        closing.callback(meter.end)
        try:
            serve = self._switchboard.crew.serve_client if self._switchboard.crew is not None else self.serve
            await serve(
                websocket,
                session_id,
                self._started_body(session_id),
                evals_only=evals_only,
                on_session=lambda session: meter.start(),
                on_closed=closing.close,
            )
        finally:
            closing.close()
            place.release()

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over on this machine has to know, as JSON has it; times are monotonic."""
        return {"pending": [each.export(session_id) for session_id, each in self._started.items()]}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from."""
        for session_id, body, until, stranger in state.get("pending", ()):
            self._started[session_id] = _PendingSession(body.encode("latin-1"), until, stranger)

    def note_pending(self, session_id: str, body: str, until: float, stranger: str | None) -> None:
        """Note a session that is requested of the server that this one has taken over from."""
        self._capacity.reserve(Call(provider=TRANSPORT, call_id=session_id), stranger=stranger)
        self._started[session_id] = _PendingSession(body.encode("latin-1"), until, stranger)

    def _started_body(self, session_id: str) -> bytes:
        """Return what was sent to ``POST /start`` for a client that is here now; empty without."""
        started = self._started.pop(session_id, None)
        return started.body if started is not None else b""

    async def serve(
        self,
        websocket: WebSocket,
        session_id: str,
        started_body: bytes,
        *,
        evals_only: bool,
        on_session: Callable[[RunningSession], object],
        on_closed: Callable[[], None],
    ) -> None:
        """
        Accept a client, and run the bot for it.

        Args:
            session_id: Of ``POST /start``, or made for the connection.
            started_body: What was sent there.
            evals_only: Whether it came to the address of pipecat's eval tool.
            on_session: Called with its session, before that runs.
            on_closed: Called once the WebSocket is closed, while the bot may still be working.
        """
        from wsvoice.runner.pipecat.websocket_transport import client_arguments, is_eval_connect

        log = logger.bind(call=session_id)
        if not await requests.accept(websocket, log):
            return
        socket = ClientSocket(websocket, logger=log, message_limit=self._config.message_limit)
        if self._config.trace is not None:
            socket.tap = CallTap(self._config, logger=log)
        is_eval = False
        if evals_only or "origin" not in websocket.headers:
            first = await socket.first_message(self._config.handshake_timeout_s if evals_only else EVAL_WAIT_S)
            is_eval = first is not None and is_eval_connect(first)
        if evals_only and not is_eval:
            self._refusals.warning(
                log, "client turned away", "/ws is for pipecat's eval tool; clients connect to /ws-client"
            )
            await socket.close_connection(POLICY_VIOLATION, "clients connect to /ws-client")
            return
        body = json.loads(started_body).get("body") if started_body.strip() else None
        if body is None or isinstance(body, dict):
            body = {**self._config.parameters, **(body or {})}
        session = ClientSession(
            self._switchboard,
            socket,
            client_arguments,
            session_id=session_id,
            body=body,
            is_eval=is_eval,
            on_closed=on_closed,
        )
        on_session(session)
        await self._switchboard.run_session(session)

    async def _admit(self, websocket: WebSocket, path_token: str | None) -> TokenClaims | None:
        """
        Return what the client's token says, whose call is the session; ``None`` for a client without one.

        Raises:
            TokenError: If a token is missing or bad.
        """
        needed = requests.needs_token(websocket, self._config, allowed_origins=self._origins)
        token = path_token or _offered_token(websocket)
        if not token:
            page = requests.page(websocket)
            if needed and requests.is_foreign_page(page, self._origins):
                raise TokenError(
                    f"a web page of {page:.100} connects without a token",
                    hint="POST /start gives one; PIPECAT_ALLOWED_ORIGINS may name pages that need none on localhost",
                )
            if needed:
                raise TokenError("the client has no token", hint="POST /start gives one")
            return None
        try:
            return await self._switchboard.auth.redeem(token, TRANSPORT)
        except TokenError:
            # Where no token is needed, the header or the query may be meant for something else.
            if needed or path_token:
                raise
            return None


def _offered_token(websocket: WebSocket) -> str | None:
    scheme, _, token = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return websocket.query_params.get("token")


def _failure(status: int, detail: str) -> Response:
    return requests.close_after(JSONResponse({"detail": detail}, status))
