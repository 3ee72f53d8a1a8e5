"""What can be dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsvoice.dial.target import Target, parse_target
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
