"""What all tests have in common: no settings from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.environment import clean_process


@pytest.fixture(scope="session", autouse=True)
def no_settings_from_outside() -> Iterator[None]:
    """Take a developer's own settings and credentials from the environment of the tests that run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        clean_process(patch)
        yield
