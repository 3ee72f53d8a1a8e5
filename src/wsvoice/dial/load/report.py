"""
The report of many calls, as JSON and as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from wsvoice.call import plural
from wsvoice.dial.load.knee import Knee, Step
from wsvoice.dial.load.listening import Hearing
from wsvoice.dial.load.orders import Ended
from wsvoice.dial.report import plain

Verdict = Literal["passed", "failed", "not-measured"]

#: The caller's own messages may leave so late, at the 99th percentile; otherwise nothing counts that was measured.
CLIENT_LATE_MS = 5.0
#: What differs between two calls that failed for the same reason: ids, tokens and what holds them.
_PARTICULARS = re.compile(r"\S*://\S+|\S*(?=\S*\d)(?=\S*[A-Za-z_-])[\w-]{9,}\S*")


@dataclass(frozen=True, slots=True)
class Figures:
    """How something is distributed."""

    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float] | np.ndarray[Any, Any], digits: int = 1) -> Figures | None:
        """Return the figures of some values; ``None`` if there are none."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if not len(array):
            return None
        return cls(*(round(float(each), digits) for each in (*np.percentile(array, [50, 90, 99]), array.max())))


@dataclass(frozen=True, slots=True)
class Failures:
    """A reason for which calls failed, how many, and the first of their numbers."""

    reason: str
    count: int
    calls: Sequence[int]


@dataclass(frozen=True, slots=True)
class Client:
    """
    How the callers' own machine fared.

    Attributes:
        late_ms: How much later than they were due the callers' messages left.
        cpu_shares: The largest share of a core that each worker used.
        playable_calls: About how many calls at once this machine could play, by its processor time.
    """

    late_ms: Figures | None
    cpu_shares: Sequence[float]
    playable_calls: int | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """
    Many calls. Times are in milliseconds, shares from 0 to 1.

    Attributes:
        provider: Which provider was played.
        target: What was dialled, as the user wrote it.
        verdict: Whether every call went well; or that the callers were late themselves, so that nobody knows.
        failure: What is wrong, in words; ``None`` if nothing is.
        interrupted: Whether the user stopped it before the end.
        calls: How many calls were begun.
        passed: How many went well.
        failed: How many did not.
        peak_calls: The most that were up at the same time.
        duration_s: How long it all took, in seconds.
        echo: Whether the bot repeats its caller: to the byte, recognisably, or not at all.
        crossed: How many callers heard another one; ``None`` if that could not be told.
        setup_ms: From dialling to the bot's first sound.
        webhook_ms: How long the webhook took.
        connect_ms: How long the WebSocket took to open.
        first_audio_ms: From the stream's start to the bot's first sound.
        response_ms: From the end of a caller's turn to the bot's next sound.
        latency_ms: Of an echo, how long each message's last sample took, there and back.
        jitter_ms: How much the time between two of the bot's messages differs from their length.
        late_share: The share of the bot's audio that came too late; see `max_late_ms`.
        late_shares: The same of each call.
        max_late_ms: What of an echo comes later is too late; without an echo it is what could not be played without
            a gap.
        underruns: How often a sound of the bot's broke off because its audio came too late.
        failures: Why calls failed.
        client: How the callers' own machine fared.
        knee: The most calls at once for which the limits held, where that was looked for.
    """

    provider: str
    target: str
    verdict: Verdict
    failure: str | None
    interrupted: bool
    calls: int
    passed: int
    failed: int
    peak_calls: int
    duration_s: float
    echo: Literal["exact", "resampled", "none"] | None
    crossed: int | None
    setup_ms: Figures | None
    webhook_ms: Figures | None
    connect_ms: Figures | None
    first_audio_ms: Figures | None
    response_ms: Figures | None
    latency_ms: Figures | None
    jitter_ms: Figures | None
    late_share: float | None
    late_shares: Figures | None
    max_late_ms: float
    underruns: int
    failures: Sequence[Failures]
    client: Client
    knee: Knee | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON: stable names in a stable order."""
        return {each.name: plain(getattr(self, each.name), 4) for each in fields(self)}

    def to_lines(self) -> list[str]:
        """Return the report in words, a table among them; the verdict is the last line."""
        lines = [*_table(self), *(f"{each.count} x {each.reason}{_whose(each)}" for each in self.failures)]
        echoes = {
            "exact": "the bot repeats its callers, to the byte",
            "resampled": "the bot repeats its callers, at another rate or coding on the way",
            "none": "the bot does not repeat its callers: latency is unknown, and gaps count as late",
        }
        if self.echo is not None:
            crossed = "; whether calls were crossed cannot be told" if self.crossed is None else ""
            lines.append(f"audio: {echoes[self.echo]}{crossed}")
        shares = ", ".join(f"{share:.0%}" for share in self.client.cpu_shares)
        late = self.client.late_ms
        lines.append(
            f"callers: {f'{late.p99:.1f} ms late themselves (p99), ' if late else ''}{shares or '0%'} of a core"
            + (f", about {self.client.playable_calls} calls possible" if self.client.playable_calls else "")
        )
        if self.knee is not None:
            lines.append(f"knee: {describe_knee(self.knee)}")
        stopped = "interrupted; so far " if self.interrupted else ""
        count = f"{self.passed} of {self.calls} calls went well, {self.peak_calls} at once"
        lines.append(f"calls: {stopped}{count}, in {self.duration_s:.1f} s")
        words = self.verdict.replace("-", " ")
        lines.append(f"{words}: {self.failure}" if self.failure else words)
        return lines


def describe_step(step: Step) -> str:
    """Return what became of a step, in a line."""
    words = step.outcome.replace("-", " ")
    return f"{plural(step.calls, 'call')} at once{', again' if step.again else ''}: {words} ({step.reason})"


def describe_knee(knee: Knee) -> str:
    """Return the knee in words."""
    if not knee.calls:
        why = "this machine cannot play one call in time" if knee.limited_by == "this machine" else "not even one call"
        return f"0: {why}"
    if knee.limited_by == "server":
        return f"{plural(knee.calls, 'call')} at once"
    why = "this machine cannot play more" if knee.limited_by == "this machine" else "no more were asked for (-n)"
    return f"at least {plural(knee.calls, 'call')} at once: {why}"


def group(reasons: Mapping[int, str]) -> list[Failures]:
    """Return why calls failed, by number, as reasons with their counts: the most frequent first."""
    groups: dict[str, list[int]] = {}
    for number, reason in reasons.items():
        groups.setdefault(_PARTICULARS.sub("#", reason), []).append(number)
    found = [Failures(reasons[numbers[0]], len(numbers), tuple(numbers[:10])) for numbers in groups.values()]
    return sorted(found, key=lambda each: -each.count)


def setup_times(ended: Iterable[Ended], hearings: Mapping[int, Hearing]) -> list[float]:
    """Return how long it took each call from dialling to the bot's first sound; how long we took is left out."""
    times = []
    for each in ended:
        hearing = hearings.get(each.number)
        if hearing is not None and hearing.first_audio_ms is not None and each.connect_ms is not None:
            times.append((each.webhook_ms or 0.0) + each.connect_ms + hearing.first_audio_ms)
    return times


def _table(report: LoadReport) -> list[str]:
    rows = {
        "set-up": report.setup_ms,
        "webhook": report.webhook_ms,
        "connect": report.connect_ms,
        "first audio": report.first_audio_ms,
        "answer": report.response_ms,
        "latency": report.latency_ms,
        "jitter": report.jitter_ms,
    }
    known = [(name, figures) for name, figures in rows.items() if figures is not None]
    if not known:
        return []
    lines = [f"{'ms':<12}{'p50':>9}{'p90':>9}{'p99':>9}{'max':>9}"]
    lines += [f"{name:<12}{each.p50:>9.1f}{each.p90:>9.1f}{each.p99:>9.1f}{each.max:>9.1f}" for name, each in known]
    if (shares := report.late_shares) is not None:
        columns = "".join(f"{each:>9.2%}" for each in (shares.p50, shares.p90, shares.p99, shares.max))
        lines.append(f"{'late, a call':<12}{columns}")
    if report.late_share is not None:
        what = f"later than {report.max_late_ms:g} ms" if report.echo != "none" else "too late to be played"
        lines.append(
            f"late: {report.late_share:.2%} of the bot's audio came {what}; {plural(report.underruns, 'underrun')}"
        )
    return lines


def _whose(failures: Failures) -> str:
    numbers = ", ".join(map(str, failures.calls)) + (" ..." if failures.count > len(failures.calls) else "")
    return f" (call {numbers})" if failures.count == 1 else f" (calls {numbers})"
