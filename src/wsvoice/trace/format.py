"""What is in a trace: its files, and what their lines are read as. docs/trace.md describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsvoice.call import Call

#: The version of the format. It grows when a reader of the version before would misread a trace.
FORMAT = 2
#: How a trace's name ends, be it a folder or a file.
SUFFIX = ".call"

CALL_FILE = "call.json"
WIRE_FILE = "wire.jsonl"
TIMELINE_FILE = "timeline.jsonl"
LOG_FILE = "log.jsonl"
CALLER_FILE = "caller.s16"
BOT_FILE = "bot.s16"
#: All that a trace may consist of.
FILES = (CALL_FILE, WIRE_FILE, TIMELINE_FILE, LOG_FILE, CALLER_FILE, BOT_FILE)

Side = Literal["server", "caller"]
#: As seen from the bot's server: ``in`` comes from the provider.
WireDirection = Literal["in", "out"]
#: ``webhook`` and ``answer`` are HTTP, ``status`` what a provider reports of the call beside its stream, ``close`` the
#: stream's end; ``text`` and ``binary`` are WebSocket messages.
WireKind = Literal["webhook", "answer", "text", "binary", "status", "close"]


def kind_of(message: str | bytes) -> WireKind:
    """Return what kind of WebSocket message this is."""
    return "text" if isinstance(message, str) else "binary"


@dataclass(frozen=True, slots=True)
class Header:
    """
    What is known of a call when its trace begins.

    Attributes:
        side: Who writes the trace: the bot's ``server``, or the ``caller`` of a test call.
        call: The call.
        started_at: Unix time at which the call's stream started: the zero of all times in the trace.
        rate: Samples a second of both tracks.
        target: What was dialled, or the bot that was called.
        versions: The versions of ``wsvoice`` and ``pipecat``, as far as they are known.
        quirks: How the provider of a test call deviated, by name.
    """

    side: Side
    call: Call
    started_at: float
    rate: int
    target: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    quirks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WireMessage:
    """
    One message between the provider and the bot's server.

    Attributes:
        t: Seconds since the stream started; negative for what came before.
        dir: ``in`` from the provider to the bot's server, ``out`` the other way.
        kind: What it is.
        text: Its text; ``None`` for a binary message.
        data: The bytes of a binary message; ``None`` for text.
        fields: What else is known, such as ``method``, ``url``, ``status`` and ``code``.
    """

    t: float
    dir: WireDirection
    kind: WireKind
    text: str | None = None
    data: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """
    Something that happened in the call.

    Attributes:
        t: Seconds since the stream started; negative for what came before.
        event: What kind of event it is.
        detail: What happened, in words.
        fields: What else is known, such as ``ms``.
    """

    t: float
    event: str
    detail: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the bot or its server logged of the call; `t` is in seconds since the stream started."""

    t: float
    level: str
    logger: str
    message: str
