"""``wsvoice run``: put a bot on the telephone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.options import ADMISSION, CALLS, LIMITS, NETWORK, TRANSPORT, EnvFile, Param, Verbose, standard
from wsvoice.cli.output import Output
from wsvoice.config import (
    LOG_LEVELS,
    PLAIN_TRANSPORTS,
    START_KEY,
    RunConfig,
    StreamAuth,
    Verify,
    export_dotenv,
    resolve_run,
    without_secrets,
)

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.runner.server import Ready


def run(
    context: typer.Context,
    bot: Annotated[
        str | None,
        typer.Argument(
            metavar="BOT",
            help="file.py, file.py:function, package.module, or a folder." + standard(RunConfig, "bot"),
            show_default=False,
            autocompletion=completion.bots,
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            "-t",
            "--transport",
            metavar="NAME",
            help="The provider, such as twilio; or websocket, websocket-server, websocket-client."
            "  [default: every provider at once]",
            autocompletion=completion.transports,
            rich_help_panel=TRANSPORT,
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="The ws(s):// server that the bot dials with websocket-client.",
            rich_help_panel=TRANSPORT,
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", metavar="'NAME: VALUE'", help="A header for that server. Repeatable.", rich_help_panel=TRANSPORT
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "-x",
            "--proxy",
            metavar="DOMAIN",
            help="The public domain in front of this server.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    tunnel: Annotated[
        str | None,
        typer.Option(
            "--tunnel",
            metavar="ngrok",
            help="Open a tunnel to get a public address.",
            autocompletion=completion.one_of("ngrok"),
            rich_help_panel=NETWORK,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Listen here." + standard(RunConfig, "host"),
            autocompletion=completion.one_of("localhost", "0.0.0.0"),
            rich_help_panel=NETWORK,
        ),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(
            "--port",
            metavar="PORT",
            help="Listen on this port; 0 takes a free one." + standard(RunConfig, "port"),
            rich_help_panel=NETWORK,
        ),
    ] = None,
    max_calls: Annotated[
        str | None,
        typer.Option(
            "--max-calls",
            metavar="N",
            help="Turn callers away beyond N at once.  [default: no limit]",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    param: Param = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            metavar="auto|enforce|off",
            help="Check webhooks' signatures: where the provider's secret is set, always, or never."
            + standard(RunConfig, "verify"),
            autocompletion=completion.one_of(*get_args(Verify)),
            rich_help_panel=ADMISSION,
        ),
    ] = None,
    stream_auth: Annotated[
        str | None,
        typer.Option(
            "--stream-auth",
            metavar="token|none",
            help="What a stream needs on a public address." + standard(RunConfig, "stream_auth"),
            autocompletion=completion.one_of(*get_args(StreamAuth)),
            rich_help_panel=ADMISSION,
        ),
    ] = None,
    record: Annotated[
        str | None,
        typer.Option("--record", metavar="DIR", help="Record every call into this folder.", rich_help_panel=CALLS),
    ] = None,
    drain_timeout: Annotated[
        str | None,
        typer.Option(
            "--drain-timeout",
            metavar="TIME",
            help="How long running calls may go on once the server is asked to stop."
            + standard(RunConfig, "drain_timeout_s"),
            rich_help_panel=LIMITS,
        ),
    ] = None,
    env_file: EnvFile = None,
    log_level: Annotated[
        str | None,
        typer.Option(
            "--log-level",
            metavar="LEVEL",
            help="DEBUG, INFO, WARNING or ERROR." + standard(RunConfig, "log_level"),
            autocompletion=completion.one_of(*LOG_LEVELS),
        ),
    ] = None,
    verbose: Verbose = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Once it listens, print one JSON object: url, public_url, providers, pid."),
    ] = False,
    # For `wsvoice dial`, which prints the settings itself, and whose server's address nobody else needs.
    quiet: Annotated[bool, typer.Option("--quiet", hidden=True)] = False,
) -> None:
    """
    Put a bot on the telephone.

    Serves the provider's webhook and media WebSocket, and hands every call to the
    bot: `async def bot(runner_args)`. Ctrl-C lets running calls finish; a second
    one ends them.

    \b
    wsvoice run bot.py -t twilio -x bot.example.com
    wsvoice run my_bots.support:agent --tunnel ngrok --param language=en
    wsvoice run bot.py -t websocket
    wsvoice run bot.py -t websocket-client --url wss://example.com/stream

    An option may also be in the environment (WSVOICE_PORT=8000), in .env, or in
    pyproject.toml ([tool.wsvoice] port = 8000).
    """
    output = Output()
    resolved = resolve_run(context.params, environ=os.environ, cwd=Path.cwd())
    config = resolved.config
    if not quiet:
        output.warnings(resolved)
    if verbose:
        output.settings(resolved)
    export_dotenv(resolved.dotenv, os.environ)

    from wsvoice.bot_loading import find_bot, load_bot
    from wsvoice.runner.diagnosis import reporting_usage_errors
    from wsvoice.runner.logs import configure_logging, redirect_standard_logging

    # Before pipecat is imported, which takes a second, so that a misspelt name is reported at once.
    with reporting_usage_errors(config.causes):
        find_bot(config.bot)
    with output.progress(f"Loading {config.bot}"), reporting_usage_errors(config.causes):
        configure_logging(config.log_level)

        with uncollected():
            from wsvoice.runner.pipecat.patches import install
            from wsvoice.runner.server import serve

            # Before the bot is imported: it takes pipecat's create_transport by name.
            install(config.disabled_patches)
        loaded = load_bot(config.bot)
        # What is loaded by now stays, so garbage collections need not scan it.
        gc.freeze()
        redirect_standard_logging(config.log_level)

    def announce(ready: Ready) -> None:
        if as_json:
            output.data(
                {
                    "url": ready.url,
                    "public_url": ready.public_url,
                    "providers": list(ready.provider_names),
                    "pid": os.getpid(),
                }
            )
        if not quiet:
            show_banner(output, loaded, config, ready)

    if config.transport in ("websocket-server", "websocket-client"):
        from wsvoice.runner.standalone import run_alone

        run_alone(loaded, config, on_ready=announce)
    else:
        serve(loaded, config, on_ready=announce)


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without garbage collections, and exclude what was imported from later ones."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def show_banner(output: Output, bot: LoadedBot, config: RunConfig, ready: Ready) -> None:
    """Print where the bot can be reached, what to tell the provider, and who else could reach it."""
    if config.transport in PLAIN_TRANSPORTS:
        show_plain_banner(output, bot, config, ready)
        return
    from wsvoice.http import is_loopback
    from wsvoice.providers import PROVIDERS, load_server

    providers = [load_server(name, config.credentials) for name in ready.provider_names]
    local = ready.url.rstrip("/")
    public = ready.public_url.rstrip("/") if ready.public_url else None

    output.line(f"{bot.name} takes calls", style="bold")
    rows = [("listens on", f"{local}/{_everywhere(config.host)}")]
    for provider in providers:
        path = "/" if len(providers) == 1 else f"/{provider.name}"
        if not provider.has_webhook and len(providers) == 1:
            streams = f"{public or local}/ws/{provider.name}".replace("http", "ws", 1)
            rows.append((provider.title, f"dials {streams}"))
        elif public is not None:
            rows.append((provider.title, f"{provider.webhook_place}: {public}{path} (HTTP {provider.webhook_method})"))
    first = providers[0]
    path = "/" if len(providers) == 1 else f"/{first.name}"
    # A test call has to dial the public address, because that is what the provider signs.
    rows.append(("try it", f"wsvoice dial {public or local}{path} -t {first.name}"))
    output.fields(rows)
    if len(providers) == 1:
        output.block("\n".join(first.setup_lines(f"{public or local}/ws/{first.name}".replace("http", "ws", 1))))

    if public is None:
        if len(providers) > 1:
            paths = ", ".join(f"/{each.name}" for each in providers if each.has_webhook)
            output.note(f"every provider is served at its own path: {paths}")
            for provider in providers:
                if not provider.has_webhook:
                    output.note(f"{provider.title} is served too: -t {provider.name} says how to set it up")
        if not any(provider.has_webhook for provider in providers):
            return
        reach = "only test calls reach it"
        if not is_loopback(config.host):
            reach = "other machines in the network reach it, and no provider does"
        output.note(f"{reach}; a real number needs a public address: -x DOMAIN or --tunnel ngrok")
        return
    left_out = [] if config.transport else [name for name in PROVIDERS if name not in ready.provider_names]
    if left_out:
        output.note(f"not served because no secret is set for them: {', '.join(left_out)}")
    if config.verify == "off" and any(provider.has_webhook for provider in providers):
        output.warning("webhooks are not verified: anybody who finds the URL can start calls at your cost")
    else:
        for provider in providers:
            if not provider.signs and provider.has_webhook:
                output.warning(
                    f"{provider.title} signs nothing: anybody who finds its webhook's URL can start calls at your cost"
                )
    if config.stream_auth == "none":
        output.warning("streams need no token: anybody who finds the URL can talk to the bot at your cost")


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
        address = ready.url
        output.fields(
            [("listens on", address), ("try it", f"wsvoice run OTHER.py -t websocket-client --url {address}")]
        )
        if not is_loopback(config.host):
            output.warning("it asks for no token: anybody who reaches this port can talk to the bot at your cost")
        return
    local = ready.url.rstrip("/")
    address = local.replace("http", "ws", 1) + "/ws-client"
    rows = [("listens on", f"{local}/{_everywhere(config.host)}")]
    is_open = ready.public_url is None or config.stream_auth == "none"
    if ready.public_url is not None:
        public = ready.public_url.rstrip("/")
        stream = public.replace("http", "ws", 1) + "/ws-client"
        rows.append(("clients", stream if is_open else f"{stream}/TOKEN, with a token of POST {public}/start"))
    if is_open:
        rows += [("clients", address), ("try it", f"wsvoice run OTHER.py -t websocket-client --url {address}")]
    output.line(f"{bot.name} takes clients", style="bold")
    output.fields(rows)
    if ready.public_url is None:
        output.note("only clients on this machine reach it without a token; others need -x DOMAIN or --tunnel ngrok")
    elif config.stream_auth == "none":
        output.warning("clients need no token: anybody who finds the URL can talk to the bot at your cost")
    elif not config.credentials.get(START_KEY):
        output.warning(f"POST /start is closed: set {START_KEY}, and send it as `Authorization: Bearer …`")
