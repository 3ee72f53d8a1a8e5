"""
Which new calls are taken: the rule of ``--max-calls``, limits for one caller's number, and why a call is refused.

Places are counted in :mod:`wsvoice.runner.capacity`, the minutes of a day in :mod:`wsvoice.runner.minutes`.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsvoice.call import Call
from wsvoice.config.settings import CALLS_PER_WORKER
from wsvoice.runner.capacity import CallKey, Place, call_key
from wsvoice.runner.minutes import DayMinutes

#: Why a call is refused, in a word: as metrics have it.
Reason = Literal["draining", "lag", "max_calls", "per_number", "per_hour", "minutes"]

HOUR_S = 3600.0
#: How many numbers are remembered, so that strangers who invent them do not fill the memory. The one that called
#: longest ago is forgotten first, unless a call of it is running.
REMEMBERED_NUMBERS = 10_000
#: What callers without a number are called: https://www.rfc-editor.org/rfc/rfc3323#section-4.1.1.3
_NAMELESS = frozenset({"", "anonymous", "blocked", "private", "restricted", "unavailable", "unknown", "withheld"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    Why a new call is not taken.

    Attributes:
        reason: In a word, for metrics.
        text: In a few words, for the log.
    """

    reason: Reason
    text: str


#: No place is free.
FULL = Refusal("max_calls", "every place is taken")
DRAINING = Refusal("draining", "draining")


def most_calls(max_calls: int | None, workers: int = 1) -> int | None:
    """
    Return how many calls a server takes at once; ``None`` for no limit.

    Args:
        max_calls: As ``--max-calls`` says it: for all workers together, 0 for no limit, ``None`` for the default,
            :data:`~wsvoice.config.settings.CALLS_PER_WORKER` for each.
        workers: How many processes run bots; a server without workers of its own counts as one.
    """
    if max_calls is None:
        return CALLS_PER_WORKER * workers
    return max_calls or None


def other_number(call: Call) -> str:
    """Return the number at the other end of `call`: the caller's, or the callee's if it goes out."""
    return call.to_number if call.direction == "outbound" else call.from_number


def same_number(number: str) -> str:
    """Return what a number has in common with its other spellings; empty for everybody who has none."""
    # SIP's way to have none is sip:anonymous@anonymous.invalid.
    name = number.strip().lower().removeprefix("sips:").removeprefix("sip:").removeprefix("+")
    return "" if name.partition("@")[0] in _NAMELESS else name


@dataclass(slots=True)
class _KnownCall:
    """A call of a number: how many streams it has, and until when one is expected."""

    until: float
    streams: int = 0


@dataclass(slots=True)
class _Number:
    """A number: its calls that run or are announced, and when the last hour's began."""

    calls: dict[CallKey, _KnownCall] = field(default_factory=dict)
    began: deque[float] = field(default_factory=deque)


class NumberLimits:
    """
    Limits the calls of one number: how many at once, and how many within an hour.

    A call counts from when it is admitted. If its stream does not come in time it no longer counts as running, but it
    still does for the hour. Calls that are refused do not count.

    Where webhooks are not signed, a stranger may claim any number: that of somebody else too.

    Attributes:
        on_event: Called with what is counted, which is what :meth:`apply` has to be given elsewhere.
        at_once: 0 for no limit.
        per_hour: 0 for no limit.
    """

    def __init__(self, at_once: int, per_hour: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self.on_event: Callable[..., None] = lambda name, *arguments: None
        self.at_once = at_once
        self.per_hour = per_hour
        self._now = now
        #: In the order in which they last called.
        self._numbers: OrderedDict[str, _Number] = OrderedDict()
        self._number_of: dict[CallKey, str] = {}
        #: How many streams of a call are those of a server that this one has taken over from.
        self._elsewhere: Counter[CallKey] = Counter()

    def why_refused(self, number: str) -> Refusal | None:
        """Say why no new call of `number` is taken; ``None`` if one is."""
        known = self._numbers.get(same_number(number))
        if known is None:
            return None
        self._forget_old(known)
        who = number[:40] or "callers without a number"
        if self.at_once and len(known.calls) >= self.at_once:
            have = "has" if number else "have"
            return Refusal("per_number", f"{who} {have} {len(known.calls)} running (--max-calls-per-number)")
        if self.per_hour and len(known.began) >= self.per_hour:
            often = "once" if len(known.began) == 1 else f"{len(known.began)} times"
            what = f"{who} called {often} within an hour"
            return Refusal("per_hour", f"{what} (--max-calls-per-hour)")
        return None

    def knows(self, call: CallKey) -> bool:
        """Whether a call was admitted whose stream is running, or may still come."""
        known = self._numbers.get(self._number_of.get(call, ""))
        if known is not None:
            self._forget_old(known)
        return call in self._number_of

    def admit(self, call: CallKey, number: str, wait_s: float) -> None:
        """Count a new call of `number`, whose stream is to come within `wait_s` seconds."""
        if not (self.at_once or self.per_hour) or self.knows(call):
            return
        self.on_event("admit", *call, number, wait_s)
        known = self._keep(call, number, self._now() + wait_s)
        if self.per_hour:
            known.began.append(self._now())

    def withdraw(self, call: CallKey) -> None:
        """Take back what :meth:`admit` has counted: the call does not come about."""
        self.on_event("withdraw", *call)
        known = self._numbers.get(self._number_of.get(call, ""))
        if known is not None and call in known.calls:
            self._drop(known, call)
            if known.began:
                known.began.pop()

    def stream_began(self, call: CallKey, number: str | None = None) -> None:
        """
        Note that a stream of an admitted call has begun.

        Args:
            number: Of the call, where that is known. Then one that was admitted elsewhere is counted as well, as
                running: for the hour it counts where its webhook came to.
        """
        self.on_event("stream_began", *call, number)
        if number is not None and (self.at_once or self.per_hour) and not self.knows(call):
            self._keep(call, number, math.inf)
        known = self._numbers.get(self._number_of.get(call, ""))
        if known is not None and call in known.calls:
            known.calls[call].streams += 1

    def stream_ended(self, call: CallKey) -> None:
        """Note that a stream of an admitted call is over, and with the last one the call."""
        self.on_event("stream_ended", *call)
        known = self._numbers.get(self._number_of.get(call, ""))
        if known is None or call not in known.calls:
            return
        known.calls[call].streams -= 1
        if known.calls[call].streams <= 0:
            self._drop(known, call)

    def call_ended(self, call: CallKey) -> None:
        """Note that an admitted call is over, as somebody says; one with a stream goes on."""
        self.on_event("call_ended", *call)
        known = self._numbers.get(self._number_of.get(call, ""))
        if known is not None and call in known.calls and not known.calls[call].streams:
            self._drop(known, call)

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over on this machine has to know, as JSON has it; times are monotonic."""
        numbers = []
        for name, known in self._numbers.items():
            self._forget_old(known)
            calls = [[*key, each.until, each.streams] for key, each in known.calls.items()]
            numbers.append([name, [*known.began], calls])
        return {"numbers": numbers}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from."""
        for name, began, calls in state.get("numbers", ()):
            known = self._numbers.setdefault(name, _Number())
            known.began.extend(began)
            for provider, call_id, until, streams in calls:
                key = (provider, call_id)
                known.calls[key] = _KnownCall(until, streams)
                self._number_of[key] = name
                self._elsewhere[key] += streams

    def apply(self, name: str, provider: str, call_id: str, number: str | None = None, wait_s: float = 0.0) -> None:
        """Count what was counted in the server that this one has taken over from: an event of :attr:`on_event`."""
        call = (provider, call_id)
        if name == "admit":
            self.admit(call, number or "", wait_s)
        elif name == "withdraw":
            self.withdraw(call)
        elif name == "stream_began":
            self._elsewhere[call] += 1
            self.stream_began(call, number)
        elif name == "stream_ended":
            self._elsewhere[call] -= 1
            self.stream_ended(call)
        elif name == "call_ended":
            self.call_ended(call)

    def forget_elsewhere(self) -> None:
        """Note that the server is gone that this one has taken over from, and with it its streams."""
        for call, streams in self._elsewhere.items():
            for _ in range(streams):
                self.stream_ended(call)
        self._elsewhere.clear()

    def _keep(self, call: CallKey, number: str, until: float) -> _Number:
        """Remember a call, and return its number."""
        name = same_number(number)
        known = self._numbers.setdefault(name, _Number())
        self._numbers.move_to_end(name)
        self._forget_old(known)
        known.calls[call] = _KnownCall(until)
        self._number_of[call] = name
        if len(self._numbers) > REMEMBERED_NUMBERS:
            self._forget_one()
        return known

    def _drop(self, known: _Number, call: CallKey) -> None:
        del known.calls[call]
        del self._number_of[call]

    def _forget_old(self, known: _Number) -> None:
        now = self._now()
        for call in [key for key, each in known.calls.items() if not each.streams and each.until < now]:
            self._drop(known, call)
        while known.began and known.began[0] <= now - HOUR_S:
            known.began.popleft()

    def _forget_one(self) -> None:
        """Forget the number without a running call that called longest ago."""
        for name, known in self._numbers.items():
            if not any(each.streams for each in known.calls.values()):
                for call in list(known.calls):
                    self._drop(known, call)
                del self._numbers[name]
                return


class StreamMeter:
    """
    What is counted of one stream, beside its place: minutes, and for telephone calls the running calls of a number.

    :meth:`end` is always called; :meth:`start` before it if the stream gets that far. Either may be called twice.

    Args:
        place: The stream's place.
        call: The call that was admitted; ``None`` where it becomes known with the stream's start.
    """

    def __init__(self, place: Place, minutes: DayMinutes, numbers: NumberLimits, call: CallKey | None = None) -> None:
        self._place = place
        self._minutes = minutes
        self._numbers = numbers
        self._call = call
        self._running: int | None = None
        self._is_over = False

    def start(self, call: Call | None = None) -> Refusal | None:
        """
        Count the stream from now on, and return why it is refused.

        Args:
            call: What the stream's start says of it. If nothing was known of it before, its number is looked at now.
        """
        self._place.start()
        if self._is_over or self._running is not None:
            return None
        if self._call is None and call is not None:
            number = other_number(call)
            if (refusal := self._numbers.why_refused(number)) is not None:
                return refusal
            self._call = call_key(call)
            self._numbers.admit(self._call, number, math.inf)
        if self._call is not None:
            # A call whose webhook came to another server is not refused any more: it was answered.
            self._numbers.stream_began(self._call, other_number(call) if call is not None else None)
        self._running = self._minutes.begin()
        return None

    def end(self) -> None:
        """Count no more: the stream is closed."""
        self._is_over = True
        if self._running is None:
            return
        self._minutes.end(self._running)
        self._running = None
        if self._call is not None:
            self._numbers.stream_ended(self._call)
