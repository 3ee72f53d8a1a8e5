"""What is measured: each measure places its runs A B B A, prints its table and returns what it found."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from report import print_table
from runs import (
    MAX_DISTURBANCES,
    Disturbed,
    Failed,
    Run,
    differing_speech,
    run,
    run_first,
    run_remembered,
    run_stalled,
    tried,
)
from servers import Server, Work, serving

#: One frame in a hundred may be late.
LATE_SHARE = 0.01
SETUP_CALL_S = 3.0
#: How many calls the search for a knee begins with, and how exact it is.
KNEE_FROM, KNEE_STEP = 10, 3
#: How often it is tried: one stall of the machine delays pipecat's calls to their end.
KNEE_TRIES = 2


@dataclass(frozen=True)
class Plan:
    """How much is measured: which servers, how many runs of each, and how long a call is."""

    servers: tuple[str, ...]
    pairs: int
    seconds: float
    most: int

    def order(self, number: int, without: dict[str, str]) -> list[str]:
        """Return the servers in the order of a round, which every second one reverses."""
        names = [each for each in self.servers if each not in without]
        return names if number % 2 == 0 else names[::-1]


@dataclass
class Measured:
    """
    What a measure found.

    Attributes:
        values: By server and metric, one for each run.
        thrown_away: Why runs were thrown away, by server.
        failed: Why a server shows nothing, by server.
        differences: Where a bot heard other speech than there is in its audio.
    """

    what: str
    work: str
    calls: int
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    thrown_away: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def note(self, server: Server, found: dict[str, float]) -> None:
        """Add what one run showed."""
        for metric, value in found.items():
            self.values.setdefault(server.name, {}).setdefault(metric, []).append(value)

    @contextmanager
    def counting(self, server: Server) -> Iterator[None]:
        """Count the runs with `server` that are thrown away; where none counts, it shows nothing."""
        try:
            yield
        except Failed as error:
            self.failed[server.name] = str(error)
            self.values.pop(server.name, None)
        finally:
            self.thrown_away.setdefault(server.name, []).extend(server.thrown_away)
            server.thrown_away.clear()


def measure_capacity(plan: Plan, work: Work, calls: int, *, what: str = "capacity") -> Measured:
    """Measure latency, jitter and processor time of `calls` calls."""

    def once(server: Server) -> dict[str, float]:
        found = run(server, work, calls, plan.seconds)
        if work.bot != "echo":
            return {"cpu_ms": found.cpu_ms, "jitter_p99_ms": float(np.percentile(found.jitters_ms, 99))}
        return _of_echo(found)

    return _with_running_servers(plan, work, calls, what, once)


def measure_latency(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure the latency of `calls` echoes: a capacity that is looked at for its latency."""
    return measure_capacity(plan, work, calls, what="latency")


def measure_setup(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure how long callers who dial at once wait for the first audio."""

    def once(server: Server) -> dict[str, float]:
        found = run(server, work, calls, SETUP_CALL_S, at_once=True)
        return {"setup_ms": statistics.median(found.setup_ms), "setup_most_ms": max(found.setup_ms)}

    return _with_running_servers(plan, work, calls, "setup", once)


def measure_stall(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure what is left of a stall of the server's process."""

    def once(server: Server) -> dict[str, float]:
        found = run_stalled(server, work, calls)
        return {
            "before_ms": statistics.median(found.before_ms),
            "left_ms": statistics.median(found.left_ms),
            "left_most_ms": max(found.left_ms),
            "lost_ms": statistics.median(found.lost_ms),
        }

    return _with_running_servers(plan, work, calls, "stall", once)


def measure_memory(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure how much memory a call takes; each run has a new server, which has had one call."""
    measured = Measured("memory", work.name, calls)
    for number in range(plan.pairs):
        for name in plan.order(number, measured.failed):
            with serving(name, work) as server, measured.counting(server):
                _warm_up(server, work)
                found = tried(server, partial(run_remembered, server, work, calls, plan.seconds))
                measured.note(server, {f"{kind}_mib": mib for kind, mib in found.items()})
    print_table(measured)
    return measured


def measure_startup(plan: Plan, work: Work) -> Measured:
    """Measure how long a server takes from its start to its first call's first audio."""
    measured = Measured("startup", work.name, 1)
    # The first round is not measured: it reads the programs from the disk.
    for number in range(-1, plan.pairs):
        for name in plan.order(number, measured.failed):
            tries = 1
            while name not in measured.failed and not _startup_counts(measured, name, work, number):
                tries += 1
                if tries > MAX_DISTURBANCES:
                    measured.failed[name] = f"{tries} starts in a row were thrown away"
    print_table(measured)
    return measured


def _startup_counts(measured: Measured, name: str, work: Work, number: int) -> bool:
    """Start a server and note how long it took; tell whether that counts."""
    reasons = measured.thrown_away.setdefault(name, [])
    with serving(name, work) as server:
        try:
            found = run_first(server)
        except (Disturbed, OSError) as error:
            reasons.append(str(error))
            print(f"thrown away ({name}): {error}", file=sys.stderr)
            return False
        except Failed as error:
            measured.failed[name] = str(error)
            return False
        if number >= 0:
            measured.note(server, found)
    return True


def measure_knee(plan: Plan, work: Work) -> Measured:
    """Find how many calls a server holds on one core, in one of two runs: fewer than one frame of a hundred is late."""
    measured = Measured("knee", work.name, plan.most)
    for name in plan.servers:
        with serving(name, work) as server, measured.counting(server):
            _warm_up(server, work)
            low, high, calls = 0, plan.most + 1, KNEE_FROM
            while high - low > KNEE_STEP and calls <= plan.most:
                holds = any(_holds(server, work, calls, plan.seconds) for _ in range(KNEE_TRIES))
                print(f"{name}, {calls} calls: {'holds' if holds else 'does not'}", file=sys.stderr)
                low, high = (calls, high) if holds else (low, calls)
                calls = calls * 3 // 2 if high > plan.most else (low + high) // 2
                time.sleep(1)
            measured.note(server, {"knee_calls": float(low)})
    print_table(measured)
    return measured


def _holds(server: Server, work: Work, calls: int, seconds: float) -> bool:
    """
    Tell whether a server holds so many calls.

    Raises:
        Failed: If only the callers, or other programs, were in the way.
    """

    def once() -> bool:
        try:
            return run(server, work, calls, seconds).late_share < LATE_SHARE
        except Disturbed:
            raise
        except (Failed, OSError) as error:
            print(f"{server.name}, {calls} calls: {error}", file=sys.stderr)
            return False

    return tried(server, once)


def _of_echo(found: Run) -> dict[str, float]:
    """Return what the table of an echo shows."""
    return {
        "cpu_ms": found.cpu_ms,
        "p50_ms": float(np.percentile(found.latencies_ms, 50)),
        "p99_ms": float(np.percentile(found.latencies_ms, 99)),
        "jitter_p99_ms": float(np.percentile(found.jitters_ms, 99)),
        "growing_ms": found.growing_ms,
        "late_percent": found.late_share * 100,
    }


def _with_running_servers(
    plan: Plan, work: Work, calls: int, what: str, once: Callable[[Server], dict[str, float]]
) -> Measured:
    """Measure servers that run all the time; each has had a call before."""
    measured = Measured(what, work.name, calls)
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, work)) for name in plan.servers}
        for server in servers.values():
            with measured.counting(server):
                _warm_up(server, work)
        for number in range(plan.pairs):
            for name in plan.order(number, measured.failed):
                server = servers[name]
                with measured.counting(server):
                    measured.note(server, tried(server, partial(once, server)))
        measured.differences = differing_speech(work, list(servers.values()))
    print_table(measured)
    return measured


def _warm_up(server: Server, work: Work) -> None:
    """Place a call that is not measured: whatever is imported or cached at the first one would be measured with it."""
    tried(server, partial(run, server, work, 1, 4.0))
