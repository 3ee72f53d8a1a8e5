"""
A check-up: independent checks that run at the same time, and what each of them found.

A check that builds on another one is skipped where that one failed, so that one fault is reported once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from wsvoice.errors import WsvoiceError

Level = Literal["ok", "skipped", "warn", "fail"]

#: From the best to the worst.
LEVELS: tuple[Level, ...] = ("ok", "skipped", "warn", "fail")
#: How long a check may take unless it says otherwise, in seconds.
LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    """
    One thing that a check found.

    Attributes:
        level: ``fail`` if calls cannot work, ``warn`` if they would suffer or it is probably a mistake.
        message: What was found, in one line.
        hint: What mends it.
    """

    level: Level
    message: str
    hint: str = ""


def ok(message: str) -> Result:
    """Return that all is well."""
    return Result("ok", message)


def skipped(why: str) -> Result:
    """Return that there was nothing to look at."""
    return Result("skipped", why)


def warn(message: str, hint: str = "") -> Result:
    """Return what calls would suffer from."""
    return Result("warn", message, hint)


def fail(message: str, hint: str | None = "") -> Result:
    """Return what calls cannot work with."""
    return Result("fail", message, hint or "")


@dataclass(frozen=True, slots=True)
class Check:
    """
    One check.

    Attributes:
        name: Its short name.
        looks_at: What it looks at, in a few words.
        look: Looks, and returns what was found, at least one result.
        needs: The names of checks without whose success this one would only repeat what they found.
        limit_s: How long it may take.
    """

    name: str
    looks_at: str
    look: Callable[[], Awaitable[Sequence[Result]]]
    needs: Sequence[str] = ()
    limit_s: float = LIMIT_S


@dataclass(frozen=True, slots=True)
class Examined:
    """
    A check that was made.

    Attributes:
        name, looks_at: As the check has them.
        results: What was found.
        elapsed_s: How long it took.
        held_up_by: The check that failed, without whose success this one was not made; empty if it was made.
    """

    name: str
    looks_at: str
    results: Sequence[Result]
    elapsed_s: float = 0.0
    held_up_by: str = ""

    @property
    def level(self) -> Level:
        """The worst of its results."""
        return max((each.level for each in self.results), key=LEVELS.index)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "looks_at": self.looks_at,
            "level": self.level,
            "results": [
                {"level": each.level, "message": each.message, "hint": each.hint or None} for each in self.results
            ],
            "elapsed_ms": round(self.elapsed_s * 1000),
        }


async def examine(
    checks: Sequence[Check], *, on_examined: Callable[[Examined], None] = lambda examined: None
) -> list[Examined]:
    """
    Make all checks, as many at the same time as do not build on each other.

    Args:
        on_examined: Called with each check, in their order, as soon as it and those before it are done.
    """
    tasks: dict[str, asyncio.Task[Examined]] = {}
    done = []
    async with asyncio.TaskGroup() as group:
        for check in checks:
            tasks[check.name] = group.create_task(_examine(check, tasks))
        for task in tasks.values():
            done.append(examined := await task)
            on_examined(examined)
    return done


def verdict(examined: Sequence[Examined]) -> str:
    """Return what came of a check-up, in one line."""
    levels = [each.level for each in examined]
    failed, warned = levels.count("fail"), levels.count("warn")
    parts = [
        f"{count} of {len(levels)} checks {what}" for count, what in ((failed, "failed"), (warned, "warned")) if count
    ]
    return ", ".join(parts) or "nothing is wrong"


async def _examine(check: Check, tasks: Mapping[str, asyncio.Task[Examined]]) -> Examined:
    for name in check.needs:
        if name not in tasks:
            continue
        needed = await tasks[name]
        if cause := name if needed.level == "fail" else needed.held_up_by:
            why = skipped(f"it needs what the check {cause!r} found at fault")
            return Examined(check.name, check.looks_at, (why,), held_up_by=cause)
    began = time.monotonic()
    try:
        async with asyncio.timeout(check.limit_s):
            results = tuple(await check.look())
    except TimeoutError:
        results = (fail(f"it did not end within {check.limit_s:g} s", "see what this machine is busy with"),)
    except WsvoiceError as error:
        results = (fail(error.message, error.hint),)
    return Examined(check.name, check.looks_at, results, time.monotonic() - began)
