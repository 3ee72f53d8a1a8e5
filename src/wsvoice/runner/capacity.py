"""How many calls run at once, and for which announced calls a place is reserved."""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wsvoice.call import Call

#: How long a stream token is valid, and a place is reserved for its stream. Providers dial within seconds; Twilio gives
#: up after 15.
TOKEN_TTL_S = 60
#: How long a place is reserved for the stream of an unsigned webhook.
STRANGER_TTL_S = 15
#: Strangers get a share of this many places where the number of calls is unlimited.
UNLIMITED_PLACES = 1000

#: How many moments count for how late the event loop is: those of a second.
LATENESS_SAMPLES = 10

#: What identifies a call: its provider's name and its id.
CallKey = tuple[str, str]


def call_key(call: Call) -> CallKey:
    """Return what identifies `call`."""
    return call.provider, call.call_id


@dataclass(slots=True)
class _RunningCall:
    """A running call: its streams, and until when a place is reserved for its next one."""

    streams: int = 1
    next_until: float = -math.inf
    stranger: str | None = None


class Lateness:
    """
    Whether the event loop has been too late for new calls: the median of the last second, with hysteresis.

    One stall is not enough. Once it is too late, it is so until the median is half of the limit.

    Attributes:
        late_s: The median.
        limit_s: How late is too late, in seconds; 0 for no limit.
    """

    def __init__(self, limit_s: float) -> None:
        self.late_s = 0.0
        self.is_too_late = False
        self.limit_s = limit_s
        self._samples: deque[float] = deque([0.0] * LATENESS_SAMPLES, LATENESS_SAMPLES)

    def note(self, late_s: float) -> None:
        """Note how late the event loop just was, in seconds."""
        self._samples.append(late_s)
        self.late_s = statistics.median(self._samples)
        if self.limit_s:
            self.is_too_late = self.late_s > (self.limit_s / 2 if self.is_too_late else self.limit_s)


class Place:
    """
    A place that a stream has taken.

    :meth:`release` is always called; :meth:`start` and :meth:`close` are called before it if the stream gets that far.
    """

    def __init__(self, capacity: Capacity, call: CallKey | None, *, is_stranger: bool) -> None:
        self._capacity = capacity
        self._call = call
        self._is_silent = is_stranger
        self._is_closed = False
        self._is_released = False

    def start(self) -> None:
        """Count the stream as a call like any other: it has started."""
        if self._is_silent:
            self._is_silent = False
            self._capacity._silent_strangers -= 1

    def close(self) -> None:
        """Free the place for another call: the stream is closed, although its bot may still be working."""
        self.start()
        if not self._is_closed:
            self._is_closed = True
            self._capacity._close(self._call)

    def release(self) -> None:
        """Give the place up: the bot has ended as well."""
        self.close()
        if not self._is_released:
            self._is_released = True
            self._capacity.running_bots -= 1


class Capacity:
    """
    Limits how many calls run at once; a place is checked and reserved in one step.

    A webhook reserves a place for as long as its token is valid; the stream takes the place over. A call has one
    place however many webhooks ask for it: a webhook that comes while it runs (a redirect) reserves the place for the
    call's next stream.

    Strangers' webhooks (unsigned ones) are answered while there is room, but reserve few places for a short time:
    :data:`STRANGER_TTL_S`, at most a quarter of all places per address and half of them for all strangers, but at least
    one. A webhook beyond its share is answered too; its stream takes a place if one is free when it arrives. So a
    stranger who never dials blocks nobody for long, and many callers behind one proxy, tunnel or provider's address
    are still served. A verified webhook that finds no room takes a place that is reserved for a stranger.

    Strangers' streams that have not started may hold half of the places, but at least two (two callers may come at the
    same moment). One that has started is a call like any other and may fill every place: a server that does not verify
    webhooks (``--verify off``, a provider that signs nothing, localhost) accepts everybody as a caller, and a start
    message is as easy to send as a webhook. Only signatures tell callers from strangers.

    A call whose stream is closed no longer counts, although its bot may still be working, unless more such bots than
    places are left.

    Attributes:
        draining: The process is about to stop: no new calls are taken.
        elsewhere: How many calls still go on in the server that this one has taken over from, and which of them are
            known; they count.

    Args:
        limit: How many at once; ``None`` for no limit.
        ttl_s: For how long a place is reserved for the stream of a verified webhook.
    """

    def __init__(
        self, limit: int | None, *, ttl_s: float = TOKEN_TTL_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.limit = limit
        self._ttl_s = ttl_s
        self.draining = False
        self.elsewhere: tuple[int, frozenset[CallKey]] = (0, frozenset())
        self._now = now
        # Strangers' streams that have not started.
        self._silent_strangers = 0
        # Both are in the order in which they expire; strangers' entries also hold the address.
        self._reserved: OrderedDict[CallKey, float] = OrderedDict()
        self._strangers: OrderedDict[CallKey, tuple[float, str]] = OrderedDict()
        self._stranger_counts: Counter[str] = Counter()
        self._lines: dict[CallKey, _RunningCall] = {}
        # Calls that we placed and nobody has answered, by their tokens.
        self._dialled: set[str] = set()
        #: How many calls are running.
        self.active = 0
        #: How many bots are running; more than there are calls while some still finish their work.
        self.running_bots = 0

    @property
    def _places(self) -> int:
        """What strangers' shares are shares of; the limit may be changed at any time."""
        return UNLIMITED_PLACES if self.limit is None else self.limit

    @property
    def _share(self) -> int:
        """For how many calls one stranger's address may have places reserved."""
        return max(1, self._places // 4)

    @property
    def _strangers_share(self) -> int:
        """For how many calls all strangers may."""
        return max(1, self._places // 2)

    @property
    def _silent_share(self) -> int:
        """How many streams of strangers may be open that have not started."""
        return max(2, self._places // 2)

    @property
    def reserved(self) -> int:
        """For how many calls a place is reserved whose streams have not come yet."""
        self._drop_expired()
        return len(self._reserved) + len(self._strangers) + len(self._dialled)

    def reserve_dialled(self, token: str) -> bool:
        """Reserve a place for a call that we place, until :meth:`forget_dialled`; false if none is free."""
        self._drop_expired()
        if self._is_full() and not self._displace_stranger():
            return False
        self._dialled.add(token)
        return True

    def forget_dialled(self, token: str) -> None:
        """Give back the place of a call that we placed: it was answered, or nobody did."""
        self._dialled.discard(token)

    def reserve(self, call: Call, *, stranger: str | None = None) -> bool:
        """
        Reserve a place for the stream of `call`; false if none is free.

        `stranger` is the address that an unsigned webhook came from; ``None`` for a verified webhook.
        """
        self._drop_expired()
        key = call_key(call)
        if (line := self._lines.get(key)) is not None:
            line.next_until = self._now() + (self._ttl_s if stranger is None else STRANGER_TTL_S)
            line.stranger = stranger
            return True
        was_trusted = key in self._reserved
        # A call that goes on elsewhere has its place there until its next stream comes here.
        is_known = self._drop(key) or key in self.elsewhere[1]
        if not is_known and self._is_full() and not (stranger is None and self._displace_stranger()):
            return False
        self._keep(key, None if was_trusted else stranger)
        return True

    def knows(self, call: CallKey) -> bool:
        """Whether a call is running or has a reserved place."""
        self._drop_expired()
        known = (self._lines, self._reserved, self._strangers, self.elsewhere[1])
        return any(call in each for each in known)

    @property
    def running(self) -> tuple[int, frozenset[CallKey]]:
        """How many calls go on, here and elsewhere, and which of them are known."""
        count, known = self.elsewhere
        return self.active + count, known | self._lines.keys()

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over on this machine has to know, as JSON has it; times are monotonic."""
        self._drop_expired()
        reserved = [[*key, until] for key, until in self._reserved.items()]
        strangers = [[*key, *kept] for key, kept in self._strangers.items()]
        count, known = self.running
        return {"reserved": reserved, "strangers": strangers, "running": count, "calls": sorted(known)}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from."""
        known = frozenset((provider, call_id) for provider, call_id in state.get("calls", ()))
        self.elsewhere = (state.get("running", 0), known)
        for provider, call_id, until in state.get("reserved", ()):
            self._reserved[provider, call_id] = until
        for provider, call_id, until, stranger in state.get("strangers", ()):
            self._strangers[provider, call_id] = (until, stranger)
            self._stranger_counts[stranger] += 1

    def forget(self, call: CallKey) -> None:
        """Give back the place reserved for a call's stream; a running call continues."""
        self._drop(call)
        if (line := self._lines.get(call)) is not None:
            line.next_until = -math.inf

    def occupy(self, call: Call | None, *, is_stranger: bool = False) -> Place | None:
        """
        Take a place for a stream: the one reserved for its call, or a free one; ``None`` if there is none.

        Args:
            call: The call that its token is for; ``None`` without one.
            is_stranger: Whether it is unverified, and so counts as a stranger's until it starts.
        """
        self._drop_expired()
        if is_stranger and self._silent_strangers >= self._silent_share:
            return None
        key = call_key(call) if call is not None else None
        line = self._lines.get(key) if key is not None else None
        if line is not None and line.streams == 1 and line.next_until >= self._now():
            # One of the two streams is about to end: a call has one at a time.
            line.streams = 2
            line.next_until = -math.inf
        else:
            if not (key is not None and self._drop(key)) and self._is_full():
                return None
            if line is not None:
                key = None
            elif key is not None:
                self._lines[key] = _RunningCall()
            self.active += 1
        self.running_bots += 1
        self._silent_strangers += is_stranger
        return Place(self, key, is_stranger=is_stranger)

    def _close(self, key: CallKey | None) -> None:
        line = self._lines.get(key) if key is not None else None
        if key is not None and line is not None:
            line.streams -= 1
            if line.streams:
                return
            del self._lines[key]
        self.active -= 1
        if key is not None and line is not None and line.next_until >= self._now():
            self._keep(key, line.stranger)

    def _is_full(self) -> bool:
        if self.limit is None:
            return False
        lingering = max(0, self.running_bots - self.active)
        taken = self.active + self.elsewhere[0] + len(self._reserved) + len(self._strangers) + len(self._dialled)
        return taken + max(0, lingering - self.limit) >= self.limit

    def _displace_stranger(self) -> bool:
        """Give up the oldest place reserved for a stranger; false if that does not make room."""
        if self._strangers:
            self._drop(next(iter(self._strangers)))
        return not self._is_full()

    def _keep(self, key: CallKey, stranger: str | None) -> None:
        now = self._now()
        if stranger is None:
            self._reserved[key] = now + self._ttl_s
        elif self._stranger_counts[stranger] < self._share and len(self._strangers) < self._strangers_share:
            self._strangers[key] = (now + STRANGER_TTL_S, stranger)
            self._stranger_counts[stranger] += 1

    def _drop(self, key: CallKey) -> bool:
        if self._reserved.pop(key, None) is not None:
            return True
        kept = self._strangers.pop(key, None)
        if kept is None:
            return False
        _, stranger = kept
        self._stranger_counts[stranger] -= 1
        if not self._stranger_counts[stranger]:
            del self._stranger_counts[stranger]
        return True

    def _drop_expired(self) -> None:
        now = self._now()
        while self._reserved and next(iter(self._reserved.values())) < now:
            self._reserved.popitem(last=False)
        while self._strangers and next(iter(self._strangers.values()))[0] < now:
            self._drop(next(iter(self._strangers)))
