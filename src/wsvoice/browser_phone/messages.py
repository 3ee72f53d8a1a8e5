"""
What a page may say: JSON for what its buttons do, and binary messages of sound.

Whoever has the page's address may send anything, so each message is held against its shape before it is looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wsvoice.audio.samples import MAX_RATE
from wsvoice.errors import WsvoiceError
from wsvoice.providers.fields import DIGITS

#: The longest text and the longest sound that one message may have, in characters and seconds.
TEXT_LIMIT, SOUND_LIMIT_S = 8192, 0.1
#: The lowest rate of a page's sound, in Hz: that of telephones. Browsers have 44.1 or 48 kHz.
LEAST_RATE = 8000
#: The longest message, in bytes.
MESSAGE_LIMIT = 2 * int(MAX_RATE * SOUND_LIMIT_S)
#: How many parameters, and how many quirks, a page may name; how long a word may be.
MAX_PAIRS, WORD_LIMIT = 50, 2000
#: How many keys at once.
MAX_KEYS = 20
#: How much faster than real time sound may come, and how much of it may come late and at once, in seconds.
FASTEST, SOUND_BURST_S = 1.1, 5.0
#: How many texts a second may come, and how many at once.
TEXTS_PER_S, TEXT_BURST = 20, 60


class PageError(WsvoiceError):
    """A page said what no page of ours says."""


class FloodError(PageError):
    """A page says more than a telephone call needs, so it is not listened to any more."""


@dataclass(frozen=True, slots=True)
class Dial:
    """
    The user wants a call.

    Attributes:
        rate: Samples a second of the page's sound, both ways.
        flags: What is set in the page, as options of ``wsvoice dial``.
    """

    rate: int
    flags: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Press:
    """The user presses keys."""

    keys: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """The user hangs up."""


@dataclass(frozen=True, slots=True)
class Save:
    """The user wants a test made of the call of that number; `file` is empty for the usual name."""

    call: int
    file: str


Said = Dial | Press | HangUp | Save


def read_message(text: str) -> Said:
    """
    Return what a page says.

    Raises:
        PageError: If it is nothing that a page of ours says.
    """
    if len(text) > TEXT_LIMIT:
        raise PageError(f"the page sent a message of {len(text)} characters, and {TEXT_LIMIT} are the most")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise PageError("the page sent a message that is no JSON") from None
    kind = told.pop("type", None) if isinstance(told, dict) else None
    shape = _SHAPES.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise PageError("the page sent a message of no kind that there is")
    fields, make = shape
    if wrong := next((name for name in told if name not in fields), None):
        raise PageError(f"the page's message {kind!r} has something else in it: {wrong[:40]!r}")
    for name, fits in fields.items():
        if name in told and not fits(told[name]):
            raise PageError(f"the page's message {kind!r} has a wrong {name!r}")
    try:
        return make(told)
    except KeyError as error:
        raise PageError(f"the page's message {kind!r} has no {error.args[0]!r}") from None


def check_sound(pcm: bytes, rate: int) -> None:
    """
    Raise :exc:`PageError` unless `pcm` may be a piece of a page's sound.

    Args:
        pcm: The message.
        rate: The page's samples a second.
    """
    if len(pcm) % 2:
        raise PageError("the page sent half a sample")
    if len(pcm) > 2 * rate * SOUND_LIMIT_S:
        raise PageError(f"the page sent {len(pcm) * 500 / rate:.0f} ms of sound at once", hint="reload the page")


@dataclass(slots=True)
class Allowance:
    """
    How much a page may still say.

    Args:
        now: The time, in seconds.
        burst: How much it may say at once.
        per_s: How much more each second.
    """

    now: Callable[[], float]
    burst: float
    per_s: float
    _left: float = field(default=0.0, init=False)
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._left, self._at = self.burst, self.now()

    def spend(self, amount: float, what: str) -> None:
        """
        Note that the page has said so much.

        Raises:
            FloodError: If that was more than it may.
        """
        now = self.now()
        self._left = min(self.burst, self._left + (now - self._at) * self.per_s) - amount
        self._at = now
        if self._left < 0:
            raise FloodError(f"the page sends {what} than a call has", hint="reload the page")


# The shapes


def _is_word(value: object) -> bool:
    return isinstance(value, str) and len(value) <= WORD_LIMIT and value.isprintable()


def _is_list_of_words(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MAX_PAIRS and all(map(_is_word, value))


def _is_text(value: object) -> bool:
    """Whether it may be what somebody has typed, which is looked at where it is used; :data:`TEXT_LIMIT` bounds it."""
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 1_000_000


def _is_rate(value: object) -> bool:
    return type(value) is int and LEAST_RATE <= value <= MAX_RATE


def _is_keys(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_KEYS and set(value) <= DIGITS


#: What a page may set: options of ``wsvoice dial``.
FLAGS: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("target", "transport", "from", "to"), _is_word),
    **dict.fromkeys(("param", "quirk"), _is_list_of_words),
}

_SHAPES: Mapping[str, tuple[Mapping[str, Callable[[object], bool]], Callable[[dict[str, Any]], Said]]] = {
    "dial": ({"rate": _is_rate, **FLAGS}, lambda told: Dial(told.pop("rate"), told)),
    "press": ({"keys": _is_keys}, lambda told: Press(told["keys"])),
    "hang-up": ({}, lambda told: HangUp()),
    "save": ({"call": _is_count, "file": _is_text}, lambda told: Save(told["call"], told.get("file", ""))),
}
