"""Tunnels: of ngrok's agent and of commands, which programs of the tests play, and the watch that keeps them open."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from pyngrok import conf, ngrok
from pyngrok.exception import PyngrokNgrokError

from tests.phone.forwarding import OFFLINE, WARNING_PAGE, PublicAddress
from tests.phone.public_network import PublicNetwork, public_network
from wsvoice import http
from wsvoice.errors import ServerError
from wsvoice.phone import tunnel_command
from wsvoice.phone.strays import end_strays
from wsvoice.phone.tunnel_command import find_host
from wsvoice.phone.tunnel_watch import Pace, TunnelWatch, ask
from wsvoice.phone.tunnels import NgrokTunnel, Tunnel, open_tunnel


@pytest.fixture(scope="module")
def shared_network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicNetwork]:
    yield from public_network(tmp_path_factory.mktemp("network"))


@pytest.fixture
def network(shared_network: PublicNetwork, monkeypatch: pytest.MonkeyPatch) -> Iterator[PublicNetwork]:
    """The network of the module, in which this process is; whatever a test leaves running there is a failure."""
    for name, value in shared_network.environ().items():
        monkeypatch.setenv(name, value)
    http.tls_context().load_verify_locations(shared_network.authority)
    shared_network.ngrok_config.parent.mkdir(exist_ok=True)
    shared_network.ngrok_config.write_text('version: "3"\n')
    shared_network.tell()
    conf.set_default(
        conf.PyngrokConfig(
            ngrok_path=str(shared_network.ngrok), config_path=str(shared_network.ngrok_config), startup_timeout=10
        )
    )
    yield shared_network
    ngrok.kill()
    conf.set_default(conf.PyngrokConfig())
    assert shared_network.all_ended(), "a program is left running"


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    """What stands behind the tunnels: it answers as a server does that takes calls."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"status": "ok"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header(http.SERVER_HEADER, "one")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message).rstrip()), level="DEBUG", format="{level} {message}")
    yield lines
    logger.remove(sink)


def comes(condition: Callable[[], Any], timeout_s: float = 8) -> Any:
    """Wait until `condition` holds, and return what it returns."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
    return value


class TestNgrok:
    def test_the_public_address_leads_to_the_port(self, network: PublicNetwork, server: ThreadingHTTPServer) -> None:
        network.tell(hosts=["calm-fox.ngrok-free.app"])
        tunnel = open_tunnel("ngrok", server.server_port)
        assert tunnel.host == "calm-fox.ngrok-free.app"
        assert ask(f"https://{tunnel.host}", timeout_s=5) == ""
        assert tunnel.failure() == ""
        tunnel.close()
        assert network.all_ended()
        assert "ngrok's agent has ended" in tunnel.failure()

    @pytest.mark.parametrize("version", ["2", "3"])
    def test_a_reserved_domain(self, network: PublicNetwork, version: str) -> None:
        conf.get_default().config_version = version
        network.ngrok_config.write_text(f'version: "{version}"\n')
        network.tell(domains=["bot.ngrok.app"])
        tunnel = open_tunnel("ngrok", 7860, domain="bot.ngrok.app")
        tunnel.close()
        assert tunnel.host == "bot.ngrok.app"

    def test_the_token_is_the_one_that_was_given(self, network: PublicNetwork) -> None:
        network.tell(authtoken="2abc_right")
        open_tunnel("ngrok", 7860, authtoken="2abc_right").close()
        assert not any("2abc_right" in argument for said in network.folder.log() for argument in said["arguments"])
        assert "NGROK_AUTHTOKEN" not in os.environ
        network.ngrok_config.write_text('version: "3"\nagent:\n  authtoken: 2abc_right\n')
        open_tunnel("ngrok", 7860).close()

    @pytest.mark.parametrize(
        ("told", "given", "message", "hint"),
        [
            ({"authtoken": "right"}, {}, "requires a verified account and authtoken. (ERR_NGROK_4018)", "AUTHTOKEN"),
            ({"authtoken": "right"}, {"authtoken": "wrong"}, "it is invalid. (ERR_NGROK_107)", "set NGROK_AUTHTOKEN"),
            ({}, {"domain": "a.ngrok.app"}, "reserved for another account. (ERR_NGROK_320)", "reserve a.ngrok.app at"),
            (
                {"online": ["bot.ngrok.app"], "domains": ["bot.ngrok.app"]},
                {"domain": "bot.ngrok.app"},
                "The endpoint 'https://bot.ngrok.app' is already online. (ERR_NGROK_334)",
                "another agent has that address",
            ),
            (
                {"refuses": "dial tcp: lookup connect.ngrok-agent.com: no such host"},
                {},
                "ngrok did not open a tunnel: dial tcp: lookup",
                "check the network",
            ),
            (
                {"refuses": "Your IP is not allowed.\\r\\n\\r\\nERR_NGROK_9040"},
                {},
                "Your IP is not allowed. (ERR_NGROK_9040)",
                "https://ngrok.com/docs/errors/err_ngrok_9040",
            ),
        ],
    )
    def test_each_refusal_has_a_hint_of_its_own(
        self, network: PublicNetwork, told: dict[str, Any], given: dict[str, str], message: str, hint: str
    ) -> None:
        network.tell(**told)
        with pytest.raises(ServerError) as caught:
            open_tunnel("ngrok", 7860, **given)  # type: ignore[arg-type]
        assert caught.value.message.startswith("ngrok did not open a tunnel: ")
        assert message in caught.value.message
        assert "\n" not in caught.value.message
        assert hint in (caught.value.hint or "")
        assert network.all_ended(), "the agent is left running"

    def test_an_agent_that_ends_before_its_reason_is_read_is_asked_again(
        self, network: PublicNetwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = [None, None, "authentication failed. ERR_NGROK_107"]

        def connect(*_: object, **__: object) -> None:
            raise PyngrokNgrokError("The ngrok process was unable to start.", [], answers.pop(0))

        monkeypatch.setattr("pyngrok.ngrok.connect", connect)
        with pytest.raises(ServerError, match="ERR_NGROK_107"):
            open_tunnel("ngrok", 7860)
        assert not answers

    def test_the_token_is_in_no_line_of_the_log(self, network: PublicNetwork, log: list[str]) -> None:
        network.tell(authtoken="right")
        with pytest.raises(ServerError):
            open_tunnel("ngrok", 7860, authtoken="2abc_wrong")
        assert any("Your authtoken: ***" in line for line in log)
        assert not any("2abc_wrong" in line for line in log)

    def test_as_many_agents_as_the_account_may_have(self, network: PublicNetwork, tmp_path: Path) -> None:
        network.tell(sessions=1)
        other = subprocess.Popen(
            [network.ngrok, "start", "--none", "--log", "stdout"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert other.stdout is not None
            assert any("tunnel session started" in line for line in other.stdout)
            with pytest.raises(ServerError, match="limited to 1 simultaneous ngrok agent session") as caught:
                open_tunnel("ngrok", 7860)
            assert "runs elsewhere already" in (caught.value.hint or "")
        finally:
            other.kill()
            other.communicate()

    def test_what_has_failed_and_another_address(self, network: PublicNetwork) -> None:
        network.tell(hosts=["one.ngrok-free.app", "two.ngrok-free.app"])
        tunnel = open_tunnel("ngrok", 7860)
        hosts = [tunnel.host]
        assert tunnel.failure() == ""
        network.tell(hosts=["one.ngrok-free.app", "two.ngrok-free.app"], forgets=True)
        assert tunnel.failure() == tunnel.failure() == "ngrok's agent no longer has the tunnel"
        network.tell(hosts=["one.ngrok-free.app", "two.ngrok-free.app"])
        assert tunnel.failure() == ""
        network.kill()
        comes(lambda: "agent has ended" in tunnel.failure())
        hosts.append(tunnel.reopen())
        assert set(hosts) == {"one.ngrok-free.app", "two.ngrok-free.app"}
        assert tunnel.failure() == ""
        tunnel.close()

    def test_a_configuration_that_cannot_be_read(self, network: PublicNetwork) -> None:
        network.ngrok_config.write_text("version: [")
        conf.get_default().config_path = str(network.ngrok_config)
        from pyngrok import installer

        installer._config_cache.clear()
        with pytest.raises(ServerError, match="ngrok's configuration cannot be read") as caught:
            open_tunnel("ngrok", 7860)
        assert "ngrok config check" in (caught.value.hint or "")

    def test_an_agent_that_cannot_be_downloaded(
        self,
        network: PublicNetwork,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        log: list[str],
    ) -> None:
        path = tmp_path / "bin" / "ngrok"
        # Nothing listens on port 9 of this machine.
        monkeypatch.setattr("pyngrok.installer.get_ngrok_cdn_url", lambda version: "http://127.0.0.1:9/ngrok.tgz")
        conf.get_default().ngrok_path = str(path)
        with pytest.raises(ServerError, match="ngrok's agent could not be installed") as caught:
            open_tunnel("ngrok", 7860)
        assert f"INFO ngrok's agent is not on this machine: it is downloaded to {path}" in log
        assert "PYNGROK_NGROK_PATH" in (caught.value.hint or "")
        assert "AUTHTOKEN" not in (caught.value.hint or "")
        assert capsys.readouterr().out == "", "stdout is for data"

    def test_an_agent_that_cannot_be_started(self, network: PublicNetwork, tmp_path: Path) -> None:
        path = tmp_path / "ngrok"
        path.write_text("#!/nowhere/at/all\n")
        path.chmod(0o755)
        conf.get_default().ngrok_path = str(path)
        with pytest.raises(ServerError, match="ngrok's agent could not be started") as caught:
            open_tunnel("ngrok", 7860)
        assert "PYNGROK_NGROK_PATH" in (caught.value.hint or "")


def command(code: str) -> str:
    """Return a command that runs some Python, with the port as its argument."""
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {{port}}"


class TestCommands:
    def test_cloudflared(self, network: PublicNetwork, server: ThreadingHTTPServer, log: list[str]) -> None:
        tunnel = open_tunnel("cloudflared", server.server_port)
        assert tunnel.host.endswith(".trycloudflare.com")
        assert ask(f"https://{tunnel.host}", timeout_s=5) == ""
        assert tunnel.failure() == ""
        assert any(line.startswith("DEBUG cloudflared: ") and "Registered tunnel" in line for line in log)
        network.kill()
        comes(tunnel.failure)
        assert tunnel.failure().startswith("`cloudflared` ended by signal 9: ")
        first = tunnel.host
        assert tunnel.reopen() != first
        assert ask(f"https://{tunnel.host}", timeout_s=5) == ""
        tunnel.close()
        assert network.all_ended(0)

    def test_cloudflared_says_why_it_ends(self, network: PublicNetwork) -> None:
        network.tell(refuses="dial tcp: no such host")
        with pytest.raises(ServerError, match="ended before it printed an address: failed to request quick Tunnel"):
            open_tunnel("cloudflared", 7860)

    def test_any_command_gets_the_port_and_prints_the_address(self, tmp_path: Path) -> None:
        code = "import sys, time; print('\\33[32mhttps://bot.example.net:' + sys.argv[1], flush=True); time.sleep(60)"
        tunnel = open_tunnel(command(code), 4321)
        tunnel.close()
        assert tunnel.host == "bot.example.net:4321"

    def test_all_that_a_command_has_started_ends_with_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tunnel_command, "END_TIMEOUT_S", 0.2)
        pids = tmp_path / "pids"
        code = (
            "import os, signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
            f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
            "print('https://bot.example.net', flush=True)\n"
            "time.sleep(60)\n"
        )
        tunnel = open_tunnel(command(code), 7860)
        running = [Path(f"/proc/{pid}") for pid in pids.read_text().split()]
        assert len(running) == 2
        assert all(each.exists() for each in running)
        tunnel.close()
        comes(lambda: not any(each.exists() and "\nState:\tZ" not in (each / "status").read_text() for each in running))
        assert tunnel.failure() == "there is no tunnel"

    def test_a_process_that_does_not_close_it_leaves_nothing(self, network: PublicNetwork) -> None:
        program = (
            "from wsvoice.phone.tunnels import open_tunnel\n"
            "tunnels = [open_tunnel('cloudflared', 7860), open_tunnel('ngrok', 7860)]\n"
            "print(*[tunnel.host for tunnel in tunnels])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
        assert "trycloudflare.com localhost:" in done.stdout
        assert network.all_ended()

    @pytest.mark.parametrize("kind", ["cloudflared", "ngrok"])
    def test_one_whose_run_was_killed_is_ended_by_the_next(
        self, network: PublicNetwork, tmp_path: Path, kind: str, log: list[str]
    ) -> None:
        program = (
            "import os, pathlib, sys\n"
            "from wsvoice.phone.tunnels import open_tunnel\n"
            "tunnel = open_tunnel(sys.argv[1], 7860, state=pathlib.Path(sys.argv[2]))\n"
            "os.kill(os.getpid(), 9)\n"
        )
        command = [sys.executable, "-c", program, kind, str(tmp_path)]
        # The program has its error output, and would hold a pipe open.
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=30, check=False)
        assert done.returncode == -9
        (stray,) = network.running()
        (note,) = (tmp_path / "tunnels").glob("*.lock")
        said = note.read_text()
        # The id is another process's by now.
        note.write_text(said.replace('"started": "', '"started": "1'))
        end_strays(tmp_path)
        assert network.running() == [stray]
        assert not note.exists()
        note.write_text(said)
        tunnel = open_tunnel(kind, 7860, state=tmp_path)
        assert stray not in network.running()
        assert any("of a run that was killed still holds a tunnel open" in line for line in log)
        # A living run's is left alone.
        end_strays(tmp_path)
        assert len(network.running()) == 1
        tunnel.close()
        assert list((tmp_path / "tunnels").glob("*")) == []

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (
                "print('one'); print('no licence'); raise SystemExit(3)",
                "ended before it printed an address: no licence",
            ),
            ("pass", "ended before it printed an address"),
            (
                "import time; print('hello', flush=True); time.sleep(60)",
                "printed no https:// address within 0.3 s: hel",
            ),
        ],
    )
    def test_a_command_without_an_address(self, code: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        if "within" in message:
            monkeypatch.setattr(tunnel_command, "ADDRESS_TIMEOUT_S", 0.3)
        with pytest.raises(ServerError) as caught:
            open_tunnel(command(code), 7860)
        assert message in caught.value.message
        assert "run it by itself" in (caught.value.hint or "")

    @pytest.mark.parametrize(
        ("kind", "hint"),
        [("cloudflared", "https://developers.cloudflare.com/"), ("nothing-of-that-name {port}", "install it")],
    )
    def test_a_program_that_is_missing(
        self, kind: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(ServerError, match=f"there is no program `{kind.split()[0]}`") as caught:
            open_tunnel(kind, 7860)
        assert hint in (caught.value.hint or "")

    def test_a_program_that_cannot_be_started(self, tmp_path: Path) -> None:
        path = tmp_path / "tunnel"
        path.write_text("")
        with pytest.raises(ServerError, match="could not be started: Permission denied"):
            open_tunnel(f"{path} {{port}}", 7860)

    def test_one_that_is_closed_while_it_opens(self) -> None:
        tunnel = open_tunnel(command("print('https://bot.example.net', flush=True); import time; time.sleep(60)"), 7860)
        tunnel.close()
        with pytest.raises(ServerError, match="the tunnel is closed"):
            tunnel.reopen()

    @pytest.mark.parametrize(
        ("line", "host"),
        [
            # As the programs print them: tailscale funnel, ssh to localhost.run and serveo, zrok, devtunnel, pinggy.
            ("https://bot.tail1234.ts.net/", "bot.tail1234.ts.net"),
            ("b6f1a2.lhr.life tunneled with tls termination, https://b6f1a2.lhr.life", "b6f1a2.lhr.life"),
            ("Forwarding HTTP traffic from https://abc.serveo.net", "abc.serveo.net"),
            ("access your zrok share at the following endpoints: https://x1.share.zrok.io", "x1.share.zrok.io"),
            (
                "Connect via browser: https://ab1.use.devtunnels.ms:7860, https://ab1-7860.use.devtunnels.ms",
                "ab1.use.devtunnels.ms:7860",
            ),
            ('{"msg": "started", "url": "https://Bot.example.net"}', "bot.example.net"),
            ("It is at <https://bot.example.net>.", "bot.example.net"),
            # Pages about the service, and this machine.
            ("To enable it, visit https://login.tailscale.com/f/funnel?node=abc", ""),
            ("go to https://admin.localhost.run/", ""),
            ("the documentation: https://docs.example.net", ""),
            ("see https://github.com", ""),
            ("https://bot.example.net/docs/", ""),
            ("forwarding https://localhost:8443 and https://127.0.0.1", ""),
            ("http://bot.example.net", ""),
            ("https://user@bot.example.net https://[::1 https://bot.example.net:port", ""),
            ("https://docs.example.net https://bot.example.net", "bot.example.net"),
        ],
    )
    def test_which_address_is_the_tunnels(self, line: str, host: str) -> None:
        assert find_host(line) == host

    @pytest.mark.parametrize(
        ("line", "host"),
        [
            ("INF |  https://calm-river-1.trycloudflare.com   |", "calm-river-1.trycloudflare.com"),
            ('Post "https://api.trycloudflare.com": refused', ""),
            ("see https://bot.example.net", ""),
        ],
    )
    def test_which_address_is_cloudflareds(self, line: str, host: str) -> None:
        assert find_host(line, tunnel_command.CLOUDFLARED.address) == host


class Scripted(Tunnel):
    """A tunnel whose addresses are a test's, and that fails when the test says so."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = list(hosts)
        self.host = self.hosts[0]
        self.why = ""
        self.errors: list[str] = []
        self.opened = 0
        self.closed = 0

    def failure(self) -> str:
        return self.why

    def reopen(self) -> str:
        if self.errors:
            raise ServerError(self.errors.pop(0), hint="mend it")
        self.opened += 1
        self.why = ""
        self.host = self.hosts[self.opened % len(self.hosts)]
        return self.host

    def close(self) -> None:
        self.closed += 1


QUICK = Pace(
    look_s=0.01, ask_s=0.02, ask_again_s=0.01, answer_s=0.3, await_s=0.02, first_wait_s=0.01, longest_wait_s=0.04
)


class TestWatch:
    @pytest.fixture
    def addresses(self, network: PublicNetwork, server: ThreadingHTTPServer) -> Iterator[list[Any]]:
        """Two public addresses of the server, each with what it answers instead."""
        made: list[Any] = []
        for _ in range(2):
            in_place: list[bytes | None] = [None]
            address = PublicAddress(
                network.folder.certificate, server.server_port, in_place=lambda answers=in_place: answers[0]
            )
            made.append((f"localhost:{address.port}", in_place, address))
        yield made
        for *_, address in made:
            address.close()

    def test_it_tells_once_the_address_answers(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str]
    ) -> None:
        host, in_place, _ = addresses[0]
        in_place[0] = OFFLINE
        tunnel, told = Scripted(host), list[str]()
        with TunnelWatch(tunnel, server.server_port, pace=Pace(answer_s=30, await_s=0.02)) as watch:
            watch.start(told.append)
            time.sleep(0.1)
            assert told == []
            in_place[0] = None
            comes(lambda: told)
        assert told == [host]
        assert tunnel.closed
        assert [line for line in log if not line.startswith("DEBUG")] == []

    @pytest.mark.parametrize(
        ("answer", "why"),
        [
            (OFFLINE, "ngrok answers in its place (404, https://ngrok.com/docs/errors/err_ngrok_3200)"),
            (WARNING_PAGE, "ngrok answers in its place (200, https://ngrok.com/docs/errors/err_ngrok_6024)"),
            (
                b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
                "the tunnel or proxy does not reach this server (502)",
            ),
            (
                b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 22\r\n\r\n<title>Sign in</title>",
                "somebody else answers in its place (200 text/html, 'Sign in')",
            ),
        ],
    )
    def test_it_says_what_answers_instead_and_goes_on(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str], answer: bytes, why: str
    ) -> None:
        host, in_place, _ = addresses[0]
        in_place[0] = answer
        told: list[str] = []
        with TunnelWatch(Scripted(host), server.server_port, pace=QUICK) as watch:
            watch.start(told.append)
            comes(lambda: told)
            assert f"WARNING https://{host} does not answer yet, as seen from this machine: {why}" in log
            in_place[0] = None
            comes(lambda: f"INFO https://{host} answers now" in log)
        assert told == [host]

    def test_a_name_that_nobody_knows(self, network: PublicNetwork) -> None:
        assert "gave no response" in ask("https://nobody.example.net", timeout_s=5)

    def test_a_failure_is_mended_and_another_address_told(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str]
    ) -> None:
        (first, *_), (second, *_) = addresses
        tunnel, told = Scripted(first, second), list[str]()
        with TunnelWatch(tunnel, server.server_port, pace=QUICK) as watch:
            watch.start(told.append)
            comes(lambda: told == [first])
            tunnel.errors = ["it is busy", "it is busy", "no network"]
            tunnel.why = "its program has ended"
            comes(lambda: told == [first, second])
        assert [line for line in log if line.startswith("WARNING")] == [
            "WARNING the tunnel is down: its program has ended; it is opened again",
            "WARNING the tunnel cannot be opened: it is busy (mend it); it is tried again",
            "WARNING the tunnel cannot be opened: no network (mend it); it is tried again",
        ]

    def test_the_same_address_is_not_told_again(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str]
    ) -> None:
        host, *_ = addresses[0]
        tunnel, told = Scripted(host), list[str]()
        with TunnelWatch(tunnel, server.server_port, pace=QUICK) as watch:
            watch.start(told.append)
            comes(lambda: told)
            tunnel.why = "its program has ended"
            comes(lambda: f"INFO the tunnel is up again: https://{host}" in log)
        assert told == [host]

    def test_an_address_that_no_longer_answers(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str]
    ) -> None:
        (first, in_place, _), (second, *_) = addresses
        tunnel, told = Scripted(first, second), list[str]()
        with TunnelWatch(tunnel, server.server_port, pace=QUICK) as watch:
            watch.start(told.append)
            comes(lambda: told)
            in_place[0] = OFFLINE
            comes(lambda: told == [first, second])
        why = f"https://{first} does not answer: ngrok answers in its place (404, "
        assert any(line.startswith(f"WARNING the tunnel is down: {why}") for line in log)

    def test_a_server_that_is_held_up_is_not_the_tunnels_fault(
        self, addresses: list[Any], log: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host, in_place, _ = addresses[0]
        tunnel, told, seen = Scripted(host), list[str](), list[str]()

        def seen_ask(url: str, **options: Any) -> str:
            seen.append(url)
            return ask(url, **options)

        monkeypatch.setattr("wsvoice.phone.tunnel_watch.ask", seen_ask)
        # Nothing listens on port 9, where the server of this watch would be.
        with TunnelWatch(tunnel, 9, pace=QUICK) as watch:
            watch.start(told.append)
            comes(lambda: told)
            in_place[0] = OFFLINE
            asked = len(seen)
            comes(lambda: len(seen) > asked + 2 * QUICK.misses)
        assert tunnel.opened == 0
        assert not any("down" in line for line in log)

    def test_the_pauses_become_longer(self, addresses: list[Any], server: ThreadingHTTPServer) -> None:
        host, *_ = addresses[0]
        tunnel, told, at = Scripted(host), list[str](), list[float]()

        class Broken(Scripted):
            def reopen(self) -> str:
                at.append(time.monotonic())
                raise ServerError("no network")

        tunnel = Broken(host)
        pace = Pace(look_s=0.01, first_wait_s=0.02, longest_wait_s=0.16)
        with TunnelWatch(tunnel, server.server_port, pace=pace) as watch:
            watch.start(told.append)
            comes(lambda: told)
            tunnel.why = "its program has ended"
            comes(lambda: len(at) > 5)
        pauses = [after - before for before, after in pairwise(at)]
        for pause, least in zip(pauses, [0.04, 0.08, 0.16, 0.16, 0.16], strict=False):
            assert pause >= least

    def test_what_the_owner_raises_is_logged(
        self, addresses: list[Any], server: ThreadingHTTPServer, log: list[str]
    ) -> None:
        def refuse(_: str) -> None:
            raise ServerError("the number was not pointed", hint="point it")

        host, *_ = addresses[0]
        with TunnelWatch(Scripted(host), server.server_port, pace=QUICK) as watch:
            watch.start(refuse)
            comes(lambda: "ERROR the number was not pointed (point it)" in log)

    def test_a_watch_that_never_began_closes_the_tunnel(self) -> None:
        tunnel = Scripted("bot.example.net")
        with TunnelWatch(tunnel, 9):
            pass
        assert tunnel.closed == 1


def test_ngrok_is_one_of_the_tunnels(network: PublicNetwork) -> None:
    tunnel = open_tunnel("ngrok", 7860)
    tunnel.close()
    assert isinstance(tunnel, NgrokTunnel)
    assert os.environ["PYNGROK_NGROK_PATH"] == str(network.ngrok)
