"""The phone's server, with pages that are none of ours and with some that are, all without a browser."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shlex
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from loguru import logger
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.browser_phone.pages import RATE, TOKEN, FakePage, Served, served
from tests.dial.fake_bots import FakeBot, Line, echo, fake_bot
from tests.signals import tone
from wsvoice.browser_phone.placed import scenario_path
from wsvoice.browser_phone.server import MAX_CALLS, MAX_PAGES, listen
from wsvoice.config import resolve_dial
from wsvoice.errors import UsageError
from wsvoice.providers import PROVIDERS
from wsvoice.trace import read_trace

Test = Callable[[Served, FakeBot], Awaitable[None]]


def with_bot(folder: Path, test: Test, behaviour: Callable[[Line], Awaitable[None]] = echo, **settings: Any) -> FakeBot:
    """Run a test with a bot, and a phone that calls it."""

    async def run() -> FakeBot:
        async with asyncio.timeout(60), fake_bot(behaviour) as bot, served(folder, bot.url, **settings) as phone:
            await test(phone, bot)
        return bot

    return asyncio.run(run())


# Who may come in


def test_nobody_comes_in_without_the_token(tmp_path: Path) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            for path in (
                "",
                TOKEN[:-1] + "/",
                "wrong/",
                "wrong/assets/phone.js",
                f"wrong/{TOKEN}/",
                "calls/",
                "calls/x",
            ):
                answer = await client.get(f"http://{phone.host}/{path}")
                assert answer.status_code == 404, path
                assert TOKEN not in answer.text
            assert (await client.get(phone.url)).status_code == 200
            assert (await client.get(phone.url.rstrip("/"))).headers["location"].endswith(f"/{TOKEN}/")
            assert (await client.get(f"{phone.url}assets/../../x")).status_code == 404
            assert (await client.get(f"{phone.url}assets/%2e%2e%2fserver.py")).status_code == 404
            assert (await client.post(phone.url)).status_code == 405
        with pytest.raises(InvalidStatus, match="404"):
            async with connect(f"ws://{phone.host}/wrong/line", origin=f"http://{phone.host}"):  # type: ignore[arg-type]
                pass

    with_bot(tmp_path, test)


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1", "http://localhost:{port}"]
)
def test_no_other_page_connects(tmp_path: Path, origin: str | None) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        given: Any = origin and origin.format(port=phone.port)
        with pytest.raises(InvalidStatus, match="403"):
            async with connect(f"ws://{phone.host}/{TOKEN}/line", origin=given):
                pass

    with_bot(tmp_path, test)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "10.0.0.1:{port}", ""]
)
def test_no_other_name_leads_here(tmp_path: Path, host: str) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        name = host.format(port=phone.port)
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(phone.url, headers={"Host": name})
            assert answer.status_code in (400, 421)
            for own in ("localhost", "LOCALHOST", "127.0.0.1", "[::1]"):
                answer = await client.get(phone.url, headers={"Host": f"{own}:{phone.port}"})
                assert answer.status_code == 200

    with_bot(tmp_path, test)


def test_it_listens_on_this_machine_alone() -> None:
    with listen(0) as listening:
        listening.listen()
        address, port = listening.getsockname()
        assert address == "127.0.0.1"
        socket.create_connection((address, port), timeout=2).close()
        # Another address of the same machine; some systems have none but the first.
        with pytest.raises(OSError, match=r"refused|unreachable|timed out|assign"):
            socket.create_connection(("127.0.0.2", port), timeout=2).close()


def test_answers_are_kept_nowhere_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            for path in ("", "assets/phone.js", "assets/worklet.js", "assets/theme.css"):
                headers = (await client.get(phone.url + path)).headers
                assert (headers["cache-control"], headers["referrer-policy"]) == ("no-store", "no-referrer")
                assert headers["x-content-type-options"] == "nosniff"
                policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
                assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
                assert policy["script-src"] == policy["style-src"] == "'self'"
                sockets = [f"ws://{name}:{phone.port}" for name in ("127.0.0.1", "localhost")]
                assert policy["connect-src"].split() == ["'self'", *sockets]
            assert (await client.get(phone.url)).headers["x-frame-options"] == "DENY"

    with_bot(tmp_path, test)


SECRET = "s3cret-s3cret-s3cret"


def write_secret(folder: Path) -> None:
    (folder / ".env").write_text(f"TWILIO_AUTH_TOKEN={SECRET}\nTWILIO_ACCOUNT_SID=AC{'0' * 32}\n")
    assert SECRET in resolve_dial({"target": "http://127.0.0.1:9/"}, environ={}, cwd=folder).config.credentials.values()


def test_no_secret_reaches_the_page(tmp_path: Path) -> None:
    write_secret(tmp_path)

    async def tell_it(line: Line) -> None:
        await line.mark(f"the token is {SECRET}")
        await line.listen()

    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.until("event", kind="mark", text="mark 'the token is ***' was reached")
            await page.say(type="hang-up")
            await page.until("state", state="ended")
            assert SECRET not in json.dumps(page.told)
        # It was signed with, and told by the bot.
        assert "x-twilio-signature" in bot.webhooks[0][2]

    with_bot(tmp_path, test, tell_it)


def test_no_secret_is_in_what_is_said_of_a_failure(tmp_path: Path) -> None:
    write_secret(tmp_path)

    async def run() -> None:
        async with served(tmp_path, f"http://127.0.0.1:9/{SECRET}") as phone, phone.page() as page:
            # Whom it calls is what the user has named.
            page.told.clear()
            await page.dial()
            ended = await page.until("state", state="ended")
            assert "http://127.0.0.1:9/***" in ended["failure"]
            assert SECRET not in json.dumps(page.told)

    asyncio.run(run())


# A call


async def talk(page: FakePage, seconds: float = 0.6) -> bytes:
    """Say a tone, and return it."""
    said = tone(500, round(seconds * 1000), RATE)
    await page.speak(said)
    return said


def pitch_of(pcm: bytes, rate: int = RATE) -> float:
    samples = np.frombuffer(pcm, "<i2").astype(float)
    loud = np.flatnonzero(np.abs(samples) > 500)
    assert len(loud), "nothing was heard"
    samples = samples[loud[0] : loud[-1]]
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 4 * rate))) / 4)


async def hear_an_echo(page: FakePage) -> None:
    """Say a tone to a bot that repeats it, and hear it."""
    page.heard.clear()
    await talk(page)
    await page.until("turn")
    await page.listen(0.2)
    assert pitch_of(bytes(page.heard)) == pytest.approx(500, abs=8)


def test_a_call_from_the_first_ring_to_its_test(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            hello = page.told[0]
            assert [each["name"] for each in hello["providers"]] == list(PROVIDERS)
            await page.dial(**{"from": "+15551230001", "param": []})
            await page.until("state", state="ringing", provider="twilio")
            await page.until("state", state="in-call", call=1)
            await talk(page)
            await page.say(type="press", keys="5")
            await page.until("event", kind="digit", text="the caller presses 5")
            # It may have been told before the key was.
            told = [each for each in page.told if each["type"] == "turn" and each["number"] == 1]
            turn = told[-1] if told else await page.until("turn", number=1)
            assert turn["wait"] < 5000
            assert pitch_of(bytes(page.heard)) == pytest.approx(500, abs=5)
            await page.say(type="hang-up")
            ended = await page.until("state", state="ended")
            assert (ended["by"], ended["verdict"], ended["failure"]) == ("caller", "passed", None)
            assert [each["kind"] for each in page.told if each["type"] == "event"].index("started") > 0
            await look_at(phone, ended["page"])
            await save(page, tmp_path)
        [line] = bot.lines
        assert line.messages[-1]["event"] == "stop"
        assert [each["dtmf"]["digit"] for each in line.messages if each["event"] == "dtmf"] == ["5"]
        assert b"From=%2B15551230001" in bot.webhooks[0][3]

    with_bot(tmp_path, test)


async def look_at(phone: Served, path: str) -> None:
    """Look at the page of a call, which has no token in its address, and none of the phone's rights."""
    async with httpx.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://{phone.host}{path}")
        assert answer.status_code == 200
        assert "+15551230001" in answer.text
        assert TOKEN not in answer.text
        assert answer.headers["content-security-policy"] == "sandbox allow-scripts; frame-ancestors 'self'"
        assert (await client.get(f"http://{phone.host}{path}x")).status_code == 404


async def save(page: FakePage, folder: Path) -> None:
    """Save a call as a test, once only, and nowhere else."""
    await page.say(type="save", call=1, file="greeting")
    saved = await page.until("saved")
    assert saved["files"][0] == "greeting.call.toml"
    assert all((folder / each).is_file() for each in saved["files"])
    assert "+15551230001" in (folder / "greeting.call.toml").read_text()
    for file, complaint in {
        "greeting.call.toml": "is there already",
        "../outside": "is outside of",
        "/tmp/outside": "is outside of",
        "missing/one": "is not there",
        ".call.toml": "is outside of",
    }.items():
        await page.say(type="save", call=1, file=file)
        assert complaint in (await page.until("saved"))["message"], file
    await page.say(type="save", call=7, file="")
    assert "not kept" in (await page.until("saved"))["message"]


@pytest.mark.parametrize("name", ["a", "a.call.toml", "a.call", "a.toml"])
def test_a_tests_name_may_be_written_as_one_likes(tmp_path: Path, name: str) -> None:
    assert scenario_path(name, tmp_path) == tmp_path.resolve() / "a.call.toml"


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_no_link_leads_a_test_outside(tmp_path: Path) -> None:
    folder, outside = tmp_path / "project", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    with pytest.raises(UsageError, match="is outside of"):
        scenario_path("link/a", folder)


@pytest.mark.skipif(os.name != "posix", reason="links")
@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/a", "loop/a", "a\nb", "a\0b", "\ud800"])
def test_what_no_file_can_be_called_is_said_and_the_call_goes_on(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")

    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            await call_and_hang_up(page)
            await page.dial()
            await page.until("state", state="in-call")
            await page.say(type="save", call=1, file=name)
            saved = await page.until("saved", call=1)
            assert "files" not in saved
            assert saved["message"]
            assert "NAME.call.toml" in saved["hint"] or "make the folder first" in saved["hint"]
            await page.say(type="press", keys="5")
            await page.until("event", kind="digit")

    with_bot(tmp_path, test)


def test_the_command_that_runs_a_test_can_be_typed(tmp_path: Path) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            await call_and_hang_up(page)
            for file in ("plain", "two words; ls", "-x"):
                await page.say(type="save", call=1, file=file)
                saved = await page.until("saved", call=1)
                wsvoice, test, named = shlex.split(saved["run"])
                assert (wsvoice, test) == ("wsvoice", "test")
                assert not named.startswith("-")
                assert Path(named) == Path(f"{file}.call.toml")

    with_bot(tmp_path, test)


def test_a_page_that_closes_is_a_caller_who_vanishes(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.until("state", state="in-call")
            await talk(page, 0.3)
        [line] = bot.lines
        await asyncio.wait_for(line.socket.wait_closed(), 10)
        assert "stop" not in [each["event"] for each in line.messages]
        assert line.socket.close_code == 1006
        await phone.phone.close()
        [kept] = (tmp_path / "kept").glob("*.call")
        with read_trace(kept) as trace:
            assert any("vanishes" in each.detail for each in trace.timeline)

    with_bot(tmp_path, test)


def test_a_call_that_is_given_up_while_it_rings_leaves_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(never_answer, "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        async with served(tmp_path, f"http://127.0.0.1:{port}/") as phone, phone.page() as page:
            await page.dial()
            await page.until("state", state="ringing")
            await page.say(type="hang-up")
            ended = await page.until("state", state="ended")
            assert (ended["by"], ended["verdict"]) == (None, None)
            assert "page" not in ended
        silent.close()

    asyncio.run(run())


def test_a_hang_up_right_after_the_dial_is_not_lost(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.say(type="hang-up")
            ended = await page.until("state", state="ended")
            assert (ended["by"], ended["verdict"]) == (None, None)
            assert bot.webhooks == []
            await page.dial()
            await page.until("state", state="in-call", call=2)

    with_bot(tmp_path, test)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    yield lines
    logger.remove(sink)


async def call_and_hang_up(page: FakePage) -> dict[str, Any]:
    """Place a call, hang up once it is answered, and return how it ended."""
    await page.dial()
    await page.until("state", state="in-call")
    await page.say(type="hang-up")
    return await page.until("state", timeout_s=20, state="ended")


def test_a_full_disk_costs_the_page_of_the_call_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    def fail(*_: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            ended = await call_and_hang_up(page)
        assert ended["by"] == "caller"
        assert "no space left" in ended["note"]
        assert "page" not in ended
        assert list((tmp_path / "kept").iterdir()) == []

    monkeypatch.setattr("wsvoice.browser_phone.placed.render_page", fail)
    with_bot(tmp_path, test)
    assert logged == []


def test_a_fault_in_a_call_is_told_and_logged_and_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    write_secret(tmp_path)

    def fail(*_: object) -> str:
        raise ZeroDivisionError(f"with {SECRET}")

    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            ended = await call_and_hang_up(page)
            [error] = [each for each in page.told if each["type"] == "error"]
            assert error["message"] == "wsvoice failed in this call: ZeroDivisionError: with ***"
            assert ended["by"] == "caller"
            assert list((tmp_path / "kept").iterdir()) == []
            monkeypatch.undo()
            assert "page" in await call_and_hang_up(page)

    monkeypatch.setattr("wsvoice.browser_phone.placed.render_page", fail)
    with_bot(tmp_path, test)
    [line] = logged
    assert line.startswith("ERROR call 1: Traceback")
    assert "ZeroDivisionError: with ***" in line
    assert SECRET not in line


def test_nobody_is_there(tmp_path: Path) -> None:
    async def run() -> None:
        async with served(tmp_path) as phone, phone.page() as page:
            await page.dial()
            ended = await page.until("state", state="ended")
            assert ended["verdict"] == "failed"
            assert "http://127.0.0.1:9/" in ended["failure"]

    asyncio.run(run())


def test_marks_and_clears_are_told_as_they_happen(tmp_path: Path) -> None:
    async def mark_and_clear(line: Line) -> None:
        await line.mark("before")
        await line.say(b"\x10\x90" * 8000)
        await line.mark("never")
        await asyncio.sleep(0.3)
        await line.clear()
        await line.listen()

    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.until("event", kind="mark", text="mark 'before' was reached")
            await page.until("event", kind="clear")

    with_bot(tmp_path, test, mark_and_clear)


def test_calls_are_hung_up_when_the_phone_is_put_down(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.until("state", state="in-call")
            await phone.phone.close()
            assert (await page.until("state", state="ended"))["by"] == "caller"
        assert bot.lines[0].messages[-1]["event"] == "stop"

    with_bot(tmp_path, test)


def test_a_bot_that_hangs_up(tmp_path: Path) -> None:
    async def once(line: Line) -> None:
        await line.say(b"\x10\x90" * 1600)
        await asyncio.sleep(0.6)

    async def test(phone: Served, _: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            ended = await page.until("state", state="ended")
            assert ended["by"] == "bot"

    with_bot(tmp_path, test, once)


# Pages that are none of ours


def test_a_second_call_waits_for_the_first(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial()
            await page.until("state", state="in-call")
            await page.dial()
            assert (await page.until("error"))["message"] == "a call goes on already"
            await page.say(type="press", keys="1")
            await page.until("event", kind="digit")
            await page.say(type="hang-up")
            await page.until("state", state="ended")
            await page.dial()
            await page.until("state", state="in-call", call=2)
        assert len(bot.lines) == 2

    with_bot(tmp_path, test)


@pytest.mark.parametrize("message", ["{", '{"type": "press", "keys": "drop table"}', bytes(7), bytes(2 * RATE)])
def test_a_wrong_message_ends_its_own_call_only(tmp_path: Path, message: str | bytes) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as other, phone.page() as page:
            for each in (other, page):
                await each.dial()
                await each.until("state", state="in-call")
            await page.socket.send(message)
            assert "the page" in (await page.until("error"))["message"]
            assert (await page.until("state", state="ended"))["by"] == "caller"
            await other.say(type="press", keys="3")
            await other.until("event", kind="digit")

    with_bot(tmp_path, test)


@pytest.mark.parametrize("flood", ["sound", "texts", "size"])
def test_a_flood_is_cut_off_and_others_go_on(tmp_path: Path, flood: str) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as other, phone.page() as page:
            for each in (other, page):
                await each.dial()
                await each.until("state", state="in-call")
            piece: str | bytes = {
                "sound": bytes(2 * RATE // 20),
                "texts": '{"type": "hang-up"}',
                "size": bytes(500_000),
            }[flood]
            with suppress(ConnectionClosed):
                async with asyncio.timeout(20):
                    while True:
                        await page.socket.send(piece)
                        await asyncio.sleep(0)
            await page.socket.wait_closed()
            assert page.socket.close_code == {"size": 1009}.get(flood, 1008)
            await hear_an_echo(other)

    with_bot(tmp_path, test)


def test_a_page_that_does_not_read_harms_nobody(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as other:
            reader, writer = await asyncio.open_connection("127.0.0.1", phone.port, limit=1024)
            writer.write(
                f"GET /{TOKEN}/line HTTP/1.1\r\nHost: {phone.host}\r\nOrigin: http://{phone.host}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            dial = json.dumps({"type": "dial", "rate": 192_000}).encode()
            writer.write(bytes([0x81, 0x80 | len(dial)]) + bytes(4) + dial)
            await other.dial()
            await other.until("state", state="in-call")
            await hear_an_echo(other)
            writer.transport.abort()

    with_bot(tmp_path, test)


def test_pages_and_calls_are_counted(tmp_path: Path) -> None:
    async def test(phone: Served, _: FakeBot) -> None:
        pages = [phone.page() for _ in range(MAX_PAGES)]
        opened = [await each.__aenter__() for each in pages]
        with pytest.raises(ConnectionClosed) as refused:
            async with phone.page():
                pass
        assert refused.value.rcvd is not None
        assert (refused.value.rcvd.code, refused.value.rcvd.reason) == (1013, "too many pages are open")
        for page in opened[:MAX_CALLS]:
            await page.dial()
            await page.until("state", state="in-call")
        await opened[MAX_CALLS].dial()
        assert "calls go on already" in (await opened[MAX_CALLS].until("error"))["message"]
        for each in pages:
            await each.__aexit__(None, None, None)

    with_bot(tmp_path, test)


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"transport": "nobody"}, "nobody is not served there", "twilio"),
        ({"quirk": ["reorder=1"]}, "Twilio has no quirk 'reorder'", "Telnyx has it"),
        ({"param": ["no-equals"]}, "takes key=value", "for example"),
        ({"param": ["a=\t"]}, "has a wrong 'param'", ""),
        ({"target": "bot.py"}, "bot.py is no address, and a page starts no bots", "wsvoice phone bot.py"),
        ({"target": "+15551234567"}, "is a phone number", "real call"),
        ({"target": "ftp://example.com/"}, "ftp:// cannot be dialled", "https://"),
    ],
)
def test_settings_are_checked_as_those_of_dial(
    tmp_path: Path, settings: dict[str, Any], message: str, hint: str
) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial(**settings)
            error = await page.until("error")
            assert message in error["message"]
            assert hint in error["hint"]
            await page.until("state", state="idle")
            await page.dial(transport="twilio")
            await page.until("state", state="in-call")

    with_bot(tmp_path, test, asks_target=True)


def test_a_page_dials_nobody_else_unless_it_is_asked_to(tmp_path: Path) -> None:
    async def test(phone: Served, bot: FakeBot) -> None:
        async with phone.page() as page:
            await page.dial(target="http://127.0.0.1:9/")
            await page.until("state", state="in-call")
        assert len(bot.webhooks) >= 1

    with_bot(tmp_path, test)
