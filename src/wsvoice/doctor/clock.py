"""This machine's clock, against those of the providers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing, suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from wsvoice import http
from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.doctor.subject import Subject
from wsvoice.errors import HttpError, WsvoiceError
from wsvoice.providers.base import HttpRequest

#: Providers that sign the time, as Telnyx does, are not believed beyond so many seconds.
LIMIT_S = 300.0
#: From when on a difference is worth a word; the header's resolution is one second.
NOTABLE_S = 30.0
_TIMEOUT_S = 5.0


async def look_at_clock(subject: Subject) -> list[Result]:
    """Compare the clock with those of the providers' APIs, which say the time in each answer."""
    origins = list(dict.fromkeys(filter(None, (_api_of(subject, name) for name in subject.providers))))
    if not origins:
        return [skipped("no provider is known whose clock could be asked")]
    found = await asyncio.gather(*(_ahead_s(subject, each) for each in origins))
    return [judge([each for each in found if each is not None])]


def judge(ahead_s: Sequence[float]) -> Result:
    """
    Return what the differences come to.

    Args:
        ahead_s: By how many seconds this clock is ahead of each of the others.
    """
    if not ahead_s:
        return skipped("no provider's API answered")
    # The middle one: a single server may be wrong itself.
    middle = sorted(ahead_s)[len(ahead_s) // 2]
    direction = "ahead" if middle > 0 else "behind"
    text = f"this machine's clock is {abs(middle):.0f} s {direction}"
    mend = "let it be set by the network (timedatectl set-ntp true)"
    if abs(middle) >= LIMIT_S:
        return fail(f"{text}: signed webhooks look too old, or as if from the future, and are refused", mend)
    if abs(middle) >= NOTABLE_S:
        return warn(f"{text}; from {LIMIT_S:g} s on signed webhooks are refused", mend)
    return ok(f"this machine's clock is right to {max(1.0, abs(middle)):.0f} s")


def _api_of(subject: Subject, name: str) -> str:
    """Return the origin of a provider's API; empty if it has none, or its address is unknown."""
    try:
        with closing(subject.account(name).describe()) as steps:
            parts = urlsplit(next(steps).url)
    except (WsvoiceError, StopIteration):
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/"


async def _ahead_s(subject: Subject, url: str) -> float | None:
    """Return by how many seconds our clock is ahead of a server's; ``None`` if it does not say the time."""
    before = subject.now()
    with suppress(HttpError, ValueError, TypeError, OverflowError):
        response = await http.send(HttpRequest("GET", url), timeout_s=_TIMEOUT_S)
        said = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        # It is cut to the second, so the true time is half a second later on average.
        return (before + subject.now()) / 2 - (said + 0.5)
    return None
