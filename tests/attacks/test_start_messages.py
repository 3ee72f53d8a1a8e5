"""Start messages in which anything stands anywhere: the call is taken or refused, and nothing breaks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import websockets

from tests.runner.dialects import DIALECTS, Dialect

STRANGE: list[Any] = [None, True, 7, "x", [], {}, {"a": [None]}]
AT_ONCE = 16


def with_strange_values(message: dict[str, Any]) -> Iterator[str]:
    """Yield a start message with each of its values, but the event's name, replaced by each strange one."""
    holders = [message]
    for holder in holders:
        holders += [each for each in holder.values() if isinstance(each, dict)]
        for key in [key for key in holder if key not in ("event", "eventType")]:
            kept = holder[key]
            for value in STRANGE:
                holder[key] = value
                yield json.dumps(message)
            holder[key] = kept


@pytest.mark.parametrize("kind", DIALECTS, ids=lambda each: each.name)
def test_a_strange_start_is_taken_or_refused(serve: Callable[..., Any], kind: type[Dialect]) -> None:
    calls = 0

    async def bot(runner_args: Any) -> None:
        nonlocal calls
        calls += 1
        assert runner_args.call_data.call_id == runner_args.call.call_id
        assert runner_args.call_data.stream_id == runner_args.call.stream_id
        assert isinstance(runner_args.call_data.body, dict)

    server = serve(bot, transport=None)
    dialect = kind(parameters={"customer": "7"})
    turns = asyncio.Semaphore(AT_ONCE)

    async def ends(start: str) -> tuple[str, int | None, str | None]:
        async with turns, websockets.connect(f"{server.ws_url}ws/{dialect.name}", compression=None) as socket:
            for message in dialect.connected():
                await socket.send(json.dumps(message))
            await socket.send(start)
            await asyncio.wait_for(socket.wait_closed(), 20)
            return start, socket.close_code, socket.close_reason

    async def main() -> list[tuple[str, int | None, str | None]]:
        return await asyncio.gather(*map(ends, with_strange_values(dialect.start())))

    ended = asyncio.run(main())
    taken = [each for each in ended if each[1] == 1000]
    refused = [each for each in ended if each[1] == 1008]
    assert [each for each in ended if each not in taken and each not in refused] == []
    assert len(taken) == calls
    assert taken
    assert refused
