"""Connects a provider's webhooks and media WebSockets to the bot."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Container
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from loguru import logger
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.websockets import WebSocket

from wsvoice import http
from wsvoice.call import Call, Cause
from wsvoice.config import RunConfig
from wsvoice.errors import (
    ApiError,
    HttpError,
    LocalProtocolError,
    RemoteProtocolError,
    SignatureError,
    TokenError,
    WsvoiceError,
)
from wsvoice.providers import PROVIDERS, load_server
from wsvoice.providers.base import Answer, CallUpdate, HttpRequest, Server, WebhookRequest
from wsvoice.runner import requests
from wsvoice.runner.auth import Authenticator, served_providers
from wsvoice.runner.bot_task import POLICY_VIOLATION, Bot, BotSession, Record
from wsvoice.runner.bounded_socket import MESSAGE_TOO_BIG
from wsvoice.runner.capacity import CallKey, Capacity, Lateness, Place, call_key
from wsvoice.runner.clients import Clients
from wsvoice.runner.detection import detect_provider
from wsvoice.runner.dialled_call import DialledCall
from wsvoice.runner.logs import RefusalLog
from wsvoice.runner.media_socket import MediaSocket
from wsvoice.runner.outbound import DialledCalls
from wsvoice.runner.session import ID_LIMIT, Session
from wsvoice.runner.starting import Starts

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.runner.dial_api import DialApi

#: How long a provider's API may take.
REST_TIMEOUT_S = 5.0
#: How many characters of a provider's report on a call are logged.
UPDATE_LIMIT = 200
#: How many announced calls are remembered for streams without a token.
REMEMBERED_CALLS = 1000


class Switchboard:
    """
    Connects a provider's calls to the bot.

    Args:
        providers: As :func:`~wsvoice.runner.auth.served_providers` returns them.

    Attributes:
        sessions: The running sessions, of calls and of clients.
        starts: Whose bot may start now.
        announced: Calls by provider and id, for streams that name no numbers, or come without a token.
        dialled: The calls that this server has placed.
        dial_api: Lets others place them; ``None`` without routes.
        clients: Serves plain clients; ``None`` if providers are served.
    """

    def __init__(self, bot: Bot, config: RunConfig, providers: dict[str, Server]) -> None:
        # pipecat takes most of a second to import; nobody who only asks for help waits for it.
        from wsvoice.runner.pipecat.call_arguments import call_arguments

        self.bot = bot
        self.config = config
        self.auth = Authenticator(config.verify, chosen_provider=config.transport)
        self.capacity = Capacity(config.max_calls)
        self.lateness = Lateness(config.max_lag_s)
        self.providers = providers
        self.refusals = RefusalLog()
        self.sessions: set[BotSession] = set()
        #: How many sessions have ended.
        self.ended = 0
        self.starts = Starts()
        self.announced: OrderedDict[CallKey, Call] = OrderedDict()
        self.dialled = DialledCalls(self)
        self.dial_api: DialApi | None = None
        self.clients = Clients(self) if config.transport == "websocket" else None
        self.make_call_arguments = call_arguments

    @property
    def active_calls(self) -> int:
        """How many bots are running, including those whose call has ended."""
        return self.capacity.running_bots

    def move(self, host: str) -> None:
        """
        Be reached at another public ``host[:port]``; may be called from any thread.

        Webhooks are verified and answered for it from now on; running calls go on.
        """
        self.config = replace(self.config, proxy=host)

    def drain(self) -> None:
        """Take no new calls; running ones continue."""
        self.capacity.draining = True

    def why_closed(self) -> str:
        """Say why no new call is taken, however many places there are; empty if one is."""
        if self.capacity.draining:
            return "draining"
        if self.lateness.is_too_late:
            return f"the event loop is {self.lateness.late_s:.2f} s late (--max-lag)"
        return ""

    def note_blocked(self, text: str) -> None:
        """Note for every running call that the event loop was blocked; may be called from any thread."""
        cause = Cause("blocked", text)
        for session in tuple(self.sessions):
            session.diagnosis.note(cause)

    def end_all(self, reason: str, *, at_once: bool = False) -> None:
        """Ask every running call to end, normally or at once."""
        for session in self.sessions:
            session.end(reason, at_once=at_once)

    async def take_place(
        self, websocket: WebSocket, announced: Call | None, log: Logger, what: str, *, is_stranger: bool = False
    ) -> Place | None:
        """Take a place for a stream or a client; refuse it if there is none."""
        # An announced call is still accepted while the server drains.
        closed = self.why_closed() if announced is None else ""
        place = None if closed else self.capacity.occupy(announced, is_stranger=is_stranger)
        if place is None:
            self.refusals.warning(log, f"{what} refused (503)", closed or "every place is taken")
            await requests.deny(websocket, 503, "The server takes no new calls." if closed else "Every place is taken.")
        return place

    async def run_session(self, session: BotSession) -> Record:
        """Run a session to its end, and return what happened."""
        self.sessions.add(session)
        try:
            return await session.run()
        finally:
            self.sessions.discard(session)
            self.ended += 1

    # Webhooks

    async def webhook(
        self, request: Request, provider_name: str | None = None, *, place: str = "", token: str = ""
    ) -> Response:
        """
        Answer a provider's webhook with the document that starts the stream.

        Args:
            provider_name: The provider whose address it came to; ``None`` where one address serves all.
            place: What the address is for: a call that came in, or else ``dialled`` (a call that we placed),
                ``status`` (reports on calls, which are never answered with a document) or ``transfer`` (whom a call is
                connected to instead of the bot).
            token: Of the call that we placed, at the end of such an address.
        """
        try:
            body = await requests.read_body(request, self.config.message_limit)
        except requests.BodyError as error:
            self.refusals.warning(logger, f"webhook refused ({error.status})", error.reason)
            return requests.close_after(PlainTextResponse(f"{error}\n", error.status))
        asked = self._as_signed(request, body)
        dialled = self.dialled.by_token(token) if token else None
        if token and (dialled is None or dialled.provider.name != provider_name):
            self.refusals.warning(logger, "webhook refused (404)", "no call that this server placed has its token")
            return PlainTextResponse("There is no such call.\n", 404)
        provider = self._find_provider(provider_name, asked)
        if provider is None:
            paths = ", ".join(f"/{name}" for name in self.providers)
            guidance = f"the request is no provider's{self._other_path(asked, None)}. Webhooks: {paths}"
            return PlainTextResponse(f"This is a voice bot's webhook, but {guidance}\n", 404)
        if (refused := self._refuse(provider, asked, request, dialled)) is not None:
            return refused
        log = logger.bind(call="-")
        try:
            event = None if place == "transfer" else provider.read_webhook(asked)
        except RemoteProtocolError as error:
            reason = f"{error.message}{self._other_path(asked, provider)}"
            self.refusals.warning(log, "webhook refused (400)", reason)
            return PlainTextResponse(f"This is no webhook of {provider.title}: {reason}\n", 400)
        prefix = _prefix(request.scope["path"], provider_name, place, token)
        call_id = event.call_id if event is not None else ""
        log = logger.bind(call=call_id if 0 < len(call_id) <= ID_LIMIT and call_id.isprintable() else "-")
        try:
            async with self.auth.admit(provider, asked, call_id) as succeed:
                if place == "transfer":
                    response = _response(provider.transfer_document(asked))
                elif isinstance(event, Call) and place != "status":
                    response = await self._answer(provider, event, request, prefix, log, dialled)
                else:
                    if isinstance(event, CallUpdate):
                        self._note_update(provider, event, request, log, dialled)
                    response = _response(provider.acknowledge())
                if response.status_code < 300:
                    succeed()
                return response
        except SignatureError as error:
            self.refusals.warning(log, "webhook refused (403)", requests.with_hint(error))
            return PlainTextResponse("The signature was used before.\n", 403)
        except (LocalProtocolError, ApiError) as error:
            # A transfer to nobody.
            self.refusals.warning(log, "webhook refused (404)", error.message)
            return PlainTextResponse(f"{error.message}\n", 404)

    def _refuse(
        self, provider: Server, asked: WebhookRequest, request: Request, dialled: DialledCall | None
    ) -> Response | None:
        """Return the answer to a webhook that may not be the provider's; ``None`` if it is, or cannot be known."""
        log = logger.bind(call="-")
        if not requests.has_host(request, self.config):
            self.refusals.warning(log, "webhook refused (400)", "it names no host, or a bad one")
            return PlainTextResponse("The request must name one host.\n", 400)
        lacks_credentials = bool(provider.challenge) and "authorization" not in asked.headers
        if lacks_credentials and _is_empty(asked):
            return _challenge(provider, log)  # Even unverified: what it has to say comes with its credentials.
        try:
            # Whoever signs nothing is known by the token, which only the provider was told.
            is_public = requests.is_public(request, self.config) and (dialled is None or provider.signs)
            self.auth.check_webhook(provider, asked, is_public=is_public)
        except SignatureError as error:
            if lacks_credentials and self.auth.verifies(provider):
                return _challenge(provider, log)
            if (host := self._signed_for(provider, asked, request)) is not None:
                error.hint = (
                    f"it is signed for {host}, which this server does not know: if that is yours, use -x {host}"
                )
            self.refusals.warning(log, "webhook refused (403)", requests.with_hint(error))
            is_checked = self.auth.verifies(provider)
            refusal = "The signature is missing or wrong." if is_checked else "It cannot be verified; the log says why."
            return PlainTextResponse(f"{refusal}\n", 403)
        if (host := requests.unknown_host(request, self.config)) is not None:
            named, option = (host, f"-x {host}") if host else ("a proxy", "-x and the public host")
            reason = f"it came by {named}, which this server does not know; start it with {option}"
            self.refusals.warning(log, "webhook refused (403)", reason)
            return PlainTextResponse("This server does not know its public address; the log says why.\n", 403)
        return None

    def _note_update(
        self, provider: Server, update: CallUpdate, request: Request, log: Logger, dialled: DialledCall | None
    ) -> None:
        """Log what a webhook reports about a call, and tell whom it concerns; an ended call needs no place."""
        level = "WARNING" if update.failed else "INFO"
        detail = f": {update.detail[:UPDATE_LIMIT]}" if update.detail else ""
        log.log(level, "{} reports {}{}", provider.title, update.event[:UPDATE_LIMIT], detail)
        if update.ended and update.call_id:
            # Where nothing is signed, a stranger who knows the id may report this. A running call continues.
            self.capacity.forget((provider.name, update.call_id))
            self.auth.replays.call_ended((provider.name, update.call_id))
        is_known = dialled is not None or self.auth.verifies(provider)
        if not is_known and requests.is_public(request, self.config):
            # A stranger who knows the call's id may say anything.
            return
        dialled = dialled or self.dialled.by_provider(provider.name, update.call_id)
        if dialled is not None:
            self.dialled.note_update(dialled, update)
        session = dialled.session if dialled is not None else self._session_of(provider.name, update.call_id)
        if session is not None:
            session.note_update(update)

    def _session_of(self, provider_name: str, call_id: str) -> Session | None:
        """Return the session of a running call."""
        calls = (each for each in self.sessions if isinstance(each, Session))
        return next((each for each in calls if call_key(each.call) == (provider_name, call_id)), None)

    async def _answer(
        self,
        provider: Server,
        call: Call,
        request: Request,
        prefix: str,
        log: Logger,
        dialled: DialledCall | None = None,
    ) -> Response:
        """Answer the webhook of a call: reserve a place, issue a token, render the document."""
        if dialled is not None:
            if dialled.is_over or dialled.unwanted:
                dialled.note_ids(call.call_id, call.account_id)
                dialled.withdraw(dialled.unwanted)
                return await self._respond(provider.busy(call), log)
            # Its place was reserved when it was placed, and is free from here on. Its parameters need not travel.
            self.dialled.note_call(dialled, call)
            call = replace(call, direction="outbound")
        is_known = dialled is not None or self.auth.verifies(provider)
        stranger = None if is_known else requests.address(request, self.config)
        # A running call may finish, which includes its next stream; so may one that we placed.
        closed = "" if dialled is not None or self.capacity.knows(call_key(call)) else self.why_closed()
        if closed or not self.capacity.reserve(call, stranger=stranger):
            self.refusals.warning(log, "webhook answered busy", closed or "every place is taken")
            return await self._respond(provider.busy(call), log)
        base = requests.stream_base(request, self.config) + prefix
        token = self.auth.tokens.issue(call, verified=stranger is None, dialled=dialled.token if dialled else "")
        stream_url = f"{base}/ws/{provider.name}/{token}"
        try:
            parameters = {**self.config.parameters, **call.parameters}
            answer = provider.answer(
                replace(call, parameters=parameters), stream_url, self._status_url(provider, prefix, dialled)
            )
        except WsvoiceError as error:
            log.error("webhook not answered: {}", requests.with_hint(error))
            self.capacity.forget(call_key(call))
            return PlainTextResponse("The answer could not be rendered.\n", 500)
        self.announced[call_key(call)] = call
        if len(self.announced) > REMEMBERED_CALLS:
            self.announced.popitem(last=False)
        response = await self._respond(answer, log)
        if response.status_code >= 300:
            self.capacity.forget(call_key(call))
            return response
        log.info("webhook answered: {} calls {}", call.from_number or "somebody", call.to_number or "the bot")
        return response

    def _status_url(self, provider: Server, prefix: str, dialled: DialledCall | None) -> str:
        """
        Return where a provider reports on a call's stream; empty without a public address.

        Also where webhooks are not verified: a stranger who is answered with a document is told no password of reports.
        """
        public_url = self.config.public_url
        if public_url is None or not (self.auth.verifies(provider) or dialled is not None):
            return ""
        return f"{public_url}{prefix}/{provider.name}/status{f'/{dialled.token}' if dialled is not None else ''}"

    async def _respond(self, answer: Answer, log: Logger) -> Response:
        """Carry out an answer: send its requests to the provider's API, then return its document."""
        for each in answer.requests:
            if not await self._send(each, log, "the webhook's answer"):
                return PlainTextResponse("The provider's API did not take the answer.\n", 502)
        return _response(answer)

    async def _send(self, request: HttpRequest, log: Logger, what: str, *, settled: Container[int] = ()) -> bool:
        """Send a request to a provider's API; log it and return false if it fails."""
        try:
            answer = await http.send(request, timeout_s=REST_TIMEOUT_S)
        except HttpError as error:
            log.error("{} did not reach the provider's API: {}", what, error.message)
            return False
        if answer.status >= 300 and answer.status not in settled:
            log.error("{} was refused by the provider's API: {} {}", what, answer.status, answer.body[:200])
            return False
        return True

    async def hang_up(self, provider: Server, call: Call, log: Logger) -> None:
        """End the call by the provider's API, if closing its stream does not."""
        try:
            request = provider.hang_up(call, now=time.time())
        except WsvoiceError as error:
            # The id is a stranger's invention.
            log.warning("the call is not hung up: {}", error.message)
            return
        if request is not None:
            what = "the call may still be up: its hang-up"
            await self._send(request, log, what, settled=provider.ended_statuses)

    def _find_provider(self, name: str | None, request: WebhookRequest | None = None) -> Server | None:
        """Return the provider of this name; without one the only one, or that of the request."""
        if name is not None:
            return self.providers.get(name)
        if len(self.providers) == 1:
            return next(iter(self.providers.values()))
        return next((each for each in self.providers.values() if request and each.recognises(request)), None)

    def _other_path(self, request: WebhookRequest, provider: Server | None) -> str:
        """Say, as the end of a sentence, which path would answer a webhook that came to the wrong one."""
        for name in PROVIDERS:
            other = self.providers.get(name) or load_server(name, {})
            if other.challenge and _is_empty(request):
                continue  # It looks like anybody's.
            if other.recognises(request) and (provider is None or provider.name != name):
                if name in self.providers:
                    return f"; it looks like {other.title}'s, whose webhook is /{name}"
                return f"; it looks like {other.title}'s, which is not served here (-t {name})"
        return ""

    # Streams

    async def stream(self, websocket: WebSocket, provider_name: str | None = None, token: str | None = None) -> None:
        """Check and accept a stream, and run the bot for it."""
        provider = self._find_provider(provider_name)
        log = logger.bind(call="-")
        if provider is None and provider_name is not None:
            await requests.deny(websocket, 404, "There is no such provider here.")
            return
        try:
            announced, is_stranger, dialled = self._admit(websocket, provider, token)
            if announced is not None:
                log = logger.bind(call=announced.call_id)
            if provider is not None:
                self._check_upgrade(websocket, provider, log)
        except (TokenError, SignatureError) as error:
            self.refusals.warning(log, "stream refused (403)", requests.with_hint(error))
            await requests.deny(websocket, 403, "The stream token or signature is missing or wrong.")
            return
        if dialled is not None:
            if dialled.is_over or dialled.unwanted or dialled.session is not None:
                await requests.deny(websocket, 403, "The call is over, or has its stream.")
                return
            self.capacity.forget_dialled(dialled.token)
        place = await self.take_place(websocket, announced, log, "stream", is_stranger=is_stranger)
        if place is None:
            return
        closing = ExitStack()
        closing.callback(place.close)
        if announced is not None:
            self.auth.replays.stream_started(call_key(announced))
            closing.callback(self.auth.replays.stream_ended, call_key(announced))
        try:
            known = self.providers.values() if provider is None else [provider]
            if not await requests.accept(websocket, log, [each.subprotocol for each in known if each.subprotocol]):
                return
            found = (provider, []) if provider is not None else await self._detect(websocket, log)
            if found is None:
                return
            provider, unread = found
            socket = MediaSocket(
                websocket.scope,
                websocket.receive,
                websocket.send,
                provider=provider,
                logger=log,
                lead_s=self.config.lead_ms / 1000,
                message_limit=self.config.message_limit,
                unread=unread,
            )
            session = Session(
                self,
                socket,
                provider=provider,
                announced=announced,
                verified=not is_stranger,
                dialled=dialled,
                on_started=place.start,
                on_closed=closing.close,
                logger=log,
            )
            await self.run_session(session)
        finally:
            closing.close()
            place.release()

    def _admit(
        self, websocket: WebSocket, provider: Server | None, token: str | None
    ) -> tuple[Call | None, bool, DialledCall | None]:
        """
        Return the call that the stream's token was issued for, whether it is a stranger's stream, and what we dialled.

        Without a token there is no call. A stranger's stream is one whose webhook was not signed, or that came by a
        public address without a token.

        Raises:
            TokenError: If a token is missing or bad.
        """
        bad_token: TokenError | None = None
        if token is not None and provider is not None:
            try:
                claims = self.auth.tokens.redeem(token, provider.name)
            except TokenError as error:
                bad_token = error
            else:
                dialled = self.dialled.by_token(claims.dialled) if claims.dialled else None
                if claims.dialled and dialled is None:
                    raise TokenError("the stream is of a call that this server no longer knows")
                return claims.call, not claims.verified, dialled
        # A browser may know a password, and send it for any page. Some programs name the host that they dial as origin.
        whose = requests.page(websocket)
        own = (self.config.public_url or "").lower()
        if self.config.stream_auth != "none" and requests.is_foreign_page(whose, {own}):
            raise TokenError(f"a web page of {whose!r:.100} dials; telephone companies do not")
        known = self.providers.values() if provider is None else [provider]
        upgrade = self._as_signed(websocket)
        if any(each.has_credentials(upgrade) for each in known):
            return None, False, None  # What the user gave the provider instead of a token.
        if bad_token is not None:
            raise bad_token
        if requests.needs_token(websocket, self.config):
            if provider is not None and not provider.has_webhook:
                names = " and ".join(sorted(provider.credential_names, reverse=True))
                what = "the stream carries no credentials, or wrong ones"
                raise TokenError(what, hint=f"set {names} to what {provider.title} sends")
            raise TokenError("the stream has no token")
        return None, requests.is_public(websocket, self.config), None

    def _check_upgrade(self, websocket: WebSocket, provider: Server, log: Logger) -> None:
        """
        Log whether the upgrade is signed, and how.

        Raises:
            SignatureError: With ``--verify enforce``, if it is not.
        """
        try:
            matched = self.auth.check_upgrade(provider, self._as_signed(websocket))
        except SignatureError as error:
            if self.config.verify == "enforce":
                raise
            # A missing signature need not be a mistake: a proxy may have removed it.
            is_signed = any("signature" in name for name in websocket.headers)
            log.log(
                "WARNING" if is_signed else "DEBUG", "the stream is accepted although {}", requests.with_hint(error)
            )
            return
        if matched is not None:
            log.debug("the upgrade's signature covers {}", matched)

    async def _detect(self, websocket: WebSocket, log: Logger) -> tuple[Server, list[str | bytes]] | None:
        """Return a stream's provider and its first messages; if it is nobody's, close it."""
        timeout_s, limit = self.config.handshake_timeout_s, self.config.message_limit
        try:
            provider, unread = await detect_provider(
                websocket, self.providers.values(), timeout_s=timeout_s, byte_limit=limit
            )
        except RemoteProtocolError as error:
            self.refusals.warning(log, "stream ended", error.message)
            await requests.close(websocket, MESSAGE_TOO_BIG)
            return None
        if provider is None:
            reason = "none of its first messages is the start of a known provider's stream"
            self.refusals.warning(log, "stream ended", reason)
            await requests.close(websocket, POLICY_VIOLATION, reason)
            return None
        return provider, unread

    def _as_signed(self, connection: HTTPConnection, body: bytes = b"") -> WebhookRequest:
        """Return a webhook or an upgrade with the URL that the provider signs: of the configured host, else our own."""
        scope = connection.scope
        base = requests.signed_base(connection, self.config)
        if scope["type"] == "websocket":
            base = base.replace("http", "ws", 1)
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        query = scope.get("query_string", b"").decode("latin-1")
        return WebhookRequest(
            method=scope.get("method", "GET"),
            url=f"{base}{path}?{query}" if query else f"{base}{path}",
            headers={name.lower(): value for name, value in connection.headers.items()},
            body=body,
        )

    def _signed_for(self, provider: Server, asked: WebhookRequest, request: Request) -> str | None:
        """Return the host that a refused webhook is signed for, if it is not the server's own."""
        if self.config.public_url is not None or _is_signed(provider, asked):
            return None
        rest = asked.url.removeprefix(requests.signed_base(request, self.config))
        for host in requests.claimed_hosts(request):
            urls = (f"https://{host}{rest}", f"http://{host}{rest}")
            if any(_is_signed(provider, replace(asked, url=url)) for url in urls):
                return host
        return None


def create_switchboard(
    bot: Bot, config: RunConfig | None = None, providers: dict[str, Server] | None = None
) -> Switchboard:
    """Return a switchboard for `bot`, with pipecat patched for it."""
    from wsvoice.runner.pipecat.patches import install

    config = config or RunConfig()
    if providers is None:
        providers = served_providers(config)
    install(config.disabled_patches)
    return Switchboard(bot, config, providers)


def _is_signed(provider: Server, request: WebhookRequest) -> bool:
    try:
        provider.verify(request, now=time.time())
    except SignatureError:
        return False
    return True


def _prefix(path: str, provider_name: str | None, place: str, token: str) -> str:
    """Return what stands before a webhook's address where the server's routes are part of another application's."""
    ours = "".join(f"/{each}" for each in (provider_name, place, token) if each)
    return path.removesuffix("/").removesuffix(ours)


def _is_empty(request: WebhookRequest) -> bool:
    return request.method == "POST" and not request.body


def _challenge(provider: Server, log: Logger) -> Response:
    """Answer a webhook whose provider sends its credentials, and what else it has to say, once it is asked."""
    log.debug("webhook asked for its credentials (401)")
    return PlainTextResponse("The credentials are missing.\n", 401, {"WWW-Authenticate": provider.challenge})


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), media_type=answer.media_type)
