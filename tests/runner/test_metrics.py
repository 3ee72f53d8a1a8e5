"""What is counted of calls, and how it is served to Prometheus."""

from __future__ import annotations

import asyncio
import http.client
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import prometheus_client
import pytest
import uvicorn
import websockets
from prometheus_client.parser import text_string_to_metric_families

import wsvoice.runner
from tests.runner import kinds
from tests.runner.carrier import FORM
from tests.runner.conftest import RunningServer, serving
from tests.signals import tone
from wsvoice.call import Call
from wsvoice.config import METRICS_TOKEN
from wsvoice.errors import ServerError
from wsvoice.providers import PROVIDERS
from wsvoice.runner import metrics as counted
from wsvoice.runner.clients import ClientRecord
from wsvoice.runner.listening import listen
from wsvoice.runner.metrics import DIRECTIONS, OUTCOMES, Exposition, Histogram, Metrics, Running, refusal_of
from wsvoice.runner.metrics_server import MAX_AGE_S, MetricsPage, MetricsServer
from wsvoice.runner.session import CallRecord
from wsvoice.runner.turns import Breaks

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    """Read an exposition with the library's own parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def made(running: list[Running] | None = None, providers: tuple[str, ...] = ("twilio",), **others: Any) -> Metrics:
    known: dict[str, Any] = {
        "lags_s": lambda: {"0": 0.001},
        "is_draining": lambda: False,
        "max_calls": lambda: None,
        **others,
    }
    return Metrics(providers, running=lambda: running or [], **known)


def rendered(metrics: Metrics) -> Samples:
    return samples_of(Exposition(metrics).render().decode())


# -- What is counted --


class TestHistogram:
    def test_counts_a_bound_as_within(self) -> None:
        histogram = Histogram((0.5, 1.0))
        for duration_s in (0.1, 0.5, 0.7, 3.0):
            histogram.observe(duration_s)
        assert histogram.buckets() == [("0.5", 2), ("1.0", 3), ("+Inf", 4)]
        assert histogram.sum_s == pytest.approx(4.3)


class TestMetrics:
    def test_takes_all_from_a_record_that_came_from_another_process(self) -> None:
        record = CallRecord(
            call=Call("twilio", "CA1", direction="outbound"),
            duration_s=20.0,
            ended_by="bot",
            handshake_s=0.2,
            first_sound_s=1.1,
            responses_s=[0.6, 0.9],
            bytes_in=160_000,
            bytes_out=80_000,
            underruns=2,
        )
        metrics = made()
        metrics.session_ended(pickle.loads(pickle.dumps(record)))
        samples = rendered(metrics)
        call = {"provider": "twilio", "direction": "outbound", "outcome": "bot"}
        assert value(samples, "wsvoice_calls_total", **call) == 1
        for name, count, sum_s in (
            ("call_duration", 1, 20.0),
            ("handshake", 1, 0.2),
            ("first_sound", 1, 1.1),
            ("response", 2, 1.5),
        ):
            assert value(samples, f"wsvoice_{name}_seconds_count") == count
            assert value(samples, f"wsvoice_{name}_seconds_sum") == pytest.approx(sum_s)
        assert value(samples, "wsvoice_response_seconds_bucket", le="0.75") == 1
        assert value(samples, "wsvoice_audio_bytes_total", direction="in") == 160_000
        assert value(samples, "wsvoice_audio_bytes_total", direction="out") == 80_000
        assert value(samples, "wsvoice_underruns_total") == 2

    def test_a_call_that_never_spoke_has_no_waits(self) -> None:
        metrics = made()
        metrics.session_ended(CallRecord(call=Call("twilio", "CA1"), is_refused=True))
        samples = rendered(metrics)
        assert value(samples, "wsvoice_handshake_seconds_count") == 0
        assert value(samples, "wsvoice_first_sound_seconds_count") == 0
        assert value(samples, "wsvoice_calls_total", provider="twilio", direction="inbound", outcome="refused") == 1

    def test_a_client_counts_as_a_call_of_its_transport(self) -> None:
        metrics = made(providers=("websocket",))
        metrics.session_ended(ClientRecord(session_id="1", ended_by="caller", duration_s=3.0))
        samples = rendered(metrics)
        assert value(samples, "wsvoice_calls_total", provider="websocket", direction="inbound", outcome="caller") == 1

    def test_a_stranger_invents_no_label(self) -> None:
        metrics = made()
        before = set(rendered(metrics))
        for n in range(50):
            metrics.session_ended(CallRecord(call=Call(f"p{n}", "CA1", direction=f"d{n}")))  # type: ignore[arg-type]
            metrics.webhook_answered(f"p{n}", 0.1, f"o{n}")
            metrics.refused(f"k{n}", f"r{n}")
        more = set(rendered(metrics)) - before
        assert {label for _, labels in more for label in labels if label[0] != "le"} == {
            (name, each)
            for name, values in {
                "provider": ["other"],
                "direction": ["other"],
                "outcome": ["server", "other"],
                "kind": ["other"],
                "reason": ["other"],
            }.items()
            for each in values
        }

    def test_what_runs_counts_until_its_record_comes_and_nothing_falls(self) -> None:
        running = [Running("twilio", 1000, 500, 1), Running("twilio", 10, 10, 0)]
        metrics = made(running)
        exposition = Exposition(metrics)
        first = samples_of(exposition.render().decode())
        assert value(first, "wsvoice_active_calls", provider="twilio") == 2
        assert value(first, "wsvoice_audio_bytes_total", direction="in") == 1010
        # Its process is killed, and what it had counted is lost with it.
        del running[0]
        second = samples_of(exposition.render().decode())
        assert value(second, "wsvoice_active_calls", provider="twilio") == 1
        assert value(second, "wsvoice_audio_bytes_total", direction="in") == 1010
        assert value(second, "wsvoice_underruns_total") == 1

    def test_workers_reloads_and_limits(self) -> None:
        metrics = made(lags_s=lambda: {"1": 0.25, "2": 0.0}, is_draining=lambda: True, max_calls=lambda: 200)
        metrics.worker_died()
        metrics.reloaded(failed=False)
        metrics.reloaded(failed=True)
        metrics.reloaded(failed=True)
        samples = rendered(metrics)
        assert value(samples, "wsvoice_event_loop_lag_seconds", worker="1") == 0.25
        assert value(samples, "wsvoice_workers") == 2
        assert value(samples, "wsvoice_worker_deaths_total") == 1
        assert value(samples, "wsvoice_reloads_total", result="ok") == 1
        assert value(samples, "wsvoice_reloads_total", result="failed") == 2
        assert value(samples, "wsvoice_draining") == 1
        assert value(samples, "wsvoice_max_calls") == 200
        assert value(rendered(made()), "wsvoice_max_calls") == float("inf")
        (build,) = (dict(labels) for name, labels in samples if name == "wsvoice_build_info")
        assert build.keys() == {"version", "pipecat"}
        assert all(re.match(r"\d+\.\d+", each) for each in build.values())


class TestBreaks:
    rate = 8000
    loud, quiet = tone(500, 20, 8000), bytes(320)

    def test_a_break_in_the_middle_of_a_sound_is_an_underrun(self) -> None:
        breaks = Breaks()
        assert not breaks.sent(self.loud, 1e9, self.rate)
        assert not breaks.sent(self.loud, 0.0, self.rate)
        assert breaks.sent(self.loud, 0.02, self.rate)
        assert breaks.sent(self.quiet, 0.49, self.rate)

    def test_what_is_not_heard_or_was_meant_is_none(self) -> None:
        breaks = Breaks()
        breaks.sent(self.loud, 0.0, self.rate)
        assert not breaks.sent(self.loud, 0.019, self.rate)
        assert not breaks.sent(self.loud, 0.5, self.rate)
        breaks.sent(self.loud + 2 * self.quiet, 0.0, self.rate)
        assert not breaks.sent(self.loud, 0.2, self.rate)
        breaks.cleared()
        assert not breaks.sent(self.loud, 0.2, self.rate)


def test_every_refusal_of_the_log_has_a_kind_and_a_reason_of_the_few() -> None:
    folder = Path(wsvoice.runner.__file__).parent
    source = "\n".join(each.read_text("utf-8") for each in folder.glob("*.py"))
    texts = re.findall(r"refusals\.warning\(\s*\w+, f?\"([^\"]+)\"", source)
    assert len(texts) > 10
    for text in texts:
        for status in ("400", "403", "408", "413", "503"):
            what = re.sub(r"\{[^}]*status\}", status, text).replace("{what}", "stream")
            refusal = refusal_of(what)
            if refusal is None:
                assert "503" in what or "busy" in what
                continue
            kind, reason = refusal
            assert kind in counted.REFUSAL_KINDS, what
            assert reason in counted.REFUSAL_REASONS, what


# -- A real server --


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """A server that has had a call of every kind."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as start:
        running = start(kinds.bot, metrics_port=0, transport="twilio")
        asyncio.run(kinds.place_every_kind(running.url, running.switchboard.capacity))
        running.ended(6)
        yield running


@pytest.fixture(scope="module")
def samples(server: RunningServer) -> Samples:
    """What it exports after that; a bot has metrics of its own meanwhile."""
    mine = prometheus_client.Counter("bots_own_total", "Of a bot.")
    mine.inc()
    return samples_of(httpx.get(server.ready.metrics_url).text)


def test_calls_are_counted_by_how_they_ended(samples: Samples) -> None:
    ended = {
        outcome: value(samples, "wsvoice_calls_total", provider="twilio", direction="inbound", outcome=outcome)
        for outcome in OUTCOMES
    }
    assert ended == {"bot": 2, "caller": 1, "error": 1, "server": 0, "lost": 1, "refused": 1}
    assert value(samples, "wsvoice_active_calls", provider="twilio") == 0
    assert value(samples, "wsvoice_call_duration_seconds_count") == 6
    # All but the one that never started.
    assert value(samples, "wsvoice_handshake_seconds_count") == 5


def test_sounds_waits_and_underruns_are_counted(server: RunningServer, samples: Samples) -> None:
    by_call = {record.call.call_id: record for record in server.records}
    assert by_call[kinds.STUTTERS].underruns == 1
    assert value(samples, "wsvoice_underruns_total") == sum(each.underruns for each in server.records)
    # 40 ms three times, of 8000 bytes a second.
    assert by_call[kinds.STUTTERS].bytes_out == 3 * 320
    assert by_call[kinds.ECHOES].bytes_in == by_call[kinds.ECHOES].bytes_out == 5 * 160
    assert value(samples, "wsvoice_audio_bytes_total", direction="in") == sum(each.bytes_in for each in server.records)
    sounds = [each.first_sound_s for each in server.records if each.first_sound_s is not None]
    assert value(samples, "wsvoice_first_sound_seconds_count") == len(sounds) == 3
    assert value(samples, "wsvoice_first_sound_seconds_sum") == pytest.approx(sum(sounds))
    assert value(samples, "wsvoice_response_seconds_count") >= 2


def test_webhooks_and_refusals_are_counted(samples: Samples) -> None:
    answered = {
        outcome: value(samples, "wsvoice_webhooks_total", provider="twilio", outcome=outcome)
        for outcome in ("answered", "busy", "refused", "failed")
    }
    assert answered == {"answered": 6, "busy": 1, "refused": 1, "failed": 0}
    assert value(samples, "wsvoice_webhook_seconds_count", provider="twilio") == 8
    assert value(samples, "wsvoice_webhook_seconds_sum", provider="twilio") > 0
    assert value(samples, "wsvoice_refusals_total", kind="webhook", reason="max_calls") == 1
    assert value(samples, "wsvoice_refusals_total", kind="webhook", reason="bad_request") == 1
    assert value(samples, "wsvoice_refusals_total", kind="stream", reason="forbidden") == 1


def test_the_process_is_in_it_and_nobody_elses_metrics_are(samples: Samples) -> None:
    assert value(samples, "process_resident_memory_bytes") > 1e6
    assert {name for name, _ in samples if not name.startswith(("wsvoice_", "process_"))} == set()


def test_nothing_else_is_served_there_and_no_metrics_on_the_main_port(server: RunningServer) -> None:
    url = server.ready.metrics_url
    assert httpx.get(url).headers["content-type"].startswith("text/plain; version=")
    assert httpx.get(url.removesuffix("/metrics")).status_code == 404
    assert httpx.post(url).status_code == 405
    assert httpx.get(f"{server.url}metrics").status_code == 404


def test_the_main_port_serves_them_for_a_token(serve: Callable[..., Any]) -> None:
    server = serve(kinds.bot, credentials={METRICS_TOKEN: "s3cret-s3cret-s3cret"})
    url = f"{server.url}metrics"
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret-s3cret-s3cret"},
        {"Authorization": "é"},
    ):
        encoded = {name: text.encode() for name, text in headers.items()}
        refused = httpx.get(url, headers=encoded)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "wsvoice_calls" not in refused.text
    samples = samples_of(httpx.get(url, headers={"Authorization": "Bearer s3cret-s3cret-s3cret"}).text)
    assert value(samples, "wsvoice_refusals_total", kind="metrics", reason="unauthorized") == 4
    assert "s3cret" not in "".join(server.log)
    assert server.ready.metrics_url is None


def test_plain_clients_are_counted_too(serve: Callable[..., Any]) -> None:
    async def bot(runner_args: Any) -> None:
        async for text in runner_args.websocket.iter_text():
            await runner_args.websocket.send_text(text * 2)

    server = serve(bot, transport="websocket", metrics_port=0, max_calls=1)

    async def main() -> Samples:
        url = f"{server.ws_url}ws-client"
        async with websockets.connect(url, origin="http://localhost") as client:  # type: ignore[arg-type]
            await client.send("12345")
            assert await client.recv() == "1234512345"
            with pytest.raises(websockets.InvalidStatus):
                await websockets.connect(url)
            return samples_of((await asyncio.to_thread(httpx.get, server.ready.metrics_url)).text)

    during = asyncio.run(main())
    assert value(during, "wsvoice_active_calls", provider="websocket") == 1
    assert value(during, "wsvoice_audio_bytes_total", direction="out") == 10
    assert value(during, "wsvoice_refusals_total", kind="client", reason="max_calls") == 1
    server.ended()
    after = rendered(server.switchboard.metrics)
    assert value(after, "wsvoice_active_calls", provider="websocket") == 0
    assert value(after, "wsvoice_audio_bytes_total", direction="in") == 5
    assert value(after, "wsvoice_audio_bytes_total", direction="out") == 10
    assert value(after, "wsvoice_calls_total", provider="websocket", direction="inbound", outcome="caller") == 1
    assert value(after, "wsvoice_max_calls") == 1


def test_why_a_server_is_closed_is_in_it(shared: RunningServer) -> None:
    switchboard = shared.switchboard
    for _ in range(20):
        switchboard.lateness.note(1.0)
    assert "<Reject" in httpx.post(f"{shared.url}twilio", data={**FORM, "CallSid": "CAlate"}).text
    for _ in range(20):
        switchboard.lateness.note(0.0)
    switchboard.drain()
    assert "<Reject" in httpx.post(f"{shared.url}twilio", data={**FORM, "CallSid": "CAlast"}).text
    samples = rendered(switchboard.metrics)
    assert value(samples, "wsvoice_refusals_total", kind="webhook", reason="lag") == 1
    assert value(samples, "wsvoice_refusals_total", kind="webhook", reason="draining") == 1
    assert value(samples, "wsvoice_draining") == 1


def test_a_metrics_port_in_use_is_known_before_any_call(serve: Callable[..., Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerError) as caught:
        serve(kinds.bot, metrics_port=taken.getsockname()[1], metrics_host="127.0.0.1")
    assert "cannot listen on 127.0.0.1" in caught.value.message
    assert "--metrics-port" in (caught.value.hint or "")


# -- What it costs --


def test_a_hundred_calls_are_rendered_in_less_than_5_ms() -> None:
    exposition = Exposition(made([Running("twilio", 10**9, 10**9, 3)] * 100, tuple(PROVIDERS)))
    times_s = []
    for _ in range(10):
        began = time.thread_time()
        exposition.render()
        times_s.append(time.thread_time() - began)
    assert min(times_s) < 0.005


def test_ten_scrapes_a_second_cost_less_than_a_hundredth_of_a_core() -> None:
    """The processor time of the event loop's thread, for requests that come every 100 ms by the page's clock."""
    metrics, scrapes = made([Running("twilio", 10**9, 10**9, 3)] * 25), 50
    clock = iter(range(10_000))

    def ask(port: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        lengths = []
        for _ in range(scrapes):
            connection.request("GET", "/metrics")
            lengths.append(len(connection.getresponse().read()))
        connection.close()
        return min(lengths)

    async def main() -> float:
        sockets = listen("127.0.0.1", 0)
        server = MetricsServer(metrics, sockets, now=lambda: next(clock) / 10)
        await server.start()
        try:
            rounds = []
            for _ in range(3):
                began = time.thread_time()
                assert await asyncio.to_thread(ask, sockets[0].getsockname()[1]) > 1000
                rounds.append((time.thread_time() - began) / scrapes)
            return min(rounds)
        finally:
            await server.stop()

    # As the server itself runs.
    loop_factory = uvicorn.Config("").get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        cost_s = runner.run(main())
    assert cost_s * 10 < 0.01, f"{cost_s * 1000:.2f} ms a scrape"


def test_the_text_is_written_once_a_second_at_most() -> None:
    now = 0.0
    metrics = made()
    page = MetricsPage(metrics, now=lambda: now)
    first = page.text()
    metrics.worker_died()
    now = MAX_AGE_S * 0.9
    assert page.text() is first
    now = MAX_AGE_S
    assert value(samples_of(page.text().decode()), "wsvoice_worker_deaths_total") == 1


def test_all_directions_are_known() -> None:
    from typing import get_args

    from wsvoice.call import Direction

    assert set(get_args(Direction)) == set(DIRECTIONS)
