"""The log: one line an event on stderr, each with its call's id."""

from __future__ import annotations

import logging
import sys
from typing import Any

from loguru import logger

#: How long one line may be, in characters.
LINE_LIMIT = 2000


def configure_logging(level: str) -> None:
    """Send every log to stderr, one line an event, each with its call's id."""
    logger.remove()
    logger.configure(extra={"call": "-"}, patcher=_tame)
    quiet = level != "DEBUG"

    def wanted(record: Any) -> bool:
        # pipecat narrates its own start-up at INFO; a call's story is ours to tell.
        return not quiet or record["level"].no >= 30 or not (record["name"] or "").startswith("pipecat")

    logger.add(
        sys.stderr,
        level=level,
        format="{time:HH:mm:ss.SSS} <level>{level: <7}</level> {extra[call]} {message}",
        filter=wanted,
        backtrace=False,
        diagnose=False,
    )
    for name in ("uvicorn", "uvicorn.error", "websockets"):
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)


def _tame(record: Any) -> None:
    """Spell out control characters and cut what is too long: much of a line may be a stranger's."""
    message = record["message"]
    if len(message) > LINE_LIMIT:
        message = f"{message[:LINE_LIMIT]}… ({len(message)} characters)"
    if not message.isprintable():
        message = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in message)
    record["message"] = message.replace("\n", "\n    ")
