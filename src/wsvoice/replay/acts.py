"""What the caller of a traced call did, one thing after the other, and what the bot did then."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from wsvoice.dial.script import DIGIT_PAUSE_MS, DIGIT_STEP_MS
from wsvoice.errors import TraceError, UsageError
from wsvoice.trace import Trace
from wsvoice.trace.redaction import MASK
from wsvoice.trace.sound import FRAME_S, Utterance, levels, utterances
from wsvoice.trace.writer import MASKED_DIGIT

#: What is cut out of the caller's track begins so much before what is audible, and ends so much after it, in seconds.
CUT_MARGIN_S = 0.06
#: Sounds that meet for less than this do so by chance: either end hears the other a little later, in seconds.
CHANCE_S = 0.2
#: A sound is placed by pieces of 20 ms, and a key to the moment.
_EXACT_S = 2 * FRAME_S
#: The most that a caller does in a call that is repeated.
MAX_STEPS = 500
#: The most keys that are pressed in a call that is repeated.
MAX_KEYS = 5000

_KEYS = {"caller": re.compile(r"[0-9*#A-D]"), "bot": re.compile(r"[0-9*#A-DwW]+")}
#: What a trace says that is older than the event's fields.
_SENTENCE = re.compile(r"the (caller|bot) presses ([0-9*#A-DwW]+)")


@dataclass(frozen=True, slots=True)
class CallerAct:
    """
    What the caller did until the bot spoke or the caller did something else.

    Attributes:
        start_s: When it began, in seconds since the stream started.
        end_s: Its last sound or key.
        keys: The keys that were pressed, with ``w`` for pauses; empty for something said.
        interrupt_s: For how long the bot had spoken when it began; ``None`` if the bot was silent.
        wait_s: How long the caller then waited for the bot's first sound; ``None`` if there was none.
        silent_s: For how long the bot was then silent, where it made no sound; until the next act or the end.
    """

    start_s: float
    end_s: float
    keys: str = ""
    interrupt_s: float | None = None
    wait_s: float | None = None
    silent_s: float = 0.0


def read_acts(
    caller: Sequence[Utterance], pressed: Sequence[tuple[float, str]], bot: Sequence[Utterance], duration_s: float
) -> list[CallerAct]:
    """
    Return what a caller did, each with what the bot did then.

    What it says is one act until the bot begins to speak, pauses included; so is what it presses.

    Args:
        caller: When it was heard.
        pressed: When it pressed which key.
        bot: When the bot was heard.
        duration_s: How long the call lasted.

    Raises:
        UsageError: If it did more than a scenario can say.
    """
    moves = sorted([(each.start_s, each.end_s, "") for each in caller] + [(at_s, at_s, key) for at_s, key in pressed])
    starts = [each.start_s for each in bot]
    joined: list[tuple[float, float, str]] = []
    for start_s, end_s, key in moves:
        if joined and bool(joined[-1][2]) == bool(key):
            first_s, last_s, keys = joined[-1]
            next_start = bisect_right(starts, first_s)
            if next_start == len(starts) or starts[next_start] > start_s - _EXACT_S:
                joined[-1] = (first_s, max(last_s, end_s), keys + _pause(start_s - last_s, key) + key)
                continue
        joined.append((start_s, end_s, key))
    if len(joined) > MAX_STEPS:
        raise UsageError(f"the caller did {len(joined)} things in this call, and a scenario may have {MAX_STEPS} steps")
    acts, before_s = list[CallerAct](), 0.0
    for number, (start_s, end_s, keys) in enumerate(joined):
        next_s = joined[number + 1][0] if number + 1 < len(joined) else max(duration_s, end_s)
        speaks = next((each for each in bot if each.end_s > before_s), None)
        is_interrupted = any(each.start_s < start_s - _EXACT_S and start_s < each.end_s - CHANCE_S for each in bot)
        # A key that is pressed while the caller itself speaks interrupts nobody, whoever echoes meanwhile.
        is_interrupted = is_interrupted and start_s >= before_s
        interrupt_s = start_s - max(speaks.start_s, before_s) if speaks is not None and is_interrupted else None
        answer = find_answer(bot, start_s, end_s, next_s)
        wait_s = None if answer is None else max(0.0, answer.start_s - end_s)
        acts.append(CallerAct(start_s, end_s, keys, interrupt_s, wait_s, max(0.0, next_s - end_s)))
        before_s = end_s
    return acts


def find_answer(bot: Sequence[Utterance], start_s: float, end_s: float, next_s: float) -> Utterance | None:
    """
    Return what answers a caller that spoke from `start_s` to `end_s`, and did its next thing at `next_s`.

    Args:
        bot: When the bot was heard.
    """
    # One that echoes the caller has finished with it.
    answer = next((each for each in bot if each.end_s > end_s - CHANCE_S and each.start_s < next_s), None)
    if answer is not None and answer.start_s < start_s and answer.end_s < end_s + CHANCE_S:
        # It was interrupted, and has not answered.
        answer = next((each for each in bot if each.start_s > end_s and each.start_s < next_s), None)
    return answer


def _pause(after_s: float, key: str) -> str:
    """Return the pauses between a key and the one before it, as a scenario writes them."""
    return "w" * round(max(0.0, after_s * 1000 - DIGIT_STEP_MS) / DIGIT_PAUSE_MS) if key else ""


def read_utterances(trace: Trace) -> tuple[list[Utterance], list[Utterance]]:
    """Return when the caller and when the bot of a call were heard."""
    caller, bot = (utterances(levels(track, trace.rate)) for track in (trace.caller, trace.bot))
    return caller, bot


def cut_out(trace: Trace, act: CallerAct) -> bytes:
    """Return what the caller said in an act, 16-bit little-endian."""
    first = max(0, round((act.start_s - CUT_MARGIN_S) * trace.rate))
    return trace.caller[first : round((act.end_s + CUT_MARGIN_S) * trace.rate)].tobytes()


def read_pressed(trace: Trace) -> list[tuple[float, str]]:
    """
    Return when the caller pressed which key, as far as the trace says so.

    Raises:
        TraceError: If it pressed more than :data:`MAX_KEYS`.
    """
    pressed = list(read_digits(trace, "caller"))
    if len(pressed) > MAX_KEYS:
        raise TraceError(
            f"the caller of {trace.path} presses {len(pressed)} keys,"
            f" and {MAX_KEYS} are the most that are pressed again",
            hint="use a shorter call",
        )
    return pressed


def read_digits(trace: Trace, who: Literal["caller", "bot"]) -> Iterator[tuple[float, str]]:
    """Yield what one end pressed at once, and when, as its provider told; a bot's may have ``w`` for pauses."""
    for event in trace.timeline:
        if event.event != "digit":
            continue
        by, keys = event.fields.get("who"), event.fields.get("digit")
        if by is None and (match := _SENTENCE.fullmatch(event.detail)) is not None:
            by, keys = match.groups()
        if by == who and isinstance(keys, str) and _KEYS[who].fullmatch(keys):
            yield event.t, keys


def hides_keys(trace: Trace) -> bool:
    """Return whether keys were pressed in the call, and which ones was left out of the trace."""
    hidden = (MASKED_DIGIT, f"the caller presses {MASK}")
    return any(event.event == "digit" and event.detail.startswith(hidden) for event in trace.timeline)
