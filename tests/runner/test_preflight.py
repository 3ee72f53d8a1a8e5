"""What is found before anything listens; a server refuses to start for it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wsvoice.config import METRICS_TOKEN, STREAM_SECRET, RunConfig
from wsvoice.errors import ConfigError, ServerError
from wsvoice.runner import preflight
from wsvoice.runner.preflight import check_folder, check_settings


def test_a_folder_for_recordings_need_not_be_there_and_is_not_made(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_takes_no_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise OSError(30, os.strerror(30))

    # To root, who runs tests in containers, every folder can be written.
    monkeypatch.setattr(preflight, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"--record .*calls cannot be written to: Read-only file system") as caught:
        check_settings(RunConfig(transport="twilio", record=tmp_path / "calls"))
    assert caught.value.hint


def test_a_file_in_its_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "calls").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        check_folder(tmp_path / "calls" / "today")


def test_a_dangling_link_in_its_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "calls").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="calls cannot be written to"):
        check_folder(tmp_path / "calls")


@pytest.mark.parametrize("token", ["a", "0123456789abcde"])
def test_a_token_for_metrics_that_can_be_guessed_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="WSVOICE_METRICS_TOKEN needs 16 characters at least") as caught:
        check_settings(RunConfig(transport="websocket", credentials={METRICS_TOKEN: token}))
    assert f" {token} " not in caught.value.message
    check_settings(RunConfig(transport="websocket", credentials={METRICS_TOKEN: f"{token}0123456789abcdef"}))


@pytest.mark.parametrize("transport", ["websocket", "websocket-server"])
def test_plain_transports_serve_no_provider(transport: str) -> None:
    assert check_settings(RunConfig(transport=transport)) == {}


@pytest.mark.parametrize(
    ("host", "metrics_host", "port"),
    [
        ("localhost", "localhost", 9090),
        ("0.0.0.0", "localhost", 9090),
        ("localhost", "::", 7860),
        ("127.0.0.2", "127.0.0.2", 7860),
    ],
)
def test_calls_and_metrics_cannot_share_a_port(host: str, metrics_host: str, port: int) -> None:
    config = RunConfig(transport="twilio", host=host, port=port, metrics_port=port, metrics_host=metrics_host)
    with pytest.raises(ConfigError, match=f"--metrics-port {port} is the port that calls come to") as caught:
        check_settings(config)
    assert str(port) not in (caught.value.hint or "")
    assert list(check_settings(replace(config, metrics_port=port + 1))) == ["twilio"]


@pytest.mark.parametrize(
    "config",
    [
        RunConfig(transport="twilio", port=0, metrics_port=0),
        RunConfig(transport="twilio", host="127.0.0.2", metrics_port=7860, metrics_host="127.0.0.3"),
    ],
)
def test_ports_that_differ_in_the_end_go_together(config: RunConfig) -> None:
    assert list(check_settings(config)) == ["twilio"]


def test_the_library_for_redis_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {STREAM_SECRET: "0123456789abcdef0123456789abcdef"}
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ServerError, match="--redis needs the library redis"):
        check_settings(RunConfig(transport="twilio", redis="redis://localhost", credentials=secrets))


def test_a_client_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="needs the address of a server"):
        check_settings(RunConfig(transport="websocket-client"))
