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
import threading
import wave
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from wsvoice import isolation
from wsvoice.audio import read_audio, resample
from wsvoice.config import did_you_mean, resolve_dial
from wsvoice.dial.caller import dial as place_call
from wsvoice.dial.report import CallReport, TimelineEvent
from wsvoice.dial.sound_detection import SoundDetector, audible_range
from wsvoice.errors import UsageError, WsvoiceError

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
}


@dataclass(frozen=True, repr=False)
class Report(CallReport):
    """
    A call that was placed: everything that ``wsvoice dial --json`` reports, what was heard, and what happened.

    The ``assert_`` methods say what was there instead if they fail.

    Attributes:
        timeline: What happened, in order.
    """

    timeline: Sequence[TimelineEvent] = field(default=(), compare=False)

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

    def assert_passed(self) -> None:
        """Fail unless a real call would have gone well, and say why; pytest shows the whole call below."""
        __tracebackhide__ = True
        if self.passed:
            return
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
        pattern = np.frombuffer(pcm, "<i2")[slice(*audible)].astype(np.float64)
        heard = np.frombuffer(self.heard, "<i2").astype(np.float64)
        count = len(heard) - len(pattern) + 1
        if count <= 0:
            return np.zeros(0)
        size = 1 << (len(heard) + len(pattern)).bit_length()
        products = np.fft.irfft(np.fft.rfft(heard, size) * np.conj(np.fft.rfft(pattern, size)), size)[:count]
        energy = np.concatenate([[0.0], np.cumsum(heard * heard)])
        # In silence the product is only rounding; the quotient must be about 0 as well.
        energy = np.maximum(energy[len(pattern) :] - energy[: -len(pattern)], 1.0 * len(pattern))
        similarity: NDArray[np.float64] = products / np.sqrt(energy * np.dot(pattern, pattern))
        return similarity


@dataclass
class PlacedCall:
    """A call that a test has placed, to be shown if the test fails; once it is over, with its report."""

    bot: str
    timeline: list[TimelineEvent] = field(default_factory=list)
    report: Report | None = None

    def to_lines(self) -> list[str]:
        """Return the call's timeline and report in words."""
        lines = []
        for event in self.timeline:
            is_logged = event.kind in ("log", "caller-log")
            lines.append(f"{'':8} | {event.text}" if is_logged else f"{event.at_ms / 1000:8.3f}   {event.text}")
        if self.report is None:
            return lines
        *rest, verdict = self.report.to_lines()
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
    """

    folders: Sequence[Path]
    root: Path
    new_recording: Callable[[], Path]
    calls: list[PlacedCall]

    def prepare(self, bot: Bot, options: CallOptions) -> _CallThread:
        """
        Return a call that is ready to be placed.

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
        flags["audio"] = [_find_file(path, [folder, *folders]) for path in _listed(options.get("audio", ()))]
        flags["say"] = _listed(options.get("say", ()))
        flags["record"] = Path(options["record"]).absolute() if "record" in options else self.new_recording()
        config = resolve_dial(flags, environ={**os.environ, **env}, cwd=folder).config
        placed = PlacedCall(name)
        self.calls.append(placed)

        async def call() -> Report:
            report = await place_call(
                replace(config, environ=env, cwd=folder, caller=None), on_event=placed.timeline.append
            )
            values = {each.name: getattr(report, each.name) for each in fields(CallReport)}
            # As the test wrote it.
            placed.report = Report(**{**values, "target": name}, timeline=tuple(placed.timeline))
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


def _find_file(path: str | PathLike[str], folders: Iterable[Path]) -> Path:
    """Return where the file is; `path` itself if it is in none of the folders."""
    return next((folder / path for folder in folders if (folder / path).is_file()), Path(path))


def _listed(value: Any) -> list[Any]:
    return [value] if isinstance(value, str | PathLike) else list(value)
