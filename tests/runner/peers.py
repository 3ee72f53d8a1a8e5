"""pipecat's own WebSocket client at the other end: no transport is tested against its own reading of the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from pipecat.frames.frames import EndFrame, InputAudioRawFrame, InputTransportMessageFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.websocket.client import WebsocketClientParams, WebsocketClientTransport
from pipecat.workers.runner import WorkerRunner

RATE = 16000


class Ears(FrameProcessor):
    """Keeps what comes, and sends nothing of it back."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = bytearray()
        self.messages: list[Any] = []

    async def process_frame(self, frame: Any, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            self.audio += frame.audio
        elif isinstance(frame, InputTransportMessageFrame):
            self.messages.append(frame.message)
        else:
            await self.push_frame(frame, direction)


class Peer:
    """A running pipeline behind a ``WebsocketClientTransport``."""

    def __init__(self, transport: Any, **params: Any) -> None:
        self.transport = transport
        self.ears = Ears()
        self.connected = asyncio.Event()
        self.disconnected = asyncio.Event()
        self._worker = PipelineWorker(
            Pipeline([transport.input(), self.ears, transport.output()]),
            params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE, **params),
            enable_rtvi=False,
        )

        @transport.event_handler("on_connected")
        async def on_connected(transport: Any, websocket: Any) -> None:
            self.connected.set()

        @transport.event_handler("on_disconnected")
        async def on_disconnected(transport: Any, websocket: Any) -> None:
            self.disconnected.set()

    async def run(self) -> None:
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(self._worker)
        await runner.run()

    async def say(self, pcm: bytes) -> None:
        """Send 16 kHz audio, at twice the speed of speech, as the transport does."""
        await self._worker.queue_frame(OutputAudioRawFrame(pcm, RATE, 1))

    async def until_heard(self, count: int, timeout_s: float = 10) -> bytes:
        async with asyncio.timeout(timeout_s):
            while len(self.ears.audio) < count:
                await asyncio.sleep(0.005)
        return bytes(self.ears.audio)

    async def leave(self) -> None:
        await self._worker.queue_frame(EndFrame())


@asynccontextmanager
async def peer(url: str, *, add_wav_header: bool = False, headers: dict[str, str] | None = None) -> AsyncIterator[Peer]:
    """Connect to a bot, and leave at the end."""
    params = WebsocketClientParams(
        audio_in_enabled=True,
        audio_out_enabled=True,
        audio_out_end_silence_secs=0,
        add_wav_header=add_wav_header,
        additional_headers=headers,
        serializer=ProtobufFrameSerializer(),
    )
    async with running(Peer(WebsocketClientTransport(url, params))) as each:
        yield each


@asynccontextmanager
async def running(each: Peer) -> AsyncIterator[Peer]:
    task = asyncio.create_task(each.run())
    try:
        async with asyncio.timeout(10):
            await each.connected.wait()
        yield each
        await each.leave()
        await asyncio.wait({task}, timeout=10)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def audio_message(pcm: bytes) -> bytes:
    """Return the message that pipecat's clients send for a piece of audio."""
    message = await ProtobufFrameSerializer().serialize(OutputAudioRawFrame(pcm, RATE, 1))
    assert isinstance(message, bytes)
    return message


async def next_audio(socket: Any, timeout_s: float = 10) -> InputAudioRawFrame:
    """Return the next piece of audio that the bot sends; messages about it are passed over."""
    async with asyncio.timeout(timeout_s):
        while True:
            frame = await ProtobufFrameSerializer().deserialize(await socket.recv())
            if isinstance(frame, InputAudioRawFrame):
                return frame
