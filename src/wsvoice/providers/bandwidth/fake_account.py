"""
Bandwidth's account without Bandwidth: a token, and the calls that are placed with it.

https://dev.bandwidth.com/apis/voice-apis/voice
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any
from urllib.parse import unquote, urlsplit

from wsvoice.call import ENDED_STAGES, Call, Stage
from wsvoice.errors import RemoteProtocolError
from wsvoice.providers.bandwidth.company import DOCUMENT_LIMIT, GREETING_TAG, TOKEN_PATH, VOICE_PATH
from wsvoice.providers.base import Answer, Callback, Company, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount, FakeCall, FakeNumber
from wsvoice.providers.fake_api import json_answer
from wsvoice.providers.fields import write_time
from wsvoice.providers.urls import read_callback
from wsvoice.providers.xml_answer import read_root

_PATH = re.compile(re.escape(VOICE_PATH) + r"([^/]+)/(statistics|calls(?:/([^/]+)(/bxml)?)?)")
_NUMBER = re.compile(r"\+[1-9]\d{6,14}")
_STATES: Mapping[Stage, str] = {"queued": "queued", "ringing": "initiated", "answered": "answered"}
#: What ended a call, by how it ended: https://dev.bandwidth.com/docs/voice/webhooks/disconnect
CAUSES: Mapping[Stage, str] = {
    "completed": "hangup",
    "busy": "busy",
    "no-answer": "timeout",
    "canceled": "cancel",
    "failed": "error",
}


class BandwidthFakeAccount(FakeAccount):
    """The account; what its numbers point at is no business of this API's."""

    def add_number(self, number: str, *, name: str = "", has_voice: bool = True, **settings: str) -> FakeNumber:
        self.numbers[number] = FakeNumber(number, number, name, has_voice, settings)
        return self.numbers[number]

    def points_at(self, number: str) -> Callback | None:
        return None

    def answer(self, request: WebhookRequest) -> Answer | None:
        path = urlsplit(request.url).path
        if path == TOKEN_PATH:
            # https://dev.bandwidth.com/docs/account/credentials/migration
            token = {"access_token": access_token(self.company), "token_type": "Bearer", "expires_in": 3600}
            return json_answer(token)
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        account_id, kind, call_id, bxml = match.groups()
        if account_id != (self.company.credential("BANDWIDTH_ACCOUNT_ID") or account_id):
            return refusal(403, "authorization-error", "Access is denied")
        if kind == "statistics":
            return json_answer({"currentCallQueueSize": 0, "maxCallQueueSize": 900})
        if call_id is None:
            return self._place(request, account_id) if request.method == "POST" else None
        call = self.calls.get(unquote(call_id))
        if call is None:
            return None
        if request.method == "GET":
            return json_answer(self._tell(call))
        if call.stage in ENDED_STAGES:
            return refusal(404, "not-found", "The call is no longer active")
        if call.stage == "queued":
            return refusal(409, "conflict", "The call is still in the queue")
        return self._replace(call, request.body) if bxml else self._update(call, request)

    def _place(self, request: WebhookRequest, account_id: str) -> Answer:
        """Place a call: https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/createCall"""
        content = request.content
        for name in ("from", "to"):
            if not _NUMBER.fullmatch(str(content.get(name))):
                return refusal(400, "validation", f"Invalid {name}: must be an E164 telephone number")
        if content["from"] not in self.numbers:
            return refusal(400, "validation", "Invalid from: not a number of the account")
        known = self.company.credential("BANDWIDTH_APPLICATION_ID")
        if content.get("applicationId") != (known or content.get("applicationId")):
            return refusal(400, "validation", "Invalid applicationId")
        timeout, machine = content.get("callTimeout", 30), content.get("machineDetection")
        if not isinstance(timeout, int | float) or not 1 <= timeout <= 300:
            return refusal(400, "validation", "Invalid callTimeout: must be between 1 and 300")
        try:
            webhook = read_callback(content.get("answerUrl"), content.get("answerMethod"), "", "answerUrl")
            status = read_callback(content.get("disconnectUrl"), content.get("disconnectMethod"), "", "disconnectUrl")
            machine_url = read_callback(machine.get("callbackUrl"), "", "", "callbackUrl") if machine else None
        except RemoteProtocolError as error:
            return refusal(400, "validation", error.message)
        if webhook is None:
            return refusal(400, "validation", "Invalid answerUrl: must not be null")
        call_id = shaped_id("c", self.new_seed())
        call = FakeCall(
            Call("bandwidth", call_id, "", account_id, content["from"], content["to"], "outbound"),
            webhook=webhook,
            status=status,
            reports=ENDED_STAGES,
            machine=machine_url,
            detection=_read_detection(content),
            ring_timeout_s=float(timeout),
        )
        self.calls[call.call.call_id] = call
        self.on_placed(call)
        # Nobody is told a password that they have sent.
        told = {name: value for name, value in content.items() if name not in ("password", "machineDetection")}
        identity = {"accountId": account_id, "callId": call.call.call_id, "callUrl": call_url(call.call)}
        return json_answer({**told, **identity, "enqueuedTime": write_time(0.0), "callTimeout": timeout}, 201)

    def _update(self, call: FakeCall, request: WebhookRequest) -> Answer:
        content = request.content
        if content.get("state") != "completed":
            return refusal(400, "validation", "Invalid state: only completed is simulated")
        self.end(call, "completed" if call.stage == "answered" else "canceled")
        self.on_ended(call)
        return Answer("", "application/json")

    def _replace(self, call: FakeCall, bxml: bytes) -> Answer:
        """Carry out a document that replaces the call's, as far as our own ask for it."""
        try:
            verbs = list(read_root(bxml, DOCUMENT_LIMIT))
        except RemoteProtocolError as error:
            return refusal(400, "validation", error.message)
        for verb in verbs:
            if verb.tag == "SendDtmf":
                self.on_command(call, "digits", (verb.text or "").strip())
            elif verb.tag == "Transfer":
                self.on_command(call, "transfer", "".join(each.text or "" for each in verb).strip())
        return Answer("", "application/json", 204)

    def _tell(self, call: FakeCall) -> dict[str, Any]:
        """Return a call's state: https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/getCallState"""
        record: dict[str, Any] = {
            "accountId": call.call.account_id,
            "callId": call.call.call_id,
            "from": call.call.from_number,
            "to": call.call.to_number,
            "direction": call.call.direction,
            "state": _STATES.get(call.stage, "disconnected"),
            "startTime": write_time(0.0),
            "lastUpdate": write_time(0.0),
        }
        if call.stage in ("answered", "completed"):
            record["answerTime"] = write_time(0.0)
        if call.stage in ENDED_STAGES:
            record |= {"endTime": write_time(call.duration_s), "disconnectCause": call.cause or CAUSES[call.stage]}
        return record


def access_token(company: Company) -> str:
    """Return the token that the client's credentials are good for."""
    secret = company.credential("BANDWIDTH_CLIENT_ID") + ":" + company.credential("BANDWIDTH_CLIENT_SECRET")
    return hashlib.sha256(b"token" + secret.encode()).hexdigest()


def shaped_id(kind: str, seed: bytes) -> str:
    """Return an id as Bandwidth writes it, such as ``c-95ac8d6e-1a31c52e-b38f-4198-93c1-51633ec68f8d``."""
    digits = seed[:20].hex()
    return "-".join((kind, *(digits[begin:end] for begin, end in pairwise((0, 8, 16, 20, 24, 28, 40)))))


def refusal(status: int, code: str, description: str) -> Answer:
    """Return an error of the API's: https://dev.bandwidth.com/docs/voice/errors"""
    return json_answer({"type": code, "description": description, "id": None}, status)


def call_url(call: Call) -> str:
    """Return the address of a call's resource."""
    return f"https://voice.bandwidth.com{VOICE_PATH}{call.account_id}/calls/{call.call_id}"


def _read_detection(content: Mapping[str, Any]) -> str:
    machine = content.get("machineDetection")
    if not isinstance(machine, dict):
        return "off"
    return "greeting-end" if machine.get("delayResult") and content.get("tag") == GREETING_TAG else "detect"
