"""Options that several commands have, and headings of the help texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wsvoice.cli.completion import Completer

# The headings of the help texts.
TRANSPORT = "Transport"
NETWORK = "Network"
ADMISSION = "Who may come in"
LIMITS = "Limits"
CALLS = "Calls"
CALLER = "What the caller does"
TRIALS = "A harder call"
MANY = "Many calls"
REAL = "Calls to a phone number"
PROJECT = "The project"
SERVICES = "Services"


def option(shown: str, help: str, group: str | None = None, complete: Completer | None = None) -> Any:
    """Return the option that help texts show as ``-x, --proxy DOMAIN``, or as ``--probe`` if it takes no value."""
    *names, last = shown.split(", ")
    name, _, metavar = last.partition(" ")
    return typer.Option(
        *names, name, metavar=metavar or None, help=help, rich_help_panel=group, autocompletion=complete
    )


Param = Annotated[list[str] | None, option("--param KEY=VALUE", "A parameter for the bot. Repeatable.", CALLS)]
EnvFile = Annotated[str | None, option("--env-file FILE", "Read this file.  [default: .env, if it is there]")]
