"""
What the caller says, presses and waits for.

A script does no I/O: every 20 ms it is told the time, and returns what the caller does in these 20 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

from wsvoice.audio import read_audio, resample
from wsvoice.dial.clock import STEP_MS
from wsvoice.dial.report import TurnReport
from wsvoice.dial.sound_detection import SILENCE_MS, SoundDetector, audible_range
from wsvoice.errors import UsageError
from wsvoice.providers.fields import DIGITS
from wsvoice.speech import speak

#: What the built-in question is called, among files.
QUESTION = Path("question")
#: How long the caller lets the bot speak before its first turn.
GREETING_LIMIT_MS = 30_000.0
#: How long an answer may be before the caller goes on.
ANSWER_LIMIT_MS = 60_000.0
#: From one digit to the next.
DIGIT_STEP_MS = 200.0
#: How long ``w`` waits.
DIGIT_PAUSE_MS = 500.0
#: How long the bot speaks before the caller interrupts it.
INTERRUPT_AFTER_MS = 400.0


@dataclass(frozen=True, slots=True)
class Clip:
    """Something that the caller says: 16-bit samples, and what the timeline calls them."""

    name: str
    pcm: bytes
    sample_rate: int


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that the caller presses; ``w`` waits half a second."""

    keys: str


Turn = Clip | Keys


def load_turns(audio: Sequence[Path], dtmf: str, spoken: Sequence[Clip] = ()) -> list[Turn]:
    """
    Return the caller's turns: the audio files, then `spoken`, then the digits; or the built-in question alone.

    Raises:
        AudioFileError: If a file cannot be read.
        UsageError: If `dtmf` has a key that no telephone has.
    """
    turns: list[Turn] = [*map(_load_clip, audio), *spoken]
    keys = dtmf.upper().replace("W", "w")
    if wrong := sorted(set(keys) - DIGITS - {"w"}):
        raise UsageError(
            f"no telephone has the key {wrong[0]!r}", hint="keys are 0-9, *, # and A-D; w waits half a second"
        )
    if not turns and not keys.strip("w"):
        turns.append(_load_clip(QUESTION))
    if keys.strip("w"):
        turns.append(Keys(keys))
    return turns


def _load_clip(path: Path) -> Clip:
    if path != QUESTION or path.exists():
        return Clip(path.name, *read_audio(path))
    with as_file(files("wsvoice.dial") / "question.wav") as built_in:
        return Clip("the built-in question", *read_audio(built_in))


def spoken(texts: Sequence[str], voice: str) -> list[Clip]:
    """Return `texts` as a voice says them; errors as :func:`~wsvoice.speech.speak`."""
    return [Clip(f'"{text}"' if len(text) <= 60 else f'"{text[:57]}..."', *speak(text, voice)) for text in texts]


@dataclass(slots=True)
class Step:
    """
    What the caller does in one step.

    Attributes:
        pcm: What it says; shorter than the step, or empty, for silence.
        digits: What it presses.
        notes: Timeline events: each a kind and a text.
    """

    pcm: bytes = b""
    digits: str = ""
    notes: list[tuple[str, str]] = field(default_factory=list)


class Speaker:
    """
    Whoever speaks for the caller: a script, or a bot.

    Attributes:
        done: Whether the caller has nothing more to say and waits for nothing.
        failure: Why the conversation failed, or ``None``.
        digits_sent: The digits pressed so far.
        interrupted_at_ms: When the caller interrupted the bot; ``None`` if it did not.
        no_interruption_reason: Why it did not; empty as long as it may.
        detector: Hears the bot.
        hangs_up_when_done: Whether the caller hangs up once done, even if the call was to last longer.
        vanishes: Whether the caller's end of the call is lost once done: the connection breaks without a hang-up.
    """

    hangs_up_when_done = False
    vanishes = False

    def __init__(self, detector: SoundDetector, *, no_interruption_reason: str) -> None:
        self.done = False
        self.failure: str | None = None
        self.digits_sent = ""
        self.interrupted_at_ms: float | None = None
        self.no_interruption_reason = no_interruption_reason
        self.detector = detector

    def hear(self, pcm: bytes) -> None:
        """Take what was heard of the bot since the last step; the detector has it already."""

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        """
        Return what the caller does in the 20 ms before `now_ms`.

        Args:
            now_ms: Time since the stream started, a multiple of 20.
            audible_queued: Whether the bot's sound is waiting to be played.
        """
        raise NotImplementedError

    def turns(self) -> list[TurnReport]:
        """Return the turns that the caller has finished, and the bot's answers."""
        raise NotImplementedError

    def boundaries_ms(self) -> list[float]:
        """Return where the call is cut into what was said, and what was said in answer: where each turn begins."""
        return [each.caller_start_ms for each in self.turns()]

    def missing(self, *, bot_ended: bool) -> str | None:
        """Return why the conversation is incomplete now that the call is over, or ``None``."""
        return self.failure


def join_spans(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return what a caller said as turns: pauses of less than 600 ms divide none; times are in milliseconds."""
    turns: list[tuple[float, float]] = []
    for start_ms, end_ms in spans:
        if turns and start_ms - turns[-1][1] < SILENCE_MS:
            turns[-1] = (turns[-1][0], max(turns[-1][1], end_ms))
        else:
            turns.append((start_ms, end_ms))
    return turns


def measure_turns(spans: Sequence[tuple[float, float]], detector: SoundDetector) -> list[TurnReport]:
    """
    Find the bot's answers to the caller's turns.

    Args:
        spans: When each turn begins and ends, in milliseconds since the stream started.
        detector: What was heard of the bot.
    """
    reports = []
    for number, (start_ms, end_ms) in enumerate(spans):
        # A sound that begins in the next turn answers that one.
        until_ms = spans[number + 1][0] if number + 1 < len(spans) else math.inf
        answer = detector.since(end_ms)
        if answer is None or answer.start_ms >= until_ms:
            reports.append(TurnReport(start_ms, end_ms))
            continue
        begins = [sound.start_ms for sound in detector.sounds if start_ms <= sound.start_ms <= answer.start_ms]
        bot_start_ms = begins[0] if begins else answer.start_ms
        reports.append(TurnReport(start_ms, end_ms, bot_start_ms, max(0.0, answer.start_ms - end_ms)))
    return reports


class PatientSpeaker(Speaker):
    """
    A caller that says or presses what it has when the bot has finished.

    Args:
        listen_s: How long the bot may take to speak first.
        response_timeout_s: How long it may take to answer.
    """

    def __init__(
        self,
        detector: SoundDetector,
        *,
        sample_rate: int,
        listen_s: float,
        response_timeout_s: float,
        no_interruption_reason: str,
    ) -> None:
        super().__init__(detector, no_interruption_reason=no_interruption_reason)
        self._rate = sample_rate
        self._listen_ms = listen_s * 1000
        self._timeout_ms = response_timeout_s * 1000
        self._heard_greeting = False

    def _may_speak_first(self, now_ms: float, audible_queued: bool) -> bool:
        """Return whether the bot has greeted the caller, or does not mean to."""
        if self.detector.sounds or audible_queued:
            self._heard_greeting = True
        if not self._heard_greeting:
            return now_ms > self._listen_ms
        return self._bot_finished(now_ms, audible_queued) or now_ms > GREETING_LIMIT_MS

    def _bot_finished(self, now_ms: float, audible_queued: bool) -> bool:
        return not audible_queued and self.detector.silent_ms(now_ms) >= SILENCE_MS


class Script(PatientSpeaker):
    """
    A caller that says its turns, one after the other, and waits for an answer to each.

    With an `interruption`, it interrupts the bot's last answer with that.
    """

    def __init__(
        self,
        turns: Sequence[Turn],
        detector: SoundDetector,
        *,
        sample_rate: int,
        listen_s: float,
        response_timeout_s: float,
        interruption: Clip | None = None,
    ) -> None:
        super().__init__(
            detector,
            sample_rate=sample_rate,
            listen_s=listen_s,
            response_timeout_s=response_timeout_s,
            no_interruption_reason="" if interruption else "the caller says nothing",
        )
        self._interruption = interruption
        self._turns = list(turns)
        self._current: CurrentTurn | None = None
        # When each turn begins and ends, of those that have begun.
        self._spans: list[tuple[float, float]] = []
        self._now_ms = 0.0

    def step(self, now_ms: float, *, audible_queued: bool) -> Step:
        step = Step()
        self._now_ms = now_ms
        if self._current is None:
            if self.done or (not self._spans and not self._may_speak_first(now_ms, audible_queued)):
                return step
            self._current = CurrentTurn(self._turns.pop(0), now_ms - STEP_MS, self._rate)
            self._spans.append((self._current.start_ms, self._current.end_ms))
        current = self._current
        current.step(now_ms, step)
        self.digits_sent += step.digits
        if now_ms >= current.end_ms and current.over():
            self._await_answer(now_ms, current.end_ms, audible_queued, step)
        return step

    def turns(self) -> list[TurnReport]:
        finished = sum(end_ms <= self._now_ms for _, end_ms in self._spans)
        return measure_turns(self._spans, self.detector)[:finished]

    def missing(self, *, bot_ended: bool) -> str | None:
        if self.failure:
            return self.failure
        answers = [turn.response_ms for turn in self.turns()]
        if None in answers:
            who = "the bot ended the call" if bot_ended else "the call was over"
            return f"{who} before the bot answered turn {answers.index(None) + 1}"
        if bot_ended and (self._turns or len(answers) < len(self._spans)):
            return f"the bot ended the call before the caller's turn {len(answers) + 1} was over"
        return None

    def _await_answer(self, now_ms: float, end_ms: float, audible_queued: bool, step: Step) -> None:
        if self.interrupted_at_ms is not None:
            # The bot may answer the interruption or not.
            if now_ms >= end_ms + SILENCE_MS and (
                self._bot_finished(now_ms, audible_queued) or now_ms > end_ms + self._timeout_ms
            ):
                self._current = None
                self.done = True
            return
        answer = self.detector.since(end_ms)
        if answer is not None and self._interruption is not None and not self._turns:
            spoken_ms = now_ms - max(answer.start_ms, end_ms)
            if spoken_ms >= INTERRUPT_AFTER_MS and self.detector.silent_ms(now_ms) <= 3 * STEP_MS:
                self._current = CurrentTurn(self._interruption, now_ms, self._rate)
                self.interrupted_at_ms = self._current.start_ms
                step.notes.append(("note", "the caller interrupts the bot"))
                return
        if answer is not None:
            if now_ms > end_ms + ANSWER_LIMIT_MS:
                step.notes.append(("note", f"the bot has talked for {ANSWER_LIMIT_MS / 1000:g} s; going on"))
            elif not self._bot_finished(now_ms, audible_queued):
                return
        elif now_ms < end_ms + self._timeout_ms or audible_queued:
            return
        else:
            number = len(self._spans)
            self.failure = f"the bot did not answer turn {number} within {self._timeout_ms / 1000:g} s"
            self._turns.clear()
        self._current = None
        self.done = not self._turns
        if self.done and self._interruption is not None and not self.failure:
            self.no_interruption_reason = "the bot's last answer is too short to be interrupted"
            step.notes.append(("note", self.no_interruption_reason))


class CurrentTurn:
    """A turn being spoken or pressed, from `at_ms` on. Each key has its own event in the timeline, and no title."""

    def __init__(self, turn: Turn, at_ms: float, sample_rate: int) -> None:
        self.title, self._pcm = "", b""
        self._due: list[tuple[float, str]] = []
        if isinstance(turn, Clip):
            self.title = turn.name
            self._pcm = resample(turn.pcm, turn.sample_rate, sample_rate)
            # Of a silent clip, all of it is the turn.
            first, last = audible_range(self._pcm, sample_rate) or (0, len(self._pcm) // 2)
            self.start_ms, self.end_ms = (at_ms + sample * 1000 / sample_rate for sample in (first, last))
        else:
            for key in turn.keys:
                if key != "w":
                    self._due.append((at_ms, key))
                at_ms += DIGIT_PAUSE_MS if key == "w" else DIGIT_STEP_MS
            self.start_ms, self.end_ms = self._due[0][0], self._due[-1][0]
        self._offset = 0
        self._step_bytes = 2 * (sample_rate * STEP_MS // 1000)

    def step(self, now_ms: float, step: Step) -> None:
        """Add the turn's next 20 ms to what the caller does, which end at `now_ms`."""
        step.pcm = self._pcm[self._offset : self._offset + self._step_bytes]
        self._offset += self._step_bytes
        while self._due and self._due[0][0] < now_ms:
            step.digits += self._due.pop(0)[1]
        if self.title and now_ms - STEP_MS <= self.start_ms < now_ms:
            step.notes.append(("caller-speaks", f"the caller says {self.title}"))
        if self.title and now_ms - STEP_MS < self.end_ms <= now_ms:
            step.notes.append(("caller-silent", "the caller is silent"))

    def over(self) -> bool:
        # Silence at the end of a file belongs to the turn, though the bot may answer in it.
        return self._offset >= len(self._pcm) and not self._due
