"""
Projects made from templates: which there are, what a project will consist of, and writing it all or not at all.

A template is a folder ``templates/NAME/`` that is a working project as it lies: its files are linted, its tests run
in place. Copying is plain. Beside the files stands ``template.toml``, which is not copied::

    description = "repeats the caller"    # one line
    order = 10                            # the place in lists
    extra = "local"                       # pipecat's extras that it always needs, one or a list; may be missing
    env = ["NAME"]                        # variables that it always needs; may be missing

    [choices.llm]                         # none or more; becomes the option --llm
    help = "The language model."
    default = "openai"
    [choices.llm.options.openai]
    extra = "openai"                      # as above
    env = ["OPENAI_API_KEY"]
    service = "OpenAILLMService"          # any other text, for replacements

    [replace]
    "wsvoice-echo-template" = "{name}"
    'LLM = "openai"' = 'LLM = "{llm}"'
    "OpenAILLMService" = "{llm.service}"

``[replace]`` is all that changes a file: each literal text on the left becomes what is on the right, wherever it
stands in a text file, the longest first and none twice. Names of files, and files that are no text, stay as they are.
On the right may stand:

==================  ==================================================================  =========================
field               what it becomes                                                     with the defaults
==================  ==================================================================  =========================
``{name}``          the project's name, which is the folder's                           ``wsvoice-echo-template``
``{package}``       the same as a Python name                                           ``wsvoice_echo_template``
``{provider}``      the first provider                                                  ``twilio``
``{title}``         as the company writes itself                                        ``Twilio``
``{providers}``     all of them, for a list in Python or TOML                           ``"twilio"``
``{titles}``        all of them, in words                                               ``Twilio``
``{wsvoice}``       the requirement that wsvoice was installed by              ``wsvoice``
``{run}``           the command that serves the bot, without a tunnel or a domain       ``wsvoice run bot.py -t twilio``
``{extras}``        pipecat's extras of the template and its options, with commas       ``openai``
``{env}``           a line ``NAME=`` for each variable, under a comment each            ``# Twilio`` ...
``{llm}``           the option chosen for ``llm``                                       ``openai``
``{llm.service}``   a text of the chosen option's                                       ``OpenAILLMService``
==================  ==================================================================  =========================

A template's files hold what they would become with the defaults: scaffolding with the first provider, every choice's
default, and ``wsvoice-NAME-template`` as the project's name gives back the template's own files. So the values in them
are real ones, and a test can hold every template to it.
"""

from __future__ import annotations

import errno
import importlib.metadata
import json
import keyword
import os
import re
import secrets
import shutil
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from wsvoice.config import did_you_mean
from wsvoice.errors import ScaffoldError, UsageError
from wsvoice.providers import PROVIDERS, load_provider

MANIFEST = "template.toml"
#: What a project is called unless the user says otherwise.
DEFAULT_NAME = "my-bot"

# What running, testing and installing leave behind in a template that is used in place.
_LEFTOVERS = frozenset({"__pycache__", ".pytest_cache", ".ruff_cache", ".mypy_cache", ".venv", ".env", "build", "dist"})
_LEFTOVER_SUFFIXES = (".pyc", ".egg-info")
# What pip would take for one of the project's own requirements.
_TAKEN = frozenset({"wsvoice", "pipecat", "pipecat-ai", "pytest", "python"})
# https://packaging.python.org/en/latest/specifications/name-normalization/#name-format
_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FIELD = re.compile(r"\{([a-z_]+(?:\.[a-z_]+)?)\}")


@dataclass(frozen=True, slots=True)
class Option:
    """
    One of the values of a choice.

    Attributes:
        extras: The extras of pipecat-ai that it needs.
        env: The variables that it needs, most of them keys.
        values: Texts for replacements.
    """

    extras: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that a template leaves to the user: its options by name."""

    help: str
    default: str
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class Template:
    """
    A project to be copied.

    Attributes:
        name: As in ``wsvoice init --template NAME``; also its folder's.
        folder: Where its files are.
        description: What the bot does, in one line.
        order: Its place in lists.
        always: What it needs whatever is chosen.
        choices: What the user may choose, by name.
        replace: Literal texts, and what they become.
    """

    name: str
    folder: Path
    description: str
    order: int
    always: Option
    choices: Mapping[str, Choice]
    replace: Mapping[str, str]

    @property
    def placeholder(self) -> str:
        """The project's name in the template's own files."""
        return f"wsvoice-{self.name}-template"

    def files(self) -> Iterator[tuple[PurePosixPath, Path]]:
        """Yield the files to be copied: where to, and where they are."""
        for folder, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not _is_leftover(name))
            for name in sorted(names):
                path = Path(folder, name)
                relative = PurePosixPath(path.relative_to(self.folder).as_posix())
                if not _is_leftover(name) and relative != PurePosixPath(MANIFEST):
                    yield relative, path


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the project: its path in the project's folder, and what is to be in it."""

    path: PurePosixPath
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A project, before anything of it is written.

    Attributes:
        folder: Where it will be, as the user wrote it.
        name: The project's name.
        template: What it is made from.
        providers: The names of its telephone companies.
        chosen: The chosen option of each of the template's choices.
        env: The variables that its bot needs besides the providers'.
        files: Its files, in the order of a listing.
    """

    folder: Path
    name: str
    template: Template
    providers: tuple[str, ...]
    chosen: Mapping[str, str]
    env: tuple[str, ...]
    files: tuple[PlannedFile, ...]


def templates_folder() -> Path:
    """Return where the templates are: in the installed package, or at the root of the repository."""
    package = Path(__file__).parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parents[1] / "templates"


def load_templates(folder: Path | None = None) -> dict[str, Template]:
    """Return all templates by name, in their order."""
    manifests = sorted((folder or templates_folder()).glob(f"*/{MANIFEST}"))
    found = [_read_manifest(path) for path in manifests]
    return {each.name: each for each in sorted(found, key=lambda each: (each.order, each.name))}


def plan(
    folder: str | Path,
    template: str | None = None,
    providers: Sequence[str] = (),
    chosen: Mapping[str, str] | None = None,
    *,
    templates: Mapping[str, Template] | None = None,
    requirement: str = "wsvoice",
) -> Plan:
    """
    Work out a project; nothing is written.

    Args:
        folder: Where it is to be.
        template: The template's name; the first one unless given.
        providers: The providers' names; the first one unless given.
        chosen: An option's name for some of the template's choices; the others have their defaults.
        templates: Those there are, by name; wsvoice's own unless given.
        requirement: What the project says to have wsvoice from, as :func:`own_requirement` does.

    Raises:
        UsageError: If there is no such template, provider, choice or option, or the folder's name is none for a
            project.
    """
    templates = load_templates() if templates is None else templates
    if not templates:
        raise ScaffoldError("this installation of wsvoice has no templates", hint="install it again")
    used = templates[pick("template", template, templates)] if template is not None else next(iter(templates.values()))
    names = tuple(dict.fromkeys(pick("provider", name, PROVIDERS) for name in providers)) or (next(iter(PROVIDERS)),)
    options = _choose(used, chosen or {}, templates)
    folder = project_folder(folder)
    name = project_name(folder)
    needs = [used.always, *(used.choices[choice].options[option] for choice, option in options.items())]
    values = _values(name, names, used, options, needs) | {"wsvoice": requirement}
    files = tuple(
        PlannedFile(path, _render(source.read_bytes(), used.replace, values)) for path, source in used.files()
    )
    env = tuple(dict.fromkeys(variable for need in needs for variable in need.env))
    return Plan(folder, name, used, names, options, env, files)


def own_requirement(distribution: importlib.metadata.Distribution | None = None) -> str:
    """
    Return the requirement that installs the wsvoice which is running: ``wsvoice @ file:///…`` or ``wsvoice>=0.1``.

    Args:
        distribution: What was installed; wsvoice's own unless given.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    source = Path(__file__).parents[2]
    if distribution is None:
        try:
            distribution = importlib.metadata.distribution("wsvoice")
        except importlib.metadata.PackageNotFoundError:
            # It runs from its source, which no installer has been told of.
            return f"wsvoice @ {source.as_uri()}"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    url = str(origin.get("url", ""))
    is_gone = url.startswith("file:") and not Path(url2pathname(urlsplit(url).path)).exists()
    if not url or is_gone:
        # From an index; or from a wheel that is gone, in whose place only what is installed is left.
        return f"wsvoice>={distribution.version}"
    if version := origin.get("vcs_info"):
        url = f"{version['vcs']}+{url}@{version['commit_id']}"
    if folder := origin.get("subdirectory"):
        url += f"#subdirectory={folder}"
    return f"wsvoice @ {url}"


def own_editable_folder(distribution: importlib.metadata.Distribution | None = None) -> str | None:
    """Return the folder of the editable wsvoice that is running, quoted for a shell; ``None`` if it is not editable."""
    import shlex

    with suppress(importlib.metadata.PackageNotFoundError):
        distribution = distribution or importlib.metadata.distribution("wsvoice")
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = urlsplit(str(origin.get("url", "")))
        if url.scheme == "file" and origin.get("dir_info", {}).get("editable"):
            return shlex.quote(url2pathname(url.path))
    return None


def pick(what: str, name: str, known: Mapping[str, object]) -> str:
    """
    Return `name` if it is one of those `known`.

    Raises:
        UsageError: If it is not; the hint names the nearest.
    """
    if name in known:
        return name
    listed = f"known are: {', '.join(known)}"
    meant = did_you_mean(name, known)
    raise UsageError(f"no {what} is called {name!r}", hint=f"{meant} {listed}" if meant else listed)


def project_folder(given: str | Path) -> Path:
    """
    Return the folder that a project may be in.

    Raises:
        UsageError: If its name cannot be a project's, or the folder cannot be one at all.
    """
    if not str(given).strip():
        raise UsageError("the folder's name is empty", hint=f"give it one: `wsvoice init {DEFAULT_NAME}`")
    folder = Path(given)
    project_name(folder)
    with _os_errors(folder):
        _check_folder(folder)
    return folder


def project_name(folder: Path) -> str:
    """
    Return the name of the project in `folder`, which is the folder's.

    Raises:
        UsageError: If it can name no Python project; the hint has one that can.
    """
    name = Path(os.path.abspath(folder)).name  # noqa: PTH100 - resolve() would follow a link to a folder of another name
    package = _package_name(name)
    if not _NAME.fullmatch(name) or not package.isidentifier() or keyword.iskeyword(package):
        problem = f"{name!r} is no name for a Python package"
    elif name.lower().replace("_", "-") in _TAKEN:
        problem = f"{name!r} is the name of a package that every bot needs"
    else:
        return name
    # The folder itself, where it is the one that the user stands in, cannot be spelt otherwise.
    better = folder.parent / _better_name(name) if folder.name == name else Path(_better_name(name))
    raise UsageError(problem, hint=f"use letters, digits and hyphens: `wsvoice init {better}`")


def check(made: Plan, *, overwrite: bool = False) -> None:
    """
    Make sure that a project can be written where it is to be; nothing is written.

    Raises:
        UsageError: If a file is there already, unless told to `overwrite`, or something else is in the way.
    """
    with _os_errors(made.folder):
        _check_folder(made.folder)
        taken = [str(made.folder / each.path) for each in made.files if _is_there(made.folder, each.path)]
    if taken and not overwrite:
        raise UsageError(
            f"{_listed(taken)} already {'exists' if len(taken) == 1 else 'exist'}",
            hint="nothing was written; choose another folder, or overwrite with --force",
        )


def write(made: Plan, *, overwrite: bool = False) -> None:
    """
    Write a project, all of it or nothing.

    The files are first written to a folder of their own on the same disk, and then moved into place. What goes wrong
    on the way, an interruption included, takes back what was created, and puts back what was overwritten.

    Raises:
        UsageError: As :func:`check`, or the folder may not be written to.
        ScaffoldError: If the disk is full, or fails otherwise.
    """
    check(made, overwrite=overwrite)
    with _os_errors(made.folder):
        if made.folder.is_dir():
            _add(made)
        else:
            _create(made)


def next_commands(made: Plan) -> list[str]:
    """Return the commands that install the project and try it, in a POSIX shell's words."""
    import shlex

    here = os.path.abspath(made.folder) == os.path.abspath(".")  # noqa: PTH100 - as above
    commands = [] if here else [f"cd {shlex.quote(str(made.folder))}"]
    commands.append("pip install -e '.[dev]'")
    # Its tests need no keys; a call does.
    commands.append("pytest" if made.env else "pytest && wsvoice dial bot.py")
    return commands


# -- Manifests --


def _read_manifest(path: Path) -> Template:
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    choices = {
        name: Choice(
            help=choice["help"],
            default=choice["default"],
            options={option: _read_option(table) for option, table in choice["options"].items()},
        )
        for name, choice in content.get("choices", {}).items()
    }
    return Template(
        name=path.parent.name,
        folder=path.parent,
        description=content["description"],
        order=content.get("order", 100),
        always=_read_option({name: content[name] for name in ("extra", "env") if name in content}),
        choices=choices,
        replace=content.get("replace", {}),
    )


def _read_option(table: Mapping[str, Any]) -> Option:
    extra = table.get("extra", ())
    return Option(
        extras=(extra,) if isinstance(extra, str) else tuple(extra),
        env=tuple(table.get("env", ())),
        values={name: value for name, value in table.items() if name not in ("extra", "env")},
    )


def _is_leftover(name: str) -> bool:
    return name in _LEFTOVERS or name.endswith(_LEFTOVER_SUFFIXES)


# -- What is to be written --


def _choose(template: Template, chosen: Mapping[str, str], templates: Mapping[str, Template]) -> dict[str, str]:
    for choice in chosen:
        if choice not in template.choices:
            others = [each.name for each in templates.values() if choice in each.choices]
            raise UsageError(
                f"the template {template.name} has no choice --{choice}",
                hint=f"leave it out, or take --template {' or '.join(others)}" if others else "leave it out",
            )
    return {
        name: pick(name, chosen.get(name, choice.default), choice.options) for name, choice in template.choices.items()
    }


def _values(
    name: str, providers: Sequence[str], template: Template, options: Mapping[str, str], needs: Sequence[Option]
) -> dict[str, str]:
    """Return what the fields of a template's replacements become."""
    loaded = [load_provider(each) for each in providers]
    titles = [each.title for each in loaded]
    env: list[str] = []
    for provider in loaded:
        # The secret that webhooks are verified with; a company that signs none is known by a user and a password.
        secrets_ = provider.credential_names[: 1 if provider.signs else 2]
        env += [f"# {provider.title}", *(f"{variable}=" for variable in secrets_)]
    labels = [template.name, *(f"{choice}: {option}" for choice, option in options.items())]
    listed: set[str] = set()
    for label, need in zip(labels, needs, strict=True):
        new = [variable for variable in need.env if variable not in listed]
        listed.update(new)
        env += [f"# {label}", *(f"{variable}=" for variable in new)] if new else []
    values = {
        "name": name,
        "package": _package_name(name),
        "provider": providers[0],
        "title": titles[0],
        "providers": ", ".join(f'"{each}"' for each in providers),
        "titles": _listed(titles),
        "run": f"wsvoice run bot.py -t {providers[0]}" if len(providers) == 1 else "wsvoice run bot.py",
        "extras": ",".join(dict.fromkeys(extra for need in needs for extra in need.extras)),
        "env": "\n".join(env),
    }
    for choice, option in options.items():
        values[choice] = option
        for key, value in template.choices[choice].options[option].values.items():
            values[f"{choice}.{key}"] = value
    return values


def _render(content: bytes, replace: Mapping[str, str], values: Mapping[str, str]) -> bytes:
    """Return a file's content with its literal texts replaced; as it is if it is no text."""
    if not replace or b"\0" in content:
        return content
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return content
    literals = sorted(replace, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(literal) for literal in literals))
    return pattern.sub(
        lambda found: _FIELD.sub(lambda wanted: values[wanted[1]], replace[found[0]]),
        text,
    ).encode()


def _package_name(name: str) -> str:
    return re.sub(r"[-.]+", "_", name).lower()


def _better_name(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    better = re.sub(r"[^A-Za-z0-9._-]+", "-", plain)
    better = re.sub(r"^[^A-Za-z]+|[^A-Za-z0-9]+$", "", better) or DEFAULT_NAME
    if better.lower().replace("_", "-") in _TAKEN:
        better = f"my-{better}"
    return f"{better}-bot" if keyword.iskeyword(_package_name(better)) else better


def _listed(words: Sequence[str]) -> str:
    """Return words as a sentence has them."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


# -- Writing --


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.is_symlink():
        raise UsageError(f"{folder} is a link to what is not there", hint="choose another folder")
    # The nearest of its parents that is there has to be a folder; a name in a file is nowhere.
    existing = next((each for each in (folder, *folder.parents) if os.path.lexists(each)), None)
    if existing is not None and not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder", hint="choose another folder")


def _is_there(folder: Path, path: PurePosixPath) -> bool:
    """Whether a file is there already; what is no folder on the way to it cannot be overwritten at all."""
    *parents, target = [folder / each for each in reversed([path, *path.parents[:-1]])]
    for parent in parents:
        if parent.is_symlink() or (parent.exists() and not parent.is_dir()):
            raise UsageError(
                f"{parent} is there already, and is no folder", hint="move it away, or choose another folder"
            )
    if target.is_dir() and not target.is_symlink():
        raise UsageError(f"{target} is there already, and is a folder", hint="move it away, or choose another folder")
    return os.path.lexists(target)


def _create(made: Plan) -> None:
    """Write a project into a folder that is not there yet, and appears at once."""
    folder = Path(os.path.abspath(made.folder))  # noqa: PTH100 - as above
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    missing = [parent for parent in folder.parents if not parent.exists()]
    created: list[Path] = []
    try:
        for parent in reversed(missing):
            created.append(parent)
            parent.mkdir()
        _write_files(made, draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in reversed(created):
            with suppress(OSError):
                parent.rmdir()
        raise


def _add(made: Plan) -> None:
    """Write a project into a folder that is there, perhaps the one that the user's shell is in."""
    draft = made.folder / f".wsvoice-{secrets.token_hex(4)}"
    kept = draft / "kept"
    created: list[Path] = []
    moved: list[tuple[Path, Path]] = []
    try:
        _write_files(made, draft / "new")
        kept.mkdir()
        for number, planned in enumerate(made.files):
            target = made.folder / planned.path
            for parent in reversed(planned.path.parents[:-1]):
                if not (made.folder / parent).is_dir():
                    created.append(made.folder / parent)
                    (made.folder / parent).mkdir()
            if os.path.lexists(target):
                backup = kept / str(number)
                moved.append((backup, target))
                target.rename(backup)
            else:
                created.append(target)
            (draft / "new" / planned.path).rename(target)
    except BaseException:
        for backup, target in moved:
            if os.path.lexists(backup):
                with suppress(OSError):
                    backup.replace(target)
        for path in reversed(created):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_files(made: Plan, folder: Path) -> None:
    folder.mkdir(parents=True)
    for planned in made.files:
        path = folder / planned.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(planned.content)


@contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """Tell in the user's words why the system refused."""
    try:
        yield
    except OSError as error:
        # is_dir() of a path would end in the same error.
        place = next((each for each in (folder, *folder.parents) if os.path.isdir(each)), folder)  # noqa: PTH112
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(f"{place} may not be written to", hint="choose another folder") from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ScaffoldError(
                "the disk is full; nothing was written", hint="make room, or choose another disk"
            ) from None
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError("the folder's name is too long", hint="choose a shorter one") from None
        raise ScaffoldError(f"{folder} cannot be written: {error.strerror or error}") from None
