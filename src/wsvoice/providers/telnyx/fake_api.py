"""Telnyx's API in a test call: commands of Call Control, and the call resource of TeXML."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, StreamRequest, WebhookRequest
from wsvoice.providers.fake_api import FakeApi, json_answer, read_call_command, read_digits
from wsvoice.providers.fields import TEXT_LIMIT, broken, read_parameters, read_text, shown
from wsvoice.providers.signing import is_same
from wsvoice.providers.telnyx.company import API_NAMES, stable_uuid
from wsvoice.providers.telnyx.stream import named_values
from wsvoice.providers.urls import read_stream_url
from wsvoice.providers.xml_answer import Reading

if TYPE_CHECKING:
    from wsvoice.providers.telnyx.simulator import TelnyxSimulator

_COMMAND = re.compile(r".*/calls/([^/]+)/actions/([a-z_]+)")
_CALL = re.compile(r".*/calls/([^/]+)")
_TEXML_CALL = re.compile(r".*/texml/Accounts/[^/]+/Calls/([^/]+?)(?:\.json)?")


class TelnyxApi(FakeApi):
    """The API, whose key is a bearer token."""

    company: TelnyxSimulator

    def is_authorised(self, request: WebhookRequest) -> bool:
        # https://developers.telnyx.com/development/api-fundamentals/authentication
        key = self.company.credential("TELNYX_API_KEY")
        return not key or is_same(f"Bearer {key}", request.headers.get("authorization", ""))

    def read_answer_request(self, request: WebhookRequest, *, call_id: str = "") -> StreamRequest | None:
        # https://developers.telnyx.com/api-reference/call-commands/answer-call
        answered, action = _read_action(request)
        if action != "answer" or (call_id and answered != call_id):
            return None
        content = request.read_json()
        written = content.get("stream_url")
        if not isinstance(written, str) or not written:
            raise broken("no-stream", "the call is answered without a stream_url")
        reading = Reading()
        url = read_stream_url(written)
        if url.scheme == "ws":
            reading.found("warn", "the stream's URL is ws://; Telnyx refuses all but wss://")
        told = {name: str(value) for name, value in content.items() if isinstance(value, str | int)}
        inbound, outbound = self.company.read_settings(told, API_NAMES, reading)
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

    def read_command(self, request: WebhookRequest) -> Command | None:
        # https://developers.telnyx.com/api-reference/call-commands/transfer-call
        # https://developers.telnyx.com/api-reference/call-commands/send-dtmf
        # https://developers.telnyx.com/api-reference/texml-rest-commands/update-call
        path = urlsplit(request.url).path
        if (match := _TEXML_CALL.fullmatch(path)) and request.method in ("GET", "POST"):
            return read_call_command(request, unquote(match[1]), "Texml")
        if (match := _CALL.fullmatch(path)) and request.method == "GET":
            return Command("look-up", unquote(match[1]))
        call_id, action = _read_action(request)
        if action == "hangup":
            return Command("hang-up", call_id)
        if action == "transfer":
            return Command("transfer", call_id, to=_read_argument(request, "to"))
        if action == "send_dtmf":
            return Command("digits", call_id, digits=read_digits(_read_argument(request, "digits")))
        return None

    def command_answer(self, command: Command, call: Call, status: CallStatus) -> Answer:
        """
        Render the answer of a command, or a call.

        The simulation does not tell the two flavours apart: a call that is looked up has the fields of both.

        https://developers.telnyx.com/api-reference/call-information/retrieve-a-call-status
        """
        if command.kind not in ("look-up", "update") and (command.kind != "hang-up" or call.control != "document"):
            return json_answer({"data": {"result": "ok"}})
        data = {
            "record_type": "call",
            "call_control_id": call.call_id,
            "call_leg_id": stable_uuid("leg", call.call_id),
            "call_session_id": stable_uuid("session", call.call_id),
            "is_alive": status != "completed",
            "result": "ok",
        }
        resource = {
            "account_sid": call.account_id,
            "direction": call.direction,
            "from": call.from_number,
            "sid": call.call_id,
            "status": status,
            "to": call.to_number,
            "uri": f"/v2/texml/Accounts/{call.account_id}/Calls/{call.call_id}.json",
        }
        return json_answer({"data": data, **resource})

    def api_error(self, status: Literal[400, 401, 404], message: str) -> Answer:
        """
        Render an error; a request that lacks a field is answered with 422.

        https://developers.telnyx.com/development/api-fundamentals/api-errors
        """
        code, title = {
            400: ("10015", "Bad Request"),
            401: ("10009", "Authentication failed"),
            404: ("10005", "Resource not found"),
        }[status]
        error = {"code": code, "title": title, "detail": message}
        return json_answer({"errors": [error]}, 422 if status == 400 else status)


def _read_action(request: WebhookRequest) -> tuple[str, str]:
    """Return the call and the action of a command of Call Control; two empty strings if it is none."""
    match = _COMMAND.fullmatch(urlsplit(request.url).path)
    if request.method != "POST" or match is None:
        return "", ""
    return unquote(match[1]), match[2]


def _read_argument(request: WebhookRequest, name: str) -> str:
    """Return a text that a command needs."""
    return read_text(request.read_json().get(name), "bad-command", name)[:TEXT_LIMIT]


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
