"""The examples do what they are there to show, in a call to each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.environment import clean_environ
from tests.process import server_process
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial as place_call

EXAMPLES = Path(__file__).parent.parent / "examples"
RATE = 8000

# keypad.py's notes.
BEEP_HZ = 880
GREETING_HZ = [523, 659, 784]
GOODBYE_HZ = GREETING_HZ[::-1]


@dataclass(frozen=True)
class Example:
    """A call to an example: the report, and what the caller heard."""

    path: Path
    report: dict[str, Any]
    heard: NDArray[np.float64]

    def notes(self) -> list[int]:
        """
        Return the pitch in Hz of each note that was heard whole or in part, in their order.

        A note that breaks off on a busy machine, and goes on later, is one: together its parts are no longer than it.
        """
        notes: list[tuple[int, float]] = []
        step = RATE // 25
        for start, end in runs(self.heard):
            pieces = [(at, min(at + step, end)) for at in range(start, end, step)]
            pitches = [(pitch(self.heard[at:stop]), (stop - at) / RATE) for at, stop in pieces]
            for key, parts in groupby((each for each in pitches if each[0] is not None), lambda each: each[0]):
                assert key is not None
                length_s = sum(part[1] for part in parts)
                whole_s = 0.1 if key == BEEP_HZ else 0.2
                if notes and notes[-1][0] == key and notes[-1][1] + length_s < 1.4 * whole_s:
                    length_s += notes.pop()[1]
                notes.append((key, length_s))
        return [key for key, _ in notes]


def runs(samples: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return where there is sound, in samples; what is less than 80 ms apart is one run."""
    loud = np.flatnonzero(np.abs(samples) > 300)
    if not len(loud):
        return []
    breaks = [0, *(np.flatnonzero(np.diff(loud) > RATE * 80 // 1000) + 1), len(loud)]
    return [(int(loud[first]), int(loud[last - 1]) + 1) for first, last in pairwise(breaks)]


def whole(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    Return what was heard without the silence where it broke off on a busy machine, and went on later.

    It begins and ends at full strength there; a note of the keypad's swells and fades for 10 ms.
    """
    loud = np.flatnonzero(np.abs(samples) > 300)
    full, near = 0.5 * np.abs(samples).max(initial=0), RATE * 3 // 1000
    keep = np.ones(len(samples), bool)
    for before in np.flatnonzero(np.diff(loud) > RATE * 5 // 1000):
        end, start = loud[before] + 1, loud[before + 1]
        if min(np.abs(samples[end - near : end]).max(), np.abs(samples[start : start + near]).max()) > full:
            keep[end:start] = False
    return samples[keep]


def pitch(samples: NDArray[np.float64]) -> int | None:
    """Return which of the notes a piece is; ``None`` if it is none, as at the seam of two."""
    if len(samples) < RATE // 50:
        return None
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), RATE))
    loudest = int(np.argmax(spectrum))
    nearest = min([BEEP_HZ, *GREETING_HZ], key=lambda freq_hz: abs(freq_hz - loudest))
    return nearest if abs(nearest - loudest) < 25 else None


def place(path: Path, url: str, recording: Path, keys: str) -> Example:
    """Call an example that is served already, and press keys; again if a busy machine was late with its sound."""
    for _ in range(3):
        report = asyncio.run(place_call(DialConfig(target=url, dtmf=keys, record=recording)))
        if report.verdict != "passed" or not report.underruns:
            break
    return Example(path, report.to_dict(), heard_in(recording))


def dial(path: Path, recording: Path) -> Example:
    """Run `wsvoice dial` against an example's file until it ends."""
    command = [sys.executable, "-m", "wsvoice", "dial", str(path), "--json", "--record", str(recording)]
    done = subprocess.run(
        command, cwd=recording.parent, env=clean_environ(), capture_output=True, text=True, timeout=80, check=False
    )
    assert done.returncode == 0, done.stderr
    return Example(path, json.loads(done.stdout), heard_in(recording))


def heard_in(recording: Path) -> NDArray[np.float64]:
    with wave.open(str(recording)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    return whole(samples[:, 1].astype(float))


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Example]]]:
    """Calls under way by name, three at once, since most of a call is waiting; those to the keypad at one server."""
    folder = tmp_path_factory.mktemp("calls")
    with ThreadPoolExecutor(3) as pool:
        placed = {"echo": pool.submit(dial, EXAMPLES / "echo.py", folder / "echo.wav")}
        keypad = EXAMPLES / "keypad.py"
        with server_process(folder, str(keypad)) as server:
            for number, keys in enumerate(("3", "3#", "2www#", "8w*")):
                placed[keys] = pool.submit(place, keypad, server.url, folder / f"{number}.wav", keys)
            yield placed
            wait(placed.values())
            assert " ERROR " not in server.log()


def test_every_example_is_called(calls: dict[str, Future[Example]]) -> None:
    assert {call.result().path for call in calls.values()} == set(EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", ["echo", "3", "3#", "2www#", "8w*"])
def test_it_passes(calls: dict[str, Future[Example]], name: str) -> None:
    call = calls[name].result()
    assert (call.report["verdict"], call.report["close_code"]) == ("passed", 1000), call.report
    assert [found for found in call.report["findings"] if found["level"] == "fail"] == []


def test_the_echo_answers_while_the_caller_speaks(calls: dict[str, Future[Example]]) -> None:
    (turn,) = calls["echo"].result().report["turns"]
    assert turn["caller_start_ms"] < turn["bot_start_ms"] < turn["caller_end_ms"]


def test_the_keypad_greets_and_answers_a_key_with_as_many_beeps(calls: dict[str, Future[Example]]) -> None:
    call = calls["3"].result()
    assert call.notes() == [*GREETING_HZ, BEEP_HZ, BEEP_HZ, BEEP_HZ]
    # The greeting is one sound, each beep one of its own.
    assert len(runs(call.heard)) == 4
    assert call.report["ended_by"] == "caller"
    assert call.report["first_audio_ms"] < 1000


def test_the_keypad_says_goodbye_and_hangs_up(calls: dict[str, Future[Example]]) -> None:
    call = calls["2www#"].result()
    assert call.notes() == [*GREETING_HZ, BEEP_HZ, BEEP_HZ, *GOODBYE_HZ]
    assert call.report["ended_by"] == "bot"
    assert call.report["digits_sent"] == "2#"
    # Nothing of the goodbye is cut off.
    start, end = runs(call.heard)[-1]
    assert (end - start) / RATE == pytest.approx(0.6, abs=0.05)


def test_a_key_interrupts_what_the_keypad_plays(calls: dict[str, Future[Example]]) -> None:
    call = calls["8w*"].result()
    notes = call.notes()
    # A beep starts every 240 ms, and the next key comes after 700 ms.
    beeps = notes.count(BEEP_HZ)
    assert 2 <= beeps <= 5
    assert notes == [*GREETING_HZ, *[BEEP_HZ] * beeps, *GREETING_HZ]
    assert call.report["clears"] == 2

    call = calls["3#"].result()
    notes = call.notes()
    assert notes[:3] == GREETING_HZ
    assert notes[-3:] == GOODBYE_HZ
    assert len(notes) < 9
    assert call.report["ended_by"] == "bot"
