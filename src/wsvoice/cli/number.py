"""``wsvoice number``: the account's phone numbers, and those that a run left pointed at itself."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsvoice.cli import completion
from wsvoice.cli.help import Command, Group
from wsvoice.cli.options import EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.config import AccountConfig, parse_number, resolve_account, without_secrets
from wsvoice.errors import UsageError, WsvoiceError

if TYPE_CHECKING:
    from wsvoice.phone.numbers import NumberFile
    from wsvoice.providers.account import PhoneNumber

Transport = Annotated[
    str | None,
    option(
        "-t, --transport NAME",
        "The provider.  [default: the one whose credentials are set]",
        complete=completion.providers,
    ),
]
AsJson = Annotated[bool, option("--json", "Print one JSON object on stdout.")]


class Numbers(Group):
    """The group of commands about numbers."""

    def meant(self, args: Sequence[str]) -> str | None:
        """Return a hint that names the command that was probably meant."""
        if re.fullmatch(r"\+?[0-9][0-9 ().-]{4,}", args[0]):
            return f"did you mean `wsvoice number show {args[0]}`?"
        return super().meant(args)


number = typer.Typer(cls=Numbers, rich_markup_mode=None)


@number.callback(invoke_without_command=True)
def about(context: typer.Context) -> None:
    """
    List phone numbers, and put back those that a run left pointed at itself.

    `wsvoice run --number` has a number ring at a bot, and puts it back at the end.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


@number.command("list", cls=Command)
def list_numbers(
    context: typer.Context,
    transport: Transport = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """
    List the account's phone numbers, and where they ring.

    \b
    wsvoice number list -t twilio
    """
    import asyncio

    from wsvoice.phone.client import carry_out
    from wsvoice.phone.numbers import account_for_numbers

    output = Output()
    config = _resolve(context, output)
    account = account_for_numbers(config.transport, config.credentials)
    if account.has_numbers:
        account.check_credentials()
    with output.progress(f"Asking {account.title}"):
        numbers = asyncio.run(carry_out(account.numbers()))
    described = [_describe(each, account.name, config.state_folder) for each in numbers]
    if as_json:
        output.data({"provider": account.name, "numbers": described})
        return
    count = "one number" if len(numbers) == 1 else f"{len(numbers) or 'no'} numbers"
    output.line(f"{account.title}: {count}", style="bold")
    output.fields([(each.number, _in_a_line(each, said)) for each, said in zip(numbers, described, strict=True)])


@number.command("show", cls=Command)
def show(
    context: typer.Context,
    number: Annotated[
        str | None,
        typer.Argument(metavar="NUMBER", help="The phone number, such as +15551234567.", show_default=False),
    ] = None,
    transport: Transport = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """
    Show one phone number, and where it rings.

    \b
    wsvoice number show +15551234567 -t twilio
    """
    import asyncio

    from wsvoice.phone.numbers import account_for_numbers, find_number

    output = Output()
    if number is None:
        raise UsageError("NUMBER is missing", hint="name one, as in +15551234567; `wsvoice number list` lists them")
    wanted = parse_number(number, "NUMBER")
    config = _resolve(context, output)
    account = account_for_numbers(config.transport, config.credentials)
    if account.has_numbers:
        account.check_credentials()
    with output.progress(f"Asking {account.title}"):
        found = asyncio.run(find_number(account, wanted))
    said = _describe(found, account.name, config.state_folder)
    if as_json:
        output.data({"provider": account.name, **said})
        return
    rows = [("number", found.number), ("provider", account.title)]
    rows += [("name", found.name)] if found.name else []
    rows += [("rings at", without_secrets(found.points_at) or "nowhere")]
    rows += [("run", str(said["run"]))] if said["run"] else []
    rows += [(name, without_secrets(value)) for name, value in found.settings.items()]
    output.fields(rows)
    if not found.has_voice:
        output.warning("it takes no calls: it has no voice")
    if found.obstacle:
        output.warning(f"`wsvoice run --number` cannot point it: {found.obstacle}")
        if found.hint:
            output.note(found.hint)
    for text in found.warnings:
        output.warning(text)


@number.command("restore", cls=Command)
def restore(
    context: typer.Context,
    number: Annotated[
        str | None, typer.Argument(metavar="NUMBER", help="The phone number.  [default: all]", show_default=False)
    ] = None,
    transport: Annotated[
        str | None, option("-t, --transport NAME", "Only this provider's.", complete=completion.providers)
    ] = None,
    env_file: EnvFile = None,
    as_json: AsJson = False,
) -> None:
    """
    Put back numbers that a run left when it died.

    A run that is killed leaves its number pointed at nowhere. One that somebody
    has pointed elsewhere since is left alone.

    \b
    wsvoice number restore
    wsvoice number restore +15551234567
    """
    from wsvoice.phone.numbers import number_files

    output = Output()
    wanted = parse_number(number, "NUMBER") if number is not None else None
    config = _resolve(context, output)
    results: list[dict[str, object]] = []
    errors: list[WsvoiceError] = []
    for file in number_files(config.state_folder):
        if (wanted and file.digits != wanted.lstrip("+")) or (transport and file.provider != config.transport):
            continue
        result = _restore(file, config, is_named=wanted is not None)
        error = result.pop("error")
        results.append({**result, "error": None if error is None else str(error)})
        if isinstance(error, WsvoiceError):
            errors.append(error)
            output.failure(error)
        else:
            output.line(str(result.pop("text")))
    if as_json:
        output.data({"numbers": [{name: each[name] for name in _RESULT} for each in results]})
    if not results:
        output.line(f"{wanted or 'no number'} was {'not ' if wanted else ''}left pointed at a run")
    if errors:
        raise typer.Exit(max(error.exit_code for error in errors))


_RESULT = ("provider", "number", "result", "was", "file", "error")


def _restore(file: NumberFile, config: AccountConfig, *, is_named: bool) -> dict[str, Any]:
    """Put one number back; return what came of it."""
    import asyncio

    from wsvoice.phone.numbers import account_for_numbers, describe_restored, in_use, restore_left

    came: dict[str, Any] = {"provider": file.provider, "number": f"+{file.digits}", "was": "", "file": str(file.path)}
    try:
        record = file.read()
        came["was"] = record.was if record else ""
        if (holder := file.holder()) is not None:
            error = in_use(f"+{file.digits}", holder, file.path)
            if is_named:
                raise error
            return {**came, "result": "in-use", "error": None, "text": error.message}
        done = asyncio.run(restore_left(file, account_for_numbers(file.provider, config.credentials)))
    except WsvoiceError as error:
        result = "failed" if file.holder() is None else "in-use"
        return {**came, "result": result, "error": error, "text": ""}
    if done is None:
        return {**came, "result": "unchanged", "error": None, "text": f"+{file.digits} was put back meanwhile"}
    record, restored = done
    text = describe_restored(file, record.was, restored)
    return {**came, "result": restored, "error": None, "text": text}


def _resolve(context: typer.Context, output: Output) -> AccountConfig:
    config = resolve_account(context.params, environ=os.environ, cwd=Path.cwd())
    for text in config.warnings:
        output.warning(text)
    return config


def _describe(found: PhoneNumber, provider: str, state: Path) -> dict[str, object]:
    """Return what is known of a number, under the names of ``--json``."""
    from wsvoice.phone.numbers import NumberFile

    return {
        "number": found.number,
        "name": found.name,
        "points_at": without_secrets(found.points_at),
        "has_voice": found.has_voice,
        "obstacle": found.obstacle,
        "warnings": list(found.warnings),
        "settings": {name: without_secrets(value) for name, value in found.settings.items()},
        "run": _run_of(NumberFile(state, provider, found.number)),
    }


def _run_of(file: NumberFile) -> str:
    """Return in words at which run a number rings, as far as this machine knows; empty for none."""
    holder = file.holder()
    if holder is not None:
        return f"process {holder.get('pid')}, started in {holder.get('folder')}"
    if file.path.exists():
        return f"one that died; `wsvoice number restore +{file.digits}` puts it back"
    return ""


def _in_a_line(found: PhoneNumber, said: Mapping[str, object]) -> str:
    parts = [
        found.name,
        f"rings at {without_secrets(found.points_at) or 'nowhere'}" if found.has_voice else "has no voice",
    ]
    parts += [
        f"cannot be pointed: {found.obstacle}" if found.obstacle else "",
        f"run: {said['run']}" if said["run"] else "",
    ]
    return "; ".join(filter(None, parts))
