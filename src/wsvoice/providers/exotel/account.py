"""Exotel's REST API as its customer uses it: https://developer.exotel.com/docs/voice-v1/overview"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlencode, urlsplit

from wsvoice.call import Call
from wsvoice.errors import ApiError, LocalProtocolError
from wsvoice.providers.account import (
    Account,
    AccountInfo,
    ApiResponse,
    CallState,
    Evidence,
    OutboundCall,
    PhoneNumber,
    PlacedCall,
    Saved,
    ServerAddresses,
    Steps,
    refused_kind,
)
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.callbacks import VALUE_LIMIT, printable
from wsvoice.providers.exotel.company import (
    CUSTOM_FIELD_LIMIT,
    STAGES,
    STREAM_URL_LIMIT,
    TIME_LIMIT_S,
    ExotelCompany,
    same_number,
)
from wsvoice.providers.fields import read_counter, text_or_nothing, with_plus
from wsvoice.providers.urls import path_part

#: Pages of a list that are read.
PAGE_LIMIT = 100

Resource: TypeAlias = Mapping[str, Any]

_NOT_POINTED = "Exotel's API cannot set the address of a flow's Voicebot applet"
# https://developer.exotel.com/api/assign-number-to-a-flow
_FLOW = re.compile(r".*/exoml/start_voice/([^/?#]+)")
_INDIAN = re.compile(r"\+91(\d{10})")
# What errors say: their words, the kind, and what mends it.
_REASONS: Sequence[tuple[re.Pattern[str], str, str]] = (
    (re.compile(r"\bkyc\b", re.IGNORECASE), "permission", "complete the KYC in the dashboard, under Company Settings"),
    (re.compile(r"\btrial\b|\b(not|un)[ -]?verified\b", re.IGNORECASE), "trial", "verify the number, or upgrade"),
    (re.compile(r"\bcallerid\b|\bexophone\b", re.IGNORECASE), "number", "call from one of the account's ExoPhones"),
    (re.compile(r"\bcredits?\b|\bbalance\b", re.IGNORECASE), "balance", "recharge the account in the dashboard"),
    (
        re.compile(r"\bn?dnd\b|\bndnc\b|\btrai\b", re.IGNORECASE),
        "permission",
        "the number is registered as not to call",
    ),
)
# https://developer.exotel.com/docs/references/error-codes
_STATUSES: Mapping[int, tuple[str, str, str]] = {
    400: ("refused", "a parameter is missing or wrong", "see what Exotel says of it"),
    401: ("credentials", "the API key or token is wrong", "see API Settings in the dashboard"),
    402: (
        "balance",
        "the plan does not have it, or the balance is used up",
        "recharge the account, or change its plan",
    ),
    403: ("permission", "the account is suspended, or may not do that", "ask Exotel's support about the account"),
    404: ("not-found", "there is no such thing", "check the id, and the region in EXOTEL_SUBDOMAIN"),
    409: ("refused", "it is being changed by somebody else", "try again"),
    429: ("rate-limit", "there were more than 200 requests in a minute", "wait a minute, then repeat"),
    500: ("unavailable", "Exotel had an error of its own", "try again later"),
    502: ("unavailable", "a service behind Exotel's API does not answer", "try again in some seconds"),
    503: ("unavailable", "Exotel's API is down", "see status.exotel.com, and try again later"),
}


class ExotelAccount(ExotelCompany, Account):
    """
    An account of Exotel's, by version 1 of its voice API.

    Its numbers can be listed and not pointed; its calls can be placed and looked at, and end with their stream.
    """

    needed: ClassVar[tuple[str, ...]] = ("EXOTEL_API_KEY", "EXOTEL_API_TOKEN", "EXOTEL_ACCOUNT_SID")
    credentials_place: ClassVar[str] = (
        "the API key, the API token and the account's SID in the dashboard's API Settings"
    )
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        """Return the error for a response that is no success, by its words and its status."""
        status, (said, code) = response.status, _read_error(response)
        message = f"Exotel refuses {what}: {said or 'it does not say why'} ({status})"
        if status == 401:
            where = f"check EXOTEL_API_KEY and EXOTEL_API_TOKEN: {self.credentials_place}"
            if not self.credential("EXOTEL_SUBDOMAIN"):
                where += "; an account in Mumbai needs EXOTEL_SUBDOMAIN=api.in.exotel.com"
            return ApiError("credentials", f"Exotel does not take the credentials ({status})", code=code, hint=where)
        if status == 429:
            return super().refusal(response, what)
        for words, kind, hint in _REASONS:
            if words.search(said):
                return ApiError(kind, message, code=code, hint=hint)
        kind, _, hint = _STATUSES.get(status, (refused_kind(status), "", ""))
        return ApiError(kind, message, code=code, hint=hint or None)

    def describe(self) -> Steps[AccountInfo]:
        """Return the account, of which the API tells nothing: that it answers shows the credentials to be right."""
        # https://developer.exotel.com/docs/voice-v1/overview
        self.read((yield self._get("v1", "Calls.json", query={"PageSize": "1"})), "the account")
        return AccountInfo(self.credential("EXOTEL_ACCOUNT_SID"))

    # Numbers: https://developer.exotel.com/docs/exophones/overview

    def numbers(self) -> Steps[list[PhoneNumber]]:
        """
        Return every ExoPhone.

        The address of the next page names a host of its own; only its query counts.

        https://developer.exotel.com/api/exophone-details
        """
        found, query, asked = list[PhoneNumber](), "", set[str]()
        while query not in asked and len(asked) < PAGE_LIMIT:
            asked.add(query)
            content = self.read(
                (yield self._get("v2_beta", "IncomingPhoneNumbers", raw_query=query)), "the list of numbers"
            )
            listed, following = content.get("incoming_phone_numbers"), content.get("next_page_uri")
            page = [_read_number(each) for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
            found += page
            query = urlsplit(following).query if page and isinstance(following, str) else ""
        return found

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        for each in (yield from self.numbers()):
            if same_number(each.number, number):
                return each
        raise ApiError(
            "number",
            f"{number} is not an ExoPhone of this account",
            hint="`wsvoice number list -t exotel` shows those that are",
        )

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        """Refuse, with what the user has to click instead."""
        raise ApiError("unsupported", _NOT_POINTED, hint="; ".join(self.how_to_point(number.number, addresses)))
        yield

    def how_to_point(self, number: str, addresses: ServerAddresses) -> list[str]:
        # https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
        return [
            f"in the dashboard's App Bazaar, open the flow of {number}, or create one",
            f"put a Voicebot applet into it, with the URL {addresses.webhook}",
            f"save the flow, and assign it to {number} under ExoPhones",
        ]

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """
        Place a call whose answer streams at once: whom to call is the *from* of the request.

        https://developer.exotel.com/docs/agentstream/connect-voice-ai
        """
        if call.detection != "off":
            message = "Exotel's API does not detect answering machines"
            raise ApiError("unsupported", message, hint="place the call without detection")
        try:
            stream_url = self.stream_address(call.stream_url, call.parameters)
        except LocalProtocolError as error:
            raise ApiError("refused", f"Exotel cannot take the call: {error.message}") from error
        if len(stream_url) > STREAM_URL_LIMIT:
            what = f"the stream's URL has {len(stream_url)} characters; Exotel takes {STREAM_URL_LIMIT}"
            raise ApiError("refused", f"Exotel cannot take the call: {what}", hint="pass fewer or shorter parameters")
        fields = [
            ("From", call.to_number),
            ("CallerId", _at_home(call.from_number)),
            ("StreamUrl", stream_url),
            ("StreamType", "bidirectional"),
            ("TimeOut", str(call.ring_timeout_s)),
            ("StatusCallback", call.status_url),
            *(("StatusCallbackEvents[]", event) for event in ("ringing", "answered", "terminal")),
        ]
        if call.time_limit_s is not None:
            fields.append(("TimeLimit", str(min(call.time_limit_s, TIME_LIMIT_S))))
        # The dashboard's list of calls shows it.
        if call.parameters and len(custom := urlencode(call.parameters)) <= CUSTOM_FIELD_LIMIT:
            fields.append(("CustomField", custom))
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        url, user = self.api_url("v1", "Calls", "connect.json"), self._credentials()
        response = yield HttpRequest("POST", url, form, urlencode(fields).encode(), user)
        placed = _read_call(self.read(response, f"the call to {call.to_number}"))
        call_id = text_or_nothing(placed.get("sid"))
        if not call_id:
            raise ApiError("refused", f"Exotel did not say under what id it places the call to {call.to_number}")
        return PlacedCall(call_id, account_id=self.credential("EXOTEL_ACCOUNT_SID"))

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        raise self._no_hang_up()
        yield

    def hang_up(self, call: Call) -> Steps[bool]:
        raise self._no_hang_up()
        yield

    def _no_hang_up(self) -> ApiError:
        # Version 2 has it for the legs that it dials itself, and for no others:
        # https://developer.exotel.com/docs/exoml/verbs/hangup
        hint = "it ends when its stream is closed; one that rings ends after its ring timeout"
        return ApiError("unsupported", "Exotel's API has no request that ends a call", hint=hint)

    def look_up(self, call_id: str) -> Steps[CallState]:
        """
        Return how a call stands; its price may come minutes after its end.

        https://developer.exotel.com/docs/voice-v1/api-reference/call-details
        """
        return _read_state(call_id, (yield from self._find_call(call_id)))

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """Return what the call's details say; there is no other log in the API."""
        found = yield from self._find_call(call_id)
        state = _read_state(call_id, found)
        numbers = " to ".join(_told(found, name) or "?" for name in ("from", "to"))
        began = Evidence(f"{_told(found, 'direction')} call from {numbers}".lstrip(), _told(found, "datecreated"))
        legs = _lowered(found.get("details"))
        told = [began]
        for name, leg in (("leg1status", "first leg"), ("leg2status", "second leg")):
            if status := _told(legs, name):
                told.append(Evidence(f"{leg}: {status}", failed=status in ("failed", "canceled")))
        lasted = f" after {state.duration_s:g} s" if state.duration_s else ""
        status = _told(found, "status") or "unknown"
        told.append(
            Evidence(
                f"{status}{lasted}",
                _told(found, "endtime"),
                failed=state.stage == "failed",
                hint="look at the call in the dashboard's list of calls" if state.stage == "failed" else "",
            )
        )
        return told

    def explain_code(self, code: str) -> tuple[str, str] | None:
        """Return what one of the API's statuses means; it has no codes for calls."""
        known = _STATUSES.get(read_counter(code) or 0)
        return known[1:] if known else None

    # Requests

    def _find_call(self, call_id: str) -> Steps[Resource]:
        path_part(call_id)
        response = yield self._get("v1", "Calls", f"{call_id}.json", query={"details": "true"})
        if response.status == 404:
            raise ApiError("not-found", f"Exotel knows no call {call_id}", hint="it may belong to another account")
        return _read_call(self.read(response, f"the call {call_id}"))

    def _get(self, *path: str, query: Mapping[str, str] | None = None, raw_query: str = "") -> HttpRequest:
        asked = urlencode(query) if query else raw_query
        url = self.api_url(*path) + (f"?{asked}" if asked else "")
        return HttpRequest("GET", url, basic_auth=self._credentials())

    def _credentials(self) -> tuple[str, str]:
        return self.credential("EXOTEL_API_KEY"), self.credential("EXOTEL_API_TOKEN")


def _at_home(number: str) -> str:
    """Return an ExoPhone as Exotel's pages write India's: with a 0 in the place of the country's code."""
    match = _INDIAN.fullmatch(number)
    return f"0{match[1]}" if match else number


def _read_number(found: Resource) -> PhoneNumber:
    written, flow_url = text_or_nothing(found.get("phone_number")), text_or_nothing(found.get("voice_url"))
    is_indian = written.startswith("0") and found.get("country") in ("IN", None, "")
    flow = _FLOW.fullmatch(flow_url)
    capabilities = found.get("capabilities")
    has_voice = not isinstance(capabilities, dict) or capabilities.get("voice") is not False
    return PhoneNumber(
        f"+91{written[1:]}" if is_indian else with_plus(written),
        number_id=text_or_nothing(found.get("sid")),
        name=text_or_nothing(found.get("friendly_name")),
        has_voice=has_voice,
        points_at=f"flow {flow[1]!r}" if flow else flow_url,
        obstacle=_NOT_POINTED if has_voice else "it takes no calls, for it has no voice",
        hint="set it in the dashboard's App Bazaar" if has_voice else "take an ExoPhone with voice",
    )


def _lowered(found: object) -> Resource:
    """Return an object by its names in lower case, for pages differ on capitals; nothing for what is none."""
    return {name.lower(): value for name, value in found.items()} if isinstance(found, dict) else {}


def _read_call(content: Resource) -> Resource:
    """Return the call that an answer holds."""
    return _lowered(_lowered(content).get("call"))


def _read_state(call_id: str, found: Resource) -> CallState:
    """
    Read how a call stands.

    A call is in progress from its request on. Whether it rings or was answered is told of its first leg. Exotel says
    neither why a call ended nor what currency its price is in, which the account has.
    """
    stage = STAGES.get(_told(found, "status"), "queued")
    leg = STAGES.get(_told(_lowered(found.get("details")), "leg1status"), "answered")
    if stage == "answered" and leg in ("queued", "ringing"):
        stage = leg
    duration = read_counter(found.get("duration"))
    who = _told(found, "answeredby")
    first, second = _told(found, "from"), _told(found, "to")
    if _told(found, "direction").startswith("outbound"):
        first, second = second, first
    return CallState(
        _told(found, "sid") or call_id,
        stage,
        answered_by="human" if who == "human" else "machine" if who == "machine" else None,
        duration_s=None if duration is None else float(duration),
        price=_told(found, "price"),
        from_number=first,
        to_number=second,
    )


def _told(found: Resource, name: str) -> str:
    return printable(found.get(name), VALUE_LIMIT)


def _read_error(response: ApiResponse) -> tuple[str, str]:
    """Return what an error says, and its code: https://developer.exotel.com/docs/references/error-codes"""
    told = _lowered(_lowered(response.content()).get("restexception"))
    said = _told(told, "message") or printable(response.body.decode("utf-8", "replace").strip(), VALUE_LIMIT)
    return said, _told(told, "code")
