"""What other commands of the same user find of a running server: where it listens, its calls, how to place one."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from loguru import logger

from wsvoice.phone.runs import RunFile, RunningServer
from wsvoice.runner.control import ControlSocket
from wsvoice.runner.figures import ServerFigures, Snapshot

if TYPE_CHECKING:
    from wsvoice.runner.server import Ready
    from wsvoice.runner.switchboard import Switchboard


def _is_private(switchboard: Switchboard) -> bool:
    """Whether no other command is to find the server: a test call's is nobody else's."""
    return switchboard.config.state_folder is None or switchboard.config.causes is not None


def control_socket(switchboard: Switchboard, look: Callable[[], Snapshot]) -> ControlSocket | None:
    """Return the socket at which other commands of the same user ask for the calls."""
    folder = switchboard.config.state_folder
    return None if folder is None or _is_private(switchboard) else ControlSocket(folder, look, switchboard.end_call)


def observer(
    bot_name: Callable[[], str], switchboard: Switchboard, url: str, *, is_leaving: Callable[[], bool]
) -> Callable[[], Snapshot]:
    """Return what tells of the server that listens at `url`, and of its calls, from any thread."""
    began = time.monotonic()

    def look() -> Snapshot:
        config, capacity, calls = switchboard.config, switchboard.capacity, switchboard.calls()
        server = ServerFigures(
            bot=bot_name(),
            url=url,
            public_url=config.public_url or "",
            providers=tuple(switchboard.providers),
            pid=os.getpid(),
            uptime_s=time.monotonic() - began,
            draining=capacity.draining or is_leaving(),
            leaving=switchboard.is_leaving,
            calls=len(calls),
            max_calls=capacity.limit,
            refused=switchboard.refusals.total,
            workers=tuple(switchboard.workers()),
        )
        return Snapshot(server, calls)

    return look


def introducer(
    switchboard: Switchboard, control: ControlSocket | None, stack: ExitStack
) -> Callable[[Ready | None], None]:
    """
    Return what lets other commands of the same user find this server, and place calls through it.

    They find it from the first call on, at each call's address, and until `stack` is closed. Once it is called with
    ``None``, they find it for its running calls only: another server places calls.
    """
    folder, api = switchboard.config.state_folder, switchboard.dial_api
    if folder is None or _is_private(switchboard):
        return lambda ready: None
    key = ""
    if api is not None:
        api.own_key = key = secrets.token_urlsafe(32)
    file = RunFile(folder)
    stack.callback(file.remove)
    last: Ready | None = None

    def introduce(ready: Ready | None) -> None:
        nonlocal key, last
        if ready is None:
            key = ""
        last = ready or last
        socket_path = "" if control is None or control.path is None else str(control.path)
        if last is None or not (key or socket_path):
            file.remove()
            return
        told = RunningServer(last.url, key, last.public_url or "", last.provider_names, os.getpid(), socket_path)
        try:
            file.write(told)
        except OSError as error:
            logger.debug("other commands will not find this server: {}", error)

    return introduce
