"""The files for Docker Compose and Caddy, held against both, and against each other."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.deploy.tools import check, run, tool
from wsvoice.config.values import parse_duration
from wsvoice.deploy.command import Service
from wsvoice.deploy.compose import caddyfile, compose_file
from wsvoice.deploy.sizing import Sizing

SERVICE = Service("bot.py", "my-bot", "bot.example.com", "twilio")
ODD = replace(
    SERVICE, bot="my bots/$(HOME) ${X} #1.py:bot", records=True, transport=None, image="me/bot@sha256:" + 64 * "0"
)


def document(service: Service = SERVICE) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(compose_file(service, root="..", folder="deploy"))
    return found


def write(folder: Path, service: Service) -> Path:
    (folder / "deploy").mkdir()
    (folder / ".env").write_text("WSVOICE_STREAM_SECRET=abc\n")
    path = folder / "deploy" / "compose.yaml"
    path.write_text(compose_file(service, root="..", folder="deploy"))
    return path


@pytest.mark.parametrize("service", [SERVICE, ODD])
def test_it_keeps_to_the_specification(tmp_path: Path, service: Service) -> None:
    check(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", write(tmp_path, service))


@pytest.mark.parametrize("service", [SERVICE, ODD])
def test_docker_compose_takes_it(tmp_path: Path, service: Service) -> None:
    docker_compose = tool("docker-compose")
    path = write(tmp_path, service)
    if check(docker_compose, "version").startswith("docker-compose version 1."):
        # The first Compose knows no names of projects yet.
        path.write_text(re.sub(r"(?m)^name: .*\n", "", path.read_text()))
    check(docker_compose, "-f", path, "config", "-q")
    shown = yaml.safe_load(check(docker_compose, "-f", path, "--profile", "update", "config"))
    bots = [shown["services"][name] for name in ("bot", "bot-next")]
    for each in bots:
        assert each["environment"]["WSVOICE_STREAM_SECRET"] == "abc"
        # Printed so that it could be read again.
        assert each["command"][-1].replace("$$", "$") == service.bot
        assert each["stop_grace_period"] == bots[0]["stop_grace_period"]
    states = [next(str(each) for each in bot["volumes"] if "wsvoice" in str(each)) for bot in bots]
    assert states[0] != states[1]


def test_a_wrong_key_would_be_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, SERVICE)
    path.write_text(path.read_text().replace("stop_grace_period", "stop_grace_perod"))
    assert run(tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", path).returncode == 1


@pytest.mark.parametrize("longest_s", [30, 3600])
def test_docker_waits_for_the_longest_call(longest_s: float) -> None:
    bot = document(replace(SERVICE, sizing=Sizing(20, longest_s)))["services"]["bot"]
    options = dict(each[2:].split("=", 1) for each in bot["command"] if each.startswith("--"))
    times = {name: parse_duration(options[name], name) for name in ("drain-timeout", "drain-linger", "max-call-time")}
    assert times["max-call-time"] == longest_s
    assert times["drain-timeout"] >= longest_s + 45
    assert parse_duration(bot["stop_grace_period"], "") >= times["drain-timeout"] + times["drain-linger"] + 10
    assert bot["stop_signal"] == "SIGTERM"


def test_only_caddy_is_reached_from_outside() -> None:
    services = document()["services"]
    assert [name for name, each in services.items() if "ports" in each] == ["caddy"]


def test_every_volume_is_declared_and_used() -> None:
    for service in (SERVICE, ODD):
        found = document(service)
        mounted = [each.split(":")[0] for one in found["services"].values() for each in one["volumes"]]
        assert set(found["volumes"]) == {each for each in mounted if not each.startswith(".")}


class Bot:
    """A process that answers with its name, and at /readyz whether it takes calls."""

    def __init__(self, name: str, port: int = 0) -> None:
        bot = self
        self.takes_calls = True
        #: How often it was asked whether it does.
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if bot.takes_calls else 503)
                self.end_headers()
                bot.asked += 1

            def do_POST(self) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def wait_for(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def ask(port: int) -> str:
    """Return who answers a webhook; empty if Caddy does not listen yet."""
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/", method="POST", data=b"a=1"), timeout=10) as answer:
            said: str = answer.read().decode()
    except URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            return ""
        raise
    return said


def without_new_words(text: str) -> str:
    """Leave out what the installed Caddy may not know yet."""
    found = re.search(r"v?(\d+)\.(\d+)", check(tool("caddy"), "version"))
    assert found
    is_old = (int(found[1]), int(found[2])) < (2, 7)
    return re.sub(r"(?m)^\s*stream_close_delay .*\n", "", text) if is_old else text


class TestCaddy:
    def adapted(self, tmp_path: Path) -> dict[str, Any]:
        caddy = tool("caddy")
        path = tmp_path / "Caddyfile"
        path.write_text(without_new_words(caddyfile(SERVICE)))
        check(caddy, "validate", "--adapter", "caddyfile", "--config", path)
        printed = check(caddy, "adapt", "--adapter", "caddyfile", "--config", path)
        # Warnings are printed in front of it.
        (line,) = [line for line in printed.splitlines() if line.startswith('{"apps"')]
        found: dict[str, Any] = json.loads(line)
        return found

    def test_it_passes_the_host_on_to_whichever_bot_takes_calls(self, tmp_path: Path) -> None:
        (server,) = self.adapted(tmp_path)["apps"]["http"]["servers"].values()
        (route,) = server["routes"]
        assert server["listen"] == [":443"]
        assert route["match"] == [{"host": ["bot.example.com"]}]
        proxy = route["handle"][0]["routes"][0]["handle"][0]
        services = document()["services"]
        assert [each["dial"] for each in proxy["upstreams"]] == [
            f"{name}:7860" for name in services if name.startswith("bot")
        ]
        assert proxy["health_checks"]["active"]["uri"] == "/readyz"
        # It has looked more than once before a bot that drains stops to listen.
        assert proxy["health_checks"]["active"]["interval"] <= 10e9 / 3

    def test_every_webhook_is_answered_while_the_bot_is_replaced(self, tmp_path: Path) -> None:
        caddy, port, next_port = tool("caddy"), free_port(), free_port()
        bot, later = Bot("bot"), None
        text = without_new_words(caddyfile(SERVICE)).replace("bot.example.com {", f"http://127.0.0.1:{port} {{")
        text = text.replace("bot:7860", f"127.0.0.1:{bot.port}").replace("bot-next:7860", f"127.0.0.1:{next_port}")
        path = tmp_path / "Caddyfile"
        path.write_text("{\n\tadmin off\n}\n" + text.replace("health_interval 2s", "health_interval 50ms"))
        process = subprocess.Popen(
            [caddy, "run", "--adapter", "caddyfile", "--config", path], stderr=subprocess.DEVNULL
        )
        try:
            # Nobody answers at bot-next, which is there only during an update.
            wait_for(lambda: ask(port) == "bot")
            later = Bot("bot-next", next_port)
            # `up --wait` takes ten seconds until Docker has looked at it, and Caddy looks every two.
            wait_for(lambda: later.asked > 1)
            assert ask(port) == "bot"
            bot.takes_calls = False
            answers = []
            wait_for(lambda: answers.append(ask(port)) or answers[-1] == "bot-next")
            assert set(answers) == {"bot", "bot-next"} or answers == ["bot-next"]
            bot.stop()
            assert {ask(port) for _ in range(20)} == {"bot-next"}
        finally:
            process.terminate()
            process.wait(10)
            if later is not None:
                later.stop()

    def test_calls_outlive_its_reload(self) -> None:
        delay = re.search(r"stream_close_delay (\S+)", caddyfile(SERVICE))
        assert delay
        assert parse_duration(delay[1], "") >= SERVICE.sizing.longest_call_s
