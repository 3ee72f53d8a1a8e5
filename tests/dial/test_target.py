"""What can be dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsvoice.dial.target import HostOverride, Target, parse_target, shortened
from wsvoice.errors import BotNotFoundError, UsageError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("", "webhook", "http://localhost:7860/"),
        ("  ", "webhook", "http://localhost:7860/"),
        ("http://localhost:7860", "webhook", "http://localhost:7860/"),
        ("HTTPS://bot.example.com/twilio?a=b#ct=1", "webhook", "https://bot.example.com/twilio?a=b"),
        ("localhost:7860", "webhook", "http://localhost:7860/"),
        ("127.0.0.1:80/twilio", "webhook", "http://127.0.0.1:80/twilio"),
        ("http://[::1]:7860/", "webhook", "http://[::1]:7860/"),
        ("ws://localhost:7860/ws", "stream", "ws://localhost:7860/ws"),
        ("wss://bot.example.com", "stream", "wss://bot.example.com/"),
        ("my_bots.support:agent", "bot", "my_bots.support:agent"),
        ("folder/", "bot", "folder/"),
    ],
)
def test_a_target_is_told_by_its_looks(text: str, kind: str, value: str) -> None:
    target = parse_target(text)
    assert (target.kind, target.value) == (kind, value)


def test_a_bot_file_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "bot.py"
    with pytest.raises(BotNotFoundError, match=r"bot\.py does not exist"):
        parse_target(str(path))
    path.write_text("")
    assert parse_target(str(path)) == Target("bot", str(path))
    assert parse_target(f"{path}:agent") == Target("bot", f"{path}:agent")


@pytest.mark.parametrize(
    "text", ["ftp://bot.example.com/", "http://", "http://host:port/", "http://[::1/", "+1 (555) 010-0002"]
)
def test_what_cannot_be_dialled_is_the_users_mistake(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert caught.value.hint
    assert caught.value.exit_code == 2


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
def test_a_detour_is_for_its_host_only(url: str, goes_to: str) -> None:
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
