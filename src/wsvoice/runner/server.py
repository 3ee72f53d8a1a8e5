"""uvicorn, signals and the drain: a process that should stop lets its calls finish."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from loguru import logger

from wsvoice import http, isolation
from wsvoice.config import NGROK_TOKEN
from wsvoice.errors import ConfigError, ServerError
from wsvoice.phone.runs import RunFile, RunningServer
from wsvoice.phone.tunnel_watch import TunnelWatch
from wsvoice.phone.tunnels import Tunnel, open_tunnel
from wsvoice.runner.auth import served_providers
from wsvoice.runner.memory import CycleCollector, MemoryTrimmer
from wsvoice.runner.outbound import FINISH_TIMEOUT_S
from wsvoice.runner.own_number import OwnNumber
from wsvoice.runner.protocols import HttpProtocol, StreamProtocol
from wsvoice.runner.routes import application
from wsvoice.runner.switchboard import create_switchboard
from wsvoice.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.config import RunConfig
    from wsvoice.providers.account import PhoneNumber
    from wsvoice.runner.switchboard import Switchboard

#: A caller that vanished without a close is noticed after the sum of both.
PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
#: How long calls that outlast the drain may take to end normally; then they are cut off.
END_TIMEOUT_S = 0.5
#: How long a drain waits for announced streams; a provider connects right after the answer.
DIAL_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Ready:
    """
    A listening server.

    Attributes:
        url: Where this machine reaches it.
        public_url: Where a provider reaches it; ``None`` without a proxy or a tunnel.
        provider_names: The providers that are served.
        number: The number that rings here, as it was before; ``None`` without one.
        number_steps: What the user has to do so that it rings here, where the provider's API cannot.
        notes: What to know about the number.
    """

    url: str
    public_url: str | None
    provider_names: tuple[str, ...]
    number: PhoneNumber | None = None
    number_steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class DrainingServer(uvicorn.Server):
    """
    A server that lets its calls finish.

    At the first SIGINT or SIGTERM it takes no new calls, and exits when the last one has ended or the time is up. A
    second one ends all calls at once. Whatever the bots do, the process is gone 2 s after that.

    Its number rings here from when it listens until the first signal. Putting it back may take 15 s at the end; a
    third signal does not wait for that.

    Attributes:
        failure: Why it stopped by itself, if it did.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        switchboard: Switchboard,
        *,
        drain_timeout_s: float,
        on_started: Callable[[], None],
        bot_folder: Path | None = None,
        number: OwnNumber | None = None,
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._number = number
        self._switchboard = switchboard
        self._drain_timeout_s = drain_timeout_s
        self._on_started = on_started
        self.watchdog = Watchdog(
            folder=bot_folder,
            calls=lambda: [session.session_id for session in tuple(switchboard.sessions)],
            on_blocked=switchboard.note_blocked,
            on_heartbeat=switchboard.lateness.note,
            is_awaited=lambda: switchboard.dialled.is_awaited or (number is not None and number.is_awaited),
            on_kill=self._log_what_is_left,
        )
        self._drains_until: float | None = None
        #: Until when announced calls are waited for.
        self._awaits_until = 0.0
        self._told = False
        self._ended_ringing = False
        self._memory = MemoryTrimmer(time.monotonic)
        self._cycles = CycleCollector()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the process should stop; no bot can stop it."""
        make_loop = self.config.get_loop_factory() or asyncio.new_event_loop
        # Until the number is put back, without a gap in which a second signal would end the process.
        with self._handling_signals():
            try:
                isolation.run(self.serve(sockets), on_exit=log_exit, loop_factory=make_loop)
            except BaseException:
                self._close_number()
                self._log_what_is_left()
                raise
            self._close_number()

    def _close_number(self) -> None:
        if self._number is not None:
            self._number.close()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Watch the event loop and search for cycles while the context lasts; :meth:`run` handles the signals."""
        with self.watchdog.watching(), self._cycles.in_charge():
            yield

    def _handling_signals(self) -> AbstractContextManager[None]:
        signals = [*isolation.STOP_SIGNALS]
        # A terminal that is closed must not leave the number here; `nohup` and a handler of the bot's module stay.
        hang_up = getattr(signal, "SIGHUP", None)
        if self._number is not None and hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:
            signals.append(hang_up)
        return isolation.protect_signals(self.handle_exit, signals)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to listen, then say so."""
        await super().startup(sockets)
        self._on_started()

    def ring_here(self, announce: Callable[[], None]) -> None:
        """Have the number ring at the public address, then `announce`; at once without a number. From any thread."""
        public_url = self._switchboard.config.public_url
        if self._number is None or public_url is None:
            announce()
        else:
            self._number.ring_at(public_url, on_rings=announce, on_failure=self.fail)

    def fail(self, error: BaseException) -> None:
        """Stop because of `error`; from any thread."""
        self.failure, self.should_exit = error, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        now = time.monotonic()
        if self._number is not None:
            self._number.note_signal(len(self.watchdog.signals) + 1)
        self._switchboard.dialled.finishes_by = now + FINISH_TIMEOUT_S
        if self.watchdog.note_signal(sig, self._drain_timeout_s):
            self._drains_until = now + self._drain_timeout_s
            self._awaits_until = now + min(self._drain_timeout_s, DIAL_TIMEOUT_S)
            self._switchboard.drain()
        else:
            self._drains_until = self._awaits_until = now - END_TIMEOUT_S

    def _log_what_is_left(self) -> None:
        for text in self._switchboard.dialled.left():
            logger.error("{}", text)
        left = self._number.what_is_left() if self._number is not None else None
        if left is not None:
            logger.error("{} ({})", left.message, left.hint)

    async def on_tick(self, counter: int) -> bool:
        """Exit once the drain is over."""
        if self._drains_until is not None and not self.should_exit:
            if not self._ended_ringing:
                self._ended_ringing = True
                self._switchboard.dialled.end_ringing("the server stops")
            late_s = time.monotonic() - self._drains_until
            self._log_waiting(late_s)
            if late_s >= 0:
                self._switchboard.end_all("the server stops", at_once=late_s >= END_TIMEOUT_S)
            awaited = time.monotonic() < self._awaits_until and self._switchboard.capacity.reserved
            self.should_exit = not (self._switchboard.active_calls or awaited)
        else:
            self._memory.check(is_busy=self._is_busy())
        self._cycles.check(running=self._switchboard.active_calls, ended=self._switchboard.ended)
        return await super().on_tick(counter)

    def _is_busy(self) -> bool:
        # Health checks keep their connections open; they are idle nearly all of the time.
        return self._switchboard.active_calls > 0 or not all(
            isinstance(each, HttpProtocol) and each.is_idle for each in self.server_state.connections
        )

    def _log_waiting(self, late_s: float) -> None:
        calls, pending = self._switchboard.active_calls, self._switchboard.capacity.reserved
        # A call that is about to end is not worth a line.
        if self._told or not (calls or pending) or late_s < 1 - self._drain_timeout_s:
            return
        self._told = True
        waits = []
        if calls:
            waits.append(f"{_counted(calls, 'call')} to finish (at most {self._drain_timeout_s:g} s)")
        if pending:
            limit_s = min(self._drain_timeout_s, DIAL_TIMEOUT_S)
            waits.append(f"{_counted(pending, 'announced call')} to begin (at most {limit_s:g} s)")
        logger.warning("no new calls are taken; waiting for {}; signal again to end them now", " and ".join(waits))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what still runs, and stop."""
        self._switchboard.end_all("the server stops", at_once=True)
        await self._switchboard.dialled.finish()
        await super().shutdown(sockets)


def _counted(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"


def log_exit(error: BaseException | None) -> None:
    """Log that code of a bot outside of any call tried to end the process."""
    if error is None:
        logger.warning("the bot stopped the event loop; the server goes on")
    else:
        logger.opt(exception=error).error("the bot raised {} in a callback; the server goes on", type(error).__name__)


def serve(bot: LoadedBot, config: RunConfig, *, on_ready: Callable[[Ready], None]) -> None:
    """
    Serve `bot` until the process is asked to stop.

    Args:
        bot: The bot.
        config: The settings.
        on_ready: Called once the server listens, its public address answers and its number rings here. With a tunnel or
            a number it is called in another thread, and again whenever the tunnel has got another address.

    Raises:
        ConfigError: If a setting is missing, or does not go with another one.
        ServerError: If the address cannot be listened on, or a tunnel cannot be opened.
        WsvoiceError: If the number cannot be pointed at this server, or put back.
        KeyboardInterrupt: If a second Ctrl-C has ended calls that were to finish.
    """
    with ExitStack() as stack:
        sockets = listen(config.host, config.port)
        for each in sockets:
            stack.callback(each.close)
        port = sockets[0].getsockname()[1]
        # Missing settings are reported before a tunnel is opened.
        providers = served_providers(config)
        number = _own_number(config, stack)
        watch = None
        if config.tunnel is not None:
            tunnel = _open_tunnel(config, port)
            watch = stack.enter_context(TunnelWatch(tunnel, port))
            config = replace(config, proxy=tunnel.host)
        switchboard = create_switchboard(bot.function, config, providers)
        ready = Ready(
            url=f"http://{url_host(config.host)}:{port}/",
            public_url=config.public_url,
            provider_names=tuple(switchboard.providers),
        )

        def announce() -> None:
            current = _with_number(replace(ready, public_url=switchboard.config.public_url), number)
            introduce(current)
            on_ready(current)

        def be_reached_at(host: str) -> None:
            switchboard.move(host)
            server.ring_here(announce)

        server = DrainingServer(
            _uvicorn_config(switchboard),
            switchboard,
            drain_timeout_s=config.drain_timeout_s,
            on_started=(lambda: server.ring_here(announce)) if watch is None else partial(watch.start, be_reached_at),
            bot_folder=bot.path.parent,
            number=number,
        )
        # The server's routes are there now, and with them the key's place.
        introduce = _introducer(switchboard, stack)
        server.run(sockets)
    left = number.what_is_left() if number is not None else None
    if failure := server.failure or left:
        raise failure
    if server.watchdog.was_interrupted:
        raise KeyboardInterrupt


def _introducer(switchboard: Switchboard, stack: ExitStack) -> Callable[[Ready], None]:
    """
    Return what lets other commands of the same user find this server, and place calls through it.

    They find it from the first call on, at each call's address, and until `stack` is closed.
    """
    folder, api = switchboard.config.state_folder, switchboard.dial_api
    # A server of a test call is nobody else's.
    if folder is None or api is None or switchboard.config.causes is not None:
        return lambda ready: None
    api.own_key = key = secrets.token_urlsafe(32)
    file = RunFile(folder)
    stack.callback(file.remove)

    def introduce(ready: Ready) -> None:
        try:
            file.write(RunningServer(ready.url, key, ready.public_url or "", ready.provider_names, os.getpid()))
        except OSError as error:
            logger.debug("other commands will not find this server: {}", error)

    return introduce


def _own_number(config: RunConfig, stack: ExitStack) -> OwnNumber | None:
    """Find the number that is to ring here, if there is one; it is put back when `stack` is closed, at the latest."""
    number = OwnNumber.of(config)
    if number is not None:
        stack.callback(number.close)
        number.find()
    return number


def _with_number(ready: Ready, number: OwnNumber | None) -> Ready:
    if number is None:
        return ready
    return replace(ready, number=number.found, number_steps=tuple(number.steps), notes=tuple(number.notes))


def _uvicorn_config(switchboard: Switchboard) -> uvicorn.Config:
    return uvicorn.Config(
        application(switchboard),
        http=HttpProtocol,
        ws=StreamProtocol,
        ws_max_size=switchboard.config.message_limit,
        ws_ping_interval=PING_INTERVAL_S,
        ws_ping_timeout=PING_TIMEOUT_S,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )


def _open_tunnel(config: RunConfig, port: int) -> Tunnel:
    assert config.tunnel is not None
    if url_host(config.host) != "localhost" and not http.is_loopback(config.host):
        raise ConfigError(
            f"a tunnel leads to localhost, where a server with --host {config.host} does not listen",
            hint="leave --host out",
        )
    token = config.credentials.get(NGROK_TOKEN)
    return open_tunnel(config.tunnel, port, domain=config.tunnel_domain, authtoken=token)


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
        for family, _, _, _, address in sorted(addresses, key=lambda each: each[0] != socket.AF_INET):
            bound_port = sockets[0].getsockname()[1] if sockets else port
            try:
                # It listens at once: a second server on the same port must fail here, and not later.
                sockets.append(socket.create_server((address[0], bound_port, *address[2:]), family=family, backlog=128))
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
            hint=_listen_hint(error, port),
        ) from error
    return sockets


def _listen_hint(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRNOTAVAIL:
        return "it is not an address of this machine; use --host localhost, or --host 0.0.0.0 for all of its addresses"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "this user may not listen on that port; try --port 7860"
    return f"another program may be using it; try --port {port + 1 if 0 < port < 65535 else 7861}"


def url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host
