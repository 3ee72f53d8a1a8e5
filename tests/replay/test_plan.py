"""What is placed again of a call, and traces of which nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.invoke import invoke
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.replay import RecordedCaller, ReplayScript
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.replay.acts import MAX_KEYS, read_digits, read_pressed
from wsvoice.replay.plan import configure, read_plan
from wsvoice.trace import Header, Masks, TraceEvent, TraceWriter, read_trace

NOWHERE = "http://127.0.0.1:9/"


def write(
    folder: Path,
    *,
    provider: str = "twilio",
    said: bool = True,
    keys: str = "",
    masks: Masks | None = None,
    cut_off: bool = False,
    by: str = "caller",
) -> Path:
    """Write the trace of a call of two seconds: the caller speaks at 0.5 s, the bot at 1.2 s, keys come after that."""
    call = Call(
        provider, "CA1", from_number="+15551230001", to_number="+15551230002", parameters={"table": "four-or-five"}
    )
    quirks = {"reorder": "0.1"}
    writer = TraceWriter(folder / "a.call", Header("caller", call, 1.0, 8000, "bot.py", quirks=quirks), masks)
    noise = np.random.default_rng(1).normal(0, 3000, 2400).astype("<i2")
    for number, (put, at_s) in enumerate(((writer.caller, 0.5), (writer.bot, 1.2))):
        track = np.zeros(16_000, "<i2")
        if said or number:
            track[round(at_s * 8000) :][:2400] = noise
        put(track.tobytes())
    for number, key in enumerate(keys):
        writer.event(TraceEvent(1.7 + number / 10, "digit", f"the caller presses {key}"))
    if cut_off:
        writer.flush()
        writer.abandon()
    else:
        writer.close({"t": 2.0, "samples": 16_000, "by": by}, {"findings": "none", "transferred_to": 7})
    return writer.path


def test_what_the_caller_did(tmp_path: Path) -> None:
    with read_trace(write(tmp_path, keys="12", by="error")) as trace:
        plan = read_plan(trace)
    assert [act.keys for act in plan.acts] == ["", "12"]
    assert plan.acts[0].start_s == pytest.approx(0.5, abs=0.03)
    assert (plan.duration_s, plan.ended_by, plan.missing) == (2.0, "bot", ())


def test_keys_are_read_by_their_fields_and_in_older_traces_by_the_sentence(tmp_path: Path) -> None:
    path = write(tmp_path)
    events: list[dict[str, Any]] = [
        {"detail": "the caller presses 1"},
        {"detail": "in other words", "who": "caller", "digit": "2"},
        {"detail": "the caller presses 9", "who": "bot", "digit": "3w4"},
        {"detail": "the bot presses 5"},
        {"detail": "the caller presses 9", "who": "caller", "digit": "12"},
        {"detail": "the caller presses 9", "who": "caller", "digit": 7},
        {"detail": "the caller presses 6; no more events of this kind are shown", "who": "caller", "digit": "6"},
    ]
    lines = [json.dumps({"t": 1.0 + n / 10, "event": "digit", **each}) for n, each in enumerate(events)]
    (path / "timeline.jsonl").write_text("\n".join(lines) + "\n")
    with read_trace(path) as trace:
        assert [keys for _, keys in read_pressed(trace)] == ["1", "2", "6"]
        assert [keys for _, keys in read_digits(trace, "bot")] == ["3w4", "5"]


def test_what_comes_from_the_trace_and_what_was_asked_for(tmp_path: Path) -> None:
    with read_trace(write(tmp_path)) as trace:
        config = configure(trace, DialConfig(transport="plivo", dtmf="5", to_number="+4930"), {"to"})
    assert (config.transport, config.from_number, config.to_number) == ("twilio", "+15551230001", "+4930")
    assert (dict(config.parameters), dict(config.quirks)) == ({"table": "four-or-five"}, {"reorder": "0.1"})
    assert config.dtmf == ""


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    with read_trace(write(tmp_path, keys="1", masks=Masks(who=True, digits=True))) as trace:
        plan = read_plan(trace)
        config = configure(trace, DialConfig(), set())
    assert [act.keys for act in plan.acts] == [""]
    assert [each.partition(" were")[0] for each in plan.missing] == ["the numbers", "parameters", "the keys"]
    assert config.from_number == DialConfig().from_number
    assert not config.parameters


def test_one_that_was_cut_off_is_placed_as_far_as_it_goes(tmp_path: Path) -> None:
    with read_trace(write(tmp_path, cut_off=True, provider="telnyx")) as trace:
        plan = read_plan(trace)
    assert plan.missing == ("the trace was cut off after 2.0 s, and the call is placed again as far as that",)
    assert plan.ended_by == ""
    shown = f"note: {plan.missing[0]}"
    path = str(tmp_path / "a.call")
    assert shown in invoke("dial", NOWHERE, "--replay", path, code=1).stderr.splitlines()
    quiet = invoke("dial", NOWHERE, "--replay", path, "-q", code=1).stderr
    assert quiet.startswith(f"warning: {plan.missing[0]}")


def test_more_keys_than_anybody_presses(tmp_path: Path) -> None:
    path = write(tmp_path, keys="1")
    line = (path / "timeline.jsonl").read_bytes()
    (path / "timeline.jsonl").write_bytes(line * (MAX_KEYS + 1))
    result = invoke("dial", NOWHERE, "--replay", str(path), code=2)
    assert "a.call presses 5001 keys, and 5000 are the most that are pressed again" in result.stderr
    assert "POST" not in result.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"parameters": {"table": "4\x1b]0;"}}, "a parameter of {path} has control characters"),
        ({"parameters": {"ta\nble": "4"}}, "a parameter of {path} has control characters"),
        ({"parameters": {"a=b": "4"}}, "{path} cannot be placed again: its parameter takes names of letters"),
        ({"parameters": {str(n): "x" * 4000 for n in range(20)}}, "the parameters of {path} are too long"),
        ({"from_number": "+1555\r\n"}, "the number that calls of {path} has control characters"),
    ],
)
def test_words_of_the_call_that_a_bot_is_not_served_with(tmp_path: Path, values: Any, message: str) -> None:
    path = write(tmp_path)
    about = json.loads((path / "call.json").read_text())
    about["call"].update(values)
    (path / "call.json").write_text(json.dumps(about))
    (tmp_path / "bot.py").write_text("raise SystemExit('it is started')\n")
    result = invoke("dial", str(tmp_path / "bot.py"), "--replay", str(path), code=2)
    assert result.stderr.startswith(f"error: {message.format(path=path)}")
    given = {"parameters": "param", "from_number": "from"}
    with read_trace(path) as trace:
        configure(trace, DialConfig(), {given[name] for name in values})


CUT_OFF_MEANWHILE = """
import os, sys
from wsvoice.dial.sound_detection import SoundDetector
from wsvoice.page.document import render_page
from wsvoice.replay.plan import read_plan, replay_script
from wsvoice.trace import read_trace

with read_trace(sys.argv[1]) as trace:
    plan = read_plan(trace)
    for name in ("caller.s16", "bot.s16"):
        os.truncate(trace.folder / name, 0)
    script = replay_script(trace, plan, SoundDetector(8000), 8000, response_timeout_s=1)
    assert any(any(script.step(now_ms, audible_queued=False).pcm) for now_ms in range(20, 1000, 20))
    render_page([trace])
print("done")
"""


def test_one_that_is_cut_off_meanwhile_ends_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CUT_OFF_MEANWHILE, str(write(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def newer(path: Path) -> None:
    about = json.loads((path / "call.json").read_text())
    (path / "call.json").write_text(json.dumps({**about, "format": 99}))


def escaping(path: Path) -> None:
    (path / "wire.jsonl").unlink()
    (path / "wire.jsonl").symlink_to("/etc/passwd")


def endless(path: Path) -> None:
    with (path / "caller.s16").open("r+b") as file:
        file.truncate(2 * 8000 * 5 * 3600)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (newer, "is of a newer version"),
        (escaping, "is not to be trusted"),
        (endless, "lasted 5.0 h, and 4 h is the most that is placed again"),
        (lambda path: (path / "caller.s16").unlink(), "has nothing of the caller: it neither speaks nor presses a key"),
        (lambda path: (path / "call.json").unlink(), "is no trace"),
    ],
)
def test_a_trace_that_cannot_be_placed_again(tmp_path: Path, harm: object, message: str) -> None:
    path = write(tmp_path)
    harm(path)  # type: ignore[operator]
    result = invoke("dial", NOWHERE, "--replay", str(path), code=2)
    assert message in result.stderr
    assert "hint:" in result.stderr or "trusted" in message
    assert "POST" not in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-t", "telnyx"), "is the trace of a call of twilio, and telnyx is to be played"),
        (("--audio", "question"), "--audio has no effect beside --replay"),
        (("-n", "5"), "-n has no effect beside --replay"),
        (("--ignore", "everything"), "--ignore takes"),
        (("--trace", "a.call"), "--trace would replace a.call"),
        (("--trace", "below/../a.call"), "--trace would replace a.call"),
        (("--trace", "link.call"), "--trace would replace a.call"),
        (("--trace", "a.call/new.call"), "--trace would replace a.call"),
        (("--record", "a.call/caller.wav"), "--record would replace a.call"),
    ],
)
def test_misuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    (tmp_path / "below").mkdir()
    (tmp_path / "link.call").symlink_to("a.call")
    before = sorted(each.name for each in (tmp_path / "a.call").iterdir())
    assert message in invoke("dial", NOWHERE, "--replay", "a.call", *options, code=2).stderr
    assert sorted(each.name for each in (tmp_path / "a.call").iterdir()) == before


def test_options_without_a_call(tmp_path: Path) -> None:
    for option in (("--adaptive",), ("--max-slower", "50%"), ("--min-correlation", "0.5"), ("--ignore", "sound")):
        result = invoke("dial", NOWHERE, *option, code=2)
        assert f"{option[0]} is for a call that is placed again" in result.stderr


def test_everything_is_said_and_pressed_at_its_time() -> None:
    said = np.arange(1, 801, dtype="<i2")
    recorded = RecordedCaller(said, [(45.0, "5"), (20.0, "4")], [(0.0, 60.0)], frozenset({0}), 100.0)
    script = ReplayScript(recorded, SoundDetector(8000), sample_rate=8000)
    steps = [script.step(now_ms, audible_queued=False) for now_ms in range(20, 121, 20)]
    assert b"".join(each.pcm for each in steps) == said.tobytes()
    assert [each.digits for each in steps] == ["", "4", "5", "", "", ""]
    assert script.done
    assert (script.digits_sent, script.interrupted_at_ms) == ("45", 0.0)
    assert [note[0] for each in steps for note in each.notes] == ["caller-speaks", "caller-silent"]
    assert script.missing(bot_ended=True) is None
