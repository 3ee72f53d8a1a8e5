"""
One call that this server has placed: what was asked for, how it stands, and what has happened in it.

Two secrets belong to it. Its *id* is for whoever asked for it, behind their key. Its *token* is in the addresses that
the provider is given: the webhook's (``/<provider>/dialled/<token>``) and that of status callbacks
(``/<provider>/status/<token>``). So a call is known by the token even where the provider names it only later (Plivo,
TeXML), or gives it another id once it is answered (Telnyx).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from wsvoice.call import ENDED_STAGES, AnsweredBy, Call, Stage
from wsvoice.config import DETECTIONS, Voicemail
from wsvoice.errors import UsageError
from wsvoice.providers.account import Detection, PlacedCall
from wsvoice.runner.live_call import MAX_UPDATES, later_stage
from wsvoice.runner.seals import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wsvoice.providers.base import CallUpdate, Server
    from wsvoice.runner.bot_task import RunningSession
    from wsvoice.runner.session import CallRecord

#: How long the provider may take to find out who answered, and a machine to end its greeting. Twilio gives up after
#: 30 s: https://www.twilio.com/docs/voice/answering-machine-detection
DETECTION_TIMEOUT_S, GREETING_TIMEOUT_S = 35.0, 60.0


@dataclass(frozen=True, slots=True)
class DialRequest:
    """
    A call that somebody wants to be placed.

    Attributes:
        to_number, from_number: In E.164.
        parameters: For the bot.
        ring_timeout_s, time_limit_s: How long it may ring, and last.
        detection: What is found out about who answers; ``None`` for what `voicemail` needs.
    """

    to_number: str
    from_number: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    ring_timeout_s: int = 60
    time_limit_s: int | None = None
    detection: Detection | None = None
    voicemail: Voicemail = "bot"

    def __post_init__(self) -> None:
        """Refuse a way with machines for which too little is detected, as a :exc:`~wsvoice.errors.UsageError`."""
        if self.detection not in (None, *DETECTIONS[self.voicemail]):
            raise UsageError(
                f"voicemail {self.voicemail!r} has to know who answers, and detection is {self.detection!r}",
                hint="leave detection out",
            )

    def written(self) -> dict[str, Any]:
        """Return what is not as usual, as JSON has it; :meth:`read` reads it."""
        usual = DialRequest("", "")
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(usual, name)}

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> DialRequest:
        """Return what was :meth:`written`; a :exc:`TypeError` if that was another version of wsvoice."""
        return cls(**written)

    @property
    def needed_detection(self) -> Detection:
        """What has to be detected."""
        return self.detection or DETECTIONS[self.voicemail][0]


@dataclass(frozen=True, slots=True)
class DialEvent:
    """Something that happened in a placed call; `at_s` is since it was asked for."""

    n: int
    at_s: float
    stage: Stage
    answered_by: AnsweredBy | None
    text: str


class DialledCall:
    """
    One call that was placed.

    Attributes:
        id: For whoever asked for it.
        token: For the provider.
        call: As far as it is known; its id is the provider's newest.
        placed: What the provider's API said.
        events: What happened, oldest first.
        updates: What the provider has reported, oldest first.
        record: What happened in its session; ``None`` before that has ended.
        unwanted: Why it is to end, if it is: it may not have been answered, or even be placed, by then.
        has_left: Whether the bot has transferred it, so that it goes on without a session.
        is_elsewhere: Whether another server of the fleet has placed it, and follows it to its end.

    Args:
        call_id: Its id, if whoever asks for it has chosen one.
        token: Its token, if it has one already.
    """

    def __init__(self, provider: Server, request: DialRequest, call_id: str = "", *, token: str = "") -> None:
        self.id, self.token = call_id or secrets.token_urlsafe(16), token or secrets.token_urlsafe(16)
        self.is_elsewhere = False
        self.provider = provider
        self.request = request
        self.call = Call(
            provider.name,
            "",
            from_number=request.from_number,
            to_number=request.to_number,
            direction="outbound",
            parameters=dict(request.parameters),
        )
        self.placed: PlacedCall | None = None
        self.stage: Stage = "queued"
        self.answered_by: AnsweredBy | None = None
        self.greeting_ended = False
        self.duration_s: float | None = None
        self.price = ""
        self.cause = ""
        self.events: list[DialEvent] = []
        self.session: RunningSession | None = None
        self.record: CallRecord | None = None
        self.updates: list[CallUpdate] = []
        self.unwanted = ""
        self.has_left = False
        #: Whether the provider's API can end it.
        self.can_be_ended = True
        #: The request that places it, and the one that ends it, while they are under way.
        self.placing: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[str] | None = None
        self._began = time.monotonic()
        self._answered_at: float | None = None
        self._changed = asyncio.Event()

    @property
    def mark(self) -> str:
        """What stands for the token where servers talk about the call."""
        return digest(self.token)

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.stage in ENDED_STAGES

    def note(self, stage: Stage | None, text: str, *, answered_by: AnsweredBy | None = None) -> None:
        """Note what happened, unless it says nothing new."""
        known = self.stage, self.answered_by
        is_first = not self.events
        self.stage = later_stage(self.stage, stage)
        self.answered_by = answered_by or self.answered_by
        if self.stage == "answered" and self._answered_at is None:
            self._answered_at = time.monotonic()
        if not is_first and (self.stage, self.answered_by) == known:
            return
        at_s = time.monotonic() - self._began
        self.events.append(DialEvent(len(self.events) + 1, round(at_s, 3), self.stage, self.answered_by, text))
        self._wake()

    def left_s(self) -> float | None:
        """Return how long it may still last; ``None`` if there is no limit, or nobody has answered yet."""
        if self.request.time_limit_s is None or self._answered_at is None:
            return None
        return self._answered_at + self.request.time_limit_s - time.monotonic()

    def note_update(self, update: CallUpdate) -> None:
        """Note what the provider reports."""
        if len(self.updates) < MAX_UPDATES:
            self.updates.append(update)
        if update.ended and not self.cause:
            self.cause = update.detail
        self.greeting_ended = self.greeting_ended or update.greeting_ended
        stage: Stage | None = update.stage or ("completed" if update.ended else None)
        if stage is not None or update.answered_by is not None:
            self.note(stage or self.stage, update.event, answered_by=update.answered_by)
        self._wake()

    def note_state(self, stage: Stage, *, answered_by: AnsweredBy | None, greeting_ended: bool) -> None:
        """Note how it stands where it is followed."""
        self.greeting_ended = self.greeting_ended or greeting_ended
        self.note(stage, stage, answered_by=answered_by)
        self._wake()

    async def changed(self, timeout_s: float) -> bool:
        """Wait until something has happened; false if nothing did in time."""
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def note_ids(self, call_id: str, account_id: str = "") -> None:
        """Note the provider's newest ids of it."""
        call = self.call
        self.call = replace(call, call_id=call_id or call.call_id, account_id=account_id or call.account_id)

    def note_session_end(self, record: CallRecord, *, has_left: bool) -> None:
        """Note that its session has ended, and what happened in it."""
        self.record, self.has_left = record, has_left
        self._wake()

    def close(self) -> None:
        """Note that its session has ended, and that nothing more will become known of it."""
        self.session = None
        self._wake()

    def withdraw(self, reason: str) -> None:
        """Note that it is not wanted any more."""
        self.unwanted = self.unwanted or reason
        self._wake()

    async def changed_to_unwanted(self, timeout_s: float) -> None:
        """Wait so long, or until it is not wanted any more."""
        await self._wait_while(lambda: not self.unwanted, timeout_s)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def bot_may_start(self) -> bool:
        """
        Wait until the bot is to talk: at once, or, where it leaves messages, when a human answered or a greeting ended.

        False if the call is to end instead.
        """
        if self.request.voicemail != "leave":
            return self.request.voicemail != "hang-up" or self.answered_by not in ("machine", "fax")
        await self._wait_while(lambda: self.answered_by is None, DETECTION_TIMEOUT_S)
        await self._wait_while(lambda: self.answered_by == "machine" and not self.greeting_ended, GREETING_TIMEOUT_S)
        return not self.is_over and self.answered_by != "fax"

    async def _wait_while(self, is_waiting: Callable[[], bool], timeout_s: float) -> None:
        """Wait for reports until one changes what is waited for, the call is over, or the time is up."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while is_waiting() and not self.is_over and (left_s := until - loop.time()) > 0:
            await self.changed(left_s)

    def summary(self) -> dict[str, Any]:
        """Return how it stands, as JSON has it; times in seconds."""
        record = self.record
        told: dict[str, Any] = {
            "id": self.id,
            "call_id": self.call.call_id,
            "provider": self.provider.name,
            "to": self.request.to_number,
            "from": self.request.from_number,
            "stage": self.stage,
            "answered_by": self.answered_by,
            "duration_s": self.duration_s,
            "price": self.price,
            "cause": self.cause,
            "ended_by": None,
            "response_s": [],
            "heard_s": 0.0,
            "sent_s": 0.0,
            "recording": None,
            "updates": [
                {"event": each.event, "detail": each.detail, "stage": each.stage, "answered_by": each.answered_by}
                for each in self.updates
            ],
        }
        if record is not None:
            told |= {
                "ended_by": record.ended_by,
                "response_s": [round(each, 3) for each in record.responses_s],
                "heard_s": round(record.heard_s, 3),
                "sent_s": round(record.sent_s, 3),
                "recording": record.recording,
            }
            if self.duration_s is None:
                told["duration_s"] = round(record.duration_s, 3)
        return told
