"""
Help texts with groups and colours that show at once.

typer's own coloured help, and from version 0.2x on the library that parses its values, take longer to import than
everything else together. So the help text is click's, coloured afterwards, and values stay texts and flags, which
:mod:`wsvoice.config` reads.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from wsvoice.config import did_you_mean
from wsvoice.errors import UsageError

# typer brings its own copy of click or uses the real one, depending on its version; either way these are the bases of
# what it exports.
ClickUsageError: Any = typer.BadParameter.__mro__[1]
ClickError: Any = typer.BadParameter.__mro__[2]

_HEADING = re.compile(r"\AUsage:|^\S[^\n]*:$", re.MULTILINE)
# A name is indented by two columns and has a second column, or is an option.
_NAME = re.compile(r"^  (-(?:\S| (?! ))*|\S(?:\S| (?! ))*(?=  +\S))", re.MULTILINE)
# Braces around an argument that is needed, and brackets around one that has some, with dots.
_MORE_AROUND = re.compile(r"\A(?:\{(.*)\}(?:\.\.\.)?|\[(\[.*)\]\.\.\.)\Z")
_DEFAULT = re.compile(r"\[default:[^\]]*\]")

_BOLD, _CYAN, _DIM, _END = "\x1b[1m", "\x1b[36m", "\x1b[2m", "\x1b[0m"


def coloured(text: str) -> str:
    """Return a help text with colours, unless the environment asks for none; click removes them for a pipe."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    # Each of its lines without the indentation.
    text = _DEFAULT.sub(lambda default: re.sub(r"\S(?:[^\n]*\S)?", rf"{_DIM}\g<0>{_END}", default[0]), text)
    text = _NAME.sub(rf"  {_CYAN}\1{_END}", text)
    return _HEADING.sub(rf"{_BOLD}\g<0>{_END}", text)


class _AsGiven:
    """A value as it is on the command line; typer would have it parsed."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        return () if value is None and param.multiple else value


class _Plain:
    """What a command and the group of commands have in common."""

    def get_params(self, ctx: Any) -> Any:
        params = super().get_params(ctx)  # type: ignore[misc]
        for each in params:
            # Only newer versions of typer, which are slow, have it.
            if hasattr(each, "get_runtime_param"):
                each.get_runtime_param = _AsGiven
        return params

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing:
            _refuse_single_dashes(args, self.get_params(ctx))
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]
        except ClickUsageError as error:
            # For an option without its value, click does not set the command.
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx
            raise

    def make_parser(self, ctx: Any) -> Any:
        """Return a parser that refuses an option given twice, where click takes the last one."""
        parser = super().make_parser(ctx)  # type: ignore[misc]
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            values, rest, order = parse(args)
            if not ctx.resilient_parsing:
                _refuse_repeated(order)
            return values, rest, order

        parser.parse_args = parse_once
        return parser

    def get_help(self, ctx: Any) -> Any:
        if os.environ.get("FORCE_COLOR"):
            ctx.color = not os.environ.get("NO_COLOR")
        return coloured(super().get_help(ctx))  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options under their headings, in columns of the same width."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for each in self.get_params(ctx):
            record = each.get_help_record(ctx)
            if record is None:
                continue
            if each.param_type_name == "argument":
                groups.setdefault("Arguments", []).append((each.metavar or each.name, record[1]))
            else:
                groups.setdefault(getattr(each, "rich_help_panel", None) or "Options", []).append(record)
        # The general options come last.
        general = groups.pop("Options", [])
        widest = max(len(name) for rows in (*groups.values(), general) for name, _ in rows)
        for heading, rows in [*groups.items(), ("Options", general)]:
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(widest), text) for name, text in rows])


def _refuse_repeated(given: Sequence[Any]) -> None:
    """Raise :exc:`UsageError` for an option that was given twice but takes one value."""
    seen: set[str] = set()
    for option in given:
        if option.param_type_name != "option" or option.multiple or option.is_flag or option.count:
            continue
        if option.name in seen:
            name = "/".join(option.opts)
            # Only `wsvoice run` serves every provider without it.
            serves_all = option.name == "transport" and "every provider" in (option.help or "")
            raise UsageError(
                f"{name} was given twice, and takes one value",
                hint=f"leave {option.opts[0]} out to serve every provider at once" if serves_all else "give it once",
            )
        seen.add(option.name)


def _refuse_single_dashes(args: Sequence[str], params: Sequence[Any]) -> None:
    """Raise :exc:`UsageError` for ``-port``, which would be read as ``-p -o -r -t``."""
    options = [each for each in params if each.param_type_name == "option"]
    long_names = {name for each in options for name in each.opts if name.startswith("--")}
    with_value = {name for each in options if not (each.is_flag or each.count) for name in each.opts}
    before = ""
    for argument in args:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if before not in with_value and re.fullmatch(r"-[a-z][a-z-]+", name) and f"-{name}" in long_names:
            raise UsageError(f"no such option: {name}", hint=f"did you mean `-{name}`?")
        before = argument


class Command(_Plain, TyperCommand):
    """A command."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the arguments as the usage line has them; newer versions of typer put more around them."""
        return [
            _MORE_AROUND.sub(lambda found: found[1] or found[2], each) for each in super().collect_usage_pieces(ctx)
        ]


class Group(_Plain, TyperGroup):
    """A group of commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; if there is none, suggest one."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-") and not ctx.resilient_parsing:
            meant = self.meant(args)
            lists = f"`{ctx.command_path} --help` lists what there is"
            raise UsageError(f"no such command {name!r}", hint=f"{meant} {lists}" if meant else lists)
        return super().resolve_command(ctx, args)

    def meant(self, args: Sequence[str]) -> str | None:
        """Return a hint that names the command that was probably meant by `args`; ``None`` if that is unknown."""
        return did_you_mean(args[0], list(self.commands))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
