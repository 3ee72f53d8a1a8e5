"""How many calls are placed, how fast and how long: from the settings, and what does not go together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from wsvoice.config import DialConfig
from wsvoice.dial.load.sound import length_s
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.script import Clip, load_turns, spoken
from wsvoice.errors import UsageError
from wsvoice.providers import load_simulator
from wsvoice.providers.base import Behaviour

#: How many calls are begun each second, unless the user says otherwise.
RAMP_PER_S = 5.0
#: How many calls at once are tried at the most when the knee is looked for.
MOST_CALLS = 500
#: How long all calls are up together, where callers have a sound of their own.
HOLD_S = 10.0
#: How much longer calls last whose knee is looked for, because the last ones take a while to be up.
SETUP_S = 1.0
#: What of an echo is late, unless the user says otherwise: with messages of 20 ms, 60 ms after they were sent.
MAX_LATE_AND_MESSAGE_S = 0.04
#: How much of the audio may be late, unless the user says otherwise.
MAX_LATE_SHARE = 0.01
#: How much audio all callers together may say: its messages are made beforehand, a gigabyte of them for so long.
TOTAL_LIMIT_S = 60_000.0
#: Open files of a process: for each call, and besides.
_FILES_PER_CALL, _OTHER_FILES = 2, 100


@dataclass(frozen=True)
class LoadPlan:
    """
    What is to be placed.

    Attributes:
        calls: How many calls; the most at once, where the knee is looked for.
        concurrency: How many may be up at the same time.
        ramp_per_s: How many are begun each second.
        turns: What every caller says; nothing if each has a sound of its own.
        hold_s: How long the last call lasts.
        waits: Whether the calls before it last until it is up.
        find_knee: Whether the knee is looked for.
        max_late_s: What is late.
        max_late_share: How much of the audio may be late; ``None`` for any.
    """

    calls: int
    concurrency: int
    ramp_per_s: float
    turns: Sequence[Clip]
    hold_s: float
    waits: bool
    find_knee: bool
    max_late_s: float
    max_late_share: float | None

    def duration_s(self, index: int, calls: int) -> float:
        """Return how long the call with this `index`, from 0, of so many lasts."""
        later_s = (calls - 1 - index) / self.ramp_per_s if self.waits else 0.0
        return self.hold_s + later_s + (SETUP_S if self.find_knee else 0.0)


def plan_load(config: DialConfig) -> LoadPlan:
    """
    Return what the settings ask for.

    Raises:
        UsageError: If they do not go together, or a sound file cannot be used.
    """
    behaviour = read_behaviour(load_simulator(config.transport, config.credentials, config.quirks))
    _refuse_what_is_for_one_call(config, behaviour)
    calls = config.calls or MOST_CALLS
    concurrency = config.concurrency or calls
    if concurrency > calls:
        raise UsageError(
            f"--concurrency {concurrency} is more than there are calls", hint=f"place more calls: `-n {concurrency}`"
        )
    if config.find_knee and config.concurrency is not None:
        raise UsageError(
            "--find-knee tries how many calls go at once, and --concurrency says it",
            hint="leave one of the two out; -n is the most that is tried",
        )
    turns = [turn for turn in _turns(config) if isinstance(turn, Clip)]
    script_s = length_s(turns, listen_s=config.listen_s, response_s=config.response_timeout_s) if turns else HOLD_S
    share = config.max_late_share
    plan = LoadPlan(
        calls=calls,
        concurrency=concurrency,
        ramp_per_s=config.ramp_per_s or RAMP_PER_S,
        turns=turns,
        hold_s=config.duration_s or script_s,
        waits=concurrency == calls and (config.duration_s is None or config.find_knee),
        find_knee=config.find_knee,
        max_late_s=config.max_late_s or MAX_LATE_AND_MESSAGE_S + behaviour.frame_ms / 1000,
        max_late_share=MAX_LATE_SHARE if share is None and config.find_knee else share,
    )
    total_s = sum(plan.duration_s(index, calls) for index in range(calls))
    if total_s > TOTAL_LIMIT_S:
        raise UsageError(
            f"the callers would talk for {total_s / 3600:.0f} h together, which this machine would have to keep",
            hint=f"shorten the calls with --duration, or raise --ramp: up to {TOTAL_LIMIT_S / 3600:.0f} h can be kept",
        )
    return plan


def _turns(config: DialConfig) -> Sequence[object]:
    if not config.audio and not config.say:
        return []
    return load_turns(config.audio, "", spoken(config.say, config.voice))


def _refuse_what_is_for_one_call(config: DialConfig, behaviour: Behaviour) -> None:
    given = {
        "--record": (
            config.record,
            "record one call without -n, or have the server record: `wsvoice run --record DIR`",
        ),
        "--open": (config.opens_page, "look at one call without -n"),
        "--trace": (
            config.trace,
            "trace one call without -n, or have the server do it: `wsvoice run --trace DIR`",
        ),
        "--caller": (config.caller, "a bot as the caller takes as much of the machine as the one that is tested"),
        "--probe": (config.probe, "probe the server with one call: `wsvoice dial --probe`"),
        "--dtmf": (config.dtmf, "say something instead: --audio or --say"),
    }
    for name, (value, hint) in given.items():
        if value:
            raise UsageError(f"{name} is for one call, not for many", hint=f"leave {name} out; {hint}")
    disturbs = {
        "reorder": behaviour.reorder,
        "silent": behaviour.silent,
        "start-delay": behaviour.start_delay_s,
        "webhook": behaviour.by_commands,
    }
    for name, is_chosen in disturbs.items():
        if is_chosen:
            raise UsageError(
                f"the quirk {name} is for one call, not for many",
                hint=f"leave out --quirk {name}; those that change how audio or messages are written may stay",
            )


def allow_descriptors(calls: int) -> None:
    """
    Let this process, and those that it starts, have as many open files as so many calls at once need.

    Raises:
        UsageError: If the machine does not allow it.
    """
    needed = _FILES_PER_CALL * calls + _OTHER_FILES
    with suppress(ImportError):
        # There is no such limit on Windows.
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return
        if hard != resource.RLIM_INFINITY and hard < needed:
            possible = max(1, (hard - _OTHER_FILES) // _FILES_PER_CALL)
            raise UsageError(
                f"{calls} calls at once need {needed} open files, and a process may have {hard} here",
                hint=f"raise the limit (`ulimit -n {needed}`, as root), or place at most {possible} at once",
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
