"""
Telnyx's account without Telnyx: numbers, connections, outbound voice profiles, and calls of both kinds.

Resources have the fields that Telnyx's own library reads, and refusals are written as the API writes them.

https://developers.telnyx.com/api-reference
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Concatenate
from urllib.parse import unquote, urlsplit, urlunsplit

from wsvoice.call import ENDED_STAGES, Call, Control, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, Callback, Command, Company, NoStream, StreamRequest, WebhookRequest
from wsvoice.providers.call_statuses import SIP_CODES, STATUS_EVENTS, STATUSES
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fake_api import json_answer, read_call_command, read_digits
from wsvoice.providers.fields import (
    TEXT_LIMIT,
    broken,
    read_counter,
    read_parameters,
    read_text,
    shown,
    text_or_nothing,
    write_time,
)
from wsvoice.providers.telnyx.company import API_NAMES, HANGUP_CAUSES, hangup_source, stable_uuid
from wsvoice.providers.telnyx.stream import named_values
from wsvoice.providers.urls import read_callback, read_stream_url
from wsvoice.providers.xml_answer import Reading

if TYPE_CHECKING:
    from wsvoice.providers.telnyx.simulator import TelnyxSimulator

_COMMAND = re.compile(r".*/calls/([^/]+)/actions/([a-z_]+)")
_CALL = re.compile(r".*/calls/([^/]+)")
_TEXML_CALL = re.compile(r".*/texml/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?")

_TEXML, _CALL_CONTROL = "texml_application", "call_control_application"
#: How many items a list has unless more are asked for, and at most.
#: https://developers.telnyx.com/development/api-fundamentals/pagination
_PAGE_SIZE, _PAGE_LIMIT = 20, 250
#: Characters of a text, such as a URL, that is kept.
_TEXT_LIMIT = 4000
#: For how long a call rings unless the request says. https://developers.telnyx.com/api-reference/call-commands/dial
_USUAL_RING_S = 30.0
_ALL_STAGES: frozenset[Stage] = ENDED_STAGES.union(*STATUS_EVENTS.values())
_TITLES = {
    "10004": "Missing required parameter",
    "10005": "Resource not found",
    "10009": "Authentication failed",
    "10010": "Authorization failed",
    "10011": "Too many requests",
    "10012": "Duplicate resource",
    "10015": "Bad Request",
    "10017": "Associated resource does not exist",
    "10021": "Resource in use",
    "90015": "Invalid Call Control ID",
    "90018": "Call has already ended",
}
#: What is said of calls that are refused.
#: https://support.telnyx.com/en/articles/4409457-telnyx-sip-response-codes
_REFUSED = {
    "D15": "Outbound Profile is disabled",
    "D16": "Connection is disabled",
    "D38": "Connection has no Outbound Profile assigned",
    "D51": "Unverified origination number",
    "D60": "Can not make calls to non-verified numbers at this account level",
}


def error_answer(status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> Answer:
    """Render an error: https://developers.telnyx.com/development/api-fundamentals/api-errors"""
    error = {"code": code, "title": _TITLES[code], "detail": detail}
    return replace(json_answer({"errors": [error]}, status), headers=headers or {})


def read_action(request: WebhookRequest) -> tuple[str, str]:
    """Return the call and the action of a command of Call Control; two empty strings if it is none."""
    match = _COMMAND.fullmatch(urlsplit(request.url).path)
    if request.method != "POST" or match is None:
        return "", ""
    return unquote(match[1]), match[2]


def read_command(request: WebhookRequest) -> Command | None:
    """
    Read what a request asks of a call that goes on; ``None`` if it is another request.

    Raises:
        RemoteProtocolError: If it lacks what it needs.

    https://developers.telnyx.com/api-reference/call-commands/transfer-call
    https://developers.telnyx.com/api-reference/call-commands/send-dtmf
    https://developers.telnyx.com/api-reference/texml-rest-commands/update-call
    """
    path = urlsplit(request.url).path
    if (match := _TEXML_CALL.fullmatch(path)) and request.method in ("GET", "POST"):
        return read_call_command(request, unquote(match[1]), "Texml")
    if (match := _CALL.fullmatch(path)) and request.method == "GET":
        return Command("look-up", unquote(match[1]))
    call_id, action = read_action(request)
    if action == "hangup":
        return Command("hang-up", call_id)
    if action == "transfer":
        return Command("transfer", call_id, to=_read_argument(request, "to"))
    if action == "send_dtmf":
        return Command("digits", call_id, digits=read_digits(_read_argument(request, "digits")))
    if action in ("answer", "speak", "playback_start"):
        return _read_message(request, call_id, action)
    if action == "streaming_stop":
        # It is sent after a transfer, with which the stream of a simulated call has ended.
        return Command("look-up", call_id)
    return None


def _read_message(request: WebhookRequest, call_id: str, action: str) -> Command | None:
    """
    Read a command that answers a call without a stream, or lets it hear something.

    https://developers.telnyx.com/api-reference/call-commands/speak-text
    https://developers.telnyx.com/api-reference/call-commands/play-audio-url
    """
    state = text_or_nothing(request.read_json().get("client_state"), TEXT_LIMIT)
    if action == "answer":
        return Command("answer", call_id, state=state)
    if action == "speak":
        _read_argument(request, "voice")
        return Command("message", call_id, message=_read_argument(request, "payload"), state=state)
    return Command("message", call_id, message=_read_argument(request, "audio_url"), state=state)


def _read_argument(request: WebhookRequest, name: str) -> str:
    """Return a text that a command needs."""
    return read_text(request.read_json().get(name), "bad-command", name)[:TEXT_LIMIT]


def read_stream(company: TelnyxSimulator, content: Mapping[str, Any]) -> StreamRequest:
    """
    Return the stream that a command asks for: one that answers a call, or that dials one.

    Raises:
        RemoteProtocolError: If Telnyx could not open it.

    https://developers.telnyx.com/api-reference/call-commands/answer-call
    """
    reading = Reading()
    url = read_stream_url(_told(content, "stream_url"))
    if url.scheme == "ws":
        reading.found("warn", "the stream's URL is ws://; Telnyx refuses all but wss://")
    told = {name: str(value) for name, value in content.items() if isinstance(value, str | int)}
    inbound, outbound = company.read_settings(told, API_NAMES, reading)
    token = told.get("stream_auth_token", "")
    return StreamRequest(
        url=urlunsplit((url.scheme, url.netloc, url.path, url.query, "")),
        parameters=_read_custom_parameters(content.get("custom_parameters")),
        format=inbound,
        headers={"Authorization": f"Bearer {token}"} if token and token.isprintable() else {},
        # The stream's end is not the call's.
        then=["silence, until a request hangs up"],
        findings=reading.findings,
        outbound_format=outbound,
    )


def _read_custom_parameters(written: object) -> dict[str, str]:
    """
    Return custom parameters: an object, or a list of names and values.

    Raises:
        RemoteProtocolError: Of kind ``bad-start``.
    """
    value = {} if written is None else named_values(written)
    if not isinstance(value, dict):
        raise broken("bad-start", f"custom_parameters is {shown(value)}, not an object")
    for name, content in value.items():
        if isinstance(content, dict | list):
            raise broken("bad-start", f"the custom parameter {shown(name)} is {shown(content)}, not a text")
    return read_parameters(value)


class TelnyxFakeAccount(FakeAccount):
    """
    The account of an organization.

    Attributes:
        organization_id: What TeXML calls the account.
        connections: Its applications and SIP connections, by id; each has a ``record_type``.
        profiles: Its outbound voice profiles, by id.
        deliveries: The webhooks whose delivery was recorded, latest first.
        too_many: How many of the next requests are put off, with 429.
        retry_after_s: When those may be repeated.
        now: Unix time in seconds, for what is recorded.
    """

    company: TelnyxSimulator

    def __init__(self, company: Company, seed: bytes) -> None:
        super().__init__(company, seed)
        self.organization_id = self._new_uuid()
        self.connections: dict[str, dict[str, Any]] = {}
        self.profiles: dict[str, dict[str, Any]] = {}
        self.deliveries: list[dict[str, Any]] = []
        self.available_credit = "25.00"
        self.too_many = 0
        self.retry_after_s = 1
        self.now = 1_767_225_600.0
        self._failures: dict[str, list[tuple[str, dict[str, Any]]]] = {}

    # What a test sets up

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        """Add a number, which may have a ``connection_id`` and another ``status`` than ``active``."""
        kind = "local" if has_voice else "shortcode"
        kept = {"connection_id": "", "status": "active", "phone_number_type": kind, **settings}
        self.numbers[number] = FakeNumber(number, self._new_id(), name, has_voice, kept)
        return self.numbers[number]

    def add_profile(self, name: str = "Default", *, enabled: bool = True) -> str:
        """Add an outbound voice profile, and return its id."""
        profile_id = self._new_id()
        record = {"id": profile_id, "record_type": "outbound_voice_profile", "name": name, "enabled": enabled}
        self.profiles[profile_id] = record
        return profile_id

    def add_application(
        self, record_type: str, name: str, *, url: str = "", profile_id: str = "", active: bool = True
    ) -> str:
        """Add an application, or a connection of another type such as ``credential_connection``; return its id."""
        names = {_TEXML: ("friendly_name", "voice_url"), _CALL_CONTROL: ("application_name", "webhook_event_url")}
        name_key, url_key = names.get(record_type, ("connection_name", "webhook_event_url"))
        record = {name_key: name, url_key: url, "active": active, "outbound": {"outbound_voice_profile_id": profile_id}}
        return str(self._keep(record_type, record)["id"])

    def record_failure(self, call: FakeCall, name: str, **payload: str) -> None:
        """Record an event of a call's such as ``streaming.failed``, with its ``failure_reason``."""
        self._failures.setdefault(call.call.call_id, []).append((name, payload))

    def record_delivery(self, call_id: str, event_type: str, url: str, *statuses: int | None) -> None:
        """
        Record how a webhook was delivered.

        Args:
            statuses: What each attempt was answered with; ``None`` for no answer.
        """
        attempts = []
        for count, status in enumerate(statuses):
            response = {} if status is None else {"response": {"status": status, "headers": [], "body": ""}}
            delivered = status is not None and 200 <= status < 300
            attempt = {"status": "delivered" if delivered else "failed", "errors": [] if delivered else [75499]}
            http = {"request": {"url": url, "headers": []}, **response}
            attempts.append({**attempt, "started_at": write_time(self.now + count), "http": http})
        event = {"record_type": "event", "event_type": event_type, "payload": {"call_control_id": call_id}}
        last = attempts[-1]["status"] if attempts else "failed"
        record = {"id": self._new_uuid(), "record_type": "webhook_delivery", "status": last, "webhook": event}
        self.deliveries.insert(0, {**record, "attempts": attempts[::-1]})

    def points_at(self, number: str) -> Callback | None:
        known = self.numbers.get(number)
        record = self.connections.get(known.settings["connection_id"]) if known else None
        if record is None or not record["active"]:
            return None
        if record["record_type"] == _TEXML:
            return read_callback(record["voice_url"], record.get("voice_method", "post"), "", "voice_url")
        return read_callback(record.get("webhook_event_url"), "POST", "", "webhook_event_url")

    def rename(self, call: FakeCall) -> None:
        """
        Give a call another control id, as happens to some that were dialled once they are answered.

        The former id names no call from then on. The stream, and what follows on the call, have the new one.
        https://github.com/dograh-hq/dograh
        """
        del self.calls[call.call.call_id]
        ids = self.company.new_ids(self.new_seed())
        call.call = replace(call.call, call_id=ids[0])
        self.calls[ids[0]] = call

    def end(self, call: FakeCall, stage: Stage = "completed", cause: str = "") -> None:
        super().end(call, stage, cause or HANGUP_CAUSES[stage])

    # Requests

    def answer(self, request: WebhookRequest) -> Answer | None:
        if self.too_many > 0:
            self.too_many -= 1
            headers = {"Retry-After": str(self.retry_after_s)}
            return error_answer(429, "10011", "You have exceeded the maximum number of allowed requests.", headers)
        path = urlsplit(request.url).path.removeprefix("/v2")
        try:
            for method, pattern, handle in _ROUTES:
                if method == request.method and (match := pattern.fullmatch(path)):
                    return handle(self, request, *map(unquote, match.groups()))
            return self._carry_out(request)
        except RemoteProtocolError as error:
            return error_answer(422, "10015", error.message)

    def _whoami(self, request: WebhookRequest) -> Answer:
        who = {"record_type": "whoami", "organization_id": self.organization_id, "email": "owner@example.com"}
        return json_answer({"data": {**who, "user_id": str(uuid.UUID(self.organization_id).int)[:18]}})

    def _balance(self, request: WebhookRequest) -> Answer:
        money = {"balance": self.available_credit, "available_credit": self.available_credit, "currency": "USD"}
        return json_answer({"data": {"record_type": "balance", "credit_limit": "0.00", **money}})

    def _list_numbers(self, request: WebhookRequest) -> Answer:
        query = dict(request.query)
        digits, connection_id = query.get("filter[phone_number]"), query.get("filter[connection_id]")
        found = [self._number(each) for each in self.numbers.values()]
        if digits is not None:
            # "Non-numerical characters will result in no values being returned."
            found = [each for each in found if digits.isdigit() and digits in each["phone_number"]]
        if connection_id is not None:
            found = [each for each in found if each["connection_id"] == connection_id]
        return _page(found, query)

    def _read_number(self, request: WebhookRequest, number_id: str) -> Answer:
        found = self._by_id(number_id)
        return json_answer({"data": self._number(found)}) if found else _unknown()

    def _update_number(self, request: WebhookRequest, number_id: str) -> Answer:
        found, content = self._by_id(number_id), _read_content(request)
        if found is None:
            return _unknown()
        connection_id = content.get("connection_id")
        if isinstance(connection_id, str):
            if connection_id and connection_id not in self.connections:
                return error_answer(422, "10017", "The connection_id does not name a connection.")
            found.settings["connection_id"] = connection_id
        return json_answer({"data": self._number(found)})

    def _list_connections(self, request: WebhookRequest) -> Answer:
        return _page([_connection(each) for each in self.connections.values()], dict(request.query))

    def _read_connection(self, request: WebhookRequest, connection_id: str) -> Answer:
        record = self.connections.get(connection_id)
        return json_answer({"data": _connection(record)}) if record else _unknown()

    def _list_profiles(self, request: WebhookRequest) -> Answer:
        return _page(list(self.profiles.values()), dict(request.query))

    def _list_applications(self, request: WebhookRequest, kind: str) -> Answer:
        query, wanted = dict(request.query), dict(request.query).get("filter[friendly_name]", "").lower()
        found = [each for each in self.connections.values() if each["record_type"] == kind.removesuffix("s")]
        if kind == f"{_TEXML}s":
            found = [each for each in found if wanted in each["friendly_name"].lower()]
        return _page(found, query)

    def _read_application(self, request: WebhookRequest, kind: str, application_id: str) -> Answer:
        record = self._application(kind, application_id)
        return json_answer({"data": record}) if record else _unknown()

    def _make_application(self, request: WebhookRequest, kind: str) -> Answer:
        content = _read_content(request)
        if refused := self._check_application(kind, content, ""):
            return refused
        return json_answer({"data": self._keep(kind.removesuffix("s"), content)}, 201)

    def _change_application(self, request: WebhookRequest, kind: str, application_id: str) -> Answer:
        record, content = self._application(kind, application_id), _read_content(request)
        if record is None:
            return _unknown()
        if refused := self._check_application(kind, content, application_id):
            return refused
        record |= {name: value for name, value in content.items() if name not in ("id", "record_type", "created_at")}
        return json_answer({"data": record})

    def _remove_application(self, request: WebhookRequest, kind: str, application_id: str) -> Answer:
        record = self._application(kind, application_id)
        if record is None:
            return _unknown()
        if any(each.settings["connection_id"] == application_id for each in self.numbers.values()):
            return error_answer(422, "10021", "The application still has phone numbers.")
        del self.connections[application_id]
        return json_answer({"data": record})

    def _check_application(self, kind: str, content: Mapping[str, Any], application_id: str) -> Answer | None:
        """Return the refusal of settings that lack what they need, or whose name is taken; ``None`` if they will do."""
        needed = ("friendly_name", "voice_url") if kind == f"{_TEXML}s" else ("application_name", "webhook_event_url")
        for name in needed:
            if not _told(content, name):
                return error_answer(422, "10004", f"The {name} parameter is required.")
        read_callback(content[needed[1]], None, "", needed[1])
        others = [each for each in self.connections.values() if each["id"] != application_id]
        if any(_connection(each)["connection_name"] == content[needed[0]] for each in others):
            return error_answer(422, "10012", f"The {needed[0]} has already been taken.")
        profile_id = _profile_id(content)
        if profile_id and profile_id not in self.profiles:
            return error_answer(422, "10017", "The outbound_voice_profile_id does not name a profile.")
        return None

    def _list_events(self, request: WebhookRequest) -> Answer:
        query = dict(request.query)
        leg_id = query.get("filter[leg_id]")
        events = [event for call in self.calls.values() for event in self._events(call)]
        return _page([each for each in events if leg_id in (None, each["call_leg_id"])], query)

    def _list_deliveries(self, request: WebhookRequest) -> Answer:
        query = dict(request.query)
        text, status = query.get("filter[webhook][contains]", ""), query.get("filter[status][eq]")
        found = [each for each in self.deliveries if text in json_answer(each["webhook"]).body]
        return _page([each for each in found if status in (None, each["status"])], query)

    # Calls

    def _dial(self, request: WebhookRequest) -> Answer:
        """
        Place a call by a Call Control application.

        https://developers.telnyx.com/api-reference/call-commands/dial
        """
        content = _read_content(request)
        for name in ("connection_id", "to", "from"):
            if not _told(content, name):
                return error_answer(422, "10004", f"The {name} parameter is required.")
        application = self._application(f"{_CALL_CONTROL}s", content["connection_id"])
        if application is None:
            detail = "The requested connection_id (Call Control App ID) is either invalid or does not exist."
            return error_answer(422, "10015", detail)
        ring_timeout_s = _read_range(content, "timeout_secs", 5, 600)
        time_limit_s = _read_range(content, "time_limit_secs", 30, 14400)
        call = self._new_call(content["from"], content["to"], by_commands=True)
        if code := self._refusal_of(application, call):
            return _refused(code, _call_data(call, self))
        detection = _told(content, "answering_machine_detection") or "disabled"
        url = _told(content, "webhook_url") or application["webhook_event_url"]
        call.status = read_callback(url, _told(content, "webhook_url_method"), "", "webhook_url")
        call.reports = _ALL_STAGES
        call.stream = read_stream(self.company, content) if content.get("stream_url") else None
        call.ring_timeout_s, call.time_limit_s = ring_timeout_s or _USUAL_RING_S, time_limit_s
        if detection != "disabled":
            call.detection = "detect" if detection == "detect" else "greeting-end"
            call.machine = call.status
        self._place(call)
        return json_answer({"data": {**_call_data(call, self), "is_alive": False}})

    def _dial_texml(self, request: WebhookRequest, organization_id: str) -> Answer:
        """
        Place a call by a TeXML application, which the answer does not name.

        https://developers.telnyx.com/api-reference/texml-rest-commands/initiate-an-outbound-call
        """
        if organization_id != self.organization_id:
            return _unknown()
        content = _read_content(request) if request.is_json else dict(request.form)
        for name in ("ApplicationSid", "To", "From"):
            if not _told(content, name):
                return error_answer(422, "10004", f"The {name} parameter is required.")
        application = self._application(f"{_TEXML}s", content["ApplicationSid"])
        if application is None:
            return error_answer(422, "10017", "The ApplicationSid does not name a TeXML application.")
        ring_timeout_s = _read_range(content, "Timeout", 5, 120)
        time_limit_s = _read_range(content, "TimeLimit", 30, 14400)
        call = self._new_call(content["From"], content["To"], by_commands=False)
        if code := self._refusal_of(application, call):
            return _refused(code, {})
        method = _told(content, "UrlMethod") or _told(application, "voice_method")
        call.webhook = read_callback(_told(content, "Url") or application["voice_url"], method, "", "Url")
        status = _told(content, "StatusCallback") or _told(application, "status_callback")
        call.status = read_callback(status, _told(content, "StatusCallbackMethod"), "", "StatusCallback")
        words = (_told(content, "StatusCallbackEvent") or "completed").split()
        call.reports = frozenset(stage for word in words for stage in STATUS_EVENTS.get(word, ()))
        call.ring_timeout_s, call.time_limit_s = ring_timeout_s or _USUAL_RING_S, time_limit_s
        detection = _told(content, "MachineDetection") or "Disable"
        if detection != "Disable":
            call.detection = "greeting-end" if detection == "DetectMessageEnd" else "detect"
            method = _told(content, "AsyncAmdStatusCallbackMethod")
            what = "AsyncAmdStatusCallback"
            call.machine = read_callback(_told(content, what), method, "", what)
        self._place(call)
        return json_answer({"from": content["From"], "to": content["To"], "status": "queued"})

    def _list_texml_calls(self, request: WebhookRequest, organization_id: str) -> Answer:
        if organization_id != self.organization_id:
            return _unknown()
        query = dict(request.query)
        found = [_resource(each, self) for each in self.calls.values()]
        for name, field in (("From", "from"), ("To", "to"), ("Status", "status")):
            found = [each for each in found if query.get(name) in (None, each[field])]
        return json_answer({"calls": found[::-1], "page": 0, "page_size": len(found)})

    def _carry_out(self, request: WebhookRequest) -> Answer | None:
        """Carry out a command for a call of the account's; ``None`` if it is for another."""
        command = read_command(request)
        call = self.calls.get(command.call_id) if command else None
        if command is None or call is None:
            return None
        by_texml = "/texml/" in urlsplit(request.url).path
        if by_texml and f"/{self.organization_id}/" not in urlsplit(request.url).path:
            return _unknown()
        if command.kind != "look-up" and call.stage in ENDED_STAGES:
            detail = "This call is no longer active and can't receive commands."
            return error_answer(422, "90018", detail)
        if command.kind == "hang-up":
            self._hang_up(call)
        elif command.kind in ("transfer", "digits"):
            self.on_command(call, command.kind, command.to or command.digits)
        elif command.document:
            read = self.company.read_answer(command.document, "application/xml", first=False)
            if isinstance(read, NoStream) and read.how == "transferred":
                self.on_command(call, "transfer", read.to)
            elif isinstance(read, NoStream):
                self._hang_up(call)
        elif command.callback is not None:
            self.on_command(call, "update", command.callback.url)
        if by_texml:
            return json_answer(_resource(call, self))
        if request.method == "GET":
            return json_answer({"data": _call_data(call, self)})
        return json_answer({"data": {"result": "ok"}})

    def _hang_up(self, call: FakeCall) -> None:
        self.end(call, "completed" if call.stage == "answered" else "canceled")
        self.on_ended(call)

    def _new_call(self, caller: str, called: str, *, by_commands: bool) -> FakeCall:
        call_id, stream_id, _ = self.company.new_ids(self.new_seed())
        control: Control = "api" if by_commands else "document"
        call = Call(
            self.company.name, call_id, stream_id, self.organization_id, caller, called, "outbound", control=control
        )
        return FakeCall(call)

    def _place(self, call: FakeCall) -> None:
        self.calls[call.call.call_id] = call
        self.on_placed(call)

    def _refusal_of(self, application: Mapping[str, Any], call: FakeCall) -> str:
        """Return the code with which the network refuses a call; empty if it takes it."""
        profile = self.profiles.get(_profile_id(application))
        if not application["active"]:
            return "D16"
        if profile is None:
            return "D38"
        if not profile["enabled"]:
            return "D15"
        if call.call.from_number not in self.numbers and call.call.from_number not in self.verified:
            return "D51"
        return "D60" if self.is_trial and call.call.to_number not in self.verified else ""

    def _events(self, call: FakeCall) -> list[dict[str, Any]]:
        """Return what is recorded of a call, which follows from how it stands."""
        told: list[tuple[str, dict[str, Any]]] = [("call.initiated", {"direction": "outgoing", "state": "bridging"})]
        if call.stage in ("answered", "completed"):
            told.append(("call.answered", {"state": "answered"}))
        if call.answered_by is not None:
            result = {"fax": "fax_detected", "unknown": "not_sure"}.get(call.answered_by, call.answered_by)
            told.append(("call.machine.detection.ended", {"result": result}))
        told += self._failures.get(call.call.call_id, [])
        if call.stage in ENDED_STAGES:
            hangup = {"hangup_cause": call.cause, "sip_hangup_cause": str(SIP_CODES[call.stage])}
            told.append(("call.hangup", {**hangup, "hangup_source": hangup_source(call.stage)}))
        ids = {"call_control_id": call.call.call_id, "from": call.call.from_number, "to": call.call.to_number}
        return [
            {
                "record_type": "call_event",
                "call_leg_id": stable_uuid("leg", call.call.call_id),
                "call_session_id": stable_uuid("session", call.call.call_id),
                "event_timestamp": write_time(self.now + count),
                "name": name,
                "type": "webhook",
                "metadata": {"raw_event": {"data": {"event_type": name, "payload": {**ids, **payload}}}},
            }
            for count, (name, payload) in enumerate(told)
        ]

    # Records

    def _number(self, number: FakeNumber) -> dict[str, Any]:
        connection = self.connections.get(number.settings["connection_id"])
        times = {name: write_time(self.now) for name in ("created_at", "purchased_at", "updated_at")}
        return {
            "id": number.number_id,
            "record_type": "phone_number",
            "phone_number": number.number,
            "country_iso_alpha2": "US",
            "deletion_lock_enabled": False,
            "tags": [],
            "customer_reference": number.name or None,
            "connection_name": _connection(connection)["connection_name"] if connection else None,
            **times,
            **number.settings,
        }

    def _by_id(self, number_id: str) -> FakeNumber | None:
        return next((each for each in self.numbers.values() if each.number_id == number_id), None)

    def _application(self, kind: str, application_id: str) -> dict[str, Any] | None:
        record = self.connections.get(application_id)
        return record if record is not None and record["record_type"] == kind.removesuffix("s") else None

    def _keep(self, record_type: str, content: Mapping[str, Any]) -> dict[str, Any]:
        connection_id = self._new_id()
        record = {"active": True, **content, "id": connection_id, "record_type": record_type}
        self.connections[connection_id] = {**record, "created_at": write_time(self.now)}
        return self.connections[connection_id]

    def _new_id(self) -> str:
        """Return an id as connections and numbers have: 19 digits."""
        return f"2{int.from_bytes(self.new_seed()[:12]):018d}"[:19]

    def _new_uuid(self) -> str:
        return str(uuid.UUID(bytes=self.new_seed()[:16], version=4))


def _connection(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an application as the list of all connections has it."""
    name = next(record[key] for key in ("friendly_name", "application_name", "connection_name") if key in record)
    kept = {key: record.get(key) for key in ("id", "record_type", "active", "created_at", "webhook_event_url")}
    return {**kept, "connection_name": name, "outbound_voice_profile_id": _profile_id(record) or None}


def _call_data(call: FakeCall, account: TelnyxFakeAccount) -> dict[str, Any]:
    """Render a call: https://developers.telnyx.com/api-reference/call-information/retrieve-a-call-status"""
    ended = call.stage in ENDED_STAGES
    return {
        "record_type": "call",
        "call_control_id": call.call.call_id,
        "call_leg_id": stable_uuid("leg", call.call.call_id),
        "call_session_id": stable_uuid("session", call.call.call_id),
        "is_alive": not ended,
        "call_duration": round(call.duration_s),
        "start_time": write_time(account.now),
        **({"end_time": write_time(account.now + call.duration_s)} if ended else {}),
    }


def _resource(call: FakeCall, account: TelnyxFakeAccount) -> dict[str, Any]:
    """Render a TeXML call: https://developers.telnyx.com/api-reference/texml-rest-commands/fetch-a-call"""
    answered_by = {None: None, "human": "human", "machine": "machine"}.get(call.answered_by, "not_sure")
    return {
        "account_sid": account.organization_id,
        "answered_by": answered_by,
        "date_created": write_time(account.now),
        "direction": "outbound",
        "duration": str(round(call.duration_s)),
        "from": call.call.from_number,
        "sid": call.call.call_id,
        "status": "ringing" if call.stage == "queued" else STATUSES[call.stage],
        "to": call.call.to_number,
        "uri": f"/v2/texml/Accounts/{account.organization_id}/Calls/{call.call.call_id}.json",
    }


def _unknown() -> Answer:
    return error_answer(404, "10005", "The requested resource or URL could not be found.")


def _refused(code: str, data: Mapping[str, Any]) -> Answer:
    """
    Render the refusal of a call by the network, as users have seen it.

    https://github.com/dograh-hq/dograh
    """
    detail = f"{_REFUSED[code]} {code}"
    error = {"code": "10010", "title": _TITLES["10010"], "detail": detail}
    return json_answer({"data": dict(data), "errors": [error], "telnyx_error": {"error_code": code}}, 403)


def _read_content(request: WebhookRequest) -> dict[str, Any]:
    """
    Return the JSON object that a request carries.

    Raises:
        RemoteProtocolError: If there is none, or a field holds something else than a word, a number or a known object.
    """
    content = request.read_json()
    for name, value in content.items():
        is_known = name == "custom_parameters" or (name == "outbound" and isinstance(value, dict))
        if isinstance(value, dict | list) and not is_known:
            raise broken("bad-request", f"{shown(name)} is {shown(value)}, not a text")
    return content


def _told(content: Mapping[str, Any], name: str) -> str:
    return text_or_nothing(content.get(name), _TEXT_LIMIT)


def _profile_id(record: Mapping[str, Any]) -> str:
    outbound = record.get("outbound")
    return _told(outbound, "outbound_voice_profile_id") if isinstance(outbound, dict) else ""


def _read_range(content: Mapping[str, Any], name: str, least: int, most: int) -> float | None:
    """Return a number of seconds; ``None`` if none is told."""
    value = content.get(name)
    if value is None:
        return None
    number = read_counter(value)
    if number is None or not least <= number <= most:
        raise broken("bad-request", f"{name} must be between {least} and {most}")
    return float(number)


def _page(items: Iterable[dict[str, Any]], query: Mapping[str, str]) -> Answer:
    """Render one page of a list: https://developers.telnyx.com/development/api-fundamentals/pagination"""
    found = list(items)
    size = max(1, min(read_counter(query.get("page[size]")) or _PAGE_SIZE, _PAGE_LIMIT))
    number = max(1, read_counter(query.get("page[number]")) or 1)
    meta = {"total_pages": -(-len(found) // size), "total_results": len(found), "page_number": number}
    return json_answer({"data": found[(number - 1) * size : number * size], "meta": {**meta, "page_size": size}})


_Handler = Callable[Concatenate[TelnyxFakeAccount, WebhookRequest, ...], Answer]
_APPLICATIONS = f"({_TEXML}s|{_CALL_CONTROL}s)"


def _route(method: str, path: str, handler: _Handler) -> tuple[str, re.Pattern[str], _Handler]:
    return method, re.compile(path), handler


_ROUTES = (
    _route("GET", "/whoami", TelnyxFakeAccount._whoami),
    _route("GET", "/balance", TelnyxFakeAccount._balance),
    _route("GET", "/phone_numbers", TelnyxFakeAccount._list_numbers),
    _route("GET", "/phone_numbers/([^/]+)", TelnyxFakeAccount._read_number),
    _route("PATCH", "/phone_numbers/([^/]+)", TelnyxFakeAccount._update_number),
    _route("GET", "/connections", TelnyxFakeAccount._list_connections),
    _route("GET", "/connections/([^/]+)", TelnyxFakeAccount._read_connection),
    _route("GET", "/outbound_voice_profiles", TelnyxFakeAccount._list_profiles),
    _route("GET", f"/{_APPLICATIONS}", TelnyxFakeAccount._list_applications),
    _route("POST", f"/{_APPLICATIONS}", TelnyxFakeAccount._make_application),
    _route("GET", f"/{_APPLICATIONS}/([^/]+)", TelnyxFakeAccount._read_application),
    _route("PATCH", f"/{_APPLICATIONS}/([^/]+)", TelnyxFakeAccount._change_application),
    _route("DELETE", f"/{_APPLICATIONS}/([^/]+)", TelnyxFakeAccount._remove_application),
    _route("GET", "/call_events", TelnyxFakeAccount._list_events),
    _route("GET", "/webhook_deliveries", TelnyxFakeAccount._list_deliveries),
    _route("POST", "/calls", TelnyxFakeAccount._dial),
    _route("GET", "/texml/Accounts/([^/]+)/Calls", TelnyxFakeAccount._list_texml_calls),
    _route("POST", "/texml/Accounts/([^/]+)/Calls", TelnyxFakeAccount._dial_texml),
)
