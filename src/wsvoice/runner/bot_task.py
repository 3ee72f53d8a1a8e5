"""
The task of a bot beside its accepted WebSocket, until both have ended.

Whatever happens first decides how it ended: the bot returns, raises or asks for the end; the caller leaves or no longer
reads; the server stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsvoice.isolation import IsolatedBot, current_bot, describe_failure, is_exit
from wsvoice.runner.diagnosis import Diagnosis, diagnosing, location_of

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig
    from wsvoice.runner.bounded_socket import BoundedSocket

Bot = Callable[[Any], Awaitable[Any]]

#: How long a bot that ended its pipeline may take to raise its error.
FAILURE_GRACE_S = 0.1
#: How long a cancelled bot may take to clean up.
CLEANUP_TIMEOUT_S = 5.0
#: How long each of these waits may take once the process must end at once.
HURRIED_TIMEOUT_S = 0.25

#: WebSocket close codes, https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012


class BotTask:
    """
    The task of the bot and that of the reader, with everything that may end them.

    Attributes:
        ended_by: ``bot``, ``caller``, ``error`` or ``server``; valid once it has ended.
        reason: Why it ended.
        refused: The other end is turned away, whatever the bot did.

    Args:
        socket: The accepted WebSocket.
        bot: The user's coroutine function.
        config: The server's settings.
    """

    def __init__(self, socket: BoundedSocket, bot: Bot, config: RunConfig) -> None:
        self.ended_by = "server"
        self.reason = ""
        self.refused = False
        #: When the WebSocket was closed, on the loop's clock.
        self.ended_at: float | None = None
        self._socket = socket
        self._bot = bot
        self._config = config
        self._end_asked = asyncio.Event()
        self._end_reason = ""
        self._hurry = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    @property
    def close_code(self) -> int:
        """The code to close the WebSocket with."""
        if self.refused:
            return POLICY_VIOLATION
        return {"error": INTERNAL_ERROR, "server": GOING_AWAY}.get(self.ended_by, self._socket.requested_code)

    def end(self, reason: str, *, at_once: bool = False) -> None:
        """
        Ask for the end, on the server's behalf.

        Args:
            reason: Why.
            at_once: Wait neither for the last audio nor for the bot.
        """
        self._end_reason = self._end_reason or reason
        self._end_asked.set()
        if at_once:
            self._hurry.set()

    def note_end(self, ended_by: str, reason: str) -> None:
        """Note how it ended."""
        self.ended_by, self.reason = ended_by, reason

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
            name: The call's id, for the names of the tasks.
            make_arguments: Builds the bot's argument.
            diagnosis: Collects what goes wrong.
            logger: The call's logger.
            play_out: Waits until the caller has heard the last audio.
            on_closed: Called once the WebSocket is closed, while the bot may still be busy.
        """
        socket = self._socket
        # The bot's handlers run in the reader's task as well.
        before = current_bot.set(IsolatedBot(name, lambda error: self._note_failure(error, diagnosis, logger)))
        with diagnosing(diagnosis):
            reader = asyncio.create_task(socket.read_loop(), name=f"wsvoice-reader-{name}")
            bot = asyncio.create_task(self._run_bot(make_arguments, diagnosis, logger), name=f"wsvoice-bot-{name}")
        watchdog = asyncio.create_task(self._watch(), name=f"wsvoice-watch-{name}")
        events = (socket.gone, socket.close_requested, self._end_asked, self._failed)
        ends = {asyncio.create_task(event.wait()) for event in events}
        try:
            await asyncio.wait({bot, reader, *ends}, return_when=asyncio.FIRST_COMPLETED)
            self._determine_end(bot, reader, logger)
            if play_out is not None:
                await self._run_unless_hurried(play_out(), 0.0)
            if not bot.done() and not socket.gone.is_set():
                # A bot that fails ends its pipeline on the way out; its error comes a moment later.
                await asyncio.wait({bot}, timeout=FAILURE_GRACE_S)
            self._determine_end(bot, reader, logger)
            await socket.close_connection(self.close_code)
            # For the transport this is the same as a real hang-up.
            socket.note_gone(self.reason)
            self.ended_at = asyncio.get_running_loop().time()
            if on_closed is not None:
                await self._run_unless_hurried(on_closed(), HURRIED_TIMEOUT_S)
            await self._wait_for_bot(bot, logger)
        finally:
            current_bot.reset(before)
            tasks = {reader, watchdog, bot, *ends}
            for task in tasks:
                task.cancel()
            await self._wait(tasks, CLEANUP_TIMEOUT_S)
            stubborn = {task for task in tasks if not task.done()}
            if stubborn:
                logger.error("the bot ignores its cancellation; it is abandoned, and its place is free")
            for task in tasks - stubborn:
                # Retrieved, so that asyncio does not report an error that was logged already.
                task.cancelled() or task.exception()

    def _determine_end(self, bot: asyncio.Task[None], reader: asyncio.Task[None], logger: Logger) -> None:
        error = self._failure
        if error is not None and not self._socket.gone.is_set():
            self.note_end("error", f"the bot {_described(error)}")
        elif self._socket.gone.is_set():
            # Our own server closes with 1012 when it stops waiting.
            stopped = self._socket.close_code == SERVICE_RESTART
            self.note_end("server" if stopped else "caller", self._socket.gone_reason)
        elif self._socket.close_requested.is_set():
            self.note_end("bot", "the bot ended the call")
        elif self._end_asked.is_set():
            self.note_end("server", self._end_reason)
        elif bot.done():
            self.note_end("bot", "the bot returned")
        elif reader.done() and not reader.cancelled():
            error = reader.exception()
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
        """Log and keep what the bot raised, or one of its tasks that tried to end the process."""
        logger.opt(exception=error).error("the bot {}", describe_failure(error))
        diagnosis.note_exception(error)
        self._failure = self._failure or error
        self._failed.set()

    async def _wait_for_bot(self, bot: asyncio.Task[None], logger: Logger) -> None:
        """Give the bot time for its work after the call, then cancel it."""
        if is_exit(self._failure):
            # It wanted to exit, so there is nothing to wait for.
            self._hurry.set()
        timeout_s = self._config.bot_exit_timeout_s
        await self._wait({bot}, timeout_s)
        if not bot.done():
            if not self._hurry.is_set():
                logger.warning("the bot went on for {:g} s after its call had ended; it is cancelled", timeout_s)
            bot.cancel()
            await self._wait({bot}, CLEANUP_TIMEOUT_S)

    async def _wait(
        self, tasks: Collection[asyncio.Future[Any]], timeout_s: float | None, hurried_s: float = HURRIED_TIMEOUT_S
    ) -> None:
        """Wait until all of `tasks` are done or the time is up; no longer than `hurried_s` once there is a hurry."""
        done = asyncio.create_task(asyncio.wait(tasks, timeout=timeout_s))
        hurry = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait({done, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                await asyncio.wait({done}, timeout=hurried_s)
        finally:
            done.cancel()
            hurry.cancel()

    async def _run_unless_hurried(self, work: Awaitable[Any], hurried_s: float) -> None:
        """Await `work`; once there is a hurry, cancel it after `hurried_s`."""
        task = asyncio.ensure_future(work)
        try:
            await self._wait({task}, None, hurried_s)
        finally:
            task.cancel()
        if task.done() and not task.cancelled():
            task.result()

    async def _watch(self) -> None:
        """Give up a caller that does not read."""
        loop = asyncio.get_running_loop()
        timeout_s = self._config.send_timeout_s
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 4))
            since = self._socket.send_blocked_since
            if since is not None and loop.time() - since > timeout_s:
                self._socket.abandon(f"the caller did not read for {timeout_s:g} s")
                return


def _described(error: BaseException) -> str:
    """Return how the bot failed, and where in its code."""
    file, line = location_of(error)
    return describe_failure(error) + (f" ({Path(file).name}:{line})" if file else "")
