"""How checks are made: together, in order, each within its time, and not where another one has failed already."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from wsvoice.doctor.checkup import Check, Examined, Result, examine, fail, ok, verdict, warn
from wsvoice.errors import ConfigError


def check(name: str, *results: Result, needs: Sequence[str] = ()) -> Check:
    async def look() -> Sequence[Result]:
        return results

    return Check(name, f"the {name}", look, needs)


def examined(*checks: Check) -> dict[str, Examined]:
    return {each.name: each for each in asyncio.run(examine(checks))}


def test_what_builds_on_a_failure_is_held_up_however_far_below() -> None:
    found = examined(
        check("a", fail("broken", "mend it")),
        check("b", fail("broken too"), needs=["a"]),
        check("c", fail("broken as well"), needs=["b"]),
        check("d", ok("fine")),
    )
    assert [each.level for each in found.values()] == ["fail", "skipped", "skipped", "ok"]
    assert [each.held_up_by for each in found.values()] == ["", "a", "a", ""]
    assert found["c"].results[0].message == "it needs what the check 'a' found at fault"


def test_a_warning_holds_up_nothing_and_unknown_needs_are_none() -> None:
    found = examined(check("a", warn("odd")), check("b", ok("fine"), needs=["a", "nothing"]))
    assert [each.level for each in found.values()] == ["warn", "ok"]


def test_the_worst_result_counts() -> None:
    assert examined(check("a", ok("x"), warn("y"), fail("z"), ok("x")))["a"].level == "fail"


def test_checks_wait_together_and_are_told_in_their_order() -> None:
    met = asyncio.Barrier(2)

    async def meet() -> Sequence[Result]:
        # Neither ends unless both run at the same time.
        await met.wait()
        return [ok("met")]

    told: list[str] = []
    made = [Check("slow", "", meet, limit_s=5), check("quick", ok("done")), Check("other", "", meet, limit_s=5)]

    async def run() -> list[Examined]:
        return await examine(made, on_examined=lambda each: told.append(each.name))

    assert [each.level for each in asyncio.run(run())] == ["ok", "ok", "ok"]
    assert told == ["slow", "quick", "other"]


def test_a_check_that_does_not_end_fails_and_holds_nobody_up() -> None:
    async def wait() -> Sequence[Result]:
        await asyncio.Event().wait()
        return []

    found = examined(Check("a", "", wait, limit_s=0.05), check("b", ok("fine")))
    assert [each.message for each in found["a"].results] == ["it did not end within 0.05 s"]
    assert found["b"].level == "ok"


def test_an_error_is_what_was_found() -> None:
    async def raise_it() -> Sequence[Result]:
        raise ConfigError("no such thing", hint="make one")

    assert examined(Check("a", "", raise_it))["a"].results == (fail("no such thing", "make one"),)


def test_the_verdict() -> None:
    bad, odd, good = (Examined("x", "", (each,)) for each in (fail("x"), warn("x"), ok("x")))
    assert verdict([good, good]) == "nothing is wrong"
    assert verdict([good, odd]) == "1 of 2 checks warned"
    assert verdict([bad, odd, bad]) == "2 of 3 checks failed, 1 of 3 checks warned"


def test_as_json() -> None:
    found = examined(check("a", warn("odd", "mend it"), ok("fine")))["a"].to_dict()
    assert found.pop("elapsed_ms") >= 0
    assert found == {
        "name": "a",
        "looks_at": "the a",
        "level": "warn",
        "results": [
            {"level": "warn", "message": "odd", "hint": "mend it"},
            {"level": "ok", "message": "fine", "hint": None},
        ],
    }
