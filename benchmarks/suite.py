"""
How wsvoice compares with pipecat's development runner: latency, processor time, knee, set-up, stalls, memory, start.

What its workers hold and what its metrics and traces cost is measured as well.

    python benchmarks/suite.py capacity --calls 1,10,25,50
    python benchmarks/suite.py all --json report.json

README.md says how to read the tables. Everything is measured against a bare echo and pipecat's runner in one run,
A B B A, the servers on one core and the callers on another. Exits with 1 if something is missing from the report: a
server shows nothing, two servers' bots heard different speech in the same audio, or wsvoice misses what is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from measures import (
    Measured,
    Plan,
    measure_capacity,
    measure_knee,
    measure_latency,
    measure_memory,
    measure_metrics,
    measure_setup,
    measure_stall,
    measure_startup,
    measure_trace,
    measure_workers,
)
from report import header, machine_facts, ratios
from servers import BOTH, SERVERS, WORKS, Work, pin

#: Each command's works and numbers of calls, unless others are asked for; in the order of ``all``.
COMMANDS: dict[str, tuple[str, tuple[int, ...]]] = {
    "startup": ("echo-8k", (1,)),
    "latency": ("echo-8k,echo", (1, 10)),
    "capacity": ("echo-8k", (50,)),
    "setup": ("echo-8k", (25,)),
    "stall": ("echo-8k", (10,)),
    "memory": ("echo-8k,echo-8k-vad", (10,)),
    "knee": ("echo-8k", (1,)),
    "workers": ("echo-8k-vad", (1,)),
    "metrics": ("echo-8k", (25,)),
    "trace": ("echo-8k,conversation-8k", (25,)),
}
#: What is no comparison with pipecat, and not part of ``all``.
OWN = ("workers", "metrics", "trace")
#: What ``all`` measures instead: the latencies are those of the capacity's runs.
ALL = {name: each for name, each in COMMANDS.items() if name not in OWN} | {
    "latency": ("", ()),
    "capacity": ("echo-8k,echo,conversation-8k", (1, 10, 25)),
    "knee": ("echo-8k,echo", (1,)),
}


def main() -> int:
    """Measure, print tables, write JSON."""
    options = parse(sys.argv[1:])
    pin(os.getpid(), last=True)
    facts = machine_facts()
    print(header(facts), flush=True)
    commands = ALL if options.what == "all" else {options.what: COMMANDS[options.what]}
    found: list[Measured] = []
    for what, (works, calls) in commands.items():
        for name in split(options.work or works):
            print(f"{what}, {name} ...", file=sys.stderr)
            found += measure(what, WORKS[name], options.calls or calls, options)
            if options.json:
                report = {"what": options.what, "machine": facts, "results": [asdict(each) for each in found]}
                options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.what == "all":
        theirs, ours = "pipecat", "wsvoice"
        print(f"\n{ratios(found, ours, theirs)}")
    return 1 if any(each.failed or each.differences or each.missed for each in found) else 0


def measure(what: str, work: Work, calls: Sequence[int], options: argparse.Namespace) -> Iterator[Measured]:
    """Carry out one command for one work."""
    # The bare server sends back what it hears, whatever the work is.
    names = [each for each in options.servers if each != "bare" or not work.vad]
    plan = Plan(tuple(names), options.pairs, options.seconds, options.most)
    if what == "startup":
        yield measure_startup(plan, work)
    elif what == "knee":
        yield measure_knee(plan, work)
    elif what == "workers":
        yield measure_workers(plan, work)
    else:
        by_calls = {
            "capacity": measure_capacity,
            "latency": measure_latency,
            "setup": measure_setup,
            "stall": measure_stall,
            "memory": measure_memory,
            "metrics": measure_metrics,
            "trace": measure_trace,
        }
        for number in calls:
            yield by_calls[what](plan, work, number)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*COMMANDS, "all"])
    parser.add_argument("--work", default="", help=f"one or more of {', '.join(WORKS)}")
    parser.add_argument("--servers", default="pipecat,wsvoice,bare", help=f"of {', '.join(SERVERS)}")
    parser.add_argument("--calls", default="", help="how many calls at once: one number or more, as in 1,10,25")
    parser.add_argument("--pairs", type=int, default=5, help="runs of each server (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a call (default: %(default)g)")
    parser.add_argument(
        "--most", type=int, default=300, help="calls that a knee is looked for in (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args(arguments)
    options.servers = split(options.servers)
    if not set(options.servers) <= set(SERVERS):
        parser.error(f"--servers takes names of {', '.join(SERVERS)}")
    if not set(split(options.work)) <= set(WORKS):
        parser.error(f"--work takes names of {', '.join(WORKS)}")
    try:
        options.calls = [int(each) for each in split(options.calls)]
    except ValueError:
        options.calls = [0]
    if not all(each > 0 for each in [*options.calls, options.pairs]) or options.seconds < 5:
        parser.error("--calls and --pairs take whole numbers from 1 up, --seconds 5 or more")
    if options.what in ("latency", "stall", "workers") and not all(
        WORKS[each].bot == "echo" for each in split(options.work)
    ):
        parser.error(f"{options.what} takes works that echo")
    if options.what == "workers" and len(BOTH) < 2:
        parser.error("workers takes a Linux machine with two cores")
    return options


def split(listed: str) -> list[str]:
    """Return the words of a list with commas."""
    return [each for each in listed.split(",") if each]


if __name__ == "__main__":
    sys.exit(main())
