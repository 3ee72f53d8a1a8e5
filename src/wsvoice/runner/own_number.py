"""
The phone number that rings at this server while it runs (``--number``).

All work for it is done in a thread with an event loop of its own: a bot may block the server's, and the number must be
put back all the same.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

from loguru import logger

from wsvoice.config import RunConfig, without_secrets
from wsvoice.errors import ApiError, ConfigError, NumberError, WsvoiceError
from wsvoice.phone.health import find_problem, is_wsvoice_at
from wsvoice.phone.numbers import PointedNumber, account_for_numbers, describe_restored, is_pointed_by_hand
from wsvoice.providers.account import Account, PhoneNumber, ServerAddresses

T = TypeVar("T")

#: How long the end of the process waits until the number is put back.
PUT_BACK_TIMEOUT_S = 15.0
#: How long is waited before that is tried again, and how long before a moved address is.
RETRY_S, MOVE_RETRY_S = 1.0, 10.0
#: How long the public address may take to answer.
ADDRESS_TIMEOUT_S = 5.0

#: How long what goes on may take to be given up.
WIND_UP_S = 0.5

_LOOK_S = 0.02


class Withdrawn(NumberError):
    """The server stops before its number has been pointed."""


class OwnNumber:
    """
    Points a number at this server, and back.

    In order: :meth:`find`, :meth:`ring_at`, :meth:`put_back` at the first signal, :meth:`close` in any case.

    Attributes:
        notes: What to know about it, in lines.
        steps: What the user has to do where the provider's API cannot point a number; else empty.

    Args:
        account: The account that has the number.
        number: In E.164.
        config: The server's settings.
    """

    def __init__(self, account: Account, number: str, config: RunConfig) -> None:
        if config.state_folder is None:
            raise ConfigError("a number needs a folder in which its settings are kept meanwhile")
        self.notes: list[str] = []
        self.steps: list[str] = []
        self._account = account
        self._number = number
        self._pointed = PointedNumber(account, number, config.state_folder, sleep=self._sleep)
        self._is_manual = is_pointed_by_hand(account)
        self._process = os.getpid()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wsvoice-number", daemon=True)
        self._stopping = asyncio.Event()
        self._turn = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None
        #: How often it was to be put back, how often that was begun and has ended, and until when it is waited for.
        self._asked = self._begun = self._answered = 0
        self._asked_until = 0.0
        #: The last public address, and whether somebody else has pointed the number elsewhere since.
        self._public_url = ""
        self._is_left_alone = False
        self._has_rung = self._gave_up = self._closed = False
        self._problem = ""

    @classmethod
    def of(cls, config: RunConfig) -> OwnNumber | None:
        """
        Return the number that the settings name; ``None`` without.

        Raises:
            ConfigError: If wsvoice knows no numbers of that provider's.
        """
        if config.number is None or config.transport is None:
            return None
        return cls(account_for_numbers(config.transport, config.credentials), config.number, config)

    @property
    def found(self) -> PhoneNumber | None:
        """The number as it was before it was pointed; ``None`` where the user has to point it."""
        return self._pointed.found

    def find(self) -> None:
        """
        Find the number, and make sure that it can be pointed; blocks until that is known, and changes nothing.

        Raises:
            WsvoiceError: As :meth:`~wsvoice.phone.numbers.PointedNumber.claim`.
        """
        self._thread.start()
        if self._is_manual:
            return
        self._submit(self._pointed.claim()).result()
        if self._pointed.left is not None:
            record, restored = self._pointed.left
            happened = describe_restored(self._pointed.file, record.was, restored)
            logger.warning("{} still pointed at a run that died: {}", record.number, happened)

    def ring_at(
        self, public_url: str, *, on_rings: Callable[[], None], on_failure: Callable[[BaseException], None]
    ) -> None:
        """
        Point the number at this server, or at its new address if it has moved; from any thread, and without waiting.

        Args:
            public_url: Where the provider reaches this server.
            on_rings: Called once it rings here, or has to be pointed by hand; after a move, at once. In another thread.
            on_failure: Called if it cannot be pointed. A number that cannot follow a move is tried again and again.
        """

        def look(done: Future[None]) -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None and not isinstance(error, Withdrawn):
                on_failure(error)

        if not self._asked:
            self._public_url = public_url
            self._submit(self._ring_at(public_url, on_rings)).add_done_callback(look)

    def put_back(self) -> None:
        """Begin to put it back; from any thread, and from a signal's handler."""
        if self._closed or os.getpid() != self._process:
            # A process that a bot has forked is not the one whose number it is.
            return
        self._asked += 1
        self._asked_until = time.monotonic() + PUT_BACK_TIMEOUT_S + WIND_UP_S
        # Not `_submit`, whose locks a signal's handler might find taken.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin_to_restore, self._asked)

    def note_signal(self, count: int) -> None:
        """Begin to put it back at the first request to stop; at the third one, the process waits for it no longer."""
        if count == 1:
            self.put_back()
        self._gave_up = count > 2

    @property
    def is_awaited(self) -> bool:
        """Whether the process must not end yet; it is false after 15.5 s at the latest."""
        return self._answered < self._asked and not self._gave_up and time.monotonic() < self._asked_until

    def close(self) -> None:
        """Put it back and wait for that, for 15 s at most."""
        if self._closed or os.getpid() != self._process:
            return
        if self._thread.is_alive():
            self.put_back()
            while self.is_awaited:
                time.sleep(_LOOK_S)
            self._submit(self._wind_up())
            self._thread.join(2 * WIND_UP_S)
        self._closed = True
        if not self._loop.is_running():
            self._loop.close()
            self._pointed.release()

    def what_is_left(self) -> NumberError | None:
        """Return the error for a number that still points here although the server is gone; ``None`` if it does not."""
        if not self._pointed.is_pointed:
            return None
        why = f": {self._problem}" if self._problem else ""
        return NumberError(
            f"{self._number} still points at this server, which is gone{why}",
            hint=f"`wsvoice number restore` puts it back; its settings are in {self._pointed.file.path}",
        )

    # In the thread

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _wind_up(self) -> None:
        """Give up what still goes on, and end the thread."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        if others:
            await asyncio.wait(others, timeout=WIND_UP_S)
        self._loop.stop()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; it is given up if the server stops before."""
        doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                raise Withdrawn("the server stops")
            return doing.result()
        finally:
            doing.cancel()
            stop.cancel()

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
            raise Withdrawn("the server stops")

    async def _ring_at(self, public_url: str, on_rings: Callable[[], None]) -> None:
        addresses = addresses_at(public_url, self._account.name)
        async with self._turn:
            if self._is_manual:
                self.steps = self._account.how_to_point(self._number, addresses)
            elif self._has_rung:
                on_rings()
                await self._move(public_url, addresses)
                return
            else:
                self.notes += await self._unless_stopped(self._look_around(public_url))
                await self._pointed.point(addresses)
                self._has_rung = True
                self.notes += self.found.warnings if self.found else ()
        on_rings()

    async def _look_around(self, public_url: str) -> list[str]:
        """Return what to know of who answers at the public address, and of who answers where the number rings yet."""
        there = without_secrets(self.found.points_at) if self.found else ""
        is_elsewhere = "://" in there and urlsplit(there).netloc != urlsplit(public_url).netloc
        problem, is_rival = await asyncio.gather(
            find_problem(public_url, timeout_s=ADDRESS_TIMEOUT_S),
            is_wsvoice_at(there if is_elsewhere else "", timeout_s=ADDRESS_TIMEOUT_S),
        )
        notes = []
        if problem:
            notes.append(f"{public_url} does not lead to this server, as seen from here: {problem}")
        if is_rival:
            notes.append(f"another server of wsvoice's answers at {there}: calls to {self._number} do not reach it now")
        return notes

    async def _move(self, public_url: str, addresses: ServerAddresses) -> None:
        """Have it ring at another address, however often that fails, until there is yet another one."""
        while self._public_url == public_url and not (self._is_left_alone or self._stopping.is_set()):
            try:
                if await self._pointed.move(addresses):
                    logger.info("{} rings at {}", self._number, addresses.webhook)
                else:
                    self._is_left_alone = True
                    logger.warning("{} was pointed elsewhere since, and is left alone", self._number)
                return
            except Withdrawn:
                return
            except WsvoiceError as error:
                logger.error("{} could not be pointed at {}: {}", self._number, addresses.webhook, error.message)
            with suppress(Withdrawn):
                await self._sleep(MOVE_RETRY_S)

    def _begin_to_restore(self, asked: int) -> None:
        self._begun = asked
        self._stopping.set()
        if self._restoring is None or self._restoring.done():
            self._restoring = self._loop.create_task(self._restore())
            self._restoring.add_done_callback(self._note_failure)

    def _note_failure(self, done: asyncio.Task[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._problem = f"{type(error).__name__}: {error}"

    async def _restore(self) -> None:
        """Put the number back, once what goes on has come to its end; try again until the time is up."""
        was = self.found.points_at if self.found else ""
        try:
            async with asyncio.timeout(PUT_BACK_TIMEOUT_S), self._turn:
                while self._pointed.is_pointed:
                    try:
                        restored = await self._pointed.put_back()
                    except ApiError as error:
                        self._problem = error.message
                        if not error.may_pass:
                            break
                        await asyncio.sleep(RETRY_S)
                    else:
                        logger.info("{}", describe_restored(self._pointed.file, was, restored or "unchanged"))
        except TimeoutError:
            self._problem = self._problem or f"the API did not answer within {PUT_BACK_TIMEOUT_S:g} s"
        finally:
            if not self._pointed.is_pointed:
                # The next run may have it, while this one lets its calls finish.
                self._pointed.release()
            self._answered = self._begun


def addresses_at(public_url: str, provider: str) -> ServerAddresses:
    """Return where the one provider that is served reaches this server."""
    base = public_url.rstrip("/")
    return ServerAddresses(webhook=f"{base}/", status=f"{base}/{provider}/status")
