"""Keys that are heard as tones."""

from __future__ import annotations

import numpy as np
import pytest

from tests.scenarios.menu_bot import key_tones
from tests.signals import speech_like
from wsvoice.audio import PCMU_8K
from wsvoice.audio.tones import find_tones


def heard(pcm: bytes) -> str:
    return "".join(tone.key for tone in find_tones(PCMU_8K.decode(PCMU_8K.encode(pcm)), 8000))


def test_every_key_is_heard() -> None:
    assert heard(key_tones("1234567890*#ABCD")) == "1234567890*#ABCD"


def test_a_key_that_is_pressed_twice_is_two_keys() -> None:
    assert heard(key_tones("1122", pause_ms=50)) == "1122"


def test_the_time_of_a_key_is_that_of_its_beginning() -> None:
    first, second = find_tones(bytes(2 * 8000) + key_tones("12"), 8000)
    assert first.at_ms == pytest.approx(1000, abs=20)
    assert second.at_ms == pytest.approx(1130, abs=20)


@pytest.mark.parametrize("seed", range(8))
def test_speech_is_no_key(seed: int) -> None:
    assert heard(speech_like(5000, 8000, seed=seed)) == ""


def test_noise_and_one_tone_are_no_keys() -> None:
    noise = np.random.default_rng(0).normal(0, 3000, 16000).astype("<i2").tobytes()
    tone = (8000 * np.sin(2 * np.pi * 697 * np.arange(8000) / 8000)).astype("<i2").tobytes()
    assert heard(noise) == heard(tone) == heard(b"") == ""
