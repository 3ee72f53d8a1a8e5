"""
Telnyx's REST API as its customer uses it: numbers pointed by applications of our own, calls placed and looked up.

A number belongs to an application, and the calls of all its numbers go where that one says. So a number is pointed by
making an application and giving it the number; the former application, which others may share, is left as it is.

Numbers: https://developers.telnyx.com/api-reference/phone-number-configurations/update-a-phone-number
Applications: https://developers.telnyx.com/api-reference/texml-applications/creates-a-texml-application
Calls: https://developers.telnyx.com/api-reference/call-commands/dial
TeXML calls: https://developers.telnyx.com/api-reference/texml-rest-commands/initiate-an-outbound-call
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

from wsvoice.call import Call
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
from wsvoice.providers.callbacks import printable
from wsvoice.providers.fields import read_counter, read_time, shown, text_or_nothing, without_plus
from wsvoice.providers.telnyx.codes import explain
from wsvoice.providers.telnyx.company import API_NAMES, TelnyxCompany, stable_uuid
from wsvoice.providers.telnyx.records import (
    CALL_CONTROL,
    KINDS,
    NAME_LIMIT,
    TEXML,
    URL_LIMIT,
    Application,
    data_of,
    latest_running,
    read_application,
    read_error,
    read_event,
    read_failed_attempts,
    read_state,
    read_texml_state,
    tell_stage,
    text_of,
)
from wsvoice.providers.xml_writer import document, element

#: For how long a call may ring, and last: least and most, in seconds.
#: https://developers.telnyx.com/api-reference/call-commands/dial
_RINGS_S, _LASTS_S = (5, 600), (30, 14400)
#: https://developers.telnyx.com/api-reference/texml-rest-commands/initiate-an-outbound-call
_TEXML_RINGS_S = (5, 120)
#: Items of a list that are asked for at once, and lists that are read at most.
_PAGE_SIZE, _PAGE_LIMIT = 250, 40
#: What a wsvoice calls the applications that it makes, for which number.
_OURS = re.compile(r"wsvoice \S+ (\+\d+)( \(\d+\))?")


class TelnyxAccount(TelnyxCompany, Account):
    """The API, whose key is a bearer token."""

    needed: ClassVar[tuple[str, ...]] = ("TELNYX_API_KEY",)
    credentials_place: ClassVar[str] = "the portal makes one under API Keys"
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        """
        Return the error for a response that is no success.

        A call that the telephone network would not take has its reason in the detail, or beside the errors.

        https://developers.telnyx.com/development/api-fundamentals/api-errors
        """
        content = response.content()
        code, title, detail = read_error(content)
        known = explain(code)
        if response.status == 401:
            known = explain("10009")
        elif response.status == 429:
            known = explain("10011")
        elif known is None and response.status == 404:
            known = explain("10005")
        elif known is None and response.status == 403:
            known = explain("10010")
        elif known is None and (response.status == 402 or "funds" in title.lower()):
            known = explain("20100")
        kind, meaning, mend = known or (refused_kind(response.status), "", "")
        if kind in ("credentials", "rate-limit"):
            return ApiError(kind, f"Telnyx answers {response.status}: {meaning}", code=code, hint=mend)
        reason = meaning if code.isalnum() and not code.isdigit() else detail or title or meaning
        told = f"{reason or f'the answer is {response.status}'}{f' ({code})' if code else ''}"
        return ApiError(kind, f"Telnyx refuses {what}: {told}", code=code, hint=mend or None)

    def explain_code(self, code: str) -> tuple[str, str] | None:
        known = explain(code)
        return (known.meaning, known.mend) if known else None

    def describe(self) -> Steps[AccountInfo]:
        """
        Return the organization that the API key belongs to.

        Telnyx does not say whether it is on trial. Its balance is read where the key may read it.

        https://developers.telnyx.com/api-reference/balance/get-user-balance-details
        """
        owner = yield from self._get("the account", "whoami")
        response = yield self.api_request("GET", "balance")
        balance = data_of(response.content()) if response.status == 200 else {}
        limits = []
        credit, currency = text_or_nothing(balance.get("available_credit")), text_or_nothing(balance.get("currency"))
        if credit and _is_spent(credit):
            limits.append(
                f"there is no credit left ({credit} {currency}), so calls are refused: add funds in the portal"
            )
        name = printable(owner.get("organization_name") or owner.get("email") or "", NAME_LIMIT)
        return AccountInfo(text_of(owner, "organization_id") or text_of(owner, "user_id"), name, None, limits)

    # Numbers

    def numbers(self) -> Steps[list[PhoneNumber]]:
        found = yield from self._list("the list of numbers", "phone_numbers")
        return [self._read_number(each) for each in found if text_of(each, "phone_number")]

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        record = yield from self._find_record(number)
        if record is None:
            raise ApiError(
                "number",
                f"{number} is not a number of this Telnyx account",
                hint="`wsvoice number list -t telnyx` prints those that are",
            )
        application = yield from self._find_application(text_of(record, "connection_id"))
        warnings = []
        if application is not None:
            sharing = yield from self._numbers_of(application.application_id)
            others = [each for each in sharing if text_of(each, "id") != text_of(record, "id")]
            if others:
                one = len(others) == 1
                count = "another number shares" if one else f"{len(others)} other numbers share"
                warnings.append(f"{count} the {application}, and stay{'s' if one else ''} with it")
            if _is_ours(application.name, number):
                warnings.append(f"another wsvoice has pointed it at {application.url}, or had and did not put it back")
        return self._read_number(record, application, warnings)

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        """
        Give the number to an application of our own, which has the addresses.

        The application is named after the server and the number. One that is left over of an earlier run, or of an
        earlier address of this run, is used again.
        """
        former_id = number.settings.get("connection_id", "")
        former = yield from self._find_application(former_id)
        ours = yield from self._applications_of(number.number)
        reused = next((each for each in ours if each.application_id != former_id), None)
        content = _application_content(number.number, addresses, former, taken={each.name for each in ours})
        saved = {
            "number": number.number,
            "number_id": number.number_id,
            "connection_id": former_id,
            "application_id": reused.application_id if reused else "",
        }
        save(saved)
        if reused is not None:
            what = f"a change of the {reused}"
            yield from self._send(what, "PATCH", "texml_applications", reused.application_id, content=content)
        else:
            made = yield from self._send("a new TeXML application", "POST", "texml_applications", content=content)
            saved = {**saved, "application_id": text_of(made, "id")}
            save(saved)
        yield from self._assign(number.number, number.number_id, saved["application_id"])

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        """
        Give the number back to its former application, and remove ours.

        The number is left alone unless it still belongs to our application, and that has our address. Ours is removed
        in any case, unless it has another address or other numbers.
        """
        number, number_id, former_id = saved["number"], saved["number_id"], saved["connection_id"]
        ours = yield from self._find_ours(saved, addresses)
        response = yield self.api_request("GET", "phone_numbers", number_id)
        gone = response.status == 404
        record = {} if gone else data_of(self.read(response, f"the number {number}"))
        current_id = text_of(record, "connection_id")
        outcome: Restored = "unchanged" if current_id == former_id and not gone else "left"
        if ours is not None and current_id == ours.application_id and not gone:
            yield from self._assign(number, number_id, former_id)
            outcome = "restored"
        if ours is not None:
            yield from self._remove(ours, number_id)
        return outcome

    def _read_number(
        self, record: Mapping[str, Any], application: Application | None = None, warnings: list[str] | None = None
    ) -> PhoneNumber:
        """Return a number; without its application it is known by name only where it points."""
        status, name = text_of(record, "status"), text_of(record, "connection_name")
        points_at = f"connection {shown(name)}" if name else ""
        if application is not None:
            points_at = printable(application.url, URL_LIMIT) or str(application)
        is_active = status in ("", "active")
        return PhoneNumber(
            number=text_of(record, "phone_number"),
            number_id=text_of(record, "id"),
            name=printable(record.get("customer_reference") or "", NAME_LIMIT),
            has_voice=text_of(record, "phone_number_type") != "shortcode",
            points_at=points_at,
            settings={"connection_id": text_of(record, "connection_id")},
            obstacle="" if is_active else f"its status is {shown(status)}",
            hint="" if is_active else "wait until it is active; the portal says under My Numbers what is missing",
            warnings=tuple(warnings or ()),
        )

    def _find_record(self, number: str) -> Steps[dict[str, Any] | None]:
        # "Non-numerical characters will result in no values being returned", and a part of a number is found too.
        query = {"filter[phone_number]": without_plus(number)}
        found = yield from self._list(f"the number {number}", "phone_numbers", query=query)
        return next((each for each in found if each.get("phone_number") == number), None)

    def _numbers_of(self, application_id: str) -> Steps[list[dict[str, Any]]]:
        query = {"filter[connection_id]": application_id}
        numbers = yield from self._list("the list of numbers", "phone_numbers", query=query)
        return numbers

    def _find_application(self, connection_id: str) -> Steps[Application | None]:
        """
        Return the connection of that id; ``None`` if there is none.

        Its type is told by the list that has all of them, its address by the application itself.

        https://developers.telnyx.com/api-reference/connections/retrieve-a-connection
        """
        if not connection_id:
            return None
        response = yield self.api_request("GET", "connections", connection_id)
        if response.status == 404:
            return None
        record = data_of(self.read(response, f"the connection {connection_id}"))
        record_type = text_of(record, "record_type")
        if record_type in KINDS:
            known = yield from self._get(f"the application {connection_id}", f"{record_type}s", connection_id)
            return read_application({**known, "record_type": record_type})
        return read_application(record)

    def _applications_of(self, number: str) -> Steps[list[Application]]:
        """Return the applications that a wsvoice has made for a number."""
        query = {"filter[friendly_name]": without_plus(number)}
        found = yield from self._list("the list of TeXML applications", "texml_applications", query=query)
        applications = [read_application({**each, "record_type": TEXML}) for each in found]
        return [each for each in applications if _is_ours(each.name, number)]

    def _find_ours(self, saved: Saved, addresses: ServerAddresses) -> Steps[Application | None]:
        """Return the application that was made for a number; ``None`` if it is gone, or has another address by now."""
        if application_id := saved["application_id"]:
            response = yield self.api_request("GET", "texml_applications", application_id)
            known = {} if response.status == 404 else data_of(self.read(response, f"the application {application_id}"))
            made = [read_application({**known, "record_type": TEXML})]
        else:
            # A process that ended before it saved the id may have made it all the same.
            made = yield from self._applications_of(saved["number"])
        able = (each for each in made if each.application_id != saved["connection_id"])
        return next((each for each in able if each.url == addresses.webhook), None)

    def _assign(self, number: str, number_id: str, connection_id: str) -> Steps[None]:
        """
        Give a number to an application; to none if the id is empty, as with messaging profiles.

        https://developers.telnyx.com/api-reference/phone-number-configurations/update-a-phone-number
        """
        content = {"connection_id": connection_id}
        yield from self._send(f"a change of {number}", "PATCH", "phone_numbers", number_id, content=content)

    def _remove(self, application: Application, number_id: str) -> Steps[None]:
        """Delete an application of ours that has no number but this one, which it may be listed with for a while."""
        numbers = yield from self._numbers_of(application.application_id)
        if any(text_of(each, "id") != number_id for each in numbers):
            return
        response = yield self.api_request("DELETE", "texml_applications", application.application_id)
        if response.status != 404:
            self.read(response, f"the removal of the {application}")

    # Calls

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """
        Place a call, by the application that ``TELNYX_CONNECTION_ID`` names, or else by that of the calling number.

        A Call Control application is told the stream at once, and reports everything to the status address, which
        replaces its own for this call. A TeXML one asks for the document. A number that has neither calls by the only
        Call Control application that has an outbound voice profile, if there is just one: nothing of it is changed.

        The bot's parameters are not sent, for the token in the stream's URL stands for them.
        """
        application = yield from self._find_caller(call.from_number)
        if application.record_type == CALL_CONTROL:
            placed = yield from self._dial_by_command(call, application)
        else:
            placed = yield from self._dial_by_document(call, application)
        return placed

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        """
        End a call that we placed.

        TeXML does not name a call that it takes. Until its first report does, it is looked for among the latest calls
        between the two numbers, which Telnyx lists with some delay.

        https://developers.telnyx.com/api-reference/texml-rest-commands/fetch-multiple-call-resources
        """
        call_id = placed.call_id
        if not call_id:
            caller, _, called = placed.request_id.partition(" ")
            query: dict[str, str | int] = {"From": caller, "To": called, "PageSize": 20}
            response = yield self.api_request("GET", "texml", "Accounts", placed.account_id, "Calls", query=query)
            calls = self.read(response, "the list of calls").get("calls")
            call_id = latest_running(calls if isinstance(calls, list) else [])
            if not call_id:
                raise ApiError(
                    "not-found", f"Telnyx does not list the call to {called} yet", hint="try again in a second"
                )
        try:
            ended = yield from self.hang_up(Call(self.name, call_id, account_id=placed.account_id, control="api"))
        except ApiError as error:
            if error.kind != "not-found":
                raise
            ended = False
        return ended

    def look_up(self, call_id: str) -> Steps[CallState]:
        """
        Return how a call stands.

        The call itself tells little more than whether it goes on; its events tell the rest, or else TeXML does. It is
        known for ten minutes after its end, TeXML's for a month.

        https://developers.telnyx.com/api-reference/call-information/retrieve-a-call-status
        """
        response = yield self.api_request("GET", "calls", call_id)
        state = None
        if response.status not in (404, 422):
            data = data_of(self.read(response, f"the call {call_id}"))
            events = yield from self._events_of(data)
            state = read_state(call_id, data, events)
            if tell_stage(events):
                return state
        try:
            state = yield from self._look_up_texml(call_id)
        except ApiError as error:
            if state is None or error.kind != "not-found":
                raise
        return state

    def hang_up(self, call: Call) -> Steps[bool]:
        """
        End a call of either kind: a ``CallSid`` is the id by which Call Control knows the call.

        pipecat ends TeXML's calls so too. TeXML's own request would have to name the organization, as no stream does.

        https://developers.telnyx.com/api-reference/callbacks/texml-call-completed
        """
        content = {"command_id": stable_uuid("hangup", call.call_id)}
        try:
            yield from self._command(call, "hangup", content)
        except ApiError as error:
            if error.kind != "ended":
                raise
            return False
        return True

    def transfer(self, call: Call, to: str) -> Steps[None]:
        """
        Connect the caller to somebody else.

        A document's call gets another document. A call that is controlled by commands keeps its stream until it is
        told to stop.

        https://developers.telnyx.com/api-reference/call-commands/transfer-call
        https://developers.telnyx.com/api-reference/texml-rest-commands/update-call
        """
        if call.control == "api":
            yield from self._command(call, "transfer", {"to": to})
            # The stream may have ended by itself.
            yield self.api_request("POST", "calls", call.call_id, "actions", "streaming_stop", content={})
            return
        organization_id = yield from self._organization()
        target = element("Sip", None, to) if to.lower().startswith(("sip:", "sips:")) else element("Number", None, to)
        content = {"Texml": document(element("Dial", None, target))}
        path = ("texml", "Accounts", organization_id, "Calls", call.call_id)
        yield from self._send(f"the transfer to {to}", "POST", *path, content=content)

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        # https://developers.telnyx.com/api-reference/call-commands/send-dtmf
        yield from self._command(call, "send_dtmf", {"digits": digits})

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """
        Return the events of a call, and the webhooks that did not reach us.

        https://developers.telnyx.com/api-reference/debugging/list-call-events
        https://developers.telnyx.com/api-reference/webhooks/list-webhook-deliveries
        """
        response = yield self.api_request("GET", "calls", call_id)
        is_known = response.status not in (404, 422)
        events = []
        if is_known:
            events = yield from self._events_of(data_of(self.read(response, f"the call {call_id}")))
        query = {"filter[webhook][contains]": call_id}
        deliveries = yield from self._list("the list of webhooks", "webhook_deliveries", query=query)
        if not is_known and not deliveries:
            # Its state says no more than that there was such a call; without one it is an error.
            yield from self._look_up_texml(call_id)
        found = [*map(read_event, events)]
        found += [each for delivery in deliveries for each in read_failed_attempts(delivery)]
        return sorted(found, key=lambda each: read_time(each.when) or 0.0)

    def _find_caller(self, number: str) -> Steps[Application]:
        """
        Return the application by which a number calls.

        Raises:
            ApiError: If there is none, or more than one that would do.
        """
        make = "make a Call Control application with an outbound voice profile in the portal under Voice"
        if configured := self.credential("TELNYX_CONNECTION_ID"):
            application = yield from self._find_application(configured)
            if application is None or application.record_type not in KINDS:
                what = "no connection of this account" if application is None else f"the {application}"
                raise ApiError(
                    "not-found", f"TELNYX_CONNECTION_ID names {what}, by which no call can be placed", hint=make
                )
            return application
        record = yield from self._find_record(number)
        application = yield from self._find_application(text_of(record or {}, "connection_id"))
        if application is not None and application.record_type in KINDS:
            return application
        found = yield from self._list("the list of Call Control applications", "call_control_applications")
        applications = [read_application({**each, "record_type": CALL_CONTROL}) for each in found]
        able = [each for each in applications if each.profile_id]
        if len(able) == 1:
            return able[0]
        if not able:
            raise ApiError(
                "permission", f"no application lets {number} call", hint=f"{make}, and assign the number to it"
            )
        names = ", ".join(f"{each.application_id} ({each.name[:NAME_LIMIT]})" for each in able[:5])
        raise ApiError(
            "refused",
            f"{number} has no application to call by, and the account has {len(able)}",
            hint=f"set TELNYX_CONNECTION_ID to one of {names}",
        )

    def _dial_by_command(self, call: OutboundCall, application: Application) -> Steps[PlacedCall]:
        # https://developers.telnyx.com/docs/voice/programmable-voice/answering-machine-detection
        detection = {"detect": "detect", "greeting-end": "greeting_end"}.get(call.detection)
        content = {
            "connection_id": application.application_id,
            "to": call.to_number,
            "from": call.from_number,
            "stream_url": call.stream_url,
            **self.stream_settings(API_NAMES),
            "webhook_url": call.status_url,
            "webhook_url_method": "POST",
            "timeout_secs": _within(call.ring_timeout_s, _RINGS_S),
            **({"time_limit_secs": _within(call.time_limit_s, _LASTS_S)} if call.time_limit_s else {}),
            **({"answering_machine_detection": detection} if detection else {}),
        }
        data = yield from self._send(f"the call to {call.to_number}", "POST", "calls", content=content)
        return PlacedCall(text_of(data, "call_control_id"), control="api")

    def _dial_by_document(self, call: OutboundCall, application: Application) -> Steps[PlacedCall]:
        organization_id = yield from self._organization()
        content: dict[str, Any] = {
            "ApplicationSid": application.application_id,
            "To": call.to_number,
            "From": call.from_number,
            "Url": call.webhook_url,
            "UrlMethod": "POST",
            "StatusCallback": call.status_url,
            "StatusCallbackMethod": "POST",
            "StatusCallbackEvent": "initiated ringing answered completed",
            "Timeout": _within(call.ring_timeout_s, _TEXML_RINGS_S),
        }
        if call.time_limit_s:
            content["TimeLimit"] = _within(call.time_limit_s, _LASTS_S)
        if call.detection != "off":
            # https://developers.telnyx.com/docs/voice/programmable-voice/texml-answering-machine
            content |= {
                "MachineDetection": "DetectMessageEnd" if call.detection == "greeting-end" else "Enable",
                "DetectionMode": "Regular",
                "AsyncAmd": True,
                "AsyncAmdStatusCallback": call.machine_url,
                "AsyncAmdStatusCallbackMethod": "POST",
            }
        request = self.api_request("POST", "texml", "Accounts", organization_id, "Calls", content=content)
        answer = self.read((yield request), f"the call to {call.to_number}")
        # The documented answer does not name the call; users have seen ones that do.
        call_id = next((found for name in ("sid", "call_sid", "CallSid") if (found := text_of(answer, name))), "")
        return PlacedCall(call_id, f"{call.from_number} {call.to_number}", organization_id)

    def _look_up_texml(self, call_id: str) -> Steps[CallState]:
        organization_id = yield from self._organization()
        response = yield self.api_request("GET", "texml", "Accounts", organization_id, "Calls", call_id)
        if response.status in (404, 422):
            known = explain("90015")
            assert known is not None
            raise ApiError(known.kind, f"Telnyx knows no call {shown(call_id)}", code="90015", hint=known.mend)
        return read_texml_state(call_id, self.read(response, f"the call {call_id}"))

    def _events_of(self, call: Mapping[str, Any]) -> Steps[list[dict[str, Any]]]:
        """Return a call's events, oldest first."""
        query = {"filter[leg_id]": text_of(call, "call_leg_id")}
        events = yield from self._list("the call's events", "call_events", query=query)
        return sorted(events, key=lambda each: read_time(each.get("event_timestamp")) or 0.0)

    def _command(self, call: Call, action: str, content: Mapping[str, Any]) -> Steps[None]:
        what = f"{action} for the call {call.call_id}"
        yield from self._send(what, "POST", "calls", call.call_id, "actions", action, content=content)

    def _organization(self) -> Steps[str]:
        """Return what TeXML calls the account: https://developers.telnyx.com/api-reference/texml-rest-commands"""
        owner = yield from self._get("the account", "whoami")
        return text_of(owner, "organization_id")

    # Requests

    def _get(self, what: str, *path: str) -> Steps[dict[str, Any]]:
        return data_of(self.read((yield self.api_request("GET", *path)), what))

    def _send(self, what: str, method: str, *path: str, content: Mapping[str, Any]) -> Steps[dict[str, Any]]:
        return data_of(self.read((yield self.api_request(method, *path, content=content)), what))

    def _list(self, what: str, path: str, *, query: Mapping[str, str] | None = None) -> Steps[list[dict[str, Any]]]:
        """
        Return every item of a list, which may have several pages.

        https://developers.telnyx.com/development/api-fundamentals/pagination
        """
        items: list[dict[str, Any]] = []
        for page in range(1, _PAGE_LIMIT + 1):
            paged: dict[str, str | int] = {**(query or {}), "page[size]": _PAGE_SIZE}
            if page > 1:
                paged["page[number]"] = page
            content = self.read((yield self.api_request("GET", path, query=paged)), what)
            data, meta = content.get("data"), content.get("meta")
            items += [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
            if page >= (read_counter(meta.get("total_pages")) or 0 if isinstance(meta, dict) else 0):
                break
        return items


def _is_ours(name: str, number: str) -> bool:
    """Whether an application has the name of one that a wsvoice has made for a number."""
    match = _OURS.fullmatch(name)
    return match is not None and match[1] == number


def _application_content(
    number: str, addresses: ServerAddresses, former: Application | None, *, taken: set[str]
) -> dict[str, Any]:
    """Return the settings of an application of ours; it calls out by the former one's outbound voice profile."""
    name = f"wsvoice {urlsplit(addresses.webhook).netloc} {number}"
    if former is not None and former.name in taken:
        # Names are unique, and a wsvoice that was not put back has this one.
        names = (name, *(f"{name} ({count})" for count in range(2, len(taken) + 3)))
        name = next(each for each in names if each != former.name)
    content: dict[str, Any] = {"friendly_name": name, "voice_url": addresses.webhook, "voice_method": "post"}
    if addresses.status:
        content |= {"status_callback": addresses.status, "status_callback_method": "post"}
    if former is not None and former.profile_id:
        content["outbound"] = {"outbound_voice_profile_id": former.profile_id}
    return content


def _within(value: int, limits: tuple[int, int]) -> int:
    return max(limits[0], min(value, limits[1]))


def _is_spent(credit: str) -> bool:
    try:
        return float(credit) <= 0
    except ValueError:
        return False
