"""
Writes traces beside the calls: one thread for all of a process's, so that no call waits for the disk.

What a call adds is only put into a list; it is made into lines, audio and turns, and written, within two seconds. All
that waits is bounded. If the disk is too slow, messages are dropped, and audio becomes silence, so what follows keeps
its place; the trace says so.

Calls pay for as little as possible: of a piece of audio a few references are put into a list. What is done once every
20 ms finds none of its code in the processor's caches, and takes five times as long there as it does here, for two
hundred pieces.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from wsvoice.audio import AudioFormat
from wsvoice.call import Call
from wsvoice.trace.format import Header, LogLine, TraceEvent, WireDirection, WireKind, kind_of
from wsvoice.trace.redaction import Masks
from wsvoice.trace.tracks import Track
from wsvoice.trace.writer import TraceWriter

if TYPE_CHECKING:
    from wsvoice.audio import Resampler

_T = TypeVar("_T")

#: How often what was added is written, in seconds; a killed process loses this much.
WRITE_EVERY_S = 2.0
#: How many pieces are made into lines at once: so many stay in the processor's caches.
AT_ONCE = 200
#: How long the thread rests at least: waking up costs as much as writing half a trace.
REST_S = 0.1
#: How late audio may be passed on that is to be written in its place, in seconds.
LATE_S = 0.25
#: How much may wait for the disk, of one call: pieces of audio, bytes of other messages, events and lines.
MAX_PIECES, MAX_WIRE, MAX_LINES = 10_000, 8 * 1024**2, 20_000
#: How many characters a piece's message may have; a longer one is as any other.
MAX_PIECE = 4096
#: How much of the messages is kept of a call that nobody knows yet, in bytes.
MAX_EARLY = 256 * 1024
#: How long the text of one line of the log may be.
MAX_LOG_TEXT = 16_384
#: How much is written of one track at a time, in seconds.
STEP_S = 10.0


class Pieces(NamedTuple):
    """
    Pieces of audio, one after the other.

    Attributes:
        directions: Which way each went.
        times: When, by the trace's clock.
        messages: Their messages; ``None`` where those were added already.
        payloads: The pieces as the stream codes them.
        sounded_at: When its end last made a sound; that is the piece's own time if it is to be heard itself.
        plays_until: When the provider will have played the bot's audio that it has with each.
    """

    directions: Sequence[WireDirection]
    times: Sequence[float]
    messages: Sequence[str | bytes | None]
    payloads: Sequence[bytes]
    sounded_at: Sequence[float | None]
    plays_until: Sequence[float]


#: How many places of the list a piece takes: one for each attribute.
_PLACES = len(Pieces._fields)
#: What the messages of pieces are.
_OF_PIECES = frozenset({str, bytes, type(None)})


class Follower(Protocol):
    """Tells events from the audio, in the writer's thread; times are by the trace's clock."""

    def heard(self, pieces: Pieces) -> Iterable[TraceEvent]:
        """Return what happened while these pieces came."""

    def cleared(self, at: float) -> Iterable[TraceEvent]:
        """Return what happened since the bot's unplayed audio was cut."""

    def ended(self) -> Iterable[TraceEvent]:
        """Return what happened because the call has ended."""


@dataclass(frozen=True, slots=True)
class _Cleared:
    """The bot's unplayed audio was cut."""

    at: float


@dataclass(frozen=True, slots=True)
class _Message:
    """A message from which something may have to be left out."""

    at: float
    dir: WireDirection
    kind: WireKind
    content: str | bytes
    fields: Mapping[str, Any] | None


class LiveTrace:
    """
    The trace of a call that runs. Every method returns at once, and all but :meth:`log` are called in one thread.

    Args:
        clock: The clock of all times that are passed, in seconds.
        masks: What is left out.
        on_failure: Called with why the trace could not be written any further, in the writer's thread; once.
    """

    def __init__(self, clock: Callable[[], float], masks: Masks, *, on_failure: Callable[[str], None]) -> None:
        self._clock = clock
        self._masks = masks
        self._on_failure = on_failure
        self._disk: _Disk | None = None
        self._is_over = False
        #: When the stream started, by the clock.
        self._zero = 0.0
        # Pieces, each with its attributes in so many places; what else comes has a piece's, and stands for its message.
        self._wire: list[Any] = []
        #: How many places may be taken by pieces.
        self._most_places = 0
        # How many bytes of messages were ever put there by the call, and written by the writer's thread.
        self._put = self._written = 0
        self._events: deque[TraceEvent] = deque()
        self._log: deque[LogLine] = deque()
        self._dropped: dict[str, float] = {}

    @property
    def path(self) -> Path | None:
        """Where the trace is; ``None`` if there is none, or not yet."""
        return self._disk.path if self._disk is not None else None

    def begin(
        self,
        folder: Path,
        header: Header,
        formats: tuple[AudioFormat, AudioFormat] | None,
        *,
        zero: float | None = None,
        contiguous: bool = False,
        follower: Follower | None = None,
    ) -> None:
        """
        Begin to write, since the call is known now.

        Args:
            folder: Where to.
            header: What is known; its rate is the higher one of `formats`.
            formats: Of the caller's audio and of the bot's; ``None`` for tracks with nothing in them.
            zero: When the stream started, by the clock; now if ``None``.
            contiguous: Whether each end's audio comes without gaps and in its time, however late, and is not cut.
            follower: Tells events from the audio.
        """
        self._zero = self._clock() if zero is None else zero
        self._disk = _Disk(self, partial(TraceWriter, folder, header, self._masks), formats, header.rate)
        self._disk.is_contiguous, self._disk.follower = contiguous, follower
        self._most_places = MAX_PIECES * _PLACES
        _thread.add(self._disk)

    # What happens

    def wire(
        self,
        dir: WireDirection,
        kind: WireKind,
        content: str | bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        at: float | None = None,
        first: bool = False,
    ) -> None:
        """Add a message; before those that wait if it was the `first`, which is possible until :meth:`begin`."""
        if self._is_over:
            return
        # A stranger's messages wait here until it is known whether there is a call.
        if self._put - self._written > (MAX_WIRE if self._disk is not None else MAX_EARLY):
            self._drop("wire", 1)
            return
        self._put += len(content)
        message = _Message(self._clock() if at is None else at, dir, kind, content, fields)
        place = 0 if first else len(self._wire)
        self._wire[place:place] = (dir, message.at, message, b"", None, 0.0)

    def message(self, direction: WireDirection, raw: str | bytes, *, is_audio: bool) -> None:
        """Add a message of the stream that comes or goes now; nothing has to be left out of one that `is_audio`."""
        if is_audio:
            self.audio(direction, self._clock(), raw)
        else:
            self.wire(direction, kind_of(raw), raw)

    def audio(
        self,
        direction: WireDirection,
        at: float,
        raw: str | bytes | None,
        payload: bytes = b"",
        sounded_at: float | None = None,
        plays_until: float = 0.0,
    ) -> None:
        """
        Add a piece of the caller's audio, which comes ``in``, or of the bot's. Nearly all that is added comes here.

        Args:
            direction: Which way.
            at: When, by the clock.
            raw: Its message, unless that was added; a text is a JSON object.
            payload: The piece, in the format of its end.
            sounded_at: When this end last made a sound, `at` if this is one; for the follower, as what comes next.
            plays_until: When the provider will have played what it has of the bot's audio.
        """
        if len(self._wire) < self._most_places and (raw is None or len(raw) <= MAX_PIECE):
            # At once: the other thread takes whole pieces.
            self._wire.extend((direction, at, raw, payload, sounded_at, plays_until))
        elif not self._is_over:
            if raw is not None:
                self.wire(direction, kind_of(raw), raw, at=at)
            if len(self._wire) < self._most_places:
                self._wire.extend((direction, at, None, payload, sounded_at, plays_until))
            elif payload:
                self._drop("audio_bytes", len(payload))

    def cut(self, at: float) -> None:
        """Cut the bot's audio that was not played by then."""
        if not self._is_over:
            self._wire.extend(("out", at, _Cleared(at), b"", None, 0.0))

    def event(self, event: str, detail: str = "", *, at: float | None = None, **fields: object) -> None:
        """Add an event of the timeline."""
        if self._is_over:
            return
        if len(self._events) >= MAX_LINES:
            self._drop("events", 1)
            return
        self._events.append(TraceEvent(self._clock() if at is None else at, event, detail, fields))

    def log(self, level: str, logger: str, message: str, *, at: float | None = None) -> None:
        """Add a line of the log; may be called in any thread."""
        if self._is_over:
            return
        if len(self._log) >= MAX_LINES:
            self._drop("log", 1)
            return
        self._log.append(LogLine(self._clock() if at is None else at, level, logger, message[:MAX_LOG_TEXT]))

    def learn(self, call: Call) -> None:
        """Leave out what tells who called in this call, if that is to be left out."""
        self._masks.learn(call)

    def end(self, ended: Mapping[str, Any], report: Mapping[str, Any] | None = None) -> Future[Path | None]:
        """Write the rest, and how the call has ended; the future is done when all is on disk."""
        self._close()
        if self._disk is None:
            done: Future[Path | None] = Future()
            done.set_result(None)
            return done
        self._disk.ending = (dict(ended), dict(report or {}), self._clock() - self._zero)
        _thread.wake(self._disk)
        return self._disk.done

    def _close(self) -> None:
        """Accept nothing any more."""
        self._is_over = True
        self._most_places = 0

    def _drop(self, what: str, count: float) -> None:
        self._dropped[what] = self._dropped.get(what, 0) + count

    def give_up(self, reason: str) -> None:
        """Write no further; what was written stays."""
        self._close()
        for waiting in (self._wire, self._events, self._log):
            waiting.clear()
        self._on_failure(reason)


class _Disk:
    """The writing of one trace, in the writer's thread."""

    def __init__(
        self,
        live: LiveTrace,
        open_writer: Callable[[], TraceWriter],
        formats: tuple[AudioFormat, AudioFormat] | None,
        rate: int,
    ) -> None:
        self._live = live
        self._open = open_writer
        self._writer: TraceWriter | None = None
        self._has_sound = formats is not None
        self.is_contiguous = False
        self.follower: Follower | None = None
        caller, bot = formats or (AudioFormat(sample_rate=rate),) * 2
        self._caller, self._bot = _Resampled(caller, rate), _Resampled(bot, rate)
        self._written_until = 0.0
        self.path: Path | None = None
        self.ending: tuple[dict[str, Any], dict[str, Any], float] | None = None
        self.done: Future[Path | None] = Future()

    def step(self) -> bool:
        """Write what there is; false once all is written."""
        live, ending = self._live, self.ending
        try:
            if self._writer is None:
                self._writer = self._open()
                self.path = self._writer.path
            self._write(self._writer, None if ending is None else ending[2])
            if ending is None:
                return True
            ended, report, t = ending
            for what, count in live._dropped.items():
                self._writer.note_dropped(what, count)
            samples = min(self._caller.written, self._bot.written)
            self._writer.close({"t": round(t, 4), "samples": samples, **ended}, report)
        except Exception as error:  # noqa: BLE001 One trace's failure must not end the thread, and the others with it.
            if self._writer is not None:
                self._writer.abandon()
            live.give_up(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        self.done.set_result(self.path)
        return False

    def _write(self, writer: TraceWriter, ended_s: float | None) -> None:
        live, zero, follower = self._live, self._live._zero, self.follower
        # What was played by now cannot be cut any more; a little less, for what is being added.
        played_s = live._clock() - zero - LATE_S
        # What is put there from now on may be written too; it counts the next time.
        put = live._put
        size = len(live._wire)
        waiting = live._wire[:size]
        del live._wire[:size]
        for begin in range(0, size, AT_ONCE * _PLACES):
            self._write_some(writer, waiting[begin : begin + AT_ONCE * _PLACES])
        live._written = put
        if follower is not None and ended_s is not None:
            self._tell(writer, follower.ended())
        self._tell(writer, _taken(live._events))
        for line in _taken(live._log):
            writer.log(LogLine(line.t - zero, line.level, line.logger, line.message))
        writer.flush()
        if self._has_sound:
            self._write_sound(writer, played_s, ended_s)

    def _write_some(self, writer: TraceWriter, waiting: Sequence[Any]) -> None:
        """Write pieces, and what else there is between them."""
        messages, zero, begin = waiting[2::_PLACES], self._live._zero, 0
        for number in _others(messages):
            self._write_pieces(writer, waiting[begin * _PLACES : number * _PLACES])
            begin, each = number + 1, messages[number]
            if isinstance(each, _Message):
                writer.wire(each.at - zero, each.dir, each.kind, each.content, each.fields)
            else:
                self._bot.track.cut(each.at - zero)
                if self.follower is not None:
                    self._tell(writer, self.follower.cleared(each.at))
        self._write_pieces(writer, waiting[begin * _PLACES :])

    def _write_pieces(self, writer: TraceWriter, waiting: Sequence[Any]) -> None:
        """Write the messages of pieces, put on the tracks what they carry, and tell what happened meanwhile."""
        if not waiting:
            return
        zero, pieces = self._live._zero, Pieces(*(waiting[place::_PLACES] for place in range(_PLACES)))
        writer.audio_messages(pieces.times, pieces.directions, pieces.messages, zero=zero)
        if self._has_sound:
            for direction, track in (("in", self._caller.track), ("out", self._bot.track)):
                its = [each == direction for each in pieces.directions]
                track.put_all([*compress(pieces.times, its)], [*compress(pieces.payloads, its)], zero=zero)
        if self.follower is not None:
            self._tell(writer, self.follower.heard(pieces))

    def _tell(self, writer: TraceWriter, events: Iterable[TraceEvent]) -> None:
        zero = self._live._zero
        for each in events:
            if each.event == "buffer":
                writer.buffer(each.t - zero, each.fields["ms"])
            else:
                writer.event(TraceEvent(each.t - zero, each.event, each.detail, each.fields))

    def _write_sound(self, writer: TraceWriter, until_s: float, ended_s: float | None) -> None:
        ends = self._caller.track.ends_s, self._bot.track.ends_s
        if self.is_contiguous:
            until_s = max(ends) if ended_s is not None else min(ends)
        elif ended_s is not None:
            until_s = max(ended_s, self._written_until)
        while self._written_until < until_s:
            self._written_until = min(until_s, self._written_until + STEP_S)
            writer.caller(self._caller.take(self._written_until))
            writer.bot(self._bot.take(self._written_until))
        if ended_s is not None:
            writer.caller(self._caller.rest())
            writer.bot(self._bot.rest())


def _others(messages: Sequence[object]) -> list[int]:
    """Return which of these are no messages of pieces."""
    if _OF_PIECES.issuperset(map(type, messages)):
        return []
    return [number for number, each in enumerate(messages) if isinstance(each, _Message | _Cleared)]


def _taken(waiting: deque[_T]) -> list[_T]:
    """Take what waits by now, while more may be added."""
    take = waiting.popleft
    return [take() for _ in range(len(waiting))]


class _Resampled:
    """A track that is written at another rate than its end has."""

    def __init__(self, format: AudioFormat, written_rate: int) -> None:
        self.track = Track(format)
        #: How many samples were written.
        self.written = 0
        self._resampler: Resampler | None = None
        if format.sample_rate != written_rate:
            from wsvoice.audio import Resampler

            self._resampler = Resampler.offline(format.sample_rate, written_rate)

    def take(self, until_s: float) -> bytes:
        """Remove and return the audio before `until_s`."""
        pcm = self.track.take(until_s)
        return self._noted(pcm if self._resampler is None else self._resampler.process(pcm))

    def rest(self) -> bytes:
        """Return what the resampler holds back, at the end."""
        return self._noted(b"" if self._resampler is None else self._resampler.flush())

    def _noted(self, pcm: bytes) -> bytes:
        self.written += len(pcm) // 2
        return pcm


class _Thread:
    """The thread that writes; there is one while there are traces."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The traces for which somebody waits.
        self._urgent: queue.SimpleQueue[_Disk] = queue.SimpleQueue()
        self._disks: list[_Disk] = []
        self._thread: threading.Thread | None = None

    def add(self, disk: _Disk) -> None:
        """Write another trace, from now on."""
        with self._lock:
            self._disks.append(disk)
            # A forked process has none of the threads.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="wsvoice-trace", daemon=True)
                self._thread.start()
        self.wake(disk)

    def wake(self, disk: _Disk) -> None:
        """Write one trace now."""
        self._urgent.put(disk)

    def _run(self) -> None:
        while True:
            with self._lock:
                disks = list(self._disks)
                if not disks:
                    self._thread = None
                    return
            # A few at a time: the calls wait while this thread computes.
            at_once = math.ceil(len(disks) * REST_S / WRITE_EVERY_S)
            rest_s = WRITE_EVERY_S / math.ceil(len(disks) / at_once)
            for number, disk in enumerate(disks):
                if number % at_once == 0:
                    self._rest(rest_s)
                self._step(disk)

    def _rest(self, rest_s: float) -> None:
        """Wait so long, or until there is nothing to write; write what somebody waits for meanwhile."""
        until = time.monotonic() + rest_s
        with suppress(queue.Empty):
            while self._disks:
                self._step(self._urgent.get(timeout=max(0.0, until - time.monotonic())))

    def _step(self, disk: _Disk) -> None:
        if not disk.done.done() and not disk.step():
            with self._lock:
                self._disks.remove(disk)


_thread = _Thread()
