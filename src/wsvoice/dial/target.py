"""
What a test call is placed to: a webhook, a stream, or a bot that is to be served first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from wsvoice.errors import BotNotFoundError, UsageError

#: Where ``wsvoice run`` listens unless it is told otherwise.
DEFAULT_TARGET = "http://localhost:7860/"

_HOST_AND_PORT = re.compile(r"[A-Za-z0-9.-]+:\d{1,5}(/.*)?")
_PHONE_NUMBER = re.compile(r"\+[\d ().-]+")


@dataclass(frozen=True, slots=True)
class Target:
    """
    What is dialled.

    Attributes:
        kind: ``webhook`` and ``stream`` have a URL, ``bot`` has what ``wsvoice run`` takes.
        value: The URL, or the bot.
    """

    kind: Literal["webhook", "stream", "bot"]
    value: str


@dataclass(frozen=True, slots=True)
class Detour:
    """
    A host that stands for a server on this machine, as a tunnel's does.

    Attributes:
        host: The host that URLs name and signatures cover.
        local_url: Where its requests go.
    """

    host: str
    local_url: str

    def apply(self, url: str) -> str:
        """Return where a request for `url` goes: to this machine, without TLS, if it is for the host."""
        parts = urlsplit(url)
        if parts.netloc != self.host:
            return url
        scheme = "ws" if parts.scheme.startswith("ws") else "http"
        return parts._replace(scheme=scheme, netloc=urlsplit(self.local_url).netloc).geturl()


def parse_target(text: str) -> Target:
    """
    Tell what `text` names.

    Raises:
        UsageError: If it is nothing that can be dialled.
    """
    text = text.strip() or DEFAULT_TARGET
    if _PHONE_NUMBER.fullmatch(text):
        raise UsageError(
            f"real calls, as to {text}, cannot be placed yet",
            hint="dial a webhook's URL, a stream's URL or a bot file; or ring the bot's number from a phone",
        )
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
    # A request for no path is one for "/", and that is the URL that the other side checks a signature with.
    url = parts._replace(scheme=scheme, path=parts.path or "/", fragment="").geturl()
    return Target("webhook" if scheme.startswith("http") else "stream", url)


def _bot(text: str) -> Target:
    path = Path(re.sub(r"\.py:\w+$", ".py", text))
    if path.suffix == ".py" and not path.is_file():
        raise BotNotFoundError(f"{path} does not exist", hint="give the path of a bot file, or a URL to dial")
    return Target("bot", text)
