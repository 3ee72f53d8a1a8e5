"""``wsvoice calls``: which calls are told and how, and which one is ended."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoke import invoke
from tests.runner import bots
from tests.runner.carrier import announce, dialled
from tests.runner.conftest import RunningServer, serving
from tests.runner.test_control import SERVER, call
from wsvoice.cli import completion
from wsvoice.runner.control import ControlSocket
from wsvoice.runner.figures import CallFigures, Snapshot

CALL = "CA00000000000000000000000000000001"

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_process: object) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("WSVOICE_STATE_DIR", str(folder))
    return folder


class Servers:
    """Servers that tell of calls which nobody has placed, at sockets of their own."""

    def __init__(self, state: Path, tmp_path: Path) -> None:
        self.ended: list[str] = []
        self._state = state
        self._tmp_path = tmp_path
        self._sockets: list[ControlSocket] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def add(self, port: int, *calls: CallFigures) -> None:
        url = f"http://localhost:{port}/"

        def end(call_id: str, reason: str) -> bool:
            self.ended.append(f"{port} {call_id}")
            return True

        server = replace(SERVER, url=url, pid=port, calls=len(calls), providers=("twilio",))
        control = ControlSocket(self._tmp_path / str(port), lambda: Snapshot(server, calls), end)
        asyncio.run_coroutine_threadsafe(control.open(), self._loop).result(10)
        self._sockets.append(control)
        content = {"version": 1, "pid": os.getpid(), "url": url, "key": "", "control": str(control.path)}
        (self._state / "runs").mkdir(parents=True, exist_ok=True)
        (self._state / "runs" / f"{port}.json").write_text(json.dumps(content))

    def stop(self) -> None:
        """Have all of them end."""
        while self._sockets:
            asyncio.run_coroutine_threadsafe(self._sockets.pop().close(), self._loop).result(10)

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def servers(state: Path, tmp_path: Path) -> Iterator[Servers]:
    made = Servers(state, tmp_path)
    yield made
    made.close()


@pytest.mark.usefixtures("state")
@pytest.mark.parametrize("arguments", ["", "--json", "end CA1", "--watch --json"])
def test_without_a_server_that_is_said(arguments: str) -> None:
    result = invoke("calls", *arguments.split(), code=2)
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: no server runs on this machine",
        "hint:  start one in another terminal with `wsvoice run`",
    ]


def test_calls_are_listed_server_by_server(servers: Servers) -> None:
    servers.add(7860, call(CALL, from_number="+15550100001", heard_dbfs=-20.0, last_wait_s=0.5, age_s=65.0))
    servers.add(7861)
    lines = invoke("calls").stderr.splitlines()
    at = next(index for index, line in enumerate(lines) if "7860" in line)
    assert lines[at].startswith("bot.py  http://localhost:7860/  process 7860, up 0:05")
    assert lines[at + 1] == "1 call  0 refused  event loop 1 ms late"
    assert lines[at + 2].split() == ["call", "age", "from", "to", "provider", "caller", "bot", "wait"]
    assert lines[at + 3].split()[:5] == ["CA000000…0001", "1:05", "+15550100001", "-", "twilio"]
    assert lines[at + 3].endswith("0.50 s")
    assert "no calls; try it: wsvoice dial http://localhost:7861/ -t twilio" in lines
    (line,) = invoke("calls", "--server", "7861", "--json").stdout.splitlines()
    (server,) = json.loads(line)["servers"]
    assert server["server"]["url"] == "http://localhost:7861/"
    assert server["calls"] == []


def test_json_is_one_object_with_every_figure(servers: Servers) -> None:
    figures = call(CALL, from_number="\x1b[2J[red]\n", heard_dbfs=-20.0)
    servers.add(7860, figures)
    (line,) = invoke("calls", "--json").stdout.splitlines()
    told = json.loads(line)["servers"][0]["calls"]
    assert [CallFigures(**each) for each in told] == [figures]
    # For people nothing of it reaches the terminal.
    shown = invoke("calls").stderr
    assert "\x1b" not in shown
    assert "[red]" in shown


def test_one_server_that_is_gone_or_stuck_does_not_hide_the_others(
    servers: Servers, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsvoice.phone import control as client

    ask = client.ask
    monkeypatch.setattr(client, "ask", lambda server, request: ask(server, request, timeout_s=0.3))
    servers.add(7860, call(CALL))
    control = str(tmp_path / "gone.sock")
    content = {"version": 1, "pid": os.getpid(), "url": "http://localhost:1/", "key": "", "control": control}
    (state / "runs" / "1.json").write_text(json.dumps(content))
    result = invoke("calls", "--json")
    assert [each["server"]["pid"] for each in json.loads(result.stdout)["servers"]] == [7860]
    assert "error" not in result.stderr
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(control)
        busy.listen()
        result = invoke("calls", "--json")
        assert "warning: the server at http://localhost:1/ does not answer" in result.stderr
        assert "7860" in result.stdout
        assert "does not answer" in invoke("calls", "--server", "http://localhost:1/", code=1).stderr
    servers.stop()
    assert invoke("calls", code=2).stderr.startswith("error: no server runs on this machine")


class TestEnd:
    def test_a_beginning_is_enough_on_whichever_server_it_is(self, servers: Servers) -> None:
        servers.add(7860, call("CA12"))
        servers.add(7861, call("CB12"), call("CB13"))
        assert invoke("calls", "end", " CA ").stderr == "CA12 ends\n"
        told = json.loads(invoke("calls", "end", "CB13", "--json", "--server", "7861").stdout)
        assert told == {"call_id": "CB13", "ended": True, "pid": os.getpid()}
        assert servers.ended == ["7860 CA12", "7861 CB13"]

    def test_what_is_not_clear_ends_nothing(self, servers: Servers) -> None:
        servers.add(7860, call("CA12"))
        servers.add(7861, call("CA13"), call(""))
        error, hint = invoke("calls", "end", "CA", code=2).stderr.splitlines()
        assert error == "error: CA may be 2 calls"
        assert {"CA12", "CA13"} < set(hint.replace(",", "").split())
        assert invoke("calls", "end", "CB", code=1).stderr.startswith("error: no call CB runs here\n")
        assert invoke("calls", "end", "CA13", "--server", "7860", code=1).stderr.startswith("error: no call CA13")
        assert invoke("calls", "end", "  ", code=2).stderr.startswith("error: ID is empty")
        assert invoke("calls", "end", code=2).stderr.startswith("error: missing argument 'ID'")
        assert servers.ended == []

    def test_an_id_without_the_command_is_told(self, servers: Servers) -> None:
        assert "did you mean `wsvoice calls end CA12`?" in invoke("calls", "CA12", code=2).stderr
        assert "options go behind" in invoke("calls", "--json", "end", "CA12", code=2).stderr

    def test_ids_are_completed(self, servers: Servers, state: Path) -> None:
        servers.add(7860, call("CA12"), call("CB12"), call("a'b"), call(""))
        assert completion.running_calls("CA") == ["CA12"]
        assert completion.running_calls("") == ["CA12", "CB12"]


def test_who_watches_needs_a_terminal(servers: Servers) -> None:
    servers.add(7860)
    assert "add --json" in invoke("calls", "--watch", code=2).stderr


def test_a_server_that_is_watched_may_end(servers: Servers) -> None:
    servers.add(7860, call(CALL))
    timer = threading.Timer(0.5, servers.stop)
    timer.start()
    lines = invoke("calls", "--watch", "--json").stdout.splitlines()
    timer.join()
    shown = [json.loads(line)["servers"] for line in lines]
    assert [each["id"] for each in shown[-1][0]["calls"]] == [CALL]


@contextmanager
def calling(url: str) -> Iterator[Callable[[], tuple[int | None, str | None]]]:
    """Have a call run while the context lasts; give what waits until the server has closed it."""
    started, over = threading.Event(), threading.Event()
    closed: list[Any] = []

    async def main() -> None:
        async with dialled(announce(url)) as carrier:
            await carrier.speak(bytes(320 * 5))
            started.set()
            closed.append(await carrier.closed())
            over.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(10)

    def wait() -> tuple[int | None, str | None]:
        assert over.wait(10)
        found: tuple[int | None, str | None] = closed[0]
        return found

    yield wait
    thread.join(10)


def test_a_real_call_is_listed_and_ended(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(monkeypatch) as start:
        server: RunningServer = start(bots.echo_8k, state_folder=state)
        with calling(server.url) as closed:
            (told,) = json.loads(invoke("calls", "--json").stdout)["servers"]
            assert (told["server"]["bot"], told["server"]["calls"]) == ("bot.py", 1)
            assert told["calls"][0]["id"] == CALL
            assert told["calls"][0]["heard_s"] == pytest.approx(0.1)
            assert invoke("calls", "end", "CA000000...0001").stderr == f"{CALL} ends\n"
            assert closed() == (1000, "")
        assert server.ended()[0].reason == "`wsvoice calls end` asked for it"
