"""Where wsvoice keeps what outlives a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: Holds the folder, where it is not the user's own.
STATE_VARIABLE = "WSVOICE_STATE_DIR"


def state_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for what outlives a process, which only its owner may read; it is made if it is missing."""
    if named := environ.get(STATE_VARIABLE):
        folder = Path(named).expanduser().absolute()
    else:
        from platformdirs import user_state_path

        folder = user_state_path("wsvoice", appauthor=False)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
