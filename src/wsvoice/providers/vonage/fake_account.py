"""
Vonage's account without Vonage: balance, numbers, applications, and the calls that one application places.

Calls: https://developer.vonage.com/en/api/voice
Numbers: https://developer.vonage.com/en/api/numbers
Applications: https://developer.vonage.com/en/api/application.v2
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.base import Answer, Callback, Company, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fake_api import json_answer
from wsvoice.providers.fields import broken, shown, with_plus, without_plus
from wsvoice.providers.urls import read_callback

#: The stages that an event webhook reports, by default all of them.
REPORTS: frozenset[Stage] = ENDED_STAGES | {"queued", "ringing", "answered"}
#: What a call's status is called: https://developer.vonage.com/en/voice/voice-api/webhook-reference#event-webhook
STATUSES: Mapping[Stage, str] = {
    "queued": "started",
    "ringing": "ringing",
    "answered": "answered",
    "completed": "completed",
    "busy": "busy",
    "no-answer": "timeout",
    "failed": "failed",
    "canceled": "cancelled",
}
#: What the types of the API's errors begin with.
ERRORS_URL = "https://developer.vonage.com/api-errors"
#: What is charged for a minute, in euros.
RATE = 0.0127

_PATH = re.compile(
    r"/(account/get-balance|account/numbers|number/update|v2/applications|v1/calls)(?:/([^/]+))?(/dtmf)?"
)
_DIGITS = re.compile("[0-9#*p]+")


class VonageFakeAccount(FakeAccount):
    """
    The account.

    Attributes:
        balance: In euros.
        applications: As the API tells them, by id.
    """

    def __init__(self, company: Company, seed: bytes) -> None:
        super().__init__(company, seed)
        self.balance = 10.0
        self.applications: dict[str, dict[str, Any]] = {}
        if application_id := company.credential("VONAGE_APPLICATION_ID"):
            self.add_application("Application", application_id=application_id)

    def add_application(self, name: str, *, application_id: str = "", **capabilities: Any) -> str:
        """Add an application, and return its id."""
        application_id = application_id or str(uuid.UUID(bytes=self.new_seed()[:16], version=4))
        keys = {"public_key": "-----BEGIN PUBLIC KEY-----\n"}
        privacy = {"improve_ai": False}
        content = {"id": application_id, "name": name, "keys": keys, "privacy": privacy, "capabilities": capabilities}
        self.applications[application_id] = content
        return application_id

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        """Add a number; numbers have no names here. Its `settings` may say ``app_id``, ``voiceCallbackType`` …"""
        settings = {"country": "GB", **settings}
        self.numbers[number] = FakeNumber(number, without_plus(number), name, has_voice, settings)
        return self.numbers[number]

    def points_at(self, number: str) -> Callback | None:
        settings = self.numbers[number].settings
        application = self.applications.get(settings.get("app_id", ""))
        if application is None or settings.get("voiceCallbackType") in ("sip", "tel"):
            return None
        webhooks = application["capabilities"].get("voice", {}).get("webhooks", {})
        answer = webhooks.get("answer_url", {})
        return read_callback(answer.get("address"), answer.get("http_method", "GET"), "", "answer_url")

    def answer(self, request: WebhookRequest) -> Answer | None:
        match = _PATH.fullmatch(urlsplit(request.url).path)
        if match is None:
            return None
        kind, name, part = match.groups()
        name = unquote(name or "")
        if kind == "v1/calls":
            return self._answer_call(request, name, part or "")
        if kind == "v2/applications":
            return self._answer_application(request, name)
        if kind == "account/get-balance":
            return json_answer({"value": self.balance, "autoReload": False})
        return self._list_numbers(request) if kind == "account/numbers" else self._update_number(request)

    # Numbers

    def _list_numbers(self, request: WebhookRequest) -> Answer:
        query = dict(request.query)
        pattern, how = query.get("pattern", ""), query.get("search_pattern", "0")
        matches = {"0": str.startswith, "1": str.__contains__, "2": str.endswith}[how]
        found = [each for each in self.numbers.values() if matches(each.number_id, pattern)]
        if wanted := query.get("application_id"):
            found = [each for each in found if each.settings.get("app_id") == wanted]
        size, index = int(query.get("size", "10")), int(query.get("index", "1"))
        page = found[(index - 1) * size : index * size]
        content = [
            {"msisdn": each.number_id, "type": "landline", "features": _features(each), **each.settings}
            for each in page
        ]
        # An empty list says nothing at all.
        return json_answer({"count": len(found), "numbers": content} if found else {})

    def _update_number(self, request: WebhookRequest) -> Answer:
        """Replace what a number is set to; what is not said is taken away."""
        fields = dict(request.form)
        number = self.numbers.get(with_plus(fields.pop("msisdn", "")))
        if number is None or fields.get("country") != number.settings["country"]:
            return json_answer({"error-code": "420", "error-code-label": "method failed"}, 420)
        if fields.get("app_id", "") not in ("", *self.applications):
            return json_answer({"error-code": "420", "error-code-label": "Application ID not found"}, 420)
        number.settings = {name: value for name, value in fields.items() if value}
        return json_answer({"error-code": "200", "error-code-label": "success"})

    # Applications

    def _answer_application(self, request: WebhookRequest, name: str) -> Answer:
        if not name and request.method == "GET":
            return self._list_applications(request)
        if request.method in ("POST", "PUT"):
            content = request.content
            if not content.get("name"):
                return refusal(400, "payload-validation", "The request failed due to validation errors")
        if not name and request.method == "POST":
            name = self.add_application(content["name"], **content.get("capabilities", {}))
            return json_answer(self.applications[name], 201)
        if name not in self.applications:
            return refusal(404, "not-found", "The requested resource does not exist, or you cannot access it")
        if request.method == "DELETE":
            del self.applications[name]
            for number in self.numbers.values():
                if number.settings.get("app_id") == name:
                    del number.settings["app_id"]
            return Answer("", "application/json", 204)
        if request.method == "PUT":
            # It is replaced as a whole; without a key of the request's it keeps the one that it has.
            keys = content.get("keys") or self.applications[name]["keys"]
            self.applications[name] = {**content, "id": name, "keys": keys}
        return json_answer(self.applications[name])

    def _list_applications(self, request: WebhookRequest) -> Answer:
        query, everything = dict(request.query), list(self.applications.values())
        size, page = int(query.get("page_size", "10")), int(query.get("page", "1"))
        return json_answer(
            {
                "page_size": size,
                "page": page,
                "total_items": len(everything),
                "total_pages": max(1, -(-len(everything) // size)),
                "_links": {"self": {"href": f"/v2/applications?page_size={size}&page={page}"}},
                "_embedded": {"applications": everything[(page - 1) * size : page * size]},
            }
        )

    # Calls

    def _answer_call(self, request: WebhookRequest, call_id: str, part: str) -> Answer | None:
        if not call_id:
            return self._place(request) if request.method == "POST" else self._list_calls(request)
        call = self.calls.get(call_id)
        if call is None:
            return None
        if request.method == "GET" and not part:
            return json_answer(self._tell(call))
        content = request.content
        if call.stage in ENDED_STAGES:
            return refusal(404, "not-found", "The call is over")
        if part:
            try:
                digits = read_digits(content.get("digits"))
            except RemoteProtocolError as error:
                return refusal(400, "invalid-params", error.message)
            self.on_command(call, "digits", digits)
            return json_answer({"message": "DTMF sent", "uuid": call_id})
        if content.get("action") == "hangup":
            self.end(call, "completed" if call.stage == "answered" else "canceled")
            self.on_ended(call)
        elif content.get("action") == "transfer" and (to := read_destination(content)):
            self.on_command(call, "transfer", to)
        else:
            return refusal(400, "invalid-params", "action")
        return Answer("", "application/json", 204)

    def _place(self, request: WebhookRequest) -> Answer:
        """Place a call: https://developer.vonage.com/en/api/voice#createCall"""
        try:
            call = self._read_call(request.content)
        except (RemoteProtocolError, KeyError, IndexError, TypeError, ValueError) as error:
            return refusal(400, "invalid-params", f"The value of a parameter is invalid: {error}")
        if self.balance <= 0:
            return refusal(402, "low-balance", "Your account balance is low")
        self.calls[call.call.call_id] = call
        self.on_placed(call)
        identity = {"uuid": call.call.call_id, "conversation_uuid": conversation_id(call.call)}
        return json_answer({**identity, "status": "started", "direction": "outbound"}, 201)

    def _read_call(self, content: Mapping[str, Any]) -> FakeCall:
        to, begun = content["to"][0], content["from"]
        if to["type"] != "phone" or begun["type"] != "phone":
            raise ValueError("only telephones are simulated")
        numbers = (begun["number"], to["number"])
        if not all(re.fullmatch(r"[1-9]\d{6,14}", each) for each in numbers):
            raise ValueError("a number has 7 to 15 digits, and no plus")
        ring, limit = content.get("ringing_timer", 60), content.get("length_timer", 7200)
        if not (1 <= ring <= 120 and 1 <= limit <= 86400):
            raise ValueError("a timer")
        call_id = str(uuid.UUID(bytes=self.new_seed()[:16], version=4))
        from_number, to_number = map(with_plus, numbers)
        call = Call("vonage", call_id, "", "", from_number, to_number, "outbound")
        webhook = read_callback(content["answer_url"][0], content.get("answer_method", "GET"), "", "answer_url")
        status = read_callback(content["event_url"][0], content.get("event_method", "POST"), "", "event_url")
        machine = content.get("advanced_machine_detection")
        return FakeCall(
            call,
            webhook=webhook,
            status=status,
            reports=REPORTS,
            # There is no address of its own for it.
            machine=status if machine else None,
            detection=_read_detection(machine),
            ring_timeout_s=float(ring),
            time_limit_s=float(limit),
        )

    def _list_calls(self, request: WebhookRequest) -> Answer:
        query = dict(request.query)
        found = [self._tell(each) for each in self.calls.values()]
        if wanted := query.get("conversation_uuid"):
            found = [each for each in found if each["conversation_uuid"] == wanted]
        size = int(query.get("page_size", "10"))
        links = {"self": {"href": "/calls"}}
        listed = {"count": len(found), "page_size": size, "record_index": 0, "_links": links}
        return json_answer({**listed, "_embedded": {"calls": found[:size]}})

    def _tell(self, call: FakeCall) -> dict[str, Any]:
        """Return a call's record; what it cost and how long it took is told once it is over."""
        record: dict[str, Any] = {
            "_links": {"self": {"href": f"/calls/{call.call.call_id}"}},
            "uuid": call.call.call_id,
            "conversation_uuid": conversation_id(call.call),
            "status": STATUSES[call.stage],
            "direction": call.call.direction,
            "from": {"type": "phone", "number": without_plus(call.call.from_number)},
            "to": {"type": "phone", "number": without_plus(call.call.to_number)},
        }
        return record | (completed_fields(call.duration_s) if call.stage == "completed" else {})


def refusal(status: int, code: str, detail: str) -> Answer:
    """Return an error of the API's: https://developer.vonage.com/en/api-errors"""
    title = code.replace("-", " ").capitalize()
    return json_answer({"type": f"{ERRORS_URL}#{code}", "title": title, "detail": detail}, status)


def conversation_id(call: Call) -> str:
    """Return the conversation that a call is a leg of."""
    return f"CON-{uuid.uuid5(uuid.NAMESPACE_URL, call.call_id)}"


def completed_fields(duration_s: float, began: str = "2020-01-01 12:00:00", ended: str = "") -> dict[str, str]:
    """Return what is told of a call that was answered, and is over."""
    price = f"{RATE * duration_s / 60:.8f}"
    times = {"start_time": began, "end_time": ended or began}
    return {**times, "duration": f"{duration_s:.0f}", "rate": f"{RATE:.8f}", "price": price, "network": "GB-FIXED"}


def read_destination(content: Mapping[str, Any]) -> str:
    """Return whom an inline NCCO of a transfer connects to; empty for none, or for another document."""
    destination = content.get("destination")
    ncco = destination.get("ncco") if isinstance(destination, dict) else None
    try:
        [endpoint] = ncco[0]["endpoint"]  # type: ignore[index]
    except (TypeError, KeyError, IndexError, ValueError):
        return ""
    return with_plus(str(endpoint.get("number") or endpoint.get("uri") or ""))


def read_digits(written: object) -> str:
    """Return the keys that a request asks to press, with ``w`` for a pause; anything else is a ``bad-command``."""
    if not isinstance(written, str) or not _DIGITS.fullmatch(written):
        raise broken("bad-command", f"digits is {shown(written)}, not of 0-9 * # p")
    return written.replace("p", "w")


def _features(number: FakeNumber) -> list[str]:
    return ["VOICE", "SMS"] if number.has_voice else ["SMS"]


def _read_detection(machine: object) -> str:
    if not isinstance(machine, dict):
        return "off"
    modes = {"default": "greeting-end", "detect": "detect", "detect_beep": "greeting-end"}
    if machine["behavior"] not in ("continue", "hangup"):
        raise ValueError("behavior")
    return modes[machine.get("mode", "detect")]
