"""
Find, import and check the bot, before any port opens.

Every mistake that can be recognised has its own message. pipecat is not imported here: the caller has to patch it
before the bot imports it.
"""

from __future__ import annotations

import argparse
import asyncio
import builtins
import difflib
import getpass
import glob
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from wsvoice.config import nearest
from wsvoice.errors import BotImportError, BotNotFoundError, WsvoiceError
from wsvoice.isolation import protect_signals

BotFunction = Callable[[Any], Awaitable[Any]]

DEFAULT_FILE = "bot.py"
DEFAULT_FUNCTION = "bot"

#: How long an ``asyncio.run`` in the bot's module may take; a server would never end.
IMPORT_RUN_LIMIT_S = 5.0
#: How many files beside the bot are looked at for what they import.
_NEIGHBOURS = 200

_GUARD_HINT = 'put it under `if __name__ == "__main__":`, which wsvoice does not run'

#: Distributions that are not named after their module.
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python",
    "dateutil": "python-dateutil",
    "deepgram": "deepgram-sdk",
    "dotenv": "python-dotenv",
    "pipecat": "pipecat-ai",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class LoadedBot:
    """
    A bot that was imported and checked.

    Attributes:
        function: The coroutine function, called with the runner arguments for each call.
        name: The bot's name in messages: ``bot.py``, ``bot.py:other``, ``pkg.module``.
        path: The file it was read from.
        module: The module that it was imported as.
    """

    function: BotFunction
    name: str
    path: Path
    module: ModuleType


def find_bot(spec: str, *, base: Path | None = None) -> tuple[str, str, Path | None]:
    """
    Find the bot that `spec` names, without importing anything; the arguments are those of :func:`load_bot`.

    Returns:
        What the user named, without the function; the function's name; and the file, or ``None`` for a module's name.

    Raises:
        BotNotFoundError: If there is no such file.
    """
    base = base or Path.cwd()
    target, function_name = _split(spec, base)
    return target, function_name, _find_file(target, base)


def load_bot(spec: str, *, base: Path | None = None) -> LoadedBot:
    """
    Import the bot that `spec` names.

    Args:
        spec: ``file.py[:func]``, ``pkg.module[:func]`` or a folder that has a ``bot.py``.
        base: The folder that `spec` is relative to; the current one if not given.

    Raises:
        BotNotFoundError: If there is no such bot, or it is not a bot.
        BotImportError: If the bot's own code fails while it is imported.
    """
    base = base or Path.cwd()
    target, function_name, path = find_bot(spec, base=base)
    shown = target if path is None else path.name
    with _import_folder(base.resolve() if path is None else path.parent):
        module = _import_module(target, base) if path is None else _import_file(path)
        function = _find_function(module, function_name, shown=shown, target=target)
    name = shown if function_name == DEFAULT_FUNCTION else f"{shown}:{function_name}"
    return LoadedBot(function, name, path or Path(module.__file__ or target), module)


# -- Finding it --


def _split(spec: str, base: Path) -> tuple[str, str]:
    """Split `spec` at the colon before the function's name, which is not the colon of a Windows drive."""
    if not spec.strip():
        raise BotNotFoundError("no bot is named", hint="for example `wsvoice run bot.py`")
    head, colon, name = spec.rpartition(":")
    is_drive = len(head) == 1 and head.isalpha()
    if not colon or "/" in name or "\\" in name or (is_drive and not name.isidentifier()) or (base / spec).exists():
        return spec, DEFAULT_FUNCTION
    if not name.isidentifier():
        hint = "for example `wsvoice run bot.py:other_name`"
        raise BotNotFoundError(f"{spec!r} names no function after the colon", hint=hint)
    return head or DEFAULT_FILE, name


def _find_file(target: str, base: Path) -> Path | None:
    """Return the file that `target` names, or ``None`` if it is the name of a module."""
    path = base / Path(target).expanduser()
    if path.is_dir():
        inside = path / DEFAULT_FILE
        if not inside.is_file():
            raise BotNotFoundError(f"the folder {target} has no {DEFAULT_FILE}", hint=_bots_hint(inside, path))
        return inside.resolve()
    if path.is_file():
        if path.suffix != ".py":
            hint = _bots_hint(path.with_suffix(".py"), path.parent)
            raise BotNotFoundError(f"{target} is not a Python file", hint=hint)
        return path.resolve()
    if target.isidentifier() and path.with_suffix(".py").is_file():
        return path.with_suffix(".py").resolve()
    if path.suffix == ".py" or "/" in target or "\\" in target:
        if not path.parent.is_dir():
            raise BotNotFoundError(f"there is no file {target}: its folder does not exist", hint=_bots_hint(path, base))
        raise BotNotFoundError(f"there is no file {target}", hint=_bots_hint(path, path.parent))
    return None


def _bots_hint(wanted: Path, folder: Path) -> str:
    """Return a hint with the files of `folder` that hold a bot: ``bot.py`` first, then those most like `wanted`."""
    try:
        files = [file for file in folder.glob("*.py") if not file.name.startswith("__") and _holds_a_bot(file)]
    except OSError:
        files = []
    if not files:
        return "a bot is a Python file with `async def bot(runner_args): ...`; `wsvoice init` makes one"
    # The sort is stable, so equally similar names stay in alphabetical order.
    names = nearest(wanted.name, sorted(file.name for file in files))
    names.sort(key=lambda name: name != DEFAULT_FILE)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"there is {', '.join(f'`{name}`' for name in names[:5])}{more}"


# The function itself, or an assignment or import of that name.
_BOT = re.compile(
    rb"^(?:async[ \t]+def[ \t]+bot\b|bot[ \t]*[:=]|from[ \t][^\n]*\bimport\b[^\n]*\bbot\b(?![ \t]+as\b))", re.MULTILINE
)


def _holds_a_bot(file: Path) -> bool:
    """Whether a file seems to hold a bot; it is not run."""
    try:
        return file.is_file() and _BOT.search(file.read_bytes()) is not None
    except OSError:
        return False


# -- Importing it --


def _import_file(path: Path) -> ModuleType:
    """Import `path` under its stem, not as ``__main__``, so that its main guard does not run."""
    name = path.stem
    existing = sys.modules.get(name)
    is_the_same = Path(getattr(existing, "__file__", None) or "").resolve() == path
    if existing is not None and not hasattr(existing, "__wsvoice_bot__") and not is_the_same:
        hint = f"give the file another name, for example `{name}_bot.py`"
        raise BotNotFoundError(f"{path.name} has the name of a module that is in use: `{name}`", hint=hint)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BotNotFoundError(f"{path.name} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__wsvoice_bot__"] = True
    with _as_script(path):
        # Before it is executed: dataclasses and pickle look their module up by name.
        sys.modules[name] = module
        try:
            with _bot_errors(path.name, path.parent, run_as=None):
                spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)
            if existing is not None:
                sys.modules[name] = existing
            raise
    return module


def _import_module(target: str, base: Path) -> ModuleType:
    if not all(part.isidentifier() for part in target.split(".")):
        problem = f"there is no bot {target!r}: it is neither a file nor the name of a module"
        raise BotNotFoundError(problem, hint=_bots_hint(base / f"{target}.py", base))
    with _as_script(Path(*target.split(".")).with_suffix(".py")):
        importlib.invalidate_caches()
        with _bot_errors(target, base.resolve(), run_as=target):
            return importlib.import_module(target)


@contextmanager
def _import_folder(folder: Path) -> Iterator[None]:
    """Put `folder` first on ``sys.path``, as ``python bot.py`` does; it is removed only if the import fails."""
    entry = str(folder)
    before = list(sys.path)
    sys.path[:] = [entry, *(item for item in sys.path if item != entry)]
    try:
        yield
    except BaseException:
        sys.path[:] = before
        raise


class _RunsAtImport(Exception):
    """The module called a function, named by the first argument, that runs until it is stopped."""


class _AsksAtImport(Exception):
    """The module called a function, named by the first argument, that waits for keyboard input."""


@contextmanager
def _as_script(path: Path) -> Iterator[None]:
    """
    Give the module a command line without wsvoice's arguments, and keep it from running for ever.

    A bot may read ``sys.argv`` while it is imported. One without a main guard starts a server or a call, and its import
    would never return. pipecat's ``main()`` is stopped before it does anything, because it looks for its bot by running
    every Python file of the current folder.
    """
    import uvicorn

    run, parse = asyncio.run, argparse.ArgumentParser.parse_args

    def limited_run(main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        async def limited() -> Any:
            result = None
            try:
                async with asyncio.timeout(IMPORT_RUN_LIMIT_S) as limit:
                    result = await main
            except TimeoutError:
                if not limit.expired():
                    raise
            # Not in the handler: a cancelled server may return as if it had been stopped.
            if limit.expired():
                raise _RunsAtImport("asyncio.run()")
            return result

        try:
            return run(limited(), **options)
        finally:
            if inspect.iscoroutine(main):
                main.close()

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") == "pipecat.runner.run":
            raise _RunsAtImport("pipecat's main()")
        return parse(parser, *args, **options)

    def refuse(kind: type[Exception], called: str) -> Callable[..., Any]:
        def refused(*_: Any, **__: Any) -> Any:
            raise kind(called)

        return refused

    with ExitStack() as stack:
        for owner, name, replacement in (
            (sys, "argv", [str(path)]),
            (builtins, "input", refuse(_AsksAtImport, "input()")),
            (getpass, "getpass", refuse(_AsksAtImport, "getpass()")),
            (asyncio, "run", limited_run),
            (uvicorn, "run", refuse(_RunsAtImport, "uvicorn.run()")),
            (argparse.ArgumentParser, "parse_args", parse_args),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        stack.enter_context(protect_signals())
        yield


@contextmanager
def _bot_errors(shown: str, folder: Path, *, run_as: str | None) -> Iterator[None]:
    """Turn the error of the bot's import into one that says what is wrong with the bot."""
    try:
        yield
    except WsvoiceError:
        raise
    except _RunsAtImport as error:
        problem = f"{shown} starts to run while it is imported: it calls {error}{_location(error, folder)}"
        raise BotImportError(problem, hint=_GUARD_HINT) from None
    except _AsksAtImport as error:
        problem = f"{shown} waits for somebody to type while it is imported: it calls {error}{_location(error, folder)}"
        hint = f"take it from the environment or .env (`os.environ[...]`), or {_GUARD_HINT}"
        raise BotImportError(problem, hint=hint) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 - a bot may raise anything
        raise _diagnosis(error, shown, folder, run_as) from None


def _diagnosis(error: BaseException, shown: str, folder: Path, run_as: str | None) -> BotNotFoundError | BotImportError:
    """Return the error that says what is wrong with a bot whose import failed with `error`."""
    if isinstance(error, SystemExit):
        problem = f"{shown} stops while it is imported: "
        location = _location(error, folder)
        # Raised in, or below, argparse.
        if any(Path(frame.filename).name == "argparse.py" for frame in traceback.extract_tb(error.__traceback__)):
            return BotImportError(f"{problem}it reads its command line{location}", hint=_GUARD_HINT)
        if isinstance(error.code, str) and error.code.strip():
            said = " ".join(error.code.split())[:500]
            return BotImportError(f"{problem}{said}{location}", hint=f"fix that; or {_GUARD_HINT}")
        code = error.code if isinstance(error.code, int) else 0
        return BotImportError(f"{problem}it exits with code {code}{location}", hint=_GUARD_HINT)
    if isinstance(error, SyntaxError):
        file = Path(error.filename).name if error.filename else shown
        line = f", line {error.lineno}" if error.lineno else ""
        return BotImportError(
            f"{file}{line} is not valid Python: {error.msg}",
            details="".join(traceback.format_exception_only(error)).rstrip(),
            hint="save the file as UTF-8" if re.search(r"codec|null bytes|utf-8", str(error.msg)) else None,
        )
    if isinstance(error, ImportError):
        if run_as is not None and _is_target_missing(error, run_as):
            what = ", and no file of that name" if error.name == run_as else f": there is no {error.name!r}"
            hint = _bots_hint(folder / f"{run_as}.py", folder)
            return BotNotFoundError(f"there is no module {run_as!r}{what}", hint=hint)
        return _import_error(error, shown, folder)
    if not _frames(error):
        return BotNotFoundError(f"{shown} cannot be read: {error}")
    return _failure(error, shown)


def _failure(error: BaseException, shown: str, hint: str | None = None) -> BotImportError:
    first_line = str(error).strip().splitlines()[:1]
    problem = ": ".join([f"{shown} failed while it was imported", type(error).__name__, *first_line])
    return BotImportError(problem, details=_details(error), hint=hint)


def _import_error(error: ImportError, shown: str, folder: Path) -> BotImportError:
    """Return the error that says which module is missing, and how to install it."""
    missing = _missing_module(error)
    if missing is None or missing.name is None:
        hint = _hides_a_library(error, folder, shown)
        if hint is None and "relative import" in str(error):
            hint = "run it as a module of its package: `wsvoice run package.module`"
        return _failure(error, shown, hint)
    package = missing.name.partition(".")[0]
    if package != missing.name and (hint := _hides_a_library(missing, folder, shown)):
        return _failure(missing, shown, hint)
    importer, is_own = _importer(missing, error, folder, shown)
    details = "" if is_own else _details(missing)
    if gone := _gone_file(missing.name, folder):
        file, hint = gone
        return BotImportError(f"{importer} imports `{missing.name}`, and {file} is missing", details=details, hint=hint)
    if package != missing.name and _is_installed(package):
        problem = f"{importer} imports `{missing.name}`, which {package}{_version_of(package)} does not have"
        hint = f"check the name, and which version of {package} the bot was written for"
        return BotImportError(problem, details=details, hint=hint)
    if extra := _pipecat_extra(missing):
        feature, extra_name = extra
        problem = f"{importer} imports `{feature}`, which needs `{package}`, and that is not installed"
        return BotImportError(problem, hint=f'pip install "pipecat-ai[{extra_name}]"')
    # Do not suggest to install a name that is probably a misspelt one of an installed package.
    hint = _nearly_installed(package) or f"pip install {_DISTRIBUTIONS.get(package, package)}"
    return BotImportError(f"{importer} imports `{missing.name}`, which is not installed", details=details, hint=hint)


def _gone_file(name: str, folder: Path) -> tuple[str, str] | None:
    """
    Return which file of the bot's own is missing if module `name` was one, and a hint.

    A package of that name on PyPI would be a stranger's.
    """
    package, _, inside = name.partition(".")
    if package in _DISTRIBUTIONS:
        return None
    file = folder.joinpath(*name.split(".")).with_suffix(".py")
    shown = file.relative_to(folder).as_posix()
    compiled = sorted(file.parent.glob(f"__pycache__/{glob.escape(file.stem)}.*.pyc"))
    if compiled:
        left = compiled[-1].relative_to(folder).as_posix()
        return shown, f"it was there once: {left} is left of it; put it back, or leave the import out"
    if inside and _is_own_package(package, folder):
        return shown, f"put it back, or correct the name: the folder {package} is there"
    if not inside and (neighbour := _imports_relatively(package, folder)):
        return shown, f"{neighbour} takes it for a file beside it, too; put it back, or leave the import out"
    return None


def _is_own_package(package: str, folder: Path) -> bool:
    """Whether `package` is a folder in the bot's, and not a library."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return False
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    return any(_is_in(place, folder) for place in places)


def _imports_relatively(name: str, folder: Path) -> str | None:
    """Return a file of `folder` with ``from .name import …`` or ``from . import name``; none of them is run."""
    relative = re.compile(
        rf"^[ \t]*from[ \t]+\.(?:{re.escape(name)}\b|[ \t]+import\b[^\n]*\b{re.escape(name)}\b)".encode(), re.MULTILINE
    )
    with suppress(OSError):
        for file in sorted(folder.glob("*.py"))[:_NEIGHBOURS]:
            with suppress(OSError):
                if relative.search(file.read_bytes()):
                    return file.name
    return None


def _hides_a_library(error: ImportError, folder: Path, shown: str) -> str | None:
    """Return a hint if the cause of `error` is a user's file with the name of a library."""
    package = (error.name or "").partition(".")[0]
    file = Path(error.path) if error.path else folder / f"{package}.py"
    if not package or not _is_in(str(file), folder) or not file.is_file():
        return None
    if file == folder / shown:
        return "it imports itself: give the file a name that none of its imports has"
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != file.parent]
    if importlib.machinery.PathFinder.find_spec(package, elsewhere) is None:
        return None
    return f"{file.name} hides the library of that name: give the file another name"


def _nearly_installed(package: str) -> str | None:
    # An editable install of wsvoice is not listed.
    installed = {"wsvoice", *(name for name in importlib.metadata.packages_distributions() if name[0] != "_")}
    close = difflib.get_close_matches(package, installed, n=1, cutoff=0.85)
    return f"did you mean `{close[0]}`?" if close and close[0] != package else None


def _missing_module(error: BaseException) -> ModuleNotFoundError | None:
    """Return the error about a missing module behind `error`; pipecat wraps it in an error of its own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ModuleNotFoundError) and seen.name:
            return seen
        seen = seen.__cause__
    return None


def _is_target_missing(error: ImportError, target: str) -> bool:
    """Whether `target` itself, and not something that it imports, could not be found."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return False
    return (target == error.name or target.startswith(f"{error.name}.")) and not _frames(error)


def _importer(missing: ModuleNotFoundError, error: ImportError, folder: Path, shown: str) -> tuple[str, bool]:
    """Return the user's file that imports the missing module, and whether it does so directly."""
    for source in (missing, error):
        frames = _frames(source)
        own = [frame for frame in frames if _is_in(frame.filename, folder)]
        if own:
            return Path(own[-1].filename).name, own[-1] is frames[-1]
    return shown, False


def _is_in(filename: str, folder: Path) -> bool:
    path = Path(filename)
    return path.is_relative_to(folder) and not {"site-packages", "dist-packages"} & set(path.parts)


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _version_of(package: str) -> str:
    try:
        return f" {importlib.metadata.version(_DISTRIBUTIONS.get(package, package))}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _pipecat_extra(missing: ModuleNotFoundError) -> tuple[str, str] | None:
    """Return the pipecat module that needs the missing one, and the extra of pipecat-ai that installs it."""
    try:
        extras = set(importlib.metadata.metadata("pipecat-ai").get_all("Provides-Extra") or ())
    except importlib.metadata.PackageNotFoundError:
        return None
    for frame in reversed(_frames(missing)):
        parts = Path(frame.filename).with_suffix("").parts
        if "pipecat" not in parts:
            continue
        module = parts[len(parts) - 1 - parts[::-1].index("pipecat") :]
        for part in reversed(module):
            if (extra := part.replace("_", "-")) in extras:
                return ".".join(module).removesuffix(".__init__"), extra
    return None


# -- Tracebacks without wsvoice's own frames --

_NOT_THE_BOT = re.compile(r"<frozen importlib|[/\\]importlib[/\\]__init__\.py$")


def _is_bot_code(filename: str) -> bool:
    return filename != __file__ and not _NOT_THE_BOT.search(filename)


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the frames of the bot and of what it imports."""
    return [frame for frame in traceback.extract_tb(error.__traceback__) if _is_bot_code(frame.filename)]


def _details(error: BaseException) -> str:
    """Render `error` as Python would, without the frames of wsvoice and importlib."""
    rendered: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
    pending, done = [rendered], set()
    while pending:
        part = pending.pop()
        if part is None or id(part) in done:
            continue
        done.add(id(part))
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if _is_bot_code(f.filename)])
        pending += [part.__cause__, part.__context__]
    assert rendered is not None
    return "".join(rendered.format()).rstrip()


def _location(error: BaseException, folder: Path) -> str:
    """Return the line of the user's own code at which `error` was raised, in parentheses."""
    own = [frame for frame in _frames(error) if _is_in(frame.filename, folder)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


# -- Checking it --


def _find_function(module: ModuleType, name: str, *, shown: str, target: str) -> BotFunction:
    shape = f"async def {name}(runner_args): ..."
    hint = f"write `{shape}`"
    try:
        found = getattr(module, name)
    except AttributeError:
        others = nearest(name, _coroutine_functions(module))
        hint = f"add `{shape}`" + (f", or run `wsvoice run {target}:{others[0]}`" if others else "")
        raise BotNotFoundError(f"{shown} has no coroutine function named `{name}`", hint=hint) from None
    if inspect.isclass(found):
        what = "is a class"
    elif inspect.ismodule(found):
        what = "is a module"
    elif not callable(found):
        what = f"is a value of type {type(found).__name__}"
    elif _is_generator(found):
        what, hint = "yields, which makes it a generator", f"take the `yield` out of it: {shape}"
    else:
        what = "" if _is_coroutine_function(found) else "is a plain function"
    if what:
        raise BotNotFoundError(f"`{name}` in {shown} {what}, not a coroutine function", hint=hint)
    if not _takes_one(found):
        signature = inspect.signature(found, follow_wrapped=False)
        parameters = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
        bare = signature.replace(parameters=parameters, return_annotation=signature.empty)
        problem = f"`{name}` in {shown} cannot be called with one argument: it is `{name}{bare}`"
        raise BotNotFoundError(problem, hint=hint)
    bot: BotFunction = found
    return bot


def _is_generator(found: Any) -> bool:
    function = inspect.unwrap(found)
    called = function if inspect.isroutine(function) else getattr(function, "func", None) or type(function).__call__
    return inspect.isasyncgenfunction(called)


def _is_coroutine_function(found: Any) -> bool:
    """Whether calling `found` returns a coroutine; it may be a function, a partial, a wrapper or an object."""
    function = inspect.unwrap(found)
    called = function if inspect.isroutine(function) else type(function).__call__
    return any(map(inspect.iscoroutinefunction, (found, function, called)))


def _coroutine_functions(module: ModuleType) -> list[str]:
    """Return the names of the module's own coroutine functions that could be a bot."""
    return [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and _is_coroutine_function(value)
        and _takes_one(value)
    ]


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        # Compiled code need not have a signature; the call will show.
        return True
    try:
        signature.bind(object())
    except TypeError:
        return False
    return True
