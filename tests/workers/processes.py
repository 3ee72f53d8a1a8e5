"""A server with workers, in processes of their own, and what can be seen of them from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.environment import clean_environ
from tests.process import ServerProcess, server_process
from wsvoice.phone.control import ask
from wsvoice.phone.runs import running_servers
from wsvoice.runner.figures import Snapshot, WorkerFigures, read_snapshot

#: Says back what it hears, and its name in the log at its start.
BOT = """
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineTask
from pipecat.processors.frame_processor import FrameProcessor
from loguru import logger

VERSION = "{version}"


class Echo(FrameProcessor):
    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


async def bot(runner_args):
    logger.info("this is version {{}}", VERSION)
    transport = runner_args.transport
    task = PipelineTask(Pipeline([transport.input(), Echo(), transport.output()]))
    await PipelineRunner(handle_sigint=False).run(task)
"""


def bot_of(version: str = "one", more: str = "") -> str:
    """Return the source of an echo bot of a version."""
    return BOT.format(version=version) + more


@contextmanager
def workers_process(folder: Path, bot: str, *arguments: str, **environ: str) -> Iterator[ServerProcess]:
    """Run a server for Twilio's calls whose state is in `folder`."""
    state = folder / "state"
    with server_process(
        folder, bot, "-t", "twilio", "--max-lag", "0", *arguments, WSVOICE_STATE_DIR=str(state), **environ
    ) as server:
        yield server


def running_calls(server: ServerProcess) -> dict[str, Any]:
    """Return what ``wsvoice calls --json`` says of a server."""
    command = [sys.executable, "-m", "wsvoice", "calls", "--json"]
    environ = clean_environ(WSVOICE_STATE_DIR=str(server.log_file.parent / "state"))
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=20, check=True)
    [found] = json.loads(done.stdout)["servers"]
    assert isinstance(found, dict)
    return found


def look_at(server: ServerProcess) -> Snapshot:
    """Return what a server says of itself at its control socket; it is a tenth of a second old at most."""
    [found] = running_servers(server.log_file.parent / "state")
    return read_snapshot(ask(found, {"do": "calls"}))


def serving_workers(server: ServerProcess) -> dict[int, WorkerFigures]:
    """Return the workers that take calls, by number."""
    return {each.number: each for each in look_at(server).server.workers if each.state == "serving"}


def worker_pids(server: ServerProcess) -> dict[int, int]:
    """Return the processes of the workers that take calls, by number."""
    return {number: each.pid for number, each in serving_workers(server).items()}


def children(pid: int, *, with_ended: bool = True) -> list[int]:
    """Return the processes that a process has started, with those that have ended and whose exit codes are there."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and (with_ended or state != "Z"):
            found.append(int(stat.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """Return the running processes that a process has started, and those that they have."""
    found = children(pid, with_ended=False)
    return [*found, *(each for child in found for each in descendants(child))]


def memory_mb(pid: int, kind: str = "Pss") -> float:
    """
    Return how much memory a process has for itself, and its share of what it has with others.

    Args:
        kind: ``Pss_Anon`` leaves out what is mapped from files, of which other programs may have a share.
    """
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(rf"^{kind}:\s+(\d+) kB", text, re.MULTILINE)
    assert match
    return int(match[1]) / 1000


def descriptors(pid: int) -> int:
    """Return how many descriptors a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def is_running(pid: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 10) -> float:
    """Wait until a condition holds; return for how long."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, f"it is not so after {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def kill(pid: int) -> None:
    """Kill a process that the test has started."""
    os.kill(pid, 9)


def metric(url: str, name: str, **labels: str) -> float:
    """Return a metric's value, the sum of all whose labels fit."""
    total, found = 0.0, False
    for line in httpx.get(url, timeout=10).text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items()):
            total, found = total + float(match[3]), True
    assert found, f"there is no {name} with {labels}"
    return total
