"""
Writes a trace to a folder while the call runs.

What was written survives whatever happens to the process: each file only grows, and none has a header that would have
to be mended. Only ``call.json`` is written anew, at once and whole.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from wsvoice.trace.format import (
    BOT_FILE,
    CALL_FILE,
    CALLER_FILE,
    FILES,
    FORMAT,
    LOG_FILE,
    TIMELINE_FILE,
    WIRE_FILE,
    Header,
    LogLine,
    TraceEvent,
    WireDirection,
    WireKind,
    kind_of,
)
from wsvoice.trace.redaction import Masks

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | getattr(os, "O_BINARY", 0)
#: How many pieces are written at once; systems accept 1024 or more.
_MOST_PIECES = 1000
#: How many calls may want the same name.
_NAMES = 100


class TraceWriter:
    """
    The trace of one call. Its methods write to the disk, so none belongs into an event loop.

    Lines are kept in memory until :meth:`flush`.

    Args:
        folder: Where the trace is to be; if there is something, a number is appended.
        header: What is known of the call.
        masks: What is left out.

    Raises:
        OSError: If the folder cannot be made; each other method raises it if the disk does not accept what is written.
    """

    def __init__(self, folder: Path, header: Header, masks: Masks | None = None) -> None:
        self._masks = masks or Masks()
        self._masks.learn(header.call)
        self._header = header
        #: What was left out because the disk was too slow.
        self._dropped: dict[str, float] = {}
        self.path = _new_folder(folder)
        self._lines: dict[str, list[bytes]] = {WIRE_FILE: [], TIMELINE_FILE: [], LOG_FILE: []}
        self._files: dict[str, int] = {}
        try:
            for name in FILES:
                if name != CALL_FILE:
                    self._files[name] = os.open(self.path / name, _NEW_FILE, 0o600)
            self._write_call({})
        except OSError:
            self._close_files()
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def wire(
        self,
        t: float,
        dir: WireDirection,
        kind: WireKind,
        content: str | bytes,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a message."""
        if isinstance(content, str):
            content = self._masks.text(content)
        more = "" if not fields else "," + json.dumps(self._masks.values(dict(fields)))[1:-1]
        self._lines[WIRE_FILE].append(_wire_line(t, dir, kind, content, more))

    def audio_messages(
        self,
        times: Sequence[float],
        directions: Sequence[WireDirection],
        messages: Sequence[str | bytes | None],
        *,
        zero: float = 0.0,
    ) -> None:
        """
        Add messages with audio, of which nothing has to be left out: what :meth:`wire` does, for less.

        Args:
            times: When each came, in seconds.
            directions: Which way each went.
            messages: The messages; a text is a JSON object, and ``None`` is left out.
            zero: The time at which the stream began.
        """
        if _fit_lines(messages):
            lines = [
                f'{{"t":{t - zero:.4f},"dir":"{dir}","kind":"text","json":{each}}}\n'  # type: ignore[str-bytes-safe]
                for t, dir, each in zip(times, directions, messages, strict=True)
            ]
            self._lines[WIRE_FILE].append("".join(lines).encode("ascii"))
            return
        for t, dir, each in zip(times, directions, messages, strict=True):
            if isinstance(each, str) and _fit_lines([each]):
                self.audio_messages([t], [dir], [each], zero=zero)
            elif each is not None:
                self._lines[WIRE_FILE].append(_wire_line(t - zero, dir, kind_of(each), each))

    def buffer(self, t: float, ms: float) -> None:
        """Add how much of the bot's audio waits at the provider, to the timeline."""
        self._lines[TIMELINE_FILE].append(
            f'{{"t":{t:.4f},"event":"buffer","detail":"","ms":{ms:.1f}}}\n'.encode("ascii")
        )

    def caller(self, pcm: bytes) -> None:
        """Append the caller's audio."""
        _put(self._files[CALLER_FILE], pcm)

    def bot(self, pcm: bytes) -> None:
        """Append the bot's audio."""
        _put(self._files[BOT_FILE], pcm)

    def event(self, event: TraceEvent) -> None:
        """Add an event to the timeline."""
        masks = self._masks
        line = {
            "t": round(event.t, 4),
            "event": event.event,
            "detail": MASKED_DIGIT if event.event == "digit" and masks.hides_digits else masks.text(event.detail),
            **masks.values(dict(event.fields)),
        }
        self._lines[TIMELINE_FILE].append(f"{json.dumps(line)}\n".encode("ascii"))

    def log(self, line: LogLine) -> None:
        """Add a line of the log."""
        shown = {
            "t": round(line.t, 4),
            "level": line.level,
            "logger": line.logger,
            "message": self._masks.text(line.message),
        }
        self._lines[LOG_FILE].append(f"{json.dumps(shown)}\n".encode("ascii"))

    def note_dropped(self, what: str, count: float) -> None:
        """Note that this much is missing from the trace."""
        self._dropped[what] = self._dropped.get(what, 0) + count

    def flush(self) -> None:
        """Write what was added since."""
        for name, lines in self._lines.items():
            if lines:
                _put_all(self._files[name], lines)
                lines.clear()

    def close(self, ended: Mapping[str, Any], report: Mapping[str, Any] | None = None) -> None:
        """Write the rest, and how the call has ended."""
        try:
            self.flush()
            self._write_call(
                {"ended": self._masks.values(dict(ended)), "report": self._masks.values(dict(report or {}))}
            )
        finally:
            self._close_files()

    def abandon(self) -> None:
        """Close the files as they are, as after a crash."""
        self._close_files()

    def _write_call(self, more: Mapping[str, Any]) -> None:
        header = self._header
        call = asdict(self._masks.call(header.call))
        call["parameters"] = dict(call["parameters"])
        content = {
            "format": FORMAT,
            "wsvoice": header.versions.get("wsvoice", ""),
            "pipecat": header.versions.get("pipecat", ""),
            "side": header.side,
            "provider": header.call.provider,
            "call": call,
            "started_at": header.started_at,
            "rate": header.rate,
            "target": self._masks.text(header.target),
            **({"quirks": self._masks.values(dict(header.quirks))} if header.quirks else {}),
            **({"dropped": self._dropped} if self._dropped else {}),
            **more,
        }
        new = self.path / f".{CALL_FILE}.new"
        new.unlink(missing_ok=True)
        descriptor = os.open(new, _NEW_FILE, 0o600)
        try:
            _put(descriptor, json.dumps(content, indent=1).encode("ascii"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(self.path / CALL_FILE)

    def _close_files(self) -> None:
        files, self._files = self._files, {}
        for descriptor in files.values():
            os.close(descriptor)


#: What the timeline says of a key that must not be told.
MASKED_DIGIT = "a key"


def _new_folder(wanted: Path) -> Path:
    wanted.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(1, _NAMES + 1):
        folder = wanted if number == 1 else wanted.with_stem(f"{wanted.stem}-{number}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if number == _NAMES:
                raise
            continue
        return folder
    raise AssertionError


def _fit_lines(messages: Sequence[str | bytes | None]) -> bool:
    """Whether all are texts that can stand in a line of ASCII as they are, as most do."""
    try:
        together = "".join(messages)  # type: ignore[arg-type]
    except TypeError:
        return False
    return together.isascii() and "\n" not in together and "\r" not in together


def _wire_line(t: float, dir: WireDirection, kind: WireKind, content: str | bytes, more: str = "") -> bytes:
    if isinstance(content, str):
        shown = f'"text":{encode_basestring_ascii(content)}'
    else:
        shown = f'"base64":"{base64.b64encode(content).decode("ascii")}"'
    return f'{{"t":{t:.4f},"dir":"{dir}","kind":"{kind}",{shown}{more}}}\n'.encode("ascii")


def _put_all(descriptor: int, pieces: Sequence[bytes]) -> None:
    written = 0
    # Windows has no such call, and nowhere may it be given any number.
    if hasattr(os, "writev") and len(pieces) <= _MOST_PIECES:
        written = os.writev(descriptor, pieces)
    if written < sum(map(len, pieces)):
        _put(descriptor, b"".join(pieces)[written:])


def _put(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        # A nearly full disk accepts a part; the next write raises.
        rest = rest[os.write(descriptor, rest) :]
