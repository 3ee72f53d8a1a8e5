"""Tell the provider from the first messages of its stream, where one address serves all providers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from wsvoice.errors import RemoteProtocolError

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from wsvoice.providers.base import Server

#: A provider's start is its first or second message; a peer that sends this many others is no provider.
MESSAGE_LIMIT = 16


async def detect_provider(
    websocket: WebSocket, providers: Iterable[Server], *, timeout_s: float, byte_limit: int
) -> tuple[Server | None, list[str | bytes]]:
    """
    Read until a provider claims a message as its start.

    Args:
        websocket: Accepted, and not read from so far.
        providers: The providers that are served.
        timeout_s: How long to wait for a start message.
        byte_limit: How large the messages up to it may be in total.

    Returns:
        The provider, or ``None`` if no start came; and all messages that were read, so that none is lost.

    Raises:
        RemoteProtocolError: If they are larger.
    """
    providers = list(providers)
    size = 0
    messages: list[str | bytes] = []
    try:
        async with asyncio.timeout(timeout_s):
            while len(messages) < MESSAGE_LIMIT:
                received = await websocket.receive()
                if received["type"] == "websocket.disconnect":
                    break
                text = received.get("text")
                raw: str | bytes = text if text is not None else received["bytes"]
                size += len(raw)
                if size > byte_limit:
                    raise RemoteProtocolError("too-large", "the messages before its start are larger than the limit")
                messages.append(raw)
                try:
                    message: object = json.loads(raw) if isinstance(raw, str) else raw
                except (ValueError, RecursionError):
                    message = raw
                for provider in providers:
                    if provider.claims(message):
                        return provider, messages
    except TimeoutError:
        pass
    return None, messages
