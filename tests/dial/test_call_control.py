"""How a call goes on after its first document, and who is told: against servers made of nothing but documents."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import plivo.utils
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from twilio.request_validator import RequestValidator

from tests.dial.fake_bots import Behaviour, FakeBot, Line, fake_bot, http_answer
from tests.signals import speech_like, tone
from wsvoice.audio import PCMU_8K, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.call_control import MAX_DOCUMENTS
from wsvoice.dial.caller import dial
from wsvoice.dial.timeouts import Timeouts

TOKEN = "wsvoice_test_auth_token_0000001"
SEED = base64.b64encode(bytes(range(32))).decode()
PUBLIC_KEY = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
CREDENTIALS = {
    "twilio": {"TWILIO_AUTH_TOKEN": TOKEN},
    "telnyx": {"TELNYX_PRIVATE_KEY": SEED},
    "plivo": {"PLIVO_AUTH_TOKEN": TOKEN},
    "signalwire": {"SIGNALWIRE_SIGNING_KEY": TOKEN},
}
WORDS = PCMU_8K.encode(tone(440, 200, 8000))
QUICK = Timeouts(close_s=1.0)
Pages = Callable[[FakeBot, str, int], str | bytes]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    write_wav(path, [speech_like(200, 8000, seed=3)], 8000)
    return path


class Called:
    """A call, and both ends' view of it."""

    def __init__(self, report: CallReport, bot: FakeBot, events: list[TimelineEvent]) -> None:
        self.report = report
        self.bot = bot
        self.events = events

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def found(self) -> list[tuple[str, str]]:
        return [(found.id, found.level) for found in self.report.findings]

    def requests(self, path: str) -> list[tuple[str, dict[str, str], dict[str, str]]]:
        """Return method, headers and fields of what came to `path`."""
        asked = []
        for method, target, headers, body in self.bot.webhooks:
            if target.partition("?")[0] == path:
                query = target.partition("?")[2] if method == "GET" else body.decode()
                asked.append((method, headers, dict(parse_qsl(query, keep_blank_values=True))))
        return asked


def call(
    pages: Pages,
    behaviour: Behaviour,
    clip: Path,
    *,
    name: str = "twilio",
    duration_s: float | None = 20.0,
    **options: Any,
) -> Called:
    """
    Dial a server whose `pages` are rendered by path and by how often the path was asked for.

    The caller stays on the line, so that it is the bot who ends the stream, however busy the machine is.
    """
    events: list[TimelineEvent] = []

    def webhook(bot: FakeBot, _: int) -> bytes:
        path = bot.webhooks[-1][1].partition("?")[0]
        page = pages(bot, path, sum(each[1].partition("?")[0] == path for each in bot.webhooks))
        return page if isinstance(page, bytes) else http_answer(page)

    async def place() -> Called:
        async with fake_bot(behaviour, webhook=webhook, **options) as bot:
            config = DialConfig(
                target=bot.url,
                transport=name,
                credentials=CREDENTIALS[name],
                audio=(clip,),
                listen_s=0.0,
                duration_s=duration_s,
            )
            report = await dial(config, on_event=events.append, timeouts=QUICK)
            await asyncio.sleep(0)
            return Called(report, bot, events)

    return asyncio.run(place())


async def answers_and_closes(line: Line) -> None:
    """Say a word once the caller has said something, let it be played, and close."""
    await answers(line)
    await asyncio.sleep(0.35)
    await line.close()


async def answers(line: Line) -> None:
    spoken = 0
    while spoken < 5:
        message = await line.receive()
        if message["event"] == "media":
            payload = base64.b64decode(message["media"]["payload"])
            spoken += payload.strip(b"\xff\x7f") != b""
    if "streamId" in str(line.messages[0]):
        media = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": base64.b64encode(WORDS).decode()}
        await line.socket.send(json.dumps({"event": "playAudio", "media": media}))
    elif "stream_id" in str(line.messages[1]):
        media = {"payload": base64.b64encode(WORDS).decode()}
        await line.socket.send(json.dumps({"event": "media", "media": media}))
    else:
        await line.say(WORDS)


def stream(bot: FakeBot, name: str, attributes: str = "", then: str = "", connect: str = "") -> str:
    """Render a document that streams, and what follows."""
    if name == "plivo":
        settings = 'bidirectional="true" keepCallAlive="true" contentType="audio/x-mulaw;rate=8000"'
        inside = f"<Stream {settings} {attributes}>{bot.stream_url}</Stream>"
    else:
        if name == "telnyx":
            attributes += ' codec="PCMU" bidirectionalMode="rtp" enableReconnect="false"'
        inside = f'<Connect {connect}><Stream url="{bot.stream_url}" {attributes}/></Connect>'
    return f"<Response>{inside}{then}</Response>"


def assert_signed(called: Called, name: str, path: str) -> None:
    """Assert, by the provider's own library, that it signed what came to `path`."""
    for method, target, headers, body in called.bot.webhooks:
        if target.partition("?")[0] != path:
            continue
        url = called.bot.url.rstrip("/") + target
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True)) if method == "POST" else {}
        if name in ("twilio", "signalwire"):
            assert RequestValidator(TOKEN).validate(url, fields, headers[f"x-{name}-signature"])
        elif name == "plivo":
            nonce, signature = headers["x-plivo-signature-v3-nonce"], headers["x-plivo-signature-v3"]
            assert plivo.utils.validate_v3_signature(method, url, nonce, TOKEN, signature, fields or None)
        else:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(PUBLIC_KEY))
            signature = base64.b64decode(headers["telnyx-signature-ed25519"])
            key.verify(signature, headers["telnyx-timestamp"].encode() + b"|" + body)


NAMES = pytest.mark.parametrize("name", CREDENTIALS)
CONNECTING = pytest.mark.parametrize("name", ["twilio", "telnyx", "signalwire"])


# <Redirect>


@NAMES
def test_a_redirect_is_followed(name: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        if path == "/":
            return '<Response><Speak>Wait</Speak><Redirect method="POST">next?a=1</Redirect></Response>'
        return stream(bot, name)

    called = call(pages, answers_and_closes, clip, name=name)
    assert called.report.failure is None, called.events
    ((method, _, fields),) = called.requests("/next")
    assert method == "POST"
    assert fields["CallStatus"] == "ringing"
    assert fields["CallUUID" if name == "plivo" else "CallSid"] == called.report.call_id
    if name == "plivo":
        assert fields["Event"] == "Redirect"
    assert_signed(called, name, "/next")
    assert "a real call would do first: Speak: Wait" in called.told("note")
    assert f"the answer's redirect leads to POST {called.bot.url}next?a=1" in called.told("webhook")


@NAMES
def test_redirects_end_somewhere(name: str, clip: Path) -> None:
    called = call(lambda *_: "<Response><Redirect/></Response>", answers_and_closes, clip, name=name)
    assert called.report.failure is not None
    assert "<Redirect> names no URL" in called.report.failure
    called = call(lambda *_: "<Response><Redirect>/</Redirect></Response>", answers_and_closes, clip, name=name)
    assert called.report.failure is not None
    assert f"more than {MAX_DOCUMENTS} documents" in called.report.failure
    assert len(called.bot.webhooks) == MAX_DOCUMENTS + 1


def test_a_redirect_to_nothing_fails(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str | bytes:
        if path == "/":
            return "<Response><Redirect method='GET'>/gone</Redirect></Response>"
        return http_answer("", "404 Not Found")

    called = call(pages, answers_and_closes, clip)
    assert called.report.failure == f"the webhook's server has no such path: 404 at {called.bot.url}gone"
    ((method, _, _),) = called.requests("/gone")
    assert method == "GET"


# <Connect action>


@CONNECTING
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_action_is_asked_when_the_bot_has_closed_the_stream(name: str, method: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        if path == "/":
            return stream(bot, name, connect=f'action="after" method="{method}"', then="<Say>never</Say>")
        return "<Response><Say>Bye</Say><Hangup/></Response>"

    called = call(pages, answers_and_closes, clip, name=name)
    report = called.report
    assert (report.failure, report.ended_by, report.close_code) == (None, "bot", 1000)
    ((asked, _, fields),) = called.requests("/after")
    assert asked == method
    assert (fields["CallSid"], fields["CallStatus"]) == (report.call_id, "in-progress")
    assert fields["StreamSid"] == report.stream_id
    assert_signed(called, name, "/after")
    notes = called.told("note")
    assert "a real call goes on with: Say: Bye; hang-up" in notes
    assert not any("never" in note for note in notes)


@CONNECTING
def test_the_call_goes_on_with_another_stream(name: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        if path == "/":
            return stream(bot, name, connect='action="/after"')
        return stream(bot, name) if times == 1 else "<Response/>"

    async def behaviour(line: Line) -> None:
        lines.append(line)
        if len(lines) == 1:
            await line.receive_until("media")
            await line.close()
            return
        await answers_and_closes(line)

    lines: list[Line] = []
    called = call(pages, behaviour, clip, name=name)
    report = called.report
    assert (report.failure, report.ended_by) == (None, "bot")
    first, second = (line.messages[1]["start"] for line in called.bot.lines)
    key, stream_key = ("call_control_id", "stream_id") if name == "telnyx" else ("callSid", "streamSid")
    assert first[key] == second[key] == report.call_id
    ids = [(line.messages[1] if name == "telnyx" else line.messages[1]["start"])[stream_key] for line in lines]
    assert ids[0] != ids[1]
    assert report.stream_id == ids[1]
    # The caller heard the bot of the second stream, and nothing of the first was lost.
    assert report.turns[0].response_ms is not None


def test_a_server_that_always_streams_again_is_left(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, "twilio", connect='action="/"')

    async def closes(line: Line) -> None:
        await line.close()

    called = call(pages, closes, clip)
    assert len(called.bot.lines) == MAX_DOCUMENTS + 1
    assert called.report.failure is not None
    assert f"more than {MAX_DOCUMENTS} documents" in " ".join(found.message for found in called.report.findings)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (http_answer("", "500 Internal Server Error"), "the webhook failed: 500"),
        (http_answer("nonsense"), "the next document cannot be used: the answer is not XML"),
        (http_answer("<Response><Redirect>ftp://h/</Redirect></Response>"), "is no web address"),
        (http_answer(""), "the next document cannot be used: the answer is empty"),
    ],
)
def test_an_action_that_cannot_be_carried_out_fails(page: bytes, words: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str | bytes:
        return stream(bot, "twilio", connect='action="/after"') if path == "/" else page

    called = call(pages, answers_and_closes, clip)
    assert ("W6", "fail") in called.found()
    assert called.report.failure is not None
    assert words in called.report.failure


def test_an_action_without_a_document_ends_the_call(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str | bytes:
        return stream(bot, "twilio", connect='action="/after"') if path == "/" else http_answer("", "204 No Content")

    called = call(pages, answers_and_closes, clip)
    assert (called.report.failure, called.report.ended_by, called.found()) == (None, "bot", [])


def test_a_caller_who_hangs_up_asks_no_action(clip: Path) -> None:
    async def stays(line: Line) -> None:
        await answers(line)
        await line.listen()

    pages: Pages = lambda bot, *_: stream(bot, "twilio", connect='action="/after"')  # noqa: E731
    called = call(pages, stays, clip, duration_s=None)
    assert (called.report.failure, called.report.ended_by) == (None, "caller")
    assert called.requests("/after") == []


def test_an_action_that_takes_long_leaves_the_caller_free_to_go(clip: Path) -> None:
    """Between two streams the caller's script runs on, and its end is the call's."""

    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, "twilio", connect='action="/after"') if path == "/" else "<Response/>"

    async def closes(line: Line) -> None:
        await line.say(WORDS)
        await asyncio.sleep(0.3)
        await line.close()

    called = call(pages, closes, clip, delay_s=2.0, duration_s=1.5)
    assert called.report.ended_by == "caller"
    assert called.told("hang-up") == ["the caller hangs up"]


# What follows the stream


@NAMES
def test_what_follows_the_stream_is_carried_out(name: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        if path == "/":
            said = "<Speak>One moment</Speak>" if name == "plivo" else "<Say>One moment</Say>"
            return stream(bot, name, then=f"{said}<Redirect>/after</Redirect>")
        return "<Response><Dial><Number>+15550100009</Number></Dial></Response>"

    called = call(pages, answers_and_closes, clip, name=name)
    assert (called.report.failure, called.report.ended_by) == (None, "bot")
    ((_, _, fields),) = called.requests("/after")
    assert fields["CallStatus"] == "in-progress"
    assert_signed(called, name, "/after")
    assert called.told("hang-up") == ["the bot transfers the call to +15550100009"]


def test_a_second_connect_is_the_next_stream(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        again = f'<Connect><Stream url="{bot.stream_url}"><Parameter name="n" value="2"/></Stream></Connect>'
        return stream(bot, "twilio", then=again)

    async def behaviour(line: Line) -> None:
        if line.messages[1]["start"]["customParameters"]:
            await answers_and_closes(line)
        else:
            await line.close()

    called = call(pages, behaviour, clip)
    assert (called.report.failure, len(called.bot.lines)) == (None, 2)


def test_a_stream_of_another_rate_is_not_gone_on_with(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, "signalwire", 'codec="L16@16000h"' if times > 1 else "", connect='action="/"')

    called = call(pages, answers_and_closes, clip, name="signalwire")
    assert "the next stream has another sample rate, which a test call cannot follow" in called.told("note")
    assert called.report.ended_by == "bot"


# Status callbacks

EVENTS = {
    "twilio": ("StreamEvent", "stream-started", "stream-stopped", "stream-error"),
    "telnyx": ("StreamEvent", "stream-started", "stream-stopped", "stream-failed"),
    "signalwire": ("StreamEvent", "stream-started", "stream-stopped", "stream-error"),
    "plivo": ("Event", "StartStream", "StopStream", "DroppedStream"),
}


def status_attributes(name: str, url: str, method: str = "POST") -> str:
    attribute = "statusCallbackUrl" if name == "plivo" else "statusCallback"
    named = 'name="mine"' if name in ("twilio", "telnyx", "signalwire") else ""
    return f'{attribute}="{url}" statusCallbackMethod="{method}" {named}'


@NAMES
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_status_callback_is_told(name: str, method: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, name, status_attributes(name, "status", method)) if path == "/" else ""

    called = call(pages, answers_and_closes, clip, name=name)
    assert called.report.failure is None
    key, started, stopped, _ = EVENTS[name]
    asked = called.requests("/status")
    assert [(how, fields[key]) for how, _, fields in asked] == [(method, started), (method, stopped)]
    for _, _, fields in asked:
        assert fields["CallUUID" if name == "plivo" else "CallSid"] == called.report.call_id
        assert fields["StreamID" if name == "plivo" else "StreamSid"] == called.report.stream_id
        assert fields["Timestamp"].startswith("20")
        assert name == "plivo" or fields["StreamName"] == "mine"
    assert_signed(called, name, "/status")
    assert "the status callback that the stream has stopped was answered 200" in called.told("webhook")


@NAMES
def test_the_status_callback_is_told_of_a_stream_that_did_not_open(name: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, name, status_attributes(name, "/status")) if path == "/" else ""

    called = call(pages, answers_and_closes, clip, name=name, refuse=HTTPStatus.FORBIDDEN)
    assert called.report.failure is not None
    key, _, _, failed = EVENTS[name]
    ((_, _, fields),) = called.requests("/status")
    assert fields[key] == failed
    error = fields["StatusReason" if name == "plivo" else "StreamError"]
    assert error.startswith("the stream was refused: 403")


def test_a_stream_that_breaks_is_told_so(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, "twilio", status_attributes("twilio", "/status")) if path == "/" else ""

    async def crashes(line: Line) -> None:
        await line.receive_until("media")
        raise RuntimeError("a bug")

    called = call(pages, crashes, clip)
    assert [fields["StreamEvent"] for _, _, fields in called.requests("/status")] == ["stream-started", "stream-error"]


@pytest.mark.parametrize("status", ["404 Not Found", "500 Internal Server Error", "302 Found"])
def test_a_status_callback_that_fails_ends_no_call(status: str, clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str | bytes:
        if path == "/":
            return stream(bot, "twilio", status_attributes("twilio", "/status"))
        return http_answer("", status, Location="/elsewhere")

    called = call(pages, answers_and_closes, clip)
    assert called.report.failure is None
    assert called.found() == [("W3", "warn"), ("W6", "warn")] or called.found() == [("W6", "warn")]
    assert called.requests("/elsewhere") == []


def test_a_status_callback_on_another_server_is_left_alone(clip: Path) -> None:
    elsewhere = "http://127.0.0.1:9/status"
    called = call(
        lambda bot, *_: stream(bot, "twilio", status_attributes("twilio", elsewhere)), answers_and_closes, clip
    )
    assert (called.report.failure, called.found()) == (None, [])
    text = f"the status callback {elsewhere} is on another server, which a test call leaves alone"
    assert called.told("note").count(text) == 2


def test_a_status_callback_that_is_no_address_is_a_finding(clip: Path) -> None:
    def pages(bot: FakeBot, path: str, times: int) -> str:
        return stream(bot, "twilio", 'statusCallback="mailto:x"', connect='action="http://["')

    called = call(pages, answers_and_closes, clip)
    assert called.found() == [("W3", "warn"), ("W3", "warn")]
