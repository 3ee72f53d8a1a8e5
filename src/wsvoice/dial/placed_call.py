"""One test call: calls a bot as its provider would, and reports how it went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from wsvoice import http
from wsvoice.call import Cause
from wsvoice.dial.addresses import AddressPolicy
from wsvoice.dial.call_control import CallControl
from wsvoice.dial.caller_bot_audio import CallerBotAudio
from wsvoice.dial.conversation import Conversation
from wsvoice.dial.report import CallReport, name_causes
from wsvoice.dial.script import Clip, Script, Speaker, load_turns, spoken
from wsvoice.dial.served_bot import ServedBot
from wsvoice.dial.serving import Serving
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.stream_opening import StreamNotOpenError, StreamOpener, unannounced_stream
from wsvoice.dial.target import Target
from wsvoice.dial.transcript import transcribe_parts
from wsvoice.dial.webhook import Webhook, no_stream
from wsvoice.errors import DialError, HttpError, RemoteProtocolError, UsageError
from wsvoice.providers.base import Callback, Command, Progress, StreamRequest
from wsvoice.providers.xml_answer import turned_away

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

    from wsvoice.dial.caller_bot import CallerBot

#: Makes who speaks for the caller, from the detector that hears the bot and the sample rate of what the caller says.
MakeSpeaker = Callable[[SoundDetector, int], Speaker]

#: How long to wait for the server to write why a call failed: it may have been blocked until the hang-up.
CAUSE_GRACE_S = 0.3


def _load_libraries() -> None:
    """Import what the call begins with, while there is time."""
    import websockets.asyncio.client  # noqa: F401

    http.load()


class PlacedCall:
    """
    One call, from the webhook to the report.

    Attributes:
        judged: The report without words, once the call is over; ``None`` until then.
    """

    def __init__(
        self,
        setup: CallSetup,
        target: Target,
        bot: CallerBot | None,
        serving: Serving | None,
        speaker: MakeSpeaker | None = None,
    ) -> None:
        self._setup = setup
        self._config = config = setup.config
        self._timeline = setup.timeline
        self._timeouts = setup.timeouts
        self._target = target
        self._speaker = speaker
        self._turns = [] if bot or speaker else load_turns(config.audio, config.dtmf, spoken(config.say, config.voice))
        if serving is None and setup.behaviour.by_commands:
            raise UsageError(
                "a call that is answered through the provider's API needs a simulated API, unknown to a running server",
                hint="dial the bot's file: it is served with the simulated API's address",
            )
        self._bot = bot
        self._serving = serving
        self._provider = setup.provider
        self._call = setup.new_call()
        if setup.trace is not None:
            setup.trace.announce(self._call)
        if serving is not None:
            serving.api.add_call(self._call, self._on_command)
        self._addresses = AddressPolicy(target.value, allow_private=config.allow_private)
        self._webhook: Webhook | None = None
        self._call_control: CallControl | None = None
        self._conversation: Conversation | None = None
        self.judged: CallReport | None = None
        self._untested: list[str] = []
        self._report_task: asyncio.Task[None] | None = None
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
            self.judged = self._judge(failure)
            report = await self._with_words(self.judged)
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
            bot_digits=tuple(self._setup.bot_digits),
            transferred_to=self._setup.transferred_to,
            trace=str(self._setup.trace.path) if self._setup.trace is not None else None,
        )

    async def _with_words(self, report: CallReport) -> CallReport:
        """Return the report with what both sides said; whether the call went well has been decided before."""
        transcribe, conversation = self._setup.transcribe, self._conversation
        if transcribe is None or conversation is None or not conversation.is_over:
            return report
        parts = conversation.parts()
        if parts:
            self._timeline.add("note", "turning what was said into words")
        words, failure = await transcribe_parts(parts, transcribe, self._config.language, self._timeouts.words_s)
        return replace(report, words=tuple(words), words_failure=failure)

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
        request = unannounced_stream(self._provider, self._setup.behaviour, self._target, url, self._call.parameters)
        if request is None:
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
            self._serving.api.answer_call(self._call)
        await self._progress("answered")
        await self._hold_conversation(request, socket)
        if config.probe and self._webhook is not None and not await self._webhook.probe(self._setup.new_call()):
            self._untested.append("an unsigned webhook: no secret is known, or no answer came")

    async def _hold_conversation(self, request: StreamRequest, socket: ClientConnection) -> None:
        bot_rate = (request.outbound_format or request.format).sample_rate
        detector, sample_rate = SoundDetector(bot_rate), request.format.sample_rate
        bot_audio = CallerBotAudio(detector, sample_rate=sample_rate, heard_rate=bot_rate) if self._bot else None
        speaker: Speaker = bot_audio or (self._speaker or self._script)(detector, sample_rate)
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
        self._addresses = served.addresses(allow_private=self._config.allow_private)
        timeline.add("note", f"{bot} is served at {served.url}")
        return served.public_url

    def _on_command(self, command: Command) -> None:
        """Carry out a command that the bot sent to the REST API."""
        if command.kind == "digits":
            self._setup.press(command.digits)
        elif command.kind == "answer":
            self._timeline.add("note", "the call is answered without a stream")
            self._report_task = asyncio.create_task(self._report_done(command))
        elif command.kind == "message":
            self._timeline.add("note", f"a real caller would hear: {command.message[:60]}")
            assert self._serving is not None
            answered = self._serving.api.answered(self._call)
            if not answered.done():
                # What is said to a call without a stream is why it has none.
                answered.set_exception(RemoteProtocolError("rejected", turned_away(command.message).reason))
        elif command.kind == "update":
            self._timeline.add("note", "the bot gives the call another document through the REST API")
            self._setup.update = command
        else:
            transfers = f"transfers the call to {command.to[:60]}"
            if command.kind == "transfer":
                self._setup.transferred_to = command.to[:60]
            how = transfers if command.kind == "transfer" else "hangs up through the REST API"
            self._timeline.add("hang-up", f"the bot {how}")
            self._setup.hung_up = True

    async def _report_done(self, command: Command) -> None:
        """Report that a command is carried out, if the provider does; the answer never fails the call."""
        assert self._webhook is not None
        request = self._provider.command_webhook(self._call, Callback(self._webhook.url), command, now=time.time())
        if request is not None:
            with suppress(HttpError):
                await self._webhook.send(request, timeout_s=self._timeouts.webhook_s)

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
                return await self._serving.api.answered(self._call)
        except TimeoutError:
            raise DialError(f"the call was announced, but not answered through the API within {limit_s:g} s") from None
        except RemoteProtocolError as error:
            raise no_stream(error, self._timeline) from error

    async def _connect(self, request: StreamRequest) -> ClientConnection:
        opener = StreamOpener(self._provider, self._target, self._addresses, self._timeouts)
        try:
            socket, elapsed_ms = await opener.open(request)
        except StreamNotOpenError as error:
            # A later stream is not the webhook's first answer.
            if self._conversation is None:
                self._timeline.add_finding("S1", "fail", error.short)
            raise
        if self._report.connect_ms is None:
            self._report = replace(self._report, connect_ms=elapsed_ms, stream_id=self._call.stream_id)
        self._timeline.add("connected", f"the WebSocket is open after {elapsed_ms:.0f} ms")
        return socket
