"""
How soon another worker takes calls in place of one that was killed in mid-call.

``DEATHS=10 CALLS=20 pytest -n 0 -s --timeout 300 tests/workers/test_deaths.py`` kills ten, one after the other, and
prints what it found.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from pathlib import Path

from tests.crowd import Crowd
from tests.process import ServerProcess
from tests.workers.processes import bot_of, kill, serving_workers, wait_until, workers_process

DEATHS, CALLS = (int(os.environ.get(name, default)) for name, default in (("DEATHS", 1), ("CALLS", 4)))
#: Another worker takes calls within so many seconds; deaths that come sooner than this after each other are put off.
REPLACED_S, BETWEEN_S = 2.0, 4.0


def test_a_killed_worker_is_replaced_within_two_seconds(tmp_path: Path) -> None:
    async def kill_one(server: ServerProcess, number: int) -> float:
        crowd = Crowd(server.url)
        async with crowd.talking_calls(CALLS):
            victim = (await asyncio.to_thread(serving_workers, server))[1 + number % 2]
            assert victim.calls == CALLS // 2
            began = time.monotonic()
            kill(victim.pid)

            def is_replaced() -> bool:
                now = serving_workers(server).get(victim.number)
                return now is not None and now.pid != victim.pid

            took_s = await asyncio.to_thread(wait_until, is_replaced, "another worker takes calls")
            # It takes the next calls: it has none.
            async with crowd.talking_calls(1):
                await asyncio.to_thread(
                    wait_until, lambda: serving_workers(server)[victim.number].calls == 1, "it has the next call"
                )
            log = server.log()
            assert f"worker {victim.number} (process {victim.pid}) was killed by SIGKILL" in log
            await asyncio.sleep(max(0.0, BETWEEN_S - (time.monotonic() - began)) if number + 1 < DEATHS else 0.0)
        assert len(crowd.outcome.failures) == CALLS // 2, crowd.outcome.failures
        assert crowd.outcome.served == CALLS - CALLS // 2 + 1
        await crowd.close()
        return took_s

    with workers_process(tmp_path, bot_of(), "--workers", "2") as server:
        took_s = [asyncio.run(kill_one(server, number)) for number in range(DEATHS)]
        shown = ", ".join(f"{each:.2f}" for each in took_s)
        print(f"{DEATHS} workers killed with {CALLS} calls in progress: replaced after {shown} s", end="")
        print(f" (median {statistics.median(took_s):.2f} s, at most {max(took_s):.2f} s)")
        assert max(took_s) < REPLACED_S
