"""
The course of a call: its documents, from the first to the last, and status callbacks.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Literal
from urllib.parse import urlsplit

from wsvoice.call import Call
from wsvoice.dial.setup import CallSetup
from wsvoice.dial.webhook import Webhook, WebhookAnswer, no_stream
from wsvoice.errors import DialError, HttpError, RemoteProtocolError
from wsvoice.http import is_loopback
from wsvoice.providers.base import (
    Callback,
    Command,
    NoStream,
    Occasion,
    StreamRequest,
    StreamStatus,
    WebhookRequest,
)

#: How many documents a call may ask for after the first one, so that a test call ends.
MAX_DOCUMENTS = 10
#: How long a status callback may take; only the call's report waits for it.
CALLBACK_TIMEOUT_S = 5.0

_TEXT_LIMIT = 200


class CallControl:
    """
    The course of one call, document by document.

    Args:
        setup: How the call is placed.
        webhook: The call's webhook, which answers with the first document.
    """

    def __init__(self, setup: CallSetup, webhook: Webhook) -> None:
        self._setup = setup
        self._provider = setup.provider
        self._timeline = setup.timeline
        self._force_ws = setup.config.force_ws
        self._webhook = webhook
        self._documents = 0
        #: Where the last document came from: the base of its relative URLs.
        self._base_url = webhook.url
        self._status_task: asyncio.Task[None] | None = None

    # Documents

    async def first(self, call: Call, answer: WebhookAnswer) -> StreamRequest:
        """
        Return the stream that the webhook's answer asks for, following redirects.

        Raises:
            DialError: If it asks for none, in words for the report.
        """
        while True:
            self._base_url = answer.url
            document = self._webhook.read(answer)
            if isinstance(document, StreamRequest):
                return document
            if isinstance(document, NoStream):
                raise no_stream(RemoteProtocolError(document.kind, document.reason), self._timeline)
            for verb in document.skipped:
                self._timeline.add("note", f"a real call would do first: {verb}")
            answer = await self._ask(call, document.callback, "redirect", answered=False)

    async def next_stream(self, call: Call, request: StreamRequest, update: Command | None) -> StreamRequest | None:
        """
        Return the next stream of `call`, of an `update` through the API or else after the stream of `request`.

        ``None`` if the call ends or leaves the bot. A document that cannot be used is a finding.
        """
        callback, document = request.action, request.rest
        if update is not None:
            callback, document = update.callback, update.document
            self._base_url = self._webhook.url
        try:
            if callback is not None:
                answer = await self._ask(call, callback, "update" if update else "action")
                return await self._follow(call, answer)
            if update is not None:
                self._count()
            return await self._read(call, document, self._provider.document_type)
        except DialError as error:
            self._timeline.add_finding("W6", "fail", error.message)
            return None

    async def _follow(self, call: Call, answer: WebhookAnswer) -> StreamRequest | None:
        self._base_url = answer.url
        response = answer.response
        if response.status == 204:
            self._timeline.add("note", "the server has nothing more to say: the call ends")
            return None
        return await self._read(call, response.body, response.headers.get("content-type", ""))

    async def _read(self, call: Call, body: bytes, content_type: str) -> StreamRequest | None:
        try:
            document = self._provider.read_answer(body, content_type, base_url=self._base_url, first=False)
        except RemoteProtocolError as error:
            raise DialError(f"the next document cannot be used: {error.message}") from error
        if isinstance(document, NoStream):
            self._report_end(document)
            return None
        if isinstance(document, StreamRequest):
            return self.settle(document, "next")
        for verb in document.skipped:
            self._timeline.add("note", f"a real call would do next: {verb}")
        return await self._follow(call, await self._ask(call, document.callback, "redirect"))

    def _report_end(self, document: NoStream) -> None:
        verbs = list(document.skipped)
        if document.how == "hung-up":
            verbs.append("hang-up")
        if verbs:
            self._timeline.add("note", f"a real call goes on with: {'; '.join(verbs)}")
        if document.how == "transferred":
            self._timeline.add("hang-up", f"the bot transfers the call to {document.to}")
            self._setup.transferred_to = document.to

    async def _ask(self, call: Call, callback: Callback, occasion: Occasion, *, answered: bool = True) -> WebhookAnswer:
        self._count()
        what = {"redirect": "the answer's redirect", "action": "the stream's action", "update": "the call's update"}
        self._timeline.add(
            "webhook", f"{what[occasion]} leads to {callback.method} {self._webhook.shown(callback.url)}"
        )

        def render(url: str, method: Literal["GET", "POST"], now: float) -> WebhookRequest:
            at = Callback(url, method)
            return self._provider.next_webhook(call, at, occasion, answered=answered, now=now)

        return await self._webhook.request(render, callback.url, callback.method)

    def _count(self) -> None:
        self._documents += 1
        if self._documents > MAX_DOCUMENTS:
            raise DialError(
                f"the bot's server gives the call more than {MAX_DOCUMENTS} documents; the test call ends here"
            )

    def settle(self, request: StreamRequest, when: str = "first") -> StreamRequest:
        """Report what an answer says beside its stream, and return the stream as it is to be dialled."""
        timeline = self._timeline
        for verb in request.skipped:
            timeline.add("note", f"a real call would do {when}: {verb}")
        # A server on this machine has no TLS until it has a public address.
        local = request.url.startswith("ws://") and is_loopback(urlsplit(request.url).hostname or "")
        for found in request.findings:
            if local and "ws://" in found.message:
                timeline.add("note", f"{found.message}; fine for a local test")
            else:
                timeline.add_finding(found.id, found.level, found.message)
        how = ""
        if self._force_ws and request.url.startswith("wss://"):
            request = replace(request, url="ws://" + request.url.removeprefix("wss://"))
            how = " (ws:// instead of wss://, as asked)"
        timeline.add("answer", f"the stream is {self._webhook.shown(request.url)}{how}")
        return request

    # Status callbacks

    def send_status(self, call: Call, request: StreamRequest, status: StreamStatus, *, error: str = "") -> None:
        """Send the stream's status to its callback, if the document names one, without waiting for the answer."""
        callback = request.status_callback
        if callback is None:
            return
        if not self._webhook.is_same_server(callback.url):
            url = callback.url[:_TEXT_LIMIT]
            self._timeline.add(
                "note", f"the status callback {url} is on another server, which a test call leaves alone"
            )
            return
        status_request = self._provider.stream_webhook(
            call, callback, status, name=request.name, error=error[:_TEXT_LIMIT], now=time.time()
        )
        if status_request is None:
            return
        before = self._status_task

        async def send() -> None:
            if before is not None:
                await asyncio.wait([before])
            what = f"the status callback that the stream has {status}"
            try:
                response = await self._webhook.send(status_request, timeout_s=CALLBACK_TIMEOUT_S)
            except HttpError as failure:
                self._timeline.add_finding("W6", "warn", f"{what} got no answer: {failure.message}", kind="callback")
                return
            if not 200 <= response.status < 300:
                self._timeline.add_finding("W6", "warn", f"{what} was answered {response.status}", kind="callback")
                return
            self._timeline.add("webhook", f"{what} was answered {response.status}")

        self._status_task = asyncio.create_task(send())

    async def finish(self) -> None:
        """Wait until every status callback has been answered."""
        if self._status_task is not None:
            await asyncio.wait([self._status_task])
