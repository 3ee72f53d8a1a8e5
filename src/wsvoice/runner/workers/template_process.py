"""The process that workers are forked from, as the front knows it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsvoice.errors import ServerError
from wsvoice.runner.workers.channel import Channel, make_pair
from wsvoice.runner.workers.worker_handle import Worker

if TYPE_CHECKING:
    from wsvoice.config import RunConfig


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What workers are started with.

    Attributes:
        config: The settings.
        providers: The names of the providers that are served.
        environ: All environment variables.
        folder: The current folder.
    """

    config: RunConfig
    providers: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    folder: Path

    def moved(self, host: str | None) -> Settings:
        """Return the same settings for another public ``host[:port]``."""
        return replace(self, config=replace(self.config, proxy=host))


class TemplateProcess:
    """
    The process that workers are forked from, as the front knows it.

    Args:
        on_exit: Called with the process id and the exit code of a worker that has ended.
        on_spoilt: Called with the name of a library that must not be imported in it; no worker is to be forked from it.
        on_end: Called if it ends by itself.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_exit: Callable[[int, int], None],
        on_spoilt: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        self.prepared: asyncio.Future[None] = loop.create_future()
        self.prepared.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._on_exit, self._on_spoilt, self._on_end = on_exit, on_spoilt, on_end
        self._forks: deque[Worker] = deque()
        end, other = make_pair()
        other.setblocking(True)
        command = [sys.executable, "-P", "-m", "wsvoice.runner.workers.template", str(other.fileno())]
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[other.fileno()], env=dict(settings.environ), cwd=settings.folder
            )
        except OSError:
            end.close()
            raise
        finally:
            other.close()
        self._channel = Channel(end, on_message=self._take, on_end=self._note_end)
        config = settings.config
        self._channel.send(("prepare", config.disabled_patches, config.log_level, config.log_format))
        self._is_closed = False

    def fork(self, worker: Worker) -> None:
        """Start a worker's process."""
        self._channel.send(("fork", worker.number), worker.end_for_worker.fileno())
        self._forks.append(worker)
        worker.end_for_worker.close()

    def import_libraries(self, names: Collection[str]) -> None:
        """Import what the bot imports from elsewhere, so that the next worker is there sooner."""
        self._channel.send(("import", tuple(names)))

    def close(self) -> None:
        """End it; its workers stay, but for those that are not there yet."""
        self._is_closed = True
        self._channel.close()
        while self._forks:
            self._forks.popleft().note_gone()
        if not self.prepared.done():
            # Its import may hang.
            self.kill()

    def wait(self, timeout_s: float) -> None:
        """Wait for its end; kill it if that takes too long."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()

    def is_gone(self) -> bool:
        """Whether its process has ended."""
        return self._process.poll() is not None

    @property
    def has_failed(self) -> bool:
        """Whether it has ended before it could be of any use."""
        return self.prepared.done() and self.prepared.exception() is not None

    def _take(self, message: Any, descriptor: int | None) -> None:
        what, *arguments = message
        if what == "prepared" and not self.prepared.done():
            self.prepared.set_result(None)
        elif what == "forked":
            self._forks.popleft().note_forked(arguments[1])
        elif what == "exited":
            self._on_exit(*arguments)
        elif what == "spoilt":
            self._on_spoilt(*arguments)

    def _note_end(self) -> None:
        if not self.prepared.done():
            self.prepared.set_exception(ServerError("the process that workers are forked from has ended"))
        while self._forks:
            self._forks.popleft().note_gone()
        if not self._is_closed:
            self._on_end()
