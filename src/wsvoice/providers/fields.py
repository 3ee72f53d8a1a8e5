"""
The fields of messages as media streams carry them: JSON objects that hold base64 audio.

Reading is tolerant where providers differ (a counter is a number, a string, or missing) and strict where a
mistake would be heard (base64). Whatever the other end sends, nothing but
:exc:`~wsvoice.errors.RemoteProtocolError` comes out, and no error repeats more than a few characters of it.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from wsvoice.errors import RemoteProtocolError

#: No error message of the other end's making is longer, in characters.
MESSAGE_LIMIT = 200

#: Characters of a text that is told and not needed.
TEXT_LIMIT = 200
#: The keys of a telephone.
DIGITS = frozenset("0123456789*#ABCD")

# https://www.rfc-editor.org/rfc/rfc2822#section-3.3 - English whatever the process's language is.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_RFC2822 = re.compile(r"(?:\w{3}, )?(\d{1,2}) (\w{3}) (\d{4}) (\d\d:\d\d:\d\d) ([+-]\d\d)(\d\d)")
_COUNTER_DIGITS = 18
_SHOWN = 40


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


# NaN and Infinity are Python's, not JSON's. One decoder for all messages: json.loads builds one a call
# when it is given arguments.
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them: ``A``, ``A and B``, ``A, B and C``."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def shown(value: object) -> str:
    """Return `value` for an error message: quoted, and no longer than a few words."""
    if isinstance(value, str):
        cut = value[:_SHOWN]
        return ascii(cut)[: 2 * _SHOWN] + ("..." if len(value) > len(cut) else "")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return "a number"


def broken(kind: str, message: str) -> RemoteProtocolError:
    """Return the error for a message of the other end's that is broken in the way `kind`."""
    if len(message) > MESSAGE_LIMIT:
        message = message[: MESSAGE_LIMIT - 3] + "..."
    return RemoteProtocolError(kind, message)


def read_object(message: str | bytes) -> dict[str, Any]:
    """Return the JSON object that is the text `message`; kinds of errors: ``binary``, ``not-json``, ``not-object``."""
    value = _read_json(message)
    if not isinstance(value, dict):
        raise broken("not-object", f"JSON, but {shown(value)} instead of an object")
    return value


def read_array(message: str | bytes) -> list[Any]:
    """Return the JSON array that is the text `message`; kinds of errors: ``binary``, ``not-json``, ``not-array``."""
    value = _read_json(message)
    if not isinstance(value, list):
        raise broken("not-array", f"JSON, but {shown(value)} instead of an array")
    return value


def _read_json(message: str | bytes) -> Any:
    if not isinstance(message, str):
        raise broken("binary", f"a binary message of {len(message)} bytes, where JSON text is due")
    try:
        value = _decode(message)
        if not message.isascii() or "\\ud" in message or "\\uD" in message:
            # Half of a surrogate pair is well-formed JSON, and blows up wherever the text is sent on.
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise broken("not-json", "JSON that is nested too deeply") from None
    except ValueError as error:
        raise broken("not-json", f"not JSON: {_reason(error)}") from None
    return value


def _decode(message: str) -> Any:
    if message.startswith("{"):
        # Without looking for blanks around it, which carriers do not send.
        value, end = _decoder.raw_decode(message)
        if end == len(message):
            return value
    return _decoder.decode(message)


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair"
    return str(error)


def read_text(value: object, kind: str, what: str) -> str:
    """Return `value` if it is a string with something in it; else the error is of that `kind`, and names it `what`."""
    if isinstance(value, str) and value:
        return value
    raise broken(kind, f"{what} is {shown(value)}, not a text")


def read_parameters(value: object) -> dict[str, str]:
    """
    Return custom parameters as texts, numbers as JSON writes them.

    What is no object has none, and what is neither text nor number is none: a call does not fail of it.
    """
    if not isinstance(value, dict):
        return {}
    return {
        name: content if isinstance(content, str) else json.dumps(content)
        for name, content in value.items()
        if not isinstance(content, dict | list)
    }


def read_counter(value: object) -> int | None:
    """Return a counter that is written as a number or as a string of digits; ``None`` if it is neither."""
    if isinstance(value, str):
        if len(value) <= _COUNTER_DIGITS and value.isascii() and value.isdigit():
            return int(value)
        return None
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**_COUNTER_DIGITS:
        return value
    return None


def read_payload(value: object) -> bytes:
    """Return the bytes of a base64 payload; what is no string is ``bad-media``, what is not base64 ``bad-base64``."""
    if not isinstance(value, str):
        raise broken("bad-media", f"media.payload is {shown(value)}, not base64 text")
    # Strict mode lets surplus padding pass; the length does not.
    if len(value) & 3:
        raise broken("bad-base64", f"media.payload has {len(value)} characters, which no base64 has")
    try:
        return a2b_base64(value, strict_mode=True)
    except ValueError as error:
        raise broken("bad-base64", f"media.payload is not base64: {error}") from None


def read_signature(text: str) -> bytes:
    """
    Return the bytes that `text` is the base64 of; none if it is not base64, down to the last character.

    The text may differ where the bytes do not, for its last character can hold bits that stand for nothing.
    """
    if len(text) & 3:
        return b""
    try:
        return a2b_base64(text, strict_mode=True)
    except ValueError:
        return b""


def write_payload(payload: bytes) -> str:
    """Return `payload` in base64."""
    return b2a_base64(payload, newline=False).decode("ascii")


def write_object(value: dict[str, Any]) -> str:
    """Return `value` as a JSON message, without spaces."""
    return json.dumps(value, separators=(",", ":"))


def write_time(at: float) -> str:
    """Return the Unix time `at` as providers write it: ISO 8601, UTC, to the microsecond."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def write_rfc2822(at: float) -> str:
    """Return the Unix time `at` as forms have it, such as ``Tue, 02 Dec 2025 10:00:00 +0000``."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{_DAYS[moment.weekday()]}, {moment:%d} {_MONTHS[moment.month - 1]} {moment:%Y %H:%M:%S} +0000"


def read_rfc2822(value: object) -> float | None:
    """Return the Unix time of what :func:`write_rfc2822` writes, in any time zone; ``None`` if it is none."""
    match = _RFC2822.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in _MONTHS:
        return None
    month = _MONTHS.index(match[2]) + 1
    return read_time(f"{match[3]}-{month:02}-{int(match[1]):02}T{match[4]}{match[5]}:{match[6]}")


def read_time(value: object) -> float | None:
    """Return the Unix time that an ISO 8601 text stands for; ``None`` if it is none."""
    if not isinstance(value, str) or len(value) > _SHOWN:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def read_basic(header: str) -> tuple[str, str]:
    """Return user name and password of an ``Authorization`` header; two empty texts if it holds none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, _, password = a2b_base64(encoded.strip(), strict_mode=True).decode().partition(":")
    except ValueError:
        return "", ""
    return user, password


def read_inner(content: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """Return the object that a message holds under `name`; without one the error is of that `kind`."""
    inner = content.get(name)
    if isinstance(inner, dict):
        return inner
    raise broken(kind, f"{name} is {shown(inner)}, not an object")


def with_plus(number: str) -> str:
    """Return a number with its ``+``, which some write without."""
    return f"+{number}" if number.isascii() and number.isdigit() else number


def without_plus(number: str) -> str:
    """Return a number as those write it who leave its ``+`` out."""
    bare = number.removeprefix("+")
    return bare if bare.isascii() and bare.isdigit() else number


def squeezed(content_type: str) -> str:
    """Return a content type in lower case, and without spaces."""
    return "".join(content_type.split()).lower()


def read_digit(value: object) -> str:
    """Return a key that was pressed, which some write as a number; any other value is ``bad-dtmf``."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 9:
        value = str(value)
    if not isinstance(value, str) or value not in DIGITS:
        raise broken("bad-dtmf", f"the digit is {shown(value)}, not one of 0-9 * # A-D")
    return value


def text_or_nothing(value: object, limit: int = TEXT_LIMIT) -> str:
    """Return a text, cut after `limit` characters; nothing for what is none."""
    return value[:limit] if isinstance(value, str) else ""


def start_of(message: object) -> Mapping[str, Any]:
    """Return what a start message of JSON holds under ``start``; nothing for any other message."""
    start = message.get("start") if isinstance(message, Mapping) and message.get("event") == "start" else None
    return start if isinstance(start, Mapping) else {}
