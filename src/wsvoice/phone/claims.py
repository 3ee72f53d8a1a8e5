"""
What one process claims for itself, such as a phone number, for as long as it lives.

A claim is a lock on a file, which the system releases however the process ends. The id of a process says less: it may
be another process's by now.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wsvoice.errors import WsvoiceError

#: The byte that is locked, beyond what is written: on Windows nobody else may read a locked one.
_LOCKED_BYTE = 1 << 30
#: The most of a holder's own words that is read, in bytes.
_LIMIT = 4096

#: How often a claim is tried, and how long between: somebody may only be looking.
_TRIES, _PAUSE_S = 5, 0.02

#: The files that are locked by this process.
_held: set[int] = set()


class ClaimedError(WsvoiceError):
    """Another process holds the claim; ``holder`` is what it says of itself, as far as that can be read."""

    def __init__(self, holder: Mapping[str, object]) -> None:
        super().__init__("another process holds it")
        self.holder = holder


class Claim:
    """
    A lock on the file at `path`, which says who holds it, until it is released.

    Args:
        path: In a folder that exists.
        holder: What this process says of itself; without credentials.

    Raises:
        ClaimedError: If another process holds it.
        OSError: If the file cannot be made.
    """

    def __init__(self, path: Path, holder: Mapping[str, object]) -> None:
        self._path = path
        descriptor = _lock_patiently(path)
        _held.add(descriptor)
        self._descriptor: int | None = descriptor
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps(holder).encode())

    def release(self) -> None:
        """Let others have it; does nothing if it is released already."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None or descriptor not in _held:
            # Released before, or this process was forked by the one that holds it.
            return
        # While it is still locked, so that nobody locks a file that is about to go. Windows keeps an open one.
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        _held.discard(descriptor)
        os.close(descriptor)


def holder_of(path: Path) -> Mapping[str, object] | None:
    """Return what the process says of itself that holds the claim at `path`; ``None`` if there is none."""
    if not path.exists():
        return None
    try:
        descriptor = _lock(path)
    except ClaimedError as error:
        return error.holder
    except OSError:
        return None
    os.close(descriptor)
    return None


def _lock_patiently(path: Path) -> int:
    for _ in range(_TRIES - 1):
        with suppress(ClaimedError):
            return _lock(path)
        time.sleep(_PAUSE_S)
    return _lock(path)


def _lock(path: Path) -> int:
    """Return a locked file at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_to_lock(descriptor):
                raise ClaimedError(_read_holder(descriptor))
            # Its holder may have removed it between the two.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _read_holder(descriptor: int) -> Mapping[str, object]:
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = json.loads(os.read(descriptor, _LIMIT))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


if sys.platform == "win32":
    import msvcrt

    def _try_to_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_to_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _let_go() -> None:
        """In a process that was forked: its parent's claims end with the parent."""
        for descriptor in _held:
            os.close(descriptor)
        _held.clear()

    os.register_at_fork(after_in_child=_let_go)
