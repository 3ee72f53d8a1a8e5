"""
The log: one line per event on stderr, each with its call's id; as text, or as a JSON object.

A bot may add and remove sinks of its own, by loguru or the standard library, but it can neither remove the server's nor
make its lines appear twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from wsvoice.call import short_id

if TYPE_CHECKING:
    from loguru import Logger, Message, Record

    from wsvoice.config import LogFormat

#: How many characters a line may have, and how many more are needed to say how long it was.
LINE_LIMIT = 2000
CUT_ROOM = 40
#: How many lines of a traceback are kept at its beginning, and at its end.
TRACEBACK_HEAD, TRACEBACK_TAIL = 40, 80
#: How many characters of a traceback are kept in a JSON object. containerd splits longer lines than
#: 16 KiB, https://github.com/containerd/containerd/blob/main/docs/cri/config.md
JSON_TRACEBACK = 8000
#: How many refusals of one kind are logged one by one within this many seconds; the others are counted.
REFUSAL_LINES, REFUSAL_WINDOW_S = 20, 60.0
#: For how many seconds pipecat's equal lines of a call are merged, and how many different ones are remembered.
REPEAT_WINDOW_S, REPEAT_KEYS = 10.0, 100
#: The standard library's loggers that always go to the server's log, whatever a bot configures.
SERVER_LOGGERS = ("uvicorn", "asyncio", "websockets", "py.warnings")

_COLORS = {"DEBUG": 34, "INFO": 1, "SUCCESS": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 41}

_Logger: Any = type(logger)
_add, _remove, _disable = _Logger.add, _Logger.remove, _Logger.disable


def configure_logging(level: str, log_format: LogFormat = "text", *, place: str = "-") -> None:
    """
    Send all logs to stderr, one line per event, each with its call's id.

    Args:
        level: The least level.
        log_format: Lines for people, or JSON objects for machines.
        place: What stands for the call in lines that are of none.
    """
    _remove(logger)
    sink = (JsonSink if log_format == "json" else ServerSink)(sys.stderr, level)
    logger.configure(extra={"call": place}, patcher=_sanitize)
    own_id = _add(logger, sink, level=level, format="{message}", filter=sink.wants, backtrace=False, diagnose=False)
    sinks = _BotSinks(sink, own_id)
    _Logger.add = lambda self, *args, **kwargs: sinks.add(self, *args, **kwargs)
    _Logger.remove = lambda self, handler_id=None: sinks.remove(self, handler_id)
    _Logger.disable = lambda self, name: sinks.disable(self, name)
    redirect_standard_logging(level)


def redirect_standard_logging(level: str) -> None:
    """
    Send the standard library's lines to the log: the server's always, others unless a bot configured logging.

    Call it again after a bot was loaded, because the bot's own configuration may have disabled loggers.
    """
    handler = _ToLog()
    for name in SERVER_LOGGERS:
        each = logging.getLogger(name)
        each.handlers, each.propagate, each.disabled = [handler], False, False
        each.setLevel(logging.INFO if level == "DEBUG" and name != "asyncio" else logging.WARNING)
    for name in ("uvicorn.error", "websockets.server", "websockets.client"):
        each = logging.getLogger(name)
        each.handlers, each.propagate, each.disabled = [], True, False
    # For loggers without a handler, as in a bot that does not configure logging.
    logging.lastResort = _ToLog(logging.WARNING)
    logging.captureWarnings(True)


#: Who gets the lines of which call, and the sink that passes them on.
_followers: dict[str, Callable[[str, str, str], None]] = {}
_follower_ids: dict[str, int] = {}


def follow_call(call: str, take: Callable[[str, str, str], None], level: str) -> None:
    """
    Pass the lines of a call on, as they are logged.

    Args:
        call: The call's id in the log.
        take: Called with level, logger and message, in the thread that logs.
        level: The least level.
    """
    _followers[call] = take
    if level not in _follower_ids:
        _follower_ids[level] = _add(
            logger, _pass_on, level=level, format="{message}", filter=_is_followed, backtrace=False, diagnose=False
        )


def unfollow_call(call: str, take: Callable[[str, str, str], None]) -> None:
    """Pass the lines of a call on no more, unless somebody else gets them by now."""
    if _followers.get(call) == take:
        del _followers[call]
    if not _followers:
        while _follower_ids:
            _remove(logger, _follower_ids.popitem()[1])


def _is_followed(record: Record) -> bool:
    return record["extra"].get("call") in _followers


def _pass_on(message: Message) -> None:
    record = message.record
    if (take := _followers.get(str(record["extra"].get("call")))) is None:
        return
    text = _sanitized(record["message"])
    if record["exception"] is not None:
        text = "\n    ".join([text, *_exception_lines(record["exception"])])
    take(record["level"].name, _sanitized(record["name"] or ""), text)


class ServerSink:
    """Writes the server's lines: time, level, call, and message with its exception."""

    def __init__(self, stream: TextIO, level: str) -> None:
        self._stream = stream
        self._least = logger.level(level).no
        self._quiet = level != "DEBUG"
        self._colors = stream.isatty()
        self._repeats = _Repeats()

    def wants(self, record: Record) -> bool:
        """Whether a record is shown."""
        if record["level"].no < self._least:
            return False
        # pipecat logs each step of its start-up at INFO; the server's own lines suffice.
        return not self._quiet or record["level"].no >= 30 or not (record["name"] or "").startswith("pipecat")

    def __call__(self, message: Message) -> None:
        """Write one record; pipecat's repeated ones are only counted."""
        record = message.record
        for earlier, count in self._repeats.due(record):
            self._write(earlier, f" (and {count} more like this)")
        if not self._repeats.takes(record):
            self._write(record)

    def _write(self, record: Record, more: str = "") -> None:
        if sys.stderr is not self._stream:
            # What showed the progress of loading is over, and no longer wraps what goes through it.
            self._stream = getattr(self._stream, "rich_proxied_file", self._stream)
        self._stream.write(f"{self._line(record, more)}\n")
        self._stream.flush()

    def _line(self, record: Record, more: str) -> str:
        """Return what is written of a record, whose message ends with `more`."""
        time, level = record["time"], f"{record['level'].name: <7}"
        if self._colors and (color := _COLORS.get(record["level"].name)):
            level = f"\x1b[{color}m{level}\x1b[0m"
        call = short_id(_escaped(str(record["extra"].get("call", "-"))))
        head = f"{time:%H:%M:%S}.{time.microsecond // 1000:03d} {level} {call}"
        # Again, because a bot may have replaced our patcher.
        text = _sanitized(record["message"]) + more
        if record["exception"] is not None:
            text = "\n    ".join([text, *_exception_lines(record["exception"])])
        return f"{head} {text}"


class JsonSink(ServerSink):
    """
    Writes the server's lines as JSON objects: ``time``, ``level``, ``call``, ``message``, ``logger``, ``exception``.

    The time is UTC as in https://www.rfc-editor.org/rfc/rfc3339, the call's id whole; ``call`` is ``null`` where none
    is concerned, and ``exception`` is there where there is one. Texts are sanitized as in lines for people.
    """

    def _line(self, record: Record, more: str) -> str:
        call = str(record["extra"].get("call", "-"))
        fields: dict[str, str | None] = {
            "time": record["time"].astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record["level"].name,
            "call": None if call == "-" else _sanitized(call),
            "message": _sanitized(record["message"]) + more,
            "logger": _sanitized(record["name"] or ""),
        }
        if record["exception"] is not None:
            text = "\n".join(_exception_lines(record["exception"]))
            if len(text) > JSON_TRACEBACK:
                half = JSON_TRACEBACK // 2
                text = f"{text[:half]}… ({len(text)} characters) …{text[-half:]}"
            fields["exception"] = text
        return json.dumps(fields, ensure_ascii=False)


class _Repeats:
    """
    Counts pipecat's repeated warnings: a processor that fails does so for each of 50 frames a second.

    Lines of a call are equal if they differ only in numbers. Their count is logged after a while, or before the
    server's next line about the call, such as that of its end.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[tuple[str, str, str], _Repeat] = OrderedDict()

    def takes(self, record: Record) -> bool:
        """Whether `record` is a repetition, and only counted."""
        if record["level"].no < 30 or not (record["name"] or "").startswith("pipecat") or record["exception"]:
            return False
        text = re.sub(r"\d+", "0", record["message"][:LINE_LIMIT])
        key = (str(record["extra"].get("call", "-")), record["level"].name, text)
        if (repeat := self._counts.get(key)) is not None:
            repeat.last = record
            repeat.count += 1
            return True
        self._counts[key] = _Repeat(record, time.monotonic())
        return False

    def due(self, record: Record) -> Iterator[tuple[Record, int]]:
        """Yield what is to be written before `record`: the last of equal records, and how many were left out."""
        call = str(record["extra"].get("call", "-"))
        is_servers = (record["name"] or "").startswith("wsvoice")
        now = time.monotonic()
        surplus = len(self._counts) - REPEAT_KEYS
        for number, (key, repeat) in enumerate(list(self._counts.items())):
            if number < surplus or now - repeat.since >= REPEAT_WINDOW_S or (is_servers and key[0] == call):
                del self._counts[key]
                if repeat.count:
                    yield repeat.last, repeat.count


@dataclass(slots=True)
class _Repeat:
    last: Record
    since: float
    count: int = 0


class RefusalLog:
    """
    Logs refusals so that a flood of them neither fills the disk nor hides everything else.

    The first :data:`REFUSAL_LINES` of each kind within a minute are logged; at its end one more line says how many
    others there were.

    Args:
        on_refused: Called with the kind of each, logged or not.
    """

    def __init__(self, on_refused: Callable[[str], None] = lambda kind: None) -> None:
        #: How many there were in all.
        self.total = 0
        self._on_refused = on_refused
        self._counts: Counter[str] = Counter()

    def warning(self, log: Logger, kind: str, reason: str) -> None:
        """
        Log one refusal.

        Args:
            log: Bound to the id of the call, if that is known.
            kind: The beginning of the line, such as ``webhook refused (403)``; one of few.
            reason: Why.
        """
        self.count(kind)
        self._counts[kind] += 1
        if self._counts[kind] == 1:
            asyncio.get_running_loop().call_later(REFUSAL_WINDOW_S, self._end_window, kind)
        if self._counts[kind] <= REFUSAL_LINES:
            log.opt(depth=1).warning("{}: {}", kind, reason)

    def count(self, kind: str) -> None:
        """Count a refusal that another process has logged."""
        self.total += 1
        self._on_refused(kind)

    def _end_window(self, kind: str) -> None:
        more = self._counts.pop(kind) - REFUSAL_LINES
        if more > 0:
            logger.bind(call="-").warning("{}: {} more within {:g} s", kind, more, REFUSAL_WINDOW_S)


class _BotSinks:
    """
    loguru's ``add`` and ``remove`` for bots.

    A bot may remove only sinks that it added. A sink of its own on the terminal gets only what the server's does not
    show, so that no line appears twice.
    """

    def __init__(self, sink: ServerSink, own_id: int) -> None:
        self._sink = sink
        self._own_id = own_id
        self._ids: set[int] = set()

    def add(self, bots_logger: Any, sink: Any, **options: Any) -> int:
        """Add a sink of the bot's."""
        if _is_terminal(sink):
            sink = self._unshown(sink) if callable(sink) else _Unshown(sink, self._sink)
        handler_id: int = _add(bots_logger, sink, **options)
        self._ids.add(handler_id)
        return handler_id

    def remove(self, bots_logger: Any, handler_id: int | None = None) -> None:
        """Remove one sink of the bot's, or all of them."""
        # 0 is loguru's default sink, which bots remove to replace it by their own.
        if handler_id in (0, self._own_id):
            return
        for each in sorted(self._ids) if handler_id is None else [handler_id]:
            self._ids.discard(each)
            _remove(bots_logger, each)

    def disable(self, bots_logger: Any, name: str | None) -> None:
        """Disable what the bot wants, but not the server's own lines."""
        _disable(bots_logger, name)
        bots_logger.enable(__package__.partition(".")[0])

    def _unshown(self, sink: Callable[[Message], Any]) -> Callable[[Message], Any]:
        return lambda message: None if self._sink.wants(message.record) else sink(message)


def _is_terminal(sink: Any) -> bool:
    """Whether `sink` is the terminal: a stream, its ``write``, ``print``, or the ``print`` of a rich console."""
    owner = getattr(sink, "__self__", sink)
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    return sink is print or any(each is stream for each in (owner, getattr(owner, "file", None)) for stream in streams)


class _Unshown:
    """A terminal's stream that leaves out what the server has written there."""

    def __init__(self, stream: TextIO, shown: ServerSink) -> None:
        self._stream = stream
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        """Be the stream in everything else."""
        return getattr(self._stream, name)

    def write(self, message: Message) -> None:
        """Write a record's text."""
        if not self._shown.wants(message.record):
            self._stream.write(message)


class _ToLog(logging.Handler):
    """Passes the standard library's records to the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a record on, with the id of the call that logged it."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = f"{record.msg!r} {record.args!r}"

        def with_its_name(each: Record) -> None:
            each["name"] = record.name

        exception = record.exc_info if record.exc_info and record.exc_info[0] is not None else None
        level: str | int = record.levelname if record.levelname in _COLORS else record.levelno
        logger.patch(with_its_name).opt(exception=exception).log(level, "{}", message)


def _sanitize(record: Record) -> None:
    record["message"] = _sanitized(record["message"])


def _sanitized(message: str) -> str:
    """
    Escape control characters and shorten long messages, because a line may quote untrusted input.

    Sanitizing twice changes nothing.
    """
    limit = LINE_LIMIT + CUT_ROOM
    text = _indented(_escaped(message[: limit + 1]))
    return text if len(text) <= limit else f"{text[:LINE_LIMIT]}… ({len(message)} characters)"


def _exception_lines(exception: Any) -> Iterator[str]:
    """Yield a traceback's lines, sanitized: the exception's message may quote untrusted input."""
    formatted = traceback.TracebackException(exception.type, exception.value, exception.traceback).format()
    lines = "".join(formatted).expandtabs(4).rstrip("\n").split("\n")
    left_out = len(lines) - TRACEBACK_HEAD - TRACEBACK_TAIL
    if left_out > 0:
        lines[TRACEBACK_HEAD:-TRACEBACK_TAIL] = [f"… ({left_out} lines)"]
    for line in lines:
        yield _escaped(line if len(line) <= LINE_LIMIT else f"{line[:LINE_LIMIT]}… ({len(line)} characters)")


def _escaped(text: str) -> str:
    """Return a text with its control characters escaped, except for newlines."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def _indented(text: str) -> str:
    """Indent all lines but the first, so that they do not look like lines of the log."""
    return re.sub(r"\n(?!    )", "\n    ", text)
