"""Connects a provider's webhooks and media WebSockets to the bot."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

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
from wsvoice.runner.auth import Authenticator, TokenClaims, served_providers
from wsvoice.runner.bot_task import POLICY_VIOLATION, Bot, BotSession, Record, RunningSession
from wsvoice.runner.bounded_socket import MESSAGE_TOO_BIG
from wsvoice.runner.busy_message import BusyMessages
from wsvoice.runner.call_tap import Exchange
from wsvoice.runner.capacity import STRANGER_TTL_S, TOKEN_TTL_S, CallKey, Capacity, Lateness, Place, call_key
from wsvoice.runner.clients import Clients
from wsvoice.runner.detection import detect_provider
from wsvoice.runner.dialled_call import DialledCall
from wsvoice.runner.figures import CallFigures, WorkerFigures, matching_ids
from wsvoice.runner.fleet import Fleet, join_fleet
from wsvoice.runner.limits import (
    DRAINING,
    FULL,
    NumberLimits,
    Reason,
    Refusal,
    StreamMeter,
    most_calls,
    other_number,
)
from wsvoice.runner.logs import RefusalLog
from wsvoice.runner.media_socket import MediaSocket
from wsvoice.runner.metrics import Metrics, Running, refusal_of
from wsvoice.runner.minutes import DayMinutes, minutes_file
from wsvoice.runner.outbound import DialledCalls, dialled_key
from wsvoice.runner.session import ID_LIMIT, Session
from wsvoice.runner.starting import Starts
from wsvoice.runner.telemetry import start_tracing

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.runner.dial_api import DialApi
    from wsvoice.runner.upgrade import Predecessor
    from wsvoice.runner.workers.crew import Crew

ValueT = TypeVar("ValueT")

#: How long a provider's API may take.
REST_TIMEOUT_S = 5.0
#: How many characters of a provider's report on a call are logged.
UPDATE_LIMIT = 200
#: Settings that apply from a start on: a reload does not change them.
FIXED_SETTINGS = (
    "bot",
    "transport",
    "url",
    "headers",
    "proxy",
    "tunnel",
    "tunnel_domain",
    "number",
    "host",
    "port",
    "workers",
    "reload",
    "disabled_patches",
    "causes",
    "state_folder",
    "redis",
    "max_minutes_per_day",
    "busy_message",
    "metrics_port",
    "metrics_host",
    "traces",
    "live",
    "log_format",
    "drain_timeout_s",
    "drain_linger_s",
)
#: How many announced calls are remembered for streams without a token.
REMEMBERED_CALLS = 1000
#: How many webhooks are kept for their streams' traces, which come within a minute.
REMEMBERED_EXCHANGES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedStream:
    """
    A stream that may have its session, and its place.

    Attributes:
        provider: Whose stream it is; ``None`` if its first messages tell.
        announced: The call that its token was issued for; ``None`` without one.
        is_stranger: Whether it is unverified, and so counts as a stranger's until it starts.
        dialled: The call as we placed it; ``None`` if it came in.
        traceparent: The trace of the webhook that announced it; empty for none.
        exchange: That webhook with its answer, for what is kept of the call; ``None`` where nothing is.
        on_session: Called with its session, before that runs.
        on_started: Called once the stream has started, with what it says of the call; it returns why the call is
            refused.
        on_closed: Called once the WebSocket is closed, while the bot may still be working.
    """

    provider: Server | None
    announced: Call | None
    is_stranger: bool
    dialled: DialledCall | None
    traceparent: str = ""
    exchange: Exchange | None = None
    on_session: Callable[[RunningSession], None] = lambda session: None
    on_started: Callable[[Call], Awaitable[Refusal | None]]
    on_closed: Callable[[], None] = lambda: None


class Switchboard:
    """
    Connects a provider's calls to the bot.

    Args:
        bot: The bot; ``None`` where workers run it.
        providers: As :func:`~wsvoice.runner.auth.served_providers` returns them.
        fleet: The servers that this one works with; the settings name them by default.

    Attributes:
        crew: The workers that run the sessions; ``None`` if they run here.
        blocked_s: Returns for how long the event loop is blocked at this moment, in seconds, from any thread.
        sessions: The running sessions, of calls and of clients.
        starts: Whose bot may start now.
        announced: Calls by provider and id, for streams that name no numbers, or come without a token.
        dialled: The calls that this server has placed.
        metrics: Counts what happens; :mod:`wsvoice.runner.metrics`.
        tracing: Traces calls; :mod:`wsvoice.runner.telemetry`.
        traceparents: The traces of announced calls' webhooks, where calls are traced.
        exchanges: Those webhooks with their answers, with ``--trace``.
        dial_api: Lets others place them; ``None`` without routes.
        numbers: Limits for one number's calls.
        minutes: How long all calls of the day have lasted.
        busy_messages: What callers hear who are turned away.
        clients: Serves plain clients; ``None`` if providers are served.
        predecessor: The server that this one has taken over from, while that finishes its calls; else ``None``.
        on_announced: Called with each call whose webhook is answered, and the stranger's address if it is not verified.
    """

    def __init__(
        self, bot: Bot | None, config: RunConfig, providers: dict[str, Server], fleet: Fleet | None = None
    ) -> None:
        self.bot = bot
        self.config = config
        self.crew: Crew | None = None
        self.fleet = fleet or join_fleet(config)
        self.auth = Authenticator(config.verify, chosen_provider=config.transport, fleet=self.fleet)
        self.capacity = Capacity(most_calls(config.max_calls, config.worker_count or 1), ttl_s=self.fleet.place_ttl_s)
        self.numbers = NumberLimits(config.max_calls_per_number, config.max_calls_per_hour)
        self.minutes = DayMinutes(config.max_minutes_per_day, minutes_file(config, Path.cwd()))
        self.busy_messages = BusyMessages(config)
        self.lateness = Lateness(config.max_lag_s)
        self.blocked_s: Callable[[], float] = lambda: 0.0
        self.providers = providers
        self.sessions: set[RunningSession] = set()
        self.metrics = self._new_metrics()
        self.refusals = RefusalLog(self._note_refusal)
        #: Whether load balancers are told to send no new calls.
        self.is_leaving = False
        self.tracing = start_tracing(config)
        self.traceparents: OrderedDict[CallKey, str] = OrderedDict()
        self.exchanges: OrderedDict[CallKey, Exchange] = OrderedDict()
        #: How many sessions have ended.
        self.ended = 0
        self.starts = Starts()
        self.announced: OrderedDict[CallKey, Call] = OrderedDict()
        self.dialled = DialledCalls(self)
        self.dial_api: DialApi | None = None
        self.clients = Clients(self) if config.transport == "websocket" else None
        self.predecessor: Predecessor | None = None
        self.on_announced: Callable[[Call, str | None], None] = lambda call, stranger: None
        if bot is not None:
            # pipecat takes most of a second to import; nobody who only asks for help waits for it.
            from wsvoice.runner.pipecat.call_arguments import call_arguments

            self.make_call_arguments = call_arguments

    @property
    def the_bot(self) -> Bot:
        """The bot, where sessions run."""
        assert self.bot is not None
        return self.bot

    def _new_metrics(self) -> Metrics:
        names = ["websocket"] if self.config.transport == "websocket" else list(self.providers)
        return Metrics(
            names,
            running=self._running,
            lags_s=lambda: {
                str(each.number): each.lag_s for each in self.workers() if each.state in ("serving", "draining")
            },
            is_draining=lambda: self.capacity.draining,
            max_calls=lambda: self.capacity.limit,
        )

    def _running(self) -> list[Running]:
        calls = (each.figures() for each in tuple(self.sessions) if not each.is_over)
        return [Running(each.provider, each.bytes_in, each.bytes_out, each.underruns) for each in calls]

    def _note_refusal(self, text: str) -> None:
        if (refusal := refusal_of(text)) is not None:
            self.metrics.refused(*refusal)

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
        if self.crew is not None:
            self.crew.move(host)

    def with_fixed_settings(self, config: RunConfig) -> RunConfig:
        """Return settings that were read again, with those of before that only apply from a start on."""
        fixed = {name: getattr(self.config, name) for name in FIXED_SETTINGS}
        return replace(config, **fixed)

    def reconfigure(self, config: RunConfig) -> Callable[[], None]:
        """
        Prepare that new calls have other settings; running ones keep theirs.

        Returns:
            What applies them.

        Raises:
            ConfigError: If they contradict each other, or a secret is missing.
        """
        served = served_providers(config)

        def apply() -> None:
            # A tunnel may have got another address meanwhile.
            self.config = self.with_fixed_settings(config)
            # The routes are those of the start.
            self.providers = {name: served.get(name, before) for name, before in self.providers.items()}
            self.auth.verify = config.verify
            self.capacity.limit = most_calls(config.max_calls, config.worker_count or 1)
            self.numbers.at_once, self.numbers.per_hour = config.max_calls_per_number, config.max_calls_per_hour
            self.lateness.limit_s = config.max_lag_s

        return apply

    def leave(self) -> None:
        """Say that no new calls are wanted, which are taken all the same until :meth:`drain`."""
        self.is_leaving = True

    def drain(self) -> None:
        """Take no new calls; running ones continue."""
        self.is_leaving = self.capacity.draining = True

    def close(self) -> None:
        """Keep what later runs need to know; no call runs any more."""
        self.minutes.close()

    def remember(self, call: Call, stranger: str | None) -> None:
        """Remember a call whose webhook is answered, for its stream."""
        _keep(self.announced, call_key(call), call, REMEMBERED_CALLS)
        self.on_announced(call, stranger)

    def why_closed(self) -> Refusal | None:
        """Say why no new call is taken, whoever calls and however many places there are; ``None`` if one is."""
        if self.capacity.draining:
            return DRAINING
        if self.lateness.is_too_late:
            return Refusal("lag", f"the event loop is {self.lateness.late_s:.2f} s late (--max-lag)")
        if self.minutes.is_used_up:
            limit = self.minutes.limit
            used_up = "the one minute of the day is" if limit == 1 else f"all {limit} minutes of the day are"
            return Refusal("minutes", f"{used_up} used up (--max-minutes-per-day)")
        return self.crew.why_closed() if self.crew is not None else None

    def note_refused(self, kind: str, reason: Reason, provider: str) -> None:
        """
        Count a new call that was refused.

        Args:
            kind: What was refused: ``webhook``, ``stream``, ``client`` or ``dial``.
            reason: Why, in a word.
            provider: The provider's name; ``websocket`` for a client, and empty where it is not known yet.
        """
        self.metrics.refused(kind, reason)

    def note_blocked(self, text: str) -> None:
        """Note for every running call that the event loop was blocked; may be called from any thread."""
        cause = Cause("blocked", text)
        for session in tuple(self.sessions):
            session.note_cause(cause)

    def end_all(self, reason: str, *, at_once: bool = False) -> None:
        """Ask every running call to end, normally or at once."""
        for session in self.sessions:
            session.end(reason, at_once=at_once)

    def calls(self) -> list[CallFigures]:
        """
        Return the running calls and clients as they stand, the oldest first; may be called from any thread.

        Not those whose caller is gone while the bot still works: their places are free.
        """
        running = [each.figures() for each in tuple(self.sessions) if not each.is_over]
        return sorted(running, key=lambda each: each.started_at)

    def workers(self) -> list[WorkerFigures]:
        """Return the processes that run bots, this one alone if there are no others; may be called from any thread."""
        if self.crew is not None:
            return self.crew.figures()
        state = "draining" if self.capacity.draining else "serving"
        lag_s = max(self.lateness.late_s, self.blocked_s())
        return [WorkerFigures(number=1, pid=os.getpid(), calls=len(self.sessions), lag_s=lag_s, state=state)]

    def end_call(self, given: str, reason: str) -> bool:
        """
        Ask a running call or client to end as if the bot had ended it: its last audio is played.

        Args:
            given: Its id, a beginning of it that no other one has, or its short form in the log.
            reason: Why, for the log.

        Returns:
            Whether exactly one call is meant.
        """
        found = matching_ids((each.session_id for each in self.sessions), given)
        meant = [each for each in self.sessions if found == [each.session_id]]
        # A call that is redirected may have two streams for a moment.
        for session in meant:
            session.end(reason, as_usual=True)
        return bool(meant)

    async def take_place(
        self,
        websocket: WebSocket,
        announced: Call | None,
        log: Logger,
        what: Literal["stream", "client"],
        *,
        provider: str = "",
        is_stranger: bool = False,
        claims: TokenClaims | None = None,
    ) -> Place | None:
        """
        Take a place for a stream or a client of `provider`; refuse it if there is none.

        Then its token's `claims` stay good.
        """
        # An announced call is still accepted while the server drains.
        refusal = self.why_closed() if announced is None else None
        place = None if refusal is not None else self.capacity.occupy(announced, is_stranger=is_stranger)
        if place is None:
            why = refusal or FULL
            self.note_refused(what, why.reason, provider)
            self.refusals.warning(log, f"{what} refused (503)", why.text)
            # Before the answer: a load balancer then tries another server at once, with the same token.
            await self.auth.give_back(claims)
            text = "The server takes no new calls." if refusal is not None else "Every place is taken."
            await requests.deny(websocket, 503, text)
        return place

    async def run_session(self, session: BotSession) -> Record:
        """Run a session to its end, and return what happened."""
        self.sessions.add(session)
        try:
            return await session.run()
        finally:
            self.sessions.discard(session)
            self.ended += 1
            self.metrics.session_ended(session.record)

    # Webhooks

    async def webhook(
        self, request: Request, provider_name: str | None = None, *, place: str = "", token: str = ""
    ) -> Response:
        """
        Answer a provider's webhook with the document that starts the stream, and count it.

        Args:
            provider_name: The provider whose address it came to; ``None`` where one address serves all.
            place: What the address is for: a call that came in, or else ``dialled`` (a call that we placed),
                ``status`` (reports on calls, which are never answered with a document) or ``transfer`` (whom a call is
                connected to instead of the bot).
            token: Of the call that we placed, at the end of such an address.
        """
        handled, began, status = _Webhook.of(request), time.perf_counter(), 500
        try:
            response = await self._answer_webhook(request, provider_name, place=place, token=token)
            status = response.status_code
            return response
        finally:
            self.metrics.webhook_answered(handled.provider, time.perf_counter() - began, handled.outcome(status))

    async def _answer_webhook(self, request: Request, provider_name: str | None, *, place: str, token: str) -> Response:
        try:
            body = await requests.read_body(request, self.config.message_limit)
        except requests.BodyError as error:
            self.refusals.warning(logger, f"webhook refused ({error.status})", error.reason)
            return requests.close_after(PlainTextResponse(f"{error}\n", error.status))
        asked = self._as_signed(request, body)
        if token and self.predecessor is not None and self.predecessor.knows(token):
            return await self.predecessor.relay(request, body)
        dialled = self.dialled.by_token(token) if token else None
        if token and (dialled is None or dialled.provider.name != provider_name):
            self.refusals.warning(logger, "webhook refused (404)", "no call that this server placed has its token")
            return PlainTextResponse("There is no such call.\n", 404)
        provider = self._find_provider(provider_name, asked)
        if provider is None:
            paths = ", ".join(f"/{name}" for name in self.providers)
            guidance = f"the request is no provider's{self._other_path(asked, None)}. Webhooks: {paths}"
            return PlainTextResponse(f"This is a voice bot's webhook, but {guidance}\n", 404)
        _Webhook.of(request).provider = provider.name
        _Webhook.of(request).asked = asked
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
                    response = await self._acknowledge(provider, asked, call_id, request, prefix, log)
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
            self.auth.call_ended((provider.name, update.call_id))
            self.numbers.call_ended((provider.name, update.call_id))
        if dialled is None and not self._may_steer(provider, request):
            return
        if not self._tell_call(provider.name, update, dialled):
            self.fleet.tell_update(provider.name, update, dialled)
            if self.fleet.memory is None:
                self._pass_back(provider.name, update)

    def _pass_back(self, provider_name: str, update: CallUpdate) -> None:
        """Tell the server that this one has taken over from what is reported of a call."""
        if self.predecessor is not None:
            self.predecessor.pass_on(provider_name, update)

    def pass_update(self, provider_name: str, update: CallUpdate) -> None:
        """Tell a running call what a provider has reported to the server that has taken over from this one."""
        if not self._tell_call(provider_name, update, None):
            self._pass_back(provider_name, update)

    def _tell_call(self, provider_name: str, update: CallUpdate, dialled: DialledCall | None) -> bool:
        """Tell whom it concerns what is reported of a call; false if it also concerns another server, or only may."""
        dialled = dialled or self.dialled.by_provider(provider_name, update.call_id)
        if dialled is not None:
            self.dialled.note_update(dialled, update)
        session = dialled.session if dialled is not None else self._session_of(provider_name, update.call_id)
        if session is not None:
            session.note_update(update)
        return session is not None and (dialled is None or not dialled.is_elsewhere)

    def hear_update(self, provider_name: str, mark: str, update: CallUpdate) -> None:
        """Note what a provider has reported to another server; `mark` is that of a call that was placed."""
        if update.ended and update.call_id:
            self.capacity.forget((provider_name, update.call_id))
            self.auth.replays.call_ended((provider_name, update.call_id))
            self.numbers.call_ended((provider_name, update.call_id))
        self._tell_call(provider_name, update, self.dialled.by_mark(mark))

    def hear_stream(self, provider_name: str, mark: str, *, call_id: str, account_id: str) -> None:
        """Note that a call's stream has come to another server; `mark` is that of a call that was placed."""
        if call_id:
            self.capacity.forget((provider_name, call_id))
            self.numbers.call_ended((provider_name, call_id))
        dialled = self.dialled.by_mark(mark)
        if dialled is not None:
            self.dialled.note_call(dialled, Call(provider_name, call_id, account_id=account_id))

    def _may_steer(self, provider: Server, request: Request) -> bool:
        """Whether a report changes what becomes of a call: a stranger who knows the call's id may say anything."""
        return self.auth.verifies(provider) or not requests.is_public(request, self.config)

    async def _acknowledge(
        self, provider: Server, asked: WebhookRequest, call_id: str, request: Request, prefix: str, log: Logger
    ) -> Response:
        """Answer a webhook that needs no document; a call that is being turned away goes on to its end."""
        step = None
        if self._may_steer(provider, request):
            step = provider.go_on_with_busy(asked, self.busy_messages.message(self.config, prefix))
        response = await self._respond(step or provider.acknowledge(), log)
        if step is not None and response.status_code >= 300:
            # Nothing else would end it.
            await self.hang_up(provider, Call(provider.name, call_id, control="api"), log)
        return response

    def _session_of(self, provider_name: str, call_id: str) -> RunningSession | None:
        """Return the session of a running call."""
        calls = (each for each in self.sessions if each.call is not None)
        return next((each for each in calls if each.call and call_key(each.call) == (provider_name, call_id)), None)

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
                _Webhook.of(request).answer = "busy"
                return await self._respond(provider.busy(call), log)
            # Its place was reserved when it was placed, and is free from here on. Its parameters need not travel.
            self.dialled.note_call(dialled, call)
            call = replace(call, direction="outbound")
        is_known = dialled is not None or self.auth.verifies(provider)
        stranger = None if is_known else requests.address(request, self.config)
        if (refusal := self._reserve(call, stranger, dialled)) is not None:
            _Webhook.of(request).answer = "busy"
            self.note_refused("webhook", refusal.reason, provider.name)
            self.refusals.warning(log, "webhook answered busy", refusal.text)
            message = self.busy_messages.message(self.config, prefix)
            if call.control == "api" and not self._may_steer(provider, request):
                message = None
            return await self._respond(provider.busy(call, message), log)
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
            self._forget(call)
            return PlainTextResponse("The answer could not be rendered.\n", 500)
        self.remember(call, stranger)
        with self.tracing.webhook(call, _Webhook.of(request).began_ns) as traceparent:
            self._keep_trace(call_key(call), traceparent)
            response = await self._respond(answer, log)
        if response.status_code >= 300:
            self._forget(call)
            return response
        self._keep_exchange(call, request, answer, token)
        _Webhook.of(request).answer = "answered"
        log.info("webhook answered: {} calls {}", call.from_number or "somebody", call.to_number or "the bot")
        return response

    def _reserve(self, call: Call, stranger: str | None, dialled: DialledCall | None) -> Refusal | None:
        """Reserve a place for the stream of `call`, and count it; return why it is refused."""
        key, number = call_key(call), other_number(call)
        # A running call may finish, which includes its next stream; so may one that we placed.
        is_new = dialled is None and not self.capacity.knows(key)
        refusal = self.why_closed() if is_new else None
        if refusal is None and is_new and not self.numbers.knows(key):
            refusal = self.numbers.why_refused(number)
        if refusal is None and not self.capacity.reserve(call, stranger=stranger):
            refusal = FULL
        if refusal is None and is_new:
            self.numbers.admit(key, number, TOKEN_TTL_S if stranger is None else STRANGER_TTL_S)
        return refusal

    def _forget(self, call: Call) -> None:
        """Take back what :meth:`_reserve` did: the call could not be answered."""
        self.capacity.forget(call_key(call))
        self.numbers.withdraw(call_key(call))

    def _keep_trace(self, call: CallKey, traceparent: str) -> None:
        """Keep the trace of a call's webhook for its stream."""
        if traceparent:
            _keep(self.traceparents, call, traceparent, REMEMBERED_CALLS)

    def _keep_exchange(self, call: Call, request: Request, answer: Answer, token: str) -> None:
        """Keep a call's webhook and its answer for the call's trace."""
        handled = _Webhook.of(request)
        if self.config.trace is None or handled.asked is None:
            return
        secrets = (*self.config.credentials.values(), token)
        kept = Exchange.of(handled.asked, answer, asked_at=handled.began_ns / 1e9, secrets=secrets)
        _keep(self.exchanges, call_key(call), kept, REMEMBERED_EXCHANGES)

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
            claims, is_stranger, dialled = await self._admit(websocket, provider, token)
            announced = claims.call if claims is not None else None
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
        name = provider.name if provider is not None else ""
        place = await self.take_place(
            websocket, announced, log, "stream", provider=name, is_stranger=is_stranger, claims=claims
        )
        if place is None:
            return
        key = call_key(announced) if announced is not None else None
        meter = StreamMeter(place, self.minutes, self.numbers, dialled_key(dialled) if dialled is not None else key)
        closing = ExitStack()
        closing.callback(place.close)
        closing.callback(meter.end)
        if announced is not None:
            self.auth.stream_started(call_key(announced))
            closing.callback(self.auth.stream_ended, call_key(announced))
            self.fleet.tell_stream(announced, dialled)
        admitted = AdmittedStream(
            provider=provider,
            announced=announced,
            is_stranger=is_stranger,
            dialled=dialled,
            traceparent=self.traceparents.pop(call_key(announced), "") if announced is not None else "",
            exchange=self.exchanges.pop(call_key(announced), None) if announced is not None else None,
            on_started=partial(self._begin, meter),
            on_closed=closing.close,
        )
        try:
            await (self.crew or self).serve_stream(websocket, admitted)
        finally:
            closing.close()
            place.release()

    async def serve_stream(self, websocket: WebSocket, admitted: AdmittedStream) -> None:
        """Accept a stream, and run the bot for it."""
        provider, announced = admitted.provider, admitted.announced
        log = logger.bind(call=announced.call_id) if announced is not None else logger.bind(call="-")
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
            verified=not admitted.is_stranger,
            dialled=admitted.dialled,
            traceparent=admitted.traceparent,
            exchange=admitted.exchange,
            on_started=admitted.on_started,
            on_closed=admitted.on_closed,
            logger=log,
        )
        admitted.on_session(session)
        await self.run_session(session)

    async def _begin(self, meter: StreamMeter, call: Call) -> Refusal | None:
        """Count a stream that has started, and return why its call is refused, which was not known before."""
        refusal = meter.start(call)
        if refusal is not None:
            self.note_refused("stream", refusal.reason, call.provider)
        return refusal

    async def _admit(
        self, websocket: WebSocket, provider: Server | None, token: str | None
    ) -> tuple[TokenClaims | None, bool, DialledCall | None]:
        """
        Return what the stream's token says, whether it is a stranger's stream, and what we dialled.

        Without a token nothing is said. A stranger's stream is one whose webhook was not signed, or that came by a
        public address without a token.

        Raises:
            TokenError: If a token is missing or bad.
        """
        bad_token: TokenError | None = None
        if token is not None and provider is not None:
            try:
                claims = await self.auth.redeem(token, provider.name)
            except TokenError as error:
                bad_token = error
            else:
                dialled = self.dialled.by_token(claims.dialled) if claims.dialled else None
                if claims.dialled and dialled is None:
                    raise TokenError("the stream is of a call that this server no longer knows")
                return claims, not claims.verified, dialled
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


@dataclass(slots=True)
class _Webhook:
    """What is counted of a webhook: whose it is, and ``answered`` or ``busy`` if it announced a call."""

    provider: str = ""
    answer: str = "acknowledged"
    #: When it came, in nanoseconds of Unix time.
    began_ns: int = field(default_factory=time.time_ns)
    #: The request itself, once it is known whose it is.
    asked: WebhookRequest | None = field(default=None, repr=False)

    @classmethod
    def of(cls, request: Request) -> _Webhook:
        """Return what is known of a request."""
        if not hasattr(request.state, "webhook"):
            request.state.webhook = cls()
        known: _Webhook = request.state.webhook
        return known

    def outcome(self, status: int) -> str:
        """Return which of :data:`~wsvoice.runner.metrics.WEBHOOK_OUTCOMES` it had."""
        if status < 300:
            return self.answer
        return "challenged" if status == 401 else "refused" if status < 500 else "failed"


def create_switchboard(
    bot: Bot | None,
    config: RunConfig | None = None,
    providers: dict[str, Server] | None = None,
    fleet: Fleet | None = None,
) -> Switchboard:
    """
    Return a switchboard for `bot`, with pipecat patched for it; without a bot, one for workers to run it.

    What is left out is as the settings say.
    """
    config = config or RunConfig()
    if providers is None:
        providers = served_providers(config)
    if bot is not None:
        from wsvoice.runner.pipecat.patches import install

        install(config.disabled_patches)
    switchboard = Switchboard(bot, config, providers, fleet)
    for text in switchboard.busy_messages.warnings(config, providers.values()):
        logger.warning("{}", text)
    return switchboard


def _keep(remembered: OrderedDict[CallKey, ValueT], call: CallKey, value: ValueT, limit: int) -> None:
    """Remember one more, and forget the oldest if there are too many."""
    remembered[call] = value
    if len(remembered) > limit:
        remembered.popitem(last=False)


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
