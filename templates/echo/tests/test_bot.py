"""Calls the bot, as its telephone company would."""

import math
import struct
import wave

import numpy as np
import pytest

PROVIDERS = ["twilio"]
RATE = 8000  # the telephone's


@pytest.fixture
def tone(tmp_path):
    """A second of 440 Hz to say to the bot."""
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        samples = (8000 * math.sin(2 * math.pi * 440 * n / RATE) for n in range(RATE))
        file.writeframes(b"".join(struct.pack("<h", round(sample)) for sample in samples))
    return path


@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_repeats_the_caller(dial, tone, provider):
    report = dial("bot.py", provider=provider, audio=[tone])

    assert report.verdict == "passed", report.failure
    assert report.turns[0].response_ms < 500
    heard = np.frombuffer(report.heard, "<i2")
    loudest_hz = np.argmax(np.abs(np.fft.rfft(heard))) * RATE / len(heard)
    assert loudest_hz == pytest.approx(440, abs=3)
