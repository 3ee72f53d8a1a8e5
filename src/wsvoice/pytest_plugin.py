"""
The pytest plugin: the fixtures ``dial`` and ``adial``, which call a bot.

pytest loads it in every project of an environment with wsvoice, so it imports nothing until a test uses a fixture.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wsvoice.testing import AsyncDial, CallFactory, Dial, PlacedCall

_CALLS: pytest.StashKey[list[PlacedCall]] = pytest.StashKey()


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

    return CallFactory(
        folders=_folders(item.path, request.config),
        root=request.config.rootpath,
        new_recording=lambda: folder() / f"call-{len(calls) + 1}.wav",
        calls=calls,
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
    """Show the calls of a test that has failed."""
    report = yield
    calls = item.stash.get(_CALLS, None)
    if calls and report.failed:
        for number, placed in enumerate(calls, 1):
            report.sections.append((f"call {number}: {placed.bot}", "\n".join(placed.to_lines())))
    return report
