"""A server process that several tests attack, one after the other."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from tests.process import ServerProcess


@dataclass
class Shared:
    """The process as one test sees it: with the log of its own time only, which begins `since` so many characters."""

    process: ServerProcess
    since: int

    @classmethod
    def now(cls, process: ServerProcess) -> Shared:
        """Return what a test that begins now sees of the process."""
        return cls(process, len(process.log()))

    def log(self) -> str:
        """What was logged since the test began."""
        return self.process.log()[self.since :]

    def logged(self, needle: str, *, times: int = 1, timeout_s: float = 10) -> str:
        """Wait until the log holds `needle`, so many times; return the log."""
        deadline = time.monotonic() + timeout_s
        while (log := self.log()).count(needle) < times:
            assert time.monotonic() < deadline, f"{needle!r} was not logged:\n{log[-4000:]}"
            time.sleep(0.02)
        return log

    def ended(self) -> str:
        """Wait until the sessions of this test's plain clients have ended; return the log."""
        for session in re.findall(r"(\S+) a client connected", self.log()):
            self.logged(f"{session} ended by")
        return self.log()
