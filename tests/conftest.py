"""What all tests need of the process that they run in."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.environment import clean_process

# A shell starts background jobs with SIGINT ignored, and a process hands that on to those that it starts; the
# tests that press Ctrl-C need servers which listen to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Take a developer's own settings and credentials from the environment of the tests that run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        yield
