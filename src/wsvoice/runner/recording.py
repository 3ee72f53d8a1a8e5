"""A call on disk: one stereo WAV file, the caller on the left and the bot on the right."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from wsvoice.audio import resample, write_wav
from wsvoice.call import Call
from wsvoice.providers.base import Stream


class CallRecorder:
    """
    Lays both ends of a call on one time axis.

    The caller's audio lies where it arrived, or right behind what came before. The bot's lies where the provider
    will play it: behind what it was sent before; what an interruption cleared is cut out again.
    """

    def __init__(self, folder: Path, call: Call, stream: Stream) -> None:
        safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", call.call_id)[:80]
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = folder / f"{stamp}-{call.provider}-{safe_id}.wav"
        self._started = asyncio.get_running_loop().time()
        self._rates = {"caller": stream.format.sample_rate, "bot": stream.outbound_format.sample_rate}
        self._tracks = {"caller": bytearray(), "bot": bytearray()}

    def hear(self, who: str, pcm: bytes, now: float) -> None:
        """Take a piece of s16le audio of ``caller`` or ``bot``, or cut the bot short (``clear``)."""
        track = self._tracks["bot" if who == "clear" else who]
        rate = self._rates["bot" if who == "clear" else who]
        at = 2 * round((now - self._started) * rate)
        if who == "clear":
            del track[at:]
            return
        if at > len(track):
            track += bytes(at - len(track))
        track += pcm

    def write(self) -> str:
        """Write the file, at the higher of both rates; return its path."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rate = max(self._rates.values())
        channels = [resample(bytes(track), self._rates[who], rate) for who, track in self._tracks.items()]
        write_wav(self.path, channels, rate)
        return str(self.path)
