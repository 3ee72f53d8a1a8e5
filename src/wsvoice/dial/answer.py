"""
The webhook: asks the bot's server what to do with a call, as the provider does.
"""

from __future__ import annotations

import time
from typing import Literal
from urllib.parse import urljoin, urlsplit

from wsvoice import http
from wsvoice.call import Call
from wsvoice.dial.journal import Journal
from wsvoice.dial.target import Detour
from wsvoice.errors import DialError, HttpError, RemoteProtocolError
from wsvoice.providers.base import HttpRequest, Provider, StreamRequest

#: https://www.twilio.com/docs/api/errors/11215
MAX_REDIRECTS = 10
#: More of an answer no provider reads, in bytes.
ANSWER_LIMIT = 256 * 1024

_TEXT_LIMIT = 200


async def ask(
    provider: Provider,
    call: Call,
    url: str,
    *,
    method: Literal["GET", "POST"],
    journal: Journal,
    warn_s: float,
    timeout_s: float,
    detour: Detour | None = None,
) -> tuple[StreamRequest, float]:
    """
    Announce `call` at the webhook `url`, and return the stream that the answer asks for.

    The request is signed where the provider knows its secret.

    Args:
        provider: Who asks.
        call: The call.
        url: The webhook.
        method: How it is requested; a redirect is followed as a provider does, by GET unless it is a 307 or 308.
        journal: Told what happens.
        warn_s: A slower answer is a finding.
        timeout_s: A slower answer is a failure, redirects included.
        detour: A host whose requests go to a server on this machine.

    Returns:
        The stream, and how long the answer took in milliseconds.

    Raises:
        DialError: If no stream came of it, in words for the report.
    """
    elapsed_s = 0.0
    verb: Literal["GET", "POST"] = method
    for _ in range(MAX_REDIRECTS + 1):
        request = provider.webhook(call, url, method=verb)
        if provider.can_verify():
            request = provider.sign(request, now=time.time())
        try:
            response = await http.send(
                HttpRequest(
                    request.method,
                    detour.apply(request.url) if detour else request.url,
                    request.headers,
                    request.body,
                ),
                timeout_s=max(0.001, timeout_s - elapsed_s),
                body_limit=ANSWER_LIMIT,
            )
        except HttpError as error:
            raise _no_response(error, provider, url, timeout_s, journal) from error
        elapsed_s += response.elapsed_s
        if response.status in (301, 302, 303, 307, 308) and (location := response.headers.get("location")):
            url = urljoin(url, location)
            if urlsplit(url).scheme not in ("http", "https"):
                raise DialError(f"the webhook redirects to {url[:_TEXT_LIMIT]}, which is no web address")
            if response.status not in (307, 308):
                verb = "GET"
            journal.tell("webhook", f"redirected to {url[:_TEXT_LIMIT]}")
            continue
        break
    else:
        raise DialError(f"the webhook redirects more than {MAX_REDIRECTS} times")

    elapsed_ms = elapsed_s * 1000
    journal.tell("webhook", f"{verb} {url} answered {response.status} in {elapsed_ms:.0f} ms")
    if elapsed_s > warn_s:
        journal.find("W1", "warn", f"the webhook took {elapsed_s:.1f} s; callers hear nothing until it answers")
    if not 200 <= response.status < 300:
        raise _refused(response, provider, url)
    try:
        request_ = provider.read_answer(response.body, response.headers.get("content-type", ""), base_url=url)
    except RemoteProtocolError as error:
        if error.kind in ("rejected", "hung-up"):
            raise DialError(error.message) from error
        journal.find("W3", "fail", error.message, kind=error.kind)
        raise DialError(f"the webhook's answer cannot be used: {error.message}") from error
    return request_, elapsed_ms


def _no_response(error: HttpError, provider: Provider, url: str, timeout_s: float, journal: Journal) -> DialError:
    if error.kind == "timeout":
        message = f"the webhook did not answer within {timeout_s:g} s"
        journal.find("W1", "fail", f"{message}; {provider.title} gives up then")
        return DialError(f"{message}: {url}")
    if error.kind == "refused":
        if http.is_loopback(urlsplit(url).hostname or ""):
            return DialError(
                f"nothing listens at {url} - start it with `wsvoice run bot.py -t {provider.name}`,"
                " or give a bot file: `wsvoice dial bot.py`"
            )
        return DialError(f"nothing listens at {url}; is the server or the tunnel running?")
    return DialError(error.message)


def _refused(response: http.HttpResponse, provider: Provider, url: str) -> DialError:
    status = response.status
    if status == 403:
        if not provider.can_verify():
            names = provider.credential_names[0]
            return DialError(
                f"the webhook refused the call: 403 (it wants a signature; set {names} to the server's own)"
            )
        return DialError("the webhook refused the call: 403 (is the signing secret the same on both sides?)")
    if status == 404:
        return DialError(f"the webhook's server knows no such path: 404 at {url}")
    if status == 405:
        return DialError(f"the webhook takes another method: 405 at {url} (try --method GET or POST)")
    if status >= 500:
        said = _first_line(response.body)
        return DialError(f"the webhook failed: {status}" + (f", {said}" if said else ""))
    return DialError(f"the webhook refused the call: {status}")


def _first_line(body: bytes) -> str:
    """Return the first line with something in it, printable and bounded."""
    text = body[:4096].decode("utf-8", "replace").strip().partition("\n")[0]
    return "".join(character for character in text if character.isprintable())[:_TEXT_LIMIT]
