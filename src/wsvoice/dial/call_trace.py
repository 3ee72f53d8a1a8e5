"""The trace of a test call (``--trace``), from the caller's side."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsvoice._version import __version__
from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.config import without_secrets
from wsvoice.dial.clock import Clock
from wsvoice.dial.report import CallReport, SpokenWords, TimelineEvent
from wsvoice.errors import UsageError
from wsvoice.trace import Header, LiveTrace, Masks, pack
from wsvoice.trace.format import SUFFIX, WireDirection
from wsvoice.trace.packing import is_trace_folder
from wsvoice.trace.redaction import MASK

if TYPE_CHECKING:
    from wsvoice.config import DialConfig
    from wsvoice.dial.timeline import Timeline
    from wsvoice.dial.webhook import AskedKind
    from wsvoice.http import HttpResponse
    from wsvoice.providers.base import WebhookRequest

#: How often it is noted how much of the bot's audio is queued, in milliseconds.
BUFFER_EVERY_MS = 240
#: How long the end of a call waits for the disk, in seconds.
FINISH_TIMEOUT_S = 10.0

# A line of wsvoice's own log: time, level, call, text.
_LOG_LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} ([A-Z]+) +(\S+) (.*)", re.DOTALL)


class CallTrace:
    """
    What happens in one test call, written while it does; one file at the end, where a folder was until then.

    Args:
        config: How the call is placed; its trace is where this one goes.
        clock: The clock of the call's media.

    Raises:
        UsageError: If something else is where it goes.
    """

    def __init__(self, config: DialConfig, clock: Clock) -> None:
        assert config.trace is not None
        self.path = config.trace
        self._config = config
        self._clock = clock
        self._failure = ""
        remove_trace(self.path)
        secrets = [*config.credentials.values(), config.model_key]
        masks = Masks(secrets, who=config.redact is not None, digits=config.redact == "digits")
        self._live = LiveTrace(clock.now, masks, on_failure=self._note_failure)
        self._call: Call | None = None
        self._zero: float | None = None
        #: Each end's rate, and how many of its samples were heard.
        self._sides: dict[WireDirection, tuple[int, int]] = {}
        self._buffer_told_ms = 0.0

    def begin(self, call: Call, rates: tuple[int, int] | None, zero: float) -> None:
        """
        Begin to write, unless it has begun.

        Args:
            call: The call.
            rates: Samples a second of the caller's audio, and of the bot's; ``None`` for a call without a stream.
            zero: When the stream started, by the clock.
        """
        if self._zero is not None:
            return
        self._zero = zero
        self._sides = {} if rates is None else {"in": (rates[0], 0), "out": (rates[1], 0)}
        started_at = time.time() - (self._clock.now() - zero)
        rate = max(rates) if rates is not None else 8000
        config = self._config
        if "://" not in config.target:
            # A bot that is served for the call is given them by its server.
            call = replace(call, parameters=config.parameters)
        target = without_secrets(config.target)
        header = Header("caller", call, started_at, rate, target, _versions(), config.quirks)
        formats = None if rates is None else (AudioFormat(Encoding.L16, rates[0]), AudioFormat(Encoding.L16, rates[1]))
        self._live.begin(self.path, header, formats, zero=zero, contiguous=True)

    # What happens

    def told(self, event: TimelineEvent) -> None:
        """Note an event of the call's timeline."""
        at = self._clock.now() if self._zero is None else self._zero + event.at_ms / 1000
        if event.kind in ("log", "caller-log"):
            level, logger, text = "", "", event.text
            if (match := _LOG_LINE.fullmatch(event.text)) is not None:
                level, _, text = match.groups()
            self._live.log(level, "caller" if event.kind == "caller-log" else logger, text, at=self._clock.now())
            return
        self._live.event(event.kind, event.text, at=at, **event.fields)

    def interrupted(self) -> None:
        """Note that the caller speaks while the bot does."""
        self._live.event("interruption", "the caller speaks while the bot does")

    def buffered(self, queued_ms: float, now_ms: float) -> None:
        """Note now and then how much of the bot's audio is queued."""
        if now_ms - self._buffer_told_ms >= BUFFER_EVERY_MS:
            self._buffer_told_ms = now_ms
            self._live.event("buffer", ms=round(queued_ms, 1))

    def message(self, direction: WireDirection, content: str | bytes, *, is_audio: bool) -> None:
        """Note a message of the stream; `direction` is as the bot's server sees it."""
        self._live.message(direction, content, is_audio=is_audio)

    def closed(self, code: int | None, reason: str) -> None:
        """Note that the stream is closed."""
        self._live.wire("in", "close", "", {"code": code, "reason": reason})

    def asked(self, request: WebhookRequest, response: HttpResponse, began: float, kind: AskedKind) -> None:
        """Note a request to the bot's server, which `began` then, and its answer."""
        if kind == "health":
            return
        about: dict[str, Any] = {"method": request.method, "url": request.url}
        if content_type := request.headers.get("content-type"):
            about["content_type"] = content_type
        body = request.body.decode("utf-8", "replace")
        if kind == "status":
            self._live.wire("in", "status", body, {**about, "status": response.status}, at=began)
            return
        self._live.wire("in", "webhook", body, about, at=began)
        answered = {"status": response.status, "content_type": response.headers.get("content-type", "")}
        self._live.wire("out", "answer", response.body.decode("utf-8", "replace"), answered)

    def hear(self, direction: WireDirection, pcm: bytes) -> None:
        """Append a piece of the caller's audio, which goes ``in`` to the bot's server, or of the bot's; s16le."""
        if direction in self._sides and self._zero is not None:
            rate, count = self._sides[direction]
            self._live.audio(direction, self._zero + count / rate, None, pcm)
            self._sides[direction] = rate, count + len(pcm) // 2

    # The end

    async def finish(self, report: CallReport | None, timeline: Timeline) -> CallReport | None:
        """Write the rest and pack it; return the report, which has failed if that could not be done."""
        if self._zero is None:
            if report is None:
                return None
            # No stream was started; what there is was before.
            call = Call(provider=report.provider, call_id=report.call_id)
            self.begin(self._call or call, None, self._clock.now())
        live = self._live
        ended = {"by": "", "reason": "the call was cut off"}
        if report is not None:
            ended = {"by": report.ended_by or "", "reason": report.failure or ""}
            self._note_waits(report)
            self._note_words(report)
        writing = asyncio.wrap_future(live.end(ended, self._told(report) if report is not None else None))
        done, _ = await asyncio.wait({writing}, timeout=FINISH_TIMEOUT_S)
        if not done:
            self._failure = self._failure or f"the disk has not accepted it within {FINISH_TIMEOUT_S:g} s"
        if not self._failure and live.path is not None:
            try:
                await asyncio.to_thread(pack, live.path, self.path)
            except OSError as error:
                self._failure = error.strerror or str(error)
        if not self._failure or report is None:
            return report
        text = f"the trace cannot be written to {self.path}: {self._failure}"
        timeline.add("note", text)
        return replace(report, trace=None, verdict="failed", failure=report.failure or text)

    def announce(self, call: Call) -> None:
        """Note whose call it is, before there is a stream."""
        self._call = call

    def _note_waits(self, report: CallReport) -> None:
        assert self._zero is not None
        for turn in report.turns:
            if turn.response_ms is not None:
                at = self._zero + (turn.caller_end_ms + turn.response_ms) / 1000
                ms = round(turn.response_ms, 1)
                self._live.event("wait", f"the caller waited {ms / 1000:.2f} s", at=at, ms=ms)

    def _note_words(self, report: CallReport) -> None:
        assert self._zero is not None
        for each in self._redacted(report.words):
            at = self._zero + each.start_ms / 1000
            self._live.event("words", f"{each.who}: {each.text}", at=at, who=each.who, turn=each.turn)

    def _redacted(self, words: Sequence[SpokenWords]) -> list[SpokenWords]:
        """Return what was said as the trace may have it: a name or a number that is spoken is not known as one."""
        is_hidden = self._config.redact is not None
        return [replace(each, text=MASK) if is_hidden and each.text else each for each in words]

    def _told(self, report: CallReport) -> dict[str, Any]:
        return replace(report, words=self._redacted(report.words)).to_dict()

    def _note_failure(self, reason: str) -> None:
        self._failure = reason


def teed(trace: CallTrace, on_event: Callable[[TimelineEvent], None]) -> Callable[[TimelineEvent], None]:
    """Return what passes events on to the trace and to `on_event`."""

    def tell(event: TimelineEvent) -> None:
        trace.told(event)
        on_event(event)

    return tell


def check_trace(path: Path) -> None:
    """
    Make sure that a trace can be written to `path`; one that is there is replaced.

    Raises:
        UsageError: If it cannot.
    """
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: its folder does not exist", hint="make the folder first")
    if path.is_dir() and not is_trace_folder(path):
        raise UsageError(
            f"{path} is a folder, and no trace", hint=f"name a file that is to be made: {path / f'good{SUFFIX}'}"
        )


def remove_trace(path: Path) -> None:
    """
    Remove the trace at `path`, a file or a folder; nothing has to be there.

    Raises:
        UsageError: If something else is there, or the trace cannot be removed.
    """
    check_trace(path)
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error.strerror or error}") from error


def move_trace(path: Path, to: Path) -> None:
    """
    Move a trace, a file or a folder, to where it replaces the trace that is there.

    Raises:
        UsageError: If something else is there, or it cannot be moved; then it is still where it was.
    """
    check_trace(to)
    try:
        # They may be on different disks, and nobody is to see half of a trace.
        with tempfile.TemporaryDirectory(dir=to.absolute().parent, prefix=".trace-") as folder:
            copy = Path(folder) / to.name
            if path.is_dir():
                shutil.copytree(path, copy)
            else:
                shutil.copy2(path, copy)
            if copy.is_dir() or to.is_dir():
                remove_trace(to)
            copy.replace(to)
    except OSError as error:
        raise UsageError(f"{to} cannot be written: {error.strerror or error}") from error
    remove_trace(path)


def _versions() -> Mapping[str, str]:
    try:
        return {"wsvoice": __version__, "pipecat": metadata.version("pipecat-ai")}
    except metadata.PackageNotFoundError:
        return {"wsvoice": __version__}
