"""A caller that is a bot, stepped by hand."""

from __future__ import annotations

import asyncio

import pytest

from tests.signals import tone
from wsvoice.dial.caller_bot_audio import BUFFER_MS, LEAD_MS, CallerBotAudio
from wsvoice.dial.script import Step
from wsvoice.dial.sound_detection import SoundDetector

RATE = 8000
STEP = 320


class Line:
    """Steps a voice, and keeps what it said."""

    def __init__(self) -> None:
        self.detector = SoundDetector(RATE)
        self.voice = CallerBotAudio(self.detector, sample_rate=RATE, heard_rate=RATE)
        self.now_ms = 0.0
        self.said = b""
        self.steps: list[Step] = []

    def run(self, ms: float) -> None:
        for _ in range(round(ms / 20)):
            self.now_ms += 20
            step = self.voice.step(self.now_ms, audible_queued=False)
            self.steps.append(step)
            self.said += step.pcm + bytes(STEP - len(step.pcm))

    def say(self, pcm: bytes) -> None:
        """Say what there is room for."""

        async def now() -> None:
            await asyncio.wait_for(self.voice.say(pcm), 1)

        asyncio.run(now())


def test_nothing_is_said_before_there_is_something() -> None:
    line = Line()
    line.run(200)
    assert line.said == bytes(10 * STEP)
    assert not line.voice.done
    assert line.voice.turns() == []


def test_an_utterance_begins_when_enough_of_it_is_there() -> None:
    line = Line()
    sound = tone(500, 100, RATE)
    line.say(sound[:STEP])
    line.run(20)
    assert line.said == bytes(STEP)
    line.say(sound[STEP:])
    line.run(200)
    assert line.said.strip(b"\0") == sound.strip(b"\0")


def test_a_short_sound_does_not_wait_for_ever() -> None:
    line = Line()
    sound = tone(500, 20, RATE)
    line.say(sound)
    line.run(BUFFER_MS + 60)
    assert sound.strip(b"\0") in line.said


def test_a_pipeline_that_is_ahead_waits_for_the_line() -> None:
    line = Line()

    async def say() -> None:
        waiting = asyncio.create_task(line.voice.say(bytes(int(STEP * LEAD_MS / 20) + 2 * STEP)))
        await asyncio.sleep(0)
        assert not waiting.done()
        line.run(20)
        await asyncio.sleep(0)
        assert not waiting.done()
        line.run(60)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(say())


def test_an_interruption_forgets_what_is_queued_and_lets_the_pipeline_go_on() -> None:
    line = Line()

    async def say() -> None:
        waiting = asyncio.create_task(line.voice.say(tone(500, 1000, RATE)))
        await asyncio.sleep(0)
        line.run(100)
        line.voice.fall_silent()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(say())
    line.run(100)
    assert line.said[5 * STEP :] == bytes(5 * STEP)


def test_the_last_words_are_said_before_the_call_ends() -> None:
    line = Line()
    sound = tone(500, 100, RATE)
    line.say(sound)
    line.voice.hang_up()
    line.run(40)
    assert not line.voice.done
    line.run(200)
    assert line.voice.done
    assert line.voice.failure is None
    assert sound.strip(b"\0") in line.said


def test_a_failure_ends_the_call_at_once() -> None:
    line = Line()
    line.say(tone(500, 100, RATE))
    line.voice.hang_up("a bug")
    line.voice.hang_up("another one")
    line.run(20)
    assert (line.voice.done, line.voice.failure) == (True, "a bug")
    assert line.said == bytes(STEP)
    assert line.voice.missing(bot_ended=False) == "a bug"


def test_keys_are_pressed_and_what_is_heard_is_handed_on() -> None:
    line = Line()
    heard: list[bytes] = []
    line.voice.on_heard(heard.append)
    line.voice.hear(b"\1\2")
    line.voice.hear(b"")
    assert heard == [b"\1\2"]
    line.voice.press("1")
    line.voice.press("#")
    line.run(40)
    assert [step.digits for step in line.steps] == ["1#", ""]
    assert line.voice.digits_sent == "1#"


def test_turns_are_told_apart_by_ear() -> None:
    line = Line()
    for pause_ms in (300, 900, 900):
        line.say(tone(500, 100, RATE))
        line.run(160 + pause_ms)
    # The first two sounds are 360 ms apart, which is one turn; the third comes after nearly a second.
    first, second = line.voice.turns()
    assert first.caller_start_ms == pytest.approx(20, abs=45)
    assert first.caller_end_ms - first.caller_start_ms == pytest.approx(560, abs=45)
    assert second.caller_start_ms - first.caller_end_ms == pytest.approx(960, abs=45)
    assert [turn.response_ms for turn in (first, second)] == [None, None]
    kinds = [kind for step in line.steps for kind, _ in step.notes]
    assert kinds == ["caller-speaks", "caller-silent", "caller-speaks", "caller-silent"]

    line.detector.feed(bytes(2 * 8 * 800) + tone(400, 200, RATE) + bytes(2 * 8 * 100))
    first, second = line.voice.turns()
    assert first.response_ms == pytest.approx(800 - first.caller_end_ms, abs=5)
    assert second.response_ms is None
