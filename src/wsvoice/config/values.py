"""
How the values of settings are read.

Each function takes what was given and who gave it, for messages, and returns what the configuration holds.
"""

from __future__ import annotations

import ipaddress
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

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


def _refusal(value: object, who: str, takes: str, hint: str | None = None) -> ConfigError:
    return ConfigError(f"{who} takes {takes}, got {value!r}", hint=hint)


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


def parse_at_least_one(value: object, who: str) -> int:
    return _whole(value, who, least=1, what="a whole number from 1 up", hint="for no limit, leave it out")


def parse_switch(value: object, who: str) -> bool:
    word = str(value).strip().lower() if isinstance(value, str | bool) else ""
    if word in {"1", "true", "yes", "on"}:
        return True
    if word in {"0", "false", "no", "off"}:
        return False
    raise _refusal(value, who, "true or false")


_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)?")
_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(value: object, who: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``500ms``, ``2m`` or ``1h``."""
    seconds = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and (match := _DURATION.fullmatch(value.strip().lower())):
        seconds = float(match[1]) * _UNITS_S[match[2] or ""]
    if not math.isfinite(seconds) or seconds < 0:
        raise _refusal(value, who, "a duration", "write seconds, or a unit: `90`, `90s`, `2m`, `1h`")
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
    share = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        share = float(value)
    elif isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        share = float(match[1]) / (100 if match[2] else 1)
    if not 0 < share <= 1:
        raise _refusal(value, who, "a share above 0% and up to 100%", "write it like `1%` or `0.01`")
    return share


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


def _host_and_port(rest: str) -> tuple[str, int | None]:
    """Return host and port of a URL without its scheme; the host is empty if it is not valid."""
    try:
        parts = urlsplit(f"//{rest}")
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


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
    if path.suffix.lower() in _OTHER_SOUND:
        hint = f"use `{path.with_suffix('.wav')}`; ffmpeg converts it to anything else"
        raise ConfigError(f"{who} writes a WAV file, got {str(path)!r}", hint=hint)
    return path


def parse_digits(value: object, who: str) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else parse_text(value, who)
    if wrong := re.search(r"[^0-9*#A-Da-dw]", text):
        problem = f"{who} takes the keys 0-9 * # A-D, and w for a pause: got {wrong[0]!r} in {text!r}"
        raise ConfigError(problem, hint="`w` waits half a second: `--dtmf 1w2#`")
    return text
