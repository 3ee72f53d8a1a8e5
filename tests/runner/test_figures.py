"""What is told of running calls, and ending one from outside."""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled
from tests.runner.peers import RATE, peer
from tests.runner.test_session import wait_for
from tests.signals import tone
from wsvoice.audio import rms
from wsvoice.runner.figures import CallFigures, matching_ids
from wsvoice.runner.turns import LevelMeter

Serve = Callable[..., Any]
CALL = "CA00000000000000000000000000000001"
OTHER = "CA10000000000000000000000000000001"


class TestLevelMeter:
    def test_the_level_of_a_tone_is_that_of_its_samples(self) -> None:
        meter, pcm = LevelMeter(), tone(440, 20, 8000, level_dbfs=-12)
        for step in range(100):
            meter.note(rms(pcm), len(pcm), step * 0.02)
            # A sine's RMS level is 3 dB below its peak.
            assert meter.dbfs(step * 0.02) == pytest.approx(-15.01, abs=0.05)

    def test_what_was_loud_is_forgotten_after_a_second(self) -> None:
        meter = LevelMeter()
        for step in range(200):
            meter.note(8000.0 if step < 50 else 4.0, 320, step * 0.02)
            level = meter.dbfs(step * 0.02)
            assert level is not None
            if step < 50:
                assert level == pytest.approx(-12.2, abs=0.1)
            elif step >= 101:
                assert level == pytest.approx(-78.3, abs=0.1)

    def test_it_is_silent_without_sound_and_without_audio(self) -> None:
        meter = LevelMeter()
        assert meter.dbfs(0.0) is None
        meter.note(0.0, 320, 0.0)
        assert meter.dbfs(0.1) is None
        meter.note(8000.0, 320, 0.2)
        assert meter.dbfs(0.9) is not None
        assert meter.dbfs(1.3) is None
        # After a pause nothing is left of what was before.
        meter.note(0.0, 320, 5.0)
        assert meter.dbfs(5.0) is None


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (CALL, [CALL]),
        ("CA0", [CALL]),
        ("CA", [CALL, OTHER]),
        ("CA000000…0001", [CALL]),
        ("CA100000...0001", [OTHER]),
        ("v", ["v3:abc"]),
        ("0001", []),
        ("", []),
    ],
)
def test_a_call_is_found_by_whatever_of_its_id_is_known(given: str, found: list[str]) -> None:
    assert matching_ids([CALL, OTHER, "", CALL, "v3:abc"], given) == found


def test_a_whole_id_is_meant_where_it_begins_another_one() -> None:
    assert matching_ids(["call-1", "call-10"], "call-1") == ["call-1"]


def test_a_call_as_it_stands(serve: Serve) -> None:
    server = serve(bots.echo_8k)
    assert server.switchboard.calls() == []

    async def main() -> CallFigures:
        before = time.time()
        async with dialled(announce(server.url)) as carrier:
            clip = tone(440, 400, 8000, level_dbfs=-12)
            await carrier.speak(clip)
            await wait_for(lambda: len(carrier.heard()) >= len(clip))
            (figures,) = server.switchboard.calls()
            assert before <= figures.started_at <= time.time()
            await carrier.hang_up()
        return figures

    figures = asyncio.run(main())
    assert (figures.id, figures.kind, figures.provider) == (CALL, "call", "twilio")
    assert (figures.from_number, figures.to_number) == ("+15550100001", "+15550100002")
    assert (figures.direction, figures.pid) == ("inbound", os.getpid())
    assert 0.35 <= figures.age_s < 10
    assert figures.heard_dbfs == pytest.approx(-15.0, abs=0.3)
    assert figures.sent_dbfs == pytest.approx(-15.0, abs=1.0)
    assert figures.waits == 1
    assert figures.last_wait_s is not None
    assert 0 <= figures.last_wait_s < 2
    assert figures.heard_s == pytest.approx(0.4)
    assert figures.sent_s == pytest.approx(0.4)
    # 20 pieces of mu-law, each of 20 ms.
    assert (figures.bytes_in, figures.bytes_out) == (20 * 160, 20 * 160)
    assert pickle.loads(pickle.dumps(figures)) == figures
    assert replace(figures, waits=2) != figures
    server.ended()
    assert server.switchboard.calls() == []


def test_a_call_that_has_not_started_has_no_id(serve: Serve) -> None:
    server = serve(bots.echo_8k)

    async def main() -> None:
        async with dialled(f"{server.ws_url}ws", start=False):
            await wait_for(lambda: server.switchboard.calls())
            (figures,) = server.switchboard.calls()
            assert (figures.id, figures.heard_dbfs, figures.last_wait_s, figures.heard_s) == ("", None, None, 0)

    asyncio.run(main())


def test_a_plain_client_as_it_stands(serve: Serve) -> None:
    async def echo(runner_args: Any) -> None:
        await bots.run(runner_args.transport, bots.Echo(), audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)

    server = serve(echo, transport="websocket")

    async def main() -> CallFigures:
        async with peer(f"{server.ws_url}ws-client") as client:
            clip = tone(440, 200, RATE)
            await client.say(clip)
            await client.until_heard(len(clip))
            (figures,) = server.switchboard.calls()
        return figures

    figures = asyncio.run(main())
    assert (figures.kind, figures.provider, figures.from_number) == ("client", "websocket", "")
    assert figures.id == server.ended()[0].session_id
    size = len(tone(440, 200, RATE))
    assert figures.bytes_in >= size
    assert figures.bytes_out >= size
    assert figures.heard_dbfs is None


class TestEndingACall:
    def test_it_ends_as_if_the_bot_had_ended_it(self, serve: Serve) -> None:
        said = tone(600, 1000, 24000)
        server = serve(bots.says(said, then_end=False))

        async def main() -> tuple[float, tuple[int | None, str | None]]:
            async with dialled(announce(server.url)) as carrier:
                await carrier.until("media", 10)
                loop = server.switchboard.sessions.copy().pop()._loop
                asked = asyncio.run_coroutine_threadsafe(ask(server, CALL[:6]), loop)
                assert await asyncio.wrap_future(asked)
                return time.monotonic(), await carrier.closed()

        async def ask(server: Any, given: str) -> bool:
            assert server.switchboard.end_call("CA7", "asked by a test") is False
            ended: bool = server.switchboard.end_call(given, "asked by a test")
            return ended

        _, (code, _) = asyncio.run(main())
        (record,) = server.ended()
        assert (record.ended_by, record.reason) == ("server", "asked by a test")
        assert code == 1000
        # What was under way was played to its end.
        assert record.sent_s >= 0.2

    def test_of_two_calls_a_beginning_that_both_have_ends_neither(self, serve: Serve) -> None:
        server = serve(bots.echo_8k)

        async def main() -> None:
            other = FORM["CallSid"].replace("CA0", "CA1")
            async with (
                dialled(announce(server.url)) as one,
                dialled(announce(server.url, other), other) as two,
            ):
                await wait_for(lambda: len(server.switchboard.calls()) == 2)
                assert server.switchboard.end_call("CA", "asked") is False
                assert not server.records
                await one.hang_up()
                await two.hang_up()

        asyncio.run(main())
        assert {each.ended_by for each in server.ended(2)} == {"caller"}


def test_a_blocked_event_loop_is_told_while_it_is_blocked(serve: Serve) -> None:
    going_on = threading.Event()

    async def bot(runner_args: Any) -> None:
        going_on.wait(10)

    server = serve(bot)

    async def main() -> None:
        async with dialled(announce(server.url)):
            await wait_for(lambda: server.switchboard.workers()[0].lag_s > 0.5)
            going_on.set()
            await wait_for(lambda: server.switchboard.workers()[0].lag_s < 0.1)

    asyncio.run(main())
