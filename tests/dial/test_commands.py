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

HEAD = """
import asyncio, base64, os, sys
import httpx
from pipecat.frames.frames import OutputAudioRawFrame, OutputDTMFUrgentFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.workers.runner import WorkerRunner

calls = []

async def say(runner_args, *, then):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), transport.output()]))

    @transport.event_handler("on_client_connected")
    async def connected(transport, client):
        tone = b"".join((12000 if n % 20 < 10 else -12000).to_bytes(2, "little", signed=True) for n in range(4800))
        await worker.queue_frame(OutputAudioRawFrame(tone, 16000, 1))
        await asyncio.sleep(0.6)
        await then(worker)

    await WorkerRunner(handle_sigint=False).run(worker)

async def ask(path, **options):
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.post(API + path, **options)
        print("api answered", answer.status_code, file=sys.stderr)
"""
TWILIO = """
API = os.environ["TWILIO_API_BASE_URL"]

async def bot(runner_args):
    call = runner_args.call
    calls.append(call.call_id)
    auth = (call.account_id, os.environ["TWILIO_AUTH_TOKEN"])
    update = {update}

    async def then(worker):
        if len(calls) == 1:
            await ask(f"/2010-04-01/Accounts/{{call.account_id}}/Calls/{{call.call_id}}.json", auth=auth, data=update)
        else:
            print("the same call again", calls[0] == calls[1], file=sys.stderr)
            await worker.cancel()

    await say(runner_args, then=then)
"""
DIALS_ON = TWILIO.format(update='{"Twiml": "<Response><Say>One moment</Say><Dial>+15550100009</Dial></Response>"}')
STREAMS_AGAIN = TWILIO.format(update='{"Url": "https://bot.invalid/", "Method": "POST"}')
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
        await worker.cancel()

    await say(runner_args, then=then)
"""

BOTS = {
    "dials_on": ("twilio", DIALS_ON),
    "streams_again": ("twilio", STREAMS_AGAIN),
    "transfers": ("telnyx", TRANSFERS),
    "presses": ("plivo", PRESSES),
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
        provider, source = BOTS[name]
        path = folder / f"{name}.py"
        path.write_text(HEAD + source)
        events: list[TimelineEvent] = []
        # The caller stays, so that it is the bot who ends the call, however busy the machine is.
        config = DialConfig(target=str(path), transport=provider, audio=(clip,), listen_s=0.0, duration_s=30.0)
        return await dial(config, on_event=events.append), events

    async def place_all() -> list[Placed]:
        return await asyncio.gather(*map(place, BOTS))

    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        patch.chdir(folder)
        return dict(zip(BOTS, asyncio.run(place_all()), strict=True))


def test_a_call_is_dialled_on_by_another_document(calls: dict[str, Placed]) -> None:
    placed = calls["dials_on"]
    report = placed[0]
    assert any("api answered 200" in line for line in told(placed, "log"))
    assert "a real call goes on with: Say: One moment" in told(placed, "note")
    assert told(placed, "hang-up") == ["the bot transfers the call to +15550100009"]
    assert (report.ended_by, [found.id for found in report.findings if found.level == "fail"]) == ("bot", [])


def test_a_call_goes_on_with_the_stream_of_another_document(calls: dict[str, Placed]) -> None:
    placed = calls["streams_again"]
    report = placed[0]
    assert any(line.startswith("the call's update leads to POST ") for line in told(placed, "webhook"))
    assert len(told(placed, "started")) == 2
    assert any("the same call again True" in line for line in told(placed, "log"))
    assert (report.ended_by, [found.id for found in report.findings if found.level == "fail"]) == ("bot", [])


def test_a_call_is_transferred(calls: dict[str, Placed]) -> None:
    placed = calls["transfers"]
    assert told(placed, "digit") == ["the bot presses 12#"]
    assert told(placed, "hang-up") == ["the bot transfers the call to +15550100009"]
    assert placed[0].ended_by == "bot"


def test_keys_are_pressed_on_the_stream(calls: dict[str, Placed]) -> None:
    placed = calls["presses"]
    assert told(placed, "digit") == ["the bot presses 1234#"]
    assert placed[0].ended_by == "bot"
    assert [found for found in placed[0].findings if found.id == "M1"] == []
