"""
Servers that run on this machine, as each of them tells in a file of its own.

The file is ``runs/<pid>.json`` in the folder of :func:`wsvoice.config.state_folder`. Only its owner can read it, for it
holds the key with which calls are placed at the owner's cost. Beside it is the socket at which the server tells of its
calls (:mod:`wsvoice.phone.control`). A server that was killed leaves both behind; whoever meets them removes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsvoice.config import DIAL_KEY, make_private, write_private
from wsvoice.errors import RemoteProtocolError, UsageError
from wsvoice.providers.fields import read_object

#: The version of the files that are written, and read.
VERSION = 1
_FILE_LIMIT = 64 * 1024
#: What the name of a folder begins with that holds nothing but a server's socket.
SOCKET_FOLDER = "wsvoice-control-"


@dataclass(frozen=True, slots=True)
class RunningServer:
    """
    A server on this machine, which places calls for whoever has its key.

    Attributes:
        url: Where it is reached from here, with a slash at its end.
        key: The key; empty if it places no calls.
        public_url: Where providers reach it; empty if it has no public address.
        providers: The providers that it serves; empty if that is not known.
        pid: Its process; 0 if that is not known.
        control: The path of the socket at which it tells of its calls; empty if it has none.
    """

    url: str
    key: str
    public_url: str = ""
    providers: tuple[str, ...] = ()
    pid: int = 0
    control: str = ""

    def is_at(self, url: str) -> bool:
        """Return whether `url`, with a slash at its end, is one of its addresses."""
        local = self.url.replace("127.0.0.1", "localhost", 1)
        return url.replace("127.0.0.1", "localhost", 1) in (local, f"{self.public_url.rstrip('/')}/")


class RunFile:
    """
    This process's own file.

    Args:
        folder: The state's.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "runs" / f"{os.getpid()}.json"

    def write(self, server: RunningServer) -> None:
        """
        Write it, or write it anew, and remove those of servers that are gone.

        Raises:
            OSError: If it cannot be written.
        """
        content = {
            "version": VERSION,
            "pid": os.getpid(),
            "url": server.url,
            "public_url": server.public_url or None,
            "providers": list(server.providers),
            "key": server.key,
            "control": server.control or None,
        }
        folder = make_private(self._path.parent)
        for other in folder.glob("*.*"):
            if other.suffix in (".json", ".sock") and other.stem.isdecimal() and not _lives(int(other.stem)):
                _remove(other)
        write_private(self._path, json.dumps(content))

    def remove(self) -> None:
        """Remove it, if it is there."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def running_servers(folder: Path) -> list[RunningServer]:
    """
    Return the servers that run on this machine, those that began last first; `folder` is the state's.

    What is met of servers that were killed is removed.
    """
    found: list[tuple[float, RunningServer]] = []
    for path in (folder / "runs").glob("*.json"):
        try:
            began = path.stat().st_mtime
            with path.open("rb") as file:
                content = read_object(file.read(_FILE_LIMIT).decode("utf-8", "replace"))
        except (OSError, RemoteProtocolError):
            # It has ended this moment, or is none of ours.
            continue
        server = _read(content)
        if server is None:
            continue
        if _lives(server.pid):
            found.append((began, server))
        elif path.stem == str(server.pid):
            _remove(path)
    return [server for _, server in sorted(found, key=lambda each: each[0], reverse=True)]


def _remove(path: Path) -> None:
    """Remove the file of a server that is gone, and its socket where that is elsewhere."""
    with suppress(OSError, RemoteProtocolError):
        if path.suffix == ".json":
            with path.open("rb") as file:
                control = read_object(file.read(_FILE_LIMIT).decode("utf-8", "replace")).get("control")
            if isinstance(control, str) and control:
                remove_socket(Path(control))
    with suppress(OSError):
        path.unlink()


def remove_socket(path: Path) -> None:
    """Remove a server's socket, and the folder that was made for it if its path would have been too long."""
    with suppress(OSError):
        if path.is_socket():
            path.unlink()
        if path.parent.name.startswith(SOCKET_FOLDER):
            path.parent.rmdir()


def _read(content: dict[str, Any]) -> RunningServer | None:
    """Return the server that a file tells of; ``None`` if that is of another version, or broken."""
    url, key, public_url = content.get("url"), content.get("key"), content.get("public_url")
    pid, providers, control = content.get("pid"), content.get("providers"), content.get("control")
    control = control if isinstance(control, str) else ""
    if content.get("version") != VERSION or not (isinstance(url, str) and isinstance(key, str) and url):
        return None
    if not (key or control):
        return None
    return RunningServer(
        f"{url.rstrip('/')}/",
        key,
        public_url if isinstance(public_url, str) else "",
        tuple(each for each in providers if isinstance(each, str)) if isinstance(providers, list) else (),
        pid if isinstance(pid, int) else 0,
        control,
    )


def _lives(pid: int) -> bool:
    """Return whether a process goes on, or might: Windows has no harmless way to ask."""
    if pid <= 0 or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def choose_server(
    servers: Sequence[RunningServer], *, url: str | None, provider: str | None, key: str | None
) -> RunningServer:
    """
    Return the server that is to place a call.

    Args:
        servers: Those that run on this machine.
        url: Its address, with a slash at its end; ``None`` for the only one.
        provider: The provider that it has to serve; ``None`` for any.
        key: The key of a server that is not among them.

    Raises:
        UsageError: If there is none, or more than one.
    """
    servers = [each for each in servers if each.key]
    found = [each for each in servers if url is None or each.is_at(url)]
    if url is not None and not found:
        if key:
            return RunningServer(url, key)
        raise UsageError(
            f"no server that you have started on this machine is at {url}",
            hint=f"set {DIAL_KEY} to that server's key, or name one of yours" + _listed(servers),
        )
    if not found:
        raise UsageError(
            "no server runs on this machine that could place the call",
            hint="start one in another terminal with `wsvoice run`, or have a bot served for this call: `--bot bot.py`",
        )
    fitting = [each for each in found if provider is None or not each.providers or provider in each.providers]
    if not fitting:
        served = ", ".join(found[0].providers)
        raise UsageError(f"the server at {found[0].url} serves {served}, not {provider}", hint="start one that does")
    if len(fitting) > 1:
        port = urlsplit(fitting[0].url).port
        raise UsageError(
            f"{len(fitting)} servers run on this machine",
            hint=f"choose one, as in `--server {port}`" + _listed(fitting),
        )
    return fitting[0]


def _listed(servers: Sequence[RunningServer]) -> str:
    """Return the servers' addresses for the end of a hint."""
    return f": {', '.join(each.url for each in servers)}" if servers else ""
