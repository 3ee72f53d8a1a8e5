"""Whether the bot loads: in a process of its own, as ``wsvoice run`` loads it, because a bot may do anything."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from wsvoice.bot_loading import find_bot
from wsvoice.dial.served_bot import ServedBot, bot_environment
from wsvoice.doctor.checkup import Result, fail, ok, warn
from wsvoice.doctor.subject import Subject
from wsvoice.errors import DialError, UsageError
from wsvoice.providers import load_simulator

#: How long a bot may take to load, in seconds, and from when on that is worth a word.
LOAD_LIMIT_S, SLOW_S = 40.0, 15.0
#: How long everything else may take that is loaded before the bot, and how long the end of the process, in seconds.
START_LIMIT_S, END_LIMIT_S = 60.0, 5.0

#: ``wsvoice run`` that says where it hangs, and ends, even if the bot never gives up the interpreter. The bot's time
#: begins when its file does.
_PROGRAM = """
import faulthandler, os.path, sys

def watch(event, arguments):
    if event == "exec":
        file = getattr(arguments[0], "co_filename", "")
        if os.path.basename(file) == {name!r} and os.path.realpath(file) == {path!r}:
            faulthandler.dump_traceback_later({limit_s}, exit=True)

faulthandler.dump_traceback_later({start_limit_s}, exit=True)
sys.addaudithook(watch)
sys.argv[0] = "wsvoice"
from wsvoice.__main__ import main
main()
"""
_HANGS = re.compile(r"Timeout \(\d+:\d\d:\d\d(\.\d+)?\)!")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in ')
_SAID = re.compile(r"(?P<what>error|hint): +(?P<text>.+)")


async def look_at_bot(subject: Subject, *, limit_s: float = LOAD_LIMIT_S) -> list[Result]:
    """
    Load the bot, which checks that it is a coroutine function that takes one argument.

    Raises:
        BotNotFoundError: If there is no such bot, or it is not a bot.
    """
    spec = subject.config.bot
    _, _, path = find_bot(spec, base=subject.cwd)
    lines: list[str] = []
    provider = load_simulator(next(iter(subject.providers), "twilio"))
    _, credentials = provider.test_credentials(bytes(range(32)))
    environ = bot_environment(subject.environ, provider, credentials, None)
    file = path.resolve() if path is not None else Path()
    times = {"limit_s": limit_s, "start_limit_s": START_LIMIT_S + (limit_s if path is None else 0.0)}
    program = (sys.executable, "-c", _PROGRAM.format(name=file.name, path=str(file), **times), "run")
    served = ServedBot(
        spec,
        provider.name,
        {},
        environ,
        on_line=lines.append,
        cwd=subject.cwd,
        program=program,
        start_timeout_s=START_LIMIT_S + limit_s + END_LIMIT_S,
    )
    began = time.monotonic()
    try:
        async with served:
            elapsed_s = time.monotonic() - began
    except (DialError, UsageError):
        return [_failure(lines, spec, path, limit_s)]
    name = spec if path is None else path.name
    if elapsed_s > SLOW_S:
        return [
            warn(f"{name} takes {elapsed_s:.0f} s to load", "load models in the call, or once the server is started")
        ]
    return [ok(f"{name} loads in {elapsed_s:.1f} s, and is a coroutine function that takes one argument")]


def _failure(lines: Sequence[str], spec: str, path: Path | None, limit_s: float) -> Result:
    """Return why the process ended, from what it wrote."""
    if any(_HANGS.match(line) for line in lines):
        where = _where_it_hangs(lines, path)
        return fail(
            f"{spec} does not load within {limit_s:g} s: it hangs{where}",
            'what waits or runs for long belongs into the bot\'s function, or under `if __name__ == "__main__":`',
        )
    said: dict[str, str] = {}
    for line in lines:
        if match := _SAID.match(line):
            said[match["what"]] = match["text"]
    if "error" in said:
        return fail(said["error"], said.get("hint"))
    last = next((line for line in reversed(lines) if line.strip()), "it wrote nothing")
    return fail(f"the process of {spec} ended while it loaded: {last}", f"`wsvoice run {spec}` shows all that it wrote")


def _where_it_hangs(lines: Sequence[str], path: Path | None) -> str:
    """Return the innermost line of the bot's folder in the threads' stacks, which begin with the innermost frame."""
    folder = path.resolve().parent if path is not None else None
    for line in lines:
        if (frame := _FRAME.search(line)) and folder and Path(frame["file"]).resolve().is_relative_to(folder):
            return f" in {Path(frame['file']).name}, line {frame['line']}"
    return ""
