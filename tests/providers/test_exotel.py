"""
Exotel, held against its documentation and pipecat's serializer.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import (
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
    OutputAudioRawFrame,
)
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.exotel import ExotelFrameSerializer
from pipecat.utils.asyncio.task_manager import TaskManager

from tests.providers.companies import Exotel, ExotelStream
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.config import RunConfig
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from wsvoice.providers.base import CallUpdate, Side, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.exotel.company import FORMATS
from wsvoice.runner.auth import served_providers

NOW = 0.0
CALL = Call(
    provider="exotel",
    call_id="c5797dcbaaeed7678c4062a4a3ed2f8a",
    account_id="exampleaccount",
    from_number="+919876543210",
    to_number="+918047491899",
)
STARTED = StreamStarted(
    stream_id="MZ00000000000000000000000000000001",
    call_id=CALL.call_id,
    account_id=CALL.account_id,
    from_number=CALL.from_number,
    to_number=CALL.to_number,
    format=FORMATS[8000],
    parameters={"customer": "Jörg"},
    sequence=1,
)


@pytest.fixture
def exotel() -> Exotel:
    return Exotel({})


def get(url: str, **headers: str) -> WebhookRequest:
    return WebhookRequest("GET", url, headers)


# The request for the stream's URL


def test_the_url_is_asked_for_by_get(exotel: Exotel) -> None:
    assert exotel.webhook_method == "GET"
    request = exotel.webhook(CALL, "https://voice.example.com/exotel?bot=7#x", method="GET")
    assert (request.method, request.body) == ("GET", b"")
    assert urlsplit(request.url).fragment == ""
    fields = dict(parse_qsl(urlsplit(request.url).query, keep_blank_values=True))
    assert fields["bot"] == "7"
    assert (fields["CallSid"], fields["CallFrom"], fields["CallTo"]) == (CALL.call_id, CALL.from_number, CALL.to_number)
    assert exotel.read_webhook(request) == CALL


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("CallSid=c1&From=%2B1&To=%2B2", ("+1", "+2", "inbound")),
        ("CallSid=c1&CallFrom=%2B1&CallTo=%2B2&From=%2B3&To=%2B4", ("+1", "+2", "inbound")),
        ("CallSid=c1&Direction=outbound-dial", ("", "", "outbound")),
        ("CallSid=c1&Direction=outgoing", ("", "", "outbound")),
        ("CallSid=c1&Direction=incoming&Created=Thu&digits=%225%22", ("", "", "inbound")),
    ],
)
def test_what_may_be_missing(exotel: Exotel, query: str, expected: tuple[str, str, str]) -> None:
    call = exotel.read_webhook(get(f"https://h/?{query}"))
    assert call is not None
    assert (call.from_number, call.to_number, call.direction) == expected


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("", "no-call"),
        ("CallSid=", "no-call"),
        ("CallSid=c%0AERROR", "bad-field"),
        ("CallSid=c1&CallFrom=" + "x" * 300, "bad-field"),
        ("CallSid=c1&CallTo=%1B[2J", "bad-field"),
    ],
)
def test_other_requests_ask_for_nothing(exotel: Exotel, query: str, kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        exotel.read_webhook(get(f"https://h/?{query}"))
    assert caught.value.kind == kind


def multipart(body: bytes, boundary: str = "X1") -> WebhookRequest:
    return WebhookRequest("POST", "https://h/", {"content-type": f"multipart/form-data; boundary={boundary}"}, body)


PART = b'--X1\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (multipart(PART % (b"a", b"1") + PART % (b"b", b"x\r\ny") + b"--X1--\r\n"), [("a", "1"), ("b", "x\r\ny")]),
        (multipart(b"preamble\r\n" + PART % (b"a", b"") + b"--X1--", '"X1"'), [("a", "")]),
        (multipart(PART % ("ä".encode(), "é".encode()) + b"--X1--", "X1 ; charset=utf-8"), [("ä", "é")]),
        (multipart(PART % (b'f"; filename="f.wav', b"RIFF") + PART % (b"a", b"1") + b"--X1--"), [("a", "1")]),
        (multipart(b"--X1\r\nContent-Type: text/plain\r\n\r\nnameless\r\n--X1--"), []),
        (multipart(b"--X1\r\nname=a"), []),
        (multipart(PART % (b"a", b"1"), ""), []),
        (multipart(PART % (b"a", b"1"), "other"), []),
        (multipart(b""), []),
    ],
)
def test_multipart_forms(request_: WebhookRequest, fields: list[tuple[str, str]]) -> None:
    assert request_.form == fields


@pytest.mark.parametrize(
    "piece", [b"--X1\r\n", PART % (b"a", b"1"), b"content-disposition: name=", b"\r\n\r\n", b'name="']
)
def test_a_hostile_multipart_form_costs_little(exotel: Exotel, piece: bytes) -> None:
    request = multipart((b"--X1\r\n" + piece * 70_000)[: 64 * 1024])
    started = time.process_time()
    assert len(request.form) <= 256
    assert not exotel.recognises(request)
    assert time.process_time() - started < 1


def test_a_status_callback_is_only_acknowledged(exotel: Exotel) -> None:
    request = get(f"https://h/?CallSid={CALL.call_id}&EventType=terminal&Status=completed")
    assert exotel.read_webhook(request) == CallUpdate(
        CALL.call_id, "completed", "EventType=terminal", ended=True, stage="completed"
    )
    # Anything but 200 makes Exotel repeat it.
    assert exotel.acknowledge().status == 200


@pytest.mark.parametrize(
    "query",
    [
        "CallSid=CA00000000000000000000000000000001&AccountSid=AC1&From=%2B1",
        "CallSid=00000000-0000-0000-0000-0000000000c1&AccountSid=00000000-0000-0000-0000-000000000001",
        "CallSid=v3:abc&CallSidLegacy=1f4a0c3e-0000-0000-0000-000000000000&From=%2B1",
        "CallUUID=c5797dcbaaeed7678c4062a4a3ed2f8a&From=1",
        "CallSid=c5797dcbaaeed7678c4062a4a3ed2f8a&From=1",
    ],
)
def test_other_providers_webhooks_are_not_recognised(exotel: Exotel, query: str) -> None:
    assert not exotel.recognises(get(f"https://h/?{query}"))


def test_invented_ids_have_exotels_shape(exotel: Exotel) -> None:
    call = exotel.new_call(from_number="+1", to_number="+2", parameters={"a": "b"}, seed=bytes(range(32)))
    assert call.call_id == "000102030405060708090a0b0c0d0e0f"
    assert len(call.stream_id) == 34
    assert (call.from_number, call.to_number, call.parameters) == ("+1", "+2", {"a": "b"})


# The answer


def answered(exotel: Exotel, parameters: dict[str, str], url: str = "wss://h/ws/exotel/t") -> str:
    answer = exotel.answer(dataclasses.replace(CALL, parameters=parameters), url)
    assert (answer.status, answer.media_type) == (200, "application/json")
    content = json.loads(answer.body)
    assert list(content) == ["url"]
    return str(content["url"])


def test_the_answer_names_the_stream(exotel: Exotel) -> None:
    assert answered(exotel, {}) == "wss://h/ws/exotel/t"
    assert answered(exotel, {"a b": "c&d", "e": ""}) == "wss://h/ws/exotel/t?a%20b=c%26d&e="


@pytest.mark.parametrize(
    ("rate", "query"), [("8000", ""), ("16000", "?sample-rate=16000"), ("24000", "?sample-rate=24000")]
)
def test_the_sample_rate_is_asked_for_in_the_url(rate: str, query: str) -> None:
    exotel = Exotel({"EXOTEL_SAMPLE_RATE": rate})
    url = answered(exotel, {})
    assert url == f"wss://h/ws/exotel/t{query}"
    request = exotel.read_answer(json.dumps({"url": url}).encode(), "application/json")
    assert request.format == FORMATS[int(rate)]
    assert request.parameters == {}
    assert request.findings == []


@pytest.mark.parametrize("rate", ["44100", "8k", "0", "-8000"])
def test_another_sample_rate_is_a_mistake_in_the_settings(rate: str) -> None:
    with pytest.raises(ConfigError, match="EXOTEL_SAMPLE_RATE") as caught:
        Exotel({"EXOTEL_SAMPLE_RATE": rate})
    assert caught.value.hint == "set it to one of 8000, 16000, 24000, or not at all"


@pytest.mark.parametrize(
    ("parameters", "url", "kind"),
    [
        ({"a": "1", "b": "2", "c": "3", "d": "4"}, "wss://h/ws", "many-parameters"),
        ({"a": "x" * 255}, "wss://h/ws", "long-parameter"),
        ({"a": "é" * 50}, "wss://h/ws", "long-parameter"),
        ({"": "x"}, "wss://h/ws", "bad-parameter"),
        ({"sample-rate": "16000"}, "wss://h/ws", "bad-parameter"),
        ({}, "https://h/ws", "bad-url"),
        ({}, "wss:///ws", "bad-url"),
    ],
)
def test_answers_that_exotel_could_not_use(exotel: Exotel, parameters: dict[str, str], url: str, kind: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        answered(exotel, parameters, url)
    assert caught.value.kind == kind


def test_three_parameters_of_256_characters_are_allowed() -> None:
    exotel = Exotel({"EXOTEL_SAMPLE_RATE": "16000"})
    parameters = {"a": "x" * 100, "b": "y" * 100, "c": "z" * 48}
    url = answered(exotel, parameters, "wss://h/ws/exotel/" + "t" * 400)
    request = exotel.read_answer(json.dumps({"url": url}).encode(), "application/json")
    assert request.parameters == parameters
    assert request.findings == []


def test_busy_is_a_failure_that_names_no_stream(exotel: Exotel) -> None:
    answer = exotel.busy()
    assert answer.status == 503
    with pytest.raises(RemoteProtocolError) as caught:
        exotel.read_answer(answer.body.encode(), answer.media_type)
    assert caught.value.kind == "bad-answer"


def read(exotel: Exotel, url: Any) -> Any:
    return exotel.read_answer(json.dumps({"url": url}).encode(), "application/json; charset=utf-8")


def test_the_query_is_dialled_and_comes_back_as_parameters(exotel: Exotel) -> None:
    request = read(exotel, "wss://h:8443/ws?sample_rate=24000&a=b%20c&d=&e=f")
    assert request.url == "wss://h:8443/ws?sample_rate=24000&a=b%20c&d=&e=f"
    assert request.parameters == {"a": "b c", "d": "", "e": "f"}
    assert request.format == FORMATS[24000]
    assert request.findings == []


@pytest.mark.parametrize(
    ("url", "level", "words"),
    [
        ("ws://localhost:7860/ws", "warn", "ws://"),
        ("wss://h/ws?a=1&b=2&c=3&d=4", "fail", "4 custom parameters"),
        ("wss://h/ws?a=" + "x" * 255, "fail", "257 characters"),
        ("wss://h/ws?sample-rate=11025", "fail", "'11025'"),
    ],
)
def test_what_exotel_would_dislike_is_found(exotel: Exotel, url: str, level: str, words: str) -> None:
    (finding,) = read(exotel, url).findings
    assert (finding.id, finding.level) == ("W3", level)
    assert words in finding.message


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "not-json", "not JSON"),
        (b"<Response/>", "bad-answer", "document with tags"),
        (b"[]", "not-object", "an array"),
        (b"{}", "bad-answer", "url is null"),
        (b'{"url":7}', "bad-answer", "a number"),
        (b'{"url":"https://h/other"}', "bad-url", "another web address"),
        (b'{"url":"ftp://h/"}', "bad-url", "'ftp'"),
        (b'{"url":"wss:///ws"}', "bad-url", "not a URL"),
        (b'{"url":"wss://[::1/ws"}', "bad-url", "not a URL"),
        (b'{"url":"wss://h:x/ws"}', "bad-url", "not a URL"),
        (b'{"url":"wss://h/a b"}', "bad-url", "not a URL"),
        (b'"' + b"x" * 70_000 + b'"', "too-large", "65536"),
    ],
)
def test_answers_without_a_stream(exotel: Exotel, body: bytes, kind: str, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words) as caught:
        exotel.read_answer(body, "application/json")
    assert caught.value.kind == kind
    assert len(caught.value.message) <= 200


# Credentials instead of signatures

STREAM = {"EXOTEL_STREAM_USER": "key", "EXOTEL_STREAM_PASSWORD": "tök:en"}


def basic(text: str, scheme: str = "Basic") -> str:
    return f"{scheme} {base64.b64encode(text.encode()).decode()}"


def test_nothing_is_signed_or_verified(exotel: Exotel) -> None:
    request = exotel.webhook(CALL, "https://voice.example.com/", method="GET")
    assert exotel.sign(request, now=NOW) == request
    assert not Exotel(STREAM).can_verify()
    exotel.verify(request, now=NOW)


@pytest.mark.parametrize(
    ("credentials", "authorization", "accepted"),
    [
        (STREAM, basic("key:tök:en"), True),
        (STREAM, basic("key:tök:en", "basic"), True),
        (STREAM, basic("key:tök:em"), False),
        (STREAM, basic("key"), False),
        (STREAM, basic("key:tök:en", "Bearer"), False),
        (STREAM, "Basic", False),
        (STREAM, "Basic ***", False),
        (STREAM, "Basic é", False),
        (STREAM, "", False),
        ({}, basic(":"), False),
        ({"EXOTEL_STREAM_USER": "key"}, basic("key:"), False),
        ({"EXOTEL_STREAM_PASSWORD": "x"}, basic(":x"), False),
    ],
)
def test_basic_credentials_of_an_upgrade(credentials: dict[str, str], authorization: str, accepted: bool) -> None:
    request = get("wss://voice.example.com/ws/exotel", authorization=authorization)
    assert Exotel(credentials).has_credentials(request) is accepted


def test_an_upgrade_without_credentials(exotel: Exotel) -> None:
    assert not Exotel(STREAM).has_credentials(get("wss://voice.example.com/ws/exotel"))


def test_credentials_in_an_answered_url_become_a_header(exotel: Exotel) -> None:
    request = read(exotel, "wss://key:t%C3%B6k%3Aen@h:8443/ws?a=b")
    assert request.url == "wss://h:8443/ws?a=b"
    assert request.headers == {"Authorization": basic("key:tök:en")}
    lowered = {name.lower(): value for name, value in request.headers.items()}
    assert Exotel(STREAM).has_credentials(WebhookRequest("GET", request.url, lowered))
    assert read(exotel, "wss://h/ws").headers == {}


def test_verification_cannot_be_enforced_where_nothing_is_signed() -> None:
    with pytest.raises(ConfigError, match="Exotel signs nothing") as caught:
        served_providers(RunConfig(transport="exotel", verify="enforce"))
    assert caught.value.hint is not None
    assert "EXOTEL" not in caught.value.hint
    assert list(served_providers(RunConfig(transport="exotel", proxy="my.domain"))) == ["exotel"]


def test_a_test_call_needs_no_credentials() -> None:
    carrier, bot = Exotel({**STREAM, "EXOTEL_SAMPLE_RATE": "16000"}).test_credentials(bytes(32))
    assert carrier == {}
    assert bot.pop("EXOTEL_SAMPLE_RATE") == "16000"
    # What a bot asks of the API is answered by the simulated one alone.
    assert set(bot) == {"EXOTEL_API_KEY", "EXOTEL_API_TOKEN", "EXOTEL_ACCOUNT_SID"}


def test_closing_the_stream_is_the_hang_up(exotel: Exotel) -> None:
    assert exotel.hang_up(CALL) is None


# Telling a stream's provider

SNAKE = {"stream_sid": "MZ1", "call_sid": "c1", "account_sid": "a1"}
CAMEL = {"streamSid": "MZ1", "callSid": "c1", "accountSid": "a1"}


@pytest.mark.parametrize(
    ("start", "claimed"),
    [
        (SNAKE, True),
        ({**CAMEL, "from": "+1", "to": "+2"}, True),
        (CAMEL, False),
        ({**CAMEL, "tracks": ["inbound"], "from": "+1", "to": "+2"}, False),
        ({"stream_sid": "MZ1", "call_sid": "c1"}, False),
        ({"stream_id": "s", "call_control_id": "v3:x"}, False),
        ([], False),
        (None, False),
    ],
)
def test_exotels_start_is_claimed(exotel: Exotel, start: Any, claimed: bool) -> None:
    assert exotel.claims({"event": "start", "start": start}) is claimed
    assert not exotel.claims({"event": "media", "start": start})


# The stream


def ends(started: StreamStarted = STARTED, **quirks: str) -> tuple[ExotelStream, ExotelStream]:
    exotel = Exotel({})
    carrier = exotel.stream(Side.CARRIER, {name.replace("_", "-"): value for name, value in quirks.items()})
    bot = exotel.stream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


def test_the_carrier_counts_every_message_but_connected() -> None:
    carrier, bot = ExotelStream(Side.CARRIER), ExotelStream(Side.BOT)
    frame = bytes(1600)
    sent: list[Event] = [
        Connected(),
        dataclasses.replace(STARTED, sequence=None),
        Audio(frame),
        Digit("1"),
        Audio(frame),
        Mark("m"),
        StreamStopped("callended"),
    ]
    messages = [json.loads(carrier.send(event)) for event in sent]
    assert [message.get("sequence_number") for message in messages] == [None, "1", "2", "3", "4", "5", "6"]
    media = [message["media"] for message in messages if message["event"] == "media"]
    assert [(m["chunk"], m["timestamp"]) for m in media] == [("1", "100"), ("2", "200")]
    received = [bot.receive(json.dumps(message)) for message in messages]
    assert received[2] == Audio(frame, "inbound", 1, 100, 2)
    assert received[-1] == StreamStopped("callended", 6)


@pytest.mark.parametrize("rate", sorted(FORMATS))
@pytest.mark.parametrize("counters", ["string", "number"])
@pytest.mark.parametrize("case", ["snake", "camel"])
@pytest.mark.parametrize("label", ["base64", "raw", "audio/x-raw", "audio/x-mulaw", ""])
def test_every_spelling_of_the_carriers_is_read(rate: int, counters: str, case: str, label: str) -> None:
    started = dataclasses.replace(STARTED, format=FORMATS[rate], parameters={"my_key": "v"})
    carrier, bot = ends(started, counters=counters, case=case, encoding_label=label)
    assert bot.receive(carrier.send(started)) == started
    assert bot.format == bot.outbound_format == FORMATS[rate]
    for event in (Audio(bytes(640), chunk=3, timestamp_ms=40, sequence=7), Digit("#", 8), Mark("m", 9)):
        assert bot.receive(carrier.send(event)) == event
    assert bot.receive(carrier.send(StreamStopped("stopped", 10))) == StreamStopped("stopped", 10)
    assert carrier.receive(bot.send(Audio(bytes(3200)))) == Audio(bytes(3200))
    assert carrier.findings() == []


def test_quirks_change_the_spelling() -> None:
    plain = json.loads(ExotelStream(Side.CARRIER).send(STARTED))
    assert plain["sequence_number"] == "1"
    assert plain["start"]["media_format"] == {"encoding": "audio/x-raw", "sample_rate": "8000", "bit_rate": "16"}
    started = dataclasses.replace(STARTED, parameters={"my_key": "v"})
    carrier, _ = ends(started, counters="number", case="camel", encoding_label="raw")
    odd = json.loads(carrier.send(started))
    assert odd["sequenceNumber"] == 1
    assert odd["start"]["mediaFormat"] == {"encoding": "raw", "sampleRate": 8000, "bitRate": 16}
    assert odd["start"]["customParameters"] == {"my_key": "v"}
    assert {"streamSid", "callSid", "accountSid"} <= set(odd["start"])
    assert Exotel({}).claims(odd)


def test_every_quirk_has_its_default_among_its_choices(exotel: Exotel) -> None:
    assert set(exotel.quirks) == {
        "callback-format",
        "case",
        "counters",
        "echo-cleared-marks",
        "encoding-label",
        "frame-ms",
    }
    assert all(not quirk.choices or quirk.default in quirk.choices for quirk in exotel.quirks.values())


@pytest.mark.parametrize(
    ("side", "event", "kind"),
    [
        (Side.BOT, Digit("1"), "no-message"),
        (Side.BOT, Mark(""), "bad-mark"),
        (Side.CARRIER, Clear(), "no-message"),
        (Side.CARRIER, Cleared(), "no-message"),
        (Side.CARRIER, Mark(""), "bad-mark"),
        (Side.CARRIER, Digit("12"), "bad-dtmf"),
        (Side.CARRIER, Audio(b"", track="outbound"), "bad-track"),
        (Side.CARRIER, dataclasses.replace(STARTED, call_id=""), "bad-start"),
        (Side.CARRIER, dataclasses.replace(STARTED, format=PCMU_8K), "bad-format"),
        (Side.CARRIER, dataclasses.replace(STARTED, format=AudioFormat(Encoding.L16, 48000)), "bad-format"),
    ],
)
def test_what_an_end_cannot_say(side: Side, event: Any, kind: str) -> None:
    carrier, bot = ends()
    with pytest.raises(LocalProtocolError) as caught:
        (bot if side is Side.BOT else carrier).send(event)
    assert caught.value.kind == kind


def start_with(**fields: Any) -> str:
    return json.dumps({"event": "start", "start": {"stream_sid": "MZ1", "call_sid": "c1", **fields}})


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ('{"event":"start"}', "bad-start"),
        ('{"event":"start","start":{"stream_sid":"MZ1"}}', "bad-start"),
        ('{"event":"start","start":{"call_sid":"c1"}}', "bad-start"),
        (start_with(media_format="raw"), "bad-start"),
        (start_with(media_format={"sample_rate": "44100"}), "bad-start"),
        (start_with(media_format={"sample_rate": 8001}), "bad-start"),
        (start_with(media_format={"sample_rate": 8000.0}), "bad-start"),
        (start_with(media_format={"sample_rate": []}), "bad-start"),
        ('{"event":"media","media":{"payload":"QUJD"}}', "bad-media"),
        ('{"event":"media","media":{"payload":"****"}}', "bad-base64"),
        ('{"event":"media","media":[]}', "bad-media"),
        ('{"event":"dtmf","dtmf":{"digit":"E"}}', "bad-dtmf"),
        ('{"event":"mark","mark":{}}', "bad-mark"),
    ],
)
def test_broken_messages_have_kinds(message: str, kind: str) -> None:
    _, bot = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        bot.receive(message)
    assert caught.value.kind == kind
    # The stream goes on, in the format that it had.
    assert bot.format == FORMATS[8000]
    assert bot.receive('{"event":"dtmf","dtmf":{"digit":5}}') == Digit("5")


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (start_with(), StreamStarted("MZ1", "c1", format=FORMATS[8000])),
        (start_with(custom_parameters=""), StreamStarted("MZ1", "c1", format=FORMATS[8000])),
        (start_with(custom_parameters=["a"]), StreamStarted("MZ1", "c1", format=FORMATS[8000])),
        (start_with(custom_parameters={"a": {}}), StreamStarted("MZ1", "c1", format=FORMATS[8000])),
        (start_with(media_format={}), StreamStarted("MZ1", "c1", format=FORMATS[8000])),
        (start_with(media_format={"sampleRate": 16000}), StreamStarted("MZ1", "c1", format=FORMATS[16000])),
        (
            start_with(custom_parameters={"n": 7}),
            StreamStarted("MZ1", "c1", format=FORMATS[8000], parameters={"n": "7"}),
        ),
        ('{"event":"stop"}', StreamStopped()),
        ('{"event":"stop","stop":{"reason":7},"sequence_number":3}', StreamStopped("", 3)),
        ('{"event":"closed"}', StreamStopped()),
        ('{"event":"connected","extra":1}', Connected()),
        ('{"event":"clear"}', Unknown("clear")),
    ],
)
def test_what_a_bot_tolerates(message: str, event: Any) -> None:
    _, bot = ends()
    assert bot.receive(message) == event


def bot_media(size: int, **changes: Any) -> str:
    message = {
        "event": "media",
        "stream_sid": STARTED.stream_id,
        "media": {"payload": base64.b64encode(bytes(size)).decode()},
        **changes,
    }
    return json.dumps({key: value for key, value in message.items() if value is not None})


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (bot_media(3200), []),
        (bot_media(100_000 - 160), []),
        (bot_media(320), []),
        (bot_media(0), [("warn", "has an empty payload")]),
        (bot_media(3202), [("warn", "no multiple of 320")]),
        (bot_media(2200), [("warn", "no multiple of 320")]),
        (bot_media(3201), [("fail", "middle of a 16-bit sample")]),
        (bot_media(100_160), [("fail", "more than 100000")]),
        (bot_media(3200, stream_sid=None), [("fail", "no stream_sid")]),
        (bot_media(3200, stream_sid="MZ2"), [("fail", "another stream")]),
        ('{"event":"mark","mark":{"name":"m"}}', [("fail", "no stream_sid")]),
        ('{"event":"playAudio"}', [("warn", "'playAudio'")]),
    ],
)
def test_what_a_bot_does_wrong_is_found_once(message: str, found: list[tuple[str, str]]) -> None:
    carrier, _ = ends()
    carrier.receive(message)
    findings = carrier.findings()
    assert [finding.level for finding in findings] == [level for level, _ in found]
    assert all(words in finding.message for finding, (_, words) in zip(findings, found, strict=True))
    assert {finding.id for finding in findings} <= {"M1"}
    assert carrier.findings() == []


def test_a_wav_header_is_found() -> None:
    carrier, bot = ends()
    carrier.receive(bot.send(Audio(b"RIFF" + bytes(3196))))
    assert [finding.level for finding in carrier.findings()] == ["fail"]


def test_half_a_sample_is_not_played() -> None:
    carrier, bot = ends()
    assert carrier.receive(bot.send(Audio(bytes(3201)))) == Audio(bytes(3200))


@settings(deadline=None)
@given(
    samples=st.binary(max_size=1000).map(lambda half: half * 2), name=st.text(min_size=1), stream_id=st.text(min_size=1)
)
def test_any_text_and_audio_come_through(samples: bytes, name: str, stream_id: str) -> None:
    started = dataclasses.replace(STARTED, stream_id=stream_id)
    carrier, bot = ends(started)
    assert bot.receive(carrier.send(started)) == started
    assert carrier.receive(bot.send(Audio(samples))) == Audio(samples)
    assert carrier.receive(bot.send(Mark(name))) == Mark(name)
    event = Audio(samples, "inbound", 1, 2, 3)
    assert bot.receive(carrier.send(event)) == event
    assert not [finding for finding in carrier.findings() if "stream_sid" in finding.message]


# Agreement with pipecat


def with_pipecat(action: Any, rate: int = 8000) -> Any:
    async def run() -> Any:
        params = ExotelFrameSerializer.InputParams(exotel_sample_rate=rate)
        serializer = ExotelFrameSerializer(STARTED.stream_id, params=params)
        await serializer.setup(
            FrameProcessorSetup(
                clock=SystemClock(),
                task_manager=TaskManager(),
                pipeline_worker=None,  # type: ignore[arg-type]
                audio_in_sample_rate=rate,
                audio_out_sample_rate=rate,
            )
        )
        return await action(serializer)

    return asyncio.run(run())


def serialize(frame: Frame, rate: int = 8000) -> str:
    message = with_pipecat(lambda serializer: serializer.serialize(frame), rate)
    assert isinstance(message, str)
    return message


def deserialize(message: str, rate: int = 8000) -> Frame | None:
    frame: Frame | None = with_pipecat(lambda serializer: serializer.deserialize(message), rate)
    return frame


PCM = b"".join((1000 * (n % 21 - 10)).to_bytes(2, "little", signed=True) for n in range(1600))


@pytest.mark.parametrize("rate", sorted(FORMATS))
def test_our_carrier_understands_pipecat(rate: int) -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=FORMATS[rate]))
    speech = serialize(OutputAudioRawFrame(audio=PCM, sample_rate=rate, num_channels=1), rate)
    assert carrier.receive(speech) == Audio(PCM)
    assert carrier.receive(serialize(InterruptionFrame())) == Clear()
    assert carrier.findings() == []
    assert json.loads(bot.send(Audio(PCM))) == json.loads(speech)
    assert json.loads(bot.send(Clear())) == json.loads(serialize(InterruptionFrame()))


@pytest.mark.parametrize("rate", sorted(FORMATS))
def test_pipecat_understands_our_carriers_audio(rate: int) -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=FORMATS[rate]))
    message = carrier.send(Audio(PCM))
    frame = deserialize(message, rate)
    assert isinstance(frame, InputAudioRawFrame)
    ours = bot.receive(message)
    assert isinstance(ours, Audio)
    assert frame.audio == bot.format.decode(ours.payload)
    assert frame.sample_rate == rate


@pytest.mark.parametrize("digit", "0123456789*#")
def test_pipecat_understands_our_carriers_digits(digit: str) -> None:
    carrier, _ = ends()
    frame = deserialize(carrier.send(Digit(digit)))
    assert isinstance(frame, InputDTMFFrame)
    assert frame.button == KeypadEntry(digit)


@pytest.mark.parametrize("event", [Connected(), STARTED, Mark("m"), StreamStopped()])
def test_pipecat_ignores_what_carries_no_audio(event: Event) -> None:
    carrier, _ = ends()
    assert deserialize(carrier.send(event)) is None


class Handshake:
    """What pipecat's parser needs of a WebSocket: the texts, one after another."""

    def __init__(self, *messages: str) -> None:
        self._messages = messages

    async def iter_text(self) -> AsyncIterator[str]:
        for message in self._messages:
            yield message


def test_pipecat_reads_our_handshake(exotel: Exotel) -> None:
    answer = exotel.answer(dataclasses.replace(CALL, parameters={"customer": "Jörg"}), "wss://h/ws")
    request = exotel.read_answer(answer.body.encode(), answer.media_type)
    carrier = exotel.stream(Side.CARRIER)
    started = dataclasses.replace(STARTED, parameters=request.parameters)
    handshake = Handshake(carrier.send(Connected()), carrier.send(started))
    kind, call_data = asyncio.run(parse_telephony_websocket(handshake))
    assert kind == "exotel"
    assert call_data.stream_id == STARTED.stream_id
    assert call_data.call_id == CALL.call_id
    assert (call_data.from_number, call_data.to_number) == (CALL.from_number, CALL.to_number)
    assert call_data["account_sid"] == CALL.account_id
    assert call_data["custom_parameters"] == {"customer": "Jörg"}
