"""Traces of plain clients without an HTTP server: ``-t websocket-server`` and ``-t websocket-client``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import websockets
from loguru import logger
from websockets.asyncio.server import ServerConnection

from tests.cli.invoke import invoke
from tests.runner import test_single_client
from tests.runner.peers import RATE, audio_message, next_audio
from tests.runner.pipecat import test_websocket_client_transport as client_transport
from tests.runner.test_session import wait_for
from tests.signals import tone
from wsvoice.trace import Trace, read_trace


async def echo(runner_args: Any) -> None:
    logger.info("the bot says hello, secret=abcdefgh")
    await test_single_client.echo(runner_args)


def traces(folder: Path) -> list[Trace]:
    """Return the traces in a folder that are complete."""
    # A folder is there a moment before what is in it.
    found = [read_trace(path.parent) for path in sorted(folder.glob("*.call/call.json"))]
    return [each for each in found if each.is_complete]


def binary(trace: Trace, direction: str) -> list[bytes]:
    return [each.data for each in trace.wire if each.dir == direction and each.data is not None]


def connect(folder: Path) -> Path:
    """Have a bot connect to a server that says something to it, and return the folder of its trace."""

    async def talk(connection: ServerConnection) -> None:
        await connection.send(await audio_message(tone(500, 40, RATE)))
        await next_audio(connection)

    async def main() -> None:
        async with client_transport.server(talk) as url:
            await client_transport.dial(echo, url, trace=folder)

    asyncio.run(main())
    return folder


def test_each_client_of_a_port_has_a_trace(tmp_path: Path) -> None:
    folder, said = tmp_path / "traces", list[bytes]()

    async def main() -> None:
        async with test_single_client.served(echo, trace=folder) as each:
            for frequency in (500, 700):
                async with websockets.connect(each.url) as client:
                    said.append(await audio_message(tone(frequency, 40, RATE)))
                    await client.send(said[-1])
                    await next_audio(client)
                await wait_for(lambda: len(traces(folder)) == len(said))

    asyncio.run(main())
    first, second = sorted(traces(folder), key=lambda trace: trace.started_at)
    for trace, message in ((first, said[0]), (second, said[1])):
        assert (trace.side, trace.provider, trace.call.direction) == ("server", "websocket-server", "inbound")
        assert binary(trace, "in") == [message]
        assert binary(trace, "out")
        assert [each.kind for each in trace.wire][-1] == "close"
        assert (trace.ended["by"], trace.report["bytes_in"]) == ("caller", len(message))
        assert trace.path.stat().st_mode & 0o777 == 0o700


def test_a_bot_that_connects_has_one(tmp_path: Path) -> None:
    [trace] = traces(connect(tmp_path / "traces"))
    assert (trace.provider, trace.call.direction, trace.ended["by"]) == ("websocket-client", "outbound", "caller")
    assert len(binary(trace, "in")) == 1
    assert binary(trace, "out")


def test_one_that_reaches_nobody_has_none(tmp_path: Path) -> None:
    from wsvoice.errors import ConnectError

    with pytest.raises(ConnectError):
        asyncio.run(client_transport.dial(echo, "ws://127.0.0.1:9/", trace=tmp_path / "traces"))
    assert not traces(tmp_path / "traces")


def test_such_a_trace_is_shown_and_not_placed_again(tmp_path: Path) -> None:
    [path] = connect(tmp_path / "traces").glob("*.call")
    assert invoke("show", str(path), "--html", str(tmp_path / "page.html")).exit_code == 0
    result = invoke("dial", "http://127.0.0.1:9/", "--replay", str(path), code=2)
    assert "is the trace of a plain client's session, and only calls of providers are placed again" in result.stderr
