"""
Asterisk and baresip as ``install.sh`` put them into a folder, run in place by an ordinary user.

The folder is another Debian release, so its programs are started by its own loader with its own libraries; a chroot
would need root.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

#: How long a program that was told to end may take before it is killed.
END_S = 5
_PORTS = range(10_000, 16_000)


@dataclass(frozen=True)
class Programs:
    """
    What is installed in a folder.

    Attributes:
        folder: The root of a Debian.
    """

    folder: Path

    @cached_property
    def libraries(self) -> Path:
        """The folder of its shared libraries, such as ``usr/lib/x86_64-linux-gnu``."""
        return next(self.folder.glob("usr/lib/*/libc.so.6")).parent

    @cached_property
    def asterisk_version(self) -> str:
        """What ``asterisk -V`` says, such as ``Asterisk 22.10.1+dfsg``."""
        return subprocess.run(
            self.command("usr/sbin/asterisk", "-V"), capture_output=True, text=True, timeout=20
        ).stdout.strip()

    def missing(self) -> str | None:
        """Return what keeps the tests from running, or ``None``."""
        if not self.folder.is_dir():
            return f"there is no folder {self.folder}"
        for each in ("usr/sbin/asterisk", "usr/bin/baresip", "usr/lib/*/asterisk/modules/chan_websocket.so"):
            if not any(self.folder.glob(each)):
                return f"{self.folder} has no {each}"
        return None

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command that runs `program`, a path within the folder."""
        loader = next(path for name in ("lib64", "lib") for path in self.folder.glob(f"usr/{name}/ld-linux*.so.*"))
        path = f"{self.libraries}:{self.libraries}/pulseaudio"
        return [str(loader), "--library-path", path, str(self.folder / program), *arguments]

    @contextmanager
    def running(self, log: Path, program: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run `program` until the context ends; what it prints goes to `log`."""
        with ExitStack() as stack:
            output: IO[bytes] = stack.enter_context(log.open("ab"))
            process = subprocess.Popen(
                self.command(program, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env=os.environ | {"HOME": str(log.parent), "LC_ALL": "C"},
            )
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(END_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def free_port() -> int:
    """
    Return a port of the loopback interface that nobody has at the moment, neither for UDP nor for TCP.

    It is none of those that the system gives to clients, so that none gets it before it is used.
    """
    for port in random.sample(_PORTS, 100):
        with ExitStack() as stack:
            try:
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("there is no free port")
