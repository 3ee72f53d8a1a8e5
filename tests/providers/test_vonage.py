"""
Vonage, held against its documentation, a published token and pipecat's serializer.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import websockets
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import (
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
    OutputTransportMessageFrame,
)
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.serializers.vonage import VonageFrameSerializer
from pipecat.utils.asyncio.task_manager import TaskManager

from tests.providers.companies import Vonage, VonageStream
from tests.runner import bots
from tests.runner.conftest import RunningServer, serving
from tests.signals import tone
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial import TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import NoStream, Side, StreamRequest, WebhookRequest
from wsvoice.providers.events import Audio, Clear, Cleared, Digit, Mark, StreamStarted, StreamStopped, Unknown
from wsvoice.providers.vonage.company import FORMATS

NOW = 1_750_000_000.0
SEED = bytes(range(32))
CALL_ID = "aaaaaaaa-bbbb-cccc-dddd-0123456789ab"
CALL = Call("vonage", CALL_ID, from_number="+447700900000", to_number="+442079460000")
WIRE = FORMATS["audio/l16;rate=16000"]
STARTED = StreamStarted(CALL_ID, CALL_ID, format=WIRE, parameters={"customer": "Jörg"})
URL = "https://voice.example.com/"

# Made and accepted by Vonage's own library, vonage-jwt: https://github.com/Vonage/vonage-python-sdk/tree/main/jwt
SECRET = "wsvoice_vonage_signature_secret_0001"
BODY = b'{"uuid":"aaaaaaaa","status":"started"}'
TOKEN = (
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9"
    ".eyJpYXQiOjE3NTAwMDAwMDAsImp0aSI6IjExMTExMTExLTExMTEtMTExMS0xMTExLTExMTExMTExMTExMSIsImlzcyI6IlZvbmFnZSIsImFwaV9r"
    "ZXkiOiJhYmNkMTIzNCIsInBheWxvYWRfaGFzaCI6IjNjY2E2NzhjY2Q0Y2VlNWNiZDIwNWMwYWI4NGNlNDY0MjhmODA4MTk4ZThkMDIzOTVlNTU1"
    "NjVjNjI4NzcwYWEifQ.k4WdiL7rVmExzxFS899kIgb_TCG8zsPj7SIm0zsY2ko"
)


@pytest.fixture
def vonage() -> Any:
    return Vonage({"VONAGE_SIGNATURE_SECRET": SECRET})


def with_application() -> Any:
    carrier, bot = Vonage({}).test_credentials(SEED)
    return Vonage({**carrier, **bot})


def post(body: bytes, token: str, url: str = URL) -> WebhookRequest:
    return WebhookRequest("POST", url, {"content-type": "application/json", "authorization": f"Bearer {token}"}, body)


# Signatures


def test_the_published_token_is_accepted(vonage: Any) -> None:
    assert hashlib.sha256(BODY).hexdigest() == "3cca678ccd4cee5cbd205c0ab84ce46428f808198e8d02395e55565c628770aa"
    for now in (NOW, NOW + 299, NOW - 299):
        vonage.verify(post(BODY, TOKEN), now=now)


def signed(claims: dict[str, Any], secret: str = SECRET, algorithm: str = "HS256", **options: Any) -> str:
    return jwt.encode(
        {"iat": NOW, "iss": "Vonage", "payload_hash": hashlib.sha256(BODY).hexdigest(), **claims},
        secret,
        algorithm,
        **options,
    )


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (post(BODY + b" ", TOKEN), "not the one that was signed"),
        (post(b"", TOKEN), "not the one that was signed"),
        (post(BODY, signed({"payload_hash": None})), "not the one that was signed"),
        (post(BODY, signed({"payload_hash": ["x"]})), "not the one that was signed"),
        (post(BODY, signed({"iat": NOW - 301})), "not of the last 300 s"),
        (post(BODY, signed({"iat": NOW + 301})), "not of the last 300 s"),
        (post(BODY, signed({"iat": str(NOW)})), "not of the last 300 s"),
        (post(BODY, signed({"iat": None})), "not of the last 300 s"),
        (post(BODY, signed({"iat": float("nan")})), "not of the last 300 s"),
        (post(BODY, signed({"iat": 10**400})), "not of the last 300 s"),
        (post(BODY, signed({"exp": NOW - 1})), "not of the last 300 s"),
        (post(BODY, signed({"exp": 10**400})), "not of the last 300 s"),
        (post(BODY, signed({"exp": "never"})), "not of the last 300 s"),
        (post(BODY, signed({"iss": "nobody"})), "not Vonage's"),
        (post(BODY, signed({"iss": ""})), "not Vonage's"),
        (post(BODY, signed({}, secret=SECRET[::-1])), "no token that VONAGE_SIGNATURE_SECRET has signed"),
        (
            post(BODY, signed({}, secret=2 * SECRET, algorithm="HS384")),
            "no token that VONAGE_SIGNATURE_SECRET has signed",
        ),
        (post(BODY, signed({}, secret="", algorithm="none")), "no token that VONAGE_SIGNATURE_SECRET has signed"),
        (post(BODY, ""), "no token that VONAGE_SIGNATURE_SECRET has signed"),
        (WebhookRequest("POST", URL, {}, BODY), "no token that VONAGE_SIGNATURE_SECRET has signed"),
        # Whoever has seen a POST does not get a GET of their own choice out of it.
        (
            WebhookRequest("GET", f"{URL}?uuid=x", {"authorization": f"Bearer {TOKEN}"}),
            "not the one that was signed",
        ),
    ],
)
def test_any_other_is_refused(vonage: Any, request_: WebhookRequest, words: str) -> None:
    with pytest.raises(SignatureError, match=words):
        vonage.verify(request_, now=NOW)


def test_another_applications_token_is_refused() -> None:
    ours = Vonage({"VONAGE_SIGNATURE_SECRET": SECRET, "VONAGE_APPLICATION_ID": "ours"})
    ours.verify(post(BODY, signed({"application_id": "ours", "exp": NOW})), now=NOW)
    ours.verify(post(BODY, signed({})), now=NOW)
    for other in ("theirs", "", None, 5, ["ours"]):
        with pytest.raises(SignatureError, match="another application"):
            ours.verify(post(BODY, signed({"application_id": other})), now=NOW)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_a_scheme_is_written_in_any_case(vonage: Any, scheme: str) -> None:
    plain = post(BODY, TOKEN)
    request = dataclasses.replace(plain, headers={"authorization": f"{scheme} {TOKEN}"})
    vonage.verify(request, now=NOW)
    assert vonage.replay_key(request) == vonage.replay_key(plain)


def test_nobody_signs_with_nothing() -> None:
    head, content, _ = signed({}).split(".")
    digest = hmac.digest(b"", f"{head}.{content}".encode(), "sha256")
    token = f"{head}.{content}.{urlsafe_b64encode(digest).rstrip(b'=').decode()}"
    with pytest.raises(SignatureError):
        Vonage({}).verify(post(BODY, token), now=NOW)


def test_a_get_is_signed_without_a_hash(vonage: Any) -> None:
    request = vonage.sign(vonage.webhook(CALL, URL, method="GET"), now=NOW)
    token = request.headers["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims.keys() == {"iat", "iss", "jti"}
    assert claims["iss"] == "Vonage"
    vonage.verify(request, now=NOW)
    # The same with a body is none that Vonage sends.
    with pytest.raises(SignatureError):
        vonage.verify(dataclasses.replace(request, method="POST", body=BODY), now=NOW)


def test_a_token_has_an_id_of_its_own(vonage: Any) -> None:
    plain = vonage.webhook(CALL, URL)
    first, again = vonage.sign(plain, now=NOW), vonage.sign(plain, now=NOW + 1)
    assert vonage.replay_key(first) != vonage.replay_key(again)


# Webhooks and NCCOs


def test_the_answer_is_an_ncco(vonage: Any) -> None:
    """https://developer.vonage.com/en/voice/voice-api/ncco-reference#websocket-endpoint"""
    answer = vonage.answer(dataclasses.replace(CALL, parameters={"plan": "gold"}), "wss://voice.example.com/ws/t")
    assert answer.media_type == "application/json"
    assert json.loads(answer.body) == [
        {
            "action": "connect",
            "endpoint": [
                {
                    "type": "websocket",
                    "uri": "wss://voice.example.com/ws/t",
                    "content-type": "audio/l16;rate=16000",
                    "headers": {
                        "from_number": "+447700900000",
                        "to_number": "+442079460000",
                        "direction": "inbound",
                        "plan": "gold",
                        "call_id": CALL_ID,
                    },
                }
            ],
        }
    ]


def test_headers_have_a_limit(vonage: Any) -> None:
    call = dataclasses.replace(CALL, from_number="", to_number="")
    bare = len(json.dumps(json.loads(vonage.answer(call, "wss://h/").body)[0]["endpoint"][0]["headers"]))
    most = "x" * (512 - bare - len(', "p": ""'))
    answer = vonage.answer(dataclasses.replace(CALL, parameters={"p": most}), "wss://h/")
    # There is no room for the numbers, which are left out.
    assert vonage.read_answer(answer.body.encode(), answer.media_type).parameters["p"] == most
    for text in (most + "x", "日" * len(most)):
        with pytest.raises(LocalProtocolError) as caught:
            vonage.answer(dataclasses.replace(CALL, parameters={"p": text}), "wss://h/")
        assert caught.value.kind == "long-parameter"


def test_a_callers_number_is_left_out_where_it_is_too_long(vonage: Any) -> None:
    def told(**changes: Any) -> Any:
        answer = vonage.answer(dataclasses.replace(CALL, **changes), "wss://h/")
        return vonage.read_answer(answer.body.encode(), answer.media_type).parameters

    assert "from_number" not in told(from_number="日" * 256)
    assert told(from_number="日" * 256)["to_number"] == CALL.to_number
    assert not {"from_number", "to_number"} & told(from_number="日" * 256, to_number="日" * 256).keys()


@pytest.mark.parametrize("name", ["", "event", "content-type", "call_id"])
def test_some_names_are_taken(vonage: Any, name: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        vonage.answer(dataclasses.replace(CALL, parameters={name: "x"}), "wss://h/")
    assert caught.value.kind == "bad-parameter"


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
def test_the_sample_rate_is_asked_for(rate: int) -> None:
    vonage = Vonage({"VONAGE_SAMPLE_RATE": str(rate)})
    answer = vonage.answer(CALL, "wss://h/")
    assert vonage.read_answer(answer.body.encode(), answer.media_type).format.sample_rate == rate
    carrier, bot = vonage.test_credentials(SEED)
    assert carrier["VONAGE_SAMPLE_RATE"] == bot["VONAGE_SAMPLE_RATE"] == str(rate)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="VONAGE_SAMPLE_RATE"):
        Vonage({"VONAGE_SAMPLE_RATE": "44100"})
    for key in ("private.key", "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----", "\udc80"):
        with pytest.raises(ConfigError, match="VONAGE_PRIVATE_KEY") as caught:
            Vonage({"VONAGE_PRIVATE_KEY": key})
        assert "cat private.key" in (caught.value.hint or "") or "not its path" in (caught.value.hint or "")


def endpoint(**fields: Any) -> dict[str, Any]:
    return {"type": "websocket", "uri": "wss://h/ws", "content-type": "audio/l16;rate=16000", **fields}


def ncco(*actions: Any, **fields: Any) -> bytes:
    return json.dumps([*actions, {"action": "connect", "endpoint": [endpoint(**fields)]}]).encode()


def test_the_documented_ncco_is_carried_out(vonage: Any) -> None:
    """https://developer.vonage.com/en/voice/voice-api/concepts/websockets"""
    headers = {"name": "J Doe", "age": 40, "address": {"line_1": "Apartment 14"}, "system_roles": [1]}
    talk = {"action": "talk", "text": "Please wait"}
    request = vonage.read_answer(ncco(talk, headers=headers), "application/json")
    assert isinstance(request, StreamRequest)
    assert (request.url, request.format, request.skipped) == ("wss://h/ws", WIRE, ["talk Please wait"])
    assert (request.findings, request.then, request.rest) == ([], [], b"")
    # What its headers do not say, the first event does not either.
    carrier = VonageStream(Side.CARRIER)
    first = carrier.send(StreamStarted("s", CALL_ID, format=request.format, parameters=request.parameters))
    assert json.loads(first) == {
        "event": "websocket:connected",
        "content-type": "audio/l16;rate=16000",
        "name": "J Doe",
        "age": "40",
    }
    with pytest.raises(RemoteProtocolError, match="call_id") as caught:
        VonageStream(Side.BOT).receive(first)
    assert caught.value.kind == "bad-start"


def test_what_follows_a_stream_is_the_next_document(vonage: Any) -> None:
    actions = [*json.loads(ncco()), {"action": "talk", "text": "Goodbye"}]
    request = vonage.read_answer(json.dumps(actions).encode(), "application/json")
    assert request.then == ["talk Goodbye"]
    rest = vonage.read_document(request.rest, "application/json")
    assert isinstance(rest, NoStream)
    assert (rest.how, list(rest.skipped)) == ("done", ["talk Goodbye"])
    phone = [{"action": "connect", "endpoint": [{"type": "phone", "number": "447700900001"}]}]
    gone = vonage.read_document(json.dumps(phone).encode(), "application/json")
    assert (gone.how, gone.to) == ("transferred", "connect 447700900001")
    # Whom a call begins with is skipped, for the caller hears the bot after.
    assert vonage.read_answer(ncco(*phone), "application/json").skipped == ["connect 447700900001"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}", "instead of an array"),
        (b"[1]", "is a number, not an object that names its action"),
        (b'[{"action":"connect"}]', "needs an endpoint"),
        (b'[{"action":"connect","endpoint":[{},{}]}]', "needs an endpoint"),
        (b'[{"action":"talk","text":"Hello"}]', "turned away: Hello"),
        (b"[]", "holds nothing"),
        (ncco(uri="https://h/"), "it must be wss"),
        (ncco(uri=5), "no url"),
        (ncco(**{"content-type": "audio/l16;rate=48000"}), "none of Vonage's"),
        (ncco(**{"content-type": None}), "none of Vonage's"),
        (ncco(headers=[]), "headers is an array"),
        (ncco(headers={"p": "x" * 512}), "Vonage takes 512"),
    ],
)
def test_what_is_no_ncco_for_a_bot(vonage: Any, body: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        vonage.read_answer(body, "application/json")


def test_a_call_that_we_placed_says_so_in_its_answer_url(vonage: Any) -> None:
    placed = dataclasses.replace(CALL, direction="outbound")
    for method in ("GET", "POST"):
        request = vonage.webhook(placed, f"{URL}?a=b", method=method)
        assert "a=b" in request.url
        assert vonage.read_webhook(request) == placed


# The stream


def ends(started: StreamStarted = STARTED) -> tuple[Any, Any]:
    carrier, bot = VonageStream(Side.CARRIER), VonageStream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


@pytest.mark.parametrize(("name", "size"), list(zip(FORMATS, (320, 640, 960), strict=True)))
def test_every_message_of_the_bots_is_20_ms(name: str, size: int) -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=FORMATS[name]))
    assert bot.send(Audio(b"\1\0")) == b"\1\0" + bytes(size - 2)
    assert len(bot.send(Audio(bytes(size)))) == size
    carrier.receive(bytes(size))
    assert carrier.findings() == []
    for other, level in ((size // 2, "warn"), (2 * size, "warn"), (size - 1, "fail"), (0, "warn")):
        carrier.receive(bytes(other))
        assert level in {each.level for each in carrier.findings()}, other


def test_a_notification_comes_back_as_it_was_asked_for() -> None:
    carrier, _ = ends()
    for payload in (
        {"name": "m"},
        {"customKey": "customValue"},
        {"name": "m", "n": 1},
        {"name": 5},
        {},
        {"name": "{}"},
    ):
        event = carrier.receive(json.dumps({"action": "notify", "payload": payload}))
        assert json.loads(carrier.send(event)) == {"event": "websocket:notify", "payload": payload}
    with pytest.raises(RemoteProtocolError):
        carrier.receive('{"action":"notify"}')


@pytest.mark.parametrize("name", ["m", "5", "{}", '{"name":"m"}', '{"customKey":"customValue"}', '{"name":"{}"}'])
def test_a_mark_comes_back_under_its_name(name: str) -> None:
    carrier, bot = ends()
    message = bot.send(Mark(name))
    assert json.loads(message) == {"action": "notify", "payload": {"name": name}}
    assert bot.receive(carrier.send(carrier.receive(message))) == Mark(name)


def test_a_command_that_nobody_knows_is_a_finding() -> None:
    carrier, _ = ends()
    assert carrier.receive('{"action":"hangup"}') == Unknown("hangup")
    assert [each.level for each in carrier.findings()] == ["warn"]


@pytest.mark.parametrize("event", [Clear(), Mark("")])
def test_what_a_carrier_cannot_say(event: Any) -> None:
    carrier, _ = ends()
    with pytest.raises(LocalProtocolError):
        carrier.send(event)


# pipecat's serializer


def with_pipecat(action: Callable[[VonageFrameSerializer], Awaitable[Any]]) -> Any:
    """Run something with pipecat's serializer, set up as in a pipeline at 16 kHz."""

    async def main() -> Any:
        serializer = VonageFrameSerializer()
        await serializer.setup(
            FrameProcessorSetup(
                clock=SystemClock(),
                task_manager=TaskManager(),
                pipeline_worker=None,  # type: ignore[arg-type]
                audio_in_sample_rate=16000,
                audio_out_sample_rate=16000,
            )
        )
        return await action(serializer)

    return asyncio.run(main())


def test_pipecat_reads_what_our_carrier_sends() -> None:
    carrier, _ = ends()
    pcm = tone(440, 20, 16000)

    def read(event: Any) -> Any:
        return with_pipecat(lambda serializer: serializer.deserialize(carrier.send(event)))

    heard = read(Audio(pcm))
    assert isinstance(heard, InputAudioRawFrame)
    assert (heard.audio, heard.sample_rate, heard.num_channels) == (pcm, 16000, 1)
    for digit in "0123456789*#":
        pressed = read(Digit(digit))
        assert isinstance(pressed, InputDTMFFrame)
        assert pressed.button == KeypadEntry(digit)
    for event in (STARTED, Mark("m"), Cleared(), StreamStopped()):
        assert read(event) is None


def test_our_carrier_reads_what_pipecat_sends() -> None:
    carrier, bot = ends()
    pcm = tone(440, 20, 16000)

    def write(frame: Any) -> Any:
        return with_pipecat(lambda serializer: serializer.serialize(frame))

    said = write(OutputAudioRawFrame(audio=pcm, sample_rate=16000, num_channels=1))
    assert said == bot.send(Audio(pcm))
    assert carrier.receive(said) == Audio(pcm)
    cleared = write(InterruptionFrame())
    assert carrier.receive(cleared) == Clear()
    assert json.loads(cleared) == json.loads(bot.send(Clear()))
    notified = write(OutputTransportMessageFrame(message=json.loads(bot.send(Mark("m")))))
    assert carrier.receive(notified) == Mark("m")
    assert carrier.findings() == []


# REST


def test_a_call_is_hung_up_with_a_token_of_the_application() -> None:
    """https://developer.vonage.com/en/api/voice#updateCall"""
    vonage = with_application()
    request = vonage.hang_up(dataclasses.replace(CALL, call_id="a/b"), now=NOW)
    assert (request.method, request.url) == ("PUT", "https://api.nexmo.com/v1/calls/a%2Fb")
    assert json.loads(request.body) == {"action": "hangup"}
    token = request.headers["authorization"].removeprefix("Bearer ")
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims.pop("jti") != vonage.hang_up(CALL, now=NOW + 0.1).headers["authorization"]
    assert claims == {"application_id": vonage.credential("VONAGE_APPLICATION_ID"), "iat": NOW, "exp": NOW + 60}
    at_home = Vonage({**vonage.credentials, "VONAGE_API_BASE_URL": "http://127.0.0.1:1/"})
    assert at_home.hang_up(CALL, now=NOW).url == f"http://127.0.0.1:1/v1/calls/{CALL_ID}"
    # As files of settings that hold one line hold it.
    one_line = {
        **vonage.credentials,
        "VONAGE_PRIVATE_KEY": vonage.credential("VONAGE_PRIVATE_KEY").replace("\n", "\\n"),
    }
    assert Vonage(one_line).hang_up(CALL, now=NOW) == vonage.hang_up(CALL, now=NOW)
    for missing in ("VONAGE_APPLICATION_ID", "VONAGE_PRIVATE_KEY"):
        assert Vonage({**vonage.credentials, missing: ""}).hang_up(CALL, now=NOW) is None


def test_the_fake_api_hangs_up() -> None:
    vonage = with_application()
    sent = vonage.hang_up(CALL, now=NOW)
    asked = WebhookRequest(sent.method, sent.url, sent.headers, sent.body)
    assert vonage.is_authorised(asked)
    command = vonage.read_command(asked)
    assert (command.kind, command.call_id) == ("hang-up", CALL_ID)
    assert vonage.command_answer(command, CALL, "completed").status == 204
    assert vonage.read_command(dataclasses.replace(asked, method="DELETE")) is None
    assert vonage.read_command(dataclasses.replace(asked, url="http://h/v1/conversations/x")) is None
    for body in (b"", b'{"action":"mute"}', b"[]"):
        with pytest.raises(RemoteProtocolError):
            vonage.read_command(dataclasses.replace(asked, body=body))
    other = Vonage({**vonage.credentials, "VONAGE_APPLICATION_ID": "another"})
    assert not other.is_authorised(asked)
    for header in ("", "Bearer x", f"Bearer {TOKEN}", f"Basic {TOKEN}"):
        assert not vonage.is_authorised(dataclasses.replace(asked, headers={"authorization": header}))
    assert Vonage({}).is_authorised(dataclasses.replace(asked, headers={}))


# In a call

ENDS = """
async def bot(runner_args):
    await runner_args.websocket.close()
"""


def test_a_bot_that_ends_hangs_up(tmp_path: Path) -> None:
    (tmp_path / "bot.py").write_text(ENDS)
    events: list[TimelineEvent] = []
    config = DialConfig(target=str(tmp_path / "bot.py"), transport="vonage", duration_s=5.0)
    report = asyncio.run(dial(config, on_event=events.append))
    told = [event.text for event in events]
    assert report.ended_by == "bot", told
    assert not any("simulated REST API" in text for text in told), told


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningServer]:
    with serving(monkeypatch) as start:
        yield start(bots.echo, transport="vonage")


def test_audio_that_comes_ahead_of_the_first_event_is_not_lost(server: RunningServer) -> None:
    """Others have met it so: https://github.com/dograh-hq/dograh"""
    vonage = Vonage({})
    asked = vonage.webhook(CALL, server.url)
    answer = httpx.post(asked.url, headers=dict(asked.headers), content=asked.body)
    request = vonage.read_answer(answer.content, answer.headers["content-type"])
    loud, carrier = tone(440, 20, 16000), VonageStream(Side.CARRIER)

    async def main() -> None:
        async with websockets.connect(request.url) as socket:
            await socket.send(loud)
            await socket.send(carrier.send(dataclasses.replace(STARTED, parameters=request.parameters)))
            async with asyncio.timeout(10):
                while not isinstance(message := await socket.recv(), bytes) or not any(message):
                    pass
            assert len(message) == 640

    asyncio.run(main())
    [record] = server.ended()
    assert record.call == dataclasses.replace(CALL, stream_id=CALL_ID)
    assert record.heard_s == pytest.approx(0.02)
