"""``wsvoice phone`` and ``wsvoice run --phone``: what they print, whom they let in, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.cli.invoke import invoke
from tests.environment import clean_environ
from tests.process import server_process
from wsvoice.browser_phone.server import listen

pytestmark = pytest.mark.usefixtures("clean_process")

BOT = """
async def bot(runner_args):
    pass
"""


@contextmanager
def phone(folder: Path, *arguments: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run ``wsvoice phone`` until the context ends."""
    command = [sys.executable, "-m", "wsvoice", "phone", *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=clean_environ(**environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # So that a test fails rather than waits for ever.
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_served_until_it_is_asked_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    with phone(tmp_path, "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["pid"] == process.pid
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", told["url"])
        page = httpx.get(told["url"], trust_env=False)
        assert "<title>Phone · wsvoice</title>" in page.text
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stdout.read() == ""


def test_without_a_browser_the_address_is_printed(tmp_path: Path) -> None:
    with phone(tmp_path, DISPLAY="", WAYLAND_DISPLAY="", BROWSER="") as process:
        assert process.stderr is not None
        assert re.fullmatch(r"phone: http://127\.0\.0\.1:\d+/[\w-]{43}/\n", process.stderr.readline())


def test_a_browser_is_opened_without_the_token_in_its_command_line(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'opened')!r}, 'w').write(sys.argv[1])\n")
    browser.chmod(0o700)
    state = tmp_path / "state"
    environ = {"BROWSER": f"{browser} %s", "WSVOICE_STATE_DIR": str(state)}
    with phone(tmp_path, **environ) as process:
        assert process.stderr is not None
        token = process.stderr.readline().split("/")[3]
        opened = tmp_path / "opened"
        deadline = time.monotonic() + 30
        while not (opened.is_file() and opened.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        [door] = state.glob("pages/phone-*.html")
        assert token in door.read_text()
        assert door.stat().st_mode & 0o777 == 0o600
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert opened.read_text() == door.as_uri()
        assert token not in door.as_uri()
        assert not door.exists()


def test_the_calls_of_a_phone_that_was_killed_go_at_the_next_start(tmp_path: Path) -> None:
    state = tmp_path / "state"

    def folders() -> set[Path]:
        return {each for each in (state / "phones").iterdir() if each.is_dir()}

    def ready(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid

    with phone(tmp_path, "--json", WSVOICE_STATE_DIR=str(state)) as living:
        ready(living)
        [kept] = folders()
        assert kept.stat().st_mode & 0o077 == 0
        with phone(tmp_path, "--json", WSVOICE_STATE_DIR=str(state)) as killed:
            ready(killed)
            [stray] = folders() - {kept}
            (stray / "phone-1.call").write_bytes(b"what was said")
            killed.kill()
            killed.wait()
        assert stray.is_dir()
        with phone(tmp_path, "--json", WSVOICE_STATE_DIR=str(state)) as third:
            ready(third)
            assert not stray.exists()
            assert kept.is_dir()
            third.send_signal(signal.SIGINT)
            assert third.wait(20) == 0
        living.send_signal(signal.SIGINT)
        assert living.wait(20) == 0
    assert list((state / "phones").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.py"], "no.py does not exist"),
        (["+15551234567"], "is a phone number"),
        (["-t", "nobody"], "nobody"),
        (["--port", "99999"], "--port"),
        (["--quirk", "x"], "key=value"),
    ],
)
def test_misuse(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("phone", *arguments, "--no-open", code=2)
    assert message in result.stderr


def test_a_port_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with listen(0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        result = invoke("phone", "--no-open", "--port", str(port), code=1)
    assert f"port {port} cannot be used" in result.stderr
    assert "--port 0" in result.stderr


def test_a_server_has_a_phone_beside_it_that_ends_with_it(tmp_path: Path) -> None:
    with server_process(tmp_path, BOT, "--phone") as server:
        log = server.logged("phone: http", timeout_s=30)
        server.logged("/\n", since=log.index("phone: http"))
        url = re.search(r"phone: (\S+)", server.log())
        assert url is not None
        assert httpx.get(url[1], trust_env=False).status_code == 200
        [pid] = children(server.process.pid)
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_server_without_telephone_calls_has_no_phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bot.py").write_text(BOT)
    result = invoke("run", "bot.py", "-t", "websocket", "--phone", code=2)
    assert "--phone has no meaning for -t websocket" in result.stderr
