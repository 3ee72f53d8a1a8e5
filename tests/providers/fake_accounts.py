"""An account's operations carried out without a network: each request goes to the account that stands in for it."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import requests
from twilio.http import HttpClient
from twilio.http.response import Response

from wsvoice.providers import load_simulator
from wsvoice.providers.account import ApiResponse, Steps
from wsvoice.providers.base import Answer, HttpRequest, WebhookRequest
from wsvoice.providers.urls import basic_header

SEED = bytes(range(32))


class Asked(NamedTuple):
    """A request, as far as it matters."""

    method: str
    url: str
    query: list[tuple[str, str]]
    form: list[tuple[str, str]]
    authorization: str | None


class Api:
    """
    A company's API: the credentials are looked at, then the account answers.

    Attributes:
        account: What the account has.
        asked: Every request, in order.
    """

    def __init__(self, name: str, credentials: dict[str, str]) -> None:
        api = load_simulator(name, credentials).fake_api()
        assert api is not None
        assert api.account_type is not None
        self._api = api
        self.account: Any = api.account_type(api.company, SEED)
        self.asked: list[Asked] = []

    def answer(self, request: WebhookRequest) -> Answer:
        url = urlsplit(request.url)
        self.asked.append(
            Asked(
                request.method,
                url._replace(query="").geturl(),
                sorted(request.query),
                sorted(parse_qsl(request.body.decode(), keep_blank_values=True)),
                request.headers.get("authorization"),
            )
        )
        if not self._api.is_authorised(request):
            return self._api.api_error(401, "Authenticate")
        return self.account.answer(request) or self._api.api_error(404, "The requested resource was not found")

    def run(self, steps: Steps[Any]) -> Any:
        """Carry out an operation."""
        try:
            request = next(steps)
            while True:
                answer = self.answer(as_webhook(request))
                headers = {name.lower(): value for name, value in answer.headers.items()}
                request = steps.send(ApiResponse(answer.status, headers, answer.body.encode()))
        except StopIteration as end:
            return end.value


def as_webhook(request: HttpRequest) -> WebhookRequest:
    """Return a request as the other end gets it."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    if request.basic_auth is not None:
        headers |= {"authorization": basic_header(*request.basic_auth)["Authorization"]}
    return WebhookRequest(request.method, request.url, headers, request.body)


class LibraryClient(HttpClient):
    """The HTTP client of Twilio's own library, which writes requests as it does, and hands them to an `api`."""

    def __init__(self, api: Api) -> None:
        super().__init__(None, False, None)
        self._api = api

    def request(
        self,
        method: str,
        url: str,
        params: Any = None,
        data: Any = None,
        headers: Any = None,
        auth: Any = None,
        timeout: Any = None,
        allow_redirects: bool = False,
    ) -> Response:
        written = requests.Request(method, url, headers, data=data, params=params, auth=auth).prepare()
        body = written.body or b""
        assert written.url is not None
        answer = self._api.answer(
            WebhookRequest(
                method,
                written.url,
                {name.lower(): value for name, value in written.headers.items()},
                body.encode() if isinstance(body, str) else body,
            )
        )
        return Response(answer.status, answer.body, dict(answer.headers))
