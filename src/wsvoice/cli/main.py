"""
``wsvoice``: its commands, and the one place where an error becomes an exit code.

====  ============================================================
0     it held: the call passed, the server was asked to stop
1     it failed
2     misuse: the command line, a setting, or a file named in it
130   interrupted
====  ============================================================

Nothing that takes long to import may be imported here or by a command's module, only inside of its body:
``wsvoice --help`` is to answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from wsvoice._version import __version__
from wsvoice.cli.dial import dial
from wsvoice.cli.init import init
from wsvoice.cli.output import Output
from wsvoice.cli.run import run
from wsvoice.errors import WsvoiceError

# typer brings its own copy of click or uses the real one, depending on its version; either way these are the
# bases of what it exports.
_UsageError: Any = typer.BadParameter.__mro__[1]
_ClickError: Any = typer.BadParameter.__mro__[2]

INTERRUPTED = 130


class Commands(TyperGroup):
    """The group of commands, with wsvoice's errors and exit codes."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process with its exit code."""
        options |= {"prog_name": "wsvoice", "standalone_mode": False}
        try:
            code = super().main(*args, **options)
        except WsvoiceError as error:
            Output().failure(error)
            code = error.exit_code
        except _ClickError as error:
            Output().error(_usage_message(error), hint=_usage_hint(error))
            code = error.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _usage_message(error: Any) -> str:
    message = getattr(error, "message", "") if getattr(error, "possibilities", None) else error.format_message()
    text = " ".join(str(message).split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _usage_hint(error: Any) -> str | None:
    if not isinstance(error, _UsageError):
        return None
    context: Any = getattr(error, "ctx", None)
    lists = f"`{context.command_path if context else 'wsvoice'} --help` lists what there is"
    meant = getattr(error, "possibilities", None)
    return f"did you mean `{meant[0]}`? {lists}" if meant else lists


app = typer.Typer(
    cls=Commands,
    # typer's rich help takes twice as long as everything else together.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
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
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run telephone voice bots built on pipecat, and test them by calling them."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


app.command()(run)
app.command()(dial)
app.command()(init)


def main() -> None:
    """Run the command line of this process."""
    app()
