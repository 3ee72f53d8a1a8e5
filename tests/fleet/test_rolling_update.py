"""
A rolling update behind a real HAProxy: no call is cut, and every new one is served.

``ROUNDS=10 CALLS=20 pytest -n 0 -s --timeout 600 tests/fleet/test_rolling_update.py`` replaces the servers ten times,
with 20 calls in progress each time, and prints what it found.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.tools import lack
from tests.fleet import redis_server
from tests.fleet.haproxy import PROGRAM, LoadBalancer, configuration, load_balancer, needs_haproxy
from tests.fleet.rolling import SERVERS, Update, through
from tests.fleet.servers import Bot, ask, settings, stream_url
from tests.runner.carrier import dialled
from tests.signals import tone

ROUNDS, CALLS = int(os.environ.get("ROUNDS", "1")), int(os.environ.get("CALLS", "4"))

pytestmark = needs_haproxy


def test_the_configuration_is_valid(tmp_path: Path) -> None:
    assert PROGRAM is not None
    file = configuration(tmp_path, ":443", [7860, 7861])
    checked = subprocess.run([PROGRAM, "-c", "-f", str(file)], capture_output=True, text=True, timeout=20, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "[WARNING]" not in checked.stderr
    assert "[ALERT]" not in checked.stderr


@pytest.mark.parametrize("memory", ["redis", "none"])
def test_no_call_is_cut_and_every_new_one_is_served(tmp_path: Path, memory: str) -> None:
    if memory == "redis" and redis_server.PROGRAM is None:
        lack("redis-server is not installed")
    if memory == "none" and redis_server.PROGRAM is not None and ROUNDS == 1:
        pytest.skip("what is the same with Redis is enough")
    (tmp_path / "redis").mkdir()
    with redis_server.redis_server(tmp_path / "redis") if memory == "redis" else nullcontext() as redis:
        roll(tmp_path, redis.url if redis is not None else None)


def roll(folder: Path, redis: str | None) -> None:
    async def main() -> None:
        async for outcome, calls in Update(folder, calls=CALLS, every_s=0.1, redis=redis).run(ROUNDS):
            waits = sorted(outcome.waits_s)
            print(
                f"{outcome.served} calls served, {outcome.late} of them begun after SIGTERM, "
                f"{len(outcome.failures)} failed; first sound after {statistics.median(waits):.2f} s "
                f"(at most {waits[-1]:.2f} s); {dict(calls)}"
            )
            assert not outcome.failures
            assert not outcome.busy
            assert outcome.late >= 5
            old, new = list(calls.values())[:SERVERS], list(calls.values())[SERVERS:]
            # Calls go where the fewest are.
            assert all(each >= CALLS // SERVERS for each in old)
            assert all(new)

    asyncio.run(main())


def test_a_stream_that_finds_no_place_is_sent_to_another_server(serve: Any, tmp_path: Path) -> None:
    """HAProxy tries a 503 again elsewhere, with the same token."""
    full, free = serve(Bot(), max_calls=1, **settings()), serve(Bot(), **settings())
    ports = [urlsplit(each.url).port or 0 for each in (full, free)]

    async def main(balancer: LoadBalancer) -> None:
        async with dialled(stream_url(ask(full, "CA0"), full), "CA0") as in_progress:
            for number in range(1, 5):
                path = urlsplit(stream_url(ask(free, f"CA{number}"), free)).path
                async with through(balancer, path, f"CA{number}") as carrier:
                    await carrier.speak(tone(500, 60, 8000))
                    await carrier.until("media")
                    await carrier.hang_up()
            await in_progress.hang_up()

    with load_balancer(tmp_path, ports) as balancer:
        balancer.sees("bot-1", "bot-2")
        asyncio.run(main(balancer))
    assert full.lines("stream refused (503)")
