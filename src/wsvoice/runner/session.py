"""
One call, from the accepted WebSocket to the hang-up.

The session owns the bot's task. It alone ends the call: when the bot returns or raises, when the caller hangs up or
vanishes, or when a limit is reached.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from wsvoice.call import Call, Direction, first_cause
from wsvoice.providers.base import CALL_PARAMETERS
from wsvoice.providers.events import Connected, StreamStarted
from wsvoice.runner.bot_task import BotSession, Record
from wsvoice.runner.call_tap import CallTap, Exchange
from wsvoice.runner.diagnosis import Diagnosis
from wsvoice.runner.figures import CallFigures
from wsvoice.runner.live_call import CallLine
from wsvoice.runner.media_socket import LOGGED_DIGITS
from wsvoice.runner.recording import CallRecorder

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.providers.base import CallUpdate, Server
    from wsvoice.runner.dialled_call import DialledCall
    from wsvoice.runner.limits import Refusal
    from wsvoice.runner.media_socket import MediaSocket
    from wsvoice.runner.switchboard import Switchboard

#: https://www.rfc-editor.org/rfc/rfc6455#section-5.5
REASON_LIMIT = 123
#: How long an outbound call may ring.
RING_TIMEOUT_S = 60.0
#: How long before the end of a call that lasts too long the bot is told: so many seconds, or that share of its time.
ENDING_NOTICE_S, ENDING_NOTICE_SHARE = 30.0, 0.1
#: How long an id or a number may be, in characters; no provider's is half as long.
ID_LIMIT = 256


@dataclass(kw_only=True)
class CallRecord(Record):
    """
    What happened in one call; times in seconds.

    Attributes:
        call: The call, as far as it is known.
        heard_s: The caller's audio.
        sent_s: The bot's audio.
        handshake_s: From the accepted WebSocket to the start of the stream; ``None`` if that never came.
        first_sound_s: From the start to the bot's first sound; ``None`` if it made none.
        responses_s: The caller's wait for each answer.
        digits: The keys that the caller pressed; only the first ones if there were very many.
        digit_count: How many there were in total.
        recording: The recording's file, if there is one.
        updates: What the provider reported of the call, oldest first.
    """

    call: Call
    heard_s: float = 0.0
    sent_s: float = 0.0
    handshake_s: float | None = None
    first_sound_s: float | None = None
    responses_s: list[float] = field(default_factory=list)
    digits: str = ""
    digit_count: int = 0
    recording: str | None = None
    updates: list[CallUpdate] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """The call's provider."""
        return self.call.provider

    @property
    def direction(self) -> Direction:
        """Who called whom."""
        return self.call.direction

    def summary(self) -> str:
        """Return the call's last line in the log."""
        return super().summary() + (f"; recorded to {self.recording}" if self.recording else "")

    def _details(self) -> Iterator[str]:
        if self.first_sound_s is not None:
            yield f"first sound after {self.first_sound_s:.2f} s"
        elif self.ended_by != "error":
            cause = first_cause(self.causes)
            yield "the bot made no sound" + (f": {cause}" if cause else "")
        if self.responses_s:
            waits = ", ".join(f"{wait:.2f}" for wait in self.responses_s[:8])
            more = ", …" if len(self.responses_s) > 8 else ""
            yield f"answers after {waits}{more} s"
        yield f"heard {self.heard_s:.1f} s, sent {self.sent_s:.1f} s"
        if self.digits:
            more = f"… ({self.digit_count})" if self.digit_count > LOGGED_DIGITS else ""
            yield f"digits {self.digits[:LOGGED_DIGITS]}{more}"


def ending_notice_s(limit_s: float) -> float:
    """Return how long before its end a bot is told that its call has nearly lasted for `limit_s` seconds."""
    return min(ENDING_NOTICE_S, limit_s * ENDING_NOTICE_SHARE)


class Session(BotSession):
    """
    The bot running for one call.

    Args:
        provider: Whose stream it is.
        announced: The call that the stream's token was issued for; ``None`` without a token.
        verified: Whether the webhook of `announced` was verified.
        dialled: The call as we placed it; ``None`` if it came in.
        on_started: Called once the stream has started, with what it says of the call; it returns why the call is
            refused.
        traceparent: The trace of the webhook that announced it; empty for none.
        exchange: That webhook, for the record that is kept of the call; ``None`` where none is kept.
    """

    socket: MediaSocket
    record: CallRecord
    call: Call

    def __init__(
        self,
        switchboard: Switchboard,
        socket: MediaSocket,
        *,
        provider: Server,
        announced: Call | None,
        verified: bool,
        dialled: DialledCall | None = None,
        traceparent: str = "",
        exchange: Exchange | None = None,
        on_started: Callable[[Call], Awaitable[Refusal | None]],
        on_closed: Callable[[], None],
        logger: Logger,
    ) -> None:
        self.call = announced or Call(provider=provider.name, call_id="")
        config, call_id, bot = switchboard.config, self.call.call_id, switchboard.the_bot
        super().__init__(socket, bot, config, session_id=call_id, on_closed=on_closed, logger=logger)
        self.record = CallRecord(call=self.call)
        self.provider = provider
        self._switchboard = switchboard
        self._announced = announced
        self._verified = verified
        self.dialled = dialled
        #: The provider's side of the call.
        self.line = self._new_line()
        #: What the bot runs in; its handlers of the provider's reports do too.
        self._bot_context: contextvars.Context | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._trace = switchboard.tracing.call(traceparent)
        self._on_started = on_started
        self._handshake: list[str] = []
        self._recorder: CallRecorder | None = None
        self._exchange = exchange
        #: When the stream started, on the loop's clock.
        self._stream_began_at = self.began_at
        if config.trace is not None or config.record is not None:
            socket.tap = CallTap(config, logger=logger)

    async def run(self) -> CallRecord:
        """Run the call to its end, and return what happened."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self.dialled is not None:
            self.dialled.session = self
        try:
            with self._trace.running():
                try:
                    return await self._run(loop, started)
                finally:
                    self._trace.note_end(self.record, self.socket.turns)
        finally:
            if self.dialled is not None:
                self.dialled.note_session_end(self.record, has_left=bool(self.line.transferred_to))

    def figures(self) -> CallFigures:
        """Return how it stands; may be called from any thread."""
        call, socket, turns, now = self.call, self.socket, self.socket.turns, self._loop.time()
        # Answers are only ever added.
        waits = len(turns.responses_s)
        return CallFigures(
            id=self.session_id,
            kind="call",
            provider=self.provider.name,
            from_number=call.from_number,
            to_number=call.to_number,
            direction=call.direction,
            started_at=self.record.started_at,
            age_s=now - self.began_at,
            heard_dbfs=turns.caller_level.dbfs(now),
            sent_dbfs=turns.bot_level.dbfs(now),
            waits=waits,
            last_wait_s=turns.responses_s[waits - 1] if waits else None,
            heard_s=socket.received_ms / 1000,
            sent_s=socket.sent_ms / 1000,
            bytes_in=socket.bytes_in,
            bytes_out=socket.bytes_out,
            underruns=socket.underruns,
            pid=os.getpid(),
        )

    async def _run(self, loop: asyncio.AbstractEventLoop, started: float) -> CallRecord:
        has_begun = await self._begin()
        if has_begun:
            self.record.handshake_s = loop.time() - started
            self.diagnosis = Diagnosis(self.session_id, self.config.causes)
            await self._run_recorded()
        socket, record = self.socket, self.record
        # A developer who tries it by hand sees why.
        reason = record.reason.encode("ascii", "replace")[:REASON_LIMIT].decode() if self.refused else ""
        await socket.close_connection(self.close_code, reason)
        if not has_begun:
            await self._close()
        record.call = self.call
        record.heard_s, record.sent_s = socket.received_ms / 1000, socket.sent_ms / 1000
        if socket.turns.first_sound_at is not None:
            record.first_sound_s = socket.turns.first_sound_at - started
        record.responses_s = socket.turns.responses_s
        record.digits, record.digit_count = socket.digits, socket.digit_count
        duration_s = (self.ended_at or loop.time()) - started
        if self._recorder is not None:
            record.recording = await self._recorder.finished()
        self.log_end(duration_s)
        if (tap := socket.tap) is not None:
            socket.tap = None
            await tap.close(record, code=socket.close_code or self.close_code)
        return record

    async def _begin(self) -> bool:
        """Wait for the start of the stream; false if no call begins, or the end is asked for before."""
        reading, ending = asyncio.create_task(self._read_handshake()), asyncio.create_task(self._end_asked.wait())
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                self.note_end("server", self._end_reason)
                return False
            return reading.result()
        finally:
            reading.cancel()
            ending.cancel()

    async def _read_handshake(self) -> bool:
        """Read up to the start of the stream, and keep its messages; false if no call begins."""
        connected: list[str] = []
        timeout_s = self.config.handshake_timeout_s
        if self.dialled is not None:
            timeout_s += self.dialled.request.ring_timeout_s
        elif self._verified and self._announced is not None and self._announced.direction == "outbound":
            # Telnyx connects the stream of an outbound call while it rings, and starts it at the answer. Only a
            # signature proves that the call is outbound.
            timeout_s += RING_TIMEOUT_S
        started: StreamStarted | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while started is None:
                    item = None if self.socket.gone.is_set() else await self.socket.next_event(starting=True)
                    if item is None and self.socket.unusable:
                        return self._refuse(self.socket.unusable)
                    if item is None:
                        self.note_end("caller", f"{self.socket.gone_reason} before the stream started")
                        return False
                    raw, event = item
                    # Audio may come before the start, and is binary.
                    text = raw if isinstance(raw, str) else raw.decode("utf-8", "replace")
                    if isinstance(event, StreamStarted):
                        started = event
                        self._stream_began_at = self._loop.time()
                    elif isinstance(event, Connected):
                        # Only the last one is kept: a stranger may send any number.
                        connected = [text]
                    else:
                        # Some dialects send media before the start; none of it is lost.
                        await self.socket.take(raw, event)
        except TimeoutError:
            return self._refuse(f"the caller sent no start message within {timeout_s:g} s")
        # Each is in every log line of the call.
        ids = (started.call_id, started.stream_id, started.account_id, started.from_number, started.to_number)
        if unfit := next((each for each in ids if len(each) > ID_LIMIT or not each.isprintable()), None):
            return self._refuse(f"an id or number of the start message cannot be real: {unfit[:40]!r}")
        announced = self._announced
        # A stream whose address was told with the request for the call has a token without its id.
        if announced is not None and announced.call_id not in ("", started.call_id):
            if announced.direction == "inbound" or not (self.provider.renames_dialled_calls or self.dialled):
                return self._refuse(f"the stream is for call {started.call_id[:64]!r}, its token is for another")
            # Telnyx may give an outbound call a new id once it is answered. The token has the old one; Telnyx's API now
            # knows the call by the stream's.
            self.logger.warning("the outbound call has another id on its stream: {}", started.call_id)
        known = announced or self._switchboard.announced.get((self.provider.name, started.call_id)) or self.call
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
                **(self.dialled.request.parameters if self.dialled is not None else {}),
                **{name: value for name, value in started.parameters.items() if name not in CALL_PARAMETERS},
            },
        )
        if (refusal := await self._on_started(self.call)) is not None:
            return self._refuse(refusal.text)
        self.line = self._new_line()
        if self.dialled is not None:
            self._switchboard.dialled.note_call(self.dialled, self.call)
        self.session_id = self.call.call_id
        self.logger = self.logger.bind(call=self.call.call_id)
        self.socket.logger = self.logger
        if self.socket.tap is not None:
            self._begin_trace(self.socket.tap)
        # The whole id, because log lines shorten it.
        self.logger.info(
            "stream started: {} calls {}, call {}",
            self.call.from_number or "somebody",
            self.call.to_number or "the bot",
            self.call.call_id,
        )
        self._handshake = [*connected, text]
        self._trace.started(self.call)
        return True

    def _begin_trace(self, tap: CallTap) -> None:
        stream = self.socket.stream
        tap.logger = self.logger
        formats = (stream.format, stream.outbound_format)
        tap.begin(self.call, formats, zero=self._stream_began_at, exchange=self._exchange)

    def _refuse(self, reason: str) -> bool:
        self.note_end("server", reason)
        self.refused = True
        return False

    async def _run_recorded(self) -> None:
        """Run the bot until the call is over, then end the call."""
        if self.config.record is not None:
            assert self.socket.tap is not None
            self._recorder = CallRecorder(self.config.record, self.call, self.socket.stream, logger=self.logger)
            self.socket.tap.record(self._recorder)
        ending = asyncio.create_task(self._end_in_time()) if self.config.max_call_time_s else None
        try:
            await self.run_bot()
        finally:
            if ending is not None:
                ending.cancel()
            self._stop_recording()

    async def _end_in_time(self) -> None:
        """End the call when it has lasted for as long as it may; the bot is told before."""
        limit_s = self.config.max_call_time_s
        notice_s = ending_notice_s(limit_s)
        await asyncio.sleep(limit_s - notice_s)
        self.logger.info("the call ends in {:g} s (--max-call-time)", notice_s)
        if (listener := self.socket.ending_listener) is not None:
            self._tell(listener(notice_s))
        await asyncio.sleep(notice_s)
        self.end(f"the call has lasted {limit_s:g} s (--max-call-time)", as_usual=True)

    def _new_line(self) -> CallLine:
        """Return the provider's side of the call, with what is known of it already."""
        config, name = self.config, self.provider.name
        # What stands before the server's routes where they are part of another application's.
        prefix = self.socket.scope["path"].partition("/ws")[0]
        line = CallLine(
            self.call,
            credentials=config.credentials,
            end=self.socket.request_close,
            transfer_url=f"{config.public_url}{prefix}/{name}/transfer" if config.public_url else "",
        )
        if self.dialled is not None:
            line.answered_by, line.greeting_ended = self.dialled.answered_by, self.dialled.greeting_ended
            line.updates = self.record.updates = list(self.dialled.updates)
        return line

    def note_update(self, update: CallUpdate) -> None:
        """Note what the provider reports of the call, and tell the bot."""
        self.line.note(update)
        if self.socket.tap is not None:
            self.socket.tap.update(update)
        self.record.updates = self.line.updates
        if (listener := self.socket.update_listener) is not None:
            self._tell(listener(update))

    def _tell(self, telling: Coroutine[Any, Any, None]) -> None:
        """Let a handler of the bot's do its work, where the bot's errors belong; not once the caller is gone."""
        context = self._bot_context
        if context is None or self.socket.gone.is_set():
            telling.close()
            return
        task = asyncio.get_running_loop().create_task(telling, context=context)
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _bot_may_start(self, dialled: DialledCall) -> bool:
        """Wait until the bot is to talk to whom it has called; false if it is not to."""
        may_start = await dialled.bot_may_start()
        if not may_start:
            over = "the call was over before the bot started"
            self.end(over if dialled.is_over else f"a {dialled.answered_by or 'machine'} answered")
        elif dialled.request.voicemail == "leave" and dialled.answered_by == "machine":
            # Its greeting is nothing to answer.
            self.socket.forget_audio()
        return may_start

    async def _call_bot(self) -> None:
        self._bot_context = contextvars.copy_context()
        if self.dialled is not None and not await self._bot_may_start(self.dialled):
            return
        try:
            await super()._call_bot()
        finally:
            # A bot that has ended starts no more.
            if self.socket.on_bot_started is not None:
                self.socket.on_bot_started()

    async def _make_arguments(self) -> Any:
        self.socket.on_bot_started = await self._switchboard.starts.wait()
        return await self._switchboard.make_call_arguments(self, self._handshake)

    async def _play_out(self) -> None:
        await self.socket.played_out(self.config.playout_timeout_s)

    def _stop_recording(self) -> None:
        if self._recorder is not None:
            self._recorder.stop()

    async def _hang_up(self) -> None:
        if self.dialled is not None:
            await self._switchboard.dialled.hang_up(self.dialled)
        else:
            await self._switchboard.hang_up(self.provider, self.call, self.logger)

    async def _close(self) -> None:
        await super()._close()
        self._stop_recording()
        if self.line.transferred_to:
            # The caller talks to somebody else now.
            self.note_end("bot", f"transferred to {self.line.transferred_to}")
        elif self.record.ended_by != "caller" and self.call.call_id:
            # It is seen through even if the process is to end at once.
            await self._switchboard.dialled.see_through(self._hang_up())
