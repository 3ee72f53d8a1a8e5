"""
What the shell completes: the values of options, and bots.

A completer returns nothing if the shell's own completion of file names is better. Each runs whenever the key is
pressed, so it imports only what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

Completer = Callable[..., list[str]]

# Other names would have to be quoted, which differs between shells.
_PLAIN_NAME = re.compile(r"[\w.+@%-]+")
_PLAIN_ID = re.compile(r"[\w.+@%:-]+")


def one_of(*words: str) -> Completer:
    """Complete one of some words."""
    return lambda incomplete: _starting(incomplete, words)


def providers(incomplete: str) -> list[str]:
    """Complete a provider's name."""
    from wsvoice.providers import PROVIDERS

    return _starting(incomplete, PROVIDERS)


def transports(incomplete: str) -> list[str]:
    """Complete what `wsvoice run -t` takes."""
    from wsvoice.config import PLAIN_TRANSPORTS
    from wsvoice.providers import PROVIDERS

    return _starting(incomplete, (*PROVIDERS, *PLAIN_TRANSPORTS))


def quirks(context: typer.Context, incomplete: str) -> list[str]:
    """Complete a quirk of the provider that was named."""
    from wsvoice.config import DialConfig
    from wsvoice.providers import PROVIDERS, load_simulator

    name = context.params.get("transport") or DialConfig().transport
    known = load_simulator(name).quirks if name in PROVIDERS else {}
    written = [f"{quirk}={value}" for quirk, about in known.items() for value in about.choices or ("",)]
    return _starting(incomplete, ["list", *written])


def voices(incomplete: str) -> list[str]:
    """Complete a language of eSpeak NG's, if it is installed."""
    from wsvoice.errors import UsageError
    from wsvoice.speech import languages

    try:
        return _starting(incomplete, languages())
    except UsageError:
        return []


def running_calls(incomplete: str) -> list[str]:
    """Complete the id of a call that runs on this machine."""
    import os

    from wsvoice.config import state_folder
    from wsvoice.errors import ControlError
    from wsvoice.phone.control import ask
    from wsvoice.phone.runs import running_servers

    ids: list[str] = []
    for server in running_servers(state_folder(os.environ)):
        with suppress(ControlError):
            found = ask(server, {"do": "calls"}, timeout_s=0.5).get("calls", [])
            ids += [str(each["id"]) for each in found if isinstance(each, dict) and each.get("id")]
    # Other ids would have to be quoted, which differs between shells.
    return _starting(incomplete, [each for each in ids if _PLAIN_ID.fullmatch(each)])


def templates(incomplete: str) -> list[str]:
    """Complete a template's name."""
    from wsvoice.scaffold import load_templates

    return _starting(incomplete, load_templates())


def choice(name: str) -> Completer:
    """Complete an option of a choice, of the template that was named or of all."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        from wsvoice.scaffold import load_templates

        known = load_templates()
        template: Any = context.params.get("template")
        asked = [known[template]] if template in known else known.values()
        words = [option for each in asked if name in each.choices for option in each.choices[name].options]
        return _starting(incomplete, dict.fromkeys(words))

    return complete


def bots(incomplete: str) -> list[str]:
    """Complete the path of a Python file, or of a folder on the way."""
    found = _python_files(incomplete)
    # A shell takes a single match as complete, but a folder is not.
    while len(found) == 1 and found[0].endswith("/"):
        inside = _python_files(found[0])
        if not inside:
            break
        found = inside
    return found


def _python_files(incomplete: str) -> list[str]:
    folder, slash, start = incomplete.rpartition("/")
    try:
        entries = sorted(Path(f"{folder}{slash}" or ".").expanduser().iterdir())
    except OSError:
        return []
    names = [
        f"{each.name}/" if each.is_dir() else each.name
        for each in entries
        if _PLAIN_NAME.fullmatch(each.name)
        and (start or not each.name.startswith((".", "_")))
        and (each.suffix == ".py" or each.is_dir())
    ]
    return [f"{folder}{slash}{name}" for name in _starting(start, names)]


def _starting(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
