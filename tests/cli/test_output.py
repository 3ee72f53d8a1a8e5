"""What is printed, on a terminal and in a pipe."""

from __future__ import annotations

import sys
from io import StringIO

import pytest
from rich.console import Console

from wsvoice.cli.output import Output
from wsvoice.dial.report import TimelineEvent

EVENT = TimelineEvent(1500.0, "note", "the quick brown fox jumps over the lazy dog, again and again")


def printed(event: TimelineEvent | None, *lines: str, terminal: bool = True) -> list[str]:
    file = StringIO()
    output = Output()
    output.console = Console(file=file, force_terminal=terminal, width=40, color_system=None, highlight=False)
    if event is not None:
        output.event(event)
    if lines:
        output.report(lines)
    return file.getvalue().splitlines()


def test_a_long_line_goes_on_below_its_text_on_a_terminal() -> None:
    assert printed(EVENT) == [
        "   1.500   the quick brown fox jumps",
        "           over the lazy dog, again and",
        "           again",
    ]
    assert printed(None, "turn 1: " + "word " * 10, "failed: " + "x" * 50) == [
        "turn 1: word word word word word word",
        "        word word word word",
        "failed: " + "x" * 32,
        "        " + "x" * 18,
    ]


def test_a_line_in_a_pipe_is_never_wrapped() -> None:
    assert printed(EVENT, terminal=False) == [f"   1.500   {EVENT.text}"]
    assert printed(None, "call: " + "word " * 20, "passed", terminal=False) == ["call: " + "word " * 20, "passed"]


def test_progress_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    file = StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", file)
    output = Output()
    output.console = Console(file=file, force_terminal=True, width=80, color_system=None, highlight=False)
    # For rich one is a tag, and the other an error.
    text = "menu[twilio]: the bot says [/bold]"
    with output.progress(text):
        assert output.show_progress(text)
    assert text in file.getvalue()


def test_only_the_output_prints_while_it_is_alone(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    with output.alone() as words:
        print("another's words")
        print("another's warning", file=sys.stderr)
        output.line("ours")
    assert words.getvalue() == "another's words\nanother's warning\n"
    assert capsys.readouterr() == ("", "ours\n")
