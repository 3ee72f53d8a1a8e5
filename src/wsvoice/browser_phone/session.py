"""One page's WebSocket: what it says is checked and done, what happens is told, and both are bounded."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from wsvoice.browser_phone.messages import (
    FASTEST,
    SOUND_BURST_S,
    TEXT_BURST,
    TEXTS_PER_S,
    Allowance,
    Dial,
    FloodError,
    HangUp,
    PageError,
    Press,
    Save,
    check_sound,
    read_message,
)
from wsvoice.browser_phone.placed import PlacedFromPage
from wsvoice.errors import WsvoiceError

if TYPE_CHECKING:
    from wsvoice.browser_phone.server import Phone

#: How much sound, in pieces of 20 ms, and how many texts wait for a page that does not read. Sound is then dropped, the
#: oldest first; a page for which too many texts wait is cut off.
MAX_PIECES, MAX_TEXTS = 25, 2000
#: How long one message may wait for a page that does not read, in seconds.
SEND_TIMEOUT_S = 10.0
#: https://www.rfc-editor.org/rfc/rfc6455#section-7.4.1
POLICY_VIOLATION = 1008


class Outbox:
    """What is on its way to a page: texts in their order, and sound, of which only the latest is worth anything."""

    def __init__(self) -> None:
        self.is_full = False
        self._texts: deque[str] = deque()
        self._sound: deque[bytes] = deque(maxlen=MAX_PIECES)
        self._filled = asyncio.Event()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Queue a message."""
        if len(self._texts) >= MAX_TEXTS:
            self.is_full = True
        else:
            self._texts.append(json.dumps(message))
        self._filled.set()

    def play(self, pcm: bytes) -> None:
        """Queue sound."""
        if pcm:
            self._sound.append(pcm)
            self._filled.set()

    async def drain_to(self, websocket: WebSocket) -> None:
        """Send what there is and what comes, until the page does not read any more or is gone."""
        with suppress(TimeoutError, OSError, RuntimeError, WebSocketDisconnect):
            while not self.is_full:
                self._filled.clear()
                while self._texts or self._sound:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        if self._texts:
                            await websocket.send_text(self._texts.popleft())
                        else:
                            await websocket.send_bytes(self._sound.popleft())
                await self._filled.wait()


class PageSession:
    """
    One page, which has one call at a time.

    Args:
        phone: Places the calls, and keeps their pages.
        websocket: The page's, accepted.
        now: The time, in seconds.
    """

    def __init__(self, phone: Phone, websocket: WebSocket, *, now: Callable[[], float] = time.monotonic) -> None:
        self._phone = phone
        self._websocket = websocket
        self._now = now
        self._outbox = Outbox()
        self._texts = Allowance(now, TEXT_BURST, TEXTS_PER_S)
        self._sound = Allowance(now, SOUND_BURST_S, FASTEST)
        self._call: PlacedFromPage | None = None
        self._calling: asyncio.Task[None] | None = None
        self._rate = 0
        self._saving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the page until it is gone; a call that goes on then has lost its caller."""
        self.tell(self._phone.introduction())
        sending = asyncio.create_task(self._outbox.drain_to(self._websocket))
        reading = asyncio.create_task(self._read())
        try:
            await asyncio.wait([sending, reading], return_when=asyncio.FIRST_COMPLETED)
            if self._call is not None:
                self._call.vanish()
            if self._calling is not None:
                await asyncio.wait([self._calling])
        finally:
            tasks = [each for each in (sending, reading, self._calling, *self._saving) if each is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Tell the page something."""
        self._outbox.tell(message)

    def play(self, pcm: bytes) -> None:
        """Play something to the caller."""
        self._outbox.play(pcm)

    def _tell_error(self, error: WsvoiceError) -> None:
        self.tell({"type": "error", "message": error.message, "hint": error.hint or ""})

    # What the page says

    async def _read(self) -> None:
        """Do what the page says, until it is gone or says too much."""
        with suppress(WebSocketDisconnect, RuntimeError):
            while self._websocket.client_state is WebSocketState.CONNECTED:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    self._take(message.get("text"), message.get("bytes"))
                except FloodError as error:
                    await self._turn_away(error)
                    return
                except PageError as error:
                    self._tell_error(error)
                    if self._call is not None:
                        self._call.hang_up()
                    else:
                        self.tell({"type": "state", "state": "idle"})
                except WsvoiceError as error:
                    self._tell_error(error)

    def _take(self, text: str | None, pcm: bytes | None) -> None:
        if text is None:
            self._take_sound(pcm or b"")
            return
        self._texts.spend(1, "more messages")
        said = read_message(text)
        if isinstance(said, Dial):
            self._dial(said)
        elif isinstance(said, Press) and self._call is not None:
            self._call.press(said.keys)
        elif isinstance(said, HangUp) and self._call is not None:
            self._call.hang_up()
        elif isinstance(said, Save):
            task = asyncio.create_task(self._save(said))
            self._saving.add(task)
            task.add_done_callback(self._saving.discard)

    def _take_sound(self, pcm: bytes) -> None:
        if not self._rate:
            raise PageError("the page sent sound before it has dialled", hint="reload the page")
        self._sound.spend(len(pcm) / (2 * self._rate), "more sound")
        check_sound(pcm, self._rate)
        if self._call is not None:
            self._call.say(pcm)

    async def _turn_away(self, error: FloodError) -> None:
        self._tell_error(error)
        # What was told last is to arrive, if the page reads it.
        await asyncio.sleep(0)
        with suppress(TimeoutError, RuntimeError, OSError):
            async with asyncio.timeout(1):
                await self._websocket.close(POLICY_VIOLATION, error.message[:100])

    # Calls

    def _dial(self, wanted: Dial) -> None:
        if self._call is not None:
            self.tell({"type": "error", "message": "a call goes on already", "hint": "hang up first"})
            return
        try:
            call = self._phone.new_call(wanted, self)
        except WsvoiceError as error:
            self._tell_error(error)
            self.tell({"type": "state", "state": "idle"})
            return
        self._rate, self._call = wanted.rate, call
        self._calling = asyncio.create_task(self._carry_out(call))

    async def _carry_out(self, call: PlacedFromPage) -> None:
        """Place a call, and tell how it ended."""
        told: dict[str, Any] = {"type": "state", "state": "idle"}
        try:
            await call.place()
            told = call.outcome()
        except WsvoiceError as error:
            self._tell_error(error)
        except Exception as error:  # noqa: BLE001 (the boundary of a call)
            # A fault of ours in one call: it is told, and the other calls go on.
            logger.error("call {}: {}", call.number, call.mask(traceback.format_exc()))
            message = call.mask(f"wsvoice failed in this call: {type(error).__name__}: {error}")
            self.tell({"type": "error", "message": message, "hint": "the terminal shows the rest"})
            if call.report is not None:
                told = call.outcome()
        finally:
            if call.page is not None:
                told["page"] = self._phone.keep(call)
            else:
                call.forget()
            self._call = None
            self._phone.end(call)
            self.tell(told)

    async def _save(self, wanted: Save) -> None:
        """Write a test, and tell where."""
        try:
            files = await asyncio.to_thread(self._phone.save, wanted)
        except WsvoiceError as error:
            self.tell({"type": "saved", "call": wanted.call, "message": error.message, "hint": error.hint or ""})
            return
        shown = [_shown(each, self._phone.folder) for each in files]
        self.tell({"type": "saved", "call": wanted.call, "files": shown, "run": _test_command(shown[0])})


def _shown(file: Path, folder: Path) -> str:
    real = folder.resolve()
    return str(file.relative_to(real) if file.is_relative_to(real) else file)


def _test_command(file: str) -> str:
    """Return the command that runs a scenario, as it is typed into a shell."""
    return shlex.join(["wsvoice", "test", f"./{file}" if file.startswith("-") else file])
