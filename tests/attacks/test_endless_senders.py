"""Callers that send without end: what they cost is bounded, and the log stays readable."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.raw_websocket import RawStream, text_frame, twilio_audio, twilio_start
from tests.attacks.shared_server import Shared
from tests.process import ServerProcess, server_process
from tests.signals import tone

LISTENER = """
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.workers.runner import WorkerRunner


    class Listener(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            await self.push_frame(frame, direction)


    async def bot(runner_args):
        transport = runner_args.transport
        worker = PipelineWorker(Pipeline([transport.input(), Listener(), transport.output()]), params=PipelineParams())
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""

#: What a call costs anyhow: its pipeline, and what the allocator keeps.
ROOM_MB = 40


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), LISTENER, "-t", "twilio") as process:
        yield process


@pytest.fixture
def server(process: ServerProcess) -> Shared:
    """Return a server that has had a call, and so what every call needs."""
    server = Shared.now(process)
    short_call(server)
    return Shared.now(process)


def short_call(server: Shared) -> None:
    """Make the server load and allocate what every call needs."""
    stream = RawStream(server.process.port)
    stream.send(twilio_start("CA" + "0" * 32), twilio_audio(tone(500, 200, 8000)), text_frame({"event": "stop"}))
    server.logged("ended by the caller")
    stream.close()


def flooded(server: Shared, call_sid: str, frames: bytes, times: int, *, timeout_s: float = 2) -> float:
    """Flood a call with `frames`; return by how many MB the process has grown at most."""
    before_mb = server.process.memory_mb()
    stream = RawStream(server.process.port)
    stream.send(twilio_start(call_sid))
    server.logged(call_sid)
    stream.flood(frames, times, timeout_s=timeout_s)
    grown_mb = server.process.memory_mb() - before_mb
    stream.close()
    return max(grown_mb, server.process.memory_mb() - before_mb)


def faster_than_real_time(server: Shared) -> None:
    # Padded, so that not too many of them are on the way when the caller is gone.
    audio = twilio_audio(tone(500, 1000, 8000), padding="x" * 2000)
    assert flooded(server, "CAfast", audio, 3600) < ROOM_MB
    log = server.logged(" ahead, ", timeout_s=20)
    assert log.count("ahead of real time") == 1
    assert log.count("messages a second") == 1
    summary = next(line for line in log.splitlines() if " ahead, " in line)
    told = re.search(r"after ([\d.]+) s: .*heard ([\d.]+) s", summary)
    assert told
    # Real time, and what a network may have kept.
    assert 20 <= float(told[2]) <= float(told[1]) + 21


def test_audio_faster_than_real_time(server: Shared) -> None:
    """An hour of it in seconds: what no caller could have said by now is dropped, and said once."""
    faster_than_real_time(server)


def test_audio_faster_than_real_time_that_is_recorded(tmp_path: Path) -> None:
    with server_process(tmp_path, LISTENER, "-t", "twilio", "--record", str(tmp_path / "calls")) as process:
        short_call(Shared.now(process))
        faster_than_real_time(Shared.now(process))


#: Each is padded, so that not too many of them are on the way when the caller is gone.
MESSAGES = [
    {"event": "dtmf", "dtmf": {"digit": "5"}},
    {"event": "mark", "mark": {"name": "never sent"}},
    {"event": "nonsense"},
    {"event": "media", "media": {"track": "outbound", "payload": "////" * 50}},
    {"event": "media", "media": {"payload": ""}},
    {"event": 7},
]


def test_other_messages_without_end(server: Shared) -> None:
    """Keys, marks, events of unknown kinds, the other track, nothing, and what cannot be read; a stream for each."""
    before_mb = server.process.memory_mb()
    streams = []
    for index, message in enumerate(MESSAGES):
        stream = RawStream(server.process.port)
        stream.send(twilio_start(f"CA{index}"))
        frames, begin = text_frame({**message, "padding": "x" * 2000}) * 50, time.monotonic()
        # For as long as a busy machine needs to read so many that it reads no more.
        while (flooded_s := time.monotonic() - begin) < 0.8 or f"CA{index} more than 500 messages" not in server.log():
            assert flooded_s < 20
            stream.flood(frames, 1, timeout_s=5)
        streams.append(stream)
    assert server.process.memory_mb() - before_mb < ROOM_MB
    for stream in streams:
        stream.close()
    for index in range(len(MESSAGES)):
        server.logged(f"CA{index} ended", timeout_s=30)
    log = server.log()
    assert len(log.splitlines()) < 80
    # A message costs a stranger more than the server: no more are read than a few hundred a second.
    found = re.findall(r"after ([\d.]+) s: .* (\d+) (?:unknown-event|no-event)", log)
    assert len(found) == 2
    assert all(3000 < int(count) <= 3000 + 500 * (float(seconds) + 0.5) for seconds, count in found)


def test_endless_messages_before_the_start(server: Shared) -> None:
    """Greetings, audio and keys, large ones, for as long as the start may take."""
    greeting = {"event": "connected", "protocol": "Call", "version": "1.0.0", "padding": "x" * 60_000}
    silence = json.dumps({"event": "media", "media": {"payload": "////" * 10_000}})
    before_mb = server.process.memory_mb()
    streams = [RawStream(server.process.port) for _ in range(3)]
    streams[0].flood(text_frame(greeting), 5000, timeout_s=1.0)
    streams[1].flood(text_frame(silence), 5000, timeout_s=1.0)
    streams[2].flood(twilio_audio(tone(500, 1000, 8000)), 1000, timeout_s=1.0)
    assert server.process.memory_mb() - before_mb < ROOM_MB
    # The first of what was said early is not lost, and the stream may still start.
    streams[2].close()
    started = RawStream(server.process.port)
    started.send(twilio_audio(tone(500, 100, 8000)), twilio_start("CAlate"))
    server.logged("call CAlate")
    for stream in (*streams, started):
        stream.close()
