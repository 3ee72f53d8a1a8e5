"""
Serves the metrics: on a port of their own (``--metrics-port``), or on the main one behind a token.

The text is written in the event loop of the calls, in a millisecond or two, and at most once a second: whoever asks
more often gets the same one again.
"""

from __future__ import annotations

import hmac
import socket
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from wsvoice.config import METRICS_TOKEN
from wsvoice.runner.metrics import Exposition
from wsvoice.runner.protocols import HttpProtocol

if TYPE_CHECKING:
    from loguru import Logger
    from starlette.requests import Request

    from wsvoice.runner.logs import RefusalLog
    from wsvoice.runner.metrics import Metrics

PATH = "/metrics"
#: How old the text may be, in seconds.
MAX_AGE_S = 1.0


class MetricsPage:
    """Answers requests for the metrics, with a text that is at most :data:`MAX_AGE_S` old."""

    def __init__(self, metrics: Metrics, *, now: Callable[[], float] = time.monotonic) -> None:
        self._exposition = Exposition(metrics)
        self._now = now
        self._text, self._written_at = b"", float("-inf")

    def text(self) -> bytes:
        """Return the text."""
        now = self._now()
        if now - self._written_at >= MAX_AGE_S:
            self._text, self._written_at = self._exposition.render(), now
        return self._text

    async def answer(self, _: Request) -> Response:
        """Answer whoever may ask."""
        return Response(self.text(), media_type=self._exposition.content_type)

    def guarded_route(self, token: str, refusals: RefusalLog, log: Logger) -> Route:
        """Return a route for the main port, whose requests have to carry `token`."""

        async def answer(request: Request) -> Response:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode()):
                return await self.answer(request)
            refusals.warning(log, "metrics refused (401)", "the token is missing or wrong")
            refusal = f"The header `Authorization: Bearer <{METRICS_TOKEN}>` is missing or wrong.\n"
            return PlainTextResponse(refusal, 401, {"WWW-Authenticate": "Bearer"})

        return Route(PATH, answer, methods=["GET"])


class MetricsServer:
    """
    A port that serves nothing but the metrics, in the event loop of the calls.

    Args:
        sockets: What it listens on already, so that a port in use is known before any call is taken.
    """

    def __init__(
        self, metrics: Metrics, sockets: Sequence[socket.socket], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        application = Starlette(routes=[Route(PATH, MetricsPage(metrics, now=now).answer, methods=["GET"])])
        config = uvicorn.Config(
            application,
            http=HttpProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._sockets = list(sockets)

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.startup(self._sockets)

    async def stop(self) -> None:
        """Answer no more."""
        if self._server.started:
            await self._server.shutdown(self._sockets)
