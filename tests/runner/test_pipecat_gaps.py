"""
Streams on which pipecat's detection of the provider blocks or misreads, and messages on which its serializers fail.

Every row is a call that must go on: detection never blocks, nothing that the caller said is swallowed, and no message
ends the call. A provider's rows are its dialect below; the tests run over all of them.
"""

from __future__ import annotations

import asyncio
import audioop
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.runner import bots
from tests.runner.carrier import FORM, main_frequency
from tests.runner.test_calls import wait_for
from tests.signals import tone

Serve = Callable[..., Any]
Message = dict[str, Any]

CALL_ID = FORM["CallSid"]
STREAM_ID = "MZ" + CALL_ID[2:]


@dataclass(frozen=True)
class Dialect:
    """
    A provider's messages, written by hand from its documents.

    Attributes:
        name: The provider.
        handshake: What comes first, the start last.
        audio: Makes a message of 20 ms of s16le audio at 8 kHz.
        digit: Makes a message of a key.
        ignored: Messages that mean nothing to the caller's audio.
        bad: Messages that break pipecat's reading, with the kind that they are counted as.
        other_track: The bot's own voice, where the provider may send it back.
    """

    name: str
    handshake: tuple[Message, ...]
    audio: Callable[[bytes], Message]
    digit: Callable[[str], Message]
    ignored: tuple[Message, ...] = ()
    bad: tuple[tuple[str, str | bytes, str], ...] = ()
    other_track: Callable[[bytes], Message] | None = None
    call_id: str = CALL_ID


def twilio_media(pcm: bytes, track: str = "inbound") -> Message:
    payload = base64.b64encode(audioop.lin2ulaw(pcm, 2)).decode()
    media = {"track": track, "chunk": "1", "timestamp": "20", "payload": payload}
    return {"event": "media", "sequenceNumber": "2", "streamSid": STREAM_ID, "media": media}


def bad_media(payload: Any, **media: Any) -> str:
    return json.dumps({"event": "media", "streamSid": STREAM_ID, "media": {"payload": payload, **media}})


#: https://www.twilio.com/docs/voice/media-streams/websocket-messages
TWILIO = Dialect(
    name="twilio",
    handshake=(
        {"event": "connected", "protocol": "Call", "version": "1.0.0"},
        {
            "event": "start",
            "sequenceNumber": "1",
            "streamSid": STREAM_ID,
            "start": {
                "accountSid": FORM["AccountSid"],
                "streamSid": STREAM_ID,
                "callSid": CALL_ID,
                "tracks": ["inbound"],
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
                "customParameters": {"language": "en"},
            },
        },
    ),
    audio=twilio_media,
    digit=lambda key: {
        "event": "dtmf",
        "streamSid": STREAM_ID,
        "sequenceNumber": "5",
        "dtmf": {"track": "inbound_track", "digit": key},
    },
    ignored=(
        {"event": "connected", "protocol": "Call", "version": "1.0.0"},
        {"event": "mark", "sequenceNumber": "4", "streamSid": STREAM_ID, "mark": {"name": "nobody's"}},
        {"event": "mark", "sequenceNumber": "4", "streamSid": STREAM_ID, "mark": {"name": ""}},
        {"event": "of-tomorrow", "streamSid": STREAM_ID},
        {"event": "error", "streamSid": STREAM_ID},
    ),
    bad=(
        ("wrong padding", bad_media("abc"), "bad-base64"),
        ("no base64 at all", bad_media("****"), "bad-base64"),
        ("a payload that is no text", bad_media(7), ""),
        ("no payload", json.dumps({"event": "media", "streamSid": STREAM_ID, "media": {}}), ""),
        ("media of null", json.dumps({"event": "media", "streamSid": STREAM_ID, "media": None}), ""),
        ("an array", "[1, 2, 3]", ""),
        ("a number", "7", ""),
        ("null", "null", ""),
        ("a text", '"media"', ""),
        ("no JSON", "{not json", ""),
        ("nothing", "", ""),
        ("deep nesting", "[" * 20_000, ""),
        ("binary", b"\x00\xff\xfe", ""),
        ("an event that is no text", '{"event": {"media": 1}}', ""),
        ("no event", "{}", ""),
    ),
    other_track=lambda pcm: twilio_media(pcm, "outbound"),
)

DIALECTS = [pytest.param(TWILIO, id=TWILIO.name)]
BAD = [pytest.param(dialect, *row, id=f"{dialect.name}-{row[0]}") for dialect in (TWILIO,) for row in dialect.bad]

SOUND = tone(700, 20, 8000)


class Ear:
    """A bot that listens, with what it was told about the call."""

    def __init__(self) -> None:
        self.listener = bots.Listener()
        self.call: Any = None
        self.call_data: Any = None

    async def __call__(self, runner_args: Any) -> None:
        self.call, self.call_data = runner_args.call, runner_args.call_data
        await bots.run(runner_args.transport, self.listener, audio_in_sample_rate=8000)

    @property
    def heard_ms(self) -> float:
        return len(self.listener.audio) / 16


async def send(socket: ClientConnection, *messages: Message | str | bytes) -> None:
    for message in messages:
        await socket.send(json.dumps(message) if isinstance(message, dict) else message)


def stream_url(server: Any, dialect: Dialect) -> str:
    return f"{server.ws_url}ws/{dialect.name}"


def connect(server: Any, dialect: Dialect) -> Any:
    return websockets.connect(stream_url(server, dialect), compression=None, ping_interval=None)


async def goes_on(ear: Ear, socket: ClientConnection, dialect: Dialect) -> None:
    """Hold that the call still works: what the caller says and presses arrives."""
    before, keys = ear.heard_ms, len(ear.listener.digits)
    await send(socket, *[dialect.audio(SOUND)] * 10, dialect.digit("7"))
    await wait_for(lambda: len(ear.listener.digits) > keys)
    assert ear.heard_ms - before == 200
    assert socket.close_code is None


@pytest.mark.parametrize("dialect", DIALECTS)
class TestDetection:
    def test_start_and_then_nothing(self, serve: Serve, dialect: Dialect) -> None:
        """The bot begins with the start message, and does not wait for the caller's first sound."""
        ear = Ear()
        server = serve(ear, transport=None)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake)
                await wait_for(lambda: ear.call_data is not None)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())
        assert ear.call.provider == dialect.name
        assert ear.call_data["call_id"] == dialect.call_id

    def test_the_first_audio_is_not_swallowed(self, serve: Serve, dialect: Dialect) -> None:
        """All is sent at once, so that the first audio has come before anybody listens."""
        ear = Ear()
        server = serve(ear)
        said = tone(700, 400, 8000)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                pieces = [said[at : at + 320] for at in range(0, len(said), 320)]
                await send(socket, *dialect.handshake, *map(dialect.audio, pieces), dialect.digit("1"))
                await wait_for(lambda: ear.listener.digits)

        asyncio.run(main())
        assert ear.heard_ms == 400
        assert main_frequency(bytes(ear.listener.audio)) == pytest.approx(700, abs=8)

    def test_audio_before_the_start_is_not_lost(self, serve: Serve, dialect: Dialect) -> None:
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                *before, start = dialect.handshake
                await send(socket, *before, *[dialect.audio(SOUND)] * 5, start)
                await wait_for(lambda: ear.heard_ms == 100)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())

    @pytest.mark.parametrize("path", ["ws", "ws/{name}"])
    def test_more_messages_before_the_start(self, serve: Serve, dialect: Dialect, path: str) -> None:
        ear = Ear()
        server = serve(ear, transport=None)

        async def main() -> None:
            url = f"{server.ws_url}{path.format(name=dialect.name)}"
            async with websockets.connect(url, compression=None, ping_interval=None) as socket:
                await send(socket, dialect.handshake[0], *dialect.ignored[:1] * 3, *dialect.handshake)
                await wait_for(lambda: ear.call is not None)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())
        assert ear.call.call_id == dialect.call_id

    @pytest.mark.parametrize("first", ["[]", "7", "{", b"\x00\x01", b"{}"])
    @pytest.mark.parametrize("path", ["ws", "ws/{name}"])
    def test_a_first_message_that_is_none(self, serve: Serve, dialect: Dialect, path: str, first: str | bytes) -> None:
        ear = Ear()
        server = serve(ear, transport=None)

        async def main() -> None:
            url = f"{server.ws_url}{path.format(name=dialect.name)}"
            async with websockets.connect(url, compression=None, ping_interval=None) as socket:
                await send(socket, first, *dialect.handshake)
                await wait_for(lambda: ear.call is not None)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())

    @pytest.mark.parametrize("start", ["null", "[]", "{}", "7"])
    def test_a_start_that_says_nothing_is_refused_at_once(self, serve: Serve, dialect: Dialect, start: str) -> None:
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake[:-1], f'{{"event": "start", "start": {start}}}')
                async with asyncio.timeout(5):
                    await socket.wait_closed()
                assert socket.close_code == 1008

        asyncio.run(main())
        assert ear.call is None
        (record,) = server.ended()
        assert record.faults == {"bad-start": 1}
        assert "start" in record.because

    def test_a_caller_that_never_starts_is_let_go(self, serve: Serve, dialect: Dialect) -> None:
        ear = Ear()
        server = serve(ear, handshake_timeout_s=0.2)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake[:-1])
                async with asyncio.timeout(5):
                    await socket.wait_closed()
                assert socket.close_code == 1008

        asyncio.run(main())
        assert ear.call is None
        assert server.lines("sent no start message")

    def test_a_caller_that_goes_before_any_message(self, serve: Serve, dialect: Dialect) -> None:
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect):
                pass

        asyncio.run(main())
        server.ended()
        assert ear.call is None
        assert not server.lines("Traceback")


@pytest.mark.parametrize(("dialect", "what", "message", "kind"), BAD)
def test_no_message_ends_a_call(serve: Serve, dialect: Dialect, what: str, message: str | bytes, kind: str) -> None:
    ear = Ear()
    server = serve(ear)

    async def main() -> None:
        async with connect(server, dialect) as socket:
            await send(socket, *dialect.handshake)
            await wait_for(lambda: ear.call is not None)
            await send(socket, *[message] * 3)
            await goes_on(ear, socket, dialect)
            await socket.close()

    asyncio.run(main())
    (record,) = server.ended()
    # Counted, and said once.
    assert sum(record.faults.values()) == 3, record.faults
    if kind:
        assert record.faults == {kind: 3}
    assert len(server.lines("ignored a bad message")) == 1
    assert record.ended_by == "caller"


@pytest.mark.parametrize("dialect", DIALECTS)
class TestReceiving:
    def test_messages_that_mean_nothing(self, serve: Serve, dialect: Dialect) -> None:
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake)
                await wait_for(lambda: ear.call is not None)
                await send(socket, *dialect.ignored)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())

    def test_the_bots_own_voice_is_not_the_callers(self, serve: Serve, dialect: Dialect) -> None:
        if dialect.other_track is None:
            pytest.skip("the provider sends the caller's track only")
        ear = Ear()
        server = serve(ear)
        echo = dialect.other_track(SOUND)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake)
                await wait_for(lambda: ear.call is not None)
                await send(socket, *[echo] * 10)
                await goes_on(ear, socket, dialect)

        asyncio.run(main())
        assert ear.heard_ms == 200

    def test_keys_that_pipecat_has_not(self, serve: Serve, dialect: Dialect) -> None:
        """A to D are no frames, as pipecat's keypad lacks them, but they are in the call's record."""
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake)
                await send(socket, *(dialect.digit(key) for key in "0123456789*#ABCD"))
                await wait_for(lambda: len(ear.listener.digits) == 12)
                await goes_on(ear, socket, dialect)
                await socket.close()

        asyncio.run(main())
        assert "".join(ear.listener.digits) == "0123456789*#7"
        assert server.ended()[0].digits == "0123456789*#ABCD7"

    def test_the_message_that_ends_the_stream_ends_the_call(self, serve: Serve, dialect: Dialect) -> None:
        """The socket stays open, as it does for a while with every provider."""
        ear = Ear()
        server = serve(ear)

        async def main() -> None:
            async with connect(server, dialect) as socket:
                await send(socket, *dialect.handshake)
                await wait_for(lambda: ear.call is not None)
                await send(socket, {"event": "stop", "streamSid": STREAM_ID, "stop": {"callSid": dialect.call_id}})
                async with asyncio.timeout(5):
                    await socket.wait_closed()

        asyncio.run(main())
        assert server.ended()[0].ended_by == "caller"
