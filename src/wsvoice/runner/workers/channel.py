"""
Messages between the front and a worker: Python objects, in order, some with an open file descriptor.

Both ends are processes of the same user and of the same version, so messages are pickled.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

#: Before each message: its size, and whether a descriptor comes with it.
_HEAD = struct.Struct("!I?")
#: How much is read at once, and how many descriptors.
_READ_BYTES, _READ_DESCRIPTORS = 256 * 1024, 16


def make_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a channel; descriptors can be passed through both."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for each in ends:
        each.setblocking(False)
    return ends


class Decoder:
    """Puts received bytes and descriptors together again."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors: deque[int] = deque()

    def add(self, data: bytes, descriptors: list[int]) -> None:
        """Take what was received."""
        self._data += data
        self._descriptors.extend(descriptors)

    def messages(self) -> Iterator[tuple[Any, int | None]]:
        """Yield the messages that are complete now, each with its descriptor; those that nobody asks for are kept."""
        while len(self._data) >= _HEAD.size:
            size, has_descriptor = _HEAD.unpack_from(self._data)
            end = _HEAD.size + size
            if len(self._data) < end:
                return
            content = bytes(self._data[_HEAD.size : end])
            del self._data[:end]
            # A descriptor arrives with the first byte of its message.
            yield pickle.loads(content), self._descriptors.popleft() if has_descriptor else None

    def close(self) -> None:
        """Close descriptors whose messages did not arrive."""
        while self._descriptors:
            os.close(self._descriptors.popleft())


def encode(message: Any, *, has_descriptor: bool = False) -> bytes:
    """Return a message as it is sent."""
    content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _HEAD.pack(len(content), has_descriptor) + content


def receive(end: socket.socket) -> tuple[bytes, list[int]]:
    """Return what there is to read; no bytes if the other end is closed. As :meth:`socket.socket.recv` it may block."""
    try:
        data, descriptors, _, _ = socket.recv_fds(end, _READ_BYTES, _READ_DESCRIPTORS)
    except ConnectionResetError:
        # It was closed, or its process killed, before it had read everything.
        return b"", []
    for each in descriptors:
        os.set_inheritable(each, False)
    return data, descriptors


class NonsenseError(Exception):
    """What has come is none of our messages."""


class Channel:
    """
    One end of a channel, in an event loop.

    Nothing waits for the other end: what it does not read is kept.

    Args:
        end: A socket of :func:`make_pair`; closed with the channel.
        on_message: Takes each message, with the descriptor that came with it, which is then its own; raises
            :exc:`NonsenseError` if it is none of ours.
        on_end: Called once the other end is closed, its process has ended, or what it sends is none of our messages.
        decoder: Holds what was received before.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        on_message: Callable[[Any, int | None], None],
        on_end: Callable[[], None],
        decoder: Decoder | None = None,
    ) -> None:
        self._end = end
        self._on_message = on_message
        self._on_end = on_end
        self._decoder = decoder or Decoder()
        #: What is to be sent, with the descriptor that goes along.
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._is_open = True
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)
        self._loop.call_soon(self._deliver)

    def send(self, message: Any, descriptor: int | None = None) -> None:
        """Send a message, with a duplicate of `descriptor`; nothing happens once the other end is gone."""
        if not self._is_open:
            return
        data = memoryview(encode(message, has_descriptor=descriptor is not None))
        self._unsent.append((data, None if descriptor is None else os.dup(descriptor)))
        if len(self._unsent) == 1:
            self._write()

    def close(self) -> None:
        """Close this end."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.remove_reader(self._end)
        self._loop.remove_writer(self._end)
        self._end.close()
        self._decoder.close()
        while self._unsent:
            _, descriptor = self._unsent.popleft()
            if descriptor is not None:
                os.close(descriptor)

    def _write(self) -> None:
        while self._unsent:
            data, descriptor = self._unsent[0]
            try:
                if descriptor is None:
                    sent = self._end.send(data)
                else:
                    sent = socket.send_fds(self._end, [data], [descriptor])
                    os.close(descriptor)
            except BlockingIOError:
                self._loop.add_writer(self._end, self._write)
                return
            except OSError:
                self._note_end()
                return
            if sent < len(data):
                self._unsent[0] = (data[sent:], None)
            else:
                self._unsent.popleft()
        self._loop.remove_writer(self._end)

    def _read(self) -> None:
        try:
            data, descriptors = receive(self._end)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        self._decoder.add(data, descriptors)
        self._deliver()
        if not data:
            self._note_end()

    def _deliver(self) -> None:
        messages = self._decoder.messages()
        while self._is_open:
            try:
                message, descriptor = next(messages)
            except StopIteration:
                return
            except Exception:  # noqa: BLE001 - pickle raises anything for what a bot has written to the descriptor
                self._note_end()
                return
            try:
                self._on_message(message, descriptor)
            except NonsenseError:
                self._note_end()

    def _note_end(self) -> None:
        if self._is_open:
            self.close()
            self._on_end()
