"""The public API's types, as a user's own strict type checker sees them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

ROOT = Path(__file__).parents[1]
BOT = ROOT / "tests" / "typing" / "bot.py"

# The first check on a machine reads all of pipecat.
pytestmark = pytest.mark.timeout(300)


def check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict"]
    command += ["--no-color-output", "--no-error-summary", "--show-error-codes", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_a_bot_passes_strict_checks() -> None:
    result = check(BOT)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_every_mistake_in_it_is_found(tmp_path: Path) -> None:
    lines = BOT.read_text(encoding="utf-8").splitlines()
    ignore = re.compile(r"  # type: ignore\[([a-z-]+)\]$")
    expected = {number: found[1] for number, line in enumerate(lines, 1) if (found := ignore.search(line))}
    bare = tmp_path / "bare.py"
    bare.write_text("\n".join(ignore.sub("", line) for line in lines) + "\n", encoding="utf-8")

    result = check(bare)

    errors = re.findall(r"bare\.py:(\d+): error: .*\[([a-z-]+)\]$", result.stdout, re.MULTILINE)
    assert {int(number): code for number, code in errors} == expected, result.stdout + result.stderr
    assert len(expected) > 5
    assert result.returncode == 1
