"""How many minutes all calls of a day have lasted (``--max-minutes-per-day``), also across restarts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from wsvoice.config import make_private, write_private
from wsvoice.phone.claims import Claim, ClaimedError

if TYPE_CHECKING:
    from wsvoice.config import RunConfig

#: How often the file is written while calls run, in seconds: what a killed process forgets at most.
WRITE_EVERY_S = 5.0
DAY_S = 86_400


def minutes_file(config: RunConfig, cwd: Path) -> Path | None:
    """Return the file of a server's minutes: one for each bot and port; ``None`` if nothing is to be kept."""
    if config.state_folder is None or not config.max_minutes_per_day:
        return None
    whose = hashlib.sha256(f"{cwd}\n{config.bot}\n{config.port}".encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return config.state_folder / "minutes" / f"{whose}.json"


def _day_after(day: str) -> str:
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


class DayMinutes:
    """
    Counts the time of all calls of a day, in UTC, and says when it is used up.

    Calls count in whole seconds, rounded up, from the start of their stream: those that have ended, and those that run.
    A call that runs past midnight counts for each day with its part of it.

    Several processes may share the file: each adds what it has counted. Everything here may be called from any thread.

    Args:
        limit: In minutes; 0 for no limit.
        file: Keeps the sum across restarts; ``None`` keeps it in memory.
        wall: Unix time in seconds, which says what day it is.
        clock: A clock that nobody sets.
    """

    def __init__(
        self,
        limit: int,
        file: Path | None = None,
        *,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._file = file
        self._wall, self._clock = wall, clock
        self._ids = count()
        # Never held while a file is written: the event loop waits for it.
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._day = self._today()
        self._running: dict[int, float] = {}
        #: Seconds of this process's calls that have ended today, and how many of its seconds are in the file.
        self._ended_s = 0
        self._written_s = 0
        #: What others, or earlier runs, have used of today.
        self._others_s = 0
        #: Whether a server that this one has taken over from still adds its share.
        self._is_shared = False
        self._timer: asyncio.TimerHandle | None = None
        self._has_warned = False
        if limit and file is not None:
            self._others_s = self._read(file, self._day)

    @property
    def used_s(self) -> int:
        """How many seconds of today are used."""
        with self._lock:
            self._turn_day()
            return self._others_s + self._own_s()

    @property
    def is_used_up(self) -> bool:
        """Whether the day's minutes are used up."""
        return bool(self.limit) and self.used_s >= 60 * self.limit

    def begin(self) -> int:
        """Count a call from now on; return what :meth:`end` takes."""
        with self._lock:
            self._turn_day()
            name = next(self._ids)
            self._running[name] = self._clock()
        self._write_soon()
        return name

    def end(self, name: int) -> None:
        """Count a call up to now."""
        with self._lock:
            self._turn_day()
            self._ended_s += self._seconds_since(self._running.pop(name))
        self._write_soon()

    def close(self) -> None:
        """Write what is counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.write()

    def write(self) -> None:
        """
        Add to the file what is not in it yet, and take in what others have added.

        A file that cannot be written is a warning, once.
        """
        if not self.limit or self._file is None:
            return
        with self._writing:
            with self._lock:
                self._turn_day()
                day, own_s = self._day, self._own_s()
                new_s = own_s - self._written_s
            try:
                total_s = self._add(self._file, day, new_s) if new_s else self._read(self._file, day)
            except ClaimedError:
                # Another process writes at this moment. It is added the next time.
                return
            except OSError as error:
                self._warn(f"cannot be written: {error.strerror or error}")
                return
            with self._lock:
                if self._day == day:
                    self._written_s = own_s
                    self._others_s = max(0, total_s - own_s)

    def export(self) -> dict[str, Any]:
        """Return what a server that takes over has to know, as JSON has it; what is counted is to be written before."""
        if not self.limit:
            return {}
        return {"file": str(self._file) if self._file is not None else None, "day": self._day, "seconds": self.used_s}

    def merge(self, state: Mapping[str, Any]) -> None:
        """Take in what :meth:`export` returned in the server that this one takes over from, and share its file."""
        if not self.limit:
            return
        # It is named after the folder and the port, which a new release may have another one of.
        if self._file is not None and (file := state.get("file")):
            self._file = Path(file)
        with self._lock:
            self._turn_day()
            if state.get("day") == self._day:
                # With what is not in the file yet: the other process adds that, and the next look at the file says so.
                self._others_s = state["seconds"]

    def share(self, is_shared: bool) -> None:
        """Say whether another process adds to the file at this time; then it is looked at every so often."""
        self._is_shared = is_shared
        self._write_soon()

    def _add(self, file: Path, day: str, new_s: int) -> int:
        """Add seconds to the file, and return the sum."""
        make_private(file.parent)
        claim = Claim(file.with_suffix(".lock"), {})
        try:
            total_s = self._read(file, day) + new_s
            write_private(file, json.dumps({"day": day, "seconds": total_s}) + "\n")
        finally:
            claim.release()
        return total_s

    def _read(self, file: Path, day: str) -> int:
        """
        Return the seconds of `day` in the file; none if it is of another day, or cannot be read.

        One of the day after was written before the clock was set back.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            seconds = content["seconds"] if content["day"] in (day, _day_after(day)) else 0
            if not isinstance(seconds, int) or seconds < 0:
                raise ValueError("seconds")
        except FileNotFoundError:
            return 0
        except OSError as error:
            self._warn(f"cannot be read: {error.strerror or error}")
            return 0
        except (ValueError, KeyError, TypeError, RecursionError):
            self._warn("is damaged, and begins anew")
            return 0
        return seconds

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning("--max-minutes-per-day counts in memory only: {} {}", self._file, what)

    def _write_soon(self) -> None:
        """Write in a while, where an event loop runs; not in its thread, for a disk may be slow."""
        if not self.limit or self._file is None or self._timer is not None:
            return
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WRITE_EVERY_S, self._write_in_thread, loop)

    def _write_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        loop.run_in_executor(None, self.write)
        if self._running or self._is_shared:
            self._write_soon()

    def _own_s(self) -> int:
        return self._ended_s + sum(self._seconds_since(began) for began in self._running.values())

    def _seconds_since(self, began: float) -> int:
        return math.ceil(max(0.0, self._clock() - began))

    def _today(self) -> str:
        return datetime.fromtimestamp(self._wall(), UTC).date().isoformat()

    def _turn_day(self) -> None:
        """Begin a new day if it has come; a clock that is set back over midnight does not bring the last one back."""
        today = self._today()
        if self._day in (today, _day_after(today)):
            return
        self._day = today
        self._ended_s = self._written_s = self._others_s = 0
        midnight = self._clock() - self._wall() % DAY_S
        self._running = {name: max(began, midnight) for name, began in self._running.items()}
