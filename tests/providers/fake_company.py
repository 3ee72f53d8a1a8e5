"""What carries an account's steps to the same company's fake, without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from wsvoice.providers.account import ApiResponse, Steps
from wsvoice.providers.base import Answer, Company, HttpRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi
from wsvoice.providers.urls import basic_header

ResultT = TypeVar("ResultT")

NOW = 1_750_000_000.0


class Cut(Exception):
    """The process ended between two requests."""


class FakeNetwork:
    """
    A company's fake API and fake account, asked one request after the other.

    Attributes:
        asked: Every request, as the company gets it.
        cut_after: How many requests arrive before the process ends; ``None`` for all.
        instead: Answers a request in the company's place, or returns ``None``.
    """

    def __init__(self, api_type: type[FakeApi], company: Company) -> None:
        assert api_type.account_type is not None
        self.api = api_type(company)
        self.account: FakeAccount = api_type.account_type(company, bytes(range(32)))
        self.asked: list[WebhookRequest] = []
        self.cut_after: int | None = None
        self.instead: Callable[[WebhookRequest], Answer | None] = lambda request: None

    def carry_out(self, steps: Steps[ResultT]) -> ResultT:
        """Carry out an operation, and return its result."""
        try:
            request = next(steps)
            while True:
                request = steps.send(self._send(request))
        except StopIteration as end:
            result: ResultT = end.value
            return result

    def _send(self, request: HttpRequest) -> ApiResponse:
        if self.cut_after is not None and len(self.asked) >= self.cut_after:
            raise Cut
        request = request.at(NOW)
        headers = dict(request.headers)
        if request.basic_auth is not None:
            headers |= basic_header(*request.basic_auth)
        answer = self.answer(request.method, request.url, headers, request.body)
        return ApiResponse(answer.status, {"content-type": answer.media_type}, answer.body.encode())

    def answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a request as the company would."""
        request = WebhookRequest(method, url, {name.lower(): value for name, value in headers.items()}, body)
        self.asked.append(request)
        if (answer := self.instead(request)) is not None:
            return answer
        if not self.api.is_authorised(request):
            return self.api.api_error(401, "not authorised")
        return self.account.answer(request) or self.api.api_error(404, "not found")

    def paths(self) -> list[str]:
        """What was asked so far: method and path of each request."""
        return [f"{each.method} {'/' + each.url.split('/', 3)[3].partition('?')[0]}" for each in self.asked]
