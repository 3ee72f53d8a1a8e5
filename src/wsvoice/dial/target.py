"""What a test call is placed to: a webhook, a stream, or a bot that is served first."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from wsvoice.config import is_phone_number
from wsvoice.errors import BotNotFoundError, UsageError

#: Where ``wsvoice run`` listens unless it is told otherwise.
DEFAULT_TARGET = "http://localhost:7860/"

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}(/.*)?")


@dataclass(frozen=True, slots=True)
class Target:
    """What is dialled: a webhook's or stream's URL, or a bot as ``wsvoice run`` takes it."""

    kind: Literal["webhook", "stream", "bot"]
    value: str


def parse_target(text: str) -> Target:
    """
    Return the target that `text` names.

    Raises:
        UsageError: If it names nothing that can be dialled.
    """
    text = text.strip() or DEFAULT_TARGET
    if is_phone_number(text):
        raise UsageError(
            f"{text} is a phone number, and a test call is placed to a bot, a webhook or a stream",
            hint="`wsvoice dial +15551234567` places a real call",
        )
    if re.fullmatch(r":?\d{2,5}", text):
        raise UsageError(f"{text} is a port without a host", hint=f"dial `localhost:{text.removeprefix(':')}`")
    if _HOST_AND_PORT.fullmatch(text):
        text = f"http://{text}"
    if "://" not in text:
        return _bot(text)

    scheme = text.partition("://")[0].lower()
    if scheme not in ("http", "https", "ws", "wss"):
        raise UsageError(
            f"{scheme}:// cannot be dialled", hint="a webhook is http:// or https://, a stream ws:// or wss://"
        )
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{text} is not a URL: {error}", hint=f"write it like {DEFAULT_TARGET}") from None
    if not host:
        raise UsageError(f"{text} has no host", hint=f"write it like {DEFAULT_TARGET}")
    # A request without a path asks for "/", which is then part of the URL that is signed.
    url = parts._replace(scheme=scheme, path=parts.path or "/", fragment="").geturl()
    return Target("webhook" if scheme.startswith("http") else "stream", url)


def _bot(text: str) -> Target:
    path = Path(re.sub(r"\.py:\w+$", ".py", text))
    if path.suffix == ".py" and not path.is_file():
        raise BotNotFoundError(f"{path} does not exist", hint="give the path of a bot file, or a URL to dial")
    return Target("bot", text)
