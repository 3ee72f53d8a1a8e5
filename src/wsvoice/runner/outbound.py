"""
The calls that this server places: from the request to the provider's API to the call's end.

A call that rings costs its callee's nerves, and one that is answered the owner's money. So whatever happens to the
server or to whoever asked for it, a call that is not wanted any more is ended, and if that cannot be done it is said.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from loguru import logger

from wsvoice.call import Call
from wsvoice.config.settings import MAX_DURATION_S
from wsvoice.errors import ApiError, HttpError, ServerError, UsageError, WsvoiceError
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account
from wsvoice.providers.account import OutboundCall, PlacedCall, Steps
from wsvoice.runner.dialled_call import DialledCall, DialRequest
from wsvoice.runner.limits import FULL, Refusal

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from wsvoice.providers.account import Account
    from wsvoice.providers.base import CallUpdate, Server
    from wsvoice.runner.capacity import CallKey
    from wsvoice.runner.switchboard import Switchboard

ResultT = TypeVar("ResultT")

#: How long after the last ring a stream, or the report that nobody answered, may come.
ANSWER_GRACE_S = 10.0
#: How long the provider may take to answer a request for a call.
PLACE_TIMEOUT_S = 20.0
#: After how long without a report the provider is asked how a call stands.
ASK_AFTER_S = 15.0
#: How long the report of a call's end may take after its stream has closed.
REPORT_WAIT_S = 3.0
#: For how long, and after which pauses, a provider is told again to end a call.
END_TIMEOUT_S, END_RETRY_S = 10.0, 1.0
#: How long the provider's API may take when the server stops.
FINISH_TIMEOUT_S = 5.0
#: How long the session of a call may take beyond what its bot may, until it has ended.
CLEANUP_S = 6.0
#: How many placed calls are remembered.
REMEMBERED_CALLS = 1000
#: How long the addresses of a call may be that a provider is told, in characters, where they say all about it.
#: Bandwidth takes as many: https://dev.bandwidth.com/apis/voice-apis/voice/#tag/Calls/operation/createCall
URL_LIMIT = 2048


class DialledCalls:
    """
    The calls that a server has placed.

    Attributes:
        finishes_by: Until when, on the monotonic clock, the process waits for the ends that are under way; set when it
            is asked to stop.
        paused: Why no call is placed at this moment; ``None`` if calls are.
    """

    def __init__(self, switchboard: Switchboard) -> None:
        self.finishes_by = 0.0
        self.paused: Refusal | None = None
        self._switchboard = switchboard
        self._by_id: OrderedDict[str, DialledCall] = OrderedDict()
        self._by_token: dict[str, DialledCall] = {}
        #: Those that another server has placed, by their tokens.
        self._elsewhere: OrderedDict[str, DialledCall] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        #: Those that place or end a call.
        self._urgent: set[asyncio.Task[Any]] = set()

    def by_id(self, call_id: str) -> DialledCall | None:
        """Return the call of this id, as whoever asked for it knows it."""
        return self._by_id.get(call_id)

    def by_token(self, token: str) -> DialledCall | None:
        """Return the call of this token, as the provider knows it; another server of the fleet may have placed it."""
        return self._by_token.get(token) or self._elsewhere.get(token) or self._find_elsewhere(token)

    def by_mark(self, mark: str) -> DialledCall | None:
        """Return the call that servers call so when they talk about it; ``None`` if nothing is known of it here."""
        known = (*self._by_token.values(), *self._elsewhere.values()) if mark else ()
        return next((each for each in known if each.mark == mark), None)

    def _find_elsewhere(self, token: str) -> DialledCall | None:
        """Return the call that another server has placed, as its token says it; ``None`` if it says none."""
        fleet, providers = self._switchboard.fleet, self._switchboard.providers
        content = fleet.seals.open("dialled", token) if fleet.is_shared else None
        if content is None:
            return None
        _, name, written, until = content
        if name not in providers or time.time() > until:
            return None
        try:
            request = DialRequest.read(written)
        except TypeError as error:
            logger.warning("a call was placed by another version of wsvoice: {}", error)
            return None
        dialled = DialledCall(providers[name], request, token=token)
        dialled.is_elsewhere = True
        self._elsewhere[token] = dialled
        if len(self._elsewhere) > REMEMBERED_CALLS:
            over = next((each for each in self._elsewhere.values() if each.session is None), dialled)
            del self._elsewhere[over.token]
        return dialled

    def _new_token(self, provider: Server, request: DialRequest) -> str:
        """Return a token that says all that another server of the fleet has to know; empty without a fleet."""
        seals = self._switchboard.fleet.seals
        if not seals.is_shared:
            return ""
        until = int(time.time()) + request.ring_timeout_s + (request.time_limit_s or MAX_DURATION_S)
        content = (secrets.token_urlsafe(12), provider.name, request.written(), until)
        return seals.seal("dialled", content)

    def by_provider(self, provider: str, call_id: str) -> DialledCall | None:
        """Return the call of this id of the provider's that is not over."""
        for each in (*reversed(self._by_id.values()), *reversed(self._elsewhere.values())):
            if call_id and each.call.call_id == call_id and each.provider.name == provider and not each.is_over:
                return each
        return None

    async def place(self, provider: Server, request: DialRequest, public_url: str, call_id: str = "") -> DialledCall:
        """
        Place a call, and follow it to its end.

        Args:
            public_url: Where the provider reaches this server, with the prefix of its routes.
            call_id: The id that whoever asks has chosen, which no call has; empty for one of ours.

        Raises:
            ServerError: If no call can be taken now.
            ConfigError: If credentials are missing.
            UsageError: If its parameters are too long for its addresses.
            ApiError: If the provider refuses; of kind ``withdrawn`` if the call is not wanted any more, and
                ``uncertain`` if nobody knows whether it was placed.
        """
        switchboard = self._switchboard
        account = load_account(provider.name, switchboard.config.credentials)
        account.check_credentials()
        dialled = DialledCall(provider, request, call_id, token=self._new_token(provider, request))
        refusal = self.paused or switchboard.why_closed() or switchboard.numbers.why_refused(request.to_number)
        if refusal is None and not switchboard.capacity.reserve_dialled(dialled.token):
            refusal = FULL
        if refusal is not None:
            switchboard.note_refused("dial", refusal.reason, provider.name)
            raise ServerError(f"no call can be placed now: {refusal.text}")
        switchboard.numbers.admit(dialled_key(dialled), request.to_number, math.inf)
        self._remember(dialled)
        # Before the answer to the request, which the first report may overtake.
        dialled.note("queued", "queued")
        # Whoever asked may go away: the request is carried to its end all the same.
        dialled.placing = self._start(self._place(dialled, account, public_url), is_urgent=True)
        await asyncio.shield(dialled.placing)
        return dialled

    async def _place(self, dialled: DialledCall, account: Account, public_url: str) -> None:
        """Let the provider place a call, and end it if it is not wanted any more by then."""
        request = dialled.request

        async def sleep(seconds: float) -> None:
            await dialled.changed_to_unwanted(seconds)
            if dialled.unwanted:
                raise ApiError("withdrawn", "the call was withdrawn before it was placed")

        sent: list[str] = []
        try:
            steps = _noting(sent, account.dial(self._describe(dialled, public_url)))
            placed = await carry_out(steps, timeout_s=PLACE_TIMEOUT_S, sleep=sleep)
        except ApiError as error:
            if sent[-1:] == ["GET"] or not _may_have_arrived(error):
                self._switchboard.numbers.withdraw(dialled_key(dialled))
                self._forget(dialled)
                raise
            self._start(self._outlive(dialled))
            raise ApiError(
                "uncertain",
                f"the call to {request.to_number} may have been placed: {error.message}",
                hint="it is ended as soon as the provider tells of it, while this server runs",
            ) from error
        except BaseException:
            self._forget(dialled)
            raise
        dialled.placed = placed
        dialled.note_ids(placed.call_id, placed.account_id)
        dialled.call = replace(dialled.call, control=placed.control)
        dialled.note(placed.stage, placed.stage)
        log = logger.bind(call=dialled.call.call_id or "-")
        log.info("{} calls {}", request.from_number, request.to_number)
        self._start(self._follow(dialled, account))
        if self._switchboard.capacity.draining and not dialled.unwanted:
            dialled.unwanted = "the server stops"
        if dialled.unwanted:
            await self.end(dialled, dialled.unwanted)
            raise ApiError("withdrawn", "the call was withdrawn while it was placed, and was ended")

    async def _outlive(self, dialled: DialledCall) -> None:
        """Remember a call that may have been placed, for as long as it may ring, and end it when it is heard of."""
        dialled.unwanted = "the provider did not answer in time"
        until = time.monotonic() + dialled.request.ring_timeout_s + ANSWER_GRACE_S
        while not dialled.is_over and (left_s := until - time.monotonic()) > 0:
            if dialled.call.call_id:
                dialled.placed = dialled.placed or PlacedCall(dialled.call.call_id)
                await self._end_quietly(dialled, dialled.unwanted)
            await dialled.changed(left_s)
        self._forget(dialled)

    def _describe(self, dialled: DialledCall, public_url: str) -> OutboundCall:
        name, request = dialled.provider.name, dialled.request
        ttl_s = request.ring_timeout_s + ANSWER_GRACE_S
        # A call that is told its stream at once has no document.
        by_request = replace(dialled.call, control="api")
        stream_token = self._switchboard.auth.tokens.issue(by_request, dialled=dialled.token, ttl_s=ttl_s)
        status_url = f"{public_url}/{name}/status/{dialled.token}"
        webhook_url = f"{public_url}/{name}/dialled/{dialled.token}"
        stream_url = f"{public_url.replace('http', 'ws', 1)}/ws/{name}/{stream_token}"
        longest = max(len(webhook_url), len(stream_url))
        if longest > URL_LIMIT and self._switchboard.fleet.is_shared:
            raise UsageError(
                f"the call's address would have {longest} characters, and {URL_LIMIT} is the most: where servers work"
                " together, its parameters are in it",
                hint="send an id as parameter, and have the bot look up the rest",
            )
        return OutboundCall(
            to_number=request.to_number,
            from_number=request.from_number,
            webhook_url=webhook_url,
            stream_url=stream_url,
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
        dialled.note_ids(call.call_id, call.account_id)
        self._switchboard.capacity.forget_dialled(dialled.token)
        is_new = dialled.stage in ("queued", "ringing")
        dialled.note("answered", "answered")
        if dialled.is_elsewhere and is_new:
            self._take_over(dialled)

    def _take_over(self, dialled: DialledCall) -> None:
        """See to a call that is another server's: it may be gone before the call is over."""
        dialled.placed = PlacedCall(dialled.call.call_id, account_id=dialled.call.account_id, stage="answered")
        if dialled.request.time_limit_s is not None:
            self._start(self._limit(dialled))

    async def _limit(self, dialled: DialledCall) -> None:
        """End a call when its time is up."""
        while not dialled.is_over and dialled.record is None and (left_s := dialled.left_s()) is not None:
            if left_s <= 0:
                await self._end_quietly(dialled, f"the call has lasted {dialled.request.time_limit_s} s (time_limit_s)")
                return
            await dialled.changed(left_s)

    def note_update(self, dialled: DialledCall, update: CallUpdate) -> None:
        """Note what the provider reports, and end the call of a machine that nobody wants to talk to."""
        if not dialled.call.call_id:
            dialled.note_ids(update.call_id)
        if dialled.is_elsewhere and dialled.placed is None and dialled.call.call_id:
            dialled.placed = PlacedCall(dialled.call.call_id)
        dialled.note_update(update)
        if dialled.is_over:
            self._switchboard.capacity.forget_dialled(dialled.token)
        elif dialled.request.voicemail == "hang-up" and dialled.answered_by in ("machine", "fax"):
            self._start(self.end(dialled, f"a {dialled.answered_by} answered"))

    # How a call ends

    async def end(self, dialled: DialledCall, reason: str) -> str:
        """
        End a call, whether it is placed at this moment, rings or goes on.

        Returns:
            Why it goes on all the same, if the company's API cannot end it; else nothing.

        Raises:
            ApiError: If the company refuses, after several tries.
        """
        dialled.withdraw(reason)
        session = dialled.session if dialled.record is None else None
        if session is not None:
            session.end(reason)
            if dialled.stage == "answered":
                return ""
        if dialled.placing is not None and asyncio.current_task() is not dialled.placing:
            # It ends the call by itself, once it knows of one.
            await asyncio.wait({dialled.placing}, timeout=PLACE_TIMEOUT_S)
        if dialled.placed is None or dialled.is_over:
            return ""
        if dialled.ending is None or dialled.ending.done():
            dialled.ending = self._start(self._cancel(dialled, reason), is_urgent=True)
        return await asyncio.shield(dialled.ending)

    async def _cancel(self, dialled: DialledCall, reason: str) -> str:
        """Let the company end a call, trying again for a while; as :meth:`end`."""
        account = load_account(dialled.provider.name, self._switchboard.config.credentials)
        request_id = dialled.placed.request_id if dialled.placed is not None else ""
        known = PlacedCall(dialled.call.call_id, request_id, dialled.call.account_id, dialled.stage)
        until = time.monotonic() + END_TIMEOUT_S
        while True:
            try:
                await carry_out(account.cancel(known))
                break
            except ApiError as error:
                if error.kind == "unsupported":
                    rings_s = dialled.request.ring_timeout_s
                    text = f"rings on for up to {rings_s} s: {error.message}; whoever answers is disconnected"
                    logger.warning("the call to {} {}", dialled.request.to_number, text)
                    dialled.can_be_ended = False
                    return text
                if dialled.is_over:
                    return ""
                # A call that has just been placed may not be known everywhere yet.
                if not (error.may_pass or error.kind == "not-found") or time.monotonic() > until:
                    logger.error("{}: {}", _left(dialled), error.message)
                    raise
            await asyncio.sleep(END_RETRY_S)
        dialled.cause = dialled.cause or reason
        dialled.note("completed" if dialled.stage == "answered" else "canceled", reason)
        self._switchboard.capacity.forget_dialled(dialled.token)
        return ""

    async def hang_up(self, dialled: DialledCall) -> None:
        """End a call whose session has ended, by the API, unless the other end hung up."""
        account = load_account(dialled.provider.name, self._switchboard.config.credentials)
        try:
            await carry_out(account.hang_up(dialled.call))
        except ApiError as error:
            if error.kind not in ("ended", "not-found", "unsupported"):
                logger.error("{}: {}", _left(dialled), error.message)

    async def see_through(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what ends a call; it is carried to its end even if nobody waits for it any more."""
        await asyncio.shield(self._start(work, is_urgent=True))

    @property
    def ringing(self) -> int:
        """How many calls have been placed, or are being placed, whose streams have not come."""
        waiting = [each for each in self._by_id.values() if not each.is_over and each.session is None]
        if self._switchboard.fleet.is_shared:
            # The streams of those that were answered may be at another server.
            return sum(each.stage in ("queued", "ringing") for each in waiting)
        return sum(not each.has_left for each in waiting)

    @property
    def under_way(self) -> list[DialledCall]:
        """Those of which not everything is known yet."""
        return [each for each in self._by_id.values() if not each.is_over or each.session is not None]

    def end_ringing(self, reason: str) -> None:
        """End the calls that nobody has answered yet."""
        for each in list(self._by_id.values()):
            if each.stage in ("queued", "ringing") and not each.unwanted:
                self._start(self._end_ringing(each, reason), is_urgent=True)

    async def _end_ringing(self, dialled: DialledCall, reason: str) -> None:
        """End a call that nobody has answered; in a fleet, another server may have its stream."""
        if self._switchboard.fleet.is_shared and dialled.placed is not None:
            if not dialled.call.call_id:
                # The provider tells its id in its reports, which others may have had. They take the call, too.
                logger.warning("the call to {} is left to the other servers", dialled.request.to_number)
                dialled.note("answered", "left to the other servers")
                return
            await self._ask(dialled, load_account(dialled.provider.name, self._switchboard.config.credentials))
        if dialled.stage in ("queued", "ringing"):
            await self._end_quietly(dialled, reason)

    async def _end_quietly(self, dialled: DialledCall, reason: str) -> None:
        """End a call; what comes in between is logged."""
        try:
            await self.end(dialled, reason)
        except WsvoiceError:
            # It is in the log.
            return

    @property
    def is_awaited(self) -> bool:
        """Whether the process must not end yet, because a call is being ended; false after a few seconds."""
        return bool(self._urgent) and time.monotonic() < self.finishes_by

    def left(self) -> Iterator[str]:
        """Say of each call that is not over that it may still be up, and how to end it."""
        known = [each for each in self._by_id.values() if not each.is_over]
        if self._switchboard.fleet.is_shared:
            # Other servers have the streams of those that were answered, and did not end here.
            known = [each for each in known if each.stage != "answered" or each.session is not None or each.unwanted]
        return (_left(each) for each in known)

    async def finish(self) -> None:
        """End the calls that nobody has answered yet, and wait until the provider has been told of all ends."""
        self.finishes_by = time.monotonic() + FINISH_TIMEOUT_S
        self.end_ringing("the server stops")
        while self._urgent and (left_s := self.finishes_by - time.monotonic()) > 0:
            await asyncio.wait(set(self._urgent), timeout=left_s)
        for text in self.left():
            logger.error("{}", text)

    # Following a call

    async def _follow(self, dialled: DialledCall, account: Account) -> None:
        """Note the call's end, which is asked for where it is not reported."""
        until = time.monotonic() + dialled.request.ring_timeout_s + ANSWER_GRACE_S
        while not dialled.is_over:
            has_ended = dialled.record is not None and not dialled.has_left
            wait_s = REPORT_WAIT_S if has_ended else ASK_AFTER_S
            left_s = dialled.left_s()
            if left_s is not None and not has_ended:
                # Most companies see to it themselves; some cannot be told.
                wait_s = min(wait_s, max(0.0, left_s))
                if left_s <= 0:
                    limit_s = dialled.request.time_limit_s
                    await self._end_quietly(dialled, f"the call has lasted {limit_s} s (time_limit_s)")
                    wait_s = REPORT_WAIT_S
            if await dialled.changed(wait_s):
                continue
            await self._ask(dialled, account)
            if not dialled.is_over and has_ended:
                dialled.note("completed", "completed")
            if dialled.session is None and time.monotonic() > until and dialled.stage in ("queued", "ringing"):
                await self._end_quietly(dialled, "nobody answered")
                dialled.note("no-answer", "no answer")
        # The provider's report of the end may overtake that of the bot's own part.
        waits_until = time.monotonic() + self._switchboard.config.bot_exit_timeout_s + CLEANUP_S
        while dialled.session is not None and dialled.record is None and time.monotonic() < waits_until:
            await dialled.changed(REPORT_WAIT_S)
        if dialled.record is not None or dialled.duration_s is None:
            await self._ask(dialled, account)
        self._switchboard.capacity.forget_dialled(dialled.token)
        self._switchboard.numbers.call_ended(dialled_key(dialled))
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
        if self._switchboard.fleet.is_shared and state.stage not in ("queued", "ringing"):
            # Its stream may be another server's.
            self._switchboard.capacity.forget_dialled(dialled.token)
        if state.stage != dialled.stage or state.answered_by not in (None, dialled.answered_by):
            dialled.note(state.stage, state.stage.replace("-", " "), answered_by=state.answered_by)

    def _start(self, work: Coroutine[Any, Any, ResultT], *, is_urgent: bool = False) -> asyncio.Task[ResultT]:
        task = asyncio.create_task(work)
        for tasks in (self._tasks, self._urgent) if is_urgent else (self._tasks,):
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        # Whoever waits for it is told; nobody may be there any more.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _remember(self, dialled: DialledCall) -> None:
        self._by_id[dialled.id] = self._by_token[dialled.token] = dialled
        while len(self._by_id) > REMEMBERED_CALLS:
            oldest = next((each for each in self._by_id.values() if each.is_over), None)
            if oldest is None:
                break
            self._forget(oldest)

    def _forget(self, dialled: DialledCall) -> None:
        self._switchboard.capacity.forget_dialled(dialled.token)
        self._switchboard.numbers.call_ended(dialled_key(dialled))
        self._by_id.pop(dialled.id, None)
        self._by_token.pop(dialled.token, None)
        self._elsewhere.pop(dialled.token, None)


def dialled_key(dialled: DialledCall) -> CallKey:
    """Return what a placed call is counted by: its ids change."""
    return dialled.provider.name, f"dialled {dialled.token}"


def _noting(methods: list[str], steps: Steps[ResultT]) -> Steps[ResultT]:
    """Return the same operation, which notes the methods of its requests."""
    try:
        request = next(steps)
        while True:
            methods.append(request.method)
            request = steps.send((yield request))
    except StopIteration as end:
        result: ResultT = end.value
        return result


def _may_have_arrived(error: ApiError) -> bool:
    """Whether a request that failed may have been carried out: it was sent, and no answer came."""
    cause = error.__cause__
    return error.kind == "unreachable" and isinstance(cause, HttpError) and cause.kind in ("timeout", "other")


def _left(dialled: DialledCall) -> str:
    """Say that a call may still be up, and how to end it."""
    call_id, name = dialled.call.call_id, dialled.provider.name
    if not dialled.can_be_ended:
        return f"the call to {dialled.request.to_number} may ring on; {dialled.provider.title}'s API cannot end it"
    mend = f"`wsvoice hangup {call_id} -t {name}`" if call_id else f"{dialled.provider.title}'s console"
    return f"the call to {dialled.request.to_number} may still be up ({mend} ends it)"
