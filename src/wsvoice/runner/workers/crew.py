"""The front's workers: started, given connections, replaced when they die, exchanged when the bot's code changes."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from starlette.websockets import WebSocket

from wsvoice.call import Call
from wsvoice.errors import ServerError, WsvoiceError
from wsvoice.runner import requests
from wsvoice.runner.bounded_socket import CONNECTION_EXTENSION
from wsvoice.runner.figures import WorkerFigures
from wsvoice.runner.limits import Refusal
from wsvoice.runner.session import CallRecord
from wsvoice.runner.workers import messages
from wsvoice.runner.workers.remote_session import RemoteSession
from wsvoice.runner.workers.template_process import Settings, TemplateProcess
from wsvoice.runner.workers.worker_handle import LATE_S, Given, Worker

if TYPE_CHECKING:
    from wsvoice.runner.dialled_call import DialledCall
    from wsvoice.runner.switchboard import AdmittedStream, Switchboard

#: How long the template may take to import what workers need, and a worker to load the bot.
TEMPLATE_TIMEOUT_S, LOAD_TIMEOUT_S = 60.0, 120.0
#: After how long a reload makes way for a newer one, and after how long it is said that it takes long.
OUTDATED_S, SLOW_S = 2.0, 10.0
#: After how long without a heartbeat a worker is given no calls at all, and after how long it is ended and replaced;
#: after :data:`LATE_S` it is given them only if no other one can take them.
SILENT_S, STUCK_S = 3.0, 60.0
#: So many deaths within so many seconds are bad luck; after that, a worker is replaced only after a pause.
DEATHS, DEATHS_WITHIN_S = 3, 10.0
MIN_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
#: How long workers may take to exit once their sessions have ended, when the server stops.
EXIT_TIMEOUT_S = 1.0
#: How often it is looked whether they have, when the server stops.
EXIT_LOOK_S = 0.05
#: How often it is looked whether a worker that has ended is left to us: its template may end a moment after it.
ORPHAN_LOOKS = 5
#: How many announced calls go along with a stream without a token.
KNOWN_CALLS = 100


class _Outdated(Exception):
    """There is a newer reload."""


class Crew:
    """
    The workers of a server.

    Args:
        switchboard: Admits what they serve.
        settings: What they are started with.
        count: How many there are.

    Attributes:
        on_files: Called when other files of the project have been read.
        read_settings: Reads the settings again, for a reload; raises if they cannot be used. Also returns what has them
            apply to the front.
        reloading: Makes the context in which workers are exchanged.
    """

    def __init__(self, switchboard: Switchboard, settings: Settings, count: int) -> None:
        self.settings = settings
        self.count = count
        self.on_files: Callable[[], None] = lambda: None
        self.read_settings: Callable[[], tuple[Settings, Callable[[], None]]] | None = None
        self.reloading: Callable[[], AbstractContextManager[None]] = nullcontext
        self._switchboard = switchboard
        self._keys = itertools.count(1)
        #: Those that are given sessions, by number, and all whose process runs.
        self._serving: dict[int, Worker] = {}
        self._all: set[Worker] = set()
        #: The processes of those that have ended and nobody may have waited for; how often that is still looked at.
        self._orphans: dict[int, int] = {}
        self._template: TemplateProcess | None = None
        self._templates: list[TemplateProcess] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._died_at: deque[float] = deque(maxlen=DEATHS)
        self._pause_s = MIN_PAUSE_S
        #: Whether the template can import the bot's libraries.
        self._shares_libraries = True
        self._is_started = self._is_closing = False
        #: Set when there is a newer reload than the one under way.
        self._newer = asyncio.Event()
        self._stays = False
        self._reloading: asyncio.Task[None] | None = None
        #: The reload that is to come: why, and whether packages may have changed.
        self._wanted: tuple[str, bool] | None = None
        self._loop = asyncio.get_running_loop()

    # Starting

    async def start(self) -> messages.Loaded:
        """
        Start the workers.

        Raises:
            WsvoiceError: If one cannot load the bot; then there are none.
        """
        self._template = self._new_template(self.settings)
        workers = [self._fork(number, self.settings) for number in range(1, self.count + 1)]
        try:
            loaded = await self._wait_until_loaded(workers)
        except WsvoiceError:
            for each in workers:
                each.kill()
            raise
        self._serving = {each.number: each for each in workers}
        self._import_libraries(loaded)
        self._is_started = True
        self._begin_reload()
        self.on_files()
        return loaded

    def _import_libraries(self, loaded: messages.Loaded) -> None:
        if self._template is not None and self._shares_libraries:
            self._template.import_libraries(loaded.libraries)

    def _note_spoilt(self, template: TemplateProcess, library: str) -> None:
        """Take another template, without the bot's libraries: one of them has started a thread in this one."""
        self._shares_libraries = False
        if template is not self._template or self._is_closing:
            return
        logger.warning(
            "{} starts a thread when it is imported: each worker imports the bot's libraries itself, and takes as long"
            " as a new process",
            library,
        )
        self._close_template(template)
        self._begin_renewal(0.0)

    def _new_template(self, settings: Settings) -> TemplateProcess:
        template = TemplateProcess(
            settings,
            on_exit=self._note_exit,
            on_spoilt=lambda library: self._note_spoilt(template, library),
            on_end=lambda: self._note_template_end(template),
        )
        self._templates = [each for each in self._templates if not each.is_gone()]
        self._templates.append(template)
        return template

    def _fork(self, number: int, settings: Settings) -> Worker:
        if self._template is None:
            raise ServerError("there is no process that workers can be forked from")
        worker = Worker(
            number,
            on_gone=self._note_gone,
            on_files=lambda: self.on_files(),
            on_refused=self._switchboard.refusals.count,
        )
        self._all.add(worker)
        try:
            self._template.fork(worker)
        except OSError:
            worker.note_gone()
            raise
        name = f"worker {number}" if self.count > 1 else "-"
        worker.tell(
            messages.Begin(number, name, settings.config, settings.providers, settings.environ, settings.folder)
        )
        return worker

    async def _wait_until_loaded(self, workers: Collection[Worker]) -> messages.Loaded:
        """Wait until all of them have loaded the bot; raises the first one's error if one cannot."""
        template = self._template
        if template is not None:
            await asyncio.wait([template.prepared], timeout=TEMPLATE_TIMEOUT_S)
            if not template.prepared.done():
                raise ServerError(
                    f"pipecat was not imported within {TEMPLATE_TIMEOUT_S:g} s", hint="is the machine busy?"
                )
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                loaded = await asyncio.gather(*(each.loaded for each in workers))
        except TimeoutError:
            raise ServerError(
                f"the bot was not loaded within {LOAD_TIMEOUT_S:g} s", hint="see what it does while it is imported"
            ) from None
        for each in workers:
            if each.is_gone:
                raise ServerError(
                    f"worker {each.number} {each.how_it_ended()} after it had loaded the bot",
                    hint="see which threads are started while it is imported",
                )
        return loaded[0]

    # Sessions

    def why_closed(self) -> Refusal | None:
        """Say why no worker takes a call; ``None`` if one does."""
        serving = self._able()
        if not serving:
            return Refusal("lag", "no worker answers")
        if all(each.is_too_late for each in serving):
            late_s = min(each.late_s for each in serving)
            return Refusal("lag", f"every worker's event loop is late, by {late_s:.2f} s or more (--max-lag)")
        return None

    def _able(self) -> list[Worker]:
        return [
            each
            for each in self._serving.values()
            if each.state == "serving" and each.is_reachable and not each.is_gone and each.silent_s < SILENT_S
        ]

    def _choose(self) -> Worker | None:
        """Return the worker with the fewest sessions; one that is late only if all are."""
        return min(
            self._able(),
            key=lambda each: (each.silent_s > LATE_S, each.is_too_late, len(each.sessions)),
            default=None,
        )

    async def serve_stream(self, websocket: WebSocket, admitted: AdmittedStream) -> None:
        """Have a worker run the session of a stream, to its end."""
        switchboard, dialled, announced = self._switchboard, admitted.dialled, admitted.announced
        provider = admitted.provider.name if admitted.provider is not None else None
        is_stranger, traceparent, exchange = admitted.is_stranger, admitted.traceparent, admitted.exchange
        known = (
            ()
            if announced is not None
            else tuple(itertools.islice(reversed(switchboard.announced.values()), KNOWN_CALLS))
        )
        terms = None
        if dialled is not None:
            terms = messages.DialledTerms(
                dialled.request, dialled.call, dialled.answered_by, dialled.greeting_ended, tuple(dialled.updates)
            )

        def job(key: int, upgrade: bytes) -> messages.StreamJob:
            known_to_front = (provider, announced, is_stranger, known, traceparent, exchange, terms)
            return messages.StreamJob(key, upgrade, *known_to_front)

        async def begin(call: Call) -> Refusal | None:
            refusal = await admitted.on_started(call)
            if refusal is None and dialled is not None:
                switchboard.dialled.note_call(dialled, call)
            return refusal

        call = announced or Call(provider=provider or "", call_id="")
        session = RemoteSession(next(self._keys), call.call_id, call)
        given = Given(session, on_call=begin, on_closed=admitted.on_closed)
        await self._serve(websocket, job, given, dialled)
        if session.is_lost and session.call is not None:
            await self._end_lost(session.call, dialled)

    async def serve_client(
        self,
        websocket: WebSocket,
        session_id: str,
        started_body: bytes,
        *,
        evals_only: bool,
        on_session: Callable[[Any], object],
        on_closed: Callable[[], None],
    ) -> None:
        """Have a worker run the session of a client: :meth:`wsvoice.runner.clients.Clients.serve`."""

        def job(key: int, upgrade: bytes) -> messages.ClientJob:
            return messages.ClientJob(key, upgrade, session_id, started_body, evals_only)

        session = RemoteSession(next(self._keys), session_id, None)
        await self._serve(websocket, job, Given(session, on_client=on_session, on_closed=on_closed))

    async def _serve(
        self,
        websocket: WebSocket,
        make_job: Callable[[int, bytes], messages.StreamJob | messages.ClientJob],
        given: Given,
        dialled: DialledCall | None = None,
    ) -> None:
        """Have a worker run a session to its end."""
        worker, session = self._choose(), given.session
        if worker is None:
            await requests.deny(websocket, 503, "The server takes no new calls.")
            return
        try:
            descriptor, upgrade = websocket.scope["extensions"][CONNECTION_EXTENSION]["connection"].hand_over()
        except ConnectionError:
            logger.bind(call=session.session_id or "-").warning("the caller was gone before the stream was accepted")
            return
        except OSError as error:
            # No file is free.
            reason = f"its connection cannot be passed on: {error.strerror or error}"
            self._switchboard.refusals.warning(
                logger.bind(call=session.session_id or "-"), "stream refused (503)", reason
            )
            await requests.deny(websocket, 503, "The server takes no new calls.")
            return
        session.tell, session.pid = worker.tell, worker.pid
        try:
            worker.tell(make_job(session.key, upgrade), descriptor)
        finally:
            os.close(descriptor)
        worker.sessions[session.key] = given
        if dialled is not None:
            dialled.session = session
            self._start(session.follow(dialled))
        switchboard = self._switchboard
        switchboard.sessions.add(session)
        try:
            await session.ended()
        finally:
            switchboard.sessions.discard(session)
            switchboard.ended += 1
            worker.sessions.pop(session.key, None)
            if session.record is not None:
                switchboard.metrics.session_ended(session.record)
            if dialled is not None and isinstance(session.record, CallRecord):
                dialled.note_session_end(session.record, has_left=session.has_left)
            elif dialled is not None and dialled.session is session:
                # The other end was gone before it was accepted.
                dialled.session = None

    async def _end_lost(self, call: Call, dialled: DialledCall | None) -> None:
        """End a call whose worker has died by the provider's API: closing the stream ends it not everywhere."""
        provider = self._switchboard.providers.get(call.provider)
        if dialled is not None:
            await self._switchboard.dialled.hang_up(dialled)
        elif provider is not None and call.call_id:
            await self._switchboard.hang_up(provider, call, logger.bind(call=call.call_id))

    def move(self, host: str) -> None:
        """Be reached at another public ``host[:port]``; may be called from any thread."""
        self._loop.call_soon_threadsafe(self._move, host)

    def _move(self, host: str) -> None:
        # Workers that are started later are told as well.
        self.settings = self.settings.moved(host)
        for each in self._all:
            each.tell(messages.Moved(host))

    # Reloading

    def reload(self, why: str, *, anew: bool = False) -> None:
        """
        Exchange the workers for new ones, which load the bot and the settings again.

        If one of the new ones cannot load the bot, the old ones stay. What is asked for meanwhile is done afterwards,
        once.

        Args:
            why: What was changed, for the log.
            anew: Whether installed packages may have changed as well.
        """
        if self._stays:
            logger.warning("no reload: another process takes new calls, and this one finishes its own")
            return
        self._wanted = (why, anew or (self._wanted is not None and self._wanted[1]))
        self._newer.set()
        self._begin_reload()

    def _begin_reload(self) -> None:
        """Begin with a reload that was asked for, once the first workers are there; one under way goes on with it."""
        is_under_way = self._reloading is not None and not self._reloading.done()
        if self._wanted is not None and self._is_started and not self._is_closing and not is_under_way:
            self._reloading = self._start(self._reload())

    def stay_as_it_is(self) -> None:
        """Reload no more: another process takes new calls."""
        self._stays = True

    def request_reload(self, why: str, *, anew: bool = False) -> None:
        """Ask for :meth:`reload`, from any thread or a signal's handler."""
        self._loop.call_soon_threadsafe(lambda: self.reload(why, anew=anew))

    async def _reload(self) -> None:
        while self._wanted is not None and not (self._is_closing or self._stays):
            (why, anew), self._wanted = self._wanted, None
            self._newer.clear()
            shared = self._shares_libraries
            try:
                with self.reloading():
                    await self._exchange(why, anew=anew)
                self._switchboard.metrics.reloaded(failed=False)
            except _Outdated:
                self._wanted = (self._wanted[0], anew or self._wanted[1]) if self._wanted is not None else (why, anew)
                continue
            except (WsvoiceError, OSError) as error:
                if shared and not self._shares_libraries:
                    # Its workers were to come from a template that was of no use.
                    self._wanted = self._wanted or (why, anew)
                    continue
                self._switchboard.metrics.reloaded(failed=True)
                details = getattr(error, "details", "")
                text = _told(error) + (f"\n{details}" if details else "")
                logger.error("not reloaded, the old bot goes on: {}", text)
            self.on_files()

    async def _exchange(self, why: str, *, anew: bool) -> None:
        settings, apply = self.read_settings() if self.read_settings is not None else (self.settings, lambda: None)
        template = self._template
        workers: list[Worker] = []
        try:
            if anew or template is None:
                self._template = self._new_template(settings)
            for number in range(1, self.count + 1):
                workers.append(self._fork(number, settings))
            loaded = await self._wait_for_reload(workers)
        except (WsvoiceError, OSError, _Outdated):
            for each in workers:
                each.kill()
            if self._template is not template and template is not None:
                self._close_template(self._template)
                self._template = template
            raise
        old, self._serving = self._serving, {each.number: each for each in workers}
        # A tunnel may have got another address meanwhile.
        self.settings = settings.moved(self.settings.config.proxy)
        apply()
        if self._template is not template and template is not None:
            self._close_template(template)
            self._import_libraries(loaded)
        for each in old.values():
            each.leave()
        running = sum(len(each.sessions) for each in old.values())
        finish = f"; {running} running {'call finishes' if running == 1 else 'calls finish'} with the old code"
        logger.info("{}: new calls get the new code{}", why, finish if running else "")

    async def _wait_for_reload(self, workers: Collection[Worker]) -> messages.Loaded:
        """
        Wait until all of them have loaded the bot.

        Raises:
            _Outdated: If there is a newer reload, and these take long: what holds them up may be mended by now.
        """
        loading = asyncio.ensure_future(self._wait_until_loaded(workers))
        newer = asyncio.ensure_future(self._newer.wait())
        try:
            await asyncio.wait({loading}, timeout=OUTDATED_S)
            if not loading.done():
                await asyncio.wait({loading, newer}, timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED)
            if not (loading.done() or newer.done()):
                logger.warning(
                    "the new bot has not been loaded for {:g} s, and the old one goes on: see what it does while it is"
                    " imported",
                    SLOW_S,
                )
                await asyncio.wait({loading, newer}, return_when=asyncio.FIRST_COMPLETED)
            if not loading.done():
                raise _Outdated
            return loading.result()
        finally:
            loading.cancel()
            newer.cancel()

    def _close_template(self, template: TemplateProcess | None) -> None:
        if template is not None:
            template.close()

    # Deaths

    def check(self) -> None:
        """Look whether all workers are well; called about once a second."""
        self._templates = [each for each in self._templates if not each.is_gone()]
        self._wait_for_orphans()
        for each in list(self._all):
            each.look()
            silent_s = each.silent_s
            if silent_s > STUCK_S and each.state != "loading" and not each.is_gone:
                logger.error(
                    "worker {} (process {}) has not answered for {:.0f} s; it is killed",
                    each.number,
                    each.pid,
                    silent_s,
                )
                each.kill()

    def _wait_for_orphans(self) -> None:
        """
        Let the processes of workers go that have outlived their template.

        They belong to the first process then, which is this one in a container without an init:
        https://man7.org/linux/man-pages/man7/pid_namespaces.7.html
        """
        for pid in list(self._orphans):
            try:
                is_over = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                # It has its template yet, or belongs to another process for good.
                self._orphans[pid] -= 1
                is_over = not self._orphans[pid]
            if is_over:
                del self._orphans[pid]

    def _note_exit(self, pid: int, exit_code: int) -> None:
        for each in list(self._all):
            if each.pid == pid:
                each.note_gone(exit_code)

    def _note_gone(self, worker: Worker) -> None:
        self._all.discard(worker)
        if os.getpid() == 1 and worker.pid:
            self._orphans[worker.pid] = ORPHAN_LOOKS
        lost = list(worker.sessions.values())
        for each in lost:
            each.session.note_end(_lost_record(each.session), is_lost=True)
        was_serving = self._serving.get(worker.number) is worker
        if was_serving:
            del self._serving[worker.number]
        if self._is_closing or worker.state == "loading" or not (lost or was_serving):
            return
        self._switchboard.metrics.worker_died()
        ids = ", ".join(each.session.session_id or "one without an id" for each in lost)
        calls = f"; {len(lost)} {'call is' if len(lost) == 1 else 'calls are'} lost: {ids}" if lost else ""
        logger.error("worker {} (process {}) {}{}", worker.number, worker.pid, worker.how_it_ended(), calls)
        if was_serving:
            self._start(self._replace(worker.number))

    async def _replace(self, number: int) -> None:
        """Start a worker in place of one that has died."""
        now = time.monotonic()
        is_loop = len(self._died_at) == DEATHS and now - self._died_at[0] < DEATHS_WITHIN_S
        self._died_at.append(now)
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S) if is_loop else MIN_PAUSE_S / 2
        pause_s = self._pause_s if is_loop else 0.0
        while not self._is_closing:
            await asyncio.sleep(pause_s)
            if self._is_closing or number in self._serving:
                return
            worker = None
            try:
                worker = self._fork(number, self.settings)
                await self._wait_until_loaded([worker])
            except (WsvoiceError, OSError) as error:
                if worker is not None:
                    worker.kill()
                pause_s = min(max(pause_s * 2, MIN_PAUSE_S), MAX_PAUSE_S)
                text = _told(error)
                logger.error("worker {} is not replaced: {}; tried again in {:.0f} s", number, text, pause_s)
                continue
            if number in self._serving or self._is_closing:
                worker.leave()
                return
            self._serving[number] = worker
            logger.info("worker {} takes calls again (process {})", number, worker.pid)
            return

    def _note_template_end(self, template: TemplateProcess) -> None:
        if self._is_closing or template is not self._template:
            return
        logger.warning("the process that workers are forked from has ended; another one is started")
        # After a pause if it cannot work.
        self._begin_renewal(MAX_PAUSE_S if template.has_failed else 0.0)

    def _begin_renewal(self, pause_s: float) -> None:
        self._template = None
        self._start(self._renew_template(pause_s))

    async def _renew_template(self, pause_s: float) -> None:
        """Start another template in place of one that is of no use any more, after a pause."""
        await asyncio.sleep(pause_s)
        while self._template is None and not self._is_closing:
            try:
                self._template = self._new_template(self.settings)
            except OSError as error:
                logger.error("it cannot be started: {}; tried again in {:.0f} s", error, MAX_PAUSE_S)
                await asyncio.sleep(MAX_PAUSE_S)

    # The end

    async def close(self, timeout_s: Callable[[], float]) -> None:
        """Let all workers exit, whose sessions have ended; kill those that take longer than it is allowed by then."""
        self._is_closing = True
        for each in self._tasks:
            each.cancel()
        for worker in self._all:
            worker.leave()
        began = time.monotonic()
        while self._all and time.monotonic() - began < timeout_s():
            await asyncio.sleep(EXIT_LOOK_S)
            for worker in list(self._all):
                worker.look()
        self.kill()
        for template in self._templates:
            template.close()
        for template in self._templates:
            template.wait(EXIT_TIMEOUT_S)

    def kill(self) -> None:
        """Kill all workers, and what they are forked from: a bot may have stopped it. May be called from any thread."""
        for each in list(self._all):
            each.kill()
        for template in list(self._templates):
            template.kill()

    @property
    def files(self) -> frozenset[Path]:
        """The project's files that the workers have read."""
        return frozenset().union(*(each.files for each in self._serving.values()))

    def figures(self) -> list[WorkerFigures]:
        """Return the workers as they stand, by number, the oldest first; may be called from any thread."""
        found = [
            WorkerFigures(
                number=each.number,
                pid=each.pid,
                calls=len(each.sessions),
                # One that imports the bot holds up no call.
                lag_s=0.0 if each.state == "loading" else each.lag_s,
                state="draining" if each.state == "leaving" else each.state,
            )
            for each in sorted(self._all, key=lambda each: (each.number, each.started_at))
        ]
        missing = set(range(1, self.count + 1)) - {each.number for each in found if each.state != "draining"}
        found += [WorkerFigures(number=each, pid=0, calls=0, lag_s=0.0, state="missing") for each in missing]
        return sorted(found, key=lambda each: each.number)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _told(error: WsvoiceError | OSError) -> str:
    """Return what an error says, with its hint."""
    return requests.with_hint(error) if isinstance(error, WsvoiceError) else str(error)


def _lost_record(session: RemoteSession) -> CallRecord:
    """Return what is known of a session whose worker has died."""
    call = session.call or Call(provider="websocket", call_id=session.session_id)
    figures = session.figures()
    return CallRecord(
        call=call,
        started_at=figures.started_at,
        duration_s=figures.age_s,
        ended_by="error",
        reason="its worker died",
        is_lost=True,
        heard_s=figures.heard_s,
        sent_s=figures.sent_s,
        bytes_in=figures.bytes_in,
        bytes_out=figures.bytes_out,
        underruns=figures.underruns,
    )
