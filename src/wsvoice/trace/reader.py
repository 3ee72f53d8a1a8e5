"""
Reads a trace, from whom it may come: a folder or a zip file, whole or cut off.

Nothing in it is trusted. Only files of known names are read, only so much of each, and each line by itself: one that is
no line of a trace is left out.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar, cast

from wsvoice.call import Call
from wsvoice.errors import TraceError
from wsvoice.trace.format import (
    BOT_FILE,
    CALL_FILE,
    CALLER_FILE,
    FILES,
    FORMAT,
    LOG_FILE,
    TIMELINE_FILE,
    WIRE_FILE,
    LogLine,
    Side,
    TraceEvent,
    WireDirection,
    WireKind,
    WireMessage,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: How much a zipped trace may be unpacked, in bytes: nine hours of both tracks at 8 kHz, and their wire.
MAX_UNPACKED = 2 * 1024**3
#: How many members a zipped trace may have: it has six, and programs that zip folders add their own.
MAX_MEMBERS = 32
#: How large a track in a folder may be that is read into memory, in bytes: four hours at 24 kHz, and some more.
MAX_TRACK_IN_MEMORY = 768 * 1024**2
#: How large ``call.json`` may be, in bytes.
MAX_CALL = 16 * 1024**2
#: How long a line may be that is read, in bytes; a message of the largest size, as base64, is shorter.
MAX_LINE = 4 * 1024**2
#: How many events, and lines of the log, are kept.
MAX_EVENTS = 200_000
#: How long a word of the call may be, in characters: an id, a number, a parameter.
MAX_WORD = 4096
#: How many parameters a call may have.
MAX_PARAMETERS = 1000
#: The sample rates that a trace may have.
MIN_RATE, MAX_RATE = 1000, 192_000
#: The latest time in a trace, in seconds: a call of a month.
MAX_TIME_S = 31 * 24 * 3600.0

_T = TypeVar("_T")
_PIECE = 1024 * 1024
_WIRE_KINDS = frozenset({"webhook", "answer", "text", "binary", "status", "close"})
#: What comes before a message that stands in its line as JSON.
_BEFORE_JSON = re.compile(rb'\{"t":-?[0-9.]+,"dir":"(?:in|out)","kind":"text","json":')


@dataclass
class Trace:
    """
    A call as its trace has it. Times are in seconds since the call's stream started.

    Attributes:
        path: Where it was read from.
        format: The version of the format.
        side: Who wrote it: the bot's ``server``, or the ``caller`` of a test call.
        call: The call.
        started_at: Unix time at which the stream started.
        rate: Samples a second of both tracks.
        target: What was dialled, or the bot that was called.
        versions: The versions of ``wsvoice`` and ``pipecat``.
        ended: How the call has ended; empty while it runs, and if its process was killed.
        report: The report of the call; empty where there is none.
        dropped: What is missing because the disk was too slow.
        quirks: How the provider of a test call deviated, by name.
    """

    path: Path
    folder: Path = field(repr=False)
    format: int
    side: Side
    call: Call
    started_at: float
    rate: int
    target: str
    versions: Mapping[str, str]
    ended: Mapping[str, Any] = field(repr=False)
    report: Mapping[str, Any] = field(repr=False)
    dropped: Mapping[str, float]
    quirks: Mapping[str, str] = field(default_factory=dict)
    _unpacked: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self.call.provider

    @cached_property
    def caller(self) -> NDArray[np.int16]:
        """The caller's samples, in memory if others could change the file and it is not very large."""
        return self._samples(CALLER_FILE)

    @cached_property
    def bot(self) -> NDArray[np.int16]:
        """The bot's samples, as the caller heard them."""
        return self._samples(BOT_FILE)

    def _samples(self, name: str) -> NDArray[np.int16]:
        file = self.folder / name
        # What is mapped and cut off meanwhile ends the process, and there is no error to handle (SIGBUS, mmap(2)).
        if self._unpacked is None and _size(file) <= MAX_TRACK_IN_MEMORY:
            return _read_samples(file)
        return _map_samples(file)

    @property
    def is_held(self) -> bool:
        """Whether nobody else can change what the tracks are, because they are in memory or unpacked."""
        files = (CALLER_FILE, BOT_FILE)
        return self._unpacked is not None or all(_size(self.folder / each) <= MAX_TRACK_IN_MEMORY for each in files)

    @property
    def wire(self) -> Iterator[WireMessage]:
        """Every message in order, read anew each time."""
        return (message for line in _lines(self.folder / WIRE_FILE) if (message := _wire_message(line)) is not None)

    @cached_property
    def timeline(self) -> list[TraceEvent]:
        """What happened, in the order of its time."""
        return sorted(_read_all(self.folder / TIMELINE_FILE, _event), key=lambda event: event.t)

    @cached_property
    def log(self) -> list[LogLine]:
        """What the bot and its server logged of the call."""
        return _read_all(self.folder / LOG_FILE, _log_line)

    @cached_property
    def duration_s(self) -> float:
        """How long the call lasted, or as far as the trace goes."""
        tracks = max(len(self.caller), len(self.bot)) / self.rate
        return max(tracks, _time(self.ended.get("t")) or 0.0)

    @cached_property
    def is_complete(self) -> bool:
        """Whether the trace was written to its end, and nothing of it was cut off since."""
        whole = all(_ends_whole(self.folder / name) for name in (WIRE_FILE, TIMELINE_FILE, LOG_FILE))
        tracks = all((self.folder / name).exists() for name in (CALLER_FILE, BOT_FILE))
        lasted = self.ended.get("samples")
        if isinstance(lasted, int):
            tracks = tracks and min(len(self.caller), len(self.bot)) >= lasted
        return bool(self.ended) and whole and tracks and not self.dropped

    def close(self) -> None:
        """Remove what was unpacked; the samples cannot be looked at any more."""
        for name in ("caller", "bot"):
            self.__dict__.pop(name, None)
        if self._unpacked is not None:
            self._unpacked.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_trace(path: str | Path, *, limit: int = MAX_UNPACKED) -> Trace:
    """
    Read a trace, which is a folder or a zip file; one that is cut off, or still being written, is read as far as it is.

    Args:
        path: Where it is.
        limit: How much a zip file may be unpacked, in bytes.

    Raises:
        TraceError: If it cannot be read, is none, is of a newer version, or is not to be trusted.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_folder(path, path)
        if not path.exists():
            raise TraceError(
                f"there is no trace {path}", hint="`wsvoice run --trace DIR` and `wsvoice dial --trace FILE` write one"
            )
        unpacked = tempfile.TemporaryDirectory(prefix="wsvoice-trace-", ignore_cleanup_errors=True)
        try:
            _unpack(path, Path(unpacked.name), limit)
            trace = _read_folder(Path(unpacked.name), path)
        except BaseException:
            unpacked.cleanup()
            raise
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error
    trace._unpacked = unpacked
    return trace


# A folder


def _read_folder(folder: Path, path: Path) -> Trace:
    for name in FILES:
        # A link could lead anywhere, and a pipe never ends.
        found = folder / name
        if os.path.lexists(found) and not stat.S_ISREG(found.lstat().st_mode):
            raise TraceError(f"{path} is not to be trusted: its {name} is not a file of its own")
    about = folder / CALL_FILE
    if not about.exists():
        raise TraceError(f"{path} is no trace: it has no {CALL_FILE}", hint="a trace is a folder NAME.call, or a file")
    if _size(about) > MAX_CALL:
        raise TraceError(f"{path} is not to be trusted: its {CALL_FILE} is larger than {MAX_CALL // 1024**2} MiB")
    content = _object(about.read_bytes())
    if content is None:
        raise TraceError(f"{path} is no trace: its {CALL_FILE} is not a JSON object")
    version = content.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise TraceError(f"{path} is no trace: its {CALL_FILE} names no format")
    if version > FORMAT:
        made = f", of wsvoice {_word(content.get('wsvoice'))[:40]}" if content.get("wsvoice") else ""
        raise TraceError(
            f"{path} is of a newer version{made}: format {version}, and this wsvoice reads {FORMAT}",
            hint="update wsvoice: pip install -U wsvoice",
        )
    rate = content.get("rate")
    if not isinstance(rate, int) or not MIN_RATE <= rate <= MAX_RATE:
        raise TraceError(f"{path} is no trace: its {CALL_FILE} names no usable sample rate")
    return Trace(
        path=path,
        folder=folder,
        format=version,
        side="caller" if content.get("side") == "caller" else "server",
        call=_call(content),
        started_at=_time(content.get("started_at"), most=1e11) or 0.0,
        rate=rate,
        target=_word(content.get("target")),
        versions={name: _word(content.get(name)) for name in ("wsvoice", "pipecat")},
        ended=_mapping(content.get("ended")),
        report=_mapping(content.get("report")),
        dropped={
            name[:MAX_WORD]: count
            for name, each in _mapping(content.get("dropped")).items()
            if (count := _time(each, most=1e15)) is not None
        },
        quirks=_words(content.get("quirks")),
    )


def _call(content: Mapping[str, Any]) -> Call:
    found = _mapping(content.get("call"))
    words = {
        name: _word(found.get(name)) for name in ("call_id", "stream_id", "account_id", "from_number", "to_number")
    }
    return Call(
        provider=_word(content.get("provider")) or _word(found.get("provider")),
        direction="outbound" if found.get("direction") == "outbound" else "inbound",
        control="api" if found.get("control") == "api" else "document",
        parameters=_words(found.get("parameters")),
        **words,
    )


# A zip file


def _unpack(path: Path, folder: Path, limit: int) -> None:
    """Unpack the files of a trace from a zip file, whatever else is in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            left = limit
            for name, member in _members(path, archive).items():
                with archive.open(member) as packed, (folder / name).open("xb") as file:
                    left = _copy(packed, file, left, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise TraceError(
            f"{path} is no trace, or is damaged: {str(error)[:200] or type(error).__name__}",
            hint="a trace is a folder NAME.call, or the same zipped",
        ) from error


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return a trace's files in a zip file, which may all be in one folder, by their names."""
    listed = archive.infolist()
    if len(listed) > MAX_MEMBERS:
        raise TraceError(f"{path} is not to be trusted: it has {len(listed)} files, and a trace has {len(FILES)}")
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for member in listed:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or stat.S_ISLNK(member.external_attr >> 16):
            raise TraceError(
                f"{path} is not to be trusted: it names a file outside of itself, {member.filename[:80]!r}"
            )
        if parts[-1] not in FILES or len(parts) > 2:
            continue
        if parts[-1] in found:
            raise TraceError(f"{path} is not to be trusted: it has two files {parts[-1]}")
        found[parts[-1]] = member
        folders.add("/".join(parts[:-1]))
    if len(folders) > 1:
        raise TraceError(f"{path} is no trace: its files are in several folders")
    return found


def _copy(packed: IO[bytes], file: IO[bytes], left: int, path: Path) -> int:
    """Copy a file of at most `left` bytes; return how many may still come. What its head says of it is not believed."""
    while piece := packed.read(_PIECE):
        left -= len(piece)
        if left < 0:
            raise TraceError(
                f"{path} is not to be trusted: it holds far more than a call could",
                hint="unzip it yourself, and read the folder",
            )
        file.write(piece)
    return left


# Files and their lines


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _read_samples(file: Path) -> NDArray[np.int16]:
    import numpy as np

    try:
        found = np.fromfile(file, "<i2", count=_size(file) // 2)
    except FileNotFoundError:
        return np.zeros(0, "<i2")
    except OSError as error:
        raise TraceError(f"{file} cannot be read: {error.strerror or error}") from error
    return cast("NDArray[np.int16]", found)


def _map_samples(file: Path) -> NDArray[np.int16]:
    """Return a file's samples, of which only those are in memory that are looked at."""
    import numpy as np

    count = _size(file) // 2
    if not count:
        # An empty file cannot be mapped.
        return np.zeros(0, "<i2")
    return cast("NDArray[np.int16]", np.memmap(file, "<i2", "r", shape=(count,)))


def _lines(file: Path) -> Iterator[bytes]:
    """Read the lines of a file that are whole; one that is too long is left out."""
    try:
        opened = file.open("rb")
    except FileNotFoundError:
        return
    with opened:
        is_too_long = False
        while line := opened.readline(MAX_LINE):
            is_whole = line.endswith(b"\n")
            if is_whole and not is_too_long:
                yield line
            is_too_long = not is_whole


def _ends_whole(file: Path) -> bool:
    if not (size := _size(file)):
        return file.exists()
    with file.open("rb") as opened:
        opened.seek(size - 1)
        return opened.read(1) == b"\n"


def _read_all(file: Path, read: Callable[[bytes], _T | None]) -> list[_T]:
    found: list[_T] = []
    for line in _lines(file):
        if (item := read(line)) is not None:
            found.append(item)
        if len(found) >= MAX_EVENTS:
            break
    return found


def _wire_message(line: bytes) -> WireMessage | None:
    content = _object(line)
    t = None if content is None else _time(content.pop("t", None))
    if content is None or t is None:
        return None
    direction, kind = content.pop("dir", None), content.pop("kind", None)
    if direction not in ("in", "out") or kind not in _WIRE_KINDS:
        return None
    text, packed = content.pop("text", None), content.pop("base64", None)
    if "json" in content:
        text = _json_text(line, content.pop("json"), is_last=not content)
    data: bytes | None = None
    if isinstance(packed, str):
        try:
            data = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError):
            return None
    return WireMessage(
        t=t,
        dir=cast("WireDirection", direction),
        kind=cast("WireKind", kind),
        text=text if isinstance(text, str) else None,
        data=data,
        fields=content,
    )


def _json_text(line: bytes, message: object, *, is_last: bool) -> str | None:
    """Return a message that stands in its line as JSON, as it was sent if nothing comes behind it."""
    before = _BEFORE_JSON.match(line)
    if is_last and before is not None and line.endswith(b"}\n"):
        return line[before.end() : -2].decode("utf-8", "replace")
    try:
        return json.dumps(message)
    except RecursionError:
        return None


def _event(line: bytes) -> TraceEvent | None:
    content = _object(line)
    t = None if content is None else _time(content.pop("t", None))
    if content is None or t is None or not isinstance(name := content.pop("event", None), str):
        return None
    return TraceEvent(t, name, _text(content.pop("detail", "")), content)


def _log_line(line: bytes) -> LogLine | None:
    content = _object(line)
    t = None if content is None else _time(content.get("t"))
    if content is None or t is None:
        return None
    return LogLine(t, _word(content.get("level")), _word(content.get("logger")), _text(content.get("message")))


# Values


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: object) -> str:
    return value[:MAX_WORD] if isinstance(value, str) else ""


def _words(value: object) -> dict[str, str]:
    return {_word(name): _word(each) for name, each in list(_mapping(value).items())[:MAX_PARAMETERS]}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _time(value: object, *, most: float = MAX_TIME_S) -> float | None:
    """Return a number that can be a time, or ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > most or not math.isfinite(value):
        return None
    return float(value)
