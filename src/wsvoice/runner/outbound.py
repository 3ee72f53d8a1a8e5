"""
Calls that this server places: from the request to the provider's API to the call's end.

Two secrets belong to a placed call. Its *id* is for whoever asked for it, behind their key. Its *token* is in the
addresses that the provider is given: the webhook's (``/<provider>/dialled/<token>``) and that of status callbacks
(``/<provider>/status/<token>``). So a call is known by the token even where the provider names it only later (Plivo,
TeXML), or gives it another id once it is answered (Telnyx).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from loguru import logger

from wsvoice.call import ENDED_STAGES, AnsweredBy, Call, Stage
from wsvoice.config import Voicemail
from wsvoice.errors import ApiError, ServerError, WsvoiceError
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account
from wsvoice.providers.account import Detection, OutboundCall, PlacedCall
from wsvoice.runner.live_call import later_stage

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from wsvoice.providers.account import Account
    from wsvoice.providers.base import CallUpdate, Server
    from wsvoice.runner.session import CallRecord, Session
    from wsvoice.runner.switchboard import Switchboard

#: How long after the last ring a stream, or the report that nobody answered, may come.
ANSWER_GRACE_S = 10.0
#: How long the provider may take to find out who answered, and a machine to end its greeting. Twilio gives up after
#: 30 s: https://www.twilio.com/docs/voice/answering-machine-detection
DETECTION_TIMEOUT_S, GREETING_TIMEOUT_S = 35.0, 60.0
#: After how long without a report the provider is asked how a call stands.
ASK_AFTER_S = 15.0
#: How long the report of a call's end may take after its stream has closed.
REPORT_WAIT_S = 3.0
#: How long the provider's API may take when the server stops.
FINISH_TIMEOUT_S = 5.0
#: How many placed calls are remembered.
REMEMBERED_CALLS = 1000

#: The name of tasks that end a call.
_ENDING = "wsvoice-hang-up"


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

    @property
    def needed_detection(self) -> Detection:
        """What has to be detected."""
        needed: Mapping[Voicemail, Detection] = {"bot": "off", "hang-up": "detect", "leave": "greeting-end"}
        return self.detection or needed[self.voicemail]


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
        record: What happened in its session; ``None`` before that has ended.
    """

    def __init__(self, provider: Server, request: DialRequest) -> None:
        self.id, self.token = secrets.token_urlsafe(16), secrets.token_urlsafe(16)
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
        self.session: Session | None = None
        self.record: CallRecord | None = None
        #: Whether the provider is being told to end it.
        self.is_ending = False
        self._began = time.monotonic()
        self._answered_at: float | None = None
        self._changed = asyncio.Event()

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
        if update.ended and not self.cause:
            self.cause = update.detail
        self.greeting_ended = self.greeting_ended or update.greeting_ended
        stage: Stage | None = update.stage or ("completed" if update.ended else None)
        if stage is not None or update.answered_by is not None:
            self.note(stage or self.stage, update.event, answered_by=update.answered_by)
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

    def note_session_end(self, record: CallRecord) -> None:
        """Note that its session has ended, and what happened in it."""
        self.record = record
        self._wake()

    def close(self) -> None:
        """Note that its session has ended, and that nothing more will become known of it."""
        self.session = None
        self._wake()

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


class DialledCalls:
    """The calls that a server has placed."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._by_id: OrderedDict[str, DialledCall] = OrderedDict()
        self._by_token: dict[str, DialledCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def by_id(self, call_id: str) -> DialledCall | None:
        """Return the call of this id, as whoever asked for it knows it."""
        return self._by_id.get(call_id)

    def by_token(self, token: str) -> DialledCall | None:
        """Return the call of this token, as the provider knows it."""
        return self._by_token.get(token)

    def by_provider(self, provider: str, call_id: str) -> DialledCall | None:
        """Return the running call of this id of the provider's."""
        known = reversed(self._by_id.values())
        return next((each for each in known if call_id and each.call.call_id == call_id), None)

    async def place(self, provider: Server, request: DialRequest, public_url: str) -> DialledCall:
        """
        Place a call, and follow it to its end.

        Args:
            public_url: Where the provider reaches this server, with the prefix of its routes.

        Raises:
            ServerError: If no call can be taken now.
            ConfigError: If credentials are missing.
            ApiError: If the provider refuses.
        """
        switchboard = self._switchboard
        account = load_account(provider.name, switchboard.config.credentials)
        account.check_credentials()
        dialled = DialledCall(provider, request)
        closed = switchboard.why_closed()
        if closed or not switchboard.capacity.reserve_dialled(dialled.token):
            raise ServerError(f"no call can be placed now: {closed or 'every place is taken'}")
        self._remember(dialled)
        # Before the answer to the request, which the first report may overtake.
        dialled.note("queued", "queued")
        try:
            dialled.placed = placed = await carry_out(account.dial(self._describe(dialled, public_url)))
        except BaseException:
            self._forget(dialled)
            raise
        dialled.call = _with_id(dialled.call, placed.call_id or dialled.call.call_id, placed.account_id)
        dialled.note(placed.stage, placed.stage)
        log = logger.bind(call=dialled.call.call_id or "-")
        log.info("{} calls {}", request.from_number, request.to_number)
        self._start(self._follow(dialled, account))
        return dialled

    def _describe(self, dialled: DialledCall, public_url: str) -> OutboundCall:
        name, request = dialled.provider.name, dialled.request
        ttl_s = request.ring_timeout_s + ANSWER_GRACE_S
        stream_token = self._switchboard.auth.tokens.issue(dialled.call, dialled=dialled.token, ttl_s=ttl_s)
        status_url = f"{public_url}/{name}/status/{dialled.token}"
        return OutboundCall(
            to_number=request.to_number,
            from_number=request.from_number,
            webhook_url=f"{public_url}/{name}/dialled/{dialled.token}",
            stream_url=f"{public_url.replace('http', 'ws', 1)}/ws/{name}/{stream_token}",
            status_url=status_url,
            machine_url=status_url,
            detection=request.needed_detection,
            ring_timeout_s=request.ring_timeout_s,
            time_limit_s=request.time_limit_s,
            parameters=request.parameters,
        )

    # What happens to a call

    def note_call(self, dialled: DialledCall, call: Call) -> None:
        """Note that the provider asks for the document of a call, or has opened its stream: it was answered."""
        dialled.call = _with_id(dialled.call, call.call_id, call.account_id)
        self._switchboard.capacity.forget_dialled(dialled.token)
        dialled.note("answered", "answered")

    def note_update(self, dialled: DialledCall, update: CallUpdate) -> None:
        """Note what the provider reports, and end the call of a machine that nobody wants to talk to."""
        if update.call_id and not dialled.call.call_id:
            dialled.call = _with_id(dialled.call, update.call_id, "")
        dialled.note_update(update)
        if dialled.is_over:
            self._switchboard.capacity.forget_dialled(dialled.token)
        elif dialled.request.voicemail == "hang-up" and dialled.answered_by in ("machine", "fax"):
            self._start(self.end(dialled, f"a {dialled.answered_by} answered"), _ENDING)

    async def end(self, dialled: DialledCall, reason: str) -> None:
        """End a call, whether it rings or goes on."""
        if dialled.session is not None and dialled.record is None:
            dialled.session.end(reason)
            if dialled.stage == "answered":
                return
        if dialled.placed is None or dialled.is_over or dialled.is_ending:
            return
        dialled.is_ending = True
        account = load_account(dialled.provider.name, self._switchboard.config.credentials)
        placed = dialled.placed
        known = PlacedCall(dialled.call.call_id, placed.request_id, dialled.call.account_id, dialled.stage)
        try:
            await carry_out(account.cancel(known))
        except WsvoiceError as error:
            if getattr(error, "kind", "") != "unsupported":
                logger.error("the call to {} may still be up: {}", dialled.request.to_number, error.message)
                dialled.is_ending = False
                return
            # Without a stream, it is over as soon as it is answered.
            logger.warning("the call to {} rings on: {}", dialled.request.to_number, error.message)
        dialled.cause = dialled.cause or reason
        dialled.note("canceled", reason)
        self._switchboard.capacity.forget_dialled(dialled.token)

    async def hang_up(self, dialled: DialledCall) -> None:
        """End a call whose session has ended, by the API, unless the other end hung up."""
        account = load_account(dialled.provider.name, self._switchboard.config.credentials)
        try:
            await carry_out(account.hang_up(dialled.call))
        except ApiError as error:
            if error.kind not in ("ended", "not-found", "unsupported"):
                logger.error("the call to {} may still be up: {}", dialled.request.to_number, error.message)

    def end_ringing(self, reason: str) -> None:
        """End the calls that nobody has answered yet."""
        for each in self._by_id.values():
            if each.stage in ("queued", "ringing"):
                self._start(self.end(each, reason), _ENDING)

    async def finish(self) -> None:
        """End the calls that nobody has answered yet, and wait until the provider has been told of all ends."""
        self.end_ringing("the server stops")
        ending = {task for task in self._tasks if task.get_name() == _ENDING}
        if ending:
            await asyncio.wait(ending, timeout=FINISH_TIMEOUT_S)

    async def _follow(self, dialled: DialledCall, account: Account) -> None:
        """Note the call's end, which is asked for where it is not reported."""
        until = time.monotonic() + dialled.request.ring_timeout_s + ANSWER_GRACE_S
        while not dialled.is_over:
            has_ended = dialled.record is not None
            wait_s = REPORT_WAIT_S if has_ended else ASK_AFTER_S
            if (left_s := dialled.left_s()) is not None and not has_ended:
                # Most companies see to it themselves; some cannot be told.
                wait_s = min(wait_s, max(0.0, left_s))
                if left_s <= 0:
                    await self.end(dialled, f"the call has lasted {dialled.request.time_limit_s} s (time_limit_s)")
                    wait_s = REPORT_WAIT_S
            if await dialled.changed(wait_s):
                continue
            await self._ask(dialled, account)
            if not dialled.is_over and has_ended:
                dialled.note("completed", "completed")
            if dialled.session is None and time.monotonic() > until and dialled.stage in ("queued", "ringing"):
                await self.end(dialled, "nobody answered")
                dialled.note("no-answer", "no answer")
        # The provider's report of the end may overtake that of the bot's own part.
        waits_until = time.monotonic() + self._switchboard.config.bot_exit_timeout_s
        while dialled.session is not None and dialled.record is None and time.monotonic() < waits_until:
            await dialled.changed(REPORT_WAIT_S)
        if dialled.record is not None or dialled.duration_s is None:
            await self._ask(dialled, account)
        self._switchboard.capacity.forget_dialled(dialled.token)
        dialled.close()

    async def _ask(self, dialled: DialledCall, account: Account) -> None:
        """Ask the provider how a call stands."""
        if not dialled.call.call_id:
            return
        try:
            state = await carry_out(account.look_up(dialled.call.call_id))
        except ApiError as error:
            logger.debug("the call to {} cannot be looked up: {}", dialled.request.to_number, error.message)
            return
        dialled.duration_s = state.duration_s if state.duration_s is not None else dialled.duration_s
        dialled.price, dialled.cause = state.price or dialled.price, state.cause or dialled.cause
        if state.stage != dialled.stage or state.answered_by not in (None, dialled.answered_by):
            dialled.note(state.stage, state.stage.replace("-", " "), answered_by=state.answered_by)

    def _start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _remember(self, dialled: DialledCall) -> None:
        self._by_id[dialled.id] = self._by_token[dialled.token] = dialled
        while len(self._by_id) > REMEMBERED_CALLS:
            oldest = next((each for each in self._by_id.values() if each.is_over), None)
            if oldest is None:
                break
            self._forget(oldest)

    def _forget(self, dialled: DialledCall) -> None:
        self._switchboard.capacity.forget_dialled(dialled.token)
        self._by_id.pop(dialled.id, None)
        self._by_token.pop(dialled.token, None)


def _with_id(call: Call, call_id: str, account_id: str) -> Call:
    """Return `call` with the provider's newest ids of it."""
    return replace(call, call_id=call_id or call.call_id, account_id=account_id or call.account_id)
