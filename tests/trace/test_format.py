"""A trace is written, killed, cut off, forged and read."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from wsvoice.call import Call
from wsvoice.errors import TraceError
from wsvoice.trace import Header, LogLine, TraceEvent, TraceWriter, pack, read_trace

CALL = Call(
    provider="twilio",
    call_id="CA1",
    from_number="+15551230001",
    to_number="+15551230002",
    parameters={"language": "en"},
)
HEADER = Header(side="server", call=CALL, started_at=1_700_000_000.5, rate=8000, versions={"wsvoice": "1.0"})
TONE = (np.arange(8000) % 100 * 100).astype("<i2")


def written(folder: Path) -> Path:
    """Write a whole trace of one second."""
    writer = TraceWriter(folder, HEADER)
    writer.wire(-0.2, "in", "webhook", "CallSid=CA1", {"method": "POST", "url": "https://b.example/twilio"})
    writer.wire(-0.1, "out", "answer", "<Response/>", {"status": 200})
    writer.wire(0.0, "in", "text", '{"event":"start"}')
    writer.audio_messages([0.02], ["out"], [b"\x00\xff"])
    writer.caller(TONE.tobytes())
    writer.bot(bytes(16_000))
    writer.event(TraceEvent(0.5, "buffer", "", {"ms": 120}))
    writer.event(TraceEvent(0.25, "digit", "the caller presses 5"))
    writer.log(LogLine(0.3, "INFO", "bot", "hello\nthere </script>"))
    writer.close({"t": 1.0, "samples": 8000, "by": "caller"}, {"duration_s": 1.0})
    return writer.path


def zipped(file: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def members_of(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.parametrize("is_packed", [False, True])
def test_what_was_written_is_read(tmp_path: Path, is_packed: bool) -> None:
    path = written(tmp_path / "a.call")
    if is_packed:
        assert pack(path, path) == path
        assert path.is_file()
        assert [each.name for each in tmp_path.iterdir()] == ["a.call"]
    with read_trace(path) as trace:
        assert (trace.format, trace.side, trace.provider, trace.rate) == (2, "server", "twilio", 8000)
        assert trace.call == CALL
        assert trace.started_at == 1_700_000_000.5
        assert trace.versions["wsvoice"] == "1.0"
        assert trace.is_complete
        assert trace.duration_s == 1.0
        assert np.array_equal(trace.caller, TONE)
        assert not trace.bot.any()
        assert len(trace.bot) == 8000
        assert [(each.t, each.dir, each.kind) for each in trace.wire] == [
            (-0.2, "in", "webhook"),
            (-0.1, "out", "answer"),
            (0.0, "in", "text"),
            (0.02, "out", "binary"),
        ]
        webhook, answer, _, audio = trace.wire
        assert (webhook.text, webhook.fields["method"], answer.fields) == ("CallSid=CA1", "POST", {"status": 200})
        assert (audio.data, audio.text) == (b"\x00\xff", None)
        assert [(each.t, each.event, dict(each.fields)) for each in trace.timeline] == [
            (0.25, "digit", {}),
            (0.5, "buffer", {"ms": 120}),
        ]
        assert trace.log == [LogLine(0.3, "INFO", "bot", "hello\nthere </script>")]
        assert trace.report == {"duration_s": 1.0}


@pytest.mark.parametrize(
    "messages",
    [
        ['{"event":"media","media":{"payload":"//8="}}', '{"a":"}\'{}"}'],
        ['{"plain":""}', '{"name":"\\"\\\\\\u0001\\n"}'],
        ['{\n\t"spread": 1\r\n}'],
        ['{"name":"ü \U0001f600 \u2028 \x7f"}'],
        [b"\x00\xff", '{"mixed":1}', b""],
    ],
)
def test_audio_messages_are_read_as_they_were(tmp_path: Path, messages: list[str | bytes]) -> None:
    writer = TraceWriter(tmp_path / "a.call", HEADER)
    for number, each in enumerate(messages):
        writer.audio_messages([number / 50], ["in"], [each])
    writer.close({"t": 1.0, "samples": 0})
    with read_trace(writer.path) as trace:
        assert [
            each.data if isinstance(sent, bytes) else each.text for each, sent in zip(trace.wire, messages, strict=True)
        ] == messages
        assert [(each.t, each.dir, each.kind) for each in trace.wire] == [
            (number / 50, "in", "binary" if isinstance(each, bytes) else "text") for number, each in enumerate(messages)
        ]


@pytest.mark.parametrize("others", [[], [None], [b"\x00", '{"\u00fc":1}']])
def test_audio_messages_stand_in_their_lines_as_json(tmp_path: Path, others: list[str | bytes | None]) -> None:
    messages = ['{"event": "media","n":1.0}', '{"a":"}, \\"json\\":{}"}']
    writer = TraceWriter(tmp_path / "a.call", HEADER)
    writer.audio_messages(
        [0.5, 0.75, *(1.0 for _ in others)], ["in", "out", *("in" for _ in others)], messages + others
    )
    writer.flush()
    lines = [json.loads(each) for each in (writer.path / "wire.jsonl").read_text().splitlines()]
    assert lines[:2] == [
        {"t": 0.5, "dir": "in", "kind": "text", "json": {"event": "media", "n": 1.0}},
        {"t": 0.75, "dir": "out", "kind": "text", "json": {"a": '}, "json":{}'}},
    ]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"t":1.0,"dir":"in","kind":"text","json":{"a": 1}}', '{"a": 1}'),
        # As other programs write it: spread, in another order, or with more behind it.
        ('{"t": 1.0, "dir": "in", "kind": "text", "json": {"a":1}}', '{"a": 1}'),
        ('{"json":{"a":1},"t":1.0,"dir":"in","kind":"text"}', '{"a": 1}'),
        ('{"t":1.0,"dir":"in","kind":"text","json":{"a":1},"more":2}', '{"a": 1}'),
        ('{"t":1.0,"dir":"in","kind":"text","json":{"a":1}} ', '{"a": 1}'),
        ('{"t":1.0,"dir":"in","kind":"text","json":"plain"}', '"plain"'),
        # As the version before wrote it.
        ('{"t":1.0,"dir":"in","kind":"text","text":"{\\"a\\":1}"}', '{"a":1}'),
    ],
)
def test_messages_as_json_are_read_as_texts(tmp_path: Path, line: str, text: str) -> None:
    path = written(tmp_path / "a.call")
    (path / "wire.jsonl").write_text(line + "\n")
    (message,) = read_trace(path).wire
    assert (message.t, message.dir, message.kind, message.text) == (1.0, "in", "text", text)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = written(tmp_path / "a.call")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.iterdir()} == {0o600}
    assert stat.S_IMODE(pack(path, path).stat().st_mode) == 0o600


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    assert written(tmp_path / "a.call").name == "a.call"
    assert written(tmp_path / "a.call").name == "a-2.call"


def test_a_trace_that_is_being_written_is_read(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.call", HEADER)
    writer.caller(bytes(1600))
    writer.wire(0.0, "in", "text", "one")
    writer.flush()
    trace = read_trace(tmp_path / "a.call")
    assert not trace.is_complete
    assert [each.text for each in trace.wire] == ["one"]
    assert (len(trace.caller), len(trace.bot), trace.duration_s) == (800, 0, 0.1)


def test_what_was_written_survives_a_killed_process(tmp_path: Path) -> None:
    program = f"""
import itertools, sys
from pathlib import Path
from tests.trace.test_format import HEADER
from wsvoice.trace import TraceWriter
writer = TraceWriter(Path({str(tmp_path)!r}) / "a.call", HEADER)
for number in itertools.count():
    writer.wire(number / 50, "in", "text", f"message {{number}} " + "x" * 300)
    writer.caller(bytes(320))
    writer.flush()
    if number == 100:
        print("there are some", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    assert process.stdout.readline() == b"there are some\n"
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    process.stdout.close()
    trace = read_trace(tmp_path / "a.call")
    assert not trace.is_complete
    numbers = [int((each.text or "").split()[1]) for each in trace.wire]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 100
    assert len(trace.caller) >= 100 * 160


@pytest.mark.parametrize("name", ["wire.jsonl", "timeline.jsonl", "log.jsonl", "caller.s16", "bot.s16"])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_is(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.call")
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[:-3])
    trace = read_trace(path)
    assert not trace.is_complete
    assert len(list(trace.wire)) == (3 if name == "wire.jsonl" else 4)
    assert len(trace.timeline) == (1 if name == "timeline.jsonl" else 2)
    assert len(trace.log) == (0 if name == "log.jsonl" else 1)
    assert len(trace.caller) == (7998 if name == "caller.s16" else 8000)


def test_files_that_are_missing_are_empty(tmp_path: Path) -> None:
    path = written(tmp_path / "a.call")
    for name in ("wire.jsonl", "timeline.jsonl", "log.jsonl", "caller.s16", "bot.s16"):
        (path / name).unlink()
    trace = read_trace(path)
    assert not trace.is_complete
    assert (list(trace.wire), trace.timeline, trace.log) == ([], [], [])
    assert len(trace.caller) == len(trace.bot) == 0


def test_lines_that_are_none_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.call")
    bad = [
        "not JSON",
        "[1]",
        '{"t": "1", "dir": "in", "kind": "text", "text": "x"}',
        '{"t": NaN, "dir": "in", "kind": "text", "text": "x"}',
        '{"t": 1e300, "dir": "in", "kind": "text", "text": "x"}',
        f'{{"t": 1{"0" * 500}, "dir": "in", "kind": "text", "text": "x"}}',
        '{"t": 1, "dir": "up", "kind": "text", "text": "x"}',
        '{"t": 1, "dir": ["in"], "kind": {}, "text": "x"}',
        '{"t": 1, "dir": "in", "kind": "binary", "base64": "?"}',
        "[" * 100_000,
        '{"t": 1, "dir": "in", "kind": "text", "text": "' + "x" * 5_000_000 + '"}',
        '{"t": 2, "dir": "in", "kind": "text", "text": "the last"}',
    ]
    (path / "wire.jsonl").write_text("\n".join(bad) + "\n")
    (path / "timeline.jsonl").write_text('{"t": 1}\n{"t": 1, "event": 5}\n\x00\n{"t": 1, "event": "x", "detail": 7}\n')
    trace = read_trace(path)
    assert [each.text for each in trace.wire] == ["the last"]
    assert [(each.event, each.detail) for each in trace.timeline] == [("x", "")]


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.call")
    content = json.loads((path / "call.json").read_text())
    (path / "call.json").write_text(json.dumps({**content, "format": 3, "wsvoice": "9.1"}))
    with pytest.raises(TraceError, match=r"of a newer version, of wsvoice 9\.1: format 3") as caught:
        read_trace(path)
    assert caught.value.exit_code == 2
    assert "pip install -U wsvoice" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a JSON object"),
        (b"[]", "not a JSON object"),
        (b"[" * 200_000, "not a JSON object"),
        (b"{}", "names no format"),
        (b'{"format": true}', "names no format"),
        (b'{"format": -1}', "names no format"),
        (b'{"format": 1, "rate": 0}', "sample rate"),
        (b'{"format": 1, "rate": 8000.5}', "sample rate"),
        (b'{"format": 1, "rate": 1000000000}', "sample rate"),
    ],
)
def test_a_call_json_that_is_none_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "call.json").write_bytes(content)
    with pytest.raises(TraceError, match=complaint):
        read_trace(tmp_path)


def test_values_of_other_types_are_not_believed(tmp_path: Path) -> None:
    content = {
        "format": 1,
        "rate": 8000,
        "side": ["server"],
        "provider": {"a": 1},
        "call": {"call_id": 5, "parameters": {"a": [1], "b": "c"}, "direction": "up"},
        "started_at": "now",
        "ended": [],
        "report": "good",
        "dropped": {"wire": "all"},
    }
    (tmp_path / "call.json").write_text(json.dumps(content))
    trace = read_trace(tmp_path)
    assert trace.call == Call(provider="", call_id="", parameters={"a": "", "b": "c"})
    assert (trace.side, trace.started_at, trace.ended, trace.report, trace.dropped) == ("server", 0.0, {}, {}, {})


def test_there_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no trace"):
        read_trace(tmp_path / "none.call")
    with pytest.raises(TraceError, match=r"is no trace: it has no call\.json"):
        read_trace(tmp_path)
    (tmp_path / "a.call").write_bytes(b"RIFF")
    with pytest.raises(TraceError, match="is no trace, or is damaged"):
        read_trace(tmp_path / "a.call")


@pytest.mark.parametrize(
    "name", ["../wire.jsonl", "/wire.jsonl", "a/../../wire.jsonl", "..\\wire.jsonl", "C:/wire.jsonl", "../evil"]
)
def test_a_zip_that_names_files_outside_is_refused(tmp_path: Path, name: str) -> None:
    file = zipped(tmp_path / "b.call", {**members_of(written(tmp_path / "a.call")), name: b"evil"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(TraceError, match="outside of itself"):
        read_trace(file)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    members = members_of(written(tmp_path / "a.call"))
    file = tmp_path / "b.call"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("call.json", members["call.json"])
        link = zipfile.ZipInfo("caller.s16")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(TraceError, match="not to be trusted"):
        read_trace(file)


def test_a_zip_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    members = members_of(written(tmp_path / "a.call"))
    file = zipped(tmp_path / "b.call", {**members, "bot.s16": bytes(30_000_000)})
    assert file.stat().st_size < 100_000
    with read_trace(file) as trace:
        assert len(trace.bot) == 15_000_000
    with pytest.raises(TraceError, match="far more than a call could"):
        read_trace(file, limit=10_000_000)


def test_a_zip_with_many_or_double_files_is_refused(tmp_path: Path) -> None:
    members = members_of(written(tmp_path / "a.call"))
    with pytest.raises(TraceError, match="it has 1000 files"):
        read_trace(zipped(tmp_path / "b.call", {f"{number}": b"" for number in range(1000)}))
    with pytest.raises(TraceError, match=r"two files call\.json"):
        read_trace(zipped(tmp_path / "c.call", {**members, "x/call.json": b"{}"}))
    with pytest.raises(TraceError, match="in several folders"):
        read_trace(zipped(tmp_path / "d.call", {"x/call.json": members["call.json"], "bot.s16": b""}))


def test_a_zip_of_the_whole_folder_is_read(tmp_path: Path) -> None:
    members = {f"a.call/{name}": content for name, content in members_of(written(tmp_path / "a.call")).items()}
    with read_trace(zipped(tmp_path / "b.call", {"__MACOSX/x/y": b"", **members})) as trace:
        assert trace.is_complete


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.99])
def test_a_zip_that_is_cut_off_is_refused(tmp_path: Path, cut: float) -> None:
    file = pack(written(tmp_path / "a.call"), tmp_path / "a.call")
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(TraceError, match="is damaged"):
        read_trace(file)


def test_a_damaged_zip_is_refused(tmp_path: Path) -> None:
    file = pack(written(tmp_path / "a.call"), tmp_path / "a.call")
    content = bytearray(file.read_bytes())
    for at in range(40, 200):
        content[at] ^= 0x5A
    file.write_bytes(content)
    with pytest.raises(TraceError, match="is damaged"):
        read_trace(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_links_and_pipes_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name, plant in (("log.jsonl", os.mkfifo), ("caller.s16", lambda path: Path(path).symlink_to("/etc/passwd"))):
        path = written(tmp_path / f"{name}.call")
        (path / name).unlink()
        plant(path / name)
        with pytest.raises(TraceError, match="not a file of its own"):
            read_trace(path)
