"""The page's server: on this machine only, and for whoever has its address."""

from __future__ import annotations

import asyncio
import hmac
import secrets
import signal
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from wsvoice._version import __version__
from wsvoice.browser_phone.gate import CALL_PAGE_POLICY, Gate, content_policy
from wsvoice.browser_phone.messages import MESSAGE_LIMIT, Dial, Save
from wsvoice.browser_phone.placed import PlacedFromPage
from wsvoice.browser_phone.session import PageSession
from wsvoice.config import DialConfig, without_secrets
from wsvoice.dial.target import parse_target
from wsvoice.errors import BotNotFoundError, PortInUseError, UsageError
from wsvoice.providers import PROVIDERS, load_simulator

#: Where it listens: nobody else reaches this address.
HOST = "127.0.0.1"
#: How many pages may be open, and how many calls may go on at once.
MAX_PAGES, MAX_CALLS = 16, 8
#: How many calls are kept so that they can be looked at and saved.
KEPT_CALLS = 20
#: How long the calls that go on may take to end when this process stops.
CLOSE_TIMEOUT_S = 6.0
#: Where the pages of calls are; each has a secret of its own in its path, and knows no other.
CALLS_PATH = "/calls/"

#: How many connections there may be; more are answered with 503.
MAX_CONNECTIONS = 100

#: The page's files, and their media types.
ASSETS: Mapping[str, str] = {
    "theme.css": "text/css",
    "phone.css": "text/css",
    "phone.js": "text/javascript",
    "sound.js": "text/javascript",
    "worklet.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PhoneSettings:
    """
    What a phone may call.

    Attributes:
        resolve: Works out how a call is placed, from what is set in the page: names and values of the options of
            ``wsvoice dial``. Raises :exc:`~wsvoice.errors.ConfigError`.
        defaults: What is set in the page at first.
        asks_target: Whether the page asks for the address; else it is that of `defaults`.
        by_path: Whether the target is a server that has each provider's webhook at a path of its own.
        providers: Whom the page may play.
        folder: Where tests are saved.
    """

    resolve: Callable[[Mapping[str, Any]], DialConfig]
    defaults: DialConfig
    asks_target: bool = False
    by_path: bool = False
    providers: tuple[str, ...] = tuple(PROVIDERS)
    folder: Path = field(default_factory=Path.cwd)


class Phone:
    """
    Places the calls of all pages, and keeps the latest.

    Args:
        settings: What may be called.
        kept: The folder for the calls' traces and pages.
    """

    def __init__(self, settings: PhoneSettings, kept: Path) -> None:
        self.folder = settings.folder
        self._settings = settings
        self._kept = kept
        self._number = 0
        self._pages = 0
        self._running: dict[int, PlacedFromPage] = {}
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        #: The calls that are over, by the secrets of their pages.
        self._over: OrderedDict[str, PlacedFromPage] = OrderedDict()

    def introduction(self) -> dict[str, Any]:
        """Return what a page has to know to begin with; nothing in it is secret."""
        settings, defaults = self._settings, self._settings.defaults
        return {
            "type": "hello",
            "version": __version__,
            "providers": [_about(name) for name in settings.providers],
            "asksTarget": settings.asks_target,
            "target": without_secrets(defaults.target),
            "transport": defaults.transport,
            "from": defaults.from_number,
            "to": defaults.to_number,
            "param": [f"{name}={value}" for name, value in defaults.parameters.items()],
            "quirk": dict(defaults.quirks),
        }

    def new_call(self, wanted: Dial, page: PageSession) -> PlacedFromPage:
        """
        Return the call that a page wants.

        Raises:
            UsageError: If it cannot be placed so, or too many go on.
        """
        if len(self._running) >= MAX_CALLS:
            raise UsageError(f"{MAX_CALLS} calls go on already", hint="hang up in another window")
        config = self._config(wanted.flags)
        self._number += 1
        call = PlacedFromPage(self._number, config, wanted.rate, self._kept, page)
        self._running[call.number] = call
        self._is_idle.clear()
        return call

    def _config(self, given: Mapping[str, Any]) -> DialConfig:
        settings = self._settings
        flags = {name: value for name, value in given.items() if value not in ("", None)}
        target = flags.pop("target", None)
        if target is not None and settings.asks_target and target != without_secrets(settings.defaults.target):
            if _is_bot(target):
                # Whoever got hold of the page's address must not have programs run by it.
                raise UsageError(
                    f"{target} is no address, and a page starts no bots",
                    hint=f"give its server's address, or start `wsvoice phone {target}`",
                )
            flags["target"] = target
        if (name := flags.get("transport")) is not None and name not in settings.providers:
            raise UsageError(f"{name} is not served there", hint=f"there are: {', '.join(settings.providers)}")
        config = settings.resolve(flags)
        if settings.by_path and load_simulator(config.transport).has_webhook:
            config = replace(config, target=f"{config.target.rstrip('/')}/{config.transport}")
        return config

    def end(self, call: PlacedFromPage) -> None:
        """Take note that a call is over."""
        self._running.pop(call.number, None)
        if not self._running:
            self._is_idle.set()

    def keep(self, call: PlacedFromPage) -> str:
        """Keep a call that is over, and return the path of its page."""
        secret = secrets.token_urlsafe(32)
        self._over[secret] = call
        while len(self._over) > KEPT_CALLS:
            self._over.popitem(last=False)[1].forget()
        return f"{CALLS_PATH}{secret}"

    def save(self, wanted: Save) -> list[Path]:
        """
        Write a test of a call, and return its files.

        Raises:
            UsageError: If there is no such call, or the test cannot be written.
        """
        call = next((each for each in self._over.values() if each.number == wanted.call), None)
        if call is None:
            raise UsageError(f"call {wanted.call} is not kept any more", hint=f"the last {KEPT_CALLS} are")
        return call.save(wanted.file, self.folder)

    async def close(self) -> None:
        """Hang up all calls, in good order."""
        for call in list(self._running.values()):
            call.hang_up()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._is_idle.wait()

    # What is served

    async def serve_page(self, websocket: WebSocket) -> None:
        """Serve a page's WebSocket."""
        if self._pages >= MAX_PAGES:
            # Accepted first, because a browser tells its page nothing of an upgrade that was refused.
            await websocket.accept()
            await websocket.close(1013, "too many pages are open")
            return
        self._pages += 1
        try:
            await websocket.accept()
            await PageSession(self, websocket).run()
        finally:
            self._pages -= 1

    async def serve_call(self, request: Request) -> Response:
        """Serve the page of a call that is over."""
        given = request.path_params["secret"].encode()
        found = [call for secret, call in self._over.items() if hmac.compare_digest(secret.encode(), given)]
        if not found or found[0].page is None:
            return PlainTextResponse("This call is not kept any more.\n", 404)
        headers = {"Content-Security-Policy": CALL_PAGE_POLICY}
        return FileResponse(found[0].page, media_type="text/html", headers=headers)


def _is_bot(target: str) -> bool:
    try:
        return parse_target(target).kind == "bot"
    except BotNotFoundError:
        return True


def _about(name: str) -> dict[str, Any]:
    simulator = load_simulator(name)
    quirks = [
        {"name": name, "choices": list(quirk.choices), "default": str(quirk.default), "help": quirk.help}
        for name, quirk in simulator.quirks.items()
    ]
    return {"name": simulator.name, "title": simulator.title, "quirks": quirks}


def application(phone: Phone, token: str, port: int) -> Gate:
    """Return what answers the requests of a phone that listens on `port`."""
    policy = {"Content-Security-Policy": content_policy(port)}

    def page(_: Request) -> Response:
        return Response(_asset("phone.html"), media_type="text/html", headers={**policy, "X-Frame-Options": "DENY"})

    def asset(request: Request) -> Response:
        media_type = ASSETS.get(request.path_params["name"])
        if media_type is None:
            return PlainTextResponse("There is no such file.\n", 404)
        return Response(_asset(request.path_params["name"]), media_type=media_type, headers=policy)

    routes = [
        Route("/", page),
        Route("/assets/{name}", asset),
        Route(f"{CALLS_PATH}{{secret}}", phone.serve_call),
        WebSocketRoute("/line", phone.serve_page),
    ]
    return Gate(Starlette(routes=routes), token, port, (CALLS_PATH,))


def _asset(name: str) -> bytes:
    package = "wsvoice.page" if name == "theme.css" else "wsvoice.browser_phone"
    return files(package).joinpath("assets", name).read_bytes()


class PhoneServer(uvicorn.Server):
    """
    Serves until the process is asked to stop; calls that go on are hung up first.

    Args:
        config: uvicorn's settings.
        phone: Whose pages are served.
        on_ready: Called once it listens.
    """

    def __init__(self, config: uvicorn.Config, phone: Phone, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._phone = phone
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Hang up, and close all pages."""
        await self._phone.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT, SIGTERM and SIGHUP; unlike uvicorn's own, none of them then ends the process at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {name: signal.signal(getattr(signal, name), self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


def listen(port: int) -> socket.socket:
    """
    Return a socket of this machine's own address.

    Args:
        port: Its port; 0 takes a free one.

    Raises:
        PortInUseError: If somebody else has it.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        reason = (error.strerror or str(error)).lower()
        raise PortInUseError(f"port {port} cannot be used: {reason}", port=port, instead="--port 0") from error
    return found


def serve(settings: PhoneSettings, port: int, kept: Path, on_ready: Callable[[str], None]) -> None:
    """
    Serve a phone until this process is asked to stop.

    Args:
        settings: What may be called.
        port: Where to listen; 0 takes a free port.
        kept: The folder for the calls' traces and pages, of this process alone.
        on_ready: Called with the page's address once it is served. Whoever knows that may call.

    Raises:
        PortInUseError: If somebody else has the port.
    """
    with listen(port) as listening:
        port, token = listening.getsockname()[1], secrets.token_urlsafe(32)
        phone = Phone(settings, kept)
        server = PhoneServer(
            uvicorn_config(application(phone, token, port)), phone, lambda: on_ready(f"http://{HOST}:{port}/{token}/")
        )
        server.run([listening])


def uvicorn_config(gate: Gate) -> uvicorn.Config:
    """Return uvicorn's settings for a phone."""
    return uvicorn.Config(
        gate,
        lifespan="off",
        interface="asgi3",
        ws="websockets-sansio",
        ws_max_size=MESSAGE_LIMIT,
        ws_per_message_deflate=False,
        limit_concurrency=MAX_CONNECTIONS,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
