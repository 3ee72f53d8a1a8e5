"""Bots that control their call through the fake REST API: the whole of wsvoice, from the file to the report."""

from __future__ import annotations

import asyncio

import pytest

from tests.environment import clean_process
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial

HEAD = '''
import array, asyncio, base64, os, sys
import httpx
from pipecat.frames.frames import EndFrame, InputAudioRawFrame, OutputAudioRawFrame, OutputDTMFUrgentFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.workers.runner import WorkerRunner

calls = []

class Ear(FrameProcessor):
    """Notices when the caller has said something."""

    def __init__(self):
        super().__init__()
        self.quiet_s = None
        self.over = asyncio.Event()

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            if max(array.array("h", frame.audio), default=0) > 1000:
                self.quiet_s = 0.0
            elif self.quiet_s is not None:
                self.quiet_s += len(frame.audio) / 2 / frame.sample_rate
                if self.quiet_s > 0.2:
                    self.over.set()
        else:
            await self.push_frame(frame, direction)

async def say(runner_args, *, then, listen=True):
    transport, ear = runner_args.transport, Ear()
    worker = PipelineWorker(Pipeline([transport.input(), ear, transport.output()]))

    @transport.event_handler("on_client_connected")
    async def connected(transport, client):
        tone = b"".join((12000 if n % 20 < 10 else -12000).to_bytes(2, "little", signed=True) for n in range(4800))
        if listen:
            await ear.over.wait()
        await worker.queue_frame(OutputAudioRawFrame(tone, 16000, 1))
        await asyncio.sleep(0.6)
        await then(worker)

    await WorkerRunner(handle_sigint=False).run(worker)

async def ask(path, **options):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(API + path, **options)
        print("api answered", answer.status_code, file=sys.stderr)
'''
STREAMS_AGAIN_AND_DIALS_ON = """
API = os.environ["TWILIO_API_BASE_URL"]

async def bot(runner_args):
    call = runner_args.call
    calls.append(call.call_id)
    auth = (call.account_id, os.environ["TWILIO_AUTH_TOKEN"])
    path = f"/2010-04-01/Accounts/{call.account_id}/Calls/{call.call_id}.json"

    async def then(worker):
        if len(calls) == 1:
            await ask(path, auth=auth, data={"Url": "https://bot.invalid/", "Method": "POST"})
        else:
            print("the same call again", calls[0] == calls[1], file=sys.stderr)
            document = "<Response><Say>One moment</Say><Dial>+15550100009</Dial></Response>"
            await ask(path, auth=auth, data={"Twiml": document})

    await say(runner_args, then=then, listen=False)
"""
TRANSFERS = """
API = os.environ["TELNYX_API_BASE_URL"]

async def bot(runner_args):
    call, headers = runner_args.call, {"Authorization": "Bearer " + os.environ["TELNYX_API_KEY"]}

    async def then(worker):
        await ask(f"/calls/{call.call_id}/actions/send_dtmf", headers=headers, json={"digits": "12#"})
        await ask(f"/calls/{call.call_id}/actions/transfer", headers=headers, json={"to": "+15550100009"})

    await say(runner_args, then=then)
"""
PRESSES = """
API = ""

async def bot(runner_args):
    async def then(worker):
        await worker.queue_frame(OutputDTMFUrgentFrame.from_string("1234#"))
        await asyncio.sleep(0.3)
        await worker.queue_frame(EndFrame())

    await say(runner_args, then=then)
"""

#: By name: the provider, its quirks, and the source.
BOTS: dict[str, tuple[str, dict[str, str], str]] = {
    "streams_again_and_dials_on": ("twilio", {}, STREAMS_AGAIN_AND_DIALS_ON),
    "transfers": ("telnyx", {"webhook": "call-control"}, TRANSFERS),
    "presses": ("plivo", {}, PRESSES),
}

Placed = tuple[CallReport, list[TimelineEvent]]


def told(placed: Placed, kind: str) -> list[str]:
    return [event.text for event in placed[1] if event.kind == kind]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Placed]:
    """Place every call of this file at once, by the bot's name."""
    folder = tmp_path_factory.mktemp("commands")
    clip = folder / "clip.wav"
    write_wav(clip, [speech_like(200, 8000)], 8000)

    async def place(name: str) -> Placed:
        provider, quirks, source = BOTS[name]
        path = folder / f"{name}.py"
        path.write_text(HEAD + source)
        events: list[TimelineEvent] = []
        # The caller stays, so that it is the bot who ends the call, however busy the machine is.
        settings = {"transport": provider, "quirks": quirks, "audio": (clip,), "listen_s": 0.0, "duration_s": 30.0}
        return await dial(DialConfig(target=str(path), **settings), on_event=events.append), events

    async def place_all() -> list[Placed]:
        return await asyncio.gather(*map(place, BOTS))

    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        patch.chdir(folder)
        return dict(zip(BOTS, asyncio.run(place_all()), strict=True))


def found(placed: Placed) -> list[str]:
    # Servers that start beside a call may hold it up; its pace is looked at elsewhere.
    return [found.message for found in placed[0].findings if found.id != "M2"]


def test_a_call_goes_on_with_the_stream_of_another_document(calls: dict[str, Placed]) -> None:
    placed = calls["streams_again_and_dials_on"]
    assert sum("api answered 200" in line for line in told(placed, "log")) == 2
    assert any(line.startswith("the call's update leads to POST ") for line in told(placed, "webhook"))
    assert len(told(placed, "started")) == 2
    assert any("the same call again True" in line for line in told(placed, "log"))


def test_a_call_is_dialled_on_by_another_document(calls: dict[str, Placed]) -> None:
    placed = calls["streams_again_and_dials_on"]
    report = placed[0]
    assert "a real call goes on with: Say: One moment" in told(placed, "note")
    assert told(placed, "hang-up") == ["the bot transfers the call to +15550100009"]
    assert (report.ended_by, [found.id for found in report.findings if found.level == "fail"]) == ("bot", [])


def test_a_call_is_answered_by_a_command_and_transferred(calls: dict[str, Placed]) -> None:
    placed = calls["transfers"]
    assert (placed[0].failure, found(placed)) == (None, [])
    assert [text.rpartition(":")[0] for text in told(placed, "webhook")[1:]] == [
        "the webhook was told that the call was answered",
        "the webhook was told that the call is streaming",
        "the webhook was told that the call has ended",
    ]
    assert all(text.endswith(": 200") for text in told(placed, "webhook")[1:])
    assert told(placed, "digit") == ["the bot presses 12#"]
    assert told(placed, "hang-up") == ["the bot transfers the call to +15550100009"]
    assert placed[0].ended_by == "bot"


def test_a_bot_that_presses_keys_and_leaves_ends_the_call_through_the_api(calls: dict[str, Placed]) -> None:
    placed = calls["presses"]
    assert told(placed, "digit") == ["the bot presses 1234#"]
    assert placed[0].first_audio_ms is not None
    assert (placed[0].failure, found(placed)) == (None, [])
    assert placed[0].ended_by == "bot"
    assert told(placed, "hang-up") == ["the bot hangs up through the REST API"]
