"""Which servers run on this machine, and which of them places a call."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wsvoice.errors import UsageError
from wsvoice.phone.runs import RunningServer, choose_server, running_servers

ONE = RunningServer("http://localhost:7860/", "key 1", "https://one.example.com", ("twilio",), 1)
TWO = RunningServer("http://127.0.0.1:7861/", "key 2", "https://two.example.com", ("telnyx", "plivo"), 2)


def write(folder: Path, name: str, began: int = 0, **changed: Any) -> None:
    content = {"version": 1, "pid": os.getpid(), "url": "http://localhost:7860/", "key": "abc", **changed}
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    (runs / name).write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    os.utime(runs / name, (began, began))


def test_a_folder_without_runs_has_no_servers(tmp_path: Path) -> None:
    assert running_servers(tmp_path / "none") == []
    assert running_servers(tmp_path) == []


def test_servers_are_read_the_newest_first(tmp_path: Path) -> None:
    write(tmp_path, "1.json", began=1, public_url="https://one.example.com", providers=["twilio", 5])
    write(tmp_path, "2.json", began=2, url="http://localhost:7861", public_url=None)
    assert running_servers(tmp_path) == [
        RunningServer("http://localhost:7861/", "abc", "", (), os.getpid()),
        RunningServer("http://localhost:7860/", "abc", "https://one.example.com", ("twilio",), os.getpid()),
    ]


@pytest.mark.parametrize(
    "changed", [{"version": 2}, {"version": None}, {"url": None}, {"url": 7860}, {"key": ""}, {"key": None}]
)
def test_what_is_of_another_version_or_broken_is_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    write(tmp_path, "1.json", **changed)
    assert running_servers(tmp_path) == []


def test_a_file_that_is_no_object_or_cannot_be_read_is_none(tmp_path: Path) -> None:
    write(tmp_path, "1.json")
    (tmp_path / "runs" / "2.json").write_bytes(b"\xff[]")
    (tmp_path / "runs" / "3.json").mkdir()
    (tmp_path / "runs" / "4.txt").write_text("{}")
    assert len(running_servers(tmp_path)) == 1


@pytest.mark.skipif(os.name != "posix", reason="processes are asked for")
def test_what_a_server_left_that_was_killed_is_none(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write(tmp_path, "1.json", pid=dead.pid)
    write(tmp_path, "2.json", pid=10**30)
    assert [server.pid for server in running_servers(tmp_path)] == [10**30]


def choose(*servers: RunningServer, url: str | None = None, provider: str | None = None, key: str | None = None) -> Any:
    return choose_server(servers, url=url, provider=provider, key=key)


def test_the_only_server_is_chosen() -> None:
    assert choose(ONE) is ONE
    assert choose(ONE, provider="twilio") is ONE
    unknown = RunningServer("http://localhost:1/", "k")
    assert choose(unknown, provider="twilio") is unknown


def test_one_of_several_is_named_by_an_address_or_told_by_its_provider() -> None:
    assert choose(ONE, TWO, url="http://localhost:7861/") is TWO
    assert choose(ONE, TWO, url="http://127.0.0.1:7860/") is ONE
    assert choose(ONE, TWO, url="https://two.example.com/") is TWO
    assert choose(ONE, TWO, provider="plivo") is TWO


def test_a_server_elsewhere_needs_a_key() -> None:
    url = "https://bots.example.com/"
    assert choose(ONE, url=url, key="theirs") == RunningServer(url, "theirs")
    # A server's own key goes before the one in the environment.
    assert choose(ONE, url="http://localhost:7860/", key="theirs").key == "key 1"
    with pytest.raises(
        UsageError, match=r"no server that you have started on this machine is at https://bots"
    ) as caught:
        choose(ONE, url=url)
    assert caught.value.hint == (
        "set WSVOICE_DIAL_KEY to that server's key, or name one of yours: http://localhost:7860/"
    )


@pytest.mark.parametrize(
    ("servers", "provider", "message", "hint"),
    [
        ((), None, "no server runs on this machine that could place the call", "`--bot bot.py`"),
        ((ONE,), "telnyx", "the server at http://localhost:7860/ serves twilio, not telnyx", "start one"),
        ((ONE, TWO), None, "2 servers run on this machine", "`--server 7860`: http://localhost:7860/, http://127.0"),
    ],
)
def test_a_choice_that_is_not_clear_is_told(servers: Any, provider: str | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(*servers, provider=provider)
    assert caught.value.message == message
    assert hint in (caught.value.hint or "")
