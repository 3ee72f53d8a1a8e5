"""A session that runs in a worker, as the front knows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from wsvoice.call import Call, Cause
from wsvoice.runner.figures import CallFigures
from wsvoice.runner.workers import messages

if TYPE_CHECKING:
    from wsvoice.providers.base import CallUpdate
    from wsvoice.runner.bot_task import Record
    from wsvoice.runner.dialled_call import DialledCall

#: How long it may take until a change of a placed call is looked for again.
LOOK_AGAIN_S = 60.0


class RemoteSession:
    """
    A session in a worker.

    Attributes:
        key: Its number in messages.
        session_id: Of the call, or made for the client.
        call: The call, as far as it is known; ``None`` of a plain client.
        record: What happened in it; ``None`` before its end, and if it never began.
        has_left: Whether the bot has transferred the call, so that it goes on.
        is_over: Whether its WebSocket is closed; its bot may still be working.
        is_lost: Whether its worker ended before it did.
        last_figures: How it stood when its worker last told; ``None`` before that.
        tell: Sends a message to its worker.
        pid: Its worker's process.
    """

    def __init__(self, key: int, session_id: str, call: Call | None) -> None:
        self.key = key
        self.session_id = session_id
        self.call = call
        self.record: Record | None = None
        self.has_left = False
        self.is_over = self.is_lost = False
        self.last_figures: CallFigures | None = None
        self.tell: Callable[[Any], None] = lambda message: None
        self.pid = 0
        self._began_at = time.time()
        self._over = asyncio.Event()

    def figures(self) -> CallFigures:
        """Return how it stood at the last heartbeat of its worker; may be called from any thread."""
        if self.last_figures is not None:
            return replace(self.last_figures, age_s=time.time() - self._began_at)
        call = self.call or Call(provider="websocket", call_id=self.session_id)
        return CallFigures(
            id=self.session_id,
            kind="client" if self.call is None else "call",
            provider=call.provider,
            from_number=call.from_number,
            to_number=call.to_number,
            direction=call.direction,
            started_at=self._began_at,
            age_s=time.time() - self._began_at,
            pid=self.pid,
        )

    def end(self, reason: str, *, at_once: bool = False, as_usual: bool = False) -> None:
        """Ask for the end: :meth:`wsvoice.runner.bot_task.BotSession.end`."""
        self.tell(messages.EndSession(self.key, reason, at_once, as_usual))

    def note_update(self, update: CallUpdate) -> None:
        """Pass on what the provider reports of the call."""
        self.tell(messages.Reported(self.key, update))

    def note_cause(self, cause: Cause) -> None:
        """Do nothing: what goes wrong in the front does not disturb a session."""

    def note_call(self, call: Call) -> None:
        """Note whose call it is."""
        self.call, self.session_id = call, call.call_id

    def note_end(self, record: Record | None, *, has_left: bool = False, is_lost: bool = False) -> None:
        """Note its end."""
        if not self._over.is_set():
            self.record, self.has_left, self.is_lost = record, has_left, is_lost
            self._over.set()

    async def ended(self) -> None:
        """Wait for its end."""
        await self._over.wait()

    async def follow(self, dialled: DialledCall) -> None:
        """Pass on how the call that the server has placed stands, until the session has ended."""
        told: messages.DialledChanged | None = None
        while not self._over.is_set():
            changed = messages.DialledChanged(
                self.key, dialled.stage, dialled.answered_by, dialled.greeting_ended, dialled.unwanted
            )
            if changed != told:
                self.tell(changed)
                told = changed
            await dialled.changed(LOOK_AGAIN_S)
