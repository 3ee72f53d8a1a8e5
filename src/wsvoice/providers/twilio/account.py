"""
Twilio's REST API as the owner of an account uses it.

Requests: https://www.twilio.com/docs/usage/requests-to-twilio
Numbers: https://www.twilio.com/docs/phone-numbers/api/incomingphonenumber-resource
Calls: https://www.twilio.com/docs/voice/api/call-resource
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar
from urllib.parse import urlencode

from wsvoice.call import ENDED_STAGES, Call
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
)
from wsvoice.providers.base import HttpRequest
from wsvoice.providers.call_statuses import STAGES, STATUS_EVENTS, read_answered_by
from wsvoice.providers.callbacks import printable
from wsvoice.providers.fields import shown
from wsvoice.providers.signing import Fields
from wsvoice.providers.twilio.company import DETECTIONS, OVERRIDES, VOICE_SETTINGS, TwilioCompany
from wsvoice.providers.twilio.dial import dial_document
from wsvoice.providers.twilio.error_codes import ERROR_CODES, ErrorCode
from wsvoice.providers.twilio.evidence import in_order, read_alert, read_event, read_notification, time_span
from wsvoice.providers.urls import path_part

#: Items in one answer. Of numbers, which are the largest, a thousand would be more than the client reads.
PAGE_SIZE = 100
#: Answers that are asked for one after the other.
PAGE_LIMIT = 50
#: Of the account's own numbers, how many an error names.
NAMED_NUMBERS = 5
#: Characters of the company's own message that an error repeats.
MESSAGE_LIMIT = 200

_FORM = "application/x-www-form-urlencoded"
#: Each webhook of a number, and the method that it is asked with.
_PAIRS = (
    ("VoiceUrl", "VoiceMethod"),
    ("VoiceFallbackUrl", "VoiceFallbackMethod"),
    ("StatusCallback", "StatusCallbackMethod"),
)


class TwilioAccount(TwilioCompany, Account):
    """
    What ``wsvoice run --number`` and ``wsvoice dial +1...`` need of Twilio.

    Requests carry the account's token or, without one, an API key and its secret.
    """

    needed: ClassVar[tuple[str, ...]] = ("TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN")
    credentials_place: ClassVar[str] = "they are on the first page of https://console.twilio.com"
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True
    error_codes: ClassVar[Mapping[str, ErrorCode]] = ERROR_CODES
    #: https://www.twilio.com/docs/usage/trials/try-out-voice
    trial_limits: ClassVar[Sequence[str]] = (
        "calls come from and go to verified numbers only, of which there are five at most",
        "calls go out within one country only, and from the trial number that is assigned to whom you call",
        "a call ends after ten minutes",
        "the trial ends after 30 days",
        "some TwiML verbs are blocked; Twilio does not say whether streams are among them",
    )
    #: The codes that say of a request for a call's end that it is over already.
    over_codes: ClassVar[frozenset[str]] = frozenset({"21220"})
    #: Whether a request that places a call can say how long it may last.
    has_time_limit: ClassVar[bool] = True
    #: Whether a number's calls may come in through another region than requests go to.
    has_regions: ClassVar[bool] = True

    def missing_credentials(self, *names: str) -> list[str]:
        # A key does in place of the token.
        is_enough = not names and self.credential(self.account_name) and self._has_key()
        return [] if is_enough else super().missing_credentials(*names)

    # Requests

    def api_url(self, product: str = "api") -> str:
        """
        Return where a product's API is, without a slash at the end.

        https://www.twilio.com/docs/global-infrastructure/using-the-twilio-rest-api-in-a-non-us-region
        """
        if base := self.credential(f"{self.name.upper()}_API_BASE_URL"):
            return base.rstrip("/")
        edge, region = self.credential("TWILIO_EDGE"), self.credential("TWILIO_REGION")
        region = region or ("us1" if edge else "")
        return "https://" + ".".join(part for part in (product, edge, region, "twilio.com") if part)

    def _has_key(self) -> bool:
        return bool(self.credential("TWILIO_API_KEY") and self.credential("TWILIO_API_SECRET"))

    def _user(self) -> tuple[str, str]:
        # The token goes first, for a key may not read the account itself: https://www.twilio.com/docs/iam/api-keys
        token = self.credential(self.token_name)
        if not token and self._has_key():
            return self.credential("TWILIO_API_KEY"), self.credential("TWILIO_API_SECRET")
        return self.credential(self.account_name), token

    def _resource(self, name: str = "", account_id: str = "") -> str:
        """Return a resource's URL: that of the account, or of what it owns; of a sub-account where it is known."""
        owner = path_part(account_id or self.credential(self.account_name))
        return f"{self.api_url()}{self.api_path}/Accounts/{owner}{f'/{name}' if name else ''}.json"

    def _call_resource(self, call_id: str, account_id: str = "", name: str = "") -> str:
        return self._resource(f"Calls/{path_part(call_id)}{f'/{name}' if name else ''}", account_id)

    def _get(self, url: str, fields: Mapping[str, str] | None = None) -> HttpRequest:
        query = f"?{urlencode(fields)}" if fields else ""
        return HttpRequest("GET", url + query, {"Accept": "application/json"}, basic_auth=self._user())

    def _post(self, url: str, fields: Fields) -> HttpRequest:
        headers = {"Accept": "application/json", "Content-Type": _FORM}
        return HttpRequest("POST", url, headers, urlencode(list(fields)).encode(), self._user())

    def _ask(self, request: HttpRequest, what: str, needs: str) -> Steps[dict[str, Any]]:
        """Return the content of a successful response, which has to hold a text under `needs`."""
        return self._read_usable((yield request), what, needs)

    def _read_usable(self, response: ApiResponse, what: str, needs: str, kind: type = str) -> dict[str, Any]:
        """Return the content of a successful response, which has to hold something of that `kind` under `needs`."""
        content = self.read(response, what)
        value = content.get(needs)
        if not isinstance(value, kind) or value == "":
            raise ApiError(
                "refused",
                f"{self.title}'s API gave no usable answer to {what}",
                hint=f"see whether something stands before {self.api_url()}, such as a proxy that wants a login",
            )
        return content

    def _list(self, request: HttpRequest, what: str, key: str, product: str = "api") -> Steps[list[dict[str, Any]]]:
        """
        Return what all pages of a product's list hold under `key`.

        https://www.twilio.com/docs/usage/twilios-response#response-formats-list-paging-information
        """
        base, items = self.api_url(product), []
        for _ in range(PAGE_LIMIT):
            content = self._read_usable((yield request), what, key, list)
            items += [each for each in content[key] if isinstance(each, dict)]
            meta = content.get("meta")
            following = content.get("next_page_uri") or (meta.get("next_page_url") if isinstance(meta, dict) else None)
            # The credentials go to no other host than they went to before.
            following = following.removeprefix(base) if isinstance(following, str) else ""
            if not following.startswith("/"):
                break
            request = self._get(base + following)
        return items

    # Refusals

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        # https://www.twilio.com/docs/usage/twilios-response#response-formats-exceptions
        content = self.error_content(response)
        code, message = printable(content.get("code"), 10), printable(content.get("message"), MESSAGE_LIMIT)
        refused = f"{self.title} refuses {what}"
        if (known := self.error_codes.get(code)) is not None:
            return ApiError(known.kind, f"{refused}: {known.meaning} ({code})", code=code, hint=known.mend)
        error = super().refusal(response, what)
        kind = "not-found" if response.status == 404 else error.kind
        told = f"{refused}: {message}" + (f" ({code})" if code else "") if message else error.message
        return ApiError(kind, told, code=code, hint=error.hint or self.code_page(code) or None)

    def error_content(self, response: ApiResponse) -> Mapping[str, Any]:
        """Return the object that holds an error's ``code`` and ``message``; empty if there is none."""
        return response.content()

    def explain_code(self, code: str) -> tuple[str, str] | None:
        known = self.error_codes.get(code)
        return (known.meaning, known.mend) if known is not None else None

    def code_page(self, code: str) -> str:
        """Return a hint that names the company's own page about a code; empty if there is none."""
        return f"see {self.codes_page.replace('{code}', code)}" if code.isdigit() else ""

    def _explain(self, code: str) -> tuple[str, str]:
        return self.explain_code(code) or ("", self.code_page(code))

    # The account

    def describe(self) -> Steps[AccountInfo]:
        account_id = self.credential(self.account_name)
        response = yield self._get(self._resource())
        if response.status in (401, 403) and self._user()[0] != account_id:
            # A key may be good for everything but this resource.
            numbers = yield self._numbers_page({}, 1)
            self._read_usable(numbers, "the list of numbers", "incoming_phone_numbers", list)
            return AccountInfo(account_id)
        content = self._read_usable(response, "a look at the account", "sid")
        is_trial, status = content.get("type") == "Trial", content.get("status", "active")
        limits = [f"the account is {printable(status, 20)}"] if status != "active" else []
        limits += self.trial_limits if is_trial else []
        name = printable(content.get("friendly_name"), 100)
        return AccountInfo(account_id, name, is_trial, limits)

    # Numbers

    def numbers(self) -> Steps[list[PhoneNumber]]:
        items = yield from self._list(self._numbers_page({}), "the list of numbers", "incoming_phone_numbers")
        return [_read_number(each) for each in items]

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        # The filter finds numbers that contain it, too.
        request = self._numbers_page({"PhoneNumber": number})
        items = yield from self._list(request, f"the search for {number}", "incoming_phone_numbers")
        for item in items:
            if item.get("phone_number") == number:
                return replace(_read_number(item), warnings=(yield from self._look_at_region(number)))
        own = [each.number for each in (yield from self.numbers()) if each.has_voice]
        if len(own) > NAMED_NUMBERS:
            own[NAMED_NUMBERS:] = [f"{len(own) - NAMED_NUMBERS} more"]
        raise ApiError(
            "number",
            f"{number} is no number of the {self.title} account {self.credential(self.account_name)}",
            hint=f"its numbers are {', '.join(own)}" if own else "it has no number that takes calls yet",
        )

    def _look_at_region(self, number: str) -> Steps[list[str]]:
        """Return what to know of the region through which a number's calls come in; nothing if that cannot be read."""
        if not self.has_regions:
            return []
        # https://www.twilio.com/docs/global-infrastructure/inbound-processing-api
        response = yield self._get(f"{self.api_url('routes')}/v2/PhoneNumbers/{path_part(number, '+')}")
        region = printable(response.content().get("voice_region"), 20) if response.status == 200 else ""
        here = self.credential("TWILIO_REGION") or "us1"
        if region in ("", here):
            return []
        return [
            f"its calls come in through the region {region}, and are signed with that region's Auth Token; the "
            f"credentials are those of {here} (TWILIO_REGION)"
        ]

    def _numbers_page(self, fields: Mapping[str, str], size: int = PAGE_SIZE) -> HttpRequest:
        return self._get(self._resource("IncomingPhoneNumbers"), {**fields, "PageSize": str(size)})

    def _number_resource(self, number_id: str) -> str:
        return self._resource(f"IncomingPhoneNumbers/{path_part(number_id)}")

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        if number.obstacle:
            raise ApiError("number", f"{number.number} cannot be pointed here: {number.obstacle}", hint=number.hint)
        save({"number": number.number, "number_id": number.number_id, **number.settings})
        request = self._post(self._number_resource(number.number_id), _pointed(addresses).items())
        yield from self._ask(request, f"the change of {number.number}", "sid")

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        """Put back each setting that is still as we set it; the number is left alone if its webhook is not."""
        resource, what = self._number_resource(saved["number_id"]), f"the change of {saved['number']}"
        response = yield self._get(resource)
        if response.status == 404:
            # It was given back in the meantime.
            return "left"
        now = _read_number(self._read_usable(response, what, "sid")).settings
        before = {name: saved.get(name, "") for name in VOICE_SETTINGS}
        if now == before:
            return "unchanged"
        ours, back = _pointed(addresses), dict[str, str]()
        for url, method in _PAIRS:
            if url in ours and now[url] == ours[url]:
                # An empty URL clears; an empty method is none.
                back |= {url: before[url], **({method: before[method]} if before[method] else {})}
        if any(now[name] != value for name, value in back.items()):
            yield from self._ask(self._post(resource, back.items()), what, "sid")
        return "restored" if now["VoiceUrl"] in (addresses.webhook, before["VoiceUrl"]) else "left"

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        what = f"the call to {call.to_number}"
        request = self._post(self._resource("Calls"), self._call_fields(call))
        content = yield from self._ask(request, what, "sid")
        stage = STAGES.get(str(content.get("status")), "queued")
        account_id = printable(content.get("account_sid"), 64) or self.credential(self.account_name)
        return PlacedCall(printable(content["sid"], 64), account_id=account_id, stage=stage)

    def _call_fields(self, call: OutboundCall) -> list[tuple[str, str]]:
        # https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource
        fields = [
            ("To", call.to_number),
            ("From", call.from_number),
            ("Url", call.webhook_url),
            ("Method", "POST"),
            ("StatusCallback", call.status_url),
            ("StatusCallbackMethod", "POST"),
            *(("StatusCallbackEvent", event) for event in STATUS_EVENTS),
            ("Timeout", str(call.ring_timeout_s)),
        ]
        # Where it cannot be told, the server alone sees to it.
        if call.time_limit_s is not None and self.has_time_limit:
            fields.append(("TimeLimit", str(call.time_limit_s)))
        if call.detection != "off":
            # In the background: otherwise the document, and with it the bot, would wait for the detection's end.
            # https://www.twilio.com/docs/voice/answering-machine-detection#asyncamd
            fields += [
                ("MachineDetection", DETECTIONS[call.detection]),
                ("AsyncAmd", "true"),
                ("AsyncAmdStatusCallback", call.machine_url),
                ("AsyncAmdStatusCallbackMethod", "POST"),
            ]
        return fields

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        return (yield from self._end(placed.call_id, placed.account_id))

    def hang_up(self, call: Call) -> Steps[bool]:
        return (yield from self._end(call.call_id, call.account_id))

    def _end(self, call_id: str, account_id: str) -> Steps[bool]:
        # "completed" ends a call that still rings, too.
        # https://www.twilio.com/docs/voice/api/call-resource#update-a-call-resource
        resource = self._call_resource(call_id, account_id)
        response = yield self._post(resource, [("Status", "completed")])
        try:
            self.read(response, f"the end of the call {call_id}")
        except ApiError as error:
            if error.code in self.over_codes:
                return False
            if error.kind != "not-found":
                raise
            # That has been seen of calls that are over, too:
            # https://github.com/pipecat-ai/pipecat/blob/main/src/pipecat/serializers/twilio.py
            content = yield from self._ask(self._get(resource), f"a look at the call {call_id}", "status")
            if STAGES.get(content["status"]) not in ENDED_STAGES:
                raise
            return False
        return True

    def look_up(self, call_id: str) -> Steps[CallState]:
        content = yield from self._ask(
            self._get(self._call_resource(call_id)), f"a look at the call {call_id}", "status"
        )
        return self._read_call(call_id, content)

    def _read_call(self, call_id: str, content: Mapping[str, Any]) -> CallState:
        # https://www.twilio.com/docs/voice/api/call-resource#call-properties
        stage = STAGES.get(str(content["status"]))
        if stage is None:
            raise ApiError("refused", f"{self.title} says of the call {call_id} that it is {shown(content['status'])}")
        duration, answered_by = _read_decimal(content.get("duration")), content.get("answered_by")
        price, unit = _read_decimal(content.get("price")), printable(content.get("price_unit"), 10)
        sip_code = printable(content.get("sip_result_code"), 10)
        return CallState(
            call_id,
            stage,
            read_answered_by(answered_by) if isinstance(answered_by, str) else None,
            float(duration) if duration is not None else None,
            f"{abs(price)} {unit}".strip() if price is not None else "",
            f"SIP {sip_code}" if sip_code else "",
            printable(content.get("from"), 256),
            printable(content.get("to"), 256),
        )

    def transfer(self, call: Call, to: str) -> Steps[None]:
        twiml = dial_document(to)
        request = self._post(self._call_resource(call.call_id, call.account_id), [("Twiml", twiml)])
        yield from self._ask(request, f"the transfer of the call {call.call_id}", "sid")

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        # Only a call that is placed takes SendDigits, and <Play digits> is a document, which ends the stream.
        # https://www.twilio.com/docs/voice/api/call-resource#senddigits
        raise ApiError(
            "unsupported",
            f"{self.title}'s API presses no keys in a call that streams: a document that does would end the stream",
            hint="let the bot play the tones into its stream: pipecat does so for an OutputDTMFFrame",
        )
        yield

    # What was recorded

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """
        Return the documents that were asked for, and the debugger's alerts and notifications.

        The former are there 15 minutes after the call's end: https://www.twilio.com/docs/voice/api/call-event-resource

        The latter are mostly the same things: https://www.twilio.com/docs/usage/monitor-alert
        """
        call = yield from self._ask(self._get(self._call_resource(call_id)), f"a look at the call {call_id}", "status")
        account_id = printable(call.get("account_sid"), 64)
        page = {"PageSize": str(PAGE_SIZE)}
        found: list[Evidence] = []
        events = self._get(self._call_resource(call_id, account_id, "Events"), page)
        asked = yield from self._optional(events, "events", found)
        found += [read_event(each, self._explain) for each in asked]
        notifications = self._get(self._call_resource(call_id, account_id, "Notifications"), page)
        noted = yield from self._optional(notifications, "notifications", found)
        found += [read_notification(each, self._explain) for each in noted]
        known = [each.get("sid") for each in noted]
        # No filter finds those of one call.
        alerts = self._get(f"{self.api_url('monitor')}/v1/Alerts", {**time_span(call), **page})
        for each in (yield from self._optional(alerts, "alerts", found, "monitor")):
            if each.get("resource_sid") == call_id and each.get("sid") not in known:
                found.append(read_alert(each, self._explain))
        return in_order(found)

    def _optional(
        self, request: HttpRequest, key: str, found: list[Evidence], product: str = "api"
    ) -> Steps[list[dict[str, Any]]]:
        """Return a list of what was recorded; if it cannot be read, that is `found`, and the others are looked at."""
        try:
            return (yield from self._list(request, f"the list of the call's {key}", key, product))
        except ApiError as error:
            found.append(Evidence(error.message, code=error.code, hint=error.hint or ""))
            return []


def _pointed(addresses: ServerAddresses) -> dict[str, str]:
    """Return the settings of a number that is pointed at a server."""
    # Without a fallback: what this server fails to answer is to be seen, not answered by another one.
    fields = {"VoiceUrl": addresses.webhook, "VoiceMethod": "POST", "VoiceFallbackUrl": ""}
    if addresses.status:
        fields |= {"StatusCallback": addresses.status, "StatusCallbackMethod": "POST"}
    return fields


def _read_number(item: Mapping[str, Any]) -> PhoneNumber:
    # As they are, down to the last character: they are put back.
    settings = {name: value if isinstance(value := item.get(key), str) else "" for name, key in VOICE_SETTINGS.items()}
    overrides = {name: printable(item.get(key), 64) for name, key in OVERRIDES.items()}
    capabilities = item.get("capabilities")
    able = capabilities.items() if isinstance(capabilities, dict) else ()
    # SignalWire writes Voice as well.
    has_voice = any(value and str(name).lower() == "voice" for name, value in able)
    points_at, obstacle, hint = printable(settings["VoiceUrl"], 200), "", ""
    if not has_voice:
        obstacle, hint = "it takes no calls", "choose a number that has the capability Voice"
    elif trunk := overrides["TrunkSid"]:
        points_at = f"SIP trunk {trunk}"
        obstacle, hint = f"the {points_at} takes its calls", "take the number off the trunk, or choose another one"
    elif application := overrides["VoiceApplicationSid"]:
        points_at = f"application {application}"
        obstacle = f"the TwiML {points_at} takes its calls, and its own webhook is not asked"
        hint = "let the number's page say Webhook instead of TwiML App, or choose another number"
    elif item.get("voice_receive_mode") == "fax":
        obstacle, hint = "it receives faxes instead of calls", "let the number's page say Voice instead of Fax"
    number, number_id = printable(item.get("phone_number"), 64), printable(item.get("sid"), 64)
    name = printable(item.get("friendly_name"), 100)
    return PhoneNumber(number, number_id, name, has_voice, points_at, settings, obstacle, hint)


def _read_decimal(value: object) -> Decimal | None:
    """Return a number that is written as one or as text; ``None`` if it is neither, as in a call that goes on."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
