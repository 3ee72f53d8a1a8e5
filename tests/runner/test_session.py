"""Whole calls against the real server: what goes wrong in one stays in that one."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import websockets

from tests.runner import bots
from tests.runner.carrier import announce, dialled, main_frequency
from tests.signals import tone
from wsvoice.audio import read_audio
from wsvoice.runner import server as server_module

Serve = Callable[..., Any]


async def wait_for(condition: Callable[[], Any], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def assert_call_works(url: str, frequency_hz: float = 700.0) -> None:
    """Place a short call to an echo bot, and hear the tone come back."""
    async with dialled(url) as carrier:
        await carrier.speak(tone(frequency_hz, 200, 8000))
        await carrier.until("mark")
        assert main_frequency(carrier.heard()) == pytest.approx(frequency_hz, abs=15)
        await carrier.hang_up()


class TestWhatTheBotSees:
    def test_numbers_parameters_and_ids(self, serve: Serve) -> None:
        seen: dict[str, Any] = {}

        async def bot(runner_args: Any) -> None:
            from pipecat.runner.types import WebSocketRunnerArguments

            assert isinstance(runner_args, WebSocketRunnerArguments)
            seen["call"] = runner_args.call
            seen["data"] = runner_args.call_data
            seen["args"] = runner_args

        server = serve(bot, parameters={"tenant": "7"})

        async def main() -> None:
            async with dialled(announce(server.url), tenant="7", direction="inbound") as carrier:
                assert await carrier.closed() == (1000, "")

        asyncio.run(main())
        call, data, args = seen["call"], seen["data"], seen["args"]
        assert (call.provider, call.from_number, call.to_number) == ("twilio", "+15550100001", "+15550100002")
        assert call.stream_id.startswith("MZ")
        assert call.account_id.startswith("AC")
        assert call.parameters["tenant"] == "7"
        assert (data.from_number, data.to_number, data["call_id"]) == ("+15550100001", "+15550100002", call.call_id)
        assert data.body["tenant"] == "7"
        assert args.transport_type == "twilio"
        assert args.session_id == call.call_id
        assert args.body["tenant"] == "7"
        assert not args.handle_sigint
        assert not args.handle_sigterm

    def test_digits(self, serve: Serve) -> None:
        listener: list[bots.Listener] = []

        async def bot(runner_args: Any) -> None:
            listener.append(bots.Listener())
            await bots.run(runner_args.transport, listener[0])

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                for digit in "12*#0A":
                    await carrier.press(digit)
                await carrier.speak(bytes(3200), paced=False)
                await wait_for(lambda: listener and len(listener[0].audio) >= 2 * 3200)
                await carrier.hang_up()

        asyncio.run(main())
        assert listener[0].digits == list("12*#0")
        assert server.ended()[0].digits == "12*#0A"

    def test_what_was_said_before_the_bot_was_ready_is_not_lost(self, serve: Serve) -> None:
        listener: list[bots.Listener] = []
        ready = asyncio.Event()

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            await asyncio.wait_for(ready.wait(), 10)
            listener.append(bots.Listener())
            await bots.run(transport, listener[0], audio_in_sample_rate=8000)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(tone(500, 400, 8000), paced=False)
                await asyncio.sleep(0.1)
                ready._loop.call_soon_threadsafe(ready.set)  # type: ignore[attr-defined]
                await wait_for(lambda: listener and len(listener[0].audio) >= 6400)
                await carrier.hang_up()

        asyncio.run(main())
        assert main_frequency(bytes(listener[0].audio)) == pytest.approx(500, abs=15)


class TestPipecatBots:
    """Bots that were written for pipecat's own runner run as they are."""

    def test_create_transport_without_credentials(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN", "TWILIO_API_KEY", "TWILIO_API_SECRET"):
            monkeypatch.delenv(name, raising=False)
        made: list[Any] = []

        async def bot(runner_args: Any) -> None:
            from pipecat.runner.utils import create_transport
            from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams

            transport = await create_transport(
                runner_args,
                {"twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True)},
            )
            made.append(transport)
            assert runner_args.transport is transport
            await bots.run(transport, bots.Echo())

        asyncio.run(assert_call_works(announce(serve(bot).url)))
        from pipecat.transports.websocket.fastapi import FastAPIWebsocketTransport

        from wsvoice import CallTransport

        assert isinstance(made[0], CallTransport)
        assert isinstance(made[0], FastAPIWebsocketTransport)

    def test_missing_params_say_what_to_add(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            from pipecat.runner.utils import create_transport

            await create_transport(runner_args, {"daily": lambda: None})

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                assert (await carrier.closed())[0] == 1011

        asyncio.run(main())
        assert server.lines('no "twilio"', "FastAPIWebsocketParams")

    def test_its_own_transport_and_serializer(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            from pipecat.runner.utils import parse_telephony_websocket
            from pipecat.serializers.twilio import TwilioFrameSerializer
            from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

            kind, data = await parse_telephony_websocket(runner_args.websocket)
            assert kind == "twilio"
            assert data["from"] == "+15550100001"
            serializer = TwilioFrameSerializer(
                stream_sid=data["stream_id"],
                call_sid=data["call_id"],
                params=TwilioFrameSerializer.InputParams(auto_hang_up=False),
            )
            transport = FastAPIWebsocketTransport(
                websocket=runner_args.websocket,
                params=FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, serializer=serializer),
            )

            @transport.event_handler("on_client_disconnected")
            async def on_client_disconnected(transport: Any, client: Any) -> None:
                await worker[0].cancel()

            worker: list[Any] = []
            await bots.run(
                transport,
                bots.Echo(),
                on_worker=worker.append,
                audio_in_sample_rate=8000,
                audio_out_sample_rate=8000,
            )

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url), from_number="+15550100001") as carrier:
                await carrier.socket.send("{not json")
                await carrier.send({"event": "media", "streamSid": "x", "media": {"payload": "A"}})
                await carrier.speak(tone(600, 400, 8000))
                await wait_for(lambda: len(carrier.heard()) >= 4800)
                assert main_frequency(carrier.heard()) == pytest.approx(600, abs=15)
                await carrier.hang_up()

        asyncio.run(main())
        record = server.ended()[0]
        assert record.ended_by == "caller"
        assert record.sent_s == pytest.approx(0.4, abs=0.15)
        assert set(record.faults) == {"not-json", "bad-base64"}


class TestBadMessages:
    def test_the_call_goes_on(self, serve: Serve) -> None:
        server = serve(bots.echo)
        media = {"event": "media", "streamSid": "MZ", "sequenceNumber": 7}
        bad: list[str | bytes] = [
            "{not json",
            "",
            "[]",
            "[1, 2]",
            "17",
            '"text"',
            "null",
            json.dumps({**media, "media": None}),
            json.dumps({**media, "media": []}),
            json.dumps({**media, "media": {"payload": 5}}),
            json.dumps({**media, "media": {"payload": "***="}}),
            json.dumps({**media, "media": {"payload": "A"}}),
            json.dumps({**media, "media": {"payload": "QQ==QQ"}}),
            json.dumps({"event": "dtmf", "dtmf": None}),
            json.dumps({"event": "mark"}),
            json.dumps({"event": 5}),
            json.dumps({"no": "event"}),
            json.dumps({"event": "surprise"}),
            json.dumps({"event": "connected"}),
            "[" * 20_000,
            '{"event": "media", "media": {"payload": "\\ud800"}}',
            b"\x00\x01\x02",
            b'{"event": "media"}',
        ]

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                for message in [*bad, *bad, *bad]:
                    await carrier.socket.send(message)
                # Counters as numbers, as nothing, and out of order.
                quiet = base64.b64encode(b"\xff" * 160).decode()
                for counters in ({"chunk": 9, "timestamp": 9}, {}, {"chunk": "3", "timestamp": "1"}):
                    message = {"event": "media", "media": {"payload": quiet, "track": "inbound", **counters}}
                    await carrier.socket.send(json.dumps(message))
                await carrier.speak(tone(700, 300, 8000))
                await carrier.until("mark")
                assert main_frequency(carrier.heard()) == pytest.approx(700, abs=15)
                await carrier.hang_up()

        asyncio.run(main())
        faults = server.ended()[0].faults
        assert sum(faults.values()) >= 3 * (len(bad) - 1)
        warnings = server.lines("WARNING", "ignored a bad message")
        assert len(warnings) == len(faults)
        [summary] = server.lines("ended by the caller")
        assert all(f"{count} {kind}" in summary for kind, count in faults.items())

    def test_a_message_over_the_limit_ends_only_its_call(self, serve: Serve) -> None:
        server = serve(bots.echo)
        other = "CA" + "5" * 32

        async def main() -> None:
            async with dialled(announce(server.url)) as big, dialled(announce(server.url, other), other) as small:
                await big.socket.send("x" * 70_000)
                assert (await big.closed())[0] == 1009
                await small.speak(tone(700, 200, 8000))
                await small.until("mark")
                await small.hang_up()

        asyncio.run(main())
        assert server.lines("larger than the limit")

    def test_silence_in_the_handshake(self, serve: Serve) -> None:
        server = serve(bots.echo, handshake_timeout_s=0.3)

        async def main() -> None:
            async with dialled(announce(server.url), start=False) as carrier:
                assert (await carrier.closed())[0] == 1008
            async with dialled(announce(server.url, "CA2"), "CA2", start=False) as carrier:
                await carrier.socket.send('{"event":"connected"}')
                assert (await carrier.closed())[0] == 1008
            await asyncio.to_thread(server.ended, 2)

        asyncio.run(main())
        assert len(server.lines("sent no start message within 0.3 s")) == 2


class TestCallsThatComeAtOnce:
    def test_a_bot_starts_once_the_one_before_can_speak(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        # Whatever the machine does meanwhile, nothing but the first bot's own start ends its start.
        monkeypatch.setattr("wsvoice.runner.starting.BUSY_SHARE", 0.0)
        monkeypatch.setattr("wsvoice.runner.starting.MAX_START_S", 60.0)
        begun_at: list[float] = []

        async def bot(runner_args: Any) -> None:
            begun_at.append(time.monotonic())
            await asyncio.sleep(0.2)
            await bots.echo(runner_args)

        server = serve(bot)
        other = "CA" + "5" * 32

        async def main() -> None:
            async with dialled(announce(server.url)) as one, dialled(announce(server.url, other), other) as two:
                for carrier in one, two:
                    await carrier.speak(tone(700, 200, 8000))
                for carrier in one, two:
                    await carrier.until("mark")
                    await carrier.hang_up()

        asyncio.run(main())
        assert begun_at[1] - begun_at[0] >= 0.2


class TestCallersWhoVanish:
    def test_without_a_close(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        assert server_module.PING_INTERVAL_S + server_module.PING_TIMEOUT_S < 20
        monkeypatch.setattr(server_module, "PING_INTERVAL_S", 0.2)
        monkeypatch.setattr(server_module, "PING_TIMEOUT_S", 0.4)
        server = serve(bots.echo)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await wait_for(lambda: server.lines("stream started"))
                # The kernel goes on acknowledging, and nobody answers: a machine that hangs.
                carrier.socket.transport.pause_reading()
                await asyncio.to_thread(server.ended)
                carrier.socket.transport.abort()

        asyncio.run(main())
        assert server.ended()[0].ended_by == "caller"
        assert "lost" in server.ended()[0].reason

    def test_a_reader_that_never_reads(self, serve: Serve) -> None:
        sent: list[int] = []

        async def bot(runner_args: Any) -> None:
            payload = base64.b64encode(bytes(24_000)).decode()
            message = json.dumps({"event": "media", "streamSid": "MZ", "media": {"payload": payload}})
            while True:
                await runner_args.websocket.send_text(message)
                sent.append(len(message))

        server = serve(bot, send_timeout_s=0.5)

        async def main() -> None:
            url = announce(server.url)
            parts = urlsplit(url)
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect((parts.hostname, parts.port))
            raw.setblocking(False)
            connection = await websockets.connect(url, sock=raw, compression=None, max_queue=1)
            start = {
                "event": "start",
                "start": {"streamSid": "MZ", "callSid": "CA00000000000000000000000000000001", "accountSid": "AC"},
            }
            await connection.send('{"event":"connected"}')
            await connection.send(json.dumps(start))
            connection.transport.pause_reading()
            await asyncio.to_thread(server.ended, 1, 20)
            connection.transport.abort()

        asyncio.run(main())
        assert "did not read for 0.5 s" in server.ended()[0].reason
        # What the kernel's buffers took, and no more: nothing piles up in the process.
        assert sum(sent) < 20_000_000


class TestBotsThatFail:
    def test_before_the_pipeline(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            if not seen:
                seen.append(1)
                raise RuntimeError("no key for the model")
            await bots.echo(runner_args)

        seen: list[int] = []
        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                assert (await carrier.closed())[0] == 1011
            await assert_call_works(announce(server.url))

        asyncio.run(main())
        [error] = server.lines("the bot raised RuntimeError: no key for the model", "Traceback")
        assert "CA00000000000000000000000000000001" in error
        assert Path(__file__).name in error

    def test_during_the_call(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(bots.echo(runner_args))
                await asyncio.sleep(0.2)
                raise ValueError("in the middle")

        server = serve(bot)
        other = "CA" + "6" * 32

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(tone(500, 100, 8000))
                assert (await carrier.closed())[0] == 1011
            async with dialled(announce(server.url, other), other) as carrier:
                assert (await carrier.closed())[0] == 1011
            await asyncio.to_thread(server.ended, 2)

        asyncio.run(main())
        assert len(server.lines("the bot raised ExceptionGroup", "Traceback", "in the middle")) == 2
        assert [record.ended_by for record in server.records] == ["error", "error"]

    def test_after_the_call(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            await bots.echo(runner_args)
            raise KeyError("post-call work")

        server = serve(bot)

        async def main() -> None:
            await assert_call_works(announce(server.url))

        asyncio.run(main())
        assert server.ended()[0].ended_by == "caller"
        assert server.lines("the bot raised KeyError", "Traceback")

    def test_no_transport_at_all(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            await asyncio.sleep(0.05)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(bytes(320))
                assert await carrier.closed() == (1000, "")

        asyncio.run(main())
        assert server.ended()[0].reason == "the bot returned"

    def test_no_transport_and_the_caller_hangs_up(self, serve: Serve) -> None:
        server = serve(bots.never_returns, bot_exit_timeout_s=0.2)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.hang_up()

        asyncio.run(main())
        assert server.ended()[0].reason == "the caller hung up"
        assert server.lines("went on for 0.2 s after its call had ended")

    def test_a_bot_that_never_reads_loses_the_oldest(self, serve: Serve) -> None:
        server = serve(bots.never_returns, bot_exit_timeout_s=0.1)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(bytes(16 * 20 * 600), paced=False)
                await wait_for(lambda: server.lines("does not read"))
                await carrier.hang_up()

        asyncio.run(main())
        # 600 pieces of audio and the stop; the last 500 are kept.
        assert server.ended()[0].faults["unread"] == 101


class TestManyCalls:
    def test_ten_at_once_do_not_mix(self, serve: Serve) -> None:
        server = serve(bots.echo)
        # 80 Hz apart, none a multiple of another.
        frequencies = [410 + 83 * index for index in range(10)]

        async def one(index: int) -> float:
            call_sid = f"CA{index:032d}"
            url = await asyncio.to_thread(announce, server.url, call_sid)
            async with dialled(url, call_sid) as carrier:
                await carrier.speak(tone(frequencies[index], 1000, 8000))
                marks = 0
                # A mark follows each utterance, and a pause of a busy machine makes two of a tone.
                while len(heard := carrier.heard()) < 2 * 7200:
                    marks += 1
                    await carrier.until("mark", marks)
                assert all(message["streamSid"] == carrier.stream_sid for _, message in carrier.messages)
                await carrier.hang_up()
            samples = np.frombuffer(heard, "<i2").astype(float)
            spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
            own = main_frequency(heard)
            bin_hz = 8000 / (len(heard) // 2)
            others = [f for f in frequencies if f != frequencies[index]]
            leak = max(spectrum[round(f / bin_hz)] for f in others) / spectrum.max()
            assert leak < 0.05
            return own

        async def main() -> list[float]:
            return await asyncio.gather(*(one(index) for index in range(10)))

        heard = asyncio.run(main())
        assert heard == pytest.approx(frequencies, abs=5)
        for index in range(10):
            lines = server.lines(f"CA{index:032d}")
            assert sum("webhook answered" in line for line in lines) == 1
            assert sum("stream started" in line for line in lines) == 1
            # pipecat's own lines carry the call's id as well.
            assert any("Linking" in line for line in lines)


class TestRecording:
    def test_both_ends_on_one_time_axis(self, serve: Serve, tmp_path: Any) -> None:
        server = serve(bots.echo_8k, record=tmp_path / "calls")

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(tone(500, 300, 8000))
                await carrier.until("mark")
                await carrier.hang_up()

        asyncio.run(main())
        path = server.ended()[0].recording
        assert path
        import wave

        with wave.open(path) as file:
            assert (file.getnchannels(), file.getframerate()) == (2, 8000)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        left, right = samples[:, 0], samples[:, 1]
        assert main_frequency(left.tobytes()) == pytest.approx(500, abs=25)
        assert main_frequency(right.tobytes()) == pytest.approx(500, abs=25)
        assert read_audio(path)[1] == 8000

    def test_a_folder_that_cannot_be_written_costs_no_call(self, serve: Serve, tmp_path: Any) -> None:
        folder = tmp_path / "calls"
        server = serve(bots.echo, record=folder)
        # It was a folder when the server started.
        if folder.exists():
            folder.rmdir()
        folder.write_text("")
        asyncio.run(assert_call_works(announce(server.url)))
        deadline = time.monotonic() + 5
        while not server.lines("could not be recorded") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.lines("could not be recorded")


class TestStrangers:
    """What somebody who is no provider may try, on a server without tokens."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("callSid", "CA1\n12:00:00.000 INFO    CA2 forged\x1b[31m"),
            ("callSid", "C" * 60_000),
            ("streamSid", "MZ\x00"),
        ],
        ids=["forges a log line", "is endless", "has control characters"],
    )
    def test_an_id_that_no_provider_has(self, serve: Serve, name: str, value: str) -> None:
        server = serve(bots.echo)

        async def main() -> None:
            async with dialled(server.ws_url + "ws", start=False) as carrier:
                ids = {"accountSid": "AC1", "streamSid": "MZ1", "callSid": "CA1", name: value}
                await carrier.socket.send(json.dumps({"event": "start", "start": ids, "streamSid": ids["streamSid"]}))
                assert (await carrier.closed())[0] == 1008

        asyncio.run(main())
        server.ended()
        assert not [line for line in server.log if "\x1b" in line or len(line) > 3000]

    def test_numbers_cannot_forge_log_lines(self, serve: Serve) -> None:
        server = serve(bots.echo)

        async def main() -> None:
            async with dialled(server.ws_url + "ws", from_number="+1\n12:00:00.000 INFO forged") as carrier:
                assert (await carrier.closed())[0] == 1008

        asyncio.run(main())

    def test_a_web_page_does_not_reach_a_developers_bot(self, serve: Serve) -> None:
        server = serve(bots.echo)

        async def main() -> None:
            with pytest.raises(websockets.InvalidStatus) as caught:
                async with websockets.connect(server.ws_url + "ws", origin="https://evil.example"):  # type: ignore[arg-type]
                    pass
            assert caught.value.response.status_code == 403
            async with websockets.connect(server.ws_url + "ws", origin="http://localhost:3000"):  # type: ignore[arg-type]
                pass

        asyncio.run(main())

    def test_a_body_that_trickles(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("wsvoice.runner.requests.BODY_TIMEOUT_S", 0.3)
        server = serve(bots.echo)
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=10) as raw:
            raw.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nFrom=")
            assert b"408" in raw.recv(1000).splitlines()[0]

    def test_a_bot_that_cannot_be_cancelled_does_not_keep_its_place(
        self, serve: Serve, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsvoice.runner.bot_task.CLEANUP_TIMEOUT_S", 0.2)
        release: list[asyncio.Event] = []

        async def bot(runner_args: Any) -> None:
            release.append(asyncio.Event())
            while not release[0].is_set():
                try:
                    await release[0].wait()
                except asyncio.CancelledError:
                    continue

        server = serve(bot, max_calls=1, bot_exit_timeout_s=0.1)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.hang_up()

        asyncio.run(main())
        server.ended()
        assert server.lines("ignores its cancellation")
        deadline = time.monotonic() + 5
        while server.switchboard.active_calls and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.switchboard.active_calls == 0
        release[0]._loop.call_soon_threadsafe(release[0].set)  # type: ignore[attr-defined]

    def test_the_calls_end_is_when_its_stream_ends(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            await runner_args.websocket.close()
            await asyncio.sleep(3)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                assert (await carrier.closed())[0] == 1000

        asyncio.run(main())
        assert server.ended()[0].duration_s < 2.5
