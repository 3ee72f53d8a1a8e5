"""What a page may say, and what no page of ours says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsvoice.browser_phone.messages import (
    Allowance,
    Dial,
    FloodError,
    HangUp,
    PageError,
    Press,
    Save,
    check_sound,
    read_message,
)


def test_what_a_page_says() -> None:
    told = {"type": "dial", "rate": 48000, "transport": "plivo", "param": ["a=b"], "from": "+15550100001"}
    flags = {"transport": "plivo", "param": ["a=b"], "from": "+15550100001"}
    assert read_message(json.dumps(told)) == Dial(48000, flags)
    assert read_message('{"type": "press", "keys": "1#"}') == Press("1#")
    assert read_message('{"type": "hang-up"}') == HangUp()
    assert read_message('{"type": "save", "call": 3, "file": "a"}') == Save(3, "a")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no JSON"),
        ("[" * 8000, "no JSON"),
        ("x" * 9000, "9000 characters"),
        ("[]", "no kind"),
        ('{"type": []}', "no kind"),
        ('{"type": "shell"}', "no kind"),
        ('{"type": "dial"}', "has no 'rate'"),
        ('{"type": "dial", "rate": 7999}', "wrong 'rate'"),
        ('{"type": "dial", "rate": true}', "wrong 'rate'"),
        ('{"type": "dial", "rate": 1e9}', "wrong 'rate'"),
        ('{"type": "dial", "rate": 48000, "record": "/etc/x"}', "something else in it: 'record'"),
        ('{"type": "dial", "rate": 48000, "caller": "evil.py"}', "something else in it: 'caller'"),
        ('{"type": "dial", "rate": 48000, "target": ["a"]}', "wrong 'target'"),
        ('{"type": "dial", "rate": 48000, "target": "a\\u0000b"}', "wrong 'target'"),
        (json.dumps({"type": "dial", "rate": 48000, "param": ["a=b"] * 51}), "wrong 'param'"),
        (json.dumps({"type": "dial", "rate": 48000, "from": "1" * 2001}), "wrong 'from'"),
        ('{"type": "press", "keys": "e"}', "wrong 'keys'"),
        ('{"type": "press", "keys": ""}', "wrong 'keys'"),
        (json.dumps({"type": "press", "keys": "1" * 21}), "wrong 'keys'"),
        ('{"type": "save", "call": -1}', "wrong 'call'"),
        ('{"type": "hang-up", "now": 1}', "something else"),
    ],
)
def test_what_no_page_says(text: str, complaint: str) -> None:
    with pytest.raises(PageError, match=complaint.replace("[", r"\[")):
        read_message(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda each: st.lists(each) | st.dictionaries(st.text(), each),
    )
)
def test_whatever_is_said_is_read_or_refused(value: object) -> None:
    with pytest.raises(PageError):
        read_message(json.dumps(value))


def test_sound_is_whole_and_short() -> None:
    check_sound(bytes(2 * 4800), 48_000)
    with pytest.raises(PageError, match="half a sample"):
        check_sound(bytes(3), 48_000)
    with pytest.raises(PageError, match="110 ms"):
        check_sound(bytes(2 * 5280), 48_000)


def test_an_allowance_fills_up_with_time() -> None:
    now = 100.0
    allowance = Allowance(lambda: now, 5.0, 1.1)
    for _ in range(100):
        now += 1
        allowance.spend(1.0, "more sound")
    allowance.spend(4.0, "more sound")
    with pytest.raises(FloodError, match="more sound than a call has"):
        allowance.spend(0.1, "more sound")
