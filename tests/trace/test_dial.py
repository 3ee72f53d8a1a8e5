"""`wsvoice dial --trace`: the trace of a test call, from the caller's side."""

from __future__ import annotations

import asyncio
import base64
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dial import fake_bots
from tests.dial.fake_bots import Line, fake_bot
from tests.scenarios.menu_bot import MenuBot, serving, write_sounds
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport
from wsvoice.dial.caller import dial
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import ConfigError, UsageError
from wsvoice.testing import Dial
from wsvoice.trace import Trace, read_trace

ECHO = Path(__file__).parents[2] / "examples" / "echo.py"


async def marked_echo(line: Line) -> None:
    """Say back what comes, and set a mark."""
    await line.send({"event": "mark", "mark": {"name": "m1"}})
    await fake_bots.echo(line)


def place(bot: Any, tmp_path: Path, **settings: Any) -> tuple[CallReport, Trace]:
    clip = tmp_path / "clip.wav"
    write_wav(clip, [speech_like(400, 8000, seed=3)], 8000)
    path = tmp_path / "good.call"

    async def main() -> CallReport:
        async with fake_bot(bot) as served:
            config = DialConfig(
                target=served.url,
                audio=(clip,),
                dtmf="5",
                listen_s=0.0,
                response_timeout_s=0.3,
                trace=path,
                record=tmp_path / "call.wav",
                **settings,
            )
            return await dial(config, timeouts=Timeouts(close_s=1.0))

    report = asyncio.run(main())
    return report, read_trace(path)


def test_a_test_call_is_in_its_trace(tmp_path: Path) -> None:
    secret = "wsvoice_test_auth_token_0000001"
    report, trace = place(marked_echo, tmp_path, credentials={"TWILIO_AUTH_TOKEN": secret})
    path = tmp_path / "good.call"
    with trace:
        assert report.trace == str(path)
        assert path.is_file()
        assert path.stat().st_mode & 0o777 == 0o600
        assert (trace.side, trace.provider, trace.rate) == ("caller", "twilio", 8000)
        assert trace.is_complete
        assert (trace.call.call_id, trace.call.stream_id) == (report.call_id, report.stream_id)
        assert trace.report == report.to_dict()
        assert trace.ended["by"] == "caller"
        wire = list(trace.wire)
        assert [(each.dir, each.kind) for each in wire[:2]] == [("in", "webhook"), ("out", "answer")]
        assert wire[0].t < wire[1].t < 0
        events = [(each.dir, json.loads(each.text or "{}").get("event")) for each in wire if each.kind == "text"]
        for wanted in (
            ("in", "start"),
            ("in", "media"),
            ("in", "dtmf"),
            ("in", "stop"),
            ("out", "media"),
            ("out", "mark"),
        ):
            assert wanted in events
        assert events.count(("in", "media")) * 20 == report.sent_audio_ms
        out = [json.loads(each.text or "") for each in wire if each.dir == "out" and each.kind == "text"]
        sent = b"".join(base64.b64decode(each["media"]["payload"]) for each in out if each["event"] == "media")
        # What comes while the caller hangs up is not heard, but traced.
        assert report.received_audio_ms <= len(sent) // 8 <= report.received_audio_ms + 500
        told = {each.event for each in trace.timeline}
        assert {"started", "caller-speaks", "bot-speaks", "digit", "mark", "buffer", "wait", "hang-up"} <= told
        # The tracks are the recording's, sample for sample.
        with wave.open(str(tmp_path / "call.wav")) as file:
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        for track, side in ((trace.caller, 0), (trace.bot, 1)):
            count = min(len(track), len(frames))
            assert count >= 8000
            assert np.array_equal(track[:count], frames[:count, side])
    assert secret.encode() not in b"".join(each.read_bytes() for each in unpacked(path))


def unpacked(path: Path) -> list[Path]:
    import zipfile

    folder = path.with_suffix(".unpacked")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return list(folder.iterdir())


def test_redaction(tmp_path: Path) -> None:
    _, trace = place(marked_echo, tmp_path, redact="digits", from_number="+15557654321")
    with trace:
        assert trace.call.from_number == "***"
        assert trace.report["digits_sent"] == "***"
        content = [str(each) for each in (*trace.wire, *trace.timeline, *trace.log)]
        assert not any("5557654321" in each or "presses 5" in each or '"digit":"5"' in each for each in content)
        assert any("dtmf" in each for each in content)


def test_a_call_that_fails_has_a_trace_too(tmp_path: Path) -> None:
    config = DialConfig(target="http://127.0.0.1:9/", trace=tmp_path / "bad.call")
    report = asyncio.run(dial(config))
    assert report.verdict == "failed"
    with read_trace(tmp_path / "bad.call") as trace:
        assert trace.is_complete
        assert trace.call.call_id == report.call_id
        assert (trace.report["verdict"], len(trace.caller)) == ("failed", 0)


def test_a_call_that_is_cancelled_leaves_its_trace(tmp_path: Path) -> None:
    path = tmp_path / "cut.call"

    async def main() -> None:
        async with fake_bot(marked_echo) as served:
            config = DialConfig(target=served.url, duration_s=30, trace=path)
            call = asyncio.create_task(dial(config, timeouts=Timeouts(close_s=1.0)))
            async with asyncio.timeout(10):
                track = path / "caller.s16"
                while not track.exists() or not track.stat().st_size:
                    await asyncio.sleep(0.02)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(main())
    with read_trace(path) as trace:
        assert len(trace.caller) > 0
        assert trace.report == {}


def test_an_earlier_trace_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:9/"
    for _ in range(2):
        report = asyncio.run(dial(DialConfig(target=nobody, trace=tmp_path / "good.call")))
        with read_trace(tmp_path / "good.call") as trace:
            assert trace.call.call_id == report.call_id
    folder = tmp_path / "mine.call"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    with pytest.raises(UsageError, match="is a folder, and no trace"):
        asyncio.run(dial(DialConfig(trace=folder)))
    assert (folder / "notes.txt").read_text() == "keep me"
    with pytest.raises(UsageError, match="its folder does not exist"):
        asyncio.run(dial(DialConfig(trace=tmp_path / "none" / "a.call")))
    with pytest.raises(UsageError, match="--redact is about a trace"):
        asyncio.run(dial(DialConfig(redact="callers")))


def test_a_trace_ends_in_call() -> None:
    from wsvoice.config import resolve_dial

    with pytest.raises(ConfigError, match="writes a trace") as caught:
        resolve_dial({"trace": "good.zip"}, environ={}, cwd=Path())
    assert caught.value.hint == "use `good.call`"


def test_a_call_of_the_fixture_may_ask_for_one(dial: Dial, tmp_path: Path) -> None:
    report = dial(ECHO, trace=tmp_path / "echo.call")
    report.assert_passed()
    assert report.trace == str(tmp_path / "echo.call")
    with read_trace(tmp_path / "echo.call") as trace:
        assert trace.is_complete
        assert any("webhook answered" in each.message and each.level == "INFO" for each in trace.log)
        assert trace.bot.any()


def test_a_trace_may_be_in_pytests_folder(dial: Dial, tmp_path: Path) -> None:
    write_sounds(tmp_path)
    with serving(MenuBot()) as served:
        report = dial(served.url, audio=tmp_path / "caller.wav", listen_s=0.06, trace=True)
    assert report.trace is not None
    assert report.wav is not None
    assert Path(report.trace) == report.wav.with_suffix(".call")
    with read_trace(report.trace) as trace:
        assert trace.call.call_id == report.call_id
