"""A running server that starts its own command line again, which takes over: real processes, real calls."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from loguru import logger
from websockets.exceptions import InvalidStatus

from tests.process import ServerProcess, server_process
from tests.runner import bots
from tests.runner.carrier import FORM, Carrier, announce, dialled
from tests.workers.processes import descendants, is_running, metric
from wsvoice.call import Call
from wsvoice.config import RunConfig
from wsvoice.errors import SignatureError, TokenError
from wsvoice.phone.control import ask
from wsvoice.phone.runs import running_servers
from wsvoice.runner.clients import SESSION_HEADER
from wsvoice.runner.dialled_call import DialledCall, DialRequest
from wsvoice.runner.figures import read_snapshot
from wsvoice.runner.launch import Launch
from wsvoice.runner.limits import Refusal
from wsvoice.runner.minutes import DayMinutes
from wsvoice.runner.routes import application
from wsvoice.runner.switchboard import Switchboard, create_switchboard
from wsvoice.runner.upgrade import Predecessor, ProcessLink, Upgrade, why_impossible

CALL = Call("twilio", "CA1")

BOT = """
import json

VERSION = 1

async def bot(runner_args):
    # A call from beginning to end, for next to no processor time.
    async for text in runner_args.websocket.iter_text():
        message = json.loads(text)
        if message["event"] == "media":
            await runner_args.websocket.send_text(json.dumps({
                "event": "mark", "streamSid": message["streamSid"], "mark": {"name": f"version {VERSION}"},
            }))
        if message["event"] == "stop":
            return
"""


@contextmanager
def serving(folder: Path, *arguments: str, bot: str = BOT, **environ: str) -> Iterator[ServerProcess]:
    """Serve a bot; the processes that have taken over are ended too."""
    with server_process(folder, bot, "-t", "twilio", *arguments, **environ) as server:
        try:
            yield server
        finally:
            for pid in successors(server):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def successors(server: ServerProcess) -> list[int]:
    """The processes that have taken over, or were to."""
    return [int(pid) for pid in re.findall(r"upgrade: process (\d+) starts", server.log())]


def upgrade(server: ServerProcess, pid: int | None = None, *, until: str = " has taken over") -> int:
    """Upgrade, wait until that is logged, and return the new process's pid."""
    since = len(server.log())
    os.kill(pid or server.process.pid, signal.SIGUSR2)
    server.logged(until, timeout_s=30, since=since)
    return successors(server)[-1]


async def version_of(carrier: Carrier) -> str:
    """Say something, and return which version of the bot answers."""
    count = len(carrier.of("mark"))
    await carrier.send({"event": "media", "streamSid": carrier.stream_sid, "media": {"payload": "/////w=="}})
    async with asyncio.timeout(10):
        while len(carrier.of("mark")) == count:
            await asyncio.sleep(0.005)
    return str(carrier.of("mark")[-1]["mark"]["name"])


def listens(pid: int, port: int) -> bool:
    """Whether a process holds a socket that listens on a port: https://man7.org/linux/man-pages/man5/proc_net.5.html"""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {row[9] for row in rows if row[3] == "0A" and int(row[1].partition(":")[2], 16) == port}
    assert inodes
    with suppress(OSError):
        names = [str(each.readlink()) for each in Path(f"/proc/{pid}/fd").iterdir()]
        return any(f"socket:[{inode}]" in names for inode in inodes)
    return False


def workers_of(pid: int) -> dict[int, str]:
    """The workers of a process, and the template that they come from: their command lines."""
    return {each: Path(f"/proc/{each}/cmdline").read_text().replace("\0", " ") for each in descendants(pid)}


@pytest.mark.parametrize(
    ("arguments", "calls"), [((), 20), (("--workers", "2"), 4)], ids=["one process", "front and workers"]
)
def test_no_call_is_cut_and_none_refused(tmp_path: Path, arguments: tuple[str, ...], calls: int) -> None:
    address = f"@wsvoice-test-{os.getpid()}-{len(arguments)}"
    systemd = Systemd(address)

    async def main() -> None:
        with serving(tmp_path, *arguments, NOTIFY_SOCKET=address) as server:
            url = server.url
            async with AsyncExitStack() as stack, httpx.AsyncClient(timeout=10) as client:

                async def ring(call: str, **headers: str) -> str:
                    """Have the webhook answered, and return where the stream is to be dialled."""
                    answer = await client.post(url, data={**FORM, "CallSid": call}, headers=headers)
                    assert "<Stream" in answer.text, answer.text
                    return answer.text.partition('url="')[2].partition('"')[0]

                running = [
                    await stack.enter_async_context(dialled(await ring(f"CA{n}"), f"CA{n}")) for n in range(calls)
                ]
                assert {await version_of(each) for each in running} == {"version 1"}
                (tmp_path / "bot.py").write_text(BOT.replace("VERSION = 1", "VERSION = 2"))
                placed: list[str] = []
                stop = asyncio.Event()

                async def place_calls(who: int) -> None:
                    while not stop.is_set():
                        call = f"CB{who}-{len(placed)}"
                        # By connections of their own, and by those that are kept open, as proxies do.
                        stream = await ring(call, **({} if who else {"Connection": "close"}))
                        # A provider takes a moment: some are announced by one process, and dial the other.
                        await asyncio.sleep(0.1 * who)
                        async with dialled(stream, call) as carrier:
                            placed.append(await version_of(carrier))
                            await carrier.hang_up()

                placing = [asyncio.create_task(place_calls(who)) for who in range(3)]
                old_workers = workers_of(server.process.pid)
                pid = await asyncio.to_thread(upgrade, server)
                count = len(placed)
                while len(placed) < count + 4:
                    await asyncio.sleep(0.01)
                    assert not any(each.done() for each in placing)
                stop.set()
                await asyncio.gather(*placing)
                assert placed[0] == "version 1"
                assert placed[-1] == "version 2"
                # The old ones go on in the old process, with the old code.
                assert {await version_of(each) for each in running} == {"version 1"}
                assert server.process.poll() is None
                if arguments:
                    workers = workers_of(pid)
                    assert len(workers) == 3
                    assert not workers.keys() & old_workers.keys()
                    # Else the port would not be free once both have ended.
                    assert not any(listens(each, server.port) for each in workers.keys() | old_workers.keys())
                    server.signal(signal.SIGHUP)
                    await asyncio.to_thread(server.logged, "no reload: another process takes new calls")
                for each in running:
                    await each.hang_up()
            assert await asyncio.to_thread(server.wait, 20) == 0
            assert httpx.get(url + "readyz").status_code == 200
            if arguments:
                # The new process is the service, and exchanges its own workers.
                systemd.forget()
                os.kill(pid, signal.SIGHUP)
                for each in ("RELOADING=1", "MONOTONIC_USEC=", "READY=1"):
                    await asyncio.to_thread(systemd.hears, each)
            os.kill(pid, signal.SIGTERM)
            log = server.log()
            left = re.search(r"(\d+) calls finish here", log)
            assert left
            assert calls <= int(left[1]) <= calls + 3
            assert not any(is_running(each) for each in old_workers)
            assert "Traceback" not in log

    asyncio.run(main())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line).rstrip()), level="INFO", format="{message}")
    yield lines
    logger.remove(sink)


class Systemd:
    """What systemd hears, as its socket of the abstract kind."""

    def __init__(self, address: str) -> None:
        self.heard: queue.Queue[str] = queue.Queue()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while text := self._socket.recv(4096).decode():
            for line in text.splitlines():
                self.heard.put(line)

    def hears(self, wanted: str) -> str:
        while not (line := self.heard.get(timeout=20)).startswith(wanted):
            pass
        return line

    def forget(self) -> None:
        while not self.heard.empty():
            self.heard.get()


def servers_of(state: Path) -> dict[int, tuple[bool, bool, list[str]]]:
    """What is known of running servers, by process: whether they place calls, whether they drain, and their calls."""
    found = {}
    for each in running_servers(state):
        told = read_snapshot(ask(each, {"do": "calls"}))
        found[each.pid] = (bool(each.key), told.server.draining, [call.id for call in told.calls])
    return found


def test_one_process_after_the_other(tmp_path: Path) -> None:
    """What a new process has of the one before it, and what others see: systemd, Prometheus, `wsvoice calls`."""
    address, state = f"@wsvoice-test-{os.getpid()}", tmp_path / "state"
    systemd = Systemd(address)
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000", "WSVOICE_STATE_DIR": str(state)}
    bot, env_file = tmp_path / "bot.py", tmp_path / ".env"

    async def main(server: ServerProcess) -> None:
        url, metrics_url = server.url, server.ready["metrics_url"]
        for each in ("READY=1", "STATUS=0 calls", "WATCHDOG=1"):
            systemd.hears(each)
        async with dialled(used := await asyncio.to_thread(announce, url, "CA1"), "CA1") as first:
            assert await version_of(first) == "version 1"
            waiting = await asyncio.to_thread(announce, url, "CA2")
            assert metric(metrics_url, "wsvoice_active_calls") == 1

            # A new process that fails changes nothing.
            bot.write_text("async def bot(:\n")
            await asyncio.to_thread(upgrade, server, until="the upgrade failed, and this process goes on")
            assert "bot.py, line 1 is not valid Python" in server.log()
            assert httpx.get(url + "readyz").status_code == 200
            assert await version_of(first) == "version 1"
            assert list(servers_of(state)) == [server.process.pid]

            bot.write_text(BOT.replace("VERSION = 1", "VERSION = 2"))
            env_file.write_text("WSVOICE_MAX_CALLS=2\n")
            pid = await asyncio.to_thread(upgrade, server)
            assert systemd.hears("MAINPID=") == f"MAINPID={pid}"
            assert metric(metrics_url, "wsvoice_active_calls") == 0
            await eventually(lambda: len(servers_of(state)) == 2)
            assert servers_of(state) == {server.process.pid: (False, True, ["CA1"]), pid: (True, False, [])}
            # One runs in the old process, one was announced by it.
            assert "Reject" in httpx.post(url, data={**FORM, "CallSid": "CA3"}).text
            with pytest.raises(InvalidStatus, match="403"):
                async with dialled(used, "CA1"):
                    pass
            async with dialled(waiting, "CA2") as second:
                assert await version_of(second) == "version 2"
                # The one of the old process asks for its next document.
                assert "<Stream" in httpx.post(url, data={**FORM, "CallSid": "CA1"}).text
                await asyncio.to_thread(stop_both, server, pid)
                # A first request to stop cuts off nobody's call.
                assert await version_of(first) == "version 1"
                assert await version_of(second) == "version 2"
                await second.hang_up()
            await first.hang_up()
        assert await asyncio.to_thread(server.wait, 20) == 0

    def stop_both(server: ServerProcess, pid: int) -> None:
        systemd.forget()
        # The new process goes on with it.
        systemd.hears("WATCHDOG=1")
        for each in (server.process.pid, pid):
            os.kill(each, signal.SIGTERM)
        systemd.hears("STOPPING=1")
        systemd.hears("STATUS=stopping; 1 call left")

    with serving(tmp_path, "--metrics-port", "0", **environ) as server:
        asyncio.run(main(server))
        # Once for each version of the file.
        assert server.log().count("bot.py has changed; restart, or run with --reload") == 1
        assert "cut off" not in server.log()
        assert "Traceback" not in server.log()


KEY = "k" * 40


def test_a_process_that_stops_waits_for_the_one_before_it(tmp_path: Path) -> None:
    """systemd would kill that with KillMode=mixed, once its service's main process is gone."""

    async def main(server: ServerProcess) -> None:
        async with dialled(await asyncio.to_thread(announce, server.url, "CA1"), "CA1") as carrier:
            assert await version_of(carrier) == "version 1"
            pid = await asyncio.to_thread(upgrade, server)
            os.kill(pid, signal.SIGTERM)
            await asyncio.to_thread(server.logged, "waiting for 1 call of the process before this one")
            await asyncio.sleep(0.5)
            assert await version_of(carrier) == "version 1"
            assert is_running(pid)
            await carrier.hang_up()
        assert await asyncio.to_thread(server.wait, 20) == 0
        await eventually(lambda: not is_running(pid))

    with serving(tmp_path) as server:
        asyncio.run(main(server))


class Served:
    """The running server, as far as its upgrade needs it."""

    def __init__(self, switchboard: Switchboard) -> None:
        self.application = application(switchboard)
        self.is_answering = False
        self.accepts = True
        self.successor = 0

    async def stop_accepting(self) -> None:
        self.accepts = False

    async def accept(self, sockets: Sequence[socket.socket]) -> None:
        self.accepts = True
        for each in sockets:
            each.close()

    def hand_over(self, pid: int) -> None:
        self.successor = pid


class Process:
    """The process that is started: this one."""

    pid = 4711

    def poll(self) -> None:
        return None


class Pair:
    """A server and the one that takes over from it, in one event loop."""

    def __init__(self, *, old: Switchboard | None = None, **settings: Any) -> None:
        credentials = {"WSVOICE_DIAL_KEY": KEY, **settings.pop("credentials", {})}
        config = RunConfig(**{"transport": "twilio", "max_calls": 5, "credentials": credentials, **settings})
        self.old = old or create_switchboard(bots.echo, config)
        self.new = create_switchboard(bots.echo, config)
        self.served = Served(self.old)
        self.upgrade = Upgrade(Launch((), Path(), {}), self.old, [], self.served)
        self.channel: ProcessLink | None = None

    async def hand_over(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = await ProcessLink.open(ours)
        predecessor = Predecessor(theirs, self.new)
        process: Any = Process()

        async def hand_over(channel: ProcessLink) -> None:
            await self.upgrade._expect(process, channel, "ready", 5)
            await self.upgrade._hand_over(process, channel, [])

        handing = asyncio.create_task(hand_over(self.channel))
        await predecessor.take_over()
        assert not self.served.accepts
        predecessor.begin(pytest.fail)
        await handing
        assert self.served.successor == Process.pid

    def close(self) -> None:
        """Let the old server be gone."""
        if self.channel is not None:
            self.channel.close()

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(application(self.new), client=("127.0.0.1", 1))
        return httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def place(self) -> DialledCall:
        """Let the old server know a call that it has placed."""
        dialled = DialledCall(self.old.providers["twilio"], DialRequest("+15550100002", "+15550100001"))
        dialled.note_ids("CA00000000000000000000000000000009")
        dialled.note("queued", "queued")
        self.old.dialled._remember(dialled)
        return dialled


def linked(test: Callable[[Pair], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test with a pair of servers."""

    async def main() -> None:
        pair = Pair(**settings)
        try:
            await test(pair)
        finally:
            pair.close()

    asyncio.run(main())


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_placed_call_is_answered_for_by_the_server_that_placed_it() -> None:
    async def main(pair: Pair) -> None:
        dialled = pair.place()
        await pair.hand_over()
        async with pair.client() as client:
            key = {"Authorization": f"Bearer {KEY}"}
            told = (await client.get(f"/dial/{dialled.id}", headers=key)).json()
            assert [each["stage"] for each in told["events"]] == ["queued"]
            assert (await client.get(f"/dial/{dialled.id}")).status_code == 401
            assert (await client.get("/dial/of-nobody", headers=key)).status_code == 404
            form = {**FORM, "CallSid": dialled.call.call_id, "CallStatus": "ringing"}
            form["CallbackSource"] = "call-progress-events"
            assert (await client.post(f"/twilio/status/{dialled.token}", data=form)).status_code < 300
            assert dialled.stage == "ringing"
            assert (await client.post("/twilio/status/of-nobody", data=form)).status_code == 404
            # What names no token is passed on, too.
            ended = {**form, "CallStatus": "completed"}
            assert (await client.post("/twilio/status", data=ended)).status_code < 300
            await eventually(lambda: dialled.stage == "completed")
            waiting = asyncio.create_task(client.get(f"/dial/{dialled.id}?after={len(dialled.events)}", headers=key))
            assert (await waiting).json()["ended"]

    linked(main)


def test_a_question_whose_server_has_gone() -> None:
    async def main(pair: Pair) -> None:
        dialled = pair.place()
        place = pair.old.capacity.occupy(Call("twilio", "CA1"))
        await pair.hand_over()
        assert pair.new.capacity.knows(("twilio", "CA1"))
        async with pair.client() as client:
            key = {"Authorization": f"Bearer {KEY}"}
            asking = asyncio.create_task(client.get(f"/dial/{dialled.id}?after=1", headers=key))
            await asyncio.sleep(0.05)
            pair.close()
            assert (await asking).status_code == 503
            assert (await client.get(f"/dial/{dialled.id}", headers=key)).status_code == 404
        assert not pair.new.capacity.knows(("twilio", "CA1"))
        assert pair.new.predecessor is None
        assert place is not None

    linked(main)


def test_what_the_old_server_still_hears_of() -> None:
    async def main(pair: Pair) -> None:
        old, new = pair.old, pair.new
        late = old.auth.tokens.issue(CALL)
        key = ("twilio", "CA1")
        with old.auth.replays.admit("signature", "1", key) as succeed:
            succeed()
        old.auth.replays.stream_started(key)
        await pair.hand_over()
        # A token that the old one redeems, on a connection that it had accepted.
        assert old.auth.tokens.redeem(late, "twilio").call == CALL
        # The stream's end, which lets the same webhook come once more.
        with pytest.raises(SignatureError, match="replay"), new.auth.replays.admit("signature", "2", key):
            pass
        old.auth.replays.stream_ended(key)
        old.remember(Call("twilio", "CA2"), None)
        await eventually(lambda: new.capacity.knows(("twilio", "CA2")))
        with pytest.raises(TokenError, match="used before"):
            new.auth.tokens.redeem(late, "twilio")
        with new.auth.replays.admit("signature", "2", key):
            pass
        assert ("twilio", "CA2") in new.announced

    linked(main)


def test_calls_that_ring_are_waited_for_and_none_is_added() -> None:
    async def main(pair: Pair) -> None:
        dialled = pair.place()
        process: Any = Process()
        waiting = asyncio.create_task(pair.upgrade._wait_for_answers(process))
        await asyncio.sleep(0.15)
        assert not waiting.done()
        assert "being upgraded" in str(pair.old.dialled.paused)
        dialled.note("no-answer", "no answer")
        await asyncio.wait_for(waiting, 5)
        assert pair.served.accepts

    linked(main)


@pytest.mark.parametrize("credentials", [{}, {"WSVOICE_STREAM_SECRET": "0123456789abcdef" * 2}], ids=["own", "shared"])
def test_tokens_of_the_old_server_are_good_once(credentials: dict[str, str]) -> None:
    async def main(pair: Pair) -> None:
        old, new = pair.old.auth.tokens, pair.new.auth.tokens
        tokens = [old.issue(CALL) for _ in range(3)]
        used, late, given_back = tokens
        old.redeem(used, "twilio")
        # What is in everybody's settings does not travel.
        assert bool(pair.old.fleet.seals.export()["keys"]) != bool(credentials)
        await pair.hand_over()
        with pytest.raises(TokenError, match="used before"):
            new.redeem(used, "twilio")
        assert new.redeem(late, "twilio").call == CALL
        # One whose stream finds no place in the old server may find one in the new.
        claims = old.redeem(given_back, "twilio")
        await eventually(lambda: claims.nonce in new._used)
        old.give_back(claims)
        await eventually(lambda: claims.nonce not in new._used)
        assert new.redeem(given_back, "twilio").call == CALL

    linked(main, credentials=credentials)


def test_calls_of_a_number_count_in_both_servers() -> None:
    async def main(pair: Pair) -> None:
        old, new, number = pair.old.numbers, pair.new.numbers, "+15550100001"
        for call in ("CA1", "CA2"):
            old.admit(("twilio", call), number, 60)
            old.stream_began(("twilio", call))
        await pair.hand_over()
        assert new.why_refused("+15550100001") == Refusal(
            "per_number", "+15550100001 has 2 running (--max-calls-per-number)"
        )
        old.stream_ended(("twilio", "CA1"))
        await eventually(lambda: new.why_refused(number) is None)
        # One more within the hour, which both have counted.
        new.admit(("twilio", "CA3"), number, 60)
        new.call_ended(("twilio", "CA3"))
        assert getattr(new.why_refused(number), "reason", None) == "per_hour"
        assert new.knows(("twilio", "CA2"))
        # A server that was killed has no calls any more.
        pair.close()
        await eventually(lambda: not new.knows(("twilio", "CA2")))

    linked(main, max_calls_per_number=2, max_calls_per_hour=3)


def test_the_minutes_of_the_day_are_counted_once(tmp_path: Path) -> None:
    clock = [1000.0]

    def minutes(name: str) -> DayMinutes:
        return DayMinutes(60, tmp_path / name, wall=lambda: 86_400.0 + clock[0], clock=lambda: clock[0])

    # Their folders, or ports, may differ.
    old, new = minutes("old.json"), minutes("new.json")
    ended, running = old.begin(), old.begin()
    clock[0] += 30
    old.end(ended)
    clock[0] += 10
    old.write()
    clock[0] += 5
    new.merge(old.export())
    assert new.used_s == old.used_s == 30 + 45
    own = new.begin()
    clock[0] += 20
    new.end(own)
    old.end(running)
    for each in (new, old, new):
        each.write()
    assert new.used_s == old.used_s == 30 + 65 + 20
    assert json.loads((tmp_path / "old.json").read_text())["seconds"] == 30 + 65 + 20
    assert not (tmp_path / "new.json").exists()
    assert minutes("old.json").used_s == 30 + 65 + 20


def test_a_client_that_waits_keeps_what_it_was_started_with() -> None:
    async def main(pair: Pair) -> None:
        def ask(name: str) -> httpx.Response:
            return client.post("/start", json={"body": {"name": name}})

        app = httpx.ASGITransport(pair.served.application, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=app, base_url="http://localhost") as client:
            before = (await ask("Zoë")).headers[SESSION_HEADER]
            await pair.hand_over()
            # On a connection that the old server had accepted.
            after = (await ask("Ana")).headers[SESSION_HEADER]
        clients = pair.new.clients
        assert clients is not None
        await eventually(lambda: pair.new.capacity.knows(("websocket", after)))
        assert pair.new.capacity.knows(("websocket", before))
        bodies = [json.loads(clients._started_body(each)) for each in (before, after)]
        assert bodies == [{"body": {"name": "Zoë"}}, {"body": {"name": "Ana"}}]

    linked(main, transport="websocket")


def test_each_server_hears_of_the_calls_of_all_before_it(logged: list[str]) -> None:
    async def main(pair: Pair) -> None:
        first, second = pair.old, pair.new
        places = [each.capacity.occupy(Call("twilio", call)) for each, call in ((first, "CA1"), (second, "CA2"))]
        placed = pair.place()
        await pair.hand_over()
        next_pair = Pair(old=second)
        await next_pair.hand_over()
        third = next_pair.new
        assert third.capacity.running == (2, {("twilio", "CA1"), ("twilio", "CA2")})
        assert places[0] is not None
        places[0].close()
        pair.upgrade.tick()
        await eventually(lambda: second.capacity.elsewhere[0] == 0)
        next_pair.upgrade.tick()
        await eventually(lambda: third.capacity.running == (1, {("twilio", "CA2")}))
        # A report goes all the way back to the server that has placed the call.
        form = {**FORM, "CallSid": placed.call.call_id, "CallStatus": "completed"}
        form["CallbackSource"] = "call-progress-events"
        async with next_pair.client() as client:
            assert (await client.post("/twilio/status", data=form)).status_code < 300
        await eventually(lambda: placed.stage == "completed")
        # So does one by its token, and a question for it by its id.
        async with next_pair.client() as client:
            answer = await client.post(f"/twilio/status/{placed.token}", data=form)
            assert answer.status_code < 300
            asked = await client.get(f"/dial/{placed.id}", headers={"Authorization": f"Bearer {KEY}"})
            assert asked.json()["call"]["stage"] == "completed"
        next_pair.close()
        # A request that comes too late is told.
        pair.upgrade.request()
        pair.upgrade.tick()
        assert logged[-1] == "no upgrade: another process has taken over, and this one finishes its calls"

    linked(main)


#: Processes that are started, and how they fail.
FAILING = {
    "the new process has ended with exit code 7": "sys.exit(7)",
    "ConfigError: nothing (mend it)": "say(kind='failed', message='ConfigError: nothing', hint='mend it'); sys.exit(2)",
    # Nobody else accepts calls by then.
    "the new process has ended with exit code 8": "say(kind='ready'); hear(); sys.exit(8)",
    "the new process was not ready within 0.3 s": "time.sleep(60)",
    "the new process says 'hello' in place of 'ready'": "say(kind='hello'); time.sleep(60)",
    "the new process says None in place of 'ready'": "end.sendall(bytes([0, 0, 0, 3]) + b'no!'); time.sleep(60)",
    "the new process has closed its channel": "end.shutdown(socket.SHUT_RDWR); time.sleep(60)",
}
STARTED = """
import json, os, socket, sys, time
end = socket.socket(fileno=int(os.environ["WSVOICE_UPGRADE"]))
socket.recv_fds(end, 2, 8)
file = end.makefile("rwb")

def say(**message):
    text = json.dumps(message).encode()
    end.sendall(len(text).to_bytes(4, "big") + text)

def hear():
    return file.read(int.from_bytes(file.read(4), "big"))

"""


@pytest.mark.parametrize(("why", "does"), FAILING.items(), ids=FAILING.values())
def test_a_process_that_fails_changes_nothing(
    why: str, does: str, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsvoice.runner.upgrade.START_TIMEOUT_S", 0.3)
    monkeypatch.setattr("wsvoice.runner.upgrade.END_TIMEOUT_S", 0.1)

    async def main(pair: Pair) -> None:
        if "0.3" not in why:
            monkeypatch.setattr("wsvoice.runner.upgrade.START_TIMEOUT_S", 10)
        launch = Launch((sys.executable, "-S", "-c", STARTED + does), Path.cwd(), dict(os.environ))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            upgrade = Upgrade(launch, pair.old, [listener], pair.served)
            # One is enough.
            for _ in range(2):
                upgrade.request()
                upgrade.tick()
            assert upgrade._task is not None
            await upgrade._task
        assert "no upgrade: one is under way" in logged
        assert logged[-1] == f"the upgrade failed, and this process goes on: {why}"
        assert pair.served.accepts
        assert pair.served.successor == 0
        assert not upgrade.is_handed_over
        assert pair.old.dialled.paused is None

    linked(main)


def test_an_upgrade_is_given_up_when_the_server_is_asked_to_stop(logged: list[str]) -> None:
    async def main(pair: Pair) -> None:
        launch = Launch((sys.executable, "-S", "-c", STARTED + "time.sleep(60)"), Path.cwd(), dict(os.environ))
        upgrade = Upgrade(launch, pair.old, [], pair.served)
        upgrade.request()
        upgrade.tick()
        pair.old.leave()
        assert upgrade._task is not None
        await upgrade._task

    linked(main)
    assert logged[-1] == "the upgrade is given up: the server was asked to stop"


def test_a_server_without_a_free_file_is_not_upgraded(logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def dup(self) -> socket.socket:
            raise OSError(24, "Too many open files")

    async def main(pair: Pair) -> None:
        full: Any = Full()
        upgrade = Upgrade(Launch((), Path(), {}), pair.old, [full], pair.served)
        upgrade.request()
        upgrade.tick()
        assert upgrade._task is not None
        await upgrade._task
        assert not upgrade.is_handed_over

    linked(main)
    assert "Too many open files" in logged[-1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"tunnel": "ngrok"}, "the tunnel"), ({"number": "+15550100001"}, "the number"), ({}, "")],
    ids=["tunnel", "number", "neither"],
)
def test_what_belongs_to_the_old_process_is_not_given_up(settings: dict[str, str], why: str) -> None:
    switchboard = Pair().old
    switchboard.config = replace(switchboard.config, **settings)  # type: ignore[arg-type]
    assert why_impossible(switchboard).startswith(why)
    assert bool(why_impossible(switchboard)) == bool(why)
