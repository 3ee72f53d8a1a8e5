"""Bots that write to the WebSocket by themselves: what the server counts and records of them is right as well."""

from __future__ import annotations

import asyncio
import base64
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger
from pipecat.serializers.exotel import ExotelFrameSerializer
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.serializers.telnyx import TelnyxFrameSerializer
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

from tests.runner import bots
from tests.runner.carrier import main_frequency
from tests.runner.dialects import (
    ALAW,
    Asterisk,
    Bandwidth,
    Dialect,
    Exotel,
    Plivo,
    SignalWire,
    Telnyx,
    Twilio,
    Vonage,
    linear,
    on_line,
)
from tests.signals import tone
from wsvoice.providers import load_server
from wsvoice.runner.media_socket import MediaSocket

Serve = Callable[..., Any]

L16_16K = {"encoding": "audio/x-l16", "sampleRate": 16000}
#: Every provider, and every way in which its audio may be written.
LINES: list[tuple[str, Callable[[], Dialect], dict[str, str]]] = [
    ("twilio", Twilio, {}),
    ("telnyx", Telnyx, {}),
    (
        "telnyx-PCMA",
        lambda: Telnyx(wire=ALAW, media_format={"encoding": "PCMA", "sample_rate": 8000}),
        {"TELNYX_STREAM_CODEC": "PCMA"},
    ),
    ("plivo", Plivo, {}),
    ("plivo-L16", lambda: Plivo(wire=linear(16000), mediaFormat=L16_16K), {}),
    ("exotel", Exotel, {}),
    ("exotel-16k", lambda: Exotel(wire=linear(16000)), {"EXOTEL_SAMPLE_RATE": "16000"}),
    ("signalwire", SignalWire, {}),
    ("signalwire-L16", lambda: SignalWire(wire=linear(16000)), {}),
    ("bandwidth", Bandwidth, {}),
    ("vonage", lambda: Vonage(wire=linear(16000)), {}),
    ("asterisk", Asterisk, {}),
    ("asterisk-slin16", lambda: Asterisk(wire=linear(16000)), {}),
]


def said(dialect: Dialect, pcm: bytes) -> str | bytes:
    """Return a bot's message with audio, as the provider's documents have it."""
    if dialect.is_binary:
        return dialect.wire.encode(pcm)
    payload = base64.b64encode(dialect.wire.encode(pcm)).decode()
    if isinstance(dialect, Plivo):
        wire = L16_16K if dialect.wire.sample_rate == 16000 else {"encoding": "audio/x-mulaw", "sampleRate": 8000}
        media = {"contentType": wire["encoding"], "sampleRate": wire["sampleRate"], "payload": payload}
        return json.dumps({"event": "playAudio", "media": media})
    if isinstance(dialect, Bandwidth):
        return json.dumps({"eventType": "playAudio", "media": {"contentType": "audio/pcmu", "payload": payload}})
    ids = {Exotel: {"stream_sid": dialect.stream_id}, Telnyx: {}}.get(type(dialect), {"streamSid": dialect.stream_id})
    return json.dumps({"event": "media", **ids, "media": {"payload": payload}})


def channels(path: Path) -> tuple[Any, Any, int]:
    """Return both ends of a recording, and their rate."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return samples[:, 0], samples[:, 1], file.getframerate()


@pytest.mark.parametrize(("make", "credentials"), [pytest.param(*row[1:], id=row[0]) for row in LINES])
def test_every_format(serve: Serve, tmp_path: Path, make: Callable[[], Dialect], credentials: dict[str, str]) -> None:
    dialect = make()
    rate = dialect.wire.sample_rate
    heard_ms: list[float] = []

    async def bot(runner_args: Any) -> None:
        websocket = runner_args.websocket
        # A message of Vonage's has 20 ms, those of the others may have 100.
        sound, size = tone(600, 400, rate), rate // (25 if isinstance(dialect, Vonage) else 5)
        for at in range(0, len(sound), size):
            message = said(dialect, sound[at : at + size])
            await (websocket.send_bytes if isinstance(message, bytes) else websocket.send_text)(message)
        heard_ms.append(websocket.heard_ms)
        await asyncio.sleep(0.6)
        heard_ms.append(websocket.heard_ms)
        # What the reader noticed about the bot is not kept.
        assert websocket._mirror.findings() == []
        await websocket.close()

    server = serve(bot, transport=dialect.name, credentials=credentials, record=tmp_path)

    async def main() -> bytes:
        async with on_line(f"{server.ws_url}ws", dialect) as line:
            await line.closed()
            return line.heard() if not isinstance(dialect, Plivo) else b""

    heard = asyncio.run(main())
    (record,) = server.ended()
    assert (record.ended_by, record.faults) == ("bot", {})
    assert record.sent_s == pytest.approx(0.4)
    assert heard_ms[0] < 300
    assert heard_ms[1] == pytest.approx(400)
    if heard:
        assert main_frequency(heard, rate) == pytest.approx(600, abs=15)
    _, right, recorded_rate = channels(Path(record.recording))
    assert recorded_rate == rate
    (loud,) = np.nonzero(np.abs(right.astype(int)) > 500)
    assert (loud[-1] - loud[0]) / rate == pytest.approx(0.4, abs=0.01)
    assert main_frequency(right[loud[0] : loud[-1]].tobytes(), rate) == pytest.approx(600, abs=15)


def test_what_a_provider_would_not_play_is_said_once(serve: Serve) -> None:
    async def bot(runner_args: Any) -> None:
        for _ in range(500):
            await runner_args.websocket.send_text(json.dumps({"event": "media", "media": {"payload": "/////w=="}}))
            await runner_args.websocket.send_text('{"event": ""}')
        assert runner_args.websocket._mirror.findings() == []

    server = serve(bot)

    async def main() -> None:
        async with on_line(f"{server.ws_url}ws", Twilio()) as line:
            await line.closed()

    asyncio.run(main())
    (record,) = server.ended()
    assert (record.ended_by, record.faults) == ("bot", {"bot-M1": 500, "bot-no-event": 500})
    assert len(server.lines("no streamSid")) == 1


SERIALIZERS = {
    "twilio": lambda data: TwilioFrameSerializer(
        data["stream_id"], params=TwilioFrameSerializer.InputParams(auto_hang_up=False)
    ),
    "telnyx": lambda data: TelnyxFrameSerializer(
        data["stream_id"], "PCMU", "PCMU", params=TelnyxFrameSerializer.InputParams(auto_hang_up=False)
    ),
    "plivo": lambda data: PlivoFrameSerializer(
        data["stream_id"], params=PlivoFrameSerializer.InputParams(auto_hang_up=False)
    ),
    "exotel": lambda data: ExotelFrameSerializer(data["stream_id"]),
}


@pytest.mark.parametrize("make", [Twilio, Telnyx, Plivo, Exotel], ids=lambda each: each.name)
def test_pipecats_serializers(serve: Serve, tmp_path: Path, make: type[Dialect]) -> None:
    dialect = make()

    async def bot(runner_args: Any) -> None:
        params = FastAPIWebsocketParams(
            audio_in_enabled=True, audio_out_enabled=True, serializer=SERIALIZERS[dialect.name](runner_args.call_data)
        )
        transport = FastAPIWebsocketTransport(websocket=runner_args.websocket, params=params)
        workers: list[Any] = []

        @transport.event_handler("on_client_disconnected")
        async def on_client_disconnected(transport: Any, client: Any) -> None:
            await workers[0].cancel()

        await bots.run(
            transport, bots.Echo(), on_worker=workers.append, audio_in_sample_rate=8000, audio_out_sample_rate=8000
        )

    server = serve(bot, transport=dialect.name, record=tmp_path)

    async def main() -> None:
        async with on_line(f"{server.ws_url}ws", dialect) as line:
            await line.speak(tone(500, 1000, 8000), paced=True)
            async with asyncio.timeout(10):
                while len(line.of(dialect.bot_events[0])) < 5:
                    await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)
            await line.send(dialect.stop())

    asyncio.run(main())
    (record,) = server.ended()
    # Exotel plays pieces of other lengths with gaps, which is no more than a warning.
    assert record.faults == {}
    assert record.sent_s > 0.3
    left, right, _ = channels(Path(record.recording))
    for channel in (left, right):
        (loud,) = np.nonzero(np.abs(channel.astype(int)) > 500)
        assert main_frequency(channel[loud[0] : loud[-1]].tobytes()) == pytest.approx(500, abs=30)


def test_a_bot_that_writes_more_than_asterisk_queues_waits() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def write() -> None:
        start = '{"event":"MEDIA_START","channel":"WebSocket/a/1","channel_id":"1.1","format":"ulaw"}'
        asterisk = load_server("asterisk", {})
        socket = MediaSocket({"type": "websocket"}, receive, send, provider=asterisk, logger=logger, unread=[start])
        await socket.next_event()
        for _ in range(3):
            await socket.send_bytes(bytes(8000 * 8))
        fourth = asyncio.create_task(socket.send_bytes(bytes(8000)))
        await asyncio.wait({fourth}, timeout=0.1)
        assert not fourth.done()
        assert len(sent) == 3

        # What waited is forgotten with all else, and there is room again.
        await socket.send_text('{"command":"FLUSH_MEDIA"}')
        await fourth
        await socket.send_bytes(bytes(160))
        assert [len(message.get("bytes") or "") for message in sent] == [64_000, 64_000, 64_000, 0, 160]

    asyncio.run(write())
