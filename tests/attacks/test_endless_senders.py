"""Callers that send without end: what they cost is bounded, and the log stays readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.attacks.raw import RawStream, text_frame, twilio_audio, twilio_start
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


def short_call(server: ServerProcess) -> None:
    """Make the server load and allocate what every call needs."""
    stream = RawStream(server.port)
    stream.send(twilio_start("CA" + "0" * 32), twilio_audio(tone(500, 200, 8000)), text_frame({"event": "stop"}))
    server.logged("ended by the caller")
    stream.close()


def flooded(server: ServerProcess, frames: bytes, times: int, *, timeout_s: float = 4) -> float:
    """Flood a call with `frames`; return by how many MB the process has grown at most."""
    short_call(server)
    before_mb = server.memory_mb()
    stream = RawStream(server.port)
    stream.send(twilio_start())
    server.logged("1" * 32)
    stream.flood(frames, times, timeout_s=timeout_s)
    grown_mb = server.memory_mb() - before_mb
    stream.close()
    return max(grown_mb, server.memory_mb() - before_mb)


@pytest.mark.parametrize("record", [False, True], ids=["", "recorded"])
def test_audio_faster_than_real_time(tmp_path: Path, record: bool) -> None:
    """An hour of it in seconds: what no caller could have said by now is dropped, and said once."""
    options = ["--record", str(tmp_path / "calls")] if record else []
    with server_process(tmp_path, LISTENER, "-t", "twilio", *options) as server:
        assert flooded(server, twilio_audio(tone(500, 1000, 8000)), 3600) < ROOM_MB
        log = server.logged(" ahead, ", timeout_s=20)
        assert log.count("more audio than could have been said") == 1
        assert log.count("messages a second") == 1
        summary = next(line for line in log.splitlines() if " ahead, " in line)
        told = re.search(r"after ([\d.]+) s: .*heard ([\d.]+) s", summary)
        assert told
        # Real time, and what a network may have kept.
        assert 20 <= float(told[2]) <= float(told[1]) + 21


#: Each is padded, so that not too many of them are on the way when the caller is gone.
MESSAGES = [
    {"event": "dtmf", "dtmf": {"digit": "5"}},
    {"event": "mark", "mark": {"name": "never sent"}},
    {"event": "nonsense"},
    {"event": "media", "media": {"track": "outbound", "payload": "////" * 50}},
    {"event": "media", "media": {"payload": ""}},
    {"event": 7},
]


def test_other_messages_without_end(tmp_path: Path) -> None:
    """Keys, marks, events of unknown kinds, the other track, nothing, and what cannot be read; a stream for each."""
    with server_process(tmp_path, LISTENER, "-t", "twilio") as server:
        short_call(server)
        before_mb = server.memory_mb()
        streams = []
        for index, message in enumerate(MESSAGES):
            stream = RawStream(server.port)
            stream.send(twilio_start(f"CA{index}"))
            stream.flood(text_frame({**message, "padding": "x" * 1000}) * 100, 1000, timeout_s=0.7)
            streams.append(stream)
        assert server.memory_mb() - before_mb < ROOM_MB
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
