"""
Telnyx, held against its documentation, its own Python library, and pipecat's serializer.
"""

# Telnyx's library is imported where it is used: that takes two seconds, and every worker collects every test.

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import string
import time
import typing
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit
from xml.etree import ElementTree

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import Frame, InputAudioRawFrame, InputDTMFFrame, InterruptionFrame, OutputAudioRawFrame
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.runner.utils import parse_telephony_websocket
from pipecat.serializers.telnyx import TelnyxFrameSerializer
from pipecat.utils.asyncio.task_manager import TaskManager

from tests.providers.commands import hung_up
from tests.providers.companies import Telnyx, TelnyxStream, Twilio
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import Callback, CallUpdate, HttpRequest, Side, WebhookRequest
from wsvoice.providers.events import (
    Audio,
    Clear,
    Cleared,
    Connected,
    Digit,
    Event,
    Mark,
    StreamError,
    StreamStarted,
    StreamStopped,
    Unknown,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "telnyx"
NOW = 1_750_000_000
URL = "https://voice.example.com/telnyx"
STREAM_URL = "wss://voice.example.com/ws/telnyx/token"
FORM_TYPE = "application/x-www-form-urlencoded"

PRIVATE_KEY = base64.b64encode(bytes(range(32))).decode()
PUBLIC_KEY = "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
OTHER_KEY = base64.b64encode(bytes(32)).decode()
EVENT_BODY = (
    b'{"data":{"event_type":"call.initiated","id":"0ccc7b54-4df3-4bca-a65a-3da1ecc777f0","record_type":"event"}}'
)
EVENT_SIGNATURE = "YaE1ny7shdXA/9BH+lIMJfrbc39gpWGshy7R7nb4S8Rp665qtTQowqtOxlhiiLWd0SpPxLfKMB2aXVs/nUx9AQ=="
FORM_BODY = b"CallSid=v3%3Aabc&From=%2B15550100001&To=%2B15550100002"
FORM_SIGNATURE = "zap3tjX5RuckxBl0md/N58ZgdtltSJ/RIoAZec9eLYQCj2y0hjE7Ixe/9uEqWsQFE0XdeOeGVGtqEwNnYKyXBA=="

CALL = Call(
    provider="telnyx",
    call_id="v3:9X2vxPDFY2RHSJ1EdMS0RHRksMTg7ldNxdjWbVr9zBjbGjGsSe-aiQ",
    account_id="3e6f995f-85f7-4705-9741-53b116d28237",
    from_number="+15550100001",
    to_number="+15550100002",
)
API_CALL = dataclasses.replace(CALL, account_id="", control="api")
STARTED = StreamStarted(
    stream_id="32DE0DEA-53CB-4B21-89A4-9E1819C043BC",
    call_id=CALL.call_id,
    account_id=CALL.account_id,
    from_number="+15550100001",
    to_number="+15550100002",
    parameters={"customer": "Jörg"},
    sequence=1,
)
L16_16K = AudioFormat(Encoding.L16, 16000)
PCMA_8K = AudioFormat(Encoding.PCMA)


@pytest.fixture
def telnyx() -> Telnyx:
    return Telnyx({"TELNYX_PUBLIC_KEY": PUBLIC_KEY, "TELNYX_API_KEY": "KEY1"})


@pytest.fixture
def carrier_side() -> Telnyx:
    return Telnyx({"TELNYX_PRIVATE_KEY": PRIVATE_KEY})


def signed(body: bytes, signature: str, *, timestamp: str = str(NOW), method: str = "POST") -> WebhookRequest:
    headers = {"telnyx-signature-ed25519": signature, "telnyx-timestamp": timestamp, "content-type": FORM_TYPE}
    return WebhookRequest(method, URL, headers, body)


def post(fields: dict[str, str]) -> WebhookRequest:
    return WebhookRequest("POST", URL, {"content-type": FORM_TYPE}, urlencode(fields).encode())


def event(kind: str, payload: Any = None, **data: Any) -> WebhookRequest:
    content = {"record_type": "event", "event_type": kind, "id": "e1", "payload": payload, **data}
    return WebhookRequest("POST", URL, {"content-type": "application/json"}, json.dumps({"data": content}).encode())


# Signatures


@pytest.mark.parametrize(("body", "signature"), [(EVENT_BODY, EVENT_SIGNATURE), (FORM_BODY, FORM_SIGNATURE)])
def test_signature_vectors(telnyx: Telnyx, carrier_side: Telnyx, body: bytes, signature: str) -> None:
    request = carrier_side.sign(WebhookRequest("POST", URL, {}, body), now=NOW + 0.9)
    assert request.headers == {"telnyx-signature-ed25519": signature, "telnyx-timestamp": str(NOW)}
    for provider in (telnyx, carrier_side):
        provider.verify(request, now=NOW)
        with pytest.raises(SignatureError, match="does not match"):
            provider.verify(dataclasses.replace(request, body=body + b" "), now=NOW)


@pytest.mark.parametrize("offset", [0, 300, 300.9, -300])
def test_five_minutes_either_way_are_accepted(telnyx: Telnyx, offset: float) -> None:
    telnyx.verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW + offset)


@pytest.mark.parametrize(("offset", "age"), [(301, "301 s ago"), (-301, "301 s in the future"), (86400, "86400 s ago")])
def test_an_old_webhook_is_refused_with_its_age(telnyx: Telnyx, offset: int, age: str) -> None:
    with pytest.raises(SignatureError, match=f"signed {age}"):
        telnyx.verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW + offset)


@pytest.mark.parametrize(
    "timestamp", ["soon", "-1", "+1750000000", " 1750000000", "1750000000.0", "1_750_000_000", "١٧٥", "9" * 5000]
)
def test_a_timestamp_is_a_number(telnyx: Telnyx, timestamp: str) -> None:
    with pytest.raises(SignatureError, match="not a number of seconds") as caught:
        telnyx.verify(signed(FORM_BODY, FORM_SIGNATURE, timestamp=timestamp), now=NOW)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("missing", ["telnyx-signature-ed25519", "telnyx-timestamp"])
def test_a_missing_header_is_named(telnyx: Telnyx, missing: str) -> None:
    request = signed(FORM_BODY, FORM_SIGNATURE)
    headers = {name: value for name, value in request.headers.items() if name != missing}
    with pytest.raises(SignatureError, match=f"carries no {missing}"):
        telnyx.verify(dataclasses.replace(request, headers=headers), now=NOW)


@pytest.mark.parametrize(
    "signature",
    [
        "*" * 88,
        FORM_SIGNATURE[:-1],
        FORM_SIGNATURE + "AAAA",
        FORM_SIGNATURE.replace("+", "-").replace("/", "_"),
        FORM_SIGNATURE + "\n",
        " " + FORM_SIGNATURE,
        FORM_SIGNATURE[:44] + "====" + FORM_SIGNATURE[44:],
        "é" * 88,
        "AAAA",
    ],
)
def test_a_signature_is_strict_base64(telnyx: Telnyx, signature: str) -> None:
    with pytest.raises(SignatureError, match="is not the base64 of 64 bytes"):
        telnyx.verify(signed(FORM_BODY, signature), now=NOW)


def test_another_accounts_key_does_not_match() -> None:
    other = Telnyx({"TELNYX_PRIVATE_KEY": OTHER_KEY})
    with pytest.raises(SignatureError, match="does not match") as caught:
        other.verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW)
    assert caught.value.hint is not None
    assert "TELNYX_PUBLIC_KEY" in caught.value.hint


@pytest.mark.parametrize(
    "key", ["nonsense", PUBLIC_KEY[:-4], PUBLIC_KEY + "AAAA", "é", "*" * 44, PUBLIC_KEY.strip("=")]
)
def test_a_malformed_key_is_a_setting_to_mend(key: str) -> None:
    provider = Telnyx({"TELNYX_PUBLIC_KEY": key})
    with pytest.raises(ConfigError, match="TELNYX_PUBLIC_KEY is not a key"):
        provider.verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW)
    provider = Telnyx({"TELNYX_PRIVATE_KEY": key})
    with pytest.raises(ConfigError, match="TELNYX_PRIVATE_KEY is not a key"):
        provider.sign(WebhookRequest("POST", URL), now=NOW)


def test_space_around_a_key_does_no_harm() -> None:
    Telnyx({"TELNYX_PUBLIC_KEY": f" {PUBLIC_KEY}\n"}).verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW)


def test_nothing_is_signed_or_verified_without_a_key(telnyx: Telnyx) -> None:
    request = WebhookRequest("POST", URL, {}, FORM_BODY)
    assert telnyx.sign(request, now=NOW) is request
    keyless = Telnyx({})
    assert not keyless.can_verify()
    with pytest.raises(SignatureError, match="without a key"):
        keyless.verify(signed(FORM_BODY, FORM_SIGNATURE), now=NOW)


def test_a_get_is_signed_by_its_timestamp_alone(telnyx: Telnyx, carrier_side: Telnyx) -> None:
    plain = carrier_side.webhook(CALL, URL, method="GET")
    telnyx.verify(carrier_side.sign(plain, now=NOW), now=NOW)
    with pytest.raises(SignatureError, match="carries no telnyx-signature") as caught:
        telnyx.verify(plain, now=NOW)
    assert caught.value.hint is not None
    assert "voice_method to post" in caught.value.hint


def test_a_get_with_a_body_is_no_webhook(telnyx: Telnyx) -> None:
    """A signature vouches for timestamp and body alone, so that of a POST would let any query in."""
    request = signed(FORM_BODY, FORM_SIGNATURE)
    telnyx.verify(request, now=NOW)
    forged = dataclasses.replace(request, method="GET", url=f"{URL}?CallSid=forged")
    with pytest.raises(SignatureError, match="GET with a body"):
        telnyx.verify(forged, now=NOW)


def test_an_events_id_is_what_a_replay_repeats(carrier_side: Telnyx) -> None:
    request = carrier_side.webhook(API_CALL, URL)
    first = carrier_side.replay_key(carrier_side.sign(request, now=NOW))
    # A retry is signed anew, and is to be let through.
    assert first == carrier_side.replay_key(carrier_side.sign(request, now=NOW + 5))
    assert first[0] == first[1] != ""
    other = carrier_side.webhook(dataclasses.replace(API_CALL, call_id="v3:other"), URL)
    assert carrier_side.replay_key(other) != first
    texml = carrier_side.sign(carrier_side.webhook(CALL, URL), now=NOW)
    assert carrier_side.replay_key(texml) == (base64.b64decode(texml.headers["telnyx-signature-ed25519"]).hex(), "")


@pytest.mark.parametrize("body", [b"{", b'{"data":[]}', b'{"data":{"id":7}}', b'{"data":{"id":""}}'])
def test_an_event_without_an_id_is_known_by_its_signature(telnyx: Telnyx, body: bytes) -> None:
    assert telnyx.replay_key(signed(body, FORM_SIGNATURE)) == (base64.b64decode(FORM_SIGNATURE).hex(), "")


def test_a_signature_that_is_written_otherwise_is_the_same(telnyx: Telnyx, carrier_side: Telnyx) -> None:
    """Four bits of the last character stand for nothing: Telnyx's library, and ours, take all fifteen others."""
    request = carrier_side.sign(carrier_side.webhook(CALL, URL), now=NOW)
    signature, alphabet = request.headers["telnyx-signature-ed25519"], string.ascii_letters + string.digits + "+/"
    taken = []
    for character in alphabet:
        rewritten = f"{signature[:-3]}{character}=="
        again = dataclasses.replace(request, headers={**request.headers, "telnyx-signature-ed25519": rewritten})
        if we_accept(again, NOW):
            assert library_accepts(again, NOW)
            taken.append(rewritten)
            assert telnyx.replay_key(again) == telnyx.replay_key(request)
    assert len(taken) == 16
    assert telnyx.replay_key(request)[0]


def test_the_credentials_of_a_test_call_belong_together() -> None:
    real = {"TELNYX_API_KEY": "real", "TELNYX_PUBLIC_KEY": "real"}
    carrier, bot = Telnyx({**real, "TELNYX_STREAM_CODEC": "PCMA"}).test_credentials(bytes(range(32)))
    assert list(carrier) == ["TELNYX_PRIVATE_KEY", "TELNYX_STREAM_CODEC"]
    assert list(bot) == ["TELNYX_PUBLIC_KEY", "TELNYX_API_KEY", "TELNYX_STREAM_CODEC"]
    assert "real" not in bot.values()
    request = Telnyx(carrier).sign(Telnyx(carrier).webhook(CALL, URL), now=NOW)
    Telnyx(bot).verify(request, now=NOW)
    stranger, _ = Telnyx({}).test_credentials(bytes(32))
    with pytest.raises(SignatureError):
        Telnyx(bot).verify(Telnyx(stranger).sign(request, now=NOW), now=NOW)


def test_call_control_reports_how_a_call_goes_on(telnyx: Telnyx) -> None:
    quirks = {"webhook": "call-control"}
    kinds = []
    ids = set()
    for progress in ("answered", "streaming", "ended"):
        request = telnyx.deviating(quirks).progress_webhook(CALL, Callback(URL), progress)
        assert request is not None
        # They are reports: none of them is another call.
        update = telnyx.read_webhook(request)
        assert isinstance(update, CallUpdate)
        assert (update.call_id, update.ended) == (CALL.call_id, progress == "ended")
        data = json.loads(request.body)["data"]
        kinds.append(data["event_type"])
        ids.add(data["id"])
        assert data["payload"]["call_control_id"] == CALL.call_id
        assert telnyx.progress_webhook(CALL, Callback(URL), progress) is None
    assert kinds == ["call.answered", "streaming.started", "call.hangup"]
    assert len(ids) == 3


def test_both_ends_of_a_shared_secret_have_the_same() -> None:
    carrier, bot = Twilio({}).test_credentials(bytes(range(32)))
    assert carrier == bot
    request = Twilio(carrier).sign(Twilio(carrier).webhook(CALL, URL), now=NOW)
    Twilio(bot).verify(request, now=NOW)


def test_no_upgrade_is_signed(carrier_side: Telnyx) -> None:
    assert carrier_side.upgrade_headers(STREAM_URL, now=NOW) == {}
    assert "signs no upgrade" in carrier_side.verify_upgrade(WebhookRequest("GET", STREAM_URL), now=NOW)


def library_accepts(request: WebhookRequest, now: float) -> bool:
    from telnyx.lib import webhook_verification

    with mock.patch.object(webhook_verification, "time", SimpleNamespace(time=lambda: now)):
        try:
            webhook_verification.verify_webhook_signature(request.body, request.headers, PUBLIC_KEY)
        except webhook_verification.WebhookVerificationError:
            return False
    return True


def we_accept(request: WebhookRequest, now: float) -> bool:
    try:
        Telnyx({"TELNYX_PUBLIC_KEY": PUBLIC_KEY}).verify(request, now=now)
    except SignatureError:
        return False
    return True


@given(
    text=st.text(max_size=300),
    offset=st.integers(-302, 302) | st.floats(-302, 302),
    change=st.sampled_from(["none", "none", "body", "timestamp", "signature"]),
)
def test_agreement_with_the_telnyx_library(text: str, offset: float, change: str) -> None:
    body = text.encode("utf-8", "replace")
    request = Telnyx({"TELNYX_PRIVATE_KEY": PRIVATE_KEY}).sign(WebhookRequest("POST", URL, {}, body), now=NOW)
    headers = dict(request.headers)
    if change == "body":
        body += b"&"
    elif change == "timestamp":
        headers["telnyx-timestamp"] = str(NOW + 1)
    elif change == "signature":
        headers["telnyx-signature-ed25519"] = EVENT_SIGNATURE
    request = dataclasses.replace(request, headers=headers, body=body)
    now = NOW + offset
    assert we_accept(request, now) == library_accepts(request, now)
    assert we_accept(request, NOW) == (change == "none")


@pytest.mark.parametrize(("offset", "accepted"), [(0, True), (-200, True), (200, True), (-1000, False), (1000, False)])
def test_the_librarys_client_accepts_our_event(carrier_side: Telnyx, offset: int, accepted: bool) -> None:
    import telnyx as telnyx_library
    from telnyx.lib import webhook_verification

    now = time.time()
    request = carrier_side.sign(carrier_side.webhook(API_CALL, URL, now=now + offset), now=now + offset)
    client = telnyx_library.Telnyx(api_key="KEY", public_key=PUBLIC_KEY)
    if not accepted:
        with pytest.raises(webhook_verification.WebhookVerificationError, match="too old or too new"):
            client.webhooks.unwrap(request.body.decode(), headers=request.headers)
        with pytest.raises(SignatureError):
            carrier_side.verify(request, now=now)
        return
    carrier_side.verify(request, now=now)
    data = client.webhooks.unwrap(request.body.decode(), headers=request.headers).data
    assert data.event_type == "call.initiated"
    assert data.payload.call_control_id == CALL.call_id
    assert (data.payload.from_, data.payload.to) == (CALL.from_number, CALL.to_number)
    assert (data.payload.direction, data.payload.state) == ("incoming", "parked")
    assert data.occurred_at.timestamp() == pytest.approx(now + offset, abs=1e-3)


# Webhooks


def test_a_texml_webhook_has_every_documented_field(telnyx: Telnyx) -> None:
    request = telnyx.webhook(CALL, URL, now=NOW + 0.25)
    assert request.headers["content-type"] == FORM_TYPE
    assert set(request.fields) == {
        "AccountSid",
        "ApiVersion",
        "CallInitiatedAt",
        "CallSessionId",
        "CallSid",
        "CallSidLegacy",
        "From",
        "FromSipUri",
        "To",
        "ToSipUri",
        "CallerId",
        "CallingPartyType",
        "ConnectionId",
        "CallStatus",
        "CallerName",
        "Direction",
    }
    assert request.fields["CallStatus"] == "ringing"
    # https://developers.telnyx.com/api-reference/callbacks/texml-call-initiated
    assert request.fields["CallSidLegacy"] == request.fields["CallSid"]
    assert request.fields["Direction"] == "inbound"
    assert datetime.fromisoformat(request.fields["CallInitiatedAt"]).timestamp() == NOW + 0.25
    assert request.fields["ConnectionId"].isdigit()


def test_a_texml_webhook_by_get_keeps_the_urls_own_query(telnyx: Telnyx) -> None:
    request = telnyx.webhook(CALL, f"{URL}?a=1#part", method="GET")
    assert request.body == b""
    assert parse_qsl(urlsplit(request.url).query)[0] == ("a", "1")
    assert urlsplit(request.url).fragment == "part"
    assert telnyx.read_webhook(request) == CALL


@pytest.mark.parametrize("quirks", [{"webhook": "call-control"}, None])
def test_an_event_of_call_control_is_read(telnyx: Telnyx, quirks: dict[str, str] | None) -> None:
    call = CALL if quirks else API_CALL
    request = telnyx.deviating(quirks).webhook(call, URL, method="GET")
    assert request.method == "POST"
    assert telnyx.recognises(request)
    assert telnyx.read_webhook(request) == API_CALL
    assert request.body == telnyx.deviating(quirks).webhook(call, URL).body


def test_the_quirk_that_is_the_default_changes_nothing(telnyx: Telnyx) -> None:
    assert telnyx.deviating({"webhook": "texml"}).webhook(CALL, URL) == telnyx.webhook(CALL, URL)


@pytest.mark.parametrize(
    "request_",
    [
        post({"CallSid": "v3:a", "StreamEvent": "stream-started"}),
        post({"CallSid": "v3:a", "CallStatus": "in-progress", "CallbackSource": "call-progress-events"}),
        post({"CallSid": "v3:a", "CallStatus": "completed"}),
        event("call.answered", {"call_control_id": "v3:a"}),
        event("streaming.started", {"call_control_id": "v3:a"}),
        event("streaming.failed", {"call_control_id": "v3:a", "failure_reason": "connection_failed"}),
        event("call.hangup", {"call_control_id": "v3:a"}),
        event("call.initiated", {"call_control_id": "v3:a", "direction": "outgoing"}),
    ],
)
def test_other_events_need_no_answer(telnyx: Telnyx, request_: WebhookRequest) -> None:
    assert telnyx.recognises(request_)
    update = telnyx.read_webhook(request_)
    assert isinstance(update, CallUpdate)
    assert update.call_id == "v3:a"
    answer = telnyx.acknowledge()
    assert (answer.status, answer.body, answer.requests) == (200, "", ())


def test_an_event_without_numbers_is_still_a_call(telnyx: Telnyx) -> None:
    request = event("call.initiated", {"call_control_id": "v3:a", "from": None, "direction": "incoming"})
    assert telnyx.read_webhook(request) == Call("telnyx", "v3:a", control="api")


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (post({"From": "+1"}), "no-call"),
        (post({"CallSid": "v3:a", "CallStatus": "ringing", "From": "+1\n2"}), "bad-field"),
        (post({"CallSid": "v" * 257}), "bad-field"),
        (event("call.initiated", {}), "no-call"),
        (event("call.initiated", {"call_control_id": 7}), "no-call"),
        (event("call.initiated", {"call_control_id": "v3:\x00"}), "bad-field"),
        (event("call.initiated", None), "no-call"),
        (event("call.initiated", {"call_control_id": "v3:a"}, event_type=None), "no-call"),
        (dataclasses.replace(event("x"), body=b'{"data":[]}'), "no-call"),
        (dataclasses.replace(event("x"), body=b"{"), "not-json"),
        (dataclasses.replace(event("x"), body=b'{"\xff'), "not-json"),
    ],
)
def test_other_requests_are_no_webhooks(telnyx: Telnyx, request_: WebhookRequest, kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        telnyx.read_webhook(request_)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "request_",
    [
        post({"CallSid": "CA00000000000000000000000000000001", "AccountSid": "AC00000000000000000000000000000001"}),
        post({"CallUUID": "0", "From": "1"}),
        WebhookRequest("GET", f"{URL}?CallSid=abc&CallFrom=0123"),
        dataclasses.replace(event("x"), body=b"{"),
        dataclasses.replace(event("x"), body=b'{"event":"start"}'),
        event("message.received", {"id": "m"}),
    ],
)
def test_other_webhooks_are_not_recognised(telnyx: Telnyx, request_: WebhookRequest) -> None:
    assert not telnyx.recognises(request_)


def test_a_start_is_claimed_by_pipecats_keys(telnyx: Telnyx) -> None:
    start = json.loads(ends()[0].send(STARTED))
    assert telnyx.claims(start)
    assert not telnyx.claims({**start, "start": {"callSid": "CA", "streamSid": "MZ"}})
    assert not telnyx.claims({name: value for name, value in start.items() if name != "stream_id"})
    assert not telnyx.claims({"event": "connected", "version": "1.0.0"})
    assert not telnyx.claims({**start, "start": "call_control_id"})


def test_invented_ids_have_telnyxs_shape(telnyx: Telnyx) -> None:
    call = telnyx.new_call(from_number="+1", to_number="+2", parameters={"a": "b"}, seed=bytes(range(32)))
    assert call.call_id.startswith("v3:")
    assert len(call.call_id) == len(CALL.call_id)
    assert [len(part) for part in call.stream_id.split("-")] == [8, 4, 4, 4, 12]
    assert [len(part) for part in call.account_id.split("-")] == [8, 4, 4, 4, 12]
    assert call.parameters == {"a": "b"}


# Answers by document


def stream_element(body: str) -> ElementTree.Element:
    stream = ElementTree.fromstring(body).find("Connect/Stream")
    assert stream is not None
    return stream


def test_every_harmful_default_is_written_out(telnyx: Telnyx) -> None:
    call = dataclasses.replace(CALL, parameters={"customer": "<Jörg> & 'Co'"})
    stream = stream_element(telnyx.answer(call, STREAM_URL).body)
    assert stream.attrib == {
        "url": STREAM_URL,
        "track": "inbound_track",
        "codec": "PCMU",
        "bidirectionalMode": "rtp",
        "bidirectionalCodec": "PCMU",
        "bidirectionalSamplingRate": "8000",
        "enableReconnect": "false",
    }
    assert [parameter.attrib for parameter in stream] == [{"name": "customer", "value": "<Jörg> & 'Co'"}]


@pytest.mark.parametrize(
    ("settings", "rate", "wire"),
    [
        ({"TELNYX_STREAM_CODEC": "PCMA"}, "8000", PCMA_8K),
        ({"TELNYX_STREAM_CODEC": "L16"}, "16000", L16_16K),
        ({"TELNYX_STREAM_CODEC": "L16", "TELNYX_L16_BYTE_ORDER": "little"}, "16000", L16_16K),
        (
            {"TELNYX_STREAM_CODEC": "L16", "TELNYX_L16_BYTE_ORDER": "big"},
            "16000",
            AudioFormat(Encoding.L16, 16000, big_endian=True),
        ),
    ],
)
def test_another_codec_can_be_asked_for(settings: dict[str, str], rate: str, wire: AudioFormat) -> None:
    provider = Telnyx({**settings, "TELNYX_API_KEY": "KEY1"})
    answer = provider.answer(CALL, STREAM_URL)
    attributes = stream_element(answer.body).attrib
    assert attributes["codec"] == attributes["bidirectionalCodec"] == wire.encoding
    assert attributes["bidirectionalSamplingRate"] == rate
    read = provider.read_answer(answer.body.encode(), answer.media_type)
    assert (read.format, read.outbound_format, read.findings) == (wire, wire, [])
    command = as_webhook(provider.answer(API_CALL, STREAM_URL).requests[0])
    by_request = provider.read_answer_request(command)
    assert by_request is not None
    assert (by_request.format, by_request.outbound_format, by_request.findings) == (wire, wire, [])
    carrier, bot = provider.stream(Side.CARRIER), provider.stream(Side.BOT)
    assert bot.outbound_format == wire
    assert bot.receive(carrier.send(dataclasses.replace(STARTED, format=wire))).format == wire  # type: ignore[union-attr]
    assert (bot.format, bot.outbound_format, carrier.outbound_format) == (wire, wire, wire)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TELNYX_STREAM_CODEC", "G722"), ("TELNYX_STREAM_CODEC", "pcmu"), ("TELNYX_L16_BYTE_ORDER", "be")],
)
def test_settings_that_do_not_exist(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        Telnyx({name: value})
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("call", "url", "kind"),
    [
        (CALL, "https://h/ws", "bad-url"),
        (CALL, "wss://", "bad-url"),
        (dataclasses.replace(CALL, parameters={"": "x"}), STREAM_URL, "bad-parameter"),
        (dataclasses.replace(API_CALL, parameters={"": "x"}), STREAM_URL, "bad-parameter"),
    ],
)
def test_answers_that_telnyx_could_not_use(telnyx: Telnyx, call: Call, url: str, kind: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        telnyx.answer(call, url)
    assert caught.value.kind == kind


def test_busy_is_the_documented_reject(telnyx: Telnyx) -> None:
    body = telnyx.busy().body
    assert telnyx.busy(CALL).body == body
    golden = ElementTree.canonicalize((GOLDEN / "reject-busy.xml").read_text(), strip_text=True)
    assert ElementTree.canonicalize(body, strip_text=True) == golden


def test_reading_the_documented_stream(telnyx: Telnyx) -> None:
    request = telnyx.read_answer((GOLDEN / "connect-stream.xml").read_bytes(), "text/xml; charset=utf-8")
    assert request.url == "wss://bot.example.com/ws"
    assert request.parameters == {"customer": "Jane"}
    assert (request.format, request.outbound_format) == (PCMU_8K, PCMU_8K)
    assert not request.reconnects
    assert request.findings == []


def texml(attributes: str, url: str = "wss://h/ws", around: str = "Connect", after: str = "") -> bytes:
    return f'<Response><{around}><Stream url="{url}" {attributes}/></{around}>{after}</Response>'.encode()


GOOD = {
    "codec": "PCMU",
    "bidirectionalMode": "rtp",
    "bidirectionalCodec": "PCMU",
    "bidirectionalSamplingRate": "8000",
    "enableReconnect": "false",
}


def attributes(**changes: str | None) -> str:
    merged = {**GOOD, **changes}
    return " ".join(f'{name}="{value}"' for name, value in merged.items() if value is not None)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"codec": None}, "warn", "there is no codec: Telnyx sends the codec of the call's leg"),
        ({"codec": "default"}, "warn", "codec is default: Telnyx sends the codec of the call's leg"),
        ({"codec": "G722"}, "warn", "turns nothing but PCMU and PCMA into each other"),
        ({"codec": "mulaw"}, "fail", "codec is 'mulaw', which Telnyx does not know"),
        ({"bidirectionalMode": None}, "fail", "there is no bidirectionalMode: Telnyx takes what the bot sends for MP3"),
        ({"bidirectionalMode": "mp3"}, "fail", "bidirectionalMode is 'mp3': Telnyx takes"),
        ({"bidirectionalSamplingRate": "16000"}, "fail", "PCMU goes with 8000"),
        ({"bidirectionalSamplingRate": "fast"}, "fail", "PCMU goes with 8000"),
        ({"enableReconnect": None}, "warn", "dials the stream again"),
        ({"enableReconnect": "true"}, "warn", "dials the stream again"),
        ({"track": "both_tracks"}, "warn", "hears itself"),
        ({"track": "outbound_track"}, "fail", "does not hear the caller"),
        ({"bidirectionalCodec": "L16", "bidirectionalSamplingRate": None}, "warn", "takes the bot's audio for 8000 Hz"),
    ],
)
def test_what_telnyx_would_spoil_is_found(
    telnyx: Telnyx, changes: dict[str, str | None], level: str, words: str
) -> None:
    request = telnyx.read_answer(texml(attributes(**changes)), "application/xml")
    (found,) = request.findings
    assert (found.id, found.level) == ("W4", level)
    assert words in found.message
    assert request.reconnects == (changes.get("enableReconnect", "false") != "false")


def test_every_rate_that_telnyxs_own_library_knows_is_one(telnyx: Telnyx) -> None:
    from telnyx.types import StreamBidirectionalSamplingRate

    rates = typing.get_args(StreamBidirectionalSamplingRate)
    assert len(rates) > 3
    for rate in rates:
        changes = {"bidirectionalCodec": "L16", "bidirectionalSamplingRate": str(rate)}
        request = telnyx.read_answer(texml(attributes(**changes)), "application/xml")
        assert request.findings == []
        assert request.outbound_format is not None
        assert request.outbound_format.sample_rate == rate


def test_the_bare_stream_is_the_worst_of_all(telnyx: Telnyx) -> None:
    request = telnyx.deviating({"leg-codec": "PCMA"}).read_answer(texml(""), "application/xml")
    assert [found.level for found in request.findings] == ["fail", "warn", "warn"]
    assert (request.format, request.outbound_format) == (PCMA_8K, PCMU_8K)
    assert request.reconnects


@pytest.mark.parametrize(
    ("codec", "leg", "expected"),
    [
        (None, None, PCMU_8K),
        (None, "PCMU", PCMU_8K),
        (None, "PCMA", PCMA_8K),
        ("default", "PCMA", PCMA_8K),
        ("OPUS", "PCMA", PCMA_8K),
        ("PCMU", "PCMA", PCMU_8K),
        ("PCMA", "PCMU", PCMA_8K),
        ("L16", "PCMA", L16_16K),
    ],
)
def test_the_legs_codec_counts_where_the_answer_names_none(
    telnyx: Telnyx, codec: str | None, leg: str | None, expected: AudioFormat
) -> None:
    quirks = {"leg-codec": leg} if leg else None
    request = telnyx.deviating(quirks).read_answer(texml(attributes(codec=codec)), "application/xml")
    assert request.format == expected
    assert request.outbound_format == PCMU_8K


@pytest.mark.parametrize(
    ("codec", "rate", "expected"),
    [
        ("PCMA", None, PCMA_8K),
        (None, None, PCMU_8K),
        ("L16", "16000", L16_16K),
        ("L16", "22050", AudioFormat(Encoding.L16, 22050)),
        ("L16", "24000", AudioFormat(Encoding.L16, 24000)),
        ("L16", None, AudioFormat(Encoding.L16, 8000)),
    ],
)
def test_the_bots_own_format(telnyx: Telnyx, codec: str | None, rate: str | None, expected: AudioFormat) -> None:
    body = texml(attributes(bidirectionalCodec=codec, bidirectionalSamplingRate=rate))
    assert telnyx.read_answer(body, "application/xml").outbound_format == expected


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (texml(attributes(bidirectionalCodec="G722")), "unsupported-codec", "a test call cannot play"),
        (texml(attributes(bidirectionalCodec="mulaw")), "unsupported-codec", "Telnyx does not know"),
        (texml("", url=""), "bad-url", "no url"),
        (texml("", url="https://h/ws"), "bad-url", "must be wss"),
        (texml("", url="/ws"), "bad-url", "relative"),
        (texml("", url="wss://h:x/"), "bad-url", "not a URL"),
        (b"<Response><Reject/></Response>", "rejected", "rejected"),
        (b'<Response><Reject reason="busy"/></Response>', "rejected", "busy"),
        (b"<Response><Hangup/></Response>", "hung-up", "hung up"),
        (b"<Response><Redirect>https://h/x</Redirect></Response>", "redirected", "Redirect"),
        (b"<Response/>", "no-stream", "empty <Response>"),
        (b"<Response><Say>Hi</Say></Response>", "no-stream", "holds <Say>"),
        (b"<Response><Connect><AIAssistant/></Connect></Response>", "no-stream", "<Connect> holds <AIAssistant>"),
        (b"<Twiml/>", "bad-xml", "root"),
        (b"", "bad-xml", "empty"),
        (b'{"url":"wss://h"}', "bad-xml", "not XML"),
        (b" " * 70_000, "too-large", "70000 bytes"),
    ],
)
def test_answers_without_a_stream(telnyx: Telnyx, body: bytes, kind: str, message: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        telnyx.read_answer(body, "application/xml")
    assert caught.value.kind == kind
    assert message in caught.value.message


def test_a_relative_url_starts_at_the_document(telnyx: Telnyx) -> None:
    request = telnyx.read_answer(texml(attributes(), url="/ws?a=1"), "application/xml", base_url=URL)
    assert request.url == "wss://voice.example.com/ws?a=1"
    assert request.findings == []


@pytest.mark.parametrize(
    ("body", "media_type", "words"),
    [
        (texml(attributes(), url="ws://h/ws"), "text/xml", "ws://"),
        (texml(attributes()), "text/html", "send application/xml"),
        (texml(attributes()).replace(b"/></Connect>", b"/><Other/></Connect>"), "text/xml", "2 nouns"),
        (texml(attributes(), around="Start"), "text/xml", "does not wait for the stream"),
        (
            texml(attributes()).replace(b"/></Connect>", b'><Parameter value="x"/></Stream></Connect>'),
            "text/xml",
            "no name",
        ),
    ],
)
def test_what_else_is_found(telnyx: Telnyx, body: bytes, media_type: str, words: str) -> None:
    (found,) = telnyx.read_answer(body, media_type).findings
    assert found.id == "W3"
    assert words in found.message


def test_start_goes_on_at_once(telnyx: Telnyx) -> None:
    request = telnyx.read_answer((GOLDEN / "start-stream.xml").read_bytes(), "text/xml")
    assert request.then == ["Pause: 40 s"]
    assert [(found.id, found.level) for found in request.findings if "<Start>" in found.message] == [("W3", "warn")]
    alone = telnyx.read_answer(texml(attributes(), around="Start"), "text/xml")
    assert [found.level for found in alone.findings] == ["fail"]


def test_verbs_before_and_after_are_told(telnyx: Telnyx) -> None:
    body = texml(attributes(), after="<Say>Bye</Say>").replace(b"<Response>", b"<Response><Say>Hi</Say>")
    request = telnyx.read_answer(body, "text/xml")
    assert (request.skipped, request.then) == (["Say: Hi"], ["Say: Bye"])


# Answers by request


def as_webhook(request: HttpRequest) -> WebhookRequest:
    """What the API gets of a request."""
    return WebhookRequest(request.method, request.url, request.headers, request.body)


def test_a_call_control_call_is_answered_by_a_request(telnyx: Telnyx) -> None:
    call = dataclasses.replace(API_CALL, parameters={"customer": "Jörg"})
    answer = telnyx.answer(call, STREAM_URL)
    assert (answer.status, answer.body) == (200, "")
    (request,) = answer.requests
    assert request.method == "POST"
    assert request.url == f"https://api.telnyx.com/v2/calls/v3%3A{CALL.call_id[3:]}/actions/answer"
    assert request.headers["authorization"] == "Bearer KEY1"
    assert request.headers["content-type"] == "application/json"
    content = json.loads(request.body)
    command_id = content.pop("command_id")
    assert content == {
        "stream_url": STREAM_URL,
        "stream_track": "inbound_track",
        "stream_codec": "PCMU",
        "stream_bidirectional_mode": "rtp",
        "stream_bidirectional_codec": "PCMU",
        "stream_bidirectional_sampling_rate": 8000,
        "custom_parameters": [{"name": "customer", "value": "Jörg"}],
    }
    # The event that came twice is answered once.
    assert json.loads(telnyx.answer(call, "wss://h/other").requests[0].body)["command_id"] == command_id
    other = dataclasses.replace(API_CALL, call_id="v3:other")
    assert json.loads(telnyx.answer(other, STREAM_URL).requests[0].body)["command_id"] != command_id


def test_the_request_is_what_telnyxs_library_sends(telnyx: Telnyx) -> None:
    import telnyx as telnyx_library

    (ours,) = telnyx.answer(API_CALL, STREAM_URL).requests
    content = json.loads(ours.body)
    sent: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, json={"data": {"result": "ok"}})

    client = telnyx_library.Telnyx(
        api_key="KEY1",
        base_url="https://api.telnyx.com/v2",
        http_client=httpx.Client(transport=httpx.MockTransport(take)),
    )
    # The library's answer command knows all but this one of our settings.
    rate = content.pop("stream_bidirectional_sampling_rate")
    client.calls.actions.answer(CALL.call_id, **content, extra_body={"stream_bidirectional_sampling_rate": rate})
    (theirs,) = sent
    assert theirs.method == ours.method
    assert unquote(str(theirs.url)) == unquote(ours.url)
    assert theirs.headers["authorization"] == ours.headers["authorization"]
    assert json.loads(theirs.content) == json.loads(ours.body)


def test_every_setting_is_one_that_telnyxs_library_knows(telnyx: Telnyx) -> None:
    call = dataclasses.replace(API_CALL, parameters={"a": "b"})
    content = json.loads(telnyx.answer(call, STREAM_URL).requests[0].body)
    from telnyx.types.calls.action_answer_params import ActionAnswerParams
    from telnyx.types.calls.action_start_streaming_params import ActionStartStreamingParams

    answer = typing.get_type_hints(ActionAnswerParams)
    # The library has these two for the command that streams a call which was answered before.
    streaming = typing.get_type_hints(ActionStartStreamingParams)
    assert set(content) - set(answer) == {"stream_bidirectional_sampling_rate", "custom_parameters"}
    assert set(content) <= set(answer) | set(streaming)
    for name in ("stream_codec", "stream_bidirectional_mode", "stream_bidirectional_codec", "stream_track"):
        assert content[name] in typing.get_args(answer[name])


def test_another_base_url_is_used_as_it_is() -> None:
    provider = Telnyx({"TELNYX_API_KEY": "K", "TELNYX_BASE_URL": "http://127.0.0.1:1/"})
    hang_up = provider.hang_up(API_CALL)
    assert hang_up is not None
    assert hang_up.url.startswith("http://127.0.0.1:1/calls/v3%3A")
    assert hung_up(provider, as_webhook(hang_up)) == CALL.call_id


def test_without_the_apis_key_nothing_is_answered() -> None:
    with pytest.raises(ConfigError) as caught:
        Telnyx({}).answer(API_CALL, STREAM_URL)
    assert caught.value.hint is not None
    assert "TELNYX_API_KEY" in caught.value.hint
    assert Telnyx({}).hang_up(API_CALL) is None
    assert Telnyx({}).busy(API_CALL).requests == ()


def test_a_call_control_call_is_turned_away_by_a_request(telnyx: Telnyx) -> None:
    (request,) = telnyx.busy(API_CALL).requests
    assert request.url.endswith("/actions/reject")
    assert json.loads(request.body)["cause"] == "USER_BUSY"


def test_an_answer_command_is_read_back(telnyx: Telnyx) -> None:
    call = dataclasses.replace(API_CALL, parameters={"customer": "Jörg"})
    command = as_webhook(telnyx.answer(call, STREAM_URL).requests[0])
    request = telnyx.read_answer_request(command, call_id=CALL.call_id)
    assert request is not None
    assert request.url == STREAM_URL
    assert request.parameters == {"customer": "Jörg"}
    assert (request.format, request.outbound_format) == (PCMU_8K, PCMU_8K)
    assert (request.findings, request.reconnects, request.headers) == ([], False, {})
    # Closing the stream does not end the call.
    assert request.then
    assert telnyx.read_answer_request(command, call_id="v3:other") is None


def command(content: Any, action: str = "answer", method: str = "POST") -> WebhookRequest:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return WebhookRequest(method, f"http://127.0.0.1:1/v2/calls/v3:a/actions/{action}", {}, body)


def test_what_an_answer_command_leaves_open(telnyx: Telnyx) -> None:
    bare = command({"stream_url": "wss://h/ws?a=1", "stream_auth_token": "abc"})
    request = telnyx.deviating({"leg-codec": "PCMA"}).read_answer_request(bare)
    assert request is not None
    assert request.url == "wss://h/ws?a=1"
    assert request.headers == {"Authorization": "Bearer abc"}
    assert (request.format, request.outbound_format) == (PCMA_8K, PCMU_8K)
    assert [(found.id, found.level) for found in request.findings] == [("W4", "fail"), ("W4", "warn")]
    assert "stream_bidirectional_mode" in request.findings[0].message


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"{", "not-json"),
        (b"[]", "not-object"),
        ({}, "no-stream"),
        ({"stream_url": 7}, "no-stream"),
        ({"stream_url": "https://h"}, "bad-url"),
        ({"stream_url": "wss://h", "stream_bidirectional_codec": "OPUS"}, "unsupported-codec"),
        ({"stream_url": "wss://h", "custom_parameters": "x"}, "bad-start"),
    ],
)
def test_answer_commands_without_a_stream(telnyx: Telnyx, content: Any, kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        telnyx.read_answer_request(command(content))
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "request_",
    [
        command({}, "hangup"),
        command({}, method="GET"),
        WebhookRequest("POST", "http://h/v2/calls"),
        WebhookRequest("POST", "http://h/v2/texml/Accounts/a/Calls/v3:a"),
    ],
)
def test_other_requests_answer_nothing(telnyx: Telnyx, request_: WebhookRequest) -> None:
    assert telnyx.read_answer_request(request_) is None


def test_a_texml_call_is_hung_up_by_closing_its_stream(telnyx: Telnyx) -> None:
    assert telnyx.hang_up(CALL) is None


def test_a_hang_up_is_read_back(telnyx: Telnyx) -> None:
    request = telnyx.hang_up(API_CALL)
    assert request is not None
    assert request.url == f"https://api.telnyx.com/v2/calls/v3%3A{CALL.call_id[3:]}/actions/hangup"
    assert request.headers["authorization"] == "Bearer KEY1"
    assert hung_up(telnyx, as_webhook(request)) == CALL.call_id
    # As pipecat's serializer writes it.
    assert hung_up(telnyx, command(b"", "hangup")) == "v3:a"


@pytest.mark.parametrize(
    ("body", "call_id"), [(b"Status=completed", "v3:a"), (b"Status=in-progress", None), (b"Url=http%3A%2F%2Fh", None)]
)
def test_a_texml_hang_up_is_read(telnyx: Telnyx, body: bytes, call_id: str | None) -> None:
    url = "http://127.0.0.1:1/v2/texml/Accounts/acc/Calls/v3%3Aa"
    assert hung_up(telnyx, WebhookRequest("POST", url, {"content-type": FORM_TYPE}, body)) == call_id
    assert hung_up(telnyx, WebhookRequest("GET", url)) is None
    assert hung_up(telnyx, command({})) is None


def test_what_the_rest_of_wsvoice_is_told(telnyx: Telnyx) -> None:
    assert telnyx.credential_names[0] == "TELNYX_PUBLIC_KEY"
    assert not telnyx.ordered
    assert telnyx.cleared_marks == "returned"
    assert not telnyx.has_credentials(WebhookRequest("GET", STREAM_URL, {"authorization": "Bearer x"}))
    assert telnyx.upgrade_error("timeout") == "connection_failed"
    assert set(telnyx.quirks) == {"reorder", "leg-codec", "webhook"}
    for quirk in telnyx.quirks.values():
        assert not quirk.choices or quirk.default in quirk.choices


# The stream


def ends(started: StreamStarted = STARTED) -> tuple[TelnyxStream, TelnyxStream]:
    carrier, bot = TelnyxStream(Side.CARRIER), TelnyxStream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


def test_the_carrier_counts_every_message_but_connected() -> None:
    carrier = TelnyxStream(Side.CARRIER)
    assert json.loads(carrier.send(Connected())) == {"event": "connected", "version": "1.0.0"}
    sent = [STARTED, Audio(bytes(160)), Audio(bytes(160)), Audio(bytes(160), "outbound"), Digit("1"), Mark("m")]
    messages = [json.loads(carrier.send(dataclasses.replace(each, sequence=None))) for each in sent]
    assert [message["sequence_number"] for message in messages] == ["1", "2", "3", "4", "5", "6"]
    media = [message["media"] for message in messages if message["event"] == "media"]
    assert [(each["track"], each["chunk"], each["timestamp"]) for each in media] == [
        ("inbound", "1", "20"),
        ("inbound", "2", "40"),
        ("outbound", "1", "20"),
    ]
    assert json.loads(carrier.send(StreamStopped(reason="callended")))["sequence_number"] == "7"


def test_the_start_has_the_documented_keys() -> None:
    golden = json.loads((GOLDEN / "start.json").read_text())["message"]
    sent = json.loads(ends()[0].send(STARTED))
    assert set(sent) == set(golden)
    assert set(golden["start"]) - set(sent["start"]) == {"client_state"}
    assert set(sent["start"]) <= set(golden["start"])
    assert sent["start"]["media_format"] == golden["start"]["media_format"]
    for name, value in sent["start"].items():
        assert type(value) is type(golden["start"][name])


@given(payload=st.binary(max_size=400), track=st.sampled_from(["inbound", "outbound"]), number=st.integers(0, 2**50))
def test_audio_comes_through_with_its_counters(payload: bytes, track: str, number: int) -> None:
    carrier, bot = ends()
    audio = Audio(payload, track, number, number + 1, number + 2)
    assert bot.receive(carrier.send(audio)) == audio


@given(
    name=st.text(min_size=1, max_size=50),
    stream_id=st.text(min_size=1, max_size=50),
    parameters=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=3),
)
def test_any_text_comes_through(name: str, stream_id: str, parameters: dict[str, str]) -> None:
    started = dataclasses.replace(STARTED, stream_id=stream_id, parameters=parameters)
    carrier, bot = ends(started)
    assert bot.receive(carrier.send(started)) == started
    assert bot.receive(carrier.send(Mark(name, 7))) == Mark(name, 7)
    assert carrier.receive(bot.send(Mark(name))) == Mark(name)
    assert bot.receive(carrier.send(Audio(b"x", "inbound", 1, 2, 3))) == Audio(b"x", "inbound", 1, 2, 3)


def start_message(media_format: Any, **start: Any) -> str:
    content = {"call_control_id": "v3:a", "media_format": media_format, **start}
    return json.dumps({"event": "start", "stream_id": "s", "start": content})


@pytest.mark.parametrize(
    ("media_format", "expected"),
    [
        (None, PCMU_8K),
        ({}, PCMU_8K),
        ({"encoding": "PCMU"}, PCMU_8K),
        ({"encoding": None, "sample_rate": None}, PCMU_8K),
        ({"encoding": "PCMA", "sample_rate": "8000"}, PCMA_8K),
        ({"encoding": "L16", "sample_rate": 16000}, L16_16K),
        ({"encoding": "L16"}, L16_16K),
        ({"encoding": "L16", "sample_rate": 22050}, AudioFormat(Encoding.L16, 22050)),
        ({"encoding": "L16", "sample_rate": 24000}, AudioFormat(Encoding.L16, 24000)),
    ],
)
def test_the_callers_format_is_the_starts_and_the_bots_the_answers(media_format: Any, expected: AudioFormat) -> None:
    bot = TelnyxStream(Side.BOT)
    started = bot.receive(start_message(media_format))
    assert isinstance(started, StreamStarted)
    assert started.format == bot.format == expected
    assert bot.outbound_format == PCMU_8K


@pytest.mark.parametrize("codec", ["G722", "OPUS", "AMR-WB"])
def test_a_codec_that_cannot_be_read_says_what_mends_it(codec: str) -> None:
    bot = TelnyxStream(Side.BOT)
    with pytest.raises(RemoteProtocolError) as caught:
        bot.receive(start_message({"encoding": codec, "sample_rate": 16000, "channels": 1}))
    assert caught.value.kind == "unsupported-codec"
    assert codec in caught.value.message
    assert '<Stream codec="PCMU">' in caught.value.message
    with pytest.raises(LocalProtocolError):
        bot.send(Clear())


@pytest.mark.parametrize(
    "media_format",
    [
        "PCMU",
        [],
        {"encoding": "audio/x-mulaw"},
        {"encoding": ["PCMU"]},
        {"encoding": "PCMU", "sample_rate": 16000},
        {"encoding": "PCMA", "sample_rate": 44100},
        {"encoding": "L16", "sample_rate": 11127},
        {"encoding": "L16", "sample_rate": "16k"},
        {"encoding": "L16", "sample_rate": 0},
    ],
)
def test_formats_that_telnyx_does_not_stream(media_format: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        TelnyxStream(Side.BOT).receive(start_message(media_format))
    assert caught.value.kind == "bad-start"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, {}),
        ({"a": 1, "b": True, "c": None}, {"a": "1", "b": "true", "c": "null"}),
        ([{"name": "a", "value": "b"}, {"value": "c"}, "d"], {"a": "b"}),
        (7, {}),
        ({"a": [], "b": {}, "c": "d"}, {"c": "d"}),
    ],
)
def test_custom_parameters_are_texts(parameters: Any, expected: dict[str, str]) -> None:
    started = TelnyxStream(Side.BOT).receive(start_message({}, custom_parameters=parameters))
    assert isinstance(started, StreamStarted)
    assert started.parameters == expected


@pytest.mark.parametrize(
    ("side", "sent", "kind"),
    [
        (Side.CARRIER, Audio(b"", track="sideways"), "bad-track"),
        (Side.CARRIER, Digit("12"), "bad-dtmf"),
        (Side.CARRIER, Mark(""), "bad-mark"),
        (Side.CARRIER, Clear(), "no-message"),
        (Side.CARRIER, Cleared(), "no-message"),
        (Side.CARRIER, StreamError("bad"), "bad-error"),
        (Side.CARRIER, StreamStarted("", "c"), "bad-start"),
        (Side.CARRIER, StreamStarted("s", ""), "bad-start"),
        (Side.CARRIER, StreamStarted("s", "c", format=AudioFormat(Encoding.PCMU, 16000)), "bad-format"),
        (Side.BOT, Mark(""), "bad-mark"),
        (Side.BOT, StreamError("100004"), "no-message"),
        (Side.BOT, Connected(), "no-message"),
    ],
)
def test_what_an_end_cannot_say(side: Side, sent: Event, kind: str) -> None:
    stream = dict(zip((Side.CARRIER, Side.BOT), ends(), strict=True))[side]
    with pytest.raises(LocalProtocolError) as caught:
        stream.send(sent)
    assert caught.value.kind == kind


@pytest.mark.parametrize("sent", [Audio(b"x"), Digit("1"), Mark("m"), StreamStopped(), StreamError("100002")])
def test_a_carrier_says_nothing_before_the_start(sent: Event) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        TelnyxStream(Side.CARRIER).send(sent)
    assert caught.value.kind == "not-started"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"{}", "binary"),
        ("{", "not-json"),
        ("[]", "not-object"),
        ("{}", "no-event"),
        ('{"event":"media"}', "bad-media"),
        ('{"event":"media","media":{"payload":"*"}}', "bad-base64"),
        ('{"event":"start"}', "bad-start"),
        ('{"event":"start","start":{"call_control_id":"v3:a"}}', "bad-start"),
        ('{"event":"start","stream_id":"s","start":{}}', "bad-start"),
        ('{"event":"dtmf","dtmf":{"digit":"E"}}', "bad-dtmf"),
        ('{"event":"mark","mark":{}}', "bad-mark"),
        ('{"event":"error","payload":7}', "bad-error"),
    ],
)
def test_broken_messages_have_kinds(message: str | bytes, kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        ends()[1].receive(message)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"event": "dtmf", "dtmf": {"digit": 5}, "sequence_number": 7}, Digit("5", 7)),
        ({"event": "stop"}, StreamStopped()),
        ({"event": "connected"}, Connected()),
        ({"event": "error", "payload": {"code": "100005", "title": 7}}, StreamError("100005")),
        ({"event": "error", "payload": {}}, StreamError("")),
        ({"event": "error", "payload": {"code": 1, "detail": "x" * 900}}, StreamError("1", "", "x" * 200)),
        ({"event": "surprise"}, Unknown("surprise")),
    ],
)
def test_what_a_bot_tolerates(message: dict[str, Any], expected: Event) -> None:
    assert ends()[1].receive(json.dumps(message)) == expected


def test_l16_of_odd_length_is_no_audio() -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=L16_16K))
    with pytest.raises(RemoteProtocolError, match="in the middle of a sample") as caught:
        bot.receive(carrier.send(Audio(bytes(641))))
    assert caught.value.kind == "bad-media"
    # The bot's format is another one.
    assert carrier.receive(bot.send(Audio(bytes(641)))) == Audio(bytes(641))
    carrier.outbound_format = L16_16K
    with pytest.raises(RemoteProtocolError, match="in the middle of a sample"):
        carrier.receive(bot.send(Audio(bytes(641))))


@pytest.mark.parametrize(
    ("message", "code", "title"),
    [
        ('{"event":"media","media":{"payload":"*"}}', "100004", "invalid_media"),
        ('{"event":"media","media":null}', "100004", "invalid_media"),
        ("not json", "100003", "malformed_frame"),
        (b"binary", "100003", "malformed_frame"),
        ('{"event":"mark"}', "100003", "malformed_frame"),
    ],
)
def test_a_carrier_says_what_it_could_not_use(message: str | bytes, code: str, title: str) -> None:
    carrier, bot = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        carrier.receive(message)
    reply = carrier.error_reply(caught.value)
    assert reply == StreamError(code, title, caught.value.message)
    assert bot.receive(carrier.send(reply)) == reply
    assert json.loads(carrier.send(reply))["payload"]["code"] == int(code)


@pytest.mark.parametrize(
    ("payload", "level", "words"),
    [
        (b"", "warn", "empty payload"),
        (b"\xff" * 159, "warn", "less than 20 ms"),
        (b"\xff" * 240_001, "fail", "more than 30 s"),
        (b"RIFF" + bytes(400), "fail", "WAV header"),
    ],
)
def test_what_a_bot_does_wrong_is_found_once(payload: bytes, level: str, words: str) -> None:
    carrier, bot = ends()
    assert carrier.receive(bot.send(Audio(payload))) == Audio(payload)
    (found,) = carrier.findings()
    assert (found.id, found.level) == ("M1", level)
    assert words in found.message
    assert carrier.findings() == []


def test_the_length_of_a_piece_is_that_of_the_bots_format() -> None:
    carrier, bot = ends()
    carrier.outbound_format = L16_16K
    carrier.receive(bot.send(Audio(bytes(640))))
    assert carrier.findings() == []
    carrier.receive(bot.send(Audio(bytes(638))))
    assert len(carrier.findings()) == 1


def test_ordinary_messages_of_a_bot_are_not_found_fault_with() -> None:
    carrier, bot = ends()
    for each in (Audio(b"\xff" * 160), Audio(b"\xff" * 240_000), Mark("m"), Clear()):
        assert carrier.receive(bot.send(each)) == each
    assert carrier.findings() == []


def test_an_unknown_message_of_a_bots_is_found() -> None:
    carrier, _ = ends()
    assert carrier.receive('{"event":"hangup"}') == Unknown("hangup")
    assert "'hangup'" in carrier.findings()[0].message


# Agreement with pipecat


async def pipecat_serializer(encoding: str) -> TelnyxFrameSerializer:
    serializer = TelnyxFrameSerializer(
        STARTED.stream_id,
        outbound_encoding=encoding,
        inbound_encoding=encoding,
        params=TelnyxFrameSerializer.InputParams(auto_hang_up=False),
    )
    setup = FrameProcessorSetup(
        clock=SystemClock(),
        task_manager=TaskManager(),
        pipeline_worker=None,  # type: ignore[arg-type]
        audio_in_sample_rate=8000,
        audio_out_sample_rate=8000,
    )
    await serializer.setup(setup)
    return serializer


def serialize(frame: Frame, encoding: str = "PCMU") -> str:
    async def run() -> str:
        message = await (await pipecat_serializer(encoding)).serialize(frame)
        assert isinstance(message, str)
        return message

    return asyncio.run(run())


def deserialize(message: str, encoding: str = "PCMU") -> Frame | None:
    async def run() -> Frame | None:
        return await (await pipecat_serializer(encoding)).deserialize(message)

    return asyncio.run(run())


PCM = b"".join((1000 * (n % 21 - 10)).to_bytes(2, "little", signed=True) for n in range(160))
SPEECH = OutputAudioRawFrame(audio=PCM, sample_rate=8000, num_channels=1)
BOTH_LAWS = pytest.mark.parametrize("wire", [PCMU_8K, PCMA_8K], ids=["PCMU", "PCMA"])


@BOTH_LAWS
def test_our_carrier_understands_pipecat(wire: AudioFormat) -> None:
    carrier, _ = ends()
    assert carrier.receive(serialize(SPEECH, wire.encoding.value)) == Audio(wire.encode(PCM))
    assert carrier.receive(serialize(InterruptionFrame())) == Clear()
    assert carrier.findings() == []


@BOTH_LAWS
def test_our_bot_sends_what_pipecat_sends(wire: AudioFormat) -> None:
    _, bot = ends()
    ours = json.loads(bot.send(Audio(wire.encode(PCM))))
    assert ours == json.loads(serialize(SPEECH, wire.encoding.value))
    assert json.loads(bot.send(Clear())) == json.loads(serialize(InterruptionFrame()))


@BOTH_LAWS
def test_pipecat_understands_our_carriers_audio(wire: AudioFormat) -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=wire))
    message = carrier.send(Audio(wire.encode(PCM)))
    frame = deserialize(message, wire.encoding.value)
    assert isinstance(frame, InputAudioRawFrame)
    ours = bot.receive(message)
    assert isinstance(ours, Audio)
    assert frame.audio == bot.format.decode(ours.payload)
    assert frame.sample_rate == 8000


@pytest.mark.parametrize("digit", "0123456789*#")
def test_pipecat_understands_our_carriers_digits(digit: str) -> None:
    frame = deserialize(ends()[0].send(Digit(digit)))
    assert isinstance(frame, InputDTMFFrame)
    assert frame.button == KeypadEntry(digit)


@pytest.mark.parametrize("sent", [Connected(), STARTED, Mark("m"), StreamError("100004"), StreamStopped()])
def test_pipecat_ignores_what_carries_no_audio(sent: Event) -> None:
    assert deserialize(ends()[0].send(sent)) is None


class Handshake:
    """What pipecat's parser needs of a WebSocket: the texts, one after another."""

    def __init__(self, *messages: str) -> None:
        self._messages = messages

    async def iter_text(self) -> AsyncIterator[str]:
        for message in self._messages:
            yield message


@BOTH_LAWS
def test_pipecat_reads_our_handshake(telnyx: Telnyx, wire: AudioFormat) -> None:
    answer = telnyx.answer(dataclasses.replace(CALL, parameters={"customer": "Jörg"}), STREAM_URL)
    request = telnyx.read_answer(answer.body.encode(), answer.media_type)
    carrier = telnyx.stream(Side.CARRIER)
    started = dataclasses.replace(STARTED, parameters=request.parameters, format=wire)
    handshake = Handshake(carrier.send(Connected()), carrier.send(started))
    kind, call_data = asyncio.run(parse_telephony_websocket(handshake))  # type: ignore[arg-type]
    assert kind == "telnyx"
    assert call_data.stream_id == STARTED.stream_id
    assert call_data.call_id == CALL.call_id
    assert (call_data.from_number, call_data.to_number) == ("+15550100001", "+15550100002")
    assert call_data.outbound_encoding == wire.encoding
