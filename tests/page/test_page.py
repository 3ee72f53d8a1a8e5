"""The page of a call as a file: what is in it, what is not, and how large it is. ``test_browser.py`` opens it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.page.calls import RATE, make_call, wait_s
from wsvoice.errors import TraceError
from wsvoice.page import render_page
from wsvoice.page.document import AUDIO_LIMIT
from wsvoice.page.rows import KINDS
from wsvoice.trace import Header, LogLine, Trace, TraceEvent, TraceWriter, read_trace

#: What a stranger may say.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'><!--<script>"


class _Reader(HTMLParser):
    """What a parser of HTML finds: elements with their attributes, and the texts of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._inside: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self._inside = dict(attrs)
            self.scripts.append((self._inside, ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is not None:
            self.scripts[-1] = (self._inside, self.scripts[-1][1] + data)


def parsed(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return reader


def held(page: str) -> dict[str, str]:
    """Return the data in a page by its ids."""
    return {str(attrs["id"]): text for attrs, text in parsed(page).scripts if attrs.get("type")}


def rows_of(page: str) -> list[tuple[float, str, str, str, str]]:
    """Return all rows as the page's scripts read them: time, kind, label, text, fields."""
    data = held(page)
    about = json.loads(data["call"])
    count = about["rows"]
    index = zlib.decompress(base64.b64decode(data["row-index"]))
    texts = []
    for part in range(2):
        blocks = [block for block in data[f"row-texts-{part}"].split("\n") if block]
        texts.append(iter([row for block in blocks for row in json.loads(zlib.decompress(base64.b64decode(block)))]))
    found = []
    for at, kind in zip(np.frombuffer(index, "<i4", count), index[4 * count :], strict=True):
        found.append((at / about["ticks"], KINDS[kind & 15], *next(texts[KINDS[kind & 15] == "Audio messages"])))
    return found


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return make_call(tmp_path_factory.mktemp("page") / "a.call", 25)


@pytest.fixture(scope="module")
def page(trace: Trace) -> str:
    return render_page([trace])


def test_every_message_event_and_log_line_is_in_the_page_at_its_time(trace: Trace, page: str) -> None:
    rows = rows_of(page)
    curves = sum(event.event == "buffer" for event in trace.timeline)
    assert len(rows) == len(list(trace.wire)) + len(trace.timeline) - curves + len(trace.log)
    assert [at for at, *_ in rows] == sorted(at for at, *_ in rows)
    (at, kind, label, text, fields), answer = rows[:2]
    assert (at, kind, label) == (-0.2, "Messages", "→ bot webhook")
    assert text == "POST https://bot.example.com/ CallSid=CA1&From=%2B1555"
    assert json.loads(fields) == {"method": "POST", "url": "https://bot.example.com/"}
    assert answer[2:4] == ("← bot answer", "200 <?xml version='1.0'?><Response><Connect/></Response>")
    marks = [(at, text) for at, kind, label, text, _ in rows if label == "mark"]
    assert marks == [(5.4, "mark sentence-0 is reached"), (16.1, "mark sentence-1 is reached")]
    [warning] = [row for row in rows if row[2] == "WARNING"]
    assert warning[1:] == ("Log", "WARNING", "interrupted", "bot")


def test_the_audio_of_messages_is_not_in_the_page_twice(page: str) -> None:
    audio = [row for row in rows_of(page) if row[1] == "Audio messages"]
    assert len(audio) == 2 * 50 * 25
    assert json.loads(audio[0][3])["media"]["payload"] == "… 216 characters of audio …"
    assert json.loads(audio[0][3])["sequenceNumber"] == "2"


def test_a_binary_message_is_told_by_its_length(tmp_path: Path) -> None:
    trace = make_call(tmp_path / "a.call", 1, wire=False, ends=False)
    with (trace.folder / "wire.jsonl").open("a") as file:
        file.write(
            json.dumps({"t": 0.5, "dir": "out", "kind": "binary", "base64": base64.b64encode(bytes(320)).decode()})
        )
        file.write("\n")
    [row] = [row for row in rows_of(render_page([trace])) if row[1] == "Audio messages"]
    assert row == (0.5, "Audio messages", "← bot binary", "320 bytes of audio", "")


def test_the_page_knows_turns_and_the_waits_between_them(page: str) -> None:
    [call] = json.loads(held(page)["call"])["calls"]
    assert [round(wait, 3) for _, _, _, wait in call["turns"]] == [wait_s(0), wait_s(1)]
    assert [round(bot, 3) for _, _, bot, _ in call["turns"]] == [3.4, 14.1]
    assert [kind for _, kind, _ in call["points"]] == ["mark", "mark", "digit", "interruption", "clear"]
    assert max(ms for _, ms in call["buffered"]) == 900
    assert (call["verdict"], call["isComplete"], call["duration"]) == ("passed", True, 25)


def test_turns_are_those_of_the_report_if_there_is_one(tmp_path: Path) -> None:
    told = [
        {"caller_start_ms": 1000, "caller_end_ms": 2500, "bot_start_ms": 3100, "response_ms": 600},
        {"caller_start_ms": 9000, "caller_end_ms": 9500, "bot_start_ms": None, "response_ms": None},
        {"caller_start_ms": "soon", "caller_end_ms": 1, "bot_start_ms": 1, "response_ms": 1},
        "no turn",
    ]
    report = {"verdict": "failed", "failure": "too slow", "turns": told, "findings": [{"id": "M3", "message": "late"}]}
    [call] = json.loads(held(render_page([make_call(tmp_path / "a.call", 12, report=report)]))["call"])["calls"]
    assert call["turns"] == [[1.0, 2.5, 3.1, 0.6], [9.0, 9.5, None, None]]
    assert (call["verdict"], call["failure"], call["findings"]) == ("failed", "too slow", [["warn", "M3", "late", 1]])


def test_turns_are_told_by_the_sound_where_nobody_has_measured_them(tmp_path: Path) -> None:
    trace = make_call(tmp_path / "a.call", 25)
    (trace.folder / "timeline.jsonl").write_text("")
    [call] = json.loads(held(render_page([read_trace(trace.folder)]))["call"])["calls"]
    assert len(call["turns"]) == 2
    for number, (start, end, bot, wait) in enumerate(call["turns"]):
        assert start == pytest.approx(number * 10 + 1, abs=0.2)
        assert bot == pytest.approx(number * 10 + 3 + wait_s(number), abs=0.2)
        assert wait == pytest.approx(bot - end)


def test_the_sound_is_that_of_the_trace(trace: Trace, page: str) -> None:
    data = held(page)
    [call] = json.loads(data["call"])["calls"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data["sound-0"])), dtype="int16")
    assert (call["soundType"], rate) == ("audio/flac", RATE)
    assert np.array_equal(samples[:, 0], trace.caller)
    assert np.array_equal(samples[:, 1], trace.bot)
    drawn = np.frombuffer(zlib.decompress(base64.b64decode(data["peaks-0"])), np.uint8).reshape(2, -1)
    for peaks, track in zip(drawn, (trace.caller, trace.bot), strict=True):
        assert peaks.max() == np.abs(track.astype(int)).max() >> 7
        loudest = np.abs(track.astype(int)).reshape(-1, len(track) // len(peaks)).max(axis=1) >> 7
        assert np.array_equal(peaks, loudest)


def test_two_calls_are_on_one_axis(tmp_path: Path) -> None:
    traces = [make_call(tmp_path / f"{name}.call", seconds) for name, seconds in (("a", 12), ("b", 14))]
    data = held(render_page(traces))
    about = json.loads(data["call"])
    assert about["duration"] == 14
    assert [call["duration"] for call in about["calls"]] == [12, 14]
    for number in range(2):
        # A browser takes a position as a share of the sound.
        assert soundfile.info(io.BytesIO(base64.b64decode(data[f"sound-{number}"]))).duration == 14
    shorter = np.frombuffer(zlib.decompress(base64.b64decode(data["peaks-0"])), np.uint8).reshape(2, -1)
    assert not shorter[:, 12_000:].any()


def test_only_the_pages_own_scripts_may_run_and_nothing_may_be_loaded(page: str) -> None:
    reader = parsed(page)
    [policy] = [
        str(attrs["content"]) for name, attrs in reader.elements if attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    ours = [text for attrs, text in reader.scripts if not attrs.get("type")]
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in ours]
    assert rules.pop("script-src").split() == hashes
    assert re.fullmatch(r"'sha256-\S+' 'nonce-\w{32}'", rules.pop("style-src"))
    none = "'none'"
    assert rules == {"default-src": none, "media-src": "blob:", "base-uri": none, "form-action": none}
    assert [attrs for _, attrs in reader.elements if {"src", "href", "style"} & set(attrs)] == []
    assert [name for _, attrs in reader.elements for name in attrs if name.startswith("on")] == []


def test_what_strangers_say_is_data_and_never_markup(tmp_path: Path, page: str) -> None:
    trace = hostile_call(tmp_path / "a.call")
    shown = render_page([trace])
    # The same elements as those of a harmless call, with the same attributes.
    assert [each for each in parsed(shown).elements if each[0] not in ("meta", "script")] == [
        each for each in parsed(page).elements if each[0] not in ("meta", "script")
    ]
    assert len(parsed(shown).scripts) == len(parsed(page).scripts)
    assert "hacked" not in re.sub(r'<script type="application/json".*?</script>', "", shown, flags=re.DOTALL)
    [call] = json.loads(held(shown)["call"])["calls"]
    assert call["title"] == f"{HOSTILE} → +15551230002 · twilio"
    assert (call["verdict"], call["failure"]) == ("", HOSTILE)
    assert HOSTILE in {text for _, _, _, text, _ in rows_of(shown)}


def hostile_call(folder: Path) -> Trace:
    """Return a call in which every word that a stranger may choose is an attack."""
    report: dict[str, Any] = {
        "verdict": HOSTILE,
        "failure": HOSTILE,
        "ended_by": HOSTILE,
        "findings": [{"level": HOSTILE, "id": HOSTILE, "message": HOSTILE, "count": 1}],
        "causes": [{"message": HOSTILE}],
        "words": [
            {"turn": 1, "who": "bot", "start_ms": 4000, "text": HOSTILE},
            {"turn": 10**30, "who": "caller", "start_ms": 4000, "text": HOSTILE},
            {"turn": HOSTILE, "who": HOSTILE, "start_ms": HOSTILE, "text": 3},
            HOSTILE,
        ],
    }
    trace = make_call(folder, 5, number=HOSTILE, parameters={HOSTILE: HOSTILE}, report=report, log=[HOSTILE, HOSTILE])
    with (trace.folder / "timeline.jsonl").open("a") as file:
        for name in ("mark", "digit", "clear", "finding", "interruption", HOSTILE):
            file.write(json.dumps({"t": 4, "event": name, "detail": HOSTILE, HOSTILE: HOSTILE}) + "\n")
        file.write('{"t": 4, "event": "buffer", "ms": 1e400}\n{"t": 4, "event": "wait", "ms": NaN}\n')
        file.write('{"t": 4, "event": "note", "detail": "\\ud800", "n": NaN, "deep": ' + "[" * 500 + "]" * 500 + "}\n")
    with (trace.folder / "wire.jsonl").open("a") as file:
        file.write(json.dumps({"t": 4, "dir": "in", "kind": "text", "text": HOSTILE, "url": HOSTILE}) + "\n")
        file.write(json.dumps({"t": 1e6, "dir": "in", "kind": "text", "text": "late"}) + "\n")
    with (trace.folder / "log.jsonl").open("a") as file:
        file.write(json.dumps({"t": 4, "level": HOSTILE, "logger": HOSTILE, "message": HOSTILE}) + "\n")
    return read_trace(trace.folder)


def test_a_call_that_was_cut_off_says_so(tmp_path: Path) -> None:
    [call] = json.loads(held(render_page([make_call(tmp_path / "a.call", 5, ends=False)]))["call"])["calls"]
    assert (call["isComplete"], call["verdict"]) == (False, "")


def test_a_call_without_any_sound_has_a_page(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "a.call", Header("server", make_call(tmp_path / "b.call", 1).call, 0.0, RATE))
    writer.event(TraceEvent(0.0, "started", "the stream has started"))
    writer.log(LogLine(0.1, "INFO", "bot", "hello"))
    writer.close({"t": 1e9})
    about = json.loads(held(render_page([read_trace(writer.path)]))["call"])
    assert about["rows"] == 2
    assert about["calls"][0]["turns"] == []


def test_a_call_of_days_is_refused(tmp_path: Path) -> None:
    trace = make_call(tmp_path / "a.call", 1)
    with (trace.folder / "bot.s16").open("r+b") as file:
        # Sparse: it takes no room on the disk.
        file.truncate(13 * 3600 * RATE * 2)
    with pytest.raises(TraceError, match="lasts 13 hours, and a page shows up to 12"):
        render_page([read_trace(trace.folder)])


def test_an_hour_takes_less_than_25_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A thirtieth of it, with a thirtieth of the room; the page's own scripts do not grow.
    monkeypatch.setattr("wsvoice.page.document.AUDIO_LIMIT", AUDIO_LIMIT // 30)
    data = held(render_page([make_call(tmp_path / "a.call", 120)]))
    assert json.loads(data["call"])["calls"][0]["soundType"] == "audio/ogg"
    info = soundfile.info(io.BytesIO(base64.b64decode(data["sound-0"])))
    assert (info.duration, info.samplerate, info.channels) == (120, RATE, 2)
    assert sum(map(len, data.values())) < (25_000_000 - 200_000) / 30
