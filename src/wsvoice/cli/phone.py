"""``wsvoice phone``: call a bot from your browser; and the same page beside a server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Any, Self, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import (
    CALLS,
    LIMITS,
    NETWORK,
    AllowPrivate,
    EnvFile,
    ForceWs,
    Param,
    Quirk,
    ToNumber,
    Verbose,
    WebhookMethod,
    option,
)
from wsvoice.cli.output import Output
from wsvoice.cli.signals import stop_at_end_of_input
from wsvoice.config import (
    PLAIN_TRANSPORTS,
    DialConfig,
    Redact,
    Resolved,
    RunConfig,
    make_private,
    parse_port,
    resolve_dial,
    write_private,
)
from wsvoice.config.state import STATE_VARIABLE
from wsvoice.errors import ConfigError, ServerError

DEFAULTS = DialConfig()


def phone(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="TARGET",
            help="Whom to call, as `wsvoice dial`: a bot, a webhook's URL, or a stream's.  [default: the page asks]",
            show_default=False,
            autocompletion=completion.bots,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        option(
            "-t, --transport NAME",
            f"The provider to play at first; the page has all.  [default: {DEFAULTS.transport}]",
            CALLS,
            completion.providers,
        ),
    ] = None,
    from_: Annotated[
        str | None, option("--from NUMBER", f"Who calls.  [default: {DEFAULTS.from_number}]", CALLS)
    ] = None,
    to: ToNumber = None,
    param: Param = None,
    method: WebhookMethod = None,
    force_ws: ForceWs = None,
    allow_private: AllowPrivate = None,
    redact: Annotated[
        str | None,
        option(
            "--redact WHAT",
            "What a call's page leaves out beside secrets: callers (numbers, parameters), or digits (that, and keys).",
            CALLS,
            completion.one_of(*get_args(Redact)),
        ),
    ] = None,
    quirk: Quirk = None,
    duration: Annotated[
        str | None, option("--duration TIME", "Hang up after so long.  [default: an hour]", LIMITS)
    ] = None,
    port: Annotated[
        str | None,
        option("--port PORT", "Serve the page on this port of this machine.  [default: a free one]", NETWORK),
    ] = None,
    no_open: Annotated[bool, option("--no-open", "Print the page's address, and open nothing.", NETWORK)] = False,
    env_file: EnvFile = None,
    verbose: Verbose = False,
    as_json: Annotated[bool, option("--json", "Once it is served, print one JSON object: url, pid.")] = False,
    # For `wsvoice run --phone`, whose server has a webhook for each provider.
    by_path: Annotated[str | None, typer.Option("--by-path", hidden=True)] = None,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
) -> None:
    """
    Call a bot from your browser, with your own voice.

    Opens a page that is a telephone: dial, talk, press keys, hang up. Your voice
    goes through the same simulated provider as in `wsvoice dial`, with its webhook,
    signature, encoding and pace. When the call has ended, the page shows it as
    `wsvoice show` does, and keeps it as a test.

    \b
    wsvoice phone bot.py                          serve the bot for each call
    wsvoice phone                                 the page asks whom to call
    wsvoice phone http://localhost:7860/ -t telnyx
    wsvoice run bot.py --phone                    the same page beside a server

    Only this machine reaches the page, and only with the token in its address.
    It has the settings of `wsvoice dial`, [tool.wsvoice.dial] included.
    """
    output = Output()
    if until_eof:
        stop_at_end_of_input()
    given = {name: value for name, value in context.params.items() if name not in _OWN}
    if quirk == ["list"]:
        from wsvoice.cli.dial import list_quirks

        list_quirks(output, given)
        return
    resolved = resolve_dial(given, environ=os.environ, cwd=Path.cwd())
    output.warnings(resolved)
    if verbose:
        output.settings(resolved)
    if env_file is not None:
        os.environ["WSVOICE_ENV_FILE"] = str(resolved.env_file)
    listens_at = 0 if port is None else parse_port(port, "--port")
    from wsvoice.browser_phone.server import PhoneSettings, serve
    from wsvoice.dial.quirks import read_behaviour
    from wsvoice.dial.target import parse_target
    from wsvoice.providers import PROVIDERS, load_simulator

    parse_target(resolved.config.target)
    # What the page begins with is refused here, and not at the first call.
    read_behaviour(load_simulator(resolved.config.transport, resolved.config.credentials, resolved.config.quirks))

    def resolve(flags: Mapping[str, Any]) -> DialConfig:
        named = {"quirk": None} if flags.get("transport") not in (None, resolved.config.transport) else {}
        again = resolve_dial({**given, **named, **flags}, environ=os.environ, cwd=Path.cwd()).config
        return _of_a_person(again)

    settings = PhoneSettings(
        resolve,
        _of_a_person(resolved.config),
        asks_target=target is None and by_path is None,
        by_path=by_path is not None,
        providers=tuple(by_path.split(",")) if by_path else tuple(PROVIDERS),
        folder=Path.cwd(),
    )
    with _kept_calls() as kept, _opening(output, opens=not (no_open or as_json), as_json=as_json) as show:
        serve(settings, listens_at, kept, show)
    if not (as_json or until_eof):
        output.over("the phone is put down")


#: What is the page's own, and no option of `wsvoice dial`.
_OWN = ("port", "no_open", "as_json", "by_path", "until_eof")


def _of_a_person(config: DialConfig) -> DialConfig:
    """Return how a call is placed whose caller is a person, whatever the project's test calls do."""
    return replace(
        config,
        audio=(),
        say=(),
        dtmf="",
        caller=None,
        probe=False,
        calls=None,
        find_knee=False,
        record=None,
        trace=None,
    )


@contextmanager
def _kept_calls() -> Iterator[Path]:
    """Give a folder for the calls of this phone, which goes with it; those of phones that were killed go at once."""
    from wsvoice.cli.show import state_part
    from wsvoice.phone.claims import Claim, ClaimedError

    phones = state_part("phones", os.environ)
    try:
        for lock in phones.glob("*.lock"):
            # That of a phone that lives is locked.
            with suppress(ClaimedError):
                stray = Claim(lock, {})
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                stray.release()
        folder = phones / f"{os.getpid()}-{os.urandom(4).hex()}"
        claim = Claim(folder.with_suffix(".lock"), {"pid": os.getpid()})
        make_private(folder)
    except OSError as error:
        raise ServerError(
            f"{phones} cannot be used: {error.strerror or error}", hint=f"name another: {STATE_VARIABLE}"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        claim.release()


@contextmanager
def _opening(output: Output, *, opens: bool, as_json: bool) -> Iterator[Callable[[str], None]]:
    """Give what shows the page's address, and opens it where there is a browser."""
    from wsvoice.cli.show import has_browser, pages_folder

    door: Path | None = None

    def show(url: str) -> None:
        nonlocal door
        if as_json:
            output.data({"url": url, "pid": os.getpid()})
            return
        output.line(url, label="phone: ", label_style="bold")
        output.note("only this machine reaches it, and only with that address; Ctrl-C ends it")
        if not opens or not has_browser(os.environ):
            return
        # By way of a file of the user's own: every user of the machine sees the command line of a browser.
        door = pages_folder(os.environ) / f"phone-{os.getpid()}.html"
        write_private(door, _DOOR.format(url=url))
        # In a thread, because a browser of the terminal lasts as long as it is open.
        threading.Thread(target=_open, args=(door.as_uri(), output), name="wsvoice-browser", daemon=True).start()

    try:
        yield show
    finally:
        if door is not None:
            door.unlink(missing_ok=True)


def _open(url: str, output: Output) -> None:
    import webbrowser

    if not webbrowser.open(url):
        output.warning("no browser could be opened")


_DOOR = (
    '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer"><title>wsvoice phone</title>'
    '<meta http-equiv="refresh" content="0; url={url}"><a href="{url}">wsvoice phone</a>\n'
)


class PhoneBeside:
    """
    The phone of a server while the context lasts, in a process of its own: what it does takes no time from its calls.

    It ends with this process, however that ends.

    Args:
        output: Where its address is printed.
        env_file: The ``.env`` that the server was told to read, or ``None``.
    """

    def __init__(self, output: Output, env_file: Path | None) -> None:
        self._output = output
        self._env_file = env_file
        self._process: subprocess.Popen[str] | None = None

    @classmethod
    def of(cls, context: typer.Context, resolved: Resolved[RunConfig], output: Output) -> PhoneBeside | None:
        """
        Return the phone that ``wsvoice run`` was asked for, or ``None``.

        Raises:
            ConfigError: If its bot takes no telephone calls.
        """
        if not context.params["with_phone"]:
            return None
        if resolved.config.transport in PLAIN_TRANSPORTS:
            raise ConfigError(f"--phone has no meaning for -t {resolved.config.transport}", hint="leave --phone out")
        return cls(output, resolved.env_file if context.params["env_file"] is not None else None)

    def start(self, url: str, providers: Sequence[str]) -> None:
        """
        Start it, unless it runs, and print its address once it is served.

        Args:
            url: The server on this machine.
            providers: Those that it serves.
        """
        if self._process is not None:
            return
        command = [sys.executable, "-m", "wsvoice", "phone", url, "-t", providers[0], "--json", "--until-eof"]
        command += ["--by-path", ",".join(providers)] if len(providers) > 1 else []
        command += ["--env-file", str(self._env_file)] if self._env_file is not None else []
        # A session of its own, because Ctrl-C is for the server: its running calls may finish.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        threading.Thread(target=self._show, args=(self._process.stdout,), name="wsvoice-phone", daemon=True).start()

    def _show(self, said: IO[str]) -> None:
        # Nothing, if it did not start: then it has said why.
        import json

        if line := said.readline():
            self._output.line(json.loads(line)["url"], label="phone: ", label_style="bold")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End it; its calls are hung up."""
        if self._process is None or self._process.stdin is None:
            return
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


#: How long a phone may take to end its calls, in seconds.
_CLOSE_TIMEOUT_S = 8.0
