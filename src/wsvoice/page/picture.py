"""A call as a few lines of a terminal: two bars of levels on one axis, with the turns and the caller's waits below."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsvoice.audio import dbfs
from wsvoice.page.summary import Summary, summarize, waits
from wsvoice.trace.sound import FRAME_S, Turn

if TYPE_CHECKING:
    from wsvoice.trace import Trace

#: What each part is drawn in.
CALLER_STYLE, BOT_STYLE, WAIT_STYLE = "blue", "green", "yellow"
_POINT_STYLES = {"mark": "dim", "clear": "yellow", "digit": "blue", "interruption": "red", "finding": "yellow"}
_SIGNS = {"mark": "◆", "clear": "×", "digit": "#", "interruption": "!", "finding": "▲"}
#: Those that are drawn over others in the same column come last.
_ORDER = tuple(_SIGNS)
_BLOCKS = " ▁▂▃▄▅▆▇█"
#: The level of the lowest block, in dBFS, and that of the highest.
_QUIETEST, _LOUDEST = -48.0, -12.0
#: The width of the names of the lines, and the least that is left for the axis.
_LABEL, _NARROWEST = 8, 20
#: How many turns are listed: of more, those with the longest waits.
MAX_TURNS = 20
#: How much is shown of what somebody said in a turn, in characters.
MAX_WORDS = 500
#: Round distances of the axis's labels, in seconds.
_STEPS = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the picture: its parts, each with the style of its text. Texts of strangers are in it as they are."""

    parts: Sequence[tuple[str, str]]

    @property
    def text(self) -> str:
        """The line without its styles."""
        return "".join(text for text, _ in self.parts)


def draw_picture(traces: Sequence[Trace], width: int) -> list[Line]:
    """Return the lines of a call, or of several on one axis, for a terminal of `width` columns."""
    summaries = [summarize(trace) for trace in traces]
    duration_s = max(0.02, *(each.duration_s for each in summaries))
    columns = max(_NARROWEST, width - _LABEL)
    lines: list[Line] = []
    for number, summary in enumerate(summaries):
        if number:
            lines.append(Line([]))
        lines += _head(summary, "AB"[number] if len(summaries) > 1 else "")
        lines += _tracks(summary, duration_s, columns)
    lines.append(_axis(duration_s, columns))
    for number, summary in enumerate(summaries):
        lines += _listed(summary, "AB"[number] if len(summaries) > 1 else "")
    return lines


def clock(seconds: float, digits: int = 1) -> str:
    """Return a time as a clock shows it: 0:05.1, 1:02:03.0."""
    ticks = round(seconds * 10**digits)
    minutes, rest = divmod(ticks, 60 * 10**digits)
    hours, minutes = divmod(minutes, 60)
    shown = f"{rest / 10**digits:0{digits + 3 if digits else 2}.{digits}f}"
    return f"{hours}:{minutes:02}:{shown}" if hours else f"{minutes}:{shown}"


def _head(summary: Summary, name: str) -> list[Line]:
    verdict = [(f"  {summary.verdict}", "bold green" if summary.verdict == "passed" else "bold red")]
    incomplete = [] if summary.is_complete else [("  incomplete", "yellow")]
    parts = [(f"{name}  " if name else "", "bold"), (summary.title, "bold"), (f"  {clock(summary.duration_s)}", "dim")]
    lines = [Line([*parts, *(verdict if summary.verdict else []), *incomplete])]
    if summary.failure:
        lines.append(Line([(summary.failure, "")]))
    return lines


def _tracks(summary: Summary, duration_s: float, columns: int) -> list[Line]:
    levels = (("caller", summary.caller_levels, CALLER_STYLE), ("bot", summary.bot_levels, BOT_STYLE))
    lines = [_line(name, [(_bar(level, duration_s, columns), style)]) for name, level, style in levels]
    lines.append(_line("turns", _turns(summary, duration_s, columns)))
    if summary.points:
        lines.append(_line("events", _events(summary, duration_s, columns)))
    return lines


def _line(name: str, parts: Sequence[tuple[str, str]]) -> Line:
    return Line([(f"{name:<{_LABEL}}", "dim"), *parts])


def _bar(level: NDArray[np.float32], duration_s: float, columns: int) -> str:
    """Draw the loudest moment of each column."""
    edges = np.linspace(0, duration_s / FRAME_S, columns + 1).astype(int)
    drawn = []
    for start, end in pairwise(edges):
        part = level[start : max(end, start + 1)]
        loudest = float(part.max()) if len(part) else 0.0
        share = (dbfs(loudest) - _QUIETEST) / (_LOUDEST - _QUIETEST) if loudest > 0 else 0.0
        drawn.append(_BLOCKS[min(8, math.ceil(share * 8)) if share > 0 else 0])
    return "".join(drawn)


def _turns(summary: Summary, duration_s: float, columns: int) -> list[tuple[str, str]]:
    """Draw who speaks when, and how long the caller waits where there is room to say it."""
    cells = [(" ", "")] * columns

    def fill(start_s: float, end_s: float, sign: str, style: str) -> tuple[int, int]:
        first = min(columns - 1, max(0, int(start_s / duration_s * columns)))
        last = min(columns, max(first + 1, math.ceil(end_s / duration_s * columns)))
        cells[first:last] = [(sign, style)] * (last - first)
        return first, last

    for turn in summary.turns:
        if turn.bot_s is not None and turn.wait_s:
            first, last = fill(turn.caller_end_s, turn.bot_s, "╌", WAIT_STYLE)
            if last - first >= len(shown := _wait(turn.wait_s)):
                start = first + (last - first - len(shown)) // 2
                cells[start : start + len(shown)] = [(sign, WAIT_STYLE) for sign in shown]
    for spoken, style in ((summary.caller, CALLER_STYLE), (summary.bot, BOT_STYLE)):
        for each in spoken:
            fill(each.start_s, each.end_s, "━", style)
    return _joined(cells)


def _events(summary: Summary, duration_s: float, columns: int) -> list[tuple[str, str]]:
    cells = [(" ", "")] * columns
    for point in sorted(summary.points, key=lambda each: _ORDER.index(each.kind)):
        column = min(columns - 1, max(0, int(point.at_s / duration_s * columns)))
        cells[column] = (_SIGNS[point.kind], _POINT_STYLES[point.kind])
    return _joined(cells)


def _joined(cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    parts: list[tuple[str, str]] = []
    for sign, style in cells:
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + sign, style)
        else:
            parts.append((sign, style))
    return parts


def _axis(duration_s: float, columns: int) -> Line:
    step = next((each for each in _STEPS if each / duration_s * columns >= 10), duration_s)
    axis = ""
    for number in range(int(duration_s / step) + 1):
        column = int(number * step / duration_s * columns)
        label = clock(number * step, 0 if step >= 1 else 1)
        if column >= len(axis) and column + len(label) <= columns:
            axis = axis.ljust(column) + label
    return _line("", [(axis, "dim")])


def _listed(summary: Summary, name: str) -> Iterator[Line]:
    of = f"{name} " if name else ""
    numbered = list(enumerate(summary.turns, 1))
    listed = numbered
    if len(numbered) > MAX_TURNS:
        longest = sorted(numbered, key=lambda each: -(math.inf if each[1].wait_s is None else each[1].wait_s))
        listed = sorted(longest[:MAX_TURNS])
        yield Line([(f"{of}{len(numbered)} turns, of which these have the longest waits:", "dim")])
    yield from _said(summary, of, 0)
    for number, turn in listed:
        label = f"{of}turn {number}: "
        yield Line([(label, ""), (f"{clock(turn.caller_start_s)} ", "dim"), (_answered(turn), "")])
        yield from _said(summary, of, number)
    if len(found := sorted(waits(summary.turns))) > 2:
        half, most = found[len(found) // 2], found[-1]
        yield Line([(f"{of}waits: {_wait(half)} at the median, {_wait(most)} at most", "")])
    for finding in summary.findings:
        times = f" ({finding.count} times)" if finding.count > 1 else ""
        style = "bold red" if finding.level == "fail" else "bold yellow"
        yield Line([(f"{of}{finding.level} {finding.id}: ", style), (f"{finding.message}{times}", "")])
    for cause in summary.causes:
        yield Line([(f"{of}in the bot: ", "bold red"), (cause, "")])


def _said(summary: Summary, of: str, turn: int) -> Iterator[Line]:
    """Yield what both said in a turn; 0 is before the first."""
    styles = {"caller": CALLER_STYLE, "bot": BOT_STYLE}
    for each in summary.words:
        if each.turn == turn:
            text = each.text if len(each.text) <= MAX_WORDS else f"{each.text[:MAX_WORDS]}…"
            yield Line([(f"{'  ' if turn else ''}{of}{each.who}: ", styles[each.who]), (text, "")])


def _answered(turn: Turn) -> str:
    if turn.wait_s is None:
        return "no answer"
    return f"answered after {_wait(turn.wait_s)}" if turn.wait_s else "answered while the caller spoke"


def _wait(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.1f} s"
