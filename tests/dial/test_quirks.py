"""What the simulated provider and its caller can be made to do."""

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
from tests.dial.fake_bots import FakeBot, Line, fake_bot, http_answer
from tests.providers.companies import load_provider
from tests.signals import tone
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.dial.conversation import MAX_RECONNECTS
from wsvoice.dial.quirks import Behaviour, describe_quirks, read_behaviour
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import UsageError
from wsvoice.providers import PROVIDERS

QUICK = Timeouts(close_s=1.0)
TELNYX = 'codec="PCMU" bidirectionalMode="rtp" bidirectionalCodec="PCMU" bidirectionalSamplingRate="8000"'


# Which there are


@pytest.mark.parametrize("name", PROVIDERS)
def test_without_quirks_a_caller_behaves_as_its_provider_documents(name: str) -> None:
    provider = load_provider(name)
    behaviour = read_behaviour(provider)
    assert behaviour.frame_ms == provider.frame_ms
    assert behaviour.return_cleared_marks == (provider.cleared_marks == "returned")
    assert (behaviour.reorder, behaviour.start_delay_s) == (0, 0)
    assert not behaviour.silent
    assert not behaviour.by_commands


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_choice_of_every_quirk_is_taken(name: str) -> None:
    provider = load_provider(name)
    for quirk_name, quirk in provider.quirks.items():
        for value in quirk.choices or (quirk.default,):
            read_behaviour(provider.deviating({quirk_name: value}))
        assert any(written.startswith(f"{quirk_name}=") for written, _ in describe_quirks(provider))
    with pytest.raises(UsageError, match="has no quirk 'wings'") as caught:
        read_behaviour(provider.deviating({"wings": "2"}))
    assert caught.value.hint is not None
    for quirk_name, quirk in provider.quirks.items():
        assert quirk_name in caught.value.hint
        assert quirk.help in caught.value.hint


@pytest.mark.parametrize(
    ("name", "quirks", "expected"),
    [
        ("telnyx", {"reorder": "0.25"}, {"reorder": 0.25}),
        ("telnyx", {"leg-codec": "PCMA"}, {"leg_format": AudioFormat(Encoding.PCMA)}),
        ("telnyx", {"webhook": "call-control"}, {"by_commands": True}),
        ("plivo", {"start-delay": "1.5"}, {"start_delay_s": 1.5}),
        ("plivo", {"silent": "yes"}, {"silent": True}),
        ("exotel", {"frame-ms": "20"}, {"frame_ms": 20}),
        ("exotel", {"echo-cleared-marks": "yes"}, {"return_cleared_marks": True}),
    ],
)
def test_what_a_quirk_asks_of_the_caller(name: str, quirks: dict[str, str], expected: dict[str, object]) -> None:
    provider = load_provider(name)
    usual, changed = read_behaviour(provider), read_behaviour(provider.deviating(quirks))
    fields = Behaviour.__slots__
    assert {field: getattr(changed, field) for field in fields if getattr(changed, field) != getattr(usual, field)} == (
        expected
    )


@pytest.mark.parametrize(
    ("name", "quirks", "message"),
    [
        ("telnyx", {"reorder": "1.5"}, "the quirk reorder takes a number from 0 to 1, got '1.5'"),
        ("telnyx", {"reorder": "nan"}, "the quirk reorder takes a number from 0 to 1, got 'nan'"),
        ("telnyx", {"leg-codec": "G722"}, "the quirk leg-codec takes one of PCMU, PCMA, got 'G722'"),
        ("plivo", {"start-delay": "soon"}, "the quirk start-delay takes a number from 0 to 3600, got 'soon'"),
        ("twilio", {"reorder": "0.1"}, "Twilio has no quirk 'reorder'"),
    ],
)
def test_a_quirk_that_is_wrong_is_a_mistake_of_the_users(name: str, quirks: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        asyncio.run(dial(DialConfig(target="http://127.0.0.1:9/", transport=name, quirks=quirks)))
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("name", "quirk", "hint"),
    [
        ("twilio", "reorder", "Telnyx has it: dial with -t telnyx"),
        ("telnyx", "counters", "Plivo and Exotel have it: dial with -t plivo or -t exotel"),
        ("signalwire", "wings", "it has none; `wsvoice dial --quirk list` lists every provider's"),
        ("plivo", "counter", "did you mean `counters`?"),
    ],
)
def test_another_providers_quirk_names_its_provider(name: str, quirk: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_behaviour(load_provider(name).deviating({quirk: "1"}))
    assert caught.value.hint is not None
    assert hint in caught.value.hint


# In a call


class Called:
    """A call and both ends' view of it."""

    def __init__(self, report: CallReport, bot: FakeBot, events: list[TimelineEvent]) -> None:
        self.report = report
        self.bot = bot
        self.events = events

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def found(self) -> list[tuple[str, str, int]]:
        return [(found.id, found.level, found.count) for found in self.report.findings]

    def media(self, line: int = 0) -> list[dict[str, Any]]:
        return [message["media"] for message in self.bot.lines[line].messages if message["event"] == "media"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    write_wav(path, [tone(700, 400, 8000)], 8000)
    return path


def call(behaviour: fake_bots.Behaviour, answer: str | None = None, **settings: Any) -> Called:
    """Serve a bot, dial it, and return what came of it; `answer` holds URL in the place of the stream's address."""
    events: list[TimelineEvent] = []

    def webhook(bot: FakeBot, number: int) -> bytes:
        assert answer is not None
        return http_answer(answer.replace("URL", bot.stream_url))

    async def place() -> Called:
        async with fake_bot(behaviour, webhook=webhook if answer else None) as bot:
            target = bot.url if answer else bot.stream_url
            given = {"target": target, "listen_s": 0.0, "response_timeout_s": 0.6, **settings}
            report = await dial(DialConfig(**given), on_event=events.append, timeouts=QUICK)
            return Called(report, bot, events)

    return asyncio.run(place())


def texml(attributes: str) -> str:
    return f'<Response><Connect><Stream url="URL" {attributes}/></Connect></Response>'


async def say(line: Line, payload: bytes) -> None:
    """Say something as Telnyx wants it."""
    content = {"event": "media", "media": {"payload": base64.b64encode(payload).decode()}}
    await line.socket.send(json.dumps(content))


def test_media_change_places(clip: Path) -> None:
    called = call(fake_bots.silent, transport="telnyx", audio=(clip,), duration_s=0.5, quirks={"reorder": "0.5"})
    chunks = [int(media["chunk"]) for media in called.media()]
    assert chunks != sorted(chunks)
    # Neighbours only, and nothing is lost.
    assert all(abs(chunk - place) <= 1 for place, chunk in enumerate(chunks, 1))
    assert sorted(chunks) == list(range(1, len(chunks) + 1))


def test_a_leg_without_a_codec_of_its_own_streams_what_it_has(clip: Path) -> None:
    called = call(
        fake_bots.silent,
        texml('bidirectionalMode="rtp" enableReconnect="false"'),
        transport="telnyx",
        audio=(clip,),
        duration_s=0.3,
        quirks={"leg-codec": "PCMA"},
    )
    start = called.bot.lines[0].messages[1]["start"]
    assert start["media_format"]["encoding"] == "PCMA"
    assert base64.b64decode(called.media()[-1]["payload"])[:1] == b"\xd5"
    assert "W4" in [id for id, _, _ in called.found()]
    # A stream that is dialled by itself has no document to name one.
    called = call(fake_bots.silent, transport="telnyx", duration_s=0.1, quirks={"leg-codec": "PCMA"})
    assert called.bot.lines[0].messages[1]["start"]["media_format"]["encoding"] == "PCMA"


def test_a_stream_may_start_late_and_say_nothing(clip: Path) -> None:
    times: list[float] = []

    async def note(line: Line) -> None:
        times.append(asyncio.get_running_loop().time())
        await line.listen()
        times.append(asyncio.get_running_loop().time())

    called = call(
        note, transport="plivo", audio=(clip,), duration_s=0.4, quirks={"start-delay": "0.5", "silent": "yes"}
    )
    connected = next(event for event in called.events if event.kind == "connected")
    assert connected.at_ms == 0
    # Without what came before the start.
    assert 350 < called.report.duration_ms < 2000
    assert called.report.sent_audio_ms == 0
    assert called.media() == []
    assert [message["event"] for message in called.bot.lines[0].messages][:1] == ["start"]


def test_pieces_have_the_length_that_is_asked_for(clip: Path) -> None:
    usual = call(fake_bots.silent, transport="exotel", audio=(clip,), duration_s=0.3)
    assert {len(base64.b64decode(media["payload"])) for media in usual.media()} == {1600}
    short = call(fake_bots.silent, transport="exotel", audio=(clip,), duration_s=0.3, quirks={"frame-ms": "20"})
    assert {len(base64.b64decode(media["payload"])) for media in short.media()} == {320}
    assert usual.report.sent_audio_ms == short.report.sent_audio_ms == 300


@pytest.mark.parametrize(("quirks", "back"), [({}, []), ({"echo-cleared-marks": "yes"}, ["m"])])
def test_cleared_marks_come_back_or_not(quirks: dict[str, str], back: list[str], clip: Path) -> None:
    async def clears(line: Line) -> None:
        stream_id = line.messages[1]["stream_sid"]

        async def send(**content: Any) -> None:
            await line.socket.send(json.dumps({"stream_sid": stream_id, **content}))

        await send(event="media", media={"payload": base64.b64encode(tone(300, 1000, 8000)).decode()})
        await send(event="mark", mark={"name": "m"})
        await send(event="clear")
        await line.listen()

    called = call(clears, transport="exotel", audio=(clip,), duration_s=0.4, quirks=quirks)
    assert called.report.clears == 1
    assert [message["mark"]["name"] for message in called.bot.lines[0].messages if message["event"] == "mark"] == back


# What a document asks for


def test_both_ends_may_have_formats_of_their_own(clip: Path, tmp_path: Path) -> None:
    wide = AudioFormat(Encoding.L16, 16000)

    async def answers(line: Line) -> None:
        while len(line.heard) < PCMU_8K.bytes_for(600):
            await line.receive_until("media")
        await say(line, wide.encode(tone(5000, 400, 16000)))
        await line.listen()

    path = tmp_path / "call.wav"
    called = call(
        answers,
        texml(TELNYX.replace('Codec="PCMU"', 'Codec="L16"').replace("8000", "16000") + ' enableReconnect="false"'),
        transport="telnyx",
        audio=(clip,),
        record=path,
    )
    assert called.report.failure is None
    assert called.report.received_audio_ms == 400
    assert called.bot.lines[0].messages[1]["start"]["media_format"]["encoding"] == "PCMU"
    with wave.open(str(path)) as file:
        assert file.getframerate() == 16000
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    for side, hz in ((0, 700), (1, 5000)):
        spectrum = np.abs(np.fft.rfft(both[:, side].astype(np.float64)))
        assert np.argmax(spectrum) * 16000 / len(both) == pytest.approx(hz, abs=5)
    (turn,) = called.report.turns
    assert turn.response_ms is not None
    assert 100 < turn.response_ms < 1700


def test_a_stream_is_dialled_again_unless_the_answer_forbids_it(clip: Path) -> None:
    async def closes(line: Line) -> None:
        await line.receive_until("media")
        await say(line, PCMU_8K.encode(tone(440, 20, 8000)))
        await line.close()

    called = call(closes, texml(TELNYX), transport="telnyx", audio=(clip,))
    assert len(called.bot.lines) == 1 + MAX_RECONNECTS
    starts = [line.messages[1]["stream_id"] for line in called.bot.lines]
    assert len(set(starts)) == len(starts)
    assert [line.messages[0]["event"] for line in called.bot.lines] == ["connected"] * len(starts)
    calls = {line.messages[1]["start"]["call_control_id"] for line in called.bot.lines}
    assert calls == {called.report.call_id}
    assert called.report.stream_id == starts[-1]
    assert ("W4", "warn", MAX_RECONNECTS) in called.found()
    assert called.report.ended_by == "bot"

    forbidden = call(closes, texml(TELNYX + ' enableReconnect="false"'), transport="telnyx", audio=(clip,))
    assert len(forbidden.bot.lines) == 1
    assert forbidden.found() == []


def test_the_conversation_goes_on_on_the_new_stream(clip: Path) -> None:
    lines = 0

    async def closes_once(line: Line) -> None:
        nonlocal lines
        lines += 1
        if lines == 1:
            await line.receive_until("media")
            await line.close()
            return
        while True:
            message = await line.receive()
            if message["event"] == "media":
                await say(line, base64.b64decode(message["media"]["payload"]))

    called = call(closes_once, texml(TELNYX), transport="telnyx", audio=(clip,), listen_s=0.5)
    assert called.report.failure is None
    assert called.report.turns[0].response_ms == 0
    assert called.report.ended_by == "caller"


def test_a_message_that_cannot_be_used_is_answered_with_an_error(clip: Path) -> None:
    async def garbles(line: Line) -> None:
        await line.socket.send(json.dumps({"event": "media", "media": {"payload": "%%%"}}))
        await line.listen()

    called = call(garbles, transport="telnyx", audio=(clip,), duration_s=0.3)
    (error,) = [message for message in called.bot.lines[0].messages if message["event"] == "error"]
    assert error["payload"]["code"] == 100004


def test_what_is_beyond_the_providers_queue_is_thrown_away(clip: Path) -> None:
    async def flood(line: Line) -> None:
        stream_id = line.messages[0]["start"]["streamId"]
        ten_seconds = base64.b64encode(b"\xff" * 80_000).decode()
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": ten_seconds}
        for _ in range(7):
            await line.socket.send(json.dumps({"event": "playAudio", "streamId": stream_id, "media": media}))
        await line.listen()

    called = call(flood, transport="plivo", audio=(clip,), duration_s=0.3)
    messages = [found.message for found in called.report.findings if found.id == "M2" and found.level == "fail"]
    assert messages == ["more than 60 s of audio were queued; Plivo throws the rest away"]


def test_commands_need_a_bot_that_is_served() -> None:
    config = DialConfig(target="http://127.0.0.1:9/", transport="telnyx", quirks={"webhook": "call-control"})
    with pytest.raises(UsageError, match="answered through the provider's API"):
        asyncio.run(dial(config))
