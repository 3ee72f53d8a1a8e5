"""Help texts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.cli.invoke import invoke, process

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands(option):
    text = invoke(option).stdout
    assert re.search(r"^  run +Put a bot on the telephone\.$", text, re.M)
    assert re.search(r"^  dial +Call a bot, and judge how it did; or call a phone number\.$", text, re.M)


@pytest.mark.parametrize("command", ["run", "dial", "hangup", "init"])
def test_help_fits_a_terminal(command):
    assert max(map(len, invoke(command, "--help").stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["run", "dial"])
def test_help_shows_defaults(command):
    text = invoke(command, "--help").stdout
    words = " ".join(text.split())
    defaults = {"run": ["bot.py", "7860", "600s", "auto"], "dial": ["http://localhost:7860/", "1s", "10s"]}
    for default in defaults[command]:
        assert f"[default: {default}]" in words


@pytest.mark.parametrize("command", ["run", "dial", "init", "doctor"])
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
            "Calls to a phone number": "--voicemail",
        },
        "init": {"The project": "--template", "Services": "--stt"},
        "doctor": {"Transport": "--transport", "Calls": "--code", "Network": "--proxy"},
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


@pytest.mark.skipif(os.name != "posix", reason="what a process has used")
def test_help_takes_little_more_than_twice_as_long_as_importing_its_libraries():
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
        if number >= 2 and max(ours) <= 2.4 * floor:
            return
    pytest.fail(f"{[f'{each * 1000:.0f} ms' for each in ours]} against {floor * 1000:.0f} ms")


def test_no_help_waits_for_what_only_a_command_needs():
    late = {"asyncio", "httpx", "numpy", "pipecat", "platformdirs", "rich"}
    script = f"import wsvoice.cli.main, sys; print(sorted({late!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
