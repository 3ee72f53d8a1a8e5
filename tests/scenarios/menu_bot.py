"""A bot on real sockets that answers words with words and keys with their tones, and the faults that it may have."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tests.dial.fake_bots import FakeBot, Line, fake_bot
from tests.signals import speech_like
from wsvoice.audio import PCMU_8K, write_wav

CALLER = speech_like(150, 8000, seed=3)
WELCOME = speech_like(250, 8000, seed=11)
ANOTHER = speech_like(250, 8000, seed=12)

_LOW_HZ, _HIGH_HZ = (697, 770, 852, 941), (1209, 1336, 1477, 1633)


def key_tones(keys: str, *, tone_ms: int = 70, pause_ms: int = 60) -> bytes:
    """Return the keys' tones, by the table of ITU-T Q.23."""
    time_s = np.arange(8 * tone_ms) / 8000
    parts = []
    for key in keys:
        row, column = divmod("123A456B789C*0#D".index(key), 4)
        wave = sum(6000 * np.sin(2 * np.pi * freq * time_s) for freq in (_LOW_HZ[row], _HIGH_HZ[column]))
        parts += [wave, np.zeros(8 * pause_ms)]
    return np.concatenate(parts).astype("<i2").tobytes() if parts else b""


@dataclass
class MenuBot:
    """
    Says `says` when the caller has finished, and after `#` the tones of the keys that came before; then it hangs up.

    Attributes:
        says: What it answers words with.
        delay_s: How long it takes to answer, beyond 100 ms of silence.
        leaves_early: Hangs up after its first answer.
        loses: The number of the key that it loses, from 0; ``None`` for none.
    """

    says: bytes = WELCOME
    delay_s: float = 0.05
    leaves_early: bool = False
    loses: int | None = None

    async def __call__(self, line: Line) -> None:
        heard, quiet, keys = False, 0, ""
        while True:
            message = await line.receive()
            if message["event"] == "dtmf":
                keys += message["dtmf"]["digit"]
                if keys.endswith("#"):
                    await self._read_back(line, keys[:-1])
                    return
            if message["event"] != "media":
                continue
            is_sound = base64.b64decode(message["media"]["payload"]).strip(b"\xff\x7f") != b""
            quiet, heard = 0 if is_sound else quiet + 1, heard or is_sound
            if heard and quiet == 5:
                heard = False
                await asyncio.sleep(self.delay_s)
                await line.say(PCMU_8K.encode(self.says))
                if self.leaves_early:
                    await self._played(line)
                    return

    async def _read_back(self, line: Line, keys: str) -> None:
        kept = "".join(key for number, key in enumerate(keys) if number != self.loses)
        await line.say(PCMU_8K.encode(key_tones(kept)))
        await self._played(line)

    async def _played(self, line: Line) -> None:
        await line.mark("over")
        await line.receive_until("mark")


@contextmanager
def serving(bot: Callable[[Line], Awaitable[None]]) -> Iterator[FakeBot]:
    """Serve the bot in a thread, because pytest's own waits for the calls."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    served: list[FakeBot] = []
    stop = asyncio.Event()

    async def serve() -> None:
        async with fake_bot(bot) as each:
            served.append(each)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(5)
        yield served[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        loop.close()


def write_sounds(folder: object) -> None:
    """Write what the caller says and what the bot is to say into a folder."""
    for name, pcm in (("caller", CALLER), ("welcome", WELCOME)):
        write_wav(folder / f"{name}.wav", [pcm], 8000)  # type: ignore[operator]


SCENARIO = """
target = "{url}"
listen = 0.06
answer_timeout = "1.5s"

[[steps]]
audio = "caller.wav"
answered_within = "350ms"
heard = "welcome.wav"

[[steps]]
press = "12#"
digits = "12"
ended_by = "bot"
"""
