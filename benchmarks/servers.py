"""The servers that are measured, what their bots do, and what the system knows of their processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BOTS = Path(__file__).parent / "bots"
SERVERS = ("pipecat", "wsvoice", "unpatched", "bare")
#: The servers are on the first of them, the callers on the last; none where the system cannot pin a process.
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
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
        speech: The speech events found in each caller's audio, by the caller's number and the length of its audio;
            one list for each run.
    """

    name: str
    url: str
    pid: int
    events: Path
    started: Usage
    listening_at: float
    thrown_away: list[str] = field(default_factory=list)
    speech: dict[tuple[int, float], list[list[tuple[str, int]]]] = field(default_factory=dict)


@contextmanager
def serving(name: str, work: Work) -> Iterator[Server]:
    """Run a server while the context lasts; it listens when the context begins."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder, "events")
        started = Usage(time.monotonic(), 0.0, _idle_s())
        with listening(_command(name, port), port, _environ(name, work) | {"LOAD_EVENTS": str(events)}) as pid:
            scheme = "ws" if name == "bare" else "http"
            url = f"{scheme}://127.0.0.1:{port}/"
            yield Server(name, url, pid, events, started, time.monotonic())


@contextmanager
def listening(command: Sequence[str], port: int, environ: Mapping[str, str]) -> Iterator[int]:
    """
    Run a program on the servers' core while the context lasts; it listens on `port` when the context begins.

    Yields:
        The process's id.
    """
    # In an empty folder there is no .env and no pyproject.toml to change what is measured.
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            pin(process.pid, last=False)
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
    return [python, "-m", "wsvoice", "run", bot, "-t", "twilio", *address]


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
    What a server's core did up to a moment; two of them make a share.

    Attributes:
        at: The moment.
        own_s: Processor time that the server has used.
        idle_s: How long its core has been idle; None where the system does not say.
    """

    at: float
    own_s: float
    idle_s: float | None

    @classmethod
    def now(cls, pid: int) -> Usage:
        """Look at a server that runs on the first core."""
        return cls(time.monotonic(), process_time_s(pid), _idle_s())

    def own_share(self, since: Usage) -> float:
        """Return the server's share of a core."""
        return (self.own_s - since.own_s) / (self.at - since.at)

    def foreign_share(self, since: Usage) -> float | None:
        """Return the share of the core that was neither idle nor the server's."""
        if self.idle_s is None or since.idle_s is None:
            return None
        return 1 - (self.idle_s - since.idle_s + self.own_s - since.own_s) / (self.at - since.at)


def process_time_s(pid: int) -> float:
    """Return a process's processor time, of all its threads (``clock_getcpuclockid(3)``, computed as Linux does)."""
    return time.clock_gettime((~pid << 3) | 2)


def _idle_s() -> float | None:
    """
    Return how long the servers' core has been idle.

    Not what it was busy with: that is sampled, while the time without ticks is exact.
    https://docs.kernel.org/filesystems/proc.html#miscellaneous-kernel-statistics-in-proc-stat
    """
    if len(CORES) < 2 or not Path("/proc/stat").exists():
        return None
    found = re.search(rf"^cpu{CORES[0]} (.*)$", Path("/proc/stat").read_text(), re.MULTILINE)
    if found is None:
        return None
    idle, waiting = found[1].split()[3:5]
    return (int(idle) + int(waiting)) / os.sysconf("SC_CLK_TCK")


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
