"""
What a trace must not hold: secrets never, and with ``--redact`` nothing that tells who called.

Everything here works on text: a secret that is known is replaced wherever it stands, and one that is not is known by
the name before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from urllib.parse import quote, quote_plus

from wsvoice.call import Call

#: What stands in the place of what is left out.
MASK = "***"
#: Shorter words are not looked for as secrets: they would be found in any text.
MIN_SECRET = 6
#: Shorter values of parameters are left out where the parameters stand, but not looked for elsewhere.
MIN_VALUE = 4
#: Names whose values are secrets, wherever they stand.
_NAME = (
    r"[\w.-]{0,40}(?:token|secret|passw(?:or)?d|signature|authorization|api[_-]?key|credential|jwt|shadow)[\w.-]{0,40}"
)
_SECRETS = re.compile(
    # In JSON, also in JSON inside of JSON, in a form or query, and in a header or an attribute.
    rf'(?P<json>\\?"{_NAME}\\?"\s*:\s*\\?")[^"\\]{{1,8192}}'
    rf"|(?P<form>\b{_NAME}=)[^&\s\"'<>;]{{1,8192}}"
    rf"|(?P<header>\b{_NAME}\s?[:=]\s?[\"']?)(?:Bearer |Basic )?[^\s\"'<>,;]{{1,8192}}"
    rf'|(?P<attribute>\bname="{_NAME}"\s+value=")[^"]{{1,8192}}'
    r"|(?P<scheme>\b(?:Bearer|Basic)\s)[\w.~+/=-]{8,8192}"
    # The token at the end of a stream's address, or of a placed call's.
    r"|(?P<path>/(?:ws|status|transfer|answer)/(?:[a-z]{1,20}/)?)[\w.~-]{16,4096}"
    # JSON Web Tokens: https://www.rfc-editor.org/rfc/rfc7519#section-3.1
    r"|(?P<jwt>\b)eyJ[\w-]{5,4096}\.[\w-]{5,4096}\.[\w-]{5,4096}",
    re.IGNORECASE,
)
#: Numbers in E.164, also as a URL has them: https://www.itu.int/rec/T-REC-E.164
_NUMBERS = re.compile(r"(?:\+|%2B)[1-9]\d{6,14}\b", re.IGNORECASE)
#: How a number may be told apart from a name, such as that of a SIP account.
_DIGITS_OF_NUMBER = re.compile(r"\+?\d{5,15}")
#: A key in a message, a form, or a line of the log.
_DIGITS = re.compile(
    r'(?P<name>\\?"(?:digits?|dtmf|key)\\?"\s*:\s*\\?")[0-9A-Da-d*#wW]{1,64}(?=\\?")'
    r"|(?P<form>\b(?:digits?|dtmf)=)[0-9A-Da-d*#wW%]{1,64}"
    r"|(?P<words>\b(?:pressed|presses|digit:?|digits)\s)[0-9A-Da-d*#wW]{1,64}\b",
    re.IGNORECASE,
)


def _masked(match: re.Match[str]) -> str:
    return next(kept for kept in match.groups() if kept is not None) + MASK


class Masks:
    """
    What is left out of one call's trace.

    Args:
        secrets: Credentials and tokens that are known, which are replaced wherever they stand.
        who: Whether numbers and parameters are left out too (``--redact``).
        digits: Whether the keys that were pressed are, too (``--redact digits``).
    """

    def __init__(self, secrets: Iterable[str] = (), *, who: bool = False, digits: bool = False) -> None:
        self._words = {form for secret in secrets if len(secret) >= MIN_SECRET for form in _spellings(secret)}
        self._who = who
        self._digits = digits
        self._known: re.Pattern[str] | None = None
        self._compile()

    @property
    def hides_digits(self) -> bool:
        """Whether the keys that were pressed are left out."""
        return self._digits

    def learn(self, call: Call) -> None:
        """Leave out what tells who called in this call, if that is to be left out."""
        if not self._who:
            return
        for number in (call.from_number, call.to_number):
            bare = number.lstrip("+")
            if _DIGITS_OF_NUMBER.fullmatch(number):
                self._words |= _spellings(number) | {bare}
            elif len(number) >= MIN_VALUE:
                self._words |= _spellings(number)
        for value in call.parameters.values():
            if len(value) >= MIN_VALUE:
                self._words |= _spellings(value)
        self._compile()

    def text(self, text: str) -> str:
        """Return `text` without what is left out."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _SECRETS.sub(_masked, text)
        if self._who:
            text = _NUMBERS.sub(MASK, text)
        if self._digits:
            text = _DIGITS.sub(_masked, text)
        return text

    def call(self, call: Call) -> Call:
        """Return the call as it may be written."""
        if not self._who:
            return replace(call, parameters={name: self._value(name, each) for name, each in call.parameters.items()})
        return replace(
            call,
            from_number=MASK if call.from_number else "",
            to_number=MASK if call.to_number else "",
            parameters=dict.fromkeys(call.parameters, MASK),
        )

    def values(self, value: Any, name: str = "") -> Any:
        """Return a JSON value without what is left out; `name` is what it is called."""
        if isinstance(value, str):
            return self._value(name, value)
        if isinstance(value, dict):
            return {str(key): self.values(each, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(each, name) for each in value]
        return value

    def _value(self, name: str, value: str) -> str:
        if self._who and value and name in ("from_number", "to_number"):
            return MASK
        if self._digits and value and name in ("digits", "digit", "digits_sent"):
            return MASK
        return MASK if value and re.fullmatch(_NAME, name, re.IGNORECASE) else self.text(value)

    def _compile(self) -> None:
        # The longest first: one may be the beginning of another.
        words = sorted(filter(None, self._words), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, words))) if words else None


def _spellings(word: str) -> set[str]:
    """Return how `word` is written as it is, in a URL, in a form and in JSON."""
    return {word, quote(word, safe=""), quote_plus(word), json.dumps(word)[1:-1], word.replace("/", "\\/")}
