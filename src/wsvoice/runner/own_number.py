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
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from loguru import logger

from wsvoice import http
from wsvoice.config import RunConfig
from wsvoice.errors import ApiError, ConfigError, HttpError, NumberError, WsvoiceError
from wsvoice.phone.numbers import PointedNumber
from wsvoice.providers import load_account
from wsvoice.providers.account import Account, PhoneNumber, Restored, ServerAddresses
from wsvoice.providers.base import HttpRequest

T = TypeVar("T")

#: How long the end of the process waits until the number is put back.
PUT_BACK_TIMEOUT_S = 15.0
#: How long is waited before that is tried again, and how long before a moved address is.
RETRY_S, MOVE_RETRY_S = 1.0, 10.0
#: How long the public address may take to answer.
ADDRESS_TIMEOUT_S = 5.0

_LOOK_S = 0.02


class Withdrawn(NumberError):
    """The server stops before its number was pointed."""


class OwnNumber:
    """
    Points a number at this server, and back.

    A run of it: :meth:`find`, :meth:`point`, :meth:`put_back` at the first signal, :meth:`close` in any case.

    Attributes:
        found: The number as it was found; ``None`` where the user has to point it.
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
        self.found: PhoneNumber | None = None
        self.notes: list[str] = []
        self.steps: list[str] = []
        self._account = account
        self._number = number
        self._pointed = PointedNumber(account, number, config.state_folder, sleep=self._sleep)
        self._is_manual = bool(account.how_to_point(number, ServerAddresses("https://bot.invalid/")))
        self._process = os.getpid()
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wsvoice-number", daemon=True)
        self._stopping = asyncio.Event()
        self._turn = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None
        #: How often it was to be put back, how often that was begun and has ended, and until when it is waited for.
        self._asked = self._begun = self._answered = 0
        self._asked_until = 0.0
        self._gave_up = self._closed = False
        self._problem = ""

    @classmethod
    def of(cls, config: RunConfig) -> OwnNumber | None:
        """
        Return the number that the settings name; ``None`` without.

        Raises:
            ConfigError: If the provider has no API for numbers.
        """
        if config.number is None or config.transport is None:
            return None
        own = cls(load_account(config.transport, config.credentials), config.number, config)
        if not (own._account.has_numbers or own._is_manual):
            raise ConfigError(
                f"wsvoice cannot point a number of {own._account.title}'s",
                hint="leave --number out, and set the number's webhook by hand",
            )
        return own

    def find(self) -> None:
        """
        Find the number, and make sure that it can be pointed; blocks until that is known, and changes nothing.

        Raises:
            WsvoiceError: As :meth:`~wsvoice.phone.numbers.PointedNumber.claim`.
        """
        self._thread.start()
        if self._is_manual:
            return
        self.found = self._submit(self._pointed.claim()).result()
        if self._pointed.left is not None:
            record, restored = self._pointed.left
            happened = describe_restored(record.number, record.was, restored)
            logger.warning("{} still pointed at a run that died: {}", record.number, happened)

    async def point(self, public_url: str) -> bool:
        """
        Point the number at this server, and return true; false if the server was asked to stop meanwhile.

        Raises:
            NumberError: If its settings cannot be kept, or it could not be put back.
            ApiError: If the company refuses it, or cannot be reached.
        """
        addresses = addresses_at(public_url)
        if self._is_manual:
            self.steps = self._account.how_to_point(self._number, addresses)
            return True
        try:
            await asyncio.wrap_future(self._submit(self._point(public_url, addresses)))
        except Withdrawn:
            return False
        return True

    def move(self, public_url: str) -> None:
        """Point it at this server's new address, as soon as possible; from any thread."""
        if not (self._is_manual or self._asked):
            self._submit(self._move(addresses_at(public_url)))

    def put_back(self) -> None:
        """Begin to put it back; from any thread, and from a signal's handler."""
        if self._closed or os.getpid() != self._process:
            # A process that a bot has forked is not the one whose number it is.
            return
        self._asked += 1
        self._asked_until = time.monotonic() + PUT_BACK_TIMEOUT_S
        # Not `_submit`, whose locks a signal's handler might find taken.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin_to_restore, self._asked)

    def give_up(self) -> None:
        """Wait no longer: who signals three times wants the process gone."""
        self._gave_up = True

    @property
    def is_awaited(self) -> bool:
        """Whether the process must not end yet; it is false after 15 s at the latest."""
        return self._answered < self._asked and not self._gave_up and time.monotonic() < self._asked_until

    def close(self) -> None:
        """Put it back and wait for that, for 15 s at most; what could not be put back is logged."""
        if self._closed or os.getpid() != self._process:
            return
        if self._thread.is_alive():
            self.put_back()
            while self.is_awaited:
                time.sleep(_LOOK_S)
            self.say_what_is_left()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(1)
        self._closed = True
        if not self._loop.is_running():
            self._loop.close()

    def say_what_is_left(self) -> None:
        """Log that the number still points here, if it does."""
        if self._closed or not self._pointed.is_pointed:
            return
        logger.error(
            "{} still points at this server, which is gone{}; `wsvoice number restore` puts it back, from {}",
            self._number,
            f": {self._problem}" if self._problem else "",
            self._pointed.file.path,
        )

    # In the thread

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

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

    async def _point(self, public_url: str, addresses: ServerAddresses) -> None:
        async with self._turn:
            if problem := await self._unless_stopped(address_problem(public_url)):
                self.notes.append(f"{public_url} does not lead to this server, as seen from here: {problem}")
            await self._pointed.point(addresses)
            self.notes += self.found.warnings if self.found else ()

    async def _move(self, addresses: ServerAddresses) -> None:
        async with self._turn:
            while self._pointed.is_pointed and not self._stopping.is_set():
                try:
                    if await self._pointed.move(addresses):
                        logger.info("{} rings at {}", self._number, addresses.webhook)
                    else:
                        logger.warning("{} points elsewhere by now: it is left alone", self._number)
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
                        if error.kind not in ("unreachable", "rate-limit"):
                            break
                        await asyncio.sleep(RETRY_S)
                    else:
                        logger.info("{}", describe_restored(self._number, was, restored or "unchanged"))
        except TimeoutError:
            self._problem = self._problem or f"the API did not answer within {PUT_BACK_TIMEOUT_S:g} s"
        finally:
            if not self._pointed.is_pointed:
                # The next run may have it, while this one lets its calls finish.
                self._pointed.release()
            self._answered = self._begun


def addresses_at(public_url: str) -> ServerAddresses:
    """Return where the one provider that is served reaches this server."""
    return ServerAddresses(webhook=f"{public_url.rstrip('/')}/")


def describe_restored(number: str, was: str, restored: Restored) -> str:
    """Return in words what became of putting a number back."""
    place = was or "nowhere"
    return {
        "restored": f"{number} rings at {place} again",
        "unchanged": f"{number} had been put back before; it rings at {place}",
        "left": f"{number} was pointed elsewhere since, and is left alone; it rang at {place}",
    }[restored]


async def address_problem(public_url: str) -> str:
    """Return why a public address does not lead to a server of ours; empty if it does."""
    request = HttpRequest("GET", f"{public_url.rstrip('/')}/healthz")
    try:
        answer = await http.send(request, timeout_s=ADDRESS_TIMEOUT_S)
    except HttpError as error:
        return error.message
    is_ours = answer.status in (200, 503) and b'"status"' in answer.body
    return "" if is_ours else f"{request.url} answers {answer.status}"
