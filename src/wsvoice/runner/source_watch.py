"""
Notices that files of the bot have changed: its modules, ``.env`` and ``pyproject.toml``.

:class:`SourceWatch` has a thread, and reacts at once: ``--reload``. :class:`ChangeNotice` looks now and then, and only
says so.

What has changed is read from the files themselves, never from an event: editors write to another file and rename it,
delete and create, or truncate and write; a link may be pointed elsewhere; a file system in the network may report
nothing. An event only says that it is time to look.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from loguru import logger

#: What is read beside modules, in each of the bot's folders.
SETTINGS_FILES = (".env", "pyproject.toml")
#: For how long nothing may change before the change is reported, and how long that may put it off.
QUIET_S, PUT_OFF_S = 0.1, 2.0
#: How long a file that is empty or gone is given to be there again: it is being written.
HALF_WRITTEN_S = 0.5
#: How often it is looked without an event, and where there are none.
LOOK_S, POLL_S = 1.0, 0.3
#: How often a server that does not reload looks.
NOTICE_S = 1.0

_STEP_S = 0.025
#: Folders whose files nobody imports from the project.
_OTHERS = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})
_OWN_FOLDER = Path(__file__).parents[1]

#: What is compared of a file: its time, size and identity; ``None`` if it is not there.
Version = tuple[int, int, int, int] | None


def project_files(modules: Mapping[str, ModuleType | None], roots: Iterable[Path]) -> set[Path]:
    """
    Return the files that a change of the project would be in.

    Args:
        modules: The imported modules, as in :data:`sys.modules`.
        roots: The bot's folder and the current one. Modules below them are the project's, but for those of Python's
            library, of virtual environments (whatever their name), of installed packages and of wsvoice itself.
    """
    folders = {each for root in roots for each in (root.absolute(), root.resolve())}
    files = {folder / name for folder in folders for name in SETTINGS_FILES}
    # Other threads may import.
    for module in list(modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file and _is_own(Path(file), folders):
            files.add(Path(file).absolute())
    return files


def _is_own(file: Path, roots: Collection[Path]) -> bool:
    # Most modules are libraries', and a path takes long to resolve.
    if not _OTHERS.isdisjoint(file.parts) or str(file).startswith(_library_names()):
        return False
    return any(_is_below(each, root) for each in {file.absolute(), file.resolve()} for root in roots)


def _is_below(file: Path, root: Path) -> bool:
    if not file.is_relative_to(root) or any(file.is_relative_to(each) for each in (_OWN_FOLDER, *_libraries())):
        return False
    if not _OTHERS.isdisjoint(file.parts):
        return False
    # An environment in the project's own folder (`python -m venv .`) does not make the project part of it.
    between = file.parents[: len(file.parts) - len(root.parts) - 1]
    return not any(_is_environment(each) for each in between)


@cache
def _libraries() -> tuple[Path, ...]:
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")})


@cache
def _library_names() -> tuple[str, ...]:
    return tuple(f"{each}{os.sep}" for each in (*_libraries(), _OWN_FOLDER))


@cache
def _is_environment(folder: Path) -> bool:
    """Whether a folder is a virtual environment: https://docs.python.org/3/library/venv.html, or conda's."""
    # Unlike Path's, these functions take a folder that may not be looked into for one without such files.
    return os.path.exists(folder / "pyvenv.cfg") or os.path.isdir(folder / "conda-meta")  # noqa: PTH110, PTH112


def version_of(file: Path) -> Version:
    """Return what is compared of a file; a link's is that of the file that it leads to."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


class SourceWatch:
    """
    Calls a function when files have changed, from a thread of its own.

    However many changes there are, they are one until there has been none for :data:`QUIET_S` (or for
    :data:`PUT_OFF_S` in all). A touched file has changed; so has one that is gone, or there again.

    Args:
        files: The files; they need not exist.
        on_change: Called in the thread with the changed files, once for each change of several.
        folders: Folders, such as the bot's, of which all Python files count, and those of packages in them: an import
            that failed may need one that nobody has imported yet.
    """

    def __init__(
        self, files: Iterable[Path], on_change: Callable[[set[Path]], None], *, folders: Iterable[Path] = ()
    ) -> None:
        self._files = {each.absolute() for each in files}
        self._folders = tuple(each.absolute() for each in folders)
        self._on_change = on_change
        self._lock = threading.Lock()
        #: Set to have the thread look, because something is to be done: other files, or the end.
        self._woken = threading.Event()
        self._closed = threading.Event()
        self._polls = False
        self._seen = self._look()
        self._thread = threading.Thread(target=self._run, name="wsvoice-sources", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.start()
        return self

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.close()

    def close(self) -> None:
        """Watch no longer; a call of `on_change` that is under way ends by itself."""
        self._closed.set()
        self._woken.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def update(self, files: Iterable[Path], *, since: float | None = None) -> None:
        """
        Watch other files from now on; may be called from any thread.

        Args:
            files: All of them.
            since: When they were read, in unix time: those that are younger have changed. Without it, they are as they
                are now.
        """
        with self._lock:
            self._files = {each.absolute() for each in files}
            for file, version in self._look_locked().items():
                is_younger = since is not None and version is not None and version[0] > since * 1e9
                if file not in self._seen and not is_younger:
                    self._seen[file] = version
        self._woken.set()

    def _look(self) -> dict[Path, Version]:
        with self._lock:
            return self._look_locked()

    def _look_locked(self) -> dict[Path, Version]:
        files = self._files | {file for folder in self._folders for file in _python_files(folder)}
        return {file: version_of(file) for file in files}

    def _changed(self, now: Mapping[Path, Version]) -> set[Path]:
        with self._lock:
            return {file for file, version in now.items() if self._seen.get(file) != version}

    # In the thread

    def _run(self) -> None:
        while not self._closed.is_set():
            self._woken.clear()
            watched = self._watched()
            identities, checked_at = _identities(watched), time.monotonic()
            for _ in self._moments(watched):
                if self._closed.is_set():
                    return
                is_changed = bool(self._changed(self._look()))
                if is_changed:
                    self._report()
                if is_changed or self._woken.is_set() or time.monotonic() - checked_at >= LOOK_S:
                    checked_at = time.monotonic()
                    # A folder that was removed, or replaced, tells nothing any more.
                    if self._watched() != watched or _identities(watched) != identities:
                        break

    def _report(self) -> None:
        """Wait until nothing changes any more, and report what has changed."""
        began = quiet_since = time.monotonic()
        now = self._look()
        while not self._closed.wait(_STEP_S):
            before, now = now, self._look()
            at = time.monotonic()
            if now != before:
                quiet_since = at
            changed = self._changed(now)
            is_half_written = any(_is_half_written(now.get(file), self._seen.get(file)) for file in changed)
            quiet_s = HALF_WRITTEN_S if is_half_written else QUIET_S
            if at - quiet_since >= quiet_s or at - began >= PUT_OFF_S:
                break
        else:
            return
        with self._lock:
            self._seen = dict(now)
        # What was changed and is as it was before, to the nanosecond, is nobody's news.
        if changed:
            self._on_change(changed)

    def _moments(self, folders: Collection[Path]) -> Iterator[None]:
        """Yield when it is time to look: at an event in one of the folders, or now and then; until woken."""
        # What has changed while it was waited for nothing.
        yield
        if folders and not self._polls:
            try:
                for _ in _events(folders, self._woken):
                    yield
                return
            except (OSError, RuntimeError) as error:
                self._polls = True
                reason = str(error).partition(" about ")[0]
                logger.warning("files cannot be watched ({}); they are looked at every {:g} s", reason, POLL_S)
        while not self._woken.wait(POLL_S if self._polls else LOOK_S):
            yield

    def _watched(self) -> set[Path]:
        """Return the folders that have to be watched, those of links' targets too."""
        with self._lock:
            folders = {each.parent for file in self._files for each in (file, file.resolve())}
        folders |= {each for folder in self._folders for each in (folder, *_packages(folder))}
        return {each for each in folders if os.path.isdir(each)}  # noqa: PTH112 - it may not be ours to look at


def _events(folders: Collection[Path], stop: threading.Event) -> Iterator[object]:
    """Yield what has happened in these folders (not below them); nothing, now and then, if nothing has."""
    from watchfiles import watch

    return watch(
        *folders,
        watch_filter=None,
        debounce=int(_STEP_S * 1000),
        step=int(_STEP_S * 1000),
        stop_event=stop,
        rust_timeout=int(LOOK_S * 1000),
        yield_on_timeout=True,
        raise_interrupt=False,
        recursive=False,
        ignore_permission_denied=True,
    )


def _python_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files in a folder, and in those of its folders that are packages."""
    for each in (folder, *_packages(folder)):
        for name in _names(each):
            if name.endswith(".py") and not name.startswith("."):
                yield each / name


def _packages(folder: Path) -> Iterator[Path]:
    for name in _names(folder):
        if name.isidentifier() and name not in _OTHERS and _is_package(folder / name):
            yield folder / name


def _is_package(folder: Path) -> bool:
    # Path.is_file() raises for a folder that may not be looked into, such as a database's or another user's.
    return os.path.isfile(folder / "__init__.py")  # noqa: PTH113


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough, and a folder may be large
    except OSError:
        return []


def _identities(folders: Iterable[Path]) -> dict[Path, tuple[int, int] | None]:
    found = {each: version_of(each) for each in folders}
    return {each: None if version is None else (version[2], version[3]) for each, version in found.items()}


def _is_half_written(now: Version, before: Version) -> bool:
    """Whether a file that had content has none."""
    return before is not None and before[1] > 0 and (now is None or now[1] == 0)


class ChangeNotice:
    """
    Says once per version of a file that it has changed, for a server that does not reload.

    Args:
        roots: As :func:`project_files` takes them.
        now: Gives the time in seconds.
    """

    def __init__(
        self,
        roots: Iterable[Path],
        *,
        modules: Mapping[str, ModuleType | None] = sys.modules,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = tuple(roots)
        self._modules = modules
        self._now = now
        self._looked_at = now()
        self._known: set[str] = set()
        self._seen: dict[Path, Version] = {}
        self._learn()

    def check(self) -> None:
        """Look whether a file has changed, if it is time to; called often, in the event loop."""
        if self._now() - self._looked_at < NOTICE_S:
            return
        self._looked_at = self._now()
        self._learn()
        changed = []
        for file, version in self._seen.items():
            # One that is gone is being written, or is not needed any more.
            if (current := version_of(file)) is not None and current != version:
                self._seen[file] = current
                changed.append(file)
        if changed:
            logger.warning("{}; restart, or run with --reload", have_changed(changed))

    def _learn(self) -> None:
        """Take in what has been imported since."""
        names = set(self._modules)
        if names == self._known:
            return
        modules = {name: self._modules.get(name) for name in names - self._known}
        self._known = names
        for file in project_files(modules, self._roots):
            self._seen.setdefault(file, version_of(file))


def have_changed(files: Collection[Path]) -> str:
    """Say which files have changed."""
    # A folder that is reached in two ways has each of its files twice.
    names = sorted({each.name for each in files}, key=lambda name: (not name.endswith(".py"), name))
    if len(names) == 1:
        return f"{names[0]} has changed"
    shown = ", ".join(names[:-1]) if len(names) <= 3 else ", ".join(names[:2])
    return f"{shown} and {names[-1] if len(names) <= 3 else f'{len(names) - 2} other files'} have changed"
