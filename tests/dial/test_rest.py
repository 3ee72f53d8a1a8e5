"""The fake REST API, asked by somebody else's client."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client

from wsvoice.dial import TimelineEvent
from wsvoice.dial.clock import MonotonicClock
from wsvoice.dial.journal import Journal
from wsvoice.dial.rest import FakeRestApi
from wsvoice.providers import load_provider

CALL_ID = "CA" + "1" * 32
ACCOUNT = "AC" + "2" * 32


class Api:
    """The API, what it was told and what it told."""

    def __init__(self) -> None:
        self.hang_ups = 0
        self.events: list[TimelineEvent] = []

    def serve(self) -> FakeRestApi:
        return FakeRestApi(
            load_provider("twilio"), CALL_ID, self.hang_up, Journal(self.events.append, MonotonicClock())
        )

    def hang_up(self) -> None:
        self.hang_ups += 1


def test_twilios_own_client_hangs_up() -> None:
    api = Api()

    def update(url: str, call_id: str) -> str:
        client = Client(ACCOUNT, "secret")
        client.api.base_url = url
        return str(client.calls(call_id).update(status="completed").status)

    async def use() -> None:
        async with api.serve() as served:
            assert await asyncio.to_thread(update, served.url, CALL_ID) == "completed"
            assert api.hang_ups == 1
            with pytest.raises(TwilioRestException) as caught:
                await asyncio.to_thread(update, served.url, "CA" + "3" * 32)
            assert caught.value.status == 404

    asyncio.run(use())
    assert api.hang_ups == 1
    assert [event.text for event in api.events] == ["the simulated REST API does not know another call's hang-up"]


def test_anything_else_is_not_there() -> None:
    api = Api()

    async def use() -> list[int]:
        async with api.serve() as served, httpx.AsyncClient(trust_env=False) as client:
            path = f"{served.url}/2010-04-01/Accounts/{ACCOUNT}/Calls"
            answers = [
                await client.get(f"{path}/{CALL_ID}.json"),
                await client.post(f"{path}.json", data={"To": "+15550100002"}),
                await client.post(f"{path}/{CALL_ID}.json", data={"Status": "in-progress"}),
            ]
            return [answer.status_code for answer in answers]

    assert asyncio.run(use()) == [404, 404, 404]
    assert api.hang_ups == 0
    assert len(api.events) == 3


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nshort",
    ],
)
def test_what_is_no_request_is_answered_and_forgotten(sent: bytes) -> None:
    async def use() -> bytes:
        async with Api().serve() as served:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
            writer.write(sent)
            writer.write_eof()
            answer = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer

    assert asyncio.run(use()).startswith(b"HTTP/1.1 400 ")
