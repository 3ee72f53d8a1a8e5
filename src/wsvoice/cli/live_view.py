"""
Running calls as a terminal shows them: once, or again and again on the whole screen.

What is shown comes from callers, from bots and from their logs, so that nothing of it may reach the terminal as it is:
it is shown as plain text, without the characters that would move the cursor.
"""

from __future__ import annotations

import re
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.text import Text

from wsvoice.call import plural, short_id

if TYPE_CHECKING:
    from rich.console import Console

    from wsvoice.runner.figures import CallFigures, ServerFigures, Snapshot

#: What is shown: servers, the last lines of a log or ``None``, and a note.
Look = Callable[[], tuple["Sequence[Snapshot]", "Sequence[str] | None", str]]

#: How often the screen is drawn, in seconds.
DRAW_EVERY_S = 0.5
#: How many lines of the log are shown at least, and how many calls of each server, where there is room for both.
LOG_LINES, CALL_LINES = 5, 3
#: What stands before the rest of a line of the log that is wrapped.
LOG_INDENT = " " * 4
#: How many lines of the screen one of the log may take.
WRAPPED_LINES = 4
#: The quietest level that has a bar, in dBFS, and from where on it is too loud.
QUIETEST_DBFS, LOUD_DBFS = -60.0, -6.0
#: A wait of this many seconds is long for a telephone call.
LONG_WAIT_S = 2.0
#: An event loop that is later than this is heard as gaps.
LATE_S = 0.05
#: How much of a text is looked at.
TEXT_LIMIT = 200
#: How long the end waits for a terminal that takes nothing (Ctrl-S).
STOP_TIMEOUT_S = 1.0

_LOG_LEVEL = re.compile(r"\d\d:\d\d:\d\d\.\d{3} ([A-Z]+) ")
_LOG_STYLES = {"DEBUG": "blue", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "SUCCESS": "green"}
_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)?")
#: An eighth of a character to a whole one.
_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class _Column:
    """A column: its heading, its width and the most that it may become; those of the lowest rank go first."""

    heading: str
    width: int
    most: int
    rank: int
    cell: Callable[[CallFigures, int], Text]
    to_the_right: bool = False


def plain(text: str) -> str:
    """Return a text that can do nothing to a terminal: escape sequences are left out, other such characters escaped."""
    text = _ESCAPES.sub("", text.expandtabs(4))
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def age(seconds: float) -> str:
    """Return a duration as a clock shows it: 0:05, 12:30, 1:02:03."""
    minutes, rest = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def bar(level: float | None, width: int) -> Text:
    """Return a level in dBFS as a bar; nothing for silence."""
    if level is None or level <= QUIETEST_DBFS:
        return Text(" " * width)
    eighths = round((1 - max(0.0, -level) / -QUIETEST_DBFS) * width * 8)
    whole, rest = divmod(max(1, eighths), 8)
    shown = ("█" * whole + _BLOCKS[rest].strip()).ljust(width)
    return Text(shown, "red" if level > LOUD_DBFS else "green")


def _late(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _text(value: str, width: int, style: str = "") -> Text:
    """Return a text that is exactly `width` wide; what does not fit is cut off."""
    value = plain(value[:TEXT_LIMIT])
    if cell_len(value) > width:
        value = f"{set_cell_size(value, max(0, width - 1))}…"
    return Text(set_cell_size(value, width), style)


def _wait(call: CallFigures, width: int) -> Text:
    if call.last_wait_s is None:
        return Text(" " * width)
    return _text(f"{call.last_wait_s:.2f} s".rjust(width), width, "yellow" if call.last_wait_s > LONG_WAIT_S else "")


_COLUMNS = (
    _Column("call", 13, 16, 9, lambda call, width: _text(short_id(call.id) or "(begins)", width)),
    _Column("age", 7, 7, 8, lambda call, width: _text(age(call.age_s).rjust(width), width), to_the_right=True),
    _Column("from", 12, 24, 6, lambda call, width: _text(call.from_number or _who(call), width)),
    _Column("to", 12, 24, 4, lambda call, width: _text(call.to_number or "-", width)),
    _Column("provider", 9, 9, 2, lambda call, width: _text(call.provider, width)),
    _Column("caller", 6, 16, 7, lambda call, width: bar(call.heard_dbfs, width)),
    _Column("bot", 6, 16, 7, lambda call, width: bar(call.sent_dbfs, width)),
    _Column("wait", 7, 7, 5, _wait, to_the_right=True),
)
_PID = _Column("process", 7, 7, 1, lambda call, width: _text(str(call.pid).rjust(width), width), to_the_right=True)


def _who(call: CallFigures) -> str:
    return "a client" if call.kind == "client" else "-"


def _fitted(columns: Sequence[_Column], width: int) -> list[tuple[_Column, int]]:
    """Return the columns for which there is room, and how wide each is."""
    kept = list(columns)
    while len(kept) > 1 and sum(each.width + 1 for each in kept) - 1 > width:
        kept.remove(min(kept, key=lambda each: each.rank))
    widths = [each.width for each in kept]
    spare = width - sum(widths) - len(kept) + 1
    while spare > 0 and any(now < each.most for now, each in zip(widths, kept, strict=True)):
        for index, each in enumerate(kept):
            if spare > 0 and widths[index] < each.most:
                widths[index] += 1
                spare -= 1
    return list(zip(kept, widths, strict=True))


def snapshot_lines(snapshot: Snapshot, width: int, *, most: int | None = None) -> Iterator[Text]:
    """Yield the table of a server's calls, in at most so many lines; without calls, how to place one."""
    if snapshot.calls:
        yield from call_lines(snapshot.calls, width, most=most)
        return
    server = snapshot.server
    try_it = test_call(server.public_url or server.url, server.providers) if server.providers else ""
    yield _text(f"no calls; try it: {try_it}" if try_it and not server.draining else "no calls", width, "dim")


def test_call(base: str, providers: Sequence[str]) -> str:
    """
    Return the command that places a test call to a server.

    Args:
        base: Its public address, because that is what providers sign; without one its own.
        providers: Those that it serves, one at least; only one that is alone has the address without a path.
    """
    path = providers[0] if len(providers) > 1 else ""
    return f"wsvoice dial {base.rstrip('/')}/{path} -t {providers[0]}"


def call_lines(calls: Sequence[CallFigures], width: int, *, most: int | None = None) -> Iterator[Text]:
    """Yield the table of running calls; where only so many lines are there, how many more there are."""
    columns = _fitted([*_COLUMNS, _PID] if len({each.pid for each in calls}) > 1 else _COLUMNS, width)
    headings = (_text(each.heading.rjust(wide) if each.to_the_right else each.heading, wide) for each, wide in columns)
    yield _row(headings, "bold")
    shown = calls if most is None or len(calls) <= most else calls[: max(1, most - 1)]
    for call in shown:
        yield _row(each.cell(call, wide) for each, wide in columns)
    if len(shown) < len(calls):
        yield _text(f"… and {len(calls) - len(shown)} more", width, "dim")


def _row(cells: Iterable[Text], style: str = "") -> Text:
    row = Text(" ").join(cells)
    row.stylize(style)
    return row


def server_lines(server: ServerFigures, width: int) -> Iterator[Text]:
    """Yield what is to be known of a server: where it is, and how busy."""
    name = server.bot if width >= 40 else server.bot.rpartition("/")[2]
    address = server.public_url or server.url
    yield _text(f"{name}  {address}  process {server.pid}, up {age(server.uptime_s)}", width, "bold")
    limit = f" of {server.max_calls}" if server.max_calls is not None else ""
    late = f"event loop {_late(server.lag_s)} late"
    line = Text(f"{plural(server.calls, 'call')}{limit}")
    if server.draining:
        line.append("  draining: no new calls; a second signal ends them", "bold yellow")
    elif server.leaving:
        line.append("  leaving: new calls are still taken", "bold yellow")
    line.append(f"  {server.refused} refused", "yellow" if server.refused else "")
    line.append(f"  {late}", "red" if server.lag_s > LATE_S else "dim")
    line.truncate(width, overflow="ellipsis")
    yield line
    if len(server.workers) > 1:
        workers = (
            f"{each.number}: {plural(each.calls, 'call')} {each.state}, {_late(each.lag_s)}" for each in server.workers
        )
        yield _text(f"{len(server.workers)} workers  {'  '.join(workers)}", width, "dim")


def log_lines(log: Sequence[str], width: int, most: int) -> list[Text]:
    """Return the last lines of a log, wrapped, that fit into so many lines."""
    found: list[Text] = []
    for line in reversed(log):
        level = _LOG_LEVEL.match(text := plain(line))
        style = _LOG_STYLES.get(level[1], "") if level else ""
        pieces = _wrapped(text, width)
        if len(pieces) > WRAPPED_LINES:
            pieces = [*pieces[: WRAPPED_LINES - 1], "    …"]
        found[:0] = [Text(each, style) for each in pieces]
        if len(found) >= most:
            break
    return found[-most:] if most > 0 else []


def _wrapped(text: str, width: int) -> list[str]:
    """Return a line of the log in pieces that fit."""
    if cell_len(text) <= width:
        return [text]
    if len(text) == cell_len(text) and width > 3 * len(LOG_INDENT):
        return textwrap.wrap(text, width, subsequent_indent=LOG_INDENT, break_on_hyphens=False)
    return chop_cells(text, width)


def screen(
    snapshots: Sequence[Snapshot], width: int, height: int, *, log: Sequence[str] | None = None, note: str = ""
) -> Iterator[Text]:
    """
    Yield the lines of a screen, at most `height` of them.

    Args:
        log: The server's last lines; ``None`` to show none.
        note: What else is to be said, at the bottom.
    """
    left = height - (1 if note else 0)
    heads = [list(server_lines(each.server, width)) for each in snapshots]
    reserved = (LOG_LINES + 1 if log and height >= 14 else 0) + sum(len(each) + 1 for each in heads)
    room = left - reserved
    for number, (each, head) in enumerate(zip(snapshots, heads, strict=True)):
        # What one server does not need is the next one's.
        share = max(CALL_LINES, room // (len(snapshots) - number))
        table = list(snapshot_lines(each, width, most=share - 1))
        room -= len(table)
        block = [*head, *table, Text("")][: max(0, left)]
        left -= len(block)
        yield from block
    if log is not None and left > 1:
        yield Text("─" * width, "dim")
        yield from log_lines(log, width, left - 1)
    if note:
        yield _text(note, width, "dim")


class LiveView:
    """
    Draws on the whole screen again and again, in a thread of its own.

    Between any two lines other threads get their turn: audio never waits for more than one line to be drawn.

    Args:
        console: The terminal.
        size: Returns its width and its height now.
        look: Returns what is to be shown.
    """

    def __init__(
        self,
        console: Console,
        size: Callable[[], tuple[int, int]],
        look: Look,
        *,
        every_s: float = DRAW_EVERY_S,
    ) -> None:
        self._console = console
        self._size = size
        self._look = look
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wsvoice-live-view", daemon=True)

    def start(self) -> None:
        """Take the screen, and draw until :meth:`stop`."""
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        self._thread.start()

    def stop(self) -> None:
        """Give the screen back as it was."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join(STOP_TIMEOUT_S)
        with suppress(OSError):
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)

    def _run(self) -> None:
        # A terminal that was closed takes nothing any more.
        with suppress(OSError):
            while not self._over.is_set():
                self.draw()
                self._over.wait(self._every_s)

    def draw(self) -> None:
        """Draw the screen once."""
        width, height = self._size()
        console = self._console
        snapshots, log, note = self._look()
        drawn: list[str] = []
        for line in screen(snapshots, width, height, log=log, note=note):
            drawn.append(render(console, line))
            time.sleep(0)
        # From the top left corner; each line to its end, and nothing below. The last one has no end: it would scroll.
        console.file.write("\x1b[H" + "\x1b[K\r\n".join(drawn) + "\x1b[K\x1b[J")
        console.file.flush()


def render(console: Console, line: Text) -> str:
    """Return a line with the console's colours."""
    with console.capture() as drawn:
        console.print(line, end="", no_wrap=True, overflow="ignore", crop=False)
    return drawn.get()
