"""What both sides of a call said: in its report, its trace and its page. Whole calls, a real service on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.dial.fake_bots import Line, fake_bot
from tests.signals import tone
from tests.words.service import Service, transcribing
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.dial.report import CallReport, SpokenWords, TurnReport
from wsvoice.dial.sound_detection import Sound
from wsvoice.dial.timeouts import Timeouts
from wsvoice.dial.transcript import Part, Track, cut_into_parts, transcribe_parts
from wsvoice.errors import UsageError
from wsvoice.page import draw_picture, render_page
from wsvoice.trace import read_trace
from wsvoice.words import Transcribe, load_transcriber

WORDS = {440: "A table for two, please.", 700: "Hello, this is the bistro.", 1000: "For which day?"}


@pytest.fixture
def service() -> Iterator[Service]:
    with transcribing(dict(WORDS)) as server:
        yield server


async def waiter(line: Line) -> None:
    """Greets the caller, and answers once it has finished."""
    await line.say(PCMU_8K.encode(tone(700, 200, 8000)))
    heard, quiet = False, 0
    while True:
        await line.receive_until("media")
        is_sound = bytes(line.heard[-160:]).strip(b"\xff\x7f") != b""
        quiet, heard = 0 if is_sound else quiet + 1, heard or is_sound
        if heard and quiet == 5:
            await line.say(PCMU_8K.encode(tone(1000, 200, 8000)))


async def call(clip: Path, transcriber: str, **options: object) -> CallReport:
    async with fake_bot(waiter) as bot:
        config = DialConfig(target=bot.url, audio=(clip,), listen_s=5.0, transcriber=transcriber)
        return await dial(replace(config, **options), timeouts=Timeouts(close_s=1.0, words_s=10.0))  # type: ignore[arg-type]


async def cut_off(clip: Path, trace: Path) -> CallReport:
    """Cancel a call while it waits for its words."""
    with transcribing({}) as service:
        service.gate.clear()
        task = asyncio.create_task(call(clip, service.url, trace=trace))
        while not service.asked and not task.done():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    return CallReport("twilio", "cancelled")


@dataclass
class Calls:
    """What came of calls that were placed at the same time: a good one, and those that have something the matter."""

    folder: Path
    service: Service
    whole: CallReport
    redacted: CallReport
    dead: CallReport
    cut_off: CallReport


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    folder = tmp_path_factory.mktemp("words")
    clip = folder / "clip.wav"
    write_wav(clip, [tone(440, 200, 8000)], 8000)
    told = {"language": "es", "transcriber_model": "tall", "model_key": "sk-abcdefgh"}

    async def place(whole: str, redacted: str) -> list[CallReport]:
        return await asyncio.gather(
            call(clip, whole, trace=folder / "whole.call", **told),
            call(clip, redacted, trace=folder / "redacted.call", redact="callers"),
            call(clip, "http://127.0.0.1:9/v1"),
            cut_off(clip, folder / "cut.call"),
        )

    with transcribing(dict(WORDS)) as service, transcribing(dict(WORDS)) as another:
        return Calls(folder, service, *asyncio.run(place(service.url, another.url)))


def said(report: CallReport) -> list[tuple[int, str, str]]:
    return [(each.turn, each.who, each.text) for each in report.words]


EXPECTED = [(0, "bot", WORDS[700]), (1, "caller", WORDS[440]), (1, "bot", WORDS[1000])]


def test_the_report_has_the_words_of_both_turn_by_turn(calls: Calls) -> None:
    report, service = calls.whole, calls.service
    assert (report.verdict, report.words_failure) == ("passed", None)
    assert said(report) == EXPECTED
    [turn] = report.turns
    assert report.words[1].start_ms == pytest.approx(turn.caller_start_ms, abs=1)
    assert report.words[2].start_ms == pytest.approx(turn.caller_end_ms + (turn.response_ms or 0), abs=30)
    assert [fields for fields, _ in service.asked] == [
        {"model": "tall", "language": "es", "response_format": "json"}
    ] * 3
    assert service.keys == ["Bearer sk-abcdefgh"] * 3

    lines = report.to_lines()
    assert lines[0] == 'before turn 1, the bot said "Hello, this is the bistro."'
    assert lines[1].startswith("turn 1: caller ")
    assert lines[2:4] == [
        'turn 1, the caller said "A table for two, please."',
        'turn 1, the bot said "For which day?"',
    ]
    assert [each["text"] for each in json.loads(report.to_json())["words"]] == [text for *_, text in EXPECTED]


def test_the_trace_and_the_page_have_them(calls: Calls) -> None:
    [turn] = calls.whole.turns
    with read_trace(calls.folder / "whole.call") as trace:
        told = [event for event in trace.timeline if event.event == "words"]
        assert [event.detail for event in told] == [f"{who}: {text}" for _, who, text in EXPECTED]
        assert told[1].t == pytest.approx(turn.caller_start_ms / 1000, abs=0.01)
        picture = [line.text for line in draw_picture([trace], 100)]
        page = render_page([trace])
    first = picture.index("bot: Hello, this is the bistro.")
    assert picture[first + 1].startswith("turn 1: ")
    assert picture[first + 2 :] == ["  caller: A table for two, please.", "  bot: For which day?"]
    held = page.partition('id="call"')[2].partition(">")[2].partition("</script>")[0]
    shown = [(turn, who, text) for turn, who, _, text in json.loads(held)["calls"][0]["words"]]
    assert shown == EXPECTED


def test_a_redacted_trace_says_who_spoke_and_not_what(calls: Calls) -> None:
    assert said(calls.redacted) == EXPECTED
    with read_trace(calls.folder / "redacted.call") as trace:
        assert [each["text"] for each in trace.report["words"]] == ["***"] * 3
        told = [event.detail for event in trace.timeline if event.event == "words"]
        files = [each.read_bytes() for each in trace.folder.iterdir()]
    assert told == ["bot: ***", "caller: ***", "bot: ***"]
    assert not any(words.encode() in content for words in WORDS.values() for content in files)


def test_a_service_that_is_dead_costs_one_line_and_the_verdict_stays(calls: Calls) -> None:
    report = calls.dead
    assert (report.verdict, report.failure, list(report.words)) == ("passed", None, [])
    [line] = [line for line in report.to_lines() if "words" in line]
    assert line.startswith("words are missing: the transcriber cannot be asked: nothing listens at http://127.0.0.1:9")
    assert report.to_lines()[-1] == "passed"


def test_a_call_whose_words_are_not_waited_for_was_no_shorter(calls: Calls) -> None:
    with read_trace(calls.folder / "cut.call") as trace:
        assert trace.is_complete
        assert (trace.ended["by"], trace.report["verdict"], trace.report["words"]) == ("caller", "passed", [])


def test_a_transcriber_that_cannot_be_used_places_no_call() -> None:
    with pytest.raises(UsageError, match="no transcriber 'whispr'"):
        asyncio.run(dial(DialConfig(target="http://127.0.0.1:9/", transcriber="whispr")))


# Without a call

PARTS = [
    Part(0, "bot", 0.0, 200.0, tone(700, 500, 8000), 8000),
    Part(1, "caller", 500.0, 700.0, tone(440, 500, 16000), 16000),
]


def words_of(transcribe: Transcribe, timeout_s: float = 10.0) -> tuple[list[SpokenWords], str | None]:
    return asyncio.run(transcribe_parts(PARTS, transcribe, "en", timeout_s))


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (500, b"<h1>\x1b[2Jout of\nmemory</h1>", r"answered 500: <h1>\x1b[2Jout of memory</h1>"),
        (200, b"not JSON", "answered with no JSON: not JSON"),
        (200, b"[1]", "answered with no JSON object"),
        (200, b'{"text": {"a": 1}}', "answered with no text"),
        (200, b'{"error": "none"}', "answered with no text"),
        (200, b"[" * 100_000, "answered with no JSON"),
        (200, b" " * 2_000_000 + b'{"text": "much"}', "answered with no JSON"),
    ],
)
def test_an_answer_that_is_none_is_told_in_one_line(service: Service, status: int, body: bytes, why: str) -> None:
    service.status, service.body = status, body
    words, failure = words_of(load_transcriber(service.url))
    assert words == []
    assert failure is not None
    assert f"the transcriber at {service.url}/audio/transcriptions" in failure
    assert why.replace(r"\x1b", "\x1b") in failure
    assert "\n" not in failure
    assert len(failure) < 400


def test_a_transcriber_that_never_answers_is_left_after_a_while(service: Service) -> None:
    service.gate.clear()
    words, failure = words_of(load_transcriber(service.url), timeout_s=0.0)
    # As long as the sound lasts, and no more.
    assert (words, failure) == ([], "the transcriber took longer than 1 s")


def test_what_was_transcribed_before_a_failure_is_kept() -> None:
    def breaks(pcm: bytes, sample_rate: int, language: str) -> str:
        if sample_rate == 16000:
            raise MemoryError("too much")
        return "hello"

    words, failure = words_of(load_function(breaks))
    assert [each.text for each in words] == ["hello"]
    assert failure is not None
    assert failure.endswith("failed: MemoryError: too much")


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(3), GeneratorExit(3), KeyboardInterrupt(3)])
def test_a_function_that_would_end_its_thread_or_the_process_is_a_failure(error: BaseException) -> None:
    def leaves(pcm: bytes, sample_rate: int, language: str) -> str:
        raise error

    words, failure = words_of(load_function(leaves))
    assert words == []
    assert failure is not None
    assert failure.endswith(f"failed: {type(error).__name__}: 3")
    # Nor does it have to be one that was loaded by its name.
    assert words_of(leaves) == ([], f"the transcriber failed: {type(error).__name__}")


def test_an_error_that_cannot_be_told_is_a_failure() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise asyncio.CancelledError

    def fails(pcm: bytes, sample_rate: int, language: str) -> str:
        raise Unspeakable

    assert words_of(load_function(fails)) == ([], "the transcriber failed: CancelledError")


def load_function(function: Callable[[bytes, int, str], str]) -> Transcribe:
    global transcribe
    transcribe = function
    return load_transcriber(f"{__name__}:transcribe")


def test_hostile_words_are_one_line_that_can_be_written(service: Service) -> None:
    service.body = json.dumps({"text": "a\r\nb\x1b]0;pwned\x07 \ud800 </script><b>" + "x" * 20_000}).encode()
    [first, _], failure = words_of(load_transcriber(service.url))
    assert failure is None
    assert first.text.startswith("a b\x1b]0;pwned\x07 ? </script><b>xxx")
    assert len(first.text) == 10_000 - 1
    first.text.encode()


@pytest.mark.parametrize("url", ["http://", "https://[::1", "http://localhost:0/v1"])
def test_an_address_that_is_none_is_refused_before_the_call(url: str) -> None:
    with pytest.raises(UsageError, match=r"the transcriber takes an http\(s\) URL"):
        load_transcriber(url)


def test_a_services_query_stays_and_is_not_told(service: Service) -> None:
    service.status = 403
    _, failure = words_of(load_transcriber(f"{service.url}/?api-version=2&key=a-secret"))
    assert service.paths == ["/v1/audio/transcriptions?api-version=2&key=a-secret"]
    assert failure is not None
    assert "a-secret" not in failure


def test_a_function_may_be_beside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_ears_of_this_test.py").write_text(
        "def hear(pcm, rate, language):\n    return f'{len(pcm)} {rate}'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert load_transcriber("my_ears_of_this_test:hear")(b"1234", 8000, "en") == "4 8000"


# Cutting


def silence(ms: int) -> bytes:
    return bytes(16 * ms)


def cut(caller: bytes, bot: bytes, *turns: tuple[float, float], sounds: tuple[tuple[float, float], ...]) -> list[Part]:
    reports = [TurnReport(*turn) for turn in turns]
    heard = [Sound(*sound) for sound in sounds]
    tracks = Track("caller", caller, 8000), Track("bot", bot, 8000)
    return cut_into_parts([each.caller_start_ms for each in reports], reports, *tracks, heard)


def test_an_interrupted_bots_last_words_are_its_answers_before() -> None:
    caller = silence(1000) + tone(440, 400, 8000) + silence(600)
    bot = silence(500) + tone(700, 700, 8000) + silence(400) + tone(1000, 300, 8000) + silence(100)
    parts = cut(caller, bot, (1000, 1400), sounds=((500, 1200), (1600, 1900)))
    assert [(each.turn, each.who, round(each.start_ms), round(each.end_ms)) for each in parts] == [
        (0, "bot", 500, 1200),
        (1, "caller", 1000, 1400),
        (1, "bot", 1600, 1900),
    ]
    # Some silence is left around them, and none of the other words; the first sample of a tone is silent.
    assert len(parts[2].pcm) == pytest.approx(16 * (200 + 300 + 100), abs=16)


def test_a_bot_that_never_pauses_is_cut_at_the_turn() -> None:
    caller = silence(1000) + tone(440, 400, 8000) + silence(3600)
    parts = cut(caller, tone(700, 5000, 8000), (1000, 1400), sounds=((0, 5000),))
    assert [(each.turn, each.who, round(each.start_ms), round(each.end_ms)) for each in parts] == [
        (0, "bot", 0, 1000),
        (1, "caller", 1000, 1400),
        (1, "bot", 1000, 5000),
    ]


def test_silence_is_not_transcribed_and_little_sound_is_made_long_enough() -> None:
    quiet = np.random.default_rng(1).integers(-20, 20, 8000).astype("<i2").tobytes()
    assert cut(quiet, silence(1000), sounds=()) == []
    [part] = cut(silence(100) + tone(440, 30, 8000), b"", sounds=())
    assert len(part.pcm) == 16 * 500
