"""
How wsvoice compares with pipecat's development runner: latency, processor time, knee, set-up, stalls, memory, start.

    python benchmarks/suite.py capacity --calls 50 --pairs 5
    python benchmarks/suite.py all --json report.json

README.md says how to read the tables. Everything is measured against a bare echo and pipecat's runner in one run,
A B B A, the servers on one core and the callers on another.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from load import (
    RATE,
    Caller,
    call_all,
    exact_latencies_s,
    jitter_s,
    noise,
    process_time_s,
    resampled_latencies_s,
)

from wsvoice import __version__
from wsvoice.audio import PCMU_8K

BOTS = Path(__file__).parent / "bots"
START_TIMEOUT_S = 60.0
#: A caller that is late itself has measured nothing; 99 of 100 frames are sent sooner than this after they are due.
MAX_LATE_S = 0.005
#: What of a run is not measured: the pipelines are being set up.
SKIP_S = 2.0
#: A frame later than this is heard as a gap; one in a hundred may be.
LATE_S, LATE_SHARE = 0.06, 0.01
MAX_TRIES = 4
# pipecat's serializer refuses to be made without credentials. These are nobody's, and nothing is sent with them.
MADE_UP_CREDENTIALS = {"TWILIO_ACCOUNT_SID": f"AC{'0' * 32}", "TWILIO_AUTH_TOKEN": "0" * 32}
SERVERS = ("pipecat", "wsvoice", "unpatched", "bare")


class Failed(Exception):
    """A run shows nothing: a call failed, or the callers were late themselves."""


@dataclass(frozen=True)
class Work:
    """What the bot does, at which rate (0: pipecat's own), and whether it listens for speech."""

    name: str
    bot: str
    rate: int
    vad: bool


WORKS = {
    each.name: each
    for each in (
        Work("echo-8k", "echo", 8000, vad=False),
        Work("echo", "echo", 0, vad=False),
        Work("echo-8k-vad", "echo", 8000, vad=True),
        Work("conversation-8k", "conversation", 8000, vad=True),
        Work("conversation", "conversation", 0, vad=True),
    )
}


# The servers


@dataclass
class Server:
    """A server that runs."""

    name: str
    url: str
    pid: int
    log: Path
    events: Path


@contextmanager
def serving(name: str, work: Work) -> Iterator[Server]:
    """Run a server while the context lasts; it listens when the context begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bot, python = str(BOTS / "load.py"), sys.executable
    commands = {
        "wsvoice": [python, "-m", "wsvoice", "run", bot, "-t", "twilio", "--host", "127.0.0.1", "--port", str(port)],
        "pipecat": [python, bot, "-t", "twilio", "-x", f"127.0.0.1:{port}", "--host", "127.0.0.1", "--port", str(port)],
        "bare": [python, str(BOTS / "bare_loop.py"), str(port)],
    }
    commands["unpatched"] = commands["wsvoice"]
    with tempfile.TemporaryDirectory() as folder:
        log, events = Path(folder, "log"), Path(folder, "events")
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("WSVOICE_", "TWILIO_"))}
        environ |= {"LOAD_WORK": work.bot, "LOAD_RATE": str(work.rate or ""), "LOAD_VAD": "1" if work.vad else ""}
        environ |= {"LOAD_EVENTS": str(events), "LOGURU_LEVEL": "INFO"}
        if name == "pipecat":
            environ |= MADE_UP_CREDENTIALS
        if name == "unpatched":
            from wsvoice.runner.pipecat.patches import PATCHES

            environ["WSVOICE_DISABLE_PATCHES"] = ",".join(PATCHES)
        environ |= {key: value for key, value in os.environ.items() if key == "WSVOICE_DISABLE_PATCHES"}
        with log.open("w") as file:
            process = subprocess.Popen(commands[name], cwd=folder, env=environ, stdout=file, stderr=file)
        try:
            pin(process.pid, last=False)
            until = time.monotonic() + START_TIMEOUT_S
            while not listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"error: {name} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.05)
            scheme = "ws" if name == "bare" else "http"
            yield Server(name, f"{scheme}://127.0.0.1:{port}/", process.pid, log, events)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listens(port: int) -> bool:
    """Tell whether a connection to `port` succeeds."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


#: The cores that may be used, before anything is pinned.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(pid: int, *, last: bool) -> None:
    """Keep the callers and the servers off each other's core, where the system can."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, {CORES[-1] if last else CORES[0]})


# The callers


_numbers = iter(range(1, 10**6))


def sentence() -> np.ndarray:
    """Return the recorded question that `wsvoice dial` asks, at 8 kHz."""
    with files("wsvoice.dial").joinpath("question.wav").open("rb") as file, wave.open(file) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2")
        step = recording.getframerate() // RATE
    return samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1).astype("<i2")


def conversation(number: int, seconds: float) -> bytes:
    """Return a caller's side: a sentence, a pause for the answer; every third answer is interrupted. mu-law."""
    words, pieces, turn = sentence(), [np.zeros(RATE // 2 + 13 * (number % 50), "<i2")], 0
    while sum(map(len, pieces)) < RATE * seconds:
        turn += 1
        pieces += [words, np.zeros(RATE * (2 if turn % 3 == 0 else 4), "<i2")]
    return PCMU_8K.encode(np.concatenate(pieces)[: int(RATE * seconds)].tobytes())


@dataclass
class Run:
    """What one run showed; times in milliseconds."""

    calls: int
    cpu_ms: float
    latencies_ms: np.ndarray
    jitters_ms: np.ndarray
    setup_ms: list[float]
    late_share: float
    events: list[Any] = field(default_factory=list)
    growing_ms: float = 0.0


def run(server: Server, work: Work, calls: int, seconds: float, *, at_once: bool = False) -> Run:
    """
    Place `calls` calls of `seconds` each.

    Raises:
        Failed: If a call failed, an echo was not its caller's own, or the callers were late.
    """
    make = conversation if work.bot == "conversation" else noise
    callers = [Caller(next(_numbers), b"") for _ in range(calls)]
    for index, caller in enumerate(callers):
        caller.audio = make(index, seconds)
    used_s = asyncio_run(_run(server, callers, seconds, at_once=at_once))
    for caller in callers:
        if caller.failure and server.name != "bare":
            raise Failed(f"call {caller.number}: {caller.failure}")
        if caller.first_at is None:
            raise Failed(f"call {caller.number} heard nothing")
    late_s = float(np.percentile(np.concatenate([each.late_s for each in callers]), 99))
    if late_s > MAX_LATE_S:
        raise Failed(f"the callers were {late_s * 1000:.1f} ms late themselves")
    latencies = [np.zeros(1)]
    growing = 0.0
    if work.bot == "echo":
        measure = exact_latencies_s if work.rate or server.name == "bare" else resampled_latencies_s
        try:
            latencies = [measure(each, skip_s=SKIP_S) for each in callers]
        except ValueError as error:
            raise Failed(str(error)) from None
        halves = [(each[: len(each) // 2], each[len(each) // 2 :]) for each in latencies if len(each) > 20]
        growing = float(np.median([np.median(later) - np.median(sooner) for sooner, later in halves]))
    together = np.concatenate(latencies)
    return Run(
        calls,
        used_s * 1000,
        together * 1000,
        np.concatenate([jitter_s(each, skip_s=SKIP_S) for each in callers]) * 1000,
        [((each.first_at or 0) - each.began_at) * 1000 for each in callers],
        float(np.mean(together > LATE_S)),
        growing_ms=growing * 1000,
    )


async def _run(server: Server, callers: list[Caller], seconds: float, *, at_once: bool) -> float:
    """Place the calls; return the server's processor time for a second of a call."""
    settled = asyncio.Event()
    gc.collect()
    gc.freeze()
    gc.disable()
    calling = asyncio.create_task(call_all(server.url, callers, at_once=at_once, settled=settled))
    waiting = asyncio.create_task(settled.wait())
    await asyncio.wait({calling, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    used_s = 0.0
    if not calling.done():
        await asyncio.sleep(SKIP_S)
        measured_s = seconds - SKIP_S - 1.0 - (0 if at_once else len(callers) * 0.02)
        before, since = process_time_s(server.pid), time.monotonic()
        await asyncio.sleep(max(1.0, measured_s))
        used_s = (process_time_s(server.pid) - before) / (time.monotonic() - since) / len(callers)
    await calling
    gc.enable()
    return used_s


def asyncio_run(main: Any) -> Any:
    """Run a coroutine on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def tried(server: Server, work: Work, calls: int, seconds: float, *, at_once: bool = False) -> Run:
    """Run until the run counts; what is thrown away is said."""
    for _ in range(MAX_TRIES):
        try:
            return run(server, work, calls, seconds, at_once=at_once)
        except (Failed, OSError) as error:
            print(f"thrown away ({server.name}, {calls} calls): {error}", file=sys.stderr)
            time.sleep(1)
    raise SystemExit(f"error: {MAX_TRIES} runs in a row of {server.name} were thrown away")


# What is measured


def spread(values: Sequence[float]) -> str:
    """Return the median with the least and the most."""
    return f"{statistics.median(values):.1f} [{min(values):.1f} to {max(values):.1f}]"


def measure_capacity(names: Sequence[str], work: Work, calls: int, pairs: int, seconds: float) -> dict[str, Any]:
    """Measure latency, jitter and processor time of `calls` calls, `pairs` times there and back."""
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, work)) for name in names}
        for server in servers.values():
            # Whatever is imported or cached at the first call would be measured with it.
            tried(server, work, 1, 4)
        for number in range(pairs):
            for name in names if number % 2 == 0 else reversed(names):
                runs[name].append(tried(servers[name], work, calls, seconds))
    result = {
        name: {
            "cpu_ms": [each.cpu_ms for each in of],
            "p50_ms": [float(np.percentile(each.latencies_ms, 50)) for each in of],
            "p99_ms": [float(np.percentile(each.latencies_ms, 99)) for each in of],
            "jitter_p99_ms": [float(np.percentile(each.jitters_ms, 99)) for each in of],
            "growing_ms": [each.growing_ms for each in of],
            "late": [each.late_share for each in of],
        }
        for name, of in runs.items()
    }
    print(f"\n{work.name}, {calls} calls, {pairs} runs of {seconds:g} s each; median [least to most]")
    print(f"{'':<10}{'CPU ms/call-s':>26}{'ratio':>8}{'p50 ms':>26}{'p99 ms':>26}{'jitter p99':>24}{'grows ms':>10}")
    base = statistics.median(result[names[0]]["cpu_ms"])
    for name, of in result.items():
        ratio = base / statistics.median(of["cpu_ms"])
        row = f"{name:<10}{spread(of['cpu_ms']):>26}{ratio:>8.2f}{spread(of['p50_ms']):>26}{spread(of['p99_ms']):>26}"
        print(f"{row}{spread(of['jitter_p99_ms']):>24}{statistics.median(of['growing_ms']):>10.1f}", flush=True)
    return result


def measure_knee(names: Sequence[str], work: Work, seconds: float, most: int) -> dict[str, Any]:
    """Find how many calls a server holds on one core: fewer than one frame of a hundred is late."""
    found = {}
    for name in names:
        with serving(name, work) as server:
            tried(server, work, 1, 4)
            low, high, step = 0, most + 1, 10
            calls = step
            while high - low > 3 and calls <= most:
                try:
                    fine = run(server, work, calls, seconds).late_share < LATE_SHARE
                except (Failed, OSError) as error:
                    print(f"{name}, {calls} calls: {error}", file=sys.stderr)
                    fine = False
                print(f"{name}, {calls} calls: {'holds' if fine else 'does not'}", file=sys.stderr)
                if fine:
                    low = calls
                else:
                    high = calls
                calls = calls * 3 // 2 if high > most else (low + high) // 2
                time.sleep(1)
        found[name] = low
        print(f"knee, {work.name}: {name} {low} calls", flush=True)
    return found


def measure_setup(names: Sequence[str], work: Work, calls: int, pairs: int) -> dict[str, Any]:
    """Measure how long `calls` callers who dial at once wait for the first audio."""
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serving(name, work)) for name in names}
        for server in servers.values():
            tried(server, work, 1, 4)
        for number in range(pairs):
            for name in names if number % 2 == 0 else reversed(names):
                found = tried(servers[name], work, calls, 3.0, at_once=True)
                times[name].append(statistics.median(found.setup_ms))
    print(f"\nset-up, {work.name}, {calls} calls at once, {pairs} runs; ms to the first audio")
    for name, of in times.items():
        print(f"{name:<10}{spread(of):>26}", flush=True)
    return dict(times)


def main() -> int:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["capacity", "knee", "setup"])
    parser.add_argument("--work", default="echo-8k", choices=WORKS)
    parser.add_argument("--servers", default="pipecat,wsvoice,bare", help="of pipecat, wsvoice, unpatched, bare")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    names = re.split(",", options.servers)
    if not set(names) <= set(SERVERS):
        parser.error(f"--servers takes names of {', '.join(SERVERS)}")
    work = WORKS[options.work]
    if work.bot == "conversation":
        names = [each for each in names if each != "bare"]
    pin(os.getpid(), last=True)
    print(f"wsvoice {__version__}, pipecat {version('pipecat-ai')}, Python {sys.version.split()[0]}", flush=True)
    if options.what == "capacity":
        result = measure_capacity(names, work, options.calls, options.pairs, options.seconds)
    elif options.what == "knee":
        result = measure_knee(names, work, options.seconds, options.most)
    else:
        result = measure_setup(names, work, options.calls, options.pairs)
    if options.json:
        options.json.write_text(json.dumps({"what": options.what, "work": work.name, "result": result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
