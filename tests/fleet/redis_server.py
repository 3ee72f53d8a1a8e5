"""A real Redis server of Debian's, on a port of this machine."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.tools import lack
from tests.fleet.ports import free_port

PROGRAM = shutil.which("redis-server")


class RedisServer:
    """A Redis server that a test may stop, freeze and start again; it keeps nothing on disk."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.port = port
        self.url = f"redis://127.0.0.1:{port}/0"
        self._folder, self._options = folder, options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import redis

        assert PROGRAM is not None
        settings = ("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [PROGRAM, *settings, *self._options], cwd=self._folder, stdout=subprocess.DEVNULL
        )
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + 10
        while True:
            try:
                client.ping()
            except redis.AuthenticationError:
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Redis does not start"
                time.sleep(0.01)
            else:
                break
        client.close()

    def stop(self) -> None:
        """End it at once, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Have it answer nothing, though its port is open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def keys(self) -> dict[str, int]:
        """All keys, and for how many more seconds each is kept; -1 for ever."""
        import redis

        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return {key: client.ttl(key) for key in client.scan_iter()}


@contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    """Run a server until the context ends; the test is skipped where there is none to run."""
    if PROGRAM is None:
        lack("redis-server is not installed")
    server = RedisServer(folder, free_port(), *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
