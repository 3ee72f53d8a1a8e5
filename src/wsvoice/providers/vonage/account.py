"""
Vonage's REST API as its customer uses it.

Calls are the application's, so requests about them carry a token that its private key has signed. Numbers and
applications are the account's, and take the API key and secret. Where a number's calls go is said by the application
that it is linked to, which may serve other numbers too.

Calls: https://developer.vonage.com/en/api/voice
Numbers: https://developer.vonage.com/en/api/numbers
Applications: https://developer.vonage.com/en/api/application.v2
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import urlencode

from wsvoice.call import ENDED_STAGES, Call, Stage
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
    Restored,
    Saved,
    ServerAddresses,
    Steps,
    refused_kind,
)
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.callbacks import printable
from wsvoice.providers.fields import listed, text_or_nothing, with_plus, without_plus, write_object
from wsvoice.providers.urls import path_part
from wsvoice.providers.vonage.company import (
    API_BASE_URL,
    CALL_CREDENTIALS,
    ENDED_STATUSES,
    NUMBER_CREDENTIALS,
    REST_BASE_URL,
    STAGES,
    VonageCompany,
    outbound_url,
)

#: Numbers, applications or calls in one answer, the most there are.
PAGE_SIZE = 100
#: Pages that are read, so that no answer of the API's makes it go on for ever.
MAX_PAGES = 100
#: The longest that a call may ring and last, in seconds: https://developer.vonage.com/en/api/voice#createCall
RING_LIMIT_S, TIME_LIMIT_S = 120, 86400
#: Keys that a call can be told to press, and what is written for half a second's pause.
#: https://developer.vonage.com/en/voice/voice-api/concepts/dtmf
KEYS, PAUSE = frozenset("0123456789*#"), "p"
#: Characters of what the API says that are told, and of a URL.
WORDS_LIMIT, URL_LIMIT = 200, 2048

#: What the API's errors are to us, what they mean, and what mends them: https://developer.vonage.com/en/api-errors
_ERRORS: Mapping[str, tuple[str, str, str]] = {
    "low-balance": ("balance", "the account's balance is too low", "top up the account in Vonage's dashboard"),
    "unauthorized": ("credentials", "the credentials are wrong", ""),
    "forbidden": ("permission", "the account may not do this", "ask Vonage to enable the feature for the account"),
    "not-found": ("not-found", "there is no such thing, or the credentials are another account's", ""),
    "unprovisioned": ("permission", "the credentials have no access to this product", "use the main account's API key"),
    "account-suspended": ("permission", "the account is suspended", "ask Vonage's support"),
    "jwt-expired": ("credentials", "the token is too old", "set this machine's clock"),
    "jwt-revoked": ("credentials", "the token was revoked", "use the private key that the application has now"),
    "invalid-api-key": ("credentials", "there is no such API key", "copy it from Vonage's dashboard"),
    "invalid-params": ("refused", "a field of the request is wrong", ""),
    "invalid-signature": ("credentials", "the signature is wrong", "copy the secret from Vonage's dashboard"),
}
#: What a call's status means beyond its words.
#: https://developer.vonage.com/en/voice/voice-api/webhook-reference#event-webhook
_OUTCOMES: Mapping[str, tuple[str, str]] = {
    "busy": ("the line is busy", "call again later"),
    "timeout": ("nobody answered while it rang", "let it ring for longer"),
    "unanswered": ("the other end cannot be reached, or declined the call", "check the number; call again later"),
    "rejected": ("the call was rejected before it was connected", "check the number, and whether the account may call"),
    "failed": ("the call could not be connected", "check that the number is complete, with its country code"),
    "cancelled": ("the call was hung up before it was answered", ""),
}


class VonageAccount(VonageCompany, Account):
    """The account, and the application whose calls it places."""

    needed: ClassVar[tuple[str, ...]] = CALL_CREDENTIALS
    credentials_place: ClassVar[str] = "Vonage's dashboard (the application's page; *API settings* for the API key)"
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True

    def missing_credentials(self, *names: str) -> list[str]:
        # The API key is enough for numbers.
        is_enough = not names and all(map(self.credential, NUMBER_CREDENTIALS))
        return [] if is_enough else super().missing_credentials(*names)

    def refusal(self, response: ApiResponse, what: str, names: tuple[str, ...] = NUMBER_CREDENTIALS) -> ApiError:
        """Return the error for a response to a request that carried the credentials `names`."""
        code, words = _read_error(response.content())
        kind, _, hint = _ERRORS.get(code, ("", "", ""))
        if response.status == 401 or kind == "credentials":
            message = f"{self.title} does not take {listed(names)}: {words or response.status}"
            hint = hint or f"compare them with {self.credentials_place}"
            return ApiError("credentials", message, code=code, hint=hint)
        if response.status == 429:
            return super().refusal(response, what)
        known = {402: "balance", 403: "permission", 404: "not-found"}
        kind = kind or known.get(response.status) or refused_kind(response.status)
        return ApiError(kind, f"{self.title} refuses {what}: {words or response.status}", code=code, hint=hint or None)

    def describe(self) -> Steps[AccountInfo]:
        """Return the account, of which the API tells the balance; the application's key is tried as well."""
        self.check_credentials()
        account_id, limits = self.credential("VONAGE_API_KEY"), []
        if all(map(self.credential, NUMBER_CREDENTIALS)):
            # https://developer.vonage.com/en/api/account#getAccountBalance
            content = self.read((yield self._get("/account/get-balance", {}, REST_BASE_URL)), "the balance")
            balance = content.get("value")
            if isinstance(balance, int | float) and balance <= 0:
                limits.append(f"the balance is {balance:.2f} EUR, so no call can be placed")
        if all(map(self.credential, CALL_CREDENTIALS)):
            account_id = account_id or self.credential("VONAGE_APPLICATION_ID")
            self._read_call((yield self.call_request("GET", part="?page_size=1")), "the application's calls")
        return AccountInfo(account_id, limits=limits)

    # Numbers

    def numbers(self) -> Steps[list[PhoneNumber]]:
        self.check_credentials(*NUMBER_CREDENTIALS)
        entries = yield from self._list_numbers({})
        applications = yield from self._list_applications()
        by_id = {text_or_nothing(each.get("id")): each for each in applications}
        return [self._describe(entry, entries, by_id) for entry in entries]

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        entry = yield from self._find(number)
        applications: dict[str, dict[str, Any]] = {}
        entries = [entry]
        for application_id in filter(None, dict.fromkeys((_application_id(entry), self._target()))):
            is_needed = application_id == self._target()
            applications[application_id] = yield from self._application(application_id, is_needed=is_needed)
        if self._target():
            entries += yield from self._list_numbers({"application_id": self._target()})
        return self._describe(entry, entries, applications)

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        """
        Let the calls of `number` come to `addresses`, by the application that it is linked to.

        With ``VONAGE_APPLICATION_ID`` that is this application, for calls come in under its name, are hung up with its
        key, and their webhooks are taken if they are its own. Without, it is a new application, only for this number.
        """
        entry = yield from self._find(number.number)
        saved = {"number": number.number, "linked": _application_id(entry)}
        if application_id := self._target():
            application = yield from self._application(application_id)
            saved |= {"application": application_id, "voice": json.dumps(_voice(application))}
            save(saved)
            yield from self._set_voice(application, _pointed(_voice(application), addresses))
        else:
            name = f"wsvoice {number.number}"
            save({**saved, "created": name})
            new = {"name": name, "capabilities": {"voice": _pointed(None, addresses)}}
            content = self.read((yield self._send("POST", "/v2/applications", new)), "a new application")
            application_id = text_or_nothing(content.get("id"))
            saved |= {"created": name, "application": application_id}
        if _application_id(entry) != application_id:
            save(saved)
            yield from self._link(entry, application_id)

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        """Put a number and its application back; the latter even if the account has the number no longer."""
        entry = yield from self._search(saved["number"])
        created, before, linked = saved.get("created", ""), saved["linked"], _application_id(entry)
        if created:
            # By its name, for its id may have come too late to be saved.
            found = [each for each in (yield from self._list_applications()) if each.get("name") == created]
        else:
            found = [(yield from self._application(saved["application"], is_needed=False))]
        application = next((each for each in found if _answer_url(each) == addresses.webhook), None)
        if application is None:
            if not created and linked == saved["application"] != before:
                # The application is somebody else's by now; the link is still ours.
                yield from self._link(entry, before)
                return "restored"
            # What we did not do yet, or somebody has changed since.
            unchanged = created or _voice(found[0]) == json.loads(saved["voice"])
            return "unchanged" if unchanged and linked == before else "left"
        ours = text_or_nothing(application.get("id"))
        if linked == ours != before:
            yield from self._link(entry, before)
        if created:
            # https://developer.vonage.com/en/api/application.v2#deleteApplication
            self.read((yield self._request("DELETE", f"/v2/applications/{path_part(ours)}")), "to delete it")
        else:
            yield from self._set_voice(application, json.loads(saved["voice"]))
        return "restored" if linked in (ours, before) else "left"

    def _target(self) -> str:
        """The application that a number is linked to; empty for a new one."""
        return self.credential("VONAGE_APPLICATION_ID")

    def _describe(
        self,
        entry: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        applications: Mapping[str, Mapping[str, Any]],
    ) -> PhoneNumber:
        """Return a number; `entries` and `applications` are the account's, at least those that it concerns."""
        application_id, forwarding = _application_id(entry), entry.get("voiceCallbackType")
        linked = applications.get(application_id, {})
        webhooks = _webhooks(_voice(linked))
        answer_url, event_url = _address(webhooks, "answer_url"), _address(webhooks, "event_url")
        points_at = answer_url or (f"application {_name(linked) or application_id!r}" if application_id else "")
        obstacle = hint = ""
        if forwarding in ("sip", "tel"):
            # These go before an application: https://developer.vonage.com/en/api/numbers#updateANumber
            points_at = f"{forwarding} {text_or_nothing(entry.get('voiceCallbackValue'))}"
            obstacle = f"its calls are forwarded to {points_at}, whatever application it is linked to"
            hint = "take the forwarding away, on the number's page in Vonage's dashboard"
        has_voice = "VOICE" in (entry.get("features") or ())
        if not has_voice:
            obstacle, hint = "it takes no calls", "choose a number that has the feature VOICE"
        return PhoneNumber(
            _number(entry),
            has_voice=has_voice,
            points_at=points_at,
            settings={"app_id": application_id, "answer_url": answer_url, "event_url": event_url},
            obstacle=obstacle,
            hint=hint,
            warnings=self._warnings(entry, entries, applications),
            shares=f"application {self._target()}" if self._target() else "",
        )

    def _warnings(
        self,
        entry: Mapping[str, Any],
        entries: Sequence[Mapping[str, Any]],
        applications: Mapping[str, Mapping[str, Any]],
    ) -> list[str]:
        """Say what else changes with a number."""
        number, linked, target = _number(entry), _application_id(entry), self._target()
        warnings = []
        others = [_number(each) for each in entries if _application_id(each) == target and _number(each) != number]
        if target and others:
            name = _name(applications.get(target)) or target
            warnings.append(f"application {name!r} serves {', '.join(others)} too, whose calls move as well")
        if linked != target and "messages" in _capabilities(applications.get(linked)):
            name = _name(applications[linked])
            warnings.append(f"messages to {number} do not reach application {name!r} while the number points here")
        return warnings

    def _find(self, number: str) -> Steps[dict[str, Any]]:
        if entry := (yield from self._search(number)):
            return entry
        raise ApiError(
            "number",
            f"{number} is not a number of this Vonage account",
            hint="`wsvoice number list -t vonage` shows the account's numbers",
        )

    def _search(self, number: str) -> Steps[dict[str, Any]]:
        """Return what the API tells of a number; nothing if it is not the account's."""
        self.check_credentials(*NUMBER_CREDENTIALS)
        entries = yield from self._list_numbers({"pattern": without_plus(number), "search_pattern": "0"})
        return next((entry for entry in entries if _number(entry) == number), {})

    def _list_numbers(self, query: Mapping[str, str]) -> Steps[list[dict[str, Any]]]:
        # https://developer.vonage.com/en/api/numbers#getOwnedNumbers
        found: list[dict[str, Any]] = []
        for index in range(1, MAX_PAGES + 1):
            page = {**query, "size": str(PAGE_SIZE), "index": str(index)}
            content = self.read((yield self._get("/account/numbers", page, REST_BASE_URL)), "the account's numbers")
            numbers = [each for each in content.get("numbers") or () if isinstance(each, dict)]
            found += numbers
            if len(numbers) < PAGE_SIZE:
                break
        return found

    def _link(self, entry: Mapping[str, Any], application_id: str) -> Steps[None]:
        """
        Link a number to an application, or to none.

        What is not said is taken away, so all that the number has is said again; Vonage's own command line does so:
        https://github.com/Vonage/vonage-cli/blob/main/src/commands/apps/numbers/unlink.js
        """
        names: tuple[str, ...] = ("country", "msisdn", "moHttpUrl")
        if entry.get("voiceCallbackType") in ("sip", "tel"):
            names += ("voiceCallbackType", "voiceCallbackValue")
        kept = {name: entry[name] for name in names if entry.get(name)}
        kept |= {"app_id": application_id} if application_id else {}
        headers = {"content-type": "application/x-www-form-urlencoded"}
        # https://developer.vonage.com/en/api/numbers#updateANumber
        request = self._request("POST", "/number/update", urlencode(kept).encode(), headers, REST_BASE_URL)
        response = yield request
        self.read(response, f"to link {_number(entry)} to another application")

    def _list_applications(self) -> Steps[list[dict[str, Any]]]:
        # https://developer.vonage.com/en/api/application.v2#listApplication
        found: list[dict[str, Any]] = []
        for page in range(1, MAX_PAGES + 1):
            query = {"page_size": str(PAGE_SIZE), "page": str(page)}
            content = self.read((yield self._get("/v2/applications", query)), "the account's applications")
            found += _embedded(content, "applications")
            pages = content.get("total_pages")
            if not isinstance(pages, int) or page >= pages:
                break
        return found

    def _application(self, application_id: str, *, is_needed: bool = True) -> Steps[dict[str, Any]]:
        """Return an application; nothing if there is none, unless it is needed."""
        # https://developer.vonage.com/en/api/application.v2#getApplication
        response = yield self._get(f"/v2/applications/{path_part(application_id)}", {})
        if response.status != 404:
            return self.read(response, f"application {application_id}")
        if not is_needed:
            return {}
        raise ApiError(
            "not-found",
            f"the account has no application {application_id}",
            hint="VONAGE_APPLICATION_ID and VONAGE_API_KEY have to be of the same account",
        )

    def _set_voice(self, application: Mapping[str, Any], voice: Mapping[str, Any] | None) -> Steps[None]:
        """Replace an application's voice capability; what is not said is taken away, so all else is said again."""
        capabilities = {name: each for name, each in _capabilities(application).items() if name != "voice"}
        capabilities |= {"voice": voice} if voice is not None else {}
        kept = {name: each for name, each in application.items() if name not in ("id", "_links")}
        path = f"/v2/applications/{path_part(text_or_nothing(application.get('id')))}"
        # https://developer.vonage.com/en/api/application.v2#updateApplication
        response = yield self._send("PUT", path, {**kept, "capabilities": capabilities})
        self.read(response, f"to change application {_name(application)!r}")

    def _request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        host: str = API_BASE_URL,
    ) -> HttpRequest:
        key, secret = (self.credential(name) for name in NUMBER_CREDENTIALS)
        return HttpRequest(method, self.api_url(path, host), headers or {}, body, basic_auth=(key, secret))

    def _get(self, path: str, query: Mapping[str, str], host: str = API_BASE_URL) -> HttpRequest:
        return self._request("GET", f"{path}?{urlencode(query)}" if query else path, host=host)

    def _send(self, method: str, path: str, content: dict[str, Any]) -> HttpRequest:
        return self._request(method, path, write_object(content).encode(), {"content-type": "application/json"})

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """
        Place a call. What machine detection finds goes to the status address, for there is none of its own.

        The detection is the one that goes on beside the call; it costs extra.

        https://developer.vonage.com/en/api/voice#createCall
        https://developer.vonage.com/en/voice/voice-api/concepts/advanced-machine-detection
        """
        self.check_credentials(*CALL_CREDENTIALS)
        content: dict[str, Any] = {
            "to": [{"type": "phone", "number": without_plus(call.to_number)}],
            "from": {"type": "phone", "number": without_plus(call.from_number)},
            "answer_url": [outbound_url(call.webhook_url)],
            "answer_method": "POST",
            "event_url": [call.status_url],
            "event_method": "POST",
            "ringing_timer": max(1, min(call.ring_timeout_s, RING_LIMIT_S)),
        }
        if call.time_limit_s is not None:
            content["length_timer"] = max(1, min(call.time_limit_s, TIME_LIMIT_S))
        if call.detection != "off":
            content["advanced_machine_detection"] = {"behavior": "continue", "mode": "default"}
        placed = self._read_call((yield self.call_request("POST", content=content)), f"the call to {call.to_number}")
        stage = STAGES.get(text_or_nothing(placed.get("status")), "queued")
        return PlacedCall(text_or_nothing(placed.get("uuid")), stage=stage)

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        return (yield from self._end(placed.call_id)) is None

    def look_up(self, call_id: str) -> Steps[CallState]:
        record = yield from self._record(call_id)
        status, seconds = text_or_nothing(record.get("status")), record.get("duration")
        price = printable(record.get("price"), WORDS_LIMIT)
        stage: Stage = STAGES.get(status, "queued")
        return CallState(
            call_id,
            stage,
            answered_by="machine" if status == "machine" else "human" if status == "human" else None,
            duration_s=_read_seconds(seconds),
            # Vonage's prices are in euros: https://developer.vonage.com/en/api/pricing
            price=f"{price} EUR" if price else "",
            cause=_OUTCOMES[status][0] if status in _OUTCOMES else "",
            from_number=_endpoint(record, "from"),
            to_number=_endpoint(record, "to"),
        )

    def hang_up(self, call: Call) -> Steps[bool]:
        refused = yield from self._end(call.call_id)
        if refused is None:
            return True
        # It is refused alike whether the call is over, or is none of the application's.
        record = yield from self._record(call.call_id)
        if STAGES.get(text_or_nothing(record.get("status"))) in ENDED_STAGES:
            return False
        raise self.refusal(refused, f"to end call {call.call_id}", CALL_CREDENTIALS)

    def transfer(self, call: Call, to: str) -> Steps[None]:
        # https://developer.vonage.com/en/api/voice#updateCall
        # https://developer.vonage.com/en/voice/voice-api/ncco-reference#connect
        if to.startswith(("sip:", "sips:")):
            endpoint = {"type": "sip", "uri": to}
        else:
            endpoint = {"type": "phone", "number": without_plus(to)}
        own = call.from_number if call.direction == "outbound" else call.to_number
        caller = {"from": without_plus(own)} if own else {}
        ncco = [{"action": "connect", **caller, "endpoint": [endpoint]}]
        destination = {"type": "ncco", "ncco": ncco}
        yield from self._command(call, "", {"action": "transfer", "destination": destination}, f"a transfer to {to}")

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        # https://developer.vonage.com/en/api/voice#startDTMF
        written = digits.replace("W", 2 * PAUSE).replace("w", PAUSE)
        if not (KEYS | {PAUSE}).issuperset(written):
            raise ApiError("unsupported", f"Vonage presses 0-9 * # only, not all of {digits}")
        yield from self._command(call, "/dtmf", {"digits": written}, f"to press {digits}")

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """Return what is recorded of the call's legs: its own, and that of each stream, which says if it opened."""
        record = yield from self._record(call_id)
        legs = [record]
        if conversation := text_or_nothing(record.get("conversation_uuid")):
            # https://developer.vonage.com/en/api/voice#getCalls
            query = urlencode({"conversation_uuid": conversation, "page_size": PAGE_SIZE})
            content = self._read_call((yield self.call_request("GET", part=f"?{query}")), "the call's legs")
            legs += [each for each in _embedded(content, "calls") if each.get("uuid") != record.get("uuid")]
        found = [each for leg in legs for each in _read_leg(leg)]
        # Only a leg that was connected tells when.
        return sorted(found, key=lambda each: (not each.when, each.when))

    def explain_code(self, code: str) -> tuple[str, str] | None:
        if code in _ERRORS:
            return _ERRORS[code][1:]
        return _OUTCOMES.get(code)

    def _record(self, call_id: str) -> Steps[dict[str, Any]]:
        # https://developer.vonage.com/en/api/voice#getCall
        self.check_credentials(*CALL_CREDENTIALS)
        response = yield self.call_request("GET", call_id)
        if response.status in ENDED_STATUSES:
            raise ApiError(
                "not-found",
                f"the application has no call {call_id}",
                hint="VONAGE_APPLICATION_ID has to be the call's application; calls of long ago are in no record",
            )
        return self._read_call(response, f"the record of call {call_id}")

    def _end(self, call_id: str) -> Steps[ApiResponse | None]:
        """End a call; return how that is refused, if there is no such call any more."""
        self.check_credentials(*CALL_CREDENTIALS)
        response = yield self.call_request("PUT", call_id, content={"action": "hangup"})
        if response.status in ENDED_STATUSES:
            return response
        self._read_call(response, f"to end call {call_id}")
        return None

    def _command(self, call: Call, part: str, content: Mapping[str, Any], what: str) -> Steps[None]:
        self.check_credentials(*CALL_CREDENTIALS)
        response = yield self.call_request("PUT", call.call_id, part, content)
        if response.status == 404:
            raise ApiError("ended", f"Vonage refuses {what}: the call is over")
        self._read_call(response, what)

    def _read_call(self, response: ApiResponse, what: str) -> dict[str, Any]:
        """Return what a response to a request about calls says; errors as :meth:`read`."""
        if 200 <= response.status < 300:
            return response.content()
        raise self.refusal(response, what, CALL_CREDENTIALS)


def _read_error(content: Mapping[str, Any]) -> tuple[str, str]:
    """
    Return the code of an error, and what it says.

    Applications: https://developer.vonage.com/en/api-errors; numbers: https://developer.vonage.com/en/api/numbers
    """
    type_ = content.get("type")
    code = printable(content.get("error-code"), WORDS_LIMIT) or printable(type_, WORDS_LIMIT).rpartition("#")[2]
    names = ("detail", "error-code-label", "title", "error_title")
    words = next((said for name in names if (said := printable(content.get(name), WORDS_LIMIT))), "")
    wrong = content.get("invalid_parameters")
    if isinstance(wrong, list | dict) and wrong:
        words += f" ({printable(json.dumps(wrong), WORDS_LIMIT)})"
    return code.lower().replace("_", "-"), words


def _read_leg(leg: Mapping[str, Any]) -> Iterator[Evidence]:
    """Tell what the record of a leg says: when it began, how it ended, and what is wrong with that."""
    status, to = text_or_nothing(leg.get("status")), _endpoint(leg, "to")
    is_stream = to.startswith(("ws://", "wss://"))
    what = f"stream to {to}" if is_stream else f"call from {_endpoint(leg, 'from')} to {to}"
    if begun := text_or_nothing(leg.get("start_time")):
        yield Evidence(f"{what} began", begun)
    told = [f"{name} {said}" for name in ("duration", "price", "network") if (said := printable(leg.get(name), 40))]
    outcome, mend = _OUTCOMES.get(status, ("", ""))
    failed = status in ("failed", "rejected", "busy", "timeout", "unanswered")
    if is_stream and failed:
        outcome = "Vonage could not open the WebSocket"
        mend = "check with `wsvoice doctor` that the server is reached from outside, and takes WebSockets"
    words = [f"{what}: {status or 'no status'}", *([outcome] if outcome else []), *told]
    yield Evidence(", ".join(words), text_or_nothing(leg.get("end_time")), status if failed else "", failed, mend)


def _endpoint(record: Mapping[str, Any], name: str) -> str:
    """Return a number or an address of a call's record, which has objects or arrays of them."""
    end = record.get(name)
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, dict):
        return with_plus(printable(end, WORDS_LIMIT))
    said = (printable(end.get(key), WORDS_LIMIT) for key in ("number", "uri", "user", "extension"))
    return with_plus(next(filter(None, said), ""))


def _read_seconds(value: object) -> float | None:
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None


def _embedded(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    inner = content.get("_embedded")
    found = inner.get(name) if isinstance(inner, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _number(entry: Mapping[str, Any]) -> str:
    return with_plus(text_or_nothing(entry.get("msisdn")))


def _application_id(entry: Mapping[str, Any]) -> str:
    """Return the application that a number is linked to; empty for none."""
    if linked := text_or_nothing(entry.get("app_id")):
        return linked
    return text_or_nothing(entry.get("voiceCallbackValue")) if entry.get("voiceCallbackType") == "app" else ""


def _name(application: Mapping[str, Any] | None) -> str:
    return printable((application or {}).get("name"), WORDS_LIMIT)


def _capabilities(application: Mapping[str, Any] | None) -> dict[str, Any]:
    found = (application or {}).get("capabilities")
    return found if isinstance(found, dict) else {}


def _voice(application: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return an application's voice capability; ``None`` if it has none."""
    found = _capabilities(application).get("voice")
    return found if isinstance(found, dict) else None


def _webhooks(voice: Mapping[str, Any] | None) -> dict[str, Any]:
    found = (voice or {}).get("webhooks")
    return found if isinstance(found, dict) else {}


def _address(webhooks: Mapping[str, Any], name: str) -> str:
    webhook = webhooks.get(name)
    return text_or_nothing(webhook.get("address"), URL_LIMIT) if isinstance(webhook, dict) else ""


def _answer_url(application: Mapping[str, Any]) -> str:
    return _address(_webhooks(_voice(application)), "answer_url")


def _pointed(voice: Mapping[str, Any] | None, addresses: ServerAddresses) -> dict[str, Any]:
    """Return a voice capability whose calls come to `addresses`, signed; a POST, for the token of a GET covers less."""
    webhooks = _webhooks(voice)
    urls = {"answer_url": addresses.webhook, "event_url": addresses.status}
    if not addresses.status:
        # An application needs one.
        urls["event_url"] = _address(webhooks, "event_url") or addresses.webhook
    changed = {name: {"address": url, "http_method": "POST"} for name, url in urls.items()}
    return {**(voice or {}), "webhooks": {**webhooks, **changed}, "signed_callbacks": True}
