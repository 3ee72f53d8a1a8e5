"""Plivo's REST API in a test call: https://www.plivo.com/docs/voice/api/overview"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.fake_api import FakeApi, json_answer, read_digits, read_fields, read_update
from wsvoice.providers.fields import broken
from wsvoice.providers.plivo.fake_account import PlivoFakeAccount, live_call, stable_uuid

_CALL = re.compile(r".*/Account/[^/]+/Call/([^/]+)/?")
_DTMF = re.compile(r".*/Account/[^/]+/Call/([^/]+)/DTMF/?")


class PlivoApi(FakeApi):
    """The call resource, with the account's token, and what else the account has."""

    account_type = PlivoFakeAccount

    #: https://www.plivo.com/docs/voice/api/overview#authentication
    users: ClassVar[tuple[tuple[str, str], ...]] = (("PLIVO_AUTH_ID", "PLIVO_AUTH_TOKEN"),)

    def read_command(self, request: WebhookRequest) -> Command | None:
        path = urlsplit(request.url).path
        if (match := _DTMF.fullmatch(path)) and request.method == "POST":
            # https://www.plivo.com/docs/voice/api/dtmf
            return Command("digits", unquote(match[1]), digits=read_digits(read_fields(request).get("digits", "")))
        if (match := _CALL.fullmatch(path)) is None:
            return None
        call_id = unquote(match[1])
        if request.method in ("DELETE", "GET"):
            return Command("hang-up" if request.method == "DELETE" else "look-up", call_id)
        if request.method != "POST":
            return None
        # https://www.plivo.com/docs/voice/api/call/transfer-a-call
        fields = read_fields(request)
        if fields.get("legs") == "bleg":
            raise broken("bad-command", "a call that was not dialled on has no bleg")
        url, method = fields.get("aleg_url"), fields.get("aleg_method")
        return read_update(call_id, url, method, "aleg_url", "aleg_url is missing")

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        told = stable_uuid(f"{command.kind}:{call.call_id}")
        if command.kind == "hang-up":
            return Answer("", "application/json", 204)
        if command.kind == "look-up":
            return json_answer({"api_id": told, **live_call(call, status)})
        content: dict[str, Any] = {"api_id": told, "message": "digits sent"}
        if command.kind == "update":
            content |= {"call_uuids": [call.call_id], "message": "call transferred"}
        return json_answer(content, 202)

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        # https://www.plivo.com/docs/voice/api/overview#http-status-codes
        return json_answer({"api_id": stable_uuid(message), "error": message}, status)
