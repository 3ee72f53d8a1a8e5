"""
Writes traces beside the calls: one thread for all of a process's, so that no call waits for the disk.

What a call adds is only put into a list; it is made into lines and audio, and written, within a second. All that waits
is bounded. If the disk is too slow, messages are dropped, and audio becomes silence, so what follows keeps its place;
the trace says so.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsvoice.call import Call
from wsvoice.trace.format import Header, LogLine, TraceEvent, WireDirection, WireKind
from wsvoice.trace.redaction import Masks
from wsvoice.trace.tracks import Track
from wsvoice.trace.writer import TraceWriter

if TYPE_CHECKING:
    from wsvoice.audio import Resampler

_T = TypeVar("_T")

#: How often what was added is written; a killed process loses this much.
WRITE_EVERY_S = 1.0
#: How late audio may be passed on that is to be written in its place, in seconds.
LATE_S = 0.25
#: How much may wait for the disk, of one call: bytes of messages, bytes of audio, events and lines.
MAX_WIRE, MAX_AUDIO, MAX_LINES = 8 * 1024**2, 8 * 1024**2, 20_000
#: How much of the messages is kept of a call that nobody knows yet, in bytes.
MAX_EARLY = 256 * 1024
#: How long the text of one line of the log may be.
MAX_LOG_TEXT = 16_384
#: How much of the bot's unplayed audio is kept, in seconds.
MAX_UNPLAYED_S = 600.0
#: How much is written of one track at a time, in seconds.
STEP_S = 10.0

_Wire = tuple[float, WireDirection, WireKind, str | bytes, Mapping[str, Any] | None, bool]
_Sound = tuple[str, bytes, float]


class LiveTrace:
    """
    The trace of a call that runs. Every method but :meth:`finished` returns at once, and is called in one thread.

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
        self._wire: deque[_Wire] = deque()
        self._sound: deque[_Sound] = deque()
        self._events: deque[TraceEvent] = deque()
        self._log: deque[LogLine] = deque()
        # How much was ever put there by the call, and taken from there by the writer's thread.
        self._wire_put = self._wire_taken = self._sound_put = self._sound_taken = 0
        self._dropped: dict[str, float] = {}

    @property
    def path(self) -> Path | None:
        """Where the trace is; ``None`` if there is none, or not yet."""
        return self._disk.path if self._disk is not None else None

    def begin(
        self,
        folder: Path,
        header: Header,
        rates: tuple[int, int] | None,
        *,
        zero: float | None = None,
        contiguous: bool = False,
    ) -> None:
        """
        Begin to write, since the call is known now.

        Args:
            folder: Where to.
            header: What is known; its rate is the higher one of `rates`.
            rates: Samples a second of the caller's audio and of the bot's; ``None`` for tracks with nothing in them.
            zero: When the stream started, by the clock; now if ``None``.
            contiguous: Whether each end's audio comes without gaps and in its time, however late, and is not cut.
        """
        self._zero = self._clock() if zero is None else zero
        self._disk = _Disk(self, partial(TraceWriter, folder, header, self._masks), rates, header.rate)
        self._disk.is_contiguous = contiguous
        _thread.add(self._disk)

    # What happens

    def wire(
        self,
        dir: WireDirection,
        kind: WireKind,
        content: str | bytes,
        fields: Mapping[str, Any] | None = None,
        *,
        is_audio: bool = False,
        at: float | None = None,
        first: bool = False,
    ) -> None:
        """Add a message, before those that wait if it was the `first`; nothing is left out of one that `is_audio`."""
        if self._is_over:
            return
        # A stranger's messages wait here until it is known whether there is a call.
        if self._wire_put - self._wire_taken > (MAX_WIRE if self._disk is not None else MAX_EARLY):
            self._drop("wire", 1)
            return
        self._wire_put += len(content)
        message = (self._clock() if at is None else at, dir, kind, content, fields, is_audio)
        if first:
            self._wire.appendleft(message)
        else:
            self._wire.append(message)

    def message(self, direction: WireDirection, raw: str | bytes, *, is_audio: bool) -> None:
        """Add a message of the stream that comes or goes now: what :meth:`wire` does, for a hundred a second."""
        if self._is_over:
            return
        if self._wire_put - self._wire_taken > MAX_EARLY:
            # That may be too much.
            self.wire(direction, "text" if isinstance(raw, str) else "binary", raw, is_audio=is_audio)
            return
        self._wire_put += len(raw)
        kind: WireKind = "text" if type(raw) is str else "binary"
        self._wire.append((self._clock(), direction, kind, raw, None, is_audio))

    def hear(self, who: str, pcm: bytes, now: float) -> None:
        """Add a piece of s16le audio of ``caller`` or ``bot``, or cut the bot's unplayed audio (``clear``)."""
        if self._is_over:
            return
        if self._sound_put - self._sound_taken > MAX_AUDIO and pcm:
            self._drop("audio_bytes", len(pcm))
            return
        self._sound_put += len(pcm)
        self._sound.append((who, pcm, now))

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
        self._is_over = True
        if self._disk is None:
            done: Future[Path | None] = Future()
            done.set_result(None)
            return done
        self._disk.ending = (dict(ended), dict(report or {}), self._clock() - self._zero)
        _thread.wake()
        return self._disk.done

    def _drop(self, what: str, count: float) -> None:
        self._dropped[what] = self._dropped.get(what, 0) + count

    def give_up(self, reason: str) -> None:
        """Write no further; what was written stays."""
        self._is_over = True
        for waiting in (self._wire, self._sound, self._events, self._log):
            waiting.clear()
        self._on_failure(reason)


class _Disk:
    """The writing of one trace, in the writer's thread."""

    def __init__(
        self, live: LiveTrace, open_writer: Callable[[], TraceWriter], rates: tuple[int, int] | None, rate: int
    ) -> None:
        self._live = live
        self._open = open_writer
        self._writer: TraceWriter | None = None
        self._has_sound = rates is not None
        self.is_contiguous = False
        caller_rate, bot_rate = rates or (rate, rate)
        self._tracks = {"caller": _Resampled(caller_rate, rate), "bot": _Resampled(bot_rate, rate)}
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
            self._writer.close({"t": round(t, 4), "samples": self._samples, **ended}, report)
        except OSError as error:
            if self._writer is not None:
                self._writer.abandon()
            live.give_up(error.strerror or str(error) or type(error).__name__)
        self.done.set_result(self.path)
        return False

    def _write(self, writer: TraceWriter, ended_s: float | None) -> None:
        live, zero = self._live, self._live._zero
        audio: list[tuple[float, WireDirection, str]] = []
        taken = 0
        for at, dir, kind, content, fields, is_audio in _taken(live._wire):
            taken += len(content)
            if is_audio and type(content) is str:
                audio.append((at - zero, dir, content))
                continue
            writer.audio_messages(audio)
            audio.clear()
            writer.wire(at - zero, dir, kind, content, fields, is_audio=is_audio)
        live._wire_taken += taken
        writer.audio_messages(audio)
        for event in _taken(live._events):
            if event.event == "buffer":
                writer.buffer(event.t - zero, event.fields["ms"])
                continue
            writer.event(TraceEvent(event.t - zero, event.event, event.detail, event.fields))
        for line in _taken(live._log):
            writer.log(LogLine(line.t - zero, line.level, line.logger, line.message))
        writer.flush()
        if self._has_sound:
            self._write_sound(writer, ended_s)

    def _write_sound(self, writer: TraceWriter, ended_s: float | None) -> None:
        live = self._live
        # What was played by now cannot be cut any more; a little less, for what is being added.
        until_s = live._clock() - live._zero - LATE_S
        zero, caller, bot = live._zero, self._tracks["caller"].track, self._tracks["bot"].track
        taken = 0
        for who, pcm, now in _taken(live._sound):
            taken += len(pcm)
            if who == "caller":
                caller.put(pcm, now - zero, most_s=MAX_UNPLAYED_S)
            elif who == "bot":
                bot.put(pcm, now - zero, most_s=MAX_UNPLAYED_S)
            else:
                bot.cut(now - zero)
        live._sound_taken += taken
        ends = [each.track.ends_s for each in self._tracks.values()]
        if self.is_contiguous:
            until_s = max(ends) if ended_s is not None else min(ends)
        elif ended_s is not None:
            until_s = max(ended_s, self._written_until)
        while self._written_until < until_s:
            self._written_until = min(until_s, self._written_until + STEP_S)
            writer.caller(self._tracks["caller"].take(self._written_until))
            writer.bot(self._tracks["bot"].take(self._written_until))
        if ended_s is not None:
            writer.caller(self._tracks["caller"].rest())
            writer.bot(self._tracks["bot"].rest())

    @property
    def _samples(self) -> int:
        """How long both tracks are."""
        return min(track.written for track in self._tracks.values())


def _taken(waiting: deque[_T]) -> list[_T]:
    """Take what waits by now, while more may be added."""
    take = waiting.popleft
    return [take() for _ in range(len(waiting))]


class _Resampled:
    """A track that is written at another rate than its end has."""

    def __init__(self, rate: int, written_rate: int) -> None:
        self.track = Track(rate)
        #: How many samples were written.
        self.written = 0
        self._resampler: Resampler | None = None
        if rate != written_rate:
            from wsvoice.audio import Resampler

            self._resampler = Resampler.offline(rate, written_rate)

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
        self._woken = threading.Event()
        self._disks: list[_Disk] = []
        self._thread: threading.Thread | None = None

    def add(self, disk: _Disk) -> None:
        """Write another trace."""
        with self._lock:
            self._disks.append(disk)
            # A forked process has none of the threads.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="wsvoice-trace", daemon=True)
                self._thread.start()
        self._woken.set()

    def wake(self) -> None:
        """Write now."""
        self._woken.set()

    def _run(self) -> None:
        while True:
            self._woken.wait(WRITE_EVERY_S)
            self._woken.clear()
            for disk in list(self._disks):
                if not disk.step():
                    with self._lock:
                        self._disks.remove(disk)
            with self._lock:
                if not self._disks:
                    self._thread = None
                    return


_thread = _Thread()
