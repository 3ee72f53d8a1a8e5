"""
A pipeline starts without work that nobody sees.

pipecat queues each step of each processor's start for each observer, also for those that ignore such steps, and looks
for handlers of jobs in all classes of each new worker. Here an observer gets what its class has a method for, and a
class of pipecat's in which no handler was found is not searched again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pipecat.observers.base_observer import BaseObserver, FrameProcessed, ProcessorSetUp
from pipecat.pipeline.worker_observer import WorkerObserver
from pipecat.workers import base_worker

#: Which method of an observer a kind of data is for, and what that is where nobody wants it. Others are for all.
_METHODS: dict[type, tuple[str, object]] = {
    FrameProcessed: ("on_process_frame", BaseObserver.on_process_frame),
    ProcessorSetUp: ("on_processor_setup", BaseObserver.on_processor_setup),
}


def apply() -> None:
    """Change what observers get, and how workers look for their handlers."""
    changed: Any = WorkerObserver
    if getattr(changed._send_to_proxy, "_wsvoice", False):
        return

    original = changed._send_to_proxy

    @functools.wraps(original)
    async def _send_to_proxy(self: Any, data: Any) -> None:
        method = _METHODS.get(type(data))
        if method is None or not self._proxies:
            await original(self, data)
            return
        name, nothing = method
        for observer, proxy in self._proxies.items():
            if getattr(type(observer), name, None) is not nothing or name in observer.__dict__:
                proxy.queue.put_nowait(data)

    _send_to_proxy._wsvoice = True  # type: ignore[attr-defined]
    changed._send_to_proxy = _send_to_proxy
    workers: Any = base_worker
    for name in ("_collect_job_handlers", "_collect_worker_ready_handlers"):
        setattr(workers, name, _remembering(getattr(workers, name)))


def _remembering(collect: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Return a function that does not search pipecat's own classes again in which nothing was found."""
    #: How many attributes each had, and its bases: somebody may add handlers later.
    without: dict[type, list[int]] = {}

    @functools.wraps(collect)
    def collect_or_remember(worker: Any) -> dict[str, Any]:
        kind = type(worker)
        if not kind.__module__.startswith("pipecat."):
            return collect(worker)
        sizes = [len(vars(each)) for each in kind.__mro__]
        if without.get(kind) == sizes:
            return {}
        handlers = collect(worker)
        if not handlers:
            without[kind] = sizes
        return handlers

    return collect_or_remember
