"""
Two calls with the same caller: what the bot did in each turn, and what is different.

Pure: both calls are given as what is known of them, and nothing is read or placed here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import resample
from wsvoice.dial.report import plain
from wsvoice.replay.acts import MAX_KEYS, find_answer
from wsvoice.replay.likeness import RATE, Likeness, compare_sounds
from wsvoice.trace.sound import Utterance

#: What calls are compared by; all but the turns may be left out.
Kind = Literal["turns", "waits", "sound", "keys", "end", "findings", "failure"]
#: How much longer than in the recorded call the caller may wait in any case, in seconds.
LEAST_SLOWER_S = 0.25
#: How much longer the bot may speak in a turn: of the recorded time, and at least, in seconds.
LONGER, LEAST_LONGER_S = 0.5, 0.5
#: By how many decibels what is the same may be louder or quieter.
MAX_LEVEL_DB = 6.0
#: How much of what the bot said may not be heard again, in seconds; of less than twice that, half.
LEAST_UNHEARD_S = 0.4
#: What is said in a turn may end so much after it, in seconds: in today's call it may begin later.
_OVERHANG_S = 1.0
#: What messages call the time before the caller does anything.
GREETING = "greeting"
#: Findings that depend on how busy this machine is.
_OF_THE_MACHINE = {("warn", "M2")}
#: How many of a turn's keys a message has.
_SHOWN_KEYS = 60
#: How many keys the bot has to press where it pressed none: one may be heard in speech by mistake.
_BY_MISTAKE = 1


@dataclass(frozen=True)
class Limits:
    """
    How alike two calls have to be.

    Attributes:
        max_slower: By how much of itself a wait may grow; by :data:`LEAST_SLOWER_S` it may in any case.
        correlation: How similar what was heard has to be: 1 is the same.
        ignored: What is not compared, as :data:`~wsvoice.config.Ignored` has it.
    """

    max_slower: float
    correlation: float
    ignored: frozenset[str] = frozenset()

    def may_wait_s(self, recorded_s: float) -> float:
        """Return the longest wait that is no difference."""
        return recorded_s + max(LEAST_SLOWER_S, self.max_slower * recorded_s)


@dataclass(frozen=True)
class Span:
    """
    What the caller did, in seconds since the stream started; of the greeting, nothing.

    Attributes:
        name: What messages call it.
        start_s: Its first sound or key.
        end_s: Its last one.
        keys: Which keys it pressed; empty for something said.
    """

    name: str
    start_s: float
    end_s: float
    keys: str = ""


@dataclass(frozen=True)
class KnownCall:
    """
    What is known of a call. Times are in seconds since its stream started.

    Attributes:
        spans: What the caller did, the greeting first if there is one; those that have begun.
        bot: The bot's samples.
        rate: Samples a second of these.
        sounds: When the bot was heard.
        duration_s: How long it lasted.
        ended_by: ``caller`` or ``bot``; empty if that is not known.
        bot_keys: What the bot pressed, and when, by its provider or as tones; ``None`` if that was left out.
        findings: What was found wrong, as level, id and message; ``None`` where nobody looked.
        transferred_to: To whom the bot transferred the call; empty for nobody.
        failure: Why it failed; empty if it did not.
        is_cut_off: Whether what there was at its end is missing.
    """

    spans: Sequence[Span]
    bot: NDArray[np.int16] = field(repr=False)
    rate: int
    sounds: Sequence[Utterance]
    duration_s: float
    ended_by: str = ""
    bot_keys: Sequence[tuple[float, str]] | None = ()
    findings: Sequence[tuple[str, str, str]] | None = None
    transferred_to: str = ""
    failure: str = ""
    is_cut_off: bool = False

    def next_s(self, number: int) -> float:
        """Return when the caller did its next thing, or the call was over."""
        end_s = max(self.duration_s, self.spans[number].end_s)
        return self.spans[number + 1].start_s if number + 1 < len(self.spans) else end_s

    def wait_s(self, number: int) -> float | None:
        """Return how long the caller waited for the answer in a turn; ``None`` if there was none."""
        span = self.spans[number]
        answer = find_answer(self.sounds, span.start_s, span.end_s, self.next_s(number))
        return None if answer is None else max(0.0, answer.start_s - span.end_s)

    def keys(self, number: int) -> str:
        """Return the keys that the bot pressed in a turn."""
        first_s, next_s = self.spans[number].start_s, self.next_s(number)
        return "".join(keys for at_s, keys in self.bot_keys or () if first_s <= at_s < next_s)[:MAX_KEYS]

    def samples(self, from_s: float, to_s: float) -> NDArray[np.int16]:
        """Return what the bot said in a part of the call, at the telephone's rate."""
        part = self.bot[max(0, round(from_s * self.rate)) : max(0, round(to_s * self.rate))]
        if self.rate == RATE:
            return part
        return np.frombuffer(resample(part.tobytes(), self.rate, RATE), "<i2")

    def heard(self, number: int) -> list[Utterance]:
        """Return when the bot was heard in a turn."""
        first_s, next_s = self.spans[number].start_s, self.next_s(number)
        cut = (Utterance(max(each.start_s, first_s), min(each.end_s, next_s)) for each in self.sounds)
        return [each for each in cut if each.end_s > each.start_s]


@dataclass(frozen=True)
class Difference:
    """
    What is not as it was in the recorded call.

    Attributes:
        kind: What was compared.
        turn: The turn's name; empty for the call as a whole.
        message: What is different, in one line.
    """

    kind: Kind
    turn: str
    message: str

    def __str__(self) -> str:
        return f"{self.turn}: {self.message}" if self.turn else self.message


@dataclass(frozen=True)
class TurnPair:
    """
    A turn in both calls. Times are in milliseconds.

    Attributes:
        name: The turn.
        recorded_wait_ms, wait_ms: How long the caller waited; ``None`` for no answer.
        recorded_heard_ms, heard_ms: How long the bot was heard.
        unheard_ms: How much of what it said was not heard again; ``None`` where that was not compared.
        recorded_keys, keys: What the bot pressed.
        start_ms, end_ms: When today's caller began it, and was done; ``None`` if the call did not come to it.
    """

    name: str
    recorded_wait_ms: float | None
    wait_ms: float | None
    recorded_heard_ms: float
    heard_ms: float
    unheard_ms: float | None = None
    recorded_keys: str = ""
    keys: str = ""
    start_ms: float | None = None
    end_ms: float | None = None

    @property
    def is_reached(self) -> bool:
        """Whether today's call came to this turn."""
        return self.start_ms is not None


@dataclass(frozen=True)
class Comparison:
    """
    How today's call compares with the recorded one.

    Attributes:
        recorded: The path of the recorded call.
        adaptive: Whether the caller waited for the bot.
        turns: Every turn of the recorded call, the greeting first.
        differences: What is different.
        notes: What could not be compared, or is no difference by itself.
    """

    recorded: str
    adaptive: bool
    turns: Sequence[TurnPair]
    differences: Sequence[Difference]
    notes: Sequence[str] = ()

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "call": self.recorded,
            "adaptive": self.adaptive,
            "same": self.same,
            "turns": plain(self.turns),
            "differences": plain(self.differences),
            "notes": list(self.notes),
        }

    def to_lines(self) -> list[str]:
        """Return a table of the turns, and what is different, in words."""
        lines = _table(self.turns)
        lines += [f"note: {each}" for each in self.notes]
        return [*lines, *(f"different: {each}" for each in self.differences)]


def compare_calls(
    recorded: KnownCall, today: KnownCall, limits: Limits, *, path: str, adaptive: bool, notes: Sequence[str] = ()
) -> Comparison:
    """
    Compare two calls.

    Args:
        recorded: The call that was recorded.
        today: The one that was placed now, with the same caller: its spans are the first ones of the recorded call's.
        limits: How alike they have to be.
        path: The path of the recorded call.
        adaptive: Whether the caller waited for the bot.
        notes: What is known to be missing.
    """
    if not today.spans:
        # Not even a stream was there.
        failed = Difference("failure", "", f"the call failed: {today.failure}")
        return Comparison(path, adaptive, (), (failed,), tuple(notes))
    turns, found = list[TurnPair](), list[Difference]()
    for number in range(len(recorded.spans)):
        pair, differences = _compare_turn(recorded, today, number, limits)
        turns.append(pair)
        found += differences
    told = list(notes)
    found += _compare_end(recorded, today)
    found += _compare_findings(recorded, today, told)
    found = [each for each in found if each.kind not in limits.ignored]
    if today.failure and not recorded.failure and not any(each.kind in ("turns", "end") for each in found):
        found.append(Difference("failure", "", f"the call failed: {today.failure}"))
    return Comparison(path, adaptive, tuple(turns), tuple(found), tuple(told))


# One turn


def _compare_turn(
    recorded: KnownCall, today: KnownCall, number: int, limits: Limits
) -> tuple[TurnPair, list[Difference]]:
    span = recorded.spans[number]
    was_s, was_heard_s = recorded.wait_s(number), _total_s(recorded.heard(number))
    if number >= len(today.spans):
        pair = TurnPair(span.name, _ms(was_s), None, was_heard_s * 1000, 0.0, None, recorded.keys(number))
        # Of all that did not come any more, the first is what is wrong.
        return pair, [_not_reached(today, span)] if number == len(today.spans) else []
    is_s = today.wait_s(number)
    likeness = _likeness(recorded, today, number, limits) if was_s is not None and is_s is not None else None
    pair = TurnPair(
        span.name,
        _ms(was_s),
        _ms(is_s),
        was_heard_s * 1000,
        _total_s(today.heard(number)) * 1000,
        None if likeness is None else likeness.unheard_s * 1000,
        recorded.keys(number),
        today.keys(number),
        today.spans[number].start_s * 1000,
        today.spans[number].end_s * 1000,
    )
    # Of a call that was cut off, nobody knows how it went on.
    goes_on = recorded.is_cut_off and number + 1 == len(recorded.spans)
    found = [("waits", each) for each in _waits_differ(was_s, is_s, limits, goes_on=goes_on, first=number == 0)]
    if likeness is not None:
        found += [("sound", each) for each in _sounds_differ(pair, likeness, limits, goes_on=goes_on)]
    if recorded.bot_keys is not None and today.bot_keys is not None:
        found += [("keys", each) for each in _keys_differ(pair)]
    return pair, [Difference(kind, span.name, message) for kind, message in found]  # type: ignore[arg-type]


def _not_reached(today: KnownCall, span: Span) -> Difference:
    before = f"before the caller had pressed {_cut(span.keys)}" if span.keys else "before the caller had finished it"
    after = f"after {today.duration_s:.2f} s"
    if today.ended_by == "bot":
        return Difference("turns", span.name, f"the bot ended the call {after}, {before}")
    why = f": {today.failure}" if today.failure else ""
    return Difference("turns", span.name, f"the call was over {after}, {before}{why}")


def _waits_differ(
    was_s: float | None, is_s: float | None, limits: Limits, *, goes_on: bool, first: bool
) -> Iterator[str]:
    """Yield how the caller's wait differs; the `first` is the one before it has said anything."""
    if first and was_s is None and is_s is not None and not goes_on:
        yield f"the bot spoke first, after {is_s:.2f} s; in the recorded call it waited for the caller"
    elif first and was_s is not None and is_s is None:
        yield f"the bot did not speak first; in the recorded call it did after {was_s:.2f} s"
    elif was_s is None and is_s is not None and not goes_on:
        yield f"the bot answered after {is_s:.2f} s, and said nothing in the recorded call"
    elif was_s is not None and is_s is None:
        yield f"the bot did not answer; in the recorded call it did after {was_s:.2f} s"
    elif was_s is not None and is_s is not None and is_s > limits.may_wait_s(was_s):
        yield f"the bot answered after {is_s:.2f} s, {is_s - was_s:.2f} s later than the recorded {was_s:.2f} s"


def _likeness(recorded: KnownCall, today: KnownCall, number: int, limits: Limits) -> Likeness | None:
    """Return how much of what the bot said in the recorded turn was heard today."""
    if "sound" in limits.ignored:
        return None
    was, now = recorded.heard(number), today.heard(number)
    if not was or not now:
        return None
    was_from_s, now_from_s = recorded.spans[number].start_s, today.spans[number].start_s
    said = [(each.start_s - was_from_s, recorded.samples(each.start_s, each.end_s)) for each in was]
    heard = today.samples(now_from_s, today.next_s(number) + _OVERHANG_S)
    later_s = (now[0].start_s - now_from_s) - said[0][0]
    return compare_sounds(said, heard, least=limits.correlation, later_s=later_s)


def _sounds_differ(pair: TurnPair, likeness: Likeness, limits: Limits, *, goes_on: bool) -> Iterator[str]:
    said_s, unheard_s = likeness.said_s, likeness.unheard_s
    if unheard_s >= min(LEAST_UNHEARD_S, said_s / 2):
        yield (
            f"the bot said something else: {unheard_s:.2f} s of the recorded {said_s:.2f} s were not heard"
            f" (a correlation of {likeness.correlation:.2f}, and {limits.correlation:g} is the least)"
        )
    elif abs(likeness.louder_db) > MAX_LEVEL_DB:
        how = "louder" if likeness.louder_db > 0 else "quieter"
        yield f"the bot was {abs(likeness.louder_db):.0f} dB {how} than in the recorded call"
    was_s, is_s = pair.recorded_heard_ms / 1000, pair.heard_ms / 1000
    if is_s > was_s + max(LEAST_LONGER_S, LONGER * was_s) and not goes_on:
        yield f"the bot spoke for {is_s:.1f} s, and for {was_s:.1f} s in the recorded call"


def _keys_differ(pair: TurnPair) -> Iterator[str]:
    was, now = pair.recorded_keys, pair.keys
    if was != now and (was or len(now) > _BY_MISTAKE):
        yield f"the bot pressed {_cut(now) or 'no keys'}, and {_cut(was) or 'no keys'} in the recorded call"


def _cut(keys: str) -> str:
    return keys if len(keys) <= _SHOWN_KEYS else f"{keys[:_SHOWN_KEYS]}… ({len(keys)} keys)"


def _total_s(sounds: Sequence[Utterance]) -> float:
    return sum(each.end_s - each.start_s for each in sounds)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


# The call as a whole


def _compare_end(recorded: KnownCall, today: KnownCall) -> Iterator[Difference]:
    was, now = recorded.ended_by, today.ended_by
    if was and now and was != now and len(today.spans) == len(recorded.spans):
        yield Difference(
            "end",
            "",
            f"the {now} ended the call, after {today.duration_s:.2f} s; in the recorded call the {was} did,"
            f" after {recorded.duration_s:.2f} s",
        )
    if recorded.findings is not None and today.transferred_to != recorded.transferred_to:
        to, before = (each.transferred_to or "nobody" for each in (today, recorded))
        yield Difference(
            "end", "", f"the bot transferred the call to {to[:60]}, and to {before[:60]} in the recorded call"
        )


def _compare_findings(recorded: KnownCall, today: KnownCall, told: list[str]) -> Iterator[Difference]:
    """Yield the findings that are new; what depends on how busy this machine is, is told only."""
    if recorded.findings is None or today.findings is None:
        return
    known = {(level, id) for level, id, _ in recorded.findings}
    for level, id, message in today.findings:
        if (level, id) in known or message == today.failure:
            continue
        if (level, id) in _OF_THE_MACHINE:
            told.append(f"{level} {id} is new: {message}")
        else:
            yield Difference("findings", "", f"{level} {id} is new: {message}")


# In words


def _table(turns: Sequence[TurnPair]) -> list[str]:
    rows = [("", "recorded", "today", "")]
    for each in turns:
        if not each.is_reached:
            rows.append((each.name, _wait(each.recorded_wait_ms), "not reached", ""))
        elif each.recorded_wait_ms is not None or each.wait_ms is not None or each.name != GREETING:
            rows.append((each.name, _wait(each.recorded_wait_ms), _wait(each.wait_ms), _changed(each)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = (
        f"{name:<{widths[0]}}  {was:>{widths[1]}}  {now:>{widths[2]}}  {changed}".rstrip()
        for name, was, now, changed in rows
    )
    return list(lines)


def _wait(wait_ms: float | None) -> str:
    return "no answer" if wait_ms is None else f"{wait_ms / 1000:.2f} s"


def _changed(pair: TurnPair) -> str:
    if pair.recorded_wait_ms is None or pair.wait_ms is None:
        return ""
    return f"{(pair.wait_ms - pair.recorded_wait_ms) / 1000:+.2f} s"
