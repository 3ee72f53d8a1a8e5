"""A number that rings at a bot on this machine, from one command to its end: tunnel, number, a call, and back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.environment import clean_environ
from tests.phone.exchange import Exchange, ExchangeServer, tone
from tests.phone.public_network import PublicNetwork, public_network
from tests.process import ServerProcess, server_process
from tests.runner.carrier import main_frequency
from wsvoice.audio import write_wav

NUMBER = "+15550100001"
BOT = (Path(__file__).parents[2] / "examples" / "echo.py").read_text(encoding="utf-8")
#: What the number's settings are before, where they are the number's own.
BEFORE = {
    "twilio": {
        "VoiceUrl": "https://old.example.com/voice",
        "VoiceMethod": "GET",
        "StatusCallback": "https://old.example.com/s",
    },
    "telnyx": {},
    "plivo": {},
}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[PublicNetwork]:
    yield from public_network(tmp_path)


@pytest.fixture(params=BEFORE)
def exchange(request: pytest.FixtureRequest) -> Iterator[Exchange]:
    """A provider's API, whose account has one number."""
    with ExchangeServer(request.param, NUMBER, **BEFORE[request.param]) as exchange:
        yield exchange


def environ(network: PublicNetwork, exchange: Exchange, folder: Path) -> dict[str, str]:
    """What the user has set."""
    return {**network.environ(), **exchange.credentials, "WSVOICE_STATE_DIR": str(folder / "state")}


def settings_of(exchange: Exchange) -> dict[str, str]:
    return dict(exchange.account.numbers[NUMBER].settings)


def ring(network: PublicNetwork, exchange: Exchange, folder: Path) -> dict[str, Any]:
    """Let the provider call the bot, at the address that the number has, with its own signature; return the report."""
    at = exchange.account.points_at(NUMBER)
    assert at is not None
    write_wav(folder / "tone.wav", [tone(440, 0.5, 8000)], 8000)
    record = ["--record", "call.wav"]
    place = ["dial", at.url, "-t", exchange.name, "--method", at.method]
    done = subprocess.run(
        [sys.executable, "-m", "wsvoice", *place, "--audio", "tone.wav", "--listen", "0", *record, "--json", "-q"],
        env=clean_environ(**network.environ(), **exchange.carrier.credentials),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def bots_voice(recording: Path) -> bytes:
    """Return half a second of the bot in a recording, s16le at 8 kHz, from its first sound on."""
    samples, rate = soundfile.read(recording, dtype="int16")
    right = samples[:, 1]
    assert rate == 8000
    began = int(np.argmax(np.abs(right) > 1000))
    assert np.abs(right).max() > 1000, "the bot is silent"
    return bytes(right[began : began + 4000].tobytes())


def rings_at(server: ServerProcess, exchange: Exchange) -> bool:
    at = exchange.account.points_at(NUMBER)
    return at is not None and at.url.startswith(server.ready["public_url"])


def restored(network: PublicNetwork, exchange: Exchange, folder: Path) -> str:
    """Put back what a dead run has left; return what is said."""
    done = subprocess.run(
        [sys.executable, "-m", "wsvoice", "number", "restore"],
        env=clean_environ(**environ(network, exchange, folder)),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_number_rings_at_a_bot_until_ctrl_c(network: PublicNetwork, exchange: Exchange, tmp_path: Path) -> None:
    before, applications = settings_of(exchange), dict(vars(exchange.account).get("applications", {}))
    options = ["-t", exchange.name, "--tunnel", "ngrok", "--number", NUMBER]
    with server_process(tmp_path, BOT, *options, **environ(network, exchange, tmp_path)) as server:
        assert server.ready["number"] == NUMBER
        assert rings_at(server, exchange)
        assert list((tmp_path / "state" / "numbers").glob("*.json"))
        report = ring(network, exchange, tmp_path)
        assert report["verdict"] == "passed"
        # The bot is heard to say the caller's own words.
        assert main_frequency(bots_voice(tmp_path / "call.wav")) == pytest.approx(440, abs=15)
        server.signal(signal.SIGINT)
        assert server.wait(20) == 0
        assert "Traceback" not in server.log()
    assert settings_of(exchange) == before
    assert vars(exchange.account).get("applications", {}).keys() == applications.keys()
    assert network.all_ended(), "the tunnel outlives the server"
    assert not list((tmp_path / "state" / "numbers").glob("*.json"))


def test_a_number_is_put_back_after_the_run_was_killed(
    network: PublicNetwork, exchange: Exchange, tmp_path: Path
) -> None:
    before, applications = settings_of(exchange), dict(vars(exchange.account).get("applications", {}))
    options = ["-t", exchange.name, "--tunnel", "ngrok", "--number", NUMBER]
    with server_process(tmp_path, BOT, *options, **environ(network, exchange, tmp_path)) as server:
        assert ring(network, exchange, tmp_path)["verdict"] == "passed"
        server.signal(signal.SIGKILL)
        server.wait(10)
    assert settings_of(exchange) != before or exchange.account.points_at(NUMBER) is not None
    assert f"{NUMBER} rings at" in restored(network, exchange, tmp_path)
    assert settings_of(exchange) == before
    assert vars(exchange.account).get("applications", {}).keys() == applications.keys()
    assert not list((tmp_path / "state" / "numbers").glob("*.json"))
    network.kill()
