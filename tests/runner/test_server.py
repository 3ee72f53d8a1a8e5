"""The process: signals, the drain, the port, a tunnel."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from pyngrok import conf, ngrok
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.environment import clean_environ
from tests.providers.companies import load_provider
from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled, main_frequency
from tests.signals import tone
from wsvoice.errors import ServerError
from wsvoice.providers import PROVIDERS
from wsvoice.runner.server import DrainingServer, listen
from wsvoice.runner.tunnel import ngrok_tunnel
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

    def test_an_announced_call_is_waited_for_as_long_as_providers_take_to_dial(
        self, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        servers = []
        startup = DrainingServer.startup

        async def note(server: DrainingServer, sockets: Any) -> None:
            servers.append(server)
            await startup(server, sockets)

        # It would end the process of the tests.
        monkeypatch.setattr(Watchdog, "leave", lambda *_: None)
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

    def test_a_second_signal_ends_the_call(self, tmp_path: Path) -> None:
        async def main() -> None:
            with run(tmp_path, ECHO, "-t", "twilio") as (process, ready):
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
            assert process.wait(15) == 130
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


FAKE_AGENT = """
import http.server, json, sys

class Api(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {"tunnels": [], "endpoints": []})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        addr = asked.get("addr") or asked.get("upstream", {}).get("url")
        self.answer(201, {"name": "t", "ID": "x", "uri": "/api/tunnels/t", "proto": "https",
                          "config": {"addr": str(addr)}, "metrics": {}, "public_url": "https://tunnel.example", "url": "https://tunnel.example"})
    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args):
        pass

if "version" in sys.argv:
    print("ngrok version 3.20.0")
elif "start" not in sys.argv:
    pass
elif "REFUSED":
    print('t=1 lvl=eror msg="failed to auth" err="authentication failed: Usage requires an authtoken"', flush=True)
    sys.exit(1)
else:
    server = http.server.HTTPServer(("127.0.0.1", 0), Api)
    print(f't=1 lvl=info msg="starting web service" obj=web addr=127.0.0.1:{server.server_port}', flush=True)
    print('t=1 lvl=info msg="tunnel session started" obj=tunnels.session', flush=True)
    print('t=1 lvl=info msg="client session established" obj=csess', flush=True)
    server.serve_forever()
"""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A program that says what ngrok's agent says, for the real pyngrok to drive."""

    def install(*, refused: bool = False) -> None:
        path = tmp_path / "ngrok"
        source = textwrap.dedent(FAKE_AGENT).replace('"REFUSED"', "True" if refused else "False")
        path.write_text(f"#!{sys.executable}\n{source}")
        path.chmod(0o755)
        config = tmp_path / "ngrok.yml"
        config.write_text("version: 2\n")
        conf.set_default(conf.PyngrokConfig(ngrok_path=str(path), config_path=str(config), startup_timeout=10))

    yield install
    ngrok.kill()
    conf.set_default(conf.PyngrokConfig())


class TestTunnel:
    def test_its_host_is_the_public_one(self, agent: Any, serve: Any) -> None:
        agent()
        server = serve(bots.echo, tunnel="ngrok", verify="off")
        answer = httpx.post(server.url, data=FORM)
        assert 'url="wss://tunnel.example/ws/twilio/' in answer.text

    def test_closed_with_the_server(self, agent: Any) -> None:
        agent()
        with ngrok_tunnel(7860) as host:
            assert host == "tunnel.example"
            process = ngrok.get_ngrok_process().proc
        assert process.wait(10) is not None

    def test_refused(self, agent: Any) -> None:
        agent(refused=True)
        with pytest.raises(ServerError, match="ngrok did not open a tunnel") as caught, ngrok_tunnel(7860):
            pass
        assert "authtoken" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("said", "hint"),
        [
            ("Your account is limited to 1 simultaneous agent session. ERR_NGROK_108", "runs elsewhere already"),
            ("The authtoken you specified is properly formed, but it is invalid. ERR_NGROK_107", "NGROK_AUTHTOKEN"),
            ("The domain is not reserved for you. ERR_NGROK_320", "https://ngrok.com/docs/errors/err_ngrok_320"),
            ("dial tcp: lookup connect.ngrok-agent.com: no such host", "check the network"),
        ],
    )
    def test_each_refusal_has_a_hint_of_its_own(self, agent: Any, tmp_path: Path, said: str, hint: str) -> None:
        agent(refused=True)
        path = tmp_path / "ngrok"
        path.write_text(path.read_text().replace("authentication failed: Usage requires an authtoken", said))
        with pytest.raises(ServerError) as caught, ngrok_tunnel(7860):
            pass
        assert caught.value.message.startswith("ngrok did not open a tunnel: ")
        assert hint in (caught.value.hint or "")
        assert ("AUTHTOKEN" in (caught.value.hint or "")) is ("authtoken" in said)

    def test_an_agent_that_cannot_be_downloaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path, config = tmp_path / "bin" / "ngrok", tmp_path / "ngrok.yml"
        config.write_text("version: 2\n")
        # Nothing listens on port 9 of this machine.
        monkeypatch.setattr("pyngrok.installer.get_ngrok_cdn_url", lambda version: "http://127.0.0.1:9/ngrok.tgz")
        conf.set_default(conf.PyngrokConfig(ngrok_path=str(path), config_path=str(config)))
        log: list[str] = []
        sink = logger.add(lambda message: log.append(str(message)), format="{message}")
        try:
            with pytest.raises(ServerError, match="ngrok's agent could not be installed") as caught, ngrok_tunnel(7860):
                pass
        finally:
            conf.set_default(conf.PyngrokConfig())
            logger.remove(sink)
        assert f"ngrok's agent is not on this machine: it is downloaded to {path}\n" in log
        assert "PYNGROK_NGROK_PATH" in (caught.value.hint or "")
        assert "AUTHTOKEN" not in (caught.value.hint or "")
        assert capsys.readouterr().out == "", "stdout is for data"

    def test_an_agent_that_cannot_be_started(self, agent: Any, tmp_path: Path) -> None:
        agent()
        (tmp_path / "ngrok").write_text("#!/nowhere/at/all\n")
        with pytest.raises(ServerError, match="ngrok's agent could not be started") as caught, ngrok_tunnel(7860):
            pass
        assert "PYNGROK_NGROK_PATH" in (caught.value.hint or "")


def test_the_providers_are_made_once(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def load(name: str, *credentials: Any) -> Any:
        made.append(name)
        return load_provider(name, *credentials)

    monkeypatch.setattr("wsvoice.runner.auth.load_server", load)
    serve(bots.echo, transport=None)
    assert made == list(PROVIDERS)
