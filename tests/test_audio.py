"""The codec, the resampler and WAV files, held against ITU-T G.711, soxr and the standard library."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
import wave
from collections.abc import Iterable
from fractions import Fraction
from io import BytesIO
from itertools import accumulate, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.signals import correlation_delay_ms, snr_db, speech_like, tone
from wsvoice.audio import (
    PCMU_8K,
    AudioFormat,
    Encoding,
    Resampler,
    compress,
    read_audio,
    resample,
    rms,
    write_wav,
)
from wsvoice.audio.samples import _LIVE, _filter
from wsvoice.errors import AudioFileError

# 16000 to 11024 has a common divisor of 16 only, for which the filter is laid out differently.
RATES = [
    (8000, 16000),
    (16000, 8000),
    (24000, 8000),
    (8000, 24000),
    (48000, 8000),
    (8000, 48000),
    (44100, 8000),
    (22050, 8000),
    (8000, 22050),
    (24000, 16000),
    (44100, 48000),
    (16000, 11024),
]
DOWN_TO_8K = [pair for pair in RATES if pair[1] == 8000]
UP_FROM_8K = [pair for pair in RATES if pair[0] == 8000]

PCMA_8K = AudioFormat(Encoding.PCMA)
L16_LITTLE = AudioFormat(Encoding.L16, 16000)
L16_BIG = AudioFormat(Encoding.L16, 16000, big_endian=True)


def samples(pcm: bytes) -> NDArray[np.float64]:
    return np.frombuffer(pcm, "<i2").astype(np.float64)


def pcm_of(values: Iterable[float]) -> bytes:
    return np.array(list(values)).astype("<i2").tobytes()


def in_frames(pcm: bytes, in_rate: int, out_rate: int, frame_ms: int = 20) -> bytes:
    """Resample as on a call, frame by frame."""
    resampler = Resampler(in_rate, out_rate)
    size = 2 * (in_rate * frame_ms // 1000)
    frames = [resampler.process(pcm[start : start + size]) for start in range(0, len(pcm), size)]
    return b"".join([*frames, resampler.flush()])


def dbfs(pcm: bytes) -> float:
    return 20 * math.log10(rms(pcm) / 32768)


def gain_db(freq_hz: float, in_rate: int, out_rate: int) -> float:
    """Return the level of whatever becomes of a tone, without the ends, where it is switched on and off."""
    sound = tone(freq_hz, 400, in_rate, level_dbfs=-6)
    out = in_frames(sound, in_rate, out_rate)
    middle = out[len(out) // 4 // 2 * 2 : -(len(out) // 4 // 2 * 2)]
    # Half a step of 16 bits is as silent as it gets, and keeps the logarithm finite.
    return 20 * math.log10(max(rms(middle), 0.5) / rms(sound))


def unwanted_db(pcm: bytes, freq_hz: float, sample_rate: int) -> float:
    """Return what is in a tone beside the tone, relative to it."""
    heard = samples(pcm)[sample_rate // 10 : -sample_rate // 10]
    phase = 2 * math.pi * freq_hz * np.arange(len(heard)) / sample_rate
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    wanted = basis @ np.linalg.lstsq(basis, heard, rcond=None)[0]
    return 10 * math.log10(float(np.mean((heard - wanted) ** 2) / np.mean(wanted**2)))


def expand_mulaw(code: int) -> int:
    """ITU-T G.711, table 2, scaled from 14 to 16 bits."""
    code ^= 0xFF
    magnitude = ((((code & 0x0F) << 1) + 33) << (code >> 4 & 7)) - 33
    return (-magnitude if code & 0x80 else magnitude) * 4


def expand_alaw(code: int) -> int:
    """ITU-T G.711, table 1, scaled from 13 to 16 bits."""
    code ^= 0x55
    segment, step = code >> 4 & 7, code & 0x0F
    magnitude = 2 * step + 1 if segment == 0 else (2 * step + 33) << (segment - 1)
    return (magnitude if code & 0x80 else -magnitude) * 8


# --- formats


@pytest.mark.parametrize(
    ("wire", "code", "value"),
    [
        (PCMU_8K, 0xFF, 0),
        (PCMU_8K, 0x80, 32124),
        (PCMU_8K, 0x00, -32124),
        (PCMU_8K, 0xFE, 8),
        (PCMA_8K, 0xD5, 8),
        (PCMA_8K, 0x55, -8),
        (PCMA_8K, 0xAA, 32256),
        (PCMA_8K, 0x2A, -32256),
    ],
)
def test_g711_landmarks(wire: AudioFormat, code: int, value: int) -> None:
    assert wire.decode(bytes([code])) == pcm_of([value])
    assert wire.encode(pcm_of([value])) == bytes([code])


@pytest.mark.parametrize(("wire", "expand"), [(PCMU_8K, expand_mulaw), (PCMA_8K, expand_alaw)])
def test_every_code_decodes_as_the_standard_says_and_encodes_to_itself(wire, expand) -> None:
    every = bytes(range(256))
    assert wire.decode(every) == pcm_of(map(expand, every))
    # mu-law has two zeros, of which the encoder uses the positive one.
    expected = every.replace(b"\x7f", b"\xff") if wire is PCMU_8K else every
    assert wire.encode(wire.decode(every)) == expected


@pytest.mark.parametrize(("wire", "expand"), [(PCMU_8K, expand_mulaw), (PCMA_8K, expand_alaw)])
def test_encoding_is_at_most_half_a_step_off(wire, expand) -> None:
    ladder = np.unique([expand(code) for code in range(256)])
    values = np.arange(ladder[0], ladder[-1] + 1)
    heard = samples(wire.decode(wire.encode(pcm_of(values))))
    steps = np.diff(ladder)
    at = np.searchsorted(ladder, heard)
    # Where the steps double, the wider one counts; the encoder looks at 14 bits of 16 at most.
    widest = np.maximum(np.append(steps, 0)[at], np.insert(steps, 0, 0)[at])
    assert np.all(np.abs(heard - values) <= widest / 2 + 3)


def test_mulaw_is_what_limits_a_telephone_calls_quality() -> None:
    speech = speech_like(2000, 8000)
    assert 34 < snr_db(speech, PCMU_8K.decode(PCMU_8K.encode(speech))) < 40


def test_linear_formats_keep_every_bit() -> None:
    assert L16_LITTLE.encode(b"\x01\x02\x03\x04") == b"\x01\x02\x03\x04"
    assert L16_BIG.encode(b"\x01\x02\x03\x04") == b"\x02\x01\x04\x03"
    speech = speech_like(100, 16000)
    for wire in (L16_LITTLE, L16_BIG):
        assert wire.decode(wire.encode(speech)) == speech


@pytest.mark.parametrize("wire", [PCMU_8K, PCMA_8K, L16_LITTLE, L16_BIG])
def test_half_a_sample_cannot_be_encoded(wire: AudioFormat) -> None:
    with pytest.raises(ValueError, match="odd length: 3"):
        wire.encode(b"abc")


@pytest.mark.parametrize("wire", [L16_LITTLE, L16_BIG])
def test_half_a_sample_cannot_be_decoded(wire: AudioFormat) -> None:
    with pytest.raises(ValueError, match="odd length: 5"):
        wire.decode(b"abcde")


@pytest.mark.parametrize("wire", [PCMU_8K, PCMA_8K, L16_LITTLE, L16_BIG])
def test_nothing_stays_nothing(wire: AudioFormat) -> None:
    assert wire.encode(b"") == wire.decode(b"") == wire.silence(0) == b""


@pytest.mark.parametrize(
    ("wire", "byte", "loudest"), [(PCMU_8K, 0xFF, 0), (PCMA_8K, 0xD5, 8), (L16_LITTLE, 0, 0), (L16_BIG, 0, 0)]
)
def test_silence_is_silent(wire: AudioFormat, byte: int, loudest: int) -> None:
    silence = wire.silence(320)
    assert silence == bytes([byte]) * 320
    assert np.max(np.abs(samples(wire.decode(silence)))) <= loudest


def test_sizes_and_durations() -> None:
    assert (PCMU_8K.encoding, PCMU_8K.sample_rate, PCMU_8K.sample_width) == ("PCMU", 8000, 1)
    assert PCMU_8K.bytes_for(20) == 160
    assert PCMU_8K.duration_ms(160) == 20
    assert L16_LITTLE.sample_width == 2
    assert L16_LITTLE.bytes_for(20) == 640
    assert L16_LITTLE.duration_ms(640) == 20
    # 0.3 ms are 2.4 samples; 22050 Hz has 220.5 samples in 10 ms.
    assert PCMU_8K.bytes_for(0.3) == 2
    assert AudioFormat(Encoding.L16, 22050).bytes_for(10) % 2 == 0


def test_audioops_deprecation_is_silenced_and_no_other() -> None:
    program = (
        "import warnings, wsvoice.audio\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.warn('mine', DeprecationWarning)\n"
        "print(len(seen))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", program], capture_output=True, text=True
    )
    assert (run.stdout.strip(), run.returncode) == ("1", 0)
    assert "audioop" not in run.stderr


# --- resampling: what arrives, and when


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_speech_is_not_shifted_in_time(in_rate: int, out_rate: int) -> None:
    speech = speech_like(2000, in_rate)
    # soxr's offline resampling is known not to shift.
    reference = soxr.resample(np.frombuffer(speech, "<i2"), in_rate, out_rate, quality="VHQ").tobytes()
    delay_ms, alike = correlation_delay_ms(reference, in_frames(speech, in_rate, out_rate), out_rate)
    assert abs(delay_ms) < 0.01
    assert alike > 0.999


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_a_tone_burst_stays_where_it_was(in_rate: int, out_rate: int) -> None:
    def burst(rate: int) -> bytes:
        # 1 kHz for a few milliseconds around 120 ms, as a function of time that any rate can sample.
        time_s = np.arange(rate // 4) / rate - 0.12
        envelope = np.exp(-((time_s / 0.003) ** 2))
        return pcm_of(np.rint(20000 * envelope * np.cos(2 * math.pi * 1000 * time_s)))

    heard = in_frames(burst(in_rate), in_rate, out_rate)
    delay_ms, alike = correlation_delay_ms(burst(out_rate), heard, out_rate)
    assert abs(delay_ms) < 0.01
    assert alike > 0.9999


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_what_is_held_back_is_a_few_milliseconds_and_as_announced(in_rate: int, out_rate: int) -> None:
    resampler = Resampler(in_rate, out_rate)
    assert 0 < resampler.delay_ms < 5
    frame = bytes(2 * (in_rate // 50))
    given = 0
    for number in range(1, 101):
        given += len(resampler.process(frame)) // 2
        held_ms = number * (in_rate // 50) * 1000 / in_rate - given * 1000 / out_rate
        # An output sample comes out as soon as the last input that it needs is in.
        assert resampler.delay_ms - 1000 / out_rate <= held_ms <= resampler.delay_ms + 1e-9


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_equal_rates_pass_through_at_once(rate: int) -> None:
    resampler = Resampler(rate, rate)
    speech = speech_like(200, rate)
    assert resampler.delay_ms == 0
    assert resampler.process(speech) == speech
    assert resampler.flush() == b""
    assert resample(speech, rate, rate) == speech


@given(
    pair=st.sampled_from([*RATES, (8000, 8000)]),
    sizes=st.lists(st.integers(0, 1500), max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_every_sample_is_accounted_for(pair: tuple[int, int], sizes: list[int]) -> None:
    in_rate, out_rate = pair
    resampler = Resampler(in_rate, out_rate)
    for _ in range(2):
        out = b"".join([*(resampler.process(bytes(2 * size)) for size in sizes), resampler.flush()])
        assert len(out) == 2 * round(sum(sizes) * out_rate / in_rate)
    assert len(resample(bytes(2 * sum(sizes)), in_rate, out_rate)) == len(out)


@given(
    pair=st.sampled_from([*RATES, (8000, 8000)]),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_chunks_of_any_size_give_the_same_output(pair: tuple[int, int], sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Behind noise, steps by one: halfway up is where rounding could go either way.
    steps = np.repeat(rng.integers(-1, 2, 10), 150)
    noise = pcm_of(np.append(rng.integers(-32768, 32768, 1500), steps))
    whole = Resampler(*pair)
    expected = whole.process(noise) + whole.flush()
    pieces = Resampler(*pair)
    out, start, turn = b"", 0, 0
    # Sizes are in bytes, so chunks end in the middle of samples too.
    while start < len(noise):
        size = sizes[turn % len(sizes)]
        out += pieces.process(noise[start : start + size])
        start, turn = start + size, turn + 1
    assert out + pieces.flush() == expected


def whole_factors(in_rate: int, out_rate: int) -> NDArray[np.int64]:
    """Return the live filter's factors at the rates' least common multiple, in units of 2**-24."""
    f = _filter(in_rate, out_rate, *_LIVE)
    pass_edge, rejection_db = _LIVE
    cutoff = (1 + pass_edge) * min(in_rate, out_rate) / 2 / (in_rate * f.up)
    taps = np.sinc(cutoff * np.arange(-f.reach, f.reach + 1)) * np.kaiser(
        2 * f.reach + 1, 0.1102 * (rejection_db - 8.7)
    )
    for phase in range(f.up):
        taps[phase :: f.up] *= 2**24 / taps[phase :: f.up].sum()
    return np.rint(taps).astype(np.int64)


def exactly(pcm: bytes, in_rate: int, out_rate: int) -> bytes:
    """Resample with one scalar product of whole numbers for each output."""
    f, factors = _filter(in_rate, out_rate, *_LIVE), whole_factors(in_rate, out_rate)
    said, out = np.frombuffer(pcm, "<i2").astype(np.int64), []
    for position in range(0, round(len(said) * out_rate / in_rate) * f.down, f.down):
        inputs = np.arange(max(0, -(-(position - f.reach) // f.up)), min(len(said), (position + f.reach) // f.up + 1))
        value = Fraction(int(said[inputs] @ factors[inputs * f.up - position + f.reach]), 2**24)
        out.append(min(max(round(value), -32768), 32767))
    return np.array(out).astype("<i2").tobytes()


@given(
    pair=st.sampled_from(list(permutations((8000, 11025, 16000, 22050, 24000, 48000), 2))),
    pieces=st.lists(st.tuples(st.integers(1, 1200), st.integers(1, 4)), min_size=1, max_size=5),
    loudness=st.sampled_from([1000, 14000, 32768]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_output_is_the_exact_sum_however_the_input_is_cut(
    pair: tuple[int, int], pieces: list[tuple[int, int]], loudness: int, seed: int
) -> None:
    # Several pieces of one length, as on a call, then several of another. The last half is quieter than the first.
    sizes = [size for size, times in pieces for _ in range(times)]
    noise = np.random.default_rng(seed).integers(-loudness, loudness, sum(sizes))
    noise[len(noise) // 2 :] //= 8
    pcm = noise.astype("<i2").tobytes()
    resampler, ends = Resampler(*pair), [0, *accumulate(2 * size for size in sizes)]
    out = b"".join(resampler.process(pcm[start:end]) for start, end in pairwise(ends))
    assert out + resampler.flush() == exactly(pcm, *pair)


@pytest.mark.parametrize(("in_rate", "out_rate"), [(24000, 8000), (8000, 16000), (8000, 24000)])
def test_what_is_too_loud_is_clipped_and_what_is_not_is_left_alone(in_rate: int, out_rate: int) -> None:
    f = _filter(in_rate, out_rate, *_LIVE)
    factors = whole_factors(in_rate, out_rate)
    # Of all sounds with one peak, that which makes the largest output: each input has the sign of its factor.
    loudest = max((factors[phase :: f.up] for phase in range(f.up)), key=lambda each: np.abs(each).sum())
    signs = np.where(loudest < 0, -1, 1)
    for peak in range(f.loudest - 2, f.loudest + 4):
        for sign in (1, -1):
            pcm = pcm_of(np.tile(sign * peak * signs, 2 * f.up))
            resampler = Resampler(in_rate, out_rate)
            assert resampler.process(pcm) + resampler.flush() == exactly(pcm, in_rate, out_rate)


@pytest.mark.parametrize(("in_rate", "out_rate"), [(24000, 8000), (8000, 16000), (16000, 11024)])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_single_samples_and_bytes_give_the_same_output(in_rate: int, out_rate: int, size: int) -> None:
    speech = speech_like(120, in_rate)
    resampler = Resampler(in_rate, out_rate)
    out = b"".join(resampler.process(speech[start : start + size]) for start in range(0, len(speech), size))
    assert out + resampler.flush() == in_frames(speech, in_rate, out_rate)


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_the_last_word_is_not_cut(in_rate: int, out_rate: int) -> None:
    sound = tone(700, 200, in_rate)
    out = in_frames(sound, in_rate, out_rate)
    last_10_ms = out[-2 * (out_rate // 100) :]
    assert dbfs(last_10_ms) == pytest.approx(dbfs(sound), abs=0.3)
    # Without the flush, the end would be missing.
    resampler = Resampler(in_rate, out_rate)
    held = len(out) - len(resampler.process(sound))
    assert 0 < held <= 2 * math.ceil(resampler.delay_ms * out_rate / 1000)


@pytest.mark.parametrize(("in_rate", "out_rate"), [(24000, 8000), (8000, 16000), (16000, 11024)])
def test_after_flush_and_reset_the_next_utterance_starts_afresh(in_rate: int, out_rate: int) -> None:
    first, second = speech_like(150, in_rate, seed=2), speech_like(150, in_rate, seed=3)
    expected = in_frames(second, in_rate, out_rate)
    resampler = Resampler(in_rate, out_rate)
    resampler.process(first + b"\x7f")
    resampler.flush()
    assert resampler.flush() == b""
    assert resampler.process(second) + resampler.flush() == expected
    resampler.process(first + b"\x7f")
    resampler.reset()
    assert resampler.process(second) + resampler.flush() == expected


@pytest.mark.parametrize(("in_rate", "out_rate"), [(0, 8000), (8000, -1), (8000, 999), (200_000, 8000)])
def test_impossible_rates_are_refused(in_rate: int, out_rate: int) -> None:
    with pytest.raises(ValueError, match="is not between 1000 and 192000 Hz"):
        Resampler(in_rate, out_rate)


def test_a_clip_with_a_prime_sample_rate_can_be_resampled() -> None:
    reference = tone(1000, 100, 8000)
    heard = resample(tone(1000, 100, 11027), 11027, 8000)
    assert len(heard) == len(reference)
    assert snr_db(reference[160:-160], heard[160:-160]) > 60


# --- resampling: what it sounds like


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
@pytest.mark.parametrize("change", [in_frames, resample])
def test_speech_is_as_good_as_16_bits_allow(change, in_rate: int, out_rate: int) -> None:
    def soxr_vhq(sound: NDArray[np.float64], from_rate: int, to_rate: int) -> NDArray[np.float64]:
        return soxr.resample(sound, from_rate, to_rate, quality="VHQ")

    # In the pass band (up to 3.4 kHz at 8 kHz) all resamplers should agree; above, each has its own slope.
    narrow = min(in_rate, out_rate) * 85 // 100
    speech = soxr_vhq(soxr_vhq(samples(speech_like(2000, in_rate)), in_rate, narrow), narrow, in_rate)
    speech_pcm = pcm_of(np.clip(np.rint(speech), -32768, 32767))
    reference = soxr_vhq(samples(speech_pcm), in_rate, out_rate)
    # Rounding to 16 bits is 73 dB below this speech; mu-law's error is at 37 dB.
    assert snr_db(pcm_of(np.rint(reference)), change(speech_pcm, in_rate, out_rate)) > 71


@pytest.mark.parametrize(("in_rate", "out_rate"), DOWN_TO_8K)
def test_full_band_speech_is_closer_to_soxr_than_mulaw_is(in_rate: int, out_rate: int) -> None:
    speech = speech_like(2000, in_rate)
    reference = soxr.resample(np.frombuffer(speech, "<i2"), in_rate, out_rate, quality="VHQ").tobytes()
    coded = PCMU_8K.decode(PCMU_8K.encode(reference))
    assert snr_db(reference, in_frames(speech, in_rate, out_rate)) > snr_db(reference, coded) + 3


@pytest.mark.parametrize(("in_rate", "out_rate"), DOWN_TO_8K)
@pytest.mark.parametrize("freq_hz", [4050, 4200, 5000, 6700, 7900])
def test_tones_above_4_khz_do_not_alias(in_rate: int, out_rate: int, freq_hz: int) -> None:
    assert gain_db(freq_hz, in_rate, out_rate) < -65


@pytest.mark.parametrize(("in_rate", "out_rate"), UP_FROM_8K)
@pytest.mark.parametrize("freq_hz", [1000, 3000, 3400])
def test_tones_have_no_images(in_rate: int, out_rate: int, freq_hz: int) -> None:
    out = in_frames(tone(freq_hz, 500, in_rate, level_dbfs=-6), in_rate, out_rate)
    assert unwanted_db(out, freq_hz, out_rate) < -70


@pytest.mark.parametrize(("in_rate", "out_rate"), DOWN_TO_8K + UP_FROM_8K)
@pytest.mark.parametrize("freq_hz", [100, 1000, 3000, 3400, 3500])
def test_the_telephone_band_is_flat(in_rate: int, out_rate: int, freq_hz: int) -> None:
    assert abs(gain_db(freq_hz, in_rate, out_rate)) < 0.05


def test_a_wide_band_keeps_more_than_a_telephone_does() -> None:
    assert abs(gain_db(7000, 24000, 16000)) < 0.05
    assert abs(gain_db(19000, 44100, 48000)) < 0.05


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_a_constant_stays_the_same_constant(in_rate: int, out_rate: int) -> None:
    for value in (1, -12345, 32767, -32768):
        out = samples(in_frames(pcm_of([value] * (in_rate // 10)), in_rate, out_rate))
        edge = out_rate // 100
        assert set(out[edge:-edge]) == {value}


@pytest.mark.parametrize(("in_rate", "out_rate"), RATES)
def test_too_loud_sound_is_clipped_and_never_wraps(in_rate: int, out_rate: int) -> None:
    half = in_rate // 200
    square = pcm_of(([32767] * half + [-32768] * half) * 20)
    out = samples(in_frames(square, in_rate, out_rate))
    # The filter overshoots at every edge of a full-scale square wave.
    assert out.max() == 32767
    assert out.min() == -32768
    time_s = np.arange(len(out)) / out_rate
    phase = time_s / (2 * half / in_rate) % 1
    assert np.all(out[(phase > 0.1) & (phase < 0.4)] > 30000)
    assert np.all(out[(phase > 0.6) & (phase < 0.9)] < -30000)


@pytest.mark.parametrize(("in_rate", "out_rate"), [(24000, 8000), (16000, 8000), (8000, 24000)])
def test_the_filter_is_symmetric_and_so_keeps_the_phase(in_rate: int, out_rate: int) -> None:
    # An impulse at a place that both rates have a sample at.
    impulse = np.zeros(in_rate // 10)
    impulse[in_rate // 20] = 30000
    out = samples(in_frames(pcm_of(impulse), in_rate, out_rate))
    centre = out_rate // 20
    reach = out_rate // 100
    np.testing.assert_array_equal(out[centre + 1 : centre + reach], out[centre - reach + 1 : centre][::-1])
    assert np.count_nonzero(out[centre + reach :]) == 0


def test_a_clip_keeps_more_of_the_upper_band_than_a_stream() -> None:
    sound = tone(3750, 500, 24000)
    assert dbfs(resample(sound, 24000, 8000)) == pytest.approx(dbfs(sound), abs=0.1)
    assert dbfs(in_frames(sound, 24000, 8000)) < dbfs(sound) - 3


def test_a_long_clip_is_the_same_as_its_parts_at_their_seams() -> None:
    # Longer than the pieces that it is worked through in.
    sound = tone(440, 3500, 24000)
    reference = tone(440, 3500, 8000)
    assert snr_db(reference[800:-800], resample(sound, 24000, 8000)[800:-800]) > 70


# --- level


def test_rms() -> None:
    assert rms(b"") == rms(bytes(320)) == 0
    assert rms(pcm_of([-32768] * 160)) == 32768
    assert rms(pcm_of([300, -400] * 10)) == pytest.approx(100 * math.sqrt(12.5), abs=1)
    assert rms(tone(1000, 100, 8000, level_dbfs=-6)) == pytest.approx(32768 * 10 ** (-6 / 20) / math.sqrt(2), abs=1)


# --- WAV files

GUID_TAIL = bytes.fromhex("0000 0000 1000 8000 00aa 0038 9b71")
RAMP = [0, 256, -256, 8192, -8192, 32512, -32768]


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)


def format_chunk(tag: int, bits: int, channels: int = 1, rate: int = 8000, extra: bytes = b"") -> bytes:
    frame = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits) + extra)


def riff(*chunks: bytes) -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def as_float(values: list[int], kind: str) -> bytes:
    return (np.array(values) / 32768).astype(kind).tobytes()


def extensible(tag: int, bits: int) -> bytes:
    return format_chunk(0xFFFE, bits, extra=struct.pack("<HHIH", 22, bits, 4, tag) + GUID_TAIL)


@pytest.mark.parametrize(
    ("header", "data", "tolerance"),
    [
        pytest.param(format_chunk(1, 8), bytes(value // 256 + 128 for value in RAMP), 0, id="8-bit"),
        pytest.param(format_chunk(1, 16), pcm_of(RAMP), 0, id="16-bit"),
        pytest.param(
            format_chunk(1, 24),
            b"".join((value * 256).to_bytes(3, "little", signed=True) for value in RAMP),
            0,
            id="24-bit",
        ),
        pytest.param(format_chunk(1, 32), (np.array(RAMP) * 65536).astype("<i4").tobytes(), 0, id="32-bit"),
        pytest.param(format_chunk(3, 32), as_float(RAMP, "<f4"), 0, id="float32"),
        pytest.param(format_chunk(3, 64), as_float(RAMP, "<f8"), 0, id="float64"),
        pytest.param(format_chunk(7, 8, extra=b"\0\0"), PCMU_8K.encode(pcm_of(RAMP)), 650, id="mu-law"),
        pytest.param(format_chunk(6, 8, extra=b"\0\0"), PCMA_8K.encode(pcm_of(RAMP)), 520, id="A-law"),
        pytest.param(extensible(1, 16), pcm_of(RAMP), 0, id="extensible-16-bit"),
        pytest.param(extensible(3, 32), as_float(RAMP, "<f4"), 0, id="extensible-float32"),
        pytest.param(extensible(7, 8), PCMU_8K.encode(pcm_of(RAMP)), 650, id="extensible-mu-law"),
    ],
)
def test_read_audio_codecs(tmp_path: Path, header: bytes, data: bytes, tolerance: int) -> None:
    path = tmp_path / "in.wav"
    path.write_bytes(riff(header, chunk(b"fact", bytes(4)), chunk(b"data", data)))
    pcm, sample_rate = read_audio(path)
    assert sample_rate == 8000
    assert np.max(np.abs(samples(pcm) - RAMP)) <= tolerance


@pytest.mark.parametrize("subtype", ["FLAC", "OGG", "MP3", "AIFF"])
def test_read_audio_takes_other_formats(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / f"in.{subtype.lower()}"
    speech = speech_like(500, 16000)
    soundfile.write(path, samples(speech) / 32768, 16000, format=subtype)
    pcm, sample_rate = read_audio(path)
    assert sample_rate == 16000
    # Ogg and MP3 leave out what nobody hears.
    assert len(pcm) == pytest.approx(len(speech), abs=2 * 1152 * 2)
    assert dbfs(pcm) == pytest.approx(dbfs(speech), abs=1)
    assert (pcm == speech) == (subtype in ("FLAC", "AIFF"))


def test_read_audio_mixes_channels_down(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    left, right = pcm_of([100, -200, 32767]), pcm_of([300, 200, 32767])
    write_wav(path, [left, right], 16000)
    assert read_audio(path) == (pcm_of([200, 0, 32767]), 16000)
    path.write_bytes(riff(format_chunk(1, 8, channels=3), chunk(b"data", bytes([128, 128, 131] * 2))))
    assert read_audio(str(path)) == (pcm_of([256, 256]), 8000)


def test_read_audio_steps_over_other_chunks_and_what_follows_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    odd = chunk(b"LIST", b"INFOISFT\x05\0\0\0Lavf!")
    assert len(odd) == 8 + 17 + 1
    path.write_bytes(riff(chunk(b"JUNK", bytes(27)), format_chunk(1, 16), odd, chunk(b"data", pcm_of(RAMP)), odd))
    assert read_audio(path) == (pcm_of(RAMP), 8000)


@pytest.mark.parametrize(
    ("riff_size", "data_size"), [(0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (36, 0), (0x7FFFFFFF, 0x7FFFFF00)]
)
def test_read_audio_takes_all_of_a_streamed_file(tmp_path: Path, riff_size: int, data_size: int) -> None:
    path = tmp_path / "in.wav"
    content = bytearray(riff(format_chunk(1, 16), b"data" + struct.pack("<I", data_size) + pcm_of(RAMP)))
    struct.pack_into("<I", content, 4, riff_size)
    # Cut off in the middle of a sample.
    path.write_bytes(bytes(content) + b"\x01")
    assert read_audio(path) == (pcm_of(RAMP), 8000)


def test_read_audio_survives_floats_that_are_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    data = struct.pack("<5f", math.nan, math.inf, -math.inf, 2.0, -2.0)
    path.write_bytes(riff(format_chunk(3, 32), chunk(b"data", data)))
    assert samples(read_audio(path)[0]).tolist() == [0, 32767, -32768, 32767, -32768]


def test_read_audio_agrees_with_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    speech = speech_like(300, 16000)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(speech)
    assert read_audio(path) == (speech, 16000)


GOOD_WAV = riff(format_chunk(1, 16), chunk(b"data", pcm_of(RAMP)))


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "", "ffmpeg -i "),
        (b"RIFF", "", "ffmpeg -i "),
        (GOOD_WAV[:30], "", "ffmpeg -i "),
        (riff(chunk(b"data", pcm_of(RAMP))), "", "ffmpeg -i "),
        (GOOD_WAV[:44], "has no sound in it", "again"),
        (riff(format_chunk(1, 16), chunk(b"data", b"")), "has no sound in it", "again"),
        (riff(format_chunk(1, 16), chunk(b"data", b""), chunk(b"LIST", b"INFO")), "has no sound in it", "again"),
        (riff(format_chunk(1, 16, channels=2), chunk(b"data", b"abc")), "has no sound", "again"),
        (b"Hello, this is text.", "Format not recognised", "ffmpeg -i "),
        (b"\0\0\0\x20ftypM4A " + bytes(100), "Format not recognised", "ffmpeg -i "),
        (riff(format_chunk(0x77, 8), chunk(b"data", b"abc")), "", "-ar 8000 -ac 1 out.wav"),
        (riff(format_chunk(1, 16, 0), chunk(b"data", b"abcd")), "Channel count is zero", "ffmpeg -i "),
        (riff(format_chunk(1, 16, 1, 500), chunk(b"data", b"abcd")), "claims 500 samples a second", "again"),
    ],
)
def test_read_audio_says_what_is_wrong(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / "in.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFileError) as caught:
        read_audio(path)
    assert message in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


def test_read_audio_of_a_missing_file_and_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"nowhere\.wav does not exist") as caught:
        read_audio(tmp_path / "nowhere.wav")
    assert caught.value.hint
    assert caught.value.exit_code == 2
    with pytest.raises(AudioFileError, match="cannot be read: Is a directory"):
        read_audio(tmp_path)


def test_the_conversion_in_the_hint_can_be_pasted(tmp_path: Path) -> None:
    path = tmp_path / "my song.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    with pytest.raises(AudioFileError) as caught:
        read_audio(path)
    assert f"ffmpeg -i '{path}' -ar 8000 -ac 1 out.wav" in str(caught.value.hint)


@given(position=st.integers(0, len(GOOD_WAV) - 1), junk=st.binary(max_size=40), cut=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, junk: bytes, cut: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.wav"
    rest = b"" if cut else GOOD_WAV[position + len(junk) :]
    path.write_bytes(GOOD_WAV[:position] + junk + rest)
    try:
        pcm, sample_rate = read_audio(path)
    except AudioFileError:
        return
    assert pcm
    assert len(pcm) % 2 == 0
    assert 1000 <= sample_rate <= 192_000


def test_write_wav_pads_the_shorter_channel(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    write_wav(path, [pcm_of([1, 2, 3]), pcm_of([-1])], 8000)
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (2, 2, 8000, 3)
        assert file.readframes(3) == pcm_of([1, -1, 2, 0, 3, 0])


def test_write_wav_of_a_call_in_which_nobody_spoke(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    write_wav(path, [b"", b""], 8000)
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (2, 2, 8000, 0)


def test_write_wav_refuses_what_is_no_sound_before_it_touches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    with pytest.raises(ValueError, match="at least one channel"):
        write_wav(path, [], 8000)
    with pytest.raises(ValueError, match="buffer size"):
        write_wav(path, [b"abc"], 8000)
    assert not path.exists()


def test_tracks_are_compressed_without_loss_or_as_small_as_they_have_to_be() -> None:
    tracks = [np.frombuffer(speech_like(ms, 8000, seed), "<i2") for seed, ms in ((1, 9000), (2, 8000))]
    length = 10 * 8000
    whole = compress(tracks, 8000, length, limit=10**6)
    assert whole.media_type == "audio/flac"
    frames, rate = soundfile.read(BytesIO(whole.content), dtype="int16")
    assert (frames.shape, rate) == ((length, 2), 8000)
    for number, track in enumerate(tracks):
        assert np.array_equal(frames[: len(track), number], track)
        assert not frames[len(track) :, number].any()
    sizes = []
    for limit in (60_000, 30_000):
        lossy = compress(tracks, 8000, length, limit=limit)
        assert lossy.media_type == "audio/ogg"
        assert len(lossy.content) <= limit
        heard, _ = soundfile.read(BytesIO(lossy.content), dtype="int16")
        # To the sample, or the cursor would not be where the sound is.
        assert len(heard) == length
        assert np.corrcoef(heard[:, 0], frames[:, 0])[0, 1] > 0.97
        sizes.append(len(lossy.content))
    assert sizes[1] < sizes[0] < len(whole.content)
