"""``wsvoice run``: put a bot on the telephone."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from wsvoice.cli import completion
from wsvoice.cli.live_run import LiveRun
from wsvoice.cli.options import ADMISSION, CALLS, LIMITS, NETWORK, TRANSPORT, WATCHING, EnvFile, Param, Verbose, option
from wsvoice.cli.output import Output
from wsvoice.cli.phone import PhoneBeside
from wsvoice.cli.signals import interrupted_by_signals, put_off_reloads, stop_at_end_of_input
from wsvoice.config import (
    CALLS_PER_WORKER,
    LOG_FORMATS,
    LOG_LEVELS,
    PLAIN_TRANSPORTS,
    START_KEY,
    TUNNELS,
    Redact,
    Resolved,
    RunConfig,
    StreamAuth,
    Verify,
    export_dotenv,
    resolve_run,
    without_secrets,
)
from wsvoice.errors import ConfigError, PortInUseError, WsvoiceError

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.providers.base import Server
    from wsvoice.runner.launch import Launch
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
    workers: Annotated[
        str | None,
        option(
            "--workers N|auto",
            "Run the bot in N processes, or in one for each processor; 0 is this process alone.  [default: 0]",
            LIMITS,
            completion.one_of("auto"),
        ),
    ] = None,
    max_calls: Annotated[
        str | None,
        option(
            "--max-calls N",
            "Turn callers away beyond N at once; 0 never does."
            f"  [default: {CALLS_PER_WORKER} for each worker process; one process without workers]",
            LIMITS,
        ),
    ] = None,
    max_calls_per_number: Annotated[
        str | None,
        option("--max-calls-per-number N", "Turn a number away that has N calls already.  [default: no limit]", LIMITS),
    ] = None,
    max_calls_per_hour: Annotated[
        str | None,
        option(
            "--max-calls-per-hour N",
            "Turn a number away that has called N times within the last hour.  [default: no limit]",
            LIMITS,
        ),
    ] = None,
    max_minutes_per_day: Annotated[
        str | None,
        option(
            "--max-minutes-per-day N",
            "Take no new calls once all calls of the day, in UTC, have lasted N minutes.  [default: no limit]",
            LIMITS,
        ),
    ] = None,
    max_call_time: Annotated[
        str | None,
        option("--max-call-time TIME", "End a call that lasts longer than that.  [default: no limit]", LIMITS),
    ] = None,
    busy_message: Annotated[
        str | None,
        option(
            "--busy-message FILE.wav|TEXT",
            "What callers hear who are turned away; the call is answered for it.  [default: the provider's own busy]",
            LIMITS,
        ),
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
    metrics_port: Annotated[
        str | None,
        option(
            "--metrics-port PORT",
            "Serve /metrics for Prometheus on this port; 0 takes a free one.  [default: none]",
            WATCHING,
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        option(
            "--metrics-host ADDRESS",
            f"Serve /metrics here.  [default: {DEFAULTS.metrics_host}]",
            WATCHING,
            completion.one_of("localhost", "0.0.0.0"),
        ),
    ] = None,
    reload: Annotated[
        bool | None,
        option("--reload", "Give new calls the new code when the bot's changes; running ones keep the old.", CALLS),
    ] = None,
    record: Annotated[str | None, option("--record DIR", "Record every call into this folder.", CALLS)] = None,
    trace: Annotated[
        str | None,
        option("--trace DIR", "Keep a trace of every call in this folder: messages, sound, timeline and log.", CALLS),
    ] = None,
    redact: Annotated[
        str | None,
        option(
            "--redact WHAT",
            "What traces leave out beside secrets: callers (numbers, parameters), or digits (that, and keys).",
            CALLS,
            completion.one_of(*get_args(Redact)),
        ),
    ] = None,
    drain_timeout: Annotated[
        str | None,
        option(
            "--drain-timeout TIME",
            "How long running calls may go on once the server is asked to stop."
            f"  [default: {DEFAULTS.drain_timeout_s:g}s]",
            LIMITS,
        ),
    ] = None,
    drain_linger: Annotated[
        str | None,
        option(
            "--drain-linger TIME",
            "How long new calls are still taken before that, while /readyz says no already: as long as a load balancer"
            f" takes to notice.  [default: {DEFAULTS.drain_linger_s:g}s]",
            LIMITS,
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        option(
            "--redis URL",
            "Share with other servers what was used and seen: redis://HOST:PORT. Needs WSVOICE_STREAM_SECRET.",
            ADMISSION,
        ),
    ] = None,
    env_file: EnvFile = None,
    log_level: Annotated[
        str | None,
        option(
            "--log-level LEVEL",
            f"DEBUG, INFO, WARNING or ERROR.  [default: {DEFAULTS.log_level}]",
            WATCHING,
            completion.one_of(*LOG_LEVELS),
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        option(
            "--log-format text|json",
            f"Log lines for people, or JSON objects for machines.  [default: {DEFAULTS.log_format}]",
            WATCHING,
            completion.one_of(*LOG_FORMATS),
        ),
    ] = None,
    check: Annotated[
        bool,
        option("--check", "Load the bot and check the settings, then stop: it listens nowhere, and asks nobody."),
    ] = False,
    live: Annotated[
        bool | None,
        option("--live", "On a terminal, show the running calls, and below them the last lines of the log.", WATCHING),
    ] = None,
    with_phone: Annotated[
        bool, option("--phone", "Serve a page beside it with which you call this bot, as `wsvoice phone`.", WATCHING)
    ] = False,
    verbose: Verbose = False,
    as_json: Annotated[
        bool,
        option(
            "--json",
            "Once it listens, print one JSON object: url, public_url, providers, pid; with --number also number, with"
            " --metrics-port metrics_url. A tunnel that gets another address prints another one. With --check: ok, bot,"
            " transport, providers, public_url, error, hint.",
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
    from wsvoice.runner.launch import Launch

    if until_eof:
        stop_at_end_of_input()
    if check:
        check_only(context, Output(), as_json=as_json, verbose=verbose)
        return
    # Before all else: neither settings nor bots are to see what was handed over to this process.
    launch = Launch.of(os.environ)
    with launch.reporting_failures():
        _run(context, launch, verbose=verbose, as_json=as_json, quiet=quiet, until_eof=until_eof)


def _run(context: typer.Context, launch: Launch, *, verbose: bool, as_json: bool, quiet: bool, until_eof: bool) -> None:
    """Read the settings, load the bot and serve it."""
    output = Output()
    resolved = resolve_run(context.params, environ=os.environ, cwd=Path.cwd())
    config = _with_address(resolved.config, launch)
    phone = PhoneBeside.of(context, resolved, output)
    if config.worker_count:
        put_off_reloads()
    if not quiet:
        output.warnings(resolved)
        warn_of_what_has_no_effect(output, resolved)
    if verbose:
        output.settings(resolved)
    given = dict(os.environ)
    export_dotenv(resolved.dotenv, os.environ)

    find(config)
    # Workers load it themselves.
    loaded = None if config.worker_count else load(config, output)
    announced: list[Ready] = []
    view = LiveRun.of(config, output, quiet=quiet)

    def announce(ready: Ready) -> None:
        if as_json:
            addresses = {"url": ready.url, "public_url": ready.public_url}
            number = {"number": ready.number.number} if ready.number is not None else {}
            metrics = {"metrics_url": ready.metrics_url} if ready.metrics_url is not None else {}
            known = {**addresses, "providers": list(ready.provider_names), "pid": os.getpid(), **number, **metrics}
            output.data(known)
        if announced and not quiet:
            show_new_address(output, config, ready)
        elif not quiet:
            show_banner(view.output if view is not None else output, config, ready)
        if phone is not None:
            phone.start(ready.url, ready.provider_names)
        if view is not None:
            view.begin(ready)
        announced.append(ready)

    if config.transport in ("websocket-server", "websocket-client"):
        from wsvoice.runner.standalone import run_alone

        assert loaded is not None
        run_alone(loaded, config, on_ready=announce)
        return
    from wsvoice.runner.diagnosis import reporting_failures
    from wsvoice.runner.server import Staff, serve

    def read_again() -> tuple[RunConfig, Mapping[str, str]]:
        # By its name, which may be of a link that each release changes.
        again = resolve_run(context.params, environ=given, cwd=launch.folder)
        return again.config, {**again.dotenv, **given}

    if view is not None:
        launch = replace(launch, obstacle="the terminal is this process's (--live); restart it, or leave --live out")
    staff = (
        Staff(resolved.config, config.worker_count, dict(os.environ), launch.folder, read_again)
        if config.worker_count
        else None
    )
    # What holds a tunnel open has a session of its own, and would outlive this process.
    handling = interrupted_by_signals() if config.tunnel else nullcontext()
    beside = phone or nullcontext()
    with view or nullcontext(), handling, beside, reporting_failures(config.causes), naming_who_listens(config):
        # Whoever serves a bot for a call of its own ends it by its standard input, which no other process has.
        serve(loaded, config, on_ready=announce, staff=staff, launch=None if until_eof else launch)
    if not (quiet or as_json):
        # In place of the ^C that the terminal shows.
        output.over(f"process {os.getpid()} has stopped")


@contextmanager
def naming_who_listens(config: RunConfig) -> Iterator[None]:
    """Say which of the user's own servers has the port, if one has it."""
    try:
        yield
    except PortInUseError as error:
        from wsvoice.phone.control import bot_at
        from wsvoice.phone.runs import running_servers

        folder = config.state_folder
        found = bot_at(error.port, running_servers(folder)) if folder is not None else None
        if found is None:
            raise
        pid, bot = found
        owner = f"a server of yours has it, process {pid}" + (f": `wsvoice run {bot}`" if bot else "")
        hint = f"`wsvoice calls` shows it; stop it, or try {error.instead}"
        raise PortInUseError(f"{error.message}: {owner}", port=error.port, instead=error.instead, hint=hint) from error


def warn_of_what_has_no_effect(output: Output, resolved: Resolved[RunConfig]) -> None:
    """Warn of settings beside which another one is missing, or that exclude each other."""
    config = resolved.config
    if config.metrics_port is None and resolved.origins["metrics-host"] != "default" and config.causes is None:
        output.warning("--metrics-host is for the port of --metrics-port, which is not given: /metrics is on no port")
    if config.live and config.log_format == "json":
        output.warning("--live shows the log's last lines as they are: JSON objects, because of --log-format json")


def find(config: RunConfig) -> None:
    """Look for the bot before pipecat is imported, which takes a second: a misspelt name is reported at once."""
    from wsvoice.bot_loading import find_bot
    from wsvoice.runner.diagnosis import reporting_failures
    from wsvoice.runner.logs import configure_logging

    with reporting_failures(config.causes):
        find_bot(config.bot)
        configure_logging(config.log_level, config.log_format)


def load(config: RunConfig, output: Output) -> LoadedBot:
    """Load the bot into this process, with pipecat patched before."""
    from wsvoice.bot_loading import load_bot
    from wsvoice.runner.diagnosis import reporting_failures
    from wsvoice.runner.logs import redirect_standard_logging

    with output.progress(f"Loading {config.bot}"), reporting_failures(config.causes):
        # A garbage collection would scan everything that has been imported.
        gc.disable()
        try:
            from wsvoice.runner import server as server  # Now, because it is large.
            from wsvoice.runner.pipecat.patches import install

            # Before the bot is imported: it takes pipecat's create_transport by name.
            install(config.disabled_patches)
        finally:
            gc.freeze()
            gc.enable()
        loaded = load_bot(config.bot)
        gc.freeze()
        redirect_standard_logging(config.log_level)
    return loaded


def _with_address(config: RunConfig, launch: Launch) -> RunConfig:
    """
    Return the settings with the address of the sockets that were handed over, if any were.

    Raises:
        ConfigError: If the transport does not take them.
    """
    if not launch.sockets:
        return config
    from wsvoice.runner.listening import address_of

    if config.transport in ("websocket-server", "websocket-client"):
        raise ConfigError(f"-t {config.transport} takes no sockets from systemd", hint="start it without a socket unit")
    host, port = address_of(launch.sockets)
    return replace(config, host=host, port=port)


def check_only(context: typer.Context, output: Output, *, as_json: bool, verbose: bool) -> None:
    """Do what ``wsvoice run`` does before it listens, and say whether it would come to that."""
    said: dict[str, object] = {"ok": False, "bot": None, "transport": None, "providers": [], "public_url": None}
    try:
        resolved = resolve_run(context.params, environ=os.environ, cwd=Path.cwd())
        config = resolved.config
        said |= {"bot": config.bot, "transport": config.transport, "public_url": config.public_url}
        output.warnings(resolved)
        warn_of_what_has_no_effect(output, resolved)
        if verbose:
            output.settings(resolved)
        export_dotenv(resolved.dotenv, os.environ)
        find(config)
        # Where workers would load it, too.
        loaded = load(config, output)
        from wsvoice.runner.preflight import rehearse

        providers = rehearse(loaded, config)
    except WsvoiceError as error:
        if as_json:
            output.data({**said, "error": error.message, "hint": error.hint})
        raise
    if as_json:
        output.data({**said, "ok": True, "providers": list(providers), "error": None, "hint": None})
    served = ", ".join(providers) or config.transport
    output.line(f"{loaded.name} is ready to run: {served}", style="bold green")


def show_banner(output: Output, config: RunConfig, ready: Ready) -> None:
    """Print where the bot can be reached, what to tell the provider, and who else could reach it."""
    if config.transport in PLAIN_TRANSPORTS:
        show_plain_banner(output, config, ready)
        return
    from wsvoice.cli.live_view import test_call
    from wsvoice.http import is_loopback
    from wsvoice.providers import PROVIDERS

    providers = _providers(config, ready)
    called = [each for each in providers if each.has_webhook]
    first, *others = providers
    local, public = ready.url.rstrip("/"), (ready.public_url or "").rstrip("/")
    base = public or local
    stream = _websocket(f"{base}/ws/{first.name}")

    output.line(f"{ready.bot_name} takes calls", style="bold")
    rows = [("listens on", f"{local}/{_everywhere(config.host)}"), *_addresses(providers, base, is_public=bool(public))]
    rows += _metrics_row(config, ready)
    if ready.number is not None:
        rows.append((ready.number.number, f"rings here; was: {without_secrets(ready.number.points_at) or 'nowhere'}"))
    rows += _limit_rows(config)
    rows.append(("try it", test_call(base, ready.provider_names)))
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


def _limit_rows(config: RunConfig) -> list[tuple[str, str]]:
    """Say how many calls are taken at once, and which other limits are set."""
    from wsvoice.call import plural
    from wsvoice.runner.limits import most_calls

    most = most_calls(config.max_calls, config.worker_count or 1)
    at_once = "any number of calls" if most is None else f"{plural(most, 'call')} (--max-calls)"
    limits = []
    if config.max_calls_per_number:
        limits.append(f"{plural(config.max_calls_per_number, 'call')} at once of one number")
    if config.max_calls_per_hour:
        limits.append(f"{plural(config.max_calls_per_hour, 'call')} an hour of one number")
    if config.max_minutes_per_day:
        limits.append(f"{plural(config.max_minutes_per_day, 'minute')} a day")
    if config.max_call_time_s:
        limits.append(f"{config.max_call_time_s:g} s a call")
    return [("at once", at_once), *([("limits", ", ".join(limits))] if limits else [])]


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


def _metrics_row(config: RunConfig, ready: Ready) -> list[tuple[str, str]]:
    return [("metrics", f"{ready.metrics_url}{_everywhere(config.metrics_host)}")] if ready.metrics_url else []


def _websocket(url: str) -> str:
    return url.replace("http", "ws", 1)


def _everywhere(host: str) -> str:
    """Return what to add to a URL on this machine, if the server listens to every network."""
    return ", and on every other address of this machine" if host in ("0.0.0.0", "::") else ""


def show_plain_banner(output: Output, config: RunConfig, ready: Ready) -> None:
    """Print where clients connect to the bot, or what it dials, and who else could."""
    if config.transport == "websocket-client":
        output.line(f"{ready.bot_name} dials {without_secrets(ready.url)}", style="bold")
        return
    if config.transport == "websocket-server":
        from wsvoice.http import is_loopback

        output.line(f"{ready.bot_name} serves one client at a time", style="bold")
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
    rows += _limit_rows(config)
    rows += _metrics_row(config, ready)
    output.line(f"{ready.bot_name} takes clients", style="bold")
    output.fields(rows)
    if ready.public_url is None:
        output.note("only clients on this machine reach it without a token; others need -x DOMAIN or --tunnel ngrok")
    elif config.stream_auth == "none":
        output.warning("clients need no token: anybody who finds the URL can talk to the bot at your cost")
    elif not config.credentials.get(START_KEY):
        output.warning(f"POST /start is closed: set {START_KEY}, and send it as `Authorization: Bearer …`")
