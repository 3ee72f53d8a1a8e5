"""Which new calls are taken, what those hear who are turned away, and how long a call may last."""

from __future__ import annotations

import asyncio
import io
import json
import stat
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
import websockets

from tests.runner import bots
from tests.runner.carrier import FORM, announce, dialled
from tests.runner.dialects import Asterisk, Telnyx, on_line
from tests.runner.test_session import wait_for
from tests.runner.test_switchboard import Api, api, ask  # noqa: F401 - a fixture
from tests.signals import tone
from wsvoice.audio import write_wav
from wsvoice.call import Call
from wsvoice.config import CALLS_PER_WORKER, DialConfig, RunConfig
from wsvoice.dial.caller import dial
from wsvoice.errors import AudioFileError, ConfigError, ServerError
from wsvoice.providers import load_server
from wsvoice.runner.busy_message import BusySound
from wsvoice.runner.capacity import Capacity
from wsvoice.runner.dialled_call import DialRequest
from wsvoice.runner.limits import (
    REMEMBERED_NUMBERS,
    NumberLimits,
    StreamMeter,
    most_calls,
    other_number,
    same_number,
)
from wsvoice.runner.minutes import DAY_S, DayMinutes, minutes_file
from wsvoice.runner.session import ending_notice_s
from wsvoice.runner.switchboard import create_switchboard

Serve = Callable[..., Any]

ALICE, BOB = "+15550100001", "+15550100009"


def a_key(number: int) -> tuple[str, str]:
    return "twilio", f"CA{number}"


def refused(switchboard: Any) -> dict[tuple[str, str], int]:
    """Return what was refused, and why."""
    return {key: count for key, count in switchboard.metrics.refusals.items() if count}


@pytest.mark.parametrize(
    ("max_calls", "workers", "most"),
    [(None, 1, CALLS_PER_WORKER), (None, 4, 4 * CALLS_PER_WORKER), (7, 4, 7), (0, 4, None)],
)
def test_how_many_calls_there_may_be(max_calls: int | None, workers: int, most: int | None) -> None:
    assert most_calls(max_calls, workers) == most


def test_embedded_servers_have_the_same_limit() -> None:
    assert create_switchboard(bots.echo, RunConfig()).capacity.limit == CALLS_PER_WORKER
    assert create_switchboard(bots.echo, RunConfig(max_calls=0)).capacity.limit is None


class TestNumbers:
    def test_one_more_at_once_than_may_be(self) -> None:
        limits = NumberLimits(2, 0)
        for n in range(2):
            assert limits.why_refused(ALICE) is None
            limits.admit(a_key(n), ALICE, 60)
            limits.stream_began(a_key(n))
        refusal = limits.why_refused(ALICE)
        assert refusal is not None
        assert (refusal.reason, refusal.text) == ("per_number", f"{ALICE} has 2 running (--max-calls-per-number)")
        assert limits.why_refused(BOB) is None
        limits.stream_ended(a_key(0))
        assert limits.why_refused(ALICE) is None

    @pytest.mark.parametrize("nobody", ["anonymous", " Restricted", "sip:anonymous@anonymous.invalid", "Unknown"])
    def test_all_who_have_no_number_are_one(self, nobody: str) -> None:
        limits = NumberLimits(1, 0)
        limits.admit(a_key(0), "", 60)
        refusal = limits.why_refused(nobody)
        assert refusal is not None
        assert same_number(nobody) == ""

    def test_spellings(self) -> None:
        assert same_number(ALICE) == same_number("15550100001")
        assert same_number("sip:Alice@example.com") == "alice@example.com"
        assert same_number("client:anonymous") != ""

    def test_a_stream_that_never_comes_frees_its_number(self) -> None:
        now = [0.0]
        limits = NumberLimits(1, 0, now=lambda: now[0])
        limits.admit(a_key(0), ALICE, 60)
        assert limits.knows(a_key(0))
        now[0] = 60.5
        assert limits.why_refused(ALICE) is None
        assert not limits.knows(a_key(0))

    def test_the_hour_slides(self) -> None:
        now = [0.0]
        limits = NumberLimits(0, 2, now=lambda: now[0])
        for n, at in enumerate((0.0, 1800.0)):
            now[0] = at
            assert limits.why_refused(ALICE) is None
            limits.admit(a_key(n), ALICE, 60)
            limits.stream_began(a_key(n))
            limits.stream_ended(a_key(n))
        now[0] = 3599.0
        refusal = limits.why_refused(ALICE)
        assert refusal is not None
        assert refusal.reason == "per_hour"
        now[0] = 3600.0
        assert limits.why_refused(ALICE) is None
        limits.admit(a_key(2), ALICE, 60)
        assert limits.why_refused(ALICE) is not None
        now[0] = 5400.0
        assert limits.why_refused(ALICE) is None

    def test_a_call_that_did_not_come_about_is_not_counted(self) -> None:
        limits = NumberLimits(1, 1)
        limits.admit(a_key(0), ALICE, 60)
        limits.withdraw(a_key(0))
        limits.withdraw(a_key(0))
        assert limits.why_refused(ALICE) is None

    def test_a_webhook_that_is_sent_again_counts_once(self) -> None:
        limits = NumberLimits(0, 2)
        for _ in range(5):
            limits.admit(a_key(0), ALICE, 60)
        assert limits.why_refused(ALICE) is None

    def test_a_stream_whose_webhook_came_to_another_server_counts_as_running(self) -> None:
        limits = NumberLimits(1, 1)
        capacity = Capacity(5)
        call = Call("twilio", "CA1", from_number=ALICE)
        meter = StreamMeter(capacity.occupy(call), DayMinutes(0), limits, ("twilio", "CA1"))  # type: ignore[arg-type]
        assert meter.start(call) is None
        assert limits.why_refused(ALICE) is not None
        meter.end()
        # The hour is that of the server which answered it.
        assert limits.why_refused(ALICE) is None

    def test_the_second_stream_of_a_call_counts_as_running_too(self) -> None:
        limits = NumberLimits(1, 5)
        limits.admit(a_key(0), ALICE, 60)
        for _ in range(2):
            limits.stream_began(a_key(0), ALICE)
            assert limits.why_refused(ALICE) is not None
            limits.stream_ended(a_key(0))
        assert limits.why_refused(ALICE) is None
        assert len(limits.export()["numbers"][0][1]) == 1

    def test_whoever_says_that_a_call_is_over_ends_none_that_runs(self) -> None:
        limits = NumberLimits(1, 0)
        limits.admit(a_key(0), ALICE, 60)
        limits.stream_began(a_key(0))
        limits.call_ended(a_key(0))
        assert limits.why_refused(ALICE) is not None

    def test_invented_numbers_do_not_fill_the_memory(self) -> None:
        limits = NumberLimits(1, 5)
        limits.admit(a_key(-1), ALICE, 60)
        limits.stream_began(a_key(-1))
        for n in range(REMEMBERED_NUMBERS + 500):
            limits.admit(a_key(n), f"+1{n}", 60)
        assert len(limits._numbers) == REMEMBERED_NUMBERS
        assert len(limits._number_of) == REMEMBERED_NUMBERS
        # A call that runs is not forgotten.
        assert limits.why_refused(ALICE) is not None

    def test_without_limits_nothing_is_remembered(self) -> None:
        limits = NumberLimits(0, 0)
        limits.admit(a_key(0), ALICE, 60)
        limits.stream_began(a_key(0))
        limits.stream_ended(a_key(0))
        assert (limits._numbers, limits._number_of) == ({}, {})

    def test_whose_number_counts(self) -> None:
        assert other_number(Call("twilio", "CA1", from_number=ALICE, to_number=BOB)) == ALICE
        assert other_number(Call("twilio", "CA1", from_number=ALICE, to_number=BOB, direction="outbound")) == BOB


class Clocks:
    """The time of day and a clock that nobody sets, which go on together."""

    def __init__(self, at: float = 20_000 * DAY_S + 3600) -> None:
        self.wall, self.steady = at, 1000.0

    def minutes(self, limit: int, file: Path | None = None) -> DayMinutes:
        return DayMinutes(limit, file, wall=lambda: self.wall, clock=lambda: self.steady)

    def pass_by(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class TestMinutes:
    def test_what_has_ended_and_what_runs_count_together(self) -> None:
        clocks = Clocks()
        minutes = clocks.minutes(2)
        first, _ = minutes.begin(), minutes.begin()
        clocks.pass_by(30.2)
        minutes.end(first)
        assert minutes.used_s == 31 + 31
        clocks.pass_by(57)
        assert (minutes.used_s, minutes.is_used_up) == (31 + 88, False)
        clocks.pass_by(1)
        assert (minutes.used_s, minutes.is_used_up) == (31 + 89, True)

    def test_no_limit_is_never_used_up(self) -> None:
        clocks = Clocks()
        minutes = clocks.minutes(0)
        minutes.begin()
        clocks.pass_by(10**6)
        assert not minutes.is_used_up

    def test_midnight_parts_a_call(self) -> None:
        clocks = Clocks(20_000 * DAY_S - 100)
        minutes = clocks.minutes(1)
        call = minutes.begin()
        clocks.pass_by(99)
        assert (minutes.used_s, minutes.is_used_up) == (99, True)
        clocks.pass_by(11)
        assert (minutes.used_s, minutes.is_used_up) == (10, False)
        minutes.end(call)
        assert minutes.used_s == 10

    def test_a_clock_that_is_set_back_counts_nothing_twice(self) -> None:
        clocks = Clocks()
        minutes = clocks.minutes(1)
        call = minutes.begin()
        clocks.steady += 20
        clocks.wall -= 1000
        minutes.end(call)
        assert minutes.used_s == 20

    def test_a_clock_that_is_set_back_over_midnight_brings_no_new_minutes(self, tmp_path: Path) -> None:
        clocks = Clocks(20_000 * DAY_S - 30)
        minutes = clocks.minutes(1, tmp_path / "minutes.json")
        call = minutes.begin()
        clocks.pass_by(95)
        minutes.end(call)
        for _ in range(2):
            assert (minutes.used_s, minutes.is_used_up) == (65, True)
            clocks.wall -= 70
            assert (minutes.used_s, minutes.is_used_up) == (65, True)
            clocks.wall += 70
        minutes.write()
        clocks.wall -= 70
        assert clocks.minutes(1, tmp_path / "minutes.json").is_used_up
        # One that was wrong by more than that is put right.
        clocks.wall -= DAY_S
        assert minutes.used_s == 0

    def test_a_restart_and_a_second_process(self, tmp_path: Path) -> None:
        file, clocks = tmp_path / "state" / "minutes.json", Clocks()
        first, second = clocks.minutes(10, file), clocks.minutes(10, file)
        calls = first.begin(), second.begin()
        clocks.pass_by(100)
        first.write()
        first.write()
        assert (first.used_s, second.used_s) == (100, 100)
        second.end(calls[1])
        second.close()
        assert second.used_s == 200
        clocks.pass_by(50)
        first.end(calls[0])
        first.close()
        assert first.used_s == 250
        assert clocks.minutes(10, file).used_s == 250
        clocks.pass_by(DAY_S)
        assert clocks.minutes(10, file).used_s == 0
        assert sorted(each.name for each in file.parent.iterdir()) == [file.name]
        if sys.platform != "win32":
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "content", ["", "[]", "7", '{"day": 1}', '{"day": "DAY", "seconds": -5}', "[" * 100_000, "\x00"]
    )
    def test_a_damaged_file_begins_anew(self, tmp_path: Path, content: str, caplog: Any) -> None:
        file, clocks = tmp_path / "minutes.json", Clocks()
        file.write_text(content.replace("DAY", clocks.minutes(1)._day))
        minutes = clocks.minutes(10, file)
        assert minutes.used_s == 0
        minutes.end(minutes.begin())
        call = minutes.begin()
        clocks.pass_by(5)
        minutes.end(call)
        minutes.close()
        assert json.loads(file.read_text())["seconds"] == 5

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "state").write_text("a file where the folder should be")
        warned: list[str] = []
        from loguru import logger

        sink = logger.add(lambda message: warned.append(str(message)), level="WARNING", format="{message}")
        try:
            clocks = Clocks()
            minutes = clocks.minutes(1, tmp_path / "state" / "minutes.json")
            minutes.begin()
            for _ in range(3):
                clocks.pass_by(30)
                minutes.write()
        finally:
            logger.remove(sink)
        assert (minutes.used_s, minutes.is_used_up) == (90, True)
        assert len([line for line in warned if "counts in memory only" in line]) == 1

    def test_whose_file_it_is(self, tmp_path: Path) -> None:
        config = RunConfig(state_folder=tmp_path, max_minutes_per_day=5)
        assert minutes_file(RunConfig(state_folder=tmp_path), tmp_path) is None
        assert minutes_file(RunConfig(max_minutes_per_day=5), tmp_path) is None
        files = {minutes_file(config, folder) for folder in (tmp_path, tmp_path / "other", tmp_path)}
        assert len(files) == 2


def test_a_meter_counts_once() -> None:
    clocks, limits = Clocks(), NumberLimits(1, 0)
    minutes, capacity = clocks.minutes(1), Capacity(1)
    place = capacity.occupy(None)
    assert place is not None
    meter = StreamMeter(place, minutes, limits)
    call = Call("asterisk", "1", from_number=ALICE)
    assert meter.start(call) is None
    assert meter.start(call) is None
    clocks.pass_by(7)
    meter.end()
    meter.end()
    assert minutes.used_s == 7
    assert limits.why_refused(ALICE) is None
    # One that starts only after its end counts nothing.
    assert meter.start(call) is None
    clocks.pass_by(7)
    assert minutes.used_s == 7


# What callers meet


def turned_away(url: str, call_sid: str = "CA" + "7" * 32, **form: str) -> list[tuple[str, str | None, dict[str, str]]]:
    """Post the webhook of one more call; return the verbs of its answer."""
    answer = httpx.post(url, data={**FORM, "CallSid": call_sid, **form}, timeout=10)
    return [(each.tag, each.text, each.attrib) for each in ElementTree.fromstring(answer.content)]


BUSY = [("Reject", None, {"reason": "busy"})]


def test_a_number_may_have_so_many_calls(serve: Serve) -> None:
    async def main() -> None:
        server = serve(bots.echo_8k, max_calls_per_number=1)
        async with dialled(announce(server.url)) as carrier:
            await asyncio.to_thread(self_check, server)
            await carrier.hang_up()
        server.ended()
        assert announce(server.url, "CA" + "8" * 32)
        # Its stream has not come, and counts all the same.
        assert turned_away(server.url) == BUSY
        assert refused(server.switchboard) == {("webhook", "per_number"): 2}

    def self_check(server: Any) -> None:
        assert turned_away(server.url) == BUSY
        assert turned_away(server.url, "CA" + "9" * 32, From=BOB)[0][0] == "Connect"

    asyncio.run(main())


def test_a_number_may_call_so_often(serve: Serve) -> None:
    async def main() -> None:
        server = serve(bots.echo_8k, max_calls_per_hour=2)
        for n in range(2):
            call_sid = f"CA{n:032}"
            async with dialled(announce(server.url, call_sid), call_sid) as carrier:
                await carrier.hang_up()
            server.ended(n + 1)
        assert turned_away(server.url) == BUSY
        assert server.lines("webhook answered busy", "called 2 times within an hour (--max-calls-per-hour)")
        assert turned_away(server.url, From=BOB)[0][0] == "Connect"

    asyncio.run(main())


def test_a_call_without_a_webhook_is_counted_when_its_number_is_known(serve: Serve) -> None:
    async def main() -> None:
        server = serve(bots.echo_8k, transport="asterisk", max_calls_per_number=1)
        url = f"{server.ws_url}ws/asterisk"
        async with on_line(url, Asterisk()) as line:
            async with on_line(url, Asterisk(call_id="1700000000.77")) as second:
                assert (await second.closed())[0] == 1008
            (record,) = server.ended()
            assert "running (--max-calls-per-number)" in record.reason
            assert refused(server.switchboard) == {("stream", "per_number"): 1}
            await line.send(line.dialect.stop())

    asyncio.run(main())


def test_a_day_has_so_many_minutes(serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        server = serve(bots.echo_8k, max_minutes_per_day=1, state_folder=tmp_path)
        async with dialled(announce(server.url)) as carrier:
            # As if it had begun a minute ago.
            minutes = server.switchboard.minutes
            await wait_for(lambda: minutes._running)
            minutes._running = {name: began - 60 for name, began in minutes._running.items()}
            assert turned_away(server.url, From=BOB) == BUSY
            with pytest.raises(websockets.InvalidStatus) as raised:
                await websockets.connect(f"{server.ws_url}ws/twilio")
            assert raised.value.response.status_code == 503
            # The call that runs goes on.
            await carrier.speak(tone(440, 200, 8000))
            await carrier.until("media", 5)
            await carrier.hang_up()
        server.ended()
        await asyncio.to_thread(server.stop)
        after = serve(bots.echo_8k, max_minutes_per_day=1, state_folder=tmp_path)
        assert turned_away(after.url) == BUSY
        assert after.lines("the one minute of the day is used up (--max-minutes-per-day)")
        assert refused(after.switchboard) == {("webhook", "minutes"): 1}
        assert set(refused(server.switchboard)) == {("webhook", "minutes"), ("stream", "minutes")}

    asyncio.run(main())


def test_plain_clients_use_up_minutes_too(serve: Serve) -> None:
    async def main() -> None:
        server = serve(bots.echo, transport="websocket", max_minutes_per_day=1)
        minutes = server.switchboard.minutes
        async with websockets.connect(f"{server.ws_url}ws-client"):
            await wait_for(lambda: minutes._running)
            minutes._running = {name: began - 60 for name, began in minutes._running.items()}
            with pytest.raises(websockets.InvalidStatus):
                await websockets.connect(f"{server.ws_url}ws-client")
            assert httpx.post(f"{server.url}start", json={}).status_code == 503
        server.ended()
        assert not minutes._running
        assert refused(server.switchboard) == {("client", "minutes"): 1, ("start", "minutes"): 1}

    asyncio.run(main())


def test_calls_that_are_placed_count_for_who_is_called() -> None:
    credentials = {"TWILIO_ACCOUNT_SID": "AC1", "TWILIO_AUTH_TOKEN": "secret"}

    async def main() -> None:
        config = RunConfig(transport="twilio", max_calls_per_number=1, credentials=credentials)
        switchboard = create_switchboard(bots.echo, config)
        switchboard.numbers.admit(a_key(0), BOB, 60)
        request = DialRequest(to_number=BOB, from_number=ALICE)
        with pytest.raises(ServerError, match=r"no call can be placed now: .*--max-calls-per-number"):
            await switchboard.dialled.place(load_server("twilio", credentials), request, "https://h")
        assert refused(switchboard) == {("dial", "per_number"): 1}

    asyncio.run(main())


# What those hear who are turned away


def a_sound(path: Path, seconds: float, rate: int = 44_100) -> Path:
    pcm = tone(440, round(seconds * 1000), rate)
    write_wav(path, [pcm, pcm], rate)
    return path


def test_a_text_is_spoken(serve: Serve) -> None:
    server = serve(bots.echo_8k, max_calls=1, busy_message="Ring <later> & well")
    announce(server.url)
    assert turned_away(server.url) == [("Say", "Ring <later> & well", {}), ("Hangup", None, {})]


def test_a_file_is_served_as_providers_play_it(serve: Serve, tmp_path: Path) -> None:
    path = a_sound(tmp_path / "busy.wav", 0.5)
    server = serve(bots.echo_8k, max_calls=1, busy_message=path, proxy="voice.example.com", verify="off")
    announce(server.url)
    [play, hang_up] = turned_away(server.url)
    assert (play[0], hang_up) == ("Play", ("Hangup", None, {}))
    url = httpx.URL(play[1] or "")
    assert (url.scheme, url.host, len(Path(url.path).stem)) == ("https", "voice.example.com", 32)
    fetched = httpx.get(f"{server.url}{url.path.removeprefix('/')}", headers={"host": "voice.example.com"})
    assert (fetched.status_code, fetched.headers["content-type"]) == (200, "audio/wav")
    with wave.open(io.BytesIO(fetched.content)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        assert file.getnframes() == 4000
    for guess in ("busy/", "busy/busy.wav", f"busy/{'0' * 32}.wav"):
        assert httpx.get(f"{server.url}{guess}").status_code == 404
    # The next process has the same address, and another file another.
    assert BusySound.read(path).name == Path(url.path).name
    assert BusySound.read(a_sound(tmp_path / "other.wav", 0.6)).name != Path(url.path).name


def test_without_a_public_address_a_file_is_no_use(serve: Serve, tmp_path: Path) -> None:
    path = a_sound(tmp_path / "busy.wav", 0.1)
    server = serve(bots.echo_8k, max_calls=1, busy_message=path)
    assert server.lines("WARNING", f"--busy-message {path} cannot be fetched without a public address")
    announce(server.url)
    assert turned_away(server.url) == BUSY


def test_who_cannot_be_told_is_named_at_the_start(serve: Serve) -> None:
    server = serve(bots.echo_8k, transport=None, busy_message="Later")
    told = server.lines("WARNING", "--busy-message is not for")
    assert len(told) == 2
    assert any("Exotel" in line for line in told)
    assert any("Asterisk" in line for line in told)


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="does not exist"):
        create_switchboard(bots.echo, RunConfig(busy_message=tmp_path / "none.wav"))
    with pytest.raises(ConfigError, match="lasts 61 s; 60 s are allowed"):
        create_switchboard(bots.echo, RunConfig(busy_message=a_sound(tmp_path / "long.wav", 61, 8000)))


class TestCallControl:
    """Telnyx's API plays nothing before it has reported that the call is answered."""

    def serve_full(self, serve: Serve, api: Api, **settings: Any) -> Any:  # noqa: F811
        credentials = {"TELNYX_API_KEY": "KEY1", "TELNYX_BASE_URL": f"{api.url}/v2"}
        server = serve(bots.echo_8k, transport="telnyx", credentials=credentials, max_calls=1, **settings)
        assert ask(server.url, Telnyx(call_id="v3:first"), "JSON").status_code == 200
        api.requests.clear()
        return server

    def test_it_is_answered_told_and_hung_up(self, serve: Serve, api: Api) -> None:  # noqa: F811
        server = self.serve_full(serve, api, busy_message="Later")
        dialect = Telnyx()
        ask(server.url, dialect, "JSON")
        state = api.bodies()[0]["client_state"]
        for kind in ("call.answered", "call.speak.started", "call.speak.ended", "call.hangup"):
            assert httpx.post(server.url, json=dialect.event(kind, client_state=state)).status_code == 200
        assert [path.rpartition("/")[2] for path in api.paths()] == ["answer", "speak", "hangup"]
        assert api.bodies()[1]["payload"] == "Later"

    def test_if_nothing_can_be_said_it_is_hung_up(self, serve: Serve, api: Api) -> None:  # noqa: F811
        server = self.serve_full(serve, api, busy_message="Later")
        dialect = Telnyx()
        ask(server.url, dialect, "JSON")
        state = api.bodies()[0]["client_state"]
        api.status = 422
        assert httpx.post(server.url, json=dialect.event("call.answered", client_state=state)).status_code == 502
        assert [path.rpartition("/")[2] for path in api.paths()] == ["answer", "speak", "hangup"]

    def test_a_stranger_steers_no_call(self, serve: Serve, api: Api) -> None:  # noqa: F811
        server = self.serve_full(serve, api, busy_message="Later", proxy="voice.example.com", verify="off")
        dialect = Telnyx()
        ask(server.url, dialect, "JSON")
        assert [path.rpartition("/")[2] for path in api.paths()] == ["reject"]
        event = dialect.event("call.speak.ended", client_state="d3N2b2ljZSBidXN5")
        assert httpx.post(server.url, json=event).status_code == 200
        assert len(api.requests) == 1


# How long a call may last


class Told:
    """A bot that keeps when it is told of its call's end, and says something then."""

    def __init__(self) -> None:
        self.left: list[float] = []
        self.is_up = False

    async def __call__(self, runner_args: Any) -> None:
        transport = runner_args.transport

        @transport.event_handler("on_call_ending")
        async def on_call_ending(transport: Any, seconds_left: float) -> None:
            self.left.append(seconds_left)

        self.is_up = True
        await bots.run(transport, bots.Echo())


def test_a_call_that_lasts_too_long_is_ended_and_the_bot_is_told_before(serve: Serve) -> None:
    told = Told()

    async def main() -> None:
        server = serve(told, max_call_time_s=1.0)
        async with dialled(announce(server.url)) as carrier:
            await carrier.speak(tone(440, 200, 8000))
            async with asyncio.timeout(5):
                await carrier.socket.wait_closed()
            assert carrier.socket.close_code == 1000
        (record,) = server.ended()
        assert (record.ended_by, record.reason) == ("server", "the call has lasted 1 s (--max-call-time)")
        assert told.left == [0.1]
        assert 1.0 <= record.duration_s < 2.5

    asyncio.run(main())


@pytest.mark.parametrize(("limit_s", "notice_s"), [(3600.0, 30.0), (300.0, 30.0), (120.0, 12.0), (5.0, 0.5)])
def test_how_long_before_the_end_a_bot_is_told(limit_s: float, notice_s: float) -> None:
    assert ending_notice_s(limit_s) == pytest.approx(notice_s)


def test_a_call_that_ends_before_is_told_nothing(serve: Serve) -> None:
    told = Told()

    async def main() -> None:
        server = serve(told, max_call_time_s=60.0)
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: told.is_up)
            await carrier.hang_up()
        (record,) = server.ended()
        assert record.ended_by == "caller"

    asyncio.run(main())
    assert told.left == []


def test_minutes_are_kept_while_a_call_runs(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsvoice.runner.minutes.WRITE_EVERY_S", 0.02)

    async def main() -> None:
        server = serve(bots.echo_8k, max_minutes_per_day=10, state_folder=tmp_path)
        async with dialled(announce(server.url)) as carrier:
            await wait_for(lambda: list(tmp_path.glob("minutes/*.json")))
            [file] = tmp_path.glob("minutes/*.json")
            await wait_for(lambda: json.loads(file.read_text())["seconds"] >= 2)
            assert server.records == []
            await carrier.hang_up()
        server.ended()

    asyncio.run(main())


def test_a_test_call_that_is_turned_away_says_what_it_would_hear(serve: Serve) -> None:
    server = serve(bots.echo_8k, max_calls=1, busy_message="All lines are busy.")
    announce(server.url)
    report = asyncio.run(dial(DialConfig(target=server.url)))
    assert (report.verdict, report.failure) == ("failed", "turned away: All lines are busy.")
    assert not report.findings
