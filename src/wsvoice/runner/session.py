"""
One call, from the accepted WebSocket to the hang-up.

The session owns the bot's task. It alone ends the call: when the bot returns or raises, when the caller hangs up or
vanishes, or when a limit is reached.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wsvoice.call import Call, Cause, first_cause
from wsvoice.config import RunConfig
from wsvoice.providers.base import CALL_PARAMETERS
from wsvoice.providers.events import Connected, StreamStarted
from wsvoice.runner.bot_task import Bot, BotTask
from wsvoice.runner.diagnosis import Diagnosis
from wsvoice.runner.media_socket import LOGGED_DIGITS
from wsvoice.runner.recording import CallRecorder

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.providers.base import Server
    from wsvoice.runner.media_socket import MediaSocket

#: https://www.rfc-editor.org/rfc/rfc6455#section-5.5
REASON_LIMIT = 123
#: How long an outbound call may ring.
RING_TIMEOUT_S = 60.0
#: How long an id or a number may be, in characters; no provider's is half as long.
ID_LIMIT = 256


@dataclass(slots=True)
class CallRecord:
    """
    What happened in one call; times in seconds.

    Attributes:
        call: The call, as far as it is known.
        started_at: Unix time of the accepted WebSocket.
        duration_s: From then to the end.
        ended_by: ``bot``, ``caller``, ``error`` or ``server``.
        reason: Why it ended.
        heard_s: The caller's audio.
        sent_s: The bot's audio.
        first_sound_s: From the start to the bot's first sound; ``None`` if it made none.
        responses_s: The caller's wait for each answer.
        digits: The keys that the caller pressed; only the first ones if there were very many.
        digit_count: How many there were in total.
        faults: How often each kind of bad message came.
        recording: The recording's file, if there is one.
        causes: What went wrong meanwhile, whether or not it ended the call.
    """

    call: Call
    started_at: float
    duration_s: float = 0.0
    ended_by: str = "server"
    reason: str = ""
    heard_s: float = 0.0
    sent_s: float = 0.0
    first_sound_s: float | None = None
    responses_s: list[float] = field(default_factory=list)
    digits: str = ""
    digit_count: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    recording: str | None = None
    causes: list[Cause] = field(default_factory=list)

    def summary(self) -> str:
        """Return the call's last line in the log."""
        who = "an error" if self.ended_by == "error" else f"the {self.ended_by}"
        parts = [f"ended by {who} after {self.duration_s:.1f} s: {self.reason}"]
        if self.first_sound_s is not None:
            parts.append(f"first sound after {self.first_sound_s:.2f} s")
        elif self.ended_by != "error":
            cause = first_cause(self.causes)
            parts.append("the bot made no sound" + (f": {cause}" if cause else ""))
        if self.responses_s:
            waits = ", ".join(f"{wait:.2f}" for wait in self.responses_s[:8])
            more = ", …" if len(self.responses_s) > 8 else ""
            parts.append(f"answers after {waits}{more} s")
        parts.append(f"heard {self.heard_s:.1f} s, sent {self.sent_s:.1f} s")
        if self.digits:
            more = f"… ({self.digit_count})" if self.digit_count > LOGGED_DIGITS else ""
            parts.append(f"digits {self.digits[:LOGGED_DIGITS]}{more}")
        if self.faults:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
            parts.append(f"ignored {counts}")
        if self.recording:
            parts.append(f"recorded to {self.recording}")
        return "; ".join(parts)


class Session:
    """
    The bot running for one call.

    Args:
        socket: The accepted WebSocket.
        bot: The user's coroutine function.
        make_arguments: Builds the bot's argument, once the stream has started.
        config: The server's settings.
        provider: Whose stream it is.
        announced: The call that the stream's token was issued for; ``None`` without a token.
        verified: Whether the webhook of `announced` was verified.
        find_announced: Finds an announced call by its id, for a stream without a token.
        hang_up: Ends a call by the provider's API, if closing its stream does not.
        on_started: Called once the stream has started.
        on_closed: Called once the WebSocket is closed, while the bot may still be busy.
    """

    def __init__(
        self,
        socket: MediaSocket,
        bot: Bot,
        make_arguments: Callable[[Session, list[str]], Awaitable[Any]],
        config: RunConfig,
        *,
        provider: Server,
        announced: Call | None,
        verified: bool,
        find_announced: Callable[[str], Call | None],
        hang_up: Callable[[Call], Awaitable[None]],
        on_started: Callable[[], None],
        on_closed: Callable[[], None],
        logger: Logger,
    ) -> None:
        self.socket = socket
        self.config = config
        self.logger = logger
        self.call = announced or Call(provider=provider.name, call_id="")
        self.record = CallRecord(call=self.call, started_at=time.time())
        self.diagnosis = Diagnosis("", config.causes)
        self._run = BotTask(socket, bot, config)
        self._make_arguments = make_arguments
        self.provider = provider
        self._announced = announced
        self._verified = verified
        self._find_announced = find_announced
        self._hang_up = hang_up
        self._on_started = on_started
        self._on_closed = on_closed
        self._recorder: CallRecorder | None = None

    @property
    def session_id(self) -> str:
        """The call's id."""
        return self.call.call_id

    def end(self, reason: str, *, at_once: bool = False) -> None:
        """Ask for the end of the call, on the server's behalf."""
        self._run.end(reason, at_once=at_once)

    async def run(self) -> CallRecord:
        """Run the call to its end, and return what happened."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        handshake = await self._read_handshake()
        if handshake is not None:
            self.diagnosis = Diagnosis(self.call.call_id, self.config.causes)
            with self.logger.contextualize(call=self.call.call_id):
                await self._run_bot(handshake)
        socket, record = self.socket, self.record
        # A developer who tries it by hand sees why.
        reason = self._run.reason.encode("ascii", "replace")[:REASON_LIMIT].decode() if self._run.refused else ""
        await socket.close_connection(self._run.close_code, reason)
        if handshake is None:
            await self._end_call()
        record.call = self.call
        record.ended_by, record.reason = self._run.ended_by, self._run.reason
        record.causes = self.diagnosis.causes
        record.duration_s = (self._run.ended_at or loop.time()) - started
        record.heard_s = socket.received_ms / 1000
        record.sent_s = socket.sent_ms / 1000
        if socket.turns.first_sound_at is not None:
            record.first_sound_s = socket.turns.first_sound_at - started
        record.responses_s = socket.turns.responses_s
        record.digits, record.digit_count = socket.digits, socket.digit_count
        record.faults = dict(socket.faults)
        if self._recorder is not None:
            record.recording = await self._recorder.finished()
        level = "INFO" if record.ended_by != "error" else "ERROR"
        self.logger.log(level, record.summary())
        return record

    async def _read_handshake(self) -> list[str] | None:
        """Read up to the start of the stream; return the messages, or ``None`` if no call begins."""
        connected: list[str] = []
        timeout_s = self._start_timeout_s
        started: StreamStarted | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while started is None:
                    item = None if self.socket.gone.is_set() else await self.socket.next_event(starting=True)
                    if item is None and self.socket.unusable:
                        self._refuse(self.socket.unusable)
                        return None
                    if item is None:
                        self._run.note_end("caller", f"{self.socket.gone_reason} before the stream started")
                        return None
                    raw, event = item
                    # Audio may come before the start, and is binary.
                    text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
                    if isinstance(event, StreamStarted):
                        started = event
                    elif isinstance(event, Connected):
                        # Only the last one is kept: a stranger may send any number.
                        connected = [text]
                    else:
                        # Some dialects send media before the start; none of it is lost.
                        await self.socket.take(raw, event)
        except TimeoutError:
            self._refuse(f"the caller sent no start message within {timeout_s:g} s")
            return None
        if unfit := next((each for each in _identities(started) if not _is_fit(each)), None):
            self._refuse(f"an id or number of the start message cannot be real: {unfit[:40]!r}")
            return None
        announced = self._announced
        if announced is not None and announced.call_id != started.call_id:
            if announced.direction == "inbound" or not self.provider.renames_dialled_calls:
                self._refuse(f"the stream is for call {started.call_id[:64]!r}, its token is for another")
                return None
            # Telnyx may give an outbound call a new id once it is answered. The token has the old one; Telnyx's API now
            # knows the call by the stream's.
            self.logger.warning("the outbound call has another id on its stream: {}", started.call_id)
        self._on_started()
        known = announced or self._find_announced(started.call_id) or self.call
        self.call = replace(
            known,
            call_id=started.call_id,
            stream_id=started.stream_id,
            account_id=started.account_id or known.account_id,
            from_number=started.from_number or known.from_number,
            to_number=started.to_number or known.to_number,
            parameters={
                **self.config.parameters,
                **known.parameters,
                **{name: value for name, value in started.parameters.items() if name not in CALL_PARAMETERS},
            },
        )
        self.logger = self.logger.bind(call=self.call.call_id)
        self.socket.logger = self.logger
        # The whole id, because log lines shorten it.
        self.logger.info(
            "stream started: {} calls {}, call {}",
            self.call.from_number or "somebody",
            self.call.to_number or "the bot",
            self.call.call_id,
        )
        return [*connected, text]

    @property
    def _start_timeout_s(self) -> float:
        """How long the stream may take to start."""
        timeout_s = self.config.handshake_timeout_s
        if self._verified and self._announced is not None and self._announced.direction == "outbound":
            # Telnyx connects the stream of an outbound call while it rings, and starts it at the answer. Only a
            # signature proves that the call is outbound.
            timeout_s += RING_TIMEOUT_S
        return timeout_s

    def _refuse(self, reason: str) -> None:
        self._run.note_end("server", reason)
        self._run.refused = True

    async def _run_bot(self, handshake: list[str]) -> None:
        """Run the bot until the call is over, then end the call."""
        socket, config = self.socket, self.config
        if config.record is not None:
            self._recorder = CallRecorder(config.record, self.call, socket.stream, logger=self.logger)
            socket.audio_listener = self._recorder.hear
        try:
            await self._run.run(
                self.call.call_id,
                lambda: self._make_arguments(self, handshake),
                diagnosis=self.diagnosis,
                logger=self.logger,
                play_out=lambda: socket.played_out(config.playout_timeout_s),
                on_closed=self._end_call,
            )
        finally:
            self._stop_recording()

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self.socket.audio_listener = None
            self._recorder.stop()

    async def _end_call(self) -> None:
        # The bot may continue for a while, but not the call.
        self._on_closed()
        self._stop_recording()
        if self._run.ended_by != "caller" and self.call.call_id:
            await self._hang_up(self.call)


def _identities(started: StreamStarted) -> tuple[str, ...]:
    return (started.call_id, started.stream_id, started.account_id, started.from_number, started.to_number)


def _is_fit(text: str) -> bool:
    """Whether untrusted text is short and printable enough for every log line of its call."""
    return len(text) <= ID_LIMIT and (not text or text.isprintable())
