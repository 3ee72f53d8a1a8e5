"""What may come from a provider and must not end a call, made of its own media messages."""

from __future__ import annotations

import json
from typing import Any

from wsvoice.providers.base import Hazard

# The keys under which the providers count.
_COUNTERS = frozenset({"sequenceNumber", "sequence_number", "chunk", "timestamp"})


def _renamed(first: str | bytes, second: str | bytes) -> list[str | bytes]:
    content = json.loads(second)
    # What a message is called stands first in it.
    content[next(iter(content))] = "wsvoice-probe"
    return [first, json.dumps(content), second]


def _garbled(first: str | bytes, second: str | bytes) -> list[str | bytes]:
    content = json.loads(second)
    content.get("media", content)["payload"] = "%%%"
    return [first, json.dumps(content), second]


def _retyped(first: str | bytes, second: str | bytes) -> list[str | bytes]:
    return [json.dumps(_other_counters(json.loads(each))) for each in (first, second)]


_ARRAY: Hazard = ("a JSON array", lambda first, second: [first, "[1, 2, 3]", second])
_SWAPPED: Hazard = ("media out of order", lambda first, second: [second, first])
JSON_HAZARDS: tuple[Hazard, ...] = (
    ("an event that nobody knows", _renamed),
    ("a payload that is not base64", _garbled),
    _ARRAY,
    ("numbers as texts and texts as numbers", _retyped),
    _SWAPPED,
)


def _other_counters(content: Any) -> Any:
    """Write counters that are texts as numbers, and those that are numbers as texts."""
    if not isinstance(content, dict):
        return content
    return {key: _other_type(value) if key in _COUNTERS else _other_counters(value) for key, value in content.items()}


def _other_type(value: object) -> object:
    if isinstance(value, str):
        return int(value) if value.isdigit() else value
    return str(value)


#: Of streams whose audio is binary and whose events are text.
BINARY_HAZARDS: tuple[Hazard, ...] = (
    ("an event that nobody knows", lambda first, second: [first, '{"event":"wsvoice-probe"}', second]),
    ("a text that is no JSON", lambda first, second: [first, "%%%", second]),
    _ARRAY,
    ("audio that ends in the middle of a sample", lambda first, second: [first, second[:-1]]),
    _SWAPPED,
)
