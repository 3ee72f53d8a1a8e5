"""What is measured: each measure places its runs A B B A, prints its table and returns what it found."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
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
    run_scraped,
    run_stalled,
    tried,
)
from servers import BOTH, CREWS, TRACED, Server, Work, serving

#: One frame in a hundred may be late.
LATE_SHARE = 0.01
SETUP_CALL_S = 3.0
#: How many calls the search for a knee begins with, and how exact it is.
KNEE_FROM, KNEE_STEP = 10, 3
#: How many times the calls of one worker two have to hold, and what scrapes may cost, in percent of a core.
WANTED_OF_TWO, WANTED_OF_SCRAPES, WANTED_OF_TRACES = 1.8, 1.0, 5.0
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
        missed: What was wanted and is not so.
    """

    what: str
    work: str
    calls: int
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    thrown_away: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

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
            knee, _ = _find_knee(server, work, plan)
            measured.note(server, {"knee_calls": float(knee)})
    print_table(measured)
    return measured


def measure_workers(plan: Plan, work: Work) -> Measured:
    """
    Find how many calls two workers hold on two cores, and one on one core.

    One worker has the first core, with its front, and the callers have the other. Two workers have both, and share
    them with the callers: what these use is counted.
    """
    measured = Measured("workers", work.name, plan.most)
    begin = dict.fromkeys(CREWS, KNEE_FROM)
    for number in range(plan.pairs):
        for name in list(CREWS)[:: 1 if number % 2 == 0 else -1]:
            with serving(name, work, on_both_cores=CREWS[name] > 1) as server, measured.counting(server):
                _warm_up(server, work)
                knee, found = _find_knee(server, work, plan, begin[name])
                if found is None:
                    raise Failed("it holds no calls")
                begin[name] = knee
                shown = {"knee_calls": float(knee), "cores": found.cores, "callers_cores": found.callers_cores}
                measured.note(server, shown)
    print_table(measured)
    if not measured.failed:
        _judge_workers(measured)
    return measured


def _judge_workers(measured: Measured) -> None:
    """Say how much more two workers hold, as it is and with the callers' time counted out."""
    (one, two), wanted = (measured.values[name] for name in CREWS), WANTED_OF_TWO
    raw = statistics.median(two["knee_calls"]) / statistics.median(one["knee_calls"])
    callers = statistics.median(two["callers_cores"])
    fair = raw * len(BOTH) / (len(BOTH) - callers)
    print(
        f"2 workers hold {raw:.2f} times the calls of 1 worker, while the callers take {callers:.2f} of the"
        f" {len(BOTH)} cores; {fair:.2f} times with their time counted out (wanted: {wanted:g})"
    )
    if fair < wanted:
        measured.missed.append(f"2 workers hold {fair:.2f} times the calls of 1 worker")


def measure_metrics(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure what asking for the metrics ten times a second costs one process, and the front of two workers."""
    measured = Measured("metrics", work.name, calls)
    for name in ("wsvoice", "2 workers"):
        with serving(name, work, with_metrics=True) as server, measured.counting(server):
            _warm_up(server, work)
            for _ in range(plan.pairs):
                measured.note(server, tried(server, partial(run_scraped, server, work, calls)))
    print_table(measured)
    for name, found in measured.values.items():
        cost = statistics.median(found["scrapes_percent"])
        if cost >= WANTED_OF_SCRAPES:
            measured.missed.append(f"scrapes cost {name} {cost:.2f} % of a core")
    return measured


def measure_trace(plan: Plan, work: Work, calls: int) -> Measured:
    """Measure what it costs to write a trace of each call."""
    measured = measure_capacity(replace(plan, servers=("wsvoice", TRACED)), work, calls, what="trace")
    if not measured.failed:
        # Machines drift by more than what is looked for, so runs are compared with those right beside them.
        costs = [
            (traced / without - 1) * 100
            for without, traced in zip(*(measured.values[name]["cpu_ms"] for name in ("wsvoice", TRACED)), strict=True)
        ]
        cost = statistics.mean(costs)
        error = statistics.stdev(costs) / len(costs) ** 0.5 if len(costs) > 1 else math.inf
        print(
            f"traces cost {cost:.1f} % more processor time, {len(costs)} pairs, standard error {error:.1f} %;"
            f" wanted: less than {WANTED_OF_TRACES:g} %"
        )
        if cost >= WANTED_OF_TRACES:
            measured.missed.append(f"traces cost {cost:.1f} % of processor time, {work.name}")
    return measured


def _find_knee(server: Server, work: Work, plan: Plan, begin: int = KNEE_FROM) -> tuple[int, Run | None]:
    """
    Find how many calls a server holds, and what its last run with so many showed.

    Raises:
        Failed: If only the callers, or other programs, were in the way.
    """
    low, high, calls, shown = 0, plan.most + 1, begin, None
    while high - low > KNEE_STEP and calls <= plan.most:
        tries = (_held(server, work, calls, plan.seconds) for _ in range(KNEE_TRIES))
        held = next((each for each in tries if each is not None), None)
        print(f"{server.name}, {calls} calls: {'holds' if held else 'does not'}", file=sys.stderr)
        low, high, shown = (calls, high, held) if held else (low, calls, shown)
        calls = calls * 3 // 2 if high > plan.most else (low + high) // 2
        time.sleep(1)
    return low, shown


def _held(server: Server, work: Work, calls: int, seconds: float) -> Run | None:
    """
    Return what a run shows in which a server holds so many calls; ``None`` if it does not hold them.

    Raises:
        Failed: If only the callers, or other programs, were in the way.
    """

    def once() -> Run | None:
        try:
            found = run(server, work, calls, seconds)
        except Disturbed:
            raise
        except (Failed, OSError) as error:
            print(f"{server.name}, {calls} calls: {error}", file=sys.stderr)
            return None
        return found if found.late_share < LATE_SHARE else None

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
