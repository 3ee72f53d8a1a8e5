"""
What the simulated caller looks at, and what each finding means.

A finding is made only of what was seen in the call. Three checks have to provoke what they look at, and do so with
``wsvoice dial --probe`` only.
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
#: How long the caller may wait for the bot's first sound.
RESPONSE_WARN_MS = 3000.0
#: How long a bot may talk on when the caller interrupts it.
BARGE_IN_MS = 300.0
#: A bot that is further ahead of real time has audio in the provider's buffer that it can only throw away.
MAX_LEAD_MS = 5000.0
#: Less audible audio than this may be lost at the end without anybody's missing it.
MAX_LOST_MS = 100.0


@dataclass(frozen=True, slots=True)
class Check:
    """
    Something that is looked at in a call.

    Attributes:
        holds: What should hold, in one line.
        hint: What to do where it does not.
        provoked: Whether it is looked at with ``--probe`` only.
    """

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
        "give the server the provider's signing secret",
        provoked=True,
    ),
    "W3": Check(
        "the answer is a document that the provider can read, with a wss:// stream",
        "compare the answer with the provider's reference",
    ),
    "W4": Check(
        "the answer names codec, mode and whether to dial again, whose defaults do harm",
        'set codec, bidirectionalMode="rtp" and enableReconnect="false"',
    ),
    "W5": Check(
        "the answer names the audio's type, both directions, and keeps the call up",
        "set contentType, bidirectional and keepCallAlive",
    ),
    "W6": Check(
        "what the answer names beside the stream, such as an action or a status callback, answers with 2xx",
        "look at the server's log: a path is wrong, or its check of the signature",
    ),
    "S1": Check(
        f"the WebSocket opens within {CONNECT_LIMIT_S:g} s, with no subprotocol or extension forced on it",
        "look at the server's log: a stream token, a path, TLS or a proxy is wrong",
    ),
    "S2": Check(
        "the call survives silence, unknown events, bad base64, arrays, other counters and media out of order",
        "ignore what cannot be read, and bound every wait for the first media",
        provoked=True,
    ),
    "S3": Check(
        f"the bot is heard within {RESPONSE_WARN_MS / 1000:g} s of the caller's last word",
        "stream the answer, or say that it takes a moment",
    ),
    "M1": Check(
        "what the bot sends is as the provider wants it",
        "compare the message with the provider's reference",
    ),
    "M2": Check(
        "the bot's audio comes in time, and not far ahead of it",
        f"pace the audio: at most {MAX_LEAD_MS / 1000:g} s ahead, and never behind",
    ),
    "M3": Check(
        f"a bot that is interrupted is silent, or clears its audio, within {BARGE_IN_MS:g} ms",
        "send the provider's clear as soon as the caller speaks",
        provoked=True,
    ),
    "M4": Check(
        "every mark comes back once, and no two have the same name",
        "number the marks",
    ),
    "E1": Check(
        "the server lets go of a call that was hung up within 5 s",
        "close the WebSocket when the other end does",
    ),
    "E2": Check(
        "the bot's last words are played before it ends the call",
        "wait for a mark after the last audio",
    ),
}


def explain(ids: Iterable[str]) -> Iterator[str]:
    """Return, for each of the checks in their order, a line with what should hold and one with the hint."""
    wanted = set(ids)
    for id, check in CHECKS.items():
        if id in wanted:
            yield f"{id} asks that {check.holds}"
            yield f"   hint: {check.hint}"
