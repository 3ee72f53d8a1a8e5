"""
Asks a running server for a call, and follows the call to its end.

The server places the call, because the webhook and the stream are its own. Whoever asks has to have its key:
``POST /dial`` places a call, ``GET /dial/ID`` waits for what happens next, ``DELETE /dial/ID`` hangs up. Whoever asks
chooses the id, and so can withdraw a call that is still being placed.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any, get_args
from urllib.parse import quote

from wsvoice import http
from wsvoice.call import ENDED_STAGES, AnsweredBy, Stage
from wsvoice.config import Detection, Voicemail
from wsvoice.errors import ApiError, ConfigError, DialError, HttpError, RemoteProtocolError, UsageError, WsvoiceError
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.fields import read_object, read_text, text_or_nothing

#: How long the server may take to place a call: its provider may put the request off more than once.
PLACE_TIMEOUT_S = 120.0
#: How long it may be silent about a call; it answers after 25 s where nothing happens.
NEWS_TIMEOUT_S = 40.0
#: How long it may take to hang up: the provider may have to name the call first, and may have to be told repeatedly.
HANG_UP_TIMEOUT_S = 40.0
#: How often in a row it may be out of reach while a call goes on, and the pause before each new attempt.
MAX_FAILURES, PAUSE_S = 4, 0.5
#: Failures of a request that has not reached the server.
_NOT_SENT = frozenset({"refused", "connect", "tls", "dns", "url", "address"})
#: What a proxy answers in front of a server that it does not reach.
_PROXYS = frozenset({502, 503, 504})
_TEXT_LIMIT = 500


@dataclass(frozen=True, slots=True)
class CallOrder:
    """
    A call that a server is asked for.

    Attributes:
        to_number, from_number: In E.164.
        provider: ``None`` for the only one that the server serves.
        parameters: For the bot.
        ring_timeout_s: How long it may ring.
        time_limit_s: How long it may last; ``None`` for the provider's own limit.
        detection: What is found out about who answers; ``None`` for what `voicemail` needs.
        voicemail: What becomes of a call that a machine answers.
    """

    to_number: str
    from_number: str
    provider: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    ring_timeout_s: int = 60
    time_limit_s: int | None = None
    detection: Detection | None = None
    voicemail: Voicemail = "bot"

    def to_dict(self) -> dict[str, Any]:
        """Return it as the server takes it."""
        return {
            "to": self.to_number,
            "from": self.from_number,
            **({"provider": self.provider} if self.provider else {}),
            "parameters": dict(self.parameters),
            "ring_timeout_s": self.ring_timeout_s,
            "time_limit_s": self.time_limit_s,
            "detection": self.detection,
            "voicemail": self.voicemail,
        }


@dataclass(frozen=True, slots=True)
class CallEvent:
    """
    Something that happened to a call.

    Attributes:
        number: Its place among the call's events, from 1.
        at_s: Seconds since the call was asked for.
        stage: How far the call is with it; ``None`` where the server does not say.
        answered_by: Who answered, where that is what happened.
        text: What happened, in words.
    """

    number: int
    at_s: float
    stage: Stage | None
    answered_by: AnsweredBy | None
    text: str


@dataclass(frozen=True, slots=True)
class CallRecord:
    """
    What is known of a call.

    Attributes:
        id: The server's id of it.
        call_id: The provider's; empty until it is known.
        provider: Through whom it goes.
        to_number, from_number: Who is called, and from which number.
        stage: How far it is, or how it ended.
        answered_by: Who answered; ``None`` if that was not found out.
        duration_s: From the answer to the end; ``None`` before that.
        price: What it cost, with its currency; empty where that is not known (yet).
        ended_by: Who ended it; empty where that is not known.
        cause: Why it ended, in the provider's words.
        response_s: How long the person waited for each of the bot's answers.
        heard_s, sent_s: How much audio came in, and went out.
        recording: The path of the recording, on the server.
    """

    id: str
    call_id: str = ""
    provider: str = ""
    to_number: str = ""
    from_number: str = ""
    stage: Stage = "queued"
    answered_by: AnsweredBy | None = None
    duration_s: float | None = None
    price: str = ""
    ended_by: str = ""
    cause: str = ""
    response_s: tuple[float, ...] = ()
    heard_s: float | None = None
    sent_s: float | None = None
    recording: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.stage in ENDED_STAGES

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: stable names in a stable order."""
        names = {"to_number": "to", "from_number": "from"}
        return {names.get(each.name, each.name): getattr(self, each.name) for each in fields(CallRecord)}


class CallServer:
    """
    A server that is asked for calls.

    Args:
        url: Its address, with a slash at its end.
        key: The key that it asks for.
        sleep: Waits so many seconds.
    """

    def __init__(self, url: str, key: str, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.url = url
        self._key = key
        self._sleep = sleep

    def order(self, order: CallOrder) -> OrderedCall:
        """Return a call that can be placed."""
        return OrderedCall(self, order)

    async def request(self, method: str, path: str, *, timeout_s: float, body: bytes = b"") -> http.HttpResponse:
        """Send a request with the key; errors as :func:`wsvoice.http.send`."""
        headers = {"Authorization": f"Bearer {self._key}", "Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        return await http.send(HttpRequest(method, f"{self.url}{path}", headers, body), timeout_s=timeout_s)

    async def ask(self, path: str, *, timeout_s: float) -> http.HttpResponse:
        """Send a GET, and again for a while if it fails on its way; errors as :func:`wsvoice.http.send`."""
        failures = 0
        while True:
            try:
                answer = await self.request("GET", path, timeout_s=timeout_s)
                if answer.status not in _PROXYS or failures == MAX_FAILURES:
                    return answer
            except HttpError:
                if failures == MAX_FAILURES:
                    raise
            failures += 1
            await self.pause()

    async def pause(self) -> None:
        """Wait a moment before the next request."""
        await self._sleep(PAUSE_S)

    def read(self, answer: http.HttpResponse) -> dict[str, Any]:
        """Return the object that an answer holds; :exc:`DialError` is raised if it holds none."""
        try:
            return read_object(answer.body.decode("utf-8", "replace"))
        except RemoteProtocolError as error:
            raise self.broken(error) from None

    def broken(self, error: RemoteProtocolError) -> DialError:
        """Return the error for an answer that no wsvoice gives."""
        return DialError(f"the server at {self.url} answers what no wsvoice does: {error.message}", hint=_OTHER_HINT)

    def refusal(self, answer: http.HttpResponse) -> WsvoiceError:
        """Return the error for an answer that is no success."""
        try:
            content = read_object(answer.body.decode("utf-8", "replace"))
        except RemoteProtocolError:
            content = {}
        message = text_or_nothing(content.get("error"), _TEXT_LIMIT)
        hint = text_or_nothing(content.get("hint"), _TEXT_LIMIT) or None
        kind = text_or_nothing(content.get("kind")) or "refused"
        if answer.status == 401:
            hint = "set WSVOICE_DIAL_KEY to the one that the server was started with"
            return ConfigError(f"the server at {self.url} does not take the key", hint=hint)
        if answer.status in (404, 405):
            return DialError(message or f"the server at {self.url} places no calls", hint=hint or _OTHER_HINT)
        message = message or f"the server at {self.url} answers {answer.status}"
        if answer.status == 400:
            return UsageError(message, hint=hint)
        if answer.status == 429:
            return ApiError("rate-limit" if kind == "refused" else kind, message, hint=hint or "wait a minute")
        if answer.status == 502:
            return ApiError(kind, message, hint=hint)
        return DialError(message, hint=hint)


class OrderedCall:
    """
    A call that a server is asked for: :meth:`place`, then :meth:`follow`; :meth:`hang_up` at any time.

    Attributes:
        record: What is known of it by now.
        is_placed: Whether the server has placed it.
        limits: What the account cannot do that it goes through, one line each, as far as the server says so.
    """

    def __init__(self, server: CallServer, order: CallOrder) -> None:
        self.record = CallRecord(
            secrets.token_urlsafe(24),
            provider=order.provider or "",
            to_number=order.to_number,
            from_number=order.from_number,
        )
        self.is_placed = False
        self.limits: tuple[str, ...] = ()
        self._server = server
        self._order = order
        self._after = 0
        self._is_being_placed = False
        self._is_unwanted = False

    async def place(self) -> None:
        """
        Have it placed; if it was hung up meanwhile it is not, which is no error.

        Raises:
            UsageError: If the order is wrong, or the key.
            ApiError: If the provider refuses it; of kind ``uncertain`` if it may have placed it all the same.
            DialError: If the server does not place it, or cannot be reached.
        """
        server = self._server
        body = json.dumps({"id": self.record.id, **self._order.to_dict()}).encode()
        self._is_being_placed = True
        try:
            answer = await server.request("POST", "dial", timeout_s=PLACE_TIMEOUT_S, body=body)
        except HttpError as error:
            if error.kind in _NOT_SENT:
                message = f"the server that was to place the call cannot be reached: {error.message}"
                raise DialError(message, hint=_START_HINT) from error
            raise await self._withdrawn(error) from error
        finally:
            self._is_being_placed = False
        if answer.status == 409 and self._is_unwanted:
            return
        if answer.status != 201:
            raise server.refusal(answer)
        content = server.read(answer)
        try:
            id = read_text(content.get("id"), "bad-call", "the call's id")
        except RemoteProtocolError as error:
            raise server.broken(error) from None
        self.is_placed = True
        self.record = _read_record(content, replace(self.record, id=id))
        self.limits = _read_limits(content.get("limits"))

    @property
    def _path(self) -> str:
        return f"dial/{quote(self.record.id, safe='')}"

    async def _withdrawn(self, error: HttpError) -> DialError:
        """Withdraw a call about which the server has not answered, and return the error that says what came of it."""
        with suppress(WsvoiceError):
            answer = await self._delete()
            if answer.status in (200, 204):
                return DialError(f"{error.message}; the call was withdrawn", hint=error.hint)
        hint = "look at the provider's own list of calls"
        return DialError(f"{error.message}; the call may have been placed", hint=hint)

    async def follow(self, on_event: Callable[[CallEvent], None]) -> CallRecord:
        """
        Wait until the call has ended, and return what became of it.

        It may be cancelled and called again, and goes on where it was.

        Args:
            on_event: Called with each event as it happens.

        Raises:
            DialError: If the server is gone, or no longer knows the call.
        """
        while True:
            try:
                answer = await self._server.ask(f"{self._path}?after={self._after}", timeout_s=NEWS_TIMEOUT_S)
            except HttpError as error:
                raise self._lost(f"the server is gone in the middle of the call: {error.message}") from error
            if answer.status == 404:
                raise self._lost("the server no longer knows the call: it was started anew")
            if answer.status != 200:
                raise self._lost(f"the server does not tell how the call goes on: it answers {answer.status}")
            content = self._server.read(answer)
            after = self._after
            for event in _read_events(content.get("events")):
                if event.number > self._after:
                    self._after = event.number
                    on_event(event)
            self.record = _read_record(content.get("call"), self.record)
            if content.get("ended") is True:
                # Nobody may have known before.
                self.is_placed = True
                return self.record
            if self._after == after:
                # A server that does not wait is not asked without pause.
                await self._server.pause()

    async def hang_up(self) -> str:
        """
        End it, or withdraw it while it is being placed.

        Returns:
            How it goes on, if the provider has no way to end it: what "the call" does. Else empty: it has ended, it was
            not placed, or :meth:`place` tells why that failed.

        Raises:
            ApiError: If the provider refuses to end it.
            DialError: If the server cannot be reached, or does not end it.
        """
        self._is_unwanted = True
        while True:
            was_being_placed = self._is_being_placed
            if not (was_being_placed or self.is_placed):
                return ""
            answer = await self._delete()
            if answer.status != 404:
                break
            # It is not known once it is over for a while, nor before the request for it has arrived.
            if not was_being_placed:
                return ""
            await self._server.pause()
        if answer.status in (200, 204):
            return ""
        if answer.status == 202:
            return text_or_nothing(self._server.read(answer).get("text"), _TEXT_LIMIT) or "goes on for a while"
        refusal = self._server.refusal(answer)
        message = f"the call could not be hung up: {refusal.message}"
        if isinstance(refusal, ApiError) and refusal.hint:
            raise ApiError(refusal.kind, message, hint=refusal.hint)
        raise self._lost(message)

    async def _delete(self) -> http.HttpResponse:
        try:
            return await self._server.request("DELETE", self._path, timeout_s=HANG_UP_TIMEOUT_S)
        except HttpError as error:
            raise self._lost(f"the call could not be hung up: {error.message}") from error

    def _lost(self, message: str) -> DialError:
        known = self.record
        if not known.call_id:
            return DialError(message, hint=f"it goes from {known.from_number} to {known.to_number}")
        option = f" -t {known.provider}" if known.provider else ""
        return DialError(message, hint=f"`wsvoice hangup {known.call_id}{option}` ends the call, if it goes on")


_START_HINT = "start it with `wsvoice run`, or have a bot served for this call: `--bot bot.py`"
_OTHER_HINT = "it is something else, or an older wsvoice: `--server` names another one"


def _number(value: object) -> float | None:
    """Return a number that JSON holds; ``None`` for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None  # type: ignore[return-value]


def _word(value: object, words: Any) -> Any:
    """Return `value` if it is one of a literal type's `words`, else ``None``."""
    return value if value in get_args(words) else None


def _read_limits(content: object) -> tuple[str, ...]:
    """Return the limits that a server tells of, without what are none."""
    told = content if isinstance(content, list) else []
    return tuple(text for each in told if (text := text_or_nothing(each, _TEXT_LIMIT)))


def _read_events(content: object) -> list[CallEvent]:
    """Return the events in their order; what has no number is none."""
    events = []
    for each in content if isinstance(content, list) else []:
        if not isinstance(each, dict) or (number := _number(each.get("n"))) is None:
            continue
        stage, answered_by = _word(each.get("stage"), Stage), _word(each.get("answered_by"), AnsweredBy)
        text = text_or_nothing(each.get("text"), _TEXT_LIMIT) or str(stage or "")
        events.append(CallEvent(int(number), _number(each.get("at_s")) or 0.0, stage, answered_by, text))
    return sorted(events, key=lambda event: event.number)


def _read_record(content: object, before: CallRecord) -> CallRecord:
    """Return what the server tells of a call, and what was known of it `before` where it does not."""
    if not isinstance(content, dict):
        return before

    def text(name: str, known: str) -> str:
        return text_or_nothing(content.get(name), _TEXT_LIMIT) or known

    def number(name: str, known: float | None) -> float | None:
        told = _number(content.get(name))
        return known if told is None else told

    told = content.get("response_s")
    waits = [each for value in told if (each := _number(value)) is not None] if isinstance(told, list) else []
    return CallRecord(
        before.id,
        text("call_id", before.call_id),
        text("provider", before.provider),
        text("to", before.to_number),
        text("from", before.from_number),
        _word(content.get("stage"), Stage) or before.stage,
        _word(content.get("answered_by"), AnsweredBy) or before.answered_by,
        number("duration_s", before.duration_s),
        text("price", before.price),
        text("ended_by", before.ended_by),
        text("cause", before.cause),
        tuple(waits) or before.response_s,
        number("heard_s", before.heard_s),
        number("sent_s", before.sent_s),
        text("recording", before.recording),
    )
