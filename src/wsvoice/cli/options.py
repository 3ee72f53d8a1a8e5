"""Options that several commands have, and headings of the help texts."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from wsvoice.config import DialConfig, RunConfig

# The headings of the help texts.
TRANSPORT = "Transport"
NETWORK = "Network"
ADMISSION = "Who may come in"
LIMITS = "Limits"
CALLS = "Calls"
CALLER = "What the caller does"
TRIALS = "A harder call"
PROJECT = "The project"
SERVICES = "Services"

Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="KEY=VALUE", help="A parameter for the bot. Repeatable.", rich_help_panel=CALLS),
]
EnvFile = Annotated[
    str | None,
    typer.Option("--env-file", metavar="FILE", help="Read this file.  [default: .env, if it is there]"),
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Print every setting and where it comes from.")]


def standard(config: type[RunConfig] | type[DialConfig], field: str) -> str:
    """Return a setting's default for the end of a help text."""
    value = next(each.default for each in fields(config) if each.name == field)
    return f"  [default: {value:g}s]" if isinstance(value, float) else f"  [default: {value}]"
