"""Pieces of audio are where they were heard, however many are put there at once."""

from __future__ import annotations

import random

import pytest

from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.trace.tracks import MAX_UNPLAYED_S, Track

PCM_8K = AudioFormat(Encoding.L16, 8000)


def one_by_one(format: AudioFormat, batches: list[tuple[list[float], list[bytes]]]) -> Track:
    track = Track(format)
    for times, payloads in batches:
        for at_s, payload in zip(times, payloads, strict=True):
            track.put(payload, at_s)
    return track


@pytest.mark.parametrize("format", [PCMU_8K, PCM_8K], ids=["coded", "pcm"])
@pytest.mark.parametrize("seed", range(20))
def test_many_at_once_are_where_each_would_be(format: AudioFormat, seed: int) -> None:
    chance, now = random.Random(seed), 0.0
    batches = []
    for _ in range(30):
        times, payloads = [], []
        # Most come in real time, some late, some early, some are odd, and some calls pause.
        size = chance.choice((160, 160, 160, 0, 161, 7)) * format.sample_width
        for _ in range(chance.randrange(1, 40)):
            now += chance.choice((0.02, 0.02, 0.02, 0.0, 0.021, 0.5 if chance.random() < 0.02 else 0.02))
            times.append(now)
            payloads.append(chance.randbytes(size + (chance.random() < 0.01)))
        batches.append((times, payloads))
    track, expected = Track(format), one_by_one(format, batches)
    for times, payloads in batches:
        track.put_all(times, payloads)
    assert track.ends_s == expected.ends_s
    assert track.take(track.ends_s) == expected.take(expected.ends_s)


def test_what_is_put_at_once_is_bounded() -> None:
    track, second = Track(PCMU_8K), bytes(8000)
    for _ in range(40):
        track.put_all([0.0] * 100, [second] * 100)
    assert MAX_UNPLAYED_S <= track.ends_s <= MAX_UNPLAYED_S + 1
