"""
The pytest plugin: the fixtures ``dial`` and ``adial``, which call a bot, and scenarios, ``NAME.call.toml``.

pytest loads it in every project of an environment with wsvoice, so it imports nothing until a test uses a fixture, or
a scenario is collected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wsvoice.testing import AsyncDial, CallFactory, Dial, PlacedCall

_CALLS: pytest.StashKey[list[PlacedCall]] = pytest.StashKey()
_FAILED: pytest.StashKey[bool] = pytest.StashKey()


@pytest.fixture
def dial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dial:
    """Call a bot: ``report = dial("bot.py", audio=["question.wav"])``."""
    from wsvoice.testing import Dial

    return Dial(_factory(request, tmp_path_factory))


@pytest.fixture
def adial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncDial:
    """Call a bot from a coroutine: ``report = await adial("bot.py", audio=["question.wav"])``."""
    from wsvoice.testing import AsyncDial

    return AsyncDial(_factory(request, tmp_path_factory))


def _factory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CallFactory:
    from wsvoice.testing import CallFactory

    item = request.node
    calls = item.stash.setdefault(_CALLS, [])
    name = re.sub(r"\W+", "-", item.name)[:40].strip("-")

    @cache
    def folder() -> Path:
        return tmp_path_factory.mktemp(f"calls-{name}-")

    def new_recording() -> Path:
        return folder() / f"call-{len(calls) + 1}.wav"

    def keep_as() -> Path | None:
        from wsvoice.scenarios.options import make_folder, read_config, trace_file

        traces = read_config(request.config).traces
        if traces is None:
            return None
        make_folder(traces)
        return trace_file(traces, item.nodeid.replace(".py::", "::", 1), len(calls) + 1 if calls else None)

    return CallFactory(
        folders=_folders(item.path, request.config),
        root=request.config.rootpath,
        new_recording=new_recording,
        calls=calls,
        keep_as=keep_as,
    )


def _folders(test: Path, config: pytest.Config) -> list[Path]:
    """Return where a test's files are looked for: its folder, those above it up to the root, the current one."""
    folders = [test.parent]
    if test.is_relative_to(config.rootpath):
        folders = [folder for folder in test.parents if folder.is_relative_to(config.rootpath)]
    return [*folders, *(folder for folder in [Path.cwd()] if folder not in folders)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the calls of a test that has failed, and remove the traces of one that has not."""
    report = yield
    calls = item.stash.get(_CALLS, None)
    if calls and report.failed:
        item.stash[_FAILED] = True
        _show(calls, item, report)
    elif calls and report.when == "teardown" and not item.stash.get(_FAILED, False):
        for placed in calls:
            placed.discard_trace()
    return report


def _show(calls: Sequence[PlacedCall], item: pytest.Item, report: pytest.TestReport) -> None:
    from wsvoice.testing import how_to_see, trace_of

    ways = []
    for number, placed in enumerate(calls, 1):
        not_kept = placed.keep_trace()
        if not_kept:
            ways.append(f"call {number}: {not_kept}" if len(calls) > 1 else not_kept)
        report.sections.append((f"call {number}: {placed.bot}", "\n".join(placed.to_lines())))
        if placed.report is None:
            continue
        if (trace := trace_of(placed.report)) is not None:
            # JUnit's are those of the item's last phase.
            item.user_properties.append(("trace", str(trace)))
        if (how := how_to_see(placed.report)) is not None:
            ways.append(f"call {number}: {how}" if len(calls) > 1 else how)
    # JUnit has the text of the failure, but not the sections of the report.
    add_section = getattr(report.longrepr, "addsection", None)
    if ways and add_section is not None:
        add_section("wsvoice", "\n".join(ways))


# Scenarios


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of ``wsvoice test`` under names that no other plugin has."""
    group = parser.getgroup("wsvoice", "calls as tests (wsvoice)")
    group.addoption("--calls-repeat", metavar="N", help="Place the call of each scenario so many times.")
    group.addoption("--calls-save-baseline", metavar="FILE", help="Keep the callers' waits in this file.")
    group.addoption("--calls-compare", metavar="FILE", help="Fail if waits have grown since this file.")
    group.addoption("--calls-traces", metavar="DIR", help="Keep the traces of calls that failed in this folder.")
    group.addoption("--calls-max-slower", metavar="SHARE", help="By how much they may.  [default: 10%%]")


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark of scenarios known, and check what the options name, before anything is placed."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Results(config), "wsvoice-results")
    config.addinivalue_line("markers", "wsvoice_call: a scenario, NAME.call.toml")
    if config.getoption("calls_compare") or config.getoption("calls_save_baseline"):
        from wsvoice.errors import UsageError
        from wsvoice.scenarios.baseline import check_files
        from wsvoice.scenarios.options import read_config

        try:
            found = read_config(config)
            check_files(found.compare, found.save_baseline)
        except UsageError as error:
            raise pytest.UsageError(f"{error.message}\n{error.hint or ''}".rstrip()) from None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect a scenario."""
    if not file_path.name.endswith(".call.toml"):
        return None
    from wsvoice.scenarios.items import collector_class

    return collector_class(_folders).from_parent(parent, path=file_path)


class _Results:
    """What comes of the scenarios, which may run in other processes: their waits, and what could not be judged."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._waits: dict[str, dict[str, list[float]]] = {}
        self._not_judged: list[str] = []
        self._saved = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or "wsvoice_call" not in report.keywords:
            return
        for name, value in report.user_properties:
            if name == "wsvoice_not_judged":
                self._not_judged.append(f"{report.nodeid}: {value}")
            elif name == "wsvoice_waits_ms" and report.passed:
                self._waits[report.nodeid] = json.loads(str(value))

    def pytest_sessionfinish(self) -> None:
        if not self._config.getoption("calls_save_baseline") or not self._waits:
            return
        from wsvoice.scenarios.baseline import save_baseline
        from wsvoice.scenarios.options import read_config

        path = read_config(self._config).save_baseline
        assert path is not None
        save_baseline(path, self._waits)
        self._saved = f"the waits of {len(self._waits)} scenarios are in {path}"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = [*self._not_judged, *filter(None, [self._saved])]
        if lines:
            terminalreporter.section("calls")
        for line in lines:
            terminalreporter.write_line(line)
