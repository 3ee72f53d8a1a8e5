"""
Calls on a server with workers, when it stops, reloads, loses one, or its bot misbehaves.

``ROUNDS=10 CALLS=20 pytest -n 0 -s --timeout 900 tests/workers/test_workers.py -k rounds`` does ten rounds of each kind
with 20 calls in progress, and prints what it found.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crowd import Crowd
from tests.environment import clean_environ
from tests.process import ServerProcess
from tests.workers.processes import (
    bot_of,
    descendants,
    is_running,
    kill,
    look_at,
    metric,
    running_calls,
    wait_until,
    worker_pids,
    workers_process,
)

ROUNDS, CALLS = int(os.environ.get("ROUNDS", "1")), int(os.environ.get("CALLS", "4"))


@pytest.fixture(scope="module")
def reloading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that reloads by itself."""
    with workers_process(tmp_path_factory.mktemp("reloading"), bot_of(), "--reload") as server:
        yield server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two workers."""
    arguments = ["--workers", "2", "--metrics-port", "0"]
    with workers_process(tmp_path_factory.mktemp("pair"), bot_of(), *arguments) as server:
        yield server


Disturb = Callable[[ServerProcess, Crowd, int], Awaitable[None]]


async def hang_up_signal(server: ServerProcess, crowd: Crowd, number: int) -> None:
    since = len(server.log())
    server.signal(signal.SIGHUP)
    await asyncio.to_thread(server.logged, "SIGHUP: new calls get the new code", since=since)


async def touched(server: ServerProcess, crowd: Crowd, number: int) -> None:
    since = len(server.log())
    (server.log_file.parent / "bot.py").write_text(bot_of(f"number {number}"))
    await asyncio.to_thread(server.logged, "bot.py has changed: new calls get the new code", since=since)


@pytest.mark.parametrize(
    ("name", "disturb"), [("pair", hang_up_signal), ("reloading", touched)], ids=["SIGHUP", "--reload"]
)
def test_rounds_of_reloads(request: pytest.FixtureRequest, name: str, disturb: Disturb) -> None:
    """No call is cut, no new one refused, and new ones get the new code."""

    async def main(server: ServerProcess) -> None:
        for number in range(ROUNDS):
            crowd = Crowd(server.url)
            since = len(server.log())
            async with crowd.talking_calls(CALLS):
                calling = asyncio.create_task(crowd.keep_calling(0.1))
                await disturb(server, crowd, number)
                crowd.is_late = True
                await asyncio.sleep(0.5)
                calling.cancel()
                await calling
            outcome = crowd.outcome
            print(
                f"{outcome.served} calls served, {outcome.late} of them begun after the reload,"
                f" {outcome.busy} told busy, {len(outcome.failures)} failed; first sound after"
                f" {statistics.median(outcome.waits_s):.2f} s (at most {max(outcome.waits_s):.2f} s)"
            )
            assert not outcome.failures
            assert not outcome.busy
            assert outcome.late >= 2
            if disturb is touched:
                assert f"this is version number {number}" in server.log()[since:]
            await crowd.close()

    server: ServerProcess = request.getfixturevalue(name)
    asyncio.run(main(server))
    wait_until(lambda: len(descendants(server.process.pid)) <= 3, "the old workers are gone")
    assert "Traceback" not in server.log()


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(
            [], marks=pytest.mark.skipif("ROUNDS" not in os.environ, reason="is in tests/runner/test_server.py")
        ),
        ["--workers", "2"],
    ],
    ids=["one process", "--workers 2"],
)
def test_rounds_of_stops(tmp_path: Path, arguments: list[str]) -> None:
    """All calls in progress end by themselves before the server does."""

    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        async with crowd.talking_calls(CALLS):
            server.signal(signal.SIGTERM)
            await asyncio.to_thread(server.logged, "no new calls are taken")
            await crowd.call(asyncio.Event())
            assert crowd.outcome.busy == 1
        assert await asyncio.to_thread(server.wait, 10) == 0
        assert not crowd.outcome.failures
        assert crowd.outcome.served == CALLS
        await crowd.close()

    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with workers_process(folder, bot_of(), *arguments) as server:
            asyncio.run(main(server))
            print(f"{CALLS} calls in progress ended by themselves, then the server did")
            assert not descendants(server.process.pid)


def test_a_worker_that_is_killed_takes_only_its_own_calls_along(pair: ServerProcess) -> None:
    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        metrics = str(server.ready["metrics_url"])
        async with crowd.talking_calls(4) as over:
            before = await asyncio.to_thread(running_calls, server)
            pids = await asyncio.to_thread(worker_pids, server)
            by_pid = {pid: [each["id"] for each in before["calls"] if each["pid"] == pid] for pid in pids.values()}
            assert sorted(len(each) for each in by_pid.values()) == [2, 2]
            kill(pids[1])
            took_s = await asyncio.to_thread(
                wait_until, lambda: worker_pids(server).get(1, pids[1]) != pids[1], "another worker takes calls"
            )
            assert took_s < 5
            log = await asyncio.to_thread(server.logged, f"worker 1 (process {pids[1]}) was killed by SIGKILL")
            assert "2 calls are lost" in log
            assert all(each in log for each in by_pid[pids[1]])
            after = await asyncio.to_thread(running_calls, server)
            assert [each["id"] for each in after["calls"]] == by_pid[pids[2]]
            assert metric(metrics, "wsvoice_active_calls") == 2
            assert metric(metrics, "wsvoice_worker_deaths_total") == 1
            assert metric(metrics, "wsvoice_calls_total", outcome="lost") == 2
            # The next calls go to the worker that has none.
            await crowd.call(over_at_once())
            over.set()
        assert len(crowd.outcome.failures) == 2, crowd.outcome.failures
        assert crowd.outcome.served == 3
        await asyncio.to_thread(wait_until, lambda: metric(metrics, "wsvoice_active_calls") == 0, "no call is left")
        await crowd.close()

    asyncio.run(main(pair))


def over_at_once() -> asyncio.Event:
    over = asyncio.Event()
    over.set()
    return over


def test_a_broken_bot_leaves_the_old_one_serving(reloading: ServerProcess) -> None:
    server, folder = reloading, reloading.log_file.parent
    bot = folder / "bot.py"

    async def calls() -> None:
        crowd = Crowd(server.url)
        await crowd.call(over_at_once())
        assert crowd.outcome.served == 1, crowd.outcome.failures
        await crowd.close()

    def write(file: Path, text: str, logged: str = "new calls get the new code") -> str:
        """Write a file; return what is logged until it is noticed."""
        since = len(server.log())
        file.write_text(text)
        return server.logged(logged, since=since)

    write(bot, bot_of("to stay"))
    broken = bot_of("two").replace("async def bot(runner_args):", "async def bot(runner_args:")
    write(bot, broken, "not reloaded, the old bot goes on: bot.py, line")
    asyncio.run(calls())
    assert "this is version to stay" in server.log()
    # It needs a module that is not there yet.
    write(bot, bot_of("three", "\nimport helper\n"), "helper")
    write(folder / "helper.py", "")
    asyncio.run(calls())
    assert "this is version three" in server.log()
    # What it imports counts too.
    write(folder / "helper.py", "NAME = 1", "helper.py has changed: new calls get the new code")
    # So do settings.
    write(folder / ".env", "GREETING=hello\n", ".env has changed: new calls get the new code")
    assert "WSVOICE_MAX_CALLS" in write(
        folder / ".env", "WSVOICE_MAX_CALLS=many\n", "not reloaded, the old bot goes on"
    )
    asyncio.run(calls())
    write(folder / ".env", "")
    # One that hangs makes way for the next.
    bot.write_text("import time\ntime.sleep(100)\n" + bot_of("hangs"))
    wait_until(lambda: "loading" in {each["state"] for each in workers_of(server)}, "the new bot is being loaded")
    write(bot, bot_of("mended"))
    # Some settings need a restart.
    write(folder / ".env", "WSVOICE_BUSY_MESSAGE=hello\n", "changed settings that need a restart: busy-message")
    write(folder / ".env", "WSVOICE_MAX_CALLS=3\n")
    assert running_calls(server)["server"]["max_calls"] == 3
    write(folder / ".env", "")


def workers_of(server: ServerProcess) -> list[dict[str, Any]]:
    found = running_calls(server)["server"]["workers"]
    assert isinstance(found, list)
    return found


def test_a_storm_of_changes_is_one_reload(reloading: ServerProcess) -> None:
    since = len(reloading.log())
    for number in range(200):
        (reloading.log_file.parent / "bot.py").write_text(bot_of(f"storm {number}"))
    reloading.logged("new calls get the new code", since=since)
    asyncio.run(asyncio.sleep(0.5))
    assert reloading.log()[since:].count("new calls get the new code") <= 2


def test_without_reload_it_says_that_the_file_has_changed(pair: ServerProcess) -> None:
    (pair.log_file.parent / "bot.py").write_text(bot_of("two"))
    pair.logged(f"bot.py has changed; `kill -HUP {pair.process.pid}` reloads it")


def test_a_closed_terminal_lets_calls_finish(tmp_path: Path) -> None:
    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        async with crowd.talking_calls(1):
            server.signal(signal.SIGHUP)
            await asyncio.to_thread(server.logged, "no new calls are taken")
        assert crowd.outcome.served == 1, crowd.outcome.failures
        await crowd.close()

    with workers_process(tmp_path, bot_of()) as server:
        asyncio.run(main(server))
        assert server.wait(10) == 0


def test_a_bot_that_cannot_be_loaded_at_the_start_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text("raise ValueError('nothing works today')\n")
    command = [sys.executable, "-m", "wsvoice", "run", "bot.py", "--workers=2", "--port", "0"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=clean_environ(), timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("ValueError: nothing works today") <= 2
    assert "bot.py failed while it was imported: ValueError: nothing works today" in done.stderr


def test_a_blocked_worker_gets_no_calls_and_a_second_signal_ends_it(tmp_path: Path) -> None:
    more = """

import time

_echo = bot


async def bot(runner_args):
    if runner_args.call.call_id.endswith("9"):
        while True:
            time.sleep(1)
    await _echo(runner_args)
"""

    async def main(server: ServerProcess) -> list[int]:
        crowd = Crowd(server.url)
        crowd._numbers = iter([9, *range(100, 109)])  # type: ignore[assignment]
        blocked = asyncio.create_task(crowd.call(over_at_once()))
        await asyncio.to_thread(
            wait_until,
            lambda: any(each.lag_s > 1 for each in look_at(server).server.workers),
            "one of the workers is blocked",
        )
        for _ in range(4):
            await crowd.call(over_at_once())
        assert crowd.outcome.served == 4, crowd.outcome.failures
        pids = descendants(server.process.pid)
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.logged, "no new calls are taken")
        server.signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait, 5)
        blocked.cancel()
        await asyncio.gather(blocked, return_exceptions=True)
        await crowd.close()
        return pids

    with workers_process(tmp_path, bot_of("blocks", more), "--workers", "2") as server:
        pids = asyncio.run(main(server))
        wait_until(lambda: not any(is_running(each) for each in pids), "all processes have ended", 3)


def test_calls_go_on_if_the_front_is_killed(tmp_path: Path) -> None:
    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        async with crowd.talking_calls(2):
            pids = descendants(server.process.pid)
            server.process.kill()
            await asyncio.to_thread(server.logged, "the process that listens is gone")
            await asyncio.sleep(0.3)
        assert crowd.outcome.served == 2, crowd.outcome.failures
        await asyncio.to_thread(wait_until, lambda: not any(is_running(each) for each in pids), "all have ended")
        await crowd.close()

    with workers_process(tmp_path, bot_of(), "--workers", "2") as server:
        asyncio.run(main(server))
