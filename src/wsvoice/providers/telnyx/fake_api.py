"""Telnyx's API in a test call: commands of Call Control, the call resource of TeXML, and the account behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from wsvoice.call import Call
from wsvoice.providers.base import Answer, CallStatus, Command, StreamRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi, json_answer
from wsvoice.providers.fields import broken
from wsvoice.providers.signing import is_same
from wsvoice.providers.telnyx.company import stable_uuid
from wsvoice.providers.telnyx.fake_account import (
    TelnyxFakeAccount,
    error_answer,
    read_action,
    read_command,
    read_stream,
)

if TYPE_CHECKING:
    from wsvoice.providers.telnyx.simulator import TelnyxSimulator


class TelnyxApi(FakeApi):
    """The API, whose key is a bearer token."""

    account_type: ClassVar[type[FakeAccount] | None] = TelnyxFakeAccount
    company: TelnyxSimulator

    def is_authorised(self, request: WebhookRequest) -> bool:
        # https://developers.telnyx.com/development/api-fundamentals/authentication
        key = self.company.credential("TELNYX_API_KEY")
        return not key or is_same(f"Bearer {key}", request.headers.get("authorization", ""))

    def read_answer_request(self, request: WebhookRequest, *, call_id: str = "") -> StreamRequest | None:
        # https://developers.telnyx.com/api-reference/call-commands/answer-call
        answered, action = read_action(request)
        if action != "answer" or (call_id and answered != call_id):
            return None
        content = request.read_json()
        if "stream_url" not in content and content.get("client_state"):
            return None  # The call is to go on in another way, once that is reported.
        written = content.get("stream_url")
        if not isinstance(written, str) or not written:
            raise broken("no-stream", "the call is answered without a stream_url")
        return read_stream(self.company, content)

    def read_command(self, request: WebhookRequest) -> Command | None:
        return read_command(request)

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
        code = {400: "10015", 401: "10009", 404: "10005"}[status]
        return error_answer(422 if status == 400 else status, code, message)
