"""A small telephone company, in the place of a known one; and the servers of the runner's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.phone import acme
from tests.runner.conftest import serve

__all__ = ["company", "serve", "state"]


@pytest.fixture
def company(monkeypatch: pytest.MonkeyPatch) -> Iterator[acme.Company]:
    """A company with one number, and its API."""
    with acme.company() as made:
        monkeypatch.setenv(acme.API_VARIABLE, made.url)
        acme.take_over(patch=monkeypatch.setattr)
        yield made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A folder for state that does not exist yet."""
    return tmp_path / "state"
