"""
The public address, seen from outside: its name, its certificate, who answers there, and whether WebSockets pass.

Each is looked at through the address itself, over the way that a provider's requests take.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from wsvoice import http
from wsvoice.config import RunConfig, without_secrets
from wsvoice.dial.stream_opening import StreamNotOpenError, StreamOpener
from wsvoice.dial.target import Target
from wsvoice.dial.timeouts import Timeouts
from wsvoice.dial.webhook import plain_text
from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.doctor.network import REQUEST_TIMEOUT_S
from wsvoice.doctor.subject import Subject
from wsvoice.errors import DialError, HttpError
from wsvoice.phone.health import is_wsvoice
from wsvoice.providers import load_simulator
from wsvoice.providers.base import StreamRequest

if TYPE_CHECKING:
    from websockets.http11 import Response

#: How many servers behind one public address are tried to find the one on this machine.
INSTANCES = 8
#: A certificate that expires within so many days is worth a word.
EXPIRES_SOON_DAYS = 14

#: Why a certificate is not taken, and what mends it, by OpenSSL's codes:
#: https://docs.openssl.org/master/man3/X509_STORE_CTX_get_error/#error-codes
_CERTIFICATE_FAULTS: Mapping[int, tuple[str, str]] = {
    9: ("is not valid yet", "set this machine's clock, or wait"),
    10: ("has expired", "renew it (certbot renew, or the proxy's own way)"),
    18: ("is self-signed", "get one from a public authority, such as Let's Encrypt: providers take no others"),
    19: (
        "comes from an authority of your own",
        "get one from a public authority, such as Let's Encrypt: providers take no others",
    ),
    20: (
        "comes from an unknown authority, or without the intermediate certificates",
        "serve the full chain (fullchain.pem), of a public authority such as Let's Encrypt",
    ),
    21: (
        "comes without the intermediate certificates",
        "serve the full chain (fullchain.pem), of a public authority such as Let's Encrypt",
    ),
    62: ("is for other names", "get one for this name, or use -x with the name that it is for"),
}
#: What an answer says of a tunnel or a network in front of a server, by its header.
_HEADERS: Mapping[str, str] = {
    # https://ngrok.com/docs/errors/
    "ngrok-error-code": "ngrok says {}: https://ngrok.com/docs/errors/{lower}",
    # https://developers.cloudflare.com/cloudflare-challenges/challenge-types/challenge-pages/detect-response/
    "cf-mitigated": "Cloudflare answers with a {} of its own: switch that off for this host",
}
#: What wsvoice itself says when it refuses a stream.
_OWN_REFUSALS = (b"The stream token", b"There is no such provider", b"Every place is taken", b"The server takes no new")
_PASS_UPGRADES = (
    "let the proxy pass them on; nginx: `proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade;"
    ' proxy_set_header Connection "upgrade";`'
)


async def look_at_name(subject: Subject) -> list[Result]:
    """Look whether the public host has addresses that a provider can reach."""
    host = subject.public_host
    if http.uses_proxy(subject.public_url):
        return [skipped("requests leave this machine through a proxy, which knows the names")]
    try:
        addresses = await subject.network.resolve(host)
    except OSError as error:
        return [
            fail(
                f"the name {host} has no address: {error.strerror or error}",
                "check how it is spelt; a new name, or a new tunnel's, takes a minute to be known",
            )
        ]
    closed = [each for each in addresses if not ipaddress.ip_address(each.partition("%")[0]).is_global]
    if closed:
        text = f"{host} is {', '.join(closed)} here, which the internet does not reach"
        return [warn(text, "look whether its public entry in DNS names a public address")]
    return [ok(f"{host} is {', '.join(addresses)}")]


async def look_at_certificate(subject: Subject) -> list[Result]:
    """Look whether the public host speaks TLS with a certificate that providers take."""
    url = f"{subject.public_url}/"
    if http.uses_proxy(url):
        return [skipped("requests leave this machine through a proxy, which hides the certificate")]
    host = subject.public_host
    try:
        found = await _shake_hands(subject, url)
    except ssl.SSLCertVerificationError as error:
        fault, mend = _CERTIFICATE_FAULTS.get(
            error.verify_code, (f"is not taken: {error.verify_message}", "see the proxy's or tunnel's settings for TLS")
        )
        return [fail(f"the certificate of {host} {fault}", mend)]
    except ssl.SSLError as error:
        if "WRONG_VERSION_NUMBER" in str(error):
            text = f"{urlsplit(url).netloc} speaks plain HTTP, and providers stream over TLS only"
            return [fail(text, "put a proxy with a certificate in front, or use --tunnel")]
        return [fail(f"{host} does not agree on TLS: {error.reason or error}", "it has to take TLS 1.2 or newer")]
    except TimeoutError:
        text = f"{urlsplit(url).netloc} takes no connection within {REQUEST_TIMEOUT_S:g} s, or says nothing"
        return [fail(text, "is the proxy or the tunnel running, and does a firewall let connections in?")]
    except OSError as error:
        kind = http.failure_kind(error)
        why = "nothing listens there" if kind == "refused" else str(error) or type(error).__name__
        return [fail(f"{urlsplit(url).netloc} cannot be connected to: {why}", "is the proxy or the tunnel running?")]
    left_days = (ssl.cert_time_to_seconds(str(found["notAfter"])) - subject.now()) / 86400
    if left_days < EXPIRES_SOON_DAYS:
        return [warn(f"the certificate of {host} expires in {left_days:.0f} days", "see why it is not renewed")]
    return [ok(f"the certificate of {host} is good for {left_days:.0f} days")]


async def _shake_hands(subject: Subject, url: str, *protocols: str) -> dict[str, Any]:
    """
    Connect to the host of `url` over TLS, offering these protocols of HTTP.

    Returns:
        Its certificate, and under ``protocol`` what was agreed on.
    """
    parts = urlsplit(url)
    context = await asyncio.to_thread(http.tls_context, *protocols)
    addresses = await subject.network.policy(url).addresses(url) or [parts.hostname or ""]
    async with asyncio.timeout(REQUEST_TIMEOUT_S):
        for number, address in enumerate(addresses, 1):
            try:
                _, writer = await asyncio.open_connection(
                    address, parts.port or 443, ssl=context, server_hostname=parts.hostname
                )
                break
            except ssl.SSLError:
                raise
            except OSError:
                # Not every machine has IPv6.
                if number == len(addresses):
                    raise
    try:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return {**(tls.getpeercert() or {}), "protocol": tls.selected_alpn_protocol()}
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def look_at_address(subject: Subject) -> list[Result]:
    """Look who answers at the public address: this server, through nothing that a provider could not pass."""
    url = f"{subject.public_url}/healthz"
    try:
        response = await subject.network.get(url)
    except HttpError as error:
        if await _speaks_http2(subject):
            text = (
                f"{subject.public_host} speaks HTTP/2 only, and WebSockets of telephone companies begin with HTTP/1.1"
            )
            return [fail(text, "let the proxy take HTTP/1.1 too")]
        hint = "is the server running?" if error.kind == "timeout" else "is the proxy or the tunnel running?"
        return [fail(f"the public address does not answer: {error.message}", hint)]
    host = urlsplit(subject.public_url).netloc
    if 300 <= response.status < 400:
        target = urljoin(url, response.headers.get("location", ""))
        there = urlsplit(target).netloc
        hint = f"use -x {there}" if there != host else "let the proxy pass requests on as they are"
        return [fail(f"{host} redirects to {without_secrets(target)[:200]}", hint)]
    if not is_wsvoice(response):
        return [_other_answer(response, host)]
    server = subject.server
    if server is None:
        return [ok(f"a server of wsvoice's answers at {subject.public_url} after {response.elapsed_s * 1000:.0f} ms")]
    if not await _leads_to(subject, response, server.server_id):
        text = f"{host} leads to another server of wsvoice's than the one at {server.url}"
        return [fail(text, f"let the proxy or tunnel lead to port {urlsplit(server.url).port}")]
    return [ok(f"{host} leads to the server at {server.url}, in {response.elapsed_s * 1000:.0f} ms")]


async def _leads_to(subject: Subject, response: http.HttpResponse, server_id: str) -> bool:
    """Whether the public address leads to a server, whose name is empty if it is too old to have one."""
    for _ in range(INSTANCES):
        answered = response.headers.get(http.SERVER_HEADER, "")
        if not server_id or not answered or answered == server_id:
            return True
        # Several instances may have the same public address.
        with suppress(HttpError):
            response = await subject.network.get(f"{subject.public_url}/healthz")
    return False


def _other_answer(response: http.HttpResponse, host: str) -> Result:
    """Return what an answer that is not ours says about who gave it."""
    status = response.status
    for name, text in _HEADERS.items():
        if value := response.headers.get(name):
            shown = value[:60]
            return fail(
                f"{host} answers {status}, and it is not the bot: {name} {shown}",
                text.format(shown, lower=shown.lower()),
            )
    said = plain_text(response.body)
    quoted = f" ({said!r})" if said else ""
    program = response.headers.get("server", "")[:60]
    by = f" by {program}" if program else ""
    if status in (502, 503, 504):
        return fail(
            f"the proxy or tunnel at {host} answers {status}{by}{quoted}: it does not reach the bot's server",
            f"start `wsvoice run`, and let it lead to that port (usually {RunConfig().port})",
        )
    if status in (401, 407, 511):
        return fail(
            f"{host} answers {status}{by}{quoted}: it asks visitors for a password or a click, which no provider gives",
            "switch that off for this host, or use another tunnel",
        )
    if "html" in response.headers.get("content-type", "") or response.body.lstrip()[:1] == b"<":
        return fail(
            f"{host} answers {status}{by} with a web page{quoted}: another server, or a page in between for visitors",
            "let the name lead to the bot's server; a tunnel's page in between is switched off in the tunnel",
        )
    return fail(
        f"{host} answers {status}{by}{quoted}: that is no server of wsvoice's",
        "let the name lead to the port of `wsvoice run`, with all paths",
    )


async def look_at_upgrade(subject: Subject) -> list[Result]:
    """Look whether a WebSocket's upgrade comes through to the server: a stream without a token has to be refused."""
    served = subject.served()
    name = next((each for each in served if load_simulator(each).has_webhook), next(iter(served), "twilio"))
    url = f"{subject.public_url.replace('http', 'ws', 1)}/ws/{name}"
    provider = load_simulator(name)
    policy = subject.network.policy(subject.public_url)
    opener = StreamOpener(provider, Target("stream", url), policy, Timeouts(connect_s=REQUEST_TIMEOUT_S))
    began = time.monotonic()
    try:
        socket, _ = await opener.open(StreamRequest(url))
    except StreamNotOpenError as error:
        return [_not_open(subject, error)]
    except DialError as error:
        return [fail(error.message, "check how the public address is written: -x DOMAIN")]
    await socket.close()
    if subject.config.stream_auth == "none":
        return [ok(f"WebSockets come through in {(time.monotonic() - began) * 1000:.0f} ms, and need no token")]
    text = "WebSockets come through, and one without a token was accepted"
    return [warn(text, "whoever finds the address can talk to the bot; leave `--stream-auth none` out, if it is there")]


def _not_open(subject: Subject, error: StreamNotOpenError) -> Result:
    """Return what it means that a stream without a token was not opened."""
    from websockets.exceptions import InvalidStatus

    host = urlsplit(subject.public_url).netloc
    cause = error.__cause__
    if isinstance(cause, InvalidStatus):
        return _refused(cause.response, host)
    return fail(f"WebSockets do not come through: {error.short}", _PASS_UPGRADES)


def _refused(response: Response, host: str) -> Result:
    status, body = response.status_code, bytes(response.body or b"")
    if body.startswith(_OWN_REFUSALS):
        return ok(f"WebSockets come through {host}: the server refused one without a token ({status})")
    if status in (301, 302, 303, 307, 308):
        target = response.headers.get("location", "")[:200]
        return fail(f"{host} redirects WebSockets to {target}, which no provider follows", "use -x with that host")
    if status in (400, 404, 426, 501):
        # Without its headers an upgrade is an ordinary request, for a path that has no page.
        return fail(f"{host} does not pass on WebSockets' upgrades: it answers {status}", _PASS_UPGRADES)
    if status >= 500:
        text = f"the proxy or tunnel at {host} answers WebSockets' upgrades with {status}"
        return fail(text, "let it lead them, and not only web requests, to the port of `wsvoice run`")
    said = plain_text(body)
    quoted = f" ({said!r})" if said else ""
    return fail(f"{host} answers a WebSocket's upgrade with {status}{quoted}, and not the bot's server", _PASS_UPGRADES)


async def _speaks_http2(subject: Subject) -> bool:
    """Whether the public host chooses HTTP/2 where it may choose."""
    with suppress(OSError, TimeoutError):
        found = await _shake_hands(subject, f"{subject.public_url}/", "h2", "http/1.1")
        return bool(found["protocol"] == "h2")
    return False
