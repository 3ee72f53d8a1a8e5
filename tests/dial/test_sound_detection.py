"""Where there is sound."""

from __future__ import annotations

import numpy as np
import pytest

from tests.signals import speech_like, tone
from wsvoice.audio import PCMU_8K
from wsvoice.dial.sound_detection import SoundDetector, audible_range, is_loud

RATE = 8000


def silence(ms: float) -> bytes:
    return bytes(2 * round(ms * RATE / 1000))


def heard(pcm: bytes, piece: int = 320) -> list[tuple[float, float]]:
    detector = SoundDetector(RATE)
    for at in range(0, len(pcm), piece):
        detector.feed(pcm[at : at + piece])
    detector.flush()
    return [(sound.start_ms, sound.end_ms) for sound in detector.sounds]


def test_silence_has_no_sound() -> None:
    assert heard(silence(500)) == []
    assert heard(PCMU_8K.decode(b"\x7f\xff" * 2000)) == []


def test_comfort_noise_is_no_sound() -> None:
    noise = (np.random.default_rng(1).standard_normal(RATE) * 32768 * 10 ** (-60 / 20)).astype("<i2").tobytes()
    assert heard(noise) == []


def test_a_click_is_no_sound() -> None:
    click = np.zeros(4000, "<i2")
    click[2000] = 2000
    assert heard(click.tobytes()) == []
    assert is_loud(click.tobytes())


@pytest.mark.parametrize("level_dbfs", [-38, -12])
@pytest.mark.parametrize("start_ms", [100, 107.5, 119.875])
def test_a_sound_is_found_to_within_a_millisecond(start_ms: float, level_dbfs: float) -> None:
    pcm = silence(start_ms) + tone(500, 250, RATE, level_dbfs) + silence(300)
    ((found_start, found_end),) = heard(pcm)
    assert found_start == pytest.approx(start_ms, abs=1)
    assert found_end == pytest.approx(start_ms + 250, abs=1)


def test_pauses_within_words_belong_to_the_sound() -> None:
    burst = tone(500, 100, RATE)
    pcm = burst + silence(150) + burst + silence(250) + burst
    found = heard(pcm)
    assert [round(start, -1) for start, _ in found] == [0, 600]
    assert [round(end, -1) for _, end in found] == [350, 700]


def test_where_the_stream_is_cut_makes_no_difference() -> None:
    pcm = silence(33) + speech_like(2500, RATE) + silence(400)
    whole = heard(pcm, len(pcm))
    assert len(whole) >= 1
    for piece in (2, 158, 320, 322, 1000):
        assert heard(pcm, piece) == whole


def test_the_same_sound_has_its_edges_at_the_same_places_wherever_it_is() -> None:
    speech = speech_like(1500, RATE)
    first, last = audible_range(speech, RATE) or (-1, -1)
    for delay in (0, 1, 77, 160, 1234):
        found = heard(bytes(2 * delay) + speech + silence(100))
        assert found[0][0] == pytest.approx((delay + first) / 8)
        assert found[-1][1] == pytest.approx((delay + last) / 8)


def test_a_sound_lasts_beyond_a_moment() -> None:
    detector = SoundDetector(RATE)
    detector.feed(tone(500, 100, RATE) + silence(300) + tone(500, 100, RATE) + silence(100))
    assert (found := detector.since(50)) is not None
    assert found.start_ms < 1
    assert (found := detector.since(200)) is not None
    assert found.start_ms == pytest.approx(400, abs=1)
    assert detector.since(550) is None
    assert detector.silent_ms(600) == pytest.approx(100, abs=1)


def test_a_file_of_silence_has_no_audible_range() -> None:
    assert audible_range(silence(100), RATE) is None
    assert audible_range(b"", RATE) is None
    assert not is_loud(b"")
