"""``wsvoice run`` in a process of its own, for what shows only there: signals, memory, exits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.environment import clean_environ

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass
class ServerProcess:
    """
    A server that listens.

    Attributes:
        process: The process; ended with the context that started it.
        ready: What ``--json`` printed once it listened.
        log_file: Its stderr.
    """

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    log_file: Path

    @property
    def url(self) -> str:
        """Where it is reached, with a slash at the end."""
        return str(self.ready["url"])

    @property
    def port(self) -> int:
        """The port it listens on."""
        return httpx.URL(self.url).port or 80

    def log(self) -> str:
        """What it has logged until now."""
        return self.log_file.read_text("utf-8", "replace")

    def logged(self, needle: str, *, timeout_s: float = 10, since: int = 0) -> str:
        """Wait until the log holds `needle` behind its first `since` characters; return that part of it."""
        deadline = time.monotonic() + timeout_s
        while needle not in (log := self.log()[since:]):
            assert time.monotonic() < deadline, f"{needle!r} was not logged:\n{log[-4000:]}"
            time.sleep(0.02)
        return log

    def memory_mb(self) -> float:
        """How much memory it holds now: its resident set."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * _PAGE / 1e6

    def cpu_s(self) -> float:
        """How much processor time it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait until it has ended; return its exit code."""
        return self.process.wait(timeout_s)


@contextmanager
def server_process(
    folder: Path,
    bot: str,
    *arguments: str,
    program: str = "wsvoice",
    port: int = 0,
    under: Sequence[str] = (),
    **environ: str,
) -> Iterator[ServerProcess]:
    """
    Run ``wsvoice run`` in `folder` until the context ends.

    Args:
        folder: The process's folder; its log goes there too.
        bot: The bot's source, or the path of an existing file.
        arguments: More of the command line.
        program: The module that is run.
        port: Where it listens, if it does; 0 takes a free one.
        under: A command line that runs the rest of the command line, as ``nice`` does.
        environ: Environment variables beside this process's own, without settings and credentials.
    """
    path = Path(bot) if "\n" not in bot else folder / "bot.py"
    if "\n" in bot:
        path.write_text(textwrap.dedent(bot))
    log_file = folder / "server.log"
    command = [*under, sys.executable, "-m", program, "run", str(path), *arguments]
    if "websocket-client" not in arguments:
        command += ["--host", "127.0.0.1", "--port", str(port)]
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [*command, "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=clean_environ(**environ),
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log_file.read_text()
        yield ServerProcess(process, json.loads(line), log_file)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
