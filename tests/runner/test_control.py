"""The socket at which a server tells its owner of its calls: who may ask, what is answered, and what it costs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.runner import bots
from tests.runner.carrier import announce, dialled
from tests.runner.test_session import wait_for
from wsvoice.errors import ControlError, UsageError
from wsvoice.phone.control import GoneError, ask, bot_at, find_servers, watching
from wsvoice.phone.runs import SOCKET_FOLDER, RunFile, RunningServer, running_servers
from wsvoice.runner import control as control_module
from wsvoice.runner.control import ControlSocket
from wsvoice.runner.figures import CallFigures, ServerFigures, Snapshot, WorkerFigures, read_snapshot

Serve = Callable[..., Any]
CALL = "CA00000000000000000000000000000001"
WORKER = WorkerFigures(number=1, pid=7, calls=1, lag_s=0.001, state="serving")
SERVER = ServerFigures(bot="bot.py", url="http://localhost:1/", pid=7, uptime_s=5.0, calls=1, workers=(WORKER,))


def call(call_id: str, **changed: Any) -> CallFigures:
    values = {"kind": "call", "provider": "twilio", "started_at": 1.0, "age_s": 2.0, "pid": 7, **changed}
    return CallFigures(id=call_id, **values)


class Bench:
    """An open control socket, and what was asked of its server."""

    def __init__(self, folder: Path, *calls: CallFigures) -> None:
        self.calls = list(calls)
        self.looks = 0
        self.ended: list[tuple[str, str]] = []
        self.control = ControlSocket(folder, self.look, self.end)

    def look(self) -> Snapshot:
        self.looks += 1
        return Snapshot(SERVER, self.calls)

    def end(self, call_id: str, reason: str) -> bool:
        self.ended.append((call_id, reason))
        return True

    def run(self, main: Callable[[str], Any]) -> Any:
        """Run `main` in a thread while the socket is open; it gets the socket's path."""

        async def serve() -> Any:
            await self.control.open()
            try:
                async with asyncio.timeout(20):
                    return await asyncio.to_thread(main, str(self.control.path))
            finally:
                await self.control.close()

        return asyncio.run(serve())


@contextmanager
def connected(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(path)
        yield connection


def answers(path: str, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines, and return everything that is answered until the end."""
    with connected(path) as connection:
        connection.sendall(b"".join(line + b"\n" for line in lines))
        connection.shutdown(socket.SHUT_WR)
        return [json.loads(line) for line in connection.makefile("rb")]


def is_dropped(path: str, line: bytes) -> bool:
    """Whether a request gets no answer, because the connection is cut before or after it is sent."""
    try:
        return answers(path, line) == []
    except OSError:
        return True


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Return a folder whose name is short enough for a socket in it, wherever tests have theirs."""
    with tempfile.TemporaryDirectory(prefix="c-") as folder:
        yield Path(folder)


def test_only_its_owner_may_open_it(short_path: Path) -> None:
    bench = Bench(short_path / "state")

    def look(path: str) -> None:
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        assert Path(path) == short_path / "state" / "runs" / f"{os.getpid()}.sock"

    bench.run(look)
    assert list((short_path / "state" / "runs").iterdir()) == []


@pytest.mark.skipif(not hasattr(socket, "SO_PEERCRED"), reason="the system does not tell whose process it is")
@pytest.mark.parametrize(("asks", "server", "is_answered"), [(1000, 1000, True), (1000, 1001, False), (0, 1000, True)])
def test_its_user_and_root_are_answered_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: int, server: int, is_answered: bool
) -> None:
    """Root asks where the service's user has no shell."""
    bench = Bench(tmp_path, call(CALL))

    def credentials(connection: Any, *arguments: int) -> bytes:
        pid, _, gid = struct.unpack("iII", connection._sock.getsockopt(*arguments))
        return struct.pack("iII", pid, asks, gid)

    def ask_as_another(path: str) -> None:
        monkeypatch.setattr("os.geteuid", lambda: server)
        monkeypatch.setattr(asyncio.trsock.TransportSocket, "getsockopt", credentials)
        assert is_dropped(path, b'{"do":"end","id":"CA"}') is not is_answered
        monkeypatch.undo()

    bench.run(ask_as_another)
    assert bool(bench.ended) is is_answered


def test_what_is_asked_is_answered_line_by_line(tmp_path: Path) -> None:
    bench = Bench(tmp_path, call(CALL, from_number="+1555"), call("CA1", heard_dbfs=-20.5))
    first, second = bench.run(lambda path: answers(path, b'{"do":"calls"}', b'{"do":"status"}'))
    assert read_snapshot(first) == Snapshot(SERVER, bench.calls)
    assert list(second) == ["server"]
    assert second["server"]["workers"] == [{"number": 1, "pid": 7, "calls": 1, "lag_s": 0.001, "state": "serving"}]
    # What a later version adds is passed over.
    assert read_snapshot({**first, "more": 1, "server": {**first["server"], "more": 2}}).server == SERVER
    with pytest.raises(ValueError, match="no figures"):
        read_snapshot({"server": {}, "calls": []})


def test_more_calls_than_fit_into_a_turn_are_all_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path, *(call(f"CA{number}") for number in range(170)))
    (told,) = bench.run(lambda path: answers(path, b'{"do":"calls"}'))
    assert [each["id"] for each in told["calls"]] == [f"CA{number}" for number in range(170)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello", "JSON"),
        (b"[]", "object"),
        (b"\xff\xfe", "JSON"),
        (b"{}", "do is one of calls, status, watch, end"),
        (b'{"do":["calls"]}', "do is one of"),
        (b'{"do":"end"}', "id is a call's id"),
        (b'{"do":"end","id":5}', "id is a call's id"),
    ],
)
def test_what_cannot_be_understood_is_told_and_the_next_request_is_answered(
    tmp_path: Path, line: bytes, error: str
) -> None:
    bench = Bench(tmp_path)
    told, after = bench.run(lambda path: answers(path, line, b'{"do":"status"}'))
    assert error in told["error"]
    assert "server" in after
    assert bench.ended == []


def test_a_request_without_end_is_refused(tmp_path: Path) -> None:
    (told,) = Bench(tmp_path).run(lambda path: answers(path, b'{"do":"' + b"x" * 10_000))
    assert "more than 4096 bytes" in told["error"]


def test_a_call_is_ended_by_what_is_known_of_its_id(tmp_path: Path) -> None:
    bench = Bench(tmp_path, call("CA12"), call("CA13"), call("v3:x"))
    lines = [json.dumps({"do": "end", "id": given}).encode() for given in ("CA12", "v3", "CA1", "CA9")]
    told = bench.run(lambda path: answers(path, *lines))
    assert told == [
        {"ended": True, "id": "CA12"},
        {"ended": True, "id": "v3:x"},
        {"ended": False, "found": ["CA12", "CA13"]},
        {"ended": False, "found": []},
    ]
    assert [each for each, _ in bench.ended] == ["CA12", "v3:x"]


def test_who_watches_is_told_until_it_leaves(tmp_path: Path) -> None:
    bench = Bench(tmp_path, call(CALL))

    def watch(path: str) -> None:
        server = RunningServer("http://localhost:1/", "", control=path)
        with watching(server, 0.2) as told:
            for number in range(3):
                assert [each["id"] for each in next(told)["calls"]] == [each.id for each in bench.calls]
                bench.calls.append(call(f"CA{number}"))
        deadline = time.monotonic() + 5
        while bench.control._clients:
            assert time.monotonic() < deadline, "it still tells somebody who left"
            time.sleep(0.01)

    bench.run(watch)


@pytest.mark.parametrize(
    ("given", "every_s"),
    [(1, 1.0), (0, 0.2), (-5, 0.2), (10**400, 60.0), (float("nan"), 0.5), (True, 0.5), ("1", 0.5), (None, 0.5)],
)
def test_how_often_is_bounded(given: Any, every_s: float) -> None:
    assert control_module._interval_s(given) == every_s


def test_two_who_ask_at_once_cost_one_look(tmp_path: Path) -> None:
    bench = Bench(tmp_path, call(CALL))
    assert len(bench.run(lambda path: answers(path, *[b'{"do":"calls"}'] * 20))) == 20
    assert bench.looks < 5


def test_who_does_not_read_is_told_nothing_more_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_module, "IDLE_TIMEOUT_S", 0.5)
    monkeypatch.setattr(control_module, "WATCH_EVERY_S", (0.001, 60.0, 0.001))
    monkeypatch.setattr(control_module, "SNAPSHOT_TTL_S", 60.0)
    bench = Bench(tmp_path, *(call(f"CA{number}", from_number="+1" * 100) for number in range(1000)))

    def stall(path: str) -> None:
        with connected(path) as stuck:
            stuck.sendall(b'{"do":"watch","every_s":0.001}\n')
            # Another one is served all the while.
            assert answers(path, b'{"do":"status"}')
            deadline = time.monotonic() + 10
            while bench.control._clients:
                assert time.monotonic() < deadline, "it is kept for ever"
                for each in tuple(bench.control._clients):
                    assert each.transport.get_write_buffer_size() < 2_000_000
                time.sleep(0.01)

    bench.run(stall)


def test_who_asks_for_nothing_is_dropped_and_so_is_one_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)

    def crowd(path: str) -> None:
        held = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(control_module.CLIENT_LIMIT)]
        try:
            for each in held:
                each.settimeout(10)
                each.connect(path)
                each.sendall(b'{"do":"status"}\n')
                assert each.recv(10)
            assert is_dropped(path, b'{"do":"status"}')
            monkeypatch.setattr(control_module, "IDLE_TIMEOUT_S", 0.05)
            held.pop().close()
            with connected(path) as idle:
                assert idle.recv(10) == b""
        finally:
            for each in held:
                each.close()

    bench.run(crowd)


def test_a_path_that_is_too_long_is_another_one(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    bench = Bench(folder)

    def look(path: str) -> str:
        assert Path(path).parent.name.startswith(SOCKET_FOLDER)
        assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700
        assert answers(path, b'{"do":"status"}')
        return path

    path = Path(bench.run(look))
    assert not path.exists()
    assert not path.parent.exists()


def test_where_no_path_is_short_enough_the_server_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "PATH_LIMIT", 10)
    with pytest.raises(OSError, match="too long"):
        asyncio.run(Bench(tmp_path).control.open())


class TestWhatKilledServersLeave:
    @pytest.fixture
    def dead(self) -> int:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process.pid

    def leave(self, path: Path) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
            left.bind(str(path))

    @pytest.mark.parametrize("elsewhere", [False, True])
    def test_it_is_removed_by_who_looks_for_servers(self, short_path: Path, dead: int, elsewhere: bool) -> None:
        runs = short_path / "runs"
        place = short_path / f"{SOCKET_FOLDER}x" if elsewhere else runs
        runs.mkdir()
        place.mkdir(exist_ok=True)
        control = place / f"{dead}.sock"
        self.leave(control)
        content = {"version": 1, "pid": dead, "url": "http://localhost:1/", "key": "k", "control": str(control)}
        (runs / f"{dead}.json").write_text(json.dumps(content))
        assert running_servers(short_path) == []
        assert list(runs.iterdir()) == []
        assert place.exists() is not elsewhere

    def test_a_socket_alone_is_removed_by_the_next_server(self, tmp_path: Path, dead: int) -> None:
        (tmp_path / "runs").mkdir()
        self.leave(tmp_path / "runs" / f"{dead}.sock")
        RunFile(tmp_path).write(RunningServer("http://localhost:1/", "k", pid=os.getpid()))
        assert [each.name for each in (tmp_path / "runs").iterdir()] == [f"{os.getpid()}.json"]

    def test_a_file_names_nothing_else_that_is_removed(self, tmp_path: Path, dead: int) -> None:
        kept = tmp_path / "kept.txt"
        kept.touch()
        (tmp_path / "runs").mkdir()
        content = {"version": 1, "pid": dead, "url": "http://localhost:1/", "key": "k", "control": str(kept)}
        (tmp_path / "runs" / f"{dead}.json").write_text(json.dumps(content))
        assert running_servers(tmp_path) == []
        assert kept.exists()

    def test_a_socket_of_a_number_that_another_process_has_now(self, tmp_path: Path) -> None:
        path = tmp_path / "x.sock"
        self.leave(path)
        server = RunningServer("http://localhost:1/", "", pid=os.getpid(), control=str(path))
        for _ in range(2):
            with pytest.raises(GoneError, match="runs no more"):
                ask(server, {"do": "calls"})
            assert not path.exists()

    def test_its_own_number_is_used_again(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        self.leave(tmp_path / "runs" / f"{os.getpid()}.sock")
        assert Bench(tmp_path).run(lambda path: answers(path, b'{"do":"status"}'))


def test_a_server_that_does_not_answer_is_told_after_a_while(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen()
        with pytest.raises(ControlError, match="does not answer") as caught:
            ask(RunningServer("http://localhost:1/", "", control=str(path)), {"do": "calls"}, timeout_s=0.05)
    assert "blocked" in (caught.value.hint or "")


class TestWhichServer:
    ONE = RunningServer("http://localhost:7860/", "k", "https://one.example.com", pid=100, control="1")
    TWO = RunningServer("http://127.0.0.1:7861/", "", pid=7860, control="2")
    OLD = RunningServer("http://localhost:7862/", "k", pid=3)

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            (None, [ONE, TWO]),
            ("100", [ONE]),
            ("7861", [TWO]),
            ("7860", [ONE, TWO]),
            ("http://127.0.0.1:7860", [ONE]),
            ("https://one.example.com/", [ONE]),
            ("one.example.com", [ONE]),
        ],
    )
    def test_it_is_named_by_process_port_or_address(self, wanted: str | None, found: list[RunningServer]) -> None:
        assert find_servers([self.ONE, self.TWO, self.OLD], wanted) == found

    def test_one_that_is_not_there_is_told_with_those_that_are(self) -> None:
        with pytest.raises(UsageError, match="no server that you have started on this machine is '5'") as caught:
            find_servers([self.ONE], "5")
        assert caught.value.hint == "there is http://localhost:7860/ (process 100)"
        with pytest.raises(UsageError, match="no server runs on this machine"):
            find_servers([self.OLD], None)


@pytest.mark.parametrize("transport", ["twilio", "websocket"])
def test_a_server_is_found_while_it_runs(serve: Serve, tmp_path: Path, transport: str) -> None:
    server = serve(bots.echo_8k, transport=transport, state_folder=tmp_path, max_calls=3)
    (found,) = running_servers(tmp_path)
    assert found.url == server.url
    port = int(server.url.rstrip("/").rpartition(":")[2])
    assert bot_at(port, [found]) == (os.getpid(), "bot.py")
    assert bot_at(port + 1, [found]) is None
    told = ask(found, {"do": "status"})["server"]
    assert (told["bot"], told["pid"], told["max_calls"], told["draining"]) == ("bot.py", os.getpid(), 3, False)
    assert not told["leaving"]
    server.switchboard.leave()
    told = ask(found, {"do": "status"})["server"]
    assert (told["leaving"], told["draining"]) == (True, False)
    server.switchboard.drain()
    assert ask(found, {"do": "status"})["server"]["workers"][0]["state"] == "draining"
    server.stop()
    assert running_servers(tmp_path) == []
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_real_call_is_told_and_ended(serve: Serve, tmp_path: Path) -> None:
    server = serve(bots.echo_8k, state_folder=tmp_path)
    (found,) = running_servers(tmp_path)

    async def main() -> None:
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: server.switchboard.calls() and server.lines("stream started"))
            told = await asyncio.to_thread(ask, found, {"do": "calls"})
            assert [each["id"] for each in told["calls"]] == [CALL]
            assert (await asyncio.to_thread(ask, found, {"do": "end", "id": "CA000000…0001"}))["ended"] is True
            assert await carrier.closed() == (1000, "")

    asyncio.run(main())
    assert server.ended()[0].reason == "`wsvoice calls end` asked for it"
