"""Recordings: what is in them, what they cost while the call goes on, and what is left when something fails."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import wave
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loguru import logger

from tests.process import server_process
from tests.runner.carrier import dialled
from tests.signals import speech_like, tone
from wsvoice.audio import AudioFormat, Encoding, resample
from wsvoice.call import Call
from wsvoice.runner import recording
from wsvoice.runner.recording import CallRecorder

SILENT = """
    import asyncio

    async def bot(runner_args):
        async for _ in runner_args.websocket.iter_text():
            pass
"""


def recorder(folder: Path, caller_rate: int = 8000, bot_rate: int = 8000, call_id: str = "CA1") -> CallRecorder:
    stream: Any = SimpleNamespace(
        format=AudioFormat(Encoding.L16, caller_rate), outbound_format=AudioFormat(Encoding.L16, bot_rate)
    )
    return CallRecorder(folder, Call("twilio", call_id), stream, logger=logger)


def read(path: str | Path) -> tuple[Any, Any, int]:
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        return samples[:, 0], samples[:, 1], file.getframerate()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write so often that a short test sees what a long call does."""
    monkeypatch.setattr(recording, "WRITE_EVERY_S", 0.01)


@pytest.fixture
def log() -> Any:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.mark.usefixtures("often")
class TestContent:
    @pytest.mark.parametrize(("caller_rate", "bot_rate"), [(8000, 8000), (8000, 16000), (24000, 8000)])
    def test_sample_for_sample(self, tmp_path: Path, caller_rate: int, bot_rate: int) -> None:
        """In many pieces, at both rates: the same as if both ends had been laid out and converted as a whole."""
        caller, bot = speech_like(600, caller_rate), speech_like(500, bot_rate)

        async def main() -> str | None:
            made = recorder(tmp_path, caller_rate, bot_rate)
            made.hear("caller", caller, made._started)
            made.hear("bot", bot, made._started)
            await asyncio.sleep(0.4)
            return await made.finished()

        left, right, rate = read(str(asyncio.run(main())))
        assert rate == max(caller_rate, bot_rate)
        for channel, pcm, own_rate in ((left, caller, caller_rate), (right, bot, bot_rate)):
            expected = np.frombuffer(resample(pcm, own_rate, rate), "<i2")
            assert np.array_equal(channel[: len(expected) - rate // 50], expected[: -rate // 50])
        assert len(left) / rate == pytest.approx(0.6, abs=0.001)

    def test_what_was_cleared_is_cut_out(self, tmp_path: Path) -> None:
        async def main() -> str | None:
            made = recorder(tmp_path)
            now = asyncio.get_running_loop().time()
            # A second in one go, as a bot sends that leaves the pace to the provider.
            made.hear("bot", tone(500, 1000, 8000), now)
            await asyncio.sleep(0.3)
            cleared = asyncio.get_running_loop().time()
            made.hear("clear", b"", cleared)
            await asyncio.sleep(0.1)
            made.hear("bot", tone(1000, 200, 8000), cleared + 0.5)
            return str(round(cleared - now, 4)) + "|" + str(await made.finished())

        played_s, _, path = str(asyncio.run(main())).partition("|")
        _, right, rate = read(path)
        (loud,) = np.nonzero(right)
        gaps = np.flatnonzero(np.diff(loud) > rate // 10)
        assert len(gaps) == 1
        assert (loud[gaps[0]] - loud[0]) / rate == pytest.approx(float(played_s), abs=0.01)
        assert (loud[gaps[0] + 1] - loud[gaps[0]]) / rate == pytest.approx(0.5, abs=0.02)

    def test_two_calls_of_one_name(self, tmp_path: Path) -> None:
        """An id may come again within the second; no recording is written over."""

        async def main() -> list[str | None]:
            made = [recorder(tmp_path) for _ in range(3)]
            for index, each in enumerate(made):
                each.hear("caller", tone(500, 100 * (index + 1), 8000), each._started)
            return [await each.finished() for each in made]

        paths = asyncio.run(main())
        assert len(set(paths)) == 3
        for index, path in enumerate(paths):
            assert np.count_nonzero(read(str(path))[0]) > 600 * (index + 1)

    def test_nobody_else_may_read_it(self, tmp_path: Path) -> None:
        async def main() -> str | None:
            return await recorder(tmp_path / "calls").finished()

        path = Path(str(asyncio.run(main())))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


class FastLoop(asyncio.SelectorEventLoop):
    """A loop on which ten minutes pass in a second."""

    def time(self) -> float:
        return super().time() * 600


def test_a_long_call_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty minutes are 38 MB on disk, and next to nothing before they are there."""
    monkeypatch.setattr(recording, "MAX_UNWRITTEN_S", 1e9)

    async def main() -> tuple[str | None, int]:
        loop = asyncio.get_running_loop()
        made = recorder(tmp_path)
        second = tone(500, 1000, 8000)
        heard = begun = loop.time()
        tracemalloc.start()
        while heard < begun + 1200:
            await asyncio.sleep(0)
            while heard + 1 < loop.time():
                made.hear("caller", second, heard)
                made.hear("bot", second, heard)
                heard += 1
            # A slow disk is not what this is about.
            while not made._job.done() and heard - begun - made._written_until > 60:
                await asyncio.wait({made._job})
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return await made.finished(), peak

    with asyncio.Runner(loop_factory=FastLoop) as runner:
        path, peak = runner.run(main())
    assert peak < 12e6
    left, right, _ = read(str(path))
    assert min(np.count_nonzero(left), np.count_nonzero(right)) > 1190 * 8000 * 0.8


class TestFailures:
    def test_a_killed_process_leaves_a_file_that_plays(self, tmp_path: Path) -> None:
        async def main(url: str) -> None:
            async with dialled(url) as carrier:
                await carrier.speak(tone(500, 4000, 8000))
                server.process.send_signal(signal.SIGKILL)
                server.process.wait()

        with server_process(tmp_path, SILENT, "-t", "twilio", "--record", str(tmp_path / "calls")) as server:
            asyncio.run(main(server.url.replace("http", "ws", 1) + "ws"))
        (path,) = (tmp_path / "calls").iterdir()
        left, _, rate = read(path)
        assert rate == 8000
        assert 2 <= len(left) / rate <= 5
        (loud,) = np.nonzero(left)
        assert (loud[-1] - loud[0]) / rate > 2

    def test_a_full_disk_ends_the_recording_and_not_the_call(self, tmp_path: Path) -> None:
        """The process may write no file of more than 60 kB, which is two seconds."""
        bot = "\n    import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n" + SILENT

        async def main(url: str) -> None:
            async with dialled(url) as carrier:
                await carrier.speak(tone(500, 4500, 8000))
                assert carrier.socket.close_code is None
                await carrier.hang_up()

        with server_process(tmp_path, bot, "-t", "twilio", "--record", str(tmp_path / "calls")) as server:
            asyncio.run(main(server.url.replace("http", "ws", 1) + "ws"))
            log = server.logged("ended by the caller")
        assert log.count("could not be recorded") == 1
        assert "File too large; what was written until then is there" in log
        assert "Traceback" not in log
        (path,) = (tmp_path / "calls").iterdir()
        left, _, rate = read(path)
        assert len(left) / rate > 0.5
        assert path.stat().st_size == 44 + 4 * len(left)

    def test_a_disk_that_is_full_from_the_start_leaves_nothing(self, tmp_path: Path) -> None:
        script = """
            import asyncio, json, resource, sys
            from pathlib import Path
            from types import SimpleNamespace
            from loguru import logger
            from wsvoice.audio import PCMU_8K
            from wsvoice.call import Call
            from wsvoice.runner.recording import CallRecorder

            async def main():
                stream = SimpleNamespace(format=PCMU_8K, outbound_format=PCMU_8K)
                made = CallRecorder(Path("calls"), Call("twilio", "CA1"), stream, logger=logger)
                made.hear("caller", bytes(16000), made._started)
                await asyncio.sleep(0.1)
                print(json.dumps([await made.finished(), [each.name for each in Path("calls").iterdir()]]))

            resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
            asyncio.run(main())
        """
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert json.loads(run.stdout) == [None, []], run.stderr
        assert run.stderr.count("could not be recorded") == 1
        assert "there is no file" in run.stderr

    @pytest.mark.usefixtures("often")
    def test_a_disk_that_hangs_holds_up_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
    ) -> None:
        monkeypatch.setattr(recording, "MAX_UNWRITTEN_S", 0.2)
        monkeypatch.setattr(recording, "FINISH_TIMEOUT_S", 0.2)
        hangs = threading.Event()
        recording._disk.submit(hangs.wait, 20)

        async def main() -> float:
            made = recorder(tmp_path)
            begun = time.monotonic()
            while not log and time.monotonic() < begun + 10:
                made.hear("caller", bytes(320), asyncio.get_running_loop().time())
                await asyncio.sleep(0.005)
            await made.finished()
            return time.monotonic() - begun

        try:
            assert asyncio.run(main()) < 5
        finally:
            hangs.set()
        (line,) = log
        assert "the disk has accepted nothing for 0.2 s" in line
