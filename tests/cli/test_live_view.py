"""Running calls on a terminal: what fits, what is escaped, and a real server's terminal from its start to its end."""

from __future__ import annotations

import asyncio
import fcntl
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.cli.invoke import invoke
from tests.environment import clean_environ
from tests.runner.carrier import announce, dialled
from tests.runner.test_control import SERVER, call
from tests.signals import tone
from wsvoice.cli.live_view import LiveView, age, bar, log_lines, plain, render, screen
from wsvoice.runner.figures import Snapshot, WorkerFigures

CALLS = [
    call(
        f"CA{number:032d}",
        from_number=f"+1555{number:07d}",
        to_number="sip:somebody@a-rather-long-host.example.com;transport=tls",
        heard_dbfs=-60.0 + number % 60,
        sent_dbfs=None if number % 3 else -10.0,
        last_wait_s=0.25 * number,
        age_s=number * 100.0,
    )
    for number in range(200)
]
SERVER_200 = replace(SERVER, calls=200, max_calls=250, refused=3, providers=("twilio",))
SAID = "WARNING CA1 something of which there is much to say, number"
LOG = [f"11:22:33.{number:03d} {SAID} {number}" for number in range(50)]


def console(**options: Any) -> Console:
    options = {"color_system": "truecolor", **options}
    return Console(file=io.StringIO(), force_terminal=True, highlight=False, markup=False, emoji=False, **options)


def drawn(*snapshots: Snapshot, width: int = 80, height: int = 24, **options: Any) -> list[str]:
    return [line.plain for line in screen(snapshots, width, height, **options)]


@pytest.mark.parametrize("calls", [0, 1, 3, 200])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (40, 10), (20, 5), (7, 3), (1, 1), (80, 1)])
def test_it_fits_whatever_the_terminal_is(width: int, height: int, calls: int) -> None:
    strange = call("日本語" * 9, from_number="日本語" * 50, to_number="e\u0301" * 99, age_s=10**9, last_wait_s=1e9)
    snapshot = Snapshot(replace(SERVER_200, bot="b" * 300), [*CALLS[:calls], strange])
    for number in (1, 3):
        lines = drawn(*[snapshot] * number, width=width, height=height, log=[*LOG, "語" * 200], note="a note " * 30)
        assert 0 < len(lines) <= height
        assert max(map(cell_len, lines)) <= width


def test_a_terminal_of_80_columns_has_every_column() -> None:
    lines = drawn(Snapshot(SERVER_200, CALLS[:2]), log=LOG)
    assert lines[0].startswith("bot.py  http://localhost:1/  process 7, up 0:05")
    assert lines[1] == "200 calls of 250  3 refused  event loop 1 ms late"
    assert lines[2].split() == ["call", "age", "from", "to", "provider", "caller", "bot", "wait"]
    assert lines[4].split()[:5] == ["CA000000…0001", "1:40", "+15550000001", "sip:somebod…", "twilio"]
    assert lines[4].endswith("0.25 s")
    assert lines[-1].strip() == LOG[-1]
    assert len(lines) == 24


def test_a_narrow_one_has_what_matters_most() -> None:
    (heading,) = [each for each in drawn(Snapshot(SERVER, CALLS[:1]), width=40) if each.startswith("call")]
    assert heading.split() == ["call", "age", "caller", "bot"]


def test_of_too_many_calls_is_told_how_many_more_there_are() -> None:
    lines = drawn(Snapshot(SERVER_200, CALLS), log=LOG)
    shown = [each for each in lines if each.startswith("CA0")]
    assert f"… and {200 - len(shown)} more" in [each.strip() for each in lines]
    assert len([each for each in lines if each.startswith(("11:", "    "))]) >= 5
    # Without a log there is more room.
    assert len([each for each in drawn(Snapshot(SERVER_200, CALLS)) if each.startswith("CA0")]) > len(shown)


def test_workers_are_told_where_there_are_several() -> None:
    workers = [WorkerFigures(number=1, pid=11, calls=2, lag_s=0.2, state="serving")]
    workers.append(WorkerFigures(number=2, pid=12, calls=1, lag_s=0.0, state="draining"))
    calls = [call("CA1", pid=11), call("CA2", pid=12)]
    lines = drawn(Snapshot(replace(SERVER, workers=tuple(workers)), calls), width=100)
    assert "event loop 200 ms late" in lines[1]
    assert lines[2].strip() == "2 workers  1: 2 calls serving, 200 ms  2: 1 call draining, 0 ms"
    assert lines[3].split()[-1] == "process"
    assert [each.split()[-1] for each in lines[4:6]] == ["11", "12"]


def test_a_drain_is_told() -> None:
    draining = drawn(Snapshot(replace(SERVER, draining=True, leaving=True), CALLS[:1]))[1]
    assert "draining: no new calls; a second signal ends them" in draining
    assert "leaving: new calls are still taken" in drawn(Snapshot(replace(SERVER, leaving=True), CALLS[:1]))[1]


def test_a_client_has_no_number() -> None:
    line = drawn(Snapshot(SERVER, [call("8f14e45f-ceea-467f", kind="client", provider="websocket")]))[3]
    assert line.split()[:5] == ["8f14e45f…467f", "0:02", "a", "client", "-"]


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (None, ""),
        (-90.0, ""),
        (-60.0, ""),
        (-59.9, "▏"),
        (-30.0, "███"),
        (-25.0, "███▌"),
        (0.0, "██████"),
        (3.0, "██████"),
    ],
)
def test_a_level_is_a_bar(level: float | None, shown: str) -> None:
    made = bar(level, 6)
    assert made.plain == shown.ljust(6)
    assert ("red" in str(made.style)) is (level is not None and level > -6)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3600, "1:00:00"), (90061, "25:01:01"), (-1, "0:00")],
)
def test_an_age_is_what_a_clock_shows(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07after", "after"),
        ("\x1b]8;;https://a\x1b\\link", "link"),
        ("a\x1b", "a"),
        ("\x1b[2J\x1bcreset", "reset"),
        ("a\rb\x08\x07", "a\\rb\\x08\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("a\u202eb", "a\\u202eb"),
        ("a\tb", "a   b"),
        ("[bold]markup[/bold] :smile:", "[bold]markup[/bold] :smile:"),
    ],
)
def test_nothing_of_a_text_reaches_the_terminal_but_letters(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert [line.plain for line in log_lines([text], 80, 5)] == [shown]


def test_what_a_caller_is_called_is_no_markup_and_no_escape() -> None:
    hostile = call("CA1", from_number="[red]\x1b[2J\n\u202e", to_number="[/]\x07")
    one = console()
    shown = "".join(render(one, line) for line in screen([Snapshot(SERVER, [hostile])], 80, 24))
    assert "[red]" in shown
    assert "[/]" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown).isprintable()


def test_a_long_line_of_a_log_is_wrapped_and_does_not_take_the_screen() -> None:
    lines = [line.plain for line in log_lines(["11:22:33.000 ERROR   - " + "word " * 400, "the last one"], 40, 10)]
    assert lines[-1] == "the last one"
    assert lines[-2] == "    …"
    assert len(lines) == 5
    assert log_lines(["11:22:33.000 ERROR   - x"], 40, 1)[0].style == "red"
    assert log_lines(LOG, 80, 0) == []


def test_no_color_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = Snapshot(replace(SERVER_200, draining=True), CALLS[:3])
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = console()
    assert "\x1b[32m" in "".join(render(coloured, line) for line in screen([snapshot], 80, 24, log=LOG))
    monkeypatch.setenv("NO_COLOR", "1")
    without = console()
    shown = "".join(render(without, line) for line in screen([snapshot], 80, 24, log=LOG))
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|4[0-7]|9[0-7])[m;]", shown)


def test_it_draws_the_whole_screen_in_one_piece_and_gives_it_back() -> None:
    terminal, size = console(), [(80, 24)]
    looks = threading.Semaphore(0)

    def look() -> tuple[list[Snapshot], list[str], str]:
        looks.release()
        return [Snapshot(SERVER_200, CALLS)], LOG, ""

    view = LiveView(terminal, lambda: size[0], look, every_s=0.01)
    view.start()
    for _ in range(3):
        assert looks.acquire(timeout=10)
    size[0] = (30, 8)
    for _ in range(3):
        assert looks.acquire(timeout=10)
    view.stop()
    view.stop()
    shown = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith("\x1b[?1049h")
    assert shown.endswith("\x1b[?25h\x1b[?1049l")
    # The first is what takes the screen.
    _, first, *_, last = shown.removesuffix("\x1b[?25h\x1b[?1049l").split("\x1b[H")[1:]
    assert first.count("\r\n") == 23
    assert last.count("\r\n") == 7
    assert not last.endswith("\n")


BOT = """
    import os, subprocess, sys

    async def bot(runner_args):
        print("\\x1b[2J\\x1b[?1049lthe bot prints")
        os.write(1, b"the bot writes\\n")
        subprocess.run(["sh", "-c", "echo a child prints >&2"])
        sys.stdout.write("no end of line")
        sys.stdout.flush()
        from tests.runner.bots import echo_8k
        await echo_8k(runner_args)
"""


class Terminal:
    """A process on a terminal of its own, and everything that came out of it."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.shown = ""
        self._master, slave = pty.openpty()
        self.resize(100, 30)
        environ = clean_environ(TERM="xterm-256color", PYTHONPATH=str(Path(__file__).parents[2]))
        environ.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "wsvoice", *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environ,
        )
        os.close(slave)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def read(self, timeout_s: float) -> bool:
        """Read what there is; false at its end."""
        if select.select([self._master], [], [], timeout_s)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return False
            self.shown += data.decode("utf-8", "replace")
            return bool(data)
        return self.process.poll() is None

    def until(self, needle: str, timeout_s: float = 30) -> str:
        """Read until `needle` is shown; return what came since the screen was last drawn anew."""
        deadline = time.monotonic() + timeout_s
        begin = len(self.shown)
        while needle not in self.shown[begin:]:
            assert time.monotonic() < deadline, f"{needle!r} was not shown:\n{self.shown[-3000:]!r}"
            assert self.read(0.05) or needle in self.shown[begin:], self.shown[-3000:]
        return self.shown[begin:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "bot.py").write_text(textwrap.dedent(BOT))
    made = Terminal(tmp_path, "run", "bot.py", "-t", "twilio", "--live", "--port", "0", "--host", "127.0.0.1")
    yield made
    made.close()


def test_a_server_with_a_bot_that_prints(terminal: Terminal) -> None:
    terminal.until("no calls; try it")
    before, _, _ = terminal.shown.partition("\x1b[?1049h")
    assert "bot.py takes calls" in re.sub(r"\x1b\[[0-9;]*m", "", before)
    url = re.search(r"http://127\.0\.0\.1:\d+/", before)
    assert url

    async def main() -> None:
        async with dialled(await asyncio.to_thread(announce, url[0])) as carrier:
            await asyncio.to_thread(terminal.until, "a child prints")
            await carrier.speak(tone(440, 1000, 8000))
            shown = await asyncio.to_thread(terminal.until, "█")
            assert "CA000000…0001" in shown
            terminal.resize(40, 10)
            await asyncio.to_thread(terminal.until, "\x1b[H" + "\x1b[1mbot.py", 10)
            terminal.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(terminal.until, "draining", 10)
            await carrier.hang_up()

    asyncio.run(main())
    while terminal.read(1):
        pass
    assert terminal.process.wait(10) == 0
    _, _, during = terminal.shown.partition("\x1b[?1049h")
    # A bot's own escapes never came between; only the end gives the screen back, and shows what was printed.
    screens, _, after = during.partition("\x1b[?25h\x1b[?1049l")
    assert "\x1b[2J" not in screens
    assert "\x1b[?1049l" not in screens
    assert "the bot prints" in screens
    for printed in ("the bot prints", "the bot writes", "a child prints", "no end of line", "ended by the caller"):
        assert printed in after
    assert after.endswith(f"\rprocess {terminal.process.pid} has stopped\r\n")


@pytest.mark.usefixtures("clean_process")
class TestWhereItCannotBeShown:
    def test_a_pipe_gets_a_warning_and_the_log(self, served: Any, tmp_path: Path) -> None:
        (tmp_path / "bot.py").write_text("async def bot(runner_args):\n    pass\n")
        shown = invoke("run", "bot.py", "--live").stderr.splitlines()
        assert shown[0] == "warning: --live is for a terminal, and this is none: the log is printed as ever"
        assert shown[1] == "bot.py takes calls"
        assert invoke("run", "bot.py", environ={"WSVOICE_LIVE": "1"}).stderr.splitlines()[0] == shown[0]
        # What `wsvoice dial` serves says nothing about it.
        assert "--live" not in invoke("run", "bot.py", "--quiet", environ={"WSVOICE_LIVE": "1"}).stderr
