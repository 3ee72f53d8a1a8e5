"""
Plivo's REST API: our requests against the fake account, and Plivo's own library against the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
from plivo.exceptions import AuthenticationError, GeoPermissionError, ResourceNotFoundError, ValidationError
from plivo.rest.client import Client

from tests.providers.fake_network import FakeAdapter, FakeNetwork
from wsvoice.call import AnsweredBy, Call, Stage
from wsvoice.errors import ApiError, ConfigError, LocalProtocolError
from wsvoice.providers import load_account, load_server, load_simulator
from wsvoice.providers.account import ApiResponse, OutboundCall, PhoneNumber, PlacedCall, ServerAddresses, Steps
from wsvoice.providers.base import Answer, Callback, CallUpdate, HttpRequest, NoStream, WebhookRequest
from wsvoice.providers.fake_account import FakeCall
from wsvoice.providers.plivo.account import PlivoAccount
from wsvoice.providers.plivo.fake_account import PlivoFakeAccount, stable_uuid
from wsvoice.providers.plivo.hangup_causes import HANGUP_CAUSES

ACCOUNT, TOKEN = "MA" + "X" * 18, "token"
CREDENTIALS = {"PLIVO_AUTH_ID": ACCOUNT, "PLIVO_AUTH_TOKEN": TOKEN}
BASE = f"https://api.plivo.com/v1/Account/{ACCOUNT}/"
OURS, THEIRS = "+15550100001", "+15550100002"
HERE = ServerAddresses("https://bot.example.com/plivo", "https://bot.example.com/plivo/status/token")
CALL = OutboundCall(
    THEIRS,
    OURS,
    "https://bot.example.com/plivo/answer/token",
    "wss://bot.example.com/ws/token",
    "https://bot.example.com/plivo/status/token",
    "https://bot.example.com/plivo/machine/token",
    detection="detect",
    ring_timeout_s=30,
    time_limit_s=600,
)


@pytest.fixture
def fake() -> PlivoFakeAccount:
    made = PlivoFakeAccount(load_simulator("plivo", CREDENTIALS), bytes(range(32)))
    app_id = made.add_application(
        "Support", answer_url="https://other.example.com/", message_url="https://sms.example/"
    )
    made.add_number(OURS, name="Main", app_id=app_id)
    return made


@pytest.fixture
def network(fake: PlivoFakeAccount) -> FakeNetwork:
    api = load_simulator("plivo", CREDENTIALS).fake_api()
    assert api is not None
    assert api.account_type is PlivoFakeAccount
    return FakeNetwork(api, fake)


@pytest.fixture
def account() -> PlivoAccount:
    loaded = load_account("plivo", CREDENTIALS)
    assert isinstance(loaded, PlivoAccount)
    return loaded


@pytest.fixture
def library(network: FakeNetwork) -> Iterator[Client]:
    with Client(ACCOUNT, TOKEN) as client:
        client.session.mount("https://", FakeAdapter(network))
        yield client


def find(network: FakeNetwork, account: PlivoAccount, number: str = OURS) -> PhoneNumber:
    return network.carry_out(account.find_number(number))


def saver(into: list[dict[str, str]]) -> Callable[[Any], None]:
    return lambda saved: into.append(dict(saved))


def meaning(request: HttpRequest) -> list[Any]:
    """Return method, path and fields of a request; Plivo's library repeats in the fields what the path says."""
    path, _, query = request.url.partition("?")
    fields = {**dict(parse_qsl(query)), **json.loads(request.body or b"{}")}
    told = {name: value for name, value in fields.items() if name not in ("call_uuid", "number")}
    if request.method == "DELETE":
        told.pop("app_id", None)
    return [request.method, path, told]


# The account


def test_the_account_is_described(network: FakeNetwork, account: PlivoAccount, library: Client) -> None:
    info = network.carry_out(account.describe())
    assert (info.account_id, info.name, info.is_trial, info.limits) == (ACCOUNT, "wsvoice", False, ())
    assert library.account.get().account_type == "standard"
    assert network.sent() == [("GET", BASE)] * 2


@pytest.mark.parametrize(
    ("is_trial", "credit", "limits"),
    [(True, "4.5", ["Sandbox Numbers"]), (False, "0.00000", ["no credit"]), (True, "-1", ["Sandbox", "no credit"])],
)
def test_what_an_account_cannot_do_is_told(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, is_trial: bool, credit: str, limits: list[str]
) -> None:
    fake.is_trial, fake.credits = is_trial, credit
    info = network.carry_out(account.describe())
    assert info.is_trial is is_trial
    assert len(info.limits) == len(limits)
    assert all(words in told for words, told in zip(limits, info.limits, strict=True))


def test_missing_credentials_are_named() -> None:
    with pytest.raises(ConfigError, match="PLIVO_AUTH_ID and PLIVO_AUTH_TOKEN") as caught:
        load_account("plivo", {}).check_credentials()
    assert caught.value.hint
    assert "overview" in caught.value.hint
    load_account("plivo", CREDENTIALS).check_credentials()


def test_another_address_of_the_api() -> None:
    account = load_account("plivo", {**CREDENTIALS, "PLIVO_API_BASE_URL": "http://127.0.0.1:9/v1/"})
    assert next(account.describe()).url == f"http://127.0.0.1:9/v1/Account/{ACCOUNT}/"
    odd = load_account("plivo", {"PLIVO_AUTH_ID": "a/b", "PLIVO_AUTH_TOKEN": TOKEN})
    assert next(odd.look_up("c d/e?")).url == "https://api.plivo.com/v1/Account/a%2Fb/Call/c%20d%2Fe%3F/?status=live"


# Numbers


def test_numbers_are_listed_page_by_page(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    for last in range(50):
        fake.add_number(f"+155501010{last:02}", has_voice=last != 7)
    numbers = network.carry_out(account.numbers())
    pages = [f"{BASE}Number/?limit=20&offset={offset}" for offset in (0, 20, 40)]
    assert network.sent() == [("GET", url) for url in (*pages, f"{BASE}Application/?limit=20&offset=0")]
    assert len(numbers) == 51
    main = next(each for each in numbers if each.number == OURS)
    assert (main.name, main.points_at, main.obstacle) == ("Main", "https://other.example.com/", "")
    (silent,) = (each for each in numbers if not each.has_voice)
    assert silent.number == "+15550101007"
    assert silent.obstacle
    assert silent.points_at == ""
    assert [f"+{each.number}" for each in library.numbers] == [each.number for each in numbers]
    theirs = [(urlsplit(url).path, parse_qs(urlsplit(url).query)) for _, url in network.sent()]
    assert theirs == [(urlsplit(url).path, parse_qs(urlsplit(url).query)) for url in pages]


def test_a_list_whose_pages_go_round_in_a_circle_ends(network: FakeNetwork, account: PlivoAccount) -> None:
    page = {"meta": {"next": "/v1/x/Number/?cursor=a"}, "objects": [{"number": "15550100001"}, None]}
    network.refusal = lambda request: Answer(json.dumps(page), "application/json")
    assert len(network.carry_out(account.numbers())) == 2
    assert [urlsplit(url).query for _, url in network.sent()] == ["limit=20&offset=0", "cursor=a"] * 2


def test_a_number_is_found_with_whom_it_shares(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    app_id = fake.numbers[OURS].settings["app_id"]
    alone = find(network, account)
    assert (alone.number, alone.settings, alone.warnings) == (OURS, {"app_id": app_id}, ())
    fake.add_number("+15550100003", app_id=app_id)
    fake.add_number("+15550100004", app_id=app_id)
    fake.add_number("+15550100005")
    (warning,) = find(network, account).warnings
    assert "+15550100003 and 1 more" in warning
    assert "'Support'" in warning
    assert library.numbers.get("15550100001").application.endswith(f"/Application/{app_id}/")
    assert library.applications.get(app_id).app_name == "Support"


def test_a_number_that_is_not_ours_or_has_no_voice(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    with pytest.raises(ApiError, match=r"\+15550109999 is not a number of this Plivo account") as caught:
        find(network, account, "+15550109999")
    assert caught.value.kind == "number"
    assert caught.value.hint
    with pytest.raises(ResourceNotFoundError):
        library.numbers.get("15550109999")
    fake.numbers[OURS].has_voice = False
    silent = find(network, account)
    assert silent.obstacle
    assert silent.hint
    network.sent()
    with pytest.raises(ApiError, match="not enabled for voice") as caught:
        network.carry_out(account.point(silent, HERE, lambda saved: None))
    assert (caught.value.kind, network.sent()) == ("number", [])


def test_odd_numbers_are_told_of(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    fake.add_number(THEIRS, compliance_status="submitted")
    (warning,) = find(network, account, THEIRS).warnings
    assert "is submitted" in warning
    # A trunk's id stands where an application's does.
    fake.numbers[OURS].settings["app_id"] = "12345"
    trunk = find(network, account)
    assert trunk.points_at == "SIP trunk 12345"
    assert trunk.obstacle == "its calls go to 12345, which is no application: a SIP trunk takes them"
    assert trunk.hint
    network.sent()
    with pytest.raises(ApiError, match="a SIP trunk takes them"):
        network.carry_out(account.point(trunk, HERE, lambda saved: None))
    assert network.sent() == []
    fake.numbers[OURS].settings["app_id"] = ""
    assert find(network, account).points_at == ""


# Pointing a number, and putting it back


def test_a_number_is_pointed_and_put_back(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    number, saved = find(network, account), list[dict[str, str]]()
    before = fake.numbers[OURS].settings["app_id"]
    network.carry_out(account.point(number, HERE, saver(saved)))
    assert fake.points_at(OURS) == Callback(HERE.webhook)
    (ours,) = (each for each in fake.applications.values() if each["app_name"] == "wsvoice-bot-example-com")
    assert (ours["hangup_url"], ours["message_url"]) == (HERE.status, "https://sms.example/")
    first = {"number": OURS, "app_id": before, "application": "wsvoice-bot-example-com"}
    assert saved == [first, {**first, "our_app_id": ours["app_id"]}]
    assert network.carry_out(account.restore(saved[-1], HERE)) == "restored"
    assert fake.points_at(OURS) == Callback("https://other.example.com/")
    assert list(fake.applications) == [before]
    assert network.carry_out(account.restore(saved[-1], HERE)) == "unchanged"


def test_a_number_without_an_application(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    fake.add_number(THEIRS)
    saved = list[dict[str, str]]()
    network.carry_out(
        account.point(find(network, account, THEIRS), ServerAddresses("https://h.example/"), saver(saved))
    )
    assert fake.points_at(THEIRS) == Callback("https://h.example/")
    assert network.carry_out(account.restore(saved[-1], ServerAddresses("https://h.example/"))) == "restored"
    assert fake.points_at(THEIRS) is None
    assert len(fake.applications) == 1


@pytest.mark.parametrize("steps_done", range(5))
def test_a_process_that_ends_between_any_two_steps_leaves_what_can_be_put_back(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, steps_done: int
) -> None:
    number, before, saved = find(network, account), fake.numbers[OURS].settings["app_id"], list[dict[str, str]]()
    steps = account.point(number, HERE, saver(saved))

    class PowerCut(Exception):
        pass

    def cut(request: HttpRequest) -> Answer | None:
        # What is asked last is carried out, and its answer is lost.
        if len(network.requests) > steps_done:
            raise PowerCut
        return None

    network.sent()
    network.refusal = cut
    with contextlib.suppress(PowerCut):
        network.carry_out(steps)
    network.refusal = lambda request: None
    changed = fake.numbers[OURS].settings["app_id"] != before or len(fake.applications) > 1
    assert saved or not changed
    if saved:
        expected = "restored" if fake.numbers[OURS].settings["app_id"] != before else "unchanged"
        assert network.carry_out(account.restore(saved[-1], HERE)) == expected
    assert fake.points_at(OURS) == Callback("https://other.example.com/")
    assert list(fake.applications) == [before]


def test_an_application_that_was_left_behind_is_used_again(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    left = fake.add_application("wsvoice-bot-example-com", answer_url="https://bot.example.com/old")
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    assert fake.numbers[OURS].settings["app_id"] == left
    assert fake.points_at(OURS) == Callback(HERE.webhook)
    assert network.carry_out(account.restore(saved[-1], HERE)) == "restored"
    assert left not in fake.applications


def test_a_number_that_was_ours_already_stays_as_it_is(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    fake.numbers[OURS].settings["app_id"] = fake.add_application("wsvoice-bot-example-com", answer_url=HERE.webhook)
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    assert network.carry_out(account.restore(saved[-1], HERE)) == "unchanged"
    assert fake.points_at(OURS) == Callback(HERE.webhook)


@pytest.mark.parametrize("change", ["another application", "another address", "gone"])
def test_what_somebody_else_changed_is_left_alone(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, change: str
) -> None:
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    ours = saved[-1]["our_app_id"]
    if change == "another application":
        fake.numbers[OURS].settings["app_id"] = fake.add_application("New", answer_url="https://new.example.com/")
    elif change == "another address":
        fake.applications[ours]["answer_url"] = "https://new.example.com/"
    else:
        del fake.numbers[OURS]
    assert network.carry_out(account.restore(saved[-1], HERE)) == "left"
    if change != "gone":
        assert fake.points_at(OURS) == Callback("https://new.example.com/")
    assert (ours in fake.applications) is (change == "another address")


def test_a_number_moves_with_the_server(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    number, saved = find(network, account), list[dict[str, str]]()
    before = fake.numbers[OURS].settings["app_id"]
    network.carry_out(account.point(number, HERE, saver(saved)))
    there = ServerAddresses("https://other-tunnel.example.com/plivo")
    network.carry_out(account.point(number, there, saver(saved)))
    assert fake.points_at(OURS) == Callback(there.webhook)
    assert [each["app_name"] for each in fake.applications.values()] == ["Support", "wsvoice-other-tunnel-example-com"]
    assert saved[-1]["app_id"] == before
    assert network.carry_out(account.restore(saved[-1], there)) == "restored"
    assert list(fake.applications) == [before]


def test_what_is_put_back_is_what_there_was_last(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    number, saved = find(network, account), list[dict[str, str]]()
    fake.numbers[OURS].settings["app_id"] = fake.add_application("New", answer_url="https://new.example.com/")
    network.carry_out(account.point(number, HERE, saver(saved)))
    assert network.carry_out(account.restore(saved[-1], HERE)) == "restored"
    assert fake.points_at(OURS) == Callback("https://new.example.com/")


def test_a_number_without_an_application_has_none_again_however_plivo_takes_it(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    fake.add_number(THEIRS)
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account, THEIRS), HERE, saver(saved)))
    error = Answer('{"error": "app_id is empty"}', "application/json", 400)
    network.refusal = lambda sent: error if b'"app_id":""' in sent.body else None
    assert network.carry_out(account.restore(saved[-1], HERE)) == "restored"
    assert fake.points_at(THEIRS) is None
    assert len(fake.applications) == 1


def test_an_application_that_is_gone_cannot_be_put_back(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    del fake.applications[saved[-1]["app_id"]]
    with pytest.raises(ApiError, match=rf"to put \{OURS} back to the application"):
        network.carry_out(account.restore(saved[-1], HERE))


def test_an_application_that_another_number_uses_is_not_deleted(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    fake.add_number(THEIRS, app_id=saved[-1]["our_app_id"])
    assert network.carry_out(account.restore(saved[-1], HERE)) == "restored"
    assert fake.points_at(THEIRS) == Callback(HERE.webhook)


def test_nothing_is_left_of_a_refused_change(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    number = find(network, account)
    error = Answer('{"api_id": "1", "error": {"app_id": ["no such application"]}}', "application/json", 400)
    network.refusal = lambda sent: error if sent.method == "POST" and "/Number/" in sent.url else None
    with pytest.raises(ApiError, match="no such application") as caught:
        network.carry_out(account.point(number, HERE, lambda saved: None))
    assert caught.value.kind == "refused"
    assert len(fake.applications) == 1


def test_plivos_library_points_a_number_with_the_same_requests(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    saved = list[dict[str, str]]()
    network.carry_out(account.point(find(network, account), HERE, saver(saved)))
    ours = saved[-1]["our_app_id"]
    network.carry_out(account.restore(saved[-1], HERE))
    mine = [each for each in network.requests if each.method != "GET"]
    network.sent()
    made = library.applications.create(
        "wsvoice-bot-example-com",
        answer_url=HERE.webhook,
        hangup_url=HERE.status,
        message_url="https://sms.example/",
        message_method="POST",
    ).app_id
    library.numbers.update("15550100001", app_id=made)
    assert fake.points_at(OURS) == Callback(HERE.webhook)
    library.numbers.update("15550100001", app_id=saved[-1]["app_id"])
    library.applications.delete(made)
    defaults = {
        "default_endpoint_app": False,
        "default_number_app": False,
        "fallback_method": "POST",
        "log_incoming_messages": True,
    }
    sent, theirs = [meaning(each) for each in mine], [meaning(each) for each in network.requests]
    sent[0][2].update(defaults)
    assert sent == json.loads(json.dumps(theirs).replace(made, ours))


# Placing calls


def place(network: FakeNetwork, account: PlivoAccount, call: OutboundCall = CALL) -> PlacedCall:
    return network.carry_out(account.dial(call))


def test_a_call_is_placed(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    seen = list[FakeCall]()
    fake.on_placed = seen.append
    placed = place(network, account)
    ((call_id, call),) = fake.calls.items()
    assert seen == [call]
    assert placed == PlacedCall("", stable_uuid(call_id), ACCOUNT)
    assert (call.call.from_number, call.call.to_number, call.call.direction) == (OURS, THEIRS, "outbound")
    assert (call.webhook, call.status) == (Callback(CALL.webhook_url), Callback(CALL.status_url))
    assert (call.machine, call.detection) == (Callback(CALL.machine_url), "detect")
    assert call.reports >= {"ringing", "completed", "busy"}
    assert "answered" not in call.reports
    assert (call.ring_timeout_s, call.time_limit_s) == (30.0, 600.0)


def test_plivos_library_places_a_call_with_the_same_request(
    network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    place(network, account)
    answer = library.calls.create(
        from_="15550100001",
        to_="15550100002",
        answer_url=CALL.webhook_url,
        ring_url=CALL.status_url,
        hangup_url=CALL.status_url,
        ring_timeout=30,
        time_limit=600,
        machine_detection="true",
        machine_detection_url=CALL.machine_url,
    )
    assert answer.message == "call fired"
    ours, theirs = network.requests
    assert (ours.method, ours.url) == (theirs.method, theirs.url)
    assert ours.headers["Content-Type"] == theirs.headers["Content-Type"] == "application/json"
    defaults = {"fallback_method": "POST", "machine_detection_time": 5000, "error_if_parent_not_found": False}
    assert json.loads(theirs.body) == {**json.loads(ours.body), **defaults}


def test_a_call_without_detection_and_limit(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount
) -> None:
    sip = OutboundCall("sip:anna@phone.plivo.com", OURS, "https://h/a", "wss://h/s", "https://h/s", "https://h/m")
    place(network, account, sip)
    sent = json.loads(network.requests[-1].body)
    assert sent["to"] == "sip:anna@phone.plivo.com"
    assert not {"time_limit", "machine_detection", "machine_detection_url"} & set(sent)
    (call,) = fake.calls.values()
    assert (call.machine, call.detection) == (None, "off")


def test_the_end_of_a_greeting_is_not_told(network: FakeNetwork, account: PlivoAccount) -> None:
    with pytest.raises(ApiError, match="greeting") as caught:
        place(network, account, OutboundCall(THEIRS, OURS, "a", "b", "c", "d", detection="greeting-end"))
    assert (caught.value.kind, network.sent()) == ("unsupported", [])


def test_a_foreign_caller_id_ends_the_call(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    foreign = OutboundCall(THEIRS, "+15550107777", "https://h/a", "wss://h", "https://h/s", "https://h/m")
    place(network, account, foreign)
    (call,) = fake.calls.values()
    state = network.carry_out(account.look_up(call.call.call_id))
    assert (state.stage, state.cause) == ("failed", "Unknown Caller ID (3030)")
    assert "rents" in (account.explain_code("3030") or ("", ""))[1]


def ended(fake: PlivoFakeAccount, stage: Stage, cause: str = "", duration_s: float = 0.0) -> FakeCall:
    call = next(fake.running())
    call.duration_s = duration_s
    fake.end(call, stage, cause)
    return call


@pytest.mark.parametrize("stage", ["queued", "ringing", "answered"])
def test_a_placed_call_is_ended_whether_its_id_is_known_or_not(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, stage: Stage
) -> None:
    over = list[FakeCall]()
    fake.on_ended = over.append
    for knows_id in (False, True):
        placed = place(network, account)
        call = next(fake.running())
        call.stage = stage
        known = PlacedCall(call.call.call_id if knows_id else "", placed.request_id)
        network.sent()
        assert network.carry_out(account.cancel(known)) is True
        assert over[-1] is call
        assert call.stage == ("completed" if stage == "answered" else "canceled")
        by_id = f"{BASE}Call/{call.call.call_id}/"
        by_request, either = f"{BASE}Request/{placed.request_id}/", f"{BASE}Call/{placed.request_id}/"
        first = [by_id] if knows_id else [by_request, either] if stage == "answered" else [by_request]
        assert network.sent() == [("DELETE", url) for url in first]
        assert network.carry_out(account.cancel(known)) is False
    assert network.carry_out(account.cancel(PlacedCall(""))) is False


TRANSFER_URL = "https://h.example/transfer"


@pytest.mark.parametrize(
    ("stage", "ours", "theirs"),
    [
        (
            "ringing",
            lambda account, call: account.cancel(PlacedCall("", call.request_id)),
            lambda library, call: library.calls.cancel(call.request_id),
        ),
        (
            "answered",
            lambda account, call: account.hang_up(call.call),
            lambda library, call: library.calls.delete(call.call.call_id),
        ),
        (
            "answered",
            lambda account, call: account.look_up(call.call.call_id),
            lambda library, call: library.live_calls.get(call.call.call_id),
        ),
        (
            "busy",
            lambda account, call: account.evidence(call.call.call_id),
            lambda library, call: library.calls.get(call.call.call_id),
        ),
        (
            "answered",
            lambda account, call: account.send_digits(call.call, "1w#"),
            lambda library, call: library.calls.send_digits(call.call.call_id, "1w#"),
        ),
        (
            "answered",
            lambda account, call: account.transfer(call.call, "sip:a@h"),
            lambda library, call: library.calls.transfer(
                call.call.call_id, legs="aleg", aleg_url=f"{TRANSFER_URL}?to=sip%3Aa%40h", aleg_method="POST"
            ),
        ),
    ],
    ids=["cancel", "hang up", "look up", "record", "digits", "transfer"],
)
def test_plivos_library_does_the_same_with_a_call(
    fake: PlivoFakeAccount,
    network: FakeNetwork,
    account: PlivoAccount,
    library: Client,
    stage: Stage,
    ours: Callable[[PlivoAccount, FakeCall], Steps[Any]],
    theirs: Callable[[Client, FakeCall], Any],
) -> None:
    account.transfer_url = TRANSFER_URL
    place(network, account)
    (call,) = fake.calls.values()
    call.stage = stage
    network.sent()
    network.carry_out(ours(account, call))
    call.stage = stage
    theirs(library, call)
    mine, other = network.requests
    assert meaning(mine) == meaning(other)


@pytest.mark.parametrize(
    ("stage", "cause", "text"),
    [
        ("completed", "", "Normal Hangup (4000)"),
        ("completed", "6000", "Scheduled Hangup (6000)"),
        ("busy", "", "Busy Line (3010)"),
        ("no-answer", "", "Ring Timeout Reached (6010)"),
        ("failed", "2030", "Destination Country Barred (2030)"),
        ("canceled", "", "Canceled (1000)"),
    ],
)
def test_every_outcome_is_looked_up(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, stage: Stage, cause: str, text: str
) -> None:
    place(network, account)
    call_id, call = next(iter(fake.calls.items()))
    for before, read in (("queued", "queued"), ("ringing", "ringing"), ("answered", "answered")):
        call.stage = before  # type: ignore[assignment]
        state = network.carry_out(account.look_up(call_id))
        assert (state.call_id, state.stage, state.from_number, state.to_number) == (call_id, read, OURS, THEIRS)
    ended(fake, stage, cause, 61.0)
    state = network.carry_out(account.look_up(call_id))
    assert (state.stage, state.cause) == (stage, text)
    assert (state.from_number, state.to_number) == (OURS, THEIRS)
    assert state.duration_s == (61.0 if stage == "completed" else 0.0)
    assert state.price == "0.01700"
    assert network.carry_out(account.hang_up(call.call)) is False


def test_a_call_that_nobody_knows(network: FakeNetwork, account: PlivoAccount, library: Client) -> None:
    for ask in (account.look_up("x"), account.evidence("x"), account.hang_up(Call("plivo", "x"))):
        with pytest.raises(ApiError, match="knows no call x") as caught:
            network.carry_out(ask)
        assert caught.value.kind == "not-found"
    with pytest.raises(ResourceNotFoundError):
        library.calls.get("x")


@pytest.mark.parametrize(
    ("record", "stage"),
    [
        ({"answer_time": None, "hangup_cause_code": 9100}, "failed"),
        ({"answer_time": "2025-06-15", "hangup_cause_code": 7011}, "completed"),
        ({"call_state": "NO_ANSWER"}, "no-answer"),
        ({"call_state": "odd"}, "failed"),
        ({}, "no-answer"),
    ],
)
def test_odd_records_are_read(
    network: FakeNetwork, account: PlivoAccount, record: dict[str, Any], stage: Stage
) -> None:
    known = Answer(json.dumps(record), "application/json")
    unknown = Answer('{"error": "not found"}', "application/json", 404)
    network.refusal = lambda request: unknown if "status=" in request.url else known
    state = network.carry_out(account.look_up("c"))
    assert (state.call_id, state.stage) == ("c", stage)
    assert state.answered_by == ("machine" if record.get("hangup_cause_code") == 9100 else None)
    assert network.carry_out(account.evidence("c"))[-1].failed is (stage == "failed" or "7011" in str(record))


def test_a_record_explains_what_went_wrong(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    place(network, account)
    call_id = next(iter(fake.calls))
    (running,) = network.carry_out(account.evidence(call_id))
    assert "is not over" in running.what
    assert not running.failed
    ended(fake, "completed", "7011", 3.0)
    began, answered, end = network.carry_out(account.evidence(call_id))
    assert began.what == f"outbound call from {OURS} to 15550100002"
    assert answered.what == "answered"
    assert began.when < answered.when < end.when
    assert end.what == "ended after 3 s, by API Request: Error Reaching Answer URL (7011)"
    assert (end.code, end.failed) == ("7011", True)
    assert "tunnel" in end.hint


def test_every_cause_is_explained(account: PlivoAccount) -> None:
    for code, cause in HANGUP_CAUSES.items():
        told = account.explain_code(code)
        assert told is not None
        assert cause.name in told[0]
        assert cause.mend or cause.stage != "failed" or code == "9100" or code == "9110"
    assert account.explain_code("31920") is None


# Calls in progress


def test_keys_and_transfers(fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount) -> None:
    commands = list[tuple[str, str]]()
    fake.on_command = lambda call, kind, argument: commands.append((kind, argument))
    place(network, account)
    call = next(fake.running())
    call.stage = "answered"
    network.carry_out(account.send_digits(call.call, "12w#"))
    with pytest.raises(ApiError, match="digits") as caught:
        network.carry_out(account.send_digits(call.call, "hello"))
    assert caught.value.kind == "refused"
    with pytest.raises(ApiError, match="none is served") as caught:
        network.carry_out(account.transfer(call.call, THEIRS))
    assert caught.value.kind == "unsupported"
    account.transfer_url = "https://bot.example.com/plivo/transfer/token?a=b"
    network.carry_out(account.transfer(call.call, THEIRS))
    assert commands == [("digits", "12w#"), ("transfer", f"{account.transfer_url}&to=%2B15550100002")]
    fake.end(call)
    for steps in (account.send_digits(call.call, "1"), account.transfer(call.call, THEIRS)):
        with pytest.raises(ApiError) as caught:
            network.carry_out(steps)
        assert caught.value.kind == "ended"


@pytest.mark.parametrize(
    ("direction", "to", "reads"),
    [("inbound", THEIRS, "15550100002"), ("outbound", "sip:a@h.example", "sip:a@h.example")],
)
def test_a_transfers_document_dials(account: PlivoAccount, direction: str, to: str, reads: str) -> None:
    account.transfer_url = "https://bot.example.com/plivo/transfer"
    url = json.loads(next(account.transfer(Call("plivo", "c"), to)).body)["aleg_url"]
    simulator, server = load_simulator("plivo", CREDENTIALS), load_server("plivo", CREDENTIALS)
    ours, theirs = (OURS, THEIRS) if direction == "outbound" else (THEIRS, OURS)
    call = Call("plivo", "c", "", ACCOUNT, ours, theirs, direction)  # type: ignore[arg-type]
    asked = simulator.sign(simulator.next_webhook(call, Callback(url), "update"), now=1.0)
    server.verify(asked, now=1.0)
    answer = server.transfer_document(asked)
    read = simulator.read_answer(answer.body.encode(), answer.media_type, first=False)
    assert isinstance(read, NoStream)
    assert (read.how, read.to) == ("transferred", reads)
    assert 'callerId="15550100001"' in answer.body
    with pytest.raises(LocalProtocolError):
        server.transfer_document(WebhookRequest("POST", account.transfer_url))


# What Plivo refuses


def test_wrong_credentials(network: FakeNetwork, library: Client) -> None:
    wrong = load_account("plivo", {**CREDENTIALS, "PLIVO_AUTH_TOKEN": "another"})
    for steps in (wrong.describe(), wrong.numbers(), wrong.dial(CALL), wrong.look_up("c")):
        with pytest.raises(ApiError, match="does not take the credentials") as caught:
            network.carry_out(steps)
        assert caught.value.kind == "credentials"
        assert caught.value.hint
        assert "PLIVO_AUTH_TOKEN" in caught.value.hint
    library.session.auth = (ACCOUNT, "another")
    with pytest.raises(AuthenticationError):
        library.account.get()
    other = load_account("plivo", {**CREDENTIALS, "PLIVO_AUTH_ID": "MA" + "Y" * 18})
    with pytest.raises(ApiError):
        network.carry_out(other.describe())


def test_a_trial_account_calls_verified_numbers_alone(
    fake: PlivoFakeAccount, network: FakeNetwork, account: PlivoAccount, library: Client
) -> None:
    fake.is_trial = True
    with pytest.raises(ApiError, match=r"Plivo refuses the call to \+15550100002") as caught:
        place(network, account)
    assert caught.value.kind == "trial"
    assert caught.value.hint
    assert "Sandbox Numbers" in caught.value.hint
    with pytest.raises(GeoPermissionError):
        library.calls.create("15550100001", "15550100002", CALL.webhook_url)
    assert not fake.calls
    fake.verified.add(THEIRS)
    place(network, account)


@pytest.mark.parametrize(
    ("status", "error", "kind", "code"),
    [
        (403, "Calls to this destination country are barred.", "permission", "2030"),
        (403, "Calls to this destination number are barred.", "permission", "2040"),
        (403, "Voice capability is currently disabled for this account", "trial", ""),
        (400, "from number +91 cannot place calls as its compliance application is not accepted", "number", ""),
        (400, "insufficient credits", "balance", "1010"),
        (403, "forbidden", "permission", ""),
        (404, "not found", "not-found", ""),
        (429, "too many requests", "rate-limit", ""),
        (400, {"to": ["is invalid"]}, "refused", ""),
        (500, "", "unavailable", ""),
    ],
)
def test_what_plivo_refuses_is_understood(
    network: FakeNetwork, account: PlivoAccount, status: int, error: object, kind: str, code: str
) -> None:
    network.refusal = lambda request: Answer(json.dumps({"api_id": "1", "error": error}), "application/json", status)
    with pytest.raises(ApiError) as caught:
        place(network, account)
    assert (caught.value.kind, caught.value.code) == (kind, code)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 250
    assert caught.value.hint or kind in ("refused", "not-found")


@pytest.mark.parametrize("body", ["", "<html>\nbusy\x1b[2J", "[]", '{"error": 7}', "x" * 10_000, "\ud800"])
def test_an_answer_that_is_no_json_is_one_line(network: FakeNetwork, account: PlivoAccount, body: str) -> None:
    said = body.encode("utf-8", "surrogatepass")
    steps = account.describe()
    next(steps)
    with pytest.raises(ApiError) as caught:
        steps.send(ApiResponse(502, {}, said))
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250
    network.refusal = lambda request: Answer("[]", "application/json", 201)
    with pytest.raises(ApiError, match="under what id"):
        place(network, account)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": ""}, "to parameter"),
        ({"from": None}, "from parameter"),
        ({"to": "15550100001"}, "the same"),
        ({"answer_url": ""}, "answer_url parameter"),
        ({"answer_url": "bot"}, "answer_url"),
        ({"ring_url": "ftp://h"}, "ring_url"),
        ({"ring_timeout": "soon"}, "ring_timeout"),
        ({"hangup_url": 7}, "hangup_url"),
    ],
)
def test_the_fake_refuses_what_plivo_does(
    fake: PlivoFakeAccount, network: FakeNetwork, library: Client, change: dict[str, Any], message: str
) -> None:
    good = {"from": "15550100001", "to": "15550100002", "answer_url": "https://h/a"}
    with pytest.raises(ValidationError, match=message):
        library.request("POST", ("Call",), {**good, **change})
    assert not fake.calls


# Reports


def reported(
    stage: Stage, answered_by: AnsweredBy | None = None, duration_s: float = 0.0
) -> tuple[WebhookRequest, CallUpdate]:
    simulator, server = load_simulator("plivo", CREDENTIALS), load_server("plivo", CREDENTIALS)
    call = Call("plivo", "12345678-1234-1234-1234-123456789abc", "", ACCOUNT, OURS, THEIRS, "outbound")
    sent = simulator.status_webhook(
        call, Callback("https://h/s/token"), stage, answered_by=answered_by, duration_s=duration_s
    )
    assert sent is not None
    signed = simulator.sign(sent, now=1.0)
    server.verify(signed, now=1.0)
    update = server.read_webhook(signed)
    assert isinstance(update, CallUpdate)
    assert update.call_id == call.call_id
    return signed, update


@pytest.mark.parametrize("stage", ["ringing", "completed", "busy", "no-answer", "failed", "canceled"])
def test_a_report_says_how_far_the_call_is(stage: Stage) -> None:
    request, update = reported(stage, duration_s=60.5)
    assert update.stage == stage
    assert update.ended is (stage != "ringing")
    fields = request.fields
    assert fields["RequestUUID"] == stable_uuid(fields["CallUUID"])
    if stage != "ringing":
        assert (fields["Duration"], fields["BillDuration"]) == ("61", "120")
        assert HANGUP_CAUSES[fields["HangupCauseCode"]].name == fields["HangupCauseName"]


@pytest.mark.parametrize(("who", "read"), [("machine", "machine"), ("human", "human"), ("fax", "human")])
def test_a_report_says_who_answered(who: AnsweredBy, read: AnsweredBy) -> None:
    _, update = reported("answered", who)
    assert (update.stage, update.answered_by, update.greeting_ended) == ("answered", read, False)


@pytest.mark.parametrize("status", ["", "&CallStatus=in-progress", "&CallStatus=odd"])
def test_a_hang_up_ends_a_call_whatever_its_status_says(status: str) -> None:
    server = load_server("plivo", CREDENTIALS)
    update = server.read_webhook(WebhookRequest("GET", f"https://h/?CallUUID=c&Event=Hangup{status}"))
    assert isinstance(update, CallUpdate)
    assert (update.stage, update.ended) == ("completed", True)


def test_what_is_not_reported() -> None:
    simulator = load_simulator("plivo", CREDENTIALS)
    call = Call("plivo", "c", direction="outbound")
    at = Callback("https://h/s")
    assert simulator.status_webhook(call, at, "answered") is None
    assert simulator.status_webhook(call, at, "queued") is None
    assert simulator.status_webhook(call, at, "answered", greeting_ended=True) is None
