"""A traced call that is placed again: who speaks, and how today's call compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from wsvoice.audio.tones import find_tones
from wsvoice.call import plural
from wsvoice.config import DialConfig
from wsvoice.dial.report import CallReport
from wsvoice.dial.steps import StepScript
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import TraceError
from wsvoice.replay.acts import MAX_KEYS, hides_keys, read_digits, read_utterances
from wsvoice.replay.comparison import GREETING, Comparison, KnownCall, Limits, Span, compare_calls
from wsvoice.replay.plan import adaptive_script, read_plan, replay_script, timeouts
from wsvoice.trace import Trace, read_trace
from wsvoice.trace.sound import Utterance

if TYPE_CHECKING:
    from wsvoice.dial.script import Speaker
    from wsvoice.dial.sound_detection import SoundDetector

#: What is known of a call by its report is bounded: a trace may come from anybody.
_MOST = 1000
#: A turn that ends so much after the call has been finished for all that can be told, in seconds.
_EDGE_S = 0.06


class Replay:
    """
    One call that is placed again.

    Args:
        recorded: The call; it has to stay open until it is compared.
        config: How it is placed: with a trace, and as :func:`~wsvoice.replay.plan.configure` has it.

    Attributes:
        plan: What the caller does.

    Raises:
        TraceError: If nothing in it can be placed again.
    """

    def __init__(self, recorded: Trace, config: DialConfig) -> None:
        self.plan = read_plan(recorded)
        self._recorded = recorded
        self._config = config
        self._speaker: Speaker | None = None

    @property
    def timeouts(self) -> Timeouts:
        """How long the call may last."""
        return timeouts(self.plan, adaptive=self._config.adaptive)

    def speaker(self, detector: SoundDetector, sample_rate: int) -> Speaker:
        """Return who speaks for the caller."""
        make = adaptive_script if self._config.adaptive else replay_script
        timeout_s = self._config.response_timeout_s
        self._speaker = make(self._recorded, self.plan, detector, sample_rate, response_timeout_s=timeout_s)
        return self._speaker

    def judge(self, report: CallReport) -> tuple[CallReport, Comparison | None]:
        """
        Return the report, which has failed if the call is not as the recorded one, and how they compare.

        There is no comparison if there is no trace of the call, because the disk was full: then it has failed already.
        """
        try:
            comparison = self._compare(report)
        except TraceError as error:
            return replace(report, verdict="failed", failure=report.failure or error.message), None
        if comparison.same or report.verdict == "failed":
            return report, comparison
        n_others = len(comparison.differences) - 1
        more = f", and {plural(n_others, 'more difference')}" if n_others else ""
        failure = f"not as it was recorded: {comparison.differences[0]}{more}"
        return replace(report, verdict="failed", failure=failure), comparison

    def _compare(self, report: CallReport) -> Comparison:
        config = self._config
        assert config.trace is not None
        limits = Limits(config.max_slower, config.min_correlation, config.ignored)
        acts = [Span(f"turn {n}", each.start_s, each.end_s, each.keys) for n, each in enumerate(self.plan.acts, 1)]
        spans = [Span(GREETING, 0.0, 0.0), *acts]
        recorded = replace(
            _known(self._recorded, spans),
            ended_by=self.plan.ended_by,
            duration_s=self.plan.duration_s,
            is_cut_off=not self._recorded.ended,
        )
        path = str(self._recorded.path)
        with read_trace(config.trace) as today:
            done = self._done(acts, report.duration_ms / 1000)
            call = replace(_known(today, [spans[0], *done] if report.stream_id else []), failure=report.failure or "")
            return compare_calls(recorded, call, limits, path=path, adaptive=config.adaptive, notes=self.plan.missing)

    def _done(self, acts: Sequence[Span], duration_s: float) -> list[Span]:
        """Return what the caller has done to its end in today's call, and when."""
        spans = acts
        if isinstance(self._speaker, StepScript):
            times = self._speaker.times[1 if self.plan.greets else 0 :]
            spans = [
                replace(act, start_s=each.start_ms / 1000, end_s=each.caller_end_ms / 1000)
                for act, each in zip(acts, times, strict=False)
                # One that could not begin has no length.
                if each.problem is None or each.caller_end_ms > each.start_ms
            ]
        return [each for each in spans if each.end_s <= duration_s + _EDGE_S]


# What is known of a call


def _known(trace: Trace, spans: Sequence[Span]) -> KnownCall:
    _, sounds = read_utterances(trace)
    keys = None if hides_keys(trace) else _bot_keys(trace, sounds)
    report: Mapping[str, Any] = trace.report
    to = report.get("transferred_to")
    by, failure = trace.ended.get("by"), report.get("failure")
    return KnownCall(
        spans=spans,
        bot=trace.bot,
        rate=trace.rate,
        sounds=sounds,
        duration_s=max(len(trace.caller), len(trace.bot)) / trace.rate,
        ended_by=by if by in ("caller", "bot") else "",
        bot_keys=keys,
        findings=_findings(report) if trace.side == "caller" and report else None,
        transferred_to=to if isinstance(to, str) else "",
        failure=failure if isinstance(failure, str) else "",
    )


def _bot_keys(trace: Trace, sounds: Sequence[Utterance]) -> list[tuple[float, str]]:
    """Return what the bot pressed first, by its provider or, if it never did, as tones."""
    told = islice(read_digits(trace, "bot"), MAX_KEYS)
    pressed = [(at_s, keys[:_MOST].upper().replace("W", "")) for at_s, keys in told]
    return pressed or _tones(trace, sounds)


def _tones(trace: Trace, sounds: Sequence[Utterance]) -> list[tuple[float, str]]:
    found = []
    for each in sounds:
        part = trace.bot[round(each.start_s * trace.rate) : round(each.end_s * trace.rate)].tobytes()
        # A minute at a time, to limit the memory.
        step = 2 * 60 * trace.rate
        for first in range(0, len(part), step):
            begins_s = each.start_s + first / 2 / trace.rate
            tones = find_tones(part[first : first + step], trace.rate)
            found += [(begins_s + tone.at_ms / 1000, tone.key) for tone in tones]
    return found


def _findings(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    listed = report.get("findings")
    rows = [each for each in (listed if isinstance(listed, list) else [])[:_MOST] if isinstance(each, Mapping)]
    return [(str(each.get("level")), str(each.get("id")), str(each.get("message"))[:500]) for each in rows]
