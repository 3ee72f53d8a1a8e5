"""Bots that cannot keep up: what the caller goes on saying does not pile up without end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from pipecat.frames.frames import Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from tests.runner import bots
from tests.runner.carrier import announce, dialled
from tests.runner.test_session import wait_for
from tests.signals import tone
from wsvoice.runner.pipecat import call_transport

Serve = Callable[..., Any]


class Stuck(FrameProcessor):
    """Does not let the caller's audio pass until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.released = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            await self.released.wait()
        await self.push_frame(frame, direction)


class Passing(FrameProcessor):
    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


@pytest.mark.parametrize("before", [0, 2], ids=["at the transport", "further behind"])
def test_frames_do_not_pile_up(serve: Serve, monkeypatch: pytest.MonkeyPatch, before: int) -> None:
    monkeypatch.setattr(call_transport, "MAX_WAITING_FRAMES", 50)
    stuck: list[Stuck] = []
    listener = bots.Listener()

    async def bot(runner_args: Any) -> None:
        stuck.append(Stuck())
        await bots.run(
            runner_args.transport, *[Passing() for _ in range(before)], stuck[0], listener, audio_in_sample_rate=8000
        )

    server = serve(bot)

    async def main() -> None:
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: bool(stuck))
            await carrier.speak(tone(500, 4000, 8000), paced=False)
            await wait_for(lambda: server.lines("so far behind"))
            # Whatever has come by now was looked at: the rest is in the queue.
            await asyncio.sleep(0.3)
            stuck[0].loop.call_soon_threadsafe(stuck[0].released.set)
            await wait_for(lambda: len(listener.audio) >= 320 * 40)
            await carrier.speak(tone(900, 200, 8000))
            await carrier.hang_up()

    asyncio.run(main())
    (record,) = server.ended()
    assert len(server.lines("WARNING", "so far behind")) == 1
    assert 100 <= record.faults["unread"] <= 160
    assert len(listener.audio) == 320 * (210 - record.faults["unread"])


def test_marks_that_never_come_back(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do marks pile up, of a carrier that returns none, or returns what nobody set."""
    monkeypatch.setattr(call_transport, "MAX_MARKS", 10)
    kept: list[int] = []
    told: list[str] = []

    async def bot(runner_args: Any) -> None:
        @runner_args.transport.event_handler("on_mark")
        async def on_mark(_: Any, name: str, played: bool) -> None:
            told.append(name)

        for number in range(100):
            await runner_args.transport.send_mark(f"mark {number}")
        kept.append(len(runner_args.transport._marks))
        await bots.run(runner_args.transport)

    server = serve(bot)

    async def main() -> None:
        async with dialled(announce(server.url)) as carrier:
            carrier.echo_marks = False
            await carrier.until("mark", 100)
            for name in ("nobody's", "mark 5", "mark 99", "mark 99"):
                await carrier.send({"event": "mark", "streamSid": carrier.stream_sid, "mark": {"name": name}})
            await carrier.speak(tone(500, 100, 8000))
            await wait_for(lambda: told)
            await carrier.hang_up()

    asyncio.run(main())
    assert kept == [10]
    assert told == ["mark 99"]
    assert server.ended()[0].faults == {}
