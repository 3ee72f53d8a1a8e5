"""Bot files as targets: the whole of wsvoice, from the file to the report."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial

HANGS_UP = """
import asyncio, os, sys, urllib.request

async def bot(runner_args):
    call = runner_args.call
    assert os.environ["TWILIO_ACCOUNT_SID"] == ""
    print("language", call.parameters["language"], file=sys.stderr)
    url = f"{os.environ['TWILIO_API_BASE_URL']}/2010-04-01/Accounts/{call.account_id}/Calls/{call.call_id}.json"
    request = urllib.request.Request(url, b"Status=completed")
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


def place(target: Path, **settings: object) -> tuple[CallReport, list[TimelineEvent]]:
    events: list[TimelineEvent] = []
    config = DialConfig(**{"target": str(target), "listen_s": 0.0, **settings})  # type: ignore[arg-type]
    return asyncio.run(dial(config, on_event=events.append)), events


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Real credentials in the environment, and in a .env beside the bot, must not reach it.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWILIO_AUTH_TOKEN", "a real token")
    monkeypatch.setenv("TWILIO_ACCOUNT_SID", "AC" + "1" * 32)
    (tmp_path / ".env").write_text("TWILIO_ACCOUNT_SID=AC222\nTWILIO_API_KEY=SK333\n")
    # Nor does a call go to the public address that the project has.
    (tmp_path / "pyproject.toml").write_text('[tool.wsvoice]\ntunnel = "ngrok"\n')
    monkeypatch.setenv("WSVOICE_PROXY", "bot.example.com")


def test_a_bot_file_is_served_signed_and_dialled(tmp_path: Path) -> None:
    clip = tmp_path / "clip.wav"
    write_wav(clip, [speech_like(400, 8000)], 8000)
    echo = Path(__file__).parents[2] / "examples" / "echo.py"
    report, events = place(echo, audio=(clip,))
    assert (report.failure, report.findings) == (None, ())
    assert report.turns[0].response_ms == 0
    assert (report.ended_by, report.close_code) == ("caller", 1000)
    assert any(event.kind == "log" for event in events)
    # A stream on a public address has TLS and a token, so there is nothing to find fault with.
    assert any(event.text.startswith("the stream is wss://bot.invalid/ws/") for event in events)
    # What its server answers is told before the call, as the caller goes through it.
    kinds = [event.kind for event in events if event.kind not in ("log", "note")]
    assert kinds[:4] == ["webhook", "answer", "connected", "started"]
    assert kinds[-2:] == ["hang-up", "closed"]


def test_a_bot_hangs_up_through_the_rest_api(tmp_path: Path) -> None:
    path = tmp_path / "bot.py"
    path.write_text(HANGS_UP)
    report, events = place(path, parameters={"language": "en"})
    log = [event.text for event in events if event.kind == "log"]
    assert any("language en" in line for line in log)
    assert any("status 200" in line for line in log)
    assert (report.ended_by, report.close_code) == ("bot", 1000)
    assert report.failure == "the bot ended the call before it made a sound (1000)"
    assert report.duration_ms < 10_000


def test_a_bot_that_takes_its_server_down_is_told_with_its_last_words(tmp_path: Path) -> None:
    path = tmp_path / "bot.py"
    path.write_text(DIES)
    report, _ = place(path)
    assert report.failure is not None
    assert report.failure.startswith(f"`wsvoice run {path}` ended with exit code 3:")
    assert "the last words" in report.failure
    assert (report.ended_by, report.close_code) == ("bot", 1006)


def test_a_bot_that_does_not_load_is_told_with_what_the_server_says(tmp_path: Path) -> None:
    path = tmp_path / "bot.py"
    path.write_text("async def bott(runner_args): ...\n")
    report, _ = place(path)
    assert report.verdict == "failed"
    assert report.failure is not None
    assert report.failure.startswith(f"`wsvoice run {path}` ended with exit code 2:")
    assert "bot.py has no coroutine function named `bot`" in report.failure
    assert "bot.py:bott" in report.failure
    assert report.ended_by is None
