"""Bots as pipecat's documentation had them before 1.0, run by the command line as their users would."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest

from tests.runner.carrier import announce, dialled
from tests.runner.pipecat.test_documented_features import question
from tests.runner.test_server import run
from tests.runner.test_session import wait_for

BOTS = Path(__file__).parents[2] / "bots"


async def call(url: str, number: int, log: list[str]) -> None:
    """Speak one sentence, and hang up once the bot has heard its end."""
    sid = f"CA{number:032d}"
    async with dialled(announce(url, sid), sid) as carrier:
        await carrier.speak(question(), paced=False)
        await wait_for(lambda: log.count("frame UserStoppedSpeakingFrame\n") == number, 20)
        await carrier.hang_up()


@pytest.mark.parametrize(
    ("name", "warnings"),
    [
        (
            "old_style_twilio.py",
            [
                "pipecat.transports.network.fastapi_websocket is now pipecat.transports.websocket.fastapi",
                "FastAPIWebsocketParams(vad_enabled=…) is now audio_in_enabled=…",
                "FastAPIWebsocketParams(vad_audio_passthrough=…) is now audio_in_passthrough=…",
                "FastAPIWebsocketParams(vad_analyzer=…) is from older pipecat: it works here",
                "TwilioFrameSerializer has no credentials: it does not hang up by itself",
            ],
        ),
        (
            "old_style_create_transport.py",
            [
                "pipecat.transports.network.fastapi_websocket is now pipecat.transports.websocket.fastapi",
                "FastAPIWebsocketParams(camera_out_enabled=…) is now video_out_enabled=…",
                "FastAPIWebsocketParams(vad_analyzer=…) is from older pipecat: it works here",
            ],
        ),
    ],
)
def test_two_calls_of_an_old_bot(tmp_path: Path, name: str, warnings: list[str]) -> None:
    """It loads, hears its callers speak, and every warning is given once."""
    with run(tmp_path, str(BOTS / name), "-t", "twilio") as (process, ready):
        log: list[str] = []
        stderr = process.stderr
        assert stderr is not None
        reader = threading.Thread(target=lambda: log.extend(stderr))
        reader.start()
        for number in (1, 2):
            asyncio.run(call(ready["url"], number, log))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        reader.join(10)
    about = ("Params(", "change the import", "Serializer")
    told = [line for line in log if "WARNING" in line and any(each in line for each in about)]
    assert len(told) == len(warnings), told
    for warning in warnings:
        assert any(warning in line for line in told), warning
    assert not [line for line in log if "Traceback" in line or "ERROR" in line]
    spoken = [line.split()[1] for line in log if line.startswith("frame ")]
    assert spoken == ["UserStartedSpeakingFrame", "InterruptionFrame", "UserStoppedSpeakingFrame"] * 2
