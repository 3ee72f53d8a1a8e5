"""
Programs of others that tests need; a test is skipped where its program is not installed.

With ``TEST_TOOLS=required``, as ``.ci/run`` has it, it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

ARE_REQUIRED = os.environ.get("TEST_TOOLS") == "required"


def tool(name: str) -> str:
    """Return the path of a program; skip the test if it is not on PATH, nor beside this Python, or fail it."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        lack(f"{name} is not installed")
    return found


def lack(what: str) -> NoReturn:
    """Skip a test because of what is missing; fail it where all is to be there."""
    if ARE_REQUIRED:
        pytest.fail(f"{what}, and TEST_TOOLS=required")
    pytest.skip(what)


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def check(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program that must find nothing wrong; return what it printed."""
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
