"""uvicorn, signals and the drain: a process that is asked to stop lets its calls finish."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from loguru import logger
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from wsvoice.errors import ServerError
from wsvoice.runner.accepted import ABORT_EXTENSION
from wsvoice.runner.app import create_app
from wsvoice.runner.tunnel import ngrok_tunnel

if TYPE_CHECKING:
    from wsvoice.bot import LoadedBot
    from wsvoice.config import RunConfig
    from wsvoice.runner.app import Switchboard

#: A caller that vanished without a close is noticed after both together.
PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
#: How long calls that outlive the drain have to play out their last audio.
END_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Ready:
    """
    A server that listens.

    Attributes:
        url: Where this machine reaches it.
        public_url: Where a provider reaches it; ``None`` without a proxy or a tunnel.
        provider_names: The providers that are served.
    """

    url: str
    public_url: str | None
    provider_names: tuple[str, ...]


class StreamProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol, with a way to drop a connection whose peer does not read."""

    def handle_connect(self, event: Any) -> None:
        """Offer the way in the connection's scope."""
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][ABORT_EXTENSION] = {"abort": self.transport.abort}

    def keepalive_timeout(self) -> None:
        """Drop a connection that does not answer pings; its close would wait for a peer that is not there."""
        super().keepalive_timeout()
        self.transport.abort()


class DrainingServer(uvicorn.Server):
    """
    A server that lets its calls finish.

    The first SIGINT or SIGTERM stops taking calls, and the server exits when the last one has ended or the
    time is up. A second one ends everything at once.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        switchboard: Switchboard,
        *,
        drain_timeout_s: float,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._switchboard = switchboard
        self._drain_timeout_s = drain_timeout_s
        self._on_started = on_started
        self._drains_until: float | None = None
        self._told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        self._captured_signals.append(sig)
        if self._drains_until is not None:
            self.should_exit = True
            return
        self._drains_until = time.monotonic() + self._drain_timeout_s
        self._switchboard.drain()

    async def on_tick(self, counter: int) -> bool:
        """Exit once the drain is over."""
        if self._drains_until is not None and not self.should_exit:
            late_s = time.monotonic() - self._drains_until
            self._tell_who_is_waited_for(late_s)
            if late_s > 0:
                self._switchboard.end_all("the server stops")
            self.should_exit = late_s > END_TIMEOUT_S or self._switchboard.active_calls == 0
        return await super().on_tick(counter)

    def _tell_who_is_waited_for(self, late_s: float) -> None:
        calls = self._switchboard.active_calls
        # A call that is about to end needs no words.
        if self._told or not calls or late_s < 1 - self._drain_timeout_s:
            return
        self._told = True
        logger.warning(
            "no new calls are taken; waiting for {} to finish (at most {:g} s; once more to cut them)",
            "1 call" if calls == 1 else f"{calls} calls",
            self._drain_timeout_s,
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what still runs, and stop."""
        self._switchboard.end_all("the server stops")
        await super().shutdown(sockets)
        # A drain that was asked for by SIGTERM has done what was asked: the process exits with 0.
        self._captured_signals = [sig for sig in self._captured_signals if sig == signal.SIGINT]


def serve(bot: LoadedBot, config: RunConfig, *, on_ready: Callable[[Ready], None]) -> None:
    """
    Serve `bot` until the process is asked to stop.

    Args:
        bot: The bot, loaded and checked.
        config: The settings.
        on_ready: Called once the server listens.

    Raises:
        ServerError: If the address cannot be listened on, or a tunnel cannot be opened.
    """
    with ExitStack() as stack:
        sockets = listen(config.host, config.port)
        for each in sockets:
            stack.callback(each.close)
        port = sockets[0].getsockname()[1]
        if config.tunnel == "ngrok":
            config = replace(config, proxy=stack.enter_context(ngrok_tunnel(port)))
        app = create_app(bot.function, config)
        switchboard: Switchboard = app.state.switchboard
        ready = Ready(
            url=f"http://{url_host(config.host)}:{port}/",
            public_url=config.public_url,
            provider_names=tuple(switchboard.providers),
        )
        server = DrainingServer(
            uvicorn.Config(
                app,
                ws=StreamProtocol,
                ws_max_size=config.message_limit,
                ws_ping_interval=PING_INTERVAL_S,
                ws_ping_timeout=PING_TIMEOUT_S,
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=10,
            ),
            switchboard,
            drain_timeout_s=config.drain_timeout_s,
            on_started=lambda: on_ready(ready),
        )
        server.run(sockets)


def listen(host: str, port: int) -> list[socket.socket]:
    """
    Return sockets bound to every address of `host`, all on one port.

    Raises:
        ServerError: If the host is unknown, or the port is taken.
    """
    sockets: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # IPv4 first: it decides a free port, and not every machine has IPv6.
        for family, kind, protocol, _, address in sorted(addresses, key=lambda each: each[0] != socket.AF_INET):
            bound_port = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_bind(family, kind, protocol, (address[0], bound_port, *address[2:])))
            except OSError:
                if not sockets or family != socket.AF_INET6:
                    raise
    except socket.gaierror as error:
        raise ServerError(
            f"the host {host!r} is unknown: {error.strerror}", hint="use --host localhost or --host 0.0.0.0"
        ) from error
    except OSError as error:
        for each in sockets:
            each.close()
        raise ServerError(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno) if error.errno else error}",
            hint=f"another program may be using it; try --port {port + 1 if 0 < port < 65535 else 7861}",
        ) from error
    return sockets


def _bind(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        # A second server on the same port must fail here, and not later.
        bound.listen(128)
    except OSError:
        bound.close()
        raise
    return bound


def url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
