"""Vonage's APIs in a test call: https://developer.vonage.com/en/api/voice"""

from __future__ import annotations

import json
import re
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi, json_answer, read_update
from wsvoice.providers.fields import broken, shown, without_plus
from wsvoice.providers.tokens import read_bearer, read_key
from wsvoice.providers.vonage.company import CALL_CREDENTIALS, NUMBER_CREDENTIALS
from wsvoice.providers.vonage.fake_account import VonageFakeAccount, conversation_id, read_digits, refusal

_CALL = re.compile(r"/v1/calls/([^/]+)(/dtmf)?")
_STATUSES: dict[CallStatus, str] = {"ringing": "ringing", "in-progress": "answered", "completed": "completed"}
_ERRORS = {400: "invalid-params", 401: "unauthorized", 404: "not-found"}


class VonageApi(FakeApi):
    """Calls, with tokens that the application's private key has signed; numbers and applications, with the API key."""

    users: ClassVar[tuple[tuple[str, str], ...]] = (NUMBER_CREDENTIALS,)
    account_type: ClassVar[type[FakeAccount] | None] = VonageFakeAccount

    def is_authorised(self, request: WebhookRequest) -> bool:
        if not urlsplit(request.url).path.startswith("/v1/calls"):
            return super().is_authorised(request)
        application, name = CALL_CREDENTIALS
        key = read_key(self.company.credential(name), name)
        claims = (read_bearer(request, key.public_key()) or {}) if key else {}
        return key is None or claims.get("application_id", "") == self.company.credential(application)

    def read_command(self, request: WebhookRequest) -> Command | None:
        match = _CALL.fullmatch(urlsplit(request.url).path)
        if match is None or request.method not in ("GET", "PUT"):
            return None
        call_id, content = unquote(match[1]), request.content
        if match[2]:
            return Command("digits", call_id, digits=read_digits(content.get("digits")))
        if request.method == "GET":
            return Command("look-up", call_id)
        if (action := content.get("action")) == "hangup":
            return Command("hang-up", call_id)
        destination = content.get("destination")
        if action != "transfer" or not isinstance(destination, dict):
            raise broken("bad-command", f"the action is {shown(action)}, neither hangup nor transfer to a destination")
        ncco, urls = destination.get("ncco"), destination.get("url")
        if isinstance(ncco, list):
            return Command("update", call_id, document=json.dumps(ncco).encode())
        url = urls[0] if isinstance(urls, list) and urls and isinstance(urls[0], str) else None
        return read_update(call_id, url, "GET", "destination", "the destination has neither ncco nor url")

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        if command.kind == "digits":
            return json_answer({"message": "DTMF sent", "uuid": call.call_id})
        if command.kind != "look-up":
            return Answer("", "application/json", 204)
        ends = {
            name: {"type": "phone", "number": without_plus(number)}
            for name, number in (("from", call.from_number), ("to", call.to_number))
        }
        identity = {"uuid": call.call_id, "conversation_uuid": conversation_id(call), "direction": call.direction}
        links = {"self": {"href": f"/calls/{call.call_id}"}}
        return json_answer({"_links": links, **identity, **ends, "status": _STATUSES[status]})

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        return refusal(status, _ERRORS[status], message)
