"""One worker: loads the bot, takes the connections that the front passes on, and runs a session for each."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from loguru import logger
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from wsvoice import isolation
from wsvoice.call import Call
from wsvoice.errors import WsvoiceError
from wsvoice.providers import load_server
from wsvoice.runner.bounded_socket import CONNECTION_EXTENSION
from wsvoice.runner.dialled_call import DialledCall
from wsvoice.runner.logs import configure_logging, redirect_standard_logging
from wsvoice.runner.memory import CycleCollector, MemoryTrimmer
from wsvoice.runner.protocols import StreamProtocol
from wsvoice.runner.server import log_exit, uvicorn_config
from wsvoice.runner.source_watch import project_files
from wsvoice.runner.switchboard import AdmittedStream, Switchboard
from wsvoice.runner.watchdog import FORCE_TIMEOUT_S, Watchdog
from wsvoice.runner.workers import messages
from wsvoice.runner.workers.channel import Channel, Decoder, encode, receive
from wsvoice.runner.workers.libraries import imported_libraries

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.runner.bot_task import RunningSession
    from wsvoice.runner.figures import CallFigures
    from wsvoice.runner.limits import Refusal

#: How many ticks of the server's loop, of a tenth of a second each, are between two heartbeats.
HEARTBEAT_TICKS = 5
#: For how long the event loop may be blocked once there is no front, and how often that is looked at.
ORPHAN_BLOCKED_S, ORPHAN_LOOK_S = 10.0, 0.5


def work(end: socket.socket) -> int:
    """Be a worker, whose end of the channel with the front is `end`; returns the process's exit code."""
    end.setblocking(True)
    decoder = Decoder()
    begin = _first_message(end, decoder)
    if begin is None:
        return 0
    os.environ.clear()
    os.environ.update(begin.environ)
    with suppress(OSError):
        os.chdir(begin.folder)
    before = frozenset(sys.modules)
    watch = FrontWatch(end, begin.config.drain_timeout_s)
    try:
        bot, switchboard = _prepare(begin)
    except WsvoiceError as error:
        with suppress(OSError):
            end.sendall(encode(messages.Failed.of(error)))
        return error.exit_code
    end.setblocking(False)
    server = WorkerServer(switchboard, bot, begin.folder, end, decoder, watch)
    server.loaded = messages.Loaded(bot.name, bot.path, server.files, imported_libraries(before))
    server.run()
    return 0


def _first_message(end: socket.socket, decoder: Decoder) -> messages.Begin | None:
    """Return the worker's task; ``None`` if the front is gone. The decoder keeps what has come after it."""
    while True:
        data, descriptors = receive(end)
        if not data:
            return None
        decoder.add(data, descriptors)
        for message, _ in decoder.messages():
            begin: messages.Begin = message
            return begin


def _prepare(begin: messages.Begin) -> tuple[LoadedBot, WorkerSwitchboard]:
    from wsvoice.bot_loading import load_bot
    from wsvoice.runner.pipecat.patches import install

    config = begin.config
    configure_logging(config.log_level, config.log_format, place=begin.log_name)
    if "numpy" in sys.modules:
        # Python seeds its own generator anew after a fork; numpy does not.
        sys.modules["numpy"].random.seed()
    install(config.disabled_patches)
    bot = load_bot(config.bot)
    gc.freeze()
    redirect_standard_logging(config.log_level)
    providers = {name: load_server(name, config.credentials) for name in begin.provider_names}
    # Who may call is the front's business.
    config = replace(config, redis=None, max_calls=0, max_minutes_per_day=0, busy_message=None, state_folder=None)
    return bot, WorkerSwitchboard(bot.function, config, providers)


class FrontWatch:
    """
    Ends the process some time after its front, whatever the bot does; in a thread.

    While the bot is loaded there are no calls that could go on, and it is ended at once.

    Args:
        end: The process's end of the channel with the front.
        drain_timeout_s: How long calls may go on.
    """

    def __init__(self, end: socket.socket, drain_timeout_s: float) -> None:
        self._end = end
        self._drain_timeout_s = drain_timeout_s
        #: Returns for how long the event loop has been blocked.
        self.blocked_s: Callable[[], float] = lambda: math.inf
        threading.Thread(target=self._run, name="wsvoice-front", daemon=True).start()

    def _run(self) -> None:
        hung_up = select.poll()
        hung_up.register(self._end, getattr(select, "POLLRDHUP", select.POLLHUP))
        hung_up.poll()
        until = time.monotonic() + self._drain_timeout_s
        while time.monotonic() < until and self.blocked_s() < ORPHAN_BLOCKED_S:
            time.sleep(ORPHAN_LOOK_S)
        os.kill(os.getpid(), signal.SIGKILL)


class WorkerSwitchboard(Switchboard):
    """
    A worker's part of the switchboard: it runs the sessions of what was admitted.

    Attributes:
        tell: Sends a message to the front.
        jobs: How many connections are here, whether or not their sessions have begun.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tell: Callable[[Any], None] = lambda message: None
        self.jobs = 0
        self._by_key: dict[int, RunningSession] = {}
        #: What came for sessions before they began.
        self._early: dict[int, list[Any]] = {}
        #: The calls that wait until they may begin.
        self._asked: dict[int, asyncio.Future[Refusal | None]] = {}

    def begin_job(self, key: int) -> None:
        """Note that a connection comes; what the front says of its session from now on is kept until that begins."""
        self.jobs += 1
        self._early[key] = []

    def end_job(self, key: int) -> None:
        """Note that a connection is gone, with its session."""
        self.jobs -= 1
        self._early.pop(key, None)

    async def run_job(self, websocket: WebSocket, job: messages.StreamJob | messages.ClientJob) -> None:
        """Run the session of a connection."""
        key, session = job.key, None
        try:
            if isinstance(job, messages.StreamJob):
                await self.serve_stream(websocket, self._admitted(job))
            elif self.clients is not None:
                await self.clients.serve(
                    websocket,
                    job.session_id,
                    job.body,
                    evals_only=job.evals_only,
                    on_session=partial(self._note_client, key),
                    on_closed=partial(self._note_closed, key),
                )
        finally:
            session = self._by_key.pop(key, None)
            record, line = getattr(session, "record", None), getattr(session, "line", None)
            self.tell(messages.SessionEnded(key, record, bool(line is not None and line.transferred_to)))

    def note_front_gone(self) -> None:
        """Let calls begin that wait for a front that is gone."""
        for each in self._asked.values():
            if not each.done():
                each.set_result(None)

    def figures_by_key(self) -> dict[int, CallFigures]:
        """Return how the sessions stand, by their keys."""
        return {key: session.figures() for key, session in self._by_key.items()}

    def carry_out(self, message: Any) -> None:
        """Do what the front asks for, concerning a session."""
        session = self._by_key.get(message.key)
        match message:
            case messages.CallTaken():
                if (asked := self._asked.get(message.key)) is not None and not asked.done():
                    asked.set_result(message.refusal)
            case _ if session is None:
                if (early := self._early.get(message.key)) is not None:
                    early.append(message)
            case messages.EndSession():
                session.end(message.reason, at_once=message.at_once, as_usual=message.as_usual)
            case messages.Reported():
                if (dialled := _dialled(session)) is not None:
                    dialled.note_update(message.update)
                session.note_update(message.update)
            case messages.DialledChanged() if (dialled := _dialled(session)) is not None:
                dialled.note_state(
                    message.stage, answered_by=message.answered_by, greeting_ended=message.greeting_ended
                )
                if message.unwanted:
                    dialled.withdraw(message.unwanted)

    def _note_refusal(self, text: str) -> None:
        self.tell(messages.Refused(text))

    def _note_session(self, key: int, session: RunningSession) -> None:
        self._by_key[key] = session
        for each in self._early.pop(key, ()):
            self.carry_out(each)

    def _note_client(self, key: int, session: RunningSession) -> None:
        self._note_session(key, session)
        self.tell(messages.ClientStarted(key))

    async def _begin_call(self, key: int, call: Call) -> Refusal | None:
        """Ask the front whether a call may begin, now that it is known whose it is."""
        asked: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        self._asked[key] = asked
        try:
            self.tell(messages.CallStarted(key, call))
            return await asked
        finally:
            del self._asked[key]

    def _note_closed(self, key: int) -> None:
        self.tell(messages.SessionClosed(key))

    def _admitted(self, job: messages.StreamJob) -> AdmittedStream:
        if job.known_calls:
            self.announced = OrderedDict(((each.provider, each.call_id), each) for each in job.known_calls)
        provider = self.providers[job.provider] if job.provider is not None else None
        dialled = None
        if job.dialled is not None and provider is not None:
            dialled = DialledCall(provider, job.dialled.request)
            dialled.call, dialled.answered_by = job.dialled.call, job.dialled.answered_by
            dialled.greeting_ended, dialled.updates = job.dialled.greeting_ended, list(job.dialled.updates)
        return AdmittedStream(
            provider=provider,
            announced=job.announced,
            is_stranger=job.is_stranger,
            dialled=dialled,
            traceparent=job.traceparent,
            exchange=job.exchange,
            on_session=partial(self._note_session, job.key),
            on_started=partial(self._begin_call, job.key),
            on_closed=partial(self._note_closed, job.key),
        )


def _dialled(session: RunningSession) -> DialledCall | None:
    """Return the call as we placed it; ``None`` if it came in."""
    dialled: DialledCall | None = getattr(session, "dialled", None)
    return dialled


class HandedProtocol(StreamProtocol):
    """A connection that another process has accepted, and has read the request for the upgrade from."""

    def __init__(self, job: messages.StreamJob | messages.ClientJob, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.job = job

    def connection_made(self, transport: Any) -> None:
        """Begin with what was read elsewhere."""
        super().connection_made(transport)
        self.data_received(self.job.upgrade)


class WorkerServer(uvicorn.Server):
    """
    Serves the connections that the front passes on.

    Attributes:
        loaded: What the front is told once connections can come.
        files: The project's files that were read so far.
    """

    loaded: messages.Loaded

    def __init__(
        self,
        switchboard: WorkerSwitchboard,
        bot: LoadedBot,
        folder: Path,
        end: socket.socket,
        decoder: Decoder,
        watch: FrontWatch,
    ) -> None:
        super().__init__(uvicorn_config(self._app, switchboard.config.message_limit, lifespan="off"))
        self._switchboard = switchboard
        self._end, self._decoder = end, decoder
        self._folders = {folder.resolve(), bot.path.parent}
        self._modules = len(sys.modules)
        self.files = self._project_files()
        self._channel: Channel | None = None
        self._is_leaving = False
        self._opening: set[asyncio.Task[None]] = set()
        self._memory = MemoryTrimmer(time.monotonic)
        self._cycles = CycleCollector()
        self._watchdog = Watchdog(
            folder=bot.path.parent,
            calls=lambda: [session.session_id for session in tuple(switchboard.sessions)],
            on_blocked=switchboard.note_blocked,
            on_heartbeat=switchboard.lateness.note,
        )
        watch.blocked_s = self._watchdog.blocked_s

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the front says that it is enough, or is gone."""
        make_loop = self.config.get_loop_factory() or asyncio.new_event_loop
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
        # Whoever ends all processes of the group, such as Ctrl-C, means the front.
        with isolation.protect_signals(self.handle_exit, [getattr(signal, name) for name in names]):
            isolation.run(self.serve(sockets or []), on_exit=log_exit, loop_factory=make_loop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Leave it to the front."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Watch the event loop, and search for cycles, while the context lasts; then the process ends in time."""
        with self._watchdog.watching(), self._cycles.in_charge():
            yield
            # Threads and handlers that a bot leaves behind must not keep it alive.
            self._watchdog.exit_within(FORCE_TIMEOUT_S, 0)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the front that connections can come."""
        await super().startup(sockets)
        self._channel = Channel(self._end, on_message=self._take, on_end=self._note_front_gone, decoder=self._decoder)
        self._switchboard.tell = self._channel.send
        self._channel.send(self.loaded)

    async def on_tick(self, counter: int) -> bool:
        """Tell the front how the worker is, and exit with the last session once no more come."""
        switchboard = self._switchboard
        if counter % HEARTBEAT_TICKS == 0:
            self._tell_how_it_is()
        if self._is_leaving and not (switchboard.sessions or switchboard.jobs):
            self.should_exit = True
        self._memory.check(is_busy=bool(switchboard.sessions))
        self._cycles.check(running=len(switchboard.sessions), ended=switchboard.ended)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop."""
        await self._switchboard.dialled.finish()
        self._switchboard.starts.collection.end()
        await super().shutdown(sockets)
        self._switchboard.tracing.close()

    def _project_files(self) -> frozenset[Path]:
        return frozenset(project_files(sys.modules, self._folders))

    def _tell_how_it_is(self) -> None:
        lateness = self._switchboard.lateness
        figures = self._switchboard.figures_by_key()
        self._switchboard.tell(messages.Heartbeat(lateness.late_s, lateness.is_too_late, figures))
        if len(sys.modules) != self._modules:
            self._modules = len(sys.modules)
            if (files := self._project_files()) != self.files:
                self.files = files
                self._switchboard.tell(messages.FilesChanged(files))

    def _take(self, message: Any, descriptor: int | None) -> None:
        match message:
            case messages.StreamJob() | messages.ClientJob() if descriptor is not None:
                self._switchboard.begin_job(message.key)
                task = asyncio.get_running_loop().create_task(self._open(message, descriptor))
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
            case messages.Moved():
                self._switchboard.move(message.host)
            case messages.Leave():
                self._leave()
            case _:
                self._switchboard.carry_out(message)

    def _leave(self) -> None:
        self._is_leaving = True

    def _note_front_gone(self) -> None:
        logger.warning("the process that listens is gone; running calls go on to their end")
        self._leave()
        self._switchboard.note_front_gone()

    async def _open(self, job: messages.StreamJob | messages.ClientJob, descriptor: int) -> None:
        """Let a connection come in as if it had been accepted here."""
        connection = socket.socket(fileno=descriptor)
        connection.setblocking(False)
        make = partial(HandedProtocol, job, self.config, self.server_state, {})
        try:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(make, connection)
            has_begun = hasattr(protocol, "scope")
        except OSError:
            connection.close()
            has_begun = False
        if not has_begun:
            self._switchboard.end_job(job.key)
            self._switchboard.tell(messages.SessionEnded(job.key, None, has_left=False))

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = scope["extensions"][CONNECTION_EXTENSION]["connection"].job
        try:
            await self._switchboard.run_job(WebSocket(scope, receive, send), job)
        finally:
            self._switchboard.end_job(job.key)
