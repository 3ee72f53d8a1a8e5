"""Options that several commands have, and headings of the help texts."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from wsvoice.cli.completion import Completer, one_of, quirks
from wsvoice.config import DialConfig, Method

# The headings of the help texts.
TRANSPORT = "Transport"
NETWORK = "Network"
ADMISSION = "Who may come in"
LIMITS = "Limits"
CALLS = "Calls"
WATCHING = "Watching it"
CALLER = "What the caller does"
TRIALS = "A harder call"
REPLAYS = "A call again"
MANY = "Many calls"
REAL = "Calls to a phone number"
PROJECT = "The project"
SERVICES = "Services"
PODS = "Pods"
SCENARIOS = "Scenarios"


def option(shown: str, help: str, group: str | None = None, complete: Completer | None = None) -> Any:
    """Return the option that help texts show as ``-x, --proxy DOMAIN``, or as ``--probe`` if it takes no value."""
    *names, last = shown.split(", ")
    name, _, metavar = last.partition(" ")
    return typer.Option(
        *names, name, metavar=metavar or None, help=help, rich_help_panel=group, autocompletion=complete
    )


Param = Annotated[list[str] | None, option("--param KEY=VALUE", "A parameter for the bot. Repeatable.", CALLS)]
EnvFile = Annotated[str | None, option("--env-file FILE", "Read this file.  [default: .env, if it is there]")]
Verbose = Annotated[bool, option("-v, --verbose", "Print every setting and where it comes from.")]
# Of calls that are placed.
ToNumber = Annotated[str | None, option("--to NUMBER", f"Who is called.  [default: {DialConfig().to_number}]", CALLS)]
WebhookMethod = Annotated[
    str | None,
    option("--method GET|POST", "The webhook's.  [default: the provider's]", CALLS, one_of(*get_args(Method))),
]
Quirk = Annotated[
    list[str] | None,
    option("--quirk NAME=VALUE", "Make the provider deviate. Repeatable; `--quirk list` lists them.", TRIALS, quirks),
]
ForceWs = Annotated[bool | None, option("--force-ws", "Dial ws:// where the answer says wss://.", CALLS)]
AllowPrivate = Annotated[
    bool | None, option("--allow-private", "Let a public server send the caller to private addresses.", CALLS)
]
