"""``wsvoice run --tunnel``: a process with a tunnel that is called through it, loses it, and ends with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from tests.environment import clean_environ
from tests.phone.public_network import PublicNetwork, public_network
from tests.process import server_process
from wsvoice.audio import write_wav

BOT = """
async def bot(runner_args):
    pass
"""
ECHO = Path(__file__).parents[2] / "examples" / "echo.py"
SECRET = {"TWILIO_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[PublicNetwork]:
    yield from public_network(tmp_path)


def dial(network: PublicNetwork, folder: Path, url: str) -> dict[str, Any]:
    """Place a test call in a process that is in the network; return its report."""
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)).astype("<i2")
    write_wav(folder / "tone.wav", [tone.tobytes()], 8000)
    command = [sys.executable, "-m", "wsvoice", "dial", url, "-t", "twilio", "--audio", "tone.wav", "--listen", "0"]
    done = subprocess.run(
        [*command, "--json", "-q"],
        env=clean_environ(**network.environ(), **SECRET),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def lines_of(process: subprocess.Popen[str]) -> Queue[dict[str, Any]]:
    """Return the JSON objects that a process prints, as they come."""
    found: Queue[dict[str, Any]] = Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            found.put(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    return found


def test_a_call_through_the_second_address_of_ngrok(network: PublicNetwork, tmp_path: Path) -> None:
    network.tell(authtoken="2abc_right", hosts=["one.ngrok-free.app", "two.ngrok-free.app"])
    (tmp_path / ".env").write_text("NGROK_AUTHTOKEN=2abc_right\n")
    arguments = ["-t", "twilio", "--tunnel", "ngrok"]
    with server_process(tmp_path, str(ECHO), *arguments, **network.environ(), **SECRET) as server:
        more = lines_of(server.process)
        assert server.ready["public_url"] == "https://one.ngrok-free.app"
        assert "voice webhook of the number: https://one.ngrok-free.app/ (HTTP POST)" in server.logged("(HTTP POST)")
        assert "2abc_right" not in server.log()
        # Ctrl-C in a terminal goes to all of the server's process group, and calls may finish after it.
        assert os.getpgid(network.running()[0]) != os.getpgid(server.process.pid)
        network.kill()
        assert more.get(timeout=15)["public_url"] == "https://two.ngrok-free.app"
        assert "the tunnel is down: ngrok's agent has ended" in server.log()
        since = server.logged("the public address is another one now").index("the public address is another one now")
        shown = server.logged("(HTTP POST)", since=since)
        assert "voice webhook of the number: https://two.ngrok-free.app/ (HTTP POST)" in shown
        assert dial(network, tmp_path, "https://two.ngrok-free.app/")["verdict"] == "passed"
        server.signal(signal.SIGTERM)
        assert server.wait(10) == 0
        assert "Traceback" not in server.log()
    assert network.all_ended(0), "the agent outlives the server"


def test_cloudflared_ends_with_the_server_when_the_terminal_is_closed(network: PublicNetwork, tmp_path: Path) -> None:
    arguments = ["-t", "twilio", "--tunnel", "cloudflared"]
    with server_process(tmp_path, BOT, *arguments, **network.environ(), **SECRET) as server:
        assert server.ready["public_url"].endswith(".trycloudflare.com")
        assert len(network.running()) == 1
        server.signal(signal.SIGHUP)
        assert server.wait(10) == 0
    assert network.all_ended(0), "the program outlives the server"


#: wsvoice on a machine so busy that it hears late of what it has started.
LATE = """
import runpy, subprocess, sys, time

class Late(subprocess.Popen):
    def _execute_child(self, *arguments):
        super()._execute_child(*arguments)
        time.sleep(1.5)

subprocess.Popen = Late
sys.argv[0] = "wsvoice"
runpy.run_module("wsvoice", run_name="__main__")
"""


@pytest.mark.parametrize("program", [["-m", "wsvoice"], ["-c", LATE]], ids=["at-once", "late"])
def test_one_that_is_ended_while_its_tunnel_opens(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "bot.py").write_text(BOT)
    begun = tmp_path / "begun"
    opens = f"{sys.executable} -c 'import sys, time; open(sys.argv[2], \"w\"); time.sleep(60)' {{port}} {begun}"
    command = [sys.executable, *program, "run", "-t", "twilio", "--port", "0", "--tunnel", opens]
    with subprocess.Popen(
        command, cwd=tmp_path, env=clean_environ(**SECRET), stderr=subprocess.PIPE, text=True
    ) as process:
        while not begun.exists():
            assert process.poll() is None, process.communicate()[1]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in said
    # It was told to end; a busy machine may take a moment for that.
    deadline = time.monotonic() + 5
    while left := subprocess.run(["pgrep", "-f", str(begun)], capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_a_tunnel_that_is_refused_ends_the_command(network: PublicNetwork, tmp_path: Path) -> None:
    network.tell(authtoken="right")
    (tmp_path / "bot.py").write_text(BOT)
    command = [sys.executable, "-m", "wsvoice", "run", "-t", "twilio", "--port", "0", "--tunnel", "ngrok"]
    done = subprocess.run(
        command,
        env=clean_environ(**network.environ(), **SECRET, NGROK_AUTHTOKEN="wrong"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ngrok did not open a tunnel: authentication failed: The authtoken you specified")
    assert hint.startswith("hint:  set NGROK_AUTHTOKEN to the token at ")
    assert network.all_ended(0)
