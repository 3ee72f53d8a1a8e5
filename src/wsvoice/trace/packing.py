"""A trace as one file: the folder, zipped."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from wsvoice.trace.format import CALL_FILE, FILES

_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def pack(folder: Path, file: Path) -> Path:
    """
    Zip the trace in `folder` to `file`, which may be where the folder is, and remove the folder.

    Raises:
        OSError: If the file cannot be written; the folder is then as it was.
    """
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)
    try:
        descriptor = os.open(new, _NEW_FILE, 0o600)
        with os.fdopen(descriptor, "w+b") as opened, zipfile.ZipFile(opened, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in FILES:
                if (folder / name).is_file():
                    archive.write(folder / name, name)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        try:
            new.replace(file)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        new.unlink(missing_ok=True)
    return file


def is_trace_folder(folder: Path) -> bool:
    """Whether nothing but a trace is in `folder`, so that another may take its place."""
    names = {each.name for each in folder.iterdir()}
    return CALL_FILE in names and names <= {*FILES, f".{CALL_FILE}.new"}
