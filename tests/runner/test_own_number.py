"""The number of a running server: pointed at it once it listens, and back however it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import websockets

from tests.environment import clean_process
from tests.phone import acme
from tests.phone.acme import CREDENTIALS, NUMBER, OLD_URL, Company, ManualAccount
from tests.phone.conftest import company, state
from tests.phone.public_network import public_network
from tests.process import ServerProcess, server_process
from wsvoice.config import RunConfig
from wsvoice.errors import ApiError
from wsvoice.phone.health import find_problem
from wsvoice.runner.own_number import OwnNumber

__all__ = ["company", "state"]

ROOT = Path(__file__).parents[2]
BOT = """
    async def bot(runner_args):
        pass
"""
#: It blocks the event loop in its call, and takes the signals.
BLOCKING_BOT = """
    import signal, time
    async def bot(runner_args):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("blocked", flush=True)
        while True:
            time.sleep(0.05)
"""
#: It leaves a task behind that resists its end, and has the default action for a terminal that is closed.
LINGERING_BOT = """
    import asyncio, signal
    left = []
    async def linger():
        while True:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                pass
    async def bot(runner_args):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        left.append(asyncio.create_task(linger()))
        print("blocked", flush=True)
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    clean_process(monkeypatch)


@contextmanager
def running(folder: Path, company: Company, bot: str = BOT, *arguments: str) -> Iterator[ServerProcess]:
    """Run a server whose number is the company's."""
    with server_process(
        folder,
        bot,
        *("-t", "twilio", "-x", "bot.invalid", "--number", "+1 (555) 123-4567", *arguments),
        program="tests.phone.acme",
        PYTHONPATH=str(ROOT),
        ACME_API=company.url,
        WSVOICE_STATE_DIR=str(folder / "state"),
        **CREDENTIALS,
    ) as server:
        yield server


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "state" / "numbers").glob("*"))


@asynccontextmanager
async def called(server: ServerProcess) -> AsyncIterator[None]:
    """Call the bot, and wait until it runs."""
    url = f"{server.url.replace('http', 'ws', 1)}ws/twilio"
    with suppress(websockets.ConnectionClosed):
        async with websockets.connect(url) as socket:
            await socket.send('{"event":"connected","protocol":"Call","version":"1.0.0"}')
            start = {"accountSid": "AC1", "callSid": "CA1", "streamSid": "MZ1", "customParameters": {}}
            await socket.send(json.dumps({"event": "start", "streamSid": "MZ1", "start": start}))
            assert server.process.stdout is not None
            assert await asyncio.to_thread(server.process.stdout.readline) == "blocked\n"
            yield


@contextmanager
def own_number(state: Path) -> Iterator[OwnNumber]:
    """A number that was found, without a server."""
    settings = RunConfig(transport="twilio", number=NUMBER, credentials=CREDENTIALS, state_folder=state)
    own = OwnNumber.of(settings)
    assert own is not None
    try:
        own.find()
        yield own
    finally:
        own.close()


def ring_at(own: OwnNumber, public_url: str) -> bool:
    """Have it ring there; whether it does, or the server stops meanwhile."""
    said: Queue[Any] = Queue()
    own.ring_at(public_url, on_rings=lambda: said.put(True), on_failure=said.put)
    deadline = time.monotonic() + 10
    while said.empty():
        if own._asked and not own.is_awaited:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.01)
    result = said.get()
    if isinstance(result, BaseException):
        raise result
    return bool(result)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestProcess:
    def test_it_rings_here_until_the_first_signal(self, company: Company, tmp_path: Path) -> None:
        with running(tmp_path, company) as server:
            assert server.ready["number"] == NUMBER
            assert company.rings_at() == "https://bot.invalid/"
            log = server.logged("does not lead to this server")
            assert f"{NUMBER}  rings here; was: {OLD_URL}" in log
            assert "warning: Acme is slow today" in log
            assert "warning: https://bot.invalid does not lead to this server, as seen from here: " in log
            server.signal(signal.SIGTERM)
            assert server.wait(10) == 0
            assert f"{NUMBER} rings at {OLD_URL} again" in server.log()
        assert company.is_untouched
        assert files(tmp_path) == []

    def test_after_a_kill_another_process_puts_it_back(
        self, company: Company, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tests.cli.invoke import invoke

        for name, value in {**CREDENTIALS, "WSVOICE_STATE_DIR": str(tmp_path / "state")}.items():
            monkeypatch.setenv(name, value)
        with running(tmp_path, company) as server:
            refused = invoke("number", "restore", NUMBER, code=1)
            assert f"error: {NUMBER} rings at another run: process {server.process.pid}, started in" in refused.stderr
            assert company.rings_at() == "https://bot.invalid/"
            server.process.kill()
            server.process.wait(10)
        assert company.rings_at() == "https://bot.invalid/"
        assert invoke("number", "restore").stderr == f"{NUMBER} rings at {OLD_URL} again\n"
        assert company.is_untouched
        assert files(tmp_path) == []

    def test_a_bot_that_blocks_and_takes_signals_keeps_it_from_nothing(self, company: Company, tmp_path: Path) -> None:
        with running(tmp_path, company, BLOCKING_BOT, "--verify", "off", "--stream-auth", "none") as server:
            never = threading.Event()
            company.on_change = lambda request: never.wait(0.5)

            async def main() -> None:
                async with called(server):
                    server.signal(signal.SIGINT)
                    await asyncio.sleep(0.7)
                    # While the API is slow, which is waited for.
                    assert server.process.poll() is None
                    server.signal(signal.SIGINT)
                    await asyncio.to_thread(server.wait, 10)

            asyncio.run(main())
            assert server.process.returncode == 130
            assert f"{NUMBER} rings at {OLD_URL} again" in server.log()
        assert company.is_untouched
        assert files(tmp_path) == []

    def test_a_second_signal_while_the_process_ends_keeps_it_from_nothing(
        self, company: Company, tmp_path: Path
    ) -> None:
        with running(tmp_path, company, LINGERING_BOT, "--verify", "off", "--stream-auth", "none") as server:
            changing = threading.Event()

            def change(request: str) -> None:
                changing.set()
                time.sleep(0.8)

            async def main() -> None:
                async with called(server):
                    pass

            asyncio.run(main())
            company.on_change = change
            server.signal(signal.SIGTERM)
            assert changing.wait(5)
            # The event loop has ended by then, but for the task.
            time.sleep(0.5)
            server.signal(signal.SIGHUP)
            assert server.wait(10) in (0, 1)
        assert company.is_untouched
        assert files(tmp_path) == []

    def test_who_signals_three_times_waits_for_nothing_and_is_told(self, company: Company, tmp_path: Path) -> None:
        with running(tmp_path, company) as server:
            asked, answer = threading.Event(), threading.Event()

            def hold(request: str) -> int | None:
                asked.set()
                answer.wait(10)
                return 503

            company.before = hold
            try:
                server.signal(signal.SIGINT)
                assert asked.wait(5)
                for _ in range(2):
                    time.sleep(0.2)
                    server.signal(signal.SIGINT)
                began = time.monotonic()
                assert server.wait(5) in (1, 130)
                assert time.monotonic() - began < 3
            finally:
                answer.set()
            assert f"{NUMBER} still points at this server, which is gone" in server.log()
            assert "`wsvoice number restore` puts it back" in server.log()
        assert company.rings_at() == "https://bot.invalid/"
        assert files(tmp_path)[0] == "twilio-15551234567.json"

    def test_what_the_api_refuses_to_put_back_is_a_failure(self, company: Company, tmp_path: Path) -> None:
        with running(tmp_path, company) as server:
            company.before = lambda request: 403
            # A closed terminal, which would end the process at once.
            server.signal(signal.SIGHUP)
            assert server.wait(10) == 1
            last = server.log().splitlines()[-2:]
            assert last[0].startswith(f"error: {NUMBER} still points at this server, which is gone: Twilio does not")
            assert last[1].startswith("hint:  `wsvoice number restore` puts it back; its settings are in ")
        assert files(tmp_path) == ["twilio-15551234567.json"]


def test_the_number_follows_a_tunnel_that_moves(company: Company, tmp_path: Path) -> None:
    with contextmanager(public_network)(tmp_path) as network:
        network.tell(authtoken="right", hosts=["one.ngrok-free.app", "two.ngrok-free.app"])
        environ = {**network.environ(), **CREDENTIALS, "NGROK_AUTHTOKEN": "right", "PYTHONPATH": str(ROOT)}
        environ |= {acme.API_VARIABLE: company.url, "WSVOICE_STATE_DIR": str(tmp_path / "state")}
        arguments = ["-t", "twilio", "--tunnel", "ngrok", "--number", NUMBER]
        with server_process(tmp_path, BOT, *arguments, program="tests.phone.acme", **environ) as server:
            assert company.rings_at() == "https://one.ngrok-free.app/"
            assert "does not lead to this server" not in server.log()
            network.kill()
            server.logged(f"{NUMBER} rings at https://two.ngrok-free.app/")
            assert company.rings_at() == "https://two.ngrok-free.app/"
            server.signal(signal.SIGTERM)
            assert server.wait(10) == 0
            assert f"{NUMBER} rings at {OLD_URL} again" in server.log()
    assert company.is_untouched
    assert files(tmp_path) == []


class TestServer:
    """In the tests' own process."""

    def settings(self, state: Path, **more: Any) -> dict[str, Any]:
        return {
            "proxy": "bot.invalid",
            "number": NUMBER,
            "credentials": CREDENTIALS,
            "state_folder": state,
            **more,
        }

    def test_a_server_that_ends_by_itself_puts_it_back(self, company: Company, state: Path, serve: Any) -> None:
        server = serve(None, **self.settings(state))
        assert company.rings_at() == "https://bot.invalid/"
        server.stop()
        assert company.is_untouched

    def test_a_number_that_cannot_be_found_stops_it_before_it_listens(
        self, company: Company, state: Path, serve: Any
    ) -> None:
        with pytest.raises(ApiError) as caught:
            serve(None, **self.settings(state, number="+15550000000"))
        assert caught.value.hint == f"the account has {NUMBER}"
        assert company.is_untouched

    def test_a_number_that_cannot_be_pointed_stops_it(self, company: Company, state: Path, serve: Any) -> None:
        company.before = lambda request: 403 if request.startswith("PUT") else None
        with pytest.raises(ApiError, match="does not take"):
            serve(None, **self.settings(state))
        assert company.is_untouched
        assert list((state / "numbers").glob("*")) == []

    def test_an_answer_that_nobody_expected_stops_it(self, company: Company, state: Path, serve: Any) -> None:
        company.before = lambda request: 200 if request.startswith("POST") else None
        with pytest.raises(KeyError):
            serve(None, **self.settings(state))
        assert company.is_untouched
        assert list((state / "numbers").glob("*")) == []

    def test_where_the_api_cannot_the_user_is_told_what_to_do(
        self, company: Company, state: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        acme.take_over(ManualAccount, monkeypatch.setattr)
        server = serve(None, **self.settings(state))
        assert server.ready.number_steps == (f"open {NUMBER} in Acme's console", "enter https://bot.invalid/")
        assert server.ready.number is None
        server.stop()
        assert company.requests == []
        assert not (state / "numbers").exists()


class TestNumber:
    """Without a server."""

    def test_a_server_that_stops_meanwhile_points_nothing(self, company: Company, state: Path) -> None:
        """While the API asks for patience, which nobody has any more."""
        company.retry_after = "20"

        with own_number(state) as own:

            def before(request: str) -> int | None:
                if not request.startswith("POST"):
                    return None
                own.put_back()
                return 429

            company.before = before
            began = time.monotonic()
            assert not ring_at(own, "https://bot.invalid")
            assert time.monotonic() - began < 5
        assert company.is_untouched
        assert list((state / "numbers").glob("*")) == []

    def test_it_follows_a_tunnel_that_moves(self, company: Company, state: Path) -> None:
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            assert ring_at(own, "https://moved.invalid")
            wait_until(lambda: company.rings_at() == "https://moved.invalid/")
        assert company.is_untouched

    def test_a_move_that_fails_is_tried_again(
        self, company: Company, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whichever of its requests is the one that fails."""
        monkeypatch.setattr("wsvoice.runner.own_number.MOVE_RETRY_S", 0.02)
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            company.requests.clear()
            for failing in range(1, 20):
                count = iter(range(1, 1000))
                company.before = lambda request, count=count, failing=failing: 503 if next(count) == failing else None
                address = f"https://moved-{failing}.invalid"
                assert ring_at(own, address)
                wait_until(lambda address=address: company.rings_at() == f"{address}/")
                if next(count) <= failing:
                    break
            else:
                pytest.fail("a move has no end")
            assert failing > 5
        assert company.is_untouched

    def test_a_move_leaves_alone_what_somebody_has_changed_while_it_was_back(
        self, company: Company, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsvoice.runner.own_number.MOVE_RETRY_S", 0.02)
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")

            def before(request: str) -> int | None:
                if not request.startswith("POST"):
                    return None
                company.before = lambda request: None
                company.applications["app-0"] = "https://elsewhere.example/"
                return 503

            company.before = before
            assert ring_at(own, "https://moved.invalid")
            wait_until(lambda: own._is_left_alone)
            assert ring_at(own, "https://moved-again.invalid")
        assert company.rings_at() == "https://elsewhere.example/"
        assert len(company.applications) == 1

    def test_what_is_put_back_is_what_was_there_last(self, company: Company, state: Path) -> None:
        with own_number(state) as own:
            company.add("+15557654321", "https://newer.example/")
            company.numbers[NUMBER]["application"] = "app-1"
            assert ring_at(own, "https://bot.invalid")
            assert own.found is not None
            assert own.found.points_at == "https://newer.example/"
        assert company.rings_at() == "https://newer.example/"

    def test_an_api_in_trouble_is_asked_again(self, company: Company, state: Path) -> None:
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            answers = iter([502])
            company.before = lambda request: next(answers, None)
        assert own.what_is_left() is None
        assert company.is_untouched

    def test_an_api_that_is_away_for_a_moment_is_asked_again(
        self, company: Company, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            monkeypatch.setenv(acme.API_VARIABLE, "http://127.0.0.1:9")
            threading.Timer(0.3, monkeypatch.setenv, (acme.API_VARIABLE, company.url)).start()
        assert own.what_is_left() is None
        assert company.is_untouched

    def test_an_api_that_never_answers_is_not_waited_for_without_end(
        self, company: Company, state: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("wsvoice.runner.own_number.PUT_BACK_TIMEOUT_S", 0.3)
        answer = threading.Event()
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            company.before = lambda request: 503 if answer.wait(10) else None
            began = time.monotonic()
            own.close()
            assert 0.3 <= time.monotonic() - began < 3
        answer.set()
        left = own.what_is_left()
        assert left is not None
        assert left.message.endswith("which is gone: the API did not answer within 0.3 s")
        assert [path.suffix for path in (state / "numbers").glob("*")] == [".json"]

    def test_the_next_run_may_have_it_while_this_one_drains(self, company: Company, state: Path) -> None:
        with own_number(state) as first:
            assert ring_at(first, "https://bot.invalid")
            first.note_signal(1)
            while first.is_awaited:
                time.sleep(0.01)
            with own_number(state) as second:
                assert ring_at(second, "https://other.invalid")
                first.close()
                assert company.rings_at() == "https://other.invalid/"
        assert company.is_untouched

    def test_a_process_that_a_bot_forks_does_not_put_it_back(self, company: Company, state: Path) -> None:
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            own._process += 1
            own.close()
            assert company.rings_at() == "https://bot.invalid/"
            own._process -= 1
        assert company.is_untouched

    def test_who_takes_it_from_another_server_is_told(self, company: Company, state: Path, serve: Any) -> None:
        other = serve(None)
        company.applications["app-0"] = there = f"{other.url}twilio?key=hush"
        with own_number(state) as own:
            assert ring_at(own, "https://bot.invalid")
            (told,) = [note for note in own.notes if "another server" in note]
            place = there.removesuffix("?key=hush")
            assert told == f"another server of wsvoice's answers at {place}: calls to {NUMBER} do not reach it now"
        assert company.rings_at() == there

    def test_an_address_is_known_by_what_answers(self, company: Company, serve: Any) -> None:
        server = serve(None)
        assert asyncio.run(find_problem(server.url, timeout_s=5)) == ""
        assert asyncio.run(find_problem(company.url, timeout_s=5)) == "somebody else answers in its place (401)"
