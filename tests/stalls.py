"""Moments in which a busy machine stands still: what is measured meanwhile says nothing about the code."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_STEP_S = 0.01


class StallWatch:
    """Notices how late a thread of its own wakes up, while the context lasts."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StallWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            begin = time.monotonic()
            over = self._over.wait(_STEP_S)
            self.longest_s = max(self.longest_s, time.monotonic() - begin - _STEP_S)
            if over:
                return


def undisturbed(
    measure: Callable[[], Result],
    *,
    stall_s: float = 0.05,
    tries: int = 4,
    is_sure: Callable[[Result], bool] = lambda _: False,
) -> Result:
    """
    Return what `measure` returns, of the first time in which nothing stood still, or of which `is_sure` is true.

    A failure counts only then as well, or at the last of all tries.
    """
    for _ in range(tries - 1):
        with StallWatch() as watch:
            try:
                result = measure()
            except Exception:
                if watch.longest_s < stall_s:
                    raise
                continue
        if watch.longest_s < stall_s or is_sure(result):
            return result
    return measure()
