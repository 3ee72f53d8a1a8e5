"""A bot in a second process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.environment import clean_environ
from tests.providers.companies import load_provider
from wsvoice.dial.served_bot import ServedBot, bot_environment
from wsvoice.errors import DialError

SERVER = """
import json, os, signal, sys, time
print("a word of the bot's while it is imported")
print(json.dumps({"not": "the line"}))
print("loading", sys.argv[1:], file=sys.stderr)
print(json.dumps({"url": "http://127.0.0.1:1234/", "pid": os.getpid()}), flush=True)
print("one\\ntwo", file=sys.stderr)
"""


class Served:
    """A server of `code`, and the lines it wrote."""

    def __init__(self, tmp_path: Path, code: str, **settings: float) -> None:
        path = tmp_path / "server.py"
        path.write_text(code)
        self.lines: list[str] = []
        self.bot = ServedBot(
            "bot.py",
            "twilio",
            {"language": "en"},
            clean_environ(PYTHONUNBUFFERED="1"),
            on_line=self.lines.append,
            program=[sys.executable, str(path)],
            **settings,
        )

    @property
    def pid(self) -> int:
        assert self.bot._process is not None
        return self.bot._process.pid


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def until(condition: object, timeout_s: float = 10) -> None:
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_server_is_started_read_and_stopped(tmp_path: Path) -> None:
    served = Served(tmp_path, SERVER + "time.sleep(60)")

    async def use() -> int:
        async with served.bot as bot:
            assert bot.url == "http://127.0.0.1:1234/"
            assert await bot.exit_message() is None
            await until(lambda: "two" in served.lines)
            return served.pid

    pid = asyncio.run(use())
    assert not is_running(pid)
    options = ["--host", "127.0.0.1", "--port", "0", "-x", "bot.invalid", "--json", "--quiet", "--until-eof"]
    arguments = ["bot.py", "-t", "twilio", *options, "--param", "language=en"]
    assert f"loading {arguments}" in served.lines
    assert "a word of the bot's while it is imported" in served.lines
    assert not any("1234" in line for line in served.lines)


def test_a_server_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER + "time.sleep(60)"
    served = Served(tmp_path, code, stop_timeout_s=0.3)

    async def use() -> int:
        async with served.bot:
            return served.pid

    assert not is_running(asyncio.run(use()))


@pytest.mark.parametrize("again", [False, True])
def test_a_server_is_stopped_when_the_caller_is_cancelled(tmp_path: Path, again: bool) -> None:
    # Once more while it is being stopped, which it puts off.
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if again else ""
    code += "import sys, time; print('importing', file=sys.stderr); time.sleep(60)"
    served = Served(tmp_path, code, stop_timeout_s=20)

    async def use() -> int:
        task = asyncio.create_task(served.bot.__aenter__())
        await until(lambda: served.lines == ["importing"])
        pid = served.pid
        task.cancel()
        if again:
            await asyncio.sleep(0.05)
            task.cancel()
        async with asyncio.timeout(8):
            with pytest.raises(asyncio.CancelledError):
                await task
        return pid

    assert not is_running(asyncio.run(use()))


def test_a_bot_that_does_not_load_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys\nfor n in range(300): print(n, file=sys.stderr)\nsys.exit('error: no coroutine named bot')"
    served = Served(tmp_path, code)

    async def use() -> None:
        async with served.bot:
            pass

    with pytest.raises(DialError) as caught:
        asyncio.run(use())
    first, *rest = caught.value.message.split("\n")
    assert first == "the server of bot.py ended with exit code 1:"
    assert rest == [*(str(n) for n in range(286, 300)), "error: no coroutine named bot"]
    assert len(served.lines) == 301


def test_a_bot_that_takes_too_long_is_told(tmp_path: Path) -> None:
    served = Served(tmp_path, "import time; time.sleep(60)", start_timeout_s=0.3)

    async def use() -> None:
        async with served.bot:
            pass

    with pytest.raises(DialError, match=r"the server of bot\.py did not listen within 0\.3 s"):
        asyncio.run(use())
    assert served.bot._process is None


def test_a_bot_that_dies_in_the_call_is_told(tmp_path: Path) -> None:
    served = Served(tmp_path, SERVER + "time.sleep(60)")

    async def use() -> str | None:
        async with served.bot as bot:
            os.kill(served.pid, signal.SIGKILL)
            return await bot.exit_message(within_s=10)

    death = asyncio.run(use())
    assert death is not None
    assert death.startswith("the server of bot.py ended with exit code -9:")


def test_a_line_without_an_end_is_cut(tmp_path: Path) -> None:
    code = "import sys; sys.stderr.write('x' * 10_000_000); sys.exit(1)"
    served = Served(tmp_path, code)

    async def use() -> None:
        async with served.bot:
            pass

    with pytest.raises(DialError):
        asyncio.run(use())
    assert [len(line) for line in served.lines] == [2000]


def test_no_real_credential_reaches_the_bot() -> None:
    provider = load_provider("twilio")
    environ = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "kept",
        "WSVOICE_NUMBER": "+15550100002",
        **dict.fromkeys(provider.credential_names, "real"),
    }
    changed = bot_environment(environ, provider, {"TWILIO_AUTH_TOKEN": "made up"}, "http://127.0.0.1:1")
    assert changed["TWILIO_AUTH_TOKEN"] == "made up"
    assert "real" not in changed.values()
    # Empty, not missing: a `.env` file would fill in what is missing.
    assert changed["TWILIO_ACCOUNT_SID"] == ""
    assert changed["WSVOICE_NUMBER"] == ""
    assert changed["TWILIO_API_BASE_URL"] == "http://127.0.0.1:1"
    assert (changed["PATH"], changed["OPENAI_API_KEY"]) == ("/bin", "kept")
    assert environ["TWILIO_AUTH_TOKEN"] == "real"
