"""The local port, and the server that runs on this machine."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from urllib.parse import urlsplit

from wsvoice.config import PLAIN_TRANSPORTS
from wsvoice.doctor.checkup import Result, fail, ok, warn
from wsvoice.doctor.subject import Subject


async def look_at_server(subject: Subject) -> list[Result]:
    """Look whether the port is free, or served by wsvoice for the providers that are meant."""
    local, server = subject.local, subject.server
    port = urlsplit(local.url).port or 80
    if local.is_free:
        if why := await asyncio.to_thread(_cannot_listen, urlsplit(local.url).hostname or "", port):
            return [fail(f"port {port} cannot be listened on: {why}", f"use another one: --port {port + 1}")]
        return [ok(f"no server runs; port {port} is free for one")]
    if server is None:
        if "did not answer" in local.problem:
            return [
                fail(
                    f"something listens at {local.url} and does not answer: {local.problem}",
                    "a bot that blocks its event loop does that, as time.sleep: the server's log names the line",
                )
            ]
        return [
            fail(
                f"another program has port {port}: {local.problem}",
                f"end it, or serve the bot elsewhere: --port {port + 1}",
            )
        ]
    results = []
    if server.is_draining:
        text = f"the server at {server.url} is draining: it takes no new calls"
        results.append(fail(text, "start it again once it has ended; `wsvoice run` drains after Ctrl-C or SIGTERM"))
    if subject.config.transport in PLAIN_TRANSPORTS:
        return results or [ok(f"wsvoice listens at {server.url}")]
    if not server.providers:
        results.append(warn(f"the server at {server.url} serves plain clients, no telephone calls", "start it with -t"))
    elif absent := [name for name in subject.providers if name not in server.providers]:
        names = ", ".join(server.providers)
        text = f"the server at {server.url} serves {names}, and not {', '.join(absent)}"
        hint = f"start it with -t {absent[0]}, or without -t; without its secret no provider is served in public"
        results.append(fail(text, hint) if subject.config.transport in absent else warn(text, hint))
    if (asked := subject.config.proxy) and server.public_host and asked != server.public_host:
        text = f"the server at {server.url} was started for {server.public_host}, and -x says {asked}"
        results.append(fail(text, f"start it again with -x {asked}"))
    named = f", in public as {server.public_host}" if server.public_host else ""
    return results or [ok(f"wsvoice serves {', '.join(server.providers)} at {server.url}{named}")]


def _cannot_listen(host: str, port: int) -> str:
    """Return why this process may not listen on a port; empty if it may, or if the host is not this machine's."""
    with suppress(socket.gaierror):
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            try:
                socket.create_server((address[0], port), family=family).close()
            except OSError as error:
                # Not every machine has IPv6.
                if family != socket.AF_INET6:
                    return os.strerror(error.errno) if error.errno else str(error)
    return ""
