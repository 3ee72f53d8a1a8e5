"""
An account of Twilio's without Twilio: its numbers and placed calls, and what was recorded of them.

https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource
https://www.twilio.com/docs/voice/api/call-resource
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import unquote, urlencode, urlsplit

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, Callback, NoStream, Simulator, WebhookRequest
from wsvoice.providers.call_statuses import STATUS_EVENTS, STATUSES, write_answered_by
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fields import read_basic, read_counter, read_time, write_object, write_rfc2822, write_time
from wsvoice.providers.twilio.company import DETECTIONS, OVERRIDES, VOICE_SETTINGS, TwilioCompany
from wsvoice.providers.urls import read_callback

#: Items on one page, unless a request says otherwise, and at most.
PAGE_SIZE, PAGE_SIZE_LIMIT = 50, 1000
#: How long a call may ring at most, in seconds: https://www.twilio.com/docs/voice/api/call-resource#timeout
RING_TIMEOUT_LIMIT_S = 600
#: Characters of a document in a request: https://www.twilio.com/docs/api/errors/32018
DOCUMENT_LIMIT = 4000

_PHONE = re.compile(r"\+[1-9]\d{1,14}")
_ADDRESS = re.compile(r"(?:sips?|client):.+", re.IGNORECASE)


class Refusal(Exception):
    """A request is refused: with the company's code and message, and the status of the answer."""

    def __init__(self, code: int, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


def error_answer(code: int, message: str, status: int, page: str, headers: Mapping[str, str] | None = None) -> Answer:
    """
    Render an error, which has a `page`.

    https://www.twilio.com/docs/usage/twilios-response#response-formats-exceptions
    """
    content = {"code": code, "message": message, "more_info": page, "status": status}
    return Answer(write_object(content), "application/json", status, headers=headers or {})


def error_page(code: int) -> str:
    """Return the address of a code's page."""
    return f"https://www.twilio.com/docs/errors/{code}"


@dataclass(frozen=True)
class Recorded:
    """
    What was recorded of a call: a document that was asked for, or an error.

    Attributes:
        at: Unix time.
        content: As the API has it.
    """

    call_id: str
    at: float
    content: Mapping[str, Any]


class TwilioFakeAccount(FakeAccount):
    """
    Numbers, calls and their records.

    Attributes:
        assigned: The number that a trial account has to call each verified number from, where that matters.
        regions: Through which region the calls of a number come in, by number, where that is not ``us1``.
        forbidden: The first digits of the numbers that the account may not call, with their plus.
        too_many: How many of the next requests are answered with 429.
        retry_after_s: When those may be repeated.
        now: Unix time, which resources tell; whoever plays the network sets it.
        events, errors: What was recorded.

    Args:
        company: One that is Twilio's, or repeats it.
    """

    company: TwilioCompany
    #: The status of an answer to a request that has placed a call.
    placed_status: ClassVar[int] = 201
    #: Whether the update of a call may bring its document along, and whether anything is recorded of calls.
    takes_documents: ClassVar[bool] = True
    has_records: ClassVar[bool] = True
    #: What a request that comes too late for its call is refused with.
    over: ClassVar[tuple[int, str]] = (21220, "Call is not in-progress. Cannot redirect.")
    #: How long a trial account's calls last at most: https://www.twilio.com/docs/api/errors/13805
    trial_limit_s: ClassVar[float | None] = 600.0
    #: What a minute costs, in dollars.
    price: ClassVar[Decimal] = Decimal("0.0130")

    def __init__(self, company: TwilioCompany, seed: bytes) -> None:
        super().__init__(company, seed)
        self.account_id = company.credential(company.account_name) or self.new_id("AC")
        self.assigned: dict[str, str] = {}
        self.regions: dict[str, str] = {}
        self.forbidden: tuple[str, ...] = ()
        self.too_many = 0
        self.retry_after_s = 1
        self.now = 0.0
        self.events: list[Recorded] = []
        self.errors: list[Recorded] = []
        self._began: dict[str, float] = {}
        self._ended: dict[str, float] = {}

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        usual = dict.fromkeys([*VOICE_SETTINGS, *OVERRIDES], "")
        usual |= {name: "POST" for name in VOICE_SETTINGS if name.endswith("Method")}
        if unknown := settings.keys() - usual.keys():
            raise ValueError(f"a number has no settings {', '.join(sorted(unknown))}")
        added = FakeNumber(number, self.new_id("PN"), name or number, has_voice, {**usual, **settings})
        self.numbers[number] = added
        return added

    def add_event(self, call_id: str, callback: Callback, status: int, *, took_ms: int = 100) -> None:
        """Record that the document at `callback` was asked for, and answered with `status`."""
        # https://www.twilio.com/docs/voice/api/call-event-resource
        request = {"method": callback.method, "url": callback.url, "parameters": {"call_sid": call_id}}
        response = {
            "date_created": write_rfc2822(self.now),
            "request_duration": took_ms,
            "response_code": status,
            "content_type": "text/xml",
            "response_body": "",
        }
        self.events.append(Recorded(call_id, self.now, {"request": request, "response": response}))

    def add_error(self, call_id: str, code: int, text: str, *, level: str = "error", url: str = "") -> None:
        """Record an error or, with another `level`, a warning about a call, for the debugger and the call's log."""
        content = {"sid": self.new_id("NO"), "code": str(code), "text": text, "level": level, "url": url}
        self.errors.append(Recorded(call_id, self.now, content))

    def points_at(self, number: str) -> Callback | None:
        settings = self.numbers[number].settings
        if any(settings[name] for name in OVERRIDES) or not settings["VoiceUrl"]:
            return None
        return Callback(settings["VoiceUrl"], "GET" if settings["VoiceMethod"] == "GET" else "POST")

    def end(self, call: FakeCall, stage: Stage = "completed", cause: str = "") -> None:
        super().end(call, stage, cause)
        self._ended[call.call.call_id] = self.now

    def new_id(self, prefix: str) -> str:
        """Return the next id of a resource; the `prefix` says of what kind."""
        return f"{prefix}{self.new_seed()[:16].hex()}"

    # Requests

    def answer(self, request: WebhookRequest) -> Answer | None:
        try:
            return self._route(request)
        except Refusal as refusal:
            return self.refuse(refusal)

    def _route(self, request: WebhookRequest) -> Answer | None:
        path = urlsplit(request.url).path
        if request.method == "GET" and self.has_records and (other := self._ask_other_product(request, path)):
            return other
        _, found, rest = path.partition(f"{self.company.api_path}/Accounts/")
        names = [unquote(name) for name in rest.removesuffix(".json").split("/")]
        if not found or (names[1:2] == ["Calls"] and len(names) > 2 and names[2] not in self.calls):
            return None
        self._admit(request, names[0])
        match request.method, *names[1:]:
            case ["GET"]:
                return self._show_account(request)
            case ["GET", "IncomingPhoneNumbers"]:
                return self._list_numbers(request)
            case ["GET" | "POST", "IncomingPhoneNumbers", number_id]:
                number = self._find_number(request, number_id)
                if request.method == "POST":
                    self._update_number(number, dict(request.form))
                return _json(self.number_resource(number))
            case ["POST", "Calls"]:
                call = self._place(request.form)
                return _json(self.call_resource(call), self.placed_status)
            case ["GET" | "POST", "Calls", call_id]:
                if request.method == "POST":
                    self._update_call(self.calls[call_id], dict(request.form))
                return _json(self.call_resource(self.calls[call_id]))
            case ["GET", "Calls", call_id, "Events"] if self.has_records:
                return self._page(request, "events", [each.content for each in self.events if each.call_id == call_id])
            case ["GET", "Calls", call_id, "Notifications"] if self.has_records:
                noted = [self._notification(each) for each in self.errors if each.call_id == call_id]
                return self._page(request, "notifications", noted)
        return None

    def _ask_other_product(self, request: WebhookRequest, path: str) -> Answer | None:
        """Answer a request to another product's host, such as ``monitor.twilio.com``."""
        if path.endswith("/v1/Alerts"):
            self._admit(request, self.account_id)
            return self._list_alerts(request)
        # https://www.twilio.com/docs/global-infrastructure/inbound-processing-api
        _, found, number = unquote(path).rpartition("/v2/PhoneNumbers/")
        if found and number in self.numbers:
            return _json({"phone_number": number, "voice_region": self.regions.get(number, "us1")})
        return None

    def _admit(self, request: WebhookRequest, account_id: str) -> None:
        if self.too_many > 0:
            self.too_many -= 1
            raise Refusal(20429, "Too Many Requests", 429)
        if account_id != self.account_id and self.company.credential(self.company.account_name):
            raise self._missing(request)

    def _missing(self, request: WebhookRequest) -> Refusal:
        return Refusal(20404, f"The requested resource {urlsplit(request.url).path} was not found", 404)

    def refuse(self, refusal: Refusal) -> Answer:
        """Render a refusal."""
        headers = {"Retry-After": str(self.retry_after_s)} if refusal.status == 429 else {}
        return error_answer(refusal.code, refusal.message, refusal.status, self.error_page(refusal.code), headers)

    def error_page(self, code: int) -> str:
        """Return the address that an error names for more."""
        return error_page(code)

    def _page(self, request: WebhookRequest, key: str, items: Sequence[Mapping[str, Any]]) -> Answer:
        """Render a page: https://www.twilio.com/docs/usage/twilios-response#response-formats-list-paging-information"""
        asked, path = dict(request.query), urlsplit(request.url).path
        size = min(max(read_counter(asked.get("PageSize")) or PAGE_SIZE, 1), PAGE_SIZE_LIMIT)
        page = read_counter(asked.get("Page")) or 0

        def uri(number: int) -> str:
            token = {"PageToken": f"PA{number}"} if number else {}
            return f"{path}?{urlencode({**asked, 'PageSize': size, 'Page': number, **token})}"

        shown = list(items[page * size : (page + 1) * size])
        following = uri(page + 1) if len(items) > (page + 1) * size else None
        if key == "alerts":
            # Newer products tell whole URLs: https://www.twilio.com/docs/usage/monitor-alert
            host = request.url.partition(path)[0]
            meta = {"key": key, "page": page, "page_size": size, "url": host + uri(page)}
            return _json({"meta": {**meta, "next_page_url": following and host + following}, key: shown})
        return _json(
            {
                "first_page_uri": uri(0),
                "next_page_uri": following,
                "previous_page_uri": uri(page - 1) if page else None,
                "page": page,
                "page_size": size,
                "uri": uri(page),
                key: shown,
            }
        )

    # The account

    def _show_account(self, request: WebhookRequest) -> Answer:
        user, _ = read_basic(request.headers.get("authorization", ""))
        if user not in ("", self.account_id):
            # A standard key may not: https://www.twilio.com/docs/iam/api-keys
            raise Refusal(20003, "Authenticate", 401)
        # https://www.twilio.com/docs/iam/api/account
        resource = {
            "sid": self.account_id,
            "friendly_name": "wsvoice",
            "owner_account_sid": self.account_id,
            "status": "active",
            "type": "Trial" if self.is_trial else "Full",
            "uri": f"{self._account_uri()}.json",
        }
        return _json(resource)

    def _account_uri(self) -> str:
        return f"{self.company.api_path}/Accounts/{self.account_id}"

    # Numbers

    def _list_numbers(self, request: WebhookRequest) -> Answer:
        # Any part of a number finds it.
        part = dict(request.query).get("PhoneNumber", "").lstrip("+")
        found = [self.number_resource(each) for each in self.numbers.values() if part in each.number]
        return self._page(request, "incoming_phone_numbers", found)

    def _find_number(self, request: WebhookRequest, number_id: str) -> FakeNumber:
        for number in self.numbers.values():
            if number.number_id == number_id:
                return number
        raise self._missing(request)

    def number_resource(self, number: FakeNumber) -> dict[str, Any]:
        """Return a number as the API has it."""
        settings = number.settings
        return {
            "sid": number.number_id,
            "account_sid": self.account_id,
            "friendly_name": number.name,
            "phone_number": number.number,
            "api_version": "2010-04-01",
            "beta": False,
            "capabilities": {"voice": number.has_voice, "sms": True, "mms": True, "fax": False},
            "status": "in-use",
            "voice_receive_mode": "voice",
            "voice_caller_id_lookup": False,
            **{key: settings[name] for name, key in VOICE_SETTINGS.items()},
            **{key: settings[name] or None for name, key in OVERRIDES.items()},
            "uri": f"{self._account_uri()}/IncomingPhoneNumbers/{number.number_id}.json",
        }

    def _update_number(self, number: FakeNumber, fields: Mapping[str, str]) -> None:
        changed = {name: value for name, value in fields.items() if name in number.settings}
        for name, value in changed.items():
            if name in ("VoiceUrl", "VoiceFallbackUrl", "StatusCallback"):
                _read_url(value, None, name, 21402)
            elif name.endswith("Method") and value not in ("GET", "POST"):
                raise Refusal(21403, f"{name} is not a valid method: {value}")
        number.settings.update(changed)
        number.name = fields.get("FriendlyName", number.name)

    # Calls

    def _place(self, form: Sequence[tuple[str, str]]) -> FakeCall:
        fields = dict(form)
        to_number, from_number = fields.get("To", ""), fields.get("From", "")
        self._check_numbers(to_number, from_number)
        if "Twiml" in fields or "ApplicationSid" in fields:
            raise Refusal(21200, "a call that brings its document along, or an application, is not simulated")
        webhook = _read_url(fields.get("Url", ""), fields.get("Method"), "Url", 21205)
        if webhook is None:
            raise Refusal(21205, "Url parameter is required.")
        status = _read_url(
            fields.get("StatusCallback", ""), fields.get("StatusCallbackMethod"), "StatusCallback", 21609
        )
        machine, machine_method = fields.get("AsyncAmdStatusCallback", ""), fields.get("AsyncAmdStatusCallbackMethod")
        events = [value for name, value in form if name == "StatusCallbackEvent"] or ["completed"]
        reports = frozenset[Stage]().union(*(STATUS_EVENTS.get(event, frozenset()) for event in events))
        detected = {word: detection for detection, word in DETECTIONS.items()}
        limit = _read_seconds(fields.get("TimeLimit"), "TimeLimit", 24 * 3600)
        if self.is_trial and self.trial_limit_s is not None:
            limit = min(limit or self.trial_limit_s, self.trial_limit_s)
        call = FakeCall(
            Call(self.company.name, self.new_id("CA"), "", self.account_id, from_number, to_number, "outbound"),
            webhook,
            status=status,
            reports=reports if status is not None else frozenset(),
            machine=_read_url(machine, machine_method, "AsyncAmdStatusCallback", 21609),
            detection=detected.get(fields.get("MachineDetection", ""), "off"),
            ring_timeout_s=_read_seconds(fields.get("Timeout"), "Timeout", RING_TIMEOUT_LIMIT_S) or 60.0,
            time_limit_s=limit,
        )
        self.calls[call.call.call_id] = call
        self._began[call.call.call_id] = self.now
        self.on_placed(call)
        return call

    def _check_numbers(self, to_number: str, from_number: str) -> None:
        """Raise a refusal unless the account may call from one to the other."""
        if not to_number:
            raise Refusal(21201, "No 'To' number is specified")
        if not from_number:
            raise Refusal(21213, "No 'From' number is specified")
        is_phone = _PHONE.fullmatch(to_number) is not None
        if not is_phone and not _ADDRESS.fullmatch(to_number):
            raise Refusal(21211, f"The phone number you are attempting to call, {to_number}, is not valid.")
        if not _PHONE.fullmatch(from_number):
            raise Refusal(21212, f"Invalid From Number (caller ID): {from_number}")
        own = self.numbers.get(from_number)
        if (own is None or not own.has_voice) and from_number not in self.verified:
            raise Refusal(
                21210,
                f"The source phone number provided, {from_number}, is not yet verified for your account. You may only "
                "make calls from phone numbers that you've verified or purchased from Twilio.",
            )
        if self.is_trial and is_phone and to_number not in self.verified:
            told = f"The number {to_number} is unverified. Trial accounts may only make calls to verified numbers."
            raise Refusal(21219, told)
        if self.is_trial and self.assigned.get(to_number, from_number) != from_number:
            # https://www.twilio.com/docs/api/errors/573002
            raise Refusal(573002, "The 'From' number isn't assigned to this verified Voice recipient")
        if to_number.startswith(self.forbidden):
            told = (
                f"Account not authorized to call {to_number}. Perhaps you need to enable some international permissions"
            )
            raise Refusal(21215, told)

    def _update_call(self, call: FakeCall, fields: Mapping[str, str]) -> None:
        status, twiml = fields.get("Status", ""), fields.get("Twiml", "") if self.takes_documents else ""
        if call.stage in ENDED_STAGES:
            raise Refusal(*self.over)
        if status:
            rings = call.stage != "answered"
            if status not in ("completed", "canceled"):
                raise Refusal(20001, f"Status {status} is not valid")
            if rings or status == "completed":
                self.end(call, "canceled" if rings else "completed", "ended by a request")
                self.on_ended(call)
            return
        callback = _read_url(fields.get("Url", ""), fields.get("Method"), "Url", 21205)
        if callback is None and not twiml:
            raise Refusal(20001, "none of Status, Url and Twiml says what becomes of the call")
        if call.stage != "answered":
            raise Refusal(*self.over)
        if callback is not None:
            self.on_command(call, "update", callback.url)
        elif len(twiml) > DOCUMENT_LIMIT:
            raise Refusal(32018, f"Twiml size exceeded maximum allowed value of {DOCUMENT_LIMIT} characters")
        else:
            self._carry_out(call, twiml)

    def _carry_out(self, call: FakeCall, twiml: str) -> None:
        """Let a call go on with a document that a request brought along."""
        read = None
        try:
            if isinstance(self.company, Simulator):
                body = twiml.encode("utf-8", "surrogatepass")
                read = self.company.read_answer(body, self.company.document_type, first=False)
        except RemoteProtocolError as error:
            # The request has succeeded by then; the debugger shows it.
            self.add_error(call.call.call_id, 12100, error.message)
            return
        if isinstance(read, NoStream) and read.how == "hung-up":
            self.end(call)
            self.on_ended(call)
        elif isinstance(read, NoStream) and read.how == "transferred":
            self.on_command(call, "transfer", read.to)
        else:
            self.on_command(call, "update", "")

    def call_resource(self, call: FakeCall) -> dict[str, Any]:
        """Return a placed call as the API has it: https://www.twilio.com/docs/voice/api/call-resource#call-properties"""
        call_id, is_over = call.call.call_id, call.stage in ENDED_STAGES
        uri = f"{self._account_uri()}/Calls/{call_id}"
        minutes = math.ceil(call.duration_s / 60) if call.stage == "completed" else 0
        return {
            "sid": call_id,
            "account_sid": self.account_id,
            "answered_by": write_answered_by(call.answered_by) if call.answered_by else None,
            "api_version": "2010-04-01",
            "date_created": write_rfc2822(self._began[call_id]),
            "date_updated": write_rfc2822(self.now),
            "direction": "outbound-api",
            "duration": str(round(call.duration_s)) if call.stage == "completed" else None,
            "start_time": write_rfc2822(self._began[call_id]) if call.stage != "queued" else None,
            "end_time": write_rfc2822(self._ended.get(call_id, self.now)) if is_over else None,
            "from": call.call.from_number,
            "from_formatted": call.call.from_number,
            "to": call.call.to_number,
            "to_formatted": call.call.to_number,
            "parent_call_sid": None,
            "phone_number_sid": None,
            "price": str(-minutes * self.price) if minutes else None,
            "price_unit": "USD",
            "status": STATUSES[call.stage],
            "uri": f"{uri}.json",
            "subresource_uris": {
                name: f"{uri}/{name.title()}.json" for name in ("events", "notifications", "recordings", "streams")
            },
        }

    # What is recorded

    def _notification(self, recorded: Recorded) -> dict[str, Any]:
        # https://www.twilio.com/docs/voice/api/call-notification-resource
        content = recorded.content
        return {
            "sid": content["sid"],
            "account_sid": self.account_id,
            "call_sid": recorded.call_id,
            "error_code": content["code"],
            "log": "0" if content["level"] == "error" else "1",
            "message_date": write_rfc2822(recorded.at),
            "message_text": urlencode({"LogLevel": content["level"].upper(), "Msg": content["text"]}),
            "more_info": error_page(content["code"]),
            "request_method": "POST",
            "request_url": content["url"],
            "uri": f"{self._account_uri()}/Calls/{recorded.call_id}/Notifications/{content['sid']}.json",
        }

    def _list_alerts(self, request: WebhookRequest) -> Answer:
        # https://www.twilio.com/docs/usage/monitor-alert
        asked = dict(request.query)
        since, until = read_time(asked.get("StartDate")), read_time(asked.get("EndDate"))
        level = asked.get("LogLevel", "")
        alerts = [
            {
                "sid": each.content["sid"],
                "account_sid": self.account_id,
                "resource_sid": each.call_id,
                "error_code": each.content["code"],
                "log_level": each.content["level"],
                "alert_text": urlencode({"ErrorCode": each.content["code"], "Msg": each.content["text"]}),
                "date_generated": write_time(each.at),
                "more_info": error_page(each.content["code"]),
                "request_method": "POST",
                "request_url": each.content["url"],
            }
            for each in self.errors
            if (since is None or each.at >= since) and (until is None or each.at <= until)
            if level in ("", each.content["level"])
        ]
        return self._page(request, "alerts", alerts)


def _json(content: Mapping[str, Any], status: int = 200) -> Answer:
    return Answer(write_object(dict(content)), "application/json", status)


def _read_url(written: str, method: str | None, name: str, code: int) -> Callback | None:
    """Return an address that a field names, ``None`` for an empty one; what is none is refused with that `code`."""
    try:
        callback = read_callback(written, method, "", name)
    except RemoteProtocolError:
        raise Refusal(code, f"{name} is not a valid URL: {written}") from None
    # https://www.twilio.com/docs/voice/api/call-resource#statuscallback
    if callback is not None and "_" in (urlsplit(callback.url).hostname or ""):
        raise Refusal(code, f"{name} is not a valid URL: {written}")
    return callback


def _read_seconds(written: str | None, name: str, most: int) -> float | None:
    if written is None:
        return None
    seconds = read_counter(written)
    if not seconds or seconds > most:
        raise Refusal(21200, f"{name} is not a number of seconds from 1 to {most}: {written}")
    return float(seconds)
