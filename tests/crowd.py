"""Many callers of one server at once: those who talk until they are told to stop, and those who keep coming in."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import websockets
from twilio.request_validator import RequestValidator

from tests.runner.carrier import FORM, Carrier, dialled
from tests.signals import tone

_PIECE = tone(500, 100, 8000)


@dataclass
class Outcome:
    """
    What became of all calls.

    Attributes:
        served: How many calls were heard and answered to their end.
        late: How many of them began once :attr:`Crowd.is_late` was set.
        busy: How many were told that the server is busy.
        failures: Why the others were not served.
        waits_s: How long each caller waited from the webhook to the bot's first sound.
    """

    served: int = 0
    late: int = 0
    busy: int = 0
    failures: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)


class Busy(Exception):
    """The webhook was answered busy."""


class Crowd:
    """
    Callers of an echo bot, as Twilio's.

    Args:
        auth_token: Twilio's, which signs the webhooks; without it they are unsigned.
        numbers: Where the numbers in calls' ids come from.
        http: What sends the webhooks.

    Attributes:
        is_late: Whether calls count as late from now on.
        talking: How many calls go on.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_token: str = "",
        numbers: Iterator[int] | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = url
        self._validator = RequestValidator(auth_token) if auth_token else None
        self.outcome = Outcome()
        self.is_late = False
        self.talking = 0
        self._numbers = numbers or itertools.count(1)
        self._http = http or httpx.AsyncClient(timeout=20)

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, over: asyncio.Event, *, begun: asyncio.Event | None = None) -> None:
        """Call, and talk until `over` is set; what goes wrong is noted."""
        call_sid, is_late = f"CA{next(self._numbers):032d}", self.is_late
        try:
            async with asyncio.timeout(120):
                await self._talk(call_sid, over, begun)
        except Busy:
            self.outcome.busy += 1
        except (OSError, TimeoutError, httpx.HTTPError, websockets.WebSocketException, AssertionError) as error:
            self.outcome.failures.append(f"{call_sid[-4:]}: {type(error).__name__}: {error}"[:300])
        else:
            self.outcome.served += 1
            self.outcome.late += is_late
        finally:
            if begun is not None:
                begun.set()

    async def keep_calling(self, every_s: float) -> None:
        """Place short calls, one after the other, until cancelled; those that go on then are finished."""
        at_once = asyncio.Event()
        at_once.set()
        async with asyncio.TaskGroup() as calls:
            try:
                while True:
                    calls.create_task(self.call(at_once))
                    await asyncio.sleep(every_s)
            except asyncio.CancelledError:
                # A cancelled group would cancel them.
                return

    @asynccontextmanager
    async def talking_calls(self, count: int) -> AsyncIterator[asyncio.Event]:
        """Have so many calls in progress; they end when the event is set, or with the context."""
        over, begun = asyncio.Event(), [asyncio.Event() for _ in range(count)]
        async with asyncio.TaskGroup() as group:
            for each in begun:
                group.create_task(self.call(over, begun=each))
            try:
                for each in begun:
                    await each.wait()
                yield over
            finally:
                over.set()

    async def _talk(self, call_sid: str, over: asyncio.Event, begun: asyncio.Event | None) -> None:
        began = time.monotonic()
        async with self.stream(call_sid, await self.ask(call_sid)) as carrier:
            sent = 0
            self.talking += 1
            try:
                while sent < 3 or not over.is_set():
                    await carrier.speak(_PIECE)
                    sent += 1
                    code = carrier.socket.close_code
                    assert code is None, f"cut with {code} after {sent / 10:g} s"
                    if begun is not None and carrier.of("media"):
                        begun.set()
                # The last word comes back too.
                async with asyncio.timeout(5):
                    while len(carrier.heard()) < sent * len(_PIECE) * 0.9:
                        assert carrier.socket.close_code is None, "cut before the last word"
                        await asyncio.sleep(0.01)
            finally:
                self.talking -= 1
            self.outcome.waits_s.append(carrier.times("media")[0] + carrier.started - began)
            await carrier.hang_up()

    async def ask(self, call_sid: str) -> str:
        """Send the webhook; return the stream's address."""
        form, headers = {**FORM, "CallSid": call_sid}, {}
        if self._validator is not None:
            headers["X-Twilio-Signature"] = self._validator.compute_signature(self.url, form)
        answer = await self.post(form, headers)
        if "<Reject" in answer.text:
            raise Busy
        match = re.search(r'<Stream url="([^"]+)"', answer.text)
        assert match, f"the webhook was answered {answer.status_code}: {answer.text[:100]}"
        return match[1]

    async def post(self, form: dict[str, str], headers: dict[str, str]) -> httpx.Response:
        """Send a webhook to where it is answered."""
        return await self._http.post(self.url, data=form, headers=headers)

    @asynccontextmanager
    async def stream(self, call_sid: str, url: str) -> AsyncIterator[Carrier]:
        """Open the stream, and start it."""
        async with dialled(url, call_sid) as carrier:
            yield carrier
