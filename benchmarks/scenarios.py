"""
Whether a scenario's verdict can be relied on: the same for every call of one bot, and another for a slower bot.

A bot whose answers take 400 ms, give or take, is called again and again by `wsvoice test`: by one scenario so many
times, and in comparisons with its own baseline; and so is the same bot with 150 ms more. README.md says how to read
the figures. Exits with 1 if a call failed, the same bot was called slower, or the slower one was not.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from servers import BOTS, CORES, free_port, listening, own_environ

from wsvoice.audio import write_wav

DELAY_MS, SPREAD_MS = 400, 50
RATE, TONE_MS = 8000, 300
#: How many calls a baseline has, and each comparison with it.
CALLS = 20
#: How long one call may take in all, for a process that hangs.
CALL_LIMIT_S = 60.0

SCENARIO = """\
target = "{url}"
listen = 0.2

[[steps]]
audio = "caller.wav"
answered_within = "2s"
"""


@dataclass(frozen=True)
class Outcome:
    """
    How `wsvoice test` ended.

    Attributes:
        passed: How many calls passed.
        calls: How many were to be placed.
        exit_code: Its exit code.
        output: What it printed.
    """

    passed: int
    calls: int
    exit_code: int
    output: str

    @property
    def has_alarm(self) -> bool:
        """Whether it called the bot slower."""
        return "slower than the baseline" in self.output

    @property
    def is_usable(self) -> bool:
        """Whether every call passed, so that the verdict is about the waits."""
        return self.passed == self.calls and self.exit_code == (1 if self.has_alarm else 0)

    @property
    def is_caught(self) -> bool:
        """Whether it found that half of the callers waited for longer."""
        return self.is_usable and self.has_alarm and "p50 of the waits" in self.output


def run_test(folder: Path, calls: int, *options: str) -> Outcome:
    """Place the calls of the folder's scenario, one after the other."""
    command = [sys.executable, "-m", "wsvoice", "test", "--repeat", str(calls), *options]
    limit_s = CALL_LIMIT_S * calls
    done = subprocess.run(command, cwd=folder, env=own_environ(), capture_output=True, text=True, timeout=limit_s)
    output = done.stdout + done.stderr
    found = re.search(rf"(\d+)/{calls} calls", output)
    return Outcome(int(found[1]) if found else 0, calls, done.returncode, output)


def make_scenario(folder: Path, url: str) -> Path:
    """Write a scenario that calls `url`, and what its caller says, to a new folder."""
    folder.mkdir()
    times = np.arange(RATE * TONE_MS // 1000) / RATE
    write_wav(folder / "caller.wav", [(8000 * np.sin(2 * np.pi * 600 * times)).astype("<i2").tobytes()], RATE)
    (folder / "answer.call.toml").write_text(SCENARIO.format(url=url))
    return folder


def serve(stack: ExitStack, delay_ms: int, state: Path) -> str:
    """Serve the bot until the stack is closed, and return its webhook's URL."""
    port = free_port()
    environ = own_environ() | {"ANSWER_DELAY_MS": str(delay_ms), "ANSWER_SPREAD_MS": str(SPREAD_MS)}
    environ |= {"WSVOICE_STATE_DIR": str(state)}
    command = [sys.executable, "-m", "wsvoice", "run", str(BOTS / "answer.py"), "-t", "twilio", "--max-calls", "0"]
    stack.enter_context(listening([*command, "--host", "127.0.0.1", "--port", str(port)], port, environ, cores=CORES))
    return f"http://127.0.0.1:{port}/"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="how many times the scenario is run (200)")
    parser.add_argument("--comparisons", type=int, default=20, help="how many comparisons of each bot (20)")
    parser.add_argument("--slower", type=int, default=150, help="by how much the slower bot is slower, in ms (150)")
    parser.add_argument("--at-once", type=int, default=4, help="how many of these at the same time (4)")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        same = make_scenario(home / "same", serve(stack, DELAY_MS, home / "state"))
        slow = make_scenario(home / "slow", serve(stack, DELAY_MS + options.slower, home / "slow-state"))
        compare = ("--compare", str(home / "baseline.json"))
        pool = stack.enter_context(ThreadPoolExecutor(options.at_once))
        # The baseline is taken beside other calls, as the comparisons are.
        runs = pool.submit(run_test, same, options.runs)
        baseline = run_test(same, CALLS, "--save-baseline", compare[1])
        if not baseline.is_usable:
            print(f"nothing was compared: the baseline is missing\n{baseline.output}")
            pool.shutdown(cancel_futures=True)
            return 1
        pairs = [
            (pool.submit(run_test, same, CALLS, *compare), pool.submit(run_test, slow, CALLS, *compare))
            for _ in range(options.comparisons)
        ]
        equal, slower = ([each.result() for each in side] for side in zip(*pairs, strict=True))
        return tell(runs.result(), equal, slower, options.slower)


def tell(runs: Outcome, equal: Sequence[Outcome], slower: Sequence[Outcome], slower_ms: int) -> int:
    """Print the counts, and what was not as it should be; return the exit code."""
    alarms, caught = sum(each.has_alarm for each in equal), sum(each.is_caught for each in slower)
    wrong = [] if runs.is_usable else [runs]
    wrong += [each for each in equal if not each.is_usable or each.has_alarm]
    wrong += [each for each in slower if not each.is_caught]
    for each in wrong:
        print(f"{each.output}exit code {each.exit_code}\n")
    print(f"one bot, {DELAY_MS} ms give or take {SPREAD_MS} ms, {CALLS} calls a comparison; {os.cpu_count()} cores")
    waits = re.search(r"waits (p50.*)", runs.output)
    told = {
        "the same verdict": f"{runs.passed} of {runs.calls} calls passed; waits {waits[1] if waits else 'unknown'}",
        "the same bot": f"{alarms} of {len(equal)} comparisons called it slower",
        f"{slower_ms} ms slower": f"{caught} of {len(slower)} comparisons found it at p50",
    }
    for name, counts in told.items():
        print(f"{name:20}{counts}")
    print("held" if not wrong else f"broken: {len(wrong)} of {1 + len(equal) + len(slower)} were not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
