"""``wsvoice show``: a call as a page, or as a picture in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsvoice.cli.options import option
from wsvoice.cli.output import Output
from wsvoice.config.state import STATE_VARIABLE, make_private, state_folder, write_private
from wsvoice.errors import ServerError, UsageError

if TYPE_CHECKING:
    from wsvoice.trace import Trace

#: How many pages that were opened are kept, for a browser that loads one again.
KEPT_PAGES = 20


def show(
    calls: Annotated[
        list[str], typer.Argument(metavar="CALL [CALL]", help="The trace of a call; two are laid on one axis.")
    ],
    html: Annotated[str | None, option("--html FILE", "Write the page to this file, and open nothing.")] = None,
    terminal: Annotated[
        bool, option("--terminal", "Print a picture of the call.  [default: where there is no browser]")
    ] = False,
) -> None:
    """
    Look at a call: its sound, its turns and waits, and everything that was said on the wire.

    The page opens in your browser. It is one file that needs no network and can be kept or passed on; whoever has
    it has the call, sound and numbers included.

    \b
    wsvoice show good.call
    wsvoice show before.call after.call
    wsvoice show traces/20260102-101500-CA5ef8.call --html call.html
    """
    output = Output()
    if len(calls) > 2:
        raise UsageError(f"{len(calls)} calls are too many for one page", hint="name one call, or two to compare")
    if html is not None and terminal:
        raise UsageError("--html and --terminal do not go together", hint="leave one of them out")
    if html is not None and Path(html).suffix.lower() not in (".html", ".htm"):
        # A trace is soon named here by mistake.
        raise UsageError(f"--html writes a web page, got {html!r}", hint=f"use `{Path(html).with_suffix('.html')}`")
    from wsvoice.trace import read_trace

    with ExitStack() as stack:
        traces = [stack.enter_context(read_trace(each)) for each in calls]
        if terminal:
            _print_picture(traces, output)
        elif html is None:
            show_calls(traces, Path(calls[0]).stem, os.environ, output)
        else:
            written = _write(Path(html), _draw_page(traces, output))
            output.line(f"{written} is written", style="bold green")


def show_calls(traces: Sequence[Trace], name: str, environ: Mapping[str, str], output: Output) -> None:
    """
    Show calls in the browser, or where there is none, in the terminal.

    Args:
        traces: The calls, one or two.
        name: What the page's file is called.
        environ: Knows whether there is a browser, and where pages are kept.
        output: Where the page's file is told, or the picture printed.

    Raises:
        ServerError: If the page cannot be written.
    """
    if has_browser(environ):
        open_page(_draw_page(traces, output), name, environ, output)
    else:
        _print_picture(traces, output)


def _draw_page(traces: Sequence[Trace], output: Output) -> str:
    from wsvoice.page import render_page

    with output.progress("Drawing the page"):
        return render_page(traces)


def _print_picture(traces: Sequence[Trace], output: Output) -> None:
    from wsvoice.page import draw_picture

    output.picture(draw_picture(traces, output.width))


def has_browser(environ: Mapping[str, str]) -> bool:
    """Whether a page can be opened in a browser that has windows."""
    if sys.platform in ("win32", "darwin"):
        return True
    import webbrowser

    if not any(environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


def open_page(page: str, name: str, environ: Mapping[str, str], output: Output) -> Path:
    """
    Open a page in the browser, and return its file, which only its owner may read.

    Raises:
        ServerError: If the file cannot be written.
    """
    import webbrowser

    folder = pages_folder(environ)
    try:
        others = sorted(folder.glob("*.html"), key=lambda each: each.stat().st_mtime)
        for old in others[: max(0, len(others) + 1 - KEPT_PAGES)]:
            old.unlink(missing_ok=True)
    except OSError as error:
        raise ServerError(f"{folder} cannot be used: {error.strerror}", hint="name a file: --html FILE") from error
    file = _write(folder / f"{name}.html", page)
    if not webbrowser.open(file.as_uri()):
        output.warning("no browser could be opened")
    output.line(str(file), label="page: ", label_style="bold")
    return file


def pages_folder(environ: Mapping[str, str]) -> Path:
    """
    Return the folder for pages that are opened, which is there then.

    Raises:
        ServerError: If it cannot be made.
    """
    return state_part("pages", environ)


def state_part(name: str, environ: Mapping[str, str]) -> Path:
    """
    Return a folder in that for state, which is there then, and which only its owner may enter.

    Raises:
        ServerError: If it cannot be made.
    """
    folder = state_folder(environ) / name
    try:
        return make_private(folder)
    except OSError as error:
        raise ServerError(
            f"{folder} cannot be used: {error.strerror}", hint=f"name another: {STATE_VARIABLE}"
        ) from error


def _write(file: Path, page: str) -> Path:
    try:
        write_private(file, page)
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror or error}", hint="name another: --html FILE"
        ) from error
    return file
