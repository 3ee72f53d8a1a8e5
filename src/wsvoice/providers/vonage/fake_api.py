"""Vonage's Voice API in a test call: https://developer.vonage.com/en/api/voice#updateCall"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.fake_api import FakeApi
from wsvoice.providers.fields import broken, shown
from wsvoice.providers.tokens import read_bearer, read_key

_CALL = re.compile(r".*/v1/calls/([^/]+)")


class VonageApi(FakeApi):
    """The call resource, with tokens that the application's private key has signed."""

    def is_authorised(self, request: WebhookRequest) -> bool:
        key = read_key(self.company.credential("VONAGE_PRIVATE_KEY"), "VONAGE_PRIVATE_KEY")
        claims = (read_bearer(request, key.public_key()) or {}) if key else {}
        return key is None or claims.get("application_id", "") == self.company.credential("VONAGE_APPLICATION_ID")

    def read_command(self, request: WebhookRequest) -> Command | None:
        match = _CALL.fullmatch(urlsplit(request.url).path)
        if match is None or request.method != "PUT":
            return None
        if (action := request.content.get("action")) != "hangup":
            raise broken("bad-command", f"the action is {shown(action)}; a test call knows none but hangup")
        return Command("hang-up", unquote(match[1]))

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        return Answer("", "application/json", 204)
