"""
SignalWire, held against its documentation, Twilio's library (which SignalWire's own uses for forms), and pipecat.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipecat.frames.frames import InputAudioRawFrame, OutputAudioRawFrame
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.twilio import TwilioFrameSerializer
from twilio.request_validator import RequestValidator

from tests.providers.commands import hung_up
from tests.providers.companies import SignalWire, SignalWireStream, Twilio, load_provider
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers import PROVIDERS
from wsvoice.providers.base import Side, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Mark,
    StreamStarted,
    StreamStopped,
    Unknown,
)
from wsvoice.providers.signalwire.stream import CODECS
from wsvoice.providers.urls import basic_header

NOW = 0.0
KEY = "PSK_wsvoice_test_key_01"
URL = "https://voice.example.com/signalwire"
FORM = {
    "AccountSid": "00000000-0000-0000-0000-000000000001",
    "CallSid": "00000000-0000-0000-0000-0000000000c1",
    "From": "+15550100001",
    "To": "+15550100002",
}
CALL = Call("signalwire", FORM["CallSid"], "", FORM["AccountSid"], FORM["From"], FORM["To"])
STARTED = StreamStarted(
    stream_id="7d56cc11-536d-4a45-b4fb-ed3d55be843b",
    call_id=CALL.call_id,
    account_id=CALL.account_id,
    parameters={"customer": "Jörg"},
    sequence=1,
)
JSON = {"content-type": "application/json"}


@pytest.fixture
def provider() -> SignalWire:
    return SignalWire({"SIGNALWIRE_SIGNING_KEY": KEY})


def post(fields: Any, url: str = URL) -> WebhookRequest:
    return WebhookRequest(
        "POST", url, {"content-type": "application/x-www-form-urlencoded"}, urlencode(fields).encode()
    )


def signature_of(request: WebhookRequest) -> str:
    return request.headers["x-signalwire-signature"]


# Signatures


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        pytest.param(post(FORM), "VlbeNEB7ZePOVzWetDOdoRWnmd0=", id="form"),
        pytest.param(
            WebhookRequest("POST", URL, JSON, b'{"a": 1}'), "f300168f9b86ccb854b90359927d05d48564bc84", id="raw"
        ),
    ],
)
def test_webhook_vectors(provider: SignalWire, request_: WebhookRequest, signature: str) -> None:
    signed = provider.sign(request_, now=NOW)
    assert signature_of(signed) == signature
    provider.verify(signed, now=NOW)
    for changed in (request_.body + b" ", b"", request_.body.replace(b"1", b"2")):
        with pytest.raises(SignatureError):
            provider.verify(dataclasses.replace(signed, body=changed), now=NOW)
    with pytest.raises(SignatureError):
        provider.verify(dataclasses.replace(signed, url=URL + "/x"), now=NOW)
    with pytest.raises(SignatureError, match="carries no X-SignalWire-Signature"):
        provider.verify(request_, now=NOW)
    with pytest.raises(SignatureError, match="without a secret") as caught:
        SignalWire({}).verify(signed, now=NOW)
    assert caught.value.hint == "set SIGNALWIRE_SIGNING_KEY"


@settings(deadline=None)
@given(fields=st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=6), key=st.text(min_size=1))
def test_forms_agree_with_the_library_that_signalwires_uses(fields: dict[str, str], key: str) -> None:
    ours, theirs = SignalWire({"SIGNALWIRE_SIGNING_KEY": key}), RequestValidator(key)
    signed = ours.sign(post(fields), now=NOW)
    assert theirs.validate(URL, fields, signature_of(signed))
    ours.verify(signed, now=NOW)


@settings(deadline=None)
@given(body=st.binary(max_size=100), port=st.sampled_from(["", ":443", ":8443"]))
def test_raw_bodies_are_signed_with_and_without_the_port(body: bytes, port: str) -> None:
    ours = SignalWire({"SIGNALWIRE_SIGNING_KEY": KEY})
    bare = ours.sign(WebhookRequest("POST", URL, JSON, body), now=NOW)
    with_port = f"https://voice.example.com{port}/signalwire"
    ours.verify(dataclasses.replace(bare, url=with_port), now=NOW)
    ours.verify(ours.sign(WebhookRequest("POST", with_port, JSON, body), now=NOW), now=NOW)
    with pytest.raises(SignatureError):
        ours.verify(dataclasses.replace(bare, body=body + b"x"), now=NOW)


def test_one_signature_in_both_spellings_is_one(provider: SignalWire) -> None:
    """A form's is base64 and JSON's hexadecimal: what is signed as the one could be sent again as the other."""
    raw = provider.sign(WebhookRequest("POST", URL, JSON, b"ab"), now=NOW)
    form = provider.sign(post({"a": "b"}), now=NOW)
    assert signature_of(raw) != signature_of(form)
    assert provider.replay_key(raw) == provider.replay_key(form) == (signature_of(raw), None)


@pytest.mark.parametrize("signature", ["", "é", "\udc80", "VlbeNEB7ZePOVzWetDOdoRWnmd0="])
@pytest.mark.parametrize("headers", [JSON, {"content-type": "text/plain"}])
def test_odd_signatures_are_wrong_ones(provider: SignalWire, headers: dict[str, str], signature: str) -> None:
    request = WebhookRequest("POST", URL, {**headers, "x-signalwire-signature": signature}, b"a=1")
    with pytest.raises(SignatureError):
        provider.verify(request, now=NOW)


def test_the_upgrade_has_no_signature(provider: SignalWire) -> None:
    assert provider.upgrade_headers("wss://h/ws", now=NOW) == {}
    assert "signs no upgrade" in provider.verify_upgrade(WebhookRequest("GET", "wss://h/ws"), now=NOW)
    assert provider.upgrade_error("refused") is None


# Telling it from Twilio

TWILIO_CALL = Twilio({}).new_call(from_number="+1", to_number="+2", parameters={}, seed=bytes(range(32)))


def test_webhooks_are_told_from_twilios(provider: SignalWire) -> None:
    twilio = Twilio({})
    theirs, ours = twilio.webhook(TWILIO_CALL, URL), provider.webhook(CALL, URL)
    assert provider.recognises(ours)
    assert not provider.recognises(theirs)
    assert twilio.recognises(theirs)
    assert not twilio.recognises(ours)
    assert not provider.recognises(post({"AccountSid": FORM["AccountSid"], "CallSid": "v3:abc"}))


def test_one_provider_alone_claims_each_providers_start() -> None:
    seed = bytes(range(32))
    for name in PROVIDERS:
        each = load_provider(name)
        call = each.new_call(from_number="+15550100001", to_number="+15550100002", parameters={}, seed=seed)
        stream = each.stream(Side.CARRIER)
        started = StreamStarted(
            call.stream_id, call.call_id, call.account_id, call.from_number, call.to_number, stream.format
        )
        message = json.loads(stream.send(started))
        claiming = [other for other in PROVIDERS if load_provider(other).claims(message)]
        assert claiming == [name]


def test_one_provider_alone_recognises_each_providers_webhook() -> None:
    for name, each in ((name, load_provider(name)) for name in PROVIDERS):
        if not each.has_webhook:
            continue
        call = each.new_call(from_number="+1", to_number="+2", parameters={}, seed=bytes(range(32)))
        request = each.webhook(call, URL, method=each.webhook_method)
        assert [other for other in PROVIDERS if load_provider(other).recognises(request)] == [name]


@pytest.mark.parametrize("start", [None, [], {}, {"streamSid": "s"}, {"streamSid": "s", "callSid": 7}])
def test_other_messages_are_not_claimed(provider: SignalWire, start: Any) -> None:
    assert not provider.claims({"event": "start", "start": start})


# The webhook and the answer


def test_a_webhook_has_none_of_twilios_own_headers_and_fields(provider: SignalWire) -> None:
    request = provider.webhook(CALL, URL)
    assert {**request.fields, **FORM} == request.fields
    assert set(request.headers) == {"content-type"}
    assert "CallToken" not in request.fields
    assert provider.read_webhook(request) == CALL
    assert provider.read_webhook(provider.webhook(CALL, URL + "?bot=7", method="GET")) == CALL


def test_invented_ids_are_uuids(provider: SignalWire) -> None:
    call = provider.new_call(from_number="+1", to_number="+2", parameters={"a": "b"}, seed=bytes(range(32)))
    assert call.call_id == "00010203-0405-4607-8809-0a0b0c0d0e0f"
    assert len({call.call_id, call.stream_id, call.account_id}) == 3
    assert call.parameters == {"a": "b"}


@pytest.mark.parametrize("codec", ["", *CODECS])
def test_the_codec_is_always_named(codec: str) -> None:
    provider = SignalWire({"SIGNALWIRE_STREAM_CODEC": codec})
    answer = provider.answer(CALL, "wss://h/ws")
    (stream,) = ElementTree.fromstring(answer.body).iter("Stream")
    assert stream.get("codec") == (codec or "PCMU@8000h")
    request = provider.read_answer(answer.body.encode(), answer.media_type)
    assert request.format == CODECS[codec or "PCMU@8000h"]
    assert request.findings == []
    assert "codec" not in Twilio({}).answer(CALL, "wss://h/ws").body


def test_the_bots_audio_is_played_at_once_unless_told_otherwise() -> None:
    for setting, written in (("", "true"), ("true", "true"), ("false", "false")):
        answer = SignalWire({"SIGNALWIRE_STREAM_REALTIME": setting}).answer(CALL, "wss://h/ws")
        (stream,) = ElementTree.fromstring(answer.body).iter("Stream")
        assert stream.get("realtime") == written
    with pytest.raises(ConfigError, match="SIGNALWIRE_STREAM_REALTIME is 'yes'"):
        SignalWire({"SIGNALWIRE_STREAM_REALTIME": "yes"})


def test_another_codec_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match="'opus'") as caught:
        SignalWire({"SIGNALWIRE_STREAM_CODEC": "opus"})
    assert caught.value.hint is not None
    assert "L16@24000h" in caught.value.hint


def document(attributes: str) -> bytes:
    return f'<Response><Connect><Stream url="wss://h/ws" {attributes}/></Connect></Response>'.encode()


def test_what_only_signalwires_documents_have(provider: SignalWire) -> None:
    request = provider.read_answer(document('authBearerToken="t" realtime="true" codec="L16@16000h"'), "text/xml")
    assert request.headers == {"Authorization": "Bearer t"}
    assert request.format == AudioFormat(Encoding.L16, 16000)
    assert request.findings == []
    plain = provider.read_answer(document(""), "text/xml")
    assert (plain.headers, plain.format) == ({}, PCMU_8K)
    (finding,) = provider.read_answer(document('codec="opus"'), "text/xml").findings
    assert (finding.id, finding.level) == ("W3", "fail")


# The REST API

REST = {"SIGNALWIRE_PROJECT_ID": "p1", "SIGNALWIRE_API_TOKEN": "token", "SIGNALWIRE_SPACE": "example"}


def test_a_hang_up_is_read_with_the_projects_token() -> None:
    url = "https://example.signalwire.com/api/laml/2010-04-01/Accounts/p2/Calls/c1.json"
    form = {"content-type": "application/x-www-form-urlencoded"}
    request = WebhookRequest("POST", url, {**form, **basic_header("p1", "token")}, b"Status=completed")
    lower = dataclasses.replace(request, headers={name.lower(): value for name, value in request.headers.items()})
    assert hung_up(SignalWire(REST), lower) == "c1"
    assert SignalWire(REST).is_authorised(lower)
    assert not SignalWire({**REST, "SIGNALWIRE_API_TOKEN": "another"}).is_authorised(lower)


def test_a_test_call_keeps_the_codec() -> None:
    carrier, bot = SignalWire({"SIGNALWIRE_STREAM_CODEC": "L16@16000h"}).test_credentials(bytes(range(32)))
    assert carrier["SIGNALWIRE_SIGNING_KEY"] == bot["SIGNALWIRE_SIGNING_KEY"] != ""
    assert bot["SIGNALWIRE_STREAM_CODEC"] == "L16@16000h"


# The stream


def ends(started: StreamStarted = STARTED) -> tuple[SignalWireStream, SignalWireStream]:
    carrier, bot = SignalWireStream(Side.CARRIER), SignalWireStream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


def test_what_signalwire_leaves_out() -> None:
    carrier, bot = ends()
    connected = json.loads(carrier.send(Connected()))
    assert connected["version"] == "0.2.0"
    assert set(json.loads(carrier.send(STARTED))) == {"event", "sequenceNumber", "start"}
    bare = json.loads(carrier.send(dataclasses.replace(STARTED, parameters={})))
    assert "customParameters" not in bare["start"]
    assert set(json.loads(carrier.send(Audio(bytes(160))))) == {"event", "sequenceNumber", "media"}
    assert set(json.loads(carrier.send(StreamStopped()))) == {"event", "sequenceNumber"}
    assert set(json.loads(carrier.send(Mark("m")))) == {"event", "streamSid", "mark"}
    digit = json.loads(carrier.send(Digit("1")))
    assert set(digit) == {"event", "streamSid", "dtmf"}
    assert isinstance(digit["dtmf"]["duration"], int)
    assert bot.receive(json.dumps(digit)) == Digit("1")
    assert bot.receive(carrier.send(Cleared())) == Cleared()


@pytest.mark.parametrize("wire", CODECS.values(), ids=CODECS)
def test_every_codec_comes_through(wire: AudioFormat) -> None:
    started = dataclasses.replace(STARTED, format=wire)
    carrier, bot = ends(started)
    assert bot.receive(carrier.send(started)) == started
    assert bot.format == bot.outbound_format == wire
    audio = Audio(bytes(wire.bytes_for(20)), "inbound", 1, 20, 2)
    assert bot.receive(carrier.send(audio)) == audio
    assert carrier.receive(bot.send(Audio(audio.payload))) == Audio(audio.payload)
    assert carrier.findings() == []


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_no_start(rate: int) -> None:
    bot = SignalWireStream(Side.BOT)
    start = {"streamSid": "s", "callSid": "c", "mediaFormat": {"encoding": "audio/x-L16", "sampleRate": rate}}
    with pytest.raises(RemoteProtocolError) as caught:
        bot.receive(json.dumps({"event": "start", "start": start}))
    assert caught.value.kind == "bad-start"
    with pytest.raises(LocalProtocolError):
        SignalWireStream(Side.CARRIER).send(dataclasses.replace(STARTED, format=AudioFormat(Encoding.L16, rate)))


def test_half_a_sample_is_no_audio() -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=CODECS["L16@16000h"]))
    odd = {"event": "media", "media": {"payload": base64.b64encode(bytes(641)).decode()}}
    with pytest.raises(RemoteProtocolError) as caught:
        bot.receive(json.dumps(odd))
    assert caught.value.kind == "bad-media"
    assert carrier.receive(json.dumps({**odd, "streamSid": STARTED.stream_id})) == Audio(bytes(640))
    assert [finding.level for finding in carrier.findings()] == ["fail"]


def test_a_bot_may_press_keys() -> None:
    carrier, _ = ends()
    assert carrier.receive('{"event":"dtmf","dtmf":{"digit":"1"}}') == Unknown("dtmf")
    assert carrier.findings() == []
    assert carrier.receive('{"event":"playAudio"}') == Unknown("playAudio")
    (finding,) = carrier.findings()
    assert "SignalWire" in finding.message


def test_a_mark_has_a_name() -> None:
    carrier, _ = ends()
    with pytest.raises(LocalProtocolError):
        carrier.send(Mark(""))


# Agreement with pipecat, which takes SignalWire for Twilio

PCM = b"".join((1000 * (n % 21 - 10)).to_bytes(2, "little", signed=True) for n in range(160))


def test_pipecats_audio_goes_both_ways() -> None:
    carrier, bot = ends()

    async def run() -> tuple[Any, Any]:
        params = TwilioFrameSerializer.InputParams(auto_hang_up=False, sample_rate=8000)
        serializer = TwilioFrameSerializer(STARTED.stream_id, params=params)
        serializer._sample_rate = 8000
        spoken = await serializer.serialize(OutputAudioRawFrame(audio=PCM, sample_rate=8000, num_channels=1))
        heard = await serializer.deserialize(carrier.send(Audio(PCMU_8K.encode(PCM))))
        return spoken, heard

    spoken, heard = asyncio.run(run())
    assert carrier.receive(spoken) == Audio(PCMU_8K.encode(PCM))
    assert json.loads(bot.send(Audio(PCMU_8K.encode(PCM)))) == json.loads(spoken)
    assert isinstance(heard, InputAudioRawFrame)
    assert heard.audio == PCMU_8K.decode(PCMU_8K.encode(PCM))
    assert carrier.receive(bot.send(Clear())) == Clear()
    assert carrier.findings() == []


class Handshake:
    """What pipecat's parser needs of a WebSocket: the texts, one after another."""

    def __init__(self, *messages: str) -> None:
        self._messages = messages

    async def iter_text(self) -> AsyncIterator[str]:
        for message in self._messages:
            yield message


def test_pipecat_reads_our_handshake(provider: SignalWire) -> None:
    answer = provider.answer(dataclasses.replace(CALL, parameters={"customer": "Jörg"}), "wss://h/ws")
    request = provider.read_answer(answer.body.encode(), answer.media_type)
    carrier = provider.stream(Side.CARRIER)
    started = dataclasses.replace(STARTED, parameters=request.parameters)
    handshake = Handshake(carrier.send(Connected()), carrier.send(started))
    kind, call_data = asyncio.run(parse_telephony_websocket(handshake))
    assert kind == "twilio"
    assert (call_data.stream_id, call_data.call_id) == (STARTED.stream_id, CALL.call_id)
    assert (call_data.from_number, call_data.to_number) == (FORM["From"], FORM["To"])
    assert call_data.body["customer"] == "Jörg"
