"""The files by which commands find a running server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.phone.test_placed_calls import Bot
from wsvoice.phone.runs import RunFile, RunningServer, running_servers

SERVER = RunningServer("http://localhost:1/", "secret", "https://bot.example.com", ("twilio",), os.getpid())


def test_its_owner_alone_can_read_it(tmp_path: Path) -> None:
    file = RunFile(tmp_path)
    file.write(SERVER)
    (path,) = (tmp_path / "runs").glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert running_servers(tmp_path) == [SERVER]
    file.remove()
    assert running_servers(tmp_path) == []
    file.remove()


def test_files_of_servers_that_are_gone_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    folder.mkdir()
    # No process has that number: Linux's largest is 2 ** 22.
    gone, mine = folder / f"{2**22 + 1}.json", folder / "notes.json"
    gone.write_text(json.dumps({"version": 1, "pid": 2**22 + 1, "url": "http://localhost:2/", "key": "k"}))
    mine.touch()
    assert running_servers(tmp_path) == []
    RunFile(tmp_path).write(SERVER)
    assert not gone.exists()
    assert mine.exists()


@pytest.mark.parametrize("causes", [False, True])
def test_a_server_introduces_itself_unless_it_is_a_test_calls(serve: Any, tmp_path: Path, causes: bool) -> None:
    server = serve(Bot(), state_folder=tmp_path, causes=tmp_path / "causes" if causes else None)
    found = running_servers(tmp_path)
    assert len(found) == (0 if causes else 1)
    if found:
        key = {"Authorization": f"Bearer {found[0].key}"}
        assert httpx.get(f"{found[0].url}dial/none", headers=key, timeout=10).status_code == 404
        key = {"Authorization": f"Bearer {found[0].key}x"}
        assert httpx.get(f"{found[0].url}dial/none", headers=key, timeout=10).status_code == 401
    server.stop()
    assert running_servers(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_stops_nobody(serve: Any, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    server = serve(Bot(), state_folder=blocked)
    assert httpx.get(f"{server.url}healthz", timeout=10).status_code == 200
