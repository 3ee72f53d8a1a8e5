"""
Whether a bot has become slower, told apart from the noise of its waits.

Two things have to come together: a percentile of the waits has grown by more than a stated share of itself, and that
cannot well be chance. The second is decided by a permutation test: if nothing has changed, then which of the calls are
the earlier ones and which are today's is arbitrary, so a growth that many random divisions of all the calls show as
well proves nothing. What is looked at in each division is the sum of the ranks, as Mann and Whitney do, for the middle
of the waits, and the percentile itself for their upper end. It assumes nothing about how waits are distributed, which
have long tails.

The method is that of https://docs.scipy.org/doc/scipy/reference/generated/scipy.stats.permutation_test.html in a
library that is too large for this alone. P-values are never 0: https://arxiv.org/abs/1603.05766 says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

#: The percentiles that are compared.
PERCENTILES = (50, 95)
#: How likely a false alarm is for one scenario, over all its comparisons, where nothing has changed at all.
FALSE_ALARM_RATE = 0.005
#: A growth below this is not looked at, whatever its share: audio comes in pieces of 20 ms.
LEAST_GROWTH_MS = 30.0

_PERMUTATIONS = 20_000
# Divisions of the calls that are looked at in one go, which bounds the memory.
_CHUNK = 2_000


@dataclass(frozen=True, slots=True)
class Growth:
    """
    How a percentile of the waits for one answer compares with what it was.

    Attributes:
        step: For which answer the caller waited.
        percentile: Such as 95.
        before_ms: What it was.
        now_ms: What it is.
        p_value: How likely so much growth is by chance.
        is_worse: Whether it is more than may be, and not by chance.
    """

    step: str
    percentile: int
    before_ms: float
    now_ms: float
    p_value: float
    is_worse: bool

    def __str__(self) -> str:
        share = f", {self.now_ms / self.before_ms - 1:+.0%}" if self.before_ms else ""
        return (
            f"{self.step}: p{self.percentile} of the waits is {self.now_ms:.0f} ms{share},"
            f" and was {self.before_ms:.0f} ms (p = {self.p_value:.2g})"
        )


def percentile(waits_ms: Sequence[float] | NDArray[np.float64], percent: int) -> float:
    """Return a percentile of the waits, which are some."""
    return float(np.percentile(np.asarray(waits_ms, dtype=np.float64), percent))


def compare_waits(
    before: Mapping[str, Sequence[float]], now: Mapping[str, Sequence[float]], *, max_slower: float, seed: int = 0
) -> list[Growth]:
    """
    Compare the waits for each answer with what they were.

    Args:
        before: The waits in milliseconds, one for each call, by step.
        now: Today's.
        max_slower: By how much of itself a percentile may grow.
        seed: Of the random divisions, so that the same waits give the same verdict.
    """
    steps = [step for step in now if before.get(step) and now[step]]
    # Bonferroni's correction: with many comparisons one is soon unlikely by chance.
    level = FALSE_ALARM_RATE / max(1, len(steps) * len(PERCENTILES))
    rng = np.random.default_rng(seed)
    found = []
    for step in steps:
        old, new = (np.asarray(waits[step], dtype=np.float64) for waits in (before, now))
        p_values = _growth_p_values(old, new, rng)
        for percent, p_value in zip(PERCENTILES, p_values, strict=True):
            was_ms, is_ms = percentile(old, percent), percentile(new, percent)
            grown_ms = is_ms - was_ms
            is_large = grown_ms > max_slower * was_ms and grown_ms >= LEAST_GROWTH_MS
            found.append(Growth(step, percent, was_ms, is_ms, p_value, is_large and p_value <= level))
    return found


def can_tell(n_before: int, n_now: int, n_steps: int) -> bool:
    """Return whether so many calls can show at all that a bot of so many answers has become slower."""
    level = FALSE_ALARM_RATE / max(1, n_steps * len(PERCENTILES))
    if min(n_before, n_now) < 1:
        return False
    return max(1 / _divisions(n_before, n_now), 1 / (_PERMUTATIONS + 1)) <= level


def _divisions(n_before: int, n_now: int) -> float:
    return float(min(comb(n_before + n_now, n_now), 10**12))


def _growth_p_values(old: NDArray[np.float64], new: NDArray[np.float64], rng: np.random.Generator) -> list[float]:
    """Return for each of :data:`PERCENTILES` how often random divisions of all the waits grow at least as much."""
    both = np.concatenate([old, new])
    ranks = _ranks(both)
    order = np.arange(len(both))
    observed = _statistics(both[None, :], ranks[None, :], len(old))
    exceeded = np.zeros(len(PERCENTILES), dtype=np.int64)
    for _ in range(_PERMUTATIONS // _CHUNK):
        shuffled = rng.permuted(np.broadcast_to(order, (_CHUNK, len(both))), axis=1)
        # Rounding must not make a difference between equal divisions.
        exceeded += (_statistics(both[shuffled], ranks[shuffled], len(old)) >= observed - 1e-9).sum(axis=1)
    return [float(count + 1) / (_PERMUTATIONS + 1) for count in exceeded]


def _statistics(waits: NDArray[np.float64], ranks: NDArray[np.float64], n_before: int) -> NDArray[np.float64]:
    """Return what shows a growth from the first `n_before` waits to the rest, by percentile; a row is a division."""
    upper_old, upper_new = (
        np.percentile(part, PERCENTILES[1], axis=1) for part in (waits[:, :n_before], waits[:, n_before:])
    )
    return np.stack([ranks[:, n_before:].sum(axis=1), upper_new - upper_old])


def _ranks(waits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the place of each wait in their order; equal ones share the middle of their places."""
    _, place, counts = np.unique(waits, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place.reshape(-1)], dtype=np.float64)
