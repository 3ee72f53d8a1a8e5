"""A public address by ngrok, whose agent is played by a program of the tests."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from pyngrok import conf, ngrok

from tests.runner import bots
from tests.runner.carrier import FORM
from wsvoice.errors import ServerError
from wsvoice.runner.tunnel import ngrok_tunnel

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
