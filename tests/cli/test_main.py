"""The command line as a whole: misuse, exit codes, what is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import wsvoice
from tests.cli.invoke import GOOD, invoke, process

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option):
    assert invoke(option).stdout == f"wsvoice {wsvoice.__version__}\n"


def test_no_command_is_misuse_and_shows_the_help():
    result = invoke(code=2)
    assert result.stdout == ""
    assert "Usage: wsvoice" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rnu"], "no such command 'rnu'", "did you mean `wsvoice run`? `wsvoice --help` lists what there is"),
        (["start", "bot.py"], "no such command 'start'", "did you mean `wsvoice run bot.py`?"),
        (["call", "--json"], "no such command 'call'", "did you mean `wsvoice calls --json`?"),
        (["serve", "bot.py", "-q"], "no such command 'serve'", "did you mean `wsvoice run bot.py -q`?"),
        (["help"], "no such command 'help'", "did you mean `wsvoice --help`?"),
        (["dial", "--say"], "option '--say' requires an argument", "`wsvoice dial --help` lists what there is"),
        (
            ["dial", "--say", "Are", "you", "open"],
            "unexpected extra argument",
            "put text with spaces in quotes",
        ),
        (["dial", "-t", "websocket"], "-t takes twilio,", "`wsvoice run OTHER.py -t websocket-client`"),
        (["run", "--env-file", "no.env"], "names a file that does not exist", "leave it out to read .env"),
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
