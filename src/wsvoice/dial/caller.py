"""
The simulated caller: places a call to a bot, exactly as its provider would, and reports how it went.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wsvoice.config import DialConfig
from wsvoice.dial.answer import ask
from wsvoice.dial.clock import Clock, MonotonicClock
from wsvoice.dial.conversation import Conversation, Patience
from wsvoice.dial.journal import Journal
from wsvoice.dial.report import CallReport, TimelineEvent
from wsvoice.dial.rest import FakeRestApi, ReadsHangUps
from wsvoice.dial.script import Turn, load_turns
from wsvoice.dial.serve import PUBLIC_HOST, START_TIMEOUT_S, ServedBot, bot_environment
from wsvoice.dial.target import Detour, Target, parse_target
from wsvoice.errors import DialError, UsageError
from wsvoice.http import failure_kind, is_loopback
from wsvoice.providers import load_provider
from wsvoice.providers.base import Provider, StreamRequest

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

#: The largest message that is taken from a bot, in bytes; ten minutes of audio in base64 fit.
MESSAGE_LIMIT = 16 * 1024 * 1024

# https://www.twilio.com/docs/api/errors
_TWILIO_ERRORS = {"timeout": "31901", "tls": "31910", "upgrade": "31920"}


@dataclass(frozen=True, slots=True)
class Limits:
    """
    How long the caller waits, as a provider does.

    Attributes:
        webhook_warn_s: A webhook that takes longer is a finding.
        webhook_s: A webhook that takes longer fails the call.
        connect_s: For the WebSocket to open.
        start_s: For a bot to be imported and served.
        patience: In the conversation.
    """

    webhook_warn_s: float = 2.0
    webhook_s: float = 15.0
    connect_s: float = 10.0
    start_s: float = START_TIMEOUT_S
    patience: Patience = field(default_factory=Patience)


def _ignore(event: TimelineEvent) -> None:
    pass


async def dial(
    config: DialConfig,
    *,
    on_event: Callable[[TimelineEvent], None] = _ignore,
    clock: Clock | None = None,
    limits: Limits | None = None,
) -> CallReport:
    """
    Place a simulated call.

    What goes wrong at the other end is in the report, whose verdict is then ``failed``. A cancellation hangs up
    in good order, writes the recording, and goes on.

    Args:
        config: Whom to call, and what to say.
        on_event: Told what happens, as it happens.
        clock: What the call's media run by; the system's clock unless given.
        limits: How long to wait for the other end.

    Raises:
        UsageError: If the call could not be placed because of what the user asked for.
    """
    target = parse_target(config.target)
    turns = load_turns(config.audio, config.dtmf)
    if config.record is not None:
        _check_recording(config.record)
    clock = clock or MonotonicClock()
    caller = _Caller(config, target, turns, Journal(on_event, clock), clock, limits or Limits())
    return await caller.call()


def _check_recording(path: Path) -> None:
    # After a minute's call it is late to find out that there is nowhere to put it.
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: its folder does not exist", hint="make the folder first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"give a file: {path / 'call.wav'}")


def _shortened(url: str) -> str:
    """Return `url` for a line of the timeline; a stream's token is long, and no use to a reader."""
    return url if len(url) <= 80 else f"{url[:77]}..."


class _Caller:
    """One call, from the webhook to the report."""

    def __init__(
        self,
        config: DialConfig,
        target: Target,
        turns: list[Turn],
        journal: Journal,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._config = config
        self._target = target
        self._turns = turns
        self._journal = journal
        self._clock = clock
        self._limits = limits
        self._secret = secrets.token_hex(16)
        self._provider = self._load_provider()
        served = target.kind == "bot"
        self._call = self._provider.new_call(
            from_number=config.from_number,
            to_number=config.to_number,
            # A served bot gets them from its server, which puts them into the answer.
            parameters={} if served else config.parameters,
            seed=secrets.token_bytes(32),
        )
        self._served: ServedBot | None = None
        self._detour: Detour | None = None
        self._conversation: Conversation | None = None
        self._rest_hung_up = False
        self._report = CallReport(provider=self._provider.name, target=config.target, call_id=self._call.call_id)

    def _load_provider(self) -> Provider:
        name = self._config.transport
        provider = load_provider(name, self._config.credentials)
        if self._target.kind == "bot":
            # The secret that the served bot is given; the real one stays out of the call.
            provider = load_provider(name, {provider.credential_names[0]: self._secret})
        return provider

    async def call(self) -> CallReport:
        """Place the call and return its report."""
        failure: str | None = None
        async with AsyncExitStack() as stack:
            try:
                await self._place(stack)
            except DialError as error:
                failure = error.message
            failure = await self._death(failure) or failure
        report = self._report
        findings = self._journal.findings
        failure = failure or report.failure
        if failure is None and (found := findings.first_failure()):
            failure = found.message
        return replace(report, verdict="failed" if failure else "passed", failure=failure, findings=findings.all())

    async def _death(self, failure: str | None) -> str | None:
        """Return the failure of a bot's process that has ended by itself, which explains all others."""
        if self._served is None:
            return None
        # The broken connection may be noticed a moment before the end of the process that broke it.
        broken = failure is not None or self._report.close_code == 1006
        return await self._served.death(within_s=1.0 if broken else 0.0)

    async def _place(self, stack: AsyncExitStack) -> None:
        config, journal = self._config, self._journal
        url = self._target.value
        if self._target.kind == "bot":
            url = await self._serve(stack)
        if self._target.kind == "stream":
            request = StreamRequest(url=url, parameters=config.parameters)
        else:
            if config.parameters and self._target.kind == "webhook":
                journal.tell("note", "--param is not used: a webhook's own answer names the parameters")
            request = await self._ask(url)
        socket = await self._connect(request)
        conversation = self._conversation = Conversation(
            socket,
            self._provider,
            self._call,
            request,
            self._turns,
            config,
            journal=journal,
            clock=self._clock,
            patience=self._limits.patience,
        )
        if self._rest_hung_up:
            conversation.hang_up()
        try:
            await conversation.run()
        finally:
            if conversation.over:
                self._report = conversation.complete(self._report)
                self._save(conversation)

    def _save(self, conversation: Conversation) -> None:
        try:
            self._report = replace(self._report, recording=conversation.record())
        except OSError as error:
            text = f"the recording cannot be written to {self._config.record}: {error.strerror or error}"
            self._journal.tell("note", text)
            self._report = replace(self._report, failure=self._report.failure or text)

    async def _serve(self, stack: AsyncExitStack) -> str:
        journal, provider = self._journal, self._provider
        api_url = None
        if isinstance(provider, ReadsHangUps):
            api = FakeRestApi(provider, self._call.call_id, self._hang_up_by_rest, journal)
            api_url = (await stack.enter_async_context(api)).url
        environ = bot_environment(os.environ, provider, self._secret, api_url)
        bot = self._target.value
        journal.tell("note", f"serving {bot}")
        served = self._served = ServedBot(
            bot,
            provider.name,
            self._config.parameters,
            environ,
            on_line=lambda line: journal.tell("log", line),
            start_timeout_s=self._limits.start_s,
        )
        await stack.enter_async_context(served)
        self._detour = Detour(PUBLIC_HOST, served.url)
        url = f"https://{PUBLIC_HOST}/"
        journal.tell("note", f"{bot} is served at {served.url}, which stands for {url}")
        return url

    def _hang_up_by_rest(self) -> None:
        self._rest_hung_up = True
        if self._conversation is not None:
            self._conversation.hang_up()

    async def _ask(self, url: str) -> StreamRequest:
        config, journal, limits = self._config, self._journal, self._limits
        request, elapsed_ms = await ask(
            self._provider,
            self._call,
            url,
            method=config.method,
            journal=journal,
            warn_s=limits.webhook_warn_s,
            timeout_s=limits.webhook_s,
            detour=self._detour,
        )
        self._report = replace(self._report, webhook_ms=elapsed_ms)
        for verb in request.skipped:
            journal.tell("note", f"a real call would do first: {verb}")
        # On this machine there is no TLS, and the same server has it once it has a public address.
        local = request.url.startswith("ws://") and is_loopback(urlsplit(request.url).hostname or "")
        for found in request.findings:
            if local and "ws://" in found.message:
                journal.tell("note", found.message)
            else:
                journal.find(found.id, found.level, found.message)
        if config.force_ws and request.url.startswith("wss://"):
            request = replace(request, url="ws://" + request.url.removeprefix("wss://"))
            journal.tell("answer", f"the stream is {_shortened(request.url)} (ws:// instead of wss://, as asked)")
        else:
            journal.tell("answer", f"the stream is {_shortened(request.url)}")
        return request

    async def _connect(self, request: StreamRequest) -> ClientConnection:
        # Takes 50 ms to import, which a mistake on the command line need not wait for.
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException

        class Connect(connect):
            """Takes a redirect for the refusal that it is to a provider."""

            def process_redirect(self, exc: Exception) -> Exception | str:
                return exc

        headers = {**self._provider.upgrade_headers(request.url, now=time.time()), **request.headers}
        url = self._detour.apply(request.url) if self._detour else request.url
        began = time.monotonic()
        try:
            socket = await Connect(
                url,
                additional_headers=headers,
                # The provider's own name is among the headers, and it offers nothing else.
                user_agent_header=None,
                compression=None,
                proxy=None if is_loopback(urlsplit(url).hostname or "") else True,
                open_timeout=self._limits.connect_s,
                close_timeout=self._limits.patience.close_s,
                ping_interval=None,
                max_size=MESSAGE_LIMIT,
            )
        except InvalidStatus as error:
            raise self._upgrade_refused(error.response.status_code) from error
        except (InvalidURI, ValueError) as error:
            raise DialError(f"the stream's URL {url[:200]} cannot be dialled: {error}") from error
        except TimeoutError as error:
            seconds = f"{self._limits.connect_s:g} s"
            raise self._no_stream(f"the stream at {url} did not open within {seconds}", "timeout") from error
        except (OSError, EOFError, WebSocketException) as error:
            raise self._not_connected(error, url) from error
        elapsed_ms = (time.monotonic() - began) * 1000
        self._report = replace(self._report, connect_ms=elapsed_ms, stream_id=self._call.stream_id)
        self._journal.tell("connected", f"the WebSocket is open after {elapsed_ms:.0f} ms")
        return socket

    def _upgrade_refused(self, status: int) -> DialError:
        why = {
            401: " (it wants credentials)",
            403: " (a stream token that is missing, used or too old, or a signature that does not match)",
            404: " (nothing takes streams at this path)",
            426: " (nothing takes WebSockets at this path)",
            503: " (every place is taken, or the server is stopping)",
        }.get(status, "")
        return self._no_stream(f"the stream was refused: {status} to the WebSocket's upgrade{why}", "upgrade")

    def _not_connected(self, error: Exception, url: str) -> DialError:
        host = urlsplit(url).hostname or url
        kind = failure_kind(error)
        if kind == "refused":
            return self._no_stream(f"nothing listens for streams at {url}", "upgrade")
        if kind == "dns":
            return self._no_stream(f"the stream's host {host} is unknown", "upgrade")
        reason = (str(error) or type(error).__name__)[:200]
        if url.startswith("wss://"):
            mend = "; is it a plain ws:// server? dial with --force-ws" if is_loopback(host) else ""
            return self._no_stream(f"no TLS connection to {host} for the stream: {reason}{mend}", "tls")
        return self._no_stream(f"the stream at {url} did not open: {reason}", "upgrade")

    def _no_stream(self, message: str, kind: str) -> DialError:
        code = _TWILIO_ERRORS[kind] if self._provider.name == "twilio" else None
        if code:
            message = f"{message}; Twilio reports this as error {code}"
        self._journal.find("S1", "fail", message)
        return DialError(message)
