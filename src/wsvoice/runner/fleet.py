"""
Several servers behind one load balancer: what they share, and what they tell each other.

A secret lets each of them open what another one has sealed: the stream token of an answered webhook, and the token of
a call that was placed. With Redis they also remember together, and pass on what concerns another one's call: a
provider's report, and that a stream has come, whose place elsewhere is free.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from loguru import logger

from wsvoice.call import AnsweredBy, Stage
from wsvoice.config import STREAM_SECRET
from wsvoice.errors import ConfigError
from wsvoice.providers.base import CallUpdate
from wsvoice.runner.capacity import STRANGER_TTL_S, TOKEN_TTL_S
from wsvoice.runner.seals import Seals, shared_secrets
from wsvoice.runner.shared_memory import RedisMemory, check_url, connect
from wsvoice.runner.shared_replays import SharedReplays

if TYPE_CHECKING:
    from wsvoice.call import Call
    from wsvoice.config import RunConfig
    from wsvoice.runner.dialled_call import DialledCall
    from wsvoice.runner.switchboard import Switchboard


class Fleet:
    """
    The servers that this one works with; itself alone by default.

    Attributes:
        seals: Seals and opens what travels from server to server.
        memory: What they remember together; ``None`` without Redis.
        replays: Which webhooks they have answered; ``None`` without Redis.
    """

    def __init__(self, seals: Seals | None = None, memory: RedisMemory | None = None) -> None:
        self.seals = seals or Seals()
        self.memory = memory
        self.replays = SharedReplays(memory) if memory is not None else None
        self._id = secrets.token_hex(8)
        self._switchboard: Switchboard | None = None

    @property
    def is_shared(self) -> bool:
        """Whether there may be other servers."""
        return self.seals.is_shared

    @property
    def place_ttl_s(self) -> float:
        """
        For how long a place is reserved for the stream of an answered webhook, in seconds.

        Where the stream may come to another server, the place is not kept for as long as its token is valid, but for as
        long as providers take to dial.
        """
        return STRANGER_TTL_S if self.is_shared else TOKEN_TTL_S

    def start(self, switchboard: Switchboard) -> None:
        """Begin to listen to the others; in the event loop."""
        self._switchboard = switchboard
        if self.memory is not None and self.replays is not None:
            self.memory.on_message, self.memory.upkeep = self._hear, self.replays.renew
            self.memory.start()

    async def close(self) -> None:
        """End the connections."""
        if self.memory is not None:
            await self.memory.close()

    # What the servers tell each other

    def tell_stream(self, call: Call, dialled: DialledCall | None) -> None:
        """Tell the others that the stream of a call has come here."""
        self._tell("stream", call.provider, dialled, call_id=call.call_id, account_id=call.account_id)

    def tell_update(self, provider: str, update: CallUpdate, dialled: DialledCall | None) -> None:
        """Tell the others what a provider has reported here."""
        self._tell("update", provider, dialled, **asdict(update))

    def _tell(self, kind: str, provider: str, dialled: DialledCall | None, **content: Any) -> None:
        if self.memory is not None:
            mark = dialled.mark if dialled is not None else ""
            self.memory.publish(self.seals.seal("message", [self._id, kind, provider, mark, content]))

    def _hear(self, message: str) -> None:
        opened = self.seals.open("message", message)
        if opened is None:
            logger.debug("a message in Redis is none of this fleet's")
            return
        try:
            sender, kind, provider, mark, content = opened
            _check({"kind": kind, "provider": provider, "mark": mark}, str)
            _check({"content": content}, dict)
            if sender == self._id or self._switchboard is None or provider not in self._switchboard.providers:
                return
            if kind == "stream":
                _check(content, str)
                self._switchboard.hear_stream(provider, mark, **content)
            elif kind == "update":
                self._switchboard.hear_update(provider, mark, _read_update(content))
        except (TypeError, ValueError) as error:
            logger.debug("a message is of another version of wsvoice: {}", error)


def _check(fields: Mapping[str, Any], kind: type) -> None:
    """Raise :exc:`TypeError` if one of a message's fields is not of the kind that they all are."""
    if other := next((name for name, value in fields.items() if not isinstance(value, kind)), None):
        raise TypeError(f"{other} is {type(fields[other]).__name__}, and not {kind.__name__}")


def _read_update(content: Mapping[str, Any]) -> CallUpdate:
    """Return what a message says that a provider has reported; :exc:`TypeError` or :exc:`ValueError` if it is odd."""
    update = CallUpdate(**content)
    _check({"call_id": update.call_id, "event": update.event, "detail": update.detail}, str)
    _check({"failed": update.failed, "ended": update.ended, "greeting_ended": update.greeting_ended}, bool)
    if update.stage not in (None, *get_args(Stage)) or update.answered_by not in (None, *get_args(AnsweredBy)):
        raise ValueError(f"{update.stage!r:.40} or {update.answered_by!r:.40} is not known")
    return update


def own_seals(config: RunConfig) -> Seals:
    """
    Return what a server of the fleet that the settings name seals with; nobody is asked.

    Raises:
        ConfigError: If the secret could be guessed, there is a Redis and no secret, or its URL is not understood.
        ServerError: If the library for Redis is missing.
    """
    keys = shared_secrets(config)
    if config.redis is not None and not keys:
        raise ConfigError(
            f"servers that share a Redis share a secret too, and {STREAM_SECRET} is not set",
            hint=f"make one with `openssl rand -hex 32`, and set it in the environment or in {config.dotenv_place}",
        )
    if config.redis is not None:
        check_url(config.redis)
    return Seals(keys)


def join_fleet(config: RunConfig) -> Fleet:
    """
    Return the fleet that the settings name.

    Raises:
        ConfigError: As :func:`own_seals`.
        ServerError: As :func:`own_seals`, or if Redis does not answer.
    """
    return Fleet(own_seals(config), connect(config.redis))
