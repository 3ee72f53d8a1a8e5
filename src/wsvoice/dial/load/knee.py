"""How many calls at once a server takes: more and more of them until the limits break, then halfway between."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal

#: The first step is one call, and the second this many; each one after that is twice as large.
SECOND_STEP = 5
#: How exact the result is: within so many calls, or this share of them.
TOLERANCE_CALLS, TOLERANCE_SHARE = 3, 0.05

Outcome = Literal["held", "broke", "not-measured"]


@dataclass(frozen=True, slots=True)
class Step:
    """
    What became of a number of calls at once.

    Attributes:
        calls: How many calls.
        outcome: Whether the limits held, broke, or could not be measured, because this machine was late.
        reason: What broke, or was measured, in words.
        late_share: The share of audio that came too late; ``None`` if it was not measured.
        again: Whether it is the second attempt.
    """

    calls: int
    outcome: Outcome
    reason: str
    late_share: float | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class Knee:
    """
    The most calls at once for which the limits held.

    Attributes:
        calls: How many; 0 if not even one.
        at_least: Whether there may be more: the limits held for all that were asked for or could be played.
        limited_by: What the next step broke: the server's limits, this machine, or nothing.
        steps: What was tried.
    """

    calls: int
    at_least: bool
    limited_by: Literal["server", "this machine", "nothing"]
    steps: list[Step] = field(default_factory=list)


Measure = Callable[[int, bool], Awaitable[Step]]


async def find_knee(most: int, measure: Measure, on_step: Callable[[Step], None]) -> Knee:
    """
    Find the knee, trying no step again that held, and every other one once.

    Args:
        most: The most calls that are tried.
        measure: Places so many calls at once, for the first time or again.
        on_step: Called with each step when it is done.
    """
    steps: list[Step] = []

    async def attempt(calls: int) -> Step:
        for again in (False, True):
            step = await measure(calls, again)
            steps.append(step)
            on_step(step)
            if step.outcome == "held":
                break
        return step

    held, broke = 0, None
    while broke is None and held < most:
        following = {0: 1, 1: SECOND_STEP}.get(held, 2 * held)
        step = await attempt(min(most, following))
        if step.outcome == "held":
            held = step.calls
        else:
            broke = step
    while broke is not None and broke.calls - held > _tolerance(held):
        step = await attempt((held + broke.calls) // 2)
        if step.outcome == "held":
            held = step.calls
        else:
            broke = step
    if broke is None:
        return Knee(held, True, "nothing", steps)
    if broke.outcome == "not-measured":
        return Knee(held, True, "this machine", steps)
    return Knee(held, False, "server", steps)


def _tolerance(held: int) -> int:
    """Return how far apart two steps may be; where nothing has held yet, not even one call is left out."""
    return max(TOLERANCE_CALLS, math.floor(TOLERANCE_SHARE * held)) if held else 1
