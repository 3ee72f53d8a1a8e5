"""
The bot at work beside an accepted WebSocket: from its start until both have ended.

Whatever happens first decides how it ended: the bot returns, raises or asks for the end; the caller goes; the server
wants to stop; the caller no longer reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsvoice.isolation import Guest, current_guest, is_exit, raised
from wsvoice.runner.diagnosis import Diagnosis, diagnosing, place_of

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig
    from wsvoice.runner.bounded_socket import AcceptedSocket

Bot = Callable[[Any], Awaitable[Any]]

#: How long a bot that has ended its pipeline may take to say that it failed.
FAILURE_GRACE_S = 0.1
#: How long a cancelled bot may take to clean up.
CLEANUP_TIMEOUT_S = 5.0
#: How long each of the waits above may take once the process must end.
HASTE_S = 0.25

#: WebSocket close codes, https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012


class BotRun:
    """
    The bot's task and the reader's, with everything that may end them.

    Attributes:
        ended_by: ``bot``, ``caller``, ``error`` or ``server``; valid once it has ended.
        because: Why it ended, in words.
        refused: The other end may not go on, whatever the bot did.

    Args:
        socket: The accepted WebSocket.
        bot: The user's coroutine function.
        config: The server's settings.
    """

    def __init__(self, socket: AcceptedSocket, bot: Bot, config: RunConfig) -> None:
        self.ended_by = "server"
        self.because = ""
        self.refused = False
        #: When the WebSocket was closed, on the loop's clock.
        self.ended_at: float | None = None
        self._socket = socket
        self._bot = bot
        self._config = config
        self._end_asked = asyncio.Event()
        self._end_reason = ""
        self._haste = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    @property
    def close_code(self) -> int:
        """What to close the WebSocket with."""
        if self.refused:
            return POLICY_VIOLATION
        return {"error": INTERNAL_ERROR, "server": GOING_AWAY}.get(self.ended_by, self._socket.requested_code)

    def end(self, because: str, *, at_once: bool = False) -> None:
        """
        Ask for the end, as the server's wish.

        Args:
            because: Why, in words.
            at_once: Neither the last words nor the bot are waited for.
        """
        self._end_reason = self._end_reason or because
        self._end_asked.set()
        if at_once:
            self._haste.set()

    def note_end(self, ended_by: str, because: str) -> None:
        """Say how it ended."""
        self.ended_by, self.because = ended_by, because

    async def run(
        self,
        name: str,
        make_arguments: Callable[[], Awaitable[Any]],
        *,
        diagnosis: Diagnosis,
        logger: Logger,
        play_out: Callable[[], Awaitable[Any]] | None = None,
        on_closed: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        """
        Run the bot until it is over, and close the WebSocket.

        Args:
            name: What the tasks are called after.
            make_arguments: Builds what the bot is called with.
            diagnosis: Takes what goes wrong meanwhile.
            logger: Where it is told.
            play_out: Waits until the caller has heard the last words.
            on_closed: What is to be done once the WebSocket is closed, while the bot may still be busy.
        """
        socket = self._socket
        # The bot's handlers run in the reader's task as well.
        before = current_guest.set(Guest(name, lambda error: self._note_failure(error, diagnosis, logger)))
        with diagnosing(diagnosis):
            pump = asyncio.create_task(socket.pump(), name=f"wsvoice-pump-{name}")
            bot = asyncio.create_task(self._run_bot(make_arguments, diagnosis, logger), name=f"wsvoice-bot-{name}")
        watchdog = asyncio.create_task(self._watch(), name=f"wsvoice-watch-{name}")
        events = (socket.gone, socket.close_requested, self._end_asked, self._failed)
        ends = {asyncio.create_task(event.wait()) for event in events}
        try:
            await asyncio.wait({bot, pump, *ends}, return_when=asyncio.FIRST_COMPLETED)
            self._judge_end(bot, pump, logger)
            if play_out is not None:
                await self._unless_in_haste(play_out(), 0.0)
            if not bot.done() and not socket.gone.is_set():
                # A bot that fails ends its pipeline on the way out; its error comes a moment later.
                await asyncio.wait({bot}, timeout=FAILURE_GRACE_S)
            self._judge_end(bot, pump, logger)
            await socket.shut(self.close_code)
            # The transport learns that the caller is gone as it would from a real hang-up.
            socket.note_gone(self.because)
            self.ended_at = asyncio.get_running_loop().time()
            if on_closed is not None:
                await self._unless_in_haste(on_closed(), HASTE_S)
            await self._let_finish(bot, logger)
        finally:
            current_guest.reset(before)
            tasks = {pump, watchdog, bot, *ends}
            for task in tasks:
                task.cancel()
            await self._wait(tasks, CLEANUP_TIMEOUT_S)
            stubborn = {task for task in tasks if not task.done()}
            if stubborn:
                logger.error("the bot ignores its cancellation; it is abandoned, and its place is free")
            for task in tasks - stubborn:
                # Looked at, so that asyncio does not complain of an error that was told already.
                task.cancelled() or task.exception()

    def _judge_end(self, bot: asyncio.Task[None], pump: asyncio.Task[None], logger: Logger) -> None:
        error = self._failure
        if error is not None and not self._socket.gone.is_set():
            self.note_end("error", f"the bot {_described(error)}")
        elif self._socket.gone.is_set():
            # Our own server says 1012 to those whom it no longer waits for.
            stopped = self._socket.close_code == SERVICE_RESTART
            self.note_end("server" if stopped else "caller", self._socket.gone_because)
        elif self._socket.close_requested.is_set():
            self.note_end("bot", "the bot ended the call")
        elif self._end_asked.is_set():
            self.note_end("server", self._end_reason)
        elif bot.done():
            self.note_end("bot", "the bot returned")
        elif pump.done() and not pump.cancelled():
            error = pump.exception()
            logger.opt(exception=error).error("the call's audio could not be handed to the bot")
            self.note_end("error", f"the call's reader raised {type(error).__name__}")

    async def _run_bot(
        self, make_arguments: Callable[[], Awaitable[Any]], diagnosis: Diagnosis, logger: Logger
    ) -> None:
        try:
            await self._bot(await make_arguments())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - not even an exit of the bot's may end the server
            self._note_failure(error, diagnosis, logger)

    def _note_failure(self, error: BaseException, diagnosis: Diagnosis, logger: Logger) -> None:
        """Take what the bot raised, or one of its tasks that meant to end the process."""
        logger.opt(exception=error).error("the bot {}", raised(error))
        diagnosis.note_exception(error)
        self._failure = self._failure or error
        self._failed.set()

    async def _let_finish(self, bot: asyncio.Task[None], logger: Logger) -> None:
        """Give the bot time for what it does after a call, then cancel it."""
        if is_exit(self._failure):
            # A program that exits does not go on.
            self._haste.set()
        timeout_s = self._config.bot_exit_timeout_s
        await self._wait({bot}, timeout_s)
        if not bot.done():
            if not self._haste.is_set():
                logger.warning("the bot went on for {:g} s after its call had ended; it is cancelled", timeout_s)
            bot.cancel()
            await self._wait({bot}, CLEANUP_TIMEOUT_S)

    async def _wait(
        self, tasks: Collection[asyncio.Future[Any]], timeout_s: float | None, hasty_s: float = HASTE_S
    ) -> None:
        """Wait until all of `tasks` are done or the time is up, which is sooner in haste."""
        done = asyncio.create_task(asyncio.wait(tasks, timeout=timeout_s))
        haste = asyncio.create_task(self._haste.wait())
        try:
            await asyncio.wait({done, haste}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                await asyncio.wait({done}, timeout=hasty_s)
        finally:
            done.cancel()
            haste.cancel()

    async def _unless_in_haste(self, work: Awaitable[Any], hasty_s: float) -> None:
        """Do some work to its end; in haste it is given up soon."""
        task = asyncio.ensure_future(work)
        try:
            await self._wait({task}, None, hasty_s)
        finally:
            task.cancel()
        if task.done() and not task.cancelled():
            task.result()

    async def _watch(self) -> None:
        """Notice a caller that does not read."""
        loop = asyncio.get_running_loop()
        timeout_s = self._config.send_timeout_s
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 4))
            since = self._socket.send_blocked_since
            if since is not None and loop.time() - since > timeout_s:
                self._socket.abandon(f"the caller did not read for {timeout_s:g} s")
                return


def _described(error: BaseException) -> str:
    """Return what the bot did, and where in its code."""
    file, line = place_of(error)
    return raised(error) + (f" ({Path(file).name}:{line})" if file else "")
