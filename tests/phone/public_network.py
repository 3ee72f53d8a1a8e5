"""
The internet as a tunnel meets it, on loopback: public names with certificates, and programs that open tunnels.

A test lets a process use it by its environment::

    network = PublicNetwork(tmp_path)
    network.tell(hosts=["calm-fox.ngrok-free.app"])
    with server_process(tmp_path, BOT, "-t", "twilio", "--tunnel", "ngrok", **network.environ()) as server: ...

The names are those of the companies, and nobody looks them up: an HTTPS proxy of the network's own (``HTTPS_PROXY``)
leads each to the port of the program that opened it. ``localhost`` needs no proxy.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.phone.forwarding import join
from tests.phone.programs import VARIABLE, Folder

ROOT = Path(__file__).parents[2]
NAMES = ("localhost", "*.ngrok-free.app", "*.ngrok.app", "*.trycloudflare.com", "*.example.net")
PROGRAMS = ("ngrok_agent", "cloudflared")


class PublicNetwork:
    """
    The network, until it is closed.

    Attributes:
        folder: What the programs share with the test.
        ngrok_config: The agent's own configuration, which pyngrok writes.
        authority: The certificate that everybody in this network trusts.
        proxy_url: The proxy that knows the public names.
    """

    def __init__(self, path: Path) -> None:
        path = path / "network"
        (path / "bin").mkdir(parents=True)
        self.folder = Folder(path)
        self.authority = path / "authority.pem"
        self.ngrok_config = path / "ngrok" / "ngrok.yml"
        make_certificates(self.authority, self.folder.certificate)
        self.tell()
        for name in PROGRAMS:
            program = path / "bin" / ("ngrok" if name == "ngrok_agent" else name)
            program.write_text(
                f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                f"from tests.phone.{name} import main\nsys.exit(main())\n"
            )
            program.chmod(0o755)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        serving = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._connect, "127.0.0.1", 0), self._loop)
        self._server = serving.result(10)
        self.proxy_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def ngrok(self) -> Path:
        """The program that stands in for ngrok's agent."""
        return self.folder.path / "bin" / "ngrok"

    def tell(self, **settings: Any) -> None:
        """
        Tell the programs what to do from now on.

        Args:
            settings: ``hosts``, the public names that ngrok gives in turn; ``localhost`` comes with its port.
                ``port``, that port; 0 for a free one.
                ``authtoken``, the right one; empty for any.
                ``domains``, those that are reserved; ``online``, those of them that another agent has.
                ``sessions``, how many agents may run at once; 0 for any number.
                ``refuses``, the error that the program ends with.
                ``late_s``, after how many seconds an address of ngrok's answers.
                ``warns``, whether ngrok's warning page stands before the server.
                ``forgets``, whether the agent has lost all tunnels.
        """
        known = {
            "hosts": ["localhost"],
            "port": 0,
            "authtoken": "",
            "domains": [],
            "sessions": 0,
            "refuses": "",
            "online": [],
        }
        known |= {"late_s": 0.0, "warns": False, "forgets": False}
        assert settings.keys() <= known.keys()
        path = self.folder.path / "settings.json"
        path.with_suffix(".new").write_text(json.dumps({**known, **settings}))
        path.with_suffix(".new").replace(path)

    def environ(self) -> dict[str, str]:
        """Return the environment of a process in this network, which finds the programs."""
        return {
            VARIABLE: str(self.folder.path),
            "SSL_CERT_FILE": str(self.authority),
            "HTTPS_PROXY": self.proxy_url,
            "NO_PROXY": "localhost,127.0.0.1",
            "PATH": f"{self.folder.path / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYNGROK_NGROK_PATH": str(self.ngrok),
            # Where pyngrok, as the agent, keeps the configuration.
            "XDG_CONFIG_HOME": str(self.folder.path),
        }

    def running(self) -> list[int]:
        """Return the pids of the programs that run."""
        return [pid for pid in {each["pid"] for each in self.folder.log()} if _is_running(pid)]

    def kill(self) -> None:
        """Kill the programs that run."""
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)

    def all_ended(self, timeout_s: float = 5) -> bool:
        """Wait until none of the programs runs any more; false if one still does."""
        deadline = time.monotonic() + timeout_s
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.running()

    def close(self) -> None:
        """End the proxy, and programs that were left running."""
        self.kill()
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve ``CONNECT name:443``: https://www.rfc-editor.org/rfc/rfc9110#name-connect"""
        with suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b" ", 2)
            url = f"https://{target.decode().removesuffix(':443')}"
            ports = [each["port"] for each in self.folder.addresses() if each["url"] == url]
            if method != b"CONNECT" or not ports:
                writer.write(b"HTTP/1.1 502 No such name\r\n\r\n")
            else:
                other = await asyncio.open_connection("127.0.0.1", ports[-1])
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await join(reader, writer, other)
        writer.close()


def public_network(path: Path) -> Iterator[PublicNetwork]:
    """Yield a network; for a fixture."""
    network = PublicNetwork(path)
    try:
        yield network
    finally:
        network.close()


def _is_running(pid: int) -> bool:
    try:
        # A child that nobody has waited for yet has ended all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def make_certificates(authority: Path, certificate: Path) -> None:
    """Write an authority's certificate, and one of its certificates for all public names, with its key."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        named = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in (name, issuer)]
        return (
            x509.CertificateBuilder()
            .subject_name(named[0])
            .issuer_name(named[1])
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = build("the tests' network", "the tests' network", ca_key.public_key())
    ca = ca.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = x509.KeyUsage(
        **{f"{name}_encipherment": False for name in ("key", "data")},
        **dict.fromkeys(("digital_signature", "key_cert_sign", "crl_sign"), True),
        **dict.fromkeys(("content_commitment", "key_agreement", "encipher_only", "decipher_only"), False),
    )
    ca = ca.add_extension(usage, critical=True)
    ca = ca.add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
    names = [*map(x509.DNSName, NAMES), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = build(NAMES[0], "the tests' network", key.public_key())
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    leaf = leaf.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    pem = serialization.Encoding.PEM
    authority.write_bytes(ca.sign(ca_key, hashes.SHA256()).public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    certificate.write_bytes(leaf.sign(ca_key, hashes.SHA256()).public_bytes(pem) + secret)
