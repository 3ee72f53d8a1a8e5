"""
What there is to say of a whole call: who called whom, its turns, its findings, what happened when.

A trace may have been written by anybody, so that no field of its report is taken for what it should be.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsvoice.call import short_id
from wsvoice.trace.sound import Samples, Turn, Utterance, levels, turns, utterances

if TYPE_CHECKING:
    from wsvoice.trace import Trace

#: Kinds of events that are drawn as they are, and by which of these names.
_DRAWN = {
    "mark": "mark",
    "clear": "clear",
    "digit": "digit",
    "digits": "digit",
    "interruption": "interruption",
    "finding": "finding",
}
#: How many of a report's turns, findings and causes are shown; a call has fewer.
_LIMIT = 20_000
_TEXT_LIMIT = 2000
#: How much is said of a point, which has its row in the list too.
_POINT_LIMIT = 200
#: How much of a call without any sound is shown, in seconds.
MAX_SILENT_S = 600.0


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found wrong: ``fail`` or ``warn``, its short name, what, and how often."""

    level: str
    id: str
    message: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Words:
    """What the ``caller`` or the ``bot`` said in a turn, as a transcriber has understood it; 0 is before the first."""

    turn: int
    who: str
    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Point:
    """Something that happened at one moment: a ``mark``, ``clear``, ``digit``, ``interruption`` or ``finding``."""

    at_s: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Summary:
    """
    A call at a glance. Times are in seconds since its stream started.

    Attributes:
        title: Who called whom.
        facts: Names and values of what else is known of it.
        verdict: ``passed`` or ``failed``; empty where nobody judged it.
        failure: Why it failed.
        duration_s: Until the last thing that is known of it.
        caller, bot: When each end was heard.
        caller_levels, bot_levels: How loud they were, as :func:`~wsvoice.trace.sound.levels` has it.
        buffered: Times, and the milliseconds of audio that waited at the provider.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    verdict: str
    failure: str
    duration_s: float
    is_complete: bool
    caller: Sequence[Utterance]
    bot: Sequence[Utterance]
    caller_levels: NDArray[np.float32]
    bot_levels: NDArray[np.float32]
    turns: Sequence[Turn]
    words: Sequence[Words]
    points: Sequence[Point]
    buffered: Sequence[tuple[float, float]]
    findings: Sequence[Finding]
    causes: Sequence[str]


def summarize(trace: Trace) -> Summary:
    """Return what there is to say of a call as a whole."""
    report: Mapping[str, Any] = trace.report if isinstance(trace.report, Mapping) else {}
    rate = trace.rate
    caller_levels, bot_levels = levels(_track(trace.caller), rate), levels(_track(trace.bot), rate)
    caller, bot = utterances(caller_levels), utterances(bot_levels)
    points, buffered = _events(trace)
    findings = [found for one in _items(report, "findings") if (found := _finding(one))]
    found_turns = (
        [turn for one in _items(report, "turns") if (turn := _turn(one))]
        or _measured_turns(trace, caller)
        or turns(caller, bot)
    )
    # Without sound, somebody may have written any number; an axis is as long as what is drawn on it.
    duration_s = max(len(trace.caller), len(trace.bot)) / rate or min(trace.duration_s, MAX_SILENT_S)
    return Summary(
        title=_title(trace),
        facts=_facts(trace, report),
        verdict=verdict if (verdict := report.get("verdict")) in ("passed", "failed") else "",
        failure=_text(report.get("failure")) or _text(trace.ended.get("reason")),
        duration_s=duration_s,
        is_complete=trace.is_complete,
        caller=caller,
        bot=bot,
        caller_levels=caller_levels,
        bot_levels=bot_levels,
        turns=found_turns,
        words=[said for one in _items(report, "words") if (said := _words(one, len(found_turns)))],
        points=points,
        buffered=buffered,
        findings=findings,
        causes=[_text(each.get("message")) for each in _items(report, "causes")],
    )


def waits(found: Sequence[Turn]) -> list[float]:
    """Return the caller's waits in seconds, without the turns that had no answer."""
    return [each.wait_s for each in found if each.wait_s is not None]


def _title(trace: Trace) -> str:
    call = trace.call
    ends = [_text(call.from_number), _text(call.to_number)]
    who = " → ".join(each or "unknown" for each in ends) if any(ends) else short_id(_text(call.call_id)) or "a call"
    return f"{who} · {_text(trace.provider)}" if trace.provider else who


def _facts(trace: Trace, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    call = trace.call
    ended_by, code = _text(report.get("ended_by")) or _text(trace.ended.get("by")), report.get("close_code")
    dropped = ", ".join(f"{_text(name)} {count:g}" for name, count in trace.dropped.items())
    facts = [
        ("Call", _text(call.call_id)),
        ("Stream", _text(call.stream_id)),
        ("Direction", _text(call.direction)),
        ("Target", _text(trace.target)),
        ("Ended by", f"{ended_by} ({code})" if ended_by and isinstance(code, int) else ended_by),
        ("Digits", _text(report.get("digits_sent"))),
        ("Recorded by", "the server" if trace.side == "server" else "the caller of a test call"),
        ("Audio", f"{trace.rate} Hz"),
        ("Missing", dropped),
    ]
    facts += [(f"Parameter {_text(name)}", _text(value)) for name, value in call.parameters.items()]
    facts += [(_text(name), _text(version)) for name, version in trace.versions.items()]
    return [(name, value) for name, value in facts if value]


def _events(trace: Trace) -> tuple[list[Point], list[tuple[float, float]]]:
    points: list[Point] = []
    buffered: list[tuple[float, float]] = []
    for each in trace.timeline:
        if each.event == "buffer":
            ms = _number(each.fields.get("ms"))
            if ms is not None:
                buffered.append((each.t, ms))
        elif each.event in _DRAWN:
            points.append(Point(each.t, _DRAWN[each.event], each.detail[:_POINT_LIMIT]))
    return points, buffered


def _measured_turns(trace: Trace, caller: Sequence[Utterance]) -> list[Turn]:
    """Return the turns whose waits were measured while the call ran."""
    found: list[Turn] = []
    starts = [each.start_s for each in caller]
    for event in trace.timeline:
        wait_s = _seconds(event.fields.get("ms")) if event.event == "wait" else None
        if wait_s is not None:
            end_s = event.t - wait_s
            spoken = bisect_right(starts, end_s)
            found.append(Turn(starts[spoken - 1] if spoken else end_s, end_s, event.t, wait_s))
    return found


def _turn(told: Mapping[str, Any]) -> Turn | None:
    start, end = _seconds(told.get("caller_start_ms")), _seconds(told.get("caller_end_ms"))
    if start is None or end is None:
        return None
    wait_s = _seconds(told.get("response_ms"))
    bot_s = None if wait_s is None else end + wait_s if wait_s else _seconds(told.get("bot_start_ms"))
    return Turn(start, end, bot_s, wait_s)


def _words(told: Mapping[str, Any], n_turns: int) -> Words | None:
    turn, who, at_s, text = told.get("turn"), told.get("who"), _seconds(told.get("start_ms")), _text(told.get("text"))
    if who not in ("caller", "bot") or not isinstance(turn, int) or at_s is None or not text:
        return None
    return Words(min(max(turn, 0), n_turns), str(who), at_s, text)


def _finding(told: Mapping[str, Any]) -> Finding | None:
    level, id, message, count = (told.get(name) for name in ("level", "id", "message", "count"))
    if not isinstance(message, str):
        return None
    return Finding(
        "fail" if level == "fail" else "warn", _text(id), _text(message), count if isinstance(count, int) else 1
    )


def _items(report: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    value = report.get(name)
    return [each for each in value[:_LIMIT] if isinstance(each, Mapping)] if isinstance(value, list) else []


def _text(value: object) -> str:
    text = value if isinstance(value, str) else ""
    return text if len(text) <= _TEXT_LIMIT else f"{text[:_TEXT_LIMIT]}…"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e12 else None


def _seconds(ms: object) -> float | None:
    number = _number(ms)
    return None if number is None else number / 1000


def _track(samples: Any) -> Samples:
    return np.asarray(samples, np.int16)
