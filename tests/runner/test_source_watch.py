"""Which files are the bot's, and what is noticed of them."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from loguru import logger

import wsvoice
from wsvoice.runner import source_watch
from wsvoice.runner.source_watch import ChangeNotice, SourceWatch, project_files

#: How long a change may take to be reported on a busy machine, and for how long nothing more may come.
WITHIN_S, SILENCE_S = 5.0, 0.2


class Project:
    """A folder with a bot, and what is reported of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bot = folder / "bot.py"
        self.bot.write_text("one = 1\n")
        self.reports: queue.Queue[tuple[float, set[Path]]] = queue.Queue()

    def note(self, paths: set[Path]) -> None:
        self.reports.put((time.monotonic(), paths))

    def watch(self, *files: Path) -> SourceWatch:
        return SourceWatch(files or [self.bot], self.note, folders=[self.folder])

    def changed(self) -> set[Path]:
        """The next report's files."""
        return self.reports.get(timeout=WITHIN_S)[1]

    def stays_silent(self) -> bool:
        try:
            return not self.reports.get(timeout=SILENCE_S)
        except queue.Empty:
            return True


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).rstrip()), level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


def module(file: Path | None) -> ModuleType:
    made = ModuleType("made")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        made.__file__ = str(file)
    return made


@pytest.fixture
def closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in `tmp_path` that may not be looked into, such as a database's."""
    folder = tmp_path / "pgdata"
    folder.mkdir()
    stat = os.stat

    def refuse(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        # Root may look everywhere, so its mode would not do.
        if str(path).startswith(f"{folder}{os.sep}"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refuse)
    return folder


def test_a_folder_that_may_not_be_looked_into_is_none_of_the_project(project: Project, closed_folder: Path) -> None:
    with pytest.raises(PermissionError):
        (closed_folder / "__init__.py").stat()
    with project.watch():
        project.bot.write_text("two = 2\n")
        assert project.changed() == {project.bot}
    module = ModuleType("made")
    module.__file__ = str(closed_folder / "deep" / "made.py")
    assert closed_folder / "deep" / "made.py" in project_files({"made": module}, [closed_folder.parent])


class TestProjectFiles:
    def test_modules_of_the_project_and_its_settings(self, tmp_path: Path) -> None:
        own = [tmp_path / "bot.py", tmp_path / "prompts" / "texts.py"]
        found = project_files({str(n): module(file) for n, file in enumerate(own)}, [tmp_path])
        assert found == {*own, tmp_path / ".env", tmp_path / "pyproject.toml"}

    @pytest.mark.parametrize("place", ["env", ".venv", "made/by/hand"])
    def test_not_those_of_an_environment_whatever_its_name(self, tmp_path: Path, place: str) -> None:
        library = module(tmp_path / place / "src" / "library.py")
        (tmp_path / place / "pyvenv.cfg").touch()
        assert not any("library" in file.name for file in project_files({"library": library}, [tmp_path]))

    def test_an_environment_in_the_projects_own_folder(self, tmp_path: Path) -> None:
        (tmp_path / "pyvenv.cfg").touch()
        modules = {
            "bot": module(tmp_path / "bot.py"),
            "library": module(tmp_path / "lib" / "python3.11" / "site-packages" / "library.py"),
        }
        names = {file.name for file in project_files(modules, [tmp_path])}
        assert "bot.py" in names
        assert "library.py" not in names

    def test_of_this_process_neither_python_nor_packages_nor_wsvoice(self) -> None:
        roots = [Path("/"), Path(wsvoice.__file__).parents[2]]
        found = project_files(sys.modules, roots)
        inside = [Path(wsvoice.__file__).parent, Path(os.__file__).parent]
        assert not [file for file in found if any(file.is_relative_to(each) for each in inside)]
        assert not [file for file in found if "site-packages" in file.parts]
        # These tests are a project's.
        assert Path(__file__) in found

    def test_modules_that_are_odd(self, tmp_path: Path) -> None:
        odd = module(None)
        odd.__file__ = 5  # type: ignore[assignment]
        modules = {"namespace": module(None), "odd": odd, "missing": None}
        assert {file.name for file in project_files(modules, [tmp_path])} == {".env", "pyproject.toml"}

    def test_a_link_to_the_folder(self, tmp_path: Path) -> None:
        real = tmp_path / "releases" / "1"
        loaded = module(real / "bot.py")
        (tmp_path / "current").symlink_to(real)
        assert real / "bot.py" in project_files({"bot": loaded}, [tmp_path / "current"])


class TestSourceWatch:
    def test_many_changes_are_one(self, project: Project) -> None:
        helper = project.folder / "helper.py"
        helper.touch()
        with project.watch(project.bot, helper):
            for number in range(200):
                (project.bot, helper)[number % 2].write_text(f"one = {number}\n")
                time.sleep(0.001)
            last = time.monotonic()
            at, paths = project.reports.get(timeout=WITHIN_S)
            assert paths == {project.bot, helper}
            assert at > last
            assert project.stays_silent()

    def test_it_is_reported_at_once(self, project: Project) -> None:
        waits = []
        with project.watch():
            for number in range(3):
                time.sleep(0.05)
                project.bot.write_text(f"one = {number} + 100\n")
                last = time.monotonic()
                waits.append(project.reports.get(timeout=WITHIN_S)[0] - last)
        assert min(waits) < 0.25, waits

    def test_how_editors_write(self, project: Project) -> None:
        def rename() -> None:
            other = project.folder / ".bot.py.swp"
            other.write_text("one = 2\n")
            other.replace(project.bot)

        def delete_and_create() -> None:
            project.bot.unlink()
            project.bot.write_text("one = 2\n")

        def append() -> None:
            with project.bot.open("a") as file:
                file.write("two = 2\n")

        with project.watch():
            for habit in (rename, delete_and_create, lambda: os.utime(project.bot), append):
                habit()
                # A second report would be the next one's.
                assert project.changed() == {project.bot}
                assert project.reports.empty()
            assert project.stays_silent()

    @pytest.mark.parametrize("gone", [False, True])
    def test_a_file_that_is_half_written_is_waited_for(self, project: Project, gone: bool) -> None:
        contents = []
        watch = SourceWatch([project.bot], lambda _: contents.append(project.bot.read_text()))
        with watch:
            if gone:
                project.bot.unlink()
            else:
                project.bot.write_text("")
            time.sleep(0.25)
            project.bot.write_text("one = 2\n")
            deadline = time.monotonic() + WITHIN_S
            while not contents and time.monotonic() < deadline:
                time.sleep(0.01)
        assert contents == ["one = 2\n"]

    def test_a_file_that_stays_away_is_reported_too(self, project: Project) -> None:
        with project.watch():
            project.bot.unlink()
            assert project.changed() == {project.bot}

    def test_a_link_that_is_pointed_elsewhere(self, project: Project) -> None:
        versions = [project.folder / "releases" / name / "texts.py" for name in ("1", "2")]
        for number, version in enumerate(versions):
            version.parent.mkdir(parents=True)
            version.write_text(f"text = {number}\n")
        current = project.folder / "current"
        current.symlink_to(versions[0].parent)
        linked = current / "texts.py"
        with project.watch(linked):
            versions[0].write_text("text = 10\n")
            assert project.changed() == {linked}
            other = project.folder / "other"
            other.symlink_to(versions[1].parent)
            other.replace(current)
            assert project.changed() == {linked}
            # It is the new target that counts.
            versions[1].write_text("text = 20\n")
            assert project.changed() == {linked}

    def test_a_folder_that_is_replaced(self, project: Project) -> None:
        package = project.folder / "deployed"
        package.mkdir()
        texts = package / "texts.py"
        texts.write_text("text = 1\n")
        with project.watch(texts):
            package.rename(project.folder / "old")
            assert project.changed() == {texts}
            package.mkdir()
            texts.write_text("text = 2\n")
            assert project.changed() == {texts}
            texts.write_text("text = 3 + 3\n")
            assert project.changed() == {texts}

    def test_what_does_not_count(self, project: Project) -> None:
        with project.watch():
            (project.folder / "__pycache__").mkdir()
            (project.folder / "__pycache__" / "bot.cpython-311.pyc").write_bytes(b"1")
            (project.folder / "call.wav").write_bytes(b"1")
            (project.folder / ".#bot.py").symlink_to("nobody@nowhere")
            (project.folder / "bot.py~").write_text("one = 1\n")
            project.bot.read_text()
            assert project.stays_silent()

    @pytest.mark.parametrize("name", ["missing.py", "missing/__init__.py"])
    def test_what_an_import_may_have_missed(self, project: Project, name: str) -> None:
        with project.watch():
            missing = project.folder / name
            missing.parent.mkdir(exist_ok=True)
            missing.write_text("text = (\n")
            assert project.changed() == {missing}
            missing.write_text("text = 1\n")
            assert project.changed() == {missing}

    def test_other_files_from_now_on(self, project: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
        late = tmp_path_factory.mktemp("elsewhere") / "texts.py"
        late.write_text("text = 1\n")
        watch = SourceWatch([project.bot], project.note)
        with watch:
            watch.update([late])
            assert project.stays_silent()
            late.write_text("text = 2 + 2\n")
            assert project.changed() == {late}
            project.bot.write_text("one = 2 + 2\n")
            assert project.stays_silent()

    def test_a_file_that_changed_after_it_was_read(self, project: Project) -> None:
        late = project.folder.parent / f"{project.folder.name}-texts.py"
        read_at = time.time() - 60
        late.write_text("text = 1\n")
        watch = SourceWatch([project.bot], project.note)
        with watch:
            watch.update([project.bot, late], since=read_at)
            assert project.changed() == {late}

    def test_without_a_watcher_it_is_looked_now_and_then(
        self, project: Project, logged: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def watch(*_: object, **__: object) -> object:
            raise OSError(28, "No space left on device about ['/somewhere']")

        monkeypatch.setattr("watchfiles.watch", watch)
        with project.watch():
            for number in range(2):
                project.bot.write_text(f"one = {number} + 1\n")
                assert project.changed() == {project.bot}
        assert [line for line in logged if "cannot be watched" in line] == [
            "files cannot be watched ([Errno 28] No space left on device); they are looked at every 0.3 s"
        ]

    def test_events_that_never_come(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Some file systems, such as those of a network, report nothing."""

        def silent(_: object, stop: threading.Event) -> Iterator[object]:
            while not stop.wait(0.1):
                yield set()

        monkeypatch.setattr(source_watch, "_events", silent)
        with project.watch():
            project.bot.write_text("one = 2 + 2\n")
            assert project.changed() == {project.bot}

    def test_its_thread_ends(self, project: Project) -> None:
        with project.watch() as watch:
            assert watch._thread.is_alive()
        assert not watch._thread.is_alive()


class TestChangeNotice:
    def make(self, project: Project) -> tuple[ChangeNotice, Callable[[], None], dict[str, ModuleType | None]]:
        modules: dict[str, ModuleType | None] = {"bot": module(project.bot)}
        clock = [100.0]
        notice = ChangeNotice([project.folder], modules=modules, now=lambda: clock[0])

        def later() -> None:
            clock[0] += 1.5
            notice.check()

        return notice, later, modules

    def test_once_per_version(self, project: Project, logged: list[str]) -> None:
        _, later, _ = self.make(project)
        later()
        assert logged == []
        project.bot.write_text("one = 2 + 2\n")
        later()
        later()
        assert logged == ["bot.py has changed; restart, or run with --reload"]
        project.bot.write_text("one = 2 + 2 + 2\n")
        later()
        assert len(logged) == 2

    def test_it_looks_about_once_a_second(self, project: Project, logged: list[str]) -> None:
        notice, later, _ = self.make(project)
        project.bot.write_text("one = 2 + 2\n")
        notice.check()
        assert logged == []
        later()
        assert len(logged) == 1

    def test_a_file_that_was_not_there(self, project: Project, logged: list[str]) -> None:
        _, later, _ = self.make(project)
        (project.folder / ".env").write_text("WSVOICE_PORT=1\n")
        later()
        assert logged == [".env has changed; restart, or run with --reload"]

    def test_a_module_that_is_imported_later(self, project: Project, logged: list[str]) -> None:
        _, later, modules = self.make(project)
        modules["late"] = late = module(project.folder / "late.py")
        later()
        assert logged == []
        Path(str(late.__file__)).write_text("text = 1\n")
        later()
        assert logged == ["late.py has changed; restart, or run with --reload"]

    def test_several_at_once(self, project: Project, logged: list[str]) -> None:
        _, later, modules = self.make(project)
        for name in ("a", "b", "c"):
            modules[name] = module(project.folder / f"{name}.py")
        later()
        for name in ("a", "b", "c", "bot"):
            (project.folder / f"{name}.py").write_text("text = 1 + 1 + 1\n")
        later()
        assert logged == ["a.py, b.py and 2 other files have changed; restart, or run with --reload"]

    def test_a_file_that_is_gone_is_being_written(self, project: Project, logged: list[str]) -> None:
        _, later, _ = self.make(project)
        project.bot.unlink()
        later()
        assert logged == []
        project.bot.write_text("one = 2 + 2\n")
        later()
        assert len(logged) == 1
