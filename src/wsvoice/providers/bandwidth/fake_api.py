"""Bandwidth's API in a test call: https://dev.bandwidth.com/apis/voice-apis/voice"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Literal
from urllib.parse import unquote, urlsplit
from xml.etree.ElementTree import Element

from wsvoice.call import Call
from wsvoice.providers.bandwidth.company import DOCUMENT_LIMIT, TOKEN_PATH, VOICE_PATH
from wsvoice.providers.bandwidth.fake_account import BandwidthFakeAccount, access_token, refusal
from wsvoice.providers.base import Answer, CallStatus, Command, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi, json_answer, read_digits, read_update
from wsvoice.providers.fields import broken, shown
from wsvoice.providers.signing import is_same
from wsvoice.providers.xml_answer import read_root

_CALL = re.compile(re.escape(VOICE_PATH) + r"[^/]+/calls/([^/]+)(/bxml)?")
_STATES: dict[CallStatus, str] = {"ringing": "initiated", "in-progress": "answered", "completed": "disconnected"}
_ERRORS = {400: "validation", 401: "authentication-error", 404: "not-found"}


class BandwidthApi(FakeApi):
    """Calls, with the token that the client's credentials are exchanged for."""

    users: ClassVar[tuple[tuple[str, str], ...]] = (("BANDWIDTH_CLIENT_ID", "BANDWIDTH_CLIENT_SECRET"),)
    account_type: ClassVar[type[FakeAccount] | None] = BandwidthFakeAccount

    def is_authorised(self, request: WebhookRequest) -> bool:
        if urlsplit(request.url).path == TOKEN_PATH or not self.company.credential("BANDWIDTH_CLIENT_SECRET"):
            return super().is_authorised(request)
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and is_same(token, access_token(self.company))

    def read_command(self, request: WebhookRequest) -> Command | None:
        match = _CALL.fullmatch(urlsplit(request.url).path)
        if match is None or request.method not in (("PUT",) if match[2] else ("GET", "POST")):
            return None
        call_id = unquote(match[1])
        if match[2]:
            verbs = list(read_root(request.body, DOCUMENT_LIMIT))
            digits = _pressed(verbs)
            return Command("digits", call_id, digits=digits) if digits else Command("update", call_id, request.body)
        if request.method == "GET":
            return Command("look-up", call_id)
        content = request.content
        state = content.get("state", "active")
        if state == "completed":
            return Command("hang-up", call_id)
        if state != "active":
            raise broken("bad-command", f"state is {shown(state)}, neither active nor completed")
        url, method = (text if isinstance(text := content.get(name), str) else None for name in _REDIRECT)
        return read_update(call_id, url, method, "redirectUrl", "redirectUrl is missing, which an active call needs")

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        if command.kind == "look-up":
            ends = {"from": call.from_number, "to": call.to_number, "direction": call.direction}
            identity = {"accountId": call.account_id, "callId": call.call_id}
            return json_answer({**identity, **ends, "state": _STATES[status]})
        replaced = command.kind == "digits" or command.document
        return Answer("", "application/json", 204 if replaced else 200)

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        return refusal(status, _ERRORS[status], message)


_REDIRECT = ("redirectUrl", "redirectMethod")


def _pressed(verbs: Sequence[Element]) -> str:
    """Return the keys that a document presses before it waits for the stream again; empty for any other document."""
    if [verb.tag for verb in verbs] != ["SendDtmf", "StopStream"] or verbs[1].get("wait") != "true":
        return ""
    return read_digits("".join(verbs[0].itertext()).strip())
