"""
Write the pages of the commands from their help texts: ``python docs/generate.py``.

The help is printed as on a terminal of 80 columns without colours. ``tests/test_docs.py`` fails while a page is behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from wsvoice.config import DIAL_SETTINGS, RUN_SETTINGS, Setting

FOLDER = Path(__file__).parent / "commands"
COMMANDS: dict[str, Sequence[Setting]] = {"run": RUN_SETTINGS, "dial": DIAL_SETTINGS, "init": ()}
TABLES = {"run": "tool.wsvoice", "dial": "tool.wsvoice.dial"}
EXIT_CODES = {
    "run": "0 when SIGTERM stopped it, 1 when it failed, 2 for misuse, 130 when Ctrl-C stopped it",
    "dial": "0 when the call passed, 1 when it failed, 2 for misuse, 130 when it was interrupted",
    "init": "0 when the project is there, 1 when it could not be written, 2 for misuse, 130 when it was interrupted",
}


def help_text(command: str) -> str:
    """Return what `wsvoice COMMAND --help` prints."""
    # Colours, and a width of the caller's own, would get into the page.
    environ = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "LINES")}
    environ |= {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(
        [sys.executable, "-m", "wsvoice", command, "--help"], env=environ, capture_output=True, text=True, check=True
    )
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def page(command: str) -> str:
    """Return the page of a command."""
    parts = [
        "<!-- Written by docs/generate.py from the help text. Do not edit. -->",
        f"# wsvoice {command}",
        f"```text\n{help_text(command)}\n```",
        f"Exit codes: {EXIT_CODES[command]}.",
    ]
    if settings := COMMANDS[command]:
        rows = [
            f"| `{each.name}` | {', '.join(f'`{name}`' for name in each.variables(command))} |" for each in settings
        ]
        parts += [
            "## Settings",
            "Each may also stand in the environment, in `.env`, or in `pyproject.toml`, where its name is a key of "
            f"`[{TABLES[command]}]`.\nThe flag goes first, then the environment, `.env`, `pyproject.toml`; "
            "`-v` says where each comes from.",
            "| setting | variable; the first that is set counts |\n|---|---|\n" + "\n".join(rows),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        (FOLDER / f"{command}.md").write_text(page(command), encoding="utf-8")


if __name__ == "__main__":
    main()
