"""
Twilio, held against its documentation, its own Python library, and pipecat's serializer.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree

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
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.utils.asyncio.task_manager import TaskManager
from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import VoiceResponse

from tests.providers.commands import hung_up
from tests.providers.companies import Twilio, TwilioStream
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import Side, WebhookRequest
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
from wsvoice.providers.twilio import stream

GOLDEN = Path(__file__).parent.parent / "golden" / "twilio"
NOW = 0.0
FORM_TYPE = "application/x-www-form-urlencoded; charset=UTF-8"

TOKEN = "wsvoice_test_auth_token_0000001"
FORM = {
    "AccountSid": "AC00000000000000000000000000000001",
    "ApiVersion": "2010-04-01",
    "CallSid": "CA00000000000000000000000000000001",
    "CallStatus": "ringing",
    "Called": "+15550100002",
    "Caller": "+15550100001",
    "Direction": "inbound",
    "From": "+15550100001",
    "To": "+15550100002",
}
CALL = Call(
    provider="twilio",
    call_id=FORM["CallSid"],
    account_id=FORM["AccountSid"],
    from_number=FORM["From"],
    to_number=FORM["To"],
)
STARTED = StreamStarted(
    stream_id="MZ00000000000000000000000000000001",
    call_id=FORM["CallSid"],
    account_id=FORM["AccountSid"],
    from_number="+15550100001",
    to_number="+15550100002",
    parameters={"from_number": "+15550100001", "to_number": "+15550100002", "customer": "Jörg"},
    sequence=1,
)


@pytest.fixture
def twilio() -> Twilio:
    return Twilio({"TWILIO_AUTH_TOKEN": TOKEN})


def post(url: str, fields: Any, **headers: str) -> WebhookRequest:
    return WebhookRequest(
        "POST",
        url,
        {"content-type": FORM_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}},
        urlencode(fields).encode(),
    )


def get(url: str, **headers: str) -> WebhookRequest:
    return WebhookRequest("GET", url, {name.replace("_", "-"): value for name, value in headers.items()})


def signature_of(request: WebhookRequest) -> str:
    return request.headers["x-twilio-signature"]


# Signatures: published and reproduced vectors


@pytest.mark.parametrize(
    ("request_", "signature"),
    [
        pytest.param(post("https://voice.example.com/twilio", FORM), "uUyiaE3FKJlQHGfyse0SaerEzPo=", id="post"),
        pytest.param(
            get("https://voice.example.com/twilio?CallSid=CA00000000000000000000000000000001&From=%2B15550100001"),
            "5Fg3FkmS735Z2SoX6QJvWrtMkZ4=",
            id="get",
        ),
        pytest.param(post("https://voice.example.com:8443/twilio", FORM), "La+9f2d9GtAuP0cM2jn50iDPO1k=", id="port"),
    ],
)
def test_webhook_vectors(twilio: Twilio, request_: WebhookRequest, signature: str) -> None:
    signed = twilio.sign(request_, now=NOW)
    assert signature_of(signed) == signature
    twilio.verify(signed, now=NOW)


def test_the_published_example() -> None:
    # https://www.twilio.com/docs/usage/security#validating-requests
    fields = {
        "CallSid": "CA1234567890ABCDE",
        "Caller": "+14158675309",
        "Digits": "1234",
        "From": "+14158675309",
        "To": "+18005551212",
    }
    request = post("https://mycompany.com/myapp.php?foo=1&bar=2", fields)
    twilio = Twilio({"TWILIO_AUTH_TOKEN": "12345"})
    assert signature_of(twilio.sign(request, now=NOW)) == "RSOYDt4T1cUTdK1PDd93/VVr8B8="
    twilio.verify(twilio.sign(request, now=NOW), now=NOW)


def test_the_json_vector(twilio: Twilio) -> None:
    body = b'{"CallSid":"CA00000000000000000000000000000001","From":"+15550100001"}'
    headers = {"content-type": "application/json"}
    plain = WebhookRequest("POST", "https://voice.example.com/twilio", headers, body)
    signed = twilio.sign(plain, now=NOW)
    assert signed.url == (
        "https://voice.example.com/twilio?bodySHA256=e8bc34064d8e02cf3be2e0c74a501661c66f62e39a21dc208abb2d736fb23e68"
    )
    assert signature_of(signed) == "oPmObBId5O4G9vSwSYIl+7kq/yk="
    twilio.verify(signed, now=NOW)
    with pytest.raises(SignatureError, match="not the one that was signed"):
        twilio.verify(dataclasses.replace(signed, body=body + b" "), now=NOW)


def test_a_json_body_that_is_not_covered_is_refused(twilio: Twilio) -> None:
    # The signature of a GET, played back with a body of the forger's own.
    stolen = signature_of(twilio.sign(get("https://voice.example.com/twilio"), now=NOW))
    request = WebhookRequest(
        "POST",
        "https://voice.example.com/twilio",
        {"content-type": "application/json", "x-twilio-signature": stolen},
        b'{"CallSid":"CA1"}',
    )
    with pytest.raises(SignatureError, match="does not cover it"):
        twilio.verify(request, now=NOW)


def test_the_port_may_be_in_the_signed_url_or_not(twilio: Twilio) -> None:
    without, with_port = "uUyiaE3FKJlQHGfyse0SaerEzPo=", "La+9f2d9GtAuP0cM2jn50iDPO1k="
    for url in ("https://voice.example.com/twilio", "https://voice.example.com:8443/twilio"):
        twilio.verify(post(url, FORM, x_twilio_signature=without), now=NOW)
    twilio.verify(post("https://voice.example.com:8443/twilio", FORM, x_twilio_signature=with_port), now=NOW)
    with pytest.raises(SignatureError):
        twilio.verify(post("https://voice.example.com/twilio", FORM, x_twilio_signature=with_port), now=NOW)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@voice.example.com/twilio",
        "https://voice.example.com/twilio#ct=2000&rc=1",
        "https://voice.example.com:443/twilio",
    ],
)
def test_user_info_and_fragment_are_not_signed(twilio: Twilio, url: str) -> None:
    request = post(url, FORM, x_twilio_signature="uUyiaE3FKJlQHGfyse0SaerEzPo=")
    twilio.verify(request, now=NOW)


@pytest.mark.parametrize(
    ("signed_url", "seen", "accepted"),
    [
        ("https://h.example:443/", "https://h.example/", True),
        ("http://h.example:80/", "http://h.example/", True),
        ("http://h.example:443/", "http://h.example/", False),
        ("https://h.example:80/", "https://h.example/", False),
    ],
)
def test_a_missing_port_is_the_schemes_own(twilio: Twilio, signed_url: str, seen: str, accepted: bool) -> None:
    signature = RequestValidator(TOKEN).compute_signature(signed_url, FORM)
    request = post(seen, FORM, x_twilio_signature=signature)
    assert RequestValidator(TOKEN).validate(seen, FORM, signature) is accepted
    if accepted:
        twilio.verify(request, now=NOW)
    else:
        with pytest.raises(SignatureError):
            twilio.verify(request, now=NOW)


def test_ipv6_hosts_keep_their_colons(twilio: Twilio) -> None:
    bare = signature_of(twilio.sign(post("https://[2001:db8::1]/twilio", FORM), now=NOW))
    twilio.verify(post("https://[2001:db8::1]:8443/twilio", FORM, x_twilio_signature=bare), now=NOW)


def test_the_shared_key_vector() -> None:
    request = post("https://voice.example.com/twilio", FORM)
    shared = Twilio({"TWILIO_WEBHOOK_SHARED_KEY": TOKEN, "TWILIO_WEBHOOK_SHARED_KEY_SID": "webhooks_sharedkey_1"})
    signed = shared.sign(request, now=NOW)
    assert signature_of(signed) == "q7P/cpe/Olx3yGmVk7WU8Qje1dTCirYcLHA9vajWARA="
    settings_ = signed.headers["x-twilio-webhooks-signature-settings"]
    assert settings_ == "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256"
    shared.verify(signed, now=NOW)
    # Without the header the signature is a classic one, for which there is no token here.
    dropped = {name: value for name, value in signed.headers.items() if "settings" not in name}
    with pytest.raises(SignatureError, match="TWILIO_AUTH_TOKEN"):
        shared.verify(dataclasses.replace(signed, headers=dropped), now=NOW)


@pytest.mark.parametrize(
    ("credentials", "settings_", "message"),
    [
        ({"TWILIO_AUTH_TOKEN": TOKEN}, "key=k,algorithm=HMAC_SHA256", "TWILIO_WEBHOOK_SHARED_KEY"),
        ({"TWILIO_WEBHOOK_SHARED_KEY": TOKEN}, "key=k,algorithm=HMAC_MD5", "'HMAC_MD5' is unknown"),
        (
            {"TWILIO_WEBHOOK_SHARED_KEY": TOKEN, "TWILIO_WEBHOOK_SHARED_KEY_SID": "mine"},
            "key=theirs,algorithm=HMAC_SHA256",
            "shared key 'theirs'",
        ),
        ({"TWILIO_WEBHOOK_SHARED_KEY": TOKEN}, "key=k,algorithm=HMAC_SHA256", "does not match"),
        ({"TWILIO_AUTH_TOKEN": TOKEN}, "", "does not match"),
        ({"TWILIO_AUTH_TOKEN": TOKEN}, "key=k", "does not match"),
        ({}, "", "without a secret"),
    ],
)
def test_what_a_signature_lacks_is_said(credentials: dict[str, str], settings_: str, message: str) -> None:
    request = post("https://voice.example.com/twilio", FORM, x_twilio_signature="bm9uc2Vuc2U=")
    headers = {**request.headers, **({"x-twilio-webhooks-signature-settings": settings_} if settings_ else {})}
    with pytest.raises(SignatureError, match=message) as caught:
        Twilio(credentials).verify(dataclasses.replace(request, headers=headers), now=NOW)
    assert caught.value.hint


def test_a_missing_signature_is_told_from_a_wrong_one(twilio: Twilio) -> None:
    request = post("https://voice.example.com/twilio", FORM)
    with pytest.raises(SignatureError, match="carries no X-Twilio-Signature"):
        twilio.verify(request, now=NOW)
    with pytest.raises(SignatureError, match="does not match") as caught:
        twilio.verify(
            post("http://localhost:7860/twilio", FORM, x_twilio_signature="uUyiaE3FKJlQHGfyse0SaerEzPo="), now=NOW
        )
    assert caught.value.hint is not None
    assert "http://localhost:7860/twilio" in caught.value.hint
    assert "-x" in caught.value.hint


@pytest.mark.parametrize("signature", ["é", "\udc80", "uUyiaE3FKJlQHGfyse0SaerEzPo", "=" * 10_000])
def test_odd_signatures_are_wrong_signatures(twilio: Twilio, signature: str) -> None:
    with pytest.raises(SignatureError):
        twilio.verify(post("https://voice.example.com/twilio", FORM, x_twilio_signature=signature), now=NOW)


@settings(deadline=None)
@given(data=st.data())
def test_any_changed_character_of_signature_or_url_is_refused(data: st.DataObject) -> None:
    twilio = Twilio({"TWILIO_AUTH_TOKEN": TOKEN})
    signed = twilio.sign(post("https://voice.example.com/twilio?a=1", FORM), now=NOW)
    part = data.draw(st.sampled_from(["signature", "url"]))
    text = signature_of(signed) if part == "signature" else signed.url
    # A URL whose scheme, port or user info is broken is another matter: see the tests above.
    first = 0 if part == "signature" else len("https://")
    at = data.draw(st.integers(first, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("xyz019").filter(lambda c: c != text[at])) + text[at + 1 :]
    if part == "signature":
        forged = dataclasses.replace(signed, headers={**signed.headers, "x-twilio-signature": changed})
    else:
        forged = dataclasses.replace(signed, url=changed)
    with pytest.raises(SignatureError):
        twilio.verify(forged, now=NOW)


def test_nothing_is_signed_without_a_secret() -> None:
    nobody = Twilio({"TWILIO_AUTH_TOKEN": ""})
    request = post("https://voice.example.com/twilio", FORM)
    assert not nobody.can_verify()
    assert nobody.sign(request, now=NOW) == request
    assert nobody.upgrade_headers("wss://h/ws", now=NOW) == {"User-Agent": "Twilio.TmeWs/1.0"}


def test_a_retry_is_told_from_a_replay(twilio: Twilio) -> None:
    signed = twilio.sign(twilio.webhook(CALL, "https://voice.example.com/twilio"), now=NOW)
    signature, token = twilio.replay_key(signed)
    assert signature == base64.b64decode(signature_of(signed)).hex()
    assert token
    headers = {name: value for name, value in signed.headers.items() if name != "i-twilio-idempotency-token"}
    assert twilio.replay_key(dataclasses.replace(signed, headers=headers)) == (signature, "")
    other = twilio.webhook(dataclasses.replace(CALL, call_id="CA2"), "https://voice.example.com/twilio")
    assert twilio.replay_key(other)[1] != token


# Signatures: agreement with Twilio's own library


class FormFields(Mapping[str, str]):
    """A form with repeated keys, as Django and Flask hand it to Twilio's validator."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self._pairs = pairs

    def getlist(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]

    def __getitem__(self, name: str) -> str:
        return self.getlist(name)[-1]

    def __iter__(self) -> Any:
        return iter(dict(self._pairs))

    def __len__(self) -> int:
        return len(dict(self._pairs))


texts = st.text(max_size=12)
forms = st.lists(st.tuples(st.sampled_from(["From", "To", "Body", "a", "A", "ä", ""]) | texts, texts), max_size=8)
urls = st.builds(
    lambda scheme, host, port, path, query: f"{scheme}://{host}{port}{path}{query}",
    st.sampled_from(["https", "http"]),
    st.sampled_from(["voice.example.com", "localhost", "h-1.example", "192.0.2.1"]),
    st.sampled_from(["", ":443", ":80", ":7860"]),
    st.from_regex(r"(/[A-Za-z0-9._~%-]{0,8}){0,3}", fullmatch=True),
    st.sampled_from(["", "?a=1", "?a=1&b=%20&c=", "?q=%C3%A9+x", "?x=http://y/z"]),
)


@settings(deadline=None)
@given(url=urls, form=forms, token=st.text(min_size=1, max_size=20), shared=st.booleans())
def test_agreement_with_the_twilio_library(url: str, form: list[tuple[str, str]], token: str, shared: bool) -> None:
    theirs = RequestValidator(token)
    ours = Twilio({"TWILIO_WEBHOOK_SHARED_KEY" if shared else "TWILIO_AUTH_TOKEN": token})
    algorithm = "HMAC_SHA256" if shared else "HMAC_SHA1"
    request = post(url, form)
    # What a server reads from the body, which is what Twilio's validator is given.
    fields = FormFields(parse_qsl(request.body.decode(), keep_blank_values=True))

    signed = ours.sign(request, now=NOW)
    assert theirs.validate(url, fields, signature_of(signed), algorithm)
    assert signature_of(signed) == theirs.compute_signature(url, fields, algorithm)

    headers = {**request.headers, "x-twilio-signature": theirs.compute_signature(url, fields, algorithm)}
    if shared:
        headers["x-twilio-webhooks-signature-settings"] = "key=some_key, algorithm=hmac_sha256"
    ours.verify(dataclasses.replace(request, headers=headers), now=NOW)

    headers["x-twilio-signature"] = theirs.compute_signature(url + "x", fields, algorithm)
    with pytest.raises(SignatureError):
        ours.verify(dataclasses.replace(request, headers=headers), now=NOW)


@settings(deadline=None)
@given(url=urls, body=st.text())
def test_agreement_with_the_twilio_library_on_json(url: str, body: str) -> None:
    theirs, ours = RequestValidator(TOKEN), Twilio({"TWILIO_AUTH_TOKEN": TOKEN})
    headers = {"content-type": "application/json; charset=utf-8"}
    signed = ours.sign(WebhookRequest("POST", url, headers, body.encode()), now=NOW)
    assert theirs.validate(signed.url, body, signature_of(signed))
    assert not theirs.validate(signed.url, body + " ", signature_of(signed))

    digest = hashlib.sha256(body.encode()).hexdigest()
    hashed = f"{url}{'&' if '?' in url else '?'}bodySHA256={digest}"
    headers["x-twilio-signature"] = theirs.compute_signature(hashed, {})
    ours.verify(WebhookRequest("POST", hashed, headers, body.encode()), now=NOW)


@settings(deadline=None)
@given(url=urls)
def test_agreement_with_the_twilio_library_on_get(url: str) -> None:
    theirs, ours = RequestValidator(TOKEN), Twilio({"TWILIO_AUTH_TOKEN": TOKEN})
    signed = ours.sign(get(url), now=NOW)
    assert theirs.validate(url, {}, signature_of(signed))
    ours.verify(get(url, x_twilio_signature=theirs.compute_signature(url, {})), now=NOW)


# The upgrade's signature

UPGRADE = "wss://voice.example.com/ws/twilio"


@pytest.mark.parametrize(
    ("url", "signature", "words"),
    [
        (UPGRADE, "UvewEvWgbJylP80NVciPXCZqgNs=", "the wss URL"),
        (UPGRADE + "/", "CUJm6aV4gesBfkU6HgOZyEcTTrM=", "the wss URL"),
        (UPGRADE, "CUJm6aV4gesBfkU6HgOZyEcTTrM=", "the wss URL with a trailing slash"),
        (UPGRADE + "/", "UvewEvWgbJylP80NVciPXCZqgNs=", "the wss URL without its trailing slash"),
        (UPGRADE, "m9bSZi+eFhknSNw/JzV2PN9tR4s=", "the https URL"),
        (UPGRADE + "?token=abc", "ID7wZsFJEiUaEZE6wbQ8Jt01tgQ=", "the wss URL, its query as parameters"),
    ],
)
@pytest.mark.parametrize("scheme", ["wss", "https", "ws"])
def test_upgrade_vectors(twilio: Twilio, url: str, signature: str, words: str, scheme: str) -> None:
    seen = scheme + url.removeprefix("wss")
    request = get(seen, x_twilio_signature=signature)
    assert twilio.verify_upgrade(request, now=NOW) == words


@pytest.mark.parametrize(
    ("signed_url", "asked", "words"),
    [
        ("wss://h.example:443/ws", "wss://h.example/ws", "the wss URL with :443"),
        ("wss://h.example:443/ws/", "wss://h.example/ws", "the wss URL with :443 and with a trailing slash"),
        ("wss://h.example/ws", "wss://h.example:8443/ws", "the wss URL without :8443"),
        ("https://h.example/ws/", "wss://h.example/ws", "the https URL with a trailing slash"),
        ("wss://h.example", "wss://h.example/", "the wss URL without its trailing slash"),
    ],
)
def test_upgrade_forms_in_words(twilio: Twilio, signed_url: str, asked: str, words: str) -> None:
    signature = RequestValidator(TOKEN).compute_signature(signed_url, {})
    assert twilio.verify_upgrade(get(asked, x_twilio_signature=signature), now=NOW) == words


def test_an_upgrade_for_another_path_is_refused(twilio: Twilio) -> None:
    with pytest.raises(SignatureError, match="does not match") as caught:
        twilio.verify_upgrade(get(UPGRADE + "/x", x_twilio_signature="UvewEvWgbJylP80NVciPXCZqgNs="), now=NOW)
    assert caught.value.hint is not None
    assert UPGRADE + "/x" in caught.value.hint
    with pytest.raises(SignatureError, match="carries no"):
        twilio.verify_upgrade(get(UPGRADE), now=NOW)


def test_the_wss_signature_is_not_that_of_other_forms() -> None:
    theirs = RequestValidator(TOKEN)
    signature = "UvewEvWgbJylP80NVciPXCZqgNs="
    assert theirs.validate(UPGRADE, {}, signature)
    assert theirs.validate("wss://voice.example.com:443/ws/twilio", {}, signature)
    assert not theirs.validate(UPGRADE.replace("wss", "https"), {}, signature)
    assert not theirs.validate(UPGRADE + "/", {}, signature)
    # Their library takes 80 for the port of wss, so it refuses what ours accepts with ":443".
    with_port = theirs.compute_signature("wss://voice.example.com:443/ws/twilio", {})
    assert not theirs.validate(UPGRADE, {}, with_port)
    ours = Twilio({"TWILIO_AUTH_TOKEN": TOKEN})
    assert ours.verify_upgrade(get(UPGRADE, x_twilio_signature=with_port), now=NOW) == "the wss URL with :443"


def test_an_upgrade_carries_the_signature_of_the_wss_url(twilio: Twilio) -> None:
    expected = {"User-Agent": "Twilio.TmeWs/1.0", "X-Twilio-Signature": "UvewEvWgbJylP80NVciPXCZqgNs="}
    assert twilio.upgrade_headers(UPGRADE, now=NOW) == expected
    assert twilio.upgrade_headers(UPGRADE.replace("wss", "ws"), now=NOW) == expected


# The webhook


def test_a_webhook_has_every_documented_field(twilio: Twilio) -> None:
    request = twilio.webhook(CALL, "https://voice.example.com/twilio")
    assert request.method == "POST"
    assert request.url == "https://voice.example.com/twilio"
    assert request.headers["user-agent"] == "TwilioProxy/1.1"
    assert request.headers["content-type"] == FORM_TYPE
    assert {**request.fields, **FORM} == request.fields
    for party in ("From", "To", "Caller", "Called"):
        assert {f"{party}City", f"{party}State", f"{party}Zip", f"{party}Country"} <= set(request.fields)
    assert json.loads(dict(parse_qsl("x=" + request.fields["CallToken"]))["x"])
    assert request.body.isascii()
    assert b"FromCity=&" in request.body


def test_a_webhook_by_get_keeps_the_urls_own_query(twilio: Twilio) -> None:
    request = twilio.webhook(CALL, "https://voice.example.com/twilio?bot=7", method="GET")
    assert request.method == "GET"
    assert request.body == b""
    assert request.url.startswith("https://voice.example.com/twilio?bot=7&AccountSid=AC0")
    assert twilio.read_webhook(request) == CALL


def test_an_outbound_call_is_already_in_progress(twilio: Twilio) -> None:
    call = dataclasses.replace(CALL, direction="outbound")
    fields = twilio.webhook(call, "https://voice.example.com/twilio").fields
    assert (fields["Direction"], fields["CallStatus"]) == ("outbound-api", "in-progress")


@pytest.mark.parametrize("direction", ["inbound", "outbound-api", "outbound-dial", ""])
def test_reading_a_webhook(twilio: Twilio, direction: str) -> None:
    read = twilio.read_webhook(post("https://voice.example.com/", {**FORM, "Direction": direction}))
    assert read.direction == ("outbound" if direction.startswith("outbound") else "inbound")


def test_a_webhook_without_from_is_read_from_caller(twilio: Twilio) -> None:
    fields = {name: value for name, value in FORM.items() if name not in ("From", "To", "Direction")}
    assert twilio.read_webhook(post("https://voice.example.com/", fields)) == CALL


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "no-call"),
        ({"CallSid": ""}, "no-call"),
        ({**FORM, "From": "x" * 300}, "bad-field"),
        ({**FORM, "CallSid": "CA1\nERROR"}, "bad-field"),
        ({**FORM, "To": "\x1b[2J"}, "bad-field"),
    ],
)
def test_other_requests_are_no_webhooks(twilio: Twilio, fields: dict[str, str], kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        twilio.read_webhook(post("https://voice.example.com/", fields))
    assert caught.value.kind == kind


def test_other_providers_webhooks_are_not_recognised(twilio: Twilio) -> None:
    assert twilio.recognises(post("https://h/", FORM))
    telnyx = {"CallSid": "v3:abc", "AccountSid": "1f4a0c3e-0000-0000-0000-000000000000"}
    assert not twilio.recognises(post("https://h/", telnyx))
    assert not twilio.recognises(post("https://h/", {"CallUUID": "x"}))


def test_invented_ids_have_twilios_shape(twilio: Twilio) -> None:
    call = twilio.new_call(from_number="+1", to_number="+2", parameters={"a": "b"}, seed=bytes(range(32)))
    assert call.call_id == "CA000102030405060708090a0b0c0d0e0f"
    assert call.account_id == "AC101112131415161718191a1b1c1d1e1f"
    assert call.stream_id.startswith("MZ")
    assert len(call.stream_id) == 34
    assert (call.from_number, call.to_number, call.parameters) == ("+1", "+2", {"a": "b"})


# The answer


def test_the_answer_is_what_twilios_library_renders(twilio: Twilio) -> None:
    call = dataclasses.replace(CALL, parameters={"name": "<Jörg & 'Co' \"x\">"})
    answer = twilio.answer(call, "wss://voice.example.com/ws/t")
    response = VoiceResponse()
    stream = response.connect().stream(url="wss://voice.example.com/ws/t")
    stream.parameter(name="from_number", value="+15550100001")
    stream.parameter(name="to_number", value="+15550100002")
    stream.parameter(name="direction", value="inbound")
    stream.parameter(name="name", value="<Jörg & 'Co' \"x\">")
    assert ElementTree.canonicalize(answer.body) == ElementTree.canonicalize(str(response))
    assert (answer.status, answer.media_type) == (200, "application/xml")


@settings(deadline=None)
@given(value=st.text(max_size=400))
def test_no_parameter_breaks_the_document(value: str) -> None:
    twilio = Twilio({})
    call = dataclasses.replace(CALL, from_number=value, parameters={"own": value})
    read = twilio.read_answer(twilio.answer(call, "wss://h/ws").body.encode(), "application/xml")
    expected = "".join(c if c in "\t\n\r" or (c >= " " and c not in "\ufffe\uffff") else "\ufffd" for c in value)
    assert read.parameters["own"] == expected
    assert read.parameters.get("from_number", "") == expected


def test_a_stranger_cannot_write_into_the_document(twilio: Twilio) -> None:
    call = dataclasses.replace(CALL, from_number='"/></Stream><Stream url="wss://evil"/><Stream x="')
    answer = twilio.answer(call, "wss://h/ws")
    root = ElementTree.fromstring(answer.body)
    assert [stream.get("url") for stream in root.iter("Stream")] == ["wss://h/ws"]


def test_the_users_parameters_win(twilio: Twilio) -> None:
    call = dataclasses.replace(CALL, to_number="", parameters={"direction": "mine"})
    read = twilio.read_answer(twilio.answer(call, "ws://localhost/ws").body.encode(), "text/xml")
    assert read.parameters == {"from_number": "+15550100001", "direction": "mine"}


@pytest.mark.parametrize(
    ("parameters", "url", "kind"),
    [
        ({"n": "x" * 500}, "wss://h/ws", "long-parameter"),
        ({"": "x"}, "wss://h/ws", "bad-parameter"),
        ({}, "https://h/ws", "bad-url"),
        ({}, "wss:///ws", "bad-url"),
        ({}, "wss://h/ws?token=1", "bad-url"),
    ],
)
def test_answers_that_twilio_could_not_use(twilio: Twilio, parameters: dict[str, str], url: str, kind: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        twilio.answer(dataclasses.replace(CALL, parameters=parameters), url)
    assert caught.value.kind == kind
    assert len(caught.value.message) <= 200


def test_a_parameter_of_500_characters_is_allowed(twilio: Twilio) -> None:
    answer = twilio.answer(dataclasses.replace(CALL, parameters={"n": "x" * 499}), "wss://h/ws")
    assert twilio.read_answer(answer.body.encode(), "text/xml").findings == []


def test_busy_is_the_documented_reject(twilio: Twilio) -> None:
    golden = (GOLDEN / "reject-busy.xml").read_text()
    assert ElementTree.canonicalize(twilio.busy().body, strip_text=True) == ElementTree.canonicalize(
        golden, strip_text=True
    )


def test_reading_the_documented_stream(twilio: Twilio) -> None:
    read = twilio.read_answer((GOLDEN / "connect-stream.xml").read_bytes(), "text/xml; charset=utf-8")
    assert read.url == "wss://mystream.ngrok.io/example"
    assert read.parameters == {"FirstName": "Jane", "LastName": "Doe"}
    assert read.format == PCMU_8K
    assert read.then == ["Say: This TwiML instruction is unreachable unless the Str..."]
    assert read.skipped == []
    assert read.findings == []


def twiml(inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Response>{inside}</Response>'.encode()


STREAM = '<Connect><Stream url="wss://h/ws"/></Connect>'


def test_verbs_before_and_after_the_stream_are_told_in_words(twilio: Twilio) -> None:
    read = twilio.read_answer(
        twiml(
            '<Say voice="alice">Hello\n  you</Say><Play>https://h/a.mp3</Play><Pause length="3"/><Pause/>'
            "<Gather><Say>Press one</Say></Gather>"
            f'<Start><Stream url="wss://h/listen"/></Start>{STREAM}<Say>Bye</Say><Hangup/>'
        ),
        "text/xml",
    )
    assert read.skipped == [
        "Say: Hello you",
        "Play: https://h/a.mp3",
        "Pause: 3 s",
        "Pause: 1 s",
        "Gather: Press one",
        "Start: Stream",
    ]
    # Where the call ends anyway, nothing of it is news.
    assert read.then == ["Say: Bye"]
    assert read.url == "wss://h/ws"


@pytest.mark.parametrize(
    ("attributes", "inside", "level", "message"),
    [
        ('url="wss://h/ws?token=1"', "", "warn", "drops the query"),
        ('url="ws://localhost:7860/ws"', "", "warn", "refuses all but wss"),
        ('url="wss://h/ws" track="both_tracks"', "", "fail", "inbound_track"),
        ('url="wss://h/ws" bidirectionalMode="rtp"', "", "warn", "bidirectionalMode"),
        ('url="wss://h/ws"', '<Parameter value="1"/>', "warn", "no name"),
        ('url="wss://h/ws"', f'<Parameter name="n" value="{"x" * 500}"/>', "fail", "longer than 500"),
    ],
)
def test_what_twilio_would_dislike_is_found(
    twilio: Twilio, attributes: str, inside: str, level: str, message: str
) -> None:
    read = twilio.read_answer(twiml(f"<Connect><Stream {attributes}>{inside}</Stream></Connect>"), "text/xml")
    assert [(finding.id, finding.level) for finding in read.findings] == [("W3", level)]
    assert message in read.findings[0].message
    assert "?" not in read.url


def test_two_streams_in_one_connect_are_found(twilio: Twilio) -> None:
    read = twilio.read_answer(
        twiml('<Connect><Stream url="wss://h/1"/><Stream url="wss://h/2"/></Connect>'), "text/xml"
    )
    assert read.url == "wss://h/1"
    assert [finding.level for finding in read.findings] == ["fail"]


def test_a_relative_url_needs_the_documents(twilio: Twilio) -> None:
    body = twiml('<Connect><Stream url="/ws/t"/></Connect>')
    assert twilio.read_answer(body, "text/xml", base_url="https://h.example/voice").url == "wss://h.example/ws/t"
    local = twilio.read_answer(body, "text/xml", base_url="http://localhost:7860/")
    assert local.url == "ws://localhost:7860/ws/t"
    with pytest.raises(RemoteProtocolError, match="relative"):
        twilio.read_answer(body, "text/xml")


@pytest.mark.parametrize("media_type", ["text/xml", "application/xml", "TEXT/HTML; charset=utf-8", "text/plain"])
def test_content_types_that_are_twiml(twilio: Twilio, media_type: str) -> None:
    assert twilio.read_answer(twiml(STREAM), media_type).url == "wss://h/ws"


@pytest.mark.parametrize(
    ("body", "media_type", "kind", "message"),
    [
        (twiml(STREAM), "application/json", "bad-content-type", "application/json"),
        (twiml(STREAM), "", "bad-content-type", "send application/xml"),
        (b"RIFF", "audio/x-wav", "no-stream", "played"),
        (b"Hello", "text/plain", "no-stream", "read aloud"),
        (b"", "text/xml", "bad-xml", "empty"),
        (b"<Response>\n  <Say>", "text/xml", "bad-xml", "line 2, column 8"),
        (b"\n<?xml version='1.0'?><Response/>", "text/xml", "bad-xml", "line 2, column 1"),
        (b"<html/>", "text/html", "bad-xml", "'html'; it must be Response"),
        (b'<?xml version="1.0" encoding="klingon"?><Response/>', "text/xml", "bad-xml", "not XML"),
        (b"<!DOCTYPE Response><Response/>", "text/xml", "bad-xml", "DOCTYPE"),
        (b'<!DOCTYPE r [<!ENTITY a "b">]><Response>&a;</Response>', "text/xml", "bad-xml", "DOCTYPE"),
        ("<!DOCTYPE r><Response/>".encode("utf-16"), "text/xml", "bad-xml", "DOCTYPE"),
        (b"<Response>&a;</Response>", "text/xml", "bad-xml", "undefined entity"),
        (twiml("<Say>" + "x" * 70_000 + "</Say>"), "text/xml", "too-large", "65536"),
        (twiml('<Reject reason="busy"/>'), "text/xml", "rejected", "busy"),
        (twiml("<Reject/>"), "text/xml", "rejected", "rejected"),
        (twiml("<Say>No</Say><Hangup/>" + STREAM), "text/xml", "rejected", "turned away: No"),
        (twiml("<Pause/><Hangup/>" + STREAM), "text/xml", "hung-up", "Hangup"),
        (twiml("<Redirect>https://h/b</Redirect>"), "text/xml", "redirected", "Redirect"),
        (twiml(""), "text/xml", "no-stream", "nothing"),
        (twiml("<Say>Hi</Say><Pause/>"), "text/xml", "no-stream", "<Say>, <Pause>"),
        (twiml("<Connect><Room>x</Room></Connect>"), "text/xml", "no-stream", "<Room>"),
        (twiml('<Connect><Stream url="https://h/ws"/></Connect>'), "text/xml", "bad-url", "must be wss"),
        (twiml('<Connect><Stream url="wss://None:x/ws"/></Connect>'), "text/xml", "bad-url", "not a URL"),
        (twiml('<Connect><Stream url="wss://[::1/ws"/></Connect>'), "text/xml", "bad-url", "not a URL"),
        (twiml('<Connect><Stream url="wss:///ws"/></Connect>'), "text/xml", "bad-url", "not a URL"),
        (twiml('<Connect><Stream url="wss://h/a b"/></Connect>'), "text/xml", "bad-url", "not a URL"),
        (twiml("<Connect><Stream/></Connect>"), "text/xml", "bad-url", "no url"),
    ],
)
def test_answers_without_a_stream(twilio: Twilio, body: bytes, media_type: str, kind: str, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        twilio.read_answer(body, media_type)
    assert caught.value.kind == kind
    assert len(caught.value.message) <= 200


def test_a_one_way_stream_is_no_conversation(twilio: Twilio) -> None:
    with pytest.raises(RemoteProtocolError, match="only listens"):
        twilio.read_answer((GOLDEN / "start-stream.xml").read_bytes(), "text/xml")


@pytest.mark.parametrize("depth", [1_000, 9_000])
def test_a_deep_document_is_only_a_bad_one(twilio: Twilio, depth: int) -> None:
    body = twiml("<a>" * depth + "</a>" * depth)
    with pytest.raises(RemoteProtocolError) as caught:
        twilio.read_answer(body, "text/xml")
    assert caught.value.kind == "no-stream"


# The REST API

REST = {"TWILIO_ACCOUNT_SID": "AC1", "TWILIO_AUTH_TOKEN": "token"}


def test_a_hang_up_is_read_back() -> None:
    # As Twilio's own library sends it: https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
    twilio = Twilio(REST)
    url = "https://api.twilio.com/2010-04-01/Accounts/AC1/Calls/CA%201%2F2.json"
    received = WebhookRequest("POST", url, {"content-type": FORM_TYPE}, b"Status=completed")
    assert hung_up(twilio, received) == "CA 1/2"
    other = dataclasses.replace(received, body=b"Status=in-progress")
    assert hung_up(twilio, other) is None
    assert hung_up(twilio, dataclasses.replace(received, url="https://h/2010-04-01/Accounts/A.json")) is None
    assert hung_up(twilio, WebhookRequest("GET", url)) is None


# The stream


def ends(started: StreamStarted = STARTED) -> tuple[TwilioStream, TwilioStream]:
    carrier, bot = TwilioStream(Side.CARRIER), TwilioStream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


def test_the_carrier_counts_every_message_but_connected() -> None:
    carrier, bot = TwilioStream(Side.CARRIER), TwilioStream(Side.BOT)
    frame = bytes(160)
    sent = [
        Connected(),
        dataclasses.replace(STARTED, sequence=None),
        Audio(frame),
        Digit("1"),
        Audio(frame),
        Connected(),
        Mark("m"),
        Audio(frame, track="outbound"),
        StreamStopped(),
    ]
    messages = [json.loads(carrier.send(event)) for event in sent]
    numbers = [message.get("sequenceNumber") for message in messages]
    assert numbers == [None, "1", "2", "3", "4", None, "5", "6", "7"]
    media = [message["media"] for message in messages if message["event"] == "media"]
    assert [(m["track"], m["chunk"], m["timestamp"]) for m in media] == [
        ("inbound", "1", "20"),
        ("inbound", "2", "40"),
        ("outbound", "1", "20"),
    ]
    received = [bot.receive(json.dumps(message)) for message in messages]
    assert received[2] == Audio(frame, "inbound", 1, 20, 2)
    assert received[-1] == StreamStopped(sequence=7)


def test_the_types_are_the_documented_ones() -> None:
    carrier, _ = ends()
    start = json.loads(TwilioStream(Side.CARRIER).send(STARTED))
    assert start["start"]["mediaFormat"] == {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    assert start["sequenceNumber"] == "1"
    media = json.loads(carrier.send(Audio(b"\xff" * 160)))
    assert all(isinstance(media["media"][key], str) for key in ("chunk", "timestamp", "payload", "track"))


counters = st.integers(0, 10**12)


@settings(deadline=None)
@given(
    payload=st.binary(max_size=2000), track=st.sampled_from(["inbound", "outbound"]), numbers=st.tuples(*[counters] * 3)
)
def test_audio_comes_through_with_its_counters(payload: bytes, track: str, numbers: tuple[int, int, int]) -> None:
    carrier, bot = ends()
    event = Audio(payload, track, *numbers)
    assert bot.receive(carrier.send(event)) == event
    assert carrier.receive(bot.send(Audio(payload))) == Audio(payload)


@settings(deadline=None)
@given(name=st.text(min_size=1), stream_id=st.text(min_size=1), parameters=st.dictionaries(st.text(), st.text()))
def test_any_text_comes_through(name: str, stream_id: str, parameters: dict[str, str]) -> None:
    numbers = {"from_number": parameters.get("from_number", ""), "to_number": parameters.get("to_number", "")}
    started = StreamStarted(stream_id, "CA1", parameters=parameters, sequence=1, **numbers)
    carrier, bot = ends(started)
    assert bot.receive(carrier.send(started)) == started
    assert bot.receive(carrier.send(Mark(name, sequence=5))) == Mark(name, sequence=5)
    assert carrier.receive(bot.send(Mark(name))) == Mark(name)
    for message in (bot.send(Audio(b"x")), carrier.send(Audio(b"x"))):
        assert json.loads(message)["streamSid"] == stream_id
    assert carrier.receive(bot.send(Clear())) == Clear()
    assert carrier.findings() == []


def test_numbers_are_promoted_from_the_custom_parameters() -> None:
    bot = TwilioStream(Side.BOT)
    parameters = {"from_number": "+1", "to_number": "+2", "n": 7, "yes": True, "none": None}
    content = {"streamSid": "MZ1", "callSid": "CA1", "customParameters": parameters}
    started = bot.receive(json.dumps({"event": "start", "start": content}))
    assert isinstance(started, StreamStarted)
    assert (started.from_number, started.to_number) == ("+1", "+2")
    assert started.parameters == {"from_number": "+1", "to_number": "+2", "n": "7", "yes": "true", "none": "null"}


@pytest.mark.parametrize("parameters", [None, 7, [], "x", {"a": [], "b": {"c": 1}}])
def test_odd_custom_parameters_cost_no_call(parameters: Any) -> None:
    content = {"streamSid": "MZ1", "callSid": "CA1", "customParameters": parameters}
    started = TwilioStream(Side.BOT).receive(json.dumps({"event": "start", "start": content}))
    assert started == StreamStarted("MZ1", "CA1")


@pytest.mark.parametrize(
    ("side", "event", "kind"),
    [
        (Side.BOT, Digit("1"), "no-message"),
        (Side.BOT, Unknown("x"), "no-message"),
        (Side.BOT, Mark(""), "bad-mark"),
        (Side.CARRIER, Clear(), "no-message"),
        (Side.CARRIER, Cleared(), "no-message"),
        (Side.CARRIER, Mark(""), "bad-mark"),
        (Side.CARRIER, Digit("12"), "bad-dtmf"),
        (Side.CARRIER, Audio(b"", track="both"), "bad-track"),
        (Side.CARRIER, StreamStarted("", "CA1"), "bad-start"),
        (Side.CARRIER, StreamStarted("MZ1", "CA1", format=AudioFormat(Encoding.PCMA, 8000)), "bad-format"),
    ],
)
def test_what_an_end_cannot_say(side: Side, event: Any, kind: str) -> None:
    carrier, bot = ends()
    with pytest.raises(LocalProtocolError) as caught:
        (bot if side is Side.BOT else carrier).send(event)
    assert caught.value.kind == kind


@pytest.mark.parametrize("event", [Audio(b""), Digit("1"), Mark("m"), StreamStopped()])
def test_a_carrier_says_nothing_before_the_start(event: Any) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        TwilioStream(Side.CARRIER).send(event)
    assert caught.value.kind == "not-started"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\x00", "binary"),
        ("hello", "not-json"),
        ("[" * 50_000, "not-json"),
        ('{"event":NaN}', "not-json"),
        (r'{"event":"x\udc00"}', "not-json"),
        ("[]", "not-object"),
        ("7", "not-object"),
        ("{}", "no-event"),
        ('{"event":1}', "no-event"),
        ('{"event":"start"}', "bad-start"),
        ('{"event":"start","start":[]}', "bad-start"),
        ('{"event":"start","start":{"streamSid":"MZ1"}}', "bad-start"),
        ('{"event":"start","start":{"callSid":"CA1"}}', "bad-start"),
        ('{"event":"start","start":{"callSid":"CA1","streamSid":7}}', "bad-start"),
        ('{"event":"start","start":{"callSid":"C","streamSid":"M","mediaFormat":1}}', "bad-start"),
        (
            '{"event":"start","start":{"callSid":"C","streamSid":"M","mediaFormat":{"encoding":"opus"}}}',
            "bad-start",
        ),
        ('{"event":"media"}', "bad-media"),
        ('{"event":"media","media":null}', "bad-media"),
        ('{"event":"media","media":"x"}', "bad-media"),
        ('{"event":"media","media":{}}', "bad-media"),
        ('{"event":"media","media":{"payload":7}}', "bad-media"),
        ('{"event":"media","media":{"payload":"QQ="}}', "bad-base64"),
        ('{"event":"media","media":{"payload":"****"}}', "bad-base64"),
        ('{"event":"media","media":{"payload":"AAAA="}}', "bad-base64"),
        ('{"event":"media","media":{"payload":"QUJD\\nQQ="}}', "bad-base64"),
        ('{"event":"dtmf"}', "bad-dtmf"),
        ('{"event":"dtmf","dtmf":{"digit":"E"}}', "bad-dtmf"),
        ('{"event":"dtmf","dtmf":{"digit":true}}', "bad-dtmf"),
        ('{"event":"dtmf","dtmf":{"digit":10}}', "bad-dtmf"),
        ('{"event":"mark"}', "bad-mark"),
        ('{"event":"mark","mark":{"name":null}}', "bad-mark"),
    ],
)
def test_broken_messages_have_kinds(message: str | bytes, kind: str) -> None:
    _, bot = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        bot.receive(message)
    assert caught.value.kind == kind
    # The stream goes on.
    assert bot.receive('{"event":"dtmf","dtmf":{"digit":"A"}}') == Digit("A")


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ('{"event":"dtmf","dtmf":{"digit":5},"sequenceNumber":9}', Digit("5", 9)),
        ('{"event":"stop"}', StreamStopped()),
        ('{"event":"connected"}', Connected()),
        ('{"event":"media","sequenceNumber":-1,"media":{"payload":"","chunk":"x","timestamp":1.5}}', Audio(b"")),
        ('{"event":"media","media":{"payload":"","track":"outbound","chunk":true}}', Audio(b"", "outbound")),
        (f'{{"event":"stop","sequenceNumber":"{"9" * 5_000}"}}', StreamStopped()),
        ('{"event":"stop","sequenceNumber":"\\u0663"}', StreamStopped()),
        ('{"event":"clear"}', Unknown("clear")),
        (f'{{"event":"{"x" * 5_000}"}}', Unknown("x" * 64)),
        (
            '{"event":"start","streamSid":"MZ1","start":{"callSid":"CA1"}}',
            StreamStarted("MZ1", "CA1"),
        ),
    ],
)
def test_what_a_bot_tolerates(message: str, event: Any) -> None:
    _, bot = ends()
    assert bot.receive(message) == event


def test_connected_may_come_at_any_time() -> None:
    _, bot = ends()
    assert bot.receive('{"event":"connected","protocol":"Call","version":"0.2.0"}') == Connected("0.2.0")
    assert json.loads(bot.send(Clear()))["streamSid"] == STARTED.stream_id


def bot_media(payload: bytes, **changes: Any) -> str:
    message = {
        "event": "media",
        "streamSid": STARTED.stream_id,
        "media": {"payload": base64.b64encode(payload).decode()},
        **changes,
    }
    return json.dumps({key: value for key, value in message.items() if value is not None})


@pytest.mark.parametrize(
    ("message", "level", "words"),
    [
        (bot_media(b"\xff" * 32 * 1024 + b"\xff"), "warn", "more than 32 KiB"),
        (bot_media(b"RIFF\x24\x00\x00\x00WAVEfmt "), "fail", "WAV header"),
        (bot_media(b""), "warn", "empty payload"),
        (bot_media(b"\xff", streamSid=None), "fail", "no streamSid"),
        (bot_media(b"\xff", streamSid="MZ2"), "fail", "another stream"),
        ('{"event":"mark","mark":{"name":"m"}}', "fail", "no streamSid"),
        ('{"event":"clear","streamSid":"MZ2"}', "fail", "another stream"),
        ('{"event":"playAudio"}', "warn", "'playAudio'"),
    ],
)
def test_what_a_bot_does_wrong_is_found_once(message: str, level: str, words: str) -> None:
    carrier, _ = ends()
    carrier.receive(message)
    (finding,) = carrier.findings()
    assert (finding.id, finding.level) == ("M1", level)
    assert words in finding.message
    assert carrier.findings() == []


def test_ordinary_messages_of_a_bot_are_not_found_fault_with() -> None:
    carrier, bot = ends()
    for event in (Audio(b"\xff" * 32 * 1024), Mark("m"), Clear()):
        assert carrier.receive(bot.send(event)) == event
    assert carrier.findings() == []


def test_a_dialect_is_a_few_lines() -> None:
    wideband = AudioFormat(Encoding.L16, 16000)

    class DialectStream(stream.TwilioStream):
        encodings = {**stream.TwilioStream.encodings, wideband: "audio/x-L16"}  # noqa: RUF012

    class Dialect(Twilio):
        name, title = "dialect", "Dialect"
        credential_names = ("DIALECT_KEY",)
        secret_name = "DIALECT_KEY"
        signature_header = "X-Dialect-Signature"

        def stream(self, side: Side) -> DialectStream:
            return DialectStream(side, self)

    dialect = Dialect({"DIALECT_KEY": TOKEN})
    signed = dialect.sign(post("https://voice.example.com/twilio", FORM), now=NOW)
    assert signed.headers["x-dialect-signature"] == "uUyiaE3FKJlQHGfyse0SaerEzPo="
    dialect.verify(signed, now=NOW)
    assert dialect.read_webhook(signed).provider == "dialect"
    carrier, bot = dialect.stream(Side.CARRIER), dialect.stream(Side.BOT)
    started = dataclasses.replace(STARTED, format=wideband)
    assert bot.receive(carrier.send(started)) == started
    assert bot.format == wideband


# Agreement with pipecat


async def pipecat_serializer() -> TwilioFrameSerializer:
    serializer = TwilioFrameSerializer(STARTED.stream_id, params=TwilioFrameSerializer.InputParams(auto_hang_up=False))
    setup = FrameProcessorSetup(
        clock=SystemClock(),
        task_manager=TaskManager(),
        pipeline_worker=None,  # type: ignore[arg-type]
        audio_in_sample_rate=8000,
        audio_out_sample_rate=8000,
    )
    await serializer.setup(setup)
    return serializer


def serialize(frame: Frame) -> str:
    async def run() -> str:
        message = await (await pipecat_serializer()).serialize(frame)
        assert isinstance(message, str)
        return message

    return asyncio.run(run())


def deserialize(message: str) -> Frame | None:
    async def run() -> Frame | None:
        return await (await pipecat_serializer()).deserialize(message)

    return asyncio.run(run())


PCM = b"".join((1000 * (n % 21 - 10)).to_bytes(2, "little", signed=True) for n in range(160))
SPEECH = OutputAudioRawFrame(audio=PCM, sample_rate=8000, num_channels=1)


def test_our_carrier_understands_pipecat() -> None:
    carrier, _ = ends()
    assert carrier.receive(serialize(SPEECH)) == Audio(PCMU_8K.encode(PCM))
    assert carrier.receive(serialize(InterruptionFrame())) == Clear()
    assert carrier.findings() == []


def test_our_bot_sends_what_pipecat_sends() -> None:
    _, bot = ends()
    assert json.loads(bot.send(Audio(PCMU_8K.encode(PCM)))) == json.loads(serialize(SPEECH))
    assert json.loads(bot.send(Clear())) == json.loads(serialize(InterruptionFrame()))


@pytest.mark.parametrize("digit", "0123456789*#")
def test_pipecat_understands_our_carriers_digits(digit: str) -> None:
    carrier, _ = ends()
    frame = deserialize(carrier.send(Digit(digit)))
    assert isinstance(frame, InputDTMFFrame)
    assert frame.button == KeypadEntry(digit)


def test_pipecat_understands_our_carriers_audio() -> None:
    carrier, bot = ends()
    message = carrier.send(Audio(PCMU_8K.encode(PCM)))
    frame = deserialize(message)
    assert isinstance(frame, InputAudioRawFrame)
    ours = bot.receive(message)
    assert isinstance(ours, Audio)
    assert frame.audio == PCMU_8K.decode(ours.payload)
    assert frame.sample_rate == 8000


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


def test_pipecat_reads_our_handshake(twilio: Twilio) -> None:
    call = dataclasses.replace(CALL, parameters={"customer": "Jörg"})
    answer = twilio.answer(call, "wss://h/ws")
    request = twilio.read_answer(answer.body.encode(), answer.media_type)
    carrier = twilio.stream(Side.CARRIER)
    started = dataclasses.replace(STARTED, parameters=request.parameters)
    handshake = Handshake(carrier.send(Connected()), carrier.send(started))
    kind, call_data = asyncio.run(parse_telephony_websocket(handshake))
    assert kind == "twilio"
    assert call_data.stream_id == STARTED.stream_id
    assert call_data.call_id == CALL.call_id
    assert (call_data.from_number, call_data.to_number) == ("+15550100001", "+15550100002")
    assert call_data.body == {
        "from_number": "+15550100001",
        "to_number": "+15550100002",
        "direction": "inbound",
        "customer": "Jörg",
    }
