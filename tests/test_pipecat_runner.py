"""
Side by side with pipecat's own development runner: the caller gets along with a server that we did not write, and
bots that were written for it run here as they are.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.environment import clean_environ
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial as place_call
from wsvoice.dial.report import CallReport

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


@dataclass(frozen=True)
class Runner:
    """pipecat's runner: the port that it listens on, and its log."""

    port: int
    log: Path


@pytest.fixture(scope="module")
def pipecat_runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """A bot as its own program, with pipecat's runner."""
    folder = tmp_path_factory.mktemp("runner")
    bot, path = BOTS / "pipecat_echo.py", folder / "runner.log"
    port = free_port()
    process = start(bot, folder, port, path)
    # pipecat's runner takes no port 0, and somebody else may have taken the free one in the meantime.
    if not comes_up(process, port, path):
        port = free_port()
        process = start(bot, folder, port, path)
        assert comes_up(process, port, path), f"pipecat's runner found its port in use twice:\n{path.read_text()}"
    try:
        yield Runner(port, path)
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


class Dialled(NamedTuple):
    """A call that is over: its report, and what was told while it went on."""

    report: CallReport
    told: list[str]


def dial(folder: Path, target: str, **options: Any) -> Dialled:
    """Place a call with a short clip."""
    clip = folder / "clip.wav"
    write_wav(clip, [speech_like(700, 8000)], 8000)
    told: list[str] = []
    config = DialConfig(target=target, audio=(clip,), listen_s=0.3, cwd=folder, **options)
    return Dialled(asyncio.run(place_call(config, on_event=lambda event: told.append(event.text))), told)


def test_a_call_to_pipecats_runner_passes(pipecat_runner: Runner, tmp_path: Path) -> None:
    port = pipecat_runner.port
    report, told = dial(tmp_path, f"http://localhost:{port}/", force_ws=True)
    log = pipecat_runner.log.read_text()
    assert (report.verdict, report.failure, report.ended_by) == ("passed", None, "caller"), log
    assert f"the stream is ws://localhost:{port}/ws (ws:// instead of wss://, as asked)" in told
    (turn,) = report.turns
    assert turn.bot_start_ms is not None
    assert turn.caller_start_ms < turn.bot_start_ms < turn.caller_end_ms + 1000
    # It was pipecat that answered, with its own transport.
    assert "the transport is a FastAPIWebsocketTransport\n" in log


def test_without_force_ws_the_mend_is_named(pipecat_runner: Runner, tmp_path: Path) -> None:
    report, _ = dial(tmp_path, f"http://localhost:{pipecat_runner.port}/")
    assert report.verdict == "failed"
    assert report.failure is not None
    assert "--force-ws" in report.failure


@pytest.mark.parametrize(
    ("bot", "transport"),
    [("pipecat_echo.py", "CallTransport"), ("pipecat_serializer.py", "FastAPIWebsocketTransport")],
)
def test_a_bot_for_pipecats_runner_runs_as_it_is(tmp_path: Path, bot: str, transport: str) -> None:
    report, told = dial(tmp_path, str(BOTS / bot))
    assert (report.verdict, report.close_code, len(report.turns)) == ("passed", 1000, 1), told
    assert [found for found in report.findings if found.level == "fail"] == []
    assert f"the transport is a {transport}" in told
    # Its __main__ part, which starts pipecat's server, was left alone.
    assert not any("Uvicorn running" in line for line in told)
    if bot == "pipecat_serializer.py":
        assert f"twilio {report.stream_id} {report.call_id}" in told
