"""What there is to see in a call's tracks: how loud they are, who speaks when, and how long the caller waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import AUDIBLE_LEVEL

Samples = NDArray[np.int16]

#: Sound is looked for in pieces of this length.
FRAME_S = 0.02
#: A shorter pause belongs to the same utterance.
PAUSE_S = 0.5
#: How much of a track is computed with at a time, in samples.
_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class Utterance:
    """A time in which one end was heard, in seconds."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """
    What the caller said, and when the bot answered, in seconds.

    Attributes:
        bot_s: When the bot's answer began; ``None`` if there was none.
        wait_s: From the caller's last sound to the bot's first; 0 if the bot spoke while the caller did.
    """

    caller_start_s: float
    caller_end_s: float
    bot_s: float | None = None
    wait_s: float | None = None


def peaks(track: Samples, count: int, length: int) -> NDArray[np.uint8]:
    """Return the loudest sample of each of `count` equal parts of `length` samples of a track, from 0 to 255."""
    edges = np.linspace(0, length, count + 1).astype(np.int64)
    found = np.zeros(count, np.uint8)
    step = max(1, _STEP // max(1, length // count))
    for first in range(0, count, step):
        last = min(count, first + step)
        starts = edges[first:last] - edges[first]
        part = np.abs(track[edges[first] : edges[last]].astype(np.int32))
        if len(part):
            # What is after the track's end is silence; a part that is shorter than a sample shows that sample.
            known = starts < len(part)
            found[first:last][known] = np.minimum(255, np.maximum.reduceat(part, starts[known]) >> 7)
    return found


def levels(track: Samples, rate: int) -> NDArray[np.float32]:
    """Return the level (RMS, from 0 to 32768) of each :data:`FRAME_S` of a track."""
    size = max(1, round(rate * FRAME_S))
    step = _STEP // size * size
    parts = [np.zeros(0, np.float32)]
    for first in range(0, len(track), step):
        part = track[first : first + step].astype(np.float32)
        part = np.pad(part, (0, -len(part) % size)).reshape(-1, size)
        parts.append(np.sqrt(np.mean(part * part, axis=1)))
    return np.concatenate(parts)


def utterances(level: NDArray[np.float32]) -> list[Utterance]:
    """Return when an end was heard, by the :func:`levels` of its track."""
    heard = np.flatnonzero(level > AUDIBLE_LEVEL)
    if not len(heard):
        return []
    breaks = np.flatnonzero(np.diff(heard) * FRAME_S > PAUSE_S)
    starts = heard[np.concatenate([[0], breaks + 1])]
    ends = heard[np.concatenate([breaks, [len(heard) - 1]])] + 1
    return [Utterance(float(start) * FRAME_S, float(end) * FRAME_S) for start, end in zip(starts, ends, strict=True)]


def turns(caller: Sequence[Utterance], bot: Sequence[Utterance]) -> list[Turn]:
    """Return who answered whom: all that the caller says until the bot begins is one turn."""
    found: list[Turn] = []
    said: Utterance | None = None
    both = [(each.start_s, True, each) for each in caller] + [(each.start_s, False, each) for each in bot]
    for _, is_caller, each in sorted(both, key=lambda one: one[:2]):
        if is_caller:
            said = each if said is None else Utterance(said.start_s, max(said.end_s, each.end_s))
        elif said is not None:
            found.append(Turn(said.start_s, said.end_s, each.start_s, max(0.0, each.start_s - said.end_s)))
            said = None
    if said is not None:
        found.append(Turn(said.start_s, said.end_s))
    return found
