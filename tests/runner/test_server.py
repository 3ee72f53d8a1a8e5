"""The process: signals, the drain, the port."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.environment import clean_environ
from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled, main_frequency
from tests.signals import tone
from wsvoice.errors import ServerError
from wsvoice.providers import PROVIDERS
from wsvoice.runner.listening import listen
from wsvoice.runner.server import DrainingServer
from wsvoice.runner.watchdog import Watchdog

ECHO = str(Path(__file__).parents[2] / "examples" / "echo.py")


@contextmanager
def run(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start ``wsvoice run`` in a process and a `folder` of its own; yield it with what it says once it listens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wsvoice", "run", *arguments, "--host", "127.0.0.1", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=clean_environ(),
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


class TestDrain:
    def test_the_call_finishes_and_nobody_new_comes_in(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio") as (process, ready):
                url = ready["url"]
                async with dialled(await asyncio.to_thread(announce, url)) as carrier:
                    await carrier.speak(tone(500, 300, 8000))
                    process.send_signal(signal.SIGTERM)
                    while httpx.get(url + "readyz").status_code != 503:
                        await asyncio.sleep(0.01)
                    assert "Reject" in httpx.post(url, data={**FORM, "CallSid": "CA2"}).text
                    carrier.messages.clear()
                    await carrier.speak(tone(900, 1300, 8000))
                    await carrier.until("mark")
                    assert main_frequency(carrier.heard()) == pytest.approx(900, abs=15)
                    assert process.poll() is None
                    await carrier.hang_up()
                assert await asyncio.to_thread(process.wait, 20) == 0
                assert process.stderr is not None
                log = process.stderr.read()
                assert "waiting for 1 call to finish" in log
                assert "ended by the caller" in log
                assert "Traceback" not in log

        asyncio.run(main())

    def test_a_caller_who_was_told_where_to_dial_is_waited_for(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio") as (process, ready):
                stream_url = await asyncio.to_thread(announce, ready["url"])
                process.send_signal(signal.SIGTERM)
                while httpx.get(ready["url"] + "readyz").status_code != 503:
                    await asyncio.sleep(0.01)
                # Turned away: nobody waits for this one.
                busy = httpx.post(ready["url"], data={**FORM, "CallSid": "CA2"}).text
                assert "Reject" in busy
                await asyncio.sleep(1.3)
                async with dialled(stream_url) as carrier:
                    await carrier.speak(tone(500, 200, 8000))
                    await carrier.until("media")
                    await carrier.hang_up()
                begun = time.monotonic()
                assert await asyncio.to_thread(process.wait, 20) == 0
                assert time.monotonic() - begun < 8
                assert process.stderr is not None
                assert (
                    "waiting for 1 announced call to begin (at most 15 s); signal again to end them now"
                    in process.stderr.read()
                )

        asyncio.run(main())

    def test_a_client_who_was_given_a_token_is_waited_for(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "websocket") as (process, ready):
                answer = (await asyncio.to_thread(httpx.post, ready["url"] + "start", json={})).json()
                process.send_signal(signal.SIGTERM)
                while httpx.get(ready["url"] + "readyz").status_code != 503:
                    await asyncio.sleep(0.01)
                with pytest.raises(InvalidStatus, match="503"):
                    await connect(answer["wsUrl"])
                async with connect(f"{answer['wsUrl']}/{answer['token']}"):
                    await asyncio.sleep(0.3)
                    assert process.poll() is None
                assert await asyncio.to_thread(process.wait, 20) == 0

        asyncio.run(main())

    @pytest.mark.usefixtures("unhurried")
    def test_an_announced_call_is_waited_for_as_long_as_providers_take_to_dial(
        self, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        servers = []
        startup = DrainingServer.startup

        async def note(server: DrainingServer, sockets: Any) -> None:
            servers.append(server)
            await startup(server, sockets)

        # It would end the process of the tests.
        monkeypatch.setattr(Watchdog, "exit_within", lambda *_: None)
        monkeypatch.setattr(DrainingServer, "startup", note)
        monkeypatch.setattr("wsvoice.runner.server.DIAL_TIMEOUT_S", 1.5, raising=False)

        async def bot(runner_args: Any) -> None:
            pass

        running = serve(bot)
        announce(running.url)
        servers[0].handle_exit(signal.SIGTERM, None)
        begin = time.monotonic()
        with suppress(httpx.TransportError):
            while time.monotonic() - begin < 8:
                httpx.get(running.url + "healthz", timeout=5)
                time.sleep(0.05)
        assert time.monotonic() - begin < 8
        assert time.monotonic() - begin > 1
        assert running.lines("1 announced call to begin (at most 1.5 s)")

    def test_new_calls_are_taken_while_it_lingers(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio", "--drain-linger", "1s") as (process, ready):
                process.send_signal(signal.SIGTERM)
                while httpx.get(ready["url"] + "readyz").status_code != 503:
                    await asyncio.sleep(0.01)
                signalled_at = time.monotonic()
                assert httpx.get(ready["url"] + "healthz").status_code == 200
                async with dialled(await asyncio.to_thread(announce, ready["url"])) as carrier:
                    await carrier.speak(tone(500, 100, 8000))
                    await carrier.until("media")
                    answer = "Stream"
                    while "Reject" not in answer:
                        assert time.monotonic() - signalled_at < 10
                        await asyncio.sleep(0.05)
                        answer = httpx.post(ready["url"], data={**FORM, "CallSid": f"CA{time.monotonic()}"}).text
                    assert time.monotonic() - signalled_at > 0.7
                    await carrier.speak(tone(500, 100, 8000))
                    assert carrier.socket.close_code is None
                    process.send_signal(signal.SIGTERM)
                    await carrier.closed(15)
                assert await asyncio.to_thread(process.wait, 20) == 0
                assert process.stderr is not None
                assert "asked to stop: /readyz says no, and new calls are taken for 1 s more" in process.stderr.read()

        asyncio.run(main())

    @pytest.mark.parametrize("lingers", [(), ("--drain-linger", "60s")])
    def test_a_second_signal_ends_the_call(self, tmp_path: Path, lingers: tuple[str, ...]) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio", *lingers) as (process, ready):
                async with dialled(await asyncio.to_thread(announce, ready["url"])) as carrier:
                    await carrier.speak(tone(500, 100, 8000))
                    process.send_signal(signal.SIGTERM)
                    while httpx.get(ready["url"] + "readyz").status_code != 503:
                        await asyncio.sleep(0.01)
                    process.send_signal(signal.SIGTERM)
                    code, _ = await carrier.closed(15)
                    assert code in (1001, 1012)
                assert await asyncio.to_thread(process.wait, 20) == 0

        asyncio.run(main())

    def test_the_time_for_it_is_limited(self, tmp_path: Path) -> None:
        """For a call that goes on, and for a caller who does not come."""

        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio", "--drain-timeout", "1s") as (process, ready):
                await asyncio.to_thread(announce, ready["url"], "CA00000000000000000000000000000002")
                async with dialled(await asyncio.to_thread(announce, ready["url"])) as carrier:
                    await carrier.speak(tone(500, 100, 8000))
                    process.send_signal(signal.SIGTERM)
                    assert (await carrier.closed(15))[0] == 1001
                assert await asyncio.to_thread(process.wait, 10) == 0
                assert process.stderr is not None
                assert "waiting for 1 call" in (log := process.stderr.read())
                assert "1 announced call" in log

        asyncio.run(main())

    def test_interrupted_without_calls_it_exits_at_once(self, tmp_path: Path) -> None:
        with run(tmp_path, ECHO) as (process, _):
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 0
            assert time.monotonic() - begun < 8
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()


class TestPort:
    def test_taken(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(ServerError, match=f"127.0.0.1:{port}") as caught:
                listen("127.0.0.1", port)
            assert "--port" in (caught.value.hint or "")

    def test_an_address_of_another_machine(self) -> None:
        # Of the block for documentation, which no machine has.
        with pytest.raises(ServerError, match=r"192\.0\.2\.1:") as caught:
            listen("192.0.2.1", 0)
        assert "not an address of this machine" in str(caught.value.hint)

    def test_unknown_host(self) -> None:
        with pytest.raises(ServerError, match="unknown"):
            listen("no.such.host.invalid", 0)

    def test_localhost_in_both_families_on_one_port(self) -> None:
        sockets = listen("localhost", 0)
        try:
            assert len({each.getsockname()[1] for each in sockets}) == 1
            families = {each.family for each in sockets}
            assert socket.AF_INET in families
        finally:
            for each in sockets:
                each.close()


def test_the_providers_are_made_once(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def load(name: str, *credentials: Any) -> Any:
        made.append(name)
        return load_provider(name, *credentials)

    monkeypatch.setattr("wsvoice.runner.auth.load_server", load)
    serve(bots.echo, transport=None)
    assert made == list(PROVIDERS)
