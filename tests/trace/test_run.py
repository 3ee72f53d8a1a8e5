"""`wsvoice run --trace`: the traces of whole calls on the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import signal
import stat
import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runner import bots
from tests.runner.carrier import announce, dialled, main_frequency
from tests.runner.conftest import serve  # noqa: F401
from tests.signals import tone
from tests.stalls import undisturbed
from tests.workers.processes import bot_of, workers_process
from wsvoice.errors import ConfigError
from wsvoice.runner.preflight import check_settings
from wsvoice.trace import Trace, read_trace

Serve = Callable[..., Any]


def only_trace(folder: Path) -> Trace:
    [path] = folder.glob("*.call")
    return read_trace(path)


def call(server: Any, *, digits: str = "", ms: int = 300) -> None:
    """Place a call to an echo bot: it hears a tone, then keys, and hangs up."""

    async def main() -> None:
        async with dialled(announce(server.url), tenant="blue-whale") as carrier:
            await carrier.speak(tone(700, ms, 8000))
            for digit in digits:
                await carrier.press(digit)
            await carrier.until("mark")
            await carrier.hang_up()

    asyncio.run(main())
    server.ended()


def test_a_call_is_in_its_trace(serve: Serve, tmp_path: Path) -> None:  # noqa: F811
    async def bot(runner_args: Any) -> None:
        from loguru import logger

        logger.info("the bot says hello")
        await bots.echo_8k(runner_args)

    server = serve(bot, trace=tmp_path / "traces", credentials={"TWILIO_AUTH_TOKEN": "a-secret-of-mine"}, verify="off")
    call(server, digits="42")
    trace = only_trace(tmp_path / "traces")
    assert trace.is_complete
    assert (trace.side, trace.provider, trace.rate) == ("server", "twilio", 8000)
    assert (trace.call.from_number, trace.call.parameters["tenant"]) == ("+15550100001", "blue-whale")
    assert trace.versions["pipecat"]
    wire = list(trace.wire)
    assert [(each.dir, each.kind) for each in wire[:2]] == [("in", "webhook"), ("out", "answer")]
    assert "CallSid=CA" in (wire[0].text or "")
    assert "<Stream url=" in (wire[1].text or "")
    assert wire[0].t < wire[1].t < 0
    assert wire[-1].kind == "close"
    times = [each.t for each in wire]
    assert times == sorted(times)
    messages = [(each.dir, json.loads(each.text or "{}").get("event")) for each in wire if each.kind == "text"]
    for wanted in (
        ("in", "connected"),
        ("in", "start"),
        ("in", "media"),
        ("in", "dtmf"),
        ("out", "media"),
        ("in", "stop"),
    ):
        assert wanted in messages
    start = next(each for each in wire if '"start"' in (each.text or ""))
    assert abs(start.t) < 0.05
    # What the wire has is what the tracks have.
    sent = b"".join(
        base64.b64decode(json.loads(each.text or "")["media"]["payload"])
        for each in wire
        if each.dir == "in" and '"media"' in (each.text or "")
    )
    assert len(sent) == 300 * 8
    assert main_frequency(trace.caller.tobytes()) == pytest.approx(700, abs=25)
    assert main_frequency(trace.bot.tobytes()) == pytest.approx(700, abs=25)
    assert len(trace.caller) == len(trace.bot)
    # An echo may leave in the same step of the loop, which is one time.
    assert np.flatnonzero(np.abs(trace.bot) > 500)[0] >= np.flatnonzero(np.abs(trace.caller) > 500)[0]
    events = [each.event for each in trace.timeline]
    for event in ("started", "caller-speaks", "bot-speaks", "digit", "buffer", "mark", "mark-sent", "wait", "hang-up"):
        assert event in events
    assert [each.detail for each in trace.timeline if each.event == "digit"] == [
        "the caller presses 4",
        "the caller presses 2",
    ]
    assert any(each.message == "the bot says hello" for each in trace.log)
    assert (trace.ended["by"], trace.report["digits"]) == ("caller", "42")


def test_no_secret_is_in_it(serve: Serve, tmp_path: Path) -> None:  # noqa: F811
    secret = "a-secret-of-mine"

    async def bot(runner_args: Any) -> None:
        from loguru import logger

        logger.info("logging in with {}", secret)
        await bots.echo_8k(runner_args)

    server = serve(bot, trace=tmp_path, credentials={"TWILIO_AUTH_TOKEN": secret}, verify="off")
    stream_url = ""

    async def main() -> None:
        nonlocal stream_url
        stream_url = announce(server.url, headers={"X-Twilio-Signature": "c2lnbmF0dXJlIQ=="})
        async with dialled(stream_url, api_token="tok-12345678") as carrier:
            await carrier.speak(tone(700, 100, 8000))
            await carrier.until("mark")
            await carrier.hang_up()

    asyncio.run(main())
    server.ended()
    [path] = tmp_path.glob("*.call")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    content = b"".join(each.read_bytes() for each in path.iterdir() if each.suffix != ".s16")
    token = stream_url.rpartition("/")[2]
    assert len(token) > 20
    for word in (secret, token, "c2lnbmF0dXJlIQ==", "tok-12345678"):
        assert word.encode() not in content
    assert b"logging in with ***" in content


@pytest.mark.parametrize("redact", ["callers", "digits"])
def test_who_called_is_left_out_if_asked_for(serve: Serve, tmp_path: Path, redact: str) -> None:  # noqa: F811
    server = serve(bots.echo_8k, trace=tmp_path, redact=redact)
    call(server, digits="9")
    [path] = tmp_path.glob("*.call")
    content = b"".join(each.read_bytes() for each in path.iterdir() if each.suffix != ".s16")
    for word in ("5550100001", "5550100002", "blue-whale"):
        assert word.encode() not in content
    trace = read_trace(path)
    assert trace.call.from_number == "***"
    dtmf = [each.text for each in trace.wire if '"dtmf"' in (each.text or "")]
    assert ('"9"' in (dtmf[0] or "")) is (redact == "callers")
    assert (trace.report["digits"] == "9") is (redact == "callers")


def test_a_trace_and_a_recording_have_the_same_sound(serve: Serve, tmp_path: Path) -> None:  # noqa: F811
    server = serve(bots.echo_8k, trace=tmp_path / "a", record=tmp_path / "b")

    def compare() -> None:
        for folder in (tmp_path / "a", tmp_path / "b"):
            shutil.rmtree(folder, ignore_errors=True)
        call(server)
        trace = only_trace(tmp_path / "a")
        [recording] = (tmp_path / "b").glob("*.wav")
        with wave.open(str(recording)) as file:
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        # They begin within a millisecond or two of each other.
        for track, side in ((trace.caller, 0), (trace.bot, 1)):
            sounding = np.flatnonzero(frames[:, side])
            first, ours = int(sounding[0]), int(np.flatnonzero(track)[0])
            assert abs(first - ours) < 400
            length = 1600
            assert np.array_equal(frames[first : first + length, side], track[ours : ours + length])

    undisturbed(compare)


def test_a_failing_disk_costs_no_call(serve: Serve, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "traces"
    server = serve(bots.echo_8k, trace=folder)
    folder.write_text("in the way")
    call(server)
    assert server.ended()[0].ended_by == "caller"
    assert server.lines("the call's trace cannot be written")


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    from wsvoice.config import RunConfig

    with pytest.raises(ConfigError, match="--redact is about traces"):
        check_settings(RunConfig(transport="twilio", redact="callers"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--trace .* cannot be written to"):
        check_settings(RunConfig(transport="twilio", trace=tmp_path / "file" / "x"))


def test_workers_write_the_traces_with_the_webhooks_that_the_front_saw(tmp_path: Path) -> None:
    with workers_process(tmp_path, bot_of(), "--workers", "2", "--trace", "traces", "--redact", "callers") as server:

        async def main() -> None:
            other = "CA" + "2" * 32
            async with (
                dialled(announce(server.url)) as first,
                dialled(announce(server.url, other), other) as second,
            ):
                for carrier in (first, second):
                    await carrier.speak(tone(700, 300, 8000))
                for carrier in (first, second):
                    await carrier.until("mark")
                    await carrier.hang_up()

        asyncio.run(main())
        server.logged("traced to")
    # Both have been written before the server ends.
    traces = [read_trace(each) for each in (tmp_path / "traces").glob("*.call")]
    assert len({each.call.call_id for each in traces}) == 2
    for trace in traces:
        assert trace.is_complete
        webhook, answer, *_ = trace.wire
        assert (webhook.kind, answer.kind) == ("webhook", "answer")
        assert "From=***" in (webhook.text or "")
        assert f"CallSid={trace.call.call_id}" in (webhook.text or "")
        assert any("this is version one" in each.message for each in trace.log)
        assert main_frequency(trace.bot.tobytes()) == pytest.approx(700, abs=25)


def test_a_server_that_is_killed_leaves_its_traces(tmp_path: Path) -> None:
    with workers_process(tmp_path, bot_of(), "--trace", "traces") as server:

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                speaking = asyncio.create_task(carrier.speak(tone(700, 5000, 8000)))
                wire = tmp_path / "traces"
                async with asyncio.timeout(10):
                    while not any(each.stat().st_size > 32_000 for each in wire.glob("*.call/caller.s16")):
                        await asyncio.sleep(0.02)
                server.signal(signal.SIGKILL)
                with suppress(Exception):
                    await speaking

        asyncio.run(main())
    trace = only_trace(tmp_path / "traces")
    assert not trace.is_complete
    assert not trace.ended
    assert trace.duration_s >= 2
    assert [each.kind for each in trace.wire][:2] == ["webhook", "answer"]
    assert main_frequency(trace.caller[8000:].tobytes()) == pytest.approx(700, abs=25)


def test_the_trace_of_a_plain_client(serve: Serve, tmp_path: Path) -> None:  # noqa: F811
    import websockets

    async def bot(runner_args: Any) -> None:
        await runner_args.websocket.send_text("hello")
        await runner_args.websocket.receive_text()

    server = serve(bot, transport="websocket", trace=tmp_path)

    async def main() -> None:
        async with websockets.connect(server.ws_url + "ws-client") as socket:
            assert await socket.recv() == "hello"
            await socket.send("token=sesame-open")

    asyncio.run(main())
    server.ended()
    trace = only_trace(tmp_path)
    assert trace.is_complete
    assert trace.provider == "websocket"
    assert [(each.dir, each.text) for each in trace.wire if each.kind == "text"] == [
        ("out", "hello"),
        ("in", "token=***"),
    ]
    assert len(trace.caller) == len(trace.bot) == 0
