"""
Commands whose help has groups and colours, and shows at once.

typer's own coloured help takes longer to import than everything else together, and so does the library with which it
reads values from version 0.2x on. So the text is click's, coloured when it is finished, and values stay what they are
on the command line: texts and flags, which :mod:`wsvoice.config` reads.
"""

from __future__ import annotations

import os
import re
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# typer brings its own copy of click or uses the real one, depending on its version; either way this is the base of
# what it exports.
UsageError: Any = typer.BadParameter.__mro__[1]

_HEADING = re.compile(r"^\S[^\n]*:$", re.MULTILINE)
_USAGE = re.compile(r"\AUsage:")
# A name is what stands two columns from the left and has a second column, or is an option's with none.
_NAME = re.compile(r"^  (-(?:\S| (?! ))*|\S(?:\S| (?! ))*(?=  +\S))", re.MULTILINE)
_DEFAULT = re.compile(r"\[default:[^\]]*\]")

_BOLD, _CYAN, _DIM, _END = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"


def coloured(text: str) -> str:
    """Return a help text with colours, unless the environment asks for none; a pipe takes them out again."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    text = _DEFAULT.sub(lambda found: _lines(found[0], _DIM), text)
    text = _NAME.sub(lambda found: f"  {_CYAN}{found[1]}{_END}", text)
    text = _USAGE.sub(lambda found: f"{_BOLD}{found[0]}{_END}", text)
    return _HEADING.sub(lambda found: f"{_BOLD}{found[0]}{_END}", text)


def _lines(text: str, style: str) -> str:
    """Colour each line by itself, and not what it is indented by."""
    return re.sub(r"\S(?:[^\n]*\S)?", lambda found: f"{style}{found[0]}{_END}", text)


class _AsGiven:
    """A value as it stands on the command line, where typer would have it checked by a library of its own."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return () if value is None and param.multiple else value


class _Plain:
    """What a command and the group of commands have in common."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for each in params:
            # Only newer versions of typer have it; without it nothing is slow.
            if hasattr(each, "get_runtime_param"):
                each.get_runtime_param = _AsGiven
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except UsageError as error:
            # An option without its value does not say of which command it is.
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx
            raise

    def get_help(self, ctx: Any) -> Any:
        if os.environ.get("FORCE_COLOR"):
            ctx.color = not os.environ.get("NO_COLOR")
        return coloured(super().get_help(ctx))  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under the headings that they name, in columns of the same width."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is None:
                continue
            if each.param_type_name == "argument":
                groups.setdefault("Arguments", []).append((each.metavar or each.name, record[1]))
            else:
                groups.setdefault(getattr(each, "rich_help_panel", None) or "Options", []).append(record)
        # What every command has comes last, whatever stands above it.
        general = groups.pop("Options", [])
        widest = max(len(name) for rows in (*groups.values(), general) for name, _ in rows)
        for heading, rows in [*groups.items(), ("Options", general)]:
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), text) for name, text in rows])


class Command(_Plain, TyperCommand):
    """A command."""


class Group(_Plain, TyperGroup):
    """A group of commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
