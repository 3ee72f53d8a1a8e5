"""An accepted WebSocket at its end: what is said of why the other end is gone."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from loguru import logger
from starlette.types import Message

from wsvoice.runner import bounded_socket
from wsvoice.runner.clients import ClientSocket


class Connection:
    """The server's side of a connection that takes nothing any more."""

    def __init__(self) -> None:
        self.arriving: asyncio.Queue[Message] = asyncio.Queue()

    def socket(self) -> ClientSocket:
        """Return its WebSocket; only what the ASGI server does is played here."""

        async def send(message: Message) -> None:
            # As uvicorn's ClientDisconnected, which says nothing.
            raise OSError

        given = SimpleNamespace(scope={"type": "websocket"}, receive=self.arriving.get, send=send)
        return ClientSocket(cast(Any, given), logger=cast(Any, logger), message_limit=1000)


@pytest.mark.parametrize(("code", "reason"), [(1000, "the client hung up"), (1006, "the connection was lost")])
def test_a_send_that_fails_is_explained_by_the_close_that_comes_after_it(code: int, reason: str) -> None:
    async def main() -> str:
        connection = Connection()
        socket = connection.socket()
        reader = asyncio.create_task(socket.read_loop())
        sending = asyncio.create_task(socket.send({"type": "websocket.send", "text": "hello"}))
        await asyncio.sleep(0.05)
        assert socket.send_blocked_since is None
        connection.arriving.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        await asyncio.gather(reader, sending)
        return socket.gone_reason

    assert asyncio.run(main()) == reason


def test_a_send_that_fails_and_that_no_close_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_socket, "CLOSE_GRACE_S", 0.05)

    async def main() -> str:
        socket = Connection().socket()
        reader = asyncio.create_task(socket.read_loop())
        await asyncio.wait_for(socket.send({"type": "websocket.send", "text": "hello"}), 5)
        reader.cancel()
        return socket.gone_reason

    assert asyncio.run(main()) == "the connection broke: OSError"
