"""
SignalWire's account, against an account without SignalWire.

SignalWire's own library for Python is Twilio's with another address: https://github.com/signalwire/signalwire-python
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from twilio.rest import Client

from tests.providers.fake_accounts import Api, LibraryClient
from wsvoice.call import Call
from wsvoice.errors import ApiError, ConfigError
from wsvoice.providers import load_account, load_server, load_simulator
from wsvoice.providers.account import Account, ApiResponse, OutboundCall, PlacedCall, ServerAddresses
from wsvoice.providers.base import Callback, CallUpdate, StatusReport
from wsvoice.providers.fake_account import FakeCall

PROJECT = "00000000-0000-0000-0000-000000000001"
CREDENTIALS = {
    "SIGNALWIRE_SPACE": "example",
    "SIGNALWIRE_PROJECT_ID": PROJECT,
    "SIGNALWIRE_API_TOKEN": "token",
    "SIGNALWIRE_SIGNING_KEY": "PSK_wsvoice_test_key_01",
}
NUMBER, THEIRS = "+15550100001", "+15550100002"
OURS = ServerAddresses("https://voice.example.com/signalwire/voice", "https://voice.example.com/signalwire/status")
CALL = OutboundCall(
    to_number=THEIRS,
    from_number=NUMBER,
    webhook_url="https://voice.example.com/voice",
    stream_url="wss://voice.example.com/stream",
    status_url="https://voice.example.com/status",
    machine_url="https://voice.example.com/machine",
    detection="detect",
    ring_timeout_s=30,
)
GOLDEN = Path(__file__).parent.parent / "golden" / "signalwire" / "webhooks"
NOW = 1_764_669_600.0


@pytest.fixture
def api() -> Api:
    api = Api("signalwire", CREDENTIALS)
    api.account.now = NOW
    api.account.add_number(NUMBER, VoiceUrl="https://old.example.com/")
    return api


@pytest.fixture
def account() -> Account:
    return load_account("signalwire", CREDENTIALS)


@pytest.fixture
def library(api: Api) -> Client:
    client = Client(PROJECT, "token", http_client=LibraryClient(api))
    # As the library of SignalWire's does.
    client.api.base_url = "https://example.signalwire.com"
    client.api.v2010.version = "api/laml/2010-04-01"
    return client


def refused(api: Api, steps: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        api.run(steps)
    return raised.value


def place(api: Api, account: Account, call: OutboundCall = CALL) -> FakeCall:
    placed: PlacedCall = api.run(account.dial(call))
    found: FakeCall = api.account.calls[placed.call_id]
    return found


@pytest.mark.parametrize("name", ["SIGNALWIRE_SPACE", "SIGNALWIRE_PROJECT_ID", "SIGNALWIRE_API_TOKEN"])
def test_missing_credentials_are_named(name: str) -> None:
    load_account("signalwire", CREDENTIALS).check_credentials()
    with pytest.raises(ConfigError, match=f"needs {name}$"):
        load_account("signalwire", {**CREDENTIALS, name: ""}).check_credentials()


@pytest.mark.parametrize(
    "settings",
    [
        {"SIGNALWIRE_SPACE": "example"},
        {"SIGNALWIRE_SPACE": "example.signalwire.com"},
        {"SIGNALWIRE_SPACE": "https://example.signalwire.com/"},
        {"SIGNALWIRE_SPACE": "other", "SIGNALWIRE_API_BASE_URL": "https://example.signalwire.com/"},
    ],
)
def test_a_space_is_named_in_several_ways(api: Api, settings: dict[str, str]) -> None:
    api.run(load_account("signalwire", {**CREDENTIALS, **settings}).describe())
    assert api.asked[0].url == f"https://example.signalwire.com/api/laml/2010-04-01/Accounts/{PROJECT}.json"


def test_the_project_is_described(api: Api, account: Account) -> None:
    assert api.run(account.describe()).is_trial is False
    api.account.is_trial = True
    described = api.run(account.describe())
    assert described.account_id == PROJECT
    assert any("purchased" in limit for limit in described.limits)


def test_wrong_credentials(api: Api) -> None:
    error = refused(api, load_account("signalwire", {**CREDENTIALS, "SIGNALWIRE_API_TOKEN": "other"}).describe())
    assert error.kind == "credentials"
    assert "SIGNALWIRE_SPACE" in (error.hint or "")
    assert "Twilio" not in error.message + (error.hint or "")


def test_a_number_is_pointed_and_put_back(api: Api, account: Account) -> None:
    saved: list[Any] = []
    api.run(account.point(api.run(account.find_number(NUMBER)), OURS, saved.append))
    assert api.account.points_at(NUMBER) == Callback(OURS.webhook)
    assert api.run(account.restore(saved[0], OURS)) == "restored"
    assert api.account.points_at(NUMBER) == Callback("https://old.example.com/")
    assert refused(api, account.find_number(THEIRS)).kind == "number"


def test_capabilities_are_read_however_they_are_written(account: Account) -> None:
    for capabilities, has_voice in (({"Voice": True}, True), ({"voice": False}, False), ({"voice": True}, True)):
        steps = account.numbers()
        next(steps)
        listed = [{"sid": "1", "phone_number": NUMBER, "capabilities": capabilities}]
        with pytest.raises(StopIteration) as end:
            steps.send(ApiResponse(200, {}, json.dumps({"incoming_phone_numbers": listed}).encode()))
        assert end.value.value[0].has_voice is has_voice


def test_a_call_is_placed_and_ended_once(api: Api, account: Account) -> None:
    call = place(api, account)
    assert (call.webhook, call.status, call.machine) == (
        Callback(CALL.webhook_url),
        Callback(CALL.status_url),
        Callback(CALL.machine_url),
    )
    assert (call.detection, call.ring_timeout_s) == ("detect", 30)
    call.stage, call.answered_by, call.duration_s = "answered", "human", 30.0
    assert api.run(account.look_up(call.call.call_id)).answered_by == "human"
    assert api.run(account.hang_up(call.call)) is True
    assert api.run(account.hang_up(call.call)) is False
    state = api.run(account.look_up(call.call.call_id))
    assert (state.stage, state.duration_s, state.price, state.cause) == ("completed", 30.0, "0.013 USD", "SIP 200")


def test_a_busy_call_says_why_it_ended(api: Api, account: Account) -> None:
    call = place(api, account)
    api.account.end(call, "busy")
    state = api.run(account.look_up(call.call.call_id))
    assert (state.stage, state.cause, state.price) == ("busy", "SIP 486", "")


def test_what_the_api_lacks_is_said_before_anything_is_asked(api: Api, account: Account) -> None:
    call = Call("signalwire", "c1")
    for steps in (
        # Without a server's address for the document.
        account.transfer(call, THEIRS),
        account.send_digits(call, "1"),
        account.evidence("c1"),
    ):
        error = refused(api, steps)
        assert error.kind == "unsupported"
        assert "SignalWire" in error.message
    assert api.asked == []


def test_a_trial_and_a_foreign_number(api: Api, account: Account) -> None:
    api.account.is_trial = True
    assert refused(api, account.dial(CALL)).kind == "trial"
    api.account.is_trial = False
    del api.account.numbers[NUMBER]
    assert refused(api, account.dial(CALL)).kind == "number"


@pytest.mark.parametrize(
    ("status", "content", "kind", "code"),
    [
        (422, {"errors": [{"code": "30010", "message": "Maxpriceperminute was exceeded."}]}, "refused", "30010"),
        (400, {"code": 4001, "message": "Insufficient balance", "status": 400}, "balance", "4001"),
        (400, {"errors": ["?"]}, "refused", ""),
        (400, {"errors": [{"code": "77", "message": "Something new"}]}, "refused", "77"),
        (429, {"code": 20429, "message": "Too Many Requests"}, "rate-limit", "20429"),
    ],
)
def test_refusals_in_both_forms(account: Account, status: int, content: Any, kind: str, code: str) -> None:
    steps = account.dial(CALL)
    next(steps)
    with pytest.raises(ApiError) as raised:
        steps.send(ApiResponse(status, {}, json.dumps(content).encode()))
    assert (raised.value.kind, raised.value.code) == (kind, code)
    assert raised.value.message.startswith("SignalWire")


def test_codes_are_explained_where_signalwire_has_them(account: Account) -> None:
    assert account.explain_code("31951") is None
    meaning, mend = account.explain_code("20003") or ("", "")
    assert "project" in meaning
    assert "SIGNALWIRE_API_TOKEN" in mend


def test_the_library_does_the_same_as_we_do(api: Api, account: Account, library: Client) -> None:
    (found,) = library.incoming_phone_numbers.list(phone_number=NUMBER, page_size=100)
    number = api.run(account.find_number(NUMBER))
    assert (api.asked[0], found.sid) == (api.asked[1], number.number_id)
    made = library.calls.create(
        to=THEIRS,
        from_=NUMBER,
        url=CALL.webhook_url,
        method="POST",
        status_callback=CALL.status_url,
        status_callback_method="POST",
        status_callback_event=["initiated", "ringing", "answered", "completed"],
        timeout=30,
        machine_detection="Enable",
        async_amd="true",
        async_amd_status_callback=CALL.machine_url,
        async_amd_status_callback_method="POST",
    )
    place(api, account)
    assert api.asked[-1] == api.asked[-2]
    assert library.calls(made.sid).fetch().status == "queued"
    api.run(account.look_up(made.sid))
    assert api.asked[-1] == api.asked[-2]
    assert library.calls(made.sid).update(status="completed").status == "canceled"
    assert api.run(account.cancel(PlacedCall(made.sid))) is False
    assert api.asked[-1] == api.asked[-2]


@pytest.mark.parametrize(
    ("golden", "stage", "duration_s"),
    [
        ("status-initiated", "queued", 0.0),
        ("status-ringing", "ringing", 0.0),
        ("status-in-progress", "answered", 0.0),
        ("status-completed", "completed", 45.0),
        ("status-busy", "busy", 0.0),
    ],
)
def test_the_simulated_report_on_a_placed_call_is_the_documented_one(
    golden: str, stage: Any, duration_s: float
) -> None:
    fields = json.loads((GOLDEN / f"{golden}.json").read_text())["fields"]
    call = Call("signalwire", fields["CallSid"], "", fields["AccountSid"], fields["From"], fields["To"], "outbound")
    simulator, server = load_simulator("signalwire", CREDENTIALS), load_server("signalwire", CREDENTIALS)
    report = simulator.status_webhook(
        call, Callback("https://voice.example.com/status"), StatusReport(stage, duration_s=duration_s), now=NOW
    )
    assert report is not None
    # Figures about the audio are not simulated.
    assert {name: value for name, value in report.fields.items() if name in fields} == {
        name: value for name, value in fields.items() if not name.startswith("AudioIn")
    }
    assert set(report.fields) - set(fields) <= {"SipResultCode"}
    server.verify(simulator.sign(report, now=NOW), now=NOW)
    update = server.read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert update.stage == stage


@pytest.mark.parametrize("golden", ["machine-detection", "machine-detection-greeting-end"])
def test_the_simulated_report_of_machine_detection_is_the_documented_one(golden: str) -> None:
    content = json.loads((GOLDEN / f"{golden}.json").read_text())
    fields, expected = content["fields"], CallUpdate(**content["update"])
    call = Call("signalwire", fields["CallSid"], "", fields["AccountSid"], NUMBER, THEIRS, "outbound")
    report = load_simulator("signalwire", CREDENTIALS).status_webhook(
        call,
        Callback("https://voice.example.com/machine"),
        StatusReport("answered", answered_by=expected.answered_by, greeting_ended=expected.greeting_ended),
        now=NOW,
    )
    assert report is not None
    assert {**report.fields, "MachineDetectionDuration": fields["MachineDetectionDuration"]} == fields
    assert load_server("signalwire", CREDENTIALS).read_webhook(report) == expected
