"""What of a traced call is placed again, and what of it is missing."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsvoice.audio import resample
from wsvoice.config import DialConfig
from wsvoice.config.values import pairs
from wsvoice.dial.replay import RecordedCaller, ReplayScript
from wsvoice.dial.script import Clip, Keys, Turn
from wsvoice.dial.sound_detection import SILENCE_MS, SoundDetector
from wsvoice.dial.steps import Action, Awaits, StepScript
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import ConfigError, TraceError, UsageError
from wsvoice.providers import PROVIDERS
from wsvoice.replay.acts import CallerAct, cut_out, hides_keys, read_acts, read_pressed, read_utterances
from wsvoice.trace import Trace
from wsvoice.trace.reader import MAX_TRACK_IN_MEMORY
from wsvoice.trace.redaction import MASK

#: A call that takes longer is not placed again, in seconds: it is played at the pace of the telephone.
MAX_REPLAY_S = 4 * 3600.0
#: How much longer than the recorded call one may last that waits for the bot, in seconds and of itself.
LONGER_S, LONGER = 60.0, 2.0
#: How long the parameters of a call to a bot that is served may be, in characters: they are on its command line.
MAX_SERVED_PARAMETERS = 65_536

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

EndedBy = Literal["caller", "bot", ""]


@dataclass(frozen=True)
class Plan:
    """
    What a caller does again.

    Attributes:
        acts: What it did, in order.
        greets: Whether the bot spoke before that.
        duration_s: How long the call lasted.
        ended_by: Who ended it; empty if that is not known, or a server that was stopped.
        provider: The company of the call.
        missing: What is missing in the trace, each in one line.
    """

    acts: tuple[CallerAct, ...]
    greets: bool
    duration_s: float
    ended_by: EndedBy
    provider: str
    missing: tuple[str, ...]


def read_plan(trace: Trace) -> Plan:
    """
    Return what of a call is placed again.

    Raises:
        TraceError: If there is nothing in it that could be.
    """
    pressed = read_pressed(trace)
    lasted_s = max([len(trace.caller) / trace.rate, len(trace.bot) / trace.rate, *(at_s for at_s, _ in pressed)])
    if lasted_s > MAX_REPLAY_S:
        raise TraceError(
            f"the call of {trace.path} lasted {lasted_s / 3600:.1f} h, and {MAX_REPLAY_S / 3600:g} h is the most"
            " that is placed again",
            hint="use a shorter call",
        )
    if not trace.is_held:
        raise TraceError(
            f"{trace.path} is too large to be placed again: a track of it has more than"
            f" {MAX_TRACK_IN_MEMORY // 1024**2} MiB",
            hint="use a shorter call",
        )
    caller, bot = read_utterances(trace)
    if not caller and not pressed:
        left_out = " but keys that were left out" if hides_keys(trace) else ""
        raise TraceError(
            f"{trace.path} has nothing of the caller{left_out}: it neither speaks nor presses a key",
            hint="use a call in which the caller does something, traced without `--redact digits` if it presses keys",
        )
    acts = tuple(read_acts(caller, pressed, bot, lasted_s))
    return Plan(
        acts=acts,
        greets=bool(bot) and bot[0].start_s < acts[0].start_s,
        duration_s=lasted_s,
        ended_by=_ended_by(trace),
        provider=trace.provider,
        missing=tuple(_missing(trace, lasted_s)),
    )


def _check_provider(trace: Trace, provider: str | None) -> None:
    own = trace.provider
    if own not in PROVIDERS:
        what = "a plain client's session" if own.startswith("websocket") else f"a call of {own[:40]!r}"
        raise TraceError(
            f"{trace.path} is the trace of {what}, and only calls of providers are placed again",
            hint=f"providers are {', '.join(PROVIDERS)}",
        )
    if provider is not None and provider != own:
        raise TraceError(
            f"{trace.path} is the trace of a call of {own}, and {provider} is to be played",
            hint=f"leave the provider out, or play {own}",
        )


def _ended_by(trace: Trace) -> EndedBy:
    by = trace.ended.get("by")
    # What went wrong in the bot ended the call as the bot does; a server that was stopped says nothing of it.
    ended: dict[Any, EndedBy] = {"caller": "caller", "bot": "bot", "error": "bot"}
    return ended.get(by, "") if isinstance(by, str) else ""


def _missing(trace: Trace, lasted_s: float) -> list[str]:
    found = []
    if not trace.ended:
        found.append(f"the trace was cut off after {lasted_s:.1f} s, and the call is placed again as far as that")
    elif not trace.is_complete:
        lost = ", ".join(sorted(trace.dropped)) or "the end of its files"
        found.append(f"the trace is not complete ({lost[:80]} missing), and the call is placed again as far as it goes")
    if MASK in (trace.call.from_number, trace.call.to_number):
        found.append("the numbers were left out of the trace: other ones are used")
    if names := [name for name, value in trace.call.parameters.items() if MASK in value]:
        found.append(f"parameters were left out of the trace: {', '.join(names)[:200]}")
    if hides_keys(trace):
        found.append("the keys were left out of the trace: none are pressed or compared")
    return found


def configure(trace: Trace, config: DialConfig, given: Collection[str]) -> DialConfig:
    """
    Return how the call is placed again: as it was, but for what was asked for.

    Args:
        trace: The call.
        config: What the settings say.
        given: The names of the options that were given, such as ``from``.

    Raises:
        TraceError: If it is no call of a provider, or not of the one that was asked for.
        UsageError: If the new call's trace or recording would take its place.
    """
    for option, file in (("--trace", config.trace), ("--record", config.record)):
        if file is not None:
            check_not_replaced(trace.path, file, option)
    _check_provider(trace, config.transport if "transport" in given else None)
    _check_words(trace, given, is_served="://" not in config.target)
    call = trace.call
    values: dict[str, Any] = {
        **{name: value for name, value in (("from", call.from_number), ("to", call.to_number)) if _is_known(value)},
        "transport": trace.provider,
    }
    if parameters := _known(call.parameters):
        values["param"] = parameters
    if quirks := _known(trace.quirks):
        values["quirk"] = quirks
    fields = {"from": "from_number", "to": "to_number", "param": "parameters", "quirk": "quirks"}
    chosen = {fields.get(name, name): value for name, value in values.items() if name not in given}
    # What the project's settings have callers do is not what this one did.
    alone: dict[str, Any] = {
        "audio": (),
        "say": (),
        "dtmf": "",
        "caller": None,
        "probe": False,
        "duration_s": None,
        "calls": None,
    }
    return replace(config, **chosen, **alone, find_knee=False)


def _check_words(trace: Trace, given: Collection[str], *, is_served: bool) -> None:
    """Make sure that what the trace says of its call can be said of another one, to a bot that is served or a URL."""
    call = trace.call
    used: dict[str, tuple[str, Mapping[str, str]]] = {
        "from": ("the number that calls", {"": call.from_number}),
        "to": ("the number that is called", {"": call.to_number}),
        "param": ("a parameter", call.parameters),
        "quirk": ("a quirk", trace.quirks),
    }
    for option, (what, words) in used.items():
        if option not in given and any(map(_CONTROL.search, [*words, *words.values()])):
            raise TraceError(f"{what} of {trace.path} has control characters", hint=f"give another: --{option}")
    if "param" in given or not is_served:
        return
    parameters = _known(call.parameters)
    if sum(len(name) + len(value) for name, value in parameters.items()) > MAX_SERVED_PARAMETERS:
        most = f"{MAX_SERVED_PARAMETERS} characters are the most that a bot is served with"
        raise TraceError(f"the parameters of {trace.path} are too long: {most}", hint="give others: --param KEY=VALUE")
    try:
        pairs("--param language=en")(parameters, "its parameter")
    except ConfigError as error:
        message = f"{trace.path} cannot be placed again: {error.message[:300]}"
        raise TraceError(message, hint="give others: --param KEY=VALUE") from None


def check_not_replaced(recorded: Path, file: Path, who: str) -> None:
    """
    Make sure that a call that is placed again stays as it is.

    Args:
        recorded: Its trace.
        file: What is to be written; nothing has to be there.
        who: What says so, such as ``--trace``.

    Raises:
        UsageError: If that would replace the trace or a part of it, whatever name or link leads there.
    """
    # Links that lead nowhere, or in circles, are no error here.
    known, new = (Path(os.path.realpath(each)) for each in (recorded, file))
    try:
        is_same = recorded.samefile(file)
    except OSError:
        is_same = False
    if is_same or new == known or known in new.parents or new in known.parents:
        raise UsageError(f"{who} would replace {recorded}, which is placed again", hint="name another file")


def _is_known(value: str) -> bool:
    return bool(value) and MASK not in value


def _known(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if MASK not in value}


# Who speaks


def timeouts(plan: Plan, *, adaptive: bool) -> Timeouts:
    """Return how long the call may last."""
    return Timeouts(call_s=plan.duration_s * (LONGER if adaptive else 1) + LONGER_S)


def replay_script(
    trace: Trace, plan: Plan, detector: SoundDetector, sample_rate: int, *, response_timeout_s: float
) -> ReplayScript:
    """Return who says everything at its time; if the bot ended the call, it waits for that."""
    samples = trace.caller
    if trace.rate != sample_rate:
        samples = np.frombuffer(resample(samples.tobytes(), trace.rate, sample_rate), "<i2")
    patience_s = response_timeout_s if plan.ended_by == "bot" else 0.0
    recorded = RecordedCaller(
        samples,
        [(at_s * 1000, key) for at_s, key in read_pressed(trace)],
        [(act.start_s * 1000, act.end_s * 1000) for act in plan.acts],
        frozenset(number for number, act in enumerate(plan.acts) if act.interrupt_s is not None),
        (max(plan.duration_s, plan.acts[-1].end_s) + patience_s) * 1000,
    )
    return ReplayScript(recorded, detector, sample_rate=sample_rate)


def adaptive_script(
    trace: Trace, plan: Plan, detector: SoundDetector, sample_rate: int, *, response_timeout_s: float
) -> StepScript:
    """Return who begins each turn when the bot has finished, as the steps of a scenario are carried out."""
    actions = [Action("the greeting")] if plan.greets else []
    for number, act in enumerate(plan.acts):
        is_last = number + 1 == len(plan.acts)
        turn: Turn = Keys(act.keys) if act.keys else Clip(f"turn {number + 1}", cut_out(trace, act), trace.rate)
        awaits: Awaits = "answer"
        wait_ms = None
        if is_last and plan.ended_by == "bot":
            awaits = "end"
        elif not is_last and plan.acts[number + 1].interrupt_s is not None:
            awaits = "nothing"
        elif act.wait_s is None:
            awaits, wait_ms = "silence", max(SILENCE_MS, act.silent_s * 1000)
        interrupt_ms = None if act.interrupt_s is None else act.interrupt_s * 1000
        actions.append(Action(f"turn {number + 1}", turn, interrupt_ms, awaits, wait_ms))
    # The bot is given as long to speak first as it was.
    listen_s = math.floor(plan.acts[0].start_s * 10) / 10
    return StepScript(
        actions, detector, sample_rate=sample_rate, listen_s=listen_s, response_timeout_s=response_timeout_s
    )
