"""
A company's REST API as the owner of an account meets it, without the company: numbers, applications, calls.

It keeps what it is told, as the company would, and refuses what the company refuses. A test call offers it to the bot,
so that no request of a bot's reaches a real company; a test plays the telephone network behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wsvoice.call import ENDED_STAGES, AnsweredBy, Call, Stage
from wsvoice.providers.base import Answer, Callback, Company, StreamRequest, WebhookRequest


@dataclass
class FakeNumber:
    """
    A number of the account's.

    Attributes:
        number: In E.164, with its plus.
        settings: What the company keeps of it, under the names of its API.
    """

    number: str
    number_id: str
    name: str = ""
    has_voice: bool = True
    settings: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeCall:
    """
    A call that was placed by a request.

    Attributes:
        call: With its ids and numbers.
        webhook: Where the document is asked for once it is answered; ``None`` where it streams at once.
        stream: The stream that the request itself asks for; ``None`` where a document does.
        status: Where its status is reported; ``None`` for nowhere.
        reports: The stages that are reported there.
        machine: Where is reported who answered; ``None`` for nowhere.
        detection: As :data:`~wsvoice.providers.account.Detection`.
        ring_timeout_s, time_limit_s: The limits that the request sets.
        stage: How far it is; the network that plays the call sets it.
        request_id: What the company calls it before it has an id, where that differs.
    """

    call: Call
    webhook: Callback | None = None
    stream: StreamRequest | None = None
    status: Callback | None = None
    reports: frozenset[Stage] = frozenset()
    machine: Callback | None = None
    detection: str = "off"
    ring_timeout_s: float = 60.0
    time_limit_s: float | None = None
    stage: Stage = "queued"
    answered_by: AnsweredBy | None = None
    duration_s: float = 0.0
    cause: str = ""
    request_id: str = ""


class FakeAccount:
    """
    The account's resources, and the answers to requests for them; a company's own package states them.

    Attributes:
        numbers: The account's numbers, by E.164.
        calls: Its calls, by the company's id.
        is_trial: Whether it is a trial account, with its limits.
        verified: The numbers that a trial account may call.
        on_placed: Called with each call that a request has placed.
        on_ended: Called with each call that a request has ended.
        on_command: Called with a call, ``transfer``, ``digits`` or ``update``, and whereto, which, or the address of
            the next document.

    Args:
        company: With the credentials that requests must carry.
        seed: At least 32 bytes, of which ids are made.
    """

    def __init__(self, company: Company, seed: bytes) -> None:
        self.company = company
        self.numbers: dict[str, FakeNumber] = {}
        self.calls: dict[str, FakeCall] = {}
        self.is_trial = False
        self.verified: set[str] = set()
        self.on_placed: Callable[[FakeCall], None] = lambda call: None
        self.on_ended: Callable[[FakeCall], None] = lambda call: None
        self.on_command: Callable[[FakeCall, str, str], None] = lambda call, kind, argument: None
        self._seed = seed
        self._made = 0

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        """Add a number, with `settings` under the names of the company's API."""
        raise NotImplementedError

    def answer(self, request: WebhookRequest) -> Answer | None:
        """Answer a request that is authorised; ``None`` if it is for nothing that an account has."""
        raise NotImplementedError

    def points_at(self, number: str) -> Callback | None:
        """Return the webhook of the calls to `number`, as the company would ask it; ``None`` if there is none."""
        raise NotImplementedError

    def end(self, call: FakeCall, stage: Stage = "completed", cause: str = "") -> None:
        """End a call, as a request or the network does."""
        call.stage, call.cause = stage, cause

    def new_seed(self) -> bytes:
        """Return 32 bytes for the next id."""
        self._made += 1
        return hashlib.sha256(self._seed + self._made.to_bytes(4, "big")).digest()

    def running(self) -> Iterator[FakeCall]:
        """The calls that are not over."""
        return (each for each in self.calls.values() if each.stage not in ENDED_STAGES)
