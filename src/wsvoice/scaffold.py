"""
Projects made from templates: all files, or none.

A template is a folder ``templates/NAME/`` with a working project for the defaults: the first provider, the first
option of each choice, and the name ``wsvoice-NAME-template``. Each text of :func:`_texts` for the defaults is replaced
by the one for what the user chose. ``template.toml`` is not copied::

    description = "a bot to talk with"          # one line
    order = 10                                  # its place in lists
    [not_for]                                   # optional: providers whose calls its bot cannot use, and why
    bandwidth = "its streams carry no keys"
    [choices.llm]                               # optional; the option --llm, and `LLM = "openai"` in a file
    help = "The language model."
    [choices.llm.options]                       # an extra of pipecat's, and the variables that it needs
    openai = { extra = "openai", env = ["OPENAI_API_KEY"] }
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

from wsvoice.config import did_you_mean
from wsvoice.errors import ScaffoldError, UsageError
from wsvoice.providers import PROVIDERS, load_company

MANIFEST = "template.toml"
#: What a project is called unless the user says otherwise.
DEFAULT_NAME = "my-bot"
# What installing, running and testing leave behind in a template.
_LEFTOVERS = re.compile(r"__pycache__|\..*_cache|\.venv|\.env|build|dist|.*\.(pyc|egg-info)")
# Names that pip would confuse with the project's requirements.
_TAKEN = frozenset({"wsvoice", "pipecat", "pipecat-ai", "pytest", "python"})


class Option(NamedTuple):
    """An option of a choice: the extra of pipecat-ai and the environment variables that it needs."""

    extra: str
    env: Sequence[str]


class Choice(NamedTuple):
    """Something that the user may choose: its options by name, the default first."""

    help: str
    options: Mapping[str, Option]


@dataclass(frozen=True, slots=True)
class Template:
    """
    A project to be copied.

    Attributes:
        description: What its bot is, in one line.
        choices: The user's choices, by name.
        not_for: The providers whose calls its bot cannot use, and why.
    """

    name: str
    folder: Path
    description: str
    choices: Mapping[str, Choice]
    not_for: Mapping[str, str] = field(default_factory=dict)

    @property
    def placeholder(self) -> str:
        """The project's name in the template's own files."""
        return f"wsvoice-{self.name}-template"

    @property
    def defaults(self) -> dict[str, str]:
        """The default option of each choice."""
        return {name: next(iter(choice.options)) for name, choice in self.choices.items()}

    def files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files to be copied: each path in the project, and the source."""
        for path in sorted(self.folder.rglob("*")):
            parts = path.relative_to(self.folder).parts
            if path.is_file() and parts != (MANIFEST,) and not any(map(_LEFTOVERS.fullmatch, parts)):
                yield "/".join(parts), path


@dataclass(frozen=True, slots=True)
class Plan:
    """
    A project that has not been written yet.

    Attributes:
        folder: Where it will be, as the user wrote it.
        chosen: The option of each choice.
        env: The environment variables that its bot needs besides the providers'.
        files: The content of each file by its path in the folder.
    """

    folder: Path
    template: Template
    providers: Sequence[str]
    chosen: Mapping[str, str]
    env: Sequence[str]
    files: Mapping[str, bytes]


def templates_folder() -> Path:
    """Return where the templates are: in the installed package, or at the root of the repository."""
    inside = Path(__file__).parent / "templates"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "templates"


def load_templates(folder: Path | None = None) -> dict[str, Template]:
    """Return all templates by name, in their order."""
    loaded: list[tuple[int, Template]] = []
    for path in sorted((folder or templates_folder()).glob(f"*/{MANIFEST}")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        choices = {
            name: Choice(choice["help"], {option: Option(**needs) for option, needs in choice["options"].items()})
            for name, choice in content.get("choices", {}).items()
        }
        not_for = content.get("not_for", {})
        template = Template(path.parent.name, path.parent, content["description"], choices, not_for)
        loaded.append((content["order"], template))
    return {template.name: template for _, template in sorted(loaded, key=itemgetter(0))}


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
    Plan a project, without writing anything; what is not given has its default.

    Args:
        chosen: An option's name for some of the template's choices.
        templates: All templates by name; wsvoice's own unless given.
        requirement: The requirement for wsvoice, as of :func:`own_requirement`.

    Raises:
        UsageError: If there is no such template, provider, choice or option, a template is not for a provider, or no
            project can have the folder's name.
    """
    templates = load_templates() if templates is None else templates
    if not templates:
        raise ScaffoldError("this installation of wsvoice has no templates", hint="install it again")
    used = templates[next(iter(templates)) if template is None else pick("template", template, templates)]
    first = next(iter(PROVIDERS))
    names = list(dict.fromkeys(pick("provider", name, PROVIDERS) for name in providers)) or [first]
    for name in names:
        if reason := used.not_for.get(name):
            hint = f"take another template than {used.name}, or another provider than {name}"
            raise UsageError(f"the template {used.name} is not for {load_company(name).title}: {reason}", hint=hint)
    options = used.defaults
    for choice, option in (chosen or {}).items():
        if choice not in used.choices:
            others = " or ".join(each.name for each in templates.values() if choice in each.choices)
            hint = f"leave it out, or take --template {others}" if others else "leave it out"
            raise UsageError(f"the template {used.name} has no choice --{choice}", hint=hint)
        options[choice] = pick(choice, option, used.choices[choice].options)
    folder = project_folder(folder)
    before = _texts(used, used.placeholder, [first], used.defaults, "wsvoice")
    after = _texts(used, _name(folder), names, options, requirement)
    replace = {old.encode(): new.encode() for old, new in zip(before, after, strict=True)}
    # The longest first, because a text may contain a shorter one; replacements are not searched again.
    pattern = re.compile(b"|".join(map(re.escape, sorted(replace, key=len, reverse=True))))
    exchange = (templates_folder() / "exchange.md").read_bytes()
    has_company = any(load_company(each).has_webhook for each in names)
    files = {}
    for path, source in used.files():
        content = source.read_bytes()
        if not has_company:
            # An exchange of one's own has no account, no number and no webhook.
            content = re.sub(rb"(?s)## Put it on the telephone\n.*(?=## Make it yours\n)", lambda _: exchange, content)
        is_text = b"\0" not in content
        files[path] = pattern.sub(lambda found: replace[found[0]], content) if is_text else content
    env = dict.fromkeys(name for choice, option in options.items() for name in used.choices[choice].options[option].env)
    return Plan(folder, used, names, options, list(env), files)


def _texts(
    template: Template, name: str, providers: Sequence[str], options: Mapping[str, str], requirement: str
) -> list[str]:
    """Return the texts in a project's files that depend on what the user chose."""
    picked = {f"{choice}: {option}": template.choices[choice].options[option] for choice, option in options.items()}
    loaded = [load_company(each) for each in providers]
    # The secret that verifies webhooks; a company that signs nothing has a user and a password.
    needed = [(each.title, each.credential_names[: 1 if each.signs and each.covers_body else 2]) for each in loaded]
    env: list[str] = []
    for title, variables in [*needed, *((title, option.env) for title, option in picked.items())]:
        new = [f"{variable}=" for variable in variables if f"{variable}=" not in env]
        env += [f"# {title}", *new] if new else []
    return [
        name,
        f'  "{requirement}",',
        f"--wheel-dir wheels '{requirement}'",
        f"wsvoice run bot.py -t {providers[0]}" if len(providers) == 1 else "wsvoice run bot.py",
        f'transport = "{providers[0]}"',
        f"PROVIDERS = {json.dumps(providers)}",
        f"providers = {json.dumps(providers)}",
        f"pipecat-ai[{','.join(dict.fromkeys(option.extra for option in picked.values()))}]",
        "\n".join(env),
        *(f'{choice.upper()} = "{option}"' for choice, option in options.items()),
    ]


def pick(what: str, name: str, known: Mapping[str, object]) -> str:
    """Return `name` if it is one of those `known`; raise :exc:`UsageError`, which names the nearest, if it is not."""
    if name in known:
        return name
    meant = did_you_mean(name, known)
    listed = f"known are: {', '.join(known)}"
    raise UsageError(f"no {what} is called {name!r}", hint=f"{meant} {listed}" if meant else listed)


def project_folder(given: str | Path) -> Path:
    """Return the folder of a project; raise :exc:`UsageError`, which suggests a better name, if it cannot have it."""
    if not str(given).strip():
        raise UsageError("the folder's name is empty", hint=f"give it one: `wsvoice init {DEFAULT_NAME}`")
    folder = Path(given)
    name = _name(folder)
    is_taken = re.sub(r"[-_.]+", "-", name).lower() in _TAKEN
    # https://packaging.python.org/en/latest/specifications/name-normalization/#name-format
    if not is_taken and re.fullmatch(r"[A-Za-z]([A-Za-z0-9._-]*[A-Za-z0-9])?", name):
        return folder
    better = f"my-{name}" if is_taken else re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._0123456789")
    # The current folder is not given by its name.
    better = str((folder.parent if folder.name == name else Path()) / (better or DEFAULT_NAME))
    problem = "the name of a package that every bot needs" if is_taken else "not a name for a Python project"
    raise UsageError(f"{name!r} is {problem}", hint=f"use letters, digits and hyphens: `wsvoice init {better}`")


def _name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name  # noqa: PTH100 - resolve() would follow a link to a folder of another name


def own_requirement(distribution: importlib.metadata.Distribution | None = None) -> str:
    """
    Return the requirement that installs the wsvoice which is running: ``wsvoice @ file:///…`` or ``wsvoice>=0.1``.

    https://packaging.python.org/en/latest/specifications/direct-url/
    """
    version, origin = _installed(distribution)
    url = origin.get("url", "")
    if not url or (url.startswith("file:") and not Path(url2pathname(urlsplit(url).path)).exists()):
        # From an index; or from a wheel that no longer exists.
        return f"wsvoice>={version}"
    if source := origin.get("vcs_info"):
        url = f"{source['vcs']}+{url}@{source['commit_id']}"
    return f"wsvoice @ {url}" + (f"#subdirectory={origin['subdirectory']}" if "subdirectory" in origin else "")


def own_editable_folder(distribution: importlib.metadata.Distribution | None = None) -> str | None:
    """Return the folder of an editable installation of wsvoice, quoted for a shell, or ``None``."""
    _, origin = _installed(distribution)
    is_editable = origin.get("dir_info", {}).get("editable")
    return shlex.quote(url2pathname(urlsplit(origin["url"]).path)) if is_editable else None


def _installed(distribution: importlib.metadata.Distribution | None) -> tuple[str, dict[str, Any]]:
    """Return wsvoice's version, and the installer's note about its origin."""
    try:
        distribution = distribution or importlib.metadata.distribution("wsvoice")
    except importlib.metadata.PackageNotFoundError:
        # It runs from its source, without having been installed.
        return "", {"url": Path(__file__).parents[2].as_uri()}
    return distribution.version, json.loads(distribution.read_text("direct_url.json") or "{}")


def next_commands(made: Plan) -> list[str]:
    """Return the commands that install the project and try it, for a POSIX shell."""
    here = made.folder.resolve() == Path.cwd()
    # Its tests need no keys; a call does.
    test = "pytest" if made.env else "pytest && wsvoice dial bot.py"
    return [*([] if here else [f"cd {shlex.quote(str(made.folder))}"]), "pip install -e '.[dev]'", test]


def requirements_file(folder: Path) -> str:
    """Return the name of the file in which a project says what it needs; empty if there is none."""
    with suppress(OSError, ValueError):
        if "project" in tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")):
            return "pyproject.toml"
    return "requirements.txt" if (folder / "requirements.txt").is_file() else ""


def write(made: Plan, *, overwrite: bool = False, dry_run: bool = False) -> None:
    """Write a project, as :func:`write_files` does."""
    write_files(made.folder, made.files, overwrite=overwrite, dry_run=dry_run)


def write_files(folder: Path, files: Mapping[str, bytes], *, overwrite: bool = False, dry_run: bool = False) -> None:
    """
    Write files into `folder`, all of them or none; with `dry_run` only check whether that is possible.

    The files are written to a temporary folder on the same disk, then moved into place. An error or interruption
    removes what was created, and restores what was overwritten.

    Raises:
        UsageError: If a file exists already and is not to be overwritten, or something is in the way.
        ScaffoldError: If the disk is full, or the system refuses otherwise.
    """
    try:
        _check(folder, files, overwrite=overwrite)
        if dry_run:
            return
        with ExitStack() as undo:
            _make_folders(folder, undo)
            draft = TemporaryDirectory(prefix=".wsvoice-", dir=folder)
            undo.callback(draft.cleanup)
            for number, content in enumerate(files.values()):
                Path(draft.name, f"{number}").write_bytes(content)
            for number, path in enumerate(files):
                target, backup = folder / path, Path(draft.name, f"{number}.old")
                _make_folders(target.parent, undo)
                if os.path.lexists(target):
                    undo.callback(_put_back, backup, target)
                    target.rename(backup)
                else:
                    undo.callback(target.unlink, missing_ok=True)
                Path(draft.name, f"{number}").rename(target)
            undo.pop_all()
            draft.cleanup()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ScaffoldError(f"{folder} cannot be written: {reason}", hint="nothing was written") from None


def _check(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    targets = [folder / path for path in files]
    folders = dict.fromkeys(parent for target in targets for parent in reversed(target.parents))
    for path in [each for each in folders if os.path.lexists(each) and not each.is_dir()]:
        raise UsageError(f"{path} is not a folder", hint="move it away, or choose another folder")
    for path in [each for each in targets if each.is_dir()]:
        raise UsageError(f"{path} is a folder", hint="move it away, or choose another folder")
    taken = [str(target) for target in targets if os.path.lexists(target)]
    if taken and not overwrite:
        there = " and ".join(filter(None, [", ".join(taken[:-1]), taken[-1]]))
        hint = "nothing was written; choose another folder, or overwrite with --force"
        raise UsageError(f"{there} already {'exist' if taken[1:] else 'exists'}", hint=hint)


def _make_folders(folder: Path, undo: ExitStack) -> None:
    for each in reversed([folder, *folder.parents]):
        if not each.is_dir():
            undo.callback(_remove_folder, each)
            each.mkdir()


def _remove_folder(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _put_back(backup: Path, target: Path) -> None:
    if os.path.lexists(backup):
        backup.replace(target)
