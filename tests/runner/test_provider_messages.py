"""
Streams on which pipecat's detection of the provider blocks or misreads, and messages on which its serializers fail.

Every row is a call that must go on: detection never blocks, nothing that the caller said is swallowed, and no message
ends the call. The rows run over every provider; what only one has is in a class of its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from tests.runner import bots
from tests.runner.carrier import main_frequency
from tests.runner.dialects import (
    ALAW,
    DIALECTS,
    FROM_NUMBER,
    MULAW,
    TO_NUMBER,
    Asterisk,
    Dialect,
    Exotel,
    Line,
    Plivo,
    SignalWire,
    Telnyx,
    Twilio,
    Vonage,
    Wire,
    linear,
    on_line,
)
from tests.runner.test_session import wait_for
from tests.signals import correlation_delay_ms, snr_db, speech_like, tone

Serve = Callable[..., Any]

GOLDEN = Path(__file__).parents[1] / "golden"

#: With and without the provider's name in the stream's address.
PATHS = ["ws", "ws/{name}"]


@pytest.fixture(params=DIALECTS, ids=lambda each: each.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    made: Dialect = request.param()
    return made


class Ear:
    """A bot that listens, with what it was told about the call."""

    def __init__(self, sample_rate: int = 8000) -> None:
        self.listener = bots.Listener()
        self.sample_rate = sample_rate
        self.call: Any = None
        self.call_data: Any = None

    async def __call__(self, runner_args: Any) -> None:
        self.call, self.call_data = runner_args.call, runner_args.call_data
        await bots.run(runner_args.transport, self.listener, audio_in_sample_rate=self.sample_rate)

    @property
    def audio(self) -> bytes:
        return bytes(self.listener.audio)

    async def hears(self, pcm: bytes, after: int = 0) -> None:
        """Hold that `pcm` is what comes next, sample for sample; digits overtake audio, so it is waited for."""
        await wait_for(lambda: len(self.audio) >= after + len(pcm))
        assert self.audio[after : after + len(pcm)] == pcm


def url_of(server: Any, dialect: Dialect, path: str = "ws/{name}") -> str:
    return f"{server.ws_url}{path.format(name=dialect.name)}"


def through(wire: Wire, pcm: bytes) -> bytes:
    """What is left of `pcm` behind the wire."""
    return wire.decode(wire.encode(pcm))


async def goes_on(ear: Ear, line: Line) -> None:
    """Hold that the call still works: what the caller says and presses next arrives, and nothing before it."""
    heard, keys = len(ear.audio), len(ear.listener.digits)
    sound = tone(900, 200, line.dialect.wire.sample_rate)
    await line.speak(sound)
    if line.dialect.has_keys:
        await line.press("7")
        await wait_for(lambda: ear.listener.digits[keys:] == ["7"])
    await ear.hears(through(line.dialect.wire, sound), heard)
    assert line.socket.close_code is None


class TestDetection:
    def test_start_and_then_nothing(self, shared: Any, dialect: Dialect) -> None:
        """The bot begins with the start message, and does not wait for the caller's first sound."""
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect, "ws"), dialect) as line:
                await wait_for(lambda: ear.call_data is not None)
                await goes_on(ear, line)

        asyncio.run(main())
        assert (ear.call.provider, ear.call.stream_id) == (dialect.name, dialect.stream_id)
        assert ear.call.account_id == dialect.account_id
        assert (ear.call_data["call_id"], ear.call_data["stream_id"]) == (dialect.call_id, dialect.stream_id)

    @pytest.mark.parametrize("path", PATHS)
    def test_the_first_audio_is_not_swallowed(self, shared: Any, dialect: Dialect, path: str) -> None:
        """All is sent at once, so that the first audio has come before anybody listens."""
        ear = shared.bot = Ear()
        said = tone(700, 400, 8000)

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect) as line:
                await line.speak(said)
                await ear.hears(through(dialect.wire, said))

        asyncio.run(main())
        assert main_frequency(ear.audio) == pytest.approx(700, abs=15)

    @pytest.mark.parametrize("path", PATHS)
    def test_audio_before_the_start_is_not_lost(self, shared: Any, dialect: Dialect, path: str) -> None:
        ear = shared.bot = Ear()
        said = tone(500, 100, 8000)

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect, start=False) as line:
                await line.send(*dialect.connected(), *line.spoken(said), dialect.start())
                await ear.hears(through(dialect.wire, said))
                await goes_on(ear, line)

        asyncio.run(main())

    @pytest.mark.parametrize("path", PATHS)
    def test_more_messages_before_the_start(self, shared: Any, dialect: Dialect, path: str) -> None:
        dialect.parameters["language"] = "en"
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect, start=False) as line:
                await line.send(*dialect.connected() * 3, *dialect.nothings(), *dialect.handshake())
                await wait_for(lambda: ear.call is not None)
                await goes_on(ear, line)

        asyncio.run(main())
        assert ear.call.call_id == ear.call_data.call_id == dialect.call_id
        assert ear.call_data.body["language"] == "en"

    @pytest.mark.parametrize("first", ["[]", "7", "{", b"\x00\x01", b"{}", "", '{"event": null}'])
    @pytest.mark.parametrize("path", PATHS)
    def test_a_first_message_that_is_none(self, shared: Any, dialect: Dialect, path: str, first: str | bytes) -> None:
        if dialect.is_binary and isinstance(first, bytes):
            pytest.skip("it is audio")
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect, start=False) as line:
                await line.send(first, *dialect.handshake())
                await wait_for(lambda: ear.call is not None)
                await goes_on(ear, line)

        asyncio.run(main())
        assert ear.call.call_id == dialect.call_id

    @pytest.mark.parametrize("start", ["null", "[]", "{}", "7"])
    def test_a_start_that_says_nothing_is_refused_at_once(self, shared: Any, dialect: Dialect, start: str) -> None:
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect, start=False) as line:
                await line.send(*dialect.connected(), dialect.bad_start(json.loads(start)))
                code, reason = await line.closed()
                assert code == 1008
                assert "start" in (reason or "")

        asyncio.run(main())
        assert ear.call is None
        (record,) = shared.ended()
        assert record.faults == {"bad-start": 1}
        assert "start" in record.reason

    @pytest.mark.parametrize("path", PATHS)
    def test_a_caller_that_goes_before_any_message(self, shared: Any, dialect: Dialect, path: str) -> None:
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect, start=False):
                pass

        asyncio.run(main())
        if "{name}" in path:
            (record,) = shared.ended()
            assert record.ended_by == "caller"
        else:
            asyncio.run(wait_for(lambda: shared.lines("stream ended")))
        assert ear.call is None
        assert not shared.lines("Traceback")

    def test_numbers_that_the_start_does_not_tell_come_from_the_webhook(self, shared: Any, dialect: Dialect) -> None:
        """The stream has no token: the call's id is what ties it to the webhook."""
        if not dialect.has_webhook:
            pytest.skip("it has no webhook")
        ear = shared.bot = Ear()
        dialect.details.update({name: None for name in ("from", "to") if name in dialect.start().get("start", {})})
        dialect.call_id = dialect.call_id[:-4] + "beef"

        async def main() -> None:
            async with on_line(url_of(shared, dialect, "ws"), dialect):
                await wait_for(lambda: ear.call_data is not None)

        assert httpx.request(url=f"{shared.url}{dialect.name}", **dialect.request("POST")).status_code == 200
        asyncio.run(main())
        for told in (ear.call, ear.call_data):
            assert (told.from_number, told.to_number) == (FROM_NUMBER, TO_NUMBER)


@pytest.mark.parametrize("path", PATHS)
def test_a_caller_that_never_starts_is_let_go(serve: Serve, path: str) -> None:
    """Nobody waits for ever: at the end of the time for it every provider's caller hears why."""
    ear = Ear()
    server = serve(ear, transport=None, handshake_timeout_s=0.3)

    async def never_starts(dialect: Dialect) -> tuple[int | None, str | None]:
        async with on_line(url_of(server, dialect, path), dialect, start=False) as line:
            # On a slow machine the time may be over before all is sent.
            with suppress(websockets.ConnectionClosed):
                await line.send(*dialect.connected(), *line.spoken(tone(500, 100, 8000)))
            return await line.closed()

    async def main() -> None:
        for code, reason in await asyncio.gather(*(never_starts(each()) for each in DIALECTS)):
            assert code == 1008
            assert "start" in (reason or "")

    asyncio.run(main())
    assert ear.call is None
    if path == "ws":
        assert len(server.lines("WARNING", "stream ended", "none of its first messages")) == len(DIALECTS)
    else:
        for record in server.ended(len(DIALECTS)):
            assert (record.ended_by, record.reason) == ("server", "the caller sent no start message within 0.3 s")


@pytest.mark.parametrize(
    ("name", "written"),
    [("start", Asterisk().start()), ("dtmf", Asterisk().digit("5")), ("mark", Asterisk().played("m1"))],
    ids=["start", "dtmf", "mark"],
)
def test_asterisk_is_spoken_as_a_real_one_does(name: str, written: dict[str, Any]) -> None:
    captured = json.loads((GOLDEN / "asterisk" / f"{name}.json").read_text())["message"]
    assert list(written) == list(captured)
    assert {key: type(value) for key, value in written.items()} == {key: type(captured[key]) for key in written}


class TestNobodysStream:
    """https://docs.jambonz.org/verbs/verbs/listen"""

    HELLO = json.dumps({"callSid": "1c9bb92e-a0b2-418b-bd80-6a9c7af9b01b", "sampleRate": 16000, "mixType": "mono"})

    def test_a_stranger_is_refused_and_told_why(self, shared: Any) -> None:
        ear = shared.bot = Ear()

        async def main() -> None:
            url = f"{shared.ws_url}ws"
            async with websockets.connect(url, compression=None, ping_interval=None) as socket:
                await socket.send(self.HELLO)
                # The server may close while these are sent.
                with suppress(websockets.ConnectionClosed):
                    for _ in range(50):
                        await socket.send(bytes(640))
                async with asyncio.timeout(10):
                    await socket.wait_closed()
                assert socket.close_code == 1008
                assert "known provider" in (socket.close_reason or "")

        asyncio.run(main())
        assert ear.call is None
        assert shared.lines("WARNING", "none of its first messages is the start of a known provider's stream")

    def test_there_is_no_such_address(self, shared: Any) -> None:
        async def main() -> None:
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(f"{shared.ws_url}ws/jambonz")
            assert refused.value.response.status_code == 404

        asyncio.run(main())


def bad_messages(dialect: Dialect) -> list[tuple[str, str | bytes, str]]:
    """Messages that break pipecat's reading: what they are, and the kind that they must be counted as."""

    def media(**content: Any) -> str:
        message = dialect.media("")
        message.get("media", message).update(content)
        return json.dumps(message)

    # What is no object is words to Asterisk, and none that it knows.
    no_object = "not-json" if isinstance(dialect, Asterisk) else "not-object"
    rows: list[tuple[str, str | bytes, str]] = [
        ("an array", "[1, 2, 3]", no_object),
        ("a number", "7", no_object),
        ("null", "null", no_object),
        ("a text", '"media"', no_object),
        ("no JSON", "{not json", "not-json"),
        ("nothing", "", "not-json"),
        ("deep nesting", "[" * 20_000, "not-json"),
        ("an event that is no text", json.dumps({dialect.name_keys[0]: {"media": 1}}), "no-event"),
        ("no event", "{}", "no-event"),
    ]
    if dialect.has_keys:
        no_key = {**dialect.digit("5"), "dtmf": None, "digit": None}
        rows += [
            ("a key that no telephone has", json.dumps(dialect.digit("17")), "bad-dtmf"),
            ("a key of null", json.dumps(no_key), "bad-dtmf"),
        ]
    if isinstance(dialect, Vonage):
        rows.append(("a mark without a payload", '{"event": "websocket:notify"}', "bad-mark"))
    if dialect.is_binary:
        return [*rows, *([] if dialect.wire is MULAW else [("half a sample", bytes(319), "bad-media")])]
    if dialect.has_marks:
        rows.append(("a mark without a name", json.dumps(dialect.played("")), "bad-mark"))
    no_payload = dialect.media("")
    del no_payload.get("media", no_payload)["payload"]
    rows += [
        ("wrong padding", media(payload="abc"), "bad-base64"),
        ("no base64 at all", media(payload="****"), "bad-base64"),
        ("a payload that is no text", media(payload=7), "bad-media"),
        ("no payload", json.dumps(no_payload), "bad-media"),
        ("binary", b"\x00\xff\xfe", "binary"),
    ]
    if "media" in no_payload:
        rows += [
            ("media of null", json.dumps({**no_payload, "media": None}), "bad-media"),
            ("media that is a list", json.dumps({**no_payload, "media": [1]}), "bad-media"),
        ]
    if dialect.wire is not MULAW:
        rows.append(("half a sample", media(payload=base64.b64encode(bytes(639)).decode()), "bad-media"))
    return rows


BAD = [
    pytest.param(each(), *row, id=f"{label}-{row[0]}")
    for label, each in [
        *((kind.name, kind) for kind in DIALECTS),
        ("signalwire-L16", lambda: SignalWire(wire=linear(16000))),
        (
            "telnyx-L16",
            lambda: Telnyx(wire=linear(16000), media_format={"encoding": "L16", "sample_rate": 16000}),
        ),
    ]
    for row in bad_messages(each())
    if "-" not in label or row[0] == "half a sample"
]


@pytest.mark.parametrize(("dialect", "what", "message", "kind"), BAD)
def test_no_message_ends_a_call(shared: Any, dialect: Dialect, what: str, message: str | bytes, kind: str) -> None:
    ear = shared.bot = Ear(dialect.wire.sample_rate)

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect) as line:
            await wait_for(lambda: ear.call is not None)
            await line.send(*[message] * 3)
            await goes_on(ear, line)

    asyncio.run(main())
    (record,) = shared.ended()
    # Counted, and said once.
    assert record.faults == {kind: 3}
    assert len(shared.lines("ignored a bad message", kind)) == 1
    assert record.ended_by == "caller"


class TestReceiving:
    def test_messages_that_mean_nothing(self, shared: Any, dialect: Dialect) -> None:
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect) as line:
                await wait_for(lambda: ear.call is not None)
                await line.send(*dialect.nothings())
                await goes_on(ear, line)

        asyncio.run(main())

    def test_keys_that_pipecat_has_not(self, shared: Any, dialect: Dialect) -> None:
        """A to D are no frames, as pipecat's keypad lacks them, but they are in the call's record."""
        if not dialect.has_keys:
            pytest.skip("it tells no keys")
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect) as line:
                for key in "0123456789*#ABCD":
                    await line.press(key)
                await wait_for(lambda: len(ear.listener.digits) == 12)
                await goes_on(ear, line)

        asyncio.run(main())
        assert "".join(ear.listener.digits) == "0123456789*#7"
        assert shared.ended()[0].digits == "0123456789*#ABCD7"

    def test_the_message_that_ends_the_stream_ends_the_call(self, shared: Any, dialect: Dialect) -> None:
        """The socket stays open, as it does for a while with every provider."""
        ear = shared.bot = Ear()

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect) as line:
                await wait_for(lambda: ear.call is not None)
                await line.send(dialect.stop())
                await line.closed()

        asyncio.run(main())
        assert shared.ended()[0].ended_by == "caller"

    @pytest.mark.parametrize("kind", [each for each in DIALECTS if each.has_tracks], ids=lambda each: each.name)
    def test_the_bots_own_voice_is_not_the_callers(self, shared: Any, kind: type[Dialect]) -> None:
        """Where a document asked for both tracks, the bot would answer itself."""
        ear = shared.bot = Ear()
        own = tone(400, 200, 8000)

        async def main() -> None:
            async with on_line(url_of(shared, kind()), kind()) as line:
                await wait_for(lambda: ear.call is not None)
                await line.send(
                    *(line.dialect.audio(piece, n, "outbound") for n, piece in enumerate(line.pieces(own), 1))
                )
                await goes_on(ear, line)

        asyncio.run(main())
        assert shared.ended()[0].heard_s == pytest.approx(0.2)


class TestFormats:
    """The start message says how the audio is written; whoever overlooks it plays noise."""

    @pytest.mark.parametrize(
        ("dialect", "label"),
        [
            pytest.param(Exotel(wire=linear(16000)), "L16", id="exotel-16k"),
            pytest.param(Exotel(wire=linear(24000)), "L16", id="exotel-24k"),
            pytest.param(
                Exotel(wire=linear(16000), media_format={"encoding": "base64", "sample_rate": 16000, "bit_rate": 16}),
                "L16",
                id="exotel-16k-numbers",
            ),
            pytest.param(SignalWire(wire=linear(16000)), "L16", id="signalwire-16k"),
            pytest.param(SignalWire(wire=linear(24000)), "L16", id="signalwire-24k"),
            pytest.param(Vonage(wire=linear(16000)), "L16", id="vonage-16k"),
            pytest.param(Vonage(wire=linear(24000)), "L16", id="vonage-24k"),
            pytest.param(Asterisk(wire=ALAW), "PCMA", id="asterisk-alaw"),
            pytest.param(Asterisk(wire=linear(8000)), "L16", id="asterisk-slin"),
            pytest.param(Asterisk(wire=linear(16000)), "L16", id="asterisk-slin16"),
            pytest.param(
                Telnyx(wire=ALAW, media_format={"encoding": "PCMA", "sample_rate": 8000, "channels": 1}),
                "PCMA",
                id="telnyx-PCMA",
            ),
            pytest.param(
                Telnyx(wire=linear(16000), media_format={"encoding": "L16", "sample_rate": 16000}),
                "L16",
                id="telnyx-L16",
            ),
            pytest.param(
                Plivo(wire=linear(16000), mediaFormat={"encoding": "audio/x-l16", "sampleRate": 16000}),
                "L16",
                id="plivo-L16",
            ),
        ],
    )
    @pytest.mark.parametrize("rate", [8000, 16000, 24000])
    def test_what_the_caller_says(self, shared: Any, dialect: Dialect, label: str, rate: int) -> None:
        ear = shared.bot = Ear(rate)
        said = tone(700, 400, dialect.wire.sample_rate)

        async def main() -> None:
            async with on_line(url_of(shared, dialect, "ws"), dialect) as line:
                await line.speak(said)
                if rate == dialect.wire.sample_rate:
                    await ear.hears(through(dialect.wire, said))
                # But for the few milliseconds that the resampler holds, all of it comes.
                await wait_for(lambda: len(ear.audio) >= 2 * rate * 0.38)

        asyncio.run(main())
        assert ear.listener.sample_rate == rate
        assert main_frequency(ear.audio, rate) == pytest.approx(700, abs=15)
        (record,) = shared.ended()
        assert record.heard_s == pytest.approx(0.4)

    @pytest.mark.parametrize(
        "dialect",
        [
            pytest.param(Exotel(wire=linear(16000)), id="exotel-16k"),
            pytest.param(Exotel(wire=linear(24000)), id="exotel-24k"),
            pytest.param(SignalWire(wire=linear(16000)), id="signalwire-16k"),
            pytest.param(Vonage(wire=linear(16000)), id="vonage-16k"),
            pytest.param(Vonage(wire=linear(24000)), id="vonage-24k"),
            pytest.param(Asterisk(wire=linear(16000)), id="asterisk-slin16"),
        ],
    )
    def test_what_the_bot_says(self, shared: Any, dialect: Dialect) -> None:
        """At another rate or in another codec it would be another tone, or noise."""
        said = tone(600, 300, 24000)
        shared.bot = bots.says(said)

        async def main() -> bytes:
            async with on_line(url_of(shared, dialect, "ws"), dialect) as line:
                assert await line.closed() == (1000, "")
                return line.heard()

        heard = asyncio.run(main())
        rate = dialect.wire.sample_rate
        assert len(heard) / 2 / rate == pytest.approx(0.3, abs=0.045)
        _, alike = correlation_delay_ms(tone(600, 300, rate), heard, rate)
        assert alike > 0.98

    @pytest.mark.parametrize("codec", ["G722", "OPUS", "AMR-WB"])
    @pytest.mark.parametrize("path", PATHS)
    def test_a_codec_that_nobody_can_read_is_refused_at_the_start(self, shared: Any, path: str, codec: str) -> None:
        """Not a deaf bot: the call ends at once, and says what to do."""
        ear = shared.bot = Ear()
        dialect = Telnyx(media_format={"encoding": codec, "sample_rate": 16000, "channels": 1})

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect) as line:
                code, reason = await line.closed()
                assert code == 1008
                assert codec in (reason or "")

        asyncio.run(main())
        assert ear.call is None
        (record,) = shared.ended()
        assert record.faults == {"unsupported-codec": 1}
        assert record.ended_by == "server"
        assert codec in record.reason
        assert 'codec="PCMU"' in record.reason

    def test_a_rate_that_exotel_has_not(self, shared: Any) -> None:
        ear = shared.bot = Ear()
        dialect = Exotel(media_format={"encoding": "raw", "sample_rate": "11025"})

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect) as line:
                assert (await line.closed())[0] == 1008

        asyncio.run(main())
        assert ear.call is None
        assert "11025" in shared.ended()[0].reason


class TestOrder:
    """
    Telnyx does not promise the order of media.

    https://developers.telnyx.com/api-reference/websockets/stream-call-media-over-websocket
    """

    SAID = speech_like(1000, 8000, seed=3)

    def hears(self, shared: Any, arrange: Callable[[list[Any]], list[Any]], expected_ms: int) -> bytes:
        ear = shared.bot = Ear()
        dialect = Telnyx()

        async def main() -> None:
            async with on_line(url_of(shared, dialect), dialect) as line:
                await line.send(*arrange(line.spoken(self.SAID)))
                # A key behind the audio brings out whatever waits for a piece that is missing.
                await line.press("1")
                await wait_for(lambda: ear.listener.digits and len(ear.audio) >= 16 * expected_ms)

        asyncio.run(main())
        assert len(ear.audio) == 16 * expected_ms
        return ear.audio

    def test_pieces_that_overtook_each_other(self, shared: Any) -> None:
        order = random.Random(5)
        arrived: list[Any] = []

        def arrange(messages: list[Any]) -> list[Any]:
            # Nobody is further from its place than three: less than a jitter buffer's length.
            arrived[:] = sorted(messages, key=lambda each: int(each["media"]["chunk"]) + order.uniform(0, 3))
            return arrived

        heard = self.hears(shared, arrange, 1000)
        as_it_came = MULAW.decode(b"".join(base64.b64decode(each["media"]["payload"]) for each in arrived))
        assert snr_db(self.SAID, as_it_came) < 5, "they were not out of order"
        assert heard == through(MULAW, self.SAID)
        delay_ms, alike = correlation_delay_ms(self.SAID, heard, 8000)
        assert abs(delay_ms) < 0.1
        assert alike > 0.99

    def test_pieces_that_came_twice_are_heard_once(self, shared: Any) -> None:
        heard = self.hears(shared, lambda messages: [each for each in messages for _ in "ab"], 1000)
        assert heard == through(MULAW, self.SAID)

    def test_a_piece_that_never_comes_costs_no_other(self, shared: Any) -> None:
        heard = self.hears(shared, lambda messages: messages[:20] + messages[21:], 980)
        whole = through(MULAW, self.SAID)
        assert heard == whole[: 20 * 320] + whole[21 * 320 :]


class TestWhatTheStartTells:
    """What pipecat's parser drops is there for every provider."""

    def told(self, shared: Any, dialect: Dialect, path: str = "ws") -> Ear:
        ear = Ear()
        shared.bot = ear

        async def main() -> None:
            async with on_line(url_of(shared, dialect, path), dialect):
                await wait_for(lambda: ear.call_data is not None)

        asyncio.run(main())
        return ear

    def test_custom_parameters(self, shared: Any, dialect: Dialect) -> None:
        dialect.parameters.update(customer="7", language="en")
        ear = self.told(shared, dialect)
        assert {"customer": "7", "language": "en"}.items() <= ear.call.parameters.items()
        assert {"customer": "7", "language": "en"}.items() <= ear.call_data.body.items()

    def test_telnyx(self, shared: Any) -> None:
        ear = self.told(shared, Telnyx(parameters={"customer": "7"}, client_state="aGF2ZSBhIG5pY2UgZGF5"))
        for told in (ear.call, ear.call_data):
            assert (told.from_number, told.to_number) == (FROM_NUMBER, TO_NUMBER)
        expected = {"customer": "7", "client_state": "aGF2ZSBhIG5pY2UgZGF5"}
        assert ear.call.parameters == expected
        assert ear.call_data.body == expected
        assert ear.call_data.outbound_encoding == "PCMU"

    def test_telnyx_parameters_as_the_api_takes_them(self, shared: Any) -> None:
        listed = [{"name": "customer", "value": "7"}]
        ear = self.told(shared, Telnyx(custom_parameters=listed, client_state=None))
        assert ear.call.parameters == {"customer": "7"}

    @pytest.mark.parametrize(
        "headers",
        [
            "customer=7;language=en",
            "customer=7,language=en",
            "{X-PH-customer: 7, X-PH-language: en}",
            '{"X-PH-customer": "7", "language": "en"}',
        ],
    )
    def test_plivos_extra_headers(self, shared: Any, headers: str) -> None:
        class Spelt(Plivo):
            def start(self) -> dict[str, Any]:
                return {**super().start(), "extra_headers": headers}

        assert self.told(shared, Spelt()).call.parameters == {"customer": "7", "language": "en"}

    def test_exotel_in_camel_case(self, shared: Any) -> None:
        """As Exotel's own bridge tolerates it: https://github.com/exotel/Agent-Stream"""

        class Camel(Exotel):
            def start(self) -> dict[str, Any]:
                start = super().start()["start"]
                content = {
                    "streamSid": start["stream_sid"],
                    "callSid": start["call_sid"],
                    "accountSid": start["account_sid"],
                    "from": FROM_NUMBER,
                    "to": TO_NUMBER,
                    "customParameters": {"customer": "7"},
                    "mediaFormat": {"sampleRate": 16000},
                }
                return {"event": "start", "sequenceNumber": 1, "streamSid": self.stream_id, "start": content}

        ear = self.told(shared, Camel())
        assert (ear.call.provider, ear.call.call_id) == ("exotel", Exotel.own_call_id)
        assert (ear.call_data.call_id, ear.call_data.from_number) == (Exotel.own_call_id, FROM_NUMBER)
        assert ear.call.parameters == {"customer": "7"}

    def test_counters_in_the_other_type(self, shared: Any, dialect: Dialect) -> None:
        """Numbers where texts are documented, and texts where numbers are."""

        def turned(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: turned(each) for name, each in value.items()}
            if isinstance(value, str) and value.isdigit() and len(value) < 20:
                return int(value)
            return str(value) if isinstance(value, int) else value

        ear = shared.bot = Ear()
        said = tone(700, 200, 8000)

        async def main() -> None:
            async with on_line(url_of(shared, dialect, "ws"), dialect, start=False) as line:
                await line.send(*map(turned, [*dialect.handshake(), *line.spoken(said), *dialect.digits("5")]))
                await ear.hears(through(dialect.wire, said))
                await wait_for(lambda: ear.listener.digits == ["5"] or not dialect.has_keys)

        asyncio.run(main())
        assert not shared.ended()[0].faults


def test_twilio_and_signalwire_are_told_apart(shared: Any) -> None:
    """Their starts differ in nothing but the shape of the ids."""
    ear = Ear()
    shared.bot = ear
    for kind in (Twilio, SignalWire):
        ear.call = None

        async def main(dialect: Dialect) -> None:
            async with on_line(url_of(shared, dialect, "ws"), dialect):
                await wait_for(lambda: ear.call is not None)

        asyncio.run(main(kind()))
        assert ear.call.provider == kind.name
        ear.listener = bots.Listener()
