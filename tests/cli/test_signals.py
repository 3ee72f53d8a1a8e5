"""A server that stops once whoever started it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.environment import clean_environ

#: Notes each SIGTERM, and ends at the second one.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from wsvoice.cli import signals

signals.CLOSING_S = 0.5
noted = []

def note(number, frame):
    print("nobody reads this", flush=True)
    noted.append(time.monotonic())

signal.signal(signal.SIGTERM, note)
signals.stop_at_end_of_input()
print(repr(sys.stdin.read()), flush=True)
while len(noted) < 2:
    time.sleep(0.01)
Path("waited").write_text(str(noted[1] - noted[0]))
"""


def until(condition: object, timeout_s: float = 15) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_end_of_its_input_stops_a_process_that_nobody_reads_any_more(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=clean_environ(PYTHONPATH=os.pathsep.join(sys.path)),
        cwd=tmp_path,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        # The input is empty for the bot, though it is open.
        assert process.stdout.readline() == "''\n"
        assert process.poll() is None
        process.stdout.close()
        process.stdin.close()
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
    assert float((tmp_path / "waited").read_text()) >= 0.1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("word", ["loading", "answered"])
def test_a_test_call_that_is_killed_leaves_no_server_behind(tmp_path: Path, word: str) -> None:
    loading = "import time; time.sleep(30)" if word == "loading" else ""
    bot = f"""
import asyncio, os
from pathlib import Path
Path("pid").write_text(str(os.getpid()))
{loading}

async def bot(runner_args):
    Path("answered").write_text("")
    await asyncio.sleep(60)
"""
    (tmp_path / "bot.py").write_text(bot)
    process = subprocess.Popen(
        [sys.executable, "-m", "wsvoice", "dial", "bot.py", "--duration", "30"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environ(),
        cwd=tmp_path,
    )
    try:
        until((tmp_path / ("pid" if word == "loading" else word)).exists)
        pid = int((tmp_path / "pid").read_text())
        assert is_running(pid)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not is_running(pid))
