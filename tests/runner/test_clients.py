"""Plain clients: ``-t websocket``, with pipecat's own client at the other end."""

from __future__ import annotations

import asyncio
import io
import signal
import sys
import wave
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from pipecat.evals.client_transport import EvalClientTransport
from pipecat.evals.serializer import EvalClientSerializer, EvalConnectionFlags
from pipecat.evals.transport import EvalTransportParams
from pipecat.frames.frames import (
    Frame,
    OutputTransportMessageUrgentFrame,
    TTSAudioRawFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import WebSocketRunnerArguments
from pipecat.serializers.protobuf import ProtobufFrameSerializer
from pipecat.transports.websocket.client import WebsocketClientParams
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport

from tests.runner import bots
from tests.runner.peers import RATE, Peer, audio_message, next_audio, peer, running
from tests.runner.test_server import ECHO, run
from tests.runner.test_session import wait_for
from tests.signals import correlation_delay_ms, speech_like, tone
from wsvoice.config import START_KEY
from wsvoice.runner.activity import Activity

KEY = "correct-horse"


@pytest.fixture
def serve(serve: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that serves a bot to plain clients."""

    def start(bot: Any, **settings: Any) -> Any:
        return serve(bot, **{"transport": "websocket", **settings})

    return start


async def echo(runner_args: Any) -> None:
    await bots.run(runner_args.transport, bots.Echo(), audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)


def with_params(**params: Any) -> Any:
    """Return an echo bot that makes its transport as bots for pipecat's runner do."""

    async def bot(runner_args: Any) -> None:
        from pipecat.runner import utils

        make = {"websocket": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, **params)}
        transport = await utils.create_transport(runner_args, make)
        await bots.run(transport, bots.Echo(), audio_in_sample_rate=RATE, audio_out_sample_rate=RATE)

    return bot


async def assert_echoes(url: str, clip: bytes, **options: Any) -> None:
    async with peer(url, **options) as each:
        await each.say(clip)
        heard = await each.until_heard(len(clip))
        _, alike = correlation_delay_ms(clip, heard, RATE)
        assert alike > 0.99


async def closed(socket: Any, timeout_s: float = 10) -> int | None:
    """Read until the server has closed; return its code."""
    async with asyncio.timeout(timeout_s):
        with suppress(websockets.ConnectionClosed):
            while True:
                await socket.recv()
    code: int | None = socket.close_code
    return code


async def refused(url: str, **options: Any) -> int:
    """Return the status that an upgrade is refused with."""
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with websockets.connect(url, **options):
            pass
    return caught.value.response.status_code


class TestSound:
    def test_many_clients_at_once_hear_their_own_voice(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            clips = [speech_like(600, RATE, seed) for seed in (1, 2, 3)]
            await asyncio.gather(*(assert_echoes(server.ws_url + "ws-client", clip) for clip in clips))
            for each in server.ended(3):
                assert (each.ended_by, each.faults) == ("caller", {})
                assert each.received >= 15

        asyncio.run(main())
        assert not server.lines("Traceback")

    def test_a_wav_header_is_taken_off(self, serve: Any) -> None:
        server = serve(with_params())
        asyncio.run(assert_echoes(server.ws_url + "ws-client", speech_like(600, RATE), add_wav_header=True))

    def test_a_wav_header_is_put_on(self, serve: Any) -> None:
        server = serve(with_params(add_wav_header=True))
        clip = speech_like(400, RATE)

        async def main() -> bytes:
            heard = b""
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                await socket.send(await audio_message(clip))
                while len(heard) < len(clip):
                    frame = await next_audio(socket)
                    with wave.open(io.BytesIO(frame.audio)) as piece:
                        assert (piece.getframerate(), piece.getnchannels(), piece.getsampwidth()) == (RATE, 1, 2)
                        heard += piece.readframes(piece.getnframes())
            return heard

        assert correlation_delay_ms(clip, asyncio.run(main()), RATE)[1] > 0.99

    def test_the_bot_may_speak_first(self, serve: Any) -> None:
        clip = tone(500, 400, RATE)

        async def bot(runner_args: Any) -> None:
            await bots.says(clip, RATE)(runner_args)

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                await next_audio(socket)
                assert await closed(socket) == 1000

        asyncio.run(main())
        assert server.ended()[0].ended_by == "bot"

    def test_what_was_said_before_the_bot_was_ready_is_not_lost(self, serve: Any) -> None:
        go = asyncio.Event()

        async def bot(runner_args: Any) -> None:
            await asyncio.wait_for(go.wait(), 10)
            await echo(runner_args)

        server = serve(bot)
        clip = speech_like(400, RATE)

        async def main() -> None:
            async with peer(server.ws_url + "ws-client") as each:
                await each.say(clip)
                await asyncio.sleep(0.4)
                go._loop.call_soon_threadsafe(go.set)  # type: ignore[attr-defined]
                assert correlation_delay_ms(clip, await each.until_heard(len(clip)), RATE)[1] > 0.99

        asyncio.run(main())


class TestWhatTheBotSees:
    def test_arguments(self, serve: Any) -> None:
        seen: list[Any] = []

        async def bot(runner_args: Any) -> None:
            seen.append((runner_args, runner_args.transport, runner_args.transport))

        server = serve(bot, parameters={"tenant": "7"})

        async def main() -> str:
            started = httpx.post(server.url + "start", json={"transport": "websocket", "body": {"language": "en"}})
            answer = started.json()
            async with websockets.connect(f"{answer['wsUrl']}/{answer['token']}") as socket:
                assert await closed(socket) == 1000
            return started.headers["X-Session-Id"]

        session_id = asyncio.run(main())
        arguments, transport, again = seen[0]
        assert isinstance(arguments, WebSocketRunnerArguments)
        assert arguments.transport_type == "websocket"
        assert arguments.body == {"tenant": "7", "language": "en"}
        assert arguments.session_id == session_id
        assert not arguments.handle_sigint
        assert isinstance(transport, FastAPIWebsocketTransport)
        assert transport is again
        assert isinstance(transport._params.serializer, ProtobufFrameSerializer)
        assert transport._params.audio_in_enabled
        assert transport._params.audio_out_enabled

    def test_a_transport_built_by_hand(self, serve: Any) -> None:
        async def bot(runner_args: Any) -> None:
            params = FastAPIWebsocketParams(
                audio_in_enabled=True, audio_out_enabled=True, serializer=ProtobufFrameSerializer()
            )
            transport = FastAPIWebsocketTransport(runner_args.websocket, params)

            @transport.event_handler("on_client_disconnected")
            async def on_client_disconnected(transport: Any, client: Any) -> None:
                await workers[0].cancel()

            workers: list[Any] = []
            rates = {"audio_in_sample_rate": RATE, "audio_out_sample_rate": RATE}
            await bots.run(transport, bots.Echo(), on_worker=workers.append, **rates)

        server = serve(bot)
        asyncio.run(assert_echoes(server.ws_url + "ws-client", speech_like(400, RATE)))
        assert server.ended()[0].ended_by == "caller"

    def test_no_params_for_the_transport(self, serve: Any) -> None:
        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            await utils.create_transport(runner_args, {"daily": FastAPIWebsocketParams})

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                assert await closed(socket) == 1011

        asyncio.run(main())
        assert server.lines('transport_params has no "websocket" (it has daily)')

    def test_events(self, serve: Any) -> None:
        happened: list[str] = []

        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            workers: list[Any] = []

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                happened.append("connected")

            @transport.event_handler("on_client_disconnected")
            async def on_client_disconnected(transport: Any, client: Any) -> None:
                happened.append("disconnected")
                await workers[0].cancel()

            await bots.run(transport, bots.Echo(), on_worker=workers.append)
            happened.append("returned")

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                await socket.send(await audio_message(bytes(640)))
                await wait_for(lambda: happened)

        asyncio.run(main())
        server.ended()
        assert happened == ["connected", "disconnected", "returned"]

    def test_messages(self, serve: Any) -> None:
        async def bot(runner_args: Any) -> None:
            transport = runner_args.transport
            workers: list[Any] = []

            @transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                await workers[0].queue_frame(OutputTransportMessageUrgentFrame(message={"hello": "client"}))

            await bots.run(transport, on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            async with peer(server.ws_url + "ws-client") as each:
                await wait_for(lambda: {"hello": "client"} in each.ears.messages)

        asyncio.run(main())


class TestWhoMayComeIn:
    def test_on_localhost_everybody(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            # A header or a query that is somebody else's business.
            await assert_echoes(server.ws_url + "ws-client?token=x", tone(600, 200, RATE))
            # A token in the path can only be meant for us.
            assert await refused(server.ws_url + "ws-client/forged") == 403

        asyncio.run(main())

    def test_with_a_public_address_by_token(self, serve: Any) -> None:
        server = serve(echo, proxy="bot.example", credentials={START_KEY: KEY})
        url = server.ws_url + "ws-client"

        def start() -> dict[str, str]:
            answer = httpx.post(server.url + "start", json={}, headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200
            assert answer.json()["wsUrl"] == "wss://bot.example/ws-client"
            return answer.json()  # type: ignore[no-any-return]

        async def main() -> None:
            assert await refused(url) == 403
            assert await refused(server.ws_url + "ws") == 403
            first = start()["token"]
            await assert_echoes(f"{url}/{first}", tone(600, 200, RATE))
            assert await refused(f"{url}/{first}") == 403, "a token works once"
            await assert_echoes(f"{url}?token={start()['token']}", tone(600, 200, RATE))
            await assert_echoes(url, tone(600, 200, RATE), headers={"Authorization": f"Bearer {start()['token']}"})
            assert await refused(f"{url}/{start()['token'][:-1]}") == 403

        asyncio.run(main())
        assert server.lines("client refused (403)", "has no token")
        assert server.lines("client refused (403)", "was used before")

    def test_a_server_that_moves_gives_its_new_address_to_its_own_pages(self, serve: Any) -> None:
        server = serve(echo, proxy="one.example", credentials={START_KEY: KEY})
        server.switchboard.move("two.example")

        def start(page: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {KEY}", "Origin": page}
            return httpx.post(server.url + "start", json={}, headers=headers)

        answer = start("https://two.example")
        assert answer.json()["wsUrl"] == "wss://two.example/ws-client"
        assert answer.headers["access-control-allow-origin"] == "https://two.example"
        for page in ("https://one.example", ""):
            assert "access-control-allow-origin" not in start(page).headers

    def test_start_needs_the_key(self, serve: Any) -> None:
        server = serve(echo, proxy="bot.example", credentials={START_KEY: KEY})
        headers = ["", "Bearer wrong", f"Basic {KEY}", KEY]
        for header in headers:
            answer = httpx.post(server.url + "start", json={}, headers={"Authorization": header})
            assert answer.status_code == 403, header
            assert START_KEY in answer.json()["detail"]
        assert len(server.lines("start refused (403)")) == len(headers)
        assert not server.lines(KEY)

    def test_start_is_closed_without_a_key(self, serve: Any) -> None:
        server = serve(echo, proxy="bot.example")
        answer = httpx.post(server.url + "start", json={}, headers={"Authorization": "Bearer"})
        assert answer.status_code == 403
        assert "closed" in answer.json()["detail"]
        assert len(server.lines("start refused (403)", START_KEY)) == 1

    def test_a_proxy_that_was_not_announced_is_public_too(self, serve: Any) -> None:
        server = serve(echo)
        forwarded = {"X-Forwarded-For": "203.0.113.9"}
        assert httpx.post(server.url + "start", json={}, headers=forwarded).status_code == 403
        assert asyncio.run(refused(server.ws_url + "ws-client", additional_headers=forwarded)) == 403

    def test_opened(self, serve: Any) -> None:
        server = serve(echo, proxy="bot.example", stream_auth="none")
        assert httpx.post(server.url + "start", json={}).status_code == 200
        asyncio.run(assert_echoes(server.ws_url + "ws-client", tone(600, 200, RATE)))

    def test_what_start_takes(self, serve: Any) -> None:
        server = serve(echo)
        for body, status in (
            (b"", 200),
            (b"{}", 200),
            (b'{"transport": "websocket", "body": null}', 200),
            (b'{"transport": "webrtc"}', 400),
            (b"[]", 400),
            (b"{", 400),
            (b'{"a":' * 9000, 400),
            (b'"' + b"x" * 70_000 + b'"', 413),
        ):
            answer = httpx.post(server.url + "start", content=body)
            assert answer.status_code == status, body[:40]
            assert set(answer.json()) == ({"wsUrl", "token"} if status == 200 else {"detail"})

    def test_allowed_origins(self, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIPECAT_ALLOWED_ORIGINS", "https://page.example")
        server = serve(echo)

        async def main() -> None:
            url = server.ws_url + "ws-client"
            assert await refused(url) == 403
            assert await refused(url, origin="https://evil.example") == 403
            async with websockets.connect(url, origin="https://PAGE.example") as socket:  # type: ignore[arg-type]
                await socket.send(await audio_message(bytes(640)))

        asyncio.run(main())
        assert server.lines("client refused (403)", "https://evil.example")

    def test_origins_that_the_bots_params_do_not_allow(self, serve: Any) -> None:
        server = serve(with_params(allowed_origins=["https://page.example"]))

        async def main() -> None:
            url = server.ws_url + "ws-client"
            async with websockets.connect(url, origin="http://localhost:5173") as socket:  # type: ignore[arg-type]
                assert await closed(socket) == 1008

        asyncio.run(main())

    def test_the_cap(self, serve: Any) -> None:
        server = serve(echo, max_calls=2)

        async def main() -> None:
            async with peer(server.ws_url + "ws-client"):
                announced = httpx.post(server.url + "start", json={}).json()
                assert await refused(server.ws_url + "ws-client") == 503
                assert httpx.post(server.url + "start", json={}).status_code == 503
                # The place that the token keeps.
                await assert_echoes(f"{announced['wsUrl']}/{announced['token']}", tone(600, 200, RATE))
                await wait_for(lambda: server.switchboard.active_calls == 1)
                await assert_echoes(server.ws_url + "ws-client", tone(600, 200, RATE))

        asyncio.run(main())


class TestWhenThingsGoWrong:
    def test_a_bot_that_crashes(self, serve: Any) -> None:
        crashed: list[str] = []

        async def bot(runner_args: Any) -> None:
            if not crashed:
                crashed.append(runner_args.session_id)
                raise KeyError("the crash")
            await echo(runner_args)

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                assert await closed(socket) == 1011
            await assert_echoes(server.ws_url + "ws-client", tone(600, 200, RATE))

        asyncio.run(main())
        assert server.lines("the bot raised KeyError", crashed[0], "Traceback", "in bot")
        assert server.ended(2)[0].ended_by == "error"

    def test_a_task_of_the_bots_that_exits(self, serve: Any) -> None:
        async def bot(runner_args: Any) -> None:
            async def help_out() -> None:
                sys.exit("no key")

            beside = asyncio.create_task(help_out())
            await asyncio.wait({beside, asyncio.ensure_future(asyncio.Event().wait())})

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                assert await closed(socket) == 1011

        asyncio.run(main())
        (record,) = server.ended()
        (cause,) = record.causes
        assert (cause.kind, cause.message, cause.file) == ("exception", "SystemExit: no key", __file__)
        place = f"({Path(__file__).name}:{cause.line})"
        assert server.lines("ended by an error", f"the bot called sys.exit('no key') {place}")

    def test_what_went_wrong_beside_the_clients_own_end(self, serve: Any) -> None:
        ready = asyncio.Event()

        async def bot(runner_args: Any) -> None:
            @runner_args.transport.event_handler("on_client_connected")
            async def on_client_connected(transport: Any, client: Any) -> None:
                ready.set()
                raise KeyError("greeting")

            await bots.run(runner_args.transport)

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client"):
                await wait_for(ready.is_set)
                await wait_for(lambda: bool(server.lines("on_client_connected")))
                server.switchboard.note_blocked("the event loop was blocked for 2.0 s")

        asyncio.run(main())
        (record,) = server.ended()
        assert [(cause.kind, cause.message) for cause in record.causes] == [
            ("exception", "on_client_connected: KeyError: 'greeting'"),
            ("blocked", "the event loop was blocked for 2.0 s"),
        ]
        assert server.lines("ended by the client", "in the bot: on_client_connected: KeyError: 'greeting' (test_")

    def test_messages_that_nobody_can_read(self, serve: Any) -> None:
        server = serve(echo)
        clip = tone(600, 200, RATE)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                for bad in ("text", "{}", b"", b"\xff" * 50, b"\x12\x05\x1a", b"\x22\x03\x0a\x01["):
                    await socket.send(bad)
                await socket.send(await audio_message(clip))
                heard = b""
                while len(heard) < len(clip):
                    frame = await next_audio(socket)
                    heard += frame.audio

        asyncio.run(main())
        assert server.ended()[0].faults["unreadable"] >= 5
        assert len(server.lines("ignored a bad message (unreadable)")) == 1

    def test_a_large_message(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            async with peer(server.ws_url + "ws-client") as other:
                async with websockets.connect(server.ws_url + "ws-client") as socket:
                    await socket.send(bytes(70_000))
                    assert await closed(socket) == 1009
                await other.say(tone(600, 200, RATE))
                await other.until_heard(6400)

        asyncio.run(main())
        assert server.ended(2)[0].reason == "a message was larger than the limit"

    def test_a_bot_that_goes_on_is_cancelled(self, serve: Any) -> None:
        ends: list[str] = []

        async def bot(runner_args: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        server = serve(bot, bot_exit_timeout_s=0.2)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client"):
                pass
            await wait_for(lambda: ends)

        asyncio.run(main())
        assert server.lines("it is cancelled")
        assert server.ended()[0].ended_by == "caller"

    def test_drain(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            async with peer(server.ws_url + "ws-client") as each:
                server.switchboard.drain()
                assert httpx.get(server.url + "readyz").status_code == 503
                assert await refused(server.ws_url + "ws-client") == 503
                assert httpx.post(server.url + "start", json={}).status_code == 503
                clip = speech_like(400, RATE)
                await each.say(clip)
                assert correlation_delay_ms(clip, await each.until_heard(len(clip)), RATE)[1] > 0.99

        asyncio.run(main())
        assert server.ended()[0].ended_by == "caller"

    @pytest.mark.usefixtures("unhurried")
    def test_the_server_stops(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                await socket.send(await audio_message(bytes(640)))
                await asyncio.to_thread(server.stop)
                assert await closed(socket) in (1001, 1012)

        asyncio.run(main())

    def test_a_bot_that_closes_with_a_code_of_its_own(self, serve: Any) -> None:
        async def bot(runner_args: Any) -> None:
            await runner_args.websocket.close(4001)

        server = serve(bot)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                assert await closed(socket) == 4001

        asyncio.run(main())


class TestSessionTimeout:
    def test_it_counts_from_the_last_sound(self, serve: Any) -> None:
        loop_times: list[float] = []
        quiet: list[float] = []

        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            params = FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, session_timeout=1)
            transport = await utils.create_transport(runner_args, {"websocket": lambda: params})
            workers: list[Any] = []

            @transport.event_handler("on_session_timeout")
            async def on_session_timeout(transport: Any, client: Any) -> None:
                loop_times.append(asyncio.get_running_loop().time())
                await workers[0].cancel()

            await bots.run(transport, bots.Listener(), on_worker=workers.append)

        server = serve(bot)

        async def main() -> None:
            sound, silence = await audio_message(tone(500, 40, RATE)), await audio_message(bytes(1280))
            async with websockets.connect(server.ws_url + "ws-client") as socket:
                for _ in range(12):
                    await socket.send(sound)
                    await asyncio.sleep(0.05)
                quiet.append(asyncio.get_running_loop().time())
                assert not loop_times, "it came while the client spoke"
                with suppress(websockets.ConnectionClosed):
                    while True:
                        await socket.send(silence)
                        await asyncio.sleep(0.05)
                assert socket.close_code == 1000

        asyncio.run(main())
        assert 0.8 < loop_times[0] - quiet[0] < 5

    def test_activity(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            activity = Activity()
            begun = loop.time()
            activity.play(tone(500, 200, RATE), RATE)
            activity.hear(bytes(640))
            activity.play(bytes(64000), RATE)
            await activity.silence(0.1)
            assert 0.29 < loop.time() - begun < 2, "the bot's sound lasts until it has been played"
            resumed = asyncio.create_task(activity.resumed())
            activity.hear(bytes(641))
            await asyncio.sleep(0.02)
            assert not resumed.done()
            activity.hear(tone(500, 40, RATE))
            await asyncio.wait_for(resumed, 5)
            activity.play(tone(500, 60_000, RATE), RATE)
            activity.cut()
            await asyncio.wait_for(activity.silence(0.05), 5)

        asyncio.run(main())


class Answerer(FrameProcessor):
    """Speaks once the harness has sent sound."""

    def __init__(self) -> None:
        super().__init__()
        self.spoken = False

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if type(frame).__name__ == "InputAudioRawFrame" and not self.spoken:
            self.spoken = True
            await self.push_frame(TTSAudioRawFrame(tone(700, 400, RATE), RATE, 1))
        await self.push_frame(frame, direction)


class TestEvals:
    @staticmethod
    async def harness(url: str) -> Any:
        """Connect as ``pipecat eval`` does, say something, and return the answer's sound."""
        params = WebsocketClientParams(
            audio_in_enabled=True,
            audio_out_enabled=True,
            audio_in_sample_rate=RATE,
            audio_out_sample_rate=RATE,
            serializer=EvalClientSerializer(),
        )
        transport = EvalClientTransport(url, params, flags=EvalConnectionFlags(capture_bot_audio=True))
        ready = asyncio.Event()

        @transport.event_handler("on_bot_ready")
        async def on_bot_ready(transport: Any) -> None:
            ready.set()

        async with running(Peer(transport)) as each:
            await asyncio.wait_for(ready.wait(), 10)
            await each.say(tone(500, 200, RATE))
            loud = tone(700, 300, RATE)

            def answered() -> bool:
                audio = bytes(each.ears.audio)
                return correlation_delay_ms(loud, audio, RATE)[1] * len(audio) ** 0.5 > 0.8 * len(loud) ** 0.5

            await wait_for(lambda: any(each.ears.audio) and answered())

    @pytest.mark.parametrize(("path", "how"), [("ws", "create_transport"), ("ws-client", "ready-made")])
    def test_pipecats_harness(self, serve: Any, path: str, how: str) -> None:
        kinds: list[str] = []

        async def bot(runner_args: Any) -> None:
            from pipecat.runner import utils

            if how == "ready-made":
                transport = runner_args.transport
            else:
                make = {
                    "websocket": lambda: FastAPIWebsocketParams(audio_in_enabled=True),
                    "eval": lambda: EvalTransportParams(audio_in_enabled=True, audio_out_enabled=True),
                }
                transport = await utils.create_transport(runner_args, make)
            kinds.append(type(transport).__name__)
            await bots.run(transport, Answerer(), audio_out_sample_rate=RATE)

        server = serve(bot, bot_exit_timeout_s=0.5)
        asyncio.run(self.harness(server.ws_url + path))
        assert kinds == ["EvalFastAPIWebsocketTransport"]
        assert not server.lines("Traceback")

    def test_the_harness_route_is_for_the_harness(self, serve: Any) -> None:
        server = serve(echo)

        async def main() -> None:
            async with websockets.connect(server.ws_url + "ws") as socket:
                await socket.send(await audio_message(bytes(640)))
                assert await closed(socket) == 1008
                assert "/ws-client" in (socket.close_reason or "")

        asyncio.run(main())


def test_the_command(tmp_path: Path) -> None:
    with run(tmp_path, ECHO, "-t", "websocket", "-x", "bot.example", "--stream-auth", "none") as (process, ready):
        assert ready["public_url"] == "https://bot.example"
        assert ready["providers"] == []
        asyncio.run(assert_answers(ready["url"].replace("http", "ws") + "ws-client"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr is not None
        log = process.stderr.read()
    assert "echo.py takes clients" in log
    assert "wss://bot.example/ws-client\n" in log
    assert "clients need no token" in log
    assert "ended by the client" in log
    assert "Traceback" not in log


async def assert_answers(url: str) -> None:
    async with websockets.connect(url) as socket:
        await socket.send(await audio_message(tone(500, 40, RATE)))
        await next_audio(socket)
