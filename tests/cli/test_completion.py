"""What the shell completes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.invoke import invoke, process
from wsvoice.providers import PROVIDERS

pytestmark = pytest.mark.usefixtures("clean_process")


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


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wsvoice di", ["dial"]),
        ("wsvoice d", ["dial", "doctor", "deploy"]),
        ("wsvoice run --max-l", ["--max-lag"]),
        ("wsvoice run --max-calls-", ["--max-calls-per-number", "--max-calls-per-hour"]),
        ("wsvoice run -t ", [*PROVIDERS, "websocket", "websocket-server", "websocket-client"]),
        ("wsvoice run --transport tw", ["twilio"]),
        ("wsvoice dial -t te", ["telnyx"]),
        ("wsvoice dial -t web", []),
        ("wsvoice run --verify ", ["auto", "enforce", "off"]),
        ("wsvoice run --stream-auth t", ["token"]),
        ("wsvoice run --log-level ", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        ("wsvoice run --tunnel ", ["ngrok", "cloudflared"]),
        ("wsvoice dial --method ", ["GET", "POST"]),
        ("wsvoice dial +15551234567 --voicemail ", ["bot", "leave", "hang-up"]),
        ("wsvoice dial +15551234567 --detect ", ["off", "detect", "greeting-end"]),
        ("wsvoice dial +15551234567 --tunnel ", ["ngrok", "cloudflared"]),
        ("wsvoice h", ["hangup"]),
        ("wsvoice hangup -t pl", ["plivo"]),
        ("wsvoice hangup --e", ["--env-file"]),
        ("wsvoice dial --voice en-g", ["en-gb", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-x-rp"]),
        ("wsvoice dial -t telnyx --quirk leg", ["leg-codec=PCMU", "leg-codec=PCMA"]),
        ("wsvoice n", ["number"]),
        ("wsvoice number ", ["list", "show", "restore"]),
        ("wsvoice number list -t tw", ["twilio"]),
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
    assert completed(tmp_path, "wsvoice dial +15551234567 --bot bot.") == ["bot.py"]
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
