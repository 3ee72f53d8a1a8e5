"""What a call adds is written beside it: in order, bounded, and in its place."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.trace import Header, LiveTrace, Masks, read_trace
from wsvoice.trace import background as background_module
from wsvoice.trace.writer import TraceWriter

PCM_8K = AudioFormat(Encoding.L16, 8000)
PCM_16K = AudioFormat(Encoding.L16, 16000)
HEADER = Header(side="server", call=Call("twilio", "CA1"), started_at=1.0, rate=8000)
PIECE = np.full(160, 1000, "<i2").tobytes()


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def live(clock: Callable[[], float], failures: list[str] | None = None) -> LiveTrace:
    return LiveTrace(clock, Masks(), on_failure=(failures if failures is not None else []).append)


def numbered(number: int) -> str:
    """Return a message of a hundred characters."""
    return f'{{"number":"{number:04}{"x" * 83}"}}'


def test_audio_is_where_it_was_heard_and_what_was_cleared_is_not(tmp_path: Path) -> None:
    clock = FakeClock()
    trace = live(clock)
    trace.begin(tmp_path / "a.call", HEADER, (PCM_8K, PCM_8K))
    trace.audio("in", 100.5, None, PIECE)
    for _ in range(10):
        trace.audio("out", 100.0, None, PIECE)
    trace.cut(100.1)
    clock.now = 101.0
    path = trace.end({"by": "bot"}).result(10)
    assert path is not None
    with read_trace(path) as found:
        assert found.is_complete
        assert (len(found.caller), len(found.bot)) == (8000, 8000)
        assert np.flatnonzero(found.caller).tolist() == list(range(4000, 4160))
        assert np.flatnonzero(found.bot).tolist() == list(range(800))


def test_tracks_of_different_rates_have_one(tmp_path: Path) -> None:
    clock = FakeClock()
    trace = live(clock)
    header = Header(side="server", call=Call("twilio", "CA1"), started_at=1.0, rate=16000)
    trace.begin(tmp_path / "a.call", header, (PCM_8K, PCM_16K))
    trace.audio("in", 100.0, None, PIECE * 50)
    trace.audio("out", 100.0, None, PIECE * 100)
    clock.now = 101.0
    trace.end({}).result(10)
    with read_trace(tmp_path / "a.call") as found:
        assert len(found.caller) == len(found.bot) == 16000
        assert abs(int(found.caller[8000]) - 1000) < 20


def test_a_slow_disk_costs_messages_but_never_the_place_of_audio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, entered = threading.Event(), threading.Event()

    class SlowWriter(TraceWriter):
        def __init__(self, *arguments: Any) -> None:
            entered.set()
            stuck.wait(10)
            super().__init__(*arguments)

    monkeypatch.setattr(background_module, "TraceWriter", SlowWriter)
    monkeypatch.setattr(background_module, "MAX_WIRE", 1000)
    monkeypatch.setattr(background_module, "MAX_PIECES", 50)
    clock = FakeClock()
    trace = live(clock)
    trace.begin(tmp_path / "a.call", HEADER, (PCM_8K, PCM_8K))
    assert entered.wait(10)
    began = time.monotonic()
    for number in range(100):
        trace.audio("in", 100 + number * 0.02, numbered(number), PIECE)
    assert time.monotonic() - began < 1
    stuck.set()
    # There is room again.
    deadline = time.monotonic() + 10
    while trace._wire:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    trace.audio("in", 103.0, '{"the":"last"}', PIECE)
    clock.now = 104.0
    trace.end({"by": "caller"}).result(10)
    with read_trace(tmp_path / "a.call") as found:
        texts = [each.text for each in found.wire]
        assert texts[-1] == '{"the":"last"}'
        assert texts[:-1] == [numbered(number) for number in range(len(texts) - 1)]
        assert 50 <= len(texts) - 1 < 70
        assert found.dropped["wire"] == 100 - (len(texts) - 1)
        assert found.dropped["audio_bytes"] == 50 * len(PIECE)
        assert not found.is_complete
        assert len(found.caller) == 4 * 8000
        # The second second is silence.
        assert np.flatnonzero(found.caller).tolist() == [*range(8000), *range(24000, 24160)]


def test_long_messages_are_kept_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_module, "MAX_WIRE", 10_000)
    trace = live(FakeClock())
    trace.begin(tmp_path / "a.call", HEADER, (PCM_8K, PCM_8K))
    for number in range(1000):
        trace.audio("in", 100.0 + number / 50, '{"x":"' + "x" * 8000 + '"}', PIECE)
    assert trace._put - trace._written < 20_000 + 8010
    trace.end({}).result(10)
    with read_trace(tmp_path / "a.call") as found:
        kept = list(found.wire)
        assert kept
        assert all(len(each.text or "") == 8008 for each in kept)
        assert found.dropped["wire"] == 1000 - len(kept)
        assert "audio_bytes" not in found.dropped


def test_what_fails_in_one_trace_ends_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("nobody thought of that")

    clock, failures = FakeClock(), list[str]()
    broken, other = live(clock, failures), live(clock)
    for trace in (broken, other):
        trace.begin(tmp_path / "a.call", HEADER, (PCM_8K, PCM_8K))
        trace.audio("in", 100.0, None, PIECE)
    assert broken._disk is not None
    monkeypatch.setattr(broken._disk, "_write", fail)
    clock.now = 101.0
    broken.end({}).result(10)
    assert failures == ["nobody thought of that"]
    path = other.end({}).result(10)
    assert path is not None
    with read_trace(path) as found:
        assert np.count_nonzero(found.caller) == 160


def test_a_failing_disk_is_told_once_and_ends_the_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failures: list[str] = []
    trace = live(FakeClock(), failures)
    trace.begin(tmp_path / "file" / "a.call", HEADER, (PCM_8K, PCM_8K))
    assert trace.end({}).result(10) is None
    assert failures in (["Not a directory"], ["File exists"])
    trace.message("in", "x", is_audio=False)
    trace.audio("in", 100.0, None, PIECE)
    assert not trace._wire


def test_what_comes_before_a_call_is_known_is_bounded() -> None:
    trace = live(FakeClock())
    for _ in range(10_000):
        trace.message("in", "x" * 1000, is_audio=False)
    assert trace._put < 300_000


def test_an_hour_of_audio_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    clock = FakeClock()
    trace = live(clock)
    trace.begin(tmp_path / "a.call", HEADER, (PCM_8K, PCM_8K))
    tracemalloc.start()
    try:
        second = PIECE * 50
        for number in range(3600):
            clock.now = 100.0 + number
            trace.audio("in", clock.now, None, second)
            trace.audio("out", clock.now, None, second)
            trace.message("in", '{"x":"' + "x" * 1000 + '"}', is_audio=True)
            if number % 60 == 0:
                assert trace._disk is not None
                background_module._thread.wake(trace._disk)
                deadline = time.monotonic() + 10
                while trace._wire:
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    clock.now += 1
    trace.end({}).result(20)
    assert peak < 20_000_000
    with read_trace(tmp_path / "a.call") as found:
        assert len(found.caller) == len(found.bot) == 3600 * 8000
        assert not found.dropped
