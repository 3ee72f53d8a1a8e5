"""``wsvoice dial -n`` and ``--find-knee``: many calls at once, and how the server held up."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

import typer

from wsvoice.cli.output import LOG_LINES, Output
from wsvoice.cli.signals import interrupted_by_signals, placing_calls
from wsvoice.config import DialConfig
from wsvoice.errors import UsageError

if TYPE_CHECKING:
    from wsvoice.dial.load.knee import Step
    from wsvoice.dial.load.run import Progress

#: How often progress is printed where it cannot be shown in place.
LINE_S = 5.0


class _Watched:
    """Shows what happens: progress in place on a terminal, and as lines elsewhere."""

    def __init__(self, output: Output, *, verbose: bool, quiet: bool) -> None:
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._output = output
        self._verbose = verbose
        self._quiet = quiet
        self._told_at = time.monotonic()

    def progress(self, progress: Progress) -> None:
        failed = f", {progress.failed} failed" if progress.failed else ""
        text = (
            f"{progress.begun} of {progress.calls} calls begun, {progress.up} up, {progress.ended} ended{failed};"
            f" callers use {progress.cpu_share:.0%} of a core"
        )
        if self._output.show_progress(text) or self._quiet or time.monotonic() - self._told_at < LINE_S:
            return
        self._told_at = time.monotonic()
        self._output.line(text, style="dim")

    def step(self, step: Step) -> None:
        from wsvoice.dial.load.report import describe_step

        if not self._quiet:
            self._output.line(describe_step(step), style={"held": "green", "broke": "yellow"}.get(step.outcome, "red"))

    def line(self, text: str) -> None:
        if self._verbose and not self._quiet:
            self._output.log_line(text)
        else:
            self.log.append(text)

    def show_log(self) -> None:
        if not self._quiet:
            self._output.last_lines("bot's", self.log)


def dial_many(output: Output, config: DialConfig, *, verbose: bool, quiet: bool) -> None:
    """Place the calls, print the report, and end with the verdict as the exit code."""
    watched = _Watched(output, verbose=verbose, quiet=quiet)
    with placing_calls(output, f"Calling {config.target}", watched.show_log):
        from wsvoice import isolation
        from wsvoice.dial.load.run import Watcher, place_calls

        watcher = Watcher(watched.progress, watched.step, watched.line)
        # Ctrl-C cancels the calls, which are hung up and reported.
        with interrupted_by_signals():
            report = isolation.run_interruptibly(place_calls(config, watcher))
    if report.verdict == "failed" and not report.interrupted:
        watched.show_log()
    output.result(report.to_lines(), report.to_dict() if config.as_json else None, quiet=quiet)
    if report.interrupted:
        raise KeyboardInterrupt
    if report.verdict != "passed":
        # What this machine cannot do is not the server's failure.
        raise typer.Exit(1 if report.verdict == "failed" else UsageError.exit_code)
