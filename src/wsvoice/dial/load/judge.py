"""What many calls come to: their figures, why some failed, and whether the callers were in time themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsvoice.dial.load.echo import find_owner
from wsvoice.dial.load.knee import Knee, Step
from wsvoice.dial.load.listening import Echo, Hearing
from wsvoice.dial.load.orders import Ended
from wsvoice.dial.load.plan import LoadPlan
from wsvoice.dial.load.report import CLIENT_LATE_MS, Client, Figures, LoadReport, group, setup_times

#: How long all calls have to be up together for a step to count.
LEAST_WINDOW_S = 2.0
#: How many strange sounds are looked at, to see whether calls are crossed at all.
SAMPLED = 8
_FIGURES = (
    *("setup_ms", "webhook_ms", "connect_ms", "first_audio_ms", "response_ms", "latency_ms", "jitter_ms"),
    *("late_share", "late_shares"),
)


@dataclass(frozen=True)
class Outcome:
    """
    What came of calls that were placed together.

    Attributes:
        provider: Which provider was played.
        target: What was dialled, as the user wrote it.
        begun: How many calls were begun.
        ended: How those ended that have ended.
        hearings: What was heard in those that were up, by number.
        interrupted: Whether the user stopped it.
        duration_s: How long it took.
        client: How the callers' machine fared.
    """

    provider: str
    target: str
    begun: int
    ended: Sequence[Ended]
    hearings: Mapping[int, Hearing]
    interrupted: bool
    duration_s: float
    client: Client


def judge(outcome: Outcome, plan: LoadPlan) -> LoadReport:
    """Return the report of calls that were placed together."""
    ended, hearings = outcome.ended, outcome.hearings
    # Where all say the same, nobody can tell whose it is.
    crossed = None if plan.turns else find_crossed(ended, hearings)
    echo = _echo(hearings)
    reasons = {each.number: why for each in ended if (why := _failure(each, hearings, crossed or {}, echo))}
    report = LoadReport(
        provider=outcome.provider,
        target=outcome.target,
        verdict="failed" if reasons else "passed",
        failure=None,
        interrupted=outcome.interrupted,
        calls=outcome.begun,
        passed=len(ended) - len(reasons),
        failed=len(reasons),
        peak_calls=_peak(ended),
        duration_s=round(outcome.duration_s, 1),
        echo=echo,
        crossed=None if crossed is None else len(crossed),
        max_late_ms=plan.max_late_s * 1000,
        underruns=sum(each.underruns for each in hearings.values()),
        failures=group(reasons),
        client=outcome.client,
        **_figures(ended, hearings, plan.max_late_s * 1000),
    )
    return _with_verdict(report, plan)


def _figures(ended: Sequence[Ended], hearings: Mapping[int, Hearing], max_late_ms: float) -> dict[str, Any]:
    heard = list(hearings.values())
    shares = [share for each in heard if (share := each.late_share(max_late_ms)) is not None]
    first = [each.first_audio_ms for each in heard if each.first_audio_ms is not None]
    return {
        "setup_ms": Figures.of(setup_times(ended, hearings)),
        "webhook_ms": Figures.of(each.webhook_ms for each in ended if each.webhook_ms is not None),
        "connect_ms": Figures.of(each.connect_ms for each in ended if each.connect_ms is not None),
        "first_audio_ms": Figures.of(first),
        "response_ms": Figures.of(answer for each in heard for answer in each.response_ms),
        "latency_ms": Figures.of(_joined(each.latency_ms for each in heard)),
        "jitter_ms": Figures.of(_joined(each.jitter_ms for each in heard)),
        "late_share": _late_share(heard, max_late_ms),
        "late_shares": Figures.of(shares, 4),
    }


def _joined(arrays: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([*arrays, np.zeros(0)])


def _late_share(heard: Sequence[Hearing], max_late_ms: float) -> float | None:
    """Return the share of all calls' audio that came too late; of an echo's if there is one."""
    weights = {
        id(each): len(each.latency_ms) + each.missing if each.echo != "none" else each.received_audio_ms + each.gap_ms
        for each in heard
    }
    echoing = [each for each in heard if each.echo != "none"]
    judged = [
        (share, weights[id(each)]) for each in echoing or heard if (share := each.late_share(max_late_ms)) is not None
    ]
    total = sum(weight for _, weight in judged)
    return round(sum(share * weight for share, weight in judged) / total, 5) if total else None


def _echo(hearings: Mapping[int, Hearing]) -> Echo | None:
    """Return whether the bot repeats its callers; ``None`` if none was heard."""
    kinds = [each.echo for each in hearings.values() if each.first_audio_ms is not None]
    if not kinds:
        return None
    if kinds.count("none") > len(kinds) / 2:
        return "none"
    return "exact" if kinds.count("exact") >= kinds.count("resampled") else "resampled"


def find_crossed(ended: Sequence[Ended], hearings: Mapping[int, Hearing]) -> dict[int, int]:
    """
    Return which callers heard which other one.

    To compare every sound that a caller has not said with every other caller would take minutes where a bot speaks
    for itself, so only some are compared at first.
    """
    began = {each.number: each.up_at for each in ended if each.up_at is not None}
    strange = [(number, at, piece) for number, each in hearings.items() for at, piece in each.strange]
    # First those who heard nothing of their own, and one sound of each before the next.
    seen: dict[int, int] = {}
    ranks = {}
    for index, (number, _, _) in enumerate(strange):
        seen[number] = seen.get(number, -1) + 1
        ranks[index] = (hearings[number].echo != "none", seen[number])
    crossed: dict[int, int] = {}
    for tried, index in enumerate(sorted(ranks, key=lambda each: ranks[each])):
        if tried >= SAMPLED and not crossed:
            break
        number, at, piece = strange[index]
        if number in crossed:
            continue
        owner = find_owner(piece, at, began, hearings[number].sample_rate, but=number)
        if owner is not None:
            crossed[number] = owner
    return crossed


def _failure(each: Ended, hearings: Mapping[int, Hearing], crossed: Mapping[int, int], echo: Echo | None) -> str | None:
    """Return why a call failed, or ``None``."""
    if each.number in crossed:
        return f"call {each.number} heard call {crossed[each.number]}"
    hearing = hearings.get(each.number)
    if each.failure or each.interrupted or hearing is None:
        return each.failure
    if hearing.failure:
        return hearing.failure
    if hearing.first_audio_ms is None:
        return "the bot never made a sound"
    if hearing.unanswered:
        return f"the bot did not answer turn {hearing.unanswered}"
    if echo in ("exact", "resampled") and hearing.echo == "none":
        return "the caller heard something else than itself, where others heard themselves"
    return None


def _peak(ended: Sequence[Ended]) -> int:
    """Return how many calls were up at the same time, at the most."""
    edges = [(each.up_at, 1) for each in ended if each.up_at is not None]
    edges += [(each.ended_at, -1) for each in ended if each.up_at is not None]
    up = peak = 0
    for _, change in sorted(edges):
        up += change
        peak = max(peak, up)
    return peak


def _with_verdict(report: LoadReport, plan: LoadPlan) -> LoadReport:
    late, share = report.client.late_ms, report.late_share
    if late is not None and late.p99 > CLIENT_LATE_MS:
        # Whatever was measured may be the callers' fault.
        unknown: dict[str, Any] = dict.fromkeys(_FIGURES)
        return replace(
            report, verdict="not-measured", failure=_client_failure(report), failures=(), underruns=0, **unknown
        )
    failure = None
    if report.failures:
        first = report.failures[0]
        failure = f"{report.failed} of {report.calls} calls failed: {first.reason}"
        if len(report.failures) > 1:
            failure = f"{report.failed} of {report.calls} calls failed, most of them: {first.reason}"
    elif plan.max_late_share is not None and share is not None and share >= plan.max_late_share:
        failure = f"{share:.2%} of the bot's audio came too late (limit {plan.max_late_share:.2%})"
    elif report.interrupted:
        failure = "interrupted before the end"
    return replace(report, verdict="failed" if failure else "passed", failure=failure)


def _client_failure(report: LoadReport) -> str:
    client = report.client
    assert client.late_ms is not None
    text = f"this machine cannot play {report.peak_calls} calls at once: its own messages left late"
    text += f" ({client.late_ms.p99:.0f} ms at the 99th percentile)"
    if client.playable_calls is None or client.playable_calls <= report.peak_calls:
        return text + (
            f"; by its processor time it can play about {client.playable_calls}" if client.playable_calls else ""
        )
    return f"{text}; by the callers' processor time it could play about {client.playable_calls}, so others keep it busy"


def judge_step(report: LoadReport, plan: LoadPlan, calls: int, window: tuple[float, float], *, again: bool) -> Step:
    """Return what became of so many calls that were to be up together, in the time `window`."""
    share, latency = report.late_share, report.latency_ms
    if report.verdict == "not-measured":
        return Step(calls, "not-measured", report.failure or "", again=again)
    if report.failed:
        return Step(calls, "broke", report.failure or "", share, again)
    if window[1] - window[0] < LEAST_WINDOW_S:
        return Step(calls, "broke", "the calls took so long to be set up that not all were up at once", share, again)
    if share is None:
        return Step(calls, "broke", "nothing was heard that could be measured", share, again)
    what = f"{share:.2%} of the audio late" + (f", latency {latency.p99:.0f} ms (p99)" if latency else "")
    assert plan.max_late_share is not None
    return Step(calls, "held" if share < plan.max_late_share else "broke", what, share, again)


def with_knee(report: LoadReport, knee: Knee, duration_s: float, *, interrupted: bool) -> LoadReport:
    """Return the report of the largest step that held, or else of the first, with the knee as its result."""
    report = replace(report, knee=knee, duration_s=round(duration_s, 1), interrupted=interrupted)
    if interrupted:
        return replace(report, verdict="failed", failure="interrupted before the knee was found")
    if knee.calls:
        return replace(report, verdict="passed", failure=None)
    last = knee.steps[-1]
    if last.outcome == "not-measured":
        return replace(report, verdict="not-measured", failure=last.reason)
    return replace(report, verdict="failed", failure=f"not even one call held the limits: {last.reason}")
