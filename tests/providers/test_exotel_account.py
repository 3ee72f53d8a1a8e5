"""
Exotel's REST API: our requests against the fake account and against the examples of Exotel's pages, for there is no
library of Exotel's own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from tests.providers.fake_network import FakeNetwork
from wsvoice.call import Call, Stage
from wsvoice.errors import ApiError, ConfigError
from wsvoice.providers import load_account, load_server, load_simulator
from wsvoice.providers.account import AccountInfo, ApiResponse, OutboundCall, PlacedCall, ServerAddresses, Steps
from wsvoice.providers.base import Answer, Callback, CallUpdate, HttpRequest, WebhookRequest
from wsvoice.providers.exotel.account import ExotelAccount
from wsvoice.providers.exotel.company import FORMATS
from wsvoice.providers.exotel.fake_account import ExotelFakeAccount
from wsvoice.providers.fake_account import FakeCall
from wsvoice.providers.urls import form_request

GOLDEN = Path(__file__).parents[1] / "golden" / "exotel" / "api"
CREDENTIALS = {"EXOTEL_API_KEY": "key", "EXOTEL_API_TOKEN": "token", "EXOTEL_ACCOUNT_SID": "wsvoice1"}
OURS, THEIRS = "+918047491899", "+919876543210"
V1, V2 = (f"https://api.exotel.com/{version}/Accounts/wsvoice1" for version in ("v1", "v2_beta"))
HERE = ServerAddresses("https://bot.example.com/exotel", "https://bot.example.com/exotel/status")
CALL = OutboundCall(
    THEIRS,
    OURS,
    "https://bot.example.com/exotel/answer",
    "wss://bot.example.com/ws/token",
    "https://bot.example.com/exotel/status/token",
    "https://bot.example.com/exotel/machine/token",
    ring_timeout_s=30,
    time_limit_s=600,
    parameters={"customer": "7"},
)


@pytest.fixture
def fake() -> ExotelFakeAccount:
    made = ExotelFakeAccount(load_simulator("exotel", CREDENTIALS), bytes(range(32)))
    made.add_number(
        OURS, name="Main", phone_number="08047491899", voice_url="http://my.exotel.com/a/exoml/start_voice/45"
    )
    return made


@pytest.fixture
def network(fake: ExotelFakeAccount) -> FakeNetwork:
    api = load_simulator("exotel", CREDENTIALS).fake_api()
    assert api is not None
    assert api.account_type is ExotelFakeAccount
    return FakeNetwork(api, fake)


@pytest.fixture
def account() -> ExotelAccount:
    loaded = load_account("exotel", CREDENTIALS)
    assert isinstance(loaded, ExotelAccount)
    return loaded


def read_golden(name: str) -> dict[str, Any]:
    golden: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    assert golden["source"].startswith("https://developer.exotel.com/")
    return golden


def answered_with(steps: Steps[Any], golden: dict[str, Any]) -> tuple[HttpRequest, Any]:
    """Return the one request of an operation, and what becomes of an example's response to it."""
    request = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(ApiResponse(200, {}, json.dumps(golden["response"]).encode()))
    return request, end.value.value


# Held against the pages' examples


def test_a_call_is_placed_as_on_the_page(account: ExotelAccount) -> None:
    golden = read_golden("connect")
    sent = dict(golden["form"])
    call = OutboundCall(sent["from"], OURS, "", sent["streamurl"], sent["statuscallback"], "")
    request, placed = answered_with(account.dial(call), golden)
    assert request.method == golden["method"]
    assert urlsplit(request.url).path.lower() == "/v1/accounts/wsvoice1/calls/connect.json"
    assert (
        urlsplit(golden["url"]).path.replace("<account_sid>", "wsvoice1") + ".json"
        == urlsplit(request.url).path.lower()
    )
    fields = parse_qsl(request.body.decode())
    lowered = [(name.lower(), value) for name, value in fields]
    assert set(sent.items()) <= set(lowered)
    more = {name for name, _ in fields} - {name for name, _ in fields if name.lower() in sent}
    assert more == {"TimeOut"}
    assert placed == PlacedCall("a1b2c3d4e5f6", account_id="wsvoice1")


def test_a_call_is_looked_up_as_on_the_page(account: ExotelAccount) -> None:
    golden = read_golden("call-details")
    call_id = golden["response"]["Call"]["Sid"]
    request, state = answered_with(account.look_up(call_id), golden)
    assert (request.method, request.url) == (golden["method"], golden["url"].replace("<your_sid>", "wsvoice1"))
    assert (state.call_id, state.stage, state.duration_s, state.price) == (call_id, "completed", 17.0, "1.500")
    # From is who is called first.
    assert (state.from_number, state.to_number) == ("0XXXXX38847", "0XXXXX30240")
    _, evidence = answered_with(account.evidence(call_id), golden)
    assert [each.what for each in evidence] == [
        "outbound-api call from 0XXXXX30240 to 0XXXXX38847",
        "first leg: completed",
        "second leg: completed",
        "completed after 17 s",
    ]
    assert not any(each.failed for each in evidence)


def test_numbers_are_listed_as_on_the_page(account: ExotelAccount) -> None:
    golden = read_golden("exophones")
    steps = account.numbers()
    first = next(steps)
    assert (first.method, first.url) == (golden["method"], golden["url"].replace("<your_sid>", "wsvoice1"))
    second = steps.send(ApiResponse(200, {}, json.dumps(golden["response"]).encode()))
    # The page's own host is nobody's to ask.
    assert second.url == f"{V2}/IncomingPhoneNumbers?Page=1&PageSize=50"
    with pytest.raises(StopIteration) as end:
        steps.send(ApiResponse(200, {}, b'{"incoming_phone_numbers": [], "next_page_uri": "http://h/?Page=2"}'))
    sales, other = end.value.value
    assert (sales.number, sales.number_id, sales.name, sales.points_at) == (
        "+918048332571",
        "e1",
        "Sales",
        "flow '45195'",
    )
    assert (other.number, other.points_at, other.has_voice) == ("+918068452917", "", True)


def test_an_error_is_read_as_on_the_page(account: ExotelAccount) -> None:
    golden = read_golden("error")
    steps = account.describe()
    next(steps)
    with pytest.raises(ApiError, match="does not take the credentials") as caught:
        steps.send(ApiResponse(golden["status"], {}, json.dumps(golden["response"]).encode()))
    assert (caught.value.kind, caught.value.code) == ("credentials", "UNAUTHORIZED")


# The account and its numbers


def test_the_account_is_described(network: FakeNetwork, account: ExotelAccount) -> None:
    assert network.carry_out(account.describe()) == AccountInfo("wsvoice1", is_trial=None)
    assert network.sent() == [("GET", f"{V1}/Calls.json?PageSize=1")]


def test_missing_credentials_are_named() -> None:
    with pytest.raises(ConfigError, match="EXOTEL_API_TOKEN and EXOTEL_ACCOUNT_SID") as caught:
        load_account("exotel", {"EXOTEL_API_KEY": "key"}).check_credentials()
    assert caught.value.hint
    load_account("exotel", CREDENTIALS).check_credentials()


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "https://api.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "api.in.exotel.com"}, "https://api.in.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "@api.in.exotel.com"}, "https://api.in.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "https://api.in.exotel.com/"}, "https://api.in.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "api.in"}, "https://api.in.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "api"}, "https://api.exotel.com"),
        ({"EXOTEL_SUBDOMAIN": "api.in", "EXOTEL_API_BASE_URL": "http://127.0.0.1:9/"}, "http://127.0.0.1:9"),
    ],
)
def test_the_region_and_another_address(settings: dict[str, str], host: str) -> None:
    account = load_account("exotel", {**CREDENTIALS, **settings, "EXOTEL_ACCOUNT_SID": "a/b"})
    for steps, path in ((account.describe(), "v1"), (account.numbers(), "v2_beta")):
        assert next(steps).url.startswith(f"{host}/{path}/Accounts/a%2Fb/")


def test_every_page_of_numbers_is_read(fake: ExotelFakeAccount, network: FakeNetwork, account: ExotelAccount) -> None:
    for last in range(120):
        fake.add_number(f"+9180470{last:05}", has_voice=last != 7)
    numbers = network.carry_out(account.numbers())
    assert [each.number for each in numbers] == list(fake.numbers)
    urls = [f"{V2}/IncomingPhoneNumbers{query}" for query in ("", "?Page=1&PageSize=50", "?Page=2&PageSize=50")]
    assert network.sent() == [("GET", url) for url in urls]
    (silent,) = (each for each in numbers if not each.has_voice)
    assert "no voice" in silent.obstacle


@pytest.mark.parametrize("written", [OURS, "08047491899", "8047491899"])
def test_a_number_is_found_however_it_is_written(network: FakeNetwork, account: ExotelAccount, written: str) -> None:
    found = network.carry_out(account.find_number(written))
    assert (found.number, found.name, found.points_at) == (OURS, "Main", "flow '45'")
    assert found.obstacle
    assert found.hint


def test_a_number_that_is_not_ours(network: FakeNetwork, account: ExotelAccount) -> None:
    for number in ("+918047491800", "+91", "", "+15550100001"):
        with pytest.raises(ApiError, match="is not an ExoPhone") as caught:
            network.carry_out(account.find_number(number))
        assert caught.value.kind == "number"
        assert caught.value.hint


def test_a_number_cannot_be_pointed_and_is_said_how(network: FakeNetwork, account: ExotelAccount) -> None:
    number = network.carry_out(account.find_number(OURS))
    network.sent()
    saved: list[Any] = []
    with pytest.raises(ApiError, match="Voicebot applet") as caught:
        network.carry_out(account.point(number, HERE, saved.append))
    assert caught.value.kind == "unsupported"
    steps = account.how_to_point(OURS, HERE)
    assert caught.value.hint == "; ".join(steps)
    assert any(HERE.webhook in step for step in steps)
    assert OURS in steps[-1]
    with pytest.raises(ApiError, match="cannot point a number"):
        network.carry_out(account.restore({}, HERE))
    assert (network.sent(), saved) == ([], [])


# Calls


def place(network: FakeNetwork, account: ExotelAccount, call: OutboundCall = CALL) -> PlacedCall:
    return network.carry_out(account.dial(call))


def test_a_call_is_placed(fake: ExotelFakeAccount, network: FakeNetwork, account: ExotelAccount) -> None:
    seen = list[FakeCall]()
    fake.on_placed = seen.append
    placed = place(network, account)
    ((call_id, call),) = fake.calls.items()
    assert seen == [call]
    assert placed == PlacedCall(call_id, account_id="wsvoice1")
    assert (call.call.from_number, call.call.to_number, call.call.direction) == (OURS, THEIRS, "outbound")
    assert call.webhook is None
    assert call.stream is not None
    assert (call.stream.url, call.stream.parameters) == (f"{CALL.stream_url}?customer=7", {"customer": "7"})
    assert call.status == Callback(CALL.status_url)
    assert call.reports >= {"ringing", "answered", "completed", "no-answer"}
    assert (call.ring_timeout_s, call.time_limit_s) == (30.0, 600.0)
    fields = dict(parse_qsl(network.requests[-1].body.decode()))
    assert (fields["CallerId"], fields["CustomField"]) == ("08047491899", "customer=7")


def test_a_call_asks_for_the_sample_rate(fake: ExotelFakeAccount, network: FakeNetwork) -> None:
    wide = load_account("exotel", {**CREDENTIALS, "EXOTEL_SAMPLE_RATE": "16000"})
    long = dataclasses.replace(CALL, time_limit_s=100_000, parameters={"a": "x" * 130})
    network.carry_out(wide.dial(long))
    (call,) = fake.calls.values()
    assert call.stream is not None
    assert (call.stream.format, call.time_limit_s) == (FORMATS[16000], 14_400.0)
    assert "CustomField" not in dict(parse_qsl(network.requests[-1].body.decode()))
    network.carry_out(wide.dial(dataclasses.replace(CALL, time_limit_s=None, parameters={})))
    assert not {"TimeLimit", "CustomField"} & {name for name, _ in parse_qsl(network.requests[-1].body.decode())}


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"detection": "detect"}, "unsupported", "does not detect"),
        ({"detection": "greeting-end"}, "unsupported", "does not detect"),
        ({"parameters": dict.fromkeys("abcd", "1")}, "refused", "Exotel takes 3"),
        ({"parameters": {"a": "x" * 300}}, "refused", "Exotel takes 256"),
        ({"parameters": {"sample-rate": "1"}}, "refused", "sample rate"),
        ({"stream_url": "wss://h/" + "x" * 600}, "refused", "Exotel takes 600"),
        ({"stream_url": "https://h/"}, "refused", "wss://"),
    ],
)
def test_what_exotel_cannot_do_is_never_asked(
    network: FakeNetwork, account: ExotelAccount, change: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        place(network, account, dataclasses.replace(CALL, **change))
    assert (caught.value.kind, network.sent()) == (kind, [])


def test_no_request_ends_a_call(network: FakeNetwork, account: ExotelAccount) -> None:
    placed = place(network, account)
    network.sent()
    call = Call("exotel", placed.call_id)
    refused: list[tuple[Steps[Any], str]] = [
        (account.cancel(placed), "no request that ends"),
        (account.hang_up(call), "no request that ends"),
        (account.transfer(call, THEIRS), "transfers no calls"),
        (account.send_digits(call, "1"), "presses no keys"),
    ]
    for steps, message in refused:
        with pytest.raises(ApiError, match=message) as caught:
            network.carry_out(steps)
        assert caught.value.kind == "unsupported"
    assert network.sent() == []


@pytest.mark.parametrize("stage", ["completed", "busy", "no-answer", "failed", "canceled"])
def test_every_outcome_is_looked_up(
    fake: ExotelFakeAccount, network: FakeNetwork, account: ExotelAccount, stage: Stage
) -> None:
    call_id = place(network, account).call_id
    call = fake.calls[call_id]
    befores: tuple[Stage, ...] = ("queued", "ringing", "answered")
    for before in befores:
        call.stage = before
        state = network.carry_out(account.look_up(call_id))
        assert (state.stage, state.from_number, state.to_number) == (before, OURS, THEIRS)
    call.duration_s = 60.5
    fake.end(call, stage)
    state = network.carry_out(account.look_up(call_id))
    assert (state.call_id, state.stage, state.duration_s, state.price) == (call_id, stage, 61.0, "1.000")
    *_, last = network.carry_out(account.evidence(call_id))
    assert last.what == f"{stage} after 61 s"
    assert last.failed is (stage == "failed")


def test_a_call_that_nobody_knows(network: FakeNetwork, account: ExotelAccount) -> None:
    for ask in (account.look_up("x"), account.evidence("x")):
        with pytest.raises(ApiError, match="knows no call x") as caught:
            network.carry_out(ask)
        assert caught.value.kind == "not-found"


def test_odd_answers_are_read(network: FakeNetwork, account: ExotelAccount) -> None:
    for body in ("[]", '{"Call": 7}', '{"Call": {"Status": [], "Details": "x", "Duration": "soon"}}'):
        network.refusal = lambda request, body=body: Answer(body, "application/json")
        state = network.carry_out(account.look_up("c"))
        assert (state.call_id, state.stage, state.duration_s) == ("c", "queued", None)
        assert network.carry_out(account.numbers()) == []
        with pytest.raises(ApiError, match="under what id"):
            place(network, account)


def test_a_simulated_call_in_progress_is_looked_at() -> None:
    simulator = load_simulator("exotel", CREDENTIALS)
    api = simulator.fake_api()
    assert api is not None
    call = simulator.new_call(from_number=THEIRS, to_number=OURS, parameters={}, seed=bytes(32))
    request = WebhookRequest("GET", f"{V1}/Calls/{call.call_id}.json?details=true")
    command = api.read_command(request)
    assert command is not None
    assert (command.kind, command.call_id) == ("look-up", call.call_id)
    told = json.loads(api.command_answer(command, call, "in-progress").body)["Call"]
    assert (told["Sid"], told["From"], told["To"], told["Status"]) == (call.call_id, THEIRS, OURS, "in-progress")
    assert api.read_command(dataclasses.replace(request, method="POST")) is None


# What Exotel refuses


def test_wrong_credentials(network: FakeNetwork) -> None:
    wrong = load_account("exotel", {**CREDENTIALS, "EXOTEL_API_TOKEN": "another"})
    for steps in (wrong.describe(), wrong.numbers(), wrong.dial(CALL), wrong.look_up("c")):
        with pytest.raises(ApiError, match="does not take the credentials") as caught:
            network.carry_out(steps)
        assert caught.value.kind == "credentials"
        assert caught.value.hint
        assert "EXOTEL_SUBDOMAIN" in caught.value.hint
    other = load_account("exotel", {**CREDENTIALS, "EXOTEL_ACCOUNT_SID": "other"})
    with pytest.raises(ApiError) as caught:
        network.carry_out(other.describe())
    assert caught.value.kind == "not-found"


def test_a_foreign_caller_id_and_a_trial(fake: ExotelFakeAccount, network: FakeNetwork, account: ExotelAccount) -> None:
    with pytest.raises(ApiError, match="not a valid ExoPhone") as caught:
        place(network, account, dataclasses.replace(CALL, from_number="+15550107777"))
    assert caught.value.kind == "number"
    fake.is_trial = True
    with pytest.raises(ApiError, match="verified numbers") as caught:
        place(network, account)
    assert caught.value.kind == "trial"
    assert not fake.calls
    fake.verified.add(THEIRS)
    place(network, account)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (403, {"Status": 403, "Message": "Your account is not yet KYC compliant", "Code": 340030}, "permission"),
        (400, {"Status": 400, "Message": "Insufficient balance"}, "balance"),
        (403, {"Status": 403, "Message": "Call barred due to NDNC regulations by TRAI"}, "permission"),
        (400, {"Status": 400, "Message": "Bad parameter"}, "refused"),
        (402, {}, "balance"),
        (403, {}, "permission"),
        (404, {}, "not-found"),
        (429, {}, "rate-limit"),
        (503, "down", "unavailable"),
        (418, None, "refused"),
    ],
)
def test_what_exotel_refuses_is_understood(
    network: FakeNetwork, account: ExotelAccount, status: int, error: object, kind: str
) -> None:
    network.refusal = lambda request: Answer(json.dumps({"RestException": error}), "application/json", status)
    with pytest.raises(ApiError) as caught:
        place(network, account)
    assert caught.value.kind == kind
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 250
    if isinstance(error, dict) and "Code" in error:
        assert caught.value.code == "340030"


def test_statuses_are_explained(account: ExotelAccount) -> None:
    assert account.explain_code("402") == (
        "the plan does not have it, or the balance is used up",
        "recharge the account, or change its plan",
    )
    assert account.explain_code("31920") is None
    assert account.explain_code("x") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"From": ""}, "from"),
        ({"CallerId": ""}, "callerid"),
        ({"StreamUrl": ""}, "streamurl"),
        ({"StreamUrl": "https://h/"}, "wss://"),
        ({"StreamType": "x"}, "StreamType"),
        ({"CustomField": "x" * 129}, "CustomField"),
        ({"TimeLimit": "14401"}, "TimeLimit"),
        ({"TimeOut": "soon"}, "TimeOut"),
        ({"StatusCallback": "ftp://h"}, "StatusCallback"),
        ({"StatusCallbackEvents[0]": "initiated"}, "StatusCallbackEvents"),
    ],
)
def test_the_fake_refuses_what_exotel_does(fake: ExotelFakeAccount, change: dict[str, str], message: str) -> None:
    fields = {"From": THEIRS, "CallerId": OURS, "StreamUrl": "wss://h/", "StreamType": "bidirectional"}

    def ask(form: dict[str, str]) -> Answer:
        answer = fake.answer(form_request(f"{V1}/Calls/connect.json", "POST", form))
        assert answer is not None
        return answer

    assert ask(fields).status == 200
    # One that asks for no events is told the end.
    assert next(iter(fake.calls.values())).reports == {"completed", "busy", "no-answer", "failed", "canceled"}
    refused = ask({**fields, **change})
    assert refused.status == 400
    assert message in json.loads(refused.body)["RestException"]["Message"]
    assert len(fake.calls) == 1


# Reports


@pytest.mark.parametrize("form", ["multipart", "form", "json"])
@pytest.mark.parametrize("stage", ["ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"])
def test_a_report_says_how_far_the_call_is(form: str, stage: Stage) -> None:
    simulator = load_simulator("exotel", CREDENTIALS, {"callback-format": form})
    server = load_server("exotel", CREDENTIALS)
    call = Call("exotel", "80bfbec2d78bbbf10fb851f4fa165211", "", "wsvoice1", OURS, THEIRS, "outbound")
    sent = simulator.status_webhook(call, Callback("https://h/s/token"), stage, duration_s=60.5, now=1_750_000_000.0)
    assert sent is not None
    assert form.split("-")[0] in sent.headers["content-type"] or form == "form"
    assert server.recognises(sent)
    update = server.read_webhook(sent)
    assert isinstance(update, CallUpdate)
    over = stage not in ("ringing", "answered")
    assert (update.call_id, update.stage, update.ended) == (call.call_id, stage, over)
    assert update.failed is (stage == "failed")
    assert ("ConversationDuration=61" in update.detail) is over


@pytest.mark.parametrize(
    ("told", "stage"),
    [
        ("Status=in-progress", None),
        ("Status=ringing", "ringing"),
        ("EventType=ringing&Status=in-progress", "ringing"),
        ("EventType=answered&Status=in-progress", "answered"),
        ("EventType=terminal", "completed"),
        ("EventType=terminal&Status=in-progress", "completed"),
        ("EventType=odd&Status=busy", "busy"),
        ("DateUpdated=2024-01-15", None),
    ],
)
def test_a_status_alone_does_not_say_that_a_call_is_answered(told: str, stage: Stage | None) -> None:
    update = load_server("exotel", CREDENTIALS).read_webhook(WebhookRequest("GET", f"https://h/?CallSid=c1&{told}"))
    assert isinstance(update, CallUpdate)
    assert (update.stage, update.ended) == (stage, stage in ("completed", "busy"))


def test_what_is_not_reported() -> None:
    simulator = load_simulator("exotel", CREDENTIALS)
    call, at = Call("exotel", "c", direction="outbound"), Callback("https://h/s")
    never: list[Callable[[], object]] = [
        lambda: simulator.status_webhook(call, at, "queued"),
        lambda: simulator.status_webhook(call, at, "answered", answered_by="human"),
        lambda: simulator.status_webhook(call, at, "answered", greeting_ended=True),
    ]
    assert [each() for each in never] == [None, None, None]
