"""YAML with comments, which every reader of YAML takes for the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Whatever else a text is like, one of the readers might take for a number, a date, a truth value or nothing.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_/-]+(\.[A-Za-z0-9_/-]+)*")
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "null"})
_KEY = re.compile(r"( *)(?:- )?\"?([\w./-]+)\"?:(?: |$)")


def dump(document: object, notes: Mapping[str, str] | None = None) -> str:
    """
    Return `document` as YAML.

    Args:
        document: Of mappings, lists, texts, numbers and truth values.
        notes: A comment for the first line that has a key, by the key; it stands above that line.
    """
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def represent(dumper: Any, text: str) -> Any:
        is_plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')

    Dumper.add_representer(str, represent)
    text: str = yaml.dump(
        document, Dumper=Dumper, sort_keys=False, default_flow_style=False, width=10**6, allow_unicode=True
    )
    return _annotated(text, dict(notes or {}))


def _annotated(text: str, notes: dict[str, str]) -> str:
    lines: list[str] = []
    for line in text.rstrip("\n").split("\n"):
        found = _KEY.match(line)
        if found and (note := notes.pop(found[2], None)):
            lines += [f"{found[1]}# {each}" for each in note.splitlines()]
        lines.append(line)
    if notes:
        raise ValueError(f"no line has the keys {sorted(notes)}")
    return "\n".join(lines) + "\n"


def comment(text: str) -> str:
    """Return `text` as lines of comments."""
    return "".join(f"# {line}".rstrip() + "\n" for line in text.splitlines())


def documents(texts: Iterable[str]) -> str:
    """Return texts of one document each as one text."""
    return "---\n".join(texts)
