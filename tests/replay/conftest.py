"""A good call, placed once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.scenarios.menu_bot import MenuBot, serving, write_sounds
from tests.stalls import undisturbed
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial

#: The most that its bot takes to answer, in milliseconds; of itself it takes 150.
MOST_MS = 350


@pytest.fixture(scope="session")
def good_call(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the trace of a call to a :class:`MenuBot`: words, an answer, keys, their tones, and the bot hangs up."""
    folder = tmp_path_factory.mktemp("good")
    write_sounds(folder)
    with serving(MenuBot()) as fake:
        config = DialConfig(
            fake.url,
            audio=(folder / "caller.wav",),
            dtmf="12#",
            listen_s=0.1,
            from_number="+15551230001",
            trace=folder / "good.call",
        )
        # All tests are held against it: its bot was not held up either.
        for _ in range(5):
            report = undisturbed(lambda: asyncio.run(dial(config)), tries=8)
            if all(turn.response_ms is not None and turn.response_ms < MOST_MS for turn in report.turns):
                break
    assert report.verdict == "passed", report.failure
    return folder / "good.call"
