"""
Many callers at once, as Twilio's media streams have them, for as little processor time as a socket can have.

Everything that is sent is built before a run: no JSON, no codec and no WebSocket library runs while it is measured.
Each caller says something of its own, so that an echo shows whose it is.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import re
import struct
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np

from wsvoice.audio import PCMU_8K

RATE = 8000
FRAME = 160
FRAME_S = 0.02
#: The latency is that of every so many samples: of a frame some may come sooner than others.
STEP = 8
#: Length of what a latency of resampled audio is computed from, in samples, and how late it may be.
SEGMENT, SEARCH = 4000, 16000
_PAYLOAD = re.compile(rb'"payload": ?"([^"]*)"')


@dataclass
class Caller:
    """
    One caller, before, in and after a call.

    Attributes:
        audio: What it says, mu-law at 8 kHz.
        sent_at: When each frame of 20 ms was sent.
        late_s: How much later than it was due.
        heard: What it heard, mu-law, with when each message came.
        began_at: When it dialled.
        first_at: When it heard the first message of audio.
        failure: Why the call failed.
    """

    number: int
    audio: bytes
    sent_at: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    heard: list[tuple[float, bytes]] = field(default_factory=list)
    began_at: float = 0.0
    first_at: float | None = None
    cleared: int = 0
    failure: str = ""


class Line(asyncio.Protocol):
    """The WebSocket of one call: unmasked in effect, for the mask is zero."""

    def __init__(self, caller: Caller, host: str, path: str, start: bytes, opened: asyncio.Future[None]) -> None:
        self._caller, self._host, self._path, self._start, self._opened = caller, host, path, start, opened
        self._buffer = b""
        self._upgraded = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        head = (
            f"GET {self._path} HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n\r\n"
        )
        transport.write(head.encode())  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._buffer + data if self._buffer else data
        if not self._upgraded:
            head, found, rest = data.partition(b"\r\n\r\n")
            if not found:
                self._buffer = data
                return
            if not head.startswith(b"HTTP/1.1 101"):
                self._fail(head.partition(b"\r\n")[0].decode())
                return
            self._upgraded = self.is_open = True
            self.transport.write(self._start)  # type: ignore[attr-defined]
            self._opened.set_result(None)
            data = rest
        at, end = 0, len(data)
        while end - at >= 2:
            opcode, length, body = data[at] & 15, data[at + 1] & 127, at + 2
            if length == 126:
                if end < body + 2:
                    break
                (length,), body = struct.unpack_from("!H", data, body), body + 2
            elif length == 127:
                if end < body + 8:
                    break
                (length,), body = struct.unpack_from("!Q", data, body), body + 8
            if end < body + length:
                break
            self._take(opcode, data[body : body + length], now)
            at = body + length
        self._buffer = data[at:]

    def _take(self, opcode: int, content: bytes, now: float) -> None:
        caller = self._caller
        if opcode == 1:
            found = _PAYLOAD.search(content)
            if found is not None:
                if caller.first_at is None:
                    caller.first_at = now
                caller.heard.append((now, found[1]))
            elif b'"clear"' in content:
                caller.cleared += 1
            elif b'"mark"' in content:
                self.transport.write(frame(content))  # type: ignore[attr-defined]
        elif opcode == 9:
            self.transport.write(frame(content, 10))  # type: ignore[attr-defined]
        elif opcode == 8:
            self._fail(f"closed with {int.from_bytes(content[:2])}")

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the connection was lost")

    def _fail(self, reason: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError(reason))
        if self.is_open:
            self._caller.failure = reason
        self.is_open = False


def frame(content: bytes, opcode: int = 1) -> bytes:
    """Return a WebSocket frame of a client whose mask is zero."""
    size = len(content)
    head = bytes((128 | opcode, 128 | size)) if size < 126 else bytes((128 | opcode, 254)) + struct.pack("!H", size)
    return head + bytes(4) + content


@dataclass
class Stream:
    """Where a call's media go, as the answer to its webhook says."""

    host: str
    port: int
    path: str
    parameters: dict[str, str]


def ask_webhook(url: str, number: int) -> Stream:
    """Post what Twilio posts for a call, and read the answer's ``<Stream>``."""
    fields = {
        "CallSid": f"CA{number:032x}",
        "AccountSid": f"AC{0:032x}",
        "From": f"+1555{number:07d}",
        "To": "+15550100",
        "CallStatus": "ringing",
        "Direction": "inbound",
        "ApiVersion": "2010-04-01",
    }
    request = urllib.request.Request(url, urllib.parse.urlencode(fields).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        stream = ElementTree.fromstring(answer.read()).find(".//Stream")
    assert stream is not None
    target = urllib.parse.urlsplit(stream.get("url", ""))
    parameters = {each.get("name", ""): each.get("value", "") for each in stream.iter("Parameter")}
    path = target.path + (f"?{target.query}" if target.query else "")
    return Stream(target.hostname or "", urllib.parse.urlsplit(url).port or 80, path or "/", parameters)


def start_message(number: int, parameters: dict[str, str]) -> bytes:
    """Return Twilio's first two messages, as frames."""
    start = {
        "accountSid": f"AC{0:032x}",
        "streamSid": f"MZ{number:032x}",
        "callSid": f"CA{number:032x}",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": parameters,
    }
    message = {"event": "start", "sequenceNumber": "1", "start": start, "streamSid": start["streamSid"]}
    connected = b'{"event":"connected","protocol":"Call","version":"1.0.0"}'
    return frame(connected) + frame(json.dumps(message).encode())


def media_frames(caller: Caller) -> list[bytes]:
    """Return a caller's audio as the frames that will be sent."""
    frames = []
    for index in range(len(caller.audio) // FRAME):
        payload = base64.b64encode(caller.audio[index * FRAME : (index + 1) * FRAME]).decode()
        frames.append(
            frame(
                (
                    f'{{"event":"media","sequenceNumber":"{index + 2}","media":{{"track":"inbound",'
                    f'"chunk":"{index + 1}","timestamp":"{index * 20}","payload":"{payload}"}},'
                    f'"streamSid":"MZ{caller.number:032x}"}}'
                ).encode()
            )
        )
    return frames


async def call_all(url: str, callers: list[Caller], *, at_once: bool, settled: asyncio.Event | None = None) -> None:
    """
    Place all calls, have each caller say its audio, and hang up.

    Args:
        url: The webhook of Twilio's that is asked, or a WebSocket that needs none.
        callers: Who calls; each is filled in.
        at_once: Whether all dial at the same moment; otherwise one after the other, spread over a second for fifty.
        settled: Set when all are connected.
    """
    loop = asyncio.get_running_loop()
    frames = [media_frames(each) for each in callers]
    if url.startswith("ws"):
        target = urllib.parse.urlsplit(url)
        streams = [Stream(target.hostname or "", target.port or 80, target.path or "/", {})] * len(callers)
    else:
        streams = [await asyncio.to_thread(ask_webhook, url, each.number) for each in callers]
    lines: list[Line] = []

    async def open_line(caller: Caller, stream: Stream) -> None:
        opened = loop.create_future()
        host = f"{stream.host}:{stream.port}"
        start = start_message(caller.number, stream.parameters | {"caller": str(caller.number)})
        caller.began_at = time.monotonic()
        _, line = await loop.create_connection(
            lambda: Line(caller, host, stream.path, start, opened), "127.0.0.1", stream.port
        )
        lines.append(line)
        await opened

    def speak(caller: Caller, line: Line, its_frames: list[bytes], since: float, index: int = 0) -> None:
        now = time.monotonic()
        while index < len(its_frames) and (due := since + index * FRAME_S) <= now:
            if not line.is_open:
                return
            line.transport.write(its_frames[index])  # type: ignore[attr-defined]
            caller.sent_at.append(now)
            caller.late_s.append(now - due)
            index += 1
        if index < len(its_frames):
            loop.call_at(since + index * FRAME_S, speak, caller, line, its_frames, since, index)

    if at_once:
        await asyncio.gather(*(open_line(*each) for each in zip(callers, streams, strict=True)))
        by_caller = {id(line._caller): line for line in lines}
        lines = [by_caller[id(caller)] for caller in callers]
        for caller, line, its_frames in zip(callers, lines, frames, strict=True):
            speak(caller, line, its_frames, time.monotonic())
    else:
        epoch = time.monotonic()
        for caller, stream, its_frames in zip(callers, streams, frames, strict=True):
            await open_line(caller, stream)
            # No two callers speak at the same moment, and the moments are as far apart in every run: a server that
            # finds two messages at once has less to do.
            turn = math.ceil((time.monotonic() - epoch) / FRAME_S) + (caller.number % len(callers)) / len(callers)
            since = epoch + turn * FRAME_S
            loop.call_at(since, speak, caller, lines[-1], its_frames, since)
            await asyncio.sleep(0.02)
    if settled is not None:
        settled.set()
    longest = max(len(each) for each in frames)
    await asyncio.sleep(longest * FRAME_S + 0.6)
    for line in lines:
        line.is_open = False
        line.transport.write(frame(b'{"event":"stop","sequenceNumber":"9"}') + frame(struct.pack("!H", 1000), 8))  # type: ignore[attr-defined]
    await asyncio.sleep(0.3)
    for line in lines:
        line.transport.close()
    # What was heard is decoded when nobody is in a hurry.
    for caller in callers:
        caller.heard = [(at, binascii.a2b_base64(payload)) for at, payload in caller.heard]


class Latencies(NamedTuple):
    """When samples were sent, one of :data:`STEP`, and how long it took until each came back, in seconds."""

    sent_at: np.ndarray
    took_s: np.ndarray


#: From which sample to which something was heard, and how many samples later than it was said.
Lag = tuple[int, int, int]


def exact_lags(caller: Caller) -> list[Lag]:
    """
    Return by how much an echo at the wire's own rate lags.

    Raises:
        ValueError: If what was heard is not what was said, byte by byte.
    """
    heard = b"".join(payload for _, payload in caller.heard)
    # mu-law has two zeros, which a decoder makes one.
    said = caller.audio.replace(b"\x7f", b"\xff")
    heard = heard.replace(b"\x7f", b"\xff")
    probe = heard[:800].lstrip(b"\xff")[:400]
    if len(probe) < 400:
        raise ValueError("nothing was heard")
    lag = heard.index(probe) - said.find(probe)
    if said.find(probe) < 0:
        raise ValueError("another voice was heard")
    common = min(len(heard) - lag, len(said)) if lag >= 0 else min(len(heard), len(said) + lag)
    ours, theirs = (
        (heard[lag : lag + common], said[:common]) if lag >= 0 else (heard[:common], said[-lag : common - lag])
    )
    # The last words may be cut off by the end, and the last of them filled up with silence.
    if ours[: common - 320] != theirs[: common - 320]:
        raise ValueError("what was heard is not what was said")
    return [(0, len(heard), lag)]


def resampled_lags(caller: Caller) -> list[Lag]:
    """
    Return by how much the pieces of an echo lag that was resampled, or of which something was lost.

    Raises:
        ValueError: If what was heard is not what was said.
    """
    said = np.frombuffer(PCMU_8K.decode(caller.audio), "<i2").astype(np.float32)
    heard = np.frombuffer(PCMU_8K.decode(b"".join(payload for _, payload in caller.heard)), "<i2").astype(np.float32)
    lags = []
    for at in range(SEGMENT, len(heard) - SEGMENT, SEGMENT):
        piece = heard[at : at + SEGMENT]
        low = max(0, at - SEARCH)
        window = said[low : at + SEGMENT + 800]
        if len(window) < SEGMENT or not piece.any():
            continue
        size = 1 << (len(window) + SEGMENT).bit_length()
        product = np.fft.irfft(np.fft.rfft(window, size) * np.conj(np.fft.rfft(piece, size)), size)
        best = int(np.argmax(product[: len(window) - SEGMENT + 1]))
        same = window[best : best + SEGMENT]
        if np.dot(same, piece) / (np.linalg.norm(same) * np.linalg.norm(piece) + 1) < 0.9:
            continue
        lags.append((at, at + SEGMENT, at - (low + best)))
    if len(lags) < 0.7 * len(heard) / SEGMENT - 3:
        raise ValueError(f"what was heard is not what was said: {len(lags)} of {len(heard) // SEGMENT} pieces")
    return lags


def latencies(caller: Caller, lags: list[Lag], *, skip_s: float) -> Latencies:
    """Return how long the samples took that were sent `skip_s` or more after the first."""
    frames_at = np.array(caller.sent_at)
    sent_at, took_s, at, which = [np.zeros(0)], [np.zeros(0)], 0, 0
    for received_at, payload in caller.heard:
        begins, at = at, at + len(payload)
        while which < len(lags) and at > lags[which][1]:
            which += 1
        if which == len(lags):
            break
        if begins < lags[which][0]:
            continue
        frames = (np.arange(begins, at, STEP) - lags[which][2]) // FRAME
        times = frames_at[frames[(frames >= 0) & (frames < len(frames_at))]]
        times = times[times - frames_at[0] >= skip_s]
        sent_at.append(times)
        took_s.append(received_at - times)
    return Latencies(np.concatenate(sent_at), np.concatenate(took_s))


def jitter_s(caller: Caller, *, skip_s: float) -> np.ndarray:
    """Return how much the time between two messages differs from the audio of the second, in seconds."""
    times = np.array([at for at, _ in caller.heard])
    lengths = np.array([len(payload) / RATE for _, payload in caller.heard])
    kept = times[1:] >= caller.sent_at[0] + skip_s
    return np.asarray(np.abs(np.diff(times) - lengths[1:])[kept])
