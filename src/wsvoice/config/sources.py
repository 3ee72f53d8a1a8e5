"""Where settings are found: flags, the environment, ``.env`` and ``pyproject.toml``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from wsvoice.config.settings import ENV_FILE, RUN_SETTINGS, Setting
from wsvoice.config.spelling import did_you_mean
from wsvoice.config.values import parse_text
from wsvoice.errors import ConfigError

#: The commands that have a table of their own in ``[tool.wsvoice]``.
OWN_TABLES = ("dial", "deploy", "test")


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was found; ``rank`` 0 is the strongest source, and ``who`` names it in messages."""

    value: object
    origin: str
    who: str
    rank: int


@dataclass(slots=True)
class Sources:
    """The sources of settings, strongest first; ``flags`` are by option name."""

    flags: Mapping[str, Any]
    environ: Mapping[str, str]
    table: Mapping[str, Any]
    command: str
    dotenv: Mapping[str, str] = field(default_factory=dict)
    env_file_name: str = ".env"

    def find(self, setting: Setting) -> Given | None:
        value = self.flags.get(setting.name)
        if value is not None and value != () and value != []:
            who = setting.flag or f"--{setting.name}"
            return Given(value, f"argument {who}" if who.isupper() else f"flag --{setting.name}", who, 0)
        names = setting.variables(self.command)
        for name in names:
            if self.environ.get(name):
                return Given(self.environ[name], f"environment {name}", name, 1)
        for name in names:
            # An empty variable in the environment overrides `.env`.
            if self.dotenv.get(name) and name not in self.environ:
                file = self.env_file_name
                return Given(self.dotenv[name], f"{file} {name}", f"{name} in {file}", 2)
        if setting.name in self.table:
            where = f"pyproject.toml [{_table_name(self.command)}] {setting.name}"
            return Given(self.table[setting.name], where, where, 3)
        return None


def _table_name(command: str) -> str:
    return "tool.wsvoice" if command == "run" else f"tool.wsvoice.{command}"


def read_env_file(named: Given | None, cwd: Path) -> tuple[Path | None, dict[str, str], list[str]]:
    """Read the given ``.env``, or the one in `cwd` if there is one; the last item are warnings."""
    if named is None:
        path, who = cwd / ".env", ".env"
        if not path.is_file():
            return None, {}, []
    else:
        path, who = cwd / Path(parse_text(named.value, named.who)).expanduser(), named.who
    text = _read_text(path, missing=f"{who} names a file that does not exist: {path}")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError(f"{path} is not a text file: there is a zero byte in line {line}")
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    good, warnings = [], []
    for statement in parse_stream(StringIO(text)):
        written = statement.original.string
        if not statement.error:
            good.append(written)
        elif written.strip():
            # The statement includes blank lines in front of it.
            line = statement.original.line + written[: len(written) - len(written.lstrip())].count("\n")
            warnings.append(f"{path.name}, line {line}, is not read: write NAME=value ({path})")
    found = dotenv_values(stream=StringIO("".join(good)))
    return path, {name: value for name, value in found.items() if value is not None}, warnings


def _read_text(path: Path, missing: str = "") -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            raise ConfigError(missing, hint="leave it out to read .env, if it is there") from None
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        problem = f"byte {error.start} is not UTF-8"
        raise ConfigError(f"{path} is not a text file: {problem}", hint="save it as UTF-8") from None


def read_pyproject(cwd: Path, command: str) -> dict[str, Any]:
    """Read `command`'s table of ``pyproject.toml``."""
    path = cwd / "pyproject.toml"
    if not path.is_file():
        return {}
    # Help is printed without it.
    import tomllib

    try:
        table: Any = tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint='put texts in quotes: transport = "twilio"') from None
    keys = _table_name(command).split(".")
    for depth, key in enumerate(keys, start=1):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"pyproject.toml: [{'.'.join(keys[:depth])}] must be a table, got {table!r}")
        if depth == 2 and command != "run":
            _check_tables(table, command)
    return dict(table)


def find_unknown(table: Mapping[str, Any], command: str, settings: Sequence[Setting]) -> dict[str, ConfigError]:
    """Return an error for each key of `command`'s table of ``pyproject.toml`` that is no setting."""
    known = {setting.name for setting in settings} | {ENV_FILE.name}
    found = {}
    for key in table:
        # [tool.wsvoice] also holds the other commands' tables.
        if key not in known and not (command == "run" and key in OWN_TABLES):
            hint = did_you_mean(key.replace("_", "-"), known) or f"known are: {', '.join(sorted(known))}"
            found[key] = ConfigError(f"pyproject.toml [{_table_name(command)}] has no setting {key!r}", hint=hint)
    return found


def _check_tables(table: Mapping[str, Any], command: str) -> None:
    """Refuse a table in ``[tool.wsvoice]`` that can only be `command`'s, misspelt."""
    known = {setting.name for setting in RUN_SETTINGS}.union(OWN_TABLES)
    for key, value in table.items():
        if key not in known and isinstance(value, dict):
            hint = f"did you mean `[tool.wsvoice.{command}]`?"
            raise ConfigError(f"pyproject.toml [tool.wsvoice] has no table {key!r}", hint=hint)
