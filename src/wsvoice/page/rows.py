"""
Everything that happened in calls, in the order of its time, packed for the page.

An hour has some 360,000 messages, nearly all of them audio. A page has to open at once, so that it gets the times and
kinds of all rows, and their texts in blocks that it unpacks when it shows them.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from wsvoice.trace import Trace, TraceEvent, WireMessage

#: The kinds of rows, by their numbers on the page.
EVENT, FINDING, LOG, MESSAGE, AUDIO = range(5)
#: What the page calls them.
KINDS = ("Events", "Findings", "Log", "Messages", "Audio messages")
#: How many rows are packed together.
BLOCK_ROWS = 2000
#: How much of a row's text the page has, in characters.
TEXT_LIMIT = 20_000
#: Times are whole numbers of this many a second.
TICKS = 1000

_AUDIO_MESSAGE = re.compile(r'"event(?:Type)?"\s*:\s*"(?:media|playAudio)"')
_PAYLOAD = re.compile(r'("payload"\s*:\s*")([^"]{32,})')
#: What has a row of its own neither needs nor gets one: samples of a curve that is drawn.
_CURVES = frozenset({"buffer"})

#: What is said of a message beside its text.
_SAID = ("method", "url", "status", "code")

_Row = tuple[float, int, int, list[Any]]


@dataclass(frozen=True, slots=True)
class PackedRows:
    """
    Rows as the page has them.

    Attributes:
        count: How many there are.
        index: The times of all, as 32-bit numbers of ticks, then their kinds and calls, a byte each; packed.
        texts: The texts of the rows that are no audio, and of those that are; one packed block a line.
    """

    count: int
    index: str
    texts: tuple[str, str]


def pack(data: bytes) -> str:
    """Return bytes as the page unpacks them: zlib's format in base64."""
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")


def pack_rows(traces: Sequence[Trace]) -> PackedRows:
    """Return all rows of one call, or of several on one axis."""
    rows = sorted((row for number, trace in enumerate(traces) for row in _rows(trace, number)), key=lambda row: row[0])
    times = np.array([row[0] * TICKS for row in rows]).clip(-(2**31), 2**31 - 1).astype("<i4")
    kinds = bytes(row[1] | row[2] << 4 for row in rows)
    return PackedRows(
        len(rows),
        pack(times.tobytes() + kinds),
        (
            "\n".join(_blocks(row[3] for row in rows if row[1] != AUDIO)),
            "\n".join(_blocks(row[3] for row in rows if row[1] == AUDIO)),
        ),
    )


def _blocks(rows: Iterator[list[Any]]) -> Iterator[str]:
    while block := list(islice(rows, BLOCK_ROWS)):
        yield pack(json.dumps(block, separators=(",", ":")).encode("ascii"))


def _rows(trace: Trace, number: int) -> Iterator[_Row]:
    for message in trace.wire:
        kind, content = _message(message)
        yield message.t, kind, number, content
    for event in trace.timeline:
        if event.event not in _CURVES:
            kind, content = _event(event)
            yield event.t, kind, number, content
    for line in trace.log:
        yield line.t, LOG, number, [line.level, _cut(line.message), line.logger]


def _message(message: WireMessage) -> tuple[int, list[Any]]:
    arrow = "→ bot" if message.dir == "in" else "← bot"
    fields = _shown(message.fields)
    if message.data is not None:
        return AUDIO, [f"{arrow} binary", f"{len(message.data)} bytes of audio", fields]
    text = message.text or ""
    if message.kind == "text" and _AUDIO_MESSAGE.search(text):
        text = _PAYLOAD.sub(lambda found: f"{found[1]}… {len(found[2])} characters of audio …", text)
        return AUDIO, [f"{arrow} audio", _cut(text), fields]
    label = arrow if message.kind == "text" else f"{arrow} {message.kind}"
    said = [str(value) for name in _SAID if isinstance(value := message.fields.get(name), str | int)]
    return MESSAGE, [label, _cut(" ".join([*said, text])), fields]


def _event(event: TraceEvent) -> tuple[int, list[Any]]:
    return FINDING if event.event == "finding" else EVENT, [event.event, _cut(event.detail), _shown(event.fields)]


def _shown(fields: Mapping[str, Any]) -> str:
    """Return what else is known of a row as text, because JSON of a stranger's may be none that a browser reads."""
    try:
        return _cut(json.dumps(fields, indent=2, ensure_ascii=False)) if fields else ""
    except (RecursionError, ValueError):
        return "(nested too deeply)"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}… and {len(text) - TEXT_LIMIT} characters more"
