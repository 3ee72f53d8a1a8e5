"""One call from a page: placed as a test call is, told as it happens, and kept so that it can be looked at."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from wsvoice.browser_phone.line import LiveCaller
from wsvoice.config import DialConfig, without_secrets
from wsvoice.dial.caller import dial
from wsvoice.dial.report import CallReport, TimelineEvent, TurnReport
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import TraceError, UsageError
from wsvoice.page import render_page
from wsvoice.scenarios import SUFFIX
from wsvoice.scenarios.from_trace import write_scenario
from wsvoice.trace import Masks, read_trace

#: How long a call may last without ``--duration``: a page that somebody forgot must not keep a bot busy for ever.
LONGEST_CALL_S = 3600.0
_NAME_ANOTHER = f"give another name: NAME{SUFFIX}"
#: What is not for a page: the bot's log may have anything in it. It is in the trace, where secrets are left out.
_NOT_TOLD = ("log", "caller-log")


class Listener(Protocol):
    """Takes what happens in a call, for its page."""

    def tell(self, message: Mapping[str, Any]) -> None:
        """Take something that happened."""

    def play(self, pcm: bytes) -> None:
        """Take what is played to the caller."""


class PlacedFromPage:
    """
    One call, from the webhook to its page.

    Args:
        number: The call's number among those of this process.
        config: Whom to call, and how.
        rate: Samples a second of the page's sound.
        folder: Where the call's trace is kept.
        listener: Whose call it is.

    Attributes:
        report: How it went; ``None`` until it is over, and of a call that was given up before it was answered.
        page: The call's page; ``None`` if there is none.
    """

    def __init__(self, number: int, config: DialConfig, rate: int, folder: Path, listener: Listener) -> None:
        self.number = number
        self.report: CallReport | None = None
        self.page: Path | None = None
        self._name = f"{time.strftime('phone-%Y%m%d-%H%M%S')}-{number}"
        self._trace = folder / f"{self._name}.call"
        self._config = replace(config, trace=self._trace)
        self._rate = rate
        self._listener = listener
        self._masks = Masks(config.credentials.values())
        self._line: LiveCaller | None = None
        self._task: asyncio.Task[CallReport] | None = None
        self._is_given_up = False
        #: Why there is no page of a call that had a stream.
        self._no_page: str | None = None

    def mask(self, text: str) -> str:
        """Return a text without the secrets of this call."""
        return self._masks.text(text)

    async def place(self) -> None:
        """
        Place the call, and return once it is over and its page is made.

        Raises:
            WsvoiceError: If it cannot be placed as the user wants it.
        """
        if self._is_given_up:
            return  # At once, before this began.
        config = self._config
        who = {"provider": config.transport, "to": self.mask(without_secrets(config.target))}
        self._listener.tell({"type": "state", "state": "ringing", "call": self.number, **who})
        timeouts = Timeouts(call_s=LONGEST_CALL_S)
        placing = dial(config, on_happening=self._tell_event, timeouts=timeouts, speaker=self._answer)
        self._task = asyncio.create_task(placing)
        try:
            self.report = await self._task
        except asyncio.CancelledError:
            if not self._is_given_up:
                # This process stops.
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
                raise
        await asyncio.to_thread(self._draw)

    # The page

    def say(self, pcm: bytes) -> None:
        """Take a piece of what the caller says; before the call is answered nobody hears it."""
        if self._line is not None:
            self._line.say(pcm)

    def press(self, keys: str) -> None:
        """Press keys; before the call is answered nobody notices."""
        if self._line is not None:
            self._line.press(keys)

    def hang_up(self) -> None:
        """End the call, or give it up if nobody has answered yet."""
        if self._line is not None:
            self._line.hang_up()
        else:
            self._give_up()

    def vanish(self) -> None:
        """End the call as one whose caller is gone: without a hang-up."""
        if self._line is not None:
            self._line.vanish()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._is_given_up = True
        if self._task is not None:
            self._task.cancel()

    # The call

    def _answer(self, detector: SoundDetector, sample_rate: int) -> LiveCaller:
        self._line = LiveCaller(
            detector,
            sample_rate=sample_rate,
            page_rate=self._rate,
            on_heard=self._listener.play,
            on_turn=self._tell_turn,
        )
        self._listener.tell({"type": "state", "state": "in-call", "call": self.number})
        return self._line

    def _tell_event(self, event: TimelineEvent) -> None:
        if event.kind not in _NOT_TOLD:
            text = self._masks.text(event.text)
            self._listener.tell({"type": "event", "at": round(event.at_ms), "kind": event.kind, "text": text})

    def _tell_turn(self, number: int, turn: TurnReport) -> None:
        assert turn.response_ms is not None
        self._listener.tell({"type": "turn", "number": number, "wait": round(turn.response_ms)})

    def outcome(self) -> dict[str, Any]:
        """Return what the page says of the call once it is over."""
        report = self.report
        told: dict[str, Any] = {"type": "state", "state": "ended", "call": self.number, "by": None, "verdict": None}
        if report is not None:
            failure = self._masks.text(report.failure) if report.failure else None
            told |= {"by": report.ended_by, "verdict": report.verdict, "failure": failure}
            told["seconds"] = round((report.duration_ms or 0.0) / 1000, 1)
            told["note"] = self._no_page
        if self.page is not None:
            told["scenario"] = f"{self._name}{SUFFIX}"
        return told

    def _draw(self) -> None:
        if self.report is None or self.report.trace is None or self.report.ended_by is None:
            return  # There was no stream, or the disk is full, which the report says.
        try:
            with read_trace(self._trace) as trace:
                page = render_page([trace])
            file = self._trace.with_suffix(".html")
            file.write_text(page, encoding="utf-8")
        except TraceError as error:
            # Such as a call that is longer than a page can show.
            self._no_page = f"no page of this call: {self.mask(error.message)}"
        except OSError as error:
            self._no_page = f"no page of this call: {(error.strerror or str(error)).lower()}"
        else:
            self.page = file

    def save(self, file: str, folder: Path) -> list[Path]:
        """
        Write the call's scenario, and return the files that were written.

        Args:
            file: Where, below `folder`; empty for a file in it that is named after the call.
            folder: The folder that nothing is written outside of.

        Raises:
            UsageError: If it is outside, there already, or cannot be made or written.
        """
        target = scenario_path(file.strip() or self._name, folder)
        with read_trace(self._trace) as trace:
            return write_scenario(trace, target)

    def forget(self) -> None:
        """Remove what was kept of the call."""
        for file in (self._trace, self._trace.with_suffix(".html")):
            # What cannot be removed goes with the folder, once the phone ends.
            with suppress(OSError):
                file.unlink(missing_ok=True)


def scenario_path(name: str, folder: Path) -> Path:
    """
    Return the path of a scenario that a page has named.

    Args:
        name: As it was typed, with or without ``.call.toml``.
        folder: The folder that it has to be in, or in one below.

    Raises:
        UsageError: If it is not, or in a folder that is not there, or no file can have that name.
    """
    if not name.isprintable():
        raise UsageError(f"{name!r} is no file's name", hint=_NAME_ANOTHER)
    path = folder / (name if name.endswith(SUFFIX) else f"{name.removesuffix('.toml').removesuffix('.call')}{SUFFIX}")
    try:
        # With links followed: what is written is where it seems to be.
        real = path.parent.resolve() / path.name
        is_there = real.parent.is_dir()
    except (OSError, RuntimeError) as error:
        # Python 3.13 takes links that lead in a circle for a folder that is not there; before, it raised RuntimeError.
        reason = (error.strerror or error) if isinstance(error, OSError) else "its links lead in a circle"
        raise UsageError(f"{name} cannot be used: {reason}", hint=_NAME_ANOTHER) from error
    if not real.is_relative_to(folder.resolve()) or path.name == SUFFIX or path.name.startswith("."):
        raise UsageError(f"{name} is outside of {folder}", hint=f"give a name in this folder: NAME{SUFFIX}")
    if not is_there:
        raise UsageError(f"{real.parent} is not there", hint="make the folder first")
    return real
