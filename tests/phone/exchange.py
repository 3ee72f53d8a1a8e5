"""
The telephone network behind a provider's fake account: it serves the account's REST API, and rings whom that calls.

The media of a call that is answered is spoken by the tests' own dialects. Webhooks and reports are the simulators',
whose form the golden messages hold.
"""

from __future__ import annotations

import asyncio
import audioop
import http.server
import math
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import websockets

from tests.runner.dialects import DIALECTS, Dialect, on_line
from wsvoice.call import ENDED_STAGES, AnsweredBy, Stage
from wsvoice.providers import load_simulator
from wsvoice.providers.base import Answer, Callback, NoStream, StreamRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount, FakeCall


@dataclass(frozen=True)
class Callee:
    """
    Who is called, and what becomes of it.

    Attributes:
        outcome: ``answered``, ``busy``, ``no-answer`` or ``failed``.
        answered_by: What machine detection finds, where it is asked for.
        greeting_s: How long a machine's greeting lasts.
        rings_s: How long it rings.
        stays_s: How long whoever answers stays on the line; longer if the bot says nothing.
        tone_hz: What they say.
    """

    outcome: Stage = "answered"
    answered_by: AnsweredBy = "human"
    greeting_s: float = 0.3
    rings_s: float = 0.05
    stays_s: float = 0.25
    tone_hz: int = 440


@dataclass
class Exchange:
    """
    A provider's API on a port of this machine, and the network behind it.

    Attributes:
        credentials: What its customer needs, the API's address included.
        requests: What was asked of the API.
        heard: What each callee heard, as s16le at the wire's rate, by the call's id.
        commands: Transfers and digits: the call's id, which, and the argument.
        reached: What our server answered to reports: the stage, and the status.
        left_up: How many calls nobody has ended whose stream our server has closed.
        transfers_last_s: How long a call goes on that was transferred.
        answer_delay_s: How long the API takes to answer a request that it has carried out.
    """

    name: str
    account: FakeAccount
    api: Any
    carrier: Any
    url: str = ""
    credentials: dict[str, str] = field(default_factory=dict)
    callees: dict[str, Callee] = field(default_factory=dict)
    requests: list[WebhookRequest] = field(default_factory=list)
    heard: dict[str, bytes] = field(default_factory=dict)
    commands: list[tuple[str, str, str]] = field(default_factory=list)
    reached: list[tuple[str, int]] = field(default_factory=list)
    left_up: int = 0
    transfers_last_s: float = 0.0
    answer_delay_s: float = 0.0
    #: Answers in place of the next requests': a status, headers and a body.
    instead: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    #: How a public address is reached from here; as it is by default.
    route: Callable[[str], str] = lambda url: url
    verify: Any = True
    _threads: list[threading.Thread] = field(default_factory=list)
    _ended: dict[str, _Moment] = field(default_factory=dict)

    # The API

    def answer(self, request: WebhookRequest) -> tuple[int, Mapping[str, str], bytes]:
        self.requests.append(request)
        if self.instead:
            return self.instead.pop(0)
        if not self.api.is_authorised(request):
            refused = self.api.api_error(401, "Authenticate")
            return refused.status, {"content-type": refused.media_type}, refused.body.encode()
        answer = (
            self.account.answer(request)
            or self._answer_command(request)
            or self.api.api_error(404, "The requested resource was not found")
        )
        return answer.status, {"content-type": answer.media_type}, answer.body.encode()

    def _answer_command(self, request: WebhookRequest) -> Answer | None:
        """Carry out what a request asks of a call that goes on."""
        command = self.api.read_command(request)
        call = self.account.calls.get(command.call_id) if command is not None else None
        if command is None or call is None:
            return None
        if command.kind == "hang-up":
            self.account.end(call)
            self.end(call)
        elif command.kind == "update":
            self.command(call, "transfer", command.callback.url if command.callback else command.document.decode())
        elif command.kind in ("transfer", "digits"):
            self.command(call, command.kind, command.to or command.digits)
        answer: Answer = self.api.command_answer(command, call.call, "in-progress")
        return answer

    def asked(self, *needles: str) -> list[WebhookRequest]:
        """The requests in whose method and URL every needle is."""
        return [each for each in self.requests if all(needle in f"{each.method} {each.url}" for needle in needles)]

    # The network

    def ring(self, call: FakeCall) -> None:
        """Play a placed call in a thread of its own."""
        self._ended[call.call.call_id] = _Moment()
        thread = threading.Thread(target=lambda: asyncio.run(self._play(call)), daemon=True)
        self._threads.append(thread)
        thread.start()

    def joined(self, timeout_s: float = 20) -> None:
        """Wait until every call is over."""
        for thread in self._threads:
            thread.join(timeout_s)
            assert not thread.is_alive(), "a call goes on"

    async def _play(self, call: FakeCall) -> None:
        callee = self.callees.get(call.call.to_number, Callee())
        early: asyncio.Task[Any] | None = None
        if call.stream is not None and call.webhook is None:
            early = asyncio.create_task(self._talk(call, call.stream, callee))
        await self._report(call, "queued")
        await self._report(call, "ringing")
        if await self._is_ended(call, callee.rings_s):
            await self._finish(call, call.stage, early)
            return
        if callee.outcome != "answered":
            await self._finish(call, callee.outcome, early)
            return
        began = time.monotonic()
        await self._report(call, "answered")
        detecting = asyncio.create_task(self._detect(call, callee))
        self._answered(call).set()
        talking = early or asyncio.create_task(self._ask_and_talk(call, callee))
        await asyncio.wait({talking})
        await detecting
        if (call.call.call_id, "transfer") in [command[:2] for command in self.commands]:
            await self._is_ended(call, self.transfers_last_s)
        call.duration_s = time.monotonic() - began
        await self._finish(call, call.stage if call.stage in ("canceled", "completed") else "completed", None)
        if error := talking.exception():
            raise error

    def _answered(self, call: FakeCall) -> asyncio.Event:
        events = self.__dict__.setdefault("_answer_events", {})
        event: asyncio.Event = events.setdefault(call.call.call_id, asyncio.Event())
        return event

    async def _finish(self, call: FakeCall, stage: Stage, early: asyncio.Task[Any] | None) -> None:
        if early is not None:
            early.cancel()
            await asyncio.wait({early})
        call.stage = stage
        await self._report(call, stage)

    async def _report(self, call: FakeCall, stage: Stage) -> None:
        if stage not in ENDED_STAGES and call.stage not in ENDED_STAGES:
            call.stage = stage
        if call.status is not None and (not call.reports or stage in call.reports):
            await self._send(call, call.status, stage)

    async def _detect(self, call: FakeCall, callee: Callee) -> None:
        if call.detection == "off" or call.machine is None:
            return
        call.answered_by = callee.answered_by
        await self._send(call, call.machine, "answered", answered_by=callee.answered_by)
        if call.detection == "greeting-end" and callee.answered_by == "machine":
            await asyncio.sleep(callee.greeting_s)
            await self._send(call, call.machine, "answered", answered_by="machine", greeting_ended=True)

    async def _send(self, call: FakeCall, at: Callback, stage: Stage, **details: Any) -> None:
        now = time.time()
        report = self.carrier.status_webhook(call.call, at, stage, duration_s=call.duration_s, now=now, **details)
        if report is None:
            return
        try:
            answer = await self._request(report)
        except httpx.TransportError:
            # The server is gone; a provider tries again, and gives up.
            self.reached.append((stage, 0))
            return
        self.reached.append((stage, answer.status_code))

    async def _ask_and_talk(self, call: FakeCall, callee: Callee) -> None:
        assert call.webhook is not None
        request = self.carrier.webhook(
            replace(call.call, direction="outbound"), call.webhook.url, method=call.webhook.method, now=time.time()
        )
        answer = await self._request(request)
        if answer.status_code != 200:
            self.reached.append(("document", answer.status_code))
            return
        document = self.carrier.read_answer(answer.content, answer.headers.get("content-type", ""))
        if isinstance(document, StreamRequest):
            await self._talk(call, document, callee)

    async def _request(self, request: WebhookRequest) -> httpx.Response:
        signed = self.carrier.sign(request, now=time.time())
        async with httpx.AsyncClient(verify=self.verify, trust_env=False) as client:
            return await client.request(
                signed.method, self.route(signed.url), headers=dict(signed.headers), content=signed.body, timeout=10
            )

    async def _talk(self, call: FakeCall, stream: StreamRequest, callee: Callee) -> None:
        try:
            await self._hold(call, stream, callee)
        except websockets.InvalidStatus as refused:
            self.reached.append(("stream", refused.response.status_code))
        except websockets.ConnectionClosed as closed:
            self.reached.append(("stream", closed.rcvd.code if closed.rcvd else 0))

    async def _hold(self, call: FakeCall, stream: StreamRequest, callee: Callee) -> None:
        """Be the callee on the line."""
        dialect = self._dialect(call, stream)
        options: dict[str, Any] = {"additional_headers": dict(stream.headers)} if stream.headers else {}
        async with on_line(self.route(stream.url), dialect, start=False, **options) as line:
            await self._answered(call).wait()
            await line.start()
            await line.speak(tone(callee.tone_hz, 0.3, dialect.wire.sample_rate), paced=True)
            closing = asyncio.create_task(line.socket.wait_closed())
            ending = asyncio.create_task(self._is_ended(call, 10.0))
            staying = asyncio.create_task(asyncio.sleep(callee.stays_s))
            await asyncio.wait({closing, ending, staying}, return_when=asyncio.FIRST_COMPLETED)
            if closing.done() and self.name in NEEDS_HANG_UP and call.webhook is None:
                self.left_up += not await self._is_ended(call, 3.0)
            self.heard[call.call.call_id] = line.heard()
            if not closing.done():
                await line.send(dialect.stop())
            for task in (closing, ending, staying):
                task.cancel()

    def _dialect(self, call: FakeCall, stream: StreamRequest) -> Dialect:
        make = next(each for each in DIALECTS if each.name == self.name)
        parameters = dict(stream.parameters)
        dialect = make(call_id=call.call.call_id, parameters=parameters)
        vars(dialect)["account_id"] = call.call.account_id
        if self.name == "vonage":
            from tests.runner.dialects import linear

            dialect.wire = linear(stream.format.sample_rate)
        return dialect

    async def _is_ended(self, call: FakeCall, timeout_s: float) -> bool:
        """Wait so long whether a request ends the call."""
        return await self._ended[call.call.call_id].wait(timeout_s)

    def command(self, call: FakeCall, kind: str, argument: str) -> None:
        """Note a transfer, or digits; a transfer may be a document, or name one that is asked for."""
        kind = "transfer" if kind == "update" else kind
        if kind == "transfer" and argument.startswith("http"):
            asked = self.carrier.webhook(call.call, argument, now=time.time())
            answer = asyncio.run(self._request(asked))
            argument = answer.text
        if kind == "transfer" and argument.startswith(("<", "[")):
            document = self.carrier.read_answer(argument.encode(), self.carrier.document_type, first=False)
            assert isinstance(document, NoStream), document
            argument = document.to
        self.commands.append((call.call.call_id, kind, argument))

    def end(self, call: FakeCall) -> None:
        """Note that a request has ended a call."""
        if (moment := self._ended.get(call.call.call_id)) is not None:
            moment.come()


class _Moment:
    """Something that happens in another thread, and is waited for in an event loop."""

    def __init__(self) -> None:
        self._come = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def come(self) -> None:
        self._come.set()
        for loop, event in self._waiting:
            loop.call_soon_threadsafe(event.set)

    async def wait(self, timeout_s: float) -> bool:
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._come.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await event.wait()
            except TimeoutError:
                return False
        return True


def tone(hz: int, duration_s: float, sample_rate: int) -> bytes:
    """Return a tone as s16le."""
    samples = (int(9000 * math.sin(2 * math.pi * hz * n / sample_rate)) for n in range(int(duration_s * sample_rate)))
    return b"".join(struct.pack("<h", each) for each in samples)


def level(pcm: bytes) -> int:
    """Return the level of s16le audio."""
    return audioop.rms(pcm, 2) if pcm else 0


#: Those whose calls go on when their stream is closed, until a request ends them.
NEEDS_HANG_UP = ("telnyx",)
#: What a customer has beside the secrets of a test call.
ACCOUNTS = {
    "twilio": {"TWILIO_ACCOUNT_SID": "AC" + "1" * 32},
    "signalwire": {
        "SIGNALWIRE_SPACE": "acme",
        "SIGNALWIRE_PROJECT_ID": "00000000-0000-0000-0000-000000000001",
        "SIGNALWIRE_API_TOKEN": "PT" + "1" * 32,
    },
    "exotel": {"EXOTEL_API_KEY": "key", "EXOTEL_API_TOKEN": "token", "EXOTEL_ACCOUNT_SID": "wsvoice1"},
    "bandwidth": {
        "BANDWIDTH_ACCOUNT_ID": "5500000",
        "BANDWIDTH_CLIENT_ID": "client",
        "BANDWIDTH_CLIENT_SECRET": "secret",
        "BANDWIDTH_APPLICATION_ID": "00000000-0000-0000-0000-00000000000a",
    },
}


class ExchangeServer:
    """
    An exchange while the context lasts, for a customer who has one number, or none.

    Args:
        number: The number; empty for none.
        settings: What the company keeps of it.
    """

    def __init__(self, name: str, number: str = "", *, seed: bytes = bytes(range(32)), **settings: str) -> None:
        carrier_secrets, secrets = load_simulator(name).test_credentials(seed)
        secrets |= ACCOUNTS.get(name, {})
        owner = load_simulator(name, secrets)
        api = owner.fake_api()
        assert api is not None
        assert api.account_type is not None
        account: Any = api.account_type(owner, seed)
        if name == "telnyx" and number and not settings:
            profile_id = account.add_profile()
            application_id = account.add_application("call_control_application", "Office", profile_id=profile_id)
            settings["connection_id"] = application_id
        if number:
            account.add_number(number, **settings)
        self.exchange = Exchange(name, account, api, load_simulator(name, carrier_secrets))
        self.exchange.credentials = dict(secrets)

    def __enter__(self) -> Exchange:
        exchange = self.exchange

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = WebhookRequest(self.command, exchange.url + self.path, headers, body)
                status, given, content = exchange.answer(asked)
                time.sleep(exchange.answer_delay_s)
                self.send_response(status)
                for name, value in given.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        exchange.url = f"http://127.0.0.1:{self._server.server_port}"
        bases = {name for name in exchange.account.company.credential_names if name.endswith("_BASE_URL")}
        exchange.credentials |= dict.fromkeys(bases, exchange.url)
        exchange.account.on_placed = exchange.ring
        exchange.account.on_ended = exchange.end
        exchange.account.on_command = exchange.command
        return exchange

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def to_local(url: str, port: int) -> str:
    """Return a public URL as it is reached on this machine."""
    parts = urlsplit(url)
    scheme = {"https": "http", "wss": "ws"}.get(parts.scheme, parts.scheme)
    return urlunsplit((scheme, f"127.0.0.1:{port}", parts.path, parts.query, ""))
