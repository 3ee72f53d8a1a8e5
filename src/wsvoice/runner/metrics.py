"""
What is counted of all calls, for machines.

:class:`Metrics` counts in plain numbers, whether or not anybody asks: a call costs a few additions when it ends, its
audio nothing. :class:`Exposition` renders them in the Prometheus format, and alone needs prometheus-client. One process
counts everything, so there is no multiprocess mode: what happens elsewhere arrives as a call's record.

Names and units follow https://prometheus.io/docs/practices/naming/. Every label has few values, and none that a
stranger chooses.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from wsvoice._version import __version__

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from wsvoice.runner.bot_task import Record

#: How a session ended; as :attr:`wsvoice.runner.bot_task.Record.outcome`.
OUTCOMES = ("bot", "caller", "error", "server", "lost", "refused")
DIRECTIONS = ("inbound", "outbound")
#: What a webhook was answered with: a document that starts a stream, ``busy``, an acknowledgement of a report, the
#: question for credentials that the provider waits for, a refusal, or nothing that helps the caller.
WEBHOOK_OUTCOMES = ("answered", "busy", "acknowledged", "challenged", "refused", "failed")
#: What is turned away, and why.
REFUSAL_KINDS = ("webhook", "stream", "client", "start", "dial", "metrics")
LIMIT_REASONS = ("draining", "lag", "max_calls", "per_number", "per_hour", "minutes")
REFUSAL_REASONS = (
    *LIMIT_REASONS,
    *("bad_request", "unauthorized", "forbidden", "not_found", "timeout", "too_large", "bad_start"),
)
RELOAD_RESULTS = ("ok", "failed")
#: Takes the place of a label's value that is none of those that are known.
OTHER = "other"

#: The upper bounds of the histograms' buckets, in seconds.
WEBHOOK_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)
HANDSHAKE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
WAIT_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
DURATION_BUCKETS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0)


class Histogram:
    """How often a duration fell into each bucket; `bounds` are in seconds, ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        #: The last one is for what is longer than every bound.
        self.counts = [0] * (len(bounds) + 1)
        self.sum_s = 0.0

    def observe(self, duration_s: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, duration_s)] += 1
        self.sum_s += duration_s

    def buckets(self) -> list[tuple[str, float]]:
        """Return each bound, as Prometheus writes it, and how many durations were no longer."""
        names = [*(str(bound) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class Running(NamedTuple):
    """What is known of a session that goes on; as later in its :class:`~wsvoice.runner.bot_task.Record`."""

    provider: str
    bytes_in: int
    bytes_out: int
    underruns: int


class Metrics:
    """
    Counts what happens, in one process for all calls.

    Args:
        providers: The names of those that are served.
        running: Returns the sessions that go on.
        lags_s: Returns how late each worker's event loop is, in seconds, by the worker's name.
        is_draining: Whether no new calls are taken because the process is to stop.
        max_calls: Returns how many calls may run at once; ``None`` for no limit.
    """

    def __init__(
        self,
        providers: Collection[str],
        *,
        running: Callable[[], Iterable[Running]],
        lags_s: Callable[[], Mapping[str, float]],
        is_draining: Callable[[], bool],
        max_calls: Callable[[], int | None],
    ) -> None:
        self.providers = tuple(providers)
        self.running, self.lags_s = running, lags_s
        self.is_draining, self.max_calls = is_draining, max_calls
        # What is expected is there from the start: a counter that begins with 1 shows no increase.
        self.calls: Counter[tuple[str, ...]] = Counter(
            {(each, "inbound", outcome): 0 for each in self.providers for outcome in OUTCOMES}
        )
        self.refusals: Counter[tuple[str, ...]] = Counter(
            {("webhook", reason): 0 for reason in (*LIMIT_REASONS, "forbidden")}
        )
        self.refusals.update({("stream", reason): 0 for reason in ("max_calls", "forbidden", "bad_start")})
        self.webhooks: Counter[tuple[str, ...]] = Counter(
            {(each, outcome): 0 for each in self.providers for outcome in WEBHOOK_OUTCOMES}
        )
        self.webhook_s = {each: Histogram(WEBHOOK_BUCKETS) for each in self.providers}
        self.durations_s, self.handshakes_s = Histogram(DURATION_BUCKETS), Histogram(HANDSHAKE_BUCKETS)
        self.first_sounds_s, self.responses_s = Histogram(WAIT_BUCKETS), Histogram(WAIT_BUCKETS)
        self.bytes_in = self.bytes_out = self.underruns = 0
        self.worker_deaths = 0
        self.reloads = Counter(dict.fromkeys(RELOAD_RESULTS, 0))

    def webhook_answered(self, provider: str, duration_s: float, outcome: str) -> None:
        """Count a webhook; `outcome` is one of :data:`WEBHOOK_OUTCOMES`."""
        name = provider if provider in self.providers else OTHER
        self.webhooks[name, _known(outcome, WEBHOOK_OUTCOMES)] += 1
        if name not in self.webhook_s:
            self.webhook_s[name] = Histogram(WEBHOOK_BUCKETS)
        self.webhook_s[name].observe(duration_s)

    def refused(self, kind: str, reason: str) -> None:
        """Count somebody who was turned away, by :data:`REFUSAL_KINDS` and :data:`REFUSAL_REASONS`."""
        self.refusals[_known(kind, REFUSAL_KINDS), _known(reason, REFUSAL_REASONS)] += 1

    def session_ended(self, record: Record) -> None:
        """Count a session that is over; all that is known of it is in its record, wherever it ran."""
        provider, direction = _known(record.provider, self.providers), _known(record.direction, DIRECTIONS)
        self.calls[provider, direction, _known(record.outcome, OUTCOMES)] += 1
        self.durations_s.observe(record.duration_s)
        self.bytes_in += record.bytes_in
        self.bytes_out += record.bytes_out
        self.underruns += record.underruns
        for name, histogram in (("handshake_s", self.handshakes_s), ("first_sound_s", self.first_sounds_s)):
            if (duration_s := getattr(record, name, None)) is not None:
                histogram.observe(duration_s)
        for wait_s in getattr(record, "responses_s", ()):
            self.responses_s.observe(wait_s)

    def reloaded(self, *, failed: bool) -> None:
        """Count a reload; it has `failed` if the workers of before go on."""
        self.reloads["failed" if failed else "ok"] += 1

    def worker_died(self) -> None:
        """Count a worker that ended without having been asked to."""
        self.worker_deaths += 1


def _known(value: str, values: Collection[str]) -> str:
    return value if value in values else OTHER


def refusal_of(text: str) -> tuple[str, str] | None:
    """
    Return kind and reason of a refusal as the log calls it, such as ``webhook refused (403)``.

    ``None`` for those that are counted with a reason of their own: where no place is free, or a limit is reached.
    """
    kind, _, rest = text.partition(" ")
    status = rest.rpartition("(")[2].removesuffix(")")
    if status == "503" or rest == "answered busy":
        return None
    return kind, _BY_STATUS.get(status, "bad_start")


_BY_STATUS = {
    "400": "bad_request",
    "401": "unauthorized",
    "403": "forbidden",
    "404": "not_found",
    "408": "timeout",
    "413": "too_large",
}


class Exposition:
    """
    Renders :class:`Metrics` as text that Prometheus reads.

    Its registry is its own: libraries and bots have theirs in prometheus-client's default one. What the process itself
    uses (``process_*``) is the library's.

    https://prometheus.io/docs/instrumenting/exposition_formats/
    """

    def __init__(self, metrics: Metrics) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, exposition

        self.content_type: str = exposition.CONTENT_TYPE_LATEST
        self._generate = exposition.generate_latest
        self._metrics = metrics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        self._build = {"version": __version__, "pipecat": _version_of("pipecat-ai")}
        # A session counts as running first, then by its record. Where that is lost or says less, nothing may fall.
        self._highest: dict[str, float] = {}

    def render(self) -> bytes:
        """Return the text."""
        return self._generate(self._registry)

    def describe(self) -> Iterator[Metric]:
        """Tell the registry nothing: there is only one collector of these names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield every metric, for the registry."""
        yield from self._calls()
        yield from self._waits()
        yield from self._audio()
        yield from self._server()

    def _calls(self) -> Iterator[Metric]:
        metrics = self._metrics
        active = Counter(dict.fromkeys(metrics.providers, 0))
        active.update(_known(each.provider, metrics.providers) for each in metrics.running())
        yield _gauge(
            "wsvoice_active_calls",
            "Calls that are running, until their bots have ended.",
            ("provider",),
            _keyed(active),
        )
        yield _counter(
            "wsvoice_calls",
            "Calls that are over, by how they ended: by the bot, the caller, an error, the server; lost or refused.",
            ("provider", "direction", "outcome"),
            metrics.calls,
        )
        yield _histogram("wsvoice_call_duration_seconds", "How long calls lasted.", metrics.durations_s)
        yield _counter(
            "wsvoice_webhooks",
            "Webhooks, by what they were answered with.",
            ("provider", "outcome"),
            metrics.webhooks,
        )
        yield _histograms("wsvoice_webhook_seconds", "How long webhooks' answers took.", "provider", metrics.webhook_s)
        yield _counter("wsvoice_refusals", "What was turned away, and why.", ("kind", "reason"), metrics.refusals)

    def _waits(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield _histogram(
            "wsvoice_handshake_seconds",
            "From a stream's accepted WebSocket to its start; an outbound call may ring meanwhile.",
            metrics.handshakes_s,
        )
        yield _histogram(
            "wsvoice_first_sound_seconds",
            "From a stream's accepted WebSocket to the bot's first sound.",
            metrics.first_sounds_s,
        )
        yield _histogram(
            "wsvoice_response_seconds", "The callers' wait for each answer of the bot.", metrics.responses_s
        )

    def _audio(self) -> Iterator[Metric]:
        metrics, running = self._metrics, list(self._metrics.running())
        totals = {
            "in": metrics.bytes_in + sum(each.bytes_in for each in running),
            "out": metrics.bytes_out + sum(each.bytes_out for each in running),
            "underruns": metrics.underruns + sum(each.underruns for each in running),
        }
        for name, total in totals.items():
            self._highest[name] = max(self._highest.get(name, 0), total)
        yield _counter(
            "wsvoice_underruns",
            "How often a sound of the bot's broke off, because its audio was late.",
            (),
            {(): self._highest["underruns"]},
        )
        yield _counter(
            "wsvoice_audio_bytes",
            "Audio of the callers (in) and of the bot (out), as it is coded on the stream.",
            ("direction",),
            {("in",): self._highest["in"], ("out",): self._highest["out"]},
        )

    def _server(self) -> Iterator[Metric]:
        metrics = self._metrics
        lags_s, limit = metrics.lags_s(), metrics.max_calls()
        yield _gauge(
            "wsvoice_event_loop_lag_seconds",
            "How late a worker's event loop is, as the median of the last second.",
            ("worker",),
            _keyed(lags_s),
        )
        yield _gauge("wsvoice_workers", "Processes that run bots.", (), {(): len(lags_s)})
        yield _counter(
            "wsvoice_worker_deaths",
            "Workers that ended without having been asked to.",
            (),
            {(): metrics.worker_deaths},
        )
        yield _counter("wsvoice_reloads", "Reloads of the bot.", ("result",), _keyed(metrics.reloads))
        yield _gauge(
            "wsvoice_draining",
            "1 once the server takes no new calls because it is to stop.",
            (),
            {(): metrics.is_draining()},
        )
        yield _gauge(
            "wsvoice_max_calls",
            "How many calls may run at once; +Inf without a limit.",
            (),
            {(): math.inf if limit is None else limit},
        )
        yield _gauge(
            "wsvoice_build_info",
            "1; the versions are its labels.",
            tuple(self._build),
            {tuple(self._build.values()): 1},
        )


Values = Mapping[tuple[str, ...], float]


def _keyed(values: Mapping[str, float]) -> Values:
    return {(name,): value for name, value in values.items()}


def _gauge(name: str, help: str, labels: Sequence[str], values: Values) -> Metric:
    from prometheus_client.metrics_core import GaugeMetricFamily

    family = GaugeMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _counter(name: str, help: str, labels: Sequence[str], values: Values) -> Metric:
    """Return a counter; its samples have ``_total`` after `name`."""
    from prometheus_client.metrics_core import CounterMetricFamily

    family = CounterMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        family.add_metric(key, float(value))
    return family


def _histogram(name: str, help: str, histogram: Histogram) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    return HistogramMetricFamily(name, help, buckets=histogram.buckets(), sum_value=histogram.sum_s)


def _histograms(name: str, help: str, label: str, histograms: Mapping[str, Histogram]) -> Metric:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily(name, help, labels=[label])
    for value, histogram in histograms.items():
        family.add_metric([value], buckets=histogram.buckets(), sum_value=histogram.sum_s)
    return family


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # pragma: no cover - it is a dependency
        return ""
