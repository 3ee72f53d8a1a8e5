"""The unit files, held against systemd, and their numbers against those of the other deployments."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.deploy.tools import check, run, tool
from wsvoice.config.values import parse_duration
from wsvoice.deploy.sizing import ANNOUNCED_S, BOT_EXIT_S, LONGEST_CALL_S, PROCESS_EXIT_S, Sizing

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE, SOCKET = UNITS / "wsvoice.service", UNITS / "wsvoice.socket"


def values(path: Path, key: str) -> list[str]:
    """Return every value of a key, in order."""
    return re.findall(rf"(?m)^{key}=(.*)$", path.read_text(encoding="utf-8"))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Copy the units to a folder, with a program and a folder that are there in the place of the bot's."""
    for path in (SERVICE, SOCKET):
        text = path.read_text(encoding="utf-8").replace("/opt/bot/.venv/bin/wsvoice", "/bin/true")
        (tmp_path / path.name).write_text(text.replace("/opt/bot", "/"), encoding="utf-8")
    return tmp_path


def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    analyze = tool("systemd-analyze")
    units = (installed / "wsvoice.service", installed / "wsvoice.socket")
    said = check(analyze, "verify", "--man=no", "--recursive-errors=no", *units)
    assert [line for line in said.splitlines() if "wsvoice" in line] == []


def test_systemd_would_say_what_is_wrong(installed: Path) -> None:
    path = installed / "wsvoice.service"
    path.write_text(path.read_text().replace("KillMode=mixed", "KillMood=mixed").replace("Type=notify", "Type=notfy"))
    done = run(tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", path)
    assert "KillMood" in done.stderr
    assert "notfy" in done.stderr


def test_it_may_do_little(installed: Path) -> None:
    # Tenths, of ten: what a service may do that says nothing about it is above nine.
    path = installed / "wsvoice.service"
    check(tool("systemd-analyze"), "security", "--offline=true", "--threshold=20", "--no-pager", path)


def test_it_waits_for_the_longest_call() -> None:
    (command,) = values(SERVICE, "ExecStart")
    words = shlex.split(command)
    options = dict(zip(words[2::2], words[3::2], strict=True))
    longest_s, drain_s = (parse_duration(options[name], name) for name in ("--max-call-time", "--drain-timeout"))
    assert (longest_s, drain_s) == (LONGEST_CALL_S, Sizing().drain_s)
    # systemd has no load balancer that has to notice, so the server does not linger.
    assert values(SERVICE, "TimeoutStopSec") == [str(int(longest_s) + ANNOUNCED_S + BOT_EXIT_S + PROCESS_EXIT_S)]
    # Only with workers is there somebody who can load the bot anew.
    assert options["--workers"] == "auto"
    assert values(SERVICE, "ExecReload") == ["/bin/kill -HUP $MAINPID"]


def test_the_bot_is_checked_before_it_is_started() -> None:
    assert values(SERVICE, "ExecStartPre")[0].endswith("/wsvoice run --check")


def test_a_bot_that_takes_its_time_to_fail_is_not_tried_for_ever() -> None:
    tries_s = int(values(SERVICE, "StartLimitBurst")[0]) * (60 + int(values(SERVICE, "RestartSec")[0]))
    assert parse_duration(values(SERVICE, "StartLimitIntervalSec")[0].replace("min", "m"), "") > tries_s


def test_one_that_hangs_is_restarted() -> None:
    assert values(SERVICE, "WatchdogSec") == ["30"]


def test_its_state_is_where_it_may_write() -> None:
    (environ,) = values(SERVICE, "Environment")
    assert f"WSVOICE_STATE_DIR=%S/{values(SERVICE, 'StateDirectory')[0]}" in environ.split()
