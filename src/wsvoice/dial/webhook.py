"""
The webhook: how the provider asks the bot's server what to do with a call.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from html import unescape
from typing import Literal
from urllib.parse import urljoin, urlsplit

from wsvoice import http
from wsvoice.call import Call
from wsvoice.dial.addresses import AddressPolicy, HostOverride, shortened
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.target import DEFAULT_TARGET
from wsvoice.dial.timeline import Timeline
from wsvoice.errors import DialError, HttpError, RemoteProtocolError
from wsvoice.providers.base import Callback, Document, HttpRequest, Progress, WebhookRequest

#: The most redirects that are followed.
MAX_REDIRECTS = 10
#: The most of an answer that is read, in bytes.
ANSWER_LIMIT = 256 * 1024
#: How long a server on this machine may take to name its public host; the call goes on without.
PUBLIC_HOST_TIMEOUT_S = 2.0

_TEXT_LIMIT = 200
_STAGES: Mapping[Progress, str] = {
    "answered": "the call was answered",
    "streaming": "the call is streaming",
    "ended": "the call has ended",
}
#: How wsvoice answers HTTP requests when it serves plain WebSocket clients.
_CLIENTS_ONLY = "This is a voice bot for WebSocket clients"
_PAGE = re.compile(r"<(!doctype html|html|head|body|h\d|p|div|center|title)\b", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]{0,200}>([^<]{0,500})", re.IGNORECASE)
# Scripts and styles are not text; in a page that was cut they may lack their end.
_UNSEEN = re.compile(r"<(script|style|head)\b.*?(</\1\s*>|$)", re.IGNORECASE | re.DOTALL)
_BLOCKS = re.compile(r"</?(h\d|p|div|br|body|html|table|tr|li|ul|hr|center|pre)\b[^>]*(>|$)", re.IGNORECASE)
_TAGS = re.compile(r"<[^>]*(>|$)")
_HOST = re.compile(r"[a-z0-9._-]{1,253}(:[0-9]{1,5})?")

#: What is asked: what to do with the call, nothing (it is told of the call), or how the server is.
AskedKind = Literal["webhook", "status", "health"]
#: Makes a request from a URL, a method and the time.
Render = Callable[[str, Literal["GET", "POST"], float], WebhookRequest]


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """A webhook's answer: where it came from, after redirects, and how long it took with them."""

    url: str
    response: http.HttpResponse
    elapsed_ms: float


class Webhook:
    """
    The webhook of one call.

    Attributes:
        url: Its URL; a server on this machine may replace it by its public one.

    Args:
        setup: How the call is placed.
        url: Its URL.
        addresses: Where the server may send the caller.
        asked_for_host: Whether the server was asked for its public host already, for another call.
    """

    def __init__(self, setup: CallSetup, url: str, addresses: AddressPolicy, *, asked_for_host: bool = False) -> None:
        self.url = url
        self._provider = setup.provider
        # A redirect is followed by GET unless it is a 307 or 308, as providers do.
        self._method = setup.config.method or setup.provider.webhook_method
        self._timeline = setup.timeline
        self._trace = setup.trace
        self._clock = setup.clock
        self._timeouts = setup.timeouts
        self._addresses = addresses
        self._asked_for_host = asked_for_host

    async def announce(self, call: Call) -> WebhookAnswer:
        """
        Announce `call`, and return the answer; a slow one is a finding.

        Raises:
            DialError: If the provider could not use the answer, in words for the report.
        """
        await self.find_public_host(call)
        return await self.request(
            lambda url, method, now: self._provider.webhook(call, url, method=method, now=now),
            self.url,
            self._method,
            warn_s=self._timeouts.webhook_warn_s,
        )

    async def find_public_host(self, call: Call) -> None:
        """Ask a server on this machine, once, for its public host, because the signature has to cover it."""
        if self._asked_for_host:
            return
        self._asked_for_host = True
        now = time.time()
        request = self._provider.webhook(call, self.url, method=self._method, now=now)
        if self._addresses.override is not None or not http.is_loopback(urlsplit(self.url).hostname or ""):
            return
        if self._provider.sign(request, now=now) == request:
            return
        health = WebhookRequest(method="GET", url=urljoin(self.url, "healthz"), headers={})
        # Another server than wsvoice may answer anything, or not at all.
        with suppress(HttpError):
            response = await self._send(health, PUBLIC_HOST_TIMEOUT_S, "health")
            self.url = self._own_url(response, self.url) or self.url

    async def request(
        self, render: Render, url: str, verb: Literal["GET", "POST"], *, warn_s: float = math.inf
    ) -> WebhookAnswer:
        """
        Sign and send the request that `render` makes, follow redirects, and return the answer.

        Raises:
            DialError: If the provider could not use the answer, in words for the report.
        """
        timeline = self._timeline
        elapsed_s = 0.0
        for _ in range(MAX_REDIRECTS + 1):
            now = time.time()
            request = render(url, verb, now)
            signed = self._provider.sign(request, now=now)
            knock = self._provider.knock(request) if signed != request else None
            try:
                limit_s = self._timeouts.webhook_s - elapsed_s
                response = await self._send(knock or signed, limit_s, "webhook")
                if knock is not None and response.status == 401 and "www-authenticate" in response.headers:
                    elapsed_s, knock = elapsed_s + response.elapsed_s, None
                    limit_s = self._timeouts.webhook_s - elapsed_s
                    response = await self._send(signed, limit_s, "webhook")
            except HttpError as error:
                raise DialError(self._failure(error, url)) from error
            elapsed_s += response.elapsed_s
            if (own := self._own_url(response, url)) is not None:
                self.url = url = own
                if response.status == 403 and signed != request:
                    # It was signed for the local name.
                    continue
            if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("location")):
                url = urljoin(url, location)
                if urlsplit(url).scheme not in ("http", "https"):
                    raise DialError(f"the webhook redirects to {url[:_TEXT_LIMIT]}, which is not a web address")
                if response.status not in (307, 308):
                    verb = "GET"
                timeline.add("webhook", f"redirected to {self.shown(url)}")
                continue
            break
        else:
            raise DialError(f"the webhook redirects more than {MAX_REDIRECTS} times")
        elapsed_ms = elapsed_s * 1000
        timeline.add("webhook", f"{verb} {self.shown(url)} answered {response.status} in {elapsed_ms:.0f} ms")
        if elapsed_s > warn_s:
            text = f"the webhook took {elapsed_s:.1f} s; callers hear nothing until it answers"
            timeline.add_finding("W1", "warn", text)
        if not 200 <= response.status < 300:
            refusal = self._refusal(response, url, was_signed=signed != request, was_asked=knock is None)
            raise DialError(refusal)
        return WebhookAnswer(url, response, elapsed_ms)

    def read(self, answer: WebhookAnswer) -> Document:
        """
        Read the document in an answer.

        Raises:
            DialError: If it cannot be read, in words for the report.
        """
        response = answer.response
        try:
            if response.is_cut:
                raise RemoteProtocolError("too-long", f"it is longer than {ANSWER_LIMIT // 1024} KiB")
            if _is_page(response.body):
                said = plain_text(response.body)
                raise RemoteProtocolError("page", "it is a web page" + (f" ({said!r})" if said else ""))
            content_type = response.headers.get("content-type", "")
            return self._provider.read_answer(response.body, content_type, base_url=answer.url)
        except RemoteProtocolError as error:
            raise no_stream(error, self._timeline) from error

    def is_same_server(self, url: str) -> bool:
        """Whether `url` is on the webhook's server."""
        return _server(url) == _server(self.url)

    async def send(self, request: WebhookRequest, *, timeout_s: float) -> http.HttpResponse:
        """
        Sign and send a request; redirects are not followed.

        Raises:
            HttpError: If there was no response.
        """
        return await self._send(self._provider.sign(request, now=time.time()), timeout_s)

    async def report_progress(self, call: Call, stage: Progress, duration_s: float) -> None:
        """Report the progress of `call` to the server, if the provider does; the answer never fails the call."""
        now = time.time()
        at = Callback(self.url, self._method)
        request = self._provider.progress_webhook(call, at, stage, duration_s=duration_s, now=now)
        if request is None:
            return
        try:
            response = await self._send(self._provider.sign(request, now=now), self._timeouts.webhook_s)
        except HttpError as error:
            self._timeline.add("note", f"the report that {_STAGES[stage]} got no answer: {error.message}")
            return
        self._timeline.add("webhook", f"the webhook was told that {_STAGES[stage]}: {response.status}")

    async def probe(self, call: Call) -> bool:
        """Announce `call` without a signature, which has to be refused; false if that proves nothing."""
        now = time.time()
        request = self._provider.webhook(call, self.url, method=self._method, now=now)
        if self._provider.sign(request, now=now) == request:
            text = "no secret is known to sign webhooks with, so an unsigned one would prove nothing"
            self._timeline.add("note", text)
            return False
        try:
            response = await self._send(request, self._timeouts.webhook_s)
        except HttpError as error:
            self._timeline.add("note", f"a webhook without a signature got no answer: {error.message}")
            return False
        status = response.status
        self._timeline.add("webhook", f"an unsigned webhook was answered {status}")
        if status not in (401, 403):
            text = f"a webhook without a signature was answered with {status}"
            self._timeline.add_finding("W2", "fail", f"{text}: anybody who finds the URL can start calls")
        return True

    def _own_url(self, response: http.HttpResponse, url: str) -> str | None:
        """Return the public URL for `url` if a server on this machine has named its public host in its response."""
        host = response.headers.get(http.PUBLIC_HOST_HEADER, "")
        parts = urlsplit(url)
        if self._addresses.override or not _HOST.fullmatch(host) or not http.is_loopback(parts.hostname or ""):
            return None
        self._addresses.override = HostOverride(host, url)
        self._timeline.add("note", f"{host} is this server; calling it locally")
        return parts._replace(scheme="https", netloc=host).geturl()

    def shown(self, url: str) -> str:
        """Return `url` for people: where it really goes, and cut."""
        return shortened(self._addresses.local(url))

    async def _send(self, request: WebhookRequest, timeout_s: float, kind: AskedKind = "status") -> http.HttpResponse:
        began = self._clock.now()
        response = await http.send(
            HttpRequest(request.method, self._addresses.local(request.url), request.headers, request.body),
            timeout_s=max(0.001, timeout_s),
            body_limit=ANSWER_LIMIT,
            look_up=self._addresses.addresses,
        )
        if self._trace is not None:
            self._trace.asked(request, response, began, kind)
        return response

    def _failure(self, error: HttpError, url: str) -> str:
        if error.kind == "timeout":
            message = f"the webhook did not answer within {self._timeouts.webhook_s:g} s"
            self._timeline.add_finding("W1", "fail", f"{message}; {self._provider.title} gives up then")
            return f"{message}: {url}"
        if error.kind == "refused":
            if http.is_loopback(urlsplit(url).hostname or ""):
                return (
                    f"nothing listens at {url} - start it with `wsvoice run bot.py -t {self._provider.name}`,"
                    " or give a bot file: `wsvoice dial bot.py`"
                )
            return f"nothing listens at {url}; is the server or the tunnel running?"
        if error.kind == "tls" and http.is_loopback(urlsplit(url).hostname or "") and "http://" not in error.message:
            return f"{error.message} - a server on this machine seldom has TLS: use http://"
        if error.kind == "dns":
            return f"{error.message} - a server on this machine is dialled by `wsvoice dial {DEFAULT_TARGET}`"
        return error.message

    def _refusal(self, response: http.HttpResponse, url: str, *, was_signed: bool, was_asked: bool) -> str:
        status = response.status
        served = response.headers.get(http.PROVIDERS_HEADER, "")[:_TEXT_LIMIT]
        if served and self._provider.name not in served.split(","):
            return (
                f"the server takes no calls from {self._provider.title}: {status}"
                f" - dial with -t {' or -t '.join(served.split(','))}"
            )
        if plain_text(response.body).startswith(_CLIENTS_ONLY):
            return (
                "the server takes plain WebSocket clients, not telephone calls"
                f" - start it with `wsvoice run bot.py -t {self._provider.name}`"
            )
        if not was_asked and status not in (404, 405):
            return (
                f"the webhook answered {status} to a request without credentials, which {self._provider.title}"
                " sends only where a 401 with WWW-Authenticate asks for them"
            )
        if status in (401, 403):
            # Not always what the server checks with: Telnyx's has a public key.
            names = " and ".join(self._provider.test_credentials(bytes(32))[0])
            unsigned = f"it checks who calls; set {names} to match the server's"
            why = f"compare {names} with the server's" if was_signed else unsigned
            return f"the webhook refused the call: {status} ({why})"
        if status == 404:
            return f"the webhook's server has no such path: 404 at {url}"
        if status == 405:
            other = "POST" if self._method == "GET" else "GET"
            return f"the webhook takes another HTTP method: 405 at {url} (try --method {other})"
        if status >= 500:
            said = plain_text(response.body)
            return f"the webhook failed: {status}" + (f", {said}" if said else "")
        return f"the webhook refused the call: {status}"


def no_stream(error: RemoteProtocolError, timeline: Timeline) -> DialError:
    """Return the error for an answer that opens no stream; a mistake in the answer is a finding."""
    if error.kind in ("rejected", "hung-up"):
        return DialError(error.message)
    timeline.add_finding("W3", "fail", error.message, kind=error.kind)
    return DialError(f"the webhook's answer cannot be used: {error.message}")


def _server(url: str) -> tuple[str, str, int | None]:
    """Return what identifies a server: scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").rstrip("."), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _is_page(body: bytes) -> bool:
    return _PAGE.match(body[:100].decode("utf-8", "replace").strip()) is not None


def plain_text(body: bytes) -> str:
    """Return the title of a page, or its first line of text: printable, without tags, at most 200 characters."""
    text = body[:8192].decode("utf-8", "replace").strip()
    if _is_page(body):
        title = _TITLE.search(text)
        if title is not None and title[1].strip():
            text = " ".join(title[1].split())
        else:
            # Only block elements end a line.
            text = _TAGS.sub("", _BLOCKS.sub("\n", " ".join(_UNSEEN.sub(" ", text).split())))
        text = unescape(text)
    text = text.strip().partition("\n")[0].strip()
    return "".join(character for character in text if character.isprintable())[:_TEXT_LIMIT]
