"""A bot that is served for a call and fails: the verdict names what its process knows."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.environment import clean_process
from tests.providers.companies import load_provider
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.call import Cause
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.dial.report import name_causes
from wsvoice.dial.served_bot import ServedBot, bot_environment
from wsvoice.errors import UsageError

PIPELINE = """
import asyncio, time
from pipecat.frames.frames import ErrorFrame, InputAudioRawFrame, TTSSpeakFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.tts_service import TTSService
from pipecat.workers.runner import WorkerRunner

async def run(transport, *processors, greet=None):
    worker = PipelineWorker(Pipeline([transport.input(), *processors, transport.output()]))
    if greet is not None:
        @transport.event_handler("on_client_connected")
        async def on_client_connected(transport, client):
            await greet(worker)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
"""

RAISES = """
async def bot(runner_args):
    await step()

async def step():
    raise RuntimeError("boom")
"""

RAISES_IN_HANDLER = (
    PIPELINE
    + """
async def greet(worker):
    raise KeyError("greeting")

async def bot(runner_args):
    await run(runner_args.transport, greet=greet)
"""
)

RAISES_IN_PROCESSOR = (
    PIPELINE
    + """
class Repeat(FrameProcessor):
    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            raise ZeroDivisionError("no frames")
        await self.push_frame(frame, direction)

async def bot(runner_args):
    await run(runner_args.transport, Repeat())
"""
)

SERVICE_FAILS = (
    PIPELINE
    + """
class AcmeTTSService(TTSService):
    async def run_tts(self, text, context_id):
        yield ErrorFrame(error="name or service not known")

async def greet(worker):
    await worker.queue_frames([TTSSpeakFrame("Hello")])

async def bot(runner_args):
    await run(runner_args.transport, AcmeTTSService(), greet=greet)
"""
)

BLOCKS = (
    PIPELINE
    + """
async def greet(worker):
    time.sleep(3)

async def bot(runner_args):
    await run(runner_args.transport, greet=greet)
"""
)

RETURNS = """
async def bot(runner_args):
    pass
"""

EXITS_IN_A_TASK = """
import asyncio, sys

async def bot(runner_args):
    beside = asyncio.create_task(help_out())
    await asyncio.Event().wait()

async def help_out():
    sys.exit("no key")
"""

LISTENS = (
    PIPELINE
    + """
async def bot(runner_args):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input()]))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
"""
)

INTERRUPTS = """
async def bot(runner_args):
    raise KeyboardInterrupt
"""

RAISES_NO_EXCEPTION = """
class Enough(BaseException):
    pass

async def bot(runner_args):
    raise Enough("of it")
"""

REMOVES_SINKS = "from loguru import logger\nlogger.remove()\n" + SERVICE_FAILS

#: Bots that are served for a call of their own, from the file to the report.
WHOLE = {
    "processor": RAISES_IN_PROCESSOR,
    "blocks": BLOCKS,
}

#: Bots that share a server, which tells them apart by the number that is dialled.
SHARED = {
    "raises": RAISES,
    "exits": EXITS_IN_A_TASK,
    "interrupts": INTERRUPTS,
    "enough": RAISES_NO_EXCEPTION,
    "handler": RAISES_IN_HANDLER,
    "service": SERVICE_FAILS,
    # What one bot does to the log takes nothing from the others'.
    "no_sinks": REMOVES_SINKS,
    "returns": RETURNS,
    "listens": LISTENS,
}
NUMBERS = {name: f"+1555010100{number}" for number, name in enumerate(SHARED)}

SWITCHBOARD = f"""
import importlib

NAMES = { ({number: name for name, number in NUMBERS.items()}) }

async def bot(runner_args):
    await importlib.import_module(NAMES[runner_args.call.to_number]).bot(runner_args)
"""


@dataclass(frozen=True)
class Placed:
    """
    A call.

    Attributes:
        report: Its report; of a call to the shared server, with the causes that the server noted of it.
        log: What the server logged of it.
    """

    report: CallReport
    log: list[str]


async def place(target: str, **settings: object) -> tuple[CallReport, list[str]]:
    """Place a call; return its report, and what a bot that was served for it logged."""
    events: list[TimelineEvent] = []
    config = DialConfig(**{"target": target, "listen_s": 0.0, "response_timeout_s": 2.0, **settings})  # type: ignore[arg-type]
    report = await dial(config, on_event=events.append)
    return report, [event.text for event in events if event.kind == "log"]


async def place_shared(folder: Path, few: asyncio.Semaphore, clip: Path) -> dict[str, Placed]:
    """Serve the bots that share a server as a call serves its own, and place a call to each."""
    carriers, bots = load_provider("twilio").test_credentials(bytes(32))
    environ = bot_environment(os.environ, load_provider("twilio"), bots, None)
    log: list[str] = []

    def logged(report: CallReport) -> list[str]:
        return [line for line in log if f"{report.call_id[:8]}…{report.call_id[-4:]}" in line]

    async with ServedBot(str(folder / "switchboard.py"), "twilio", {}, environ, on_line=log.append) as served:

        async def call(number: str) -> CallReport:
            async with few:
                report, _ = await place(served.url, to_number=number, credentials=carriers, audio=(clip,))
            # The server may note what it knows a moment after the call.
            await until(lambda: any(" ended by " in line for line in logged(report)))
            causes = served.causes(report.call_id)
            assert report.failure is not None
            return replace(report, causes=causes, failure=name_causes(report.failure, causes))

        reports = await asyncio.gather(*map(call, NUMBERS.values()))
    return {name: Placed(report, logged(report)) for name, report in zip(NUMBERS, reports, strict=True)}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Placed]:
    """Place every call of this file, a few at a time, by the bot's name."""
    folder = tmp_path_factory.mktemp("causes")
    clip = folder / "clip.wav"
    write_wav(clip, [speech_like(400, 8000)], 8000)
    for name, source in {**WHOLE, **SHARED, "switchboard": SWITCHBOARD}.items():
        (folder / f"{name}.py").write_text(source)

    async def place_all() -> dict[str, Placed]:
        few = asyncio.Semaphore(4)

        async def place_whole(name: str) -> Placed:
            async with few:
                return Placed(*await place(str(folder / f"{name}.py"), audio=(clip,)))

        shared, *whole = await asyncio.gather(place_shared(folder, few, clip), *map(place_whole, WHOLE))
        return {**shared, **dict(zip(WHOLE, whole, strict=True))}

    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        patch.chdir(folder)
        return asyncio.run(place_all())


def line_of(source: str, text: str) -> int:
    return next(number for number, line in enumerate(source.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        (
            "raises",
            f"the bot crashed (it closed the call with 1011): RuntimeError: boom (raises.py:{line_of(RAISES, 'boom')})",
        ),
        (
            "exits",
            f"the bot crashed (it closed the call with 1011): SystemExit: no key"
            f" (exits.py:{line_of(EXITS_IN_A_TASK, 'sys.exit(')})",
        ),
        (
            "interrupts",
            "the bot crashed (it closed the call with 1011): KeyboardInterrupt"
            f" (interrupts.py:{line_of(INTERRUPTS, 'raise')})",
        ),
        (
            "enough",
            "the bot crashed (it closed the call with 1011): enough.Enough: of it"
            f" (enough.py:{line_of(RAISES_NO_EXCEPTION, 'raise')})",
        ),
        (
            "handler",
            "the bot never made a sound: on_client_connected: KeyError: 'greeting'"
            f" (handler.py:{line_of(RAISES_IN_HANDLER, 'KeyError')})",
        ),
        (
            "processor",
            "the bot never made a sound: Repeat: ZeroDivisionError: no frames"
            f" (processor.py:{line_of(RAISES_IN_PROCESSOR, 'ZeroDivisionError')})",
        ),
        ("service", "the bot never made a sound: AcmeTTSService: name or service not known"),
        ("no_sinks", "the bot never made a sound: AcmeTTSService: name or service not known"),
        ("returns", "the bot ended the call before it made a sound (1000)"),
        ("listens", "the bot never made a sound"),
    ],
)
def test_the_verdict_names_the_cause(calls: dict[str, Placed], name: str, failure: str) -> None:
    report = calls[name].report
    assert report.failure == failure
    assert report.to_lines()[-1] == f"failed: {failure}"


def test_a_blocked_event_loop_is_named(calls: dict[str, Placed]) -> None:
    report = calls["blocks"].report
    at = line_of(BLOCKS, "time.sleep(")
    assert re.fullmatch(
        "the bot never made a sound: the event loop was blocked for "
        rf"[0-9.]+ s at blocks\.py:{at} in (bot\.)?greet",
        str(report.failure),
    ), report.failure


def test_the_report_has_them_whole(calls: dict[str, Placed]) -> None:
    report = calls["processor"].report
    [cause] = report.to_dict()["causes"]
    assert (cause["kind"], cause["message"]) == ("exception", "Repeat: ZeroDivisionError: no frames")
    assert Path(cause["file"]).is_absolute()
    assert calls["returns"].report.causes == []


def test_the_bots_log_ends_with_the_cause(calls: dict[str, Placed]) -> None:
    def last(name: str) -> str:
        return next(line for line in reversed(calls[name].log) if " ended by " in line)

    assert "the bot raised RuntimeError: boom (raises.py:" in last("raises")
    assert "the bot called sys.exit('no key') (exits.py:" in last("exits")
    assert "the bot raised KeyboardInterrupt (interrupts.py:" in last("interrupts")
    assert "the bot raised Enough: of it (enough.py:" in last("enough")
    assert "the bot made no sound: AcmeTTSService: name or service not known" in last("service")
    assert "the bot made no sound: AcmeTTSService: name or service not known" in last("no_sinks")
    assert "Repeat: ZeroDivisionError: no frames (processor.py:" in last("processor")


def test_a_server_that_cannot_be_started_as_asked_is_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clean_process(monkeypatch)
    (tmp_path / "bot.py").write_text(RETURNS)
    with pytest.raises(UsageError) as caught:
        asyncio.run(place(f"{tmp_path / 'bot.py'}:misspelt"))
    assert caught.value.message == "bot.py has no coroutine function named `misspelt`"
    # The server's hint says `wsvoice run`, and what was typed is `wsvoice dial`.
    assert re.search(r"`wsvoice dial .*bot\.py:bot`", str(caught.value.hint))


def test_the_cause_that_explains_the_others_is_named() -> None:
    blocked = Cause("blocked", "the event loop was blocked for 5.0 s")
    service = Cause("service", "AcmeTTSService: no key")
    raised = Cause("exception", "RuntimeError: boom", "bots/bot.py", 12)
    assert name_causes("it failed", [blocked, service]) == "it failed: AcmeTTSService: no key"
    assert name_causes("it failed", [blocked, service, raised]) == "it failed: RuntimeError: boom (bot.py:12)"
    assert name_causes("it failed", []) == "it failed"
    report = CallReport("twilio", "bot.py", failure="it failed: AcmeTTSService: no key", causes=[blocked, service])
    assert report.to_lines() == ["in the bot: the event loop was blocked for 5.0 s", f"failed: {report.failure}"]
    assert json.loads(report.to_json())["causes"][0]["kind"] == "blocked"
