"""
Bandwidth, held against its documentation, its library for Python and its own serializer for pipecat.

What `pipecat-bandwidth` 0.1.0 and `bandwidth-sdk` 23.3.1 wrote stands here as text.
https://github.com/Bandwidth/pipecat-bandwidth
https://github.com/Bandwidth/python-sdk
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.providers.companies import Bandwidth, load_provider
from tests.runner.conftest import RunningServer, serving
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import Callback, NoStream, Redirect, Side, StreamRequest, WebhookRequest
from wsvoice.providers.events import Audio, Clear, Connected, Digit, Mark, SendDigits, StreamStarted, Unknown

URL = "https://voice.example.com/bandwidth"
STREAM_URL = "wss://voice.example.com/ws/bandwidth/token"
CALL_ID = "c-95ac8d6e-1a31c52e-b38f-4198-93c1-51633ec68f8d"
CALL = Call(
    provider="bandwidth",
    call_id=CALL_ID,
    stream_id="s-95ac90b3-e9cd80fa-fca7-4d12-9109-2990afe4d8c5",
    account_id="55555555",
    from_number="+15551112222",
    to_number="+15553334444",
)
SECRETS = {"BANDWIDTH_WEBHOOK_USERNAME": "anna", "BANDWIDTH_WEBHOOK_PASSWORD": "s3:crét"}


def ends(credentials: dict[str, str] | None = None, **quirks: str) -> tuple[Any, Any, str]:
    """Return both ends of a stream that has started, and its start message."""
    company = Bandwidth(credentials or {})
    carrier, bot = company.stream(Side.CARRIER, quirks), company.stream(Side.BOT)
    start = carrier.send(StreamStarted(CALL.stream_id, CALL.call_id, CALL.account_id, parameters={"a": "b"}))
    bot.receive(start)
    return carrier, bot, start


# Stream messages


def linear(rate: int) -> str:
    return f"audio/pcm;rate={rate};channels=1;bit-depth=16;endian=little;encoding=signed"


@pytest.mark.parametrize(
    ("codec", "wire", "content_type"),
    [
        ("", PCMU_8K, "audio/pcmu"),
        ("PCMU", PCMU_8K, "audio/pcmu"),
        ("PCM@8000", AudioFormat(Encoding.L16, 8000), linear(8000)),
        ("PCM@16000", AudioFormat(Encoding.L16, 16000), linear(16000)),
        ("PCM@24000", AudioFormat(Encoding.L16, 24000), linear(24000)),
    ],
)
def test_a_bots_audio_is_written_as_bandwidths_serializer_writes_it(
    codec: str, wire: AudioFormat, content_type: str
) -> None:
    payload = bytes(range(160)) * 2
    carrier, bot, _ = ends({"BANDWIDTH_OUTBOUND_CODEC": codec})
    assert (bot.format, bot.outbound_format, carrier.outbound_format) == (PCMU_8K, wire, wire)
    media = {"contentType": content_type, "payload": base64.b64encode(payload).decode()}
    written = json.dumps({"eventType": "playAudio", "media": media})
    assert json.loads(bot.send(Audio(payload))) == json.loads(written)
    assert carrier.receive(written) == Audio(payload)
    assert carrier.findings() == []


@pytest.mark.parametrize("told", [linear(24000), "audio/mpeg", "", None, 7, ["audio/pcmu"]])
def test_audio_of_another_format_is_not_guessed(told: object) -> None:
    carrier, _, _ = ends()
    message = {"eventType": "playAudio", "media": {"contentType": told, "payload": "AAAA"}}
    with pytest.raises(RemoteProtocolError, match="this call's is 'audio/pcmu'") as caught:
        carrier.receive(json.dumps(message))
    assert "BANDWIDTH_OUTBOUND_CODEC" in caught.value.message


def test_a_codec_that_bandwidth_has_not_is_misuse() -> None:
    with pytest.raises(ConfigError, match="BANDWIDTH_OUTBOUND_CODEC is 'opus'"):
        Bandwidth({"BANDWIDTH_OUTBOUND_CODEC": "opus"})


def test_a_start_says_where_the_callers_audio_is_from() -> None:
    _, bot, start = ends()
    metadata = {"accountId": CALL.account_id, "callId": CALL.call_id, "streamId": CALL.stream_id}
    track = {"name": "inbound", "mediaFormat": {"encoding": "audio/PCMU", "sampleRate": 8000}}
    assert json.loads(start) == {
        "eventType": "start",
        "metadata": {**metadata, "tracks": [track]},
        "streamParams": {"a": "b"},
    }
    assert (bot.call_id, bot.stream_id, bot.account_id) == (CALL.call_id, CALL.stream_id, CALL.account_id)


def test_a_start_whose_tracks_are_names_is_read_too() -> None:
    _, bot, start = ends(tracks="names")
    assert json.loads(start)["metadata"]["tracks"] == ["inbound"]
    assert bot.format == PCMU_8K


@pytest.mark.parametrize("encoding", ["audio/L16", 7, None])
def test_a_start_of_another_format_is_refused(encoding: object) -> None:
    track = {"name": "inbound", "mediaFormat": {"encoding": encoding, "sampleRate": 16000}}
    metadata = {"accountId": "1", "callId": CALL_ID, "streamId": "s-1", "tracks": [track]}
    with pytest.raises(RemoteProtocolError, match="which Bandwidth does not stream"):
        Bandwidth({}).stream(Side.BOT).receive(json.dumps({"eventType": "start", "metadata": metadata}))


@pytest.mark.parametrize("event", [Mark("m"), SendDigits("1")])
def test_a_bot_has_no_words_for_marks_and_keys(event: Mark | SendDigits) -> None:
    _, bot, _ = ends()
    with pytest.raises(LocalProtocolError, match="no message"):
        bot.send(event)


@pytest.mark.parametrize("event", [Connected(), Digit("1"), Mark("m")])
def test_nor_has_the_carrier(event: Connected | Digit | Mark) -> None:
    carrier, _, _ = ends()
    with pytest.raises(LocalProtocolError, match="no message"):
        carrier.send(event)


def test_a_media_message_of_other_companies_is_unknown() -> None:
    carrier, _, _ = ends()
    assert carrier.receive('{"eventType":"media","media":{"payload":"AAAA"}}') == Unknown("media")
    (found,) = carrier.findings()
    assert found.level == "warn"
    assert carrier.receive('{"eventType":"clear"}') == Clear()
    with pytest.raises(RemoteProtocolError, match="eventType is null"):
        carrier.receive('{"event":"clear"}')


# The webhook


def webhook(credentials: dict[str, str], **changes: Any) -> WebhookRequest:
    company = Bandwidth(credentials)
    signed: WebhookRequest = company.sign(company.webhook(CALL, URL, now=0.0), now=0.0)
    return dataclasses.replace(signed, **changes)


def test_a_webhook_is_bandwidths_initiate_event() -> None:
    request = webhook({})
    assert request.headers == {"content-type": "application/json"}
    # What bandwidth-sdk reads as an InitiateCallback.
    assert json.loads(request.body) == {
        "eventType": "initiate",
        "eventTime": "1970-01-01T00:00:00.000000Z",
        "accountId": "55555555",
        "applicationId": "7fc9698a-b04a-468b-9e8f-91238c0d0086",
        "from": "+15551112222",
        "to": "+15553334444",
        "direction": "inbound",
        "callId": CALL_ID,
        "callUrl": f"https://voice.bandwidth.com/api/v2/accounts/55555555/calls/{CALL_ID}",
        "startTime": "1970-01-01T00:00:00.000000Z",
    }


def test_the_password_comes_as_basic_credentials() -> None:
    request = webhook(SECRETS)
    assert request.headers["authorization"] == "Basic " + base64.b64encode("anna:s3:crét".encode()).decode()
    Bandwidth(SECRETS).verify(request, now=0.0)
    # The user name counts where it is set.
    Bandwidth({"BANDWIDTH_WEBHOOK_PASSWORD": "s3:crét"}).verify(request, now=0.0)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({**SECRETS, "BANDWIDTH_WEBHOOK_PASSWORD": "other"}, "user name or password is wrong"),
        ({**SECRETS, "BANDWIDTH_WEBHOOK_USERNAME": "otto"}, "user name or password is wrong"),
        ({}, "no webhook's password is known"),
    ],
)
def test_another_password_is_refused(known: dict[str, str], words: str) -> None:
    with pytest.raises(SignatureError, match=words):
        Bandwidth(known).verify(webhook(SECRETS), now=0.0)
    with pytest.raises(SignatureError, match="carries no password" if known else words):
        Bandwidth(known).verify(webhook({}), now=0.0)


def test_what_follows_the_password_is_told_apart_by_its_time() -> None:
    company = Bandwidth(SECRETS)
    first, later = (company.webhook(CALL, URL, now=at) for at in (0.0, 1.0))
    assert company.replay_key(first) != company.replay_key(later)
    assert company.replay_key(first) == company.replay_key(company.sign(first, now=9.0))
    got = company.webhook(CALL, URL, method="GET", now=0.0)
    assert "callId=" in company.replay_key(got)[0]


def test_the_stream_is_reported_where_a_document_wants_it() -> None:
    company, at = Bandwidth({}), Callback("https://voice.example.com/events")
    told = [json.loads(company.stream_webhook(CALL, at, status, name="n").body) for status in ("started", "stopped")]
    assert [each["eventType"] for each in told] == ["mediaStreamStarted", "mediaStreamStopped"]
    assert told[1]["cause"] == "closed"
    assert told[0]["mediaStream"] == {"id": CALL.stream_id, "name": "n"}
    failed = company.stream_webhook(CALL, at, "failed", error="no answer")
    update = company.read_webhook(failed)
    assert (update.event, update.failed, update.ended) == ("mediaStreamRejected", True, False)
    assert "errorMessage=no answer" in update.detail


def test_a_redirect_asks_for_a_document() -> None:
    company, at = Bandwidth({}), Callback("https://voice.example.com/next", "GET")
    request = company.next_webhook(CALL, at, "redirect", now=0.0)
    assert dict(request.query)["eventType"] == "redirect"
    assert company.read_webhook(request) == dataclasses.replace(CALL, stream_id="")


# Documents


def test_the_answer_waits_for_the_end_of_its_stream() -> None:
    call = dataclasses.replace(CALL, parameters={"language": "<en>"})
    assert Bandwidth({}).answer(call, STREAM_URL).body == (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Response>'
        f'<StartStream name="wsvoice" mode="bidirectional" tracks="inbound" destination="{STREAM_URL}">'
        '<StreamParam name="from_number" value="+15551112222"/>'
        '<StreamParam name="to_number" value="+15553334444"/>'
        '<StreamParam name="direction" value="inbound"/>'
        '<StreamParam name="language" value="&lt;en&gt;"/>'
        '</StartStream><StopStream name="wsvoice" wait="true"/></Response>'
    )


@pytest.mark.parametrize(
    "parameters",
    [{f"p{number}": "x" for number in range(10)}, {"n" * 257: "x"}, {"n": "x" * 2049}, {"": "x"}],
    ids=["many", "name", "value", "nameless"],
)
def test_parameters_that_bandwidth_does_not_take(parameters: dict[str, str]) -> None:
    company = Bandwidth({})
    with pytest.raises(LocalProtocolError, match="Bandwidth takes"):
        company.answer(dataclasses.replace(CALL, parameters=parameters), STREAM_URL)
    more = {**dict.fromkeys("abc", ""), **parameters}
    inside = "".join(f'<StreamParam name="{name}" value="{value}"/>' for name, value in more.items())
    found = read(stream("", inside)).findings
    assert any("Bandwidth takes" in each.message for each in found)


def stream(attributes: str = "", inside: str = "", then: str = '<StopStream name="s" wait="true"/>') -> str:
    opened = (
        f'<StartStream name="s" mode="bidirectional" destination="{STREAM_URL}" {attributes}>{inside}</StartStream>'
    )
    return opened + then


def read(verbs: str) -> StreamRequest:
    document = f"<Response>{verbs}</Response>".encode()
    request: StreamRequest = Bandwidth({}).read_answer(document, "application/xml", base_url=URL)
    return request


def test_the_document_of_bandwidths_library_is_in_order() -> None:
    body = (
        "<?xml version='1.0' encoding='UTF-8'?>\n"
        f'<Response><StartStream destination="{STREAM_URL}" name="wsvoice" mode="bidirectional" tracks="inbound">'
        '<StreamParam name="from_number" value="+1" /></StartStream>'
        '<StopStream name="wsvoice" wait="True" /></Response>'
    )
    request = Bandwidth({}).read_answer(body.encode(), "application/xml")
    assert (request.url, request.parameters, request.findings, request.then) == (
        STREAM_URL,
        {"from_number": "+1"},
        [],
        [],
    )


def test_verbs_beside_the_stream_keep_the_call() -> None:
    """As pipecat-bandwidth's example has it: https://github.com/Bandwidth/pipecat-bandwidth"""
    request = read(stream(then='<Pause duration="86400"/>'))
    assert (request.findings, request.then) == ([], ["Pause: 86400 s"])
    waiting = read(stream(then='<StopStream name="s" wait="true"/><SpeakSentence>Bye.</SpeakSentence>'))
    assert (waiting.findings, waiting.then) == ([], ["SpeakSentence: Bye."])


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("", "the stream ends as soon as it has begun"),
        ('<StopStream name="s"/>', "the stream ends as soon as it has begun"),
        ('<StopStream name="s" wait="false"/>', "the stream ends as soon as it has begun"),
        ('<StopStream name="t" wait="true"/>', "waits for another stream"),
    ],
)
def test_a_document_that_does_not_wait_fails(then: str, words: str) -> None:
    (found,) = read(stream(then=then)).findings
    assert found.level == "fail"
    assert words in found.message


def test_credentials_of_the_upgrade_and_status_callbacks() -> None:
    attributes = 'destinationUsername="anna" destinationPassword="x" streamEventUrl="/events" streamEventMethod="GET"'
    request = read(stream(attributes))
    assert request.headers == {"Authorization": "Basic YW5uYTp4"}
    assert request.status_callback == Callback("https://voice.example.com/events", "GET")
    (found,) = read(stream('codec="opus"')).findings
    assert "<StartStream> has attributes that Bandwidth does not know: codec" in found.message


@pytest.mark.parametrize(
    ("verbs", "words"),
    [
        (f'<StartStream destination="{STREAM_URL}"/>', 'it needs mode="bidirectional"'),
        ("<Hangup/>", "<Hangup>"),
        ("<SpeakSentence>Hi</SpeakSentence>", 'but no <StartStream mode="bidirectional">'),
        ("", "the answer holds nothing"),
        (stream().replace(STREAM_URL, ""), "the stream has no url"),
    ],
)
def test_a_document_without_a_two_way_stream(verbs: str, words: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(verbs)
    assert words in caught.value.message


def test_a_redirect_and_a_transfer_lead_away() -> None:
    company = Bandwidth({})
    document = b'<Response><Redirect redirectUrl="/next" redirectMethod="GET"/></Response>'
    redirected = company.read_document(document, "application/xml", base_url=URL)
    assert redirected == Redirect(Callback("https://voice.example.com/next", "GET"), [])
    document = b"<Response><Transfer><PhoneNumber>+15550100009</PhoneNumber></Transfer></Response>"
    assert company.read_document(document, "application/xml") == NoStream("transferred", "+15550100009", [])


# The password is sent when it is asked for:
# https://github.com/Bandwidth/api-docs/blob/main/site/docs/numbers/webhooks.mdx#authentication


async def waits(runner_args: Any) -> None:
    async for _ in runner_args.websocket.iter_text():
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RunningServer]]:
    with serving(monkeypatch) as start:
        yield start


def test_a_server_asks_for_the_password(serve: Callable[..., RunningServer]) -> None:
    server = serve(waits, transport="bandwidth", credentials=SECRETS)
    asked = httpx.post(server.url)
    assert (asked.status_code, asked.headers["www-authenticate"]) == (401, 'Basic realm="wsvoice"')
    request = webhook(SECRETS, url=server.url)
    answered = httpx.post(server.url, content=request.body, headers=dict(request.headers))
    assert answered.status_code == 200
    assert "<StartStream" in answered.text
    assert not server.lines("refused"), "it is what every call begins with"
    wrong = webhook({**SECRETS, "BANDWIDTH_WEBHOOK_PASSWORD": "x"}, url=server.url)
    refused = httpx.post(server.url, content=wrong.body, headers=dict(wrong.headers))
    assert (refused.status_code, "www-authenticate" in refused.headers) == (403, False)
    assert len(server.lines("webhook refused (403)", "user name or password is wrong")) == 1


def test_it_is_asked_for_where_one_address_serves_all(serve: Callable[..., RunningServer]) -> None:
    server = serve(waits, transport=None, credentials=SECRETS)
    assert httpx.post(server.url).status_code == 401
    assert httpx.get(server.url).status_code == 404
    assert httpx.post(server.url, json={}).status_code == 404
    assert httpx.post(server.url, headers={"authorization": "Basic Og=="}).status_code == 404


@pytest.mark.parametrize("transport", ["bandwidth", None])
@pytest.mark.parametrize("settings", [{"verify": "off", "credentials": SECRETS}, {"verify": "off"}, {}])
def test_a_server_that_knows_no_password_asks_all_the_same(
    serve: Callable[..., RunningServer], transport: str | None, settings: dict[str, Any]
) -> None:
    """For the call comes with the password, and Bandwidth's application has one."""
    server = serve(waits, transport=transport, **settings)
    assert failure(server.url) == "the bot never made a sound"
    assert httpx.post(server.url).status_code == 401
    assert not server.lines("refused")


def test_without_a_password_nothing_is_asked_for(serve: Callable[..., RunningServer]) -> None:
    server = serve(waits, transport="bandwidth")
    request = webhook({}, url=server.url)
    assert httpx.post(server.url, content=request.body, headers=dict(request.headers)).status_code == 200


@contextmanager
def answering(*statuses: int, **headers: str) -> Iterator[tuple[str, list[tuple[str | None, bytes]]]]:
    """Serve those answers; the URL is given, and what was asked: credentials and body."""
    asked: list[tuple[str | None, bytes]] = []
    rest = list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((self.headers.get("authorization"), body))
            self.send_response(rest.pop(0))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/bandwidth", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def failure(url: str, **quirks: str) -> str | None:
    config = DialConfig(
        target=url, transport="bandwidth", credentials=SECRETS, quirks=quirks, listen_s=0.0, duration_s=0.5
    )
    return asyncio.run(dial(config)).failure


def told(asked: list[tuple[str | None, bytes]]) -> list[tuple[bool, bool]]:
    """Return of each request whether it had credentials, and a body."""
    return [(given is not None, bool(body)) for given, body in asked]


def test_a_caller_waits_until_it_is_asked() -> None:
    with answering(401, 500, www_authenticate="Basic") as (url, asked):
        assert (failure(url) or "").startswith("the webhook failed: 500")
    assert told(asked) == [(False, False), (True, True)]


@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_server_that_does_not_ask_gets_no_password(status: int) -> None:
    with answering(status) as (url, asked):
        assert failure(url) == (
            f"the webhook answered {status} to a request without credentials, which Bandwidth sends only where a 401 "
            "with WWW-Authenticate asks for them"
        )
    assert told(asked) == [(False, False)]


def test_it_may_send_them_at_once() -> None:
    with answering(403) as (url, asked):
        assert (failure(url, password="at-once") or "").startswith(
            "the webhook refused the call: 403 (compare BANDWIDTH_WEBHOOK_"
        )
    assert told(asked) == [(True, True)]


def test_the_caller_and_its_bot_agree_on_a_format() -> None:
    chosen = {"BANDWIDTH_OUTBOUND_CODEC": "PCM@24000"}
    carrier, bot = load_provider("bandwidth", chosen).test_credentials(bytes(32))
    assert carrier["BANDWIDTH_OUTBOUND_CODEC"] == bot["BANDWIDTH_OUTBOUND_CODEC"] == "PCM@24000"
    assert carrier["BANDWIDTH_WEBHOOK_PASSWORD"] == bot["BANDWIDTH_WEBHOOK_PASSWORD"]
