"""What a run and its workers tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.addresses import AddressPolicy
from wsvoice.dial.load.listening import Hearing
from wsvoice.dial.script import Clip
from wsvoice.dial.target import Target
from wsvoice.dial.timeouts import Timeouts


@dataclass(frozen=True)
class Job:
    """
    What all calls of a run have in common.

    Attributes:
        config: Whom to call, and what to say; its credentials are the carrier's.
        target: What the user dialled.
        url: Its URL, or that of the bot that is served for it.
        addresses: Where the server may send the caller.
        turns: What the callers say; nothing if each has a sound of its own.
        timeouts: How long to wait for the other end.
    """

    config: DialConfig
    target: Target
    url: str
    addresses: AddressPolicy
    turns: Sequence[Clip]
    timeouts: Timeouts


@dataclass(frozen=True)
class Begin:
    """Place a call that lasts `duration_s`, as the caller with this `number`."""

    number: int
    call: Call
    duration_s: float


@dataclass(frozen=True)
class HangUp:
    """Hang up, because the user says so: one call, or all; ``by_bot`` if the bot has hung it up elsewhere."""

    number: int | None = None
    by_bot: bool = False


@dataclass(frozen=True)
class Read:
    """Read what was heard in the calls so far, and forget them; latencies only of this time."""

    window: tuple[float, float]


@dataclass(frozen=True)
class Ready:
    """The worker has started."""


@dataclass(frozen=True)
class Up:
    """A call's stream has started, at that time of :func:`time.monotonic`."""

    number: int
    at: float


@dataclass(frozen=True)
class Pulse:
    """How many calls are up, and which share of a core the worker took since its last pulse."""

    calls: int
    cpu_share: float


@dataclass
class Ended:
    """
    How a call ended; without what was heard in it.

    Attributes:
        number: The caller's number.
        failure: Why the call failed, or ``None``.
        webhook_ms: How long the webhook took; ``None`` if there was none.
        connect_ms: How long the WebSocket took to open; ``None`` if it did not.
        up_at: When the stream started; ``None`` if it did not.
        ended_at: When the call ended.
        interrupted: Whether the user ended it.
    """

    number: int
    failure: str | None = None
    webhook_ms: float | None = None
    connect_ms: float | None = None
    up_at: float | None = None
    ended_at: float = 0.0
    interrupted: bool = False


@dataclass(frozen=True)
class Heard:
    """What was heard in the calls, by number."""

    hearings: dict[int, Hearing] = field(default_factory=dict)
