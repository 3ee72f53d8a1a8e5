"""Bot files as targets: the whole of wsvoice, from the file to the report."""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.environment import clean_process
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.errors import AudioFileError

HANGS_UP = """
import asyncio, base64, os, sys, urllib.request

async def bot(runner_args):
    call = runner_args.call
    assert os.environ["TWILIO_ACCOUNT_SID"] == ""
    print("language", call.parameters["language"], file=sys.stderr)
    url = f"{os.environ['TWILIO_API_BASE_URL']}/2010-04-01/Accounts/{call.account_id}/Calls/{call.call_id}.json"
    users = base64.b64encode(f"{call.account_id}:{os.environ['TWILIO_AUTH_TOKEN']}".encode()).decode()
    request = urllib.request.Request(url, b"Status=completed", {"Authorization": f"Basic {users}"})
    answer = await asyncio.to_thread(urllib.request.urlopen, request)
    print("status", answer.status, file=sys.stderr)
    await asyncio.sleep(1)
"""

DIES = """
import os, sys

async def bot(runner_args):
    print("the last words", file=sys.stderr, flush=True)
    os._exit(3)
"""


Placed = tuple[CallReport, list[TimelineEvent]]


async def place(target: Path, **settings: object) -> Placed:
    events: list[TimelineEvent] = []
    config = DialConfig(**{"target": str(target), "listen_s": 0.0, **settings})  # type: ignore[arg-type]
    return await dial(config, on_event=events.append), events


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Placed]:
    """Place every call of this file at once, by the bot's name."""
    folder = tmp_path_factory.mktemp("served")
    clip = folder / "clip.wav"
    write_wav(clip, [speech_like(400, 8000)], 8000)
    bots = {"hangs_up": HANGS_UP, "dies": DIES}
    for name, source in bots.items():
        (folder / f"{name}.py").write_text(source)
    # Real credentials in the environment, and in a .env beside the bot, must not reach it.
    (folder / ".env").write_text("TWILIO_ACCOUNT_SID=AC222\nTWILIO_API_KEY=SK333\n")
    # Nor does a call go to the public address that the project has.
    (folder / "pyproject.toml").write_text('[tool.wsvoice]\ntunnel = "ngrok"\n')

    async def place_all() -> list[Placed]:
        echo = Path(__file__).parents[2] / "examples" / "echo.py"
        return await asyncio.gather(
            place(echo, audio=(clip,)),
            place(folder / "hangs_up.py", parameters={"language": "en"}),
            place(folder / "dies.py"),
        )

    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        patch.chdir(folder)
        patch.setenv("TWILIO_AUTH_TOKEN", "a real token")
        patch.setenv("TWILIO_ACCOUNT_SID", "AC" + "1" * 32)
        patch.setenv("WSVOICE_PROXY", "bot.example.com")
        return dict(zip(("echo", *bots), asyncio.run(place_all()), strict=True))


def test_a_bot_file_is_served_signed_and_dialled(calls: dict[str, Placed]) -> None:
    report, events = calls["echo"]
    assert report.failure is None
    # The other servers start at the same time, and may hold its sound up.
    assert [found for found in report.findings if found.id != "M2"] == []
    assert report.turns[0].response_ms == 0
    assert (report.ended_by, report.close_code) == ("caller", 1000)
    assert any(event.kind == "log" for event in events)
    # A stream on a public address has TLS and a token, so there is nothing to find fault with.
    assert any(event.text.startswith("the stream is ws://127.0.0.1:") for event in events)
    # What its server answers is told before the call, as the caller goes through it.
    kinds = [event.kind for event in events if event.kind not in ("log", "note", "finding")]
    assert kinds[:4] == ["webhook", "answer", "connected", "started"]
    # The stream's status is reported too, and answered whenever that is done.
    assert [kind for kind in kinds if kind != "webhook"][-2:] == ["hang-up", "closed"]
    assert any(event.text == "the status callback that the stream has stopped was answered 200" for event in events)


def test_a_bot_hangs_up_through_the_rest_api(calls: dict[str, Placed]) -> None:
    report, events = calls["hangs_up"]
    log = [event.text for event in events if event.kind == "log"]
    assert any("language en" in line for line in log)
    assert any("status 200" in line for line in log)
    assert (report.ended_by, report.close_code) == ("bot", 1000)
    assert report.failure == "the bot ended the call before it made a sound (1000)"
    assert report.duration_ms < 10_000


def test_a_bot_that_takes_its_server_down_is_told_with_its_last_words(calls: dict[str, Placed]) -> None:
    report, _ = calls["dies"]
    assert report.failure is not None
    assert report.failure.startswith(f"the server of {report.target} ended with exit code 3:")
    assert "the last words" in report.failure
    assert (report.ended_by, report.close_code) == ("bot", 1006)


def test_a_call_that_passed_is_reported_before_its_bot_is_stopped(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    write_wav(clip, [speech_like(400, 8000)], 8000)
    echo = Path(__file__).parents[2] / "examples" / "echo.py"
    events: list[TimelineEvent] = []
    reported: list[CallReport] = []

    def address() -> tuple[str, int]:
        url = next(event.text for event in events if "is served at" in event.text).split()[-1]
        return "127.0.0.1", int(url.rstrip("/").rpartition(":")[2])

    def on_passed(report: CallReport) -> None:
        reported.append(report)
        socket.create_connection(address(), timeout=5).close()

    config = DialConfig(target=str(echo), listen_s=0.0, audio=(clip,))
    report = asyncio.run(dial(config, on_event=events.append, on_passed=on_passed))
    assert reported == [report]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address(), timeout=5)


def test_a_call_that_failed_is_reported_with_all_that_its_bot_wrote(tmp_path: Path) -> None:
    bot = tmp_path / "silent.py"
    bot.write_text("import atexit\natexit.register(print, 'the end')\nasync def bot(runner_args): pass\n")
    events: list[TimelineEvent] = []

    def on_passed(report: CallReport) -> None:
        raise AssertionError("it has failed")

    report = asyncio.run(dial(DialConfig(target=str(bot)), on_event=events.append, on_passed=on_passed))
    assert report.verdict == "failed"
    assert any(event.kind == "log" and event.text == "the end" for event in events)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for the process in /proc")
def test_a_mistake_that_is_found_once_the_bot_is_started_leaves_no_process(tmp_path: Path) -> None:
    bot, mark = tmp_path / "bot.py", f"MARK_{secrets.token_hex(8)}"
    bot.write_text("import time\ntime.sleep(60)\nasync def bot(runner_args): pass\n")
    events: list[TimelineEvent] = []
    config = DialConfig(target=str(bot), audio=(tmp_path / "missing.wav",), environ={mark: "1"})
    with pytest.raises(AudioFileError):
        asyncio.run(dial(config, on_event=events.append))
    assert events == []
    left = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            left += [environ] * (mark.encode() in environ.read_bytes())
    assert left == []
