"""Carriers that break the order of things: what they say is counted, and the call they are in stays the same call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.runner.dialects import (
    DIALECTS,
    HANG_UP,
    Asterisk,
    Dialect,
    Exotel,
    Plivo,
    SignalWire,
    Telnyx,
    Vonage,
    linear,
    on_line,
)
from tests.runner.test_provider_messages import Ear, goes_on, url_of
from tests.runner.test_session import wait_for
from tests.signals import tone

Serve = Callable[..., Any]


@pytest.fixture(params=DIALECTS, ids=lambda each: each.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    made: Dialect = request.param()
    return made


def another(dialect: Dialect) -> Dialect:
    """The same provider's start of another call, in another format where it has one."""
    kind = type(dialect)
    details: dict[str, Any] = {}
    if kind is Telnyx:
        details = {"media_format": {"encoding": "L16", "sample_rate": 16000}}
    elif kind is Plivo:
        details = {"mediaFormat": {"encoding": "audio/x-l16", "sampleRate": 16000}}
    is_named = kind in (Exotel, SignalWire, Vonage, Asterisk)
    made = kind(wire=linear(16000) if is_named else None, call_id="other-call", **details)
    if kind is not Vonage:
        made.stream_id = "other-stream"  # type: ignore[misc]
    return made


def test_a_second_start_changes_nothing(shared: Any, dialect: Dialect) -> None:
    """Neither whose call it is, nor where the bot's audio goes, nor how the caller's is written."""
    ear = shared.bot = Ear()

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect) as line:
            await wait_for(lambda: ear.call is not None)
            await line.send(another(dialect).start(), dialect.start(), *dialect.connected())
            await goes_on(ear, line)

    asyncio.run(main())
    (record,) = shared.ended()
    assert record.faults == {"second-start": 2}
    assert (record.call.call_id, record.call.stream_id) == (dialect.call_id, dialect.stream_id)


def test_the_bots_audio_goes_to_the_first_stream(shared: Any, dialect: Dialect) -> None:
    from tests.runner import bots

    shared.bot = bots.echo_8k

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect) as line:
            await wait_for(lambda: shared.lines("stream started"))
            await line.send(another(dialect).start())
            await line.speak(tone(500, 200, 8000), paced=True)
            await line.until_said()
            # Checks each message's stream and format.
            assert line.heard()

    asyncio.run(main())


def test_nothing_counts_after_the_stop(shared: Any, dialect: Dialect) -> None:
    if dialect.stop() == HANG_UP:
        pytest.skip("nothing can come after it")
    ear = shared.bot = Ear()

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect) as line:
            await wait_for(lambda: ear.call is not None)
            await line.speak(tone(500, 100, 8000))
            await line.send(dialect.stop(), *line.spoken(tone(500, 1000, 8000)), *dialect.digits("5"), dialect.start())
            await line.closed()

    asyncio.run(main())
    (record,) = shared.ended()
    assert (record.ended_by, record.reason, record.faults, record.digits) == ("caller", "the caller hung up", {}, "")
    assert record.heard_s == pytest.approx(0.1)


def test_a_stop_instead_of_a_start(shared: Any, dialect: Dialect) -> None:
    """The stream is over; nobody waits for its start any longer."""
    shared.bot = Ear()

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect, start=False) as line:
            await line.send(*dialect.connected(), dialect.stop())
            await line.closed(timeout_s=5)

    asyncio.run(main())
    assert shared.ended()[0].reason == "the caller hung up before the stream started"


def test_other_ids_in_the_middle(shared: Any, dialect: Dialect) -> None:
    """A stream is its connection; what its messages say that they are of is not asked a second time."""
    if not dialect.has_keys:
        pytest.skip("it tells no keys")
    ear = shared.bot = Ear()

    async def main() -> None:
        async with on_line(url_of(shared, dialect), dialect) as line:
            await wait_for(lambda: ear.call is not None)
            for name in ("streamSid", "stream_sid", "streamId", "stream_id"):
                message = json.loads(json.dumps(dialect.digit("5")))
                message[name] = "other-stream"
                await line.send(message)
            await wait_for(lambda: len(ear.listener.digits) == 4)
            await goes_on(ear, line)

    asyncio.run(main())
    (record,) = shared.ended()
    assert (record.call.stream_id, record.faults) == (dialect.stream_id, {})
