"""
Asterisk's WebSocket, held against what a real Asterisk sent in captured calls (``tests/golden/asterisk/*.jsonl``).
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.providers.companies import load_provider
from tests.signals import speech_like
from wsvoice.audio import AudioFormat, Encoding, write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport
from wsvoice.dial.caller import dial
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import Side, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Event,
    FlowControl,
    Mark,
    Status,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.media_stream import Stream

GOLDEN = Path(__file__).parents[1] / "golden" / "asterisk"
CAPTURES = sorted(path.stem for path in GOLDEN.glob("*.jsonl"))
#: Those that are nothing but messages of Asterisk's and a server's, and so can be played to the simulated one.
PLAYED = [
    "buffering",
    "buffering-flushed",
    "call",
    "flow-control",
    "flow-control-flushed",
    "flush",
    "hangup-command",
    "mistakes",
    "plain-text",
    "queue-drained",
    "slin16",
]
STARTED = StreamStarted("WebSocket/wsvoice/0x7f00", "1795289319.1")

Record = dict[str, Any]


def capture(name: str) -> list[Record]:
    """Return what passed in a call: https://github.com/asterisk/asterisk/blob/22/channels/chan_websocket.c"""
    return [json.loads(line) for line in (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def texts(records: list[Record], side: str) -> list[str]:
    return [record["text"] for record in records if record["from"] == side and record["kind"] == "text"]


def ends(*, control: str = "json", audio: str = "ulaw") -> tuple[Stream, Stream]:
    """Return a carrier's and a bot's end of a stream that has started."""
    provider = load_provider("asterisk")
    carrier = provider.stream(Side.CARRIER, {"control": control, "format": audio})
    bot = provider.stream(Side.BOT)
    bot.receive(carrier.send(STARTED if audio == "ulaw" else StreamStarted("s", "c", format=carrier.format)))
    return carrier, bot


# What Asterisk sent, read by a bot


@pytest.mark.parametrize("name", CAPTURES)
def test_everything_that_asterisk_sends_is_known(name: str) -> None:
    bot = load_provider("asterisk").stream(Side.BOT)
    read = [bot.receive(text) for text in texts(capture(name), "asterisk")]
    assert isinstance(read[0], StreamStarted)
    assert not any(isinstance(event, Unknown) for event in read)


def test_the_dial_plans_variables_are_numbers_and_parameters() -> None:
    started = load_provider("asterisk").stream(Side.BOT).receive(texts(capture("call"), "asterisk")[0])
    assert isinstance(started, StreamStarted)
    assert (started.from_number, started.to_number) == ("+15550100", "100")
    # Asterisk's own are left out, and the underscores of a variable that is inherited on and on.
    assert started.parameters == {"TWICE": "2", "from_number": "+15550100", "to_number": "100"}


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("alaw", AudioFormat(Encoding.PCMA)),
        ("slin", AudioFormat(Encoding.L16)),
        ("slin16", AudioFormat(Encoding.L16, 16_000)),
        ("slin48", AudioFormat(Encoding.L16, 48_000)),
    ],
)
def test_the_dial_string_names_the_audio(name: str, wire: AudioFormat) -> None:
    carrier, bot = ends(audio=name)
    assert carrier.format == bot.format == bot.outbound_format == wire


@pytest.mark.parametrize("audio", ["opus", "g722", "", None, 7, ["ulaw"]])
def test_audio_that_cannot_be_decoded_is_refused(audio: object) -> None:
    start = {"event": "MEDIA_START", "channel": "WebSocket/a/0x1", "channel_id": "1.1", "format": audio}
    with pytest.raises(RemoteProtocolError, match="not one of ulaw, alaw, slin") as caught:
        load_provider("asterisk").stream(Side.BOT).receive(json.dumps(start))
    assert caught.value.kind == "bad-start"


def test_the_first_versions_told_no_channel_id() -> None:
    """https://docs.asterisk.org/Configuration/Channel-Drivers/WebSocket/#notifications"""
    text = "MEDIA_START connection_id:e226e283 channel:WebSocket/connectionid format:ulaw optimal_frame_size:160"
    started = load_provider("asterisk").stream(Side.BOT).receive(text)
    assert started == StreamStarted("WebSocket/connectionid", "WebSocket/connectionid")


# What a bot sends


def test_a_bot_answers_in_the_form_that_the_start_came_in() -> None:
    _, bot = ends()
    assert bot.send(Mark("m1")) == texts(capture("call"), "server")[0]
    assert bot.send(Clear()) == '{"command":"FLUSH_MEDIA"}'
    carrier, bot = ends(control="text")
    assert bot.send(Mark("m 1")) == texts(capture("plain-text"), "server")[0]
    assert bot.send(Clear()) == "FLUSH_MEDIA"
    assert carrier.receive(bot.send(Mark("m 1"))) == Mark("m 1")
    assert carrier.findings() == []


def test_a_mark_that_asterisk_would_ignore_is_an_error() -> None:
    """A text of 129 bytes got no answer, one of 128 did."""
    ignored, read = (json.loads(text)["correlation_id"] for text in texts(capture("mistakes"), "server")[5:7])
    _, bot = ends()
    assert len(bot.send(Mark(read))) == 128
    with pytest.raises(LocalProtocolError, match="129 bytes; Asterisk reads 128"):
        bot.send(Mark(ignored))


@pytest.mark.parametrize("name", [each for each in CAPTURES if each not in ("mistakes", "message-too-long")])
def test_what_asterisk_took_has_no_findings(name: str) -> None:
    control = "text" if name == "plain-text" else "json"
    carrier, _ = ends(control=control, audio="slin16" if name == "slin16" else "ulaw")
    for record in capture(name):
        if record["from"] != "server" or record["kind"] not in ("text", "audio"):
            continue
        message = record["text"] if record["kind"] == "text" else bytes(record["bytes"])
        if name == "plain-text" and message in ("NO_SUCH_COMMAND", '{"command":"GET_STATUS"}'):
            continue  # These were ignored.
        assert not isinstance(carrier.receive(message), StreamStarted)
    assert carrier.findings() == []


@pytest.mark.parametrize(
    ("control", "message", "event", "words"),
    [
        ("json", '{"command":"NO_SUCH_COMMAND"}', Unknown("NO_SUCH_COMMAND"), "knows no command 'NO_SUCH_COMMAND'"),
        ("text", '{"command":"FLUSH_MEDIA"}', Unknown("ignored"), "unless the dial string has f(json)"),
        ("json", json.dumps({"command": "MARK_MEDIA", "correlation_id": "x" * 90}), Unknown("ignored"), "128 bytes"),
        ("json", bytes(80), Audio(b""), "no multiple of 160 bytes"),
        ("json", bytes(1000), Audio(bytes(960)), "no multiple of 160 bytes"),
        ("json", bytes(65_600), Audio(bytes(65_600)), "more than 65500 bytes"),
    ],
)
def test_what_asterisk_would_not_take_is_found(control: str, message: Any, event: Event, words: str) -> None:
    carrier, _ = ends(control=control)
    assert carrier.receive(message) == event
    assert any(words in found.message for found in carrier.findings())


def test_words_are_an_error_where_json_was_asked_for() -> None:
    carrier, _ = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        carrier.receive("FLUSH_MEDIA")
    said = carrier.send(carrier.error_reply(caught.value))  # type: ignore[attr-defined]
    captured = json.loads(texts(capture("mistakes"), "asterisk")[1])
    assert json.loads(said) == {**captured, "channel_id": STARTED.call_id}
    assert carrier.error_reply(RemoteProtocolError("no-event", "")) is None  # type: ignore[attr-defined]


def test_asterisks_own_examples_are_understood() -> None:
    """https://github.com/asterisk/asterisk-websocket-examples and https://github.com/NikolayShakin/pipecat-asterisk"""
    carrier, _ = ends()
    assert carrier.receive('{"command": "FLUSH_MEDIA"}') == Clear()
    assert carrier.receive('{ "command": "MARK_MEDIA", "correlation_id": "666666666666" }') == Mark("666666666666")
    assert carrier.receive('{ "command": "START_MEDIA_BUFFERING" }') == Unknown("START_MEDIA_BUFFERING")
    assert carrier.receive(bytes(1000)) == Audio(bytes(1000))
    completed = carrier.receive('{ "command": "STOP_MEDIA_BUFFERING", "correlation_id": "aaaaaaaaa" }')
    assert json.loads(carrier.send(completed))["event"] == "MEDIA_BUFFERING_COMPLETED"
    assert carrier.receive('{"command": "HANGUP"}') == StreamStopped()
    assert carrier.receive('{"command": "GET_STATUS"}') == Status()
    assert carrier.findings() == []


def test_a_cleared_queue_is_reported_if_that_was_asked_for() -> None:
    carrier, _ = ends()
    with pytest.raises(LocalProtocolError):
        carrier.send(Cleared())
    carrier.receive('{"command":"REPORT_QUEUE_DRAINED"}')
    assert json.loads(carrier.send(Cleared()))["event"] == "QUEUE_DRAINED"
    drained = carrier.receive('{"command":"REPORT_QUEUE_DRAINED"}')
    assert json.loads(carrier.send(drained))["event"] == "QUEUE_DRAINED"
    with pytest.raises(LocalProtocolError):
        carrier.send(Cleared())


# Who may come in


def upgrade(**headers: str) -> WebhookRequest:
    return WebhookRequest("GET", "wss://voice.example.com/ws/asterisk", headers)


def test_the_credentials_that_asterisk_sends_let_it_in() -> None:
    record = capture("credentials-and-uri-parameters")[0]
    given = upgrade(authorization=record["headers"]["authorization"])
    secrets = {"ASTERISK_USERNAME": "bot", "ASTERISK_PASSWORD": "se cret:x"}
    assert load_provider("asterisk", secrets).has_credentials(given)
    for name in secrets:
        assert not load_provider("asterisk", {**secrets, name: "x"}).has_credentials(given)
    assert not load_provider("asterisk", secrets).has_credentials(upgrade())
    headers = load_provider("asterisk", secrets).upgrade_headers(given.url, now=0.0)
    assert headers == {"Authorization": record["headers"]["authorization"]}


def test_without_a_password_nobody_has_the_right_one() -> None:
    for header in ("", "Basic Og==", "Basic d3N2b2ljZTo="):
        assert not load_provider("asterisk").has_credentials(upgrade(authorization=header))
        assert not load_provider("asterisk", {"ASTERISK_USERNAME": "u"}).has_credentials(upgrade(authorization=header))


@pytest.mark.parametrize("name", ["ASTERISK_PASSWORD", "ASTERISK_USERNAME"])
def test_credentials_that_no_line_can_hold_are_misuse(name: str) -> None:
    for value in ("a\nb", "a\r", "\0", "a\x7f"):
        with pytest.raises(ConfigError, match=f"{name} has control characters"):
            load_provider("asterisk", {name: value})


def test_the_lines_for_asterisks_files() -> None:
    provider = load_provider("asterisk", {"ASTERISK_PASSWORD": "a;b c"})
    lines = provider.setup_lines("wss://voice.example.com/ws/asterisk")
    # As Asterisk reads them: a semicolon begins a comment, unless there is a backslash before it.
    read = dict(re.findall(r"^(\w+) = (.*)$", "\n".join(lines), re.MULTILINE))
    assert read == {
        "type": "websocket_client",
        "connection_type": "per_call_config",
        "uri": "wss://voice.example.com/ws/asterisk",
        "protocols": "media",
        "username": "wsvoice",
        "password": "a\\;b c",
        "tls_enabled": "yes",
    }
    assert " same => n,Dial(WebSocket/wsvoice/c(ulaw)f(json))" in lines
    assert "[telephones]" in lines
    plain = "\n".join(load_provider("asterisk").setup_lines("ws://localhost:7860/ws/asterisk"))
    assert not re.search("^(username|password|tls_enabled)", plain, re.MULTILINE)


# The simulated Asterisk, in calls that a real one had


class Player:
    """A server that does in a test call what the server of a captured call did."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.texts: list[str] = []
        self.closed: int | None = None
        self.changed = asyncio.Condition()

    async def handle(self, connection: ServerConnection) -> None:
        reader = asyncio.create_task(self.read(connection))
        awaited = 0
        for record in self.records:
            kind = record["kind"]
            if record["from"] == "asterisk" and kind == "text":
                awaited += 1
                if not await self.has(awaited):
                    break
            elif record["from"] == "server" and kind == "text":
                await connection.send(record["text"])
            elif record["from"] == "server" and kind == "audio":
                for _ in range(record["messages"]):
                    await connection.send(bytes([0x80]) * record["bytes"])
            elif record["from"] == "asterisk" and kind == "close":
                break
        if "HANGUP" not in str(self.records):
            await connection.close()
        await reader
        self.closed = connection.close_code

    async def has(self, count: int) -> bool:
        """Wait for that many texts; false if they have not come in the time that any of the captured calls took."""
        async with self.changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait_for(lambda: len(self.texts) >= count), 12)
            return len(self.texts) >= count

    async def read(self, connection: ServerConnection) -> None:
        async for message in connection:
            if isinstance(message, str):
                async with self.changed:
                    self.texts.append(message)
                    self.changed.notify_all()


def playable(name: str) -> list[Record]:
    """Return a captured call without the commands that the simulated one does not carry out."""
    records = capture(name)
    pause = next((at for at, record in enumerate(records) if "PAUSE_MEDIA" in record.get("text", "")), len(records))
    return [record for record in records[:pause] if "SET_MEDIA_DIRECTION" not in record.get("text", "")]


def steady(text: str) -> str:
    """Return a text without what no two calls have alike; a long queue is played while it is looked at."""
    if text.startswith("{"):
        text = json.dumps(json.loads(text), ensure_ascii=False)
    if "MEDIA_START" in text:
        return text[: text.index("MEDIA_START") + 11] + str(re.findall(r"format\W+\w+|optimal\w+\W+\d+", text))
    text = re.sub(r"\d{10}\.\d+", "…", text)
    return re.sub(r'(?<=queue_length)("?: ?)\d{3,}', r"\1…", text)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Player, CallReport]]:
    """Play the captured calls to the simulated Asterisk, all at once."""
    clip = tmp_path_factory.mktemp("asterisk") / "clip.wav"
    write_wav(clip, [speech_like(100, 8000)], 8000)

    async def play(name: str) -> tuple[Player, CallReport]:
        player = Player(playable(name))
        pressed = next((record["text"] for record in player.records if record["kind"] == "press"), None)
        quirks = {"control": "text"} if name == "plain-text" else {"format": "slin16"} if name == "slin16" else {}
        async with serve(player.handle, "127.0.0.1", 0, subprotocols=[Subprotocol("media")]) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            config = DialConfig(
                target=f"ws://127.0.0.1:{port}/",
                transport="asterisk",
                audio=() if pressed else (clip,),
                dtmf=pressed or "",
                listen_s=0.1,
                duration_s=20.0,
                quirks=quirks,
            )
            report = await dial(config)
        return player, report

    async def play_all() -> dict[str, tuple[Player, CallReport]]:
        async with asyncio.timeout(40):
            return dict(zip(PLAYED, await asyncio.gather(*map(play, PLAYED)), strict=True))

    return asyncio.run(play_all())


@pytest.mark.parametrize("name", PLAYED)
def test_the_simulated_asterisk_says_what_the_real_one_said(
    name: str, played: dict[str, tuple[Player, CallReport]]
) -> None:
    player, report = played[name]
    said, captured = ([steady(text) for text in each] for each in (player.texts, texts(player.records, "asterisk")))
    if name == "flush":
        # That the queue is empty is told within 20 ms, and what its length is at once.
        said, captured = sorted(said), sorted(captured)
    assert said == captured
    assert report.ended_by == "bot"


def test_a_command_hangs_up(played: dict[str, tuple[Player, CallReport]]) -> None:
    for name in ("hangup-command", "plain-text"):
        player, report = played[name]
        assert (player.closed, report.close_code) == (1000, 1000)


def test_a_full_queue_is_a_finding(played: dict[str, tuple[Player, CallReport]]) -> None:
    _, report = played["flow-control"]
    assert "more than 20 s of audio were queued; Asterisk throws the rest away" in str(report.findings)
    _, report = played["flow-control-flushed"]
    assert "throws the rest away" not in str(report.findings)


def test_the_pause_that_is_asked_for() -> None:
    _, bot = ends()
    off, on = (each for each in texts(capture("flow-control"), "asterisk") if "MEDIA_X" in each)
    assert (bot.receive(off), bot.receive(on)) == (FlowControl(True), FlowControl(False))
