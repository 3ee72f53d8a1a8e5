"""
Write what is generated in the docs.

``python docs/generate.py`` writes the pages of the commands from their help texts, as a terminal of 80 columns without
colours shows them, and the JSON Schema of scenarios. ``python docs/generate.py picture`` places a call, and keeps its
picture and its recording in ``docs/images/``. ``tests/test_docs.py`` fails while a page or the picture is behind.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

from wsvoice.config import DEPLOY_SETTINGS, DIAL_SETTINGS, REAL_CALL_SETTINGS, RUN_SETTINGS, TEST_SETTINGS, Setting
from wsvoice.scenarios.schema import json_schema

FOLDER = Path(__file__).parent / "commands"
SCHEMA = Path(__file__).parent / "call.schema.json"
IMAGES = Path(__file__).parent / "images"
#: The call of the picture, placed in the root of the repository.
CALL = ("wsvoice", "dial", "examples/echo.py", "--record", "docs/images/dial.wav")
#: By name, because some of a call to a phone number are those of a test call too.
_DIAL_SETTINGS = {each.name: each for each in (*REAL_CALL_SETTINGS, *DIAL_SETTINGS)}
COMMANDS: dict[str, Sequence[Setting]] = {
    "run": RUN_SETTINGS,
    "dial": sorted(_DIAL_SETTINGS.values(), key=lambda each: each not in DIAL_SETTINGS),
    "phone": (),
    "show": (),
    "hangup": (),
    "init": (),
    "doctor": (),
    "number": (),
    "calls": (),
    "deploy": DEPLOY_SETTINGS,
    "test": TEST_SETTINGS,
}
#: The commands of a group, which are on one page.
GROUPS = {"number": ("list", "show", "restore"), "calls": ("end",), "deploy": ("k8s", "compose")}
TABLES = {"run": "tool.wsvoice"} | {name: f"tool.wsvoice.{name}" for name in ("dial", "deploy", "test")}
EXIT_CODES = {
    "run": "0 when Ctrl-C or SIGTERM stopped it, or --check found nothing wrong; 1 when it failed, 2 for misuse, "
    "130 when a second Ctrl-C did",
    "dial": "0 when the call passed, or was answered and ended normally; 1 when it failed, 2 for misuse, "
    "130 when it was interrupted",
    "phone": "0 when Ctrl-C or SIGTERM ended it, 1 when it could not be served, 2 for misuse",
    "show": "0 for success, 2 for misuse and for a trace that cannot be shown",
    "hangup": "0 when the call is over, 1 when it could not be ended, 2 for misuse, 130 when it was interrupted",
    "number": "0 for success, 1 when the provider refuses or a number cannot be put back, 2 for misuse",
    "deploy": "0 when the files are written, 1 when they could not be, 2 for misuse",
    "test": "0 when all passed, 1 when a scenario failed, 2 when one cannot be used or for misuse, "
    "130 when it was interrupted",
    "calls": "0 for success, 1 when a server cannot be asked or has no such call, 2 for misuse or when no server runs, "
    "130 when `--watch --json` was interrupted",
    "init": "0 when the project is there, 1 when it could not be written, 2 for misuse, 130 when it was interrupted",
    "doctor": "0 when nothing failed, 1 when something did, or a call or a code is not known, 2 for misuse, "
    "130 when it was interrupted",
}


def help_text(*command: str) -> str:
    """Return what `wsvoice COMMAND --help` prints."""
    # Colours, and a width of the caller's own, would get into the page.
    environ = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "LINES")}
    environ |= {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
    shown = subprocess.run(
        [sys.executable, "-m", "wsvoice", *command, "--help"], env=environ, capture_output=True, text=True, check=True
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
    for name in GROUPS.get(command, ()):
        parts += [f"## wsvoice {command} {name}", f"```text\n{help_text(command, name)}\n```"]
    if settings := COMMANDS[command]:
        rows = [
            f"| `{each.name}` | {', '.join(f'`{name}`' for name in each.variables(command))} |" for each in settings
        ]
        parts += [
            "## Settings",
            "Each may also be in the environment, in `.env`, or in `pyproject.toml`, where its name is a key of "
            f"`[{TABLES[command]}]`.\nThe flag goes first, then the environment, `.env`, `pyproject.toml`; "
            "`-v` says where each comes from.",
            "| setting | variable; the first that is set counts |\n|---|---|\n" + "\n".join(rows),
        ]
    return "\n\n".join(parts) + "\n"


def call_text(*arguments: str) -> str:
    """Place a call with the given command line, and return what a terminal of 100 columns shows, colours included."""
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    environ |= {"COLUMNS": "100", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    shown = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=Path(__file__).parents[1],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return shown.stderr


def picture(command: str, shown: str) -> str:
    """Return an SVG of a terminal in which `command` has shown something."""
    console = Console(record=True, width=100, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {command}", style="bold"))
    console.print(Text.from_ansi(shown.rstrip()))
    svg = console.export_svg(title="wsvoice", unique_id="dial")
    # rich names a font on somebody's server, which a viewer without a network, or with a strict policy, never gets.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace")


def schema_text() -> str:
    """Return the JSON Schema of scenarios, as `wsvoice test --schema` prints it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    if sys.argv[1:] == ["picture"]:
        IMAGES.mkdir(exist_ok=True)
        svg = picture(" ".join(CALL), call_text(*CALL))
        (IMAGES / "dial.svg").write_text(svg, encoding="utf-8")
        return
    FOLDER.mkdir(exist_ok=True)
    for command in COMMANDS:
        (FOLDER / f"{command}.md").write_text(page(command), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
