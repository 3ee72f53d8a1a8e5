"""The servers that are measured, what their bots do, and what the system knows of their processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BOTS = Path(__file__).parent / "bots"
SERVERS = ("pipecat", "wsvoice", "unpatched", "bare")
#: wsvoice that writes a trace of each call.
TRACED = "traced"
#: Servers that only a measure of their own has: wsvoice with so many workers.
CREWS = {"1 worker": 1, "2 workers": 2}
#: The servers are on the first of them, the callers on the last; none where the system cannot pin a process.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
#: Both of these cores.
BOTH = (*CORES[:1], *CORES[1:][-1:])
START_TIMEOUT_S = 60.0
#: How often it is looked whether a server listens; it runs on another core.
POLL_S = 0.002
# pipecat's serializer refuses to be made without credentials. These are nobody's, and nothing is sent with them.
MADE_UP_CREDENTIALS = {"TWILIO_ACCOUNT_SID": f"AC{'0' * 32}", "TWILIO_AUTH_TOKEN": "0" * 32}


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


@dataclass
class Server:
    """
    A server that runs.

    Attributes:
        url: What is dialled: a webhook, or a WebSocket that needs none.
        events: The file that its bot writes speech events to.
        started: What its core did up to the moment when its process was started.
        listening_at: When a connection to its port succeeded for the first time.
        thrown_away: Why runs with it were thrown away.
        cores: Where it runs.
        has_callers: Whether the callers run on these cores too.
        metrics_port: Where its metrics are; ``None`` for nowhere.
        speech: The speech events found in each caller's audio, by the caller's number and the length of its audio;
            one list for each run.
    """

    name: str
    url: str
    pid: int
    events: Path
    started: Usage
    listening_at: float
    cores: Sequence[int] = tuple(CORES[:1])
    has_callers: bool = False
    metrics_port: int | None = None
    thrown_away: list[str] = field(default_factory=list)
    speech: dict[tuple[int, float], list[list[tuple[str, int]]]] = field(default_factory=dict)


@contextmanager
def serving(name: str, work: Work, *, on_both_cores: bool = False, with_metrics: bool = False) -> Iterator[Server]:
    """
    Run a server while the context lasts; it listens when the context begins.

    Args:
        on_both_cores: Whether it has the callers' core too, and shares both with them.
        with_metrics: Whether it has a port for metrics.
    """
    port = free_port()
    cores = BOTH if on_both_cores else CORES[:1]
    metrics_port = free_port() if with_metrics else None
    command = _command(name, port) + (["--metrics-port", str(metrics_port)] if with_metrics else [])
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder, "events")
        environ = _environ(name, work) | {"LOAD_EVENTS": str(events)}
        started = Usage(time.monotonic(), 0.0, _idle_s(cores), time.process_time())
        with listening(command, port, environ, cores=cores) as pid, callers_on(cores if on_both_cores else CORES[-1:]):
            scheme = "ws" if name == "bare" else "http"
            url = f"{scheme}://127.0.0.1:{port}/"
            listening_at = time.monotonic()
            yield Server(name, url, pid, events, started, listening_at, cores, on_both_cores, metrics_port)


@contextmanager
def callers_on(cores: Collection[int]) -> Iterator[None]:
    """Have this process run on `cores` while the context lasts, where the system can pin a process."""
    if len(CORES) < 2:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def listening(
    command: Sequence[str], port: int, environ: Mapping[str, str], *, cores: Collection[int] = CORES[:1]
) -> Iterator[int]:
    """
    Run a program while the context lasts; it listens on `port` when the context begins.

    Args:
        cores: Where it runs: on the servers' core unless others are named.

    Yields:
        The process's id.
    """
    # In an empty folder there is no .env and no pyproject.toml to change what is measured.
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            if len(CORES) > 1:
                os.sched_setaffinity(process.pid, cores)
            until = time.monotonic() + START_TIMEOUT_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > until:
                    why = "did not listen" if process.poll() is None else f"ended with {process.returncode}"
                    text = Path(folder, "log").read_text()[-2000:]
                    raise SystemExit(f"error: {' '.join(command)} {why}:\n{text}")
                time.sleep(POLL_S)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def own_environ() -> dict[str, str]:
    """Return this process's environment, without settings that would change what is measured."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("WSVOICE_", "TWILIO_"))}


def _command(name: str, port: int) -> list[str]:
    """Return the command line of a server."""
    python, bot, address = sys.executable, str(BOTS / "load.py"), ["--host", "127.0.0.1", "--port", str(port)]
    if name == "bare":
        return [python, str(BOTS / "bare_loop.py"), str(port)]
    if name == "pipecat":
        return [python, bot, "-t", "twilio", "-x", f"127.0.0.1:{port}", *address]
    workers = ["--workers", str(CREWS[name])] if name in CREWS else []
    # In the folder that it runs in, which is removed.
    trace = ["--trace", "traces"] if name == TRACED else []
    return [python, "-m", "wsvoice", "run", bot, "-t", "twilio", "--max-calls", "0", *workers, *trace, *address]


def _environ(name: str, work: Work) -> dict[str, str]:
    """Return the environment of a server."""
    environ = own_environ()
    environ |= {"LOAD_WORK": work.bot, "LOAD_RATE": str(work.rate or ""), "LOAD_VAD": "1" if work.vad else ""}
    environ["LOGURU_LEVEL"] = "INFO"
    if name == "pipecat":
        environ |= MADE_UP_CREDENTIALS
    elif name == "unpatched":
        from wsvoice.runner.pipecat.patches import PATCHES

        environ["WSVOICE_DISABLE_PATCHES"] = ",".join(PATCHES)
    elif "WSVOICE_DISABLE_PATCHES" in os.environ:
        environ["WSVOICE_DISABLE_PATCHES"] = os.environ["WSVOICE_DISABLE_PATCHES"]
    return environ


def _listens(port: int) -> bool:
    """Tell whether a connection to `port` succeeds."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def pin(pid: int, *, last: bool) -> None:
    """Keep the callers and the servers off each other's core, where the system can."""
    if len(CORES) > 1:
        os.sched_setaffinity(pid, {CORES[-1]} if last else {CORES[0]})


# What the system knows


@dataclass(frozen=True)
class Usage:
    """
    What a server's cores did up to a moment; two of them make a share.

    Attributes:
        at: The moment.
        own_s: Processor time that the server has used, with the processes that it has started.
        idle_s: How long its cores have been idle, in all; None where the system does not say.
        callers_s: Processor time that the callers have used, wherever.
    """

    at: float
    own_s: float
    idle_s: float | None
    callers_s: float

    @classmethod
    def of(cls, server: Server) -> Usage:
        """Look at a server."""
        own_s = sum(process_time_s(each) for each in family(server.pid))
        return cls(time.monotonic(), own_s, _idle_s(server.cores), time.process_time())

    def own_share(self, since: Usage) -> float:
        """Return how many cores' time the server has used."""
        return (self.own_s - since.own_s) / (self.at - since.at)

    def callers_share(self, since: Usage) -> float:
        """Return how many cores' time the callers have used."""
        return (self.callers_s - since.callers_s) / (self.at - since.at)

    def foreign_share(self, since: Usage, server: Server) -> float | None:
        """Return the share of the server's cores that was neither idle nor the server's nor its callers'."""
        if self.idle_s is None or since.idle_s is None:
            return None
        known_s = self.idle_s - since.idle_s + self.own_s - since.own_s
        if server.has_callers:
            known_s += self.callers_s - since.callers_s
        return 1 - known_s / ((self.at - since.at) * len(server.cores))


def family(pid: int) -> list[int]:
    """Return a process and those that it, or one of them, has started; where the system is not Linux, it alone."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    started = children.read_text().split() if children.exists() else []
    return [pid, *(each for child in started for each in family(int(child)))]


def process_time_s(pid: int) -> float:
    """Return a process's processor time, of all its threads (``clock_getcpuclockid(3)``, computed as Linux does)."""
    return time.clock_gettime((~pid << 3) | 2)


def _idle_s(cores: Sequence[int]) -> float | None:
    """
    Return how long `cores` have been idle, in all.

    Not what they were busy with: that is sampled, while the time without ticks is exact.
    https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
    """
    if len(CORES) < 2 or not Path("/proc/stat").exists():
        return None
    total, text = 0, Path("/proc/stat").read_text()
    for core in cores:
        found = re.search(rf"^cpu{core} (.*)$", text, re.MULTILINE)
        if found is None:
            return None
        idle, waiting = found[1].split()[3:5]
        total += int(idle) + int(waiting)
    return total / os.sysconf("SC_CLK_TCK")


def memory_kb(pid: int) -> dict[str, int]:
    """
    Return the resident memory of a process in KiB: ``rss``, and ``pss`` where the system says it.

    https://docs.kernel.org/filesystems/proc.html#proc-pid-smaps-rollup
    """
    status = Path(f"/proc/{pid}/status").read_text()
    found = {"rss": int(re.findall(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[0])}
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if rollup.exists():
        found["pss"] = int(re.findall(r"^Pss:\s+(\d+) kB", rollup.read_text(), re.MULTILINE)[0])
    return found
