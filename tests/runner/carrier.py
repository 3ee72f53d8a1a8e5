"""
A carrier written by hand from Twilio's documents, so that the server is not tested against its own reading of them.

https://www.twilio.com/docs/voice/media-streams/websocket-messages
"""

from __future__ import annotations

import asyncio
import audioop
import base64
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import numpy as np
import websockets
from websockets.asyncio.client import ClientConnection

FORM = {
    "AccountSid": "AC00000000000000000000000000000001",
    "CallSid": "CA00000000000000000000000000000001",
    "From": "+15550100001",
    "To": "+15550100002",
    "Direction": "inbound",
    "CallStatus": "ringing",
}


def announce(url: str, call_sid: str = FORM["CallSid"], **kwargs: Any) -> str:
    """Post the webhook; return the stream's URL."""
    answer = httpx.post(url, data={**FORM, "CallSid": call_sid}, timeout=10, **kwargs)
    assert answer.status_code == 200, answer.text
    match = re.search(r'<Stream url="([^"]+)"', answer.text)
    assert match, answer.text
    return match[1]


class Carrier:
    """The carrier's end of one stream; what comes back is kept with its time."""

    def __init__(self, socket: ClientConnection, call_sid: str, stream_sid: str) -> None:
        self.socket = socket
        self.call_sid = call_sid
        self.stream_sid = stream_sid
        self.sequence = 0
        self.chunk = 0
        self.messages: list[tuple[float, dict[str, Any]]] = []
        self.echo_marks = True
        self.started = time.monotonic()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            try:
                raw = await self.socket.recv()
            except websockets.ConnectionClosed:
                return
            message = json.loads(raw)
            self.messages.append((time.monotonic() - self.started, message))
            if message["event"] == "mark" and self.echo_marks:
                # One that comes while we hang up goes back to nobody.
                with suppress(websockets.ConnectionClosed):
                    await self.send({"event": "mark", "streamSid": self.stream_sid, "mark": message["mark"]})

    async def send(self, message: dict[str, Any]) -> None:
        self.sequence += 1
        await self.socket.send(json.dumps({"sequenceNumber": str(self.sequence), **message}))

    async def start(self, **parameters: str) -> None:
        await self.socket.send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
        await self.send(
            {
                "event": "start",
                "start": {
                    "accountSid": FORM["AccountSid"],
                    "streamSid": self.stream_sid,
                    "callSid": self.call_sid,
                    "tracks": ["inbound"],
                    "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                    "customParameters": parameters,
                },
                "streamSid": self.stream_sid,
            }
        )
        self.started = time.monotonic()

    async def speak(self, pcm: bytes, *, paced: bool = True) -> None:
        """Send 8 kHz s16le audio in messages of 20 ms, by an absolute clock."""
        mulaw = audioop.lin2ulaw(pcm, 2)
        begin = time.monotonic()
        for index, at in enumerate(range(0, len(mulaw), 160)):
            if paced:
                await asyncio.sleep(max(0.0, begin + index * 0.02 - time.monotonic()))
            self.chunk += 1
            await self.send(
                {
                    "event": "media",
                    "streamSid": self.stream_sid,
                    "media": {
                        "track": "inbound",
                        "chunk": str(self.chunk),
                        "timestamp": str(self.chunk * 20),
                        "payload": base64.b64encode(mulaw[at : at + 160]).decode(),
                    },
                }
            )

    async def press(self, digit: str) -> None:
        await self.send(
            {"event": "dtmf", "streamSid": self.stream_sid, "dtmf": {"track": "inbound_track", "digit": digit}}
        )

    async def stop(self) -> None:
        await self.send(
            {
                "event": "stop",
                "streamSid": self.stream_sid,
                "stop": {"accountSid": FORM["AccountSid"], "callSid": self.call_sid},
            }
        )

    async def closed(self, timeout_s: float = 10) -> tuple[int | None, str | None]:
        """Wait until the server has closed; return its code and reason."""
        async with asyncio.timeout(timeout_s):
            await self.socket.wait_closed()
            await self._reader
        return self.socket.close_code, self.socket.close_reason

    async def until(self, event: str, count: int = 1, timeout_s: float = 10) -> list[dict[str, Any]]:
        """Wait for `count` messages of a kind."""
        async with asyncio.timeout(timeout_s):
            while len(found := self.of(event)) < count:
                await asyncio.sleep(0.005)
        return found

    def of(self, event: str) -> list[dict[str, Any]]:
        return [message for _, message in self.messages if message["event"] == event]

    def times(self, event: str) -> list[float]:
        return [at for at, message in self.messages if message["event"] == event]

    def heard(self) -> bytes:
        """All audio that came, as 8 kHz s16le."""
        mulaw = b"".join(base64.b64decode(message["media"]["payload"]) for message in self.of("media"))
        return audioop.ulaw2lin(mulaw, 2)

    async def hang_up(self) -> None:
        await self.stop()
        await self.socket.close()
        await self._reader


@asynccontextmanager
async def dialled(
    stream_url: str, call_sid: str = FORM["CallSid"], *, start: bool = True, **parameters: str
) -> AsyncIterator[Carrier]:
    """Connect the stream as Twilio does, and start it."""
    async with websockets.connect(stream_url, compression=None, ping_interval=None) as socket:
        carrier = Carrier(socket, call_sid, "MZ" + call_sid[2:])
        if start:
            await carrier.start(**parameters)
        yield carrier


def main_frequency(pcm: bytes, sample_rate: int = 8000) -> float:
    """Return the strongest frequency of a clip, in Hz."""
    samples = np.frombuffer(pcm, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * sample_rate / len(samples)
