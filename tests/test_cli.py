"""The command line: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import wsvoice
from tests.environment import is_setting
from wsvoice.cli.main import app
from wsvoice.config import DialConfig, RunConfig
from wsvoice.dial.report import CallReport, CountedFinding, TimelineEvent, TurnReport
from wsvoice.errors import DialError, ServerError, UsageError

BOTS = Path(__file__).parent / "bots"
COMMANDS = get_command(app)
GOOD = "async def bot(runner_args):\n    pass\n"


@pytest.fixture(autouse=True)
def clean_process(tmp_path, monkeypatch):
    """Run in an empty folder, and take back what a command changes in the process."""
    monkeypatch.chdir(tmp_path)
    # typer's runner would make the commands anew each time, which takes longer than to run them.
    monkeypatch.setattr("typer.testing._get_command", lambda _: COMMANDS)
    # The log goes to the stderr of its time, which is gone after the test.
    levels: list[str] = []
    monkeypatch.setattr("wsvoice.runner.logs.configure_logging", levels.append)
    environ, path, modules = dict(os.environ), list(sys.path), set(sys.modules)
    for name in list(os.environ):
        if is_setting(name) or name in ("NO_COLOR", "FORCE_COLOR"):
            del os.environ[name]
    yield levels
    os.environ.clear()
    os.environ.update(environ)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if "." not in name and hasattr(sys.modules[name], "__wsvoice_bot__"):
            del sys.modules[name]


def invoke(*arguments: str, code: int = 0, environ: dict[str, str] | None = None):
    result = CliRunner().invoke(app, list(arguments), env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


# -- The command itself --


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option):
    assert invoke(option).stdout == f"wsvoice {wsvoice.__version__}\n"


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands(option):
    text = invoke(option).stdout
    assert re.search(r"^  run +Put a bot on the telephone\.$", text, re.M)
    assert re.search(r"^  dial +Call a bot, and judge how it did\.$", text, re.M)


@pytest.mark.parametrize("command", ["run", "dial"])
def test_help_fits_a_terminal_and_shows_defaults(command):
    text = invoke(command, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    defaults = {"run": ["bot.py", "7860", "600s", "auto"], "dial": ["http://localhost:7860/", "twilio", "10s"]}
    for default in defaults[command]:
        assert f"[default: {default}]" in words


def test_no_command_is_misuse_and_shows_the_help():
    result = invoke(code=2)
    assert result.stdout == ""
    assert "Usage: wsvoice" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rnu"], "no such command 'rnu'", "did you mean `wsvoice run`? `wsvoice --help` lists what there is"),
        (["start", "bot.py"], "no such command 'start'", "did you mean `wsvoice run bot.py`?"),
        (["call", "bot.py", "-q"], "no such command 'call'", "did you mean `wsvoice dial bot.py -q`?"),
        (["help"], "no such command 'help'", "did you mean `wsvoice --help`?"),
        (["dial", "--say"], "option '--say' requires an argument", "`wsvoice dial --help` lists what there is"),
        (
            ["dial", "--say", "Are", "you", "open"],
            "unexpected extra argument",
            "put text with spaces in quotes",
        ),
        (["dial", "-t", "websocket"], "-t takes twilio,", "`wsvoice run OTHER.py -t websocket-client`"),
        (["run", "--env-file", "no.env"], "names a file that is not there", "leave it out to read .env"),
        (["run", "--record", "call.wav"], "--record takes a folder, and call.wav is a file", "use `call`"),
        (["run", "nowhere/bot.py"], "its folder does not exist", "`wsvoice init` makes one"),
        (["zzz"], "no such command 'zzz'", "`wsvoice --help` lists what there is"),
        (["bot.py", "-t", "plivo"], "no such command 'bot.py'", "did you mean `wsvoice run bot.py -t plivo`?"),
        (["bots/a.py:other"], "no such command 'bots/a.py:other'", "did you mean `wsvoice run bots/a.py:other`?"),
        (["http://localhost/"], "no such command", "did you mean `wsvoice dial http://localhost/`?"),
        (["wss://a.example/ws"], "no such command", "did you mean `wsvoice dial wss://a.example/ws`?"),
        (["+15550100001"], "no such command '+15550100001'", "did you mean `wsvoice dial +15550100001`?"),
        (["-t", "twilio", "run"], "no such option: -t", "it belongs behind a command, as in `wsvoice run -t`"),
        (["--port=80"], "no such option: --port", "it belongs behind a command, as in `wsvoice run --port`"),
        (["run", "--prot", "80"], "no such option: --prot", "did you mean `--port`?"),
        (
            ["run", "-t", "twilio", "--transport", "plivo"],
            "-t/--transport was given twice",
            "leave -t out to serve every",
        ),
        (["dial", "-t", "twilio", "-t", "plivo"], "-t/--transport was given twice", "give it once"),
        (["run", "--port", "1", "--port=2"], "--port was given twice, and takes one value", "give it once"),
        (["run", "-port", "8000"], "no such option: -port", "did you mean `--port`?"),
        (["run", "-v", "-tunnel=ngrok"], "no such option: -tunnel", "did you mean `--tunnel`?"),
        (["dial", "bot.py", "--dtmf"], "option '--dtmf' requires an argument", "quote it: `--dtmf '#'`"),
        (["dial", "7860"], "7860 is a port", "dial `localhost:7860`"),
        (["dial", "--record", "x.mp3"], "--record writes a WAV file, got 'x.mp3'", "use `x.wav`"),
        (["run", "--port"], "--port", "`wsvoice run --help` lists what there is"),
        (["run", "a.py", "b.py"], "unexpected extra argument", "; `wsvoice run --help` lists what there is"),
        (["dial", "--zzzz"], "no such option: --zzzz", "`wsvoice dial --help` lists what there is"),
    ],
)
def test_misuse_is_one_line_and_a_hint(arguments, message, hint, tmp_path):
    (tmp_path / "call.wav").write_text("")
    result = invoke(*arguments, code=2)
    assert result.stdout == ""
    error, hinted = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hinted.startswith("hint:  ")
    assert hint in hinted


@pytest.mark.parametrize("command", ["run", "dial", "init"])
def test_help_has_its_options_in_groups(command):
    text = invoke(command, "--help").stdout
    headings = re.findall(r"^(\w.*):$", text, re.M)
    assert headings[0] == "Arguments"
    assert headings[-1] == "Options"
    assert len(headings) > 3
    groups = dict(re.findall(r"^(\w[^\n]*):\n((?:  [^\n]*\n)+)", text, re.M))
    expected = {
        "run": {"Who may come in": "--verify", "Network": "--proxy", "Limits": "--max-calls", "Transport": "--url"},
        "dial": {
            "What the caller does": "--say",
            "Calls": "--from",
            "Limits": "--duration",
            "A harder call": "--probe",
        },
        "init": {"The project": "--template", "Services": "--stt"},
    }
    assert {heading: option for heading, option in expected[command].items() if option in groups[heading]} == (
        expected[command]
    )
    assert "--help" in groups["Options"]


@pytest.mark.skipif(os.name != "posix", reason="a terminal of its own")
@pytest.mark.parametrize(
    ("environ", "is_coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_help_has_colours_on_a_terminal(environ, is_coloured):
    import pty

    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "wsvoice", "run", "--help"], stdout=slave, env={**os.environ, **environ}
    ) as shown:
        os.close(slave)
        text = b""
        # The end of a terminal is an error on Linux, and nothing more to read elsewhere.
        with suppress(OSError):
            while part := os.read(master, 65536):
                text += part
    os.close(master)
    assert shown.returncode == 0
    assert (b"\x1b[" in text) is is_coloured
    plain = re.sub(rb"\x1b\[\d*m", b"", text).replace(b"\r", b"").decode()
    assert "\nNetwork:\n  -x, --proxy DOMAIN" in plain
    if is_coloured:
        assert b"\x1b[1mNetwork:\x1b[0m" in text
        assert b"\x1b[36m-x, --proxy DOMAIN\x1b[0m" in text


def test_help_is_plain_for_a_pipe_unless_colours_are_asked_for():
    environ = {**os.environ, "TERM": "xterm"}
    plain = process("run", "--help", env=environ).stdout
    assert "\x1b" not in plain
    asked_for = process("run", "--help", env={**environ, "FORCE_COLOR": "1"}).stdout
    assert "\x1b[" in asked_for
    assert re.sub(r"\x1b\[\d*m", "", asked_for) == plain
    assert "\x1b" not in process("run", "--help", env={**environ, "FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout


@pytest.mark.skipif(os.name != "posix", reason="SIGINT")
def test_an_interrupt_while_the_command_line_is_imported_is_one_line(tmp_path):
    # Stands for the first library, and takes long.
    (tmp_path / "typer.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "wsvoice", "run"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout.readline() == "importing\n"
        started.send_signal(signal.SIGINT)
        assert started.communicate(timeout=20)[1] == "interrupted\n"
    assert started.returncode == 130


HEAVY = ["numpy", "httpx", "pipecat", "fastapi", "uvicorn", "websockets", "loguru", "cryptography", "dotenv"]


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["--help"], {}),
        (["run", "--help"], {}),
        ([], {"_WSVOICE_COMPLETE": "complete_bash", "COMP_WORDS": "wsvoice run -t t", "COMP_CWORD": "3"}),
    ],
)
def test_what_should_answer_at_once_imports_nothing_heavy(arguments, environ):
    script = (
        "import sys\n"
        "from wsvoice.cli.main import app\n"
        f"try:\n    app({arguments})\nexcept SystemExit:\n    pass\n"
        # pydantic is typer's own, which would import it for each value.
        f"print([name for name in {[*HEAVY, 'pydantic']} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, **environ},
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name != "posix", reason="what a process has used")
def test_help_takes_at_most_twice_as_long_as_importing_its_libraries():
    def seconds(*command: str) -> float:
        # Of the processor, which is what it takes by itself on a machine that does other things too.
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_utime + used.ru_stime

    commands = [["-m", "wsvoice", *each] for each in (["--help"], ["run", "--help"], ["--version"])]
    # This writes the compiled files.
    seconds(*commands[0])
    floor, ours = float("inf"), [float("inf")] * len(commands)
    for number in range(7):
        # The least of each: what else the machine does only adds to a time.
        floor = min(floor, seconds("-c", "import typer, rich"))
        ours = [min(least, seconds(*command)) for least, command in zip(ours, commands, strict=True)]
        if number >= 2 and max(ours) <= 2 * floor:
            return
    pytest.fail(f"{[f'{each * 1000:.0f} ms' for each in ours]} against {floor * 1000:.0f} ms")


# -- What the shell completes --


def completed(tmp_path: Path, line: str, shell: str = "bash", *, in_process: bool = True) -> list[str]:
    """Return what a shell would be told to complete the last word of `line` with."""
    words = line.split(" ")
    asked = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }
    environ = {"_WSVOICE_COMPLETE": f"complete_{shell}", **asked[shell]}
    if in_process:
        done = invoke(environ=environ)
    else:
        done = process(cwd=tmp_path, env={**os.environ, **environ})
        assert done.returncode == 0
    assert done.stderr == ""
    return done.stdout.splitlines() if done.stdout.strip() else []


PROVIDERS = ["twilio", "telnyx", "plivo", "exotel", "signalwire", "bandwidth", "vonage"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wsvoice d", ["dial"]),
        ("wsvoice run --max", ["--max-calls"]),
        ("wsvoice run -t ", [*PROVIDERS, "websocket", "websocket-server", "websocket-client"]),
        ("wsvoice run --transport tw", ["twilio"]),
        ("wsvoice dial -t te", ["telnyx"]),
        ("wsvoice dial -t web", []),
        ("wsvoice run --verify ", ["auto", "enforce", "off"]),
        ("wsvoice run --stream-auth t", ["token"]),
        ("wsvoice run --log-level ", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("wsvoice run --tunnel ", ["ngrok"]),
        ("wsvoice dial --method ", ["GET", "POST"]),
        ("wsvoice dial --voice en-g", ["en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp"]),
        ("wsvoice dial -t telnyx --quirk leg", ["leg-codec=PCMU", "leg-codec=PCMA"]),
        ("wsvoice init --template ", ["echo", "ivr", "assistant", "realtime", "offline"]),
        ("wsvoice init -t e", ["exotel"]),
        ("wsvoice init --template realtime --llm ", ["openai", "gemini"]),
        ("wsvoice init --tts ca", ["cartesia"]),
        # The shell's own completion of files takes over.
        ("wsvoice dial --audio ", []),
        ("wsvoice run --port ", []),
    ],
)
def test_completion_of_values(tmp_path, line, words):
    assert completed(tmp_path, line) == words


def test_completion_of_bots(tmp_path):
    for name in ("bot.py", "notes.md", "bots/one.py", "bots/other.py", "lonely/only.py", ".venv/x.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert completed(tmp_path, "wsvoice run ") == ["bot.py", "bots/", "lonely/"]
    assert completed(tmp_path, "wsvoice run bots") == ["bots/one.py", "bots/other.py"], "no end at a folder"
    assert completed(tmp_path, "wsvoice run lo") == ["lonely/only.py"]
    assert completed(tmp_path, "wsvoice dial bots/ot") == ["bots/other.py"]
    assert completed(tmp_path, "wsvoice dial --caller bot.") == ["bot.py"]
    assert completed(tmp_path, "wsvoice run nowhere/x") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(tmp_path, shell):
    found = "\n".join(completed(tmp_path, "wsvoice run -t tw", shell, in_process=False))
    assert "twilio" in found
    assert "telnyx" not in found
    assert "--drain-timeout" in "\n".join(completed(tmp_path, "wsvoice run --dr", shell))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
def test_completion_is_installed_for_the_shell_that_asks(tmp_path):
    # Named as a user's; the shell finds the command on its path.
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "wsvoice"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m wsvoice "$@"\n')
    command.chmod(0o755)
    environ = {**os.environ, "HOME": str(tmp_path), "PATH": f"{command.parent}:{os.environ['PATH']}"}

    def bash(script: str) -> subprocess.CompletedProcess[str]:
        # A command behind it keeps bash from becoming the program itself.
        return subprocess.run(
            ["bash", "-c", f"{script}\ntrue"], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    shown = bash("wsvoice --show-completion").stdout
    assert "complete -o default -F _wsvoice_completion wsvoice" in shown
    assert "bash completion installed in" in bash("wsvoice --install-completion").stdout
    done = bash(
        "source ~/.bashrc; COMP_WORDS=(wsvoice run --verify en); COMP_CWORD=3;"
        ' _wsvoice_completion wsvoice; echo "${COMPREPLY[@]}"'
    )
    assert done.stdout == "enforce\n", done.stderr


# -- run --


@pytest.fixture
def served(monkeypatch):
    """Replace the server by one that is ready at once; its configuration and bot are left here."""
    from wsvoice.runner.server import Ready

    seen = SimpleNamespace(ready=Ready("http://localhost:7860/", None, ("twilio",)), config=None, bot=None)

    def serve(bot, config: RunConfig, *, on_ready: Callable[[object], None]) -> None:
        seen.bot, seen.config = bot, config
        public = seen.ready.public_url or config.public_url
        on_ready(Ready(seen.ready.url, public, seen.ready.provider_names))

    monkeypatch.setattr("wsvoice.runner.server.serve", serve)
    return seen


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
    served.ready = SimpleNamespace(url="http://localhost:7860/", public_url="https://a.b", provider_names=("twilio",))
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


def test_run_warns_of_a_misspelt_variable_and_goes_on(served, tmp_path, monkeypatch):
    monkeypatch.setenv("WSVOICE_PROT", "80")
    (tmp_path / ".env").write_text("WSVOICE_MAXCALLS=3\nWSVOICE_DIAL_LISTEN=2\n")
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke("run")
    assert "warning: WSVOICE_PROT is not read: did you mean WSVOICE_PORT?\n" in result.stderr
    assert "warning: WSVOICE_MAXCALLS in .env is not read: did you mean WSVOICE_MAX_CALLS?\n" in result.stderr
    assert result.stderr.count("warning") == 2
    assert served.config.max_calls is None


NUMBERS = [
    *[("run", option) for option in ("--port", "--max-calls", "--drain-timeout")],
    *[("dial", option) for option in ("--duration", "--listen", "--response-timeout")],
]


@pytest.mark.parametrize(("command", "option"), NUMBERS)
@pytest.mark.parametrize("value", ["-1", "-1s", "-0.5", "1e9", "nan", "inf", "", " ", "ten", "99999999999999999999"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_number_out_of_bounds_is_misuse(served, caller, tmp_path, command, option, value, joined):
    (tmp_path / "bot.py").write_text(GOOD)
    result = invoke(command, *([f"{option}={value}"] if joined else [option, value]), code=2)
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: {option} takes ")
    assert hint.startswith("hint:  ")
    assert (served.config, caller.config) == (None, None)


# -- dial --


@pytest.fixture
def caller(monkeypatch):
    """Replace the simulated caller: it tells `events` and returns `report`, or runs `place`."""
    seen = SimpleNamespace(events=[], report=CallReport("twilio", "t", verdict="passed"), config=None, place=None)

    async def dial(config: DialConfig, *, on_event: Callable[[TimelineEvent], None]) -> CallReport:
        seen.config = config
        for event in seen.events:
            on_event(event)
        if seen.place is not None:
            await seen.place()
        return seen.report

    module = ModuleType("wsvoice.dial.caller")
    module.dial = dial
    monkeypatch.setitem(sys.modules, "wsvoice.dial.caller", module)
    return seen


def test_dial_takes_every_option(caller, tmp_path):
    invoke(
        *["dial", "http://localhost:9000/", "-t", "twilio", "--audio", "a.wav", "--audio", "b.wav", "--dtmf", "12#"],
        *["--from", "+15550100003", "--to", "+15550100004", "--param", "a=1", "--duration", "1m", "--listen", "0"],
        *["--response-timeout", "2s", "--record", "call.wav", "--force-ws", "--method", "get", "--json"],
        *["--probe", "--quirk", "one=1", "--quirk", "two=2", "--say", "Yes, please.", "--say", "No.", "--voice", "en"],
    )
    assert caller.config == DialConfig(
        target="http://localhost:9000/",
        audio=(Path("a.wav"), Path("b.wav")),
        say=("Yes, please.", "No."),
        voice="en",
        dtmf="12#",
        from_number="+15550100003",
        to_number="+15550100004",
        parameters={"a": "1"},
        duration_s=60.0,
        listen_s=0.0,
        response_timeout_s=2.0,
        record=Path("call.wav"),
        force_ws=True,
        method="GET",
        probe=True,
        quirks={"one": "1", "two": "2"},
        as_json=True,
    )


def test_dial_keeps_the_log_of_a_caller_that_is_a_bot_short(caller, monkeypatch):
    levels = []
    monkeypatch.setattr("wsvoice.runner.logs.configure_logging", levels.append)
    invoke("dial", "--caller", "caller.py:other")
    assert caller.config == DialConfig(caller="caller.py:other")
    invoke("dial", "--caller", "caller.py:other", "-v")
    assert levels == ["ERROR", "DEBUG"]


def test_dial_lists_a_providers_quirks_and_calls_nobody(caller):
    lines = invoke("dial", "-t", "telnyx", "--quirk", "list").stderr.splitlines()
    assert lines[0] == "Telnyx's quirks:"
    assert re.search(r"^  leg-codec=PCMU\|PCMA +the codec of .* \(default: PCMU\)$", "\n".join(lines), re.M)
    assert invoke("dial", "-t", "twilio", "--quirk", "list").stderr == "Twilio has no quirks\n"
    assert caller.config is None


def test_dial_lists_every_providers_quirks_unless_one_is_chosen(caller, monkeypatch):
    headings = [line for line in invoke("dial", "--quirk", "list").stderr.splitlines() if not line.startswith(" ")]
    assert headings == [
        "Twilio has no quirks",
        "Telnyx's quirks:",
        "Plivo's quirks:",
        "Exotel's quirks:",
        "SignalWire has no quirks",
        "Bandwidth's quirks:",
        "Vonage's quirks:",
    ]
    monkeypatch.setenv("WSVOICE_TRANSPORT", "signalwire")
    assert invoke("dial", "--quirk", "list").stderr == "SignalWire has no quirks\n"
    assert caller.config is None


def test_dial_explains_what_a_probe_found(caller):
    found = (CountedFinding("M3", "warn", "it talked on"),)
    caller.report = CallReport("twilio", "t", verdict="passed", findings=found)
    lines = invoke("dial", "--probe").stderr.splitlines()
    explained = [line for line in lines if line.startswith(("warn M3", "M3 asks that", "   hint: "))]
    assert len(explained) == 3
    assert lines[-1] == "passed"
    assert not any(line.startswith("M3 asks") for line in invoke("dial").stderr.splitlines())


def test_dial_tells_what_happens_and_ends_with_the_verdict(caller):
    caller.events = [
        TimelineEvent(0.0, "webhook", "POST http://localhost:7860/ answered 200 in 3 ms"),
        TimelineEvent(12.34, "caller-speaks", "the caller speaks"),
        TimelineEvent(61234.5, "bot-speaks", "the bot speaks"),
        TimelineEvent(61300.0, "closed", "the stream is closed (1000)"),
    ]
    caller.report = CallReport("twilio", "t", verdict="passed", turns=[TurnReport(0.0, 1520.0, 1580.0, 60.0)])
    result = invoke("dial")
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "   0.000 > POST http://localhost:7860/ answered 200 in 3 ms",
        "   0.012 > the caller speaks",
        "  61.234 < the bot speaks",
        "  61.300   the stream is closed (1000)",
        "turn 1: caller 0 to 1520 ms, bot answered after 60 ms",
        "passed",
    ]


def test_a_failed_call_exits_with_1_and_shows_the_end_of_the_bots_log(caller):
    caller.events = [TimelineEvent(0.0, "log", f"line {number}") for number in range(30)]
    caller.report = CallReport(
        "twilio", "t", failure="the bot was silent", findings=[CountedFinding("M1", "warn", "odd", 2)]
    )
    lines = invoke("dial", code=1).stderr.splitlines()
    shown = [line.strip(" |") for line in lines if "| line" in line]
    assert shown == [f"line {number}" for number in range(10, 30)]
    assert lines[-2:] == ["warn M1: odd (2 times)", "failed: the bot was silent"]


def test_the_bots_log_is_not_shown_for_a_call_that_passed_unless_asked_for(caller):
    caller.events = [TimelineEvent(0.0, "log", "a line of the bot's")]
    assert "a line of the bot's" not in invoke("dial").stderr
    assert "           | a line of the bot's\n" in invoke("dial", "-v").stderr


def test_the_last_words_of_a_bot_that_died_are_told_once(caller):
    caller.events = [TimelineEvent(0.0, "log", "KeyError: 1")]
    caller.report = CallReport("twilio", "t", failure="the bot ended with exit code 1:\nKeyError: 1")
    lines = invoke("dial", code=1).stderr.splitlines()
    assert lines == ["failed: the bot ended with exit code 1:", "           | KeyError: 1"]


def test_dial_json_is_the_report_and_the_timeline_stays_on_stderr(caller):
    caller.events = [TimelineEvent(1000.0, "bot-speaks", "the bot speaks")]
    result = invoke("dial", "--json")
    assert json.loads(result.stdout) == caller.report.to_dict()
    assert result.stdout.count("\n") == 1
    assert "   1.000 < the bot speaks\n" in result.stderr


def test_quiet_leaves_the_warnings_and_the_verdict_or_the_json(caller, tmp_path):
    caller.events = [TimelineEvent(0.0, "bot-speaks", "the bot speaks"), TimelineEvent(0.0, "log", "x")]
    caller.report = CallReport("twilio", "t", failure="the bot was silent")
    result = invoke("dial", "-q", code=1)
    assert (result.stdout, result.stderr) == ("", "failed: the bot was silent\n")
    result = invoke("dial", "-q", "--json", code=1)
    assert json.loads(result.stdout)["verdict"] == "failed"
    assert result.stderr == ""
    (tmp_path / ".env").write_text("WSVOICE_DIAL_LISTN=2\n")
    warning = "warning: WSVOICE_DIAL_LISTN in .env is not read: did you mean WSVOICE_DIAL_LISTEN?\n"
    assert invoke("dial", "-q", code=1).stderr == warning + "failed: the bot was silent\n"


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("no such audio", hint="name a WAV file"), 2), (DialError("no route"), 1)]
)
def test_a_call_that_could_not_be_placed(caller, error, code):
    async def place() -> None:
        raise error

    caller.place = place
    result = invoke("dial", code=code)
    assert result.stderr.startswith(f"error: {error.message}\n")


def test_ctrl_c_hangs_up_and_exits_with_130(caller):
    hung_up = []

    async def place() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            hung_up.append(True)
            raise

    caller.place = place
    result = invoke("dial", code=130)
    assert hung_up == [True]
    assert "Traceback" not in result.stderr


def test_what_a_bot_writes_cannot_steer_the_terminal(caller):
    caller.events = [TimelineEvent(0.0, "bot-speaks", "\x1b[2J[red]\x9b1m\rdone\nmore")]
    line = invoke("dial").stderr.splitlines()[0]
    assert line == r"   0.000 < \x1b[2J[red]\x9b1m\x0ddone more"


def test_long_lines_are_not_wrapped(caller, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    caller.events = [TimelineEvent(0.0, "note", "word " * 60)]
    assert invoke("dial").stderr.splitlines()[0].count("word") == 60


def test_colours_can_be_asked_for_and_kept_out(caller, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b[" not in invoke("dial").stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in invoke("dial").stderr
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in invoke("dial").stderr


def test_a_bot_that_is_served_reads_the_env_file_that_was_named(caller, tmp_path):
    (tmp_path / "test.env").write_text("A=1\n")
    seen = []

    async def place() -> None:
        seen.append(os.environ.get("WSVOICE_ENV_FILE"))

    caller.place = place
    invoke("dial", "bot.py", "--env-file", "test.env")
    assert seen == [str(tmp_path / "test.env")]


# -- The process --


def test_the_exit_code_of_the_process(tmp_path):
    done = process("run", "nowhere.py", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no file nowhere.py\nhint:  ")


def test_an_error_of_our_own_shows_its_traceback(tmp_path):
    script = (
        "import wsvoice.config\n"
        "def broken(*_, **__):\n    raise ZeroDivisionError('ours')\n"
        "import wsvoice.cli.run\n"
        "wsvoice.cli.run.resolve_run = broken\n"
        "import sys; sys.argv = ['wsvoice', 'run']\n"
        "from wsvoice.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: ours")


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
