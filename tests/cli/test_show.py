"""``wsvoice show``: what it writes, what it opens, what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.invoke import invoke
from tests.environment import clean_environ
from tests.page.calls import make_call
from tests.scenarios.menu_bot import MenuBot, serving, write_sounds
from wsvoice.trace import Trace, pack

pytestmark = pytest.mark.usefixtures("clean_process")


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return make_call(tmp_path / "good.call", 5)


def test_a_page_is_written_that_only_its_owner_may_read(trace: Trace, tmp_path: Path) -> None:
    file = tmp_path / "out.html"
    result = invoke("show", str(trace.path), "--html", str(file))
    assert (result.stdout, result.stderr) == ("", f"{file} is written\n")
    assert file.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_zipped_trace_is_shown_too(trace: Trace, tmp_path: Path) -> None:
    file = pack(trace.folder, tmp_path / "packed.call")
    invoke("show", str(file), "--html", str(tmp_path / "out.html"))
    assert "application/json" in (tmp_path / "out.html").read_text(encoding="utf-8")


def test_a_picture_is_printed(trace: Trace) -> None:
    result = invoke("show", str(trace.path), "--terminal")
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "+15551230001 → +15551230002 · twilio  0:05.0  passed"
    assert [line.split()[0] for line in lines[1:4]] == ["caller", "bot", "turns"]
    assert lines[-1] == "turn 1: 0:01.0 answered after 400 ms"


def test_what_strangers_say_does_nothing_to_the_terminal(tmp_path: Path) -> None:
    report = {"verdict": "failed", "failure": "\x1b[2J\x9b31mgone\r\n\x07", "causes": [{"message": "\x1b]0;x\x07"}]}
    trace = make_call(tmp_path / "a.call", 5, number="\x1b[31mme", report=report)
    shown = invoke("show", str(trace.path), "--terminal").stderr
    assert "gone" in shown
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.call"], "there is no trace no.call"),
        (["."], ". is no trace: it has no call.json"),
        (["a", "b", "c"], "3 calls are too many for one page"),
        (["good.call", "--html", "good.call"], "--html writes a web page, got 'good.call'"),
        (["a", "--html", "x", "--terminal"], "--html and --terminal do not go together"),
        ([], "missing argument 'CALL [CALL]'"),
    ],
)
def test_misuse(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("show", *arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {message}")
    assert "hint:" in result.stderr


def test_a_page_that_cannot_be_written(trace: Trace, tmp_path: Path) -> None:
    result = invoke("show", str(trace.path), "--html", str(tmp_path / "nowhere" / "out.html"), code=2)
    assert "cannot be written: No such file or directory\nhint:  name another: --html FILE\n" in result.stderr


def _run(trace: Trace, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", "show", str(trace.path)]
    env = {name: value for name, value in clean_environ().items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env |= {"WSVOICE_STATE_DIR": str(folder / "state"), **environ}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a browser")
def test_without_a_browser_a_picture_is_printed(trace: Trace, tmp_path: Path) -> None:
    assert "answered after 400 ms" in _run(trace, tmp_path).stderr
    assert not (tmp_path / "state").exists()


def _dial(url: str, folder: Path, *arguments: str, browser: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsvoice", "dial", url, "--audio", "caller.wav", "--listen", "0", "-q", *arguments]
    env = {name: value for name, value in clean_environ().items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env |= {"WSVOICE_STATE_DIR": str(folder / "state"), "BROWSER": browser}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a browser")
def test_a_test_call_is_shown_once_it_has_ended(tmp_path: Path) -> None:
    write_sounds(tmp_path)
    pages = tmp_path / "state" / "pages"
    browser = tmp_path / "browser"
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o700)
    with serving(MenuBot()) as served:
        result = _dial(served.url, tmp_path, "--open", "--json", browser=f"{browser} %s")
        assert json.loads(result.stdout)["trace"] is None
        # What the page was made of is gone.
        [page] = pages.iterdir()
        assert f"page: {page}\n" in result.stderr
        # A failed call is shown as well; without a browser, in the terminal, and its trace stays if it was asked for.
        result = _dial(served.url, tmp_path, "--dtmf", "1", "--response-timeout", "1", "--open", "--trace", "bad.call")
    assert result.returncode == 1
    assert "turn 2: 0:0" in result.stderr
    assert "no answer" in result.stderr
    assert (tmp_path / "bad.call").is_file()
    assert [*pages.iterdir()] == [page]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2"], "--open is for one call, not for many"),
        (["+15551234567"], "--open is for test calls, not for calls to phone numbers"),
    ],
)
def test_there_is_a_page_of_one_test_call_only(arguments: list[str], message: str) -> None:
    assert invoke("dial", "--open", *arguments, code=2).stderr.startswith(f"error: {message}\nhint:")


def test_the_page_opens_in_the_browser(trace: Trace, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/opened\n')
    browser.chmod(0o700)
    pages = tmp_path / "state" / "pages"
    pages.mkdir(mode=0o700, parents=True)
    for number in range(25):
        (pages / f"old-{number}.html").write_text("")
    shown = _run(trace, tmp_path, BROWSER=f"{browser} %s").stderr
    page = pages / "good.html"
    assert shown == f"page: {page}\n"
    assert (tmp_path / "opened").read_text().split() == [page.as_uri()]
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    # Pages are calls with their sound: not all that were ever opened are kept.
    assert len(list(pages.iterdir())) == 20
