"""
Ctrl-C, a cancelled job or a closed terminal at any moment of a test call: it is hung up, and nothing of it is left.

Once, while both talk, stands in test_end_to_end.py; twice, while the bot is imported, in test_served_bot.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.environment import clean_environ

#: Tells its process's id as soon as it is imported.
BOT = """
import asyncio, os, pathlib, time
pathlib.Path("pid").write_text(str(os.getpid()))
{at_import}

async def bot(runner_args):
    websocket = runner_args.websocket
    pathlib.Path("called").write_text("yes")
    await asyncio.sleep(60)
"""


def is_running(pid: int) -> bool:
    try:
        # A zombie of a parent that is gone counts as running for a moment.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(what: str, condition: object, timeout_s: float = 30) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("moment", "number", "again"),
    [
        ("importing", signal.SIGTERM, False),
        ("hanging up", signal.SIGHUP, False),
        ("speaking", signal.SIGINT, True),
    ],
)
def test_a_call_that_is_interrupted_leaves_nothing(
    tmp_path: Path, moment: str, number: signal.Signals, again: bool
) -> None:
    source = BOT.replace("{at_import}", "time.sleep(30)" if moment == "importing" else "")
    (tmp_path / "bot.py").write_text(source)
    log = tmp_path / "stderr"
    options = ["--duration", "0.3s" if moment == "hanging up" else "30s", "--listen", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "wsvoice", "dial", "bot.py", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=tmp_path,
            env=clean_environ(),
        )
    served = 0
    try:
        pid = tmp_path / "pid"
        wait_for("the bot is imported", lambda: pid.exists() and pid.read_text())
        served = int(pid.read_text())
        if moment != "importing":
            wait_for("the bot is called", (tmp_path / "called").exists)
        # Of a call of 0.3 s, this is in or after its hang-up.
        time.sleep(0.35 if moment == "hanging up" else 0.1)
        process.send_signal(number)
        if again:
            time.sleep(0.05)
            process.send_signal(number)
        output, _ = process.communicate(timeout=20)
        # The server is a process of its own session, and this is not its parent.
        wait_for("the served bot is gone", lambda: not is_running(served), 5)
    finally:
        for each in (process.pid, served):
            if each and is_running(each):
                os.kill(each, signal.SIGKILL)
        process.wait()
    text = log.read_text()
    assert process.returncode == 130, text
    assert output == b""
    assert text.splitlines()[-1] == "interrupted"
    assert text.count("interrupted") == 1
    assert "Traceback" not in text
