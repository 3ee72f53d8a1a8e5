"""
A bot's own call while it runs: how it stands, and what the bot can do with it.

What is done goes through the provider's REST API, as the owner of the account does it; :mod:`wsvoice.providers.account`
says how.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from wsvoice.call import AnsweredBy, Call, Stage
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account
from wsvoice.providers.fields import DIGITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wsvoice.providers.account import Account
    from wsvoice.providers.base import CallUpdate

#: How many reports of a call are kept; no provider sends a tenth of that.
MAX_UPDATES = 100

_TARGET = re.compile(r"\+[1-9][0-9]{1,14}|sips?:[^\s<>\"]{1,250}")
#: In which order a call's stages come; reports may overtake each other.
_ORDER: Mapping[Stage, int] = {"queued": 0, "ringing": 1, "answered": 2}
_LAST = 3


class CallLine:
    """
    The provider's side of one call.

    Attributes:
        call: The call, with the id that the provider's API knows.
        stage: How far it is.
        answered_by: Who answered, if we called and the provider has found out.
        greeting_ended: Whether the machine that answered has ended its greeting.
        updates: What the provider has reported of it, oldest first.
        transferred_to: Whom the caller was connected to instead of the bot; empty for nobody.

    Args:
        credentials: By environment variable name.
        transfer_url: Where this server answers with the document of a transfer; empty without a public address.
        end: Ends the call once what the bot has said was played.
    """

    def __init__(
        self, call: Call, *, credentials: Mapping[str, str], end: Callable[[], None], transfer_url: str = ""
    ) -> None:
        self.call = call
        self.stage: Stage = "answered"
        self.answered_by: AnsweredBy | None = None
        self.greeting_ended = False
        self.updates: list[CallUpdate] = []
        self.transferred_to = ""
        self._credentials = credentials
        self._transfer_url = transfer_url
        self._end = end

    def note(self, update: CallUpdate) -> None:
        """Note what the provider reports."""
        if len(self.updates) < MAX_UPDATES:
            self.updates.append(update)
        self.stage = later_stage(self.stage, update.stage)
        self.answered_by = update.answered_by or self.answered_by
        self.greeting_ended = self.greeting_ended or update.greeting_ended

    def hang_up(self) -> None:
        """End the call once what the bot has said was played."""
        self._end()

    async def transfer(self, to: str) -> None:
        """Connect the caller to `to`; see :meth:`LiveCall.transfer`."""
        if not _TARGET.fullmatch(to):
            raise ValueError(f"a call is transferred to +15551234567 or sip:name@host, not to {to!r:.60}")
        account = self._account()
        # The stream may end before the answer is there.
        self.transferred_to = to
        try:
            await carry_out(account.transfer(self.call, to))
        except BaseException:
            self.transferred_to = ""
            raise

    async def send_digits(self, digits: str) -> None:
        """Press `digits`; see :meth:`LiveCall.send_digits`."""
        if not digits or not (DIGITS | frozenset("wW")).issuperset(digits):
            raise ValueError(f"digits are of 0-9 A-D * #, and w or W to wait, not {digits!r:.60}")
        await carry_out(self._account().send_digits(self.call, digits))

    def _account(self) -> Account:
        account = load_account(self.call.provider, self._credentials)
        account.check_credentials()
        account.transfer_url = self._transfer_url
        return account


@dataclass(frozen=True, slots=True)
class LiveCall(Call):
    """
    A bot's own call: everything of :class:`~wsvoice.Call`, how it stands, and what can be done with it.

    ``stage`` and ``answered_by`` change while the call goes on, as the provider reports it.
    """

    line: CallLine = field(kw_only=True, repr=False, compare=False)

    @classmethod
    def of(cls, call: Call, line: CallLine) -> LiveCall:
        """Return `call` as one that something can be done with."""
        return cls(**{each.name: getattr(call, each.name) for each in fields(Call)}, line=line)

    @property
    def stage(self) -> Stage:
        """How far the call is."""
        return self.line.stage

    @property
    def answered_by(self) -> AnsweredBy | None:
        """Who answered a call that we placed; ``None`` until the provider has found out, or without detection."""
        return self.line.answered_by

    @property
    def updates(self) -> tuple[CallUpdate, ...]:
        """What the provider has reported of the call, oldest first."""
        return tuple(self.line.updates)

    async def hang_up(self) -> None:
        """End the call. What the bot has said is played first, for two seconds at most; the bot may go on working."""
        self.line.hang_up()

    async def transfer(self, to: str) -> None:
        """
        Connect the caller to `to` instead of the bot, whose part of the call then ends.

        Args:
            to: A number in E.164, such as ``+15551234567``, or a SIP address, such as ``sip:desk@example.com``.

        Raises:
            ValueError: If `to` is neither.
            ConfigError: If the credentials of the provider's API are not set.
            ApiError: If the provider refuses; the bot goes on.
        """
        await self.line.transfer(to)

    async def send_digits(self, digits: str) -> None:
        """
        Press keys for the other end, such as those of a menu: ``0-9 A-D * #``; ``w`` waits for half a second.

        Raises:
            ValueError: If `digits` holds anything else.
            ConfigError: If the credentials of the provider's API are not set.
            ApiError: If the provider refuses, or presses no keys in a call with a stream (kind ``unsupported``).
        """
        await self.line.send_digits(digits)


def later_stage(known: Stage, reported: Stage | None) -> Stage:
    """Return the later one of two stages: reports may come in any order."""
    if reported is None or _ORDER.get(reported, _LAST) <= _ORDER.get(known, _LAST):
        return known
    return reported
