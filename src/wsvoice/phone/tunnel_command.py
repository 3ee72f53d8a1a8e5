"""Tunnels of any command that opens one and prints its address: cloudflared, tailscale, ssh, zrok, devtunnel."""

from __future__ import annotations

import atexit
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from loguru import logger

from wsvoice.errors import ServerError
from wsvoice.http import is_loopback
from wsvoice.phone.strays import Trace
from wsvoice.phone.tunnels import OWN_ADDRESS, REASON_LIMIT, Tunnel

#: How long a command may take to print the address, and how long then until the address leads to it.
ADDRESS_TIMEOUT_S, SETTLING_TIMEOUT_S = 30.0, 10.0
#: How long a command may take to end when it is asked to.
END_TIMEOUT_S = 2.0
#: How often is looked whether it has ended.
LOOK_S = 0.1
#: How many bytes of a line are read.
LINE_LIMIT = 4096

#: A URL in a line of text, without what may follow it there.
_URL = re.compile(r"https://[^\s\"'`<>|,;()\[\]{}\\]+")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
#: Names of pages about a service rather than of a tunnel.
_PAGE = re.compile(
    r"(?:account|accounts|admin|api|blog|community|console|dash|dashboard|developer|developers|doc|docs|help|login"
    r"|status|support|www)\..*|github\.com|(?:.*\.)?cloudflare\.com"
)


@dataclass(frozen=True, slots=True)
class TunnelProgram:
    """
    What is known of a program that opens tunnels.

    Attributes:
        command: Its words; ``{port}`` becomes the port.
        address: What its addresses look like; ``None`` where that is not known.
        settled: What it prints once its address leads here; empty where that is not known.
        hint: How to get it.
    """

    command: Sequence[str]
    address: re.Pattern[str] | None = None
    settled: str = ""
    hint: str = ""


#: https://developers.cloudflare.com/cloudflare-one/networks/connectors/cloudflare-tunnel/do-more-with-tunnels/trycloudflare/
CLOUDFLARED = TunnelProgram(
    command=("cloudflared", "tunnel", "--no-autoupdate", "--url", "http://localhost:{port}"),
    address=re.compile(r"(?!api\.)[a-z0-9-]+\.trycloudflare\.com"),
    # Whoever looks the name up before that may be told for half an hour that there is none.
    settled="Registered tunnel connection",
    hint="get it at https://developers.cloudflare.com/cloudflare-one/networks/connectors/cloudflare-tunnel/downloads/",
)


class CommandTunnel(Tunnel):
    """A tunnel that lasts as long as a command runs."""

    def __init__(self, kind: str, port: int, state: Path | None = None) -> None:
        self._state = state
        self._program = CLOUDFLARED if kind == "cloudflared" else TunnelProgram(shlex.split(kind))
        self._words = [word.replace("{port}", str(port)) for word in self._program.command]
        self._lock = threading.Lock()
        self._is_closed = False
        self._run: CommandRun | None = None
        self.reopen()

    def reopen(self) -> str:
        """Start the command anew."""
        self._end()
        with self._lock:
            if self._is_closed:
                raise ServerError("the tunnel is closed")
            run = self._run = CommandRun(self._words, self._program, self._state)
        try:
            self.host = run.wait_for_host()
        except BaseException:
            run.end()
            raise
        return self.host

    def failure(self) -> str:
        """Return how the command ended."""
        return "there is no tunnel" if self._run is None else self._run.exit_message()

    def close(self) -> None:
        """End the command; one that is just being opened gets no address then."""
        with self._lock:
            self._is_closed = True
        self._end()

    def _end(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end()


class CommandRun:
    """
    One run of a command, in a process group of its own; a thread reads what it prints.

    Raises:
        ServerError: If it cannot be started.
    """

    def __init__(self, words: Sequence[str], program: TunnelProgram, state: Path | None = None) -> None:
        self._name = Path(words[0]).name
        self._program = program
        self._changed = threading.Condition()
        self._host = ""
        self._is_settled = self._has_ended = False
        self._last_line = ""
        try:
            # A signal interrupts the main thread anywhere, be it right after the fork, and no other thread; this one
            # has always registered what it started when it is waited for.
            with ThreadPoolExecutor(1) as starter:
                starter.submit(self._start, words).result()
        except FileNotFoundError:
            hint = program.hint or "install it, or give its whole path"
            raise ServerError(f"there is no program `{words[0]}`", hint=f"{hint}; {OWN_ADDRESS}") from None
        except OSError as error:
            reason = error.strerror or error
            raise ServerError(f"`{words[0]}` could not be started: {reason}", hint=OWN_ADDRESS) from error
        self._trace = Trace(state, self._process.pid, self._name)
        threading.Thread(target=self._read, name=f"wsvoice-{self._name}", daemon=True).start()

    def _start(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the server, which lets its calls finish.
            start_new_session=True,
        )
        # In case this process ends without asking.
        atexit.register(self._signal, signal.SIGKILL)

    def wait_for_host(self) -> str:
        """
        Return the address that it prints.

        Raises:
            ServerError: If it prints none in time, or ends before it does.
        """
        deadline = time.monotonic() + ADDRESS_TIMEOUT_S
        with self._changed:
            while not self._host and not self._is_over() and time.monotonic() < deadline:
                self._changed.wait(LOOK_S)
            if not self._host:
                raise self._refusal()
            deadline = time.monotonic() + SETTLING_TIMEOUT_S
            while not self._is_settled and not self._is_over() and time.monotonic() < deadline:
                self._changed.wait(LOOK_S)
            return self._host

    def exit_message(self) -> str:
        """Return how it ended, with its last line; empty while it runs."""
        code = self._process.poll()
        if code is None:
            return ""
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"`{self._name}` ended {how}{self._last_words()}"

    def end(self) -> None:
        """End it, with all that it has started."""
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        atexit.unregister(self._signal)
        self._trace.remove()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _is_over(self) -> bool:
        """Whether it has ended, and all that it printed was read; what it left behind may hold its output open."""
        if self._process.poll() is None:
            return False
        self._changed.wait_for(lambda: self._has_ended, LOOK_S)
        return True

    def _last_words(self) -> str:
        return f": {self._last_line}" if self._last_line else ""

    def _refusal(self) -> ServerError:
        hint = f"run it by itself to see more, or with --log-level DEBUG; {OWN_ADDRESS}"
        if self._process.poll() is None:
            what = f"printed no https:// address within {ADDRESS_TIMEOUT_S:g} s"
            return ServerError(f"`{self._name}` {what}{self._last_words()}", hint=hint)
        return ServerError(f"`{self._name}` ended before it printed an address{self._last_words()}", hint=hint)

    # In the thread

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            while raw := output.readline(LINE_LIMIT):
                line = _COLOURS.sub("", raw.decode("utf-8", "replace")).strip()
                if line:
                    logger.debug("{}: {}", self._name, line)
                    self._note_line(line)
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def _note_line(self, line: str) -> None:
        with self._changed:
            self._last_line = line[:REASON_LIMIT]
            self._host = self._host or find_host(line, self._program.address)
            self._is_settled = bool(self._host) and (self._is_settled or self._program.settled in line)
            self._changed.notify_all()


def find_host(line: str, address: re.Pattern[str] | None = None) -> str:
    """
    Return the ``host[:port]`` of the first address in a line that a tunnel may have; empty if there is none.

    An address has no path, which tells it from most pages about the service; this machine's own is none.
    """
    for match in _URL.finditer(line):
        try:
            parts = urlsplit(match[0].rstrip(".:!?*"))
            host, port = parts.hostname or "", parts.port
        except ValueError:
            continue
        if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            continue
        if address.fullmatch(host) if address else not (is_loopback(host) or _PAGE.fullmatch(host)):
            return host if port is None else f"{host}:{port}"
    return ""
