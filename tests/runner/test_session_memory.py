"""What is left of a call when it is over: nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.attacks.raw_websocket import RawStream, text_frame, twilio_audio, twilio_start
from tests.process import server_process
from tests.signals import tone

#: Tells what there is of earlier calls, each time it is called.
COUNTS = """
    import gc
    import json
    import sys
    from collections import Counter

    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.workers.runner import WorkerRunner

    KINDS = ("MediaSocket", "Session", "CallTransport", "CallRecorder", "PipelineWorker", "CallArguments")


    async def bot(runner_args):
        gc.collect()
        found = Counter(type(each).__name__ for each in gc.get_objects() if type(each).__name__ in KINDS)
        print("COUNTS", json.dumps(found), file=sys.stderr, flush=True)
        transport = runner_args.transport
        worker = PipelineWorker(Pipeline([transport.input(), transport.output()]), params=PipelineParams())
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""


@pytest.mark.parametrize("options", [(), ("--record", "calls")], ids=["", "recorded"])
def test_calls_leave_nothing_behind(tmp_path: Path, options: tuple[str, ...]) -> None:
    with server_process(tmp_path, COUNTS, "-t", "twilio", *options) as server:
        for index in range(6):
            stream = RawStream(server.port)
            stream.send(twilio_start(f"CA{index}"), twilio_audio(tone(500, 100, 8000)), text_frame({"event": "stop"}))
            server.logged(f"CA{index} ended by", timeout_s=20)
            stream.close()
        counts = [json.loads(line.split(" ", 1)[1]) for line in server.log().splitlines() if line.startswith("COUNTS")]
    assert len(counts) == 6
    assert counts[0]["Session"] == 1
    # The call that counts, and perhaps the one before it, whose last task is about to end.
    assert all(count <= 2 for count in counts[-1].values()), counts
