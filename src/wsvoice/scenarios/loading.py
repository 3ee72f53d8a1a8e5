"""
Reads a scenario's file; an error names the file, the line, and what was probably meant.

``tomllib`` has the values, and tree-sitter's grammar of TOML where they are in the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from wsvoice.config import did_you_mean
from wsvoice.errors import ScenarioError
from wsvoice.scenarios import SUFFIX
from wsvoice.scenarios.schema import Expectations, Scenario, Step

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

#: The largest file that is read: one of this size has thousands of steps.
MAX_BYTES = 1 << 20

#: Keys and numbers that lead to a value.
Place = tuple[str | int, ...]


@dataclass(frozen=True)
class ScenarioFile:
    """
    A scenario, and where its parts are in its file.

    Attributes:
        path: The file.
        scenario: What it says.
        lines: The line of each key, by the keys and numbers that lead to it: ``("steps", 0, "say")``.
    """

    path: Path
    scenario: Scenario
    lines: Mapping[Place, int]

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.name.removesuffix(SUFFIX)

    def error(self, message: str, *place: str | int, hint: str | None = None) -> ScenarioError:
        """Return an error about what is at `place`."""
        return ScenarioError(f"{self.path}:{_line_of(place, self.lines)}: {message}", hint=hint)


def read_scenario(path: Path) -> ScenarioFile:
    """
    Read a scenario's file.

    Raises:
        ScenarioError: If it cannot be read, is not TOML, or says something that no scenario may say.
    """
    return parse_scenario(_read_text(path), path)


def parse_scenario(text: str, path: Path) -> ScenarioFile:
    """Return what the text of a scenario's file says; `path` is the file, and errors are as :func:`read_scenario`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+), column \d+\)|\(at end of document\)", str(error))
        line = int(at[1]) if at and at[1] else text.count("\n") + 1
        why = str(error).removesuffix(at[0]).strip() if at else str(error)
        hint = 'texts are in quotes: say = "hello"'
        raise ScenarioError(f"{path}:{line}: this is not TOML: {why[:1].lower()}{why[1:]}", hint=hint) from None
    lines = find_lines(text)
    if not table.get("steps") and not ("replay" in table and "steps" not in table):
        meant = None if "steps" in table else did_you_mean_key(table, {"steps"})
        if meant is not None:
            message = f"{path}:{_line_of((meant,), lines)}: a scenario has no key {meant!r}"
            raise ScenarioError(message, hint=did_you_mean(meant, {"steps"}))
        place = ("steps",)
        hint = 'add what the caller does: `[[steps]]`, and below it `say = "hello"`'
        raise ScenarioError(f"{path}:{_line_of(place, lines)}: the scenario has no steps", hint=hint)
    try:
        return ScenarioFile(path, Scenario.model_validate(table), lines)
    except ValidationError as error:
        found = _first(error, lines)
        message, hint_or_none = _describe(found)
        line = _line_of(_place(found["loc"]), lines)
        raise ScenarioError(f"{path}:{line}: {message}", hint=hint_or_none) from None


def _first(error: ValidationError, lines: Mapping[Place, int]) -> Any:
    """Return the first error in the file; not one that is only the consequence of what is inside of it."""
    places = [each["loc"] for each in error.errors()]
    causes = [
        each
        for each in error.errors()
        if not any(len(place) > len(each["loc"]) and place[: len(each["loc"])] == each["loc"] for place in places)
    ]
    return min(causes, key=lambda each: _line_of(_place(each["loc"]), lines))


def did_you_mean_key(table: Mapping[str, Any], known: set[str]) -> str | None:
    """Return the key of `table` that was probably meant to be one of the `known`."""
    return next((key for key in table if did_you_mean(key, known)), None)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ScenarioError(
            f"{path} cannot be read: {error.strerror}", hint="give a file, or a folder of them"
        ) from None
    if len(content) > MAX_BYTES:
        raise ScenarioError(f"{path} is larger than {MAX_BYTES >> 20} MiB", hint="make several scenarios of it")
    try:
        # As `read_text` does, and tomllib wants.
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ScenarioError(f"{path}:{line}: this is no text in UTF-8", hint="save it as UTF-8") from None


# Errors in words


def _place(loc: Sequence[str | int]) -> Place:
    """Return where an error is, without the names that pydantic adds for the members of unions."""
    return tuple(each for each in loc if isinstance(each, int) or re.fullmatch(r"[\w-]+", each))


def _describe(error: Any) -> tuple[str, str | None]:
    place = _place(error["loc"])
    key = str(place[-1]) if place else ""
    where = _where(place)
    if error["type"] == "extra_forbidden":
        known = _known_keys(place)
        listed = f"known are: {', '.join(sorted(known))}"
        return f"{where} has no key {key!r}", did_you_mean(key, known) or listed
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if error["type"] == "value_error" and not (place and isinstance(place[-1], str) and place[-1] not in ("greeting",)):
        return (f"{where}: {message}" if place else message), None
    if error["type"] == "missing":
        return f"{where} lacks {key!r}", None
    names = [str(each) for each in place if isinstance(each, str) and each not in ("steps", "greeting")]
    named = names[0] if names else key
    # What the settings' own checks say ends with what was given, and a hint that may be for the command line.
    message, _, hint = message.partition("; ")
    message = re.sub(r", got .*$", "", message)
    if error["type"] == "literal_error":
        hint = did_you_mean(str(error["input"]), re.findall(r"'([^']+)'", message)) or ""
    prefix = f"{where}: " if len(place) > 1 and place[0] in ("steps", "greeting") else ""
    return f"{prefix}{named} cannot be {_shown(error['input'])}: {message}", hint.replace(
        "--dtmf 1w2#", 'press = "1w2#"'
    ) or None


def _where(place: Place) -> str:
    if len(place) >= 2 and place[0] == "steps" and isinstance(place[1], int):
        return f"step {place[1] + 1}"
    return "the greeting" if place[:1] == ("greeting",) else "a scenario"


def _known_keys(place: Place) -> set[str]:
    model: type[Scenario] | type[Expectations] = Scenario
    if place[0] in ("steps", "greeting"):
        model = Step if place[0] == "steps" else Expectations
    return {field.alias or name for name, field in model.model_fields.items()}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Lines


def _line_of(place: Sequence[str | int], lines: Mapping[Place, int]) -> int:
    """Return the line of what is at `place`, or of the nearest thing around it."""
    where = tuple(place)
    while where and where not in lines:
        where = where[:-1]
    return lines.get(where, 1)


def find_lines(text: str) -> dict[Place, int]:
    """Return the line of each key, table and item of an array in a TOML file, counted from 1."""
    lines: dict[Place, int] = {}
    counts: dict[Place, int] = {}
    for node in _parser().parse(text.encode()).root_node.named_children:
        if node.type == "pair":
            _add_pair(node, (), lines)
        elif node.type in ("table", "table_array_element"):
            keys, *pairs = node.named_children
            place = _resolved(_keys_of(keys), counts)
            if node.type == "table_array_element":
                number = counts.get(place, 0)
                counts[place] = number + 1
                lines.setdefault(place, _line(node))
                place = (*place, number)
            lines.setdefault(place, _line(node))
            for pair in pairs:
                if pair.type == "pair":
                    _add_pair(pair, place, lines)
    return lines


def _resolved(keys: Sequence[str], counts: Mapping[Place, int]) -> Place:
    """Return the place of a table: below an array of tables, it is in the array's last one."""
    place: Place = ()
    for index, key in enumerate(keys):
        place = (*place, key)
        if place in counts and index < len(keys) - 1:
            place = (*place, counts[place] - 1)
    return place


def _add_pair(pair: Node, parent: Place, lines: dict[Place, int]) -> None:
    keys, value = pair.named_children[0], pair.named_children[-1]
    place = (*parent, *_keys_of(keys))
    lines.setdefault(place, _line(pair))
    _add_value(value, place, lines)


def _add_value(value: Node, place: Place, lines: dict[Place, int]) -> None:
    if value.type == "inline_table":
        for each in value.named_children:
            if each.type == "pair":
                _add_pair(each, place, lines)
    elif value.type == "array":
        items = [each for each in value.named_children if each.type != "comment"]
        for number, each in enumerate(items):
            lines[*place, number] = _line(each)
            _add_value(each, (*place, number), lines)


def _keys_of(node: Node) -> list[str]:
    """Return the keys of ``a."b c".d``."""
    if node.type == "dotted_key":
        return [key for each in node.named_children for key in _keys_of(each)]
    text = (node.text or b"").decode()
    if node.type == "quoted_key":
        # A quoted key is written as a text is.
        return [str(tomllib.loads(f"key = {text}")["key"])]
    return [text]


def _line(node: Node) -> int:
    return int(node.start_point[0]) + 1


@cache
def _parser() -> Parser:
    import tree_sitter_toml
    from tree_sitter import Language, Parser

    return Parser(Language(tree_sitter_toml.language()))
