"""A test webhook, signed as the provider signs it, and the document that it is answered with."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from wsvoice.call import Call
from wsvoice.config import DialConfig
from wsvoice.dial.addresses import shortened
from wsvoice.dial.clock import Clock
from wsvoice.dial.quirks import read_behaviour
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.timeline import Timeline
from wsvoice.dial.timeouts import Timeouts
from wsvoice.dial.webhook import Webhook
from wsvoice.doctor.checkup import Result, fail, ok, skipped, warn
from wsvoice.doctor.network import REQUEST_TIMEOUT_S
from wsvoice.doctor.round_trip import result_of
from wsvoice.doctor.subject import Subject
from wsvoice.errors import DialError, HttpError
from wsvoice.providers import load_simulator
from wsvoice.providers.base import (
    Callback,
    HttpRequest,
    NoStream,
    Simulator,
    StatusReport,
    StreamRequest,
    WebhookRequest,
)

#: What wsvoice answers where the signature is good and the public host is not its own.
_UNKNOWN_HOST = b"This server does not know its public address"


async def look_at_webhook(subject: Subject, name: str) -> list[Result]:
    """
    Announce a call as the provider would, and read the answer as it would.

    The call never begins: its place at the server is free again once the server is told that it is over, or after a
    minute.
    """
    url = subject.webhook_url(name)
    provider = load_simulator(name, subject.config.credentials)
    if not url:
        return [skipped("no server is known: start one with `wsvoice run`, or name its public address with -x")]
    if not provider.has_webhook:
        return [skipped(f"{provider.title} sends no webhook")]
    trial = _Trial(subject, provider, url)
    if not trial.can_sign and provider.signs and (subject.public_url or provider.can_verify()):
        return await trial.look_unsigned()
    return await trial.look()


@dataclass(slots=True)
class _Trial:
    """One webhook that is tried."""

    subject: Subject
    provider: Simulator
    url: str

    def _new_call(self) -> Call:
        usual = DialConfig()
        return self.provider.new_call(
            from_number=usual.from_number, to_number=usual.to_number, parameters={}, seed=secrets.token_bytes(32)
        )

    @property
    def can_sign(self) -> bool:
        """Whether the secret that signs is known here; Telnyx keeps its own."""
        request = WebhookRequest(self.provider.webhook_method, self.url)
        return self.provider.sign(request, now=self.subject.now()) != request

    def _webhook(self) -> tuple[Webhook, CallSetup]:
        subject, provider, clock = self.subject, self.provider, Clock()
        config = DialConfig(transport=provider.name)
        timeline = Timeline(lambda event: None, clock)
        timeouts = Timeouts(webhook_s=REQUEST_TIMEOUT_S)
        setup = CallSetup(config, False, provider, read_behaviour(provider), timeline, clock, timeouts)
        policy = subject.network.policy(self.url)
        return Webhook(setup, self.url, policy, asked_for_host=bool(subject.public_url)), setup

    async def look(self) -> list[Result]:
        """Announce a call, and judge the answer."""
        call = self._new_call()
        webhook, setup = self._webhook()
        try:
            answer = await webhook.announce(call)
            document = webhook.read(answer)
        except DialError as error:
            if self.can_sign and (checked := await self._url_that_is_checked()):
                return [self._wrong_url(checked)]
            return [fail(error.message, f"see the server's log; the webhook is {self.url}")]
        finally:
            await self._end(webhook, call)
        results = [result_of(each) for each in setup.timeline.findings.all()]
        if _is_elsewhere(answer.url, webhook.url):
            text = f"the webhook is redirected to {answer.url}"
            results.append(warn(text, f"enter that address at {self.provider.title}: a redirect may lose the form"))
        if isinstance(document, NoStream):
            text = f"the webhook's answer opens no stream: {document.reason or document.how}"
            return [*results, fail(text, "let it open one in both directions, as the answers of `wsvoice run` do")]
        if isinstance(document, StreamRequest):
            results += self._judge(document)
        return results or [ok(self._all_well(document.url if isinstance(document, StreamRequest) else ""))]

    def _judge(self, request: StreamRequest) -> list[Result]:
        """Return what is wrong with the stream that an answer asks for."""
        # Of its scheme is told below, and a server on this machine has no TLS until it has a public address.
        results = [result_of(each) for each in request.findings if "ws://" not in each.message]
        if not self.subject.public_url:
            return results
        stream, public = urlsplit(request.url), urlsplit(self.subject.public_url)
        if stream.scheme != "wss":
            text = f"the answer names a stream at {shortened(request.url)}, and providers take wss:// only"
            results.append(fail(text, f"tell the server its public address: -x {public.netloc}"))
        elif (stream.hostname, stream.port or 443) != (public.hostname, public.port or 443):
            text = f"the answer names a stream at {stream.netloc}, and the public address is {public.netloc}"
            results.append(warn(text, f"if that is not meant, start the server with -x {public.netloc}"))
        return results

    def _all_well(self, stream: str) -> str:
        provider = self.provider
        there = f"{self.url} (HTTP {provider.webhook_method})"
        named = f"; the answer names a stream at {shortened(stream)}" if stream else ""
        if not self.can_sign:
            return f"{there} takes {provider.title}'s webhooks{named}"
        proof = "signs for it" if provider.covers_body else "sends its password with"
        return f"{there} takes what {provider.title} {proof}{named}"

    async def look_unsigned(self) -> list[Result]:
        """Look whether the server refuses a webhook that is not signed, where only the provider can sign one."""
        now = self.subject.now()
        request = self.provider.webhook(self._new_call(), self.url, method=self.provider.webhook_method, now=now)
        try:
            response = await self._send(request, self.url)
        except HttpError as error:
            return [fail(f"the webhook gives no answer: {error.message}", "see the server's log")]
        if response[0] in (401, 403):
            title = self.provider.title
            return [ok(f"{self.url} refuses a webhook that {title} has not signed, and nobody else can sign one")]
        if 200 <= response[0] < 300:
            text = f"a webhook without a signature is answered with {response[0]}: anybody can start calls at your cost"
            return [warn(text, f"set {self.provider.credential_names[0]} for the server")]
        return [fail(f"the webhook answers {response[0]} at {self.url}", "see the server's log")]

    async def _url_that_is_checked(self) -> str:
        """Return the URL against which the server checks signatures, by trying others; empty if none is taken."""
        with suppress(HttpError):
            status, _ = await self._send_signed_for(self.url)
            if status not in (401, 403):
                return ""
            for url in candidates(self.url, self.subject.server.url if self.subject.server else ""):
                status, body = await self._send_signed_for(url)
                if 200 <= status < 300 or body.startswith(_UNKNOWN_HOST):
                    return url
        return ""

    async def _send_signed_for(self, url: str) -> tuple[int, bytes]:
        """Send a webhook to its URL whose signature is for `url`; return the status and the body."""
        now = self.subject.now()
        request = self.provider.webhook(self._new_call(), url, method=self.provider.webhook_method, now=now)
        return await self._send(self.provider.sign(request, now=now), self.url)

    def _wrong_url(self, checked: str) -> Result:
        title, public = self.provider.title, urlsplit(self.url)
        text = f"the signature does not fit: {title} signs {self.url}, and the server checks it for {checked}"
        if self.subject.server is not None or checked.startswith("http://"):
            return fail(text, f"tell the server its public address: `wsvoice run … -x {public.netloc}`")
        return fail(text, f"enter exactly that at {title}, or tell the server its public address: -x {public.netloc}")

    async def _send(self, request: WebhookRequest, url: str) -> tuple[int, bytes]:
        """Send what was signed for any URL to `url`; return the status and the body."""
        query = urlsplit(request.url).query
        where = urlsplit(url)._replace(query=query).geturl()
        sent = HttpRequest(request.method, where, request.headers, request.body)
        response = await self.subject.network.send(sent, self.url)
        return response.status, response.body

    async def _end(self, webhook: Webhook, call: Call) -> None:
        """Tell the server that a call is over which never began, so that its place is free."""
        at, now = Callback(webhook.url, self.provider.webhook_method), self.subject.now()
        report = self.provider.status_webhook(call, at, StatusReport("completed"), now=now)
        report = report or self.provider.progress_webhook(call, at, "ended", now=now)
        if report is not None:
            with suppress(HttpError):
                await webhook.send(report, timeout_s=REQUEST_TIMEOUT_S)


def _is_elsewhere(a: str, b: str) -> bool:
    return urlsplit(a)._replace(query="") != urlsplit(b)._replace(query="")


def candidates(url: str, local_url: str) -> Iterator[str]:
    """Yield what a server may take a request to `url` for, as proxies hide parts of it; the likely ones first."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port
    hosts = [parts.netloc]
    if local_url:
        local = urlsplit(local_url)
        hosts += [local.netloc, f"127.0.0.1:{local.port or 80}", f"localhost:{local.port or 80}"]
    hosts.append(host if port else f"{host}:443")
    paths = [parts.path, f"{parts.path}/" if parts.path.rstrip("/") else "", parts.path.rstrip("/"), "/"]
    seen = {url}
    for each in hosts:
        for path in paths:
            for scheme in ("http", "https"):
                written = replace_parts(url, scheme, each, path)
                if written not in seen:
                    seen.add(written)
                    yield written


def replace_parts(url: str, scheme: str, netloc: str, path: str) -> str:
    """Return `url` with these parts in the place of its own."""
    return urlsplit(url)._replace(scheme=scheme, netloc=netloc, path=path).geturl()
