"""The transport's promises: little delay, nothing lost, 20 ms steps, and an end that is heard."""

from __future__ import annotations

import asyncio
import audioop
import base64
import time
from collections.abc import Callable
from typing import Any

import pytest
from pipecat.frames.frames import OutputAudioRawFrame, OutputTransportMessageUrgentFrame

from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import Carrier, announce, dialled, main_frequency
from tests.runner.test_session import wait_for
from tests.signals import correlation_delay_ms, snr_db, speech_like, tone
from tests.stalls import undisturbed
from wsvoice.audio import PCMU_8K, Resampler, resample
from wsvoice.providers.base import Side
from wsvoice.providers.events import Audio
from wsvoice.runner.pipecat.call_serializer import CallSerializer
from wsvoice.runner.pipecat.resamplers import SteadyResampler

Serve = Callable[..., Any]

RATES = [8000, 16000, 22050, 24000, 44100, 48000]


def through_mulaw(pcm: bytes) -> bytes:
    return audioop.ulaw2lin(audioop.lin2ulaw(pcm, 2), 2)


def frames_of(pcm: bytes, sample_rate: int, ms: int = 20) -> list[bytes]:
    step = sample_rate * ms // 1000 * 2
    return [pcm[at : at + step] for at in range(0, len(pcm), step)]


def inner(pcm: bytes, sample_rate: int) -> bytes:
    """Without 10 ms at either end, where a tone is switched on and off."""
    edge = sample_rate // 100 * 2
    return pcm[edge:-edge]


def delayed(pcm: bytes, in_rate: int, out_rate: int) -> bytes:
    """What an ideal resampler makes of a sound that is late by the transport's own delay."""
    silence = bytes(2 * SteadyResampler(in_rate, out_rate).delay_samples)
    early = len(Resampler(in_rate, out_rate).process(silence))
    return resample(silence + pcm, in_rate, out_rate)[early:]


class TestConversion:
    """
    Between 8 kHz mu-law and the pipeline's rate, either way: delay, loss and quality.

    The measure of quality is mu-law itself, which adds noise about 37 dB below speech.
    """

    @pytest.mark.parametrize("rate", RATES)
    @pytest.mark.parametrize("sound", ["tone", "speech"])
    def test_caller_to_pipeline(self, rate: int, sound: str) -> None:
        pcm = tone(1000, 1000, 8000) if sound == "tone" else speech_like(2000, 8000)
        serializer = CallSerializer(load_provider("twilio").stream(Side.BOT))
        serializer.use_input_rate(rate)
        out = bytearray()
        for count, piece in enumerate(frames_of(pcm, 8000), start=1):
            frame = serializer.frame(Audio(PCMU_8K.encode(piece)))
            assert frame is not None
            assert frame.sample_rate == rate
            out += frame.audio
            # What has come out is as long as what went in, from the first piece on.
            assert abs(len(out) / 2 - count * rate / 50) <= 1
        reference = resample(through_mulaw(pcm), 8000, rate)
        delay_ms, peak = correlation_delay_ms(reference, bytes(out), rate)
        assert -0.01 <= delay_ms < 6
        assert peak > 0.99
        # The same sound, late by as much and put through an ideal resampler.
        reference = delayed(through_mulaw(pcm), 8000, rate)[: len(out)]
        assert snr_db(inner(reference, rate), inner(bytes(out), rate)) > 35

    @pytest.mark.parametrize("rate", RATES)
    @pytest.mark.parametrize("sound", ["tone", "speech"])
    def test_pipeline_to_caller(self, rate: int, sound: str) -> None:
        pcm = tone(1000, 1000, rate) if sound == "tone" else speech_like(2000, rate)
        serializer = CallSerializer(load_provider("twilio").stream(Side.BOT))
        wire = bytearray()
        for count, piece in enumerate(frames_of(pcm, rate), start=1):
            wire += PCMU_8K.encode(serializer.at_wire_rate(piece, rate))
            assert abs(len(wire) - count * 160) <= 1
        held_back = PCMU_8K.encode(serializer.flush())
        assert len(held_back) / 8 < 20
        wire += held_back
        heard = PCMU_8K.decode(bytes(wire))
        reference = resample(pcm, rate, 8000)
        delay_ms, peak = correlation_delay_ms(reference, heard, 8000)
        assert -0.01 <= delay_ms < 6
        assert peak > 0.99
        # Nothing is lost: what was held back comes with the flush, behind the delay.
        reference = delayed(pcm, rate, 8000)
        assert len(heard) == len(reference)
        # Against an ideal resampling without mu-law. The filter's slope above 3.5 kHz, where a telephone line
        # carries nothing, is all that adds to mu-law's own noise of about 37 dB.
        assert snr_db(inner(reference, 8000), inner(heard, 8000)) > 33.5

    def test_the_last_words_are_whole(self) -> None:
        """A click in the last millisecond of an utterance arrives."""
        pcm = bytearray(24000 // 5 * 2)
        pcm[-48:] = tone(1000, 1, 24000, level_dbfs=-1)
        serializer = CallSerializer(load_provider("twilio").stream(Side.BOT))
        wire = b"".join(PCMU_8K.encode(serializer.at_wire_rate(piece, 24000)) for piece in frames_of(bytes(pcm), 24000))
        assert audioop.max(PCMU_8K.decode(wire), 2) < 500
        assert audioop.max(serializer.flush(), 2) > 5000

    def test_a_change_of_rate_loses_nothing(self) -> None:
        serializer = CallSerializer(load_provider("twilio").stream(Side.BOT))
        wire = PCMU_8K.encode(serializer.at_wire_rate(tone(500, 200, 24000), 24000))
        wire += PCMU_8K.encode(serializer.at_wire_rate(tone(500, 200, 16000), 16000))
        wire += PCMU_8K.encode(serializer.at_wire_rate(tone(500, 200, 8000), 8000))
        wire += PCMU_8K.encode(serializer.flush())
        assert len(wire) == pytest.approx(600 * 8, abs=100)


class TestOutput:
    def test_steps_of_20_ms_with_a_lead(self, serve: Serve) -> None:
        server = serve(bots.says(tone(440, 1500, 24000)))

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                assert await carrier.closed() == (1000, "")
                times = carrier.times("media")
                assert all(len(message["media"]["payload"]) == 216 for message in carrier.of("media"))
                # 1.5 s of audio at the lead of 100 ms: five frames at once, then one every 20 ms.
                assert times[4] - times[0] < 0.08
                assert 1.2 < times[-1] - times[0] < 1.9
                early = [index * 0.02 - (at - times[0]) for index, at in enumerate(times)]
                assert max(early) < 0.13

        undisturbed(lambda: asyncio.run(main()))

    def test_the_end_is_heard(self, serve: Serve) -> None:
        said = speech_like(1000, 24000)
        server = serve(bots.says(said))

        async def main() -> bytes:
            async with dialled(announce(server.url)) as carrier:
                carrier.echo_marks = False
                marks = await carrier.until("mark", 2)
                assert marks[-1]["mark"]["name"].startswith("wsvoice-end")
                # The call stays up until the provider has played the last word …
                await asyncio.sleep(0.3)
                assert carrier.socket.close_code is None
                for mark in marks:
                    await carrier.send({"event": "mark", "mark": mark["mark"]})
                # … and ends as soon as it has.
                assert await carrier.closed(1.5) == (1000, "")
                return carrier.heard()

        heard = asyncio.run(main())
        reference = resample(said, 24000, 8000)
        delay_ms, peak = correlation_delay_ms(reference, heard, 8000)
        assert peak > 0.99
        assert 0 <= delay_ms < 20
        ideal = delayed(said, 24000, 8000)
        assert len(heard) >= len(ideal)
        assert snr_db(ideal, heard[: len(ideal)]) > 31

    def test_a_provider_that_never_sends_the_mark_back(self, serve: Serve) -> None:
        server = serve(bots.says(tone(440, 100, 24000)), playout_timeout_s=0.3)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                carrier.echo_marks = False
                assert await carrier.closed(5) == (1000, "")

        asyncio.run(main())

    @pytest.mark.parametrize("busy_s", [0.0, 0.1])
    def test_interruption_clears_at_once_and_forgets(self, serve: Serve, busy_s: float) -> None:
        heard_ms: list[float] = []

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            output = transport.output()
            stop_all_metrics = output.stop_all_metrics

            async def stop_all_metrics_late() -> None:
                # Between the clear and the emptying of pipecat's queue.
                await asyncio.sleep(busy_s)
                await stop_all_metrics()

            output.stop_all_metrics = stop_all_metrics_late

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                await workers[0].queue_frame(OutputAudioRawFrame(tone(440, 5000, 24000), 24000, 1))

            @transport.event_handler("on_client_disconnected")
            async def on_client_disconnected(transport: Any, client: Any) -> None:
                heard_ms.append(transport.heard_ms)
                await workers[0].cancel()

            workers: list[Any] = []
            await bots.run(transport, bots.InterruptOnDigit(), on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.until("media", 20)
                await carrier.press("1")
                await carrier.until("clear")
                at = next(i for i, (_, message) in enumerate(carrier.messages) if message["event"] == "clear")
                await asyncio.sleep(0.3)
                after = [message["event"] for _, message in carrier.messages[at + 1 :]]
                assert "media" not in after
                await carrier.hang_up()

        asyncio.run(main())
        server.ended()
        # 20 frames had come, of which the last 100 ms were never played.
        assert 200 < heard_ms[0] < 900

    def test_speech_after_an_interruption_starts_clean(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            workers: list[Any] = []

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                await workers[0].queue_frame(OutputAudioRawFrame(tone(440, 3000, 24000), 24000, 1))
                await transport.resume.wait()
                await workers[0].queue_frame(OutputAudioRawFrame(tone(1200, 400, 24000), 24000, 1))

            transport.resume = asyncio.Event()
            waiting.append(transport.resume)
            await bots.run(transport, bots.InterruptOnDigit(), on_worker=workers.append)

        waiting: list[Any] = []
        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.until("media", 10)
                await carrier.press("1")
                await carrier.until("clear")
                carrier.messages.clear()
                waiting[0]._loop.call_soon_threadsafe(waiting[0].set)
                await carrier.until("mark")
                assert main_frequency(carrier.heard()) == pytest.approx(1200, abs=20)
                assert len(carrier.heard()) / 16 == pytest.approx(400, abs=45)
                await carrier.hang_up()

        asyncio.run(main())

    def test_marks_of_the_bot(self, serve: Serve) -> None:
        returned: list[tuple[str, bool]] = []

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport

            @transport.event_handler("on_mark")
            async def on_mark(transport: Any, name: str, played: bool) -> None:
                returned.append((name, played))

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                await workers[0].queue_frame(OutputAudioRawFrame(tone(440, 200, 24000), 24000, 1))
                await transport.send_mark("menu")

            workers: list[Any] = []
            await bots.run(transport, on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.until("mark", 2)
                await wait_for(lambda: returned)
                await carrier.hang_up()

        asyncio.run(main())
        assert returned == [("menu", True)]

    def test_messages_of_the_bot(self, serve: Serve) -> None:
        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                message = {"event": "mark", "streamSid": "x", "mark": {"name": "own"}}
                await workers[0].queue_frame(OutputTransportMessageUrgentFrame(message=message))
                hidden = {"label": "rtvi-ai", "type": "bot-ready", "data": {}}
                await workers[0].queue_frame(OutputTransportMessageUrgentFrame(message=hidden))

            workers: list[Any] = []
            await bots.run(transport, on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                assert (await carrier.until("mark"))[0]["mark"] == {"name": "own"}
                await carrier.hang_up()
                assert len(carrier.messages) == 1

        asyncio.run(main())

    def test_a_bot_without_a_handler_ends_when_the_caller_does(self, serve: Serve) -> None:
        server = serve(bots.echo, bot_exit_timeout_s=20)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(tone(500, 100, 8000))
                await carrier.hang_up()

        asyncio.run(main())
        server.ended(timeout_s=5)

    def test_events_carry_transport_and_client(self, serve: Serve) -> None:
        seen: list[tuple[str, bool, bool]] = []

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport

            async def connected(*args: Any) -> None:
                seen.append(("connected", args[0] is transport, args[1] is runner_args.websocket))

            async def disconnected(*args: Any) -> None:
                seen.append(("disconnected", args[0] is transport, args[1] is runner_args.websocket))
                await workers[0].cancel()

            transport.add_event_handler("on_client_connected", connected)
            transport.add_event_handler("on_client_disconnected", disconnected)
            workers: list[Any] = []
            await bots.run(transport, on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            async with dialled(announce(server.url)) as carrier:
                await wait_for(lambda: seen)
                await carrier.hang_up()

        asyncio.run(main())
        server.ended()
        assert seen == [("connected", True, True), ("disconnected", True, True)]

    def test_echo_round_trip_is_short_at_pipecats_default_rates(self, serve: Serve) -> None:
        """16 kHz in and 24 kHz out; generous, because machines are: pipecat's own needs about 200 ms."""
        server = serve(bots.echo)

        async def main() -> float:
            async with dialled(announce(server.url)) as carrier:
                pcm = bytes(8000 * 2) + tone(700, 300, 8000)
                await carrier.speak(pcm)
                await carrier.until("mark")
                onset = next(
                    at
                    for at, message in carrier.messages
                    if message["event"] == "media" and loud(message["media"]["payload"])
                )
                await carrier.hang_up()
                return (onset - 1.0) * 1000

        delays = undisturbed(lambda: [asyncio.run(main()) for _ in range(3)])
        assert sorted(delays)[1] < 160


def loud(payload: str) -> bool:

    return audioop.rms(PCMU_8K.decode(base64.b64decode(payload)), 2) > 1000


class TestLateAudio:
    """The network, or the server, stood still: what the caller said meanwhile comes at once."""

    def test_the_echo_does_not_stay_late(self, serve: Serve) -> None:
        server = serve(bots.echo_8k)
        said = tone(440, 1600, 8000)

        async def main() -> float:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(said[: 30 * 320])
                await asyncio.sleep(0.3)
                await carrier.speak(said[30 * 320 : 45 * 320], paced=False)
                await carrier.speak(said[45 * 320 : 80 * 320])
                ended_at = time.monotonic() - carrier.started
                await carrier.until("media", 80)
                assert carrier.heard()[: len(said)] == through_mulaw(said)
                late_s = carrier.times("media")[79] - ended_at
                await carrier.hang_up()
                return late_s

        # 300 ms came late, of which the lead makes up for 100.
        assert undisturbed(lambda: asyncio.run(main())) < 0.1

    def test_silence_is_left_out_and_speech_is_not(self, serve: Serve) -> None:
        server = serve(bots.echo_8k)
        speech, silence = tone(440, 400, 8000), bytes(50 * 320)

        async def main() -> Carrier:
            async with dialled(announce(server.url)) as carrier:
                await carrier.speak(speech)
                await asyncio.sleep(0.4)
                await carrier.speak(speech, paced=False)
                await carrier.speak(silence)
                await carrier.speak(speech)
                await asyncio.sleep(0.3)
                await carrier.hang_up()
                return carrier

        heard = asyncio.run(main()).heard()
        loud = [audioop.max(piece, 2) > 1000 for piece in frames_of(heard, 8000)]
        assert sum(loud) == 60
        # Of a second of silence as much is left out as makes up for what is over the lead.
        left_out = 110 - len(heard.rstrip(bytes(1))) // 320
        assert 8 <= left_out <= 25
