"""The front's part of workers, with workers that are played in its event loop: what goes wrong at the wrong moment."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from starlette.websockets import WebSocket

from wsvoice.call import Call
from wsvoice.cli.signals import put_off_reloads
from wsvoice.config import RunConfig
from wsvoice.errors import ConfigError, ServerError
from wsvoice.runner.bounded_socket import CONNECTION_EXTENSION
from wsvoice.runner.launch import Launch
from wsvoice.runner.server import DrainingServer, uvicorn_config
from wsvoice.runner.switchboard import AdmittedStream, Switchboard, create_switchboard
from wsvoice.runner.upgrade import Upgrade
from wsvoice.runner.workers import crew as crew_module
from wsvoice.runner.workers import messages
from wsvoice.runner.workers.channel import Channel
from wsvoice.runner.workers.crew import Crew
from wsvoice.runner.workers.remote_session import RemoteSession
from wsvoice.runner.workers.template_process import Settings
from wsvoice.runner.workers.worker_handle import Given, Worker

LOADED = messages.Loaded("bot.py", Path("/bot.py"), frozenset(), ("a_library",))
#: No process has such a number: https://man7.org/linux/man-pages/man5/proc_sys_kernel.5.html
FIRST_PID = 10_000_000


class PlayedWorker:
    """The other end of a worker's channel."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.heard: list[Any] = []
        self.begun = asyncio.Event()
        end = worker.end_for_worker.dup()
        worker.end_for_worker.close()
        self.channel = Channel(end, on_message=lambda message, _: self._take(message), on_end=lambda: None)

    def _take(self, message: Any) -> None:
        self.heard.append(message)
        if isinstance(message, messages.Begin):
            self.begun.set()

    async def load(self) -> None:
        await self.begun.wait()
        self.channel.send(LOADED)
        await eventually(lambda: self.worker.loaded.done())


class Stage:
    """A crew, and all that it starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.switchboard = create_switchboard(None, RunConfig(transport="twilio", workers=2))
        settings = Settings(self.switchboard.config, ("twilio",), {}, Path())
        self.templates: list[PlayedTemplate] = []
        self.workers: list[PlayedWorker] = []
        self.killed: list[int] = []
        #: What forking raises, one after the other.
        self.failures: list[OSError] = []
        #: Whether a worker loads its bot at once, by which one it is of all.
        self.loads: Callable[[int], bool] = lambda index: True
        self.is_prepared = True
        monkeypatch.setattr(crew_module, "TemplateProcess", self._template)
        monkeypatch.setattr(os, "kill", lambda pid, number: self.killed.append(pid) if number else None)
        self.crew = Crew(self.switchboard, settings, 2)
        self.switchboard.crew = self.crew

    def server(self, on_started: Callable[[], None] = lambda: None) -> DrainingServer:
        """Return a server with the crew."""
        return DrainingServer(
            uvicorn_config(lambda: None, 1000),
            self.switchboard,
            drain_timeout_s=30,
            on_started=on_started,
            make_crew=lambda: self.crew,
        )

    def _template(self, settings: Settings, **events: Any) -> PlayedTemplate:
        self.templates.append(PlayedTemplate(self, **events))
        return self.templates[-1]


class PlayedTemplate:
    """What workers are forked from."""

    has_failed = False

    def __init__(self, stage: Stage, *, on_exit: Any, on_spoilt: Any, on_end: Any) -> None:
        self._stage = stage
        self.on_exit, self.on_spoilt, self.on_end = on_exit, on_spoilt, on_end
        self.prepared: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if stage.is_prepared:
            self.prepared.set_result(None)
        self.imported: list[str] = []
        self.is_closed = False

    def fork(self, worker: Worker) -> None:
        if self._stage.failures:
            raise self._stage.failures.pop()
        played = PlayedWorker(worker)
        index = len(self._stage.workers)
        self._stage.workers.append(played)
        worker.note_forked(FIRST_PID + index)
        if self._stage.loads(index):
            self._stage.crew._start(played.load())

    def import_libraries(self, names: tuple[str, ...]) -> None:
        self.imported += names

    def close(self) -> None:
        self.is_closed = True

    def is_gone(self) -> bool:
        return False

    def wait(self, timeout_s: float) -> None:
        pass

    def kill(self) -> None:
        pass


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).rstrip()), level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]:
    """Run a test on a stage."""

    def run(test: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            stage = Stage(monkeypatch)
            try:
                async with asyncio.timeout(10):
                    await test(stage)
            finally:
                await stage.crew.close(lambda: 0.0)
                for each in stage.workers:
                    each.channel.close()

        asyncio.run(main())

    return run


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


class TestStarting:
    def test_a_worker_that_dies_before_the_other_one_has_loaded_is_an_error(self, play: Play) -> None:
        async def main(stage: Stage) -> None:
            stage.loads = lambda index: index == 0
            starting = asyncio.create_task(stage.crew.start())
            await eventually(lambda: len(stage.workers) == 2 and stage.workers[0].worker.loaded.done())
            stage.templates[0].on_exit(FIRST_PID, 3)
            await stage.workers[1].load()
            with pytest.raises(ServerError, match="worker 1 exited with code 3 after it had loaded the bot"):
                await starting
            assert FIRST_PID + 1 in stage.killed

        play(main)

    def test_a_template_that_hangs_is_an_error(self, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(crew_module, "TEMPLATE_TIMEOUT_S", 0.02)

        async def main(stage: Stage) -> None:
            stage.is_prepared = False
            with pytest.raises(ServerError, match="pipecat was not imported within"):
                await stage.crew.start()

        play(main)

    def test_a_reload_that_is_asked_for_meanwhile_comes_afterwards(self, play: Play) -> None:
        async def main(stage: Stage) -> None:
            stage.loads = lambda index: index > 1
            stage.crew.reload("SIGHUP", anew=True)
            starting = asyncio.create_task(stage.crew.start())
            await eventually(lambda: len(stage.workers) == 2)
            stage.crew.reload("SIGHUP", anew=True)
            assert len(stage.templates) == 1
            for each in stage.workers[:2]:
                await each.load()
            await starting
            await eventually(lambda: len(stage.workers) == 4 and stage.crew._serving[2] is stage.workers[3].worker)
            assert len(stage.templates) == 2
            assert [each.worker.state for each in stage.workers] == ["leaving", "leaving", "serving", "serving"]

        play(main)

    def test_a_process_that_is_asked_to_stop_does_not_wait_for_the_bot(self, play: Play, logged: list[str]) -> None:
        announced = []

        async def main(stage: Stage) -> None:
            stage.loads = lambda index: False
            server = stage.server(lambda: announced.append("ready"))
            starting = asyncio.create_task(server.startup([]))
            await eventually(lambda: len(stage.workers) == 2)
            server.handle_exit(signal.SIGTERM, None)
            await starting
            assert server.should_exit
            assert not announced
            assert {FIRST_PID, FIRST_PID + 1} <= set(stage.killed)

        play(main)
        assert "asked to stop before the bot was loaded" in logged


class TestLibrariesThatStartThreads:
    def test_workers_import_them_themselves(self, play: Play, logged: list[str]) -> None:
        async def main(stage: Stage) -> None:
            await stage.crew.start()
            first = stage.templates[0]
            assert first.imported == ["a_library"]
            first.on_spoilt("a_library")
            await eventually(lambda: len(stage.templates) == 2)
            assert first.is_closed
            # Neither the next template nor one after it.
            for why in ("bot.py has changed", "SIGHUP"):
                before = len(stage.workers)
                stage.crew.reload(why, anew=why == "SIGHUP")
                await eventually(lambda before=before: len(stage.workers) == before + 2)
                await eventually(lambda: stage.crew._serving[2] is stage.workers[-1].worker)
            assert [each.imported for each in stage.templates[1:]] == [[], []]

        play(main)
        assert sum("a_library starts a thread when it is imported" in each for each in logged) == 1

    def test_a_reload_from_such_a_template_is_done_again(self, play: Play, logged: list[str]) -> None:
        async def main(stage: Stage) -> None:
            await stage.crew.start()
            stage.loads = lambda index: index > 3
            stage.crew.reload("bot.py has changed")
            await eventually(lambda: len(stage.workers) == 4)
            stage.templates[0].on_spoilt("a_library")
            for each in stage.workers[2:]:
                each.worker.note_gone()
            await eventually(lambda: len(stage.workers) == 6 and stage.crew._serving[1] is stage.workers[4].worker)
            assert stage.workers[0].worker.state == "leaving"

        play(main)
        assert not any("the old bot goes on" in each for each in logged)

    def test_the_template_says_which_one_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "harmless.py").write_text("")
        (tmp_path / "uses_onnxruntime.py").write_text("import onnxruntime\n")
        (tmp_path / "starts_thread.py").write_text(
            "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        )
        script = """
from wsvoice.runner.workers.template import _import
print(_import(["harmless", "missing", "uses_onnxruntime", "onnxruntime"]))
print(_import(["harmless", "starts_thread", "json"]))
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            timeout=30,
            check=True,
        )
        assert done.stdout == "None\nstarts_thread\n"


class TestReloading:
    def test_a_folder_that_is_gone_changes_nothing(self, play: Play, logged: list[str]) -> None:
        def fail() -> Any:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            stage.crew.read_settings = fail
            stage.crew.reload("SIGHUP", anew=True)
            await eventually(lambda: any("the old bot goes on" in each for each in logged))
            assert len(stage.workers) == 2
            assert stage.crew.why_closed() is None

        play(main)

    def test_a_fork_that_fails_leaves_no_template(self, play: Play, logged: list[str]) -> None:
        async def main(stage: Stage) -> None:
            await stage.crew.start()
            stage.failures = [OSError(errno.EMFILE, "Too many open files")]
            stage.crew.reload("SIGHUP", anew=True)
            await eventually(lambda: any("the old bot goes on" in each for each in logged))
            assert [each.is_closed for each in stage.templates] == [False, True]
            assert stage.crew._template is stage.templates[0]  # type: ignore[comparison-overlap]
            assert len(stage.crew.figures()) == 2

        play(main)

    def test_what_is_wrong_with_the_settings_is_told(self, play: Play, logged: list[str]) -> None:
        def fail() -> Any:
            raise ConfigError("WSVOICE_MAX_CALLS is 'many'", hint="a number")

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            stage.crew.read_settings = fail
            stage.crew.reload("SIGHUP")
            await eventually(lambda: bool(logged))
            assert logged == ["not reloaded, the old bot goes on: WSVOICE_MAX_CALLS is 'many' (a number)"]

        play(main)


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGHUP, signal.SIGUSR2)
    before = [signal.signal(each, signal.SIG_DFL) for each in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
class TestHangUp:
    @pytest.mark.parametrize("is_ignored", [False, True], ids=["in a terminal", "with nohup"])
    def test_a_terminal_that_is_closed(self, play: Play, monkeypatch: pytest.MonkeyPatch, is_ignored: bool) -> None:
        terminals = [True, False]
        monkeypatch.setattr("wsvoice.runner.server.has_terminal", lambda: terminals.pop(0))

        async def main(stage: Stage) -> None:
            if is_ignored:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            put_off_reloads()
            server = stage.server()
            server.handle_exit(signal.SIGHUP, None)
            assert stage.switchboard.is_leaving is not is_ignored

        play(main)

    def test_a_request_that_comes_too_soon_ends_nothing(self, play: Play) -> None:
        async def main(stage: Stage) -> None:
            put_off_reloads()
            for each in (signal.SIGHUP, signal.SIGUSR2):
                signal.raise_signal(each)
            server = stage.server()
            server._has_terminal = False
            # There are no workers yet that could be exchanged.
            server.handle_exit(signal.SIGHUP, None)
            assert not stage.switchboard.is_leaving
            server.upgrade = Upgrade(Launch((), Path(), {}), stage.switchboard, [], server)
            with server._handling_upgrades():
                signal.raise_signal(signal.SIGUSR2)
            assert server.upgrade._is_requested

        play(main)


class TestDeaths:
    def test_a_replacement_that_cannot_be_forked_is_tried_again(
        self, play: Play, logged: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(crew_module, "MIN_PAUSE_S", 0.01)

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            stage.failures = [OSError(errno.EMFILE, "Too many open files")]
            stage.templates[0].on_exit(FIRST_PID, -9)
            await eventually(lambda: 1 in stage.crew._serving)
            assert stage.crew._serving[1] is stage.workers[2].worker
            assert any("Too many open files; tried again" in each for each in logged)

        play(main)

    def test_one_that_is_not_wanted_any_more_is_killed_once_it_is_there(self, play: Play) -> None:
        async def main(stage: Stage) -> None:
            worker = Worker(1, on_gone=lambda worker: None, on_files=lambda: None, on_refused=lambda kind: None)
            worker.kill()
            assert not stage.killed
            worker.note_forked(FIRST_PID)
            assert stage.killed == [FIRST_PID]
            worker.note_gone()

        play(main)

    def test_one_that_may_not_be_killed_breaks_nothing(self, play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(pid: int, number: int) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            with monkeypatch.context() as patches:
                patches.setattr(os, "kill", refuse)
                stage.crew.check()
                stage.crew.kill()
            # It runs with another user's rights.
            assert not any(each.worker.is_gone for each in stage.workers)

        play(main)

    @pytest.mark.parametrize("how", ["is gone", "talks nonsense"])
    def test_one_that_cannot_be_reached_gets_no_calls(self, play: Play, how: str) -> None:
        async def main(stage: Stage) -> None:
            await stage.crew.start()
            for each in stage.workers:
                assert stage.crew.why_closed() is None
                if how == "is gone":
                    each.channel.close()
                else:
                    each.channel.send(["what a bot has written"])
                await eventually(lambda each=each: not each.worker.is_reachable)
            refusal = stage.crew.why_closed()
            assert refusal is not None
            assert refusal.text == "no worker answers"

        play(main)


class TestCalls:
    def test_a_call_that_cannot_be_begun_does_not_wait_for_ever(self, play: Play) -> None:
        async def fail(call: Call) -> None:
            raise RuntimeError("the disk is full")

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            played = stage.workers[0]
            session = RemoteSession(7, "CA1", None)
            played.worker.sessions[7] = Given(session, on_closed=lambda: None, on_call=fail)
            played.channel.send(messages.CallStarted(7, Call("twilio", "CA1")))
            await eventually(lambda: isinstance(played.heard[-1], messages.CallTaken))
            assert played.heard[-1].refusal is not None
            played.worker.sessions.clear()

        play(main)

    def test_a_connection_that_cannot_be_passed_on_is_a_refusal(self, play: Play, logged: list[str]) -> None:
        class Connection:
            def hand_over(self) -> tuple[int, bytes]:
                raise OSError(errno.EMFILE, "Too many open files")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def main(stage: Stage) -> None:
            await stage.crew.start()
            extensions = {CONNECTION_EXTENSION: {"connection": Connection()}, "websocket.http.response": {}}
            websocket = WebSocket({"type": "websocket", "extensions": extensions}, receive=send, send=send)  # type: ignore[arg-type]
            before = refusals(stage.switchboard)
            await stage.crew.serve_stream(websocket, admitted())
            assert sent[0]["status"] == 503
            assert refusals(stage.switchboard) == before + 1

        play(main)
        assert "stream refused (503): its connection cannot be passed on: Too many open files" in logged


def admitted() -> AdmittedStream:
    async def take(call: Call) -> None:
        return None

    return AdmittedStream(
        provider=None, announced=Call("twilio", "CA1"), is_stranger=False, dialled=None, on_started=take
    )


def refusals(switchboard: Switchboard) -> int:
    return switchboard.refusals.total


def test_a_worker_ends_with_a_front_that_is_killed_while_the_bot_is_loaded() -> None:
    script = """
import time
from wsvoice.runner.workers.channel import make_pair
from wsvoice.runner.workers.worker import FrontWatch
front, end = make_pair()
FrontWatch(end, drain_timeout_s=30)
front.close()
time.sleep(20)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
