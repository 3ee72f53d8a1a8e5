"""
Bots without an HTTP server: ``-t websocket-server``, one client at a time on a port, and ``-t websocket-client``.

At the first SIGINT or SIGTERM the running conversation may finish; a second one ends it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from loguru import logger

from wsvoice import isolation
from wsvoice.config import without_secrets
from wsvoice.errors import BotError
from wsvoice.runner.listening import listen, url_host
from wsvoice.runner.memory import MemoryTrimmer
from wsvoice.runner.preflight import check_settings
from wsvoice.runner.server import Ready, log_exit
from wsvoice.runner.single_client import PIPELINE_END_GRACE_S, SingleClientServer
from wsvoice.runner.tapped_connection import ConnectionTrace, TappedClient
from wsvoice.runner.watchdog import Watchdog

if TYPE_CHECKING:
    from wsvoice.bot_loading import LoadedBot
    from wsvoice.config import RunConfig
    from wsvoice.runner.pipecat.websocket_client_transport import OutboundArguments

OnReady = Callable[[Ready], None]
BotFunctionTask = asyncio.Task[BaseException | None]

#: A bot that ends within this time, without a client, has failed to start.
START_S = 5.0
#: How often in a row it may.
STARTS = 3
#: How long a bot may take to raise that it could not connect.
CONNECT_FAILURE_GRACE_S = 0.1
#: How long a pipeline that the bot left behind may take to end.
ORPHAN_TIMEOUT_S = 2.0
#: After how much silence a conversation is over once the process should stop: both ends may wait for each other.
SILENCE_S = 10.0
#: How often to check whether memory can be released.
MEMORY_LOOK_S = 0.25
#: How long a pipeline may take to end once the drain is over, and how long a cancelled bot.
END_TIMEOUT_S, CANCELLED_TIMEOUT_S = 0.5, 0.5


class Stop:
    """
    The request to stop: first to drain, then at once.

    Attributes:
        drain: Begin nothing new; the running conversation may finish.
        now: End the running conversation.
        call_ids: The running conversation.
    """

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()
        self.call_ids: list[str] = []

    def ask(self) -> None:
        """Ask to stop; the second time, at once."""
        (self.now if self.drain.is_set() else self.drain).set()


def run_alone(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady) -> None:
    """
    Run `bot` with the transport ``websocket-server`` or ``websocket-client`` until it is over.

    `on_ready` is called once it listens or connects.

    Raises:
        BotError: If the bot fails.
        ServerError: If the address cannot be listened on.
        ConnectError: If the server that it connects to cannot be reached, or refuses it.
        KeyboardInterrupt: If a second Ctrl-C has ended a conversation that was to finish.
    """
    check_settings(config)
    run = run_websocket_server if config.transport == "websocket-server" else run_websocket_client

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        watchdog = Watchdog(folder=bot.path.parent, calls=lambda: stop.call_ids)

        def ask(number: int, _: FrameType | None) -> None:
            watchdog.note_signal(number, config.drain_timeout_s)
            loop.call_soon_threadsafe(stop.ask)

        stop = Stop()
        with isolation.protect_signals(ask), watchdog.watching():
            await run(bot, config, on_ready=on_ready, stop=stop)
        return watchdog.was_interrupted

    if isolation.run(main(), on_exit=log_exit):
        raise KeyboardInterrupt


async def run_websocket_server(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady, stop: Stop) -> None:
    """
    Serve one client at a time; when the bot has returned it is started again for the next.

    Raises:
        BotError: If it ends at once, several times in a row.
        ServerError: If the address cannot be listened on.
    """
    from wsvoice.runner.pipecat import websocket_server_transport

    server = SingleClientServer(
        config, event_tasks=websocket_server_transport.event_tasks, logger=logger.bind(call="-")
    )
    await server.open(listen(config.host, config.port))
    websocket_server_transport.take_over_port(server)
    memory_trimmer = asyncio.create_task(_trim_memory(server))
    try:
        on_ready(Ready(f"ws://{url_host(config.host)}:{server.port}", None, (), bot_name=bot.name))
        failures = 0
        loop = asyncio.get_running_loop()
        while not stop.drain.is_set():
            started, served = loop.time(), server.served
            session_id = server.session_id = str(uuid.uuid4())
            arguments = websocket_server_transport.ServerArguments(
                host=config.host, port=server.port, body=dict(config.parameters), session_id=session_id
            )
            task = _start(bot, arguments)
            stop.call_ids = [session_id]
            await _first(task, stop.drain)
            if not task.done():
                await _drain(task, server, config, stop)
            error = _error_of(task)
            if (orphan := await server.drop(failed=error is not None)) is not None:
                # A bot that failed outside its pipeline left that running.
                await websocket_server_transport.end_pipeline(orphan, "the bot has ended")
                await _first(asyncio.create_task(server.left()), timeout_s=ORPHAN_TIMEOUT_S)
            early = server.served == served and loop.time() - started < START_S
            failures = failures + 1 if early and not stop.drain.is_set() else 0
            if failures >= STARTS:
                raise _start_error(bot, error)
    finally:
        memory_trimmer.cancel()
        websocket_server_transport.restore_port()
        await server.close()


async def run_websocket_client(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady, stop: Stop) -> None:
    """
    Run a bot that connects to a server, once.

    Raises:
        BotError: If it raises.
        ConnectError: If the server cannot be reached, or refuses it.
    """
    from wsvoice.runner.pipecat.websocket_client_transport import OutboundArguments

    assert config.url is not None
    session_id = str(uuid.uuid4())
    arguments = OutboundArguments(
        uri=config.url, headers=config.headers, body=dict(config.parameters), session_id=session_id
    )
    on_ready(Ready(without_secrets(config.url), None, (), bot_name=bot.name))
    traces = list[ConnectionTrace]()

    def trace(connection: TappedClient) -> None:
        log = logger.bind(call=session_id)
        traces.append(ConnectionTrace(config, "websocket-client", session_id, connection, logger=log))

    outcome = arguments.outcome
    outcome.on_open = trace if config.trace is not None else None
    task = _start(bot, arguments)
    stop.call_ids = [session_id]
    try:
        await _attend(task, arguments, config, stop)
    finally:
        for each in traces:
            await each.close()
    if outcome.error is not None:
        raise outcome.error
    if (error := _error_of(task)) is not None:
        raise BotError(f"{bot.name} {isolation.describe_failure(error)}", hint="the log has its traceback")


async def _attend(task: BotFunctionTask, arguments: OutboundArguments, config: RunConfig, stop: Stop) -> None:
    """Wait until a bot that connects to a server is done, or has to be; then end it."""
    outcome = arguments.outcome
    await _first(task, outcome.failed, stop.drain)
    if outcome.failed.is_set():
        await asyncio.wait({task}, timeout=CONNECT_FAILURE_GRACE_S)
    elif not task.done():
        logger.warning(
            "waiting for the bot to finish (at most {:g} s, or until nobody speaks for {:g} s); "
            "signal again to end it now",
            config.drain_timeout_s,
            SILENCE_S,
        )
        silence = asyncio.create_task(arguments.silence(SILENCE_S))
        await _first(task, silence, outcome.failed, stop.now, timeout_s=config.drain_timeout_s)
        is_silent = silence.done()
        silence.cancel()
        if not task.done() and await arguments.end_pipeline("the process stops"):
            if is_silent:
                # There is time left for the bot's work after a conversation.
                await _first(task, stop.now, timeout_s=config.bot_exit_timeout_s)
            else:
                await _first(task, timeout_s=END_TIMEOUT_S)
    await _end(task)
    if await arguments.end_pipeline("the bot has ended"):
        # A bot that failed outside its pipeline left that running.
        await _first(outcome.closed, timeout_s=ORPHAN_TIMEOUT_S)


async def _trim_memory(server: SingleClientServer) -> None:
    """Release memory whenever nobody has been connected for a while."""
    memory_trimmer = MemoryTrimmer(time.monotonic)
    while True:
        await asyncio.sleep(MEMORY_LOOK_S)
        memory_trimmer.check(is_busy=not server.empty.is_set())


async def _drain(task: BotFunctionTask, server: SingleClientServer, config: RunConfig, stop: Stop) -> None:
    """Let the current client finish, then end the bot."""
    from wsvoice.runner.pipecat.websocket_server_transport import end_pipeline

    server.closed = True
    if not server.empty.is_set():
        logger.warning(
            "no new clients are taken; waiting for this one to leave (at most {:g} s); signal again to end it now",
            config.drain_timeout_s,
        )
        await _first(task, server.empty, stop.now, timeout_s=config.drain_timeout_s)
        # A bot that ends with its client ends now.
        await _first(task, stop.now, timeout_s=PIPELINE_END_GRACE_S)
    if not task.done() and server.handler is not None:
        await end_pipeline(server.handler, "the server stops")
        await _first(task, timeout_s=END_TIMEOUT_S)
    await _end(task)


def _start(bot: LoadedBot, arguments: Any) -> BotFunctionTask:
    """Run the bot; the task's result is the exception that it raised, or ``None``."""
    failure: BaseException | None = None

    def fail(error: BaseException) -> None:
        nonlocal failure
        logger.opt(exception=error).error("the bot {}", isolation.describe_failure(error))
        failure = failure or error

    def exit_instead(error: BaseException) -> None:
        fail(error)
        task.cancel()

    async def run() -> BaseException | None:
        isolation.current_bot.set(isolation.IsolatedBot(arguments.session_id, exit_instead))
        with logger.contextualize(call=arguments.session_id):
            try:
                await bot.function(arguments)
            except asyncio.CancelledError:
                if failure is None:
                    raise
            except BaseException as error:  # noqa: BLE001 - not even an exit of the bot's may end the process
                fail(error)
        return failure

    task = asyncio.create_task(run(), name=f"wsvoice-bot-{arguments.session_id}")
    return task


async def _first(*waits: asyncio.Task[Any] | asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one of several is done, or the time is up."""
    tasks = {each if isinstance(each, asyncio.Task) else asyncio.create_task(each.wait()): each for each in waits}
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, each in tasks.items():
            if task is not each:
                task.cancel()


async def _end(task: BotFunctionTask) -> None:
    """Cancel a bot that still runs."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=CANCELLED_TIMEOUT_S)


def _error_of(task: BotFunctionTask) -> BaseException | None:
    return task.result() if task.done() and not task.cancelled() else None


def _start_error(bot: LoadedBot, error: BaseException | None) -> BotError:
    if error is not None:
        return BotError(
            f"{bot.name} failed at once, {STARTS} times in a row: {type(error).__name__}: {str(error)[:200]}",
            hint="the log has its traceback",
        )
    return BotError(
        f"{bot.name} returned at once, {STARTS} times in a row, without a client",
        hint="let it run a pipeline with runner_args.transport until the client has left",
    )
