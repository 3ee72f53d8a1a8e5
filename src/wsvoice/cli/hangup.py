"""``wsvoice hangup``: end a real call from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.cli.signals import interrupted_by_signals
from wsvoice.config import resolve_account
from wsvoice.errors import ApiError


def hangup(
    context: typer.Context,
    call_id: Annotated[
        str, typer.Argument(metavar="CALL_ID", help="The provider's id of the call, as the log and reports have it.")
    ],
    transport: Annotated[
        str | None,
        option(
            "-t, --transport NAME",
            "The provider.  [default: told by the id, or by whose credentials are set]",
            complete=completion.providers,
        ),
    ] = None,
    env_file: EnvFile = None,
    as_json: Annotated[bool, option("--json", "Print one JSON object on stdout: call_id, provider, hung_up.")] = False,
) -> None:
    """
    End a real call, whichever program placed it.

    Asks the provider's API, with the credentials from the environment or .env.
    A call that has ended already is a success too.

    \b
    wsvoice hangup CA5ef8732a3c49700934481addd5ce1659
    wsvoice hangup 936da01f-9abd-4d9d-80c7-02af85c822a8 -t plivo
    """
    output = Output()
    config = resolve_account(context.params, environ=os.environ, cwd=Path.cwd())
    for warning in config.warnings:
        output.warning(warning)

    import asyncio

    from wsvoice.phone.accounts import account_of_call, hang_up

    call_id = call_id.strip()
    account = account_of_call(call_id, config.transport, config.credentials)
    try:
        with output.progress(f"Hanging up {call_id}"), interrupted_by_signals():
            hung_up = asyncio.run(hang_up(account, call_id, on_wait=output.note))
    except ApiError as error:
        if error.kind == "not-found" and not error.hint:
            error.hint = f"look at the id, and whether the call is {account.title}'s and of this account"
        raise
    if as_json:
        output.data({"call_id": call_id, "provider": account.name, "hung_up": hung_up})
    else:
        output.line(f"{call_id} is hung up" if hung_up else f"{call_id} had ended already", style="bold green")
