"""What Asterisk cannot be asked, and what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from wsvoice.call import Call
from wsvoice.errors import ApiError, UsageError
from wsvoice.phone.accounts import account_for_calls
from wsvoice.providers import load_account, load_server
from wsvoice.providers.account import OutboundCall, PhoneNumber, PlacedCall, ServerAddresses

ACCOUNT = load_account("asterisk")
HERE = ServerAddresses("https://bot.example.com/")
OUTBOUND = OutboundCall("+15551112222", "+15553334444", "https://h/", "wss://h/", "https://h/s", "https://h/m")
CALL = Call("asterisk", "1750000000.1")


@pytest.mark.parametrize(
    ("steps", "words", "instead"),
    [
        (ACCOUNT.describe(), "no account", "core show version"),
        (ACCOUNT.numbers(), "its dial plan", "dialplan show"),
        (ACCOUNT.find_number("+15551112222"), r"\+15551112222", "wsvoice run -t asterisk"),
        (ACCOUNT.point(PhoneNumber("+15551112222"), HERE, lambda saved: None), "points no", "wsvoice run -t asterisk"),
        (ACCOUNT.restore({}, HERE), "changed nothing", "dial plan"),
        (
            ACCOUNT.dial(OUTBOUND),
            "places no calls",
            "channel originate PJSIP/+15551112222@TRUNK extension 100@telephones",
        ),
        (ACCOUNT.cancel(PlacedCall("1750000000.1")), "1750000000.1", "channel request hangup"),
        (ACCOUNT.look_up("x"), "does not ask", "core show channels"),
        (ACCOUNT.hang_up(CALL), "1750000000.1", "channel request hangup"),
        (ACCOUNT.transfer(CALL, "+15550000000"), "transfers no", "Dial(PJSIP/+15550000000@TRUNK)"),
        (ACCOUNT.send_digits(CALL, "1"), "presses no", "PlayDTMF"),
        (ACCOUNT.evidence("x"), "records", "/var/log/asterisk"),
    ],
)
def test_every_operation_says_what_to_do_instead(steps: Any, words: str, instead: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        next(steps)
    assert caught.value.kind == "unsupported"
    assert instead in (caught.value.hint or "")
    assert "\n" not in f"{caught.value.message}{caught.value.hint}"


def test_it_needs_no_credentials_and_has_neither_numbers_nor_calls() -> None:
    ACCOUNT.check_credentials()
    assert not ACCOUNT.has_numbers
    assert not ACCOUNT.has_calls


def test_what_it_says_of_the_dial_plan_is_what_is_printed() -> None:
    lines = "\n".join(load_server("asterisk").setup_lines("wss://bot.example.com/ws/asterisk/key"))
    assert "[telephones]" in lines
    assert "exten => 100,1," in lines
    told = " ".join(ACCOUNT.how_to_point("+15551112222", HERE))
    assert "extension 100" in told
    assert "+15551112222" in told


def test_a_command_that_would_place_a_call_says_so_in_one_line() -> None:
    with pytest.raises(UsageError, match="cannot place or end Asterisk's calls") as caught:
        account_for_calls("asterisk", {})
    assert "channel originate PJSIP/NUMBER@TRUNK" in (caught.value.hint or "")
