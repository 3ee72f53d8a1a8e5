"""``wsvoice dial +1...``: a real call, from a number of the user's to anybody, with a bot on our end."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import typer

from wsvoice.call import AnsweredBy, Stage, plural
from wsvoice.cli.output import LOG_LINES, Output
from wsvoice.cli.signals import finishing, interrupted_by_signals, placing_calls
from wsvoice.config import (
    DIAL_KEY,
    RealCallConfig,
    Resolved,
    Voicemail,
    resolve_run,
    state_folder,
    with_from_number,
)
from wsvoice.errors import ApiError, DialError, UsageError, WsvoiceError

if TYPE_CHECKING:
    from wsvoice.call import Cause
    from wsvoice.dial.served_bot import ServedBot
    from wsvoice.phone.dialling import CallEvent, CallOrder, CallRecord, CallServer, OrderedCall
    from wsvoice.providers.account import Account

#: How long a bot may take to be imported and served, tunnel included, and to stop.
START_TIMEOUT_S, STOP_TIMEOUT_S = 90.0, 10.0
#: How long the end of a call is waited for that was hung up.
END_TIMEOUT_S = 10.0
#: How long the public address may take to say who answers there.
ADDRESS_TIMEOUT_S = 5.0
#: How long after the last ring a call may be heard of that may have been placed.
RING_GRACE_S = 10.0

#: Less than that is none: the stream has begun, and nothing more.
_LEAST_AUDIO_S = 0.05

_INTERRUPTED = "interrupted"
_STAGE_STYLES = {"answered": "green", "busy": "red", "no-answer": "red", "failed": "red", "canceled": "red"}
#: What is said of a call that has come so far, and of who answered it: the same for every provider.
_STAGES: Mapping[Stage, str] = {
    "queued": "queued",
    "ringing": "ringing",
    "answered": "answered",
    "completed": "the call has ended",
    "busy": "busy",
    "no-answer": "no answer",
    "failed": "the call failed",
    "canceled": "the call was canceled",
}
_WHO: Mapping[AnsweredBy, str] = {"human": "a human", "machine": "a machine", "fax": "a fax", "unknown": "somebody"}
#: Who ended a call, where that is not the name of somebody.
_ENDERS = {"caller": "the other side", "error": "an error"}


def dial_number(
    output: Output, resolved: Resolved[RealCallConfig], environ: Mapping[str, str], *, verbose: bool, quiet: bool
) -> None:
    """Place the call, print what becomes of it, and end with that as the exit code."""
    call = _RealCall(output, resolved, environ, verbose=verbose, quiet=quiet)
    config = resolved.config
    with placing_calls(output, f"Calling {config.to_number}", call.show_log):
        try:
            with interrupted_by_signals():
                asyncio.run(call.run())
        except KeyboardInterrupt:
            call.show_report()
            raise
    call.show_report()
    if call.failure is not None:
        raise typer.Exit(1)


class _RealCall:
    """
    The call and the server that places it.

    Attributes:
        failure: Why it did not go well, once it is over; ``None`` if it did.
    """

    def __init__(
        self,
        output: Output,
        resolved: Resolved[RealCallConfig],
        environ: Mapping[str, str],
        *,
        verbose: bool,
        quiet: bool,
    ) -> None:
        self.failure: str | None = _INTERRUPTED
        self._output = output
        self._resolved = resolved
        self._environ = environ
        self._verbose = verbose
        self._quiet = quiet
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._events: list[CallEvent] = []
        self._ordered: OrderedCall | None = None
        self._causes: Sequence[Cause] = ()

    async def run(self) -> None:
        """Place the call, and follow it to its end; if it is cancelled, it is hung up."""
        if self._resolved.config.bot is None:
            server, config = self._running_server()
            record = await self._call(server, order_of(config))
        else:
            async with self._served_bot(self._resolved.config.bot) as (server, config, bot, account):
                try:
                    record = await self._call(server, order_of(config))
                except DialError as error:
                    raise await self._explained(error, bot, account) from None
                self._causes = bot.causes(record.call_id)
        self.failure = failure_of(record, self._resolved.config.voicemail, self._causes)

    def _running_server(self) -> tuple[CallServer, RealCallConfig]:
        """Return the server that runs already, and the call that it is asked for."""
        from wsvoice.http import is_loopback
        from wsvoice.phone.dialling import CallServer
        from wsvoice.phone.runs import choose_server, running_servers

        config = self._resolved.config
        for option in ("proxy", "tunnel"):
            if self._resolved.origins[option].startswith("flag"):
                hint = "add `--bot bot.py`, or leave it out"
                raise UsageError(f"--{option} is the public address of a bot that is served for the call", hint=hint)
        servers = running_servers(state_folder({**self._resolved.dotenv, **self._environ}))
        key = config.credentials.get(DIAL_KEY)
        server = choose_server(servers, url=config.server, provider=config.transport, key=key)
        parts = urlsplit(server.url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            self._output.warning(
                f"the key is sent to {parts.netloc} without encryption: whoever sees it can place calls"
            )
        provider = config.transport or (server.providers[0] if len(server.providers) == 1 else None)
        return CallServer(server.url, server.key), with_from_number(self._resolved, provider, environ=self._environ)

    @asynccontextmanager
    async def _served_bot(self, spec: str) -> AsyncIterator[tuple[CallServer, RealCallConfig, ServedBot, Account]]:
        """Serve a bot for the call while the context lasts; the account is the one that the call goes through."""
        from wsvoice.dial.served_bot import ServedBot, real_call_environment
        from wsvoice.phone.accounts import account_for_calls, limits_of
        from wsvoice.phone.dialling import CallServer

        config = self._resolved.config
        if config.server is not None:
            raise UsageError("--bot serves a bot of its own, and --server names another", hint="leave one of them out")
        account = account_for_calls(config.transport, config.credentials)
        config = with_from_number(self._resolved, account.name, environ=self._environ)
        options = listening_options(config, self._environ)
        # Wrong credentials are told before anything is served, too.
        self._note_limits(account.title, await limits_of(account))
        key = secrets.token_urlsafe(32)
        environ = real_call_environment(self._environ, key)
        served = ServedBot(
            *(spec, account.name, {}, environ),
            options=options,
            on_line=self._show_line,
            start_timeout_s=START_TIMEOUT_S,
            stop_timeout_s=STOP_TIMEOUT_S,
        )
        try:
            await served.start()
            try:
                await served.ready()
            except DialError as error:
                if served.has_told:
                    self._log.clear()
                # Its last words are in the log.
                raise DialError(error.message.partition("\n")[0].rstrip(":"), hint=error.hint) from None
            await self._look_at_address(served)
            yield CallServer(served.url, key), config, served, account
        finally:
            await served.stop()

    async def _look_at_address(self, served: ServedBot) -> None:
        """Warn of a public address that cannot be seen from here; :exc:`DialError` if it certainly leads elsewhere."""
        from wsvoice.phone.health import doubt_about

        try:
            doubt = await doubt_about(served.announced_url, served.url, timeout_s=ADDRESS_TIMEOUT_S)
        except DialError:
            # There is nothing about it in the log.
            self._log.clear()
            raise
        if doubt:
            public_url = served.announced_url.rstrip("/")
            self._output.warning(f"it cannot be seen from here whether {public_url} leads to the bot: {doubt}")

    async def _call(self, server: CallServer, order: CallOrder) -> CallRecord:
        self._ordered = ordered = server.order(order)
        placing = asyncio.create_task(ordered.place())
        try:
            await asyncio.shield(placing)
            self._show_limits(ordered)
            return await ordered.follow(self._show_event)
        except asyncio.CancelledError:
            with finishing():
                await self._hang_up(ordered, placing)
            raise
        except ApiError as error:
            # The server's log says the same.
            self._log.clear()
            if error.kind == "uncertain" and self._resolved.config.bot is not None:
                return await self._outlive(ordered, order.ring_timeout_s + RING_GRACE_S, error)
            raise

    async def _outlive(self, ordered: OrderedCall, wait_s: float, error: ApiError) -> CallRecord:
        """
        Serve the bot, whose server ends the call if it was placed, until it would have stopped to ring.

        The call is returned if it was; else `error` is raised.
        """
        self._output.warning(
            f"nobody knows whether the call was placed; the bot is served for up to {wait_s:g} s, to end it if it was"
        )
        try:
            async with asyncio.timeout(wait_s):
                return await ordered.follow(self._show_event)
        except (TimeoutError, DialError):
            raise error from None

    async def _hang_up(self, ordered: OrderedCall, placing: asyncio.Task[None]) -> None:
        """End the call, which may be placed at this moment, and say what comes of it."""
        if ordered.record.has_ended:
            return
        if not self._quiet:
            self._output.line("hanging up", style="bold")
        try:
            goes_on = await ordered.hang_up()
            if goes_on:
                self._output.warning(f"the call {goes_on}")
                return
            async with asyncio.timeout(END_TIMEOUT_S):
                await placing
                if ordered.is_placed:
                    await ordered.follow(self._show_event)
                elif not self._quiet:
                    self._output.line("the call was withdrawn")
        except TimeoutError:
            self._output.warning(f"the call was hung up, and has not ended within {END_TIMEOUT_S:g} s")
        except WsvoiceError as error:
            self._output.failure(error)
        finally:
            placing.cancel()
            await asyncio.gather(placing, return_exceptions=True)

    def _show_limits(self, ordered: OrderedCall) -> None:
        """Print what the account cannot do, as the server that runs already tells it."""
        from wsvoice.providers import PROVIDERS, load_company

        if self._resolved.config.bot is None and ordered.record.provider in PROVIDERS:
            self._note_limits(load_company(ordered.record.provider).title, ordered.limits)

    def _note_limits(self, title: str, limits: Sequence[str]) -> None:
        for limit in limits if not self._quiet else ():
            self._output.note(f"{title}'s trial account: {limit}")

    async def _explained(self, error: DialError, bot: ServedBot, account: Account) -> DialError:
        """Return why the bot's server is gone, and end the call of which it knew; `error` if it is not gone."""
        death = await bot.exit_message(within_s=1.0)
        if death is None:
            return error
        from wsvoice.phone.accounts import hang_up

        hint = error.hint
        if self._ordered is not None and (call_id := self._ordered.record.call_id):
            with suppress(ApiError):
                await hang_up(account, call_id)
                hint = f"the call was hung up by {account.title}'s API"
        # Its last words are in the log.
        return DialError(death.partition("\n")[0].rstrip(":"), hint=hint)

    def _show_event(self, event: CallEvent) -> None:
        words = words_of(event, self._events[-1] if self._events else None)
        self._events.append(event)
        if words and not self._quiet:
            style = _STAGE_STYLES.get(event.stage or "", "")
            self._output.moment(event.at_s, words, style="yellow" if event.answered_by == "machine" else style)

    def _show_line(self, line: str) -> None:
        if self._verbose and not self._quiet:
            self._output.log_line(line)
        else:
            self._log.append(line)

    def show_log(self) -> None:
        """Print what the bot's server has logged last."""
        if not self._quiet:
            self._output.last_lines("bot's", self._log)
        self._log.clear()

    def show_report(self) -> None:
        """Print what became of the call, without a verdict if it was interrupted; nothing if none was placed."""
        if self._ordered is None or not self._ordered.is_placed:
            return
        record = self._ordered.record
        data = {
            "verdict": "failed" if self.failure else "completed",
            "failure": self.failure,
            **record.to_dict(),
            "events": [
                {"at_s": each.at_s, "stage": each.stage, "answered_by": each.answered_by, "text": each.text}
                for each in self._events
            ],
            "causes": [str(cause) for cause in self._causes],
        }
        if self._resolved.config.as_json:
            self._output.data(data)
        *lines, verdict = report_lines(record, self._causes, self.failure)
        if self._causes:
            self.show_log()
        if not self._quiet:
            self._output.lines(lines)
        if self.failure != _INTERRUPTED and not (self._quiet and self._resolved.config.as_json):
            self._output.verdict(verdict)


def order_of(config: RealCallConfig) -> CallOrder:
    """Return what the server is asked for."""
    from wsvoice.phone.dialling import CallOrder

    assert config.from_number is not None
    return CallOrder(
        config.to_number,
        config.from_number,
        config.transport,
        config.parameters,
        math.ceil(config.ring_timeout_s),
        None if config.time_limit_s is None else math.ceil(config.time_limit_s),
        config.detection,
        config.voicemail,
    )


def listening_options(config: RealCallConfig, environ: Mapping[str, str]) -> list[str]:
    """
    Return the options of ``wsvoice run`` with which a bot is served for a real call.

    Raises:
        UsageError: If it has no public address.
    """
    address = {"proxy": config.proxy, "tunnel": config.tunnel, "tunnel-domain": config.tunnel_domain}
    options = [word for name, value in address.items() if value for word in (f"--{name}", value)]
    # The server reads the project's settings too, where a public address may be.
    flags = {"bot": config.bot, "transport": config.transport, **address}
    served = resolve_run(flags, environ=environ, cwd=Path.cwd()).config
    if served.tunnel:
        # A domain's proxy expects the port that is set; a tunnel takes any.
        return [*options, "--host", "127.0.0.1", "--port", "0"]
    if not served.proxy:
        raise UsageError(
            "a real call needs a public address, where the provider reaches the bot",
            hint="add `--tunnel ngrok`, or `-x DOMAIN` with the domain of a proxy in front of this machine",
        )
    return options


def words_of(event: CallEvent, before: CallEvent | None) -> str:
    """Return what has changed with an event, in words that are the same for every provider; else what it says."""
    stage = event.stage if before is None or event.stage != before.stage else None
    who = event.answered_by if before is None or event.answered_by != before.answered_by else None
    if stage == "answered" and who is not None:
        return f"answered by {_WHO[who]}"
    told = [_STAGES[stage]] if stage is not None else []
    told += [f"{_WHO[who]} answered"] if who is not None else []
    return ", ".join(told) or event.text


def failure_of(record: CallRecord, voicemail: Voicemail, causes: Sequence[Cause]) -> str | None:
    """Return why a call that is over did not go well; ``None`` if it did."""
    if voicemail == "hang-up" and record.answered_by in ("machine", "fax"):
        return f"{_WHO[record.answered_by]} answered"
    if record.stage in ("busy", "no-answer"):
        return _STAGES[record.stage]
    if record.stage != "completed":
        return f"{_STAGES[record.stage]} ({record.cause})" if record.cause else _STAGES[record.stage]
    raised = next((cause for cause in causes if cause.kind == "exception"), None)
    if raised is None and record.ended_by != "error":
        return None
    return f"the bot crashed: {raised}" if raised else "the bot crashed"


def report_lines(record: CallRecord, causes: Sequence[Cause], failure: str | None) -> list[str]:
    """Return a call's report in words, one line an item; the verdict is the last."""
    lines = []
    if record.response_s:
        waits = sorted(record.response_s)
        times = f"after {waits[0]:.1f} s"
        if len(waits) > 1:
            times = f"after {waits[len(waits) // 2]:.1f} s (median), {waits[-1]:.1f} s at most"
        lines.append(f"bot: {plural(len(waits), 'answer')}, {times}")
    heard_s, sent_s = record.heard_s or 0.0, record.sent_s or 0.0
    if max(heard_s, sent_s) >= _LEAST_AUDIO_S:
        lines.append(f"audio: {heard_s:.1f} s heard, {sent_s:.1f} s sent")
    lines += [f"in the bot: {cause}" for cause in causes if str(cause) not in (failure or "")]
    if record.recording:
        lines.append(f"recording: {record.recording}")
    facts = []
    if record.duration_s is not None and record.stage == "completed":
        facts.append(f"{record.duration_s:.1f} s")
    # Of a call that nobody answered, the stage says it.
    if record.ended_by and record.stage not in ("busy", "no-answer"):
        facts.append(f"ended by {_ENDERS.get(record.ended_by, f'the {record.ended_by}')}")
    if re.search("[1-9]", record.price):
        facts.append(f"cost {record.price}")
    told = ", ".join(facts)
    if failure:
        return [*lines, *([f"call: {told}"] if told else []), f"failed: {failure}"]
    return [*lines, f"completed: {told}" if told else "completed"]
