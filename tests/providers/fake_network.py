"""Between an account's steps, or a company's own library, and a fake account: no network at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter

from wsvoice.providers.account import ApiResponse, Steps
from wsvoice.providers.base import Answer, HttpRequest, WebhookRequest
from wsvoice.providers.fake_account import FakeAccount
from wsvoice.providers.fake_api import FakeApi
from wsvoice.providers.urls import basic_header

ResultT = TypeVar("ResultT")


class FakeNetwork:
    """
    Hands requests to a fake API and its account.

    Attributes:
        requests: What was sent, in its order.
        refusal: Answers in the place of the account, or lets it answer.
    """

    def __init__(self, api: FakeApi, account: FakeAccount) -> None:
        self.requests: list[HttpRequest] = []
        self.refusal: Callable[[HttpRequest], Answer | None] = lambda request: None
        self._api, self._account = api, account

    def carry_out(self, steps: Steps[ResultT]) -> ResultT:
        """Carry out an operation, and return its result."""
        try:
            request = next(steps)
            while True:
                answer = self.send(request)
                request = steps.send(ApiResponse(answer.status, {}, answer.body.encode()))
        except StopIteration as end:
            result: ResultT = end.value
            return result

    def send(self, request: HttpRequest) -> Answer:
        """Return what a request is answered with."""
        self.requests.append(request)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if request.basic_auth is not None:
            headers["authorization"] = basic_header(*request.basic_auth)["Authorization"]
        if (refused := self.refusal(request)) is not None:
            return refused
        received = WebhookRequest(request.method, request.url, headers, request.body)
        if not self._api.is_authorised(received):
            return self._api.api_error(401, "these are not the credentials")
        return self._account.answer(received) or self._api.api_error(404, "there is no such thing")

    def sent(self) -> list[tuple[str, str]]:
        """Return method and address of what was sent so far, and forget it."""
        sent = [(each.method, each.url) for each in self.requests]
        self.requests.clear()
        return sent


class FakeAdapter(BaseAdapter):
    """Lets a library that uses `requests` talk to a fake account."""

    def __init__(self, network: FakeNetwork) -> None:
        super().__init__()
        self._network = network

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        body = request.body.encode() if isinstance(request.body, str) else request.body or b""
        assert request.method
        assert request.url
        answer = self._network.send(HttpRequest(request.method, request.url, dict(request.headers), body))
        response = Response()
        response.status_code, response._content, response.request = answer.status, answer.body.encode(), request
        response.url = request.url
        return response

    def close(self) -> None:
        """Nothing is open."""
