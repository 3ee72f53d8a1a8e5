"""Bots that do to their process, and to those around it, what no bot should: the server and others' calls go on."""

from __future__ import annotations

import asyncio
import itertools
import signal
from pathlib import Path

import websockets

from tests.crowd import Crowd
from tests.process import ServerProcess
from tests.workers.processes import (
    bot_of,
    descendants,
    is_running,
    serving_workers,
    wait_until,
    worker_pids,
    workers_process,
)

#: The last digit of a call's id says what its bot does.
HOSTILE = """

import atexit, os, signal, sys, threading, time

_echo = bot


def stay():
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)


talking = 0


async def bot(runner_args):
    global talking
    talking += 1
    try:
        # What it does is done to nobody who has the same process.
        if talking == 1:
            misbehave(runner_args.call.call_id[-1])
        await _echo(runner_args)
    finally:
        talking -= 1


def misbehave(how):
    match how:
        case "1":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            logger.remove()
            os.closerange(3, 1024)
        case "2":
            # Its child holds whatever it holds, and nobody is left who would tell of its end.
            os.kill(os.getppid(), signal.SIGKILL)
            stay()
            os._exit(4)
        case "3":
            for each in range(3, 40):
                try:
                    os.write(each, b"nonsense" * 100)
                except OSError:
                    pass
        case "4":
            os.setsid()
            os.chdir("/")
            os.umask(0o777)
            os.environ.clear()
            sys.setrecursionlimit(100_000)
            atexit.register(time.sleep, 1000)
            threading.Thread(target=time.sleep, args=(1000,)).start()
            os.write(2, b"x" * 1_000_000)
"""
OVER = asyncio.Event()
OVER.set()


def test_what_a_bot_does_to_its_process_is_its_workers_affair(tmp_path: Path) -> None:
    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        crowd._numbers = itertools.count(10, 10)  # type: ignore[assignment]
        async with crowd.talking_calls(1):
            for number in (1, 2, 3):
                # One that is still being counted would send the next one to the worker of the call that goes on.
                await asyncio.to_thread(wait_until, lambda: calls_of_workers(server) == [0, 1], "one call is left")
                before = await asyncio.to_thread(worker_pids, server)
                hostile = asyncio.create_task(call_until_lost(server, number))
                await asyncio.to_thread(
                    wait_until, lambda before=before: replaced(before, worker_pids(server)), "it is replaced"
                )
                await crowd.call(OVER)
                hostile.cancel()
                await asyncio.gather(hostile, return_exceptions=True)
        assert crowd.outcome.served == 4, crowd.outcome.failures
        await crowd.close()

    with workers_process(tmp_path, bot_of("hostile", HOSTILE), "--workers", "2") as server:
        asyncio.run(main(server))
        assert "another one is started" in server.log()
        server.signal(signal.SIGTERM)
        assert server.wait(5) == 0
        assert not descendants(server.process.pid)


async def call_until_lost(server: ServerProcess, number: int) -> None:
    """Place calls that end with this digit, until the worker has one that does what it does, and is gone."""
    crowd = Crowd(server.url)
    for each in itertools.count(number, 10):
        try:
            await crowd._talk(f"CB{each:032d}", OVER, None)
        except (OSError, TimeoutError, AssertionError, websockets.WebSocketException):
            return


def calls_of_workers(server: ServerProcess) -> list[int]:
    """How many calls each worker runs, in order."""
    return sorted(each.calls for each in serving_workers(server).values())


def replaced(before: dict[int, int], now: dict[int, int]) -> bool:
    """Whether there are two workers, and one of them is new."""
    return len(now) == 2 and len(set(now.values()) - set(before.values())) == 1


def test_what_a_bot_leaves_behind_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async def main(server: ServerProcess) -> None:
        crowd = Crowd(server.url)
        crowd._numbers = iter([4, 10])  # type: ignore[assignment]
        await crowd.call(OVER)
        # What it has done to its process concerns no new one.
        since = len(server.log())
        before = await asyncio.to_thread(worker_pids, server)
        (server.log_file.parent / "bot.py").write_text(bot_of("hostile, too", HOSTILE))
        await asyncio.to_thread(server.logged, "new calls get the new code", since=since)
        await crowd.call(OVER)
        assert crowd.outcome.served == 2, crowd.outcome.failures
        crowd._numbers = iter([14])  # type: ignore[assignment]
        await crowd.call(OVER)
        wait_until(lambda: not any(is_running(each) for each in before.values()), "the old worker is gone", 5)
        await crowd.close()

    with workers_process(tmp_path, bot_of("hostile", HOSTILE), "--reload") as server:
        asyncio.run(main(server))
        pids = descendants(server.process.pid)
        server.signal(signal.SIGTERM)
        assert server.wait(6) == 0
        wait_until(lambda: not any(is_running(each) for each in pids), "all processes have ended", 3)
