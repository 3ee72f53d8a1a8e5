"""Addresses of a test call, and how they are shown."""

from __future__ import annotations

import pytest

from wsvoice.dial.addresses import HostOverride, shortened


@pytest.mark.parametrize(
    ("url", "goes_to"),
    [
        ("https://bot.invalid/", "http://127.0.0.1:41234/"),
        ("https://bot.invalid/a?b=c", "http://127.0.0.1:41234/a?b=c"),
        ("wss://bot.invalid/ws/twilio/token", "ws://127.0.0.1:41234/ws/twilio/token"),
        ("wss://bot.example.com/ws", "wss://bot.example.com/ws"),
        ("wss://bot.invalid:8443/ws", "wss://bot.invalid:8443/ws"),
    ],
)
def test_an_override_is_for_its_host_only(url: str, goes_to: str) -> None:
    assert HostOverride("bot.invalid", "http://127.0.0.1:41234/").apply(url) == goes_to


def test_urls_and_ids_are_cut_for_people() -> None:
    assert shortened("https://bot.example.com/next?a=1") == "https://bot.example.com/next?a=1"
    token = "WyJ0d2lsaW8iLCJDQTNmMzFmYi"
    assert (
        shortened(f"wss://bot.example.com:8443/ws/twilio/{token}")
        == "wss://bot.example.com:8443/ws/twilio/WyJ0d2lsaW..."
    )
    assert shortened(f"http://127.0.0.1:80/?CallSid={token}") == "http://127.0.0.1:80/?CallSid=Wy..."
    assert shortened("https://" + "a-very-long-name." * 3 + "com/") == "https://" + "a-very-long-name." * 3 + "com/"
    assert shortened("v3:" + "x" * 63) == "v3:xxxxxxx..."
    assert shortened("MZ123") == "MZ123"
