"""Traces of calls: what their spans are, and that pipecat's own belong to them."""

from __future__ import annotations

import asyncio
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from tests.environment import clean_environ
from tests.process import server_process
from tests.runner import kinds
from tests.runner.carrier import announce, dialled
from tests.runner.conftest import RunningServer, serving
from tests.signals import tone
from wsvoice.config import RunConfig, resolve_run
from wsvoice.runner import telemetry
from wsvoice.runner.telemetry import Tracing

NUMBERS = re.compile(r"\+?1555\d+")

#: A pipeline that says a tone as soon as the caller speaks, with pipecat's own traces.
TRACED = """
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineParams, PipelineWorker
    from pipecat.workers.runner import WorkerRunner
    from tests.runner.bots import Echo

    async def bot(runner_args):
        transport = runner_args.transport
        worker = PipelineWorker(
            Pipeline([transport.input(), Echo(), transport.output()]), params=PipelineParams(), enable_tracing=True
        )
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""
ROOT = str(Path(__file__).parents[2])


class Traces:
    """The spans of a server in this process."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        server.switchboard.tracing = Tracing(provider.get_tracer("tests"))

    def of(self, call_id: str, name: str) -> list[ReadableSpan]:
        """Return the spans of a call's trace with this name."""
        spans = self._exporter.get_finished_spans()
        (call,) = (each for each in spans if each.name == "call" and each.attributes["wsvoice.call_id"] == call_id)  # type: ignore[index]
        return [each for each in spans if each.name == name and each.context.trace_id == call.context.trace_id]

    def texts(self) -> str:
        return "".join(each.to_json() for each in self._exporter.get_finished_spans())


@pytest.fixture(scope="module")
def traces() -> Iterator[Traces]:
    """The traces of a call of every kind."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as start:
        server = start(kinds.bot)
        known = Traces(server)
        asyncio.run(kinds.place_every_kind(server.url, server.switchboard.capacity))
        server.ended(6)
        yield known


def events(span: ReadableSpan) -> list[str]:
    return [each.name for each in span.events]


def test_a_trace_begins_with_the_webhook_and_goes_on_with_the_stream(traces: Traces) -> None:
    ((webhook,), (call,), (handshake,)) = (traces.of(kinds.ECHOES, name) for name in ("webhook", "call", "handshake"))
    assert webhook.parent is None
    assert call.parent is not None
    assert call.parent.span_id == webhook.context.span_id
    assert handshake.parent == call.context
    assert webhook.start_time <= webhook.end_time <= call.start_time <= handshake.start_time  # type: ignore[operator]
    assert handshake.end_time < call.end_time  # type: ignore[operator]
    assert dict(call.attributes or {}) == {
        "wsvoice.provider": "twilio",
        "wsvoice.direction": "inbound",
        "wsvoice.call_id": kinds.ECHOES,
        "wsvoice.stream_id": "MZechoes",
        "wsvoice.outcome": "caller",
    }
    assert events(call) == ["first sound", "end"]
    assert call.status.status_code is StatusCode.UNSET


def test_each_wait_is_a_span(traces: Traces) -> None:
    record = next(each for each in traces.server.records if each.call.call_id == kinds.STUTTERS)
    waits = traces.of(kinds.STUTTERS, "wait")
    (call,) = traces.of(kinds.STUTTERS, "call")
    assert len(waits) == len(record.responses_s) >= 1
    for wait, wait_s in zip(waits, record.responses_s, strict=True):
        assert wait.parent == call.context
        assert (wait.end_time - wait.start_time) / 1e9 == pytest.approx(wait_s, abs=1e-4)  # type: ignore[operator]
        assert call.start_time < wait.start_time <= wait.end_time < call.end_time  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call_id", "outcome", "reason"),
    [
        (kinds.RAISES, "error", "the bot raised RuntimeError: boom"),
        (f"{kinds.ECHOES}-lost", "lost", "the connection was lost"),
        ("CAbadly", "refused", "the stream is for call 'CAanother', its token is for another"),
    ],
)
def test_a_call_that_failed_says_why(traces: Traces, call_id: str, outcome: str, reason: str) -> None:
    (call,) = traces.of(call_id, "call")
    assert call.attributes is not None
    assert call.attributes["wsvoice.outcome"] == outcome
    assert call.status.status_code is StatusCode.ERROR
    assert reason in (call.status.description or "")
    assert ("cause" in events(call)) == (outcome == "error")


def test_no_span_has_a_phone_number(traces: Traces) -> None:
    assert not NUMBERS.search(traces.texts())
    assert NUMBERS.search("".join(traces.server.log))


def test_traces_are_kept_for_streams_that_have_not_come_only(traces: Traces) -> None:
    assert traces.server.switchboard.traceparents == {}


def test_without_a_tracer_there_is_nothing(serve: Callable[..., RunningServer]) -> None:
    server = serve(kinds.bot)
    asyncio.run(kinds.call(server.url, kinds.ECHOES))
    server.ended()
    assert server.switchboard.traceparents == {}
    assert server.switchboard.sessions == set()


# -- A process that sends them --


class Collector(http.server.ThreadingHTTPServer):
    """What traces are sent to; refuses them while `status` says so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> dict[str, Any]:
        """Every span, by its name."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        server: Any = self.server
        if self.path == "/v1/traces" and server.status == 200:
            server.requests.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, daemon=True)
        thread.start()
        yield collector
        collector.shutdown()
        thread.join()


def place_call(url: str) -> None:
    async def main() -> None:
        async with dialled(await asyncio.to_thread(announce, url)) as carrier:
            await carrier.speak(tone(500, 400, 8000))
            await carrier.until("media", 3)
            await carrier.hang_up()

    asyncio.run(main())


@pytest.mark.parametrize("arguments", [[], ["--workers", "1"]], ids=["one process", "--workers 1"])
def test_pipecats_spans_are_children_of_the_call(tmp_path: Path, arguments: list[str]) -> None:
    with collecting() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "PYTHONPATH": ROOT, "OTEL_BSP_SCHEDULE_DELAY": "60000"}
        with server_process(tmp_path, TRACED, "-t", "twilio", *arguments, **environ) as server:
            place_call(server.url)
            server.logged("ended by")
            assert collector.requests == []
            # What has not been sent is sent at the end.
            server.process.terminate()
            assert server.wait(10) == 0
        spans = collector.spans()
        # And none of FastAPI's, which would have tokens in them.
        assert spans.keys() == {"webhook", "call", "handshake", "wait", "conversation", "turn"}
        assert len({each.trace_id for each in spans.values()}) == 1
        assert spans["call"].parent_span_id == spans["webhook"].span_id
        assert spans["conversation"].parent_span_id == spans["call"].span_id
        assert spans["turn"].parent_span_id == spans["conversation"].span_id
        resources = {str(each.resource) for request in collector.requests for each in request.resource_spans}
        # One for each process.
        assert len(resources) == 1 + len(arguments) // 2
        assert all('string_value: "wsvoice"' in each for each in resources)


def test_a_collector_that_is_gone_costs_one_line_and_no_time(tmp_path: Path) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": ROOT,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with server_process(tmp_path, TRACED, "-t", "twilio", **environ) as server:
        place_call(server.url)
        log = server.logged("traces are not sent to http://127.0.0.1:9: ")
        place_call(server.url)
        server.process.terminate()
        assert server.wait(5) == 0
        log = server.log()
    assert log.count("traces are not sent") == 1
    assert "Traceback" not in log
    assert log.count("127.0.0.1:9") == 1, log


def test_a_collector_that_comes_back_is_told_of(serve: Callable[..., RunningServer]) -> None:
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    with collecting() as collector:
        exporter = telemetry._exporter(OTLPSpanExporter(f"{collector.url}/v1/traces", timeout=1), collector.url)
        results = []
        for status in (400, 400, 200, 200):
            collector.status = status
            results.append(exporter.export([]))
    logger.remove(sink)
    exporter.shutdown()
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    assert results == [failure, failure, success, success]
    assert [line.partition(":")[0].split(" to http")[0] for line in lines] == ["traces are not sent", "traces are sent"]
    assert "400" in lines[0]
    assert lines[1].endswith("again")


def test_a_variable_of_the_sdk_that_is_wrong_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    telemetry.start_tracing(RunConfig(traces="http://localhost:4318")).close()
    logger.remove(sink)
    (line,) = lines
    assert line.startswith("no traces are sent to http://localhost:4318: one of OpenTelemetry's variables is wrong: ")


def test_a_missing_package_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="WARNING")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    tracing = telemetry.start_tracing(RunConfig(traces="http://localhost:4318"))
    logger.remove(sink)
    tracing.close()
    assert lines == [
        "no traces are sent to http://localhost:4318: OpenTelemetry is missing; pip install 'wsvoice[otel]'"
    ]


@pytest.mark.parametrize(
    ("environ", "traces", "warning"),
    [
        ({}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, "http://localhost:4318", None),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://u:p@x/v1/traces?k=1"}, "https://x/v1/traces", None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "console,otlp"}, "http://x", None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "localhost:4318"}, None, "OTEL_EXPORTER_OTLP_ENDPOINT is no http(s) URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:port"}, None, "OTEL_EXPORTER_OTLP_ENDPOINT is no http(s) URL"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            None,
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc",
        ),
    ],
)
def test_opentelemetrys_own_variables_decide(
    tmp_path: Path, environ: dict[str, str], traces: str | None, warning: str | None
) -> None:
    resolved = resolve_run({}, environ=environ, cwd=tmp_path)
    assert resolved.config.traces == traces
    told = [each for each in resolved.warnings if "no traces are sent" in each]
    assert len(told) == (warning is not None)
    assert warning is None or warning in told[0]


def test_processes_of_tests_send_no_traces() -> None:
    assert not any(name.startswith("OTEL_") for name in clean_environ())
