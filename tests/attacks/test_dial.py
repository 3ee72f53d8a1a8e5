"""A hostile server against ``wsvoice dial``: the call ends in time, in bounded memory, and with a reason."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.dial import fake_bots
from tests.dial.fake_bots import FakeBot, Line, fake_bot, http_answer, twiml
from wsvoice import http
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.addresses import AddressPolicy
from wsvoice.dial.caller import dial
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import HttpError
from wsvoice.providers.base import HttpRequest

QUICK = Timeouts(close_s=0.5, webhook_s=3.0, connect_s=3.0)
MIB = 1024 * 1024


def call(
    behaviour: fake_bots.Behaviour = fake_bots.silent,
    *,
    within_s: float = 15.0,
    timeouts: Timeouts = QUICK,
    served: dict[str, Any] | None = None,
    events: list[TimelineEvent] | None = None,
    **settings: Any,
) -> CallReport:
    """Serve a bot, dial it, and return the report; fail unless the call is over in time."""

    async def place() -> CallReport:
        async with fake_bot(behaviour, **(served or {})) as bot:
            config = DialConfig(**{"target": bot.url, "listen_s": 0.0, "response_timeout_s": 0.5, **settings})
            seen = events if events is not None else []
            async with asyncio.timeout(within_s):
                return await dial(config, on_event=seen.append, timeouts=timeouts)

    return asyncio.run(place())


def peak_mb(what: Callable[[], object]) -> float:
    """Return how much memory `what` took at its worst."""
    tracemalloc.start()
    try:
        what()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


# -- What a webhook answers --


def raw(head: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n{head}\r\n".encode() + body


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_packed_answer_is_not_unpacked_beyond_the_limit(encoding: str) -> None:
    packed = (gzip.compress if encoding == "gzip" else zlib.compress)(bytes(40 * MIB), 9)
    answer = raw(f"Content-Encoding: {encoding}\r\nContent-Length: {len(packed)}\r\n", packed)
    seen: list[CallReport] = []
    peak = peak_mb(lambda: seen.append(call(served={"webhook": lambda bot, number: answer})))
    assert seen[0].failure is not None
    assert "longer than 256 KiB" in seen[0].failure
    assert peak < 20


def test_a_packed_answer_of_usual_size_is_read() -> None:
    def webhook(bot: FakeBot, number: int) -> bytes:
        packed = gzip.compress(twiml(bot.stream_url).encode())
        return raw(f"Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n", packed)

    assert call(served={"webhook": webhook}, duration_s=0.1).stream_id


def test_nothing_packed_is_asked_for() -> None:
    async def place() -> str:
        async with fake_bot(fake_bots.silent) as bot:
            await http.send(HttpRequest("POST", bot.url), timeout_s=5)
            return bot.webhooks[0][2]["accept-encoding"]

    assert asyncio.run(place()) == "identity"


def test_an_encoding_that_nobody_asked_for_is_named() -> None:
    answer = raw("Content-Encoding: br\r\nContent-Length: 3\r\n", b"abc")
    assert "not asked for (br)" in str(call(served={"webhook": lambda bot, number: answer}).failure)
    answer = raw("Content-Encoding: gzip\r\nContent-Length: 3\r\n", b"abc")
    assert "gave no response" in str(call(served={"webhook": lambda bot, number: answer}).failure)


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask(peer: Peer, *, timeout_s: float = 0.5, kind: str = "webhook") -> CallReport:
    """Dial a server that does what `peer` does with every connection."""

    async def place() -> CallReport:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                await peer(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        scheme = "http" if kind == "webhook" else "ws"
        config = DialConfig(target=f"{scheme}://127.0.0.1:{port}/")
        async with asyncio.timeout(15):
            report = await dial(config, timeouts=Timeouts(webhook_s=timeout_s, connect_s=timeout_s))
        server.close()
        return report

    return asyncio.run(place())


async def endless_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for _n in range(20_000):
        writer.write(b"X-More: " + b"a" * 1000 + b"\r\n")
        await writer.drain()


async def dripped_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def dripped_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _n in range(1000):
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.05)


async def endless_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _n in range(2_000):
        writer.write(b"10000\r\n" + b"a" * 65536 + b"\r\n")
        await writer.drain()


async def endless_continues(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)
        await writer.drain()
        await asyncio.sleep(0.001)


async def nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


@pytest.mark.parametrize("kind", ["webhook", "stream"])
@pytest.mark.parametrize(
    "peer",
    [endless_head, dripped_head, dripped_body, endless_body, endless_continues, nothing],
    ids=lambda f: f.__name__,
)
def test_an_answer_that_has_no_end(peer: Peer, kind: str) -> None:
    seen: list[CallReport] = []
    assert peak_mb(lambda: seen.append(ask(peer, kind=kind))) < 20
    assert seen[0].failure
    assert len(seen[0].failure) < 400


# -- Where an answer sends the caller --


@pytest.mark.parametrize(
    "url",
    [
        "ws://169.254.169.254/latest/meta-data",
        "ws://[fe80::1]/",
        "ws://[::ffff:169.254.169.254]/",
        "ws://[64:ff9b::a9fe:a9fe]/",
        "ws://[2002:a9fe:a9fe::]/",
        "ws://2852039166/",
        "ws://0xa9.0xfe.0xa9.0xfe/",
        "ws://0.0.0.0:1/",
        "ws://[::]:1/",
        "ws://100.100.100.200/",
        "ws://[fd00:ec2::254]/",
        "ws://224.0.0.1/",
        "ws://255.255.255.255/",
    ],
)
def test_no_answer_sends_the_caller_to_an_address_that_no_call_goes_to(url: str) -> None:
    """Not even one of a server on this machine."""
    report = call(served={"webhook": lambda bot, number: http_answer(twiml(url))}, allow_private=True)
    assert report.connect_ms is None
    assert "is not dialled: " in str(report.failure)
    assert "an address that is never dialled" in str(report.failure)


def test_no_redirect_does() -> None:
    served = {"webhook": lambda bot, number: http_answer("", "302 Found", Location="http://169.254.169.254/latest/")}
    report = call(served=served)
    assert report.failure is not None
    assert report.failure.startswith(
        "http://169.254.169.254/latest/ is not dialled: 169.254.169.254 is an address that"
    )


Names = dict[str, list[str]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A name server of the test's own: its answers by name, each the next one's of a name that has several."""
    known: Names = {}

    async def getaddrinfo(self: object, host: str, port: object, **_: object) -> list[Any]:
        addresses = known.get(host, [host])
        # The last answer stays.
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port or 0))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return known


def reach(origin: str, url: str, *, allow_private: bool = False) -> list[str] | str:
    try:
        return list(asyncio.run(AddressPolicy(origin, allow_private=allow_private).addresses(url)))
    except HttpError as error:
        return error.message


@pytest.mark.parametrize("private", ["10.1.2.3", "127.0.0.1", "192.168.0.1", "100.64.0.1", "::1", "fc00::1"])
def test_only_a_private_server_sends_the_caller_to_private_addresses(names: Names, private: str) -> None:
    names |= {"bot.example.com": ["93.184.215.14"], "intranet": ["10.0.0.1"], "inside.example.com": [private]}
    refused = reach("https://bot.example.com/", "wss://inside.example.com/ws")
    assert refused == (
        f"wss://inside.example.com/ws is not dialled: inside.example.com ({private}) is a private address,"
        " and the server that names it is public; --allow-private dials it"
    )
    assert reach("https://bot.example.com/", "wss://inside.example.com/ws", allow_private=True) == [private]
    assert reach("http://intranet/", "wss://inside.example.com/ws") == [private]
    assert reach("https://bot.example.com/", "wss://bot.example.com/ws") == ["93.184.215.14"]
    assert reach(f"http://{'[' + private + ']' if ':' in private else private}/", "ws://intranet/") == ["10.0.0.1"]


def test_a_name_that_leads_elsewhere_the_second_time_is_not_asked_again(names: Names) -> None:
    names["bot.example.com"] = ["93.184.215.14", "169.254.169.254"]
    turns = AddressPolicy("https://bot.example.com/")

    async def twice() -> list[Any]:
        return [await turns.addresses(f"{scheme}://bot.example.com/") for scheme in ("https", "wss")]

    assert asyncio.run(twice()) == [["93.184.215.14"], ["93.184.215.14"]]
    # Nor that of a stream: what was looked at is what is connected to.
    names |= {"bot.example.com": ["93.184.215.14"], "stream.example.com": ["127.0.0.1", "169.254.169.254"]}
    assert "127.0.0.1" in str(reach("https://bot.example.com/", "wss://stream.example.com/"))


def test_the_address_that_was_looked_at_is_connected_to(names: Names) -> None:
    """A name that would lead to a closed port the second time: to the webhook, a redirect and the stream."""
    names |= {
        name: ["127.0.0.1", "127.66.66.66"] for name in ("first.example.com", "second.example.com", "third.example.com")
    }

    def webhook(bot: FakeBot, number: int) -> bytes:
        if number == 1:
            return http_answer("", "307 Moved", Location=bot.url.replace("127.0.0.1", "second.example.com"))
        return http_answer(twiml(bot.stream_url.replace("127.0.0.1", "third.example.com")))

    async def place() -> tuple[FakeBot, CallReport]:
        async with fake_bot(fake_bots.silent, webhook=webhook) as bot:
            config = DialConfig(target=bot.url.replace("127.0.0.1", "first.example.com"), duration_s=0.1)
            return bot, await dial(config, timeouts=QUICK)

    bot, report = asyncio.run(place())
    assert report.stream_id, report.failure
    # The names are still what the server sees.
    hosts = [headers["host"].partition(":")[0] for _, _, headers, _ in bot.webhooks]
    assert hosts == ["first.example.com", "second.example.com"]
    [upgrade] = bot.upgrades
    assert dict(upgrade)["Host"].startswith("third.example.com:")


# -- What a stream sends --


ULAW_SILENCE = b"\xff"
LOUD_ULAW = b"\x00\x80" * 80


def flooding(*messages: bytes, pause_s: float = 0.0) -> fake_bots.Behaviour:
    """Send these payloads of audio again and again, whatever the caller does."""

    async def behaviour(line: Line) -> None:
        listener = asyncio.create_task(line.listen())
        while not listener.done():
            for message in messages:
                await line.say(message)
            await asyncio.sleep(pause_s)

    return behaviour


async def marks_for_ever(line: Line) -> None:
    listener = asyncio.create_task(line.listen())
    # Behind audio, so that none of them comes back.
    await line.say(ULAW_SILENCE * 400_000)
    number = 0
    while not listener.done():
        number += 1
        await line.mark(f"{number:08}" + "n" * 2000)
        await asyncio.sleep(0)


async def clears_for_ever(line: Line) -> None:
    listener = asyncio.create_task(line.listen())
    while not listener.done():
        await line.say(LOUD_ULAW)
        await line.clear()
        await asyncio.sleep(0)


async def nonsense_for_ever(line: Line) -> None:
    listener = asyncio.create_task(line.listen())
    number = 0
    while not listener.done():
        number += 1
        await line.socket.send(json.dumps({"event": f"event-{number}", "streamSid": "x", "pad": "p" * 1000}))
        await asyncio.sleep(0)


IMPATIENT = Timeouts(call_s=2.0, close_s=0.5)


def test_ten_times_real_time_for_ever_ends_at_the_limit() -> None:
    report = call(flooding(LOUD_ULAW * 10, pause_s=0.02), timeouts=IMPATIENT)
    assert report.failure == ("the call was not done within 2 s, and was hung up; --duration sets another time")
    assert report.ended_by == "caller"
    assert 1900 < report.duration_ms < 10_000


def test_the_limit_is_for_calls_without_a_duration() -> None:
    report = call(flooding(LOUD_ULAW * 2, pause_s=0.02), timeouts=Timeouts(call_s=0.2, close_s=0.5), duration_s=0.6)
    assert 500 < report.duration_ms < 5_000
    assert report.failure is None or "not done within" not in report.failure


#: Dials what it is told to, one after the other, and says each time how much memory it has taken at its worst.
CALLER = """
import asyncio, json, sys
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.dial.timeouts import Timeouts

for line in sys.stdin:
    timeouts = Timeouts(call_s=0.6, close_s=0.5)
    told = []
    config = DialConfig(target=line.strip(), listen_s=0, response_timeout_s=30)
    report = asyncio.run(dial(config, on_event=told.append, timeouts=timeouts))
    # Not `ru_maxrss`, which is that of the process that started this one if it was larger.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak_mb = int(status["VmHWM"].split()[0]) / 1e3
    print(json.dumps([peak_mb, len(told), report.to_dict()]), flush=True)
"""


@pytest.fixture(scope="module")
def caller() -> Iterator[subprocess.Popen[str]]:
    """
    Start a caller in a process of its own, whose memory is looked at; the server is not the one that is measured.

    What its calls have taken at their worst is more than each of them took.
    """
    command = [sys.executable, "-c", CALLER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(flooding(ULAW_SILENCE * 10 * MIB), id="huge"),
        pytest.param(flooding(ULAW_SILENCE * 500_000), id="large"),
        pytest.param(flooding(*[ULAW_SILENCE] * 50), id="tiny"),
        pytest.param(marks_for_ever, id="marks"),
        pytest.param(clears_for_ever, id="clears"),
        pytest.param(nonsense_for_ever, id="nonsense"),
    ],
)
def test_a_flood_ends_in_time_and_in_bounded_memory(
    caller: subprocess.Popen[str], behaviour: fake_bots.Behaviour
) -> None:
    assert caller.stdin is not None
    assert caller.stdout is not None

    async def place() -> list[Any]:
        async with fake_bot(behaviour) as bot:
            print(bot.url, file=caller.stdin, flush=True)
            try:
                async with asyncio.timeout(40):
                    output = await asyncio.to_thread(caller.stdout.readline)
            except TimeoutError:
                # Or the thread would wait for ever.
                caller.kill()
                raise
            result: list[Any] = json.loads(output)
            return result

    peak_mb, n_told, report = asyncio.run(place())
    assert report["failure"], report
    assert report["ended_by"] == "caller"
    # 60 MB of them are Python, numpy and what is idle.
    assert peak_mb < 250
    assert n_told < 2500
    assert len(json.dumps(report)) < 200_000


async def stays_silent(_: Line) -> None:
    await asyncio.sleep(2)


async def never_closes(line: Line) -> None:
    await line.say(LOUD_ULAW * 50)
    line.socket.transport.pause_reading()
    await asyncio.sleep(2)


@pytest.mark.parametrize("behaviour", [stays_silent, never_closes])
def test_a_server_that_does_nothing_more_is_let_go(behaviour: fake_bots.Behaviour) -> None:
    report = call(behaviour, timeouts=IMPATIENT, duration_s=0.5)
    assert report.ended_by == "caller"
    assert report.failure
