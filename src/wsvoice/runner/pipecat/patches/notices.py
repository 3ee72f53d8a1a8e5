"""Warnings about a bot's code that are logged once, however many calls run it."""

from __future__ import annotations

from loguru import logger


class Notices:
    """Remembers which warnings were logged."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, message: str) -> None:
        """Log a warning, if it is the first time."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("{}", message)

    def forget(self) -> None:
        """Allow all warnings again."""
        self._said.clear()


#: Shared by the process, as a bot's module is.
notices = Notices()
