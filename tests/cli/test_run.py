"""``wsvoice run``: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.invoke import BOTS, GOOD, invoke, process
from wsvoice.cli.signals import interrupted_by_signals
from wsvoice.config import RunConfig
from wsvoice.errors import ServerError
from wsvoice.phone.runs import RunFile, RunningServer

pytestmark = pytest.mark.usefixtures("clean_process")


def test_run_serves_the_bot_as_it_is_told(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    invoke("run", "-t", "twilio", "--port", "0", "--max-calls", "2", "--param", "a=1", "--param", "b=2")
    assert served.bot.name == "bot.py"
    assert served.bot.path == tmp_path / "bot.py"
    assert served.config == RunConfig(
        transport="twilio", port=0, max_calls=2, parameters={"a": "1", "b": "2"}, credentials={}
    )


def test_run_takes_every_option(served, clean_process):
    invoke(
        *["run", f"{BOTS / 'main_guard.py'}:bot", "--transport", "twilio", "--proxy", "https://x.io/"],
        *["--host", "0.0.0.0", "--port", "8000", "--verify", "enforce", "--stream-auth", "none", "--record", "calls"],
        *["--drain-timeout", "1m", "--log-level", "debug"],
    )
    assert served.config == RunConfig(
        bot=f"{BOTS / 'main_guard.py'}:bot",
        transport="twilio",
        proxy="x.io",
        host="0.0.0.0",
        port=8000,
        verify="enforce",
        stream_auth="none",
        record=Path("calls"),
        drain_timeout_s=60.0,
        log_level="DEBUG",
    )
    assert clean_process == ["DEBUG"]


def test_run_puts_its_create_transport_in_place_before_the_bot_is_imported(served, tmp_path):
    from wsvoice.runner.pipecat.call_arguments import create_transport

    (tmp_path / "bot.py").write_text("from pipecat.runner.utils import create_transport\n" + GOOD)
    invoke("run")
    assert served.bot.module.create_transport is create_transport


def test_run_gives_the_bot_what_dotenv_says_and_the_shell_wins(served, tmp_path, monkeypatch):
    monkeypatch.setenv("ACME_REGION", "shell")
    (tmp_path / ".env").write_text("ACME_API_KEY=file\nACME_REGION=file\nWSVOICE_PORT=8000\n")
    (tmp_path / "bot.py").write_text("import os\nSEEN = os.environ['ACME_API_KEY'], os.environ['ACME_REGION']\n" + GOOD)
    invoke("run")
    assert served.bot.module.SEEN == ("file", "shell")
    assert served.config.port == 8000


def test_run_says_where_to_try_it(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke("run")
    assert result.stdout == ""
    assert "bot.py takes calls\n" in result.stderr
    assert re.search(r"listens on +http://localhost:7860/$", result.stderr, re.M)
    assert re.search(r"try it +wsvoice dial http://localhost:7860/ -t twilio$", result.stderr, re.M)
    assert "note: only test calls reach it; a real number needs a public address" in result.stderr
    assert "warning" not in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "100 calls (--max-calls)"),
        (("--max-calls", "1"), "1 call (--max-calls)"),
        (("--max-calls", "0"), "any number of calls"),
        (("-t", "websocket", "--max-calls", "7"), "7 calls (--max-calls)"),
    ],
)
def test_run_says_how_many_calls_it_takes_at_once(served, tmp_path, options, words):
    (tmp_path / "bot.py").write_text(GOOD)
    assert re.search(rf"at once +{re.escape(words)}$", invoke("run", *options).stderr, re.M)


def test_run_says_which_other_limits_are_set(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    assert "limits" not in invoke("run").stderr
    limits = ["--max-calls-per-number", "2", "--max-calls-per-hour", "1", "--max-minutes-per-day", "300"]
    said = invoke("run", *limits, "--max-call-time", "10m").stderr
    row = "2 calls at once of one number, 1 call an hour of one number, 300 minutes a day, 600 s a call"
    assert re.search(rf"limits +{row}$", said, re.M)


@pytest.mark.parametrize(
    ("options", "environ", "warning"),
    [
        (
            ["--metrics-host", "0.0.0.0"],
            {"WSVOICE_METRICS_PORT": "0"},
            "--metrics-host is for the port of --metrics-port, which is not given",
        ),
        (["--log-format", "json"], {}, "--live shows the log's last lines as they are: JSON objects"),
    ],
)
def test_run_warns_of_options_that_do_not_go_together(served, tmp_path, options, environ, warning):
    (tmp_path / "bot.py").write_text(GOOD)
    alone = {} if environ else {"WSVOICE_LIVE": "1"}
    assert f"warning: {warning}" in invoke("run", *options, environ=alone).stderr
    assert warning not in invoke("run", *options, environ=environ).stderr


def test_run_says_what_the_provider_must_be_told(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    (tmp_path / ".env").write_text("TWILIO_AUTH_TOKEN=secret\n")
    result = invoke("run", "-t", "twilio", "-x", "bot.example.com")
    assert re.search(r"Twilio +voice webhook of the number: https://bot\.example\.com/ \(HTTP POST\)", result.stderr)
    assert re.search(r"try it +wsvoice dial https://bot\.example\.com/ -t twilio$", result.stderr, re.M)
    assert "note:" not in result.stderr
    assert "warning" not in result.stderr
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "warning"),
    [
        (["--verify", "off"], "warning: webhooks are not verified: anybody"),
        (["--stream-auth", "none"], "warning: streams need no token: anybody"),
    ],
)
def test_run_warns_of_strangers_on_a_public_address(served, tmp_path, arguments, warning):
    (tmp_path / "bot.py").write_text(GOOD)
    assert warning in invoke("run", "-x", "bot.example.com", *arguments).stderr
    served.ready = replace(served.ready, public_url="https://a.b")
    assert warning in invoke("run", *arguments).stderr, "a tunnel's address is public too"


def test_run_json_is_one_object_on_stdout(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke("run", "--json", "-x", "x.io")
    assert json.loads(result.stdout) == {
        "url": "http://localhost:7860/",
        "public_url": "https://x.io",
        "providers": ["twilio"],
        "pid": os.getpid(),
    }
    assert result.stdout.count("\n") == 1


def test_verbose_says_where_each_setting_comes_from(served, tmp_path, monkeypatch):
    monkeypatch.setenv("WSVOICE_MAX_CALLS", "3")
    (tmp_path / "bot.py").write_text(GOOD)
    (tmp_path / ".env").write_text("WSVOICE_VERIFY=off\nTWILIO_AUTH_TOKEN=hush-hush\n")
    (tmp_path / "pyproject.toml").write_text("[tool.wsvoice]\ndrain-timeout = '2m'\n")
    text = " ".join(invoke("run", "-v", "--port", "8000").stderr.split())
    for line in [
        "port = 8000 (flag --port)",
        "max-calls = 3 (environment WSVOICE_MAX_CALLS)",
        "verify = off (.env WSVOICE_VERIFY)",
        "drain-timeout = 120s (pyproject.toml [tool.wsvoice] drain-timeout)",
        "host = localhost (default)",
        f"{tmp_path / '.env'} was read",
    ]:
        assert line in text
    assert "hush-hush" not in text


def test_run_says_where_it_is_once_its_tunnel_has_another_address(served, tmp_path, monkeypatch):
    (tmp_path / "bot.py").write_text(GOOD)
    (tmp_path / ".env").write_text("TWILIO_AUTH_TOKEN=secret\n")

    def serve(bot, config, *, on_ready, **_):
        on_ready(replace(served.ready, public_url="https://one.example"))
        on_ready(replace(served.ready, public_url="https://two.example"))

    monkeypatch.setattr("wsvoice.runner.server.serve", serve)
    result = invoke("run", "-t", "twilio", "--tunnel", "ngrok", "--json")
    assert [json.loads(line)["public_url"] for line in result.stdout.splitlines()] == [
        "https://one.example",
        "https://two.example",
    ]
    banner, moved = result.stderr.split("the public address is another one now\n")
    assert "https://one.example/ (HTTP POST)" in banner
    assert re.fullmatch(r" *Twilio +voice webhook of the number: https://two\.example/ \(HTTP POST\)\n", moved)
    invoke("run", "-t", "twilio", "--tunnel", "ngrok", "--quiet")
    moved = invoke("run", "-t", "websocket", "--tunnel", "cloudflared").stderr.split("another one now\n")[1]
    assert re.fullmatch(r" *clients +wss://two\.example/ws-client\n", moved)


def test_a_signal_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_setting_that_cannot_be_used_is_misuse(tmp_path):
    result = invoke("run", "-x", "x.io/voice", code=2)
    assert result.stderr == (
        "error: -x takes a domain, not a URL with a path: got 'x.io/voice'\nhint:  use `-x x.io`\n"
    )


@pytest.mark.parametrize(
    ("name", "code", "first"),
    [
        ("nowhere.py", 2, "error: there is no file"),
        ("no_bot.py", 2, "error: no_bot.py has no coroutine function named `bot`"),
        ("misspelt.py", 2, "error: misspelt.py has no coroutine function named `bot`"),
        ("plain_function.py", 2, "error: `bot` in plain_function.py is a plain function"),
        ("wrong_arity.py", 2, "error: `bot` in wrong_arity.py cannot be called with one argument"),
        ("import_error.py", 1, "Traceback (most recent call last):"),
        ("missing_dependency.py", 1, "error: missing_dependency.py imports `acme_speech_services`"),
        ("exits.py", 1, "error: exits.py stops while it is imported"),
    ],
)
def test_a_bad_bot_ends_run_before_anything_listens(served, name, code, first):
    result = invoke("run", str(BOTS / name), code=code)
    assert result.stdout == ""
    assert result.stderr.startswith(first)
    assert served.config is None
    last = result.stderr.splitlines()[-1]
    assert last.startswith(("hint:  ", "error: "))


def test_the_bots_traceback_stands_before_the_error(served):
    lines = invoke("run", str(BOTS / "import_error.py"), code=1).stderr.splitlines()
    assert lines[-2] == "KeyError: 'greeting'"
    assert lines[-1] == "error: import_error.py failed while it was imported: KeyError: 'greeting'"
    assert not any("wsvoice/runner" in line or "importlib" in line for line in lines)


def test_a_server_that_does_not_start_is_a_failure(monkeypatch, tmp_path):
    def serve(*_, **__):
        raise ServerError("cannot listen on localhost:7860: in use", hint="try --port 7861")

    monkeypatch.setattr("wsvoice.runner.server.serve", serve)
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke("run", code=1)
    assert result.stderr == "error: cannot listen on localhost:7860: in use\nhint:  try --port 7861\n"


def test_a_port_that_another_server_of_ones_own_has(monkeypatch, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    monkeypatch.setenv("WSVOICE_STATE_DIR", str(tmp_path / "state"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ["-t", "twilio", "--host", "127.0.0.1", "--port", str(port)]
        said = invoke("run", *options, code=1).stderr.splitlines()
        assert said[-1] == f"hint:  another program may be using it; try --port {port + 1}"
        url, pid = f"http://localhost:{port}/", os.getpid()
        RunFile(tmp_path / "state").write(RunningServer(url, "key", pid=pid))
        error, hint = invoke("run", *options, code=1).stderr.splitlines()[-2:]
    assert error.startswith(f"error: cannot listen on 127.0.0.1:{port}: ")
    assert error.endswith(f": a server of yours has it, process {pid}")
    assert hint == f"hint:  `wsvoice calls` shows it; stop it, or try --port {port + 1}"


def test_an_interrupted_server(monkeypatch, tmp_path):
    def serve(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsvoice.runner.server.serve", serve)
    (tmp_path / "bot.py").write_text(GOOD)
    assert invoke("run", code=130).stdout == ""


def test_where_causes_go_has_nothing_to_do_with_the_banner(served, tmp_path, monkeypatch):
    (tmp_path / "bot.py").write_text(GOOD)
    monkeypatch.setenv("WSVOICE_CAUSES", str(tmp_path / "causes"))
    assert "bot.py takes calls" in invoke("run").stderr
    assert served.config.causes == tmp_path / "causes"
    monkeypatch.delenv("WSVOICE_CAUSES")
    monkeypatch.setenv("WSVOICE_PROT", "80")
    assert invoke("run", "--quiet").stderr == "", "dial tells of them itself"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_run_says_that_it_listens_on_every_address(served, tmp_path, host):
    (tmp_path / "bot.py").write_text(GOOD)
    shown = invoke("run", "--host", host).stderr
    assert re.search(r"listens on +http://localhost:7860/, and on every other address of this machine$", shown, re.M)
    assert "note: other machines in the network reach it, and no provider does; a real number needs" in shown


def test_run_says_what_an_asterisk_elsewhere_needs(served, tmp_path):
    (tmp_path / "bot.py").write_text(GOOD)
    served.ready = replace(served.ready, provider_names=("asterisk",))
    note = "note: on another machine, Asterisk needs this machine's name in place of localhost in its uri"
    assert note in " ".join(invoke("run", "-t", "asterisk", "--host", "0.0.0.0").stderr.split())
    assert "note:" not in invoke("run", "-t", "asterisk").stderr


def test_run_warns_of_a_misspelt_variable_and_goes_on(served, tmp_path, monkeypatch):
    monkeypatch.setenv("WSVOICE_PROT", "80")
    (tmp_path / ".env").write_text("WSVOICE_MAXCALLS=3\nWSVOICE_DIAL_LISTEN=2\n")
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke("run")
    assert "warning: WSVOICE_PROT is not read: did you mean WSVOICE_PORT?\n" in result.stderr
    assert "warning: WSVOICE_MAXCALLS in .env is not read: did you mean WSVOICE_MAX_CALLS?\n" in result.stderr
    assert result.stderr.count("warning") == 2
    assert served.config.max_calls is None


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_served_bot_listens_and_stops_when_it_is_asked_to(tmp_path):
    command = [sys.executable, "-m", "wsvoice", "run", str(BOTS / "main_guard.py"), "-t", "twilio", "--port", "0"]
    with subprocess.Popen(
        [*command, "--json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as served:
        try:
            ready = json.loads(served.stdout.readline())
            assert ready["pid"] == served.pid
            assert re.fullmatch(r"http://localhost:[1-9]\d*/", ready["url"])
            assert ready["public_url"] is None
            assert ready["providers"] == ["twilio"]
            served.send_signal(signal.SIGTERM)
            _, stderr = served.communicate(timeout=30)
        finally:
            served.kill()
    assert served.returncode == 0
    assert "Traceback" not in stderr
    assert "main_guard.py takes calls" in stderr


class TestCheck:
    """``--check``: what stands before listening, and nothing of what comes then."""

    @pytest.fixture(autouse=True)
    def bot(self, clean_process, served) -> None:
        Path("bot.py").write_text(GOOD)
        self.served = served

    def test_a_bot_that_would_run_is_one_line(self) -> None:
        done = invoke("run", "--check", "-t", "twilio")
        assert (done.stdout, done.stderr) == ("", "bot.py is ready to run: twilio\n")
        assert self.served.config is None

    def test_programs_are_told_too(self) -> None:
        Path(".env").write_text("TWILIO_AUTH_TOKEN=secret\n")
        said = json.loads(invoke("run", "--check", "-t", "twilio", "-x", "bot.example.com", "--json").stdout)
        assert said == {
            "ok": True,
            "bot": "bot.py",
            "transport": "twilio",
            "providers": ["twilio"],
            "public_url": "https://bot.example.com",
            "error": None,
            "hint": None,
        }

    @pytest.mark.parametrize(
        ("arguments", "code", "error"),
        [
            (("-t", "twilio", "-x", "bot.example.com"), 2, "on a public address Twilio's webhooks are checked, and"),
            (("-t", "twilo"), 2, "-t takes "),
            (("nobot.py",), 2, "there is no file nobot.py"),
            (("broken.py",), 1, "broken.py failed while it was imported: RuntimeError: no"),
            (("-t", "twilio", "--record", "bot.py/calls"), 2, "--record bot.py/calls cannot be written to: Not a dir"),
            (("-t", "twilio", "-x", "a.example.com", "--number", "+15551234567"), 2, "Twilio's API needs TWILIO_"),
            (("-t", "exotel", "--verify", "enforce"), 2, "Exotel signs nothing"),
            (("-t", "twilio", "--redis", "redis://localhost"), 2, "servers that share a Redis share a secret too, and"),
            (("-t", "twilio", "--metrics-port", "7860"), 2, "--metrics-port 7860 is the port that calls come to"),
            (("broken.py", "--workers", "2"), 1, "broken.py failed while it was imported: RuntimeError: no"),
            (("-t", "websocket-server", "--workers", "2"), 2, "--workers has no meaning for -t websocket-server"),
        ],
    )
    def test_what_is_wrong_is_told_as_run_tells_it(self, arguments: tuple[str, ...], code: int, error: str) -> None:
        Path("broken.py").write_text("raise RuntimeError('no')\n")
        done = invoke("run", "--check", "--json", *arguments, code=code)
        said = json.loads(done.stdout)
        assert said["ok"] is False
        assert said["error"].startswith(error)
        assert f"error: {said['error']}\n" in done.stderr

    def test_the_message_for_those_who_are_turned_away_is_read(self) -> None:
        done = invoke("run", "--check", "-t", "twilio", "--busy-message", "busy.wav", code=2)
        assert "busy.wav does not exist" in done.stderr

    @pytest.mark.parametrize(
        ("secret", "error"),
        [("short", "WSVOICE_STREAM_SECRET has 5 characters, and needs 32"), ("a" * 40, "WSVOICE_STREAM_SECRET is 40")],
    )
    def test_a_secret_that_could_be_guessed_is_told(self, secret: str, error: str) -> None:
        Path(".env").write_text(f"WSVOICE_STREAM_SECRET={secret}\n")
        done = invoke("run", "--check", "-t", "twilio", code=2)
        assert done.stderr.startswith(f"error: {error}")
        # One that serves a single client has no streams to sign for.
        invoke("run", "--check", "-t", "websocket-server")

    def test_whether_redis_answers_is_none_of_its_business(self) -> None:
        Path(".env").write_text("WSVOICE_STREAM_SECRET=0123456789abcdef0123456789abcdef\n")
        with socket.create_server(("localhost", 0)) as redis:
            redis.settimeout(0)
            done = invoke("run", "--check", "-t", "twilio", "--redis", f"redis://localhost:{redis.getsockname()[1]}")
            with pytest.raises(BlockingIOError):
                redis.accept()
        assert done.stderr == "bot.py is ready to run: twilio\n"

    def test_with_workers_this_process_loads_the_bot(self) -> None:
        done = invoke("run", "--check", "-t", "twilio", "--workers", "2", "--metrics-port", "9090")
        assert done.stderr == "bot.py is ready to run: twilio\n"
        assert self.served.config is None

    def test_a_port_that_is_taken_is_none_of_its_business(self) -> None:
        with socket.create_server(("localhost", 0)) as taken:
            done = process("run", "--check", "-t", "twilio", "--port", str(taken.getsockname()[1]))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "bot.py is ready to run: twilio\n")
