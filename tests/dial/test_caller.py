"""Whole calls over real sockets, to bots that are made of nothing but messages."""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import wave
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from twilio.request_validator import RequestValidator

from tests.dial import fake_bots
from tests.dial.fake_bots import FakeBot, Line, fake_bot, http_answer, twiml
from tests.signals import correlation_delay_ms, speech_like, tone
from tests.stalls import undisturbed
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.dial.sound_detection import audible_range
from wsvoice.dial.timeouts import Timeouts
from wsvoice.errors import AudioFileError, UsageError
from wsvoice.providers.xml_answer import BUSY

TOKEN = "wsvoice_test_auth_token_0000001"
SPEECH = speech_like(400, 8000, seed=3)
WORDS = PCMU_8K.encode(tone(440, 300, 8000))
QUICK = Timeouts(close_s=1.0)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    write_wav(path, [SPEECH], 8000)
    return path


class Called:
    """A call that was placed, and both ends' view of it."""

    def __init__(self, report: CallReport, bot: FakeBot, events: list[TimelineEvent]) -> None:
        self.report = report
        self.bot = bot
        self.events = events

    @property
    def line(self) -> Line:
        return self.bot.lines[0]

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def found(self) -> list[tuple[str, str, int]]:
        return [(found.id, found.level, found.count) for found in self.report.findings]


def call(
    behaviour: fake_bots.Behaviour,
    *,
    stream: bool = False,
    timeouts: Timeouts = QUICK,
    served: dict[str, Any] | None = None,
    url: Callable[[FakeBot], str] | None = None,
    **settings: Any,
) -> Called:
    """Serve a bot, dial it, and return what came of it."""
    events: list[TimelineEvent] = []

    async def place() -> Called:
        async with fake_bot(behaviour, **(served or {})) as bot:
            target = url(bot) if url else bot.stream_url if stream else bot.url
            config = DialConfig(**{"target": target, "listen_s": 0.0, "response_timeout_s": 0.6, **settings})
            report = await dial(config, on_event=events.append, timeouts=timeouts)
            await asyncio.sleep(0)
            assert report.verdict == ("failed" if report.failure else "passed")
            return Called(report, bot, events)

    return asyncio.run(place())


# A call that goes well


def test_an_echo_passes(clip: Path) -> None:
    report = undisturbed(lambda: call(fake_bots.echo, audio=(clip,)).report)
    assert (report.verdict, report.failure, report.findings) == ("passed", None, ())
    (turn,) = report.turns
    assert turn.response_ms == 0
    assert turn.bot_start_ms is not None
    # A frame is sent when its 20 ms are over; the rest is the way there and back.
    assert 20 <= turn.bot_start_ms - turn.caller_start_ms < 300
    assert report.first_audio_ms == turn.bot_start_ms
    assert (report.ended_by, report.close_code) == ("caller", 1000)
    assert report.webhook_ms is not None
    assert report.connect_ms is not None
    assert report.sent_audio_ms == pytest.approx(report.duration_ms, abs=200)
    assert report.received_audio_ms == pytest.approx(report.sent_audio_ms, abs=300)
    assert report.recording is None


def test_both_sides_are_recorded_on_one_time_axis(clip: Path, tmp_path: Path) -> None:
    answer = speech_like(500, 8000, seed=7)

    async def answers(line: Line) -> None:
        while len(line.heard) < PCMU_8K.bytes_for(600):
            await line.receive_until("media")
        await line.say(PCMU_8K.encode(answer))
        await line.listen()

    path = tmp_path / "call.wav"
    report = call(answers, audio=(clip,), listen_s=0.1, record=path).report
    assert (report.failure, report.recording) == (None, str(path))
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        assert file.getnframes() / 8 == pytest.approx(report.duration_ms, abs=200)
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    left, right = (both[:, side].tobytes() for side in (0, 1))
    (turn,) = report.turns

    delay_ms, likeness = correlation_delay_ms(SPEECH, left, 8000)
    first, _ = audible_range(SPEECH, 8000) or (0, 0)
    assert delay_ms == pytest.approx(100, abs=0.1)
    assert delay_ms == pytest.approx(turn.caller_start_ms - first / 8, abs=0.1)
    assert likeness > 0.999

    delay_ms, likeness = correlation_delay_ms(answer, right, 8000)
    first, _ = audible_range(PCMU_8K.decode(PCMU_8K.encode(answer)), 8000) or (0, 0)
    assert turn.bot_start_ms is not None
    assert delay_ms == pytest.approx(turn.bot_start_ms - first / 8, abs=0.1)
    assert delay_ms >= 600
    assert likeness > 0.99


def test_the_call_is_the_providers_own(clip: Path) -> None:
    called = call(fake_bots.echo, audio=(clip,), credentials={"TWILIO_AUTH_TOKEN": TOKEN}, dtmf="1")
    bot, line, report = called.bot, called.line, called.report
    ((method, path, headers, body),) = bot.webhooks
    assert (method, path) == ("POST", "/")
    assert headers["content-type"].startswith("application/x-www-form-urlencoded")
    fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
    assert fields["CallSid"] == report.call_id
    validator = RequestValidator(TOKEN)
    assert validator.validate(bot.url, fields, headers["x-twilio-signature"])

    (upgrade,) = bot.upgrades
    assert sorted(name.lower() for name, _ in upgrade) == sorted(
        [
            "host",
            "upgrade",
            "connection",
            "sec-websocket-key",
            "sec-websocket-version",
            "user-agent",
            "x-twilio-signature",
        ]
    )
    sent = {name.lower(): value for name, value in upgrade}
    assert sent["user-agent"].startswith("Twilio")
    wss_url = bot.stream_url.replace("ws://", "wss://")
    assert validator.validate(wss_url, {}, sent["x-twilio-signature"])

    connected, start, *rest = line.messages
    assert connected == {"event": "connected", "protocol": "Call", "version": "1.0.0"}
    assert start["start"]["callSid"] == report.call_id
    assert start["streamSid"] == start["start"]["streamSid"] == report.stream_id
    numbered = [message["sequenceNumber"] for message in line.messages[1:]]
    assert numbered == [str(number) for number in range(1, len(numbered) + 1)]
    media = [message["media"] for message in rest if message["event"] == "media"]
    assert [piece["chunk"] for piece in media] == [str(number) for number in range(1, len(media) + 1)]
    assert [piece["timestamp"] for piece in media] == [str(20 * number) for number in range(1, len(media) + 1)]
    assert {len(base64.b64decode(piece["payload"])) for piece in media} == {160}
    assert {piece["track"] for piece in media} == {"inbound"}
    assert [message["dtmf"]["digit"] for message in rest if message["event"] == "dtmf"] == ["1"]


def test_media_keep_their_pace(clip: Path) -> None:
    async def timed(line: Line) -> None:
        loop = asyncio.get_running_loop()
        arrivals.append(loop.time())
        while True:
            message = await line.receive()
            if message["event"] == "media":
                arrivals.append(loop.time())
            if len(arrivals) == 30:
                await line.say(WORDS)

    arrivals: list[float] = []

    def place() -> Called:
        arrivals.clear()
        return call(timed, audio=(clip,), duration_s=1.0)

    called = undisturbed(place)
    assert called.report.sent_audio_ms == 1000
    late_ms = [(at - arrivals[0]) * 1000 - 20 * n for n, at in enumerate(arrivals)]
    # The clock is absolute: single messages may be late on a busy machine, but lateness does not add up.
    assert min(late_ms[-20:]) < 15
    assert min(late_ms) > -15


def test_a_bot_that_speaks_first_is_heard_out(clip: Path) -> None:
    called = undisturbed(
        lambda: call(fake_bots.speaks_first(WORDS), audio=(clip, clip), listen_s=1.0, response_timeout_s=3.0)
    )
    report = called.report
    assert report.failure is None
    assert report.first_audio_ms is not None
    assert report.first_audio_ms < 500
    first, second = report.turns
    assert first.caller_start_ms > report.first_audio_ms + 300 + 550
    for turn in (first, second):
        assert turn.response_ms is not None
        assert 100 < turn.response_ms < 900
    assert report.underruns == 0
    kinds = [event.kind for event in called.events if event.kind.startswith(("bot-", "caller-"))]
    turn_kinds = ["caller-speaks", "caller-silent", "bot-speaks", "bot-silent"]
    assert kinds == ["bot-speaks", "bot-silent", *turn_kinds, *turn_kinds]


def test_marks_come_back_when_they_are_reached_and_clears_are_obeyed(clip: Path) -> None:
    back: list[tuple[str, float]] = []

    async def marking(line: Line) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        # Of nothing, which is not worth a line.
        await line.clear()
        await line.mark("empty")
        await line.say(WORDS)
        await line.mark("played")
        while len(back) < 2:
            message = await line.receive_until("mark")
            back.append((message["mark"]["name"], loop.time() - began))
        began = loop.time()
        await line.say(PCMU_8K.encode(tone(300, 4000, 8000)))
        await line.mark("cleared")
        await asyncio.sleep(0.2)
        await line.clear()
        message = await line.receive_until("mark")
        back.append((message["mark"]["name"], loop.time() - began))
        await line.listen()

    called = call(marking, audio=(clip,), listen_s=0.5, duration_s=1.6)
    assert [name for name, _ in back] == ["empty", "played", "cleared"]
    assert back[0][1] < 0.25
    assert 0.28 < back[1][1] < 1.0
    assert back[2][1] < 1.0
    assert (called.report.marks, called.report.clears) == (3, 2)
    (told,) = called.told("clear")
    assert re.fullmatch(r"the bot cleared [1-9]\d+ ms of queued audio", told)
    assert len(called.told("mark")) == 3
    # What was cleared was never heard, and what is cleared in time is no fault of the bot's.
    assert called.told("bot-silent") != []
    # On a busy machine the sound itself may break off.
    assert [found.id for found in called.report.findings if found.id != "M2"] == []


def test_a_stream_can_be_dialled_by_itself(clip: Path) -> None:
    called = call(fake_bots.echo, stream=True, audio=(clip,), parameters={"language": "en"}, duration_s=0.3)
    assert called.report.failure is None
    assert called.report.webhook_ms is None
    assert called.bot.webhooks == []
    assert called.line.messages[1]["start"]["customParameters"] == {"language": "en"}


def test_the_answers_parameters_reach_the_stream(clip: Path) -> None:
    parameter = '<Parameter name="from_number" value="+15550100001"/>'
    served = {"answer": {"parameters": parameter, "then": "<Say>Bye</Say>"}}
    called = call(fake_bots.echo, audio=(clip,), served=served, method="GET", duration_s=0.3)
    assert called.line.messages[1]["start"]["customParameters"] == {"from_number": "+15550100001"}
    ((method, path, _, body),) = called.bot.webhooks
    assert (method, body) == ("GET", b"")
    assert "CallSid=CA" in path


def test_redirects_are_followed_and_signed_anew(clip: Path) -> None:
    def webhook(bot: FakeBot, number: int) -> bytes:
        if number == 1:
            return http_answer("", "307 Temporary Redirect", Location="/next?a=b")
        if number == 2:
            return http_answer("", "302 Found", Location=f"{bot.url}last")
        return http_answer(twiml(bot.stream_url))

    called = call(fake_bots.echo, audio=(clip,), served={"webhook": webhook}, credentials={"TWILIO_AUTH_TOKEN": TOKEN})
    assert called.report.failure is None
    seen = [(method, path.partition("?")[0]) for method, path, _, _ in called.bot.webhooks]
    assert seen == [("POST", "/"), ("POST", "/next"), ("GET", "/last")]
    validator = RequestValidator(TOKEN)
    for method, path, headers, body in called.bot.webhooks:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True)) if method == "POST" else {}
        assert validator.validate(called.bot.url[:-1] + path, fields, headers["x-twilio-signature"])


def test_redirects_end_somewhere() -> None:
    served = {"webhook": lambda bot, number: http_answer("", "302 Found", Location="/again")}
    called = call(fake_bots.echo, served=served)
    assert called.report.failure == "the webhook redirects more than 10 times"
    assert len(called.bot.webhooks) == 11


def test_force_ws_dials_without_tls(clip: Path) -> None:
    def webhook(bot: FakeBot, number: int) -> bytes:
        return http_answer(twiml(bot.stream_url.replace("ws://", "wss://")))

    called = call(fake_bots.echo, audio=(clip,), served={"webhook": webhook}, force_ws=True, duration_s=0.3)
    assert called.report.failure is None
    assert called.report.findings == ()
    assert any("ws:// instead of wss://" in text for text in called.told("answer"))


# A bot that does not do well


def test_silence_fails(clip: Path) -> None:
    called = call(fake_bots.silent, audio=(clip,))
    assert called.report.failure == "the bot never made a sound"
    assert called.report.to_lines()[-1] == "failed: the bot never made a sound"
    assert called.report.turns[0].response_ms is None
    assert called.report.ended_by == "caller"
    assert called.line.messages[-1]["event"] == "stop"


def test_sending_silence_is_silence_too(clip: Path) -> None:
    async def hush(line: Line) -> None:
        await line.say(b"\xff" * 4000)
        await line.listen()

    called = call(hush, audio=(clip,))
    assert called.report.failure == "the bot never made a sound (it sent 0.5 s of audio that is silent)"


def test_a_bot_that_greets_and_then_does_not_answer_fails(clip: Path) -> None:
    async def greet(line: Line) -> None:
        await line.say(WORDS)
        await line.listen()

    called = call(greet, audio=(clip, clip), listen_s=1.0)
    assert called.report.failure == "the bot did not answer turn 1 within 0.6 s"
    assert len(called.report.turns) == 1


def test_a_crash_fails(clip: Path) -> None:
    called = call(fake_bots.crash, audio=(clip,))
    assert called.report.failure is not None
    assert called.report.failure.startswith("the bot crashed (it closed the call with 1011)")
    assert (called.report.ended_by, called.report.close_code) == ("bot", 1011)
    assert [str(error) for error in called.bot.errors] == ["a bug in the bot"]


def test_a_broken_connection_fails(clip: Path) -> None:
    called = call(fake_bots.drop, audio=(clip,))
    assert called.report.failure == "the connection broke: the bot's end went away without closing it (1006)"
    assert (called.report.ended_by, called.report.close_code) == ("bot", 1006)


def test_a_bot_that_hangs_up_at_once_fails(clip: Path) -> None:
    async def leave(line: Line) -> None:
        await line.close()

    called = call(leave, audio=(clip,))
    assert called.report.failure == "the bot ended the call before it made a sound (1000)"
    assert called.report.ended_by == "bot"


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_bot_that_leaves_in_the_callers_turn_fails(tmp_path: Path, reads_on: bool) -> None:
    async def leave(line: Line) -> None:
        await line.say(WORDS)
        await asyncio.sleep(0.35)
        if reads_on:
            await line.close()
        else:
            # Behind messages that nobody takes, it does not see that its close is answered, and drops the connection.
            await line.socket.close()

    long = tmp_path / "long.wav"
    write_wav(long, [SPEECH * 12], 8000)
    called = call(leave, audio=(long,))
    # The clip would last for much longer.
    assert called.report.duration_ms < 3000
    assert called.report.close_code == 1000
    assert called.report.failure == "the bot ended the call before the caller's turn 1 was over"


def test_a_bot_that_answers_and_hangs_up_passes(clip: Path) -> None:
    async def goodbye(line: Line) -> None:
        while len(line.heard) < PCMU_8K.bytes_for(500):
            await line.receive_until("media")
        await line.say(WORDS)
        await line.mark("end")
        await line.receive_until("mark")
        await line.close()

    then = '<Say>Thank you</Say><Pause length="2"/>'
    called = call(goodbye, audio=(clip,), served={"answer": {"then": then}})
    assert called.report.failure is None
    assert (called.report.ended_by, called.report.close_code) == ("bot", 1000)
    assert any("Say: Thank you" in text for text in called.told("note"))


def test_words_that_are_cut_off_by_the_bots_hang_up_fail(clip: Path) -> None:
    async def cut(line: Line) -> None:
        while len(line.heard) < PCMU_8K.bytes_for(500):
            await line.receive_until("media")
        await line.say(WORDS * 5)
        await asyncio.sleep(0.3)
        await line.close()

    called = call(cut, audio=(clip,))
    assert called.report.failure is not None
    assert "of its audio unplayed: the caller never hears it" in called.report.failure
    assert called.found() == [("E2", "fail", 1)]


def test_broken_messages_are_counted_by_kind(clip: Path) -> None:
    async def garble(line: Line) -> None:
        for _ in range(3):
            await line.socket.send("not json")
        await line.socket.send(b"\x00\x01")
        await line.send({"event": "media", "media": {"payload": "***"}})
        await line.send({"event": "dance"})
        await line.send({"event": "dance"})
        await line.mark("same")
        await line.mark("same")
        await fake_bots.echo(line)

    called = call(garble, audio=(clip,), duration_s=0.3)
    assert called.found() == [
        ("M1", "fail", 3),
        ("M1", "fail", 1),
        ("M1", "fail", 1),
        ("M1", "warn", 2),
        ("M4", "warn", 1),
    ]
    assert called.report.failure == called.report.findings[0].message
    assert len(called.told("finding")) == 5
    # The bot was still heard: broken messages do not end a call.
    assert called.report.first_audio_ms is not None


def test_audio_far_ahead_of_real_time_is_told(clip: Path) -> None:
    async def burst(line: Line) -> None:
        await line.say(WORDS)
        for _ in range(10):
            await line.say(b"\xff" * 8000)
        await line.clear()
        await fake_bots.echo(line)

    called = call(burst, audio=(clip,), duration_s=0.3)
    assert called.report.failure is None
    assert called.found() == [("M2", "warn", 1)]
    # Less what is played until the last of it has come.
    assert re.search(r"(10\.[0-3]|9\.\d) s ahead of real time", called.report.findings[0].message)


def test_ten_minutes_of_queued_audio_are_too_much(clip: Path) -> None:
    async def flood(line: Line) -> None:
        minute = b"\xff" * 8000 * 60
        for _ in range(10):
            await line.say(minute)
        await line.say(WORDS * 4)
        await line.listen()

    called = call(flood, audio=(clip,), duration_s=3.0)
    assert ("M2", "fail", 1) in called.found()
    assert any("more than 600 s of audio were queued" in found.message for found in called.report.findings)


def test_a_sound_that_breaks_off_is_told(clip: Path) -> None:
    async def stutter(line: Line) -> None:
        for _ in range(3):
            await line.say(WORDS)
            await asyncio.sleep(0.3 + 0.15)
        await fake_bots.echo(line)

    called = undisturbed(lambda: call(stutter, audio=(clip,), listen_s=1.0, duration_s=1.4))
    assert 1 <= called.report.underruns <= 3
    assert 400 < called.report.max_gap_ms < 1800
    assert called.found() == [("M2", "warn", 1)]
    assert called.report.failure is None


def test_a_server_that_does_not_let_go_is_told(clip: Path) -> None:
    async def deaf(line: Line) -> None:
        await line.say(WORDS)
        # Stops reading, the closing handshake included, until the caller has long run out of patience.
        line.socket.transport.pause_reading()
        await asyncio.sleep(3.5)
        line.socket.transport.abort()

    called = call(deaf, audio=(clip,), duration_s=0.3)
    assert called.found() == [("E1", "fail", 1)]
    assert called.report.ended_by == "caller"
    assert called.report.close_code == 1006


def test_a_message_that_is_too_large_breaks_the_call(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsvoice.dial.stream_opening.MESSAGE_LIMIT", 100_000)

    async def shout(line: Line) -> None:
        await line.say(b"\xff" * 200_000)
        await line.listen()

    called = call(shout, audio=(clip,))
    assert called.report.failure is not None
    assert called.report.failure.startswith("the bot broke the WebSocket protocol (1009")


# A call that does not come about


def refused(**served: Any) -> Called:
    called = call(fake_bots.echo, served=served)
    assert called.report.stream_id == ""
    assert called.report.turns == ()
    assert called.report.ended_by is None
    return called


def test_nothing_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        called = call(fake_bots.echo, url=lambda bot: url)
    assert called.report.failure == (
        f"nothing listens at {url} - start it with `wsvoice run bot.py -t twilio`, or give a bot file: "
        "`wsvoice dial bot.py`"
    )


def test_an_unknown_host() -> None:
    called = call(fake_bots.echo, url=lambda bot: "http://nothing.invalid/")
    assert called.report.failure == (
        "the host nothing.invalid is unknown - a server on this machine is dialled by "
        "`wsvoice dial http://localhost:7860/`"
    )


def test_a_server_without_tls() -> None:
    called = call(fake_bots.echo, url=lambda bot: bot.stream_url.replace("ws://", "https://"))
    assert called.report.failure is not None
    assert called.report.failure.startswith("no TLS connection to 127.0.0.1")
    assert called.report.failure.endswith("use http://")


def test_a_slow_webhook_is_told_and_a_slower_one_fails(clip: Path) -> None:
    timeouts = Timeouts(webhook_warn_s=0.1, webhook_s=10)
    called = call(fake_bots.echo, served={"delay_s": 0.25}, timeouts=timeouts, audio=(clip,), duration_s=0.3)
    assert called.report.failure is None
    assert called.found() == [("W1", "warn", 1)]
    assert called.report.webhook_ms is not None
    assert called.report.webhook_ms >= 250

    called = call(fake_bots.echo, served={"delay_s": 2}, timeouts=Timeouts(webhook_s=0.2))
    assert called.report.failure == f"the webhook did not answer within 0.2 s: {called.bot.url}"
    assert called.found() == [("W1", "fail", 1)]


def test_a_webhook_that_wants_another_signature() -> None:
    forbidden: fake_bots.Webhook = lambda bot, number: http_answer("no", "403 Forbidden")  # noqa: E731
    assert refused(webhook=forbidden).report.failure == (
        "the webhook refused the call: 403 (it checks who calls; set TWILIO_AUTH_TOKEN to match the server's)"
    )
    called = call(fake_bots.echo, served={"webhook": forbidden}, credentials={"TWILIO_AUTH_TOKEN": TOKEN})
    assert called.report.failure == ("the webhook refused the call: 403 (compare TWILIO_AUTH_TOKEN with the server's)")


def test_a_webhook_that_fails() -> None:
    called = refused(webhook=lambda bot, number: http_answer("\n  KeyError: 'x'\nmore", "500 Oops"))
    assert called.report.failure == "the webhook failed: 500, KeyError: 'x'"
    called = refused(webhook=lambda bot, number: http_answer("\x1b[31m" + "long " * 100, "500 Oops"))
    assert called.report.failure is not None
    assert len(called.report.failure) < 300
    assert called.report.failure.isprintable()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "<!DOCTYPE html>\n<html><head><title>502 Bad\n Gateway</title></head>x</html>",
            "502 Bad Gateway",
        ),
        ("<html><head><style>p {}</style></head><body><h1>Not <b>here</b></h1></body></html>", "Not here"),
        ("<h1>It&#39;s broken</h1><p>Really.</p>", "It's broken"),
        ("<html><script>var x = '<b>';", ""),
    ],
)
def test_a_foreign_servers_page_is_not_pasted(body: str, said: str) -> None:
    page: fake_bots.Webhook = lambda bot, number: http_answer(body, "502 Bad Gateway", Content_Type="text/html")  # noqa: E731
    assert refused(webhook=page).report.failure == "the webhook failed: 502" + (f", {said}" if said else "")
    found: fake_bots.Webhook = lambda bot, number: http_answer(body, Content_Type="text/html")  # noqa: E731
    named = f" ({said!r})" if said else ""
    assert refused(webhook=found).report.failure == f"the webhook's answer cannot be used: it is a web page{named}"


def test_an_answer_that_is_no_answer() -> None:
    called = refused(webhook=lambda bot, number: http_answer("<Response><Connect>"))
    assert called.report.failure is not None
    assert called.report.failure.startswith("the webhook's answer cannot be used: ")
    assert called.found() == [("W3", "fail", 1)]
    called = refused(webhook=lambda bot, number: http_answer("404", Content_Type="application/json"))
    assert called.found() == [("W3", "fail", 1)]


def test_a_call_that_is_turned_away() -> None:
    body = '<Response><Reject reason="busy"/></Response>'
    called = refused(webhook=lambda bot, number: http_answer(body))
    assert called.report.failure == BUSY
    assert re.search("every place.*number.*day.*log says which$", BUSY)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (HTTPStatus.FORBIDDEN, "the stream was refused: 403 to the WebSocket's upgrade (the stream token"),
        (HTTPStatus.SERVICE_UNAVAILABLE, "the stream was refused: 503 to the WebSocket's upgrade (every place is"),
        (HTTPStatus.FOUND, "the stream was refused: 302 to the WebSocket's upgrade;"),
    ],
)
def test_a_stream_that_is_refused(status: HTTPStatus, words: str) -> None:
    called = refused(refuse=status)
    assert called.report.failure is not None
    assert called.report.failure.startswith(words)
    assert called.report.failure.endswith("Twilio reports this as error 31920")
    assert called.found() == [("S1", "fail", 1)]
    assert called.report.webhook_ms is not None
    assert called.report.connect_ms is None


def test_a_stream_that_is_refused_leads_to_the_webhook() -> None:
    called = call(fake_bots.echo, served={"refuse": HTTPStatus.FORBIDDEN}, url=lambda bot: bot.stream_url)
    failure = called.report.failure or ""
    assert failure.startswith("the stream was refused: 403 to the")
    webhook = called.bot.stream_url.replace("ws://", "http://").removesuffix("stream/token")
    assert failure.endswith(f" - dial the webhook instead: `wsvoice dial {webhook}`")
    # The finding is in few words, and the report says it once: in the verdict.
    assert [found.message for found in called.report.findings] == ["the stream was refused: 403"]
    assert [line for line in called.report.to_lines() if "refused" in line] == [f"failed: {failure}"]


@pytest.mark.parametrize("code", [1001, 1012])
def test_a_server_that_stops_in_the_call_fails_it(clip: Path, code: int) -> None:
    async def stops(line: fake_bots.Line) -> None:
        await line.say(PCMU_8K.encode(tone(440, 300, 8000)))
        await asyncio.sleep(0.6)
        await line.close(code)

    called = call(stops, audio=(clip,), duration_s=3.0)
    assert (called.report.verdict, called.report.close_code) == ("failed", code)
    assert called.report.failure == f"the server stopped during the call ({code})"


def test_a_stream_without_tls_on_this_machine_names_the_option() -> None:
    called = refused(webhook=lambda bot, number: http_answer(twiml(bot.stream_url.replace("ws://", "wss://"))))
    assert called.report.failure is not None
    assert "--force-ws" in called.report.failure
    assert called.report.failure.endswith("error 31910")


def test_a_stream_elsewhere_of_a_server_that_was_dialled_by_a_local_name() -> None:
    """As where the server is in a container, and does not know that its caller is on this machine."""
    answer = http_answer(twiml("wss://my.domain.invalid:8443/ws"))
    called = refused(webhook=lambda bot, number: answer)
    assert called.report.failure == (
        "the stream's host my.domain.invalid is unknown; Twilio reports this as error 31920 - dial the public address, "
        "`wsvoice dial https://my.domain.invalid:8443/`, or dial on the machine where the server runs"
    )


def test_a_stream_that_does_not_open_in_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}/"
        called = call(fake_bots.echo, url=lambda bot: url, timeouts=Timeouts(connect_s=0.2))
    assert called.report.failure == (
        f"the stream at {url} did not open within 0.2 s; Twilio reports this as error 31901"
    )


# The user's own mistakes


def test_mistakes_are_raised_before_anything_is_dialled(tmp_path: Path) -> None:
    def place(**settings: Any) -> None:
        asyncio.run(dial(DialConfig(target="http://127.0.0.1:9/", **settings)))

    with pytest.raises(AudioFileError):
        place(audio=(tmp_path / "none.wav",))
    with pytest.raises(UsageError, match="folder does not exist"):
        place(record=tmp_path / "none" / "call.wav")
    with pytest.raises(UsageError, match="no provider is called"):
        place(transport="pigeon")
    for wrong in ({"duration_s": -1.0}, {"listen_s": -1.0}, {"response_timeout_s": float("nan")}):
        with pytest.raises(UsageError, match="it takes 0 or more"):
            place(**wrong)
    with pytest.raises(UsageError, match="is a phone number"):
        asyncio.run(dial(DialConfig(target="+15550100002")))


# Ctrl-C


def test_a_cancelled_call_is_hung_up_in_good_order(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "call.wav"

    async def place() -> FakeBot:
        async with fake_bot(fake_bots.echo) as bot:
            events: list[TimelineEvent] = []
            spoken = asyncio.Event()

            def on_event(event: TimelineEvent) -> None:
                events.append(event)
                if event.kind == "bot-speaks":
                    spoken.set()

            config = DialConfig(target=bot.url, audio=(clip,), listen_s=0, record=path)
            task = asyncio.create_task(dial(config, on_event=on_event, timeouts=QUICK))
            await asyncio.wait_for(spoken.wait(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [event.kind for event in events][-2:] == ["hang-up", "closed"]
            return bot

    bot = asyncio.run(place())
    (line,) = bot.lines
    assert line.messages[-1]["event"] == "stop"
    assert line.socket.close_code == 1000
    with wave.open(str(path)) as file:
        assert file.getnframes() >= 320


def test_credentials_in_a_dialled_url_are_sent_once_and_as_they_are_meant(clip: Path) -> None:
    called = call(
        fake_bots.echo,
        audio=(clip,),
        url=lambda bot: bot.stream_url.replace("ws://", "ws://key:t%C3%B6k%3Aen@"),
        listen_s=0.1,
    )
    [upgrade] = called.bot.upgrades
    sent = [value for name, value in upgrade if name.lower() == "authorization"]
    assert sent == ["Basic " + base64.b64encode("key:tök:en".encode()).decode()]
