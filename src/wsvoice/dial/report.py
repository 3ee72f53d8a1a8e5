"""
The report of a test call, as JSON and as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from wsvoice.call import Cause, first_cause, plural
from wsvoice.providers.base import Level

Verdict = Literal["passed", "failed"]
EndedBy = Literal["caller", "bot"]
Side = Literal["caller", "bot"]

#: How many kinds of findings are kept apart, because the other end may cause any number.
MAX_FINDINGS = 100
_MESSAGE_LIMIT = 500


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """
    Something that happened in a call.

    Attributes:
        at_ms: Milliseconds since the stream started; 0 for what came before that.
        kind: ``webhook``, ``answer``, ``connected``, ``started``, ``caller-speaks``, ``caller-silent``,
            ``bot-speaks``, ``bot-silent``, ``digit``, ``mark``, ``clear``, ``hang-up``, ``closed``, ``finding``,
            ``note``, ``log`` (a line that the served bot wrote), or ``caller-log`` (one of the caller's bot).
        text: What happened, in words.
        fields: The same for programs, as the trace has it: of a ``digit`` `who` (``caller`` or ``bot``) and `digit`.
    """

    at_ms: float
    kind: str
    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CountedFinding:
    """
    A finding, and how often it was made.

    Attributes:
        id: The check's short name, such as ``W1`` (web), ``S1`` (stream), ``M2`` (media), ``E1`` (end).
        level: ``fail`` if a real call would break, ``warn`` if it would suffer.
        message: What is wrong, in one line; the first one's, if there were several.
        count: How often.
    """

    id: str
    level: Level
    message: str
    count: int = 1


def name_causes(failure: str, causes: Sequence[Cause]) -> str:
    """Return `failure` with the cause that most likely explains it."""
    cause = first_cause(causes)
    return f"{failure}: {cause}" if cause else failure


@dataclass(frozen=True, slots=True)
class TurnReport:
    """
    One turn of the conversation, in milliseconds since the stream started.

    Attributes:
        caller_start_ms: The caller's first audible sample, or first digit.
        caller_end_ms: The caller's last audible sample, or last digit.
        bot_start_ms: When the bot's first sound after `caller_start_ms` began. For an echo bot, the difference is the
            round trip.
        response_ms: From `caller_end_ms` to the bot's next sound; 0 if the bot was sounding.
    """

    caller_start_ms: float
    caller_end_ms: float
    bot_start_ms: float | None = None
    response_ms: float | None = None


@dataclass(frozen=True, slots=True)
class KeyPress:
    """
    Keys that the bot has pressed by asking its provider to.

    Attributes:
        at_ms: When, in milliseconds since the stream started.
        digits: Which.
    """

    at_ms: float
    digits: str


@dataclass(frozen=True, slots=True)
class SpokenWords:
    """
    What one side said in one turn, as a transcriber has understood it.

    Attributes:
        turn: The number of the caller's turn, from 1; 0 for what was said before the first.
        who: Who said it.
        start_ms: Its first audible sample, in milliseconds since the stream started.
        end_ms: Its last one.
        text: The words, in one line; empty if nothing was understood.
    """

    turn: int
    who: Side
    start_ms: float
    end_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class CallReport:
    """
    A test call, from the webhook to the hang-up. Times are in milliseconds.

    Attributes:
        provider: Which provider was played.
        target: What was dialled, as the user wrote it.
        verdict: Whether a real call would have gone well.
        failure: Why not, in words; ``None`` if it would have.
        call_id: The provider's id of the call.
        stream_id: The provider's id of the stream; empty if none was started.
        webhook_ms: How long the webhook took, redirects included; ``None`` if there was none.
        connect_ms: How long the WebSocket took to open; ``None`` if it did not.
        first_audio_ms: When the bot was first heard.
        turns: What the caller said, and how the bot answered.
        sent_audio_ms: Audio sent in media messages, silence included.
        received_audio_ms: Audio received in media messages.
        underruns: How often the bot's sound broke off because its audio came too late.
        max_gap_ms: The longest time between two media messages of one utterance.
        marks: Marks received.
        clears: Clears received.
        digits_sent: Digits pressed.
        ended_by: Who ended the call; ``None`` if it never started.
        close_code: The WebSocket's close code; 1006 if the connection broke without one.
        duration_ms: From the stream's start to its end.
        findings: What the checks found.
        recording: The path of the recording.
        causes: What went wrong in the bot's process, where that is known.
        untested: What ``--probe`` could not try, each with the reason.
        bot_digits: What the bot pressed; tones in its sound are not among it.
        transferred_to: Whom the bot had the call connected to; ``None`` for nobody.
        trace: The path of the trace.
        words: What both sides said, if there is a transcriber.
        words_failure: Why words are missing; ``None`` if none are.
    """

    provider: str
    target: str
    verdict: Verdict = "failed"
    failure: str | None = None
    call_id: str = ""
    stream_id: str = ""
    webhook_ms: float | None = None
    connect_ms: float | None = None
    first_audio_ms: float | None = None
    turns: Sequence[TurnReport] = ()
    sent_audio_ms: int = 0
    received_audio_ms: int = 0
    underruns: int = 0
    max_gap_ms: float = 0.0
    marks: int = 0
    clears: int = 0
    digits_sent: str = ""
    ended_by: EndedBy | None = None
    close_code: int | None = None
    duration_ms: float = 0.0
    findings: Sequence[CountedFinding] = ()
    recording: str | None = None
    causes: Sequence[Cause] = ()
    untested: Sequence[str] = ()
    bot_digits: Sequence[KeyPress] = ()
    transferred_to: str | None = None
    trace: str | None = None
    words: Sequence[SpokenWords] = ()
    words_failure: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON: stable names in a stable order, times to a tenth of a millisecond."""
        return {each.name: plain(getattr(self, each.name)) for each in fields(CallReport)}

    def to_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    def to_lines(self) -> list[str]:
        """Return the report in words, one line an item; the verdict is the last."""
        lines = self._words_lines(0)
        for number, turn in enumerate(self.turns, 1):
            lines += [f"turn {number}: {_describe(turn)}", *self._words_lines(number)]
        if self.words_failure:
            lines.append(f"words are missing: {self.words_failure}")
        if self.stream_id:
            seconds = self.duration_ms / 1000
            lines.append(
                f"call: {seconds:.1f} s, heard {self.received_audio_ms / 1000:.1f} s of audio in all,"
                f" {plural(self.marks, 'mark')}, {plural(self.clears, 'clear')},"
                f" {plural(self.underruns, 'underrun')}"
                + (f", ended by the {self.ended_by} ({self.close_code})" if self.ended_by else "")
            )
        for found in self.findings:
            if found.level == "fail" and found.count == 1 and (self.failure or "").startswith(found.message):
                # The verdict says it.
                continue
            times = f" ({found.count} times)" if found.count > 1 else ""
            lines.append(f"{found.level} {found.id}: {found.message}{times}")
        lines += [f"in the bot: {cause}" for cause in self.causes if str(cause) not in (self.failure or "")]
        if self.recording:
            lines.append(f"recording: {self.recording}")
        if self.trace:
            lines.append(f"trace: {self.trace}")
        lines += [f"not tested: {each}" for each in self.untested]
        lines.append(f"{self.verdict}: {self.failure}" if self.failure else self.verdict)
        return lines

    def _words_lines(self, turn: int) -> list[str]:
        when = f"turn {turn}" if turn else "before turn 1"
        return [
            f"{when}, the {each.who} said " + (f'"{each.text}"' if each.text else "what was not understood")
            for each in self.words
            if each.turn == turn
        ]


class Findings:
    """Findings, each kind once with its count, in the order in which they were first made."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Level, str], tuple[str, int]] = {}

    def add(self, id: str, level: Level, message: str, *, kind: str | None = None) -> bool:
        """
        Count a finding, and return whether it is the first of its kind.

        Args:
            id: The check's short name.
            message: What is wrong, in one line.
            kind: What makes two findings the same; ``None`` for their message.
        """
        message = message if len(message) <= _MESSAGE_LIMIT else f"{message[:_MESSAGE_LIMIT]}..."
        key: tuple[str, Level, str] = (id, level, message if kind is None else kind)
        if len(self._found) >= MAX_FINDINGS and key not in self._found:
            message = f"more kinds of findings than {MAX_FINDINGS}; the others are counted here"
            key = ("M1", level, "more")
        first, seen = self._found.get(key, (message, 0))
        self._found[key] = (first, seen + 1)
        return not seen

    def all(self) -> tuple[CountedFinding, ...]:
        """Return what was found."""
        return tuple(
            CountedFinding(id, level, message, count) for (id, level, _), (message, count) in self._found.items()
        )

    def first_failure(self) -> CountedFinding | None:
        """Return the first finding that fails the call, or ``None``."""
        return next((found for found in self.all() if found.level == "fail"), None)


def plain(value: Any, digits: int = 1) -> Any:
    """Return `value` as JSON has it, its numbers with so many `digits` after the point."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name), digits) for each in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(each, digits) for each in value]
    return round(value, digits) if isinstance(value, float) else value


def _describe(turn: TurnReport) -> str:
    spoken = f"caller {turn.caller_start_ms:.0f} to {turn.caller_end_ms:.0f} ms"
    if turn.response_ms is None:
        return f"{spoken}, no answer"
    if turn.response_ms == 0:
        return f"{spoken}, bot answered while the caller spoke"
    return f"{spoken}, bot answered after {turn.response_ms:.0f} ms"
