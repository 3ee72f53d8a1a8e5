"""
Traces of calls, by OpenTelemetry; there are none unless a collector's address is set.

A call's trace begins with its webhook and goes on with its stream, in whichever process that runs: between them goes a
``traceparent`` (https://www.w3.org/TR/trace-context/#traceparent-header). Its spans::

    webhook            from the request to its answer
    └─ call            from the accepted WebSocket to the end; the bot's first sound and what went wrong are its events
       ├─ handshake    up to the start of the stream
       ├─ wait         the caller's wait for an answer, once for each
       └─ conversation and below it turns and services: pipecat's own, of a bot with ``enable_tracing=True``

pipecat's spans join because the bot runs while ``call`` is the current span. No span of ours has a phone number.

The SDK reads its settings (``OTEL_…``) from the environment by itself:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loguru import logger

from wsvoice._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span, Tracer

    from wsvoice.call import Call
    from wsvoice.config import RunConfig
    from wsvoice.runner.session import CallRecord
    from wsvoice.runner.turns import TurnTimer

#: How long the last spans may take to be sent when the process ends, in seconds.
CLOSE_TIMEOUT_S = 1.0
#: How many of a call's waits become spans; the first ones.
MAX_WAITS = 500
#: How many characters of a reason are kept.
REASON_LIMIT = 300


class Tracing:
    """
    Makes the spans of calls.

    Args:
        tracer: What makes spans; ``None`` for none.
        close: Sends what has not been sent.
    """

    def __init__(self, tracer: Tracer | None = None, close: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer
        self._close = close

    @contextmanager
    def webhook(self, call: Call, began_ns: int) -> Iterator[str]:
        """
        Trace the answer to a call's webhook; yields its ``traceparent`` for the call's stream, or an empty text.

        Args:
            call: The call.
            began_ns: When the request came, in nanoseconds of Unix time.
        """
        if self._tracer is None:
            yield ""
            return
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span("webhook", kind=SpanKind.SERVER, start_time=began_ns, attributes=_of(call))
        try:
            yield _traceparent(span)
        finally:
            span.end()

    def call(self, traceparent: str = "") -> CallTrace:
        """Return what traces a call's stream, which its webhook's `traceparent` announced."""
        return CallTrace(self._tracer, traceparent)

    def close(self) -> None:
        """Send what has not been sent, within :data:`CLOSE_TIMEOUT_S`."""
        closing = threading.Thread(target=self._close, name="wsvoice-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


class CallTrace:
    """The trace of one call's stream; it does nothing without a tracer."""

    def __init__(self, tracer: Tracer | None, traceparent: str) -> None:
        self._tracer = tracer
        self._traceparent = traceparent
        self._span: Span | None = None
        self._handshake: Span | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Trace the call while the context lasts, in the running event loop; tasks begun in it are part of the call."""
        if self._tracer is None:
            yield
            return
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract({"traceparent": self._traceparent})
        # What a bot calls later has this span as its parent, so it is made where the call begins.
        self._span = self._tracer.start_span("call", parent, kind=trace.SpanKind.SERVER)
        with trace.use_span(self._span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            self._handshake = self._tracer.start_span("handshake")
            try:
                yield
            finally:
                self._end_handshake()
                self._span.end()

    def started(self, call: Call) -> None:
        """Note that the stream has started, and what is known of its call."""
        self._end_handshake()
        if self._span is not None:
            self._span.set_attributes(_of(call))

    def _end_handshake(self) -> None:
        if self._handshake is not None:
            self._handshake.end()
            self._handshake = None

    def note_end(self, record: CallRecord, turns: TurnTimer) -> None:
        """Note what happened, before the context of :meth:`running` ends."""
        tracer, span = self._tracer, self._span
        if tracer is None or span is None:
            return
        from opentelemetry.trace import StatusCode

        # From the loop's clock, in seconds, to nanoseconds of Unix time.
        offset_s = time.time() - asyncio.get_running_loop().time()
        if turns.first_sound_at is not None:
            span.add_event("first sound", timestamp=_ns(turns.first_sound_at + offset_s))
        for answered_at, wait_s in list(zip(turns.answered_at, turns.responses_s, strict=True))[:MAX_WAITS]:
            wait = tracer.start_span("wait", start_time=_ns(answered_at - wait_s + offset_s))
            wait.end(_ns(answered_at + offset_s))
        for cause in record.causes:
            span.add_event("cause", {"kind": cause.kind, "message": cause.message[:REASON_LIMIT]})
        span.add_event("end", {"ended_by": record.ended_by})
        span.set_attributes({**_of(record.call), "wsvoice.outcome": record.outcome})
        if record.outcome in ("error", "lost", "refused"):
            span.set_status(StatusCode.ERROR, record.reason[:REASON_LIMIT])


def _of(call: Call) -> dict[str, str]:
    known = {
        "provider": call.provider,
        "direction": call.direction,
        "call_id": call.call_id,
        "stream_id": call.stream_id,
    }
    return {f"wsvoice.{name}": text for name, text in known.items() if text}


def _ns(unix_s: float) -> int:
    return int(unix_s * 1e9)


def _traceparent(span: Span) -> str:
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return carrier.get("traceparent", "")


def start_tracing(config: RunConfig) -> Tracing:
    """
    Return what traces calls, if a collector's address is set; call it after the bot was loaded.

    A bot may have set OpenTelemetry up by itself, for instance with pipecat's ``setup_tracing()``. Its spans and ours
    then go the same way, to wherever it wants them.
    """
    if config.traces is None:
        return Tracing()
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        _warn_of_missing(config.traces)
        return Tracing()
    provider = trace.get_tracer_provider()
    close: Callable[[], None] = lambda: None  # noqa: E731
    if not isinstance(provider, TracerProvider):
        try:
            provider = _new_provider(config.traces)
        except ImportError:
            _warn_of_missing(config.traces)
            return Tracing()
        except (ValueError, OSError) as error:
            logger.warning(
                "no traces are sent to {}: one of OpenTelemetry's variables is wrong: {}", config.traces, error
            )
            return Tracing()
        trace.set_tracer_provider(provider)
        close = provider.shutdown
    return Tracing(provider.get_tracer("wsvoice", __version__), close)


def _warn_of_missing(address: str) -> None:
    logger.warning("no traces are sent to {}: OpenTelemetry is missing; pip install 'wsvoice[otel]'", address)


def _new_provider(address: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "wsvoice"}))
    if SERVICE_INSTANCE_ID not in resource.attributes:
        # Newer SDKs do so by themselves: https://opentelemetry.io/docs/specs/semconv/resource/service/
        resource = resource.merge(Resource({SERVICE_INSTANCE_ID: str(uuid.uuid4())}))
    # A collector that is gone must not hold up the process's end.
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(_exporter(OTLPSpanExporter(), address)))
    return provider


def _exporter(exporter: SpanExporter, address: str) -> SpanExporter:
    """Return an exporter that says once that it cannot send, and once that it can again."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    complaints = _LastComplaint()
    library = logging.getLogger("opentelemetry.exporter")
    library.addHandler(complaints)
    library.propagate = False

    class Exporter(SpanExporter):
        failing = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = exporter.export(spans)
            except OSError as error:
                # Older exporters raise what requests does where newer ones say that they failed.
                complaints.text, result = str(error)[:REASON_LIMIT], SpanExportResult.FAILURE
            failing = result is not SpanExportResult.SUCCESS
            if failing and not self.failing:
                logger.bind(call="-").warning("traces are not sent to {}: {}", address, complaints.text or "it failed")
            elif self.failing and not failing:
                logger.bind(call="-").info("traces are sent to {} again", address)
            self.failing = failing
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30_000) -> bool:
            return exporter.force_flush(timeout_millis)

    return Exporter()


class _LastComplaint(logging.Handler):
    """Keeps the last line that the exporter has logged."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()[:REASON_LIMIT]
