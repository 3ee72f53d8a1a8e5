"""A process for commands to run in, and what stands in for the server and the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest

from tests.cli.invoke import COMMANDS
from tests.environment import is_setting
from wsvoice.config import DialConfig, RunConfig
from wsvoice.dial.report import CallReport, TimelineEvent


@pytest.fixture
def clean_process(tmp_path, monkeypatch):
    """Run in an empty folder, and take back what a command changes in the process."""
    monkeypatch.chdir(tmp_path)
    # typer's runner would make the commands anew each time, which takes longer than to run them.
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMANDS)
    # The log goes to the stderr of its time, which is gone after the test.
    levels: list[str] = []
    monkeypatch.setattr("wsvoice.runner.logs.configure_logging", lambda level, *_: levels.append(level))
    environ, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    for name in list(os.environ):
        if is_setting(name) or name in ("NO_COLOR", "FORCE_COLOR"):
            del os.environ[name]
    yield levels
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "." not in name and hasattr(sys.modules[name], "__wsvoice_bot__"):
            del sys.modules[name]


@pytest.fixture
def served(monkeypatch):
    """Replace the server by one that is ready at once; its configuration and bot are left here."""
    from wsvoice.runner.server import Ready

    seen = SimpleNamespace(ready=Ready("http://localhost:7860/", None, ("twilio",)), config=None, bot=None)

    def serve(bot, config: RunConfig, *, on_ready: Callable[[object], None], **_: object) -> None:
        seen.bot, seen.config = bot, config
        public = seen.ready.public_url or config.public_url
        on_ready(replace(seen.ready, public_url=public, bot_name=bot.name))

    monkeypatch.setattr("wsvoice.runner.server.serve", serve)
    return seen


@pytest.fixture
def caller(monkeypatch):
    """Replace the simulated caller: it tells `events`, runs `place`, tells `late` and returns `report`."""
    report = CallReport("twilio", "t", verdict="passed")
    seen = SimpleNamespace(events=[], late=[], report=report, config=None, place=None)

    async def dial(
        config: DialConfig, *, on_event: Callable[[TimelineEvent], None], on_passed: Callable[[CallReport], None]
    ) -> CallReport:
        seen.config = config
        for event in seen.events:
            on_event(event)
        if seen.place is not None:
            await seen.place()
        if seen.report.verdict == "passed":
            on_passed(seen.report)
        for event in seen.late:
            on_event(event)
        return seen.report

    module = ModuleType("wsvoice.dial.caller")
    module.dial = dial
    monkeypatch.setitem(sys.modules, "wsvoice.dial.caller", module)
    return seen
