"""Exotel's account without Exotel: ExoPhones, and calls that are connected to a bot."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, Callback, WebhookRequest
from wsvoice.providers.exotel.company import (
    CUSTOM_FIELD_LIMIT,
    STAGES,
    STREAM_URL_LIMIT,
    TIME_LIMIT_S,
    same_number,
)
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fake_api import json_answer
from wsvoice.providers.fields import read_counter
from wsvoice.providers.urls import read_callback

if TYPE_CHECKING:
    from wsvoice.providers.exotel.simulator import ExotelSimulator

#: Objects of one page: https://developer.exotel.com/api/exophone-details
PAGE_SIZE = 50

_RESOURCE = re.compile(r".*/(v1|v2_beta)/Accounts/([^/]+)/(.*)", re.IGNORECASE)
_EVENTS: Mapping[str, frozenset[Stage]] = {
    "ringing": frozenset({"ringing"}),
    "answered": frozenset({"answered"}),
    "terminal": ENDED_STAGES,
}
# Nothing here looks at a clock: every call began then.
_BEGAN, _ENDED = "2025-06-15 12:00:00", "2025-06-15 12:01:00"


class _Refused(Exception):
    """The request is refused, with a status and what is said."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class ExotelFakeAccount(FakeAccount):
    """The account's ExoPhones and placed calls."""

    company: ExotelSimulator

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        """Add an ExoPhone; ``voice_url`` is its flow, and ``phone_number`` how the API writes it."""
        usual = {"voice_url": "", "phone_number": number, "country": "IN"}
        added = FakeNumber(number, self.new_seed()[:16].hex(), name, has_voice, {**usual, **settings})
        self.numbers[number] = added
        return added

    def points_at(self, number: str) -> Callback | None:
        """Return nothing: what a flow asks is known to the dashboard alone."""
        return None

    def answer(self, request: WebhookRequest) -> Answer | None:
        path = _RESOURCE.fullmatch(urlsplit(request.url).path)
        if path is None:
            return None
        account = self.company.credential("EXOTEL_ACCOUNT_SID")
        if account and unquote(path[2]) != account:
            return error(404, "Account not found")
        resource, _, rest = path[3].removesuffix(".json").partition("/")
        try:
            if (path[1], resource, rest, request.method) == ("v2_beta", "IncomingPhoneNumbers", "", "GET"):
                return self._list_numbers(request)
            if (path[1], resource.lower()) == ("v1", "calls"):
                return self._answer_calls(request, rest)
        except _Refused as refused:
            return error(refused.status, refused.message)
        return None

    def _list_numbers(self, request: WebhookRequest) -> Answer:
        """Answer with a page of the ExoPhones: https://developer.exotel.com/api/exophone-details"""
        query = dict(request.query)
        page, size = read_counter(query.get("Page", "0")), read_counter(query.get("PageSize", str(PAGE_SIZE)))
        if page is None or not size:
            raise _Refused("Page and PageSize are numbers")
        everything = [self._number(each) for each in self.numbers.values()]
        # As on the page: the host is not the one that was asked.
        own = f"http://twilix.exotel.com{urlsplit(request.url).path}"
        more = f"{own}?Page={page + 1}&PageSize={size}" if (page + 1) * size < len(everything) else None
        content = {
            "page": page,
            "page_size": size,
            "uri": f"{own}?Page={page}&PageSize={size}",
            "first_page_uri": f"{own}?Page=0&PageSize={size}",
            "next_page_uri": more,
            "previous_page_uri": None,
            "incoming_phone_numbers": everything[page * size : (page + 1) * size],
        }
        return json_answer(content)

    def _number(self, number: FakeNumber) -> dict[str, Any]:
        return {
            "sid": number.number_id,
            "account_sid": self.company.credential("EXOTEL_ACCOUNT_SID"),
            "friendly_name": number.name,
            "phone_number": number.settings["phone_number"],
            "country": number.settings["country"],
            "number_type": "Landline",
            "capabilities": {"voice": number.has_voice, "sms": False},
            "voice_url": number.settings["voice_url"] or None,
            "sms_url": None,
        }

    def _answer_calls(self, request: WebhookRequest, rest: str) -> Answer | None:
        """Answer what concerns calls; ``None`` for one that was not placed here, which may be in progress."""
        if rest == "connect":
            return self._connect(request) if request.method == "POST" else None
        if request.method != "GET":
            return None
        if not rest:
            calls = [self._call(each) for each in self.calls.values()]
            return json_answer({"Metadata": {"Total": len(calls), "PageSize": PAGE_SIZE}, "Calls": calls})
        known = self.calls.get(rest)
        if known is None:
            return None
        detailed = dict(request.query).get("details") == "true"
        return json_answer({"Call": self._call(known, detailed=detailed)})

    def _connect(self, request: WebhookRequest) -> Answer:
        """
        Place a call whose answer is connected to a bot.

        Pages differ on capitals, so names are read without.

        https://developer.exotel.com/docs/agentstream/connect-voice-ai
        """
        fields = {name.lower(): value for name, value in request.form}
        called, caller = fields.get("from", ""), fields.get("callerid", "")
        for name in ("from", "callerid", "streamurl"):
            if not fields.get(name):
                raise _Refused(f"Bad or missing parameter: {name}")
        number = next((each for each in self.numbers.values() if same_number(each.number, caller)), None)
        if number is None:
            raise _Refused("CallerId is not a valid ExoPhone")
        if fields.get("streamtype") != "bidirectional" or len(fields["streamurl"]) > STREAM_URL_LIMIT:
            raise _Refused("Bad or missing parameter: StreamType or StreamUrl")
        if len(fields.get("customfield", "")) > CUSTOM_FIELD_LIMIT:
            raise _Refused(f"CustomField is longer than {CUSTOM_FIELD_LIMIT} characters")
        time_limit, ring_timeout = (read_counter(fields.get(name, "0")) for name in ("timelimit", "timeout"))
        if time_limit is None or ring_timeout is None or time_limit > TIME_LIMIT_S:
            raise _Refused("Bad parameter: TimeLimit or TimeOut")
        if self.is_trial and called not in self.verified:
            raise _Refused("a trial account can only call verified numbers", 403)
        try:
            stream = self.company.read_stream(fields["streamurl"])
            status = read_callback(fields.get("statuscallback"), "POST", "", "StatusCallback")
        except RemoteProtocolError as refused:
            raise _Refused(refused.message) from None
        asked = [value for name, value in request.form if name.lower().startswith("statuscallbackevents[")]
        if not set(asked) <= _EVENTS.keys():
            raise _Refused("Bad parameter: StatusCallbackEvents")
        call_id, account = self.new_seed()[:16].hex(), self.company.credential("EXOTEL_ACCOUNT_SID")
        placed = FakeCall(
            Call("exotel", call_id, "", account, number.number, called, "outbound", dict(stream.parameters)),
            stream=stream,
            status=status,
            reports=frozenset().union(*(_EVENTS[name] for name in asked or ["terminal"])),
            ring_timeout_s=float(ring_timeout or 60),
            time_limit_s=float(time_limit or TIME_LIMIT_S),
        )
        self.calls[call_id] = placed
        self.on_placed(placed)
        return json_answer({"Call": self._call(placed)})

    def _call(self, call: FakeCall, *, detailed: bool = False) -> dict[str, Any]:
        over = call.stage in ENDED_STAGES
        status = next(name for name, stage in STAGES.items() if stage == call.stage)
        # As soon as it is placed, a call is said to be in progress.
        resource = call_resource(call.call, status if over else "in-progress")
        if over:
            seconds = math.ceil(call.duration_s)
            resource |= {"EndTime": _ENDED, "Duration": str(seconds), "Price": f"{-(-seconds // 60) * 0.5:.3f}"}
        if detailed:
            leg = {"Leg": {"Id": 1, "OnCallDuration": math.ceil(call.duration_s)}}
            resource["Details"] = {"ConversationDuration": 0, "Leg1Status": status, "Leg2Status": None, "Legs": [leg]}
        return resource


def call_resource(call: Call, status: str) -> dict[str, Any]:
    """Return a call: https://developer.exotel.com/docs/voice-v1/api-reference/call-details"""
    is_outbound = call.direction == "outbound"
    # The number that is called first is the from.
    first, second = (call.to_number, call.from_number) if is_outbound else (call.from_number, call.to_number)
    return {
        "Sid": call.call_id,
        "ParentCallSid": None,
        "DateCreated": _BEGAN,
        "DateUpdated": _BEGAN,
        "AccountSid": call.account_id,
        "To": second,
        "From": first,
        "PhoneNumberSid": call.from_number if is_outbound else call.to_number,
        "Status": status,
        "StartTime": _BEGAN,
        "EndTime": None,
        "Duration": None,
        "Price": None,
        "Direction": "outbound-api" if is_outbound else "inbound",
        "AnsweredBy": None,
        "RecordingUrl": None,
    }


def error(status: int, message: str) -> Answer:
    """Return an error: https://developer.exotel.com/docs/references/error-codes"""
    return json_answer({"RestException": {"Status": status, "Message": message}}, status)
