"""What one caller heard, read after the call: sounds, answers, gaps, and how late its echo came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import AUDIBLE_LEVEL, resample
from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.load.echo import Match, match
from wsvoice.dial.load.sound import Signal, Speech, signal
from wsvoice.dial.playback import MAX_UNDERRUN_MS, Playback
from wsvoice.dial.script import measure_turns
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.dial.stream_opening import opening_messages
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Simulator
from wsvoice.providers.events import Audio, Clear, StreamStarted

Milliseconds = NDArray[np.float64]
Echo = Literal["exact", "resampled", "none"]

#: What is not measured of an echo: how a pipeline starts, and what the hang-up cuts off.
WARM_UP_S, TAIL_S = 1.0, 0.5
#: The share of what was heard that an echo bot echoes.
ECHO_SHARE = 0.5
#: How many pieces that a caller has not said are kept, to look for whose they are.
STRANGE_KEPT = 3


@dataclass
class Recording:
    """
    One call as it was: what was sent, what came, and when, on the clock of :func:`time.monotonic`.

    Attributes:
        number: The caller's number.
        started: The stream's start.
        speech: What was said.
        frame_ms: How much audio a message of the caller's holds.
        up_at: When the stream started.
        ended_at: When it ended.
        sent_at: When each message of audio was sent.
        late_s: How much later than it was due.
        times: When each message came.
        messages: What came.
    """

    number: int
    started: StreamStarted
    speech: Speech
    frame_ms: int
    up_at: float
    ended_at: float
    sent_at: Sequence[float]
    late_s: Sequence[float]
    times: Sequence[float]
    messages: Sequence[str | bytes]


@dataclass
class Hearing:
    """
    What a call was like for its caller; times are in milliseconds.

    Attributes:
        failure: What the bot sent that its provider would refuse, or that it was silent; ``None`` if all was well.
        first_audio_ms: From the stream's start to the bot's first sound.
        response_ms: How long the caller waited for each answer.
        unanswered: The number of the first turn without one; 0 if there is none.
        received_audio_ms: Audio received.
        underruns: How often a sound broke off because the audio came too late.
        gap_ms: How long these breaks were, together.
        jitter_ms: How much the time between two messages differs from the length of their audio.
        echo: Whether the bot repeats its caller: to the byte, recognisably, or not at all.
        latency_ms: Of an echo, how long the last sample of each message took, there and back.
        missing: How many messages have no echo.
        late_ms: How much later than they were due the caller's own messages were sent.
        strange: Sounds that the caller has not said, with when they came.
        sample_rate: Of `strange`.
    """

    failure: str | None = None
    first_audio_ms: float | None = None
    response_ms: list[float] = field(default_factory=list)
    unanswered: int = 0
    received_audio_ms: float = 0.0
    underruns: int = 0
    gap_ms: float = 0.0
    jitter_ms: Milliseconds = field(default_factory=lambda: np.zeros(0))
    echo: Echo = "none"
    latency_ms: Milliseconds = field(default_factory=lambda: np.zeros(0))
    missing: int = 0
    late_ms: Milliseconds = field(default_factory=lambda: np.zeros(0))
    strange: list[tuple[float, Signal]] = field(default_factory=list)
    sample_rate: int = 8000

    def late_share(self, max_late_ms: float) -> float | None:
        """
        Return the share of the bot's audio that came too late; ``None`` if there was none to judge.

        Of an echo, what came later than `max_late_ms` or never; otherwise, what could not be played without a gap.
        """
        if self.echo != "none":
            count = len(self.latency_ms) + self.missing
            return (int((self.latency_ms > max_late_ms).sum()) + self.missing) / count if count else None
        whole_ms = self.received_audio_ms + self.gap_ms
        return self.gap_ms / whole_ms if whole_ms else None


def listen(provider: Simulator, recording: Recording, window: tuple[float, float]) -> Hearing:
    """
    Return what the caller heard.

    Args:
        provider: The company that is played.
        recording: The call.
        window: The time in which latencies are measured, on the recording's clock.
    """
    hearing = Hearing()
    sent_at, late_s = np.array(recording.sent_at), np.array(recording.late_s)
    hearing.late_ms = late_s[(sent_at >= window[0]) & (sent_at <= window[1])] * 1000
    stream = provider.stream()
    opening_messages(stream, recording.started)
    wire = stream.outbound_format
    playback = Playback(wire.sample_rate, recording.up_at, limit_s=provider.queue_limit_s)
    payloads: list[bytes] = []
    arrivals: list[tuple[float, int]] = []
    tick = recording.up_at
    for at, message in zip(recording.times, recording.messages, strict=True):
        while tick + STEP_MS / 1000 <= at:
            tick += STEP_MS / 1000
            playback.advance(tick)
        try:
            event = stream.receive(message)
            if isinstance(event, Audio):
                pcm = wire.decode(event.payload)
                playback.add_audio(pcm, at)
                payloads.append(event.payload)
                arrivals.append((at, len(pcm) // 2))
            elif isinstance(event, Clear):
                playback.clear(at)
        except (RemoteProtocolError, ValueError) as error:
            hearing.failure = hearing.failure or getattr(error, "message", f"audio that cannot be decoded: {error}")
        for found in stream.findings():
            if found.level == "fail":
                hearing.failure = hearing.failure or found.message
    while tick < recording.ended_at:
        tick += STEP_MS / 1000
        playback.advance(tick)
    _hear_sounds(hearing, recording, playback, wire.sample_rate)
    hearing.jitter_ms = _jitter_ms(arrivals, wire.sample_rate, window)
    hearing.sample_rate = wire.sample_rate
    _recognise(hearing, recording, b"".join(payloads), wire.decode(b"".join(payloads)), arrivals, window)
    return hearing


def _hear_sounds(hearing: Hearing, recording: Recording, playback: Playback, sample_rate: int) -> None:
    detector = SoundDetector(sample_rate)
    detector.feed(playback.take_heard())
    detector.flush()
    hearing.first_audio_ms = detector.sounds[0].start_ms if detector.sounds else None
    ended_ms = (recording.ended_at - recording.up_at) * 1000
    spans = [span for span in recording.speech.spans if span[1] <= ended_ms]
    answers = [turn.response_ms for turn in measure_turns(spans, detector)]
    hearing.response_ms = [answer for answer in answers if answer is not None]
    hearing.unanswered = answers.index(None) + 1 if None in answers else 0
    hearing.received_audio_ms = playback.received_samples * 1000 / sample_rate
    hearing.underruns, hearing.gap_ms = playback.underruns, playback.gap_ms


def _jitter_ms(arrivals: Sequence[tuple[float, int]], sample_rate: int, window: tuple[float, float]) -> Milliseconds:
    times = np.array([at for at, _ in arrivals])
    lengths_ms = np.array([count for _, count in arrivals]) * 1000 / sample_rate
    apart_ms = np.diff(times) * 1000
    # After a longer break another utterance has begun.
    kept = (apart_ms < lengths_ms[1:] + MAX_UNDERRUN_MS) & (times[1:] >= window[0]) & (times[1:] <= window[1])
    jitter: Milliseconds = np.abs(apart_ms - lengths_ms[1:])[kept]
    return jitter


def _recognise(
    hearing: Hearing,
    recording: Recording,
    payload: bytes,
    pcm: bytes,
    arrivals: Sequence[tuple[float, int]],
    window: tuple[float, float],
) -> None:
    """Compare what was heard with what was said."""
    if not pcm or not len(recording.sent_at):
        return
    wire, rate = recording.started.format, hearing.sample_rate
    said_pcm = wire.decode(wire.encode(b"".join(recording.speech.seconds())))
    if rate != wire.sample_rate:
        said_pcm = resample(said_pcm, wire.sample_rate, rate)
    said, heard = signal(said_pcm), signal(pcm)
    frame = rate * recording.frame_ms // 1000
    sent_at = np.array(recording.sent_at)
    counts = np.array([count for _, count in arrivals])
    came_at = np.repeat(np.array([at for at, _ in arrivals]), counts)
    said_until = np.minimum(np.searchsorted(sent_at, came_at) * frame, len(said))
    found = match(said, heard, said_until, rate)
    for begin in found.strange[:: max(1, len(found.strange) // STRANGE_KEPT)][:STRANGE_KEPT]:
        piece = heard[begin : begin + found.size]
        hearing.strange.append((float(came_at[begin + found.size - 1]), piece))
    if found.share < ECHO_SHARE:
        return
    hearing.echo = "exact" if _is_exact(found, said_pcm, pcm) else "resampled"
    latency_ms = _latencies_ms(found, sent_at, came_at, frame)
    first, last = came_at[found.own[0][0]] + WARM_UP_S, recording.ended_at - TAIL_S
    loud = [rms >= AUDIBLE_LEVEL for rms in _levels(said, frame)][: len(sent_at)]
    judged = (sent_at >= max(first, window[0])) & (sent_at <= min(last, window[1] - TAIL_S)) & np.array(loud)
    latency_ms = latency_ms[judged]
    hearing.missing = int(np.isnan(latency_ms).sum())
    hearing.latency_ms = latency_ms[~np.isnan(latency_ms)]


def _is_exact(found: Match, said: bytes, heard: bytes) -> bool:
    """Whether the pieces that were found are the same to the last bit; of a caller's mu-law, once it was coded."""
    same = sum(
        heard[2 * begin : 2 * (begin + found.size)] == said[2 * (begin - lag) : 2 * (begin - lag + found.size)]
        for begin, lag in found.own
    )
    return same >= 0.9 * len(found.own)


def _levels(said: Signal, frame: int) -> Milliseconds:
    count = len(said) // frame
    levels: Milliseconds = np.sqrt(np.mean(said[: count * frame].reshape(count, frame) ** 2, axis=1))
    return levels


def _latencies_ms(found: Match, sent_at: NDArray[np.float64], came_at: NDArray[np.float64], frame: int) -> Milliseconds:
    """Return for each message that was sent how long its last sample took to come back; NaN if it never did."""
    latency_ms = np.full(len(sent_at), np.nan)
    for begin, lag in found.own:
        at = begin - lag
        # The messages whose last sample is in this piece.
        first, last = at // frame, min((at + found.size) // frame, len(sent_at))
        for index in range(first, last):
            if np.isnan(latency_ms[index]):
                heard = (index + 1) * frame - 1 + lag
                latency_ms[index] = (came_at[heard] - sent_at[index]) * 1000
    return latency_ms
