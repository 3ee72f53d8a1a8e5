"""How commands are run: in this process, or in one of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from wsvoice.cli.main import app

BOTS = Path(__file__).parents[1] / "bots"


COMMANDS = get_command(app)


GOOD = "async def bot(runner_args):\n    pass\n"


def invoke(*arguments: str, code: int = 0, environ: dict[str, str] | None = None):
    # An interrupted command leaves SIGINT ignored, for its process is about to end; this one goes on.
    before = signal.getsignal(signal.SIGINT)
    try:
        result = CliRunner().invoke(app, list(arguments), env=environ)
    finally:
        signal.signal(signal.SIGINT, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def process(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
