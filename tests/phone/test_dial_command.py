"""``wsvoice dial +1...`` as a user types it, with a real server and bot, and a telephone network of the tests' own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest

from tests.environment import clean_environ
from tests.phone.exchange import Callee, Exchange, ExchangeServer, level, to_local
from tests.process import server_process

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
OURS, THEIRS = "+15550100001", "+15550100002"
HOST = "bot.example.invalid"


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    """Plivo's API, which names a call only once it rings, and the network behind it; :data:`OURS` is the account's."""
    with ExchangeServer("plivo", OURS) as exchange:
        yield exchange


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def lead_to(exchange: Exchange, port: int) -> None:
    """Let the public host be a server on this machine."""
    exchange.route = lambda url: to_local(url, port) if urlsplit(url).netloc == HOST else url


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def dial(folder: Path, *options: str, **environ: str) -> subprocess.Popen[str]:
    return wsvoice(folder, "dial", THEIRS, "--from", OURS, *options, **environ)


def wsvoice(folder: Path, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "wsvoice", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=clean_environ(WSVOICE_STATE_DIR=str(folder / "state"), **environ),
    )


def read_until(lines: IO[str], word: str) -> str:
    """Return what comes up to the line with `word`."""
    shown = ""
    while word not in shown:
        line = lines.readline()
        assert line, shown
        shown += line
    return shown


def test_a_bot_is_served_for_a_call_and_talks_to_who_answers(exchange: Exchange, tmp_path: Path) -> None:
    port = free_port()
    lead_to(exchange, port)
    environ = {"WSVOICE_PORT": str(port), **exchange.credentials}
    process = dial(tmp_path, "--bot", ECHO, "-x", HOST, "--param", "a=b", "--json", **environ)
    output, shown = process.communicate(timeout=60)
    exchange.joined()
    assert process.returncode == 0, shown
    report: dict[str, Any] = json.loads(output)
    [(call_id, heard)] = exchange.heard.items()
    assert (report["call_id"], report["provider"], report["stage"]) == (call_id, "plivo", "completed")
    assert (report["from"], report["to"], report["ended_by"]) == (OURS, THEIRS, "caller")
    assert report["heard_s"] == pytest.approx(0.3, abs=0.15)
    assert level(heard) > 1000
    lines = shown.splitlines()
    assert [line[11:] for line in lines if "answered" in line] == ["answered"]
    assert lines[-1].startswith("completed: ")
    seen = f"it cannot be seen from here whether https://{HOST} leads to the bot: the host {HOST} is unknown"
    assert lines[0] == f"warning: {seen}"
    # The server is gone, and whoever looks for one finds none.
    assert not list((tmp_path / "state").glob("runs/*"))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()


def test_ctrl_c_hangs_up_who_talks(exchange: Exchange, tmp_path: Path) -> None:
    port = free_port()
    lead_to(exchange, port)
    exchange.callees[THEIRS] = Callee(stays_s=30)
    process = dial(tmp_path, "--bot", ECHO, "-x", HOST, WSVOICE_PORT=str(port), **exchange.credentials)
    assert process.stderr is not None
    shown = read_until(process.stderr, "answered")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    exchange.joined()
    assert process.returncode == 130, shown + rest
    assert rest.splitlines()[0] == "hanging up"
    assert rest.splitlines()[-1] == "interrupted"
    assert {call.stage for call in exchange.account.calls.values()} <= {"completed", "canceled"}


def test_a_call_ends_whose_command_is_killed(exchange: Exchange, tmp_path: Path) -> None:
    port = free_port()
    lead_to(exchange, port)
    exchange.callees[THEIRS] = Callee(stays_s=60)
    process = dial(tmp_path, "--bot", ECHO, "-x", HOST, WSVOICE_PORT=str(port), **exchange.credentials)
    assert process.stderr is not None
    try:
        read_until(process.stderr, "answered")
    finally:
        process.kill()
        process.communicate()
    exchange.joined()
    assert {call.stage for call in exchange.account.calls.values()} <= {"completed", "canceled"}
    deadline = time.monotonic() + 10
    while listens(port):
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.05)


def test_a_running_server_is_found_and_places_the_call(exchange: Exchange, tmp_path: Path) -> None:
    exchange.callees[THEIRS] = Callee(outcome="busy")
    environ = {"WSVOICE_STATE_DIR": str(tmp_path / "state"), **exchange.credentials}
    with server_process(tmp_path, ECHO, "-t", "plivo", "-x", HOST, **environ) as server:
        lead_to(exchange, server.port)
        # Its key is in its own file; who asks has no credentials at all.
        busy = dial(tmp_path)
        _, shown = busy.communicate(timeout=30)
        assert busy.returncode == 1, shown
        assert shown.splitlines()[-1].startswith("failed: busy")

        exchange.callees[THEIRS] = Callee(stays_s=30)
        talking = dial(tmp_path)
        assert talking.stderr is not None
        shown = read_until(talking.stderr, "answered")
        call_id = next(each for each, call in exchange.account.calls.items() if call.stage == "answered")
        for words in ("is hung up", "had ended already"):
            # Its id may be anybody's, and only one account is known.
            ending = wsvoice(tmp_path, "hangup", call_id, **exchange.credentials)
            assert ending.communicate(timeout=30) == ("", f"{call_id} {words}\n")
            assert ending.returncode == 0
        _, rest = talking.communicate(timeout=30)
        assert talking.returncode == 0, shown + rest
        assert rest.splitlines()[-1].startswith("completed: ")
    refused = dial(tmp_path)
    assert "no server runs on this machine" in refused.communicate(timeout=30)[1]
    assert refused.returncode == 2
