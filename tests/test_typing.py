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
IGNORE = re.compile(r"  # type: ignore\[([a-z-]+)\]$")

# The first check on a machine reads all of pipecat.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What mypy says of the bot, and of the same without its ``type: ignore``s, as ``bare.py``."""
    bare = tmp_path_factory.mktemp("bare") / "bare.py"
    lines = BOT.read_text(encoding="utf-8").splitlines()
    bare.write_text("\n".join(IGNORE.sub("", line) for line in lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--strict"]
    command += ["--no-color-output", "--no-error-summary", "--show-error-codes", str(BOT), str(bare)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


def test_a_bot_passes_strict_checks(checked: subprocess.CompletedProcess[str]) -> None:
    # A note of an older mypy says where something is defined that bare.py uses wrongly.
    found = [line for line in checked.stdout.splitlines() if not re.search(r": note: .* defined here$", line)]
    of_others = [line for line in found if not re.search(r"bare\.py:\d+: (error|note): ", line)]
    assert (of_others, checked.stderr) == ([], "")


def test_every_mistake_in_it_is_found(checked: subprocess.CompletedProcess[str]) -> None:
    lines = BOT.read_text(encoding="utf-8").splitlines()
    expected = {number: found[1] for number, line in enumerate(lines, 1) if (found := IGNORE.search(line))}
    errors = re.findall(r"bare\.py:(\d+): error: .*\[([a-z-]+)\]$", checked.stdout, re.MULTILINE)
    assert {int(number): code for number, code in errors} == expected, checked.stdout + checked.stderr
    assert len(expected) > 5
    assert checked.returncode == 1
