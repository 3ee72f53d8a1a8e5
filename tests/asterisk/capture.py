"""
What a real Asterisk sends to a WebSocket server, and how it takes what it is sent: ``tests/golden/asterisk/``.

Each scenario is one telephone call, from a SIP phone through Asterisk to a plain WebSocket server that is nothing but
the ``websockets`` library. Written anew by::

    REAL_ASTERISK=FOLDER python -m tests.asterisk.capture
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from tests.asterisk.pbx import Extension, Pbx, asterisk
from tests.asterisk.phone import RATE, Phone, phone
from tests.asterisk.programs import Programs
from tests.signals import speech_like

GOLDEN = Path(__file__).parents[1] / "golden" / "asterisk"
MEDIA = Subprotocol("media")
#: What the phone says: a sentence, and silence that lasts longer than any scenario.
SENTENCE = bytes(RATE) + speech_like(2000, RATE, seed=3)
MICROPHONE = SENTENCE + bytes(2 * RATE * 60)

Record = dict[str, Any]


@dataclass
class Stream:
    """
    One WebSocket with Asterisk, and all that passed through it.

    Attributes:
        records: In order; audio that one side sent between two other records is one record of its own.
        heard: All audio that Asterisk sent.
        times: When each of its binary messages came.
    """

    connection: Connection
    records: list[Record]
    heard: bytearray = field(default_factory=bytearray)
    times: list[float] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        """Record what Asterisk sends, until the stream is closed."""
        try:
            while True:
                message = await self.connection.recv()
                async with self._changed:
                    if isinstance(message, bytes):
                        self.heard += message
                        self.times.append(time.monotonic())
                        _add_audio(self.records, "asterisk", message)
                    else:
                        self.records.append({"from": "asterisk", "kind": "text", "text": message})
                    self._changed.notify_all()
        except ConnectionClosed as exc:
            async with self._changed:
                self.records += _closes(exc)
                self._changed.notify_all()

    async def send(self, message: str | bytes) -> None:
        """Send a message."""
        if isinstance(message, bytes):
            _add_audio(self.records, "server", message)
        else:
            self.records.append({"from": "server", "kind": "text", "text": message})
        await self.connection.send(message)

    async def command(self, name: str, **members: Any) -> None:
        """Send a command as JSON."""
        await self.send(json.dumps({"command": name, **members}, ensure_ascii=False, separators=(",", ":")))

    async def text(self, needle: str, *, timeout_s: float = 10, count: int = 1) -> str:
        """Wait until Asterisk has sent `count` texts that hold `needle`; return the last of them."""
        found: list[str] = []

        def is_there() -> bool:
            texts = [each["text"] for each in self.records if each["from"] == "asterisk" and each["kind"] == "text"]
            found[:] = [text for text in texts if needle in text]
            return len(found) >= count

        await self._wait(is_there, f"{count} {needle}", timeout_s)
        return found[-1]

    async def audio(self, seconds: float, *, timeout_s: float = 20) -> None:
        """Wait until Asterisk has sent that much audio more, of 20 ms each."""
        until = len(self.times) + round(seconds * 50)
        await self._wait(lambda: len(self.times) >= until, f"{seconds} s of audio", timeout_s)

    async def closed(self, *, timeout_s: float = 10) -> Record:
        """Wait until the stream is closed; return the first of its close frames."""
        closes: list[Record] = []

        def is_there() -> bool:
            closes[:] = [each for each in self.records if each["kind"] == "close"]
            return bool(closes)

        await self._wait(is_there, "a close", timeout_s)
        return closes[0]

    async def _wait(self, is_there: Callable[[], bool], what: str, timeout_s: float) -> None:
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(is_there), timeout_s)
            except TimeoutError:
                raise AssertionError(f"not within {timeout_s} s: {what}\n{self.records}") from None


@dataclass
class Call:
    """
    A call that has been answered: the phone at one end, the stream at the other.

    Attributes:
        records: Of the stream, and what the phone did.
        asked: How often the state of the queue was asked for.
    """

    pbx: Pbx
    phone: Phone
    stream: Stream
    records: list[Record]
    asked: int = 0

    async def frames(self, count: int, size: int = 160) -> None:
        """Send that many binary messages."""
        for number in range(count):
            await self.stream.send(bytes([0x80 + number % 64]) * size)

    async def status(self) -> None:
        """Ask for the state of the queue."""
        self.asked += 1
        await self.stream.command("GET_STATUS")
        await self.stream.text('"STATUS"', count=self.asked)

    async def press(self, digit: str) -> None:
        """Press a key of the phone."""
        self.records.append({"from": "phone", "kind": "press", "text": digit})
        await asyncio.to_thread(self.phone.press, digit)

    async def hang_up(self) -> None:
        """Hang up at the phone."""
        self.records.append({"from": "phone", "kind": "hang up"})
        await asyncio.to_thread(self.phone.hang_up)

    async def hung_up(self) -> None:
        """Wait until the phone has been hung up on."""
        await asyncio.to_thread(self.phone.wait, "CALL_CLOSED")
        self.records.append({"from": "phone", "kind": "was hung up on"})


@asynccontextmanager
async def calling(
    pbx: Pbx,
    folder: Path,
    *,
    path: str = "/media",
    options: str = "c(ulaw)f(json)",
    settings: tuple[str, ...] = (),
    username: str = "",
    password: str = "",
) -> AsyncIterator[Call]:
    """Call from a phone to a WebSocket server of this process, until the context ends."""
    records: list[Record] = []
    arrived: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        headers = {name.lower(): value for name, value in connection.request.headers.raw_items()}
        records.append({"from": "asterisk", "kind": "upgrade", "path": connection.request.path, "headers": headers})
        stream = Stream(connection, records)
        arrived.set_result(stream)
        await stream.read()

    folder.mkdir()
    async with serve(handle, "127.0.0.1", 0, subprotocols=[MEDIA], compression=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        extension = Extension("100", f"ws://127.0.0.1:{port}{path}", options, settings, username, password)
        await asyncio.to_thread(pbx.serve, extension)
        with phone(pbx.programs, folder, MICROPHONE) as handset:
            await asyncio.to_thread(handset.dial, pbx.sip_uri("100"))
            stream = await asyncio.wait_for(arrived, 10)
            await asyncio.to_thread(handset.wait, "CALL_ESTABLISHED")
            yield Call(pbx, handset, stream, records)
    await asyncio.to_thread(pbx.wait_idle)


def _add_audio(records: list[Record], sender: str, message: bytes) -> None:
    for record in reversed(records):
        if record["kind"] != "audio":
            break
        if record["from"] == sender and record["bytes"] == len(message):
            record["messages"] += 1
            return
    record = {"from": sender, "kind": "audio", "messages": 1, "bytes": len(message), "first": message[:8].hex()}
    records.append(record)


def _closes(exc: ConnectionClosed) -> list[Record]:
    """Return the close frames in the order that they were sent."""
    frames = [("asterisk", exc.rcvd), ("server", exc.sent)]
    return [
        {"from": sender, "kind": "close", "code": frame.code, "reason": frame.reason}
        for sender, frame in (frames if exc.rcvd_then_sent else frames[::-1])
        if frame is not None
    ]


SCENARIOS: dict[str, Callable[[Pbx, Path], Awaitable[list[Record]]]] = {}


def scenario(
    **options: Any,
) -> Callable[[Callable[[Call], Awaitable[None]]], Callable[[Pbx, Path], Awaitable[list[Record]]]]:
    """Have a function be what happens in a call with these options of :func:`calling`; it returns the records."""

    def decorate(function: Callable[[Call], Awaitable[None]]) -> Callable[[Pbx, Path], Awaitable[list[Record]]]:
        async def run(pbx: Pbx, folder: Path) -> list[Record]:
            async with calling(pbx, folder, **options) as call:
                await call.stream.text("MEDIA_START")
                await call.stream.audio(0.02)
                await function(call)
                await call.stream.closed()
            return call.records

        SCENARIOS[function.__name__.replace("_", "-")] = run
        return run

    return decorate


@scenario(settings=("Set(_FROM=${CALLERID(num)})", "Set(_TO=${EXTEN})", "Set(__TWICE=2)", "Set(NOT_INHERITED=1)"))
async def call(call: Call) -> None:
    """A digit, some sound with a mark behind it, and the caller hangs up."""
    await call.stream.audio(1)
    await call.press("5")
    await call.stream.text("DTMF_END")
    await call.frames(5)
    await call.stream.command("MARK_MEDIA", correlation_id="m1")
    await call.stream.text("m1")
    await call.hang_up()


@scenario(
    path="/media/secret?x=1",
    options="c(ulaw)f(json)v(from=${URIENCODE(${CALLERID(num)})},to=${EXTEN})",
    username="bot",
    password="se cret:x",
)
async def credentials_and_uri_parameters(call: Call) -> None:
    """Basic credentials, and parameters beside those that the address has."""
    await call.stream.audio(0.1)
    await call.hang_up()


@scenario()
async def flush(call: Call) -> None:
    """What is queued goes, marks too; a report of the empty queue that was asked for before does come."""
    await call.frames(100)
    await call.stream.command("MARK_MEDIA", correlation_id="m1")
    await call.frames(100)
    await call.stream.command("MARK_MEDIA", correlation_id="m2")
    await call.stream.command("REPORT_QUEUE_DRAINED")
    await call.stream.command("FLUSH_MEDIA")
    await call.status()
    await call.stream.text("QUEUE_DRAINED")
    await call.stream.command("MARK_MEDIA", correlation_id="m3")
    await call.stream.text("m3")
    # As long as the first mark would have taken.
    await call.stream.audio(2.2)
    await call.stream.command("REPORT_QUEUE_DRAINED")
    await call.stream.text("QUEUE_DRAINED", count=2)
    await call.hang_up()


@scenario()
async def flow_control(call: Call) -> None:
    """More than 900 frames, five in a message; more than the 1000 that are kept; on until there are fewer than 800."""
    await call.frames(190, 800)
    await call.stream.text("MEDIA_XOFF")
    await call.status()
    await call.frames(20, 800)
    await call.status()
    await call.stream.text("MEDIA_XON", timeout_s=20)
    # Asked for at once, the state would now and then still be a full queue.
    await call.stream.audio(0.1)
    await call.status()
    await call.hang_up()


@scenario()
async def flow_control_flushed(call: Call) -> None:
    """A flush while the queue is full."""
    await call.frames(190, 800)
    await call.stream.text("MEDIA_XOFF")
    await call.stream.command("FLUSH_MEDIA")
    await call.stream.text("MEDIA_XON")
    await call.stream.audio(0.1)
    await call.status()
    await call.hang_up()


@scenario()
async def queue_drained(call: Call) -> None:
    """Asked for before the queue is empty, and after."""
    await call.frames(20)
    await call.stream.command("REPORT_QUEUE_DRAINED")
    await call.stream.text("QUEUE_DRAINED")
    await call.stream.command("REPORT_QUEUE_DRAINED")
    await call.stream.text("QUEUE_DRAINED", count=2)
    await call.hang_up()


@scenario()
async def buffering(call: Call) -> None:
    """Messages that are no whole frames, between START and STOP; marks in it and behind."""
    await call.stream.command("START_MEDIA_BUFFERING")
    await call.frames(1, 16_000)
    await call.stream.command("MARK_MEDIA", correlation_id="in it")
    await call.frames(3, 1001)
    await call.status()
    await call.stream.command("STOP_MEDIA_BUFFERING", correlation_id="b1")
    await call.stream.command("MARK_MEDIA", correlation_id="behind")
    await call.stream.text("behind")
    await call.stream.command("START_MEDIA_BUFFERING")
    await call.frames(10)
    await call.stream.command("STOP_MEDIA_BUFFERING")
    await call.stream.text("MEDIA_BUFFERING_COMPLETED", count=2)
    await call.stream.command("STOP_MEDIA_BUFFERING", correlation_id="not begun")
    await call.stream.text("not begun")
    await call.hang_up()


@scenario()
async def buffering_flushed(call: Call) -> None:
    """A flush ends buffering, and what would have said that it was played."""
    await call.stream.command("START_MEDIA_BUFFERING")
    await call.frames(1, 16_000)
    await call.stream.command("FLUSH_MEDIA")
    await call.status()
    await call.stream.command("START_MEDIA_BUFFERING")
    await call.frames(1, 16_000)
    await call.stream.command("STOP_MEDIA_BUFFERING", correlation_id="b1")
    await call.stream.command("FLUSH_MEDIA")
    await call.status()
    await call.stream.audio(2.2)
    await call.hang_up()


@scenario()
async def pause(call: Call) -> None:
    """Sound and marks wait; a flush does not end the pause."""
    await call.stream.command("PAUSE_MEDIA")
    await call.frames(20)
    await call.stream.command("MARK_MEDIA", correlation_id="m1")
    await call.stream.audio(0.6)
    await call.status()
    await call.stream.command("CONTINUE_MEDIA")
    await call.stream.text("m1")
    await call.stream.command("PAUSE_MEDIA")
    await call.frames(20)
    await call.stream.command("FLUSH_MEDIA")
    await call.status()
    await call.hang_up()


@scenario()
async def direction(call: Call) -> None:
    """Only to the server, only from it, and both again."""
    await call.stream.command("SET_MEDIA_DIRECTION", direction="in")
    await call.frames(50)
    await call.status()
    await call.stream.command("SET_MEDIA_DIRECTION", direction="out")
    await call.frames(50)
    await call.stream.command("MARK_MEDIA", correlation_id="m1")
    await call.stream.text("m1")
    await call.stream.command("SET_MEDIA_DIRECTION", direction="both")
    await call.stream.audio(0.1)
    await call.hang_up()


@scenario()
async def mistakes(call: Call) -> None:
    """Messages that a server should not send. A text may have 128 bytes."""
    await call.stream.command("NO_SUCH_COMMAND")
    await call.stream.send("{}")
    await call.stream.send("no JSON")
    await call.stream.text("ERROR")
    await call.stream.command("SET_MEDIA_DIRECTION", direction="up")
    await call.stream.text("ERROR", count=2)
    await call.stream.command("MARK_MEDIA")
    await call.stream.text("MEDIA_MARK_PROCESSED")
    # 129 bytes, then 128.
    await call.stream.command("MARK_MEDIA", correlation_id="x" * 85)
    await call.stream.command("MARK_MEDIA", correlation_id="y" * 84)
    await call.stream.text("y" * 84)
    await call.stream.command("MARK_MEDIA", correlation_id='"ä"\n')
    await call.stream.text("MEDIA_MARK_PROCESSED", count=3)
    # Of each message what is more than whole frames is dropped: nothing, nothing, one, six.
    await call.stream.command("PAUSE_MEDIA")
    for size in (80, 80, 170, 1000):
        await call.frames(1, size)
    await call.status()
    await call.hang_up()


@scenario(options="c(ulaw)")
async def plain_text(call: Call) -> None:
    """Control messages as they are without ``f(json)``."""
    await call.press("#")
    await call.stream.text("DTMF_END")
    await call.frames(5)
    await call.stream.send("MARK_MEDIA m 1")
    await call.stream.text("MEDIA_MARK_PROCESSED")
    await call.stream.send("START_MEDIA_BUFFERING")
    await call.frames(1, 1600)
    await call.stream.send("STOP_MEDIA_BUFFERING b1")
    await call.stream.text("MEDIA_BUFFERING_COMPLETED")
    await call.stream.send("REPORT_QUEUE_DRAINED")
    await call.stream.text("QUEUE_DRAINED")
    await call.stream.send("NO_SUCH_COMMAND")
    await call.stream.send("SET_MEDIA_DIRECTION in")
    await call.stream.command("GET_STATUS")
    await call.stream.send("GET_STATUS")
    await call.stream.text("STATUS")
    await call.frames(190, 800)
    await call.stream.text("MEDIA_XOFF")
    await call.stream.send("FLUSH_MEDIA")
    await call.stream.text("MEDIA_XON")
    await call.stream.send("HANGUP")
    await call.hung_up()


@scenario(options="c(slin16)f(json)")
async def slin16(call: Call) -> None:
    """16-bit samples at 16 kHz, lowest byte first."""
    await call.stream.audio(0.6)
    await call.frames(5, 640)
    await call.stream.command("MARK_MEDIA", correlation_id="m1")
    await call.stream.text("m1")
    await call.hang_up()


@scenario()
async def hangup_command(call: Call) -> None:
    """The server has the call hung up."""
    await call.frames(5)
    await call.stream.command("HANGUP")
    await call.hung_up()


@scenario()
async def server_closes(call: Call) -> None:
    """The server closes the stream."""
    await call.frames(5)
    await call.stream.connection.close(1000, "done")
    await call.hung_up()


@scenario()
async def message_too_long(call: Call) -> None:
    """65,500 bytes are taken, more are not."""
    await call.frames(1, 65_500)
    await call.stream.audio(0.1)
    await call.frames(1, 65_600)
    await call.hung_up()


async def incoming(pbx: Pbx, folder: Path) -> list[Record]:
    """Asterisk waits for a WebSocket client; the phone waits too, and does not ring."""
    records: list[Record] = []
    folder.mkdir()
    plan = [
        "exten => 100,1,Set(_FROM=${CALLERID(num)})",
        "same => n,Dial(WebSocket/INCOMING/c(ulaw)f(json))",
        "same => n,Hangup()",
    ]
    await asyncio.to_thread(pbx.configure, "\n".join(plan) + "\n", "")

    async def upgrade(connection_id: str, *protocols: Subprotocol) -> ClientConnection | None:
        path = f"/media/{connection_id}"
        record: Record = {"from": "server", "kind": "upgrade", "path": path, "protocols": list(protocols)}
        try:
            url = f"ws://127.0.0.1:{pbx.http_port}{path}"
            connection = await connect(url, subprotocols=protocols or None, compression=None, proxy=None)
        except InvalidStatus as exc:
            records.append({**record, "status": exc.response.status_code})
            return None
        assert connection.response is not None
        headers = {name.lower(): value for name, value in connection.response.headers.raw_items()}
        records.append({**record, "status": 101, "headers": headers})
        return connection

    with phone(pbx.programs, folder, MICROPHONE) as handset:
        await asyncio.to_thread(handset.dial, pbx.sip_uri("100"))
        connection_id = await asyncio.to_thread(_connection_id, pbx)
        await upgrade("of-nobody", MEDIA)
        connection = await upgrade(connection_id, MEDIA)
        assert connection is not None
        stream = Stream(connection, records)
        reader = asyncio.create_task(stream.read())
        await asyncio.to_thread(handset.wait, "CALL_ESTABLISHED")
        await stream.text("MEDIA_START")
        await stream.audio(0.5)
        await upgrade(connection_id, MEDIA)
        await stream.command("MARK_MEDIA", correlation_id="m1")
        await stream.text("m1")
        await Call(pbx, handset, stream, records).hang_up()
        await reader
    await asyncio.to_thread(pbx.wait_idle)
    return records


SCENARIOS["incoming"] = incoming


def _connection_id(pbx: Pbx) -> str:
    """Return the id that Asterisk waits for; ARI would tell it."""
    channel = pbx.wait_channel("WebSocket/")
    (line,) = (line for line in pbx.cli(f"core show channel {channel}").splitlines() if "CONNECTION_ID=" in line)
    return line.partition("=")[2].strip()


async def _main() -> None:
    programs = Programs(Path(os.environ["REAL_ASTERISK"]))
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pbx") as name:
        folder = Path(name)
        (folder / "asterisk").mkdir()
        with asterisk(programs, folder / "asterisk") as pbx:
            for scenario_name, run in SCENARIOS.items():
                print(scenario_name)
                records = await run(pbx, folder / scenario_name)
                lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
                (GOLDEN / f"{scenario_name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (GOLDEN / "VERSION").write_text(programs.asterisk_version + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(_main())
