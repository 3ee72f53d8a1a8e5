"""
The bot's task beside its accepted WebSocket, for a call or a plain client, until both have ended.

Whatever happens first decides how it ended: the bot returns, raises or asks for the end; the caller leaves or no longer
reads; the server stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from wsvoice.call import Call, Cause, Direction
from wsvoice.isolation import IsolatedBot, current_bot, describe_failure, is_exit
from wsvoice.runner.diagnosis import Diagnosis, diagnosing, location_of

if TYPE_CHECKING:
    from loguru import Logger

    from wsvoice.config import RunConfig
    from wsvoice.providers.base import CallUpdate
    from wsvoice.runner.bounded_socket import BoundedSocket
    from wsvoice.runner.figures import CallFigures

Bot = Callable[[Any], Awaitable[Any]]

#: How long a bot that ended its pipeline may take to raise its error.
FAILURE_GRACE_S = 0.1
#: How long a cancelled bot may take to clean up.
CLEANUP_TIMEOUT_S = 5.0
#: How long each of these waits may take once the process must end at once.
HURRIED_TIMEOUT_S = 0.25

#: WebSocket close codes, https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
NORMAL = 1000
GOING_AWAY = 1001
POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012


@dataclass(kw_only=True)
class Record:
    """
    What happened in one session; times in seconds.

    Attributes:
        started_at: Unix time of the accepted WebSocket.
        duration_s: From then to the end.
        ended_by: ``bot``, ``caller``, ``error`` or ``server``.
        reason: Why it ended.
        is_refused: Whether the other end was turned away, whatever the bot did.
        is_lost: Whether it is gone without having hung up: its connection broke, or its process ended.
        bytes_in, bytes_out: The audio of a call as its stream carries it; of a client all messages.
        underruns: How often the bot's audio broke off because it was late.
        faults: How often each kind of bad message came.
        causes: What went wrong meanwhile, whether or not it ended the session.
    """

    #: What the other end is called in the log.
    peer: ClassVar[str] = "caller"

    started_at: float = field(default_factory=time.time)
    duration_s: float = 0.0
    ended_by: str = "server"
    reason: str = ""
    is_refused: bool = False
    is_lost: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    underruns: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    causes: list[Cause] = field(default_factory=list)

    @property
    def provider(self) -> str:
        """Whose session it was: a provider's name, or a transport's."""
        raise NotImplementedError

    @property
    def direction(self) -> Direction:
        """Who called whom."""
        return "inbound"

    @property
    def outcome(self) -> str:
        """How it ended, in a word: ``refused``, ``lost``, or else as :attr:`ended_by`."""
        return "refused" if self.is_refused else "lost" if self.is_lost else self.ended_by

    def summary(self) -> str:
        """Return the session's last line in the log."""
        who = {"error": "an error", "caller": f"the {self.peer}"}.get(self.ended_by, f"the {self.ended_by}")
        parts = [f"ended by {who} after {self.duration_s:.1f} s: {self.reason}", *self._details()]
        if self.faults:
            counts = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
            parts.append(f"ignored {counts}")
        return "; ".join(parts)

    def _details(self) -> Iterable[str]:
        raise NotImplementedError


class RunningSession(Protocol):
    """
    A session as the switchboard knows it, wherever it runs.

    Attributes:
        session_id: Of the call, or made for the client.
        call: The call, as far as it is known; ``None`` of a plain client.
        is_over: Whether its WebSocket is closed, so that its place is free; its bot may still be working.
    """

    session_id: str

    @property
    def call(self) -> Call | None: ...

    @property
    def is_over(self) -> bool: ...

    def figures(self) -> CallFigures:
        """Return how it stands; may be called from any thread."""

    def end(self, reason: str, *, at_once: bool = False, as_usual: bool = False) -> None:
        """Ask for the end: :meth:`BotSession.end`."""

    def note_update(self, update: CallUpdate) -> None:
        """Note what the provider reports of the call."""

    def note_cause(self, cause: Cause) -> None:
        """Note what may explain that it goes wrong."""


class BotSession:
    """
    The bot running for one call or one plain client, with everything that may end it.

    Attributes:
        record: What happened; complete once the session has ended.
        diagnosis: Collects what goes wrong.
        refused: The other end is turned away, whatever the bot did.
        began_at: When the session was made, on the loop's clock.
        ended_at: When the WebSocket was closed, on the loop's clock.

    Args:
        session_id: Of the call, or made for the client.
        on_closed: Called once the WebSocket is closed, while the bot may still be busy.
    """

    record: Record
    call: Call | None = None

    def __init__(
        self,
        socket: BoundedSocket,
        bot: Bot,
        config: RunConfig,
        *,
        session_id: str,
        on_closed: Callable[[], None],
        logger: Logger,
    ) -> None:
        self.socket = socket
        self.config = config
        self.session_id = session_id
        self.logger = logger
        self.refused = False
        self._loop = asyncio.get_running_loop()
        self.began_at = self._loop.time()
        self.ended_at: float | None = None
        self._bot = bot
        self._on_closed = on_closed
        self._end_asked = asyncio.Event()
        self._end_reason = ""
        self._ends_as_usual = False
        self._hurry = asyncio.Event()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self.diagnosis = Diagnosis(session_id, config.causes)

    async def run(self) -> Record:
        """Run the session to its end, and return what happened."""
        raise NotImplementedError

    def figures(self) -> CallFigures:
        """Return how it stands; may be called from any thread."""
        raise NotImplementedError

    async def _make_arguments(self) -> Any:
        """Build the bot's argument."""
        raise NotImplementedError

    async def _play_out(self) -> None:
        """Wait until the other end has heard the last audio."""

    async def _close(self) -> None:
        """Do what is due once the WebSocket is closed."""
        self._on_closed()

    @property
    def is_over(self) -> bool:
        """Whether the WebSocket is closed; the bot may still be working."""
        return self.ended_at is not None

    @property
    def close_code(self) -> int:
        """The code to close the WebSocket with."""
        if self.refused:
            return POLICY_VIOLATION
        if self.record.ended_by == "server" and self._ends_as_usual:
            return self.socket.requested_code
        return {"error": INTERNAL_ERROR, "server": GOING_AWAY}.get(self.record.ended_by, self.socket.requested_code)

    def end(self, reason: str, *, at_once: bool = False, as_usual: bool = False) -> None:
        """
        Ask for the end, on the server's behalf.

        Args:
            reason: Why.
            at_once: Wait neither for the last audio nor for the bot.
            as_usual: Close the WebSocket as when the bot ends the call, and not as a server that goes away.
        """
        if not self._end_reason:
            self._end_reason, self._ends_as_usual = reason, as_usual
        self._end_asked.set()
        if at_once:
            self._hurry.set()

    def note_update(self, update: CallUpdate) -> None:
        """Note what the provider reports of the call; a plain client has none."""

    def note_cause(self, cause: Cause) -> None:
        """Note what may explain that it goes wrong."""
        self.diagnosis.note(cause)

    def note_end(self, ended_by: str, reason: str) -> None:
        """Note how it ended."""
        self.record.ended_by, self.record.reason = ended_by, reason

    def log_end(self, duration_s: float) -> None:
        """Complete the record, and log it."""
        record = self.record
        socket = self.socket
        record.duration_s = duration_s
        record.is_refused, record.is_lost = self.refused, record.ended_by == "caller" and socket.is_lost
        record.bytes_in, record.bytes_out, record.underruns = socket.bytes_in, socket.bytes_out, socket.underruns
        record.faults, record.causes = dict(socket.faults), self.diagnosis.causes
        self.logger.log("ERROR" if record.ended_by == "error" else "INFO", record.summary())

    async def run_bot(self) -> None:
        """Run the bot until it is over, and close the WebSocket."""
        socket, name = self.socket, self.session_id
        # The bot's handlers run in the reader's task as well.
        before = current_bot.set(IsolatedBot(name, self._note_failure))
        with diagnosing(self.diagnosis), self.logger.contextualize(call=name):
            reader = asyncio.create_task(socket.read_loop(), name=f"wsvoice-reader-{name}")
            bot = asyncio.create_task(self._call_bot(), name=f"wsvoice-bot-{name}")
        watchdog = asyncio.create_task(self._watch(), name=f"wsvoice-watch-{name}")
        events = (socket.gone, socket.close_requested, self._end_asked, self._failed)
        ends = {asyncio.create_task(event.wait()) for event in events}
        try:
            await asyncio.wait({bot, reader, *ends}, return_when=asyncio.FIRST_COMPLETED)
            self._determine_end(bot, reader)
            await self._run_unless_hurried(self._play_out(), 0.0)
            if not bot.done() and not socket.gone.is_set():
                # A bot that fails ends its pipeline on the way out; its error comes a moment later.
                await asyncio.wait({bot}, timeout=FAILURE_GRACE_S)
            self._determine_end(bot, reader)
            await socket.close_connection(self.close_code)
            # For the transport this is the same as a real hang-up.
            socket.note_gone(self.record.reason)
            self.ended_at = asyncio.get_running_loop().time()
            await self._run_unless_hurried(self._close(), HURRIED_TIMEOUT_S)
            await self._wait_for_bot(bot)
        finally:
            current_bot.reset(before)
            tasks = {reader, watchdog, bot, *ends}
            for task in tasks:
                task.cancel()
            await self._wait(tasks, CLEANUP_TIMEOUT_S)
            stubborn = {task for task in tasks if not task.done()}
            if stubborn:
                self.logger.error("the bot ignores its cancellation; it is abandoned, and its place is free")
            for task in tasks - stubborn:
                # Retrieved, so that asyncio does not report an error that was logged already.
                task.cancelled() or task.exception()

    def _determine_end(self, bot: asyncio.Task[None], reader: asyncio.Task[None]) -> None:
        error, socket = self._failure, self.socket
        if error is not None and not socket.gone.is_set():
            self.note_end("error", f"the bot {_described(error)}")
        elif socket.gone.is_set():
            # Our own server closes with 1012 when it stops waiting.
            stopped = socket.close_code == SERVICE_RESTART
            self.note_end("server" if stopped else "caller", socket.gone_reason)
        elif socket.close_requested.is_set():
            self.note_end("bot", "the bot ended the call")
        elif self._end_asked.is_set():
            self.note_end("server", self._end_reason)
        elif bot.done():
            self.note_end("bot", "the bot returned")
        elif reader.done() and not reader.cancelled():
            error = reader.exception()
            self.logger.opt(exception=error).error("the call's audio could not be handed to the bot")
            self.note_end("error", f"the call's reader raised {type(error).__name__}")

    async def _call_bot(self) -> None:
        try:
            await self._bot(await self._make_arguments())
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - not even an exit of the bot's may end the server
            self._note_failure(error)

    def _note_failure(self, error: BaseException) -> None:
        """Log and keep what the bot raised, or one of its tasks that tried to end the process."""
        self.logger.opt(exception=error).error("the bot {}", describe_failure(error))
        self.diagnosis.note_exception(error)
        self._failure = self._failure or error
        self._failed.set()

    async def _wait_for_bot(self, bot: asyncio.Task[None]) -> None:
        """Give the bot time for its work after the call, then cancel it."""
        if is_exit(self._failure):
            # It wanted to exit, so there is nothing to wait for.
            self._hurry.set()
        timeout_s = self.config.bot_exit_timeout_s
        await self._wait({bot}, timeout_s)
        if not bot.done():
            if not self._hurry.is_set():
                self.logger.warning("the bot went on for {:g} s after its call had ended; it is cancelled", timeout_s)
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
        timeout_s = self.config.send_timeout_s
        while True:
            await asyncio.sleep(min(1.0, timeout_s / 4))
            since = self.socket.send_blocked_since
            if since is not None and loop.time() - since > timeout_s:
                self.socket.abandon(f"the caller did not read for {timeout_s:g} s")
                return


def _described(error: BaseException) -> str:
    """Return how the bot failed, and where in its code."""
    file, line = location_of(error)
    return describe_failure(error) + (f" ({Path(file).name}:{line})" if file else "")
