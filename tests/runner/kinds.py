"""One call of every kind, for what is counted and traced of them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
import websockets

from tests.runner.carrier import FORM, announce, dialled
from tests.signals import tone

#: The call ids say what the bot does.
RETURNS, RAISES, STUTTERS, ECHOES = (f"CA{kind}" for kind in ("returns", "raises", "stutters", "echoes"))


async def bot(runner_args: Any) -> None:
    """Do what the call's id says."""
    socket, call_id = runner_args.websocket, runner_args.call.call_id
    if call_id.startswith(RETURNS):
        return
    if call_id.startswith(RAISES):
        raise RuntimeError("boom")
    async for text in socket.iter_text():
        message = json.loads(text)
        if message["event"] == "media" and call_id.startswith(ECHOES):
            await socket.send_text(media(runner_args.call.stream_id, message["media"]["payload"]))
        elif message["event"] == "media" and call_id.startswith(STUTTERS):
            await stutter(socket, runner_args.call.stream_id)
            return


def media(stream_id: str, payload: str) -> str:
    return json.dumps({"event": "media", "streamSid": stream_id, "media": {"payload": payload}})


async def stutter(socket: Any, stream_id: str) -> None:
    """Say a sound that breaks off twice: for a fifth of a second, and then for as long as between two utterances."""
    # 40 ms of a loud square wave, in mu-law.
    payload = base64.b64encode((b"\x80" * 8 + b"\x00" * 8) * 20).decode()
    for pause_s in (0.0, 0.2, 0.6):
        await asyncio.sleep(pause_s)
        await socket.send_text(media(stream_id, payload))


async def call(url: str, call_sid: str) -> None:
    """Place a call that says something, and stays until the bot ends it; an echo is hung up."""
    async with dialled(await asyncio.to_thread(announce, url, call_sid), call_sid) as carrier:
        if call_sid.startswith((ECHOES, STUTTERS)):
            await carrier.speak(tone(500, 100, 8000))
        if call_sid.startswith(ECHOES):
            await carrier.until("media", 5)
            await carrier.hang_up()
        else:
            await carrier.closed()


async def lose(url: str, call_sid: str) -> None:
    """Place a call whose connection breaks."""
    async with dialled(await asyncio.to_thread(announce, url, call_sid), call_sid) as carrier:
        await carrier.speak(tone(500, 40, 8000))
        await carrier.until("media")
        carrier.socket.transport.abort()


async def start_badly(url: str, call_sid: str) -> None:
    """Place a call whose stream cannot be used: it is another call's."""
    stream_url = await asyncio.to_thread(announce, url, call_sid)
    async with dialled(stream_url, call_sid, start=False) as carrier:
        carrier.call_sid = "CAanother"
        await carrier.start()
        await carrier.closed()


async def refuse_a_stream(url: str) -> None:
    """Dial with a token of nobody's."""
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websockets.connect(f"{url.replace('http', 'ws', 1)}ws/twilio/forged"):
            pass
    assert refused.value.response.status_code == 403


async def place_every_kind(url: str, capacity: Any) -> None:
    """Have a call of every kind, and something of every kind that is turned away."""
    await asyncio.gather(*(call(url, kind) for kind in (RETURNS, RAISES, STUTTERS, ECHOES)))
    await lose(url, f"{ECHOES}-lost")
    await start_badly(url, "CAbadly")
    await refuse_a_stream(url)
    async with httpx.AsyncClient() as client:
        assert (await client.post(url, data={**FORM, "CallSid": ""})).status_code == 400
        limit, capacity.limit = capacity.limit, 0
        try:
            assert "<Reject" in (await client.post(url, data={**FORM, "CallSid": "CAbusy"})).text
        finally:
            capacity.limit = limit
