"""``wsvoice test``: the same scenarios, with a table, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environment import clean_environ
from tests.scenarios.menu_bot import SCENARIO, MenuBot, serving, write_sounds
from wsvoice.scenarios.schema import json_schema


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", "test", *arguments]
    return subprocess.run(command, cwd=cwd, env=clean_environ(), capture_output=True, text=True, timeout=60)


def test_a_scenario_that_passes_and_one_that_fails_are_told_apart(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    # It is somebody's project, whose options for pytest are not for this.
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n')
    with serving(MenuBot()) as good, serving(MenuBot(leaves_early=True)) as early:
        (tmp_path / "good.call.toml").write_text(SCENARIO.format(url=good.url))
        (tmp_path / "early.call.toml").write_text(SCENARIO.format(url=early.url))
        result = run("-n", "2", "--junit", "report.xml", "--save-baseline", "waits.json", cwd=tmp_path)
    lines = result.stderr.splitlines()
    assert result.returncode == 1, result.stderr
    assert lines[-1] == "failed: 1 of 2 scenarios"
    assert any(line.startswith("passed  good ") and "1/1 calls" in line and "waits p50" in line for line in lines)
    assert any("the bot ended the call before step 2" in line for line in lines)
    assert "step 2" in (tmp_path / "report.xml").read_text()
    # Only waits of calls that went well are a measure; they come from pytest's other processes.
    assert list(json.loads((tmp_path / "waits.json").read_text())["scenarios"]) == ["good.call.toml::good"]
    assert result.stdout == ""


def test_misuse_is_an_error_with_a_hint(tmp_path: Path) -> None:
    nothing = run(cwd=tmp_path)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: there are no scenarios in .\nhint:")
    assert "wsvoice test --from good.call" in nothing.stderr
    (tmp_path / "bad.call.toml").write_text('[[steps]]\nsaay = "hi"\n')
    result = run("bad.call.toml", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        "error: bad.call.toml:2: step 1 has no key 'saay'\nhint:  did you mean `say`?\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--compare", "none.json"], "the baseline none.json cannot be read", "--save-baseline FILE"),
        (["--save-baseline", "a.call.toml"], "--save-baseline would replace a.call.toml", "name another file"),
        (["--junit", "bot.py"], "--junit writes an XML file, got 'bot.py'", "`bot.xml`"),
        (["--from", "a.call", "-k", "foo"], "-k has no effect beside --from", "leave it out"),
    ],
)
def test_files_that_cannot_be_used_are_told_before_any_call(
    arguments: list[str], message: str, hint: str, tmp_path: Path
) -> None:
    text = 'target = "http://127.0.0.1:9/"\n[[steps]]\nwait = 1\n'
    (tmp_path / "a.call.toml").write_text(text)
    result = run(*arguments, cwd=tmp_path)
    error, hinted = result.stderr.splitlines()
    assert result.returncode == 2
    assert error.startswith(f"error: {message}")
    assert hint in hinted
    assert (tmp_path / "a.call.toml").read_text() == text


def test_the_schema_is_printed(tmp_path: Path) -> None:
    assert json.loads(run("--schema", cwd=tmp_path).stdout) == json_schema()


def test_words_that_no_scenario_has(tmp_path: Path) -> None:
    for name in ("booking", "menu"):
        (tmp_path / f"{name}.call.toml").write_text('target = "http://127.0.0.1:9/"\n[[steps]]\nwait = 1\n')
    result = run("-k", "transfer", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (
        2,
        "error: no scenario's name has 'transfer'\nhint:  there are: booking, menu\n",
    )
    result = run("-k", "booking menu", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: -k cannot be booking menu: at column 9")
    assert result.stderr.count("\n") == 2
