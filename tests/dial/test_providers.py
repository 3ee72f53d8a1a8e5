"""Whole calls of every provider, to one server of all of them, and to bots that are served for the call."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bots.calls_back import OVER_S
from tests.environment import clean_environ, clean_process
from tests.providers.companies import load_provider
from tests.signals import speech_like
from wsvoice.audio import write_wav
from wsvoice.config import DialConfig
from wsvoice.dial import CallReport, TimelineEvent
from wsvoice.dial.caller import dial
from wsvoice.providers import PROVIDERS

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "examples" / "echo.py"
CALLER = f"{ROOT / 'tests' / 'bots' / 'calls_back.py'}:caller"
BRIEF_CALLER = CALLER.replace(":caller", ":brief_caller")
#: Of whose call the sound is followed for long; the others' differs in its format, which a few seconds show.
LONGEST = "twilio"

#: The others are served for whole calls in test_bot_files.py and test_api_commands.py.
SERVED = [name for name in PROVIDERS if name not in ("twilio", "telnyx", "plivo")]

SEED, OTHER_SEED = bytes(range(32)), bytes(32)


@dataclass(frozen=True)
class Placed:
    """A call's report and timeline."""

    report: CallReport
    events: list[TimelineEvent]

    def told(self, kind: str) -> list[str]:
        return [event.text for event in self.events if event.kind == kind]

    def found(self) -> list[tuple[str, str]]:
        # Servers that start beside a call may hold it up; its pace is looked at elsewhere.
        return [(found.id, found.message) for found in self.report.findings if found.id != "M2"]


async def place(target: Path | str, **settings: Any) -> Placed:
    events: list[TimelineEvent] = []
    config = DialConfig(**{"target": str(target), "listen_s": 0.0, **settings})
    async with asyncio.timeout(60):
        return Placed(await dial(config, on_event=events.append), events)


@contextmanager
def server(folder: Path, environ: dict[str, str]) -> Iterator[str]:
    """Serve the echo for every provider; the address is what is given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wsvoice", "run", str(ECHO), "--host", "127.0.0.1", "--port", "0", "--json"],
        cwd=folder,
        env=clean_environ(**environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Placed]:
    """Place every call of this file, by name."""
    folder = tmp_path_factory.mktemp("calls")
    clip = folder / "clip.wav"
    write_wav(clip, [speech_like(400, 8000)], 8000)
    credentials = {name: load_provider(name).test_credentials(SEED) for name in PROVIDERS}
    strangers = {name: load_provider(name).test_credentials(OTHER_SEED)[0] for name in PROVIDERS}
    environ = {key: value for _, bots in credentials.values() for key, value in bots.items()}

    async def place_all(url: str) -> dict[str, Placed]:
        # Each goes at the pace of a real call, and a busy machine holds only so many.
        # Those between two bots have lanes of their own: two pipelines that are late fall behind for good.
        few, few_of_bots = asyncio.Semaphore(2), asyncio.Semaphore(2)

        async def soon(target: Path | str, **settings: Any) -> Placed:
            async with few_of_bots if "caller" in settings else few:
                return await place(target, **settings)

        wanted = {}
        for name in PROVIDERS:
            running: dict[str, Any] = {"target": f"{url}{name}", "transport": name}
            wanted[f"bots {name}"] = soon(
                **running,
                caller=CALLER if name == LONGEST else BRIEF_CALLER,
                duration_s=45.0,
                record=folder / f"{name}.wav",
                credentials=credentials[name][0],
            )
            wanted[f"running {name}"] = soon(**running, audio=(clip,), credentials=credentials[name][0])
            wanted[f"stranger {name}"] = soon(**running, audio=(clip,), credentials=strangers[name])
            wanted[f"unsigned {name}"] = soon(**running, audio=(clip,))
        for name in SERVED:
            wanted[f"served {name}"] = soon(ECHO, transport=name, audio=(clip,), parameters={"language": "en"})
        return dict(zip(wanted, await asyncio.gather(*wanted.values()), strict=True))

    with pytest.MonkeyPatch.context() as patch, server(folder, environ) as url:
        # Settings of the project around the tests, and of the shell, have no place in these calls.
        clean_process(patch)
        patch.chdir(folder)
        return asyncio.run(place_all(url))


@pytest.mark.parametrize(
    ("how", "name"), [*(("running", name) for name in PROVIDERS), *(("served", name) for name in SERVED)]
)
def test_an_echo_passes_without_findings(how: str, name: str, calls: dict[str, Placed]) -> None:
    placed = calls[f"{how} {name}"]
    assert (placed.report.provider, placed.report.failure, placed.found()) == (name, None, [])
    assert placed.report.turns[0].response_ms is not None
    assert (placed.report.ended_by, placed.report.close_code) == ("caller", 1000)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_stranger_is_refused(name: str, calls: dict[str, Placed]) -> None:
    if not load_provider(name).signs:
        pytest.skip(f"{name} signs nothing")
    # What signs a test call, which is not always what the server checks it with.
    secrets = " and ".join(load_provider(name).test_credentials(bytes(32))[0])
    assert calls[f"stranger {name}"].report.failure == (
        f"the webhook refused the call: 403 (compare {secrets} with the server's)"
    )
    failure = calls[f"unsigned {name}"].report.failure
    # Whoever sends a password only when asked is asked.
    status = 401 if load_provider(name).challenge else 403
    assert (
        failure == f"the webhook refused the call: {status} (it checks who calls; set {secrets} to match the server's)"
    )


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_provider_that_signs_nothing_is_let_in(name: str, calls: dict[str, Placed]) -> None:
    if load_provider(name).signs:
        pytest.skip(f"{name} signs")
    assert calls[f"unsigned {name}"].report.verdict == "passed"


def tones(pcm: np.ndarray[Any, Any], rate: int) -> tuple[list[int], int]:
    """
    Return which of the caller's two tones sound, in Hz and in their order; one that breaks off is still one.

    Returns:
        The tones; and how often one broke off for so long that the caller took it for over.
    """
    size = rate // 20
    found: list[int] = []
    clear = unclear = silent = breaks = 0
    for start in range(0, len(pcm) - size, size):
        piece = pcm[start : start + size].astype(np.float64)
        if np.sqrt(np.mean(piece**2)) < 2000:
            silent += 1
            continue
        spectrum = np.abs(np.fft.rfft(piece * np.hanning(size), rate))
        heard = 1000 if spectrum[1000] > spectrum[600] else 600
        # A piece in which the sound breaks off and goes on has no one pitch; most have.
        if spectrum[heard] < 0.5 * spectrum.max():
            unclear += 1
            continue
        clear += 1
        silent_s, silent = silent * size / rate, 0
        if found[-1:] != [heard]:
            found.append(heard)
        elif silent_s >= OVER_S - 0.05:
            breaks += 1
    assert unclear <= clear / 5, (unclear, clear)
    return found, breaks


@pytest.mark.parametrize("name", PROVIDERS)
def test_two_bots_hear_each_other(name: str, calls: dict[str, Placed]) -> None:
    report = calls[f"bots {name}"].report
    assert report.failure is None
    # How soon a busy machine lets the bot answer is no matter here.
    assert [found for found in calls[f"bots {name}"].found() if found[0] != "S3"] == []
    # The caller hung up by itself, when it had talked for long enough.
    assert report.ended_by == "caller"
    assert (10_000 if name == LONGEST else 2000) <= report.duration_ms < 45_000
    assert report.turns
    with wave.open(str(report.recording)) as file:
        rate = file.getframerate()
        both = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    # The caller says each tone when the bot has repeated the one before; it hangs up behind its last one.
    (said, _), (heard, breaks) = tones(both[:, 0], rate), tones(both[:, 1], rate)
    # Where an answer broke off on a busy machine, the caller speaks into the rest of it, and the next one has no begin.
    assert [turn.response_ms for turn in report.turns[:-1]].count(None) <= breaks
    assert len(said) >= (6 if name == LONGEST else 4)
    assert said == [1000, 600] * (len(said) // 2)
    assert heard in (said, said[:-1])


def test_a_caller_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.dial import fake_bots
    from tests.dial.fake_bots import fake_bot

    monkeypatch.chdir(tmp_path)

    async def run() -> Placed:
        async with fake_bot(fake_bots.echo) as bot:
            return await place(bot.url, caller=CALLER.replace(":caller", ":fails"))

    placed = asyncio.run(run())
    assert placed.report.failure is not None
    assert placed.report.failure.startswith(
        "the caller's bot calls_back.py:fails raised RuntimeError: a bug in the caller (calls_back.py:"
    )
    assert placed.report.ended_by == "caller"
    assert placed.report.duration_ms < 5000
    assert any("RuntimeError: a bug in the caller" in line for line in placed.told("caller-log"))
