"""uvicorn, signals and the drain: a process that should stop lets its calls finish."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import uvicorn
from loguru import logger

from wsvoice import isolation
from wsvoice.call import plural
from wsvoice.config import NGROK_TOKEN
from wsvoice.phone.tunnel_watch import TunnelWatch
from wsvoice.phone.tunnels import Tunnel, open_tunnel
from wsvoice.runner.control import ControlSocket
from wsvoice.runner.figures import Snapshot
from wsvoice.runner.fleet import join_fleet
from wsvoice.runner.introduction import control_socket, introducer, observer
from wsvoice.runner.launch import Launch
from wsvoice.runner.listening import address_of, listen, url_host
from wsvoice.runner.memory import CycleCollector, MemoryTrimmer
from wsvoice.runner.metrics_server import PATH, MetricsServer
from wsvoice.runner.outbound import FINISH_TIMEOUT_S
from wsvoice.runner.own_number import OwnNumber
from wsvoice.runner.preflight import check_settings
from wsvoice.runner.protocols import HttpProtocol, StreamProtocol
from wsvoice.runner.routes import application
from wsvoice.runner.service_manager import ServiceManager
from wsvoice.runner.source_watch import SETTINGS_FILES, ChangeNotice, SourceWatch, have_changed
from wsvoice.runner.switchboard import FIXED_SETTINGS, create_switchboard
from wsvoice.runner.upgrade import Predecessor, Upgrade
from wsvoice.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.config import RunConfig
    from wsvoice.providers.account import PhoneNumber
    from wsvoice.runner.switchboard import Switchboard
    from wsvoice.runner.workers.crew import Crew

#: A caller that vanished without a close is noticed after the sum of both.
PING_INTERVAL_S = 5.0
PING_TIMEOUT_S = 10.0
#: How long calls that outlast the drain may take to end normally; then they are cut off.
END_TIMEOUT_S = 0.5
#: How long workers may take to exit after their last session, and after a second signal.
EXIT_S, HURRIED_EXIT_S = 5.0, 0.3
#: How long a drain waits for announced streams; a provider connects right after the answer.
DIAL_TIMEOUT_S = 15.0
#: How long a server that was upgraded waits at most for the last requests on connections that it has accepted; uvicorn
#: closes them after 5 s without one.
LINGER_S = 6.0
#: How often it is looked whether the process is asked to stop while its workers load the bot.
STOP_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Ready:
    """
    A listening server.

    Attributes:
        url: Where this machine reaches it.
        public_url: Where a provider reaches it; ``None`` without a proxy or a tunnel.
        provider_names: The providers that are served.
        metrics_url: Where the metrics are, if they have a port of their own.
        number: The number that rings here, as it was before; ``None`` without one.
        number_steps: What the user has to do so that it rings here, where the provider's API cannot.
        notes: What to know about the number.
        bot_name: The bot's name in messages.
        look: Returns the server and its calls as they stand; may be called from any thread.
    """

    url: str
    public_url: str | None
    provider_names: tuple[str, ...]
    metrics_url: str | None = None
    number: PhoneNumber | None = None
    number_steps: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    look: Callable[[], Snapshot] | None = field(default=None, repr=False, compare=False)
    bot_name: str = ""


class DrainingServer(uvicorn.Server):
    """
    A server that lets its calls finish.

    At the first SIGINT or SIGTERM it takes no new calls, and exits when the last one has ended or the time is up. A
    second one ends all calls at once. Whatever the bots do, the process is gone 2 s after that.

    Where it has to linger, it takes new calls for so long after the first signal, and says all the same that it is not
    ready: a load balancer that has noticed by then sends it no caller who would be turned away.

    Its number rings here from when it listens until the first signal. Putting it back may take 15 s at the end; a
    third signal does not wait for that.

    SIGHUP, which a closed terminal sends, is a signal to stop as well. With workers it has them exchanged for new ones
    (:meth:`Crew.reload`), unless the terminal is gone that the process was started in.

    At SIGUSR2 another process takes its place, if that is possible, and it finishes its calls.

    Attributes:
        failure: Why it stopped by itself, if it did.
        bot_name: The bot's name in messages, if workers have loaded it.
        upgrade: Starts the process that takes its place; ``None`` if none can.

    Args:
        notice: Says that files have changed.
        control: Where its owner can ask for its calls; ``None`` for nowhere.
        manager: Tells systemd how it is.
        predecessor: The server that it takes over from.
        on_handed_over: Called once another process has taken its place.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        switchboard: Switchboard,
        *,
        drain_timeout_s: float,
        linger_s: float = 0.0,
        on_started: Callable[[], None],
        bot_folder: Path | None = None,
        number: OwnNumber | None = None,
        make_crew: Callable[[], Crew] | None = None,
        notice: ChangeNotice | None = None,
        control: ControlSocket | None = None,
        metrics: MetricsServer | None = None,
        manager: ServiceManager | None = None,
        predecessor: Predecessor | None = None,
        on_handed_over: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self.upgrade: Upgrade | None = None
        self._metrics = metrics
        self._manager = manager or ServiceManager()
        self._predecessor = predecessor
        self._on_handed_over = on_handed_over
        self._handed_over_at: float | None = None
        self._stopping_metrics: asyncio.Task[None] | None = None
        self.failure: BaseException | None = None
        self.bot_name = ""
        self._make_crew = make_crew
        self._crew: Crew | None = None
        self._sources: SourceWatch | None = None
        # `nohup` has a process go on without its terminal.
        self._has_terminal = has_terminal() and not _ignores_hang_up()
        self._number = number
        self._notice = notice
        self._control = control
        self._switchboard = switchboard
        self._drain_timeout_s = drain_timeout_s
        self._linger_s = linger_s
        #: Until when new calls are taken although the process is to stop; ``None`` if it does not linger.
        self._lingers_until: float | None = None
        self._on_started = on_started
        self.watchdog = Watchdog(
            folder=bot_folder,
            calls=lambda: [session.session_id for session in tuple(switchboard.sessions)],
            on_blocked=switchboard.note_blocked,
            on_heartbeat=switchboard.lateness.note,
            is_awaited=lambda: switchboard.dialled.is_awaited or (number is not None and number.is_awaited),
            on_kill=self._log_what_is_left,
        )
        switchboard.blocked_s = self.watchdog.blocked_s
        self._drains_until: float | None = None
        #: Until when announced calls are waited for.
        self._awaits_until = 0.0
        self._told = self._told_linger = False
        self._ended_ringing = False
        self._memory = MemoryTrimmer(time.monotonic)
        self._cycles = CycleCollector()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the process should stop; no bot can stop it."""
        make_loop = self.config.get_loop_factory() or asyncio.new_event_loop
        # Until the number is put back, without a gap in which a second signal would end the process.
        with self._handling_signals(), self._handling_upgrades():
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
        # A terminal that is closed must neither cut calls off nor leave the number here; `nohup` and a handler of the
        # bot's module stay.
        hang_up = getattr(signal, "SIGHUP", None)
        if hang_up is not None and (self._make_crew is not None or signal.getsignal(hang_up) is signal.SIG_DFL):
            signals.append(hang_up)
        return isolation.protect_signals(self.handle_exit, signals)

    def _handling_upgrades(self) -> AbstractContextManager[None]:
        number = getattr(signal, "SIGUSR2", None)
        if self.upgrade is None or number is None:
            return nullcontext()
        # A bot's own handler stays. Where workers load the bot, there is none.
        if self._make_crew is None and signal.getsignal(number) is not signal.SIG_DFL:
            return nullcontext()
        return isolation.protect_signals(self.upgrade.request, [number])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the workers, take over from the server before this one, listen, then say so."""
        if self._make_crew is not None and not await self._start_crew(self._make_crew):
            self.should_exit = True
            return
        try:
            if self._predecessor is not None:
                await self._predecessor.take_over()
            if self._metrics is not None:
                await self._metrics.start()
            await super().startup(sockets)
        except BaseException:
            if self._crew is not None:
                await self._crew.close(lambda: 0.0)
            raise
        if self._control is not None:
            try:
                await self._control.open()
            except OSError as error:
                logger.debug("other commands will not see this server's calls: {}", error)
        if self._predecessor is not None:
            self._predecessor.begin(self.fail)
        self._on_started()

    async def _start_crew(self, make_crew: Callable[[], Crew]) -> bool:
        """Start the workers; false if the process is asked to stop before they have loaded the bot."""
        crew = self._crew = self._switchboard.crew = make_crew()
        crew.reloading = self._manager.reloading
        starting = asyncio.ensure_future(crew.start())
        try:
            while not (await asyncio.wait([starting], timeout=STOP_LOOK_S))[0]:
                if self._switchboard.is_leaving:
                    logger.info("asked to stop before the bot was loaded")
                    starting.cancel()
                    await asyncio.gather(starting, return_exceptions=True)
                    await crew.close(lambda: 0.0)
                    return False
            loaded = starting.result()
        except BaseException:
            starting.cancel()
            await crew.close(lambda: 0.0)
            raise
        self.bot_name = loaded.name
        self._watch_sources(loaded.file.parent)
        return True

    def _watch_sources(self, folder: Path) -> None:
        """Reload when files of the bot change; without ``--reload`` say so."""
        crew, config = self._crew, self._switchboard.config
        assert crew is not None

        def note(changed: Collection[Path]) -> None:
            what = have_changed(changed)
            if config.reload:
                crew.request_reload(what)
            else:
                logger.warning("{}; `kill -HUP {}` reloads it, and --reload does so by itself", what, os.getpid())

        folders = {folder, folder.resolve(), Path.cwd()}
        own = {each / name for each in folders for name in SETTINGS_FILES}
        watch = self._sources = SourceWatch(own | crew.files, note, folders=[folder])
        crew.on_files = lambda: watch.update(own | crew.files)
        watch.start()

    # An upgrade

    async def stop_accepting(self) -> None:
        """Accept no connection; those that there are go on."""
        for each in self.servers:
            each.close()
        self.servers = []

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections again."""
        loop, config = asyncio.get_running_loop(), self.config

        def make_protocol() -> asyncio.Protocol:
            return HttpProtocol(config=config, server_state=self.server_state, app_state=self.lifespan.state)

        self.servers = [await loop.create_server(make_protocol, sock=each, backlog=config.backlog) for each in sockets]

    @property
    def application(self) -> Any:
        """What answers requests."""
        return self.config.loaded_app

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered."""
        return not all(each.is_idle for each in self._requesting)

    @property
    def _requesting(self) -> list[HttpProtocol]:
        """The connections that are no WebSockets."""
        return [each for each in self.server_state.connections if isinstance(each, HttpProtocol)]

    def hand_over(self, pid: int) -> None:
        """Finish the calls, and end: the process `pid` takes the new ones."""
        self._manager.hand_over(pid)
        self._handed_over_at = now = time.monotonic()
        self._drains_until = min(self._drains_until or math.inf, now + self._drain_timeout_s)
        self.watchdog.note_successor(self._drain_timeout_s)
        if self._sources is not None:
            self._sources.close()
        if self._crew is not None:
            self._crew.stay_as_it_is()
        if self._metrics is not None:
            self._stopping_metrics = asyncio.get_running_loop().create_task(self._metrics.stop())
        self._on_handed_over()

    @property
    def is_handed_over(self) -> bool:
        """Whether another process has taken its place."""
        return self._handed_over_at is not None

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
        if sig == getattr(signal, "SIGHUP", None) and self._make_crew is not None and self._reloads_at_hang_up():
            # Workers that are not there yet will read everything.
            if self._crew is not None:
                self._crew.request_reload("SIGHUP", anew=True)
            return
        now = time.monotonic()
        if self._number is not None:
            self._number.note_signal(len(self.watchdog.signals) + 1)
        self._switchboard.dialled.finishes_by = now + FINISH_TIMEOUT_S
        if self.watchdog.note_signal(sig, self._linger_s + self._drain_timeout_s):
            self._switchboard.leave()
            # Once another process has taken its place, no new call comes here.
            if self._linger_s and not self.is_handed_over:
                self._lingers_until = now + self._linger_s
            else:
                self._drain()
        else:
            self._lingers_until = None
            self._switchboard.drain()
            self._drains_until = self._awaits_until = now - END_TIMEOUT_S

    def _reloads_at_hang_up(self) -> bool:
        """Whether SIGHUP asks for a reload, and does not tell of a closed terminal."""
        return has_terminal() or not self._has_terminal

    def _drain(self) -> None:
        """Take no new calls from now on."""
        now, self._lingers_until = time.monotonic(), None
        self._drains_until = min(self._drains_until or math.inf, now + self._drain_timeout_s)
        if not self.is_handed_over:
            self._awaits_until = now + min(self._drain_timeout_s, DIAL_TIMEOUT_S)
        self._switchboard.drain()

    def _linger(self, until: float) -> None:
        """Take new calls until then, and none any more from then on."""
        if not self._told_linger:
            self._told_linger = True
            self._manager.stopping()
            logger.warning(
                "asked to stop: /readyz says no, and new calls are taken for {:g} s more, until load balancers have"
                " noticed; signal again to end all calls now",
                self._linger_s,
            )
        if time.monotonic() >= until:
            self._drain()

    def _log_what_is_left(self) -> None:
        if self._crew is not None:
            self._crew.kill()
        for text in self._switchboard.dialled.left():
            logger.error("{}", text)
        left = self._number.what_is_left() if self._number is not None else None
        if left is not None:
            logger.error("{} ({})", left.message, left.hint)

    async def on_tick(self, counter: int) -> bool:
        """Exit once the drain is over."""
        if self._lingers_until is not None:
            self._linger(self._lingers_until)
        if self._drains_until is not None and not self.should_exit:
            self.should_exit = self._is_drained(self._drains_until)
        else:
            self._memory.check(is_busy=self._is_busy())
            if self._notice is not None:
                self._notice.check()
        self._cycles.check(running=self._switchboard.active_calls, ended=self._switchboard.ended)
        self._manager.tick(self._switchboard.capacity.active)
        if self.upgrade is not None:
            self.upgrade.tick()
        if self._crew is not None and counter % 10 == 0:
            self._crew.check()
        return await super().on_tick(counter)

    def _is_drained(self, drains_until: float) -> bool:
        """Go on with the drain; true once it is over."""
        now = time.monotonic()
        if self._switchboard.capacity.draining and not self._ended_ringing:
            self._ended_ringing = True
            self._manager.stopping()
            self._switchboard.dialled.end_ringing("the server stops")
        late_s = now - drains_until
        if self._handed_over_at is None:
            self._log_waiting(late_s)
        if late_s >= 0:
            self._switchboard.end_all("the server stops", at_once=late_s >= END_TIMEOUT_S)
        awaited = now < self._awaits_until and self._switchboard.capacity.reserved
        # A service manager may end what is left of a service once its main process has ended (KillMode=mixed).
        is_first = self._switchboard.predecessor is None or late_s >= 0
        return is_first and not (self._switchboard.active_calls or awaited or self._lingers(now))

    def _lingers(self, now: float) -> bool:
        """Whether something may still come although another process has taken over: on a connection that it left us."""
        if self._handed_over_at is None or self._switchboard.capacity.draining:
            return False
        for each in self._requesting:
            each.retire()
        # The process after us hears of the calls of the one before us through us.
        is_between = self._predecessor is not None and self._predecessor.has_calls
        return is_between or (now < self._handed_over_at + LINGER_S and bool(self._requesting))

    def _is_busy(self) -> bool:
        # Health checks keep their connections open; they are idle nearly all of the time.
        return self._switchboard.active_calls > 0 or not all(
            isinstance(each, HttpProtocol) and each.is_idle for each in self.server_state.connections
        )

    def _log_waiting(self, late_s: float) -> None:
        calls, pending = self._switchboard.active_calls, self._switchboard.capacity.reserved
        before = self._switchboard.capacity.elsewhere[0]
        # A call that is about to end is not worth a line.
        if self._told or not (calls or pending or before) or late_s < 1 - self._drain_timeout_s:
            return
        self._told = True
        waits = []
        if calls:
            waits.append(f"{plural(calls, 'call')} to finish (at most {self._drain_timeout_s:g} s)")
        if before:
            waits.append(f"{plural(before, 'call')} of the process before this one")
        if pending:
            limit_s = min(self._drain_timeout_s, DIAL_TIMEOUT_S)
            waits.append(f"{plural(pending, 'announced call')} to begin (at most {limit_s:g} s)")
        logger.warning("no new calls are taken; waiting for {}; signal again to end them now", " and ".join(waits))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what still runs, and stop."""
        if self._sources is not None:
            self._sources.close()
        self._switchboard.end_all("the server stops", at_once=True)
        await self._switchboard.dialled.finish()
        stopping = [super().shutdown(sockets), *([self._metrics.stop()] if self._metrics is not None else [])]
        await asyncio.gather(*stopping)
        if self.upgrade is not None:
            self.upgrade.close()
        if self._control is not None:
            await self._control.close()
        if self._crew is not None:
            await self._crew.close(lambda: HURRIED_EXIT_S if len(self.watchdog.signals) > 1 else EXIT_S)


def log_exit(error: BaseException | None) -> None:
    """Log that code of a bot outside of any call tried to end the process."""
    if error is None:
        logger.warning("the bot stopped the event loop; the server goes on")
    else:
        logger.opt(exception=error).error("the bot raised {} in a callback; the server goes on", type(error).__name__)


@dataclass(frozen=True, slots=True)
class Staff:
    """
    The workers of a server.

    Attributes:
        config: The settings, as :attr:`read_again` has read them first.
        count: How many there are.
        environ: Their environment variables.
        folder: Their current folder.
        read_again: Reads the settings and the environment variables again, for a reload.
    """

    config: RunConfig
    count: int
    environ: Mapping[str, str]
    folder: Path
    read_again: Callable[[], tuple[RunConfig, Mapping[str, str]]]


def serve(
    bot: LoadedBot | None,
    config: RunConfig,
    *,
    on_ready: Callable[[Ready], None],
    staff: Staff | None = None,
    launch: Launch | None = None,
) -> None:
    """
    Serve a bot until the process is asked to stop.

    Args:
        bot: The bot; ``None`` if workers load it.
        config: The settings.
        on_ready: Called once the server listens, its public address answers and its number rings here. With a tunnel or
            a number it is called in another thread, and again whenever the tunnel has got another address.
        staff: The workers; ``None`` to run the bot in this process.
        launch: How the process was started, and what was handed over to it; with that it can be upgraded in place.

    Raises:
        ConfigError: If a setting is missing, or does not go with another one.
        ServerError: If the address cannot be listened on, a tunnel cannot be opened, or Redis does not answer.
        WsvoiceError: If the number cannot be pointed at this server, or put back.
        KeyboardInterrupt: If a second Ctrl-C has ended calls that were to finish.
    """
    providers = check_settings(config)
    with ExitStack() as stack:
        handed = () if launch is None else launch.sockets
        sockets = list(handed) or listen(config.host, config.port)
        for each in sockets:
            stack.callback(each.close)
        port = sockets[0].getsockname()[1]
        metrics_sockets = _listen_for_metrics(config, launch, stack)
        fleet = join_fleet(config)
        number = _own_number(config, stack)
        watch = None
        if config.tunnel is not None:
            tunnel = _open_tunnel(config, port)
            watch = stack.enter_context(TunnelWatch(tunnel, port))
            config = replace(config, proxy=tunnel.host)
        switchboard = create_switchboard(bot.function if bot is not None else None, config, providers, fleet)
        stack.callback(switchboard.tracing.close)
        ready = Ready(
            bot_name=bot.name if bot is not None else "",
            url=f"http://{url_host(config.host)}:{port}/",
            public_url=config.public_url,
            provider_names=tuple(switchboard.providers),
            metrics_url=_metrics_url(config, metrics_sockets),
        )
        look = observer(
            lambda: ready.bot_name or server.bot_name, switchboard, ready.url, is_leaving=lambda: server.is_handed_over
        )
        control = control_socket(switchboard, look)

        manager = ServiceManager() if launch is None or config.causes is not None else launch.manager

        def announce() -> None:
            known = replace(
                ready, public_url=switchboard.config.public_url, bot_name=ready.bot_name or server.bot_name, look=look
            )
            current = _with_number(known, number)
            introduce(current)
            on_ready(current)
            manager.ready()

        def be_reached_at(host: str) -> None:
            switchboard.move(host)
            server.ring_here(announce)

        server = DrainingServer(
            uvicorn_config(application(switchboard), config.message_limit),
            switchboard,
            drain_timeout_s=config.drain_timeout_s,
            linger_s=config.drain_linger_s,
            on_started=(lambda: server.ring_here(announce)) if watch is None else partial(watch.start, be_reached_at),
            bot_folder=bot.path.parent if bot is not None else None,
            number=number,
            make_crew=partial(_make_crew, switchboard, staff) if staff is not None else None,
            # A server of a test call ends with it.
            notice=None if bot is None or config.causes is not None else ChangeNotice([bot.path.parent, Path.cwd()]),
            control=control,
            metrics=MetricsServer(switchboard.metrics, metrics_sockets) if metrics_sockets else None,
            manager=manager,
            predecessor=_predecessor(launch, switchboard),
            on_handed_over=lambda: introduce(None),
        )
        if launch is not None and config.causes is None:
            server.upgrade = Upgrade(launch, switchboard, sockets, server, metrics_sockets=metrics_sockets)
        # The server's routes are there now, and with them the key's place.
        introduce = introducer(switchboard, control, stack)
        server.run(sockets)
    left = number.what_is_left() if number is not None else None
    if failure := server.failure or left:
        raise failure
    if server.watchdog.was_interrupted:
        raise KeyboardInterrupt


def _predecessor(launch: Launch | None, switchboard: Switchboard) -> Predecessor | None:
    return None if launch is None or launch.channel is None else Predecessor(launch.channel, switchboard)


def _make_crew(switchboard: Switchboard, staff: Staff) -> Crew:
    """Return the workers, which are not started yet, in the running event loop."""
    from wsvoice.runner.workers.crew import Crew
    from wsvoice.runner.workers.template_process import Settings

    def settings(config: RunConfig, environ: Mapping[str, str]) -> Settings:
        return Settings(config, tuple(switchboard.providers), environ, staff.folder)

    def read_settings() -> tuple[Settings, Callable[[], None]]:
        config, environ = staff.read_again()
        if changed := [each for each in FIXED_SETTINGS if getattr(config, each) != getattr(staff.config, each)]:
            names = ", ".join(each.removesuffix("_s").replace("_", "-") for each in changed)
            logger.warning("changed settings that need a restart: {}", names)
        config = switchboard.with_fixed_settings(config)
        return settings(config, environ), switchboard.reconfigure(config)

    crew = Crew(switchboard, settings(switchboard.config, staff.environ), staff.count)
    crew.read_settings = read_settings
    return crew


def has_terminal() -> bool:
    """Whether the process has a terminal, which may be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | getattr(os, "O_NOCTTY", 0)))
    except OSError:
        return False
    return True


def _ignores_hang_up() -> bool:
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def _listen_for_metrics(config: RunConfig, launch: Launch | None, stack: ExitStack) -> list[socket.socket]:
    """Listen on the metrics' port, if there is one, by sockets that were handed over if they have it."""
    handed = list(launch.metrics_sockets) if launch is not None else []
    if handed and config.metrics_port not in (0, address_of(handed)[1]):
        for each in handed:
            each.close()
        handed = []
    if config.metrics_port is None:
        return []
    sockets = handed or listen(config.metrics_host, config.metrics_port, option="--metrics-")
    for each in sockets:
        stack.callback(each.close)
    return sockets


def _metrics_url(config: RunConfig, sockets: list[socket.socket]) -> str | None:
    if not sockets:
        return None
    return f"http://{url_host(config.metrics_host)}:{sockets[0].getsockname()[1]}{PATH}"


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


def uvicorn_config(app: Any, message_limit: int, *, lifespan: Literal["auto", "off"] = "auto") -> uvicorn.Config:
    """Return uvicorn's settings for `app`, whose WebSocket messages have at most so many bytes."""
    return uvicorn.Config(
        app,
        lifespan=lifespan,
        interface="asgi3",
        http=HttpProtocol,
        ws=StreamProtocol,
        ws_max_size=message_limit,
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
    token = config.credentials.get(NGROK_TOKEN)
    return open_tunnel(config.tunnel, port, domain=config.tunnel_domain, authtoken=token, state=config.state_folder)
