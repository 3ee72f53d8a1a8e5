"""Whether anybody is active on a connection: what the session timeout waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from wsvoice.audio import AUDIBLE_LEVEL, rms


class Activity:
    """
    Tells when nothing has happened for a while: no sound from either end, and no message.

    It measures energy, because both ends send silence for as long as they are connected.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time()
        self._resumed = asyncio.Event()

    def note(self) -> None:
        """Note a message or a key, now."""
        self._until = max(self._until, self._loop.time())
        self._resumed.set()

    def hear(self, pcm: bytes) -> None:
        """Note a piece of the client's audio, s16le."""
        if _is_sound(pcm):
            self.note()

    def play(self, pcm: bytes, sample_rate: int) -> None:
        """Note a piece of the bot's audio, s16le mono; it counts until it has been played."""
        if _is_sound(pcm):
            self.note()
            self._until += len(pcm) / 2 / sample_rate

    def cut(self) -> None:
        """Note that what was sent is not played any further."""
        self._until = min(self._until, self._loop.time())

    async def silence(self, timeout_s: float) -> None:
        """Wait until nothing has happened for `timeout_s`."""
        while (rest_s := self._until + timeout_s - self._loop.time()) > 0:  # noqa: ASYNC110 - the end moves
            await asyncio.sleep(rest_s)
        self._resumed.clear()

    async def resumed(self) -> None:
        """Wait until activity resumes after :meth:`silence`."""
        await self._resumed.wait()

    async def report_silences(self, timeout_s: float, report: Callable[[], Awaitable[object]]) -> None:
        """Call `report` after every silence of `timeout_s`, once, for ever."""
        while True:
            await self.silence(timeout_s)
            await report()
            await self.resumed()


def _is_sound(pcm: bytes) -> bool:
    return rms(pcm[: len(pcm) // 2 * 2]) > AUDIBLE_LEVEL
