"""
Telnyx's account by REST, against an account without Telnyx; and both against Telnyx's own library.

The library is pointed at the same fake account: what it sends for an operation is what we send, and what it is answered
is what its models describe.
"""

# Telnyx's library is imported where it is used: that takes two seconds, and every worker collects every test.

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.phone.json_server import JsonServer, Reply
from wsvoice.call import Call
from wsvoice.errors import ApiError, ConfigError
from wsvoice.phone.client import carry_out
from wsvoice.phone.numbers import PointedNumber
from wsvoice.providers import load_account, load_server, load_simulator
from wsvoice.providers.account import ApiResponse, OutboundCall, PhoneNumber, PlacedCall, Saved, ServerAddresses, Steps
from wsvoice.providers.base import Callback, CallUpdate, HttpRequest, StatusReport, WebhookRequest
from wsvoice.providers.events import Connected, StreamStarted
from wsvoice.providers.fake_account import FakeCall
from wsvoice.providers.telnyx.account import TelnyxAccount
from wsvoice.providers.telnyx.codes import CODES
from wsvoice.providers.telnyx.fake_account import TelnyxFakeAccount

GOLDEN = Path(__file__).parent.parent / "golden" / "telnyx" / "webhooks"
KEY = "KEY0123456789ABCDEF"
NUMBER, OTHER, CALLED = "+15550100002", "+15550100003", "+15550100001"
HERE = ServerAddresses("https://bot.example.com/telnyx", "https://bot.example.com/telnyx/status")
NOW = 1_767_225_600
TEXML, CALL_CONTROL = "texml_application", "call_control_application"
OUTBOUND = OutboundCall(
    CALLED,
    NUMBER,
    webhook_url="https://bot.example.com/telnyx/T",
    stream_url="wss://bot.example.com/ws/telnyx/T",
    status_url="https://bot.example.com/telnyx/status/T",
    machine_url="https://bot.example.com/telnyx/machine/T",
    parameters={"name": "Jörg"},
)


class Company:
    """
    The account without Telnyx, behind its API.

    Attributes:
        requests: What it was asked, in order.
    """

    def __init__(self, **credentials: str) -> None:
        simulator = load_simulator("telnyx", {"TELNYX_API_KEY": KEY, "TELNYX_PRIVATE_KEY": "A" * 43 + "="})
        api = simulator.fake_api()
        assert api is not None
        assert api.account_type is TelnyxFakeAccount
        self.api = api
        self.simulator = simulator
        self.fake = TelnyxFakeAccount(simulator, bytes(range(32)))
        self.requests: list[WebhookRequest] = []
        account = load_account("telnyx", {"TELNYX_API_KEY": KEY, **credentials})
        assert isinstance(account, TelnyxAccount)
        self.account = account

    def ask(self, request: WebhookRequest) -> ApiResponse:
        """Return what the API answers."""
        self.requests.append(request)
        answer = None
        if not self.api.is_authorised(request):
            answer = self.api.api_error(401, "No key found matching the ID")
        answer = answer or self.fake.answer(request) or self.api.api_error(404, "not found")
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return ApiResponse(answer.status, {"content-type": answer.media_type, **headers}, answer.body.encode())

    def run(self, steps: Steps[Any], *first: ApiResponse) -> Any:
        """Carry out an operation, whose `first` requests are answered so, and return its result."""
        answers = iter(first)
        try:
            request = next(steps)
            while True:
                request = steps.send(next(answers, None) or self.ask(as_webhook(request)))
        except StopIteration as end:
            return end.value

    def library(self) -> Any:
        """Return Telnyx's own client, pointed at the account; it refuses answers that its models do not describe."""
        import telnyx

        def take(request: httpx.Request) -> httpx.Response:
            headers = {name.lower(): value for name, value in request.headers.items()}
            response = self.ask(WebhookRequest(request.method, str(request.url), headers, request.content))
            return httpx.Response(response.status, headers=response.headers, content=response.body)

        return telnyx.Telnyx(
            api_key=KEY,
            base_url="https://api.telnyx.com/v2",
            http_client=httpx.Client(transport=httpx.MockTransport(take)),
            max_retries=0,
            _strict_response_validation=True,
        )

    def last_call(self) -> FakeCall:
        return list(self.fake.calls.values())[-1]


def as_webhook(request: HttpRequest) -> WebhookRequest:
    """Return what the API gets of a request."""
    return WebhookRequest(request.method, request.url, request.headers, request.body)


def sent(request: WebhookRequest) -> tuple[str, str, dict[str, str], Any]:
    """Return what a request says, however it is written: method, path, query and JSON."""
    url = urlsplit(request.url)
    content = json.loads(request.body) if request.body else None
    return request.method, unquote(url.path), dict(parse_qsl(url.query)), content


def with_texml(company: Company) -> Company:
    """Give the account a number whose TeXML application another number shares, and which may call out."""
    profile_id = company.fake.add_profile()
    url = "https://support.example.com/texml"
    shared = company.fake.add_application(TEXML, "Support", url=url, profile_id=profile_id)
    company.fake.add_number(NUMBER, name="Front desk", connection_id=shared)
    company.fake.add_number(OTHER, connection_id=shared)
    return company


def with_call_control(company: Company, *, number: bool = True) -> Company:
    """Give the account a Call Control application that may call out, and a number that belongs to it."""
    profile_id = company.fake.add_profile()
    url = "https://office.example.com/events"
    office = company.fake.add_application(CALL_CONTROL, "Office", url=url, profile_id=profile_id)
    company.fake.add_number(NUMBER, **({"connection_id": office} if number else {}))
    return company


@pytest.fixture
def texml() -> Company:
    return with_texml(Company())


@pytest.fixture
def call_control() -> Company:
    return with_call_control(Company())


def refused(company: Company, steps: Steps[Any]) -> ApiError:
    """Return the error of an operation; it is one line, and so is its hint."""
    with pytest.raises(ApiError) as caught:
        company.run(steps)
    error = caught.value
    assert "\n" not in error.message
    assert len(error.message) < 300
    assert error.hint is None or ("\n" not in error.hint and error.hint)
    return error


def found(company: Company, number: str = NUMBER) -> PhoneNumber:
    number_found = company.run(company.account.find_number(number))
    assert isinstance(number_found, PhoneNumber)
    return number_found


def pointed(company: Company, addresses: ServerAddresses = HERE, number: PhoneNumber | None = None) -> list[Saved]:
    """Point the number, and return what was saved before each change."""
    saved: list[Saved] = []
    changes: list[int] = []

    def save(state: Saved) -> None:
        saved.append(dict(state))
        changes.append(len([each for each in company.requests if each.method != "GET"]))

    company.requests.clear()
    company.run(company.account.point(number or found(company), addresses, save))
    # Each change comes after what takes it back was saved.
    assert changes[0] == 0
    return saved


def of_wsvoice(company: Company) -> list[dict[str, Any]]:
    """Return the applications that a wsvoice has made."""
    names = ((each, each.get("friendly_name", "")) for each in company.fake.connections.values())
    return [each for each, name in names if name.startswith("wsvoice ")]


# The account


def test_whose_the_key_is(texml: Company) -> None:
    info = texml.run(texml.account.describe())
    assert (info.account_id, info.name, info.is_trial) == (texml.fake.organization_id, "owner@example.com", None)
    assert info.limits == []
    texml.fake.available_credit = "0.00"
    (limit,) = texml.run(texml.account.describe()).limits
    assert "no credit left (0.00 USD)" in limit


def test_a_key_that_may_not_read_the_balance_describes_the_account_all_the_same(texml: Company) -> None:
    who = texml.ask(WebhookRequest("GET", "https://api.telnyx.com/v2/whoami", {"authorization": f"Bearer {KEY}"}))
    denied = ApiResponse(403, {}, b'{"errors":[{"code":"10010"}]}')
    assert texml.run(texml.account.describe(), who, denied).account_id == texml.fake.organization_id


def test_a_missing_key_is_said_before_anything_is_asked() -> None:
    with pytest.raises(ConfigError, match="Telnyx's API needs TELNYX_API_KEY") as caught:
        load_account("telnyx").check_credentials()
    assert caught.value.hint is not None
    assert "API Keys" in caught.value.hint


def every_operation(account: TelnyxAccount) -> list[Steps[Any]]:
    number = PhoneNumber(NUMBER, "1", settings={"connection_id": "2"})
    saved = {"number": NUMBER, "number_id": "1", "connection_id": "2", "application_id": "3"}
    call = Call("telnyx", "v3:a", account_id="acc")
    by_commands = Call("telnyx", "v3:a", control="api")
    return [
        account.describe(),
        account.numbers(),
        account.find_number(NUMBER),
        account.point(number, HERE, lambda state: None),
        account.restore(saved, HERE),
        account.dial(OUTBOUND),
        account.cancel(PlacedCall("v3:a")),
        account.cancel(PlacedCall("", f"{NUMBER} {CALLED}", "org")),
        account.look_up("v3:a"),
        account.hang_up(call),
        account.transfer(call, CALLED),
        account.transfer(by_commands, CALLED),
        account.send_digits(call, "1"),
        account.evidence("v3:a"),
    ]


def test_a_wrong_key_is_said_by_every_operation(texml: Company) -> None:
    account = load_account("telnyx", {"TELNYX_API_KEY": "KEY-of-somebody-else"})
    assert isinstance(account, TelnyxAccount)
    for steps in every_operation(account):
        error = refused(texml, steps)
        assert (error.kind, error.code) == ("credentials", "10009")
        assert error.hint is not None
        assert "TELNYX_API_KEY" in error.hint


def test_every_operation_may_be_put_off(texml: Company) -> None:
    for steps in every_operation(texml.account):
        texml.fake.too_many = 1
        error = refused(texml, steps)
        assert (error.kind, error.code) == ("rate-limit", "10011")
        assert texml.fake.too_many == 0
    texml.fake.too_many, texml.fake.retry_after_s = 1, 7
    assert texml.ask(as_webhook(next(texml.account.describe()))).headers["retry-after"] == "7"


def test_what_is_no_answer_of_telnyxs_is_an_error_all_the_same(texml: Company) -> None:
    for body in (b"", b"<html>", b"[]", b'{"errors":[]}', b'{"errors":[7]}', b'{"errors":{"code":1}}', b"\xff"):
        for steps in every_operation(texml.account):
            next(steps)
            with pytest.raises(ApiError, match=r"Telnyx refuses .*: the answer is 500"):
                steps.send(ApiResponse(500, {}, body))


def test_an_api_that_is_not_there_is_named() -> None:
    account = load_account("telnyx", {"TELNYX_API_KEY": KEY, "TELNYX_BASE_URL": "http://127.0.0.1:9/v2"})
    with pytest.raises(ApiError, match=r"the API at 127\.0\.0\.1:9 cannot be reached") as caught:
        asyncio.run(carry_out(account.describe(), timeout_s=2.0))
    assert caught.value.kind == "unreachable"


def test_the_key_is_in_no_error(texml: Company) -> None:
    for steps in every_operation(texml.account):
        next(steps)
        with pytest.raises(ApiError) as caught:
            steps.send(ApiResponse(403, {}, b'{"errors":[{"code":"10010","title":"Forbidden","detail":"no"}]}'))
        assert KEY not in caught.value.message + (caught.value.hint or "")


# Numbers


def test_every_number_is_listed_page_by_page(texml: Company) -> None:
    for count in range(600):
        texml.fake.add_number(f"+1555020{count:04d}")
    numbers = texml.run(texml.account.numbers())
    assert len({each.number for each in numbers}) == 602
    assert len(texml.requests) == 3
    first = numbers[0]
    assert (first.number, first.name, first.points_at) == (NUMBER, "Front desk", "connection 'Support'")
    assert numbers[-1].points_at == ""


def test_a_number_with_where_it_points_and_who_shares_that(texml: Company) -> None:
    number = found(texml)
    assert (number.number, number.name, number.has_voice, number.obstacle) == (NUMBER, "Front desk", True, "")
    assert number.number_id == texml.fake.numbers[NUMBER].number_id
    assert number.points_at == "https://support.example.com/texml"
    assert number.settings == {"connection_id": texml.fake.numbers[NUMBER].settings["connection_id"]}
    assert number.warnings == ("another number shares the TeXML application 'Support', and stays with it",)
    texml.fake.add_number("+15550100009", connection_id=number.settings["connection_id"])
    assert found(texml).warnings == ("2 other numbers share the TeXML application 'Support', and stay with it",)


def test_a_number_of_another_kind_of_connection(call_control: Company) -> None:
    assert found(call_control).points_at == "https://office.example.com/events"
    trunk = call_control.fake.add_application("credential_connection", "PBX")
    call_control.fake.add_number(OTHER, connection_id=trunk)
    assert found(call_control, OTHER).points_at == "connection 'PBX'"
    call_control.fake.add_number(CALLED)
    assert found(call_control, CALLED).points_at == ""
    call_control.fake.numbers[CALLED].settings["connection_id"] = "gone"
    assert found(call_control, CALLED).points_at == ""


@pytest.mark.parametrize("number", ["+15550199999", "+1555010000", "+155501000021", "15550100002", ""])
def test_a_number_that_is_not_the_accounts(texml: Company, number: str) -> None:
    error = refused(texml, texml.account.find_number(number))
    assert error.kind == "number"
    assert "is not a number of this Telnyx account" in error.message


def test_a_number_that_cannot_be_pointed(texml: Company) -> None:
    texml.fake.add_number("+15550100004", status="port-pending")
    number = found(texml, "+15550100004")
    assert number.obstacle == "its status is 'port-pending'"
    assert "My Numbers" in number.hint
    texml.fake.add_number("+15550100005", has_voice=False)
    assert not found(texml, "+15550100005").has_voice


def test_a_number_is_pointed_by_an_application_of_our_own_and_put_back(texml: Company) -> None:
    before = json.dumps(texml.fake.connections, sort_keys=True)
    number = found(texml)
    saved = pointed(texml)
    (application,) = of_wsvoice(texml)
    assert application["friendly_name"] == f"wsvoice bot.example.com {NUMBER}"
    assert (application["voice_url"], application["voice_method"]) == (HERE.webhook, "post")
    assert (application["status_callback"], application["status_callback_method"]) == (HERE.status, "post")
    (profile_id,) = texml.fake.profiles
    assert application["outbound"] == {"outbound_voice_profile_id": profile_id}
    assert texml.fake.points_at(NUMBER) == Callback(HERE.webhook, "POST")
    assert texml.fake.points_at(OTHER) == Callback("https://support.example.com/texml", "POST")
    assert [each["application_id"] for each in saved] == ["", application["id"]]
    assert all(isinstance(value, str) for state in saved for value in state.values())
    assert KEY not in str(saved)

    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    assert found(texml) == number
    assert json.dumps(texml.fake.connections, sort_keys=True) == before
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "unchanged"


def test_a_number_that_pointed_nowhere_points_nowhere_again(texml: Company) -> None:
    texml.fake.numbers[NUMBER].settings["connection_id"] = ""
    saved = pointed(texml)
    assert "outbound" not in of_wsvoice(texml)[0]
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    assert texml.fake.numbers[NUMBER].settings["connection_id"] == ""
    assert of_wsvoice(texml) == []


@pytest.mark.parametrize("changes", range(3))
def test_whatever_was_changed_is_taken_back_by_what_was_saved_before(texml: Company, changes: int) -> None:
    """The process may be killed after any of its changes."""
    before, number = json.dumps(texml.fake.connections, sort_keys=True), found(texml)
    saved: list[Saved] = []
    steps = texml.account.point(number, HERE, lambda state: saved.append(dict(state)))
    request, done = next(steps), 0
    with contextlib.suppress(StopIteration):
        while request.method == "GET" or done < changes:
            done += request.method != "GET"
            request = steps.send(texml.ask(as_webhook(request)))
    steps.close()
    assert done == changes
    assert texml.run(texml.account.restore(saved[-1], HERE)) == ("restored" if changes == 2 else "unchanged")
    assert json.dumps(texml.fake.connections, sort_keys=True) == before
    assert found(texml) == number


def test_an_application_whose_id_was_not_saved_is_found_by_its_name_and_address(texml: Company) -> None:
    saved = pointed(texml)
    texml.fake.numbers[NUMBER].settings["connection_id"] = saved[0]["connection_id"]
    assert saved[0]["application_id"] == ""
    assert texml.run(texml.account.restore(saved[0], HERE)) == "unchanged"
    assert of_wsvoice(texml) == []


def test_a_number_that_somebody_else_has_pointed_is_left_alone(texml: Company) -> None:
    saved = pointed(texml)
    elsewhere = texml.fake.add_application(TEXML, "Night", url="https://night.example.com/")
    texml.fake.numbers[NUMBER].settings["connection_id"] = elsewhere
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "left"
    assert texml.fake.numbers[NUMBER].settings["connection_id"] == elsewhere
    assert of_wsvoice(texml) == []


def test_an_application_that_somebody_else_has_changed_is_left_alone(texml: Company) -> None:
    saved = pointed(texml)
    (application,) = of_wsvoice(texml)
    application["voice_url"] = "https://night.example.com/"
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "left"
    assert texml.fake.numbers[NUMBER].settings["connection_id"] == application["id"]
    assert of_wsvoice(texml) == [application]


def test_an_application_that_somebody_has_renamed_is_known_by_its_id(texml: Company) -> None:
    saved = pointed(texml)
    of_wsvoice(texml)[0]["friendly_name"] = "Mine"
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    assert saved[-1]["application_id"] not in texml.fake.connections


def test_an_application_that_other_numbers_have_joined_stays(texml: Company) -> None:
    saved = pointed(texml)
    (application,) = of_wsvoice(texml)
    texml.fake.numbers[OTHER].settings["connection_id"] = application["id"]
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    assert of_wsvoice(texml) == [application]
    assert texml.fake.points_at(OTHER) == Callback(HERE.webhook, "POST")


def test_a_number_that_is_gone_takes_its_application_with_it(texml: Company) -> None:
    saved = pointed(texml)
    del texml.fake.numbers[NUMBER]
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "left"
    assert of_wsvoice(texml) == []


def test_a_server_that_has_moved_keeps_its_application(texml: Company) -> None:
    number, first = found(texml), pointed(texml)
    moved = ServerAddresses("https://other.example.com/telnyx", "https://other.example.com/telnyx/status")
    again = pointed(texml, moved, number)
    (application,) = of_wsvoice(texml)
    assert application["id"] == first[-1]["application_id"] == again[-1]["application_id"]
    assert application["friendly_name"] == f"wsvoice other.example.com {NUMBER}"
    assert texml.fake.points_at(NUMBER) == Callback(moved.webhook, "POST")
    assert texml.run(texml.account.restore(again[-1], moved)) == "restored"
    assert found(texml) == number


def test_a_number_that_another_wsvoice_has_pointed_goes_back_to_it(texml: Company) -> None:
    pointed(texml)
    (first,) = of_wsvoice(texml)
    number = found(texml)
    assert "another wsvoice has pointed it at https://bot.example.com/telnyx" in number.warnings[0]
    # At the same address too, for names of applications are unique.
    saved = pointed(texml)
    assert [each["friendly_name"] for each in of_wsvoice(texml)] == [
        f"wsvoice bot.example.com {NUMBER}",
        f"wsvoice bot.example.com {NUMBER} (2)",
    ]
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    assert of_wsvoice(texml) == [first]
    assert texml.fake.numbers[NUMBER].settings["connection_id"] == first["id"]


def test_the_application_of_another_wsvoice_is_not_taken_for_one_that_was_not_saved(texml: Company) -> None:
    pointed(texml)
    before = json.dumps(texml.fake.connections, sort_keys=True)
    saved: list[Saved] = []
    steps = texml.account.point(found(texml), HERE, lambda state: saved.append(dict(state)))
    request = next(steps)
    while request.method == "GET":
        request = steps.send(texml.ask(as_webhook(request)))
    steps.close()
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "unchanged"
    assert json.dumps(texml.fake.connections, sort_keys=True) == before


def test_an_application_that_somebody_removes_at_the_same_time(texml: Company) -> None:
    saved = pointed(texml)
    steps = texml.account.restore(saved[-1], HERE)
    request = next(steps)
    while request.method != "DELETE":
        request = steps.send(texml.ask(as_webhook(request)))
    texml.ask(as_webhook(request))
    with pytest.raises(StopIteration) as end:
        steps.send(texml.ask(as_webhook(request)))
    assert end.value.value == "restored"


def test_another_numbers_application_is_none_of_this_number(texml: Company) -> None:
    pointed(texml, number=found(texml, OTHER))
    saved = pointed(texml)
    assert len(of_wsvoice(texml)) == 2
    assert texml.run(texml.account.restore(saved[-1], HERE)) == "restored"
    (left,) = of_wsvoice(texml)
    assert left["friendly_name"].endswith(OTHER)


# Calls


def test_a_call_is_placed_by_a_command(call_control: Company) -> None:
    placed = call_control.run(call_control.account.dial(OUTBOUND))
    call = call_control.last_call()
    assert placed == PlacedCall(call.call.call_id, control="api")
    assert (call.call.from_number, call.call.to_number, call.call.direction) == (NUMBER, CALLED, "outbound")
    assert call.call.control == "api"
    assert call.webhook is None
    assert call.stream is not None
    assert call.stream.url == OUTBOUND.stream_url
    assert call.stream.findings == []
    assert call.status == Callback(OUTBOUND.status_url, "POST")
    assert call.reports >= {"ringing", "answered", "completed", "busy"}
    assert (call.detection, call.machine, call.ring_timeout_s, call.time_limit_s) == ("off", None, 60.0, None)


def test_a_call_is_placed_by_a_document(texml: Company) -> None:
    placed = texml.run(texml.account.dial(OUTBOUND))
    call = texml.last_call()
    # TeXML does not name it.
    assert placed == PlacedCall("", f"{NUMBER} {CALLED}", texml.fake.organization_id)
    assert call.call.control == "document"
    assert call.stream is None
    assert call.webhook == Callback(OUTBOUND.webhook_url, "POST")
    assert call.status == Callback(OUTBOUND.status_url, "POST")
    assert call.reports == {"queued", "ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"}
    assert (call.detection, call.machine, call.ring_timeout_s, call.time_limit_s) == ("off", None, 60.0, None)


def changed(**changes: Any) -> OutboundCall:
    return dataclasses.replace(OUTBOUND, **changes)


@pytest.mark.parametrize(
    ("rings_s", "lasts_s", "by_command", "by_document"),
    [(1, 1, (5, 30), (5, 30)), (90, 600, (90, 600), (90, 600)), (9999, 99999, (600, 14400), (120, 14400))],
)
def test_limits_are_those_that_telnyx_takes(
    rings_s: int, lasts_s: int, by_command: tuple[int, int], by_document: tuple[int, int]
) -> None:
    for company, expected in ((with_call_control(Company()), by_command), (with_texml(Company()), by_document)):
        company.run(company.account.dial(changed(ring_timeout_s=rings_s, time_limit_s=lasts_s)))
        call = company.last_call()
        assert (call.ring_timeout_s, call.time_limit_s) == expected


def test_who_answers_is_detected_while_the_call_goes_on(texml: Company, call_control: Company) -> None:
    for detection in ("detect", "greeting-end"):
        for company, url in ((call_control, OUTBOUND.status_url), (texml, OUTBOUND.machine_url)):
            company.run(company.account.dial(changed(detection=detection)))
            call = company.last_call()
            assert (call.detection, call.machine) == (detection, Callback(url, "POST"))
    assert sent(texml.requests[-1])[3]["AsyncAmd"] is True


def test_the_application_that_calls_are_placed_by_can_be_set() -> None:
    company = with_texml(Company())
    office = company.fake.add_application(CALL_CONTROL, "Office", profile_id=next(iter(company.fake.profiles)))
    company.account = TelnyxAccount({"TELNYX_API_KEY": KEY, "TELNYX_CONNECTION_ID": office})
    assert company.run(company.account.dial(OUTBOUND)).control == "api"
    shared = company.fake.numbers[NUMBER].settings["connection_id"]
    company.account = TelnyxAccount({"TELNYX_API_KEY": KEY, "TELNYX_CONNECTION_ID": shared})
    assert company.run(company.account.dial(OUTBOUND)).control == "document"
    trunk = company.fake.add_application("credential_connection", "PBX")
    for connection_id, what in (("12345", "no connection of this account"), (trunk, "the connection 'PBX'")):
        company.account = TelnyxAccount({"TELNYX_API_KEY": KEY, "TELNYX_CONNECTION_ID": connection_id})
        error = refused(company, company.account.dial(OUTBOUND))
        assert error.kind == "not-found"
        assert f"TELNYX_CONNECTION_ID names {what}" in error.message


def test_a_number_without_an_application_calls_by_the_only_one_that_may() -> None:
    company = Company()
    trunk = company.fake.add_application("credential_connection", "PBX")
    company.fake.add_number(NUMBER, connection_id=trunk)
    company.fake.add_application(CALL_CONTROL, "Inbound only")
    error = refused(company, company.account.dial(OUTBOUND))
    assert error.kind == "permission"
    assert error.hint is not None
    assert "outbound voice profile" in error.hint
    profile_id = company.fake.add_profile()
    company.fake.add_application(CALL_CONTROL, "Office", profile_id=profile_id)
    assert company.run(company.account.dial(OUTBOUND)).control == "api"
    second = company.fake.add_application(CALL_CONTROL, "Sales", profile_id=profile_id)
    error = refused(company, company.account.dial(OUTBOUND))
    assert error.kind == "refused"
    assert error.hint is not None
    assert "TELNYX_CONNECTION_ID" in error.hint
    assert f"{second} (Sales)" in error.hint


def without_profile(company: Company) -> None:
    for each in company.fake.connections.values():
        each["outbound"] = {"outbound_voice_profile_id": None}


def with_profile_disabled(company: Company) -> None:
    for each in company.fake.profiles.values():
        each["enabled"] = False


def with_application_disabled(company: Company) -> None:
    for each in company.fake.connections.values():
        each["active"] = False


def on_trial(company: Company) -> None:
    company.fake.is_trial = True


def with_a_foreign_number(company: Company) -> None:
    del company.fake.numbers[NUMBER]
    (company.account.credentials)["TELNYX_CONNECTION_ID"] = next(iter(company.fake.connections))


@pytest.mark.parametrize("make", [with_texml, with_call_control])
@pytest.mark.parametrize(
    ("prepare", "kind", "code", "words"),
    [
        (without_profile, "permission", "D38", "no outbound voice profile (D38)"),
        (with_profile_disabled, "permission", "D15", "profile is disabled"),
        (with_application_disabled, "permission", "D16", "application is disabled"),
        (on_trial, "trial", "D60", "verified numbers only"),
        (with_a_foreign_number, "number", "D51", "the calling number is not verified"),
    ],
)
def test_calls_that_telnyx_refuses(
    make: Callable[[Company], Company], prepare: Callable[[Company], None], kind: str, code: str, words: str
) -> None:
    company = make(Company())
    prepare(company)
    error = refused(company, company.account.dial(OUTBOUND))
    assert (error.kind, error.code) == (kind, code)
    assert error.message.startswith(f"Telnyx refuses the call to {CALLED}: ")
    assert words in error.message
    assert error.hint
    assert company.fake.calls == {}


def test_a_trial_account_may_call_a_verified_number(call_control: Company) -> None:
    call_control.fake.is_trial = True
    call_control.fake.verified = {CALLED}
    assert call_control.run(call_control.account.dial(OUTBOUND)).call_id


@pytest.mark.parametrize(
    ("body", "kind", "code", "words"),
    [
        (
            # The detail as the help centre has it, with no field beside it.
            {"errors": [{"code": "10010", "detail": f"Dialed number {CALLED} is not included in {'USA,' * 99} D13"}]},
            "permission",
            "D13",
            "country is not allowed",
        ),
        ({"errors": [{"code": "20100", "title": "Insufficient Funds"}]}, "balance", "20100", "Insufficient Funds"),
        ({"errors": [{"code": "99999", "title": "Insufficient funds"}]}, "balance", "99999", "Insufficient funds"),
        ({"errors": [{"code": "77777", "title": "New", "detail": "It\x1b[2J is\nnew"}]}, "refused", "77777", "is"),
    ],
)
def test_other_refusals(call_control: Company, body: Any, kind: str, code: str, words: str) -> None:
    error = call_control.account.refusal(ApiResponse(422, {}, json.dumps(body).encode()), "the call")
    assert (error.kind, error.code) == (kind, code)
    assert words in error.message
    assert error.message.isprintable()
    assert len(error.message) < 300


def test_how_a_placed_call_stands(call_control: Company) -> None:
    account, call_id = call_control.account, call_control.run(call_control.account.dial(OUTBOUND)).call_id
    call = call_control.last_call()
    state = call_control.run(account.look_up(call_id))
    # Telnyx has no event for ringing; it dials.
    assert (state.call_id, state.stage, state.answered_by, state.cause) == (call_id, "ringing", None, "")
    assert (state.from_number, state.to_number) == (NUMBER, CALLED)
    call.stage, call.answered_by, call.duration_s = "answered", "machine", 12.0
    state = call_control.run(account.look_up(call_id))
    assert (state.stage, state.answered_by, state.duration_s) == ("answered", "machine", 12.0)
    for stage, cause in (
        ("completed", "normal_clearing"),
        ("busy", "user_busy"),
        ("no-answer", "timeout"),
        ("failed", "not_found"),
        ("canceled", "originator_cancel"),
    ):
        call_control.fake.end(call, stage)
        state = call_control.run(account.look_up(call_id))
        assert state.stage == stage
        assert f"hangup_cause={cause}" in state.cause


def test_how_a_call_stands_that_the_api_knows_as_texmls_alone(texml: Company) -> None:
    """Call Control forgets a call ten minutes after its end."""
    texml.run(texml.account.dial(OUTBOUND))
    call = texml.last_call()
    call.duration_s, call.answered_by = 33.0, "human"
    texml.fake.end(call)
    state = texml.run(texml.account.look_up(call.call.call_id), ApiResponse(404, {}, b"{}"))
    assert (state.stage, state.answered_by, state.duration_s, state.price) == ("completed", "human", 33.0, "")
    assert (state.from_number, state.to_number) == (NUMBER, CALLED)


@pytest.mark.parametrize("stage", ["answered", "busy"])
def test_texml_tells_how_a_call_stands_whose_events_do_not(texml: Company, stage: Any) -> None:
    texml.run(texml.account.dial(OUTBOUND))
    call = texml.last_call()
    call.stage = stage
    # A command of that name is no report.
    hung_up = {"data": [{"name": "call.hangup", "type": "command", "metadata": {}}]}
    answers = [{"data": {"call_leg_id": "a", "is_alive": stage == "answered"}}, hung_up]
    responses = [ApiResponse(200, {}, json.dumps(each).encode()) for each in answers]
    assert texml.run(texml.account.look_up(call.call.call_id), *responses).stage == stage
    # Nobody knows more of a call that was placed just now.
    assert texml.run(texml.account.look_up("v3:b"), *responses).stage == "queued"


def test_what_a_call_has_cost(call_control: Company) -> None:
    call_id = call_control.run(call_control.account.dial(OUTBOUND)).call_id
    call = call_control.last_call()
    call_control.fake.record_failure(call, "call.cost", total_cost="0.0130")
    call_control.fake.end(call)
    assert call_control.run(call_control.account.look_up(call_id)).price == "0.0130 USD"


@pytest.mark.parametrize("make", [with_texml, with_call_control])
def test_a_call_is_ended_once(make: Callable[[Company], Company]) -> None:
    company = make(Company())
    ended: list[FakeCall] = []
    company.fake.on_ended = ended.append
    placed = company.run(company.account.dial(OUTBOUND))
    call = company.last_call()
    assert company.run(company.account.cancel(placed)) is True
    assert (ended, call.stage) == ([call], "canceled")
    assert company.run(company.account.hang_up(call.call)) is False
    if placed.call_id:
        assert company.run(company.account.cancel(placed)) is False
    assert len(ended) == 1


def test_an_answered_call_is_completed(call_control: Company) -> None:
    call_control.run(call_control.account.dial(OUTBOUND))
    call = call_control.last_call()
    call.stage = "answered"
    assert call_control.run(call_control.account.hang_up(call.call)) is True
    assert call.stage == "completed"


def test_a_texml_call_that_is_not_listed_yet(texml: Company) -> None:
    placed = PlacedCall("", f"{NUMBER} {CALLED}", texml.fake.organization_id)
    error = refused(texml, texml.account.cancel(placed))
    assert error.kind == "not-found"
    assert error.hint == "try again in a second"
    # Neither another pair of numbers nor a call that is over is taken for it.
    texml.run(texml.account.dial(changed(to_number="+15550100077")))
    texml.run(texml.account.dial(OUTBOUND))
    texml.fake.end(texml.last_call())
    assert refused(texml, texml.account.cancel(placed)).kind == "not-found"


def test_a_call_that_was_forgotten_is_over(call_control: Company) -> None:
    placed = call_control.run(call_control.account.dial(OUTBOUND))
    call_control.fake.calls.clear()
    assert call_control.run(call_control.account.cancel(placed)) is False


def test_no_such_call(texml: Company) -> None:
    account, call = texml.account, Call("telnyx", "v3:nobody", account_id="acc")
    operations: list[Steps[Any]] = [
        account.hang_up(call),
        account.look_up(call.call_id),
        account.evidence(call.call_id),
        account.transfer(call, CALLED),
        account.send_digits(call, "1"),
    ]
    for steps in operations:
        error = refused(texml, steps)
        assert error.kind == "not-found"
        assert error.hint


@pytest.mark.parametrize("make", [with_texml, with_call_control])
@pytest.mark.parametrize("to", ["+15550100055", "sip:desk@example.com"])
def test_a_call_is_transferred(make: Callable[[Company], Company], to: str) -> None:
    company = make(Company())
    told: list[tuple[str, str]] = []
    company.fake.on_command = lambda call, kind, argument: told.append((kind, argument))
    company.run(company.account.dial(OUTBOUND))
    call = company.last_call()
    call.stage = "answered"
    company.run(company.account.transfer(call.call, to))
    assert told == [("transfer", to)]
    company.fake.end(call)
    assert refused(company, company.account.transfer(call.call, to)).kind == "ended"


def test_a_texml_call_is_given_other_documents(texml: Company) -> None:
    told: list[tuple[str, str]] = []
    texml.fake.on_command = lambda call, kind, argument: told.append((kind, argument))
    texml.run(texml.account.dial(OUTBOUND))
    call = texml.last_call()
    path = f"https://api.telnyx.com/v2/texml/Accounts/{texml.fake.organization_id}/Calls/{call.call.call_id}"
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}

    def update(**fields: str) -> int:
        return texml.ask(WebhookRequest("POST", path, headers, json.dumps(fields).encode())).status

    assert update(Url="https://bot.example.com/next") == 200
    assert told == [("update", "https://bot.example.com/next")]
    assert (update(), update(Texml="<Response>"), update(Url="ftp://bot.example.com/")) == (422, 422, 422)
    assert update(Texml="<Response><Hangup/></Response>") == 200
    assert call.stage == "canceled"
    assert update(Status="completed") == 422
    assert len(told) == 1


@pytest.mark.parametrize("make", [with_texml, with_call_control])
def test_keys_are_pressed_while_the_stream_goes_on(make: Callable[[Company], Company]) -> None:
    company = make(Company())
    told: list[tuple[str, str]] = []
    company.fake.on_command = lambda call, kind, argument: told.append((kind, argument))
    company.run(company.account.dial(OUTBOUND))
    call = company.last_call()
    call.stage = "answered"
    for digits in ("12#", "12#", "1wW2ABCD*"):
        company.run(company.account.send_digits(call.call, digits))
    # The same keys twice are pressed twice: the commands have no id that Telnyx would take for a repetition.
    assert told == [("digits", "12#"), ("digits", "12#"), ("digits", "1wW2ABCD*")]
    assert "command_id" not in sent(company.requests[-1])[3]
    assert refused(company, company.account.send_digits(call.call, "1x")).code == "10015"


def test_a_simulated_call_has_no_stream_left_to_stop_after_a_transfer(call_control: Company) -> None:
    """What ends the stream of a real call is taken, and changes nothing."""
    steps = call_control.account.transfer(Call("telnyx", "v3:a", control="api"), CALLED)
    commands = [call_control.api.read_command(as_webhook(next(steps)))]
    commands.append(call_control.api.read_command(as_webhook(steps.send(ApiResponse(200)))))
    assert [each.kind for each in commands if each is not None] == ["transfer", "look-up"]


# Evidence


def test_what_telnyx_recorded_of_a_call(call_control: Company) -> None:
    call_id = call_control.run(call_control.account.dial(OUTBOUND)).call_id
    call = call_control.last_call()
    fake = call_control.fake
    fake.record_failure(call, "streaming.failed", failure_reason="connection_failed")
    fake.record_delivery(call_id, "call_initiated", OUTBOUND.status_url, 403, 404, 502, None, 200)
    fake.record_delivery("v3:another", "call_initiated", OUTBOUND.status_url, 500)
    fake.record_delivery(call_id, "call_answered", OUTBOUND.status_url, 200)
    call.stage = "answered"
    fake.end(call)
    evidence = call_control.run(call_control.account.evidence(call_id))
    assert [each.when for each in evidence] == sorted(each.when for each in evidence)
    told = [each.what for each in evidence]
    events = [each for each in told if not each.startswith("the webhook")]
    assert [each.split(" ")[0] for each in events] == [
        "call.initiated",
        "call.answered",
        "streaming.failed",
        "call.hangup",
    ]
    assert events[-1] == "call.hangup (hangup_cause=normal_clearing, hangup_source=callee, sip_hangup_cause=200)"
    (failure,) = [each for each in evidence if each.what.startswith("streaming.failed")]
    assert (failure.failed, failure.code) == (True, "connection_failed")
    assert "wsvoice doctor" in failure.hint
    webhooks = [each for each in evidence if each.what.startswith("the webhook")]
    assert [each.what.rpartition("status/T ")[2] for each in webhooks] == [
        "was answered with 403",
        "was answered with 404",
        "was answered with 502",
        "got no answer",
    ]
    assert all(each.failed and each.code == "75499" and each.hint for each in webhooks)
    assert "TELNYX_PUBLIC_KEY" in webhooks[0].hint
    assert "tunnel" in webhooks[3].hint
    assert [each.failed for each in evidence if each.what.startswith("call.")] == [False, False, False]


def test_a_refused_call_says_why(call_control: Company) -> None:
    call_id = call_control.run(call_control.account.dial(OUTBOUND)).call_id
    call = call_control.last_call()
    call_control.fake.end(call, "failed")
    (failure,) = [each for each in call_control.run(call_control.account.evidence(call_id)) if each.failed]
    assert (failure.code, failure.hint) == ("not_found", "check it")


def test_a_call_that_is_known_by_its_webhooks_alone(texml: Company) -> None:
    texml.fake.record_delivery("v3:old", "call_initiated", HERE.webhook, None)
    (only,) = texml.run(texml.account.evidence("v3:old"))
    assert only.what == f"the webhook call.initiated to {HERE.webhook} got no answer"


def test_odd_records_are_told_as_far_as_they_can_be(call_control: Company) -> None:
    deep: dict[str, Any] = {}
    for _ in range(50):
        deep = {"a": deep}
    events = [
        {},
        {"name": 7},
        {"name": "call.hangup", "metadata": deep},
        {"name": "x\n", "metadata": {"result": "\x1b"}},
    ]
    deliveries = [{}, {"attempts": 3}, {"attempts": [None, {"status": "failed"}]}, {"webhook": [], "attempts": []}]
    answers = ({"data": {"call_leg_id": 5}}, {"data": events}, {"data": deliveries})
    responses = [ApiResponse(200, {}, json.dumps(each).encode()) for each in answers]
    evidence = call_control.run(call_control.account.evidence("v3:a"), *responses)
    assert len(evidence) == 5
    assert all(each.what.isprintable() for each in evidence)


# Codes


@pytest.mark.parametrize("code", sorted(CODES))
def test_what_codes_mean(code: str) -> None:
    account = load_account("telnyx")
    explained = account.explain_code(code)
    assert explained is not None
    meaning, mend = explained
    assert meaning
    assert not meaning.endswith(".")
    assert "\n" not in meaning + mend
    assert account.explain_code(f" {code.lower()} ") == explained


def test_an_unknown_code() -> None:
    assert load_account("telnyx").explain_code("31920") is None
    assert load_account("telnyx").explain_code("") is None


# Telnyx's own library


def listing(resource: Any, **filters: Any) -> list[Any]:
    """Return all of a list, asked for as we ask."""
    return list(resource.list(page_size=250, **({"filter": filters} if filters else {})))


def by_library_describe(client: Any, company: Company) -> None:
    # The library does not know who the key belongs to.
    who = client.get("/whoami", cast_to=object)
    assert who["data"]["organization_id"] == company.fake.organization_id
    assert client.balance.retrieve().data.available_credit == "25.00"


def by_library_numbers(client: Any, company: Company) -> None:
    assert {each.phone_number for each in listing(client.phone_numbers)} == {NUMBER, OTHER}


def by_library_find_number(client: Any, company: Company) -> None:
    (number,) = listing(client.phone_numbers, phone_number=NUMBER[1:])
    connection = client.connections.retrieve(number.connection_id).data
    assert (connection.record_type, connection.connection_name) == (TEXML, "Support")
    application = client.texml_applications.retrieve(number.connection_id).data
    assert application.voice_url == "https://support.example.com/texml"
    assert len(listing(client.phone_numbers, connection_id=number.connection_id)) == 2


def by_library_point(client: Any, company: Company) -> None:
    number = company.fake.numbers[NUMBER]
    former = client.connections.retrieve(number.settings["connection_id"]).data
    profile_id = client.texml_applications.retrieve(former.id).data.outbound.outbound_voice_profile_id
    assert former.outbound_voice_profile_id == profile_id
    assert listing(client.texml_applications, friendly_name=NUMBER[1:]) == []
    made = client.texml_applications.create(
        friendly_name=f"wsvoice bot.example.com {NUMBER}",
        voice_url=HERE.webhook,
        voice_method="post",
        status_callback=HERE.status,
        status_callback_method="post",
        outbound={"outbound_voice_profile_id": profile_id},
    ).data
    changed_number = client.phone_numbers.update(number.number_id, connection_id=made.id).data
    assert changed_number.connection_id == made.id


def by_library_restore(client: Any, company: Company) -> None:
    number = company.fake.numbers[NUMBER]
    ours = client.texml_applications.retrieve(number.settings["connection_id"]).data
    assert client.phone_numbers.retrieve(number.number_id).data.connection_id == ours.id
    former_id = next(iter(company.fake.connections))
    client.phone_numbers.update(number.number_id, connection_id=former_id)
    assert listing(client.phone_numbers, connection_id=ours.id) == []
    client.texml_applications.delete(ours.id)


def by_library_dial(client: Any, company: Company) -> None:
    (number,) = listing(client.phone_numbers, phone_number=NUMBER[1:])
    assert client.connections.retrieve(number.connection_id).data.record_type == CALL_CONTROL
    application = client.call_control_applications.retrieve(number.connection_id).data
    placed = client.calls.dial(
        connection_id=application.id,
        to=CALLED,
        from_=NUMBER,
        stream_url=OUTBOUND.stream_url,
        stream_track="inbound_track",
        stream_codec="PCMU",
        stream_bidirectional_mode="rtp",
        stream_bidirectional_codec="PCMU",
        stream_bidirectional_sampling_rate=8000,
        webhook_url=OUTBOUND.status_url,
        webhook_url_method="POST",
        timeout_secs=45,
        time_limit_secs=600,
        answering_machine_detection="greeting_end",
    ).data
    assert placed.call_control_id == company.last_call().call.call_id


def aliases(hint: Any) -> list[Any]:
    """Return what a type hint of the library's says that a field is called."""
    return [hint] if hasattr(hint, "alias") else [one for part in typing.get_args(hint) for one in aliases(part)]


def by_library_dial_texml(client: Any, company: Company) -> None:
    (number,) = listing(client.phone_numbers, phone_number=NUMBER[1:])
    client.connections.retrieve(number.connection_id)
    client.texml_applications.retrieve(number.connection_id)
    client.get("/whoami", cast_to=object)
    # By these names: those of its own spelling the library sends as they are.
    body = {
        "ApplicationSid": number.connection_id,
        "To": CALLED,
        "From": NUMBER,
        "Url": OUTBOUND.webhook_url,
        "UrlMethod": "POST",
        "StatusCallback": OUTBOUND.status_url,
        "StatusCallbackMethod": "POST",
        "StatusCallbackEvent": "initiated ringing answered completed",
        "Timeout": 45,
        "TimeLimit": 600,
        "MachineDetection": "DetectMessageEnd",
        "DetectionMode": "Regular",
        "AsyncAmd": True,
        "AsyncAmdStatusCallback": OUTBOUND.machine_url,
        "AsyncAmdStatusCallbackMethod": "POST",
    }
    from telnyx.types.texml.accounts.call_calls_params import BodyWithURL

    hints = typing.get_type_hints(BodyWithURL, include_extras=True).values()
    known = {each.alias for hint in hints for part in typing.get_args(hint) for each in aliases(part)}
    assert set(body) <= known
    placed = client.texml.accounts.calls.calls(company.fake.organization_id, body=body)
    assert (placed.from_, placed.to, placed.status) == (NUMBER, CALLED, "queued")


def by_library_look_up(client: Any, company: Company) -> None:
    call = client.calls.retrieve_status(company.last_call().call.call_id).data
    assert call.is_alive
    (event,) = listing(client.call_events, leg_id=call.call_leg_id)
    assert event.name == "call.initiated"


def by_library_hang_up(client: Any, company: Company) -> None:
    call = company.last_call().call
    by_runner = load_server("telnyx", {"TELNYX_API_KEY": KEY}).hang_up(dataclasses.replace(call, control="api"))
    assert by_runner is not None
    # A hang-up that the server repeats is the same command.
    command_id = json.loads(by_runner.body)["command_id"]
    assert client.calls.actions.hangup(call.call_id, command_id=command_id).data.result == "ok"


def by_library_transfer(client: Any, company: Company) -> None:
    call_id = company.last_call().call.call_id
    assert client.calls.actions.transfer(call_id, to=OTHER).data.result == "ok"
    client.calls.actions.stop_streaming(call_id)


def by_library_transfer_texml(client: Any, company: Company) -> None:
    client.get("/whoami", cast_to=object)
    document = f"<Response><Dial><Number>{OTHER}</Number></Dial></Response>"
    call = client.texml.accounts.calls.update(
        company.last_call().call.call_id,
        account_sid=company.fake.organization_id,
        texml=f'<?xml version="1.0" encoding="UTF-8"?>\n{document}',
    )
    assert call.sid == company.last_call().call.call_id


def by_library_send_digits(client: Any, company: Company) -> None:
    assert client.calls.actions.send_dtmf(company.last_call().call.call_id, digits="12#").data.result == "ok"


def by_library_evidence(client: Any, company: Company) -> None:
    call_id = company.last_call().call.call_id
    call = client.calls.retrieve_status(call_id).data
    listing(client.call_events, leg_id=call.call_leg_id)
    (delivery,) = listing(client.webhook_deliveries, webhook={"contains": call_id})
    assert [each.http.response.status for each in delivery.attempts] == [200, 404]


def by_library_cancel_texml(client: Any, company: Company) -> None:
    account, call = client.texml.accounts.calls, company.last_call().call
    listed = account.retrieve_calls(company.fake.organization_id, from_=NUMBER, to=CALLED, page_size=20)
    assert [each.sid for each in listed.calls] == [call.call_id]
    by_library_hang_up(client, company)


DETAILED = dataclasses.replace(OUTBOUND, detection="greeting-end", ring_timeout_s=45, time_limit_s=600)


def dialled(company: Company) -> Company:
    """Place a call, of which there are records."""
    company.run(company.account.dial(OUTBOUND))
    call_id = company.last_call().call.call_id
    company.fake.record_delivery(call_id, "call_initiated", OUTBOUND.status_url, 404, 200)
    return company


def with_a_pointed_number(company: Company) -> Company:
    company.saved = pointed(with_texml(company))[-1]  # type: ignore[attr-defined]
    return company


def with_a_command_call(company: Company) -> Company:
    return dialled(with_call_control(company))


def with_a_document_call(company: Company) -> Company:
    return dialled(with_texml(company))


def our_call(company: Company) -> Call:
    return company.last_call().call


@pytest.mark.parametrize(
    ("make", "ours", "theirs"),
    [
        (with_texml, lambda it: it.account.describe(), by_library_describe),
        (with_texml, lambda it: it.account.numbers(), by_library_numbers),
        (with_texml, lambda it: it.account.find_number(NUMBER), by_library_find_number),
        (with_texml, lambda it: it.account.point(found(it), HERE, lambda state: None), by_library_point),
        (with_a_pointed_number, lambda it: it.account.restore(it.saved, HERE), by_library_restore),
        (with_call_control, lambda it: it.account.dial(DETAILED), by_library_dial),
        (with_texml, lambda it: it.account.dial(DETAILED), by_library_dial_texml),
        (with_a_command_call, lambda it: it.account.look_up(our_call(it).call_id), by_library_look_up),
        (with_a_command_call, lambda it: it.account.hang_up(our_call(it)), by_library_hang_up),
        (with_a_document_call, lambda it: it.account.hang_up(our_call(it)), by_library_hang_up),
        (with_a_command_call, lambda it: it.account.transfer(our_call(it), OTHER), by_library_transfer),
        (with_a_document_call, lambda it: it.account.transfer(our_call(it), OTHER), by_library_transfer_texml),
        (with_a_command_call, lambda it: it.account.send_digits(our_call(it), "12#"), by_library_send_digits),
        (with_a_command_call, lambda it: it.account.evidence(our_call(it).call_id), by_library_evidence),
        (
            with_a_document_call,
            lambda it: it.account.cancel(PlacedCall("", f"{NUMBER} {CALLED}", it.fake.organization_id)),
            by_library_cancel_texml,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", "").removeprefix("by_library_").replace("<lambda>", ""),
)
def test_what_we_send_is_what_telnyxs_library_sends(
    make: Callable[[Company], Company],
    ours: Callable[[Company], Steps[Any]],
    theirs: Callable[[Any, Company], None],
) -> None:
    company, other = make(Company()), make(Company())
    steps = ours(company)
    company.requests.clear()
    other.requests.clear()
    company.run(steps)
    theirs(other.library(), other)
    assert [sent(each) for each in company.requests] == [sent(each) for each in other.requests]
    for mine, its in zip(company.requests, other.requests, strict=True):
        assert mine.headers["authorization"] == its.headers["authorization"]
        assert mine.headers.get("content-type") == (its.headers.get("content-type") if its.body else None)
    assert company.fake.connections == other.fake.connections
    assert company.fake.numbers == other.fake.numbers
    assert company.fake.calls == other.fake.calls


def test_the_library_reads_the_refusals_of_the_account(call_control: Company) -> None:
    import telnyx

    client, fake = call_control.library(), call_control.fake
    dial = {"connection_id": "1", "to": CALLED, "from_": NUMBER}
    with pytest.raises(telnyx.UnprocessableEntityError) as unprocessable:
        client.calls.dial(**dial)
    assert unprocessable.value.body["errors"][0]["code"] == "10015"
    without_profile(call_control)
    with pytest.raises(telnyx.PermissionDeniedError) as denied:
        client.calls.dial(**{**dial, "connection_id": next(iter(fake.connections))})
    assert denied.value.body["telnyx_error"] == {"error_code": "D38"}
    with pytest.raises(telnyx.NotFoundError):
        client.phone_numbers.retrieve("1")
    fake.too_many = 1
    with pytest.raises(telnyx.RateLimitError):
        client.phone_numbers.list()
    stranger = client.with_options(api_key="KEY-of-somebody-else")
    with pytest.raises(telnyx.AuthenticationError):
        stranger.phone_numbers.list()


def test_the_library_manages_what_our_account_has_no_use_for(call_control: Company) -> None:
    client, fake = call_control.library(), call_control.fake
    (profile,) = listing(client.outbound_voice_profiles)
    assert (profile.id, profile.enabled) == (next(iter(fake.profiles)), True)
    assert [each.connection_name for each in listing(client.connections)] == ["Office"]
    made = client.call_control_applications.create(
        application_name="Sales", webhook_event_url="https://sales.example.com/"
    ).data
    renamed = client.call_control_applications.update(
        made.id, application_name="Sales 2", webhook_event_url="https://sales.example.com/"
    ).data
    assert (renamed.id, renamed.application_name, renamed.record_type) == (made.id, "Sales 2", CALL_CONTROL)
    assert {each.application_name for each in listing(client.call_control_applications)} == {"Office", "Sales 2"}
    client.call_control_applications.delete(made.id)
    assert made.id not in fake.connections


# Over a network


class Online(JsonServer):
    """The account's API on a port of this machine."""

    def __init__(self, company: Company) -> None:
        super().__init__()
        self.company = company
        company.account = TelnyxAccount({"TELNYX_API_KEY": KEY, "TELNYX_BASE_URL": f"{self.url}v2/"})

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: dict[str, Any]) -> Reply:
        response = self.company.ask(WebhookRequest(method, self.url[:-1] + path, headers, json.dumps(body).encode()))
        return response.status, response.body


def test_a_number_follows_a_server_over_the_network(texml: Company, tmp_path: Path) -> None:
    before, moved = (
        json.dumps(texml.fake.connections, sort_keys=True),
        ServerAddresses("https://new.example.com/telnyx"),
    )

    async def main() -> None:
        number = PointedNumber(texml.account, NUMBER, tmp_path)
        assert (await number.claim()).points_at == "https://support.example.com/texml"
        await number.point(HERE)
        assert texml.fake.points_at(NUMBER) == Callback(HERE.webhook)
        assert await number.move(moved)
        assert texml.fake.points_at(NUMBER) == Callback(moved.webhook)
        assert len(of_wsvoice(texml)) == 1
        assert await number.put_back() == "restored"
        number.release()

    with Online(texml):
        asyncio.run(main())
    assert json.dumps(texml.fake.connections, sort_keys=True) == before
    assert texml.fake.points_at(NUMBER) == Callback("https://support.example.com/texml")
    assert list(tmp_path.rglob("*.json")) == []


def test_a_call_is_placed_and_ended_over_the_network(call_control: Company) -> None:
    call_control.fake.too_many = 1
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main() -> None:
        placed = await carry_out(call_control.account.dial(OUTBOUND), sleep=sleep)
        assert (await carry_out(call_control.account.look_up(placed.call_id))).stage == "ringing"
        assert await carry_out(call_control.account.cancel(placed))
        assert not await carry_out(call_control.account.cancel(placed))
        assert (await carry_out(call_control.account.look_up(placed.call_id))).stage == "canceled"

    with Online(call_control):
        asyncio.run(main())
    assert len(waits) == 1


# Whatever a bot sends

ROUTES = [
    ("PATCH", "phone_numbers/{number}"),
    ("POST", "texml_applications"),
    ("PATCH", "texml_applications/{texml}"),
    ("POST", "call_control_applications"),
    ("POST", "calls"),
    ("POST", "calls/{call}/actions/transfer"),
    ("POST", "calls/{call}/actions/send_dtmf"),
    ("POST", "texml/Accounts/{organization}/Calls"),
    ("POST", "texml/Accounts/{organization}/Calls/{call}"),
]
FIELDS = [
    *("connection_id", "to", "from", "stream_url", "stream_codec", "webhook_url", "timeout_secs", "time_limit_secs"),
    *("answering_machine_detection", "custom_parameters", "friendly_name", "voice_url", "voice_method", "outbound"),
    *("ApplicationSid", "To", "From", "Url", "UrlMethod", "Timeout", "StatusCallback", "MachineDetection", "Texml"),
    *("application_name", "webhook_event_url", "active", "id", "Status", "digits", "StatusCallbackEvent"),
]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_nothing_but_an_answer_comes_of_an_odd_request(data: st.DataObject) -> None:
    company = with_texml(Company())
    fake = company.fake
    office = fake.add_application(CALL_CONTROL, "Office", url=HERE.webhook, profile_id=next(iter(fake.profiles)))
    company.run(company.account.dial(OUTBOUND))
    ids = {
        "number": fake.numbers[NUMBER].number_id,
        "texml": next(iter(fake.connections)),
        "call": company.last_call().call.call_id,
        "organization": fake.organization_id,
    }
    known = st.sampled_from([*ids.values(), office, NUMBER, CALLED, HERE.webhook, "wss://bot.example.com/ws", "30"])
    content = data.draw(st.dictionaries(st.sampled_from(FIELDS), known | values, max_size=12))
    body = data.draw(st.just(json.dumps(content).encode()) | st.binary(max_size=9))
    kind = data.draw(st.sampled_from(["application/json", "application/x-www-form-urlencoded"]))
    for method, path in ROUTES:
        url = f"http://127.0.0.1:1/v2/{path.format(**ids)}"
        answer = fake.answer(WebhookRequest(method, url, {"content-type": kind}, body))
        assert answer is not None
        assert answer.status in (200, 201, 403, 404, 422)
        assert isinstance(json.loads(answer.body), dict)
    # Whatever it was told, the account can still be read.
    assert len(company.run(company.account.numbers())) == 2
    company.run(company.account.find_number(NUMBER))


# Whatever an API answers

KEYS = [
    *("data", "errors", "meta", "total_pages", "telnyx_error", "error_code", "code", "title", "detail", "calls"),
    *("id", "record_type", "phone_number", "connection_id", "status", "friendly_name", "voice_url", "outbound"),
    *("outbound_voice_profile_id", "organization_id", "call_leg_id", "is_alive", "call_duration", "end_time", "price"),
    *("name", "metadata", "event_timestamp", "hangup_cause", "attempts", "http", "response", "sid", "call_control_id"),
]
WORDS = [
    NUMBER,
    HERE.webhook,
    TEXML,
    CALL_CONTROL,
    "call.hangup",
    "failed",
    "D60",
    "10005",
    "",
    "2",
    "2026-01-01T00:00:00Z",
]
answers = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=9,
)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_nothing_but_an_error_comes_of_an_odd_answer(data: st.DataObject) -> None:
    account = TelnyxAccount({"TELNYX_API_KEY": KEY})
    steps = data.draw(st.sampled_from(every_operation(account)))
    contents = answers | st.lists(st.dictionaries(st.sampled_from(KEYS), answers, max_size=5), max_size=2)
    responses = st.builds(
        lambda status, content, is_bare: ApiResponse(
            status, {}, json.dumps(content if is_bare else {"data": content}).encode()
        ),
        st.sampled_from([200, 200, 200, 201, 400, 401, 403, 404, 422, 429, 500]),
        contents,
        st.booleans(),
    )
    refusal = ""
    try:
        next(steps)
        for _ in range(12):
            steps.send(data.draw(responses))
        steps.close()
    except StopIteration:
        pass
    except ApiError as error:
        refusal = error.message
    assert refusal.isprintable()
    assert len(refusal) < 400


# A call that we dial, from both ends


@pytest.mark.parametrize(
    "stage", ["queued", "ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"]
)
@pytest.mark.parametrize("control", ["api", "document"])
def test_reports_of_the_simulator_are_read_by_the_server(stage: Any, control: Any) -> None:
    simulator = load_simulator("telnyx", {"TELNYX_PRIVATE_KEY": "A" * 43 + "="})
    server = load_server("telnyx", {"TELNYX_PRIVATE_KEY": "A" * 43 + "="})
    call = Call("telnyx", "v3:a", "", "acc", NUMBER, CALLED, "outbound", control=control)
    request = simulator.status_webhook(
        call, Callback(OUTBOUND.status_url), StatusReport(stage, duration_s=7.0), now=NOW
    )
    if (control, stage) == ("api", "queued"):
        assert request is None
        return
    assert request is not None
    request = simulator.sign(request, now=NOW)
    server.verify(request, now=NOW)
    assert request.url == OUTBOUND.status_url
    update = server.read_webhook(request)
    assert isinstance(update, CallUpdate)
    over = stage in ("completed", "busy", "no-answer", "failed", "canceled")
    assert (update.call_id, update.ended) == ("v3:a", over)
    assert update.failed == (stage == "failed")
    assert (update.stage, update.answered_by, update.greeting_ended) == (stage, None, False)


@pytest.mark.parametrize("control", ["api", "document"])
@pytest.mark.parametrize("answered_by", ["human", "machine", "fax", "unknown"])
def test_detections_of_the_simulator_are_read_by_the_server(answered_by: Any, control: Any) -> None:
    simulator, server = load_simulator("telnyx"), load_server("telnyx")
    call = Call("telnyx", "v3:a", "", "acc", NUMBER, CALLED, "outbound", control=control)
    at = Callback(OUTBOUND.machine_url)
    detected = simulator.status_webhook(call, at, StatusReport("answered", answered_by=answered_by), now=NOW)
    assert detected is not None
    update = server.read_webhook(detected)
    assert isinstance(update, CallUpdate)
    assert (update.stage, update.answered_by, update.greeting_ended) == (None, answered_by, False)
    greeted = simulator.status_webhook(
        call, at, StatusReport("answered", answered_by="machine", greeting_ended=True), now=NOW
    )
    assert greeted is not None
    update = server.read_webhook(greeted)
    assert isinstance(update, CallUpdate)
    assert (update.stage, update.answered_by, update.greeting_ended, update.ended) == (None, "machine", True, False)


@pytest.mark.parametrize(
    ("golden", "stage", "answered_by", "greeting_ended"),
    [
        ("texml-status-initiated", "queued", None, False),
        ("texml-status-ringing", "ringing", None, False),
        ("texml-status-in-progress", "answered", None, False),
        ("texml-status-completed", "completed", None, False),
        ("texml-machine-detection", "answered", "human", False),
        ("call-initiated-outgoing", "ringing", None, False),
        ("call-answered", "answered", None, False),
        ("call-hangup", "completed", None, False),
        ("call-hangup-busy", "busy", None, False),
        ("machine-detection", "answered", "human", False),
        ("machine-greeting-ended", "answered", "machine", True),
        ("machine-premium-fax", "answered", "fax", False),
    ],
)
def test_the_simulator_reports_as_the_pages_do(golden: str, stage: Any, answered_by: Any, greeting_ended: bool) -> None:
    page = json.loads((GOLDEN / f"{golden}.json").read_text())
    control: Any = "document" if "fields" in page else "api"
    call = Call("telnyx", "v3:a", "", "acc", NUMBER, CALLED, "outbound", control=control)
    request = load_simulator("telnyx").status_webhook(
        call,
        Callback(HERE.status),
        StatusReport(stage, answered_by=answered_by, greeting_ended=greeting_ended),
        now=NOW,
    )
    assert request is not None
    if control == "document":
        # What the page tells of the audio is the leg's.
        assert set(request.fields) == set(page["fields"]) - {"Codec", "SamplingRate"}
        for name in ("CallStatus", "SequenceNumber", "CallbackSource", "AnsweredBy", "HangupCause"):
            assert request.fields.get(name) == page["fields"].get(name)
        return
    ours, theirs = request.read_json()["data"], page["json"]["data"]
    assert (ours["event_type"], set(ours)) == (theirs["event_type"], set(theirs))
    assert set(theirs["payload"]) <= set(ours["payload"]) <= set(theirs["payload"]) | {"state"}
    for name in ("direction", "state", "result", "hangup_cause", "sip_hangup_cause"):
        assert name not in theirs["payload"] or ours["payload"][name] == theirs["payload"][name]


def test_a_call_that_gets_another_id_when_it_is_answered(call_control: Company) -> None:
    """The stream is connected while it rings, and says the new id when it starts; the old one is of no use any more."""
    account, fake = call_control.account, call_control.fake
    placed = call_control.run(account.dial(OUTBOUND))
    call = call_control.last_call()
    carrier, bot = call_control.simulator.stream(), load_server("telnyx").stream()
    assert bot.receive(carrier.send(Connected())) == Connected(version="1.0.0")

    fake.rename(call)
    call.stage = "answered"
    new = call.call
    assert new.call_id != placed.call_id
    started = bot.receive(carrier.send(StreamStarted(new.stream_id, new.call_id, from_number=NUMBER)))
    assert isinstance(started, StreamStarted)
    assert started.call_id == new.call_id
    report = call_control.simulator.status_webhook(
        new, Callback(OUTBOUND.status_url), StatusReport("answered"), now=NOW
    )
    assert report is not None
    update = load_server("telnyx").read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert update.call_id == new.call_id

    assert call_control.run(account.cancel(placed)) is False
    assert call.stage == "answered"
    assert call_control.run(account.look_up(new.call_id)).stage == "answered"
    assert call_control.run(account.hang_up(new)) is True
    assert call.stage == "completed"
