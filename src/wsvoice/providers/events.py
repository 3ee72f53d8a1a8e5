"""
What the two ends of a media stream say to each other, free of any provider's spelling.

The carrier is the provider's end (it connects the WebSocket), the bot is ours. Every event is one message on
the wire; which end may send it stands in its docstring. Where the provider counts, `sequence` is the message's number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from wsvoice.audio import PCMU_8K, AudioFormat


@dataclass(frozen=True, slots=True)
class Connected:
    """Carrier: the socket is open, the stream will start. Not every provider sends it."""

    version: str = "1.0.0"


@dataclass(frozen=True, slots=True)
class StreamStarted:
    """
    Carrier: the stream starts; media follows.

    Attributes:
        stream_id: The provider's id of this stream.
        call_id: The provider's id of the call.
        account_id: The account that owns the call.
        from_number: Who rings; empty where the provider's message does not say.
        to_number: Who is rung; empty where the provider's message does not say.
        format: How audio is encoded, both ways unless the provider's document said otherwise.
        parameters: Custom parameters, as strings.
    """

    stream_id: str
    call_id: str
    account_id: str = ""
    from_number: str = ""
    to_number: str = ""
    format: AudioFormat = PCMU_8K
    parameters: Mapping[str, str] = field(default_factory=dict)
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """
    Either end: a piece of audio, in the stream's format and without any header.

    Attributes:
        payload: The encoded bytes.
        track: ``inbound`` is the caller's voice; only the carrier names tracks.
        chunk: Number of this piece on its track, from 1; ``None`` where it is not counted.
        timestamp_ms: Milliseconds since the stream started; ``None`` where it is not told.
    """

    payload: bytes
    track: str = "inbound"
    chunk: int | None = None
    timestamp_ms: int | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Digit:
    """Carrier: the caller pressed a key, one of ``0-9 * # A-D``, at that Unix time; ``None`` where it is not told."""

    digit: str
    sequence: int | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class SendDigits:
    """Bot: press keys, of ``0-9 * # A-D``, towards whoever is at the other end. Only some providers take it."""

    digits: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Bot: name this point of the audio that was sent. Carrier: playback reached it, or it was cleared."""

    name: str
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Clear:
    """Bot: forget all audio that has not been played."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """Carrier: a :class:`Clear` was carried out. Only some providers say so."""

    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class FlowControl:
    """Carrier: the queue of the bot's audio is full and drops what is sent, or has room again. Only some say so."""

    paused: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Bot: ask how much of its audio waits to be played. Carrier: tell it. Only some providers take the question."""

    queued_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class StreamError:
    """Carrier: a message of the bot's could not be used."""

    code: str
    title: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StreamStopped:
    """Carrier: the call, or its stream, has ended; the socket closes next. Bot: end the call, where one can say so."""

    reason: str = ""
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Either end: a well-formed message of a kind that this version does not know. Never an error."""

    name: str


Event: TypeAlias = (
    Connected
    | StreamStarted
    | Audio
    | Digit
    | SendDigits
    | Mark
    | Clear
    | Cleared
    | FlowControl
    | Status
    | StreamError
    | StreamStopped
    | Unknown
)
