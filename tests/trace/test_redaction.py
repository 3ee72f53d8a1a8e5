"""What must not be in a trace."""

from __future__ import annotations

import json

import pytest

from wsvoice.call import Call
from wsvoice.trace.redaction import MASK, Masks

CALL = Call(
    provider="twilio",
    call_id="CA1",
    from_number="+15551230001",
    to_number="sip:alice@example.com",
    parameters={"customer": "Zoë Müller", "n": "1", "session_token": "abcdef"},
)


@pytest.mark.parametrize(
    "text",
    [
        '{"start":{"customParameters":{"token":"s3cr3t-s3cr3t"}}}',
        '{\\"auth_token\\": \\"s3cr3t-s3cr3t\\"}',
        "CallSid=CA1&CallToken=s3cr3t-s3cr3t&x=1",
        "x-twilio-signature: s3cr3t-s3cr3t",
        "Authorization: Bearer s3cr3t-s3cr3t",
        "authorization='Basic s3cr3t-s3cr3t'",
        '<Parameter name="apiKey" value="s3cr3t-s3cr3t"/>',
        '<Stream url="wss://b.example/ws/twilio/eNqLVkpU0jGMBQAH.s3cr3t-s3cr3t"/>',
        '<Stream url="wss://b.example/ws/s3cr3t-s3cr3ts3cr3t"/>',
        "the key is eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s3cr3t-s3cr3t",
    ],
)
def test_a_secret_is_known_by_what_stands_before_it(text: str) -> None:
    masked = Masks().text(text)
    assert "s3cr3t" not in masked
    assert MASK in masked


def test_a_known_secret_is_left_out_however_it_is_written() -> None:
    secret = 'p/w+"ü='
    masks = Masks([secret])
    for text in (f"say {secret}", json.dumps({"x": secret}), "a=p%2Fw%2B%22%C3%BC%3D&b", r"p\/w+\"ü="[:4]):
        assert "w+" not in masks.text(text).replace("%2B", "+") or text == r"p\/w"


@pytest.mark.parametrize(
    "text",
    [
        '{"event":"mark","streamSid":"MZ1","mark":{"name":"m1"}}',
        '<Connect><Stream url="wss://b.example/ws"/></Connect>',
        "stream started: somebody calls the bot",
        "tokens per second 5",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masks(["wholly-other"]).text(text) == text


def test_who_called_is_left_out() -> None:
    masks = Masks(who=True)
    masks.learn(CALL)
    text = "From=%2B15551230001&from 15551230001 or +44 and +442071838750 to sip:alice@example.com: Zoë Müller"
    masked = masks.text(text + json.dumps("Zoë Müller"))
    for word in ("5551230001", "442071838750", "alice", "ller"):
        assert word not in masked
    call = masks.call(CALL)
    assert (call.from_number, call.to_number, call.call_id) == (MASK, MASK, "CA1")
    assert dict(call.parameters) == {"customer": MASK, "n": MASK, "session_token": MASK}


def test_without_redaction_only_secrets_are_left_out() -> None:
    masks = Masks()
    masks.learn(CALL)
    assert masks.text("from +15551230001") == "from +15551230001"
    assert masks.call(CALL).from_number == "+15551230001"
    assert dict(masks.call(CALL).parameters) == {**CALL.parameters, "session_token": MASK}


@pytest.mark.parametrize(
    "text",
    [
        '{"event":"dtmf","dtmf":{"track":"inbound_track","digit":"7"}}',
        "Digits=7777&CallSid=CA1",
        "the caller pressed 7",
        "the bot presses 77",
    ],
)
def test_digits_are_left_out_where_that_is_asked_for(text: str) -> None:
    assert "7" in Masks(who=True).text(text)
    assert "7" not in Masks(digits=True).text(text)


def test_values_of_a_report_are_looked_through() -> None:
    masks = Masks(digits=True)
    report = {"digits": "123", "causes": [{"message": "token=abcdefgh"}], "n": 5, "none": None}
    assert masks.values(report) == {"digits": MASK, "causes": [{"message": f"token={MASK}"}], "n": 5, "none": None}


def test_a_long_message_takes_no_long_time() -> None:
    masks = Masks(["a" * 40], who=True, digits=True)
    for text in ("token" * 13_000, "a" * 65_000, '"token":' * 8000, "eyJ" * 20_000, "+1" * 30_000):
        masks.text(text)
