"""
What every provider must do, whatever its spelling. A new provider joins by its line in the registry, its golden
messages, and its secret below if it signs.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import string
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.providers.companies import load_provider
from wsvoice.audio import AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import LocalProtocolError, RemoteProtocolError, SignatureError, UsageError
from wsvoice.providers import PROVIDERS, events
from wsvoice.providers.base import Callback, CallUpdate, Side, StreamStatus, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    SendDigits,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.media_stream import Stream

GOLDEN = Path(__file__).parent.parent / "golden"
#: Whose answers have no portable place for the user's parameters.
WITHOUT_PARAMETERS = {"plivo"}
#: Who has no reports on streams, or sends them with those on the call.
WITHOUT_STREAM_REPORTS = {"exotel", "vonage"}
NOW = 1_750_000_000.0
SEED = bytes(range(32))
COUNTERS = ("chunk", "timestamp_ms", "sequence")

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=sorted(PROVIDERS), scope="session")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def provider(name: str) -> Any:
    return with_secrets(name)


@cache
def with_secrets(name: str) -> Any:
    """Return a provider that knows the secrets of both ends of a test call."""
    carrier, bot = load_provider(name).test_credentials(SEED)
    return load_provider(name, {**bot, **carrier})


@dataclasses.dataclass(frozen=True)
class Golden:
    side: Side
    message: str | bytes
    event: Event
    resend: bool


def read_event(fields: dict[str, Any]) -> Event:
    values = dict(fields)
    kind = getattr(events, values.pop("type"))
    if "payload" in values:
        values["payload"] = base64.b64decode(values["payload"])
    if "format" in values:
        wire = dict(values["format"])
        values["format"] = AudioFormat(**{**wire, "encoding": Encoding(wire["encoding"])})
    event: Event = kind(**values)
    return event


def read_golden(path: Path) -> Golden:
    content = json.loads(path.read_text())
    assert content["source"].startswith("https://"), f"{path} does not say where it is from"
    # A text as it is, JSON as a value, or {"binary": base64}.
    written = content["message"]
    message: str | bytes = written if isinstance(written, str) else json.dumps(written)
    if isinstance(written, dict) and written.keys() == {"binary"}:
        message = base64.b64decode(written["binary"])
    return Golden(Side(content["from"]), message, read_event(content["event"]), content["resend"])


ALL_GOLDEN = [
    pytest.param(name, path, id=f"{name}-{path.stem}")
    for name in sorted(PROVIDERS)
    for path in sorted((GOLDEN / name).glob("*.json"))
]
JSON_TEXTS = [
    message
    for name, path in (parameter.values for parameter in ALL_GOLDEN)
    if isinstance(message := read_golden(path).message, str) and message.startswith("{")
]


@cache
def start_of(name: str) -> Golden:
    return read_golden(GOLDEN / name / "start.json")


def ends(provider: Any) -> tuple[Stream, Stream]:
    """Return a carrier's and a bot's end of a stream that has started."""
    carrier, bot = provider.stream(Side.CARRIER), provider.stream(Side.BOT)
    bot.receive(carrier.send(start_of(provider.name).event))
    return carrier, bot


identifiers = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9:_-]{0,40}", fullmatch=True)
numbers = st.from_regex(r"\+[1-9][0-9]{6,14}", fullmatch=True)
counters = st.none() | st.integers(0, 2**40)
names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,20}", fullmatch=True)
# Anything that XML can hold; what it cannot is a matter of each provider's own tests.
values = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Cn"], exclude_characters="\ufffe\uffff"), max_size=100
) | st.sampled_from(["<>&\"'", "]]>", "<!--", "&amp;", "a=b;c&d", "日本語", "🙂"])
# Sizes that no provider finds fault with; Exotel's are the largest.
audio_bytes = st.builds(lambda n, piece: piece * (100 * n), st.integers(1, 3), st.binary(min_size=32, max_size=32))


@st.composite
def starts(draw: st.DrawFn) -> StreamStarted:
    from_number, to_number = draw(numbers), draw(numbers)
    parameters = draw(st.dictionaries(names, values, max_size=1))
    return StreamStarted(
        stream_id=draw(identifiers),
        call_id=draw(identifiers),
        account_id=draw(identifiers),
        from_number=from_number,
        to_number=to_number,
        # Providers whose start message has no numbers of its own get them as custom parameters.
        parameters={**parameters, "from_number": from_number, "to_number": to_number},
        sequence=draw(counters),
    )


carrier_events = (
    st.builds(Connected)
    | starts()
    | st.builds(Audio, audio_bytes, chunk=counters, timestamp_ms=counters, sequence=counters)
    | st.builds(Digit, st.sampled_from("0123456789*#ABCD"), sequence=counters)
    | st.builds(Mark, names, sequence=counters)
    | st.builds(Cleared, sequence=counters)
    | st.builds(StreamError, st.just("100004"))
    | st.builds(StreamStopped, sequence=counters)
    | st.builds(Unknown, names)
)
bot_events = st.builds(Audio, audio_bytes) | st.builds(Mark, names) | st.builds(Clear)


def assert_same(received: Event, sent: Event, name: str) -> None:
    """Assert that `received` is `sent`, but for counters that were left to the stream, and what it has not got."""
    assert type(received) is type(sent)
    if isinstance(sent, Connected):
        return  # Every carrier tells the version of its own protocol.
    if isinstance(sent, StreamStarted):
        assert isinstance(received, StreamStarted)
        documented = start_of(name).event
        assert isinstance(documented, StreamStarted)
        untold = [field for field in ("account_id",) if not getattr(documented, field)]
        if documented.stream_id == documented.call_id:
            untold.append("stream_id")  # A stream without an id of its own.
        sent = dataclasses.replace(sent, **{field: getattr(received, field) for field in untold})
    if isinstance(sent, Mark | Digit | StreamStopped) and isinstance(received, Mark | Digit | StreamStopped):
        sent = dataclasses.replace(sent, sequence=received.sequence if received.sequence is None else sent.sequence)
    open_ = {
        field: getattr(sent, field)
        for field in COUNTERS
        if hasattr(sent, field) and (getattr(sent, field) is None or getattr(received, field) is None)
    }
    assert dataclasses.replace(received, **open_) == sent


@relaxed
@given(event=carrier_events)
def test_the_bot_receives_what_the_carrier_sends(provider: Any, event: Event) -> None:
    carrier, bot = ends(provider)
    if isinstance(event, StreamStarted):
        event = dataclasses.replace(event, format=carrier.format)
    try:
        message = carrier.send(event)
    except LocalProtocolError:
        assert not isinstance(event, StreamStarted | Audio), "a carrier sends these"
        return
    assert_same(bot.receive(message), event, provider.name)
    if isinstance(event, StreamStarted):
        assert bot.format == event.format


@relaxed
@given(event=bot_events)
def test_the_carrier_receives_what_the_bot_sends(provider: Any, event: Event) -> None:
    carrier, bot = ends(provider)
    if isinstance(event, Mark) and not provider.has_marks:
        with pytest.raises(LocalProtocolError):
            bot.send(event)
        return
    if isinstance(event, Audio) and (whole := bot.outbound_format.bytes_for(getattr(bot, "bot_frame_ms", 0))):
        # No more than such a frame holds, and a little less.
        event = Audio(event.payload[: whole - 32])
    received = carrier.receive(bot.send(event))
    if isinstance(event, Audio) and isinstance(received, Audio):
        # Some take whole frames alone, so that the last one is filled up with silence.
        padding = received.payload[len(event.payload) :]
        assert padding == bot.outbound_format.silence(len(padding))
        event = Audio(event.payload + padding)
    assert received == event
    assert carrier.findings() == []


@pytest.mark.parametrize("event", [Digit("1"), StreamStopped(), Connected(), StreamStarted("s", "c")])
def test_a_bot_cannot_say_what_only_a_carrier_says(provider: Any, event: Event) -> None:
    _, bot = ends(provider)
    with pytest.raises(LocalProtocolError):
        bot.send(event)


def test_keys_are_pressed_on_the_stream_of_those_who_take_them(provider: Any) -> None:
    carrier, bot = ends(provider)
    try:
        message = bot.send(SendDigits("1"))
    except LocalProtocolError:
        return
    assert carrier.receive(message) == SendDigits("1")


@pytest.mark.parametrize("event", [Audio(bytes(320)), Mark("m"), Clear(), SendDigits("1")])
def test_a_bot_says_nothing_before_the_stream_has_started(provider: Any, event: Event) -> None:
    bot = provider.stream(Side.BOT)
    with pytest.raises(LocalProtocolError):
        bot.send(event)


def test_an_unknown_message_is_no_error(provider: Any) -> None:
    carrier, bot = ends(provider)
    for end, side in ((bot, Side.CARRIER), (carrier, Side.BOT)):
        message = json.dumps({name_key(provider.name, side): "surprise", "surprise": {"new": [1, None]}})
        assert end.receive(message) == Unknown("surprise")


def name_key(name: str, side: Side) -> str:
    """Return the key under which a company's messages say what they are: the first of a documented one."""
    golden = [read_golden(path) for path in sorted((GOLDEN / name).glob("*.json"))]
    texts = [one.message for one in golden if one.side is side and isinstance(one.message, str)]
    return next(iter(json.loads(texts[0])))


# Golden messages


@pytest.mark.parametrize("provider_name", sorted(PROVIDERS))
def test_there_are_golden_messages_of_both_ends(provider_name: str) -> None:
    golden = [read_golden(path) for path in (GOLDEN / provider_name).glob("*.json")]
    assert {type(one.event) for one in golden if one.side is Side.CARRIER} >= {StreamStarted, Audio}
    assert {type(one.event) for one in golden if one.side is Side.BOT} >= {Audio, Clear}


@pytest.mark.parametrize(("provider_name", "path"), ALL_GOLDEN)
def test_a_golden_message_is_received_as_its_event(provider_name: str, path: Path) -> None:
    golden = read_golden(path)
    carrier, bot = ends(load_provider(provider_name))
    receiver = bot if golden.side is Side.CARRIER else carrier
    assert receiver.receive(golden.message) == golden.event
    assert receiver.findings() == []


@pytest.mark.parametrize(("provider_name", "path"), ALL_GOLDEN)
def test_a_golden_event_is_sent_as_its_message(provider_name: str, path: Path) -> None:
    golden = read_golden(path)
    carrier, bot = ends(load_provider(provider_name))
    sent = (carrier if golden.side is Side.CARRIER else bot).send(golden.event)
    if golden.resend:
        assert meaning(sent) == meaning(golden.message)
    else:
        assert meaning(sent) != meaning(golden.message), "it is sent as it is documented, so say so"


def meaning(message: str | bytes) -> Any:
    """Return the value of a text that is JSON; any other message as it is."""
    try:
        return json.loads(message) if isinstance(message, str) else message
    except ValueError:
        return message


# Garbage

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Draw a golden message with a value replaced, a key removed, or a character changed."""
    text = draw(st.sampled_from(JSON_TEXTS))
    way = draw(st.sampled_from(["value", "removal", "character"]))
    if way == "character":
        at = draw(st.integers(0, len(text) - 1))
        return text[:at] + draw(st.characters()) + text[at + 1 :]
    content = json.loads(text)
    places = [(content, key) for key in content]
    places += [(inner, key) for inner in content.values() if isinstance(inner, dict) for key in inner]
    holder, key = draw(st.sampled_from(places))
    if way == "removal":
        del holder[key]
    else:
        holder[key] = draw(json_values)
    return json.dumps(content)


def outcome(stream: Stream, message: str | bytes) -> Event | RemoteProtocolError:
    try:
        return stream.receive(message)
    except RemoteProtocolError as error:
        return error


def assert_only_protocol_errors(stream: Stream, message: str | bytes) -> None:
    result = outcome(stream, message)
    if isinstance(result, RemoteProtocolError):
        assert result.kind
        assert len(result.message) <= 200
        assert "\n" not in result.message
    else:
        # What came through can be sent on: no half of a surrogate pair, no infinite number.
        json.dumps(dataclasses.asdict(result), default=bytes.hex, allow_nan=False, ensure_ascii=False).encode()


@relaxed
@given(message=st.text() | st.binary() | json_values.map(json.dumps) | mutated())
def test_nothing_but_a_protocol_error_comes_of_garbage(provider: Any, message: str | bytes) -> None:
    for stream in (*ends(provider), provider.stream(Side.BOT), provider.stream(Side.CARRIER)):
        assert_only_protocol_errors(stream, message)


NASTY = {
    "empty": "",
    "space": " ",
    "null": "null",
    "array": "[]",
    "number": "1",
    "string": '"start"',
    "deep array": "[" * 60_000,
    "deep object": '{"event":' * 7_000,
    "deep inside": '{"event":"start","start":' + "[" * 30_000 + "]" * 30_000 + "}",
    "deep parameters": '{"event":"start","start":{"streamSid":"s","callSid":"c","customParameters":{"a":'
    + "[" * 900
    + "]" * 900
    + "}}}",
    "long number": '{"event":"media","sequenceNumber":' + "9" * 5_000 + "}",
    "huge float": '{"event":"media","sequenceNumber":1e999,"media":{"payload":"","chunk":-1e999}}',
    "nan": '{"event":"media","sequenceNumber":NaN}',
    "infinity": '{"event":"mark","sequenceNumber":-Infinity}',
    "half a surrogate": r'{"event":"mark","mark":{"name":"\ud800"}}',
    "upper-case surrogate": r'{"event":"\uDBFF"}',
    "bare surrogate": '{"event":"\ud800"}',
    "event is a list": '{"event":["media"]}',
    "event is an object": '{"event":{}}',
    "event is empty": '{"event":""}',
    "media is null": '{"event":"media","media":null}',
    "media is a list": '{"event":"media","media":[]}',
    "payload is a number": '{"event":"media","media":{"payload":1}}',
    "payload is null": '{"event":"media","media":{"payload":null}}',
    "payload is not ascii": '{"event":"media","media":{"payload":"éééé"}}',
    "payload is no base64": '{"event":"media","media":{"payload":"****"}}',
    "payload lacks padding": '{"event":"media","media":{"payload":"AAA"}}',
    "payload is padded twice": '{"event":"media","media":{"payload":"QQ==QQ=="}}',
    "long event": json.dumps({"event": "x" * 60_000}),
    "long digit": json.dumps({"event": "dtmf", "dtmf": {"digit": "1" * 60_000}}),
    "long payload": json.dumps({"event": "media", "media": {"payload": "*" * 60_000}}),
    "nul": '{"event":"\\u0000"}',
    "byte order mark": '\ufeff{"event":"mark"}',
    "binary": b"\x00\xff",
    "binary json": b'{"event":"media"}',
}


@pytest.mark.parametrize("message", NASTY.values(), ids=NASTY.keys())
def test_nasty_messages(provider: Any, message: str | bytes) -> None:
    for stream in ends(provider):
        assert_only_protocol_errors(stream, message)


@pytest.mark.parametrize(
    "text", ["STATUS " + "a" * 65_000, "A" * 65_000, "MEDIA_START " + "a:" * 32_000, '{"a":"' * 9_000]
)
def test_a_long_text_takes_no_time(provider: Any, text: str) -> None:
    for stream in (*ends(provider), provider.stream(Side.BOT), provider.stream(Side.CARRIER)):
        began = time.process_time()
        assert_only_protocol_errors(stream, text)
        assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    "label",
    [
        "empty",
        "null",
        "array",
        "deep array",
        "deep object",
        "nan",
        "half a surrogate",
        "event is empty",
        "media is null",
    ],
)
def test_what_is_no_message_is_refused(provider: Any, label: str) -> None:
    carrier, bot = ends(provider)
    if label.startswith("media") and isinstance(carrier.send(Audio(bytes(320))), bytes):
        pytest.skip("its audio is no JSON")
    for stream in (carrier, bot):
        with pytest.raises(RemoteProtocolError):
            stream.receive(NASTY[label])


#: What may stand where something else belongs.
STRANGE: list[Any] = [None, True, 0, -1, 1.5, 10**30, "", "x" * 300, "\u0000", [], [None], {}, {"a": None}, {"": [{}]}]
#: The fields without which a start is none: an event's name, and ids.
ESSENTIAL = re.compile(
    r"event(type)?|start|metadata|stream_?(id|sid)|call_?(id|sid|control_id)|channel(_id)?", re.IGNORECASE
)
#: What says how the audio sounds: it is not guessed.
FORMAT = re.compile(r"(media_?)?format|encoding|sample_?rate|content-type", re.IGNORECASE)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Return every place in a message, as what holds it and the key."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(content, dict):
        inside = [(content, key) for key in content]
    elif isinstance(content, list):
        inside = [(content, index) for index in range(len(content))]
    return inside + [place for holder, key in inside for place in places(holder[key])]


def with_anything_anywhere(text: str) -> list[tuple[Any, Any, str]]:
    """Return a message in all its variants with one strange value: its key, the value, and the text."""
    variants = []
    content = json.loads(text)
    for holder, key in places(content):
        kept = holder[key]
        for value in STRANGE:
            holder[key] = value
            variants.append((key, value, json.dumps(content)))
        holder[key] = kept
    return variants


@pytest.mark.parametrize(("provider_name", "path"), ALL_GOLDEN)
def test_anything_may_stand_anywhere(provider_name: str, path: Path) -> None:
    provider = load_provider(provider_name)
    carrier, bot = ends(provider)
    text = read_golden(path).message
    if not isinstance(text, str) or not text.startswith("{"):
        pytest.skip("no JSON")
    for _, _, message in with_anything_anywhere(text):
        assert isinstance(provider.claims(json.loads(message)), bool)
        for stream in (carrier, bot):
            assert_only_protocol_errors(stream, message)


@pytest.mark.parametrize(
    ("provider_name", "path"), [each for each in ALL_GOLDEN if str(each.values[1]).endswith("start.json")]
)
def test_a_start_needs_nothing_but_ids_and_a_format(provider_name: str, path: Path) -> None:
    provider = load_provider(provider_name)
    golden = read_golden(path)
    assert isinstance(golden.event, StreamStarted)
    assert isinstance(golden.message, str)
    for key, value, message in with_anything_anywhere(golden.message):
        event = outcome(provider.stream(Side.BOT), message)
        if isinstance(event, RemoteProtocolError):
            assert ESSENTIAL.fullmatch(str(key)) or FORMAT.fullmatch(str(key)), (key, value)
        elif not ESSENTIAL.fullmatch(str(key)):
            assert isinstance(event, StreamStarted)
            assert (event.stream_id, event.call_id) == (golden.event.stream_id, golden.event.call_id)


# The HTTP half


@pytest.fixture(scope="session")
def caller(provider: Any) -> Any:
    """A provider that announces its calls."""
    if not provider.has_webhook:
        pytest.skip(f"{provider.title} sends no webhooks")
    return provider


def a_call(provider: Any, parameters: dict[str, str] | None = None) -> Call:
    return provider.new_call(
        from_number="+15550100001", to_number="+15550100002", parameters=parameters or {}, seed=SEED
    )


@relaxed
@given(parameters=st.dictionaries(names, values, max_size=2))
def test_an_answer_is_read_as_it_was_meant(caller: Any, parameters: dict[str, str]) -> None:
    try:
        answer = caller.answer(a_call(caller, parameters), "wss://voice.example.com/ws/token")
    except LocalProtocolError as error:
        if error.kind != "long-parameter":
            raise
        return
    request = caller.read_answer(answer.body.encode(), answer.media_type)
    # Exotel's parameters are the URL's query.
    assert request.url.partition("?")[0] == "wss://voice.example.com/ws/token"
    carried = {} if caller.name in WITHOUT_PARAMETERS else parameters
    assert {**request.parameters, **carried} == request.parameters
    assert request.findings == []


def test_an_answer_names_where_the_stream_is_reported_on_if_it_is_told(caller: Any) -> None:
    call, stream_url = a_call(caller), "wss://voice.example.com/ws/token"
    status_url = f"https://voice.example.com/{caller.name}/status"
    read = [
        caller.read_answer(answer.body.encode(), answer.media_type)
        for answer in (caller.answer(call, stream_url, status_url), caller.answer(call, stream_url))
    ]
    reported = caller.name not in WITHOUT_STREAM_REPORTS
    assert read[0].status_callback == (Callback(status_url, "POST") if reported else None)
    assert read[0].findings == []
    assert dataclasses.replace(read[0], status_callback=None) == read[1]


@pytest.mark.parametrize("status", get_args(StreamStatus))
def test_a_report_on_a_stream_is_none_on_the_call(caller: Any, status: StreamStatus) -> None:
    if caller.name in WITHOUT_STREAM_REPORTS:
        pytest.skip(f"{caller.title} does not report on streams")
    at, error = Callback(f"https://voice.example.com/{caller.name}/status"), "refused" if status == "failed" else ""
    update = caller.read_webhook(caller.stream_webhook(a_call(caller), at, status, error=error, now=NOW))
    assert isinstance(update, CallUpdate)
    assert (update.ended, update.stage, update.answered_by, update.greeting_ended) == (False, None, None, False)
    assert update.failed is (status == "failed")
    assert "stream" in update.event.lower()


def test_a_busy_answer_starts_no_stream(caller: Any) -> None:
    answer = caller.busy()
    with pytest.raises(RemoteProtocolError):
        caller.read_answer(answer.body.encode(), answer.media_type)


@relaxed
@given(body=st.binary() | st.text().map(str.encode), media_type=st.sampled_from(["text/xml", "application/json", ""]))
def test_nothing_but_a_protocol_error_comes_of_a_garbled_answer(caller: Any, body: bytes, media_type: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        caller.read_answer(body, media_type)
    assert len(caught.value.message) <= 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_a_webhook_announces_its_call(caller: Any, method: str, direction: Any) -> None:
    call = dataclasses.replace(a_call(caller), direction=direction)
    request = caller.webhook(call, "https://voice.example.com/", method=method)
    assert caller.recognises(request)
    assert all(header == header.lower() for header in request.headers)
    read = caller.read_webhook(request)
    assert read == dataclasses.replace(call, stream_id="")


def test_another_request_is_no_webhook(provider: Any) -> None:
    request = WebhookRequest("POST", "https://voice.example.com/", {}, b"a=b")
    assert not provider.recognises(request)
    with pytest.raises(RemoteProtocolError):
        provider.read_webhook(request)


def test_two_calls_have_two_ids(provider: Any) -> None:
    other = provider.new_call(from_number="", to_number="", parameters={}, seed=bytes(32))
    assert a_call(provider).call_id != other.call_id


# What webhooks report

FORM_TYPE = "application/x-www-form-urlencoded"
ALL_WEBHOOKS = [
    pytest.param(name, path, id=f"{name}-{path.stem}")
    for name in sorted(PROVIDERS)
    for path in sorted((GOLDEN / name / "webhooks").glob("*.json"))
]


def as_multipart(fields: dict[str, str]) -> tuple[str, bytes]:
    """Return a form's content type and body, as curl writes them."""
    parts = [f'--X1\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{fields[name]}\r\n' for name in fields]
    return "multipart/form-data; boundary=X1", ("".join(parts) + "--X1--\r\n").encode()


def golden_requests(content: dict[str, Any]) -> list[WebhookRequest]:
    """Return the ways in which a golden webhook may come: a form comes as a query too."""
    url = "https://voice.example.com/voice"
    asked = WebhookRequest("GET", f"{url}?{urlencode(content.get('query') or content.get('fields', {}))}")
    if "query" in content:
        return [asked]
    if "json" in content:
        kind, body = "application/json", json.dumps(content["json"]).encode()
        return [WebhookRequest("POST", url, {"content-type": kind}, body)]
    if "multipart" in content:
        kind, body = as_multipart(content["multipart"])
        return [WebhookRequest("POST", url, {"content-type": kind}, body)]
    return [WebhookRequest("POST", url, {"content-type": FORM_TYPE}, urlencode(content["fields"]).encode()), asked]


@pytest.mark.parametrize(("provider_name", "path"), ALL_WEBHOOKS)
def test_a_callback_is_never_a_call_and_a_request_for_a_document_always(provider_name: str, path: Path) -> None:
    content = json.loads(path.read_text())
    assert content["source"].startswith("https://"), f"{path} does not say where it is from"
    provider = load_provider(provider_name)
    for request in golden_requests(content):
        assert provider.recognises(request)
        others = [each for each in PROVIDERS if each != provider_name and load_provider(each).recognises(request)]
        assert others == []
        read = provider.read_webhook(request)
        if "update" in content:
            assert read == CallUpdate(**content["update"])
        else:
            assert isinstance(read, Call)
            assert {field: getattr(read, field) for field in content["call"]} == content["call"]


odd_texts = st.text(max_size=30) | st.sampled_from(["", "x" * 70_000, "\udc80", "é=&%", "1" * 400, "=" * 99, ","])


@cache
def golden_webhooks(name: str) -> list[str]:
    """Return the texts of a provider's golden webhooks."""
    return [path.read_text() for path in sorted((GOLDEN / name / "webhooks").glob("*.json"))]


@st.composite
def odd_webhooks(draw: st.DrawFn, name: str) -> WebhookRequest:
    """Draw a golden webhook of a provider's with fields, headers and more replaced by anything."""
    content = json.loads(draw(st.sampled_from(golden_webhooks(name))))
    if "json" in content:
        _, _, text = draw(st.sampled_from(with_anything_anywhere(json.dumps(content["json"]))))
        request = WebhookRequest("POST", "https://h/", {"content-type": "application/json"}, text.encode())
    else:
        fields = content.get("fields") or content.get("query") or content["multipart"]
        changed = draw(st.dictionaries(st.sampled_from(sorted(fields)) | odd_texts, odd_texts, max_size=3))
        body = urlencode({**fields, **changed}, errors="replace").encode()
        request = WebhookRequest("POST", "https://h/", {"content-type": FORM_TYPE}, body)
    provider = with_secrets(name)
    signed = provider.sign(request, now=NOW)
    headers = draw(st.dictionaries(st.sampled_from(sorted(signed.headers)), odd_texts, max_size=3))
    types = ["application/json", "multipart/form-data; boundary=", "multipart/form-data; boundary=h", "text/plain"]
    return dataclasses.replace(
        signed,
        method=draw(st.sampled_from(["POST", "POST", "GET"])),
        url=draw(
            st.sampled_from([signed.url, signed.url, "http://[", "", "https://h:x/?a=b&&=%zz#", "//", "https://é/"])
        ),
        headers={
            **signed.headers,
            **draw(st.just({}) | st.sampled_from([{"content-type": t} for t in types])),
            **headers,
        },
        body=draw(st.just(signed.body) | st.binary(max_size=50)),
    )


@relaxed
@given(data=st.data())
def test_nothing_but_a_refusal_comes_of_an_odd_webhook(caller: Any, data: st.DataObject) -> None:
    request = data.draw(odd_webhooks(caller.name))
    assert isinstance(caller.recognises(request), bool)
    assert isinstance(caller.has_credentials(request), bool)
    key, mark = caller.replay_key(request)
    assert isinstance(key, str)
    assert mark is None or isinstance(mark, str)
    for check in (caller.verify, caller.verify_upgrade):
        with suppress(SignatureError):
            check(request, now=NOW)
    with suppress(RemoteProtocolError):
        read = caller.read_webhook(request)
        texts = dataclasses.asdict(read) if read is not None else {}
        assert all(text.isprintable() and len(text) <= 300 for text in texts.values() if isinstance(text, str))


def test_there_are_golden_webhooks_of_every_kind(caller: Any) -> None:
    name = caller.name
    golden = [json.loads(path.read_text()) for path in (GOLDEN / name / "webhooks").glob("*.json")]
    updates = [CallUpdate(**each["update"]) for each in golden if "update" in each]
    assert {(update.ended, update.failed) for update in updates} >= {(False, False), (True, False), (False, True)}
    assert any("call" in each for each in golden)


def test_what_is_reported_of_a_call_can_be_logged(provider: Any) -> None:
    """A stranger may write the reports of a provider that is not verified."""
    golden = [json.loads(path.read_text()) for path in sorted((GOLDEN / provider.name / "webhooks").glob("*.json"))]
    kept = {"callsid", "calluuid", "requestuuid", "accountsid", "callstatus", "status", "event"}
    nasty = "\x1b[2J\n\ud800 x" + "y" * 5_000
    for content in golden:
        if "fields" not in content or "update" not in content:
            continue
        fields = {name: value if name.lower() in kept else nasty for name, value in content["fields"].items()}
        body = urlencode(fields, errors="replace").encode()
        request = WebhookRequest("POST", "https://h/", {"content-type": FORM_TYPE}, body)
        update = provider.read_webhook(request)
        assert isinstance(update, CallUpdate)
        assert (update.call_id + update.event + update.detail).isprintable()
        assert len(update.event) <= 64
        assert len(update.detail) <= 300
        assert update.call_id == content["update"]["call_id"]


# Signatures


def signed_webhook(provider: Any) -> tuple[WebhookRequest, WebhookRequest]:
    if not provider.can_verify():
        pytest.skip(f"{provider.title} signs nothing")
    plain = provider.webhook(a_call(provider), "https://voice.example.com/voice", method=provider.webhook_method)
    return plain, provider.sign(plain, now=NOW)


def other_character(text: str, at: int) -> str:
    return text[:at] + ("b" if text[at] != "b" else "c") + text[at + 1 :]


def is_decisive(provider: Any, signed: WebhookRequest, name: str) -> bool:
    """Return whether the header `name` decides; one of an older version that is sent along does not."""
    try:
        provider.verify(dataclasses.replace(signed, headers={**signed.headers, name: "x"}), now=NOW)
    except SignatureError:
        return True
    return False


def test_a_signed_webhook_is_accepted(provider: Any) -> None:
    plain, signed = signed_webhook(provider)
    provider.verify(signed, now=NOW)
    with pytest.raises(SignatureError):
        provider.verify(plain, now=NOW)
    with pytest.raises(SignatureError):
        load_provider(provider.name).verify(signed, now=NOW)
    if provider.covers_body:
        assert provider.replay_key(signed)[0]
    assert provider.replay_key(signed) == provider.replay_key(provider.sign(plain, now=NOW))


@relaxed
@given(data=st.data())
def test_a_changed_body_or_signature_is_refused(provider: Any, data: st.DataObject) -> None:
    plain, signed = signed_webhook(provider)
    added = [name for name in sorted(set(signed.headers) - set(plain.headers)) if is_decisive(provider, signed, name)]
    assert added
    part = data.draw(st.sampled_from([*(["body"] if provider.covers_body else []), *added]))
    if part == "body":
        body = signed.body.decode()
        # Letters and digits that are no part of an escape: others can be changed without changing any field.
        places = [at for at, c in enumerate(body) if c.isalnum() and not re.search("%.?$", body[max(0, at - 2) : at])]
        forged = dataclasses.replace(signed, body=other_character(body, data.draw(st.sampled_from(places))).encode())
    else:
        value = signed.headers[part]
        # The last character of base64 may hold bits that stand for nothing; the scheme of a password, before it, is
        # the same in capitals and small letters.
        first = value.find(" ") + 1
        at = data.draw(st.integers(first, max(first, len(value) - 4)))
        forged = dataclasses.replace(signed, headers={**signed.headers, part: other_character(value, at)})
    with pytest.raises(SignatureError):
        provider.verify(forged, now=NOW)


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_replay_is_known_however_its_signature_is_written(provider: Any, method: str) -> None:
    if not provider.can_verify():
        pytest.skip(f"{provider.title} signs nothing")
    plain = provider.webhook(a_call(provider), "https://voice.example.com/voice", method=method)
    signed = provider.sign(plain, now=NOW)
    key = provider.replay_key(signed)[0]
    alphabet = string.ascii_letters + string.digits + "+/-_=, "
    for name in set(signed.headers) - set(plain.headers):
        value = signed.headers[name]
        texts = [value[:at] + c + value[at + 1 :] for at in range(max(0, len(value) - 4), len(value)) for c in alphabet]
        texts += [f"{value},", f"x,{value}", f" {value} , {value}", f"{value}=", value.rstrip("="), f'"{value}"', ""]
        for text in texts:
            again = dataclasses.replace(signed, headers={**signed.headers, name: text})
            with suppress(SignatureError):
                provider.verify(again, now=NOW)
                assert provider.replay_key(again)[0] == key, (name, text)


def test_whoever_signs_says_where_the_secret_is(provider: Any) -> None:
    assert bool(provider.secret_place) == provider.signs


def test_an_upgrade_is_signed_where_the_provider_signs_it(provider: Any) -> None:
    url = "wss://voice.example.com/ws/token"
    headers = provider.upgrade_headers(url, now=NOW)
    request = WebhookRequest("GET", url, {name.lower(): value for name, value in headers.items()})
    unsigned = load_provider(provider.name).upgrade_headers(url, now=NOW)
    if headers == unsigned or provider.has_credentials(request):
        pytest.skip(f"{provider.title} does not sign the upgrade")
    assert provider.verify_upgrade(request, now=NOW)
    elsewhere = dataclasses.replace(request, url="wss://voice.example.com/ws/other")
    with pytest.raises(SignatureError):
        provider.verify_upgrade(elsewhere, now=NOW)


def test_an_unknown_provider_is_misuse() -> None:
    with pytest.raises(UsageError, match="no provider is called 'nobody'") as caught:
        load_provider("nobody")
    assert caught.value.hint is not None
    assert "twilio" in caught.value.hint
