"""The tables: what was measured, on which machine, and how the servers compare."""

from __future__ import annotations

import os
import platform
import re
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from measures import Measured

PACKAGES = ("wsvoice", "pipecat-ai", "uvicorn", "uvloop", "websockets", "numpy", "onnxruntime")


class Metric(NamedTuple):
    """
    How a metric is shown.

    Attributes:
        title: The head of its column.
        sums_up: Its row in the table of ratios; empty if it has none.
        more_is_better: Whether a greater value is the better one.
    """

    title: str
    sums_up: str = ""
    more_is_better: bool = False


METRICS = {
    "cpu_ms": Metric("CPU ms/call-s", "processor time, ms for a second of a call"),
    "p50_ms": Metric("p50 ms", "latency p50, ms"),
    "p99_ms": Metric("p99 ms", "latency p99, ms"),
    "jitter_p99_ms": Metric("jitter p99", "jitter p99, ms"),
    "growing_ms": Metric("grows ms"),
    "late_percent": Metric("late %"),
    "setup_ms": Metric("median call, ms", "set-up, ms to the first audio"),
    "setup_most_ms": Metric("last call, ms"),
    "before_ms": Metric("before, ms"),
    "left_ms": Metric("latency left, ms", "latency left by a stall of 200 ms, ms"),
    "left_most_ms": Metric("worst call, ms"),
    "lost_ms": Metric("audio lost, ms"),
    "listening_ms": Metric("listens, ms", "start to listening port, ms"),
    "answered_ms": Metric("answers, ms", "start to answered webhook, ms"),
    "first_call_ms": Metric("first call's set-up"),
    "first_audio_ms": Metric("first audio, ms", "start to first audio, ms"),
    "rss_mib": Metric("RSS MiB/call", "resident memory, MiB a call"),
    "pss_mib": Metric("PSS MiB/call"),
    "unscraped_percent": Metric("CPU %, no scrapes"),
    "scraped_percent": Metric("CPU %, scraped"),
    "scrapes_percent": Metric("scrapes cost %"),
    "knee_calls": Metric("calls at the knee", "knee, calls on a core", more_is_better=True),
    "cores": Metric("its cores"),
    "callers_cores": Metric("callers' cores"),
}


def machine_facts() -> dict[str, Any]:
    """Return what the numbers depend on: the machine and the versions."""
    found = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "none"
    return {
        "cpu": found[1] if found else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def header(facts: dict[str, Any]) -> str:
    """Return the line above all tables."""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['system']}, Python {facts['python']}, {versions}"


def _text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def spread(values: Sequence[float]) -> str:
    """Return the median with the least and the most."""
    digits = 1 if max(map(abs, values)) >= 10 else 2
    median, least, most = (f"{each:.{digits}f}" for each in (statistics.median(values), min(values), max(values)))
    return f"{median} [{least} to {most}]" if len(values) > 1 else median


def print_table(measured: Measured) -> None:
    """Print what a measure found: the median of all runs, with the least and the most."""
    calls = f", {measured.calls} call{'s'[: measured.calls > 1]}" if measured.what not in ("knee", "workers") else ""
    print(f"\n{measured.what}, {measured.work}{calls}; median [least to most]")
    metrics = [each for each in METRICS if any(each in found for found in measured.values.values())]
    rows = [["", *(METRICS[each].title for each in metrics), "thrown away"]]
    for name, reasons in measured.thrown_away.items():
        found = measured.values.get(name, {})
        cells = [spread(found[each]) if each in found else "-" for each in metrics]
        rows.append([name, *cells, str(len(reasons))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print("   ".join([f"{first:<{widths[0]}}", *cells]))
    for name, why in measured.failed.items():
        print(f"{name} shows nothing: {why}")
    for difference in measured.differences:
        print(f"FAILED: not the same speech was heard: {difference}")
    print(end="", flush=True)


def ratios(all_measured: Sequence[Measured], ours: str, theirs: str) -> str:
    """Return a markdown table of how many times better `ours` is than `theirs`, run by run, A B B A."""
    rows = [f"| | work | calls | {theirs} | {ours} | times better |", "|---|---|---|---|---|---|"]
    for measured in all_measured:
        calls = "" if measured.what == "knee" else measured.calls
        for name, metric in METRICS.items():
            pair = [measured.values.get(server, {}).get(name, []) for server in (theirs, ours)]
            if not metric.sums_up or not any(pair):
                continue
            cells = [spread(each) if each else "none" for each in pair]
            rows.append(
                f"| {metric.sums_up} | {measured.work} | {calls} | {' | '.join(cells)} | {_times(pair, metric)} |"
            )
    return "\n".join(rows)


def _times(pair: Sequence[Sequence[float]], metric: Metric) -> str:
    """Return how many times better the second is; nothing where a value is not above zero."""
    theirs, ours = pair[::-1] if metric.more_is_better else pair
    if not theirs or len(theirs) != len(ours) or min(*theirs, *ours) <= 0:
        return ""
    return spread([one / other for one, other in zip(theirs, ours, strict=True)])
