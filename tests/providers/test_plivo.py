"""
Plivo, held against its documentation, its own Python library, and pipecat's serializer.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
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
from pipecat.serializers.plivo import PlivoFrameSerializer
from pipecat.utils.asyncio.task_manager import TaskManager
from plivo import plivoxml
from plivo.rest.client import Client
from plivo.utils import validate_signature, validate_v3_signature
from plivo.utils.signature_v3 import construct_get_url, construct_post_url, get_signature_v3
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter

from tests.providers.commands import hung_up
from tests.providers.companies import Plivo, PlivoStream
from wsvoice.audio import PCMU_8K, AudioFormat, Encoding
from wsvoice.call import Call
from wsvoice.errors import ConfigError, LocalProtocolError, RemoteProtocolError, SignatureError
from wsvoice.providers.base import Callback, CallUpdate, Side, WebhookRequest
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
from wsvoice.providers.plivo.company import CONTENT_TYPES

GOLDEN = Path(__file__).parent.parent / "golden" / "plivo"
NOW = 1_750_000_000.0
FORM_TYPE = "application/x-www-form-urlencoded"
L16_8K, L16_16K = AudioFormat(Encoding.L16, 8000), AudioFormat(Encoding.L16, 16000)

TOKEN = "wsvoice_test_auth_token_0000001"
NONCE = "05429567804466091622"
URL = "https://voice.example.com/plivo"
FORM = {
    "CallUUID": "12345678-1234-1234-1234-123456789abc",
    "CallStatus": "ringing",
    "Direction": "inbound",
    "Event": "StartApp",
    "From": "15550100001",
    "To": "15550100002",
}
CALL = Call(provider="plivo", call_id=FORM["CallUUID"], from_number="+15550100001", to_number="+15550100002")
STARTED = StreamStarted(
    stream_id="87654321-4321-4321-4321-cba987654321",
    call_id=FORM["CallUUID"],
    account_id="MAXXXXXXXXXXXXXXXXXX",
    sequence=1,
)


@pytest.fixture
def plivo() -> Plivo:
    return Plivo({"PLIVO_AUTH_TOKEN": TOKEN})


def post(url: str, fields: Any, **headers: str) -> WebhookRequest:
    return WebhookRequest(
        "POST",
        url,
        {"content-type": FORM_TYPE, **{name.replace("_", "-"): value for name, value in headers.items()}},
        urlencode(fields).encode(),
    )


def get(url: str, **headers: str) -> WebhookRequest:
    return WebhookRequest("GET", url, {name.replace("_", "-"): value for name, value in headers.items()})


def v3(signature: str, nonce: str = NONCE) -> dict[str, str]:
    return {"x_plivo_signature_v3": signature, "x_plivo_signature_v3_nonce": nonce}


def v2(signature: str, nonce: str = NONCE) -> dict[str, str]:
    return {"x_plivo_signature_v2": signature, "x_plivo_signature_v2_nonce": nonce}


# Signatures: vectors made with Plivo's library

POSTED = "MpAyPR0ya29otHDs9en13jgTFs6DBbMzR3ae+57nW/A="
VERSION_2 = "SEwS5gG9bm239PJybV4JrhO7UZWHNinsnUDsZ9GccAc="


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(URL, FORM, **v3(POSTED)), id="post"),
        pytest.param(
            post(URL + "?b=2&a=1", FORM, **v3("xMHhkp1MOaJGCSiwhilL1PbffbYuVCUhFkkOMCAujYE=")), id="post with a query"
        ),
        pytest.param(
            get(f"{URL}?b=2&a=1&{urlencode(FORM)}", **v3("HP5s8SYdaUiwvm6DaJ4QQ8A7x63JjOxJrf73ixS718c=")), id="get"
        ),
        pytest.param(post(URL, {}, **v3("QMI/fSZtAV6goM94frV4+U5/MWwbc/U0IDxO+ekgSeg=")), id="post without fields"),
        pytest.param(post(URL, {}, **v2(VERSION_2)), id="version 2"),
        pytest.param(get(f"{URL}#x", **v2(VERSION_2)), id="version 2, fragment"),
        pytest.param(post(URL, FORM, **v3(f"bm9uZQ==,{POSTED}")), id="several signatures"),
        pytest.param(post(URL, FORM, **v3(f" bm9uZQ== , {POSTED} ,")), id="several signatures and spaces"),
        pytest.param(
            post(URL, FORM, **{**v3(POSTED), "x_plivo_signature_v3": "bm9uZQ==", "x_plivo_signature_ma_v3": POSTED}),
            id="the main account's",
        ),
    ],
)
def test_webhook_vectors(plivo: Plivo, request_: WebhookRequest) -> None:
    plivo.verify(request_, now=NOW)
    for other in (
        dataclasses.replace(request_, url=request_.url.replace("plivo", "plivoo")),
        dataclasses.replace(request_, url=request_.url.replace("https", "http")),
        dataclasses.replace(
            request_, headers={**request_.headers, **{n: "1" for n in request_.headers if "nonce" in n}}
        ),
    ):
        with pytest.raises(SignatureError, match="does not match"):
            plivo.verify(other, now=NOW)
    with pytest.raises(SignatureError, match="does not match"):
        Plivo({"PLIVO_AUTH_TOKEN": "another"}).verify(request_, now=NOW)


def test_a_main_accounts_token_may_be_known_as_well() -> None:
    sub_account = Plivo({"PLIVO_AUTH_TOKEN": "sub", "PLIVO_MAIN_AUTH_TOKEN": "main"})
    signed = sub_account.sign(post(URL, FORM), now=NOW)
    nonce = signed.headers["x-plivo-signature-v3-nonce"]
    for header, token in (("x-plivo-signature-v3", "sub"), ("x-plivo-signature-ma-v3", "main")):
        assert validate_v3_signature("POST", URL, nonce, token, signed.headers[header], dict(FORM))
    for credentials in ({"PLIVO_AUTH_TOKEN": "main"}, {"PLIVO_AUTH_TOKEN": "sub"}, {"PLIVO_MAIN_AUTH_TOKEN": "main"}):
        provider = Plivo(credentials)
        assert provider.can_verify()
        provider.verify(signed, now=NOW)
    only_main = Plivo({"PLIVO_MAIN_AUTH_TOKEN": "main"}).sign(post(URL, FORM), now=NOW)
    assert "x-plivo-signature-v3" not in only_main.headers
    Plivo({"PLIVO_AUTH_TOKEN": "main"}).verify(only_main, now=NOW)


def test_version_2_counts_only_where_there_is_no_version_3(plivo: Plivo) -> None:
    old = v2(VERSION_2)
    plivo.verify(post(URL, {}, **old), now=NOW)
    for newer in (v3("bm9uZQ=="), {"x_plivo_signature_ma_v3": "bm9uZQ==", "x_plivo_signature_v3_nonce": NONCE}):
        with pytest.raises(SignatureError, match="Signature-V3 does not match"):
            plivo.verify(post(URL, FORM, **old, **newer), now=NOW)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "carries no X-Plivo-Signature-V3"),
        ({"x_plivo_signature_v3": POSTED}, "carries no X-Plivo-Signature-V3-Nonce"),
        ({"x_plivo_signature_v2": POSTED}, "carries no X-Plivo-Signature-V2-Nonce"),
        ({"x_plivo_signature_v3_nonce": NONCE}, "carries no X-Plivo-Signature-V3"),
        (v3(" , ,"), "carries no X-Plivo-Signature-V3"),
        (v3("bm9uZQ=="), "does not match"),
    ],
)
def test_what_a_signature_lacks_is_said(plivo: Plivo, headers: dict[str, str], message: str) -> None:
    with pytest.raises(SignatureError, match=message) as caught:
        plivo.verify(post(URL, FORM, **headers), now=NOW)
    assert caught.value.hint
    with pytest.raises(SignatureError, match=message):
        plivo.verify_upgrade(get(URL, **headers), now=NOW)
    with pytest.raises(SignatureError, match="without a secret") as caught:
        Plivo({}).verify(post(URL, FORM, **headers), now=NOW)
    assert caught.value.hint == "set PLIVO_AUTH_TOKEN"


@pytest.mark.parametrize("signature", ["é", "\udc80", POSTED[:-1], "=" * 10_000, "," * 10_000 + "x"])
def test_odd_signatures_are_wrong_signatures(plivo: Plivo, signature: str) -> None:
    with pytest.raises(SignatureError):
        plivo.verify(post(URL, FORM, **v3(signature)), now=NOW)


@pytest.mark.parametrize("request_", [post(URL, FORM, **v2(VERSION_2)), get(f"{URL}?b=2", **v2(VERSION_2))])
def test_version_2_vouches_for_no_field(plivo: Plivo, request_: WebhookRequest) -> None:
    """It covers the address alone: with version 3 taken away, anything could be put beside it."""
    # Plivo's own library cannot tell, for it is not shown the body.
    assert validate_signature(request_.url, NONCE, VERSION_2, TOKEN)
    with pytest.raises(SignatureError, match="version 2 does not cover its fields") as caught:
        plivo.verify(request_, now=NOW)
    assert caught.value.hint


@pytest.mark.parametrize("nonce", ["2.7", "b.05429567804466091622", " 1", "１", "1" * 65, "-1", "0x1"])
def test_a_nonce_has_digits_alone(plivo: Plivo, nonce: str) -> None:
    with pytest.raises(SignatureError, match="not a number"):
        plivo.verify(post(URL, FORM, **v3(their_v3("POST", URL, FORM, nonce), nonce)), now=NOW)


def test_no_text_moves_from_the_form_to_the_nonce(plivo: Plivo) -> None:
    nonce = "05429567804466091622"
    signature = their_v3("POST", URL, {**FORM, "To": "sip:a.b@c.example.com"}, nonce)
    moved = post(URL, {**FORM, "To": "sip:a"}, **v3(signature, f"b@c.example.com.{nonce}"))
    # Plivo's own library takes that.
    fields = {**FORM, "To": "sip:a"}
    assert validate_v3_signature("POST", URL, f"b@c.example.com.{nonce}", TOKEN, signature, fields)
    with pytest.raises(SignatureError):
        plivo.verify(moved, now=NOW)


def test_a_replay_is_known_by_what_is_signed(plivo: Plivo) -> None:
    both = Plivo({"PLIVO_AUTH_TOKEN": TOKEN, "PLIVO_MAIN_AUTH_TOKEN": "main"})
    signed = both.sign(both.webhook(CALL, URL), now=NOW)
    key, retry = both.replay_key(signed)
    own, main = signed.headers["x-plivo-signature-v3"], signed.headers["x-plivo-signature-ma-v3"]
    assert (key, retry) == (own, "")
    # Whatever a forger writes around the signature, or takes away, what is signed stays.
    for written in (
        {"x-plivo-signature-v3": f"x, {own}"},
        {"x-plivo-signature-v3": main},
        {"x-plivo-signature-v3": ""},
    ):
        again = dataclasses.replace(signed, headers={**signed.headers, **written})
        both.verify(again, now=NOW)
        assert both.replay_key(again) == (key, "")
    swapped = dataclasses.replace(signed, body=b"&".join(reversed(signed.body.split(b"&"))))
    both.verify(swapped, now=NOW)
    assert both.replay_key(swapped) == (key, "")
    assert both.replay_key(both.sign(both.webhook(CALL, URL), now=NOW + 1)) != (key, "")
    assert both.replay_key(post(URL, FORM)) == ("", "")
    assert Plivo({}).replay_key(signed) == ("", "")


def test_nothing_is_signed_without_a_secret() -> None:
    nobody = Plivo({"PLIVO_AUTH_TOKEN": "", "PLIVO_AUTH_ID": "MA1"})
    request = post(URL, FORM)
    assert not nobody.can_verify()
    assert nobody.sign(request, now=NOW) == request
    assert nobody.upgrade_headers("wss://h/ws", now=NOW) == {}


def test_a_nonce_looks_like_plivos(plivo: Plivo) -> None:
    signed = plivo.sign(post(URL, FORM), now=NOW)
    nonces = [signed.headers[f"x-plivo-signature-v{n}-nonce"] for n in (2, 3)]
    nonces.append(plivo.upgrade_headers("wss://h/ws", now=NOW)["X-Plivo-Signature-V3-Nonce"])
    assert all(len(nonce) == 20 and nonce.isdigit() for nonce in nonces)
    assert len(set(nonces)) == 3


# Signatures: agreement with Plivo's own library

texts = st.text(max_size=12)
forms = st.lists(st.tuples(st.sampled_from(["From", "To", "CallerName", "a", "A", "ä", ""]) | texts, texts), max_size=8)
urls = st.builds(
    lambda scheme, host, port, path, query: f"{scheme}://{host}{port}{path}{query}",
    st.sampled_from(["https", "http"]),
    st.sampled_from(["voice.example.com", "localhost", "h-1.example.com", "192.0.2.1"]),
    st.sampled_from(["", ":443", ":80", ":7860"]),
    st.from_regex(r"(/[A-Za-z0-9._~%-]{0,8}){0,3}", fullmatch=True),
    # Their library stops at queries that are not ASCII once they are decoded.
    st.sampled_from(["", "?", "?a=1", "?b=2&a=1", "?a=1&b=%20&c=", "?a=2&a=1", "?x=http://y/z", "?q=1+2&=", "?token"]),
)


def as_their_library_takes_it(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    values: dict[str, list[str]] = defaultdict(list)
    for name, value in pairs:
        values[name].append(value)
    return dict(values)


def their_v3(method: str, url: str, fields: dict[str, Any], nonce: str) -> str:
    base_url = construct_get_url(url, dict(fields)) if method == "GET" else construct_post_url(url, fields)
    return str(get_signature_v3(TOKEN.encode(), base_url.decode(), nonce.encode()).decode())


@settings(deadline=None)
@given(url=urls, form=forms, nonce=st.from_regex("[0-9]{1,20}", fullmatch=True))
def test_agreement_with_plivos_library(url: str, form: list[tuple[str, str]], nonce: str) -> None:
    plivo = Plivo({"PLIVO_AUTH_TOKEN": TOKEN})
    request = post(url, form)
    # What a server reads from the body, which is what Plivo's validator is given.
    fields = as_their_library_takes_it(parse_qsl(request.body.decode(), keep_blank_values=True))

    plivo.verify(post(url, form, **v3(their_v3("POST", url, fields, nonce), nonce)), now=NOW)
    for changed in (fields | {"CallUUID": "x"}, fields | {"From": ["1", "x"]}):
        with pytest.raises(SignatureError):
            plivo.verify(post(url, form, **v3(their_v3("POST", url, changed, nonce), nonce)), now=NOW)

    signed = plivo.sign(request, now=NOW)
    headers = signed.headers
    theirs = their_v3("POST", url, fields, headers["x-plivo-signature-v3-nonce"])
    assert headers["x-plivo-signature-v3"] == theirs
    plivo.verify(signed, now=NOW)


@settings(deadline=None)
@given(url=urls, nonce=st.from_regex("[0-9]{1,20}", fullmatch=True))
def test_agreement_with_plivos_library_on_get(url: str, nonce: str) -> None:
    plivo = Plivo({"PLIVO_AUTH_TOKEN": TOKEN})
    plivo.verify(get(url, **v3(their_v3("GET", url, {}, nonce), nonce)), now=NOW)
    with pytest.raises(SignatureError):
        plivo.verify(get(url, **v3(their_v3("GET", url, {"z": "1"}, nonce), nonce)), now=NOW)
    headers = plivo.sign(get(url), now=NOW).headers
    assert headers["x-plivo-signature-v3"] == their_v3("GET", url, {}, headers["x-plivo-signature-v3-nonce"])


@pytest.mark.parametrize("url", [URL, URL + "?b=2&a=1", "http://voice.example.com:8443/", "https://192.0.2.1/plivo"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_plivos_validators_accept_what_we_sign(plivo: Plivo, url: str, method: str) -> None:
    signed = plivo.sign(plivo.webhook(CALL, url, method=method), now=NOW)
    headers = signed.headers
    nonce, signature = headers["x-plivo-signature-v3-nonce"], headers["x-plivo-signature-v3"]
    fields = {} if method == "GET" else dict(signed.form)
    assert validate_v3_signature(method, signed.url, nonce, TOKEN, signature, dict(fields))
    assert not validate_v3_signature(method, signed.url + "&x=1", nonce, TOKEN, signature, dict(fields))
    nonce, signature = headers["x-plivo-signature-v2-nonce"], headers["x-plivo-signature-v2"]
    assert validate_signature(signed.url, nonce, signature, TOKEN)
    assert not validate_signature(signed.url.replace("//", "//x"), nonce, signature, TOKEN)


def test_a_decoded_query_is_signed(plivo: Plivo) -> None:
    plain = get(URL + "?name=J%C3%B6rg+M")
    signed = plivo.sign(plain, now=NOW)
    written_otherwise = dataclasses.replace(signed, url=URL + "?name=J%c3%b6rg%20M")
    plivo.verify(written_otherwise, now=NOW)


# The upgrade's signature

UPGRADE = "wss://voice.example.com/ws/plivo"
HTTPS_FORM = "ckaZXcWOAI22pkiJgY+Fa/OzwRYzH2GawwJ9402nnm4="


@pytest.mark.parametrize(
    ("url", "signature", "words"),
    [
        (UPGRADE, HTTPS_FORM, "the https URL"),
        (UPGRADE + "/", HTTPS_FORM, "the https URL without its trailing slash"),
        (UPGRADE + "/websocket", "o1pQmnpWofnpi97UWd/38Z6+3kIzsj+AMRzGstLRjJA=", "the http URL"),
        (
            UPGRADE,
            "OKcvjnOMss17XlonVN9wUJwDlf6YnIFrxEQOWQC64Wg=",
            "the https URL after GET, as in the documentation's sample",
        ),
    ],
)
@pytest.mark.parametrize("scheme", ["wss", "https", "ws", "http"])
def test_upgrade_vectors(plivo: Plivo, url: str, signature: str, words: str, scheme: str) -> None:
    seen = scheme + url.removeprefix("wss")
    assert plivo.verify_upgrade(get(seen, **v3(signature)), now=NOW) == words
    assert plivo.verify_upgrade(get(seen, **v3(f"bm9uZQ==, {signature}")), now=NOW) == words


@pytest.mark.parametrize("form", ["https", "wss", "http"])
@pytest.mark.parametrize(
    ("signed_url", "asked", "slash"),
    [
        ("h.example.com/ws", "h.example.com/ws", ""),
        ("h.example.com/ws/", "h.example.com/ws", " with a trailing slash"),
        ("h.example.com/ws", "h.example.com/ws/", " without its trailing slash"),
        ("h.example.com:8443/ws?a=1&b=2", "h.example.com:8443/ws?b=2&a=1", ""),
        ("h.example.com/ws/?a=1", "h.example.com/ws?a=1", " with a trailing slash"),
    ],
)
def test_upgrade_forms_in_words(plivo: Plivo, form: str, signed_url: str, asked: str, slash: str) -> None:
    headers = plivo.deviating({"ws-signature-form": form}).upgrade_headers(f"ws://{signed_url}", now=NOW)
    signature, nonce = headers["X-Plivo-Signature-V3"], headers["X-Plivo-Signature-V3-Nonce"]
    assert signature == their_v3("GET", f"{form}://{signed_url}", {}, nonce)
    assert plivo.verify_upgrade(get(f"wss://{asked}", **v3(signature, nonce)), now=NOW) == f"the {form} URL{slash}"


def test_an_upgrade_is_signed_in_its_https_form(plivo: Plivo) -> None:
    headers = plivo.upgrade_headers(UPGRADE, now=NOW)
    assert set(headers) == {"X-Plivo-Signature-V3", "X-Plivo-Signature-V3-Nonce"}
    nonce, signature = headers["X-Plivo-Signature-V3-Nonce"], headers["X-Plivo-Signature-V3"]
    assert validate_v3_signature("GET", UPGRADE.replace("wss", "https"), nonce, TOKEN, signature)
    assert plivo.upgrade_headers(UPGRADE.replace("wss", "ws"), now=NOW) == headers
    with pytest.raises(ConfigError, match="ws-signature-form"):
        plivo.deviating({"ws-signature-form": "ftp"}).upgrade_headers(UPGRADE, now=NOW)


def test_an_upgrade_for_another_path_is_refused(plivo: Plivo) -> None:
    with pytest.raises(SignatureError, match="does not match") as caught:
        plivo.verify_upgrade(get(UPGRADE + "/x", **v3(HTTPS_FORM)), now=NOW)
    assert caught.value.hint is not None
    assert "https://voice.example.com/ws/plivo/x" in caught.value.hint


# The webhook


def test_a_webhook_has_every_documented_field(plivo: Plivo) -> None:
    request = plivo.webhook(CALL, URL)
    assert (request.method, request.url) == ("POST", URL)
    assert request.headers["content-type"] == FORM_TYPE
    assert {**request.fields, **FORM} == request.fields
    assert {"CallerName", "ALegUUID", "BillRate", "AuthID", "ParentAuthID"} <= set(request.fields)
    assert "RequestUUID" not in request.fields


def test_a_webhook_by_get_keeps_the_urls_own_query(plivo: Plivo) -> None:
    request = plivo.webhook(CALL, URL + "?bot=7#here", method="GET")
    assert (request.method, request.body) == ("GET", b"")
    assert request.url.startswith(URL + "?bot=7&AuthID=&CallUUID=1234")
    assert request.url.endswith("#here")
    assert plivo.read_webhook(request) == CALL


def test_an_outbound_call_is_already_in_progress(plivo: Plivo) -> None:
    fields = plivo.webhook(dataclasses.replace(CALL, direction="outbound"), URL).fields
    assert (fields["Direction"], fields["CallStatus"]) == ("outbound", "in-progress")
    assert uuid.UUID(fields["RequestUUID"]) == uuid.UUID(fields["ALegRequestUUID"])


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("15550100001", "+15550100001"),
        ("+15550100001", "+15550100001"),
        ("sip:alice@phone.plivo.com", "sip:alice@phone.plivo.com"),
        ("anonymous", "anonymous"),
        ("", ""),
        ("\u0661\u0662", "\u0661\u0662"),
    ],
)
def test_numbers_get_their_plus(plivo: Plivo, written: str, number: str) -> None:
    call = plivo.read_webhook(post(URL, {**FORM, "From": written, "To": written}))
    assert call is not None
    assert (call.from_number, call.to_number) == (number, number)
    again = plivo.webhook(call, URL).fields
    assert again["From"] == written.removeprefix("+")


@pytest.mark.parametrize("direction", ["inbound", "outbound", ""])
def test_reading_a_webhook(plivo: Plivo, direction: str) -> None:
    call = plivo.read_webhook(post(URL, {**FORM, "Direction": direction, "AuthID": "SA1"}))
    expected: Any = direction or "inbound"
    assert call == dataclasses.replace(CALL, direction=expected, account_id="SA1")


@pytest.mark.parametrize(
    "fields",
    [
        {**FORM, "Event": "Hangup", "CallStatus": "completed"},
        *({**FORM, "Event": "Hangup", "CallStatus": status} for status in ("busy", "failed", "timeout", "no-answer")),
        {**FORM, "CallStatus": "cancel"},
        {**FORM, "Event": "Ring"},
        *(
            {"Event": event, "CallUUID": FORM["CallUUID"], "StreamID": "s"}
            for event in (
                "StartStream",
                "StopStream",
                "DroppedStream",
                "DegradedStream",
                "PlayedStream",
                "ClearedAudio",
                "started",
                "stopped",
                "failed",
            )
        ),
        {"Event": "StartStream"},
        {"CallUUID": FORM["CallUUID"], "StreamID": "s", "Timestamp": "1", "From": "1", "To": "2", "StatusReason": "x"},
    ],
)
def test_reports_are_no_calls(plivo: Plivo, fields: dict[str, str]) -> None:
    for request in (post(URL, fields), get(f"{URL}?{urlencode(fields)}")):
        update = plivo.read_webhook(request)
        assert isinstance(update, CallUpdate)
        assert update.call_id == fields.get("CallUUID", "")


def test_a_report_is_answered_with_200(plivo: Plivo) -> None:
    assert (plivo.acknowledge().status, plivo.acknowledge().body) == (200, "")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_end_of_a_call_is_reported(plivo: Plivo, method: str) -> None:
    assert plivo.progress_webhook(CALL, Callback(URL, method), "answered") is None
    assert plivo.progress_webhook(CALL, Callback(URL, method), "streaming") is None
    request = plivo.progress_webhook(CALL, Callback(URL, method), "ended", duration_s=60.2)
    assert request is not None
    assert request.method == method
    assert plivo.recognises(request)
    update = plivo.read_webhook(request)
    assert isinstance(update, CallUpdate)
    assert (update.call_id, update.ended, update.failed) == (CALL.call_id, True, False)
    fields = request.fields
    assert (fields["Event"], fields["CallStatus"], fields["CallUUID"]) == ("Hangup", "completed", CALL.call_id)
    assert (fields["Duration"], fields["BillDuration"]) == ("61", "120")
    assert fields["From"] == "15550100001"
    plivo.verify(plivo.sign(request, now=NOW), now=NOW)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "no-call"),
        ({"CallUUID": ""}, "no-call"),
        ({"CallSid": "CA1"}, "no-call"),
        ({**FORM, "From": "x" * 300}, "bad-field"),
        ({**FORM, "CallUUID": "1\nERROR"}, "bad-field"),
        ({**FORM, "To": "\x1b[2J"}, "bad-field"),
    ],
)
def test_other_requests_are_no_webhooks(plivo: Plivo, fields: dict[str, str], kind: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        plivo.read_webhook(post(URL, fields))
    assert caught.value.kind == kind


def test_other_providers_are_not_recognised(plivo: Plivo) -> None:
    assert plivo.recognises(post("https://h/", FORM))
    assert not plivo.recognises(post("https://h/", {"CallSid": "CA1", "AccountSid": "AC1", "From": "1", "To": "2"}))
    start = json.loads((GOLDEN / "start.json").read_text())["message"]
    assert plivo.claims(start)
    twilio = json.loads((GOLDEN.parent / "twilio" / "start.json").read_text())["message"]
    assert not plivo.claims(twilio)
    assert not plivo.claims({"event": "start", "start": None})
    assert not plivo.claims({"event": "media", "start": start["start"]})


def test_invented_ids_have_plivos_shape(plivo: Plivo) -> None:
    call = plivo.new_call(from_number="+1", to_number="+2", parameters={"a": "b"}, seed=bytes(range(32)))
    ids = [uuid.UUID(call.call_id), uuid.UUID(call.stream_id)]
    assert [each.version for each in ids] == [4, 4]
    assert [str(each) for each in ids] == [call.call_id, call.stream_id]
    assert call.call_id != call.stream_id
    assert call.account_id.startswith("MA")
    assert len(call.account_id) == 20
    assert (call.from_number, call.to_number, call.parameters) == ("+1", "+2", {"a": "b"})


def test_both_ends_of_a_test_call_have_one_secret() -> None:
    setting = {"PLIVO_STREAM_CONTENT_TYPE": "audio/x-l16;rate=16000"}
    real = {"PLIVO_AUTH_TOKEN": "real", "PLIVO_AUTH_ID": "real", "PLIVO_MAIN_AUTH_TOKEN": "real"}
    carrier, bot = Plivo({**real, **setting}).test_credentials(bytes(range(32)))
    assert "real" not in (*carrier.values(), *bot.values())
    assert {**bot, **carrier, **setting} == bot
    assert set(bot) - set(carrier) - set(setting) == {"PLIVO_AUTH_ID"}
    Plivo(bot).verify(Plivo(carrier).sign(post(URL, FORM), now=NOW), now=NOW)
    other, _ = Plivo({}).test_credentials(bytes(32))
    assert other != carrier


def test_a_test_calls_hang_up_goes_to_the_address_that_is_named() -> None:
    _, bot = Plivo({}).test_credentials(bytes(range(32)))
    sent = Plivo({**bot, "PLIVO_API_BASE_URL": "http://127.0.0.1:41234"}).hang_up(CALL)
    assert sent is not None
    assert sent.url == f"http://127.0.0.1:41234/Account/{bot['PLIVO_AUTH_ID']}/Call/{CALL.call_id}/"
    assert hung_up(Plivo({}), WebhookRequest(sent.method, sent.url)) == CALL.call_id


# The answer


def test_the_answer_is_what_plivos_library_renders(plivo: Plivo) -> None:
    answer = plivo.answer(dataclasses.replace(CALL, parameters={"a": "b"}), "wss://voice.example.com/ws/t?a=1&b=2")
    response = plivoxml.ResponseElement()
    response.add(
        plivoxml.StreamElement(
            "wss://voice.example.com/ws/t?a=1&b=2",
            bidirectional=True,
            keepCallAlive=True,
            audioTrack="inbound",
            contentType="audio/x-mulaw;rate=8000",
            streamTimeout=86400,
        )
    )
    response.add(plivoxml.HangupElement())
    theirs = ElementTree.canonicalize(response.to_string(), strip_text=True)
    assert ElementTree.canonicalize(answer.body, strip_text=True) == theirs
    assert (answer.status, answer.media_type) == (200, "application/xml")


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
def test_the_audio_may_be_chosen(content_type: str) -> None:
    written = content_type.upper().replace(";", " ; ")
    plivo = Plivo({"PLIVO_STREAM_CONTENT_TYPE": written})
    read = plivo.read_answer(plivo.answer(CALL, "wss://h/ws").body.encode(), "text/xml")
    assert read.format == CONTENT_TYPES[content_type]
    assert read.findings == []


def test_another_audio_is_misuse() -> None:
    with pytest.raises(ConfigError, match="audio/x-l16;rate=24000") as caught:
        Plivo({"PLIVO_STREAM_CONTENT_TYPE": "audio/x-l16;rate=24000"})
    assert caught.value.hint is not None
    assert "audio/x-l16;rate=16000" in caught.value.hint


def test_a_stranger_cannot_write_into_the_document(plivo: Plivo) -> None:
    nasty = "</Stream><Hangup/><Stream>wss://evil"
    answer = plivo.answer(dataclasses.replace(CALL, from_number=nasty), f"wss://h/ws/{nasty}")
    root = ElementTree.fromstring(answer.body)
    assert [verb.tag for verb in root] == ["Stream", "Hangup"]
    assert [stream.text for stream in root.iter("Stream")] == [f"wss://h/ws/{nasty}"]


@pytest.mark.parametrize("url", ["https://h/ws", "wss:///ws", "wss://h/" + "x" * 2041])
def test_answers_that_plivo_could_not_use(plivo: Plivo, url: str) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        plivo.answer(CALL, url)
    assert caught.value.kind == "bad-url"
    assert len(caught.value.message) <= 200


def test_a_url_of_2048_characters_is_allowed(plivo: Plivo) -> None:
    url = "wss://h/" + "x" * 2040
    answer = plivo.answer(CALL, url)
    assert plivo.read_answer(answer.body.encode(), answer.media_type).url == url


def test_busy_is_the_documented_hangup(plivo: Plivo) -> None:
    golden = ElementTree.canonicalize((GOLDEN / "hangup-busy.xml").read_text(), strip_text=True)
    assert ElementTree.canonicalize(plivo.busy().body, strip_text=True) == golden
    with pytest.raises(RemoteProtocolError, match="busy") as caught:
        plivo.read_answer(plivo.busy().body.encode(), "application/xml")
    assert caught.value.kind == "rejected"


def test_reading_the_documented_stream(plivo: Plivo) -> None:
    read = plivo.read_answer((GOLDEN / "stream.xml").read_bytes(), "text/xml; charset=utf-8")
    assert read.url == "wss://yourserver.example.com/audiostream"
    assert read.parameters == {"userId": "12345"}
    assert read.format == PCMU_8K
    assert (read.skipped, read.then, read.findings) == ([], [], [])


def xml(inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Response>{inside}</Response>'.encode()


def stream_xml(attributes: str = "", text: str = "wss://h/ws") -> bytes:
    full = {"bidirectional": "true", "keepCallAlive": "true", "contentType": "audio/x-mulaw;rate=8000"}
    given_ = " ".join(f'{name}="{value}"' for name, value in full.items() if name not in attributes)
    return xml(f"<Stream {given_} {attributes}>{text}</Stream>")


def test_elements_before_and_after_the_stream_are_told_in_words(plivo: Plivo) -> None:
    read = plivo.read_answer(
        xml(
            '<Speak voice="WOMAN">Hello\n  you</Speak><Play>https://h/a.mp3</Play><Wait length="3"/><Wait/>'
            '<Hangup schedule="60"/>'
            '<Stream bidirectional="true" keepCallAlive="true" contentType="audio/x-l16;rate=16000">wss://h/ws</Stream>'
            "<Speak>Bye</Speak><Hangup/><Speak>Never</Speak>"
        ),
        "text/xml",
    )
    assert read.skipped == ["Speak: Hello you", "Play: https://h/a.mp3", "Wait: 3 s", "Wait: 1 s", "Hangup: in 60 s"]
    assert read.then == ["Speak: Bye"]
    assert read.format == L16_16K
    assert read.findings == []


@pytest.mark.parametrize(
    ("body", "id_", "level", "message"),
    [
        (stream_xml('bidirectional="false"'), "W5", "fail", "only listens"),
        (stream_xml('audioTrack="both"'), "W5", "fail", "audioTrack"),
        (stream_xml('keepCallAlive="false"'), "W5", "fail", "the call ends"),
        (
            xml('<Stream bidirectional="true" contentType="audio/x-mulaw;rate=8000">wss://h/ws</Stream><Wait/>'),
            "W5",
            "warn",
            "runs while it streams",
        ),
        (xml('<Stream bidirectional="true" keepCallAlive="true">wss://h/ws</Stream>'), "W5", "warn", "contentType"),
        (stream_xml(text="ws://localhost:7860/ws"), "W3", "warn", "wss:// alone"),
        (stream_xml('streamTimeout="soon"'), "W3", "warn", "streamTimeout"),
        (stream_xml('track="inbound"'), "W3", "warn", "does not know: track"),
        (stream_xml('extraHeaders="a=1,b=2"'), "W3", "warn", "one pair"),
        (stream_xml('extraHeaders="a=b-c"'), "W3", "warn", "letters and digits"),
        (stream_xml(f'extraHeaders="a={"x" * 511}"'), "W3", "fail", "512 bytes"),
        (stream_xml().replace(b"</Response>", b"<Stream>wss://h/2</Stream></Response>"), "W3", "warn", "another"),
    ],
)
def test_what_plivo_would_dislike_is_found(plivo: Plivo, body: bytes, id_: str, level: str, message: str) -> None:
    read = plivo.read_answer(body, "application/xml")
    assert [(finding.id, finding.level) for finding in read.findings] == [(id_, level)]
    assert message in read.findings[0].message


def test_audio_that_is_not_named_is_what_the_reference_says(plivo: Plivo) -> None:
    read = plivo.read_answer(xml('<Stream bidirectional="true" keepCallAlive="true">wss://h/ws</Stream>'), "text/xml")
    assert read.format == L16_8K


def test_a_content_type_that_is_no_xml_is_found(plivo: Plivo) -> None:
    read = plivo.read_answer(stream_xml(), "text/html; charset=utf-8")
    assert [(finding.id, finding.level) for finding in read.findings] == [("W3", "warn")]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"", "bad-xml", "empty"),
        (b"<Response>\n  <Speak>", "bad-xml", "line 2, column 10"),
        (b"<html/>", "bad-xml", "'html'; it must be Response"),
        (b"<!DOCTYPE Response><Response/>", "bad-xml", "DOCTYPE"),
        (xml("<Speak>" + "x" * 110_000 + "</Speak>"), "too-large", "102400"),
        (xml(""), "no-stream", "empty <Response>"),
        (xml("<Speak>No</Speak><Hangup/>"), "rejected", "turned away: No"),
        (xml("<Wait/><Hangup/>"), "hung-up", "<Hangup>"),
        (xml('<Hangup reason="rejected"/>'), "rejected", "rejected"),
        (xml("<Redirect>https://h/b</Redirect>"), "redirected", "Redirect"),
        (xml("<Speak>Hi</Speak><Wait/>"), "no-stream", "<Speak>, <Wait>"),
        (xml('<Connect><Stream url="wss://h/ws"/></Connect>'), "no-stream", "<Connect>"),
        (xml('<Stream url="wss://h/ws"/>'), "bad-url", "Twilio's way"),
        (xml("<Stream> \n </Stream>"), "bad-url", "no URL"),
        (stream_xml(text="https://h/ws"), "bad-url", "must be wss"),
        (stream_xml(text="/ws"), "bad-url", "is relative"),
        (stream_xml(text="wss://None:x/ws"), "bad-url", "not a URL"),
        (stream_xml(text="wss://[::1/ws"), "bad-url", "not a URL"),
        (stream_xml(text="wss://h/a b"), "bad-url", "not a URL"),
        (stream_xml(text="wss://h/" + "x" * 2041), "bad-url", "2049 characters"),
        (stream_xml('contentType="audio/mpeg"'), "bad-format", "'audio/mpeg'"),
    ],
)
def test_answers_without_a_stream(plivo: Plivo, body: bytes, kind: str, message: str) -> None:
    with pytest.raises(RemoteProtocolError, match=message) as caught:
        plivo.read_answer(body, "text/xml")
    assert caught.value.kind == kind
    assert len(caught.value.message) <= 200


# The REST API


class Recorder(BaseAdapter):
    """Keeps the requests of Plivo's library, and answers them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[PreparedRequest] = []

    def send(self, request: PreparedRequest, **options: Any) -> Response:
        self.requests.append(request)
        response = Response()
        response.status_code = 204
        response.request = request
        return response

    def close(self) -> None:
        pass


def test_a_hang_up_is_what_plivos_library_sends() -> None:
    account, token = "MA" + "X" * 18, "token"
    recorder = Recorder()
    with Client(account, token) as client:
        client.session.mount("https://", recorder)
        client.calls.delete(CALL.call_id)
    (theirs,) = recorder.requests
    ours = Plivo({"PLIVO_AUTH_ID": account, "PLIVO_AUTH_TOKEN": token}).hang_up(CALL)
    assert ours is not None
    assert (ours.method, ours.url, ours.body) == (theirs.method, theirs.url, b"")
    assert ours.basic_auth == (account, token)
    basic = base64.b64encode(f"{account}:{token}".encode()).decode()
    assert theirs.headers["Authorization"] == f"Basic {basic}"


@pytest.mark.parametrize("credentials", [{}, {"PLIVO_AUTH_ID": "MA1"}, {"PLIVO_AUTH_TOKEN": "token"}])
def test_hanging_up_needs_credentials(credentials: dict[str, str]) -> None:
    assert Plivo(credentials).hang_up(CALL) is None


def test_a_hang_up_is_read_back() -> None:
    plivo = Plivo({"PLIVO_AUTH_ID": "MA1", "PLIVO_AUTH_TOKEN": "token"})
    sent = plivo.hang_up(dataclasses.replace(CALL, call_id="a b/2"))
    assert sent is not None
    received = WebhookRequest(sent.method, sent.url, sent.headers, sent.body)
    assert hung_up(plivo, received) == "a b/2"
    assert hung_up(plivo, WebhookRequest("DELETE", "http://127.0.0.1:1/v1/Account/MA1/Call/x")) == "x"
    for other in (
        WebhookRequest("GET", sent.url),
        WebhookRequest("POST", sent.url),
        WebhookRequest("DELETE", "https://api.plivo.com/v1/Account/MA1/Call/x/Stream/"),
        WebhookRequest("DELETE", "https://api.plivo.com/v1/Account/MA1/Request/x/"),
    ):
        assert hung_up(plivo, other) is None


def test_what_plivo_is(plivo: Plivo) -> None:
    assert plivo.upgrade_error("refused") is None
    assert not plivo.has_credentials(get(UPGRADE))
    assert (plivo.cleared_marks, plivo.queue_limit_s, plivo.ordered) == ("dropped", 60.0, True)


# The stream


def ends(started: StreamStarted = STARTED, **quirks: str) -> tuple[PlivoStream, PlivoStream]:
    plivo = Plivo({})
    named = {name.replace("_", "-"): value for name, value in quirks.items()}
    carrier, bot = plivo.stream(Side.CARRIER, named), plivo.stream(Side.BOT)
    bot.receive(carrier.send(started))
    return carrier, bot


def test_the_carrier_counts_every_message() -> None:
    carrier, bot = PlivoStream(Side.CARRIER), PlivoStream(Side.BOT)
    frame = bytes(160)
    sent: list[Event] = [
        dataclasses.replace(STARTED, sequence=None),
        Audio(frame),
        Digit("A"),
        Audio(frame),
        Mark("m"),
        Cleared(),
        Audio(frame, track="outbound"),
    ]
    messages = [json.loads(carrier.send(event)) for event in sent]
    assert [message["sequenceNumber"] for message in messages] == [1, 2, 3, 4, 5, 6, 7]
    media = [message["media"] for message in messages if message["event"] == "media"]
    assert [(m["track"], m["chunk"], m["timestamp"]) for m in media] == [
        ("inbound", 1, "20"),
        ("inbound", 2, "40"),
        ("outbound", 1, "20"),
    ]
    assert messages[2]["dtmf"] == {"track": "inbound", "digit": "A", "timestamp": "20"}
    received = [bot.receive(json.dumps(message)) for message in messages]
    assert received[1:] == [
        Audio(frame, "inbound", 1, 20, 2),
        Digit("A", 3),
        Audio(frame, "inbound", 2, 40, 4),
        Mark("m", 5),
        Cleared(6),
        Audio(frame, "outbound", 1, 20, 7),
    ]


def test_the_start_names_neither_party() -> None:
    carrier = PlivoStream(Side.CARRIER)
    started = dataclasses.replace(STARTED, from_number="+15550100001", to_number="+15550100002")
    message = carrier.send(started)
    assert "1555" not in message
    assert json.loads(message)["extra_headers"] == "{}"
    assert PlivoStream(Side.BOT).receive(message) == STARTED


@pytest.mark.parametrize(
    ("quirk", "written"),
    [
        ("pairs", "customer=7;plan=gold"),
        ("braces", "{X-PH-customer: 7, X-PH-plan: gold}"),
        ("json", '{"customer": "7", "plan": "gold"}'),
    ],
)
def test_extra_headers_have_three_spellings(quirk: str, written: str) -> None:
    started = dataclasses.replace(STARTED, parameters={"customer": "7", "plan": "gold"})
    carrier, bot = ends(started, extra_headers=quirk)
    message = carrier.send(started)
    assert json.loads(message)["extra_headers"] == written
    assert bot.receive(message) == started
    assert json.loads(carrier.send(Audio(bytes(160))))["extra_headers"] == written


@pytest.mark.parametrize(
    ("written", "parameters"),
    [
        (None, {}),
        ("", {}),
        ("{}", {}),
        (7, {}),
        ([], {}),
        ("nonsense", {}),
        ("=x; ;a=", {"a": ""}),
        ("a=1,b=2", {"a": "1", "b": "2"}),
        (" a = 1 ; b=2=3;", {"a": "1", "b": "2=3"}),
        ("X-PH-a=1", {"a": "1"}),
        ("{X-PH-key1: value1}", {"key1": "value1"}),
        ("{a: b:c, d:}", {"a": "b:c", "d": ""}),
        (
            '{"X-PH-a":"1","n":7,"yes":true,"none":null,"no":[],"nor":{}}',
            {"a": "1", "n": "7", "yes": "true", "none": "null"},
        ),
        ({"a": "1"}, {"a": "1"}),
        ("[" * 1_000, {}),
        ("{" * 1_000 + "}" * 1_000, {}),
        (r'{"a":"\ud800"}', {'"a"': r'"\ud800"'}),
        ("from_number=+15550100001", {"from_number": "+15550100001"}),
    ],
)
def test_extra_headers_are_read_leniently(written: Any, parameters: dict[str, str]) -> None:
    content = {"event": "start", "start": {"streamId": "s", "callId": "c"}, "extra_headers": written}
    started = PlivoStream(Side.BOT).receive(json.dumps(content))
    assert isinstance(started, StreamStarted)
    assert started.parameters == parameters
    assert started.from_number == parameters.get("from_number", "")


@pytest.mark.parametrize("format_", CONTENT_TYPES.values(), ids=CONTENT_TYPES.keys())
def test_every_format_of_plivos(format_: AudioFormat) -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=format_))
    assert carrier.format == bot.format == bot.outbound_format == format_
    frame = format_.silence(format_.bytes_for(20))
    media = json.loads(bot.send(Audio(frame)))["media"]
    assert f"{media['contentType']};rate={media['sampleRate']}" in CONTENT_TYPES
    assert CONTENT_TYPES[f"{media['contentType']};rate={media['sampleRate']}"] == format_
    assert carrier.receive(bot.send(Audio(frame))) == Audio(frame)
    carrier.send(Audio(frame))
    assert json.loads(carrier.send(Audio(frame)))["media"]["timestamp"] == "40"


def test_counters_may_be_strings() -> None:
    carrier, bot = ends(counters="string")
    message = carrier.send(Audio(bytes(160)))
    content = json.loads(message)
    assert (content["sequenceNumber"], content["media"]["chunk"]) == ("2", "1")
    assert bot.receive(message) == Audio(bytes(160), "inbound", 1, 20, 2)


def test_timestamps_may_be_unix_time() -> None:
    carrier, bot = ends(timestamp_base="1705312200000")
    messages = [carrier.send(Audio(bytes(160))) for _ in range(3)]
    assert [json.loads(message)["media"]["timestamp"] for message in messages] == [
        "1705312200020",
        "1705312200040",
        "1705312200060",
    ]
    assert json.loads(carrier.send(Digit("1")))["dtmf"]["timestamp"] == "1705312200060"
    received = [bot.receive(message) for message in messages]
    assert [event.timestamp_ms for event in received if isinstance(event, Audio)] == [0, 20, 40]


@pytest.mark.parametrize("quirks", [{"counters": "words"}, {"extra-headers": "xml"}, {"timestamp-base": "-1"}])
def test_a_quirk_has_its_values(plivo: Plivo, quirks: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=next(iter(quirks))):
        plivo.stream(Side.CARRIER, quirks)


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
@given(
    name=st.text(min_size=1),
    stream_id=st.text(min_size=1),
    parameters=st.dictionaries(st.text().filter(lambda key: not key.lower().startswith("x-ph-")), st.text()),
    how=st.sampled_from(["pairs", "braces", "json"]),
)
def test_any_text_comes_through(name: str, stream_id: str, parameters: dict[str, str], how: str) -> None:
    numbers = {"from_number": parameters.get("from_number", ""), "to_number": parameters.get("to_number", "")}
    started = StreamStarted(stream_id, "c", parameters=parameters, sequence=1, **numbers)
    carrier, bot = ends(started, extra_headers=how)
    assert bot.receive(carrier.send(started)) == started
    assert bot.receive(carrier.send(Mark(name, sequence=5))) == Mark(name, sequence=5)
    assert carrier.receive(bot.send(Mark(name))) == Mark(name)
    for message in (bot.send(Clear()), carrier.send(Audio(b"x"))):
        assert json.loads(message)["streamId"] == stream_id
    assert json.loads(carrier.send(Audio(b"x")))["extra_headers"] == json.loads(carrier.send(started))["extra_headers"]
    assert carrier.receive(bot.send(Clear())) == Clear()
    assert carrier.findings() == []


@pytest.mark.parametrize(
    ("side", "event", "kind"),
    [
        (Side.BOT, Digit("1"), "no-message"),
        (Side.BOT, StreamStopped(), "no-message"),
        (Side.BOT, Mark(""), "bad-mark"),
        (Side.CARRIER, Connected(), "no-message"),
        (Side.CARRIER, StreamStopped(), "no-message"),
        (Side.CARRIER, StreamError("x"), "no-message"),
        (Side.CARRIER, Clear(), "no-message"),
        (Side.CARRIER, Mark(""), "bad-mark"),
        (Side.CARRIER, Digit("12"), "bad-dtmf"),
        (Side.CARRIER, Audio(b"", track="both"), "bad-track"),
        (Side.CARRIER, StreamStarted("", "c"), "bad-start"),
        (Side.CARRIER, StreamStarted("s", "c", format=AudioFormat(Encoding.PCMA, 8000)), "bad-format"),
        (Side.CARRIER, StreamStarted("s", "c", format=AudioFormat(Encoding.L16, 24000)), "bad-format"),
    ],
)
def test_what_an_end_cannot_say(side: Side, event: Any, kind: str) -> None:
    carrier, bot = ends()
    with pytest.raises(LocalProtocolError) as caught:
        (bot if side is Side.BOT else carrier).send(event)
    assert caught.value.kind == kind


@pytest.mark.parametrize("event", [Audio(b""), Digit("1"), Mark("m"), Cleared(), Connected()])
def test_a_carrier_says_nothing_before_the_start(event: Any) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        PlivoStream(Side.CARRIER).send(event)
    assert caught.value.kind == ("no-message" if isinstance(event, Connected) else "not-started")


def start_with(**changes: Any) -> str:
    return json.dumps({"event": "start", "start": {"streamId": "s", "callId": "c", **changes}})


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"\x00", "binary"),
        ("hello", "not-json"),
        ('{"event":NaN}', "not-json"),
        ("[]", "not-object"),
        ("{}", "no-event"),
        ('{"event":1}', "no-event"),
        ('{"event":"start"}', "bad-start"),
        ('{"event":"start","start":[]}', "bad-start"),
        (start_with(streamId=None), "bad-start"),
        (start_with(callId=7), "bad-start"),
        (start_with(mediaFormat=1), "bad-start"),
        (start_with(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": 16000}), "bad-start"),
        (start_with(mediaFormat={"encoding": "audio/x-l16", "sampleRate": 24000}), "bad-start"),
        (start_with(mediaFormat={"encoding": "audio/x-l16", "sampleRate": 7999}), "bad-start"),
        (start_with(mediaFormat={"encoding": "opus", "sampleRate": 8000}), "bad-start"),
        (start_with(mediaFormat={"encoding": ["audio/x-mulaw"], "sampleRate": 8000}), "bad-start"),
        (start_with(mediaFormat={"encoding": "audio/x-mulaw", "sampleRate": 8000.5}), "bad-start"),
        ('{"event":"media"}', "bad-media"),
        ('{"event":"media","media":null}', "bad-media"),
        ('{"event":"media","media":{"payload":7}}', "bad-media"),
        ('{"event":"media","media":{"payload":"****"}}', "bad-base64"),
        ('{"event":"dtmf"}', "bad-dtmf"),
        ('{"event":"dtmf","dtmf":{"digit":"E"}}', "bad-dtmf"),
        ('{"event":"dtmf","dtmf":{"digit":true}}', "bad-dtmf"),
        ('{"event":"playedStream"}', "bad-mark"),
        ('{"event":"playedStream","name":null}', "bad-mark"),
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
        ('{"event":"dtmf","dtmf":{"digit":5},"sequenceNumber":"9"}', Digit("5", 9)),
        ('{"event":"stop"}', StreamStopped()),
        ('{"event":"stop","stop":{"reason":"hangup"},"sequenceNumber":3}', StreamStopped("hangup", 3)),
        ('{"event":"stop","reason":"hangup"}', StreamStopped("hangup")),
        ('{"event":"stop","stop":{"reason":[]}}', StreamStopped()),
        ('{"event":"incorrectPayload"}', StreamError("incorrectPayload")),
        ('{"event":"connected"}', Unknown("connected")),
        ('{"event":"playAudio"}', Unknown("playAudio")),
        ('{"event":"clearedAudio"}', Cleared()),
        ('{"event":"media","media":{"payload":"","timestamp":1.5,"chunk":"x"}}', Audio(b"")),
        (start_with(), StreamStarted("s", "c")),
        (
            start_with(mediaFormat={"encoding": "audio/x-l16;rate=16000", "sampleRate": "16000"}),
            StreamStarted("s", "c", format=L16_16K),
        ),
        (f'{{"event":"{"x" * 5_000}"}}', Unknown("x" * 64)),
    ],
)
def test_what_a_bot_tolerates(message: str, event: Any) -> None:
    _, bot = ends()
    assert bot.receive(message) == event


def play_audio(payload: bytes = b"\xff" * 160, *, stream_id: str | None = None, **media: Any) -> str:
    content = {"contentType": "audio/x-mulaw", "sampleRate": 8000, "payload": base64.b64encode(payload).decode()}
    fields = {name: value for name, value in {**content, **media}.items() if value is not None}
    message = {"event": "playAudio", "media": fields}
    return json.dumps({**message, "streamId": stream_id} if stream_id else message)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (play_audio(contentType=None), "media.contentType is missing"),
        (play_audio(contentType="audio/x-l16"), "'audio/x-l16'; the stream's is audio/x-mulaw"),
        (play_audio(contentType="audio/x-mulaw;rate=8000"), "without rate"),
        (play_audio(contentType="raw"), "'raw'"),
        (play_audio(contentType=[]), "an array"),
        (play_audio(sampleRate=None), "media.sampleRate is missing"),
        (play_audio(sampleRate=16000), "'16000'; the stream's is 8000"),
        (play_audio(sampleRate="16000"), "'16000'"),
        (play_audio(sampleRate=8000.5), "'8000.5'"),
        (play_audio(sampleRate={}), "an object"),
        (play_audio(sampleRate=True), "'True'"),
    ],
)
def test_audio_of_another_format_is_an_incorrect_payload(message: str, words: str) -> None:
    carrier, _ = ends()
    with pytest.raises(RemoteProtocolError) as caught:
        carrier.receive(message)
    assert caught.value.kind == "incorrect-payload"
    assert words in caught.value.message


def test_half_a_sample_is_an_incorrect_payload() -> None:
    carrier, bot = ends(dataclasses.replace(STARTED, format=L16_8K))
    with pytest.raises(RemoteProtocolError, match="middle of a sample") as caught:
        carrier.receive(bot.send(Audio(bytes(321))))
    assert caught.value.kind == "incorrect-payload"


def test_twilios_media_is_not_played() -> None:
    carrier, _ = ends()
    with pytest.raises(RemoteProtocolError, match="playAudio"):
        carrier.receive('{"event":"media","streamSid":"MZ1","media":{"payload":"//8="}}')


@pytest.mark.parametrize(
    ("message", "level", "words"),
    [
        (play_audio(sampleRate="8000"), "warn", "a text"),
        (play_audio(bytes(12 * 1024 + 1)), "warn", "more than 16 KiB"),
        (play_audio(bytes(48 * 1024 + 1)), "fail", "more than 64 KiB"),
        (play_audio(b"RIFF\x24\x00\x00\x00WAVEfmt "), "fail", "WAV header"),
        (play_audio(b""), "warn", "empty payload"),
        (play_audio(stream_id="another"), "warn", "another stream"),
        ('{"event":"checkpoint","name":"m"}', "fail", "no streamId"),
        ('{"event":"clearAudio","streamId":"another"}', "fail", "another stream"),
        ('{"event":"mark"}', "warn", "'mark'"),
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
    for event in (Audio(b"\xff" * 12 * 1024), Mark("m"), Clear()):
        assert carrier.receive(bot.send(event)) == event
    assert carrier.receive(play_audio(stream_id=STARTED.stream_id)) == Audio(b"\xff" * 160)
    assert carrier.findings() == []


def test_keys_that_a_bot_presses() -> None:
    """https://docs.plivo.com/docs/voice/audio-streaming/audio-streaming"""
    carrier, bot = ends()
    assert json.loads(bot.send(SendDigits("1234#"))) == {"event": "sendDTMF", "dtmf": "1234#"}
    assert carrier.receive(bot.send(SendDigits("1234#"))) == SendDigits("1234#")
    assert carrier.findings() == []
    for digits in ("", "12x", "1 2"):
        with pytest.raises(LocalProtocolError, match="keys are of"):
            bot.send(SendDigits(digits))
    for dtmf in (None, "", "12x", 12, ["1"], {"digit": "1"}):
        with pytest.raises(RemoteProtocolError) as caught:
            carrier.receive(json.dumps({"event": "sendDTMF", "dtmf": dtmf}))
        assert caught.value.kind == "bad-dtmf"


# Agreement with pipecat


async def pipecat_serializer() -> PlivoFrameSerializer:
    serializer = PlivoFrameSerializer(STARTED.stream_id, params=PlivoFrameSerializer.InputParams(auto_hang_up=False))
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
    # The reference has no streamId in this message; pipecat adds one.
    theirs = json.loads(serialize(SPEECH))
    assert theirs.pop("streamId") == STARTED.stream_id
    assert json.loads(bot.send(Audio(PCMU_8K.encode(PCM)))) == theirs
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


@pytest.mark.parametrize("event", [STARTED, Mark("m"), Cleared()])
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


def test_pipecat_reads_our_handshake(plivo: Plivo) -> None:
    carrier = plivo.stream(Side.CARRIER)
    handshake = Handshake(carrier.send(STARTED), carrier.send(Audio(bytes(160))))
    kind, call_data = asyncio.run(parse_telephony_websocket(handshake))
    assert kind == "plivo"
    assert call_data.stream_id == STARTED.stream_id
    assert call_data.call_id == CALL.call_id
