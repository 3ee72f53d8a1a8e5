"""Twilio's account, against an account without Twilio, which Twilio's own library is held against as well."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from tests.providers.fake_accounts import Api, LibraryClient
from wsvoice.call import Call
from wsvoice.errors import ApiError, ConfigError
from wsvoice.phone.client import carry_out
from wsvoice.providers import load_account, load_server, load_simulator
from wsvoice.providers.account import (
    Account,
    ApiResponse,
    OutboundCall,
    PhoneNumber,
    PlacedCall,
    ServerAddresses,
)
from wsvoice.providers.base import Answer, Callback, CallUpdate, WebhookRequest
from wsvoice.providers.fake_account import FakeCall
from wsvoice.providers.fields import read_rfc2822, write_rfc2822
from wsvoice.providers.twilio.error_codes import ERROR_CODES

SID = "AC" + "2" * 32
TOKEN = {"TWILIO_ACCOUNT_SID": SID, "TWILIO_AUTH_TOKEN": "token"}
KEY = {"TWILIO_ACCOUNT_SID": SID, "TWILIO_API_KEY": "SK" + "3" * 32, "TWILIO_API_SECRET": "secret"}
NUMBER, OTHER, THEIRS = "+15550100001", "+15550100009", "+15550100002"
OURS = ServerAddresses("https://voice.example.com/twilio/voice/x", "https://voice.example.com/twilio/status/x")
BEFORE = {
    "VoiceUrl": "https://old.example.com/é?a=1&b=2",
    "VoiceMethod": "GET",
    "VoiceFallbackUrl": "https://old.example.com/fallback",
    "VoiceFallbackMethod": "POST",
    "StatusCallback": "",
    "StatusCallbackMethod": "POST",
}
CALL = OutboundCall(
    to_number=THEIRS,
    from_number=NUMBER,
    webhook_url="https://voice.example.com/voice?a=b&c",
    stream_url="wss://voice.example.com/stream",
    status_url="https://voice.example.com/status",
    machine_url="https://voice.example.com/machine",
    detection="greeting-end",
    ring_timeout_s=30,
    time_limit_s=600,
)
GOLDEN = Path(__file__).parent.parent / "golden" / "twilio" / "webhooks"
NOW = 1_764_669_600.0


@pytest.fixture
def api() -> Api:
    api = Api("twilio", TOKEN)
    api.account.now = NOW
    api.account.add_number(NUMBER, name="Support", **BEFORE)
    return api


@pytest.fixture
def account() -> Account:
    return load_account("twilio", TOKEN)


@pytest.fixture
def library(api: Api) -> Client:
    return Client(SID, "token", http_client=LibraryClient(api))


def refused(api: Api, steps: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        api.run(steps)
    return raised.value


def place(api: Api, account: Account, call: OutboundCall = CALL) -> FakeCall:
    placed: PlacedCall = api.run(account.dial(call))
    found: FakeCall = api.account.calls[placed.call_id]
    return found


# The account


@pytest.mark.parametrize("credentials", [{}, {"TWILIO_ACCOUNT_SID": SID}, {"TWILIO_API_KEY": "SK1"}])
def test_missing_credentials_are_named_with_where_they_are(credentials: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as raised:
        load_account("twilio", credentials).check_credentials()
    assert "TWILIO_AUTH_TOKEN" in raised.value.message
    assert "console.twilio.com" in (raised.value.hint or "")


@pytest.mark.parametrize("credentials", [TOKEN, KEY])
def test_a_token_is_enough_and_so_is_a_key(credentials: dict[str, str]) -> None:
    load_account("twilio", credentials).check_credentials()


def test_the_account_is_described(api: Api, account: Account) -> None:
    described = api.run(account.describe())
    assert (described.account_id, described.name, described.is_trial, described.limits) == (SID, "wsvoice", False, [])
    api.account.is_trial = True
    described = api.run(account.describe())
    assert described.is_trial is True
    assert any("verified" in limit for limit in described.limits)


def test_a_key_that_may_not_read_the_account_is_good_all_the_same() -> None:
    api, account = Api("twilio", KEY), load_account("twilio", KEY)
    described = api.run(account.describe())
    assert (described.account_id, described.is_trial) == (SID, None)
    assert [asked.url.rpartition("/")[2] for asked in api.asked] == [f"{SID}.json", "IncomingPhoneNumbers.json"]
    wrong = load_account("twilio", {**KEY, "TWILIO_API_SECRET": "other"})
    assert refused(api, wrong.describe()).kind == "credentials"


@pytest.mark.parametrize("change", [{"TWILIO_AUTH_TOKEN": "other"}, {"TWILIO_ACCOUNT_SID": "AC" + "4" * 32}])
def test_wrong_credentials(api: Api, change: dict[str, str]) -> None:
    error = refused(api, load_account("twilio", {**TOKEN, **change}).describe())
    assert (error.kind, error.code) == ("credentials", "20003")
    assert "TWILIO_REGION" in (error.hint or "")


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({}, "https://api.twilio.com"),
        ({"TWILIO_REGION": "ie1"}, "https://api.ie1.twilio.com"),
        ({"TWILIO_EDGE": "dublin"}, "https://api.dublin.us1.twilio.com"),
        ({"TWILIO_REGION": "ie1", "TWILIO_EDGE": "dublin"}, "https://api.dublin.ie1.twilio.com"),
    ],
)
def test_region_and_edge_choose_the_host_as_the_library_does(api: Api, settings: dict[str, str], host: str) -> None:
    api.run(load_account("twilio", {**TOKEN, **settings}).describe())
    assert api.asked[0].url.startswith(f"{host}/2010-04-01/")
    region, edge = settings.get("TWILIO_REGION"), settings.get("TWILIO_EDGE")
    library = Client(SID, "token", region=region, edge=edge, http_client=LibraryClient(api))
    library.api.v2010.accounts(SID).fetch()
    assert api.asked[1] == api.asked[0]


# Numbers


def test_numbers_of_several_pages(api: Api, account: Account) -> None:
    more = [f"+1555020{n:04}" for n in range(250)]
    for number in more:
        api.account.add_number(number)
    assert [each.number for each in api.run(account.numbers())] == [NUMBER, *more]
    assert len(api.asked) == 3


def test_no_page_is_asked_from_another_host(api: Api, account: Account) -> None:
    steps = account.numbers()
    next(steps)
    content = {"incoming_phone_numbers": [], "next_page_uri": "https://evil.example.com/2010-04-01/x"}
    with pytest.raises(StopIteration):
        steps.send(ApiResponse(200, {}, json.dumps(content).encode()))


def test_a_number_is_found_among_those_that_contain_it(api: Api, account: Account) -> None:
    api.account.numbers.clear()
    api.account.add_number(f"{NUMBER}5")
    added = api.account.add_number(NUMBER, name="Support", **BEFORE)
    found = api.run(account.find_number(NUMBER))
    assert found == PhoneNumber(
        NUMBER, added.number_id, "Support", points_at=BEFORE["VoiceUrl"], settings=BEFORE, warnings=[]
    )


def test_a_foreign_number_is_answered_with_the_accounts_own(api: Api, account: Account) -> None:
    error = refused(api, account.find_number(OTHER))
    assert error.kind == "number"
    assert SID in error.message
    assert NUMBER in (error.hint or "")
    for n in range(7):
        api.account.add_number(f"+1555030{n:04}")
    assert "3 more" in (refused(api, account.find_number(OTHER)).hint or "")
    api.account.numbers.clear()
    assert "no number" in (refused(api, account.find_number(OTHER)).hint or "")


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [
        ({"has_voice": False}, "takes no calls"),
        ({"TrunkSid": "TK1"}, "SIP trunk TK1"),
        ({"VoiceApplicationSid": "AP1"}, "application AP1"),
    ],
)
def test_a_number_whose_webhook_would_not_be_asked_is_not_pointed(
    api: Api, account: Account, settings: dict[str, Any], obstacle: str
) -> None:
    api.account.add_number(OTHER, **settings)
    number = api.run(account.find_number(OTHER))
    assert obstacle in number.obstacle
    saved: list[Any] = []
    error = refused(api, account.point(number, OURS, saved.append))
    assert error.kind == "number"
    assert obstacle in error.message
    assert error.hint
    assert saved == []
    assert api.account.points_at(OTHER) is None


def test_a_number_is_pointed_and_put_back(api: Api, account: Account) -> None:
    kept, saved = api.account.numbers[NUMBER].settings, []
    number = api.run(account.find_number(NUMBER))

    def save(now: Any) -> None:
        assert kept["VoiceUrl"] == BEFORE["VoiceUrl"], "it is changed before that is saved"
        saved.append(json.loads(json.dumps(now)))

    api.run(account.point(number, OURS, save))
    assert api.account.points_at(NUMBER) == Callback(OURS.webhook)
    assert kept["StatusCallback"] == OURS.status
    assert kept["VoiceFallbackUrl"] == ""
    # In a later process, which knows nothing but what was saved.
    later = load_account("twilio", TOKEN)
    assert api.run(later.restore(saved[-1], OURS)) == "restored"
    assert {name: kept[name] for name in BEFORE} == BEFORE
    assert api.run(later.restore(saved[-1], OURS)) == "unchanged"


def test_a_number_that_had_no_webhook_has_none_again(api: Api, account: Account) -> None:
    api.account.add_number(OTHER)
    saved: list[Any] = []
    api.run(account.point(api.run(account.find_number(OTHER)), ServerAddresses(OURS.webhook), saved.append))
    assert api.account.points_at(OTHER) == Callback(OURS.webhook)
    assert api.run(account.restore(saved[-1], ServerAddresses(OURS.webhook))) == "restored"
    assert api.account.points_at(OTHER) is None


ELSEWHERE = "https://third.example.com/"


@pytest.mark.parametrize(
    ("name", "outcome"), [("VoiceUrl", "left"), ("VoiceFallbackUrl", "restored"), ("StatusCallback", "restored")]
)
def test_of_what_somebody_else_has_changed_the_rest_is_put_back(
    api: Api, account: Account, name: str, outcome: str
) -> None:
    settings = api.account.numbers[NUMBER].settings
    before, saved = dict(settings), list[Any]()
    api.run(account.point(api.run(account.find_number(NUMBER)), OURS, saved.append))
    method = f"{name.removesuffix('Url')}Method"
    changed = {name: ELSEWHERE, method: "GET"}
    settings.update(changed)
    assert api.run(account.restore(saved[-1], OURS)) == outcome
    assert settings == {**before, **changed}
    # There is nothing more to do then.
    n_asked = len(api.asked)
    assert api.run(account.restore(saved[-1], OURS)) == outcome
    assert [asked.method for asked in api.asked[n_asked:]] == ["GET"]


def test_a_number_that_was_given_back_is_left_alone(api: Api, account: Account) -> None:
    saved: list[Any] = []
    api.run(account.point(api.run(account.find_number(NUMBER)), OURS, saved.append))
    del api.account.numbers[NUMBER]
    n_asked = len(api.asked)
    assert api.run(account.restore(saved[-1], OURS)) == "left"
    assert [asked.method for asked in api.asked[n_asked:]] == ["GET"]


def test_a_status_callback_that_somebody_else_has_set_stays(api: Api, account: Account) -> None:
    saved: list[Any] = []
    api.run(account.point(api.run(account.find_number(NUMBER)), OURS, saved.append))
    settings = api.account.numbers[NUMBER].settings
    settings["StatusCallback"] = "https://third.example.com/"
    assert api.run(account.restore(saved[-1], OURS)) == "restored"
    assert settings["VoiceUrl"] == BEFORE["VoiceUrl"]
    assert settings["StatusCallback"] == "https://third.example.com/"


def test_a_number_of_another_region_is_warned_of(api: Api, account: Account) -> None:
    assert api.run(account.find_number(NUMBER)).warnings == []
    api.account.regions[NUMBER] = "ie1"
    (warning,) = api.run(account.find_number(NUMBER)).warnings
    assert "ie1" in warning
    assert api.run(load_account("twilio", {**TOKEN, "TWILIO_REGION": "ie1"}).find_number(NUMBER)).warnings == []


# Calls


def test_a_call_is_placed_with_all_that_is_asked_for(api: Api, account: Account) -> None:
    placed: list[FakeCall] = []
    api.account.on_placed = placed.append
    told = api.run(account.dial(CALL))
    (call,) = placed
    assert told == PlacedCall(call.call.call_id, account_id=SID, stage="queued")
    assert (call.call.from_number, call.call.to_number, call.call.direction) == (NUMBER, THEIRS, "outbound")
    assert call.webhook == Callback(CALL.webhook_url)
    assert call.status == Callback(CALL.status_url)
    assert call.machine == Callback(CALL.machine_url)
    assert (call.detection, call.ring_timeout_s, call.time_limit_s) == ("greeting-end", 30, 600)
    assert call.reports >= {"queued", "ringing", "answered", "completed", "busy", "no-answer", "failed", "canceled"}


def test_without_detection_and_limit_neither_is_asked_for(api: Api, account: Account) -> None:
    call = place(api, account, OutboundCall(THEIRS, NUMBER, CALL.webhook_url, "", CALL.status_url, ""))
    assert (call.detection, call.machine, call.time_limit_s, call.ring_timeout_s) == ("off", None, None, 60)
    assert not any("Amd" in name for name, _ in api.asked[-1].form)


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"from_number": OTHER}, "number", "21210"),
        ({"from_number": "me"}, "number", "21212"),
        ({"to_number": "1234"}, "refused", "21211"),
        ({"to_number": "+4930123"}, "permission", "21215"),
        ({"webhook_url": "https://under_score.example.com/"}, "refused", "21205"),
        ({"status_url": "nowhere"}, "refused", "21609"),
    ],
)
def test_a_call_that_is_refused(api: Api, account: Account, change: dict[str, str], kind: str, code: str) -> None:
    api.account.forbidden = ("+49",)
    asked = {name: getattr(CALL, name) for name in CALL.__dataclass_fields__} | change
    error = refused(api, account.dial(OutboundCall(**asked)))
    assert (error.kind, error.code) == (kind, code)
    assert error.hint
    assert asked["to_number"] in error.message
    assert api.account.calls == {}


def test_a_trial_calls_verified_numbers_only(api: Api, account: Account) -> None:
    api.account.is_trial = True
    error = refused(api, account.dial(CALL))
    assert (error.kind, error.code) == ("trial", "21219")
    api.account.verified.add(THEIRS)
    assert place(api, account).call.to_number == THEIRS
    api.account.assigned[THEIRS] = OTHER
    error = refused(api, account.dial(CALL))
    assert (error.kind, error.code) == ("trial", "573002")


@pytest.mark.parametrize(("asked", "given"), [(None, 600), (60, 60), (3600, 600)])
def test_a_trials_call_ends_after_ten_minutes(api: Api, account: Account, asked: int | None, given: int) -> None:
    api.account.is_trial = True
    api.account.verified.add(THEIRS)
    assert place(api, account, dataclasses.replace(CALL, time_limit_s=asked)).time_limit_s == given


@pytest.mark.parametrize(("answered", "stage"), [(False, "canceled"), (True, "completed")])
def test_a_placed_call_is_ended_once(api: Api, account: Account, answered: bool, stage: str) -> None:
    ended: list[FakeCall] = []
    api.account.on_ended = ended.append
    call = place(api, account)
    call.stage = "answered" if answered else "ringing"
    placed = PlacedCall(call.call.call_id, account_id=SID)
    assert api.run(account.cancel(placed)) is True
    assert (ended, call.stage) == ([call], stage)
    assert api.run(account.cancel(placed)) is False
    assert api.run(account.hang_up(call.call)) is False
    assert ended == [call]


def test_a_call_that_nobody_knows_is_not_found(api: Api, account: Account) -> None:
    call = Call("twilio", "CA" + "9" * 32)
    for steps in (account.hang_up(call), account.look_up(call.call_id), account.transfer(call, THEIRS)):
        error = refused(api, steps)
        assert (error.kind, error.code) == ("not-found", "20404")
        assert call.call_id in error.message


@pytest.mark.parametrize("status", ["completed", "in-progress"])
def test_a_call_that_is_not_found_to_be_ended_is_looked_at(account: Account, status: str) -> None:
    steps = account.hang_up(Call("twilio", "CA1"))
    next(steps)
    request = steps.send(ApiResponse(404, {}, b'{"code": 20404, "message": "not found"}'))
    assert (request.method, request.url.rpartition("/")[2]) == ("GET", "CA1.json")
    found = ApiResponse(200, {}, json.dumps({"status": status}).encode())
    if status == "completed":
        with pytest.raises(StopIteration) as end:
            steps.send(found)
        assert end.value.value is False
    else:
        with pytest.raises(ApiError, match="20404"):
            steps.send(found)


def test_the_call_of_a_sub_account_is_ended_in_that_account(account: Account) -> None:
    request = next(account.hang_up(Call("twilio", "CA1", account_id="AC7")))
    assert request.url == "https://api.twilio.com/2010-04-01/Accounts/AC7/Calls/CA1.json"


def test_how_a_call_stands_and_what_it_cost(api: Api, account: Account) -> None:
    call = place(api, account)
    assert api.run(account.look_up(call.call.call_id)).stage == "queued"
    call.stage, call.answered_by, call.duration_s = "answered", "machine", 61.0
    state = api.run(account.look_up(call.call.call_id))
    assert (state.stage, state.answered_by, state.duration_s, state.price) == ("answered", "machine", None, "")
    api.account.end(call)
    state = api.run(account.look_up(call.call.call_id))
    assert (state.stage, state.duration_s, state.price) == ("completed", 61.0, "0.0260 USD")
    assert (state.from_number, state.to_number) == (NUMBER, THEIRS)


@pytest.mark.parametrize("to", ["+15550100003", "sip:agent@pbx.example.com;transport=tls?x=1&y=<2>"])
def test_a_call_is_transferred(api: Api, account: Account, to: str) -> None:
    commands: list[tuple[str, str]] = []
    api.account.on_command = lambda call, kind, argument: commands.append((kind, argument))
    call = place(api, account)
    assert refused(api, account.transfer(call.call, to)).kind == "ended", "it is not answered yet"
    call.stage = "answered"
    api.run(account.transfer(call.call, to))
    assert commands == [("transfer", to)]
    api.account.end(call)
    assert refused(api, account.transfer(call.call, to)).kind == "ended"


@pytest.mark.parametrize("to", ["", "5550100003", "sip:", "mailto:a@b.example", "+1555</Number><Hangup/>"])
def test_a_call_is_transferred_to_nothing_else(api: Api, account: Account, to: str) -> None:
    assert refused(api, account.transfer(Call("twilio", "CA1"), to)).kind == "number"
    assert api.asked == []


def test_keys_cannot_be_pressed_without_ending_the_stream(api: Api, account: Account) -> None:
    error = refused(api, account.send_digits(Call("twilio", "CA1"), "12#"))
    assert error.kind == "unsupported"
    assert "OutputDTMFFrame" in (error.hint or "")
    assert api.asked == []


# What was recorded


def test_what_was_recorded_of_a_call_is_told_oldest_first(api: Api, account: Account) -> None:
    call, fake = place(api, account), api.account
    call_id, url = call.call.call_id, "https://voice.example.com/voice"
    fake.now = NOW + 2
    fake.add_error(call_id, 11200, "Got HTTP 502 response", url=url)
    fake.now = NOW + 1
    fake.add_event(call_id, Callback(url), 502)
    fake.now = NOW + 3
    fake.add_error(call_id, 31951, "", level="warning")
    fake.add_error("CA" + "9" * 32, 31920, "another call's")
    fake.end(call)
    request, fetched, warning = api.run(account.evidence(call_id))
    assert request.what == f"POST {url} was answered 502 in 100 ms"
    assert (request.when, request.failed) == ("Tue, 02 Dec 2025 10:00:01 +0000", True)
    assert "wsvoice run" in request.hint
    assert (fetched.code, fetched.failed) == ("11200", True)
    assert fetched.what == (f"error 11200: no usable answer came from the webhook (Got HTTP 502 response, {url})")
    assert "wsvoice run" in fetched.hint
    assert (warning.code, warning.failed) == ("31951", False)


def test_alerts_that_are_no_notifications_are_told_too(api: Api, account: Account) -> None:
    call_id = place(api, account).call.call_id
    api.account.add_error(call_id, 31920, "")
    api.account.add_error(call_id, 99999, "Something new")
    hide = api.account.answer

    def answer(request: WebhookRequest) -> Any:
        return None if "Notifications" in request.url else hide(request)

    api.account.answer = answer
    missing = [each for each in api.run(account.evidence(call_id)) if not each.code or each.code == "20404"]
    found = {each.code: each for each in api.run(account.evidence(call_id))}
    assert found.keys() >= {"31920", "99999", "20404"}
    assert len(missing) == 1, "what cannot be read is said, and the rest is told"
    assert found["99999"].what == "error 99999: Something new"
    assert found["99999"].hint.endswith("/99999")


def test_a_document_that_was_answered_needs_no_mend(api: Api, account: Account) -> None:
    call_id = place(api, account).call.call_id
    api.account.add_event(call_id, Callback("https://voice.example.com/"), 200)
    (request,) = api.run(account.evidence(call_id))
    assert (request.failed, request.hint) == (False, "")


def test_alerts_are_looked_for_in_the_calls_time(api: Api, account: Account) -> None:
    call = place(api, account)
    api.account.now = NOW + 60
    api.account.end(call)
    api.run(account.evidence(call.call.call_id))
    alerts = next(asked for asked in api.asked if asked.url.endswith("/Alerts"))
    assert alerts.url == "https://monitor.twilio.com/v1/Alerts"
    began, ended = (datetime.fromtimestamp(at, UTC) for at in (NOW - 300, NOW + 360))
    expected = {"StartDate": f"{began:%Y-%m-%dT%H:%M:%SZ}", "EndDate": f"{ended:%Y-%m-%dT%H:%M:%SZ}", "PageSize": "100"}
    assert dict(alerts.query) == expected


def test_every_code_is_explained_in_a_sentence_with_a_mend(account: Account) -> None:
    assert account.explain_code("1") is None
    assert len(ERROR_CODES) > 60
    for code in ERROR_CODES:
        meaning, mend = account.explain_code(code) or ("", "")
        assert code.isdigit()
        for text in (meaning, mend):
            assert text.isprintable()
            assert 10 < len(text) < 200, code
            assert not text.endswith("."), code


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"<html>Log in to the hotel's network</html>", "refused"),
        (200, b"{}", "refused"),
        (401, b"", "credentials"),
        (403, b'{"code": 20006, "message": "Access Denied"}', "permission"),
        (404, b"no", "not-found"),
        (429, b"", "rate-limit"),
        (400, b'{"code": 12345, "message": "Something new", "status": 400}', "refused"),
        (500, "ä".encode() * 200, "unavailable"),
        (500, b"\xff" * 300, "unavailable"),
        (302, b"", "refused"),
        (400, b'{"code": [], "message": {}}', "refused"),
    ],
)
def test_every_answer_ends_in_an_error_of_one_line(account: Account, status: int, body: bytes, kind: str) -> None:
    restored = account.restore({"number": NUMBER, "number_id": "PN1", **BEFORE}, OURS)
    for steps in (account.describe(), account.numbers(), account.dial(CALL), account.look_up("CA1"), restored):
        if steps is restored and status == 404:
            continue
        next(steps)
        with pytest.raises(ApiError) as raised:
            steps.send(ApiResponse(status, {}, body))
        assert raised.value.kind == kind
        assert raised.value.message.isprintable()
        assert len(raised.value.message) < 400


ODD: list[Any] = [None, True, 7, -1.5, "", "\x1b", "x" * 3000, [], ["x"], {}, {"x": 1}]


def changed(content: Any) -> Iterator[Any]:
    """Yield `content` with one value, at any depth, replaced by each odd one."""
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            for other in [*ODD, *changed(value)]:
                copy = content.copy()
                copy[key] = other
                yield copy


OPERATIONS: dict[str, Any] = {
    "describe": lambda account, call: account.describe(),
    "numbers": lambda account, call: account.numbers(),
    "find a number": lambda account, call: account.find_number(NUMBER),
    "restore": lambda account, call: account.restore({"number": NUMBER, "number_id": "PN1", **BEFORE}, OURS),
    "dial": lambda account, call: account.dial(CALL),
    "look up": lambda account, call: account.look_up(call.call_id),
    "evidence": lambda account, call: account.evidence(call.call_id),
    "transfer": lambda account, call: account.transfer(call, THEIRS),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_odd_value_ends_in_a_result_or_an_error_of_ours(api: Api, account: Account, name: str) -> None:
    placed = place(api, account)
    call_id = placed.call.call_id
    placed.stage = "answered"
    api.account.numbers[NUMBER].number_id = "PN1"
    api.account.add_event(call_id, Callback("https://voice.example.com/"), 500)
    api.account.add_error(call_id, 11200, "Bad")
    answer, n_tried = api.account.answer, 0

    def answered(n: int, content: Any) -> Any:
        """Return the n-th answer's content, or carry the operation out with another `content` in its place."""
        left = [n]

        def other(request: WebhookRequest) -> Answer:
            left[0] -= 1
            given: Answer = answer(request)
            if left[0] == -1:
                contents.append(json.loads(given.body))
                return dataclasses.replace(given, body=json.dumps(content if content is not None else contents[-1]))
            return given

        contents: list[Any] = []
        api.account.answer = other
        with suppress(ApiError):
            api.run(OPERATIONS[name](account, placed.call))
        return contents[0] if contents else None

    for n in range(4):
        if (content := answered(n, None)) is None:
            break
        for odd in changed(content):
            answered(n, odd)
            n_tried += 1
    assert n_tried > 50


@given(at=st.integers(0, 4_000_000_000))
def test_times_are_written_as_in_mail(at: int) -> None:
    written = write_rfc2822(at)
    assert written == format_datetime(datetime.fromtimestamp(at, UTC))
    assert read_rfc2822(written) == at
    assert read_rfc2822(written.replace("+0000", "-0130")) == at + 5400


@pytest.mark.parametrize("value", [None, 7, "", "yesterday", "Tue, 02 Foo 2025 10:00:00 +0000", "Tue, 32 Dec 2025"])
def test_what_is_no_time_is_none(value: object) -> None:
    assert read_rfc2822(value) is None
    assert read_rfc2822("Tue, 32 Dec 2025 10:00:00 +0000") is None


def test_an_unknown_code_keeps_twilios_words(account: Account) -> None:
    steps = account.dial(CALL)
    next(steps)
    with pytest.raises(ApiError) as raised:
        steps.send(ApiResponse(400, {}, b'{"code": 12345, "message": "Something new", "status": 400}'))
    assert raised.value.message == f"Twilio refuses the call to {THEIRS}: Something new (12345)"
    assert raised.value.code == "12345"
    assert (raised.value.hint or "").endswith("/12345")


# Twilio's own library


def test_the_library_reads_numbers_and_changes_them_as_we_do(api: Api, account: Account, library: Client) -> None:
    (found,) = library.incoming_phone_numbers.list(phone_number=NUMBER, page_size=100)
    assert (found.phone_number, found.voice_url, found.voice_method) == (NUMBER, BEFORE["VoiceUrl"], "GET")
    number = api.run(account.find_number(NUMBER))
    assert api.asked[-2] == api.asked[-3]
    assert number.number_id == found.sid
    assert library.routes.v2.phone_numbers(NUMBER).fetch().voice_region == "us1"
    assert api.asked[-1] == api.asked[-2]
    saved: list[Any] = []
    api.run(account.point(number, OURS, saved.append))
    library.incoming_phone_numbers(found.sid).update(
        voice_url=OURS.webhook,
        voice_method="POST",
        voice_fallback_url="",
        status_callback=OURS.status,
        status_callback_method="POST",
    )
    assert api.asked[-1] == api.asked[-2]
    assert library.incoming_phone_numbers(found.sid).fetch().voice_url == OURS.webhook
    api.run(account.restore(saved[0], OURS))
    assert api.asked[-2] == api.asked[-3], "it is looked at before"
    ours = api.asked[-1]
    library.incoming_phone_numbers(found.sid).update(
        voice_url=BEFORE["VoiceUrl"],
        voice_method="GET",
        voice_fallback_url=BEFORE["VoiceFallbackUrl"],
        voice_fallback_method="POST",
        status_callback="",
        status_callback_method="POST",
    )
    assert api.asked[-1] == ours


def test_the_library_turns_pages_as_we_do(api: Api, account: Account, library: Client) -> None:
    for n in range(120):
        api.account.add_number(f"+1555040{n:04}")
    listed = library.incoming_phone_numbers.list(page_size=100)
    n_asked = len(api.asked)
    assert [each.number for each in api.run(account.numbers())] == [each.phone_number for each in listed]
    assert api.asked[n_asked:] == api.asked[:n_asked]
    assert n_asked == 2


def test_the_library_places_reads_redirects_and_ends_calls_as_we_do(
    api: Api, account: Account, library: Client
) -> None:
    commands: list[tuple[str, str]] = []
    api.account.on_command = lambda call, kind, argument: commands.append((kind, argument))
    made = library.calls.create(
        to=THEIRS,
        from_=NUMBER,
        url=CALL.webhook_url,
        method="POST",
        status_callback=CALL.status_url,
        status_callback_method="POST",
        status_callback_event=["initiated", "ringing", "answered", "completed"],
        timeout=30,
        time_limit=600,
        machine_detection="DetectMessageEnd",
        async_amd="true",
        async_amd_status_callback=CALL.machine_url,
        async_amd_status_callback_method="POST",
    )
    assert (made.status, made.to, made._from, made.direction) == ("queued", THEIRS, NUMBER, "outbound-api")
    ours = place(api, account)
    assert api.asked[-1] == api.asked[-2]
    theirs = api.account.calls[made.sid]
    for name in ("webhook", "status", "machine", "reports", "detection", "ring_timeout_s", "time_limit_s"):
        assert getattr(ours, name) == getattr(theirs, name), name
    theirs.stage, theirs.answered_by = "answered", "human"
    fetched = library.calls(made.sid).fetch()
    assert (fetched.status, fetched.answered_by, fetched.date_created) == (
        "in-progress",
        "human",
        datetime.fromtimestamp(NOW, UTC),
    )
    api.run(account.look_up(made.sid))
    assert api.asked[-1] == api.asked[-2]
    library.calls(made.sid).update(url="https://voice.example.com/next", method="GET")
    twiml = '<?xml version="1.0" encoding="UTF-8"?>\n<Response><Dial><Number>+15550100003</Number></Dial></Response>'
    library.calls(made.sid).update(twiml=twiml)
    api.run(account.transfer(theirs.call, "+15550100003"))
    assert api.asked[-1] == api.asked[-2]
    assert commands == [("update", "https://voice.example.com/next"), *[("transfer", "+15550100003")] * 2]
    library.calls(made.sid).update(status="completed")
    assert api.run(account.hang_up(theirs.call)) is False
    assert api.asked[-1] == api.asked[-2]
    assert theirs.stage == "completed"


def test_the_library_reads_the_account_and_what_was_recorded_as_we_do(
    api: Api, account: Account, library: Client
) -> None:
    api.run(account.describe())
    assert library.api.v2010.accounts(SID).fetch().type == "Full"
    assert api.asked[0] == api.asked[1]
    call = place(api, account)
    call_id = call.call.call_id
    api.account.add_event(call_id, Callback("https://voice.example.com/"), 200)
    api.account.add_error(call_id, 11200, "Bad")
    api.account.end(call)
    api.run(account.evidence(call_id))
    _, events, notifications, alerts = api.asked[-4:]
    (event,) = library.calls(call_id).events.list(page_size=100)
    assert event.response["response_code"] == 200
    assert api.asked[-1] == events
    (notification,) = library.calls(call_id).notifications.list(page_size=100)
    assert (notification.error_code, notification.log) == ("11200", "0")
    assert api.asked[-1] == notifications
    began, ended = (datetime.fromtimestamp(at, UTC) for at in (NOW - 300, NOW + 300))
    (alert,) = library.monitor.v1.alerts.list(start_date=began, end_date=ended, page_size=100)
    assert (alert.resource_sid, alert.error_code, alert.sid) == (call_id, "11200", notification.sid)
    assert api.asked[-1] == alerts


def test_the_library_turns_pages_of_alerts(api: Api, account: Account, library: Client) -> None:
    call_id = place(api, account).call.call_id
    for _ in range(130):
        api.account.add_error(call_id, 11200, "Bad")
    assert len(library.monitor.v1.alerts.list(page_size=100)) == 130
    assert len(api.run(account.evidence(call_id))) == 130


def test_the_library_understands_refusals(api: Api, library: Client) -> None:
    api.account.is_trial = True
    with pytest.raises(TwilioRestException) as raised:
        library.calls.create(to=THEIRS, from_=NUMBER, url=CALL.webhook_url)
    assert (raised.value.status, raised.value.code) == (400, 21219)
    with pytest.raises(TwilioRestException) as raised:
        library.calls("CA" + "9" * 32).fetch()
    assert (raised.value.status, raised.value.code) == (404, 20404)
    api.account.too_many = 1
    with pytest.raises(TwilioRestException) as raised:
        library.incoming_phone_numbers("PN1").fetch()
    assert (raised.value.status, raised.value.code) == (429, 20429)


# Over the network


@pytest.fixture
def served(api: Api) -> Iterator[str]:
    """Serve the account on the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            url = f"http://127.0.0.1:{self.server.server_port}{self.path}"
            answer = api.answer(WebhookRequest(self.command, url, headers, body))
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(answer.body.encode()))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body.encode())

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_all_hosts_are_where_the_base_url_says_and_too_many_requests_are_repeated(api: Api, served: str) -> None:
    account = load_account("twilio", {**TOKEN, "TWILIO_API_BASE_URL": f"{served}/"})
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def calls() -> None:
        api.account.too_many, api.account.retry_after_s = 2, 7
        placed = await carry_out(account.dial(CALL), sleep=sleep)
        assert waited == [7, 7]
        assert len(api.account.calls) == 1
        api.account.add_error(placed.call_id, 31920, "")
        (error,) = await carry_out(account.evidence(placed.call_id), sleep=sleep)
        assert error.code == "31920"
        api.account.too_many = 9
        with pytest.raises(ApiError) as raised:
            await carry_out(account.cancel(placed), sleep=sleep)
        assert (raised.value.kind, raised.value.code) == ("rate-limit", "20429")

    asyncio.run(calls())
    assert {asked.url.split("/")[2] for asked in api.asked} == {served.removeprefix("http://")}


# Reports on placed calls


@pytest.mark.parametrize(
    ("golden", "stage", "duration_s"),
    [
        ("status-initiated", "queued", 0.0),
        ("status-ringing", "ringing", 0.0),
        ("status-in-progress", "answered", 0.0),
        ("status-completed", "completed", 45.2),
        ("status-busy", "busy", 0.0),
        ("status-no-answer", "no-answer", 0.0),
        ("status-canceled", "canceled", 0.0),
        ("status-failed", "failed", 0.0),
    ],
)
def test_the_simulated_report_on_a_placed_call_is_the_documented_one(
    golden: str, stage: Any, duration_s: float
) -> None:
    documented = json.loads((GOLDEN / f"{golden}.json").read_text())
    fields = documented["fields"]
    call = Call("twilio", fields["CallSid"], "", fields["AccountSid"], fields["From"], fields["To"], "outbound")
    at = Callback("https://voice.example.com/status")
    simulator, server = load_simulator("twilio", TOKEN), load_server("twilio", TOKEN)
    report = simulator.status_webhook(call, at, stage, duration_s=duration_s, now=NOW)
    assert report is not None
    sent = report.fields
    shared = fields.keys() & sent.keys()
    assert {name: sent[name] for name in shared} == {name: fields[name] for name in shared}
    assert {name for name in fields if name not in sent} <= {
        *("RecordingUrl", "RecordingSid", "RecordingDuration", "ErrorCode", "ErrorMessage"),
    }
    server.verify(simulator.sign(report, now=NOW), now=NOW)
    update = server.read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.call_id, update.stage, update.ended) == (
        call.call_id,
        stage,
        documented["update"].get("ended", False),
    )


@pytest.mark.parametrize(
    ("golden", "answered_by", "greeting_ended"),
    [
        ("machine-detection", "machine", False),
        ("machine-detection-greeting-end", "machine", True),
        ("machine-detection-human", "human", False),
        ("machine-detection-fax", "fax", False),
        ("machine-detection-unknown", "unknown", False),
    ],
)
def test_the_simulated_report_of_machine_detection_is_the_documented_one(
    golden: str, answered_by: Any, greeting_ended: bool
) -> None:
    fields = json.loads((GOLDEN / f"{golden}.json").read_text())["fields"]
    call = Call("twilio", fields["CallSid"], "", fields["AccountSid"], NUMBER, THEIRS, "outbound")
    report = load_simulator("twilio", TOKEN).status_webhook(
        call,
        Callback("https://voice.example.com/machine"),
        "answered",
        answered_by=answered_by,
        greeting_ended=greeting_ended,
        now=NOW,
    )
    assert report is not None
    assert {**report.fields, "MachineDetectionDuration": fields["MachineDetectionDuration"]} == fields
    update = load_server("twilio", TOKEN).read_webhook(report)
    assert isinstance(update, CallUpdate)
    assert (update.answered_by, update.greeting_ended, update.stage) == (answered_by, greeting_ended, None)
