"""Puts a stream's audio back into order, for providers that do not promise it."""

from __future__ import annotations

from typing import TypeAlias

from wsvoice.providers.events import Audio, Event

#: An event, and the message that it was.
Item: TypeAlias = tuple[Event, str | bytes]

#: How many pieces wait for one that is missing; at 20 ms each, what a telephone's jitter buffer holds.
WINDOW = 5


class Reorderer:
    """
    Puts :class:`~wsvoice.providers.events.Audio` into the order of its chunk numbers, each track by itself.

    A piece is held back only while an earlier one is missing: in a stream that is in order nothing waits. The
    missing piece is given up when more than `window` wait for it. What comes twice, or after its turn, is dropped;
    but an old number at a later time, or more than `window` of them in a row, begin a new count. Audio without a
    number passes as it is. Any other event comes out behind all audio that came in before it.

    The message that an event was goes with it, and is dropped with it.

    Attributes:
        dropped: How many pieces came twice or too late.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.dropped = 0
        self._window = window
        self._tracks: dict[str, _Track] = {}

    def push(self, event: Event, raw: str | bytes) -> list[Item]:
        """Take one event in with its message, and return those whose turn it is."""
        if not isinstance(event, Audio) or event.chunk is None:
            return [*self.flush(), (event, raw)]
        track = self._tracks.get(event.track)
        if track is None:
            track = self._tracks[event.track] = _Track(event.chunk, self._window)
        if event.chunk == track.due and not track.held:
            track.due += 1
            track.passed(event)
            return [(event, raw)]
        released = track.push(event.chunk, event, raw)
        if released is None:
            self.dropped += 1
            return []
        return [*released]

    def flush(self) -> list[Item]:
        """Return all that waits, whatever is missing."""
        return [item for track in self._tracks.values() for item in track.flush()]


_Piece: TypeAlias = tuple[Audio, str | bytes]


class _Track:
    """One track: the number that is due, and the pieces that wait for it."""

    def __init__(self, first: int, window: int) -> None:
        # Counting starts at 1. A stream that is joined later starts with whatever comes first.
        self.due = min(first, 1) if first <= window else first
        self.held: dict[int, _Piece] = {}
        self._window = window
        self._last_ms: int | None = None
        self._late = 0

    def push(self, chunk: int, audio: Audio, raw: str | bytes) -> list[_Piece] | None:
        """Return the pieces whose turn it is; ``None`` if this one is dropped."""
        released: list[_Piece] = []
        if chunk < self.due:
            self._late += 1
            if not self._starts_anew(audio):
                return None
            released = self.flush()
            self.due = chunk
        elif chunk in self.held:
            return None
        self.held[chunk] = audio, raw
        self._release(released)
        while len(self.held) > self._window:
            self.due = min(self.held)
            self._release(released)
        return released

    def flush(self) -> list[_Piece]:
        """Return all that waits, in order."""
        released = [self.held[chunk] for chunk in sorted(self.held)]
        if released:
            self.due = max(self.held) + 1
            self.held.clear()
            self.passed(released[-1][0])
        return released

    def passed(self, audio: Audio) -> None:
        """Remember when the last piece was that came out."""
        self._last_ms = audio.timestamp_ms
        self._late = 0

    def _release(self, released: list[_Piece]) -> None:
        while (piece := self.held.pop(self.due, None)) is not None:
            self.due += 1
            self.passed(piece[0])
            released.append(piece)

    def _starts_anew(self, audio: Audio) -> bool:
        """Whether an old number is the first of a new count, for dropping all that follows would be worse."""
        later = audio.timestamp_ms is not None and self._last_ms is not None and audio.timestamp_ms > self._last_ms
        return later or self._late > self._window
