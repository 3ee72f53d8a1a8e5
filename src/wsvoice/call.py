"""A telephone call, and what went wrong in one, as all layers know them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["inbound", "outbound"]
Control = Literal["document", "api"]
#: How far a call is, in words that are the same for every provider; the last five are how it ended.
Stage = Literal["queued", "ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"]
#: Who answered an outbound call, as far as its provider can tell.
AnsweredBy = Literal["human", "machine", "fax", "unknown"]

#: The stages of a call that is over.
ENDED_STAGES: frozenset[Stage] = frozenset({"completed", "busy", "no-answer", "failed", "canceled"})

#: How long an id may be to be shown whole. Of longer ones the beginning and the end are shown.
ID_LIMIT = 16
ID_HEAD, ID_TAIL = 8, 4


def short_id(call_id: str) -> str:
    """Return the id as the log shows it: whole, or the beginning and the end of a long one."""
    return call_id if len(call_id) <= ID_LIMIT else f"{call_id[:ID_HEAD]}…{call_id[-ID_TAIL:]}"


def plural(count: int, noun: str) -> str:
    """Return how many of something there are, in words."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True, slots=True)
class Call:
    """
    One telephone call, with what its provider says about it.

    Attributes:
        provider: The provider's name, as in ``wsvoice run -t NAME``.
        call_id: The provider's id of the call (Twilio's ``CallSid``, Telnyx's ``call_control_id`` …).
        stream_id: The id of its media stream; empty until the stream has started.
        account_id: The account that owns the call; a sub-account's id if the number belongs to one.
        from_number: Who calls, in E.164 if the provider knows it, else as it says (``client:…``, ``sip:…``).
        to_number: Who is called.
        direction: ``inbound`` if the bot is called, ``outbound`` if the bot calls.
        parameters: The user's own parameters (``--param``, TwiML ``<Parameter>`` …).
        control: How the call is controlled: by the ``document`` in the webhook's answer, or by requests to the
            provider's ``api`` (Telnyx's Call Control).
    """

    provider: str
    call_id: str
    stream_id: str = ""
    account_id: str = ""
    from_number: str = ""
    to_number: str = ""
    direction: Direction = "inbound"
    parameters: Mapping[str, str] = field(default_factory=dict)
    control: Control = "document"


@dataclass(frozen=True, slots=True)
class Cause:
    """
    What went wrong in a bot's process during a call.

    Attributes:
        kind: ``exception`` (the bot's own code raised), ``service`` (a processor of its pipeline reported an error) or
            ``blocked`` (its event loop stood still).
        message: What, in one line.
        file: Where, if known; the bot's file rather than a library's.
        line: The line in that file; 0 if not known.
    """

    kind: str
    message: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        name = re.split(r"[\\/]", self.file)[-1]
        return f"{self.message} ({name}:{self.line})" if name else self.message


def first_cause(causes: Sequence[Cause]) -> Cause | None:
    """Return the cause that most likely explains the others; ``None`` if nothing is known."""
    ranks = {"exception": 0, "service": 1, "blocked": 2}
    return min(causes, key=lambda cause: ranks.get(cause.kind, 3), default=None)
