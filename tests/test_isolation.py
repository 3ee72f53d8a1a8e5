"""What a bot may do to the process that it runs in: take its signals, exit, go on for ever, block its event loop."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.process import ServerProcess, server_process
from tests.runner.carrier import announce, dialled
from tests.signals import tone
from wsvoice import isolation

#: A bot that answers unless its call has a parameter that says what else it should do.
BOT = """
import asyncio, multiprocessing, os, signal, sys, threading, time

from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner


class Custom(BaseException):
    pass


class Echo(FrameProcessor):
    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(frame.audio, frame.sample_rate, frame.num_channels)
        await self.push_frame(frame, direction)


class Exits(Echo):
    async def process_frame(self, frame, direction):
        if isinstance(frame, InputAudioRawFrame):
            sys.exit("in a processor")
        await super().process_frame(frame, direction)


async def exits():
    sys.exit("in a task")


async def echo(runner_args, processor=None):
    transport = runner_args.transport
    worker = PipelineWorker(Pipeline([transport.input(), processor or Echo(), transport.output()]))

    @transport.event_handler("on_client_connected")
    async def on_client_connected(transport, client):
        if runner_args.body.get("do") == "exit in a handler":
            sys.exit("in a handler")

    # As pipecat's examples have it: it handles SIGINT by default.
    runner = WorkerRunner(handle_sigterm=True)
    await runner.add_workers(worker)
    await runner.run()


def takes_signals():
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
        loop.add_signal_handler(number, print)
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)


async def bot(runner_args):
    what = (runner_args.body or {}).get("do", "")
    if what == "raise SystemExit":
        sys.exit(3)
    elif what == "raise KeyboardInterrupt":
        raise KeyboardInterrupt
    elif what == "raise GeneratorExit":
        raise GeneratorExit
    elif what == "raise Custom":
        raise Custom("mine")
    elif what == "exit in a task":
        asyncio.create_task(exits())
        await asyncio.sleep(60)
    elif what == "exit in a processor":
        await echo(runner_args, Exits())
    elif what == "exit in a callback":
        asyncio.get_running_loop().call_soon(sys.exit, 4)
        await echo(runner_args)
    elif what == "stop the loop":
        asyncio.get_running_loop().stop()
        await echo(runner_args)
    elif what == "end a child":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        os.kill(child.pid, signal.SIGINT)
        await asyncio.to_thread(child.join, 0.2)
        assert child.exitcode is None
        child.terminate()
        await asyncio.to_thread(child.join, 5)
        print("the child's exit code is", child.exitcode, file=sys.stderr)
        await echo(runner_args)
    elif what == "ignore cancellation":
        while True:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                pass
    elif what == "ignore the end":
        await asyncio.sleep(600)
    elif what == "sleep":
        time.sleep(float(runner_args.body["for"]))
        await echo(runner_args)
    elif what == "compute":
        while True:
            pass
    elif what == "leave a thread":
        asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)
        await echo(runner_args)
    else:
        if what == "take signals":
            takes_signals()
        await echo(runner_args)
"""


@contextmanager
def server(folder: Path, *arguments: str, **environ: str) -> Iterator[ServerProcess]:
    with server_process(folder, BOT, "-t", "twilio", *arguments, **environ) as process:
        yield process


def dial(process: ServerProcess, call_sid: str = "CA1", **parameters: str) -> Any:
    return dialled(announce(process.url, call_sid), call_sid, **parameters)


#: Where nobody listens.
NOWHERE = "ws://127.0.0.1:9"
#: How long the process may be there after the drain or a second signal; and how late a busy machine may be.
LIMIT_S, BUSY_S = 2.0, 2.5
SLEEP_LINE = BOT.splitlines().index('        time.sleep(float(runner_args.body["for"]))') + 1

EXITS = [
    "raise SystemExit",
    "raise KeyboardInterrupt",
    "raise GeneratorExit",
    "raise Custom",
    "exit in a task",
    "exit in a handler",
    "exit in a processor",
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server for what must not end it; in the end it still ends when it is asked to."""
    with server(tmp_path_factory.mktemp("guarded")) as process:
        yield process
        process.signal(signal.SIGTERM)
        assert process.wait(15) == 0


class TestExits:
    def test_each_ends_its_own_call_as_a_crash_and_no_other(self, guarded: ServerProcess) -> None:
        async def main() -> None:
            async with dial(guarded, "CA0") as neighbour:
                for number, what in enumerate(EXITS):
                    call_sid = f"CA1{number}"
                    async with dial(guarded, call_sid, do=what) as carrier:
                        with suppress(ConnectionClosed):
                            await carrier.speak(tone(500, 40, 8000))
                        assert (await carrier.closed(15))[0] == 1011, what
                    log = await asyncio.to_thread(guarded.logged, f"{call_sid} ended by")
                    ended = next(line for line in log.splitlines() if f"{call_sid} ended by" in line)
                    assert "ended by an error" in ended, ended
                    assert "the bot called sys.exit(" in ended or "the bot raised" in ended, ended
                await neighbour.speak(tone(500, 200, 8000))
                await neighbour.until("media")
                await neighbour.hang_up()
            await asyncio.to_thread(guarded.logged, "CA0 ended by the caller")

        asyncio.run(main())

    def test_one_of_a_callback_and_a_stop_of_the_loop_end_nothing(self, guarded: ServerProcess) -> None:
        async def main() -> None:
            for number, what in enumerate(("exit in a callback", "stop the loop", "")):
                async with dial(guarded, f"CA2{number}", do=what) as carrier:
                    await carrier.speak(tone(500, 200, 8000))
                    await carrier.until("media")
                    await carrier.hang_up()

        asyncio.run(main())
        assert "SystemExit in a callback" in guarded.log()
        assert "stopped the event loop" in guarded.log()

    def test_a_bot_that_serves_clients_on_its_own_port_is_started_again(self, tmp_path: Path) -> None:
        """And the process is gone in time, though the last one never lets the loop go on."""
        bot = BOT.replace("async def bot(", "async def other(") + (
            "times = iter(['raise SystemExit', 'exit in a task', 'compute'])\n"
            "async def bot(runner_args):\n"
            "    runner_args.body = {'do': next(times)}\n"
            "    await other(runner_args)\n"
        )
        with server_process(tmp_path, bot, "-t", "websocket-server", "--drain-timeout", "100ms") as process:
            process.logged("the bot called sys.exit(3)")
            process.logged("the bot called sys.exit('in a task')")
            time.sleep(0.3)
            assert interrupted(process, code=1) < 0.1 + LIMIT_S + BUSY_S

    def test_a_bot_that_dials_out_fails(self, tmp_path: Path) -> None:
        arguments = ("-t", "websocket-client", "--url", NOWHERE, "--param", "do=exit in a task")
        with server_process(tmp_path, BOT, *arguments) as process:
            assert process.wait(20) == 1
            assert "error: bot.py called sys.exit('in a task')" in process.log()


class TestLoop:
    """The loop goes on after what a guest did to it, but not for ever after what is broken."""

    def test_a_failure_that_repeats_is_given_up(self) -> None:
        runs, told = 0, []

        def loop_factory() -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            run_until_complete = loop.run_until_complete

            def fail(future: Any) -> Any:
                nonlocal runs
                if future.get_coro().__name__ != "main":
                    return run_until_complete(future)
                runs += 1
                assert runs < 1000, "it never ends"
                raise RuntimeError("broken")

            loop.run_until_complete = fail  # type: ignore[method-assign]
            return loop

        async def main() -> None:
            pass

        with pytest.raises(RuntimeError, match="broken"):
            isolation.run(main(), on_exit=told.append, loop_factory=loop_factory)
        assert len(told) < 50

    def test_stops_in_a_row_are_not(self) -> None:
        async def main() -> str:
            for _ in range(50):
                asyncio.get_running_loop().stop()
                await asyncio.sleep(0)
            return "done"

        assert isolation.run(main(), on_exit=lambda _: None) == "done"


class TestSignals:
    def test_they_stay_the_servers(self, tmp_path: Path) -> None:
        """And the process is gone in time after the last call, though a bot left a thread at work."""

        async def main(process: ServerProcess) -> None:
            async with (
                dial(process, "CA1") as first,
                dial(process, "CA2", do="take signals") as second,
                dial(process, "CA3", do="leave a thread") as third,
            ):
                calls = (first, second, third)
                for each in calls:
                    await each.speak(tone(500, 200, 8000))
                    await each.until("media")
                process.signal(signal.SIGINT)
                await asyncio.to_thread(process.logged, "waiting for 3 calls")
                # The bots were not told of it: their calls go on.
                for each in calls:
                    before = len(each.of("media"))
                    await each.speak(tone(500, 200, 8000))
                    await each.until("media", before + 1)
                    await each.hang_up()
            begin = time.monotonic()
            # The thread would have kept it.
            assert await asyncio.to_thread(process.wait, 15) == 1
            assert time.monotonic() - begin < LIMIT_S + BUSY_S

        with server(tmp_path) as process:
            asyncio.run(main(process))

    def test_processes_that_a_bot_forks_can_be_ended(self, guarded: ServerProcess) -> None:
        async def main() -> None:
            async with dial(guarded, "CA7", do="end a child") as carrier:
                await asyncio.to_thread(guarded.logged, "the child's exit code is -15")
                await carrier.hang_up()

        asyncio.run(main())


class TestEnd:
    """The process is gone in time, whatever its bots do."""

    @pytest.mark.parametrize("bots", [("ignore cancellation", "ignore the end"), ("sleep",)])
    def test_at_the_drains_limit(self, tmp_path: Path, bots: tuple[str, ...]) -> None:
        with server(tmp_path, "--drain-timeout", "100ms") as process:
            gone_after_s = asyncio.run(stopped(process, bots, signal.SIGTERM))
            assert gone_after_s < 0.1 + LIMIT_S + BUSY_S
            if bots == ("sleep",):
                # Nobody could end its call.
                assert process.wait(0) == 1
                assert "the process did not stop in time; it is killed, and so is 1 call" in process.log()
                assert re.search(
                    rf"was blocked for [\d.]+ s at bot.py:{SLEEP_LINE} in bot, and still is", process.log()
                )

    @pytest.mark.parametrize("bots", [("ignore cancellation", "ignore the end"), ("compute",)])
    def test_at_the_second_signal(self, tmp_path: Path, bots: tuple[str, ...]) -> None:
        with server(tmp_path) as process:
            gone_after_s = asyncio.run(stopped(process, bots, signal.SIGINT, signal.SIGINT))
            assert gone_after_s < LIMIT_S + BUSY_S
            assert process.wait(0) == 130
            if bots == ("compute",):
                assert re.search(r"was blocked for [\d.]+ s at bot.py:\d+ in bot, and still is", process.log())

    def test_of_a_bot_that_dials_out(self, tmp_path: Path) -> None:
        arguments = ["-t", "websocket-client", "--drain-timeout", "100ms", "--url", NOWHERE]
        with server_process(tmp_path, BOT, *arguments, "--param", "do=ignore cancellation") as process:
            time.sleep(0.7)
            assert interrupted(process) < 0.1 + LIMIT_S + BUSY_S


def interrupted(process: ServerProcess, *, code: int = 0) -> float:
    """Send SIGINT, and return how long after it the process was gone."""
    process.signal(signal.SIGINT)
    begin = time.monotonic()
    assert process.wait(20) == code
    return time.monotonic() - begin


async def stopped(process: ServerProcess, bots: tuple[str, ...], *signals: signal.Signals) -> float:
    """Have calls with these bots, send the signals, and return how long after the last one the process was gone."""
    async with AsyncExitStack() as stack:
        for number, what in enumerate(bots):
            await stack.enter_async_context(dial(process, f"CA{number}", do=what, **{"for": "60"}))
            await asyncio.to_thread(process.logged, f"CA{number} stream started")
        await asyncio.sleep(0.2)
        for at, number in enumerate(signals):
            # A second one is a blocked loop's as well, once it has been for long enough to be told.
            await asyncio.sleep(1.3 if at else 0)
            process.signal(number)
        begin = time.monotonic()
        await asyncio.to_thread(process.wait, 30)
        return time.monotonic() - begin


def test_last_words_that_cannot_be_written_keep_nothing(tmp_path: Path) -> None:
    program = """
import asyncio, time
from loguru import logger
from wsvoice.runner.watchdog import Watchdog

async def main():
    watchdog = Watchdog(folder=None, calls=list)
    with watchdog.watching():
        logger.remove()
        logger.add(lambda message: time.sleep(60))
        watchdog.exit_within(1.5, 7)
        print(time.monotonic(), flush=True)
        time.sleep(60)

asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        begin = float(process.stdout.readline())
        assert process.wait(10) == 7
        assert time.monotonic() - begin < 1.5 + 0.7
    finally:
        process.kill()
        process.communicate()


class TestBlockedLoop:
    def test_a_short_stall_is_named_now_and_then(self, guarded: ServerProcess) -> None:
        async def main() -> None:
            for _ in range(2):
                async with dial(guarded, "CA30", do="sleep", **{"for": "0.4"}) as carrier:
                    await carrier.speak(tone(500, 100, 8000))
                    await carrier.until("media", timeout_s=15)
                    await carrier.hang_up()

        begin = len(guarded.log())
        asyncio.run(main())
        (line,) = re.findall(r"the event loop was late by 0\.\d\d s at (.*)", guarded.log()[begin:])
        assert line.startswith(f"bot.py:{SLEEP_LINE} in bot")

    def test_what_blocks_it_is_named(self, guarded: ServerProcess) -> None:
        async def main() -> None:
            async with dial(guarded, "CA31", do="sleep", **{"for": "1.6"}) as carrier:
                await carrier.speak(tone(500, 100, 8000))
                await carrier.until("media", timeout_s=15)
                assert "blocked" in guarded.log()[begin:]
                await carrier.hang_up()

        begin = len(guarded.log())
        asyncio.run(main())
        found = re.findall(r"(\S+) the event loop was blocked for ([\d.]+) s at (.*)", guarded.log()[begin:])
        assert [(call, place) for call, _, place in found] == [("CA31", f"bot.py:{SLEEP_LINE} in bot")]
        assert 1.2 < float(found[0][1]) < 6
