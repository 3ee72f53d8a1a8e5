"""
Bandwidth's account against its fake, and both against Bandwidth's own library.

https://github.com/Bandwidth/python-sdk
"""

from __future__ import annotations

import dataclasses
import json
from io import BytesIO
from typing import TYPE_CHECKING, Any
from xml.etree.ElementTree import canonicalize

import pytest
import urllib3

from tests.providers.companies import Bandwidth
from tests.providers.fake_company import NOW, FakeNetwork
from wsvoice.call import ENDED_STAGES, Call
from wsvoice.errors import ApiError, ConfigError, RemoteProtocolError
from wsvoice.providers import load_account, load_simulator
from wsvoice.providers.account import OutboundCall, PlacedCall, ServerAddresses
from wsvoice.providers.bandwidth.fake_api import BandwidthApi
from wsvoice.providers.base import Answer, Callback, CallUpdate, NoStream, StatusReport, WebhookRequest

# Bandwidth's library takes half a second to load, in each process of pytest's; only the tests that need it load it.
if TYPE_CHECKING:
    from bandwidth import ApiClient

SIMULATOR = load_simulator("bandwidth")
_, CREDENTIALS = SIMULATOR.test_credentials(bytes(range(32)))
ACCOUNT = CREDENTIALS["BANDWIDTH_ACCOUNT_ID"]
NUMBER, PERSON = "+15551112222", "+15553334444"
STATUS = "https://bot.example.com/bandwidth/status/t"
OUTBOUND = OutboundCall(
    PERSON,
    NUMBER,
    "https://bot.example.com/bandwidth/answer/t",
    "wss://bot.example.com/ws/t",
    STATUS,
    "https://bot.example.com/bandwidth/machine/t",
)


class Network(FakeNetwork):
    """Bandwidth's account with one number, as whoever has `credentials` meets it."""

    def __init__(self, credentials: dict[str, str] = CREDENTIALS) -> None:
        super().__init__(BandwidthApi, load_simulator("bandwidth", CREDENTIALS))
        self.ours = load_account("bandwidth", credentials)
        self.account.add_number(NUMBER)


@pytest.fixture
def network() -> Network:
    return Network()


def place(network: Network, call: OutboundCall = OUTBOUND) -> Any:
    placed = network.carry_out(network.ours.dial(call))
    return network.account.calls[placed.call_id]


# Credentials and errors


def test_missing_credentials_are_named() -> None:
    with pytest.raises(ConfigError, match="BANDWIDTH_CLIENT_ID and BANDWIDTH_CLIENT_SECRET") as caught:
        load_account("bandwidth", {"BANDWIDTH_ACCOUNT_ID": "1"}).check_credentials()
    assert "API Credentials" in (caught.value.hint or "")
    without = {name: value for name, value in CREDENTIALS.items() if name != "BANDWIDTH_APPLICATION_ID"}
    with pytest.raises(ConfigError, match="needs BANDWIDTH_APPLICATION_ID"):
        Network(without).carry_out(load_account("bandwidth", without).dial(OUTBOUND))


def test_the_account_is_described(network: Network) -> None:
    assert network.carry_out(network.ours.describe()).account_id == ACCOUNT
    assert network.paths() == ["POST /api/v1/oauth2/token", f"GET /api/v2/accounts/{ACCOUNT}/statistics"]
    token = network.asked[0]
    assert token.url == "https://api.bandwidth.com/api/v1/oauth2/token"
    assert token.body == b"grant_type=client_credentials"


@pytest.mark.parametrize("wrong", ["BANDWIDTH_CLIENT_ID", "BANDWIDTH_CLIENT_SECRET"])
def test_wrong_credentials(wrong: str) -> None:
    network = Network({**CREDENTIALS, wrong: "wrong"})
    with pytest.raises(ApiError, match="does not take BANDWIDTH_CLIENT_ID and BANDWIDTH_CLIENT_SECRET") as caught:
        network.carry_out(network.ours.describe())
    assert caught.value.kind == "credentials"
    assert network.paths() == ["POST /api/v1/oauth2/token"]


def test_another_account_is_not_allowed() -> None:
    network = Network({**CREDENTIALS, "BANDWIDTH_ACCOUNT_ID": "1"})
    with pytest.raises(ApiError, match="Access is denied") as caught:
        network.carry_out(network.ours.describe())
    assert caught.value.kind == "permission"
    assert "BANDWIDTH_ACCOUNT_ID" in (caught.value.hint or "")


def test_a_token_serves_until_it_is_refused(network: Network) -> None:
    network.carry_out(network.ours.describe())
    network.carry_out(network.ours.describe())
    assert network.paths().count("POST /api/v1/oauth2/token") == 1
    # It has expired: another is got, once.
    network.asked.clear()
    refused = iter([Answer('{"type":"authentication-error"}', "application/json", 401)])
    network.instead = lambda request: next(refused, None) if "statistics" in request.url else None
    assert network.carry_out(network.ours.describe()).account_id == ACCOUNT
    assert [each.rpartition("/")[2] for each in network.paths()] == ["statistics", "token", "statistics"]
    network.instead = lambda request: (
        Answer('{"type":"authentication-error"}', "application/json", 401) if "statistics" in request.url else None
    )
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.describe())
    assert caught.value.kind == "credentials"


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, '{"type":"validation","description":"Invalid to","id":null}', "refused", "Invalid to"),
        (403, '{"type":"authorization-error","description":"Access is denied"}', "permission", "denied"),
        (404, "", "not-found", "404"),
        (429, "<html>", "rate-limit", "429"),
        (500, "[1]", "unavailable", "500"),
    ],
)
def test_errors_are_read(network: Network, status: int, body: str, kind: str, words: str) -> None:
    """https://dev.bandwidth.com/docs/voice/errors"""
    answer = Answer(body, "application/json", status)
    network.instead = lambda request: None if request.url.endswith("/token") else answer
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.dial(OUTBOUND))
    assert caught.value.kind == kind
    assert words in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("answer", [Answer("", "application/json", 400), Answer("{}", "application/json")])
def test_a_token_that_is_none(network: Network, answer: Answer) -> None:
    network.instead = lambda request: answer if request.url.endswith("/token") else None
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.describe())
    assert caught.value.kind == "credentials"


def test_causes_are_explained() -> None:
    account = load_account("bandwidth")
    assert account.explain_code("callback-error") == (
        "Bandwidth could not ask the server for a document",
        "check with `wsvoice doctor` that the server is reached from outside",
    )
    assert account.explain_code("11200") is None


def test_a_number_is_pointed_by_hand() -> None:
    account = load_account("bandwidth")
    assert not account.has_numbers
    lines = account.how_to_point(NUMBER, ServerAddresses("https://bot.example.com/bandwidth", STATUS))
    assert any("https://bot.example.com/bandwidth, with POST" in line for line in lines)
    assert any(STATUS in line for line in lines)
    assert all("\n" not in line for line in lines)
    assert not any("status" in line for line in account.how_to_point(NUMBER, ServerAddresses("https://h/")))
    for steps in (account.find_number(NUMBER), account.numbers()):
        with pytest.raises(ApiError) as caught:
            next(steps)
        assert caught.value.kind == "unsupported"
        assert "Bandwidth App" in (caught.value.hint or "")


# Calls


def test_a_call_is_placed(network: Network) -> None:
    """https://dev.bandwidth.com/apis/voice-apis/voice#tag/Calls/operation/createCall"""
    placed = network.carry_out(network.ours.dial(OUTBOUND))
    assert json.loads(network.asked[-1].body) == {
        "to": PERSON,
        "from": NUMBER,
        "applicationId": CREDENTIALS["BANDWIDTH_APPLICATION_ID"],
        "answerUrl": OUTBOUND.webhook_url,
        "answerMethod": "POST",
        "disconnectUrl": STATUS,
        "disconnectMethod": "POST",
        "callTimeout": 60,
        "username": "wsvoice",
        "password": CREDENTIALS["BANDWIDTH_WEBHOOK_PASSWORD"],
    }
    call = network.account.calls[placed.call_id]
    assert placed == PlacedCall(placed.call_id, account_id=ACCOUNT)
    assert (call.webhook, call.status) == (Callback(OUTBOUND.webhook_url), Callback(STATUS))
    assert call.reports == ENDED_STAGES
    # What announces it is read as the same call.
    webhook = SIMULATOR.webhook(call.call, call.webhook.url)
    assert Bandwidth({}).read_webhook(webhook) == call.call


@pytest.mark.parametrize("detection", ["detect", "greeting-end"])
def test_machine_detection(network: Network, detection: Any) -> None:
    call = place(network, dataclasses.replace(OUTBOUND, detection=detection, ring_timeout_s=900))
    content = json.loads(network.asked[-1].body)
    assert content["callTimeout"] == 300
    assert content["machineDetection"]["callbackUrl"] == OUTBOUND.machine_url
    assert content["machineDetection"]["password"] == CREDENTIALS["BANDWIDTH_WEBHOOK_PASSWORD"]
    assert content["machineDetection"].get("delayResult", False) == (detection == "greeting-end")
    assert (call.detection, call.machine) == (detection, Callback(OUTBOUND.machine_url))


@pytest.mark.parametrize(
    ("changes", "words", "kind", "hint"),
    [
        ({"from_number": "+15550000000"}, "not a number of the account", "number", "BANDWIDTH_APPLICATION_ID"),
        ({"to_number": "12"}, "must be an E164", "refused", "country code"),
        ({"webhook_url": ""}, "answerUrl", "refused", ""),
    ],
)
def test_a_call_that_is_refused(network: Network, changes: dict[str, str], words: str, kind: str, hint: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        network.carry_out(network.ours.dial(dataclasses.replace(OUTBOUND, **changes)))
    assert caught.value.kind == kind
    assert hint in (caught.value.hint or "")
    assert network.account.calls == {}


def test_a_call_is_looked_up(network: Network) -> None:
    call = place(network)
    call_id = call.call.call_id
    for stage in ("queued", "ringing", "answered", "busy", "no-answer", "failed", "canceled"):
        call.stage = stage
        found = network.carry_out(network.ours.look_up(call_id))
        assert (found.stage, found.duration_s) == (stage, None)
    call.stage, call.duration_s = "completed", 61.5
    found = network.carry_out(network.ours.look_up(call_id))
    assert (found.stage, found.duration_s, found.cause) == ("completed", 61.5, "hangup")
    assert (found.from_number, found.to_number) == (NUMBER, PERSON)
    with pytest.raises(ApiError, match="no call c-x") as caught:
        network.carry_out(network.ours.look_up("c-x"))
    assert caught.value.kind == "not-found"


def test_a_call_is_ended_whether_it_rings_or_was_answered(network: Network) -> None:
    ended: list[str] = []
    network.account.on_ended = lambda call: ended.append(call.stage)
    ringing, talking = place(network), place(network)
    ringing.stage, talking.stage = "ringing", "answered"
    assert network.carry_out(network.ours.cancel(PlacedCall(ringing.call.call_id)))
    assert network.carry_out(network.ours.hang_up(talking.call))
    assert ended == ["canceled", "completed"]
    assert not network.carry_out(network.ours.hang_up(talking.call))
    assert not network.carry_out(network.ours.cancel(PlacedCall(talking.call.call_id)))
    assert ended == ["canceled", "completed"]
    with pytest.raises(ApiError, match="no call c-x") as caught:
        network.carry_out(network.ours.hang_up(Call("bandwidth", "c-x")))
    assert caught.value.kind == "not-found"
    # One that waits cannot be told anything yet, which is not the same as being over.
    with pytest.raises(ApiError, match="in the queue"):
        network.carry_out(network.ours.hang_up(place(network).call))


@pytest.mark.parametrize("to", ["+15550001111", "sip:desk@example.com"])
def test_a_call_is_transferred(network: Network, to: str) -> None:
    """https://dev.bandwidth.com/docs/voice/bxml/transfer"""
    told: list[tuple[str, str]] = []
    network.account.on_command = lambda call, kind, argument: told.append((kind, argument))
    call = place(network)
    call.stage = "answered"
    network.carry_out(network.ours.transfer(call.call, to))
    assert told == [("transfer", to)]
    body = network.asked[-1].body
    assert f'transferCallerId="{NUMBER}"'.encode() in body
    # The stream ends first.
    assert body.index(b"<StopStream") < body.index(b"<Transfer")
    document = SIMULATOR.read_answer(body, "application/xml", first=False)
    assert isinstance(document, NoStream)
    assert (document.how, document.to) == ("transferred", to)
    call.stage = "completed"
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.transfer(call.call, to))
    assert caught.value.kind == "ended"


def test_keys_are_pressed_while_the_stream_goes_on(network: Network) -> None:
    """https://dev.bandwidth.com/docs/voice/bxml/sendDtmf"""
    told: list[tuple[str, str]] = []
    network.account.on_command = lambda call, kind, argument: told.append((kind, argument))
    call = place(network)
    call.stage = "answered"
    network.carry_out(network.ours.send_digits(call.call, "1w2WA#*"))
    assert told == [("digits", "1w2WA#*")]
    assert network.asked[-1].body.endswith(
        b'<Response><SendDtmf>1w2WA#*</SendDtmf><StopStream name="wsvoice" wait="true"/></Response>'
    )
    with pytest.raises(ApiError, match="50 keys at once, not 51") as caught:
        network.carry_out(network.ours.send_digits(call.call, 51 * "1"))
    assert caught.value.kind == "unsupported"


def test_what_the_record_says_of_a_call(network: Network) -> None:
    call = place(network)
    call.stage, call.cause = "failed", "callback-error"
    *_, ended = network.carry_out(network.ours.evidence(call.call.call_id))
    assert (ended.code, ended.failed) == ("callback-error", True)
    assert ended.what == "ended: callback-error, Bandwidth could not ask the server for a document"
    assert "wsvoice doctor" in ended.hint
    call.stage, call.cause = "completed", ""
    found = network.carry_out(network.ours.evidence(call.call.call_id))
    assert [each.what.partition(":")[0] for each in found] == ["dialled", "answered", "ended"]
    assert not any(each.failed for each in found)


def test_its_addresses_are_replaced_alike() -> None:
    account = load_account("bandwidth", {**CREDENTIALS, "BANDWIDTH_API_BASE_URL": "http://127.0.0.1:1/"})
    steps = account.describe()
    assert next(steps).url == "http://127.0.0.1:1/api/v1/oauth2/token"


# Webhooks


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("stage", sorted(ENDED_STAGES))
def test_every_end_is_reported_and_read(network: Network, stage: Any, method: Any) -> None:
    """https://dev.bandwidth.com/docs/voice/webhooks/disconnect"""
    from bandwidth.models.disconnect_callback import DisconnectCallback

    call = place(network).call
    report = SIMULATOR.status_webhook(call, Callback(STATUS, method), StatusReport(stage, duration_s=2.0), now=NOW)
    assert report is not None
    update = Bandwidth({}).read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.call_id, update.stage, update.ended) == (call.call_id, stage, True)
    assert update.failed == (stage == "failed")
    if method == "POST":
        assert DisconnectCallback.from_json(report.body.decode()).additional_properties == {}


@pytest.mark.parametrize("stage", ["queued", "ringing", "answered"])
def test_nothing_else_is_reported(network: Network, stage: Any) -> None:
    assert SIMULATOR.status_webhook(place(network).call, Callback(STATUS), StatusReport(stage)) is None


@pytest.mark.parametrize(
    ("answered_by", "greeting_ended", "read"),
    [
        ("human", False, ("human", False)),
        ("machine", False, ("machine", False)),
        ("machine", True, ("machine", True)),
        ("fax", False, ("machine", False)),
        ("unknown", False, ("unknown", False)),
    ],
)
def test_what_machine_detection_finds_is_reported_and_read(
    network: Network, answered_by: Any, greeting_ended: bool, read: tuple[str, bool]
) -> None:
    from bandwidth.models.machine_detection_complete_callback import MachineDetectionCompleteCallback

    call = place(network).call
    report = SIMULATOR.status_webhook(
        call,
        Callback(STATUS),
        StatusReport("answered", answered_by=answered_by, greeting_ended=greeting_ended),
        now=NOW,
    )
    assert report is not None
    update = Bandwidth({}).read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.answered_by, update.greeting_ended, update.ended) == (*read, False)
    assert MachineDetectionCompleteCallback.from_json(report.body.decode()).additional_properties == {}


# Calls in progress of a test call


def ask(method: str, path: str, body: bytes = b"", content_type: str = "application/json") -> WebhookRequest:
    url = f"http://127.0.0.1:1/api/v2/accounts/{ACCOUNT}/calls/c-1{path}"
    return WebhookRequest(method, url, {"content-type": content_type}, body)


def test_a_call_in_progress_takes_the_same_commands() -> None:
    api, call = BandwidthApi(SIMULATOR), Call("bandwidth", "c-1", "", ACCOUNT, NUMBER, PERSON)
    looked = api.read_command(ask("GET", ""))
    assert looked is not None
    assert json.loads(api.command_answer(looked, call, "in-progress").body)["state"] == "answered"
    ended = api.read_command(ask("POST", "", b'{"state":"completed"}'))
    assert ended is not None
    assert (ended.kind, ended.call_id, api.command_answer(ended, call, "completed").status) == ("hang-up", "c-1", 200)
    moved = api.read_command(ask("POST", "", b'{"redirectUrl":"https://h/next","redirectMethod":"GET"}'))
    assert moved is not None
    assert moved.callback == Callback("https://h/next", "GET")
    press = b'<Response><SendDtmf>1w#</SendDtmf><StopStream name="x" wait="true"/></Response>'
    pressed = api.read_command(ask("PUT", "/bxml", press, "application/xml"))
    assert pressed is not None
    assert (pressed.kind, pressed.digits) == ("digits", "1w#")
    assert api.command_answer(pressed, call, "in-progress").status == 204
    other = api.read_command(ask("PUT", "/bxml", b"<Response><Hangup/></Response>", "application/xml"))
    assert other is not None
    assert (other.kind, other.document) == ("update", b"<Response><Hangup/></Response>")
    for request in (
        ask("POST", "", b'{"state":"paused"}'),
        ask("POST", "", b"{}"),
        ask("PUT", "/bxml", b"<Bxml/>"),
        ask("PUT", "/bxml", b'<Response><SendDtmf>x</SendDtmf><StopStream wait="true"/></Response>'),
    ):
        with pytest.raises(RemoteProtocolError):
            api.read_command(request)
    assert api.read_command(ask("DELETE", "")) is None
    assert api.read_command(ask("POST", "/bxml")) is None


def test_only_its_own_token_is_taken() -> None:
    api = BandwidthApi(load_simulator("bandwidth", CREDENTIALS))
    for header in ("", "Bearer x", "Basic eDp5"):
        assert not api.is_authorised(dataclasses.replace(ask("GET", ""), headers={"authorization": header}))
    assert BandwidthApi(SIMULATOR).is_authorised(ask("GET", ""))


# Bandwidth's own library


class Pool:
    """In place of the library's connections: sends its requests to the fake."""

    def __init__(self, network: Network) -> None:
        self.network = network

    def request(self, method: str, url: str, **options: Any) -> urllib3.HTTPResponse:
        body = options.get("body") or b""
        body = body.encode() if isinstance(body, str) else body
        answer = self.network.answer(method, url, dict(options.get("headers") or {}), body)
        headers = {"content-type": answer.media_type}
        return urllib3.HTTPResponse(BytesIO(answer.body.encode()), headers, answer.status, preload_content=False)


@pytest.fixture
def client(network: Network, monkeypatch: pytest.MonkeyPatch) -> ApiClient:
    from bandwidth import ApiClient, Configuration

    pool = Pool(network)
    # The library gets its token by a function of its own.
    monkeypatch.setattr(urllib3, "request", pool.request)
    configuration = Configuration(
        client_id=CREDENTIALS["BANDWIDTH_CLIENT_ID"], client_secret=CREDENTIALS["BANDWIDTH_CLIENT_SECRET"]
    )
    made = ApiClient(configuration)
    made.rest_client.pool_manager = pool
    return made


def last(network: Network) -> tuple[str, str, Any]:
    request = network.asked[-1]
    return request.method, request.url, json.loads(request.body) if request.body else None


def test_the_library_places_the_same_call(network: Network, client: ApiClient) -> None:
    from bandwidth.api.calls_api import CallsApi
    from bandwidth.models.create_call import CreateCall

    place(network, dataclasses.replace(OUTBOUND, detection="greeting-end"))
    method, url, content = last(network)
    # Its models refuse what the API refuses, and keep apart what they do not know.
    request = CreateCall.from_dict(content)
    assert request is not None
    assert request.additional_properties == {}
    assert request.machine_detection.additional_properties == {}
    response = CallsApi(client).create_call(ACCOUNT, request)
    assert last(network)[:2] == (method, url)
    theirs = last(network)[2]
    assert {name: theirs[name] for name in content if name != "machineDetection"} == {
        name: value for name, value in content.items() if name != "machineDetection"
    }
    # It says what we leave to the defaults as well.
    assert theirs["machineDetection"].items() >= content["machineDetection"].items()
    assert network.account.calls[response.call_id].call.to_number == PERSON
    assert (
        network.asked[0].headers["authorization"]
        == next(each for each in reversed(network.asked) if each.url.endswith("/token")).headers["authorization"]
    )


def test_the_library_sends_the_same_commands(network: Network, client: ApiClient) -> None:
    from bandwidth.api.calls_api import CallsApi
    from bandwidth.api.statistics_api import StatisticsApi
    from bandwidth.exceptions import NotFoundException
    from bandwidth.models.bxml import PhoneNumber, Response, SendDtmf, StopStream, Transfer
    from bandwidth.models.call_state_enum import CallStateEnum
    from bandwidth.models.update_call import UpdateCall

    calls, call = CallsApi(client), place(network)
    call.stage, call_id = "answered", call.call.call_id
    assert calls.get_call_state(ACCOUNT, call_id).state == "answered"
    for ours, verbs in (
        (network.ours.send_digits(call.call, "12#"), [SendDtmf("12#"), StopStream("wsvoice", "true")]),
        (
            network.ours.transfer(call.call, "+15550001111"),
            [StopStream("wsvoice"), Transfer([PhoneNumber("+15550001111")], transfer_caller_id=NUMBER)],
        ),
    ):
        network.carry_out(ours)
        sent = network.asked[-1]
        calls.update_call_bxml(ACCOUNT, call_id, Response(verbs).to_bxml())
        theirs = network.asked[-1]
        assert (theirs.method, theirs.url, theirs.headers["content-type"]) == (
            *(sent.method, sent.url),
            sent.headers["content-type"],
        )
        assert canonicalize(theirs.body.decode()) == canonicalize(sent.body.decode())
    calls.update_call(ACCOUNT, call_id, UpdateCall(state=CallStateEnum.COMPLETED))
    assert call.stage == "completed"
    method, url, content = last(network)
    call.stage = "answered"
    assert network.carry_out(network.ours.hang_up(call.call))
    assert last(network)[:2] == (method, url)
    assert content.items() >= last(network)[2].items()
    with pytest.raises(NotFoundException):
        calls.update_call(ACCOUNT, call_id, UpdateCall(state=CallStateEnum.COMPLETED))
    assert calls.get_call_state(ACCOUNT, call_id).disconnect_cause == "hangup"
    assert StatisticsApi(client).get_statistics(ACCOUNT).max_call_queue_size == 900


def test_the_library_is_refused_alike(network: Network, client: ApiClient) -> None:
    from bandwidth.api.statistics_api import StatisticsApi
    from bandwidth.exceptions import UnauthorizedException

    client.configuration.client_secret = "wrong"
    client.configuration.temp_access_token, client.configuration.temp_access_token_expiration = "wrong", 1 << 40
    with pytest.raises(UnauthorizedException):
        StatisticsApi(client).get_statistics(ACCOUNT)
