"""Plivo's account without Plivo: numbers, applications and calls. https://docs.plivo.com/docs/voice/api/overview"""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, Callback, CallStatus, Company, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fake_api import json_answer, read_digits
from wsvoice.providers.fields import read_counter, with_plus, without_plus
from wsvoice.providers.plivo.company import STAGES
from wsvoice.providers.plivo.hangup_causes import HANGUP_CAUSES, USUAL_CAUSES
from wsvoice.providers.urls import read_callback

#: Objects of one page.
PAGE_SIZE = 20

_RESOURCE = re.compile(r".*/Account/([^/]+)/(.*)")
_STATUSES: Mapping[Stage, CallStatus] = {"queued": "ringing", "ringing": "ringing", "answered": "in-progress"}
# Nothing here looks at a clock: every call began then.
_BEGAN = "2025-06-15 12:00:{:02}+00:00"
_RINGS_FOR_S = 5
_NOT_FOUND = "not found"


class _Refused(Exception):
    """The request is refused, with a status and what is said."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class PlivoFakeAccount(FakeAccount):
    """
    The account's numbers, applications and placed calls.

    Attributes:
        applications: By their ids, under the names of the API.
        name, credits: What the account says of itself.
    """

    def __init__(self, company: Company, seed: bytes) -> None:
        super().__init__(company, seed)
        self.applications: dict[str, dict[str, Any]] = {}
        self.name, self.credits = "wsvoice", "4.88860"

    @property
    def account_id(self) -> str:
        """The account's id, which every path begins with."""
        return self.company.credential("PLIVO_AUTH_ID")

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        """Add a number; the setting ``app_id`` is the application's that takes its calls."""
        added = FakeNumber(number, without_plus(number), name, has_voice, {"app_id": "", **settings})
        self.numbers[number] = added
        return added

    def add_application(self, name: str, **settings: str) -> str:
        """Add an application, and return its id."""
        app_id = str(int.from_bytes(self.new_seed()[:8], "big"))[:17].ljust(17, "0")
        # https://docs.plivo.com/docs/account/api/application/create-an-application
        defaults = dict.fromkeys(("answer_url", "hangup_url", "fallback_answer_url", "message_url"), "")
        methods = dict.fromkeys(("answer_method", "hangup_method", "fallback_method", "message_method"), "POST")
        self.applications[app_id] = {"app_id": app_id, "app_name": name, **defaults, **methods, **settings}
        return app_id

    def points_at(self, number: str) -> Callback | None:
        found = self.numbers.get(number)
        application = self.applications.get(found.settings["app_id"]) if found is not None else None
        if application is None or not application["answer_url"]:
            return None
        return read_callback(application["answer_url"], application["answer_method"], "", "the application")

    def answer(self, request: WebhookRequest) -> Answer | None:
        path = _RESOURCE.fullmatch(urlsplit(request.url).path)
        if path is None:
            return None
        if self.account_id and unquote(path[1]) != self.account_id:
            return _error("resource not found", 404)
        kind, *rest = [unquote(part) for part in path[2].rstrip("/").split("/")]
        try:
            if kind == "":
                return self._account() if request.method == "GET" else None
            if kind == "Number":
                return self._answer_number(request, rest)
            if kind == "Application":
                return self._answer_application(request, rest)
            if kind == "Call":
                return self._answer_call(request, rest)
            if kind == "Request":
                return self._answer_request(request, rest)
        except _Refused as refused:
            return _error(refused.message, refused.status)
        return None

    # https://docs.plivo.com/docs/account/api/account/the-account-object
    def _account(self) -> Answer:
        content = {
            "account_type": "developer" if self.is_trial else "standard",
            "address": "",
            "auth_id": self.account_id,
            "auto_recharge": False,
            "billing_mode": "prepaid",
            "cash_credits": self.credits,
            "city": "",
            "name": self.name,
            "resource_uri": self._uri(),
            "state": "",
            "timezone": "UTC",
        }
        return _told(content)

    # https://docs.plivo.com/docs/numbers/api/account-phone-number
    def _answer_number(self, request: WebhookRequest, rest: list[str]) -> Answer | None:
        if not rest:
            return self._page(request, "Number", [self._number(each) for each in self.numbers.values()])
        number = self.numbers.get(with_plus(rest[0]))
        if number is None:
            raise _Refused(_NOT_FOUND, 404)
        if request.method == "GET":
            return _told(self._number(number))
        if request.method != "POST":
            return None
        content = _content(request)
        if "app_id" in content:
            app_id = str(content["app_id"] or "")
            if app_id and app_id not in self.applications:
                raise _Refused("app_id: no such application")
            number.settings["app_id"] = app_id
        number.name = str(content.get("alias", number.name))
        return _told({"message": "changed"}, 202)

    def _number(self, number: FakeNumber) -> dict[str, Any]:
        app_id = number.settings["app_id"]
        return {
            "active": True,
            "added_on": "2025-06-01",
            "alias": number.name or None,
            "application": self._uri("Application", app_id) if app_id else None,
            "carrier": "Plivo",
            "compliance_application_id": None,
            "compliance_status": number.settings.get("compliance_status"),
            "country": "United States",
            "number": number.number_id,
            "number_type": "local",
            "resource_uri": self._uri("Number", number.number_id),
            "sms_enabled": True,
            "sub_account": None,
            "voice_enabled": number.has_voice,
            "voice_rate": "0.00850",
        }

    # https://docs.plivo.com/docs/account/api/application
    def _answer_application(self, request: WebhookRequest, rest: list[str]) -> Answer | None:
        if not rest:
            if request.method == "GET":
                return self._page(request, "Application", [self._application(each) for each in self.applications])
            return self._create_application(_content(request)) if request.method == "POST" else None
        if rest[0] not in self.applications:
            raise _Refused(_NOT_FOUND, 404)
        if request.method == "GET":
            return _told(self._application(rest[0]))
        if request.method == "POST":
            known = self.applications[rest[0]]
            known.update({name: value for name, value in _content(request).items() if name in known})
            return _told({"message": "changed"}, 202)
        if request.method != "DELETE":
            return None
        del self.applications[rest[0]]
        for number in self.numbers.values():
            if number.settings["app_id"] == rest[0]:
                number.settings["app_id"] = ""
        return Answer("", "application/json", 204)

    def _create_application(self, content: Mapping[str, Any]) -> Answer:
        name = content.get("app_name")
        if not isinstance(name, str) or not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise _Refused("app_name: only letters, digits, - and _ are allowed")
        if any(each["app_name"] == name for each in self.applications.values()):
            raise _Refused("app_name: there is an application of that name")
        _address(content, "answer_url", "answer_method")
        texts = {key: value for key, value in content.items() if isinstance(value, str) and key != "app_name"}
        return _told({"app_id": self.add_application(name, **texts), "message": "created"}, 201)

    def _application(self, app_id: str) -> dict[str, Any]:
        return {
            **self.applications[app_id],
            "default_app": False,
            "default_endpoint_app": False,
            "enabled": True,
            "public_uri": False,
            "resource_uri": self._uri("Application", app_id),
            "sip_uri": f"sip:{app_id}@app.plivo.com",
            "sub_account": None,
        }

    # Calls: https://docs.plivo.com/docs/voice/api/call

    def _answer_call(self, request: WebhookRequest, rest: list[str]) -> Answer | None:
        """Answer what concerns a call that was placed; ``None`` for one that is not ours, which may be in progress."""
        if not rest:
            return self._place(_content(request)) if request.method == "POST" else None
        call = self.calls.get(rest[0]) or self._requested(rest[0])
        if call is None:
            return None
        if request.method == "GET":
            return self._look_up(call, dict(request.query).get("status", ""))
        if call.stage in ENDED_STAGES:
            raise _Refused("call not found", 404)
        if request.method == "DELETE":
            return self._hang_up(call)
        if request.method != "POST":
            return None
        content = _content(request)
        if rest[1:] == ["DTMF"]:
            try:
                digits = read_digits(str(content.get("digits", "")))
            except RemoteProtocolError as error:
                raise _Refused(error.message) from None
            self.on_command(call, "digits", digits)
            return _told({"message": "digits sent"}, 202)
        if content.get("legs", "aleg") != "aleg":
            raise _Refused("a call that was not dialled on has no bleg")
        self.on_command(call, "transfer", _address(content, "aleg_url", "aleg_method").url)
        return _told({"call_uuids": [call.call.call_id], "message": "call transferred"}, 202)

    def _answer_request(self, request: WebhookRequest, rest: list[str]) -> Answer | None:
        """Answer what concerns a call that was placed and has not been answered."""
        call = self._requested(rest[0]) if rest else None
        if request.method != "DELETE" or call is None or call.stage not in ("queued", "ringing"):
            raise _Refused("request not found", 404)
        return self._hang_up(call)

    def _requested(self, request_id: str) -> FakeCall | None:
        return next((each for each in self.calls.values() if each.request_id == request_id), None)

    def _hang_up(self, call: FakeCall) -> Answer:
        stage: Stage = "completed" if call.stage == "answered" else "canceled"
        self.end(call, stage, USUAL_CAUSES[stage])
        self.on_ended(call)
        return Answer("", "application/json", 204)

    def _place(self, content: Mapping[str, Any]) -> Answer:
        """
        Place a call: https://docs.plivo.com/docs/voice/api/call/make-a-call

        A caller ID that is not the account's is no error yet; the call ends of it.
        """
        caller, called = (str(content.get(name) or "") for name in ("from", "to"))
        if not caller or not called:
            raise _Refused(f"{'from' if not caller else 'to'} parameter is missing")
        if caller == called:
            raise _Refused("from and to are the same")
        webhook = _address(content, "answer_url", "answer_method")
        ring, hangup, machine = (_optional(content, name) for name in ("ring", "hangup", "machine_detection"))
        detects = str(content.get("machine_detection", "")).lower() in ("true", "hangup")
        if self.is_trial and with_plus(called) not in self.verified:
            raise _Refused("a trial account can only call verified numbers", 403)
        ids = self.new_seed()
        call_id = str(uuid.UUID(bytes=ids[:16], version=4))
        call = Call("plivo", call_id, "", self.account_id, with_plus(caller), with_plus(called), "outbound")
        reports: frozenset[Stage] = ENDED_STAGES if hangup else frozenset()
        if ring and hangup in (None, ring):
            reports |= {"ringing"}
        placed = FakeCall(
            call,
            webhook=webhook,
            status=hangup or ring,
            reports=reports,
            machine=machine if detects else None,
            detection="detect" if detects else "off",
            ring_timeout_s=_seconds(content, "ring_timeout", 120),
            time_limit_s=_seconds(content, "time_limit", 14_400),
            request_id=stable_uuid(call_id),
        )
        self.calls[call_id] = placed
        if with_plus(caller) not in self.numbers:
            self.end(placed, "failed", "3030")
        self.on_placed(placed)
        return _told({"message": "call fired", "request_uuid": placed.request_id}, 201)

    def _look_up(self, call: FakeCall, status: str) -> Answer:
        is_over, is_queued = call.stage in ENDED_STAGES, call.stage == "queued"
        if status in ("live", "queued") and not is_over and is_queued == (status == "queued"):
            waiting = {"request_uuid": call.request_id, "session_start": _BEGAN.format(0)}
            live = {**live_call(call.call, _STATUSES[call.stage]), **waiting}
            return _told({**live, **({"call_status": "queued"} if is_queued else {})})
        if status or not is_over:
            raise _Refused("call not found", 404)
        return _told(self._record(call))

    def _record(self, call: FakeCall) -> dict[str, Any]:
        """Return the record of a call that is over: https://docs.plivo.com/docs/voice/api/call/the-call-object"""
        code = call.cause if call.cause in HANGUP_CAUSES else USUAL_CAUSES[call.stage]
        answered, seconds = call.stage == "completed", math.ceil(call.duration_s)
        billed = -(-seconds // 60) * 60
        return {
            "answer_time": _BEGAN.format(_RINGS_FOR_S) if answered else None,
            "bill_duration": seconds if answered else 0,
            "billed_duration": billed,
            "call_direction": call.call.direction,
            "call_duration": seconds if answered else 0,
            "call_state": next(name for name, stage in STAGES.items() if stage == call.stage).upper(),
            "call_uuid": call.call.call_id,
            "end_time": _BEGAN.format(min(59, _RINGS_FOR_S + seconds)),
            "from_number": call.call.from_number,
            "hangup_cause_code": int(code),
            "hangup_cause_name": HANGUP_CAUSES[code].name,
            "hangup_source": "Plivo" if call.stage == "failed" else "API Request",
            "initiation_time": _BEGAN.format(0),
            "parent_call_uuid": None,
            "resource_uri": self._uri("Call", call.call.call_id),
            "to_number": without_plus(call.call.to_number),
            "total_amount": f"{billed / 60 * 0.0085:.5f}",
            "total_rate": "0.00850",
        }

    def _page(self, request: WebhookRequest, resource: str, objects: list[dict[str, Any]]) -> Answer:
        if request.method != "GET":
            raise _Refused("the method is not allowed", 405)
        query = dict(request.query)
        limit, offset = read_counter(query.get("limit", str(PAGE_SIZE))), read_counter(query.get("offset", "0"))
        if not limit or limit > PAGE_SIZE or offset is None:
            raise _Refused("limit is 1 to 20, and offset a number")
        following = {"limit": limit, "offset": offset + limit}
        more = f"{self._uri(resource)}?{urlencode(following)}" if offset + limit < len(objects) else None
        meta = {"limit": limit, "next": more, "offset": offset, "previous": None, "total_count": len(objects)}
        return _told({"meta": meta, "objects": objects[offset : offset + limit]})

    def _uri(self, *path: str) -> str:
        return "/".join(("/v1/Account", self.account_id, *path)) + "/"


def stable_uuid(about: str) -> str:
    """Return an id that is always the same: of an answer, or of a call's request."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, about))


def live_call(call: Call, status: str) -> dict[str, Any]:
    """Return a call that goes on: https://docs.plivo.com/docs/voice/api/call/retrieve-a-live-call"""
    return {
        "call_status": status,
        "call_uuid": call.call_id,
        "caller_name": without_plus(call.from_number),
        "direction": call.direction,
        "from": without_plus(call.from_number),
        "to": without_plus(call.to_number),
    }


def _told(content: dict[str, Any], status: int = 200) -> Answer:
    return json_answer({"api_id": stable_uuid(str(content)), **content}, status)


def _error(message: str, status: int) -> Answer:
    return _told({"error": message}, status)


def _content(request: WebhookRequest) -> dict[str, Any]:
    """Return the fields of a body: JSON, or a form."""
    if not request.is_json:
        return dict(request.form)
    try:
        return request.read_json()
    except RemoteProtocolError as error:
        raise _Refused(error.message) from None


def _address(content: Mapping[str, Any], name: str, method: str) -> Callback:
    try:
        found = read_callback(_text(content, name), _text(content, method), "", name)
    except RemoteProtocolError as error:
        raise _Refused(error.message) from None
    if found is None:
        raise _Refused(f"{name} parameter is missing")
    return found


def _optional(content: Mapping[str, Any], name: str) -> Callback | None:
    """Return the address that a field ending in ``_url`` names, with the method that goes with it."""
    return _address(content, f"{name}_url", f"{name}_method") if content.get(f"{name}_url") else None


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise _Refused(f"{name} is no text")
    return value or ""


def _seconds(content: Mapping[str, Any], name: str, default: int) -> float:
    seconds = read_counter(content.get(name, default))
    if seconds is None:
        raise _Refused(f"{name} is not a number of seconds")
    return float(seconds)
