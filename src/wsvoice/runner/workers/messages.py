"""What the front and its workers tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsvoice.errors import WsvoiceError

if TYPE_CHECKING:
    from pathlib import Path

    from wsvoice.call import AnsweredBy, Call, Stage
    from wsvoice.config import RunConfig
    from wsvoice.providers.base import CallUpdate
    from wsvoice.runner.bot_task import Record
    from wsvoice.runner.call_tap import Exchange
    from wsvoice.runner.dialled_call import DialRequest
    from wsvoice.runner.figures import CallFigures
    from wsvoice.runner.limits import Refusal

# -- From the front --


@dataclass(frozen=True, slots=True)
class Begin:
    """
    What a worker is to do; its first message.

    Attributes:
        number: Which worker it is, from 1 on; one that takes the place of another has its number.
        log_name: What stands in the log's lines that are of no call.
        config: The settings.
        provider_names: The providers that are served.
        environ: All environment variables.
        folder: The current folder.
    """

    number: int
    log_name: str
    config: RunConfig
    provider_names: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    folder: Path


@dataclass(frozen=True, slots=True)
class DialledTerms:
    """A call that the server has placed, as its session needs to know it."""

    request: DialRequest
    call: Call
    answered_by: AnsweredBy | None
    greeting_ended: bool
    updates: tuple[CallUpdate, ...]


@dataclass(frozen=True, slots=True)
class StreamJob:
    """
    A provider's stream that may have its session; its connection comes along.

    Attributes:
        key: The session's number.
        upgrade: The request for the upgrade, byte by byte.
        provider: Whose stream it is; ``None`` if its first messages tell.
        announced: The call that its token was issued for; ``None`` without one.
        is_stranger: Whether it is unverified.
        known_calls: Announced calls, for a stream without a token.
        traceparent: The trace of the webhook that announced it; empty for none.
        exchange: That webhook with its answer, for the call's trace; ``None`` where there is none.
        dialled: The call as we placed it; ``None`` if it came in.
    """

    key: int
    upgrade: bytes = field(repr=False)
    provider: str | None
    announced: Call | None
    is_stranger: bool
    known_calls: tuple[Call, ...]
    traceparent: str
    exchange: Exchange | None = field(repr=False)
    dialled: DialledTerms | None


@dataclass(frozen=True, slots=True)
class ClientJob:
    """
    A plain client that may have its session; its connection comes along.

    Attributes:
        key, upgrade: As :class:`StreamJob`.
        session_id: From ``POST /start``, or made for the connection.
        body: What was sent to ``POST /start``; empty without.
        evals_only: It came to the address of pipecat's eval tool.
    """

    key: int
    upgrade: bytes = field(repr=False)
    session_id: str
    body: bytes = field(repr=False)
    evals_only: bool


@dataclass(frozen=True, slots=True)
class EndSession:
    """A session is to end."""

    key: int
    reason: str
    at_once: bool
    as_usual: bool


@dataclass(frozen=True, slots=True)
class Reported:
    """The provider has reported something of a session's call."""

    key: int
    update: CallUpdate


@dataclass(frozen=True, slots=True)
class DialledChanged:
    """How a call that the server has placed stands now."""

    key: int
    stage: Stage
    answered_by: AnsweredBy | None
    greeting_ended: bool
    unwanted: str


@dataclass(frozen=True, slots=True)
class CallTaken:
    """The answer to :class:`CallStarted`: why the call is refused all the same, if it is."""

    key: int
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Moved:
    """The server is reached at another public ``host[:port]``."""

    host: str


@dataclass(frozen=True, slots=True)
class Leave:
    """The worker is to exit with its last session; it is given no more."""


# -- From a worker --


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    The worker has loaded its bot, and takes sessions.

    Attributes:
        name: The bot's name in messages.
        file: The file it was read from.
        files: The project's files that were read for it.
        libraries: The names of the modules that it imported from elsewhere, in their order.
    """

    name: str
    file: Path
    files: frozenset[Path]
    libraries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker cannot load its bot, and exits."""

    kind: str
    message: str
    hint: str | None
    details: str

    @classmethod
    def of(cls, error: WsvoiceError) -> Failed:
        """Return the message for an error."""
        return cls(type(error).__name__, error.message, error.hint, getattr(error, "details", ""))

    def error(self) -> WsvoiceError:
        """Return the error again."""
        kind = next((each for each in _subclasses(WsvoiceError) if each.__name__ == self.kind), WsvoiceError)
        options: dict[str, Any] = {"details": self.details} if self.details else {}
        return kind(self.message, hint=self.hint, **options)


@dataclass(frozen=True, slots=True)
class FilesChanged:
    """The worker has read other files of the project by now, such as for an import inside of a function."""

    files: frozenset[Path]


@dataclass(frozen=True, slots=True)
class FromSession:
    """What concerns one session, by its number."""

    key: int


@dataclass(frozen=True, slots=True)
class CallStarted(FromSession):
    """The stream of a call has started; it is answered with :class:`CallTaken`."""

    call: Call


@dataclass(frozen=True, slots=True)
class ClientStarted(FromSession):
    """The session of a plain client begins."""


@dataclass(frozen=True, slots=True)
class SessionClosed(FromSession):
    """A session's WebSocket is closed; its bot may still be working."""


@dataclass(frozen=True, slots=True)
class SessionEnded(FromSession):
    """A session has ended, with its bot; without a record if it never began."""

    record: Record | None
    has_left: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """A WebSocket that was passed on was turned away; `kind` as :class:`~wsvoice.runner.logs.RefusalLog` has it."""

    kind: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """
    The worker is alive.

    Attributes:
        late_s: How late its event loop is, in seconds.
        is_too_late: Whether that is too late for more sessions.
        figures: How its sessions stand, by their keys.
    """

    late_s: float
    is_too_late: bool
    figures: Mapping[int, CallFigures]


def _subclasses(kind: type[WsvoiceError]) -> list[type[WsvoiceError]]:
    return [each for direct in kind.__subclasses__() for each in (direct, *_subclasses(direct))]
