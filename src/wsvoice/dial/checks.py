"""
What a test call checks, and what each finding means.

Three checks have to provoke what they look for, so they run with ``wsvoice dial --probe`` only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

#: A slower webhook is a finding.
WEBHOOK_WARN_S = 2.0
#: A slower webhook fails the call.
WEBHOOK_LIMIT_S = 15.0
#: For a WebSocket to open.
CONNECT_LIMIT_S = 10.0
#: How long the bot may take to answer a turn.
RESPONSE_WARN_MS = 3000.0
#: How long a bot may go on talking when the caller interrupts it.
BARGE_IN_MS = 300.0
#: How far the bot's audio may be ahead of real time.
MAX_LEAD_MS = 5000.0
#: Less audio than this may be lost at the end: nobody notices.
MAX_LOST_MS = 100.0

#: The close codes of a stream that was ended in good order.
CODES_IN_ORDER = (1000, 1005)
_CODES = {
    1001: "the server stopped during the call (1001)",
    1006: "the connection broke: the bot's end went away without closing it (1006)",
    1008: "the bot refused the call: it closed it with 1008",
    1009: "the bot found a message too large: it closed the call with 1009",
    1011: "the bot crashed (it closed the call with 1011)",
    1012: "the server stopped during the call (1012)",
    1013: "the bot's server is overloaded: it closed the call with 1013",
}


def describe_close(code: int | None, reason: str) -> str:
    """Return in words how a bot closed a stream out of order."""
    text = _CODES.get(code or 1006, f"the bot closed the call with {code}")
    return f"{text} ({reason})" if reason else text


@dataclass(frozen=True, slots=True)
class Check:
    """What should hold in a call, what to do if it does not, and whether only ``--probe`` provokes it."""

    holds: str
    hint: str
    provoked: bool = False


CHECKS: Mapping[str, Check] = {
    "W1": Check(
        f"the webhook answers within {WEBHOOK_WARN_S:g} s, and at the latest within {WEBHOOK_LIMIT_S:g} s",
        "answer first, and look things up once the stream has started",
    ),
    "W2": Check(
        "a webhook without a signature is refused with 403",
        "give the server the secret that the provider's webhooks are checked with",
        provoked=True,
    ),
    "W3": Check(
        "the answer is a document that the provider can read, with a wss:// stream",
        "compare the answer with the provider's reference",
    ),
    "W4": Check(
        "the answer leaves nothing to a default that spoils the audio or dials an ended stream again",
        "set what the finding names",
    ),
    "W5": Check("the answer asks for a stream in both directions that keeps the call up", "set what the finding names"),
    "W6": Check(
        "every other URL in the answer, such as an action or a status callback, answers with 2xx",
        "look at the server's log: the path or the signature check is wrong",
    ),
    "S1": Check(
        f"the WebSocket opens within {CONNECT_LIMIT_S:g} s, with no subprotocol or extension forced on it",
        "look at the server's log: the stream token, the path, TLS or a proxy is wrong",
    ),
    "S2": Check(
        "the call survives silence, unknown events, bad base64, arrays, other counters and media out of order",
        "ignore what cannot be read, and limit every wait for the first media",
        provoked=True,
    ),
    "S3": Check(
        f"the bot is heard within {RESPONSE_WARN_MS / 1000:g} s of the caller's last word",
        "stream the answer, or say that it takes a moment",
    ),
    "M1": Check(
        "the bot's messages are as the provider documents them",
        "compare the message with the provider's reference",
    ),
    "M2": Check(
        "the bot's audio arrives in time, and not far ahead of time",
        f"pace the audio: at most {MAX_LEAD_MS / 1000:g} s ahead, and never late",
    ),
    "M3": Check(
        f"a bot that is interrupted falls silent, or clears its audio, within {BARGE_IN_MS:g} ms",
        "send the provider's clear as soon as the caller speaks",
        provoked=True,
    ),
    "M4": Check("no two marks have the same name, and not too many wait at once", "number the marks"),
    "E1": Check(
        "the server closes the stream within 5 s of the caller's hang-up",
        "close the WebSocket when the other end does",
    ),
    "E2": Check("the bot's last words are played before it ends the call", "wait for a mark after the last audio"),
}


def explain(ids: Iterable[str]) -> Iterator[str]:
    """Yield two lines for each of these checks: what should hold, and what to do."""
    wanted = set(ids)
    for id, check in CHECKS.items():
        if id in wanted:
            yield f"{id} asks that {check.holds}"
            yield f"   hint: {check.hint}"
