"""One test call: calls a bot as its provider would, and reports how it went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.call import Cause
from wsvoice.dial.addresses import AddressPolicy, HostOverride, shortened, stream_address
from wsvoice.dial.call_control import CallControl
from wsvoice.dial.caller_bot_audio import CallerBotAudio
from wsvoice.dial.conversation import Conversation
from wsvoice.dial.report import CallReport, name_causes
from wsvoice.dial.script import Clip, Script, load_turns
from wsvoice.dial.served_bot import PUBLIC_HOST, ServedBot
from wsvoice.dial.serving import Serving
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.target import Target
from wsvoice.dial.webhook import Webhook, no_stream
from wsvoice.errors import DialError, HttpError, RemoteProtocolError, UsageError
from wsvoice.http import failure_kind, is_loopback
from wsvoice.providers.base import Progress, StreamRequest
from wsvoice.providers.urls import split_credentials
from wsvoice.speech import speak

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from wsvoice.dial.caller_bot import CallerBot

#: The largest message that a bot may send, in bytes: ten minutes of audio in base64.
MESSAGE_LIMIT = 16 * 1024 * 1024
#: How many messages are read ahead; a bot that sends more has to wait.
MESSAGES_QUEUED = 2
#: How long to wait for the server to write why a call failed: it may have been blocked until the hang-up.
CAUSE_GRACE_S = 0.3


def _load_libraries() -> None:
    """Import what the call begins with, while there is time."""
    import websockets.asyncio.client  # noqa: F401

    http.load()


def _speak(texts: Sequence[str], voice: str) -> list[Clip]:
    return [Clip(f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."', *speak(text, voice)) for text in texts]


class PlacedCall:
    """One call, from the webhook to the report."""

    def __init__(self, setup: CallSetup, target: Target, bot: CallerBot | None, serving: Serving | None) -> None:
        self._setup = setup
        self._config = config = setup.config
        self._timeline = setup.timeline
        self._timeouts = setup.timeouts
        self._target = target
        self._turns = [] if bot else load_turns(config.audio, config.dtmf, _speak(config.say, config.voice))
        if serving is None and setup.behaviour.by_commands:
            raise UsageError(
                "a call that is answered through the provider's API needs a simulated API, unknown to a running server",
                hint="dial the bot's file: it is served with the simulated API's address",
            )
        self._bot = bot
        self._serving = serving
        self._provider = setup.provider
        self._call = serving.call if serving is not None else setup.new_call()
        self._addresses = AddressPolicy(target.value, allow_private=config.allow_private)
        self._webhook: Webhook | None = None
        self._call_control: CallControl | None = None
        self._conversation: Conversation | None = None
        self._untested: list[str] = []
        self._report = CallReport(provider=self._provider.name, target=config.target, call_id=self._call.call_id)

    async def call(self, on_passed: Callable[[CallReport], None]) -> CallReport:
        """
        Place the call and return its report.

        Args:
            on_passed: Called with the report of a call that has passed, before the bot's process is stopped.
        """
        failure: str | None = None
        async with AsyncExitStack() as stack:
            if self._serving is not None:
                stack.push_async_callback(self._serving.stop)
            try:
                await self._place(stack)
            except DialError as error:
                failure = error.message
            finally:
                self._timeline.flush()
            failure = await self._process_failure(failure) or failure
            if self._call_control is not None:
                await self._call_control.finish()
            report = self._judge(failure)
            # Nothing that the bot does now changes the report, but its log may explain a failure.
            if report.verdict == "passed":
                on_passed(report)
        return report

    def _judge(self, failure: str | None) -> CallReport:
        """Return the report of the call, which is over."""
        report, findings = self._report, self._timeline.findings
        if failure is None and report.failure is not None:
            failure = name_causes(report.failure, report.causes)
        if failure is None and (found := findings.first_failure()):
            failure = found.message
        return replace(
            report,
            verdict="failed" if failure else "passed",
            failure=failure,
            findings=findings.all(),
            untested=tuple(self._untested),
        )

    async def _process_failure(self, failure: str | None) -> str | None:
        """Return how the bot's process ended if it ended by itself, which explains every other failure."""
        if self._serving is None:
            return None
        # A broken connection may be noticed before the end of the process that broke it.
        broken = failure is not None or self._report.close_code == 1006
        return await self._serving.bot.exit_message(within_s=1.0 if broken else 0.0)

    async def _place(self, stack: AsyncExitStack) -> None:
        config, timeline = self._config, self._timeline
        url = self._target.value
        if self._serving is not None:
            url = await self._await_bot(self._serving.bot)
        if self._target.kind != "stream" and not self._provider.has_webhook:
            url = stream_address(url, self._provider.name)
        if self._target.kind == "stream" or not self._provider.has_webhook:
            # Without an answer that names a format, it is the provider's default.
            usual = self._provider.stream()
            address, credentials = split_credentials(url)
            request = StreamRequest(
                url=address,
                headers=credentials,
                parameters=self._call.parameters,
                format=self._setup.behaviour.leg_format or usual.format,
                outbound_format=usual.outbound_format,
            )
        else:
            if config.parameters and self._target.kind == "webhook":
                timeline.add("note", "--param is not used: a webhook's own answer names the parameters")
            self._webhook = Webhook(self._setup, url, self._addresses)
            self._call_control = CallControl(self._setup, self._webhook)
            # Before the server is stopped: it gets the status callbacks.
            stack.push_async_callback(self._call_control.finish)
            request = await self._ask_webhook(self._webhook, self._call_control)
        try:
            socket = await self._connect(request)
        except DialError as error:
            if self._call_control is not None:
                self._call_control.send_status(self._call, request, "failed", error=error.message)
            raise
        if self._serving is not None:
            self._serving.api.status = "in-progress"
        await self._progress("answered")
        await self._hold_conversation(request, socket)
        if config.probe and self._webhook is not None and not await self._webhook.probe(self._setup.new_call()):
            self._untested.append("an unsigned webhook: no secret is known, or no answer came")

    async def _hold_conversation(self, request: StreamRequest, socket: ClientConnection) -> None:
        bot_rate = (request.outbound_format or request.format).sample_rate
        detector, sample_rate = SoundDetector(bot_rate), request.format.sample_rate
        bot_audio = CallerBotAudio(detector, sample_rate=sample_rate, heard_rate=bot_rate) if self._bot else None
        speaker = bot_audio or self._script(detector, sample_rate)
        conversation = self._conversation = Conversation(
            self._setup, self._call, request, socket, speaker, self._connect, self._call_control
        )
        try:
            if self._bot is not None and bot_audio is not None:
                self._bot.start(bot_audio, self._call)
            await conversation.run(lambda: self._progress("streaming"))
        finally:
            if self._config.probe and speaker.interrupted_at_ms is None:
                why = speaker.no_interruption_reason or "the call was over before"
                self._untested.append(f"an interruption: {why}")
            if self._bot is not None:
                await self._bot.finish()
            if conversation.is_over:
                self._report = conversation.complete(self._report)
                if self._serving is not None:
                    self._report = replace(self._report, causes=await self._causes(self._serving.bot, conversation))
                if bot_audio is not None and bot_audio.failure:
                    self._report = replace(self._report, failure=bot_audio.failure)
                self._save_recording(conversation)
        await self._progress("ended", self._report.duration_ms / 1000)

    async def _causes(self, served: ServedBot, conversation: Conversation) -> list[Cause]:
        """Return what the server has noted about the call; if the call failed and there is nothing, look twice."""
        causes = served.causes(self._call.call_id, until=conversation.hung_up_at)
        if self._report.failure and not causes:
            await asyncio.sleep(CAUSE_GRACE_S)
            causes = served.causes(self._call.call_id, until=conversation.hung_up_at)
        return causes

    def _script(self, detector: SoundDetector, sample_rate: int) -> Script:
        config = self._config
        clips = [turn for turn in self._turns if isinstance(turn, Clip)]
        return Script(
            self._turns,
            detector,
            sample_rate=sample_rate,
            listen_s=config.listen_s,
            response_timeout_s=config.response_timeout_s,
            interruption=clips[-1] if config.probe and clips else None,
        )

    async def _progress(self, stage: Progress, duration_s: float = 0.0) -> None:
        """Report the call's progress to the webhook, if the provider does."""
        if self._webhook is not None:
            await self._webhook.report_progress(self._call, stage, duration_s)

    def _save_recording(self, conversation: Conversation) -> None:
        try:
            self._report = replace(self._report, recording=conversation.record())
        except OSError as error:
            text = f"the recording cannot be written to {self._config.record}: {error.strerror or error}"
            self._timeline.add("note", text)
            self._report = replace(self._report, failure=self._report.failure or text)

    async def _await_bot(self, served: ServedBot) -> str:
        """Wait until the bot is served, and return its webhook's URL."""
        timeline, bot = self._timeline, self._target.value
        timeline.add("note", f"serving {bot}")
        _load_libraries()
        await served.ready()
        override = HostOverride(PUBLIC_HOST, served.url)
        self._addresses = AddressPolicy(served.url, allow_private=self._config.allow_private, override=override)
        timeline.add("note", f"{bot} is served at {served.url}")
        return f"https://{PUBLIC_HOST}/"

    async def _ask_webhook(self, webhook: Webhook, call_control: CallControl) -> StreamRequest:
        answer = await webhook.announce(self._call)
        by_commands = self._setup.behaviour.by_commands
        request = await (self._await_command() if by_commands else call_control.first(self._call, answer))
        self._report = replace(self._report, webhook_ms=answer.elapsed_ms)
        return call_control.settle(request)

    async def _await_command(self) -> StreamRequest:
        """Wait until the bot's server answers the call through the API."""
        assert self._serving is not None
        limit_s = self._timeouts.webhook_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._serving.api.answered
        except TimeoutError:
            raise DialError(f"the call was announced, but not answered through the API within {limit_s:g} s") from None
        except RemoteProtocolError as error:
            raise no_stream(error, self._timeline) from error

    async def _connect(self, request: StreamRequest) -> ClientConnection:
        # Takes 50 ms to import, so a mistake on the command line is reported first.
        from websockets.asyncio.client import connect
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
        from websockets.typing import Subprotocol

        class Connect(connect):
            """Does not follow redirects, as providers do not."""

            def process_redirect(self, exc: Exception) -> Exception | str:
                return exc

        signed = self._provider.upgrade_headers(request.url, now=time.time())
        headers = {**signed, **request.headers}
        url = self._addresses.local(request.url)
        began = time.monotonic()

        async def open_at(address: str | None) -> ClientConnection:
            pinned: dict[str, Any] = {"host": address} if address else {}
            return await Connect(
                url,
                additional_headers=headers,
                subprotocols=[Subprotocol(self._provider.subprotocol)] if self._provider.subprotocol else None,
                # The provider's own User-Agent is among the headers.
                user_agent_header=None,
                compression=None,
                proxy=None if address or is_loopback(urlsplit(url).hostname or "") else True,
                # The timeout below is for all addresses together.
                open_timeout=None,
                close_timeout=self._timeouts.close_s,
                ping_interval=None,
                max_size=MESSAGE_LIMIT,
                max_queue=MESSAGES_QUEUED,
                **pinned,
            )

        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                addresses = await self._addresses.addresses(url)
                candidates: Sequence[str | None] = [*addresses] or [None]
                for number, address in enumerate(candidates, 1):
                    try:
                        socket = await open_at(address)
                        break
                    except OSError:
                        if number >= len(addresses):
                            raise
        except HttpError as error:
            raise self._no_stream(error.message, "refused", url) from error
        except InvalidStatus as error:
            raise self._upgrade_refused(error.response.status_code) from error
        except (InvalidURI, ValueError) as error:
            raise DialError(f"the stream's URL {url[:200]} cannot be dialled: {error}") from error
        except TimeoutError as error:
            message = f"the stream at {shortened(url)} did not open within {self._timeouts.connect_s:g} s"
            raise self._no_stream(message, "timeout", url) from error
        except (OSError, EOFError, WebSocketException) as error:
            raise self._not_connected(error, url) from error
        elapsed_ms = (time.monotonic() - began) * 1000
        if self._report.connect_ms is None:
            self._report = replace(self._report, connect_ms=elapsed_ms, stream_id=self._call.stream_id)
        self._timeline.add("connected", f"the WebSocket is open after {elapsed_ms:.0f} ms")
        return socket

    def _upgrade_refused(self, status: int) -> DialError:
        why = {
            401: " (it wants credentials)",
            403: " (the stream token is missing, used or too old, or the signature does not match)",
            404: " (there is no stream at this path)",
            426: " (there is no WebSocket at this path)",
            503: " (every place is taken, or the server is stopping)",
        }.get(status, "")
        short = f"the stream was refused: {status}"
        hint = ""
        if not self._provider.has_webhook:
            if status in (401, 403):
                names = " and ".join(self._provider.credential_names)
                why = f" (the password is wrong, or missing) - set {names} as the server has them"
        elif self._target.kind == "stream" and status in (401, 403, 404, 426):
            # Only the webhook's answer has the stream's token.
            parts = urlsplit(self._target.value)
            webhook = parts._replace(scheme=parts.scheme.replace("ws", "http"), path="/", query="").geturl()
            hint = f" - dial the webhook instead: `wsvoice dial {webhook}`"
        text = f"{short} to the WebSocket's upgrade{why}"
        return self._no_stream(text, "refused", hint=hint, short=short)

    def _not_connected(self, error: Exception, url: str) -> DialError:
        host = urlsplit(url).hostname or url
        kind = failure_kind(error)
        if kind == "refused":
            return self._no_stream(f"nothing listens for streams at {shortened(url)}", "refused", url)
        if kind == "dns":
            return self._no_stream(f"the stream's host {host} is unknown", "refused", url)
        reason = (str(error) or type(error).__name__)[:200]
        if url.startswith("wss://"):
            hint = "; is it a plain ws:// server? dial with --force-ws" if is_loopback(host) else ""
            return self._no_stream(f"no TLS connection to {host} for the stream: {reason}{hint}", "tls", url)
        return self._no_stream(f"the stream at {shortened(url)} did not open: {reason}", "refused", url)

    def _dial_hint(self, url: str) -> str:
        """
        Return a hint for a server that was dialled by a local name and names a stream elsewhere.

        A server on this machine names its public host. Behind a proxy or in a container it does not know that its
        caller is on this machine.
        """
        dialled, stream = urlsplit(self._target.value), urlsplit(url)
        if self._target.kind != "webhook" or self._addresses.override is not None or not stream.hostname:
            return ""
        if not is_loopback(dialled.hostname or "") or is_loopback(stream.hostname):
            return ""
        public = f"https://{stream.netloc.rpartition('@')[2]}{dialled.path or '/'}"
        return f" - dial the public address, `wsvoice dial {public}`, or dial on the machine where the server runs"

    def _no_stream(
        self,
        message: str,
        kind: Literal["timeout", "tls", "refused"],
        url: str = "",
        *,
        hint: str = "",
        short: str = "",
    ) -> DialError:
        """Return the error for a stream that did not open, which is a finding too; `short` is the finding's text."""
        if code := self._provider.upgrade_error(kind):
            message = f"{message}; {self._provider.title} reports this as error {code}"
        message += hint or self._dial_hint(url)
        # A later stream is not the webhook's first answer.
        if self._conversation is None:
            self._timeline.add_finding("S1", "fail", short or message)
        return DialError(message)
