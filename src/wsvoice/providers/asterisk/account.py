"""
Asterisk has no account: it is one's own exchange, where a line of the dial plan does what a company's API does.

It can be told to place and end calls, by its manager interface (AMI) or its REST interface (ARI), which an exchange
opens for whom its owner likes, under addresses and passwords of its own; wsvoice does not ask for them.

AMI: https://docs.asterisk.org/Configuration/Interfaces/Asterisk-Manager-Interface-AMI/
ARI: https://docs.asterisk.org/Configuration/Interfaces/Asterisk-REST-Interface-ARI/
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NoReturn

from wsvoice.call import Call
from wsvoice.errors import ApiError
from wsvoice.providers.account import (
    Account,
    AccountInfo,
    CallState,
    Evidence,
    OutboundCall,
    PhoneNumber,
    PlacedCall,
    Restored,
    Saved,
    ServerAddresses,
    Steps,
)
from wsvoice.providers.asterisk.company import AsteriskCompany


class AsteriskAccount(AsteriskCompany, Account):
    """Nothing that could be asked: every operation's error says what to do on the exchange instead."""

    #: https://docs.asterisk.org/Latest_API/API_Documentation/AMI_Actions/Originate/
    calls_instead: ClassVar[str] = (
        "let Asterisk call, and lead the call to the bot's extension, by AMI, ARI or "
        "`sudo asterisk -rx 'channel originate PJSIP/NUMBER@TRUNK extension 100@telephones'`"
    )

    def describe(self) -> Steps[AccountInfo]:
        _refuse("Asterisk has no account", "`sudo asterisk -rx 'core show version'` asks the exchange itself")
        yield

    def numbers(self) -> Steps[list[PhoneNumber]]:
        _refuse("Asterisk has no numbers but those of its dial plan", "`sudo asterisk -rx 'dialplan show'` lists them")
        yield

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        _refuse_to_point(number)
        yield

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        _refuse_to_point(number.number)
        yield

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        _refuse("wsvoice has changed nothing on Asterisk", "take the lines out of its dial plan")
        yield

    def how_to_point(self, number: str, addresses: ServerAddresses) -> list[str]:
        return [
            "in extensions.conf, copy the lines of extension 100 that `wsvoice run -t asterisk` prints",
            f"paste them into the context of your trunk, with {number} as the trunk writes it in place of 100",
        ]

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        _refuse("wsvoice places no calls through Asterisk", self.calls_instead.replace("NUMBER", call.to_number))
        yield

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        _refuse_to_end(placed.call_id)
        yield

    def look_up(self, call_id: str) -> Steps[CallState]:
        _refuse(
            "wsvoice does not ask Asterisk about calls",
            "`sudo asterisk -rx 'core show channels concise'` shows those in progress",
        )
        yield

    def hang_up(self, call: Call) -> Steps[bool]:
        _refuse_to_end(call.call_id)
        yield

    def transfer(self, call: Call, to: str) -> Steps[None]:
        # https://docs.asterisk.org/Latest_API/API_Documentation/Dialplan_Applications/Dial/
        _refuse(
            "wsvoice transfers no calls through Asterisk",
            f"dial the stream with the option g, and then, for when the bot hangs up: same => n,Dial(PJSIP/{to}@TRUNK)",
        )
        yield

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        _refuse(
            "wsvoice presses no keys through Asterisk",
            "the bot's transport sends them as tones, or PlayDTMF of AMI presses them",
        )
        yield

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        _refuse(
            "wsvoice does not read Asterisk's records",
            "they are in /var/log/asterisk: `full`, and cdr-csv/Master.csv where CDRs are on",
        )
        yield


def _refuse(message: str, hint: str) -> NoReturn:
    raise ApiError("unsupported", message, hint=hint)


def _refuse_to_point(number: str) -> NoReturn:
    _refuse(
        f"wsvoice points no numbers on Asterisk, such as {number}",
        "an extension of its dial plan leads to the bot: `wsvoice run -t asterisk` prints its lines",
    )


def _refuse_to_end(call_id: str) -> NoReturn:
    _refuse(
        f"wsvoice does not end call {call_id} through Asterisk",
        "`sudo asterisk -rx 'channel request hangup CHANNEL'` ends it; a bot's call ends with its stream",
    )
