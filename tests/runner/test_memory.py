"""What a rush of calls leaves behind in the server's memory."""

from __future__ import annotations

import time
from pathlib import Path

from tests.attacks.raw import RawStream, twilio_start
from tests.process import server_process
from wsvoice.runner import memory
from wsvoice.runner.memory import MemoryReturn

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")


def test_memory_is_given_back_after_a_rush(tmp_path: Path) -> None:
    with server_process(tmp_path, ECHO, "-t", "twilio") as process:
        before_mb = process.memory_mb()
        streams = [RawStream(process.port) for _ in range(100)]
        for number, each in enumerate(streams):
            each.send(twilio_start(f"CA{number:032}", f"MZ{number:032}"))
        deadline = time.monotonic() + 20
        while process.log().count("stream started") < len(streams):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1)
        rush_mb = process.memory_mb()
        for each in streams:
            each.close()
        assert rush_mb - before_mb > 15
        deadline = time.monotonic() + 20
        while process.memory_mb() > rush_mb - 0.15 * (rush_mb - before_mb):
            assert time.monotonic() < deadline, f"{before_mb:.0f}, {rush_mb:.0f}, {process.memory_mb():.0f} MB"
            time.sleep(0.2)


def test_only_when_nobody_is_there_and_not_often(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    now, held, given = 0.0, 100_000_000, []
    monkeypatch.setattr(memory, "resident_bytes", lambda: held)
    monkeypatch.setattr(memory, "give_back", lambda: given.append(now))
    returns = MemoryReturn(lambda: now)
    held = 200_000_000
    for now in (1.0, 2.0, 3.0, 4.0):
        returns.look(is_busy=now < 2)
    assert given == [4.0]
    for later in (5.0, 30.0, 63.0):
        now = later
        held += 50_000_000
        returns.look(is_busy=False)
    assert given == [4.0]
    now = 65.0
    returns.look(is_busy=False)
    assert given == [4.0, 65.0]
    # Nothing has come since.
    now = 200.0
    returns.look(is_busy=False)
    assert given == [4.0, 65.0]
