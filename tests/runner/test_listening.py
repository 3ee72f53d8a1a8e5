"""Sockets that were handed over, and how a process was started; systemd's protocol as its pages have it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.environment import clean_environ
from wsvoice.config import RunConfig
from wsvoice.errors import ServerError
from wsvoice.runner.launch import CHANNEL_VARIABLE, Launch, frame, receive_sockets, send_sockets
from wsvoice.runner.listening import address_of, take_activated
from wsvoice.runner.server import _listen_for_metrics
from wsvoice.runner.service_manager import ServiceManager

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")
#: Sets LISTEN_PID to the process that it becomes, as systemd does, with its first argument's descriptor as number 3.
ACTIVATE = 'exec 3<&"$1"; shift; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=calls exec "$@"'


def listening(family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(family, kind)
    made.bind(("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


#: A descriptor that is free, as are those after it.
FIRST = 700


@pytest.fixture
def handed() -> Iterator[Callable[..., list[socket.socket]]]:
    """Return a function that hands sockets over as a service manager would, and takes them."""
    kept: list[socket.socket] = []

    def take(*sockets: socket.socket, **environ: str) -> list[socket.socket]:
        # One after the other, where nobody else has any.
        copies = [os.dup2(each.fileno(), FIRST + at, inheritable=False) for at, each in enumerate(sockets)]
        variables = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(copies)), **environ}
        try:
            found = take_activated(variables, first=copies[0])
        except ServerError:
            for each in copies:
                os.close(each)
            raise
        kept.extend(found)
        assert variables == {}
        return found

    yield take
    for each in kept:
        each.close()


class TestActivated:
    def test_listening_sockets(self, handed: Callable[..., list[socket.socket]]) -> None:
        with listening() as one, listening() as other:
            found = handed(one, other)
            assert [each.getsockname() for each in found] == [one.getsockname(), other.getsockname()]
            assert not any(each.get_inheritable() for each in found)

    @pytest.mark.parametrize(
        ("make", "said", "hint"),
        [
            (lambda: socket.socket(socket.AF_UNIX), "Unix socket", "a port"),
            (lambda: listening(kind=socket.SOCK_DGRAM), "datagrams", "ListenStream="),
            (socket.socket, "not listening", "Accept=no"),
            (tempfile.TemporaryFile, "no socket", "ListenStream="),
        ],
    )
    def test_what_no_call_can_come_in_by(
        self, handed: Callable[..., list[socket.socket]], make: Callable[[], socket.socket], said: str, hint: str
    ) -> None:
        with make() as wrong, pytest.raises(ServerError, match=said) as caught:
            handed(wrong, LISTEN_FDNAMES="calls")
        assert "(calls)" in caught.value.message
        assert hint in str(caught.value.hint)

    def test_one_that_is_not_open(self) -> None:
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
        with pytest.raises(ServerError, match="file descriptor 900 was to be handed over, and is not open"):
            take_activated(environ, first=900)

    @pytest.mark.parametrize("count", ["two", "-1", "99999999999999999999"])
    def test_a_number_that_is_none(self, count: str) -> None:
        with pytest.raises(ServerError, match="LISTEN_FDS is"):
            take_activated({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})

    @pytest.mark.parametrize("pid", ["1", "", "x"])
    def test_those_of_another_process(self, pid: str) -> None:
        environ = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "calls", "HOME": "/"}
        assert take_activated(environ) == []
        assert environ == {"HOME": "/"}


class TestLaunch:
    def test_it_can_be_started_again(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        release = tmp_path / "releases" / "1"
        release.mkdir(parents=True)
        (tmp_path / "current").symlink_to(release)
        monkeypatch.chdir(tmp_path / "current")
        environ = {"PWD": str(tmp_path / "current"), "NOTIFY_SOCKET": "/run/x", "LISTEN_PID": "1", "WATCHDOG_PID": "1"}
        launch = Launch.of(environ)
        assert launch.command == (sys.executable, *sys.orig_argv[1:])
        # The next release is found by the same name.
        assert launch.folder == tmp_path / "current"
        assert launch.environ == {"PWD": str(tmp_path / "current"), "NOTIFY_SOCKET": "/run/x"}
        assert environ == {"PWD": str(tmp_path / "current")}

    def test_a_name_of_another_folder_is_not_believed(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert Launch.of({"PWD": "/"}).folder == tmp_path

    @pytest.mark.parametrize("written", ["", "x", "-1", "900", "99999999999999999999999", "0"])
    def test_a_channel_that_is_none(self, written: str) -> None:
        with pytest.raises(ServerError, match=CHANNEL_VARIABLE):
            Launch.of({CHANNEL_VARIABLE: written})

    def test_sockets_go_from_one_process_to_the_other(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, listening() as one, listening() as metrics:
            send_sockets(ours, [one], [metrics])
            launch = Launch.of({CHANNEL_VARIABLE: str(os.dup(theirs.fileno()))})
            assert [each.getsockname() for each in launch.sockets] == [one.getsockname()]
            assert [each.getsockname() for each in launch.metrics_sockets] == [metrics.getsockname()]
            assert launch.channel is not None
            for each in (launch.channel, *launch.sockets, *launch.metrics_sockets):
                assert not each.get_inheritable()
                each.close()

    @pytest.mark.parametrize("asked", ["the same", "any", "another", "none"])
    def test_the_metrics_port_of_the_settings(self, asked: str) -> None:
        with ExitStack() as stack, listening() as handed:
            port = address_of([handed])[1]
            with listening() as free:
                other = address_of([free])[1]
            wanted = {"the same": port, "any": 0, "another": other, "none": None}[asked]
            launch = Launch((), Path(), {}, metrics_sockets=(handed,))
            found = _listen_for_metrics(RunConfig(metrics_port=wanted), launch, stack)
            assert [address_of([each])[1] for each in found[:1]] == {"another": [other], "none": []}.get(asked, [port])
            # Nobody listens on a port that is not asked for.
            assert (handed.fileno() == -1) == (asked in ("another", "none"))

    def test_another_version_of_the_handover(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, listening() as one:
            socket.send_fds(ours, [b"\xff\x01"], [one.fileno()])
            with pytest.raises(ServerError, match="in another way") as caught:
                receive_sockets(theirs)
            assert "restart" in str(caught.value.hint)

    @pytest.mark.parametrize("head", [b"\xff\x01", b""], ids=["another version", "gone"])
    def test_what_fails_before_the_settings_are_read_is_told_too(self, head: bytes) -> None:
        ours, theirs = socket.socketpair()
        with ours, listening() as one:
            if head:
                socket.send_fds(ours, [head], [one.fileno()])
            else:
                ours.shutdown(socket.SHUT_WR)
            with pytest.raises(ServerError) as caught:
                Launch.of({CHANNEL_VARIABLE: str(theirs.detach())})
            assert ("is gone" in caught.value.message) is (not head)
            told = ours.recv(4096)
            assert told == frame({"kind": "failed", "message": caught.value.message, "hint": caught.value.hint or ""})


class TestServiceManager:
    @pytest.fixture
    def systemd(self, tmp_path: Path) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
            made.bind(str(tmp_path / "notify"))
            made.setblocking(False)
            yield made

    @staticmethod
    def heard(systemd: socket.socket) -> list[str]:
        lines = []
        try:
            while True:
                lines += systemd.recv(4096).decode().splitlines()
        except BlockingIOError:
            return lines

    def test_what_is_due(self, systemd: socket.socket) -> None:
        clock = [100.0]
        manager = ServiceManager(systemd.getsockname(), 3.0, now=lambda: clock[0])
        manager.ready()
        manager.tick(0)
        assert self.heard(systemd) == ["READY=1", "STATUS=0 calls", "WATCHDOG=1"]
        manager.tick(1)
        assert self.heard(systemd) == ["STATUS=1 call"]
        clock[0] += 1.0
        manager.tick(1)
        assert self.heard(systemd) == ["WATCHDOG=1"]
        manager.stopping()
        manager.tick(1)
        assert self.heard(systemd) == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000", "STATUS=stopping; 1 call left"]
        manager.tick(1)
        assert self.heard(systemd) == []

    def test_a_reload(self, systemd: socket.socket) -> None:
        with ServiceManager(systemd.getsockname()).reloading():
            first, second = self.heard(systemd)
        assert first == "RELOADING=1"
        assert second.removeprefix("MONOTONIC_USEC=").isdecimal()
        assert self.heard(systemd) == ["READY=1"]

    def test_a_stop_while_it_reloads(self, systemd: socket.socket) -> None:
        manager = ServiceManager(systemd.getsockname())
        with manager.reloading():
            manager.stopping()
        assert self.heard(systemd)[2:] == ["STOPPING=1"]

    def test_nothing_is_said_for_whoever_has_handed_over(self, systemd: socket.socket) -> None:
        manager = ServiceManager(systemd.getsockname(), 3.0)
        manager.hand_over(77)
        manager.tick(3)
        manager.stopping()
        assert self.heard(systemd) == ["MAINPID=77"]

    @pytest.mark.parametrize(
        ("pid", "is_watched"), [("", True), (str(os.getpid()), True), ("1", False)], ids=["nobody", "this", "another"]
    )
    def test_whose_watchdog(self, systemd: socket.socket, pid: str, is_watched: bool) -> None:
        environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "9000000", "WATCHDOG_PID": pid}
        ServiceManager.of(environ).tick(0)
        assert ("WATCHDOG=1" in self.heard(systemd)) == is_watched
        assert environ == {}

    @pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all", "relative"])
    def test_nobody_listens(self, address: str) -> None:
        manager = ServiceManager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "x"})
        manager.ready()
        manager.tick(1)
        manager.stopping()


def test_a_server_takes_its_socket_from_systemd(tmp_path: Path) -> None:
    bot = tmp_path / "bot.py"
    seen = "import os, subprocess\nsubprocess.run(['sh', '-c', 'env > env.txt; ls -l /proc/self/fd > open.txt'])\n"
    bot.write_text(seen + Path(ECHO).read_text())
    with listening() as calls:
        port = calls.getsockname()[1]
        command = [sys.executable, "-m", "wsvoice", "run", "bot.py", "-t", "twilio", "--port", "1", "--json"]
        process = subprocess.Popen(
            ["bash", "-c", ACTIVATE, "bash", str(calls.fileno()), *command],
            pass_fds=[calls.fileno()],
            cwd=tmp_path,
            env=clean_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Somebody connects before the server is there: that is what it is for.
            url = f"http://127.0.0.1:{port}/"
            assert httpx.get(url + "readyz", timeout=30).status_code == 200
            assert process.stdout is not None
            assert f'"url": "{url}"' in process.stdout.readline()
            assert "LISTEN_" not in (tmp_path / "env.txt").read_text()
            assert "socket:" not in (tmp_path / "open.txt").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.communicate()
