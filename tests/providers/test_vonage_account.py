"""
Vonage's account against its fake, and both against Vonage's own library.

https://github.com/Vonage/vonage-python-sdk
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
import requests
from vonage_account import Account as SdkAccount
from vonage_application import Application, ApplicationConfig
from vonage_http_client import Auth, HttpClient
from vonage_http_client.errors import AuthenticationError, HttpRequestError, NotFoundError
from vonage_numbers import ListOwnedNumbersFilter, Numbers, UpdateNumberParams
from vonage_voice import CreateCallRequest, Voice
from vonage_voice.models import Connect, PhoneEndpoint

from tests.providers.companies import Vonage
from tests.providers.fake_company import NOW, Cut, FakeNetwork
from wsvoice.call import Call
from wsvoice.errors import ApiError, ConfigError, RemoteProtocolError
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account, load_simulator
from wsvoice.providers.account import OutboundCall, PlacedCall, Saved, ServerAddresses
from wsvoice.providers.base import Answer, Callback, CallUpdate, NoStream, WebhookRequest
from wsvoice.providers.vonage.account import VonageAccount
from wsvoice.providers.vonage.fake_account import VonageFakeAccount
from wsvoice.providers.vonage.fake_api import VonageApi

_, CREDENTIALS = load_simulator("vonage").test_credentials(bytes(range(32)))
APPLICATION = CREDENTIALS["VONAGE_APPLICATION_ID"]
CALLS = {name: CREDENTIALS[name] for name in ("VONAGE_APPLICATION_ID", "VONAGE_PRIVATE_KEY")}
NUMBERS = {name: CREDENTIALS[name] for name in ("VONAGE_API_KEY", "VONAGE_API_SECRET")}
NUMBER, OTHER = "+442079460000", "+442079460001"
HERE = ServerAddresses("https://bot.example.com/vonage", "https://bot.example.com/vonage/status/t")
THEIRS = {
    "webhooks": {
        "answer_url": {"address": "https://old.example.com/answer", "http_method": "GET"},
        "event_url": {"address": "https://old.example.com/event", "http_method": "POST", "socket_timeout": 5000},
        "fallback_answer_url": {"address": "https://old.example.com/fallback", "http_method": "GET"},
    },
    "signed_callbacks": False,
    "region": "eu-west",
}
OUTBOUND = OutboundCall(
    "+447700900000",
    NUMBER,
    "https://bot.example.com/vonage/answer/t",
    "wss://bot.example.com/ws/t",
    HERE.status,
    "https://bot.example.com/vonage/machine/t",
)


class Network(FakeNetwork):
    """Vonage's account, as whoever has `credentials` meets it; by default all of them."""

    account: VonageFakeAccount

    def __init__(self, credentials: dict[str, str] = CREDENTIALS) -> None:
        super().__init__(VonageApi, load_simulator("vonage", credentials))
        self.ours = load_account("vonage", credentials)


@pytest.fixture
def network() -> Network:
    return Network()


def with_number(network: Network, **settings: str) -> None:
    network.account.applications.setdefault(APPLICATION, {})["capabilities"] = {"voice": THEIRS, "rtc": {"x": 1}}
    network.account.add_number(NUMBER, **settings)


def state(network: Network) -> Any:
    return json.loads(
        json.dumps([network.account.applications, {n: e.settings for n, e in network.account.numbers.items()}])
    )


# Credentials and errors


def test_either_pair_of_credentials_is_enough() -> None:
    for credentials in (CALLS, NUMBERS, CREDENTIALS):
        load_account("vonage", credentials).check_credentials()
    for credentials in ({}, {"VONAGE_API_KEY": "x"}):
        with pytest.raises(ConfigError, match="VONAGE_APPLICATION_ID and VONAGE_PRIVATE_KEY") as caught:
            load_account("vonage", credentials).check_credentials()
        assert "dashboard" in (caught.value.hint or "")


def test_each_operation_names_the_pair_that_it_needs() -> None:
    with pytest.raises(ConfigError, match="VONAGE_API_KEY and VONAGE_API_SECRET"):
        Network(CALLS).carry_out(load_account("vonage", CALLS).numbers())
    with pytest.raises(ConfigError, match="VONAGE_APPLICATION_ID and VONAGE_PRIVATE_KEY"):
        Network(NUMBERS).carry_out(load_account("vonage", NUMBERS).dial(OUTBOUND))


def test_the_account_is_described(network: Network) -> None:
    info = network.carry_out(network.ours.describe())
    assert (info.account_id, info.is_trial, list(info.limits)) == (CREDENTIALS["VONAGE_API_KEY"], None, [])
    network.account.balance = 0.0
    assert list(network.carry_out(network.ours.describe()).limits) == [
        "the balance is 0.00 EUR, so no call can be placed"
    ]
    assert Network(CALLS).carry_out(load_account("vonage", CALLS).describe()).account_id == APPLICATION


@pytest.mark.parametrize(("wrong", "names"), [("VONAGE_API_SECRET", NUMBERS), ("VONAGE_APPLICATION_ID", CALLS)])
def test_wrong_credentials_are_named(network: Network, wrong: str, names: dict[str, str]) -> None:
    stranger = load_account("vonage", {**CREDENTIALS, wrong: "wrong"})
    with pytest.raises(ApiError) as caught:
        network.carry_out(stranger.describe())
    assert caught.value.kind == "credentials"
    assert " and ".join(names) in caught.value.message
    assert "\n" not in caught.value.message
    assert "compare them with Vonage's dashboard" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        # The forms of applications, of numbers and of calls, and none at all.
        (403, '{"type":"https://developer.vonage.com/api-errors#unprovisioned","title":"X"}', "permission", "X"),
        (402, '{"type":"https://developer.vonage.com/api-errors#low-balance","detail":"low"}', "balance", "low"),
        (420, '{"error-code":"420","error-code-label":"method failed"}', "refused", "method failed"),
        (401, '{"error-code":"401","error-code-label":"authentication failed"}', "credentials", "authentication"),
        (401, '{"type":"UNAUTHORIZED","error_title":"Unauthorized"}', "credentials", "Unauthorized"),
        (400, '{"type":400,"title":"Bad Request","invalid_parameters":[{"name":"to"}]}', "refused", '"to"'),
        (404, '{"type":"NOT_FOUND","error_title":"Not Found"}', "not-found", "Not Found"),
        (429, "<html>", "rate-limit", "429"),
        (503, "", "unavailable", "503"),
        (500, "[1]", "unavailable", "500"),
    ],
)
def test_every_form_of_error_is_read(network: Network, status: int, body: str, kind: str, words: str) -> None:
    network.instead = lambda request: Answer(body, "application/json", status)
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.dial(OUTBOUND))
    assert caught.value.kind == kind
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_codes_are_explained() -> None:
    account = load_account("vonage")
    assert account.explain_code("low-balance") == (
        "the account's balance is too low",
        "top up the account in Vonage's dashboard",
    )
    assert "nobody answered" in (account.explain_code("timeout") or ("", ""))[0]
    assert account.explain_code("12345") is None


# Numbers


def test_numbers_are_listed_page_by_page(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    for index in range(120):
        network.account.add_number(f"+4420794{index:05}", has_voice=index % 2 == 0)
    found = network.carry_out(network.ours.numbers())
    assert len(found) == 121
    assert found[0].number == NUMBER
    assert found[0].points_at == "https://old.example.com/answer"
    assert [each.has_voice for each in found[1:4]] == [True, False, True]
    assert found[2].obstacle == "it takes no calls"
    assert network.paths().count("GET /account/numbers") == 2


def test_a_number_of_somebody_elses(network: Network) -> None:
    # One that it is the beginning of is another number.
    network.account.add_number(NUMBER + "1")
    with pytest.raises(ApiError, match=r"\+442079460000 is not a number of this Vonage account") as caught:
        network.carry_out(network.ours.find_number(NUMBER))
    assert caught.value.kind == "number"


def test_what_a_number_points_at(network: Network) -> None:
    with_number(network)
    assert network.carry_out(network.ours.find_number(NUMBER)).points_at == ""
    other = network.account.add_application("Support")
    network.account.numbers[NUMBER].settings["app_id"] = other
    assert network.carry_out(network.ours.find_number(NUMBER)).points_at == "application 'Support'"
    del network.account.applications[other]
    assert network.carry_out(network.ours.find_number(NUMBER)).points_at == f"application '{other}'"
    network.account.numbers[NUMBER].settings["app_id"] = APPLICATION
    found = network.carry_out(network.ours.find_number(NUMBER))
    assert found.settings == {
        "app_id": APPLICATION,
        "answer_url": "https://old.example.com/answer",
        "event_url": "https://old.example.com/event",
    }
    assert (found.obstacle, list(found.warnings)) == ("", [])


@pytest.mark.parametrize(("kind", "value"), [("sip", "sip:pbx@example.com"), ("tel", "447700900001")])
def test_a_number_that_is_forwarded_cannot_be_pointed(network: Network, kind: str, value: str) -> None:
    with_number(network, app_id=APPLICATION, voiceCallbackType=kind, voiceCallbackValue=value)
    found = network.carry_out(network.ours.find_number(NUMBER))
    assert found.points_at == f"{kind} {value}"
    assert found.obstacle == f"its calls are forwarded to {kind} {value}, whatever application it is linked to"
    assert network.account.points_at(NUMBER) is None


def test_others_that_move_along_are_named(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    network.account.add_number(OTHER, app_id=APPLICATION)
    [warning] = network.carry_out(network.ours.find_number(NUMBER)).warnings
    assert warning == f"application 'Application' serves {OTHER} too, whose calls move as well"
    # Messages go by the application as well.
    chat = network.account.add_application("Chat", messages={"webhooks": {}})
    network.account.numbers[NUMBER].settings["app_id"] = chat
    warnings = network.carry_out(network.ours.find_number(NUMBER)).warnings
    assert any("messages" in each and "'Chat'" in each for each in warnings)
    # An application of its own moves nobody else.
    alone = load_account("vonage", NUMBERS)
    network.account.numbers[NUMBER].settings["app_id"] = APPLICATION
    assert list(network.carry_out(alone.find_number(NUMBER)).warnings) == []


def point(network: Network, account: Any = None, saved: list[Saved] | None = None) -> list[Saved]:
    """Point the number here, and return what was saved; like a file, it is replaced by JSON of itself."""
    account = account or network.ours
    saved = [] if saved is None else saved
    found = network.carry_out(account.find_number(NUMBER))
    network.asked.clear()
    network.carry_out(account.point(found, HERE, lambda each: saved.append(json.loads(json.dumps(dict(each))))))
    return saved


@pytest.mark.parametrize("linked", ["", "ours", "theirs"])
def test_a_number_is_pointed_by_the_application_and_put_back(network: Network, linked: str) -> None:
    theirs = network.account.add_application("Theirs", voice={"webhooks": {}})
    settings = {"ours": {"app_id": APPLICATION}, "theirs": {"app_id": theirs}}.get(linked, {})
    with_number(network, moHttpUrl="https://old.example.com/sms", **settings)
    before = state(network)
    saved = point(network)
    assert network.account.points_at(NUMBER) == Callback(HERE.webhook, "POST")
    application = network.account.applications[APPLICATION]
    assert application["capabilities"]["rtc"] == {"x": 1}
    assert application["privacy"] == {"improve_ai": False}
    assert application["capabilities"]["voice"] == {
        "webhooks": {
            "answer_url": {"address": HERE.webhook, "http_method": "POST"},
            "event_url": {"address": HERE.status, "http_method": "POST"},
            "fallback_answer_url": THEIRS["webhooks"]["fallback_answer_url"],
        },
        "signed_callbacks": True,
        "region": "eu-west",
    }
    assert network.account.numbers[NUMBER].settings["moHttpUrl"] == "https://old.example.com/sms"
    assert network.carry_out(network.ours.restore(saved[-1], HERE)) == "restored"
    assert state(network) == before
    assert network.carry_out(network.ours.restore(saved[-1], HERE)) == "unchanged"
    assert state(network) == before


@pytest.mark.parametrize("linked", [False, True])
def test_without_an_application_a_number_gets_one_of_its_own(linked: bool) -> None:
    network = Network(NUMBERS)
    with_number(network, **({"app_id": APPLICATION} if linked else {}))
    before = state(network)
    saved = point(network)
    [made] = set(network.account.applications) - {APPLICATION}
    assert network.account.applications[made]["name"] == f"wsvoice {NUMBER}"
    assert network.account.points_at(NUMBER) == Callback(HERE.webhook, "POST")
    assert network.carry_out(network.ours.restore(saved[-1], HERE)) == "restored"
    assert state(network) == before
    assert network.carry_out(network.ours.restore(saved[-1], HERE)) == "unchanged"


@pytest.mark.parametrize("credentials", [CREDENTIALS, NUMBERS])
def test_a_run_that_dies_between_two_requests_is_put_back(credentials: dict[str, str]) -> None:
    """Whatever was saved last is enough, and nothing is changed before it is saved."""
    for requests_made in range(10):
        network = Network(credentials)
        with_number(network)
        before = state(network)
        saved: list[Saved] = []
        network.cut_after = None
        found = network.carry_out(network.ours.find_number(NUMBER))
        network.asked.clear()
        network.cut_after = requests_made
        try:
            network.carry_out(network.ours.point(found, HERE, saved.append))
        except Cut:
            pass
        else:
            assert requests_made > 2
            break
        network.cut_after = None
        if not saved:
            assert state(network) == before
            continue
        is_changed = state(network) != before
        restored = network.carry_out(network.ours.restore(saved[-1], HERE))
        assert (restored, state(network)) == ("restored" if is_changed else "unchanged", before)
    else:
        pytest.fail("it never came to its end")


def test_a_failure_before_the_change_leaves_all_as_it_was(network: Network) -> None:
    with_number(network)
    before = state(network)
    found = network.carry_out(network.ours.find_number(NUMBER))

    def full(saved: Saved) -> None:
        raise OSError("no space left on the device")

    with pytest.raises(OSError, match="no space"):
        network.carry_out(network.ours.point(found, HERE, full))
    assert state(network) == before


def test_somebody_elses_change_is_left_alone(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    [*_, saved] = point(network)
    webhooks = network.account.applications[APPLICATION]["capabilities"]["voice"]["webhooks"]
    webhooks["answer_url"] = {"address": "https://new.example.com/"}
    changed = state(network)
    assert network.carry_out(network.ours.restore(saved, HERE)) == "left"
    assert state(network) == changed


def test_a_number_that_was_linked_elsewhere_stays_there_and_the_application_is_put_back(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    [*_, saved] = point(network)
    new = network.account.add_application("New")
    network.account.numbers[NUMBER].settings["app_id"] = new
    assert network.carry_out(network.ours.restore(saved, HERE)) == "left"
    assert network.account.numbers[NUMBER].settings["app_id"] == new
    assert network.account.applications[APPLICATION]["capabilities"]["voice"] == THEIRS


def test_a_forwarding_that_was_set_meanwhile_stays(network: Network) -> None:
    with_number(network)
    [*_, saved] = point(network)
    forwarding = {"voiceCallbackType": "tel", "voiceCallbackValue": "447700900001"}
    network.account.numbers[NUMBER].settings |= forwarding
    assert network.carry_out(network.ours.restore(saved, HERE)) == "restored"
    assert network.account.numbers[NUMBER].settings == {"country": "GB", **forwarding}


def test_the_application_of_a_number_that_is_gone_is_put_back(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    [*_, saved] = point(network)
    del network.account.numbers[NUMBER]
    assert network.carry_out(network.ours.restore(saved, HERE)) == "left"
    assert network.account.applications[APPLICATION]["capabilities"]["voice"] == THEIRS


def test_an_application_that_is_gone(network: Network) -> None:
    with_number(network, app_id=APPLICATION)
    found = network.carry_out(network.ours.find_number(NUMBER))
    [*_, saved] = point(network)
    del network.account.applications[APPLICATION]
    assert network.carry_out(network.ours.restore(saved, HERE)) == "left"
    with pytest.raises(ApiError, match=f"no application {APPLICATION}") as caught:
        network.carry_out(network.ours.point(found, HERE, lambda saved: None))
    assert caught.value.kind == "not-found"


# Calls


def place(network: Network, call: OutboundCall = OUTBOUND) -> Any:
    placed = network.carry_out(network.ours.dial(call))
    return network.account.calls[placed.call_id]


def test_a_call_is_placed(network: Network) -> None:
    """https://developer.vonage.com/en/api/voice#createCall"""
    network.account.on_placed = lambda call: setattr(call, "stage", "queued")
    placed = network.carry_out(network.ours.dial(OUTBOUND))
    call = network.account.calls[placed.call_id]
    assert placed == PlacedCall(placed.call_id, stage="queued")
    assert json.loads(network.asked[0].body) == {
        "to": [{"type": "phone", "number": "447700900000"}],
        "from": {"type": "phone", "number": "442079460000"},
        "answer_url": ["https://bot.example.com/vonage/answer/t?direction=outbound"],
        "answer_method": "POST",
        "event_url": [HERE.status],
        "event_method": "POST",
        "ringing_timer": 60,
    }
    token = network.asked[0].headers["authorization"].removeprefix("Bearer ")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims.pop("jti")
    assert claims == {"application_id": APPLICATION, "iat": NOW, "exp": NOW + 60}
    assert call.call == Call(
        "vonage", placed.call_id, from_number=NUMBER, to_number="+447700900000", direction="outbound"
    )
    assert (call.ring_timeout_s, call.time_limit_s, call.detection) == (60, 7200, "off")


def test_the_answer_webhook_of_a_placed_call_is_read_as_that_call(network: Network) -> None:
    call = place(network)
    server, simulator = Vonage({}), load_simulator("vonage")
    request = simulator.webhook(call.call, call.webhook.url, method=call.webhook.method)
    assert request.url.count("direction=outbound") == 1
    assert server.read_webhook(request) == call.call


@pytest.mark.parametrize("detection", ["detect", "greeting-end"])
def test_limits_and_detection(network: Network, detection: Any) -> None:
    call = place(network, dataclasses.replace(OUTBOUND, detection=detection, ring_timeout_s=300, time_limit_s=90))
    content = json.loads(network.asked[-1].body)
    assert content["advanced_machine_detection"] == {"behavior": "continue", "mode": "default"}
    # More than the API takes is as much as it takes.
    assert (content["ringing_timer"], content["length_timer"]) == (120, 90)
    assert (call.detection, call.machine, call.time_limit_s) == ("greeting-end", call.status, 90)


def test_a_call_that_cannot_be_paid(network: Network) -> None:
    network.account.balance = 0.0
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.dial(OUTBOUND))
    assert caught.value.kind == "balance"
    assert caught.value.hint == "top up the account in Vonage's dashboard"
    assert network.account.calls == {}


def test_a_number_that_is_none_is_refused(network: Network) -> None:
    with pytest.raises(ApiError, match="7 to 15 digits"):
        network.carry_out(network.ours.dial(dataclasses.replace(OUTBOUND, to_number="+1")))


def test_a_call_is_looked_up(network: Network) -> None:
    call = place(network)
    call_id = call.call.call_id
    found = network.carry_out(network.ours.look_up(call_id))
    assert (found.stage, found.duration_s, found.price) == ("queued", None, "")
    assert (found.from_number, found.to_number) == (NUMBER, "+447700900000")
    for stage in ("ringing", "answered", "busy", "no-answer", "failed", "canceled"):
        call.stage = stage
        assert network.carry_out(network.ours.look_up(call_id)).stage == stage
    call.stage, call.duration_s = "completed", 61.0
    found = network.carry_out(network.ours.look_up(call_id))
    assert (found.stage, found.duration_s) == ("completed", 61.0)
    assert found.price == "0.01291167 EUR"
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.look_up("unknown"))
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
    with pytest.raises(ApiError, match="no call unknown") as caught:
        network.carry_out(network.ours.hang_up(Call("vonage", "unknown")))
    assert caught.value.kind == "not-found"
    # What is refused for another reason has not ended.
    talking.stage = "answered"
    network.instead = lambda request: Answer("{}", "application/json", 400) if request.method == "PUT" else None
    with pytest.raises(ApiError, match="refuses to end call"):
        network.carry_out(network.ours.hang_up(talking.call))


@pytest.mark.parametrize("to", ["+447700900001", "sip:desk@example.com"])
def test_a_call_is_transferred(network: Network, to: str) -> None:
    """https://developer.vonage.com/en/api/voice#updateCall"""
    told: list[tuple[str, str]] = []
    network.account.on_command = lambda call, kind, argument: told.append((kind, argument))
    call = place(network)
    call.stage = "answered"
    network.carry_out(network.ours.transfer(call.call, to))
    assert told == [("transfer", to)]
    content = json.loads(network.asked[-1].body)
    [action] = content["destination"]["ncco"]
    # It has to be a number of the account's.
    assert action["from"] == "442079460000"
    document = load_simulator("vonage").read_answer(json.dumps([action]).encode(), "application/json", first=False)
    assert isinstance(document, NoStream)
    assert document.how == "transferred"
    inbound = Call("vonage", call.call.call_id, from_number="+447700900000", to_number=NUMBER)
    network.carry_out(network.ours.transfer(inbound, to))
    assert json.loads(network.asked[-1].body)["destination"]["ncco"][0]["from"] == "442079460000"
    unknown = Call("vonage", call.call.call_id)
    network.carry_out(network.ours.transfer(unknown, to))
    assert "from" not in json.loads(network.asked[-1].body)["destination"]["ncco"][0]
    call.stage = "completed"
    with pytest.raises(ApiError) as caught:
        network.carry_out(network.ours.transfer(call.call, to))
    assert caught.value.kind == "ended"


def test_keys_are_pressed(network: Network) -> None:
    """https://developer.vonage.com/en/api/voice#startDTMF"""
    told: list[tuple[str, str]] = []
    network.account.on_command = lambda call, kind, argument: told.append((kind, argument))
    call = place(network)
    call.stage = "answered"
    network.carry_out(network.ours.send_digits(call.call, "1w2W#*"))
    assert json.loads(network.asked[-1].body) == {"digits": "1p2pp#*"}
    assert told == [("digits", "1w2ww#*")]
    with pytest.raises(ApiError, match=r"0-9 \* # only") as caught:
        network.carry_out(network.ours.send_digits(call.call, "1A"))
    assert caught.value.kind == "unsupported"


def test_a_stream_that_did_not_open_is_in_the_evidence(network: Network) -> None:
    call = place(network)
    call.stage, call.duration_s = "completed", 3.0
    call_id = call.call.call_id
    begun, ended = network.carry_out(network.ours.evidence(call_id))
    assert (begun.what, begun.when) == (f"call from {NUMBER} to +447700900000 began", "2020-01-01 12:00:00")
    assert ended.what.startswith(f"call from {NUMBER} to +447700900000: completed, duration 3")
    assert not ended.failed
    record = network.account.answer(WebhookRequest("GET", f"https://api.nexmo.com/v1/calls/{call_id}"))
    stream = {**json.loads(record.body), "uuid": "s", "status": "unanswered"}
    stream["to"] = {"type": "websocket", "uri": "wss://bot.example.com/ws/t"}
    for name in ("start_time", "end_time", "duration", "price", "network"):
        del stream[name]

    def listed(request: WebhookRequest) -> Answer | None:
        if "conversation_uuid=CON-" not in request.url:
            return None
        return Answer(json.dumps({"_embedded": {"calls": [json.loads(record.body), stream]}}), "application/json")

    network.instead = listed
    *_, failed = network.carry_out(network.ours.evidence(call_id))
    assert (failed.failed, failed.code) == (True, "unanswered")
    assert failed.what == ("stream to wss://bot.example.com/ws/t: unanswered, Vonage could not open the WebSocket")
    assert "wsvoice doctor" in failed.hint


# Event webhooks


@pytest.mark.parametrize(
    "stage", ["queued", "ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_stage_is_reported_and_read(network: Network, stage: Any, method: Any) -> None:
    call = place(network).call
    simulator = load_simulator("vonage")
    report = simulator.status_webhook(call, Callback(HERE.status, method), stage, duration_s=2.0, now=NOW)
    assert report is not None
    update = Vonage({}).read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.call_id, update.stage) == (call.call_id, stage)
    assert update.ended == (stage not in ("queued", "ringing", "answered"))
    assert update.detail == ("duration=2" if stage == "completed" else "")


@pytest.mark.parametrize(("answered_by", "greeting_ended"), [("human", False), ("machine", False), ("machine", True)])
def test_what_machine_detection_finds_is_reported_and_read(
    network: Network, answered_by: Any, greeting_ended: bool
) -> None:
    """https://developer.vonage.com/en/voice/voice-api/concepts/advanced-machine-detection"""
    call = place(network).call
    report = load_simulator("vonage").status_webhook(
        call, Callback(HERE.status), "answered", answered_by=answered_by, greeting_ended=greeting_ended
    )
    assert report is not None
    update = Vonage({}).read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.call_id, update.answered_by, update.greeting_ended, update.ended) == (
        *(call.call_id, answered_by, greeting_ended),
        False,
    )
    assert (
        load_simulator("vonage").status_webhook(call, Callback(HERE.status), "answered", answered_by="unknown") is None
    )


# Over a real network


@pytest.fixture
def slow_api() -> Iterator[tuple[str, list[float]]]:
    """Puts each first request off (429), and takes the second; yields its address, and when each token was made."""
    made: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            token = self.headers["authorization"].removeprefix("Bearer ")
            made.append(jwt.decode(token, options={"verify_signature": False})["iat"])
            body = b"{}" if len(made) == 1 else b'{"uuid":"u","status":"started"}'
            self.send_response(429 if len(made) == 1 else 201)
            self.send_header("retry-after", "7")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is logged."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"http://127.0.0.1:{server.server_port}", made
        server.shutdown()


def test_a_request_that_is_put_off_is_signed_anew(
    slow_api: tuple[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, made = slow_api
    clock = [NOW]
    monkeypatch.setattr("wsvoice.http.time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic))

    async def sleep(seconds: float) -> None:
        clock[0] += seconds

    account = load_account("vonage", {**CREDENTIALS, "VONAGE_API_BASE_URL": url})
    placed = asyncio.run(carry_out(account.dial(OUTBOUND), sleep=sleep))
    assert (placed.call_id, made) == ("u", [NOW, NOW + 7])


# Calls in progress of a test call


def ask(method: str, path: str, content: Any = None) -> WebhookRequest:
    body = b"" if content is None else json.dumps(content).encode()
    return WebhookRequest(method, f"http://127.0.0.1:1{path}", {"content-type": "application/json"}, body)


def test_a_call_in_progress_takes_the_same_commands() -> None:
    api, call = VonageApi(load_simulator("vonage")), Call("vonage", "c", from_number=NUMBER, to_number=OTHER)
    looked = api.read_command(ask("GET", "/v1/calls/c"))
    assert looked is not None
    told = json.loads(api.command_answer(looked, call, "in-progress").body)
    assert (told["uuid"], told["status"], told["to"]) == ("c", "answered", {"type": "phone", "number": OTHER[1:]})
    pressed = api.read_command(ask("PUT", "/v1/calls/c/dtmf", {"digits": "1p#"}))
    assert pressed is not None
    assert (pressed.kind, pressed.digits) == ("digits", "1w#")
    assert json.loads(api.command_answer(pressed, call, "in-progress").body)["message"] == "DTMF sent"
    ncco = [{"action": "connect", "endpoint": [{"type": "phone", "number": "447700900001"}]}]
    moved = api.read_command(ask("PUT", "/v1/calls/c", {"action": "transfer", "destination": {"ncco": ncco}}))
    assert moved is not None
    assert json.loads(moved.document) == ncco
    url = {"action": "transfer", "destination": {"type": "ncco", "url": ["https://h/next"]}}
    moved = api.read_command(ask("PUT", "/v1/calls/c", url))
    assert moved is not None
    assert moved.callback == Callback("https://h/next", "GET")
    for path, content in (
        ("/v1/calls/c/dtmf", {"digits": "x"}),
        ("/v1/calls/c", {"action": "transfer", "destination": {}}),
    ):
        with pytest.raises(RemoteProtocolError):
            api.read_command(ask("PUT", path, content))


# Vonage's own library


class Adapter(requests.adapters.BaseAdapter):
    """Sends a library's requests to the fake."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        body = request.body or b""
        body = body.encode() if isinstance(body, str) else body
        headers = {name: v.decode() if isinstance(v, bytes) else v for name, v in request.headers.items()}
        answer = self.network.answer(str(request.method), str(request.url), headers, body)
        response = requests.Response()
        response.status_code, response._content, response.url = answer.status, answer.body.encode(), str(request.url)
        response.headers["content-type"] = answer.media_type
        response.request = request
        return response

    def close(self) -> None:
        """Nothing is open."""


def client(network: Network, **changes: str) -> HttpClient:
    """Return the library's client, whose requests go to the fake."""
    auth = {
        "api_key": CREDENTIALS["VONAGE_API_KEY"],
        "api_secret": CREDENTIALS["VONAGE_API_SECRET"],
        "application_id": APPLICATION,
        "private_key": CREDENTIALS["VONAGE_PRIVATE_KEY"],
        **changes,
    }
    made = HttpClient(Auth(**auth))
    made._session.mount("https://", Adapter(network))
    return made


def last(network: Network) -> tuple[str, str, Any]:
    """What was asked last, without what signs it."""
    request = network.asked[-1]
    return request.method, request.url, request.content if request.is_json else request.form


def test_the_library_places_the_same_call(network: Network) -> None:
    ours = dataclasses.replace(OUTBOUND, detection="greeting-end", time_limit_s=90)
    place(network, ours)
    method, url, content = last(network)
    # Its models refuse what the API refuses.
    sent = {name: value for name, value in content.items() if name != "from"}
    answered = Voice(client(network)).create_call(CreateCallRequest(**sent, from_=content["from"]))
    assert last(network) == (method, url, content)
    assert network.account.calls[answered.uuid].call.to_number == "+447700900000"
    assert answered.conversation_uuid.startswith("CON-")


def test_the_library_sends_the_same_commands(network: Network) -> None:
    voice, call = Voice(client(network)), place(network)
    call.stage, call_id = "answered", call.call.call_id
    network.carry_out(network.ours.send_digits(call.call, "12#"))
    ours = last(network)
    assert voice.play_dtmf_into_call(call_id, "12#").message == "DTMF sent"
    assert last(network) == ours
    network.carry_out(network.ours.transfer(call.call, "+447700900001"))
    ours = last(network)
    voice.transfer_call_ncco(
        call_id, [Connect(endpoint=[PhoneEndpoint(number="447700900001")], from_=NUMBER.removeprefix("+"))]
    )
    assert last(network)[:2] == ours[:2]
    theirs = last(network)[2]["destination"]["ncco"][0]
    assert theirs == ours[2]["destination"]["ncco"][0]
    assert voice.get_call(call_id).status == "answered"
    calls, _ = voice.list_calls()
    assert [each.uuid for each in calls] == [call_id]
    voice.hangup(call_id)
    theirs_last = last(network)
    call.stage = "answered"
    assert network.carry_out(network.ours.hang_up(call.call))
    assert last(network) == theirs_last
    with pytest.raises(NotFoundError):
        voice.hangup(call_id)


def test_the_library_sees_the_same_numbers_and_applications(network: Network) -> None:
    with_number(network, moHttpUrl="https://old.example.com/sms")
    found, count, _ = Numbers(client(network)).list_owned_numbers(
        ListOwnedNumbersFilter(pattern=NUMBER[1:], search_pattern=0)
    )
    network.carry_out(network.ours.find_number(NUMBER))
    assert [each.msisdn for each in found] == [NUMBER[1:]]
    assert count == 1
    theirs, ours = network.asked[0], network.asked[1]
    assert {**dict(theirs.query), "index": "1"} == dict(ours.query)
    point(network)
    changed = next(each for each in network.asked if each.method == "PUT")
    config = ApplicationConfig(**changed.content)
    applications = Application(client(network))
    updated = applications.update_application(APPLICATION, config)
    theirs_voice = network.asked[-1].content["capabilities"]["voice"]
    assert theirs_voice == changed.content["capabilities"]["voice"]
    assert updated.capabilities.voice.webhooks.answer_url.address == HERE.webhook
    linked = next(each for each in network.asked if each.url.endswith("/number/update"))
    status = Numbers(client(network)).update_number(
        UpdateNumberParams(
            country="GB", msisdn=NUMBER[1:], app_id=APPLICATION, mo_http_url="https://old.example.com/sms"
        )
    )
    assert status.error_code == "200"
    assert dict(network.asked[-1].form) == dict(linked.form)
    listed, _ = applications.list_applications()
    assert [each.id for each in listed] == [APPLICATION]
    applications.delete_application(APPLICATION)
    assert network.account.numbers[NUMBER].settings.get("app_id") is None
    assert SdkAccount(client(network)).get_balance().value == network.account.balance


def test_the_library_is_refused_alike(network: Network) -> None:
    with pytest.raises(AuthenticationError):
        Numbers(client(network, api_secret="wrong")).list_owned_numbers()
    with pytest.raises(AuthenticationError):
        Voice(client(network, application_id="wrong")).list_calls()
    network.account.add_number(NUMBER)
    with pytest.raises(HttpRequestError):
        Numbers(client(network)).update_number(UpdateNumberParams(country="US", msisdn=NUMBER[1:]))


def test_its_addresses_are_replaced_alike() -> None:
    account = VonageAccount({**CREDENTIALS, "VONAGE_API_BASE_URL": "http://127.0.0.1:1/"})
    urls = {next(steps).url for steps in (account.describe(), account.find_number(NUMBER), account.dial(OUTBOUND))}
    assert {url.partition("?")[0] for url in urls} == {
        "http://127.0.0.1:1/account/get-balance",
        "http://127.0.0.1:1/account/numbers",
        "http://127.0.0.1:1/v1/calls",
    }
