"""
A real telephone call through a real Asterisk to a plain WebSocket server: what passes, and that the sound is whole.

Holds ``tests/golden/asterisk/`` against the Asterisk that is installed; nothing of wsvoice takes part.
"""

from __future__ import annotations

import asyncio
import json
import queue
import re
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.asterisk.capture import GOLDEN, MEDIA, SCENARIOS, SENTENCE, Record, calling
from tests.asterisk.pbx import Extension, Pbx, asterisk
from tests.asterisk.phone import RATE, Phone, phone
from tests.asterisk.programs import Programs
from tests.signals import correlation_delay_ms, share_heard, speech_like
from wsvoice.audio import PCMU_8K

#: What no two calls have alike, in JSON and in plain text. A long queue grows shorter while it is looked at.
CHANGING = re.compile(
    r"WebSocket/\w+/0x[0-9a-f]+|\b[0-9]{10}\.[0-9]+\b|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"
    r'|(?<="queue_length":)[0-9]{3,}|(?<= queue_length:)[0-9]{3,}'
)
CHANGING_HEADERS = ("host", "sec-websocket-key", "sec-websocket-accept")


def steady(records: list[Record]) -> dict[str, Any]:
    """Return what is alike in each run: one side's messages in order, and how long its pieces of audio are."""
    result: dict[str, Any] = {}
    for record in records:
        side = result.setdefault(record["from"], {"messages": [], "audio": set()})
        if record["kind"] == "audio":
            side["audio"].add(record["bytes"])
            continue
        message = {key: CHANGING.sub("…", value) if isinstance(value, str) else value for key, value in record.items()}
        if "headers" in record:
            headers = record["headers"].items()
            message["headers"] = {name: value for name, value in headers if name not in CHANGING_HEADERS}
        side["messages"].append(message)
    return result


@pytest.fixture(scope="module")
def calls(programs: Programs, request: pytest.FixtureRequest) -> Iterator[dict[str, Future[list[Record]]]]:
    """The scenarios of the tests to be run, by name: three at once, each with an Asterisk of its own."""
    asked = {each.callspec.params.get("name") for each in request.session.items if hasattr(each, "callspec")}
    idle: queue.Queue[Pbx] = queue.Queue()

    def carry_out(name: str) -> list[Record]:
        pbx = idle.get()
        try:
            return asyncio.run(SCENARIOS[name](pbx, pbx.folder / name))
        finally:
            idle.put(pbx)

    with ExitStack() as stack:
        for _ in range(3):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pbx")))
            idle.put(stack.enter_context(asterisk(programs, folder)))
        threads = stack.enter_context(ThreadPoolExecutor(3))
        yield {name: threads.submit(carry_out, name) for name in SCENARIOS if name in asked}


@pytest.mark.parametrize("name", SCENARIOS)
def test_asterisk_sends_what_was_captured(calls: dict[str, Future[list[Record]]], name: str) -> None:
    lines = (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    captured = steady([json.loads(line) for line in lines])

    assert steady(calls[name].result()) == captured


def test_sound_passes_whole_in_both_directions(pbx: Pbx, lab: Path) -> None:
    answer = speech_like(2000, RATE, seed=9)

    async def talk() -> tuple[bytes, bytes]:
        async with calling(pbx, lab / "phone") as call:
            await call.stream.audio(0.5)
            encoded = PCMU_8K.encode(answer)
            for start in range(0, len(encoded), 160):
                await call.stream.send(encoded[start : start + 160])
            await call.stream.command("MARK_MEDIA", correlation_id="said")
            await call.stream.text("said")
            await call.stream.audio(1)
            await call.hang_up()
            await call.stream.closed()
            return PCMU_8K.decode(bytes(call.stream.heard)), call.phone.heard()

    at_socket, at_phone = asyncio.run(talk())
    delay_ms, likeness = correlation_delay_ms(SENTENCE, at_socket, RATE)
    assert likeness > 0.99
    assert -40 < delay_ms < 200
    assert share_heard(answer, at_phone, RATE) > 0.8


def test_twenty_phones_at_once(pbx: Pbx, lab: Path) -> None:
    count = 20
    sentences = [speech_like(1500, RATE, seed=100 + number) for number in range(count)]
    streams = []

    async def echo(connection: ServerConnection) -> None:
        streams.append(connection.request.path if connection.request else "")
        async for message in connection:
            if isinstance(message, bytes):
                await connection.send(message)

    def talk(handset: Phone, number: int) -> bytes:
        handset.call(pbx.sip_uri(str(200 + number)))
        deadline = time.monotonic() + 20
        while len(handset.heard()) < 2 * RATE * 3:
            assert time.monotonic() < deadline, handset.log()
            time.sleep(0.2)
        handset.hang_up()
        return handset.heard()

    async def ring() -> list[bytes]:
        loop = asyncio.get_running_loop()
        async with serve(echo, "127.0.0.1", 0, subprotocols=[MEDIA], compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            extensions = [Extension(str(200 + n), f"ws://127.0.0.1:{port}/{n}") for n in range(count)]
            await asyncio.to_thread(pbx.serve, *extensions)
            with ExitStack() as stack, ThreadPoolExecutor(count) as threads:
                phones = []
                for number, sentence in enumerate(sentences):
                    folder = lab / str(number)
                    folder.mkdir()
                    microphone = bytes(RATE) + sentence + bytes(2 * RATE * 30)
                    phones.append(
                        stack.enter_context(phone(pbx.programs, folder, microphone, number=f"+1555010{number:02}"))
                    )
                each = (loop.run_in_executor(threads, talk, handset, n) for n, handset in enumerate(phones))
                return await asyncio.gather(*each)

    heard = asyncio.run(ring())
    pbx.wait_idle()

    assert sorted(streams, key=lambda path: int(path[1:])) == [f"/{number}" for number in range(count)]
    for number, sound in enumerate(heard):
        assert share_heard(sentences[number], sound, RATE) > 0.7, number
        assert share_heard(sentences[number - 1], sound, RATE) < 0.2, number
