"""Scenarios as pytest's items, so that its selection, its workers, its reports and its reruns are theirs too."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from wsvoice.config import TestConfig
from wsvoice.dial.report import TimelineEvent
from wsvoice.errors import UsageError, WsvoiceError
from wsvoice.replay.plan import check_not_replaced
from wsvoice.scenarios.baseline import Waits, compare, read_baseline
from wsvoice.scenarios.judging import Judgement, judge
from wsvoice.scenarios.loading import read_scenario
from wsvoice.scenarios.options import make_folder, read_config, trace_file
from wsvoice.scenarios.running import ReadyScenario, RunCall, make_ready, place_call
from wsvoice.scenarios.statistics import PERCENTILES, percentile
from wsvoice.testing import CallFactory, how_to_see, trace_of

#: Called with the scenario, which of its calls it is (``call 2 of 5: ``), and each event, where somebody shows them.
WATCHER: pytest.StashKey[Callable[[str, str, TimelineEvent], None]] = pytest.StashKey()
#: The property that holds the waits, for the process that writes the baseline.
WAITS = "wsvoice_waits_ms"
#: The property of what could not be judged.
SKIPPED = "wsvoice_not_judged"

# Of calls that failed, so many are shown.
_SHOWN = 3


class ScenarioFailed(Exception):
    """A scenario's calls were not as it expects; the message says what was there instead."""


class ScenarioCollector(pytest.File):
    """A file ``NAME.call.toml``: an item for each of its providers."""

    folders: Callable[[Path, pytest.Config], list[Path]]

    def collect(self) -> Iterator[pytest.Item]:
        """Return the items, of which everything that they need is there."""
        file = read_scenario(self.path)
        config = read_config(self.config)
        make_folder(config.traces)
        for provider in file.scenario.providers or (None,):
            name = f"{file.name}[{provider}]" if provider else file.name
            factory = self._factory([])
            ready = make_ready(file, provider, factory, config)
            item = ScenarioItem.from_parent(self, name=name, ready=ready, how=config)
            item.check_traces()
            yield item

    def _factory(self, recordings: list[Path]) -> CallFactory:
        folders = type(self).folders(self.path, self.config)
        return CallFactory(folders, self.config.rootpath, recordings.pop, [])

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what is wrong with the file in a line or two."""
        return _shown(excinfo.value) or super().repr_failure(excinfo)


class ScenarioItem(pytest.Item):
    """A scenario for one provider: one call, or as many as it is repeated."""

    def __init__(self, *, ready: ReadyScenario, how: TestConfig, **options: Any) -> None:
        super().__init__(**options)
        self.ready = ready
        self.how = how
        self.add_marker("wsvoice_call")

    @property
    def n_runs(self) -> int:
        """How many calls are placed."""
        return self.how.repeat or self.ready.file.scenario.repeat or 1

    def runtest(self) -> None:
        """Place the calls, and fail unless as many of them passed as have to."""
        runs = [self._run(number) for number in range(self.n_runs)]
        judged = [judgement for _, judgement in runs]
        waits = _waits(judged)
        worse = self._compare(waits)
        self._tell(runs, waits)
        n_passed = sum(each.passed for each in judged)
        n_needed = math.ceil(self.ready.file.scenario.pass_rate * len(runs) - 1e-9)
        lines = self._failures(runs, n_passed, n_needed) if n_passed < n_needed else []
        if lines or worse:
            raise ScenarioFailed("\n".join([*lines, *worse]))

    def _run(self, number: int) -> tuple[RunCall, Judgement]:
        collector = self.parent
        assert isinstance(collector, ScenarioCollector)
        recording = self._folder() / f"call-{number + 1}.wav"
        watch = self.config.stash.get(WATCHER, None)
        which = f"call {number + 1} of {self.n_runs}: " if self.n_runs > 1 else ""

        def on_event(event: TimelineEvent) -> None:
            if watch is not None:
                watch(self.nodeid, which, event)

        factory = collector._factory([recording])
        call = place_call(self.ready, factory, on_event, trace=recording.with_suffix(".call"))
        call.placed.keep_as = self._keep_as(number)
        judgement = judge(self.ready, call)
        if judgement.passed:
            # Hundreds of calls that went well are of no use.
            call.placed.discard_trace()
        elif not_kept := call.placed.keep_trace():
            judgement = replace(judgement, failures=[*judgement.failures, not_kept])
        assert call.placed.report is not None
        return replace(call, report=call.placed.report), judgement

    def check_traces(self) -> None:
        """
        Make sure that no trace of a call that fails would replace the one that is placed again.

        Raises:
            ScenarioError: If one would.
        """
        source, file = self.ready.config.replay, self.ready.file
        try:
            for number in range(self.n_runs):
                if source is not None and (keep_as := self._keep_as(number)) is not None:
                    check_not_replaced(source, keep_as, "the trace of a call that fails")
        except UsageError as error:
            raise file.error(error.message, "replay", hint="name another folder: --traces DIR") from None

    def _keep_as(self, number: int) -> Path | None:
        """Return where the trace of a call that fails is kept; ``None`` for beside its recording."""
        if self.how.traces is None:
            return None
        folder = Path(self.nodeid.rpartition("::")[0]).parent
        return trace_file(self.how.traces, str(folder / self.name), number + 1 if self.n_runs > 1 else None)

    def _folder(self) -> Path:
        factories: Any = self.config.stash.setdefault(_FOLDERS, {})
        if self.nodeid not in factories:
            name = re.sub(r"\W+", "-", self.name)[:40].strip("-")
            factories[self.nodeid] = _temporary_folders(self.config).mktemp(f"calls-{name}-")
        folder: Path = factories[self.nodeid]
        return folder

    def _failures(self, runs: Sequence[tuple[RunCall, Judgement]], n_passed: int, n_needed: int) -> list[str]:
        failed = [(number, *run) for number, run in enumerate(runs, 1) if not run[1].passed]
        lines = []
        if len(runs) > 1:
            needed = f"{n_needed} have to ({self.ready.file.scenario.pass_rate:.0%})"
            lines.append(f"{n_passed} of {len(runs)} calls passed, and {needed}")
        for number, call, judgement in failed[:_SHOWN]:
            label = f"call {number}: " if len(runs) > 1 else ""
            lines += [f"{label}{each}" for each in judgement.failures]
            if (how := how_to_see(call.report)) is not None:
                lines.append(f"{label}{how}")
            self.add_report_section("call", f"call {number}: {call.placed.bot}", "\n".join(call.placed.to_lines()))
        if len(failed) > _SHOWN:
            lines.append(f"{len(failed) - _SHOWN} more calls failed")
        return lines

    def _compare(self, waits: Waits) -> list[str]:
        if self.how.compare is None:
            return []
        before = read_baseline(self.how.compare).get(self.nodeid)
        worse, told = compare(before, waits, max_slower=self.how.max_slower)
        self.user_properties += [(SKIPPED, each) for each in told]
        limit = f"by more than {self.how.max_slower:.0%}"
        return [f"slower than the baseline {limit}: {each}" for each in worse]

    # JUnit

    def _tell(self, runs: Sequence[tuple[RunCall, Judgement]], waits: Waits) -> None:
        """Add what happened to the report's properties."""
        add = self.user_properties.append
        add(("provider", self.ready.provider))
        add(("calls", str(len(runs))))
        add(("calls_passed", str(sum(judgement.passed for _, judgement in runs))))
        everything = [each for values in waits.values() for each in values]
        for percent in PERCENTILES if everything else ():
            add((f"wait_p{percent}_ms", f"{percentile(everything, percent):.0f}"))
        for number, (call, judgement) in enumerate(runs, 1):
            prefix = f"call {number}, " if len(runs) > 1 else ""
            for name, value in _describe(call, judgement):
                add((f"{prefix}{name}", _printable(value)))
            self.user_properties += [(SKIPPED, each) for each in judgement.skipped if number == 1]
        add((WAITS, json.dumps(waits)))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return what was not as expected, a line each."""
        return _shown(excinfo.value) or super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the item is, and what it is called."""
        return (
            self.path,
            self.ready.file.lines.get(("steps",), self.ready.file.lines.get(("replay",), 1)) - 1,
            self.name,
        )


_FOLDERS: pytest.StashKey[dict[str, Path]] = pytest.StashKey()


def _temporary_folders(config: pytest.Config) -> pytest.TempPathFactory:
    # What the fixture tmp_path_factory is; an item that is no function has no fixtures.
    factory: pytest.TempPathFactory = config._tmp_path_factory  # type: ignore[attr-defined]
    return factory


def _waits(judged: Sequence[Judgement]) -> dict[str, list[float]]:
    waits: dict[str, list[float]] = {}
    for judgement in judged:
        for step, wait_ms in judgement.waits_ms.items():
            waits.setdefault(step, []).append(wait_ms)
    return waits


def _describe(call: RunCall, judgement: Judgement) -> Iterator[tuple[str, str]]:
    report = call.report
    for step in judgement.steps:
        if step.wait_ms is not None:
            yield f"{step.name}: wait_ms", f"{step.wait_ms:.0f}"
        if step.caller_words:
            yield f"{step.name}: caller", step.caller_words
        if step.bot_words is not None:
            yield f"{step.name}: bot", step.bot_words
        for sound, at_ms in step.heard.items():
            yield f"{step.name}: heard", f"{sound} at {at_ms:.0f} ms"
    yield "ended_by", str(report.ended_by or "nobody")
    for finding in report.findings:
        yield f"{finding.level} {finding.id}", finding.message
    if (trace := trace_of(report)) is not None:
        yield "trace", str(trace)
    if report.wav is not None:
        yield "recording", str(report.wav)


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)


def _shown(error: BaseException) -> str | None:
    if isinstance(error, ScenarioFailed):
        return str(error)
    if isinstance(error, WsvoiceError):
        return f"error: {error.message}" + (f"\nhint:  {error.hint}" if error.hint else "")
    return None


@cache
def collector_class(folders: Callable[[Path, pytest.Config], list[Path]]) -> type[ScenarioCollector]:
    """Return the collector that looks for files where `folders` says."""
    return type("ScenarioCollector", (ScenarioCollector,), {"folders": staticmethod(folders)})
