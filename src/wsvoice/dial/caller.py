"""
A simulated call: what the user asks for is checked, the bot's process is started, and the call is placed.

This module imports little, because a bot takes longest to start: what the call itself needs is imported meanwhile.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsvoice.config import DialConfig
from wsvoice.dial.clock import Clock
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.report import CallReport, TimelineEvent
from wsvoice.dial.serving import Serving
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.target import parse_target
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import UsageError
from wsvoice.providers import load_simulator

if TYPE_CHECKING:
    from wsvoice.dial.call_trace import CallTrace
    from wsvoice.dial.caller_bot import CallerBot
    from wsvoice.dial.placed_call import MakeSpeaker, PlacedCall
    from wsvoice.words import Transcribe

#: How long a call with a bot as the caller lasts, unless the user says otherwise.
CALLER_DURATION_S = 30.0


async def dial(
    config: DialConfig,
    *,
    on_event: Callable[[TimelineEvent], None] = lambda event: None,
    on_happening: Callable[[TimelineEvent], None] = lambda event: None,
    on_passed: Callable[[CallReport], None] = lambda report: None,
    clock: Clock | None = None,
    timeouts: Timeouts | None = None,
    speaker: MakeSpeaker | None = None,
) -> CallReport:
    """
    Place a simulated call.

    What goes wrong at the other end is in the report, whose verdict is then ``failed``. If it is cancelled, it hangs
    up in good order and writes the recording first.

    Args:
        config: Whom to call, and what to say.
        on_event: Called with each event as it happens, in the order of their times, up to 0.8 s late.
        on_happening: Called with each event at once, in the order in which they become known.
        on_passed: Called with the report of a call that has passed, before the bot that was served for it is stopped.
        clock: The clock of the call's media; the system's unless given.
        timeouts: How long to wait for the other end.
        speaker: Makes who speaks for the caller, instead of what `config` has it say.

    Raises:
        UsageError: If the call cannot be placed as the user asked.
        BotImportError: If the caller is a bot that fails while it is imported.
    """
    target = parse_target(config.target)
    times = {"duration": config.duration_s, "listen": config.listen_s, "response timeout": config.response_timeout_s}
    for name, time_s in times.items():
        # Not `time_s < 0`, which is false for NaN.
        if time_s is not None and not 0 <= time_s < math.inf:
            raise UsageError(f"the {name} cannot be {time_s:g} s: it takes 0 or more")
    if config.record is not None:
        _check_recording(config.record)
    transcribe = await _load_transcriber(config)
    clock = clock or Clock()
    trace: CallTrace | None = None
    if config.trace is not None:
        from wsvoice.dial.call_trace import CallTrace, teed

        trace = CallTrace(config, clock)
        on_event = teed(trace, on_event)
    elif config.redact is not None:
        raise UsageError(
            "--redact is about a trace, and there is none", hint="add `--trace FILE.call`, or leave it out"
        )
    timeline = Timeline(on_event, clock, on_happening)
    bot: CallerBot | None = None
    if (spec := config.caller) is not None:
        if config.audio or config.say or config.dtmf:
            raise UsageError("a caller that is a bot says what it likes", hint="leave out --audio, --say and --dtmf")
        if config.duration_s is None:
            config = replace(config, duration_s=CALLER_DURATION_S)
        # In a thread, because it takes a while and may run its own event loop.
        bot = await asyncio.to_thread(_load_caller, spec, lambda line: timeline.add("caller-log", line))
    provider = load_simulator(config.transport, config.credentials, config.quirks)
    behaviour, serves_bot = read_behaviour(provider), target.kind == "bot"
    timeouts = timeouts or Timeouts()
    setup = CallSetup(config, serves_bot, provider, behaviour, timeline, clock, timeouts, trace, transcribe)
    report: CallReport | None = None
    placed: PlacedCall | None = None
    try:
        async with AsyncExitStack() as stack:
            serving = await stack.enter_async_context(Serving(target.value, setup)) if serves_bot else None
            from wsvoice.dial.placed_call import PlacedCall

            placed = PlacedCall(setup, target, bot, serving, speaker)
            report = await placed.call(on_passed)
    finally:
        if trace is not None:
            # Also if it is cancelled; when the call was over by then, only words are missing.
            report = await trace.finish(report or (placed.judged if placed else None), timeline)
    assert report is not None
    return report


async def _load_transcriber(config: DialConfig) -> Transcribe | None:
    if config.transcriber is None:
        return None
    from wsvoice.words import load_transcriber

    # In a thread, because loading a model takes a while.
    return await asyncio.to_thread(load_transcriber, config.transcriber, config.transcriber_model, config.model_key)


#: Importing a bot replaces the command line and the event loop, of which a process has one.
_LOADING = threading.Lock()


def _load_caller(spec: str, on_line: Callable[[str], None]) -> CallerBot:
    with _LOADING:
        # pipecat takes a second to import, and scripted calls do not need it.
        from wsvoice.pipecat_contracts import require_caller_features

        require_caller_features()
        from wsvoice.dial.caller_bot import CallerBot

        return CallerBot(spec, on_line)


def _check_recording(path: Path) -> None:
    # Checked before the call, not after it.
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path} cannot be written: its folder does not exist", hint="make the folder first")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"give a file: {path / 'call.wav'}")
