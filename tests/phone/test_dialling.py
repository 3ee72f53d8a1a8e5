"""A call that a server is asked for, against a server of the tests' own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.phone.dial_server import CALL_ID, KEY, DialServer, conversation
from wsvoice.errors import ApiError, ConfigError, DialError, UsageError, WsvoiceError
from wsvoice.phone.dialling import CallEvent, CallOrder, CallRecord, CallServer, OrderedCall

ORDER = CallOrder("+15550100002", "+15550100001", "twilio", {"language": "en"}, 30, None, "detect", "hang-up")


@pytest.fixture
def server() -> Iterator[DialServer]:
    with DialServer() as server:
        yield server


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


def client(server: DialServer, key: str = KEY) -> CallServer:
    return CallServer(server.url, key, sleep=no_pause)


async def placed(server: CallServer, order: CallOrder = ORDER) -> OrderedCall:
    ordered = server.order(order)
    await ordered.place()
    return ordered


def place(server: DialServer, order: CallOrder = ORDER) -> tuple[CallRecord, list[CallEvent]]:
    """Place a call and follow it to its end."""
    events: list[CallEvent] = []

    async def call() -> CallRecord:
        ordered = await placed(client(server), order)
        return await ordered.follow(events.append)

    return asyncio.run(call()), events


def refusal(server: DialServer, key: str = KEY) -> WsvoiceError:
    with pytest.raises(WsvoiceError) as caught:
        asyncio.run(placed(client(server, key)))
    assert "\n" not in caught.value.message
    return caught.value


def test_a_call_is_asked_for_and_followed_to_its_end(server: DialServer) -> None:
    server.on_order = conversation
    record, events = place(server)
    assert server.orders == [
        {
            "to": "+15550100002",
            "from": "+15550100001",
            "provider": "twilio",
            "parameters": {"language": "en"},
            "ring_timeout_s": 30,
            "time_limit_s": None,
            "detection": "detect",
            "voicemail": "hang-up",
        }
    ]
    assert [event.text for event in events] == ["queued", "ringing", "answered by a human", "completed"]
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert (events[2].stage, events[2].answered_by, events[2].at_s) == ("answered", "human", 0.3)
    assert record.to_dict() == {
        "id": server.ids[0],
        "call_id": CALL_ID,
        "provider": "twilio",
        "to": "+15550100002",
        "from": "+15550100001",
        "stage": "completed",
        "answered_by": "human",
        "duration_s": 34.2,
        "price": "0.0130 USD",
        "ended_by": "caller",
        "cause": "",
        "response_s": (0.9, 0.7, 1.4),
        "heard_s": 30.5,
        "sent_s": 12.25,
        "recording": "calls/CA5e.wav",
    }


def test_a_server_that_chooses_the_provider_is_not_told_one(server: DialServer) -> None:
    server.on_order = conversation
    record, _ = place(server, CallOrder("+15550100002", "+15550100001"))
    assert "provider" not in server.orders[0]
    assert record.provider == "twilio"


@pytest.mark.parametrize("stage", ["busy", "no-answer", "failed", "canceled"])
def test_how_a_call_ends_that_nobody_answers(server: DialServer, stage: str) -> None:
    def fail(server: DialServer) -> None:
        server.tell("ringing")
        server.end(stage, cause="SIP 486")

    server.on_order = fail
    record, events = place(server)
    assert (record.stage, record.cause, record.has_ended) == (stage, "SIP 486", True)
    assert [event.stage for event in events] == ["queued", "ringing", stage]


def test_events_come_as_they_happen_and_none_twice(server: DialServer) -> None:
    asked: list[int] = []

    async def call() -> CallRecord:
        ordered = await placed(client(server))
        events: asyncio.Queue[CallEvent] = asyncio.Queue()
        following = asyncio.create_task(ordered.follow(events.put_nowait))
        async with asyncio.timeout(10):
            assert (await events.get()).stage == "queued"
            server.tell("ringing")
            assert (await events.get()).stage == "ringing"
            assert not ordered.record.has_ended
            server.end("completed")
            record = await following
        asked.append(events.qsize())
        return record

    assert asyncio.run(call()).stage == "completed"
    assert asked == [1]


def test_a_call_may_be_followed_again_after_an_interruption(server: DialServer) -> None:
    async def call() -> list[str]:
        ordered = await placed(client(server))
        texts: list[str] = []
        first = asyncio.Event()
        following = asyncio.create_task(ordered.follow(lambda event: (texts.append(event.text), first.set())[0]))
        async with asyncio.timeout(10):
            await first.wait()
            following.cancel()
            await asyncio.wait([following])
            await ordered.hang_up()
            await ordered.follow(lambda event: texts.append(event.text))
        return texts

    assert asyncio.run(call()) == ["queued", "canceled"]
    assert server.hung_up.is_set()


def test_a_request_that_fails_on_its_way_is_repeated(server: DialServer) -> None:
    server.faults = [None, (502, b"<html>"), (504, b""), None]
    server.on_order = conversation
    record, events = place(server)
    assert record.stage == "completed"
    assert len(events) == 4
    assert server.faults == []


def test_a_server_that_is_gone_in_the_middle_is_told_with_what_ends_the_call(server: DialServer) -> None:
    async def call() -> None:
        ordered = await placed(client(server))
        following = asyncio.create_task(ordered.follow(lambda event: None))
        await asyncio.sleep(0.05)
        server.faults = [None] * 10
        server.tell("ringing")
        await following

    with pytest.raises(DialError) as caught:
        asyncio.run(call())
    assert caught.value.message.startswith("the server is gone in the middle of the call: ")
    assert caught.value.hint == f"`wsvoice hangup {CALL_ID} -t twilio` ends the call, if it goes on"
    # It was tried a few times, and then no more.
    assert 5 <= len(server.asked) <= 8


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((404, {"error": "no such call"}), "the server no longer knows the call: it was started anew"),
        ((500, b"oops"), "the server does not tell how the call goes on: it answers 500"),
        ((200, b"[]"), "answers what no wsvoice does"),
        ((200, b"\xff\xfe"), "answers what no wsvoice does"),
    ],
)
def test_a_server_that_is_another_one_in_the_middle_is_told(server: DialServer, fault: Any, message: str) -> None:
    server.on_order = lambda server: server.faults.append(fault)
    with pytest.raises(DialError) as caught:
        place(server)
    assert message in caught.value.message


def test_nonsense_in_what_a_server_tells_does_no_harm(server: DialServer) -> None:
    nonsense = (
        b'{"events": [7, {"n": "1"}, {"n": 1e999}, {"n": 2, "at_s": "x", "stage": 5, "text": []}, {"n": 1}],'
        b' "ended": "yes", "call": {"stage": "odd", "duration_s": true, "price": 5, "response_s": [1, "x"]}}'
    )
    server.on_order = lambda server: (server.faults.append((200, nonsense)), server.end("completed"))[0]
    record, events = place(server)
    assert [(event.number, event.text) for event in events] == [(1, ""), (2, "")]
    assert (record.stage, record.duration_s, record.price, record.response_s) == ("completed", None, "", (1,))


def test_a_server_that_does_not_wait_is_not_asked_without_pause(server: DialServer) -> None:
    server.wait_s = 0.0
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            server.end("completed")

    async def call() -> None:
        ordered = await placed(CallServer(server.url, KEY, sleep=pause))
        await ordered.follow(lambda event: None)

    asyncio.run(call())
    assert paused == [0.5] * 3


# What is refused


def test_a_wrong_key_is_told(server: DialServer) -> None:
    error = refusal(server, "another key")
    assert isinstance(error, ConfigError)
    assert error.message == f"the server at {server.url} does not take the key"
    assert "WSVOICE_DIAL_KEY" in (error.hint or "")
    assert server.orders == []


@pytest.mark.parametrize(
    ("status", "kind", "code"), [(400, UsageError, 2), (429, ApiError, 1), (502, ApiError, 1), (503, DialError, 1)]
)
def test_what_the_server_refuses_is_told_in_its_words(
    server: DialServer, status: int, kind: type[WsvoiceError], code: int
) -> None:
    server.refusal = status, {"error": "no voice in +15550100001", "hint": "choose another", "kind": "number"}
    error = refusal(server)
    assert type(error) is kind
    assert (error.message, error.hint, error.exit_code) == ("no voice in +15550100001", "choose another", code)
    assert getattr(error, "kind", "number") == "number"


@pytest.mark.parametrize(("status", "what"), [(404, "places no calls"), (405, "places no calls"), (500, "answers 500")])
def test_a_server_that_knows_nothing_of_calls_is_told(server: DialServer, status: int, what: str) -> None:
    server.refusal = status, b"<html>not found</html>"
    error = refusal(server)
    assert isinstance(error, DialError)
    assert what in error.message
    assert server.url in error.message


@pytest.mark.parametrize("answer", [{}, {"id": ""}, {"id": 5}, b"hello"])
def test_an_answer_that_is_no_call_is_told(server: DialServer, answer: Any) -> None:
    server.refusal = 201, answer
    assert "answers what no wsvoice does" in refusal(server).message


def test_a_server_that_is_not_there_is_told(server: DialServer) -> None:
    server.close()
    error = refusal(server)
    assert isinstance(error, DialError)
    assert error.message.startswith("the server that was to place the call cannot be reached: nothing listens at ")
    assert "--bot" in (error.hint or "")


def test_a_call_of_which_a_server_says_nothing_is_withdrawn(server: DialServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("wsvoice.phone.dialling.PLACE_TIMEOUT_S", 0.2)
    server.on_order = lambda server: server.hung_up.wait(5)
    assert refusal(server).message.endswith("did not answer within 0.2 s; the call was withdrawn")
    assert server.hung_up.is_set()


@pytest.mark.parametrize("reply", [(202, {"text": "rings on"}), (502, {"error": "no"}), (404, b""), (200, b"")])
def test_a_call_of_which_a_server_says_nothing_may_have_been_placed(
    server: DialServer, reply: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("wsvoice.phone.dialling.PLACE_TIMEOUT_S", 0.2)
    server.on_order = lambda server: server.hung_up.wait(5)
    server.hang_up_reply = reply
    what = "was withdrawn" if reply[0] == 200 else "may have been placed"
    assert refusal(server).message.endswith(f"; the call {what}")


def test_a_server_that_dies_while_it_places_a_call_may_have_placed_it(server: DialServer) -> None:
    server.refusal = 201, {}
    server.reply = lambda *_: None  # type: ignore[method-assign]
    assert refusal(server).message.endswith("; the call may have been placed")


# Hanging up


async def hung_up(server: DialServer) -> str:
    """Hang a call up that is being placed."""
    ordered = client(server).order(ORDER)
    placing = asyncio.create_task(ordered.place())
    async with asyncio.timeout(10):
        while not server.orders:
            await asyncio.sleep(0.01)
        goes_on = await ordered.hang_up()
        await placing
    assert not ordered.is_placed
    return goes_on


def test_a_call_is_withdrawn_while_it_is_placed(server: DialServer) -> None:
    server.on_order = lambda server: server.hung_up.wait(5)
    assert asyncio.run(hung_up(server)) == ""
    assert [each.split("/")[0] for each in server.asked] == ["POST ", "DELETE "]


def test_a_call_is_hung_up_before_the_server_knows_of_it(server: DialServer) -> None:
    async def call() -> CallRecord:
        ordered = client(server).order(ORDER)
        placing = asyncio.create_task(ordered.place())
        # One turn of the event loop: the request is begun, and has not been sent.
        await asyncio.sleep(0)
        server.on_order = lambda server: placing_may_end.wait(5)
        first = asyncio.create_task(ordered.hang_up())
        async with asyncio.timeout(10):
            while not any(each.startswith("DELETE") for each in server.asked):
                await asyncio.sleep(0.01)
            placing_may_end.set()
            assert await first == ""
            await placing
            return ordered.record

    placing_may_end = threading.Event()
    asyncio.run(call())
    assert server.hung_up.is_set()


def test_a_call_that_was_not_placed_needs_no_end(server: DialServer) -> None:
    server.refusal = 502, {"error": "no money", "kind": "balance"}

    async def call() -> None:
        ordered = client(server).order(ORDER)
        with pytest.raises(ApiError):
            await ordered.place()
        assert await ordered.hang_up() == ""

    asyncio.run(call())
    assert server.asked == ["POST /dial"]


def test_a_call_that_nobody_can_end_is_told(server: DialServer) -> None:
    server.on_order = lambda server: server.tell("ringing")
    server.hang_up_reply = 202, {"ended": False, "text": "rings on for up to 60 s: the API cannot end it"}

    async def call() -> list[str]:
        ordered = await placed(client(server))
        told = [await ordered.hang_up()]
        server.hang_up_reply = 202, {"ended": False}
        return [*told, await ordered.hang_up()]

    assert asyncio.run(call()) == ["rings on for up to 60 s: the API cannot end it", "goes on for a while"]


def test_a_hang_up_that_the_provider_refuses_is_told_in_its_words(server: DialServer) -> None:
    async def call() -> None:
        await (await placed(client(server))).hang_up()

    server.hang_up_reply = (
        502,
        {"error": "Twilio is out of reach", "hint": "look at its console", "kind": "unreachable"},
    )
    with pytest.raises(ApiError) as caught:
        asyncio.run(call())
    assert caught.value.message == "the call could not be hung up: Twilio is out of reach"
    assert (caught.value.kind, caught.value.hint) == ("unreachable", "look at its console")
    server.hang_up_reply = 502, {"error": "Twilio is out of reach"}
    with pytest.raises(WsvoiceError) as other:
        asyncio.run(call())
    assert other.value.hint == f"`wsvoice hangup {CALL_ID} -t twilio` ends the call, if it goes on"


def test_a_call_that_may_have_been_placed_is_told(server: DialServer) -> None:
    server.refusal = 502, {"error": "the call may have been placed: no answer", "kind": "uncertain"}
    error = refusal(server)
    assert isinstance(error, ApiError)
    assert (error.kind, error.message) == ("uncertain", "the call may have been placed: no answer")


def test_the_limits_of_the_account_come_with_the_call(server: DialServer) -> None:
    server.limits = ["it calls verified numbers only"]
    assert asyncio.run(placed(client(server))).limits == ("it calls verified numbers only",)
    server.refusal = 201, {"id": "of-its-own", "limits": [5, "", "one"]}
    assert asyncio.run(placed(client(server))).limits == ("one",)


def test_a_call_that_is_known_no_more_was_hung_up(server: DialServer) -> None:
    async def call() -> None:
        ordered = await placed(client(server))
        server.ids.clear()
        await ordered.hang_up()
        server.close()
        await ordered.hang_up()

    with pytest.raises(DialError) as caught:
        asyncio.run(call())
    assert caught.value.message.startswith("the call could not be hung up: nothing listens at ")
    assert f"wsvoice hangup {CALL_ID}" in (caught.value.hint or "")
