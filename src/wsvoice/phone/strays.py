"""
Programs that hold a tunnel open, and that outlive their run if it is killed (``kill -9``).

Each is noted in the folder for state, ``tunnels/<pid>.lock``, in a file that its run keeps locked. A note that nobody
has locked is of a run that is gone: the next run that opens a tunnel ends what it names. The id of a process may be
another one's by then, so it is ended only if it began when the note says, and shows the program's name. On Windows,
where that cannot be told, nothing is noted.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from loguru import logger

from wsvoice.config import make_private
from wsvoice.errors import RemoteProtocolError
from wsvoice.phone.claims import Claim, ClaimedError, holder_of
from wsvoice.providers.fields import read_object

#: How long a program may take to end when it is asked to, and how often is looked.
END_TIMEOUT_S, LOOK_S = 2.0, 0.05
#: How long ``ps`` may take.
PS_TIMEOUT_S = 2.0


class Trace:
    """
    The note of a program that this process has started, until it is removed.

    Args:
        state: The folder for state; ``None`` for no note.
        pid: Its process.
        program: Its name.
    """

    def __init__(self, state: Path | None, pid: int, program: str) -> None:
        self._claim: Claim | None = None
        started, _ = _look_at(pid) if state is not None else ("", "")
        if state is None or not started:
            return
        try:
            path = make_private(state / "tunnels") / f"{pid}.lock"
            self._claim = Claim(path, {"pid": pid, "started": started, "program": program})
        except (ClaimedError, OSError) as error:
            logger.debug("if this process is killed, {} outlives it: {}", program, error)

    def remove(self) -> None:
        """Remove it, now that the program has ended."""
        if self._claim is not None:
            self._claim.release()
            self._claim = None


def end_strays(state: Path | None) -> None:
    """End the programs of runs that were killed."""
    for path in sorted((state / "tunnels").glob("*.lock")) if state is not None else ():
        # What is locked is a living run's.
        if holder_of(path) is not None:
            continue
        with suppress(OSError, RemoteProtocolError):
            note = read_object(path.read_text("utf-8"))
            pid, started, program = note.get("pid"), note.get("started"), note.get("program")
            if isinstance(pid, int) and pid > 1 and isinstance(program, str) and _is_still(pid, started, program):
                logger.warning("{} of a run that was killed still holds a tunnel open: it is ended", program)
                _end(pid, started, program)
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _end(pid: int, started: object, program: str) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(OSError):
            if os.getpgid(pid) == pid:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
        deadline = time.monotonic() + END_TIMEOUT_S
        while time.monotonic() < deadline:
            if not _is_still(pid, started, program):
                return
            time.sleep(LOOK_S)


def _is_still(pid: int, started: object, program: str) -> bool:
    """Whether a process is the one that began at that time, and has the program's name in its command."""
    now, command = _look_at(pid)
    return now != "" and now == started and bool(program) and program in command


def _look_at(pid: int) -> tuple[str, str]:
    """Return when a process began, in a form of the system's own, and its command; empty if there is none."""
    if os.name != "posix":
        return "", ""
    folder = Path(f"/proc/{pid}")
    if folder.parent.joinpath("self", "stat").exists():
        try:
            # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
            fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:
            return "", ""
        # A zombie has ended already.
        return ("", "") if fields[0] == "Z" else (fields[19], command)
    with suppress(OSError, subprocess.SubprocessError):
        # https://pubs.opengroup.org/onlinepubs/9799919799/utilities/ps.html; macOS has `lstart`, always 24 characters.
        asked = ["env", "LC_ALL=C", "ps", "-o", "lstart=", "-o", "command=", "-p", str(pid)]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=PS_TIMEOUT_S, check=True)
        return said.stdout[:24].strip(), said.stdout[24:].strip()
    return "", ""
