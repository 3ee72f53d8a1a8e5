"""
Memory, processes and descriptors of a server with workers while it reloads again and again.

``RELOADS=500 pytest -n 0 -s --timeout 1800 tests/workers/test_memory.py`` reloads a changed file 500 times, a
fifth as often at SIGHUP and one that cannot be loaded, and prints what it found. Without it there are three of the
first and two of the last, and none at SIGHUP, which take longer.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from tests.crowd import Crowd
from tests.process import ServerProcess, server_process
from tests.workers.processes import bot_of, children, descriptors, look_at, memory_mb, wait_until, workers_process

RELOADS = int(os.environ.get("RELOADS", "3"))
#: How much more memory a process may hold at the end than after the warm-up; and in a short run, where one growth of a
#: heap is more than that, how many MB.
GROWTH, GROWTH_MB = 1.10, 8.0
#: After so many reloads there is a call.
CALL_EVERY = 10
#: How many looks the medians at both ends are of.
LOOKS = 5


@dataclass(frozen=True)
class Look:
    """
    What can be seen of a server that is idle.

    Attributes:
        front_mb, template_mb, worker_mb: Their memory, with their share of what they have in common with others.
        front_own_mb, template_own_mb, worker_own_mb: That of it which no other program on the machine can have.
        processes: How many there are, with those whose exit codes nobody has fetched.
        front_files, template_files, worker_files: How many descriptors they have open.
    """

    front_mb: float
    template_mb: float
    worker_mb: float
    front_own_mb: float
    template_own_mb: float
    worker_own_mb: float
    processes: int
    front_files: int
    template_files: int
    worker_files: int


def look(server: ServerProcess) -> Look:
    """Wait until there is one worker and one template, and look."""
    front = server.process.pid

    def is_settled() -> bool:
        return len(children(front)) == 1 and len(look_at(server).server.workers) == 1

    wait_until(is_settled, "the old processes are gone")
    [template], [worker] = children(front), [each.pid for each in look_at(server).server.workers]
    wait_until(lambda: children(template) == [worker], "the template has no other worker")
    return Look(
        *(memory_mb(each) for each in (front, template, worker)),
        *(memory_mb(each, "Pss_Anon") for each in (front, template, worker)),
        1 + len(children(front)) + len(children(template)),
        *(descriptors(each) for each in (front, template, worker)),
    )


async def call(server: ServerProcess) -> None:
    crowd, over = Crowd(server.url), asyncio.Event()
    over.set()
    await crowd.call(over)
    assert not crowd.outcome.failures
    await crowd.close()


def touch(server: ServerProcess, number: int) -> str:
    """Change the bot; return what is then logged."""
    (server.log_file.parent / "bot.py").write_text(bot_of(f"number {number}"))
    return "new calls get the new code"


def hang_up(server: ServerProcess, number: int) -> str:
    server.signal(signal.SIGHUP)
    return "new calls get the new code"


def spoil(server: ServerProcess, number: int) -> str:
    """Change the bot to one that cannot be loaded."""
    (server.log_file.parent / "bot.py").write_text(bot_of(f"number {number}", f"\nthis_is_not_defined_{number}\n"))
    return f"this_is_not_defined_{number}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with workers_process(tmp_path_factory.mktemp("memory"), bot_of(), "--reload") as server:
        asyncio.run(call(server))
        yield server


@pytest.mark.parametrize(
    ("count", "reload"),
    [
        (RELOADS, touch),
        pytest.param(
            max(2, RELOADS // 5),
            hang_up,
            marks=pytest.mark.skipif("RELOADS" not in os.environ, reason="takes long; set RELOADS"),
        ),
        (max(2, RELOADS // 5), spoil),
    ],
    ids=["changed file", "SIGHUP", "broken file"],
)
def test_reloads_leave_nothing_behind(
    server: ServerProcess, count: int, reload: Callable[[ServerProcess, int], str]
) -> None:
    looks, began = [], len(server.log())
    for number in range(count):
        since = len(server.log())
        server.logged(reload(server, number), since=since, timeout_s=30)
        if number % CALL_EVERY == CALL_EVERY - 1:
            asyncio.run(call(server))
            wait_until(lambda: look_at(server).server.calls == 0, "no call is left")
        looks.append(look(server))
        if number % (count // 10 or 1) == 0:
            print(f"{number + 1:4}  {looks[-1]}")
    assert ("Traceback" in server.log()[began:]) is (reload is spoil)
    # At first it imports and caches.
    kept = looks[count // 5 :]
    size = min(LOOKS, len(kept) // 2)
    first, last = kept[:size], kept[-size:]
    for field in fields(Look):
        before, after = (statistics.median(getattr(each, field.name) for each in some) for some in (first, last))
        print(f"{field.name}: {before:.1f} after the warm-up, {after:.1f} after {count} reloads")
        if field.name.endswith("_own_mb"):
            limit_mb = before * GROWTH if count > 50 else before + GROWTH_MB
            assert after <= limit_mb, f"{field.name} grows: {[getattr(each, field.name) for each in looks]}"
        elif not field.name.endswith("_mb") and after != before:
            # A connection that was looked at was about to be closed; what leaks stays.
            told = f"{field.name} does not change: {[getattr(each, field.name) for each in looks]}"
            wait_until(lambda name=field.name, was=before: getattr(look(server), name) == was, told)


#: Runs a program as a container without an init does: as the first process.
CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def test_the_first_process_of_a_container_waits_for_workers_that_outlive_their_template(tmp_path: Path) -> None:
    try:
        subprocess.run([*CONTAINER, "true"], check=True, capture_output=True, timeout=10)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a namespace for processes: {error}")
    with server_process(tmp_path, bot_of(), "-t", "twilio", "--reload", under=CONTAINER) as server:
        [front] = children(server.process.pid)
        [template] = children(front)
        os.kill(front, signal.SIGHUP)
        server.logged("SIGHUP: new calls get the new code", timeout_s=30)
        wait_until(lambda: len(children(front)) == 1 and template not in children(front), "nobody is left", 15)
        os.kill(front, signal.SIGTERM)
        assert server.wait(10) == 0
