"""
Side by side with pipecat's own development runner: the caller gets along with a server that we did not write, and
bots that were written for it run here as they are.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.environment import clean_environ
from tests.signals import speech_like
from wsvoice.audio import write_wav

BOTS = Path(__file__).parent / "bots"
START_TIMEOUT_S = 45

# pipecat's serializer refuses to be made without credentials; these are nobody's.
MADE_UP_CREDENTIALS = {"TWILIO_ACCOUNT_SID": f"AC{'0' * 32}", "TWILIO_AUTH_TOKEN": "0" * 32}


def environment(**extra: str) -> dict[str, str]:
    return clean_environ(NO_COLOR="1", **extra)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        return int(unused.getsockname()[1])


@contextmanager
def pipecat_runner(bot: Path, folder: Path) -> Iterator[int]:
    """Run a bot as its own program, with pipecat's runner, and yield the port that it listens on."""
    path = folder / "runner.log"
    port = free_port()
    process = start(bot, folder, port, path)
    # pipecat's runner takes no port 0, and somebody else may have taken the free one in the meantime.
    if not comes_up(process, port, path):
        port = free_port()
        process = start(bot, folder, port, path)
        assert comes_up(process, port, path), f"pipecat's runner found its port in use twice:\n{path.read_text()}"
    try:
        yield port
    finally:
        end(process)


def start(bot: Path, folder: Path, port: int, path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(bot), "-t", "twilio", "-x", f"localhost:{port}", "--port", str(port)]
    with path.open("w") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(**MADE_UP_CREDENTIALS), stdout=log, stderr=subprocess.STDOUT
        )


def comes_up(process: subprocess.Popen[bytes], port: int, path: Path) -> bool:
    """Wait until pipecat's runner itself says that it listens; return whether the port was free."""
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while not ("Uvicorn running" in (said := path.read_text()) and listens(port)):
            if process.poll() is not None:
                assert "address already in use" in path.read_text(), f"pipecat's runner ended:\n{path.read_text()}"
                return False
            assert time.monotonic() < deadline, f"pipecat's runner does not listen:\n{said}"
            time.sleep(0.05)
    except BaseException:
        end(process)
        raise
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def dial(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `wsvoice dial` with a short clip until it ends."""
    write_wav(folder / "clip.wav", [speech_like(700, 8000)], 8000)
    command = [sys.executable, "-m", "wsvoice", "dial", *map(str, arguments), "--audio", "clip.wav", "--json"]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )


def test_a_call_to_pipecats_runner_passes(tmp_path: Path) -> None:
    with pipecat_runner(BOTS / "pipecat_echo.py", tmp_path) as port:
        done = dial(tmp_path, f"http://localhost:{port}/", "-t", "twilio", "--force-ws")
    log = (tmp_path / "runner.log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert f"the stream is ws://localhost:{port}/ws (ws:// instead of wss://, as asked)\n" in done.stderr
    report = json.loads(done.stdout)
    assert (report["verdict"], report["failure"], report["ended_by"]) == ("passed", None, "caller")
    (turn,) = report["turns"]
    assert turn["caller_start_ms"] < turn["bot_start_ms"] < turn["caller_end_ms"] + 1000
    # It was pipecat that answered, with its own transport.
    assert "the transport is a FastAPIWebsocketTransport\n" in log


def test_without_force_ws_the_mend_is_named(tmp_path: Path) -> None:
    with pipecat_runner(BOTS / "pipecat_echo.py", tmp_path) as port:
        done = dial(tmp_path, f"http://localhost:{port}/", "-t", "twilio", "-q")
    assert done.returncode == 1
    assert "--force-ws" in json.loads(done.stdout)["failure"]


@pytest.mark.parametrize(
    ("bot", "transport"),
    [("pipecat_echo.py", "CallTransport"), ("pipecat_serializer.py", "FastAPIWebsocketTransport")],
)
def test_a_bot_for_pipecats_runner_runs_as_it_is(tmp_path: Path, bot: str, transport: str) -> None:
    done = dial(tmp_path, BOTS / bot, "-v")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["verdict"], report["close_code"], len(report["turns"])) == ("passed", 1000, 1)
    assert [found for found in report["findings"] if found["level"] == "fail"] == []
    assert f" the transport is a {transport}\n" in done.stderr
    # Its __main__ part, which starts pipecat's server, was left alone.
    assert "Uvicorn running" not in done.stderr
    if bot == "pipecat_serializer.py":
        assert f" twilio {report['stream_id']} {report['call_id']}\n" in done.stderr
