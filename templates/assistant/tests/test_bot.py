"""Calls the bot, as its provider would; conftest.py says when its services are real."""

import wave
from pathlib import Path

import numpy as np
import pytest

PROVIDERS = ["twilio"]

HERE = Path(__file__).parent
QUESTION = HERE / "question.wav"
GOODBYE = HERE / "goodbye.wav"


def join(path: Path, *parts: Path | float) -> Path:
    """Write the WAV file `path`, made of recordings and of pauses in seconds, and return it."""
    with wave.open(str(path), "wb") as joined:
        joined.setparams((1, 2, 8000, 0, "NONE", ""))
        for part in parts:
            if isinstance(part, Path):
                with wave.open(str(part)) as recording:
                    joined.writeframes(recording.readframes(recording.getnframes()))
            else:
                joined.writeframes(bytes(2 * int(8000 * part)))
    return path


def duration_ms(path: Path) -> float:
    with wave.open(str(path)) as recording:
        return 1000 * recording.getnframes() / recording.getframerate()


def is_sounding(heard: bytes, start_ms: float, end_ms: float) -> bool:
    """Return whether the bot made a sound in that part of the call."""
    samples = np.frombuffer(heard, "<i2")[int(8 * start_ms) : int(8 * end_ms)]
    return bool(np.any(np.abs(samples.astype(int)) > 500))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_greets_and_answers(dial, provider):
    report = dial("bot.py", provider=provider, audio=[QUESTION])

    assert report.verdict == "passed", report.failure
    assert report.first_audio_ms < report.turns[0].caller_start_ms
    assert report.turns[0].response_ms is not None
    assert report.ended_by == "caller"


def test_hangs_up_after_the_goodbye(dial):
    report = dial("bot.py", provider=PROVIDERS[0], audio=[GOODBYE])

    assert report.verdict == "passed", report.failure
    assert report.turns[0].response_ms is not None
    assert report.ended_by == "bot"


def test_lets_the_caller_interrupt(dial, tmp_path):
    pause_s = 3.0
    twice = join(tmp_path / "twice.wav", QUESTION, pause_s, QUESTION)

    report = dial("bot.py", provider=PROVIDERS[0], audio=[twice])

    assert report.verdict == "passed", report.failure
    again_ms = report.turns[0].caller_start_ms + duration_ms(QUESTION) + 1000 * pause_s
    assert is_sounding(report.heard, again_ms - 500, again_ms)
    # It needs a moment to notice, and then listens until the caller has finished.
    assert not is_sounding(report.heard, again_ms + 1000, again_ms + duration_ms(QUESTION))


def test_asks_a_silent_caller_and_hangs_up(dial, tmp_path):
    silence = join(tmp_path / "silence.wav", 0.5)

    report = dial("bot.py", provider=PROVIDERS[0], audio=[silence, silence], env={"BOT_IDLE_S": "1.5"})

    assert report.verdict == "passed", report.failure
    assert [turn.response_ms is not None for turn in report.turns] == [True, True]
    assert report.ended_by == "bot"
