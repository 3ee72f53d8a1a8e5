"""A caller's bot, without a call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.signals import tone
from wsvoice.call import Call
from wsvoice.dial.caller_bot import CallerBot
from wsvoice.dial.caller_bot_audio import CallerBotAudio
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.isolation import run_interruptibly

BOT = Path(__file__).parents[1] / "bots" / "calls_back.py"
CALL = Call(provider="twilio", call_id="CA1", stream_id="MZ1", from_number="+15550100001")
RATE = 8000


def voice() -> CallerBotAudio:
    return CallerBotAudio(SoundDetector(RATE), sample_rate=RATE, heard_rate=RATE)


def test_what_is_heard_before_the_pipeline_is_up_is_not_lost() -> None:
    async def call() -> tuple[CallerBotAudio, bytes]:
        bot, ears = CallerBot(f"{BOT}:slow_caller", print), voice()
        bot.start(ears, CALL)
        said = b""
        sound = tone(700, 20, RATE)
        async with asyncio.timeout(20):
            number = 0
            while not ears.done:
                number += 1
                # It is spoken to from the first turn of the loop on, and after a while there is silence.
                ears.hear(sound if number < 200 else bytes(len(sound)))
                said += ears.step(20.0 * number, audible_queued=False).pcm
                await asyncio.sleep(0.001 if number < 200 else 0.01)
        await bot.finish()
        return ears, said

    ears, said = asyncio.run(call())
    assert ears.failure is None
    # Both tones, of 0.4 s each: the second one is said only after it has heard something.
    assert len(said) / 2 / RATE > 0.7


def test_a_bot_that_does_not_end_is_ended() -> None:
    async def call() -> CallerBotAudio:
        bot, ears = CallerBot(f"{BOT}:stubborn", print), voice()
        bot.start(ears, CALL)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await bot.finish(0.05)
        return ears

    assert asyncio.run(call()).failure is None


@pytest.mark.parametrize("name", ["exits", "exits_in_a_task"])
def test_an_exit_ends_its_call_and_not_the_caller(name: str) -> None:
    lines: list[str] = []

    async def call() -> CallerBotAudio:
        bot, ears = CallerBot(f"{BOT}:{name}", lines.append), voice()
        bot.start(ears, CALL)
        async with asyncio.timeout(10):
            while ears.failure is None:
                await asyncio.sleep(0.01)
        await bot.finish(0.05)
        return ears

    assert f"calls_back.py:{name} called sys.exit('enough') (calls_back.py:" in (
        run_interruptibly(call()).failure or ""
    )
    assert any("in exits" in line for line in lines)
