"""
``wsvoice``: its commands, and the one place where an error becomes an exit code.

====  ============================================================
0     success: the call went well, or the server was asked to stop
1     failure; or a bot kept the server from ending in time
2     misuse: the command line, a setting, or a file named in it
130   interrupted; of a server, by a second Ctrl-C
====  ============================================================

What takes long to import is imported in the commands' bodies, because ``wsvoice --help`` must answer at once.
"""

from __future__ import annotations

import gc
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from wsvoice._version import __version__
from wsvoice.cli.call_tests import run_scenarios
from wsvoice.cli.calls import calls
from wsvoice.cli.deploy import deploy
from wsvoice.cli.dial import dial
from wsvoice.cli.doctor import doctor
from wsvoice.cli.hangup import hangup
from wsvoice.cli.help import ClickError, ClickUsageError, Command, Group
from wsvoice.cli.init import init
from wsvoice.cli.number import number
from wsvoice.cli.output import Output
from wsvoice.cli.phone import phone
from wsvoice.cli.run import run
from wsvoice.cli.show import show
from wsvoice.config import did_you_mean
from wsvoice.errors import WsvoiceError

INTERRUPTED = 130


class Commands(Group):
    """The group of commands, with wsvoice's errors and exit codes."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process with its exit code."""
        options |= {"prog_name": "wsvoice", "standalone_mode": False}
        try:
            code = super().main(*args, **options)
        except WsvoiceError as error:
            Output().failure(error)
            code = error.exit_code
        except ClickError as error:
            Output().error(_usage_message(error), hint=_usage_hint(error))
            code = error.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)

    def meant(self, args: Sequence[str]) -> str | None:
        """Return a hint that names the command that is missing before `args`, or misspelt as the first of them."""
        return _meant(args[0], args, list(self.commands))


def _meant(name: str, args: Sequence[str], commands: Sequence[str]) -> str | None:
    """Return a hint that names the command that is missing before `args`, or misspelt as the first of them."""
    file = re.sub(r":\w*$", "", name)
    if "://" in name or re.fullmatch(r"\+?[0-9][0-9 ()-]{4,}", name):
        return f"did you mean `wsvoice dial {shlex.join(args)}`?"
    if file.endswith(".py") or Path(file, "bot.py").is_file() or Path(f"{file}.py").is_file():
        return f"did you mean `wsvoice run {shlex.join(args)}`?"
    meant = next((each for each in commands if _is_one_letter_off(name, each)), _SYNONYMS.get(name))
    if meant is not None:
        return f"did you mean `wsvoice {shlex.join([meant, *args[1:]])}`?"
    likely = did_you_mean(name, commands)
    return likely.replace("`", "`wsvoice ", 1) if likely else None


def _is_one_letter_off(word: str, command: str) -> bool:
    """Whether one letter more or less makes `command` of `word`."""
    shorter, longer = sorted((word.lower(), command), key=len)
    return len(longer) - len(shorter) == 1 and any(
        longer[:at] + longer[at + 1 :] == shorter for at in range(len(longer))
    )


#: What other tools call it.
_SYNONYMS = {
    "check": "doctor",
    "create": "init",
    "dev": "run",
    "end": "hangup",
    "hang-up": "hangup",
    "diagnose": "doctor",
    "help": "--help",
    "new": "init",
    "serve": "run",
    "open": "show",
    "start": "run",
    "top": "calls",
    "version": "--version",
}


def _usage_message(error: Any) -> str:
    message = getattr(error, "message", "") if getattr(error, "possibilities", None) else error.format_message()
    text = " ".join(str(message).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _usage_hint(error: Any) -> str | None:
    if not isinstance(error, ClickUsageError):
        return None
    context: Any = getattr(error, "ctx", None)
    option = getattr(error, "option_name", None)
    if option and context is not None and context.parent is None:
        commands = context.command.commands.items()
        owners = [name for name, command in commands if any(option in each.opts for each in command.params)]
        if owners:
            return f"it belongs behind a command, as in `wsvoice {owners[0]} {option}`"
    lists = f"`{context.command_path if context else 'wsvoice'} --help` lists what there is"
    if "unexpected extra argument" in str(getattr(error, "message", "")):
        return f"put text with spaces in quotes; {lists}"
    if option == "--dtmf":
        return "a shell takes an unquoted # for a comment; quote it: `--dtmf '#'`"
    meant = getattr(error, "possibilities", None)
    return f"did you mean `{meant[0]}`? {lists}" if meant else lists


app = typer.Typer(
    cls=Commands,
    # typer's rich help takes twice as long as everything else together; help.py has colours without it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsvoice {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def wsvoice(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run telephone voice bots built on pipecat, and test them by calling them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


app.command(cls=Command)(run)
app.command(cls=Command)(dial)
app.command(cls=Command)(phone)
app.command(cls=Command)(show)
app.command(cls=Command)(hangup)
app.command(cls=Command)(init)
app.add_typer(calls, name="calls")
app.add_typer(number, name="number")
app.add_typer(deploy, name="deploy")
app.command("test", cls=Command)(run_scenarios)
app.command(cls=Command)(doctor)


def main() -> None:
    """Run the command line of this process, and end it."""
    try:
        app()
    finally:
        if "pipecat" not in sys.modules:
            # Python would look for garbage at the end, for 50 ms. Only a bot's objects may have something to say then.
            gc.freeze()
