"""
Every provider's calls on the real server, from the webhook to the hang-up.

The carrier's side is written by hand from the documents; where a provider's API is asked for something, it is a small
one of our own.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import wave
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
import websockets
from pipecat.frames import frames
from pipecat.frames.frames import Frame, InputDTMFFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams

from tests.runner import bots
from tests.runner.carrier import announce, dialled, main_frequency
from tests.runner.dialects import (
    ANNOUNCED,
    DIALECTS,
    FROM_NUMBER,
    TO_NUMBER,
    Bandwidth,
    Dialect,
    Exotel,
    Line,
    Plivo,
    SignalWire,
    Telnyx,
    Twilio,
    Vonage,
    linear,
    on_line,
)
from tests.runner.test_session import wait_for
from tests.signals import tone

Serve = Callable[..., Any]


@pytest.fixture(params=ANNOUNCED, ids=lambda each: each.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    made: Dialect = request.param()
    return made


@dataclass
class Told:
    """An echo bot, and what it was told."""

    call: Any = None
    call_data: Any = None
    body: Any = None

    async def __call__(self, runner_args: Any) -> None:
        self.call, self.call_data, self.body = runner_args.call, runner_args.call_data, runner_args.body
        await bots.echo_8k(runner_args)


@dataclass
class Api:
    """A provider's REST API, as far as it is used; every request gets the same answer."""

    url: str
    status: int = 200
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, _, body in self.requests]

    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _, _ in self.requests]


@pytest.fixture
def api() -> Iterator[Api]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            made.requests.append((self.command, self.path, headers, body))
            self.send_response(made.status)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_DELETE = do_GET = answer

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Api(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def ask(url: str, dialect: Dialect, method: str) -> httpx.Response:
    """Send the webhook: its fields in the body or in the query, or an event of Call Control in JSON."""
    if method == "JSON":
        assert isinstance(dialect, Telnyx)
        return httpx.post(url, json=dialect.initiated(), timeout=10)
    return httpx.request(url=url, timeout=10, **dialect.request(method))


def read_document(answer: httpx.Response, dialect: Dialect) -> tuple[str, dict[str, str]]:
    """Read an answer as its provider would; return the stream's URL and the parameters that go along."""
    assert answer.status_code == 200, answer.text
    if dialect.name == "exotel":
        assert answer.headers["content-type"].startswith("application/json")
        (url,) = answer.json().values()
        assert list(answer.json()) == ["url"]
        query = parse_qs(urlsplit(url).query)
        assert not query.keys() & {"sample-rate"}
        return url, {name: values[0] for name, values in query.items()}
    if dialect.name == "vonage":
        assert answer.headers["content-type"].startswith("application/json")
        # https://developer.vonage.com/en/voice/voice-api/ncco-reference#connect
        (connect,) = answer.json()
        (endpoint,) = connect.pop("endpoint")
        assert connect == {"action": "connect"}
        assert (endpoint["type"], endpoint["content-type"]) == ("websocket", "audio/l16;rate=16000")
        dialect.wire = linear(16000)
        return endpoint["uri"], endpoint["headers"]
    assert answer.headers["content-type"].startswith("application/xml")
    root = ElementTree.fromstring(answer.text)
    assert root.tag == "Response"
    if dialect.name == "plivo":
        stream, after = root
        assert (stream.tag, after.tag) == ("Stream", "Hangup")
        assert {
            "bidirectional": "true",
            "keepCallAlive": "true",
            "audioTrack": "inbound",
        }.items() <= stream.attrib.items()
        assert stream.get("contentType") == "audio/x-mulaw;rate=8000"
        assert stream.get("url") is None
        return stream.text or "", {}
    if dialect.name == "bandwidth":
        stream, stop = root
        assert (stream.tag, stop.tag) == ("StartStream", "StopStream")
        # Without waiting for its end, the call would end at once.
        assert stop.attrib == {"name": stream.attrib["name"], "wait": "true"}
        assert (stream.get("mode"), stream.get("tracks")) == ("bidirectional", "inbound")
        return stream.attrib["destination"], {each.attrib["name"]: each.attrib["value"] for each in stream}
    (connect,) = root
    assert connect.tag == "Connect"
    (stream,) = connect
    assert stream.tag == "Stream"
    expected = {
        "twilio": {},
        "signalwire": {"codec": "PCMU@8000h", "realtime": "true"},
        "telnyx": {
            "track": "inbound_track",
            "codec": "PCMU",
            "bidirectionalMode": "rtp",
            "bidirectionalCodec": "PCMU",
            "bidirectionalSamplingRate": "8000",
            "enableReconnect": "false",
        },
    }[dialect.name]
    url = stream.attrib.pop("url")
    assert stream.attrib == expected
    return url, {each.attrib["name"]: each.attrib["value"] for each in stream}


async def hears_itself(line: Line, frequency_hz: float = 700) -> None:
    """Say a tone, and hear the same one come back; for most of it, the rest comes in its own time."""
    rate = line.dialect.wire.sample_rate
    await line.speak(tone(frequency_hz, 200, rate))
    await wait_for(lambda: len(line.heard()) >= 2 * rate * 0.12)
    assert main_frequency(line.heard(), rate) == pytest.approx(frequency_hz, abs=15)


def whole_call(url: str, dialect: Dialect, **options: Any) -> None:
    """Dial the stream, echo, and hang up as the caller."""

    async def main() -> None:
        async with on_line(url, dialect, **options) as line:
            await hears_itself(line)
            await line.send(dialect.stop())
            await line.closed()

    asyncio.run(main())


WAYS = [pytest.param(kind, method, id=f"{kind.name}-{method}") for kind in ANNOUNCED for method in ("POST", "GET")]


class TestWebhook:
    """The webhook's answer, the stream that it asks for, and what the bot is told."""

    @pytest.mark.parametrize(("kind", "method"), WAYS)
    @pytest.mark.parametrize("path", ["", "{name}"])
    def test_a_whole_call(self, shared: Any, kind: type[Dialect], method: str, path: str) -> None:
        """Without a name in the path the provider is known by its fields."""
        told = shared.bot = Told()
        dialect = kind()
        answer = ask(shared.url + path.format(name=dialect.name), dialect, method)
        url, parameters = read_document(answer, dialect)
        assert url.startswith(f"{shared.ws_url}ws/{dialect.name}/")
        dialect.parameters.update(parameters)
        whole_call(url, dialect)
        call, data = told.call, told.call_data
        assert (call.provider, call.call_id, call.stream_id) == (dialect.name, dialect.call_id, dialect.stream_id)
        assert (call.account_id, call.direction) == (dialect.account_id, "inbound")
        assert (data.call_id, data.stream_id) == (dialect.call_id, dialect.stream_id)
        for each in (call, data):
            assert (each.from_number, each.to_number) == (FROM_NUMBER, TO_NUMBER)
        (record,) = shared.ended()
        assert (record.ended_by, record.faults) == ("caller", {})

    @pytest.mark.parametrize("method", ["POST", "GET"])
    def test_the_users_parameters(self, serve: Serve, method: str) -> None:
        """They reach the bot whether or not the provider takes them along."""
        told = Told()
        server = serve(told, transport=None, parameters={"customer": "Müller & <Söhne>"})
        for kind in ANNOUNCED:
            dialect = kind()
            url, parameters = read_document(ask(f"{server.url}{kind.name}", dialect, method), dialect)
            if dialect.name != "plivo":
                assert parameters["customer"] == "Müller & <Söhne>"
            dialect.parameters.update(parameters)
            told.call = None
            whole_call(url, dialect)
            for where in (told.call.parameters, told.call_data.body, told.body):
                assert where["customer"] == "Müller & <Söhne>", dialect.name

    @pytest.mark.parametrize("frame", ["OutputDTMFFrame", "OutputDTMFUrgentFrame"])
    @pytest.mark.parametrize("kind", [Plivo, Twilio], ids=lambda kind: kind.name)
    def test_keys_that_the_bot_presses(self, shared: Any, kind: type[Dialect], frame: str) -> None:
        """By the provider's own message where it has one, as tones where it has none."""

        class Presses(FrameProcessor):
            async def process_frame(self, came: Frame, direction: FrameDirection) -> None:
                await super().process_frame(came, direction)
                if isinstance(came, InputDTMFFrame):
                    came = getattr(frames, frame).from_string("12#")
                await self.push_frame(came, direction)

        async def bot(runner_args: Any) -> None:
            params = FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True)
            transport = runner_args.use_transport(params)
            await bots.run(transport, Presses(), audio_in_sample_rate=8000, audio_out_sample_rate=8000)

        shared.bot = bot
        dialect = kind()
        url, _ = read_document(ask(f"{shared.url}{dialect.name}", dialect, "POST"), dialect)

        async def main() -> Line:
            async with on_line(url, dialect) as line:
                await line.speak(bytes(320))
                await line.press("1")
                wanted = "sendDTMF" if kind is Plivo else dialect.bot_events[0]
                async with asyncio.timeout(10):
                    while not line.of(wanted):
                        await asyncio.sleep(0.01)
                return line

        line = asyncio.run(main())
        if kind is Plivo:
            # https://docs.plivo.com/docs/voice/audio-streaming/audio-streaming
            assert line.of("sendDTMF") == [{"event": "sendDTMF", "dtmf": "12#"}]
            assert not line.of("playAudio")
        shared.ended()

    def test_a_token_is_for_one_stream_of_one_provider(self, shared: Any, dialect: Dialect) -> None:
        shared.bot = bots.never_returns
        url, _ = read_document(ask(f"{shared.url}{dialect.name}", dialect, "POST"), dialect)

        async def refused(url: str) -> None:
            with pytest.raises(websockets.InvalidStatus) as error:
                await websockets.connect(url)
            assert error.value.response.status_code == 403

        async def main() -> None:
            for other in DIALECTS:
                if other.name != dialect.name:
                    await refused(url.replace(f"/ws/{dialect.name}/", f"/ws/{other.name}/"))
            async with on_line(url, dialect) as line:
                await wait_for(lambda: shared.lines("stream started"))
                await refused(url)
                await line.send(dialect.stop())
                await line.closed()

        shared.bot = Told()
        asyncio.run(main())

    def test_the_stream_of_another_call(self, shared: Any, dialect: Dialect) -> None:
        told = shared.bot = Told()
        url, _ = read_document(ask(f"{shared.url}{dialect.name}", dialect, "POST"), dialect)
        dialect.call_id = dialect.call_id[:-4] + "beef"

        async def main() -> None:
            async with on_line(url, dialect) as line:
                code, reason = await line.closed()
                assert code == 1008
                assert "its token is for another" in (reason or "")

        asyncio.run(main())
        assert told.call is None

    @pytest.mark.parametrize("kind", DIALECTS, ids=lambda kind: kind.name)
    @pytest.mark.parametrize("path", ["ws", "ws/{name}"])
    def test_a_stream_without_a_webhook(self, shared: Any, kind: type[Dialect], path: str) -> None:
        """Locally anybody may dial; the provider is known by its start."""
        told = shared.bot = Told()
        dialect = kind()
        whole_call(f"{shared.ws_url}{path.format(name=dialect.name)}", dialect)
        assert (told.call.provider, told.call.call_id) == (dialect.name, dialect.call_id)

    @pytest.mark.parametrize(
        "what",
        [
            pytest.param({}, id="nothing"),
            pytest.param({"CallSid": "17"}, id="an id of nobody's"),
            pytest.param({"hello": "you"}, id="other fields"),
        ],
    )
    def test_nobodys_webhook(self, shared: Any, what: dict[str, str]) -> None:
        answers = [httpx.get(shared.url, params=what), httpx.post(shared.url, json=what)]
        if what:  # An empty POST may be of a provider that waits to be asked for its credentials.
            answers.append(httpx.post(shared.url, data=what))
        for answer in answers:
            assert answer.status_code == 404
            assert "/plivo" in answer.text

    @pytest.mark.parametrize(
        ("kind", "fields"),
        [
            pytest.param(Twilio, {"CallStatus": "completed", "CallDuration": "3"}, id="twilio-ended"),
            pytest.param(Twilio, {"StreamEvent": "stream-started", "StreamSid": "MZ1"}, id="twilio-stream"),
            pytest.param(SignalWire, {"CallStatus": "completed"}, id="signalwire-ended"),
            pytest.param(Telnyx, {"CallStatus": "completed"}, id="telnyx-ended"),
            pytest.param(Telnyx, {"StreamEvent": "stream-stopped"}, id="telnyx-stream"),
            pytest.param(Plivo, {"Event": "Hangup", "CallStatus": "completed"}, id="plivo-ended"),
            pytest.param(Plivo, {"Event": "StartStream", "StreamID": "1"}, id="plivo-stream"),
            pytest.param(Exotel, {"EventType": "terminal", "Status": "completed"}, id="exotel-ended"),
            pytest.param(Vonage, {"status": "completed"}, id="vonage-ended"),
            pytest.param(Bandwidth, {"eventType": "disconnect", "cause": "hangup"}, id="bandwidth-ended"),
            pytest.param(Bandwidth, {"eventType": "mediaStreamStarted"}, id="bandwidth-stream"),
        ],
    )
    @pytest.mark.parametrize("path", ["", "{name}"])
    def test_a_report_starts_no_call(self, shared: Any, kind: type[Dialect], fields: dict[str, str], path: str) -> None:
        url = shared.url + path.format(name=kind.name)
        answer = httpx.request(url=url, **kind().request("POST", **fields))
        assert answer.status_code == 200
        # Nothing, or a document in which there is nothing.
        assert not answer.text or len(ElementTree.fromstring(answer.text)) == 0


class TestFullHouse:
    def test_while_the_event_loop_is_late(self, serve: Serve) -> None:
        """A call that was announced before may come, and a running one goes on."""
        server = serve(bots.echo_8k)
        lateness = server.switchboard.lateness

        async def main() -> None:
            announced = announce(server.url, "CA0000000000000000000000000000aaaa")
            async with dialled(announce(server.url)) as carrier:
                # So long a time of it that the heartbeats of the test's own server change nothing.
                lateness._samples = deque([0.5] * 1000, 1000)
                lateness.note(0.5)
                (reject,) = ElementTree.fromstring(
                    ask(server.url, Twilio(call_id="CA0000000000000000000000000000cccc"), "POST").text
                )
                assert (reject.tag, reject.attrib) == ("Reject", {"reason": "busy"})
                with pytest.raises(websockets.InvalidStatus) as refused:
                    await websockets.connect(f"{server.ws_url}ws/twilio", compression=None)
                assert refused.value.response.status_code == 503
                async with dialled(announced, "CA0000000000000000000000000000aaaa") as second:
                    for each in carrier, second:
                        await each.speak(tone(440, 200, 8000))
                        await each.until("media", 5)
                        await each.hang_up()
            lateness._samples.clear()
            lateness.note(0.0)
            assert announce(server.url, "CA0000000000000000000000000000bbbb")

        asyncio.run(main())
        assert len(server.lines("webhook answered busy: the event loop is 0.50 s late (--max-lag)")) == 1

    def test_each_provider_is_told_so_in_its_own_way(self, serve: Serve, api: Api) -> None:
        credentials = {"TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": f"{api.url}/v2"}
        server = serve(bots.echo_8k, transport=None, max_calls=1, credentials=credentials)

        def turned_away(kind: type[Dialect], method: str = "POST") -> httpx.Response:
            return ask(f"{server.url}{kind.name}", kind(), method)

        async def main() -> None:
            async with on_line(f"{server.ws_url}ws", Twilio(call_id="CA0000000000000000000000000000beef")) as line:
                await hears_itself(line)
                for kind in (Twilio, SignalWire, Telnyx):
                    (reject,) = ElementTree.fromstring(turned_away(kind).text)
                    assert (reject.tag, reject.attrib) == ("Reject", {"reason": "busy"})
                (hang_up,) = ElementTree.fromstring(turned_away(Plivo).text)
                assert (hang_up.tag, hang_up.attrib) == ("Hangup", {"reason": "busy"})
                (hang_up,) = ElementTree.fromstring(turned_away(Bandwidth).text)
                assert (hang_up.tag, hang_up.attrib) == ("Hangup", {})
                answer = turned_away(Exotel, "GET")
                # The flow goes on with its next applet where the URL fails.
                assert answer.status_code == 503
                assert "url" not in answer.json()
                # Vonage goes on with the application's fallback URL.
                assert turned_away(Vonage).status_code == 503
                # A call of Call Control is turned away by the API, and the event is only acknowledged.
                answer = turned_away(Telnyx, "JSON")
                assert (answer.status_code, answer.text) == (200, "")
                for each in DIALECTS:
                    with pytest.raises(websockets.InvalidStatus) as refused:
                        await websockets.connect(f"{server.ws_url}ws/{each.name}")
                    assert refused.value.response.status_code == 503
                # Those who were turned away have not disturbed the one on the line.
                await line.speak(tone(500, 100, 8000))
                await line.send(line.dialect.stop())

        asyncio.run(main())
        (request,) = api.requests
        assert request[1] == f"/v2/calls/{Telnyx.own_call_id.replace(':', '%3A')}/actions/reject"
        assert api.bodies()[0]["cause"] == "USER_BUSY"
        (record,) = server.ended()
        assert record.heard_s == pytest.approx(0.3)


#: A bot that says something and ends the call.
says_and_ends = bots.says(tone(600, 200, 24000))


def hears_out(url: str, dialect: Dialect) -> None:
    """Listen until the bot has ended the call."""

    async def main() -> None:
        async with on_line(url, dialect) as line:
            assert await line.closed() == (1000, "")
            assert main_frequency(line.heard(), dialect.wire.sample_rate) == pytest.approx(600, abs=15)

    asyncio.run(main())


class TestHangUp:
    """A bot that ends its pipeline ends the call, whatever that takes."""

    def test_plivo(self, serve: Serve, api: Api) -> None:
        """https://www.plivo.com/docs/voice/api/call/hangup-a-call"""
        server = serve(says_and_ends, transport="plivo", credentials=self.plivo(api), verify="off")
        dialect = Plivo()
        url, _ = read_document(ask(server.url, dialect, "POST"), dialect)
        hears_out(url, dialect)
        server.ended()
        assert api.paths() == [f"DELETE /v1/Account/MA1/Call/{dialect.call_id}/"]
        assert api.requests[0][2]["authorization"] == "Basic " + b64encode(b"MA1:secret").decode()

    @staticmethod
    def plivo(api: Api) -> dict[str, str]:
        return {"PLIVO_AUTH_ID": "MA1", "PLIVO_AUTH_TOKEN": "secret", "PLIVO_API_BASE_URL": f"{api.url}/v1"}

    def test_a_caller_who_hung_up_is_not_hung_up(self, serve: Serve, api: Api) -> None:
        server = serve(bots.echo_8k, transport="plivo", credentials=self.plivo(api))
        whole_call(f"{server.ws_url}ws", Plivo())
        assert server.ended()[0].ended_by == "caller"
        assert api.requests == []

    def test_a_bot_that_raises(self, serve: Serve, api: Api) -> None:
        async def bot(runner_args: Any) -> None:
            raise LookupError("nothing found")

        server = serve(bot, transport="plivo", credentials=self.plivo(api))

        async def main() -> None:
            async with on_line(f"{server.ws_url}ws", Plivo()) as line:
                assert (await line.closed())[0] == 1011

        asyncio.run(main())
        assert server.ended()[0].ended_by == "error"
        assert api.paths() == [f"DELETE /v1/Account/MA1/Call/{Plivo.own_call_id}/"]

    def test_what_the_api_answers(self, serve: Serve, api: Api) -> None:
        server = serve(says_and_ends, transport="plivo", credentials=self.plivo(api))
        # 404: the call has ended by itself.
        for count, (status, is_up) in enumerate([(204, False), (404, False), (401, True), (500, True)], 1):
            api.status = status
            hears_out(f"{server.ws_url}ws", Plivo())
            server.ended(count)
            assert bool(server.lines("ERROR", "the call may still be up", str(status))) is is_up, status

    def test_an_api_that_nobody_answers_at(self, serve: Serve, api: Api) -> None:
        credentials = {**self.plivo(api), "PLIVO_API_BASE_URL": "http://127.0.0.1:9/v1"}
        server = serve(says_and_ends, transport="plivo", credentials=credentials)
        hears_out(f"{server.ws_url}ws", Plivo())
        server.ended()
        assert server.lines("ERROR", "the call may still be up", "did not reach")

    def test_where_closing_the_stream_is_the_hang_up(self, serve: Serve, api: Api) -> None:
        """Their documents end with the stream, so no request is made."""
        credentials = {"TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": f"{api.url}/v2"}
        server = serve(says_and_ends, transport=None, credentials=credentials)
        for kind in (Twilio, Telnyx, Exotel, SignalWire):
            dialect = kind()
            url, _ = read_document(ask(f"{server.url}{kind.name}", dialect, "POST"), dialect)
            hears_out(url, dialect)
        assert [record.ended_by for record in server.ended(4)] == ["bot"] * 4
        assert api.requests == []
        assert not server.lines("ERROR")


class TestCallControl:
    """https://developers.telnyx.com/api-reference/call-commands/answer-call"""

    @staticmethod
    def serve_telnyx(serve: Serve, api: Api, bot: Any, **settings: Any) -> Any:
        credentials = {"TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": f"{api.url}/v2"}
        return serve(bot, **{"transport": "telnyx", "credentials": credentials, **settings})

    @pytest.mark.parametrize("transport", ["telnyx", None])
    def test_answered_and_hung_up_by_request(self, serve: Serve, api: Api, transport: str | None) -> None:
        told: list[Any] = []

        async def bot(runner_args: Any) -> None:
            told.append(runner_args)
            await says_and_ends(runner_args)

        server = self.serve_telnyx(serve, api, bot, transport=transport, parameters={"customer": "7"})
        dialect = Telnyx()
        answer = ask(server.url, dialect, "JSON")
        assert (answer.status_code, answer.text) == (200, "")
        prefix = f"POST /v2/calls/{dialect.call_id.replace(':', '%3A')}/actions/"
        assert api.paths() == [f"{prefix}answer"]
        command = api.bodies()[0]
        url, command_id = command.pop("stream_url"), command.pop("command_id")
        assert url.startswith(f"{server.ws_url}ws/telnyx/")
        assert command_id
        assert command == {
            "stream_track": "inbound_track",
            "stream_codec": "PCMU",
            "stream_bidirectional_mode": "rtp",
            "stream_bidirectional_codec": "PCMU",
            "stream_bidirectional_sampling_rate": 8000,
            "custom_parameters": [{"name": "customer", "value": "7"}],
        }
        # The events of a call that goes on need no answer, and change nothing.
        for kind in ("call.answered", "streaming.started"):
            assert httpx.post(server.url, json=dialect.event(kind)).status_code == 200
        dialect.parameters["customer"] = "7"
        hears_out(url, dialect)
        server.ended()
        assert httpx.post(server.url, json=dialect.event("call.hangup")).status_code == 200
        assert api.paths() == [f"{prefix}answer", f"{prefix}hangup"]
        assert [headers["authorization"] for _, _, headers, _ in api.requests] == ["Bearer KEY1"] * 2
        (runner_args,) = told
        assert (runner_args.call.from_number, runner_args.call.to_number) == (FROM_NUMBER, TO_NUMBER)
        assert runner_args.call.parameters["customer"] == "7"
        assert runner_args.call_data.call_id == dialect.call_id

    def test_the_caller_hears_himself(self, serve: Serve, api: Api) -> None:
        server = self.serve_telnyx(serve, api, bots.echo_8k)
        ask(server.url, Telnyx(), "JSON")
        whole_call(api.bodies()[0]["stream_url"], Telnyx())
        assert server.ended()[0].ended_by == "caller"
        assert len(api.requests) == 1

    def test_an_event_that_comes_twice_is_one_command(self, serve: Serve, api: Api) -> None:
        """Telnyx repeats what is not answered within two seconds, and carries a command_id out once."""
        server = self.serve_telnyx(serve, api, bots.echo_8k, max_calls=1)
        for _ in range(2):
            assert ask(server.url, Telnyx(), "JSON").status_code == 200
        first, second = api.bodies()
        assert first["command_id"] == second["command_id"]

    def test_an_api_that_refuses_to_answer(self, serve: Serve, api: Api) -> None:
        api.status = 401
        server = self.serve_telnyx(serve, api, bots.echo_8k)
        assert ask(server.url, Telnyx(), "JSON").status_code == 502
        assert server.lines("ERROR", "refused by the provider's API", "401")

    def test_without_a_key(self, serve: Serve, api: Api) -> None:
        server = serve(bots.echo_8k, transport="telnyx", credentials={"TELNYX_BASE_URL": f"{api.url}/v2"})
        assert ask(server.url, Telnyx(), "JSON").status_code == 500
        assert server.lines("ERROR", "TELNYX_API_KEY")
        assert api.requests == []


class TestExotelsOwnUrl:
    """
    An applet may hold the stream's own URL, with a user and a password in it.

    https://developer.exotel.com/docs/agentstream/stream-voicebot-applet
    """

    def dial(self, server: Any, userinfo: str, path: str) -> int:
        """Connect as Exotel does; return the status, 101 after a whole call."""
        host = urlsplit(server.url).netloc
        # WebSocket clients differ about what is escaped in a URL, and an old one sends it as it stands.
        basic = b64encode(unquote(userinfo.removesuffix("@")).encode()).decode()
        headers = {"Authorization": f"Basic {basic}"} if userinfo else {}
        try:
            whole_call(f"ws://{host}/{path}", Exotel(), additional_headers=headers)
        except websockets.InvalidStatus as refused:
            return refused.response.status_code
        return 101

    @pytest.mark.parametrize("transport", ["exotel", None])
    def test_who_may_come_in(self, serve: Serve, transport: str | None) -> None:
        told = Told()
        credentials = {"EXOTEL_STREAM_USER": "anna", "EXOTEL_STREAM_PASSWORD": "s3:cret"}
        settings = {"transport": transport, "proxy": "voice.example.com", "credentials": credentials}
        if transport is None:
            # Asked for by name it is taken as it is; among all the others what cannot be verified is left out.
            settings["verify"] = "off"
        server = serve(told, **settings)
        paths = ["ws", "ws/exotel"] if transport else ["ws/exotel"]
        for path in paths:
            for userinfo in ("", "anna:wrong@", "bert:s3%3Acret@", "anna:@", ":s3%3Acret@"):
                assert self.dial(server, userinfo, path) == 403, userinfo
            assert told.call is None
            assert self.dial(server, "anna:s3%3Acret@", path) == 101
            assert told.call.from_number == FROM_NUMBER
            told.call = None
        assert server.lines("stream refused (403)", "no token")

    def test_without_a_user_nobody_has_the_right_one(self, serve: Serve) -> None:
        server = serve(Told(), transport="exotel", proxy="voice.example.com")
        for userinfo in ("", "anna:s3cret@", ":@"):
            assert self.dial(server, userinfo, "ws") == 403


class TestRecording:
    def test_exotel_at_16_khz(self, serve: Serve, tmp_path: Path) -> None:
        """The file has the stream's rate: at another the voices would be too high or too low."""
        settings = {"transport": "exotel", "credentials": {"EXOTEL_SAMPLE_RATE": "16000"}, "record": tmp_path}
        server = serve(says_and_ends, **settings)
        dialect = Exotel(wire=linear(16000))
        answer = ask(server.url, dialect, "GET").json()["url"]
        assert parse_qs(urlsplit(answer).query) == {"sample-rate": ["16000"]}

        async def main() -> None:
            async with on_line(answer, dialect) as line:
                await line.speak(tone(1500, 200, 16000))
                await line.closed()

        asyncio.run(main())
        (record,) = server.ended()
        (path,) = tmp_path.iterdir()
        assert record.recording == str(path)
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 2, 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        for channel, frequency_hz in ((samples[:, 0], 1500), (samples[:, 1], 600)):
            assert main_frequency(_loud(channel).tobytes(), 16000) == pytest.approx(frequency_hz, abs=15)
            # Of a whole piece at least; a slow machine may leave gaps.
            assert 0.17 <= len(_loud(channel)) / 16000 < 1


def _loud(channel: Any) -> Any:
    """Cut the silence off both ends."""
    (at,) = np.nonzero(np.abs(channel.astype(int)) > 500)
    return np.ascontiguousarray(channel[at[0] : at[-1] + 1])
