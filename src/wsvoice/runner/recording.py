"""Records a call to a stereo WAV file while it goes on: the caller on the left, the bot on the right."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wsvoice.audio import Resampler
from wsvoice.call import Call
from wsvoice.providers.media_stream import Stream
from wsvoice.trace.tracks import Track

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO

    from loguru import Logger

#: How often final audio is written to disk; a killed process loses this much.
WRITE_EVERY_S = 1.0
#: How much is converted at a time, however long the process was blocked.
STEP_S = 10.0
#: How long a disk may accept nothing before the recording is given up; until then it is kept in memory.
MAX_UNWRITTEN_S = 60.0
#: How long the end of a call waits for the disk.
FINISH_TIMEOUT_S = 5.0
#: How many calls of one id may begin in the same second.
_NAMES = 100
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_HEADER = 44
_MAX_SIZE = 2**32 - 1

#: One thread writes for all calls. A hanging disk must block neither the event loop nor asyncio's own threads, and more
#: threads would wait for the same disk.
_disk = ThreadPoolExecutor(1, thread_name_prefix="wsvoice-recording")


class CallRecorder:
    """
    Puts both ends of a call on one time axis.

    The caller's audio is placed where it arrived, or right after what came before. The bot's is placed where the
    provider will play it, after what was sent before; what an interruption cleared is cut out again. Audio before the
    present cannot change any more, so it is on disk within a second, and the file can be played at any time.

    A failing disk ends the recording, and nothing else.
    """

    def __init__(self, folder: Path, call: Call, stream: Stream, *, logger: Logger) -> None:
        safe_id = re.sub(r"[^A-Za-z0-9_-]", "_", call.call_id)[:80]
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self._logger = logger
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._tracks = {"caller": Track(stream.format), "bot": Track(stream.outbound_format)}
        rates = [track.rate for track in self._tracks.values()]
        self._file = _StereoFile(folder / f"{stamp}-{call.provider}-{safe_id}.wav", rates)
        self._written_until = 0.0
        self._stopped = False
        self._failed = False
        self._job: asyncio.Future[None] = self._on_disk(self._file.open)
        self._timer = self._loop.call_later(WRITE_EVERY_S, self._tick)

    def hear(self, who: str, payload: bytes, now: float) -> None:
        """Add a piece of audio of ``caller`` or ``bot``, in its format, or cut the bot's unplayed (``clear``)."""
        if self._stopped:
            return
        at_s = now - self._started
        if who == "clear":
            self._tracks["bot"].cut(at_s)
        else:
            self._tracks[who].put(payload, at_s)

    def stop(self) -> None:
        """Write what is left, and ignore all audio from now on."""
        if self._stopped:
            return
        self._stopped = True
        self._timer.cancel()
        self._write(max(self._written_until, *(track.ends_s for track in self._tracks.values())))
        self._job = self._on_disk(self._file.close)

    async def finished(self) -> str | None:
        """Wait until all is on disk; return the file's path, or ``None`` if there is none."""
        self.stop()
        done, _ = await asyncio.wait({self._job}, timeout=FINISH_TIMEOUT_S)
        if not done:
            self._give_up(f"the disk has not accepted it within {FINISH_TIMEOUT_S:g} s")
        return str(self._file.path) if self._file.exists else None

    def _tick(self) -> None:
        now_s = self._loop.time() - self._started
        if self._job.done():
            self._write(now_s)
        elif now_s - self._written_until > MAX_UNWRITTEN_S:
            self._give_up(f"the disk has accepted nothing for {MAX_UNWRITTEN_S:g} s")
        if not self._stopped:
            self._timer = self._loop.call_later(WRITE_EVERY_S, self._tick)

    def _write(self, until_s: float) -> None:
        while self._written_until < until_s and not self._failed:
            self._written_until = min(until_s, self._written_until + STEP_S)
            left, right = (track.take(self._written_until) for track in self._tracks.values())
            self._job = self._on_disk(partial(self._file.append, left, right))

    def _on_disk(self, work: Callable[[], None]) -> asyncio.Future[None]:
        job = self._loop.run_in_executor(_disk, work)
        job.add_done_callback(self._look_at)
        return job

    def _look_at(self, job: asyncio.Future[None]) -> None:
        error = None if job.cancelled() else job.exception()
        if error is not None:
            self._give_up(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _give_up(self, reason: str) -> None:
        """End the recording and log it once; the call goes on."""
        if self._failed:
            return
        self._failed = self._stopped = True
        self._timer.cancel()
        self._tracks.clear()
        rest = "what was written until then is there" if self._file.exists else "there is no file"
        self._logger.error("the call could not be recorded to {}: {}; {}", self._file.path, reason, rest)


class _StereoFile:
    """
    A growing WAV file of two channels at the higher of their rates; it can be played after every piece.

    Its methods are only called in the disk's thread.

    Attributes:
        path: Its path, with a number appended if the name was taken.
        exists: Whether it was created.
    """

    def __init__(self, path: Path, rates: list[int]) -> None:
        self.path = path
        self.exists = False
        self._rate = max(rates)
        # Nobody waits for a recording, so the longer filter does no harm.
        self._resamplers = [Resampler.offline(rate, self._rate) for rate in rates]
        self._waiting = [b"" for _ in rates]
        self._frames_bytes = 0
        self._file: FileIO | None = None

    def open(self) -> None:
        """
        Create the file, and the folder if necessary, readable only by their owner: calls are private.

        Raises:
            OSError: If that fails.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = self.path
        for number in range(1, _NAMES + 1):
            self.path = name if number == 1 else name.with_stem(f"{name.stem}-{number}")
            try:
                descriptor = os.open(self.path, _NEW_FILE, 0o600)
            except FileExistsError:
                if number == _NAMES:
                    raise
                continue
            break
        self.exists = True
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        self._guarded(b"")

    def append(self, left: bytes, right: bytes) -> None:
        """
        Append a piece of both channels, each at its own rate.

        Raises:
            OSError: If the disk does not accept it; what was written before stays playable.
        """
        made = (resampler.process(pcm) for resampler, pcm in zip(self._resamplers, (left, right), strict=True))
        self._waiting = [waiting + pcm for waiting, pcm in zip(self._waiting, made, strict=True)]
        count = min(map(len, self._waiting))
        whole, self._waiting = [pcm[:count] for pcm in self._waiting], [pcm[count:] for pcm in self._waiting]
        self._guarded(_interleaved(whole))

    def close(self) -> None:
        """Append what the resamplers hold back, and close the file; errors are as in :meth:`append`."""
        rest = [waiting + each.flush() for waiting, each in zip(self._waiting, self._resamplers, strict=True)]
        longest = max(map(len, rest))
        self._guarded(_interleaved([pcm.ljust(longest, b"\0") for pcm in rest]))
        if self._file is not None:
            self._file.close()

    def _guarded(self, frames: bytes) -> None:
        """Append frames and update the header; after a failure, keep what was complete, or remove the file."""
        if self._file is None:
            return
        try:
            self._put(_HEADER + self._frames_bytes, frames)
            self._put(0, self._header(self._frames_bytes + len(frames)))
        except OSError:
            file, self._file = self._file, None
            try:
                if self._frames_bytes:
                    file.truncate(_HEADER + self._frames_bytes)
                else:
                    self.path.unlink()
                    self.exists = False
            finally:
                file.close()
            raise
        self._frames_bytes += len(frames)

    def _put(self, at: int, content: bytes) -> None:
        assert self._file is not None
        self._file.seek(at)
        rest = memoryview(content)
        while rest:
            # A nearly full disk accepts a part; the next write raises.
            rest = rest[self._file.write(rest) :]

    def _header(self, size: int) -> bytes:
        # http://soundfile.sapp.org/doc/WaveFormat/; the sizes have 32 bits, which is 18 hours at 16 kHz.
        riff, data = min(size + _HEADER - 8, _MAX_SIZE), min(size, _MAX_SIZE)
        shape = struct.pack("<IHHIIHH", 16, 1, 2, self._rate, 4 * self._rate, 4, 16)
        return struct.pack("<4sI4s4s", b"RIFF", riff, b"WAVE", b"fmt ") + shape + struct.pack("<4sI", b"data", data)


def _interleaved(channels: list[bytes]) -> bytes:
    return np.stack([np.frombuffer(pcm, "<i2") for pcm in channels], axis=1).tobytes()
