"""
A running server's own file, by which other commands of the same user find it: ``runs/<pid>.json`` in the state folder.

Only its owner may read it, for it holds a key: whoever has that may place calls at the owner's cost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from loguru import logger

VERSION = 1


@contextmanager
def run_file(
    folder: Path, *, url: str, public_url: str | None, providers: Sequence[str], key: str
) -> Iterator[Path | None]:
    """
    Keep the file while the context lasts; a folder that cannot be written to is said, and yields ``None``.

    Args:
        folder: The state folder.
        url: Where this machine reaches the server.
        public_url: Where providers reach it.
        key: For ``/dial``, from this machine.
    """
    path = folder / "runs" / f"{os.getpid()}.json"
    content = {
        "version": VERSION,
        "pid": os.getpid(),
        "url": url,
        "public_url": public_url,
        "providers": list(providers),
        "key": key,
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path.parent)
        with suppress(FileNotFoundError):
            path.unlink()
        # Never readable by others, not even for a moment.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(content, file)
    except OSError as error:
        logger.debug("other commands will not find this server: {} cannot be written: {}", path, error)
        yield None
        return
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()


def _remove_stale(folder: Path) -> None:
    """Remove the files of servers that are gone."""
    for path in folder.glob("*.json"):
        if path.stem.isdigit() and not _is_alive(int(path.stem)):
            with suppress(OSError):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
