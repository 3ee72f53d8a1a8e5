"""
The internet on loopback: an authority that certifies hosts, and a proxy with TLS in front of a server on this machine.
"""

from __future__ import annotations

import asyncio
import datetime
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from wsvoice.dial.addresses import AddressPolicy
from wsvoice.doctor.network import Network

HOST = "bot.example.com"
#: An address that anybody could have; nothing is ever sent there.
PUBLIC_ADDRESS = "93.184.215.14"
_DAY = datetime.timedelta(days=1)


class Authority:
    """Issues certificates, and is trusted by whoever trusts its own."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = self._build(self._name, self._key, days=(-1, 365), is_authority=True).sign(self._key, hashes.SHA256())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def issue(self, host: str, *, days: tuple[int, int] = (-1, 60), signs_itself: bool = False) -> Path:
        """Return the file of a key and of the certificate for `host`, good from and until so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        issuer = subject if signs_itself else self._name
        built = self._build(subject, key, days=days, issuer=issuer, host=host)
        certificate = built.sign(key if signs_itself else self._key, hashes.SHA256())
        file = self._folder / f"{host}-{days[1]}-{signs_itself}-{self.file.stem}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
        return file

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: tuple[int, int],
        issuer: x509.Name | None = None,
        host: str = "",
        is_authority: bool = False,
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * _DAY)
            .not_valid_after(now + days[1] * _DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if host:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        return builder


#: Returns what is answered to a request's head in the server's place; ``None`` passes it on.
Answer = Callable[[str], "bytes | None"]


def response(status: str, body: bytes = b"", **headers: str) -> bytes:
    """Return an HTTP response, after which the connection is closed; underscores in the headers' names are dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"Content-Length": str(len(body)), "Connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def _passes(head: str) -> bytes | None:
    return None


@dataclass
class Front:
    """
    What stands in front of a server: it ends TLS and passes on what comes, unless a test plants a fault.

    Attributes:
        port: Where it listens.
        backend: The server's port; 0 for none.
        answer: Answers requests in the server's place.
        edit: Changes the heads that are passed on.
        host_certificate: The key and the certificate that it shows.
    """

    host_certificate: Path
    port: int = 0
    backend: int = 0
    answer: Answer = _passes
    edit: Callable[[str], str] = field(default=lambda head: head)

    def __post_init__(self) -> None:
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.show(self.host_certificate)

    @property
    def host(self) -> str:
        """The public host, as ``-x`` takes it."""
        return f"{HOST}:{self.port}"

    def show(self, certificate: Path) -> None:
        """Show another certificate from now on."""
        self.tls.load_cert_chain(certificate)

    def heal(self) -> None:
        """Take every fault back."""
        self.answer, self.edit = _passes, lambda head: head
        self.show(self.host_certificate)
        self.tls.set_alpn_protocols(["http/1.1"])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one connection."""
        with suppress(OSError, asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if (answer := self.answer(head)) is not None:
                writer.write(answer)
                await writer.drain()
            else:
                back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.backend)
                back_writer.write(self.edit(head).encode("latin-1"))
                await asyncio.gather(_pipe(reader, back_writer), _pipe(back_reader, writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
        writer.close()


@contextmanager
def listening(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve connections on a free port of loopback, in a thread, while the context lasts; yield the port."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    port = 0

    def run() -> None:
        nonlocal port
        server = loop.run_until_complete(asyncio.start_server(handler, "127.0.0.1", 0, ssl=tls))
        port = server.sockets[0].getsockname()[1]
        started.set()
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(5)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


@contextmanager
def answering(answer: Callable[[str, bytes], bytes]) -> Iterator[int]:
    """Serve plain HTTP on loopback: `answer` is given a request's head and body; yield the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readexactly(1)
            # A greeting in TLS is no head of a request.
            head = (first + (await reader.readuntil(b"\r\n\r\n") if first.isalpha() else b"")).decode("latin-1")
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length[1])) if length else b""
            writer.write(answer(head, body))
            await writer.drain()
        writer.close()

    with listening(handle) as port:
        yield port


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Here(AddressPolicy):
    """Leads every name to this machine."""

    async def addresses(self, url: str) -> Sequence[str]:
        return ["127.0.0.1"]


@dataclass(frozen=True, slots=True)
class Loopback(Network):
    """
    An internet whose every host is this machine.

    Attributes:
        names: The addresses that names seem to have; all others are unknown.
    """

    names: Mapping[str, Sequence[str]] = field(default_factory=lambda: {HOST: [PUBLIC_ADDRESS]})

    async def resolve(self, host: str) -> list[str]:
        if host not in self.names:
            raise OSError(-2, "Name or service not known")
        return list(self.names[host])

    def policy(self, url: str) -> AddressPolicy:
        return _Here(url)
