"""
Why a call went wrong, as far as the process knows: what the bot raised, which service failed, what blocked the loop.

The causes are in the call's last line of the log. A ``wsvoice dial`` that serves the bot itself names a file in
``WSVOICE_CAUSES``, and each cause is written to it as a line of JSON::

    {"call": "CA…", "at": 1763741389.2, "kind": "exception", "message": "RuntimeError: boom", "file": "/…/bot.py",
     "line": 12}

If the server does not start, or fails, the line has ``message`` and ``hint``, and ``"kind": "usage"`` if the command or
a setting is wrong, else ``"kind": "failure"``. What a bot raises while it is imported is not among them.
"""

from __future__ import annotations

import json
import sysconfig
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from pathlib import Path

from wsvoice.call import Cause
from wsvoice.errors import BotError, BotImportError, UsageError, WsvoiceError

#: How many causes of a call are kept; the first ones matter.
MAX_CAUSES = 20
_MESSAGE_LIMIT = 300
#: Where Python's libraries and this package are.
NOT_THE_BOTS = (
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    str(Path(__file__).parents[1]),
)


class Diagnosis:
    """Collects the causes of one call; each is also written to `file`, if there is one."""

    def __init__(self, call_id: str, file: Path | None = None) -> None:
        self.causes: list[Cause] = []
        self._call_id = call_id
        self._file = file

    def note(self, cause: Cause) -> bool:
        """Keep a cause once; false if it, or another one at the same line, is known."""
        if len(self.causes) >= MAX_CAUSES or cause in self.causes:
            return False
        is_first = not cause.file or (cause.file, cause.line) not in {(each.file, each.line) for each in self.causes}
        self.causes.append(cause)
        _write(self._file, {"call": self._call_id, "at": time.time(), **asdict(cause)})
        return is_first

    def note_exception(self, error: BaseException, *, where: str = "") -> bool:
        """Keep an exception of the bot's code as :meth:`note` does; `where` names a place other than its coroutine."""
        file, line = location_of(error)
        message = "".join(traceback.format_exception_only(error)).strip()
        return self.note(Cause("exception", one_line(f"{where}: {message}" if where else message), file, line))


#: The diagnosis of the call whose code runs; tasks inherit it.
current: ContextVar[Diagnosis | None] = ContextVar("wsvoice_diagnosis", default=None)


@contextmanager
def diagnosing(diagnosis: Diagnosis) -> Iterator[None]:
    """Attribute what goes wrong within the context to this call."""
    before = current.set(diagnosis)
    try:
        yield
    finally:
        current.reset(before)


@contextmanager
def reporting_failures(file: Path | None) -> Iterator[None]:
    """Write to `file`, if given, why the server does not start, or fails."""
    try:
        yield
    except (BotImportError, BotError):
        # The log has more to say of it: the bot's traceback.
        raise
    except WsvoiceError as error:
        kind = "usage" if isinstance(error, UsageError) else "failure"
        _write(file, {"kind": kind, "message": error.message, "hint": error.hint})
        raise


def _write(file: Path | None, content: Mapping[str, object]) -> None:
    if file is None:
        return
    # The process that asked for it may be gone.
    with suppress(OSError), file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(content) + "\n")


def one_line(text: str) -> str:
    """Return `text` on one line of bounded length."""
    text = " ".join(text.split())
    return text if len(text) <= _MESSAGE_LIMIT else f"{text[:_MESSAGE_LIMIT]}..."


def location_of(error: BaseException) -> tuple[str, int]:
    """Return the innermost file and line of the bot's own code at which `error` was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*NOT_THE_BOTS, "<"))]
    if not own:
        return "", 0
    return own[-1].filename, own[-1].lineno or 0
