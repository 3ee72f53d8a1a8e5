"""
Everything that is printed: text for people on stderr, data on stdout.

rich makes the colours, but not for a pipe or with ``NO_COLOR``. On a terminal long lines are wrapped and indented; in
a pipe they are not wrapped. Control characters from a call or a bot are escaped, so that a caller cannot write to the
user's terminal.
"""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from functools import cached_property
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    from wsvoice.cli.live_view import LiveView, Look
    from wsvoice.config import DeployConfig, DialConfig, RealCallConfig, Resolved, RunConfig, TestConfig
    from wsvoice.dial.report import TimelineEvent
    from wsvoice.doctor.checkup import Examined
    from wsvoice.errors import WsvoiceError
    from wsvoice.page import Line

    AnyResolved = (
        Resolved[RunConfig]
        | Resolved[DialConfig]
        | Resolved[RealCallConfig]
        | Resolved[DeployConfig]
        | Resolved[TestConfig]
    )

#: The direction of a test call's events: from the caller to the bot, or back.
_TO_BOT = frozenset({"webhook", "connected", "started", "caller-speaks", "caller-silent", "digit"})
_TO_CALLER = frozenset({"answer", "bot-speaks", "bot-silent", "clear"})
_STYLES = {"caller-speaks": "cyan", "bot-speaks": "green", "finding": "yellow", "log": "dim"}
_LEVELS = {"fail": "red", "warn": "yellow"}
#: What the verdict of a call begins with that went well: of a test call, or of a real one.
_GOOD = ("passed", "completed")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_BREAKS = re.compile(r"[\t\n\u2028\u2029]")

#: How wide the names of the doctor's checks are.
_NAME_WIDTH = 18

#: How many of a served bot's last log lines are shown after calls that failed.
LOG_LINES = 20


class Output:
    """
    The terminal that a command writes to.

    Args:
        file: Where text for people goes; stderr by default.
    """

    _status: Status | None = None

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file

    @cached_property
    def console(self) -> Console:
        """The terminal. Made when it is needed, because rich takes long to import."""
        from rich.console import Console

        return Console(file=self._file, stderr=True, highlight=False, markup=False, emoji=False)

    @property
    def width(self) -> int:
        """How many columns there are; in a pipe, where nothing is cut off, as many as anything takes."""
        return self.console.width if self.console.is_terminal else 120

    @property
    def can_draw(self) -> bool:
        """Whether a whole screen can be drawn."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def drawn(self, line: Text) -> None:
        """Print a line that was drawn for :attr:`width`."""
        if not self.console.is_terminal:
            line.rstrip()
        self.console.print(line, soft_wrap=True)

    def picture(self, lines: Sequence[Line]) -> None:
        """Print a drawing that was made for :attr:`width`; its texts may be strangers'."""
        from rich.text import Text

        for each in lines:
            self.drawn(Text.assemble(*((_visible(text), style) for text, style in each.parts)))

    def live_view(self, look: Look, *, size: Callable[[], tuple[int, int]] | None = None) -> LiveView:
        """Return what draws running calls on the whole screen; `size` is the terminal's if that is not stderr's."""
        from wsvoice.cli.live_view import LiveView

        return LiveView(self.console, size or (lambda: self.console.size), look)

    def line(self, text: str = "", *, style: str = "", label: str = "", label_style: str = "") -> None:
        """Print one line after a `label` with its own style."""
        from rich.text import Text

        text = _visible(text)
        width = self.console.width - len(label)
        if self.console.is_terminal and label and len(text) > width >= 20:
            # By hand, because rich does not indent wrapped lines.
            first, *rest = textwrap.wrap(text, width, break_on_hyphens=False) or [""]
            text = "\n".join([first, *(" " * len(label) + line for line in rest)])
        self.console.print(Text.assemble((label, label_style), (text, style)), soft_wrap=True)

    def over(self, text: str) -> None:
        """On a terminal, print one line in place of what stands on the cursor's, such as a ``^C``."""
        if self.console.is_terminal:
            self.console.file.write("\r")
            self.line(text)

    def block(self, text: str, *, style: str = "") -> None:
        """Print lines as they are, a traceback for instance."""
        for line in text.splitlines():
            self.line(line, style=style)

    def warning(self, text: str) -> None:
        """Print a warning."""
        self.line(text, label="warning: ", label_style="bold yellow")

    def warnings(self, resolved: AnyResolved) -> None:
        """Print what is probably a mistake in the settings."""
        for text in resolved.warnings:
            self.warning(text)

    def note(self, text: str) -> None:
        """Print a note."""
        self.line(text, label="note: ", label_style="bold")

    def error(self, message: str, *, hint: str | None = None, details: str = "") -> None:
        """Print what went wrong, and what to do about it."""
        if details:
            self.block(details, style="dim")
        self.line(message, label="error: ", label_style="bold red")
        if hint:
            self.line(hint, label="hint:  ", label_style="bold cyan")

    def hint(self, text: str) -> None:
        """Print what to do about what was printed before; nothing for an empty `text`."""
        if text:
            self.line(text, label="hint: ", label_style="bold cyan")

    def examined(self, examined: Examined, *, quiet: bool) -> None:
        """Print what one of the doctor's checks found; where it is to be `quiet`, only what is wrong."""
        name = f"{examined.name:<{_NAME_WIDTH}}"
        for each in examined.results:
            if quiet and each.level not in _LEVELS:
                continue
            style = _LEVELS.get(each.level, "green" if each.level == "ok" else "dim")
            text_style = _LEVELS.get(each.level, "" if each.level == "ok" else "dim")
            self.line(each.message, label=f"{each.level:<8} {name} ", label_style=style, style=text_style)
            if each.hint:
                self.line(each.hint, label=f"{'':<8} {'hint:':>{_NAME_WIDTH}} ", label_style="bold cyan")
            name = " " * _NAME_WIDTH

    def failure(self, error: WsvoiceError) -> None:
        """Print one of wsvoice's errors."""
        self.error(error.message, hint=error.hint, details=getattr(error, "details", ""))

    def data(self, value: Mapping[str, object]) -> None:
        """Write one object as a line of JSON to stdout."""
        # Help is printed without it.
        import json

        sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def text(self, text: str) -> None:
        """Write a whole file to stdout as it is."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def fields(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print names and values in two columns."""
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self.line(value, label=f"  {name:<{width}}  ", label_style="bold")

    def settings(self, resolved: AnyResolved) -> None:
        """Print every setting and where it comes from."""
        rows = [(name, _plain(value), resolved.origins[name]) for name, value in resolved.values.items()]
        names = max(len(name) for name, _, _ in rows)
        values = max(len(value) for _, value, _ in rows)
        for name, value, origin in rows:
            style = "dim" if origin == "default" else ""
            self.line(f"  {name:<{names}} = {value:<{values}}  ({origin})", style=style)
        if resolved.env_file is not None:
            self.line(f"  {resolved.env_file} was read", style="dim")

    def event(self, event: TimelineEvent) -> None:
        """Print one line of a test call's timeline."""
        if event.kind in ("log", "caller-log"):
            self.log_line(event.text)
            return
        arrow = ">" if event.kind in _TO_BOT else "<" if event.kind in _TO_CALLER else " "
        self.moment(event.at_ms / 1000, event.text, style=_STYLES.get(event.kind, ""), arrow=arrow)

    def moment(self, at_s: float, text: str, *, style: str = "", arrow: str = " ") -> None:
        """Print what happened in a call, so many seconds after its start; an `arrow` says who did it to whom."""
        self.line(text, style=style, label=f"{at_s:8.3f} {arrow} ", label_style="dim")

    def log_line(self, text: str) -> None:
        """Print a line that the served bot wrote."""
        self.line(text, style="dim", label=" " * 11 + "| ", label_style="dim")

    def last_lines(self, whose: str, lines: Collection[str]) -> None:
        """Print the last lines of a bot's log, if there are any; `whose` bot's it is: ``bot's`` or ``caller's``."""
        if lines:
            self.line(f"The last lines of the {whose} log:", style="dim")
            for line in lines:
                self.log_line(line)

    def result(self, lines: Sequence[str], data: Mapping[str, object] | None, *, quiet: bool) -> None:
        """
        Print a report.

        Args:
            lines: For people; the last one is the verdict.
            data: For programs, or ``None``.
            quiet: Print no lines; the verdict alone where there is no `data`.
        """
        if data is not None:
            self.data(data)
        if not quiet:
            self.report(lines)
        elif data is None:
            self.report(lines[-1:])

    def report(self, lines: Sequence[str]) -> None:
        """Print a call's report; its last line is the verdict."""
        *rest, verdict = lines
        self.lines(rest)
        self.verdict(verdict)

    def lines(self, lines: Sequence[str]) -> None:
        """Print what a report says before its verdict."""
        for line in lines:
            level = line.partition(" ")[0]
            label, text = self._split_label(line)
            self.line(text, label=label, label_style=_LEVELS.get(level, ""), style=_LEVELS.get(level, ""))

    def verdict(self, verdict: str) -> None:
        """Print a call's verdict, and below it what the bot said last if it died."""
        verdict, *last_words = verdict.splitlines()
        style = "bold green" if verdict.partition(":")[0] in _GOOD else "bold red"
        label, text = self._split_label(verdict)
        self.line(text, style=style, label=label, label_style=style)
        for line in last_words:
            self.log_line(line)

    @staticmethod
    def _split_label(line: str) -> tuple[str, str]:
        """Split ``turn 1: caller ...`` after the colon; wrapped lines are indented to there."""
        label, colon, text = line.partition(": ")
        return (f"{label}: ", text) if colon and len(label) < 16 else ("", line)

    @property
    def can_ask(self) -> bool:
        """Whether somebody is there to read a question and answer it."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def ask(self, question: str, *, default: str) -> str:
        """Return the user's answer, or `default` for an empty one; raise :exc:`EOFError` if the input has ended."""
        from rich.prompt import Prompt

        return Prompt.ask(question, console=self.console, default=default).strip()

    def tree(self, root: str, files: Sequence[tuple[str, str]]) -> None:
        """Print the paths below `root` as a tree, with a note for each file in a second column."""
        rows: list[tuple[str, str]] = []
        shown: tuple[str, ...] = ()
        for path, note in files:
            *folders, name = path.split("/")
            for depth, folder in enumerate(folders):
                if tuple(folders[: depth + 1]) != shown[: depth + 1]:
                    rows.append((f"{'  ' * (depth + 1)}{folder}/", ""))
            shown = tuple(folders)
            rows.append((f"{'  ' * (len(folders) + 1)}{name}", note))
        width = max((len(left) for left, _ in rows), default=0)
        notes = max((len(note) for _, note in rows), default=0)
        self.line(f"{root.rstrip('/')}/", style="bold")
        for left, note in rows:
            self.line(f"{left:<{width}}  {note:>{notes}}".rstrip())

    def progress(self, text: str) -> AbstractContextManager[object]:
        """Show on a terminal that something takes a while."""
        if not sys.stderr.isatty():
            return nullcontext()
        self._status = self.console.status(_unmarked(text))
        return self._status

    def show_progress(self, text: str) -> bool:
        """Replace the text of :meth:`progress`; false if there is no terminal that shows it."""
        if self._status is None:
            return False
        self._status.update(_unmarked(text))
        return True

    @contextmanager
    def alone(self) -> Iterator[io.StringIO]:
        """Keep from the terminal what others print in this process, and return what that is."""
        words = io.StringIO()
        # rich asks for stderr each time.
        self.console.file = self.console.file
        with redirect_stdout(words), redirect_stderr(words):
            yield words


def _unmarked(text: str) -> Text:
    """Return a text for what takes others as rich's markup, where ``menu[twilio]`` has a tag."""
    from rich.text import Text

    return Text(_visible(text))


def _visible(text: str) -> str:
    """Escape what would move the cursor, change colours or start a new line."""
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    return _LINE_BREAKS.sub(" ", text)


def _plain(value: object) -> str:
    """Return a setting's value as on the command line."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "-"
    if isinstance(value, tuple | frozenset):
        items = [str(item) for item in value]
        return ",".join(sorted(items) if isinstance(value, frozenset) else items) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}s"
    return "-" if value is None or value == "" else str(value)
