"""
Whole calls through the real command line: one process dials, a second one serves the bot.

All calls are placed at once when the first test asks for its own, a few at a time, since most of a call is waiting.
Where the command line only has to say what went wrong, it runs in this process.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.environment import clean_environ
from tests.signals import correlation_delay_ms, speech_like
from wsvoice.audio import read_audio, write_wav
from wsvoice.cli.main import app
from wsvoice.config import DialConfig
from wsvoice.dial.caller import dial
from wsvoice.dial.timeouts import Timeouts

BOTS = Path(__file__).parent / "bots"
ECHO = Path(__file__).parent.parent / "examples" / "echo.py"

KEYS = [
    "provider",
    "target",
    "verdict",
    "failure",
    "call_id",
    "stream_id",
    "webhook_ms",
    "connect_ms",
    "first_audio_ms",
    "turns",
    "sent_audio_ms",
    "received_audio_ms",
    "underruns",
    "max_gap_ms",
    "marks",
    "clears",
    "digits_sent",
    "ended_by",
    "close_code",
    "duration_ms",
    "findings",
    "recording",
    "causes",
    "untested",
    "bot_digits",
    "transferred_to",
    "trace",
    "words",
    "words_failure",
]
#: How a line of the served bot's log begins in the timeline; a traceback there is the bot's own.
LOG = "           | "


@dataclass(frozen=True)
class Dialled:
    """What `wsvoice dial` left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The one line of JSON on stdout."""
        assert self.stdout.count("\n") == 1, self
        report: dict[str, Any] = json.loads(self.stdout)
        return report

    @property
    def words(self) -> str:
        """What wsvoice itself said on stderr."""
        return "".join(line + "\n" for line in self.stderr.splitlines() if not line.startswith(LOG))

    @property
    def log(self) -> str:
        """What the served bot said on stderr."""
        return "".join(line + "\n" for line in self.stderr.splitlines() if line.startswith(LOG))


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without what would change a call."""
    return clean_environ(NO_COLOR="1", **extra)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "wsvoice", "dial", *map(str, arguments)]


def run(cwd: Path, *arguments: object, **environ: str) -> Dialled:
    """Run `wsvoice dial` until it ends."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    return Dialled(done.returncode, done.stdout, done.stderr)


@contextmanager
def webhook(body: str, status: int = 200) -> Iterator[str]:
    """Serve one answer to every request, and yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-type", "text/xml")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


class Calls:
    """Calls under way, by name."""

    def __init__(self, folder: Path, pool: ThreadPoolExecutor) -> None:
        self.folder = folder
        self._pool = pool
        self._calls: dict[str, Future[Dialled]] = {}

    def place(self, name: str, *arguments: object, **environ: str) -> None:
        self._calls[name] = self._pool.submit(run, self.folder, *arguments, **environ)

    def place_here(self, name: str, *arguments: object) -> None:
        """Place a call in this process, to its end."""
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            done = CliRunner().invoke(app, ["dial", *map(str, arguments)], env={"NO_COLOR": "1"})
        self._calls[name] = Future()
        self._calls[name].set_result(Dialled(done.exit_code, done.stdout, done.stderr))

    def __getitem__(self, name: str) -> Dialled:
        return self._calls[name].result()


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Calls]:
    folder = tmp_path_factory.mktemp("calls")
    for number in (1, 2):
        write_wav(folder / f"{number}.wav", [speech_like(700, 8000, seed=number)], 8000)
    unused = socket.socket()
    unused.bind(("127.0.0.1", 0))
    with (
        unused,
        webhook("<html><p>It works!<br></html>") as garbage_url,
        webhook("database is down", 500) as failing_url,
        ThreadPoolExecutor(4) as pool,
    ):
        calls = Calls(folder, pool)
        calls.place("echo", ECHO, "--json", "-v", "--record", "echo.wav", WSVOICE_LOG_LEVEL="DEBUG", WSVOICE_PROT="80")
        calls.place("two turns", ECHO, "--audio", "1.wav", "--audio", "2.wav")
        calls.place("crash in call", BOTS / "crash_in_call.py")
        calls.place_here("import error", BOTS / "import_error.py")
        calls.place_here("garbage", garbage_url)
        calls.place_here("failing", failing_url)
        # Bound and not listened on: nobody else gets the port, and every connection is refused.
        calls.place_here("nobody", f"http://127.0.0.1:{unused.getsockname()[1]}/")
        yield calls


# -- Calls that pass --


def test_an_echo_passes(calls: Calls) -> None:
    call = calls["two turns"]
    assert call.code == 0, call.stderr
    assert call.stdout == ""
    assert call.words.splitlines()[-1] == "passed"
    assert re.search(
        r"the caller says 1\.wav\n(.*\n)*?.* the bot speaks\n(.*\n)*?.* the caller hangs up\n", call.stderr
    )


def test_a_misspelt_variable_is_told_once(calls: Calls) -> None:
    assert calls["echo"].stderr.count("WSVOICE_PROT is not read") == 1
    assert "takes calls" not in calls["echo"].log


def test_the_report_is_the_documented_one(calls: Calls) -> None:
    call = calls["echo"]
    assert call.code == 0, call.stderr
    report = call.report
    assert list(report) == KEYS
    (turn,) = report["turns"]
    assert list(turn) == ["caller_start_ms", "caller_end_ms", "bot_start_ms", "response_ms"]

    fixed = {"provider": "twilio", "target": str(ECHO), "verdict": "passed", "failure": None, "digits_sent": ""}
    assert {name: report[name] for name in fixed} == fixed
    assert {name: report[name] for name in ("ended_by", "close_code", "recording", "clears")} == {
        "ended_by": "caller",
        "close_code": 1000,
        "recording": "echo.wav",
        "clears": 0,
    }
    assert re.fullmatch(r"CA[0-9a-f]{32}", report["call_id"])
    assert re.fullmatch(r"MZ[0-9a-f]{32}", report["stream_id"])
    assert [found for found in report["findings"] if found["level"] == "fail"] == []

    assert 0 < report["webhook_ms"] < 15_000
    assert 0 < report["connect_ms"] < 10_000
    # The built-in question is about 2.7 s long, and begins after a second.
    assert 1000 <= turn["caller_start_ms"] < turn["bot_start_ms"] < turn["caller_end_ms"] < report["duration_ms"]
    assert 2500 < turn["caller_end_ms"] - turn["caller_start_ms"] < 3000
    assert 0 <= turn["response_ms"] < 1000
    assert report["first_audio_ms"] == turn["bot_start_ms"]
    assert turn["bot_start_ms"] - turn["caller_start_ms"] < 1000
    assert turn["caller_end_ms"] < report["sent_audio_ms"] <= report["duration_ms"] + 20
    assert turn["caller_end_ms"] - 1000 < report["received_audio_ms"] <= report["sent_audio_ms"] + 200
    assert 0 < report["max_gap_ms"] < 1000


def test_the_way_is_signed(calls: Calls) -> None:
    call = calls["echo"]
    assert re.search(r" POST https?://\S+/ answered 200 in \d+ ms\n", call.words)
    assert "the upgrade's signature covers" in call.log
    assert "refused" not in call.log


def test_the_recording_has_the_caller_left_and_the_bot_right(calls: Calls) -> None:
    turn = calls["echo"].report["turns"][0]
    left, right = stereo(calls.folder / "echo.wav")
    with as_file(files("wsvoice.dial") / "question.wav") as path:
        question, question_rate = read_audio(path)
    assert question_rate == 8000

    started_ms, likeness = correlation_delay_ms(question, left, 8000)
    assert started_ms == pytest.approx(1000, abs=21)
    # Most of the left channel is the question, so hardly anything else is in there.
    assert likeness > 0.99
    delay_ms, likeness = echo_of(left, right, question_at=round(started_ms * 8))
    assert delay_ms == pytest.approx(turn["bot_start_ms"] - turn["caller_start_ms"], abs=80)
    assert likeness > 0.9


def echo_of(left: bytes, right: bytes, *, question_at: int) -> tuple[float, float]:
    """
    Return by how many ms `right` repeats `left` later, at the least, and how alike they are: a median.

    An echo that comes late by a little once is late by as much from then on, so the delay at its start is the least.
    """
    delays_ms, likenesses = [], []
    for at in range(2 * question_at, 2 * (question_at + 20_000), 2 * 2400):
        said = left[at : at + 2 * 2400]
        delay_ms, _ = correlation_delay_ms(said, right[at : at + 2 * (2400 + 4000)], 8000)
        delay = round(delay_ms * 8)
        _, likeness = correlation_delay_ms(said, right[at + 2 * delay : at + 2 * (delay + 2400)], 8000)
        delays_ms.append(delay_ms)
        likenesses.append(likeness)
    return min(delays_ms), statistics.median(likenesses)


def stereo(path: Path) -> tuple[bytes, bytes]:
    """Return the channels of a recording at 8 kHz."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8000, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
    return samples[:, 0].tobytes(), samples[:, 1].tobytes()


def test_two_files_are_two_turns(calls: Calls) -> None:
    call = calls["two turns"]
    assert call.code == 0, call.stderr
    turns = re.findall(r"^turn (\d): caller (\d+) to (\d+) ms, bot answered (.+)$", call.words, re.MULTILINE)
    assert [number for number, *_ in turns] == ["1", "2"], call.words
    for _, began_ms, ended_ms, answered in turns:
        assert 500 < int(ended_ms) - int(began_ms) < 720
        late = re.fullmatch(r"after (\d+) ms", answered)
        assert answered == "while the caller spoke" or (late and int(late[1]) < 300), answered
    # The caller hears the first answer out.
    assert int(turns[1][1]) > int(turns[0][2]) + 500
    words = r"says 1\.wav\n(.*\n)*?.* the bot speaks\n(.*\n)*?.* the caller says 2\.wav\n"
    assert re.search(words, call.words), call.words


# -- Calls that fail, each in its own words --


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "crash in call",
            r"the bot crashed \(it closed the call with 1011\): LookupError: no such order \(crash_in_call\.py:30\)",
        ),
        ("import error", r"the server of .*import_error\.py ended with exit code 1:"),
        ("garbage", r"the webhook's answer cannot be used: .+"),
        ("failing", r"the webhook failed: 500, database is down"),
        ("nobody", r"nothing listens at http://127\.0\.0\.1:\d+/ - start it with `wsvoice run bot\.py -t twilio`.*"),
    ],
)
def test_what_goes_wrong_has_its_own_words(calls: Calls, name: str, words: str) -> None:
    call = calls[name]
    assert (call.code, call.stdout) == (1, ""), call
    failure = call.words.splitlines()[-1]
    assert re.fullmatch(f"failed: {words}", failure), call.stderr
    assert "Traceback" not in call.words


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("crash in call", "LookupError: no such order"),
        ("import error", "KeyError: 'greeting'"),
    ],
)
def test_the_bots_own_traceback_is_shown(calls: Calls, name: str, cause: str) -> None:
    log = calls[name].log
    assert "Traceback (most recent call last):" in log
    assert f"tests{os.sep}bots{os.sep}" in log
    # Behind its line in the log, so that no word of a stranger's begins one; as it is where nothing was served yet.
    assert re.search(rf"^{re.escape(LOG)}(    )?{re.escape(cause)}$", log, re.MULTILINE)


def test_a_crash_in_the_middle_of_a_call_comes_after_the_bots_words(calls: Calls) -> None:
    call = calls["crash in call"]
    assert call.words.index("the bot speaks") < call.words.index("the stream is closed (1011)")


def test_a_slow_webhook_is_given_up_on() -> None:
    released = threading.Event()
    asked = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            released.wait(30)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = DialConfig(target=f"http://127.0.0.1:{server.server_port}/")
        try:
            began = time.monotonic()
            # The command line has the providers' own limit of 15 s, which a test need not wait for.
            report = asyncio.run(dial(config, timeouts=Timeouts(webhook_s=0.3)))
            took_s = time.monotonic() - began
        finally:
            released.set()
            server.shutdown()
    assert asked.is_set()
    assert took_s < 10
    assert (report.verdict, report.stream_id, report.ended_by) == ("failed", "", None)
    assert report.failure is not None
    assert report.failure.startswith("the webhook did not answer within 0.3 s")
    assert [found.id for found in report.findings if found.level == "fail"] == ["W1"]


# -- Ctrl-C --


class Dialling:
    """A `wsvoice dial` that is under way, and the lines that it has written to stderr so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def text(self) -> str:
        """Return all of it, once the process has ended."""
        self._reader.join(10)
        return "".join(self._lines)

    def wait_for(self, pattern: str, timeout_s: float = 40) -> re.Match[str]:
        """Return the first match in a line that is there or comes."""

        def match() -> re.Match[str] | None:
            return next((found for line in self._lines if (found := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: match() or self._ended, timeout_s)
            found = match()
            assert found, f"no line has {pattern!r}:\n{''.join(self._lines)}"
            return found


@contextmanager
def dialling(cwd: Path, *arguments: object) -> Iterator[Dialling]:
    process = subprocess.Popen(
        command(*arguments), cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield Dialling(process)
        finally:
            process.kill()


def status_of(request: Request) -> int:
    try:
        with urlopen(request, timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def until(condition: Callable[[], bool], timeout_s: float = 20) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_hangs_up_and_leaves_no_server_behind(tmp_path: Path) -> None:
    with dialling(tmp_path, ECHO, "--duration", "60", "-v") as call:
        port = int(call.wait_for(r"http://127\.0\.0\.1:(\d+)/")[1])
        call.wait_for(r"the bot speaks")

        # While it is there: the served bot takes no webhook that is not signed.
        form = b"CallSid=CA00000000000000000000000000000000&AccountSid=AC00000000000000000000000000000000"
        assert status_of(Request(f"http://127.0.0.1:{port}/", form, method="POST")) == 403
        assert status_of(Request(f"http://127.0.0.1:{port}/healthz")) == 200

        call.process.send_signal(signal.SIGINT)
        assert call.process.wait(30) == 130
        text = call.text()
        assert call.process.stdout is not None
        assert call.process.stdout.read() == ""
    assert "Traceback" not in text
    assert re.search(r" the caller hangs up\n(.*\n)*?.* the stream is closed \(1000\)\n", text), text
    assert re.search(r"webhook refused \(403\)", text), text
    assert re.search(r"ended by the caller after [\d.]+ s: the caller hung up", text), text
    assert text.splitlines()[-1] == "interrupted"
    assert text.count("interrupted") == 1
    assert until(lambda: refuses(port)), "the bot's server is still there"
