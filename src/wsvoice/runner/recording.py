"""A call on disk: one stereo WAV file, the caller on the left and the bot on the right."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from wsvoice.audio import AudioFormat, write_wav
from wsvoice.call import Call


class CallRecorder:
    """
    Lays both ends of a call on one time axis.

    The caller's audio lies where it arrived, or right behind what came before. The bot's lies where the provider
    will play it: behind what it was sent before; what an interruption cleared is cut out again.
    """

    def __init__(self, folder: Path, call: Call, audio_format: AudioFormat) -> None:
        self._format = audio_format
        safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", call.call_id)[:80]
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = folder / f"{stamp}-{call.provider}-{safe_id}.wav"
        self._started = asyncio.get_running_loop().time()
        self._tracks = {"caller": bytearray(), "bot": bytearray()}

    def hear(self, who: str, payload: bytes, now: float) -> None:
        """Take a piece of encoded audio of ``caller`` or ``bot``, or cut the bot short (``clear``)."""
        at = self._format.bytes_for((now - self._started) * 1000)
        if who == "clear":
            del self._tracks["bot"][at:]
            return
        track = self._tracks[who]
        if at > len(track):
            track += self._format.silence(at - len(track))
        track += payload

    def write(self) -> str:
        """Write the file; return its path."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        channels = [self._format.decode(bytes(track)) for track in self._tracks.values()]
        write_wav(self.path, channels, self._format.sample_rate)
        return str(self.path)
