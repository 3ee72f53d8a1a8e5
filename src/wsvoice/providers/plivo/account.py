"""Plivo's REST API as its customer uses it: https://docs.plivo.com/docs/voice/api/overview"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias
from urllib.parse import urlencode, urlsplit

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
from wsvoice.providers.callbacks import VALUE_LIMIT, printable
from wsvoice.providers.fields import read_counter, text_or_nothing, with_plus, without_plus, write_object
from wsvoice.providers.plivo.company import STAGES, PlivoCompany
from wsvoice.providers.plivo.hangup_causes import HANGUP_CAUSES

#: Objects of one page, at most: https://docs.plivo.com/docs/voice/api/overview
PAGE_SIZE = 20
#: Pages of a list that are read.
PAGE_LIMIT = 500
#: A call's time limit in seconds, at most: https://docs.plivo.com/docs/voice/api/call/make-a-call
TIME_LIMIT_S = 86_400

Resource: TypeAlias = Mapping[str, Any]

# How the names of our applications begin, and what of an application is about messages.
_OURS = "wsvoice-"
_MESSAGES = ("message_url", "message_method")
# What an application's name may hold: https://docs.plivo.com/docs/account/api/application/create-an-application
_NOT_NAMED = re.compile(r"[^A-Za-z0-9_-]+")
_TRIAL_LIMIT = "a trial account calls only numbers that are verified under Phone Numbers > Sandbox Numbers"
# What errors say: their words, the kind, what mends it, and the code of the hangup cause that is the same.
# https://support.plivo.com/hc/en-us/articles/360042246911
_REASONS: Sequence[tuple[re.Pattern[str], str, str, str]] = (
    (re.compile(r"country\b.*\bbarred", re.IGNORECASE), "permission", HANGUP_CAUSES["2030"].mend, "2030"),
    (re.compile(r"(number|prefix)\b.*\bbarred", re.IGNORECASE), "permission", HANGUP_CAUSES["2040"].mend, "2040"),
    (re.compile(r"\btrial\b|\bsandbox\b|\b(not|un)[ -]?verified\b", re.IGNORECASE), "trial", _TRIAL_LIMIT, ""),
    (re.compile(r"capability is currently disabled", re.IGNORECASE), "trial", "ask for it in the console", ""),
    (re.compile(r"\bcompliance\b", re.IGNORECASE), "number", "see Phone Numbers > Compliance in the console", ""),
    (re.compile(r"\bcredits?\b|\bbalance\b", re.IGNORECASE), "balance", HANGUP_CAUSES["1010"].mend, "1010"),
)


class PlivoAccount(PlivoCompany, Account):
    """An account of Plivo's."""

    needed: ClassVar[tuple[str, ...]] = ("PLIVO_AUTH_ID", "PLIVO_AUTH_TOKEN")
    credentials_place: ClassVar[str] = "the Auth ID and the Auth Token in the console's overview"
    has_numbers: ClassVar[bool] = True
    has_calls: ClassVar[bool] = True

    def refusal(self, response: ApiResponse, what: str) -> ApiError:
        """
        Return the error for a response that is no success, by its status and its words; there are no codes.

        https://docs.plivo.com/docs/voice/api/overview
        """
        status, said = response.status, _error_text(response)
        if status == 401:
            where = f"check PLIVO_AUTH_ID and PLIVO_AUTH_TOKEN: {self.credentials_place}"
            return ApiError("credentials", f"Plivo does not take the credentials ({status})", hint=where)
        if status == 429:
            return super().refusal(response, what)
        message = f"Plivo refuses {what}: {said or 'it does not say why'} ({status})"
        for words, kind, hint, code in _REASONS:
            if words.search(said):
                return ApiError(kind, message, code=code, hint=hint)
        if status == 403:
            hint = "see whether the account is verified, and Voice > Geo Permissions in the console"
            return ApiError("permission", message, hint=hint)
        if status == 404:
            return ApiError("not-found", message)
        mend = "see status.plivo.com, and try again later" if status >= 500 else None
        return ApiError(refused_kind(status), message, hint=mend)

    def describe(self) -> Steps[AccountInfo]:
        # https://docs.plivo.com/docs/account/api/account/the-account-object
        told = self.read((yield self._request("GET")), "the account")
        kind = text_or_nothing(told.get("account_type"))
        limits = []
        if kind == "developer":
            # https://console.plivo.com/phone-numbers/sandbox-numbers/
            limits.append(_TRIAL_LIMIT)
        if told.get("billing_mode") == "prepaid" and _is_used_up(told.get("cash_credits")):
            limits.append("there is no credit left: it can neither place calls nor take them")
        account_id = text_or_nothing(told.get("auth_id")) or self.credential("PLIVO_AUTH_ID")
        is_trial = kind == "developer" if kind else None
        return AccountInfo(account_id, text_or_nothing(told.get("name")), is_trial, tuple(limits))

    # Numbers: https://docs.plivo.com/docs/numbers/api/account-phone-number

    def numbers(self) -> Steps[list[PhoneNumber]]:
        listed = yield from self._list("Number")
        applications = {_app_id(each): each for each in (yield from self._list("Application"))}
        return [_read_number(each, applications.get(_app_id(each)), ()) for each in listed]

    def find_number(self, number: str) -> Steps[PhoneNumber]:
        response = yield self._request("GET", "Number", without_plus(number))
        if response.status == 404:
            raise ApiError(
                "number",
                f"{number} is not a number of this Plivo account",
                hint="`wsvoice number list -t plivo` shows those that are",
            )
        found = self.read(response, f"the number {number}")
        app_id = _app_id(found)
        if not app_id:
            return _read_number(found, None, ())
        response = yield self._request("GET", "Application", app_id)
        # There is none of that id where it is a trunk's, which cannot be put back as an application can.
        application = None if response.status == 404 else self.read(response, f"the application {app_id}")
        others = [each for each in (yield from self._list("Number")) if _app_id(each) == app_id]
        sharing = [name for each in others if (name := _number(each)) != _number(found)]
        return _read_number(found, application, sharing)

    def point(self, number: PhoneNumber, addresses: ServerAddresses, save: Callable[[Saved], None]) -> Steps[None]:
        """
        Let the calls of `number` come to `addresses`, by an application of our own, which is made for it.

        Plivo's addresses stand in applications, which numbers share: the number's own is not touched. Messages that
        come to the number still go where that one sends them. A number that is pointed to another address than before
        leaves our application for that one behind, which is deleted.
        """
        if number.obstacle:
            raise ApiError("number", f"{number.number}: {number.obstacle}", hint=number.hint or None)
        name = application_name(addresses)
        found = yield self._request("GET", "Number", without_plus(number.number))
        now = _app_id(self.read(found, f"the number {number.number}"))
        applications = {_app_id(each): each for each in (yield from self._list("Application"))}
        earlier = now if _is_ours(applications.get(now, {})) else ""
        before = number.settings.get("app_id", "") if earlier else now
        saved = {"number": number.number, "app_id": before, "application": name}
        save(saved)
        content = {
            "answer_url": addresses.webhook,
            "answer_method": "POST",
            **({"hangup_url": addresses.status, "hangup_method": "POST"} if addresses.status else {}),
            **{key: value for key in _MESSAGES if (value := applications.get(before, {}).get(key))},
        }
        # One of the same name is left of a run that could not end properly.
        left = next((app_id for app_id, each in applications.items() if each.get("app_name") == name), "")
        path, told = ((left,), content) if left else ((), {"app_name": name, **content})
        made = self.read((yield self._request("POST", "Application", *path, content=told)), f"the application {name}")
        ours = left or _app_id(made)
        save({**saved, "our_app_id": ours})
        response = yield self._assign(number.number, ours)
        if not 200 <= response.status < 300:
            if not left:
                yield self._request("DELETE", "Application", ours)
            raise self.refusal(response, f"to point {number.number} at {name}")
        if earlier not in ("", ours, before):
            yield from self._delete_unused(earlier, number.number)

    def restore(self, saved: Saved, addresses: ServerAddresses) -> Steps[Restored]:
        number, before = saved["number"], saved.get("app_id", "")
        response = yield self._request("GET", "Number", without_plus(number))
        # A number that is gone is somebody's change as well.
        now = _app_id(self.read(response, f"the number {number}")) if response.status != 404 else None
        ours = saved.get("our_app_id") or (yield from self._find_named(saved.get("application", "")))
        if not ours or ours == before:
            return "unchanged" if now == before else "left"
        if now == ours:
            response = yield self._request("GET", "Application", ours)
            application = {} if response.status == 404 else self.read(response, f"the application {ours}")
            if application.get("answer_url") != addresses.webhook:
                return "left"
            put_back = yield self._assign(number, before)
            if before:
                self.read(put_back, f"to put {number} back to the application {before}")
        # A number that had no application loses ours with it, whether or not Plivo takes an empty one.
        yield from self._delete_unused(ours, number)
        if now == ours:
            return "restored"
        return "unchanged" if now == before else "left"

    def _assign(self, number: str, app_id: str) -> HttpRequest:
        """Return the request that lets an application take the calls of a number; none takes them if it is empty."""
        # https://docs.plivo.com/docs/numbers/api/account-phone-number/update-a-number
        return self._request("POST", "Number", without_plus(number), content={"app_id": app_id})

    def _delete_unused(self, app_id: str, number: str) -> Steps[None]:
        """Delete an application, unless another number than `number` has come to use it."""
        listed = yield from self._list("Number")
        if not any(_app_id(each) == app_id and _number(each) != number for each in listed):
            response = yield self._request("DELETE", "Application", app_id)
            if response.status != 404:
                self.read(response, f"to delete the application {app_id}")

    def _find_named(self, name: str) -> Steps[str]:
        """Return the id of the application of that name; empty if there is none."""
        listed = yield from self._list("Application")
        return next((_app_id(each) for each in listed if name and each.get("app_name") == name), "")

    # Calls: https://docs.plivo.com/docs/voice/api/call

    def dial(self, call: OutboundCall) -> Steps[PlacedCall]:
        """
        Place a call; its id comes with the first report, or the webhook.

        Who answers is detected while the call goes on, because `machine_url` is named for it.

        https://docs.plivo.com/docs/voice/api/call/machine-detection
        """
        if call.detection == "greeting-end":
            message = "Plivo does not tell when a machine's greeting ends, so no message can be left behind it"
            raise ApiError(
                "unsupported", message, hint="let the bot talk to machines too, or end their calls (`hang-up`)"
            )
        content: dict[str, Any] = {
            "from": without_plus(call.from_number),
            "to": without_plus(call.to_number),
            "answer_url": call.webhook_url,
            "answer_method": "POST",
            "ring_url": call.status_url,
            "ring_method": "POST",
            "hangup_url": call.status_url,
            "hangup_method": "POST",
            "ring_timeout": call.ring_timeout_s,
        }
        if call.time_limit_s is not None:
            content["time_limit"] = min(call.time_limit_s, TIME_LIMIT_S)
        if call.detection == "detect":
            content["machine_detection"] = "true"
            content["machine_detection_url"] = call.machine_url
            content["machine_detection_method"] = "POST"
        response = yield self._request("POST", "Call", content=content)
        told = self.read(response, f"the call to {call.to_number}").get("request_uuid")
        request_id = text_or_nothing(told[0] if isinstance(told, list) and told else told)
        if not request_id:
            raise ApiError("refused", f"Plivo did not say under what id it places the call to {call.to_number}")
        return PlacedCall("", request_id, self.credential("PLIVO_AUTH_ID"))

    def cancel(self, placed: PlacedCall) -> Steps[bool]:
        """
        End a call that we placed: by its request as long as its id is unknown, otherwise by its id.

        Where one of them is not known, the other may be: the request ends when the call is answered.
        """
        by_request, by_call = ("Request", placed.request_id), ("Call", placed.call_id or placed.request_id)
        for path in (by_call, by_request) if placed.call_id else (by_request, by_call):
            if path[1]:
                response = yield self._request("DELETE", *path)
                if response.status != 404:
                    self.read(response, "to end the call")
                    return True
        return False

    def look_up(self, call_id: str) -> Steps[CallState]:
        """
        Return how a call stands: as a live call, as one that has ended, or as one that waits for its turn.

        https://docs.plivo.com/docs/voice/api/call/retrieve-a-live-call
        https://docs.plivo.com/docs/voice/api/call/the-call-object
        """
        for status, read in (("live", _read_live), ("", _read_record), ("queued", _read_live)):
            response = yield self._request("GET", "Call", call_id, query={"status": status} if status else None)
            if response.status != 404:
                return read(call_id, self.read(response, f"the call {call_id}"))
        raise ApiError("not-found", f"Plivo knows no call {call_id}", hint="it may belong to another account")

    def hang_up(self, call: Call) -> Steps[bool]:
        # https://docs.plivo.com/docs/voice/api/call/hangup-a-call
        response = yield self._request("DELETE", "Call", call.call_id)
        if response.status == 404:
            # It is refused alike whether the call is over, or is none of the account's.
            state = yield from self.look_up(call.call_id)
            if state.stage in ENDED_STAGES:
                return False
        self.read(response, f"to end call {call.call_id}")
        return True

    def transfer(self, call: Call, to: str) -> Steps[None]:
        """
        Connect the caller to `to`, by the document at :attr:`transfer_url`, for Plivo takes none in a request.

        https://docs.plivo.com/docs/voice/api/call/transfer-a-call
        """
        if not self.transfer_url:
            raise self._lacks("transfers a call only by a document at a public address, and none is served")
        url = f"{self.transfer_url}{'&' if '?' in self.transfer_url else '?'}{urlencode({'to': to})}"
        content = {"legs": "aleg", "aleg_url": url, "aleg_method": "POST"}
        self._read_of_call((yield self._request("POST", "Call", call.call_id, content=content)), "the transfer")

    def send_digits(self, call: Call, digits: str) -> Steps[None]:
        # https://docs.plivo.com/docs/voice/api/call/dtmf/send-digits-on-a-call
        response = yield self._request("POST", "Call", call.call_id, "DTMF", content={"digits": digits})
        self._read_of_call(response, "to press keys")

    def _read_of_call(self, response: ApiResponse, what: str) -> None:
        """Read the answer to a request for a call that goes on, which knows no call that is over."""
        if response.status == 404:
            raise ApiError("ended", "the call is over")
        self.read(response, what)

    def evidence(self, call_id: str) -> Steps[list[Evidence]]:
        """
        Return what the record of a call says; there is none until it has ended, and no other log in the API.

        https://docs.plivo.com/docs/voice/api/call/the-call-object
        """
        response = yield self._request("GET", "Call", call_id)
        if response.status == 404:
            state = yield from self.look_up(call_id)
            return [Evidence(f"the call is not over, and Plivo records it then; it is {state.stage}")]
        record = self.read(response, f"the record of call {call_id}")
        numbers = " to ".join(_told(record, name) or "?" for name in ("from_number", "to_number"))
        direction = _told(record, "call_direction")
        found = [Evidence(f"{direction} call from {numbers}".lstrip(), _told(record, "initiation_time"))]
        if answered := _told(record, "answer_time"):
            found.append(Evidence("answered", answered))
        state, code = _read_record(call_id, record), _told(record, "hangup_cause_code")
        cause = HANGUP_CAUSES.get(code)
        lasted = f" after {state.duration_s:g} s" if answered and state.duration_s is not None else ""
        by = f", by {source}" if (source := _told(record, "hangup_source")) else ""
        found.append(
            Evidence(
                f"ended{lasted}{by}: {state.cause or 'no cause is recorded'}",
                _told(record, "end_time"),
                code,
                failed=cause.stage == "failed" if cause else state.stage == "failed",
                hint=cause.mend if cause else "",
            )
        )
        return found

    def explain_code(self, code: str) -> tuple[str, str] | None:
        cause = HANGUP_CAUSES.get(code)
        return (f"{cause.name}: {cause.meaning}", cause.mend) if cause else None

    # Requests: https://docs.plivo.com/docs/voice/api/overview

    def _request(
        self, method: str, *path: str, query: Mapping[str, str] | None = None, content: Mapping[str, Any] | None = None
    ) -> HttpRequest:
        url = self.api_url(*path) + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": "application/json"} if content is not None else {}
        body = write_object(dict(content)).encode() if content is not None else b""
        credentials = (self.credential("PLIVO_AUTH_ID"), self.credential("PLIVO_AUTH_TOKEN"))
        return HttpRequest(method, url, headers, body, credentials)

    def _list(self, resource: str) -> Steps[list[Resource]]:
        """
        Return every object of a list, page by page.

        The address of the next page counts by an offset or by a cursor; it is asked for as it is given.
        """
        query, asked, found = f"limit={PAGE_SIZE}&offset=0", set[str](), list[Resource]()
        while query and query not in asked and len(asked) < PAGE_LIMIT:
            asked.add(query)
            request = self._request("GET", resource)
            response = yield HttpRequest("GET", f"{request.url}?{query}", basic_auth=request.basic_auth)
            content = self.read(response, f"the list of {resource.lower()}s")
            objects, meta = content.get("objects"), content.get("meta")
            found += [each for each in objects if isinstance(each, dict)] if isinstance(objects, list) else []
            following = meta.get("next") if isinstance(meta, dict) else None
            query = urlsplit(following).query if isinstance(following, str) else ""
        return found


def application_name(addresses: ServerAddresses) -> str:
    """Return what our application for `addresses` is called."""
    return f"{_OURS}{_NOT_NAMED.sub('-', urlsplit(addresses.webhook).netloc)}"


def _is_ours(application: Resource) -> bool:
    return text_or_nothing(application.get("app_name")).startswith(_OURS)


def _app_id(resource: Resource) -> str:
    """Return the id of an application, or of the one whose path a number holds; empty if there is none."""
    if app_id := text_or_nothing(resource.get("app_id")):
        return app_id
    # /v1/Account/MA.../Application/29986316244302815/
    return text_or_nothing(resource.get("application")).rstrip("/").rpartition("/")[2]


def _number(resource: Resource) -> str:
    return with_plus(text_or_nothing(resource.get("number")))


def _read_number(found: Resource, application: Resource | None, sharing: Sequence[str]) -> PhoneNumber:
    """Read a number, whose `application` is ``None`` where the account has none of its ``app_id``."""
    app_id, has_voice = _app_id(found), found.get("voice_enabled") is not False
    title = text_or_nothing((application or {}).get("app_name")) or app_id
    points_at = text_or_nothing((application or {}).get("answer_url"), 2048)
    warnings = []
    obstacle = hint = ""
    if not has_voice:
        obstacle = "it takes no calls, for it is not enabled for voice"
        hint = "take a number with voice: Phone Numbers > Buy Numbers in the console"
    elif app_id and application is None:
        # A trunk's id stands where an application's does: https://docs.plivo.com/docs/numbers/api/account-phone-number
        obstacle = f"its calls go to {app_id}, which is no application: a SIP trunk takes them"
        hint = "take the number off the trunk in the console, under Phone Numbers, or choose another one"
    if sharing:
        more = f" and {len(sharing) - 1} more" if len(sharing) > 1 else ""
        warnings.append(f"{sharing[0]}{more} use the application {title!r} too; only this number leaves it")
    # https://docs.plivo.com/docs/numbers/compliance
    if _is_ours(application or {}):
        warnings.append(f"another wsvoice has pointed it at {points_at}, or had and did not put it back")
    if (compliance := printable(found.get("compliance_status"), VALUE_LIMIT)) not in ("", "accepted"):
        warnings.append(f"its compliance application is {compliance}; calls need one that is accepted")
    return PhoneNumber(
        _number(found),
        name=text_or_nothing(found.get("alias")),
        has_voice=has_voice,
        points_at=points_at or (f"application {title!r}" if application else app_id and f"SIP trunk {app_id}"),
        settings={"app_id": app_id},
        obstacle=obstacle,
        hint=hint,
        warnings=tuple(warnings),
    )


def _read_live(call_id: str, told: Resource) -> CallState:
    caller, called = (with_plus(text_or_nothing(told.get(name))) for name in ("from", "to"))
    stage = STAGES.get(_told(told, "call_status"), "queued")
    return CallState(_told(told, "call_uuid") or call_id, stage, from_number=caller, to_number=called)


def _read_record(call_id: str, told: Resource) -> CallState:
    """Read the record of a call that is over. In which currency its amounts are is the account's to know."""
    code, name = _told(told, "hangup_cause_code"), _told(told, "hangup_cause_name")
    duration = read_counter(told.get("call_duration"))
    caller, called = (with_plus(text_or_nothing(told.get(name))) for name in ("from_number", "to_number"))
    return CallState(
        _told(told, "call_uuid") or call_id,
        "completed" if told.get("answer_time") else _stage_of(told, code),
        answered_by="machine" if code == "9100" else None,
        duration_s=None if duration is None else float(duration),
        price=_told(told, "total_amount"),
        cause=f"{name} ({code})" if name and code else name or code,
        from_number=caller,
        to_number=called,
    )


def _stage_of(record: Resource, code: str) -> Stage:
    """Return how a call ended that nobody answered: by its cause, or by its state where there is none."""
    cause = HANGUP_CAUSES.get(code)
    if cause is not None:
        return cause.stage
    state = _told(record, "call_state").lower().replace("_", "-")
    return STAGES.get(state, "failed" if state else "no-answer")


def _told(resource: Resource, name: str) -> str:
    return printable(resource.get(name), VALUE_LIMIT)


def _is_used_up(credits_left: object) -> bool:
    try:
        return float(str(credits_left)) <= 0
    except ValueError:
        return False


def _error_text(response: ApiResponse) -> str:
    """Return what an error says: a text, or an object of texts by the fields that they are about."""
    said = response.content().get("error")
    if isinstance(said, dict):
        said = ", ".join(f"{name}: {text}" for name, text in said.items())
    return printable(said, VALUE_LIMIT) or printable(response.body.decode("utf-8", "replace").strip(), VALUE_LIMIT)
