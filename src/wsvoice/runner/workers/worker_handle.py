"""One worker, as the front knows it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loguru import logger

from wsvoice.call import Call
from wsvoice.errors import ServerError
from wsvoice.runner.limits import Refusal
from wsvoice.runner.workers import messages
from wsvoice.runner.workers.channel import Channel, NonsenseError, make_pair
from wsvoice.runner.workers.remote_session import RemoteSession

#: Without a heartbeat for so many seconds, something blocks its event loop.
LATE_S = 1.0
#: How long after the end of its channel a worker may be there, until it is killed: one that has nothing left to do, and
#: one that has.
LEAVING_EXIT_S, LOST_EXIT_S = 3.0, 0.2

State = Literal["loading", "serving", "leaving"]


@dataclass(frozen=True, slots=True)
class Given:
    """
    A session that a worker was given, and whom it concerns.

    Attributes:
        on_call: Called once it is known whose call it is, with that call; returns why it is refused.
        on_client: Called once a plain client's session begins.
        on_closed: Called once its WebSocket is closed.
    """

    session: RemoteSession
    on_closed: Callable[[], None]
    on_call: Callable[[Call], Awaitable[Refusal | None]] | None = None
    on_client: Callable[[RemoteSession], object] = lambda session: None


class Worker:
    """
    A worker, as the front knows it.

    Args:
        on_gone: Called once its process has ended.
        on_files: Called when it has read other files of the project.
        on_refused: Called with the kind of each WebSocket that it has turned away.

    Attributes:
        number: Which one it is, from 1 on.
        pid: Its process; 0 until that is known.
        state: ``loading`` the bot, ``serving``, or ``leaving`` (it is given no more calls).
        loaded: What it has loaded.
        files: The project's files that it has read.
        sessions: Its sessions by their keys.
        late_s: How late its event loop is.
        is_reachable: Whether its end of the channel is open.
    """

    def __init__(
        self,
        number: int,
        *,
        on_gone: Callable[[Worker], None],
        on_files: Callable[[], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self.number = number
        self.pid = 0
        self.state: State = "loading"
        self.loaded: asyncio.Future[messages.Loaded] = asyncio.get_running_loop().create_future()
        # Whoever waits for it is told; nobody may.
        self.loaded.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.files: frozenset[Path] = frozenset()
        self.sessions: dict[int, Given] = {}
        self.late_s = 0.0
        self.is_too_late = False
        self.is_reachable = True
        self._is_unwanted = False
        self.started_at = self.heard_at = time.monotonic()
        self.exit_code: int | None = None
        self.gone = asyncio.Event()
        self._on_gone, self._on_files, self._on_refused = on_gone, on_files, on_refused
        self._tasks: set[asyncio.Task[None]] = set()
        end, self.end_for_worker = make_pair()
        self._channel = Channel(end, on_message=self._take, on_end=self._note_end)

    @property
    def silent_s(self) -> float:
        """For how long nothing was heard of it, in seconds; beyond :data:`LATE_S` something blocks its event loop."""
        return time.monotonic() - self.heard_at

    @property
    def lag_s(self) -> float:
        """How late its event loop is, in seconds; if it is blocked, for how long."""
        silent_s = self.silent_s
        return max(self.late_s, silent_s if silent_s > LATE_S else 0.0)

    def tell(self, message: Any, descriptor: int | None = None) -> None:
        """Send it a message."""
        self._channel.send(message, descriptor)

    def leave(self) -> None:
        """Give it no more sessions; it exits with its last one."""
        if self.state in ("loading", "serving"):
            self.state = "leaving"
            self.tell(messages.Leave())

    def kill(self) -> None:
        """End it, with its sessions."""
        self._is_unwanted = True
        if self.pid and not self.is_gone:
            self._kill()

    def _kill(self) -> None:
        # A bot may have taken another user's rights; and a number may be another process's by now.
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, signal.SIGKILL)

    def note_forked(self, pid: int) -> None:
        """Note its process, which is there now; nobody may want it any more."""
        self.pid = pid
        if self._is_unwanted:
            self._kill()

    @property
    def is_gone(self) -> bool:
        """Whether its process has ended."""
        return self.gone.is_set()

    def look(self) -> None:
        """Note that its process is gone, if it is: its children may hold the channel open, and its parent be gone."""
        if not self.pid or self.is_gone:
            return
        try:
            # Ours are those that have outlived their template, where this is the first process of a container.
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.note_gone(os.waitstatus_to_exitcode(status))
        except ChildProcessError:
            if not _is_there(self.pid):
                self.note_gone()

    def note_gone(self, exit_code: int | None = None) -> None:
        """Note that its process has ended; negative exit codes are signals, ``None`` is unknown."""
        if self.is_gone:
            return
        self.gone.set()
        self.exit_code = exit_code
        self._channel.close()
        self.end_for_worker.close()
        if not self.loaded.done():
            self.loaded.set_exception(
                ServerError(f"worker {self.number} {self.how_it_ended()} while it loaded the bot")
            )
        self._on_gone(self)

    def how_it_ended(self) -> str:
        """Say how its process ended."""
        code = self.exit_code
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return "ended" if code is None else f"exited with code {code}"

    def _note_end(self) -> None:
        self.is_reachable = False
        # The template says a moment later how it ended. What a bot leaves behind may hold it up; and a bot may have
        # closed the channel itself, whose calls are lost then.
        has_nothing_to_do = self.state == "leaving" and not self.sessions
        delay_s = LEAVING_EXIT_S if has_nothing_to_do else LOST_EXIT_S
        asyncio.get_running_loop().call_later(delay_s, self._give_up)

    def _give_up(self) -> None:
        self.kill()
        self.note_gone()

    def _take(self, message: Any, descriptor: int | None) -> None:
        if descriptor is not None:
            # Workers send none; a bot may.
            os.close(descriptor)
        self.heard_at = time.monotonic()
        match message:
            case messages.Loaded():
                self.files = message.files
                if self.state == "loading":
                    self.state = "serving"
                if not self.loaded.done():
                    self.loaded.set_result(message)
            case messages.Failed():
                if not self.loaded.done():
                    self.loaded.set_exception(message.error())
            case messages.Heartbeat():
                self.late_s, self.is_too_late = message.late_s, message.is_too_late
                for key, figures in message.figures.items():
                    if (given := self.sessions.get(key)) is not None:
                        given.session.last_figures = figures
            case messages.FilesChanged():
                self.files = message.files
                self._on_files()
            case messages.Refused():
                self._on_refused(message.kind)
            case messages.FromSession():
                if (given := self.sessions.get(message.key)) is not None:
                    self._take_from_session(message, given)
            case _:
                raise NonsenseError

    def _take_from_session(self, message: Any, given: Given) -> None:
        match message:
            case messages.CallStarted():
                given.session.note_call(message.call)
                task = asyncio.get_running_loop().create_task(self._take_call(message, given))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case messages.ClientStarted():
                given.on_client(given.session)
            case messages.SessionClosed():
                given.session.is_over = True
                given.on_closed()
            case messages.SessionEnded():
                given.session.note_end(message.record, has_left=message.has_left)

    async def _take_call(self, message: messages.CallStarted, given: Given) -> None:
        try:
            refusal = await given.on_call(message.call) if given.on_call is not None else None
        except Exception as error:  # noqa: BLE001 - the call must not wait for ever, whatever is wrong with it
            logger.opt(exception=error).error("a call cannot be begun: {}", type(error).__name__)
            refusal = Refusal("lag", "the server has failed to begin it")
        self.tell(messages.CallTaken(message.key, refusal))


def _is_there(pid: int) -> bool:
    """Whether there is a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It has another user's rights.
        return True
    return True
