"""
What is kept of a call while it goes on: its trace (``--trace``) and its recording (``--record``).

Both are views of the same tap in the call's socket. The tap is called for each message, so it only passes on; what it
passes is written elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from wsvoice._version import __version__
from wsvoice.call import Call, short_id
from wsvoice.runner.logs import follow_call, unfollow_call
from wsvoice.runner.turns import PAUSE_S
from wsvoice.trace import Header, LiveTrace, Masks, TraceEvent
from wsvoice.trace.format import SUFFIX, WireDirection

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loguru import Logger

    from wsvoice.audio import AudioFormat
    from wsvoice.config import RunConfig
    from wsvoice.providers.base import Answer, CallUpdate, WebhookRequest
    from wsvoice.runner.bot_task import Record
    from wsvoice.runner.recording import CallRecorder
    from wsvoice.trace.background import Pieces

#: How often it is noted how much of the bot's audio waits at the provider, in seconds.
BUFFER_EVERY_S = 0.5
#: The rate of tracks that have nothing in them.
SILENT_RATE = 8000
#: How long the end of a call waits for the disk, in seconds.
FINISH_TIMEOUT_S = 5.0
#: How much is kept of a webhook's body, and of its answer, in characters.
EXCHANGE_LIMIT = 32 * 1024
#: Shown in place of the lines of a message that would only be shown in part.
_CUT = "… (cut)"


@dataclass(frozen=True, slots=True)
class Exchange:
    """
    A webhook and its answer, for the trace of the call's stream, which may run in another process.

    Attributes:
        asked_at, answered_at: Unix time.
        asked, answered: The two bodies; secrets are left out of them.
        request, response: What else is told of them.
    """

    asked_at: float
    answered_at: float
    asked: str
    answered: str
    request: Mapping[str, str]
    response: Mapping[str, Any]

    @classmethod
    def of(cls, request: WebhookRequest, answer: Answer, *, asked_at: float, secrets: Iterable[str]) -> Exchange:
        """Return what may be told of a webhook that was just answered."""
        masks = Masks(secrets)
        about = {"method": request.method, "url": masks.text(request.url)}
        if content_type := request.headers.get("content-type"):
            about["content_type"] = content_type[:200]
        response: dict[str, Any] = {"status": answer.status, "content_type": answer.media_type}
        if answer.requests:
            # Some calls are not answered by a document, but by requests to the provider's API.
            response["requests"] = [
                {
                    "method": each.method,
                    "url": masks.text(each.url),
                    "text": masks.text(each.body.decode("utf-8", "replace"))[:EXCHANGE_LIMIT],
                }
                for each in answer.requests
            ]
        body = answer.body if isinstance(answer.body, str) else answer.body.decode("utf-8", "replace")
        asked = masks.text(request.body.decode("utf-8", "replace"))
        return cls(asked_at, time.time(), _cut(asked), _cut(masks.text(body)), about, response)


class CallTap:
    """
    Where a call's socket tells what it reads and writes.

    Attributes:
        trace: The call's trace; ``None`` for none.
        hear: Hears a piece of the caller's audio, or of the bot's; see :meth:`~wsvoice.trace.LiveTrace.audio`.
    """

    def __init__(self, config: RunConfig, *, logger: Logger) -> None:
        self._config = config
        self._loop = asyncio.get_running_loop()
        self.logger = logger
        self._recorder: CallRecorder | None = None
        self.trace: LiveTrace | None = None
        self.hear = self._hear
        if config.trace is not None:
            self.trace = LiveTrace(self._loop.time, new_masks(config), on_failure=self._note_failure)
            # It is called a hundred times a second, where each call in between counts.
            self.hear = self.trace.audio
        self._followed = ""

    def begin(
        self,
        call: Call,
        formats: tuple[AudioFormat, AudioFormat] | None,
        *,
        zero: float,
        exchange: Exchange | None = None,
    ) -> None:
        """
        Begin to write, for it is known now whose call it is.

        Args:
            call: The call.
            formats: Of the caller's audio, and of the bot's; ``None`` for a plain client, whose messages may hold
                anything.
            zero: When the stream started, on the loop's clock.
            exchange: The webhook that announced it.
        """
        if self.trace is None or self._config.trace is None:
            return
        started_at = time.time() - (self._loop.time() - zero)
        rate = max((each.sample_rate for each in formats or ()), default=SILENT_RATE)
        header = Header("server", call, started_at, rate, self._config.bot, versions())
        if exchange is not None:
            asked_at, answered_at = (each - started_at + zero for each in (exchange.asked_at, exchange.answered_at))
            self.trace.wire("out", "answer", exchange.answered, exchange.response, at=answered_at, first=True)
            self.trace.wire("in", "webhook", exchange.asked, exchange.request, at=asked_at, first=True)
        follower = None if formats is None else Turns(formats[1])
        self.trace.begin(
            trace_folder(self._config.trace, call, started_at), header, formats, zero=zero, follower=follower
        )
        self.trace.event("started", f"the stream of call {short_id(call.call_id)} has started", at=zero)
        self._followed = call.call_id
        follow_call(self._followed, self.trace.log, self._config.log_level)

    def record(self, recorder: CallRecorder) -> None:
        """Have a recorder hear the audio too, from now on."""
        self._recorder = recorder
        self.hear = self._hear

    # What the socket tells

    def message(self, direction: WireDirection, raw: str | bytes, *, is_audio: bool) -> None:
        """Note a message of the stream of which no audio is heard."""
        if self.trace is not None:
            self.trace.message(direction, raw, is_audio=is_audio)

    def _hear(
        self,
        direction: WireDirection,
        at: float,
        raw: str | bytes | None,
        payload: bytes,
        sounded_at: float | None,
        plays_until: float = 0.0,
    ) -> None:
        if self._recorder is not None:
            self._recorder.hear("caller" if direction == "in" else "bot", payload, at)
        if self.trace is not None:
            self.trace.audio(direction, at, raw, payload, sounded_at, plays_until)

    def clear(self, now: float, queued_s: float) -> None:
        """Note that the bot has cleared what waited at the provider."""
        if self._recorder is not None:
            self._recorder.hear("clear", b"", now)
        if self.trace is None:
            return
        self.trace.cut(now)
        ms = round(queued_s * 1000, 1)
        self.trace.event("clear", f"the bot cleared {ms:.0f} ms of queued audio", at=now, ms=ms)

    def wait(self, wait_s: float, now: float) -> None:
        """Note how long the caller waited for an answer that begins now."""
        if self.trace is not None:
            self.trace.event("wait", f"the caller waited {wait_s:.2f} s", at=now, ms=round(wait_s * 1000, 1))

    def event(self, event: str, detail: str, **fields: str) -> None:
        """Note what else happens, in words and in `fields`."""
        if self.trace is not None:
            self.trace.event(event, detail, at=None, **fields)

    def update(self, update: CallUpdate) -> None:
        """Note what the provider reports of the call."""
        if self.trace is not None:
            told = {each.name: getattr(update, each.name) for each in fields(update)}
            plain = {name: value for name, value in told.items() if isinstance(value, str | int | float) and value}
            self.trace.wire("in", "status", "", plain)

    # The end

    async def close(self, record: Record, *, code: int) -> None:
        """Write the rest of the trace, and how the call ended; `code` closed its WebSocket."""
        trace = self.trace
        if trace is None or not self._followed:
            return
        now = self._loop.time()
        trace.wire("in" if record.ended_by == "caller" else "out", "close", "", {"code": code})
        trace.event("hang-up", f"ended by {record.ended_by}: {record.reason}", at=now)
        unfollow_call(self._followed, trace.log)
        writing = asyncio.wrap_future(trace.end({"by": record.ended_by, "reason": record.reason}, plain_record(record)))
        done, _ = await asyncio.wait({writing}, timeout=FINISH_TIMEOUT_S)
        if not done:
            self.logger.error("the trace is not on disk yet: the disk has not accepted it in {:g} s", FINISH_TIMEOUT_S)
        elif trace.path is not None:
            self.logger.info("traced to {}", trace.path)

    def _note_failure(self, reason: str) -> None:
        """Log, from the writer's thread, that there is no more trace; the call goes on."""
        self._loop.call_soon_threadsafe(
            self.logger.error, "the call's trace cannot be written: {}; what was written until then is there", reason
        )


class Turns:
    """
    Tells a trace when each end begins and ends to sound, and how much of the bot's audio waits at the provider.

    Args:
        format: Of the bot's audio.
    """

    def __init__(self, format: AudioFormat) -> None:
        self._byte_s = 1 / (format.sample_rate * format.sample_width)
        #: Whether each end is sounding, and until when it was.
        self._caller_sounds = self._bot_sounds = False
        self._caller_until = self._bot_until = 0.0
        self._buffer_told_at = 0.0

    def heard(self, pieces: Pieces) -> list[TraceEvent]:
        """Return what happened while these pieces came."""
        told: list[TraceEvent] = []
        for direction, at, _, payload, sounded_at, plays_until in zip(*pieces, strict=True):
            if not payload:
                continue
            if direction == "in":
                if sounded_at == at:
                    if not self._caller_sounds:
                        self._caller_sounds = True
                        told.append(TraceEvent(at, "caller-speaks", "the caller speaks"))
                        if self._bot_sounds and self._bot_until > at:
                            told.append(TraceEvent(at, "interruption", "the caller speaks while the bot does"))
                    self._caller_until = at
                elif self._caller_sounds and at - self._caller_until >= PAUSE_S:
                    told += self._end_of_caller()
                continue
            begins = plays_until - len(payload) * self._byte_s
            if self._bot_sounds and begins - self._bot_until >= PAUSE_S:
                told += self._end_of_bot()
            if sounded_at == at:
                if not self._bot_sounds:
                    self._bot_sounds = True
                    told.append(TraceEvent(begins, "bot-speaks", "the bot speaks"))
                self._bot_until = plays_until
            if at - self._buffer_told_at >= BUFFER_EVERY_S:
                self._buffer_told_at = at
                told.append(TraceEvent(at, "buffer", "", {"ms": round(max(0.0, plays_until - at) * 1000, 1)}))
        return told

    def cleared(self, at: float) -> list[TraceEvent]:
        """Return what happened since the bot's unplayed audio was cut."""
        self._bot_until = min(self._bot_until, at)
        return [*self._end_of_bot(), TraceEvent(at, "buffer", "", {"ms": 0.0})]

    def ended(self) -> list[TraceEvent]:
        """Return what happened because the call has ended."""
        return [*self._end_of_caller(), *self._end_of_bot()]

    def _end_of_caller(self) -> list[TraceEvent]:
        was, self._caller_sounds = self._caller_sounds, False
        return [TraceEvent(self._caller_until, "caller-silent", "the caller is silent")] if was else []

    def _end_of_bot(self) -> list[TraceEvent]:
        was, self._bot_sounds = self._bot_sounds, False
        return [TraceEvent(self._bot_until, "bot-silent", "the bot is silent")] if was else []


@cache
def versions() -> dict[str, str]:
    """Return the versions that a trace names."""
    try:
        return {"wsvoice": __version__, "pipecat": metadata.version("pipecat-ai")}
    except metadata.PackageNotFoundError:
        return {"wsvoice": __version__}


def new_masks(config: RunConfig) -> Masks:
    """Return what a call's trace leaves out with these settings."""
    return Masks(config.credentials.values(), who=config.redact is not None, digits=config.redact == "digits")


def trace_folder(folder: Path, call: Call, started_at: float) -> Path:
    """Return where the trace of a call goes."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(started_at))
    name = re.sub(r"[^A-Za-z0-9_-]", "_", short_id(call.call_id).replace("…", "-"))
    return folder / f"{stamp}-{name or os.getpid()}{SUFFIX}"


def plain_record(record: Record) -> dict[str, Any]:
    """Return a session's record as JSON has it, without what the trace says elsewhere."""
    return {
        each.name: [asdict(cause) for cause in value] if each.name == "causes" else value
        for each in fields(record)
        if each.name not in ("call", "updates") and (value := getattr(record, each.name)) is not None
    }


def _cut(text: str) -> str:
    return text if len(text) <= EXCHANGE_LIMIT else text[:EXCHANGE_LIMIT] + _CUT
