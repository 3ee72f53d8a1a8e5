"""
Every setting; the only package that reads the environment, ``.env`` and ``pyproject.toml``.

A setting's value is the first of: the flag, the environment (``WSVOICE_PORT``), ``.env``, ``pyproject.toml``
(``[tool.wsvoice] port``), the default. ``wsvoice dial`` has its own table (``[tool.wsvoice.dial]``) and its own
variables (``WSVOICE_DIAL_TRANSPORT``), which go before the common ones.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import urlsplit

from wsvoice.config.settings import (
    CALLS_PER_WORKER,
    DEPLOY_SETTINGS,
    DETECTIONS,
    DIAL_SETTINGS,
    ENV_FILE,
    LOG_FORMATS,
    LOG_LEVELS,
    NOT_WITH_REPLAY,
    REAL_CALL_SETTINGS,
    REPLAY_OPTIONS,
    RUN_SETTINGS,
    TEST_SETTINGS,
    Autoscale,
    Detection,
    Ignored,
    LogFormat,
    Method,
    Redact,
    Setting,
    StreamAuth,
    Verify,
    Voicemail,
)
from wsvoice.config.sources import Given, Sources, find_unknown, read_env_file, read_pyproject
from wsvoice.config.spelling import did_you_mean, nearest
from wsvoice.config.state import make_private, state_folder, write_private
from wsvoice.config.values import (
    PLAIN_TRANSPORTS,
    TUNNELS,
    is_phone_number,
    nearest_name,
    parse_digits,
    parse_duration,
    parse_growth,
    parse_number,
    parse_port,
    parse_positive_duration,
    parse_provider,
    parse_public_name,
    parse_server,
    parse_share,
    parse_text,
    parse_transport,
    parse_tunnel,
)
from wsvoice.config.variables import (
    CAUSES_VARIABLE,
    DIAL_KEY,
    METRICS_TOKEN,
    MODEL_KEY,
    NGROK_TOKEN,
    START_KEY,
    STREAM_SECRET,
    check_variables,
    find_from_number,
    find_traces_address,
    from_number_variables,
    read_credentials,
)
from wsvoice.errors import ConfigError

__all__ = [
    "CALLS_PER_WORKER",
    "CAUSES_VARIABLE",
    "DEPLOY_SETTINGS",
    "DETECTIONS",
    "DIAL_KEY",
    "DIAL_SETTINGS",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "METRICS_TOKEN",
    "NGROK_TOKEN",
    "PLAIN_TRANSPORTS",
    "REAL_CALL_SETTINGS",
    "RUN_SETTINGS",
    "START_KEY",
    "STREAM_SECRET",
    "TEST_SETTINGS",
    "TUNNELS",
    "AccountConfig",
    "Autoscale",
    "DeployConfig",
    "Detection",
    "DialConfig",
    "Ignored",
    "LogFormat",
    "Method",
    "RealCallConfig",
    "Redact",
    "Resolved",
    "RunConfig",
    "Setting",
    "StreamAuth",
    "TestConfig",
    "Verify",
    "Voicemail",
    "dials_number",
    "did_you_mean",
    "export_dotenv",
    "find_from_number",
    "is_phone_number",
    "make_private",
    "nearest",
    "nearest_name",
    "parse_digits",
    "parse_duration",
    "parse_growth",
    "parse_number",
    "parse_port",
    "parse_positive_duration",
    "parse_public_name",
    "parse_server",
    "parse_share",
    "parse_text",
    "resolve_account",
    "resolve_deploy",
    "resolve_dial",
    "resolve_real_call",
    "resolve_run",
    "resolve_test",
    "state_folder",
    "with_from_number",
    "without_secrets",
    "write_private",
]

#: Where pipecat's single-client server listens, and so ours.
WEBSOCKET_SERVER_PORT = 8765


@dataclass(frozen=True, slots=True)
class RunConfig:
    """
    How a bot is served.

    Attributes:
        bot: ``file.py[:func]``, ``pkg.module[:func]`` or a folder.
        transport: A provider's name, or one of :data:`PLAIN_TRANSPORTS`; ``None`` serves every telephony provider.
        url: The WebSocket server that the bot dials with ``websocket-client``.
        headers: Headers of that server's handshake.
        proxy: The public ``host[:port]`` in front of this server, without a scheme.
        tunnel: What opens a tunnel: one of :data:`TUNNELS`, a command with ``{port}`` in it, or ``None``.
        tunnel_domain: The domain that is reserved at ngrok for it; any if ``None``.
        number: The phone number, in E.164, that is pointed at this server while it runs; ``None`` for none.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        workers: How many processes run the bot; ``None`` and 0 for this one alone.
        reload: Whether new calls get the new code when the bot's changes.
        max_calls: How many calls at once, of all workers; 0 for no limit, ``None`` for :data:`CALLS_PER_WORKER` each.
        max_calls_per_number: How many calls at once of one caller's number; 0 for no limit.
        max_calls_per_hour: How many calls of one caller's number within an hour; 0 for no limit.
        max_minutes_per_day: How many minutes all calls of a day may last, in UTC, before new ones are turned away; 0
            for no limit.
        max_call_time_s: How long a call may last; 0 for no limit.
        busy_message: What callers hear who are turned away: a text, or a sound file; ``None`` for the provider's own
            "busy".
        max_lag_s: How late the event loop may be before new calls are turned away; 0 for no limit.
        parameters: The user's parameters for every call's bot.
        verify: Whether webhooks must be signed: where the secret is known, always, or never.
        stream_auth: Whether a stream on a public address needs a one-time token.
        record: The folder for recordings, or ``None``.
        trace: The folder for traces, or ``None``.
        redact: What traces leave out beside secrets; ``None`` for nothing.
        drain_timeout_s: How long running calls may go on after the first SIGTERM, or once `drain_linger_s` is over.
        drain_linger_s: How long new calls are still taken after that, while ``/readyz`` says no already.
        redis: The URL of the Redis by which the servers of a fleet share what they remember; ``None`` without.
        log_level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        live: Whether a terminal shows the running calls above the log's last lines.
        log_format: Lines for people, or JSON objects for machines.
        traces: Where OpenTelemetry's settings have traces sent to; ``None`` for none.
        metrics_port: The port that serves ``/metrics``; 0 takes a free one, ``None`` serves none.
        metrics_host: The address of that port.
        disabled_patches: The names of patches of pipecat that are not applied; a process applies patches once.
        causes: The file for what goes wrong in a call, read by ``wsvoice dial``; or ``None``.
        credentials: The providers' credentials, :data:`NGROK_TOKEN`, :data:`START_KEY`, :data:`DIAL_KEY`,
            :data:`STREAM_SECRET` and :data:`METRICS_TOKEN`, by the names of their environment variables.
        dotenv_place: How messages name the ``.env`` file, and whether it was read.
        state_folder: Where runs keep what a later command needs; ``None`` for nowhere.
        lead_ms: How far ahead of real time audio may be sent, so that the provider's buffer never runs dry.
        handshake_timeout_s: How long a connected caller may take to start its stream.
        playout_timeout_s: How long the end of a call waits until the last audio has been played.
        send_timeout_s: How long a message may wait for a caller that does not read.
        bot_exit_timeout_s: How long a bot may go on working after its call has ended.
        message_limit: The largest WebSocket message and webhook body, in bytes.
    """

    bot: str = "bot.py"
    transport: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = None
    tunnel: str | None = None
    tunnel_domain: str | None = None
    number: str | None = None
    host: str = "localhost"
    port: int = 7860
    workers: int | None = None
    reload: bool = False
    max_calls: int | None = None
    max_calls_per_number: int = 0
    max_calls_per_hour: int = 0
    max_minutes_per_day: int = 0
    max_call_time_s: float = 0.0
    busy_message: str | Path | None = None
    max_lag_s: float = 0.2
    parameters: Mapping[str, str] = field(default_factory=dict)
    verify: Verify = "auto"
    stream_auth: StreamAuth = "token"
    record: Path | None = None
    trace: Path | None = None
    redact: Redact | None = None
    drain_timeout_s: float = 600.0
    drain_linger_s: float = 0.0
    redis: str | None = field(default=None, repr=False)
    log_level: str = "INFO"
    live: bool = False
    log_format: LogFormat = "text"
    traces: str | None = None
    metrics_port: int | None = None
    metrics_host: str = "localhost"
    disabled_patches: frozenset[str] = frozenset()
    causes: Path | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    dotenv_place: str = field(default=".env", repr=False, compare=False)
    state_folder: Path | None = field(default=None, repr=False, compare=False)
    lead_ms: int = 100
    handshake_timeout_s: float = 10.0
    playout_timeout_s: float = 2.0
    send_timeout_s: float = 10.0
    bot_exit_timeout_s: float = 30.0
    message_limit: int = 64 * 1024

    @property
    def public_url(self) -> str | None:
        """The public address that :attr:`proxy` names, without a slash at its end."""
        return f"https://{self.proxy}" if self.proxy else None

    @property
    def worker_count(self) -> int:
        """How many processes beside this one run the bot."""
        return self.workers or int(self.reload)


@dataclass(frozen=True, slots=True)
class DialConfig:
    """
    How a test call is placed.

    Attributes:
        target: A webhook's ``http(s)`` URL, a stream's ``ws(s)`` URL, or a bot as in :class:`RunConfig`.
        transport: The provider to play.
        audio: What the caller says: sound files, one a turn. With no `say` and `dtmf` either, the built-in question.
        say: What the caller says after that: texts, one a turn.
        voice: The voice of `say`: a language or voice of eSpeak NG, such as ``es`` or ``en-gb``.
        dtmf: Keys to press after that; ``w`` waits half a second.
        from_number: Who rings.
        to_number: Who is rung.
        parameters: Parameters of the stream (for a stream URL), or of the served bot.
        duration_s: Stay on the line this long; ``None`` hangs up when the script is done, or after 5 minutes.
        listen_s: How long the bot may speak first.
        response_timeout_s: How long to wait for the bot's answer to a turn.
        record: The stereo WAV file to write (caller left, bot right), or ``None``.
        trace: The trace to write, ``NAME.call``, or ``None``.
        redact: What the trace leaves out beside secrets; ``None`` for nothing.
        opens_page: Show the call's page once it has ended.
        transcriber: Who turns what was said into words once the call has ended; ``None`` for nobody.
        transcriber_model: The model that it uses; ``None`` for its own choice.
        language: The language that it is told, as two letters.
        model_key: The key for its service; empty without.
        force_ws: Dial ``ws://`` where the answer document says ``wss://``.
        allow_private: Let a public server send the caller to private addresses.
        method: The webhook's method; ``None`` for the provider's own.
        caller: A bot as the caller, as in :class:`RunConfig`, or ``None``.
        probe: Also try an unsigned webhook, broken messages and an interruption.
        quirks: How the simulated provider deviates, by name.
        calls: How many calls are placed; ``None`` for one, with a report of its own.
        ramp_per_s: How many are begun each second.
        concurrency: How many of them may be up at the same time; ``None`` for all.
        find_knee: Look for the most calls at once for which the limits hold; `calls` is the most that is tried.
        max_late_s: What of the bot's audio comes later is late.
        max_late_share: How much of it may be late, from 0 to 1.
        replay: The trace of the call that is placed again; ``None`` for none.
        adaptive: Its caller waits for the bot, instead of doing everything at its time.
        max_slower: By how much of itself a wait may be longer than in that call.
        min_correlation: How similar what the bot says has to be: 1 is the same.
        ignored: What is not compared with that call.
        as_json: Print the report as one JSON object on stdout.
        environ: Environment variables for the served bot, over this process's.
        cwd: The folder in which the bot is served; ``None`` for this process's.
        credentials: The providers' credentials, by environment variable name.
    """

    target: str = "http://localhost:7860/"
    transport: str = "twilio"
    audio: tuple[Path, ...] = ()
    say: tuple[str, ...] = ()
    voice: str = "en-us"
    dtmf: str = ""
    from_number: str = "+15550100001"
    to_number: str = "+15550100002"
    parameters: Mapping[str, str] = field(default_factory=dict)
    duration_s: float | None = None
    listen_s: float = 1.0
    response_timeout_s: float = 10.0
    record: Path | None = None
    trace: Path | None = None
    redact: Redact | None = None
    opens_page: bool = False
    transcriber: str | None = None
    transcriber_model: str | None = None
    language: str = "en"
    model_key: str = field(default="", repr=False)
    force_ws: bool = False
    allow_private: bool = False
    method: Method | None = None
    caller: str | None = None
    probe: bool = False
    quirks: Mapping[str, str] = field(default_factory=dict)
    calls: int | None = None
    ramp_per_s: float | None = None
    concurrency: int | None = None
    find_knee: bool = False
    max_late_s: float | None = None
    max_late_share: float | None = None
    replay: Path | None = None
    adaptive: bool = False
    max_slower: float = 0.25
    min_correlation: float = 0.6
    ignored: frozenset[str] = frozenset()
    as_json: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class RealCallConfig:
    """
    How a real call is placed.

    Attributes:
        to_number: Who is called, in E.164.
        transport: The provider; ``None`` for the only one that there is.
        from_number: The number that calls, in E.164; ``None`` until :func:`with_from_number` has looked for it.
        bot: The bot that is served for this call; ``None`` for a server that runs already.
        server: The address of that server; ``None`` for the only one that runs on this machine.
        proxy, tunnel, tunnel_domain: The public address of the bot that is served, as in :class:`RunConfig`.
        ring_timeout_s: How long it may ring.
        time_limit_s: How long it may last; ``None`` for the provider's own limit.
        voicemail: What becomes of a call that a machine answers.
        detection: What is found out about who answers; ``None`` for what `voicemail` needs.
        parameters: The user's parameters for the bot.
        as_json: Print the report as one JSON object on stdout.
        credentials: As in :class:`RunConfig`.
    """

    to_number: str = ""
    transport: str | None = None
    from_number: str | None = None
    bot: str | None = None
    server: str | None = None
    proxy: str | None = None
    tunnel: str | None = None
    tunnel_domain: str | None = None
    ring_timeout_s: float = 60.0
    time_limit_s: float | None = None
    voicemail: Voicemail = "bot"
    detection: Detection | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    as_json: bool = False
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class AccountConfig:
    """
    Whose account a command asks that is about neither a server nor a test call.

    Attributes:
        transport: The provider that was named, or ``None``.
        credentials: The providers' credentials, by environment variable name.
        state_folder: Where runs keep what a later command needs.
        warnings: What is probably a mistake.
    """

    transport: str | None
    credentials: Mapping[str, str] = field(repr=False)
    state_folder: Path
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeployConfig:
    """
    Where a bot is deployed.

    Attributes:
        image: The reference of its container image; ``None`` for one that is built.
        host: The public domain; ``None`` for the bot's own ``proxy``.
        name: What everything is called; ``None`` for the name of the project's folder.
        namespace: The namespace; ``None`` for the one that ``kubectl`` uses.
        calls_per_pod: How many calls a pod takes at once; ``None`` for the bot's own ``max-calls``.
        longest_call_s: How long a call may last; ``None`` for the bot's own ``max-call-time``.
        autoscale: What adds and removes pods.
        prometheus: Where KEDA finds Prometheus.
        secret: The Secret whose keys become environment variables; ``None`` for one that is called after the bot.
        min_pods, max_pods: How few and how many pods there may be.
        credentials: As in :class:`RunConfig`.
    """

    image: str | None = None
    host: str | None = None
    name: str | None = None
    namespace: str | None = None
    calls_per_pod: int | None = None
    longest_call_s: float | None = None
    autoscale: Autoscale = "none"
    prometheus: str = "http://prometheus-server.monitoring.svc:80"
    secret: str | None = None
    min_pods: int = 2
    max_pods: int = 10
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class TestConfig:
    """
    How scenarios are run.

    Attributes:
        processes: How many calls are placed at the same time.
        repeat: How many times each is run, whatever it says itself; ``None`` for that.
        save_baseline: The file in which the callers' waits are kept, or ``None``.
        compare: The file with earlier waits, or ``None``.
        max_slower: By how much of themselves waits may have grown since; 1 is twice as long.
        traces: The folder for the traces of calls that failed; ``None`` for a temporary one.
        transcriber: Who turns speech into words, for scenarios that do not say; ``None`` for nobody.
        transcriber_model: The model that it uses; ``None`` for its own choice.
        judge_url: The OpenAI-compatible service that judges.
        judge_model: The model that it is asked for.
        model_key: The key for these services; empty without.
        credentials: The providers' credentials, by environment variable name.
    """

    # For pytest, which takes it for tests.
    __test__: ClassVar[bool] = False

    processes: int = 1
    repeat: int | None = None
    save_baseline: Path | None = None
    compare: Path | None = None
    max_slower: float = 0.1
    traces: Path | None = None
    transcriber: str | None = None
    transcriber_model: str | None = None
    judge_url: str = "https://api.openai.com/v1"
    judge_model: str = "gpt-4o-mini"
    model_key: str = field(default="", repr=False)
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


ConfigT = TypeVar("ConfigT", RunConfig, DialConfig, RealCallConfig, DeployConfig, TestConfig)


@dataclass(frozen=True, slots=True)
class Resolved(Generic[ConfigT]):
    """
    A configuration, and where it came from.

    Attributes:
        config: The settings.
        values: Each setting's value by option name, without credentials.
        origins: Where each value came from, by option name: ``flag --port``, ``environment WSVOICE_PORT``,
            ``.env WSVOICE_PORT``, ``pyproject.toml [tool.wsvoice] port``, ``default``.
        env_file: The ``.env`` file that was read, or ``None``.
        dotenv: Everything in it, secrets included.
        warnings: What is probably a mistake.
    """

    config: ConfigT
    values: Mapping[str, object]
    origins: Mapping[str, str]
    env_file: Path | None = None
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def resolve_run(
    flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path, faults: list[ConfigError] | None = None
) -> Resolved[RunConfig]:
    """
    Work out how to serve a bot.

    Args:
        flags: Values from the command line by option name (``max-calls`` or ``max_calls``); ``None`` and empty
            sequences count as not given, and other names are ignored.
        environ: The environment.
        cwd: The folder of ``.env`` and ``pyproject.toml``.
        faults: Takes what is wrong, instead of its being raised; what cannot be used is left out then.

    Raises:
        ConfigError: If a value cannot be used; it names where the value came from.
    """
    resolved = _resolve(RunConfig, RUN_SETTINGS, flags, environ=environ, cwd=cwd, command="run", faults=faults)
    read, causes = resolved.env_file, environ.get(CAUSES_VARIABLE)
    place = f"{read.name} ({read} was read)" if read else f".env (there is none in {cwd})"
    traces, warnings = find_traces_address({**resolved.dotenv, **environ})
    config = replace(
        resolved.config,
        traces=traces,
        causes=Path(causes) if causes else None,
        dotenv_place=place,
        state_folder=state_folder({**resolved.dotenv, **environ}),
        # The server of a test call leaves real numbers alone, and ports of the real server's, whatever its folder's
        # settings say.
        number=None if causes else resolved.config.number,
        # Nor does it need workers: it runs for one test.
        workers=None if causes else resolved.config.workers,
        reload=resolved.config.reload and not causes,
        metrics_port=None if causes else resolved.config.metrics_port,
    )
    if causes:
        config = _without_money_limits(config)
    values = dict(resolved.values)
    if config.max_calls is None:
        values["max-calls"] = f"{CALLS_PER_WORKER} for each worker"
    return replace(resolved, config=config, values=values, warnings=(*resolved.warnings, *warnings))


def _without_money_limits(config: RunConfig) -> RunConfig:
    """Return the settings of a test call's server: its callers have all the same number, and cost nothing."""
    max_calls = 0 if config.max_calls is None else config.max_calls
    return replace(config, max_calls=max_calls, max_calls_per_number=0, max_calls_per_hour=0, max_minutes_per_day=0)


def resolve_dial(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[DialConfig]:
    """Work out how to place a test call; as :func:`resolve_run`."""
    hint = "`wsvoice dial +15551234567` places one; for a test call leave it out"
    _refuse_flags(flags, REAL_CALL_SETTINGS, DIAL_SETTINGS, "is for calls to phone numbers", hint)
    resolved = _resolve(DialConfig, DIAL_SETTINGS, flags, environ=environ, cwd=cwd, command="dial")
    return replace(resolved, config=replace(resolved.config, model_key=_model_key(resolved, environ)))


def dials_number(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> bool:
    """Return whether the target of ``wsvoice dial`` is a phone number; arguments and errors as :func:`resolve_run`."""
    sources, _, _ = _find_sources(flags, environ, cwd, "dial", _DIAL_KEYS)
    target = sources.find(DIAL_SETTINGS[0])
    return target is not None and is_phone_number(parse_text(target.value, target.who))


def resolve_real_call(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[RealCallConfig]:
    """Work out how to place a real call; as :func:`resolve_run`."""
    hint = "leave it out; a test call is placed to a bot, a webhook or a stream, as in `wsvoice dial bot.py`"
    _refuse_flags(flags, DIAL_SETTINGS, REAL_CALL_SETTINGS, "is for test calls, not for calls to phone numbers", hint)
    resolved = _resolve(RealCallConfig, REAL_CALL_SETTINGS, flags, environ=environ, cwd=cwd, command="dial")
    config = resolved.config
    if config.detection not in (None, *DETECTIONS[config.voicemail]):
        raise ConfigError(
            f"--voicemail {config.voicemail} has to know who answers, and --detect is {config.detection}",
            hint="leave out --detect",
        )
    return resolved


def with_from_number(
    resolved: Resolved[RealCallConfig], provider: str | None, *, environ: Mapping[str, str]
) -> RealCallConfig:
    """
    Return the configuration of a call that goes through `provider`, with the number that it comes from.

    Raises:
        ConfigError: If none was given, and none is set for that provider.
    """
    config = replace(resolved.config, transport=provider)
    if config.from_number is not None:
        return config
    if provider is not None and (found := find_from_number(provider, environ, resolved.dotenv)):
        return replace(config, from_number=parse_number(*found))
    variables = f", or set {from_number_variables(provider)[0]}" if provider else ""
    # Nobody calls from the number that is called.
    example = next(each for each in ("+15551234567", "+15557654321") if each != config.to_number)
    raise ConfigError(
        f"a call to {config.to_number} has to come from a number of yours",
        hint=f"add `--from {example}`{variables}",
    )


def resolve_account(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> AccountConfig:
    """
    Work out whose account a command is for, from the settings of ``wsvoice run``.

    Args:
        flags: ``transport`` and ``env-file``, as in :func:`resolve_run`.
        environ: The environment.
        cwd: The folder of ``.env`` and ``pyproject.toml``.

    Raises:
        ConfigError: If a value cannot be used; it names where the value came from.
    """
    sources, _, warnings = _find_sources(flags, environ, cwd, "run", RUN_SETTINGS)
    [setting] = [each for each in RUN_SETTINGS if each.name == "transport"]
    given, transport = sources.find(setting), None
    if given is not None:
        parse = parse_provider if given.rank == 0 else parse_transport
        transport = parse(given.value, given.who)
    credentials = read_credentials(environ, sources.dotenv)
    warnings += check_variables(environ, sources.dotenv, sources.env_file_name, credentials)
    return AccountConfig(
        None if transport in PLAIN_TRANSPORTS else transport,
        credentials,
        state_folder({**sources.dotenv, **environ}),
        tuple(warnings),
    )


def resolve_deploy(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[DeployConfig]:
    """Work out where to deploy a bot; as :func:`resolve_run`."""
    resolved = _resolve(DeployConfig, DEPLOY_SETTINGS, flags, environ=environ, cwd=cwd, command="deploy")
    config, origins = resolved.config, resolved.origins
    for name, fits in {"max-pods": ("keda", "hpa"), "prometheus": ("keda",)}.items():
        if config.autoscale not in fits and origins[name].startswith("flag"):
            hint = f"add `--autoscale {fits[0]}`"
            raise ConfigError(f"--{name} is for --autoscale {' or '.join(fits)}", hint=hint)
    if config.autoscale != "none" and config.min_pods > config.max_pods:
        raise ConfigError(
            f"--min-pods {config.min_pods} is more than --max-pods {config.max_pods}",
            hint=f"add `--max-pods {config.min_pods}`",
        )
    return resolved


def resolve_test(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[TestConfig]:
    """Work out how scenarios are run; as :func:`resolve_run`."""
    resolved = _resolve(TestConfig, TEST_SETTINGS, flags, environ=environ, cwd=cwd, command="test")
    return replace(resolved, config=replace(resolved.config, model_key=_model_key(resolved, environ)))


def _model_key(resolved: Resolved[ConfigT], environ: Mapping[str, str]) -> str:
    return {**resolved.dotenv, **environ}.get(MODEL_KEY, "").strip()


def export_dotenv(dotenv: Mapping[str, str], environ: MutableMapping[str, str]) -> None:
    """Add the variables of ``.env`` to `environ`, for the bot; existing ones stay."""
    for name, value in dotenv.items():
        environ.setdefault(name, value)


def without_secrets(url: str) -> str:
    """Return `url` without the parts that often hold a secret, the user's name and the query; other words as is."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _resolve(
    kind: type[ConfigT],
    settings: Sequence[Setting],
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    command: str,
    faults: list[ConfigError] | None = None,
) -> Resolved[ConfigT]:
    keys = _DIAL_KEYS if command == "dial" else settings
    sources, env_file, warnings = _find_sources(flags, environ, cwd, command, keys, faults)
    found = {setting.name: sources.find(setting) for setting in settings}
    if faults is not None:
        _drop_unusable(found, settings, faults)
    _check_together(found, command, is_test_call=bool(environ.get(CAUSES_VARIABLE)), faults=faults)
    defaults = kind()
    values = {setting.name: getattr(defaults, setting.field) for setting in settings}
    origins = {name: given.origin if given else "default" for name, given in found.items()}
    filled: dict[str, Any] = {}
    for setting in settings:
        if given := found[setting.name]:
            filled[setting.field] = values[setting.name] = setting.parse(given.value, given.who)
    if filled.get("url"):
        values["url"] = without_secrets(filled["url"])
    if filled.get("transcriber"):
        values["transcriber"] = without_secrets(filled["transcriber"])
    if filled.get("redis"):
        values["redis-url"] = without_secrets(filled["redis"])
    if filled.get("headers"):
        # They are shown on the terminal, and often hold a secret.
        values["header"] = tuple(f"{name}: ***" for name in filled["headers"])
    if filled.get("transport") == "websocket-server" and "port" not in filled:
        filled["port"] = values["port"] = WEBSOCKET_SERVER_PORT
    credentials = read_credentials(environ, sources.dotenv)
    config = kind(**filled, credentials=credentials)
    warnings += check_variables(environ, sources.dotenv, sources.env_file_name, credentials)
    return Resolved(config, values, origins, env_file, sources.dotenv, tuple(warnings))


#: Of test calls and real ones: `[tool.wsvoice.dial]` has both.
_DIAL_KEYS = (*DIAL_SETTINGS, *REAL_CALL_SETTINGS)


@contextmanager
def _noting(faults: list[ConfigError] | None) -> Generator[None, None, None]:
    """Note what is raised, if there is a list for it; what was found by then stays as it is."""
    try:
        yield
    except ConfigError as error:
        if faults is None:
            raise
        faults.append(error)


def _drop_unusable(found: dict[str, Given | None], settings: Sequence[Setting], faults: list[ConfigError]) -> None:
    """Leave out each value that cannot be used by itself."""
    for setting in settings:
        if given := found[setting.name]:
            found[setting.name] = None
            with _noting(faults):
                setting.parse(given.value, given.who)
                found[setting.name] = given


def _check_together(
    found: dict[str, Given | None], command: str, *, is_test_call: bool, faults: list[ConfigError] | None
) -> None:
    """Drop what has no effect beside others, and refuse what excludes each other."""
    if "tunnel" in found:
        with _noting(faults):
            _drop_weaker(found)
    if command == "run":
        with _noting(faults):
            _drop_unsuitable(found)
        if not is_test_call:
            with _noting(faults):
                _check_number(found)
    if "calls" in found:
        with _noting(faults):
            _refuse_for_one_call(found)
        with _noting(faults):
            _check_replay(found)
        with _noting(faults):
            _check_words(found)


def _find_sources(
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    cwd: Path,
    command: str,
    settings: Sequence[Setting],
    faults: list[ConfigError] | None = None,
) -> tuple[Sources, Path | None, list[str]]:
    """Return where `command` looks for `settings`, the ``.env`` that was read, and what is wrong in it."""
    table: dict[str, Any] = {}
    with _noting(faults):
        table = read_pyproject(cwd, command)
    for key, error in find_unknown(table, command, settings).items():
        with _noting(faults):
            raise error
        del table[key]
    sources = Sources(_by_option(flags), environ, table, command)
    env_file: Path | None = None
    warnings: list[str] = []
    with _noting(faults):
        env_file, sources.dotenv, warnings = read_env_file(sources.find(ENV_FILE), cwd)
    if env_file is not None:
        sources.env_file_name = env_file.name
    return sources, env_file, warnings


def _by_option(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name.strip("_").replace("_", "-"): value for name, value in flags.items()}


def _refuse_flags(
    flags: Mapping[str, Any], others: Sequence[Setting], ours: Sequence[Setting], what: str, hint: str
) -> None:
    """Refuse flags that are only among `others`, because they would have no effect."""
    given, known = _by_option(flags), {setting.name for setting in ours}
    for setting in others:
        if setting.name not in known and given.get(setting.name) not in (None, (), []):
            raise ConfigError(f"{setting.flag or f'--{setting.name}'} {what}", hint=hint)


def _drop_weaker(found: dict[str, Given | None]) -> None:
    """Of a proxy and a tunnel keep the one from the stronger source, and a domain only with the tunnel it is for."""
    proxy, tunnel = found["proxy"], found["tunnel"]
    if proxy and tunnel:
        if proxy.rank == tunnel.rank:
            hint = "a tunnel makes its own public address: leave one of the two out"
            raise ConfigError(f"{proxy.who} and {tunnel.who} exclude each other", hint=hint)
        found["proxy" if proxy.rank > tunnel.rank else "tunnel"] = None
    tunnel, domain = found["tunnel"], found["tunnel-domain"]
    if domain and (tunnel is None or parse_tunnel(tunnel.value, tunnel.who) != "ngrok"):
        if domain.rank == 0:
            hint = "add `--tunnel ngrok`" if tunnel is None else f"leave {domain.who} out"
            raise ConfigError(f"{domain.who} is for a tunnel of ngrok's", hint=hint)
        found["tunnel-domain"] = None


def _refuse_for_one_call(found: Mapping[str, Given | None]) -> None:
    """Refuse flags that are for many calls where one is placed, and the other way round."""
    if found["calls"] or found["find-knee"]:
        given = found["transcriber"]
        if given is not None and given.rank == 0:
            raise ConfigError(f"{given.who} is for one call, not for many", hint=f"leave {given.who} out")
        return
    for name in ("ramp", "concurrency", "max-late", "max-late-share"):
        given = found[name]
        if given is not None and given.rank == 0:
            raise ConfigError(f"{given.who} is for many calls", hint="add how many: `-n 50`, or `--find-knee`")


def _check_words(found: Mapping[str, Given | None]) -> None:
    """Refuse flags that are for a transcriber where there is none."""
    for name in ("transcriber-model", "language"):
        given = found[name]
        if found["transcriber"] is None and given is not None and given.rank == 0:
            hint = "add who turns it into words: `--transcriber offline`"
            raise ConfigError(f"{given.who} is about what was said, and nothing turns that into words", hint=hint)


def _check_replay(found: Mapping[str, Given | None]) -> None:
    """Refuse flags that have no effect, be it that a call is placed again or that none is."""
    for name in REPLAY_OPTIONS if found["replay"] is None else NOT_WITH_REPLAY:
        given = found[name]
        if given is None or given.rank != 0:
            continue
        if found["replay"] is None:
            raise ConfigError(f"{given.who} is for a call that is placed again", hint="add which: `--replay good.call`")
        raise ConfigError(
            f"{given.who} has no effect beside --replay: the caller does what it did in that call",
            hint=f"leave {given.who} out",
        )


#: The transports that a setting is not for.
_NOT_FOR: Mapping[str, Collection[str]] = {
    **dict.fromkeys(("host", "port"), ("websocket-client",)),
    **dict.fromkeys(
        (
            "proxy",
            "tunnel",
            "tunnel-domain",
            "workers",
            "reload",
            "max-calls",
            "max-lag",
            "max-minutes-per-day",
            "stream-auth",
            "drain-linger",
            "redis-url",
            "metrics-port",
            "metrics-host",
        ),
        ("websocket-server", "websocket-client"),
    ),
    **dict.fromkeys(
        (
            *("verify", "record", "number"),
            *("max-calls-per-number", "max-calls-per-hour", "max-call-time", "busy-message"),
        ),
        PLAIN_TRANSPORTS,
    ),
}


def _drop_unsuitable(found: dict[str, Given | None]) -> None:
    """Refuse flags that are not for this transport, and drop what weaker sources say."""
    given = found["transport"]
    transport = None if given is None else parse_transport(given.value, given.who)
    for name, setting in found.items():
        dials_out = name in ("url", "header")
        suits = transport == "websocket-client" if dials_out else transport not in _NOT_FOR.get(name, ())
        if setting is None or suits:
            continue
        if setting.rank == 0:
            if dials_out:
                raise ConfigError(f"{setting.who} is for a bot that dials out", hint="add `-t websocket-client`")
            served = f"-t {transport}" if transport else "telephone calls"
            raise ConfigError(f"{setting.who} has no meaning for {served}", hint=f"leave {setting.who} out")
        found[name] = None
    if transport == "websocket-client" and found["url"] is None:
        hint = "add `--url wss://bots.example.com/stream`"
        raise ConfigError("-t websocket-client needs the address that the bot dials", hint=hint)


def _check_number(found: Mapping[str, Given | None]) -> None:
    """Refuse a number that cannot be pointed at this server: it is one provider's, and has to find a way here."""
    given = found["number"]
    if given is None:
        return
    if found["transport"] is None:
        raise ConfigError(f"{given.who} needs to know whose number it is", hint="add its provider: `-t twilio`")
    if found["proxy"] is None and found["tunnel"] is None:
        hint = "add `-x DOMAIN`, or `--tunnel ngrok`"
        raise ConfigError(f"{given.who} needs a public address to point the number at", hint=hint)
