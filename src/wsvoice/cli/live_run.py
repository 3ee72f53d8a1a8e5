"""``wsvoice run --live``: running calls on the screen, and below them what would have been printed."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from wsvoice.cli.output import Output
from wsvoice.cli.terminal import TerminalLog

if TYPE_CHECKING:
    from wsvoice.cli.live_view import LiveView
    from wsvoice.config import RunConfig
    from wsvoice.runner.figures import Snapshot
    from wsvoice.runner.server import Ready


class LiveRun:
    """
    A server's terminal while the context lasts: as ever until it listens, and from :meth:`begin` on the view.

    At the end the terminal is as it was, and the last lines of the log follow.

    Attributes:
        output: The terminal itself, for what is printed before the view begins.
    """

    def __init__(self) -> None:
        self._log = TerminalLog()
        self._view: LiveView | None = None
        self.output = Output()

    @classmethod
    def of(cls, config: RunConfig, output: Output, *, quiet: bool) -> LiveRun | None:
        """Return the view that the settings ask for; ``None``, with a warning, where it cannot be shown."""
        if not config.live or quiet:
            return None
        if config.transport in ("websocket-server", "websocket-client"):
            output.warning(f"--live shows the calls of a server that takes many; -t {config.transport} has one client")
        elif not output.can_draw or sys.platform == "win32":
            output.warning("--live is for a terminal, and this is none: the log is printed as ever")
        else:
            return cls()
        return None

    def __enter__(self) -> Self:
        self._log.open()
        self.output = Output(self._log.terminal)
        return self

    def begin(self, ready: Ready) -> None:
        """Show the view, if it is not there yet."""
        observe = ready.look
        if self._view is not None or observe is None:
            return

        def look() -> tuple[list[Snapshot], list[str], str]:
            return [observe()], self._log.lines(), ""

        self._log.hold()
        self._view = self.output.live_view(look, size=self._log.size)
        self._log.before_close(self._view.stop)
        self._view.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._log.close()
