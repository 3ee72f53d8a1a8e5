"""The fake REST API, asked by the providers' own clients."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import httpx
import plivo
import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from tests.providers.companies import load_provider
from wsvoice.dial import TimelineEvent
from wsvoice.dial.clock import Clock
from wsvoice.dial.fake_api_server import FakeRestApi
from wsvoice.dial.timeline import Timeline
from wsvoice.providers.base import Callback, Command

SEED = bytes(range(32))
ACCOUNT = "AC" + "2" * 32
CREDENTIALS = {
    "twilio": {"TWILIO_AUTH_TOKEN": "secret"},
    "signalwire": {"SIGNALWIRE_PROJECT_ID": "project", "SIGNALWIRE_API_TOKEN": "secret"},
    "telnyx": {"TELNYX_API_KEY": "KEY1"},
    "plivo": {"PLIVO_AUTH_ID": "MAXXXXXXXXXXXXXXXXXX", "PLIVO_AUTH_TOKEN": "secret"},
    "exotel": {},
}


class Api:
    """The API, what it was told and what it told."""

    def __init__(self, name: str = "twilio", credentials: dict[str, str] | None = None) -> None:
        self.provider = load_provider(name, CREDENTIALS[name] if credentials is None else credentials)
        self.call = self.provider.new_call(
            from_number="+15550100001", to_number="+15550100002", parameters={}, seed=SEED
        )
        self.commands: list[Command] = []
        self.events: list[TimelineEvent] = []

    def serve(self) -> FakeRestApi:
        timeline = Timeline(self.events.append, Clock())
        api = FakeRestApi(self.provider, timeline)
        api.add_call(self.call, self.commands.append)
        return api

    def ask(self, use: Callable[[str], Any]) -> Any:
        """Serve the API while `use` runs in a thread with its address."""

        async def serve() -> Any:
            async with self.serve() as served:
                served.answer_call(self.call)
                return await asyncio.to_thread(use, served.url)

        return asyncio.run(serve())

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        # The API has no TLS; reading the certificates of this machine takes longer than all the rest.
        response = self.ask(lambda url: httpx.request(method, url + path, trust_env=False, verify=False, **options))
        assert isinstance(response, httpx.Response)
        return response


class TestAccount:
    """What a bot does with its account in a test call reaches nobody."""

    def test_a_call_that_it_places_is_taken_and_said(self) -> None:
        api = Api(credentials={"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": "secret"})

        def place(url: str) -> Any:
            client = twilio(url)
            numbers = client.incoming_phone_numbers.list(limit=5)
            placed = client.calls.create(
                to="+15550100009", from_=numbers[0].phone_number, url="https://bot.example.com/"
            )
            return numbers[0].phone_number, placed.status, client.calls(placed.sid).fetch().to

        assert api.ask(place) == ("+15550100002", "queued", "+15550100009")
        notes = [each.text for each in api.events]
        assert "the bot places a call to +15550100009: nobody is rung in a test call" in notes
        assert api.commands == []

    def test_another_number_is_not_its_own(self) -> None:
        api = Api(credentials={"TWILIO_ACCOUNT_SID": ACCOUNT, "TWILIO_AUTH_TOKEN": "secret"})

        def place(url: str) -> None:
            twilio(url).calls.create(to="+15550100009", from_="+15550199999", url="https://bot.example.com/")

        with pytest.raises(TwilioRestException) as refused:
            api.ask(place)
        assert refused.value.code == 21210


# Twilio


def twilio(url: str, password: str = "secret") -> Client:
    client = Client(ACCOUNT, password)
    client.api.base_url = url
    return client


def test_twilios_own_client_looks_at_the_call() -> None:
    api = Api()
    call = api.ask(lambda url: twilio(url).calls(api.call.call_id).fetch())
    assert (call.sid, call.status, call.direction) == (api.call.call_id, "in-progress", "inbound")
    assert (call._from, call.to) == (api.call.from_number, api.call.to_number)
    assert api.commands == []


@pytest.mark.parametrize(
    ("update", "command"),
    [
        ({"status": "completed"}, Command("hang-up", "")),
        ({"twiml": "<Response/>"}, Command("update", "", document=b"<Response/>")),
        ({"url": "https://h/a?b=1"}, Command("update", "", callback=Callback("https://h/a?b=1", "POST"))),
        ({"url": "https://h/a", "method": "GET"}, Command("update", "", callback=Callback("https://h/a", "GET"))),
    ],
)
def test_twilios_own_client_updates_the_call(update: dict[str, str], command: Command) -> None:
    api = Api()
    call = api.ask(lambda url: twilio(url).calls(api.call.call_id).update(**update))
    assert call.status == ("completed" if "status" in update else "in-progress")
    (told,) = api.commands
    assert told.call_id == api.call.call_id
    assert (told.kind, told.document, told.callback) == (command.kind, command.document, command.callback)


@pytest.mark.parametrize(
    ("call_id", "password", "update", "status", "code"),
    [
        ("CA" + "3" * 32, "secret", {"status": "completed"}, 404, 20404),
        ("", "wrong", {"status": "completed"}, 401, 20003),
        ("", "secret", {"status": "in-progress"}, 400, 20001),
        ("", "secret", {"url": "mailto:x"}, 400, 20001),
    ],
)
def test_twilios_own_client_reads_the_errors(
    call_id: str, password: str, update: dict[str, str], status: int, code: int
) -> None:
    api = Api()
    with pytest.raises(TwilioRestException) as caught:
        api.ask(lambda url: twilio(url, password).calls(call_id or api.call.call_id).update(**update))
    assert (caught.value.status, caught.value.code) == (status, code)
    assert api.commands == []
    assert len(api.events) == 1


def test_signalwire_has_twilios_resource_at_a_path_of_its_own() -> None:
    api = Api("signalwire")
    path = f"/api/laml/2010-04-01/Accounts/project/Calls/{api.call.call_id}.json"
    assert api.request("GET", path, auth=("project", "secret")).json()["status"] == "in-progress"
    assert api.request("POST", path, auth=("other", "secret"), data={"Status": "completed"}).status_code == 401
    assert api.request("POST", path, auth=("project", "secret"), data={"Status": "completed"}).status_code == 200
    assert [command.kind for command in api.commands] == ["hang-up"]


# Telnyx


def telnyx_client(url: str, key: str = "KEY1") -> Any:
    # Here, for it takes two seconds, and every worker collects every test.
    import telnyx

    return telnyx.Telnyx(api_key=key, public_key="x", base_url=url, max_retries=0)


def test_telnyxs_own_client_controls_the_call() -> None:
    api = Api("telnyx")

    def use(url: str) -> list[Any]:
        client = telnyx_client(url)
        actions = client.calls.actions
        return [
            actions.transfer(api.call.call_id, to="+15550100009").data,
            actions.send_dtmf(api.call.call_id, digits="1w2#").data,
            actions.hangup(api.call.call_id).data,
        ]

    assert [data.result for data in api.ask(use)] == ["ok", "ok", "ok"]
    transfer, digits, hang_up = api.commands
    assert (transfer.kind, transfer.to) == ("transfer", "+15550100009")
    assert (digits.kind, digits.digits) == ("digits", "1w2#")
    assert hang_up.kind == "hang-up"


def test_telnyxs_own_client_looks_at_the_call() -> None:
    api = Api("telnyx")
    status = api.ask(lambda url: telnyx_client(url).calls.retrieve_status(api.call.call_id)).data
    assert (status.call_control_id, status.is_alive) == (api.call.call_id, True)


def test_telnyxs_own_client_updates_a_call_of_texml() -> None:
    api = Api("telnyx")

    def use(url: str) -> Any:
        calls = telnyx_client(url).texml.accounts.calls
        calls.update(api.call.call_id, account_sid="a", texml="<Response/>")
        calls.update(api.call.call_id, account_sid="a", url="https://h/next", method="GET")
        return calls.retrieve(api.call.call_id, account_sid="a")

    call = api.ask(use)
    assert (call.sid, call.status) == (api.call.call_id, "in-progress")
    document, url = api.commands
    assert (document.kind, document.document) == ("update", b"<Response/>")
    assert (url.kind, url.callback) == ("update", Callback("https://h/next", "GET"))


def test_telnyxs_own_client_reads_the_errors() -> None:
    import telnyx

    api = Api("telnyx")

    def use(url: str) -> list[Any]:
        caught: list[Any] = []
        for key, call_id, kind in (
            ("KEY1", "v3:other", telnyx.NotFoundError),
            ("KEY2", api.call.call_id, telnyx.AuthenticationError),
        ):
            with pytest.raises(kind) as error:
                telnyx_client(url, key).calls.actions.hangup(call_id)
            caught.append(error.value.body["errors"][0]["code"])
        with pytest.raises(telnyx.UnprocessableEntityError):
            telnyx_client(url).calls.actions.send_dtmf(api.call.call_id, digits="press one")
        return caught

    assert api.ask(use) == ["10005", "10009"]
    assert api.commands == []


# Plivo


def test_plivos_own_client_controls_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api("plivo")
    auth = (CREDENTIALS["plivo"]["PLIVO_AUTH_ID"], "secret")

    def use(url: str) -> list[Any]:
        client = plivo.RestClient(*auth)
        send = client.session.send

        def redirected(request: Any, **options: Any) -> Any:
            # The library has no setting for its address.
            request.url = url + "/v1" + request.url.partition("/v1")[2]
            return send(request, **options)

        monkeypatch.setattr(client.session, "send", redirected)
        calls = client.calls
        return [
            calls.get(api.call.call_id),
            calls.update(api.call.call_id, legs="aleg", aleg_url="https://h/next", aleg_method="GET"),
            calls.send_digits(api.call.call_id, digits="12#"),
            calls.delete(api.call.call_id),
        ]

    live, transferred, digits, _ = api.ask(use)
    assert (live.call_uuid, live.call_status) == (api.call.call_id, "in-progress")
    assert (live["from"], live.to) == ("15550100001", "15550100002")
    assert transferred.message == "call transferred"
    assert digits.message == "digits sent"
    update, pressed, hang_up = api.commands
    assert (update.kind, update.callback) == ("update", Callback("https://h/next", "GET"))
    assert (pressed.kind, pressed.digits) == ("digits", "12#")
    assert (hang_up.kind, hang_up.call_id) == ("hang-up", api.call.call_id)


@pytest.mark.parametrize(
    ("method", "path", "json_", "password", "status"),
    [
        ("DELETE", "Call/other/", None, "secret", 404),
        ("DELETE", "Call/{}/", None, "wrong", 401),
        ("POST", "Call/{}/", {"legs": "aleg"}, "secret", 400),
        ("POST", "Call/{}/", {"legs": "bleg", "bleg_url": "https://h/"}, "secret", 400),
        ("POST", "Call/{}/DTMF/", {"digits": "one"}, "secret", 400),
        ("POST", "Call/{}/Record/", {}, "secret", 404),
        ("POST", "Call/", {"to": "15550100009"}, "secret", 400),
        ("PUT", "Call/{}/", {}, "secret", 404),
    ],
)
def test_what_plivo_refuses(method: str, path: str, json_: Any, password: str, status: int) -> None:
    api = Api("plivo")
    auth = (CREDENTIALS["plivo"]["PLIVO_AUTH_ID"], password)
    path = f"/v1/Account/{auth[0]}/{path.format(api.call.call_id)}"
    response = api.request(method, path, json=json_, auth=auth)
    assert response.status_code == status
    assert response.json().keys() == {"api_id", "error"}
    assert api.commands == []


# All


@pytest.mark.parametrize("name", CREDENTIALS)
def test_anything_else_is_not_there(name: str) -> None:
    api = Api(name, {})
    for method, path in (("GET", "/"), ("POST", "/v2/conferences"), ("DELETE", "/2010-04-01/Accounts/a/Calls/b.json")):
        response = api.request(method, path)
        assert response.status_code == 404
        assert isinstance(response.json(), dict)
    assert api.commands == []
    assert len(api.events) == 3


def test_credentials_that_nobody_knows_are_not_asked_for() -> None:
    api = Api("twilio", {})
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Calls/{api.call.call_id}.json"
    assert api.request("GET", path).status_code == 200


@pytest.mark.parametrize("header", ["", "Basic", "Basic %%%", "Basic " + b64encode(b"\xff\xfe").decode(), "Bearer x"])
@pytest.mark.parametrize("name", ["twilio", "signalwire", "telnyx", "plivo"])
def test_a_broken_authorization_is_none(name: str, header: str) -> None:
    api = Api(name)
    assert api.request("GET", "/", headers={"authorization": header}).status_code == 401


def test_a_body_may_come_in_chunks() -> None:
    api = Api("twilio")
    path = f"/2010-04-01/Accounts/{ACCOUNT}/Calls/{api.call.call_id}.json"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    form = iter([b"Status=", b"completed"])
    response = api.request("POST", path, content=form, headers=headers, auth=(ACCOUNT, "secret"))
    assert response.status_code == 200
    assert [command.kind for command in api.commands] == ["hang-up"]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort",
    ],
)
def test_what_is_no_request_is_answered_and_forgotten(sent: bytes) -> None:
    async def use() -> bytes:
        async with Api().serve() as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
            writer.write(sent)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer

    head, _, body = asyncio.run(use()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"status": 400}
