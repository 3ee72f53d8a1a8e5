"""
Bots without an HTTP server: one that serves a client at a time on its own port, and one that dials out.

A process that is asked to stop (SIGINT, SIGTERM) lets the conversation that runs finish; asked once more it ends it.
"""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from loguru import logger

from wsvoice.config import without_secrets
from wsvoice.errors import BotError, ConfigError
from wsvoice.runner.desk import SETTLE_S, Desk
from wsvoice.runner.server import Ready, listen, url_host

if TYPE_CHECKING:
    from wsvoice.bot import LoadedBot
    from wsvoice.config import RunConfig

OnReady = Callable[[Ready], None]

#: A bot that ends within this time, without a client, has not even begun to serve.
START_S = 5.0
#: How often in a row it may.
STARTS = 3
#: How long a bot may take to say that it could not connect.
FAILURE_GRACE_S = 0.1
#: How long a pipeline may take to end that nobody waits for any more.
ORPHAN_TIMEOUT_S = 2.0


class Stop:
    """
    The wish to stop: first when it suits, then at once.

    Attributes:
        drain: Nothing new is begun; what runs may finish.
        now: What runs is ended.
    """

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def ask(self) -> None:
        """Ask to stop, or for more haste."""
        (self.now if self.drain.is_set() else self.drain).set()


def run_alone(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady) -> None:
    """
    Run `bot` with the transport ``websocket-server`` or ``websocket-client`` until it is over.

    Args:
        bot: The bot, loaded and checked.
        config: The settings.
        on_ready: Called once it listens, or dials.

    Raises:
        BotError: If the bot fails.
        ServerError: If the address cannot be listened on.
        ConnectError: If the server that it dials cannot be reached, or turns it away.
        KeyboardInterrupt: After it was interrupted and has ended.
    """
    run = serve_one_by_one if config.transport == "websocket-server" else dial_out

    async def main() -> bool:
        stop = Stop()
        with _signals(stop) as received:
            try:
                await run(bot, config, on_ready=on_ready, stop=stop)
            finally:
                await _cancel_the_rest()
            return signal.SIGINT in received

    if asyncio.run(main()):
        raise KeyboardInterrupt


async def serve_one_by_one(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady, stop: Stop) -> None:
    """
    Serve one client at a time; when the bot has returned it is started again for the next.

    Raises:
        BotError: If it ends at once, several times in a row.
        ServerError: If the address cannot be listened on.
    """
    from wsvoice.runner import server_transport

    desk = Desk(config, event_tasks=server_transport.event_tasks, logger=logger.bind(call="-"))
    sockets = listen(config.host, config.port)
    await desk.open(sockets)
    server_transport.take_over_port(desk)
    try:
        on_ready(Ready(f"ws://{url_host(config.host)}:{desk.port}", None, ()))
        failures = 0
        loop = asyncio.get_running_loop()
        while not stop.drain.is_set():
            started, served = loop.time(), desk.served
            arguments = server_transport.server_arguments(
                config.host, desk.port, body=dict(config.parameters), session_id=str(uuid.uuid4())
            )
            task = _start(bot, arguments)
            await _first(task, stop.drain)
            if not task.done():
                await _drain_desk(task, desk, config, stop, server_transport.end_pipeline)
            error = _error_of(task)
            if (orphan := await desk.drop(failed=error is not None)) is not None:
                # A bot that failed beside its pipeline has left that running.
                await server_transport.end_pipeline(orphan, "the bot has ended")
                await _first(asyncio.create_task(desk.left()), timeout_s=ORPHAN_TIMEOUT_S)
            early = desk.served == served and loop.time() - started < START_S
            failures = failures + 1 if early and not stop.drain.is_set() else 0
            if failures >= STARTS:
                raise _given_up(bot, error)
    finally:
        server_transport.give_port_back()
        await desk.close()


async def dial_out(bot: LoadedBot, config: RunConfig, *, on_ready: OnReady, stop: Stop) -> None:
    """
    Run a bot that dials out, once.

    Raises:
        BotError: If it raises.
        ConnectError: If the server cannot be reached, or turns it away.
    """
    from wsvoice.runner.dial_transport import dial_arguments

    if config.url is None:
        raise ConfigError("websocket-client needs the address that the bot dials", hint="set `url`")
    arguments = dial_arguments(config.url, config.headers, body=dict(config.parameters), session_id=str(uuid.uuid4()))
    on_ready(Ready(without_secrets(config.url), None, ()))
    task = _start(bot, arguments)
    outcome = arguments.outcome
    await _first(task, outcome.failed, stop.drain)
    if outcome.failed.is_set():
        await asyncio.wait({task}, timeout=FAILURE_GRACE_S)
    elif not task.done():
        logger.warning("waiting for the bot to finish (at most {:g} s; once more to end it)", config.drain_timeout_s)
        await _first(task, outcome.failed, stop.now, timeout_s=config.drain_timeout_s)
        if not task.done() and await arguments.end_pipeline("the process stops"):
            await _first(task, timeout_s=config.bot_exit_timeout_s)
    await _end(task)
    if await arguments.end_pipeline("the bot has ended"):
        # A bot that failed beside its pipeline has left that running.
        await _first(outcome.closed, timeout_s=ORPHAN_TIMEOUT_S)
    if outcome.error is not None:
        raise outcome.error
    if (error := _error_of(task)) is not None:
        raise BotError(
            f"{bot.name} raised {type(error).__name__}: {str(error)[:200]}", hint="the log has its traceback"
        )


async def _drain_desk(
    task: asyncio.Task[None],
    desk: Desk,
    config: RunConfig,
    stop: Stop,
    end_pipeline: Callable[[Any, str], Awaitable[None]],
) -> None:
    """Let the client finish that is there, then end the bot."""
    desk.closed = True
    if not desk.empty.is_set():
        logger.warning(
            "no new clients are taken; waiting for this one to leave (at most {:g} s; once more to cut it)",
            config.drain_timeout_s,
        )
        await _first(task, desk.empty, stop.now, timeout_s=config.drain_timeout_s)
        # A bot that ends with its client does so now.
        await _first(task, stop.now, timeout_s=SETTLE_S)
    if not task.done() and desk.handler is not None:
        await end_pipeline(desk.handler, "the server stops")
        await _first(task, stop.now, timeout_s=config.bot_exit_timeout_s)
    await _end(task)


def _start(bot: LoadedBot, arguments: Any) -> asyncio.Task[None]:
    async def run() -> None:
        with logger.contextualize(call=arguments.session_id):
            try:
                await bot.function(arguments)
            except Exception as error:
                logger.opt(exception=error).error("the bot raised {}: {}", type(error).__name__, str(error)[:500])
                raise

    return asyncio.create_task(run(), name=f"wsvoice-bot-{arguments.session_id}")


async def _first(*waits: asyncio.Task[None] | asyncio.Event, timeout_s: float | None = None) -> None:
    """Wait until one of several is over, or the time is."""
    tasks = {each if isinstance(each, asyncio.Task) else asyncio.create_task(each.wait()): each for each in waits}
    try:
        await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task, each in tasks.items():
            if task is not each:
                task.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    """End a bot that goes on."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task}, timeout=5)


async def _cancel_the_rest() -> None:
    """
    Cancel what a bot has left behind.

    asyncio's own way to do so at the end waits for ever for a pipecat runner, which takes a first cancellation as
    the wish to end in its own time, with tasks that are cancelled as well.
    """
    for _ in range(3):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=1)


def _error_of(task: asyncio.Task[None]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


def _given_up(bot: LoadedBot, error: BaseException | None) -> BotError:
    if error is not None:
        return BotError(
            f"{bot.name} failed at once, {STARTS} times in a row: {type(error).__name__}: {str(error)[:200]}",
            hint="the log has its traceback",
        )
    return BotError(
        f"{bot.name} returned at once, {STARTS} times in a row, without a client",
        hint="let it run a pipeline with runner_args.transport until the client has left",
    )


@contextmanager
def _signals(stop: Stop) -> Iterator[list[int]]:
    """Ask `stop` at SIGINT and SIGTERM, and list what came; bots that would take the signals over do not get them."""
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def ask(number: int, _: FrameType | None) -> None:
        received.append(number)
        loop.call_soon_threadsafe(stop.ask)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    add, own_loop = loop.add_signal_handler, cast(Any, loop)

    def add_other(number: int, callback: Callable[..., Any], *args: Any) -> None:
        if number not in before:
            add(number, callback, *args)

    # pipecat's runner takes SIGINT by default, and would end the pipeline only.
    own_loop.add_signal_handler = add_other
    try:
        yield received
    finally:
        own_loop.add_signal_handler = add
        for number, handler in before.items():
            signal.signal(number, handler)
