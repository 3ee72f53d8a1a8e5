"""What can be told of a server and of the calls that run, while they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from wsvoice.call import short_id

_Figures = TypeVar("_Figures")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFigures:
    """
    One running session, as it stands at one moment. It can be pickled, and is JSON as a dictionary.

    Attributes:
        id: The session's; of a call the provider's id. Empty while a call without a webhook has not started.
        kind: ``call``, or ``client`` for a plain client.
        provider: The provider's name; ``websocket`` for a plain client.
        from_number: Who calls; empty if that is not known.
        to_number: Who is called; empty if that is not known.
        direction: ``inbound`` if the bot is called, ``outbound`` if the bot calls.
        started_at: Unix time of the accepted WebSocket.
        age_s: Seconds since then.
        heard_dbfs: How loud the caller was within the last second; ``None`` for silence, for no audio, and for clients.
        sent_dbfs: How loud the bot was.
        waits: How many answers the caller has waited for.
        last_wait_s: The wait for the last of them, in seconds.
        heard_s: How much of the caller's audio came, in seconds.
        sent_s: How much of the bot's audio was sent, in seconds.
        bytes_in: How much came: of a call the audio as its stream carries it, of a client all messages.
        bytes_out: How much was sent.
        underruns: How often the bot's audio stopped in the middle because the next piece came too late.
        pid: The process that runs the bot.
    """

    id: str
    kind: Literal["call", "client"]
    provider: str
    from_number: str = ""
    to_number: str = ""
    direction: str = "inbound"
    started_at: float
    age_s: float
    heard_dbfs: float | None = None
    sent_dbfs: float | None = None
    waits: int = 0
    last_wait_s: float | None = None
    heard_s: float = 0.0
    sent_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    underruns: int = 0
    pid: int


def matching_ids(ids: Iterable[str], given: str) -> list[str]:
    """
    Return which of `ids` is meant: by its whole, by its beginning, or by the short form that the log shows.

    More than one fit a beginning that is too short; none fits an empty text.
    """
    known = [each for each in dict.fromkeys(ids) if each]
    if not given or given in known:
        return [given] if given else []
    # The log shortens with one character, which not every keyboard has.
    short = given.replace("...", "…")
    return [each for each in known if each.startswith(given) or short_id(each) == short]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFigures:
    """
    One process that runs bots.

    Attributes:
        number: 1, 2, …; one that takes the place of another has its number.
        pid: Its process.
        calls: How many calls and clients it runs.
        lag_s: How late its event loop has been: the median of the last second; if it is blocked, for how long.
        state: ``serving``, ``loading`` the bot, ``draining`` if it takes no new calls, or ``missing`` if it has died
            and is to be replaced.
    """

    number: int
    pid: int
    calls: int
    lag_s: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """
    A server, as it stands at one moment.

    Attributes:
        bot: The bot's name, as messages have it.
        url: Where it is reached from this machine.
        public_url: Where providers reach it; empty without a public address.
        providers: The names of the providers that are served.
        pid: The process that listens.
        uptime_s: Seconds since it has listened.
        draining: Whether it takes no new calls because it is to stop.
        leaving: Whether it is to stop, as load balancers are told; until it is `draining` it takes new calls.
        calls: How many calls and clients are running.
        max_calls: How many may run at once; ``None`` for no limit.
        refused: How many requests, streams and clients were refused, for whatever reason.
        workers: The processes that run bots; this one alone if there are no others.
    """

    bot: str
    url: str
    public_url: str = ""
    providers: tuple[str, ...] = ()
    pid: int
    uptime_s: float
    draining: bool = False
    leaving: bool = False
    calls: int = 0
    max_calls: int | None = None
    refused: int = 0
    workers: tuple[WorkerFigures, ...] = ()

    @property
    def lag_s(self) -> float:
        """How late the latest event loop is."""
        return max((each.lag_s for each in self.workers), default=0.0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A server and its running calls, the oldest first, at one moment."""

    server: ServerFigures
    calls: Sequence[CallFigures]


def as_object(figures: Any) -> dict[str, Any]:
    """Return figures as an object of JSON."""
    return {name: _plain(getattr(figures, name)) for name in figures.__dataclass_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return as_object(value) if hasattr(value, "__dataclass_fields__") else value


def read_snapshot(content: Mapping[str, Any]) -> Snapshot:
    """
    Read a snapshot from an object of JSON; what another version adds is passed over.

    Raises:
        ValueError: If something is missing.
    """
    try:
        server = dict(content["server"])
        server["workers"] = tuple(_read(WorkerFigures, each) for each in server.get("workers", ()))
        server["providers"] = tuple(server.get("providers", ()))
        return Snapshot(_read(ServerFigures, server), [_read(CallFigures, each) for each in content["calls"]])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no figures of a server: {error}") from error


def _read(kind: type[_Figures], content: Mapping[str, Any]) -> _Figures:
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in content.items() if name in known})
