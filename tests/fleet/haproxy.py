"""A real HAProxy of Debian's, with the configuration that users are given, on ports of this machine."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.deploy.tools import ARE_REQUIRED
from tests.fleet.ports import free_port
from tests.phone.public_network import make_certificates

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
PROGRAM = shutil.which("haproxy")
needs_haproxy = pytest.mark.skipif(
    PROGRAM is None and not ARE_REQUIRED, reason="needs haproxy: apt-get install haproxy"
)

#: How often a server is asked whether it is ready, in milliseconds, so that tests are quick; it takes two answers.
CHECK_MS = 100


@dataclass
class LoadBalancer:
    """
    What is in front of the servers.

    Attributes:
        port: Where it listens with TLS.
        context: What trusts its certificate.
    """

    port: int
    context: ssl.SSLContext
    _stats: str

    def states(self) -> dict[str, tuple[str, int]]:
        """Of each server, whether it is ``UP`` or ``DOWN``, and how many connections it has."""
        with httpx.Client(transport=httpx.HTTPTransport(uds=self._stats)) as client:
            lines = client.get("http://stats/stats;csv").text.splitlines()
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line.startswith("bots,bot-")]
        return {row["svname"]: (row["status"].split()[0], int(row["scur"])) for row in rows}

    def sees(self, *names: str, timeout_s: float = 10) -> None:
        """Wait until exactly these servers are up."""
        deadline = time.monotonic() + timeout_s
        while (up := {name for name, (state, _) in self.states().items() if state == "UP"}) != set(names):
            assert time.monotonic() < deadline, f"up are {sorted(up)}, not {sorted(names)}"
            time.sleep(0.02)


def configuration(folder: Path, bind: str, ports: Sequence[int], *, more: str = "") -> Path:
    """Write the users' configuration with what they are told to change: the certificate and the servers."""
    make_certificates(folder / "authority.pem", folder / "certificate.pem")
    text = CONFIGURATION.read_text()
    text = text.replace("/etc/haproxy/certs/bot.example.com.pem", str(folder / "certificate.pem"))
    text = text.replace("bind :443", f"bind {bind}")
    text = text.replace("check inter 2s", f"check inter {CHECK_MS}ms")
    servers = "\n".join(f"    server bot-{number} 127.0.0.1:{port}" for number, port in enumerate(ports, 1))
    text, count = re.subn(r"(    server bot-\d .*\n)+", servers + "\n", text)
    assert count == 1
    file = folder / "haproxy.cfg"
    file.write_text(text + more)
    return file


@contextmanager
def load_balancer(folder: Path, ports: Sequence[int]) -> Iterator[LoadBalancer]:
    """Run HAProxy in front of servers on these ports, named ``bot-1`` and so on, until the context ends."""
    port = free_port()
    # A test's own folder may have too long a name for a socket.
    with tempfile.TemporaryDirectory(prefix="ha-") as short:
        yield from _balance(folder, ports, port, Path(short) / "stats.sock")


def _balance(folder: Path, ports: Sequence[int], port: int, stats: Path) -> Iterator[LoadBalancer]:
    assert PROGRAM is not None
    # The state of its servers, which only the test asks for.
    more = f"\nfrontend stats\n    bind {stats}\n    stats enable\n    stats uri /stats\n"
    file = configuration(folder, f"127.0.0.1:{port}", ports, more=more)
    with (folder / "haproxy.log").open("w") as log:
        process = subprocess.Popen([PROGRAM, "-W", "-db", "-f", str(file)], stderr=log, stdout=log, cwd=folder)
    try:
        deadline = time.monotonic() + 10
        while not stats.exists():
            assert process.poll() is None, (folder / "haproxy.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield LoadBalancer(port, ssl.create_default_context(cafile=str(folder / "authority.pem")), str(stats))
    finally:
        process.terminate()
        process.wait(10)
