"""
How long a caller waits for the echo of an echo bot: `wsvoice run`, pipecat's development runner, and no pipeline.

The same bot, bots/echo.py, is served by both runners at pipecat's default rates. README.md says how to read the
table. Exits with 0 if wsvoice's round trip is shorter by at least `--margin`, with 1 if not or if nothing could be
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
from report import spread
from servers import BOTS, MADE_UP_CREDENTIALS, free_port, listening, own_environ, pin

from wsvoice import __version__
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.dial.clock import Clock
from wsvoice.dial.report import CallReport

SAMPLE_RATE = 8000
TONE_MS = 400
TONES_PER_CALL = 3
#: How long a call is silent before its first tone; in that time the slowest pipeline is set up.
SETTLE_S = 1.5
#: A caller that is late itself has measured nothing.
MAX_LATENESS_MS = 5.0
MAX_TRIES = 5


class Failed(Exception):
    """Nothing could be measured."""


@dataclass
class Subject:
    """
    What is measured.

    Attributes:
        name: How the table calls it.
        url: Where it is dialled.
        round_trips_ms: From a tone's onset to the onset of its echo, in a running call.
        first_sounds_ms: From the stream's start, and a tone that begins with it, to the bot's first sound.
    """

    name: str
    url: str
    round_trips_ms: list[float] = field(default_factory=list)
    first_sounds_ms: list[float] = field(default_factory=list)


class WatchedClock(Clock):
    """The system's clock, which remembers how late its sleepers woke up."""

    def __init__(self) -> None:
        self.lateness_ms: list[float] = []

    async def sleep_until(self, when: float) -> None:
        """Sleep until `when`."""
        await super().sleep_until(when)
        self.lateness_ms.append((self.now() - when) * 1000)

    def p99_ms(self) -> float:
        """Return the lateness that 99 of 100 sleepers stayed under."""
        return float(np.percentile(self.lateness_ms, 99))


def main() -> int:
    """Measure, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="calls to each of the three (default: %(default)s)")
    parser.add_argument(
        "--margin", type=float, default=150.0, metavar="MS", help="how much shorter it has to be (default: %(default)g)"
    )
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds takes a whole number from 1 up")
    try:
        with ExitStack() as stack:
            subjects = start_all(stack)
            pin(os.getpid(), last=True)
            measure(subjects, options.rounds, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return judge(subjects, options.margin)


# The servers


def start_all(stack: ExitStack) -> tuple[Subject, Subject, Subject]:
    """Start the three servers, and stop them with `stack`."""
    echo, python, environ = str(BOTS / "echo.py"), sys.executable, own_environ()

    def start(name: str, scheme: str, command: list[str], port: int, environ: dict[str, str]) -> Subject:
        stack.enter_context(listening([python, *command], port, environ))
        return Subject(name, f"{scheme}://127.0.0.1:{port}/")

    # `wsvoice run` and pipecat's runner are called by their webhooks; the bare echo has none.
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    ours = start("wsvoice", "http", ["-m", "wsvoice", "run", echo, "-t", "twilio", *address], port, environ)
    port = free_port()
    address = ["-x", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(port)]
    theirs = start("pipecat", "http", [echo, "-t", "twilio", *address], port, environ | MADE_UP_CREDENTIALS)
    port = free_port()
    return ours, theirs, start("bare echo", "ws", [str(BOTS / "bare_echo.py"), str(port)], port, environ)


# The calls


def measure(subjects: Sequence[Subject], rounds: int, folder: Path) -> None:
    """Call all subjects in turn, `rounds` times, the other way round every second time."""
    tone = folder / "tone.wav"
    write_wav(tone, [hard_tone()], SAMPLE_RATE)
    for subject in subjects:
        # Whatever is imported or cached at the first call would be measured with it.
        call(subject, (tone,), listen_s=0.0)
    for number in range(rounds):
        for subject in subjects if number % 2 == 0 else reversed(subjects):
            report = call(subject, (tone,) * TONES_PER_CALL, listen_s=SETTLE_S)
            for turn in report.turns:
                assert turn.bot_start_ms is not None
                subject.round_trips_ms.append(turn.bot_start_ms - turn.caller_start_ms)
            report = call(subject, (tone,), listen_s=0.0)
            assert report.first_audio_ms is not None
            subject.first_sounds_ms.append(report.first_audio_ms)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)


def call(subject: Subject, audio: tuple[Path, ...], *, listen_s: float) -> CallReport:
    """Place one call that passes, and in which the caller was not late itself."""
    config = DialConfig(target=subject.url, audio=audio, listen_s=listen_s, response_timeout_s=5.0, force_ws=True)
    for _ in range(MAX_TRIES):
        clock = WatchedClock()
        report = asyncio.run(dial(config, clock=clock))
        if report.verdict != "passed":
            raise Failed(f"the call to {subject.name} failed: {report.failure}")
        if clock.p99_ms() <= MAX_LATENESS_MS:
            return report
        print(f"a call to {subject.name} is left out: the caller was {clock.p99_ms():.1f} ms late", file=sys.stderr)
    raise Failed(f"this machine is too busy: the caller was late in {MAX_TRIES} calls in a row")


def hard_tone() -> bytes:
    """Return a tone that is loud from its first sample on, so that its onset is sharp."""
    seconds = np.arange(SAMPLE_RATE * TONE_MS // 1000) / SAMPLE_RATE
    return (0.5 * 32767 * np.cos(2 * np.pi * 1000 * seconds)).astype("<i2").tobytes()


# The table


def judge(subjects: Sequence[Subject], margin_ms: float) -> int:
    """Print the table and the difference, and return the exit code."""
    ours, theirs, _ = subjects
    rounds = len(ours.first_sounds_ms)
    print(f"wsvoice {__version__}, pipecat {version('pipecat-ai')}, Python {sys.version.split()[0]}, ", end="")
    print(f"{os.cpu_count()} cores, {rounds} round{'s'[: rounds > 1]}; milliseconds, median [least to most]\n")
    print(f"{'':<12}{'echo round trip':>28}{'set-up to first sound':>28}")
    for subject in subjects:
        print(f"{subject.name:<12}{spread(subject.round_trips_ms):>28}{spread(subject.first_sounds_ms):>28}")
    shorter_ms = statistics.median(theirs.round_trips_ms) - statistics.median(ours.round_trips_ms)
    sooner_ms = statistics.median(theirs.first_sounds_ms) - statistics.median(ours.first_sounds_ms)
    print(f"{'difference':<12}{shorter_ms:>28.1f}{sooner_ms:>28.1f}\n")
    held = shorter_ms >= margin_ms
    print(f"{'held' if held else 'FAILED'}: wsvoice's round trip is {shorter_ms:.0f} ms shorter than pipecat's", end="")
    print(f" (wanted: {margin_ms:g} ms)")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
