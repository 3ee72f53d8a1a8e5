"""
Calls a bot from a test: what the fixtures ``dial`` and ``adial`` are, and what they return.

The names are for annotations:

.. code-block:: python

    from wsvoice.testing import Dial

    def test_the_bot_answers(dial: Dial) -> None:
        dial("bot.py").assert_passed()
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shlex
import threading
import wave
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from wsvoice import isolation
from wsvoice.audio import correlations, read_audio, resample
from wsvoice.config import DialConfig, did_you_mean, resolve_dial
from wsvoice.dial.call_trace import move_trace, remove_trace
from wsvoice.dial.caller import dial as place_call
from wsvoice.dial.report import CallReport, TimelineEvent
from wsvoice.dial.sound_detection import SoundDetector, audible_range
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import UsageError, WsvoiceError
from wsvoice.replay.plan import check_not_replaced, configure, read_plan
from wsvoice.replay.replaying import Replay
from wsvoice.trace import read_trace
from wsvoice.trace.format import SUFFIX

if TYPE_CHECKING:
    from wsvoice.dial.placed_call import MakeSpeaker
    from wsvoice.replay.comparison import Comparison

#: The telephone's sample rate, in which sound is given and compared.
SAMPLE_RATE = 8000

# Matches of a sound that are closer than this are one.
_SAME_PLACE_MS = 100

Bot = str | PathLike[str] | Callable[..., Coroutine[Any, Any, Any]]


class CallOptions(TypedDict, total=False):
    """
    How a call is placed: the options of ``wsvoice dial``, which go before the project's settings.

    Attributes:
        provider: The provider to play.
        audio: What the caller says: sound files, one a turn.
        say: What the caller says after that: texts, one a turn. Needs ``wsvoice[say]``.
        voice: Who says them: a language or voice of eSpeak NG, such as ``es``.
        dtmf: Keys to press after that; ``w`` waits half a second.
        from_number: Who calls.
        to_number: Who is called.
        parameters: Parameters for the bot.
        listen_s: How long the bot may speak first.
        duration_s: Stay on the line this long, and not until it is done.
        response_timeout_s: How long to wait for an answer.
        quirks: How the provider deviates, as ``wsvoice dial --quirk list`` lists it.
        probe: Also try an unsigned webhook, broken messages and an interruption.
        env: Environment variables, for the bot and for the settings of this call.
        cwd: The folder of the bot and of the project's settings; by default, where the bot is found.
        record: Where to write the recording; by default, in pytest's temporary folder.
        transcriber: Who turns what was said into words, which are in the report's `words`; as `wsvoice dial` takes it.
        trace: Where to write the call's trace, ``NAME.call``; ``True`` for pytest's temporary folder. By default it is
            kept if the test fails, and else removed.
        adaptive: In a replay, wait for the bot before each turn.
        max_slower: In a replay, by how much of itself a wait may be longer.
        min_correlation: In a replay, how similar what the bot says has to be.
        ignore: What is not compared in a replay: ``waits``, ``sound``, ``keys``, ``end``, ``findings``.
    """

    provider: str
    audio: str | PathLike[str] | Sequence[str | PathLike[str]]
    say: str | Sequence[str]
    voice: str
    dtmf: str
    from_number: str
    to_number: str
    parameters: Mapping[str, str]
    listen_s: float
    duration_s: float
    response_timeout_s: float
    quirks: Mapping[str, str]
    probe: bool
    env: Mapping[str, str]
    cwd: str | PathLike[str]
    record: str | PathLike[str]
    transcriber: str
    trace: str | PathLike[str] | bool
    adaptive: bool
    max_slower: float
    min_correlation: float
    ignore: str | Sequence[str]


#: The setting for each option that is passed on as it is.
_SETTINGS = {
    "provider": "transport",
    "voice": "voice",
    "dtmf": "dtmf",
    "from_number": "from",
    "to_number": "to",
    "parameters": "param",
    "listen_s": "listen",
    "duration_s": "duration",
    "response_timeout_s": "response-timeout",
    "quirks": "quirk",
    "probe": "probe",
    "transcriber": "transcriber",
    "adaptive": "adaptive",
    "max_slower": "max-slower",
    "min_correlation": "min-correlation",
    "ignore": "ignore",
}


@dataclass(frozen=True, repr=False)
class Report(CallReport):
    """
    A call that was placed: everything that ``wsvoice dial --json`` reports, what was heard, and what happened.

    The ``assert_`` methods say what was there instead if they fail.

    Attributes:
        timeline: What happened, in order.
        comparison: How a replay compares with the call that was recorded; ``None`` for other calls.
    """

    timeline: Sequence[TimelineEvent] = field(default=(), compare=False)
    comparison: Comparison | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        why = f": {self.failure.splitlines()[0]}" if self.failure else ""
        return f"<Report of {self.target}, {self.provider}: {self.verdict}{why}>"

    @property
    def passed(self) -> bool:
        """Whether a real call would have gone well."""
        return self.verdict == "passed"

    @property
    def sample_rate(self) -> int:
        """The rate of `heard` and `said`: 8000."""
        return SAMPLE_RATE

    @property
    def heard(self) -> bytes:
        """
        What the caller heard of the bot, from the stream's start on: 16-bit little-endian samples, 8000 a second.

        Empty if no stream was started.
        """
        return self._sides[1]

    @property
    def said(self) -> bytes:
        """What the bot was sent; as `heard`."""
        return self._sides[0]

    @property
    def wav(self) -> Path | None:
        """The recording, with the caller on the left and the bot on the right; ``None`` if no stream was started."""
        return None if self.recording is None else Path(self.recording)

    @property
    def log(self) -> list[str]:
        """The lines that the bot's process wrote; empty for a bot that was served before."""
        return [event.text for event in self.timeline if event.kind == "log"]

    @property
    def response_times_ms(self) -> list[float | None]:
        """How long the caller waited for an answer to each turn; ``None`` where there was none."""
        return [turn.response_ms for turn in self.turns]

    @property
    def differences(self) -> list[str]:
        """What is not as in the call that was placed again, each in one line; none for other calls."""
        return [] if self.comparison is None else [str(each) for each in self.comparison.differences]

    @cached_property
    def sounds(self) -> list[tuple[float, float]]:
        """The bot's sounds: when each begins and ends, in ms since the stream started."""
        detector = SoundDetector(SAMPLE_RATE)
        detector.feed(self.heard)
        detector.flush()
        return [(sound.start_ms, sound.end_ms) for sound in detector.sounds]

    def find(self, sound: bytes | str | PathLike[str], *, min_correlation: float = 0.6) -> list[float]:
        """
        Return when the bot was heard saying `sound`: where its audible part begins, in ms since the stream started.

        .. code-block:: python

            welcome, menu = report.find("prompts/welcome.wav"), report.find("prompts/menu.wav")
            assert len(menu) == 2
            assert welcome[0] < menu[0]

        Args:
            sound: A sound file, or 16-bit samples at 8000 a second.
            min_correlation: How similar it has to be: 1.0 is the same but for the loudness. After the telephone's
                codec it is about 0.99, with noise less; other words in the same voice have about 0.2.

        Raises:
            ValueError: If `sound` is silent, or `min_correlation` is not above 0 and at most 1.
        """
        if not 0 < min_correlation <= 1:
            raise ValueError(f"min_correlation is above 0 and at most 1, got {min_correlation:g}")
        similarity = self._similarity(sound)
        found: list[int] = []
        for at in np.flatnonzero(similarity >= min_correlation).tolist():
            if found and (at - found[-1]) * 1000 < _SAME_PLACE_MS * SAMPLE_RATE:
                if similarity[at] > similarity[found[-1]]:
                    found[-1] = at
            else:
                found.append(at)
        return [at * 1000 / SAMPLE_RATE for at in found]

    def closest(
        self, sound: bytes | str | PathLike[str], from_ms: float = 0.0, to_ms: float | None = None
    ) -> tuple[float, float] | None:
        """
        Return where the bot was heard saying what is most like `sound`: when that begins, in ms, and the correlation.

        ``None`` if this part of the call is shorter than that.

        Args:
            sound: As in :meth:`find`.
            from_ms: The earliest beginning, in ms since the stream started.
            to_ms: The latest; ``None`` for any.
        """
        first = max(0, round(from_ms * SAMPLE_RATE / 1000))
        last = None if to_ms is None else max(0, round(to_ms * SAMPLE_RATE / 1000))
        similarity = self._similarity(sound)[first:last]
        if not len(similarity):
            return None
        best = int(np.argmax(similarity))
        return (first + best) * 1000 / SAMPLE_RATE, float(similarity[best])

    def assert_passed(self) -> None:
        """
        Fail unless a real call would have gone well, and say why; pytest shows the whole call below.

        A replay also has to be as the call was that it repeats.
        """
        __tracebackhide__ = True
        if self.passed:
            return
        if self.differences:
            raise AssertionError("\n".join(["the call is not as it was recorded:", *self.differences]))
        # A traceback is in the log, which is shown with the call.
        why = (self.failure or "").partition("\n")[0].rstrip(":")
        lines = [f"the call failed: {why}"]
        lines += [f"{found.level} {found.id}: {found.message}" for found in self.findings if found.message != why]
        raise AssertionError("\n".join(lines))

    def assert_heard(self, sound: bytes | str | PathLike[str], *, min_correlation: float = 0.6) -> float:
        """
        Fail unless the bot was heard saying `sound`, and return when it first began to.

        .. code-block:: python

            assert report.assert_heard("prompts/welcome.wav") < 1000

        The arguments are those of :meth:`find`.
        """
        __tracebackhide__ = True
        if found := self.find(sound, min_correlation=min_correlation):
            return found[0]
        similarity = self._similarity(sound)
        name = f"a sound of {len(sound) / 2 / SAMPLE_RATE:.1f} s" if isinstance(sound, bytes) else os.fspath(sound)
        if not len(similarity):
            raise AssertionError(f"{name} was not heard: the call was shorter than that")
        best = int(np.argmax(similarity))
        raise AssertionError(
            f"{name} was not heard: the most similar sound, at {best * 1000 / SAMPLE_RATE:.0f} ms, has a correlation"
            f" of {similarity[best]:.2f}, and {min_correlation:g} was asked for; {self._describe_sounds()}"
        )

    def assert_silent(self, from_ms: float = 0.0, to_ms: float | None = None) -> None:
        """
        Fail if the bot made a sound in this part of the call.

        .. code-block:: python

            # The bot does not talk over the caller.
            turn = report.turns[0]
            report.assert_silent(turn.caller_start_ms, turn.caller_end_ms)

        Args:
            from_ms: Where the part begins, in ms since the stream started.
            to_ms: Where it ends; ``None`` for the end of the call.

        Raises:
            ValueError: If one is negative, or the part ends before it begins.
        """
        __tracebackhide__ = True
        _check_positive(from_ms=from_ms, to_ms=to_ms)
        if to_ms is not None and to_ms < from_ms:
            raise ValueError(f"the part ends before it begins: from_ms={from_ms:g}, to_ms={to_ms:g}")
        end_ms = self.duration_ms if to_ms is None else to_ms
        if any(start < end_ms and end > from_ms for start, end in self.sounds):
            part = f"from {from_ms:.0f} to {end_ms:.0f} ms"
            raise AssertionError(f"the bot was not silent {part}; {self._describe_sounds()}")

    def assert_answers_within(self, limit_ms: float) -> None:
        """
        Fail unless the bot answered each of the caller's turns within `limit_ms`.

        Raises:
            ValueError: If the limit is negative.
        """
        __tracebackhide__ = True
        _check_positive(limit_ms=limit_ms)
        times = self.response_times_ms
        if not times:
            raise AssertionError(f"there was no turn to answer; the call {self.verdict}: {self.failure}")
        if any(time is None or time > limit_ms for time in times):
            told = ", ".join("never" if time is None else f"after {time:.0f} ms" for time in times)
            raise AssertionError(f"not every turn was answered within {limit_ms:g} ms: {told}")

    def _describe_sounds(self) -> str:
        if not self.sounds:
            return "the bot never made a sound"
        return "the bot was sounding " + ", ".join(f"{start:.0f}-{end:.0f}" for start, end in self.sounds) + " ms"

    @cached_property
    def _sides(self) -> tuple[bytes, bytes]:
        if self.recording is None:
            return b"", b""
        with wave.open(self.recording) as file:
            rate, n_channels = file.getframerate(), file.getnchannels()
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, n_channels)
        caller, bot = (resample(frames[:, side].tobytes(), rate, SAMPLE_RATE) for side in range(2))
        return caller, bot

    def _similarity(self, sound: bytes | str | PathLike[str]) -> NDArray[np.float64]:
        """Return for each place in `heard` how similar it is to the audible part of `sound`, -1 to 1."""
        pcm = bytes(sound) if isinstance(sound, bytes | bytearray) else resample(*read_audio(sound), SAMPLE_RATE)
        audible = audible_range(pcm, SAMPLE_RATE)
        if audible is None:
            raise ValueError("the sound to look for is silent")
        return correlations(np.frombuffer(self.heard, "<i2"), np.frombuffer(pcm, "<i2")[slice(*audible)])


def trace_of(report: Report) -> Path | None:
    """Return the trace of a call; ``None`` if there is none, or it was not kept."""
    trace = None if report.trace is None else Path(report.trace)
    return trace if trace is not None and trace.exists() else None


def how_to_see(report: Report) -> str | None:
    """Return the line that leads from a failed test to its call: the command that shows it, or its recording."""
    if (trace := trace_of(report)) is not None:
        calls = [str(trace)] if report.comparison is None else [report.comparison.recorded, str(trace)]
        return f"see the call: wsvoice show {shlex.join(calls)}"
    return f"hear the call: {report.wav}" if report.wav is not None else None


@dataclass
class PlacedCall:
    """
    A call that a test has placed, to be shown if the test fails; once it is over, with its report.

    Attributes:
        trace: The trace that is of use only if the test fails; ``None`` if there is none, or the test asked for it.
        keep_as: Where that trace goes then; ``None`` if it stays where it is.
    """

    bot: str
    timeline: list[TimelineEvent] = field(default_factory=list)
    report: Report | None = None
    trace: Path | None = None
    keep_as: Path | None = None

    def discard_trace(self) -> None:
        """Remove the trace that the test has not asked for."""
        if self.trace is not None:
            # What cannot be removed is in the way of nobody.
            with suppress(UsageError):
                remove_trace(self.trace)

    def keep_trace(self) -> str:
        """Move the trace of a test that has failed to where it is kept; return why it stays where it is, if it does."""
        if self.trace is None or self.keep_as is None or not self.trace.exists():
            return ""
        try:
            move_trace(self.trace, self.keep_as)
        except UsageError as error:
            return f"the trace is not kept: {error.message}"
        if self.report is not None:
            self.report = replace(self.report, trace=str(self.keep_as))
        self.trace, self.keep_as = self.keep_as, None
        return ""

    def to_lines(self) -> list[str]:
        """Return the call's timeline and report in words."""
        lines = []
        for event in self.timeline:
            is_logged = event.kind in ("log", "caller-log")
            lines.append(f"{'':8} | {event.text}" if is_logged else f"{event.at_ms / 1000:8.3f}   {event.text}")
        if self.report is None:
            return lines
        *rest, verdict = self.report.to_lines()
        if self.report.comparison is not None:
            rest += self.report.comparison.to_lines()
        # Its other lines are the end of the log again.
        return [*lines, *rest, verdict.partition("\n")[0]]


@dataclass(frozen=True)
class CallFactory:
    """
    Prepares a test's calls.

    Attributes:
        folders: Where bots and audio files are looked for, in this order.
        root: No project is looked for above this folder.
        new_recording: Returns the path for the next recording.
        calls: The calls that were placed; new ones are added.
        keep_as: Returns where the trace of the next call is kept if the test asks for none, and fails; ``None`` for
            beside its recording. Without it, no such trace is written.
    """

    folders: Sequence[Path]
    root: Path
    new_recording: Callable[[], Path]
    calls: list[PlacedCall]
    keep_as: Callable[[], Path | None] | None = None

    def prepare(self, bot: Bot, options: CallOptions) -> _CallThread:
        """Return a call that is ready to be placed; errors as :meth:`resolve`."""
        return self._traced(bot, self.resolve(bot, options))

    def prepare_replay(self, call: str | PathLike[str], bot: Bot, options: CallOptions) -> _CallThread:
        """Return a traced call that is ready to be placed again; errors as :meth:`resolve_replay`."""
        return self._traced(bot, self.resolve_replay(call, bot, options))

    def _traced(self, bot: Bot, config: DialConfig) -> _CallThread:
        """Return a call that is ready to be placed, with a trace for the case that the test fails."""
        if config.trace is not None or self.keep_as is None:
            return self.thread(_named(bot), config)
        # Only that of a call that has failed may take the place of an earlier one.
        trace, keep_as = self.new_recording().with_suffix(SUFFIX), self.keep_as()
        if config.replay is not None and keep_as is not None:
            check_not_replaced(config.replay, keep_as, "the trace of this call")
        thread = self.thread(_named(bot), replace(config, trace=trace))
        self.calls[-1].trace, self.calls[-1].keep_as = trace, keep_as
        return thread

    def resolve_replay(self, call: str | PathLike[str], bot: Bot, options: CallOptions) -> DialConfig:
        """
        Return how a traced call is to be placed again; errors as :meth:`resolve`.

        Args:
            call: Its trace.
            bot: The bot.
            options: What goes before what the trace says.

        Raises:
            TraceError: If it cannot be placed again.
        """
        folders = [Path(options["cwd"]), *self.folders] if "cwd" in options else self.folders
        path = next((folder / call for folder in folders if (folder / call).exists()), Path(call))
        config = self.resolve(bot, options, replay=path)
        with read_trace(path) as trace:
            # What is wrong with it is told before anything is placed.
            read_plan(trace)
            return configure(trace, config, {_SETTINGS[name] for name in options if name in _SETTINGS})

    def resolve(self, bot: Bot, options: CallOptions, *, replay: Path | None = None) -> DialConfig:
        """
        Return how the call is to be placed; without a recording unless `options` name one.

        Args:
            bot: The bot.
            options: What the test says of the call.
            replay: The trace of the call that is placed again.

        Raises:
            UsageError: If the bot, a file or an option cannot be used.
            TypeError: If there is no such option.
        """
        for option in options.keys() - CallOptions.__annotations__:
            hint = did_you_mean(option, CallOptions.__annotations__)
            raise TypeError(f"a call has no option {option!r}" + (f"; {hint}" if hint else ""))
        name = _named(bot)
        folders = [Path(options["cwd"]).absolute()] if "cwd" in options else self.folders
        target, home = _find_bot(name, folders)
        folder = folders[0] if "cwd" in options else self._project(home)
        env = {key: str(value) for key, value in options.get("env", {}).items()}
        flags: dict[str, Any] = {setting: options.get(option) for option, setting in _SETTINGS.items()}
        flags["target"] = target
        flags["replay"] = replay
        flags["audio"] = [find_file(path, [folder, *folders]) for path in _listed(options.get("audio", ()))]
        flags["say"] = _listed(options.get("say", ()))
        if "record" in options:
            flags["record"] = Path(options["record"]).absolute()
        wanted = options.get("trace", False)
        if not isinstance(wanted, bool):
            flags["trace"] = Path(wanted).absolute()
        config = resolve_dial(flags, environ={**os.environ, **env}, cwd=folder).config
        record = config.record if "record" in options else None
        trace = None if isinstance(wanted, bool) else config.trace
        if wanted is True:
            trace = self.new_recording().with_suffix(SUFFIX)
        # Which call is placed again is not for a project to say.
        return replace(config, environ=env, cwd=folder, caller=None, record=record, trace=trace, replay=replay)

    def thread(
        self,
        name: str,
        config: DialConfig,
        *,
        speaker: MakeSpeaker | None = None,
        timeouts: Timeouts | None = None,
        on_event: Callable[[TimelineEvent], None] = lambda event: None,
    ) -> _CallThread:
        """
        Return the call of `config` in a thread, not yet started.

        Args:
            name: The bot, as the test wrote it.
            config: How the call is placed.
            speaker: Makes who speaks for the caller; what `config` says by default, which may be a call to replay.
            timeouts: How long the caller waits for the other end.
            on_event: Called with each event as it happens, in that thread.
        """
        placed = PlacedCall(name)
        recorded = config if config.record else replace(config, record=self.new_recording())
        if recorded.trace is None:
            # A project's own setting is for its traces.
            recorded = replace(recorded, redact=None)
        self.calls.append(placed)

        def note(event: TimelineEvent) -> None:
            placed.timeline.append(event)
            on_event(event)

        async def call() -> Report:
            if recorded.replay is None:
                return told(await place_call(recorded, on_event=note, timeouts=timeouts, speaker=speaker))
            with read_trace(recorded.replay) as trace:
                replay = Replay(trace, recorded)
                placing = place_call(recorded, on_event=note, timeouts=replay.timeouts, speaker=replay.speaker)
                return told(*replay.judge(await placing))

        def told(report: CallReport, comparison: Comparison | None = None) -> Report:
            values = {each.name: getattr(report, each.name) for each in fields(CallReport)}
            # As the test wrote it.
            values |= {"target": name, "timeline": tuple(placed.timeline), "comparison": comparison}
            placed.report = Report(**values)
            return placed.report

        return _CallThread(call)

    def _project(self, home: Path | None) -> Path:
        """Return the project's folder: `home`, or one above it that has the project's settings."""
        start = home or self.folders[0]
        if start.is_relative_to(self.root):
            for folder in (start, *start.parents):
                if (folder / "pyproject.toml").is_file() or (folder / ".env").is_file():
                    return folder
                if folder == self.root:
                    break
        return home or self.root


class Dial:
    """
    Places calls; what the fixture ``dial`` is.

    .. code-block:: python

        def test_the_menu_takes_a_key(dial):
            report = dial("bot.py", dtmf="1")
            report.assert_passed()
            report.assert_heard("prompts/opening-hours.wav")
    """

    def __init__(self, factory: CallFactory) -> None:
        self._factory = factory

    def __call__(self, bot: Bot = "bot.py", **options: Unpack[CallOptions]) -> Report:
        """
        Call `bot`, and return once the call is over.

        The call runs in its own thread. From a coroutine, it blocks the event loop; use the fixture ``adial`` if the
        bot needs something that runs in that loop.

        Args:
            bot: A bot as ``wsvoice run`` takes it (a file, ``file.py:function``, a module, a folder), a coroutine
                function of a module, or a URL as ``wsvoice dial`` takes it. A bot is served in a second process,
                where a test's patches have no effect. Files are looked for in the test's folder, in those
                above it up to pytest's ``rootdir``, and in the current one.
            options: As in :class:`CallOptions`.

        Raises:
            UsageError: If the call could not be placed because of what was asked for.
        """
        __tracebackhide__ = True
        with _hints():
            return self._factory.prepare(bot, options).run()

    def replay(self, call: str | PathLike[str], bot: Bot = "bot.py", **options: Unpack[CallOptions]) -> Report:
        """
        Place a traced call again, to today's bot, and compare.

        .. code-block:: python

            def test_the_bot_is_as_good_as_it_was(dial):
                dial.replay("good.call").assert_passed()

        Args:
            call: The trace; looked for where the bot is.
            bot: As in a call.
            options: As in :class:`CallOptions`; they go before what the trace says of numbers, parameters and quirks.

        Raises:
            TraceError: If it cannot be placed again.
            UsageError: As in a call.
        """
        __tracebackhide__ = True
        with _hints():
            return self._factory.prepare_replay(call, bot, options).run()


class AsyncDial:
    """
    Places calls from coroutines; what the fixture ``adial`` is.

    .. code-block:: python

        async def test_the_bot_asks_our_server(adial):
            async with booking_server() as server:
                report = await adial("bot.py", env={"BOOKING_URL": server.url})
            report.assert_passed()
            assert server.requests == ["/tables"]
    """

    def __init__(self, factory: CallFactory) -> None:
        self._factory = factory

    async def __call__(self, bot: Bot = "bot.py", **options: Unpack[CallOptions]) -> Report:
        """Call `bot`, and return once the call is over; as :meth:`Dial.__call__`, but the event loop goes on."""
        __tracebackhide__ = True
        with _hints():
            return await self._factory.prepare(bot, options).run_async()

    async def replay(self, call: str | PathLike[str], bot: Bot = "bot.py", **options: Unpack[CallOptions]) -> Report:
        """Place a traced call again, and compare; as :meth:`Dial.replay`, but the event loop goes on."""
        __tracebackhide__ = True
        with _hints():
            return await self._factory.prepare_replay(call, bot, options).run_async()


class _CallThread:
    """
    A call in a thread with its own event loop.

    The test may block its own loop, which therefore cannot pace the audio; and the main thread's loop belongs to
    pytest's asynchronous plugins.
    """

    def __init__(self, call: Callable[[], Coroutine[Any, Any, Report]]) -> None:
        self._call = call
        self._result: Future[Report] = Future()
        self._begun = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._thread = threading.Thread(target=self._main, name="wsvoice call", daemon=True)

    def run(self) -> Report:
        """Place the call, and wait for its end; an exception in the meantime hangs up."""
        self._thread.start()
        # Not `join`: before Python 3.13 an interrupted `join` marks the thread as finished.
        try:
            wait([self._result])
        except BaseException:
            self._cancel()
            wait([self._result])
            raise
        return self._result.result()

    async def run_async(self) -> Report:
        """As :meth:`run`, while the running loop goes on."""
        self._thread.start()
        result = asyncio.wrap_future(self._result)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            self._cancel()
            await asyncio.wait([result])
            if not result.cancelled():
                # So that asyncio does not complain that nobody did.
                result.exception()
            raise

    def _main(self) -> None:
        try:
            self._result.set_result(isolation.run_interruptibly(self._place()))
        # Raised again in the waiting thread.
        except BaseException as error:  # noqa: BLE001
            self._result.set_exception(error)
        finally:
            self._begun.set()

    async def _place(self) -> Report:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._begun.set()
        return await self._call()

    def _cancel(self) -> None:
        self._begun.wait()
        if self._loop is not None and self._task is not None:
            # The loop is closed if the call has just ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)


def _check_positive(**bounds: float | None) -> None:
    for name, bound in bounds.items():
        # Not `bound < 0`, which is false for NaN.
        if bound is not None and not bound >= 0:
            raise ValueError(f"{name} cannot be {bound:g}: it takes 0 or more")


@contextmanager
def _hints() -> Iterator[None]:
    """Add the hint to an exception as a note, because only the command line prints hints."""
    try:
        yield
    except WsvoiceError as error:
        if error.hint:
            error.add_note(f"hint: {error.hint}")
        raise


def _named(bot: Bot) -> str:
    """Return `bot` as ``wsvoice run`` takes it."""
    if isinstance(bot, str):
        return bot
    if isinstance(bot, PathLike):
        return os.fspath(bot)
    file = inspect.getsourcefile(bot) if inspect.isroutine(bot) else None
    qualified: str = getattr(bot, "__qualname__", "")
    if file is None or not qualified.isidentifier():
        raise UsageError(
            f"{bot!r} cannot be served in a second process: it has no name in a module",
            hint="give the bot's file, or a coroutine function at a module's top level",
        )
    return f"{file}:{qualified}"


def _find_bot(name: str, folders: Sequence[Path]) -> tuple[str, Path | None]:
    """Return the bot with its whole path, and the folder where it was found; a bot without a path stays as it is."""
    if "://" in name:
        return name, None
    # The colon before a function, not the one after a drive letter.
    path, colon, function = re.fullmatch(r"(.*?)(?:(:)(\w+))?", name, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    for folder in folders:
        if (folder / path).exists():
            found = (folder / path).absolute()
            # A whole path was not looked for in a folder.
            home = found.parent if Path(path).is_absolute() else folder
            return f"{found}{colon}{function}", home
    if path.endswith(".py"):
        looked = ", ".join(map(str, folders))
        raise UsageError(f"there is no {path} in {looked}", hint="give its whole path, or its folder as cwd=")
    return name, None


def find_file(path: str | PathLike[str], folders: Iterable[Path]) -> Path:
    """Return where the file is; `path` itself if it is in none of the folders."""
    return next((folder / path for folder in folders if (folder / path).is_file()), Path(path))


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | PathLike) else list(value)
