"""Twilio's REST API in a test call: https://www.twilio.com/docs/voice/api/call-resource"""

from __future__ import annotations

import re
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi, json_answer, read_call_command
from wsvoice.providers.twilio.fake_account import TwilioFakeAccount, error_answer, error_page

_CALL = re.compile(r".*/2010-04-01/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?")


class TwilioApi(FakeApi):
    """The call resource, with the account's token or the secret of an API key."""

    account_type: ClassVar[type[FakeAccount] | None] = TwilioFakeAccount

    #: https://www.twilio.com/docs/usage/requests-to-twilio
    users: ClassVar[tuple[tuple[str, str], ...]] = (
        ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"),
        ("TWILIO_API_KEY", "TWILIO_API_SECRET"),
    )

    def read_command(self, request: WebhookRequest) -> Command | None:
        # https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
        match = _CALL.fullmatch(urlsplit(request.url).path)
        if match is None or request.method not in ("GET", "POST"):
            return None
        return read_call_command(request, unquote(match[1]), "Twiml")

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        # https://www.twilio.com/docs/voice/api/call-resource#call-properties
        uri = f"/2010-04-01/Accounts/{call.account_id}/Calls/{call.call_id}"
        resource = {
            "sid": call.call_id,
            "account_sid": call.account_id,
            "api_version": "2010-04-01",
            "direction": "outbound-api" if call.direction == "outbound" else "inbound",
            "from": call.from_number,
            "to": call.to_number,
            "status": status,
            "uri": f"{uri}.json",
            "subresource_uris": {"streams": f"{uri}/Streams.json"},
        }
        return json_answer(resource)

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        code = {400: 20001, 401: 20003, 404: 20404}[status]
        return error_answer(code, message, status, error_page(code))
