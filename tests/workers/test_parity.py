"""What works in one process works with workers: each kind of call, what steers it, and what is told of it."""

from __future__ import annotations

import asyncio
import json
import re
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.environment import clean_environ
from tests.phone.exchange import Callee, Exchange, ExchangeServer, level, to_local
from tests.phone.test_placed_calls import HOST, KEY, OURS, THEIRS
from tests.process import ServerProcess, server_process
from tests.runner import kinds
from tests.runner.carrier import FORM, announce, dialled
from tests.runner.dialects import DIALECTS, Asterisk, Dialect, on_line
from tests.runner.peers import RATE, peer
from tests.signals import tone
from tests.workers.processes import look_at, metric, wait_until
from wsvoice.config import DIAL_KEY

ROOT = str(Path(__file__).parents[2])
#: An echo bot that logs what it learns of its call, and does what the call's parameter says.
BOT = """
import json

from loguru import logger

from tests.runner import bots


def tell(what, **values):
    logger.info("{} {}", what, json.dumps(values))


async def bot(runner_args):
    call, body, transport = runner_args.call, runner_args.body, runner_args.transport
    tell("begins", id=call.call_id, direction=call.direction, by=call.answered_by, to=call.to_number, body=body)

    @transport.event_handler("on_call_status")
    async def on_call_status(transport, update):
        tell("status", event=update.event, by=update.answered_by)

    @transport.event_handler("on_call_ending")
    async def on_call_ending(transport, left_s):
        tell("ending", left_s=left_s)

    if "transfer" in body:
        await call.transfer(body["transfer"])
    elif "hang_up" in body:
        await call.hang_up()
    await bots.run(transport, bots.Echo())
    tell("over", updates=len(call.updates), by=call.answered_by)
"""
PIECE = tone(500, 200, 8000)


def told(server: ServerProcess, what: str) -> list[dict[str, Any]]:
    """Return what the bot has logged."""
    return [json.loads(each) for each in re.findall(rf"{what} (\{{.*\}})$", server.log(), re.MULTILINE)]


class Application:
    """An application that places calls through a server."""

    def __init__(self, server: ServerProcess, exchange: Exchange) -> None:
        self.server, self.exchange = server, exchange
        self._headers = {"Authorization": f"Bearer {KEY}"}

    def place(self, callee: Callee, **wanted: Any) -> dict[str, Any]:
        """Place a call; return how it stands once it is over."""
        self.exchange.callees[THEIRS] = callee
        content = {"to": THEIRS, "from": OURS, "ring_timeout_s": 20, **wanted}
        placed = httpx.post(f"{self.server.url}dial", json=content, headers=self._headers, timeout=10)
        assert placed.status_code == 201, placed.text
        seen, call = 0, {}
        while True:
            url = f"{self.server.url}dial/{placed.json()['id']}?after={seen}"
            news = httpx.get(url, headers=self._headers, timeout=30).json()
            seen, call = seen + len(news["events"]), news["call"]
            if news["ended"]:
                self.exchange.joined()
                assert isinstance(call, dict)
                return call


@pytest.fixture(scope="module", params=["twilio", "telnyx"])
def application(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """A server with two workers that places calls: with a document that is asked for, and with the stream's address."""
    with ExchangeServer(request.param, OURS) as exchange:
        environ = {**exchange.credentials, DIAL_KEY: KEY, "PYTHONPATH": ROOT}
        arguments = ["-t", request.param, "-x", HOST, "--workers", "2", "--max-lag", "0"]
        folder = tmp_path_factory.mktemp(request.param)
        with server_process(folder, BOT, *arguments, **environ) as server:
            exchange.route = lambda url: to_local(url, server.port) if urlsplit(url).netloc == HOST else url
            yield Application(server, exchange)
            assert exchange.left_up == 0
            assert "Traceback" not in server.log()


class TestPlacedCalls:
    def test_who_answers_is_told_to_the_bot(self, application: Application) -> None:
        call = application.place(Callee(stays_s=0.5), parameters={"a": "b"}, detection="detect")
        begun, over = told(application.server, "begins")[-1], told(application.server, "over")[-1]
        assert (begun["id"], begun["direction"], begun["to"]) == (call["call_id"], "outbound", THEIRS)
        assert begun["body"]["a"] == "b"
        assert (call["stage"], call["answered_by"], call["ended_by"]) == ("completed", "human", "caller")
        assert call["heard_s"] == pytest.approx(0.3, abs=0.15)
        assert level(application.exchange.heard[call["call_id"]]) > 1000
        assert over["by"] == "human"
        assert over["updates"] >= 1
        statuses = told(application.server, "status")
        assert "human" in (begun["by"], *(each["by"] for each in statuses))

    def test_a_message_is_left_after_the_greeting(self, application: Application) -> None:
        before = len(told(application.server, "begins"))
        callee = Callee(answered_by="machine", greeting_s=0.4, stays_s=1.0)
        call = application.place(callee, voicemail="leave")
        assert call["answered_by"] == "machine"
        (begun,) = told(application.server, "begins")[before:]
        assert begun["by"] == "machine"
        assert begun["id"] == call["call_id"]

    def test_a_machines_call_is_ended(self, application: Application) -> None:
        call = application.place(Callee(answered_by="machine", stays_s=10), voicemail="hang-up")
        assert (call["stage"], call["answered_by"]) in (("completed", "machine"), ("canceled", "machine"))

    def test_the_bot_transfers(self, application: Application) -> None:
        call = application.place(Callee(stays_s=0.6), parameters={"transfer": "+15550100009"})
        commands = [each[1:] for each in application.exchange.commands if each[0] == call["call_id"]]
        assert commands[-1][0] == "transfer"
        assert commands[-1][1].lstrip("+") == "15550100009"
        assert application.server.logged("transferred to +15550100009")

    def test_the_bot_hangs_up(self, application: Application) -> None:
        call = application.place(Callee(stays_s=10), parameters={"hang_up": "1"})
        assert (call["stage"], call["ended_by"]) == ("completed", "bot")


def test_every_providers_stream_is_served_and_counted(tmp_path: Path) -> None:
    """Some by their address, some by their first messages; on localhost without tokens."""

    async def talk(server: ServerProcess, dialect: Dialect, path: str) -> int:
        async with on_line(f"{server.url.replace('http', 'ws')}{path}", dialect) as line:
            await line.speak(tone(440, 300, dialect.wire.sample_rate), paced=True)
            for _ in range(200):
                if len(line.heard()) > dialect.wire.sample_rate * 2 * 0.2:
                    break
                await asyncio.sleep(0.02)
            assert level(line.heard()) > 500, dialect.name
            await line.send(dialect.stop())
        return len(line.heard())

    async def main(server: ServerProcess) -> None:
        streams = [(make(), f"ws/{make.name}") for make in DIALECTS]
        streams.append((DIALECTS[0](call_id="CA" + "7" * 32), "ws"))
        await asyncio.gather(*(talk(server, *each) for each in streams))

    arguments = ["--workers", "1", "--record", "calls", "--metrics-port", "0", "--log-format", "json"]
    with server_process(tmp_path, BOT, *arguments, PYTHONPATH=ROOT) as server:
        asyncio.run(main(server))
        url = str(server.ready["metrics_url"])
        # A call is counted once its bot has ended, too.
        wait_until(lambda: metric(url, "wsvoice_calls_total") == len(DIALECTS) + 1, "every call is counted")
        assert metric(url, "wsvoice_active_calls") == 0
        for make in DIALECTS:
            ended = metric(url, "wsvoice_calls_total", provider=make.name)
            assert ended == (2 if make.name == "twilio" else 1), make.name
        assert metric(url, "wsvoice_audio_bytes_total", direction="in") > 0
        assert metric(url, "wsvoice_audio_bytes_total", direction="out") > 0
        recordings = list((tmp_path / "calls").rglob("*.wav"))
        assert len(recordings) == len(DIALECTS) + 1
        for each in recordings:
            with wave.open(str(each)) as recording:
                assert recording.getnframes() > 8000 * 0.2
        # A stranger's nonsense is counted as if one process had read it.
        with connect(f"{server.url.replace('http', 'ws')}ws", compression=None) as socket:
            socket.send("{}")
        wait_until(lambda: metric(url, "wsvoice_refusals_total", kind="stream", reason="bad_start") == 1, "counted")
        *lines, _ = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
        assert {"time", "level", "call", "message", "logger"} <= lines[-1].keys()


def call_sid(number: int) -> str:
    return f"CA{number:032d}"


def test_limits_end_calls_and_so_do_others(tmp_path: Path) -> None:
    def url() -> str:
        return f"{server.url}twilio"

    async def main(server: ServerProcess) -> None:
        async with dialled(await asyncio.to_thread(announce, url(), call_sid(1)), call_sid(1)) as carrier:
            await carrier.speak(PIECE)
            await carrier.until("media")
            # What nobody announced is known only once its stream starts.
            async with on_line(f"{server.url.replace('http', 'ws')}ws/asterisk", Asterisk()) as refused:
                assert (await refused.closed())[0] == 1008
            metrics = str(server.ready["metrics_url"])
            assert metric(metrics, "wsvoice_refusals_total", kind="stream", reason="per_number") == 1
            found = await asyncio.to_thread(look_at, server)
            assert [each.id for each in found.calls] == [call_sid(1)]
            # What the provider reports reaches the bot, whichever process that is in.
            report = {**FORM, "CallSid": call_sid(1), "CallStatus": "in-progress"}
            report |= {"CallbackSource": "call-progress-events"}
            answer = await asyncio.to_thread(httpx.post, f"{server.url}twilio/status", data=report)
            assert answer.status_code < 300
            await asyncio.to_thread(server.logged, 'status {"event": "in-progress"')
            # The same call's stream is opened anew before the first one ends.
            again = await asyncio.to_thread(announce, url(), call_sid(1))
            async with dialled(again, call_sid(1)) as second:
                await second.speak(PIECE)
                await second.until("media")
                await carrier.hang_up()
                await second.speak(PIECE)
                await end_call(server, call_sid(1))
                await asyncio.wait_for(second.socket.wait_closed(), 5)
                assert second.socket.close_code == 1000
        async with dialled(await asyncio.to_thread(announce, url(), call_sid(3)), call_sid(3)) as carrier:
            await carrier.speak(PIECE)
            await asyncio.wait_for(carrier.socket.wait_closed(), 8)
            assert [each["left_s"] > 0 for each in told(server, "ending")] == [True]
        await asyncio.to_thread(server.logged, "has lasted 3 s (--max-call-time)")

    arguments = ["--workers", "2", "--max-lag", "0", "--metrics-port", "0"]
    limits = ["--max-call-time", "3s", "--max-calls-per-number", "1"]
    state = str(tmp_path / "state")
    with server_process(tmp_path, BOT, *arguments, *limits, PYTHONPATH=ROOT, WSVOICE_STATE_DIR=state) as server:
        asyncio.run(main(server))
        assert "Traceback" not in server.log()


async def end_call(server: ServerProcess, call_id: str) -> None:
    """Have ``wsvoice calls end`` end a call."""
    environ = clean_environ(WSVOICE_STATE_DIR=str(server.log_file.parent / "state"))
    process = await asyncio.create_subprocess_exec(
        "python", "-m", "wsvoice", "calls", "end", call_id, env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors


def test_clients_are_served_with_what_they_sent_before(tmp_path: Path) -> None:
    async def talk(url: str) -> None:
        clip = tone(500, 200, RATE)
        async with peer(url) as client:
            await client.say(clip)
            assert level(await client.until_heard(len(clip))) > 500

    async def main(server: ServerProcess) -> None:
        base = server.url.replace("http", "ws")
        await talk(f"{base}ws-client")
        answer = await asyncio.to_thread(httpx.post, f"{server.url}start", json={"body": {"language": "de"}})
        url = f"{answer.json()['wsUrl']}/{answer.json()['token']}"
        await talk(url)
        # The token was for one client.
        with pytest.raises(InvalidStatus):
            async with websockets.connect(url):
                pass

    source = """
        import json

        from loguru import logger

        from tests.runner import bots


        async def bot(runner_args):
            logger.info("begins {}", json.dumps(runner_args.body))
            await bots.run(
                runner_args.transport, bots.Echo(), audio_in_sample_rate=16000, audio_out_sample_rate=16000
            )
    """
    arguments = ["-t", "websocket", "--workers", "2", "--metrics-port", "0"]
    with server_process(tmp_path, source, *arguments, PYTHONPATH=ROOT) as server:
        asyncio.run(main(server))
        assert told(server, "begins") == [{}, {"language": "de"}]
        url = str(server.ready["metrics_url"])
        wait_until(lambda: metric(url, "wsvoice_calls_total", provider="websocket", outcome="caller") == 2, "counted")
        assert metric(url, "wsvoice_audio_bytes_total", direction="in") > 0


#: What is counted of calls, in whatever process they run.
COUNTED = re.compile(
    r"^(wsvoice_(?:active_calls|calls_total|webhooks_total|refusals_total|underruns_total|audio_bytes_total|\w+_count)"
    r"(?:\{.*\})?) (\S+)$",
    re.MULTILINE,
)


def test_the_metrics_are_those_of_one_process(tmp_path: Path) -> None:
    async def place(url: str) -> None:
        calls = (kinds.RETURNS, kinds.RAISES, kinds.STUTTERS, kinds.ECHOES)
        await asyncio.gather(*(kinds.call(url, each) for each in calls))
        await kinds.start_badly(url, "CAbadly")
        await kinds.refuse_a_stream(url)

    def counted(name: str, *arguments: str) -> dict[str, float]:
        folder = tmp_path / name
        folder.mkdir()
        bot = "from tests.runner.kinds import bot\n"
        with server_process(folder, bot, "-t", "twilio", "--metrics-port", "0", *arguments, PYTHONPATH=ROOT) as server:
            asyncio.run(place(server.url))
            url = str(server.ready["metrics_url"])
            wait_until(lambda: metric(url, "wsvoice_calls_total") == 5, "every call is counted")
            assert metric(url, "wsvoice_active_calls") == 0
            return {name: float(value) for name, value in COUNTED.findall(httpx.get(url).text)}

    with ThreadPoolExecutor() as both:
        alone, shared = both.map(lambda each: counted(*each), [("one",), ("two", "--workers", "2")])
    assert alone == shared
    assert alone["wsvoice_underruns_total"] == 1
    assert sum(value for name, value in alone.items() if name.startswith("wsvoice_calls_total")) == 5
