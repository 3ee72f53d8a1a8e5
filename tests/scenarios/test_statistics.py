"""What counts as slower, over many simulated runs."""

from __future__ import annotations

import numpy as np
import pytest

from wsvoice.scenarios.statistics import can_tell, compare_waits


def waits(seed: int, *, later_ms: float = 0.0, median_ms: float = 500.0) -> dict[str, list[float]]:
    """Return the waits of twenty calls with one turn: log-normal, as waits for models are."""
    rng = np.random.default_rng(seed)
    return {"step 1": (median_ms * np.exp(rng.normal(0, 0.1, 20)) + later_ms).tolist()}


def is_worse(before: dict[str, list[float]], now: dict[str, list[float]]) -> list[str]:
    return [str(each) for each in compare_waits(before, now, max_slower=0.1) if each.is_worse]


def test_the_same_bot_raises_no_alarm_in_twenty_runs() -> None:
    alarms = [is_worse(waits(2 * seed), waits(2 * seed + 1)) for seed in range(20)]
    assert not any(alarms), alarms


def test_150_ms_more_are_caught_in_twenty_of_twenty() -> None:
    caught = [is_worse(waits(2 * seed), waits(2 * seed + 1, later_ms=150)) for seed in range(20)]
    assert all(any("p50" in each for each in found) for found in caught)


def test_a_tail_that_has_grown_is_caught_at_p95() -> None:
    before = {"step 1": waits(1)["step 1"] * 5}
    now = {"step 1": [*waits(2)["step 1"] * 4, *(each + 900 for each in waits(3)["step 1"])]}
    [found] = compare_waits(before, now, max_slower=0.1)[1:]
    assert found.percentile == 95
    assert found.is_worse


def test_a_growth_below_the_stated_share_is_none() -> None:
    before = {"step 1": [500.0 + each for each in range(20)]}
    now = {"step 1": [each + 40 for each in before["step 1"]]}
    assert is_worse(before, now) == []
    assert [each.p_value < 0.001 for each in compare_waits(before, now, max_slower=0.1)] == [True, True]


def test_the_same_waits_give_the_same_verdict() -> None:
    before, now = waits(1), waits(2, later_ms=60)
    assert compare_waits(before, now, max_slower=0.1) == compare_waits(before, now, max_slower=0.1)


@pytest.mark.parametrize(("before", "now", "enough"), [(20, 20, True), (20, 1, False), (1, 1, False), (4, 4, False)])
def test_too_few_calls_are_known_to_tell_nothing(before: int, now: int, enough: bool) -> None:
    assert can_tell(before, now, 1) is enough
