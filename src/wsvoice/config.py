"""
Every setting, and the one place that reads the environment, ``.env`` and ``pyproject.toml``.

A setting's value is the first of: the flag, the environment (``WSVOICE_PORT``), ``.env``, ``pyproject.toml``
(``[tool.wsvoice] port``), the default. ``wsvoice dial`` has a table of its own (``[tool.wsvoice.dial]``), and
variables of its own (``WSVOICE_DIAL_TRANSPORT``) that go before the common ones. :class:`Resolved` remembers where
each value came from.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from wsvoice.errors import ConfigError

Verify = Literal["auto", "enforce", "off"]
StreamAuth = Literal["token", "none"]
Tunnel = Literal["ngrok"]
Method = Literal["GET", "POST"]

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

#: Transports without a telephone company: clients at ``/ws-client``, one client on a port of its own, and a server
#: that the bot dials.
PLAIN_TRANSPORTS = ("websocket", "websocket-server", "websocket-client")
#: Where pipecat's single-client server listens, and so ours.
WEBSOCKET_SERVER_PORT = 8765
#: The variable that holds what ``POST /start`` asks for on a public address.
START_KEY = "WSVOICE_START_KEY"
#: Where ``wsvoice dial`` tells a server that it starts which file to write causes to; not a setting of the user's.
CAUSES_VARIABLE = "WSVOICE_CAUSES"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """
    How a bot is served.

    Attributes:
        bot: ``file.py[:func]``, ``pkg.module[:func]`` or a folder.
        transport: A provider's name, or one of :data:`PLAIN_TRANSPORTS`; ``None`` serves every telephony provider.
        url: The WebSocket server that the bot dials with ``websocket-client``.
        headers: What is sent to it in the handshake.
        proxy: The public ``host[:port]`` in front of this server, without a scheme.
        tunnel: The program that makes a public address, or ``None``.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.
        max_calls: How many calls at once; ``None`` for no limit.
        parameters: The user's parameters, handed to every call's bot.
        verify: Whether webhooks must be signed: where the secret is known, always, or never.
        stream_auth: Whether a stream on a public address needs a one-time token.
        record: The folder for recordings, or ``None``.
        drain_timeout_s: How long running calls may go on after the first SIGTERM.
        log_level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        disabled_patches: The names of changes in pipecat that are not to be made; a process makes them once.
        causes: The file to which what goes wrong in a call is written, for whoever serves the bot; or ``None``.
        credentials: The providers' credentials and :data:`START_KEY`, by environment variable name.
        dotenv_place: What messages call the file in which secrets may stand, and whether it was read.
        lead_ms: How far ahead of real time audio may be sent, so that the provider's buffer never runs dry.
        handshake_timeout_s: How long a connected caller may take to start its stream.
        playout_timeout_s: How long the end of a call waits for the last audio to be played.
        send_timeout_s: How long one message may wait for a caller that does not read.
        bot_exit_timeout_s: How long a bot may go on working after its call has ended.
        message_limit: The largest WebSocket message and webhook body, in bytes.
    """

    bot: str = "bot.py"
    transport: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = None
    tunnel: Tunnel | None = None
    host: str = "localhost"
    port: int = 7860
    max_calls: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    verify: Verify = "auto"
    stream_auth: StreamAuth = "token"
    record: Path | None = None
    drain_timeout_s: float = 600.0
    log_level: str = "INFO"
    disabled_patches: frozenset[str] = frozenset()
    causes: Path | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    dotenv_place: str = field(default=".env", repr=False, compare=False)
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


@dataclass(frozen=True, slots=True)
class DialConfig:
    """
    How a test call is placed.

    Attributes:
        target: A webhook's ``http(s)`` URL, a stream's ``ws(s)`` URL, or a bot as in :class:`RunConfig`.
        transport: The provider to play.
        audio: sound files, one for each of the caller's turns; without them, `say` and `dtmf`, the built-in question.
        say: Texts that are spoken after the audio, one for each turn.
        voice: Who speaks them: one of eSpeak NG's languages or voices, such as ``es`` or ``en-gb``.
        dtmf: Digits to press after that; ``w`` pauses half a second.
        from_number: Who rings.
        to_number: Who is rung.
        parameters: Custom parameters of the stream (for a stream URL), or of the served bot.
        duration_s: Stay on the line this long; ``None`` hangs up when the script is done, or after 5 minutes.
        listen_s: How long to let the bot speak first before the caller does.
        response_timeout_s: How long to wait for the bot's answer to a turn.
        record: The stereo WAV file to write (caller left, bot right), or ``None``.
        force_ws: Dial ``ws://`` where the answer document says ``wss://``.
        allow_private: Let a public server send the caller to private addresses.
        method: The webhook's method; ``None`` for the provider's own.
        caller: A bot that is the caller, as in :class:`RunConfig`; ``None`` for a caller that plays the audio.
        probe: Try what may happen in a call and seldom does: an unsigned webhook, broken messages, an interruption.
        quirks: How the simulated provider deviates, by name.
        as_json: Print the report as one JSON object on stdout.
        environ: Environment variables for the served bot, which go before this process's.
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
    force_ws: bool = False
    allow_private: bool = False
    method: Method | None = None
    caller: str | None = None
    probe: bool = False
    quirks: Mapping[str, str] = field(default_factory=dict)
    as_json: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: Path | None = None
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)


ConfigT = TypeVar("ConfigT", RunConfig, DialConfig)


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
        dotenv: Everything in it; secrets included.
        warnings: What was found that is probably a mistake, though nothing depends on it.
    """

    config: ConfigT
    values: Mapping[str, object]
    origins: Mapping[str, str]
    env_file: Path | None = None
    dotenv: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()


def resolve_run(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[RunConfig]:
    """
    Work out how to serve a bot.

    Args:
        flags: Values from the command line by option name (``max-calls`` or ``max_calls``); ``None`` and
            empty sequences are not given, and names that are no settings are left alone.
        environ: The environment.
        cwd: Where ``.env`` and ``pyproject.toml`` are looked for.

    Raises:
        ConfigError: Naming where the value that cannot be used came from.
    """
    resolved = _resolve(RunConfig, RUN_SETTINGS, flags, environ=environ, cwd=cwd, command="run")
    if causes := environ.get(CAUSES_VARIABLE):
        resolved = replace(resolved, config=replace(resolved.config, causes=Path(causes)))
    if resolved.env_file is not None:
        place = f"{resolved.env_file.name} ({resolved.env_file} was read)"
    else:
        place = f".env (there is none in {cwd})"
    return replace(resolved, config=replace(resolved.config, dotenv_place=place))


def resolve_dial(flags: Mapping[str, Any], *, environ: Mapping[str, str], cwd: Path) -> Resolved[DialConfig]:
    """Work out how to place a test call; as :func:`resolve_run`."""
    return _resolve(DialConfig, DIAL_SETTINGS, flags, environ=environ, cwd=cwd, command="dial")


def export_dotenv(dotenv: Mapping[str, str], environ: MutableMapping[str, str]) -> None:
    """Put what ``.env`` says into `environ` for the bot; what is already there stays."""
    for name, value in dotenv.items():
        environ.setdefault(name, value)


def without_secrets(url: str) -> str:
    """Return `url` without the parts that often hold a secret: the user's name and the query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def nearest(word: str, candidates: Iterable[str]) -> list[str]:
    """Return `candidates`, the ones spelt most like `word` first."""
    return sorted(
        candidates,
        key=lambda candidate: difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio(),
        reverse=True,
    )


def did_you_mean(word: str, candidates: Collection[str]) -> str | None:
    """Return a hint that names the candidate `word` was probably meant to be."""
    close = difflib.get_close_matches(word.lower(), candidates, n=1, cutoff=0.6)
    return f"did you mean `{close[0]}`?" if close else None


# -- Values: each takes what was given and who said it, and returns what the configuration holds. --


def _text(value: object, who: str) -> str:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise ConfigError(f"{who} takes text, got {value!r}", hint="put it in quotes")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ConfigError(f"{who} takes text without control characters, got {value!r}", hint="write it in one line")
    return value


def _whole(value: object, who: str, *, least: int, most: float = math.inf, what: str, hint: str) -> int:
    number = value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise ConfigError(f"{who} takes {what}, got {value!r}", hint=hint)
    return number


def _port(value: object, who: str) -> int:
    hint = "7860 is the usual one; 0 takes a free one"
    return _whole(value, who, least=0, most=65535, what="a port, 0 to 65535", hint=hint)


def _at_least_one(value: object, who: str) -> int:
    return _whole(value, who, least=1, what="a whole number from 1 up", hint="for no limit, leave it out")


def _switch(value: object, who: str) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else None
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise ConfigError(f"{who} takes true or false, got {value!r}")


_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration(value: object, who: str) -> float:
    """Seconds of ``90``, ``90s``, ``500ms``, ``2m`` or ``1h``."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?", value.strip().lower())
        if match:
            seconds = float(match[1]) * _UNITS_S[match[2] or ""]
    if not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(
            f"{who} takes a duration, got {value!r}", hint="write seconds, or a unit: `90`, `90s`, `2m`, `1h`"
        )
    return seconds


def _positive_duration(value: object, who: str) -> float:
    seconds = _duration(value, who)
    if not seconds:
        raise ConfigError(
            f"{who} takes a duration above zero, got {value!r}", hint="write seconds, or a unit: `5`, `500ms`, `2m`"
        )
    return seconds


def _choice(value: object, who: str, choices: Sequence[str]) -> str:
    word = value.strip() if isinstance(value, str) else ""
    for choice in choices:
        if choice.lower() == word.lower():
            return choice
    known = " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]]))
    hint = did_you_mean(word, choices)
    if hint is None and word.lower() in PLAIN_TRANSPORTS:
        hint = (
            "a test call plays a telephone company; `wsvoice run OTHER.py -t websocket-client` dials as a plain client"
        )
    raise ConfigError(f"{who} takes {known}, got {value!r}", hint=hint)


def _one_of(*choices: str) -> Callable[[object, str], str]:
    return lambda value, who: _choice(value, who, choices)


def _provider(value: object, who: str) -> str:
    from wsvoice.providers import PROVIDERS

    return _choice(value, who, tuple(PROVIDERS))


def _transport(value: object, who: str) -> str:
    from wsvoice.providers import PROVIDERS

    return _choice(value, who, (*PROVIDERS, *PLAIN_TRANSPORTS))


def _ws_url(value: object, who: str) -> str:
    text = _text(value, who).strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in {"ws", "wss"}:
        other = {"http": "ws", "https": "wss"}.get(scheme.lower()) if separator else None
        example = f"{other}://{rest}" if other else "wss://bots.example.com/stream"
        raise ConfigError(f"{who} takes a ws:// or wss:// address, got {text!r}", hint=f"for example `--url {example}`")
    host, _ = _host_and_port(rest)
    if not host or re.search(r"\s", rest):
        raise ConfigError(
            f"{who} takes a ws:// or wss:// address, and {text!r} names no host",
            hint="for example `--url wss://bots.example.com/stream`",
        )
    return text


def _host_and_port(rest: str) -> tuple[str, int | None]:
    """Return what an address names behind its scheme; the host is empty if it cannot be one."""
    try:
        parts = urlsplit(f"//{rest}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _headers(value: object, who: str) -> dict[str, str]:
    """
    A mapping, from one, or from ``Name: value`` texts.

    https://www.rfc-editor.org/rfc/rfc9110#section-5
    """
    if isinstance(value, Mapping):
        pairs = [(str(name), _scalar(item, f"{who}.{name}")) for name, item in value.items()]
    else:
        # A value may have commas, so one text is one header.
        texts = [_text(value, who)] if isinstance(value, str) else _listed(value, who)
        pairs = []
        for text in texts:
            name, colon, item = text.partition(":")
            if not colon:
                # The value may be a secret, and this is printed.
                raise ConfigError(f"{who} takes `Name: value`, and there is no colon", hint=_HEADER_EXAMPLE)
            pairs.append((name.strip(), item.strip()))
    for name, _ in pairs:
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{who} takes `Name: value`, and {name!r} is no header's name", hint=_HEADER_EXAMPLE)
    return dict(pairs)


_HEADER_EXAMPLE = "for example `--header 'Authorization: Bearer abc'`"


_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def _proxy(value: object, who: str) -> str:
    """``host[:port]`` in lower case, from that, or from a URL that has nothing else in it."""
    text = _text(value, who).strip()
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in {"http", "https", "ws", "wss"}:
        raise ConfigError(
            f"{who} takes a domain, not a {scheme}:// address: got {text!r}", hint="for example `-x bot.example.com`"
        )
    if _is_ipv6(rest):
        raise ConfigError(f"{who} takes an IPv6 address in brackets, got {text!r}", hint=f"use `-x [{rest}]`")
    host, port = _host_and_port(rest)
    with suppress(UnicodeError):
        host = f"[{host}]" if _is_ipv6(host) else host.encode("idna").decode("ascii")
    is_domain = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if not (is_domain or host.startswith("[")) or port == 0 or re.search(r":$|\][^:]", authority):
        raise ConfigError(
            f"{who} takes a domain, got {text!r}", hint="for example `-x bot.example.com`, or `-x bot.example.com:8443`"
        )
    taken = host if port is None else f"{host}:{port}"
    parts = urlsplit(f"//{rest}")
    for part, is_given in {
        "user name": "@" in authority,
        "path": parts.path[1:],
        "query": parts.query,
        "fragment": parts.fragment,
    }.items():
        if is_given:
            raise ConfigError(f"{who} takes a domain, not a URL with a {part}: got {text!r}", hint=f"use `-x {taken}`")
    return taken


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def _host(value: object, who: str) -> str:
    host = _text(value, who).strip()
    if not host or re.search(r"[\s/@?#]", host):
        raise ConfigError(
            f"{who} takes an address to listen on, got {value!r}",
            hint="`localhost` for this machine only, `0.0.0.0` for every network",
        )
    return host.strip("[]")


_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def _parameters(value: object, who: str) -> dict[str, str]:
    """A mapping, from one, from ``key=value`` texts, or from one text of them with commas between."""
    return _pairs(value, who, "--param language=en")


def _quirks(value: object, who: str) -> dict[str, str]:
    """A mapping, from what :func:`_parameters` takes; whether a provider has them is not known here."""
    return _pairs(value, who, "--quirk reorder=0.1")


def _pairs(value: object, who: str, example: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        pairs = [(str(key), _scalar(item, f"{who}.{key}")) for key, item in value.items()]
    else:
        pairs = [_pair(item, who, example) for item in _listed(value, who)]
    for key, _ in pairs:
        if not _PARAMETER_NAME.fullmatch(key):
            raise ConfigError(
                f"{who} takes names of letters, digits, `_`, `.` and `-`, got {key!r}",
                hint=f"for example `{example}`",
            )
    return dict(pairs)


def _pair(item: str, who: str, example: str) -> tuple[str, str]:
    key, equals, value = item.partition("=")
    if not equals:
        option, _, usual = example.partition(" ")
        # Where the usual example is of this very name, it has a value that the name takes.
        mended = usual if usual.partition("=")[0] == item.strip() else f"{item}=yes"
        raise ConfigError(f"{who} takes key=value, got {item!r}", hint=f"for example `{option} {mended}`")
    return key.strip(), value


def _scalar(value: object, who: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _text(value, who)


def _listed(value: object, who: str) -> list[str]:
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(value, list | tuple):
        return [_text(item, who) for item in value]
    return [_text(value, who)]


def _names(value: object, who: str) -> frozenset[str]:
    return frozenset(_listed(value, who))


def _paths(value: object, who: str) -> tuple[Path, ...]:
    return tuple(Path(item).expanduser() for item in _listed(value, who))


def _utterances(value: object, who: str) -> tuple[str, ...]:
    # There are commas in what people say, so one text is one utterance.
    texts = [_text(value, who)] if isinstance(value, str) else _listed(value, who)
    if any(not text.strip() for text in texts):
        raise ConfigError(f"{who} takes words to say, got {value!r}", hint="for example `--say 'When are you open?'`")
    return tuple(texts)


def _folder(value: object, who: str) -> Path:
    path = Path(_text(value, who)).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"{who} takes a folder, and {path} is a file",
            hint=f"use `{path.with_suffix('') if path.suffix else path.parent}`",
        )
    return path


def _wav_to_write(value: object, who: str) -> Path:
    path = Path(_text(value, who)).expanduser()
    if path.is_dir():
        raise ConfigError(f"{who} takes a file, and {path} is a folder", hint=f"use `{path / 'call.wav'}`")
    if path.suffix.lower() in _OTHER_SOUND:
        raise ConfigError(
            f"{who} writes a WAV file, got {str(path)!r}",
            hint=f"use `{path.with_suffix('.wav')}`; ffmpeg converts it to anything else",
        )
    return path


#: What a file is called in which other sound than WAV is expected.
_OTHER_SOUND = frozenset({".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".webm"})


def _digits(value: object, who: str) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value, who)
    if wrong := re.search(r"[^0-9*#A-Da-dw]", text):
        raise ConfigError(
            f"{who} takes the keys 0-9 * # A-D, and w for a pause: got {wrong[0]!r} in {text!r}",
            hint="`w` waits half a second: `--dtmf 1w2#`",
        )
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One setting: its option's name, the field it fills, and how its value is read.

    ``flag`` is how messages call the flag, where that is not ``--name``. ``own`` keeps the setting from
    following the environment variable of another command's setting of the same name.
    """

    name: str
    field: str
    parse: Callable[[object, str], object]
    flag: str = ""
    own: bool = False

    def variables(self, command: str) -> tuple[str, ...]:
        """The environment variables that may hold it for `command`, the first one set wins."""
        name = self.name.upper().replace("-", "_")
        if command == "run":
            return (f"WSVOICE_{name}",)
        particular = f"WSVOICE_{command.upper()}_{name}"
        return (particular,) if self.own else (particular, f"WSVOICE_{name}")


RUN_SETTINGS: tuple[Setting, ...] = (
    Setting("bot", "bot", _text, flag="BOT"),
    Setting("transport", "transport", _transport, flag="-t"),
    Setting("url", "url", _ws_url),
    Setting("header", "headers", _headers),
    Setting("proxy", "proxy", _proxy, flag="-x"),
    Setting("tunnel", "tunnel", _one_of(*get_args(Tunnel))),
    Setting("host", "host", _host),
    Setting("port", "port", _port),
    Setting("max-calls", "max_calls", _at_least_one),
    Setting("param", "parameters", _parameters),
    Setting("verify", "verify", _one_of(*get_args(Verify))),
    Setting("stream-auth", "stream_auth", _one_of(*get_args(StreamAuth))),
    Setting("record", "record", _folder),
    Setting("drain-timeout", "drain_timeout_s", _duration),
    Setting("log-level", "log_level", _one_of(*LOG_LEVELS)),
    Setting("disable-patches", "disabled_patches", _names),
)

DIAL_SETTINGS: tuple[Setting, ...] = (
    Setting("target", "target", _text, flag="TARGET"),
    Setting("transport", "transport", _provider, flag="-t"),
    Setting("audio", "audio", _paths),
    Setting("say", "say", _utterances),
    Setting("voice", "voice", _text),
    Setting("dtmf", "dtmf", _digits),
    Setting("from", "from_number", _text),
    Setting("to", "to_number", _text),
    Setting("param", "parameters", _parameters),
    Setting("duration", "duration_s", _positive_duration),
    Setting("listen", "listen_s", _duration),
    Setting("response-timeout", "response_timeout_s", _positive_duration),
    Setting("record", "record", _wav_to_write, own=True),
    Setting("force-ws", "force_ws", _switch),
    Setting("allow-private", "allow_private", _switch),
    Setting("method", "method", _one_of(*get_args(Method))),
    Setting("caller", "caller", _text),
    Setting("probe", "probe", _switch),
    Setting("quirk", "quirks", _quirks),
    Setting("json", "as_json", _switch, own=True),
)

#: Says which file holds the others, so it is read before them and fills no field.
_ENV_FILE = Setting("env-file", "", _text)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value as it was found: ``rank`` 0 is the strongest source, ``who`` names it in messages."""

    value: object
    origin: str
    who: str
    rank: int


class _Sources:
    """The places where settings stand, strongest first."""

    def __init__(
        self, flags: Mapping[str, Any], environ: Mapping[str, str], table: Mapping[str, Any], command: str
    ) -> None:
        self.flags = {name.strip("_").replace("_", "-"): value for name, value in flags.items()}
        self.environ = environ
        self.table = table
        self.table_name = "tool.wsvoice" if command == "run" else f"tool.wsvoice.{command}"
        self.command = command
        self.env_file_name = ".env"
        self.dotenv: Mapping[str, str] = {}

    def find(self, setting: Setting) -> _Given | None:
        return next(self._all(setting), None)

    def _all(self, setting: Setting) -> Iterator[_Given]:
        value = self.flags.get(setting.name)
        if value is not None and value != () and value != []:
            who = setting.flag or f"--{setting.name}"
            name = f"argument {who}" if who.isupper() else f"flag --{setting.name}"
            yield _Given(value, name, who, 0)
        for name in setting.variables(self.command):
            if self.environ.get(name):
                yield _Given(self.environ[name], f"environment {name}", name, 1)
        for name in setting.variables(self.command):
            # A variable that the shell sets to nothing is a way to take back what .env says.
            if self.dotenv.get(name) and name not in self.environ:
                where = f"{self.env_file_name} {name}"
                yield _Given(self.dotenv[name], where, f"{name} in {self.env_file_name}", 2)
        if setting.name in self.table:
            where = f"pyproject.toml [{self.table_name}] {setting.name}"
            yield _Given(self.table[setting.name], where, where, 3)


def _resolve(
    kind: type[ConfigT],
    settings: Sequence[Setting],
    flags: Mapping[str, Any],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    command: str,
) -> Resolved[ConfigT]:
    table = _read_pyproject(cwd, command, settings)
    sources = _Sources(flags, environ, table, command)
    env_file, dotenv, warnings = _read_env_file(sources.find(_ENV_FILE), cwd)
    sources.dotenv = dotenv
    if env_file is not None:
        sources.env_file_name = env_file.name

    defaults = {f.name: f.default for f in fields(kind)}
    found = {setting.name: sources.find(setting) for setting in settings}
    _drop_weaker(found, "proxy", "tunnel")
    if command == "run":
        _drop_foreign(found)
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    filled: dict[str, Any] = {}
    for setting in settings:
        given = found[setting.name]
        if given is None:
            default = defaults[setting.field]
            values[setting.name] = {} if setting.parse in (_parameters, _quirks, _headers) else default
            origins[setting.name] = "default"
        else:
            filled[setting.field] = values[setting.name] = setting.parse(given.value, given.who)
            origins[setting.name] = given.origin
    if filled.get("url"):
        values["url"] = without_secrets(filled["url"])
    if filled.get("headers"):
        # They are shown to whoever watches the terminal, and often hold a secret.
        values["header"] = tuple(f"{name}: ***" for name in filled["headers"])
    if filled.get("transport") == "websocket-server" and "port" not in filled:
        filled["port"] = values["port"] = WEBSOCKET_SERVER_PORT
    credentials = _credentials(environ, dotenv)
    config = kind(**filled, credentials=credentials)
    for variables, file, known_before in ((environ, "", ()), (dotenv, sources.env_file_name, environ.keys())):
        warnings += _unknown_variables(variables, file, known_before)
        warnings += _misspelt_credentials(variables, file, known_before, credentials)
    warnings += [
        f"{name} looks like a placeholder: put the real value there"
        for name, value in credentials.items()
        if _PLACEHOLDER.fullmatch(value)
    ]
    return Resolved(config, values, origins, env_file, dotenv, tuple(warnings))


def _unknown_variables(given: Mapping[str, str], file: str, known_before: Collection[str]) -> list[str]:
    """Warn about ``WSVOICE_`` variables that no command knows."""
    known = {START_KEY, CAUSES_VARIABLE} | {
        name
        for command, settings in (("run", RUN_SETTINGS), ("dial", DIAL_SETTINGS))
        for setting in (*settings, _ENV_FILE)
        for name in setting.variables(command)
    }
    warnings = []
    for name in sorted(given):
        written = name.upper().replace("-", "_")
        if not written.startswith("WSVOICE_") or name in known or name in known_before or not given[name]:
            continue
        # Perhaps it is all right but for a command that it is not for, as in WSVOICE_RUN_PORT.
        bare = re.sub("^WSVOICE_(RUN|DIAL)_", "WSVOICE_", written)
        rests = sorted(each.removeprefix("WSVOICE_") for each in known)
        close = difflib.get_close_matches(written.removeprefix("WSVOICE_"), rests, n=1, cutoff=0.7)
        nearest_name = bare if bare in known else f"WSVOICE_{close[0]}" if close else None
        meant = f"did you mean {nearest_name}?" if nearest_name else "no setting has that name"
        warnings.append(f"{name}{f' in {file}' if file else ''} is not read: {meant}")
    return warnings


_PLACEHOLDER = re.compile(
    r"(?:your|my|insert|enter|replace)[ _-].*|<.*>|\.\.\.|…|[x*]{3,}|change[ _-]?me|todo|placeholder", re.IGNORECASE
)


def _misspelt_credentials(
    given: Mapping[str, str], file: str, known_before: Collection[str], credentials: Mapping[str, str]
) -> list[str]:
    """Warn about variables that are nearly a credential which is not set."""
    names = _credential_names()
    missing = {name.replace("_", ""): name for name in names if name not in credentials}
    warnings = []
    for name in sorted(given):
        if name in names or name in known_before or not given[name]:
            continue
        written = re.sub("[_-]", "", name.upper())
        close = difflib.get_close_matches(written, missing, n=1, cutoff=0.9)
        if close:
            where = f" in {file}" if file else ""
            warnings.append(f"{name}{where} is not read: did you mean {missing[close[0]]}?")
    return warnings


def _drop_weaker(found: dict[str, _Given | None], one: str, other: str) -> None:
    """Of two settings that exclude each other, keep the one from the stronger source."""
    first, second = found.get(one), found.get(other)
    if first is None or second is None:
        return
    if first.rank == second.rank:
        raise ConfigError(
            f"{first.who} and {second.who} exclude each other",
            hint="a tunnel makes its own public address: leave one of the two out",
        )
    found[one if first.rank > second.rank else other] = None


#: Which transports a setting is for, where not for all.
_ONLY_FOR: Mapping[str, Callable[[str | None], bool]] = {
    "url": lambda transport: transport == "websocket-client",
    "header": lambda transport: transport == "websocket-client",
    "host": lambda transport: transport != "websocket-client",
    "port": lambda transport: transport != "websocket-client",
    "proxy": lambda transport: transport not in ("websocket-server", "websocket-client"),
    "tunnel": lambda transport: transport not in ("websocket-server", "websocket-client"),
    "max-calls": lambda transport: transport not in ("websocket-server", "websocket-client"),
    "stream-auth": lambda transport: transport not in ("websocket-server", "websocket-client"),
    "verify": lambda transport: transport not in PLAIN_TRANSPORTS,
    "record": lambda transport: transport not in PLAIN_TRANSPORTS,
}


def _drop_foreign(found: dict[str, _Given | None]) -> None:
    """Refuse flags that the transport has no use for; what the project's settings say for another is left alone."""
    given = found["transport"]
    transport = None if given is None else _transport(given.value, given.who)
    for name, is_for in _ONLY_FOR.items():
        setting = found.get(name)
        if setting is None or is_for(transport):
            continue
        if setting.rank == 0:
            if is_for("websocket-client"):
                raise ConfigError(f"{setting.who} is for a bot that dials out", hint="add `-t websocket-client`")
            served = f"-t {transport}" if transport else "telephone calls"
            raise ConfigError(f"{setting.who} has no meaning for {served}", hint=f"leave {setting.who} out")
        found[name] = None
    if transport == "websocket-client" and found["url"] is None:
        raise ConfigError(
            "-t websocket-client needs the address that the bot dials", hint="add `--url wss://bots.example.com/stream`"
        )


def _read_env_file(named: _Given | None, cwd: Path) -> tuple[Path | None, dict[str, str], list[str]]:
    """Read the ``.env`` that was named, or the one in `cwd` if there is one; also warn of what cannot be read."""
    if named is None:
        path, who = cwd / ".env", ".env"
        if not path.is_file():
            return None, {}, []
    else:
        path, who = cwd / Path(_text(named.value, named.who)).expanduser(), named.who
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(
            f"{who} names a file that is not there: {path}", hint="leave it out to read .env, if it is there"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file: byte {error.start} is not UTF-8", hint="save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError(f"{path} is not a text file: there is a zero byte in line {line}")
    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    good, warnings = [], []
    for statement in parse_stream(StringIO(text)):
        written = statement.original.string
        if not statement.error:
            good.append(written)
        elif written.strip():
            # Blank lines in front belong to it.
            line = statement.original.line + written[: len(written) - len(written.lstrip())].count("\n")
            warnings.append(f"{path.name}, line {line}, is not read: write NAME=value ({path})")
    found = dotenv_values(stream=StringIO("".join(good)))
    return path, {name: value for name, value in found.items() if value is not None}, warnings


def _read_pyproject(cwd: Path, command: str, settings: Sequence[Setting]) -> dict[str, Any]:
    """Read `command`'s table of ``pyproject.toml``, checked for unknown keys; empty without one."""
    path = cwd / "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file: byte {error.start} is not UTF-8", hint="save it as UTF-8"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", hint='texts stand in quotes there: transport = "twilio"'
        ) from None
    keys = ["tool", "wsvoice"] if command == "run" else ["tool", "wsvoice", command]
    table: Any = document
    for depth, key in enumerate(keys, start=1):
        table = table.get(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"pyproject.toml: [{'.'.join(keys[:depth])}] must be a table, got {table!r}")
        if depth == 2 and command != "run":
            _check_tables(table, command)
    known = {setting.name for setting in settings} | {_ENV_FILE.name}
    # [tool.wsvoice] also holds the other commands' tables.
    unknown = [key for key in table if key not in known and not (command == "run" and key == "dial")]
    for key in unknown:
        raise ConfigError(
            f"pyproject.toml [{'.'.join(keys)}] has no setting {key!r}",
            hint=did_you_mean(key.replace("_", "-"), known) or f"known are: {', '.join(sorted(known))}",
        )
    return dict(table)


def _check_tables(table: Mapping[str, Any], command: str) -> None:
    """Refuse a table that can only be a misspelt `command`, which has one beside the settings of ``wsvoice run``."""
    known = {setting.name for setting in RUN_SETTINGS} | {command}
    for key, value in table.items():
        if key not in known and isinstance(value, dict):
            raise ConfigError(
                f"pyproject.toml [tool.wsvoice] has no table {key!r}", hint=f"did you mean `[tool.wsvoice.{command}]`?"
            )


def _credentials(environ: Mapping[str, str], dotenv: Mapping[str, str]) -> dict[str, str]:
    """
    Collect every provider's credentials, without the blanks that came with a copy.

    An empty value in the environment takes one of ``.env`` back.
    """
    both = {**dotenv, **environ}
    stripped = {name: both.get(name, "").strip() for name in (*_credential_names(), START_KEY)}
    return {name: value for name, value in stripped.items() if value}


def _credential_names() -> Mapping[str, None]:
    """Return the variables that hold the providers' credentials, in their order."""
    from wsvoice.providers import PROVIDERS, load_company

    return dict.fromkeys(name for provider in PROVIDERS for name in load_company(provider).credential_names)
