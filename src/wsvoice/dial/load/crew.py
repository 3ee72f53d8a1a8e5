"""The processes of callers, as the run sees them."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from wsvoice.dial.load.channel import Channel
from wsvoice.dial.load.orders import Begin, Ended, HangUp, Heard, Job, Pulse, Read, Ready, Up
from wsvoice.errors import WsvoiceError

#: How many calls a worker is given before another one is started. A core plays about twice as many.
CALLS_PER_WORKER = 150
#: How much of a core a worker may use before its messages are late.
BUSY_SHARE = 0.7
_PROGRAM = (sys.executable, "-P", "-m", "wsvoice.dial.load.worker")
_END_S = 2.0


def free_cores(*, shares_machine: bool) -> int:
    """Return on how many cores callers may run: all that this process may use, but one for a server that is here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - 1 if shares_machine else cores)


class Member:
    """
    A worker process.

    Attributes:
        calls: The numbers of its calls that have not ended.
        pulses: What it said of how busy it is.
    """

    def __init__(self, process: asyncio.subprocess.Process, channel: Channel) -> None:
        self.process = process
        self.channel = channel
        self.calls: set[int] = set()
        self.pulses: list[Pulse] = []
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.heard: asyncio.Future[Heard] = loop.create_future()
        self.listener: asyncio.Task[None] | None = None


class Crew:
    """
    The workers of a run, while the context lasts.

    Args:
        job: What all calls have in common.
        size: How many workers there are.
        on_up: Called when a call's stream has started.
    """

    def __init__(self, job: Job, size: int, on_up: Callable[[Up], None]) -> None:
        self.members: list[Member] = []
        self._job = job
        self._size = size
        self._on_up = on_up
        self._ended: dict[int, asyncio.Future[Ended]] = {}

    async def __aenter__(self) -> Self:
        """Start the workers."""
        try:
            for _ in range(self._size):
                await self._start()
            for member in self.members:
                await member.ready
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        """End the workers."""
        for member in self.members:
            member.channel.close()
            if member.listener is not None:
                member.listener.cancel()
        for member in self.members:
            try:
                async with asyncio.timeout(_END_S):
                    await member.process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    member.process.kill()
                await member.process.wait()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *_PROGRAM,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                # So that Ctrl-C reaches the run only, which hangs up first.
                start_new_session=True,
            )
        member = Member(process, await Channel.over(ours))
        self.members.append(member)
        member.channel.send(self._job)
        member.listener = asyncio.create_task(self._listen(member))

    def begin(self, order: Begin) -> asyncio.Future[Ended]:
        """Have the worker that has fewest calls place one; the result says how it ended."""
        member = min(self.members, key=lambda each: len(each.calls))
        member.calls.add(order.number)
        ended = self._ended[order.number] = asyncio.get_running_loop().create_future()
        member.channel.send(order)
        return ended

    def hang_up(self, order: HangUp) -> None:
        """Hang up one call, or all."""
        for member in self.members:
            member.channel.send(order)

    async def read(self, window: tuple[float, float]) -> Heard:
        """
        Return what was heard in the calls since the last time.

        Raises:
            WsvoiceError: If a worker has died.
        """
        for member in self.members:
            member.channel.send(Read(window))
        heard = Heard({})
        for member in self.members:
            heard.hearings.update((await member.heard).hearings)
            member.heard = asyncio.get_running_loop().create_future()
        return heard

    async def _listen(self, member: Member) -> None:
        try:
            while True:
                told = await member.channel.receive()
                if isinstance(told, Ready):
                    member.ready.set_result(None)
                elif isinstance(told, Up):
                    self._on_up(told)
                elif isinstance(told, Ended):
                    member.calls.discard(told.number)
                    self._ended.pop(told.number).set_result(told)
                elif isinstance(told, Pulse):
                    member.pulses.append(told)
                elif isinstance(told, Heard):
                    member.heard.set_result(told)
        except (EOFError, OSError):
            assert member.process.stderr is not None
            said = (await member.process.stderr.read()).decode("utf-8", "replace").strip().splitlines()
            error = WsvoiceError(f"a process of callers has died: {said[-1] if said else 'it said nothing'}")
            waiting: list[asyncio.Future[Any]] = [
                member.ready,
                member.heard,
                *(self._ended[number] for number in member.calls),
            ]
            for future in waiting:
                if not future.done():
                    future.set_exception(error)
                    # Not everybody waits for each of them, and asyncio would say so.
                    future.exception()
