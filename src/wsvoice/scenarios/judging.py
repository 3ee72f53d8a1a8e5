"""Holds a call against what its scenario expects, and says of each step what was there instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from wsvoice.audio.tones import find_tones
from wsvoice.replay.comparison import GREETING, Comparison
from wsvoice.scenarios.running import ReadyScenario, ReadyStep, RunCall
from wsvoice.testing import SAMPLE_RATE, Report
from wsvoice.words import ServiceError


@dataclass
class StepResult:
    """
    What happened in a step.

    Attributes:
        name: The step.
        from_ms: Its beginning, since the stream started.
        to_ms: The beginning of the next one, or the end of the call.
        caller_end_ms: When the caller had done its part.
        wait_ms: How long the caller waited for the bot's first sound; ``None`` if there was none.
        is_answered: Whether that is one of the waits that count.
        caller_words: What the caller said or pressed; empty if that is not known.
        bot_words: What the bot said; ``None`` without a transcriber.
        heard: The recordings that were heard, and when.
        problem: Why the caller could not go on.
    """

    name: str
    from_ms: float
    to_ms: float
    caller_end_ms: float
    wait_ms: float | None
    is_answered: bool
    caller_words: str = ""
    bot_words: str | None = None
    heard: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass
class Judgement:
    """
    What came of a call.

    Attributes:
        steps: Those that have begun.
        failures: What was not as expected, each in one line that begins with its step.
        skipped: What could not be judged, and why.
    """

    steps: list[StepResult] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was as expected."""
        return not self.failures

    @property
    def waits_ms(self) -> dict[str, float]:
        """The caller's waits for answers, by step."""
        return {each.name: each.wait_ms for each in self.steps if each.is_answered and each.wait_ms is not None}


def judge(ready: ReadyScenario, call: RunCall) -> Judgement:
    """Judge a call that is over."""
    judgement = Judgement()
    report = call.report
    if report.comparison is not None:
        return _judge_replay(report, report.comparison)
    if not report.passed:
        # A bot's last words are in its log, which is shown with the call.
        judgement.failures.append((report.failure or "the call failed").partition("\n")[0].rstrip(":"))
    judgement.steps = [_look(ready, call, number) for number in range(len(call.times))]
    _put_words(ready, report, judgement)
    for step, result in zip(ready.steps, judgement.steps, strict=False):
        judgement.failures += [f"{step.name}: {each}" for each in _check(step, result, report)]
    _ask_judge(ready, judgement)
    if judgement.passed and len(call.times) < len(ready.steps):
        judgement.failures.append(f"the call was over before {ready.steps[len(call.times)].name}")
    return judgement


def _judge_replay(report: Report, comparison: Comparison) -> Judgement:
    """Judge a call that was placed again: what is not as it was recorded is wrong."""
    judgement = Judgement(failures=list(report.differences), skipped=list(comparison.notes))
    if not report.passed and not judgement.failures:
        judgement.failures.append((report.failure or "the call failed").partition("\n")[0].rstrip(":"))
    for each in comparison.turns:
        if each.start_ms is not None and each.end_ms is not None and each.name != GREETING:
            judgement.steps.append(
                StepResult(each.name, each.start_ms, each.end_ms, each.end_ms, each.wait_ms, is_answered=True)
            )
    return judgement


def _look(ready: ReadyScenario, call: RunCall, number: int) -> StepResult:
    report, times, step = call.report, call.times[number], ready.steps[number]
    is_last = number + 1 == len(call.times)
    to_ms = report.duration_ms if is_last else call.times[number + 1].start_ms
    done_ms = times.caller_end_ms
    waits = (max(0.0, start - done_ms) for start, end in report.sounds if end > done_ms and start < to_ms)
    return StepResult(
        step.name,
        times.start_ms,
        max(to_ms, times.start_ms),
        times.caller_end_ms,
        next(waits, None),
        step.is_answered,
        caller_words=step.words,
        problem=times.problem,
    )


# Expectations


def _check(step: ReadyStep, result: StepResult, report: Report) -> Iterator[str]:
    """Yield what was not as expected in a step, but for the judge's opinion."""
    if result.problem is not None and report.failure is None:
        yield result.problem
    if result.problem is None:
        yield from _check_wait(step, result)
    yield from _check_silence(step, result, report)
    yield from _check_heard(step, result, report)
    yield from _check_words(step, result)
    yield from _check_digits(step, result, report)
    yield from _check_end(step, report)


def _check_wait(step: ReadyStep, result: StepResult) -> Iterator[str]:
    limit_s = step.expected.answered_within
    if limit_s is None:
        return
    if result.wait_ms is None:
        yield "the bot did not answer" if step.action.turn else "the bot did not speak"
    elif result.wait_ms > limit_s * 1000:
        yield f"the bot answered after {result.wait_ms:.0f} ms, and {limit_s * 1000:.0f} ms is the limit"


def _check_silence(step: ReadyStep, result: StepResult, report: Report) -> Iterator[str]:
    silent = step.expected.silent
    if silent is None:
        return
    to_ms = result.to_ms if silent is True else min(result.to_ms, result.caller_end_ms + silent * 1000)
    sounds = [(start, end) for start, end in report.sounds if start < to_ms and end > result.caller_end_ms]
    if sounds:
        listed = ", ".join(f"{start:.0f}-{end:.0f}" for start, end in sounds)
        yield f"the bot was not silent from {result.caller_end_ms:.0f} to {to_ms:.0f} ms: it was sounding {listed} ms"


def _check_heard(step: ReadyStep, result: StepResult, report: Report) -> Iterator[str]:
    least, from_ms = step.expected.correlation, result.from_ms
    for name in step.expected.heard or ():
        found = (
            [at for at in report.find(step.sounds[name], min_correlation=least) if from_ms <= at < result.to_ms]
            if report.recording
            else []
        )
        if found:
            result.heard[name] = found[0]
            # The next recording comes after this one.
            from_ms = found[0] + 1
            continue
        closest = report.closest(step.sounds[name], from_ms, result.to_ms) if report.recording else None
        if not any(start < result.to_ms and end > from_ms for start, end in report.sounds):
            yield f"{name} was not heard: the bot made no sound"
        elif closest is None:
            yield f"{name} was not heard: the call was over before"
        else:
            at_ms, correlation = closest
            yield (
                f"{name} was not heard: the most similar sound, at {at_ms:.0f} ms, has a correlation of"
                f" {correlation:.2f}, and {least:g} was asked for"
            )


def _check_words(step: ReadyStep, result: StepResult) -> Iterator[str]:
    if result.bot_words is None:
        return
    said = _normalised(result.bot_words)
    for text in step.expected.says or ():
        if f" {_normalised(text)} " not in f" {said} ":
            yield f'the bot did not say "{text}"; it said "{result.bot_words}"'
    for text in step.expected.not_says or ():
        if f" {_normalised(text)} " in f" {said} ":
            yield f'the bot said "{text}": "{result.bot_words}"'


def _check_digits(step: ReadyStep, result: StepResult, report: Report) -> Iterator[str]:
    expected = step.expected.digits
    if expected is None:
        return
    pressed = [each.digits for each in report.bot_digits if result.from_ms <= each.at_ms < result.to_ms]
    if not pressed:
        tones = find_tones(report.heard, SAMPLE_RATE)
        pressed = [each.key for each in tones if result.from_ms <= each.at_ms < result.to_ms]
    found = "".join(pressed).upper().replace("W", "")
    if found != expected:
        yield f"the bot pressed {found or 'no keys'}, and {expected} was expected"


def _check_end(step: ReadyStep, report: Report) -> Iterator[str]:
    expected = step.expected
    if expected.transferred is not None:
        to = report.transferred_to
        if to is None:
            yield "the bot did not transfer the call"
        elif expected.transferred is not True and _number(to) != _number(expected.transferred):
            yield f"the bot transferred the call to {to}, and {expected.transferred} was expected"
    if expected.ended_by is not None and report.ended_by != expected.ended_by:
        who = "nobody" if report.ended_by is None else f"the {report.ended_by}"
        yield f"the call was ended by {who}, and the {expected.ended_by} was expected to end it"


def _normalised(text: str) -> str:
    """Return the words alone, one space between them."""
    return " ".join(re.findall(r"\w+(?:'\w+)?", text.casefold().replace("’", "'")))


def _number(text: str) -> str:
    return re.sub(r"[\s()-]", "", text).removeprefix("tel:").lower()


# Words


def _put_words(ready: ReadyScenario, report: Report, judgement: Judgement) -> None:
    """Put down what both said in each step, if there is a transcriber; and that words are missing."""
    if report.words_failure is not None:
        is_judged = ready.judge is not None
        needs_words = any(each.expected.wants_words or (is_judged and each.expected.judge) for each in ready.steps)
        told = judgement.failures if needs_words else judgement.skipped
        told.append(f"words are missing: {report.words_failure}")
        return
    if ready.config.transcriber is None or not report.stream_id:
        return
    for step, result in zip(ready.steps, judgement.steps, strict=False):
        # A time may be off by a part of a sample.
        said = [each for each in report.words if result.from_ms <= each.start_ms + 1 < result.to_ms + 1]
        result.bot_words = " ".join(each.text for each in said if each.who == "bot" and each.text)
        if step.action.turn is not None and not result.caller_words:
            result.caller_words = " ".join(each.text for each in said if each.who == "caller" and each.text)


def _ask_judge(ready: ReadyScenario, judgement: Judgement) -> None:
    """Have the claims about the bot's words judged; once there is no verdict, nobody is asked for another."""
    said: list[tuple[str, str]] = []
    why_not = "OPENAI_API_KEY is not set" if ready.judge is None else None
    for step, result in zip(ready.steps, judgement.steps, strict=False):
        said += [("caller", result.caller_words)] if result.caller_words else []
        said.append(("bot", result.bot_words or ""))
        claim = step.expected.judge
        if claim is None:
            continue
        if ready.judge is not None and result.bot_words is None:
            why_not = "words are missing"
        if ready.judge is None or why_not is not None:
            judgement.skipped.append(f"{step.name}: judge = {claim!r} was not judged: {why_not}")
            continue
        try:
            holds, why = ready.judge.decide(claim, said)
        except ServiceError as error:
            why_not = "the judge had failed before"
            judgement.failures.append(f"{step.name}: {error.message}")
            continue
        if not holds:
            judgement.failures.append(f"{step.name}: the judge does not find that the bot {claim}: {why}")
