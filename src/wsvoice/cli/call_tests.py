"""``wsvoice test``: scenarios without knowing pytest, which runs them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsvoice.cli.options import SCENARIOS, EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.config import resolve_test
from wsvoice.errors import UsageError, WsvoiceError
from wsvoice.scenarios import SUFFIX

if TYPE_CHECKING:
    import pytest

    from wsvoice.dial.report import TimelineEvent

#: Folders in which nobody keeps scenarios.
_SKIPPED_FOLDERS = frozenset({"node_modules", "build", "dist", "venv", "__pycache__"})
#: How many columns a scenario's name has.
_NAME_WIDTH = 40
#: So many scenarios are named where none was chosen.
_NAMED = 8


class _NothingSelected(Exception):
    """No scenario has the words of ``-k``."""


def run_scenarios(
    context: typer.Context,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATHS]...", help="Scenarios, or folders of them.  [default: this folder]", show_default=False
        ),
    ] = None,
    keyword: Annotated[
        str | None, option("-k, --keyword WORDS", "Run those whose names have these words, as pytest's -k.", SCENARIOS)
    ] = None,
    processes: Annotated[
        str | None, option("-n, --processes N", "Place so many calls at the same time.  [default: 1]", SCENARIOS)
    ] = None,
    fail_fast: Annotated[bool, option("-x, --fail-fast", "Stop at the first that fails.", SCENARIOS)] = False,
    repeat: Annotated[
        str | None, option("--repeat N", "Place each call so many times, and look at the pass rate.", SCENARIOS)
    ] = None,
    junit: Annotated[str | None, option("--junit FILE", "Write a JUnit report.", SCENARIOS)] = None,
    save_baseline: Annotated[
        str | None, option("--save-baseline FILE", "Keep the callers' waits in this file.", SCENARIOS)
    ] = None,
    compare: Annotated[
        str | None, option("--compare FILE", "Fail if waits have grown since this file.", SCENARIOS)
    ] = None,
    max_slower: Annotated[
        str | None, option("--max-slower SHARE", "By how much of themselves they may.  [default: 10%]", SCENARIOS)
    ] = None,
    traces: Annotated[
        str | None,
        option("--traces DIR", "Keep the traces of calls that failed here.  [default: a temporary folder]", SCENARIOS),
    ] = None,
    from_: Annotated[
        str | None,
        option("--from CALL", "Write the scenario of this trace instead of running any, and exit."),
    ] = None,
    schema: Annotated[bool, option("--schema", "Print the JSON Schema of scenarios, and exit.")] = False,
    env_file: EnvFile = None,
    quiet: Annotated[bool, option("-q, --quiet", "Print what failed, and the verdict, only.")] = False,
) -> None:
    """
    Run scenarios: calls as tests, from files NAME.call.toml.

    Each says what a caller does and what is expected of the bot. pytest runs the same
    files with its own options. Exits with 0 if all passed, with 1 if one failed, and with 2
    if one cannot be used: then no call is placed.

    \b
    wsvoice test                                  all in this folder and below
    wsvoice test tests/booking.call.toml --repeat 20
    wsvoice test -n 4 --junit report.xml --compare baseline.json
    wsvoice test --from good.call                 writes good.call.toml
    """
    output = Output()
    if schema:
        import json

        from wsvoice.scenarios.schema import json_schema

        output.text(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
        return
    if from_ is not None:
        _refuse_beside_from(context)
        _write_scenario(from_, paths or [], output)
        return
    resolved = resolve_test(context.params, environ=os.environ, cwd=Path.cwd())
    output.warnings(resolved)
    at_once = resolved.config.processes
    if env_file is not None:
        os.environ["WSVOICE_ENV_FILE"] = str(Path(env_file).absolute())
    _require_pytest(at_once)
    if junit is not None and Path(junit).suffix.lower() != ".xml":
        raise UsageError(f"--junit writes an XML file, got {junit!r}", hint=f"use `{Path(junit).with_suffix('.xml')}`")
    from wsvoice.scenarios.baseline import check_files

    check_files(resolved.config.compare, resolved.config.save_baseline)
    files = find_scenarios([Path(path) for path in paths or ["."]])
    _check(files)
    arguments = [*map(str, files), "-p", "no:cacheprovider", "-o", "addopts=", "-s"]
    if _is_installed("pytest_asyncio"):
        # Without it, that plugin prints a warning for each process, and scenarios have none of its fixtures.
        arguments += ["-o", "asyncio_default_fixture_loop_scope=function"]
    arguments += ["-k", keyword] if keyword else []
    arguments += ["-n", str(at_once)] if at_once > 1 else []
    arguments += ["-x"] if fail_fast else []
    arguments += [f"--junitxml={junit}"] if junit else []
    values = {"repeat": repeat, "save-baseline": save_baseline, "compare": compare, "max-slower": max_slower}
    values |= {"traces": traces}
    arguments += [f"--calls-{name}={value}" for name, value in values.items() if value]
    try:
        _run(arguments, output, quiet=quiet)
    except _NothingSelected:
        names = dict.fromkeys(file.name.removesuffix(SUFFIX) for file in files)
        listed = ", ".join([*list(names)[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
        raise UsageError(f"no scenario's name has {keyword!r}", hint=f"there are: {listed}") from None


def _refuse_beside_from(context: typer.Context) -> None:
    """
    Refuse options that have no effect beside ``--from``.

    Raises:
        UsageError: If one is given.
    """
    for parameter in context.command.params:
        if parameter.name in ("paths", "from_") or not context.params.get(parameter.name or ""):
            continue
        raise UsageError(f"{parameter.opts[0]} has no effect beside --from, which runs nothing", hint="leave it out")


def _write_scenario(call: str, paths: Sequence[str], output: Output) -> None:
    """
    Write the scenario of a traced call, to a path that is named or under the trace's name in this folder.

    Raises:
        UsageError: If there is no such trace, no scenario can be made of it, or it cannot be written.
    """
    if len(paths) > 1:
        raise UsageError(f"--from writes one scenario, and {len(paths)} are named", hint="name one: NAME.call.toml")
    file = Path(paths[0] if paths else f"{Path(call).stem}.call.toml")
    if not file.name.endswith(SUFFIX):
        raise UsageError(f"{file} is no name of a scenario", hint="a scenario's name ends with .call.toml")
    from wsvoice.scenarios.from_trace import write_scenario
    from wsvoice.trace import read_trace

    with read_trace(call) as trace:
        for each in write_scenario(trace, file):
            output.line(f"{each} is written", style="bold green")


def find_scenarios(paths: Sequence[Path]) -> list[Path]:
    """
    Return the scenarios among `paths` and in folders among them.

    Raises:
        UsageError: If there are none.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path} does not exist", hint="give scenarios, NAME.call.toml, or folders of them")
        if path.is_file() and not path.name.endswith(SUFFIX):
            raise UsageError(f"{path} is no scenario", hint="a scenario's name ends with .call.toml")
        inside = [path] if path.is_file() else sorted(path.rglob("*.call.toml"))
        found.update((each, None) for each in inside if each == path or not _is_skipped(each.relative_to(path)))
    if not found:
        where = ", ".join(map(str, paths))
        how = "`wsvoice dial bot.py --trace good.call`, then `wsvoice test --from good.call`"
        hint = f"write NAME.call.toml, or make it of a call: {how}"
        raise UsageError(f"there are no scenarios in {where}", hint=hint)
    return list(found)


def _is_skipped(path: Path) -> bool:
    return any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in path.parts[:-1])


def _is_installed(module: str) -> bool:
    # Help is printed without it.
    from importlib.util import find_spec

    return find_spec(module) is not None


def _require_pytest(at_once: int) -> None:
    wanted = ["pytest", *(["xdist"] if at_once > 1 else [])]
    if missing := [name for name in wanted if not _is_installed(name)]:
        names = {"pytest": "pytest", "xdist": "pytest-xdist"}
        raise UsageError(
            f"to run scenarios, wsvoice needs {names[missing[0]]}, which is not installed",
            hint="pip install 'wsvoice[test]'",
        )


def _check(files: Sequence[Path]) -> None:
    """Raise what is wrong with a file by itself, before pytest starts; what it needs is looked for when it does."""
    from wsvoice.scenarios.loading import read_scenario

    for file in files:
        read_scenario(file)


@dataclass
class _Outcome:
    """What came of one scenario."""

    name: str
    passed: bool
    duration_s: float
    properties: dict[str, str]
    failure: str = ""
    sections: list[tuple[str, str]] = field(default_factory=list)

    def columns(self) -> str:
        """Return what the table says of it after its verdict and name."""
        calls = f"{self.properties.get('calls_passed', '0')}/{self.properties.get('calls', '0')} calls"
        waits = [self.properties.get(f"wait_p{percent}_ms") for percent in (50, 95)]
        shown = f"waits p50 {waits[0]} ms, p95 {waits[1]} ms" if all(waits) else "no waits"
        return f"{calls:<14} {self.duration_s:6.1f} s   {shown}"


class _Watcher:
    """pytest's plugin that shows what it does."""

    def __init__(self, output: Output, *, quiet: bool) -> None:
        self.outcomes: list[_Outcome] = []
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.is_interrupted = False
        self._output = output
        self._quiet = quiet
        self._running: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._n_all = 0

    def pytest_configure(self, config: pytest.Config) -> None:
        from wsvoice.scenarios.items import WATCHER

        config.stash[WATCHER] = self._see

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(str(report.longrepr))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._n_all = len(session.items)

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        # pytest stops itself with a kind of it, too, where something cannot be collected.
        self.is_interrupted = type(excinfo.value) is KeyboardInterrupt

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = time.monotonic()
        self._show()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and not report.failed:
            return
        name = report.nodeid.rpartition("::")[2]
        properties = {key: str(value) for key, value in report.user_properties}
        failure = str(report.longrepr) if report.failed else ""
        outcome = _Outcome(name, report.passed, report.duration, properties, failure, list(report.sections))
        self.outcomes.append(outcome)
        self.notes += [f"{name}: {value}" for key, value in report.user_properties if key == "wsvoice_not_judged"]
        self._running.pop(report.nodeid, None)
        if not self._quiet:
            self._output.line(
                f"{name}  {report.duration:.1f} s",
                label="passed  " if report.passed else "failed  ",
                label_style="green" if report.passed else "red",
            )
        self._show()

    def _see(self, nodeid: str, which: str, event: TimelineEvent) -> None:
        if event.kind not in ("log", "caller-log"):
            self._doing[nodeid] = f"{which}{event.text}"
            self._show()

    def _show(self) -> None:
        lines = [
            f"{nodeid.rpartition('::')[2]} {time.monotonic() - since:.0f} s {self._doing.get(nodeid, '')}".rstrip()
            for nodeid, since in self._running.items()
        ]
        done = f"{len(self.outcomes)} of {self._n_all} done" if self._n_all else f"{len(self.outcomes)} done"
        self._output.show_progress("; ".join([done, *lines]))


def _run(arguments: Sequence[str], output: Output, *, quiet: bool) -> None:
    """Have pytest run the scenarios, show what came of it, and end with the verdict as the exit code."""
    import pytest

    watcher = _Watcher(output, quiet=quiet)
    # pytest's own words would be a second report; they are shown where it cannot make one.
    with output.progress("looking for scenarios"), output.alone() as words:
        code = pytest.main(list(arguments), plugins=[watcher])
    if watcher.is_interrupted:
        if not quiet and watcher.outcomes:
            _report(watcher, output, quiet=True)
        output.verdict("interrupted")
        raise KeyboardInterrupt
    if watcher.errors:
        raise _first_error(watcher.errors)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise _NothingSelected
    if wrong := re.search(r"Wrong expression passed to '-k': (.*)", words.getvalue()):
        hint = "give words, with `and`, `or`, `not` between them: -k 'booking and not twilio'"
        raise UsageError(f"-k cannot be {wrong[1]}", hint=hint)
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise WsvoiceError(f"pytest could not run the scenarios:\n{words.getvalue().strip()[-2000:]}")
    _report(watcher, output, quiet=quiet)
    if code != pytest.ExitCode.OK:
        raise typer.Exit(1)


def _first_error(errors: Sequence[str]) -> UsageError:
    message, _, hint = errors[0].partition("\nhint:")
    return UsageError(message.removeprefix("error: "), hint=hint.strip() or None)


def _report(watcher: _Watcher, output: Output, *, quiet: bool) -> None:
    failed = [each for each in watcher.outcomes if not each.passed]
    for outcome in failed:
        output.line(f"{outcome.name}", style="bold red")
        for line in outcome.failure.splitlines():
            if "wsvoice show " in line:
                # Not wrapped, so that it can be copied.
                output.line(f"  {line}")
            else:
                output.line(line, label="  ")
    # One that was just told of is not told of twice.
    if not quiet and len(watcher.outcomes) > 1:
        width = min(_NAME_WIDTH, max((len(each.name) for each in watcher.outcomes), default=0))
        for each in sorted(watcher.outcomes, key=lambda outcome: outcome.name):
            style = "green" if each.passed else "red"
            verdict = "passed" if each.passed else "failed"
            output.line(each.columns(), label=f"{verdict}  {each.name:<{width}}  ", label_style=style)
        for note in watcher.notes:
            output.note(note)
    count = len(watcher.outcomes)
    verdict = f"failed: {len(failed)} of {count} scenarios" if failed else f"passed: {count} scenarios"
    output.verdict(verdict if count != 1 else verdict.replace("scenarios", "scenario"))
