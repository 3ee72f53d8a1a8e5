"""How a process and its workers talk: pickled objects over a pair of sockets."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from typing import Any, Self


class Channel:
    """One end; only for processes that we have started ourselves, because a pickle can do anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Return a channel over one end of a pair of sockets."""
        return cls(*await asyncio.open_unix_connection(sock=end))

    def send(self, message: Any) -> None:
        """Send an object."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.write(struct.pack("!Q", len(data)) + data)

    async def receive(self) -> Any:
        """Return the next object; raise :exc:`EOFError` or :exc:`OSError` once the other end is gone."""
        (size,) = struct.unpack("!Q", await self._reader.readexactly(8))
        return pickle.loads(await self._reader.readexactly(size))

    async def drain(self) -> None:
        """Wait until what was sent is on its way."""
        await self._writer.drain()

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
