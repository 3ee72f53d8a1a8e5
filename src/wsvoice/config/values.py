"""
How the values of settings are read.

Each function takes what was given and who gave it, for messages, and returns what the configuration holds.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from wsvoice.config.spelling import did_you_mean
from wsvoice.errors import ConfigError

#: Transports without a telephone company: clients at ``/ws-client``, one client on a port of its own, and a server
#: that the bot dials.
PLAIN_TRANSPORTS = ("websocket", "websocket-server", "websocket-client")
#: The tunnels that are known by name.
TUNNELS = ("ngrok", "cloudflared")


def parse_text(value: object, who: str) -> str:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise _refusal(value, who, "text", "put it in quotes")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise _refusal(value, who, "text without control characters", "write it in one line")
    return value


def parse_language(value: object, who: str) -> str:
    text = parse_text(value, who)
    # https://www.loc.gov/standards/iso639-2/php/code_list.php
    if not re.fullmatch(r"[a-z]{2,3}", text):
        raise _refusal(value, who, "a language as two letters", "such as en or es")
    return text


def _refusal(value: object, who: str, takes: str, hint: str | None = None) -> ConfigError:
    return ConfigError(f"{who} takes {takes}, got {value!r}", hint=hint)


#: More processes than any machine has processors for.
MAX_WORKERS = 256


def _whole(value: object, who: str, *, least: int, most: float = math.inf, what: str, hint: str) -> int:
    number = value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,18}", value.strip()):
        number = int(value)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise _refusal(value, who, what, hint)
    return number


def parse_port(value: object, who: str) -> int:
    hint = "7860 is the usual one; 0 takes a free one"
    return _whole(value, who, least=0, most=65535, what="a port, 0 to 65535", hint=hint)


def parse_metrics_port(value: object, who: str) -> int:
    hint = "9090 is a usual one; 0 takes a free one"
    return _whole(value, who, least=0, most=65535, what="a port, 0 to 65535", hint=hint)


def at_least_one(hint: str) -> Callable[[object, str], int]:
    """Return a parser for whole numbers from 1 up; a refusal gives `hint`."""
    return lambda value, who: _whole(value, who, least=1, what="a whole number from 1 up", hint=hint)


def parse_workers(value: object, who: str) -> int:
    """Return how many workers there are; ``auto`` is one for each processor that this process may use, 0 is none."""
    if isinstance(value, str) and value.strip().lower() == "auto":
        return usable_processors()
    hint = "auto is one for each processor, 0 none: the server's own process runs the bot"
    return _whole(value, who, least=0, most=MAX_WORKERS, what=f"a whole number up to {MAX_WORKERS}, or auto", hint=hint)


def usable_processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def parse_limit(value: object, who: str) -> int:
    return _whole(value, who, least=0, what="a whole number from 0 up", hint="for no limit, write 0")


def parse_switch(value: object, who: str) -> bool:
    word = str(value).strip().lower() if isinstance(value, str | bool) else ""
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise _refusal(value, who, "true or false")


_AMOUNT = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
#: A number of seconds, or amounts from the largest unit to the smallest.
_DURATION = re.compile(rf"({_AMOUNT})|(?=.)(?:({_AMOUNT})h)?(?:({_AMOUNT})m)?(?:({_AMOUNT})s)?(?:({_AMOUNT})ms)?")
#: The seconds of each of its groups.
_DURATION_UNITS_S = (1.0, 3600.0, 60.0, 1.0, 0.001)
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object, who: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``500ms``, ``2m``, ``1h`` or ``1h30m``."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip().lower())):
        seconds = sum(float(each or 0) * unit_s for each, unit_s in zip(match.groups(), _DURATION_UNITS_S, strict=True))
    if not math.isfinite(seconds) or seconds < 0:
        raise _refusal(value, who, "a duration", "write seconds, or units: `90`, `90s`, `2m`, `1h30m`")
    return seconds


def parse_positive_duration(value: object, who: str) -> float:
    seconds = parse_duration(value, who)
    if not seconds:
        raise _refusal(value, who, "a duration above zero", "write seconds, or a unit: `5`, `500ms`, `2m`")
    return seconds


def duration_up_to(most_s: float, shown: str) -> Callable[[object, str], float]:
    """Return what parses a duration from 1 s to `most_s`, which a refusal calls `shown`."""

    def parse(value: object, who: str) -> float:
        seconds = parse_duration(value, who)
        if not 1 <= seconds <= most_s:
            raise _refusal(value, who, f"a duration from 1s to {shown}", "write seconds, or a unit: `90`, `90s`, `2m`")
        return seconds

    return parse


_RATE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:/(s|m|h))?")


def parse_rate(value: object, who: str) -> float:
    """Return how often a second ``5/s``, ``5``, ``0.5/s`` or ``90/m`` is."""
    rate = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        rate = float(value)
    elif isinstance(value, str) and (match := _RATE.fullmatch(value.strip().lower())):
        rate = float(match[1]) / _UNITS_S[match[2] or "s"]
    if not math.isfinite(rate) or rate <= 0:
        raise _refusal(value, who, "a rate above zero", "write how many a second, or a minute: `5/s`, `90/m`")
    return rate


_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)(%)?")


def parse_share(value: object, who: str) -> float:
    """Return the share from 0 to 1 that ``1%`` or ``0.01`` is."""
    share = _read_share(value)
    if not 0 < share <= 1:
        raise _refusal(value, who, "a share above 0% and up to 100%", "write it like `1%` or `0.01`")
    return share


def parse_growth(value: object, who: str) -> float:
    """Return the share, which may be more than the whole, that ``150%`` or ``1.5`` is."""
    share = _read_share(value)
    if not 0 < share < math.inf:
        raise _refusal(value, who, "a share above 0%", "write it like `25%` or `0.25`")
    return share


def _read_share(value: object) -> float:
    """Return what ``1%`` or ``0.01`` is; NaN if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        return float(match[1]) / (100 if match[2] else 1)
    return math.nan


def parse_choice(value: object, who: str, choices: Sequence[str]) -> str:
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
    raise _refusal(value, who, known, hint)


def one_of(*choices: str) -> Callable[[object, str], str]:
    return lambda value, who: parse_choice(value, who, choices)


def some_of(*choices: str) -> Callable[[object, str], frozenset[str]]:
    return lambda value, who: frozenset(parse_choice(each, who, choices) for each in _listed(value, who))


def parse_provider(value: object, who: str) -> str:
    from wsvoice.providers import PROVIDERS

    return parse_choice(value, who, tuple(PROVIDERS))


def parse_transport(value: object, who: str) -> str:
    from wsvoice.providers import PROVIDERS

    return parse_choice(value, who, (*PROVIDERS, *PLAIN_TRANSPORTS))


def parse_ws_url(value: object, who: str) -> str:
    text = parse_text(value, who).strip()
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in {"ws", "wss"}:
        other = {"http": "ws", "https": "wss"}.get(scheme.lower()) if separator else None
        example = f"{other}://{rest}" if other else "wss://bots.example.com/stream"
        raise _refusal(text, who, "a ws:// or wss:// address", f"for example `--url {example}`")
    host, _ = _host_and_port(rest)
    if not host or re.search(r"\s", rest):
        problem = f"{who} takes a ws:// or wss:// address, and {text!r} names no host"
        raise ConfigError(problem, hint="for example `--url wss://bots.example.com/stream`")
    return text


def parse_redis_url(value: object, who: str) -> str:
    """
    Return the URL of a Redis server, which may hold a password.

    https://redis.readthedocs.io/en/stable/connections.html#redis.Redis.from_url
    """
    text = parse_text(value, who).strip()
    scheme, separator, rest = text.partition("://")
    hint = "for example `redis://localhost:6379/0`, `rediss://…` for TLS, `unix:///run/redis/redis.sock`"
    if not separator or scheme not in {"redis", "rediss", "unix"}:
        # What is no such URL may be a password all the same.
        raise ConfigError(f"{who} takes a redis://, rediss:// or unix:// address", hint=hint)
    host, _ = _host_and_port(rest)
    if (not host if scheme != "unix" else not rest.startswith("/")) or re.search(r"\s", rest):
        problem = "path of a socket" if scheme == "unix" else "host"
        raise ConfigError(f"{who} takes the address of a Redis server, and names no {problem}", hint=hint)
    return text


def _host_and_port(rest: str) -> tuple[str, int | None]:
    """Return host and port of a URL without its scheme; the host is empty if it is not valid."""
    try:
        parts = urlsplit(f"//{rest}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


#: Characters of what a provider says to a caller; Vonage takes 1500, the others more:
#: https://developer.vonage.com/en/voice/voice-api/ncco-reference#talk
MESSAGE_LIMIT = 1000
#: Suffixes of other sound files than WAV.
_OTHER_SOUND = frozenset({".aac", ".aif", ".aiff", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".webm"})
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


#: Country code and number have fifteen digits at most: https://www.itu.int/rec/T-REC-E.164
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_SEPARATORS = re.compile(r"[\s().\-/\u00a0\u2010-\u2015]")


def parse_number(value: object, who: str) -> str:
    """Return a phone number in E.164, such as ``+15551234567``; what people write between the digits is left out."""
    # TOML takes a number with a plus for an integer, and drops the plus.
    text = parse_text(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, who).strip()
    if "(0)" in text:
        digits = _SEPARATORS.sub("", text.replace("(0)", ""))
        raise _refusal(text, who, "a number as it is dialled from abroad", f"leave out the (0): `{digits}`")
    number = _SEPARATORS.sub("", text)
    if _E164.fullmatch(number):
        return number
    hint = "write the plus, the country code and the number: `+15551234567`"
    international = re.fullmatch(r"(?:00|011)?([1-9][0-9]{9,14})", number)
    if international is not None:
        hint = f"write the plus and the country code: `+{international[1]}`, if that is what it begins with"
    raise _refusal(text, who, "a phone number with its country code", hint)


def is_phone_number(text: str) -> bool:
    """Return whether `text` is meant to be a phone number, whether or not it can be called."""
    bare = _SEPARATORS.sub("", text)
    # Without a plus it may also be a port, or with dots an address.
    return bare.startswith("+") or (re.fullmatch(r"[0-9]{7,}", bare) is not None and "." not in text)


def parse_headers(value: object, who: str) -> dict[str, str]:
    """
    Return a mapping of one, or of ``Name: value`` texts.

    https://www.rfc-editor.org/rfc/rfc9110#section-5
    """
    example = "for example `--header 'Authorization: Bearer abc'`"

    def split(text: str) -> tuple[str, str]:
        name, colon, item = text.partition(":")
        if not colon:
            # The text may be a secret, so it is not shown.
            raise ConfigError(f"{who} takes `Name: value`, and there is no colon", hint=example)
        return name.strip(), item.strip()

    headers = _mapping(value, who, split, commas=False)
    for name in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{who} takes `Name: value`, and {name!r} is no header's name", hint=example)
    return headers


_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


def domain(option: str, example: str) -> Callable[[object, str], str]:
    """Return a parser for a public domain, which `option` takes, such as `example`."""
    return lambda value, who: _domain(value, who, option, example)


def _domain(value: object, who: str, option: str, example: str) -> str:
    """Return ``host[:port]`` in lower case, of that or of a URL with nothing else in it."""
    text = parse_text(value, who).strip()
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in {"http", "https", "ws", "wss"}:
        problem = f"{who} takes a domain, not a {scheme}:// address: got {text!r}"
        raise ConfigError(problem, hint=f"for example `{option} {example}`")
    if _is_ipv6(rest):
        raise _refusal(text, who, "an IPv6 address in brackets", f"use `{option} [{rest}]`")
    host, port = _host_and_port(rest)
    with suppress(UnicodeError):
        host = f"[{host}]" if _is_ipv6(host) else host.encode("idna").decode("ascii")
    is_domain = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in host.split("."))
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if not (is_domain or host.startswith("[")) or port == 0 or re.search(r":$|\][^:]", authority):
        raise _refusal(text, who, "a domain", f"for example `{option} {example}`, or `{option} {example}:8443`")
    taken = host if port is None else f"{host}:{port}"
    parts = urlsplit(f"//{rest}")
    for part, is_given in {
        "user name": "@" in authority,
        "path": parts.path[1:],
        "query": parts.query,
        "fragment": parts.fragment,
    }.items():
        if is_given:
            raise ConfigError(
                f"{who} takes a domain, not a URL with a {part}: got {text!r}", hint=f"use `{option} {taken}`"
            )
    return taken


def parse_tunnel(value: object, who: str) -> str:
    """Return one of :data:`TUNNELS`, or a command with ``{port}`` in it."""
    text = parse_text(value, who).strip()
    if "{port}" not in text:
        if text.lower() in TUNNELS:
            return text.lower()
        takes = f"{', '.join(TUNNELS)} or a command with {{port}} in it"
        hint = did_you_mean(text, TUNNELS) or "for example `--tunnel 'tailscale funnel {port}'`"
        raise _refusal(text, who, takes, hint)
    try:
        shlex.split(text)
    except ValueError:
        raise _refusal(text, who, "a command", "a quotation mark in it has no second one") from None
    return text


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text


def parse_host(value: object, who: str) -> str:
    host = parse_text(value, who).strip()
    if not host or re.search(r"[\s/@?#]", host):
        hint = "`localhost` for this machine only, `0.0.0.0` for every network"
        raise _refusal(value, who, "an address to listen on", hint)
    return host.strip("[]")


_PARAMETER_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def pairs(example: str) -> Callable[[object, str], dict[str, str]]:
    """Return a parser for a mapping, ``key=value`` texts, or one text of them with commas between; see `example`."""
    return lambda value, who: _pairs(value, who, example)


def _pairs(value: object, who: str, example: str) -> dict[str, str]:
    def split(item: str) -> tuple[str, str]:
        key, equals, given = item.partition("=")
        if not equals:
            option, _, usual = example.partition(" ")
            # The example has a valid value if it is for this name.
            suggestion = usual if usual.partition("=")[0] == item.strip() else f"{item}=VALUE"
            raise _refusal(item, who, "key=value", f"for example `{option} {suggestion}`")
        return key.strip(), given

    pairs = _mapping(value, who, split)
    for key in pairs:
        if not _PARAMETER_NAME.fullmatch(key):
            raise _refusal(key, who, "names of letters, digits, `_`, `.` and `-`", f"for example `{example}`")
    return pairs


def _mapping(
    value: object, who: str, split: Callable[[str], tuple[str, str]], *, commas: bool = True
) -> dict[str, str]:
    """Return a mapping of texts: `value` itself, or the texts in it once `split`."""
    if isinstance(value, Mapping):
        return {str(key): _scalar(item, f"{who}.{key}") for key, item in value.items()}
    return dict(map(split, _listed(value, who, commas=commas)))


def _scalar(value: object, who: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else parse_text(value, who)


def _listed(value: object, who: str, *, commas: bool = True) -> list[str]:
    """Return a list of texts; without `commas`, a text that has some in it is one of them."""
    if isinstance(value, str) and commas:
        return [item.strip() for item in value.split(",") if item.strip()]
    return [parse_text(item, who) for item in (value if isinstance(value, list | tuple) else [value])]


def parse_names(value: object, who: str) -> frozenset[str]:
    return frozenset(_listed(value, who))


def parse_paths(value: object, who: str) -> tuple[Path, ...]:
    return tuple(Path(item).expanduser() for item in _listed(value, who))


def parse_utterances(value: object, who: str) -> tuple[str, ...]:
    texts = _listed(value, who, commas=False)
    if any(not text.strip() for text in texts):
        raise _refusal(value, who, "words to say", "for example `--say 'When are you open?'`")
    return tuple(texts)


def parse_server(value: object, who: str) -> str:
    """Return the address of a server, with a slash at its end; a port alone is one of this machine's."""
    text = str(value).strip() if isinstance(value, int) else parse_text(value, who).strip()
    if re.fullmatch(r":?[0-9]{1,5}", text):
        return f"http://localhost:{parse_port(text.removeprefix(':'), who)}/"
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http" if _host_and_port(text)[1] else "https", text
    host, _ = _host_and_port(rest)
    if scheme.lower() not in {"http", "https"} or not host or re.search(r"[\s@?#]", rest):
        raise _refusal(text, who, "a server's address or port", "for example `--server https://bot.example.com`")
    return f"{scheme.lower()}://{rest.rstrip('/')}/"


def parse_file(value: object, who: str) -> Path:
    return Path(parse_text(value, who)).expanduser()


def parse_http_url(value: object, who: str) -> str:
    text = parse_text(value, who)
    if split_http_url(text) is None:
        raise _refusal(value, who, "an http(s) URL", "write it like https://api.openai.com/v1")
    return text.rstrip("/")


def split_http_url(text: str) -> SplitResult | None:
    """Return the parts of an http(s) URL; ``None`` if the text is none."""
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return None
    return parts if is_url else None


def parse_folder(value: object, who: str) -> Path:
    path = Path(parse_text(value, who)).expanduser()
    if path.exists() and not path.is_dir():
        folder = path.with_suffix("") if path.suffix else path.parent
        raise ConfigError(f"{who} takes a folder, and {path} is a file", hint=f"use `{folder}`")
    return path


def parse_wav_to_write(value: object, who: str) -> Path:
    path = Path(parse_text(value, who)).expanduser()
    if path.is_dir():
        raise ConfigError(f"{who} takes a file, and {path} is a folder", hint=f"use `{path / 'call.wav'}`")
    if path.suffix.lower() != ".wav":
        converted = "; ffmpeg converts it to anything else" if path.suffix.lower() in _OTHER_SOUND else ""
        hint = f"use `{path.with_suffix('.wav')}`{converted}"
        raise ConfigError(f"{who} writes a WAV file, got {str(path)!r}", hint=hint)
    return path


def parse_trace_to_write(value: object, who: str) -> Path:
    path = Path(parse_text(value, who)).expanduser()
    if path.suffix != ".call":
        raise ConfigError(f"{who} writes a trace, got {str(path)!r}", hint=f"use `{path.with_suffix('.call')}`")
    return path


def parse_busy_message(value: object, who: str) -> str | Path:
    """Return the path of a sound file, which is known by its suffix; of anything else the text."""
    text = parse_text(value, who).strip()
    if Path(text).suffix.lower() in {".wav", *_OTHER_SOUND}:
        # Calls may come when the process has gone to another folder.
        return Path(text).expanduser().absolute()
    if not 1 <= len(text) <= MESSAGE_LIMIT:
        what = f"a sound file, or a text of 1 to {MESSAGE_LIMIT} characters"
        raise ConfigError(f"{who} takes {what}, not of {len(text)}", hint="for the provider's own busy, leave it out")
    return text


def parse_digits(value: object, who: str) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value, who)
    if wrong := re.search(r"[^0-9*#A-Da-dw]", text):
        problem = f"{who} takes the keys 0-9 * # A-D, and w for a pause: got {wrong[0]!r} in {text!r}"
        raise ConfigError(problem, hint="`w` waits half a second: `--dtmf 1w2#`")
    return text


# -- Names of what is deployed --

_NAME_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
#: With room for what is added to the name: that of a pod has 17 characters more, and a label has 63 at most.
MAX_SERVICE_NAME = 40


def parse_label(value: object, who: str) -> str:
    """
    Return a name of small letters, digits and hyphens, as a namespace has it.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-label-names
    """
    text = parse_text(value, who).strip()
    if len(text) <= 63 and _NAME_LABEL.fullmatch(text):
        return text
    hint = f"for example `{nearest_name(text, 63) or 'voice'}`"
    raise _refusal(text, who, "small letters, digits and hyphens, 63 at most", hint)


def parse_service_name(value: object, who: str) -> str:
    """
    Return a name that a Service may have too, so that everything can have it.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#rfc-1035-label-names
    """
    text = parse_text(value, who).strip()
    if len(text) <= MAX_SERVICE_NAME and _NAME_LABEL.fullmatch(text) and text[0].isalpha():
        return text
    takes = f"small letters, digits and hyphens that begin with a letter, {MAX_SERVICE_NAME} at most"
    raise _refusal(text, who, takes, f"for example `{nearest_name(text) or 'voice-bot'}`")


def nearest_name(text: str, most: int = MAX_SERVICE_NAME) -> str:
    """Return the name for a Service that is most like `text`; empty if nothing of it can be used."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())
    return re.sub(r"^[^a-z]+", "", name)[:most].rstrip("-")


def parse_object_name(value: object, who: str) -> str:
    """
    Return the name of an object such as a Secret.

    https://kubernetes.io/docs/concepts/overview/working-with-objects/names/#dns-subdomain-names
    """
    text = parse_text(value, who).strip()
    if len(text) <= 253 and all(_NAME_LABEL.fullmatch(part) and len(part) <= 63 for part in text.split(".")):
        return text
    hint = f"for example `{nearest_name(text, 63) or 'bot-secrets'}`"
    raise _refusal(text, who, "small letters, digits, hyphens and dots", hint)


def parse_public_name(value: object, who: str) -> str:
    """Return a public domain without a port: certificates and an Ingress are for names, on the ports of HTTP."""
    text = _domain(value, who, "--host", "bot.example.com")
    name, _, port = text.partition(":")
    if port and not text.startswith("["):
        raise _refusal(text, who, "a domain without a port", f"use `--host {name}`")
    is_name = "." in name and not name.rpartition(".")[2].isdigit() and all(map(_NAME_LABEL.fullmatch, name.split(".")))
    if not is_name:
        what = "a public domain, for which a certificate can be had"
        raise _refusal(text, who, what, "for example `--host bot.example.com`")
    return name


# https://github.com/distribution/reference/blob/main/reference.go; what is before the first slash is a registry if it
# has a dot or a port.
_REGISTRY = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|[A-Za-z0-9.-]+(?=:)|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?"
_REPOSITORY = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:{_REGISTRY}/)?{_REPOSITORY}(?:/{_REPOSITORY})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)


def parse_image(value: object, who: str) -> str:
    """Return the reference of a container image, such as ``registry.example.com/team/bot:1.4``."""
    text = parse_text(value, who).strip()
    if len(text) <= 512 and _IMAGE.fullmatch(text):
        return text
    hint = "for example `--image registry.example.com/voice/bot:1.0`"
    if text != text.lower() and _IMAGE.fullmatch(text.lower()):
        hint = f"a repository is written in small letters: `--image {text.lower()}`"
    raise _refusal(text, who, "the reference of a container image", hint)


def parse_prometheus(value: object, who: str) -> str:
    """Return the address of a Prometheus server, without a slash at its end."""
    text = parse_text(value, who).strip()
    scheme, separator, rest = text.partition("://")
    host, _ = _host_and_port(rest)
    if not separator or scheme.lower() not in {"http", "https"} or not host or re.search(r"[\s@?#]", rest):
        hint = "for example `--prometheus http://prometheus-server.monitoring.svc:80`"
        raise _refusal(text, who, "the http:// or https:// address of Prometheus", hint)
    return f"{scheme.lower()}://{rest.rstrip('/')}"
