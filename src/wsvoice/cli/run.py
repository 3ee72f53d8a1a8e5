"""``wsvoice run``: put a bot on the telephone."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import ADMISSION, CALLS, LIMITS, NETWORK, TRANSPORT, EnvFile, Param, option
from wsvoice.cli.output import Output
from wsvoice.cli.signals import interrupted_by_signals, stop_at_end_of_input
from wsvoice.config import (
    LOG_LEVELS,
    PLAIN_TRANSPORTS,
    START_KEY,
    TUNNELS,
    RunConfig,
    StreamAuth,
    Verify,
    export_dotenv,
    resolve_run,
    without_secrets,
)

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.providers.base import Server
    from wsvoice.runner.server import Ready

DEFAULTS = RunConfig()


def run(
    context: typer.Context,
    bot: Annotated[
        str | None,
        typer.Argument(
            metavar="BOT",
            help=f"file.py, file.py:function, package.module, or a folder.  [default: {DEFAULTS.bot}]",
            show_default=False,
            autocompletion=completion.bots,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        option(
            "-t, --transport NAME",
            "The provider, such as twilio; or websocket, websocket-server, websocket-client."
            "  [default: every provider at once]",
            TRANSPORT,
            completion.transports,
        ),
    ] = None,
    url: Annotated[
        str | None, option("--url URL", "The ws(s):// server that the bot dials with websocket-client.", TRANSPORT)
    ] = None,
    header: Annotated[
        list[str] | None, option("--header 'NAME: VALUE'", "A header for that server. Repeatable.", TRANSPORT)
    ] = None,
    proxy: Annotated[
        str | None, option("-x, --proxy DOMAIN", "The public domain in front of this server.", NETWORK)
    ] = None,
    tunnel: Annotated[
        str | None,
        option(
            "--tunnel NAME|COMMAND",
            "Open a tunnel to get a public address: ngrok, cloudflared, or a command that takes the {port} and prints"
            " an https:// address.",
            NETWORK,
            completion.one_of(*TUNNELS),
        ),
    ] = None,
    tunnel_domain: Annotated[
        str | None, option("--tunnel-domain DOMAIN", "The domain that you have reserved at ngrok.", NETWORK)
    ] = None,
    number: Annotated[
        str | None,
        option(
            "--number NUMBER",
            "Have this phone number, such as +15551234567, ring here until the server stops. Needs -t, and -x or"
            " --tunnel.",
            NETWORK,
        ),
    ] = None,
    host: Annotated[
        str | None,
        option(
            "--host ADDRESS",
            f"Listen here.  [default: {DEFAULTS.host}]",
            NETWORK,
            completion.one_of("localhost", "0.0.0.0"),
        ),
    ] = None,
    port: Annotated[
        str | None,
        option("--port PORT", f"Listen on this port; 0 takes a free one.  [default: {DEFAULTS.port}]", NETWORK),
    ] = None,
    max_calls: Annotated[
        str | None, option("--max-calls N", "Turn callers away beyond N at once.  [default: no limit]", LIMITS)
    ] = None,
    max_lag: Annotated[
        str | None,
        option(
            "--max-lag TIME",
            "Turn callers away while the event loop is later than that; 0 never does."
            f"  [default: {DEFAULTS.max_lag_s:g}s]",
            LIMITS,
        ),
    ] = None,
    param: Param = None,
    verify: Annotated[
        str | None,
        option(
            "--verify auto|enforce|off",
            "Check webhooks' signatures: where the provider's secret is set, always, or never."
            f"  [default: {DEFAULTS.verify}]",
            ADMISSION,
            completion.one_of(*get_args(Verify)),
        ),
    ] = None,
    stream_auth: Annotated[
        str | None,
        option(
            "--stream-auth token|none",
            f"What a stream needs on a public address.  [default: {DEFAULTS.stream_auth}]",
            ADMISSION,
            completion.one_of(*get_args(StreamAuth)),
        ),
    ] = None,
    record: Annotated[str | None, option("--record DIR", "Record every call into this folder.", CALLS)] = None,
    drain_timeout: Annotated[
        str | None,
        option(
            "--drain-timeout TIME",
            "How long running calls may go on once the server is asked to stop."
            f"  [default: {DEFAULTS.drain_timeout_s:g}s]",
            LIMITS,
        ),
    ] = None,
    env_file: EnvFile = None,
    log_level: Annotated[
        str | None,
        option(
            "--log-level LEVEL",
            f"DEBUG, INFO, WARNING or ERROR.  [default: {DEFAULTS.log_level}]",
            complete=completion.one_of(*LOG_LEVELS),
        ),
    ] = None,
    verbose: Annotated[bool, option("-v, --verbose", "Print every setting and where it comes from.")] = False,
    as_json: Annotated[
        bool,
        option(
            "--json",
            "Once it listens, print one JSON object: url, public_url, providers, pid; with --number also number. A"
            " tunnel that gets another address prints another one.",
        ),
    ] = False,
    # For `wsvoice dial`, which prints the settings itself, and whose server's address nobody else needs; and without
    # which the server has nothing to do.
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
    until_eof: Annotated[bool, typer.Option("--until-eof", hidden=True)] = False,
) -> None:
    """
    Put a bot on the telephone.

    Serves the provider's webhook and media WebSocket, and hands every call to the
    bot: `async def bot(runner_args)`. Ctrl-C lets running calls finish; a second
    one ends them.

    \b
    wsvoice run bot.py -t twilio -x bot.example.com
    wsvoice run bot.py -t twilio --tunnel ngrok --number +15551234567
    wsvoice run my_bots.support:agent --tunnel ngrok --param language=en
    wsvoice run bot.py -t websocket
    wsvoice run bot.py -t websocket-client --url wss://example.com/stream

    An option may also be in the environment (WSVOICE_PORT=8000), in .env, or in
    pyproject.toml ([tool.wsvoice] port = 8000).
    """
    if until_eof:
        stop_at_end_of_input()
    output = Output()
    resolved = resolve_run(context.params, environ=os.environ, cwd=Path.cwd())
    config = resolved.config
    if not quiet:
        output.warnings(resolved)
    if verbose:
        output.settings(resolved)
    export_dotenv(resolved.dotenv, os.environ)

    from wsvoice.bot_loading import find_bot, load_bot
    from wsvoice.runner.diagnosis import reporting_failures
    from wsvoice.runner.logs import configure_logging, redirect_standard_logging

    # Before pipecat is imported, which takes a second, so that a misspelt name is reported at once.
    with reporting_failures(config.causes):
        find_bot(config.bot)
    with output.progress(f"Loading {config.bot}"), reporting_failures(config.causes):
        configure_logging(config.log_level)

        # A garbage collection would scan everything that has been imported.
        gc.disable()
        try:
            from wsvoice.runner.pipecat.patches import install
            from wsvoice.runner.server import serve

            # Before the bot is imported: it takes pipecat's create_transport by name.
            install(config.disabled_patches)
        finally:
            gc.freeze()
            gc.enable()
        loaded = load_bot(config.bot)
        gc.freeze()
        redirect_standard_logging(config.log_level)

    announced: list[Ready] = []

    def announce(ready: Ready) -> None:
        if as_json:
            addresses = {"url": ready.url, "public_url": ready.public_url}
            number = {"number": ready.number.number} if ready.number is not None else {}
            output.data({**addresses, "providers": list(ready.provider_names), "pid": os.getpid(), **number})
        if announced and not quiet:
            show_new_address(output, config, ready)
        elif not quiet:
            show_banner(output, loaded, config, ready)
        announced.append(ready)

    if config.transport in ("websocket-server", "websocket-client"):
        from wsvoice.runner.standalone import run_alone

        run_alone(loaded, config, on_ready=announce)
    else:
        # What holds a tunnel open has a session of its own, and would outlive this process.
        handling = interrupted_by_signals() if config.tunnel else nullcontext()
        with handling, reporting_failures(config.causes):
            serve(loaded, config, on_ready=announce)


def show_banner(output: Output, bot: LoadedBot, config: RunConfig, ready: Ready) -> None:
    """Print where the bot can be reached, what to tell the provider, and who else could reach it."""
    if config.transport in PLAIN_TRANSPORTS:
        show_plain_banner(output, bot, config, ready)
        return
    from wsvoice.http import is_loopback
    from wsvoice.providers import PROVIDERS

    providers = _providers(config, ready)
    called = [each for each in providers if each.has_webhook]
    first, *others = providers
    local, public = ready.url.rstrip("/"), (ready.public_url or "").rstrip("/")
    # A test call has to dial the public address, because that is what the provider signs.
    base = public or local
    stream = _websocket(f"{base}/ws/{first.name}")

    output.line(f"{bot.name} takes calls", style="bold")
    rows = [("listens on", f"{local}/{_everywhere(config.host)}"), *_addresses(providers, base, is_public=bool(public))]
    rows.append(("try it", f"wsvoice dial {base}/{first.name if others else ''} -t {first.name}"))
    if ready.number is not None:
        rows.insert(
            -1, (ready.number.number, f"rings here; was: {without_secrets(ready.number.points_at) or 'nowhere'}")
        )
    output.fields(rows)
    if not others:
        output.block("\n".join(first.setup_lines(stream)))
    for text in ready.notes:
        output.warning(text)
    if ready.number_steps:
        output.line(f"To have {config.number} ring here, set it up at {first.title} by hand:")
        output.block("\n".join(f"  {line}" for line in ready.number_steps))

    if not public:
        if others:
            paths = ", ".join(f"/{each.name}" for each in called)
            output.note(f"every provider is served at its own path: {paths}")
            for each in providers:
                if not each.has_webhook:
                    output.note(f"{each.title} is served too: -t {each.name} says how to set it up")
        if called:
            reach = "other machines in the network reach it, and no provider does"
            if is_loopback(config.host):
                reach = "only test calls reach it"
            output.note(f"{reach}; a real number needs a public address: -x DOMAIN or --tunnel ngrok")
        elif _everywhere(config.host):
            what = "this machine's name in place of localhost in its uri, and a password"
            output.note(f"on another machine, {first.title} needs {what} ({first.credential_names[0]})")
        return
    left_out = [] if config.transport else [name for name in PROVIDERS if name not in ready.provider_names]
    if left_out:
        output.note(f"not served because no secret is set for them: {', '.join(left_out)}")
    if config.verify == "off" and called:
        output.warning("webhooks are not verified: anybody who finds the URL can start calls at your cost")
    else:
        for each in called:
            if not each.signs:
                output.warning(
                    f"{each.title} signs nothing: anybody who finds its webhook's URL can start calls at your cost"
                )
    if config.stream_auth == "none":
        output.warning("streams need no token: anybody who finds the URL can talk to the bot at your cost")


def show_new_address(output: Output, config: RunConfig, ready: Ready) -> None:
    """Print where the bot can be reached now that its tunnel has another address."""
    public = (ready.public_url or "").rstrip("/")
    rows = [("clients", f"{_websocket(public)}/ws-client")]
    if config.transport not in PLAIN_TRANSPORTS:
        rows = _addresses(_providers(config, ready), public, is_public=True)
    output.line("the public address is another one now", style="bold")
    output.fields(rows)


def _providers(config: RunConfig, ready: Ready) -> list[Server]:
    from wsvoice.providers import load_server

    return [load_server(name, config.credentials) for name in ready.provider_names]


def _addresses(providers: Sequence[Server], base: str, *, is_public: bool) -> list[tuple[str, str]]:
    """Return what each provider has to be told, by its title; it is told nothing but a public webhook."""
    rows = []
    for each in providers:
        if not each.has_webhook and len(providers) == 1:
            rows.append((each.title, f"dials {_websocket(base)}/ws/{each.name}"))
        elif is_public:
            path = f"/{each.name}" if len(providers) > 1 else "/"
            rows.append((each.title, f"{each.webhook_place}: {base}{path} (HTTP {each.webhook_method})"))
    return rows


def _websocket(url: str) -> str:
    return url.replace("http", "ws", 1)


def _everywhere(host: str) -> str:
    """Return what to add to a URL on this machine, if the server listens to every network."""
    return ", and on every other address of this machine" if host in ("0.0.0.0", "::") else ""


def show_plain_banner(output: Output, bot: LoadedBot, config: RunConfig, ready: Ready) -> None:
    """Print where clients connect to the bot, or what it dials, and who else could."""
    if config.transport == "websocket-client":
        output.line(f"{bot.name} dials {without_secrets(ready.url)}", style="bold")
        return
    if config.transport == "websocket-server":
        from wsvoice.http import is_loopback

        output.line(f"{bot.name} serves one client at a time", style="bold")
        try_it = f"wsvoice run OTHER.py -t websocket-client --url {ready.url}"
        output.fields([("listens on", ready.url), ("try it", try_it)])
        if not is_loopback(config.host):
            output.warning("it asks for no token: anybody who reaches this port can talk to the bot at your cost")
        return
    local = ready.url.rstrip("/")
    rows = [("listens on", f"{local}/{_everywhere(config.host)}")]
    is_open = ready.public_url is None or config.stream_auth == "none"
    if ready.public_url is not None:
        public = ready.public_url.rstrip("/")
        stream = _websocket(f"{public}/ws-client")
        rows.append(("clients", stream if is_open else f"{stream}/TOKEN, with a token of POST {public}/start"))
    if is_open:
        address = _websocket(f"{local}/ws-client")
        rows += [("clients", address), ("try it", f"wsvoice run OTHER.py -t websocket-client --url {address}")]
    output.line(f"{bot.name} takes clients", style="bold")
    output.fields(rows)
    if ready.public_url is None:
        output.note("only clients on this machine reach it without a token; others need -x DOMAIN or --tunnel ngrok")
    elif config.stream_auth == "none":
        output.warning("clients need no token: anybody who finds the URL can talk to the bot at your cost")
    elif not config.credentials.get(START_KEY):
        output.warning(f"POST /start is closed: set {START_KEY}, and send it as `Authorization: Bearer …`")
