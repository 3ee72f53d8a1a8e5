"""
How long a voice takes from the microphone of the browser phone to the provider's wire, in Chromium.

The microphone plays tones. In the page, a second reader of the microphone's track notes when each tone was captured;
at the other end, a stream notes when the media message comes in which the tone begins. README.md says how to read the
figures. Exits with 0 if half of the tones take less than `--limit`, with 1 if not or if nothing could be measured.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.page.chromium import PROGRAM, Page, chromium

from wsvoice.audio import PCMU_8K, write_wav

RATE = 8000
#: The tones, and the silence after each: no multiple of 20 ms, so that they begin anywhere in a message.
TONE_MS, CYCLE_MS, CYCLES = 60, 487, 20
#: A tone's first sample that is louder than that is its onset; its own first one is.
LOUD = 0.08
#: What is longer apart is not the same tone.
SAME_TONE_S = 0.4
#: The call's beginning, in which buffers find their length, is left out.
SETTLE_S = 2.0

#: Notes the onsets of the microphone's track: when they were captured, on the clock of `performance`, in milliseconds.
TAP = """
window.onsets = []; window.lags = [];
(async () => {
  const track = sound.stream.getAudioTracks()[0].clone();
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  let quiet = 1e9;
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    const samples = new Float32Array(value.numberOfFrames);
    value.copyTo(samples, { planeIndex: 0, format: "f32-planar" });
    // The made-up microphone stamps a piece when all of it is there.
    const rate = value.sampleRate, began = value.timestamp / 1000 - samples.length * 1000 / rate;
    window.lags.push(performance.now() - value.timestamp / 1000);
    for (let i = 0; i < samples.length; i++) {
      if (Math.abs(samples[i]) < %(loud)s) { quiet++; continue; }
      if (quiet > rate * 0.2) window.onsets.push(began + i * 1000 / rate);
      quiet = 0;
    }
    value.close();
  }
})();
performance.now();
"""


@dataclass
class Wire:
    """
    The provider's end of the stream.

    Attributes:
        url: Where it is dialled.
        onsets: When the messages came in which tones begin, by ``time.monotonic()``.
        is_open: Whether a stream has begun.
    """

    url: str = ""
    onsets: list[float] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)
    _quiet: int = RATE

    def take(self, socket: ServerConnection) -> None:
        """Read a stream, and note the tones in it."""
        self.is_open.set()
        try:
            for text in socket:
                came = time.monotonic()
                message = json.loads(text)
                if message["event"] == "media":
                    self._look(
                        np.frombuffer(PCMU_8K.decode(base64.b64decode(message["media"]["payload"])), "<i2"), came
                    )
        except ConnectionClosed:
            return

    def _look(self, samples: np.ndarray, came: float) -> None:
        loud = np.flatnonzero(np.abs(samples) >= LOUD * 32768)
        if not len(loud):
            self._quiet += len(samples)
            return
        if self._quiet + loud[0] > RATE // 5:
            self.onsets.append(came)
        self._quiet = len(samples) - 1 - int(loud[-1])


@contextmanager
def wire() -> Iterator[Wire]:
    """Serve a stream while the context lasts."""
    found = Wire()
    with serve(found.take, "127.0.0.1", 0, compression=None) as server:
        found.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found


@contextmanager
def phone(target: str, folder: Path) -> Iterator[str]:
    """Serve the phone for one target while the context lasts, and give the page's address."""
    command = [sys.executable, "-m", "wsvoice", "phone", target, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def write_tones(file: Path) -> None:
    """Write what the microphone plays, over and over."""
    tone = 0.5 * np.sin(2 * np.pi * 1000 / RATE * np.arange(RATE * TONE_MS // 1000) + 0.5)
    cycle = np.zeros(RATE * CYCLE_MS // 1000)
    cycle[: len(tone)] = tone
    write_wav(file, [(np.tile(cycle, CYCLES) * 32767).astype("<i2").tobytes()], RATE)


def page_clock(page: Page) -> float:
    """Return how far the page's clock is behind ours, in seconds: the least of several looks is the closest."""
    found = []
    for _ in range(40):
        before = time.monotonic()
        now = page.run("performance.now()") / 1000
        after = time.monotonic()
        found.append((after - before, (before + after) / 2 - now))
    return min(found)[1]


def measure(seconds: float, folder: Path) -> tuple[list[float], float]:
    """
    Call for a while.

    Returns:
        How long each tone took, and how long a captured piece usually takes to reach the page, both in milliseconds.
    """
    write_tones(folder / "tones.wav")
    options = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with ExitStack() as stack:
        far = stack.enter_context(wire())
        url = stack.enter_context(phone(far.url, folder))
        recording = f"--use-file-for-fake-audio-capture={folder / 'tones.wav'}"
        page = stack.enter_context(chromium(folder, *options, recording))
        page.ask("Page.navigate", url=url)
        page.until("phone.state === 'idle'", 30)
        page.run("dial()")
        page.until("phone.state === 'in-call'", 30)
        page.run(TAP % {"loud": LOUD})
        begun = time.monotonic()
        while time.monotonic() < begun + SETTLE_S + seconds:
            page.run("new Promise(resolve => setTimeout(resolve, 500))")
        behind = page_clock(page)
        said = [each / 1000 + behind for each in page.run("window.onsets")]
        lag_ms = statistics.median(page.run("window.lags"))
        page.run("hangUp()")
        page.until("phone.state === 'ended'", 30)
    took = []
    for at in far.onsets:
        before = [each for each in said if at - SAME_TONE_S < each <= at]
        if at > begun + SETTLE_S and before:
            took.append((at - before[-1]) * 1000)
    return took, lag_ms


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure (30)")
    parser.add_argument("--limit", type=float, default=60.0, help="what half of the tones may take, in ms (60)")
    options = parser.parse_args(arguments)
    if PROGRAM is None:
        print("nothing was measured: there is no Chromium")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        took, lag_ms = measure(options.seconds, Path(folder))
    if len(took) < 10:
        print(f"nothing was measured: {len(took)} tones were found at both ends")
        return 1
    median, late = statistics.median(took), statistics.quantiles(took, n=20)[-1]
    print(f"microphone to wire, {len(took)} tones, milliseconds; {os.cpu_count()} cores")
    print(f"median {median:.1f}, 95th percentile {late:.1f}, least {min(took):.1f}, most {max(took):.1f}")
    print(f"of that, from the capture to the page: about {lag_ms:.1f}")
    held = median < options.limit
    print(f"{'held' if held else 'broken'}: the median is {median:.0f} ms (wanted: less than {options.limit:g} ms)")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
