"""
Bandwidth's REST API as its customer uses it: calls. Where a number's calls go is set in the Bandwidth App.

A number is told its application by the location that it belongs to, for all numbers of it, in an API of its own that
speaks XML; so a person does that.

Calls: https://dev.bandwidth.com/apis/voice-apis/voice
Credentials: https://dev.bandwidth.com/docs/account/credentials/management
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from wsvoice.call import Call, Stage
from wsvoice.errors import ApiError
from wsvoice.providers.account import (
    Account,
    AccountInfo,
    ApiResponse,
    CallState,
    Evidence,
    OutboundCall,
    PhoneNumber,
    PlacedCall,
    ServerAddresses,
    Steps,
    refused_kind,
)
from wsvoice.providers.bandwidth.company import (
    ENDS,
    GREETING_TAG,
    STREAM_NAME,
    TOKEN_BASE_URL,
    TOKEN_PATH,
    VOICE_BASE_URL,
    VOICE_PATH,
    BandwidthCompany,
)
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.callbacks import printable
from wsvoice.providers.fields import read_time, text_or_nothing, write_object
from wsvoice.providers.urls import path_part
from wsvoice.providers.xml_writer import document, element

#: The longest that a call may ring, in seconds: https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/createCall
RING_LIMIT_S = 300
#: How long an answering machine's greeting is listened to, in seconds; nothing is known of who answered until then.
GREETING_LIMIT_S = 30
#: How many keys are pressed at once: https://dev.bandwidth.com/docs/voice/bxml/sendDtmf
DIGITS_LIMIT = 50
#: Characters of what the API says that are told.
WORDS_LIMIT = 200

_STAGES: Mapping[str, Stage] = {"queued": "queued", "initiated": "ringing", "answered": "answered"}
#: What the types of errors are to us: https://dev.bandwidth.com/docs/voice/errors
_KINDS = {
    "authentication-error": "credentials",
    "authorization-error": "permission",
    "not-found": "not-found",
    "validation": "refused",
}
#: What a cause means, and what mends it: https://dev.bandwidth.com/docs/voice/webhooks/disconnect
_CAUSES: Mapping[str, tuple[str, str]] = {
    "hangup": ("one side hung up, or the document had nothing more to do", ""),
    "busy": ("the line is busy", "call again later"),
    "timeout": ("nobody answered while it rang", "let it ring for longer"),
    "cancel": ("the call was hung up before it was answered", ""),
    "rejected": ("the other end turned the call away", ""),
    "callback-error": (
        "Bandwidth could not ask the server for a document",
        "check with `wsvoice doctor` that the server is reached from outside",
    ),
    "invalid-bxml": ("the server answered with a document that is no BXML", "read its log"),
    "application-error": ("the document asked for something that the call cannot do", "read its errorMessage"),
    "account-limit": ("the account has as many calls as it may", "wait, or ask Bandwidth for a higher limit"),
    "node-capacity-exceeded": ("Bandwidth had no capacity left", "call again later"),
    "error": ("something went wrong at Bandwidth", "call again; ask Bandwidth's support with the errorId"),
    "unknown": ("something went wrong at Bandwidth", "call again; ask Bandwidth's support with the errorId"),
}

_NUMBERS_HINT = "the Bandwidth App lists them; calls go where the voice application of a number's location says"


class BandwidthAccount(BandwidthCompany, Account):
    """The account; its token is got when it is first needed, and again once it is refused."""

    needed: ClassVar[tuple[str, ...]] = (
        "BANDWIDTH_ACCOUNT_ID",
        "BANDWIDTH_CLIENT_ID",
        "BANDWIDTH_CLIENT_SECRET",
    )
    credentials_place: ClassVar[str] = "the Bandwidth App under Account > API Credentials, and under Applications"
    has_calls: ClassVar[bool] = True

    def __init__(self, credentials: Mapping[str, str]) -> None:
        super().__init__(credentials)
        self._token = ""

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        # https://dev.bandwidth.com/docs/voice/errors
        content = response.content()
        code = printable(content.get("type"), WORDS_LIMIT)
        words = printable(content.get("description"), WORDS_LIMIT) or code or str(response.status)
        if response.status == 401 or code == "authentication-error":
            names = " and ".join(self.needed[1:])
            message = f"{self.title} does not take {names}: {words}"
            return ApiError("credentials", message, code=code, hint=f"compare them with {self.credentials_place}")
        if response.status == 429:
            return super().refusal(response, what)
        hint = _hint(response.status, words)
        if words.startswith("Invalid from"):
            return ApiError("number", f"{self.title} refuses {what}: {words}", code=code, hint=hint)
        kind = _KINDS.get(code) or {403: "permission", 404: "not-found"}.get(response.status)
        kind = kind or refused_kind(response.status)
        return ApiError(kind, f"{self.title} refuses {what}: {words}", code=code, hint=hint)

    def describe(self) -> Steps[AccountInfo]:
        """Return the account; its API tells no name, but whether it takes calls."""
        # https://dev.bandwidth.com/apis/voice-apis/voice#tag/Statistics
        response = yield from self._ask("GET", "/statistics")
        self.read(response, "the account's statistics")
        return AccountInfo(self.credential("BANDWIDTH_ACCOUNT_ID"))

    def numbers(self) -> Steps[list[PhoneNumber]]:
        raise ApiError("unsupported", "wsvoice does not know Bandwidth's numbers", hint=_NUMBERS_HINT)
        yield

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        raise ApiError("unsupported", f"wsvoice cannot look up {number} at Bandwidth", hint=_NUMBERS_HINT)
        yield

    def how_to_point(self, number: str, addresses: ServerAddresses) -> list[str]:
        lines = [
            f"in the Bandwidth App, open Applications, and there the voice application of the location of {number}",
            f"call initiated callback URL: {addresses.webhook}, with POST",
        ]
        if addresses.status:
            lines.append(f"call status callback URL: {addresses.status}, with POST")
        return [*lines, "callback user id and password: BANDWIDTH_WEBHOOK_USERNAME and BANDWIDTH_WEBHOOK_PASSWORD"]

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """
        Place a call; how long it may last is for us to see to, for Bandwidth takes no limit.

        https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/createCall
        """
        self.check_credentials(*self.needed, "BANDWIDTH_APPLICATION_ID")
        password = self.webhook_password()
        content: dict[str, Any] = {
            "to": call.to_number,
            "from": call.from_number,
            "applicationId": self.credential("BANDWIDTH_APPLICATION_ID"),
            "answerUrl": call.webhook_url,
            "answerMethod": "POST",
            "disconnectUrl": call.status_url,
            "disconnectMethod": "POST",
            "callTimeout": max(1, min(call.ring_timeout_s, RING_LIMIT_S)),
            **password,
        }
        if call.detection != "off":
            machine: dict[str, Any] = {"mode": "async", "callbackUrl": call.machine_url, **password}
            if call.detection == "greeting-end":
                # The result waits for it.
                machine |= {"delayResult": True, "detectionTimeout": GREETING_LIMIT_S}
                content["tag"] = GREETING_TAG
            content["machineDetection"] = machine
        response = yield from self._ask("POST", "/calls", write_object(content).encode())
        placed = self.read(response, f"the call to {call.to_number}")
        account_id = text_or_nothing(placed.get("accountId")) or self.credential("BANDWIDTH_ACCOUNT_ID")
        return PlacedCall(text_or_nothing(placed.get("callId")), account_id=account_id)

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        return (yield from self._end(placed.call_id))

    def look_up(self, call_id: str) -> Steps[CallState]:
        record = yield from self._record(call_id)
        state, cause = text_or_nothing(record.get("state")), printable(record.get("disconnectCause"), WORDS_LIMIT)
        message = printable(record.get("errorMessage"), WORDS_LIMIT)
        stage: Stage = ENDS.get(cause, "failed") if state == "disconnected" else _STAGES.get(state, "queued")
        answered, ended = read_time(record.get("answerTime")), read_time(record.get("endTime"))
        return CallState(
            call_id,
            stage,
            duration_s=ended - answered if answered is not None and ended is not None else None,
            cause=", ".join(filter(None, (cause, message))),
            from_number=printable(record.get("from"), WORDS_LIMIT),
            to_number=printable(record.get("to"), WORDS_LIMIT),
        )

    def hang_up(self, call: Call) -> Steps[bool]:
        if (yield from self._end(call.call_id)):
            return True
        # It is refused alike whether the call is over, or is none of the account's.
        yield from self._record(call.call_id)
        return False

    def transfer(self, call: Call, to: str) -> Steps[None]:
        """
        Give the call a document that ends the stream, and connects the caller.

        https://dev.bandwidth.com/docs/voice/bxml/transfer
        """
        own = call.from_number if call.direction == "outbound" else call.to_number
        end = element("SipUri" if to.startswith(("sip:", "sips:")) else "PhoneNumber", None, to)
        transfer = element("Transfer", {"transferCallerId": own} if own else None, end)
        stop = element("StopStream", {"name": STREAM_NAME})
        yield from self._replace(call, document(stop, transfer), f"a transfer to {to}")

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        """
        Give the call a document that presses keys, and then waits for the stream as the one before did.

        https://dev.bandwidth.com/docs/voice/bxml/sendDtmf
        """
        if len(digits) > DIGITS_LIMIT:
            raise ApiError("unsupported", f"Bandwidth presses {DIGITS_LIMIT} keys at once, not {len(digits)}")
        wait = element("StopStream", {"name": STREAM_NAME, "wait": "true"})
        yield from self._replace(call, document(element("SendDtmf", None, digits), wait), f"to press {digits}")

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        record = yield from self._record(call_id)
        found = []
        names = {"enqueuedTime": "queued", "startTime": "dialled", "answerTime": "answered"}
        if record.get("direction") == "inbound":
            names["startTime"] = "came in"
        for name, what in names.items():
            if when := printable(record.get(name), WORDS_LIMIT):
                found.append(Evidence(what, when))
        if cause := printable(record.get("disconnectCause"), WORDS_LIMIT):
            meaning, mend = _CAUSES.get(cause, ("", ""))
            told = (printable(record.get(name), WORDS_LIMIT) for name in ("errorMessage", "errorId"))
            what = ", ".join(filter(None, (f"ended: {cause}", meaning, *told)))
            ended = printable(record.get("endTime"), WORDS_LIMIT)
            found.append(Evidence(what, ended, cause, cause != "hangup", mend))
        return found

    def explain_code(self, code: str) -> tuple[str, str] | None:
        return _CAUSES.get(code)

    def _record(self, call_id: str) -> Steps[dict[str, Any]]:
        response = yield from self._ask("GET", f"/calls/{path_part(call_id)}")
        if response.status == 404:
            hint = "a call is known a few minutes after it began, and for 7 days after it ended"
            raise ApiError("not-found", f"the account has no call {call_id}", hint=hint)
        return self.read(response, f"the record of call {call_id}")

    def _end(self, call_id: str) -> Steps[bool]:
        # https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/updateCall
        response = yield from self._ask("POST", f"/calls/{path_part(call_id)}", b'{"state":"completed"}')
        if response.status == 404:
            return False
        self.read(response, f"to end call {call_id}")
        return True

    def _replace(self, call: Call, bxml: str, what: str) -> Steps[None]:
        # https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/updateCallBxml
        path = f"/calls/{path_part(call.call_id)}/bxml"
        response = yield from self._ask("PUT", path, bxml.encode(), "application/xml")
        if response.status == 404:
            raise ApiError("ended", f"Bandwidth refuses {what}: the call is over")
        self.read(response, what)

    def _ask(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> Steps[ApiResponse]:
        """Send a request about the account, and get a token before that if there is none, or it is too old."""
        self.check_credentials()
        account = path_part(self.credential("BANDWIDTH_ACCOUNT_ID"))
        url = self._url(VOICE_BASE_URL, f"{VOICE_PATH}{account}{path}")
        is_new = not self._token
        if is_new:
            yield from self._get_token()
        while True:
            headers = {"authorization": f"Bearer {self._token}"} | ({"content-type": content_type} if body else {})
            response: ApiResponse = yield HttpRequest(method, url, headers, body)
            if response.status != 401 or is_new:
                return response
            is_new = True
            yield from self._get_token()

    def _get_token(self) -> Steps[None]:
        # https://dev.bandwidth.com/docs/account/credentials/migration
        user, secret = (self.credential(name) for name in self.needed[1:])
        headers = {"content-type": "application/x-www-form-urlencoded"}
        url = self._url(TOKEN_BASE_URL, TOKEN_PATH)
        request = HttpRequest("POST", url, headers, b"grant_type=client_credentials", basic_auth=(user, secret))
        response = yield request
        if response.status in (400, 403):
            # As OAuth says it: https://www.rfc-editor.org/rfc/rfc6749#section-5.2
            response = ApiResponse(401, response.headers, response.body)
        self._token = text_or_nothing(self.read(response, "a token").get("access_token"), 1 << 14)

    def _url(self, host: str, path: str) -> str:
        return (self.credential("BANDWIDTH_API_BASE_URL") or host).rstrip("/") + path


def _hint(status: int, words: str) -> str | None:
    """Return what mends an error, by what it says: https://dev.bandwidth.com/docs/voice/errors"""
    if status == 403:
        return "the credential needs a role for Voice, and BANDWIDTH_ACCOUNT_ID among its accounts"
    if words.startswith("Invalid from"):
        return "it has to be a number of the account's, at a location that has the application BANDWIDTH_APPLICATION_ID"
    if words.startswith("Invalid to"):
        return "write the number in full, with its country code: +15551234567"
    return None
