"""
Many calls to real servers: what is measured, what is found, and what an interruption leaves.

Runs that only take their time go on side by side, once for all tests of this file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.utils import accept_key

from tests.dial.fake_bots import FRAME, Behaviour, FakeBot, Line, echo, fake_bot, http_answer, twiml
from tests.environment import clean_environ
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.clock import Clock
from wsvoice.dial.load import judge
from wsvoice.dial.load.orders import Begin
from wsvoice.dial.load.report import LoadReport
from wsvoice.dial.load.run import Progress, Watcher, place_calls
from wsvoice.errors import WsvoiceError

TONE = PCMU_8K.encode((8000 * np.sin(np.arange(8000) * 0.4)).astype("<i2").tobytes())


@dataclass
class Scenario:
    """A bot, the calls that it gets, and what came of them."""

    behaviour: Behaviour
    settings: dict[str, Any]
    webhook: Any = None
    clock: Clock | None = None
    beside: Callable[[FakeBot], Awaitable[None]] | None = None
    progress: list[Progress] = field(default_factory=list)
    bot: FakeBot = field(default_factory=FakeBot)
    marks: list[str] = field(default_factory=list)
    report: Any = None

    async def run(self) -> None:
        """Serve the bot, and place the calls."""
        async with fake_bot(self.behaviour, webhook=self.webhook) as self.bot:
            config = DialConfig(target=self.bot.url, **{"ramp_per_s": 20.0, **self.settings})
            watcher = Watcher(on_progress=self.progress.append)
            task = asyncio.ensure_future(place_calls(config, watcher, clock=self.clock))
            if self.beside is not None:
                await self.beside(self.bot)
            self.report = await task


class Jumping(Clock):
    """Is at once where it is to wait for."""

    at = 0.0

    def now(self) -> float:
        return self.at

    async def sleep_until(self, when: float) -> None:
        self.at = max(self.at, when)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def payload(message: dict[str, Any]) -> bytes:
    return base64.b64decode(message["media"]["payload"])


def echoing() -> Scenario:
    """A bot that echoes, sets a mark, and wants to know whether the caller is there."""

    async def behave(line: Line) -> None:
        await line.mark("hello")
        pong = await line.socket.ping(b"there?")
        while True:
            message = await line.receive()
            if message["event"] == "media":
                # Behind the last of it may be the hang-up, which is still to be read.
                with suppress(ConnectionClosed):
                    await line.say(payload(message))
            elif message["event"] == "mark":
                found.marks.append(message["mark"]["name"])
                await pong
            elif message["event"] == "stop":
                return await line.listen()

    def webhook(bot: FakeBot, number: int) -> bytes:
        return http_answer(twiml(bot.stream_url, parameters=f'<Parameter name="n" value="{number}"/>'))

    found = Scenario(behave, {"calls": 4, "duration_s": 2.2}, webhook)
    return found


def crossing() -> Scenario:
    """A server that says what one caller said to another one, and the other way round."""
    lines: list[Line] = []

    async def behave(line: Line) -> None:
        lines.append(line)
        mine = len(lines)
        other = {2: 3, 3: 2}.get(mine, mine)
        while True:
            message = await line.receive()
            if message["event"] == "media" and len(lines) >= other:
                await lines[other - 1].say(payload(message))

    return Scenario(behave, {"calls": 5, "duration_s": 1.5})


def breaking_off() -> Scenario:
    """A bot that speaks for itself, with no lead, and is 100 ms late every half second."""

    async def behave(line: Line) -> None:
        for index in range(60):
            await line.say(TONE[index % 50 * FRAME : (index % 50 + 1) * FRAME])
            # Whoever was late by chance is not to make up for it: what then comes early would hide the next break.
            await asyncio.sleep(0.12 if index % 25 == 24 else 0.02)
        await line.listen()

    return Scenario(behave, {"calls": 3, "duration_s": 2.0})


def answering(folder: Path) -> Scenario:
    """A bot that answers a question of half a second, 0.3 s after its end."""
    write_wav(folder / "question.wav", [PCMU_8K.decode(TONE[:4000])], 8000)

    async def behave(line: Line) -> None:
        while len(line.heard) < 8000:
            await line.receive()
        for index in range(10):
            await line.say(TONE[index * FRAME : (index + 1) * FRAME])
        await line.listen()

    settings = {"calls": 3, "audio": (folder / "question.wav",), "listen_s": 0.2, "response_timeout_s": 0.8}
    return Scenario(behave, {**settings, "concurrency": 2})


def refusing() -> Scenario:
    """A server without room for two calls, that rejects two, whose bot crashes in one and is silent in the last."""

    numbers = count(1)

    def webhook(bot: FakeBot, _: int) -> bytes:
        number = next(numbers)
        if number <= 2:
            return http_answer("every place is taken", "503 Service Unavailable", Content_Type="text/plain")
        reject = '<?xml version="1.0"?><Response><Reject reason="busy"/></Response>'
        return http_answer(reject if number <= 4 else twiml(bot.stream_url))

    async def behave(line: Line) -> None:
        if line is not found.bot.lines[0]:
            return await line.listen()
        await line.say(TONE[: 5 * FRAME])
        return await line.socket.close(1011)

    found = Scenario(behave, {"calls": 6, "ramp_per_s": 1 / 60, "duration_s": 0.5}, webhook, Jumping())
    return found


def holding_up() -> Scenario:
    """A bot that echoes, while the process of its callers is stopped for a moment."""

    async def hold_up(bot: FakeBot) -> None:
        await until(lambda: len(bot.lines) == 2 and all(len(line.heard) > 10 * FRAME for line in bot.lines))
        # The only worker that has this bot's port among its connections is not easily told: all are stopped.
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and _is_ours(path)]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.2)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return Scenario(echo, {"calls": 2, "duration_s": 1.0}, beside=hold_up)


def _is_ours(path: Path) -> bool:
    try:
        parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and b"wsvoice.dial.load.worker" in (path / "cmdline").read_bytes()
    except OSError:
        return False


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenario]:
    folder = tmp_path_factory.mktemp("load")
    scenarios = {
        "echoing": echoing(),
        "crossing": crossing(),
        "breaking off": breaking_off(),
        "answering": answering(folder),
        "refusing": refusing(),
    }

    async def run() -> None:
        await asyncio.gather(*(each.run() for each in scenarios.values()))

    with pytest.MonkeyPatch.context() as patch:
        # Other tests take the same cores.
        patch.setattr(judge, "CLIENT_LATE_MS", 60_000.0)
        asyncio.run(run())
    return scenarios


def test_an_echo_bot_is_measured(done: dict[str, Scenario]) -> None:
    report: LoadReport = done["echoing"].report
    assert (report.verdict, report.failure, report.echo, report.crossed) == ("passed", None, "exact", 0), report
    assert (report.calls, report.passed, report.failed, report.peak_calls) == (4, 4, 0, 4)
    assert report.latency_ms is not None
    assert 0 < report.latency_ms.p50 < 1000
    assert report.late_share is not None
    assert report.setup_ms is not None
    assert report.webhook_ms is not None
    assert report.setup_ms.p50 > report.webhook_ms.p50 > 0
    assert report.jitter_ms is not None
    assert report.client.late_ms is not None
    assert len(report.client.cpu_shares) == 1
    assert max(each.up for each in done["echoing"].progress) == 4


def test_each_call_is_as_the_carrier_has_it(done: dict[str, Scenario]) -> None:
    lines = done["echoing"].bot.lines
    assert not done["echoing"].bot.errors
    assert done["echoing"].marks == ["hello"] * 4
    for line in lines:
        events = [message["event"] for message in line.messages]
        assert (events[:2], events[-1]) == (["connected", "start"], "stop")
        media = [message["media"] for message in line.messages if message["event"] == "media"]
        assert [int(each["chunk"]) for each in media] == list(range(1, 111))
        assert line.socket.close_code == 1000
    assert sorted(line.messages[1]["start"]["customParameters"]["n"] for line in lines) == ["1", "2", "3", "4"]
    assert len({line.messages[1]["start"]["callSid"] for line in lines}) == 4
    assert len({bytes(line.heard) for line in lines}) == 4


def test_a_call_that_hears_another_one_is_found(done: dict[str, Scenario]) -> None:
    report: LoadReport = done["crossing"].report
    assert (report.verdict, report.crossed, report.failed, report.passed) == ("failed", 2, 2, 3), report
    first, second = sorted(each.calls[0] for each in report.failures)
    assert {each.reason for each in report.failures} == {
        f"call {first} heard call {second}",
        f"call {second} heard call {first}",
    }


def test_of_a_bot_that_speaks_for_itself_gaps_are_found(done: dict[str, Scenario]) -> None:
    report: LoadReport = done["breaking off"].report
    assert (report.verdict, report.echo, report.latency_ms, report.failed) == ("passed", "none", None, 0), report
    assert report.crossed == 0
    # Two breaks in each call, of 80 ms at least.
    assert report.underruns >= 6
    assert report.late_share is not None
    assert report.late_share > 2 * 80 / 1400
    assert any("does not repeat its callers" in line for line in report.to_lines())


def test_answers_to_what_all_callers_say_are_measured(done: dict[str, Scenario]) -> None:
    report: LoadReport = done["answering"].report
    assert (report.verdict, report.crossed, report.peak_calls, report.calls) == ("passed", None, 2, 3), report
    assert report.response_ms is not None
    assert 280 < report.response_ms.p50 < 800


def test_calls_that_fail_are_counted_by_reason_and_begun_by_the_clock(done: dict[str, Scenario]) -> None:
    scenario = done["refusing"]
    report: LoadReport = scenario.report
    assert scenario.clock is not None
    assert scenario.clock.now() == pytest.approx(300.0)
    assert (report.verdict, report.passed, report.failed) == ("failed", 0, 6)
    found = {each.reason: each.count for each in report.failures}
    busy = "the webhook failed: 503, every place is taken"
    (rejected,) = [reason for reason in found if "turned away as busy" in reason]
    crashed, silent = "the bot crashed (it closed the call with 1011)", "the bot never made a sound"
    assert found == {busy: 2, rejected: 2, crashed: 1, silent: 1}
    assert report.failure is not None
    assert report.failure.startswith("6 of 6 calls failed, most of them: ")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_callers_that_are_held_up_report_no_figure() -> None:
    scenario = holding_up()
    asyncio.run(scenario.run())
    report: LoadReport = scenario.report
    assert report.verdict == "not-measured"
    assert "this machine cannot play 2 calls at once" in (report.failure or "")
    assert report.latency_ms is report.setup_ms is report.late_share is None
    assert report.client.late_ms is not None
    assert report.client.late_ms.max > 100


def test_what_comes_with_the_upgrade_is_not_lost() -> None:
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        key = next(line.partition(": ")[2] for line in head if line.lower().startswith("sec-websocket-key"))
        answer = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
        answer += [f"Sec-WebSocket-Accept: {accept_key(key)}", "", ""]
        # A ping, the first half of it with the upgrade.
        writer.write("\r\n".join(answer).encode() + b"\x89\x05e")
        await writer.drain()
        await reader.readuntil(b'"start"')
        writer.write(b"arly")
        heard.append(await reader.readuntil(b"early"))
        writer.write(b"\x88\x02" + struct.pack("!H", 1013))
        await writer.drain()
        writer.close()

    async def run() -> LoadReport:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await place_calls(DialConfig(target=f"ws://127.0.0.1:{port}/", calls=1, duration_s=1.0))

    report = asyncio.run(run())
    # A pong, with a mask of zeros.
    assert b"\x8a\x85\0\0\0\0early" in heard[0]
    assert report.failed == 1


BOT = """
import base64, json, pathlib

async def bot(runner_args):
    call = runner_args.call
    pathlib.Path(call.call_id).touch()
    async for text in runner_args.websocket.iter_text():
        message = json.loads(text)
        if message["event"] == "media":
            media = {"payload": message["media"]["payload"]}
            content = {"event": "media", "streamSid": call.stream_id, "media": media}
            await runner_args.websocket.send_text(json.dumps(content))
"""


def test_ctrl_c_hangs_up_the_calls_to_a_served_bot_and_reports_what_there_was(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text(BOT)
    command = [sys.executable, "-m", "wsvoice", "dial", "bot.py", "-n", "5", "--ramp", "20/s", "--concurrency", "3"]
    with subprocess.Popen(
        [*command, "--duration", "60", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=clean_environ(),
    ) as process:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("CA*"))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    report = json.loads(out)
    assert (report["interrupted"], report["calls"], report["peak_calls"]) == (True, 3, 3), err
    assert "interrupted; so far " in err
    assert "Traceback" not in err


def test_a_worker_that_dies_ends_the_run_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # An order that no worker can carry out: its number cannot seed a sound.
    monkeypatch.setattr("wsvoice.dial.load.run.Begin", lambda number, call, duration_s: Begin(-1, call, duration_s))
    with pytest.raises(WsvoiceError, match=r"a process of callers has died: .*negative") as caught:
        asyncio.run(Scenario(echo, {"calls": 1, "duration_s": 0.5}).run())
    assert caught.value.exit_code == 1
