"""Writes the scenario of a call that was traced: the caller does again what it did, and the bot is to be as good."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsvoice.audio import write_wav
from wsvoice.errors import UsageError
from wsvoice.providers import PROVIDERS
from wsvoice.replay.acts import CallerAct, cut_out, hides_keys, read_acts, read_pressed, read_utterances
from wsvoice.scenarios import SUFFIX
from wsvoice.scenarios.loading import parse_scenario
from wsvoice.trace import Trace
from wsvoice.trace.redaction import MASK
from wsvoice.trace.sound import Utterance

#: How much longer than in the trace the caller may wait for an answer: of the wait itself, and besides, in seconds.
SLOWER, MARGIN_S = 0.5, 0.2
_NAME_ANOTHER = f"name another scenario: NAME{SUFFIX}"


def write_scenario(trace: Trace, file: Path) -> list[Path]:
    """
    Write the scenario of a call, and beside it what the caller said; return the files, the scenario first.

    Args:
        trace: The call.
        file: The scenario, ``NAME.call.toml``.

    Raises:
        UsageError: If no scenario can be made of the call, or a file is there already or cannot be written.
    """
    if hides_keys(trace):
        raise UsageError(
            "which keys the caller pressed was left out of this trace", hint="trace a call without --redact digits"
        )
    caller, bot = read_utterances(trace)
    acts = read_acts(caller, read_pressed(trace), bot, trace.duration_s)
    name = file.name.removesuffix(SUFFIX)
    spoken = [act for act in acts if not act.keys]
    sounds = {act: file.with_name(f"{name}-{number}.wav") for number, act in enumerate(spoken, 1)}
    table = _table(trace, bot, acts, sounds, file.absolute().parent)
    text = f"# From the trace of {_comment(_who(trace))}: what its caller did, and how long the bot took to answer.\n"
    text += _to_toml(table)
    # What is written can be read, whatever the trace says.
    parse_scenario(text, file)
    written = [file, *sounds.values()]
    try:
        for each in written:
            if each.exists():
                raise UsageError(f"{each} is there already", hint=_NAME_ANOTHER)
        for act, path in sounds.items():
            # Never over a file, not even one that a link points to that seems to lead nowhere.
            with path.open("xb") as sound:
                write_wav(sound, [cut_out(trace, act)], trace.rate)
        with file.open("x", encoding="utf-8") as scenario:
            scenario.write(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror or error}", hint=_NAME_ANOTHER) from error
    return written


# What the scenario says


def _table(
    trace: Trace, bot: Sequence[Utterance], acts: Sequence[CallerAct], sounds: Mapping[CallerAct, Path], folder: Path
) -> dict[str, Any]:
    call = trace.call
    table: dict[str, Any] = {}
    if trace.target:
        table["target" if "://" in trace.target else "bot"] = _relative(trace.target, folder)
    if trace.provider in PROVIDERS:
        table["providers"] = [trace.provider]
    numbers = {"from": call.from_number, "to": call.to_number}
    table |= {name: number for name, number in numbers.items() if number and MASK not in number}
    if parameters := {name: value for name, value in call.parameters.items() if MASK not in value}:
        table["parameters"] = parameters
    begins_s = acts[0].start_s if acts else trace.duration_s
    if bot and bot[0].start_s < begins_s:
        table["greeting"] = {"answered_within": _limit(bot[0].start_s)}
    elif acts:
        # The bot is given as long to speak first as it was.
        table["listen"] = math.floor(begins_s * 10) / 10
    steps = [_step(act, sounds.get(act)) for act in acts]
    ended_by = trace.ended.get("by")
    if ended_by == "bot" and steps:
        steps[-1].pop("silent", None)
        steps[-1]["ended_by"] = "bot"
    elif ended_by == "bot":
        raise UsageError(
            "the caller neither spoke nor pressed a key in this call, and the bot ended it",
            hint="use a call in which the caller does something",
        )
    elif ended_by == "caller" or not steps:
        steps.append({"hang_up": True, "ended_by": "caller"})
    table["steps"] = steps
    return table


def _step(act: CallerAct, sound: Path | None) -> dict[str, Any]:
    step: dict[str, Any] = {"press": act.keys} if sound is None else {"audio": sound.name}
    if act.interrupt_s is not None:
        step["interrupt"] = math.floor(act.interrupt_s * 10) / 10
    if act.wait_s is not None:
        step["answered_within"] = _limit(act.wait_s)
    else:
        step["silent"] = max(0.1, math.floor(act.silent_s * 10) / 10)
    return step


def _limit(wait_s: float) -> float:
    """Return the longest wait that is no worse than `wait_s`, to a tenth of a second."""
    return math.ceil((wait_s * (1 + SLOWER) + MARGIN_S) * 10 - 1e-6) / 10


def _relative(target: str, folder: Path) -> str:
    """Return a bot's path as a scenario in `folder` names it; anything else as it is."""
    path = Path(target)
    return path.relative_to(folder).as_posix() if path.is_absolute() and path.is_relative_to(folder) else target


def _who(trace: Trace) -> str:
    return trace.call.call_id or trace.path.name


# TOML


#: What is said of some keys, for whoever reads the file.
_NOTES = {"silent": "  # the bot did not answer; `answered_within`, if it should"}


def _to_toml(table: Mapping[str, Any]) -> str:
    lines = [f"{name} = {_value(value)}" for name, value in table.items() if name not in ("greeting", "steps")]
    for heading in ("greeting", "steps"):
        tables = table.get(heading, [])
        for each in [tables] if isinstance(tables, Mapping) else tables:
            lines += ["", f"[{heading}]" if heading == "greeting" else f"[[{heading}]]"]
            lines += [f"{name} = {_value(value)}{_NOTES.get(name, '')}" for name, value in each.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # TOML's texts are JSON's, but for one character; half a pair of surrogates is none.
        text = value.encode("utf-8", "replace").decode()
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(name)} = {_value(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}"


def _comment(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)[:80]
