"""
Strangers at the webhook: floods, replays, races and forged reports.

What a signed webhook is good for, what a flood costs and how a server drains is asked of processes; what settings
change, of servers in this one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import json
import re
import signal
import socket
import string
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import websockets

from tests.attacks.http_client import web
from tests.process import ServerProcess, server_process
from tests.providers.companies import load_provider
from tests.runner.carrier import FORM, dialled
from tests.runner.conftest import RunningServer, serving
from wsvoice.call import Call
from wsvoice.cli.output import Output
from wsvoice.cli.run import show_banner
from wsvoice.config import RunConfig
from wsvoice.errors import ConfigError
from wsvoice.providers import PROVIDERS
from wsvoice.providers.base import WebhookRequest
from wsvoice.runner.server import Ready

SEED = bytes(range(32))
SIGNING = [name for name in PROVIDERS if load_provider(name).signs]
ANNOUNCED = [name for name in PROVIDERS if load_provider(name).has_webhook]
FLOOD = 3000
FLOOD_CONNECTIONS = 20

WAITS = """
    async def bot(runner_args):
        async for _ in runner_args.websocket.iter_text():
            pass
    """

Serve = Callable[..., RunningServer]
Server = ServerProcess | RunningServer


async def waits(runner_args: Any) -> None:
    async for _ in runner_args.websocket.iter_text():
        pass


async def lingers(runner_args: Any) -> None:
    await asyncio.Event().wait()


def carrier_and_secrets(name: str) -> tuple[Any, dict[str, str]]:
    """Return a provider that signs as the company does, and what its customer's server knows."""
    carrier, bot = load_provider(name).test_credentials(SEED)
    return load_provider(name, carrier), bot


def every_secret() -> dict[str, str]:
    return {key: value for name in SIGNING for key, value in carrier_and_secrets(name)[1].items()}


def webhook(
    server: Server, name: str, number: int, path: str | None = None, *, to_number: str = "+15550100002"
) -> WebhookRequest:
    """Return a signed webhook of a new call; another `number`, another call."""
    carrier, _ = carrier_and_secrets(name)
    call = new_call(carrier, number, to_number)
    plain = carrier.webhook(call, f"{server.url}{path or name}")
    return carrier.sign(plain, now=time.time())


def new_call(carrier: Any, number: int, to_number: str = "+15550100002") -> Call:
    seed = number.to_bytes(32, "big")
    return carrier.new_call(from_number="+15550100001", to_number=to_number, parameters={}, seed=seed)


def send(request: WebhookRequest, **headers: str) -> httpx.Response:
    return web.request(
        request.method, request.url, content=request.body, headers={**request.headers, **headers}, timeout=20
    )


def twilio(server: Server, call_sid: str, path: str = "twilio", **fields: str) -> WebhookRequest:
    """Return a signed webhook of Twilio's with fields of the test's own."""
    carrier, _ = carrier_and_secrets("twilio")
    form = {**FORM, "CallSid": call_sid, **fields}
    headers = {"content-type": "application/x-www-form-urlencoded"}
    plain = WebhookRequest("POST", f"{server.url}{path}", headers, urlencode(form).encode())
    return carrier.sign(plain, now=time.time())


def stream_url(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    match = re.search(r'<Stream url="([^"]+)"', answer.text)
    assert match, answer.text
    return match[1]


def sid(number: int) -> str:
    return f"CA{number:032x}"


def is_answered(answer: httpx.Response) -> bool:
    return answer.status_code == 200 and "<Stream" in answer.text


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Every provider at its path, each with its secret."""
    with server_process(tmp_path_factory.mktemp("signed"), WAITS, "--max-calls", "100", **every_secret()) as server:
        yield server


def at_once(count: int, act: Callable[[], Any]) -> list[Any]:
    """Do the same thing in many threads, as nearly at the same moment as threads can."""
    barrier = threading.Barrier(count)

    def one(_: int) -> Any:
        barrier.wait(10)
        return act()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


class TestReplays:
    @pytest.mark.parametrize("name", SIGNING)
    def test_a_captured_webhook_is_good_for_nothing(self, signed: ServerProcess, name: str) -> None:
        captured = webhook(signed, name, 1)
        assert send(captured).status_code == 200
        for headers in ({}, {"I-Twilio-Idempotency-Token": "another"}, {"X-Forwarded-For": "192.0.2.1"}):
            assert send(captured, **headers).status_code == 403

    def test_twilios_idempotency_token_admits_nobody(self, signed: ServerProcess) -> None:
        captured = twilio(signed, sid(2))
        assert send(captured, **{"I-Twilio-Idempotency-Token": "one"}).status_code == 200
        assert send(captured, **{"I-Twilio-Idempotency-Token": "one"}).status_code == 403
        assert send(captured, **{"I-Twilio-Idempotency-Token": "two"}).status_code == 403

    @pytest.mark.parametrize("name", SIGNING)
    def test_a_race_has_one_winner(self, signed: ServerProcess, name: str) -> None:
        captured = webhook(signed, name, 3)
        statuses = at_once(12, lambda: send(captured).status_code)
        assert sorted(statuses) == [200] + [403] * 11

    def test_a_race_that_waits_for_the_api_has_one_winner(self, serve: Serve) -> None:
        carrier, secrets = carrier_and_secrets("telnyx")
        with slow_api(0.5) as (api_url, requests):
            credentials = {**secrets, "TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": api_url}
            server = serve(waits, transport="telnyx", credentials=credentials)
            quirks = {"webhook": "call-control"}
            plain = carrier.deviating(quirks).webhook(new_call(carrier, 1), server.url)
            event = carrier.sign(plain, now=time.time())
            statuses = at_once(8, lambda: send(event).status_code)
            assert sorted(statuses) == [200] + [403] * 7
            assert len(requests) == 1

    def test_what_failed_may_be_tried_again(self, serve: Serve) -> None:
        carrier, secrets = carrier_and_secrets("telnyx")
        with slow_api(0.0, 500, 200) as (api_url, _):
            credentials = {**secrets, "TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": api_url}
            server = serve(waits, transport="telnyx", max_calls=1, credentials=credentials)
            quirks = {"webhook": "call-control"}
            plain = carrier.deviating(quirks).webhook(new_call(carrier, 1), server.url)
            event = carrier.sign(plain, now=time.time())
            assert [send(event).status_code for _ in range(3)] == [502, 200, 403]

    def test_a_redirect_comes_back_once_for_each_stream(self, signed: ServerProcess) -> None:
        """Twilio asks again with equal fields, so with an equal signature, when a document redirects to its own URL."""
        request = twilio(signed, sid(4), CallStatus="in-progress")
        tokens = [{"I-Twilio-Idempotency-Token": str(number)} for number in range(4)]
        url = stream_url(send(request, **tokens[0]))

        async def stream(url: str) -> None:
            async with dialled(url, sid(4)) as carrier:
                # While the stream is there nothing is to be repeated.
                assert (await asyncio.to_thread(send, request, **tokens[1])).status_code == 403
                await carrier.hang_up()

        for token in tokens[1:3]:
            asyncio.run(stream(url))
            url = stream_url(send(request, **token))
            assert send(request, **tokens[3]).status_code == 403
        asyncio.run(stream(url))
        for token in tokens[:3]:
            assert send(request, **token).status_code == 403
        # Once the call is reported over, not even a new one does.
        assert send(twilio(signed, sid(4), CallStatus="completed")).is_success
        assert send(request, **tokens[3]).status_code == 403

    def test_signalwire_sends_no_token_and_may_come_back(self, signed: ServerProcess) -> None:
        request = webhook(signed, "signalwire", 5)
        call_id = dict(request.form)["CallSid"]
        url = stream_url(send(request))
        assert send(request).status_code == 403

        async def stream() -> None:
            async with dialled(url, call_id) as carrier:
                await carrier.hang_up()

        asyncio.run(stream())
        assert is_answered(send(request))
        assert send(request).status_code == 403


class TestOtherWords:
    """Signed webhooks that a stranger has caught, and sends again in other words."""

    def test_plivos_older_signature_lets_no_other_fields_in(self, signed: ServerProcess) -> None:
        caught = webhook(signed, "plivo", 70)
        headers = {name: value for name, value in caught.headers.items() if "signature-v3" not in name}
        older = dataclasses.replace(caught, headers=headers)
        forged = b"CallUUID=12345678-1234-1234-1234-123456789abc&CallStatus=ringing&Event=StartApp&From=1&To=2"
        for request in (
            dataclasses.replace(older, body=forged),
            dataclasses.replace(older, method="GET", body=b"", url=f"{older.url}?{forged.decode()}"),
            older,
        ):
            assert send(request).status_code == 403
        assert [send(caught).status_code for _ in range(2)] == [200, 403]

    def test_no_text_moves_from_plivos_form_to_its_nonce(self, signed: ServerProcess) -> None:
        # What stands last of the sorted fields is followed by a dot and the nonce.
        caught = webhook(signed, "plivo", 71, to_number="sip:a.b")
        nonce = caught.headers["x-plivo-signature-v3-nonce"]
        assert b"To=sip%3Aa.b" in caught.body
        headers = {**caught.headers, "x-plivo-signature-v3-nonce": f"b.{nonce}"}
        moved = dataclasses.replace(caught, headers=headers, body=caught.body.replace(b"To=sip%3Aa.b", b"To=sip%3Aa"))
        assert [send(each).status_code for each in (moved, caught, moved)] == [403, 200, 403]

    def test_telnyxs_signature_passes_once_however_it_is_written(self, signed: ServerProcess) -> None:
        caught = webhook(signed, "telnyx", 72)
        assert send(caught).status_code == 200
        signature = caught.headers["telnyx-signature-ed25519"]
        letters = string.ascii_letters + string.digits + "+/"
        written = [{"telnyx-signature-ed25519": f"{signature[:-3]}{last}=="} for last in letters]
        assert [send(caught, **headers).status_code for headers in written] == [403] * 64


class TestReports:
    """A call that is over frees its place; whoever only says so frees nothing."""

    @pytest.fixture(scope="class")
    def full(self) -> Iterator[RunningServer]:
        _, secrets = carrier_and_secrets("twilio")
        with pytest.MonkeyPatch.context() as patch, serving(patch) as serve:
            yield serve(waits, max_calls=1, credentials=secrets)

    def test_completed_frees_the_reserved_place(self, full: RunningServer) -> None:
        assert is_answered(send(twilio(full, sid(1))))
        assert "busy" in send(twilio(full, sid(2))).text
        over = twilio(full, sid(1), CallStatus="completed")
        forged = WebhookRequest("POST", over.url, {**over.headers, "x-twilio-signature": "AAAA"}, over.body)
        unsigned = WebhookRequest("POST", over.url, {"content-type": over.headers["content-type"]}, over.body)
        for request in (forged, unsigned):
            assert send(request).status_code == 403
        assert "busy" in send(twilio(full, sid(3))).text
        # The signed one of another call changes nothing either.
        assert send(twilio(full, sid(9), CallStatus="completed")).is_success
        assert "busy" in send(twilio(full, sid(4))).text
        assert send(over).is_success
        assert full.lines(sid(1), "Twilio reports completed")
        answer = send(twilio(full, sid(5)))
        assert is_answered(answer)
        assert send(twilio(full, sid(5), CallStatus="completed")).is_success

    def test_a_running_call_keeps_its_place(self, full: RunningServer) -> None:
        url = stream_url(send(twilio(full, sid(10))))

        async def main() -> None:
            async with dialled(url, sid(10)) as carrier:
                over = twilio(full, sid(10), CallStatus="completed")
                assert (await asyncio.to_thread(send, over)).is_success
                assert "busy" in (await asyncio.to_thread(send, twilio(full, sid(11)))).text
                await carrier.speak(bytes(320 * 5))
                assert carrier.socket.close_code is None
                await carrier.hang_up()

        asyncio.run(main())
        assert is_answered(send(twilio(full, sid(12))))
        send(twilio(full, sid(12), CallStatus="completed"))

    def test_a_running_call_takes_no_second_place(self, serve: Serve) -> None:
        """Two places, one running call: what is reported of it, and a redirect, leave the second one free."""
        _, secrets = carrier_and_secrets("twilio")
        server = serve(waits, max_calls=2, credentials=secrets)
        url = stream_url(send(twilio(server, sid(20))))

        async def main() -> None:
            async with dialled(url, sid(20)) as carrier:
                redirected = twilio(server, sid(20), CallStatus="in-progress")
                next_url = stream_url(await asyncio.to_thread(send, redirected))
                second = twilio(server, sid(21))
                assert is_answered(await asyncio.to_thread(send, second))
                assert "busy" in (await asyncio.to_thread(send, twilio(server, sid(22)))).text
                async with dialled(next_url, sid(20)) as after:
                    await carrier.hang_up()
                    assert "busy" in (await asyncio.to_thread(send, twilio(server, sid(23)))).text
                    await after.hang_up()

        asyncio.run(main())
        assert is_answered(send(twilio(server, sid(24))))


class TestPlaces:
    def test_webhooks_that_never_dial_block_nobody(self, serve: Serve) -> None:
        server = serve(waits, max_calls=10)
        for number in range(30):
            web.post(server.url, data={**FORM, "CallSid": sid(number)})

        async def main() -> None:
            # As many real callers as there are places that strangers cannot keep.
            urls = []
            for number in range(100, 108):
                answer = await asyncio.to_thread(web.post, server.url, data={**FORM, "CallSid": sid(number)})
                urls.append((stream_url(answer), sid(number)))
            async with AsyncExitStack() as stack:
                for each in [await stack.enter_async_context(dialled(*each)) for each in urls]:
                    await each.hang_up()

        asyncio.run(main())

    def test_streams_that_never_start_leave_half_of_the_places(self, serve: Serve) -> None:
        """Nobody signs, and each says that we have dialled it, which some carriers' streams wait for."""
        server = serve(waits, max_calls=10, verify="off")

        async def main() -> None:
            async with AsyncExitStack() as stack:
                refused = []
                for number in range(10):
                    form = {**FORM, "CallSid": sid(number), "Direction": "outbound-api"}
                    answer = await asyncio.to_thread(web.post, server.url, data=form)
                    try:
                        await stack.enter_async_context(dialled(stream_url(answer), sid(number), start=False))
                    except websockets.InvalidStatus as error:
                        refused.append(error.response.status_code)
                assert refused == [503] * 5
                assert web.get(f"{server.url}healthz").json()["calls"] == 5

        asyncio.run(main())

    def test_a_redirect_is_answered_while_the_server_drains(self, tmp_path: Path) -> None:
        """A call that is running may finish, and that may take it another stream."""
        with server_process(tmp_path, WAITS, "-t", "twilio", "--max-calls", "2") as server:
            request = {**FORM, "CallSid": sid(1)}
            url = stream_url(web.post(server.url, data=request))

            async def main() -> None:
                async with dialled(url, sid(1)) as carrier:
                    server.signal(signal.SIGTERM)
                    await asyncio.to_thread(server.logged, "no new calls are taken")
                    other = await asyncio.to_thread(web.post, server.url, data={**FORM, "CallSid": sid(2)})
                    assert "busy" in other.text
                    redirected = await asyncio.to_thread(web.post, server.url, data={**request, "Step": "2"})
                    next_url = stream_url(redirected)
                    await carrier.hang_up()
                async with dialled(next_url, sid(1)) as after:
                    await after.speak(bytes(320 * 5))
                    assert after.socket.close_code is None
                    await after.hang_up()

            asyncio.run(main())
            assert server.wait(10) == 0
            assert server.log().count("stream started") == 2

    def test_a_line_is_free_when_it_is_free(self, serve: Serve) -> None:
        """The bot goes on after its call; the next caller does not wait for it."""
        server = serve(lingers, max_calls=1)

        async def call(number: int) -> None:
            answer = await asyncio.to_thread(web.post, server.url, data={**FORM, "CallSid": sid(number)})
            async with dialled(stream_url(answer), sid(number)) as carrier:
                await carrier.hang_up()
            deadline = time.monotonic() + 5
            while web.get(f"{server.url}healthz").json()["calls"]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)

        async def main() -> None:
            for number in range(2):
                await call(number)

        asyncio.run(main())
        # Two bots linger where one call is allowed: that is enough of them.
        assert "busy" in web.post(server.url, data={**FORM, "CallSid": sid(9)}).text

    def test_a_flood_costs_little(self, tmp_path: Path) -> None:
        arguments = ("-t", "twilio", "-x", "voice.example.com", "--verify", "off", "--log-level", "WARNING")
        with server_process(tmp_path, WAITS, *arguments) as server:
            flood(server, FLOOD // 10)
            before_mb, before_s = server.memory_mb(), server.cpu_s()
            waits_s = sorted(flood(server, FLOOD))
            spent_s = server.cpu_s() - before_s
            # 4 KB for each of them.
            assert server.memory_mb() - before_mb < 12
            # A webhook costs as much at the end of the flood as at its beginning.
            assert spent_s / FLOOD < 0.01
            assert len(waits_s) >= 10
            assert waits_s[int(len(waits_s) * 0.9)] < 1
            assert waits_s[-1] < 5
            assert is_answered(web.post(server.url, data={**FORM, "CallSid": sid(1)}))


def flood(server: ServerProcess, count: int) -> list[float]:
    """Post `count` webhooks of different calls and addresses; return how long somebody else waited, each time."""
    done = threading.Event()
    waits_s: list[float] = []

    def ask_meanwhile() -> None:
        while not done.is_set():
            begun = time.monotonic()
            assert web.get(f"{server.url}healthz", timeout=30).status_code == 200
            waits_s.append(time.monotonic() - begun)
            done.wait(0.02)

    asking = threading.Thread(target=ask_meanwhile)
    asking.start()
    try:
        with ExitStack() as stack:
            address = ("127.0.0.1", server.port)
            lines = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(FLOOD_CONNECTIONS)]
            for begin in range(0, count, FLOOD_CONNECTIONS):
                for number, line in enumerate(lines, begin):
                    body = urlencode({**FORM, "CallSid": sid(1_000_000 + number)}).encode()
                    head = (
                        f"POST / HTTP/1.1\r\nHost: voice.example.com\r\nX-Forwarded-For: 192.0.2.{number % 250}\r\n"
                        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
                    )
                    line.sendall(head.encode() + body)
                for line in lines:
                    answer = b""
                    while b"</Response>" not in answer:
                        piece = line.recv(65536)
                        assert piece, answer
                        answer += piece
    finally:
        done.set()
        asking.join(40)
    return waits_s


class TestAddresses:
    @pytest.mark.parametrize("name", SIGNING)
    def test_a_slash_more_is_the_same_webhook(self, signed: ServerProcess, name: str) -> None:
        """Its signature covers the address as it was asked for; nobody is sent elsewhere."""
        assert send(webhook(signed, name, 40, f"{name}/")).status_code == 200
        assert send(webhook(signed, name, 41, name)).status_code == 200
        assert web.post(f"{signed.url}{name}/").status_code in (400, 401, 403)

    @pytest.mark.parametrize("name", [name for name in SIGNING if name != "telnyx"])
    def test_a_site_may_be_signed_without_its_slash(self, signed: ServerProcess, name: str) -> None:
        carrier, _ = carrier_and_secrets(name)
        plain = carrier.webhook(new_call(carrier, 42), signed.url.rstrip("/"))
        request = carrier.sign(plain, now=time.time())
        assert send(request).status_code == 200

    def test_no_address_is_redirected(self, signed: ServerProcess) -> None:
        for path in ("healthz/", "readyz/", "ws/", "start/", "twilio//"):
            for method in ("GET", "POST"):
                assert web.request(method, signed.url + path).status_code in (403, 404, 405), path

    def test_a_stranger_does_not_learn_how_many_calls_there_are(self, signed: ServerProcess) -> None:
        foreign = [{"X-Forwarded-For": "192.0.2.1"}, {"Host": "voice.example.com"}]
        for path in ("healthz", "readyz"):
            assert "calls" in web.get(signed.url + path).json()
            for headers in foreign:
                answer = web.get(signed.url + path, headers=headers)
                assert answer.status_code == 200
                assert list(answer.json()) == ["status"]

    def test_unsigned_webhooks_come_from_this_machine(self, serve: Serve) -> None:
        """Without a secret what comes by a public address could be anybody's."""
        server = serve(waits, transport=None)
        for name in ANNOUNCED:
            request = webhook(server, name, 1)
            for headers in ({"X-Forwarded-For": "192.0.2.1"}, {"Host": "voice.example.com"}):
                answer = send(request, **headers)
                assert answer.status_code == 403, name
                assert "token" not in answer.text
            assert send(request).status_code == 200, name
        assert server.lines("TWILIO_AUTH_TOKEN")
        assert server.lines("-t exotel")

    @pytest.mark.parametrize(
        ("transport", "words"),
        [
            ("twilio", ["Twilio's webhooks", "TWILIO_AUTH_TOKEN", "the Auth Token on the console's first page"]),
            ("bandwidth", ["BANDWIDTH_WEBHOOK_PASSWORD", "a password that you choose"]),
            (None, ["no provider", "TELNYX_PUBLIC_KEY"]),
        ],
    )
    def test_no_public_address_without_a_secret(self, serve: Serve, transport: str | None, words: list[str]) -> None:
        with pytest.raises(ConfigError) as caught:
            serve(waits, transport=transport, proxy="voice.example.com")
        assert caught.value.exit_code == 2
        said = f"{caught.value.message} {caught.value.hint}"
        assert all(word in said for word in [*words, "--verify off"]), said

    def test_who_signs_nothing_is_served_by_name(self, serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
        settings: dict[str, Any] = {"transport": "exotel", "proxy": "voice.example.com"}
        server = serve(waits, **settings)
        assert send(webhook(server, "exotel", 1, "")).status_code == 200
        ready = Ready(server.url, "https://voice.example.com/", ("exotel",))
        show_banner(Output(), RunConfig(**settings), ready)
        assert "warning: Exotel signs nothing" in capsys.readouterr().err


class TestUpgrades:
    def test_a_signature_that_matches_nothing_is_told(self, signed: ServerProcess) -> None:
        def upgrade(number: int, headers: dict[str, str]) -> None:
            url = stream_url(send(twilio(signed, sid(number))))

            async def main() -> None:
                async with websockets.connect(url, additional_headers=headers):
                    pass

            asyncio.run(main())

        upgrade(60, {"X-Twilio-Signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8="})
        signed.logged("does not match")
        upgrade(61, {})
        lines = [line for line in signed.log().splitlines() if "the stream is accepted although" in line]
        assert [(sid(60)[-4:] in line, "WARNING" in line) for line in lines] == [(True, True)]


@contextmanager
def slow_api(seconds: float, *statuses: int) -> Iterator[tuple[str, list[Any]]]:
    """Play a provider's API, which takes its time for every request; give its URL and the requests."""
    requests: list[Any] = []
    left = list(statuses)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            time.sleep(seconds)
            self.send_response(left.pop(0) if left else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v2", requests
        finally:
            server.shutdown()
            thread.join(10)
