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
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
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

_GUARD_HINT = 'put it under `if __name__ == "__main__":`, which wsvoice does not run'
_SHAPE = "async def {name}(runner_args): ..."

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


@dataclass(frozen=True)
class BotPlace:
    """
    Where a bot should be.

    Attributes:
        target: As the user named it, without the function.
        function_name: The name of its coroutine function.
        path: Its file, or ``None`` if `target` is a module's name.
        base: The folder that `target` is relative to.
    """

    target: str
    function_name: str
    path: Path | None
    base: Path


def find_bot(spec: str, *, base: Path | None = None) -> BotPlace:
    """
    Find the bot that `spec` names, without importing anything; the arguments are those of :func:`load_bot`.

    Raises:
        BotNotFoundError: If there is no such file.
    """
    base = Path.cwd() if base is None else base
    target, function_name = _split(spec, base)
    return BotPlace(target, function_name, _find_file(target, base), base)


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
    place = find_bot(spec, base=base)
    target, function_name, path, base = place.target, place.function_name, place.path, place.base
    shown = target if path is None else path.name
    with _import_folder(base.resolve() if path is None else path.parent):
        module = _import_module(target, base) if path is None else _import_file(path)
        function = _find_function(module, function_name, shown=shown, target=target)
    name = shown if function_name == DEFAULT_FUNCTION else f"{shown}:{function_name}"
    file = path if path is not None else Path(module.__file__ or target)
    return LoadedBot(function, name, file, module)


# -- Finding it --


def _split(spec: str, base: Path) -> tuple[str, str]:
    """Split `spec` at the colon before the function's name, which is not the colon of a Windows drive."""
    if not spec.strip():
        raise BotNotFoundError("no bot is named", hint="for example `wsvoice run bot.py`")
    head, colon, tail = spec.rpartition(":")
    is_drive = len(head) == 1 and head.isalpha()
    if not colon or "/" in tail or "\\" in tail or (is_drive and not tail.isidentifier()) or (base / spec).exists():
        return spec, DEFAULT_FUNCTION
    if not head:
        return DEFAULT_FILE, _function_name(tail, spec)
    return head, _function_name(tail, spec)


def _function_name(name: str, spec: str) -> str:
    if not name.isidentifier():
        raise BotNotFoundError(
            f"{spec!r} names no function after the colon", hint="for example `wsvoice run bot.py:other_name`"
        )
    return name


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
            raise BotNotFoundError(
                f"{target} is not a Python file",
                hint=_bots_hint(path.with_suffix(".py"), path.parent),
            )
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
    if existing is not None and not hasattr(existing, "__wsvoice_bot__") and not _is_from(existing, path):
        raise BotNotFoundError(
            f"{path.name} has the name of a module that is in use: `{name}`",
            hint=f"give the file another name, for example `{name}_bot.py`",
        )
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BotNotFoundError(f"{path.name} cannot be imported")
    loader = spec.loader
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__wsvoice_bot__"] = True
    with _as_script(path):
        # Before it is executed: dataclasses and pickle look their module up by name.
        sys.modules[name] = module
        try:
            with _bot_errors(path.name, path.parent, run_as=None):
                loader.exec_module(module)
        except BaseException:
            if existing is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = existing
            raise
    return module


def _import_module(target: str, base: Path) -> ModuleType:
    if not all(part.isidentifier() for part in target.split(".")):
        raise BotNotFoundError(
            f"there is no bot {target!r}: it is neither a file nor the name of a module",
            hint=_bots_hint(base / f"{target}.py", base),
        )
    with _as_script(Path(*target.split(".")).with_suffix(".py")):
        importlib.invalidate_caches()
        with _bot_errors(target, base.resolve(), run_as=target):
            return importlib.import_module(target)


def _is_from(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path


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

    argv, run, serve, parse = sys.argv, asyncio.run, uvicorn.run, argparse.ArgumentParser.parse_args
    ask, ask_secretly = builtins.input, getpass.getpass

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

    def no_server(*_: Any, **__: Any) -> None:
        raise _RunsAtImport("uvicorn.run()")

    def parse_args(parser: argparse.ArgumentParser, *args: Any, **options: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") == "pipecat.runner.run":
            raise _RunsAtImport("pipecat's main()")
        return parse(parser, *args, **options)

    def no_input(*_: Any, **__: Any) -> Any:
        raise _AsksAtImport("input()")

    def no_getpass(*_: Any, **__: Any) -> Any:
        raise _AsksAtImport("getpass()")

    sys.argv = [str(path)]
    builtins.input, getpass.getpass = no_input, no_getpass
    replaced: Any = argparse.ArgumentParser
    asyncio.run, uvicorn.run, replaced.parse_args = limited_run, no_server, parse_args
    try:
        with protect_signals():
            yield
    finally:
        sys.argv = argv
        builtins.input, getpass.getpass = ask, ask_secretly
        asyncio.run, uvicorn.run, replaced.parse_args = run, serve, parse


@contextmanager
def _bot_errors(shown: str, folder: Path, *, run_as: str | None) -> Iterator[None]:
    """Turn the error of the bot's import into one that says what is wrong with the bot."""
    try:
        yield
    except WsvoiceError:
        raise
    except _RunsAtImport as error:
        raise BotImportError(
            f"{shown} starts to run while it is imported: it calls {error}{_location(error, folder)}",
            hint=_GUARD_HINT,
        ) from None
    except _AsksAtImport as error:
        raise BotImportError(
            f"{shown} waits for somebody to type while it is imported: it calls {error}{_location(error, folder)}",
            hint=f"take it from the environment or .env (`os.environ[...]`), or {_GUARD_HINT}",
        ) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise
    except BaseException as error:  # noqa: BLE001 - a bot may raise anything
        raise _diagnosis(error, shown, folder, run_as) from None


def _diagnosis(error: BaseException, shown: str, folder: Path, run_as: str | None) -> BotNotFoundError | BotImportError:
    """Return the error that says what is wrong with a bot whose import failed with `error`."""
    if isinstance(error, SystemExit):
        reads_arguments = _passed_through(error, "argparse.py")
        complains = isinstance(error.code, str) and bool(error.code.strip())
        what = "it reads its command line" if reads_arguments else _exit_reason(error)
        return BotImportError(
            f"{shown} stops while it is imported: {what}{_location(error, folder)}",
            hint=f"fix that; or {_GUARD_HINT}" if complains and not reads_arguments else _GUARD_HINT,
        )
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
            parent = "" if error.name == run_as else f": there is no {error.name!r}"
            return BotNotFoundError(
                f"there is no module {run_as!r}{parent or ', and no file of that name'}",
                hint=_bots_hint(folder / f"{run_as}.py", folder),
            )
        return _import_error(error, shown, folder)
    if not _frames(error):
        return BotNotFoundError(f"{shown} cannot be read: {error}")
    return BotImportError(_summary(error, shown), details=_details(error))


def _summary(error: BaseException, shown: str) -> str:
    text = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{shown} failed while it was imported: {f'{kind}: {text[0]}' if text else kind}"


def _import_error(error: ImportError, shown: str, folder: Path) -> BotImportError:
    """Return the error that says which module is missing, and how to install it."""
    missing = _missing_module(error)
    if missing is None or missing.name is None:
        hint = None
        if hidden := _hides_a_library(error, folder, shown):
            hint = hidden
        elif "relative import" in str(error):
            hint = "run it as a module of its package: `wsvoice run package.module`"
        return BotImportError(_summary(error, shown), details=_details(error), hint=hint)
    package = missing.name.partition(".")[0]
    if package != missing.name and (hint := _hides_a_library(missing, folder, shown)):
        return BotImportError(_summary(missing, shown), details=_details(missing), hint=hint)
    importer, is_own = _importer(missing, error, folder, shown)
    details = "" if is_own else _details(missing)
    if package != missing.name and _is_installed(package):
        version = _version_of(package)
        return BotImportError(
            f"{importer} imports `{missing.name}`, which {package}{version} does not have",
            details=details,
            hint=f"check the name, and which version of {package} the bot was written for",
        )
    distribution = _DISTRIBUTIONS.get(package, package)
    extra = _pipecat_extra(missing)
    if extra is not None:
        feature, extra_name = extra
        return BotImportError(
            f"{importer} imports `{feature}`, which needs `{package}`, and that is not installed",
            hint=f'pip install "pipecat-ai[{extra_name}]"',
        )
    return BotImportError(
        f"{importer} imports `{missing.name}`, which is not installed",
        details=details,
        # Do not suggest to install a name that is probably a misspelt one of an installed package.
        hint=_nearly_installed(package) or f"pip install {distribution}",
    )


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


def _passed_through(error: BaseException, file: str) -> bool:
    """Whether `error` was raised in, or below, code of `file`."""
    return any(Path(frame.filename).name == file for frame in traceback.extract_tb(error.__traceback__))


def _exit_reason(error: SystemExit) -> str:
    if isinstance(error.code, str) and error.code.strip():
        return " ".join(error.code.split())[:500]
    return f"it exits with code {error.code if isinstance(error.code, int) else 0}"


# -- Checking it --


def _find_function(module: ModuleType, name: str, *, shown: str, target: str) -> BotFunction:
    shape = f"write `{_SHAPE.format(name=name)}`"
    try:
        found = getattr(module, name)
    except AttributeError:
        others = nearest(name, _coroutine_functions(module))
        add = f"add `{_SHAPE.format(name=name)}`"
        hint = f"{add}, or run `wsvoice run {target}:{others[0]}`" if others else add
        raise BotNotFoundError(f"{shown} has no coroutine function named `{name}`", hint=hint) from None
    function = inspect.unwrap(found) if callable(found) else found
    if inspect.isclass(found):
        raise BotNotFoundError(f"`{name}` in {shown} is a class, not a coroutine function", hint=shape)
    if not callable(found):
        kind = "a module" if inspect.ismodule(found) else f"a value of type {type(found).__name__}"
        raise BotNotFoundError(f"`{name}` in {shown} is {kind}, not a coroutine function", hint=shape)
    called = function if inspect.isroutine(function) else getattr(function, "func", None) or type(function).__call__
    if inspect.isasyncgenfunction(called):
        raise BotNotFoundError(
            f"`{name}` in {shown} yields, which makes it a generator, not a coroutine function",
            hint=f"take the `yield` out of it: {_SHAPE.format(name=name)}",
        )
    if not _is_coroutine_function(found):
        raise BotNotFoundError(f"`{name}` in {shown} is a plain function, not a coroutine function", hint=shape)
    _check_arity(found, name, shown)
    bot: BotFunction = found
    return bot


def _is_coroutine_function(found: Any) -> bool:
    """Whether calling `found` returns a coroutine; it may be a function, a partial, a wrapper or an object."""
    function = inspect.unwrap(found)
    return (
        inspect.iscoroutinefunction(found)
        or inspect.iscoroutinefunction(function)
        or (not inspect.isroutine(function) and inspect.iscoroutinefunction(type(function).__call__))
    )


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


def _check_arity(function: Callable[..., Any], name: str, shown: str) -> None:
    if not _takes_one(function):
        signature = inspect.signature(function, follow_wrapped=False)
        bare = signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )
        raise BotNotFoundError(
            f"`{name}` in {shown} cannot be called with one argument: it is `{name}{bare}`",
            hint=f"write `{_SHAPE.format(name=name)}`",
        )
