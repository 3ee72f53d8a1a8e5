"""
What runs keep on this machine, for each other and for a later command: such as what a number's settings were.

It is kept in the user's own folder for state, and nobody else may read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

#: Names another folder for state.
STATE_VARIABLE = "WSVOICE_STATE_DIR"


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for state: ``WSVOICE_STATE_DIR``, or the system's place for it. It need not exist."""
    if named := environ.get(STATE_VARIABLE, "").strip():
        return Path(named).expanduser().absolute()
    from platformdirs import user_state_path

    return user_state_path("wsvoice", appauthor=False)


def make_private(folder: Path) -> Path:
    """
    Make a folder that only its owner may enter, and return it; one that is there already stays as it is.

    Raises:
        OSError: If it cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):
        # Another run may be faster.
        each.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_private(path: Path, text: str) -> None:
    """
    Write a file that only its owner may read; it is whole and on disk on return, or else as it was before.

    Raises:
        OSError: If it cannot be written.
    """
    # No command's help waits for it.
    from tempfile import mkstemp

    # Only its owner may read what it makes.
    descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """See that a new name in `folder` survives a power cut; Windows has no such call, and needs none."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
