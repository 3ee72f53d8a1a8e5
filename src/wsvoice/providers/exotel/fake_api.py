"""Exotel's REST API in a test call: https://developer.exotel.com/docs/voice-v1/api-reference/call-details"""

from __future__ import annotations

import re
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.exotel.fake_account import ExotelFakeAccount, call_resource, error
from wsvoice.providers.fake_api import FakeApi, json_answer

_CALL = re.compile(r".*/v1/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?", re.IGNORECASE)


class ExotelApi(FakeApi):
    """The call resource, which can only be looked at, and what else the account has."""

    account_type = ExotelFakeAccount
    #: https://developer.exotel.com/docs/voice-v1/overview
    users: ClassVar[tuple[tuple[str, str], ...]] = (("EXOTEL_API_KEY", "EXOTEL_API_TOKEN"),)

    def read_command(self, request: WebhookRequest) -> Command | None:
        match = _CALL.fullmatch(urlsplit(request.url).path)
        return Command("look-up", unquote(match[1])) if match is not None and request.method == "GET" else None

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        return json_answer({"Call": call_resource(call, status)})

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        return error(status, message)
