"""An Asterisk for the tests of this folder; they are skipped where there is none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asterisk.pbx import Pbx, asterisk
from tests.asterisk.programs import Programs

#: Read here because the tests run without settings from outside.
FOLDER = os.environ.get("REAL_ASTERISK")


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Asterisk and baresip, as ``install.sh`` installs them."""
    if not FOLDER:
        pytest.skip("REAL_ASTERISK names no folder; tests/asterisk/install.sh makes one")
    found = Programs(Path(FOLDER))
    if missing := found.missing():
        pytest.skip(f"REAL_ASTERISK: {missing}; tests/asterisk/install.sh makes it")
    return found


@pytest.fixture
def lab() -> Iterator[Path]:
    """Return an empty folder whose path is short enough for Unix sockets; pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="pbx") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def pbx(programs: Programs) -> Iterator[Pbx]:
    """Run an Asterisk for the tests of a module; each gives it the extensions that it needs."""
    with tempfile.TemporaryDirectory(prefix="pbx") as name, asterisk(programs, Path(name)) as running:
        yield running
