"""The log of a server whose bot has ideas of its own about logging."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.attacks import raw_http
from tests.process import ServerProcess, server_process
from tests.runner import bots
from tests.runner.carrier import FORM, dialled
from tests.signals import tone
from wsvoice.runner import logs
from wsvoice.runner.logs import short_id

#: How every line of ours begins.
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) +(\S+) ")
CALL = "CA0123456789abcdef0123456789abcdef"

#: As in pipecat's examples, and a file besides.
REPLACES_THE_SINK = """
    import sys
    from loguru import logger

    logger.remove(0)
    logger.add(sys.stderr, level="DEBUG")
    kept = logger.add("bot.log", level="DEBUG", format="{level} {extra[call]} {message}")
    dropped = logger.add("dropped.log")
    logger.remove(dropped)

    async def bot(runner_args):
        logger.info("of the bot")
        logger.debug("quietly of the bot")
        logger.warning("a stranger's \\x1b[31m words\\n12:00:00.000 INFO    CA1 forged")
        async for _ in runner_args.websocket.iter_text():
            pass
        try:
            raise KeyError("within")
        except KeyError:
            raise RuntimeError("red \\x1b[31m\\x07 words\\n12:00:00.000 INFO    CA2 forged \\u202e" + "x" * 100_000)
"""

REMOVES_ALL = """
    import logging.config
    import sys
    from loguru import logger

    logger.remove()
    logging.config.dictConfig({"version": 1})

    async def bot(runner_args):
        logger.remove()
        logger.configure(handlers=[{"sink": sys.stderr, "format": "OWN {message}"}], extra={"mine": 1}, patcher=None)
        logger.info("of the bot")
        async for _ in runner_args.websocket.iter_text():
            pass
        try:
            logger.remove(12345)
        except ValueError:
            logger.info("there is no such handler")
"""

WRITES_BY_ITSELF = """
    import sys
    from loguru import logger
    from rich.console import Console

    logger.add(print, level="WARNING", format="OWN {message}")
    logger.add(sys.stderr.write, level="WARNING", format="OWN {message}")
    logger.add(Console(stderr=True).print, level="WARNING", format="OWN {message}")
    everything = []
    logger.add(everything.append)

    async def bot(runner_args):
        logger.configure(patcher=lambda record: record["extra"].update(mine=1), activation=[("", False)])
        logger.enable("bot")
        logger.error("long " + "x" * 100_000)
        logger.error("long " + "\\x1b" * 100_000)
        logger.error("of the bot")
        assert any("of the bot" in each for each in everything)
        logger.disable("wsvoice")
        async for _ in runner_args.websocket.iter_text():
            pass
"""

USES_LOGGING = """
    import asyncio
    import gc
    import logging
    import warnings

    logging.basicConfig(level=logging.INFO, format="OWN %(message)s", force=True)

    async def fails():
        raise RuntimeError("nobody looks \\x1b[31m")

    async def bot(runner_args):
        logging.getLogger("mine").info("of the bot")
        asyncio.create_task(fails())
        await asyncio.sleep(0.05)
        gc.collect()
        warnings.warn("old ways \\x1b[31m")
        logging.getLogger("uvicorn.error").error("of uvicorn \\x1b[31m %s", 1)
        logging.getLogger("websockets.client").warning("of websockets")
        async for _ in runner_args.websocket.iter_text():
            pass
"""

#: Has never heard of logging; or, where the call says so, has a processor that raises for each frame.
PLAIN = """
    import logging

    from pipecat.frames.frames import InputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.runner.utils import create_transport
    from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
    from pipecat.workers.runner import WorkerRunner


    class Broken(FrameProcessor):
        async def process_frame(self, frame, direction):
            await super().process_frame(frame, direction)
            if isinstance(frame, InputAudioRawFrame):
                raise LookupError("no such thing")
            await self.push_frame(frame, direction)


    async def bot(runner_args):
        if (runner_args.body or {}).get("do") == "raise":
            await raising(runner_args)
            return
        logging.getLogger("library").warning("of a library")
        logging.getLogger("library").info("not asked for")
        async for _ in runner_args.websocket.iter_text():
            pass


    async def raising(runner_args):
        params = {"twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True)}
        transport = await create_transport(runner_args, params)
        worker = PipelineWorker(Pipeline([transport.input(), Broken(), transport.output()]))
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await runner.run()
"""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("plain"), PLAIN, "-t", "twilio", "--verify", "off") as server:
        yield server


def log_of_a_call(server: ServerProcess, call_sid: str = CALL, *, since: int = 0) -> list[str]:
    """Let a call be made; return the lines of the log, without its first `since` characters."""

    async def main() -> None:
        async with dialled(server.url.replace("http", "ws", 1) + "ws", call_sid) as carrier:
            await asyncio.to_thread(server.logged, f"call {call_sid}", since=since)
            await asyncio.sleep(0.3)
            await carrier.stop()

    asyncio.run(main())
    return server.logged(f"{short_id(call_sid)} ended by", timeout_s=20, since=since).splitlines()


def read_when(file: Path, needle: str, timeout_s: float = 10) -> str:
    """Wait until a file of the bot's holds `needle`, as the terminal does a moment earlier; return all of it."""
    deadline = time.monotonic() + timeout_s
    while needle not in (text := file.read_text()):
        assert time.monotonic() < deadline, text
        time.sleep(0.02)
    return text


def holding(lines: list[str], needle: str) -> list[str]:
    return [line for line in lines if needle in line]


def test_a_bot_that_replaces_logurus_sink(tmp_path: Path) -> None:
    with server_process(tmp_path, REPLACES_THE_SINK, "-t", "twilio") as server:
        lines = log_of_a_call(server)
        server.logged("… (")
        text = server.log()
        kept = read_when(tmp_path / "bot.log", "ended by")
    for once in ("stream started", "ended by", " of the bot", "quietly of the bot", "the bot raised RuntimeError"):
        assert len(holding(lines, once)) == (2 if once == " of the bot" else 1), (once, lines)
    (own,) = holding(lines, "stream started")
    assert LINE.match(own)
    # The bot's sink shows what ours does not, in the bot's own format.
    (quiet,) = holding(lines, "quietly of the bot")
    assert not LINE.match(quiet)
    assert "DEBUG" in quiet
    # A file of the bot's holds everything.
    for each in ("stream started", "of the bot", "quietly of the bot", "ended by"):
        assert each in kept
    assert CALL in kept
    assert "stream started" not in (tmp_path / "dropped.log").read_text()
    # What a stranger says reaches the terminal spelled out, in a traceback too, and bounded.
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert "red \\x1b[31m\\x07 words" in text
    assert not re.search(r"^12:00:00.000", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) < 5000
    assert "KeyError: 'within'" in text
    assert "bot.py" in text


def test_a_bot_that_removes_every_sink(tmp_path: Path) -> None:
    with server_process(tmp_path, REMOVES_ALL, "-t", "twilio") as server:
        lines = log_of_a_call(server)
        other = log_of_a_call(server, "CA2")
    for once in ("stream started", "ended by", "of the bot", "there is no such handler"):
        found = holding(lines, once)
        assert len(found) == 1, (once, lines)
        assert LINE.match(found[0])
    assert len(holding(other, "ended by")) == 2


def test_a_bot_that_writes_records_by_itself(tmp_path: Path) -> None:
    """Nor does a patcher of its own take the server's care off, or its silence silence the server."""
    with server_process(tmp_path, WRITES_BY_ITSELF, "-t", "twilio") as server:
        lines = log_of_a_call(server)
        log = server.log()
    assert len(holding(lines, "of the bot")) == 1
    assert len(holding(lines, "ended by the caller")) == 1
    assert not holding(lines, "OWN")
    assert max(map(len, lines)) < 2200
    assert len(re.findall(r"… \(\d+ characters\)", log)) == 2


def test_a_bot_that_uses_logging(tmp_path: Path) -> None:
    with server_process(tmp_path, USES_LOGGING, "-t", "twilio") as server:
        lines = log_of_a_call(server)
    assert holding(lines, "of the bot") == ["OWN of the bot"]
    for once in ("of uvicorn", "of websockets", "Task exception was never retrieved", "old ways"):
        found = holding(lines, once)
        assert len(found) == (2 if once == "old ways" else 1), (once, lines)
        match = LINE.match(found[0])
        assert match
        # asyncio complains of a task when nobody's context is left.
        assert match[2] == "CA012345…cdef" or "never retrieved" in once
    assert not holding(lines, "\x1b")
    assert holding(lines, "nobody looks \\x1b[31m")
    assert holding(lines, "of uvicorn \\x1b[31m 1")


def test_a_bot_that_never_heard_of_logging(plain: ServerProcess) -> None:
    lines = log_of_a_call(plain, since=len(plain.log()))
    (line,) = holding(lines, "of a library")
    assert LINE.match(line)
    assert not holding(lines, "not asked for")


def test_ids_are_short_before_lines_and_whole_once(plain: ServerProcess) -> None:
    call_id = "v3:" + "k" * 60 + "end"
    lines = log_of_a_call(plain, call_id, since=len(plain.log()))
    (whole,) = holding(lines, call_id)
    assert "stream started" in whole
    matches = [match[2] for line in lines if (match := LINE.match(line))]
    assert set(matches) <= {"v3:kkkkk…kend", "-"}
    assert matches.count("v3:kkkkk…kend") >= 3


RAISES = """
    from loguru import logger

    async def bot(runner_args):
        logger.bind(call="CA1\\n2").info("quotes \\" and \\\\ and \\u2028 and \\x1b[31m and\\nlines, and ümlauts")
        logger.warning("long " + "x" * 100_000)
        raise RuntimeError("red \\x1b[31m words" + ("\\n'\\"" + "x" * 1900) * 1000)
"""


def test_lines_for_machines_are_json_objects(tmp_path: Path) -> None:
    with server_process(tmp_path, RAISES, "-t", "twilio", "--log-format", "json") as server:

        async def main() -> None:
            async with dialled(server.url.replace("http", "ws", 1) + "ws", CALL) as carrier:
                await carrier.closed()

        asyncio.run(main())
        log = server.logged("ended by an error")
    # What is for people, before the first line of the log, is as ever.
    head, brace, rest = log.partition("{")
    assert head.startswith("bot.py takes calls\n")
    lines = [json.loads(line) for line in (brace + rest).splitlines()]
    for line in lines:
        assert line.keys() - {"exception"} == {"time", "level", "call", "message", "logger"}
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        written = datetime.fromisoformat(line["time"])
        assert abs(time.time() - written.timestamp()) < 60
        assert line["level"] in ("INFO", "WARNING", "ERROR")
        for text in (line["message"], line["call"] or "", line.get("exception", "")):
            assert all(each.isprintable() or each == "\n" for each in text)
    assert max(len(line.encode()) for line in log.splitlines()) < 16 * 1024
    quotes, long, failed, ended = lines[-4:]
    assert quotes["call"] == "CA1\n    2"
    assert quotes["message"] == 'quotes " and \\ and \\u2028 and \\x1b[31m and\n    lines, and ümlauts'
    assert quotes["logger"] == "bot"
    assert long["message"].endswith("… (100005 characters)")
    assert (failed["level"], failed["call"], ended["call"]) == ("ERROR", CALL, CALL)
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert "characters) …" in failed["exception"]
    assert "exception" not in ended
    assert lines[0]["call"] is None or lines[0]["call"] == CALL


def refuse_webhooks(url: str) -> list[int]:
    bad = {**FORM, "CallSid": ""}
    with httpx.Client() as client:
        return [client.post(url, data=FORM).status_code for _ in range(30)] + [
            client.post(url + "twilio", data=bad).status_code for _ in range(30)
        ]


def refuse_streams(url: str) -> list[int]:
    port = httpx.URL(url).port
    return [raw_http.upgrade(url, "/ws/twilio/forged", f"Host: localhost:{port}") for _ in range(60)]


def refuse_clients(url: str) -> list[int]:
    with httpx.Client() as client:
        return [raw_http.upgrade(url, "/ws-client/forged", "Host: localhost") for _ in range(30)] + [
            client.post(url + "start", json={}, headers={"Via": "1.1 x"}).status_code for _ in range(30)
        ]


@pytest.mark.parametrize(
    ("refuse", "settings", "kinds"),
    [
        (refuse_webhooks, {"credentials": {"TWILIO_AUTH_TOKEN": "1"}}, {"webhook refused (403)": 60}),
        (refuse_streams, {}, {"stream refused (403)": 60}),
        (refuse_clients, {"transport": "websocket"}, {"client refused (403)": 30, "start refused (403)": 30}),
    ],
)
def test_a_flood_of_refusals_is_counted(
    serve: Callable[..., Any],
    refuse: Callable[[str], list[int]],
    settings: dict[str, Any],
    kinds: dict[str, int],
) -> None:
    server = serve(bots.echo, **settings)
    assert set(refuse(server.url)) == {403}
    for kind in kinds:
        assert len(server.lines("WARNING", kind)) == logs.REFUSAL_LINES
    for kind, count in kinds.items():
        # The minute's end; nobody waits for it.
        server.switchboard.refusals._end_window(kind)
        assert server.lines(f"{kind}: {count - logs.REFUSAL_LINES} more within 60 s")
    refuse(server.url)
    for kind in kinds:
        assert len(server.lines("WARNING", kind)) == 2 * logs.REFUSAL_LINES + 1


def test_the_count_of_refusals_comes_by_itself(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "REFUSAL_WINDOW_S", 1.0)
    monkeypatch.setattr(logs, "REFUSAL_LINES", 2)
    server = serve(bots.echo)
    for _ in range(5):
        httpx.post(server.url, data={})
    deadline = time.monotonic() + 10
    while not server.lines("webhook refused (400): ", "more within 1 s"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_processor_that_fails_for_each_frame_is_told_once_and_counted(plain: ServerProcess) -> None:
    async def main() -> None:
        async with dialled(plain.url.replace("http", "ws", 1) + "ws", CALL, do="raise") as carrier:
            await carrier.speak(tone(500, 1500, 8000))
            await carrier.stop()

    since = len(plain.log())
    asyncio.run(main())
    log = plain.logged("ended by the caller", since=since)
    # One traceback, with the class and the bot's own line.
    assert log.count("Traceback (most recent call last)") == 1
    assert "Broken raised LookupError: no such thing" in log
    assert 'raise LookupError("no such thing")' in log
    # pipecat's lines: each of the two kinds at its first time, and with its count.
    assert log.count("Error processing frame") <= 8, log
    counts = [int(count) for count in re.findall(r"\(and (\d+) more like this\)", log)]
    assert len(counts) >= 2
    assert max(counts) >= 10
