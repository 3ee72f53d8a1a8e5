"""``wsvoice calls``: the calls that run on this machine, and ending one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsvoice.cli import completion
from wsvoice.cli.help import Command, Group
from wsvoice.cli.options import EnvFile, option
from wsvoice.cli.output import Output
from wsvoice.cli.signals import interrupted_by_signals
from wsvoice.config import resolve_account
from wsvoice.errors import ControlError, UsageError

if TYPE_CHECKING:
    from wsvoice.phone.runs import RunningServer
    from wsvoice.runner.figures import Snapshot

#: How often a server tells of its calls to who watches, in seconds.
WATCH_EVERY_S = 0.5
#: How soon the first answers are looked for again, in seconds.
FIRST_LOOK_S = 0.02

WhichServer = Annotated[
    str | None,
    option("--server PID|URL", "Only this server: its process, port or address.  [default: all of yours]"),
]


class Calls(Group):
    """The group of commands about running calls."""

    def meant(self, args: Sequence[str]) -> str | None:
        """Return a hint that names the command that was probably meant."""
        return super().meant(args) or f"did you mean `wsvoice calls end {args[0]}`?"


calls = typer.Typer(cls=Calls, rich_markup_mode=None)


@calls.callback(invoke_without_command=True)
def list_calls(
    context: typer.Context,
    server: WhichServer = None,
    watch: Annotated[bool, option("--watch", "Show them until Ctrl-C, on the whole screen.")] = False,
    env_file: EnvFile = None,
    as_json: Annotated[
        bool, option("--json", "Print one JSON object on stdout; with --watch one after the other.")
    ] = False,
) -> None:
    """
    List the calls that run on this machine: of every `wsvoice run` of yours.

    \b
    wsvoice calls
    wsvoice calls --watch
    wsvoice calls end CA5ef873
    """
    if context.invoked_subcommand is not None:
        if server is not None or watch or as_json or env_file is not None:
            raise UsageError(
                f"options go behind the command: `wsvoice calls {context.invoked_subcommand} …`",
                hint=f"`wsvoice calls {context.invoked_subcommand} --help` lists them",
            )
        return
    output = Output()
    servers = _servers(context, output, server)
    if watch:
        _watch(servers, output, as_json=as_json)
        return
    found = [snapshot for _, snapshot in _ask_all(servers, output)]
    if as_json:
        output.data(_as_data(found))
        return
    from wsvoice.cli.live_view import server_lines, snapshot_lines

    for number, each in enumerate(found):
        if number:
            output.line()
        width = output.width
        for line in (*server_lines(each.server, width), *snapshot_lines(each, width)):
            output.drawn(line)


@calls.command("end", cls=Command)
def end(
    context: typer.Context,
    call_id: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="The call's id, its beginning, or its short form in the log.",
            autocompletion=completion.running_calls,
        ),
    ],
    server: WhichServer = None,
    env_file: EnvFile = None,
    as_json: Annotated[bool, option("--json", "Print one JSON object on stdout: call_id, ended, pid.")] = False,
) -> None:
    """
    End a running call as if its bot had: what it says is played to the end.

    `wsvoice hangup` ends a call through its provider instead, on any machine.

    \b
    wsvoice calls end CA5ef8732a3c49700934481addd5ce1659
    wsvoice calls end CA5ef8
    """
    output = Output()
    call_id = call_id.strip()
    if not call_id:
        raise UsageError("ID is empty", hint="`wsvoice calls` lists the calls with their ids")
    servers = _servers(context, output, server)
    from wsvoice.phone.control import ask
    from wsvoice.runner.figures import matching_ids

    owners = {each.id: one for one, found in _ask_all(servers, output) for each in found.calls}
    meant = matching_ids(owners, call_id)
    if len(meant) > 1:
        shown = ", ".join(meant[:5]) + (", …" if len(meant) > 5 else "")
        raise UsageError(f"{call_id} may be {len(meant)} calls", hint=f"give more of its id: {shown}")
    if not meant:
        raise ControlError(f"no call {call_id} runs here", hint="`wsvoice calls` lists the calls with their ids")
    (found_id,) = meant
    owner = owners[found_id]
    ended = bool(ask(owner, {"do": "end", "id": found_id}).get("ended"))
    if as_json:
        output.data({"call_id": found_id, "ended": ended, "pid": owner.pid})
    else:
        output.line(f"{found_id} ends" if ended else f"{found_id} had ended already", style="bold green")


def _servers(context: typer.Context, output: Output, wanted: str | None) -> list[RunningServer]:
    from wsvoice.phone.control import find_servers
    from wsvoice.phone.runs import running_servers

    config = resolve_account(context.params, environ=os.environ, cwd=Path.cwd())
    for text in config.warnings:
        output.warning(text)
    return find_servers(running_servers(config.state_folder), wanted)


def _ask_all(servers: Sequence[RunningServer], output: Output) -> list[tuple[RunningServer, Snapshot]]:
    """
    Return what each server tells; one that cannot be asked is warned of.

    Raises:
        ControlError: If none of them can be asked.
        UsageError: If none of them runs any more.
    """
    from wsvoice.phone.control import GoneError, ask, find_servers
    from wsvoice.runner.figures import read_snapshot

    told: list[tuple[RunningServer, Snapshot]] = []
    failures: list[ControlError] = []
    for server in servers:
        try:
            told.append((server, read_snapshot(ask(server, {"do": "calls"}))))
        except GoneError:
            continue  # It was killed, or has ended this moment.
        except ValueError as error:
            failures.append(ControlError(f"the server at {server.url} has another version: {error}"))
        except ControlError as error:
            failures.append(error)
    if not told:
        if failures:
            raise failures[0]
        find_servers([], None)
    for each in failures:
        output.warning(each.message)
    return told


def _as_data(found: Sequence[Snapshot]) -> dict[str, Any]:
    from wsvoice.runner.figures import as_object

    servers = [{"server": as_object(each.server), "calls": [as_object(call) for call in each.calls]} for each in found]
    return {"servers": servers}


def _watch(servers: Sequence[RunningServer], output: Output, *, as_json: bool) -> None:
    """Show the calls until Ctrl-C, or until the last of these servers has ended."""
    if not as_json and not output.can_draw:
        raise UsageError("--watch draws on a terminal, and this is none", hint="add --json, or leave --watch out")
    with _watched(servers) as latest, interrupted_by_signals():
        if as_json:
            while (found := latest()) is not None:
                if found:
                    output.data(_as_data(found))
                time.sleep(WATCH_EVERY_S if found else FIRST_LOOK_S)
            return
        has_ended = _draw(latest, output)
    if has_ended:
        output.line("every server that was watched has ended")


def _draw(latest: Callable[[], Sequence[Snapshot] | None], output: Output) -> bool:
    """Draw the latest until Ctrl-C, or until there is nothing more to draw; return whether that was the reason."""
    over = threading.Event()
    last: Sequence[Snapshot] = []

    def look() -> tuple[Sequence[Snapshot], None, str]:
        nonlocal last
        found = latest()
        if found is None:
            over.set()
        else:
            last = found
        return last, None, "Ctrl-C leaves; `wsvoice calls end ID` ends a call"

    view = output.live_view(look)
    try:
        view.start()
        over.wait()
    except KeyboardInterrupt:
        return False
    finally:
        view.stop()
    return True


@contextmanager
def _watched(servers: Sequence[RunningServer]) -> Iterator[Callable[[], list[Snapshot] | None]]:
    """Listen to each server in a thread of its own; give what returns the latest, or ``None`` once all have ended."""
    from wsvoice.phone.control import watching
    from wsvoice.runner.figures import read_snapshot

    latest: dict[str, Snapshot] = {}
    listening = {each.control for each in servers}

    def listen(server: RunningServer) -> None:
        try:
            with watching(server, WATCH_EVERY_S) as answers:
                for answer in answers:
                    latest[server.control] = read_snapshot(answer)
        except (ControlError, ValueError):
            latest.pop(server.control, None)
        finally:
            listening.discard(server.control)

    threads = [threading.Thread(target=listen, args=(each,), daemon=True) for each in servers]
    for each in threads:
        each.start()

    def read() -> list[Snapshot] | None:
        if not listening:
            return None
        return [latest[each.control] for each in servers if each.control in latest]

    yield read
