"""Warnings about a bot's code that are given once, however many calls run it."""

from __future__ import annotations

from loguru import logger


class Notices:
    """What was said already."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, message: str) -> None:
        """Log a warning, if it is the first time."""
        if message not in self._said:
            self._said.add(message)
            logger.warning("{}", message)

    def forget(self) -> None:
        """Say everything again when it comes up."""
        self._said.clear()


#: A bot's module is imported once in a process, and so are its mistakes made.
notices = Notices()
