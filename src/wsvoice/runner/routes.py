"""
The server's routes, as an application of their own or a router for another one.

============================  =======================================================================
``GET/POST /``                the webhook of the one provider that is served, or of whichever it is
``GET/POST /<provider>``      the webhook of one provider; a slash more at its end is the same
``/<provider>/dialled/<token>``  the webhook of a call that this server placed
``/<provider>/status[/<token>]`` reports on calls: never answered with a document
``/<provider>/transfer``      the document that connects a call to somebody else, where the API takes only its address
``/dial``                     places calls, for whoever has the key: :mod:`wsvoice.runner.dial_api`
``WS /ws/<provider>/<token>`` a stream that a webhook announced
``WS /ws``, ``/ws/<provider>`` a stream without a token; only on localhost, or with ``--stream-auth none``
``POST /start``               a token for a plain client, and ``/ws-client/<token>``; with ``-t websocket``
``GET /busy/<name>.wav``      the sound of ``--busy-message``
``GET /healthz``              200 while the process works; on this machine also how many calls there are
``GET /metrics``              figures for Prometheus, for whoever has the token; without one set it is not there
``GET /readyz``               200 while it takes calls, 503 once it is asked to stop
============================  =======================================================================
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from loguru import logger
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from wsvoice import http
from wsvoice.config import METRICS_TOKEN, RunConfig
from wsvoice.providers import PROVIDERS
from wsvoice.runner import requests
from wsvoice.runner.bot_task import Bot
from wsvoice.runner.dial_api import DialApi
from wsvoice.runner.metrics_server import MetricsPage
from wsvoice.runner.switchboard import Switchboard, create_switchboard

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def create_app(bot: Bot, config: RunConfig | None = None) -> FastAPI:
    """
    Return the FastAPI application that serves `bot`: webhooks, media streams and health checks.

    Args:
        bot: A coroutine function that takes the call's arguments.
        config: The settings; those of a development server on localhost by default.

    Raises:
        ConfigError: If the settings contradict each other.
    """
    return application(create_switchboard(bot, config))


def application(switchboard: Switchboard) -> FastAPI:
    """Return an application with nothing but the switchboard's routes."""
    app = FastAPI(
        title="wsvoice",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # Its own spans would have tokens and phone numbers, from paths and queries, and one for each health check.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.switchboard = switchboard
    app.include_router(_router(switchboard))
    if switchboard.clients is None:
        # Only where all paths are ours: say why the path of a provider that is not served is not found.
        guides = [_guide(switchboard, name, slash) for name in PROVIDERS for slash in ("", "/")]
        app.router.routes.extend(guides)
    return app


def create_router(bot: Bot, config: RunConfig | None = None) -> APIRouter:
    """
    Return the same routes for an application of your own: ``app.include_router(create_router(bot), prefix="/voice")``.

    The application's middleware and lifespan apply. Run it with ``--ws-max-size 65536`` and WebSocket pings, as
    ``wsvoice run`` does, so that the server itself refuses large messages and notices callers that vanish.

    Arguments and errors are those of :func:`create_app`.
    """
    return _router(create_switchboard(bot, config))


def _router(switchboard: Switchboard) -> APIRouter:
    server_id = secrets.token_hex(8)

    def introduce(request: Request, response: Response) -> Response:
        """Tell a program on this machine what it has reached."""
        if requests.is_local_program(request):
            response.headers[http.PROVIDERS_HEADER] = ",".join(switchboard.providers)
            if (host := switchboard.config.proxy) is not None:
                # So it knows that the answer's URLs are this server's own, and which name it has to sign.
                response.headers[http.PUBLIC_HOST_HEADER] = host
        return response

    async def stream(websocket: WebSocket) -> None:
        path = websocket.path_params
        await switchboard.stream(websocket, path.get("provider"), path.get("token"))

    async def health_check(request: Request) -> Response:
        status, code = "ok", 200
        if request.scope["path"].endswith("/readyz"):
            status, code = ("draining", 503) if switchboard.is_leaving else ("ready", 200)
        # How busy a bot is concerns only its owner.
        calls = {} if requests.is_from_elsewhere(request) else {"calls": switchboard.capacity.active}
        # Whoever asks by the public address can tell whether it leads here.
        known = {http.SERVER_HEADER: server_id}
        return introduce(request, JSONResponse({"status": status, **calls}, code, known))

    def webhook(path: str, name: str | None = None, place: str = "") -> Route:
        async def answer(request: Request) -> Response:
            token = request.path_params.get("token", "")
            return introduce(request, await switchboard.webhook(request, name, place=place, token=token))

        return Route(path, answer, methods=["GET", "POST"])

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        switchboard.fleet.start(switchboard)
        yield
        switchboard.end_all("the server stops")
        switchboard.starts.collection.end()
        switchboard.close()
        await switchboard.fleet.close()

    health = [Route(path, health_check) for path in ("/healthz", "/readyz")]
    if token := switchboard.config.credentials.get(METRICS_TOKEN):
        page = MetricsPage(switchboard.metrics)
        health.append(page.guarded_route(token, switchboard.refusals, logger.bind(call="-")))
    if switchboard.clients is not None:
        return APIRouter(lifespan=lifespan, redirect_slashes=False, routes=[*health, *switchboard.clients.routes()])
    # One route per provider: a pattern would match paths of the application that this is part of.
    # With and without the slash: a redirect would lead to this server's local address, and break the signature.
    webhooks = [webhook(f"/{name}{slash}", name) for name in switchboard.providers for slash in ("", "/")]
    for name in switchboard.providers:
        paths = (("dialled", "/{token}"), ("status", "/{token}"), ("status", ""), ("transfer", ""))
        webhooks += [webhook(f"/{name}/{place}{token}", name, place) for place, token in paths]
    streams = [WebSocketRoute(f"/ws{path}", stream) for path in ("", "/{provider}", "/{provider}/{token}")]
    switchboard.dial_api = DialApi(switchboard)
    others = [*switchboard.dial_api.routes(), *switchboard.busy_messages.routes()]
    routes = [*health, webhook("/"), *webhooks, *others, *streams]
    return APIRouter(lifespan=lifespan, redirect_slashes=False, routes=routes)


def _guide(switchboard: Switchboard, name: str, slash: str) -> Route:
    async def guide(_: Request) -> Response:
        served = ", ".join(f"/{each}" for each in switchboard.providers)
        return PlainTextResponse(f"Not served here (-t {name}). Webhooks: {served}\n", 404)

    return Route(f"/{name}{slash}", guide, methods=["GET", "POST"])
